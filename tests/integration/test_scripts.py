"""The benchmark scripts run and print the document that they promise; what they measure is not tested."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import polars as pl
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def document(environment: dict[str, str], name: str, *words: str) -> dict[str, dict[str, Any]]:
    """What `python scripts/NAME WORDS --json` prints."""
    command = [sys.executable, str(SCRIPTS / name), *words, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.mark.slow
def test_bench_quantize(environment: dict[str, str]) -> None:
    found = document(
        environment, "bench_quantize.py", "--items", "3000", "--codes", "16", "--rounds", "1", "--memory-items", "2000"
    )
    libraries = {"llmrec", "faiss", "vector_quantize_pytorch"}
    for figure in ("fit_seconds", "encode_items_per_second", "distortion"):
        assert set(found[figure]) == libraries
        assert min(found[figure].values()) > 0
    assert found["settings"]["items"] == 3000
    assert found["memory"]["items"] == 2000


@pytest.mark.slow
def test_bench_decode(environment: dict[str, str]) -> None:
    words = ("--users", "2", "--beams", "4", "--prompt-tokens", "8", "--items", "200", "--rounds", "1")
    found = document(environment, "bench_decode.py", *words)
    assert set(found["users_per_second"]) == {"generate", "logits_processor", "llmrec", "prefill"}
    assert found["same_top_k"] is True


@pytest.mark.slow
def test_bench_train(environment: dict[str, str]) -> None:
    """Beauty's lengths, made up: the tokens are the same on every machine."""
    words = ("--data", "nowhere", "--users", "32", "--rounds", "1")
    found = document(environment, "bench_train.py", *words)
    assert set(found) == {"settings", "seconds", "tokens"}
    assert set(found["seconds"]) == set(found["tokens"]) == {"expanded", "llmrec"}
    assert found["tokens"]["expanded"] > 4 * found["tokens"]["llmrec"]


@pytest.mark.slow
def test_bench_lookup(environment: dict[str, str]) -> None:
    words = ("--items", "3000", "--dims", "16", "--levels", "4", "--cells", "8", "--train", "2000", "--queries", "3")
    found = document(environment, "bench_lookup.py", *words)
    assert found["items"] == 3000
    names = ["flat", "ours, pq", "ours, rq-kmeans", "faiss PQ", *(f"faiss IVF-PQ, {n} of 8 cells" for n in (1, 8, 64))]
    assert list(found["results"]) == names
    assert found["results"]["ours, pq"]["bytes_per_item"] < found["results"]["flat"]["bytes_per_item"]


@pytest.mark.slow
def test_bench_history(environment: dict[str, str]) -> None:
    found = document(environment, "bench_history.py", "--lengths", "8", "16", "--items", "30", "--rounds", "1")
    assert {model: list(costs) for model, costs in found.items()} == {"sasrec": ["8", "16"], "lisa": ["8", "16"]}
    assert set(found["lisa"]["16"]) == {"step", "answer", "memory"}


def test_the_tables_of_the_results_are_those_of_the_benchmarks() -> None:
    """`python scripts/results.py` would change nothing; each result has its table."""
    spec = spec_from_file_location("results", SCRIPTS / "results.py")
    assert spec is not None
    assert spec.loader is not None
    results = module_from_spec(spec)
    spec.loader.exec_module(results)
    page = (results.DOCS / "results.md").read_text(encoding="utf-8")
    assert results.written(page) == page
    assert {found[1] for found in results.BLOCK.finditer(page)} == {
        path.stem for path in (results.DOCS / "results").glob("*.json")
    }


def evaluated(run: Path, ranks: list[int | None], items: list[str], k: list[int]) -> Path:
    """A run directory with the evaluation of one system, users in reverse order."""
    folder = run / "evaluate"
    folder.mkdir(parents=True)
    users = [f"u{number}" for number in range(len(ranks))]
    table = pl.DataFrame({"user_id": users, "system": "llmrec", "item_id": items, "rank": ranks})
    table.reverse().write_parquet(folder / "per_user.parquet")
    content = {"systems": {"llmrec": {"all": {f"recall@{cut}": 0.0 for cut in k}}}}
    (folder / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
    return run


def aligned_run(run: Path, step: int) -> Path:
    """A run with an alignment that found the targets of two users at ranks 2 and 30, and at 1 and none in the end."""
    (run / "preference").mkdir(parents=True)
    tables = [
        pl.DataFrame({"user_id": ["u0", "u1"], "system": f"step {at}", "item_id": ["i", "j"], "rank": ranks})
        for at, ranks in ((0, [2, 30]), (step, [1, None]))
    ]
    pl.concat(tables).write_parquet(run / "preference" / "per_user.parquet")
    return run


def test_compare_evaluations_of_an_alignment(environment: dict[str, str], tmp_path: Path) -> None:
    runs = f"{aligned_run(tmp_path / 'a', 4)},{aligned_run(tmp_path / 'b', 4)}"
    command = [sys.executable, str(SCRIPTS / "compare_runs.py"), "--preference", runs, "--k", "1", "50"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    _, _, *rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in found.stdout.splitlines()]
    assert [row[:3] for row in rows[:2]] == [["step 0", "0.0000", "1.0000"], ["step 4", "0.5000", "0.5000"]]
    assert rows[2][:2] == ["step 4 - step 0", "+0.5000 [+0.0000, +1.0000]"]
    assert rows[2][2] == "-0.5000 [-1.0000, +0.0000]"


def test_compare_runs(environment: dict[str, str], tmp_path: Path) -> None:
    """Recall@1 of the two seeds of b is 1/4 and 3/4, that of a 1/4; by user b - a is 0, .5, 0, .5."""
    items = ["i1", "i2", "i3", "i4"]
    a = evaluated(tmp_path / "a", [1, 2, None, 9], items, [1, 10])
    first = evaluated(tmp_path / "b0", [1, 3, 40, 2], items, [1, 10])
    second = evaluated(tmp_path / "b1", [1, 1, None, 1], items, [1, 10])
    other = evaluated(tmp_path / "c", [1, 1, 1, 1], ["i1", "i2", "i3", "i5"], [1, 10])

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPTS / "compare_runs.py"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    found = run(f"a={a}", f"b={first},{second}", "--k", "1", "10")
    assert found.returncode == 0, found.stderr
    head, _, *rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in found.stdout.splitlines()]
    assert head == ["recall@1", "recall@10", "ndcg@10"]
    assert [row[:3] for row in rows[:2]] == [["a", "0.2500", "0.7500"], ["b", "0.5000", "0.7500"]]
    assert rows[2][0] == "b - a"
    assert rows[2][1].startswith("+0.2500 [+0.0000, +0.5000]")
    for words, said in (
        ((f"a={a}", f"c={other}", "--k", "10"), "other cases than the first run"),
        ((f"a={a}", "--k", "50"), "--k 50: "),
        ((f"a={a}", "--system", "sasrec"), "expected one of llmrec"),
        ((f"a={tmp_path / 'nothing'}",), "no evaluation there"),
        (("a",), "expected NAME=RUN"),
        ((), "Give NAME=RUN[,RUN...] or --preference"),
        (("--preference", str(a), "--k", "10", "100"), "--k 100: an alignment's lists have 50 items"),
        (("--preference", str(a)), "no preference alignment with validation cases there"),
        (("--preference", f"{aligned_run(tmp_path / 'p', 4)},{aligned_run(tmp_path / 'q', 5)}"), "no step 4"),
    ):
        failed = run(*words)
        assert failed.returncode == 2
        assert said in failed.stderr
        assert failed.stderr.count("\n") == 1
