"""The prompts of a batch and the tree of beams behind them, in one key/value cache that stays where it is.

What all prompts of a batch begin with is run once, their rest row by row. What the beams add is run for all of a user's
beams as further query positions under a tree attention mask: each sees its prompt and its own ancestors.
"""

from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from llmrec.decode.body import Body, last_token_only

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
