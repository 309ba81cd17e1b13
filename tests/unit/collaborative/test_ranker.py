"""The learned order of lists, on lists whose right order is known."""

import json
from typing import Any

import numpy as np
import pytest

from llmrec.collaborative.base import ndcg
from llmrec.collaborative.ranker import LearnedRanker, Lists
from llmrec.errors import UserError

pytest.importorskip("lightgbm")

WIDTH = 20


def drawn(n: int, seed: int, cold: float = 0.0, signal: float = 3.0) -> tuple[Lists, np.ndarray]:
    """Lists whose first expert is mostly right, though the fused order is drawn; a share of cold items."""
    rng = np.random.default_rng(seed)
    hits = np.zeros((n, WIDTH), bool)
    hits[np.arange(n), rng.integers(0, WIDTH, n)] = True
    values = rng.normal(size=(n, WIDTH, 2)).astype(np.float32)
    values[..., 0] += signal * hits
    fused = -np.sort(rng.normal(size=(n, WIDTH)), axis=1).astype(np.float32)
    items = np.argsort(rng.random((n, 100)), axis=1)[:, :WIDTH]
    return Lists(items, values, fused, rng.random((n, WIDTH)) < cold, rng.integers(1, 9, n)), hits


def first(lists: Lists, hits: np.ndarray, ranker: LearnedRanker) -> np.ndarray:
    """The place of the target in each list's new order, int [n]."""
    order = ranker.order(lists)
    assert (np.sort(order, axis=1) == np.arange(WIDTH)).all()
    return np.take_along_axis(hits, order, axis=1).argmax(axis=1)


def test_a_learned_order_finds_what_the_fused_one_misses() -> None:
    ranker = LearnedRanker.fit(*drawn(3000, 0), examples=6000)
    assert ranker is not None
    lists, hits = drawn(300, 1)
    place = first(lists, hits, ranker)
    before = hits.argmax(axis=1)
    assert (place == 0).mean() > 0.7 > 0.2 > (before == 0).mean()
    again = LearnedRanker.of(json.loads(json.dumps(ranker.content)))
    assert (first(lists, hits, again) == place).all()
    gain = np.mean(ndcg(place + 1.0) - ndcg(before + 1.0))  # of lists; they come from half of the examples
    assert again.gain == ranker.gain == pytest.approx(gain / 2, abs=0.05)


def test_the_trees_correct_the_fused_order() -> None:
    """Few lists, whose fused order is nearly right: the trees learn what it misses, and lose nothing of it."""

    def nearly(n: int, seed: int) -> tuple[Lists, np.ndarray]:
        lists, hits = drawn(n, seed, signal=1.0)
        scores = 6 * hits + np.random.default_rng(seed).normal(scale=2, size=hits.shape)
        order = np.argsort(-scores, axis=1)
        fused, hits = (np.take_along_axis(part, order, axis=1) for part in (scores.astype(np.float32), hits))
        values = np.take_along_axis(lists.values, order[..., None], axis=1)
        return Lists(lists.items, values, fused, lists.is_cold, lists.lengths), hits

    ranker = LearnedRanker.fit(*nearly(500, 0))
    assert ranker is not None
    lists, hits = nearly(2000, 1)
    after, before = ndcg(first(lists, hits, ranker) + 1.0).mean(), ndcg(hits.argmax(axis=1) + 1.0).mean()
    assert after > before + 0.01
    ranker.start = 0.0
    assert ndcg(first(lists, hits, ranker) + 1.0).mean() < after - 0.1, "the fused score is a part of the learned one"


def test_boosters_of_earlier_bundles_start_from_nothing() -> None:
    ranker = LearnedRanker.fit(*drawn(1000, 0))
    assert ranker is not None
    content = {name: value for name, value in ranker.content.items() if name != "start"}
    lists, _ = drawn(50, 1)
    earlier = LearnedRanker.of(content)
    table = lists.features().reshape(50 * WIDTH, -1)
    alone = np.sum([booster.predict(table) for booster in earlier.boosters], axis=0).reshape(50, WIDTH)
    assert (earlier.order(lists) == np.argsort(-alone, axis=1, kind="stable")).all()


@pytest.mark.parametrize("cold", [0.0, 0.3])
def test_all_boosters_have_the_same_number_of_trees(cold: float) -> None:
    """So their scores are of one scale: one bonus fits them all, and none outvotes the others."""
    ranker = LearnedRanker.fit(*drawn(3000, 2, cold, signal=1.0))
    assert ranker is not None
    trees = [booster.num_trees() for booster in ranker.boosters]
    assert len(trees) == 4
    assert len(set(trees)) == 1
    assert trees[0] > 5
    lists, _ = drawn(500, 6, cold, signal=1.0)
    table = lists.features().reshape(500 * WIDTH, -1)
    spread = [booster.predict(table).std() for booster in ranker.boosters]
    assert max(spread) < 1.3 * min(spread)


def test_a_learned_order_that_does_not_help_is_left_out() -> None:
    lists, _ = drawn(400, 0)
    hits = np.tile(np.arange(WIDTH) == 0, (400, 1))  # the fused order is right already
    assert LearnedRanker.fit(lists, hits) is None
    assert LearnedRanker.fit(lists.where(np.arange(2)), hits[:2]) is None


def test_cold_items_get_the_bonus_that_warm_targets_allow() -> None:
    """Few cold targets teach the trees to rank cold items low. A floor of 1 leaves them there, a lower one does not."""
    rng = np.random.default_rng(3)
    lists, hits = drawn(3000, 2, cold=0.3, signal=1.0)
    cold_target = (hits & lists.is_cold).any(axis=1)
    kept = ~cold_target | (rng.random(len(hits)) < 0.1)
    lists, hits = lists.where(kept), hits[kept]
    found = {}
    for share in (1.0, 0.8):
        ranker = LearnedRanker.fit(lists, hits, share=share)
        assert ranker is not None
        fresh, targets = drawn(2000, 5, cold=0.3, signal=1.0)
        cold = (targets & fresh.is_cold).any(axis=1)
        place = first(fresh, targets, ranker)
        found[share] = ((place < 10)[~cold].mean(), (place < 10)[cold].mean(), ranker.bonus)
    assert found[0.8][2] > found[1.0][2]
    assert found[0.8][1] > found[1.0][1], "cold targets"
    assert found[0.8][0] < found[1.0][0], "warm targets pay"
    assert found[0.8][0] > 0.75 * found[1.0][0], "though not more than the floor allows"


def test_places_without_an_item_stay_last() -> None:
    ranker = LearnedRanker.fit(*drawn(1000, 0))
    assert ranker is not None
    lists, _ = drawn(50, 1)
    lists.items[:, 15:] = -1
    assert (ranker.order(lists)[:, 15:] == np.arange(15, WIDTH)).all()


@pytest.mark.parametrize("content", [[], {}, {"bonus": 0}, {"bonus": float("nan"), "boosters": ["tree"]}])
def test_damaged_content_is_refused(content: Any) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        LearnedRanker.of(content)
    with pytest.raises(UserError, match="no model of LightGBM"):
        LearnedRanker.of({"bonus": 0, "boosters": ["no tree"]})


def test_listed_columns_exchange_their_scores() -> None:
    """By hand: the second is put before the first; what is not listed keeps its score."""

    class Swaps(LearnedRanker):
        def order(self, lists: Lists) -> np.ndarray:
            return np.array([[1, 0, 2]])

    scores = np.array([[0.1, 0.9, -np.inf, 0.5]], np.float32)
    lists = Lists.best(scores, np.zeros((1, 4, 1), np.float32), np.array([False, False, True, True]), np.array([1]))
    assert lists.items.tolist() == [[1, 3, 0, -1]]
    assert lists.is_cold.tolist() == [[False, True, False, False]]
    lists = Lists(*(getattr(lists, name)[:, :3] for name in ("items", "values", "fused", "is_cold")), lists.lengths)
    assert Swaps([]).reorder(scores, lists)[0].tolist() == pytest.approx([0.1, 0.5, -np.inf, 0.9])
