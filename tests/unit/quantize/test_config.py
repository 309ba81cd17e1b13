"""Settings that don't go together are refused with a reason, and every preset holds together."""

from dataclasses import asdict
from typing import Any, get_args

import pytest

from llmrec.errors import UserError
from llmrec.quantize import LossConfig, RQVAEConfig, TokenizeConfig
from llmrec.quantize.config import LATER, Method
from llmrec.quantize.methods import preset, tokenizer_names

FSQ: dict[str, Any] = {"codebook": "fsq", "grid": [4, 2], "latent": 6, "init": "none", "reset_every": 0}
SIMVQ: dict[str, Any] = {"codebook": "simvq", "init": "none", "reset_every": 0}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({**FSQ, "grid": []}, "an empty grid"),
        ({"grid": [4, 2]}, "codebook learned does not go with a grid"),
        ({**FSQ, "estimator": "rotation"}, "estimator rotation: rounding passes"),
        ({**FSQ, "init": "kmeans++"}, r"init kmeans\+\+: .* set init none"),
        ({**SIMVQ, "init": "random"}, "init random: .* set init none"),
        ({"init": "none"}, "init none: its codes need a place"),
        ({"codebook": "fixed-linear", "init": "random", "reset_every": 0}, "frozen random codes are codebook simvq"),
        ({**FSQ, "reset_every": 5}, "reset_every 5: .* set reset_every 0"),
        ({**SIMVQ, "reset_every": 5}, "reset_every 5: .* set reset_every 0"),
        ({**FSQ, "sinkhorn": [0, 0, 0.003]}, "codebook fsq does not go with sinkhorn"),
        ({"estimator": "gumbel", "sinkhorn": [0, 0, 0.003]}, "sinkhorn and estimator gumbel"),
        ({"codebook": "ema", "loss": LossConfig(spread=0.1)}, "codebook ema does not go with loss.spread"),
        ({**FSQ, "loss": LossConfig(diversity=0.1)}, "codebook fsq does not go with loss.diversity"),
        ({"codebook": "ema", "estimator": "sq-vae"}, "codebook ema does not go with estimator sq-vae"),
        ({"ema_decay": 1.0}, "tokenize.rq_vae.ema_decay 1.0"),
        ({"temperature": 0.0}, "tokenize.rq_vae.temperature 0.0: expected more than 0"),
        ({"keep": "fewest-collisions"}, "chooses among measured epochs; set tokenize.rq_vae.measure_every to 1"),
        ({"warmup": 1.0}, "tokenize.rq_vae.warmup 1.0"),
        ({"grid": [1]}, "tokenize.rq_vae.grid 1: expected at least 2"),
    ],
)
def test_parts_that_do_not_go_together(settings, said):
    with pytest.raises(UserError, match=said):
        RQVAEConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reconstruction": "none"}, "give tokenize.rq_vae.loss.contrastive a weight"),
        ({"target_detach": False}, "reconstruction latent only; it is mse"),
        ({"contrastive": -1.0}, "tokenize.rq_vae.loss.contrastive -1.0"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature 0.0: expected more than 0"),
    ],
)
def test_losses_that_do_not_go_together(settings, said):
    with pytest.raises(UserError, match=said):
        LossConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"codes": [8, 8]}, "tokenize.codes has 2 sizes, tokenize.levels is 3"),
        ({"codes": [8, 8, 1]}, "tokenize.codes 1: expected at least 2"),
        ({"method": "kmeans"}, "kmeans has one level, not 3; try rq-kmeans"),
        ({"method": "pq", "beams": 2}, "tokenize.beams does nothing for method pq"),
        ({"method": "aq", "beams": 0}, "tokenize.beams 0"),
        ({"method": "pq", "balanced": True}, "tokenize.balanced does nothing for method pq"),
        ({"balanced": True, "beams": 4}, "exclude each other"),
        ({"method": "rq-vae", "rq_vae": RQVAEConfig(sinkhorn=[0, 0.1])}, "2 strengths for 3 levels"),
        ({"method": "rq-vae", "rq_vae": RQVAEConfig(**FSQ)}, r"tokenize.codes is 256, .* \[4, 2\] has 8 codes"),
        (
            {"method": "rq-vae", "codes": 8, "rq_vae": RQVAEConfig(**{**FSQ, "latent": 4})},
            "latent is 4, but 3 levels of 2 axes need 6",
        ),
        (
            {"method": "rq-vae", "codes": 8, "rq_vae": RQVAEConfig(loss=LossConfig(diversity=0.1))},
            "diversity_groups is 10, too many for 8 codes",
        ),
    ],
)
def test_methods_and_settings_that_do_not_go_together(settings, said):
    with pytest.raises(UserError, match=said):
        TokenizeConfig(**settings)


def test_the_symmetric_reading_has_an_odd_number_of_values_per_axis():
    TokenizeConfig("rq-vae", codes=5 * 3, rq_vae=RQVAEConfig(**{**FSQ, "codebook": "fsq-symmetric"}))


def test_sizes_per_level():
    assert TokenizeConfig(codes=7, levels=2).level_sizes == [7, 7]
    assert TokenizeConfig(codes=[9, 5], levels=2).level_sizes == [9, 5]


def test_beams_by_method():
    assert [TokenizeConfig(method).encoding_beams for method in ("rq-kmeans", "aq", "pq")] == [1, 8, 1]
    assert TokenizeConfig("aq", beams=3).encoding_beams == 3


def test_as_a_dictionary_and_back():
    config = TokenizeConfig("rq-vae", codes=[4, 8, 4], rq_vae=RQVAEConfig(loss=LossConfig(contrastive=0.5)))
    assert TokenizeConfig.from_dict(asdict(config)) == config


@pytest.mark.parametrize("name", tokenizer_names())
def test_every_name_has_settings(name):
    assert preset(name).method in get_args(Method)


def test_presets_carry_the_papers_settings():
    tiger, lc_rec = preset("tiger"), preset("lc-rec")
    assert (tiger.levels, tiger.codes, tiger.rq_vae.latent, tiger.rq_vae.beta) == (3, 256, 32, 0.25)
    assert (tiger.rq_vae.hidden, tiger.rq_vae.batch_size, tiger.rq_vae.standardize) == ([512, 256, 128], 1024, False)
    assert (lc_rec.levels, lc_rec.codes, lc_rec.collisions) == (4, 256, "sinkhorn")
    assert lc_rec.rq_vae.hidden == [2048, 1024, 512, 256, 128, 64]
    for authors in (lc_rec, preset("letter")):
        assert (authors.rq_vae.sinkhorn, authors.rq_vae.batch_size) == ([0, 0, 0, 0.003], 1024)
        assert (authors.rq_vae.loss.over_levels, authors.rq_vae.keep) == ("mean", "fewest-collisions")
        assert (authors.collisions, authors.rq_vae.hidden[0]) == ("sinkhorn", 2048)


def test_an_unknown_name_is_refused_with_the_closest():
    with pytest.raises(UserError, match="no tokenizer 'lcrec'; did you mean 'lc-rec'"):
        preset("lcrec")


def test_fields_that_earlier_versions_lacked_keep_their_runs():
    terms = LossConfig(contrastive=1, contrastive_of="latents")
    plain, headed = TokenizeConfig(), TokenizeConfig("rq-vae", rq_vae=RQVAEConfig(loss=terms))
    assert "contrastive_of" not in plain.cache_key()["rq_vae"]["loss"]
    assert headed.cache_key()["rq_vae"]["loss"]["contrastive_of"] == "latents"
    assert "file" not in plain.cache_key()
    assert LATER.isdisjoint({*plain.cache_key(), *plain.cache_key()["rq_vae"], *plain.cache_key()["rq_vae"]["loss"]})
    assert TokenizeConfig("rq-opq", levels=4, product_levels=1).cache_key()["product_levels"] == 1
    measured = RQVAEConfig(measure_every=2, loss=LossConfig(cluster=0.1))
    key = TokenizeConfig("rq-vae", rq_vae=measured).cache_key()["rq_vae"]
    assert (key["measure_every"], key["loss"]["cluster"]) == (2, 0.1)


def test_a_stopped_gradient_needs_another_teacher():
    with pytest.raises(UserError, match=r"estimator none .* nothing would teach it; set .*contrastive_of latents"):
        RQVAEConfig(estimator="none")
    with pytest.raises(UserError, match=r"contrastive_of latents does nothing without .* give .*contrastive a weight"):
        LossConfig(contrastive_of="latents")
