"""The published figures of real data sets; runs where they lie beside the repository."""

from pathlib import Path

import pytest

from llmrec.data import DataConfig, prepare
from llmrec.data.readers import read

DATA = Path(__file__).parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")


def config(kind: str, folder: str, **fields) -> DataConfig:
    return DataConfig(format=kind, path=str(DATA / folder), **fields)


@pytest.mark.parametrize(
    ("kind", "folder", "users", "items", "interactions"),
    [
        ("lc-rec", "Beauty", 22363, 12101, 198502),
        ("lc-rec", "Sports", 35598, 18357, 296337),
        ("lc-rec", "Industrial", 3285, 3541, 22743),
        ("minionerec", "Industrial/minionerec", 3285, 3541, 22743),
        ("amazon", "Gift_Cards", 458, 148, 2972),
        ("movielens", "ml-latest-small", 671, 9066, 100004),
    ],
)
def test_published_counts(kind, folder, users, items, interactions):
    catalog, log = read(config(kind, folder))
    found = log.frame["user_id"].n_unique(), log.frame["item_id"].n_unique(), len(log)
    assert found == (users, items, interactions)
    assert all(catalog.row(item)["title"] for item in catalog.ids)


def test_five_core_keeps_all_of_beauty():
    prepared = prepare(config("lc-rec", "Beauty"))
    assert sum(step.dropped for step in prepared.summary.steps) == 0
    assert prepared.split.protocol["events"] == {"train": 153776, "valid": 22363, "test": 22363}


def test_both_layouts_of_industrial_hold_the_same_sequences():
    logs = [read(config("lc-rec", "Industrial"))[1], read(config("minionerec", "Industrial/minionerec"))[1]]
    first, second = (sorted(part["item_id"].to_list() for part in log.frame.partition_by("user_id")) for log in logs)
    assert first == second
