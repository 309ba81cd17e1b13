"""The task sequential in two streams: whose rows there are, in which codes they are written, and what is learnt."""

import numpy as np
import pytest
from second_stream import second_renderer

from llmrec.tasks.config import TasksConfig
from llmrec.tasks.examples import Sequential
from llmrec.tasks.mixture import Collator, build_tasks
from llmrec.tasks.render import Renderer
from llmrec.tasks.streams import BothStreams

WITHOUT = np.array([4, 12, 19])


@pytest.fixture
def renderer(shop) -> Renderer:
    """Three of the 20 items have no second codes."""
    second = second_renderer(shop, WITHOUT)
    return Renderer(shop.tokenizer, shop.vocabulary, shop.codes, shop.renderer.templates, 4, behaviour=second)


@pytest.mark.parametrize("supervise", ["every-item", "target"])
def test_the_rows_are_those_of_both(renderer, shop, supervise) -> None:
    config = TasksConfig({"sequential": 1}, max_history=4, supervise=supervise)
    task = build_tasks(config, shop.catalog, shop.sequences, renderer)["sequential"]
    assert isinstance(task, BothStreams)
    every = supervise == "every-item"
    texts = Sequential(renderer, shop.sequences, every)
    left = [sequence[~np.isin(sequence, WITHOUT)] for sequence in shop.sequences]
    behaviour = Sequential(renderer.behaviour, left, every)
    assert len(task) == len(texts) + len(behaviour)
    assert sum(map(len, left)) < sum(map(len, shop.sequences))
    for row in range(len(task)):
        second = row >= len(texts)
        own = behaviour.example(row - len(texts), rng(row)) if second else texts.example(row, rng(row))
        example = task.example(row, rng(row))
        assert (example.prompt, example.answer, example.given) == (own.prompt, own.answer, own.given)
        assert ("<behaviour_" in example.prompt + example.answer) == second
        assert ("<a_" in example.prompt + example.answer) != second
        assert (example.items, example.events) == (((), ()) if second else (own.items, own.events))
        assert task.length(row) == (behaviour.length(row - len(texts)) if second else texts.length(row))


def rng(row: int) -> np.random.Generator:
    return np.random.default_rng(row)


def test_every_item_of_a_history_is_learnt_in_the_codes_of_its_stream(renderer) -> None:
    """With other numbers of levels, too: the labels are the tokens of all items but the first."""
    sequence = np.array([3, 8, 0, 15, 7])
    task = BothStreams.of(renderer, renderer.behaviour, [sequence], every_item=True)
    batch = Collator(renderer, 160, with_items=True)([task.example(row, rng(row)) for row in range(2)])
    for row, stream in enumerate((renderer, renderer.behaviour)):
        labels = batch["labels"][row]
        assert labels[labels >= 0].tolist() == stream.vocabulary.token_ids(stream.codes[sequence[1:]]).ravel().tolist()
    assert batch["items"][0][batch["items"][0] >= 0].tolist() == sequence[1:].tolist()
    assert (batch["items"][1] == -1).all()


def test_items_without_codes_are_not_written(renderer) -> None:
    second = renderer.behaviour
    assert second.history([4, 12]) == ""
    assert second.history([4, 3, 12]) == second.history([3]) != ""


def test_tokens_of_both_are_new_and_distinct(renderer, shop) -> None:
    both = renderer.codes_of_both
    assert both.level_sizes == [4, 5, 4, 5]
    assert both.all_ids.tolist() == [*shop.vocabulary.all_ids, *renderer.behaviour.vocabulary.all_ids]
    assert len(set(renderer.new_ids.tolist())) == 18
    assert renderer.clean("a <behaviour_a_1> b") == "a b", "a request can't name them"
    assert shop.renderer.codes_of_both.all_ids.tolist() == shop.vocabulary.all_ids.tolist()
