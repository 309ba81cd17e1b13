"""Counts of a log: the events of each item, and how often two items occur together.

Use the training part only. Otherwise what is learned from the counts has seen the targets of the evaluation.
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
"""Two events of a user count as a pair if they are at most so many steps apart in the user's sequence."""


@dataclass(frozen=True, eq=False)
class Behaviour:
    """Events and co-occurrences of N items."""

    counts: np.ndarray
    """int64 [N], events per item"""
    pairs: "csr_array"
    """int64 [N, N], how often two items are within the window in one user's sequence; symmetric, zero diagonal"""

    @classmethod
    def from_log(cls, log: Interactions, item_ids: Sequence[str], window: int = WINDOW) -> Self:
        """Count the events of `log`, and its pairs of events at most `window` steps apart.

        Args:
            log: the training events, sorted by user and time.
            item_ids: ids of the N items; item n has row n.
            window: maximum number of steps between the two events of a pair.

        Raises:
            UserError: an item of the log is not in `item_ids`.
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
"""A projected row is only rounding error if its length is not above this share of the original row's length."""


def collaborative_vectors(
    behaviour: Behaviour, dim: int, seed: int, flag: str = "--tokenize.rq_vae.latent"
) -> np.ndarray:
    """Collaborative vectors of items: close if two items occur together more often than by chance.

    They are the rows of `positive_information`, projected to `dim` dimensions by a truncated SVD.

    Args:
        behaviour: counts of N items.
        dim: number of dimensions.
        seed: seed of the SVD.
        flag: the setting that gives `dim`, for the message.

    Returns:
        float32 [N, dim], rows of length 1. A row is zero if the item occurs with no other item more often than by
        chance, or if the `dim` dimensions have no part of its row.

    Raises:
        UserError: `dim` is not below the number of items.
    """
    from scipy.sparse.linalg import norm
    from sklearn.decomposition import TruncatedSVD

    n_items = len(behaviour.counts)
    if dim >= n_items:
        raise UserError(
            f"{flag} {dim}: {n_items} items have collaborative vectors of fewer dimensions; set it below {n_items}."
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
    """max(0, log(p(i, j) / (p(i) p(j)))) of the pairs, float64 [N, N]; p(i) is the share of row i in all pairs."""
    from scipy.sparse import coo_array

    pairs = behaviour.pairs.tocoo()
    totals = np.bincount(pairs.row, pairs.data, minlength=len(behaviour.counts))
    information = np.log(pairs.data * totals.sum() / (totals[pairs.row] * totals[pairs.col]))
    more = information > 0
    return coo_array((information[more], (pairs.row[more], pairs.col[more])), pairs.shape).tocsr()
