"""Collaborative experts in a run: beside the language model, fused with it, in the bundle, and with added items."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from llmrec.collaborative.fused import ARRAYS, CONFIG

EXPERTS = ["--experts.models", "[decayed-markov,smoothed-markov,text,last-text,popularity,item-knn]"]


@pytest.fixture(scope="module")
def run(tiny_run: Path, tiny_flags: list[str], llmrec: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, with experts: what was trained stands."""
    folder = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("experts") / "run"))
    trained = (folder / "train" / "manifest.json").read_bytes()
    done = llmrec("run", "--run", folder, *tiny_flags, *EXPERTS)
    assert done.returncode == 0, done.stderr
    assert (folder / "train" / "manifest.json").read_bytes() == trained
    return folder


def test_experts_rank_alone_and_fused_with_the_language_model(run: Path, tiny_run: Path) -> None:
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    before = json.loads((tiny_run / "evaluate" / "metrics.json").read_text())
    recall = {name: system["all"]["recall@10"] for name, system in metrics["systems"].items()}
    assert "experts" not in before["systems"]
    assert recall["experts"] > 0.3 > before["systems"]["llmrec"]["all"]["recall@10"]
    assert recall["llmrec"] > recall["experts"] - 0.05
    fusion = json.loads((run / "model" / "fusion.json").read_text())
    assert fusion["features"][4:] == [f"experts.{name}" for name in EXPERTS[1][1:-1].split(",")]
    paired = metrics["paired"]["recall@10"]
    assert paired["experts"]["difference"] == pytest.approx(recall["llmrec"] - recall["experts"])
    assert set(paired["systems"]) == {"llmrec", "experts"}
    assert recall[paired["best"]] == max(recall[name] for name in recall if name not in paired["systems"])
    assert "llmrec - experts" in (run / "evaluate" / "report.md").read_text()


def test_added_items_are_ranked_by_their_texts(run: Path, llmrec: Callable, tmp_path: Path) -> None:
    model = Path(shutil.copytree(run / "model", tmp_path / "model"))
    index = pl.read_parquet(model / "item_index.parquet")
    old = index.row(3, named=True)
    table = tmp_path / "items.csv"
    fields = {name: [old[name]] for name in index.columns if name not in ("item_id", "codes", "training_events")}
    pl.DataFrame({"item_id": ["LATER"], **fields}).write_csv(table)
    history = ["--history", *index["item_id"][:2].to_list()]
    before = json.loads(llmrec("recommend", "--model", model, *history, "--k", "50", "--json").stdout)["items"]
    assert llmrec("add-items", "--model", model, "--items", table).returncode == 0
    after = json.loads(llmrec("recommend", "--model", model, *history, "--k", "50", "--json").stdout)["items"]
    scores = {item["item_id"]: item["score"] for item in before}
    assert {item["item_id"]: item["score"] for item in after if item["item_id"] in scores} == pytest.approx(
        {name: score for name, score in scores.items() if name in {item["item_id"] for item in after}}, abs=0.05
    )
    alone = llmrec("recommend", "--model", model, "--history", old["item_id"], "--allow", "LATER", "--json")
    assert [item["item_id"] for item in json.loads(alone.stdout)["items"]] == ["LATER"]
    assert llmrec("add-items", "--model", model, "--remove", "LATER").returncode == 0
    again = json.loads(llmrec("recommend", "--model", model, *history, "--k", "50", "--json").stdout)["items"]
    assert [item["item_id"] for item in again] == [item["item_id"] for item in before]


@pytest.mark.parametrize("damage", [CONFIG, ARRAYS])
def test_damaged_experts_are_one_line(run: Path, llmrec: Callable, tmp_path: Path, damage: str) -> None:
    model = Path(shutil.copytree(run / "model", tmp_path / "model"))
    content = bytearray((model / damage).read_bytes())
    content[len(content) // 3 : len(content) // 3 + 40] = b"x" * 40
    (model / damage).write_bytes(content)
    done = llmrec("recommend", "--model", model, "--prompt", "a soap")
    assert done.returncode in (0, 2), done.stderr  # text vectors may change without notice
    assert "Traceback" not in done.stderr
    if damage == CONFIG:
        assert done.returncode == 2
        assert "hold no experts that llmrec saved" in done.stderr


def test_experts_without_a_name_are_refused(llmrec: Callable, tmp_path: Path) -> None:
    done = llmrec("run", "--config", "quickstart.yaml", "--run", tmp_path / "run", "--experts.learned", "true")
    assert done.returncode == 2
    assert "--experts.learned true: there are no experts" in done.stderr


def test_a_benchmark_needs_no_language_model(llmrec: Callable, tmp_path: Path) -> None:
    """Baselines and experts in one table; a second call makes nothing anew, another baseline only the table."""
    shop = ["--data.synthetic_items", "200", "--data.synthetic_users", "300", "--data.user_core", "1"]
    words = ["--config", "quickstart.yaml", "--run", tmp_path / "run", "--data.item_core", "1", *shop, *EXPERTS]
    done = llmrec("benchmark", *words)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir() if path.is_dir()} == {"data", "embed", "experts", "benchmark"}
    metrics = json.loads((run / "benchmark" / "metrics.json").read_text())
    assert list(metrics["systems"]) == ["experts", "popularity", "markov", "item-knn"]
    recall = {name: system["all"]["recall@10"] for name, system in metrics["systems"].items()}
    assert recall["experts"] > max(recall["markov"], recall["item-knn"]) > recall["popularity"]
    assert "experts" in done.stdout
    assert "Paired differences" in (run / "benchmark" / "report.md").read_text()
    fitted = (run / "experts" / "manifest.json").read_bytes()
    again = llmrec("benchmark", *words, "--evaluate.baselines", "[decayed-markov]", "--json")
    assert list(json.loads(again.stdout)["systems"]) == ["experts", "decayed-markov"]
    assert (run / "experts" / "manifest.json").read_bytes() == fitted
