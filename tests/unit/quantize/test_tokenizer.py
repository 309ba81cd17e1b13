import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog, Interactions
from llmrec.embed import EmbedConfig
from llmrec.errors import NotFittedError, UserError
from llmrec.quantize import ItemTokenizer, LossConfig, RQVAEConfig, TokenizeConfig
from llmrec.quantize.classical.residual import RQKMeans
from llmrec.recommender.recommender import Recommender

IDS = [f"B{row:03d}" for row in range(90)]
X = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32).repeat(3, axis=0)
TFIDF = EmbedConfig("tfidf-svd", dim=6)
REPORT = {
    *("method", "levels", "codes", "items", "usage", "perplexity", "collision_rate", "max_collision"),
    *("unique_after", "distortion", "neighbour_jaccard@20", "fit_seconds", "encode_items_per_second"),
    *("gini", "entropy", "prefix_cohesion", "rbo@20", "emb_hr@20", "distortion_by_level", "collision_rate_after"),
    *("level_sizes", "words"),
}


def shop() -> Catalog:
    brands, kinds = ["Weleda", "Opi", "Lush", "Nivea"], ["shampoo", "lip balm", "soap", "nail lacquer"]
    rows = [(b, k, size) for b in brands for k in kinds for size in ("small", "large", "travel")]
    return Catalog.from_frame(
        pl.DataFrame(
            {
                "item_id": [f"i{row}" for row in range(len(rows))],
                "title": [f"{size} {kind}" for _, kind, size in rows],
                "brand": [brand for brand, _, _ in rows],
            }
        )
    )


@pytest.mark.parametrize(
    ("ask", "missing"),
    [
        (lambda tokenizer: tokenizer.report(), "report"),
        (lambda tokenizer: tokenizer.encode(X), "quantizer"),
        (lambda tokenizer: tokenizer.item_ids, "item_ids"),
        (lambda tokenizer: tokenizer.dims, "dims"),
        (lambda tokenizer: tokenizer.with_items(["new"], X[:1]), "quantizer"),
        (lambda tokenizer: tokenizer.embed(shop()), "encoder"),
        (lambda tokenizer: Recommender.from_base(None, tokenizer), "catalog"),
    ],
)
def test_before_it_is_fitted(ask, missing):
    with pytest.raises(NotFittedError, match=rf"has no {missing} before it is fitted; call fit\(catalog\)"):
        ask(ItemTokenizer())


def test_dedup_belongs_to_the_tokenizer():
    tokenizer = ItemTokenizer(levels=2, codes=8).fit_embeddings(IDS, X)
    assert tokenizer.item_ids == IDS
    assert tokenizer.codes.shape == (90, 3)
    assert tokenizer.codes.dtype == np.int32
    assert tokenizer.level_sizes == [8, 8, tokenizer.level_sizes[-1]]
    assert len(np.unique(tokenizer.codes, axis=0)) == 90
    np.testing.assert_array_equal(tokenizer.encode(X), tokenizer.codes[:, :2])
    assert tokenizer.report()["unique_after"]


def test_sharing_keeps_the_collisions():
    tokenizer = ItemTokenizer(levels=2, codes=8, collisions="share").fit_embeddings(IDS, X)
    assert tokenizer.codes.shape == (90, 2)
    assert tokenizer.level_sizes == [8, 8]
    assert not tokenizer.report()["unique_after"]
    assert tokenizer.report()["max_collision"] >= 3


def test_report_has_what_others_rely_on():
    tokenizer = ItemTokenizer(levels=2, codes=8).fit_embeddings(IDS, X)
    report = tokenizer.report()
    assert report.keys() >= REPORT
    assert (report["method"], report["levels"], report["codes"], report["items"]) == ("rq-kmeans", 2, 8, 90)
    assert report["collision_rate"] == 1 - len(np.unique(tokenizer.codes[:, :2], axis=0)) / 90
    table = str(report)
    assert "90 items, 2 levels x 8 codes" in table
    assert "collision rate" in table


@pytest.mark.parametrize("method", ["rq-kmeans", "rq-vae"])
def test_saved_and_loaded(tmp_path, method):
    network = RQVAEConfig(hidden=[8], latent=4, epochs=5)
    tokenizer = ItemTokenizer(method, levels=2, codes=8, rq_vae=network).fit_embeddings(IDS, X)
    tokenizer.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "quantizer.safetensors",
        "quantizer.json",
        "item_codes.parquet",
        "report.json",
    }
    again = ItemTokenizer.load(tmp_path)
    assert again.item_ids == IDS
    assert again.codes.dtype == np.int32
    np.testing.assert_array_equal(again.codes, tokenizer.codes)
    np.testing.assert_array_equal(again.encode(X + 0.1), tokenizer.encode(X + 0.1))
    assert again.level_sizes == tokenizer.level_sizes
    assert again.config == tokenizer.config
    assert again.report() == tokenizer.report()
    assert again.encoder is None


def test_saved_files_are_what_the_design_says(tmp_path):
    tokenizer = ItemTokenizer(levels=2, codes=8).fit_embeddings(IDS, X)
    tokenizer.save(tmp_path)
    frame = pl.read_parquet(tmp_path / "item_codes.parquet")
    assert frame.schema == {"item_id": pl.String, "codes": pl.List(pl.Int32)}
    assert frame["codes"].to_list() == tokenizer.codes.tolist()
    header = json.loads((tmp_path / "quantizer.json").read_text())
    assert (header["schema"], header["method"], header["level_sizes"]) == (
        2,
        "rq-kmeans",
        tokenizer.level_sizes,
    )
    assert json.loads((tmp_path / "report.json").read_text()).keys() >= REPORT


def events() -> Interactions:
    """Two users; the last item of X's first three is the most popular."""
    rows = [("u", "B002"), ("u", "B050"), ("u", "B002"), ("v", "B002"), ("v", "B001")]
    return Interactions.from_frame(pl.DataFrame(rows, ["user_id", "item_id"], orient="row"))


def test_levels_of_different_sizes(tmp_path):
    tokenizer = ItemTokenizer(levels=2, codes=[8, 4]).fit_embeddings(IDS, X)
    assert tokenizer.level_sizes[:2] == tokenizer.report()["level_sizes"] == [8, 4]
    assert (tokenizer.codes < tokenizer.level_sizes).all()
    tokenizer.save(tmp_path)
    again = ItemTokenizer.load(tmp_path)
    assert again.config == tokenizer.config
    np.testing.assert_array_equal(again.encode(X), tokenizer.encode(X))


def test_the_log_ranks_items_and_enters_the_report():
    tokenizer = ItemTokenizer(levels=2, codes=8, collisions="dedup-popularity").fit_embeddings(IDS, X, log=events())
    same = (tokenizer.codes[:, :2] == tokenizer.codes[0, :2]).all(axis=1)
    assert tokenizer.codes[:3, -1].tolist() == [2, 1, 0]
    assert same[:3].all()
    assert tokenizer.report()["emb_hr@20"].keys() == {"raw", "reconstruction"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"collisions": "dedup-popularity"}, r"tokenize\.collisions dedup-popularity .* training log"),
        (
            {"method": "rq-vae", "rq_vae": RQVAEConfig(loss=LossConfig(collaborative=0.5))},
            r"loss\.collaborative is 0\.5",
        ),
    ],
)
def test_what_needs_a_log_says_so(settings, message):
    with pytest.raises(UserError, match=message):
        ItemTokenizer(levels=2, codes=8, **settings).fit_embeddings(IDS, X)


def test_collaborative_vectors_reach_the_quantizer(monkeypatch):
    given = {}
    fit = RQKMeans.fit

    def spy(self, x, collaborative=None, texts=None):
        given["vectors"] = collaborative
        return fit(self, x)

    monkeypatch.setattr(TokenizeConfig, "needs_collaborative", True)
    monkeypatch.setattr(RQKMeans, "fit", spy)
    ItemTokenizer(levels=2, codes=8, rq_vae=RQVAEConfig(latent=4)).fit_embeddings(IDS, X, log=events())
    assert given["vectors"].shape == (90, 4)
    assert given["vectors"][2].any()
    assert not given["vectors"][3].any()


def test_the_texts_of_a_catalogue_reach_the_text_decoder(tmp_path):
    network = RQVAEConfig(hidden=[8], latent=4, epochs=150, loss=LossConfig(words=1.0))
    embed = EmbedConfig("tfidf-svd", dim=6, template="{title}")
    tokenizer = ItemTokenizer("rq-vae", levels=2, codes=4, rq_vae=network, embed=embed).fit(shop())
    words = tokenizer.words_of(tokenizer.codes)  # with the dedup level
    assert words == tokenizer.words_of(tokenizer.codes[:, :2])
    told = {each.word for found in words for each in found}
    assert told
    assert told <= {word for title in shop().frame["title"] for word in title.split()}, "no brands: of the template"
    first = tokenizer.words_of(tokenizer.codes[:, :1], 1)
    assert {len(found) for found in first} <= {0, 1}
    report = tokenizer.report()
    assert report["word_perplexity"][0] > report["word_perplexity"][2]
    assert f"by frequency, {report['word_perplexity'][1]:.1f}, {report['word_perplexity'][2]:.1f} by" in str(report)
    tokenizer.save(tmp_path)
    again = ItemTokenizer.load(tmp_path)
    assert again.words_of(tokenizer.codes) == words
    assert again.report() == report


def test_what_needs_texts_says_so():
    network = RQVAEConfig(hidden=[8], latent=4, loss=LossConfig(words=0.5))
    with pytest.raises(UserError, match=r"loss\.words needs the items' texts, but fit was given none"):
        ItemTokenizer("rq-vae", levels=2, codes=8, rq_vae=network).fit_embeddings(IDS, X)


def test_a_tokenizer_without_a_text_decoder_says_what_has_one():
    tokenizer = ItemTokenizer(levels=2, codes=8).fit_embeddings(IDS, X)
    with pytest.raises(UserError, match=r"method rq-kmeans without a text decoder .*loss\.words above 0"):
        tokenizer.words_of(tokenizer.codes)


def test_a_memory_mapped_array_gives_the_same(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    one, other = (ItemTokenizer(levels=2, codes=8).fit_embeddings(IDS, x) for x in (X, mapped))
    np.testing.assert_array_equal(one.codes, other.codes)
    assert one.report()["distortion"] == other.report()["distortion"]


def test_a_catalogue_has_words():
    catalog = shop()
    words = ItemTokenizer(levels=2, codes=4, embed=TFIDF).fit(catalog).report()["words"]
    assert len(words) == 4
    assert {item["title"] for entry in words for item in entry["typical"]} <= set(catalog.frame["title"])


def test_from_a_catalogue_with_its_encoder(tmp_path):
    catalog = shop()
    tokenizer = ItemTokenizer(levels=2, codes=4, embed=TFIDF).fit(catalog)
    assert tokenizer.item_ids == catalog.ids
    tokenizer.save(tmp_path)
    again = ItemTokenizer.load(tmp_path)
    assert again.embed_config == TFIDF
    texts = ["small shampoo. Weleda", "a soap never seen before"]
    np.testing.assert_array_equal(again.encoder.encode(texts), tokenizer.encoder.encode(texts))
    np.testing.assert_array_equal(again.encode(again.encoder.encode(texts))[0], tokenizer.codes[0, :2])


def test_from_a_configuration():
    config = TokenizeConfig("rq-kmeans", levels=2, codes=8, collisions="share", seed=3, iterations=7)
    assert ItemTokenizer.from_config(config, TFIDF).config == config
    assert ItemTokenizer.from_config(config, TFIDF).embed_config == TFIDF


def test_an_embedding_that_is_not_finite_is_named_by_its_item():
    x = X.copy()
    x[[7, 50], 1] = np.nan, np.inf
    with pytest.raises(UserError, match=r"item 'B007' holds NaN or infinity \(2 such items\)"):
        ItemTokenizer(codes=8).fit_embeddings(IDS, x)


def test_one_distinct_embedding():
    with pytest.raises(UserError, match=r"30 items with 1 distinct embedding: no codes .*embed\.template"):
        ItemTokenizer(codes=2).fit_embeddings([str(row) for row in range(30)], np.ones((30, 4), np.float32))


def test_fewer_rows_to_learn_from_than_codes():
    vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    with pytest.raises(UserError, match=r"tokenize\.fit_rows 8: .* the 60 items .* 16 codes .*set it to 16 or more"):
        ItemTokenizer(codes=16, fit_rows=8).fit_embeddings([str(row) for row in range(60)], vectors)


def test_more_codes_than_distinct_embeddings():
    with pytest.raises(UserError, match=r"90 items with 30 distinct .* 256 codes .* tokenize\.codes to 30"):
        ItemTokenizer().fit_embeddings(IDS, X)


def test_one_row_per_item():
    with pytest.raises(UserError, match=r"embeddings of shape \(90, 8\) for 89 items; expected one row per item"):
        ItemTokenizer(codes=8).fit_embeddings(IDS[:-1], X)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((["B1"] * 90, X), "item_ids: found 89 repeated ids, expected each once"),
        (("B1", X), "item_ids 'B1': found one text, expected a list of item ids"),
        ((IDS, X[:, 0]), r"embeddings of shape \(90,\) for 90 items"),
        ((IDS, X.astype(str)), "embeddings of type <U32; expected numbers"),
        ((IDS, [[1.0], [1.0, 2.0]]), "embeddings: found a list with rows of several lengths"),
        ((IDS, X, None, None, ["a title"]), "titles: found 1 for 90 items"),
        ((IDS, X, "an encoder"), "encoder: found the text 'an encoder', expected Encoder"),
    ],
)
def test_wrong_arguments_of_a_fit(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ItemTokenizer(codes=8).fit_embeddings(*arguments)


def test_ids_and_embeddings_of_any_library_fit_alike() -> None:
    wanted = ItemTokenizer(levels=2, codes=8).fit_embeddings([str(row) for row in range(90)], X)
    for ids, vectors in ((range(90), X.tolist()), (np.arange(90), X), (pl.Series(range(90)), pl.DataFrame(X))):
        found = ItemTokenizer(levels=2, codes=8).fit_embeddings(ids, vectors)
        assert found.item_ids == found.ids.to_list() == wanted.item_ids
        assert (found.codes == wanted.codes).all()
        assert (found.encode(X.tolist()) == wanted.encode(X)).all()


@pytest.mark.parametrize("wrong", [None, "items.csv", pl.DataFrame({"item_id": ["a"]})])
def test_a_fit_needs_a_catalogue_and_a_log(wrong: Any, tiny_catalog: Catalog) -> None:
    with pytest.raises(UserError, match=r"^catalog: found .*, expected Catalog; make it with Catalog.from_file"):
        ItemTokenizer().fit(wrong)
    if wrong is not None:
        with pytest.raises(UserError, match=r"^log: found .*, expected Interactions; make it with"):
            ItemTokenizer().fit(tiny_catalog, wrong)


def test_items_that_are_not_there_cannot_be_left_out() -> None:
    tokenizer = ItemTokenizer(levels=2, codes=8).fit_embeddings(IDS, X)
    assert tokenizer.without_items(IDS[:2]).item_ids == IDS[2:]
    with pytest.raises(UserError, match=r"item_ids: the item tokenizer has no 'Z' \(1 such ids\)"):
        tokenizer.without_items([IDS[0], "Z"])
    with pytest.raises(UserError, match="item_ids 'B000': found one text"):
        tokenizer.without_items("B000")


def test_a_loaded_tokenizer_says_that_it_has_no_catalogue(tmp_path: Path) -> None:
    ItemTokenizer(levels=2, codes=8).fit_embeddings(IDS, X).save(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="so it has no catalog; give catalog"):
        _ = ItemTokenizer.load(tmp_path / "tokenizer").catalog
    with pytest.raises(UserError, match="no folder can be made there"):
        ItemTokenizer.load(tmp_path / "tokenizer").save(tmp_path / "tokenizer" / "report.json")


def test_not_a_tokenizer_or_another_version(tmp_path):
    with pytest.raises(UserError, match=r"no quantizer\.json"):
        ItemTokenizer.load(tmp_path)
    (tmp_path / "quantizer.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match="schema 99, this llmrec reads 2"):
        ItemTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("make", "flag"),
    [
        (lambda: TokenizeConfig(levels=0), "tokenize.levels 0: expected at least 1"),
        (lambda: TokenizeConfig(codes=1), "tokenize.codes 1: expected at least 2"),
        (lambda: RQVAEConfig(epochs=0), "tokenize.rq_vae.epochs 0: expected at least 1"),
        (lambda: RQVAEConfig(hidden=[4, 0]), "tokenize.rq_vae.hidden 0: expected at least 1"),
        (lambda: RQVAEConfig(beta=-1.0), "tokenize.rq_vae.beta -1.0: expected at least 0"),
        (lambda: RQVAEConfig(learning_rate=0.0), "tokenize.rq_vae.learning_rate 0.0: expected more than 0"),
    ],
)
def test_values_out_of_range_name_their_flag(make, flag):
    with pytest.raises(UserError, match=flag):
        make()


@pytest.mark.parametrize("method", ["rq-kmeans", "pq", "hierarchical-kmeans", "random", "rq-vae"])
@pytest.mark.parametrize("collisions", ["dedup", "nearest-free", "share"])
def test_items_come_and_go_and_nobody_elses_codes_change(method, collisions):
    network = RQVAEConfig(hidden=[8], latent=4, epochs=3)
    x = np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)
    tokenizer = ItemTokenizer(method, levels=2, codes=16, collisions=collisions, rq_vae=network)
    tokenizer.fit_embeddings(IDS[:20], x[:20])
    before = tokenizer.codes.copy()
    more = tokenizer.with_items(IDS[20:40], x[20:])
    assert more.item_ids == IDS[:40]
    np.testing.assert_array_equal(more.codes[:20], before)
    assert collisions == "share" or len(np.unique(more.codes, axis=0)) == 40
    if collisions != "nearest-free":
        np.testing.assert_array_equal(more.codes[:, :2], tokenizer.encode(x))
    assert more.quantizer is tokenizer.quantizer
    fewer = more.without_items(IDS[5:35])
    assert fewer.item_ids == IDS[:5] + IDS[35:40]
    np.testing.assert_array_equal(fewer.codes, more.codes[[*range(5), *range(35, 40)]])
    assert tokenizer.item_ids == IDS[:20]
    np.testing.assert_array_equal(tokenizer.codes, before)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((2, 5)), "the embeddings have 5 dimensions, this quantizer was fitted on 8"),
        (np.zeros((3, 8)), r"vectors of shape \(3, 8\) for 2 items"),
        (np.zeros(8), r"vectors of shape \(8,\) for 2 items"),
        (np.array([[0.0] * 8, [np.nan] * 8]), "the embedding of item 'b' holds NaN"),
    ],
)
def test_vectors_of_new_items_that_do_not_fit(vectors, message):
    tokenizer = ItemTokenizer(levels=2, codes=8).fit_embeddings(IDS, X)
    with pytest.raises(UserError, match=message):
        tokenizer.with_items(["a", "b"], vectors)


def test_embedding_needs_an_encoder():
    tokenizer = ItemTokenizer(levels=2, codes=8, embed=TFIDF).fit(shop())
    some = shop().take_rows([3, 1])
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.embed(some)), tokenizer.codes[[3, 1], :2])
    with pytest.raises(UserError, match="without an encoder; give the items' vectors"):
        ItemTokenizer(levels=2, codes=8).fit_embeddings(IDS, X).embed(some)
