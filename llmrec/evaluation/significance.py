"""Whether one system is better than another: paired differences on the same cases, resampled by user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec.errors import UserError
from llmrec.evaluation.metrics import percentiles, resampled_means

ROUNDING = 1e-12
"""A difference of means up to here is 0: metrics lie in [0, 1], and their sums are rounded in the last bits."""


@dataclass(frozen=True)
class Difference:
    """How much greater the first of two systems' means is than the second's."""

    mean: float
    """Mean of a - b over the cases."""

    low: float
    """Lower end of the 95% interval."""

    high: float
    """Upper end of the 95% interval."""

    p: float
    """Two-sided p-value of no difference."""


def paired_difference(a: np.ndarray, b: np.ndarray, users: np.ndarray, resamples: int, seed: int) -> Difference:
    """Mean difference of two systems, with a percentile interval and a p-value from a bootstrap over users.

    The p-value is 2 * min(share of resamples <= 0, share >= 0), at most 1 (Efron & Tibshirani 1993). Each share
    counts one resample more than was drawn, so p is never 0 (Davison & Hinkley 1997). One user cannot be resampled: the
    interval is a point, and p is 1. With a handful of users, p is too small.

    Args:
        a: float [n], a metric in [0, 1] of the first system, case by case.
        b: float [n], the same metric of the second on the same cases.
        users: int [n], whose cases these are; those of one user are drawn together.
        resamples: number of resamples of the users, from 1.
        seed: of these.

    Raises:
        ValueError: no cases, no resamples, shapes that differ, or a value that is not finite.
    """
    if not len(a) or a.ndim != 1 or not a.shape == b.shape == users.shape:
        raise ValueError(f"a {a.shape}, b {b.shape}, users {users.shape}: expected one shape [n], n from 1")
    if resamples < 1:
        raise ValueError(f"resamples {resamples}: expected at least 1")
    gains = a.astype(np.float64) - b
    if not np.isfinite(gains).all():
        raise ValueError("a metric of a case is not finite")
    means = resampled_means(gains, resamples, seed, users)
    one_side = 1 + min((means <= ROUNDING).sum(), (means >= -ROUNDING).sum())
    p = 1.0 if (users == users[0]).all() else min(1.0, 2 * one_side / (resamples + 1))
    return Difference(float(gains.mean()), *percentiles(means), float(p))


def holm(p: np.ndarray) -> np.ndarray:
    """Step-down adjusted p-values (Holm 1979), float64 [m], in the order given.

    The k-th smallest of m is multiplied by m - k + 1, is at least as large as those before it, and at most 1. To reject
    what lies below alpha keeps the chance of any false rejection below alpha, however the tests depend on each other.

    Args:
        p: float [m], in [0, 1].

    Raises:
        ValueError: a value is not a probability.
    """
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values {p.tolist()}: expected numbers in [0, 1]")
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]), 1)
    return adjusted


def compare_with_best(
    values: Mapping[str, np.ndarray], baselines: Sequence[str], users: np.ndarray, resamples: int, seed: int
) -> dict[str, Any]:
    """The difference between each system that is not a baseline and the best baseline, the one with the greatest mean.

    The best is chosen on the same cases that it is compared on, which favours the baseline.

    Args:
        values: system -> float [n], a metric in [0, 1], case by case.
        baselines: names in `values`; of equally good ones, the first is the best.
        users: int [n], as in `paired_difference`.
        resamples: number of resamples of the users.
        seed: of these.

    Returns:
        What JSON can hold: `best`, its name, and `systems` -> name -> `difference` (system - best), `interval` (its two
        ends), `p`, and `p_holm`, corrected over these systems.

    Raises:
        UserError: no baseline.
        ValueError: a baseline without values; what `paired_difference` refuses.
    """
    if not baselines:
        raise UserError("--evaluate.baselines []: expected one to compare with; name popularity, for example")
    if not set(baselines) <= set(values):
        raise ValueError(f"baselines {list(baselines)}: expected names among {list(values)}")
    best = max(baselines, key=lambda name: values[name].mean())
    found = {
        name: paired_difference(column, values[best], users, resamples, seed)
        for name, column in values.items()
        if name not in baselines
    }
    corrected = holm(np.array([one.p for one in found.values()]))
    return {
        "best": best,
        "systems": {
            name: {"difference": one.mean, "interval": [one.low, one.high], "p": one.p, "p_holm": float(p_holm)}
            for (name, one), p_holm in zip(found.items(), corrected, strict=True)
        },
    }
