"""Held-out intentions as queries, and systems whose ranks are known."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog
from llmrec.decode.queries import Queries
from llmrec.decode.search import Ranking
from llmrec.embed import EmbedConfig, Embeddings
from llmrec.embed.encoder import Encoder
from llmrec.errors import UserError
from llmrec.evaluation import EvaluateConfig
from llmrec.evaluation.text_queries import Generative, evaluate_text_queries, target_ranks

WORDS = ["soap", "lamp", "mug", "tent"]
CATALOG = Catalog.from_frame(pl.DataFrame({"item_id": ["a", "b", "c", "d"], "title": WORDS}))
INF = np.inf


class Renderer:
    """Takes out <tokens>, keeps `max_tokens` words."""

    def clip(self, texts, max_tokens):
        return [" ".join(self.request(text, lower=False).split()[:max_tokens]) for text in texts]

    def request(self, text, lower=True):
        text = text.lower() if lower else text
        return " ".join(word for word in text.split() if not word.startswith("<a_"))


class Ranker:
    """Answers a query with the items whose titles it names, in the order it names them; remembers what it was asked."""

    context = 8
    renderer = Renderer()
    in_words = None

    def without_retrieval(self):
        return self

    def __init__(self, beams=3):
        self.search = SimpleNamespace(
            config=SimpleNamespace(beams=beams, batch_size=2), trie=SimpleNamespace(n_items=len(CATALOG))
        )
        self.asked = []

    def prompt_ids(self, history=(), query=None):
        assert len(history) == 0
        return query.lower().split()

    def rank(self, requests, k):
        self.asked.append((requests, k))
        items = np.full((len(requests), k), -1)
        scores = np.full((len(requests), k), -INF, np.float32)
        for row, words in enumerate(requests):
            named = [WORDS.index(word) for word in words if word in WORDS][:k]
            items[row, : len(named)], scores[row, : len(named)] = named, -np.arange(len(named))
        return Ranking(items, scores, k, 0, 0, 0)


class Count(Encoder):
    """One dimension per word."""

    def encode(self, texts):
        return np.array([[text.split().count(word) for word in WORDS] for text in texts], np.float32)


class Gone(Encoder):
    def encode(self, texts):
        raise UserError("embed.model X: cannot be loaded")


def embeddings(encoder=Count, ids=CATALOG.ids):
    return Embeddings(list(ids), Count(EmbedConfig()).encode(WORDS), encoder(EmbedConfig()))


def measure(held_out, made=None, **settings):
    recommender = SimpleNamespace(catalog=CATALOG, ranker=Ranker())
    config = EvaluateConfig(**{"bootstrap": 20, **settings})
    return evaluate_text_queries(recommender, held_out, made or embeddings(), config, "reviews")


def test_queries_are_cleaned_cut_and_dropped_when_nothing_is_left() -> None:
    held_out = {"c": ["A <a_1> big mug for my own tea"], "a": ["<a_2>", "<A_2>", "soap"]}
    queries = Queries.of(held_out, CATALOG, Ranker())
    assert queries.texts == ["A big mug for", "soap"]
    assert queries.targets.tolist() == [2, 0]


def test_the_sample_is_seeded_and_keeps_order() -> None:
    queries = Queries([str(number) for number in range(30)], np.arange(30))
    some = queries.sample(7, seed=1)
    assert len(some) == 7
    assert some.texts == [str(row) for row in some.targets]
    assert (np.diff(some.targets) > 0).all()
    assert some.texts == queries.sample(7, seed=1).texts != queries.sample(7, seed=2).texts
    assert queries.sample(30, seed=1) is queries


def test_llmrec_scores_what_its_beams_reach() -> None:
    ranker = Ranker()
    scores = Generative(ranker, depth=2).scores(["tent or lamp or mug", "nothing"])
    assert scores.tolist() == [[-INF, -1, -INF, 0], [-INF] * 4]
    assert ranker.asked[0][1] == 2


def test_every_system_answers_the_same_queries() -> None:
    # Of "mug lamp" llmrec likes the mug more; for bm25 and dense they tie, against both.
    metrics = measure({"c": ["mug", "mug lamp"], "b": ["mug lamp"], "d": ["umbrella"]}, k=[1, 2, 10])
    assert metrics["protocol"] == {
        "source": "reviews", "queries": 4, "items": 4, "ranking": "full", "k": [1, 2, 10], "bootstrap": 20, "seed": 0,
    }  # fmt: skip
    systems = {name: entry["all"] for name, entry in metrics["systems"].items()}
    assert list(systems) == ["llmrec", "bm25", "dense", "hybrid-text", "hybrid"]
    assert all(entry["users"] == 4 for entry in systems.values())
    assert systems["llmrec"]["recall@1"] == 0.5
    assert systems["llmrec"]["recall@2"] == 0.75
    assert systems["bm25"]["recall@1"] == systems["dense"]["recall@1"] == systems["hybrid-text"]["recall@1"] == 0.25
    assert systems["bm25"]["recall@2"] == 0.75
    assert systems["bm25"]["recall@10"] == 0.75, "no word of the last query is in the catalogue"
    assert systems["dense"]["recall@10"] == 1.0, "cosine 0, tied with all others, is still a place"
    assert systems["hybrid"]["recall@1"] == 0.5, "llmrec breaks the tie"
    assert len(systems["hybrid"]["recall@10_ci"]) == 2
    assert list(metrics["paired"]) == ["recall@10", "ndcg@10"]
    for metric, paired in metrics["paired"].items():
        best = max(systems[name][metric] for name in ("bm25", "dense", "hybrid-text"))
        assert systems[paired["best"]][metric] == best
        assert list(paired["systems"]) == ["llmrec", "hybrid"]
        for name, found in paired["systems"].items():
            assert found["difference"] == pytest.approx(systems[name][metric] - best)


def test_batches_make_no_difference() -> None:
    queries = Queries(["mug", "lamp tent", "soap", "tent", "lamp"], np.array([2, 3, 0, 1, 1]))
    retrievers = {"llmrec": Generative(Ranker(), 3)}
    ranks = [target_ranks(retrievers, {"alone": ["llmrec"]}, queries, size) for size in (1, 2, 5)]
    for found in ranks:
        assert found["llmrec"].tolist() == found["alone"].tolist() == [1, 2, 1, INF, 1]


def test_at_most_so_many_queries() -> None:
    assert measure({"a": ["soap"] * 9}, text_queries=5)["protocol"]["queries"] == 5


@pytest.mark.parametrize("held_out", [{}, {"a": ["<a_1>"]}])
def test_nothing_held_out_is_nothing_measured(held_out, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="llmrec"):
        assert measure(held_out) is None
    assert "no intention was held out" in caplog.text


def test_an_encoder_that_cannot_embed_the_queries_is_one_line() -> None:
    with pytest.raises(UserError, match=r"evaluate\.text_queries \(0 leaves them out\): embed.model X: cannot"):
        measure({"a": ["soap"]}, embeddings(Gone))


def test_embeddings_of_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="other items"):
        measure({"a": ["soap"]}, embeddings(ids=["a", "b", "d", "c"]))
