"""The `tokenize` and `refine` sections of the configuration."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llmrec.checks import check_fields
from llmrec.errors import UserError

Method = Literal[
    "random",
    "kmeans",
    "pq",
    "opq",
    "rq-kmeans",
    "rq-kmeans-normalized",
    "rq-opq",
    "aq",
    "hierarchical-kmeans",
    "rq-vae",
]
Collisions = Literal["dedup", "dedup-popularity", "sinkhorn", "nearest-free", "share"]
Codebook = Literal["learned", "ema", "simvq", "fixed-linear", "fsq", "fsq-symmetric"]
Estimator = Literal["straight-through", "none", "rotation", "reflection", "gumbel", "sq-vae"]
Init = Literal["none", "random", "kmeans++", "constrained-kmeans"]
Reconstruction = Literal["mse", "cosine", "latent", "none"]

FSQ: tuple[Codebook, ...] = ("fsq", "fsq-symmetric")
FROZEN: tuple[Codebook, ...] = ("simvq", "fixed-linear")
STOCHASTIC: tuple[Estimator, ...] = ("gumbel", "sq-vae")
LATER = {
    *("file", "product_levels", "contrastive_of", "over_levels", "cluster", "correlation", "similarity_temperature"),
    *("warmup", "schedule", "clip_norm", "measure_every", "keep", "behaviour"),
    *("collaborative", "collaborative_weight", "words", "siblings"),
}
"""Fields that earlier versions lacked."""
DEFAULT_BEAMS: dict[Method, int] = {"rq-kmeans": 1, "aq": 8}
REFINED: tuple[Method, ...] = ("kmeans", "rq-kmeans", "rq-vae")
"""Methods that `refine` can train further."""


@dataclass
class LossConfig:
    """The loss of an RQ-VAE: a reconstruction term and weighted terms; a term of weight 0 is left out."""

    reconstruction: Reconstruction = "mse"
    """Reconstruction term, from the item x, its latent z and the decoder's output x': squared error of x' (mse; for
    estimator sq-vae half its logarithm, the likelihood under an estimated variance), 1 - cos(x', x) (cosine), squared
    error of the encoding of x' against z (latent, our reading of DEX-VQ), or no term (none)."""
    target_detach: bool = True
    """Stop the gradient at the target z of the reconstruction term (reconstruction latent only)."""
    quantization: float = 1.0
    """Weight of the codebook and commitment loss, or of sq-vae's regulariser; FSQ has none of these losses."""
    over_levels: Literal["sum", "mean"] = "sum"
    """Whether the losses of the levels (quantization, diversity, spread) are added, or their mean is taken."""
    contrastive: float = 0.0
    """Weight of CoST's contrastive loss, in which each item must recognise its own row in a batch of reconstructions
    (arXiv 2404.14774)."""
    contrastive_of: Literal["reconstructions", "latents"] = "reconstructions"
    """What the contrastive loss compares with the items: their reconstructions, or a linear map of their latents (the
    head of DEX-VQ, which teaches the encoder past the quantizer)."""
    contrastive_temperature: float = 0.1
    """Temperature of the contrastive term."""
    collaborative: float = 0.0
    """Weight of LETTER's alignment with collaborative vectors, made from the training log (arXiv 2405.07314)."""
    collaborative_temperature: float = 1.0
    """Temperature of the collaborative term."""
    diversity: float = 0.0
    """Weight of LETTER's diversity loss of the codebooks (arXiv 2405.07314)."""
    diversity_groups: int = 10
    """Number of groups into which constrained k-means splits each codebook for the diversity term."""
    cohesion: float = 0.0
    """Weight of R3-VAE's cohesion loss between the codes of one semantic ID (arXiv 2604.11440)."""
    spread: float = 0.0
    """Weight of R3-VAE's loss that spreads the codes of a codebook (arXiv 2604.11440)."""
    cluster: float = 0.0
    """Weight of a contrastive loss of the latents in which items with the same first code are positives, after the
    auto-quantized contrastive learning of users (arXiv 2109.13921)."""
    correlation: float = 0.0
    """Weight of the KL divergence between the similarities of the items of a batch and those of their codes' sums,
    after the correlation supervision of a recommender's embeddings (arXiv 2401.07257)."""
    words: float = 0.0
    """Weight of a text decoder, which must predict the words of each item's text from its first 1, 2, ... L codes,
    after the text reconstruction of LMIndexer (arXiv 2310.07815)."""
    siblings: float = 0.0
    """Weight of LMIndexer's contrastive loss, which keeps apart what is left to tell of items with the same first
    codes (arXiv 2310.07815)."""
    similarity_temperature: float = 0.1
    """Temperature of the terms cluster, correlation and siblings, which compare cosines."""

    def __post_init__(self) -> None:
        weights = ("quantization", "contrastive", "collaborative", "diversity", "cohesion", "spread", "cluster")
        check_fields(
            self,
            "tokenize.rq_vae.loss",
            at_least={0: (*weights, "correlation", "words", "siblings"), 2: ("diversity_groups",)},
            positive=("contrastive_temperature", "collaborative_temperature", "similarity_temperature"),
        )
        if self.reconstruction == "none" and not self.contrastive:
            raise UserError(
                "--tokenize.rq_vae.loss.reconstruction is none, so nothing asks the codes to tell items apart; "
                "give --tokenize.rq_vae.loss.contrastive a weight"
            )
        if self.contrastive_of == "latents" and not self.contrastive:
            raise UserError(
                "--tokenize.rq_vae.loss.contrastive_of latents does nothing without the contrastive term; "
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
    """Dimensions of the latent vector that is quantized; with FSQ, levels times axes of the grid."""
    standardize: bool = True
    """Scale every input dimension to mean 0 and variance 1; without it, training on unit-norm text embeddings tends to
    collapse to few codes."""
    codebook: Codebook = "learned"
    """learned: codes are parameters; ema: codes are moving averages of their residuals; fsq: a grid; fsq-symmetric: a
    grid symmetric about 0; simvq and fixed-linear: a learned linear map of frozen codes, which are drawn at random
    (simvq) or placed by `init` (fixed-linear)."""
    grid: list[int] = field(default_factory=list)
    """Number of values on each axis of a level's grid, e.g. [8, 6, 5] for 240 codes (FSQ codebooks only)."""
    ema_decay: float = 0.99
    """Decay d of the moving average: new = d * old + (1 - d) * batch (codebook ema only)."""
    estimator: Estimator = "straight-through"
    """How the decoder's gradient passes the quantizer: copied (straight-through), not at all (none), rotated,
    reflected, or through sampled soft codes (gumbel, sq-vae)."""
    temperature: float = 1.0
    """Temperature of the soft codes: constant for gumbel; for sq-vae the start value, a twentieth of it at the end."""
    init: Init = "kmeans++"
    """Start values of the codes: random, or centroids of the residuals of the first batch, by k-means (kmeans++) or
    by k-means with clusters of limited size (constrained-kmeans); none for codebooks that have their own (FSQ,
    simvq)."""
    reset_every: int = 5
    """Epochs between resets. A reset moves each code that no item used since the last reset onto an item's residual,
    drawn in proportion to its squared error. After the last epoch, codes that are still unused move too. 0: never."""
    sinkhorn: list[float] = field(default_factory=list)
    """Strength (epsilon) of LC-Rec's uniform mapping at each level during training, e.g. [0, 0, 0, .003]. 0: nearest
    code; empty list: nearest code at every level."""
    beta: float = 0.25
    """Weight of the commitment loss, relative to 1 for the codebook loss; FSQ and sq-vae have neither loss."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The terms of the loss and their weights."""
    epochs: int = 100
    """Passes over the catalogue."""
    batch_size: int = 256
    """Items per step."""
    optimizer: Literal["adamw", "adagrad"] = "adamw"
    """Optimizer of networks and codebooks."""
    learning_rate: float = 1e-3
    """Step size of the optimizer."""
    warmup: float = 0.0
    """Share of the steps in which the step size rises linearly from 0."""
    schedule: Literal["constant", "linear"] = "constant"
    """The step size after the warmup: as it is (constant), or falling linearly to 0 at the last step (linear)."""
    clip_norm: float = 0.0
    """Longest gradient, over all weights together; a longer one is shortened to it. 0: any length."""
    weight_decay: float = 1e-4
    """Weight decay of the encoder and decoder; the codebooks have none."""
    measure_every: int = 0
    """Epochs between measurements of the collision rate, which the report shows as a curve; 0: none."""
    keep: Literal["last", "fewest-collisions"] = "last"
    """The weights to keep: those of the last epoch, or of the measured epoch with the fewest collisions."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "tokenize.rq_vae",
            at_least={
                0: ("reset_every", "sinkhorn", "beta", "weight_decay", "clip_norm", "measure_every"),
                1: ("latent", "epochs", "batch_size", "hidden"),
                2: ("grid",),
            },
            positive=("learning_rate", "temperature"),
            shares=("ema_decay", "warmup"),
        )
        if self.keep == "fewest-collisions" and not self.measure_every:
            raise UserError(
                "--tokenize.rq_vae.keep fewest-collisions chooses among measured epochs; "
                "set --tokenize.rq_vae.measure_every to 1 or more"
            )
        if self.estimator == "none" and self.loss.contrastive_of != "latents":
            raise UserError(
                "--tokenize.rq_vae.estimator none keeps the decoder's gradient from the encoder, so nothing would "
                "teach it; set --tokenize.rq_vae.loss.contrastive_of latents and give "
                "--tokenize.rq_vae.loss.contrastive a weight"
            )
        for part, reason in self._conflicts():
            raise UserError(f"--tokenize.rq_vae.codebook {self.codebook} does not go with {part}: {reason}")

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        """(part, reason) for each setting that does not go with the codebook or the estimator."""
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
    """Quantizer: random codes (a baseline), k-means with one level, product quantization (pq; opq learns a rotation
    first), residual k-means (rq-kmeans; rq-kmeans-normalized scales each level's residuals to length 1; rq-opq ends
    with opq of the last residual), additive quantization (aq), a tree of k-means (hierarchical-kmeans), or a
    residual-quantized autoencoder (rq-vae)."""
    levels: int = 3
    """L, the number of codes per item, without the dedup level."""
    codes: int | list[int] = 256
    """C, the number of codes per level (the codebook size): one number for all levels, or a list with one per level."""
    collisions: Collisions = "dedup"
    """What happens to items with equal codes. `dedup` appends a level with their rank in catalogue order,
    `dedup-popularity` with their rank by popularity; `sinkhorn` spreads them over the codes of the last level, as
    LC-Rec does, and appends the dedup level if collisions remain; `nearest-free` moves them to the nearest free
    codes; `share` keeps equal codes."""
    seed: int = 0
    """Seed of every random choice in the quantizer."""
    iterations: int = 25
    """Number of Lloyd iterations of each k-means."""
    fit_rows: int = 131_072
    """Maximum number of items that the quantizer learns from; it takes a seeded sample of a larger catalogue."""
    beams: int | None = None
    """Number of beams for encoding (rq-kmeans and aq only); unset: 1 for rq-kmeans, 8 for aq."""
    balanced: bool = False
    """Assign nearly the same number of items to each code of a level (rq-kmeans and hierarchical-kmeans only)."""
    product_levels: int = 2
    """Number of last levels that are opq of the residual (rq-opq only); the levels before them are residual k-means."""
    rq_vae: RQVAEConfig = field(default_factory=RQVAEConfig)
    """Settings of the method rq-vae."""
    file: str | None = None
    """File with semantic IDs made elsewhere, which are taken as they are; `levels` and `codes` then come from it. An
    index.json of LC-Rec, LETTER or MiniOneRec, or a table with the columns `item_id` and `codes`."""
    behaviour: int = 0
    """Dimensions of the items' vectors of behaviour (which items occur together in the training log), of which a second
    set of semantic IDs is made by the same method, levels and codes (EAGER, arXiv 2406.14017). The language model then
    learns the task sequential in each of the two sets. An item without training events has no such ID. 0: one set."""
    collaborative: int = 0
    """Dimensions of the items' vectors of behaviour (as for `behaviour`) that are joined with the text vectors before
    they are quantized, so that items which are taken together get near semantic IDs. The behaviour of an item without
    training events, and of one added later, is predicted from its text by ridge regression (Gantner et al., ICDM
    2010). 0: the text vectors alone."""
    collaborative_weight: float = 0.5
    """Weight of these vectors, where that of the text vectors is 1: the shares of the two in the squared distances
    between items are as the squares of the weights."""

    def __post_init__(self) -> None:
        at_least = {
            0: ("seed", "behaviour", "collaborative", "collaborative_weight"),
            1: ("levels", "iterations", "fit_rows", "beams", "product_levels"),
            2: ("codes",),
        }
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
        if self.method == "rq-opq" and self.product_levels >= self.levels:
            raise UserError(
                f"--tokenize.product_levels is {self.product_levels} of {self.levels} levels, but rq-opq begins with "
                "residual levels; choose fewer, or method opq"
            )
        if self.method != "rq-opq" and self.product_levels != TokenizeConfig.product_levels:
            raise UserError(f"--tokenize.product_levels does nothing for method {self.method}; leave it out")
        if self.method == "rq-vae":
            self._check_rq_vae()
        if self.collaborative:
            self._check_collaborative()
        elif self.collaborative_weight != TokenizeConfig.collaborative_weight:
            raise UserError(
                f"--tokenize.collaborative_weight {self.collaborative_weight} does nothing without behaviour in the "
                "vectors; set --tokenize.collaborative 64, or leave it out."
            )
        if self.file is not None:
            self._check_file(self.file)

    def _check_collaborative(self) -> None:
        """Raise UserError for a setting that does not go with vectors of texts and behaviour."""
        flag = f"--tokenize.collaborative {self.collaborative}"
        if self.behaviour:
            raise UserError(
                f"{flag} joins behaviour with the texts, and --tokenize.behaviour {self.behaviour} makes semantic IDs "
                "of behaviour alone; set one of the two to 0."
            )
        if self.file is not None:
            raise UserError(f"{flag}: --tokenize.file {self.file} has the semantic IDs already; leave one of them out.")
        if self.method == "rq-vae" and self.rq_vae.standardize:
            raise UserError(
                f"{flag}: --tokenize.rq_vae.standardize true gives every dimension the same variance, whatever "
                "--tokenize.collaborative_weight is; set it to false, as the joined vectors are scaled already."
            )

    def _check_file(self, file: str) -> None:
        """Raise UserError for a setting that would change the semantic IDs of a file, or do nothing."""
        reason = f"--tokenize.file {file} takes semantic IDs as they are"
        if self.method != "rq-kmeans" or self.beams is not None or self.balanced:
            raise UserError(f"{reason}, so nothing is quantized; leave out --tokenize.method, beams and balanced.")
        if self.collisions in ("sinkhorn", "nearest-free"):
            raise UserError(f"{reason}, and --tokenize.collisions {self.collisions} would change them; choose dedup.")

    def cache_key(self) -> dict[str, Any]:
        """The fields on which the semantic IDs depend; those that earlier versions lacked only if they are set."""
        key = asdict(self)
        network, loss = key["rq_vae"], key["rq_vae"]["loss"]
        for values, kind in ((key, TokenizeConfig), (network, RQVAEConfig), (loss, LossConfig)):
            for name in LATER.intersection(values):
                if values[name] == getattr(kind, name):
                    del values[name]
        return key

    def _check_rq_vae(self) -> None:
        """Raise UserError if the settings of rq-vae do not match the number and sizes of the levels."""
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
        """Number of beams for encoding: `beams`, or the default of the method."""
        return self.beams or DEFAULT_BEAMS.get(self.method, 1)

    @property
    def needs_log(self) -> bool:
        """Whether the semantic IDs depend on the training log."""
        reads = self.behaviour > 0 or self.collaborative > 0
        return self.collisions == "dedup-popularity" or self.needs_collaborative or reads

    @property
    def needs_collaborative(self) -> bool:
        """Whether the quantizer also learns from collaborative vectors."""
        return self.method == "rq-vae" and self.rq_vae.loss.collaborative > 0

    @property
    def needs_texts(self) -> bool:
        """Whether the quantizer also learns from the items' texts."""
        return self.method == "rq-vae" and self.rq_vae.loss.words > 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TokenizeConfig":
        """The inverse of `dataclasses.asdict`; fields that are not in `values` get their defaults.

        Raises:
            TypeError: an unknown field.
            UserError: values that don't go together.
        """
        values = dict(values)
        network = dict(values.pop("rq_vae", {}))
        loss = LossConfig(**network.pop("loss", {}))
        return cls(**values, rq_vae=RQVAEConfig(**network, loss=loss))


def grid_size(settings: RQVAEConfig) -> int:
    """C of one FSQ level: the product over axes of V values; fsq-symmetric has 2 * (V // 2) + 1 values instead of V."""
    size = 1
    for values in settings.grid:
        size *= values if settings.codebook == "fsq" else 2 * (values // 2) + 1
    return size


@dataclass
class RefineConfig:
    """Rounds in which tokenizer and language model are trained in turns, after the training (ETEGRec, arXiv
    2409.05546)."""

    rounds: int = 0
    """Rounds. In each, the tokenizer is trained while the language model is frozen, the items get new semantic IDs, and
    the language model is trained further on these. 0: the semantic IDs stay as they are."""
    epochs: int = 2
    """Passes over the task mixture in each round; all else of the training is as in `train`."""
    sequence_item: float = 0.1
    """Weight of the sequence-item alignment: the divergence between the code distributions of an item and of the
    language model's hidden state after the history before it. 0: left out."""
    preference_semantic: float = 0.1
    """Weight of the preference-semantic alignment: the hidden state must find the reconstruction of the item among
    those of its batch. 0: left out."""
    temperature: float = 0.1
    """Temperature of the code distributions, in units of the mean squared distance of the items' residuals to the codes
    of a level; with a lower one they come closer to the single nearest code."""
    tokenizer_epochs: int = 10
    """Passes of the tokenizer over the pairs of a history and the next item, in each round."""
    learning_rate: float = 1e-3
    """Step size of the tokenizer at the start of a round; it falls linearly to 0."""
    examples: int = 50_000
    """Largest number of pairs, drawn at random from the training log."""

    def __post_init__(self) -> None:
        at_least = {
            0: ("rounds", "sequence_item", "preference_semantic"),
            1: ("epochs", "tokenizer_epochs", "examples"),
        }
        check_fields(self, "refine", at_least=at_least, positive=("temperature", "learning_rate"))

    def check(self, tokenize: TokenizeConfig) -> None:
        """Check that the tokenizer of `tokenize` can be refined.

        Raises:
            UserError: its codes are no sums of residual codes with distances, or come from a file.
        """
        flag = f"--refine.rounds {self.rounds}"
        if tokenize.method not in REFINED:
            raise UserError(
                f"{flag} trains codes of residuals, and --tokenize.method {tokenize.method} has others; choose "
                f"{' or '.join(REFINED)}, or set this to 0."
            )
        if tokenize.method == "rq-vae" and tokenize.rq_vae.codebook in FSQ:
            raise UserError(
                f"{flag} goes by the distances to the codes, and --tokenize.rq_vae.codebook {tokenize.rq_vae.codebook} "
                "is a grid without any; choose another codebook, or set this to 0."
            )
        if tokenize.needs_texts:
            raise UserError(
                f"{flag} moves the codes and does not train the text decoder of --tokenize.rq_vae.loss.words "
                f"{tokenize.rq_vae.loss.words}; set one of the two to 0."
            )
        if tokenize.file is not None:
            raise UserError(
                f"{flag} gives the items other semantic IDs, and --tokenize.file {tokenize.file} says which they have; "
                "leave it out, or set this to 0."
            )
