"""The model as decoding runs it: its layers, its rows of the item tokens, and a key/value cache that stays in place.

The common start of all prompts of a batch is run once, the rest of each prompt row by row. The beams of a user are run
as further query positions under a tree attention mask: each sees its prompt and its own ancestors.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llmrec.decode.config import Scoring
from llmrec.model.tokens import ItemVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "llmrec_grouped"


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' "sdpa" computes of query [B, G x h, Q, D] and key, value [B, h, S, D], by its interface.

    The G query heads of a key head (Ainslie et al. 2023, arXiv 2305.13245) become G x Q queries of that head; "sdpa"
    copies keys and values G times instead when there is a mask.

    Returns:
        [B, Q, G x h, D], and None for the weights.
    """
    groups = query.shape[1] // key.shape[1]
    biased = kwargs.get("position_bias") is not None
    if groups == 1 or attention_mask is None or attention_mask.shape[1] > 1 or biased:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    batch, heads, length, width = query.shape
    output = F.scaled_dot_product_attention(
        query.reshape(batch, heads // groups, groups * length, width),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        dropout_p=kwargs.get("dropout", 0.0),
        scale=scaling,
    )
    return output.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None


def group_heads(model: "PreTrainedModel") -> None:
    """Make `model` attend by `grouped_attention` if it attends by "sdpa"."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, grouped_attention)


AttentionMaskInterface.register(NAME, sdpa_mask)


_last_token_only: ContextVar[bool] = ContextVar("_last_token_only", default=False)


class Body:
    """A model as decoding runs it.

    Attributes:
        model: a copy of the modules in the decoder's arithmetic, see `decoding_copy`.
        dtype: of its weights.
        width: H, of its hidden states.
        window: positions that a sliding attention sees; None if every layer sees all.
        layer_types: kinds of attention that its layers have, empty where the configuration names none.
    """

    def __init__(self, model: "PreTrainedModel", dtype: torch.dtype) -> None:
        self.model = decoding_copy(model, dtype)
        self.dtype = dtype
        self.width = int(self.model.get_output_embeddings().weight.shape[1])
        config = self.model.config.get_text_config()
        self.window: int | None = getattr(config, "sliding_window", None)
        self.layer_types = set(getattr(config, "layer_types", None) or ())


def decoding_copy(model: "PreTrainedModel", dtype: torch.dtype) -> "PreTrainedModel":
    """A copy of the modules of `model`, whose own state nothing done to the copy changes.

    Parameters that are `dtype` already are shared with `model`, others converted once. Buffers keep their type: rotary
    frequencies lose too much in bfloat16.
    """
    parameters = {id(parameter): _as(parameter, dtype) for parameter in model.parameters()}
    own = copy.deepcopy(model, parameters)
    group_heads(own)
    blocks = [module for module in own.base_model.children() if isinstance(module, nn.ModuleList)]
    feed_forward = getattr(blocks[0][-1], "mlp", None) if blocks else None
    if feed_forward is not None:
        feed_forward.register_forward_pre_hook(_keep_last_token)
    return own


@contextmanager
def last_token_only() -> Iterator[None]:
    """Within, only the last hidden state of each row is right: the last layer's feed-forward, which nothing else and
    no cache depends on, computes that one alone."""
    token = _last_token_only.set(True)
    try:
        yield
    finally:
        _last_token_only.reset(token)


def _keep_last_token(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return (inputs[0][:, -1:], *inputs[1:]) if _last_token_only.get() else None


def _as(parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    if parameter.dtype == dtype or not parameter.is_floating_point():
        return parameter
    return nn.Parameter(parameter.detach().to(dtype), requires_grad=False)


BLOCK = {False: 2**20, True: 2**26}
"""Logits computed at a time where only their sum matters, on a CPU (4 MB) and on a GPU (256 MB)."""


class ItemHead:
    """The output head of a model, as far as item tokens go.

    Args:
        model: causal language model; its head's bias and soft cap are honoured.
        vocabulary: the item tokens.
        scoring: as above.
        dtype: of the product with the whole vocabulary. Codes' own logits are float32: 8 bits would tie them.
    """

    def __init__(
        self, model: "PreTrainedModel", vocabulary: ItemVocabulary, scoring: Scoring, dtype: torch.dtype
    ) -> None:
        head = model.get_output_embeddings()
        self.scoring = scoring
        self.cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self.weight = head.weight.detach().to(dtype)
        self.bias = head.bias.detach().to(dtype) if getattr(head, "bias", None) is not None else None
        tokens = [torch.from_numpy(ids).to(self.weight.device) for ids in vocabulary.ids]
        self.tokens = tokens
        self._rows = [head.weight.detach()[ids].float() for ids in tokens]
        self._biases = [None if self.bias is None else head.bias.detach()[ids].float() for ids in tokens]

    def vocabulary(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of all tokens, float32 [R, V], after `hidden` [R, H]."""
        return self._logits(hidden, self.weight, self.bias).log_softmax(-1)

    def level(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Scores of the level's codes, float32 [R, C]: log-probabilities, but for `catalogue` yet to be normalised."""
        logits = self._logits(hidden, self._rows[level], self._biases[level])
        if self.scoring == "level":
            return logits.log_softmax(-1)
        if self.scoring == "vocab":
            return logits - self._normaliser(hidden)[:, None]
        return logits

    def _normaliser(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-sum-exp of all tokens' logits, float32 [R], by blocks of the vocabulary that stay in the caches."""
        block = max(1, BLOCK[hidden.device.type == "cuda"] // len(hidden))
        biases = [None] * len(self.weight) if self.bias is None else self.bias.split(block)
        parts = [
            self._logits(hidden, rows, bias).logsumexp(-1)
            for rows, bias in zip(self.weight.split(block), biases, strict=False)
        ]
        return torch.stack(parts).logsumexp(0)

    def _logits(self, hidden: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        logits = F.linear(hidden.to(rows.dtype), rows, bias).float()
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


SHARED_FROM = 16
"""Tokens that prompts must have in common to be run apart; a pass of their own for fewer costs more than it spares."""


class Context:
    """The prompts of a batch and the tree of beams behind them.

    Args:
        body: the model that runs.
        ids: prompts, or their rests after `shared`, int64 [B, T], padded on the left.
        mask: int64 [B, T], 1 for tokens.
        shared: tokens that all prompts begin with.
        room: slots that the tree may take; more are made when they are not enough.
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
        """The hidden states after the prompts, [B, 1, H], which are run once; what was added behind them goes."""
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
        """Run the tokens `ids` [B or 1, Q] of the prompts that come next."""
        rows, queries = ids.shape
        end = queries if ids is self.shared else self.seen.shape[1]
        seen, positions = self.seen[:rows, :end], self.positions[:rows, :end]
        here = positions[:, end - queries :]
        if queries == end and (self.body.window is None or end <= self.body.window):
            return self._run(ids, seen.long(), here)  # the model's own causal mask, its fastest
        causal = torch.ones((queries, end), dtype=torch.bool, device=ids.device).tril(end - queries)
        # A row of padding must see something, itself, or its softmax is not a number.
        sees = (causal & seen[:, None, :]) | causal.triu(end - queries)
        return self._run(ids, self._masks(sees, here, positions), here)

    def extend(
        self, tokens: torch.Tensor, depth: torch.Tensor, ancestors: torch.Tensor, running: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one more token of each beam where `running`.

        Args:
            tokens: int64 [B, K].
            depth: int64 [B, K], how many codes come before them.
            ancestors: int64 [B, K, depth], slots of the tree that each sees; -1 for none.
            running: bool [B, K].

        Returns:
            Their hidden states [B, K, H] (zeros elsewhere), and the ancestors with their own slots.
        """
        size, k = running.shape
        slots, tree = int(running.sum(1).max()), self.slots
        # Running beams first, in their order; a user with fewer than `slots` of them runs some in vain.
        chosen = (~running).long().argsort(dim=1, stable=True)[:, :slots]
        slot = torch.full((size, k), -1, dtype=torch.int64, device=running.device)
        slot.scatter_(1, chosen, tree + torch.arange(slots, device=running.device).expand(size, -1))
        ancestors = torch.cat([ancestors, slot[:, :, None]], dim=2)
        if not slots:
            return torch.zeros((size, k, self.body.width), device=running.device), ancestors
        self.slots += slots
        seen = ancestors.gather(1, chosen[:, :, None].expand(-1, -1, ancestors.shape[2]))
        # One column more, for the -1s, which goes again.
        visible = torch.zeros((size, slots, self.slots + 1), dtype=torch.bool, device=running.device)
        visible.scatter_(2, torch.where(seen < 0, self.slots, seen), True)
        sees = torch.cat([self.seen[:, None, :].expand(-1, slots, -1), visible[:, :, :-1]], dim=2)
        here = self.lengths[:, None] + depth.gather(1, chosen)
        self.positions = torch.cat([self.positions, here], dim=1)
        ran = self._run(tokens.gather(1, chosen), self._masks(sees, here, self.positions), here)
        hidden = ran.new_zeros((size, k, ran.shape[2]))
        return hidden.scatter_(1, chosen[:, :, None].expand(-1, -1, ran.shape[2]), ran), ancestors

    def _run(self, ids: torch.Tensor, mask: torch.Tensor | dict[str, torch.Tensor], at: torch.Tensor) -> torch.Tensor:
        output = self.body.model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=at, past_key_values=self.cache, use_cache=True
        )
        return output.last_hidden_state

    def _masks(
        self, sees: torch.Tensor, at: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """The 4-D mask of `sees` (bool [B, Q, S]) as the model takes it; queries stand `at` [B, Q], `keys` [B, S]."""
        window = self.body.window
        if window is None:
            return self._additive(sees)
        near = sees & (at[:, :, None] - keys[:, None, :] < window)
        if not {"sliding_attention", "full_attention"} <= self.body.layer_types:
            return self._additive(near)
        return {"full_attention": self._additive(sees), "sliding_attention": self._additive(near)}

    def _additive(self, sees: torch.Tensor) -> torch.Tensor:
        least = torch.finfo(self.body.dtype).min
        return torch.zeros(sees.shape, dtype=self.body.dtype, device=sees.device).masked_fill_(~sees, least)[:, None]


class Slots(DynamicLayer):
    """One layer's keys and values, written into room made once: appending copies none of the earlier ones.

    Args:
        size: B. What is appended first may have one row, which then stands for all.
        capacity: tokens to make room for; doubled when they are more.
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
        """Append [B, heads, Q, D] of each; returns all there is, as views [B, heads, used, D]."""
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
    """How many tokens to run once for all `prompts`: those that all begin with, but never a whole prompt; 0 if few."""
    if len(prompts) < 2:
        return 0
    shortest = min(len(prompt) for prompt in prompts)
    columns = zip(*(prompt[: shortest - 1] for prompt in prompts), strict=True)
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return common if common >= SHARED_FROM else 0
