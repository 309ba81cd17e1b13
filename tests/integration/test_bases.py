"""Bases of other architectures through the program: to the end, or refused in one line before the training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_files import write_llama
from loading import script

from llmrec.data.synthetic import synthetic

FLAGS = {
    "tasks.max_history": 4,
    "tasks.max_text_tokens": 12,
    "tasks.mixture": "{sequential: 1}",
    "train.packing": "false",
}
FLAGS |= {"train.dense.weight": 1, "base.pretrain_epochs": 0, "evaluate.max_users": 20, "evaluate.frontier": "false"}
FLAGS |= {
    "embed.dim": 16,
    "data.synthetic_items": 60,
    "data.synthetic_users": 60,
    "tokenize.codes": 8,
    "train.dropout": 0,
}


@pytest.fixture
def flags(tiny_flags: list[str], tmp_path: Path) -> Callable[[str], list[str]]:
    """`flags(name)`: those of a tiny run whose base is a random model of the architecture."""

    def make(name: str) -> list[str]:
        catalog, _ = synthetic(n_items=60, n_users=60)
        script("architectures").save_base(name, tmp_path / name, catalog.texts("{title}"))
        own = [word for field, value in FLAGS.items() for word in (f"--{field}", str(value))]
        return [*tiny_flags, *own, "--base.model", str(tmp_path / name), "--run", str(tmp_path / "run")]

    return make


def test_a_hybrid_base_runs_to_the_end(llmrec: Callable, flags: Callable[[str], list[str]], tmp_path: Path) -> None:
    result = llmrec("run", *flags("jamba"))
    assert result.returncode == 0, result.stderr
    assert "takes no tree attention mask" in result.stderr
    assert "The fusion is not calibrated" in result.stderr
    metrics = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text())
    assert metrics["decode"]["scoring"] == "vocab"
    assert metrics["decode"]["invalid_rate"] == 0
    assert metrics["systems"]["llmrec"]["all"]["users"] == 20


def test_a_gguf_file_runs_to_the_end_and_draws_no_bar(
    llmrec_process: Callable, tiny_flags: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    write_llama(tmp_path / "tiny.gguf")
    own = [word for field, value in FLAGS.items() for word in (f"--{field}", str(value))]
    model = ["--base.model", tmp_path / "tiny.gguf", "--run", tmp_path / "run"]
    result = llmrec_process("run", *tiny_flags, *own, *model)
    assert result.returncode == 0, result.stderr
    assert "\r" not in result.stderr, "a progress bar, though stderr is no terminal"
    header = json.loads((tmp_path / "run" / "model" / "llmrec.json").read_text())
    assert header["base_model"].endswith("tiny.gguf")


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("rwkv", (), "--base.model: RwkvForCausalLM can't be decoded: "),
        ("jamba", ("--decode.scoring", "catalogue"), "--decode.scoring catalogue with --decode.constraint trie: "),
        ("jamba", ("--decode.ranking", "specgr"), "--decode.ranking specgr: "),
    ],
)
def test_what_cannot_be_decoded_is_refused_before_the_training(
    fails: Callable[..., str], flags: Callable[[str], list[str]], tmp_path: Path, name: str, more: tuple, said: str
) -> None:
    assert fails("run", *flags(name), *more).startswith(f"llmrec: {said}")
    assert not list((tmp_path / "run").rglob("checkpoint-*"))
    assert not list((tmp_path / "run").rglob("log.jsonl"))


REMOTE = """
from transformers import Qwen3Config, Qwen3ForCausalLM


class RemoteConfig(Qwen3Config):
    model_type = "remote_of_a_test"


class RemoteForCausalLM(Qwen3ForCausalLM):
    config_class = RemoteConfig
"""


@pytest.fixture
def remote(flags: Callable[[str], list[str]], tmp_path: Path) -> list[str]:
    """Flags of a tiny run whose base brings its own code."""
    words, base = flags("qwen3"), tmp_path / "qwen3"
    (base / "modeling_remote.py").write_text(REMOTE)
    config = json.loads((base / "config.json").read_text())
    classes = {
        "AutoConfig": "modeling_remote.RemoteConfig",
        "AutoModelForCausalLM": "modeling_remote.RemoteForCausalLM",
    }
    own = {"model_type": "remote_of_a_test", "architectures": ["RemoteForCausalLM"], "auto_map": classes}
    (base / "config.json").write_text(json.dumps(config | own))
    return [*words, "--base.trust_remote_code", "true"]


@pytest.mark.parametrize(
    "method",
    [[], ["--train.method", "lora", "--train.lora.merge", "false"]],
    ids=["full", "adapter"],
)
def test_code_of_the_base_runs_after_the_training_too(
    llmrec: Callable, fails: Callable, remote: list[str], method: list[str], tmp_path: Path
) -> None:
    result = llmrec("run", *remote, *method)
    assert result.returncode == 0, result.stderr
    asked = ("recommend", "--model", str(tmp_path / "run" / "model"), "--history", "P00000", "--json")
    assert "give --trust-remote-code if you trust its author" in fails(*asked)
    result = llmrec(*asked, "--trust-remote-code")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["items"]
