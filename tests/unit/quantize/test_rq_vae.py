import numpy as np
import pytest
import torch

from llmrec.errors import UserError
from llmrec.quantize import RQVAEConfig, TokenizeConfig
from llmrec.quantize.rq_vae import RQVAE, ResidualAutoencoder, straight_through

SMALL = RQVAEConfig(hidden=[16], latent=4, epochs=20, batch_size=32)


def module(levels: int = 3) -> ResidualAutoencoder:
    torch.manual_seed(0)
    model = ResidualAutoencoder(6, TokenizeConfig("rq-vae", levels=levels, codes=5, rq_vae=SMALL))
    torch.nn.init.normal_(model.codebooks)
    return model


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    z = torch.randn(7, 4, requires_grad=True)
    quantized = torch.randn(7, 4, requires_grad=True)
    out = straight_through(z, quantized)
    torch.testing.assert_close(out, quantized)
    weight = torch.randn(7, 4)
    (out * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight)
    assert quantized.grad is None


def test_commitment_of_every_level_reaches_the_encoder():
    """With a straight-through copy in the residual chain, only the first level's would."""
    model, z = module(), torch.randn(9, 4, requires_grad=True)
    codes, _, loss = model.quantize(z)
    (gradient,) = torch.autograd.grad(loss, z)
    residual, expected = z.detach(), torch.zeros(9, 4)
    for level, codebook in enumerate(model.codebooks.detach()):
        residual = residual - codebook[codes[:, level]]
        expected += model.beta * 2 * residual / residual.numel()
    torch.testing.assert_close(gradient, expected)


def test_each_codebook_learns_from_its_own_level_alone():
    model, z = module(), torch.randn(9, 4)
    codes, total, loss = model.quantize(z)
    loss.backward()
    residual, expected = z, torch.zeros_like(model.codebooks)
    for level, codebook in enumerate(model.codebooks.detach()):
        chosen = codebook[codes[:, level]]
        expected[level].index_add_(0, codes[:, level], 2 * (chosen - residual) / residual.numel())
        residual = residual - chosen
    torch.testing.assert_close(model.codebooks.grad, expected)
    torch.testing.assert_close(total.detach(), z - residual)


def test_no_loss_where_every_level_hits_its_code():
    model = module(levels=2)
    with torch.no_grad():
        model.codebooks[1, 2] = 0
    codes, total, loss = model.quantize(model.codebooks[0].detach())
    assert codes.tolist() == [[code, 2] for code in range(5)]
    assert loss.item() == 0
    torch.testing.assert_close(total, model.codebooks[0])


def test_unit_vectors_with_a_common_offset_do_not_collapse():
    rng = np.random.default_rng(0)
    x = 5 + rng.normal(size=(400, 24)) * np.geomspace(0.01, 1, 24)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    codes = RQVAE(TokenizeConfig("rq-vae", codes=32, rq_vae=SMALL)).fit(x).encode(x)
    assert min(len(np.unique(codes[:, level])) for level in range(3)) >= 26


def test_unused_codes_move_onto_residuals_and_used_ones_stay():
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    quantizer = RQVAE(TokenizeConfig("rq-vae", levels=2, codes=5, rq_vae=SMALL)).fit(x)
    codebooks = quantizer.model.codebooks
    with torch.no_grad():
        codebooks[:, 3] = 1e6
    before = codebooks.detach().clone()
    used = torch.ones(2, 5, dtype=torch.bool)
    used[:, 3] = False
    data = quantizer._standardise(x)
    quantizer._reset_unused(data, used, torch.Generator().manual_seed(0))
    torch.testing.assert_close(codebooks[:, [0, 1, 2, 4]], before[:, [0, 1, 2, 4]])
    z = quantizer.model.encoder(data)
    for level in range(2):
        distances = (quantizer.model.residuals(z, level) - codebooks[level, 3]).norm(dim=1)
        assert distances.min() < 1e-5


def test_fitting_leaves_torchs_random_state_alone():
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    RQVAE(TokenizeConfig("rq-vae", levels=1, codes=5, rq_vae=SMALL)).fit(x)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_divergence_is_named():
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    wild = RQVAEConfig(hidden=[16], latent=4, epochs=20, batch_size=32, learning_rate=1e12)
    with pytest.raises(UserError, match=r"diverged in epoch .* --tokenize.rq_vae.learning_rate"):
        RQVAE(TokenizeConfig("rq-vae", codes=5, rq_vae=wild)).fit(x)
