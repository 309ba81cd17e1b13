"""What a push takes, and what it refuses before it asks a Hub."""

from pathlib import Path

import pytest

from llmrec.errors import UserError
from llmrec.recommender import hub

TAKEN = [
    "README.md",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "item_index.parquet",
    "llmrec.json",
    "merges.txt",
    "prompts/search.yaml",
    "quantizer/item_codes.parquet",
]
LEFT = [
    ".cache/huggingface/x.json",
    ".llmrec.json.tmp",
    ".secrets.json",
    "checkpoint-30/model.safetensors",
    "manifest.json",
    "notes.md",
    "optimizer.pt",
    "prompts/.draft.yaml",
    "prompts/README.md",
    "pytorch_model.bin",
    "quantizer/old/quantizer.json",
    "quantizer/token.json",
    "token.txt",
    "train.py",
]


def test_a_push_takes_the_files_of_a_bundle_and_no_others(tmp_path: Path) -> None:
    for name in TAKEN + LEFT:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert hub.published_files(tmp_path) == TAKEN


@pytest.mark.parametrize("name", ["shop", "a/b/c", "org/", "/shop", "org/a b", "org/..", "org/x.git", "../shop"])
def test_names_that_no_repository_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected org/name"):
        hub.upload(tmp_path, name, False, None, "message")


def test_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(
        UserError, match="needs a Hugging Face token with write access: `hf auth login`, or set HF_TOKEN"
    ):
        hub.upload(tmp_path, "org/shop", False, None, "message")
