"""One protocol for all systems: the same cases, each with one target, which is ranked among the whole catalogue.

A second table ranks only the cold items, for the cases with a cold target. Its figures are not comparable with those of
the full ranking.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmrec.collaborative.base import System
from llmrec.collaborative.lists import beyond_accuracy
from llmrec.console import track
from llmrec.data.sequences import TEST, TRAIN, VALID, EvalExamples, Sequences
from llmrec.data.times import DAY
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.metrics import summarise

Metrics = dict[str, Any]
"""The content of metrics.json: `protocol`; `systems` -> name -> slice -> metric; `milliseconds_per_user` -> name;
`lists` -> name -> coverage, popularity, novelty and concentration of the first ten; and `decode`, the decoding
statistics of llmrec. It may have `cold_candidates`, with its own `protocol` and `systems`."""


OURS = "llmrec"
"""The name of the system whose decoding statistics are in the metrics."""


LISTED = 10
"""Items of each list whose coverage, popularity and novelty are measured."""


def select_cases(sequences: Sequences, config: EvaluateConfig) -> EvalExamples:
    """The cases to evaluate: of the configured part, a random sample of them if `max_users` is set."""
    cases = sequences.cases(VALID if config.part == "valid" else TEST, config.every_event)
    return cases.sample(config.max_users, config.seed) if config.max_users else cases


def warm_cold_slices(cases: EvalExamples, train_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Masks bool [n]: `all` cases, those with a `warm` target (with training events) and with a `cold` target."""
    warm = train_counts[cases.targets] > 0
    return {"all": np.ones(len(cases), bool), "warm": warm, "cold": ~warm}


def evaluate_systems(
    systems: Sequence[System],
    cases: EvalExamples,
    slices: Mapping[str, np.ndarray],
    config: EvaluateConfig,
    protocol: Mapping[str, Any],
    train_counts: np.ndarray,
    train_users: int,
) -> tuple[Metrics, dict[str, np.ndarray]]:
    """Measure all systems on the same cases.

    Args:
        systems: systems with distinct names.
        cases: n cases.
        slices: name -> bool [n]; a slice without cases is left out.
        config: cut-offs, filter and bootstrap.
        protocol: facts about the split and the catalogue, which the metrics record with those of `config`.
        train_counts: int [N], training events of each item.
        train_users: number of users with training events.

    Returns:
        The metrics, and each system's ranks, float64 [n].

    Raises:
        ValueError: two systems share a name, or a system returns ranks that are not ranks.
    """
    names = [system.name for system in systems]
    if len(set(names)) < len(names):
        raise ValueError(f"systems share a name: {names}")
    ranks, lists, seconds = {}, {}, {}
    for system in track(systems, "evaluating", unit="systems"):
        started = time.perf_counter()
        answers = system.answers(cases, config.filter_seen, listed=LISTED)
        seconds[system.name] = time.perf_counter() - started
        ranks[system.name] = _checked(system.name, answers.ranks, len(cases))
        if (answers.items >= 0).any():
            lists[system.name] = beyond_accuracy(answers.items, train_counts, train_users, LISTED)
    metrics: Metrics = {
        "protocol": {
            **protocol,
            "part": config.part,
            "ranking": "full",
            "users": len(np.unique(cases.users)),
            "targets": len(cases),
            "filter_seen": config.filter_seen,
            "k": config.k,
            "bootstrap": config.bootstrap,
            "seed": config.seed,
        },
        "systems": summarise_systems(ranks, slices, config, cases.targets, cases.users),
        "milliseconds_per_user": {name: round(1000 * taken / len(cases), 4) for name, taken in seconds.items()},
        "lists": lists,
    }
    for system in systems:
        if system.name == OURS and (decode_stats := getattr(system, "decode_stats", None)):
            metrics["decode"] = decode_stats()
    return metrics, ranks


def evaluate_cold_candidates(
    systems: Sequence[System], cases: EvalExamples, candidates: np.ndarray, config: EvaluateConfig
) -> Metrics | None:
    """Measure all systems on the cases with a cold target, ranked among the cold items only.

    Args:
        systems: systems with distinct names. The result also has a system `random`, which ranks at random.
        cases: the cases; only those with a cold target are measured.
        candidates: int [E], catalogue rows of the cold items (without training events).
        config: cut-offs, filter and bootstrap.

    Returns:
        `protocol` and `systems` -> name -> `all` -> metric as in metrics.json; None if no target is cold.
    """
    chosen = cases.where(np.isin(cases.targets, candidates))
    if not len(chosen):
        return None
    ranks = {system.name: system.ranks(chosen, config.filter_seen, candidates) for system in systems}
    ranks = {name: _checked(name, column, len(chosen)) for name, column in ranks.items()}
    ranks["random"] = random_ranks(chosen, config.filter_seen, candidates, config.seed)
    return {
        "protocol": {
            "part": config.part,
            "ranking": "cold items only",
            "candidates": len(candidates),
            "users": len(np.unique(chosen.users)),
            "targets": len(chosen),
            "filter_seen": config.filter_seen,
            "k": config.k,
            "bootstrap": config.bootstrap,
            "seed": config.seed,
        },
        "systems": summarise_systems(ranks, {"all": np.ones(len(chosen), bool)}, config, chosen.targets, chosen.users),
    }


def random_ranks(cases: EvalExamples, filter_seen: bool, among: np.ndarray, seed: int) -> np.ndarray:
    """Rank of each case's target in a random order of the items `among` (int [E]), drawn by `seed`: float64 [n]."""
    left = np.full(len(cases), len(among))
    if filter_seen:
        left -= [len(np.intersect1d(h[h != t], among)) for h, t in zip(cases.histories, cases.targets, strict=True)]
    return np.random.default_rng(seed).integers(1, left, endpoint=True).astype(np.float64)


def summarise_systems(
    ranks: Mapping[str, np.ndarray],
    slices: Mapping[str, np.ndarray],
    config: EvaluateConfig,
    targets: np.ndarray,
    users: np.ndarray | None = None,
) -> dict[str, dict[str, Any]]:
    """`systems` of the metrics: name -> slice -> metric. `items` counts the distinct targets of the slice.

    Args:
        ranks: name -> float64 [n].
        slices: name -> bool [n]; a slice without cases is left out.
        config: cut-offs and bootstrap.
        targets: int [n], catalogue rows.
        users: int [n], as in `summarise`.
    """
    items = {name: len(np.unique(targets[mask])) for name, mask in slices.items()}
    return {
        name: {
            slice_name: {
                **summarise(
                    column[mask], config.k, config.bootstrap, config.seed, None if users is None else users[mask]
                ),
                "items": items[slice_name],
            }
            for slice_name, mask in slices.items()
            if mask.any()
        }
        for name, column in ranks.items()
    }


def _checked(name: str, ranks: np.ndarray, n: int) -> np.ndarray:
    if ranks.shape != (n,) or not (ranks >= 1).all():
        raise ValueError(f"{name}: expected {n} ranks from 1 on, got shape {ranks.shape}, least {ranks.min()}")
    return ranks


Slices = dict[str, np.ndarray]


MAIN = ("all", "warm", "cold")
"""The slices of the main tables."""


COUNTS = (0, 1, 5, 10, 50)


HISTORIES = (1, 3, 5, 10, 20)


AGES = (0, 31, 181)
"""`COUNTS`, `HISTORIES` and `AGES` are the least values of their bins; the last bin has no upper end."""


def make_slices(cases: EvalExamples, sequences: Sequences, n_items: int) -> Slices:
    """The slices `all`, `warm` and `cold`, and each finer slice that has some of the n cases but not all of them.

    The finer slices are by the number of training events of the target (`count 1-4`), the days that the target has been
    in the log (`age 0-30 days`), the length of the history (`history 1-2`), and whether the user has training events
    (`warm-users`, `cold-users`).

    Args:
        cases: n cases of `sequences`.
        sequences: the whole log.
        n_items: number of items of the catalogue.

    Returns:
        name -> bool [n].
    """
    counts = sequences.train_counts(n_items)
    warm_users = sequences.parts[sequences.offsets[cases.users]] == TRAIN
    finer = binned(counts[cases.targets], COUNTS, "count")
    finer |= binned(np.array([len(history) for history in cases.histories]), HISTORIES, "history")
    if sequences.times is not None:
        finer |= binned(target_ages(cases, sequences, sequences.times), AGES, "age", " days")
    finer |= {"warm-users": warm_users, "cold-users": ~warm_users}
    return warm_cold_slices(cases, counts) | {
        name: mask for name, mask in finer.items() if mask.any() and not mask.all()
    }


def binned(values: np.ndarray, starts: Sequence[int], name: str, unit: str = "") -> Slices:
    """A slice for each bin of whole numbers: `name 1-4`, `name 5` for a bin with one number, `name 10+` for the last.

    Args:
        values: int [n], none below the first start.
        starts: the least number of each bin.
        name: the text before the numbers.
        unit: the text after the numbers.
    """
    slices = {}
    for low, following in zip(starts, [*starts[1:], None], strict=True):
        label = f"{low}+" if following is None else f"{low}" if following == low + 1 else f"{low}-{following - 1}"
        slices[f"{name} {label}{unit}"] = (values >= low) & (values < following if following is not None else True)
    return slices


def target_ages(cases: EvalExamples, sequences: Sequences, times: np.ndarray) -> np.ndarray:
    """Age of each target in whole days, int64 [n]: from the item's first event in `sequences` to the target's event.

    Args:
        cases: n cases of `sequences`.
        sequences: E events, those that the split kept.
        times: int64 [E], microseconds.
    """
    first = np.full(sequences.items.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, sequences.items, times)
    # The target's event comes right after the history.
    events = sequences.offsets[cases.users] + np.array([len(history) for history in cases.histories], dtype=np.int64)
    return (times[events] - first[cases.targets]) // DAY
