"""Queries in plain words: the language model against BM25, dense retrieval, and fusions of them.

Each retriever scores the whole catalogue; -inf marks an item that it does not return.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import bm25s
import numpy as np
from scipy.stats import rankdata
from sklearn.preprocessing import normalize

from llmrec.collaborative.base import ranks_from_scores
from llmrec.console import get_logger, track
from llmrec.data import Catalog
from llmrec.decode.ranker import ItemRanker
from llmrec.embed import Embeddings
from llmrec.errors import UserError
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.protocol import Metrics, summarise_systems
from llmrec.recommender.recommender import Recommender

log = get_logger(__name__)

RRF_K = 60
"""The number added to each rank, 60 as in the paper; it reduces the lead of the first few items."""


class Retriever(Protocol):
    """Answers queries in plain words."""

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Scores of all items for each of B queries, float [B, N]: higher is better, -inf for an item not returned."""


class BM25:
    """Okapi BM25 (Robertson & Zaragoza 2009) in Lucene's form with bm25s's defaults (Lù, arXiv 2407.03618).

    Args:
        texts: texts of the N items.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._index = bm25s.BM25()
        self._index.index(_words(texts), show_progress=False)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Float32 [B, N]; an item that shares no word with the query is not returned."""
        words = _words(queries)
        scores = np.stack([self._index.get_scores_from_ids(self._index.get_tokens_ids(query)) for query in words])
        return np.where(scores > 0, scores, -np.inf)


class Dense:
    """Cosine of the query's vector and each item's vector, all from one encoder.

    Args:
        embeddings: vectors of the N items, with the encoder that made them.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        self._encoder = embeddings.encoder
        self._items = normalize(embeddings.vectors)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Float32 [B, N].

        Raises:
            UserError: the encoder can't be loaded.
        """
        return np.asarray(normalize(self._encoder.encode(queries)) @ self._items.T)


def reciprocal_rank_fusion(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Fuse the scores of several retrievers: the sum of 1 / (60 + rank) over retrievers (Cormack et al., SIGIR 2009).

    Items with tied scores all get the last of their ranks, so that the order of the catalogue does not matter. An item
    that a retriever does not return gets 0 from it.

    Args:
        scores: one float [B, N] per retriever, for the same queries.

    Returns:
        float64 [B, N]; -inf for an item that no retriever returns.
    """
    shares = [
        np.where(np.isneginf(one), 0.0, 1 / (RRF_K + rankdata(-one.astype(np.float64), method="max", axis=1)))
        for one in scores
    ]
    # Sorted before the sum, so that items with the same ranks from different retrievers get exactly the same sum.
    fused = np.sort(shares, axis=0).sum(axis=0)
    return np.where(fused > 0, fused, -np.inf)


def _words(texts: Sequence[str]) -> list[list[str]]:
    return list(bm25s.tokenize(list(texts), return_ids=False, show_progress=False))


FUSIONS = {"hybrid-text": ("bm25", "dense"), "hybrid": ("llmrec", "bm25", "dense")}
"""Fusion -> the systems whose scores it fuses."""


@dataclass(frozen=True)
class Queries:
    """n queries in plain words, each with the item that it asks for.

    Attributes:
        texts: the n queries.
        targets: int64 [n], catalogue rows of the items.
    """

    texts: list[str]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def sample(self, n: int, seed: int) -> "Queries":
        """At most n random queries, drawn without replacement with `seed`; their order stays."""
        if n >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self), size=n, replace=False))
        return Queries([self.texts[row] for row in chosen], self.targets[chosen])


class Generative:
    """The language model as a retriever: the scores of the items that its ranking returns.

    Args:
        ranker: ranker of the model to measure.
        depth: number of items that it returns per query.
    """

    def __init__(self, ranker: ItemRanker, depth: int) -> None:
        self.ranker = ranker
        self.depth = depth

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Float32 [B, N]."""
        ranking = self.ranker.rank([self.ranker.prompt_ids(query=query) for query in queries], self.depth)
        scores = np.full((len(queries), self.ranker.search.trie.n_items), -np.inf, dtype=np.float32)
        query, place = np.nonzero(ranking.items >= 0)
        scores[query, ranking.items[query, place]] = ranking.scores[query, place]
        return scores


def select_queries(held_out: Mapping[str, Sequence[str]], catalog: Catalog, ranker: ItemRanker) -> Queries:
    """The held-out intentions (item id -> texts) as queries, the same for all systems.

    Item tokens and control tokens are removed, each text is cut to half of the model's context, and a text that is then
    empty is left out.
    """
    rows = [catalog.index[item] for item, texts in held_out.items() for _ in texts]
    texts = ranker.renderer.clip([text for texts in held_out.values() for text in texts], ranker.context // 2)
    asked = [at for at, text in enumerate(texts) if ranker.renderer.request(text)]
    return Queries([texts[at] for at in asked], np.array([rows[at] for at in asked], dtype=np.int64))


def evaluate_text_queries(
    recommender: Recommender,
    held_out: Mapping[str, Sequence[str]],
    embeddings: Embeddings,
    config: EvaluateConfig,
    source: str,
) -> Metrics | None:
    """Measure how well llmrec, BM25, dense retrieval and their fusions find the item that a query asks for.

    Args:
        recommender: a recommender that was not trained on the held-out intentions.
        held_out: item id -> intentions.
        embeddings: embeddings of the recommender's items.
        config: maximum number of queries, cut-offs, bootstrap and seed.
        source: source of the intentions, to be recorded.

    Returns:
        `protocol` and `systems` -> name -> `all` -> metric as in metrics.json, where `users` counts queries;
        None if there are no queries.

    Raises:
        UserError: the encoder of the embeddings can't be loaded to embed the queries.
        ValueError: the embeddings are not of the recommender's items.
    """
    catalog, ranker = recommender.catalog, recommender.ranker
    if embeddings.item_ids != catalog.ids:
        raise ValueError("the embeddings are of other items than the recommender's")
    queries = select_queries(held_out, catalog, ranker).sample(config.text_queries, config.seed)
    if not len(queries):
        log.warning("--evaluate.text_queries: no intention was held out, so there is none to measure with.")
        return None
    retrievers: dict[str, Retriever] = {
        "llmrec": Generative(ranker, max(*config.k, ranker.search.config.beams)),
        "bm25": BM25(catalog.texts(catalog.whole_text)),
        "dense": Dense(embeddings),
    }
    try:
        ranks = target_ranks(retrievers, FUSIONS, queries, ranker.search.config.batch_size)
    except UserError as error:
        raise UserError(f"--evaluate.text_queries (0 leaves them out): {error}") from None
    return {
        "protocol": {
            "source": source,
            "queries": len(queries),
            "items": len(catalog),
            "ranking": "full",
            "k": config.k,
            "bootstrap": config.bootstrap,
            "seed": config.seed,
        },
        "systems": summarise_systems(ranks, {"all": np.ones(len(queries), bool)}, config, queries.targets),
    }


def target_ranks(
    retrievers: Mapping[str, Retriever], fusions: Mapping[str, Sequence[str]], queries: Queries, batch_size: int
) -> dict[str, np.ndarray]:
    """Each system's rank of each query's target among all items, float64 [n]; inf if the target is not returned.

    Args:
        retrievers: name -> retriever; each scores every query once.
        fusions: name -> the retrievers whose scores it fuses.
        queries: n queries.
        batch_size: number of queries per batch.
    """
    ranks = {name: np.empty(len(queries)) for name in (*retrievers, *fusions)}
    for start in track(range(0, len(queries), batch_size), "asking in words"):
        batch = slice(start, start + batch_size)
        scores = {name: retriever.scores(queries.texts[batch]) for name, retriever in retrievers.items()}
        scores |= {name: reciprocal_rank_fusion([scores[part] for part in parts]) for name, parts in fusions.items()}
        for name, found in scores.items():
            ranks[name][batch] = ranks_from_scores(found, queries.targets[batch])
    return ranks
