"""The text decoder of an RQ-VAE: codes tell the words of an item's text, after LMIndexer (arXiv 2310.07815).

LMIndexer reconstructs the tokens of a half-masked text with a Transformer. Here the whole text is masked, so that only
the codes can tell it, and its words are predicted independently of one another by a softmax that is linear in the sum
of the codes' vectors, as in the neural variational document model (Miao et al., ICML 2016, arXiv 1511.06038). So the
words of a tuple of codes need no generation, and each code adds its own part to the logits of the words.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from llmrec.errors import UserError
from llmrec.quantize.base import LikelyWord
from llmrec.quantize.report.report import WORD

if TYPE_CHECKING:
    from scipy.sparse import csr_array

VOCABULARY = 2000
"""Most words that the decoder knows: those of the most texts."""

LEAST_TEXTS = 2
"""Texts that a word of the vocabulary is in, at least; a word of a single item says nothing of its codes."""


def count_words(texts: Sequence[str]) -> tuple[list[str], "csr_array"]:
    """Find the vocabulary of texts, and the words of each.

    Args:
        texts: N texts; one may be empty.

    Returns:
        V words, and float32 [N, V]: 1 / n for each of the n different words of a text that the vocabulary has.

    Raises:
        UserError: no word is in two of the texts.
    """
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    settings = {"token_pattern": WORD, "min_df": LEAST_TEXTS, "max_features": VOCABULARY}
    vectorizer = CountVectorizer(binary=True, dtype=np.float32, **settings)
    try:
        has = vectorizer.fit_transform(texts)
    except ValueError:  # sklearn raises it for an empty vocabulary
        raise UserError(
            f"--tokenize.rq_vae.loss.words: no word is in the texts of {LEAST_TEXTS} of {len(texts)} items, so codes "
            "can't tell the words of an item; name other fields in --embed.template, or set the weight to 0"
        ) from None
    return vectorizer.get_feature_names_out().tolist(), csr_array(normalize(has, "l1"))


def spell(stored: np.ndarray) -> list[str]:
    """The vocabulary that `WordDecoder.stored` holds: uint8 [bytes]."""
    return stored.tobytes().decode("utf-8").split("\n")


class WordDecoder(nn.Module):
    """log p(w | s) = log softmax_w(<u_w, s> + b_w), with s a sum of codes' vectors, and w a word of the vocabulary.

    Args:
        dims: d.
        vocabulary: V words.
    """

    frequency: Tensor
    """q: share of each word among the words of the fitted texts, each text with the same weight; float32 [V]."""
    stored: Tensor
    """The words as UTF-8, one a line: uint8. So they are saved with the weights."""

    def __init__(self, dims: int, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.vocabulary = list(vocabulary)
        self.linear = nn.Linear(dims, len(vocabulary))
        self.register_buffer("frequency", torch.full([len(vocabulary)], 1 / len(vocabulary)))
        self.register_buffer("stored", torch.tensor(list("\n".join(vocabulary).encode("utf-8")), dtype=torch.uint8))

    @torch.no_grad()
    def start(self, frequency: np.ndarray) -> None:
        """Begin with the words' frequencies, floats [V], which codes of length 0 then predict."""
        self.frequency.copy_(torch.from_numpy(frequency))
        self.linear.bias.copy_(self.frequency.log())

    def forward(self, sums: Tensor) -> Tensor:
        """Return log p(w | s), float32 [..., V], for sums of codes' vectors, float32 [..., d]."""
        return self.linear(sums).log_softmax(-1)

    def telling(self, sums: Tensor, most: int) -> list[list[LikelyWord]]:
        """The words with the highest p log(p / q) above 0 for each of `sums`, float32 [n, d]: at most `most`."""
        found = self(sums)
        scores, words = (found.exp() * (found - self.frequency.log())).topk(min(most, len(self.vocabulary)))
        probabilities = found.exp().gather(1, words)
        return [
            [
                LikelyWord(self.vocabulary[word], probability)
                for score, word, probability in zip(*row, strict=True)
                if score > 0
            ]
            for row in zip(scores.tolist(), words.tolist(), probabilities.tolist(), strict=True)
        ]


def word_loss(told: Tensor, words: Tensor) -> Tensor:
    """Return -log p(w | s_l), the mean over the different words w of a text, over l, and over the texts (scalar).

    s_l is the sum of the vectors of the first l codes, l = 1, 2, ... L.

    Args:
        told: log p(w | s_l), floats [B, L, V].
        words: floats [B, V], 1 / n for each of the n words of a text. A text without words, a row of zeros, does not
            count; the result is 0 if no text has any.
    """
    return words_cost(told, words).mean(1).sum() / words.any(1).sum().clamp_min(1)


def words_cost(told: Tensor, words: Tensor) -> Tensor:
    """-log p(w | s_l), the mean over the words of a text, for each text and l: floats [B, L]; see `word_loss`."""
    return -torch.einsum("blv,bv->bl", told, words)
