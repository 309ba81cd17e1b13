"""The beams of an encoder-decoder: the encoder reads each prompt once, the beams grow in the decoder.

All beams of a user are query positions of one row, so they share the keys and values of the cross-attention. Among
themselves they see what the tree attention mask of `Context` lets them see.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache

from llmrec.decode.context import Body, Context, shared_start
from llmrec.decode.search import left_padded
from llmrec.model.architecture import encoder_of, start_token
from llmrec.model.forward import right_padded


def open_context(
    body: Body, prompts: Sequence[Sequence[int]], pad_token_id: int, room: int = 0, shared: int | None = None
) -> Context:
    """The context in which the answers to `prompts` grow; the model has not run yet.

    Args:
        body: the model.
        prompts: token ids of each request.
        pad_token_id: pads the prompts.
        room: as for `Context`.
        shared: number of first tokens that all prompts share and a decoder-only model reads once; default: as
            `shared_start` finds.
    """
    device = body.device
    if encoder_of(body.model) is not None:
        return EncodedContext(body, *right_padded(prompts, pad_token_id, device), room)
    shared = shared_start(prompts) if shared is None else shared
    ids, mask = left_padded([prompt[shared:] for prompt in prompts], pad_token_id, device)
    return Context(body, ids, mask, prompts[0][:shared], room)


class EncodedContext(Context):
    """A context whose prompts are in the encoder; in the decoder, a start token stands for each.

    Args:
        body: the model, an encoder-decoder.
        ids: the prompts, int64 [B, T], padded on the right.
        mask: int64 [B, T], 1 for tokens, 0 for padding.
        room: number of slots to allocate for the tree of beams.
    """

    def __init__(self, body: Body, ids: torch.Tensor, mask: torch.Tensor, room: int = 0) -> None:
        start = torch.full((len(ids), 1), start_token(body.model), device=ids.device)
        super().__init__(body, start, torch.ones_like(start), room=room)
        self.prompts, self.mask = ids, mask
        self.caches = EncoderDecoderCache(self.cache, DynamicCache())
        self._encoded: torch.Tensor | None = None

    def _run(self, ids: torch.Tensor, mask: torch.Tensor | dict[str, torch.Tensor], at: torch.Tensor) -> torch.Tensor:
        encoder = encoder_of(self.body.model)
        assert encoder is not None, "an encoder-decoder"
        self._before()
        if self._encoded is None:
            self._encoded = encoder(input_ids=self.prompts, attention_mask=self.mask).last_hidden_state
        with _placed(self.body.decoder, at, self.positions):
            output = self.body.decoder(
                input_ids=ids,
                attention_mask=mask,
                encoder_hidden_states=self._encoded,
                encoder_attention_mask=self.mask,
                past_key_values=self.caches,
                use_cache=True,
            )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden.to(self.body.device)


_placing = threading.Lock()


@contextmanager
def _placed(decoder: nn.Module, at: torch.Tensor, keys: torch.Tensor) -> Iterator[None]:
    """Context manager: relative position biases (T5) follow these positions, not the places in the cache.

    It changes the decoder, which other threads may use; so only one thread at a time is inside.

    Args:
        decoder: its layers with a `relative_attention_bias` change.
        at: int64 [B, Q], positions of the queries.
        keys: int64 [B, S], positions of the keys.
    """
    layers: list[Any] = [layer for layer in decoder.modules() if hasattr(layer, "relative_attention_bias")]
    with _placing:
        for layer in layers:
            layer.compute_bias = partial(_bias, layer, at, keys)
        try:
            yield
        finally:
            for layer in layers:
                del layer.compute_bias


def _bias(layer: Any, at: torch.Tensor, keys: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """The layer's own bias [B, heads, Q, S], for queries at the positions `at` and keys at the positions `keys`."""
    length = int(keys.max()) + 1
    every: torch.Tensor = type(layer).compute_bias(layer, length, length)  # [1, heads, length, length]
    return every[0][:, at[:, :, None], keys[:, None, :]].transpose(0, 1)
