"""Session-wise lists (OneRec, arXiv 2502.18965): the items of a list are generated in one go, each given those before.

k independent beams answer k times what comes next. A session answers what comes next, what comes after that, and so on.
"""

from collections.abc import Sequence

import numpy as np

from llmrec.decode.config import RankingName
from llmrec.decode.filters import Filter
from llmrec.decode.rankings.base import RankingMethod
from llmrec.decode.search import Offsets, PrefilledBatch, Prompt, Ranking

Session = tuple[float, list[int]]
"""The log-probability of an ordered list, and its items as rows of the catalogue."""


class SessionRanking(RankingMethod):
    """The most likely ordered list of `session` different items, and behind it the other items in their own order.

    The log-probability of a list is the sum of log p(item | request, history, items of the list before it). A beam
    search keeps the `session_lists` best lists of each length. The score of an item is minus its place in the list.
    """

    name: RankingName = "session"

    def _rank(
        self, prefilled: PrefilledBatch, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None
    ) -> Ranking:
        own = [Filter()] * len(prefilled.prompts) if filters is None else filters
        wanted = max(k + self.config.session, self.config.session_lists)
        first = self.search.rank(prefilled, wanted, own, offsets=offsets)
        items = np.full((len(own), k), -1, np.int64)
        for row, sessions in enumerate(self.sessions(prefilled.prompts, first, own, offsets)):
            best = sessions[0][1] if sessions else []
            others = [item for item in first.items[row].tolist() if item >= 0 and item not in best]
            found = [*best, *others][:k]
            items[row, : len(found)] = found
        scores = np.where(items >= 0, -np.arange(1, k + 1, dtype=np.float32), -np.inf).astype(np.float32)
        return Ranking(items, scores, first.width, first.beams, first.invalid, first.invalid_first)

    def sessions(
        self, prompts: Sequence[Sequence[int]], first: Ranking, filters: Sequence[Filter], offsets: Offsets | None
    ) -> list[list[Session]]:
        """The best lists of each of B requests, best first; shorter ones where fewer items are allowed.

        Args:
            prompts: of the requests, `Prompt`s that an `ItemRanker` wrote.
            first: the best items of each request.
            filters: of each request.
            offsets: as in `BeamSearch.rank`.

        Raises:
            ValueError: a prompt can't be continued.
        """
        width = self.config.session_lists
        lists: list[list[Session]] = [
            [(score, [item]) for item, score in zip(items, scores, strict=True) if item >= 0][:width]
            for items, scores in zip(first.items.tolist(), first.scores.tolist(), strict=True)
        ]
        for _ in range(1, self.config.session):
            begun = [(row, score, items) for row, own in enumerate(lists) for score, items in own]
            asked = [_after(prompts[row], items) for row, _, items in begun]
            found = self._search(asked, [_without(filters[row], items) for row, _, items in begun], offsets)
            grown: list[list[Session]] = [[] for _ in lists]
            for (row, score, items), more, scores in zip(begun, found.items, found.scores, strict=True):
                grown[row] += [
                    (score + own, [*items, item])
                    for item, own in zip(more.tolist(), scores.tolist(), strict=True)
                    if item >= 0
                ]
            lists = [
                sorted(longer, key=lambda session: -session[0])[:width] or own
                for longer, own in zip(grown, lists, strict=True)
            ]
        return lists

    def _search(self, prompts: list[Prompt], filters: list[Filter], offsets: Offsets | None) -> Ranking:
        """The best items after each list that has begun."""
        width, parts = self.config.session_lists, []
        for chosen in self.search.batches(prompts):
            prefilled = self.search.prefill([prompts[i] for i in chosen])
            parts.append((chosen, self.search.rank(prefilled, width, [filters[i] for i in chosen], offsets=offsets)))
        return Ranking.joined(len(prompts), width, parts)


def _after(prompt: Sequence[int], items: list[int]) -> Prompt:
    if not isinstance(prompt, Prompt) or prompt.after is None:
        raise ValueError("ranking session: expected prompts that an ItemRanker wrote, which can be continued")
    return prompt.after(items)


def _without(own: Filter, items: list[int]) -> Filter:
    """The filter that lets `items` not through either."""
    excluded = np.empty(0, np.int64) if own.excluded is None else own.excluded
    return Filter(own.allowed, np.append(excluded, items))
