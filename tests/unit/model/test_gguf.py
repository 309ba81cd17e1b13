"""GGUF files as base models: the weights and the tokenizer that were written, or one line that says what is wrong."""

import hashlib
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import TEMPLATE, TEXTS, write_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec.errors import UserError
from llmrec.model.base import convert_gguf, load_base, load_tokenizer, skeleton
from llmrec.train.finetune import context_length

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A GGUF file, the model in it and its tokenizer."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf"
    return path, *write_llama(path)


def test_a_file_is_the_model_that_was_written(written: tuple[Path, Any, Any], tmp_path: Path) -> None:
    path, model, tokenizer = written
    again, tokens = load_base(path)
    found = again.state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    ids = torch.arange(24).reshape(2, 12)
    with torch.inference_mode():
        assert torch.equal(again.eval()(ids).logits, model(ids).logits)
    assert tokens(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert (tokens.eos_token, tokens.pad_token) == ("<|end|>", "<|pad|>")
    assert tokens.chat_template == TEMPLATE
    assert context_length(again) == tokens.model_max_length == 160
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert again.name_or_path == str(path)
    again.save_pretrained(tmp_path)  # as any model: transformers refuses to save one that it calls quantized


def test_each_digit_is_a_token_and_the_spaces_before_it_are_one(written: tuple[Path, Any, Any]) -> None:
    """As in the tokenizer.json of SmolLM2, whose name the file gives to its pre-tokenizer."""
    pieces = load_tokenizer(written[0]).backend_tokenizer.pre_tokenizer.pre_tokenize_str("dry  2024")
    assert [piece for piece, _ in pieces] == ["dry", "ĠĠ", "2", "0", "2", "4"]


def test_a_converted_file_is_an_ordinary_checkpoint(written: tuple[Path, Any, Any], tmp_path: Path) -> None:
    path, model, tokenizer = written
    digits, folder = hashlib.sha256(path.read_bytes()).hexdigest(), tmp_path / "new" / "checkpoint"
    convert_gguf(path, folder, digits)
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    tokens = AutoTokenizer.from_pretrained(folder)
    assert tokens(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert (tokens.chat_template, tokens.model_max_length) == (TEMPLATE, 160)
    assert (folder / "gguf.sha256").read_text() == f"{digits}  {path.name}\n"
    assert sorted(each.name for each in folder.parent.iterdir()) == ["checkpoint"]
    with pytest.raises(UserError, match="a folder that llmrec did not make is in the way"):
        convert_gguf(path, folder)


def test_another_file_than_expected_is_not_converted(written: tuple[Path, Any, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tiny\.Q4_1\.gguf: SHA-256 is [0-9a-f]{64}, expected 12;"):
        convert_gguf(written[0], tmp_path / "checkpoint", "12")
    assert not list(tmp_path.iterdir())


def test_a_skeleton_has_the_shapes_of_the_file(written: tuple[Path, Any, Any]) -> None:
    bare = skeleton(str(written[0]))
    assert {name: p.shape for name, p in bare.named_parameters()} == {
        name: p.shape for name, p in written[1].named_parameters()
    }


@pytest.mark.parametrize("length", [0, 3, 10, 300, 5000, -100])
def test_a_file_that_ends_too_early_is_named(written: tuple[Path, Any, Any], tmp_path: Path, length: int) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(written[0].read_bytes()[:length])
    with pytest.raises(UserError, match=r"^base\.model .*cut\.gguf: (its tokenizer )?can't be loaded"):
        load_base(cut)


def test_any_other_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("no model\n" * 100)
    with pytest.raises(UserError, match=r"notes\.gguf: .*not a GGUF file"):
        load_base(tmp_path / "notes.gguf")


def test_the_extra_is_named_where_it_lacks(written: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = util.find_spec
    monkeypatch.setattr("llmrec.model.gguf.find_spec", lambda name: None if name == "gguf" else real(name))
    for load in (load_base, load_tokenizer, skeleton):
        with pytest.raises(UserError, match=r"base\.model .*: a GGUF file needs the package gguf.*llmrec\[gguf\]"):
            load(str(written[0]))


def test_fewer_bits_are_refused(written: tuple[Path, Any, Any]) -> None:
    with pytest.raises(UserError, match=r"base\.bits 4: .*is a GGUF file, whose weights llmrec unpacks; set it to 32"):
        load_base(written[0], bits=4)
