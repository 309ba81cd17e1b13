"""The benchmark scripts run and print the document that they promise; what they measure is not tested."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def document(environment: dict[str, str], name: str, *words: str) -> dict[str, dict[str, float]]:
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
