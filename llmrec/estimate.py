"""The cost of fine-tuning, from the shapes of a model: parameters, memory, operations. No weights are loaded.

The model is on torch's meta device, where tensors have shapes but no content. The training code adds its adapter there,
so parameters are counted. Operations and kept tensors come from a forward and a backward pass on the meta device.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from llmrec.config import Config
from llmrec.continued import item_vocabulary, kept_tokenizer
from llmrec.data import Catalog
from llmrec.data.prepare import Prepared, load, prepare
from llmrec.intentions.intentions import Intentions
from llmrec.model.architecture import encoder_of
from llmrec.model.base import load_tokenizer, make_base, skeleton
from llmrec.tasks.mixture import IGNORE, predicting
from llmrec.train.config import TrainConfig
from llmrec.train.dropout import drop_out

if TYPE_CHECKING:
    from llmrec.tasks.mixture import Collator, Mixture
    from llmrec.tasks.render import Renderer

AUTOCAST = 0.7
"""Bytes that autograd keeps under bfloat16 autocast / in float32: 0.67 to 0.75 in Qwen3, Llama and GPT-2."""


@dataclass(frozen=True)
class Batch:
    """The shape of a forward pass.

    Attributes:
        rows: B, sequences.
        tokens: T, tokens of each sequence, including padding; of an encoder-decoder, of each prompt.
        learnt: positions in the whole batch whose next token is labelled; logits are computed there.
    """

    rows: int
    tokens: int
    learnt: int

    @classmethod
    def of(cls, batch: Mapping[str, torch.Tensor]) -> Self:
        """The shape of a batch from a `Collator`."""
        rows, tokens = batch["input_ids"].shape
        return cls(rows, tokens, int(predicting(batch["labels"]).sum()))

    @property
    def size(self) -> int:
        """B * T, tokens of the batch, including padding."""
        return self.rows * self.tokens


def memory(
    model: Any, trained: Any, config: TrainConfig, bits: int, batch: Batch, dtype: torch.dtype = torch.float32
) -> dict[str, int]:
    """Peak GPU memory of a training step.

    Args:
        model: on the meta device, with rows for the item tokens.
        trained: `model` itself, or the PEFT model around it.
        config: method, arithmetic, checkpointing.
        bits: per frozen linear weight.
        batch: the shape of the largest forward pass.
        dtype: of the frozen weights that are not quantized.

    Returns:
        Bytes of `weights`, `half_precision_copies`, `gradients`, `optimizer` and `activations`, and their sum `total`.
        Only `activations` is an estimate.
    """
    trainable = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    rows = model.get_output_embeddings().weight.shape[0]
    matrices = {
        id(p): p
        for module in model.modules()
        if not isinstance(module, torch.nn.Embedding)
        for p in module.parameters(recurse=False)
        if p.dim() == 2
    }.values()
    frozen = sum(p.numel() for p in matrices if not p.requires_grad and p.shape[0] != rows)
    quantized = frozen if bits < 32 else 0
    half = config.dtype != "float32"
    copied = sum(p.numel() for p in matrices if p.requires_grad or dtype == torch.float32)
    kept, logits = _kept(model, trained, config, batch)
    if config.gradient_checkpointing:
        text = model.config.get_text_config()
        inputs = 4 * batch.size * text.hidden_size * text.num_hidden_layers
        kept = inputs + kept // text.num_hidden_layers  # the backward pass recomputes one layer at a time
    found = {
        "weights": 4 * trainable + dtype.itemsize * (_count(trained) - trainable - quantized) + quantized * bits // 8,
        "half_precision_copies": 2 * copied if half and bits == 32 else 0,
        "gradients": 4 * trainable,
        "optimizer": 8 * trainable,
        "activations": int(kept * AUTOCAST if half else kept) + logits,
    }
    return {**found, "total": sum(found.values())}


def operations(model: Any, trained: Any, config: TrainConfig, batch: Batch) -> int:
    """Floating point operations of a forward and a backward pass over a batch of this shape."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loss = _loss(model, trained, batch)
        forward = counter.get_total_flops()
        loss.backward()
    trained.zero_grad(set_to_none=True)
    return int(counter.get_total_flops() + (forward if config.gradient_checkpointing else 0))


def _kept(model: Any, trained: Any, config: TrainConfig, batch: Batch) -> tuple[int, int]:
    """Bytes that autograd keeps in a float32 forward pass over `batch`.

    Attention probabilities do not count: the fused kernels of a GPU do not keep them.

    Returns:
        Bytes of all kept tensors except logits, and bytes of the kept logits and their gradients.
    """
    from torch.multiprocessing.reductions import StorageWeakRef

    own = {StorageWeakRef(p.untyped_storage()) for p in trained.parameters()}
    found: dict[Any, tuple[int, bool]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in own and tensor.shape[-2:] != (batch.tokens, batch.tokens):
            of_logits = tensor.shape[-1:] == (model.get_output_embeddings().weight.shape[0],)
            found[storage] = (tensor.untyped_storage().nbytes(), of_logits)
        return tensor

    dropout = drop_out(model, config.dropout) if config.method == "full" and config.dropout else None
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = _loss(model, trained, batch)
    del loss
    if dropout is not None:
        dropout.remove()
    logits = sum(size for size, of_logits in found.values() if of_logits)
    return sum(size for size, _ in found.values()) - logits, 2 * logits


def _loss(model: Any, trained: Any, batch: Batch) -> torch.Tensor:
    ids = torch.zeros(batch.rows, batch.tokens, dtype=torch.int64, device="meta")
    columns = torch.zeros(-(-batch.learnt // batch.rows), dtype=torch.int64, device="meta")
    # Meta tensors have no content. But transformers looks into the positions of a decoder-only model that gets no mask,
    # to find packed examples, and into the mask of an encoder.
    inputs = {"input_ids": ids}
    if encoder_of(model) is None:
        inputs["attention_mask"] = torch.ones_like(ids)
    else:
        inputs["decoder_input_ids"] = torch.nn.functional.pad(columns, (1, 0)).expand(batch.rows, -1)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = columns
    logits = trained.train()(**inputs).logits.float().flatten(0, 1)
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device="meta"))


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


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


def estimate(config: Config, run: Path | None, users: int, length: int, tflops: float | None) -> dict[str, Any]:
    """Estimate what the fine-tuning of a configuration costs.

    Args:
        config: of the run.
        run: the run directory, with the `prepare` stage done; None: read the files of the configuration if they exist.
        users: number of made-up users if there is no data; the number of made-up items is the same.
        length: items in the training history of each made-up user.
        tflops: peak of the GPU in the arithmetic of `--train.dtype`, in 10^12 operations per second; None: no time.

    Returns:
        `base`, `method`, `parameters`, `data`, `epochs`, `steps`, `per_epoch` (examples and tokens), `bytes` (on one
        GPU), `operations` (of the whole training), `seconds` (None without `tflops`) and `notes` (on what is left out
        or assumed).

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
    work = _work(mixture, make_collator(model, renderer, config.train), config.train)
    largest, usual = work.pop("largest"), work.pop("usual")
    tokens = work["per_epoch"]["padded_tokens"] * config.train.epochs
    total = operations(model, trained, config.train, usual) * tokens // usual.size
    return {
        "base": config.base.model or f"a {config.base.architecture} made here",
        "method": config.train.method,
        "parameters": _parameters(trained, renderer),
        "data": {"source": learned.source, "items": len(learned.catalog), "users": len(learned.sequences)},
        **work,
        "bytes": memory(model, trained, config.train, config.base.bits, largest, dtype),
        "operations": total,
        "seconds": round(total / (tflops * 1e12 * UTILISATION)) if tflops else None,
        "notes": notes,
    }


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
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model, Renderer(tokenizer, vocabulary, codes, templates, config.tasks.max_history)


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
        "item_tokens": len(renderer.vocabulary.all_ids),
    }


def _work(mixture: "Mixture", collate: "Collator", train: TrainConfig) -> dict[str, Any]:
    """Count the work of the training, from a sample of at most `SAMPLE` steps.

    Returns:
        `epochs`; `steps` of the whole training; `per_epoch`, with `examples`, `tokens`, `padded_tokens`,
        `learnt_tokens` (the labelled ones) and `sampled` (whether some steps were not counted); and the shapes of two
        forward passes, `largest` (with the longest examples) and `usual` (the one closest to the mean size).
    """
    steps = -(-len(mixture) // train.batch_size)
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, SAMPLE)).astype(int)).tolist()
    seen = [batch for step in chosen for batch in _batches(mixture, collate, train, step)]
    shapes = [Batch.of(batch) for batch in seen]
    longest = map(Batch.of, _batches(mixture, collate, train, _longest_step(mixture, train)))
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


def _batches(mixture: "Mixture", collate: "Collator", train: TrainConfig, step: int) -> list[dict[str, Any]]:
    """The batches of the forward passes of one optimizer step."""
    numbers = range(step * train.batch_size, min((step + 1) * train.batch_size, len(mixture)))
    examples, at_once = [mixture[number] for number in numbers], train.batch_size // train.accumulation
    return [collate(examples[start : start + at_once]) for start in range(0, len(examples), at_once)]


def _longest_step(mixture: "Mixture", train: TrainConfig) -> int:
    """The step of the first epoch with the most tokens, by the approximate lengths of the examples."""
    plan = mixture.plan[: -(-len(mixture) // train.epochs)]
    lengths = np.array([mixture.tasks[task].length(row) for task, row in plan])
    return int(np.add.reduceat(lengths, np.arange(0, len(lengths), train.batch_size)).argmax())
