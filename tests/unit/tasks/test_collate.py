"""Batches: labels on what is learnt, and nothing else."""

import pytest
import torch

from llmrec.tasks.collate import IGNORE, Collator, supervised_columns
from llmrec.tasks.render import Example


@pytest.fixture
def examples(shop):
    renderer = shop.renderer
    history = renderer.history([3, 1, 7])
    return [
        Example(renderer.prompt("search", 1, query="a gentle soap"), renderer.item_text[9], ends=False),
        Example(renderer.prompt("sequential", 0, history=history), renderer.item_text[2], False, every_item=True),
        Example(renderer.prompt("sequential", 0, history=history), renderer.item_text[2], ends=False),
        Example(renderer.prompt("codes-to-item", 0, item=renderer.item_text[5]), "Alba soap", ends=True),
    ]


def learnt(shop, batch, row):
    return shop.tokenizer.decode(batch["labels"][row][batch["labels"][row] != IGNORE])


@pytest.mark.parametrize("chat", [False, True])
def test_only_answers_and_supervised_history_are_labelled(make_shop, chat):
    shop = make_shop(chat=chat)
    history = shop.renderer.history([3, 1, 7])
    asked = shop.renderer.prompt("sequential", 0, history=history)
    batch = Collator(shop.renderer, 160)(
        [
            Example(asked, "<a_0><b_2>", ends=False),
            Example(asked, "<a_0><b_2>", ends=False, every_item=True),
            Example(shop.renderer.prompt("codes-to-item", 0, item="<a_1><b_0>"), "Alba soap", ends=True),
        ]
    )
    assert learnt(shop, batch, 0) == "<a_0><b_2>"
    assert learnt(shop, batch, 1) == "<a_0><b_1><a_1><b_2><a_0><b_2>"
    assert learnt(shop, batch, 2) == "Alba soap<|end|>"
    labels, ids = batch["labels"], batch["input_ids"]
    assert ((labels == IGNORE) | (labels == ids)).all()
    assert (labels[batch["attention_mask"] == 0] == IGNORE).all()


def test_rows_are_padded_on_the_left_and_positions_count_from_the_first_token(shop, examples):
    batch = Collator(shop.renderer, 160)(examples)
    for row, example in enumerate(examples):
        prompt = shop.renderer.encode_prompts([example.prompt])[0]
        expected = prompt + shop.renderer.encode_answers([example])[0]
        mask = batch["attention_mask"][row]
        assert mask.tolist() == [0] * (len(mask) - len(expected)) + [1] * len(expected)
        assert batch["input_ids"][row][mask == 1].tolist() == expected
        assert batch["position_ids"][row][mask == 1].tolist() == list(range(len(expected)))
        assert (batch["position_ids"][row] >= 0).all()
        assert (batch["input_ids"][row][mask == 0] == shop.tokenizer.pad_token_id).all()
    assert (batch["attention_mask"].sum(1) == batch["input_ids"].shape[1]).any()
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_long_examples_lose_the_end_of_their_answer(shop, examples):
    example = examples[3]
    whole = Collator(shop.renderer, 160)([example])
    length = whole["input_ids"].shape[1]
    short = Collator(shop.renderer, length - 2)([example])
    for name in whole:
        assert torch.equal(short[name], whole[name][:, :-2])
    assert learnt(shop, short, 0) != ""


def test_logits_are_wanted_where_a_label_follows():
    labels = torch.tensor([[IGNORE, 5, IGNORE, 7, IGNORE], [IGNORE, IGNORE, IGNORE, 8, 9]])
    assert supervised_columns(labels).tolist() == [0, 2, 3]
