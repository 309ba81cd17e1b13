"""What the trained collaborative models can be told."""

from dataclasses import dataclass
from typing import ClassVar

from llmrec.checks import check_fields
from llmrec.errors import UserError


@dataclass
class SASRecConfig:
    """The Transformer of the baselines sasrec and sasrec-knn, and its training."""

    section: ClassVar[str] = "evaluate.sasrec"

    hidden_size: int = 64
    """Width of the embeddings and the layers."""
    layers: int = 2
    """Transformer layers."""
    heads: int = 2
    """Attention heads; they divide the width."""
    dropout: float = 0.5
    """Share of the activations that training drops."""
    max_history: int = 50
    """Items of a history that it reads, the latest."""
    batch_size: int = 128
    """Users per step."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    epochs: int = 100
    """Passes over the training part at most."""
    patience: int = 5
    """Passes after which it stops when the NDCG@10 of validation has not risen."""

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "layers", "heads", "max_history", "batch_size", "epochs", "patience")
        check_fields(self, self.section, at_least={1: sizes}, positive=("learning_rate",), shares=("dropout",))
        if self.hidden_size % self.heads:
            raise UserError(
                f"--{self.section}.heads {self.heads}: expected a divisor of hidden_size {self.hidden_size}"
            )


@dataclass
class BSARecConfig(SASRecConfig):
    """The Transformer of the baseline bsarec, which also filters a history by frequency, and its training."""

    section: ClassVar[str] = "evaluate.bsarec"

    heads: int = 1
    """Attention heads; they divide the width."""
    batch_size: int = 256
    """Prefixes per step."""
    learning_rate: float = 5e-4
    """Step size of Adam."""
    patience: int = 10
    """Passes after which it stops when the NDCG@10 of validation has not risen."""
    alpha: float = 0.7
    """Share of the frequency filter in a layer's output; attention has the rest. 0 is SASRec."""
    frequencies: int = 3
    """Lowest frequencies that the filter keeps apart, the mean of the history among them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, self.section, at_least={0: ("alpha",), 1: ("frequencies",)})
        if self.alpha > 1:
            raise UserError(f"--evaluate.bsarec.alpha {self.alpha}: expected a share from 0 to 1.")
