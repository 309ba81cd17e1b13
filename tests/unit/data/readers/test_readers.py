import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from llmrec.data import DataConfig, input_files
from llmrec.data.config import ColumnsConfig
from llmrec.data.files import read_table
from llmrec.data.readers import read
from llmrec.errors import UserError


def sequences(log) -> dict[str, list[str]]:
    return {key[0]: part["item_id"].to_list() for key, part in log.frame.group_by("user_id", maintain_order=True)}


def test_every_format_reads_the_same_log(config):
    catalog, log = read(config)
    assert sequences(log) == {"u1": ["1", "2", "3"], "u2": ["2", "1"]}
    assert dict(catalog.frame.select("item_id", "title").iter_rows()) == {
        "1": "Red pen",
        "2": "Blue ink",
        "3": "Paper",
    }
    if log.has_timestamps:
        assert log.frame["timestamp"].to_list() == [second * 10**6 for second in (100, 101, 102, 100, 101)]


def test_input_files_are_the_files(config):
    paths = input_files(config)
    assert len(paths) >= 2
    assert all(path.is_file() for path in paths)


def test_a_missing_file_is_one_line(config):
    for path in input_files(config):
        path.unlink()
    with pytest.raises(UserError) as error:
        read(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("writer", "fields"),
    [
        ("jsonl", {"tags": "a"}),
        ("amazon_2014", {"categories": "A, B", "price": "1.5", "brand": ""}),
        ("amazon_2018", {"categories": "A, B", "brand": "X"}),
        ("amazon_2023", {"categories": "A", "brand": "X", "price": ""}),
        ("movielens_csv", {"categories": "A, B"}),
        ("movielens_1m", {"categories": "A, B"}),
        ("movielens_100k", {"categories": "A, B"}),
    ],
)
def test_fields(writers, tmp_path, writer, fields):
    catalog, _ = read(writers[writer](tmp_path))
    assert fields.items() <= catalog.row("1").items()


@pytest.mark.parametrize(("writer", "rating"), [("amazon_2018", 5.0), ("amazon_2023", 4.0), ("movielens_100k", 3.0)])
def test_ratings_and_reviews(writers, tmp_path, writer, rating):
    frame = read(writers[writer](tmp_path))[1].frame
    assert set(frame["rating"]) == {rating}
    assert "review" not in frame.columns or set(frame["review"]) == {"ok"}


def edit(path: Path, old: str, new: str) -> None:
    encoding = "latin-1" if path.suffix == ".dat" else "utf-8"
    text = path.read_text(encoding=encoding)
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding=encoding)


@pytest.mark.parametrize(
    ("writer", "file", "old", "new", "message"),
    [
        ("csv", "log.csv", "timestamp", "time", r"log\.csv: no column 'timestamp' \(data\.columns\.time\)"),
        ("csv", "log.csv", "u1,2,101", "u1,2,noon", r"log\.csv: row 2 has timestamp 'noon'"),
        ("csv", "log.csv", "timestamp", "item_id", r"log\.csv, line 1: column 'item_id' stands twice"),
        ("csv", "items.csv", "item_id,title", "title,title", r"items\.csv, line 1: column 'title' stands twice"),
        ("csv", "log.csv", "u1,2,101", "u1,2,1,1,1", r"log\.csv: not a readable table"),
        ("csv", "items.csv", "3,Paper", "2,Paper", r"items\.csv: item id '2' stands in rows 2 and 3"),
        ("jsonl", "items.jsonl", '{"item_id": 2', '{"item_id" 2', r"items\.jsonl, line 2: malformed JSON"),
        (
            "jsonl",
            "items.jsonl",
            '{"item_id": 2, ',
            '["item_id", 2, {',
            r"items\.jsonl, line 2: malformed JSON",
        ),
        ("lc_rec", "D.item.json", '"title"', "title", r"D\.item\.json, line 1: malformed JSON"),
        ("lc_rec", "D.item.json", '"2"', '"1"', r"D\.item\.json: malformed JSON: key '1' stands twice"),
        (
            "lc_rec",
            "D.inter.json",
            "[2, 1]",
            "[2, null]",
            r"D\.inter\.json: user 'u2': expected a list of item ids",
        ),
        (
            "amazon_2023",
            "D.jsonl",
            '"timestamp": 101',
            '"timestamp": "x"',
            r"D\.jsonl, line 2: timestamp is 'x'",
        ),
        (
            "amazon_2023",
            "D.jsonl",
            '"user_id": "u1"',
            '"user": "u1"',
            r"D\.jsonl, line 1: expected texts user_id",
        ),
        (
            "movielens_1m",
            "ratings.dat",
            "u1::2",
            "u1:2",
            r"ratings\.dat, line 2: 3 fields between '::'; expected 4",
        ),
        ("movielens_csv", "movies.csv", "title", "name", r"movies\.csv: no column 'title'"),
        (
            "recbole",
            "D.inter",
            "item_id:token",
            "item_id",
            r"D\.inter, line 1: found 'item_id'; expected name:type",
        ),
        (
            "recbole",
            "D.inter",
            "timestamp:float",
            "item_id:float",
            r"D\.inter, line 1: column 'item_id' stands twice",
        ),
        ("minionerec", "train/D.csv", "[1]", "[__import__('os')]", r"D\.csv, row 1: history_item_id"),
        ("minionerec", "info/D.txt", "\tBlue ink", "", r"D\.txt, line 2: 2 fields"),
    ],
)
def test_mistakes_are_named(writers, tmp_path, writer, file, old, new, message):
    config = writers[writer](tmp_path)
    edit(tmp_path / file, old, new)
    with pytest.raises(UserError, match=message):
        read(config)


def test_blank_lines_keep_line_numbers_true(tmp_path):
    (tmp_path / "D.inter.json").write_text('{\n\n\n"u": [1],\n\n"v" [2]}')
    with pytest.raises(UserError, match="line 6"):
        read(DataConfig(format="lc-rec", path=str(tmp_path)))


def test_byte_order_mark_and_fields_that_some_records_lack(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('\ufeff{"a": 1}\n{"b": [1, "x"]}\n\n{"a": 2.5, "b": null}\n', encoding="utf-8")
    assert read_table(path).rows() == [("1", None), (None, "1, x"), ("2.5", None)]


def test_items_known_by_id_only(writers, tmp_path):
    config = replace(writers["csv"](tmp_path), items=None)
    catalog, _ = read(config)
    assert catalog.frame.rows() == [("1", ""), ("2", ""), ("3", "")]


def test_parquet_tables(tmp_path):
    pl.DataFrame({"u": [1, 1], "i": [5, 6], "t": [2, 1]}).write_parquet(tmp_path / "log.parquet")
    config = DataConfig(
        format="table",
        path=str(tmp_path / "log.parquet"),
        columns=ColumnsConfig(user="u", item="i", time="t"),
    )
    assert sequences(read(config)[1]) == {"1": ["6", "5"]}


def test_amazon_finds_the_metadata_of_the_reviews(writers, tmp_path):
    config = writers["amazon_2018"](tmp_path)
    (tmp_path / "meta_Other.json").write_text("")
    assert [path.name for path in input_files(config)] == ["reviews_D_5.json.gz", "meta_D.json"]
    (tmp_path / "reviews_Other.json").write_text("")
    with pytest.raises(UserError, match=r"one file of reviews, found reviews_D_5\.json\.gz, reviews_Other\.json"):
        read(config)


def test_amazon_keeps_the_first_of_repeated_items(writers, tmp_path):
    config = writers["amazon_2018"](tmp_path)
    with (tmp_path / "meta_D.json").open("a") as file:
        file.write(json.dumps({"asin": "1", "title": "Another"}) + "\n")
    assert read(config)[0].row("1")["title"] == "Red pen"


@pytest.fixture
def hub_cache(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def test_local_dataset_folders(hub_cache, tmp_path):
    table = {"user_id": ["u1", "u1"], "item_id": [1, 2], "timestamp": [2, 1]}
    items = {"item_id": [1, 2], "title": ["Pen", "Ink"], "tags": [["a", "b"], []]}
    events = hub_cache.Dataset.from_dict(table)
    hub_cache.DatasetDict({"train": events, "other": events}).save_to_disk(tmp_path / "events")
    hub_cache.Dataset.from_dict(items).save_to_disk(tmp_path / "items")
    config = DataConfig(format="datasets", path=f"{tmp_path}/events@train", items=str(tmp_path / "items"))
    catalog, log = read(config)
    assert sequences(log) == {"u1": ["2", "1"]}
    assert catalog.row("1") == {"item_id": "1", "title": "Pen", "tags": "a, b"}
    assert tmp_path / "items" / "state.json" in input_files(config)
    with pytest.raises(UserError, match=r"no split named; write .*@SPLIT with one of train, other"):
        read(replace(config, path=f"{tmp_path}/events"))


def test_a_folder_that_is_no_dataset(hub_cache, tmp_path):
    with pytest.raises(UserError, match="cannot be loaded as a dataset"):
        read(DataConfig(format="datasets", path=str(tmp_path)))
