"""Collaborative semantic IDs on a planted shop: groups of texts crossed with groups of behaviour, and cold items."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec.collaborative.behaviour import Behaviour, collaborative_vectors
from llmrec.data import Catalog, Interactions
from llmrec.errors import UserError
from llmrec.quantize import RQVAEConfig, TokenizeConfig
from llmrec.quantize.features import item_codes
from llmrec.quantize.joined import PENALTIES, JoinedVectors
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.store import ItemStore

WARM, ALL, DIMS = 64, 72, 8
IDS = [f"i{row}" for row in range(ALL)]
TEXT, BEHAVIOUR = np.arange(ALL) % 4, np.arange(ALL) // 4 % 4
"""The two groups of each item, which say nothing of each other. Nobody takes the last eight items."""
COLD = np.arange(WARM, ALL)


def log_of(seed: int = 0) -> Interactions:
    """Users who take six items of one group of behaviour."""
    rng, events = np.random.default_rng(seed), []
    for user in range(160):
        own = rng.permutation(np.flatnonzero(BEHAVIOUR[:WARM] == user % 4))[:6]
        events += [(f"u{user:03d}", IDS[item], time) for time, item in enumerate(own)]
    return Interactions(pl.DataFrame(events, ["user_id", "item_id", "timestamp"], orient="row"))


@pytest.fixture(scope="module")
def log() -> Interactions:
    return log_of()


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """One direction per group of texts, and one, much weaker, per group of behaviour."""
    x = np.random.default_rng(1).normal(scale=0.05, size=(ALL, DIMS))
    x[np.arange(ALL), TEXT] += 1
    x[np.arange(ALL), 4 + BEHAVIOUR] += 0.3
    return x.astype(np.float32)


def fit(vectors: np.ndarray, log: Interactions, items: int = ALL, **settings: object) -> ItemTokenizer:
    tokenizer = ItemTokenizer(**{"levels": 2, "codes": 4, "collaborative": 6} | settings)
    return tokenizer.fit_embeddings(IDS[:items], vectors[:items], log=log)


@pytest.fixture(scope="module")
def fitted(log: Interactions, vectors: np.ndarray) -> ItemTokenizer:
    return fit(vectors, log)


def same_partition(codes: np.ndarray, groups: np.ndarray) -> bool:
    """Whether two items have equal codes if and only if they are of one group."""
    return bool(((codes[:, None] == codes[None]) == (groups[:, None] == groups[None])).all())


def test_codes_follow_the_texts_or_behaviour_by_the_weight(log: Interactions, vectors: np.ndarray) -> None:
    firsts = {weight: fit(vectors, log, collaborative_weight=weight).codes[:, 0] for weight in (0.0, 0.1, 4.0)}
    plain = ItemTokenizer(levels=2, codes=4).fit_embeddings(IDS, vectors, log=log).codes[:, 0]
    assert same_partition(plain, TEXT)
    assert same_partition(firsts[0.0], TEXT)
    assert same_partition(firsts[0.1], TEXT)
    assert same_partition(firsts[4.0], BEHAVIOUR), "cold items too, whose behaviour is predicted from their texts"


def by_hand(vectors: np.ndarray, log: Interactions, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """Scaled text vectors [ALL, D], and behaviour as predicted from them [ALL, d], by the formulas of the module."""
    factors = collaborative_vectors(Behaviour.from_log(log, IDS), 6, 0)[:WARM].astype(np.float64)
    texts = vectors.astype(np.float64)
    centre = texts[:WARM].mean(axis=0)
    z = (texts - centre) / np.sqrt(((texts[:WARM] - centre) ** 2).sum(axis=1).mean() / DIMS)
    y = factors - factors.mean(axis=0)
    y *= weight * np.sqrt(DIMS / (y**2).sum(axis=1).mean())

    def solve(rows: np.ndarray, penalty: float) -> np.ndarray:
        return np.linalg.solve(z[rows].T @ z[rows] + penalty * np.eye(DIMS), z[rows].T @ y[rows])

    every = np.arange(WARM)
    errors = [
        sum(((y[row] - z[row] @ solve(np.delete(every, row), penalty)) ** 2).sum() for row in every)
        for penalty in PENALTIES * WARM
    ]
    assert 0 < int(np.argmin(errors)) < len(PENALTIES) - 1, "the best penalty lies inside the grid"
    return z, z @ solve(every, PENALTIES[int(np.argmin(errors))] * WARM)


def test_predicted_behaviour_is_the_ridge_value(log: Interactions, vectors: np.ndarray) -> None:
    """Also for a cold item whose text is that of a warm item: it gets the prediction, the warm item keeps its own."""
    twins = vectors.copy()
    twins[COLD[0]] = twins[5]
    tokenizer = fit(twins, log, collaborative_weight=2.0)
    z, predicted = by_hand(twins, log, 2.0)
    inputs = tokenizer.inputs(IDS, twins)
    np.testing.assert_allclose(inputs[:, :DIMS], z, atol=1e-4)
    np.testing.assert_allclose(inputs[COLD, DIMS:], predicted[COLD], atol=1e-4)
    np.testing.assert_allclose(inputs[COLD[0], DIMS:], predicted[5], atol=1e-4)
    assert np.abs(inputs[5, DIMS:] - predicted[5]).max() > 0.1
    own = inputs[:WARM]
    np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-5)
    assert (own[:, :DIMS] ** 2).sum(axis=1).mean() == pytest.approx(DIMS, rel=1e-4)
    assert (own[:, DIMS:] ** 2).sum(axis=1).mean() == pytest.approx(4 * DIMS, rel=1e-4)
    np.testing.assert_array_equal(tokenizer.codes[:, :2], tokenizer.quantizer.encode(inputs))


def test_cold_items_change_nothing_of_the_map(log: Interactions, vectors: np.ndarray, fitted: ItemTokenizer) -> None:
    without = fit(vectors, log, WARM).joined
    for name, array in fitted.joined.tensors().items():
        np.testing.assert_array_equal(array, without.tensors()[name], name)
    np.testing.assert_array_equal(fitted.joined.behaviour[:WARM], without.behaviour)
    assert fitted.joined.known.tolist() == [True] * WARM + [False] * len(COLD)


def test_an_added_item_gets_the_codes_of_a_cold_one(vectors: np.ndarray, fitted: ItemTokenizer) -> None:
    again = fitted.without_items([IDS[row] for row in COLD])
    in_one_call = again.with_items([IDS[row] for row in COLD], vectors[COLD])
    np.testing.assert_array_equal(in_one_call.codes, fitted.codes)
    for row in COLD:
        again = again.with_items([IDS[row]], vectors[[row]])
    np.testing.assert_array_equal(again.codes, fitted.codes)
    np.testing.assert_array_equal(again.joined.behaviour, fitted.joined.behaviour)
    # The cold item is not where its text alone would be: its behaviour is part of the vector.
    np.testing.assert_array_equal(again.encode(vectors[COLD]), fitted.codes[COLD, :2])


def test_a_store_takes_vectors_of_texts(vectors: np.ndarray, fitted: ItemTokenizer) -> None:
    catalog = Catalog.from_frame(pl.DataFrame({"item_id": IDS, "title": IDS}))
    store = ItemStore.untrained(catalog, fitted).without_items([IDS[-1]])
    grown = store.with_items(catalog.take_rows(pl.Series([ALL - 1])), vectors[-1:])
    np.testing.assert_array_equal(grown.item_tokenizer.codes, fitted.codes)
    with pytest.raises(UserError, match=r"expected \(1, 8\)"):
        store.with_items(catalog.take_rows(pl.Series([ALL - 1])), np.ones((1, 12), np.float32))


@pytest.mark.parametrize("method", ["rq-kmeans", "hierarchical-kmeans"])
def test_saved_and_loaded(log: Interactions, vectors: np.ndarray, method: str, tmp_path: Path) -> None:
    tokenizer = fit(vectors, log, method=method)
    tokenizer.save(tmp_path)
    loaded = ItemTokenizer.load(tmp_path)
    assert (loaded.config, loaded.dims) == (tokenizer.config, DIMS)
    np.testing.assert_array_equal(loaded.inputs(IDS, vectors), tokenizer.inputs(IDS, vectors))
    new = vectors[:7] + np.float32(0.05)
    names = [f"n{row}" for row in range(7)]
    np.testing.assert_array_equal(loaded.with_items(names, new).codes, tokenizer.with_items(names, new).codes)
    loaded.take_rows(np.arange(10)[::-1]).save(tmp_path / "some")
    some = ItemTokenizer.load(tmp_path / "some")
    np.testing.assert_array_equal(some.inputs(IDS[9::-1], vectors[9::-1]), tokenizer.inputs(IDS, vectors)[9::-1])
    frame = pl.read_parquet(tmp_path / "item_codes.parquet")
    frame.with_columns(collaborative=pl.lit([1.0] * 5)).write_parquet(tmp_path / "item_codes.parquet")
    with pytest.raises(UserError, match="not a saved item tokenizer"):
        ItemTokenizer.load(tmp_path)


def test_equal_fits_are_equal(log: Interactions, vectors: np.ndarray, fitted: ItemTokenizer, tmp_path: Path) -> None:
    """A stage that was killed and made again has the same bytes."""
    for name, tokenizer in (("one", fitted), ("two", fit(vectors, log))):
        tokenizer.save(tmp_path / name)
    for name in ("quantizer.safetensors", "quantizer.json", "item_codes.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_without_the_option_nothing_changes(log: Interactions, vectors: np.ndarray, tmp_path: Path) -> None:
    plain = ItemTokenizer(levels=2, codes=4).fit_embeddings(IDS, vectors, log=log)
    assert plain.joined is None
    assert plain.inputs(IDS, vectors) is vectors
    plain.save(tmp_path)
    assert pl.read_parquet(tmp_path / "item_codes.parquet").columns == ["item_id", "codes"]
    key = TokenizeConfig().cache_key()
    assert not {"collaborative", "collaborative_weight"} & key.keys()
    assert TokenizeConfig(collaborative=8).cache_key() == {**key, "collaborative": 8}
    assert TokenizeConfig(collaborative=8, collaborative_weight=2).cache_key()["collaborative_weight"] == 2


def test_codes_as_features(vectors: np.ndarray, fitted: ItemTokenizer) -> None:
    """`export-features` codes the cold items of a strict run as `add-items` does."""
    warm = fitted.without_items([IDS[row] for row in COLD])
    np.testing.assert_array_equal(item_codes(warm, IDS, vectors), fitted.codes[:, :2])


def test_a_network_learns_from_the_joined_vectors(log: Interactions, vectors: np.ndarray) -> None:
    network = RQVAEConfig(hidden=[32], latent=8, epochs=60, batch_size=24, standardize=False)
    codes = fit(vectors, log, method="rq-vae", rq_vae=network, collaborative_weight=4.0).codes[:WARM, 0]
    group = BEHAVIOUR[:WARM]
    shares = [np.bincount(codes[group == each]).max() / 16 for each in range(4)]
    assert np.mean(shares) > 0.8, shares


def test_the_fit_says_how_many_items_have_behaviour(log: Interactions, vectors: np.ndarray, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="llmrec"):
        fit(vectors, log)
    assert "64 of 72 items have behaviour; the others get it predicted from their texts" in caplog.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"behaviour": 8}, r"collaborative 6 joins .*\.behaviour 8 makes semantic IDs of behaviour alone; set one of"),
        ({"method": "rq-vae"}, r"standardize true gives every dimension the same variance, .* set it to false"),
        ({"file": "codes.json"}, r"collaborative 6: tokenize\.file codes\.json has the semantic IDs already"),
        ({"collaborative": 0, "collaborative_weight": 2.0}, r"weight 2\.0 does nothing .* set tokenize\.collab"),
        ({"collaborative_weight": -1.0}, r"tokenize\.collaborative_weight"),
        ({"collaborative": -1}, r"tokenize\.collaborative "),
    ],
)
def test_settings_that_do_not_go_together(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        ItemTokenizer(**{"collaborative": 6} | settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("dims", "given", "words"),
    [
        (6, None, r"tokenize\.collaborative 6 needs the training log; pass log="),
        (ALL, log_of(), rf"tokenize\.collaborative {ALL}: {ALL} items have .* fewer dimensions; set it below {ALL}"),
        (6, Interactions(log_of().frame.group_by("user_id").first()), r"collaborative 6: 0 of 72 .* set it to 0"),
    ],
)
def test_what_can_not_be_learnt_is_one_line(vectors: np.ndarray, dims: int, given: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        fit(vectors, given, collaborative=dims)
    assert "\n" not in str(error.value)


def test_equal_texts_are_one_line(log: Interactions) -> None:
    with pytest.raises(UserError, match="all 64 items with behaviour have the same vector of text; set it to 0"):
        fit(np.ones((ALL, DIMS), np.float32), log)


def test_vectors_of_other_dimensions_are_refused(fitted: ItemTokenizer) -> None:
    with pytest.raises(UserError, match="the embeddings have 12 dimensions, this tokenizer was fitted on 8"):
        fitted.encode(np.ones((2, 12), np.float32))


def test_parts_that_do_not_fit_together_are_refused() -> None:
    one = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="ridge"):
        JoinedVectors(one, 1.0, np.zeros((2, 4), np.float32), np.zeros((5, 4), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        JoinedVectors(one, float("nan"), np.zeros((3, 4), np.float32), np.zeros((5, 4), np.float32))
