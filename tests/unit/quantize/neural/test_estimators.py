"""Every way a gradient passes the quantizer, with rows of different norms: a batch-wide norm must not pass."""

import math

import pytest
import torch
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from llmrec.quantize.neural.estimators import (
    COOLING,
    SQVAE,
    Gumbel,
    log_likelihood,
    reflect,
    regulariser,
    rotate,
    sample,
    stop,
    straight_through,
)

TURNS = [rotate, reflect]


def rows(count: int = 9, dims: int = 5, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z, quantized = (torch.randn(count, dims, generator=generator, dtype=dtype) for _ in range(2))
    scales = torch.logspace(-2, 2, count, dtype=dtype)[:, None]
    return (z * scales).requires_grad_(), (quantized * scales.flip(0)).requires_grad_()


def gradients(join, z, quantized):
    """Of a random linear function: what arrives at the joined vector, and what at z."""
    weight = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(1))
    out = join(z, quantized)
    (out * weight).sum().backward()
    return out, weight, z.grad


def matrix(join, z, quantized):
    """The matrix [d, d] by which one row's gradient is turned, over the ratio of the norms."""
    jacobian = torch.autograd.functional.jacobian(lambda row: join(row[None], quantized[None])[0], z)
    return jacobian * z.norm() / quantized.norm()


@pytest.mark.parametrize("join", [straight_through, *TURNS])
def test_the_value_is_the_codes_and_they_get_no_gradient(join):
    z, quantized = rows()
    out, _, _ = gradients(join, z, quantized)
    torch.testing.assert_close(out, quantized)
    assert quantized.grad is None


def test_a_stopped_quantizer_lets_no_gradient_through():
    z, quantized = rows()
    out = stop(z, quantized)
    assert (out == quantized).all()
    assert not out.requires_grad


def test_straight_through_copies_the_gradient():
    _, weight, gradient = gradients(straight_through, *rows())
    torch.testing.assert_close(gradient, weight)


@pytest.mark.parametrize(("join", "sign"), [(rotate, 1), (reflect, -1)])
def test_turns_are_orthogonal_and_take_z_to_its_code(join, sign):
    z, quantized = (tensor.detach() for tensor in rows())
    for row, code in zip(z, quantized, strict=True):
        turn = matrix(join, row, code)
        torch.testing.assert_close(turn.T @ turn, torch.eye(5, dtype=torch.float64))
        torch.testing.assert_close(torch.linalg.det(turn).item(), float(sign))
        torch.testing.assert_close(turn @ row / row.norm(), code / code.norm())


def test_rotation_is_the_papers_matrix():
    z, quantized = rows()
    _, weight, gradient = gradients(rotate, z, quantized)
    for row, code, incoming, found in zip(z.detach(), quantized.detach(), weight, gradient, strict=True):
        a, b = row / row.norm(), code / code.norm()
        r = (a + b) / (a + b).norm()
        turn = torch.eye(5, dtype=torch.float64) - 2 * r.outer(r) + 2 * b.outer(a)
        torch.testing.assert_close(found, code.norm() / row.norm() * turn.T @ incoming)


@pytest.mark.parametrize("join", TURNS)
def test_turns_keep_the_gradients_angle_and_scale_its_norm(join):
    z, quantized = rows()
    _, weight, gradient = gradients(join, z, quantized)
    z, quantized = z.detach(), quantized.detach()
    torch.testing.assert_close((gradient * z).sum(1), (weight * quantized).sum(1))
    torch.testing.assert_close(gradient.norm(dim=1), weight.norm(dim=1) * quantized.norm(dim=1) / z.norm(dim=1))
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(gradient, z), cosine(weight, quantized))


def test_reflection_is_the_identity_where_the_directions_are_one():
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    _, weight, gradient = gradients(reflect, z, 2 * z.detach())
    torch.testing.assert_close(gradient, 2 * weight)


@pytest.mark.parametrize("join", TURNS)
@pytest.mark.parametrize("case", ["opposite", "nearly opposite", "same", "no code", "no latent"])
def test_turns_survive_degenerate_rows(join, case):
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    nudge = 1e-5 * torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    quantized = {
        "opposite": -2 * z,
        "nearly opposite": -2 * z + nudge,
        "same": z.clone(),
        "no code": torch.zeros_like(z),
        "no latent": z.clone(),
    }[case]
    if case == "no latent":
        z = torch.zeros_like(z)
    out, weight, gradient = gradients(join, z.requires_grad_(), quantized)
    torch.testing.assert_close(out, quantized)
    # lengths as always, and no explosion where z has none
    ratio = torch.ones(6) if case == "no latent" else quantized.norm(dim=1) / z.detach().norm(dim=1)
    torch.testing.assert_close(gradient.norm(dim=1), weight.norm(dim=1) * ratio, rtol=1e-4, atol=1e-6)


def test_rotation_agrees_with_vector_quantize_pytorch():
    z, quantized = rows(dtype=torch.float32)
    out, weight, gradient = gradients(rotate, z, quantized)
    other = z.detach().clone().requires_grad_()
    theirs = rotate_to(other, quantized.detach())
    (theirs * weight).sum().backward()
    torch.testing.assert_close(out, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, other.grad, rtol=1e-4, atol=1e-4)


def test_gumbel_samples_grow_hard_as_the_temperature_falls():
    torch.manual_seed(0)
    logits = torch.randn(200, 6)
    cold, hot = sample(logits, 1e-6), sample(logits, 1e4)
    assert cold.max(1).values.min() > 0.999
    torch.testing.assert_close(hot, torch.full_like(hot, 1 / 6), atol=1e-3, rtol=0)
    torch.testing.assert_close(cold.sum(1), torch.ones(200))


@pytest.mark.parametrize("temperature", [0.05, 1.0, 5.0])
def test_gumbel_picks_follow_the_softmax(temperature):
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    picks = sample(logits.expand(40_000, 4), temperature).argmax(1).bincount(minlength=4) / 40_000
    torch.testing.assert_close(picks, logits.softmax(0), atol=0.01, rtol=0)


@pytest.mark.parametrize("sampler", [Gumbel(1.0, 0.25), SQVAE(1.0, levels=2, dims=8)])
def test_sampled_codes_are_mixtures_whose_gradient_reaches_latents_and_codes(sampler):
    torch.manual_seed(0)
    residual, codes = torch.randn(7, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    code, picks, _ = sampler(residual, codes, 1)
    assert picks.shape == (7,)
    code.square().sum().backward()
    assert (residual.grad.norm(dim=1) > 0).all()
    assert (codes.grad.norm(dim=1) > 0).all()


def test_sq_vae_with_no_variance_takes_the_nearest_code():
    torch.manual_seed(0)
    sampler = SQVAE(1.0, levels=1, dims=8)
    residual, codes = torch.randn(50, 3), torch.randn(6, 3)
    nearest = torch.cdist(residual, codes).argmin(1)
    with torch.no_grad():
        sampler.log_variance.fill_(-20)
    code, picks, _ = sampler(residual, codes, 0)
    assert (picks == nearest).all()
    torch.testing.assert_close(code, codes[nearest])


def test_sq_vae_starts_at_the_variance_around_its_codes():
    sampler = SQVAE(1.0, levels=2, dims=8)
    sampler.start(1, torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]]))
    assert sampler.log_variance.tolist() == [0.0, pytest.approx(math.log(2.0))]


@pytest.mark.parametrize("steps", [3, 60])
def test_sq_vae_cools_with_the_share_of_the_training(steps):
    sampler = SQVAE(2.0, levels=2, dims=8)
    sampler.steps = steps
    for level in (0, 1, 0, 1, 0, 1):
        sampler(torch.randn(4, 3), torch.randn(5, 3), level)
    assert sampler.temperature == pytest.approx(2.0 * math.exp(-COOLING * 3 / steps))


def test_the_likelihood_is_that_of_the_best_variance():
    x, reconstruction = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(6, 5)
    variance = torch.logspace(-2, 2, 4001)
    # -log N(x; reconstruction, variance) per element, without the constant log(2 pi) / 2
    loss = x.square().mean() / (2 * variance) + variance.log() / 2
    assert log_likelihood(x, reconstruction).item() + 0.5 == pytest.approx(loss.min().item(), abs=1e-5)
    # the scale of the input moves the loss by a constant alone
    moved = log_likelihood(100 * x, reconstruction) - log_likelihood(x, reconstruction)
    assert moved.item() == pytest.approx(math.log(100), rel=1e-5)
    assert math.isfinite(log_likelihood(x, x).item())


def test_the_regulariser_is_the_negative_entropy_and_the_scaled_distance():
    residual, code = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 2.0]])
    value = regulariser(torch.tensor([[0.5, 0.5]]).log(), residual, code, torch.tensor(3.0))
    assert value.item() == pytest.approx(-math.log(2) + 3.0)


def test_the_regulariser_is_at_least_minus_log_of_the_codes():
    torch.manual_seed(0)
    residual, precision = torch.randn(20, 3), torch.tensor(0.5)
    for scale in (0.0, 0.1, 10.0):
        value = regulariser(scale * torch.randn(20, 16), residual, residual, precision)
        assert value >= -math.log(16) - 1e-5
    even = regulariser(torch.zeros(20, 16), residual, residual, precision)
    assert even.item() == pytest.approx(-math.log(16), abs=1e-5)
