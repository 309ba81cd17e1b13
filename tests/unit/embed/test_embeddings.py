import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog
from llmrec.embed import EmbedConfig, Embeddings, embed, item_texts
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


@pytest.mark.parametrize("field", ["dim", "batch_size", "max_tokens"])
def test_values_out_of_range_name_their_flag(field):
    with pytest.raises(UserError, match=f"embed.{field} 0: expected at least 1"):
        EmbedConfig(**{field: 0})
