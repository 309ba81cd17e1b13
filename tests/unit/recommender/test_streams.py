"""A planted shop with two streams: what behaviour decides, what the texts decide, and what a bundle keeps of both.

27 items are of three kinds by their texts and, crossed with these, of three kinds by behaviour: users enter and browse
one kind of behaviour, and an item alone is followed by the closing item of that kind. Nine items were never alone. A
kind of text of its own, which nobody browses, has a closing item too; its last two items are cold.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog, Interactions
from llmrec.errors import UserError
from llmrec.model.config import BaseConfig
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.recommender import Recommender
from llmrec.tasks.config import TasksConfig
from llmrec.train.config import TrainConfig

TEXT, KIND = np.repeat(np.arange(3), 9), np.tile(np.repeat(np.arange(3), 3), 3)
CLOSERS, OWN, LAST, DOOR = np.arange(27, 30), np.arange(30, 36), 36, 37
HELD = np.arange(0, 27, 3)
COLD = OWN[-2:]
IDS = [f"i{row}" for row in range(38)]
SHOP = {"item_id": IDS, "title": [f"thing {row}" for row in range(38)]}


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def vectors(rng: np.random.Generator) -> np.ndarray:
    """Of texts: one direction for each kind, each closing item of behaviour near the others."""
    vectors = rng.normal(scale=0.1, size=(38, 8)).astype(np.float32)
    vectors[np.arange(27), TEXT] += 1
    vectors[CLOSERS, 4] += 1
    vectors[OWN, 5] += 1
    vectors[LAST, 6] += 1
    vectors[DOOR, 7] += 1
    return vectors


@pytest.fixture(scope="module")
def trained(rng: np.random.Generator, vectors: np.ndarray) -> Recommender:
    sequences = [np.append(DOOR, rng.permutation(np.flatnonzero(user % 3 == KIND))[:6]) for user in range(60)]
    seen = np.setdiff1d(np.arange(27), HELD)
    sequences += [np.array([item, CLOSERS[KIND[item]]]) for item in seen for _ in range(3)]
    sequences += [np.array([item, LAST]) for item in OWN[:-2] for _ in range(4)]
    events = [(f"u{u}", IDS[item], time) for u, own in enumerate(sequences) for time, item in enumerate(own)]
    log = Interactions(pl.DataFrame(events, ["user_id", "item_id", "timestamp"], orient="row"))
    items = ItemTokenizer(levels=2, codes=8, behaviour=12).fit_embeddings(IDS, vectors, log=log)
    base = BaseConfig(hidden_size=32, layers=2, heads=2, vocabulary=300, context=128)
    recommender = Recommender.from_base(None, items, Catalog.from_frame(pl.DataFrame(SHOP)), base, max_history=6)
    train = TrainConfig(
        method="full",
        epochs=60,
        batch_size=8,
        learning_rate=2e-3,
        packing=False,
        evaluations=1,
        seed=1,
        dtype="float32",
    )
    return recommender.fit(log, tasks=TasksConfig({"sequential": 1}, max_history=6, max_text_tokens=1), train=train)


def firsts(recommender: Recommender, name: str, items: np.ndarray) -> np.ndarray:
    """The best item after each of `items` alone."""
    ranker = recommender.ranked_by(name)
    return ranker.rank([ranker.prompt_ids([item]) for item in items], 1).items[:, 0]


def test_behaviour_decides_what_the_texts_mistake(trained: Recommender) -> None:
    """The first code of behaviour is the kind; that of the texts says nothing of it, and later ones are learnt by
    heart."""
    right = {n: int((firsts(trained, n, HELD) == CLOSERS[KIND[HELD]]).sum()) for n in ("beam", "behaviour", "streams")}
    assert right["behaviour"] >= 6, right
    assert right["beam"] < right["behaviour"], right
    assert right["beam"] < right["streams"], right


def test_the_texts_decide_where_behaviour_is_silent(trained: Recommender) -> None:
    assert not trained.item_tokenizer.behaviour.known[COLD].any()
    assert trained.ranker.method.name == "streams", "auto, before any calibration"
    assert firsts(trained, "streams", COLD).tolist() == firsts(trained, "beam", COLD).tolist()
    assert LAST in firsts(trained, "streams", COLD)


def test_cold_items_are_ranked_by_the_texts(trained: Recommender) -> None:
    answer = trained.recommend([IDS[0]], k=37)
    assert {item.item_id for item in answer} == set(IDS[1:])


def test_a_bundle_answers_the_same(trained: Recommender, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path / "bundle")
    loaded = Recommender.from_pretrained(tmp_path / "bundle")
    histories = [[IDS[item]] for item in (*HELD, *COLD)]
    assert loaded.ranker.method.name == "streams"
    assert loaded.recommend(histories=histories, k=5) == trained.recommend(histories=histories, k=5)
    np.testing.assert_array_equal(loaded.item_tokenizer.behaviour.codes, trained.item_tokenizer.behaviour.codes)


def test_added_items_come_out_and_removed_ones_do_not(trained: Recommender, vectors: np.ndarray) -> None:
    store = trained.store
    changed = trained.with_store(
        store.with_items(Catalog.from_frame(pl.DataFrame({"item_id": ["new"], "title": ["a new thing"]})), vectors[:1])
    )
    before, after = trained.recommend([IDS[5]], k=37), changed.recommend([IDS[5]], k=38)
    assert [item.item_id for item in after if item.item_id != "new"] == [item.item_id for item in before]
    assert "new" in {item.item_id for item in after}
    smaller = trained.with_store(store.without_items([IDS[0], "i30"]))
    left = [item.item_id for item in smaller.recommend([IDS[5]], k=35)]
    assert set(left) == set(IDS) - {IDS[0], IDS[5], "i30"}


def test_rows_of_both_sets_are_there(trained: Recommender) -> None:
    renderer = trained.renderer
    rows = trained.model.get_input_embeddings().weight
    assert len(rows) == len(trained.tokenizer)
    assert len(np.unique(renderer.new_ids)) == sum(renderer.codes_of_both.level_sizes)
    assert renderer.behaviour.vocabulary.names[0][0] == "<behaviour_a_0>"


def test_other_tokenizers_have_no_second_stream(trained: Recommender, vectors: np.ndarray) -> None:
    plain = ItemTokenizer(levels=2, codes=8).fit_embeddings(IDS, vectors)
    base = BaseConfig(hidden_size=32, layers=1, heads=2, vocabulary=300, context=128)
    recommender = Recommender.from_base(None, plain, trained.catalog, base)
    assert recommender.renderer.behaviour is None
    with pytest.raises(UserError, match=r"decode\.ranking streams: this bundle has no codes of behaviour"):
        recommender.ranked_by("streams")
