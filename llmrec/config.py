"""The whole configuration: one section per room, each declared beside the code it steers."""

from dataclasses import dataclass, field

from llmrec.data.config import DataConfig
from llmrec.decode.config import WITHOUT_HEAD, DecodeConfig
from llmrec.embed.config import EmbedConfig
from llmrec.errors import UserError
from llmrec.evaluation.config import EvaluateConfig
from llmrec.intentions.intentions import IntentionsConfig
from llmrec.model.config import BaseConfig
from llmrec.quantize.config import TokenizeConfig
from llmrec.tasks.config import TasksConfig
from llmrec.train.config import TrainConfig


@dataclass
class Config:
    """Defaults < YAML (--config) < command line (--section.key value)."""

    data: DataConfig = field(default_factory=DataConfig)
    """Catalogue and interactions."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """Items -> vectors."""
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)
    """Vectors -> semantic IDs."""
    intentions: IntentionsConfig = field(default_factory=IntentionsConfig)
    """What people want, in words."""
    base: BaseConfig = field(default_factory=BaseConfig)
    """The language model to start from."""
    tasks: TasksConfig = field(default_factory=TasksConfig)
    """What it is taught."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it is taught."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """How answers are decoded."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """How it is measured."""

    def __post_init__(self) -> None:
        headless = "" if self.train.dense.weight else "needs a dense head: set --train.dense.weight 1, or "
        if headless and self.decode.ranking not in ("auto", *WITHOUT_HEAD):
            raise UserError(f"--decode.ranking {self.decode.ranking} {headless}choose beam or quota.")
        if headless and (others := [name for name in self.evaluate.rankings if name not in WITHOUT_HEAD]):
            raise UserError(f"--evaluate.rankings {others[0]} {headless}leave it out.")
        if headless and self.evaluate.frontier:
            raise UserError(f"--evaluate.frontier true {headless}set it to false.")
        asked = "diagnose" if self.evaluate.diagnose else "rankings" if self.evaluate.rankings else None
        if asked and self.decode.constraint != "trie":
            raise UserError(
                f"--evaluate.{asked} goes by items, which --decode.constraint {self.decode.constraint} does not know; "
                "set it to trie."
            )
