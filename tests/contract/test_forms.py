"""The forms a batch can take: the same losses and gradients in each, on every kind of base."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from llmrec.errors import UserError
from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import Collator, Mixture, build_tasks, predicting
from llmrec.tasks.render import Example
from llmrec.train.finetune import check_packing
from llmrec.train.objective import answer_loss


@pytest.fixture(params=["qwen3", "llama", "gpt2", "gemma3"])
def model(request, shop, make_model):
    """Weights large enough that what a token sees makes a difference."""
    model = make_model(request.param, vocab_size=len(shop.tokenizer), pad_token_id=None, eos_token_id=None)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2 if "layers" in name or ".h." in name else 0.05)
    return model.eval()


@pytest.fixture
def examples(shop):
    """Of all tasks, from 8 to 60 tokens."""
    config = TasksConfig()
    mixture = Mixture(build_tasks(config, shop.catalog, shop.sequences, shop.renderer), config, 1, 4, seed=0)
    return [mixture[i] for i in range(0, len(mixture), 3)]


def forward(model, batch):
    return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}, use_cache=False)


def loss_and_gradients(model, batch):
    """The summed loss, and its gradient by every weight."""
    model.zero_grad()
    loss = answer_loss(forward(model, batch), batch["labels"], num_items_in_batch=1)
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def token_losses(model, batch):
    """Of every labelled token, in the order of the batch."""
    with torch.inference_mode():
        where = predicting(batch["labels"])
        return cross_entropy(forward(model, batch).logits[where], batch["labels"].roll(-1, 1)[where], reduction="none")


def assert_same(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=0)
    largest = max(gradient.abs().max() for gradient in one[1])
    for mine, yours in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-3, atol=1e-5 * float(largest))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_is_unpacked(model, shop, examples, attention):
    model.set_attn_implementation(attention)
    check_packing(model)
    padded, packed = (Collator(shop.renderer, 160, packed)(examples) for packed in (False, True))
    assert len(packed["labels"]) < len(padded["labels"]) == len(examples)
    expected = loss_and_gradients(model, padded)
    assert_same(loss_and_gradients(model, packed), expected)
    mixed = {**packed, "position_ids": torch.arange(packed["labels"].shape[1]).expand_as(packed["labels"])}
    assert abs(loss_and_gradients(model, mixed)[0] - expected[0]) > 1e-2, "else the test would prove nothing"


def test_padding_is_nothing(model, shop, examples):
    """Each example alone has the losses that it has in the batch."""
    collate = Collator(shop.renderer, 160)
    alone = torch.cat([token_losses(model, collate([example])) for example in examples])
    torch.testing.assert_close(token_losses(model, collate(examples)), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_every_item_is_one_target_per_example(model, shop, packed):
    """On the same supervision: an item of a history is predicted from what comes before it, and nothing else."""
    renderer = shop.renderer
    renderer.max_history = 20
    histories = [[3, 1, 7, 12, 5], [8, 2], [19, 4, 0, 6, 11, 13, 10]]

    def ask(history, target, every_item):
        prompt = renderer.prompt("sequential", 0, history=renderer.history(history))
        return Example(prompt, renderer.item_text[target], ends=False, every_item=every_item)

    whole = [ask(items[:-1], items[-1], True) for items in histories]
    single = [ask(items[:n], items[n], False) for items in histories for n in range(1, len(items))]
    at_once = Collator(renderer, 160, packed)(whole)
    one_by_one = Collator(renderer, 160)(single)
    assert predicting(at_once["labels"]).sum() == predicting(one_by_one["labels"]).sum() == 2 * len(single)
    assert_same(loss_and_gradients(model, at_once), loss_and_gradients(model, one_by_one))
    if not packed:  # else the examples stand in another order
        torch.testing.assert_close(token_losses(model, at_once), token_losses(model, one_by_one), rtol=1e-4, atol=1e-5)


def test_a_prompt_that_does_not_end_in_the_history_learns_its_answer_only(model, shop):
    history = shop.renderer.history([3, 1])
    example = Example(f"After {history}, what is next? ", shop.renderer.item_text[5], ends=False)
    batch = Collator(shop.renderer, 160)([example, replace(example, every_item=True)])
    learnt = predicting(batch["labels"]).sum(1).tolist()
    assert learnt == [2, 4], "every_item asks for the items of the history too, from the history so far"


def test_models_that_mix_what_shares_a_row_are_refused(model):
    deaf = copy.deepcopy(model)
    whole = deaf.forward

    def forward(input_ids, position_ids=None, **kwargs):
        return whole(input_ids, **kwargs)

    deaf.forward = forward
    with pytest.raises(UserError, match=r"train\.packing true: \w+ with \w+ attention .* set train\.packing false"):
        check_packing(deaf)
    deaf.forward = lambda input_ids, **kwargs: whole(input_ids, **kwargs)
    with pytest.raises(UserError, match=r"train\.packing true"):
        check_packing(deaf)
