"""Beam search with one row per user: a user's beams are extra query positions under a tree attention mask.

A step is one forward pass of B x K tokens; the prompt's key/value cache is neither copied nor reordered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmrec.decode.body import decoding_copy
from llmrec.decode.context import Context, shared_start
from llmrec.decode.filters import Restriction
from llmrec.decode.head import ItemHead
from llmrec.decode.search import BeamSearch, Offsets, codes_of, require_numbers


@dataclass
class Beams:
    """The state of a batch after some levels; K grows to the width as the levels allow.

    Attributes:
        scores: float32 [B, K], sums of log-probabilities, -inf for a beam that is not alive.
        nodes: int64 [B, K], in the trie, -1 for none.
        codes: int64 [B, K], the last code (with constraint none: the last token).
        ancestors: int64 [B, K, depth]: slots of the tree part of the cache that a beam sees.
    """

    scores: torch.Tensor
    nodes: torch.Tensor
    codes: torch.Tensor
    ancestors: torch.Tensor


class TreeSearch(BeamSearch):
    """Exactly the beams of `generate` (scoring vocab), without its copies."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model = decoding_copy(self.model, self.dtype)
        self.head = ItemHead(self.model, self.vocabulary, self.config.scoring, self.dtype)
        config = self.model.config.get_text_config()
        self.window = getattr(config, "sliding_window", None)
        self.layer_types = set(getattr(config, "layer_types", None) or ())
        size = self.head.weight.shape[0]
        self.code_of_token = torch.from_numpy(self.vocabulary.code_of_token(size)).to(self.device)

    @torch.inference_mode()
    def _leaves(
        self,
        prompts: list[Sequence[int]],
        width: int,
        restriction: Restriction | None,
        offsets: Offsets | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        shared = shared_start(prompts)
        ids, mask = self._padded([prompt[shared:] for prompt in prompts])
        context = Context(self, ids, mask, prompts[0][:shared], width * (self.trie.levels - 1))
        hidden = context.prefill()
        size = len(prompts)
        start = torch.zeros((size, 1), dtype=torch.int64, device=self.device)
        beams = Beams(start.float(), start, start, torch.empty((size, 1, 0), dtype=torch.int64, device=self.device))
        for level in range(self.trie.levels):
            beams = self._advance(level, beams, hidden, width, restriction, offsets)
            if level + 1 < self.trie.levels:
                depth = torch.full_like(beams.codes, level)
                tokens = self._tokens(level, beams.codes)
                hidden, beams.ancestors = context.extend(tokens, depth, beams.ancestors, self._open(level, beams))
        return beams.nodes.cpu().numpy(), beams.scores.cpu().numpy()

    def _advance(
        self,
        level: int,
        beams: Beams,
        hidden: torch.Tensor,
        width: int,
        restriction: Restriction | None,
        offsets: Offsets | None,
    ) -> Beams:
        """The best `width` continuations of `beams` [B, K] by one code, given their hidden states [B, K, H]."""
        size, k = beams.scores.shape
        flat, parents = hidden.reshape(size * k, -1), beams.nodes.reshape(-1)
        scores = self._continuations(level, flat, parents, restriction).view(size, k, -1)
        totals = beams.scores[:, :, None] + scores
        order = totals if offsets is None else totals + self._bounds(level, parents, offsets).view_as(totals)
        top, best = order.view(size, -1).topk(min(width, order[0].numel()), dim=1)
        require_numbers(top, level, self.trie.levels)  # topk puts what is none before all numbers
        parent, code = best // scores.shape[2], best % scores.shape[2]
        totals = totals.view(size, -1).gather(1, best)
        from_parent = beams.nodes.gather(1, parent)
        wanted = code
        if self.config.constraint == "none":
            wanted = codes_of(code, self.head.tokens[level], self.code_of_token)
        nodes = self.trie.step(level, from_parent.reshape(-1), wanted.reshape(-1)).view_as(code)
        nodes = torch.where(torch.isneginf(totals), -1, nodes)
        ancestors = beams.ancestors.gather(1, parent[:, :, None].expand(-1, -1, beams.ancestors.shape[2]))
        return Beams(totals, nodes, code, ancestors)

    def _continuations(
        self, level: int, hidden: torch.Tensor, parents: torch.Tensor, restriction: Restriction | None
    ) -> torch.Tensor:
        """Log-probability of each code (constraint none: token) after each beam [R, C]; -inf where it can't follow."""
        if self.config.constraint == "none":
            return self.head.vocabulary(hidden)
        scores = self.head.level(hidden, level)
        if self.config.constraint == "level":
            return scores
        rows, nodes = self.trie.children(level, parents)
        if self.config.scoring == "catalogue":
            scores = _keep(scores, rows, self.trie.codes(level, nodes)).log_softmax(-1)
            scores = torch.where(parents[:, None] >= 0, scores, -torch.inf)
        if restriction is not None:
            requests = torch.arange(len(parents), device=parents.device) // (len(parents) // len(restriction.filters))
            rows, nodes = restriction.children(level, requests, parents)
        return _keep(scores, rows, self.trie.codes(level, nodes))

    def _bounds(self, level: int, parents: torch.Tensor, offsets: Offsets) -> torch.Tensor:
        """The largest offset below each code's node, float32 [R, C]; 0 where there is none."""
        rows, nodes = self.trie.children(level, parents)
        bounds = torch.zeros((len(parents), self.trie.level_sizes[level]), device=parents.device)
        bounds[rows, self.trie.codes(level, nodes)] = offsets.bounds[level][nodes]
        return bounds

    def _tokens(self, level: int, codes: torch.Tensor) -> torch.Tensor:
        """The tokens of `codes` (constraint none: which are tokens already), int64 of the same shape."""
        return codes if self.config.constraint == "none" else self.head.tokens[level][codes]

    def _open(self, level: int, beams: Beams) -> torch.Tensor:
        """bool [B, K]: beams whose next code has yet to be scored; with scoring catalogue not those of one leaf."""
        alive = ~torch.isneginf(beams.scores)
        if self.config.scoring != "catalogue":
            return alive
        return alive & ~self.trie.single_leaf(level, beams.nodes.clamp(min=0))


def _keep(scores: torch.Tensor, rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """`scores` [R, C] at the given cells, -inf elsewhere."""
    kept = torch.full_like(scores, -torch.inf)
    kept[rows, codes] = scores[rows, codes]
    return kept
