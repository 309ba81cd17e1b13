"""The whole configuration: one section per room, each declared beside the code it steers."""

from dataclasses import dataclass, field

from llmrec.data.config import DataConfig
from llmrec.decode.config import DecodeConfig
from llmrec.embed.config import EmbedConfig
from llmrec.evaluate.config import EvaluateConfig
from llmrec.intentions.config import IntentionsConfig
from llmrec.quantize.config import TokenizeConfig
from llmrec.tasks.config import TasksConfig
from llmrec.train.config import BaseConfig, TrainConfig


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
