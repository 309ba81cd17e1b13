"""What training sees of cold items, for every protocol, every task and every stage before the bundle.

Cold items carry a word that stands nowhere else. Under the strict regime neither it nor their semantic IDs may come up,
and every stage must be what it is for a shop that never had them; under the catalogue-known one their text and codes
are taught, their interactions are not.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llmrec import pipeline
from llmrec.cli.tasks import task_examples
from llmrec.config import Config
from llmrec.data import TRAIN, Catalog, DataConfig, Prepared, Split, load, prepare, save
from llmrec.data.config import ColdConfig
from llmrec.embed import EmbedConfig, Embeddings
from llmrec.embed.config import AlignConfig
from llmrec.intentions import Intentions
from llmrec.intentions.intentions import IntentionsConfig
from llmrec.model.config import BaseConfig
from llmrec.quantize.config import TokenizeConfig
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.recommender import Recommender
from llmrec.rundir import RunDirectory
from llmrec.stage import Stage
from llmrec.tasks.config import TASKS, TasksConfig
from llmrec.train.config import TrainConfig

MARKER = "xyloquant"
ALIGNMENT = ("item-to-codes", "codes-to-item", "search")
BEHAVIOUR = ("sequential", "titles-to-item", "next-text", "personal-search", "chat", "preference")
PROTOCOLS: dict[str, dict[str, Any]] = {
    "natural": {},
    "timestamp": {"split": "timestamp", "valid_share": 0.15, "test_share": 0.15},
    "held-out": {"cold": ColdConfig("held-out", share=0.15, simulated_share=0.15)},
    "timestamp-held-out": {
        "split": "timestamp",
        "valid_share": 0.15,
        "test_share": 0.15,
        "cold": ColdConfig("held-out", share=0.15),
    },
    "cold-users": {"cold": ColdConfig(users=0.2)},
}


def shop(folder: Path, marked: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Write 40 items that sell throughout, 3 that come up last and one that never does; returns the data's fields."""
    rng = np.random.default_rng(7)
    kinds, colours = ["soap", "lantern", "kettle", "blanket"], ["red", "green", "pale blue", "black", "orange"]
    ids = [f"i{number:02}" for number in range(40)] + ["late0", "late1", "late2", "unsold"]
    rows = []
    for number, item in enumerate(ids):
        word = f"{MARKER} " if item in marked else ""
        kind, colour = kinds[number % 4], colours[number % 5]
        title = f"{word}{colour} {kind} {number}"
        rows.append((item, title, f"{word}{kind}", f"A {word}{kind} in {colour} for rainy evenings at home"))
    items = pl.DataFrame(rows, schema=["item_id", "title", "category", "description"], orient="row")
    items.write_csv(folder / "items.csv")
    events = []
    for user in range(90):
        taken = [ids[item] for item in rng.choice(40, 6, replace=False)]
        if user % 6 == 0:
            taken[-1] = f"late{user // 6 % 3}"
        events += [(f"u{user:02}", item, 10 * place + user % 7) for place, item in enumerate(taken)]
    log = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    log.write_csv(folder / "log.csv")
    return {
        "format": "table",
        "path": str(folder / "log.csv"),
        "items": str(folder / "items.csv"),
        "user_core": 1,
        "item_core": 1,
        "unused_items": "keep",
    }


@dataclass
class Prep:
    """A run whose stages up to the base model stand."""

    config: Config
    run: RunDirectory
    cold: frozenset[str]

    def examples(self) -> dict[str, list[str]]:
        """Task -> the texts of all its rows, under three draws each."""
        found: dict[str, list[str]] = {}
        for seed in range(3):
            config = replace(self.config, train=replace(self.config.train, seed=seed))
            for task in task_examples(config, self.run, 10_000):
                texts = ["".join(span["text"] for span in example["spans"]) for example in task["examples"]]
                found.setdefault(task["task"], []).extend(texts)
        return found

    def stage(self, name: str) -> Path:
        return self.run.path(name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Prep]:
    """`made(protocol, regime)`, each made once."""
    known: dict[tuple[str, str], Prep] = {}

    def make(protocol: str, regime: str) -> Prep:
        if (protocol, regime) not in known:
            known[protocol, regime] = _make(tmp_path_factory.mktemp(f"{protocol}-{regime}"), protocol, regime)
        return known[protocol, regime]

    return make


def _make(folder: Path, protocol: str, regime: str) -> Prep:
    fields = shop(folder) | PROTOCOLS[protocol] | {"regime": regime}
    plain = prepare(DataConfig(**fields))
    cold = frozenset(plain.catalog.ids) - set(plain.split.train.frame["item_id"])
    shop(folder, cold)
    config = Config(
        data=DataConfig(**fields),
        embed=EmbedConfig(encoder="tfidf-svd", dim=16, align=AlignConfig(epochs=2, batch_size=16)),
        tokenize=TokenizeConfig(codes=4, levels=2, collaborative=8),
        intentions=IntentionsConfig(source="extract"),
        base=BaseConfig(hidden_size=32, layers=1, heads=2, vocabulary=400, context=192, pretrain_epochs=1),
        tasks=TasksConfig(mixture=dict.fromkeys(TASKS, 1.0)),
        train=TrainConfig(epochs=1),
    )
    run = RunDirectory(folder / "run")
    pipeline.run(config, run, until="base")
    return Prep(config, run, cold)


@pytest.fixture(params=PROTOCOLS)
def strict(request: pytest.FixtureRequest, made: Callable[[str, str], Prep]) -> Prep:
    return made(request.param, "strict")


@pytest.fixture(params=PROTOCOLS)
def open_to_all(request: pytest.FixtureRequest, made: Callable[[str, str], Prep]) -> Prep:
    return made(request.param, "catalogue-known")


def semantic_ids(texts: list[str], levels: int) -> set[str]:
    """The whole semantic IDs that stand in texts."""
    runs = (found.group() for text in texts for found in re.finditer(r"(?:<[a-z]_\d+>)+", text))
    tokens = (re.findall(r"<[a-z]_\d+>", run) for run in runs)
    return {"".join(run[at : at + levels]) for run in tokens for at in range(0, len(run) - levels + 1, levels)}


def spelled(tokenizer: ItemTokenizer) -> dict[str, str]:
    """Item -> its semantic ID as text."""
    return {
        item: "".join(f"<{'abcdef'[level]}_{code}>" for level, code in enumerate(row))
        for item, row in zip(tokenizer.item_ids, tokenizer.codes.tolist(), strict=True)
    }


def test_there_are_cold_items_with_test_events(strict: Prep) -> None:
    """Else nothing below means anything."""
    prepared = load(strict.stage("data"))
    counts = prepared.split.sequences(prepared.catalog).train_counts(len(prepared.catalog))
    assert strict.cold == {item for item, count in zip(prepared.catalog.ids, counts, strict=True) if not count}
    assert len(strict.cold & set(prepared.split.test.frame["item_id"])) >= 3
    texts = dict(zip(prepared.catalog.ids, prepared.catalog.texts(prepared.catalog.whole_text), strict=True))
    assert {item for item, text in texts.items() if MARKER in text} == strict.cold


def test_strict_examples_hold_nothing_cold(strict: Prep) -> None:
    tokenizer = ItemTokenizer.load(strict.stage("tokenize"))
    assert not strict.cold & set(tokenizer.item_ids)
    known, examples = set(spelled(tokenizer).values()), strict.examples()
    assert set(examples) == set(TASKS)
    for task, texts in examples.items():
        assert texts, task
        assert not [text for text in texts if MARKER in text.lower()], task
        assert semantic_ids(texts, tokenizer.codes.shape[1]) <= known, task


def test_catalogue_known_examples_hold_text_and_codes_of_cold_items_but_no_interaction(open_to_all: Prep) -> None:
    tokenizer = ItemTokenizer.load(open_to_all.stage("tokenize"))
    cold = {text for item, text in spelled(tokenizer).items() if item in open_to_all.cold}
    assert len(cold) == len(open_to_all.cold), "told apart by their semantic IDs"
    levels, examples = tokenizer.codes.shape[1], open_to_all.examples()
    for task in ALIGNMENT:
        assert cold <= semantic_ids(examples[task], levels), task
        assert any(MARKER in text.lower() for text in examples[task]), task
    for task in BEHAVIOUR:
        assert examples[task], task
        assert not cold & semantic_ids(examples[task], levels), task
        assert not [text for text in examples[task] if MARKER in text.lower()], task


def test_strict_stages_are_those_of_a_shop_without_cold_items(strict: Prep, tmp_path: Path) -> None:
    """Nor do the validation and test parts leave a trace: the other shop has the training events only."""
    whole, run = load(strict.stage("data")), RunDirectory(tmp_path / "run")
    catalog = Catalog(whole.catalog.frame.filter(~pl.col("item_id").is_in(list(strict.cold))))
    split = Split(whole.split.frame.filter(part=TRAIN), {"kind": "train", "regime": "catalogue-known"})
    run.build(Stage("data", {}, lambda out: save(Prepared(catalog, split, whole.summary), out)))
    for stage in (pipeline.embed_stage, pipeline.tokenize_stage, pipeline.intentions_stage, pipeline.base_stage):
        stage(strict.config, run)
    for name in (
        "embed/encoder.json",
        "embed/encoder.safetensors",
        "embed/alignment.safetensors",
        "tokenize/quantizer.json",
        "tokenize/quantizer.safetensors",
        "base/model.safetensors",
        "base/tokenizer.json",
    ):
        assert strict.run.folder.joinpath(name).read_bytes() == run.folder.joinpath(name).read_bytes(), name
    for name in ("tokenize/item_codes.parquet", "intentions/intentions.parquet"):
        assert pl.read_parquet(strict.run.folder / name).equals(pl.read_parquet(run.folder / name)), name
    reports = [json.loads((folder / "tokenize/report.json").read_text()) for folder in (strict.run.folder, run.folder)]
    for report in reports:
        del report["fit_seconds"], report["encode_items_per_second"]
    assert reports[0] == reports[1]
    embeddings = Embeddings.load(strict.stage("embed"))
    assert embeddings.item_ids == whole.catalog.ids, "all items have vectors"
    assert np.array_equal(embeddings.take_ids(catalog.ids).vectors, Embeddings.load(run.path("embed")).vectors)


def test_catalogue_known_codes_learn_from_the_training_events_alone(open_to_all: Prep) -> None:
    tokenizer, whole = ItemTokenizer.load(open_to_all.stage("tokenize")), load(open_to_all.stage("data"))
    embeddings = Embeddings.load(open_to_all.stage("embed"), whole.catalog.ids)
    train = Split(whole.split.frame.filter(part=TRAIN), {"kind": "train", "regime": "catalogue-known"}).train
    alone = ItemTokenizer.from_config(open_to_all.config.tokenize).fit_embeddings(
        whole.catalog.ids, embeddings.vectors, log=train
    )
    assert np.array_equal(tokenizer.codes, alone.codes)
    assert np.array_equal(tokenizer.joined.behaviour, alone.joined.behaviour, equal_nan=True)
    cold = np.isin(tokenizer.item_ids, list(open_to_all.cold))
    assert not tokenizer.joined.known[cold].any()
    assert tokenizer.joined.known[~cold].sum() >= 30


def test_strict_intentions_are_of_known_items(strict: Prep) -> None:
    told = Intentions.load(strict.stage("intentions"))
    assert told.items
    assert not strict.cold & (set(told.items) | set(told.held_out))


Fitted = list[tuple[Recommender, tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> Fitted:
    """The recommenders that were to be fitted, with what `fit` was given; none of them is trained."""
    seen: Fitted = []

    def fit(self: Recommender, *given: Any, **named: Any) -> Recommender:
        seen.append((self, given, named))
        return self

    monkeypatch.setattr(Recommender, "fit", fit)
    return seen


@pytest.mark.parametrize("regime", ["strict", "catalogue-known"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_reaches_training(made: Callable[[str, str], Prep], protocol: str, regime: str, fitted: Fitted) -> None:
    prep, whole = made(protocol, regime), load(made(protocol, regime).stage("data"))
    pipeline.run(replace(prep.config, train=TrainConfig(epochs=2)), prep.run, until="train")
    ((recommender, (log, validation, *_), named),) = fitted
    catalog, trained = recommender.catalog, set(whole.split.train.frame["item_id"])
    assert trained == set(whole.catalog.ids) - prep.cold
    assert log.frame.equals(whole.split.train.frame), "nothing but the training part"
    assert bool(prep.cold & set(catalog.ids)) == (regime == "catalogue-known")
    targets = {catalog.ids[item] for item in validation.targets}
    assert targets
    assert targets | {catalog.ids[item] for history in validation.histories for item in history} <= trained
    if named.get("vectors") is not None:
        assert np.array_equal(named["vectors"], Embeddings.load(prep.stage("embed")).take_ids(catalog.ids).vectors)
    if protocol == "cold-users":
        assert len(set(whole.split.frame["user_id"]) - set(log.frame["user_id"])) == 18


@pytest.mark.usefixtures("fitted")
def test_strict_bundle_has_all_items(strict: Prep) -> None:
    pipeline.run(strict.config, strict.run, until="model")
    trained, bundle = (Recommender.from_pretrained(strict.stage(name)) for name in ("train/bundle", "model"))
    items = len(trained.catalog)
    assert not strict.cold & set(trained.catalog.ids), "the trained bundle stays as it was"
    assert bundle.catalog.ids[:items] == trained.catalog.ids
    assert set(bundle.catalog.ids[items:]) == strict.cold
    assert np.array_equal(bundle.item_tokenizer.codes[:items], trained.item_tokenizer.codes)
    ids = bundle.catalog.ids[items:]
    added = trained.item_tokenizer.with_items(ids, Embeddings.load(strict.stage("embed"), ids).vectors)
    assert np.array_equal(bundle.item_tokenizer.codes, added.codes), "as items that are added later"
    assert not bundle.item_tokenizer.joined.known[items:].any()


@pytest.mark.usefixtures("fitted")
def test_catalogue_known_bundle_is_the_trained_one(open_to_all: Prep) -> None:
    pipeline.run(open_to_all.config, open_to_all.run, until="model")
    weights = [open_to_all.stage(name) / "model.safetensors" for name in ("train/bundle", "model")]
    assert weights[0].samefile(weights[1]), "they stand on the disk once"
    bundle = Recommender.from_pretrained(open_to_all.stage("model"))
    assert bundle.catalog.ids == load(open_to_all.stage("data")).catalog.ids
