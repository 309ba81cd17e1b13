"""Users as tokens: the mean vector of a user's items, quantized as an item is (UIST, Liu et al., WWW 2024,
arXiv 2403.08206).

    <user_a_12><user_b_7><user_c_201>    before the items of a history

The codebooks are those of the items and stay as they are, so that a new user needs no training: any history gives codes
at once. A bundle keeps codes, not vectors, so the vector of an item is what its codes stand for (`Quantizer.decode`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from llmrec.model.tokens import ItemVocabulary
from llmrec.quantize.features import user_codes
from llmrec.quantize.tokenizer import ItemTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER = "user_"
"""Begins the name of a user's token, before the prefix of the item tokens."""


@dataclass(frozen=True)
class UserTokens:
    """The tokens of users. No item has them, so the trie of the items never writes them.

    Attributes:
        vocabulary: one token per code of each of the quantizer's L levels; a dedup level has none.
        items: the items' codes and the quantizer.
    """

    vocabulary: ItemVocabulary
    items: ItemTokenizer

    @classmethod
    def add_to(cls, tokenizer: "PreTrainedTokenizerBase", items: ItemTokenizer, prefix: str = "") -> Self:
        """Add the tokens to `tokenizer`, in place; arguments and errors are those of `ItemVocabulary.add_to`."""
        return cls(ItemVocabulary.add_to(tokenizer, items.quantizer.level_sizes, USER + prefix), items)

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", items: ItemTokenizer, prefix: str = "") -> Self:
        """The tokens of a tokenizer that already has them; errors are those of `ItemVocabulary.of`."""
        return cls(ItemVocabulary.of(tokenizer, items.quantizer.level_sizes, USER + prefix), items)

    def text(self, history: Sequence[int] | np.ndarray) -> str:
        """The tokens of the user with this history (rows of the catalogue); none for an empty history."""
        if not len(history):
            return ""
        quantizer = self.items.quantizer
        vectors = quantizer.decode(self.items.codes[np.asarray(history), : quantizer.levels])
        return self.vocabulary.text(user_codes([np.arange(len(vectors))], vectors, quantizer, len(vectors))[0])
