"""Item text that pretends to be item tokens, chat markers, templates or a whole book reaches no example as such."""

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec.data import Catalog
from llmrec.intentions.intentions import Intentions
from llmrec.tasks.config import TASKS, TasksConfig
from llmrec.tasks.mixture import Collator, build_tasks
from llmrec.tasks.render import Renderer

PIECES = [
    "<a_1><b_2>", "<a_1", "_1>", "<", ">", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>", "<|e<|end|>nd|>",
    "{history}", "{", "}", "{0.__class__}", "%s", "\n", "\r\n", "\t", "\x00", "'\"\\", "\u202e", "soap", " ", "; ",
    "\u0645\u0631\u062d\u0628\u0627", "\u6d17\u53d1\u6c34", "\U0001f9fc", "e\u0301",
]  # fmt: skip
nasty = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=8).map("".join)
LONG = "<a_1><b_2>{history}<|user|>\n soap " * 3000  # 100 kB


def examples(shop, titles: list[str]):
    """An example of every row of every task, of a catalogue and customers that say these things."""
    frame = pl.DataFrame(
        {
            "item_id": [f"i{row}" for row in range(20)],
            "title": [titles[row % len(titles)] for row in range(20)],
            "description": [titles[row % len(titles)][::-1] for row in range(20)],
        }
    )
    users = [f"u{row}" for row in range(len(shop.sequences))]
    said = {"i3": titles, "i4": titles}
    config = TasksConfig(mixture=dict.fromkeys(TASKS, 1.0), max_history=4, max_text_tokens=12)
    tasks = build_tasks(
        config,
        Catalog.from_frame(frame),
        shop.sequences,
        shop.renderer,
        users,
        Intentions(items=said, users={**dict.fromkeys(users, titles), "u0": ["soap"]}),
    )
    for name, task in tasks.items():
        for row in range(len(task)):
            yield name, task.example(row, np.random.default_rng(row))


def check(shop, titles: list[str], chat: bool) -> None:
    renderer: Renderer = shop.renderer
    item = np.isin(np.arange(len(shop.tokenizer)), shop.vocabulary.all_ids)
    control = np.isin(np.arange(len(shop.tokenizer)), list(shop.tokenizer.get_added_vocab().values())) & ~item
    known = {renderer.item_text[row] for row in range(20)}
    collator = Collator(renderer, 160)
    for name, example in examples(shop, titles):
        ids = collator([example])["input_ids"][0].numpy()
        assert len(ids) < 160, "cut by rule"
        spelt = shop.tokenizer.convert_ids_to_tokens(ids[item[ids]].tolist())
        if name == "shared-codes":
            assert len(spelt) == 1
        else:
            pairs = {"".join(pair) for pair in zip(spelt[::2], spelt[1::2], strict=True)}
            assert spelt
            assert pairs <= known
        # the fixture's chat template puts two markers around each turn, and one before the answer
        markers = 2 * (3 if name == "chat" else 1) + 1 if chat else 0
        assert control[ids].sum() == markers + example.ends, f"{example!r}"


@pytest.mark.parametrize("chat", [False, True])
def test_a_hundred_kilobytes_of_markers(make_shop, chat):
    check(make_shop(chat=chat), [LONG, LONG[1:], "soap"], chat)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(titles=st.lists(nasty, min_size=1, max_size=4))
def test_whatever_item_text_says(make_shop, titles):
    for chat in (False, True):
        check(make_shop(chat=chat), [*titles, "soap"], chat)
