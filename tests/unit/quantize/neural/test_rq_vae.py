import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmrec.errors import UserError
from llmrec.quantize import RQVAEConfig, TokenizeConfig
from llmrec.quantize.config import LossConfig
from llmrec.quantize.neural import rq_vae
from llmrec.quantize.neural.rq_vae import RQVAE

SMALL = RQVAEConfig(hidden=[16], latent=4, epochs=20, batch_size=32, learning_rate=0.01)
FROZEN = replace(SMALL, reset_every=0)
X = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)

SOUND = {
    "plain": SMALL,
    "rotation": replace(SMALL, estimator="rotation"),
    "reflection": replace(SMALL, estimator="reflection"),
    "gumbel": replace(SMALL, estimator="gumbel"),
    "sq-vae": replace(SMALL, estimator="sq-vae"),
    "ema": replace(SMALL, codebook="ema", estimator="rotation"),
    "simvq": replace(FROZEN, codebook="simvq", init="none"),
    "simvq gumbel": replace(FROZEN, codebook="simvq", init="none", estimator="gumbel"),
    "fixed-linear": replace(FROZEN, codebook="fixed-linear"),
    "fsq": replace(FROZEN, codebook="fsq", init="none", grid=[2, 4]),
    "fsq-symmetric": replace(FROZEN, codebook="fsq-symmetric", init="none", grid=[2, 2]),
    "constrained": replace(SMALL, init="constrained-kmeans", sinkhorn=[0.0, 0.01]),
    "adagrad": replace(SMALL, optimizer="adagrad", learning_rate=0.05),
    "raw": replace(SMALL, standardize=False),
    "latent": replace(SMALL, loss=LossConfig(reconstruction="latent", contrastive=0.1)),
    "dex-vq": replace(
        SMALL,
        estimator="none",
        loss=LossConfig(reconstruction="latent", target_detach=False, contrastive=0.1, contrastive_of="latents"),
    ),
    "letter": replace(SMALL, loss=LossConfig(collaborative=0.1, diversity=0.01, diversity_groups=2)),
    "clusters": replace(SMALL, loss=LossConfig(cluster=0.1, correlation=0.1)),
    "lmindexer": replace(SMALL, loss=LossConfig(words=0.1, siblings=0.1)),
    "lmindexer gumbel": replace(SMALL, estimator="gumbel", loss=LossConfig(words=0.1, siblings=0.1)),
    "cohesion-spread": replace(SMALL, loss=LossConfig(cohesion=0.1, spread=0.05)),
}


def fit(network: RQVAEConfig, x: np.ndarray = X, codes: int | list[int] | None = None, levels: int = 2) -> RQVAE:
    if codes is None:
        codes = {"fsq": 8, "fsq-symmetric": 9}.get(network.codebook, 5)
    config = TokenizeConfig("rq-vae", levels=levels, codes=codes, rq_vae=network)
    return RQVAE(config).fit(x, x[:, : network.latent], [f"high{row.argmax()}" for row in x])


@pytest.mark.parametrize("network", SOUND.values(), ids=SOUND)
def test_every_sound_combination_tells_items_apart_and_comes_back_from_its_state(network):
    quantizer = fit(network)
    codes = quantizer.encode(X)
    assert len(np.unique(codes, axis=0)) > 8
    again = RQVAE.from_state(quantizer.config(), quantizer.tensors())
    np.testing.assert_array_equal(again.encode(X), codes)
    np.testing.assert_array_equal(again.decode(codes), quantizer.decode(codes))
    if network.loss.reconstruction == "mse":
        assert ((quantizer.decode(codes) - X) ** 2).sum() < ((X - X.mean(0)) ** 2).sum()


CHANGES = {
    "hidden": replace(SMALL, hidden=[8]),
    "latent": replace(SMALL, latent=3),
    "standardize": replace(SMALL, standardize=False),
    "estimator": replace(SMALL, estimator="rotation"),
    "init": replace(SMALL, init="random"),
    "reset_every": replace(SMALL, reset_every=2),
    "sinkhorn": replace(SMALL, sinkhorn=[0.01, 0.01]),
    "beta": replace(SMALL, beta=2.0),
    "epochs": replace(SMALL, epochs=21),
    "batch_size": replace(SMALL, batch_size=16),
    "optimizer": replace(SMALL, optimizer="adagrad"),
    "learning_rate": replace(SMALL, learning_rate=0.02),
    "weight_decay": replace(SMALL, weight_decay=0.1),
    "warmup": replace(SMALL, warmup=0.5),
    "schedule": replace(SMALL, schedule="linear"),
    "clip_norm": replace(SMALL, clip_norm=0.01),
}
BASES = {
    "temperature, gumbel": (SOUND["gumbel"], {"temperature": 0.1}),
    "temperature, sq-vae": (SOUND["sq-vae"], {"temperature": 0.1}),
    "ema_decay": (SOUND["ema"], {"ema_decay": 0.5}),
}


@pytest.mark.parametrize(
    ("base", "changed"),
    [(SMALL, changed) for changed in CHANGES.values()]
    + [(base, replace(base, **change)) for base, change in BASES.values()],
    ids=[*CHANGES, *BASES],
)
def test_every_setting_has_its_effect(base, changed):
    x = X * np.float32(3) + 1
    ours, theirs = (fit(network, x, codes=24) for network in (base, changed))
    assert (ours.decode(np.zeros((1, 2))) != theirs.decode(np.zeros((1, 2)))).any()


def test_unit_vectors_with_a_common_offset_do_not_collapse():
    rng = np.random.default_rng(0)
    x = 5 + rng.normal(size=(400, 24)) * np.geomspace(0.01, 1, 24)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    codes = fit(SMALL, x, codes=32, levels=3).encode(x)
    assert min(len(np.unique(codes[:, level])) for level in range(3)) >= 26


def test_levels_of_different_sizes():
    quantizer = fit(SMALL, codes=[9, 3])
    codes = quantizer.encode(X)
    assert codes.max(0).tolist() == [8, 2]
    with pytest.raises(ValueError, match="outside"):
        quantizer.decode(np.array([[0, 3]]))


def test_raw_input_is_taken_as_it_is():
    quantizer = fit(SOUND["raw"])
    assert (quantizer.tensors()["mean"] == 0).all()
    assert (quantizer.tensors()["std"] == 1).all()


@pytest.mark.parametrize("name", ["plain", "fsq", "simvq"])
def test_last_level_costs_are_distances_between_latents(name):
    quantizer = fit(SOUND[name])
    codes, model = quantizer.encode(X), quantizer.model
    costs = quantizer.last_level_costs(X, codes[:, :-1])
    with torch.no_grad():
        z = model.encode(model.standardise(torch.from_numpy(X)))
        first, last = (codebook.effective() for codebook in model.codebooks)
        expected = torch.cdist(z - first[torch.from_numpy(codes[:, 0]).long()], last) ** 2
    np.testing.assert_allclose(costs, expected, rtol=1e-3, atol=1e-4)
    # rounding breaks ties its own way
    np.testing.assert_allclose(costs[np.arange(len(X)), codes[:, -1]], costs.min(axis=1), atol=1e-5)


def test_one_level_has_last_level_costs_too():
    quantizer = fit(SMALL, levels=1)
    costs = quantizer.last_level_costs(X, np.empty((len(X), 0), np.int32))
    assert (costs.argmin(1) == quantizer.encode(X)[:, 0]).all()


@pytest.mark.parametrize(("every", "resets"), [(0, 0), (5, 3), (10, 1), (11, 0)])
def test_resets_stop_before_the_end(monkeypatch, every, resets):
    calls = []
    monkeypatch.setattr(rq_vae, "reset_unused", lambda *args: calls.append(args))
    fit(replace(SMALL, reset_every=every))
    assert len(calls) == resets


def test_codes_that_need_no_items_are_fit_on_few():
    few = X[:3]
    for name in ("fsq", "simvq"):
        assert fit(SOUND[name], few).encode(few).shape == (3, 2)
    with pytest.raises(UserError, match="3 distinct"):
        fit(SMALL, few)


def test_collaborative_vectors_must_be_there_and_fit():
    config = TokenizeConfig("rq-vae", levels=2, codes=5, rq_vae=SOUND["letter"])
    with pytest.raises(UserError, match=r"loss.collaborative needs .*latent \(4\), but fit was given none"):
        RQVAE(config).fit(X)
    with pytest.raises(UserError, match="but fit was given 6 dimensions"):
        RQVAE(config).fit(X, X)


def test_items_without_behaviour_are_fine():
    vectors = X[:, :4].copy()
    vectors[::2] = 0
    config = TokenizeConfig("rq-vae", levels=2, codes=5, rq_vae=SOUND["letter"])
    assert RQVAE(config).fit(X, vectors).encode(X).shape == (60, 2)


def test_fitting_leaves_torchs_random_state_alone():
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    fit(SOUND["gumbel"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sampling_depends_on_the_seed_alone():
    torch.manual_seed(1)
    one = fit(SOUND["gumbel"]).tensors()
    torch.manual_seed(2)
    two = fit(SOUND["gumbel"]).tensors()
    assert all((one[name] == two[name]).all() for name in one)


def test_divergence_is_named():
    wild = replace(SMALL, learning_rate=1e12)
    with pytest.raises(UserError, match=r"diverged in epoch .* tokenize.rq_vae.learning_rate"):
        fit(wild)


def test_collapse_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "llmrec"):
        fit(SMALL)
        assert not caplog.records
        fit(replace(SMALL, weight_decay=50.0))
    assert "nearly one latent vector" in caplog.text
