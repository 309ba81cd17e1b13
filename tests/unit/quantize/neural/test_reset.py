import pytest
import torch

from llmrec.quantize import RQVAEConfig, TokenizeConfig
from llmrec.quantize.neural.autoencoder import ResidualAutoencoder, fill_unused, reset_unused

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))


def model(codebook: str) -> ResidualAutoencoder:
    torch.manual_seed(0)
    network = RQVAEConfig(hidden=[16], latent=4, codebook=codebook)
    model = ResidualAutoencoder(6, TokenizeConfig("rq-vae", levels=2, codes=5, rq_vae=network))
    for book in model.codebooks:
        codes = torch.randn(5, 4)
        codes[3] = 1e6
        book.place(codes)
    return model


@pytest.mark.parametrize("codebook", ["learned", "ema"])
def test_unused_codes_move_onto_residuals_and_used_ones_stay(codebook):
    network = model(codebook)
    before = [book.effective().detach().clone() for book in network.codebooks]
    used = [torch.tensor([True, True, True, False, True])] * 2
    reset_unused(network, X, [row.clone() for row in used], torch.Generator().manual_seed(0))
    residual = network.encode(X)
    for book, then in zip(network.codebooks, before, strict=True):
        codes = book.effective().detach()
        torch.testing.assert_close(codes[used[0]], then[used[0]])
        assert (residual - codes[3]).norm(dim=1).min() < 1e-5
        residual = residual - codes[torch.cdist(residual, codes).argmin(1)]


def test_the_next_round_starts_unused():
    used = [torch.tensor([True, False, True, False, True]), torch.ones(5, dtype=torch.bool)]
    reset_unused(model("learned"), X, used, torch.Generator().manual_seed(0))
    assert not torch.stack(used).any()


def test_a_reset_average_survives_training():
    """A never-used code is replaced, and is still there after batches that pass it by."""
    network = model("ema").train()
    used = [torch.tensor([True, True, True, False, True])] * 2
    reset_unused(network, X, [row.clone() for row in used], torch.Generator().manual_seed(0))
    book = network.codebooks[0]
    place = book.effective()[3].clone()
    for _ in range(3):
        book.update(torch.randn(40, 4), torch.tensor([0, 1, 2, 4]).repeat(10))
    torch.testing.assert_close(book.effective()[3], place, rtol=1e-3, atol=1e-3)


def test_items_far_from_their_codes_are_drawn_first():
    network = model("learned")
    with torch.no_grad():
        residual = network.encode(X)
        network.codebooks[0].codes[:3] = residual[:3]
    far = torch.cat([X[:3].repeat(20, 1), X[10:11]])  # all but the last item lie on their codes
    reset_unused(network, far, [torch.arange(5) != 3, torch.ones(5) > 0], torch.Generator().manual_seed(0))
    torch.testing.assert_close(network.codebooks[0].codes[3], residual[10])


@pytest.mark.parametrize("codebook", ["learned", "ema"])
def test_in_the_end_every_code_has_its_items(codebook):
    network = model(codebook).eval()
    with torch.no_grad():
        z = network.encode(X)
    before = [book.effective().detach().clone() for book in network.codebooks]
    assert (network.quantize(z).codes != 3).all()
    fill_unused(network, z, torch.Generator().manual_seed(0))
    codes = network.quantize(z).codes
    for level, (book, then) in enumerate(zip(network.codebooks, before, strict=True)):
        assert (codes[:, level].bincount(minlength=5) > 0).all()
        unmoved = (book.effective() == then).all(1)
        assert not unmoved[3]
