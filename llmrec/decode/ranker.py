"""Asks the model for the best items of a request, by one of the ranking methods.

A new method adds its line to `METHODS`.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch

from llmrec.checks import check_texts
from llmrec.collaborative.fusion import FusionWeights
from llmrec.console import get_logger
from llmrec.decode.choose import make_exact
from llmrec.decode.config import DecodeConfig, RankingName
from llmrec.decode.exact import ExactSearch
from llmrec.decode.filters import Filter, Quota, diverse
from llmrec.decode.rankings.base import BeamRanking, DenseRanking, ItemFacts, RankingMethod
from llmrec.decode.rankings.experts import ExpertsRanking
from llmrec.decode.rankings.fusion import FusionRanking
from llmrec.decode.rankings.hybrid import CascadeRanking, LigerRanking, QuotaRanking, SpecGRRanking
from llmrec.decode.rankings.prompts import PromptRanking
from llmrec.decode.rankings.session import SessionRanking
from llmrec.decode.rankings.streams import BehaviourRanking, StreamsRanking
from llmrec.decode.search import BeamSearch, NotNumbersError, Prompt, Ranking
from llmrec.errors import UserError
from llmrec.tasks.render import Renderer

log = get_logger(__name__)

METHODS: dict[RankingName, type[RankingMethod]] = {
    "beam": BeamRanking,
    "quota": QuotaRanking,
    "dense": DenseRanking,
    "liger": LigerRanking,
    "cascade": CascadeRanking,
    "specgr": SpecGRRanking,
    "fusion": FusionRanking,
    "experts": ExpertsRanking,
    "session": SessionRanking,
    "behaviour": BehaviourRanking,
    "streams": StreamsRanking,
}


def make_ranking(
    search: BeamSearch, facts: ItemFacts, config: DecodeConfig, name: RankingName | None = None
) -> RankingMethod:
    """The method of that name; by default the one that `config` asks for.

    Raises:
        UserError: the model or its bundle lacks what the method needs.
    """
    if name is None:
        ready = facts.fusion_weights is not None and facts.dense is not None and config.constraint == "trie"
        without: RankingName = "beam" if facts.behaviour is None or config.constraint != "trie" else "streams"
        auto: RankingName = facts.fusion_weights.best if facts.fusion_weights is not None and ready else without
        name = auto if config.ranking == "auto" else config.ranking
    return METHODS[name](search, facts, config)


def make_prompt_ranking(
    search: BeamSearch, facts: ItemFacts, method: RankingMethod, auto: bool = False
) -> PromptRanking | None:
    """What ranks requests in words beside `method`: the fusion, where it has been calibrated for them.

    There is none beside a method that was named (not `auto`), unless it is fusion or experts.

    If the encoder may not be loaded, there is none, and the log says so.
    """
    weights = facts.fusion_weights
    if weights is None or weights.prompts is None or facts.texts is None:
        return None
    if not (auto or isinstance(method, FusionRanking | ExpertsRanking)):
        return None
    ranking = PromptRanking(search, facts, method.config)
    if facts.texts.encode is None and "encoder" in weights.prompts.get("features", ()):
        log.warning("Requests in words are ranked without BM25 and text vectors; give the bundle's encoder: --encoder.")
        return None
    _ = ranking.weights  # its error comes now, not at the first request
    return ranking


class ItemRanker:
    """Ranks items for requests: writes the prompt of a request, in one phrasing or several, and asks the model.

    Args:
        renderer: of the tokenizer and the catalogue that the search was built for.
        search: over the same catalogue.
        context: the model's longest sequence, in tokens.
        method: how items are ranked; default: by the beams of the search.
        in_words: how items are ranked for requests in words, if otherwise.
    """

    def __init__(
        self,
        renderer: Renderer,
        search: BeamSearch,
        context: int,
        method: RankingMethod | None = None,
        in_words: PromptRanking | None = None,
    ) -> None:
        self.renderer = renderer
        self.search = search
        self.context = context
        self.method = method
        self.in_words = in_words
        self.requests = 0
        self.seconds = 0.0
        self.width = 0
        self.beams_seen = 0
        self.beams_invalid = 0
        self.first_invalid = 0

    @property
    def name(self) -> RankingName:
        """The name of the ranking after a history."""
        return "beam" if self.method is None else self.method.name

    def without_retrieval(self) -> Self:
        """The same, but requests in words are ranked as histories are."""
        return self if self.in_words is None else type(self)(self.renderer, self.search, self.context, self.method)

    def with_prompt_weights(self, weights: FusionWeights) -> Self:
        """The same, with other weights for requests in words; there must be some already."""
        assert self.in_words is not None, "requests in words have no weights"
        old = self.in_words.facts.fusion_weights
        assert old is not None, "a calibrated ranking"
        facts = replace(self.in_words.facts, fusion_weights=replace(old, prompts=asdict(weights)))
        in_words = PromptRanking(self.search, facts, self.in_words.config)
        return type(self)(self.renderer, self.search, self.context, self.method, in_words)

    @cached_property
    def exact(self) -> ExactSearch:
        """The search for the provably best items of the same model; built at its first use."""
        return make_exact(self.search)

    def prompt_ids(self, history: Sequence[int] | np.ndarray | None = None, query: str | None = None) -> Prompt:
        """The prompt of one request, in the first phrasing; as in `phrased`."""
        return self.phrased(history, query, 1)[0]

    def phrased(
        self, history: Sequence[int] | np.ndarray | None = None, query: str | None = None, phrasings: int = 1
    ) -> list[Prompt]:
        """One request in the first `phrasings` phrasings of its task, as token ids.

        Args:
            history: rows of the catalogue, oldest first; an empty one counts only without a query.
            query: plain words; item tokens and control tokens in it are taken out.
            phrasings: how many.

        Raises:
            UserError: neither is given, the query holds half of a surrogate pair, the prompt does not fit the model's
                context, or there are fewer phrasings.
        """
        values: dict[str, str] = {}
        if history is not None and (len(history) or query is None):
            values["history"] = self.renderer.history(history)
        if query is not None:
            check_texts("--prompt", query)
            values["query"] = self.renderer.request(query)
            if not values["query"]:
                raise UserError(f"--prompt {query!r} is empty: say in words what to look for.")
        if not values:
            raise UserError('Nothing to go by: give --history ID ..., --prompt "text", or both.')
        task = {1: "search" if query is not None else "sequential", 2: "personal-search"}[len(values)]
        there = len(self.renderer.templates[task].templates)
        if not 1 <= phrasings <= there:
            raise UserError(f"--phrasings {phrasings}: expected 1 to {there}, as many as {task}.yaml has.")
        prompts = [self.renderer.prompt(task, phrasing, **values) for phrasing in range(phrasings)]
        requests = self.renderer.encode_prompts(prompts)
        longest, room = max(map(len, requests)), self.context - len(self.renderer.vocabulary.ids)
        if longest > room:
            raise UserError(
                f"The request is {longest} tokens long, but the model's context leaves room for {room}; "
                "shorten --prompt."
            )
        known = [] if history is None else list(history)
        shown = self.renderer.shown(known)

        def after(items: Sequence[int]) -> Prompt:
            return self.prompt_ids([*known, *items], query)

        return [Prompt(tokens, shown, values.get("query"), after) for tokens in requests]

    def batch_width(self, k: int) -> int:
        """A number that is equal for two requests, of k and of k' answers, only if one batch with max(k, k') gives both
        what they get alone."""
        depends_on_k = self.method is not None and self.method.name in ("quota", "specgr", "session")
        return k if depends_on_k else max(k, self.search.config.beams)

    def rank(
        self,
        requests: Sequence[Sequence[int]],
        k: int,
        filters: Sequence[Filter] | None = None,
        offsets: np.ndarray | None = None,
        exact: bool = False,
    ) -> Ranking:
        """The k best items of each request (from `prompt_ids`) that its filter lets through.

        Args:
            requests: B of them.
            k: answers per request; fewer beams than that are widened to k.
            filters: per request.
            offsets: float [N], added to each item's score.
            exact: find the provably best items instead of the best that the beams reach.

        Raises:
            UserError: the model's weights are not numbers; `exact` of a model that can't.
            NotNumbersError: its weights are, its scores are not.
        """
        started = time.perf_counter()
        try:
            if self.method is not None and not exact:
                ranking = self._ranked(self.method, requests, k, filters, offsets)
            else:
                search = self.exact if exact else self.search
                ranking = search.search(requests, k, filters, offsets=offsets)
        except NotNumbersError as error:
            self._blame_weights(error)
            raise
        self.seconds += time.perf_counter() - started
        self.requests += len(requests)
        self.width = max(self.width, ranking.width)
        self.beams_seen += ranking.beams
        self.beams_invalid += ranking.invalid
        self.first_invalid += ranking.invalid_first
        return ranking

    def _ranked(
        self,
        method: RankingMethod,
        requests: Sequence[Sequence[int]],
        k: int,
        filters: Sequence[Filter] | None,
        offsets: np.ndarray | None,
    ) -> Ranking:
        """The ranking by `method`, and of requests in words by `in_words`, where there is one."""
        if self.in_words is None:
            return method.rank(requests, k, filters, offsets)
        asks = np.array([getattr(request, "query", None) is not None for request in requests], bool)
        parts = []
        for each, chosen in ((method, np.flatnonzero(~asks).tolist()), (self.in_words, np.flatnonzero(asks).tolist())):
            if len(chosen):
                own = None if filters is None else [filters[i] for i in chosen]
                parts.append((chosen, each.rank([requests[i] for i in chosen], k, own, offsets)))
        return Ranking.joined(len(requests), k, parts)

    def best(
        self,
        phrased: Sequence[Sequence[int]],
        k: int,
        allowed: np.ndarray,
        quotas: Sequence[Quota] = (),
        offsets: np.ndarray | None = None,
        exact: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of one request that may come out: items int64 [n] and scores float32 [n], best first.

        Args:
            phrased: token ids from `phrased`; the score of an item is its mean over them.
            k: answers at most; fewer come out only if there are no more.
            allowed: bool [N], the items that may come out.
            quotas: at most so many answers of each group; the walk down the ranking is exact where the ranking is.
            offsets: as in `rank`.
            exact: as in `rank`.
        """
        if offsets is not None and allowed.any():
            # What can't come out must not draw the beams either.
            offsets = np.where(allowed, offsets, offsets[allowed].min())
        # What more the beams have found serves where a group is full.
        piece = max(k, self.search.config.beams) if quotas and not exact else k
        by_place = self.method is not None and not exact and self.method.name in ("quota", "session")
        before = 0  # items of earlier pieces, whose places come first

        def ask(among: Filter) -> tuple[np.ndarray, np.ndarray]:
            nonlocal before
            ranking = self.rank(phrased, piece, [among] * len(phrased), offsets, exact)
            if len(phrased) > 1:
                return self._mean(phrased, np.unique(ranking.items[ranking.items >= 0]), piece, offsets)
            found = ranking.items[0] >= 0
            items, scores = ranking.items[0][found], ranking.scores[0][found] - before
            before += len(items) if by_place else 0
            return items, scores

        return diverse(ask, allowed, k, quotas)

    def _mean(
        self, phrased: Sequence[Sequence[int]], found: np.ndarray, k: int, offsets: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the items `found`, int64 [F], by the mean over all phrasings of their scores."""
        if not len(found):
            return found, np.empty(0, np.float32)
        # As many beams as items: nothing is pruned, each item has its score in each phrasing.
        ranking = self.rank(phrased, len(found), [Filter(allowed=found)] * len(phrased), offsets)
        by_item = np.full((len(phrased), len(found)), -np.inf, np.float32)
        phrasing, place = np.nonzero(ranking.items >= 0)
        by_item[phrasing, np.searchsorted(found, ranking.items[phrasing, place])] = ranking.scores[phrasing, place]
        mean = by_item.mean(axis=0)
        best = np.argsort(-mean, kind="stable")[:k]
        best = best[np.isfinite(mean[best])]  # a method may not rank an item in every phrasing
        return found[best], mean[best]

    def stats(self) -> dict[str, int | float | str]:
        """What was decoded so far: `ranking, beams, scoring, constraint, invalid_rate, invalid_first_rate` and
        `users_per_second`.

        `beams` are those searched with, which are at least as many as the answers asked for.
        """
        return {
            "ranking": "beam" if self.method is None else self.method.name,
            "beams": self.width,
            "scoring": self.search.config.scoring,
            "constraint": self.search.config.constraint,
            "invalid_rate": self.beams_invalid / self.beams_seen if self.beams_seen else 0.0,
            "invalid_first_rate": self.first_invalid / self.requests if self.requests else 0.0,
            "users_per_second": round(self.requests / self.seconds, 3) if self.seconds else 0.0,
        }

    def _blame_weights(self, error: NotNumbersError) -> None:
        """Raise UserError if the weights are to blame for scores that are not numbers: those the user can mend."""
        for name, parameter in self.search.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise UserError(
                    f"{error}, for the model's weights {name} hold NaN or infinity: the bundle is damaged or its "
                    "training diverged; copy it again, or train with a smaller --train.learning_rate."
                ) from None
