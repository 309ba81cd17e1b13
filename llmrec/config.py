"""The whole configuration. Each section is a dataclass in the package whose code uses it."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrec.collaborative.config import ExpertsConfig
from llmrec.data.config import DataConfig
from llmrec.decode.config import TWO_STREAMS, WITHOUT_HEAD, DecodeConfig
from llmrec.embed.config import EmbedConfig
from llmrec.errors import UserError
from llmrec.evaluation.config import EvaluateConfig
from llmrec.intentions.intentions import IntentionsConfig
from llmrec.model.config import BaseConfig
from llmrec.preference.config import PreferenceConfig
from llmrec.quantize.config import RefineConfig, TokenizeConfig
from llmrec.tasks.config import TasksConfig
from llmrec.train.config import TrainConfig, check_encoder_decoder


@dataclass
class Config:
    """All settings. YAML (--config) overrides the defaults; the command line (--section.key value) overrides both."""

    data: DataConfig = field(default_factory=DataConfig)
    """Catalogue and interactions."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """Items -> vectors."""
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)
    """Vectors -> semantic IDs."""
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    """What ranks beside the language model."""
    intentions: IntentionsConfig = field(default_factory=IntentionsConfig)
    """What people want, in words."""
    base: BaseConfig = field(default_factory=BaseConfig)
    """The language model to start from."""
    tasks: TasksConfig = field(default_factory=TasksConfig)
    """Training tasks and prompts."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training method and schedule."""
    refine: RefineConfig = field(default_factory=RefineConfig)
    """Tokenizer and language model trained in turns, after the training."""
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    """Preference alignment after the training."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """How answers are decoded."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """How the recommender is evaluated."""

    def __post_init__(self) -> None:
        headless = "" if self.train.dense.weight else "needs a dense head: set --train.dense.weight 1, or "
        if headless and self.decode.ranking not in ("auto", *WITHOUT_HEAD):
            raise UserError(f"--decode.ranking {self.decode.ranking} {headless}choose beam or quota.")
        if headless and (others := [name for name in self.evaluate.rankings if name not in WITHOUT_HEAD]):
            raise UserError(f"--evaluate.rankings {others[0]} {headless}leave it out.")
        two = [name for name in (self.decode.ranking, *self.evaluate.rankings) if name in TWO_STREAMS]
        if two and not self.tokenize.behaviour:
            raise UserError(
                f"--decode.ranking or --evaluate.rankings {two[0]} needs codes of behaviour; set --tokenize.behaviour "
                "64, or leave it out."
            )
        if self.tokenize.behaviour and not self.tasks.mixture.get("sequential"):
            raise UserError(
                f"--tokenize.behaviour {self.tokenize.behaviour}: the task sequential teaches the codes of behaviour; "
                "give it a rate in --tasks.mixture, or set this to 0."
            )
        if self.decode.ranking == "experts" and not self.experts.models:
            raise UserError("--decode.ranking experts: there are none; name them in --experts.models.")
        if "experts" in self.evaluate.rankings:
            raise UserError("--evaluate.rankings experts: they are measured wherever there are any; leave it out.")
        if headless and self.evaluate.frontier:
            raise UserError(f"--evaluate.frontier true {headless}set it to false.")
        if self.embed.reads_images and self.data.columns.image is None:
            raise UserError(
                f"--embed.vectors {self.embed.vectors}: image needs the images of the items; name their column in "
                "--data.columns.image."
            )
        if self.base.keep_layers and self.base.model is None:
            raise UserError(f"--base.keep_layers {self.base.keep_layers} cuts --base.model; name one, or set it to 0.")
        if not self.base.chat_template and self.base.model is None:
            raise UserError("--base.chat_template false is for --base.model; name one, or set it to true.")
        if self.tokenize.file is not None and self.data.regime == "strict":
            raise UserError(
                "--data.regime strict gives cold items their codes only after the training, --tokenize.file "
                f"{self.tokenize.file} has them already; set --data.regime catalogue-known."
            )
        if self.refine.rounds:
            self._check_refine()
        if self.train.distill.weight or self.preference.by_experts:
            self.train.distill.taught_by(self.experts.models)
        if self.base.model is None and self.base.architecture == "t5":
            check_encoder_decoder("--base.architecture t5", self.tasks, self.train)
            self.preference.check_encoder_decoder("--base.architecture t5")
        asked = "diagnose" if self.evaluate.diagnose else "rankings" if self.evaluate.rankings else None
        if asked and self.decode.constraint != "trie":
            raise UserError(
                f"--evaluate.{asked} goes by items, which --decode.constraint {self.decode.constraint} does not know; "
                "set it to trie."
            )

    def _check_refine(self) -> None:
        """Raise UserError for a setting that does not go with a refined tokenizer."""
        self.refine.check(self.tokenize)
        if self.train.distill.weight:
            raise UserError(
                f"--refine.rounds {self.refine.rounds} gives the items other semantic IDs, and --train.distill.weight "
                f"{self.train.distill.weight} has teachers for the first ones; set one of the two to 0."
            )
        if self.preference.by_experts:
            raise UserError(
                f"--refine.rounds {self.refine.rounds} gives the items other semantic IDs, and --preference.reward "
                "experts has teachers for the first ones; set this to ranked-hit, or refine.rounds to 0."
            )


SET_FIRST = (
    "data.format",
    "data.path",
    "data.items",
    "data.user_core",
    "data.item_core",
    "data.split",
    "embed.encoder",
    "embed.model",
    "tokenize.method",
    "tokenize.levels",
    "tokenize.codes",
    "base.model",
    "tasks.max_history",
    "train.method",
    "train.epochs",
    "train.batch_size",
    "train.learning_rate",
    "train.dense.weight",
    "decode.beams",
    "evaluate.baselines",
)
"""The twenty fields that users set first; `llmrec run --help` shows them."""

RENAMED = {
    "data.user_column": "data.columns.user",
    "data.item_column": "data.columns.item",
    "data.time_column": "data.columns.time",
    "data.rating_column": "data.columns.rating",
    "data.review_column": "data.columns.review",
    "data.title_column": "data.columns.title",
    "data.cold_items": "data.cold.items",
    "data.cold_share": "data.cold.share",
    "data.simulated_share": "data.cold.simulated_share",
    "data.cold_users": "data.cold.users",
    "data.cold_history": "data.cold.history",
    "train.merge": "train.lora.merge",
    "train.lora_rank": "train.lora.rank",
    "train.lora_alpha": "train.lora.alpha",
    "train.lora_dropout": "train.lora.dropout",
    "train.lora_targets": "train.lora.targets",
    "train.rslora": "train.lora.rslora",
    "train.dora": "train.lora.dora",
    "train.dense_weight": "train.dense.weight",
    "train.dense_dim": "train.dense.dim",
    "decode.new_bonus": "decode.cold_bonus",
}
"""Key of version 0.1 -> current key. Old keys are accepted until version 0.3."""


def with_new_names(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one section, with names of version 0.1 replaced by the current names.

    Args:
        section: name of the section, such as `train`.
        values: field -> value as in YAML or a manifest; a group of fields is a dictionary.
    """
    renamed: dict[str, Any] = {}
    for name, value in values.items():
        *groups, field_name = RENAMED.get(f"{section}.{name}", f"{section}.{name}").split(".")[1:]
        place = renamed
        for group in groups:
            place = place.setdefault(group, {})
        if isinstance(value, dict) and isinstance(place.get(field_name), dict):
            place[field_name] |= value
        else:
            place[field_name] = value
    return renamed


ADDED = {
    "data.columns.image": None,
    "data.columns.item_in_items": None,
    "data.encoding": "auto",
    "data.quoting": "auto",
    "data.bad_rows": "fail",
    "embed.without_text": "fail",
    "train.dense.item_vectors": False,
    "train.dense.vector_dropout": 0.2,
    "train.dense.competing": 32_768,
    "train.distill.dense_weight": 0.0,
}
"""Field -> the value that does what was done before the field existed. Such a field is left out of a stage's key.
`data.unknown_share` must not be here: by this field, the data of version 0.1, whose times are in seconds, is redone."""


def with_old_names(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one section with the names of version 0.1, so that a stage made by that version keeps its key.

    Later fields that do what was done before they existed are left out.

    Args:
        section: name of the section, such as `train`.
        values: field -> value as `dataclasses.asdict` gives them.
    """
    old = _without_defaults(section, values)
    renamed = {new: name for name, new in RENAMED.items()}
    for new, name in renamed.items():
        of, *groups, field_name = new.split(".")
        place: Any = old
        for group in groups:
            if group in place:
                place[group] = dict(place[group])
            place = place.get(group, {})
        if of == section and field_name in place:
            old[name.split(".")[1]] = place.pop(field_name)
    groups_of = {new.split(".")[1] for new in renamed if new.split(".")[0] == section}
    return {name: value for name, value in old.items() if name not in groups_of or value != {}}


def _without_defaults(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without those of `ADDED` that have the value there; `prefix` is the dotted name of their group."""
    return {
        name: _without_defaults(f"{prefix}.{name}", value) if isinstance(value, dict) else value
        for name, value in values.items()
        if ADDED.get(f"{prefix}.{name}", ...) != value
    }


INPUTS = {
    "data.path": True,
    "data.items": True,
    "embed.model": True,
    "embed.image_encoder": True,
    "embed.cache": False,
    "embed.vectors": False,
    "tokenize.file": False,
    "intentions.path": False,
    "intentions.local_model": True,
    "base.model": True,
    "preference.feedback": False,
    "tasks.prompts": False,
}
"""Field that names a file or folder of the user -> whether it may also name something on a hub."""


def check_inputs(config: Config, places: Iterable[Path]) -> None:
    """Check that no input lies in the folder of a stage, because making the stage would replace the input.

    Raises:
        UserError: an input lies there; the message names the field and the folder.
    """
    for key, on_a_hub in INPUTS.items():
        section, name = key.split(".")
        found = getattr(getattr(config, section), name)
        for value in found if isinstance(found, list) else [found]:
            if value is None:
                continue
            name = value.partition("@")[0]  # a data set: NAME[:CONFIG][@SPLIT]
            paths = [Path(path).expanduser() for path in (value, name, name.partition(":")[0])]
            for place in places:
                if any(_lies_in(path, place) for path in paths if not on_a_hub or os.path.lexists(path)):
                    raise UserError(
                        f"--{key} {value}: lies in {place}, which belongs to the run directory and may be replaced; "
                        "copy it elsewhere, or name another --run."
                    )


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, by its name or after links are resolved."""
    names = (Path(os.path.abspath(path)), Path(os.path.realpath(path)))
    places = (Path(os.path.abspath(folder)), Path(os.path.realpath(folder)))
    return any(name.is_relative_to(place) for name in names for place in places)
