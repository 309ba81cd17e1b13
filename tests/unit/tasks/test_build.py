"""The tasks: which rows they have, and that no example shows its own answer."""

import re

import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog
from llmrec.tasks.build import (
    CodesToItem,
    ItemToCodes,
    PersonalSearch,
    Requests,
    Search,
    Sequential,
    build_tasks,
    item_texts,
)
from llmrec.tasks.config import TASKS, TasksConfig

ITEM = re.compile(r"<a_(\d)><b_(\d)>")


def items(text: str) -> list[int]:
    return [int(a) * 5 + int(b) for a, b in ITEM.findall(text)]


def drawn(task, row, times=40):
    return [task.example(row, np.random.default_rng(seed)) for seed in range(times)]


@pytest.fixture
def sequences():
    """Users' items never repeat, so an item's place in its sequence is known; the first two give no row."""
    rng = np.random.default_rng(0)
    return [rng.permutation(20)[:n] for n in (0, 1, 2, 3, 5, 9, 20)]


def test_one_target_per_row_covers_every_target_once(shop, sequences):
    task = Sequential(shop.renderer, sequences, every_item=False)
    assert len(task) == sum(len(s) - 1 for s in sequences if len(s))
    seen = []
    for row in range(len(task)):
        example = task.example(row, np.random.default_rng(row))
        (target,) = items(example.answer)
        sequence = next(s for s in task.sequences if [*items(example.prompt), target] == _window(s, target))
        seen.append((len(sequence), target))
        assert not example.every_item
        assert not example.ends
        assert task.length(row) == 12 + 2 * len(items(example.prompt + example.answer))
    assert sorted(seen) == sorted((len(s), int(item)) for s in sequences for item in s[1:])


def _window(sequence: np.ndarray, target: int) -> list[int] | None:
    """The target and up to 4 items before it, as they stand in `sequence`."""
    at = np.flatnonzero(sequence == target)
    return sequence[max(0, at[0] - 4) : at[0] + 1].tolist() if len(at) else None


def test_every_item_rows_are_windows_that_reach_all_targets(shop, sequences):
    task = Sequential(shop.renderer, sequences, every_item=True)
    assert len(task) == 5
    for row, sequence in enumerate(s for s in sequences if len(s) > 1):
        learnt = set()
        for example in drawn(task, row, 150):
            shown = items(example.prompt + example.answer)
            assert example.every_item
            assert shown[-1:] == items(example.answer)
            assert len(shown) == min(len(sequence), 5)
            start = sequence.tolist().index(shown[0])
            assert shown == sequence[start : start + len(shown)].tolist()
            learnt |= set(shown[1:])
        assert learnt == set(sequence[1:].tolist())


def test_all_phrasings_are_drawn(shop, sequences):
    task = Sequential(shop.renderer, sequences, every_item=False)
    prompts = {example.prompt for example in drawn(task, 0)}
    assert len(prompts) == len(shop.renderer.templates["sequential"].templates)


def test_the_same_generator_gives_the_same_example(shop, sequences):
    requests = Requests(shop.catalog, shop.renderer, 16)
    for task in (
        Sequential(shop.renderer, sequences, every_item=True),
        Search(shop.renderer, requests),
        PersonalSearch(shop.renderer, sequences, requests),
    ):
        assert drawn(task, 3, 5) == drawn(task, 3, 5)
        assert len(set(drawn(task, 3))) > 1


def test_text_tasks_pair_an_item_with_its_own_text(shop):
    texts = item_texts(shop.catalog, shop.renderer, 64)
    for row in range(len(shop.codes)):
        for example in drawn(ItemToCodes(shop.renderer, texts), row, 8):
            assert items(example.answer) == [row]
            assert shop.catalog.row(f"i{row}")["title"] in example.prompt
            assert not example.ends
        for example in drawn(CodesToItem(shop.renderer, texts), row, 8):
            assert items(example.prompt) == [row]
            assert example.answer in texts[row]
            assert example.ends


def test_personal_search_asks_for_an_item_after_its_history(shop, sequences):
    requests = Requests(shop.catalog, shop.renderer, 16)
    task = PersonalSearch(shop.renderer, sequences, requests)
    for row, sequence in enumerate(task.sequences):
        for example in drawn(task, row, 10):
            (target,) = items(example.answer)
            assert [*items(example.prompt), target] == _window(sequence[0], target)
            asked = example.prompt.split("wants: ")[-1].split("Request: ")[-1].split("asks for: ")[-1]
            assert asked.split()[0] in requests.words[target]


def test_items_without_text_have_no_text_rows(shop):
    """Item 1's title is nothing but a token of ours; item 2 has no text at all."""
    frame = pl.DataFrame({"item_id": ["x", "y", "z"], "title": ["Soap", "<a_1>", ""], "brand": ["Alba", "Borea", ""]})
    catalog = Catalog.from_frame(frame)
    assert item_texts(catalog, shop.renderer, 16) == [["Soap", "Soap. Alba"], [". Borea"], []]
    requests = Requests(catalog, shop.renderer, 16)
    assert requests.ways == [["soap", "alba", "soap alba"], ["borea"], []]
    assert Search(shop.renderer, requests).items.tolist() == [0, 1]
    assert len(PersonalSearch(shop.renderer, [np.array([0, 2]), np.array([2, 1])], requests)) == 1


def test_long_fields_are_asked_for_in_some_words_only(shop):
    requests = Requests(shop.catalog, shop.renderer, 64)
    assert requests.ways[0] == ["alba shampoo 0", "alba", "alba shampoo 0 alba"]
    assert requests.ways[15] == ["shampoo 15"]
    whole = " ".join(requests.words[0])
    assert whole.startswith("alba shampoo 0 alba a gentle shampoo")
    generator = np.random.default_rng(0)
    drawn_ = {requests.draw(0, generator) for _ in range(200)}
    assert set(requests.ways[0]) <= drawn_
    for request in drawn_ - set(requests.ways[0]):
        rest = iter(requests.words[0])
        assert all(word in rest for word in request.split()), "the words keep their order"
        assert 2 <= len(request.split()) <= 8


def test_texts_are_cut(shop):
    for ways in item_texts(shop.catalog, shop.renderer, 5):
        assert all(len(shop.tokenizer(text, add_special_tokens=False)["input_ids"]) <= 5 for text in ways)


def test_build_makes_the_tasks_of_the_mixture(shop):
    config = TasksConfig(mixture={"search": 0.5, "sequential": 1.0, "item-to-codes": 0.0})
    tasks = build_tasks(config, shop.catalog, shop.sequences, shop.renderer)
    assert list(tasks) == ["search", "sequential"]
    assert tasks["sequential"].every_item
    everything = build_tasks(TasksConfig(), shop.catalog, shop.sequences, shop.renderer)
    assert sorted(everything) == sorted(TASKS)
    one_each = TasksConfig(supervise="target")
    assert not build_tasks(one_each, shop.catalog, shop.sequences, shop.renderer)["sequential"].every_item
