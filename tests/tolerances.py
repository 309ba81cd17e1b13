"""All tolerances of the tests, each with its reason. `tests/README.md` has the table.

A tolerance is for a reason, not for a test. If the code path, the shapes, the process and the number of threads are the
same, results are equal bit for bit, and tests use `==` or `assert_array_equal`.
"""

from collections.abc import Sequence

import numpy as np

SUMS = 1e-5
"""Absolute. For float32 values of size 1, such as cosines, probabilities and the log-probability of one code, that were
summed in another order: in another batch or block, or on another processor. A rounding error is 6e-8; some hundred may
add up."""

SCORES = 1e-4
"""Absolute. For float32 log-probabilities of items, of size 10 to 30, from forward passes with other shapes: a prompt
alone or in a batch, token by token or at once, with or without a cache, with an adapter merged or separate."""

DENSE = 1e-3
"""Absolute. For float32 scores in which a cosine is divided by the dense head's temperature, or 100 is added. Both make
an error of size `SUMS` larger."""

CURVES = 1e-3
"""Relative. For losses and gradients of a training whose batches are computed in another way: packed or padded,
accumulated or at once, with or without checkpointing."""

BFLOAT16 = 0.05
"""Absolute. For what `auto` computes in bfloat16 (8 bits of precision) on processors that multiply it faster."""


def assert_same_ranking(
    items: Sequence[object], scores: Sequence[float], other_items: Sequence[object], other_scores: Sequence[float]
) -> None:
    """Assert that two code paths give the same ranking of a request, best first, except for ties.

    Scores must be equal within `SCORES`. Items with scores so close may change places, and an item at the end of the
    list may be replaced by another one.
    """
    assert len(items) == len(other_items) == len(set(items)) == len(set(other_items))
    np.testing.assert_allclose(scores, other_scores, rtol=0, atol=SCORES)
    place = {item: at for at, item in enumerate(other_items)}
    for at, item in enumerate(items):
        there = other_scores[place.get(item, -1)]  # an item may be missing only if it ties with the last one
        assert abs(scores[at] - there) <= 2 * SCORES, f"place {at}: {item!r}, there {other_items[at]!r}"
