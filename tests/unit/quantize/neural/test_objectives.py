import copy

import pytest
import torch
import torch.nn.functional as F

from llmrec.quantize import RQVAEConfig, TokenizeConfig
from llmrec.quantize.config import LossConfig
from llmrec.quantize.neural.autoencoder import ResidualAutoencoder
from llmrec.quantize.neural.estimators import log_likelihood
from llmrec.quantize.neural.objectives import (
    Loss,
    cluster_contrast,
    cohesion,
    collaborative_alignment,
    contrastive_reconstruction,
    correlation,
    diversity,
    group_codes,
    latent_reconstruction,
    sibling_contrast,
    spread,
)
from llmrec.quantize.neural.words import word_loss

X = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
CF = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))


def linear(**loss) -> tuple[ResidualAutoencoder, Loss]:
    """Encoder and decoder are the identity on 4 dimensions; two levels of six random codes."""
    torch.manual_seed(0)
    network = RQVAEConfig(hidden=[], latent=4, loss=LossConfig(**loss))
    vocabulary = ["ash", "oak", "elm"] if network.loss.words else []
    model = ResidualAutoencoder(4, TokenizeConfig("rq-vae", levels=2, codes=6, rq_vae=network), vocabulary)
    with torch.no_grad():
        for codebook in model.codebooks:
            codebook.codes.normal_()
        model.encoder[0].weight.copy_(torch.eye(4))
        model.decoder[0].weight.copy_(torch.eye(4))
    return model, Loss(network.loss, model, seed=0)


def value(vectors: torch.Tensor | None = None, **loss) -> float:
    _, compute = linear(**loss)
    compute.start_epoch()
    return compute(X, vectors)[0].item()


def test_a_perfect_decoder_on_codes_costs_nothing():
    model, compute = linear()
    with torch.no_grad():
        model.codebooks[1].codes[3] = 0
    loss, codes = compute(model.codebooks[0].codes.detach(), None)
    assert loss.item() == 0
    assert codes[:, 1].tolist() == [3] * 6


def test_reconstructions_compare_what_they_say():
    model, _ = linear()
    quantized = model.quantize(X)
    total, cost = quantized.joined, quantized.loss.item()
    assert value() == pytest.approx(F.mse_loss(total, X).item() + cost)
    assert value(reconstruction="cosine") == pytest.approx(1 - F.cosine_similarity(total, X).mean().item() + cost)
    # the encoder is the identity, so latents compare like items
    assert value(reconstruction="latent") == pytest.approx(F.mse_loss(total, X).item() + cost)


def test_stochastic_codes_learn_by_the_likelihood_whatever_the_scale_of_the_items():
    network = RQVAEConfig(hidden=[], latent=4, estimator="sq-vae")
    torch.manual_seed(0)
    start = ResidualAutoencoder(4, TokenizeConfig("rq-vae", levels=2, codes=6, rq_vae=network), [])

    def again(kind):
        model = copy.deepcopy(start)
        torch.manual_seed(1)  # the same draws of codes
        decoded = model.decode(model.quantize(model.encode(X)).joined)
        model = copy.deepcopy(start)
        torch.manual_seed(1)
        return Loss(LossConfig(reconstruction=kind), model, seed=0)(X, None)[0].item(), decoded

    (mse, decoded), (cosine, _) = again("mse"), again("cosine")
    angle = 1 - F.cosine_similarity(decoded, X).mean().item()
    assert mse - cosine == pytest.approx(log_likelihood(X, decoded).item() - angle, abs=1e-5)
    assert mse - cosine != pytest.approx(F.mse_loss(decoded, X).item() - angle, abs=1e-2)


def test_the_quantization_weight_scales_it():
    cost = linear()[0].quantize(X).loss.item()
    assert value(quantization=3.0) - value() == pytest.approx(2 * cost, rel=1e-4)
    assert value(quantization=0.0) - value() == pytest.approx(-cost, rel=1e-4)


def test_every_weighted_term_is_its_objective():
    model, _ = linear()
    quantized = model.quantize(X)
    total, tables = quantized.joined, [codebook.codes for codebook in model.codebooks]
    plain, cost = value(), quantized.loss.item()
    contrastive = contrastive_reconstruction(X, total, 0.2).item()
    assert value(contrastive=2, contrastive_temperature=0.2) - plain == pytest.approx(2 * contrastive, rel=1e-4)
    alone = value(reconstruction="none", contrastive=2, contrastive_temperature=0.2)
    assert alone == pytest.approx(2 * contrastive + cost, rel=1e-4)
    aligned = collaborative_alignment(total, CF, 0.5).item()
    found = value(CF, collaborative=2, collaborative_temperature=0.5)
    assert found - plain == pytest.approx(2 * aligned, rel=1e-4)
    together = cohesion(torch.stack(quantized.vectors, 1), X).item()
    assert value(cohesion=2) - plain == pytest.approx(2 * together, rel=1e-4)
    apart = sum(spread(codes) for codes in tables).item()
    assert value(spread=2) - plain == pytest.approx(2 * apart, rel=1e-4)
    draws = torch.Generator().manual_seed(0)
    diverse = sum(
        diversity(quantized.codes[:, level], codes, group_codes(codes.detach(), 3, 0), draws)
        for level, codes in enumerate(tables)
    )
    assert value(diversity=2, diversity_groups=3) - plain == pytest.approx(2 * diverse.item(), rel=1e-4)


def test_groups_of_codes_are_made_anew_every_epoch():
    model, compute = linear(diversity=1.0, diversity_groups=2)
    compute.start_epoch()
    before = compute(X, None)[0]
    with torch.no_grad():
        for codebook in model.codebooks:
            codebook.codes.copy_(codebook.codes.flip(0) * torch.tensor([[9.0], [1], [8], [-3], [5], [0.1]]))
    compute.start_epoch()
    fresh = Loss(LossConfig(diversity=1.0, diversity_groups=2), model, seed=0)
    fresh.start_epoch()
    fresh(X, None)  # as many draws as the other made
    assert compute(X, None)[0] == fresh(X, None)[0] != before


def test_the_alignment_term_teaches_the_encoder():
    model, compute = linear(quantization=0.0, collaborative=1.0)
    plain, _ = linear(quantization=0.0)
    compute(X, CF)[0].backward()
    Loss(LossConfig(quantization=0.0), plain, seed=0)(X, None)[0].backward()
    assert (model.encoder[0].weight.grad != plain.encoder[0].weight.grad).any()


# our reading of DEX-VQ


def test_a_head_on_the_latents_teaches_the_encoder_past_a_stopped_quantizer():
    torch.manual_seed(0)
    terms = LossConfig(quantization=0.0, contrastive=2.0, contrastive_of="latents")
    network = RQVAEConfig(hidden=[], latent=4, estimator="none", loss=terms)
    model = ResidualAutoencoder(4, TokenizeConfig("rq-vae", levels=2, codes=6, rq_vae=network))
    z = model.encode(X)
    reconstruction = model.decode(model.quantize(z).joined)
    loss = Loss(terms, model, seed=0)(X, None)[0]
    expected = F.mse_loss(reconstruction, X) + 2 * contrastive_reconstruction(X, model.head(z), 0.1)
    assert loss.item() == pytest.approx(expected.item())
    # the reconstruction's gradient ends at the quantizer: only the head's arrives
    found, head = (
        torch.autograd.grad(value, model.encoder[0].weight, retain_graph=True)[0]
        for value in (loss, 2 * contrastive_reconstruction(X, model.head(z), 0.1))
    )
    torch.testing.assert_close(found, head)
    assert found.abs().sum() > 0


def test_the_mean_over_levels_divides_what_levels_cost():
    plain, per_level = value(quantization=0), value() - value(quantization=0)
    assert value(over_levels="mean") == pytest.approx(plain + per_level / 2, rel=1e-5)
    spread_out = value(spread=0.3) - value()
    assert value(spread=0.3, over_levels="mean") == pytest.approx(plain + (per_level + spread_out) / 2, rel=1e-5)


def test_similarity_terms_compare_what_they_say():
    model, _ = linear()
    quantized = model.quantize(X)
    clusters = cluster_contrast(X, quantized.codes[:, 0], 0.2).item()
    correlated = correlation(X, quantized.joined, 0.2).item()
    assert clusters > 0 < correlated
    assert value(cluster=0.5, similarity_temperature=0.2) == pytest.approx(value() + 0.5 * clusters, rel=1e-5)
    assert value(correlation=0.5, similarity_temperature=0.2) == pytest.approx(value() + 0.5 * correlated, rel=1e-5)


def test_latents_are_compared_after_a_second_encoding():
    model, _ = linear(reconstruction="latent")
    with torch.no_grad():
        model.encoder[0].weight.mul_(3)
    z = torch.randn(9, 4)
    assert latent_reconstruction(model, z, X, True).item() == pytest.approx(F.mse_loss(3 * X, z).item())


def test_no_latent_loss_where_codes_are_exact_and_networks_undo_each_other():
    model, compute = linear(reconstruction="latent")
    with torch.no_grad():
        model.encoder[0].weight.mul_(2)
        model.decoder[0].weight.div_(2)
        model.codebooks[1].codes[3] = 0
    assert compute(model.codebooks[0].codes.detach() / 2, None)[0].item() == 0


def test_a_constant_encoder_costs_nothing():
    """Total collapse is a minimum of the latent loss; another term must keep the items apart."""
    model, compute = linear(reconstruction="latent")
    with torch.no_grad():
        model.encoder[0].weight.zero_()
        model.encoder[0].bias.fill_(0.7)
        model.codebooks[0].codes[2] = 0.7
        model.codebooks[1].codes[3] = 0
    assert compute(X, None)[0].item() == 0
    _, guarded = linear(reconstruction="latent", contrastive=1.0)
    guarded._model.load_state_dict(model.state_dict())
    assert guarded(X, None)[0].item() > 1


@pytest.mark.parametrize("target_detach", [True, False])
def test_only_an_attached_target_sends_gradients_to_the_latents(target_detach):
    model, _ = linear()
    z = X.clone().requires_grad_()
    latent_reconstruction(model, z, torch.zeros(9, 4, requires_grad=True), target_detach).backward()
    assert (z.grad is None) == target_detach


def test_the_text_decoder_reads_every_prefix_of_the_codes():
    model, compute = linear(words=0.5)
    first, second = model.quantize(X).vectors
    shares = torch.eye(3).repeat(3, 1)
    told = torch.stack([model.words(first), model.words(first + second)], dim=1)
    found = (compute(X, None, shares)[0] - compute(X, None)[0]).item()
    assert found == pytest.approx(0.5 * word_loss(told, shares).item(), rel=1e-4)


def test_the_words_teach_the_encoder_and_the_decoder():
    model, compute = linear(quantization=0.0, words=1.0)
    plain, without = linear(quantization=0.0, words=1.0)
    compute(X, None, torch.eye(3).repeat(3, 1))[0].backward()
    without(X, None)[0].backward()
    assert (model.encoder[0].weight.grad != plain.encoder[0].weight.grad).any()
    assert model.words.linear.weight.grad.abs().sum() > 0


def test_siblings_are_told_apart_by_what_their_common_codes_leave():
    model, _ = linear()
    quantized = model.quantize(X)
    left = torch.stack([X, X - quantized.vectors[0]], dim=1)
    term = sibling_contrast(left, quantized.codes, 0.2).item()
    assert value(siblings=2.0, similarity_temperature=0.2) - value() == pytest.approx(2 * term, rel=1e-4)
