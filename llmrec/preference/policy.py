"""The model that is aligned: a search whose scores of given items train it, and which can also draw items at random.

B prompts, M items per prompt, L levels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from llmrec.decode.config import DecodeConfig
from llmrec.decode.context import ItemHead
from llmrec.decode.filters import Filter
from llmrec.decode.search import Offsets, Ranking
from llmrec.decode.tree import Beams, TreeSearch
from llmrec.device import resolve_dtype
from llmrec.index.trie import ItemTrie
from llmrec.model.tokens import ItemVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Policy(TreeSearch):
    """A model that is searched and trained.

    It shares the float32 weights of the model, so each search sees the last step of the training. Dropout is off.

    Args:
        model: causal language model, or a PEFT model around it, with float32 weights; it takes a tree attention mask.
        vocabulary: the item tokens.
        trie: of the catalogue.
        config: beams, scoring, batch size, arithmetic (under autocast), device. The constraint is always trie.
        pad_token_id: pads prompts.
        is_cold: bool [N], as in `BeamSearch`.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        vocabulary: ItemVocabulary,
        trie: ItemTrie,
        config: DecodeConfig,
        pad_token_id: int = 0,
        is_cold: np.ndarray | None = None,
    ) -> None:
        shared = replace(config, dtype="float32", constraint="trie", ranking="auto")
        super().__init__(model, vocabulary, trie, shared, pad_token_id, is_cold)
        self._noise: list[torch.Generator] | None = None
        arithmetic = resolve_dtype(config.dtype, self.device)
        if arithmetic != torch.float32:
            decoder = self.body.decoder
            decoder.forward = torch.autocast(self.device.type, arithmetic)(decoder.forward)

    def search(
        self,
        prompts: Sequence[Sequence[int]],
        k: int,
        filters: Sequence[Filter] | None = None,
        beams: int | None = None,
        offsets: np.ndarray | None = None,
    ) -> Ranking:
        self._use_weights()
        return super().search(prompts, k, filters, beams, offsets)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        k: int,
        seeds: Sequence[int] | np.ndarray,
        filters: Sequence[Filter] | None = None,
    ) -> Ranking:
        """Draw k items per prompt without replacement, by stochastic beam search (Kool et al. 2019, arXiv 1903.06059).

        Without filters, item after item is drawn from the distribution of the policy, without those drawn before. (For
        two items with one semantic ID, the semantic IDs are drawn.) With filters, the children of each prefix that are
        left share its probability.

        Args:
            prompts: token ids per request.
            k: items per request.
            seeds: per request, of its draw, which does not depend on the other requests.
            filters: per request, the items that may be drawn.

        Returns:
            The items, sorted by their log-probability under the policy, which is the score.
        """
        self._use_weights()
        parts = []
        try:
            for chosen in self.batches(prompts):
                self._noise = [torch.Generator().manual_seed(int(seeds[i])) for i in chosen]
                own = None if filters is None else [filters[i] for i in chosen]
                parts.append((chosen, self.rank(self.prefill([prompts[i] for i in chosen]), k, own, beams=k)))
        finally:
            self._noise = None
        return Ranking.joined(len(prompts), k, parts)

    def _order(self, level: int, beams: Beams, totals: torch.Tensor, offsets: Offsets | None) -> torch.Tensor:
        if self._noise is None:
            return super()._order(level, beams, totals, offsets)
        rows = [torch.rand(totals.shape[1:], generator=noise, dtype=torch.float64) for noise in self._noise]
        return perturbed(totals, beams.order, torch.stack(rows).to(totals.device)).float()

    def item_scores(self, prompts: Sequence[Sequence[int]], items: np.ndarray) -> torch.Tensor:
        """The log-probability of each given item, as decoding compares them, with gradients.

        One forward pass: a row holds a prompt and after it the distinct prefixes of its items, under a tree attention
        mask, so that neither the prompt nor a shared prefix is read twice.

        Args:
            prompts: B token ids.
            items: int64 [B, M], rows of the catalogue; -1 for none.

        Returns:
            float32 [B, M]; 0 where there is no item.
        """
        self._use_weights(trains=torch.is_grad_enabled())
        if not (items >= 0).any():
            return torch.zeros(items.shape, device=self.device)
        there = torch.from_numpy(items >= 0).to(self.device)
        wanted = np.where(items >= 0, items, int(self.trie.order[0]))
        paths = [path.view(items.shape) for path in self.trie.paths(torch.from_numpy(wanted).to(self.device).flatten())]
        layout = _Layout(prompts, [path.cpu().numpy() for path in paths], items >= 0)
        ids = torch.full(layout.positions.shape, self.pad_token_id)
        for at, prompt in enumerate(prompts):
            ids[at, : len(prompt)] = torch.as_tensor(prompt)
        ids = ids.to(self.device)
        states = [[torch.from_numpy(each).to(self.device) for each in found] for found in layout.states]
        for level, (row, column, parent, _) in enumerate(states[1:]):
            ids[row, column] = self.head.tokens[level][self.trie.codes(level, parent)]
        positions = torch.from_numpy(layout.positions).to(self.device)
        mask = self.body.masks(torch.from_numpy(layout.sees).to(self.device), positions, positions)
        hidden = self.body.decoder(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        total = torch.zeros(items.shape, device=self.device)
        for level, (row, column, parent, place) in enumerate(states):
            scores = self._continuations(level, hidden[row, column], parent, None)
            own = scores[place, self.trie.codes(level, paths[level])]
            total = total + torch.where(there, own, 0.0)
        return total

    def _use_weights(self, trains: bool = False) -> None:
        """Read the rows of the output head again, which the last step has changed."""
        self.head = ItemHead(self.model, self.vocabulary, self.config.scoring, torch.float32, trains)


class _Layout:
    """Where the prefixes of items stand in the rows of one forward pass.

    Args:
        prompts: B token ids.
        paths: per level, int64 [B, M], the node of each item's prefix.
        there: bool [B, M], the items that count.

    Attributes:
        positions: int64 [B, T], of each token; 0 for padding.
        sees: bool [B, T, T], whether a token attends to another.
        states: per level, four int64 arrays: the row, the column and the node [R] of each distinct prefix before the
            code of that level, and the number [B, M] of each item's prefix among them.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], paths: list[np.ndarray], there: np.ndarray) -> None:
        lengths = np.array([len(prompt) for prompt in prompts])
        size, last = len(prompts), len(paths) - 1
        above = np.repeat(lengths[:, None] - 1, there.shape[1], axis=1)  # column of each item's prefix
        free = lengths.copy()
        tokens: list[tuple[int, int, int, int]] = []  # row, column, column of the prefix before, position
        own = np.repeat(np.arange(size)[:, None], there.shape[1], axis=1)
        self.states: list[tuple[np.ndarray, ...]] = [(np.arange(size), lengths - 1, np.zeros(size, np.int64), own)]
        for level, nodes in enumerate(paths[:last]):
            rows, columns, parents = [], [], []
            place, count = np.zeros(there.shape, np.int64), 0
            for row in range(size):
                distinct, first, inverse = np.unique(nodes[row, there[row]], return_index=True, return_inverse=True)
                column = free[row] + np.arange(len(distinct))
                before = above[row, there[row]][first]
                position = int(lengths[row]) + level
                tokens += [(row, new, old, position) for new, old in zip(column.tolist(), before.tolist(), strict=True)]
                above[row, there[row]] = column[inverse]
                place[row, there[row]] = count + inverse
                rows.append(np.full(len(distinct), row))
                columns.append(column)
                parents.append(distinct)
                free[row] += len(distinct)
                count += len(distinct)
            self.states.append((*map(np.concatenate, (rows, columns, parents)), place))
        width = int(free.max())
        self.positions = np.where(np.arange(width) < lengths[:, None], np.arange(width), 0)
        prompt = np.arange(width) < lengths[:, None, None]
        self.sees = (np.tri(width, dtype=bool) & prompt & prompt.swapaxes(1, 2)) | np.eye(width, dtype=bool)
        for row, column, before, position in tokens:
            self.sees[row, column] |= self.sees[row, before]
            self.positions[row, column] = position


@contextmanager
def weights_of(trained: Mapping[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Context manager: the parameters `trained` have these `values`. No weight is copied on the CPU."""
    own = {name: parameter.data for name, parameter in trained.items()}
    try:
        for name, parameter in trained.items():
            parameter.data = values[name].to(parameter.device)
        yield
    finally:
        for name, parameter in trained.items():
            parameter.data = own[name]


def perturbed(scores: torch.Tensor, keys: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The Gumbel-perturbed scores of the children of each prefix, given that their largest is that of the prefix.

    The K largest among all leaves are K draws without replacement (Gumbel-top-k); a prefix that is not among the K
    largest of its level has no leaf among them (Kool et al. 2019, algorithm 1 and appendix B.3).

    Args:
        scores: [B, K, C], log-probabilities of the children, -inf for none.
        keys: [B, K], perturbed log-probabilities of the prefixes; the root has 0.
        uniform: [B, K, C], uniform random numbers in [0, 1).

    Returns:
        float64 [B, K, C]; -inf where there is no child.
    """
    gumbel = scores.double() - torch.log(-torch.log(uniform.double().clamp(min=1e-300)))
    limit, largest = keys.double()[:, :, None], gumbel.amax(dim=2, keepdim=True)
    inner = limit - gumbel + torch.log1p(-torch.exp(gumbel - largest))
    drawn = limit - inner.clamp(min=0) - torch.log1p(torch.exp(-inner.abs()))
    return torch.where(torch.isneginf(scores), -torch.inf, drawn)
