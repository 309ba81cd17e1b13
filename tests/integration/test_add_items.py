"""`llmrec add-items` as a user runs it: files in, one line or one document out, and killed for good."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from llmrec import BaseConfig, Catalog, EmbedConfig, ItemTokenizer, Recommender
from llmrec.cli.main import main
from llmrec.recommender import bundle
from llmrec.recommender.store import ItemStore

Program = Callable[..., subprocess.CompletedProcess[str]]
Fails = Callable[..., str]

NEW = "sku,name,brand\nn0,Sun cream,Dune\nn1,Alba soap of roses,Alba\n"
COLUMNS = ["--item-column", "sku", "--title-column", "name"]

KILLED = """
import os, signal, sys
from llmrec.cli.main import main

event, left = sys.argv[1], int(sys.argv[2])

def hook(name, arguments):
    global left
    if name == event and any(".model.new" in str(word) or str(word) == "renameat2" for word in arguments):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
main(sys.argv[3:])
"""


@pytest.fixture(scope="module")
def made(tiny_catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of an unfitted recommender over the tiny shop."""
    tokenizer = ItemTokenizer(levels=2, codes=4, embed=EmbedConfig(encoder="tfidf-svd", dim=8)).fit(tiny_catalog)
    config = BaseConfig(hidden_size=32, layers=1, heads=4, vocabulary=320, context=160)
    folder = tmp_path_factory.mktemp("made") / "model"
    Recommender.from_base(None, tokenizer, config=config).save_pretrained(folder)
    return folder


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "new.csv"
    path.write_text(NEW)
    return path


def index(folder: Path) -> dict[str, list[int]]:
    return {row["item_id"]: row["codes"] for row in bundle.read_index(folder).iter_rows(named=True)}


def test_added_in_place_and_found_by_recommend(
    llmrec: Program, llmrec_process: Program, model: Path, items: Path
) -> None:
    before = index(model)
    result = llmrec_process("add-items", "--model", model, "--items", items, *COLUMNS)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == "2 added"
    assert second.startswith(f"22 items in {model}, ")
    after = index(model)
    assert {item: after[item] for item in before} == before
    found = llmrec("recommend", "--model", model, "--prompt", "cream", "--where", "brand=dune", "--json")
    assert [item["item_id"] for item in json.loads(found.stdout)["items"]] == ["n0"]
    assert len(Recommender.from_pretrained(model).recommend(["n1", "i3"], k=30)) == 20


def test_json_with_an_update_a_removal_and_a_new_folder(llmrec: Program, model: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "changes.jsonl", tmp_path / "out"
    path.write_text(
        json.dumps({"item_id": "i2", "title": "Rose soap"}) + "\n" + json.dumps({"item_id": "x", "title": "Soap"})
    )
    before = index(model)
    flags = ["--model", model, "--items", path, "--remove", "i5", "i6", "--if-exists", "update", "--out", out, "--json"]
    result = llmrec("add-items", *flags)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert {name: answer[name] for name in ("added", "updated", "removed", "items")} == {
        "added": 1,
        "updated": 1,
        "removed": 2,
        "items": 19,
    }
    assert answer["seconds"] > 0
    after = index(out)
    letters = "".join(f"<{letter}_{code}>" for letter, code in zip("abc", after["x"], strict=True))
    assert answer["semantic_ids"] == {"x": letters}
    assert index(model) == before
    assert before.keys() - after.keys() == {"i5", "i6"}
    assert after["i2"] == before["i2"]
    assert bundle.read_index(out).filter(pl.col("item_id") == "i2")["title"].item() == "Rose soap"


def test_mistakes(
    fails: Fails,
    model: Path,
    items: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line each, exit code 2, and a bundle as it was; in this process but for the first."""
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    monkeypatch.setattr("llmrec.cli.add_items.log_to_stderr", lambda: None)  # the tests after this one log too

    def says(*flags: str | Path, model: str | Path = model) -> str:
        assert main(["add-items", "--model", str(model), *map(str, flags)]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        return error

    def file(text: str) -> Path:
        path = tmp_path / "wrong.csv"
        path.write_text(text)
        return path

    line = fails("add-items", "--model", model)
    assert line == "llmrec: nothing to do: give --items FILE, --remove ID ..., or both."
    assert "--items: " in says("--items", tmp_path / "none.csv")
    assert "no column 'item_id' (--item-column); found: sku, name, brand" in says("--items", items)
    assert "no column 'what' (--title-column)" in says(
        "--items", items, "--item-column", "sku", "--title-column", "what"
    )
    assert "item 'i1' is in the catalogue already" in says("--items", file("item_id,title\nq,soap\ni1,soap\n"))
    assert "item 'q' has no text" in says("--items", file("item_id,title\nq,\n"))
    assert "item id 'q' stands in rows 1 and 2" in says("--items", file("item_id,title\nq,soap\nq,soap\n"))
    assert "no items; expected at least one row" in says("--items", file("item_id,title\n"))
    assert "--remove zz: no such item" in says("--remove", "zz")
    assert "--if-exists" in says("--items", items, "--if-exists", "keep")
    assert "is there already; name a new folder" in says("--items", items, *COLUMNS, "--out", tmp_path)
    hub = says("--items", items, *COLUMNS, model="org/shop")
    assert "a bundle of the Hub is changed into a new one, named by --out" in hub
    assert "no llmrec bundle there" in says("--items", items, *COLUMNS, model=tmp_path)
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(sys.platform != "linux", reason="knows the names of Linux's calls")
@pytest.mark.parametrize(
    ("event", "number", "expected"),
    [("os.mkdir", 0, 20), ("os.link", 3, 20), ("ctypes.dlsym", 0, 20), ("shutil.rmtree", 1, 22)],
)
def test_killed_for_good(
    llmrec: Program, environment: dict[str, str], model: Path, items: Path, event: str, number: int, expected: int
) -> None:
    """Before the copy, within it, just before the exchange, just after it; the next call tidies up."""
    arguments = ["add-items", "--model", str(model), "--items", str(items), *COLUMNS]
    command = [sys.executable, "-c", KILLED, event, str(number), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert len(ItemStore.load(model, bundle.read_header(model)).catalog) == expected
    assert (model.parent / ".model.new").exists() == (event != "os.mkdir")
    again = llmrec(*arguments, "--if-exists", "update")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[0] == ("2 added" if expected == 20 else "2 updated")
    assert sorted(os.listdir(model.parent)) == ["model", "new.csv"]


def test_an_evaluation_without_some_items_says_what_to_do(fails: Callable[..., str], run_copy: Path) -> None:
    bought = pl.read_parquet(run_copy / "data" / "interactions.parquet")["item_id"][0]
    assert main(["add-items", "--model", str(run_copy / "model"), "--remove", bought]) == 0
    line = fails("evaluate", "--run", run_copy, "--evaluate.k", "[10]")
    assert f"{run_copy / 'model'} lacks 1 of the items in the log, such as '{bought}'" in line
    assert f"delete {run_copy / 'model'}" in line
