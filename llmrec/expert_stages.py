"""The stages of the collaborative experts: they are fitted, and they may teach the language model."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from llmrec.config import Config
from llmrec.data.prepare import load
from llmrec.rundir import RunDirectory
from llmrec.stage import Stage


def experts_stage(config: Config, run: RunDirectory) -> None:
    """What the log and the texts teach without a language model -> experts.json, experts.safetensors; nothing if no
    expert is named."""
    from llmrec.collaborative.experts import Experts
    from llmrec.collaborative.fused import FusedExperts
    from llmrec.embed import Embeddings
    from llmrec.quantize.classical.product import fit_opq

    by_text = config.experts.by_text

    def make(out: Path) -> None:
        prepared = load(run.path("data"))
        catalog, split = prepared.catalog, prepared.split
        vectors = Embeddings.load(run.path("embed"), catalog.ids).vectors if by_text else None
        experts = Experts(config.experts, vectors, split.validation_examples(catalog), fit_opq)
        experts.checkpoint_in(out)
        fused = FusedExperts(config.experts, experts, split.calibration_examples(catalog))
        fused.fit(split.sequences(catalog).train_sequences(), len(catalog))
        for checkpoint in out.glob("*.checkpoint"):
            checkpoint.unlink()
        fused.save(out)

    if config.experts.models:
        reads = ["data", *(["embed"] if by_text else [])]
        run.build(Stage("experts", asdict(config.experts), make, reads=reads, resumable=True))


def teacher_stage(config: Config, run: RunDirectory) -> None:
    """What the experts say of the next item at each training prefix -> teacher.npy, teacher.json; no stage if
    `train.distill.weight` is 0 and no `preference.reward` asks them."""
    from llmrec.collaborative.fused import FusedExperts
    from llmrec.collaborative.teacher import Teacher
    from llmrec.quantize.tokenizer import ItemTokenizer

    settings = config.train.distill

    def make(out: Path) -> None:
        prepared, fused = load(run.path("data")), FusedExperts.load(run.path("experts"))
        if (names := settings.taught_by(config.experts.models)) != fused.names:
            fused = fused.of_experts(names, prepared.split.calibration_examples(prepared.catalog))
        training, codes = prepared.for_training, ItemTokenizer.load(run.path("tokenize")).codes
        rows = np.array([prepared.catalog.index[item] for item in training.catalog.ids])
        sequences = training.split.sequences(training.catalog).train_sequences()
        validation = training.split.validation_examples(training.catalog)
        Teacher.make(fused.of_rows(rows), sequences, codes[:, 0], settings, out, validation)

    if settings.weight or config.preference.by_experts:
        own = {name: value for name, value in asdict(settings).items() if name not in ("weight", "dense_weight")}
        teaching = config.experts.only(settings.taught_by(config.experts.models))
        # Its inputs are those of the experts that teach, not the whole stage `experts`: the others change nothing here.
        reads = ["data", "tokenize", *(["embed"] if teaching.by_text else [])]
        run.build(Stage("teacher", {"distill": own, "experts": teaching.cache_key()}, make, reads, resumable=True))
