"""What a log says about the items themselves: how often each was taken, and which were taken together.

Give it the training part alone, or what is learned from it will have seen the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import polars as pl

from llmrec.data.interactions import Interactions
from llmrec.data.sequences import item_rows
from llmrec.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

WINDOW = 5
"""Steps of a user's sequence within which two events count as together."""


@dataclass(frozen=True, eq=False)
class Behaviour:
    """Events and co-occurrences of N items."""

    counts: np.ndarray
    """int64 [N], events per item"""
    pairs: "csr_array"
    """int64 [N, N], how often two items stand within the window of one user's sequence; symmetric, zero diagonal"""

    @classmethod
    def from_log(cls, log: Interactions, item_ids: Sequence[str], window: int = WINDOW) -> Self:
        """Count the events of `log`, and its pairs of events at most `window` steps apart, over the rows of `item_ids`.

        Raises:
            UserError: for an item of the log that is not among `item_ids`.
        """
        from scipy.sparse import coo_array, csr_array

        items = item_rows(log.frame["item_id"], pl.Series(item_ids, dtype=pl.String))
        users = log.frame["user_id"].rle_id().to_numpy()
        shape = (len(item_ids), len(item_ids))
        pairs = csr_array(shape, dtype=np.int64)
        for step in range(1, window + 1):
            first, second = items[:-step], items[step:]
            together = (users[:-step] == users[step:]) & (first != second)
            ones = np.ones(int(together.sum()), np.int64)
            pairs = pairs + coo_array((ones, (first[together], second[together])), shape).tocsr()
        return cls(np.bincount(items, minlength=len(item_ids)).astype(np.int64), (pairs + pairs.T).tocsr())


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

    n_items = len(behaviour.counts)
    if dim >= n_items:
        raise UserError(
            f"{n_items} items cannot give collaborative vectors of {dim} dimensions; "
            f"set --tokenize.rq_vae.latent below {n_items}"
        )
    information = positive_information(behaviour)
    vectors = np.zeros((n_items, dim), np.float32)
    if information.nnz == 0:
        return vectors
    projected = TruncatedSVD(dim, random_state=seed).fit_transform(information)
    lengths = np.linalg.norm(projected, axis=1)
    in_reach = lengths > LEAST_SHARE * norm(information, axis=1)
    vectors[in_reach] = projected[in_reach] / lengths[in_reach, None]
    return vectors


def positive_information(behaviour: Behaviour) -> "csr_array":
    """max(0, log p(i, j) / (p(i) p(j))) of the pairs, float64 [N, N]; p(i) is an item's share of all pairs."""
    from scipy.sparse import coo_array

    pairs = behaviour.pairs.tocoo()
    totals = np.bincount(pairs.row, pairs.data, minlength=len(behaviour.counts))
    information = np.log(pairs.data * totals.sum() / (totals[pairs.row] * totals[pairs.col]))
    more = information > 0
    return coo_array((information[more], (pairs.row[more], pairs.col[more])), pairs.shape).tocsr()
