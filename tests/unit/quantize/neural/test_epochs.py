from dataclasses import replace

import numpy as np
import pytest
import torch

from llmrec.quantize import RQVAEConfig, TokenizeConfig
from llmrec.quantize.collisions import excess
from llmrec.quantize.neural.epochs import Epochs, step_size
from llmrec.quantize.neural.rq_vae import RQVAE

SMALL = RQVAEConfig(hidden=[8], latent=4, epochs=10, batch_size=32, learning_rate=0.05, reset_every=0)
X = np.random.default_rng(0).normal(size=(90, 6)).astype(np.float32)


def fit(**settings) -> RQVAE:
    return RQVAE(TokenizeConfig("rq-vae", levels=2, codes=6, rq_vae=replace(SMALL, **settings))).fit(X)


class Counter(torch.nn.Module):
    """Stands for a network; its weight is the number of the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))


def test_step_size_rises_then_stays_or_falls_to_zero():
    constant = step_size(replace(SMALL, warmup=0.4), 10)
    assert [constant(step) for step in range(10)] == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]
    linear = step_size(replace(SMALL, warmup=0.2, schedule="linear"), 10)
    assert [linear(step) for step in range(11)] == [0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    assert [step_size(SMALL, 10)(step) for step in range(10)] == [1] * 10


def test_the_first_epoch_with_the_fewest_collisions_is_kept(monkeypatch):
    rates = iter([0.5, 0.2, 0.4, 0.2])
    monkeypatch.setattr(Epochs, "_collision_rate", lambda self: next(rates))
    model = Counter()
    epochs = Epochs(replace(SMALL, measure_every=3, keep="fewest-collisions"), model, torch.zeros(1, 1))
    for epoch in range(1, 11):
        model.weight.data.fill_(epoch)
        epochs.after(epoch, loss=1 / epoch)
    epochs.restore()
    assert model.weight.item() == 6
    assert epochs.figures() == {
        "epochs": [3, 6, 9, 10],
        "loss": [1 / 3, 1 / 6, 1 / 9, 1 / 10],
        "collision_rate": [0.5, 0.2, 0.4, 0.2],
        "kept": 6,
    }


def test_the_curve_is_that_of_the_codes():
    last, best = fit(measure_every=2), fit(measure_every=2, keep="fewest-collisions")
    rates = last.training["collision_rate"]
    assert last.training["epochs"] == [2, 4, 6, 8, 10]
    assert (last.training["kept"], best.training["collision_rate"]) == (10, rates)
    assert excess(last.encode(X)) / len(X) == pytest.approx(rates[-1])
    assert excess(best.encode(X)) / len(X) == pytest.approx(min(rates))
    assert min(rates) < max(rates)


def test_measuring_does_not_change_the_training():
    measured, plain = fit(measure_every=1).tensors(), fit()
    assert plain.training is None
    for name, array in plain.tensors().items():
        np.testing.assert_array_equal(measured[name], array)
