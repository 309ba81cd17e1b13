import math

import numpy as np
import pytest
import torch

from llmrec.quantize import RQVAEConfig, TokenizeConfig
from llmrec.quantize.classical.kmeans import balanced_kmeans, kmeans
from llmrec.quantize.neural.autoencoder import ResidualAutoencoder, place_codes

X = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))


def placed(codes: int | list[int] = 5, **settings) -> tuple[ResidualAutoencoder, TokenizeConfig]:
    torch.manual_seed(0)
    network = RQVAEConfig(**{"hidden": [16], "latent": 4, "reset_every": 0, **settings})
    config = TokenizeConfig("rq-vae", levels=2, codes=codes, rq_vae=network)
    model = ResidualAutoencoder(6, config).eval()
    place_codes(model, X, config)
    return model, config


@pytest.mark.parametrize(("init", "place"), [("kmeans++", kmeans), ("constrained-kmeans", balanced_kmeans)])
@pytest.mark.parametrize("codebook", ["learned", "ema", "fixed-linear"])
def test_codes_start_on_the_centroids_of_what_earlier_levels_leave(codebook, init, place):
    model, config = placed([7, 4], codebook=codebook, init=init)
    residual = model.encode(X).detach().numpy()
    for level, codebook in enumerate(model.codebooks):
        centroids = codebook.effective().detach().numpy()
        expected = place(residual, config.level_sizes[level], config.iterations, config.seed + level)
        np.testing.assert_allclose(centroids, expected, atol=1e-5)
        residual = residual - centroids[((residual[:, None] - centroids) ** 2).sum(2).argmin(1)]


def test_random_codes_are_blind_to_the_items():
    model, _ = placed(50, init="random")
    codes = torch.cat([codebook.effective() for codebook in model.codebooks])
    assert codes.abs().max() <= 1 / 50
    assert codes.abs().max() > 0.9 / 50
    assert len(codes.unique(dim=0)) == 100


def test_simvq_keeps_its_own_codes():
    model, _ = placed(codebook="simvq", init="none")
    torch.manual_seed(0)
    fresh = ResidualAutoencoder(6, placed(codebook="simvq", init="none")[1])
    for codebook, other in zip(model.codebooks, fresh.codebooks, strict=True):
        assert codebook.frozen.shape == other.frozen.shape
        assert codebook.frozen.abs().sum() > 0


def test_sq_vae_starts_at_the_variance_that_codes_leave():
    model, _ = placed(estimator="sq-vae")
    residual = model.encode(X)
    for level, codebook in enumerate(model.codebooks):
        codes = codebook.effective()
        residual = residual - codes[torch.cdist(residual, codes).argmin(1)]
        expected = math.log(residual.square().mean().item())
        assert model.sampler.log_variance[level].item() == pytest.approx(expected, rel=1e-3)
