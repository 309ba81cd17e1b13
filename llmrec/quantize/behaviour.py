"""A second set of semantic IDs, made of behaviour: the first codes of items that are taken together are equal.

EAGER (Wang et al., KDD 2024, arXiv 2406.14017) has two sets of codes, of the items' texts and of their vectors in a
recommender (DIN). Here the vectors are those of `collaborative_vectors`, a factorization of the co-occurrences.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from llmrec.collaborative.behaviour import Behaviour, collaborative_vectors
from llmrec.console import get_logger
from llmrec.errors import UserError
from llmrec.quantize.collisions import resolve_collisions
from llmrec.quantize.config import TokenizeConfig
from llmrec.quantize.methods import quantizer_class

log = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class BehaviourCodes:
    """The second semantic IDs of N items, some of which have none.

    Attributes:
        codes: int32 [N, L]; the row of an item without such an ID is -1.
        level_sizes: the number of codes of each of the L levels.

    Raises:
        ValueError: a code is outside its level.
    """

    codes: np.ndarray
    level_sizes: list[int]

    def __post_init__(self) -> None:
        least = np.where(self.known, 0, -1)[:, None]
        if (self.codes < least).any() or (self.codes >= np.where(self.known[:, None], self.level_sizes, 0)).any():
            raise ValueError(f"codes of behaviour outside levels of {self.level_sizes} codes")

    @classmethod
    def fit(cls, config: TokenizeConfig, behaviour: Behaviour) -> Self:
        """Make the semantic IDs of the items that occur with another one more often than by chance.

        Args:
            config: method, levels, codes, collisions, and in `behaviour` the dimensions of the vectors.
            behaviour: the events and pairs of N items in the training log.

        Raises:
            UserError: there are no more items than dimensions, or fewer different vectors than codes.
        """
        counts = behaviour.counts
        vectors = collaborative_vectors(behaviour, config.behaviour, config.seed, "--tokenize.behaviour")
        known = np.asarray(vectors.any(axis=1))
        log.info("%d of %d items have semantic IDs of behaviour", known.sum(), len(known))
        # The vectors are those of LETTER's alignment already, and these codes do not speak of texts.
        alone = replace(config.rq_vae, loss=replace(config.rq_vae.loss, collaborative=0.0, words=0.0))
        own = replace(config, rq_vae=alone)
        try:
            quantizer = quantizer_class(own.method)(own).fit(vectors[known], None)
            found = quantizer.assign(vectors[known])
            sizes, x = quantizer.level_sizes, vectors[known]
            found, sizes = resolve_collisions(own.collisions, found, sizes, quantizer, x, counts[known])
        except UserError as error:
            raise UserError(f"--tokenize.behaviour {config.behaviour}: {error}") from None
        codes = np.full((len(known), found.shape[1]), -1, np.int32)
        codes[known] = found
        return cls(codes, sizes)

    @property
    def known(self) -> np.ndarray:
        """bool [N]: the items that have such an ID."""
        return np.asarray(self.codes[:, 0] >= 0)

    def of_rows(self, rows: np.ndarray) -> Self:
        """The semantic IDs of other items: int64 [n], their present rows, or -1 for an item that is new."""
        return replace(self, codes=np.where(rows[:, None] >= 0, self.codes[rows], -1).astype(np.int32))
