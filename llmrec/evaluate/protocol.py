"""One protocol for all systems: the same users, the whole catalogue, one target each."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl

from llmrec.console import track
from llmrec.data.catalog import Catalog
from llmrec.data.split import TEST, VALID, Cases, Sequences
from llmrec.evaluate.config import EvaluateConfig
from llmrec.evaluate.metrics import summarise

Metrics = dict[str, Any]
"""What metrics.json holds: `protocol`, `systems` -> name -> slice -> metric, and `decode` of llmrec."""


class System(Protocol):
    """Anything that can rank; one that decodes may also offer `decode_stats() -> dict`."""

    @property
    def name(self) -> str:
        """The system's name in the report, unique in it."""

    def ranks(self, cases: Cases, filter_seen: bool) -> np.ndarray:
        """Rank of each case's target, float64 [n] from 1, inf where it is not ranked."""


def select_cases(sequences: Sequences, config: EvaluateConfig) -> Cases:
    """The cases that a configuration asks for."""
    cases = sequences.cases(VALID if config.part == "valid" else TEST)
    return cases.sample(config.max_users, config.seed) if config.max_users else cases


def warm_cold_slices(cases: Cases, train_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Boolean masks [n]: `all`, targets with training events (`warm`) and without (`cold`)."""
    warm = train_counts[cases.targets] > 0
    return {"all": np.ones(len(cases), bool), "warm": warm, "cold": ~warm}


def evaluate_systems(
    systems: Sequence[System],
    cases: Cases,
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
    ranks = {}
    for system in track(systems, "evaluating", total=len(systems)):
        ranks[system.name] = _checked(system.name, system.ranks(cases, config.filter_seen), len(cases))
    metrics: Metrics = {
        "protocol": {
            **protocol,
            "part": config.part,
            "ranking": "full",
            "users": len(cases),
            "filter_seen": config.filter_seen,
            "k": config.k,
            "bootstrap": config.bootstrap,
            "seed": config.seed,
        },
        "systems": summarise_systems(ranks, slices, config),
    }
    for system in systems:
        if decode_stats := getattr(system, "decode_stats", None):
            metrics["decode"] = decode_stats()
    return metrics, ranks


def summarise_systems(
    ranks: Mapping[str, np.ndarray], slices: Mapping[str, np.ndarray], config: EvaluateConfig
) -> dict[str, dict[str, Any]]:
    """`systems` of the metrics: name -> slice (bool [n]; one without cases is left out) -> metric."""
    return {
        name: {
            slice_name: summarise(column[mask], config.k, config.bootstrap, config.seed)
            for slice_name, mask in slices.items()
            if mask.any()
        }
        for name, column in ranks.items()
    }


def per_user_table(
    ranks: Mapping[str, np.ndarray], cases: Cases, sequences: Sequences, catalog: Catalog
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
