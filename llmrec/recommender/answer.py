"""How a Recommender answers: requests are prepared, decoded together where one batch can hold them, and finished.

prepared = [prepare(store, ranker, request) for request in requests]    # checks, filters, prompts: no model
answers = finished(prepared, decoded(prepared))
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np

from llmrec.decode.filters import Filter, Quota, diverse
from llmrec.decode.ranker import ItemRanker
from llmrec.decode.search import Prompt
from llmrec.errors import UserError
from llmrec.recommender.request import Answer, Request, Selection, quotas_of
from llmrec.recommender.store import ItemStore

Found = tuple[np.ndarray, np.ndarray]
"""Rows of the catalogue int64 [n], best first, and their scores float32 [n]."""

BY_POPULARITY = "The history is empty: answered by popularity, the number of training events."
BY_MODEL = "The history is empty: answered by the model after an empty history."


@dataclass(frozen=True)
class Prepared:
    """A request that has been checked, with all that its decoding needs.

    Attributes:
        request: the request.
        store: the items.
        ranker: ranks the same items.
        selection: the items that its filters leave.
        base: the same items, as a filter.
        dropped: int64 [m], the items that can't be answers because they are in the history.
        notes: as in `Answer`.
        quotas: its limits, by name.
        offsets: float32 [N], or None.
        prompts: its phrasings; none if popularity answers.
    """

    request: Request
    store: ItemStore
    ranker: ItemRanker
    selection: Selection
    base: Filter
    dropped: np.ndarray
    notes: list[str]
    quotas: dict[str, Quota]
    offsets: np.ndarray | None
    prompts: list[Prompt]

    @property
    def batch(self) -> tuple[int, ...] | None:
        """Requests with the same one can be decoded in one batch, with the answers that they get alone.

        None for a request that needs more than one search, or searches that no other request shares.
        """
        if len(self.prompts) != 1 or self.offsets is not None or self.quotas:
            return None
        return id(self.ranker), self.ranker.batch_width(self.request.k), self.request.exact

    @property
    def wanted(self) -> int:
        """Number of answers: k, or as many as the filters and the history leave."""
        return min(self.request.k, self.selection.left - int(np.count_nonzero(self.selection.allowed[self.dropped])))

    @property
    def filter(self) -> Filter:
        """The items that can be answers."""
        common = np.empty(0, np.int64) if self.base.excluded is None else self.base.excluded
        return Filter(self.base.allowed, np.concatenate([common, self.dropped]))

    def alone(self) -> Found:
        """The best items, in searches of its own."""
        allowed = self.selection.without(self.dropped).allowed
        limits = list(self.quotas.values())
        if not self.prompts:
            scores = popularity(self.store.train_counts)
            scores = scores if self.offsets is None else scores + self.offsets
            return best_by_scores(scores, allowed, self.wanted, limits)
        return self.ranker.best(self.prompts, self.wanted, allowed, limits, self.offsets, self.request.exact)

    def answer(self, texts: Iterable[dict[str, str]], scores: np.ndarray) -> Answer:
        """The answer with n items found: their rows of the catalogue's frame, and their scores, float32 [n]."""
        n, k = len(scores), self.request.k
        selection = self.selection.without(self.dropped) if n < k else self.selection
        full = [f"{flag} lets no more through" for flag in self.quotas] if n < min(k, selection.left) else []
        return Answer.ranked(texts, scores, selection.reason(n, k, full), self.notes)


def prepare(store: ItemStore, ranker: ItemRanker, request: Request) -> Prepared:
    """Check a request and write its prompts; errors are those of `answers`."""
    return _prepared(store, ranker, [request])[0]


def _prepared(store: ItemStore, ranker: ItemRanker, requests: Sequence[Request]) -> list[Prepared]:
    """As `prepare`, for at least one request; all fields but history and prompt are those of the first."""
    request = requests[0]
    ranking, lookup = ranker.search.config.ranking, store.lookup
    if request.exact and ranking not in ("auto", "beam"):
        raise UserError(f"--exact ranks by codes alone, which --ranking {ranking} does not; leave one of them out.")
    selection = Selection.of(request, lookup)
    base = Filter.of_mask(selection.allowed)
    offsets = None if request.offsets is None else lookup.offsets(request.offsets)
    quotas = quotas_of(request, lookup, store.item_tokenizer.codes[:, 0])
    prepared = []
    for each in requests:
        seen, notes = (None, []) if each.history is None else lookup.history(each.history, request.unknown)
        silent = seen is not None and not len(seen) and each.prompt is None
        by_popularity = silent and request.empty_history == "popularity"
        if silent:
            notes.append(BY_POPULARITY if by_popularity else BY_MODEL)
        dropped = np.empty(0, np.int64) if seen is None or request.include_seen else np.unique(seen)
        prompts = [] if by_popularity else ranker.phrased(seen, each.prompt, request.phrasings)
        prepared.append(
            Prepared(each, store, ranker, selection, base, dropped, notes, quotas, offsets, prompts),
        )
    return prepared


def decoded(prepared: Sequence[Prepared]) -> list[Found]:
    """The best items of each request. Requests with the same `batch` are decoded together."""
    found: list[Found] = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(prepared)

    def key(place: int) -> tuple[int, ...]:
        return prepared[place].batch or (place,)

    for _, group in groupby(sorted(range(len(prepared)), key=key), key=key):
        places = list(group)
        if len(places) == 1:
            found[places[0]] = prepared[places[0]].alone()
            continue
        for place, each in zip(places, _together([prepared[place] for place in places]), strict=True):
            found[place] = each
    return found


def finished(prepared: Sequence[Prepared], found: Sequence[Found]) -> list[Answer]:
    """The answers to requests of one store, from what `decoded` has found; the catalogue is read once."""
    if not prepared:
        return []
    texts = prepared[0].store.catalog.frame[np.concatenate([rows for rows, _ in found])].iter_rows(named=True)
    return [each.answer(islice(texts, len(rows)), scores) for each, (rows, scores) in zip(prepared, found, strict=True)]


def _together(prepared: Sequence[Prepared]) -> list[Found]:
    """The best items of requests with the same `batch`, decoded together."""
    wanted, exact = [each.wanted for each in prepared], prepared[0].request.exact
    prompts = [each.prompts[0] for each in prepared]
    ranking = prepared[0].ranker.rank(prompts, max(1, *wanted), [each.filter for each in prepared], exact=exact)
    found = []
    for items, scores, most in zip(ranking.items, ranking.scores, wanted, strict=True):
        kept = items[:most] >= 0
        found.append((items[:most][kept], scores[:most][kept]))
    return found


def answers(store: ItemStore, ranker: ItemRanker, requests: Sequence[Request]) -> list[Answer]:
    """The answers to B requests that differ in history and prompt only; B is 1 or more.

    They are decoded together, in batches of the search's `batch_size`; with offsets, limits or further phrasings, one
    after the other.

    Raises:
        UserError: an item or field is unknown, the prompt is empty or too long, an offset is not a finite number, the
            prompts have fewer phrasings, or `exact` is set with a ranking that does not use codes alone.
    """
    prepared = _prepared(store, ranker, requests)
    return finished(prepared, decoded(prepared))


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
