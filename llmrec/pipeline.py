"""The whole pipeline makes a bundle and its metrics from a catalogue and a log of interactions.

    data -> embed -> tokenize -> experts -> teacher -> intentions -> base -> train -> refine -> preference -> model
    -> evaluate

Each stage reads folders of the run directory and writes one; `RunDirectory.build` skips finished stages. The stages
before `model` learn from `Prepared.for_training`. With `data.regime: strict` it lacks the cold items; the model stage
adds them.
"""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llmrec.atomic import KEY, read_manifest, remove_inside
from llmrec.config import Config, check_inputs
from llmrec.console import get_logger
from llmrec.continued import (
    check_bundle,
    going_on,
    kept_encoder,
    kept_files,
    kept_tokenizer,
    recommender_to_train,
    with_kept_codes,
)
from llmrec.data.files import require_file
from llmrec.data.filters import require_text
from llmrec.data.prepare import image_files, load, prepare, save
from llmrec.data.readers import input_files
from llmrec.errors import UserError
from llmrec.expert_stages import experts_stage, teacher_stage
from llmrec.intentions import Intentions, gather
from llmrec.model.architecture import says_encoder_decoder
from llmrec.refine_stages import refine_stage, trained_stage
from llmrec.rundir import CONFIG, RunDirectory
from llmrec.stage import Stage, file_hashes, files_state, model_state
from llmrec.train.config import check_encoder_decoder
from llmrec.train.kernels import check_kernels

log = get_logger(__name__)


def run(config: Config, run: RunDirectory, until: str = "evaluate") -> None:
    """Record the configuration and make every stage up to `until`, in order; finished ones are skipped.

    Raises:
        UserError: before anything is written: an input lies where a stage will be written, or something that llmrec
            did not make would be replaced. Later: a stage raises it.
    """
    check(config, run, until)
    if run.main:
        run.write(CONFIG, yaml.safe_dump(asdict(config), sort_keys=False))
    make_stages(config, run, until)
    if until == "evaluate" and run.main:
        finalize(config, run)


def check(config: Config, run: RunDirectory, until: str) -> None:
    """Check everything that can be checked before the first stage, then mark the folder as a run directory."""
    check_inputs(config, list(run.places([*FOLDERS, COMPARE, BENCHMARK])))
    if config.base.model is not None and says_encoder_decoder(Path(config.base.model)):
        check_encoder_decoder(f"--base.model {config.base.model}", config.tasks, config.train)
        config.preference.check_encoder_decoder(f"--base.model {config.base.model}")
    check_bundle(config)
    make_stages(config, run.rehearsal(), until)
    run.claim(NAMES)


def make_stages(config: Config, run: RunDirectory, until: str) -> None:
    """Make the stages up to `until`, in order; finished ones are skipped."""
    for name, stage in STAGES.items():
        stage(config, run)
        if name == until:
            break


def data_stage(config: Config, run: RunDirectory) -> None:
    """Read, filter and split the data -> items.parquet, interactions.parquet, split.json."""
    files = file_hashes(input_files(config.data)) if run.main else {}
    template, without_text = config.embed.template, config.embed.without_text
    keep = config.data.empty_text == "keep" and config.embed.reads_texts
    chosen = {"without_text": without_text} if keep and without_text != "fail" else {}

    def make(out: Path) -> None:
        prepared = prepare(config.data, template)
        if keep and without_text == "fail":
            require_text(prepared.catalog, template)
        save(prepared, out)

    run.build(Stage("data", asdict(config.data) | chosen, make, files=files))


def embed_stage(config: Config, run: RunDirectory) -> None:
    """Items -> embeddings.safetensors.

    The encoder learns from the items of `Prepared.for_training`, or is that of the bundle `base.model`. If
    `embed.align.epochs` is above 0, the vectors are aligned with the training events, which also smooth them if
    `embed.graph_trips` is above 0, and give vectors to items without text if `embed.without_text` says so.
    """
    from llmrec.embed import embed, vector_files

    files = file_hashes([*vector_files(config.embed), *kept_files(config)]) if run.main else {}
    if run.main and config.embed.reads_images:
        files["images"] = files_state(image_files(run.path("data")))

    def make(out: Path) -> None:
        prepared = load(run.path("data"))
        log = prepared.split.train if config.embed.needs_log else None
        fit_on = prepared.for_training.catalog
        embed(prepared.catalog, config.embed, log, fit_on, kept_encoder(config)).save(out)

    run.build(Stage("embed", config.embed.cache_key(), make, reads=["data"], files=files))


def tokenize_stage(config: Config, run: RunDirectory) -> None:
    """Embeddings -> semantic IDs and their report; items of the bundle `base.model` keep theirs."""
    from llmrec.embed import Embeddings
    from llmrec.quantize.report import save_picture
    from llmrec.quantize.tokenizer import ItemTokenizer

    def make(out: Path) -> None:
        prepared = load(run.path("data")).for_training
        embeddings = Embeddings.load(run.path("embed"), prepared.catalog.ids)
        if (tokenizer := kept_tokenizer(config)) is not None:
            tokenizer = with_kept_codes(tokenizer, embeddings, prepared)
        else:
            tokenizer = ItemTokenizer.from_config(config.tokenize, config.embed)
            titles = prepared.catalog.frame["title"].to_list()
            items = (embeddings.item_ids, embeddings.vectors, embeddings.encoder)
            texts = tokenizer.texts(prepared.catalog)
            tokenizer.fit_embeddings(*items, log=prepared.split.train, titles=titles, texts=texts)
        tokenizer.save(out)
        save_picture(tokenizer.report(), out / "report.png", embeddings.vectors, tokenizer.codes[:, 0])

    given = config.tokenize.file
    sources = kept_files(config) if given is None else [require_file(given, "--tokenize.file")]
    files = file_hashes(sources) if run.main else {}
    run.build(Stage("tokenize", config.tokenize.cache_key(), make, reads=["data", "embed"], files=files))


def intentions_stage(config: Config, run: RunDirectory) -> None:
    """What people want, in words -> intentions.parquet; no stage if `intentions.source` is none."""
    source, files = config.intentions, {}
    if source.source == "none":
        return
    if run.main and source.path is not None:
        files = file_hashes([require_file(source.path, "--intentions.path")])
    if source.local_model is not None and Path(source.local_model).is_dir():
        files = model_state(Path(source.local_model))

    def make(out: Path) -> None:
        gather(source, load(run.path("data")).for_training, out, earlier=run.path("intentions")).save(out)

    run.build(Stage("intentions", source.cache_key(), make, reads=["data"], files=files, resumable=True))


def base_stage(config: Config, run: RunDirectory) -> None:
    """Make a small language model from the catalogue's text, unless `base.model` names a model."""
    from llmrec.model.base import make_base
    from llmrec.tasks.config import load_templates, prompt_files, tokenizer_texts
    from llmrec.train.finetune import pretrain

    def make(out: Path) -> None:
        catalog = load(run.path("data")).for_training.catalog
        model, tokenizer = make_base(config.base, tokenizer_texts(catalog, load_templates(config.tasks.prompts)))
        if config.base.pretrain_epochs:
            pretrain(model, tokenizer, catalog.texts(catalog.whole_text), config.base)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)

    if config.base.model is None:
        files = file_hashes(prompt_files(config.tasks))
        run.build(Stage("base", config.base.cache_key(), make, reads=["data"], files=files))


def train_stage(config: Config, run: RunDirectory) -> None:
    """Fine-tune on the task mixture -> checkpoints, log.jsonl, and the trained bundle in `bundle/`."""
    from llmrec.collaborative.teacher import Teacher
    from llmrec.embed import Embeddings
    from llmrec.quantize.tokenizer import ItemTokenizer
    from llmrec.tasks.config import prompt_files

    local = Path(config.base.model) if config.base.model is not None else None
    dense, taught = config.train.dense.weight > 0, config.train.distill.weight > 0
    told = config.intentions.source != "none"
    made = {"base": config.base.model is None, "intentions": told, "embed": dense, "teacher": taught}

    def make(out: Path) -> None:
        prepared = load(run.path("data")).for_training
        tokenizer = ItemTokenizer.load(run.path("tokenize"))
        recommender = recommender_to_train(config, run.path("base"), tokenizer, prepared)
        validation = prepared.split.validation_examples(prepared.catalog)
        vectors = Embeddings.load(run.path("embed"), prepared.catalog.ids).vectors if dense else None
        intentions = load_intentions(config, run)
        teacher = Teacher.load(run.path("teacher")) if taught else None
        learned = (config.tasks, config.train, out, intentions, vectors, config.decode, teacher)
        recommender.fit(prepared.split.train, validation, *learned)
        if config.train.lora.merge:
            recommender.merge()
        if config.base.model is None and (config.train.lora.merge or config.train.method == "full"):
            recommender.base_model = f"a {config.base.architecture} made from the catalogue's text"
        if run.main:
            remove_inside(out / "bundle", out, (KEY,))  # left by a killed process
            recommender.save_pretrained(out / "bundle")

    due = run.build(
        Stage(
            "train",
            {"train": config.train.cache_key(), "tasks": config.tasks.cache_key(), "base": config.base.cache_key()},
            make,
            reads=["data", "tokenize", *(stage for stage, here in made.items() if here)],
            files=file_hashes(prompt_files(config.tasks))
            | (model_state(local) if local is not None and local.exists() else {}),
            resumable=True,
            together=True,
            spare=("checkpoint-*", "rows/*"),
            instead=going_on(run.path("model")),
        )
    )
    if due:
        check_kernels(config.train)  # the rehearsal comes here before any stage is made


def preference_stage(config: Config, run: RunDirectory) -> None:
    """Align the trained model with preferences -> checkpoints, log.jsonl, guards.png, and the aligned bundle in
    `bundle/`; no stage if `preference.method` is none."""
    from llmrec.collaborative.teacher import Teacher
    from llmrec.recommender.recommender import Recommender

    settings, files, before = config.preference, {}, trained_stage(config)
    if settings.method == "none":
        return
    if run.main and settings.feedback is not None:
        files = file_hashes([require_file(settings.feedback, "--preference.feedback")])

    def make(out: Path) -> None:
        prepared = load(run.path("data")).for_training
        trained = run.path(before) / "bundle"
        recommender = Recommender.from_pretrained(trained, config.decode, config.base.trust_remote_code)
        validation = prepared.split.validation_examples(prepared.catalog)
        teacher = Teacher.load(run.path("teacher")) if settings.by_experts else None
        recommender.prefer(prepared.split.train, validation, config=settings, folder=out, teacher=teacher)
        if run.main:
            remove_inside(out / "bundle", out, (KEY,))  # left by a killed process
            recommender.save_pretrained(out / "bundle")

    # The decoder that serves draws the lists that are learnt from.
    steers = {"preference": {**asdict(settings), "kl": settings.kl_weight}, "decode": asdict(config.decode)}
    reads = ["data", before, *(["teacher"] if settings.by_experts else [])]
    spare = ("start.safetensors", "checkpoint.safetensors", "best.safetensors", "pairs.parquet")
    run.build(Stage("preference", steers, make, reads, files, resumable=True, together=True, spare=spare))


def model_stage(config: Config, run: RunDirectory) -> None:
    """The final bundle, which `recommend` loads and a push publishes -> `model/`.

    With `data.regime: strict`, this stage adds the cold items. For a model with a dense head, it calibrates the fusion
    on the validation part.
    """
    from llmrec.collaborative.fused import FusedExperts
    from llmrec.decode.config import DecodeConfig
    from llmrec.decode.tree import TreeSearch
    from llmrec.embed import Embeddings
    from llmrec.recommender.bundle import FUSION, INDEX, parse_header, write_header
    from llmrec.recommender.recommender import Recommender

    strict, dense = config.data.regime == "strict", config.train.dense.weight > 0
    experts = bool(config.experts.models)
    last = trained_stage(config) if config.preference.method == "none" else "preference"

    def make(out: Path) -> None:
        bundle, prepared = run.path(last) / "bundle", load(run.path("data"))
        # Hard links, so that the weights are not copied.
        shutil.copytree(bundle, out, copy_function=os.link, dirs_exist_ok=True)
        cold_items = prepared.cold_items
        if cold_items is None and not dense and not experts:
            return
        own = config.decode
        decode = DecodeConfig(batch_size=own.batch_size, dtype=own.dtype, device=own.device, warm_floor=own.warm_floor)
        recommender = Recommender.from_pretrained(bundle, decode, config.base.trust_remote_code)
        if cold_items is not None:
            recommender.add_items(cold_items, Embeddings.load(run.path("embed"), cold_items.ids).vectors)
        if experts:
            fitted = FusedExperts.load(run.path("experts"))
            rows = np.array([prepared.catalog.index[item] for item in recommender.catalog.ids])
            recommender.store = replace(recommender.store, experts=fitted.of_rows(rows))
        if cold_items is not None or experts:
            recommender.store.save(out)
        if dense and not isinstance(recommender.ranker.search, TreeSearch):
            log.warning("The fusion is not calibrated, for the model takes no tree attention mask; beams rank alone")
        elif dense:
            examples = prepared.split.calibration_examples(recommender.catalog)
            recommender.calibrate(examples, seed=config.data.seed, intentions=load_intentions(config, run))
            if recommender.fusion_weights is not None:
                recommender.fusion_weights.save(out / FUSION)
                write_header(parse_header(out), out)

    run.build(
        Stage(
            "model",
            {"warm_floor": config.decode.warm_floor} if dense else {},
            make,
            reads=[
                last,
                *(["data", "embed"] if strict or dense or experts else []),
                *(["experts"] if experts else []),
                *(["intentions"] if dense and config.intentions.source != "none" else []),
            ],
            precious=(INDEX,),  # the user may add items
        )
    )


def evaluate_stage(config: Config, run: RunDirectory) -> None:
    """Evaluate the recommender and the baselines -> metrics.json, per_user.parquet, report.md, report.png.

    Also text_queries.json if the run has intentions, and diagnosis.* and frontier.* if `evaluate` asks for them.
    """
    from llmrec.embed import Embeddings
    from llmrec.evaluation.diagnosis import diagnose, frontier, write_diagnosis, write_frontier
    from llmrec.evaluation.protocol import select_cases
    from llmrec.evaluation.report import write_report
    from llmrec.evaluation.systems import evaluate
    from llmrec.evaluation.text_queries import evaluate_text_queries
    from llmrec.recommender.recommender import Recommender

    in_words = config.intentions.source != "none" and config.evaluate.text_queries > 0
    embedded = in_words or config.evaluate.reads_text
    steers = {"evaluate": asdict(config.evaluate), "decode": asdict(config.decode)}
    reads = ["data", "model", *(["embed"] if embedded else []), *(["intentions"] if in_words else [])]

    def make(out: Path) -> None:
        recommender = Recommender.from_pretrained(run.path("model"), config.decode, config.base.trust_remote_code)
        settings, items, split = config.evaluate, recommender.catalog.ids, load(run.path("data")).split
        if lost := sorted(set(split.frame["item_id"]).difference(items)):
            bundle = run.path("model")
            raise UserError(
                f"--run {run.folder}: {bundle} lacks {len(lost):,} of the items in the log, such as {lost[0]!r}, which "
                f"`llmrec add-items --remove` took out; add them again, or delete {bundle}, which is then made again "
                "without training, with the items that the run began with."
            )
        curve = diagnosis = None
        if settings.frontier or settings.diagnose:
            sequences = split.sequences(recommender.catalog)
            cases, counts = select_cases(sequences, settings), sequences.train_counts(len(items))
            curve = frontier(recommender, cases, counts) if settings.frontier else None
            diagnosis = diagnose(recommender, cases, counts, settings) if settings.diagnose else None
        vectors = Embeddings.load(run.path("embed"), items).vectors if settings.reads_text else None
        evaluation = evaluate(recommender, split, settings, vectors)
        asked = None
        if in_words:
            held_out = Intentions.load(run.path("intentions")).held_out
            embeddings = Embeddings.load(run.path("embed"), items)
            asked = evaluate_text_queries(recommender, held_out, embeddings, settings, config.intentions.source)
        write_report(evaluation.metrics, evaluation.per_user, out, asked)
        if curve is not None:
            write_frontier(curve, evaluation.metrics, out)
        if diagnosis is not None:
            write_diagnosis(diagnosis, out)

    run.build(Stage("evaluate", steers, make, reads=reads, spare=("report.html",)))


def finalize(config: Config, run: RunDirectory) -> None:
    """Write the evaluation's results into the bundle (model card, default scoring), and the report of the run."""
    from llmrec.evaluation.report import model_card
    from llmrec.recommender.bundle import HEADER, header_text, read_header
    from llmrec.run_report import write_run_report

    measured, bundle = metrics(run), run.path("model")
    texts = {"README.md": model_card(bundle, measured, text_metrics(run), asdict(config.data), run.path("data"))}
    if measured["decode"]["constraint"] == "trie":  # else the run measures the constraint, not the scoring
        texts[HEADER] = header_text(replace(read_header(bundle), scoring=measured["decode"]["scoring"]))
    run.amend("model", texts)
    write_run_report(run, FOLDERS)


STAGES = {
    "prepare": data_stage,
    "embed": embed_stage,
    "tokenize": tokenize_stage,
    "experts": experts_stage,
    "teacher": teacher_stage,
    "intentions": intentions_stage,
    "base": base_stage,
    "train": train_stage,
    "refine": refine_stage,
    "preference": preference_stage,
    "model": model_stage,
    "evaluate": evaluate_stage,
}
FOLDERS = tuple("data" if name == "prepare" else name for name in STAGES)
COMPARE, BENCHMARK = "compare", "benchmark"
NAMES = (*FOLDERS, COMPARE, BENCHMARK, CONFIG)
"""All files and folders that llmrec writes into a run directory, except for the mark and the lock."""


def left_over(folder: Path) -> list[str]:
    """Folders of finished stages that the configuration of a run no longer has, in the order of the stages."""
    config = yaml.safe_load((folder / CONFIG).read_text("utf-8")) if (folder / CONFIG).is_file() else None
    if not isinstance(config, dict):
        return []

    def setting(section: str, *names: str) -> Any:
        value = config.get(section)
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    rewards = setting("preference", "method") == "grpo" and setting("preference", "reward") == "experts"
    gone = {
        "experts": not setting("experts", "models"),
        "teacher": not setting("train", "distill", "weight") and not rewards,
        "intentions": setting("intentions", "source") in (None, "none"),
        "base": setting("base", "model") is not None,
        "refine": not setting("refine", "rounds"),
        "preference": setting("preference", "method") in (None, "none"),
    }
    return [name for name in FOLDERS if gone.get(name) and read_manifest(folder / name) is not None]


def metrics(run: RunDirectory) -> dict[str, Any]:
    """The metrics of the evaluate stage."""
    return dict(json.loads((run.path("evaluate") / "metrics.json").read_text()))


def text_metrics(run: RunDirectory) -> dict[str, Any] | None:
    """The metrics of the evaluate stage for queries in plain words; None if the run has none."""
    path = run.path("evaluate") / "text_queries.json"
    return dict(json.loads(path.read_text())) if path.exists() else None


def load_intentions(config: Config, run: RunDirectory) -> Intentions | None:
    """The intentions of the run; None if it has no such stage."""
    return None if config.intentions.source == "none" else Intentions.load(run.path("intentions"))
