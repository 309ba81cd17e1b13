"""A shop whose texts tell items apart by kind, while its users stay with one brand."""

import json
from dataclasses import asdict
from math import log as ln

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from tolerances import SUMS

from llmrec.collaborative.behaviour import Behaviour
from llmrec.config import Config
from llmrec.data import Catalog, DataConfig, Interactions, load
from llmrec.embed import AlignConfig, EmbedConfig, Embeddings, embed, make_encoder
from llmrec.embed.align import _true_elsewhere, learn_head, pair_contrast, positive_pairs
from llmrec.errors import UserError
from llmrec.pipeline import data_stage, embed_stage
from llmrec.quantize import ItemTokenizer, TokenizeConfig, quantizer_class
from llmrec.rundir import RunDirectory

KINDS = ["soap", "cream", "brush", "razor", "lotion", "perfume"]
BRANDS = ["Alba", "Borea", "Cirrus", "Dorado", "Elara", "Fornax"]
COPIES = 3
DIM = 14
ALIGN = AlignConfig(epochs=30, batch_size=64)


def text(kind: str, brand: str, number: int) -> str:
    return f"{kind} fine {kind} gentle {kind} {brand} no{number}"


ROWS = [(kind, brand, copy) for kind in KINDS for brand in BRANDS for copy in range(COPIES)]
CATALOG = Catalog.from_frame(
    pl.DataFrame({"item_id": [f"i{row}" for row in range(len(ROWS))], "title": [text(*row) for row in ROWS]})
)
kind_of = np.array([KINDS.index(kind) for kind, _, _ in ROWS])
brand_of = np.array([BRANDS.index(brand) for _, brand, _ in ROWS])


def shopping(seed: int = 0, users: int = 200, length: int = 6) -> Interactions:
    rng = np.random.default_rng(seed)
    baskets = [rng.choice(np.flatnonzero(brand_of == rng.integers(len(BRANDS))), length) for _ in range(users)]
    names = [f"u{user}" for user in range(users) for _ in range(length)]
    return Interactions.from_frame(
        pl.DataFrame({"user_id": names, "item_id": [f"i{item}" for basket in baskets for item in basket]})
    )


def tfidf(align: AlignConfig | None = None, normalize: bool = True) -> EmbedConfig:
    return EmbedConfig("tfidf-svd", dim=DIM, normalize=normalize, align=align or AlignConfig())


@pytest.fixture(scope="module")
def plain() -> Embeddings:
    return embed(CATALOG, tfidf())


@pytest.fixture(scope="module")
def aligned() -> Embeddings:
    return embed(CATALOG, tfidf(ALIGN), shopping())


def first_codes(vectors: np.ndarray) -> np.ndarray:
    config = TokenizeConfig(method="rq-kmeans", levels=2, codes=len(KINDS))
    return quantizer_class("rq-kmeans")(config).fit(vectors).encode(vectors)[:, 0]


def test_items_taken_together_share_first_codes_more_often(plain, aligned):
    pairs = Behaviour.from_log(shopping(seed=1), CATALOG.ids).pairs.tocoo()  # other users than it learned from

    def share(vectors: np.ndarray) -> float:
        codes = first_codes(vectors)
        return float(np.average(codes[pairs.row] == codes[pairs.col], weights=pairs.data))

    assert share(plain.vectors) < 0.3, "the texts alone sort by kind"
    assert share(aligned.vectors) > 0.9


def test_a_new_item_moves_with_the_item_it_resembles(plain, aligned):
    new = [text(kind, brand, 99) for kind in KINDS for brand in BRANDS]
    kinds, brands = np.repeat(np.arange(len(KINDS)), len(BRANDS)), np.tile(np.arange(len(BRANDS)), len(KINDS))
    before, after = plain.encoder.encode(new), aligned.encoder.encode(new)
    like = [
        np.flatnonzero((kind_of == kind) & (brand_of == brand))[0] for kind, brand in zip(kinds, brands, strict=True)
    ]
    ways, ways_of_like = after - before, (aligned.vectors - plain.vectors)[like]
    lengths = np.linalg.norm(ways, axis=1) * np.linalg.norm(ways_of_like, axis=1)
    assert ((ways * ways_of_like).sum(axis=1) > 0.8 * lengths).all()
    assert (brand_of[(after @ aligned.vectors.T).argmax(axis=1)] == brands).mean() > 0.9
    elsewhere = (brand_of == brands[:, None]) & (kind_of != kinds[:, None])  # never in a text with the new item's kind
    assert (after @ aligned.vectors.T)[elsewhere].mean() > (before @ plain.vectors.T)[elsewhere].mean() + 0.3


def test_off_changes_nothing(plain):
    off = embed(CATALOG, tfidf(AlignConfig(learning_rate=1.0)), shopping())
    assert type(off.encoder) is type(plain.encoder)
    np.testing.assert_array_equal(off.vectors, plain.vectors)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_head_of_zeros_is_the_identity(normalize):
    encoder = make_encoder(tfidf(ALIGN, normalize)).fit(CATALOG.texts("{title}"))
    encoder.head = np.zeros((DIM, DIM), np.float32)
    texts = [*CATALOG.texts("{title}"), "words never seen"]
    np.testing.assert_allclose(encoder.encode(texts), encoder.text_encoder.encode(texts), atol=SUMS)


def test_aligned_vectors_keep_length_1_and_zeros(aligned):
    np.testing.assert_allclose(np.linalg.norm(aligned.vectors, axis=1), 1, rtol=1e-5)
    assert not aligned.encoder.encode(["words never seen"]).any()


def test_saved_and_loaded(aligned, tmp_path):
    aligned.save(tmp_path)
    again = Embeddings.load(tmp_path)
    assert again.encoder.config == aligned.encoder.config
    np.testing.assert_array_equal(again.vectors, aligned.vectors)
    np.testing.assert_array_equal(again.encoder.encode(["soap Alba"]), aligned.encoder.encode(["soap Alba"]))


def test_a_saved_item_tokenizer_keeps_the_head(aligned, tmp_path):
    tokenizer = ItemTokenizer(levels=2, codes=4, embed=tfidf(ALIGN)).fit(CATALOG, shopping())
    np.testing.assert_array_equal(tokenizer.encoder.encode(["soap Alba"]), aligned.encoder.encode(["soap Alba"]))
    tokenizer.save(tmp_path)
    again = ItemTokenizer.load(tmp_path)
    assert again.embed_config == tfidf(ALIGN)
    np.testing.assert_array_equal(again.encoder.encode(["soap Alba"]), aligned.encoder.encode(["soap Alba"]))


def test_config_survives_json_and_files_without_alignment():
    config = tfidf(ALIGN)
    assert EmbedConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config
    assert EmbedConfig.from_dict({"encoder": "tfidf-svd", "dim": DIM}) == tfidf()


def test_equal_seeds_equal_heads(plain):
    behaviour = Behaviour.from_log(shopping(), CATALOG.ids)
    heads = [learn_head(plain.vectors, behaviour, AlignConfig(epochs=2, seed=seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(heads[0], heads[1])
    assert not np.array_equal(heads[0], heads[2])


def test_the_pipeline_aligns_with_the_training_events_only(tmp_path):
    data = DataConfig(format="synthetic", user_core=1, item_core=1, synthetic_items=60, synthetic_users=80)
    config = Config(data=data, embed=EmbedConfig("tfidf-svd", dim=8, align=AlignConfig(epochs=2)))
    run = RunDirectory(tmp_path)
    data_stage(config, run)
    embed_stage(config, run)
    made, prepared = Embeddings.load(run.path("embed")), load(run.path("data"))
    np.testing.assert_array_equal(made.vectors, embed(prepared.catalog, config.embed, prepared.split.train).vectors)
    whole = Interactions(prepared.split.frame.drop("part"))
    assert not np.array_equal(made.vectors, embed(prepared.catalog, config.embed, whole).vectors)


def test_alignment_without_a_log_is_refused():
    with pytest.raises(UserError, match=r"embed\.align\.epochs is 30, but there is no log"):
        embed(CATALOG, tfidf(ALIGN))


def test_a_log_without_pairs_is_refused():
    lonely = Interactions.from_frame(pl.DataFrame({"user_id": ["u", "u", "v"], "item_id": ["i0", "i1", "i2"]}))
    with pytest.raises(UserError, match=r"no two items stand together 2 times .*embed\.align\.min_count"):
        embed(CATALOG, tfidf(ALIGN), lonely)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("epochs", -1, "expected at least 0"),
        ("min_count", 0, "expected at least 1"),
        ("neighbours", 0, "expected at least 1"),
        ("batch_size", 1, "expected at least 2"),
        ("seed", -1, "expected at least 0"),
        ("temperature", 0, "expected more than 0"),
        ("learning_rate", float("nan"), "expected more than 0"),
    ],
)
def test_values_out_of_range_name_their_flag(field, value, said):
    with pytest.raises(UserError, match=rf"embed\.align\.{field} {value}: {said}"):
        AlignConfig(**{field: value})


@st.composite
def behaviours(draw: st.DrawFn) -> Behaviour:
    size = draw(st.integers(1, 7))
    cells = draw(st.lists(st.integers(0, 4), min_size=size * size, max_size=size * size))
    upper = np.triu(np.array(cells).reshape(size, size), 1)
    events = draw(st.lists(st.integers(1, 9), min_size=size, max_size=size))
    return Behaviour(np.array(events), csr_array(upper + upper.T))


@given(behaviour=behaviours(), min_count=st.integers(1, 3), neighbours=st.integers(1, 3))
def test_pairs_are_the_strongest_of_each_item(behaviour, min_count, neighbours):
    counts, events, expected = behaviour.pairs.toarray(), behaviour.counts, set()
    for item, row in enumerate(counts):
        company = [other for other in range(len(row)) if row[other] >= min_count]
        company.sort(key=lambda other: (-row[other] / np.sqrt(events[item] * events[other]), other))
        expected |= {(min(item, other), max(item, other)) for other in company[:neighbours]}
    pairs = positive_pairs(behaviour, min_count, neighbours)
    assert pairs.dtype == np.int64
    assert list(map(tuple, pairs.tolist())) == sorted(expected)


@given(behaviour=behaviours(), data=st.data())
def test_negatives_are_strangers_in_the_log(behaviour, data):
    row = st.integers(0, len(behaviour.counts) - 1)
    batch = np.array(data.draw(st.lists(st.tuples(row, row), min_size=1, max_size=6)))
    hidden = _true_elsewhere(batch, behaviour)
    for one in range(len(batch)):
        for other in range(len(batch)):
            item, answer = batch[one, 0], batch[other, 1]
            known = item == answer or behaviour.pairs[item, answer] > 0
            assert hidden[one, other] == (known and one != other)


def test_contrast_both_ways_over_what_is_not_hidden():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    hidden = torch.zeros(5, 5, dtype=torch.bool)
    hidden[0, 3] = hidden[4, 1] = True
    cosines = torch.cosine_similarity(one[:, None], other[None], dim=2) / 0.5
    total = 0.0
    for row in range(5):
        for line, out in ((cosines[row], hidden[row]), (cosines[:, row], hidden[:, row])):
            total -= (line[row] - line[~out].logsumexp(0)).item()
    assert pair_contrast(one, other, hidden, 0.5).item() == pytest.approx(total / 10, rel=1e-5)


def test_contrast_of_indistinct_vectors_is_log_b():
    ones = torch.ones(6, 3)
    assert pair_contrast(ones, ones, torch.zeros(6, 6, dtype=torch.bool), 0.1).item() == pytest.approx(ln(6), rel=1e-5)
