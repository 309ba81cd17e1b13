"""How far two results may lie apart, and why: the one place for it. `tests/README.md` has the table.

A tolerance stands for a reason, not for a test. Where the code path, the shapes, the process and the number of threads
are the same, results are equal bit for bit, and tests say `==` or `assert_array_equal`.
"""

from collections.abc import Sequence

import numpy as np

SUMS = 1e-5
"""Absolute. float32 values of size 1, such as cosines, probabilities and one code's log-probability, whose sums were
made in another order: another batch, block or processor. A rounding error is 6e-8; some hundred may add up."""

SCORES = 1e-4
"""Absolute. float32 log-probabilities of whole items, of size 10 to 30, after a forward pass of other shapes: a prompt
alone or in a batch, token by token or at once, with a cache or without, an adapter merged or beside the weights."""

DENSE = 1e-3
"""Absolute. float32 scores in which a cosine is divided by the dense head's temperature or 100 is added: an error of
`SUMS` grows with them."""

CURVES = 1e-3
"""Relative. Losses, and gradients, of a training whose batches are cut in another way: packed or padded, accumulated or
at once, checkpointed or not."""

BFLOAT16 = 0.05
"""Absolute. What `auto` may compute in bfloat16, which has 8 bits, where the processor multiplies it faster."""


def assert_same_ranking(
    items: Sequence[object], scores: Sequence[float], other_items: Sequence[object], other_scores: Sequence[float]
) -> None:
    """Two rankings of one request by other paths, best first: equal scores, and items in the same order but for ties.

    Scores are equal within `SCORES`. Items whose scores are that close may have changed places, and at the end of the
    list one may have taken another's place.
    """
    assert len(items) == len(other_items) == len(set(items)) == len(set(other_items))
    np.testing.assert_allclose(scores, other_scores, rtol=0, atol=SCORES)
    place = {item: at for at, item in enumerate(other_items)}
    for at, item in enumerate(items):
        there = other_scores[place.get(item, -1)]  # an item that is missing may only tie with the last one
        assert abs(scores[at] - there) <= 2 * SCORES, f"place {at}: {item!r}, there {other_items[at]!r}"
