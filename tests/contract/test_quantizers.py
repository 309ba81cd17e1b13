"""Every quantizer over planted clusters: what holds for one must hold for all."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from llmrec.errors import UserError
from llmrec.quantize import Quantizer, RQVAEConfig, TokenizeConfig, quantizer_class
from llmrec.quantize.config import FROZEN, FSQ, STOCHASTIC, Codebook, Estimator, LossConfig, Method

GROUPS, PER_GROUP, DIMS, CODES = 8, 24, 12, 8


def planted(seed: int = 0) -> np.ndarray:
    """Unit vectors with a common offset, in well separated groups of well separated subgroups."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(GROUPS, DIMS)), PER_GROUP, axis=0)
    branches = np.tile(np.repeat(0.3 * rng.normal(size=(4, DIMS)), PER_GROUP // 4, axis=0), (GROUPS, 1))
    x = 2 + centres + branches + 0.03 * rng.normal(size=centres.shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def classical(method: Method, **settings: Any) -> TokenizeConfig:
    return TokenizeConfig(method, **{"codes": CODES, **settings})


def rq_vae(codes: int | list[int] = CODES, **parts: Any) -> TokenizeConfig:
    """A small network with these parts."""
    network = {"hidden": [32], "latent": 8, "epochs": 40, "batch_size": 32, **parts}
    return TokenizeConfig("rq-vae", codes=codes, rq_vae=RQVAEConfig(**network))


def with_codebook(codebook: Codebook) -> TokenizeConfig:
    parts: dict[str, Any] = {"codebook": codebook, "reset_every": 0 if codebook in (*FSQ, *FROZEN) else 5}
    if codebook == "fsq":
        return rq_vae(CODES, grid=[4, 2], latent=6, init="none", **parts)
    if codebook == "fsq-symmetric":  # its axes have odd numbers of values
        return rq_vae(9, grid=[3, 3], latent=6, init="none", **parts)
    return rq_vae(init="none" if codebook == "simvq" else "kmeans++", **parts)


CONFIGS: dict[str, TokenizeConfig] = {
    "random": classical("random"),
    "kmeans": classical("kmeans", levels=1),
    "pq": classical("pq"),
    "pq, uneven": classical("pq", codes=[8, 4, 6]),
    "pq, blocks of two widths": classical("pq", levels=5),
    "opq": classical("opq"),
    "opq, blocks of two widths": classical("opq", levels=5),
    "rq-kmeans": classical("rq-kmeans"),
    "rq-kmeans, uneven": classical("rq-kmeans", codes=[8, 4, 6]),
    "rq-kmeans, beams": classical("rq-kmeans", beams=4),
    "rq-kmeans, balanced": classical("rq-kmeans", balanced=True),
    "rq-kmeans-normalized": classical("rq-kmeans-normalized"),
    "rq-opq": classical("rq-opq", levels=4),
    "rq-opq, uneven": classical("rq-opq", levels=4, codes=[8, 6, 4, 3], product_levels=3),
    "aq": classical("aq"),
    "aq, one beam": classical("aq", beams=1),
    "aq, uneven": classical("aq", codes=[8, 4, 6]),
    "hierarchical-kmeans": classical("hierarchical-kmeans"),
    "hierarchical-kmeans, uneven": classical("hierarchical-kmeans", codes=[8, 4, 3]),
    "hierarchical-kmeans, balanced": classical("hierarchical-kmeans", balanced=True),
    **{f"rq-vae, {codebook}": with_codebook(codebook) for codebook in get_args(Codebook)},
    **{
        f"rq-vae, {estimator}": rq_vae(
            estimator=estimator,
            temperature=0.1 if estimator in STOCHASTIC else 1.0,
            loss=LossConfig(contrastive=1, contrastive_of="latents") if estimator == "none" else LossConfig(),
        )
        for estimator in get_args(Estimator)[1:]
    },
    "rq-vae, uneven": rq_vae(codes=[8, 4, 6]),
    "rq-vae, sinkhorn": rq_vae(sinkhorn=[0, 0, 0.01]),
    "rq-vae, fewest collisions": rq_vae(epochs=80, measure_every=40, keep="fewest-collisions"),
    "rq-vae, clusters": rq_vae(loss=LossConfig(cluster=0.1)),
    "rq-vae, correlation": rq_vae(loss=LossConfig(correlation=0.5)),
    "rq-vae, words": rq_vae(loss=LossConfig(words=0.1, siblings=0.1)),
}
"""Every method, every way of fitting one, every codebook and every estimator."""

BLIND = ("random",)
"""Codes that say nothing of the item."""
COARSE_FIRST = (
    "kmeans",
    *(name for name in CONFIGS if name.startswith(("rq-kmeans", "aq", "hierarchical"))),
    *("rq-vae, learned", "rq-vae, ema", "rq-vae, rotation"),
)
"""Methods whose first code names the group; blocks, grids and training by samples promise no such thing."""
NEVER_WORSE = tuple(name for name in CONFIGS if name.startswith(("rq-kmeans", "aq", "hierarchical")))
"""Methods whose error on the fitted items falls with every level."""
EXACT = tuple(name for name in CONFIGS if not name.startswith(("random", "rq-vae")) and "uneven" not in name)
"""Methods that reconstruct as many items as codes exactly."""


def make(config: TokenizeConfig) -> Quantizer:
    return quantizer_class(config.method)(config)


def fit(config: TokenizeConfig, x: Any) -> Quantizer:
    """The quantizer of `x`, whose items have texts of their extreme dimensions."""
    rows = x.float().numpy() if isinstance(x, torch.Tensor) else x
    texts = [f"item high{row.argmax()} low{row.argmin()}" for row in rows]
    return make(config).fit(x, None, texts)


def quick(config: TokenizeConfig) -> TokenizeConfig:
    """The same parts, trained for as long as it takes to see them work, not work well."""
    return replace(config, iterations=5, rq_vae=replace(config.rq_vae, epochs=2))


def error(quantizer: Quantizer, x: np.ndarray) -> float:
    return float(((quantizer.decode(quantizer.encode(x)) - x) ** 2).sum())


def assert_in_range(codes: np.ndarray, quantizer: Quantizer, n: int) -> None:
    assert codes.shape == (n, quantizer.levels)
    assert codes.dtype == np.int32
    assert (codes >= 0).all()
    assert (codes < quantizer.level_sizes).all()


def distinct_rows_needed(config: TokenizeConfig) -> int:
    return make(config).least_distinct


@pytest.fixture(scope="module", params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def config(name: str) -> TokenizeConfig:
    return CONFIGS[name]


@pytest.fixture(scope="module")
def fitted(config: TokenizeConfig) -> Quantizer:
    return fit(config, planted())


def test_every_choice_is_covered():
    configs = CONFIGS.values()
    assert {config.method for config in configs} == set(get_args(Method))
    assert {config.rq_vae.codebook for config in configs} == set(get_args(Codebook))
    assert {config.rq_vae.estimator for config in configs} == set(get_args(Estimator))


def test_shapes_and_ranges(config, fitted):
    x = planted()
    assert (fitted.levels, fitted.codes, fitted.dims) == (config.levels, max(config.level_sizes), DIMS)
    assert fitted.level_sizes == config.level_sizes
    assert_in_range(fitted.encode(x), fitted, len(x))
    assert_in_range(fitted.assign(x), fitted, len(x))
    reconstruction = fitted.decode(fitted.encode(x))
    assert reconstruction.shape == x.shape
    assert reconstruction.dtype == np.float32
    assert np.isfinite(reconstruction).all()


def test_the_same_question_has_the_same_answer(fitted):
    x = planted()
    codes = fitted.encode(x)
    np.testing.assert_array_equal(fitted.encode(x), codes)
    np.testing.assert_array_equal(fitted.decode(codes), fitted.decode(codes))


@pytest.mark.parametrize("name", COARSE_FIRST, scope="module")
def test_the_groups_are_found(fitted):
    codes = fitted.encode(planted())[:, 0]
    assert len(np.unique(codes)) == CODES
    # far from chance (8 groups of 24 on 8 codes give at least 3 items each): an item's group names its code
    group = np.repeat(np.arange(GROUPS), PER_GROUP)
    agree = sum(np.bincount(codes[group == g]).max() for g in range(GROUPS))
    assert agree >= 0.8 * len(codes)


def test_the_codes_carry_the_embedding(name, fitted):
    x = planted()
    share = error(fitted, x) / ((x - x.mean(0)) ** 2).sum()
    assert share == pytest.approx(1) if name in BLIND else share < 0.4


@pytest.mark.parametrize("name", NEVER_WORSE, scope="module")
def test_more_levels_are_never_worse(name, config):
    errors = []
    for levels in (1, 2, 3):
        codes = config.codes[:levels] if isinstance(config.codes, list) else config.codes
        errors.append(error(fit(replace(config, levels=levels, codes=codes), planted()), planted()))
    assert errors[0] > errors[1] > errors[2] or errors[2] < 1e-8


def test_same_seed_same_codes(config):
    first, again, other = (fit(replace(quick(config), seed=seed), planted()).encode(planted()) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_state_round_trip(config, fitted):
    tensors = {key: array.copy() for key, array in fitted.tensors().items()}
    again = quantizer_class(config.method).from_state(fitted.config(), tensors)
    x = planted()
    codes = fitted.encode(x)
    np.testing.assert_array_equal(again.encode(x), codes)
    np.testing.assert_array_equal(again.assign(x), fitted.assign(x))
    np.testing.assert_array_equal(again.decode(codes), fitted.decode(codes))
    assert again.words_of(codes, 3) == fitted.words_of(codes, 3)
    assert again.config() == fitted.config()


def test_unseen_items_are_encoded(fitted):
    unseen = planted(seed=1)
    assert_in_range(fitted.encode(unseen), fitted, len(unseen))
    assert np.isfinite(fitted.decode(fitted.encode(unseen))).all()


def test_unseen_items_near_a_group_take_its_first_code(name, fitted):
    if name in BLIND:
        pytest.skip("a hash sees no neighbours")
    x = planted()
    codes, near = fitted.encode(x)[:, 0], fitted.encode(x + np.float32(1e-4))[:, 0]
    assert (codes == near).mean() > 0.9


def test_each_row_is_encoded_alone(fitted):
    x = planted()
    np.testing.assert_array_equal(np.vstack([fitted.encode(row[None]) for row in x[:20]]), fitted.encode(x)[:20])


def test_no_items_no_codes(fitted):
    assert fitted.encode(np.empty((0, DIMS), np.float32)).shape == (0, fitted.levels)


def test_duplicates_share_their_codes(config):
    x = np.repeat(planted()[::4], 3, axis=0)
    codes = fit(quick(config), x).encode(x).reshape(-1, 3, config.levels)
    assert (codes == codes[:, :1]).all()


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64"])
def test_other_float_types_count_by_their_values(config, kind):
    x = torch.from_numpy(planted()).to(getattr(torch, kind))
    given = x if kind == "bfloat16" else x.numpy()
    float32 = x.float().numpy()
    quantizer, same = fit(quick(config), given), fit(quick(config), float32)
    np.testing.assert_array_equal(quantizer.encode(given), same.encode(float32))
    np.testing.assert_array_equal(quantizer.assign(given), same.assign(float32))


def test_a_memory_mapped_catalogue_equals_one_in_memory(config, fitted, tmp_path):
    np.save(tmp_path / "x.npy", planted())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(fitted.encode(mapped), fitted.encode(planted()))
    np.testing.assert_array_equal(fitted.assign(mapped), fitted.assign(planted()))
    quantizers = [fit(quick(config), x) for x in (mapped, planted())]
    np.testing.assert_array_equal(*(quantizer.encode(planted()) for quantizer in quantizers))


def test_too_few_distinct_embeddings_are_refused(config):
    needed = distinct_rows_needed(config)
    few = needed - 1
    x = np.repeat(planted()[:few], 9, axis=0)
    with pytest.raises(UserError, match=rf"{9 * few} items with {few} distinct .* (set tokenize.codes|no codes can)"):
        fit(config, x)


@pytest.mark.parametrize(
    ("x", "found"),
    [(np.ones((50, DIMS)), "50 items with 1 distinct"), (planted()[:1], "1 items with 1 distinct")],
    ids=["constant", "one item"],
)
def test_nothing_to_tell_apart_is_refused(config, x, found):
    with pytest.raises(UserError, match=found):
        fit(config, x)


def test_the_fewest_items_there_may_be(config):
    few = distinct_rows_needed(config)
    x = planted()[:: len(planted()) // few][:few]
    quantizer = fit(quick(config), x)
    assert_in_range(quantizer.encode(x), quantizer, few)
    assert np.isfinite(quantizer.decode(quantizer.encode(x))).all()


@pytest.mark.parametrize("name", EXACT, scope="module")
@pytest.mark.parametrize("copies", [1, 5])
def test_as_many_distinct_items_as_codes_are_told_apart(config, copies):
    """Copies may differ in codes that add nothing, of which rounding takes one; no two items ever share a code."""
    x = np.repeat(planted()[:: len(planted()) // CODES][:CODES], copies, axis=0)
    quantizer = fit(config, x)
    owners: dict[tuple[int, ...], set[int]] = {}
    for row, codes in enumerate(quantizer.encode(x).tolist()):
        owners.setdefault(tuple(codes), set()).add(row // copies)
    assert all(len(items) == 1 for items in owners.values())
    assert copies > 1 or len(owners) == CODES
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(x)), x, atol=1e-4)


def test_a_constant_dimension_is_harmless(name, config, fitted):
    x = planted()
    x[:, 3] = 7
    quantizer = fit(quick(config), x)
    # normalised codes do not say how long an item is; here the lengths are 7 to 7.1
    atol = 0.1 if config.method == "rq-kmeans-normalized" else 1e-3
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(x))[:, 3], 7, atol=atol)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(config, fitted, bad):
    x = planted()
    x[5, 2] = bad
    for use in (fitted.encode, fitted.assign, lambda x: fit(config, x)):
        with pytest.raises(UserError, match=r"row 5 .* NaN or infinity"):
            use(x)


def test_other_dimensions_are_refused(fitted):
    for use in (fitted.encode, fitted.assign):
        with pytest.raises(UserError, match=f"{DIMS + 1} dimensions, this quantizer was fitted on {DIMS}"):
            use(np.ones((2, DIMS + 1), np.float32))


def test_codes_outside_the_codebooks_are_refused(fitted):
    good = np.zeros((1, fitted.levels), int)
    for bad, found in (
        (good + fitted.level_sizes, "outside"),
        (good - 1, "outside"),
        (good[:, 1:], "expected"),
        (good[0], "expected"),
    ):
        with pytest.raises(ValueError, match=found):
            fitted.decode(bad)


@pytest.mark.parametrize(
    "name",
    [name for name, config in CONFIGS.items() if config.method not in ("rq-vae", "rq-kmeans-normalized")],
    scope="module",
)
def test_last_level_costs_are_the_errors_of_the_reconstructions(fitted):
    x, codes = planted()[::10], fitted.encode(planted()[::10])
    costs = fitted.last_level_costs(x, codes[:, :-1])
    assert costs.shape == (len(x), fitted.level_sizes[-1])
    errors = ((fitted.decode(codes) - x) ** 2).sum(1)
    np.testing.assert_allclose(costs[np.arange(len(x)), codes[:, -1]], errors, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.balanced], scope="module")
def test_balanced_catalogues_share_the_first_codes_evenly(fitted):
    for n in (len(planted()), 100):
        sizes = np.bincount(fitted.assign(planted()[:n])[:, 0], minlength=CODES)
        assert sizes.max() <= -(-n // CODES)
        assert sizes.min() >= n // CODES
