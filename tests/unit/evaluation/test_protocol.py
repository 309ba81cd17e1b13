"""Slices, metrics and the per-user table for systems with known ranks."""

import numpy as np
import polars as pl
import pytest

from llmrec.collaborative.base import Answers, System
from llmrec.data.catalog import Catalog
from llmrec.data.sequences import EvalExamples, Sequences
from llmrec.evaluation import EvaluateConfig, evaluate_systems, select_cases, warm_cold_slices
from llmrec.evaluation.protocol import evaluate_cold_candidates, random_ranks, summarise_systems

CASES = EvalExamples(
    users=np.array([0, 1, 3], np.int32),
    histories=[np.array([0], np.int32)] * 3,
    targets=np.array([1, 2, 1], np.int32),
)


class Fixed(System):
    """Answers with the ranks it was given and remembers what it was asked."""

    def __init__(self, name, ranks):
        self.name = name
        self.answer = np.array(ranks, dtype=float)

    def answers(self, cases, filter_seen, among=None, listed=0):
        self.asked = (cases, filter_seen)
        self.among = among
        return Answers(self.answer, np.zeros((len(self.answer), listed), np.int64))


class Decoding(Fixed):
    def decode_stats(self):
        return {"beams": 20, "invalid_rate": 0.0}


def measure(*systems, train_counts=(3, 1, 0), **settings):
    slices = warm_cold_slices(CASES, np.array(train_counts))
    return evaluate_systems(
        systems, CASES, slices, EvaluateConfig(**settings), {"split": "leave-one-out"}, np.array(train_counts), 3
    )


def test_systems_are_measured_by_slice():
    metrics, ranks = measure(Decoding("llmrec", [1, 4, np.inf]), Fixed("popularity", [11, 1, 1]))
    ours = metrics["systems"]["llmrec"]
    assert set(ours) == {"all", "warm", "cold"}
    assert (ours["all"]["users"], ours["warm"]["users"], ours["cold"]["users"]) == (3, 2, 1)
    assert (ours["all"]["items"], ours["warm"]["items"], ours["cold"]["items"]) == (2, 1, 1)
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
        "targets": 3,
        "filter_seen": False,
        "k": [1, 5, 10, 20],
        "bootstrap": 1000,
        "seed": 0,
    }
    assert "decode" not in metrics


def test_only_the_decoding_of_llmrec_is_told():
    metrics, _ = measure(Decoding("other", [1, 1, 1]), Fixed("llmrec", [1, 1, 1]))
    assert "decode" not in metrics


def test_the_time_of_ranking_is_told_per_user(monkeypatch):
    """By a clock that only ranking moves: 30 ms and 1.5 ms for three users."""
    clock = [5.0]
    monkeypatch.setattr("llmrec.evaluation.protocol.time.perf_counter", lambda: clock[0])

    class Timed(Fixed):
        def __init__(self, name, ranks, seconds):
            super().__init__(name, ranks)
            self.seconds = seconds

        def answers(self, *asked, listed):
            clock[0] += self.seconds
            return super().answers(*asked, listed=listed)

    metrics, _ = measure(Timed("slow", [1, 1, 1], 0.03), Timed("quick", [1, 1, 1], 0.0015))
    assert metrics["milliseconds_per_user"] == {"slow": pytest.approx(10), "quick": pytest.approx(0.5)}


def test_cold_items_compete_alone_for_the_users_with_a_cold_target():
    systems = [Fixed("good", [1]), Fixed("bad", [np.inf])]
    metrics = evaluate_cold_candidates(systems, CASES, np.array([0, 2]), EvaluateConfig())
    assert metrics["protocol"] == {
        "part": "test",
        "ranking": "cold items only",
        "candidates": 2,
        "users": 1,
        "targets": 1,
        "filter_seen": True,
        "k": [1, 5, 10, 20],
        "bootstrap": 1000,
        "seed": 0,
    }
    assert list(metrics["systems"]) == ["good", "bad", "random"]
    assert [entry["all"]["recall@10"] for entry in metrics["systems"].values()] == [1, 0, 1]
    assert metrics["systems"]["good"]["all"]["items"] == 1
    cases, filter_seen = systems[0].asked
    assert (cases.users.tolist(), cases.targets.tolist(), filter_seen) == ([1], [2], True)
    assert systems[0].among.tolist() == [0, 2]


def test_without_a_cold_target_there_is_no_second_table():
    assert evaluate_cold_candidates([Fixed("a", [1])], CASES, np.array([0]), EvaluateConfig()) is None


def test_what_is_no_rank_among_cold_items_is_refused():
    with pytest.raises(ValueError, match="a: expected 1 ranks"):
        evaluate_cold_candidates([Fixed("a", [0])], CASES, np.array([2]), EvaluateConfig())


def test_random_ranks_are_even_over_what_is_left():
    n = 4000
    histories = [np.array([0, 7, 7, 1])] * n  # of five, 0 and 1 are seen; 7 does not compete
    cases = EvalExamples(np.zeros(n), histories, np.where(np.arange(n) % 2, 4, 1))  # a target is never left out
    ranks = random_ranks(cases, True, np.arange(5), seed=1)
    for target, left in ((4, 3), (1, 4)):
        values, counts = np.unique(ranks[cases.targets == target], return_counts=True)
        assert values.tolist() == list(range(1, left + 1))
        assert (abs(counts * left / (n // 2) - 1) < 0.15).all()
    assert ranks.tolist() == random_ranks(cases, True, np.arange(5), seed=1).tolist()
    assert ranks.tolist() != random_ranks(cases, True, np.arange(5), seed=2).tolist()
    assert random_ranks(cases, False, np.arange(5), seed=1).max() == 5


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
    frame = CASES.per_user_table({"a": np.array([1, 2, np.inf]), "b": np.ones(3)}, sequences.users, catalog.ids)
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


def test_intervals_resample_users_who_have_several_targets():
    """Two users of ten targets each, one always right: a mean over all is .5, and either may be drawn twice."""
    cases = EvalExamples(np.repeat([0, 1], 10).astype(np.int32), [np.array([4])] * 20, np.zeros(20, np.int64))
    ranks = {"one": np.repeat([1.0, np.inf], 10)}
    slices = {"all": np.ones(20, bool)}
    [entry] = summarise_systems(ranks, slices, EvaluateConfig(), cases.targets, cases.users)["one"].values()
    assert (entry["users"], entry["targets"], entry["items"]) == (2, 20, 1)
    assert entry["recall@10_ci"] == [0.0, 1.0]
    metrics, _ = evaluate_systems([Fixed("one", ranks["one"])], cases, slices, EvaluateConfig(), {}, np.ones(5), 2)
    assert metrics["systems"]["one"]["all"] == entry
    assert (metrics["protocol"]["users"], metrics["protocol"]["targets"]) == (2, 20)
