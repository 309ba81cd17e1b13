"""A user's tokens: which codes they have, which events they are made of, and what they are worth."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from llmrec.data import Catalog, EvalExamples, Interactions
from llmrec.errors import UserError
from llmrec.model.config import BaseConfig
from llmrec.quantize.features import user_codes
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.recommender import Recommender
from llmrec.tasks.config import TasksConfig, load_templates
from llmrec.tasks.examples import Sequential
from llmrec.tasks.mixture import Collator, validation_examples
from llmrec.tasks.render import Renderer
from llmrec.tasks.users import UserTokens
from llmrec.train.config import TrainConfig


def fitted(vectors: np.ndarray, **settings: object) -> ItemTokenizer:
    return ItemTokenizer(**settings).fit_embeddings([f"i{row}" for row in range(len(vectors))], vectors)


@pytest.fixture
def renderer(shop) -> Renderer:
    """Prompts of the 20 items with tokens of users; a prompt shows 4 items of a history."""
    items = fitted(np.random.default_rng(0).normal(size=(20, 6)), levels=2, codes=4, collisions="share")
    items.codes = shop.codes  # the codes that the shop's prompts show
    items.codes = np.minimum(items.codes, 3)
    users = UserTokens.add_to(shop.tokenizer, items)
    return Renderer(shop.tokenizer, shop.vocabulary, shop.codes, load_templates(), max_history=4, users=users)


def test_a_user_has_the_codes_of_the_mean_of_what_the_items_codes_stand_for(renderer) -> None:
    items, history = renderer.users.items, [3, 17, 3, 8]
    mean = items.quantizer.decode(items.codes[history]).mean(axis=0)
    a, b = items.quantizer.encode(mean[None])[0]
    assert renderer.users.text(history) == f"<user_a_{a}><user_b_{b}>"
    assert renderer.users.text([]) == ""
    assert renderer.history([]) == ""


def test_vectors_that_the_codes_keep_give_the_codes_of_uist() -> None:
    """With a code for each item nothing of the vectors is lost, and the codes are those of `export-features`."""
    vectors = np.random.default_rng(1).normal(size=(30, 5)).astype(np.float32)
    items, histories = fitted(vectors, levels=1, codes=30), [np.array([2, 9]), np.array([4]), np.arange(30)]
    users = UserTokens.add_to(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())), items, "x")
    expected = user_codes(histories, vectors, items.quantizer, 30)
    assert [users.text(history) for history in histories] == [f"<user_xa_{code}>" for code in expected[:, 0]]


def test_tokens_of_users_are_no_items_tokens(renderer, shop) -> None:
    users, items = renderer.users.vocabulary.all_ids, renderer.vocabulary.all_ids
    assert not set(users) & set(items)
    assert sorted(renderer.new_ids) == sorted([*users, *items])
    assert renderer.clean("a <user_a_1> b") == "a b", "a request can't name them"


def test_without_them_prompts_are_as_before(renderer, shop) -> None:
    off = Renderer(shop.tokenizer, shop.vocabulary, shop.codes, load_templates(), max_history=4)
    for every_item in (True, False):
        task = Sequential(off, shop.sequences, every_item)
        for row in range(len(task)):
            example = task.example(row, np.random.default_rng(row))
            assert "user_" not in example.prompt
            assert example.given == 1
    history = np.arange(7)
    assert off.history(history, known=history[:2]) == off.history(history[3:])
    assert renderer.history(history) == renderer.users.text(history) + off.history(history)


def leaks(renderer: Renderer, sequence: np.ndarray, every_item: bool) -> Iterator[tuple[str, str, int]]:
    """Per example, the user's tokens in it, those of the events before its first target, and that target's place."""
    task = Sequential(renderer, [sequence], every_item)
    for row in range(len(task)):
        for seed in range(30):
            example = task.example(row, np.random.default_rng(seed))
            first = int(task.ends[row]) - len(example.items)
            assert example.items == tuple(sequence[first : first + len(example.items)])
            assert example.events == tuple(range(first - 1, first - 1 + len(example.items)))
            shown = "".join(f"<a_{a}><b_{b}>" for a, b in renderer.codes[sequence[: task.ends[row] - 1][-4:]])
            before, history, _ = example.prompt.partition(shown)
            assert history
            yield "<user_" + before.partition("<user_")[2], renderer.users.text(sequence[:first]), first


@pytest.mark.parametrize("every_item", [True, False])
def test_a_users_tokens_know_no_target(renderer, every_item: bool) -> None:
    """Whatever comes from the first target on, the tokens are those of the events before it; each place is drawn."""
    firsts = set()
    for seed in range(5):
        for tokens, expected, first in leaks(renderer, np.random.default_rng(seed).permutation(20)[:12], every_item):
            assert tokens == expected
            firsts.add(first)
    assert firsts == set(range(1, 12))


def test_items_before_the_first_target_are_not_learnt(renderer) -> None:
    """The labels of a batch are the tokens of exactly the targets, wherever the first one lies."""
    task, collator = Sequential(renderer, [np.arange(12)], every_item=True), Collator(renderer, 200, with_items=True)
    for seed in range(20):
        example = task.example(1, np.random.default_rng(seed))
        batch = collator([example])
        labels = batch["labels"][0]
        assert (
            labels[labels >= 0].tolist()
            == renderer.vocabulary.token_ids(renderer.codes[[*example.items]]).ravel().tolist()
        )
        assert batch["items"][batch["items"] >= 0].tolist() == list(example.items)


def test_evaluation_and_requests_use_the_whole_history(renderer, shop) -> None:
    history = np.arange(9)
    [example] = validation_examples(renderer, EvalExamples(np.array([9], np.int32), [history], np.array([10])))
    assert renderer.users.text(history) + renderer.history(history, known=[]) in example.prompt


COMMON, TARGETS = "i10", ("i4", "i9")
"""Two kinds of users take items of their own kind, then all take i10, and then the one that closes their kind."""


@pytest.fixture(scope="module")
def kinds() -> tuple[Catalog, ItemTokenizer, Interactions]:
    rng = np.random.default_rng(0)
    vectors = rng.normal(scale=0.05, size=(11, 4)).astype(np.float32)
    vectors[:5, 0] += 1
    vectors[5:10, 1] += 1
    vectors[10, 2] += 1
    events = []
    for user in range(60):
        first = 5 * (user % 2)
        own = [f"i{first + row}" for row in rng.permutation(4)[: rng.integers(2, 5)]]
        events += [(f"u{user}", item, time) for time, item in enumerate([*own, COMMON, f"i{first + 4}"])]
    log = Interactions(pl.DataFrame(events, ["user_id", "item_id", "timestamp"], orient="row"))
    ids = [f"i{row}" for row in range(11)]
    catalog = Catalog.from_frame(pl.DataFrame({"item_id": ids, "title": [f"thing {row}" for row in range(11)]}))
    tokenizer = fitted(vectors, levels=2, codes=3)
    return catalog, tokenizer, log


def trained(kinds: tuple[Catalog, ItemTokenizer, Interactions], user_tokens: bool) -> Recommender:
    catalog, tokenizer, log = kinds
    base = BaseConfig(hidden_size=32, layers=1, heads=2, vocabulary=300, context=64)
    recommender = Recommender.from_base(None, tokenizer, catalog, base, max_history=1, user_tokens=user_tokens)
    tasks = TasksConfig({"sequential": 1}, max_history=1, max_text_tokens=1, user_tokens=user_tokens)
    train = TrainConfig(method="full", epochs=6, batch_size=16, learning_rate=5e-3, packing=False, evaluations=1)
    return recommender.fit(log, tasks=tasks, train=train)


NEW_USERS = [["i0", "i3", COMMON], ["i7", "i8", "i5", COMMON], ["i2", COMMON], ["i6", COMMON]]


def test_new_users_are_told_apart_by_events_that_the_prompt_no_longer_shows(kinds, tmp_path: Path) -> None:
    """A prompt shows i10 alone. No user of the log has a history of these; a saved bundle answers the same."""
    recommender = trained(kinds, user_tokens=True)
    best = [answer[0].item_id for answer in recommender.recommend(histories=NEW_USERS, k=1)]
    assert best == [TARGETS[0], TARGETS[1], TARGETS[0], TARGETS[1]]
    assert [recommender.recommend(history, k=1)[0].item_id for history in NEW_USERS] == best
    recommender.save_pretrained(tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle/llmrec.json").read_text())["user_tokens"] is True
    loaded = Recommender.from_pretrained(tmp_path / "bundle")
    assert loaded.recommend(histories=NEW_USERS, k=3) == recommender.recommend(histories=NEW_USERS, k=3)


def test_without_them_the_same_users_get_the_same_answer(kinds) -> None:
    recommender = trained(kinds, user_tokens=False)
    answers = recommender.recommend(histories=NEW_USERS, k=1, include_seen=True)
    assert len({answer[0].item_id for answer in answers}) == 1


def test_rows_begin_as_those_of_the_items_tokens(kinds) -> None:
    catalog, tokenizer, _ = kinds
    base = BaseConfig(hidden_size=32, layers=1, heads=2, vocabulary=300, context=64)
    on, off = (Recommender.from_base(None, tokenizer, catalog, base, user_tokens=wish) for wish in (True, False))
    rows, before = (each.model.get_input_embeddings().weight for each in (on, off))
    assert (rows[: len(before)] == before).all()
    vocabulary, users = on.renderer.vocabulary, on.renderer.users.vocabulary
    assert (rows[users.all_ids] == rows[np.concatenate(vocabulary.ids[:2])]).all()
    assert len(rows) == len(before) + 6


def test_a_model_is_trained_as_it_was_made(kinds) -> None:
    catalog, tokenizer, log = kinds
    base = BaseConfig(hidden_size=32, layers=1, heads=2, vocabulary=300, context=64)
    recommender = Recommender.from_base(None, tokenizer, catalog, base)
    with pytest.raises(UserError, match="user_tokens True: the model has no tokens of users"):
        recommender.fit(log, tasks=TasksConfig({"sequential": 1}, user_tokens=True))


def test_an_export_says_that_its_servers_know_no_users(kinds, tmp_path: Path) -> None:
    from llmrec.serve.export import export

    catalog, tokenizer, _ = kinds
    base = BaseConfig(hidden_size=32, layers=1, heads=2, vocabulary=300, context=64)
    recommender = Recommender.from_base(None, tokenizer, catalog, base, user_tokens=True)
    with pytest.raises(UserError, match="vllm: prompts begin with tokens of the user"):
        export(recommender, "vllm", tmp_path / "out")
