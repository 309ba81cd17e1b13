"""Titles in histories: what is written, what is learnt, and what they are worth where item tokens tell nothing."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog, Interactions
from llmrec.errors import UserError
from llmrec.model.config import BaseConfig
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.recommender import Recommender
from llmrec.tasks.config import TasksConfig, load_templates
from llmrec.tasks.examples import Sequential
from llmrec.tasks.mixture import Collator
from llmrec.tasks.render import Renderer
from llmrec.train.config import TrainConfig

TITLES = ["Alba shampoo", "", "soap <a_1><b_2> <|end|> balm", "a gentle hand balm for skin and hair", *["oil"] * 16]


@pytest.fixture
def renderer(shop) -> Renderer:
    """Prompts of the 20 items with at most 3 tokens of each title; a prompt shows 4 items of a history."""
    return Renderer(
        shop.tokenizer, shop.vocabulary, shop.codes, load_templates(), max_history=4, titles=TITLES, title_tokens=3
    )


def test_an_item_is_followed_by_the_beginning_of_its_title(renderer, shop) -> None:
    short = [renderer.clip([title], 3)[0] for title in TITLES]
    assert renderer.history([3, 1, 0]) == f"<a_0><b_3> {short[3]} <a_0><b_1><a_0><b_0> {short[0]} "
    assert renderer.history(np.array([3, 1, 0])) == renderer.history([3, 1, 0])
    assert 0 < len(shop.tokenizer(short[3])["input_ids"]) <= 3
    plain = Renderer(shop.tokenizer, shop.vocabulary, shop.codes, load_templates(), max_history=4, titles=TITLES)
    assert plain.history([3, 1, 0]) == "<a_0><b_3><a_0><b_1><a_0><b_0>"


def test_a_title_with_tokens_of_items_names_no_item(renderer, shop) -> None:
    ids = renderer.encode_prompts([renderer.history([2])])[0]
    assert [token for token in ids if token in set(shop.vocabulary.all_ids)] == (
        shop.vocabulary.token_ids(shop.codes[[2]]).ravel().tolist()
    )


@pytest.mark.parametrize("every_item", [True, False])
def test_items_are_learnt_and_titles_are_not(renderer, every_item: bool) -> None:
    sequence = np.random.default_rng(0).permutation(20)[:9]
    task, collator = Sequential(renderer, [sequence], every_item), Collator(renderer, 200, with_items=True)
    found = []
    for row in range(len(task)):
        example = task.example(row, np.random.default_rng(row))
        batch = collator([example])
        labels, items = batch["labels"][0], batch["items"][0]
        expected = renderer.vocabulary.token_ids(renderer.codes[[*example.items]]).ravel()
        assert labels[labels >= 0].tolist() == expected.tolist()
        assert items[items >= 0].tolist() == list(example.items)
        assert (items[labels >= 0].reshape(-1, 2)[:, 0].numpy() == example.items).all(), "at each item's first token"
        found += example.items
    assert found == sequence[1:].tolist()


def test_no_item_takes_more_tokens_than_is_said(renderer) -> None:
    texts = [renderer.in_history(item) for item in range(len(TITLES))]
    lengths = [len(ids) for ids in renderer.encode_prompts(texts)]
    assert max(lengths) == len(renderer.vocabulary.ids) + renderer.most_of_title


def test_a_title_comes_after_its_item_so_no_target_is_told(renderer) -> None:
    """What stands before each target is the history up to it, whatever the target is."""
    sequence = np.array([7, 0, 3, 2])
    example = Sequential(renderer, [sequence], True).example(0, np.random.default_rng(0))
    whole = example.prompt + example.answer
    for place, item in enumerate(sequence[1:], start=1):
        before, tokens, _ = whole.partition(renderer.item_text[item])
        assert tokens
        assert before.endswith(renderer.history(sequence[:place]))


COLOURS = ["red", "blue"]
CODES = np.array([[0, 0]] * 8 + [[1, 0], [2, 0]])
"""Eight items share their codes, so that only their titles tell which of two items comes next."""


@pytest.fixture(scope="module")
def colours() -> tuple[Catalog, ItemTokenizer, Interactions]:
    ids = [f"i{row}" for row in range(10)]
    titles = [f"{COLOURS[row % 2]} thing" for row in range(8)] + ["for red", "for blue"]
    catalog = Catalog.from_frame(pl.DataFrame({"item_id": ids, "title": titles}))
    vectors = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    tokenizer = ItemTokenizer(levels=2, codes=3, collisions="share").fit_embeddings(ids, vectors)
    tokenizer.codes = CODES
    rng, events = np.random.default_rng(0), []
    for user in range(80):
        colour = user % 2
        taken = [f"i{2 * int(row) + colour}" for row in rng.permutation(3)[:2]] + [f"i{8 + colour}"]
        events += [(f"u{user}", item, time) for time, item in enumerate(taken)]
    log = Interactions(pl.DataFrame(events, ["user_id", "item_id", "timestamp"], orient="row"))
    return catalog, tokenizer, log


BASE = BaseConfig(hidden_size=32, layers=1, heads=2, vocabulary=300, context=96)
TRAIN = TrainConfig(method="full", epochs=8, batch_size=16, learning_rate=5e-3, packing=False, evaluations=1)


def trained(colours: tuple[Catalog, ItemTokenizer, Interactions], title_tokens: int) -> Recommender:
    catalog, tokenizer, log = colours
    recommender = Recommender.from_base(None, tokenizer, catalog, BASE, max_history=2, title_tokens=title_tokens)
    tasks = TasksConfig({"sequential": 1}, max_history=2, max_text_tokens=1, title_tokens=title_tokens)
    return recommender.fit(log, tasks=tasks, train=TRAIN)


NEVER_SEEN = [["i6"], ["i7"], ["i6", "i6"], ["i7", "i7"]]
"""Items without an event; their titles are like those of others."""


def test_titles_tell_what_codes_do_not(colours, tmp_path: Path) -> None:
    recommender = trained(colours, title_tokens=3)
    ends = ["i8", "i9"]
    best = [answer[0].item_id for answer in recommender.recommend(histories=NEVER_SEEN, k=1, allow=ends)]
    assert best == ["i8", "i9", "i8", "i9"]
    recommender.save_pretrained(tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle/llmrec.json").read_text())["title_tokens"] == 3
    loaded = Recommender.from_pretrained(tmp_path / "bundle")
    assert loaded.recommend(histories=NEVER_SEEN, k=3) == recommender.recommend(histories=NEVER_SEEN, k=3)


def test_without_titles_items_with_the_same_codes_are_the_same(colours) -> None:
    red, blue, *_ = trained(colours, title_tokens=0).recommend(histories=NEVER_SEEN, k=2, allow=["i8", "i9"])
    assert [answer.item_id for answer in red] == [answer.item_id for answer in blue]


def test_a_model_is_trained_as_it_was_made(colours) -> None:
    catalog, tokenizer, log = colours
    recommender = Recommender.from_base(None, tokenizer, catalog, BASE)
    with pytest.raises(UserError, match="title_tokens 5: the model was made for 0; make it with title_tokens=5"):
        recommender.fit(log, tasks=TasksConfig({"sequential": 1}, title_tokens=5))
    silent = Catalog.from_frame(catalog.frame.with_columns(title=pl.lit("")))
    recommender = Recommender.from_base(None, tokenizer, silent, BASE, title_tokens=5)
    with pytest.raises(UserError, match="title_tokens 5: no item has a title; set it to 0"):
        recommender.fit(log)
    recommender = Recommender.from_base(None, tokenizer, catalog, BASE, title_tokens=9)
    with pytest.raises(UserError, match=r"max_history 20, tasks.title_tokens 9 and .* context is 96; lower them"):
        recommender.fit(log)


def test_an_export_says_what_a_history_says_of_an_item(colours, tmp_path: Path) -> None:
    from llmrec.serve.export import export

    catalog, tokenizer, _ = colours
    recommender = Recommender.from_base(None, tokenizer, catalog, BASE, title_tokens=3)
    export(recommender, "vllm", tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/items.jsonl").read_text().splitlines()]
    assert [line["in_history"] for line in lines] == [recommender.renderer.in_history(row) for row in range(10)]
    assert lines[1]["in_history"].startswith(f"{lines[1]['text']} blue")


def test_new_and_changed_titles_are_read_at_once(colours) -> None:
    catalog, tokenizer, _ = colours
    recommender = Recommender.from_base(None, tokenizer, catalog, BASE, title_tokens=9)
    assert recommender.renderer.in_history(1).endswith(" blue thing ")
    items = Catalog.from_frame(pl.DataFrame({"item_id": ["i1", "new"], "title": ["for red", "for blue"]}))
    recommender.add_items(items, np.ones((2, 4), np.float32), if_exists="update")
    told = [recommender.ranker.renderer.in_history(recommender.catalog.index[item]) for item in ("i1", "new")]
    assert [text.partition("> ")[2] for text in told] == ["for red ", "for blue "]
    recommender.remove_items(["i0"])
    assert recommender.ranker.renderer.in_history(0) == told[0]
