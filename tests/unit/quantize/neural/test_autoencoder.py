import itertools

import pytest
import torch
from torch import nn

from llmrec.quantize import RQVAEConfig, TokenizeConfig
from llmrec.quantize.config import LossConfig
from llmrec.quantize.neural.autoencoder import ResidualAutoencoder
from llmrec.quantize.neural.codebooks import LearnedCodebook


def module(levels: int = 3, codes: int | list[int] = 5, **settings) -> ResidualAutoencoder:
    """A network over 6 dimensions, with latents of 4 and random codes."""
    torch.manual_seed(0)
    network = RQVAEConfig(**{"hidden": [16], "latent": 4, "reset_every": 0, **settings})
    model = ResidualAutoencoder(6, TokenizeConfig("rq-vae", levels=levels, codes=codes, rq_vae=network))
    for codebook in model.codebooks:
        if isinstance(codebook, LearnedCodebook):
            nn.init.normal_(codebook.codes)
        elif network.init != "none":
            codebook.place(torch.randn(codebook.effective().shape))
    return model


def of_codebook(codebook: str, **settings) -> ResidualAutoencoder:
    if codebook.startswith("fsq"):
        codes = 12 if codebook == "fsq" else 15
        return module(2, codes, codebook=codebook, grid=[3, 4], init="none", **settings)
    return module(codebook=codebook, init="none" if codebook == "simvq" else "kmeans++", **settings)


HEADED = {"loss": LossConfig(contrastive=1, contrastive_of="latents")}
"""The teacher that estimator none needs."""


def tables(model: ResidualAutoencoder) -> list[torch.Tensor]:
    return [codebook.effective().detach() for codebook in model.codebooks]


def test_commitment_of_every_level_reaches_the_encoder():
    """With a straight-through copy in the residual chain, only the first level's would."""
    model, z = module(), torch.randn(9, 4, requires_grad=True)
    quantized = model.quantize(z)
    (gradient,) = torch.autograd.grad(quantized.loss, z)
    residual, expected = z.detach(), torch.zeros(9, 4)
    for level, codes in enumerate(tables(model)):
        residual = residual - codes[quantized.codes[:, level]]
        expected += model.beta * 2 * residual / residual.numel()
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("estimator", ["straight-through", "rotation", "reflection", "none"])
def test_each_prefix_has_the_gradient_of_the_estimator(estimator):
    model = module(estimator=estimator, **(HEADED if estimator == "none" else {}))
    z = torch.randn(9, 4, requires_grad=True)
    quantized = model.quantize(z)
    prefixes, weights = model.prefixes(z, quantized.vectors), torch.randn(9, 4)
    for level in range(3):
        alone = model.join(z, sum(quantized.vectors[: level + 1]))
        torch.testing.assert_close(prefixes[:, level], alone)
        if estimator != "none":
            found, expected = (
                torch.autograd.grad((value * weights).sum(), z, retain_graph=True)[0]
                for value in (prefixes[:, level], alone)
            )
            torch.testing.assert_close(found, expected)
    torch.testing.assert_close(prefixes[:, -1], quantized.joined)
    assert prefixes.requires_grad == (estimator != "none")


def test_each_codebook_learns_from_its_own_level_alone():
    model, z = module(), torch.randn(9, 4)
    quantized = model.quantize(z)
    quantized.loss.backward()
    residual = z
    for level, (codebook, codes) in enumerate(zip(model.codebooks, tables(model), strict=True)):
        chosen = codes[quantized.codes[:, level]]
        expected = torch.zeros_like(codes)
        expected.index_add_(0, quantized.codes[:, level], 2 * (chosen - residual) / residual.numel())
        torch.testing.assert_close(codebook.codes.grad, expected)
        residual = residual - chosen
    torch.testing.assert_close(sum(quantized.vectors).detach(), z - residual)


def test_no_loss_where_every_level_hits_its_code():
    model = module(levels=2)
    with torch.no_grad():
        model.codebooks[1].codes[2] = 0
    quantized = model.quantize(model.codebooks[0].codes.detach())
    assert quantized.codes.tolist() == [[code, 2] for code in range(5)]
    assert quantized.loss.item() == 0
    torch.testing.assert_close(quantized.joined, model.codebooks[0].codes)


def test_the_encoder_gets_the_decoders_gradient_and_the_codes_get_none():
    model, z = module(), torch.randn(9, 4, requires_grad=True)
    quantized = model.quantize(z)
    (at_the_decoder,) = torch.autograd.grad(model.decode(quantized.joined).square().sum(), quantized.joined)
    model.decode(model.quantize(z).joined).square().sum().backward()
    torch.testing.assert_close(z.grad, at_the_decoder)
    assert all(codebook.codes.grad is None for codebook in model.codebooks)


@pytest.mark.parametrize(
    ("codebook", "estimator"),
    [
        *itertools.product(["learned", "ema", "simvq", "fixed-linear"], ["straight-through", "rotation", "reflection"]),
        ("fsq", "straight-through"),
        ("fsq-symmetric", "straight-through"),
    ],
)
def test_decoding_an_index_gives_what_training_saw(codebook, estimator):
    model = of_codebook(codebook, estimator=estimator)
    z = model.encode(torch.randn(20, 6))
    quantized = model.train(codebook != "ema").quantize(z)  # in training, averages move on once they were looked up
    torch.testing.assert_close(quantized.joined, model.sum_of_codes(quantized.codes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", ["gumbel", "sq-vae"])
@pytest.mark.parametrize("codebook", ["learned", "simvq", "fixed-linear"])
def test_sampled_codes_are_for_training_alone(codebook, estimator):
    model, z = of_codebook(codebook, estimator=estimator), torch.randn(20, 4)
    soft = model.quantize(z)
    assert (soft.joined - model.sum_of_codes(soft.codes)).abs().max() > 1e-3
    soft.joined.square().sum().backward()
    assert all(next(book.parameters()).grad.abs().sum() > 0 for book in model.codebooks)
    hard = model.eval().quantize(z)
    residual = z
    for level, codes in enumerate(tables(model)):
        nearest = torch.cdist(residual, codes).argmin(1)
        assert (hard.codes[:, level] == nearest).all()
        residual = residual - codes[nearest]
    torch.testing.assert_close(hard.joined, z - residual)


def test_levels_of_different_sizes():
    model = module(levels=3, codes=[7, 2, 4])
    assert [len(codes) for codes in tables(model)] == [7, 2, 4]
    assert (model.quantize(torch.randn(100, 4)).codes.amax(0) == torch.tensor([6, 1, 3])).all()


def test_sinkhorn_balances_its_level_in_training_alone():
    model = module(levels=2, sinkhorn=[0.0, 0.1])
    with torch.no_grad():
        model.codebooks[0].codes[1:] += 100
        model.codebooks[1].codes[1:] += 5
    z = torch.randn(50, 4)
    balanced, nearest = model.train().quantize(z).codes, model.eval().quantize(z).codes
    assert (balanced[:, 0] == 0).all()
    assert (nearest == 0).all()
    assert balanced[:, 1].bincount(minlength=5).min() > 0


def test_averages_move_in_training_alone():
    model, z = of_codebook("ema"), torch.randn(50, 4)
    before = [codes.clone() for codes in tables(model)]
    model.eval().quantize(z)
    assert all((now == then).all() for now, then in zip(tables(model), before, strict=True))
    model.train().quantize(z)
    assert all((now != then).any() for now, then in zip(tables(model), before, strict=True))


def test_lower_arithmetic_is_for_training_alone():
    model, x = module(), torch.randn(20, 6)
    exact = model.encode(x)
    model.training_dtype = torch.bfloat16
    lower = model.encode(x)
    assert lower.dtype == torch.float32
    assert (lower != exact).any()
    torch.testing.assert_close(lower, exact, rtol=0.1, atol=0.1)
    assert (model.eval().encode(x) == exact).all()


def test_a_deep_encoder_keeps_items_apart():
    """Torch's own initial weights would leave a variance of 1e-6."""
    model = module(hidden=[64, 64, 64, 32, 32, 16])
    assert model.encode(torch.randn(200, 6)).var(dim=0).mean() > 1e-3
