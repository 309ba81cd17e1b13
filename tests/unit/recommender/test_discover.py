"""Free tuples of codes against exhaustive scoring, and their descriptions against brute force."""

import itertools
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tolerances import SCORES, SUMS

from llmrec.cli.main import main
from llmrec.decode.config import DecodeConfig
from llmrec.decode.generate import GenerateSearch
from llmrec.decode.search import NotNumbersError
from llmrec.decode.tree import TreeSearch
from llmrec.embed.encoder import EmbedConfig
from llmrec.errors import UserError
from llmrec.model.config import BaseConfig
from llmrec.quantize import LossConfig, RQVAEConfig
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.discover import discover, free_tuples, nearest_items
from llmrec.recommender.recommender import Recommender

PROMPTS = [[5, 9, 11], [7], [3, 4, 5, 6, 7, 8]]
EVERY = np.array(list(itertools.product(range(4), range(5))))


@pytest.fixture(scope="module")
def sparse(tiny_catalog) -> Recommender:
    """20 items on 6 x 6 tuples and a dedup level; an unfitted model."""
    tokenizer = ItemTokenizer(levels=2, codes=6, embed=EmbedConfig(encoder="tfidf-svd", dim=8)).fit(tiny_catalog)
    config = BaseConfig(hidden_size=32, layers=1, heads=4, vocabulary=320, context=160)
    return Recommender.from_base(None, tokenizer, config=config, decode_config=DecodeConfig(dtype="float32", beams=36))


@pytest.fixture(scope="module")
def told(tiny_catalog) -> Recommender:
    """The same items, with a tokenizer that has a text decoder."""
    network = RQVAEConfig(hidden=[16], latent=8, epochs=20, loss=LossConfig(words=1.0))
    embed = EmbedConfig(encoder="tfidf-svd", dim=8)
    tokenizer = ItemTokenizer("rq-vae", levels=2, codes=6, rq_vae=network, embed=embed).fit(tiny_catalog)
    config = BaseConfig(hidden_size=32, layers=1, heads=4, vocabulary=320, context=160)
    return Recommender.from_base(None, tokenizer, config=config, decode_config=DecodeConfig(dtype="float32", beams=36))


@torch.inference_mode()
def by_hand(model, vocabulary, prompts, tuples, scoring) -> np.ndarray:
    """Each tuple's mean log-probability over the prompts, token by token, from the model's full logits."""
    scores = np.zeros(len(tuples))
    for prompt, (row, codes) in itertools.product(prompts, enumerate(tuples)):
        ids = list(prompt)
        for level, code in enumerate(codes):
            logits = model(torch.tensor([ids])).logits[0, -1].double()
            among = logits if scoring == "vocab" else logits[torch.from_numpy(vocabulary.ids[level])]
            token = int(vocabulary.ids[level][code])
            scores[row] += float(logits[token] - among.logsumexp(0)) / len(prompts)
            ids.append(token)
    return scores


def free(used: np.ndarray) -> np.ndarray:
    """The tuples of the tiny shop that are not in `used`."""
    taken = {tuple(row) for row in used.tolist()}
    return np.array([row for row in EVERY.tolist() if tuple(row) not in taken])


@pytest.mark.parametrize(
    ("kind", "config", "scoring"),
    [
        (TreeSearch, "catalogue", "level"),
        (TreeSearch, "level", "level"),
        (TreeSearch, "vocab", "vocab"),
        (GenerateSearch, "auto", "vocab"),
    ],
)
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_with_beams_enough_it_is_the_exhaustive_ranking(loud, kind, config, scoring, prompts):
    search = kind(loud.model, loud.vocabulary, loud.trie, DecodeConfig(dtype="float32", scoring=config, batch_size=3))
    used = EVERY[[0, 3, 4, 9, 11, 12, 19]]
    codes, scores = free_tuples(search, prompts, used, [4, 5], beams=20)
    rest = free(used)
    expected = by_hand(loud.model, loud.vocabulary, prompts, rest, scoring)
    order = np.argsort(-expected)
    np.testing.assert_array_equal(codes, rest[order])
    np.testing.assert_allclose(scores, expected[order], atol=SCORES)


def test_level_scores_are_a_distribution_over_all_tuples(loud):
    search = TreeSearch(loud.model, loud.vocabulary, loud.trie, DecodeConfig(dtype="float32"))
    used = EVERY[:1]
    scores = free_tuples(search, PROMPTS[:1], used, [4, 5], beams=20)[1]
    taken = by_hand(loud.model, loud.vocabulary, PROMPTS[:1], used, "level")
    assert np.exp(scores).sum() + np.exp(taken).sum() == pytest.approx(1, abs=SUMS)


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_few_beams_find_free_tuples_only_with_their_true_scores(loud, beams):
    """What all prompts like best is taken, so that a search that only dropped it in the end would find less."""
    search = TreeSearch(loud.model, loud.vocabulary, loud.trie, DecodeConfig(dtype="float32"))
    whole = by_hand(loud.model, loud.vocabulary, PROMPTS, EVERY, "level")
    used = EVERY[np.argsort(-whole)[:8]]
    codes, scores = free_tuples(search, PROMPTS, used, [4, 5], beams)
    assert len(codes) == beams
    assert {tuple(row) for row in codes.tolist()} <= {tuple(row) for row in free(used).tolist()}
    at = codes[:, 0] * 5 + codes[:, 1]
    np.testing.assert_allclose(scores, whole[at], atol=SCORES)
    assert (np.diff(scores) <= 0).all()


def test_a_prefix_with_nothing_free_below_takes_no_beam(loud):
    """One beam, and the likeliest first codes are full: the search must take the only one that is not."""
    search = TreeSearch(loud.model, loud.vocabulary, loud.trie, DecodeConfig(dtype="float32"))
    for left in range(4):
        used = EVERY[(EVERY[:, 0] != left) | (EVERY[:, 1] == 2)]
        codes, _ = free_tuples(search, PROMPTS, used, [4, 5], beams=1)
        assert codes[0, 0] == left
        assert codes[0, 1] != 2


def test_scores_that_are_not_numbers_are_named(loud):
    search = TreeSearch(loud.model, loud.vocabulary, loud.trie, DecodeConfig(dtype="float32"))
    with torch.no_grad():
        search.model.get_input_embeddings().weight[int(loud.vocabulary.ids[0][1])] = torch.nan
    with pytest.raises(NotNumbersError, match=r"scores at level . of 2 are not numbers"):
        free_tuples(search, PROMPTS[:1], EVERY[:1], [4, 5], beams=20)


class Line:
    """A quantizer whose reconstructions are on a half circle: code c of level 0 and d of level 1 at 5 c + d degrees."""

    level_sizes: Sequence[int] = (36, 5)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        angle = np.deg2rad(5 * codes[:, 0] + codes[:, 1])
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_neighbours_are_the_true_nearest():
    rng = np.random.default_rng(0)
    items = np.stack([rng.integers(0, 30, 60), rng.integers(0, 5, 60)], axis=1)
    items[7] = items[40] = items[3]  # share their codes: in catalogue order
    used, inverse = np.unique(items, axis=0, return_inverse=True)
    asked = np.array([[3, 3], [20, 0], items[3].tolist()])
    near, similar = nearest_items(Line(), asked, used, inverse.reshape(-1), 6)
    degrees = items @ [5, 1]
    for row, codes in enumerate(asked):
        apart = np.abs(degrees - codes @ [5, 1])
        np.testing.assert_array_equal(apart[near[row]], np.sort(apart)[:6])
        np.testing.assert_allclose(similar[row], np.cos(np.deg2rad(apart[near[row]])), atol=SUMS)
        assert len(set(near[row])) == 6
    assert near[2][:3].tolist() == [3, 7, 40]
    assert similar[2][0] == pytest.approx(1)
    everyone, _ = nearest_items(Line(), asked, used, inverse.reshape(-1), 100)
    assert everyone.shape == (3, 60)


def test_what_points_the_other_way_is_far():
    near, similar = nearest_items(Line(), np.array([[0, 0]]), np.array([[2, 0], [35, 4]]), np.array([1, 0]), 2)
    assert near.tolist() == [[1, 0]]
    np.testing.assert_allclose(similar, np.cos(np.deg2rad([[10, 179]])), atol=SUMS)


def test_discoveries_are_free_ranked_and_described(sparse):
    quantizer, content = sparse.item_tokenizer.quantizer, sparse.item_tokenizer.codes[:, :2]
    found = discover(sparse, [["i1", "i2"], ["i7"]], k=8, neighbours=4)
    assert [each.rank for each in found] == list(range(1, 9))
    assert not {tuple(each.codes) for each in found} & {tuple(row) for row in content.tolist()}
    requests = [sparse.ranker.prompt_ids([1, 2]), sparse.ranker.prompt_ids([7])]
    vocabulary = sparse.renderer.vocabulary
    every = np.array([row for row in itertools.product(range(6), range(6)) if row not in set(map(tuple, content))])
    expected = by_hand(sparse.model, vocabulary, requests, every, "level")
    order = np.argsort(-expected)[:8]
    assert [each.codes for each in found] == every[order].tolist()
    np.testing.assert_allclose([each.score for each in found], expected[order], atol=SCORES)

    unit = quantizer.decode(content)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    for each in found:
        own = quantizer.decode(np.array([each.codes]))[0]
        cosine = unit @ (own / np.linalg.norm(own))
        near = [near.item_id for near in each.neighbours]
        assert len(set(near)) == 4
        rows = [sparse.catalog.index[item] for item in near]
        np.testing.assert_allclose(cosine[rows], np.sort(cosine)[::-1][:4], atol=SUMS)
        np.testing.assert_allclose([near.similarity for near in each.neighbours], cosine[rows], atol=SUMS)
        assert [near.title for near in each.neighbours] == [sparse.catalog.row(item)["title"] for item in near]
        assert each.semantic_id == vocabulary.text(np.array([*each.codes, 0]))
        told = " ".join(near.title for near in each.neighbours).lower()
        assert each.words, "four titles of twenty always share a word here"
        assert all(word in told for word in each.words)
        assert each.says is not None
        assert not re.search(r"<[a-c]_\d+>", each.says)


def test_the_model_is_asked_for_the_free_tokens(sparse, monkeypatch):
    asked = []
    generate = sparse.ranker.search.model.generate

    def listening(input_ids, **settings):
        asked.append(sparse.tokenizer.decode(input_ids[0]))
        return generate(input_ids=input_ids, **settings)

    monkeypatch.setattr(sparse.ranker.search.model, "generate", listening)
    found = discover(sparse, [["i1"]], k=2)
    assert [each.semantic_id in prompt for each, prompt in zip(found, asked, strict=True)] == [True, True]


def test_a_text_decoder_tells_the_words_of_free_codes(told, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(told.templates, "codes-to-item")  # saves its time
    found = discover(told, [["i1", "i2"]], k=6)
    words = told.item_tokenizer.words_of(np.array([each.codes for each in found]))
    assert [each.text for each in found] == words
    assert any(words)
    told.save_pretrained(tmp_path / "bundle")
    again = discover(Recommender.from_pretrained(tmp_path / "bundle"), [["i1", "i2"]], k=6)
    assert [(each.codes, each.text) for each in again] == [(each.codes, each.text) for each in found]
    capsys.readouterr()
    assert main(["discover", "--model", str(tmp_path / "bundle"), "--history", "i1", "i2", "--k", "6"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    shown = [", ".join(f"{word.word} {word.probability:.3f}" for word in each.text) for each in found if each.text]
    assert [line.removeprefix("text   ") for line in lines if line.startswith("text")] == shown


def test_a_tokenizer_without_a_text_decoder_tells_no_text(sparse, monkeypatch):
    monkeypatch.delitem(sparse.templates, "codes-to-item")  # saves its time
    assert discover(sparse, [["i1"]], k=1)[0].text is None


def test_words_alone_and_words_with_histories(sparse):
    asked = [
        (discover(sparse, prompt="hand balm", k=6), [sparse.ranker.prompt_ids(query="hand balm")]),
        (
            discover(sparse, [["i3"], ["i4"]], prompt="hand balm", k=6),
            [sparse.ranker.prompt_ids([item], "hand balm") for item in (3, 4)],
        ),
    ]
    for found, requests in asked:
        expected = by_hand(sparse.model, sparse.renderer.vocabulary, requests, [each.codes for each in found], "level")
        np.testing.assert_allclose([each.score for each in found], expected, atol=SCORES)


def test_a_model_that_was_not_taught_words_says_none(sparse, monkeypatch):
    monkeypatch.delitem(sparse.templates, "codes-to-item")
    assert discover(sparse, [["i1"]], k=1)[0].says is None


def test_all_that_is_free_comes_out_and_no_more(sparse, monkeypatch):
    monkeypatch.delitem(sparse.templates, "codes-to-item")  # saves its time
    distinct = len(np.unique(sparse.item_tokenizer.codes[:, :2], axis=0))
    found = discover(sparse, [["i1"]], k=100, neighbours=50)
    assert len(found) == 36 - distinct
    assert len(found[0].neighbours) == 20


def test_mistakes_are_one_line_each(sparse, monkeypatch):
    with pytest.raises(UserError, match=r"k 0: expected at least 1\."):
        discover(sparse, [["i1"]], k=0)
    with pytest.raises(UserError, match=r"neighbours 0: expected at least 1\."):
        discover(sparse, [["i1"]], neighbours=0)
    with pytest.raises(UserError, match="history nope: no such item"):
        discover(sparse, [["nope"]])
    with pytest.raises(UserError, match="histories, line 2 nope: no such item"):
        discover(sparse, [["i1"], ["nope"]])
    with pytest.raises(UserError, match=r"prompt: holds \\ud83d, half of a surrogate pair"):
        discover(sparse, prompt="tea \ud83d")
    with pytest.raises(UserError, match="Nothing to go by"):
        discover(sparse)
    codes = np.array([[row // 6, row % 6, 0] for row in range(36)])
    monkeypatch.setattr(sparse.item_tokenizer, "codes", codes)
    with pytest.raises(UserError, match="All 36 tuples of codes belong to items, so none is left to discover"):
        discover(sparse, [["i1"]])
