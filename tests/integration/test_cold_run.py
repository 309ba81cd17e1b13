"""A strict run with a dense head, all rankings and the diagnosis, as a user starts it; then new items in its bundle."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from tolerances import assert_same_ranking

from llmrec.decode.ranker import METHODS

COLD = {
    "data.cold.items": "held-out",
    "data.cold.share": "0.1",
    "data.cold.simulated_share": "0.1",
    "data.regime": "strict",
    "base.init_rows": "codebook",
    "train.dense.weight": "1",
    "train.distill.weight": "0.5",
    "experts.models": "[decayed-markov, smoothed-markov, text]",
    "tokenize.behaviour": "12",
    "decode.ranking": "fusion",
    "evaluate.rankings": "[beam, quota, dense, liger, cascade, specgr, session, streams, behaviour]",
    "evaluate.baselines": "[popularity, text-knn, sasrec, sasrec-knn]",
    "evaluate.sasrec.epochs": "2",
    "evaluate.frontier": "true",
    "evaluate.diagnose": "20",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cold_run(llmrec, tiny_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cold") / "run"
    flags = [word for name, value in COLD.items() for word in (f"--{name}", value)]
    result = llmrec("run", "--run", folder, *tiny_flags, *flags)
    assert result.returncode == 0, result.stderr
    (folder.parent / "stdout.txt").write_text(result.stdout)
    return folder


def metrics(run: Path) -> dict:
    return json.loads((run / "evaluate" / "metrics.json").read_text())


def test_every_ranking_stands_in_one_table(cold_run: Path) -> None:
    found = metrics(cold_run)
    others = {"popularity", "text-knn", "sasrec", "sasrec-knn@10%", "sasrec-knn@30%"}
    assert found["systems"].keys() == {"llmrec", *METHODS.keys() - {"fusion"}, *others}
    assert found["milliseconds_per_user"].keys() == found["systems"].keys()
    assert found["protocol"]["regime"] == "strict"
    assert found["protocol"]["cold"]["kind"] == "held-out"
    assert found["decode"]["ranking"] == "fusion"
    for system in found["systems"].values():
        assert {"all", "warm", "cold", "count 0"} <= system.keys()
        assert system["all"]["users"] == system["warm"]["users"] + system["cold"]["users"]
    assert found["systems"]["sasrec"]["cold"]["recall@20"] == 0, "it knows no cold item"
    assert found["systems"]["llmrec"]["cold"]["recall@20"] > found["systems"]["beam"]["cold"]["recall@20"]
    assert "random" in found["cold_candidates"]["systems"]
    printed = (cold_run.parent / "stdout.txt").read_text()
    assert "not the full ranking" in printed
    assert "cold targets" in printed


def test_frontier_and_diagnosis_are_written(cold_run: Path) -> None:
    folder = cold_run / "evaluate"
    curve = json.loads((folder / "frontier.json").read_text())
    for name, own in {"llmrec": curve, "experts": curve["experts"]}.items():
        system = metrics(cold_run)["systems"][name]
        assert own["calibrated"]["warm"] == pytest.approx(system["warm"]["recall@10"], abs=0.03)
        assert own["calibrated"]["cold"] == pytest.approx(system["cold"]["recall@10"], abs=0.03)
    for name in ("frontier.png", "diagnosis.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    told = json.loads((folder / "diagnosis.json").read_text())["targets"]
    assert told["cold"]["prefix_seen"][0] > told["cold"]["prefix_seen"][-1]


def test_runs_as_one_table(cold_run: Path) -> None:
    """`scripts/cold_table.py` of the same run twice: the figures are those of the run."""
    command = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "cold_table.py"), cold_run, cold_run]
    told = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    found = metrics(cold_run)["systems"]
    for name, system in found.items():
        [row] = [line for line in told.splitlines() if line.startswith(f"| {name} |")]
        figures = [cell.split()[0] for cell in row.split("|")[2:8]]
        assert figures == [
            f"{system[part][m]:.4f}" for part in ("all", "warm", "cold") for m in ("recall@10", "ndcg@10")
        ]
    assert f"cold {2 * found['llmrec']['cold']['users']:,} users" in told
    assert told.startswith("leave-one-out, strict, full ranking over ")
    curve = json.loads((cold_run / "evaluate" / "frontier.json").read_text())
    warm, *cold = [line.strip("| ").split(" | ") for line in told.splitlines()[-4:] if not line.startswith("| :")]
    assert [row[0] for row in cold] == ["fusion, cold", "experts, cold"]
    for row, own in zip(cold, (curve, curve["experts"]), strict=True):
        for level, found in list(zip(warm, row, strict=True))[1:]:
            if found.strip():
                below = [point["cold"] for point in own["points"] if point["warm"] < float(level) - 1e-4]
                above = [point["cold"] for point in own["points"] if point["warm"] > float(level) + 1e-4]
                assert min(below, default=1) + 1e-4 >= float(found) >= max(above, default=0) - 1e-4


def test_held_out_items_are_new_in_the_bundle(cold_run: Path) -> None:
    log = pl.read_parquet(cold_run / "data" / "interactions.parquet")
    trained = set(log.filter(pl.col("part") == 0)["item_id"])
    index = pl.read_parquet(cold_run / "model" / "item_index.parquet")
    assert set(index.filter(pl.col("training_events") > 0)["item_id"]) == trained
    assert set(pl.read_parquet(cold_run / "data" / "items.parquet")["item_id"]) == set(index["item_id"])
    assert (cold_run / "model" / "fusion.json").exists()


def answers(llmrec, model: Path, history: list[str], *words: str) -> list[tuple[str, float]]:
    result = llmrec("recommend", "--model", model, "--history", *history, "--json", *words)
    assert result.returncode == 0, result.stderr
    return [(item["item_id"], item["score"]) for item in json.loads(result.stdout)["items"]]


def test_new_items_change_no_answer_among_the_old(llmrec, cold_run: Path, tmp_path: Path) -> None:
    """By every ranking, to the last digits; and some of the new ones are recommended."""
    model = Path(shutil.copytree(cold_run / "model", tmp_path / "model"))
    items = pl.read_parquet(model / "item_index.parquet")
    old = items["item_id"].to_list()
    like = items.filter(pl.col("training_events") > 0).head(40)
    fields = like.drop("item_id", "codes", "training_events")
    new = fields.with_columns(item_id=pl.Series([f"new{row}" for row in range(len(like))]))
    new.write_csv(tmp_path / "new.csv")
    history = like["item_id"].to_list()[:3]
    kept = [name for name in METHODS if name != "liger"]  # whose candidates are all new items: fewer among the old
    before = {name: answers(llmrec, model, history, "--ranking", name, "--allow", *old) for name in kept}
    added = llmrec("add-items", "--model", model, "--items", tmp_path / "new.csv", "--json")
    assert added.returncode == 0, added.stderr
    for name in kept:
        after = answers(llmrec, model, history, "--ranking", name, "--allow", *old)
        assert_same_ranking(*zip(*after, strict=True), *zip(*before[name], strict=True))
    found = [item for item, _ in answers(llmrec, model, history, "--k", "20")]
    assert [item for item in found if item.startswith("new")], "copies of items that customers take"
