"""Weights that training spreads over processes: the copy they are gathered in. The spreading itself needs GPUs."""

from dataclasses import replace

import pytest
import torch

from llmrec.errors import UserError
from llmrec.model.adapter import with_adapter
from llmrec.model.config import AdapterConfig
from llmrec.model.rows import split_token_rows
from llmrec.tasks.config import TasksConfig
from llmrec.train.config import TrainConfig
from llmrec.train.finetune import TrainingData, finetune
from llmrec.train.trainer import empty_copy, spread_over_processes

TASKS = TasksConfig(mixture={"sequential": 1.0, "item-to-codes": 0.5}, max_history=4, max_text_tokens=12)
CONFIG = TrainConfig(epochs=1, batch_size=8, evaluations=1, dtype="float32")
FSDP = {"ACCELERATE_USE_FSDP": "true"}
ZERO3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


@pytest.mark.parametrize(
    ("environment", "spread"),
    [({}, False), (FSDP, True), (ZERO3, True), (ZERO3 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, False)],
    ids=["alone", "fsdp", "zero-3", "zero-2"],
)
def test_told_by_the_launcher(monkeypatch, environment, spread):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert spread_over_processes() == spread


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_copy_takes_all_weights(make_shop, method, tied):
    shop = make_shop(tied)
    model = shop.model
    if method == "lora":
        model = with_adapter(model, shop.vocabulary.all_ids, AdapterConfig(rank=4))
    whole = empty_copy(model)
    mine, theirs = dict(model.named_parameters()), dict(whole.named_parameters())
    assert mine.keys() == theirs.keys()
    assert not {p.data_ptr() for p in mine.values()} & {p.data_ptr() for p in theirs.values()}
    assert [p.requires_grad for p in mine.values()] == [p.requires_grad for p in theirs.values()]
    whole.load_state_dict(model.state_dict())
    ids = torch.tensor([[5, 6, *shop.vocabulary.all_ids[:4]]])
    with torch.inference_mode():
        assert torch.equal(whole.eval()(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_tied_matrices_are_one_for_accelerate(make_shop, tied):
    """FSDP2 puts a tied matrix into one group; accelerate looks whether embedding and head show the same one."""
    shop = make_shop(tied)
    adapted = with_adapter(shop.model, shop.vocabulary.all_ids, AdapterConfig(rank=4))
    matrices = [shop.model.get_input_embeddings(), shop.model.get_output_embeddings()]
    assert matrices[0].weight is not matrices[1].weight  # copies with the trained rows
    split_token_rows(adapted)
    assert (matrices[0].weight is matrices[1].weight) == tied
    assert all(isinstance(matrix.weight, torch.nn.Parameter) for matrix in matrices)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_ends_with_the_gathered_copy(make_shop, tmp_path, monkeypatch, method):
    def train(folder):
        shop = make_shop()
        data = TrainingData(shop.catalog, shop.sequences)
        return shop, finetune(shop.model, shop.renderer, data, TASKS, replace(CONFIG, method=method), folder)[0]

    _, expected = train(tmp_path / "plain")
    monkeypatch.setattr("llmrec.train.trainer.spread_over_processes", lambda: True)
    shop, gathered = train(tmp_path / "gathered")
    assert not {p.data_ptr() for p in gathered.parameters()} & {p.data_ptr() for p in shop.model.parameters()}
    state = gathered.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.state_dict().items())
    assert not any(module._forward_hooks for module in gathered.modules())


def test_rows_first_needs_whole_weights(shop, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    data = TrainingData(shop.catalog, shop.sequences)
    with pytest.raises(UserError, match=r"train\.rows_first 0\.2 works where each process holds all weights"):
        finetune(shop.model, shop.renderer, data, TASKS, replace(CONFIG, rows_first=0.2), tmp_path)
