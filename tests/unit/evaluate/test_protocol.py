"""Slices, metrics and the per-user table for systems with known ranks."""

import numpy as np
import polars as pl
import pytest

from llmrec.data.catalog import Catalog
from llmrec.data.split import Cases, Sequences
from llmrec.evaluate import EvaluateConfig, evaluate_systems, per_user_table, select_cases, warm_cold_slices

CASES = Cases(
    users=np.array([0, 1, 3], np.int32),
    histories=[np.array([0], np.int32)] * 3,
    targets=np.array([1, 2, 1], np.int32),
)


class Fixed:
    """Answers with the ranks it was given and remembers what it was asked."""

    def __init__(self, name, ranks):
        self.name = name
        self.answer = np.array(ranks, dtype=float)

    def ranks(self, cases, filter_seen):
        self.asked = (cases, filter_seen)
        return self.answer


class Decoding(Fixed):
    def decode_stats(self):
        return {"beams": 20, "invalid_rate": 0.0}


def measure(*systems, train_counts=(3, 1, 0), **settings):
    slices = warm_cold_slices(CASES, np.array(train_counts))
    return evaluate_systems(systems, CASES, slices, EvaluateConfig(**settings), {"split": "leave-one-out"})


def test_systems_are_measured_by_slice():
    metrics, ranks = measure(Decoding("llmrec", [1, 4, np.inf]), Fixed("popularity", [11, 1, 1]))
    ours = metrics["systems"]["llmrec"]
    assert set(ours) == {"all", "warm", "cold"}
    assert (ours["all"]["users"], ours["warm"]["users"], ours["cold"]["users"]) == (3, 2, 1)
    assert ours["all"]["recall@5"] == pytest.approx(2 / 3)
    assert ours["warm"]["recall@5"] == 0.5
    assert ours["cold"]["mrr@5"] == 0.25
    assert metrics["systems"]["popularity"]["warm"]["recall@10"] == 0.5
    assert len(ours["all"]["ndcg@10_ci"]) == 2
    assert metrics["decode"] == {"beams": 20, "invalid_rate": 0.0}
    assert ranks["popularity"].tolist() == [11, 1, 1]


def test_the_protocol_says_what_was_done():
    system = Fixed("popularity", [1, 1, 1])
    metrics, _ = measure(system, filter_seen=False, part="valid")
    assert system.asked == (CASES, False)
    assert metrics["protocol"] == {
        "split": "leave-one-out",
        "part": "valid",
        "ranking": "full",
        "users": 3,
        "filter_seen": False,
        "k": [1, 5, 10, 20],
        "bootstrap": 1000,
        "seed": 0,
    }
    assert "decode" not in metrics


def test_a_slice_without_users_is_left_out():
    metrics, _ = measure(Fixed("popularity", [1, 1, 1]), train_counts=(3, 1, 1))
    assert set(metrics["systems"]["popularity"]) == {"all", "warm"}


def test_two_systems_of_one_name_are_refused():
    with pytest.raises(ValueError, match="share a name"):
        measure(Fixed("a", [1, 1, 1]), Fixed("a", [1, 1, 1]))


@pytest.mark.parametrize("ranks", [[1, 2], [0, 1, 1], [1, np.nan, 1]])
def test_what_is_no_rank_is_refused(ranks):
    with pytest.raises(ValueError, match="a: expected 3 ranks"):
        measure(Fixed("a", ranks))


def test_the_per_user_table_names_users_and_targets():
    catalog = Catalog.from_frame(pl.DataFrame({"item_id": ["x", "y", "z"], "title": ["", "", ""]}))
    sequences = Sequences(
        users=["ann", "bob", "cyd", "dan"],
        offsets=np.zeros(5, np.int64),
        items=np.empty(0, np.int32),
        parts=np.empty(0, np.uint8),
    )
    frame = per_user_table({"a": np.array([1, 2, np.inf]), "b": np.ones(3)}, CASES, sequences, catalog)
    assert frame.rows()[:4] == [
        ("ann", "a", "y", 1),
        ("bob", "a", "z", 2),
        ("dan", "a", "y", None),
        ("ann", "b", "y", 1),
    ]
    assert frame.height == 6


def test_the_sample_is_seeded_and_keeps_order():
    users = 30
    sequences = Sequences(
        users=[str(user) for user in range(users)],
        offsets=np.arange(0, 3 * users + 1, 3),
        items=np.tile(np.array([0, 1, 2], np.int32), users),
        parts=np.tile(np.array([0, 1, 2], np.uint8), users),
    )
    everyone = select_cases(sequences, EvaluateConfig())
    assert len(everyone) == users
    assert set(everyone.targets.tolist()) == {2}
    assert set(select_cases(sequences, EvaluateConfig(part="valid")).targets.tolist()) == {1}
    some = select_cases(sequences, EvaluateConfig(max_users=7, seed=1))
    assert some.users.tolist() == select_cases(sequences, EvaluateConfig(max_users=7, seed=1)).users.tolist()
    assert len(some) == 7
    assert (np.diff(some.users) > 0).all()
