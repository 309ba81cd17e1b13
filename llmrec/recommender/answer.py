"""How a Recommender answers: one request, or the same request for many histories in one batched decode."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from llmrec.decode.filters import Filter, Quota, diverse
from llmrec.decode.ranker import ItemRanker
from llmrec.errors import UserError
from llmrec.recommender.request import Answer, Request, Selection, quotas_of
from llmrec.recommender.store import ItemStore

Found = tuple[np.ndarray, np.ndarray]
"""Rows of the catalogue int64 [n], best first, and their scores float32 [n]."""

BY_POPULARITY = "The history is empty: answered by popularity, the number of training events."
BY_MODEL = "The history is empty: answered by the model after an empty history."


@dataclass(frozen=True)
class _Asked:
    """One history of a request.

    Attributes:
        seen: int64 [n], its items of the catalogue, oldest first; None if the request has no history.
        dropped: int64 [m], the items that can't be answers because they are in the history.
        notes: as in `Answer`.
    """

    seen: np.ndarray | None
    dropped: np.ndarray
    notes: list[str]


def answers(
    store: ItemStore, ranker: ItemRanker, request: Request, histories: Sequence[Sequence[str] | None]
) -> list[Answer]:
    """The answers to one request for each of B histories, which take the place of the request's own.

    Several histories are decoded together, in batches of the search's `batch_size`; if the request has offsets, limits
    or further phrasings, they are decoded one after the other.

    Raises:
        UserError: an item or field is unknown, the prompt is empty or too long, an offset is not a finite number, the
            prompts have fewer phrasings, or `exact` is set with a ranking that does not use codes alone.
    """
    ranking, lookup = ranker.search.config.ranking, store.lookup
    if request.exact and ranking not in ("auto", "beam"):
        raise UserError(f"--exact ranks by codes alone, which --ranking {ranking} does not; leave one of them out.")
    every = Selection.of(request, lookup)
    offsets = None if request.offsets is None else lookup.offsets(request.offsets)
    quotas = quotas_of(request, lookup, store.item_tokenizer.codes[:, 0])
    limits = list(quotas.values())
    asked = []
    for history in histories:
        seen, notes = (None, []) if history is None else lookup.history(history, request.unknown)
        if seen is not None and not len(seen) and request.prompt is None:
            notes.append(BY_POPULARITY if request.empty_history == "popularity" else BY_MODEL)
        dropped = np.empty(0, np.int64) if seen is None or request.include_seen else np.unique(seen)
        asked.append(_Asked(seen, dropped, notes))

    def one(each: _Asked) -> Found:
        allowed = every.without(each.dropped).allowed
        wanted = min(request.k, int(np.count_nonzero(allowed)))
        if BY_POPULARITY in each.notes:
            scores = popularity(store.train_counts)
            return best_by_scores(scores if offsets is None else scores + offsets, allowed, wanted, limits)
        prompts = ranker.phrased(each.seen, request.prompt, request.phrasings)
        return ranker.best(prompts, wanted, allowed, limits, offsets, request.exact)

    together = [place for place, each in enumerate(asked) if BY_POPULARITY not in each.notes]
    found: dict[int, Found] = {}
    if len(together) > 1 and offsets is None and not limits and request.phrasings == 1:
        chosen = [asked[place] for place in together]
        found = dict(zip(together, _decoded(ranker, request, every, chosen), strict=True))
    results = []
    best = [found[place] if place in found else one(each) for place, each in enumerate(asked)]
    texts = store.catalog.frame[np.concatenate([rows for rows, _ in best])].iter_rows(named=True)
    for each, (rows, scores) in zip(asked, best, strict=True):
        selection = every.without(each.dropped) if len(rows) < request.k else every
        full = [f"{flag} lets no more through" for flag in quotas] if len(rows) < min(request.k, selection.left) else []
        reason = selection.reason(len(rows), request.k, full)
        results.append(Answer.ranked(islice(texts, len(rows)), scores, reason, each.notes))
    return results


def _decoded(ranker: ItemRanker, request: Request, every: Selection, asked: Sequence[_Asked]) -> list[Found]:
    """The best items for several histories, decoded together."""
    base, left = Filter.of_mask(every.allowed), every.left
    wanted = [min(request.k, left - int(np.count_nonzero(every.allowed[each.dropped]))) for each in asked]
    common = np.empty(0, np.int64) if base.excluded is None else base.excluded
    filters = [Filter(base.allowed, np.concatenate([common, each.dropped])) for each in asked]
    prompts = [ranker.prompt_ids(each.seen, request.prompt) for each in asked]
    ranking = ranker.rank(prompts, max(1, *wanted), filters, exact=request.exact)
    found = []
    for items, scores, most in zip(ranking.items, ranking.scores, wanted, strict=True):
        kept = items[:most] >= 0
        found.append((items[:most][kept], scores[:most][kept]))
    return found


def popularity(train_counts: np.ndarray) -> np.ndarray:
    """Log of each item's share of the training events, each item counted once more: float32 [N], from int [N]."""
    return np.log((train_counts + 1) / (train_counts.sum() + len(train_counts))).astype(np.float32)


def best_by_scores(scores: np.ndarray, allowed: np.ndarray, k: int, limits: Sequence[Quota]) -> Found:
    """The k best items by their scores, float [N]; items with equal scores stay in catalogue order.

    Args:
        scores: float [N].
        allowed: bool [N], the items that may come out.
        k: largest number of results.
        limits: as for `diverse`.
    """

    def ask(among: Filter) -> Found:
        rows = np.flatnonzero(among.normal().allows(np.arange(len(scores))))
        rows = rows[np.argsort(-scores[rows], kind="stable")][:k]
        return rows, scores[rows]

    return diverse(ask, allowed, k, limits)
