"""The cost of fine-tuning, from the shapes of a model: parameters, memory, operations. No weights are loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmrec.config import Config
from llmrec.continued import item_vocabulary, kept_tokenizer
from llmrec.data import Catalog
from llmrec.data.prepare import Prepared, load, prepare
from llmrec.intentions.intentions import Intentions
from llmrec.model.architecture import encoder_of
from llmrec.model.base import load_tokenizer, make_base, skeleton
from llmrec.model.tokens import ItemVocabulary
from llmrec.tasks.mixture import IGNORE
from llmrec.train.config import TrainConfig
from llmrec.train.levels import LevelSoftmax
from llmrec.train.memory import ROOM, Batch, batches, gpu_room, longest_step, memory, operations, recompute

if TYPE_CHECKING:
    from llmrec.tasks.mixture import Collator, Mixture
    from llmrec.tasks.render import Renderer

SAMPLE = 50  # most steps whose batches are tokenized


DEDUP = 16  # assumed codes of the dedup level while no tokenizer is fitted


UTILISATION = 0.35  # assumed share of a GPU's peak that fine-tuning reaches


@dataclass(frozen=True)
class Learned:
    """The training data, as `TrainingData` without validation; `source` says in words where it is from, `made_up`
    whether its items are those of no catalogue."""

    catalog: Catalog
    sequences: Sequence[np.ndarray]
    users: Sequence[str]
    intentions: Intentions | None
    source: str
    made_up: bool = False


def estimate(
    config: Config, run: Path | None, users: int, length: int, tflops: float | None, gpu_memory: float | None = None
) -> dict[str, Any]:
    """Estimate what the fine-tuning of a configuration costs.

    Args:
        config: of the run.
        run: the run directory, with the `prepare` stage done; None: read the files of the configuration if they exist.
        users: number of made-up users if there is no data; the number of made-up items is the same.
        length: items in the training history of each made-up user.
        tflops: peak of the GPU in the arithmetic of `--train.dtype`, in 10^12 operations per second; None: no time.
        gpu_memory: GiB of the GPU, for `--train.gradient_checkpointing auto`; None: those of this machine's GPU.

    Returns:
        `base`, `method`, `parameters`, `data`, `epochs` and `steps` (of the first training, and of all rounds of
        `refine` together: `refine_epochs`, `refine_steps`), `per_epoch` (examples and tokens),
        `gradient_checkpointing` (whether it is on), `bytes` (on one GPU), `operations` (of all trainings), `seconds`
        (None without `tflops`) and `notes` (on what is left out or assumed).

    Raises:
        UserError: the data or the base model can't be read, or the method does not fit the model.
    """
    from llmrec.model.adapter import with_adapter
    from llmrec.tasks.mixture import Mixture, build_tasks
    from llmrec.train.config import check_encoder_decoder
    from llmrec.train.finetune import check_method, make_collator

    learned = _learned(config, run, users, length)
    notes, tasks = [], config.tasks
    if tasks.mixture.get("preference") and (learned.intentions is None or not learned.intentions.users):
        tasks = replace(tasks, mixture={**tasks.mixture, "preference": 0})
        notes.append("the task preference is left out: its texts are not gathered yet")
    if config.train.dense.weight:
        notes.append("the dense head of --train.dense.weight and its scores of all items are not counted")
    model, renderer = _model_and_renderer(config, run, learned, notes)
    if encoder_of(model) is not None:
        check_encoder_decoder("--base.model", tasks, config.train)
    check_method(model, config.train)
    full = config.train.method == "full"
    trained = model if full else with_adapter(model, renderer.new_ids, config.train.lora)
    dtype = torch.float32 if full or config.base.dtype == "float32" else torch.bfloat16  # auto: on a GPU
    built = build_tasks(tasks, learned.catalog, learned.sequences, renderer, learned.users, learned.intentions)
    mixture = Mixture(built, tasks, config.train.epochs, config.train.batch_size, config.train.seed)
    vocabulary, train = renderer.codes_of_both, config.train
    work = _work(mixture, make_collator(model, renderer, train), train, vocabulary)
    largest, usual = work.pop("largest"), work.pop("usual")
    levels = None if train.softmax == "vocabulary" else LevelSoftmax(trained, vocabulary)

    @cache
    def needed(recomputed: bool) -> dict[str, int]:
        chosen = replace(train, gradient_checkpointing=recomputed)
        return memory(model, trained, chosen, config.base.bits, largest, dtype, levels)

    room = gpu_room() if gpu_memory is None else int(gpu_memory * 2**30)
    train = replace(train, gradient_checkpointing=recompute(train, needed(False)["total"], room))
    if config.train.gradient_checkpointing == "auto":
        notes.append(_checkpointing_note(room, needed(False)["total"], needed(True)["total"]))
    refine, refine_steps = config.refine, 0
    if refine.rounds:
        again = Mixture(built, tasks, refine.epochs, train.batch_size, train.seed)
        refine_steps = refine.rounds * -(-len(again) // train.batch_size)
        notes.append("the trainings of the tokenizer in the rounds of --refine.rounds are not counted")
    tokens = work["per_epoch"]["padded_tokens"] * (train.epochs + refine.rounds * refine.epochs)
    total = operations(model, trained, train, usual, levels) * tokens // usual.size
    return {
        "base": config.base.model or f"a {config.base.architecture} made here",
        "method": config.train.method,
        "parameters": _parameters(trained, renderer),
        "data": {"source": learned.source, "items": len(learned.catalog), "users": len(learned.sequences)},
        **work,
        "refine_epochs": refine.rounds * refine.epochs,
        "refine_steps": refine_steps,
        "gradient_checkpointing": train.gradient_checkpointing,
        "bytes": needed(train.gradient_checkpointing is True),
        "operations": total,
        "seconds": round(total / (tflops * 1e12 * UTILISATION)) if tflops else None,
        "notes": notes,
    }


def _checkpointing_note(room: int | None, without: int, recomputed: int) -> str:
    """What `--train.gradient_checkpointing auto` does on a GPU of `room` bytes, and what a step needs either way."""
    sizes = f"{without / 2**30:.1f} GiB without gradient checkpointing, {recomputed / 2**30:.1f} GiB with it"
    if room is None:
        return f"{sizes}; auto turns it on if the first is more than {ROOM:.0%} of the GPU's memory (--gpu-memory)"
    return f"{sizes}; auto turns it {'on' if without > ROOM * room else 'off'} on a GPU with {room / 2**30:.1f} GiB"


def _learned(config: Config, run: Path | None, users: int, length: int) -> Learned:
    """The data of `run`, if given; otherwise of the files of the configuration; if these are missing, made-up users."""
    path = config.data.path
    if run is not None:
        told = run / "intentions"
        known = config.intentions.source != "none" and told.is_dir()
        return _of(load(run / "data"), str(run), Intentions.load(told) if known else None)
    if path is None or Path(path).exists():
        return _of(prepare(config.data, config.embed.template), path or "the synthetic shop", None)
    from llmrec.data.synthetic import synthetic

    catalog, _ = synthetic(n_items=users, n_users=1)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(len(catalog), size=length).astype(np.int32) for _ in range(users)]
    source = f"made up, {length} items per user, as {path} is not here"
    return Learned(catalog, sequences, [f"u{user}" for user in range(users)], None, source, made_up=True)


def _of(prepared: Prepared, source: str, intentions: Intentions | None) -> Learned:
    prepared = prepared.for_training
    sequences = prepared.split.sequences(prepared.catalog)
    return Learned(prepared.catalog, sequences.train_sequences(), sequences.users, intentions, source)


def _model_and_renderer(config: Config, run: Path | None, learned: Learned, notes: list[str]) -> "tuple[Any, Renderer]":
    """The model on the meta device, with rows for the item tokens, and a renderer with its tokenizer."""
    import torch

    from llmrec.tasks.config import load_templates, tokenizer_texts
    from llmrec.tasks.render import Renderer
    from llmrec.tasks.streams import BEHAVIOUR

    templates = load_templates(config.tasks.prompts)
    if config.base.model is not None:
        tokenizer = load_tokenizer(config.base.model, config.base.trust_remote_code, config.base.chat_template)
        model = skeleton(config.base.model, config.base.trust_remote_code, config.base.keep_layers)
    else:
        with torch.device("meta"):
            model, tokenizer = make_base(config.base, tokenizer_texts(learned.catalog, templates))
        model.set_attn_implementation("eager")
    sizes, codes = _codes(config, run, learned, notes)
    vocabulary = item_vocabulary(config, tokenizer, sizes)
    if config.tasks.user_tokens:
        notes.append("tokens of users are not counted, one per level in each prompt with a history")
    render = partial(
        Renderer,
        tokenizer,
        templates=templates,
        max_history=config.tasks.max_history,
        titles=learned.catalog.frame["title"],
        title_tokens=config.tasks.title_tokens,
    )
    second = None
    if config.tokenize.behaviour:
        notes.append("the codes of behaviour are taken to be as many as those of the texts, for all items")
        named = item_vocabulary(config, tokenizer, sizes, BEHAVIOUR)
        second = render(named, codes)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model, render(vocabulary, codes, behaviour=second)


def _codes(config: Config, run: Path | None, learned: Learned, notes: list[str]) -> tuple[list[int], np.ndarray]:
    """Codes per level [L] and semantic IDs int [N, L]: of the run, or of `tokenize.file`; else random IDs with the
    levels of the bundle that training goes on from, or of the configuration."""
    from llmrec.quantize.collisions import excess, with_dedup_level
    from llmrec.quantize.given import read_codes
    from llmrec.quantize.tokenizer import ItemTokenizer

    if run is not None and (run / "tokenize").is_dir():
        fitted = ItemTokenizer.load(run / "tokenize")
        return fitted.level_sizes, fitted.codes
    strategy = config.tokenize.collisions
    if config.tokenize.file is not None:
        codes, sizes = read_codes(config.tokenize.file, [] if learned.made_up else learned.catalog.ids)
        if not learned.made_up:
            codes, sizes = with_dedup_level(codes, sizes) if strategy != "share" and excess(codes) else (codes, sizes)
            return sizes, codes
    elif (kept := kept_tokenizer(config)) is not None:
        sizes = kept.level_sizes
    else:
        sizes = config.tokenize.level_sizes
        if strategy not in ("share", "nearest-free"):
            sizes = [*sizes, DEDUP]
            notes.append(f"the dedup level is taken to have {DEDUP} codes; `llmrec tokenize` knows")
    rng = np.random.default_rng(0)
    return sizes, np.stack([rng.integers(size, size=len(learned.catalog)) for size in sizes], axis=1)


def _parameters(trained: Any, renderer: "Renderer") -> dict[str, int]:
    trainable = {name: p.numel() for name, p in trained.named_parameters() if p.requires_grad}
    return {
        "total": sum(p.numel() for p in trained.parameters()),
        "trainable": sum(trainable.values()),
        "adapter": sum(count for name, count in trainable.items() if "lora_" in name),
        "item_tokens": len(renderer.codes_of_both.all_ids),
    }


def _work(mixture: "Mixture", collate: "Collator", train: TrainConfig, vocabulary: ItemVocabulary) -> dict[str, Any]:
    """Count the work of the training, from a sample of at most `SAMPLE` steps.

    Returns:
        `epochs`; `steps` of the whole training; `per_epoch`, with `examples`, `tokens`, `padded_tokens`,
        `learnt_tokens` (the labelled ones) and `sampled` (whether some steps were not counted); and the shapes of two
        forward passes, `largest` (with the longest examples) and `usual` (the one closest to the mean size).
    """
    steps = -(-len(mixture) // train.batch_size)
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, SAMPLE)).astype(int)).tolist()
    seen = [batch for step in chosen for batch in batches(mixture, collate, train, step)]
    longest_batches = batches(mixture, collate, train, longest_step(mixture, train))
    shapes, longest = (
        [Batch.of(each, vocabulary, collate.one_row) for each in some] for some in (seen, longest_batches)
    )
    real = [_real_tokens(batch, collate.pad) for batch in seen]
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


def _real_tokens(batch: Mapping[str, torch.Tensor], pad: int) -> int:
    """The tokens of a batch that are no padding; the prompts' alone for an encoder-decoder, as in `Batch`."""
    own = (batch["input_ids"] != pad) | (batch["labels"] != IGNORE) if "attention_mask" not in batch else None
    return int((batch["attention_mask"] if own is None else own).sum())
