"""BSARec: its frequency filter by hand, and that it learns what SASRec learns."""

import numpy as np
import pytest
import torch

from llmrec.collaborative.bsarec import BSARec, low_pass
from llmrec.collaborative.config import BSARecConfig
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError

ITEMS = 12
SMALL = BSARecConfig(hidden_size=16, layers=1, dropout=0.1, max_history=6, batch_size=16, learning_rate=0.02, epochs=30)


def walk(start: int, length: int) -> np.ndarray:
    """Items in a cycle of ten, of which 10 and 11 are no part."""
    return ((start + np.arange(length)) % 10).astype(np.int32)


def examples(length: int) -> EvalExamples:
    histories = [walk(start, length) for start in range(10)]
    return EvalExamples(np.arange(10), histories, np.array([walk(start, length + 1)[-1] for start in range(10)]))


@pytest.fixture(scope="module")
def system() -> BSARec:
    train = [walk(start, 4 + start % 3) for start in range(10)] * 4
    return BSARec(SMALL, examples(3), seed=3).fit(train, ITEMS)


def test_it_learns_a_cycle(system: BSARec) -> None:
    assert system.name == "bsarec"
    assert system.ranks(examples(3), filter_seen=True).tolist() == [1] * 10


def test_items_without_training_events_cannot_be_recommended(system: BSARec) -> None:
    scores = system.scores([walk(0, 3), np.array([10, 2, 11, 3])])
    assert np.isfinite(scores[:, :10]).all()
    assert np.isneginf(scores[:, 10:]).all()


def test_scores_do_not_depend_on_the_company(system: BSARec) -> None:
    histories = [walk(1, 9), walk(5, 1), walk(7, 3), walk(2, 3)]
    alone = np.concatenate([system.scores([history]) for history in histories])
    np.testing.assert_allclose(system.scores(histories)[:, :10], alone[:, :10], atol=0.05)


def test_the_filter() -> None:
    """Against the Fourier transform of the whole length, with zeros before a shorter history."""
    states = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    for count in (1, 3, 5):
        spectrum = torch.fft.rfft(states, dim=1)
        spectrum[:, count:] = 0
        torch.testing.assert_close(low_pass(9, count) @ states, torch.fft.irfft(spectrum, n=9, dim=1))
        padded = torch.cat([torch.zeros(2, 5, 4), states[:, :4]], dim=1)
        torch.testing.assert_close(low_pass(9, count)[:4, :4] @ states[:, :4], (low_pass(9, count) @ padded)[:, 5:])
    torch.testing.assert_close(low_pass(9, 5), torch.eye(9))  # all of them
    torch.testing.assert_close(low_pass(9, 1) @ states, states.mean(1, keepdim=True).expand_as(states))


def test_every_prefix_is_an_example_once() -> None:
    system = BSARec(SMALL, examples(3))
    sequences = [np.arange(9), np.arange(3)]
    batches = list(system._batches(sequences, np.random.default_rng(0)))
    assert all(len({len(example) for example in batch}) == 1 for batch in batches)
    found = sorted(tuple(example.tolist()) for batch in batches for example in batch)
    expected = [tuple(row[max(0, end - 6) : end + 1].tolist()) for row in sequences for end in range(len(row))]
    assert found == sorted(expected)


def test_without_the_filter_attention_alone_is_left() -> None:
    """alpha 0: what the filter does changes nothing."""
    network = BSARec(BSARecConfig(hidden_size=8, alpha=0.0, dropout=0.0), examples(3))._make_network(5).eval()
    tokens = torch.tensor([[0, 1, 2, 3]])
    before = network(tokens)
    for layer in network.layers:
        layer.beta.data += 3.0
    torch.testing.assert_close(network(tokens), before)


def test_values_out_of_range() -> None:
    with pytest.raises(UserError, match=r"evaluate\.bsarec\.alpha 1\.5: expected a share from 0 to 1"):
        BSARecConfig(alpha=1.5)
    with pytest.raises(UserError, match=r"evaluate\.bsarec\.heads 3: expected a divisor of hidden_size 64"):
        BSARecConfig(heads=3)
