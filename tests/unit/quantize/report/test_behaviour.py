import numpy as np
import pytest
from scipy.sparse import csr_array

from llmrec.collaborative.behaviour import Behaviour
from llmrec.quantize.report.figures import companions, embedding_hit_rate


def test_by_hand():
    """Item 0 goes with 1, 2, 3 and 4, of which it has 1 and 3 near; item 4 with 0 only, which is near."""
    pairs = np.zeros((6, 6), np.int64)
    for first, second, times in [(0, 1, 5), (0, 2, 1), (0, 3, 1), (0, 4, 2)]:
        pairs[first, second] = pairs[second, first] = times
    behaviour = Behaviour(np.ones(6, np.int64), csr_array(pairs))
    together = companions(behaviour, np.array([0, 4]))
    assert [known.tolist() for known in together] == [[1, 2, 3, 4], [0]]
    assert embedding_hit_rate(together, np.array([[1, 5, 3], [0, 5, 2]])) == pytest.approx((2 / 4 + 1) / 2)
    assert embedding_hit_rate(together, np.array([[5], [5]])) == 0
