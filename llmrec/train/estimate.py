"""What fine-tuning takes, from a model's shape: parameters, memory, operations. No weights are loaded.

The model stands on torch's meta device, where tensors have shapes and no content, and the code that trains makes its
adapter; so parameters are counted and not calculated, and operations and kept tensors are those of a forward and a
backward pass that only pretends to compute.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.nn.functional import cross_entropy

from llmrec.errors import UserError
from llmrec.tasks.collate import predicting
from llmrec.train.config import TrainConfig
from llmrec.train.dropout import BlockDropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AUTOCAST = 0.7
"""Bytes that autograd keeps under autocast to bfloat16, against float32: .67 to .75 in Qwen3, Llama and GPT-2."""


@dataclass(frozen=True)
class Batch:
    """The shape of a forward pass.

    Attributes:
        rows: sequences, B.
        tokens: of each, padding included, T.
        learnt: positions in all whose next token is learnt; logits are computed there.
    """

    rows: int
    tokens: int
    learnt: int

    @classmethod
    def of(cls, batch: Mapping[str, torch.Tensor]) -> Self:
        """The shape of what a `Collator` made."""
        rows, tokens = batch["input_ids"].shape
        return cls(rows, tokens, int(predicting(batch["labels"]).sum()))

    @property
    def size(self) -> int:
        """Tokens in all, padding included."""
        return self.rows * self.tokens


def skeleton(name: str, trust_remote_code: bool = False) -> "PreTrainedModel":
    """The model that a path or Hub id names, on the meta device; of the checkpoint only `config.json` is read.

    Raises:
        UserError: it can't be read, or describes no causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code, dtype=torch.float32, attn_implementation="eager"
            )
    except (OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"--base.model {name}: its config.json can't be had: {reason}") from None
    return model


def memory(model: Any, trained: Any, config: TrainConfig, bits: int, batch: Batch) -> dict[str, int]:
    """Bytes on a GPU at the height of a training step, per kind and in `total`; only `activations` is an estimate.

    Args:
        model: on the meta device, with rows for the item tokens.
        trained: the same, or the PEFT model around it.
        config: method, arithmetic, checkpointing.
        bits: of a frozen linear weight.
        batch: the largest forward pass.
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
    kept, logits = _kept(model, trained, config, batch)
    if config.gradient_checkpointing:
        text = model.config.get_text_config()
        inputs = 4 * batch.size * text.hidden_size * text.num_hidden_layers
        kept = inputs + kept // text.num_hidden_layers  # one layer at a time is computed again
    found = {
        "weights": 4 * (_count(trained) - quantized) + quantized * bits // 8,
        "half_precision_copies": 2 * sum(p.numel() for p in matrices) if half and bits == 32 else 0,
        "gradients": 4 * trainable,
        "optimizer": 8 * trainable,
        "activations": int(kept * AUTOCAST if half else kept) + logits,
    }
    return {**found, "total": sum(found.values())}


def operations(model: Any, trained: Any, config: TrainConfig, batch: Batch) -> int:
    """Floating point operations of a forward and a backward pass over `batch`."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loss = _loss(model, trained, batch)
        forward = counter.get_total_flops()
        loss.backward()
    trained.zero_grad(set_to_none=True)
    return int(counter.get_total_flops() + (forward if config.gradient_checkpointing else 0))


def _kept(model: Any, trained: Any, config: TrainConfig, batch: Batch) -> tuple[int, int]:
    """Bytes that autograd keeps of a float32 forward pass over `batch`, and of these, with their gradient, of logits.

    Attention probabilities are left out: the fused kernels of a GPU don't keep them.
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

    dropout = BlockDropout(model, config.dropout) if config.method == "full" and config.dropout else None
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
    # With a mask, transformers does not look at the (absent) content for examples that share a row.
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = columns
    logits = trained.train()(**inputs).logits.float().flatten(0, 1)
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device="meta"))


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
