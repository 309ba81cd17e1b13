"""What a configuration's fine-tuning will take, before it is begun: parameters, memory, tokens, steps, time.

The tasks are built and tokenized as for training, on the data of a run, the files of the configuration, or made-up
users; the model has shapes only (see `llmrec.train.estimate`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.config import Config
from llmrec.data import Catalog
from llmrec.data.prepare import Prepared, load, prepare
from llmrec.intentions.intentions import Intentions
from llmrec.train.config import TrainConfig

if TYPE_CHECKING:
    from llmrec.tasks.collate import Collator
    from llmrec.tasks.mixture import Mixture
    from llmrec.tasks.render import Renderer

SAMPLE = 50  # steps whose batches are tokenized
DEDUP = 16  # codes of a dedup level that no tokenizer has made yet
UTILISATION = 0.35  # share of a GPU's peak that fine-tuning on it reaches, an assumption


@dataclass(frozen=True)
class Learned:
    """What is learned from: `TrainingData` without validation, and in words where it comes from."""

    catalog: Catalog
    sequences: Sequence[np.ndarray]
    users: Sequence[str]
    intentions: Intentions | None
    source: str


def estimate(config: Config, run: Path | None, users: int, length: int, tflops: float | None) -> dict[str, Any]:
    """Parameters, data, work per epoch, bytes on one GPU, and time if `tflops` is given.

    Args:
        config: of the run.
        run: its directory with the `prepare` stage done; None: the files of the configuration, if they are here.
        users: made-up ones where there is no data.
        length: items in the training history of each of them.
        tflops: peak of the GPU, in 10^12 operations a second, in the arithmetic of `--train.dtype`.

    Raises:
        UserError: data or base model can't be read.
    """
    from llmrec.tasks.build import build_tasks
    from llmrec.tasks.collate import Collator
    from llmrec.tasks.mixture import Mixture
    from llmrec.train.adapter import check_method, with_adapter
    from llmrec.train.estimate import memory, operations
    from llmrec.train.finetune import context_length

    learned = _learned(config, run, users, length)
    notes, tasks = [], config.tasks
    if tasks.mixture.get("preference") and (learned.intentions is None or not learned.intentions.users):
        tasks = replace(tasks, mixture={**tasks.mixture, "preference": 0})
        notes.append("the task preference is left out: its texts are not gathered yet")
    if config.train.dense_weight:
        notes.append("the dense head of --train.dense_weight and its scores of all items are not counted")
    model, renderer = _model_and_renderer(config, run, learned, notes)
    check_method(model, config.train)
    trained = model if config.train.method == "full" else with_adapter(model, renderer.vocabulary.all_ids, config.train)
    built = build_tasks(tasks, learned.catalog, learned.sequences, renderer, learned.users, learned.intentions)
    mixture = Mixture(built, tasks, config.train.epochs, config.train.batch_size, config.train.seed)
    work = _work(mixture, Collator(renderer, context_length(model), config.train.packing), config.train)
    largest, usual = work.pop("largest"), work.pop("usual")
    tokens = work["per_epoch"]["padded_tokens"] * config.train.epochs
    total = operations(model, trained, config.train, usual) * tokens // usual.size
    return {
        "base": config.base.model or f"a {config.base.architecture} made here",
        "method": config.train.method,
        "parameters": _parameters(trained, renderer),
        "data": {"source": learned.source, "items": len(learned.catalog), "users": len(learned.sequences)},
        **work,
        "bytes": memory(model, trained, config.train, config.base.bits, largest),
        "operations": total,
        "seconds": round(total / (tflops * 1e12 * UTILISATION)) if tflops else None,
        "notes": notes,
    }


def _learned(config: Config, run: Path | None, users: int, length: int) -> Learned:
    """The data of the run; else of the configuration; else made-up users."""
    path = config.data.path
    if run is not None:
        told = run / "intentions"
        known = config.intentions.source != "none" and told.is_dir()
        return _of(load(run / "data"), str(run), Intentions.load(told) if known else None)
    if path is None or Path(path).exists():
        return _of(prepare(config.data), path or "the synthetic shop", None)
    from llmrec.data.synthetic import synthetic

    catalog, _ = synthetic(items=users, users=1)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(len(catalog), size=length).astype(np.int32) for _ in range(users)]
    source = f"made up, {length} items per user, as {path} is not here"
    return Learned(catalog, sequences, [f"u{user}" for user in range(users)], None, source)


def _of(prepared: Prepared, source: str, intentions: Intentions | None) -> Learned:
    prepared = prepared.known
    sequences = prepared.split.sequences(prepared.catalog)
    return Learned(prepared.catalog, sequences.train_sequences(), sequences.users, intentions, source)


def _model_and_renderer(config: Config, run: Path | None, learned: Learned, notes: list[str]) -> "tuple[Any, Renderer]":
    """The model on the meta device with rows for the item tokens, and the renderer of its tokenizer."""
    import torch

    from llmrec.serve.recommender import base_texts
    from llmrec.tasks.render import Renderer
    from llmrec.tasks.template import load_templates
    from llmrec.train.base import load_tokenizer, make_base
    from llmrec.train.estimate import skeleton
    from llmrec.vocab.tokens import ItemVocabulary

    templates = load_templates(config.tasks.prompts)
    if config.base.model is not None:
        tokenizer = load_tokenizer(config.base.model, config.base.trust_remote_code)
        model = skeleton(config.base.model, config.base.trust_remote_code)
    else:
        with torch.device("meta"):
            model, tokenizer = make_base(config.base, base_texts(learned.catalog, templates))
        model.set_attn_implementation("eager")
    sizes, codes = _codes(config, run, len(learned.catalog), notes)
    vocabulary = ItemVocabulary.add_to(tokenizer, sizes, config.base.token_prefix)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model, Renderer(tokenizer, vocabulary, codes, templates, config.tasks.max_history)


def _codes(config: Config, run: Path | None, items: int, notes: list[str]) -> tuple[list[int], np.ndarray]:
    """Level sizes and semantic IDs of the run, or random ones of the configured sizes."""
    from llmrec.quantize.tokenizer import ItemTokenizer

    if run is not None and (run / "tokenize").is_dir():
        fitted = ItemTokenizer.load(run / "tokenize")
        return fitted.level_sizes, fitted.codes
    sizes = config.tokenize.level_sizes
    if config.tokenize.collisions not in ("share", "nearest-free"):
        sizes = [*sizes, DEDUP]
        notes.append(f"the dedup level is taken to have {DEDUP} codes; `llmrec tokenize` knows")
    rng = np.random.default_rng(0)
    return sizes, np.stack([rng.integers(size, size=items) for size in sizes], axis=1)


def _parameters(trained: Any, renderer: "Renderer") -> dict[str, int]:
    trainable = {name: p.numel() for name, p in trained.named_parameters() if p.requires_grad}
    return {
        "total": sum(p.numel() for p in trained.parameters()),
        "trainable": sum(trainable.values()),
        "adapter": sum(count for name, count in trainable.items() if "lora_" in name),
        "item_tokens": len(renderer.vocabulary.all_ids),
    }


def _work(mixture: "Mixture", collate: "Collator", train: TrainConfig) -> dict[str, Any]:
    """Steps, and per epoch examples, tokens, tokens with padding and learnt tokens, from a sample of the steps.

    `largest` and `usual` are the shapes of two forward passes: of the longest examples, and of about mean size.
    """
    from llmrec.tasks.collate import IGNORE
    from llmrec.train.estimate import Batch

    steps = -(-len(mixture) // train.batch_size)
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, SAMPLE)).astype(int)).tolist()
    seen = [batch for step in chosen for batch in _batches(mixture, collate, train, step)]
    shapes = [Batch.of(batch) for batch in seen]
    longest = map(Batch.of, _batches(mixture, collate, train, _longest_step(mixture, train)))
    real = [((batch["input_ids"] != collate.pad) | (batch["labels"] != IGNORE)).sum().item() for batch in seen]
    means = {
        "tokens": np.mean(real),
        "padded_tokens": np.mean([one.size for one in shapes]),
        "learnt_tokens": np.mean([one.learnt for one in shapes]),
    }
    passes = steps / train.epochs * len(seen) / len(chosen)
    return {
        "epochs": train.epochs,
        "steps": steps,
        "per_epoch": {
            "examples": len(mixture) // train.epochs,
            **{name: round(mean * passes) for name, mean in means.items()},
            "sampled": len(chosen) < steps,
        },
        "largest": max([*longest, *shapes], key=lambda one: one.size),
        "usual": min(shapes, key=lambda one: abs(one.size - means["padded_tokens"])),
    }


def _batches(mixture: "Mixture", collate: "Collator", train: TrainConfig, step: int) -> list[dict[str, Any]]:
    """What the forward passes of one optimizer step are given."""
    numbers = range(step * train.batch_size, min((step + 1) * train.batch_size, len(mixture)))
    examples = [mixture[number] for number in numbers]
    at_once = train.batch_size // train.accumulation
    return [collate(examples[start : start + at_once]) for start in range(0, len(examples), at_once)]


def _longest_step(mixture: "Mixture", train: TrainConfig) -> int:
    """The step of the first epoch with the most tokens, roughly."""
    plan = mixture.plan[: -(-len(mixture) // train.epochs)]
    lengths = np.array([mixture.tasks[task].length(row) for task, row in plan])
    return int(np.add.reduceat(lengths, np.arange(0, len(lengths), train.batch_size)).argmax())
