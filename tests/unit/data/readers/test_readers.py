import gzip
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
        ("csv", "log.csv", "u1,2,101", "u1,2,noon", r"log\.csv, line 3: timestamp 'noon'"),
        ("csv", "log.csv", "timestamp", "item_id", r"log\.csv, line 1: column 'item_id' stands twice"),
        ("csv", "items.csv", "item_id,title", "title,title", r"items\.csv, line 1: column 'title' stands twice"),
        ("csv", "log.csv", "u1,2,101", "u1,2,1,1,1", r"log\.csv, line 3: 5 fields with ',' between them, expected 3"),
        ("csv", "items.csv", "3,Paper", "2,Paper", r"items\.csv, line 4: item id '2' stands in an earlier row too"),
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


def test_encodings_are_found_in_every_reader(writers, tmp_path):
    """MovieLens 10M is UTF-8, 1M is Latin-1; a title may hold the separator."""
    config = writers["movielens_1m"](tmp_path)
    movies = ["1::Pérdida, La (1995)::Drama", "2::Größe :: Teil 2 (2001)::Comedy|War", "3::Plain (1999)::War"]
    for encoding in ("utf-8", "latin-1", "utf-16"):
        (tmp_path / "movies.dat").write_text("\n".join(movies) + "\n", encoding=encoding)
        titles = read(config)[0].frame["title"].to_list()
        assert titles == ["Pérdida, La (1995)", "Größe :: Teil 2 (2001)", "Plain (1999)"]
    (tmp_path / "movies.dat").write_text(movies[0].replace("é", "я") + "\n", encoding="cp1251")
    assert read(replace(config, encoding="cp1251"))[0].frame["title"][0] == "Pяrdida, La (1995)"


def test_json_lines_in_another_encoding(writers, tmp_path):
    config = writers["csv"](tmp_path)
    for encoding in ("utf-16", "latin-1"):
        items = tmp_path / "items.NDJSON"
        items.write_text('{"item_id": 1, "title": "Größe"}\n\n{"item_id": 2, "title": "x"}\n', encoding=encoding)
        assert read(replace(config, items=str(items)))[0].row("1")["title"] == "Größe"


def test_one_list_of_objects(writers, tmp_path):
    config = replace(writers["csv"](tmp_path), items=str(tmp_path / "items.json"))
    (tmp_path / "items.json").write_text('\n [\n{"item_id": 1, "title": "Pen"},\n {"item_id": 2, "title": "Ink"}]')
    assert read(config)[0].ids == ["1", "2"]
    (tmp_path / "items.json").write_text('[{"item_id": 1}, 2]')
    with pytest.raises(UserError, match=r"items\.json: entry 2 is int, expected an object"):
        read(config)


def test_a_log_without_a_column_of_times_is_in_order(writers, tmp_path, caplog):
    config = writers["csv"](tmp_path)
    (tmp_path / "log.csv").write_text("user_id,item_id,stars\nu1,3,5\nu1,1,4\nu1,2,5\n")
    _, log = read(config)
    assert sequences(log) == {"u1": ["3", "1", "2"]}
    assert not log.has_timestamps
    assert "log.csv: no column of times; the rows of each user count as in time order" in caplog.text


@pytest.mark.parametrize("column", ["ordered_at,7", "x,2024-01-31", "x,1700000000", "x,31.1.2024"])
def test_a_column_that_may_hold_times_is_not_passed_over(writers, tmp_path, column):
    config = writers["csv"](tmp_path)
    name, value = column.split(",")
    (tmp_path / "log.csv").write_text(f"user_id,item_id,{name}\nu1,3,{value}\n")
    with pytest.raises(UserError, match=r"no column 'timestamp' \(data\.columns\.time\).*data\.columns\.time null"):
        read(config)


def test_messages_about_columns(writers, tmp_path):
    config = writers["csv"](tmp_path)
    pl.DataFrame({"user_id": ["u"], " item_id": ["1"], "a, b": [1]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError, match=r"no column 'item_id' .*; found: user_id, ' item_id', 'a, b'"):
        read(replace(config, path=str(tmp_path / "log.parquet")))
    (tmp_path / "log.csv").write_text("u1,B1,5.0,1369699200\nu1,B2,4.0,1369699201\n")
    with pytest.raises(UserError, match=r"no column 'user_id' .*the first line seems to be a row"):
        read(config)


@pytest.mark.parametrize(
    ("writer", "file", "old"), [("csv", "items.csv", "item_id,"), ("recbole", "D.item", "item_id:")]
)
def test_item_ids_may_have_another_name_in_the_items(writers, tmp_path, writer, file, old):
    config = writers[writer](tmp_path)
    expected = read(config)
    edit(tmp_path / file, old, old.replace("item_id", "sku"))
    with pytest.raises(UserError, match=rf"{file}: no column 'item_id' .*found: sku, title.*columns\.item_in_items"):
        read(config)
    catalog, log = read(replace(config, columns=ColumnsConfig(item_in_items="sku")))
    assert catalog.frame.equals(expected[0].frame)
    assert log.frame.equals(expected[1].frame)


@pytest.mark.parametrize("quote", ["", '"'])
def test_bad_rows_are_left_out(writers, tmp_path, caplog, quote):
    config = replace(writers["csv"](tmp_path), bad_rows="drop")
    rows = ["u1,1,100", "u1,2,noon", "", ",3,101", "u1,2,102,103", "u1,3,104", "u1,4,never", f"u2,{quote}1{quote},1"]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    (tmp_path / "items.csv").write_text("item_id,title\n1,Pen\n1,Ink\n2,Cup\n")
    catalog, log = read(config)
    assert sequences(log) == {"u1": ["1", "3"], "u2": ["1"]}
    assert catalog.frame.rows() == [("1", "Pen"), ("2", "Cup")]
    assert "log.csv: 1 bad row left out (--data.bad_rows drop): line 6: 4 fields" in caplog.text
    assert "line 5: no user_id; expected one in every row" in caplog.text
    assert "line 3: timestamp 'noon'" in caplog.text
    assert "line 8: timestamp 'never'" in caplog.text
    assert "items.csv: 1 bad row left out (--data.bad_rows drop): line 3: item id '1' stands in" in caplog.text


@pytest.mark.parametrize(
    ("writer", "file", "old", "new", "message"),
    [
        ("jsonl", "items.jsonl", '{"item_id": 2, ', '{"item_id" 2, ', "line 2: malformed JSON"),
        ("amazon_2023", "D.jsonl", '"timestamp": 101', '"timestamp": "x"', "line 2: timestamp is 'x'"),
        ("amazon_2018", "meta_D.json", '"asin": "2"', '"asin": 2', "line 2: expected a text parent_asin"),
        ("movielens_1m", "ratings.dat", "u1::2", "u1:2", "line 2: 3 fields"),
        ("movielens_csv", "movies.csv", "2,", "2,x,y,", "line 3: 5 fields"),
        ("recbole", "D.inter", "\t101", "\tnoon", "line 3: timestamp 'noon.0'"),
        ("minionerec", "info/D.txt", "\tBlue ink", "", "line 2: 2 fields"),
    ],
)
def test_bad_rows_of_every_reader(writers, tmp_path, caplog, writer, file, old, new, message):
    config = writers[writer](tmp_path)
    whole = [len(part) for part in read(config)]
    edit(tmp_path / file, old, new)
    with pytest.raises(UserError, match=message):
        read(config)
    left = [len(part) for part in read(replace(config, bad_rows="drop"))]
    assert sum(whole) - sum(left) in (1, 2), "the row, or all rows of that kind"
    assert message in caplog.text


def test_recbole_titles_of_another_name(writers, tmp_path, caplog):
    config = writers["recbole"](tmp_path)
    edit(tmp_path / "D.item", "title:", "movie_title:")
    with caplog.at_level("INFO"):
        assert read(config)[0].row("1")["title"] == "Red pen"
    assert "the titles are in column 'movie_title' (--data.columns.title)" in caplog.text


AMAZON_RATINGS = [("A1XYZ7890123", "B000000001"), ("A1XYZ7890123", "B000000002"), ("A2XYZ7890123", "0123456789")]


@pytest.mark.parametrize("items_first", [False, True])
@pytest.mark.parametrize("with_metadata", [False, True])
def test_amazon_ratings_without_header(tmp_path, items_first, with_metadata):
    rows = [pair[::-1] if items_first else pair for pair in AMAZON_RATINGS]
    text = "".join(f"{first},{second},5.0,{100 + place}\n" for place, (first, second) in enumerate(rows))
    (tmp_path / "ratings_Beauty.csv").write_text(text)
    if with_metadata:
        metadata = [{"asin": item, "title": f"Title {item}"} for _, item in AMAZON_RATINGS]
        (tmp_path / "meta_Beauty.json").write_text("".join(json.dumps(record) + "\n" for record in metadata))
    catalog, log = read(DataConfig(format="amazon", path=str(tmp_path)))
    assert list(zip(log.frame["user_id"], log.frame["item_id"], strict=True)) == AMAZON_RATINGS
    assert log.frame["rating"].to_list() == [5.0] * 3
    assert catalog.row("B000000001")["title"] == ("Title B000000001" if with_metadata else "")


def test_amazon_ratings_with_header(tmp_path):
    (tmp_path / "All_Beauty.csv").write_text("user_id,parent_asin,rating,timestamp\nu1,i1,5.0,2\nu1,i2,4.0,1\n")
    _, log = read(DataConfig(format="amazon", path=str(tmp_path)))
    assert sequences(log) == {"u1": ["i2", "i1"]}


def test_amazon_ratings_that_cannot_be_told_apart(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,5.0,2\na,c,4.0,1\n")
    with pytest.raises(UserError, match=r"can't tell users from items.*data\.format table"):
        read(DataConfig(format="amazon", path=str(tmp_path)))


def test_html_is_cleaned_in_every_reader(config, tmp_path):
    """The titles of every format go through the same function."""
    for path in input_files(config):
        unpack, pack = (gzip.decompress, gzip.compress) if path.suffix == ".gz" else (bytes, bytes)
        text = unpack(path.read_bytes())
        path.write_bytes(pack(text.replace(b"Red pen", b"<b>Red</b>&nbsp; &amp;amp; pen")))
    assert read(config)[0].row("1")["title"] == "Red & pen"
