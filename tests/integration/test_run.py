"""A whole run through the command line: its files, its contracts, and what a second run does."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from safetensors.numpy import load_file

from llmrec.tasks.config import ASKED

Program = Callable[..., subprocess.CompletedProcess[str]]

STAGES = ["data", "embed", "tokenize", "base", "train", "model", "evaluate"]
SYSTEMS = ["llmrec", "popularity", "markov", "item-knn"]
SLICE_KEYS = {f"{metric}@{k}" for metric in ("recall", "ndcg", "mrr") for k in (1, 5, 10, 20)} | {
    "users",
    "items",
    "recall@10_ci",
    "ndcg@10_ci",
}


@pytest.fixture(scope="module")
def metrics(tiny_run: Path) -> dict[str, Any]:
    return json.loads((tiny_run / "evaluate" / "metrics.json").read_text())


def test_run_directory(tiny_run: Path) -> None:
    files = {
        "data": ["items.parquet", "interactions.parquet", "split.json"],
        "embed": ["embeddings.safetensors"],
        "tokenize": ["quantizer.safetensors", "quantizer.json", "item_codes.parquet", "report.json", "report.png"],
        "base": ["config.json", "model.safetensors", "tokenizer.json"],
        "train": ["log.jsonl"],
        "model": [
            "llmrec.json",
            "item_index.parquet",
            "trie.safetensors",
            "model.safetensors",
            "tokenizer.json",
            "README.md",
        ],
        "evaluate": ["metrics.json", "per_user.parquet", "report.md", "report.html"],
    }
    for stage, expected in files.items():
        present = {path.name for path in (tiny_run / stage).iterdir()}
        assert {*expected, "manifest.json"} <= present, stage
    assert {path.name for path in tiny_run.iterdir()} == {*STAGES, "config.yaml", ".llmrec-run.json"}


def test_stdout_is_the_answer_and_stderr_the_log(tiny_run: Path) -> None:
    answer = (tiny_run.parent / "stdout.txt").read_text()
    assert answer.startswith("leave-one-out split")
    assert [line.split()[0] for line in answer.splitlines()[3:7]] == SYSTEMS
    log = (tiny_run.parent / "stderr.txt").read_bytes().decode()  # read_text would make newlines of carriage returns
    for stage in STAGES:
        assert log.index(f"{stage}: started") < log.index(f"{stage}: done in")
    assert "\r" not in log, "a progress bar, though stderr is no terminal"
    assert "it/s" not in log


@pytest.mark.parametrize("stage", STAGES)
def test_manifest(tiny_run: Path, stage: str) -> None:
    manifest = json.loads((tiny_run / stage / "manifest.json").read_text())
    assert {"schema", "config", "inputs", "packages", "seed", "seconds", "peak_memory_gib"} <= set(manifest)
    assert manifest["stage"] == stage
    assert manifest["packages"]["llmrec"]
    for read in set(manifest["inputs"]) & set(STAGES):
        other = json.loads((tiny_run / read / "manifest.json").read_text())
        assert manifest["inputs"][read] == other["key"]


def test_config_yaml_is_the_resolved_configuration(tiny_run: Path, llmrec: Program, run_copy: Path) -> None:
    config = yaml.safe_load((tiny_run / "config.yaml").read_text())
    sections = [
        "data",
        "embed",
        "tokenize",
        "experts",
        "intentions",
        "base",
        "tasks",
        "train",
        "refine",
        "preference",
        "decode",
        "evaluate",
    ]
    assert list(config) == sections
    assert config["embed"]["encoder"] == "tfidf-svd"  # from the YAML
    assert config["tokenize"]["codes"] == 32  # from the command line
    assert config["tokenize"]["levels"] == 3  # a default
    again = llmrec("run", "--config", tiny_run / "config.yaml", "--run", run_copy, "--json")
    assert again.returncode == 0, again.stderr
    assert [line.split(maxsplit=1)[1] for line in again.stderr.splitlines()] == [f"{s}: unchanged" for s in STAGES]
    assert json.loads(again.stdout) == json.loads((tiny_run / "evaluate" / "metrics.json").read_text())


def test_changed_setting_redoes_what_follows(llmrec: Program, run_copy: Path, tiny_flags: list[str]) -> None:
    result = llmrec("run", "--run", run_copy, *tiny_flags, "--decode.beams", "30", "--decode.ranking", "fusion")
    assert result.returncode == 0, result.stderr
    for stage in STAGES:
        assert (f"{stage}: unchanged" in result.stderr) == (stage != "evaluate")
    assert json.loads((run_copy / "evaluate" / "metrics.json").read_text())["decode"]["beams"] == 30


@pytest.mark.parametrize(
    ("words", "scoring", "constraint", "recorded"),
    [
        (["--decode.constraint", "none"], "vocab", "none", "catalogue"),
        (["--decode.constraint", "level", "--decode.scoring", "level"], "level", "level", "catalogue"),
        (["--decode.scoring", "level"], "level", "trie", "level"),
    ],
)
def test_how_answers_are_decoded_is_evaluated_alone(
    llmrec: Program, run_copy: Path, tiny_flags: list[str],
    words: list[str], scoring: str, constraint: str, recorded: str,
) -> None:  # fmt: skip
    """Nothing is trained again; metrics, report and card say how; the bundle scores as last measured under the trie."""
    result = llmrec("evaluate", "--run", run_copy, *tiny_flags, *words, "--json")
    assert result.returncode == 0, result.stderr
    assert all(f"{stage}: unchanged" in result.stderr for stage in STAGES if stage != "evaluate")
    decode = json.loads(result.stdout)["decode"]
    assert (decode["scoring"], decode["constraint"]) == (scoring, constraint)
    if constraint == "trie":
        assert (decode["invalid_rate"], decode["invalid_first_rate"]) == (0, 0)
    else:
        assert 0 < decode["invalid_rate"] <= 1
        assert 0 <= decode["invalid_first_rate"] <= 1
    report = (run_copy / "evaluate" / "report.md").read_text()
    for name, value in decode.items():
        assert f"- {name}: {value}\n" in report
    assert f"scoring {scoring}, constraint {constraint}" in (run_copy / "model" / "README.md").read_text()
    assert json.loads((run_copy / "model" / "llmrec.json").read_text())["scoring"] == recorded
    before = json.loads((run_copy / "train" / "bundle" / "llmrec.json").read_text())
    assert before["scoring"] == "auto", "the training's files stay as they are"


def test_fewer_beams_than_answers_are_widened_aloud(tiny_run: Path) -> None:
    assert "--decode.beams 10: widened to the 20 answers" in (tiny_run.parent / "stderr.txt").read_text()


def test_stage_command_stops_at_its_stage(llmrec: Program, tmp_path: Path, tiny_flags: list[str]) -> None:
    result = llmrec("prepare", "--run", tmp_path / "run", *tiny_flags, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["stage"] == "data"
    assert not (tmp_path / "run" / "embed").exists()


def test_metrics_protocol(metrics: dict[str, Any], tiny_run: Path) -> None:
    protocol = metrics["protocol"]
    assert {"split", "ranking", "items", "users", "filter_seen", "k"} <= set(protocol)
    assert protocol["ranking"] == "full"
    assert protocol["split"] == "leave-one-out"
    assert protocol["items"] == len(pl.read_parquet(tiny_run / "data" / "items.parquet"))
    log = pl.read_parquet(tiny_run / "data" / "interactions.parquet")
    assert protocol["users"] == log["user_id"].n_unique()
    assert protocol["filter_seen"] is True
    assert protocol["k"] == [1, 5, 10, 20]


def test_metrics_systems(metrics: dict[str, Any]) -> None:
    assert {"protocol", "systems", "decode", "milliseconds_per_user"} <= set(metrics)
    assert sorted(metrics["systems"]) == sorted(SYSTEMS)
    for slices in metrics["systems"].values():
        assert {"all", "warm"} <= set(slices)
        assert slices["all"]["users"] == metrics["protocol"]["users"]
        parts = [slices[name]["users"] for name in ("warm", "cold") if name in slices]
        assert slices["all"]["users"] == sum(parts)
        for values in slices.values():
            assert set(values) == SLICE_KEYS
            recalls = [values[f"recall@{k}"] for k in (1, 5, 10, 20)]
            assert recalls == sorted(recalls)
            for k in (1, 5, 10, 20):
                assert 0 <= values[f"mrr@{k}"] <= values[f"ndcg@{k}"] <= values[f"recall@{k}"] <= 1
            for name in ("recall@10_ci", "ndcg@10_ci"):
                low, high = values[name]
                assert 0 <= low <= high <= 1


def test_metrics_decode(metrics: dict[str, Any], tiny_run: Path) -> None:
    decode = metrics["decode"]
    assert set(decode) == {
        "ranking", "beams", "scoring", "constraint", "invalid_rate", "invalid_first_rate", "users_per_second"
    }  # fmt: skip
    best = json.loads((tiny_run / "model" / "fusion.json").read_text())["best"]
    assert decode["ranking"] == best, "what auto means"
    assert decode["beams"] == (20 if best in ("fusion", "beam") else 0), "10 are widened to the 20 answers of recall@20"
    assert (decode["scoring"], decode["constraint"]) == ("catalogue", "trie")
    assert (decode["invalid_rate"], decode["invalid_first_rate"]) == (0, 0)
    assert decode["users_per_second"] > 0


@pytest.mark.parametrize("system", SYSTEMS)
def test_per_user_ranks_give_the_metrics(metrics: dict[str, Any], tiny_run: Path, system: str) -> None:
    table = pl.read_parquet(tiny_run / "evaluate" / "per_user.parquet").filter(pl.col("system") == system)
    assert table.columns == ["user_id", "system", "item_id", "rank"]
    assert table["user_id"].n_unique() == len(table) == metrics["protocol"]["users"]
    ranks = table["rank"].fill_null(10**9).to_numpy()
    expected = metrics["systems"][system]["all"]
    for k in (1, 5, 10, 20):
        hit = ranks <= k
        assert expected[f"recall@{k}"] == pytest.approx(hit.mean())
        assert expected[f"ndcg@{k}"] == pytest.approx((hit / np.log2(ranks + 1)).mean())
        assert expected[f"mrr@{k}"] == pytest.approx((hit / ranks).mean())


def test_targets_are_the_last_events(tiny_run: Path) -> None:
    log = pl.read_parquet(tiny_run / "data" / "interactions.parquet")
    last = log.group_by("user_id").agg(pl.col("item_id").last())
    table = pl.read_parquet(tiny_run / "evaluate" / "per_user.parquet").filter(pl.col("system") == "llmrec")
    joined = table.join(last, on="user_id", suffix="_last")
    assert len(joined) == len(table)
    assert (joined["item_id"] == joined["item_id_last"]).all()


def test_tokenizer_report(tiny_run: Path) -> None:
    folder = tiny_run / "tokenize"
    report = json.loads((folder / "report.json").read_text())
    assert {
        "method", "levels", "codes", "items", "usage", "perplexity", "collision_rate", "max_collision",
        "unique_after", "distortion", "neighbour_jaccard@20", "fit_seconds", "encode_items_per_second",
    } <= set(report)  # fmt: skip
    assert (report["method"], report["levels"], report["codes"]) == ("rq-kmeans", 3, 32)
    table = pl.read_parquet(folder / "item_codes.parquet")
    codes = np.array(table["codes"].to_list())
    n = len(codes)
    assert report["items"] == n == len(pl.read_parquet(tiny_run / "data" / "items.parquet"))
    assert report["usage"] == pytest.approx([len(set(codes[:, level])) / 32 for level in range(3)])
    assert all(1 <= value <= 32 for value in report["perplexity"])
    tuples, counts = np.unique(codes[:, :3], axis=0, return_counts=True)
    assert report["collision_rate"] == pytest.approx((n - len(tuples)) / n)
    assert report["max_collision"] == counts.max()
    assert report["unique_after"] is True
    assert len(np.unique(codes, axis=0)) == n
    vectors = load_file(tiny_run / "embed" / "embeddings.safetensors")["embeddings"]
    assert len(vectors) == n
    assert 0 < report["distortion"] < 1
    assert 0 < report["neighbour_jaccard@20"] <= 1
    assert report["fit_seconds"] > 0
    assert report["encode_items_per_second"] > 0


def test_training_log(tiny_run: Path) -> None:
    lines = [json.loads(line) for line in (tiny_run / "train" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert sum("eval_loss" in line for line in lines) == 2


def test_the_bundle_has_the_prompts_it_was_trained_on(tiny_run: Path) -> None:
    mixture = yaml.safe_load((tiny_run / "config.yaml").read_text())["tasks"]["mixture"]
    assert {path.stem for path in (tiny_run / "model" / "prompts").iterdir()} == {*mixture, *ASKED}
    assert "codes-to-item" in mixture
