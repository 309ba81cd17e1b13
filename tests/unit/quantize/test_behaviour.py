"""The second semantic IDs: what they are made of, which items have none, and that they stay with their items."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec.data import Interactions
from llmrec.errors import UserError
from llmrec.quantize.config import LossConfig, RQVAEConfig, TokenizeConfig
from llmrec.quantize.tokenizer import ItemTokenizer

IDS = [f"i{row}" for row in range(24)]
GROUPS = np.arange(24) % 4
"""Users take items of one group; the last two items are taken by nobody."""


@pytest.fixture(scope="module")
def log() -> Interactions:
    rng, events = np.random.default_rng(0), []
    for user in range(80):
        own = rng.permutation(np.flatnonzero(GROUPS[:22] == user % 4))[:4]
        events += [(f"u{user}", IDS[item], time) for time, item in enumerate(own)]
    return Interactions(pl.DataFrame(events, ["user_id", "item_id", "timestamp"], orient="row"))


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Of texts that say nothing of the groups."""
    return np.random.default_rng(1).normal(size=(24, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(log: Interactions, vectors: np.ndarray) -> ItemTokenizer:
    return ItemTokenizer(levels=2, codes=4, behaviour=8).fit_embeddings(IDS, vectors, log=log)


def test_items_that_are_taken_together_share_their_first_code(fitted: ItemTokenizer) -> None:
    codes = fitted.behaviour.codes
    firsts = [set(codes[:22, 0][GROUPS[:22] == group].tolist()) for group in range(4)]
    assert [len(own) for own in firsts] == [1, 1, 1, 1]
    assert len(set.union(*firsts)) == 4
    assert any(len(set(fitted.codes[:22, 0][GROUPS[:22] == group].tolist())) > 1 for group in range(4)), "texts differ"


def test_items_nobody_took_have_none_and_all_others_one_of_their_own(fitted: ItemTokenizer) -> None:
    second = fitted.behaviour
    assert second.known.tolist() == [True] * 22 + [False] * 2
    assert (second.codes[22:] == -1).all()
    assert len(np.unique(second.codes[:22], axis=0)) == 22
    assert (second.codes[:22] < second.level_sizes).all()
    assert (second.codes[:22] >= 0).all()


def test_codes_of_behaviour_learn_from_no_texts(log: Interactions, vectors: np.ndarray) -> None:
    network = RQVAEConfig(hidden=[8], latent=4, epochs=5, loss=LossConfig(words=1.0))
    tokenizer = ItemTokenizer("rq-vae", levels=2, codes=4, behaviour=8, rq_vae=network)
    texts = [f"group{group}" for group in GROUPS]
    assert tokenizer.fit_embeddings(IDS, vectors, log=log, texts=texts).behaviour.known.sum() == 22


def test_without_the_option_nothing_changes(fitted: ItemTokenizer, log: Interactions, vectors: np.ndarray) -> None:
    plain = ItemTokenizer(levels=2, codes=4).fit_embeddings(IDS, vectors, log=log)
    assert plain.behaviour is None
    np.testing.assert_array_equal(plain.codes, fitted.codes)
    key = TokenizeConfig().cache_key()
    assert "behaviour" not in key
    assert TokenizeConfig(behaviour=8).cache_key() == {**key, "behaviour": 8}


def test_they_are_saved_with_the_others(fitted: ItemTokenizer, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    loaded = ItemTokenizer.load(tmp_path)
    np.testing.assert_array_equal(loaded.behaviour.codes, fitted.behaviour.codes)
    assert loaded.behaviour.level_sizes == fitted.behaviour.level_sizes
    assert loaded.config.behaviour == 8
    header = json.loads((tmp_path / "quantizer.json").read_text())
    (tmp_path / "quantizer.json").write_text(json.dumps(header | {"behaviour": [4, 3, 9]}))
    with pytest.raises(UserError, match=r"not a saved item tokenizer .codes of behaviour outside levels of"):
        ItemTokenizer.load(tmp_path)
    del header["behaviour"]  # as of an older version
    (tmp_path / "quantizer.json").write_text(json.dumps(header))
    assert ItemTokenizer.load(tmp_path).behaviour is None


def test_new_items_have_none_and_removed_ones_take_theirs_along(fitted: ItemTokenizer) -> None:
    grown = fitted.with_items(["new"], np.ones((1, 6), np.float32))
    np.testing.assert_array_equal(grown.behaviour.codes[:24], fitted.behaviour.codes)
    assert (grown.behaviour.codes[24] == -1).all()
    smaller = grown.without_items(["i0", "i7"])
    stays = np.setdiff1d(np.arange(25), [0, 7])
    np.testing.assert_array_equal(smaller.behaviour.codes, grown.behaviour.codes[stays])


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        ({"behaviour": 8}, False, r"tokenize\.behaviour 8 makes codes of the training log; pass log="),
        ({"behaviour": 24}, True, r"tokenize\.behaviour 24: 24 items have .* of fewer dimensions; set it below 24"),
        ({"behaviour": 8, "codes": 23}, True, r"tokenize\.behaviour 8: .*tokenize\.codes"),
    ],
)
def test_what_can_not_be_made_is_one_line(log, vectors, settings, given, words) -> None:
    tokenizer = ItemTokenizer(**{"levels": 2, "codes": 4} | settings)
    with pytest.raises(UserError, match=words) as error:
        tokenizer.fit_embeddings(IDS, vectors, log=log if given else None)
    assert "\n" not in str(error.value)
