"""Our own ranking of requests in plain words: the model, BM25 and the encoder find candidates, and all score each one.

A model of item tokens knows what is bought together; BM25 knows the words of a text, and the encoder what they mean.
The weights are a conditional logit as those of `FusionRanking`, learnt on requests of their own.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
from sklearn.preprocessing import normalize

from llmrec.collaborative.fusion import FusionWeights
from llmrec.decode.filters import Filter
from llmrec.decode.rankings.base import allowed, as_array
from llmrec.decode.rankings.fusion import FusionRanking, Scored
from llmrec.decode.search import Offsets, PrefilledBatch, Prompt
from llmrec.errors import UserError
from llmrec.index.text import TextIndex


class PromptRanking(FusionRanking):
    """Candidates are the best of the beams, the dense head, BM25 and the encoder, warm and cold items apart."""

    @property
    def texts(self) -> TextIndex:
        """What finds the items by words."""
        assert self.facts.texts is not None, "a ranking of requests in words needs the items' texts"
        return self.facts.texts

    @property
    def features(self) -> list[str]:
        """Of the language model, after the prompt; the BM25 score of the item's text; and, where the encoder may be
        loaded, the cosine of the vectors of the request and of the item's text."""
        encoder = [] if self.texts.encode is None else ["encoder"]
        return ["first_code", "later_codes", "dense", "bm25", *encoder]

    @property
    def weights(self) -> FusionWeights:
        """The calibrated weights for requests in words.

        Raises:
            UserError: there are none, they are damaged, or they are of other features.
        """
        raw = None if self.facts.fusion_weights is None else self.facts.fusion_weights.prompts
        if raw is None:
            raise UserError("requests in words: the fusion has not been calibrated for them")
        try:
            return FusionWeights.of(raw, self.features)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"requests in words: the weights of the fusion do not fit: {error}; calibrate again."
            ) from None

    def scored(
        self, prefilled: PrefilledBatch, k: int, filters: Sequence[Filter] | None, offsets: Offsets | None = None
    ) -> Scored:
        """As `FusionRanking.scored`; every prompt has a query."""
        width = max(k, self.config.beams)
        queries = [str(prompt.query) for prompt in cast(list[Prompt], prefilled.prompts)]
        dense, bm25, cosines = self.dense_scores(prefilled), self.texts.bm25.scores(queries), []
        if self.texts.encode is not None:
            vectors = normalize(np.asarray(self.texts.encode(queries), np.float32))
            cosines.append(vectors @ as_array(self.dense.texts).T)
        beams = self.search.rank(prefilled, width, filters, offsets=offsets)
        mask = allowed(filters, *dense.shape)
        items = self._candidates(beams, [dense, bm25, *cosines], width, mask, offsets)
        found = np.where(np.isneginf(bm25), 0, bm25)  # an item without any word of the request is no candidate of BM25
        return Scored(items, self._features(prefilled, items, [dense, found, *cosines]), beams)
