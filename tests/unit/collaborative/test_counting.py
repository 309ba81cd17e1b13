"""Baselines that count, on logs small enough to count by hand."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from tolerances import SUMS

from llmrec.collaborative.counting import (
    DAMPING,
    DecayedMarkov,
    ItemKNN,
    Markov,
    Popularity,
    SmoothedMarkov,
    TransitionSettings,
)
from llmrec.data.sequences import EvalExamples
from llmrec.evaluation.metrics import summarise
from llmrec.evaluation.systems import COUNTING

BEAUTY = Path(__file__).parents[4] / "shared/data/Beauty/Beauty.inter.json"


def sequences(*rows):
    return [np.array(row, dtype=np.int32) for row in rows]


def beauty():
    """Training sequences, validation and test cases, leave-one-out."""
    log = sequences(*json.loads(BEAUTY.read_text()).values())
    users = np.arange(len(log))
    valid, test = (
        EvalExamples(users, [events[:-at] for events in log], np.array([events[-at] for events in log]))
        for at in (2, 1)
    )
    return [events[:-2] for events in log], valid, test


def order(scores):
    return np.argsort(-scores, kind="stable").tolist()


def test_popularity_orders_by_training_counts():
    system = Popularity().fit(sequences([2, 1, 2], [2, 0], [1]), n_items=4)
    scores = system.scores(sequences([0], [3]))
    assert scores.dtype == np.float32
    assert [order(row) for row in scores] == [[2, 1, 0, 3]] * 2


def test_markov_counts_adjacent_pairs_from_the_last_item():
    train = sequences([0, 1, 2], [0, 2], [0, 2], [3, 3, 3, 3])
    scores = Markov().fit(train, n_items=5).scores(sequences([1, 0]))
    # After item 0: item 2 twice, item 1 once; then by popularity, though item 3 is the most popular.
    assert order(scores[0]) == [2, 1, 3, 0, 4]
    assert np.floor(scores[0]).tolist() == [0, 1, 2, 0, 0]


def test_item_knn_counts_common_users_over_damped_norms():
    train = sequences([0, 1, 0], [0, 1], [0, 2], [3])
    system = ItemKNN().fit(train, n_items=4)
    scores = system.scores(sequences([0], [3]))
    assert scores[0, 1] == pytest.approx(2 / (3 * 2) ** DAMPING, abs=SUMS)
    assert scores[0, 2] == pytest.approx(1 / (3 * 1) ** DAMPING, abs=SUMS)
    assert scores[0, 0] < 1e-5  # an item is no neighbour of itself
    assert order(scores[1])[0] == 0  # without neighbours, the most popular item


def test_item_knn_prefers_the_neighbours_of_recent_items():
    system = ItemKNN().fit(sequences([0, 1], [2, 3]), n_items=4)
    assert order(system.scores(sequences([0, 2]))[0])[0] == 3
    assert order(system.scores(sequences([2, 0]))[0])[0] == 1


@pytest.mark.parametrize("name", COUNTING)
def test_ranks_do_not_depend_on_the_batch(name, monkeypatch):
    rng = np.random.default_rng(0)
    train = [rng.integers(20, size=rng.integers(0, 6)).astype(np.int32) for _ in range(40)]
    histories = [rng.integers(20, size=rng.integers(1, 5)).astype(np.int32) for _ in range(13)]
    cases = EvalExamples(np.arange(13), histories, rng.integers(20, size=13).astype(np.int32))
    system = COUNTING[name]().fit(train, n_items=20)
    assert system.name == name
    whole = system.ranks(cases, filter_seen=True)
    monkeypatch.setattr("llmrec.collaborative.base.BATCH", 4)
    assert system.ranks(cases, filter_seen=True).tolist() == whole.tolist()
    assert (system.ranks(cases, filter_seen=False) >= whole).all()


def test_only_some_items_compete():
    system = Popularity().fit(sequences([0, 0, 0, 1, 1, 2]), n_items=5)
    cases = EvalExamples(np.arange(4), sequences([0], [0], [1], [4]), np.array([2, 4, 2, 4]))
    assert system.ranks(cases, filter_seen=True).tolist() == [2, 4, 2, 5]
    among = np.array([1, 2, 4])
    assert system.ranks(cases, filter_seen=True, among=among).tolist() == [2, 3, 1, 3]
    assert system.ranks(cases, filter_seen=False, among=among).tolist() == [2, 3, 2, 3]


@pytest.mark.parametrize("filter_seen", [True, False])
def test_lists_are_the_best_items(filter_seen):
    """Against sorting every row; seen items are left out, and what scores -inf is not listed."""
    rng = np.random.default_rng(3)
    histories = [rng.choice(9, 3, replace=False) for _ in range(20)]
    cases = EvalExamples(np.arange(20), histories, np.array([history[0] for history in histories]))
    scores = rng.normal(size=(20, 9)).astype(np.float32)
    scores[:, 8] = -np.inf

    class Given(Popularity):
        def scores(self, histories):
            return scores

    found = Given().answers(cases, filter_seen, listed=8)
    assert found.items.shape == (20, 8)
    for row, (history, target) in enumerate(zip(histories, cases.targets, strict=True)):
        left = [item for item in range(8) if not filter_seen or item not in history or item == target]
        expected = sorted(left, key=lambda item: -scores[row, item])
        assert found.items[row].tolist() == expected + [-1] * (8 - len(expected))
        if target < 8:
            assert found.ranks[row] == expected.index(target) + 1


def test_settings_are_chosen_by_validation():
    """Users go back to what they had before the last item: that takes a long memory."""
    rng = np.random.default_rng(0)
    train = [
        np.array([a, 10 + b, a + 1]) for a, b in zip(rng.integers(0, 9, 200), rng.integers(0, 9, 200), strict=True)
    ]
    cases = EvalExamples(np.arange(60), [each[:2] for each in train[:60]], np.array([each[2] for each in train[:60]]))
    plain, tuned = DecayedMarkov().fit(train, 20), DecayedMarkov(validation=cases).fit(train, 20)
    assert plain.settings.recency == 0.5
    assert tuned.settings.recency == 0.7
    gain = [(system.ranks(cases, filter_seen=True) == 1).mean() for system in (plain, tuned)]
    assert gain[0] < gain[1]
    again = DecayedMarkov()
    again.restore(tuned.arrays(), np.ones(20, int), None)
    assert again.settings == tuned.settings


def test_text_neighbours_are_chosen_by_validation():
    """Against fitting every combination anew."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(40, 4)).astype(np.float32)
    train = [np.arange(start, start + 3) % 40 for start in rng.integers(0, 40, 300)]
    cases = EvalExamples(np.arange(90), [each[:2] for each in train[:90]], np.array([each[2] for each in train[:90]]))
    figures = {}
    for values in product(*SmoothedMarkov.GRID.values()):
        settings = TransitionSettings(**dict(zip(SmoothedMarkov.GRID, values, strict=True)))
        ranks = SmoothedMarkov(vectors, settings).fit(train, 40).ranks(cases, filter_seen=True)
        figures[settings] = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean()
    tuned = SmoothedMarkov(vectors, validation=cases).fit(train, 40)
    assert figures[tuned.settings] == max(figures.values()) > min(figures.values())
    by_hand = SmoothedMarkov(vectors, tuned.settings).fit(train, 40)
    assert (abs(tuned.neighbours - by_hand.neighbours)).max() == 0


@pytest.mark.parametrize("name", COUNTING)
@pytest.mark.parametrize("train", [[], sequences([], [])])
def test_an_empty_training_part_is_an_error(name, train):
    with pytest.raises(ValueError, match=f"{name}: the training part has no events"):
        COUNTING[name]().fit(train, n_items=3)


@pytest.mark.skipif(not BEAUTY.exists(), reason="the Beauty data is not there")
@pytest.mark.parametrize(("name", "recall", "ndcg"), [("markov", 0.0641, 0.0430), ("item-knn", 0.0706, 0.0441)])
def test_the_published_figures_on_beauty_are_reached(name, recall, ndcg):
    train, _, test = beauty()
    system = COUNTING[name]().fit(train, n_items=12_101)
    summary = summarise(system.ranks(test, filter_seen=True), [10], bootstrap=1, seed=0)
    assert summary["recall@10"] > recall - 0.003
    assert summary["ndcg@10"] > ndcg - 0.003
