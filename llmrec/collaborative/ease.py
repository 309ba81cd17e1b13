"""EASE (Steck, WWW 2019, arXiv 1905.03375): a linear item-to-item model with a closed form.

    P = (X^T X + regularization I)^-1        B = -P / diag(P), diagonal 0

X [U, N] is 1 where a user has events of an item, else 0. The inverse takes 8 N^2 bytes (1.2 GB for 12,101 items) and
N^3 operations.
"""

import numpy as np

from llmrec.collaborative.base import BaselineSystem, incidence
from llmrec.errors import UserError

MOST_ITEMS = 30_000
"""Maximum number of items; the inverse for more takes over 7 GB."""


class EASE(BaselineSystem):
    """The score of an item is the sum of its weights B over the history, with more weight for later items.

    Args:
        regularization: added to the diagonal of X^T X.
        recency: weight of a history item relative to the one after it.
    """

    name = "ease"

    def __init__(self, regularization: float = 120.0, recency: float = 0.8) -> None:
        self.regularization = regularization
        self.recency = recency

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        if n_items > MOST_ITEMS:
            raise UserError(
                f"--evaluate.baselines ease: {n_items} items, expected at most {MOST_ITEMS}; its matrix has a row "
                "and a column per item. Leave ease out."
            )
        users = incidence(train_sequences, [np.ones(len(s)) for s in train_sequences], n_items).sign()
        gram = np.asarray((users.T @ users).todense(), np.float64)
        gram[np.diag_indices(n_items)] += self.regularization
        inverse = np.linalg.inv(gram)
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0.0)
        self.weights = weights.astype(np.float32)

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        recency = [self.recency ** np.arange(len(history))[::-1] for history in histories]
        return np.asarray(incidence(histories, recency, len(self.popularity)) @ self.weights, np.float32)
