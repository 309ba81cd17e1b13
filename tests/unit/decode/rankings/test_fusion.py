"""All opinions with weights: features and scores by hand, candidates as a union, new items' bonus."""

from dataclasses import replace

import numpy as np
import pytest
from tolerances import DENSE, SCORES

from llmrec.collaborative.base import TEXT_DIRECTION
from llmrec.decode.filters import Filter
from llmrec.decode.ranker import make_ranking
from llmrec.decode.search import Prompt
from llmrec.errors import UserError

HISTORIES = [[0, 5, 7], [11], [2, 4, 6, 8], [19, 1]]


@pytest.fixture
def text_scores(facts) -> np.ndarray:
    """Cosine with the history's texts, the last weighing 1, the one before it .6, and so on; [4, 20]."""
    texts = facts.dense.texts.double().numpy()
    users = [
        sum(TEXT_DIRECTION**age * texts[item] for age, item in enumerate(reversed(history))) for history in HISTORIES
    ]
    return np.stack([texts @ user / np.linalg.norm(user) for user in users])


@pytest.fixture
def features(code_scores, dense_scores, text_scores) -> np.ndarray:
    """[4, 20, 4]."""
    return np.stack([code_scores[..., 0], code_scores[..., 1:].sum(axis=2), dense_scores, text_scores], axis=2)


def test_features_by_hand(method_of, prompts, features):
    method = method_of("fusion")
    scored = method.scored(method.search.prefill(prompts), 20, None)
    assert (scored.items == np.arange(20)).all(), "with as many beams as items each is a candidate"
    np.testing.assert_allclose(scored.features, features, atol=DENSE)


def test_scores_are_weighted_sums(method_of, prompts, facts, features):
    ranking = method_of("fusion").rank(prompts, 20)
    trained, new = features @ [1.0, 0.8, 0.5, 2.0], features @ [0.7, 0.1, 1.0, 3.0] + 0.5
    expected = np.where(facts.is_cold, new, trained)
    np.testing.assert_allclose(expected, facts.fusion_weights.scores(features, facts.is_cold), atol=1e-9)
    np.testing.assert_allclose(ranking.scores, np.take_along_axis(expected, ranking.items, axis=1), atol=2e-3)
    np.testing.assert_allclose(ranking.scores, -np.sort(-expected, axis=1), atol=2e-3)


@pytest.mark.parametrize(("beams", "k"), [(2, 1), (1, 3), (4, 4)])
def test_candidates_are_what_each_finds(method_of, prompts, facts, dense_scores, text_scores, best_first, beams, k):
    method = method_of("fusion", beams=beams)
    gone = [[1, 2], [], [5, 9, 13], [0]]
    filters = [Filter(excluded=np.array(row, np.int64)) for row in gone]
    width = max(beams, k)
    found = method.search.search(prompts, width, filters).items
    scored = method.scored(method.search.prefill(prompts), k, filters)
    for row in range(4):
        expected = {item for item in found[row].tolist() if item >= 0}
        for scores in (dense_scores[row], text_scores[row]):
            ordered = [item for item in best_first(scores) if item not in gone[row]]
            expected |= {*[item for item in ordered if facts.is_cold[item]][:width]}
            expected |= {*[item for item in ordered if not facts.is_cold[item]][:width]}
        assert scored.items[row][scored.items[row] >= 0].tolist() == sorted(expected)
        assert not set(scored.items[row]) & set(gone[row])
        assert scored.beams.items[row].tolist() == found[row].tolist()


@pytest.mark.parametrize("bonus", [-30.0, 1.5, 30.0])
def test_the_bonus_moves_new_items_only(method_of, prompts, facts, bonus):
    plain, moved = (method_of("fusion", cold_bonus=value).rank(prompts, 20) for value in (0.0, bonus))
    for row in range(4):
        before = dict(zip(plain.items[row].tolist(), plain.scores[row].tolist(), strict=True))
        for item, score in zip(moved.items[row].tolist(), moved.scores[row].tolist(), strict=True):
            assert score == pytest.approx(before[item] + bonus * facts.is_cold[item], abs=SCORES)
    if bonus == 30:
        assert facts.is_cold[moved.items[:, :8]].all()
    if bonus == -30:
        assert not facts.is_cold[moved.items[:, :12]].any()


def test_a_prompt_without_items_has_no_opinion_on_texts(deep, method_of):
    words = [Prompt(*deep.renderer.encode_prompts([deep.renderer.prompt("search", 0, query="hand balm")]))]
    method = method_of("fusion")
    scored = method.scored(method.search.prefill(words), 20, None)
    assert not scored.features[..., 3].any()
    assert scored.features[..., 0].any()
    assert scored.features[..., 2].all()


def test_without_weights_it_is_refused(deep, facts, method_of, prompts):
    method = method_of("fusion")
    bare = make_ranking(method.search, replace(facts, fusion_weights=None), method.config, "fusion")
    with pytest.raises(UserError, match=r"decode\.ranking fusion: this bundle has not been calibrated") as caught:
        bare.rank(prompts, 3)
    assert "\n" not in str(caught.value)
    assert bare.scored(bare.search.prefill(prompts), 3, None).items.any(), "what a calibration needs is there"
