"""A shop where behaviour groups the items in a way that the texts do not, and a language model that has learnt it."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from llmrec.data import Catalog, Interactions
from llmrec.decode.config import DecodeConfig
from llmrec.errors import UserError
from llmrec.model.config import BaseConfig
from llmrec.preference.examples import training_examples
from llmrec.quantize.config import RefineConfig
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.further import further
from llmrec.recommender.recommender import Recommender
from llmrec.recommender.refine import hidden_states, refine_tokenizer
from llmrec.tasks.config import TasksConfig
from llmrec.train.config import TrainConfig

ITEMS, DIMS = 48, 8
KIND, GROUP = np.arange(ITEMS) % 4, np.arange(ITEMS) // 4 % 4
"""By texts, and by behaviour: neither says anything of the other."""
IDS = [f"i{row}" for row in range(ITEMS)]
CATALOG = Catalog.from_frame(pl.DataFrame({"item_id": IDS, "title": [f"thing {row}" for row in range(ITEMS)]}))
BASE = BaseConfig(hidden_size=32, layers=2, heads=2, vocabulary=300, context=128)
TASKS = TasksConfig({"sequential": 1}, max_history=6, max_text_tokens=1)
SETTINGS = RefineConfig(1, sequence_item=1.0, preference_semantic=1.0, tokenizer_epochs=150, learning_rate=3e-3)


def train(epochs: int) -> TrainConfig:
    return TrainConfig(epochs=epochs, batch_size=16, packing=False, evaluations=1, seed=1, dtype="float32")


def together(codes: np.ndarray) -> tuple[float, float]:
    """The share of the pairs of items that have the same first code, within groups of behaviour and across them."""
    alike, same = codes[:, 0, None] == codes[:, 0], GROUP[:, None] == GROUP
    return float(alike[np.triu(same, 1)].mean()), float(alike[~same].mean())


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """One direction per kind, and one, much weaker, per group."""
    x = np.random.default_rng(0).normal(scale=0.05, size=(ITEMS, DIMS))
    x[np.arange(ITEMS), KIND] += 1
    x[np.arange(ITEMS), 4 + GROUP] += 0.3
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def log() -> Interactions:
    """Users who take six items of one group."""
    rng, events = np.random.default_rng(0), []
    for user in range(80):
        own = rng.permutation(np.flatnonzero(user % 4 == GROUP))[:6]
        events += [(f"u{user:03d}", IDS[item], time) for time, item in enumerate(own)]
    return Interactions(pl.DataFrame(events, ["user_id", "item_id", "timestamp"], orient="row"))


@pytest.fixture(scope="module")
def trained(log: Interactions, vectors: np.ndarray) -> Recommender:
    items = ItemTokenizer(levels=2, codes=4).fit_embeddings(IDS, vectors)
    decode = DecodeConfig(dtype="float32")
    untrained = Recommender.from_base(None, items, CATALOG, BASE, max_history=6, decode_config=decode)
    return untrained.fit(log, tasks=TASKS, train=train(25))


def test_the_states_are_those_that_predict_the_first_code(trained: Recommender, log: Interactions) -> None:
    examples = training_examples(log.sequences(CATALOG).train_sequences()).sample(9, seed=0)
    states = hidden_states(trained, examples)
    assert states.shape == (9, 32)
    for history, state in zip(examples.histories, states, strict=True):
        prompt = trained.ranker.prompt_ids(history)
        with torch.inference_mode():
            hidden = trained.model.get_decoder()(torch.tensor([prompt])).last_hidden_state[0, -1]
        np.testing.assert_allclose(state, hidden, atol=1e-4)


def test_refined_and_trained_on_it_is_a_bundle_as_any_other(
    trained: Recommender, log: Interactions, vectors: np.ndarray, tmp_path: Path
) -> None:
    first = trained.item_tokenizer
    second = refine_tokenizer(trained, first, log, vectors, SETTINGS)
    within, across = together(first.codes)
    assert max(within, across) < 0.3
    within, across = together(second.codes)
    assert within > 0.7
    assert across < 0.5
    assert second.level_sizes == first.level_sizes
    trained.save_pretrained(tmp_path / "first")
    more = further(tmp_path / "first", second, CATALOG, BASE, False, TasksConfig(max_history=6))
    more.fit(log, tasks=TASKS, train=train(40)).save_pretrained(tmp_path / "second")
    loaded = Recommender.from_pretrained(tmp_path / "second")
    np.testing.assert_array_equal(loaded.item_tokenizer.codes, second.codes)
    histories = [[IDS[item] for item in np.flatnonzero(group == GROUP)[:3]] for group in range(4)]
    answers = loaded.recommend(histories=histories, k=5)
    assert answers == more.recommend(histories=histories, k=5)
    right = [GROUP[int(item.item_id[1:])] == group for group, answer in enumerate(answers) for item in answer]
    assert np.mean(right) > 0.3, "by chance 0.2: the codes are new to the language model"
    codes = loaded.item_tokenizer.codes.copy()
    new = Catalog.from_frame(pl.DataFrame({"item_id": ["new"], "title": ["a new thing"]}))
    loaded.add_items(new, vectors[:1] + 0.01)
    np.testing.assert_array_equal(loaded.item_tokenizer.codes[:-1], codes)
    first_code = second.quantizer.encode(vectors[:1] + 0.01)[0, 0]
    assert loaded.item_tokenizer.codes[-1, 0] == first_code
    assert "new" in {item.item_id for item in loaded.recommend(histories[0], k=ITEMS)}


def test_a_log_without_a_next_item_is_refused(trained: Recommender, vectors: np.ndarray) -> None:
    alone = Interactions(pl.DataFrame({"user_id": ["u"], "item_id": [IDS[0]], "timestamp": [0]}))
    with pytest.raises(UserError, match=r"refine\.rounds 1: no user has two"):
        refine_tokenizer(trained, trained.item_tokenizer, alone, vectors, SETTINGS)
