"""The column of images: each form is read, and the catalogue keeps the images beside its texts."""

import base64
from pathlib import Path

import polars as pl
import pytest

from llmrec.data import Catalog, DataConfig
from llmrec.data.config import ColumnsConfig
from llmrec.data.images import image_bytes, image_sources
from llmrec.data.prepare import image_files, load, prepare, save
from llmrec.errors import UserError

PNG = b"\x89PNG any bytes"
INLINE = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


def test_every_form_of_a_column(tmp_path: Path) -> None:
    texts = image_sources(pl.Series(["a.png", " in/b.png ", str(tmp_path / "c.png"), INLINE, "", None]), tmp_path, "x")
    assert texts == [*(str(tmp_path / name) for name in ("a.png", "in/b.png", "c.png")), INLINE, "", ""]
    assert image_sources(pl.Series(["https://shop/a.png"]), tmp_path, "x") == ["https://shop/a.png"]
    stored = image_sources(pl.Series([PNG, None]), tmp_path, "x")
    assert image_bytes(stored[0]) == PNG
    assert stored[1] == ""
    records = [{"bytes": PNG, "path": "a.png"}, {"bytes": None, "path": "b.png"}, None]
    found = image_sources(pl.Series(records), tmp_path, "x")
    assert image_bytes(found[0]) == PNG
    assert found[1:] == [str(tmp_path / "b.png"), ""]
    assert image_sources(pl.Series([None, None]), tmp_path, "x") == ["", ""]


def test_another_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"items\.csv: column 'photo' .* holds Int64; expected paths"):
        image_sources(pl.Series("photo", [1]), tmp_path, "items.csv")


def test_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    assert image_bytes(str(tmp_path / "a.png")) == image_bytes(INLINE) == PNG
    assert image_bytes("data:,a%20b") == b"a b"
    for wrong in ("data:image/png;base64", "data:;base64,!!", "https://shop/a.png"):
        with pytest.raises(ValueError, match=r"comma|base64|address"):
            image_bytes(wrong)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table of four items, three with an image, of which one file is there, and a log."""
    (tmp_path / "a.png").write_bytes(PNG)
    table = {
        "item_id": ["a", "b", "c", "d"],
        "title": ["mug", "pot", "cup", "pan"],
        "photo": ["a.png", "b.png", "", INLINE],
    }
    pl.DataFrame(table).write_csv(tmp_path / "items.csv")
    events = {"user_id": ["u"] * 4 + ["v"] * 4, "item_id": list("abcd") * 2, "timestamp": range(8)}
    pl.DataFrame(events).write_csv(tmp_path / "events.csv")
    return tmp_path


def test_images_stay_with_their_items(folder: Path) -> None:
    catalog = Catalog.from_file(folder / "items.csv", image_column="photo")
    expected = {"a": str(folder / "a.png"), "b": str(folder / "b.png"), "d": INLINE}
    assert catalog.fields == ["title"]
    for part in (catalog, catalog.take_rows([3, 0]), catalog.filter(pl.col("item_id") != "b")):
        assert {item: part.images[item] for item in part.ids if item in part.images} == {
            item: expected[item] for item in part.ids if item in expected
        }
    assert Catalog.from_file(folder / "items.csv").fields == ["title", "photo"]
    with pytest.raises(UserError, match=r"no column 'picture' \(data\.columns\.image\)"):
        Catalog.from_file(folder / "items.csv", image_column="picture")


def test_the_data_of_a_run_have_the_images_of_their_items(folder: Path) -> None:
    columns = ColumnsConfig(image="photo")
    paths = {"path": str(folder / "events.csv"), "items": str(folder / "items.csv")}
    prepared = prepare(DataConfig("table", **paths, columns=columns, user_core=1, item_core=1))
    out = folder / "data"
    out.mkdir()
    save(prepared, out)
    assert load(out).catalog.images == {"a": str(folder / "a.png"), "b": str(folder / "b.png"), "d": INLINE}
    assert image_files(out) == [folder / "a.png"]
    assert image_files(folder / "nowhere") == []


@pytest.mark.parametrize("settings", [{"format": "movielens"}, {"format": "table"}])
def test_formats_without_such_a_column(settings: dict) -> None:
    with pytest.raises(UserError, match=r"data\.columns\.image photo: a column of the items of the formats table"):
        DataConfig(**settings, path="x", columns=ColumnsConfig(image="photo"))
