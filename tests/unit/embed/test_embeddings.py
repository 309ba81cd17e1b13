import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog, Interactions
from llmrec.embed import EmbedConfig, Embeddings, embed, item_texts
from llmrec.embed import embeddings as embeddings_module
from llmrec.errors import UserError

CATALOG = Catalog.from_frame(
    pl.DataFrame(
        {
            "item_id": ["x", "y", "z"],
            "brand": ["Opi", "", "Lush"],
            "title": ["red lacquer", "blue lacquer", ""],
            "about": ["shines", "", ""],
        }
    )
)


def test_title_first_then_every_field():
    texts = item_texts(CATALOG, EmbedConfig())
    assert texts[0] == "red lacquer. Opi. shines"
    assert texts == CATALOG.texts("{title}. {brand}. {about}")


def test_a_template_of_ones_own():
    assert item_texts(CATALOG, EmbedConfig(template="{brand} {title}"))[0] == "Opi red lacquer"


def test_an_item_without_text_is_named():
    with pytest.raises(UserError, match=r"item 'z' has no text .*'\{title\}'.* embed\.template"):
        item_texts(CATALOG, EmbedConfig(template="{title}"))


def test_embedded_saved_and_loaded(tmp_path):
    made = embed(CATALOG, EmbedConfig("tfidf-svd", dim=2))
    assert made.item_ids == CATALOG.ids
    assert made.vectors.shape == (3, 2)
    made.save(tmp_path)
    again = Embeddings.load(tmp_path)
    assert again.item_ids == made.item_ids
    np.testing.assert_array_equal(again.vectors, made.vectors)
    assert again.encoder.config == made.encoder.config
    np.testing.assert_array_equal(again.encoder.encode(["red lacquer. Opi. shines"]), made.vectors[:1])


def test_chosen_items_are_read_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings_module, "BLOCK", 4)
    ids = [f"i{row}" for row in range(11)]
    vectors = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    encoder = embed(CATALOG, EmbedConfig("tfidf-svd", dim=2)).encoder
    made = Embeddings(ids, vectors, encoder)
    made.save(tmp_path)
    for rows in ([10, 0, 5, 4, 3], [2], [*range(10, -1, -1)], [*range(11)], []):
        chosen = [ids[row] for row in rows]
        for found in (Embeddings.load(tmp_path, chosen), made.take_ids(chosen)):
            assert found.item_ids == chosen
            assert found.vectors.dtype == np.float32
            np.testing.assert_array_equal(found.vectors, vectors[rows])
    assert made.take_ids(ids).vectors is vectors
    for read in (lambda: Embeddings.load(tmp_path, ["i1", "?"]), lambda: made.take_ids(["i1", "?"])):
        with pytest.raises(KeyError, match=r"\?"):
            read()


def test_a_part_in_another_order_is_in_memory_once(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(40_000, 16)).astype(np.float32)
    ids = [str(row) for row in range(len(vectors))]
    Embeddings(ids, vectors, embed(CATALOG, EmbedConfig("tfidf-svd", dim=2)).encoder).save(tmp_path)
    index_of_items = 8_000_000  # the ids, their rows and a dictionary of them, at this size
    tracemalloc.start()
    try:
        found = Embeddings.load(tmp_path, ids[::-1])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found.vectors, vectors[::-1])
    assert peak < vectors.nbytes + embeddings_module.BLOCK * 16 * 4 * 2 + index_of_items


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its memory from /proc")
@pytest.mark.parametrize("chosen", ["None", "ids[::-1]"])
def test_the_file_is_not_in_memory_beside_the_vectors(tmp_path, chosen):
    """safetensors maps the file, whose pages count as memory of the process until it is closed."""
    vectors = np.ones((100_000, 384), np.float32)
    ids = [str(row) for row in range(len(vectors))]
    Embeddings(ids, vectors, embed(CATALOG, EmbedConfig("tfidf-svd", dim=2)).encoder).save(tmp_path)
    code = f"""
from pathlib import Path
from llmrec.embed import Embeddings
ids = [str(row) for row in range({len(ids)})]
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
assert Embeddings.load(Path({str(tmp_path)!r}), {chosen}).vectors.sum() == {vectors.size}
print(peak() - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert vectors.nbytes * 0.9 < int(grown) < vectors.nbytes * 1.8


SILENT = Catalog.from_frame(
    pl.DataFrame({"item_id": list("abcdef"), "title": ["red pen", "", "blue pen", "", "", "red ink"]})
)


def log_of(*histories: str) -> Interactions:
    rows = [(str(user), item) for user, history in enumerate(histories) for item in history]
    return Interactions.from_frame(pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row"))


def test_items_without_text_get_random_vectors_of_their_own():
    made = embed(SILENT, EmbedConfig("tfidf-svd", dim=2, without_text="random"))
    texts = embed(SILENT.take_rows([0, 2, 5]), EmbedConfig("tfidf-svd", dim=2))
    np.testing.assert_allclose(made.vectors[[0, 2, 5]], texts.vectors, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(made.vectors, axis=1), 1, atol=1e-6)
    assert len(np.unique(made.vectors[[1, 3, 4]].round(6), axis=0)) == 3
    other = embed(SILENT.take_rows([4, 5, 2, 0]), EmbedConfig("tfidf-svd", dim=2, without_text="random"))
    np.testing.assert_array_equal(other.vectors[0], made.vectors[4])


def test_items_without_text_get_behaviour_vectors():
    """b and d occur with the same items; e occurs with none."""
    log = log_of("abc", "adc", "abf", "adf", "e", *["af", "fa"] * 3)
    config = EmbedConfig("tfidf-svd", dim=2, without_text="behaviour")
    made = embed(SILENT, config, log)
    np.testing.assert_allclose(made.vectors[1], made.vectors[3], atol=1e-5)
    with pytest.raises(UserError, match=r"embed\.without_text behaviour needs the log"):
        embed(SILENT, config)
    alone = embed(SILENT, EmbedConfig("tfidf-svd", dim=2, without_text="random"))
    np.testing.assert_array_equal(made.vectors[4], alone.vectors[4])
    cold = embed(SILENT, config, log_of("abc", "adf"), fit_on=SILENT.take_rows([0, 1, 2, 3, 5]))
    np.testing.assert_array_equal(cold.vectors[4], alone.vectors[4])


def test_a_catalogue_of_ids_only():
    catalog = Catalog.from_frame(pl.DataFrame({"item_id": ["a1", "b2", "c3"]}))
    made = embed(catalog, EmbedConfig("tfidf-svd", dim=2, without_text="random"))
    assert len(np.unique(made.vectors, axis=0)) == 3
    with pytest.raises(UserError, match="item 'a1' has no text"):
        embed(catalog, EmbedConfig("tfidf-svd", dim=2))


@pytest.mark.parametrize("field", ["dim", "batch_size", "max_tokens"])
def test_values_out_of_range_name_their_flag(field):
    with pytest.raises(UserError, match=f"embed.{field} 0: expected at least 1"):
        EmbedConfig(**{field: 0})
