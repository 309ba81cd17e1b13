"""The loss among the codes of a level equals that computed from the logits of the whole vocabulary."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Gemma2Config, Gemma2ForCausalLM, PhiConfig, PhiForCausalLM

from llmrec.errors import UserError
from llmrec.model.adapter import add_item_rows, with_adapter
from llmrec.model.config import AdapterConfig
from llmrec.tasks.mixture import Collator, predicting
from llmrec.tasks.render import Example
from llmrec.train.levels import LevelSoftmax
from llmrec.train.objective import Objective


def inputs(batch):
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def expected(model, batch, vocabulary):
    """The same loss from the logits of the whole vocabulary, one target after the other."""
    where = predicting(batch["labels"])
    logits, targets = model(**inputs(batch)).logits[where], batch["labels"].roll(-1, dims=1)[where]
    losses = []
    for row, target in zip(logits, targets, strict=True):
        level = next((torch.from_numpy(ids) for ids in vocabulary.ids if int(target) in ids), torch.arange(len(row)))
        losses.append(cross_entropy(row[level][None], (level == target).nonzero()[0]))
    return torch.stack(losses).mean()


def ours(model, batch, vocabulary):
    objective = Objective(levels=LevelSoftmax(model, vocabulary))
    with objective.reading():
        outputs = model(**inputs(batch), logits_to_keep=predicting(batch["labels"]))
    return objective(outputs, batch["labels"])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def phi(shop):
    """A model whose head is untied and has a bias."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    size = len(shop.renderer.tokenizer)
    model = PhiForCausalLM(PhiConfig(vocab_size=size, bos_token_id=0, eos_token_id=1, **sizes))
    torch.nn.init.normal_(model.lm_head.bias)
    add_item_rows(model, shop.renderer.vocabulary.all_ids, size, seed=0)
    return model


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_it_is_the_loss_within_the_level(shop, batch, lora, untied):
    vocabulary = shop.renderer.vocabulary
    model = phi(shop) if untied else shop.model
    if lora:
        model = with_adapter(model, vocabulary.all_ids, AdapterConfig(rank=2, dropout=0.0))
    model.eval()
    plain = expected(model, batch, vocabulary)
    loss = ours(model, batch, vocabulary)
    torch.testing.assert_close(loss, plain)
    stock, fast = gradients(model, plain), gradients(model, loss)
    assert stock.keys() == fast.keys()
    for name, gradient in stock.items():
        torch.testing.assert_close(fast[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_model_returns_logits_again_afterwards(shop, batch):
    before = shop.model.eval()(**inputs(batch)).logits
    ours(shop.model, batch, shop.renderer.vocabulary)
    assert torch.equal(shop.model(**inputs(batch)).logits, before)


def test_capped_logits_are_refused(shop):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=64, num_key_value_heads=1, head_dim=8, **sizes))
    with pytest.raises(UserError, match=r"train.softmax level: Gemma2ForCausalLM caps its logits"):
        LevelSoftmax(model, shop.renderer.vocabulary)


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_words_and_codes_are_learnt_in_mixed_precision(shop, untied, weights):
    """accelerate gives back float32 states whatever the frozen weights are; the batch has words and item tokens."""
    vocabulary = shop.renderer.vocabulary
    examples = [Example("", "soap balm", ends=True), Example("soap", "<a_1><b_2>", ends=False)]
    batch = Collator(shop.renderer, 160)(examples)
    model = phi(shop) if untied else shop.model
    model = with_adapter(model.to(weights), vocabulary.all_ids, AdapterConfig(rank=2, dropout=0.0)).eval()
    plain = expected(model.float(), batch, vocabulary)
    model.get_base_model().to(weights)
    level = LevelSoftmax(model, vocabulary)
    where = predicting(batch["labels"])
    with level.hidden_states(), torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.bfloat16):
        states = model(**inputs(batch), logits_to_keep=where).logits.float()
    loss, scores = level(states, batch["labels"].roll(-1, dims=1)[where])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(loss / int(where.sum()), plain, rtol=2e-2 if weights == torch.bfloat16 else 1e-5, atol=0)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
