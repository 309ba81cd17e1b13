"""The trie as a logits processor for `generate`: what is not the prefix of a real item gets -inf.

Vectorised over all beams of all requests: the only Python loop runs over the levels of the prefix.

    constraint = TrieConstraint(trie, vocabulary, prompt_length=ids.shape[1], beams=20)
    model.generate(ids, num_beams=20, max_new_tokens=trie.levels, logits_processor=[constraint])
"""

import torch
from transformers import LogitsProcessor

from llmrec.decode.filters import Restriction
from llmrec.decode.search import codes_of, require_numbers
from llmrec.vocab.tokens import ItemVocabulary
from llmrec.vocab.trie import ItemTrie


class TrieConstraint(LogitsProcessor):
    """Keeps the scores of tokens that continue the semantic ID of an allowed item.

    Args:
        trie: of the catalogue.
        vocabulary: of the same levels.
        prompt_length: T, the padded length of the prompts; what follows is the semantic ID.
        beams: K, rows per request.
        restriction: of the batch's requests; None allows every item.
    """

    def __init__(
        self,
        trie: ItemTrie,
        vocabulary: ItemVocabulary,
        prompt_length: int,
        beams: int,
        restriction: Restriction | None = None,
    ) -> None:
        self.trie = trie
        self.prompt_length = prompt_length
        self.beams = beams
        self.restriction = restriction
        self.token_of_code = [torch.from_numpy(ids).to(trie.device) for ids in vocabulary.ids]
        self.code_of_token = torch.from_numpy(vocabulary.code_of_token(int(vocabulary.all_ids.max()) + 1))
        self.code_of_token = self.code_of_token.to(trie.device)

    def nodes(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The trie node of each row's generated prefix: int64 [R], -1 where the prefix is not one."""
        node = torch.zeros(len(input_ids), dtype=torch.int64, device=input_ids.device)
        for level, tokens in enumerate(input_ids[:, self.prompt_length :].T):
            node = self.trie.step(level, node, codes_of(tokens, self.token_of_code[level], self.code_of_token))
        return node

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [R, V] of the next token, -inf but for children of each row's prefix; R = requests x beams.

        Raises:
            NotNumbersError: a score that is kept is NaN.
        """
        level = input_ids.shape[1] - self.prompt_length
        parents = self.nodes(input_ids)
        if self.restriction is None:
            rows, children = self.trie.children(level, parents)
        else:
            requests = torch.arange(len(parents), device=parents.device) // self.beams
            rows, children = self.restriction.children(level, requests, parents)
        tokens = self.token_of_code[level][self.trie.codes(level, children)]
        kept = scores[rows, tokens]
        require_numbers(kept, level, self.trie.levels)
        constrained = torch.full_like(scores, -torch.inf)
        constrained[rows, tokens] = kept
        return constrained
