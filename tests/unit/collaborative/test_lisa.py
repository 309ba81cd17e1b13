"""LISA: its counts, its attention and its codes by loops, and that it learns."""

import math

import numpy as np
import pytest
import torch

from llmrec.collaborative.config import LISAConfig, TableConfig
from llmrec.collaborative.lisa import CHUNK, LISA, HistogramNetwork, decayed_counts
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.systems import fit_baselines

SIZES = LISAConfig(hidden_size=8, codebooks=3, codewords=5, max_history=6, dropout=0.0, decay=0.3)


def network(decay: float = 0.3) -> HistogramNetwork:
    torch.manual_seed(0)
    made = HistogramNetwork(12, LISAConfig(hidden_size=8, codebooks=3, codewords=5, max_history=6, decay=decay))
    return made.eval()


@pytest.mark.parametrize("length", [1, CHUNK, CHUNK + 7, 3 * CHUNK])
def test_decayed_counts_by_a_loop(length: int) -> None:
    values = torch.rand(2, length, 3, generator=torch.Generator().manual_seed(0))
    total, expected = torch.zeros(2, 3), []
    for step in range(length):
        total = math.exp(-0.3) * total + values[:, step]
        expected.append(total)
    torch.testing.assert_close(decayed_counts(values, 0.3), torch.stack(expected, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decayed_counts(values, 0.0), values.cumsum(1), rtol=1e-4, atol=1e-4)


def test_codes_are_residual_and_their_sums_are_the_vectors() -> None:
    made, vectors = network(), torch.randn(7, 8, generator=torch.Generator().manual_seed(1))
    chosen, sums = made.quantize(vectors)
    for row, vector in enumerate(vectors):
        rest, total = vector, torch.zeros(8)
        for level, codebook in enumerate(made.codebooks):
            code = (codebook @ (made.similarity.T @ rest)).argmax()
            assert chosen[row, level].argmax() == code
            total, rest = total + codebook[code], rest - codebook[code]
        torch.testing.assert_close(sums[row], total, atol=1e-6, rtol=1e-4)


def test_it_is_softmax_attention_over_the_codewords_of_the_items() -> None:
    made, codes = network(decay=0.0), torch.tensor([[[0, 1, 2], [3, 1, 4], [0, 0, 2], [0, 1, 2]]])
    chosen = torch.nn.functional.one_hot(codes, 5).float()
    expected = torch.zeros(1, 4, 8)
    for book in range(3):
        words = made.codebooks[book][codes[0, :, book]]
        scores = (words @ made.query[book]) @ (words @ made.key[book]).T / 8**0.5
        mask = torch.ones(4, 4).triu(1).bool()
        expected[0] += scores.masked_fill(mask, -torch.inf).softmax(1) @ (words @ made.value[book])
    torch.testing.assert_close(made.attend(chosen), expected, atol=1e-6, rtol=1e-4)


def test_nothing_sees_the_future() -> None:
    made = network()
    long, short = (made([np.array(rows)]) for rows in ([3, 1, 4, 1, 5], [3, 1, 4]))
    torch.testing.assert_close(long[:3], short)


def walk(start: int, length: int) -> np.ndarray:
    return ((start + np.arange(length)) % 10).astype(np.int32)


def test_it_learns_a_cycle_and_comes_back_from_a_file() -> None:
    cases = EvalExamples(np.arange(10), [walk(start, 3) for start in range(10)], (np.arange(10) + 3) % 10)
    config = LISAConfig(
        hidden_size=32, codebooks=4, codewords=8, max_history=6, batch_size=16, learning_rate=0.01, epochs=60
    )
    train = [walk(start, 4 + start % 3) for start in range(10)] * 4
    (system,) = fit_baselines(EvaluateConfig(baselines=["lisa"], lisa=config, seed=3), train, 12, cases)
    assert isinstance(system, LISA)
    assert np.mean(system.ranks(cases, filter_seen=True) == 1) > 0.8
    again = LISA(config, cases)
    again.restore(system.arrays(), np.array([1] * 10 + [0] * 2), None)
    histories = [walk(4, 3), walk(7, 2)]
    np.testing.assert_array_equal(again.scores(histories), system.scores(histories))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": 2}, "evaluate.lisa.layers 2: LISA has one layer without heads; leave layers and heads out"),
        ({"codewords": 1}, "evaluate.lisa.codewords 1: expected at least 2"),
        ({"table": TableConfig("sum")}, "evaluate.lisa.table.join sum: LISA has codewords of its own"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LISAConfig(**changes)
