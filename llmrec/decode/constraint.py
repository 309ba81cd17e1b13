"""The trie as a logits processor for `generate`: what is not the prefix of a real item gets -inf.

Vectorised over all beams of all requests: the only Python loop runs over the levels of the prefix.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

from llmrec.vocab.tokens import ItemVocabulary
from llmrec.vocab.trie import ItemTrie


class TrieConstraint(LogitsProcessor):
    """Keeps the scores of tokens that continue the semantic ID of an allowed item.

    Args:
        trie: of the catalogue.
        vocabulary: of the same levels.
        vocabulary_size: V, the width of the model's scores.
        prompt_length: T, the padded length of the prompts; what follows is the semantic ID.
        beams: K, rows per request.
        excluded: per request, int [E_b], items (rows of the catalogue) that must not come out.
    """

    def __init__(
        self,
        trie: ItemTrie,
        vocabulary: ItemVocabulary,
        vocabulary_size: int,
        prompt_length: int,
        beams: int,
        excluded: Sequence[np.ndarray] | None = None,
    ) -> None:
        device = trie.paths.device
        self.trie = trie
        self.prompt_length = prompt_length
        self.beams = beams
        self.code_of_token = torch.from_numpy(vocabulary.code_of_token(vocabulary_size)).to(device)
        self.token_of_code = [torch.from_numpy(ids).to(device) for ids in vocabulary.ids]
        self.exhausted = trie.exhausted(excluded) if excluded is not None else None

    def nodes(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The trie node of each row's generated prefix: int64 [R], -1 where the prefix is not one."""
        node = torch.zeros(len(input_ids), dtype=torch.int64, device=input_ids.device)
        for level, tokens in enumerate(input_ids[:, self.prompt_length :].T):
            node = self.trie.step(level, node, self.code_of_token[tokens])
        return node

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [R, V] of the next token, -inf but for children of each row's prefix; R = requests x beams."""
        level = input_ids.shape[1] - self.prompt_length
        rows, children = self.trie.children(level, self.nodes(input_ids))
        if self.exhausted is not None and len(self.exhausted[level]):
            gone = self.exhausted[level]
            key = rows // self.beams * len(self.trie.keys[level]) + children
            at = torch.searchsorted(gone, key).clamp_(max=len(gone) - 1)
            keep = gone[at] != key
            rows, children = rows[keep], children[keep]
        tokens = self.token_of_code[level][self.trie.codes(level, children)]
        constrained = torch.full_like(scores, -torch.inf)
        constrained[rows, tokens] = scores[rows, tokens]
        return constrained
