"""Estimates against what models of the same shape have, keep and compute."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from llmrec import ItemTokenizer, Recommender
from llmrec.cli.main import main
from llmrec.config import Config
from llmrec.data.config import DataConfig
from llmrec.data.prepare import Prepared, prepare, save
from llmrec.embed import EmbedConfig
from llmrec.errors import UserError
from llmrec.estimate import estimate
from llmrec.model.adapter import with_adapter
from llmrec.model.base import make_base, skeleton
from llmrec.model.config import AdapterConfig, BaseConfig
from llmrec.model.tokens import ItemVocabulary
from llmrec.quantize.collisions import SMALLEST_LEVEL
from llmrec.quantize.config import RefineConfig, TokenizeConfig
from llmrec.resources import resource_folder
from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import IGNORE, Collator, Mixture, build_tasks
from llmrec.train.config import TrainConfig
from llmrec.train.levels import LevelSoftmax
from llmrec.train.memory import Batch, memory, operations

DATA = DataConfig(synthetic_items=120, synthetic_users=150, user_core=1, item_core=1)
BASE = BaseConfig(hidden_size=32, layers=2, heads=4, vocabulary=400, context=256)
TOKENIZE = TokenizeConfig(levels=2, codes=16, collisions="nearest-free")
VOCABULARY = {"vocab_size": 1000, "bos_token_id": None, "eos_token_id": None}
WIDTH = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
SHAPES: dict[str, Any] = {
    "qwen3": Qwen3Config(**VOCABULARY, **WIDTH, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True),
    "llama": LlamaConfig(**VOCABULARY, **WIDTH, tie_word_embeddings=False),
    "gpt2": GPT2Config(**VOCABULARY, n_embd=128, n_layer=3, n_head=4),
}
BATCH = Batch(rows=4, tokens=100, learnt=40)
LORA = TrainConfig(method="lora", lora=AdapterConfig(merge=False, rank=4))


def real_and_skeleton(shape: str, train: TrainConfig, folder: Path) -> list[tuple[Any, Any]]:
    """(model, what is trained), with 24 item tokens: one with weights, one of its `config.json` alone."""
    real = AutoModelForCausalLM.from_config(SHAPES[shape])
    real.config.save_pretrained(folder)
    found = []
    for model in (real, skeleton(str(folder))):
        model.resize_token_embeddings(1024, mean_resizing=False)
        full = train.method == "full"
        found.append((model, model if full else with_adapter(model, np.arange(1000, 1024), train.lora)))
    return found


def counts(trained: Any) -> tuple[int, int]:
    parameters = list(trained.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "train", [TrainConfig(), LORA, replace(LORA, lora=replace(LORA.lora, dora=True))], ids=["full", "lora", "dora"]
)
def test_parameters_are_those_of_the_model_itself(shape: str, train: TrainConfig, tmp_path: Path) -> None:
    (_, real), (_, bare) = real_and_skeleton(shape, train, tmp_path)
    assert all(parameter.is_meta for parameter in bare.parameters())
    assert counts(bare) == counts(real)


def kept_by_autograd(model: Any, trained: Any, bfloat16: bool, levels: LevelSoftmax | None = None) -> int:
    """Bytes of activations that a real forward pass of BATCH keeps; half-precision copies of weights aside."""
    shapes = {tuple(p.shape) for p in trained.parameters()} | {tuple(p.shape[::-1]) for p in trained.parameters()}
    storages: dict[Any, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in shapes:
            storages[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.zeros(BATCH.rows, BATCH.tokens, dtype=torch.int64)
    model.set_attn_implementation("sdpa")
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        if levels is None:
            loss = trained.train()(input_ids=ids, logits_to_keep=torch.arange(10)).logits.float().logsumexp(-1).sum()
        else:
            with levels.hidden_states():
                states = trained.train()(input_ids=ids, logits_to_keep=torch.arange(10)).logits.flatten(0, 1)
            loss, _ = levels(states, torch.tensor([*range(LEVELS.words), *LEVEL_TARGETS]))
    assert loss.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", [TrainConfig(dropout=0), LORA], ids=["full", "lora"])
def test_activations_are_estimated_within_a_third(shape: str, dtype: Any, method: TrainConfig, tmp_path: Path) -> None:
    train = replace(method, dtype=dtype)
    (model, trained), bare = real_and_skeleton(shape, train, tmp_path)
    estimated = memory(*bare, train, 32, BATCH)["activations"]
    kept = kept_by_autograd(model, trained, dtype == "bfloat16")
    assert 0.7 < estimated / kept < 1.4


SMALL = ItemVocabulary([], [np.arange(1000, 1012), np.arange(1012, 1024)])
"""The item tokens of `real_and_skeleton`, in two levels."""
LEVELS = replace(BATCH, words=4)
LEVEL_TARGETS = [1000, 1012] * 18


@pytest.mark.parametrize("method", [TrainConfig(dropout=0), LORA], ids=["full", "lora"])
def test_the_softmax_of_a_level_keeps_few_logits(method: TrainConfig, tmp_path: Path) -> None:
    """Its 36 codes are scored among 12 rows each, and only its 4 words among the 1,024 of the vocabulary."""
    train = replace(method, softmax="level")
    (model, trained), (bare, adapted) = real_and_skeleton("llama", train, tmp_path)
    levels = LevelSoftmax(adapted, SMALL)
    usual = memory(bare, adapted, replace(train, dtype="float32"), 32, LEVELS)["activations"]
    found = memory(bare, adapted, replace(train, dtype="float32"), 32, LEVELS, levels=levels)["activations"]
    assert usual - found == pytest.approx(2 * 4 * 36 * (1024 - 12), rel=0.15)  # the logits and their gradients
    assert 0.7 < found / kept_by_autograd(model, trained, False, LevelSoftmax(trained, SMALL)) < 1.4
    saved = operations(bare, adapted, train, LEVELS) - operations(bare, adapted, train, LEVELS, levels)
    passes = 3 if method.method == "full" else 2  # a frozen head needs no gradient of its own
    assert saved == pytest.approx(passes * 2 * 36 * 128 * 1024, rel=0.1)


def test_gradient_checkpointing_is_decided_by_the_memory(
    base: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(data=DATA, base=BaseConfig(model=str(base)), tokenize=TOKENIZE, train=replace(LORA, epochs=1))
    off = estimate(config, run, 10, 10, None, gpu_memory=1.0)
    gib = off["bytes"]["total"] / 2**30
    on = estimate(config, run, 10, 10, None, gpu_memory=gib)
    assert (off["gradient_checkpointing"], on["gradient_checkpointing"]) == (False, True)
    assert on["bytes"]["activations"] < off["bytes"]["activations"]
    assert on["operations"] > off["operations"]
    assert "auto turns it on" in on["notes"][-1]
    config.train = replace(config.train, gradient_checkpointing=True)
    assert estimate(config, run, 10, 10, None, gpu_memory=1.0) == {**on, "notes": on["notes"][:-1]}
    assert main(["estimate", "--run", str(run), "--base.model", str(base), "--gpu-memory", f"{gib / 10}"]) == 0
    assert "gradient checkpointing on" in capsys.readouterr().out


def test_a_cut_skeleton_has_the_parameters_of_a_cut_model(tmp_path: Path) -> None:
    whole, shorter = (LlamaConfig(**VOCABULARY, **WIDTH | {"num_hidden_layers": count}) for count in (3, 2))
    whole.save_pretrained(tmp_path)
    assert counts(skeleton(str(tmp_path), keep_layers=2)) == counts(AutoModelForCausalLM.from_config(shorter))
    with pytest.raises(UserError, match=r"base\.keep_layers 4: the base model has 3 layers; choose at most 3"):
        skeleton(str(tmp_path), keep_layers=4)


def test_memory_adds_up(tmp_path: Path) -> None:
    _, (model, trained) = real_and_skeleton("qwen3", LORA, tmp_path)
    total, trainable = counts(trained)
    found = memory(model, trained, replace(LORA, dtype="float32"), 32, BATCH)
    assert found["weights"] == 4 * total
    assert (found["gradients"], found["optimizer"]) == (4 * trainable, 8 * trainable)
    assert found["half_precision_copies"] == 0
    assert found["total"] == sum(size for name, size in found.items() if name != "total")
    linear = 3 * (128 * 128 * 2 + 128 * 64 * 2 + 128 * 384 * 3)
    assert memory(model, trained, LORA, 4, BATCH)["weights"] == 4 * (total - linear) + linear // 2
    again = replace(LORA, dtype="float32", gradient_checkpointing=True)
    assert memory(model, trained, again, 32, BATCH)["activations"] < found["activations"] / 2


def test_frozen_weights_of_two_bytes(tmp_path: Path) -> None:
    _, (model, trained) = real_and_skeleton("qwen3", LORA, tmp_path)
    total, trainable = counts(trained)
    found = memory(model, trained, LORA, 32, BATCH, torch.bfloat16)
    assert found["weights"] == 2 * (total - trainable) + 4 * trainable
    learnt = sum(p.numel() for name, p in trained.named_parameters() if "lora_" in name)
    assert found["half_precision_copies"] <= 2 * (learnt + 24 * 128)
    assert (found["gradients"], found["optimizer"]) == (4 * trainable, 8 * trainable)


def test_lora_of_7_billion_weights_fits_into_24_gib(tmp_path: Path) -> None:
    """configs/lc-rec_llama-7b.yaml with --train.method lora: 4 examples per forward pass, of the longest prompts."""
    LlamaConfig().save_pretrained(tmp_path)  # the defaults are LLaMA-7B's
    read = yaml.safe_load((resource_folder("configs") / "lc-rec_llama-7b.yaml").read_text())["train"]
    train = TrainConfig(**{**read, "method": "lora"})
    assert train.gradient_checkpointing
    model = skeleton(str(tmp_path))
    model.resize_token_embeddings(33_024, mean_resizing=False)
    trained = with_adapter(model, np.arange(32_000, 33_024), train.lora)
    assert 6.7e9 < counts(trained)[0] < 6.9e9
    batch = Batch(rows=train.batch_size // train.accumulation, tokens=1024, learnt=4 * 84)
    needed = memory(model, trained, train, 32, batch, torch.bfloat16)["total"]
    assert 13 * 2**30 < needed < 24 * 2**30
    assert memory(model, trained, train, 32, batch)["total"] > 38 * 2**30  # in float32, with copies under autocast


@pytest.mark.parametrize("method", [TrainConfig(dropout=0), LORA], ids=["full", "lora"])
def test_operations_follow_the_rule_of_thumb(method: TrainConfig, tmp_path: Path) -> None:
    """2 a weight and token forward, 4 backward; 2 where the weight is frozen and only activations get gradients."""
    _, (model, trained) = real_and_skeleton("qwen3", method, tmp_path)
    per_token = 3 * (128 * 128 * 2 + 128 * 64 * 2 + 128 * 384 * 3)
    attention = 3 * 2 * 100 * 128
    rule = BATCH.size * (per_token + attention) + 40 * 128 * 1024
    rule *= 6 if method.method == "full" else 4
    assert rule <= operations(model, trained, method, BATCH) <= 1.2 * rule
    again = replace(method, gradient_checkpointing=True)
    assert operations(model, trained, again, BATCH) > 1.2 * operations(model, trained, method, BATCH)


def test_qwen3_of_its_published_shape_has_its_published_parameters(tmp_path: Path) -> None:
    shape = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    shape.save_pretrained(tmp_path)
    assert counts(skeleton(str(tmp_path)))[0] == 596_049_920


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(DATA)


@pytest.fixture(scope="module")
def base(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model, tokenizer = make_base(BASE, prepared.catalog.texts("{title}"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def items(prepared: Prepared) -> ItemTokenizer:
    embed = EmbedConfig(encoder="tfidf-svd", dim=8)
    return ItemTokenizer.from_config(TOKENIZE, embed).fit(prepared.catalog)


@pytest.fixture
def run(prepared: Prepared, items: ItemTokenizer, tmp_path: Path) -> Path:
    """A run directory with what the estimate reads of it."""
    (tmp_path / "data").mkdir()
    save(prepared, tmp_path / "data")
    items.save(tmp_path / "tokenize")
    return tmp_path


@pytest.mark.parametrize("packing", [False, True])
def test_a_run_is_counted_as_it_will_be_trained(
    packing: bool, run: Path, base: Path, prepared: Prepared, items: ItemTokenizer
) -> None:
    train = replace(LORA, epochs=2, batch_size=16, accumulation=2, packing=packing)
    tasks = TasksConfig(mixture={"sequential": 1, "item-to-codes": 0.5, "codes-to-item": 1})
    config = Config(data=DATA, base=BaseConfig(model=str(base)), tokenize=TOKENIZE, tasks=tasks, train=train)
    found = estimate(config, run, 10, 10, 100.0)

    real = Recommender.from_base(base, items, prepared.catalog)
    sequences = prepared.split.sequences(prepared.catalog).train_sequences()
    built = build_tasks(tasks, prepared.catalog, sequences, real.renderer)
    mixture = Mixture(built, tasks, 2, 16, 0)
    collate = Collator(real.renderer, 256, packing)
    batches = [collate([mixture[i] for i in range(start, start + 8)]) for start in range(0, len(mixture), 8)]
    assert found["steps"] == len(mixture) // 16
    assert found["data"] == {"source": str(run), "items": len(prepared.catalog), "users": len(sequences)}
    for name, exact in {
        "padded_tokens": sum(batch["input_ids"].numel() for batch in batches) / 2,
        "learnt_tokens": sum((batch["labels"] != IGNORE).sum().item() for batch in batches) / 2,
    }.items():
        assert found["per_epoch"][name] == pytest.approx(exact, rel=0.1 if found["per_epoch"]["sampled"] else 1e-3)
    assert 0.5 < found["per_epoch"]["tokens"] / found["per_epoch"]["padded_tokens"] <= 1
    adapted = with_adapter(real.model, real.renderer.vocabulary.all_ids, train.lora)
    assert (found["parameters"]["total"], found["parameters"]["trainable"]) == counts(adapted)
    assert found["parameters"]["item_tokens"] == 32
    assert found["parameters"]["adapter"] + 32 * 32 == found["parameters"]["trainable"]
    assert found["seconds"] == round(found["operations"] / 35e12)


def test_a_base_made_here(run: Path, prepared: Prepared, items: ItemTokenizer) -> None:
    config = Config(data=DATA, base=BASE, tokenize=TOKENIZE, train=TrainConfig(epochs=1))
    real = Recommender.from_base(None, items, prepared.catalog, BASE)
    found = estimate(config, run, 10, 10, None)["parameters"]
    assert (found["total"], found["trainable"]) == counts(real.model)


def test_the_rounds_of_refine_are_counted(run: Path) -> None:
    def found(**refine: int) -> dict[str, Any]:
        refining = RefineConfig(**refine)
        config = Config(data=DATA, base=BASE, tokenize=TOKENIZE, train=TrainConfig(epochs=2), refine=refining)
        return estimate(config, run, 10, 10, 1.0)

    alone, refined = found(), found(rounds=3, epochs=2)
    assert (alone["refine_epochs"], alone["refine_steps"]) == (0, 0)
    assert (refined["refine_epochs"], refined["refine_steps"]) == (6, 3 * alone["steps"])
    assert (refined["epochs"], refined["steps"]) == (2, alone["steps"])
    assert refined["operations"] == pytest.approx(4 * alone["operations"], rel=1e-3)


def test_without_data_there_are_users_made_up(base: Path) -> None:
    config = Config(data=DataConfig(format="lc-rec", path="nowhere"), base=BaseConfig(model=str(base)))
    config.tasks = TasksConfig(mixture={"sequential": 1, "preference": 1}, supervise="target")
    found = estimate(config, None, 50, 6, None)
    assert found["per_epoch"]["examples"] == pytest.approx(50 * 5, abs=32)  # whole steps
    assert found["data"]["source"] == "made up, 6 items per user, as nowhere is not here"
    assert found["seconds"] is None
    assert [note.split()[2] for note in found["notes"]] == ["preference", "level", "without"]


def test_semantic_ids_of_a_file_are_counted_as_they_are(base: Path, prepared: Prepared, tmp_path: Path) -> None:
    """The run has no tokenizer yet. If two items share their codes, there is a dedup level."""
    ids = prepared.catalog.ids
    codes = [(row % 7, row // 7 % 5, row // 35) for row in range(len(ids))]
    assert len(set(codes)) == len(ids)
    file = tmp_path / "index.json"
    names = [[f"<{letter}_{code}>" for letter, code in zip("abc", own, strict=True)] for own in codes]
    index = dict(zip(ids, names, strict=True))
    config = Config(data=DATA, base=BaseConfig(model=str(base)), tokenize=TokenizeConfig(file=str(file)))
    file.write_text(json.dumps(index))
    sizes = np.array(codes).max(axis=0) + 1
    assert estimate(config, None, 50, 6, None)["parameters"]["item_tokens"] == np.maximum(sizes, 2).sum()
    file.write_text(json.dumps({**index, ids[0]: index[ids[1]]}))
    found = estimate(config, None, 50, 6, None)
    assert found["parameters"]["item_tokens"] == np.maximum(sizes, 2).sum() + SMALLEST_LEVEL
    assert len(found["notes"]) == 1  # on gradient checkpointing
    config.data = DataConfig(format="lc-rec", path="nowhere")
    assert estimate(config, None, 50, 6, None)["parameters"]["item_tokens"] == np.maximum(sizes, 2).sum()


def test_what_a_run_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="interactions"):
        estimate(Config(data=DATA), tmp_path, 10, 10, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base.model", "/no/such/model"], "--base.model /no/such/model"),
        (["--tflops", "0"], "--tflops 0.0: expected more than 0"),
        (["--gpu-memory", "-1"], "--gpu-memory -1.0: expected more than 0"),
        (["--users", "1"], "--users 1: expected at least 2"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err.splitlines()[-1]


def test_the_command(run: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", "--run", str(run), "--base.model", str(base), "--train.epochs", "2"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"]["total"] > 0
    assert main([*words, "--tflops", "1"]) == 0
    text = capsys.readouterr().out
    assert f"trainable {found['parameters']['trainable']:,} (100.00%)" in text
    assert "time         about 1 min, if a GPU reaches 35% of 1 TFLOP/s" in text
