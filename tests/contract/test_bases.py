"""Every kind of base model under LoRA: what trains, what is saved, and that it comes back to the last bit."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from llmrec import Catalog, Interactions, ItemTokenizer, Recommender, TrainConfig
from llmrec.embed.encoder import EmbedConfig
from llmrec.errors import UserError
from llmrec.model.base import make_base
from llmrec.model.config import AdapterConfig, BaseConfig
from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import Mixture
from llmrec.train import trainer
from llmrec.train.finetune import check_method

CHAT = (
    "{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
KINDS = ["qwen3", "llama", "gpt2", "gemma3", "phi"]
PADDED = 7  # token rows beyond the tokenizer's, as many checkpoints have them
TASKS = TasksConfig(mixture={"sequential": 1.0, "item-to-codes": 0.5}, max_text_tokens=12)
LORA = TrainConfig(method="lora", lora=AdapterConfig(rank=8), epochs=3, batch_size=8, evaluations=3, learning_rate=1e-2)


@dataclass
class Trained:
    """A base on the disk, a recommender fitted on it, and the optimizer that did it."""

    base: Path
    tied: bool
    fit: Callable[[Path], Recommender]
    fit_again: Callable[[Recommender], Recommender]
    recommender: Recommender
    optimizer: torch.optim.Optimizer

    @property
    def items(self) -> np.ndarray:
        return self.recommender.renderer.vocabulary.all_ids

    @property
    def learnt(self) -> dict[str, torch.Tensor]:
        return {name: p for name, p in self.recommender.model.named_parameters() if p.requires_grad}


def logits(model: PreTrainedModel, items: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(torch.tensor([[3, 200, 9, *items[:6], 17, *items[-3:]]])).logits


def same_files(one: Path, other: Path) -> bool:
    """Whether two adapters have the same configuration and tensors of the same names and shapes."""
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in (one, other)]
    for config in configs:
        config["target_modules"].sort()  # peft keeps a set
    sizes = [(folder / "adapter_model.safetensors").stat().st_size for folder in (one, other)]
    return configs[0] == configs[1] and sizes[0] == sizes[1]


def embeddings(model: PreTrainedModel) -> list[torch.Tensor]:
    head = model.get_output_embeddings()
    return [model.get_input_embeddings().weight.detach(), head.weight.detach()]


def make_tokenizer(texts: list[str], chat: bool) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer."""
    _, tokenizer = make_base(BaseConfig(hidden_size=32, layers=1, heads=4, vocabulary=320, context=160), texts)
    if chat:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
        tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="module", params=[(kind, tied) for kind in KINDS for tied in (True, False)], ids=str)
def trained(request, make_model: Callable, tiny_catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    kind, tied = request.param
    chat = tied == (kind in ("qwen3", "gpt2"))  # each kind once with a chat template and once without
    base = tmp_path_factory.mktemp("base")
    tokenizer = make_tokenizer(tiny_catalog.texts("{title}. {description}"), chat)
    end = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    make_model(kind, vocab_size=len(tokenizer) + PADDED, tie_word_embeddings=tied, **end).save_pretrained(base)
    tokenizer.save_pretrained(base)
    items = ItemTokenizer(levels=2, codes=4, embed=EmbedConfig(encoder="tfidf-svd", dim=8)).fit(tiny_catalog)
    rng = np.random.default_rng(0)
    events = [(f"u{user}", f"i{item}", time) for user in range(14) for time, item in enumerate(rng.permutation(20)[:6])]
    log = Interactions.from_frame(pl.DataFrame(events, ["user_id", "item_id", "timestamp"], orient="row"))

    def fit(folder: Path) -> Recommender:
        return Recommender.from_base(base, items).fit(log, tasks=TASKS, train=LORA, folder=folder)

    def fit_again(recommender: Recommender) -> Recommender:
        return recommender.fit(log, tasks=TASKS, train=replace(LORA, epochs=1, evaluations=1))

    made = []
    with pytest.MonkeyPatch.context() as patch:
        create = trainer._Trainer.create_optimizer
        patch.setattr(trainer._Trainer, "create_optimizer", lambda *args: made.append(create(*args)) or made[-1])
        recommender = fit(tmp_path_factory.mktemp("train"))
    return Trained(base, tied, fit, fit_again, recommender, made[0])


def test_only_the_adapter_and_the_item_rows_train(trained: Trained) -> None:
    rows = [tuple(p.shape) for name, p in trained.learnt.items() if "trainable_tokens_delta" in name]
    assert rows == [(len(trained.items), 32)] * (1 if trained.tied else 2)
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in trained.learnt)
    assert any("lora_" in name for name in trained.learnt)


def test_the_optimizer_holds_what_trains_and_no_more(trained: Trained) -> None:
    optimizer = trained.optimizer
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert sum(moment.numel() for moment in moments) == 2 * sum(p.numel() for p in trained.learnt.values())


def test_adapter_file_is_small(trained: Trained, tmp_path: Path) -> None:
    trained.recommender.save_pretrained(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert size < 1.2 * sum(p.numel() * p.element_size() for p in trained.learnt.values())
    assert not (tmp_path / "model.safetensors").exists()


def test_reloaded_adapter_gives_the_same_bits(trained: Trained, tmp_path: Path) -> None:
    trained.recommender.save_pretrained(tmp_path)
    again = Recommender.from_pretrained(tmp_path)
    assert torch.equal(logits(again.model, trained.items), logits(trained.recommender.model, trained.items))


def test_resumed_training_gives_the_same_bits(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Mixture.__getitem__

    def cut(self: Mixture, index: int):
        if index >= 40:
            raise RuntimeError("power cut")
        return whole(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Mixture, "__getitem__", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            trained.fit(tmp_path)
    assert trainer.last_checkpoint(tmp_path) is not None
    again = trained.fit(tmp_path)
    assert torch.equal(logits(again.model, trained.items), logits(trained.recommender.model, trained.items))


def test_a_loaded_adapter_is_trained_further(trained: Trained, tmp_path: Path) -> None:
    """The same adapter: its weights change, those of the base do not, and it is stored as before."""
    trained.recommender.save_pretrained(tmp_path / "first")
    again = Recommender.from_pretrained(tmp_path / "first")
    before = {name: parameter.detach().clone() for name, parameter in again.model.named_parameters()}
    trained.fit_again(again)
    changed = {name for name, parameter in again.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(trained.learnt)
    again.save_pretrained(tmp_path / "second")
    assert same_files(tmp_path / "first", tmp_path / "second")
    loaded = Recommender.from_pretrained(tmp_path / "second")
    assert torch.equal(logits(loaded.model, trained.items), logits(again.model, trained.items))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "full"}, "train.method full: the model has an adapter; merge it first"),
        ({"rows_first": 0.1}, "train.rows_first 0.1: the model has an adapter"),
        ({"lora": AdapterConfig(rank=4)}, "train.lora.rank 4: the model has an adapter with rank 8"),
        ({"lora": AdapterConfig(rank=8, targets=["mlp"])}, r"train.lora.targets \['mlp'\]: the model has an adapter"),
    ],
)
def test_another_adapter_than_the_one_that_is_there_is_refused(trained: Trained, settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_method(trained.recommender.model, replace(LORA, **settings))


def test_merged_model_keeps_old_rows_and_comes_back(trained: Trained, tmp_path: Path) -> None:
    """Last, for it changes the recommender."""
    base = AutoModelForCausalLM.from_pretrained(trained.base)
    unmerged, items = logits(trained.recommender.model, trained.items), trained.items
    merged = trained.recommender.merge()
    torch.testing.assert_close(logits(merged.model, items), unmerged, rtol=1e-4, atol=1e-4)
    start = Recommender.from_base(trained.base, merged.item_tokenizer).model
    for before, fresh, after in zip(embeddings(base), embeddings(start), embeddings(merged.model), strict=True):
        assert torch.equal(after[: items[0]], before[: items[0]])
        assert not torch.equal(after[items], fresh[items])
        assert len(after) == len(merged.tokenizer) == items[-1] + 1
    merged.save_pretrained(tmp_path)
    again = Recommender.from_pretrained(tmp_path)
    assert torch.equal(logits(again.model, items), logits(merged.model, items))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not any("lora" in name for name in file.keys())  # noqa: SIM118 - safe_open is no mapping
    saved, original = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, trained.base))
    assert saved["tie_word_embeddings"] == original["tie_word_embeddings"]
    assert saved["use_cache"] is True, "training turns the cache off for itself, not for who loads the model"
