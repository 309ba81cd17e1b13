"""Requests in plain words, each with the item that it asks for: a ranking learns from them and is measured by them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from llmrec.data import Catalog
from llmrec.decode.ranker import ItemRanker


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

    @classmethod
    def of(cls, held_out: Mapping[str, Sequence[str]], catalog: Catalog, ranker: ItemRanker) -> Self:
        """The held-out intentions (item id -> texts) as queries, the same for all systems.

        Item tokens and control tokens are removed, each text is cut to half of the model's context, and a text that is
        then empty is left out.
        """
        rows = [catalog.index[item] for item, texts in held_out.items() for _ in texts]
        texts = ranker.renderer.clip([text for texts in held_out.values() for text in texts], ranker.context // 2)
        asked = [at for at, text in enumerate(texts) if ranker.renderer.request(text)]
        return cls([texts[at] for at in asked], np.array([rows[at] for at in asked], dtype=np.int64))

    def where(self, chosen: np.ndarray) -> Self:
        """The queries at the places `chosen`, int [m]."""
        return type(self)([self.texts[row] for row in chosen], self.targets[chosen])

    def sample(self, n: int, seed: int) -> Self:
        """At most n random queries, drawn without replacement with `seed`; their order stays."""
        if n >= len(self):
            return self
        return self.where(np.sort(np.random.default_rng(seed).choice(len(self), size=n, replace=False)))
