"""The `tokenize` section of the configuration."""

from dataclasses import dataclass, field
from typing import Any, Literal

from llmrec.errors import UserError

Method = Literal["rq-kmeans", "rq-vae"]
Collisions = Literal["dedup", "share"]


@dataclass
class RQVAEConfig:
    """Network and training of the residual-quantized autoencoder (method rq-vae only)."""

    hidden: list[int] = field(default_factory=lambda: [512, 256, 128])
    """Widths of the encoder's hidden layers, in units; the decoder mirrors them."""
    latent: int = 32
    """Width of the quantized vector, in dimensions."""
    beta: float = 0.25
    """Weight of the commitment loss, against 1 for the codebook loss."""
    epochs: int = 100
    """Passes over the catalogue."""
    batch_size: int = 256
    """Items per step."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of AdamW; the codebooks have none."""
    reset_every: int = 5
    """Epochs between resets of the codes that no item used meanwhile."""

    def __post_init__(self) -> None:
        for name in ("latent", "epochs", "batch_size", "reset_every"):
            _at_least(f"rq_vae.{name}", getattr(self, name), 1)
        for width in self.hidden:
            _at_least("rq_vae.hidden", width, 1)
        for name in ("beta", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--tokenize.rq_vae.{name} is {getattr(self, name)}; give 0 or more")
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"--tokenize.rq_vae.learning_rate is {self.learning_rate}; give more than 0")


@dataclass
class TokenizeConfig:
    """How item embeddings become semantic IDs."""

    method: Method = "rq-kmeans"
    """Quantizer: residual k-means, or a residual-quantized autoencoder (RQ-VAE)."""
    levels: int = 3
    """Codes per item, before the dedup level."""
    codes: int = 256
    """Codes per level (the size of each codebook); at most the number of distinct item embeddings."""
    collisions: Collisions = "dedup"
    """Items with equal codes: `dedup` appends a level that tells them apart, `share` lets them share."""
    seed: int = 0
    """Seed of every random choice in the quantizer."""
    iterations: int = 50
    """Lloyd iterations of each k-means."""
    rq_vae: RQVAEConfig = field(default_factory=RQVAEConfig)
    """Settings of the method rq-vae."""

    def __post_init__(self) -> None:
        _at_least("levels", self.levels, 1)
        _at_least("codes", self.codes, 2)
        _at_least("iterations", self.iterations, 1)
        _at_least("seed", self.seed, 0)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TokenizeConfig":
        """The config that `dataclasses.asdict` turned into `values`."""
        return cls(**{**values, "rq_vae": RQVAEConfig(**values["rq_vae"])})


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"--tokenize.{name} is {value}; give {least} or more")
