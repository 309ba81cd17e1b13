"""A run that goes on from a bundle keeps its tokens, codes, rows and head, and says what does not fit."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from llmrec.config import Config
from llmrec.continued import (
    bundle_of,
    check_bundle,
    going_on,
    kept_encoder,
    kept_tokenizer,
    recommender_to_train,
    user_tokens,
    with_kept_codes,
)
from llmrec.data import Catalog, DataConfig, Interactions
from llmrec.data.filters import Summary
from llmrec.data.prepare import Prepared
from llmrec.embed import EmbedConfig, embed
from llmrec.errors import UserError
from llmrec.index.dense import DenseIndex
from llmrec.model.adapter import DenseHead
from llmrec.model.config import BaseConfig, DenseConfig
from llmrec.quantize.config import TokenizeConfig
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.recommender import Recommender
from llmrec.stage import Stage
from llmrec.tasks.config import TasksConfig
from llmrec.train.config import TrainConfig

OLD, EMBED = 16, EmbedConfig(encoder="tfidf-svd", dim=8)
TINY = BaseConfig(hidden_size=32, layers=1, heads=4, vocabulary=320, context=160)


@pytest.fixture(scope="module")
def folder(tiny_catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of an untrained model that knows the first 16 items; it has a dense head of 8 dimensions."""
    known = tiny_catalog.take_rows(pl.Series(range(OLD)))
    tokenizer = ItemTokenizer(levels=2, codes=4, embed=EMBED).fit(known)
    made = Recommender.from_base(None, tokenizer, config=TINY)
    torch.manual_seed(0)
    dense = DenseIndex.of(DenseHead(32, 8, dim=8), tokenizer.embed(known))
    made.store = replace(made.store, dense=dense, train_counts=np.arange(OLD))
    saved = tmp_path_factory.mktemp("continued") / "model"
    made.save_pretrained(saved)
    return saved


def config(folder: Path, **sections: object) -> Config:
    """One that goes on from the bundle."""
    own = {"embed": EMBED, "tokenize": TokenizeConfig(levels=2, codes=4), "base": BaseConfig(model=str(folder))}
    train = TrainConfig(epochs=1, evaluations=1, dense=DenseConfig(weight=1, dim=8))
    return Config(**(own | {"train": train, "tasks": TasksConfig(max_history=4)} | sections))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def prepared(tiny_catalog: Catalog) -> Prepared:
    """The catalogue in another order: without items 0 and 1, with four items that the bundle does not know."""
    catalog = tiny_catalog.take_rows(pl.Series([19, *range(2, 19)]))
    rng = np.random.default_rng(0)
    events = [
        (f"u{user}", catalog.ids[item], step) for user in range(12) for step, item in enumerate(rng.permutation(18)[:6])
    ]
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    return Prepared(catalog, Interactions.from_frame(frame).leave_one_out(), Summary())


@pytest.fixture(scope="module")
def tokenizer(folder: Path, prepared: Prepared) -> ItemTokenizer:
    kept = kept_tokenizer(config(folder))
    assert kept is not None
    embeddings = embed(prepared.catalog, EMBED, fitted=kept_encoder(config(folder)))
    return with_kept_codes(kept, embeddings, prepared)


def test_items_that_the_bundle_knows_keep_their_semantic_ids(
    folder: Path, prepared: Prepared, tokenizer: ItemTokenizer
) -> None:
    old = ItemTokenizer.load(folder / "quantizer")
    before = dict(zip(old.item_ids, old.codes.tolist(), strict=True))
    after = dict(zip(tokenizer.item_ids, tokenizer.codes.tolist(), strict=True))
    assert list(after) == prepared.catalog.ids
    new = set(after) - set(before)
    assert len(new) == 4
    assert all(after[item] == before[item] for item in after if item not in new)
    # A new item takes no semantic ID of the bundle, not even that of an item which has left the catalogue.
    assert not {tuple(after[item]) for item in new} & {tuple(codes) for codes in before.values()}
    assert tokenizer.level_sizes == old.level_sizes
    # As `add-items` places it: the codes of the bundle's quantizer for the vector of the bundle's encoder.
    row = next(row for row, item in enumerate(after) if item in new)
    first = prepared.catalog.take_rows(pl.Series([row]))
    assert old.with_items(first.ids, old.embed(first)).codes[-1].tolist() == after[first.ids[0]]
    assert tokenizer.report()["items"] == 18
    assert tokenizer.report()["unique_after"]


def test_training_goes_on_from_the_rows_and_the_head_of_the_bundle(
    folder: Path, prepared: Prepared, tokenizer: ItemTokenizer, tmp_path: Path
) -> None:
    old = Recommender.from_pretrained(folder)
    going_on = recommender_to_train(config(folder), tmp_path, tokenizer, prepared)
    assert len(going_on.tokenizer) == len(old.tokenizer)
    for name, tensor in old.model.state_dict().items():
        assert torch.equal(going_on.model.state_dict()[name], tensor)
    # Steps of almost no length leave weights and head where they were.
    settings = config(folder).train
    still = replace(settings, learning_rate=1e-12, weight_decay=0.0, dropout=0.0)
    vectors = tokenizer.embed(prepared.catalog)
    going_on.fit(prepared.split.train, None, TasksConfig(max_history=4), still, tmp_path / "train", vectors=vectors)
    assert old.store.dense is not None
    assert going_on.store.dense is not None
    for name, tensor in old.store.dense.head.state_dict().items():
        torch.testing.assert_close(going_on.store.dense.head.state_dict()[name], tensor, rtol=0, atol=1e-6)
    for name, tensor in old.model.state_dict().items():
        torch.testing.assert_close(going_on.model.state_dict()[name], tensor, rtol=0, atol=1e-6)
    # An item that was trained before is warm, whatever the new log holds.
    counts = prepared.split.train.sequences(prepared.catalog).train_counts(18)
    before = [int(item[1:]) if int(item[1:]) < OLD else 0 for item in prepared.catalog.ids]
    assert going_on.train_counts.tolist() == np.maximum(counts, before).tolist()


def test_items_keep_their_own_vectors(
    folder: Path, prepared: Prepared, tokenizer: ItemTokenizer, tmp_path: Path
) -> None:
    """By their ids, in whatever row they are now; items that are new start from nothing."""
    old = Recommender.from_pretrained(folder)
    assert old.store.dense is not None
    own = torch.arange(OLD * 8).reshape(OLD, 8) / 50.0
    old.store = replace(old.store, dense=replace(old.store.dense, own=own))
    old.save_pretrained(at := tmp_path / "model")
    settings = config(at).train
    with pytest.raises(UserError, match=r"train.dense.item_vectors false: .* has item vectors; set it to true"):
        check_bundle(config(at))
    with_own = replace(settings, dense=replace(settings.dense, item_vectors=True))
    check_bundle(config(at, train=with_own))
    going_on = recommender_to_train(config(at, train=with_own), tmp_path, tokenizer, prepared)
    still = replace(with_own, learning_rate=1e-12, weight_decay=0.0, dropout=0.0)
    vectors = tokenizer.embed(prepared.catalog)
    few = prepared.split.train.sequences(prepared.catalog).train_sequences()[:2]
    assert len(np.unique(np.concatenate(few))) < 18, "not every item has an event in the new log"
    users = prepared.split.train.sequences(prepared.catalog).users[:2]
    log = Interactions(prepared.split.train.frame.filter(pl.col("user_id").is_in(users)))
    going_on.fit(log, None, TasksConfig(max_history=4), still, tmp_path / "train", vectors=vectors)
    assert going_on.store.dense is not None
    assert going_on.store.dense.own is not None
    for row, item in enumerate(prepared.catalog.ids):
        before = own[int(item[1:])] if int(item[1:]) < OLD else torch.zeros(8)
        torch.testing.assert_close(going_on.store.dense.own[row], before, rtol=0, atol=1e-6)


def test_a_folder_without_a_header_is_no_bundle(folder: Path, tmp_path: Path) -> None:
    assert bundle_of(config(folder)) == folder
    assert bundle_of(config(tmp_path)) is None
    assert bundle_of(Config()) is None
    check_bundle(config(folder))
    check_bundle(config(tmp_path, tokenize=TokenizeConfig(levels=3)))


@pytest.mark.parametrize(("sections", "words"), [
    ({"tokenize": TokenizeConfig(levels=3, codes=4)}, "tokenize.levels 3: .* with tokenize.levels 2; set it to 2"),
    ({"tokenize": TokenizeConfig(levels=2, codes=5)}, r"tokenize.codes \[5, 5\]: .* set it to \[4, 4\]"),
    ({"tokenize": TokenizeConfig(levels=2, codes=4, collisions="share")}, "tokenize.collisions share: .* to dedup"),
    ({"tokenize": TokenizeConfig(file="codes.json")}, "tokenize.file codes.json: .* leave it out"),
    ({"embed": replace(EMBED, template="{title}")}, "embed.template {title}: .* set it to '', or"),
    ({"embed": replace(EMBED, dim=7)}, "embed.dim 7: .* set it to 8"),
    ({"embed": replace(EMBED, encoder="minilm-offline")}, "embed.encoder minilm-offline: .* set it to tfidf-svd"),
    ({"embed": replace(EMBED, vectors="image.npy")}, "embed.vectors image.npy: .* from its encoder alone"),
    ({"embed": replace(EMBED, without_text="behaviour")}, "embed.without_text behaviour: .* set it to random"),
    ({"tasks": TasksConfig(user_tokens=True)}, "tasks.user_tokens True: .* set it to False"),
    ({"data": DataConfig(regime="strict")}, "data.regime strict: .* catalogue-known"),
    ({"train": TrainConfig()}, "train.dense.weight 0: .* with a dense head, .* set it to 1"),
    ({"train": TrainConfig(dense=DenseConfig(weight=1, dim=16))}, "train.dense.dim 16: .* 8 dimensions; set it to 8"),
])  # fmt: skip
def test_a_setting_that_does_not_fit_the_bundle_is_one_line(folder: Path, sections: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        check_bundle(config(folder, **sections))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("field", "value", "words"), [
    ("token_prefix", "x", "base.token_prefix x: "),
    ("keep_layers", 1, "base.keep_layers 1: .* set it to 0"),
    ("bits", 8, "base.bits 8: .* set it to 32"),
    ("dtype", "bfloat16", "base.dtype bfloat16: .* set it to auto"),
])  # fmt: skip
def test_a_base_that_the_bundle_is_not_is_one_line(folder: Path, field: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_bundle(config(folder, base=BaseConfig(model=str(folder), **{field: value})))  # type: ignore[arg-type]


def test_a_bundle_with_tokens_of_users_keeps_them(folder: Path, tmp_path: Path) -> None:
    old = Recommender.from_pretrained(folder)
    items = old.item_tokenizer
    made = Recommender.from_base(None, items, old.catalog, TINY, user_tokens=True)
    made.save_pretrained(at := tmp_path / "users")
    with pytest.raises(UserError, match=r"tasks.user_tokens False: .* with tasks.user_tokens True; set it to True"):
        check_bundle(config(at, train=TrainConfig()))
    kept = config(at, train=TrainConfig(), tasks=TasksConfig(user_tokens=True))
    check_bundle(kept)
    tokenizer = Recommender.from_pretrained(at).tokenizer
    users = user_tokens(kept, tokenizer, items)
    assert users is not None
    assert users.vocabulary.names[0][0] == "<user_a_0>"
    assert user_tokens(config(folder), tokenizer, items) is None


def test_a_head_that_the_bundle_lacks_is_one_line(folder: Path, tmp_path: Path) -> None:
    headless = Recommender.from_pretrained(folder)
    headless.store = replace(headless.store, dense=None)
    headless.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"train.dense.weight 1: .* without a dense head; set it to 0"):
        check_bundle(config(tmp_path))
    check_bundle(config(tmp_path, train=TrainConfig()))


def test_the_messages_of_the_guide(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Path("docs/your_data.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    own = Path("runs/mine/model")
    shutil.copytree(folder, own)
    mistakes = [{"tokenize": TokenizeConfig(levels=3, codes=4)}, {"train": TrainConfig()}]
    for sections in mistakes:
        with pytest.raises(UserError) as error:
            check_bundle(config(own, **sections))
        assert f"llmrec: {error.value.with_flags}\n" in guide
    train = Stage("train", {"train": {"epochs": 14}}, lambda out: None, instead=going_on(own))
    again = train.again({"config": {"train": {"epochs": 12}}})
    assert f"\ntrain: started{again}\n" in guide


def test_a_bundle_without_an_encoder_is_one_line(folder: Path, tmp_path: Path, tiny_catalog: Catalog) -> None:
    vectors = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    tokenizer = ItemTokenizer(levels=2, codes=4).fit_embeddings(tiny_catalog.ids, vectors)
    Recommender.from_base(None, tokenizer, tiny_catalog, TINY).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is a bundle without an encoder"):
        check_bundle(config(tmp_path))
