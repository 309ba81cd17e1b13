"""Are items that are taken together near in embedding space? EmbHR of FORGE (arXiv 2509.20904)."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llmrec.data.behaviour import Behaviour


def companions(behaviour: "Behaviour", rows: np.ndarray) -> list[np.ndarray]:
    """Items that occur together with each of the items `rows` [Q] in the training log."""
    pairs = behaviour.pairs
    return [pairs.indices[pairs.indptr[row] : pairs.indptr[row + 1]] for row in rows]


def embedding_hit_rate(companions: list[np.ndarray], neighbours: np.ndarray) -> float:
    """Mean share of an item's companions (Q arrays, none empty) among its nearest neighbours [Q, k]."""
    shares = [np.isin(known, near).mean() for known, near in zip(companions, neighbours, strict=True)]
    return float(np.mean(shares))
