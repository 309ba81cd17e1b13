"""Vectors from files: read in any form, checked, fused, and the same codes as from the encoder that made them."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from llmrec.data import Catalog, Interactions
from llmrec.embed import AlignConfig, EmbedConfig, Embeddings, GivenVectors, embed, read_vectors, vector_files
from llmrec.errors import UserError
from llmrec.quantize.tokenizer import ItemTokenizer

IDS = ["a", "b", "c", "d"]
X = np.arange(12, dtype=np.float32).reshape(4, 3) ** 2
ROWS = [2, 0, 3, 1]
"""Order of the rows in the files."""


def write(path: Path, ids: list[str], x: np.ndarray) -> str:
    """Write vectors by the suffix of `path`; its name."""
    if path.suffix == ".parquet":
        pl.DataFrame({"item_id": ids, "vector": x.tolist(), "other": "x"}).write_parquet(path)
        return str(path)
    if path.suffix == ".npy":
        np.save(path, x)
    else:
        save_file({"any": np.ascontiguousarray(x)}, path)
    path.with_suffix(".ids.txt").write_text("".join(f"{item}\n" for item in ids))
    return str(path)


@pytest.fixture
def catalog() -> Catalog:
    return Catalog.from_frame(pl.DataFrame({"item_id": IDS, "title": ["red mug", "red pot", "blue mug", "tea pot"]}))


@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".safetensors"])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_rows_are_found_by_their_ids(suffix: str, kind: type, tmp_path: Path) -> None:
    name = write(tmp_path / f"v{suffix}", [IDS[row] for row in ROWS], X[ROWS].astype(kind))
    found = read_vectors(name, ["d", "a"], "--embed.vectors")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, X[[3, 0]])


def test_an_array_column_and_whole_numbers(tmp_path: Path) -> None:
    frame = pl.DataFrame({"item_id": [1, 2], "v": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int32, 2))})
    frame.write_parquet(tmp_path / "v.parquet")
    np.testing.assert_array_equal(read_vectors(tmp_path / "v.parquet", ["2", "1"], "--x"), [[3, 4], [1, 2]])


def test_the_folder_of_another_run_is_read(catalog: Catalog, tmp_path: Path) -> None:
    made = embed(catalog, EmbedConfig("tfidf-svd", dim=2))
    made.save(tmp_path)
    found = read_vectors(tmp_path / "embeddings.safetensors", catalog.ids, "--embed.vectors")
    np.testing.assert_array_equal(found, made.vectors)


@pytest.mark.parametrize(
    ("suffix", "ids", "x", "said"),
    [
        (".npy", IDS[:3], X[:3], "no vector for 1 of the 4 items, such as 'd' (ids there look like 'a')"),
        (".npy", [], X[:0], "empty; expected a vector for each of the 4 items"),
        (".npy", IDS, X[:3], "3 rows, but 4 ids"),
        (".npy", ["a", "b", "a", "d"], X, "item 'a' stands there twice"),
        (".npy", IDS, X[:, 0], "shape (4,), expected numbers [rows, D]"),
        (".npy", IDS, X[:, :0], "shape (4, 0)"),
        (".npy", IDS, np.array([["x"]] * 4), "expected numbers"),
        (".npy", IDS, np.array([[None]] * 4, object), "can't be read as .npy"),
        (".npy", IDS, np.where(X[2, 1] == X, np.nan, X), "embedding of item 'c' holds NaN or infinity"),
        (".parquet", IDS, np.where(X[2, 1] == X, np.inf, X), "embedding of item 'c' holds NaN or infinity"),
    ],
)
def test_wrong_vectors_are_named(suffix: str, ids: list[str], x: np.ndarray, said: str, tmp_path: Path) -> None:
    name = write(tmp_path / f"v{suffix}", ids, x)
    with pytest.raises(UserError) as error:
        read_vectors(name, IDS, "--embed.vectors")
    assert said in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ({"id": IDS, "v": X.tolist()}, "no column 'item_id'"),
        ({"item_id": IDS, "v": IDS}, "0 columns of lists"),
        ({"item_id": IDS, "v": X.tolist(), "w": X.tolist()}, "2 columns of lists"),
        ({"item_id": IDS, "v": [[1.0], [1.0, 2.0], [1.0], [1.0]]}, "vectors of [1, 2] numbers"),
        ({"item_id": IDS, "v": [[1.0], None, [1.0], [1.0]]}, "vectors of [None, 1] numbers"),
        ({"item_id": IDS, "v": [["x"]] * 4}, "lists of String, expected lists of numbers"),
        ({"item_id": IDS, "v": [[1.0], [None], [1.0], [1.0]]}, "embedding of item 'b' holds NaN"),
    ],
)
def test_wrong_tables_are_named(frame: dict, said: str, tmp_path: Path) -> None:
    pl.DataFrame(frame).write_parquet(tmp_path / "v.parquet")
    with pytest.raises(UserError) as error:
        read_vectors(tmp_path / "v.parquet", IDS, "--embed.vectors")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no.npy", "expected a file, found nothing there"),
        ("v.npy", "no v.ids.txt beside it"),
        ("v.bin", "unknown kind of file; expected .npy"),
    ],
)
def test_wrong_files_are_named(name: str, said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", X)
    (tmp_path / "v.bin").touch()
    with pytest.raises(UserError) as error:
        read_vectors(tmp_path / name, IDS, "--embed.vectors")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vectors": ["text"]}, "names no file"),
        ({"vectors": []}, "names no file"),
        ({"vectors": "a.npy", "without_text": "random"}, "without_text random: adds to the vectors of the encoder"),
        ({"vectors": ["text", "a.npy", "text"]}, "names text twice"),
        ({"vectors": "a.npy", "vector_weights": [1.0, 2.0]}, "2 weights for 1 sources"),
        ({"vectors": ["a.npy", "b.npy"], "vector_weights": [1.0, 0.0]}, "vector_weights 0.0: expected more than 0"),
    ],
)
def test_settings_that_do_not_go_together(options: dict, said: str) -> None:
    with pytest.raises(UserError) as error:
        EmbedConfig(**options)
    assert said in str(error.value)


def test_one_file_gives_the_codes_of_the_encoder(tiny_catalog: Catalog, tmp_path: Path) -> None:
    """Vectors of the encoder, written in another order, give the run of the encoder: vectors and codes, bit for bit."""
    by_text = EmbedConfig("tfidf-svd", dim=8)
    made = embed(tiny_catalog, by_text)
    order = np.random.default_rng(0).permutation(len(made.item_ids))
    name = write(tmp_path / "mine.npy", [made.item_ids[row] for row in order], made.vectors[order])
    mine = EmbedConfig(vectors=name)
    np.testing.assert_array_equal(embed(tiny_catalog, mine).vectors, made.vectors)
    tokenizers = [ItemTokenizer(levels=2, codes=4, embed=each).fit(tiny_catalog) for each in (by_text, mine)]
    np.testing.assert_array_equal(tokenizers[0].codes, tokenizers[1].codes)
    assert vector_files(mine) == [Path(name), tmp_path / "mine.ids.txt"]


def test_no_text_is_needed_for_given_vectors(tmp_path: Path) -> None:
    silent = Catalog.from_frame(pl.DataFrame({"item_id": IDS, "title": [""] * 4}))
    name = write(tmp_path / "v.npy", IDS, X)
    np.testing.assert_array_equal(embed(silent, EmbedConfig(vectors=name)).vectors, X)


def test_fused_sources_are_white_and_weighted(tmp_path: Path) -> None:
    """Each source: mean 0, equal variances in all directions, which sum to the square of its weight."""
    rng = np.random.default_rng(0)
    ids = [f"i{row}" for row in range(200)]
    catalog = Catalog.from_frame(pl.DataFrame({"item_id": ids, "title": ids}))
    one = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)) + 7
    other = 1000 * rng.normal(size=(200, 2)) @ rng.normal(size=(2, 3))  # of rank 2
    files = [write(tmp_path / "one.npy", ids, one), write(tmp_path / "other.parquet", ids, other)]
    x = embed(catalog, EmbedConfig(vectors=files, vector_weights=[1.0, 3.0])).vectors
    assert x.shape == (200, 5 + 2)
    expected = np.diag([1 / 5] * 5 + [9 / 2] * 2)
    covariance = np.cov(x.T, bias=True)
    np.testing.assert_allclose(covariance[:5, :5], expected[:5, :5], atol=1e-5)
    np.testing.assert_allclose(covariance[5:, 5:], expected[5:, 5:], atol=1e-4)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-5)


def test_new_items_come_in_the_space_of_the_fit(tiny_catalog: Catalog, tmp_path: Path) -> None:
    """With the text as one source and a file as the other; saved and loaded; half of the items were not in the fit."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(20, 4)).astype(np.float32)
    config = EmbedConfig("tfidf-svd", dim=3, vectors=["text", write(tmp_path / "own.npy", tiny_catalog.ids, own)])
    known, new = tiny_catalog.take_rows(range(12)), tiny_catalog.take_rows(range(12, 20))
    whole = embed(tiny_catalog, config, fit_on=known)
    whole.save(tmp_path / "embed")
    again = Embeddings.load(tmp_path / "embed")
    later = write(tmp_path / "later.parquet", new.ids, own[12:])
    tokenizer = ItemTokenizer(levels=2, codes=4).fit_embeddings(known.ids, whole.vectors[:12], again.encoder)
    tokenizer.save(tmp_path / "tokenize")
    loaded = ItemTokenizer.load(tmp_path / "tokenize", own=False)
    assert loaded.embed_config.vectors == ["text", "own.npy"]
    np.testing.assert_allclose(loaded.embed(new, [later]), whole.vectors[12:], atol=1e-6)
    with pytest.raises(UserError, match=r"vectors: 0 files, but the catalogue's vectors came from 1: own\.npy"):
        loaded.embed(new)
    with pytest.raises(UserError, match=r"came from text, own\.npy .* so texts have none"):
        loaded.encoder.encode(["a mug"])
    wide = write(tmp_path / "wide.npy", new.ids, rng.normal(size=(8, 5)))
    with pytest.raises(UserError, match="vectors of 5 dimensions, those of the fit have 4"):
        loaded.embed(new, [wide])


def test_equal_vectors_are_refused(tmp_path: Path, catalog: Catalog) -> None:
    files = [write(tmp_path / "v.npy", IDS, X), write(tmp_path / "w.npy", IDS, np.ones((4, 2)))]
    with pytest.raises(UserError, match=r"w\.npy: all items have the same vector"):
        embed(catalog, EmbedConfig(vectors=files))


def test_fused_vectors_are_aligned(tmp_path: Path) -> None:
    """Items of a pair differ in both sources; alignment makes them nearest neighbours, also after saving."""
    rng = np.random.default_rng(0)
    ids = [f"i{row:02}" for row in range(40)]
    partner = np.arange(40) ^ 1
    catalog = Catalog.from_frame(pl.DataFrame({"item_id": ids, "title": ids}))
    files = [write(tmp_path / f"{name}.npy", ids, rng.normal(size=(40, 12))) for name in ("one", "other")]
    bought = [ids[item] for pair in range(0, 40, 2) for item in (pair, pair + 1)]
    events = pl.DataFrame({"user_id": [f"u{at // 2}" for at in range(80)], "item_id": bought * 2})
    config = EmbedConfig(vectors=files, align=AlignConfig(epochs=100, learning_rate=0.03))
    with pytest.raises(UserError, match="there is no log of training events to align with"):
        embed(catalog, config)
    aligned = embed(catalog, config, Interactions.from_frame(events))

    def nearest(x: np.ndarray) -> float:
        cosine = x @ x.T / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(x, axis=1))
        np.fill_diagonal(cosine, -1)
        return float((cosine.argmax(axis=1) == partner).mean())

    assert nearest(embed(catalog, EmbedConfig(vectors=files)).vectors) < 0.2
    assert nearest(aligned.vectors) > 0.9
    aligned.save(tmp_path / "embed")
    again = Embeddings.load(tmp_path / "embed").encoder
    assert isinstance(again, GivenVectors)
    np.testing.assert_allclose(again.of_items(catalog, files, "--x"), aligned.vectors, atol=1e-6)
