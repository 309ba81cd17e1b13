"""Item tokens: one new token of the language model's tokenizer per level and code, such as `<a_12><b_7><c_201>`."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrec.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_names(level_sizes: Sequence[int], prefix: str = "") -> list[list[str]]:
    """The names of the item tokens, per level: `<{prefix}{letter}_{code}>` (LC-Rec, arXiv 2311.09049).

    Raises:
        UserError: more levels than letters, or a prefix with characters that would break the name.
    """
    if len(level_sizes) > len(string.ascii_lowercase):
        raise UserError(f"--tokenize.levels: {len(level_sizes)} levels, but item tokens name at most 26.")
    if not all(c.isalnum() or c in "_-" for c in prefix):
        raise UserError(f"--base.token_prefix {prefix!r}: expected letters, digits, '_' or '-' only.")
    return [
        [f"<{prefix}{letter}_{code}>" for code in range(size)]
        for letter, size in zip(string.ascii_lowercase, level_sizes, strict=False)
    ]


@dataclass(frozen=True)
class ItemVocabulary:
    """The mapping between codes and item tokens.

    Attributes:
        names: `names[l][c]` is the token string of code c at level l.
        ids: per level, int64 [C_l]: `ids[l][c]` is the token id of code c at level l.
    """

    names: list[list[str]]
    ids: list[np.ndarray]

    @classmethod
    def add_to(
        cls, tokenizer: "PreTrainedTokenizerBase", level_sizes: Sequence[int], prefix: str = ""
    ) -> "ItemVocabulary":
        """Add the item tokens to `tokenizer` (in place), after its own tokens.

        Raises:
            UserError: one of the names is already a token of the tokenizer.
        """
        from tokenizers import AddedToken

        names = token_names(level_sizes, prefix)
        flat = [name for level in names for name in level]
        taken = tokenizer.get_vocab().keys() & set(flat)
        if taken:
            raise UserError(
                f"The base model's tokenizer already has the token {min(taken)!r} (and {len(taken) - 1} more of the "
                "item tokens' names); choose other names with --base.token_prefix, such as item_."
            )
        # special=False: a decoded text shows the tokens. normalized=False: their names are never lower-cased and
        # keep their accents.
        tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in flat])
        return cls.of(tokenizer, level_sizes, prefix)

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", level_sizes: Sequence[int], prefix: str = "") -> "ItemVocabulary":
        """The item tokens of a tokenizer that already has them.

        Raises:
            UserError: the tokenizer lacks one of them.
        """
        if sum(level_sizes) > len(tokenizer):  # checked before so many names are made
            raise UserError(f"{sum(level_sizes)} item tokens, but the tokenizer has {len(tokenizer)} tokens in all.")
        names = token_names(level_sizes, prefix)
        vocabulary = tokenizer.get_vocab()
        missing = [name for level in names for name in level if name not in vocabulary]
        if missing:
            raise UserError(f"The tokenizer lacks {len(missing)} item tokens, the first is {missing[0]!r}.")
        ids = [np.array([vocabulary[name] for name in level], dtype=np.int64) for level in names]
        return cls(names, ids)

    @property
    def level_sizes(self) -> list[int]:
        """C_l, the number of codes per level."""
        return [len(level) for level in self.ids]

    @property
    def all_ids(self) -> np.ndarray:
        """int64 [sum of C_l], the ids of all item tokens, in level order."""
        return np.concatenate(self.ids)

    def token_ids(self, codes: np.ndarray) -> np.ndarray:
        """Token ids, int64 [..., L], of codes, int [..., L]."""
        return np.stack([self.ids[level][codes[..., level]] for level in range(len(self.ids))], axis=-1)

    def text(self, codes: np.ndarray) -> str:
        """The text of a semantic ID (int [L]) or of a prefix with fewer levels, such as `<a_12><b_7>`."""
        return "".join(self.names[level][code] for level, code in enumerate(codes))

    def code_of_token(self, size: int) -> np.ndarray:
        """int64 [size]: the code of each token id below `size`; -1 for a token that is not an item token."""
        table = np.full(size, -1, dtype=np.int64)
        for ids in self.ids:
            table[ids] = np.arange(len(ids))
        return table
