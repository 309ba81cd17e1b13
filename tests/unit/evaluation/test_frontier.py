"""The curve of what warm and cold targets can both have: its ends, its direction, and the point on it."""

import json
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmrec.collaborative.fusion import POINTS, FusionWeights, bonus_limits
from llmrec.data.sequences import EvalExamples
from llmrec.decode.calibrate import gather
from llmrec.decode.config import DecodeConfig
from llmrec.decode.filters import Filter
from llmrec.decode.ranker import ItemRanker, make_ranking
from llmrec.decode.rankings.base import ItemFacts
from llmrec.decode.rankings.fusion import FEATURES
from llmrec.decode.tree import TreeSearch
from llmrec.errors import UserError
from llmrec.evaluation.diagnosis import frontier, write_frontier
from llmrec.index.dense import DenseIndex
from llmrec.model.adapter import DenseHead

COUNTS = np.array([0, 1] * 10)
"""Half of the items are cold: ten of each kind, as many as fill a list."""
WEIGHTS = FusionWeights([1.0, 0.8, 0.5, 2.0], [0.7, 0.1, 1.0, 3.0], 0.5, {}, list(FEATURES))


@dataclass
class Holder:
    """What `frontier` needs of a recommender."""

    shop: object
    fusion_weights: FusionWeights | None = WEIGHTS
    catalog: object = None
    ranker: object = None
    store: object = field(default_factory=lambda: SimpleNamespace(experts=None))

    def ranked_by(self, name: str) -> ItemRanker:
        torch.manual_seed(1)
        texts = np.random.default_rng(2).normal(size=(20, 12)).astype(np.float32)
        dense = DenseIndex.of(DenseHead(32, 12, 6), texts)
        config = DecodeConfig(beams=20, dtype="float32")
        new = COUNTS == 0
        search = TreeSearch(self.shop.model, self.shop.vocabulary, self.shop.trie, config, is_cold=new)
        method = make_ranking(search, ItemFacts(new, 2, dense, self.fusion_weights), config, name)
        return ItemRanker(self.shop.renderer, search, 160, method)


def cases(n=40) -> EvalExamples:
    rng = np.random.default_rng(3)
    histories = [rng.choice(np.arange(1, 20, 2), 1 + row % 3, replace=False).astype(np.int32) for row in range(n)]
    return EvalExamples(np.arange(n, dtype=np.int32), histories, rng.integers(0, 20, n).astype(np.int32))


def asked(holder, bonus) -> tuple[float, float]:
    """Recall@10 of warm and cold targets with that bonus, by asking."""
    ranker = replace(holder, fusion_weights=replace(WEIGHTS, bonus=bonus)).ranked_by("fusion")
    given = cases()
    filters = [Filter(excluded=np.setdiff1d(h, t)) for h, t in zip(given.histories, given.targets, strict=True)]
    ranking = ranker.rank([ranker.prompt_ids(history) for history in given.histories], 20, filters)
    found, cold = (ranking.items[:, :10] == given.targets[:, None]).any(axis=1), COUNTS[given.targets] == 0
    return float(found[~cold].mean()), float(found[cold].mean())


def test_the_curve_goes_from_no_new_item_to_new_items_alone(shop):
    curve = frontier(Holder(shop), cases(), COUNTS)
    points = curve["points"]
    assert len(points) == POINTS
    assert curve["targets"] == {
        "warm": int(COUNTS[cases().targets].sum()),
        "cold": int((COUNTS[cases().targets] == 0).sum()),
    }
    first, last = points[0], points[-1]
    assert (first["warm"], first["cold"]) == asked(Holder(shop), -1e4)
    assert (last["warm"], last["cold"]) == asked(Holder(shop), 1e4)
    assert last["cold"] == 1, "all ten cold items"
    assert first["warm"] == 1, "and warm ones"
    assert first["cold"] < 0.5
    for one, other in pairwise(points):
        assert one["bonus"] <= other["bonus"]
        assert one["warm"] >= other["warm"]
        assert one["cold"] <= other["cold"]


def test_points_are_what_asking_gives(shop):
    curve = frontier(Holder(shop), cases(), COUNTS)
    for point in curve["points"][3::9]:
        between = point["bonus"] + 1e-3  # behind the turn, however it was rounded
        assert asked(Holder(shop), between) == pytest.approx((point["warm"], point["cold"]), abs=0.06)


def test_the_calibrated_point_is_on_the_curve(shop):
    holder = Holder(shop)
    curve = frontier(holder, cases(), COUNTS)
    point = curve["calibrated"]
    assert point["bonus"] == WEIGHTS.bonus
    assert (point["warm"], point["cold"]) == asked(holder, WEIGHTS.bonus)
    items, features, _ = gather(holder.ranked_by("fusion"), cases())
    bars, cold = bonus_limits(WEIGHTS, items, features, cases().targets, COUNTS == 0), COUNTS[cases().targets] == 0
    assert point["warm"] == (bars[~cold] > 0.5).mean()
    below = [each for each in curve["points"] if each["bonus"] <= 0.5]
    above = [each for each in curve["points"] if each["bonus"] > 0.5]
    assert below[-1]["warm"] >= point["warm"] >= above[0]["warm"]
    assert below[-1]["cold"] <= point["cold"] <= above[0]["cold"]


def test_cases_that_never_turn_have_a_curve_too(shop, monkeypatch):
    """A list longer than the catalogue holds every candidate at any bonus."""
    for module in ("collaborative.fusion", "decode.calibrate"):
        monkeypatch.setattr(f"llmrec.{module}.CUT", 50)
    curve = frontier(Holder(shop), cases(), COUNTS)
    assert {(point["warm"], point["cold"]) for point in curve["points"]} == {(1.0, 1.0)}


def refused(match, holder, given, counts):
    with pytest.raises(UserError, match=match) as caught:
        frontier(holder, given, counts)
    assert "\n" not in str(caught.value)


def test_what_has_no_curve_is_refused(shop):
    refused(
        r"evaluate\.frontier true: .* not been calibrated; set it", Holder(shop, fusion_weights=None), cases(), COUNTS
    )
    said = r"evaluate\.frontier true: {} of 40 targets are cold, so there is nothing to trade; set it to false"
    refused(said.format(0), Holder(shop), cases(), np.ones(20, int))
    refused(said.format(40), Holder(shop), cases(), np.zeros(20, int))


@pytest.mark.parametrize("with_experts", [False, True])
def test_the_files(shop, tmp_path, with_experts):
    own = frontier(Holder(shop), cases(), COUNTS)
    experts = SimpleNamespace(frontier=lambda given: own | {"targets": len(given)}) if with_experts else None
    curve = frontier(Holder(shop, store=SimpleNamespace(experts=experts)), cases(), COUNTS)
    assert curve == (own | {"experts": own | {"targets": 40}} if with_experts else own)
    system = {"warm": {"recall@10": 0.5}, "cold": {"recall@10": 0.25}}
    metrics = {"systems": {"llmrec": system, "beam": system, "popularity": {"all": {"recall@10": 0.1}}}}
    write_frontier(curve, metrics, tmp_path)
    assert json.loads((tmp_path / "frontier.json").read_text()) == curve
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
