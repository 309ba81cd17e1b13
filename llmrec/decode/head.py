"""From hidden states to log-probabilities of codes, multiplying only the rows of the output head that matter.

Three scorings:
    vocab: log-softmax over the model's whole vocabulary, then the constraint; what `generate` computes.
    level: softmax over the codes of the level.
    catalogue: softmax over the codes that continue the prefix to an item: a distribution over the catalogue,
        which sums to 1. A prefix that only one semantic ID continues has probability 1 from there on.
"""

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from llmrec.decode.config import Scoring
from llmrec.vocab.tokens import ItemVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
