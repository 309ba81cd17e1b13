"""Item vectors smoothed over the graph of users and items, by LightGCN's propagation (arXiv 2002.02126).

MMGRec (arXiv 2404.16555) quantizes vectors that a graph network has spread over this graph, so that items which the
same users take get similar codes. Here nothing is trained. R [U, N] is 1 where a user took an item, and B is R with
each entry divided by sqrt(items of the user * users of the item). A table X [N, D] of vectors becomes the mean of X,
B^T B X, (B^T B)^2 X, ..., one term per round trip from items to users and back.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from llmrec.data.interactions import Interactions
from llmrec.data.sequences import item_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def user_graph(log: Interactions, item_ids: Sequence[str]) -> "csr_array":
    """B of the events of `log`, sorted by user: float32 [U, N] with N `item_ids`; an event counts once per user.

    Raises:
        UserError: an item of the log is not in `item_ids`.
    """
    from scipy.sparse import coo_array, diags_array

    items = item_rows(log.frame["item_id"], pl.Series(item_ids, dtype=pl.String))
    users = log.frame["user_id"].rle_id().to_numpy().astype(np.int64)
    shape = (int(users.max(initial=-1)) + 1, len(item_ids))
    taken = coo_array((np.ones(len(items), np.float32), (users, items)), shape).tocsr()
    taken.data[:] = 1
    by_user, by_item = (np.maximum(taken.sum(axis=axis), 1) ** -0.5 for axis in (1, 0))
    return (diags_array(by_user) @ taken @ diags_array(by_item)).tocsr().astype(np.float32)


def smoothed(vectors: np.ndarray, graph: "csr_array", round_trips: int, normalize: bool) -> np.ndarray:
    """Vectors, float32 [N, D], smoothed over `graph`, B [U, N]; an item without events keeps its vector.

    Args:
        vectors: float32 [N, D].
        graph: of `user_graph`.
        round_trips: number of steps from items to users and back.
        normalize: scale the smoothed vectors to length 1.
    """
    total, step = vectors.copy(), vectors
    for _ in range(round_trips):
        step = graph.T @ (graph @ step)
        total += step
    total /= round_trips + 1
    if normalize:
        total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    lonely = np.diff(graph.tocsc().indptr) == 0
    total[lonely] = vectors[lonely]
    return total
