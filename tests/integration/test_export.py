"""`llmrec export` on a trained bundle with an added item: what a server of language models gets."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec.cli.main import main


@pytest.fixture
def model(run_copy: Path) -> Path:
    """A trained bundle to which one item was added."""
    new = run_copy / "new.csv"
    new.write_text("item_id,title\nnew-1,A burr mill for coffee\n")
    assert main(["add-items", "--model", str(run_copy / "model"), "--items", str(new)]) == 0
    return run_copy / "model"


def test_a_bundle_for_vllm(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    out = tmp_path / "out"
    assert main(["export", "--model", str(model), "--target", "vllm", "--out", str(out), "--dtype", "bfloat16"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    header = json.loads((out / "export.json").read_text())
    assert first == f"{header['items']} items and a bfloat16 model for vllm in {out}"
    assert second.startswith(f"vllm serve {out} --logprobs-mode processed_logprobs --max-logprobs ")
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert (len(items), items[-1]["item_id"]) == (header["items"], "new-1")
    names = {"config.json", "export.json", "generation_config.json", "items.jsonl", "model.safetensors"}
    names |= {"prompts.json", "tokenizer.json", "tokenizer_config.json", "trie.safetensors"}
    assert {path.name for path in out.iterdir()} == names
    assert not [path for path in tmp_path.iterdir() if path != out and "copy" not in path.name]


def test_a_bundle_for_flashrec(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    out = tmp_path / "out"
    assert main(["export", "--model", str(model), "--target", "flashrec", "--out", str(out), "--json"]) == 0
    header = json.loads(capsys.readouterr().out)
    sids = json.loads((out / "sid.json").read_text())
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert sids == dict.fromkeys((",".join(map(str, item["codes"])) for item in items), 1)
    assert (header["items"], header["semantic_ids"]) == (len(items), len(sids))


def test_a_mistake_is_one_line(tmp_path: Path, fails: Callable[..., str]) -> None:
    assert "--target" in fails("export", "--model", tmp_path, "--target", "ollama", "--out", tmp_path / "out")
