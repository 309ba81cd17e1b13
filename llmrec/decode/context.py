"""The model during decoding: its layers, its output rows of the item tokens, and a key/value cache without copies.

The model reads the tokens that all prompts of a batch begin with once, for all rows; then it reads the rest of each
prompt. The beams of a user are extra query positions under a tree attention mask: a beam attends to its prompt and to
its own earlier codes.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from llmrec.decode.attention import group_heads
from llmrec.decode.config import Scoring
from llmrec.device import device_of
from llmrec.model.architecture import decoder_of, logit_cap, logit_scale
from llmrec.model.quantized import shared_weights
from llmrec.model.tokens import ItemVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_last_token_only: ContextVar[bool] = ContextVar("_last_token_only", default=False)
_check: ContextVar[Callable[[], None] | None] = ContextVar("_check", default=None)


class Body:
    """A model prepared for decoding.

    Attributes:
        model: a copy of the model's modules with weights of type `dtype`, see `decoding_copy`.
        dtype: of its weights.
        decoder: the part of `model` that makes hidden states.
        device: of its output head, where hidden states are read; a device map may place its layers elsewhere.
        width: H, the size of its hidden states.
        window: number of positions in the window of sliding attention, if a layer has it.
        chunk: number of positions in a block of chunked attention, if a layer has it: a query attends to the keys of
            its own block only.
        layer_types: the attention types of its layers; empty if the model's configuration does not name them.
    """

    def __init__(self, model: "PreTrainedModel", dtype: torch.dtype) -> None:
        self.model = decoding_copy(model, dtype)
        self.dtype = dtype
        self.decoder = decoder_of(self.model)
        self.device = device_of(self.model.get_output_embeddings())
        self.width = int(self.model.get_output_embeddings().weight.shape[1])
        config = self.model.config.get_text_config()
        self.window: int | None = getattr(config, "sliding_window", None)
        self.chunk: int | None = getattr(config, "attention_chunk_size", None)
        self.layer_types = set(getattr(config, "layer_types", None) or ())

    @property
    def reach(self) -> float:
        """Up to this number of tokens, every layer attends to all earlier tokens."""
        return min(self.window or math.inf, self.chunk or math.inf)

    def masks(self, sees: torch.Tensor, at: torch.Tensor, keys: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """The additive attention mask [B, 1, Q, S] that the model expects; one per attention type if it has several.

        Args:
            sees: bool [B, Q, S], whether a query attends to a key.
            at: int64 [B, Q], positions of the queries.
            keys: int64 [B, S], positions of the keys.
        """
        at, keys = at[:, :, None], keys[:, None, :]
        masks = {"full_attention": sees}
        if self.window is not None:
            masks["sliding_attention"] = sees & (at - keys < self.window)
        if self.chunk is not None:
            masks["chunked_attention"] = sees & (at // self.chunk == keys // self.chunk)
        named = {name: self._additive(mask) for name, mask in masks.items() if name in self.layer_types}
        if len(named) > 1:
            return named
        # A model whose configuration has a window and names no types has the window in every layer.
        return next(iter(named.values())) if named else self._additive(list(masks.values())[-1])

    def _additive(self, sees: torch.Tensor) -> torch.Tensor:
        least = torch.finfo(self.dtype).min
        return torch.zeros(sees.shape, dtype=self.dtype, device=sees.device).masked_fill_(~sees, least)[:, None]


def decoding_copy(model: "PreTrainedModel", dtype: torch.dtype) -> "PreTrainedModel":
    """Copy the modules of `model`; changes to the copy do not change `model`.

    Parameters that already have type `dtype` are shared with `model`; others are converted once. Buffers keep their
    type, because rotary frequencies lose too much precision in bfloat16.
    """
    weights = shared_weights(model) | {id(parameter): _as(parameter, dtype) for parameter in model.parameters()}
    own = copy.deepcopy(model, weights)
    group_heads(own)
    blocks = [module for module in decoder_of(own).children() if isinstance(module, nn.ModuleList)]
    feed_forward = getattr(blocks[0][-1], "mlp", None) if blocks else None
    if feed_forward is not None:
        feed_forward.forward = _on_last_token(feed_forward.forward)
    return own


@contextmanager
def last_token_only() -> Iterator[None]:
    """Context manager: the last layer's feed-forward block computes only the last position of each row.

    Inside, only the last hidden state of each row is correct. The key/value cache is complete, because no keys or
    values depend on that block.
    """
    token = _last_token_only.set(True)
    try:
        yield
    finally:
        _last_token_only.reset(token)


@contextmanager
def before_each_pass(check: Callable[[], None]) -> Iterator[None]:
    """Context manager: `check` is called before each forward pass of this thread, and can end a search by raising.

    `GenerateSearch` does not call it.
    """
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def _on_last_token(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` of a block; under `last_token_only`, it reads the last token only and returns zeros for the others."""

    def run(hidden: torch.Tensor, *others: Any, **named: Any) -> Any:
        if not _last_token_only.get():
            return forward(hidden, *others, **named)
        output = forward(hidden[:, -1:], *others, **named)
        last, *rest = output if isinstance(output, tuple) else (output,)
        last = F.pad(last, (0, 0, hidden.shape[1] - 1, 0))
        return (last, *rest) if rest else last

    return run


def _as(parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    if parameter.dtype == dtype or not parameter.is_floating_point():
        return parameter
    return nn.Parameter(parameter.detach().to(dtype), requires_grad=False)


BLOCK = {False: 2**20, True: 2**26}
"""Logits per block of the log-sum-exp over the vocabulary: on a CPU (False, 4 MB) and on a GPU (True, 256 MB)."""


class ItemHead:
    """Scores of codes from hidden states, by the rows of the output head that belong to the item tokens.

    Args:
        model: language model. The bias of its head, its factor of the logits and their soft cap are applied.
        vocabulary: the item tokens.
        scoring: see `DecodeConfig.scoring`; not auto.
        dtype: of the product with the whole vocabulary. The logits of codes are computed in float32: with the 8
            significant bits of bfloat16, many of them would be equal.
        trains: whether gradients reach the model through the scores.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        vocabulary: ItemVocabulary,
        scoring: Scoring,
        dtype: torch.dtype,
        trains: bool = False,
    ) -> None:
        head = model.get_output_embeddings()
        weight, bias = head.weight, getattr(head, "bias", None)
        if not trains:
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        self.scoring = scoring
        self.scale = logit_scale(model)
        self.cap = logit_cap(model)
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        tokens = [torch.from_numpy(ids).to(self.weight.device) for ids in vocabulary.ids]
        self.tokens = tokens
        self._rows = [weight[ids].float() for ids in tokens]
        self._biases = [None if bias is None else bias[ids].float() for ids in tokens]

    def vocabulary(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of all tokens, float32 [R, V], after `hidden` [R, H]."""
        return self._logits(hidden, self.weight, self.bias).log_softmax(-1)

    def level(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Scores of the level's codes, float32 [R, C], after `hidden` [R, H].

        They are log-probabilities; with scoring `catalogue` they are logits, which the caller normalises.
        """
        logits = self._logits(hidden, self._rows[level], self._biases[level])
        if self.scoring == "level":
            return logits.log_softmax(-1)
        if self.scoring == "vocab":
            return logits - self._normaliser(hidden)[:, None]
        return logits

    def _normaliser(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-sum-exp of the logits of all tokens, float32 [R]; in blocks of the vocabulary, for the CPU's caches."""
        block = max(1, BLOCK[hidden.device.type == "cuda"] // len(hidden))
        biases = [None] * len(self.weight) if self.bias is None else self.bias.split(block)
        parts = [
            self._logits(hidden, rows, bias).logsumexp(-1)
            for rows, bias in zip(self.weight.split(block), biases, strict=False)
        ]
        return torch.stack(parts).logsumexp(0)

    def _logits(self, hidden: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        logits = F.linear(hidden.to(rows.dtype), rows, bias).float()
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


SHARED_FROM = 16
"""Least number of common first tokens for which the model reads them in a forward pass of their own; for fewer, that
pass costs more than it saves."""


class Context:
    """The key/value cache of the prompts of a batch, followed by that of the tree of beams.

    Args:
        body: the model.
        ids: the prompts without their `shared` tokens, int64 [B, T], padded on the left.
        mask: int64 [B, T], 1 for tokens, 0 for padding.
        shared: the first tokens of all prompts.
        room: number of slots (positions in the cache) to allocate for the tree; the cache grows if it needs more.
    """

    def __init__(
        self, body: Body, ids: torch.Tensor, mask: torch.Tensor, shared: Sequence[int] = (), room: int = 0
    ) -> None:
        self.body = body
        self.ids = ids
        self.shared = torch.tensor([list(shared)], dtype=torch.int64, device=ids.device)
        self.seen = torch.cat([torch.ones_like(self.shared).expand(len(ids), -1), mask], dim=1).bool()
        self.positions = (self.seen.cumsum(-1) - 1).clamp(min=0)
        self.lengths = self.seen.sum(1)
        self.slots = 0
        self._hidden: torch.Tensor | None = None
        capacity = self.seen.shape[1] + room
        self.cache = Cache(layer_class_to_replicate=partial(Slots, len(ids), capacity))

    @torch.inference_mode()
    def start(self) -> torch.Tensor:
        """The last hidden state of each prompt, [B, 1, H]; also removes the tree.

        The first call runs the model; later calls return the same tensor.
        """
        if self._hidden is None:
            with last_token_only():
                if self.shared.shape[1]:
                    self._prompt(self.shared)
                self._hidden = self._prompt(self.ids)[:, -1:]
        if self.slots:
            self.slots, length = 0, self.seen.shape[1]
            self.positions = self.positions[:, :length]
            for layer in self.cache.layers:
                layer.used = length
        return self._hidden

    def _prompt(self, ids: torch.Tensor) -> torch.Tensor:
        """Run the model on the next tokens `ids` [B or 1, Q] of the prompts."""
        rows, queries = ids.shape
        end = queries if ids is self.shared else self.seen.shape[1]
        seen, positions = self.seen[:rows, :end], self.positions[:rows, :end]
        here = positions[:, end - queries :]
        if queries == end and end <= self.body.reach:
            return self._run(ids, seen.long(), here)  # the model's own causal mask is the fastest
        causal = torch.ones((queries, end), dtype=torch.bool, device=ids.device).tril(end - queries)
        # A padding position must attend to at least one position, itself; otherwise its softmax is NaN.
        sees = (causal & seen[:, None, :]) | causal.triu(end - queries)
        return self._run(ids, self.body.masks(sees, here, positions), here)

    def extend(
        self, tokens: torch.Tensor, depth: torch.Tensor, ancestors: torch.Tensor, running: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model on one more token of each beam for which `running` is true.

        Args:
            tokens: int64 [B, K].
            depth: int64 [B, K], number of codes before each token.
            ancestors: int64 [B, K, depth], the slots of the tree that each beam attends to; -1 for none.
            running: bool [B, K].

        Returns:
            The hidden states [B, K, H], zeros where not `running`; and int64 [B, K, depth + 1], `ancestors` with the
            slot of each new token appended.
        """
        size, k = running.shape
        slots, tree = int(running.sum(1).max()), self.slots
        # Running beams come first, in their order. A user with fewer than `slots` of them also runs some in vain.
        chosen = (~running).long().argsort(dim=1, stable=True)[:, :slots]
        slot = torch.full((size, k), -1, dtype=torch.int64, device=running.device)
        slot.scatter_(1, chosen, tree + torch.arange(slots, device=running.device).expand(size, -1))
        ancestors = torch.cat([ancestors, slot[:, :, None]], dim=2)
        if not slots:
            return torch.zeros((size, k, self.body.width), device=running.device), ancestors
        self.slots += slots
        seen = ancestors.gather(1, chosen[:, :, None].expand(-1, -1, ancestors.shape[2]))
        # The -1s are written to one extra column, which is cut off below.
        visible = torch.zeros((size, slots, self.slots + 1), dtype=torch.bool, device=running.device)
        visible.scatter_(2, torch.where(seen < 0, self.slots, seen), True)
        sees = torch.cat([self.seen[:, None, :].expand(-1, slots, -1), visible[:, :, :-1]], dim=2)
        here = self.lengths[:, None] + depth.gather(1, chosen)
        self.positions = torch.cat([self.positions, here], dim=1)
        ran = self._run(tokens.gather(1, chosen), self.body.masks(sees, here, self.positions), here)
        hidden = ran.new_zeros((size, k, ran.shape[2]))
        return hidden.scatter_(1, chosen[:, :, None].expand(-1, -1, ran.shape[2]), ran), ancestors

    def _run(self, ids: torch.Tensor, mask: torch.Tensor | dict[str, torch.Tensor], at: torch.Tensor) -> torch.Tensor:
        self._before()
        output = self.body.decoder(
            input_ids=ids, attention_mask=mask, position_ids=at, past_key_values=self.cache, use_cache=True
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden.to(self.body.device)

    @staticmethod
    def _before() -> None:
        """What `before_each_pass` asks for."""
        if (check := _check.get()) is not None:
            check()


class Slots(DynamicLayer):
    """The keys and values of one layer in preallocated tensors: appending does not copy the earlier ones.

    Args:
        size: B. The first tensors appended may have one row, which is then written to all B rows.
        capacity: number of tokens to allocate; about doubled when more are appended.
    """

    def __init__(self, size: int, capacity: int) -> None:
        super().__init__()
        self.size = size
        self.capacity = capacity
        self.room: list[torch.Tensor] = []
        self.used = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, [B, heads, Q, D] each; return all keys and values, as views [B, heads, used, D]."""
        start, self.used = self.used, self.used + key_states.shape[2]
        both = (key_states, value_states)
        if not self.room or self.used > self.capacity:
            self.capacity = max(self.capacity, self.used + start)
            grown = [new.new_empty((self.size, new.shape[1], self.capacity, new.shape[3])) for new in both]
            for room, old in zip(grown, self.room, strict=False):
                room[:, :, :start] = old[:, :, :start]
            self.room, self.is_initialized = grown, True
        for room, new in zip(self.room, both, strict=True):
            room[:, :, start : self.used] = new
        self.keys, self.values = (room[: len(key_states), :, : self.used] for room in self.room)
        return self.keys, self.values


def shared_start(prompts: Sequence[Sequence[int]]) -> int:
    """The number of tokens that all `prompts` begin with, less than a whole prompt; 0 if fewer than `SHARED_FROM`."""
    if len(prompts) < 2:
        return 0
    shortest = min(len(prompt) for prompt in prompts)
    columns = zip(*(prompt[: shortest - 1] for prompt in prompts), strict=True)
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return common if common >= SHARED_FROM else 0
