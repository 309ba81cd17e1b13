"""Gradient checkpointing is on where the estimate says that the GPU's memory needs it. The GPU here is made up."""

import logging
from dataclasses import replace

import pytest
from loading import script

from llmrec.model.adapter import with_adapter
from llmrec.model.base import on_meta
from llmrec.model.config import AdapterConfig
from llmrec.tasks.config import TasksConfig
from llmrec.train import memory
from llmrec.train.config import TrainConfig
from llmrec.train.finetune import TrainingData, finetune
from llmrec.train.memory import ROOM, Batch, recompute

TASKS = TasksConfig(mixture={"sequential": 1.0}, max_history=4, max_text_tokens=12)
FULL = TrainConfig(epochs=1, batch_size=8, evaluations=1, dtype="float32")
LORA = replace(FULL, method="lora", lora=AdapterConfig(rank=4))


def test_auto_asks_the_memory() -> None:
    auto = TrainConfig()
    assert not recompute(auto, 10**12, None)  # no GPU
    assert not recompute(auto, round(ROOM * 1000), 1000)
    assert recompute(auto, round(ROOM * 1000) + 1, 1000)
    assert recompute(replace(auto, gradient_checkpointing=True), 1, None)
    assert not recompute(replace(auto, gradient_checkpointing=False), 10**12, 1)


def test_a_run_of_0_1_keeps_its_key() -> None:
    assert TrainConfig().cache_key()["gradient_checkpointing"] is False
    assert TrainConfig(gradient_checkpointing=True).cache_key()["gradient_checkpointing"] is True


@pytest.mark.parametrize("config", [FULL, LORA, replace(LORA, softmax="level")], ids=["full", "lora", "level"])
def test_training_decides_by_the_gpu(make_shop, tmp_path, monkeypatch, caplog, config) -> None:
    said = {}
    for name, room in (("little", 2**16), ("much", 2**40)):
        monkeypatch.setattr(memory, "gpu_room", lambda room=room: room)
        shop = make_shop()
        with caplog.at_level(logging.INFO, "llmrec"):
            data = TrainingData(shop.catalog, shop.sequences)
            trained, _ = finetune(shop.model, shop.renderer, data, TASKS, config, tmp_path / name)
        said[name] = trained.is_gradient_checkpointing
    assert said == {"little": True, "much": False}
    lines = [record.message for record in caplog.records if record.message.startswith("Gradient checkpointing")]
    assert [line.split()[2] for line in lines] == ["on;", "off;"]


def test_a_model_that_cannot_be_estimated_is_trained_nevertheless(make_shop, tmp_path, monkeypatch, caplog) -> None:
    def bare(model: object) -> object:
        found = on_meta(model)
        monkeypatch.setattr(found, "forward", lambda **inputs: inputs["input_ids"].tolist())
        return found

    monkeypatch.setattr(memory, "gpu_room", lambda: 1)
    monkeypatch.setattr(memory, "on_meta", bare)
    shop = make_shop()
    data = TrainingData(shop.catalog, shop.sequences)
    trained, _ = finetune(shop.model, shop.renderer, data, TASKS, FULL, tmp_path)
    assert not trained.is_gradient_checkpointing
    assert "Gradient checkpointing: off; base.model: what Qwen3ForCausalLM needs can't be estimated" in caplog.text


@pytest.mark.parametrize("name", ["qwen3_moe", "llama4_text", "gpt_oss", "qwen3_next", "jamba", "mamba2", "mpt"])
def test_experts_and_recurrent_layers_are_estimated(name) -> None:
    """Experts that torch multiplies in groups, and layers whose mask transformers looks into."""
    model = on_meta(script("architectures").make_model(name, vocab_size=320))
    weights = sum(parameter.numel() for parameter in model.parameters())
    config, batch = replace(FULL, dropout=0.0), Batch(rows=4, tokens=40, learnt=16)
    found = memory.memory(model, model, config, 32, batch)
    assert found["weights"] == 4 * weights
    assert found["activations"] > 4 * batch.size * model.config.get_text_config().hidden_size
    assert memory.operations(model, model, config, batch) > 6 * 16 * weights


def test_on_meta_has_the_shape_of_the_model(make_shop) -> None:
    shop = make_shop()
    adapted = with_adapter(shop.model, shop.vocabulary.all_ids, AdapterConfig())
    bare = on_meta(adapted)
    assert all(parameter.is_meta for parameter in bare.parameters())
    shapes = {name: parameter.shape for name, parameter in make_shop().model.named_parameters()}
    assert {name: parameter.shape for name, parameter in bare.named_parameters()} == shapes
