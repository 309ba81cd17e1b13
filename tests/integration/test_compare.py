"""`llmrec compare-tokenizers` as a user runs it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec.cli.main import main

Program = Callable[..., subprocess.CompletedProcess[str]]
Fails = Callable[..., str]
SMALL_RQ_VAE = ["--tokenize.rq_vae.epochs", "3", "--tokenize.rq_vae.hidden", "[16]", "--tokenize.rq_vae.latent", "8"]


@pytest.fixture(scope="module")
def compared(llmrec: Program, tiny_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with three tokenizers of two seeds compared, and the JSON of stdout beside it."""
    folder = tmp_path_factory.mktemp("compare") / "run"
    words = ["--run", str(folder), *tiny_flags, "--methods", "random,rq-kmeans,simvq", "--seeds", "2", "--json"]
    result = llmrec("compare-tokenizers", *words, *SMALL_RQ_VAE)
    assert result.returncode == 0, result.stderr
    (folder / "stdout.json").write_text(result.stdout)
    return folder


def test_the_document(compared: Path) -> None:
    document = json.loads((compared / "stdout.json").read_text())
    assert document == json.loads((compared / "compare" / "comparison.json").read_text())
    assert (document["seeds"], document["protocol"], document["baselines"]) == (2, None, None)
    methods = document["methods"]
    assert list(methods) == ["random", "rq-kmeans", "simvq"]
    assert methods["simvq"]["tokenize"]["rq_vae"]["codebook"] == "simvq"
    for entry in methods.values():
        assert [run["seed"] for run in entry["runs"]] == [0, 1]
        first, second = (run["report"]["distortion"] for run in entry["runs"])
        assert entry["mean"]["distortion"] == pytest.approx((first + second) / 2)
        assert entry["std"]["distortion"] == pytest.approx(abs(first - second) / 2**0.5)
    assert methods["random"]["mean"]["distortion"] == pytest.approx(1, abs=1e-3)
    assert methods["rq-kmeans"]["mean"]["distortion"] < 0.5


def test_table_and_picture(compared: Path) -> None:
    table = (compared / "compare" / "comparison.md").read_text().splitlines()
    assert table[0].startswith("| method | codes | usage |")
    assert [line.split("|")[1].strip() for line in table[2:]] == ["random", "rq-kmeans", "simvq"]
    assert (compared / "compare" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_all_are_fitted_on_the_same_embeddings(compared: Path) -> None:
    folders = sorted((compared / "compare").glob("*/seed-*"))
    assert len(folders) == 6
    assert {(folder / "embed").resolve() for folder in folders} == {(compared / "embed").resolve()}


def test_a_second_time_nothing_is_fitted_again(compared: Path, llmrec: Program, tiny_flags: list[str]) -> None:
    manifest = compared / "compare" / "simvq" / "seed-1" / "tokenize" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    words = ["--run", str(compared), *tiny_flags, "--methods", "simvq,rq-kmeans", "--seeds", "2", *SMALL_RQ_VAE]
    result = llmrec("compare-tokenizers", *words)
    assert result.returncode == 0, result.stderr
    assert "tokenize: started" not in result.stderr
    assert manifest.stat().st_mtime_ns == before
    assert [line.split()[0] for line in result.stdout.splitlines()[:3]] == ["method", "simvq", "rq-kmeans"]


@pytest.mark.slow
def test_downstream(compared: Path, llmrec: Program, tiny_flags: list[str]) -> None:
    words = ["--run", str(compared), *tiny_flags, "--methods", "random,rq-kmeans", "--downstream"]
    result = llmrec("compare-tokenizers", *words, "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["protocol"]["ranking"] == "full"
    assert set(document["baselines"]) == {"popularity", "markov", "item-knn"}
    for name, entry in document["methods"].items():
        metrics = json.loads((compared / "compare" / name / "seed-0" / "evaluate" / "metrics.json").read_text())
        assert entry["mean"]["ndcg@10"] == metrics["systems"]["llmrec"]["all"]["ndcg@10"]
    assert "(markov)" in (compared / "compare" / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--methods A,B,C is missing"),
        (["--methods", "rq-kmean"], "no tokenizer 'rq-kmean'; did you mean 'rq-kmeans'"),
        (["--methods", "pq,pq"], "--methods names 'pq' twice"),
        (["--methods", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--methods", "pq", "--seeds", "0"], "--seeds 0: expected at least 1"),
        (["--methods", "pq", "--tokenize.beams", "3"], "--tokenize.beams does nothing for method pq"),
    ],
)
def test_mistakes(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare-tokenizers", "--run", str(tmp_path / "run"), *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("theirs", ["compare/notes", "compare/pq/seed-0/tokenize/notes", "compare/pq/seed-1"])
def test_what_is_the_users_stays(
    theirs: str, tiny_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Looked at before anything is computed, for the last tokenizer and seed too."""
    run = tmp_path / "run"
    run.mkdir()
    assert main(["prepare", "--run", str(run), *tiny_flags]) == 0
    (run / theirs).parent.mkdir(parents=True)
    (run / theirs).write_text("mine")
    if "/pq/" in theirs:  # in a comparison of ours
        (run / "compare" / ".llmrec").touch()
    capsys.readouterr()
    words = ["compare-tokenizers", "--run", str(run), *tiny_flags, "--methods", "random,pq", "--seeds", "2"]
    assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("llmrec: ")
    assert f"{run}/compare" in line
    assert (run / theirs).read_text() == "mine"
    assert not (run / "embed").exists()


def test_a_tokenizer_of_your_own(llmrec: Program, tiny_flags: list[str], compared: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("tokenize:\n  method: opq\n  levels: 2\n")
    words = ["--run", compared, *tiny_flags, "--methods", f"{tmp_path / 'mine.yaml'}", "--json"]
    result = llmrec("compare-tokenizers", *words)
    assert result.returncode == 0, result.stderr
    settings = json.loads(result.stdout)["methods"]["mine"]["tokenize"]
    assert (settings["method"], settings["levels"], settings["codes"]) == ("opq", 2, 32)


def test_without_a_configuration_that_of_the_run_counts_for_presets_too(
    llmrec: Program, run_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and it stays as it is: no tokenizer gets the settings of another one."""
    before = (run_copy / "config.yaml").read_text()
    result = llmrec("compare-tokenizers", "--run", run_copy, "--methods", "kmeans,random", "--json")
    assert result.returncode == 0, result.stderr
    assert caplog.text.count("No --config: going on with") == 1
    assert "data: started" not in result.stderr
    assert (run_copy / "config.yaml").read_text() == before
    methods = json.loads(result.stdout)["methods"]
    assert [methods[name]["tokenize"]["method"] for name in methods] == ["kmeans", "random"]
