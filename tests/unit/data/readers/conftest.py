"""The same tiny log in every format: users u1 (i1, i2, i3) and u2 (i2, i1), three items with titles."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec.data import DataConfig

USERS = {"u1": ["1", "2", "3"], "u2": ["2", "1"]}
TITLES = {"1": "Red pen", "2": "Blue ink", "3": "Paper"}
EVENTS = [(user, item, 100 + place) for user, items in USERS.items() for place, item in enumerate(items)]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode("latin-1" if path.suffix == ".dat" or path.name.startswith("u.") else "utf-8")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def lines(records: list[dict], dump: Callable[[dict], str] = json.dumps) -> str:
    return "".join(dump(record) + "\n" for record in records)


def csv(folder: Path) -> DataConfig:
    write(folder / "log.csv", "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in EVENTS))
    write(folder / "items.csv", "item_id,title\n" + "".join(f"{i},{t}\n" for i, t in TITLES.items()))
    return DataConfig(format="table", path=str(folder / "log.csv"), items=str(folder / "items.csv"))


def jsonl(folder: Path) -> DataConfig:
    events = [{"user_id": u, "item_id": int(i), "timestamp": t} for u, i, t in EVENTS]
    write(folder / "log.jsonl.gz", lines(events))
    write(
        folder / "items.jsonl",
        lines([{"item_id": int(i), "title": t, "tags": ["a"]} for i, t in TITLES.items()]),
    )
    return DataConfig(format="table", path=str(folder / "log.jsonl.gz"), items=str(folder / "items.jsonl"))


def lc_rec(folder: Path) -> DataConfig:
    write(folder / "D.inter.json", json.dumps({user: [int(i) for i in items] for user, items in USERS.items()}))
    write(
        folder / "D.item.json",
        json.dumps({item: {"title": title, "brand": ""} for item, title in TITLES.items()}),
    )
    return DataConfig(format="lc-rec", path=str(folder))


def amazon_2014(folder: Path) -> DataConfig:
    reviews = [
        {"reviewerID": u, "asin": i, "unixReviewTime": t, "overall": 5.0, "reviewText": "ok"} for u, i, t in EVENTS
    ]
    write(folder / "reviews_D_5.json.gz", lines(reviews))
    items = [{"asin": i, "title": t, "categories": [["A", "B"]], "price": 1.5} for i, t in TITLES.items()]
    write(folder / "meta_D.json.gz", lines(items, repr))
    return DataConfig(format="amazon", path=str(folder))


def amazon_2018(folder: Path) -> DataConfig:
    config = amazon_2014(folder)
    (folder / "meta_D.json.gz").unlink()
    items = [{"asin": i, "title": t, "category": ["A", "B"], "brand": "X"} for i, t in TITLES.items()]
    write(folder / "meta_D.json", lines(items))
    return config


def amazon_2023(folder: Path) -> DataConfig:
    reviews = [
        {
            "user_id": u,
            "parent_asin": i,
            "asin": "x",
            "timestamp": t,
            "rating": 4.0,
            "title": "so",
            "text": "ok<br />",
        }
        for u, i, t in EVENTS
    ]
    write(folder / "D.jsonl", lines(reviews))
    items = [
        {"parent_asin": i, "title": t, "store": "X", "categories": ["A"], "price": None} for i, t in TITLES.items()
    ]
    write(folder / "meta_D.jsonl.gz", lines(items))
    return DataConfig(format="amazon", path=str(folder / "D.jsonl"))


def movielens_csv(folder: Path) -> DataConfig:
    write(
        folder / "ratings.csv",
        "userId,movieId,rating,timestamp\n" + "".join(f"{u},{i},4.5,{t}\n" for u, i, t in EVENTS),
    )
    write(folder / "movies.csv", "movieId,title,genres\n" + "".join(f"{i},{t},A|B\n" for i, t in TITLES.items()))
    return DataConfig(format="movielens", path=str(folder))


def movielens_1m(folder: Path) -> DataConfig:
    write(folder / "ratings.dat", "".join(f"{u}::{i}::5::{t}\n" for u, i, t in EVENTS))
    write(folder / "movies.dat", "".join(f"{i}::{t}::A|B\n" for i, t in TITLES.items()))
    return DataConfig(format="movielens", path=str(folder))


def movielens_100k(folder: Path) -> DataConfig:
    write(folder / "u.data", "".join(f"{u}\t{i}\t3\t{t}\n" for u, i, t in EVENTS))
    write(folder / "u.genre", "unknown|0\nA|1\nB|2\n\n")
    write(folder / "u.item", "".join(f"{i}|{t}|01-Jan-1995||url|0|1|1\n" for i, t in TITLES.items()))
    return DataConfig(format="movielens", path=str(folder))


def recbole(folder: Path) -> DataConfig:
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    write(folder / "D.inter", header + "".join(f"{u}\t{i}\t{t}.0\n" for u, i, t in EVENTS))
    write(
        folder / "D.item",
        "item_id:token\ttitle:token_seq\n" + "".join(f"{i}\t{t}\n" for i, t in TITLES.items()),
    )
    return DataConfig(format="recbole", path=str(folder))


def minionerec(folder: Path) -> DataConfig:
    header = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n"
    row = '{},"[\'x\']",y,"{}",{},"[\'<a_1>\']",<a_2>\n'.format
    write(folder / "train/D.csv", header + row("u1", [1], 2) + row("u2", [2], 1))
    write(folder / "test/D.csv", header + row("u1", [1, 2], 3))
    write(folder / "info/D.txt", "".join(f"<a_1><b_2>\t{t}\t{i}\n" for i, t in TITLES.items()))
    return DataConfig(format="minionerec", path=str(folder))


WRITERS = [csv, jsonl, lc_rec, amazon_2014, amazon_2018, amazon_2023]
WRITERS += [movielens_csv, movielens_1m, movielens_100k, recbole, minionerec]


@pytest.fixture(params=WRITERS, ids=lambda writer: writer.__name__)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> DataConfig:
    """The log in one of the formats, written to a folder of its own."""
    return request.param(tmp_path / "data")


@pytest.fixture
def writers() -> dict[str, Callable[[Path], DataConfig]]:
    """The writers by name."""
    return {writer.__name__: writer for writer in WRITERS}
