"""The `tokenize` section of the configuration."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from llmrec.checks import check_fields
from llmrec.errors import UserError

Method = Literal["random", "kmeans", "pq", "opq", "rq-kmeans", "aq", "hierarchical-kmeans", "rq-vae"]
Collisions = Literal["dedup", "dedup-popularity", "sinkhorn", "nearest-free", "share"]
Codebook = Literal["learned", "ema", "simvq", "fixed-linear", "fsq", "fsq-symmetric"]
Estimator = Literal["straight-through", "rotation", "reflection", "gumbel", "sq-vae"]
Init = Literal["none", "random", "kmeans++", "constrained-kmeans"]
Reconstruction = Literal["mse", "cosine", "latent", "none"]

FSQ: tuple[Codebook, ...] = ("fsq", "fsq-symmetric")
FROZEN: tuple[Codebook, ...] = ("simvq", "fixed-linear")
STOCHASTIC: tuple[Estimator, ...] = ("gumbel", "sq-vae")
DEFAULT_BEAMS: dict[Method, int] = {"rq-kmeans": 1, "aq": 8}


@dataclass
class LossConfig:
    """What an RQ-VAE minimises beside its quantization error; a weight of 0 leaves a term out."""

    reconstruction: Reconstruction = "mse"
    """Compared with the item: the decoder's output by squared error (mse) or by angle (cosine); its encoding, with
    the item's latent (latent: DEX-VQ as we read it); nothing (none)."""
    target_detach: bool = True
    """Keep the gradient of the latent reconstruction from its target (reconstruction latent only)."""
    quantization: float = 1.0
    """Weight of the codebook and commitment losses together, or of sq-vae's regulariser; FSQ has none of them."""
    contrastive: float = 0.0
    """Weight of CoST's contrastive reconstruction among the items of a batch (arXiv 2404.14774)."""
    contrastive_temperature: float = 0.1
    """Temperature of the contrastive term."""
    collaborative: float = 0.0
    """Weight of LETTER's alignment with collaborative vectors of the training log (arXiv 2405.07314)."""
    collaborative_temperature: float = 1.0
    """Temperature of the collaborative term."""
    diversity: float = 0.0
    """Weight of LETTER's codebook diversity (arXiv 2405.07314)."""
    diversity_groups: int = 10
    """Groups that constrained k-means makes of each codebook for the diversity term."""
    cohesion: float = 0.0
    """Weight of R3-VAE's cohesion of the codes inside a semantic ID (arXiv 2604.11440)."""
    spread: float = 0.0
    """Weight of R3-VAE's spread of a codebook's codes (arXiv 2604.11440)."""

    def __post_init__(self) -> None:
        weights = ("quantization", "contrastive", "collaborative", "diversity", "cohesion", "spread")
        check_fields(
            self,
            "tokenize.rq_vae.loss",
            at_least={0: weights, 2: ("diversity_groups",)},
            positive=("contrastive_temperature", "collaborative_temperature"),
        )
        if self.reconstruction == "none" and not self.contrastive:
            raise UserError(
                "--tokenize.rq_vae.loss.reconstruction is none, so nothing asks the codes to tell items apart; "
                "give --tokenize.rq_vae.loss.contrastive a weight"
            )
        if self.reconstruction != "latent" and not self.target_detach:
            raise UserError(
                "--tokenize.rq_vae.loss.target_detach false means something to "
                f"--tokenize.rq_vae.loss.reconstruction latent only; it is {self.reconstruction}"
            )


@dataclass
class RQVAEConfig:
    """Network, codebooks and training of the residual-quantized autoencoder (method rq-vae only)."""

    hidden: list[int] = field(default_factory=lambda: [512, 256, 128])
    """Widths of the encoder's hidden layers, in units; the decoder mirrors them."""
    latent: int = 32
    """Width of the quantized vector, in dimensions; with FSQ the grid's axes times the levels."""
    standardize: bool = True
    """Give every input dimension mean 0 and variance 1; raw unit-norm text embeddings tend to collapse."""
    codebook: Codebook = "learned"
    """Codes that are learned, moving averages (ema), or a grid (fsq; fsq-symmetric rounds about 0); frozen codes
    under a learned linear map, drawn at random (simvq) or placed by `init` (fixed-linear)."""
    grid: list[int] = field(default_factory=list)
    """Values per axis of a level's grid, e.g. [8, 6, 5] for 240 codes (FSQ codebooks only)."""
    ema_decay: float = 0.99
    """Share of the old average that an update keeps (codebook ema only)."""
    estimator: Estimator = "straight-through"
    """How the gradient passes the quantizer: copied, rotated, reflected, or through sampled soft codes."""
    temperature: float = 1.0
    """Of the soft codes: constant for gumbel, at the start for sq-vae."""
    init: Init = "kmeans++"
    """Where codes start: drawn at random, or at the centroids of the first batch's latents, by k-means or by
    k-means with clusters of limited size; none where codes have no free place (FSQ, simvq)."""
    reset_every: int = 5
    """Epochs between moves of the codes that no item used meanwhile onto items, the worst served most likely; after
    the last, codes still unused are placed too. 0: never."""
    sinkhorn: list[float] = field(default_factory=list)
    """Strength of LC-Rec's uniform mapping per level while training, e.g. [0, 0, 0, .003]; 0: nearest code; empty:
    nearest code at every level."""
    beta: float = 0.25
    """Weight of the commitment loss, against 1 for the codebook loss (not with FSQ and sq-vae, which have neither)."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Terms of the loss."""
    epochs: int = 100
    """Passes over the catalogue."""
    batch_size: int = 256
    """Items per step."""
    optimizer: Literal["adamw", "adagrad"] = "adamw"
    """Optimizer of networks and codebooks."""
    learning_rate: float = 1e-3
    """Step size of the optimizer."""
    weight_decay: float = 1e-4
    """Weight decay of the networks; the codebooks have none."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "tokenize.rq_vae",
            at_least={
                0: ("reset_every", "sinkhorn", "beta", "weight_decay"),
                1: ("latent", "epochs", "batch_size", "hidden"),
                2: ("grid",),
            },
            positive=("learning_rate", "temperature"),
            shares=("ema_decay",),
        )
        for part, reason in self._conflicts():
            raise UserError(f"--tokenize.rq_vae.codebook {self.codebook} does not go with {part}: {reason}")

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        """(part, reason) of each setting that the codebook or the estimator rules out."""
        fsq, placed = self.codebook in FSQ, self.codebook not in (*FSQ, "simvq")
        moved = " and ".join(f"loss.{name}" for name in ("diversity", "spread") if getattr(self.loss, name))
        if fsq and not self.grid:
            yield "an empty grid", "the grid is the codebook; give the values per axis, e.g. [8, 6, 5]"
        if self.grid and not fsq:
            yield "a grid", "only the FSQ codebooks have one; leave it empty"
        if fsq and self.estimator != "straight-through":
            yield f"estimator {self.estimator}", "rounding passes the gradient straight through"
        if self.init != "none" and not placed:
            yield f"init {self.init}", "its codes have their place already; set init none"
        if self.init == "none" and placed:
            yield "init none", "its codes need a place to start"
        if self.codebook == "fixed-linear" and self.init == "random":
            yield "init random", "frozen random codes are codebook simvq"
        if self.reset_every and self.codebook in (*FSQ, *FROZEN):
            yield f"reset_every {self.reset_every}", "its codes are frozen; set reset_every 0"
        if any(self.sinkhorn) and fsq:
            yield "sinkhorn", "a grid has no distances to balance"
        if any(self.sinkhorn) and self.estimator in STOCHASTIC:
            yield f"sinkhorn and estimator {self.estimator}", "soft codes leave nothing to assign"
        if moved and (fsq or self.codebook == "ema"):
            yield moved, "no gradient moves its codes"
        if self.codebook == "ema" and self.estimator in STOCHASTIC:
            yield f"estimator {self.estimator}", "soft codes learn by gradient alone, and averages follow none"


@dataclass
class TokenizeConfig:
    """How item embeddings become semantic IDs."""

    method: Method = "rq-kmeans"
    """Quantizer: random codes (a control), one k-means, product quantization (pq; opq rotates first), residual
    k-means, additive quantization (aq), a tree of k-means, or a residual-quantized autoencoder (rq-vae)."""
    levels: int = 3
    """Codes per item, before the dedup level."""
    codes: int | list[int] = 256
    """Codes per level (the size of each codebook), one number for all or one per level."""
    collisions: Collisions = "dedup"
    """Items with equal codes: `dedup` appends a level that tells them apart, in catalogue order, `dedup-popularity`
    the most popular first; `sinkhorn` spreads them over the last level as LC-Rec does and appends the dedup level if
    any are left; `nearest-free` moves them to the nearest free codes; `share` lets them share."""
    seed: int = 0
    """Seed of every random choice in the quantizer."""
    iterations: int = 25
    """Lloyd iterations of each k-means."""
    fit_rows: int = 131_072
    """Items to learn from; a seeded sample of a larger catalogue."""
    beams: int | None = None
    """Beams when encoding (rq-kmeans and aq only); unset: 1 for rq-kmeans, 8 for aq."""
    balanced: bool = False
    """Give the codes of a level equally many items (rq-kmeans and hierarchical-kmeans only)."""
    rq_vae: RQVAEConfig = field(default_factory=RQVAEConfig)
    """Settings of the method rq-vae."""

    def __post_init__(self) -> None:
        at_least = {0: ("seed",), 1: ("levels", "iterations", "fit_rows", "beams"), 2: ("codes",)}
        check_fields(self, "tokenize", at_least=at_least)
        if isinstance(self.codes, list) and len(self.codes) != self.levels:
            raise UserError(f"--tokenize.codes has {len(self.codes)} sizes, --tokenize.levels is {self.levels}")
        if self.method == "kmeans" and self.levels != 1:
            raise UserError(f"--tokenize.method kmeans has one level, not {self.levels}; try rq-kmeans")
        if self.beams is not None:
            if self.method not in DEFAULT_BEAMS:
                raise UserError(f"--tokenize.beams does nothing for method {self.method}; leave it unset")
            if self.balanced and self.beams > 1:
                raise UserError("--tokenize.beams and --tokenize.balanced exclude each other; choose one")
        if self.balanced and self.method not in ("rq-kmeans", "hierarchical-kmeans"):
            raise UserError(f"--tokenize.balanced does nothing for method {self.method}; leave it off")
        if self.method == "rq-vae":
            self._check_rq_vae()

    def _check_rq_vae(self) -> None:
        """Raise UserError where the network does not fit the number and sizes of the levels."""
        settings = self.rq_vae
        if settings.sinkhorn and len(settings.sinkhorn) != self.levels:
            raise UserError(
                f"--tokenize.rq_vae.sinkhorn has {len(settings.sinkhorn)} strengths for {self.levels} levels; "
                "give one per level"
            )
        if settings.codebook in FSQ:
            size = grid_size(settings)
            if set(self.level_sizes) != {size}:
                raise UserError(
                    f"--tokenize.codes is {self.codes}, but the {settings.codebook} grid {settings.grid} has {size} "
                    f"codes; set --tokenize.codes to {size}"
                )
            if settings.latent != self.levels * len(settings.grid):
                raise UserError(
                    f"--tokenize.rq_vae.latent is {settings.latent}, but {self.levels} levels of {len(settings.grid)} "
                    f"axes need {self.levels * len(settings.grid)}"
                )
        if settings.loss.diversity and min(self.level_sizes) < 2 * settings.loss.diversity_groups:
            raise UserError(
                f"--tokenize.rq_vae.loss.diversity_groups is {settings.loss.diversity_groups}, too many for "
                f"{min(self.level_sizes)} codes; every group needs two"
            )

    @property
    def level_sizes(self) -> list[int]:
        """Size of each level's codebook [L]."""
        return list(self.codes) if isinstance(self.codes, list) else [self.codes] * self.levels

    @property
    def encoding_beams(self) -> int:
        """Beams when encoding, as set or by the method's default."""
        return self.beams or DEFAULT_BEAMS.get(self.method, 1)

    @property
    def needs_log(self) -> bool:
        """Whether the training log takes part in the codes."""
        return self.collisions == "dedup-popularity" or self.needs_collaborative

    @property
    def needs_collaborative(self) -> bool:
        """Whether the quantizer learns from collaborative vectors too."""
        return self.method == "rq-vae" and self.rq_vae.loss.collaborative > 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TokenizeConfig":
        """The config that `dataclasses.asdict` turned into `values`, or a part of one.

        Raises:
            UserError: an unknown field, or values that don't go together.
        """
        values = dict(values)
        network = dict(values.pop("rq_vae", {}))
        loss = LossConfig(**network.pop("loss", {}))
        return cls(**values, rq_vae=RQVAEConfig(**network, loss=loss))


def grid_size(settings: RQVAEConfig) -> int:
    """Codes of one FSQ level: the product of the values per axis; the symmetric reading has 2 * (L // 2) + 1 each."""
    size = 1
    for values in settings.grid:
        size *= values if settings.codebook == "fsq" else 2 * (values // 2) + 1
    return size
