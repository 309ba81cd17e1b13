"""One protocol for all systems: the same users, the whole catalogue, one target each.

Beside it stands a second table in which only cold items compete; its figures are not comparable with the others.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl

from llmrec.console import track
from llmrec.data.catalog import Catalog
from llmrec.data.sequences import TEST, TRAIN, VALID, EvalExamples, Sequences
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.metrics import summarise

Metrics = dict[str, Any]
"""What metrics.json holds: `protocol`, `systems` -> name -> slice -> metric, `milliseconds_per_user` -> name, and
`decode` of llmrec; perhaps `cold_candidates`, with `protocol` and `systems` of its own."""


OURS = "llmrec"
"""The system whose decoding is reported."""


class System(Protocol):
    """Anything that can rank; one that decodes may also offer `decode_stats() -> dict`."""

    @property
    def name(self) -> str:
        """The system's name in the report, unique in it."""

    def ranks(self, cases: EvalExamples, filter_seen: bool, among: np.ndarray | None = None) -> np.ndarray:
        """Rank of each case's target, float64 [n] from 1, inf where it is not ranked.

        Args:
            cases: n of them.
            filter_seen: leave what stands in the history out, the target excepted.
            among: int [E], the catalogue's rows that compete, each target among them; None: all.
        """


def select_cases(sequences: Sequences, config: EvaluateConfig) -> EvalExamples:
    """The cases that a configuration asks for."""
    cases = sequences.cases(VALID if config.part == "valid" else TEST, config.every_event)
    return cases.sample(config.max_users, config.seed) if config.max_users else cases


def warm_cold_slices(cases: EvalExamples, train_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Boolean masks [n]: `all`, targets with training events (`warm`) and without (`cold`)."""
    warm = train_counts[cases.targets] > 0
    return {"all": np.ones(len(cases), bool), "warm": warm, "cold": ~warm}


def evaluate_systems(
    systems: Sequence[System],
    cases: EvalExamples,
    slices: Mapping[str, np.ndarray],
    config: EvaluateConfig,
    protocol: Mapping[str, Any],
) -> tuple[Metrics, dict[str, np.ndarray]]:
    """Measure all systems on the same cases.

    Args:
        systems: with distinct names.
        cases: n cases.
        slices: name -> bool [n]; a slice without users is left out.
        config: cut-offs, filter and bootstrap.
        protocol: what the metrics should say about the split and the catalogue, besides `config`'s part.

    Returns:
        The metrics, and each system's ranks, float64 [n].

    Raises:
        ValueError: two systems share a name, or a system returns ranks that are not ranks.
    """
    names = [system.name for system in systems]
    if len(set(names)) < len(names):
        raise ValueError(f"systems share a name: {names}")
    ranks, seconds = {}, {}
    for system in track(systems, "evaluating", total=len(systems)):
        started = time.perf_counter()
        ranks[system.name] = _checked(system.name, system.ranks(cases, config.filter_seen), len(cases))
        seconds[system.name] = time.perf_counter() - started
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
    }
    for system in systems:
        if system.name == OURS and (decode_stats := getattr(system, "decode_stats", None)):
            metrics["decode"] = decode_stats()
    return metrics, ranks


def evaluate_cold_candidates(
    systems: Sequence[System], cases: EvalExamples, candidates: np.ndarray, config: EvaluateConfig
) -> Metrics | None:
    """Measure all systems on the cases with a cold target, where they rank the cold items alone.

    Args:
        systems: with distinct names; a `random` order stands beside them.
        cases: of which those with a cold target are taken.
        candidates: int [E], rows of the catalogue without training events.
        config: cut-offs, filter and bootstrap.

    Returns:
        `protocol` and `systems` -> name -> `all` -> metric as in metrics.json; None without a cold target.
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
    """Rank of each case's target in an order of `among` (int [E]) that the seed draws for it, float64 [n]."""
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
    """`systems` of the metrics: name -> slice -> metric, with the slice's `users` and distinct targets, `items`.

    Args:
        ranks: name -> float64 [n].
        slices: name -> bool [n]; one without cases is left out.
        config: cut-offs and bootstrap.
        targets: int [n], rows of the catalogue.
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


def per_user_table(
    ranks: Mapping[str, np.ndarray], cases: EvalExamples, sequences: Sequences, catalog: Catalog
) -> pl.DataFrame:
    """One row per user and system: `user_id`, `system`, target's `item_id`, `rank` (null: unranked)."""
    users = [sequences.users[user] for user in cases.users]
    targets = [catalog.ids[item] for item in cases.targets]
    tables = [
        pl.DataFrame(
            {
                "user_id": users,
                "system": [name] * len(cases),
                "item_id": targets,
                "rank": [int(rank) if np.isfinite(rank) else None for rank in column],
            },
            schema={"user_id": pl.String, "system": pl.String, "item_id": pl.String, "rank": pl.Int64},
        )
        for name, column in ranks.items()
    ]
    return pl.concat(tables)


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
"""The least value of each bin; the last is open."""


MILLISECONDS_FROM = 10**11
"""As seconds, a time thousands of years ahead; as milliseconds, the year 1973."""


def make_slices(cases: EvalExamples, sequences: Sequences, n_items: int) -> Slices:
    """`all`, `warm`, `cold`, and those finer slices that hold some of the n cases but not all.

    These go by the target's training events (`count 1-4`) and its days in the log (`age 0-30 days`), the length of the
    history (`history 1-2`), and whether the user has training events (`warm-users`, `cold-users`).

    Args:
        cases: of `sequences`.
        sequences: the whole log.
        n_items: of the catalogue.
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
    """A slice for each bin of whole numbers: `name 1-4`, `name 5` where a bin has one number, `name 10+` for the last.

    Args:
        values: int [n], none below the first start.
        starts: the least number of each bin.
        name: before the numbers.
        unit: behind them.
    """
    slices = {}
    for low, following in zip(starts, [*starts[1:], None], strict=True):
        label = f"{low}+" if following is None else f"{low}" if following == low + 1 else f"{low}-{following - 1}"
        slices[f"{name} {label}{unit}"] = (values >= low) & (values < following if following is not None else True)
    return slices


def target_ages(cases: EvalExamples, sequences: Sequences, times: np.ndarray) -> np.ndarray:
    """Whole days from an item's first event that the split left in the log to the event that asks for it, int64 [n].

    Args:
        cases: of `sequences`.
        sequences: E events.
        times: int64 [E], seconds, or milliseconds where the latest is too far ahead for seconds.
    """
    first = np.full(sequences.items.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, sequences.items, times)
    # A case's target comes right after its history.
    events = sequences.offsets[cases.users] + np.array([len(history) for history in cases.histories], dtype=np.int64)
    day = 86_400 * (1000 if times.max(initial=0) >= MILLISECONDS_FROM else 1)
    return (times[events] - first[cases.targets]) // day
