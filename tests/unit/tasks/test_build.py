"""The tasks: which rows they have, and that no example shows its own answer."""

import itertools
import math
import re
from collections import Counter
from copy import copy

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec.data import Catalog
from llmrec.errors import UserError
from llmrec.intentions.intentions import Intentions
from llmrec.tasks.config import TASKS, TasksConfig
from llmrec.tasks.examples import (
    Chat,
    CodesToItem,
    ItemToCodes,
    NextText,
    PersonalSearch,
    Preference,
    Requests,
    Search,
    Sequential,
    SharedCodes,
    TitlesToItem,
    item_texts,
)
from llmrec.tasks.mixture import Mixture, build_tasks
from llmrec.tasks.render import Example

ITEM = re.compile(r"<a_(\d)><b_(\d)>")


def items(text: str) -> list[int]:
    return [int(a) * 5 + int(b) for a, b in ITEM.findall(text)]


def told(shop, name: str, prompt: str) -> dict[str, str]:
    """The values that stand in a plain prompt of one of the task's phrasings."""
    for phrasing in shop.renderer.templates[name].templates:
        spoken = phrasing if isinstance(phrasing, list) else [phrasing]
        text = " ".join([*(turn.strip() for turn in spoken[:-1]), spoken[-1]])
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(text))
        if found := re.fullmatch(pattern, prompt):
            return found.groupdict()
    raise AssertionError(f"{prompt!r} is none of the phrasings")


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


def _window(sequence: np.ndarray, target: int, items: int = 5) -> list[int] | None:
    """The last `items` items up to the target, as they stand in `sequence`."""
    at = np.flatnonzero(sequence == target)
    return sequence[max(0, at[0] + 1 - items) : at[0] + 1].tolist() if len(at) else None


def test_windows_tile_a_long_history_from_its_newest_item(shop):
    task = Sequential(shop.renderer, [np.arange(12)], every_item=True)  # max_history 4
    examples = [task.example(row, np.random.default_rng(0)) for row in range(len(task))]
    assert [items(example.prompt + example.answer) for example in examples] == [
        [0, 1, 2, 3],
        [3, 4, 5, 6, 7],
        [7, 8, 9, 10, 11],
    ]
    assert [example.items for example in examples] == [(1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]


@given(lengths=st.lists(st.integers(0, 60), max_size=6), max_history=st.integers(1, 25), epochs=st.integers(1, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_each_event_but_the_first_is_a_target_once_per_pass(shop, lengths, max_history, epochs):
    """Counted over the examples of all passes. Each event is an item of its own, so that it can be told from others."""
    ends = np.cumsum([0, *lengths])
    sequences = [np.arange(start, stop) for start, stop in itertools.pairwise(ends)]
    renderer = copy(shop.renderer)
    renderer.max_history = max_history
    renderer.item_text = [f"<a_{i // 5 % 4}><b_{i % 5}>" for i in range(ends[-1])]
    task = Sequential(renderer, sequences, every_item=True)
    assert len(task) == sum(math.ceil((n - 1) / max_history) for n in lengths if n)
    if not len(task):
        return
    mixture = Mixture({"sequential": task}, TasksConfig({"sequential": 1.0}), epochs, 1, seed=0)
    learnt = Counter()
    for example in (mixture[i] for i in range(len(mixture))):
        assert example.every_item
        first, *others = items(example.prompt + example.answer)
        assert 1 <= len(others) <= max_history
        assert others == [item % 20 for item in example.items]
        sequence = next(s for s in sequences if example.items[0] in s)
        at = example.items[0] - sequence[0]
        assert first == sequence[at - 1] % 20
        assert example.items == tuple(sequence[at : at + len(others)])
        learnt.update(example.items)
    assert learnt == {item: epochs for sequence in sequences for item in sequence[1:].tolist()}


def test_a_short_history_is_one_window_and_only_its_phrasing_is_drawn(shop):
    task = Sequential(shop.renderer, [np.arange(n) for n in (2, 4, 5)], every_item=True)  # max_history 4
    assert len(task) == 3
    for row, (n, first) in enumerate(((2, 0), (4, 1), (5, 4))):
        events = tuple(range(first, first + n - 1))
        for seed in range(5):
            prompt = task.prompt(np.random.default_rng(seed), history=shop.renderer.history(range(n - 1)))
            assert task.example(row, np.random.default_rng(seed)) == Example(
                prompt, shop.renderer.item_text[n - 1], False, every_item=True, items=tuple(range(1, n)), events=events
            )


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
            assert any(text in example.prompt for text in texts[row])
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
            query = told(shop, "personal-search", example.prompt)["query"]
            assert set(query.split()) <= set(requests.words[target])


def test_items_without_text_have_no_text_rows(shop):
    """Item 1's title is nothing but a token of ours; item 2 has no text at all."""
    frame = pl.DataFrame({"item_id": ["x", "y", "z"], "title": ["Soap", "<a_1>", ""], "brand": ["Alba", "Borea", ""]})
    catalog = Catalog(frame)  # without the reader's cleaning, which takes such a token for HTML
    assert item_texts(catalog, shop.renderer, 16) == [["Soap", "Soap. Alba"], [". Borea"], []]
    requests = Requests(catalog, shop.renderer, 16)
    assert requests.ways == [["soap", "alba", "soap alba"], ["borea"], []]
    assert Search(shop.renderer, requests).items.tolist() == [0, 1]
    assert len(PersonalSearch(shop.renderer, [np.array([0, 2]), np.array([2, 1])], requests)) == 1


def test_a_number_alone_is_no_request(shop):
    frame = pl.DataFrame({"item_id": ["x"], "title": ["Soap 7"], "price": ["15.53"], "brand": ["3M"]})
    requests = Requests(Catalog(frame), shop.renderer, 16)
    assert requests.ways == [["soap 7", "3m", "soap 7 3m"]]
    assert requests.words == [["soap", "7", "15.53", "3m"]]


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
    users = [f"u{row}" for row in range(len(shop.sequences))]
    intentions = Intentions(items={"i3": ["something mild"]}, users={"u5": ["mild soaps"]})
    every = TasksConfig(mixture=dict.fromkeys(TASKS, 1.0))
    everything = build_tasks(every, shop.catalog, shop.sequences, shop.renderer, users, intentions)
    assert sorted(everything) == sorted(TASKS)
    assert all(len(task) for task in everything.values())
    one_each = TasksConfig(supervise="target")
    assert not build_tasks(one_each, shop.catalog, shop.sequences, shop.renderer)["sequential"].every_item


@pytest.mark.parametrize("intentions", [None, Intentions(items={"i0": ["a soap"]})])
def test_preferences_must_be_known(shop, intentions):
    config = TasksConfig(mixture={"preference": 1.0})
    with pytest.raises(UserError, match=r"preference: no user's preferences are known; set intentions\.source"):
        build_tasks(config, shop.catalog, shop.sequences, shop.renderer, intentions=intentions)


def test_a_task_without_a_prompt_is_named(shop):
    del shop.renderer.templates["chat"]
    with pytest.raises(UserError, match=r"chat: no chat\.yaml in tasks\.prompts"):
        build_tasks(TasksConfig(mixture={"chat": 1.0}), shop.catalog, shop.sequences, shop.renderer)


def test_preferences_belong_to_their_users(shop, sequences):
    users = [f"u{row}" for row in range(len(sequences))]
    task = Preference(shop.renderer, sequences, users, {"u1": ["soap"], "u3": ["balm", ""], "u9": ["?"]}, 8)
    assert [(items(task.example(row, np.random.default_rng(0)).prompt), task.rows[row][1]) for row in range(2)] == [
        (sequences[1].tolist(), ["soap"]),
        (sequences[3].tolist(), ["balm"]),
    ]
    assert len(task) == 2
    example = task.example(1, np.random.default_rng(0))
    assert (example.answer, example.ends, example.every_item) == ("balm", True, False)


def test_titles_tell_the_items_before_the_target(shop, sequences):
    titles = shop.catalog.texts("{title}")
    titles[3] = ""  # passed over
    task = TitlesToItem(shop.renderer, sequences, titles)
    for row, sequence in enumerate(task.sequences):
        for example in drawn(task, row, 10):
            (target,) = items(example.answer)
            shown = told(shop, "titles-to-item", example.prompt)["titles"].split("; ")
            before = [titles[item] for item in sequence[: sequence.tolist().index(target)] if titles[item]]
            assert shown == before[-len(shown) :]
            assert sum(task.cost[titles.index(title)] for title in shown) <= task.room or len(shown) == 1


def test_next_texts_are_of_an_item_after_the_history(shop, sequences):
    texts = item_texts(shop.catalog, shop.renderer, 12)
    texts[4] = []
    task = NextText(shop.renderer, sequences, texts)
    for row, sequence in enumerate(task.sequences):
        for example in drawn(task, row, 10):
            shown = items(example.prompt)
            after = sequence[sequence.tolist().index(shown[-1]) + 1 :]
            assert example.answer in texts[after[0]]
            assert example.ends


def test_conversations_offer_the_item_before_the_target(shop, sequences):
    requests = Requests(shop.catalog, shop.renderer, 16)
    task = Chat(shop.renderer, sequences, requests)
    assert len(task) == sum(len(sequence) > 2 for sequence in sequences)
    for row, (sequence, _) in enumerate(task.sequences):
        for example in drawn(task, row, 10):
            (target,) = items(example.answer)
            values = told(shop, "chat", example.prompt)
            assert [*items(values["history"]), *items(values["item"]), target] == _window(sequence, target, 6)
            assert set(values["query"].split()) <= set(requests.words[target])


def test_turns_become_messages(make_shop, sequences):
    shop = make_shop(chat=True)
    prompt = shop.renderer.prompt("chat", 0, history="H", item="I", query="Q")
    assert prompt == (
        "<|user|>I bought H What next?<|end|><|user|>I<|end|><|user|>Thanks, I have that one. Now I look for Q<|end|>"
        "<|assistant|>"
    )


def test_shared_codes_are_told_by_the_words_their_items_share(shop):
    task = SharedCodes(shop.renderer, shop.codes, shop.catalog.texts("{title}"))
    assert dict(task.rows) == {"<a_0>": "alba", "<a_1>": "borea", "<a_2>": "cirrus"}
    example = task.example(0, np.random.default_rng(0))
    assert "<a_0>" in example.prompt
    assert "<b_" not in example.prompt
    assert (example.answer, example.ends) == ("alba", True)


def test_intentions_are_asked_for_half_of_the_time(shop):
    requests = Requests(shop.catalog, shop.renderer, 16, {"i0": ["Something <a_1> MILD"], "i7": []})
    rng = np.random.default_rng(0)
    asked = [requests.draw(0, rng) for _ in range(400)]
    assert 150 < asked.count("something mild") < 250
    assert "something mild" not in {requests.draw(7, rng) for _ in range(50)}
