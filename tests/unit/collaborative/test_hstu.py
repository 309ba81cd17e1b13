"""HSTU: its layer and its loss by hand, and that it learns what SASRec learns."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llmrec.collaborative.config import HSTUConfig
from llmrec.collaborative.hstu import EPS, HSTU, TransductionLayer, TransductionNetwork
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.systems import fit_baselines

ITEMS = 12
SMALL = HSTUConfig(
    hidden_size=16, layers=2, dropout=0.1, max_history=6, batch_size=16, learning_rate=0.02, epochs=30, negatives=5
)


def walk(start: int, length: int, step: int = 1) -> np.ndarray:
    """Items in a cycle of ten, of which 10 and 11 are no part."""
    return ((start + step * np.arange(length)) % 10).astype(np.int32)


def examples(length: int) -> EvalExamples:
    histories = [walk(start, length) for start in range(10)]
    return EvalExamples(np.arange(10), histories, np.array([walk(start, length + 1)[-1] for start in range(10)]))


@pytest.fixture(scope="module")
def system() -> HSTU:
    train = [walk(start, 4 + start % 3) for start in range(10)] * 4
    (made,) = fit_baselines(EvaluateConfig(baselines=["hstu"], hstu=SMALL, seed=3), train, ITEMS, examples(3))
    assert isinstance(made, HSTU)
    return made


def test_it_learns_a_cycle(system: HSTU) -> None:
    assert system.name == "hstu"
    assert system.ranks(examples(3), filter_seen=True).tolist() == [1] * 10


def test_it_reads_more_than_the_last_item() -> None:
    """Users who begin with item 10 walk up, those with 11 down, so that every item has two successors."""
    train = [np.array([begin, *walk(start, 4, step)]) for start in range(10) for begin, step in ((10, 1), (11, -1))]
    asked = EvalExamples(np.arange(20), [row[:2] for row in train], np.array([row[2] for row in train]))
    config = HSTUConfig(dropout=0.1, max_history=6, batch_size=16, learning_rate=5e-3, patience=20)
    system = HSTU(config, asked).fit(train * 4, ITEMS)
    assert system.ranks(asked, filter_seen=True).tolist() == [1] * 20


def test_items_without_training_events_cannot_be_recommended(system: HSTU) -> None:
    scores = system.scores([walk(0, 3), np.array([10, 2, 11, 3])])
    assert scores.dtype == np.float32
    assert np.isfinite(scores[:, :10]).all()
    assert np.isneginf(scores[:, 10:]).all()


def test_scores_are_cosines_over_the_temperature(system: HSTU) -> None:
    scores = system.scores([walk(0, 3), walk(4, 2)])[:, :10]
    assert np.abs(scores).max() <= 1 / SMALL.temperature + 1e-4
    before = system.network.items.weight.data.clone()
    system.network.items.weight.data[7] *= 3  # as a target only its direction matters
    try:
        np.testing.assert_allclose(system.scores([walk(0, 3), walk(4, 2)])[:, :10], scores, atol=1e-4)
    finally:
        system.network.items.weight.data = before


def test_scores_do_not_depend_on_the_company(system: HSTU) -> None:
    histories = [walk(1, 9), walk(5, 1), walk(7, 3), walk(2, 3)]
    alone = np.concatenate([system.scores([history]) for history in histories])
    np.testing.assert_allclose(
        system.scores(histories)[:, :10], alone[:, :10], atol=0.2 if system.dtype == torch.bfloat16 else 1e-4
    )


@torch.no_grad()
def test_a_layer_by_hand() -> None:
    torch.manual_seed(0)
    layer = TransductionLayer(HSTUConfig(hidden_size=5, heads=2, head_size=3, max_history=7, layer_dropout=0.0))
    layer.bias.data *= 50
    states = torch.randn(2, 4, 5)
    found = layer(states)
    for batch, row in enumerate(states):
        parts = F.silu(layer.norm(row) @ layer.project.weight.T)  # gates, values, queries, keys, each of two heads
        gate, value, query, key = (parts[:, 6 * part : 6 * part + 6] for part in range(4))
        for i in range(4):
            summed = torch.zeros(6)
            for head in (slice(0, 3), slice(3, 6)):
                for j in range(i + 1):
                    match = float(query[i, head] @ key[j, head] + layer.bias[i - j])
                    summed[head] += match / (1 + math.exp(-match)) / 7 * value[j, head]
            normed = (summed - summed.mean()) / (summed.var(unbiased=False) + EPS).sqrt()
            expected = row[i] + layer.out.weight @ (normed * gate[i]) + layer.out.bias
            torch.testing.assert_close(found[batch, i], expected, rtol=1e-4, atol=1e-5)


def test_a_later_item_changes_no_earlier_state() -> None:
    torch.manual_seed(0)
    network = TransductionNetwork(9, SMALL).eval()
    first, longer, other = (network([np.array(items)]) for items in ([4, 2, 7], [4, 2, 7, 1, 5], [4, 2, 8]))
    torch.testing.assert_close(longer[:3], first)
    torch.testing.assert_close(other[:2], first[:2])
    assert not torch.allclose(other[2], first[2])
    together = network([np.array([4, 2, 7]), np.array([3, 3, 1, 0, 8])])
    torch.testing.assert_close(together[:3], first)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(8))


BATCH = [walk(start, length).astype(np.int64) for start, length in ((0, 4), (5, 3), (2, 6))]
FOLLOWING = torch.from_numpy(np.concatenate([sequence[1:] for sequence in BATCH]))


def made(negatives: int) -> HSTU:
    """Trained for one epoch, without dropout, so that its loss is a number."""
    config = HSTUConfig(
        hidden_size=8, dropout=0.0, layer_dropout=0.0, max_history=6, epochs=1, negatives=negatives, temperature=0.5
    )
    system = HSTU(config, examples(3)).fit([walk(start, 5) for start in range(10)], ITEMS)
    system.dtype = torch.float32
    return system


def test_a_sample_of_all_items_is_the_full_softmax() -> None:
    system = made(10)
    states = system.network([sequence[:-1] for sequence in BATCH])
    full = F.cross_entropy(system.network.logits(states), FOLLOWING)
    torch.testing.assert_close(system._loss(BATCH), full)


def test_the_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three items are drawn, one of which is a target: there it does not count against itself."""
    system = made(3)
    monkeypatch.setattr(torch, "randperm", lambda n, device: torch.tensor([3, 8, 1, 0, 2, 4, 5, 6, 7, 9]))
    states = system.network([sequence[:-1] for sequence in BATCH]).detach().numpy()
    items = system.network.items.weight.detach().numpy()
    items = items / np.linalg.norm(items, axis=1, keepdims=True)
    losses = []
    for state, target in zip(states, FOLLOWING.tolist(), strict=True):
        own, *others = (state @ items[item] / 0.5 for item in (target, *(each for each in (3, 8, 1) if each != target)))
        losses.append(np.log(np.exp([own, *others]).sum()) - own)
    assert float(system._loss(BATCH).detach()) == pytest.approx(np.mean(losses), abs=1e-5)


def test_the_same_seed_draws_the_same_negatives() -> None:
    first, second = made(3), made(3)
    assert first.scores([walk(0, 3)]).tolist() == second.scores([walk(0, 3)]).tolist()


def test_values_out_of_range() -> None:
    assert HSTUConfig(heads=3).heads == 3  # heads have a width of their own
    for wrong in ({"head_size": 0}, {"negatives": 0}, {"temperature": 0.0}, {"layer_dropout": 1.0}, {"heads": 0}):
        ((name, value),) = wrong.items()
        with pytest.raises(UserError, match=rf"evaluate\.hstu\.{name} {value}: expected"):
            HSTUConfig(**wrong)
