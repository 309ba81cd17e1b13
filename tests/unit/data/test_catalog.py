import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog
from llmrec.data.catalog import CHUNKS
from llmrec.data.ids import rows_of
from llmrec.errors import UserError


@pytest.fixture
def catalog() -> Catalog:
    frame = pl.DataFrame(
        {
            "brand": ["Acme", None, "Bolt"],
            "item_id": [7, 8, 9],
            "title": ["Pen {x}", "Ink", ""],
            "categories": [["Office", "Pens"], [], None],
            "price": [1.5, None, 3.0],
        }
    )
    return Catalog.from_frame(frame)


def test_columns_become_text_with_empty_for_missing(catalog):
    assert catalog.ids == ["7", "8", "9"]
    assert catalog.fields == ["title", "brand", "categories", "price"]
    assert catalog.row("7") == {
        "item_id": "7", "title": "Pen {x}", "brand": "Acme", "categories": "Office, Pens", "price": "1.5"
    }  # fmt: skip
    assert catalog.row("8") == {"item_id": "8", "title": "Ink", "brand": "", "categories": "", "price": ""}
    assert catalog.index == {"7": 0, "8": 1, "9": 2}
    assert len(catalog) == 3


def test_texts(catalog):
    assert catalog.texts("{title}. {brand}. {categories}") == ["Pen {x}. Acme. Office, Pens", "Ink.", "Bolt."]


def test_take_keeps_the_given_order(catalog):
    assert catalog.take_rows([2, 0]).ids == ["9", "7"]


def test_parquet_round_trip(catalog, tmp_path):
    catalog.to_parquet(tmp_path / "items.parquet")
    assert Catalog.from_parquet(tmp_path / "items.parquet").frame.equals(catalog.frame)


def test_html_is_cleaned_in_texts_but_not_in_ids():
    frame = pl.DataFrame({"item_id": ["<b>"], "title": ["A &amp; <i>B</i>\n"], "tags": [["x  y", "<br>z"]]})
    assert Catalog.from_frame(frame).row("<b>") == {"item_id": "<b>", "title": "A & B", "tags": "x y, z"}
    assert frame["title"].to_list() == ["A &amp; <i>B</i>\n"], "the frame stays as it is"


def test_fields_of_any_name_are_embedded():
    frame = pl.DataFrame({"item_id": ["a"], "title": ["Pen"], "Meta: {x}!": ["1"], "*": ["2"], "^.*$": ["3"]})
    catalog = Catalog.from_frame(frame)
    assert catalog.texts(catalog.whole_text) == ["Pen. 1. 2. 3"]


def test_columns_without_text_are_left_out():
    frame = pl.DataFrame({"item_id": ["a"], "image": [b"\x00"], "box": [{"x": 1}], "day": [pl.date(2024, 1, 2)]})
    assert Catalog.from_frame(frame.select("item_id", "image", "box")).fields == ["title"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a"], r"items\.csv: item id 'a' stands in rows 1 and 3"),
        (["a", ""], r"items\.csv: row 2 has no item_id"),
        (["a", None], r"items\.csv: row 2 has no item_id"),
        ([], r"items\.csv: no items"),
        ([[1], [2]], r"item_id holds List"),
    ],
)
def test_bad_ids(ids, message):
    with pytest.raises(UserError, match=message):
        Catalog.from_frame(pl.DataFrame({"item_id": ids}), "items.csv")


def test_whole_floats_meet_integer_ids():
    assert Catalog.from_frame(pl.DataFrame({"item_id": [1.0, 2.0]})).ids == ["1", "2"]


def test_from_file_renames_and_keeps_what_is_in_the_way(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("sku,name,title\n007,Pen,Sir\n")
    catalog = Catalog.from_file(path, item_column="sku", title_column="name")
    assert catalog.row("007") == {"item_id": "007", "title": "Pen", "title_": "Sir"}


def test_what_is_in_the_way_never_meets_another_column(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("sku,name,title,title_,item_id,item_id_\n007,Pen,Sir,Mr,x,y\n")
    catalog = Catalog.from_file(path, item_column="sku", title_column="name")
    kept = {"title__": "Sir", "title_": "Mr", "item_id__": "x", "item_id_": "y"}
    assert catalog.row("007") == {"item_id": "007", "title": "Pen", **kept}


def test_from_file_names_the_missing_column(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("sku,name\n1,Pen\n")
    said = r"items\.csv: no column 'item_id' \(the column of item ids\); found: sku, name; set data\.columns\.item "
    with pytest.raises(UserError, match=said):
        Catalog.from_file(path)


def items(**titles: str) -> Catalog:
    return Catalog(pl.DataFrame({"item_id": list(titles), "title": list(titles.values())}))


@pytest.mark.parametrize("indexed", [False, True])
def test_items_are_added_and_replaced_as_in_a_dictionary(indexed):
    """The catalogues before keep what they had, also when two grow from the same one."""
    rng, expected = np.random.default_rng(0), {"0": "first"}
    grown = [(items(**expected), expected)]
    for number in range(1, 200):
        before, titles = grown[rng.integers(max(0, len(grown) - 3), len(grown))]
        names = sorted({*rng.choice([*titles], 2).tolist(), *rng.choice(1000, 2).astype(str).tolist()})
        more = {name: f"title {number}" for name in names}
        rows = rows_of(before.frame["item_id"], names)
        if indexed:
            assert before.index[next(reversed(titles))] == len(titles) - 1
        grown.append((before.with_items(items(**more), rows), {**titles, **more}))
    for catalog, titles in grown:
        assert dict(catalog.frame.iter_rows()) == titles
        assert catalog.ids == list(titles)
        assert catalog.index == {item: row for row, item in enumerate(titles)}
        assert catalog.frame.n_chunks() <= CHUNKS + 1


def test_a_catalogue_that_grows_passes_its_index_on():
    """A dictionary of the whole catalogue after each added item took seconds at ten million."""
    large = items(**{str(row): "" for row in range(1000)})
    added = large.with_items(items(new="a"), np.array([-1]))
    assert not {"ids", "index"} & (vars(large).keys() | vars(added).keys())
    assert large.index["999"] == 999
    added = large.with_items(items(new="a"), np.array([-1])).with_items(items(newer="b"), np.array([-1]))
    assert added.index.maps == [{"new": 1000, "newer": 1001}, large.index]
    assert added.index.maps[1] is large.index
    assert "new" not in large.index
