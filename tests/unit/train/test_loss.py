"""The loss on answers, and dropout for models that have none."""

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutput

from llmrec.errors import UserError
from llmrec.tasks.mixture import IGNORE, predicting
from llmrec.train.dropout import BlockDropout
from llmrec.train.objective import answer_loss


def inputs(batch):
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def test_loss_is_the_stock_loss(shop, batch):
    model, labels = shop.model.eval(), batch["labels"]
    stock = model(**batch).loss
    everywhere = model(**inputs(batch))
    where_needed = model(**inputs(batch), logits_to_keep=predicting(labels))
    assert where_needed.logits.shape[:-1] == ((labels[:, 1:] != IGNORE).sum(),)
    for outputs in (everywhere, where_needed):
        torch.testing.assert_close(answer_loss(outputs, labels), stock)
        learnt = int((labels != IGNORE).sum())
        torch.testing.assert_close(answer_loss(outputs, labels, 2 * learnt), stock / 2)


def test_gradients_are_the_stock_ones(shop, batch):
    model = shop.model.eval()
    gradients = []
    for loss in (
        model(**batch).loss,
        answer_loss(model(**inputs(batch), logits_to_keep=predicting(batch["labels"])), batch["labels"]),
    ):
        model.zero_grad()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for stock, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-6)


def test_loss_of_known_logits():
    """Two labelled tokens of four words: one certain, one undecided."""
    labels = torch.tensor([[IGNORE, 2, IGNORE, 1]])
    logits = torch.zeros(1, 4, 4)
    logits[0, 0, 2] = 100.0
    loss = answer_loss(CausalLMOutput(logits=logits), labels)
    assert loss.item() == pytest.approx(torch.log(torch.tensor(4.0)).item() / 2)


def test_dropout_works_in_training_only_and_goes(shop, batch):
    model = shop.model.eval()

    def logits(training):
        model.train(training)
        return model(**inputs(batch)).logits.detach()

    plain = logits(False)
    assert torch.equal(logits(True), plain), "the architecture has no dropout of its own"
    dropout = BlockDropout(model, 0.5)
    assert len(dropout.hooks) == 1 + 2 * model.config.num_hidden_layers
    assert torch.equal(logits(False), plain)
    assert not torch.allclose(logits(True), plain)
    assert not torch.equal(logits(True), logits(True))
    dropout.remove()
    assert torch.equal(logits(True), plain)


def test_dropout_needs_blocks_it_knows():
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = torch.nn.Linear(2, 2)

    with pytest.raises(UserError, match=r"train\.dropout 0\.1: Odd .* set train\.dropout 0"):
        BlockDropout(Odd(), 0.1)
