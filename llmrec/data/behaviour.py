"""What a log says about the items themselves: how often each was taken, and which were taken together.

Give it the training part alone, or what is learned from it will have seen the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import polars as pl

from llmrec.data.interactions import Interactions
from llmrec.data.split import item_rows

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
