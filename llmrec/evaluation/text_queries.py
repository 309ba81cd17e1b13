"""Queries in plain words: the language model against BM25, dense retrieval, and fusions of them.

Each retriever scores the whole catalogue; -inf marks an item that it does not return.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from scipy.stats import rankdata
from sklearn.preprocessing import normalize

from llmrec.collaborative.base import ranks_from_scores
from llmrec.collaborative.fusion import CUT
from llmrec.console import get_logger, track
from llmrec.decode.calibrate import calibrate_prompts
from llmrec.decode.queries import Queries
from llmrec.decode.ranker import ItemRanker
from llmrec.embed import Embeddings
from llmrec.errors import UserError
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.metrics import INTERVAL_METRICS, per_user
from llmrec.evaluation.protocol import Metrics, summarise_systems
from llmrec.evaluation.significance import compare_with_best
from llmrec.index.text import BM25
from llmrec.recommender.recommender import Recommender

log = get_logger(__name__)

RRF_K = 60
"""The number added to each rank, 60 as in the paper; it reduces the lead of the first few items."""


class Retriever(Protocol):
    """Answers queries in plain words."""

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Scores of all items for each of B queries, float [B, N]: higher is better, -inf for an item not returned."""


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


FUSIONS = {"hybrid-text": ("bm25", "dense")}
"""Fusion by reciprocal ranks -> the systems whose scores it fuses; `hybrid` fuses these and the language model."""
ALONE = "language-model"
"""The ranking of llmrec without BM25 and the encoder, if llmrec ranks by these too."""


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


def evaluate_text_queries(
    recommender: Recommender,
    held_out: Mapping[str, Sequence[str]],
    embeddings: Embeddings,
    config: EvaluateConfig,
    source: str,
) -> Metrics | None:
    """Measure how well llmrec, BM25, dense retrieval and their fusions find the item that a query asks for.

    If llmrec ranks requests in words with weights of their own (`PromptRanking`), they are measured as in
    `cross_fitted`, and `language-model` is the same model without them.

    Args:
        recommender: a recommender that was not trained on the held-out intentions.
        held_out: item id -> intentions.
        embeddings: embeddings of the recommender's items.
        config: maximum number of queries, cut-offs, bootstrap and seed.
        source: source of the intentions, to be recorded.

    Returns:
        `protocol`, `systems` -> name -> `all` -> metric and `paired` as in metrics.json, where `users` counts queries.
        The paired differences are from the best retriever without a language model, over the items that are asked for.
        None if there are no queries.

    Raises:
        UserError: the encoder of the embeddings can't be loaded to embed the queries.
        ValueError: the embeddings are not of the recommender's items.
    """
    catalog, ranker = recommender.catalog, recommender.ranker
    if embeddings.item_ids != catalog.ids:
        raise ValueError("the embeddings are of other items than the recommender's")
    queries = Queries.of(held_out, catalog, ranker).sample(config.text_queries, config.seed)
    if not len(queries):
        log.warning("--evaluate.text_queries: no intention was held out, so there is none to measure with.")
        return None
    depth, batch = max(*config.k, ranker.search.config.beams), ranker.search.config.batch_size
    fused = ranker.in_words is not None
    alone = ALONE if fused else "llmrec"
    retrievers: dict[str, Retriever] = {
        alone: Generative(ranker.without_retrieval(), depth),
        "bm25": BM25(catalog.texts(catalog.whole_text)),
        "dense": Dense(embeddings),
    }
    try:
        ranks = {"llmrec": cross_fitted(ranker, queries, depth, config.seed)} if fused else {}
        ranks |= target_ranks(retrievers, FUSIONS | {"hybrid": (alone, "bm25", "dense")}, queries, batch)
    except UserError as error:
        raise UserError(f"--evaluate.text_queries (0 leaves them out): {error}") from None
    paired = {
        metric: compare_with_best(
            {name: per_user(each, CUT)[metric] for name, each in ranks.items()},
            ["bm25", "dense", *FUSIONS],
            queries.targets,
            config.bootstrap,
            config.seed,
        )
        for metric in INTERVAL_METRICS
    }
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
        "paired": paired,
    }


def cross_fitted(ranker: ItemRanker, queries: Queries, depth: int, seed: int) -> np.ndarray:
    """The rank of each query's target, float64 [n], with weights that have not seen the query; inf if not returned.

    The bundle's weights are learnt on these same queries. So the queries of each half of the items are ranked with
    weights that are learnt on the other half.
    """
    items = np.unique(queries.targets)
    half = np.random.default_rng(seed).permutation(items)[: len(items) // 2]
    inside, ranks = np.isin(queries.targets, half), np.empty(len(queries))
    for chosen in (np.flatnonzero(inside), np.flatnonzero(~inside)):
        others = np.setdiff1d(np.arange(len(queries)), chosen)
        weights = calibrate_prompts(ranker, queries.where(others))
        own = ranker.without_retrieval() if weights is None else ranker.with_prompt_weights(weights)
        found = target_ranks({"own": Generative(own, depth)}, {}, queries.where(chosen), own.search.config.batch_size)
        ranks[chosen] = found["own"]
    return ranks


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
    for start in track(range(0, len(queries), batch_size), "asking in words", unit="queries"):
        batch = slice(start, start + batch_size)
        scores = {name: retriever.scores(queries.texts[batch]) for name, retriever in retrievers.items()}
        scores |= {name: reciprocal_rank_fusion([scores[part] for part in parts]) for name, parts in fusions.items()}
        for name, found in scores.items():
            ranks[name][batch] = ranks_from_scores(found, queries.targets[batch])
    return ranks
