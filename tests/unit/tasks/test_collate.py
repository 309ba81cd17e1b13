"""Batches: labels on what is learnt, and nothing else."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import IGNORE, Collator, build_tasks, pack, predicting
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


def tokens(shop, example):
    prompt = shop.renderer.encode_prompts([example.prompt])[0]
    return prompt + shop.renderer.encode_answers([example])[0]


def test_rows_are_padded_on_the_right(shop, examples):
    batch = Collator(shop.renderer, 160)(examples)
    assert batch.keys() == {"input_ids", "labels"}
    for row, example in enumerate(examples):
        expected = tokens(shop, example)
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        assert ids.tolist()[: len(expected)] == expected
        assert (ids[len(expected) :] == shop.tokenizer.pad_token_id).all()
        assert (labels[len(expected) :] == IGNORE).all()
    assert batch["input_ids"].shape[1] == max(len(tokens(shop, example)) for example in examples)
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_packed_rows_hold_the_same_examples(shop, examples):
    """Cut where the positions start again, they are those of the padded batch, labels and all."""
    padded, packed = (Collator(shop.renderer, 160, packed)(examples * 3) for packed in (False, True))

    def cut(batch, row, start, stop):
        real = batch["input_ids"][row, start:stop] != shop.tokenizer.pad_token_id
        assert (batch["labels"][row, start:stop][~real] == IGNORE).all()
        return [batch[name][row, start:stop][real].tolist() for name in ("input_ids", "labels")]

    found = []
    for row, positions in enumerate(packed["position_ids"]):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(positions)]
        for start, stop in itertools.pairwise(starts):
            assert positions[start:stop].tolist() == list(range(stop - start))
            found.append(cut(packed, row, start, stop))
    assert len(found) > len(packed["labels"])
    assert sorted(found) == sorted(cut(padded, row, 0, None) for row in range(len(padded["labels"])))


def test_packed_rows_keep_to_the_context(shop, examples):
    longest = max(len(tokens(shop, example)) for example in examples)
    assert Collator(shop.renderer, longest + 1, packed=True)(examples * 9)["labels"].shape[1] <= longest + 1


def test_an_example_without_a_prompt_does_not_learn_its_first_token(shop):
    """In a packed row the example before would predict it."""
    batch = Collator(shop.renderer, 160, packed=True)([Example("", "<a_0><b_2>", ends=False)] * 2)
    assert (batch["labels"] != IGNORE).tolist() == [[False, True, False, True]]


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), room=st.integers(50, 120))
def test_packing_fits_and_loses_nothing(lengths, room):
    rows = pack(lengths, room)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in row) for row in rows]
    assert max(totals) <= room
    assert sum(total <= room / 2 for total in totals) <= 1, "two rows that would fit into one"


def test_long_examples_lose_the_end_of_their_answer(shop, examples):
    example = examples[3]
    whole = Collator(shop.renderer, 160)([example])
    length = whole["input_ids"].shape[1]
    short = Collator(shop.renderer, length - 2)([example])
    for name in whole:
        assert torch.equal(short[name], whole[name][:, :-2])
    assert learnt(shop, short, 0) != ""


def test_logits_are_wanted_where_a_label_follows():
    labels = torch.tensor([[IGNORE, 5, IGNORE, 7, IGNORE], [9, IGNORE, IGNORE, 8, 9]])
    assert predicting(labels).int().tolist() == [[1, 0, 1, 0, 0], [0, 0, 1, 1, 0]]


@pytest.mark.parametrize("packed", [True, False])
def test_learnt_items_are_named_where_their_tokens_begin(shop, packed):
    tasks = build_tasks(TasksConfig(max_history=4), shop.catalog, shop.sequences, shop.renderer)
    rng = np.random.default_rng(0)
    examples = [task.example(row, rng) for task in tasks.values() for row in range(len(task))]
    batch = Collator(shop.renderer, 160, packed, with_items=True)(examples)
    labels, items = batch["labels"], batch["items"]
    assert sorted(items[items >= 0].tolist()) == sorted(item for example in examples for item in example.items)
    spelt = shop.vocabulary.token_ids(shop.codes)
    is_code = np.isin(labels.numpy(), shop.vocabulary.all_ids)
    for row, start in (items >= 0).nonzero().tolist():
        assert labels[row, start : start + 2].tolist() == spelt[items[row, start]].tolist()
        is_code[row, start : start + 2] = False
    assert not is_code.any(), "every learnt item is named"


def test_an_item_that_is_cut_off_is_not_named(shop):
    example = Example("Next: ", shop.renderer.item_text[9], ends=False, items=(9,))
    length = len(tokens(shop, example))
    for longest, named in ((length, [9]), (length - 1, [])):
        items = Collator(shop.renderer, longest, with_items=True)([example])["items"]
        assert items[items >= 0].tolist() == named
