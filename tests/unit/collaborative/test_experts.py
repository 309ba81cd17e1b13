"""The experts: their values by hand, catalogues that grow and shrink, files, and what the fusion of them learns."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmrec.collaborative.config import (
    BSARecExpertConfig,
    ExpertsConfig,
    HSTUExpertConfig,
    RPGExpertConfig,
    SASRecExpertConfig,
)
from llmrec.collaborative.experts import FLOOR, TRAINED, Experts
from llmrec.collaborative.fused import ARRAYS, CONFIG, RANKER, FusedExperts, gather
from llmrec.collaborative.ranker import LISTED, LearnedRanker
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError
from llmrec.quantize.classical.product import fit_opq

ITEMS, COLD = 40, [37, 38, 39]
UNTRAINED = ["popularity", "decayed-markov", "smoothed-markov", "item-knn", "text", "last-text"]
SMALL = {"hidden_size": 8, "layers": 1, "heads": 1, "max_history": 6, "epochs": 2, "batch_size": 32}
EVERY = ExpertsConfig(
    models=[*UNTRAINED, *TRAINED],
    sasrec=SASRecExpertConfig(**SMALL),
    bsarec=BSARecExpertConfig(**SMALL, frequencies=2),
    hstu=HSTUExpertConfig(**SMALL, negatives=16),
    rpg=RPGExpertConfig(**SMALL, components=12, levels=4, codes=8),
    candidates=10,
)
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(ITEMS, 12)).astype(np.float32)
VECTORS[COLD] = VECTORS[[0, 1, 2]] + 0.1 * RNG.normal(size=(3, 12))


def walks(n: int, length: int, seed: int) -> list[np.ndarray]:
    """Users who mostly take the next of 37 warm items in a circle."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random((n, length)) < 0.8, 1, rng.integers(1, 37, (n, length)))
    return [(start + np.cumsum(row)) % 37 for start, row in zip(rng.integers(0, 37, n), steps, strict=True)]


def examples(n: int, seed: int, cold: float = 0.0) -> EvalExamples:
    """Histories with the item after them; a share of the targets 0, 1, 2 is the cold item with a text like it."""
    rows = walks(n, 5, seed)
    targets = np.array([row[-1] for row in rows])
    swapped = (targets < 3) & (np.random.default_rng(seed).random(n) < cold)
    targets[swapped] += 37
    return EvalExamples(np.arange(n), [row[:-1] for row in rows], targets)


@pytest.fixture(scope="module")
def experts() -> Experts:
    return Experts(EVERY, VECTORS, examples(60, 1), fit_opq).fit(walks(200, 8, 0), ITEMS)


HISTORIES = [np.array([3, 4, 5]), np.array([30]), np.array([], np.int64), np.array([38, 7])]


def test_values_of_each_expert(experts: Experts) -> None:
    values = dict(zip(experts.names, experts.values(HISTORIES), strict=True))
    assert all(value.shape == (4, ITEMS) and not value[2].any() for value in values.values())
    assert experts.is_cold.nonzero()[0].tolist() == COLD
    for name, value in values.items():
        assert value[:, COLD].any() == (name in ("smoothed-markov", "text", "last-text", "rpg")), name
    np.testing.assert_allclose(values["popularity"][0, :37], np.log(experts.counts[:37]), rtol=1e-6)
    markov = experts.systems["decayed-markov"].expected(HISTORIES[:2])
    np.testing.assert_allclose(values["decayed-markov"][:2, :37], np.log(markov + FLOOR)[:, :37], rtol=1e-5)
    unit = VECTORS - VECTORS[:37].mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(values["last-text"][0], unit @ unit[5], atol=1e-5)
    direction = 0.36 * unit[3] + 0.6 * unit[4] + unit[5]
    np.testing.assert_allclose(values["text"][0], unit @ direction / np.linalg.norm(direction), atol=1e-5)
    for name in set(TRAINED) - {"rpg"}:  # whose log-probabilities are those of codes
        np.testing.assert_allclose(np.exp(values[name][0, :37]).sum(), 1, rtol=1e-4)


def test_later_items_are_known_by_their_text_and_change_nothing(experts: Experts) -> None:
    grown = experts.with_items(VECTORS[[10, 20]])
    before, after = experts.values(HISTORIES), grown.values(HISTORIES)
    np.testing.assert_allclose(after[:, :, :ITEMS], before, atol=2e-2)
    exact = [row for row, name in enumerate(experts.names) if name not in TRAINED]
    np.testing.assert_allclose(after[exact, :, :ITEMS], before[exact], atol=1e-5)
    text, rpg = experts.names.index("text"), experts.names.index("rpg")
    np.testing.assert_allclose(after[text][:, ITEMS], after[text][:, 10], atol=1e-5)
    np.testing.assert_array_equal(after[rpg][:, ITEMS], after[rpg][:, 10])
    np.testing.assert_array_equal(after[rpg][:, :ITEMS], before[rpg])
    smoothed = experts.names.index("smoothed-markov")
    assert after[smoothed][0, ITEMS] != np.float32(np.log(FLOOR))
    # A history may hold a later item.
    assert np.isfinite(grown.values([np.array([ITEMS, 3])])).all()


def test_items_that_go_change_nothing(experts: Experts) -> None:
    stays = np.setdiff1d(np.arange(ITEMS), [4, 38])
    left = experts.of_rows(stays)
    histories = [np.array([3, 5]), np.array([30])]
    there = [np.searchsorted(stays, history) for history in histories]
    np.testing.assert_allclose(left.values(there), experts.values(histories)[:, :, stays], atol=2e-2)
    again = left.with_items(VECTORS[[4]])
    assert again.values(there).shape == (len(EVERY.models), 2, ITEMS - 1)


def test_a_new_text_is_known_at_once(experts: Experts) -> None:
    changed = experts.with_texts(np.array([39]), VECTORS[[15]])
    text = experts.names.index("text")
    np.testing.assert_allclose(
        changed.values(HISTORIES)[text][:, 39], experts.values(HISTORIES)[text][:, 15], atol=1e-5
    )
    np.testing.assert_allclose(changed.values(HISTORIES)[text][:, :39], experts.values(HISTORIES)[text][:, :39])
    rpg = experts.names.index("rpg")
    expected = experts.values(HISTORIES)[rpg]
    expected[:, 39] = expected[:, 15]
    np.testing.assert_array_equal(changed.values(HISTORIES)[rpg], expected)


def test_candidates_are_the_best_of_each_expert(experts: Experts) -> None:
    cases = examples(30, 3)
    items, features = gather(experts, cases, 2)
    values = experts.values(cases.histories)
    for row, (history, target) in enumerate(zip(cases.histories, cases.targets, strict=True)):
        found = set(items[row][items[row] >= 0].tolist())
        expected = set()
        for expert in values:
            open_ = np.setdiff1d(np.arange(ITEMS), np.setdiff1d(history, target))
            for side in (COLD, np.setdiff1d(np.arange(ITEMS), COLD)):
                own = np.intersect1d(open_, side)
                least = np.sort(expert[row, own])[-min(2, len(own))]
                expected.update(own[expert[row, own] > least].tolist())
                assert expert[row, list(found & set(own.tolist()))].max() >= least
        assert expected <= found
        at = items[row] >= 0
        np.testing.assert_allclose(features[row][at], values[:, row, items[row][at]].T, atol=2e-2)


@pytest.fixture(scope="module")
def fused() -> FusedExperts:
    config = replace(EVERY, models=UNTRAINED)
    system = FusedExperts(config, Experts(config, VECTORS, examples(60, 1), fit_opq), examples(1200, 2, cold=0.5))
    system.fit(walks(200, 8, 0), ITEMS)
    return system


def test_the_fusion_is_better_than_chance_and_reaches_cold_items(fused: FusedExperts) -> None:
    cases = examples(300, 5, cold=0.5)
    ranks = fused.ranks(cases, filter_seen=True)
    cold = np.isin(cases.targets, COLD)
    assert (ranks[~cold] <= 10).mean() > 0.7
    assert (ranks[cold] <= 10).mean() > 0.5
    assert list(fused.weights.features) == UNTRAINED
    assert fused.weights.measured["cold_examples"] > 20


def test_the_sum_without_an_expert_is_that_of_the_others(fused: FusedExperts) -> None:
    """Against fitting the other experts alone: the same candidates but for those of the missing expert."""
    cases, learnt = examples(200, 6, cold=0.5), examples(1200, 2, cold=0.5)
    ranks = fused.without_each(learnt, cases, filter_seen=True)
    assert list(ranks) == ["experts", *UNTRAINED]
    assert ranks["experts"].tolist() == fused.ranks(cases, filter_seen=True).tolist()
    config = replace(EVERY, models=[name for name in UNTRAINED if name != "smoothed-markov"], candidates=ITEMS)
    others = FusedExperts(config, Experts(config, VECTORS, examples(60, 1), fit_opq), learnt).fit(
        walks(200, 8, 0), ITEMS
    )
    whole = copy.copy(fused)
    whole.config = replace(fused.config, candidates=ITEMS)
    found = whole.without_each(learnt, cases, filter_seen=True)["smoothed-markov"]
    assert (found == others.ranks(cases, filter_seen=True)).mean() > 0.99
    assert (found <= 10).mean() < (ranks["experts"] <= 10).mean()


def test_the_frontier_is_what_other_bonuses_give(fused: FusedExperts) -> None:
    """Each point against ranking everything anew with that bonus."""
    cases = examples(120, 7, cold=0.5)
    cold = np.isin(cases.targets, COLD)
    curve = fused.frontier(cases)
    assert curve["targets"] == {"warm": (~cold).sum(), "cold": cold.sum()}
    for point in [curve["calibrated"], *curve["points"][::8]]:
        moved = copy.copy(fused)
        moved.weights = replace(fused.weights, bonus=point["bonus"])
        ranks = moved.ranks(cases, filter_seen=True)
        for kind, mask in (("warm", ~cold), ("cold", cold)):
            assert point[kind] == pytest.approx((ranks[mask] <= 10).mean(), abs=1.5 / mask.sum())
    assert curve["points"][0]["cold"] < curve["points"][-1]["cold"]
    assert curve["points"][0]["warm"] > curve["points"][-1]["warm"]


def test_scores_are_weighted_sums(fused: FusedExperts) -> None:
    values = fused.experts.values(HISTORIES[:2])
    expected = fused.weights.scores(np.moveaxis(values, 0, -1), fused.experts.is_cold[None])
    np.testing.assert_allclose(fused.scores(HISTORIES[:2]), expected, rtol=1e-4, atol=1e-4)


def test_too_few_examples_are_one_line() -> None:
    config = replace(EVERY, models=["popularity"])
    system = FusedExperts(config, Experts(config, None, examples(5, 1)), examples(5, 1))
    with pytest.raises(UserError, match=r"experts\.models: too few validation examples"):
        system.fit(walks(50, 8, 0), ITEMS)


@pytest.mark.parametrize("kind", [SASRecExpertConfig, BSARecExpertConfig])
def test_a_wrong_setting_is_named_by_the_flag_of_the_expert(kind: type) -> None:
    with pytest.raises(UserError, match=rf"^{kind.section}.heads 7: expected a divisor"):
        kind(heads=7)


def test_a_wrong_setting_of_hstu_is_named_by_the_flag_of_the_expert() -> None:
    with pytest.raises(UserError, match=r"^experts\.hstu\.heads 0: expected at least 1"):
        HSTUExpertConfig(heads=0)


def test_text_experts_need_vectors() -> None:
    with pytest.raises(UserError, match=r"experts.models text: needs the vectors"):
        Experts(replace(EVERY, models=["text"]), None, examples(60, 1), fit_opq)


@pytest.mark.parametrize("models", [UNTRAINED, ["popularity", *TRAINED], ["popularity", "item-knn"]])
def test_the_files_give_them_back(tmp_path: Path, models: list) -> None:
    config = replace(EVERY, models=models)
    vectors = VECTORS if config.by_text else None
    system = FusedExperts(config, Experts(config, vectors, examples(60, 1), fit_opq), examples(400, 2))
    system.fit(walks(200, 8, 0), ITEMS)
    system.save(tmp_path)
    again = FusedExperts.load(tmp_path)
    np.testing.assert_array_equal(again.scores(HISTORIES[:2]), system.scores(HISTORIES[:2]))
    assert again.weights == system.weights
    grown = again.with_items(VECTORS[:1])
    grown.save(tmp_path)
    np.testing.assert_array_equal(FusedExperts.load(tmp_path).scores(HISTORIES[:2]), grown.scores(HISTORIES[:2]))


def test_a_file_older_than_an_expert_is_read(fused: FusedExperts, tmp_path: Path) -> None:
    fused.save(tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    del content["config"]["hstu"]
    (tmp_path / CONFIG).write_text(json.dumps(content))
    again = FusedExperts.load(tmp_path)
    assert again.config == replace(fused.config, hstu=HSTUExpertConfig())
    np.testing.assert_array_equal(again.scores(HISTORIES[:2]), fused.scores(HISTORIES[:2]))


@pytest.mark.parametrize(
    "damage", ["config", "weights", "missing", "rows", "indices", "nan", "vectors", "counts", "ranker"]
)
def test_damaged_files_are_one_line(fused: FusedExperts, tmp_path: Path, damage: str) -> None:
    fused.save(tmp_path)
    content, arrays = json.loads((tmp_path / CONFIG).read_text()), load_file(tmp_path / ARRAYS)
    if damage == "config":
        content["config"]["models"] = ["popularity", "nobody"]
    elif damage == "weights":
        content["weights"]["warm"] = content["weights"]["warm"][:-1]
    elif damage == "ranker":
        (tmp_path / RANKER).write_text("no trees")
    else:
        key = {"indices": "decayed-markov.transitions.indices", "missing": "counts", "nan": "vectors"}.get(
            damage, damage
        )
        array = arrays.pop(key)
        if damage != "missing":
            array = array[:-1] if damage == "vectors" else array.copy()
            array.flat[0] = {"nan": np.nan, "counts": -1}.get(damage, 10**6)
            arrays[key] = array
    (tmp_path / CONFIG).write_text(json.dumps(content))
    save_file(arrays, tmp_path / ARRAYS)
    with pytest.raises(UserError):
        FusedExperts.load(tmp_path)


def test_the_listed_items_exchange_their_scores(fused: FusedExperts) -> None:
    class Backwards(LearnedRanker):
        def order(self, lists):
            found = (lists.items >= 0).sum(axis=1)[:, None]  # places without an item stay last
            own = np.arange(lists.items.shape[1])
            return np.where(own < found, found - 1 - own, own)

    plain = fused.scores(HISTORIES[:2])
    fused.ranker = Backwards([])
    try:
        turned = fused.scores(HISTORIES[:2])
    finally:
        fused.ranker = None
    assert min(LISTED, ITEMS) == ITEMS
    np.testing.assert_allclose(np.sort(turned, axis=1), np.sort(plain, axis=1))
    for row, history in enumerate(HISTORIES[:2]):
        np.testing.assert_allclose(turned[row, history], plain[row, history], err_msg="the history stays where it is")
        others = np.setdiff1d(np.arange(ITEMS), history)
        assert (np.argsort(turned[row, others]) == np.argsort(-plain[row, others])).mean() > 0.9


def test_a_bundle_with_a_ranker_loads_without_lightgbm(
    fused: FusedExperts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only who orders lists needs it."""
    fused.ranker = LearnedRanker(["tree\n"], 0.5)
    try:
        fused.save(tmp_path)
    finally:
        fused.ranker = None
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    monkeypatch.setattr("llmrec.collaborative.ranker.find_spec", lambda name: None)
    again = FusedExperts.load(tmp_path)
    np.testing.assert_array_equal(again.values(HISTORIES), fused.values(HISTORIES))
    with pytest.raises(UserError, match=r"needs lightgbm: pip install 'llmrec\[ranker\]'"):
        again.scores(HISTORIES[:2])


@pytest.mark.parametrize("name", TRAINED)
def test_a_log_that_cannot_train_an_expert_is_named_by_its_flag(name: str) -> None:
    config = replace(EVERY, models=[name])
    with pytest.raises(UserError, match=rf"^experts\.models {name}: the log has no"):
        Experts(config, VECTORS, examples(60, 1), fit_opq).fit([np.array([0]), np.array([1])], ITEMS)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("stopped", [1, 3, 4])
def test_a_stopped_training_goes_on_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stopped: int
) -> None:
    monkeypatch.setattr("llmrec.collaborative.network.SAVE_SECONDS", 0.0)
    section = replace(getattr(EVERY, name), epochs=4, dropout=0.5)
    config = replace(EVERY, models=[name], **{name: section})

    def made(folder: Path | None) -> Experts:
        experts = Experts(config, VECTORS, examples(60, 1), fit_opq)
        if folder is not None:
            experts.checkpoint_in(folder)
        return experts

    undisturbed = made(None).fit(walks(200, 8, 0), ITEMS).arrays()
    ranks, asked = TRAINED[name].ranks, []

    def stopping(self, cases, filter_seen):
        asked.append(len(asked))
        if len(asked) > stopped:
            raise KeyboardInterrupt
        return ranks(self, cases, filter_seen)

    monkeypatch.setattr(TRAINED[name], "ranks", stopping)
    if stopped < 4:
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path).fit(walks(200, 8, 0), ITEMS)
    else:
        made(tmp_path).fit(walks(200, 8, 0), ITEMS)
    assert (tmp_path / f"{name}.checkpoint").is_file()

    def counting(self, cases, filter_seen):
        asked.append(len(asked))
        return ranks(self, cases, filter_seen)

    asked.clear()
    monkeypatch.setattr(TRAINED[name], "ranks", counting)
    resumed = made(tmp_path).fit(walks(200, 8, 0), ITEMS).arrays()
    assert len(asked) == 4 - stopped, "only the epochs that were left"
    assert resumed.keys() == undisturbed.keys()
    for key, array in undisturbed.items():
        np.testing.assert_array_equal(resumed[key], array, err_msg=key)
