"""Changes of a served bundle: on the disk before they are acknowledged, seen at once, and those of others noticed."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import polars as pl
import pytest

pytest.importorskip("fastapi_offline", reason="the serve extra is not installed")
pytest.importorskip("prometheus_client", reason="the serve extra is not installed")

from fastapi.testclient import TestClient

from llmrec.data import Catalog
from llmrec.recommender.recommender import Recommender
from llmrec.recommender.store import change_items
from llmrec.serve.workers import Peers

Served = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture(scope="module")
def bundle(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "model"
    recommender.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def live(bundle: Path, served: Served) -> Iterator[TestClient]:
    with served(lambda: Recommender.from_pretrained(bundle), bundle) as client:
        yield client


def ids_on_disk(folder: Path) -> list[str]:
    return pl.read_parquet(folder / "item_index.parquet")["item_id"].to_list()


def new(*ids: str, **more: Any) -> dict[str, Any]:
    return {"items": [{"item_id": each, "title": f"Gentle soap {each}"} for each in ids], **more}


def catalog(item: str) -> Catalog:
    return Catalog.from_frame(pl.DataFrame({"item_id": [item], "title": ["A shampoo"]}))


def test_an_added_item_is_on_the_disk_and_recommended(live: TestClient, bundle: Path) -> None:
    answer = live.post("/v1/items", json=new("n/1", "n2"))
    assert answer.status_code == 201
    assert {**answer.json(), "items": None, "semantic_ids": None} == {
        "added": 2,
        "updated": 0,
        "items": None,
        "semantic_ids": None,
        "notes": [],
    }
    assert {"n/1", "n2"} <= set(ids_on_disk(bundle))
    item = live.get("/v1/items/n/1").json()
    assert (item["training_events"], item["semantic_id"]) == (0, answer.json()["semantic_ids"]["n/1"])
    found = live.post("/v1/recommend", json={"prompt": "soap", "allow": ["n/1", "n2"]}).json()["items"]
    assert {each["item_id"] for each in found} == {"n/1", "n2"}


def test_fields_that_the_catalogue_lacks_are_named(live: TestClient) -> None:
    item = {"item_id": "typo", "title": "Soap", "fields": {"brnd": "Alba", "brand": "Alba"}}
    answer = live.post("/v1/items", json={"items": [item]}).json()
    assert answer["notes"] == ["Left out fields that the catalogue lacks: brnd."]


def test_an_item_that_is_there_is_refused_or_updated(live: TestClient, bundle: Path) -> None:
    live.post("/v1/items", json=new("twice"))
    again = live.post("/v1/items", json=new("twice", "other"))
    assert (again.status_code, again.json()["error"]["code"]) == (409, "item_exists")
    assert "other" not in ids_on_disk(bundle)
    before = live.get("/v1/items/twice").json()["semantic_id"]
    changed = {"items": [{"item_id": "twice", "title": "A comb"}], "if_exists": "update"}
    assert live.post("/v1/items", json=changed).json()["updated"] == 1
    item = live.get("/v1/items/twice").json()
    assert (item["title"], item["semantic_id"]) == ("A comb", before)


def test_a_removed_item_is_gone(live: TestClient, bundle: Path) -> None:
    live.post("/v1/items", json=new("short"))
    assert live.delete("/v1/items/short").json()["removed"] == 1
    assert "short" not in ids_on_disk(bundle)
    assert live.get("/v1/items/short").status_code == 404
    assert live.delete("/v1/items/short").status_code == 404


def test_concurrent_changes_share_writes_and_keep_their_own_outcomes(live: TestClient, bundle: Path) -> None:
    statuses: dict[str, int] = {}

    def add(item: str) -> None:
        statuses[item] = live.post("/v1/items", json=new(item)).status_code

    wanted = [*(f"c{place}" for place in range(6)), "i3"]  # i3 is there
    threads = [threading.Thread(target=add, args=(item,)) for item in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == {item: 409 if item == "i3" else 201 for item in wanted}
    assert set(wanted) <= set(ids_on_disk(bundle))


def test_changes_of_another_process_are_noticed(live: TestClient, bundle: Path) -> None:
    change_items(bundle, None, lambda store: store.with_items(catalog("theirs")))
    for _ in range(300):
        if live.get("/v1/items/theirs").status_code == 200:
            break
        time.sleep(0.1)
    assert live.get("/v1/items/theirs").status_code == 200
    assert live.post("/v1/items", json=new("ours")).status_code == 201
    assert {"theirs", "ours"} <= set(ids_on_disk(bundle))


def test_two_workers_agree_from_the_acknowledgement_on(bundle: Path, served: Served) -> None:
    read = [0, 0]

    def load() -> Recommender:
        return Recommender.from_pretrained(bundle)

    with served(load, bundle, peers=Peers(read, 0)) as one, served(load, bundle, peers=Peers(read, 1)) as two:
        for number in range(6):
            item, writer, reader = f"both-{number}", *((one, two) if number % 2 else (two, one))
            assert writer.post("/v1/items", json=new(item)).status_code == 201
            assert reader.get(f"/v1/items/{item}").status_code == 200
        assert writer.delete(f"/v1/items/{item}").status_code == 200
        assert reader.get(f"/v1/items/{item}").status_code == 404


def test_a_change_waits_only_for_workers_that_answer_from_an_older_state() -> None:
    started = time.monotonic()
    assert Peers([5, 0, 7], 0).wait(5, 10)
    assert time.monotonic() - started < 5
    assert not Peers([5, 4], 0).wait(5, 0.01)
    late = Peers([5, 4], 1)
    threading.Timer(0.05, late.report, [6]).start()
    assert Peers(late.read, 0).wait(5, 30)


def test_a_new_model_is_noticed_and_a_damaged_one_is_not_used(
    recommender: Recommender, served: Served, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    recommender.save_pretrained(folder)
    with served(lambda: Recommender.from_pretrained(folder), folder) as client:
        header = folder / "llmrec.json"
        header.write_text(header.read_text().replace('"max_history": ', '"max_history": 1'))
        (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b"\n")
        time.sleep(1.5)  # the size of config.json is wrong now
        assert client.get("/v1/model").json()["max_history"] == recommender.max_history
        recommender.save_pretrained(folder)
        header.write_text(header.read_text().replace('"max_history": ', '"max_history": 1'))
        for _ in range(300):
            if client.get("/v1/model").json()["max_history"] != recommender.max_history:
                break
            time.sleep(0.1)
        assert client.get("/v1/model").json()["max_history"] == int(f"1{recommender.max_history}")
