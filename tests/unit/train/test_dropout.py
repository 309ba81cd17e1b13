"""Codes that a model in training does not get to see."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmrec.errors import UserError
from llmrec.tasks.config import TasksConfig
from llmrec.train import finetune as finetuning
from llmrec.train.config import TrainConfig
from llmrec.train.dropout import CodeDropout
from llmrec.train.finetune import TrainingData, finetune

RATE = 0.3


@pytest.fixture
def tokens(shop) -> torch.Tensor:
    """Every token of the tokenizer many times over, [200, V]."""
    return torch.arange(len(shop.tokenizer)).repeat(200, 1)


def test_given_tokens_are_hidden_at_the_rate_and_no_others(shop, tokens):
    torch.manual_seed(0)
    model, hideable = shop.model.train(), shop.vocabulary.ids[1]
    embedding = model.get_input_embeddings()
    before = embedding.weight.detach().clone()
    CodeDropout(model, hideable, RATE)
    with torch.no_grad():
        seen = embedding(tokens)
    hidden = (seen != before[tokens]).any(dim=-1)
    assert not seen[hidden].any()
    assert not hidden[:, np.setdiff1d(np.arange(len(shop.tokenizer)), hideable)].any()
    assert hidden[:, hideable].float().mean().item() == pytest.approx(RATE, abs=0.05)  # of 1000; 3 deviations
    assert torch.equal(embedding.weight, before)


def test_gradients_reach_only_what_is_seen(shop):
    token = int(shop.vocabulary.ids[1][2])
    embedding = shop.model.train().get_input_embeddings()
    CodeDropout(shop.model, np.array([token]), 0.5)
    torch.manual_seed(1)
    seen = embedding(torch.full((40,), token))
    seen.sum().backward()
    there = (seen != 0).any(dim=-1).sum()
    assert 0 < there < 40
    torch.testing.assert_close(embedding.weight.grad[token], there.float().expand(32))


def test_only_in_training_and_gone_when_removed(shop, tokens):
    model = shop.model.eval()
    dropout = CodeDropout(model, shop.vocabulary.ids[1], 0.9)
    embedding = model.get_input_embeddings()
    plain = embedding.weight[tokens]
    assert torch.equal(embedding(tokens), plain)
    model.train()
    assert not torch.equal(embedding(tokens), plain)
    dropout.remove()
    assert torch.equal(embedding(tokens), plain)


def test_a_fine_tuning_hides_codes_after_the_first_and_leaves_no_hook(shop, tmp_path, monkeypatch):
    given = []

    def note(model, token_ids, rate):
        given.append((token_ids.tolist(), rate))
        return CodeDropout(model, token_ids, rate)

    monkeypatch.setattr(finetuning, "CodeDropout", note)
    config = TrainConfig(epochs=1, batch_size=8, evaluations=1, dtype="float32", dropout=0.0, code_dropout=0.4)
    data, tasks = TrainingData(shop.catalog, shop.sequences), TasksConfig({"sequential": 1.0}, max_history=4)
    finetune(shop.model, shop.renderer, data, tasks, config, tmp_path)
    assert given == [(shop.vocabulary.ids[1].tolist(), 0.4)]
    assert not any(module._forward_hooks for module in shop.model.modules())
    finetune(shop.model, shop.renderer, data, tasks, replace(config, code_dropout=0.0), tmp_path / "none")
    assert len(given) == 1


def test_it_needs_the_full_method_and_a_rate():
    with pytest.raises(UserError, match=r"train\.code_dropout 0\.2 works with train\.method full only; set it to 0"):
        TrainConfig(method="lora", code_dropout=0.2)
    with pytest.raises(UserError, match=r"train\.code_dropout 1\.0: expected at least 0 and below 1"):
        TrainConfig(code_dropout=1.0)
