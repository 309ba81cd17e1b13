"""What the sections of trained collaborative models and of the experts may say."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from llmrec.checks import check_fields
from llmrec.errors import UserError


@dataclass
class TableConfig:
    """Codewords that make the item embeddings of a collaborative model; see code_table.py and cage.py in
    llmrec/collaborative."""

    join: Literal["none", "concat", "sum", "cage"] = "none"
    """How an item's codewords make its embedding: one after the other (concat: RecJPQ, arXiv 2312.06165) or added (sum:
    LightRec, WWW 2020). none: each item has an embedding of its own. cage: its own plus the mean of the codewords of
    its categories, a tree learnt with the model (CAGE, arXiv 2308.16761); the number of items sets the codes."""
    levels: int = 8
    """Codewords per item; for concat they divide hidden_size, for cage 2 or 3 are usual."""
    codes: int = 256
    """Codewords of each level, of which an item has one."""
    rare_codes: int = 256
    """Codewords of each level that rare items use, the 90% with fewest events (MGQE, arXiv 2002.08530)."""


@dataclass
class NetworkConfig:
    """A network over the items of histories, and its training."""

    section: ClassVar[str]
    named_by: ClassVar[str] = "evaluate.baselines"

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
    """Passes after which it stops when the NDCG@10 of validation has not risen; up to three times as many if these have
    fewer than 1,500 steps."""

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "layers", "heads", "max_history", "batch_size", "epochs", "patience")
        check_fields(self, self.section, at_least={1: sizes}, positive=("learning_rate",), shares=("dropout",))
        if self.hidden_size % self.heads:
            raise UserError(
                f"--{self.section}.heads {self.heads}: expected a divisor of hidden_size {self.hidden_size}"
            )

    @property
    def reads_text(self) -> bool:
        """Whether it needs the items' text vectors."""
        return True


@dataclass
class SASRecConfig(NetworkConfig):
    """The Transformer of the baselines sasrec and sasrec-knn, and its training."""

    section: ClassVar[str] = "evaluate.sasrec"

    start: Literal["random", "text"] = "random"
    """What the embeddings of the items start from. text: the principal components of their text vectors."""
    table: TableConfig = field(default_factory=TableConfig)
    """Item embeddings made of codewords, for catalogues whose embeddings are too large."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_table()

    @property
    def reads_text(self) -> bool:
        return self.start == "text"

    def _check_table(self) -> None:
        table, name = self.table, f"--{self.section}.table"
        check_fields(table, f"{self.section}.table", at_least={1: ("levels",), 2: ("codes",)})
        if table.join == "cage" and (table.codes, table.rare_codes) != (TableConfig.codes, TableConfig.rare_codes):
            raise UserError(f"{name}.join cage: codes and rare_codes do nothing for it; leave them out.")
        if not 1 <= table.rare_codes <= table.codes:
            raise UserError(f"{name}.rare_codes {table.rare_codes}: expected 1 to {name}.codes, {table.codes}.")
        if table.join == "concat" and self.hidden_size % table.levels:
            raise UserError(f"{name}.levels {table.levels}: expected a divisor of hidden_size {self.hidden_size}.")
        if table.join in ("concat", "sum") and self.start == "text":
            raise UserError(
                f"{name}.join {table.join}: codewords can't start from text; add --{self.section}.start random."
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
    """Passes after which it stops when the NDCG@10 of validation has not risen; up to three times as many if these have
    fewer than 1,500 steps."""
    alpha: float = 0.7
    """Share of the frequency filter in a layer's output; attention has the rest. 0 is SASRec."""
    frequencies: int = 5
    """Lowest frequencies that the filter keeps apart, of a history as long as max_history; the mean is one of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, self.section, at_least={0: ("alpha",), 1: ("frequencies",)})
        if self.alpha > 1:
            raise UserError(f"--{self.section}.alpha {self.alpha}: expected a share from 0 to 1.")


@dataclass
class HSTUConfig(SASRecConfig):
    """The network of the baseline hstu, whose attention has a gate and no softmax, and its training."""

    section: ClassVar[str] = "evaluate.hstu"

    layers: int = 4
    """HSTU layers."""
    heads: int = 2
    """Attention heads."""
    head_size: int = 4
    """Width of the queries, keys, values and gates of one head."""
    dropout: float = 0.5
    """Share of the embeddings' values that training drops."""
    layer_dropout: float = 0.1
    """Share of the gated values in a layer that training drops."""
    batch_size: int = 256
    """Users per step."""
    epochs: int = 300
    """Passes over the training part at most."""
    patience: int = 10
    """Passes after which it stops when the NDCG@10 of validation has not risen; up to three times as many if these have
    fewer than 1,500 steps."""
    negatives: int = 512
    """Items drawn at each step; the loss is a softmax over the next item and these."""
    temperature: float = 0.1
    """Divides the cosines of states and items; the quotients are the scores."""

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "layers", "heads", "head_size", "max_history", "batch_size", "epochs", "patience")
        check_fields(
            self,
            self.section,
            at_least={1: (*sizes, "negatives")},
            positive=("learning_rate", "temperature"),
            shares=("dropout", "layer_dropout"),
        )
        self._check_table()


@dataclass
class LISAConfig(SASRecConfig):
    """The network of the baseline lisa, whose attention is linear in the length of the history, and its training."""

    section: ClassVar[str] = "evaluate.lisa"

    hidden_size: int = 128
    """Width of the embeddings and the layer."""
    layers: int = 1
    """One layer."""
    heads: int = 1
    """One head."""
    dropout: float = 0.1
    """Share of the activations that training drops."""
    codebooks: int = 8
    """Codebooks, each of which gives an item one codeword; an item is their sum."""
    codewords: int = 128
    """Codewords of each codebook, which attention sees instead of the items."""
    decay: float = 0.1
    """An item counts exp(-decay) less with every step that it is further in the past; 0: all count the same."""
    temperature: float = 0.7
    """Temperature of the softmax that gives the choice of a codeword its gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least = {0: ("decay",), 1: ("codebooks",), 2: ("codewords",)}
        check_fields(self, self.section, at_least=at_least, positive=("temperature",))
        if (self.layers, self.heads) != (1, 1):
            raise UserError(
                f"--{self.section}.layers {self.layers}: LISA has one layer without heads; leave layers and heads out."
            )
        if self.table.join != "none":
            raise UserError(
                f"--{self.section}.table.join {self.table.join}: LISA has codewords of its own; leave it out."
            )


@dataclass
class RPGConfig(NetworkConfig):
    """The network of the baseline rpg, which predicts the codes of an item's text, and its training."""

    section: ClassVar[str] = "evaluate.rpg"

    hidden_size: int = 128
    """Width of the codes' embeddings and the layers; the paper has 448."""
    heads: int = 4
    """Attention heads; they divide the width."""
    dropout: float = 0.3
    """Share of the activations that training drops."""
    batch_size: int = 64
    """Users per step."""
    learning_rate: float = 3e-3
    """Step size of AdamW."""
    patience: int = 10
    """Passes after which it stops when the NDCG@10 of validation has not risen; up to three times as many if these have
    fewer than 1,500 steps."""
    components: int = 128
    """Principal components of the text vectors that are quantized, each with variance 1; fewer if the vectors have
    fewer dimensions, or the log fewer items."""
    levels: int = 32
    """Codes per item; each has a prediction head."""
    codes: int = 256
    """Number of different codes of each level."""
    temperature: float = 0.07
    """Divides the cosines of a head's state and the embeddings of its codes, before the softmax over the codes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least = {1: ("components", "levels"), 2: ("codes",)}
        check_fields(self, self.section, at_least=at_least, positive=("temperature",))
        if self.levels > self.components:
            raise UserError(
                f"--{self.section}.levels {self.levels}: expected at most {self.components}, the components "
                f"(--{self.section}.components), which are cut into one block per level."
            )


ExpertName = Literal[
    "popularity",
    "decayed-markov",
    "smoothed-markov",
    "item-knn",
    "text",
    "last-text",
    "sasrec",
    "bsarec",
    "hstu",
    "rpg",
]
BY_TEXT: set[ExpertName] = {"smoothed-markov", "text", "last-text", "rpg"}
"""Experts that go by the items' text vectors; they alone know cold items."""
NETWORKS: tuple[ExpertName, ...] = ("sasrec", "bsarec", "hstu", "rpg")
"""Experts that are Transformers, trained here; each has a section of its name in the configuration."""


@dataclass
class SASRecExpertConfig(SASRecConfig):
    """The Transformer of the expert sasrec, and its training."""

    section: ClassVar[str] = "experts.sasrec"
    named_by: ClassVar[str] = "experts.models"

    patience: int = 10
    """Passes after which it stops when the NDCG@10 of validation has not risen; up to three times as many if these have
    fewer than 1,500 steps."""
    start: Literal["random", "text"] = "text"
    """What the embeddings of the items start from. text: the principal components of their text vectors."""


@dataclass
class BSARecExpertConfig(BSARecConfig):
    """The Transformer of the expert bsarec, which also filters a history by frequency, and its training."""

    section: ClassVar[str] = "experts.bsarec"
    named_by: ClassVar[str] = "experts.models"

    start: Literal["random", "text"] = "text"
    """What the embeddings of the items start from. text: the principal components of their text vectors."""


@dataclass
class HSTUExpertConfig(HSTUConfig):
    """The network of the expert hstu, whose attention has a gate and no softmax, and its training."""

    section: ClassVar[str] = "experts.hstu"
    named_by: ClassVar[str] = "experts.models"

    start: Literal["random", "text"] = "text"
    """What the embeddings of the items start from. text: the principal components of their text vectors."""


@dataclass
class RPGExpertConfig(RPGConfig):
    """The network of the expert rpg, which predicts the codes of an item's text, and its training."""

    section: ClassVar[str] = "experts.rpg"
    named_by: ClassVar[str] = "experts.models"


@dataclass
class ExpertsConfig:
    """Collaborative models and text neighbours that rank beside the language model."""

    models: list[ExpertName] = field(default_factory=list)
    """The experts. popularity: training events; decayed-markov: transitions over five steps; smoothed-markov: the same
    between text neighbours; item-knn: users in common; text, last-text: cosine of the text with the texts of the
    history, or with that of its last item; sasrec, bsarec, hstu: Transformers over items, trained here; rpg: one over
    codes of the items' texts, which knows cold items too."""
    sasrec: SASRecExpertConfig = field(default_factory=SASRecExpertConfig)
    """The Transformer of the expert sasrec."""
    bsarec: BSARecExpertConfig = field(default_factory=BSARecExpertConfig)
    """The Transformer of the expert bsarec."""
    hstu: HSTUExpertConfig = field(default_factory=HSTUExpertConfig)
    """The network of the expert hstu."""
    rpg: RPGExpertConfig = field(default_factory=RPGExpertConfig)
    """The network of the expert rpg."""
    candidates: int = 50
    """The weights of the fusion are learnt among so many best items of each expert, warm and cold items apart."""
    examples: int = 6000
    """Largest number of validation examples with a warm target that the weights are learnt from, drawn by the seed."""
    learned: bool = False
    """Order the best hundred items of the fused ranking by LambdaRank, trained on validation examples (the extra
    `ranker`)."""
    warm_floor: float = 0.97
    """Least recall@10 of warm targets when cold items rank too, as a share of the recall@10 without cold items."""
    seed: int = 0
    """Seed of the trained experts and of the draw of validation examples."""

    def __post_init__(self) -> None:
        check_fields(self, "experts", at_least={0: ("seed",), 1: ("candidates", "examples")}, positive=("warm_floor",))
        if len(set(self.models)) < len(self.models):
            raise UserError(f"--experts.models {self.models}: expected each expert at most once.")
        if self.learned and not self.models:
            raise UserError("--experts.learned true: there are no experts; name some with --experts.models.")

    @property
    def by_text(self) -> bool:
        """Whether one of the experts goes by the items' text vectors, or starts from them."""
        networks = {name for name in NETWORKS if getattr(self, name).reads_text}
        return not (BY_TEXT | networks).isdisjoint(self.models)

    def only(self, names: Sequence[ExpertName]) -> Self:
        """The settings of a weighted sum of some of the experts."""
        return replace(self, models=list(names), learned=False)

    def cache_key(self) -> dict[str, Any]:
        """All settings that the experts depend on."""
        unused = set(NETWORKS).difference(self.models)
        return {key: value for key, value in asdict(self).items() if key not in unused}


@dataclass
class DistillConfig:
    """Distillation: in training, the experts teach the language model beside the items that users took."""

    weight: float = 0.0
    """Share of the experts in the loss of each item token of the task sequential; the token itself has the rest. 0: the
    experts do not teach."""
    dense_weight: float = 0.0
    """Share of the experts in the loss of the dense head, for the items of the task sequential. 0: they do not teach
    it; above 0 needs weight above 0."""
    experts: list[ExpertName] = field(default_factory=list)
    """The experts that teach, of those in experts.models. Default: all of them but the Transformers."""
    temperature: float = 1.0
    """Divides the experts' scores before the softmax over all items: below 1, they favour their best items more."""
    top: int = 100
    """Number of items per training prefix whose probabilities are kept (6 bytes each); the other items have one sum per
    first code (2 bytes each)."""
    held_out: bool = True
    """Take each user's own events out of the experts before they teach on this user's history; otherwise they have seen
    the items that they predict."""
    folds: int = 2
    """A Transformer that teaches held out is fitted so many times, each time without one part of the users."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "train.distill",
            at_least={0: ("weight", "dense_weight"), 1: ("top",), 2: ("folds",)},
            positive=("temperature",),
        )
        for name in ("weight", "dense_weight"):
            if (value := getattr(self, name)) > 1:
                raise UserError(f"--train.distill.{name} {value}: expected a share from 0 to 1.")
        if self.dense_weight and not self.weight:
            raise UserError(
                f"--train.distill.dense_weight {self.dense_weight} needs experts that teach; set "
                "--train.distill.weight too, such as to 0.5, or this to 0."
            )

    def taught_by(self, models: Sequence[ExpertName]) -> list[ExpertName]:
        """The experts that teach, in the order of `models`, the experts that there are.

        Raises:
            UserError: none is left, or one is not among `models`.
        """
        if missing := [name for name in self.experts if name not in models]:
            raise UserError(
                f"--train.distill.experts {missing[0]}: not among --experts.models; add it there, or leave it out."
            )
        names = [name for name in models if (name in self.experts if self.experts else name not in NETWORKS)]
        if not names:
            raise UserError(
                f"--train.distill.weight {self.weight}, --preference.reward: no expert can teach; name one with "
                "--experts.models, such as smoothed-markov."
            )
        return names
