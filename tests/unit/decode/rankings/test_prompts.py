"""Requests in words: features by hand, candidates as a union, weights learnt from requests with an item's words."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from tolerances import DENSE, SCORES

from llmrec.collaborative.fusion import FusionWeights
from llmrec.decode.calibrate import calibrate_prompts
from llmrec.decode.config import DecodeConfig
from llmrec.decode.queries import Queries
from llmrec.decode.ranker import ItemRanker, make_prompt_ranking, make_ranking
from llmrec.decode.rankings.prompts import PromptRanking
from llmrec.decode.tree import TreeSearch
from llmrec.errors import UserError
from llmrec.index.text import BM25, TextIndex

WORDS = ["red", "blue", "green", "warm", "cold", "small", "large", "soft", "hard", "old"]
ITEMS = [f"{WORDS[item % 10]} {WORDS[item // 10]} lamp{item}" + " thing" * item for item in range(20)]  # no ties
QUERIES = ["red lamp0", "warm lamp13 lamp3", "nothing known", "old"]


def encode(texts):
    """Float32 [n, 12]: the same for the same text."""
    return np.stack([np.random.default_rng(len(text)).normal(size=12) for text in texts]).astype(np.float32)


WEIGHTS = {
    "warm": [0.5, 0.2, 0.3, 2.0, 1.0],
    "cold": [0.1, 0.0, 0.3, 3.0, 1.5],
    "bonus": 0.25,
    "measured": {},
    "features": ["first_code", "later_codes", "dense", "bm25", "encoder"],
}


@pytest.fixture
def worded(facts):
    """The facts with texts and weights for requests in words."""
    weights = replace(facts.fusion_weights, prompts=WEIGHTS)
    return replace(facts, texts=TextIndex(lambda: ITEMS, encode), fusion_weights=weights)


@pytest.fixture
def ranker_of(deep, worded):
    """`ranker_of(facts changes)`: by fusion, with as many beams as items unless told otherwise."""

    def make(beams=20, **changes):
        facts = replace(worded, **changes)
        config = DecodeConfig(beams=beams, dtype="float32", batch_size=3)
        search = TreeSearch(deep.model, deep.vocabulary, deep.trie, config, is_cold=facts.is_cold)
        method = make_ranking(search, facts, config, "fusion")
        return ItemRanker(deep.renderer, search, 160, method, make_prompt_ranking(search, facts, method))

    return make


@pytest.fixture
def asked(ranker_of):
    ranker = ranker_of()
    return [ranker.prompt_ids(query=query) for query in QUERIES]


@pytest.fixture
def by_hand(deep, facts, asked, exhaustive, hidden_after):
    """Features of all items, [4, 20, 5]."""
    from llmrec.model.adapter import TEMPERATURE

    codes = exhaustive(deep, asked, "catalogue", facts.is_cold)
    hidden = torch.stack([hidden_after(deep, prompt) for prompt in asked])
    queries = torch.nn.functional.normalize(facts.dense.head.query(hidden), dim=1)
    cosines = (queries @ facts.dense.vectors.T).double().numpy() / TEMPERATURE
    dense = cosines - np.log(np.exp(cosines[:, ~facts.is_cold]).sum(axis=1, keepdims=True))
    bm25 = BM25(ITEMS).scores(QUERIES)
    vectors = encode(QUERIES) / np.linalg.norm(encode(QUERIES), axis=1, keepdims=True)
    meant = vectors @ facts.dense.texts.numpy().T
    return np.stack([codes[..., 0], codes[..., 1:].sum(axis=2), dense, np.maximum(bm25, 0), meant], axis=2)


def test_features_by_hand(ranker_of, asked, by_hand) -> None:
    ranker = ranker_of()
    scored = ranker.in_words.scored(ranker.search.prefill(asked), 20, None)
    assert (scored.items == np.arange(20)).all(), "with as many beams as items each is a candidate"
    np.testing.assert_allclose(scored.features, by_hand, atol=DENSE)
    assert (by_hand[2, :, 3] == 0).all(), "no item has a word of this request"


def test_scores_are_weighted_sums_and_histories_keep_theirs(ranker_of, asked, prompts, by_hand, worded) -> None:
    """Requests with a history and in words in one batch get what they get alone."""
    ranker = ranker_of()
    mixed = [prompts[0], asked[0], prompts[1], *asked[1:]]
    ranking = ranker.rank(mixed, 20)
    cold = by_hand @ WEIGHTS["cold"] + 0.25
    expected = np.where(worded.is_cold, cold, by_hand @ WEIGHTS["warm"])
    for row, query in ((1, 0), (3, 1), (4, 2), (5, 3)):
        np.testing.assert_allclose(ranking.scores[row], -np.sort(-expected[query]), atol=2e-3)
        np.testing.assert_allclose(ranking.scores[row], expected[query][ranking.items[row]], atol=2e-3)
    alone = ranker.without_retrieval().rank(prompts[:2], 20)
    for row, history in ((0, 0), (2, 1)):
        assert ranking.items[row].tolist() == alone.items[history].tolist()
        np.testing.assert_allclose(ranking.scores[row], alone.scores[history], atol=SCORES)


@pytest.mark.parametrize("k", [1, 3])
def test_candidates_are_what_each_finds(ranker_of, asked, by_hand, worded, k) -> None:
    ranker = ranker_of(beams=2)
    scored = ranker.in_words.scored(ranker.search.prefill(asked), k, None)
    width, sides = max(2, k), (worded.is_cold, ~worded.is_cold)
    for row in range(4):
        expected = {item for item in scored.beams.items[row].tolist() if item >= 0}
        for feature in (2, 3, 4):
            scores = by_hand[row, :, feature]
            ordered = [item for item in np.argsort(-scores, kind="stable") if feature != 3 or scores[item] > 0]
            for side in sides:
                expected |= {*[int(item) for item in ordered if side[item]][:width]}
        assert scored.items[row][scored.items[row] >= 0].tolist() == sorted(expected)


def test_learnt_weights_find_the_item_whose_words_are_said(ranker_of, worded) -> None:
    """Nothing but BM25 knows the item of such a request."""
    warm = np.flatnonzero(~worded.is_cold)
    queries = Queries([f"lamp{item} {WORDS[at % 10]}" for at in range(4) for item in warm], np.tile(warm, 4))
    ranker = ranker_of(fusion_weights=replace(worded.fusion_weights, prompts=None))
    assert ranker.in_words is None
    weights = calibrate_prompts(ranker, queries)
    assert list(weights.features) == WEIGHTS["features"]
    assert weights.warm[3] > 1
    learnt = ranker_of(fusion_weights=replace(worded.fusion_weights, prompts=asdict(weights)))
    prompts = [learnt.prompt_ids(query=f"lamp{item}") for item in warm]
    assert learnt.rank(prompts, 1).items[:, 0].tolist() == warm.tolist()
    assert ranker.rank(prompts, 1).items[:, 0].tolist() != warm.tolist(), "the model alone does not know the words"
    assert (
        learnt.with_prompt_weights(weights).rank(prompts, 5).scores.tolist() == learnt.rank(prompts, 5).scores.tolist()
    )


def test_too_few_requests_teach_nothing(ranker_of, worded, caplog) -> None:
    warm = np.flatnonzero(~worded.is_cold)[:10]
    with caplog.at_level("WARNING", logger="llmrec"):
        assert calibrate_prompts(ranker_of(), Queries([ITEMS[item] for item in warm], warm)) is None
    assert "not calibrated for requests in words: fewer than 20" in caplog.text


def test_without_its_encoder_a_bundle_says_so_and_ranks_by_the_model(ranker_of, asked, caplog) -> None:
    with caplog.at_level("WARNING", logger="llmrec"):
        ranker = ranker_of(texts=TextIndex(lambda: ITEMS, None))
    assert ranker.in_words is None
    assert "give the bundle's encoder: --encoder" in caplog.text
    assert ranker.rank(asked, 5).items.tolist() == ranker_of().without_retrieval().rank(asked, 5).items.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": ["first_code"]}, "expected one finite number per feature"),
        ({"features": ["first_code", "later_codes", "dense", "text", "encoder"]}, "weights of first_code"),
        ({"bonus": float("nan")}, "expected one finite number"),
    ],
)
def test_damaged_weights_are_one_line(deep, worded, changes, message) -> None:
    weights = replace(worded.fusion_weights, prompts=WEIGHTS | changes)
    search = TreeSearch(deep.model, deep.vocabulary, deep.trie, DecodeConfig(dtype="float32"), is_cold=worded.is_cold)
    with pytest.raises(UserError, match=message):
        _ = PromptRanking(search, replace(worded, fusion_weights=weights), search.config).weights


def test_a_file_whose_weights_for_words_are_no_fields_is_damaged(tmp_path, worded) -> None:
    replace(worded.fusion_weights, prompts=[1.0]).save(tmp_path / "fusion.json")
    with pytest.raises(
        UserError, match=r"fusion\.json: not fusion weights .* expected the fields of weights in prompts"
    ):
        FusionWeights.load(tmp_path / "fusion.json")


def test_weights_for_words_are_kept_in_the_file(tmp_path, worded) -> None:
    worded.fusion_weights.save(tmp_path / "fusion.json")
    assert FusionWeights.load(tmp_path / "fusion.json").prompts == WEIGHTS
