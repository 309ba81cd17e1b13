"""Item vectors from behaviour alone: the co-occurrences' pointwise mutual information, factorised.

Skip-gram with negative sampling learns a shifted form of the same matrix (Levy & Goldberg, NIPS 2014); LETTER
(arXiv 2405.07314) aligns its semantic IDs with vectors of this kind.
"""

from typing import TYPE_CHECKING

import numpy as np

from llmrec.data.behaviour import Behaviour
from llmrec.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

LEAST_SHARE = 1e-6
"""Length of a projected row, as a share of the row's own, below which it is rounding, not content."""


def collaborative_vectors(behaviour: Behaviour, dim: int, seed: int) -> np.ndarray:
    """Unit vectors (float32 [N, dim]), close where two items are taken together more than chance would have it.

    Zeros for an item without such company, or whose company the `dim` leading dimensions leave out.

    Raises:
        UserError: `dim` is not below the number of items.
    """
    from scipy.sparse.linalg import norm
    from sklearn.decomposition import TruncatedSVD

    items = len(behaviour.counts)
    if dim >= items:
        raise UserError(
            f"{items} items cannot give collaborative vectors of {dim} dimensions; "
            f"set --tokenize.rq_vae.latent below {items}"
        )
    information = positive_information(behaviour)
    vectors = np.zeros((items, dim), np.float32)
    if information.nnz == 0:
        return vectors
    projected = TruncatedSVD(dim, random_state=seed).fit_transform(information)
    lengths = np.linalg.norm(projected, axis=1)
    known = lengths > LEAST_SHARE * norm(information, axis=1)
    vectors[known] = projected[known] / lengths[known, None]
    return vectors


def positive_information(behaviour: Behaviour) -> "csr_array":
    """max(0, log p(i, j) / (p(i) p(j))) of the pairs, float64 [N, N]; p(i) is an item's share of all pairs."""
    from scipy.sparse import coo_array

    pairs = behaviour.pairs.tocoo()
    totals = np.bincount(pairs.row, pairs.data, minlength=len(behaviour.counts))
    information = np.log(pairs.data * totals.sum() / (totals[pairs.row] * totals[pairs.col]))
    more = information > 0
    return coo_array((information[more], (pairs.row[more], pairs.col[more])), pairs.shape).tocsr()
