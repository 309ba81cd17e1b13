"""Published splits: the cases are exactly those of the files."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from llmrec.data import TEST, VALID, DataConfig, input_files, prepare
from llmrec.data.config import ColumnsConfig
from llmrec.errors import UserError

USERS = {"1": "abcde", "2": "bcdea", "3": "cab"}
ITEMS = "item_id:token\ttitle:token_seq\n" + "".join(f"{item}\tThing {item}\n" for item in "abcde")


def parts_of(items: str) -> list[tuple[int, int]]:
    """(place, part) of each event: leave-one-out."""
    return [(place, max(0, place - len(items) + 3)) for place in range(len(items))]


def write(folder: Path, names: list[str], header: str, row) -> None:
    folder.mkdir(exist_ok=True)
    for part, name in enumerate(names):
        rows = [row(user, items, at) for user, items in USERS.items() for at, of in parts_of(items) if of == part]
        (folder / name).write_text(header + "\n" + "".join(f"{line}\n" for line in reversed(rows) if line))


def plain(separator: str):
    return lambda user, items, at: separator.join([user, items[at], str(1_700_000_000 + at)])


def histories(user: str, items: str, at: int) -> str:
    return f"{user}\t{' '.join(items[:at])}\t{items[at]}" if at else ""


def cases(config: DataConfig, part: int) -> dict[str, tuple[str, str]]:
    prepared = prepare(config)
    sequences = prepared.split.sequences(prepared.catalog)
    found = sequences.cases(part)
    text = lambda rows: "".join(prepared.catalog.ids[row] for row in rows)  # noqa: E731
    return {
        sequences.users[user]: (text(history), text([target]))
        for user, history, target in zip(found.users, found.histories, found.targets, strict=True)
    }


def check(config: DataConfig) -> None:
    for part, back in ((VALID, 2), (TEST, 1)):
        assert cases(config, part) == {
            user: (items[: len(items) - back], items[-back]) for user, items in USERS.items() if len(items) > back
        }


RECBOLE = ["shop.train.inter", "shop.valid.inter", "shop.test.inter"]


@pytest.mark.parametrize("named", ["", "shop.train.inter"])
@pytest.mark.parametrize("augmented", [True, False])
def test_recbole(tmp_path, named, augmented):
    if augmented:
        header = "user_id:token\titem_id_list:token_seq\titem_id:token"
        write(tmp_path, RECBOLE, header, histories)
    else:
        write(tmp_path, RECBOLE, "user_id:token\titem_id:token\ttimestamp:float", plain("\t"))
    (tmp_path / "shop.item").write_text(ITEMS)
    config = DataConfig(format="recbole", path=str(tmp_path / named), split="given")
    check(config)
    assert [path.name for path in input_files(config)] == [*RECBOLE, "shop.item"]


def test_recbole_histories_of_one_file(tmp_path):
    write(tmp_path, RECBOLE, "user_id:token\titem_id_list:token_seq\titem_id:token", histories)
    (tmp_path / "shop.train.item").write_text(ITEMS)
    path = str(tmp_path / "shop.train.inter")
    frame = prepare(DataConfig(format="recbole", path=path, user_core=1, item_core=1, min_length=3)).split.frame
    assert "".join(frame.filter(pl.col("user_id") == "1")["item_id"]) == "abc"
    with pytest.raises(UserError, match=r"expected one \*\.inter file, found shop\.test.*use data\.split given"):
        prepare(DataConfig(format="recbole", path=str(tmp_path)))


@pytest.mark.parametrize(
    "names",
    [
        ["train.csv", "valid.csv", "test.csv"],
        ["Beauty_train.csv", "Beauty_val.csv", "Beauty_test.csv"],
        ["x.Train.csv", "x.validation.csv", "x.test.csv"],
        ["train-0.tsv", "dev-0.tsv", "test-0.tsv"],
    ],
)
def test_tables(tmp_path, names):
    separator = "\t" if names[0].endswith("tsv") else ","
    write(tmp_path, names, separator.join(["user_id", "item_id", "timestamp"]), plain(separator))
    for path in (tmp_path, tmp_path / names[0]):
        check(DataConfig(format="table", path=str(path), split="given", empty_text="keep"))


def test_parts_of_different_types(tmp_path):
    for part, name in enumerate(["train", "valid", "test"]):
        rows = [(user, ord(items[at])) for user, items in USERS.items() for at, of in parts_of(items) if of == part]
        frame = pl.DataFrame(
            rows, schema={"user_id": pl.String, "item_id": pl.Float64 if part else pl.Int64}, orient="row"
        )
        frame.write_parquet(tmp_path / f"{name}.parquet")
    config = DataConfig(
        format="table", path=str(tmp_path), split="given", empty_text="keep", columns=ColumnsConfig(time=None)
    )
    assert sorted(prepare(config).catalog.ids) == ["100", "101", "97", "98", "99"]


def test_minionerec(tmp_path):
    header = "user_id,history_item_id,item_id"
    for part, name in enumerate(["train", "valid", "test"]):
        row = lambda user, items, at: f'{user},"{list(items[:at])}",{items[at]}' if at else ""  # noqa: E731
        (tmp_path / name).mkdir()
        rows = [row(user, items, at) for user, items in USERS.items() for at, of in parts_of(items) if of == part]
        (tmp_path / name / "D.csv").write_text("\n".join([header, *reversed([line for line in rows if line])]) + "\n")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "D.item.json").write_text(json.dumps({item: {"title": item} for item in "abcde"}))
    config = DataConfig(format="minionerec", path=str(tmp_path), split="given")
    check(config)
    assert prepare(replace(config, split="leave-one-out", user_core=1, item_core=1)).split.protocol["events"] == {
        "train": 7, "valid": 3, "test": 3
    }  # fmt: skip
    (tmp_path / "valid" / "D.csv").unlink()
    with pytest.raises(UserError, match=r"no valid/\*\.csv; expected one file for each part"):
        prepare(config)


def test_a_dataset_with_splits(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    splits = {}
    for part, name in enumerate(["train", "validation", "test"]):
        rows = [(user, items[at], at) for user, items in USERS.items() for at, of in parts_of(items) if of == part]
        columns = dict(zip(["user_id", "item_id", "timestamp"], map(list, zip(*rows, strict=True)), strict=True))
        splits[name] = datasets.Dataset.from_dict(columns)
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "events")
    config = DataConfig(format="datasets", path=str(tmp_path / "events"), split="given", empty_text="keep")
    check(config)
    with pytest.raises(UserError, match=r"without @SPLIT; found train, validation, test"):
        prepare(replace(config, path=f"{tmp_path / 'events'}@train"))


def test_a_missing_item_is_said(tmp_path, caplog):
    write(tmp_path, RECBOLE, "user_id:token\titem_id:token\ttimestamp:float", plain("\t"))
    (tmp_path / "shop.item").write_text(ITEMS.replace("d\tThing d\n", ""))
    config = DataConfig(format="recbole", path=str(tmp_path), split="given", unknown_share=0.5)
    assert cases(config, TEST).keys() == {"1", "2", "3"}
    assert "2 published events are left out" in caplog.text


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        (["train.csv", "test.csv"], "", r"the valid part, valid\.csv or val\.csv or .* beside train\.csv; found none"),
        (["train.csv", "val.csv", "dev.csv", "test.csv"], "", r"of the valid part.*found dev\.csv, val\.csv"),
        (["a.csv"], "", r"expected one file with train in its name \(such as train\.csv\), found a\.csv"),
        (["train.csv", "train2.jsonl", "x_train.csv"], "", r"found train\.csv, train2\.jsonl, x_train\.csv; name"),
        (["strained.csv"], "strained.csv", r"needs the word train in the name of the file, such as x\.train\.csv"),
        ([], "nowhere", "expected a file, found nothing there"),
    ],
)  # fmt: skip
def test_missing_files(tmp_path, files, path, message):
    for name in files:
        (tmp_path / name).write_text("user_id,item_id\n")
    with pytest.raises(UserError, match=message):
        prepare(DataConfig(format="table", path=str(tmp_path / path), split="given"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "movielens"}, r"data\.split given: data\.format movielens has no published parts"),
        ({"min_rating": 4.0}, r"data\.min_rating 4\.0: data\.split given keeps all published events"),
        ({"duplicates": "drop-repeats"}, r"data\.duplicates drop-repeats: data\.split given keeps all"),
    ],
)
def test_settings_that_contradict(fields, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**{"format": "table", "path": "x", "split": "given", **fields})


@pytest.mark.parametrize(
    ("format", "suffix", "separator", "header"),
    [
        ("table", "csv", ",", "user_id,item_id,timestamp"),
        ("recbole", "inter", "\t", "user_id:token\titem_id:token\ttimestamp:float"),
    ],
)
def test_bad_rows_of_a_part(tmp_path, caplog, format, suffix, separator, header):
    names = [f"shop.{part}.{suffix}" for part in ("train", "valid", "test")]
    write(tmp_path, names, header, plain(separator))
    with open(tmp_path / names[1], "a") as file:
        file.write(separator.join("1a") + f"{separator}noon\n")
        file.write(separator.join(["", "a", "1700000000"]) + "\n")
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{item},Thing {item}\n" for item in "abcde"))
    items = str(tmp_path / "items.csv") if format == "table" else None
    (tmp_path / "shop.item").write_text(ITEMS)
    config = DataConfig(format=format, path=str(tmp_path), items=items, split="given")
    last = len((tmp_path / names[1]).read_text().splitlines())
    with pytest.raises(UserError, match=rf"line {last} of {names[1]}: no user_id; expected one"):
        prepare(config)
    check(replace(config, bad_rows="drop"))
    assert f"line {last - 1} of {names[1]}: timestamp 'noon'" in caplog.text
    assert f"line {last} of {names[1]}: no user_id" in caplog.text


def test_bad_rows_among_histories(tmp_path, caplog):
    write(tmp_path, RECBOLE, "user_id:token\titem_id_list:token_seq\titem_id:token", histories)
    with open(tmp_path / RECBOLE[2], "a") as file:
        file.write("1\ta b\t\n")
    (tmp_path / "shop.item").write_text(ITEMS)
    line = len((tmp_path / RECBOLE[2]).read_text().splitlines())
    check(DataConfig(format="recbole", path=str(tmp_path), split="given", bad_rows="drop"))
    assert f"line {line} of {RECBOLE[2]}: no item_id" in caplog.text
