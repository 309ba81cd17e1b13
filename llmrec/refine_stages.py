"""The stage that trains tokenizer and language model in turns, after the first training."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from llmrec.atomic import KEY, read_manifest, remove_inside
from llmrec.config import Config
from llmrec.console import get_logger
from llmrec.data.prepare import load
from llmrec.rundir import CONFIG, RunDirectory
from llmrec.stage import Stage, file_hashes

log = get_logger(__name__)


def trained_stage(config: Config) -> str:
    """The name of the stage whose bundle has the trained model: `refine`, or `train` if there are no rounds."""
    return "refine" if config.refine.rounds else "train"


def refined_tokenizers(folder: Path) -> dict[int, Path]:
    """Round -> the folder of its tokenizer, in a run directory. Empty if its configuration has no rounds, or they are
    not finished; without the folders of earlier rounds that the user deleted."""
    config = yaml.safe_load((folder / CONFIG).read_text("utf-8")) if (folder / CONFIG).is_file() else {}
    stage = folder / "refine"
    manifest = read_manifest(stage) if config.get("refine", {}).get("rounds") else None
    if manifest is None:
        return {}
    last = manifest["config"]["refine"]["rounds"]
    found = {number: stage / f"tokenize-{number}" for number in range(1, last)}
    return {number: path for number, path in found.items() if path.is_dir()} | {last: stage / "bundle" / "quantizer"}


def refine_stage(config: Config, run: RunDirectory) -> None:
    """Rounds of a refined tokenizer and a training on its semantic IDs -> per round `tokenize-N`, and checkpoints and
    log.jsonl in `round-N`; at the end `bundle`. No stage if `refine.rounds` is 0."""
    from llmrec.decode.config import DecodeConfig
    from llmrec.embed import Embeddings
    from llmrec.intentions import Intentions
    from llmrec.quantize.tokenizer import ItemTokenizer
    from llmrec.recommender.further import further
    from llmrec.recommender.recommender import Recommender
    from llmrec.recommender.refine import refine_tokenizer
    from llmrec.tasks.config import prompt_files

    settings, tasks, base = config.refine, config.tasks, config.base
    if not settings.rounds:
        return
    told = config.intentions.source != "none"

    def make(out: Path) -> None:
        prepared = load(run.path("data")).for_training
        catalog, events = prepared.catalog, prepared.split.train
        validation = prepared.split.validation_examples(catalog)
        vectors = Embeddings.load(run.path("embed"), catalog.ids).vectors
        intentions = Intentions.load(run.path("intentions")) if told else None

        def one_round(number: int, old: ItemTokenizer, before: Path) -> tuple[ItemTokenizer, Path]:
            seed = config.train.seed + number

            def refine(folder: Path) -> None:
                recommender = Recommender.from_pretrained(before, DecodeConfig(), base.trust_remote_code)
                refine_tokenizer(recommender, old, events, vectors, settings, seed).save(folder)

            log.info("Round %d of %d", number, settings.rounds)
            tokenizer = ItemTokenizer.load(_once(run, out, f"tokenize-{number}", refine))
            name = "bundle" if number == settings.rounds else f"bundle-{number}"
            if (out / name).exists():
                return tokenizer, out / name
            train = replace(config.train, epochs=settings.epochs, rows_first=0.0, seed=seed)
            frozen = train.method == "lora"
            # Absolute, as an adapter keeps the name of its base, which must be valid in any working directory.
            recommender = further(before.resolve(), tokenizer, catalog, base, frozen, tasks)
            own = vectors if train.dense.weight else None
            recommender.fit(events, validation, tasks, train, out / f"round-{number}", intentions, own, config.decode)
            if train.lora.merge:
                recommender.merge()
            return tokenizer, _once(run, out, name, recommender.save_pretrained)

        tokenizer, bundle = ItemTokenizer.load(run.path("tokenize")), run.path("train") / "bundle"
        for number in range(1, settings.rounds + 1):
            tokenizer, bundle = one_round(number, tokenizer, bundle)

    steers = {"refine": asdict(settings), "train": config.train.cache_key(), "tasks": tasks.cache_key()}
    run.build(
        Stage(
            "refine",
            steers | {"base": base.cache_key()},
            make,
            reads=["data", "embed", "tokenize", "train", *(["intentions"] if told else [])],
            files=file_hashes(prompt_files(tasks)),
            resumable=True,
            together=True,
            spare=("round-*/checkpoint-*", "tokenize-*", "bundle-*"),
        )
    )


def _once(run: RunDirectory, out: Path, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` in `out`, made by the main process under another name, so that it is whole if it is there."""
    partial = out / f"{name}.partial"
    if run.main and not (out / name).exists():
        remove_inside(partial, out, (KEY,))  # left by a killed process
        make(partial)
        partial.rename(out / name)
    run.wait()
    return out / name
