"""What a training step costs on a GPU: memory and operations, from the shapes of a model. No weights are loaded.

The model is on torch's meta device, where tensors have shapes but no content. The training code adds its adapter there,
so parameters are counted. Operations and kept tensors come from a forward and a backward pass on the meta device.
"""

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from llmrec.console import get_logger
from llmrec.errors import UserError
from llmrec.model.adapter import with_adapter
from llmrec.model.architecture import encoder_of
from llmrec.model.base import on_meta
from llmrec.model.quantized import bits_of
from llmrec.model.tokens import ItemVocabulary
from llmrec.resources import first_line
from llmrec.tasks.mixture import Collator, Mixture, predicting
from llmrec.train.config import TrainConfig
from llmrec.train.dropout import drop_out
from llmrec.train.levels import LevelSoftmax
from llmrec.train.trainer import spread_over_processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = get_logger(__name__)

AUTOCAST = 0.7
"""Bytes that autograd keeps under bfloat16 autocast / in float32: 0.67 to 0.75 in Qwen3, Llama and GPT-2."""
ROOM = 0.85
"""Largest share of a GPU's memory that an estimate may fill without gradient checkpointing."""


@dataclass(frozen=True)
class Batch:
    """The shape of a forward pass.

    Attributes:
        rows: B, sequences.
        tokens: T, tokens of each sequence, including padding; of an encoder-decoder, of each prompt.
        learnt: positions in the whole batch whose next token is labelled; logits are computed there.
        words: those of them whose next token is no item token.
    """

    rows: int
    tokens: int
    learnt: int
    words: int = 0

    @classmethod
    def of(cls, batch: Mapping[str, torch.Tensor], vocabulary: ItemVocabulary, one_row: bool = False) -> Self:
        """The shape of a batch from a `Collator`. Its examples count as rows if it has put them into one row."""
        rows, tokens = batch["input_ids"].shape
        if one_row:
            rows = int((batch["position_ids"] == 0).sum())
            tokens = -(-tokens // rows)
        targets = batch["labels"].roll(-1, dims=1)[predicting(batch["labels"])]
        words = ~torch.isin(targets, torch.from_numpy(vocabulary.all_ids))
        return cls(rows, tokens, len(targets), int(words.sum()))

    @property
    def size(self) -> int:
        """B * T, tokens of the batch, including padding."""
        return self.rows * self.tokens


def memory(
    model: Any,
    trained: Any,
    config: TrainConfig,
    bits: int,
    batch: Batch,
    dtype: torch.dtype = torch.float32,
    levels: LevelSoftmax | None = None,
) -> dict[str, int]:
    """Peak GPU memory of a training step.

    Args:
        model: on the meta device, with rows for the item tokens.
        trained: `model` itself, or the PEFT model around it.
        config: method, arithmetic; gradient checkpointing if it is true, not auto.
        bits: per frozen linear weight.
        batch: the shape of the largest forward pass.
        dtype: of the frozen weights that are not quantized.
        levels: the softmax of `trained`, if it is not over the vocabulary.

    Returns:
        Bytes of `weights`, `half_precision_copies`, `gradients`, `optimizer` and `activations`, and their sum `total`.
        Only `activations` is an estimate.

    Raises:
        UserError: the model does not run on the meta device.
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
    kept, logits = _kept(model, trained, config, batch, levels)
    if config.gradient_checkpointing is True:
        text = model.config.get_text_config()
        inputs = 4 * batch.size * text.hidden_size * text.num_hidden_layers
        kept = inputs + kept // text.num_hidden_layers  # the backward pass recomputes one layer at a time
    found = {
        "weights": 4 * trainable + dtype.itemsize * (_count(trained) - trainable - quantized) + quantized * bits // 8,
        "half_precision_copies": 2 * copied if half and bits == 32 else 0,
        "gradients": 4 * trainable,
        "optimizer": _optimizer_state(trained, config.optimizer),
        "activations": int(kept * AUTOCAST if half else kept) + logits,
    }
    return {**found, "total": sum(found.values())}


def _optimizer_state(trained: torch.nn.Module, optimizer: str) -> int:
    """Bytes of the two moments of AdamW: float32, or 8 bits and a float32 scale per block of 256, by bitsandbytes.

    bitsandbytes keeps float32 for tensors below 4,096 elements, and transformers asks it for float32 for embeddings.
    """
    embeddings = {id(m.weight) for m in trained.modules() if isinstance(m, torch.nn.Embedding)}
    total = 0
    for parameter in filter(lambda p: p.requires_grad, trained.parameters()):
        count = parameter.numel()
        whole = optimizer == "adamw" or count < 4096 or id(parameter) in embeddings
        total += 8 * count if whole else 2 * count + 8 * -(-count // 256)
    return total


def operations(model: Any, trained: Any, config: TrainConfig, batch: Batch, levels: LevelSoftmax | None = None) -> int:
    """Floating point operations of a forward and a backward pass over a batch of this shape."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loss = _loss(_outputs(model, trained, batch, levels), batch, levels)
        forward = counter.get_total_flops()
        loss.backward()
    trained.zero_grad(set_to_none=True)
    return int(counter.get_total_flops() + (forward if config.gradient_checkpointing is True else 0))


def _kept(model: Any, trained: Any, config: TrainConfig, batch: Batch, levels: LevelSoftmax | None) -> tuple[int, int]:
    """Bytes that autograd keeps in a float32 forward pass over `batch`.

    Attention probabilities count for eager attention only: the fused kernels of a GPU do not keep them.

    Returns:
        Bytes of all kept tensors except logits, and bytes of the kept logits and their gradients.
    """
    from torch.multiprocessing.reductions import StorageWeakRef

    own = {StorageWeakRef(p.untyped_storage()) for p in trained.parameters()}
    sizes: dict[Any, int] = {}
    logits: set[Any] = set()
    before: set[Any] | None = None

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in own and (eager or tensor.shape[-2:] != (batch.tokens, batch.tokens)):
            if tensor.shape[-1:] == (vocabulary,) or (before is not None and storage not in before):
                logits.add(storage)
            sizes[storage] = tensor.untyped_storage().nbytes()
        return tensor

    vocabulary, eager = model.get_output_embeddings().weight.shape[0], config.attention == "eager"
    dropout = drop_out(model, config.dropout) if config.method == "full" and config.dropout else None
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = _outputs(model, trained, batch, levels)
        before = {*sizes, StorageWeakRef(outputs.untyped_storage())}
        loss = _loss(outputs, batch, levels)
    del loss
    if dropout is not None:
        dropout.remove()
    of_logits = sum(sizes[storage] for storage in logits)
    return sum(sizes.values()) - of_logits, 2 * of_logits


def _outputs(model: Any, trained: Any, batch: Batch, levels: LevelSoftmax | None) -> torch.Tensor:
    """Logits [P, V] at the learnt positions of a batch; with `levels`, hidden states [P, H].

    Raises:
        UserError: the model does not run on the meta device.
    """
    ids = torch.zeros(batch.rows, batch.tokens, dtype=torch.int64, device="meta")
    columns = torch.zeros(-(-batch.learnt // batch.rows), dtype=torch.int64, device="meta")
    # Meta tensors have no content. But transformers looks into the positions of a decoder-only model that gets no mask,
    # to find packed examples, into the mask of an encoder, and into that of recurrent layers if it is [B, T].
    inputs = {"input_ids": ids}
    if hasattr(inspect.getmodule(type(model)), "create_recurrent_attention_mask"):
        inputs["attention_mask"] = torch.zeros(batch.rows, 1, batch.tokens, batch.tokens, device="meta")
    elif encoder_of(model) is None:
        inputs["attention_mask"] = torch.ones_like(ids)
    else:
        inputs["decoder_input_ids"] = torch.nn.functional.pad(columns, (1, 0)).expand(batch.rows, -1)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = columns
    try:
        with nullcontext() if levels is None else levels.hidden_states():
            outputs: torch.Tensor = trained.train()(**inputs).logits
    except Exception as error:  # the code of a model that reads its tensors may raise anything
        raise UserError(
            f"--base.model: what {type(model).__name__} needs can't be estimated: {first_line(error)}"
        ) from None
    return outputs.flatten(0, 1)


def _loss(outputs: torch.Tensor, batch: Batch, levels: LevelSoftmax | None) -> torch.Tensor:
    """The loss of `_outputs`, as `Objective` computes it."""
    targets = torch.zeros(len(outputs), dtype=torch.int64, device="meta")
    if levels is None:
        return cross_entropy(outputs.float(), targets)
    words = min(batch.words, len(outputs))
    each = torch.zeros((len(outputs) - words) // len(levels.sizes), dtype=torch.int64, device="meta")
    total, _ = levels.of_positions(outputs, targets, targets[:words], [each] * len(levels.sizes))
    return total


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def recompute(config: TrainConfig, needed: int, room: int | None) -> bool:
    """Whether `config` recomputes activations in the backward pass.

    Args:
        config: of the training.
        needed: bytes of `memory` without recomputation.
        room: bytes of the GPU for this process; None: there is no GPU.
    """
    if config.gradient_checkpointing != "auto":
        return config.gradient_checkpointing
    return room is not None and needed > ROOM * room


def gpu_room() -> int | None:
    """Bytes of the GPU's memory that are free or held by this process; None without a GPU of CUDA."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()


def recompute_here(
    model: "PreTrainedModel", vocabulary: ItemVocabulary, mixture: Mixture, collate: Collator, config: TrainConfig
) -> bool:
    """`recompute` for a training on this machine, with a line in the log if it is decided here.

    Args:
        model: with rows for the item tokens; maybe with an adapter.
        vocabulary: the item tokens.
        mixture: the examples.
        collate: makes their batches.
        config: of the training.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    if config.gradient_checkpointing != "auto" or (room := gpu_room()) is None:
        return recompute(config, 0, None)
    bare = on_meta(model)
    trained = bare if config.method == "full" else with_adapter(bare, vocabulary.all_ids, config.lora)
    levels = None if config.softmax == "vocabulary" else LevelSoftmax(trained, vocabulary)
    longest = batches(mixture, collate, config, longest_step(mixture, config))
    batch = max((Batch.of(each, vocabulary, collate.one_row) for each in longest), key=lambda one: one.size)
    share = PartialState().num_processes if spread_over_processes() else 1

    def needed(on: bool) -> int:
        chosen = replace(config, gradient_checkpointing=on)
        found = memory(bare, trained, chosen, bits_of(model), batch, model.dtype, levels)
        return (found["total"] - found["activations"]) // share + found["activations"]

    try:
        without, recomputed = needed(False), needed(True)
    except UserError as error:
        log.warning("Gradient checkpointing: off; %s", error)
        return False
    decided = [recompute(config, without, room)]
    broadcast_object_list(decided)  # processes with different answers would wait for each other
    log.info(
        "Gradient checkpointing: %s; a step needs about %.1f GiB without, %.1f GiB with it, and the GPU has %.1f GiB",
        "on" if decided[0] else "off",
        *(size / 2**30 for size in (without, recomputed, room)),
    )
    return decided[0]


def batches(mixture: Mixture, collate: Collator, train: TrainConfig, step: int) -> list[dict[str, Any]]:
    """The batches of the forward passes of one optimizer step."""
    numbers = range(step * train.batch_size, min((step + 1) * train.batch_size, len(mixture)))
    examples, at_once = [mixture[number] for number in numbers], train.batch_size // train.accumulation
    return [collate(examples[start : start + at_once]) for start in range(0, len(examples), at_once)]


def longest_step(mixture: Mixture, train: TrainConfig) -> int:
    """The step of the first epoch with the most tokens, by the approximate lengths of the examples."""
    plan = mixture.plan[: -(-len(mixture) // train.epochs)]
    lengths = np.array([mixture.tasks[task].length(row) for task, row in plan])
    return int(np.add.reduceat(lengths, np.arange(0, len(lengths), train.batch_size)).argmax())
