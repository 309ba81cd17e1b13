"""Our own ranking: beams, dense head, texts and collaborative experts find candidates, and all of them score each one.

A product of experts with learnt exponents (Hinton 2002); `calibrate` learns them. Beams tell warm items apart. Only the
first codes of a cold item mean something to a model; so its later codes weigh little, and its text weighs more. Both
kinds compete in one ranking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch

from llmrec.collaborative.base import TEXT_DIRECTION
from llmrec.collaborative.fusion import FusionWeights
from llmrec.collaborative.ranker import LISTED, LearnedRanker, Lists
from llmrec.decode.config import RankingName
from llmrec.decode.filters import Filter
from llmrec.decode.rankings.base import RankingMethod, allowed, as_array, candidates, top
from llmrec.decode.rankings.streams import merged
from llmrec.decode.search import Offsets, PrefilledBatch, Prompt, Ranking
from llmrec.errors import UserError

FEATURES = ("first_code", "later_codes", "dense", "text")
"""Of the language model: log-probability of the first code and of those after it, of the item by the dense head, and
the cosine of the item's text with the history's. Those of the experts follow, and of a second stream its
log-probability of the item."""


@dataclass(frozen=True)
class Scored:
    """The candidates of B prompts and their features.

    Attributes:
        items: int64 [B, M], rows of the catalogue, -1 at the end.
        features: float32 [B, M, F], of `FusionRanking.features`.
        beams: the ranking of the beams alone.
        streams: the ranking of two streams by the better log-probability, where there are two.
    """

    items: np.ndarray
    features: np.ndarray
    beams: Ranking
    streams: Ranking | None = None


class FusionRanking(RankingMethod):
    """Candidates are the best of the beams, the dense head, the texts and the experts, warm and cold items apart.

    With a second stream also the best of its beams.
    """

    name: RankingName = "fusion"

    def _rank(
        self, prefilled: PrefilledBatch, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None
    ) -> Ranking:
        found = self.scored(prefilled, k, filters, offsets)
        is_cold, scores = self.facts.is_cold[found.items], self.fused(found, self.weights)
        if self.ranker is not None:
            lengths = np.array([len(prompt.history) for prompt in cast(list[Prompt], prefilled.prompts)])
            scores = self.ranker.reorder(scores, Lists.best(scores, found.features, is_cold, lengths))
        scores = scores + self.config.cold_bonus * is_cold
        if offsets is not None:
            scores = scores + offsets.items[found.items]
        scores = scores.astype(np.float32)
        ranking, beams = top(scores, k, found.items), found.beams
        return Ranking(ranking.items, ranking.scores, beams.width, beams.beams, beams.invalid, beams.invalid_first)

    def fused(self, found: Scored, weights: FusionWeights) -> np.ndarray:
        """The weighted sums of candidates' features, float32 [B, M]; -inf where there is no candidate."""
        scores = weights.scores(found.features, self.facts.is_cold[found.items])
        return np.where(found.items >= 0, scores, -np.inf).astype(np.float32)

    @cached_property
    def ranker(self) -> LearnedRanker | None:
        """What puts the best items into a learned order, where the weights have one.

        Raises:
            UserError: it is damaged.
        """
        if self.weights.learned is None:
            return None
        try:
            return LearnedRanker.of(self.weights.learned)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"the learned order of the fusion is damaged: {error}; calibrate it again.") from None

    @property
    def features(self) -> list[str]:
        """Names of the features of an item."""
        experts = [] if self.facts.experts is None else self.facts.experts.names
        second = [] if self.facts.behaviour is None else ["behaviour"]
        return [*FEATURES, *(f"experts.{name}" for name in experts), *second]

    @property
    def weights(self) -> FusionWeights:
        """The calibrated weights.

        Raises:
            UserError: the bundle has none, or those of other features.
        """
        if self.facts.fusion_weights is None:
            raise UserError(
                "--decode.ranking fusion: this bundle has not been calibrated; do so with Recommender.calibrate on "
                "validation cases (`llmrec run` does), or choose another."
            )
        if list(self.facts.fusion_weights.features) != self.features:
            raise UserError(
                f"--decode.ranking fusion: weights of {', '.join(self.facts.fusion_weights.features)}, but this bundle "
                f"has {', '.join(self.features)}; calibrate it again."
            )
        return self.facts.fusion_weights

    def scored(
        self, prefilled: PrefilledBatch, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None = None
    ) -> Scored:
        """The candidates for k answers to each prompt, which the filters allow, and their features.

        Offsets are added to the scores that choose the candidates; the features do not contain them.
        """
        width = max(k, self.config.beams)
        dense = self.dense_scores(prefilled)
        histories = [prompt.history for prompt in cast(list[Prompt], prefilled.prompts)]
        texts = self._text_scores(histories)
        mask = allowed(filters, *dense.shape)
        beams = self.search.rank(prefilled, width, filters, offsets=offsets)
        experts, rankings, known = self.facts.experts, [dense, texts], [dense, texts]
        if experts is not None:
            values = experts.values(histories)
            rankings.append(experts.fused(values))
            known += list(values)
        listed = LISTED if experts is not None and experts.config.learned else 0
        items = self._candidates(beams, rankings, width, mask, offsets, listed)
        stream = self.facts.behaviour
        if stream is None:
            return Scored(items, self._features(prefilled, items, known), beams)
        reading = stream.read(prefilled.prompts)
        second = stream.rank(reading, width, filters, offsets)
        items = candidates(items, second.items)
        features = self._features(prefilled, items, known)
        features = np.append(features, stream.log_probabilities(reading, items)[..., None], axis=-1)
        return Scored(items, features, beams, merged(beams, second, width))

    def _candidates(
        self,
        beams: Ranking,
        scores: Sequence[np.ndarray],
        width: int,
        mask: np.ndarray,
        offsets: Offsets | None,
        listed: int = 0,
    ) -> np.ndarray:
        """The beams and the best of each of several scores of all items, float32 [B, N], warm and cold items apart:
        int64 [B, M], -1 at the end of a row. `mask`, bool [B, N], has the items that may come out.

        The `listed` best of the last score come too, so that a learned order reaches as deep as in the experts alone.
        """
        bonus = 0.0 if offsets is None else offsets.items
        open_scores = [np.where(mask, each + bonus, -np.inf) for each in scores]
        found = [beams.items, top(open_scores[-1], listed).items]
        for side in (self.facts.is_cold, ~self.facts.is_cold):
            found += [top(np.where(side, each, -np.inf), width).items for each in open_scores]
        return candidates(*found)

    def _features(self, prefilled: PrefilledBatch, items: np.ndarray, scores: Sequence[np.ndarray]) -> np.ndarray:
        """The two parts of the candidates' semantic IDs and each of several scores of all items, float32 [B, M, F]."""
        codes = self.tree.code_scores(prefilled, items)
        rows = np.arange(len(items))[:, None]
        parts = [codes[..., 0], codes[..., 1:].sum(axis=2), *(each[rows, items] for each in scores)]
        return np.stack(parts, axis=-1)

    def _text_scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Cosine of each item's text with those of each history, where recent items weigh more: float32 [B, N]."""
        texts = self.dense.texts
        users = torch.zeros((len(histories), texts.shape[1]), device=texts.device)
        for row, history in enumerate(histories):
            items = torch.from_numpy(history).to(texts.device)
            ages = torch.arange(len(items) - 1, -1, -1, device=texts.device)
            users[row] = (TEXT_DIRECTION**ages) @ texts[items]
        return as_array(torch.nn.functional.normalize(users, dim=1) @ texts.T)
