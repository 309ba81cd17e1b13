"""Collaborative experts in a run: beside the language model, fused with it, in the bundle, and with added items."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec.collaborative.fused import ARRAYS, CONFIG, FusedExperts

SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "epochs": 2, "components": 16, "levels": 8, "codes": 16}
EXPERTS = [
    *("--experts.models", "[decayed-markov,smoothed-markov,text,last-text,popularity,item-knn,rpg]"),
    *(word for name, value in SMALL.items() for word in (f"--experts.rpg.{name}", str(value))),
]


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
    fields = {name.removeprefix("fields."): [text] for name, text in old.items() if name.startswith("fields.")}
    pl.DataFrame({"item_id": ["LATER"], "title": [old["title"]], **fields}).write_csv(table)
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
    words = ["--experts.models", "[]", "--experts.learned", "true"]
    done = llmrec("run", "--config", "quickstart.yaml", "--run", tmp_path / "run", *words)
    assert done.returncode == 2
    assert "--experts.learned true: there are no experts" in done.stderr


def test_experts_answer_before_the_model_is_trained(run: Path, llmrec: Callable, tmp_path: Path) -> None:
    """The run as it is before its training: the same items as the experts alone rank first."""
    early = tmp_path / "early"
    for stage in ("data", "experts"):
        shutil.copytree(run / stage, early / stage)
    ids = pl.read_parquet(run / "data" / "items.parquet")["item_id"].to_list()
    words = ["--history", ids[0], ids[1], "--k", "5", "--json"]
    missing = llmrec("recommend", "--run", tmp_path / "nope", *words)
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "nope: expected a folder, found nothing there" in missing.stderr
    done = llmrec("recommend", "--run", early, *words)
    assert done.returncode == 0, done.stderr
    assert "the experts of the run answer" in done.stderr
    scores = FusedExperts.load(run / "experts").scores([np.array([0, 1])])[0]
    scores[[0, 1]] = -np.inf
    found = json.loads(done.stdout)["items"]
    assert [item["item_id"] for item in found] == [ids[row] for row in np.argsort(-scores, kind="stable")[:5]]
    assert [item["score"] for item in found] == pytest.approx(np.sort(scores)[::-1][:5].tolist())
    limited = llmrec("recommend", "--run", early, *words, "--max-per", "brand=1")
    brands = [item["fields"]["brand"] for item in json.loads(limited.stdout)["items"]]
    assert len(set(brands)) == len(brands) == 5
    kept = llmrec("recommend", "--run", early, *words, "--allow", ids[7], ids[8])
    assert {item["item_id"] for item in json.loads(kept.stdout)["items"]} == {ids[7], ids[8]}
    for flag in (["--prompt", "a soap"], ["--exact"], ["--phrasings", "2"], ["--max-per-code", "1"]):
        done = llmrec("recommend", "--run", early, *words, *flag)
        assert done.returncode == 2
        assert f"{flag[0]}: needs the language model" in done.stderr
    done = llmrec("recommend", "--run", early, *words, "--ranking", "beam")
    assert (done.returncode, "--ranking beam" in done.stderr) == (2, True)


def test_after_the_training_the_run_s_model_answers(run: Path, llmrec: Callable) -> None:
    words = ["--prompt", "a soap", "--json"]
    by_run, by_model = (llmrec("recommend", *flag, *words) for flag in (["--run", run], ["--model", run / "model"]))
    assert by_run.returncode == 0, by_run.stderr
    assert json.loads(by_run.stdout)["items"] == json.loads(by_model.stdout)["items"]
    for flags, message in (
        ([], "--model, --run: give one of them"),
        (["--run", run, "--model", run / "model"], "--model, --run: give one of them"),
        (["--run", run / "data"], "has no model yet, and no experts"),
    ):
        done = llmrec("recommend", *flags, *words)
        assert done.returncode == 2
        assert message in done.stderr


def test_experts_teach_the_language_model(run: Path, tiny_flags: list[str], llmrec: Callable, tmp_path: Path) -> None:
    """The stage teacher is made before the training, and again only if what it depends on has changed."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    flags = [*tiny_flags, *EXPERTS, "--train.epochs", "1", "--train.distill.experts", "[smoothed-markov, text]"]
    first = llmrec("train", "--run", folder, *flags, "--train.distill.weight", "0.5")
    assert first.returncode == 0, first.stderr
    assert first.stderr.index("teacher: done in") < first.stderr.index("train: started")
    assert {path.name for path in (folder / "teacher").iterdir()} == {"teacher.npy", "teacher.json", "manifest.json"}
    trained = (folder / "train" / "bundle" / "model.safetensors").read_bytes()
    flags += ["--train.distill.weight", "0.9", "--train.dense.weight", "1", "--train.distill.dense_weight", "0.5"]
    second = llmrec("train", "--run", folder, *flags)
    assert second.returncode == 0, second.stderr
    assert "teacher: unchanged" in second.stderr
    assert (folder / "train" / "bundle" / "model.safetensors").read_bytes() != trained
    fewer = ["--experts.models", "[decayed-markov, smoothed-markov, text, item-knn]"]
    third = llmrec("train", "--run", folder, *flags, *fewer)
    assert third.returncode == 0, third.stderr
    assert "experts: done in" in third.stderr
    assert "teacher: unchanged" in third.stderr, "the experts that teach are the same"
    assert "train: unchanged" in third.stderr
