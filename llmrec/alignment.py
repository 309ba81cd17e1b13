"""The stage of the run that aligns the trained model with preferences."""

from dataclasses import asdict
from pathlib import Path

from llmrec.atomic import KEY, remove_inside
from llmrec.config import Config
from llmrec.data.files import require_file
from llmrec.data.prepare import load
from llmrec.rundir import RunDirectory
from llmrec.stage import Stage, file_hashes


def preference_stage(config: Config, run: RunDirectory) -> None:
    """Align the trained model with preferences -> checkpoints, log.jsonl, and the aligned bundle in `bundle/`; no stage
    if `preference.method` is none."""
    from llmrec.recommender.recommender import Recommender

    settings, files = config.preference, {}
    if settings.method == "none":
        return
    if run.main and settings.feedback is not None:
        files = file_hashes([require_file(settings.feedback, "--preference.feedback")])

    def make(out: Path) -> None:
        prepared = load(run.path("data")).for_training
        trained = run.path("train") / "bundle"
        recommender = Recommender.from_pretrained(trained, config.decode, config.base.trust_remote_code)
        validation = prepared.split.validation_examples(prepared.catalog)
        recommender.prefer(prepared.split.train, validation, config=settings, folder=out)
        if run.main:
            remove_inside(out / "bundle", out, (KEY,))  # left by a killed process
            recommender.save_pretrained(out / "bundle")

    # The decoder that serves draws the lists that are learnt from.
    steers = {"preference": asdict(settings), "decode": asdict(config.decode)}
    spare = ("start.safetensors", "checkpoint.safetensors", "best.safetensors", "pairs.parquet")
    run.build(Stage("preference", steers, make, ["data", "train"], files, resumable=True, together=True, spare=spare))
