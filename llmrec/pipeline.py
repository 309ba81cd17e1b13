"""The whole flow: a catalogue and a log in, a bundle and its metrics out.

    data -> embed -> tokenize -> base -> train -> model -> evaluate

Each stage reads folders of the run directory and writes one; `RunDirectory.build` skips what stands.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from llmrec.config import Config
from llmrec.console import get_logger
from llmrec.data.prepare import Prepared, load, prepare, save
from llmrec.data.readers import input_files
from llmrec.rundir import RunDirectory, file_hashes, folder_state, write_text

log = get_logger(__name__)


def run(config: Config, run: RunDirectory, until: str = "evaluate") -> None:
    """Do every stage up to `until`, in order; finished ones are skipped."""
    if run.main:
        write_text(run.folder / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
    for name, stage in STAGES.items():
        stage(config, run)
        if name == until:
            break


def data_stage(config: Config, run: RunDirectory) -> None:
    """Read, filter, split -> items.parquet, interactions.parquet, split.json."""
    files = file_hashes(input_files(config.data)) if run.main else {}
    run.build("data", asdict(config.data), lambda out: save(prepare(config.data), out), files=files)


def embed_stage(config: Config, run: RunDirectory) -> None:
    """Items -> embeddings.safetensors, aligned with the training events if so configured."""
    from llmrec.embed import embed

    def make(out: Path) -> None:
        prepared = _data(run)
        log = prepared.split.train if config.embed.align.epochs else None
        embed(prepared.catalog, config.embed, log).save(out)

    run.build("embed", asdict(config.embed), make, reads=["data"])


def tokenize_stage(config: Config, run: RunDirectory) -> None:
    """Embeddings -> semantic IDs and their report."""
    from llmrec.embed import Embeddings
    from llmrec.quantize.report import save_picture
    from llmrec.quantize.tokenizer import ItemTokenizer

    def make(out: Path) -> None:
        prepared, embeddings = _data(run), Embeddings.load(run.path("embed"))
        tokenizer = ItemTokenizer.from_config(config.tokenize, config.embed)
        tokenizer.fit_embeddings(
            embeddings.item_ids,
            embeddings.vectors,
            embeddings.encoder,
            log=prepared.split.train,
            titles=prepared.catalog.frame["title"].to_list(),
        ).save(out)
        save_picture(tokenizer.report(), out / "report.png", embeddings.vectors, tokenizer.codes[:, 0])

    run.build("tokenize", asdict(config.tokenize), make, reads=["data", "embed"])


def base_stage(config: Config, run: RunDirectory) -> None:
    """Make a small language model from the catalogue's text, unless one is named."""
    from llmrec.serve.recommender import base_texts
    from llmrec.tasks.template import load_templates
    from llmrec.train.base import make_base, pretrain

    def make(out: Path) -> None:
        catalog = _data(run).catalog
        model, tokenizer = make_base(config.base, base_texts(catalog, load_templates(config.tasks.prompts)))
        if config.base.pretrain_epochs:
            pretrain(model, tokenizer, catalog.texts(catalog.whole_text), config.base)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)

    if config.base.model is None:
        run.build("base", asdict(config.base), make, reads=["data"])


def train_stage(config: Config, run: RunDirectory) -> None:
    """Fine-tune on the task mixture -> checkpoints, log.jsonl, the finished bundle in `bundle/`."""
    from llmrec.data.split import VALID
    from llmrec.quantize.tokenizer import ItemTokenizer
    from llmrec.serve.recommender import Recommender
    from llmrec.tasks.template import load_templates

    def make(out: Path) -> None:
        prepared = _data(run)
        recommender = Recommender.from_base(
            config.base.model or run.path("base").resolve(),  # an adapter finds its base from anywhere
            ItemTokenizer.load(run.path("tokenize")),
            prepared.catalog,
            config.base,
            templates=load_templates(config.tasks.prompts),
            max_history=config.tasks.max_history,
        )
        validation = prepared.split.sequences(prepared.catalog).cases(VALID)
        recommender.fit(prepared.split.train, validation, config.tasks, config.train, out)
        if config.train.merge:
            recommender.merge()
        if config.base.model is None and (config.train.merge or config.train.method == "full"):
            recommender.base_model = f"a {config.base.architecture} made from the catalogue's text"
        if run.main:
            shutil.rmtree(out / "bundle", ignore_errors=True)
            recommender.save_pretrained(out / "bundle")

    local = Path(config.base.model) if config.base.model is not None else None
    prompts = sorted(Path(config.tasks.prompts).glob("*.yaml")) if config.tasks.prompts else []
    run.build(
        "train",
        {"train": asdict(config.train), "tasks": asdict(config.tasks), "base": asdict(config.base)},
        make,
        reads=["data", "tokenize"] + ([] if config.base.model else ["base"]),
        files=file_hashes(prompts) | (folder_state(local) if local is not None and local.is_dir() else {}),
        resumable=True,
        together=True,
    )


def model_stage(config: Config, run: RunDirectory) -> None:
    """The bundle, in its place: what `recommend` loads and the Hub gets."""

    def make(out: Path) -> None:
        # Hard links: the weights stand on the disk once.
        shutil.copytree(run.path("train") / "bundle", out, copy_function=os.link, dirs_exist_ok=True)

    run.build("model", {}, make, reads=["train"])


def evaluate_stage(config: Config, run: RunDirectory) -> None:
    """Full ranking beside the baselines -> metrics.json, per_user.parquet, report.md, report.png; the bundle's card."""
    from llmrec.evaluate.generative import evaluate
    from llmrec.evaluate.report import write_report
    from llmrec.serve.bundle import record_scoring
    from llmrec.serve.card import model_card
    from llmrec.serve.recommender import Recommender

    def make(out: Path) -> None:
        recommender = Recommender.from_pretrained(run.path("model"), config.decode)
        evaluation = evaluate(recommender, _data(run).split, config.evaluate)
        write_report(evaluation.metrics, evaluation.per_user, out)

    settings = {"evaluate": asdict(config.evaluate), "decode": asdict(config.decode)}
    run.build("evaluate", settings, make, reads=["data", "model"])
    if run.main:
        measured = metrics(run)
        write_text(run.path("model") / "README.md", model_card(run.path("model"), measured))
        if measured["decode"]["constraint"] == "trie":  # else it is the constraint that was measured
            record_scoring(run.path("model"), measured["decode"]["scoring"])


STAGES = {
    "prepare": data_stage,
    "embed": embed_stage,
    "tokenize": tokenize_stage,
    "base": base_stage,
    "train": train_stage,
    "model": model_stage,
    "evaluate": evaluate_stage,
}

FOLDERS = ("data", "embed", "tokenize", "base", "train", "model", "evaluate")


def metrics(run: RunDirectory) -> dict[str, Any]:
    """What the evaluate stage measured."""
    return dict(json.loads((run.path("evaluate") / "metrics.json").read_text()))


def _data(run: RunDirectory) -> Prepared:
    return load(run.path("data"))
