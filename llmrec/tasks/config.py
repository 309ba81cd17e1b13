"""Which tasks are trained and how often, and their prompts: one YAML file per task.

A file holds the inputs of the task, what it answers, several phrasings, and the paper.
"""

import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from llmrec.checks import check_fields
from llmrec.data import Catalog
from llmrec.errors import UserError
from llmrec.resources import resource_folder

TaskName = Literal[
    "sequential",
    "titles-to-item",
    "next-text",
    "item-to-codes",
    "codes-to-item",
    "shared-codes",
    "search",
    "personal-search",
    "chat",
    "preference",
]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
ASKED: tuple[TaskName, ...] = ("sequential", "search", "personal-search")
"""Tasks whose prompts a recommender uses to answer requests."""


def _default_mixture() -> dict[TaskName, float]:
    return {
        "sequential": 1.0,
        "item-to-codes": 1.0,
        "codes-to-item": 0.5,
        "search": 1.0,
        "personal-search": 0.5,
    }


@dataclass
class TasksConfig:
    """The mixture of training tasks."""

    mixture: dict[TaskName, float] = field(default_factory=_default_mixture)
    """Rate of each task: passes over its rows per epoch, e.g. 0.5 for a random half of them. A task that is missing or
    has rate 0 is not trained. Rows are windows of the users' histories (sequential, see `supervise`), users
    (titles-to-item, next-text, personal-search, chat, preference), items (item-to-codes, codes-to-item, search) or
    prefixes that several items share (shared-codes). The task preference needs intentions."""
    prompts: str | None = None
    """Folder with your own YAML templates, named like the shipped ones. It needs a file for each task of the mixture
    and for sequential, search and personal-search. Default: the shipped prompts."""
    max_history: int = 20
    """A prompt shows at most this many items of a history, the most recent ones."""
    supervise: Literal["every-item", "target"] = "every-item"
    """Sequential task. every-item: one example trains the next item at each position of a window of `max_history`
    items; a longer history is cut into several windows, from its newest item back. target: one example trains one
    target item. In both, each item of a history but the first is a target once per pass."""
    user_tokens: bool = False
    """Each history in a prompt begins with tokens of its user: the mean vector of all its items, older ones than
    `max_history` too, quantized by the items' codebooks (UIST). New users need no training. In training the tokens are
    made of events before the targets only: with `supervise` every-item, an example draws a position of its window; the
    tokens are made of what is before it, and only the items from there on, half of them on average, are targets."""
    title_tokens: int = 0
    """In prompts, each item of a history is followed by at most this many tokens of its title; 0: by none. The model
    then reads what a person would read, at the price of longer prompts."""
    max_text_tokens: int = 48
    """Training prompts cut item texts and requests to this many tokens."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.mixture if name not in TASKS]
        if unknown:
            name, colon, rate = str(unknown[0]).partition(":")
            hint = f"write a space after the colon ({name}: {rate}); " if colon else ""
            raise UserError(f"--tasks.mixture: unknown task {unknown[0]!r}; {hint}known are {', '.join(TASKS)}.")
        check_fields(self, "tasks", at_least={0: ("title_tokens",), 1: ("max_history", "max_text_tokens")})
        if any(rate < 0 for rate in self.mixture.values()) or not any(self.mixture.values()):
            raise UserError(f"--tasks.mixture {self.mixture}: rates are at least 0 and not all 0.")

    def cache_key(self) -> dict[str, Any]:
        """The fields on which the result depends. A field that version 0.1 lacked counts only if it is set."""
        later = "user_tokens", "title_tokens"
        return {name: value for name, value in asdict(self).items() if name not in later or value}


INPUTS = {
    "sequential": ["history"],
    "titles-to-item": ["titles"],
    "next-text": ["history"],
    "item-to-codes": ["text"],
    "codes-to-item": ["item"],
    "shared-codes": ["prefix"],
    "search": ["query"],
    "personal-search": ["history", "query"],
    "chat": ["history", "item", "query"],
    "preference": ["history"],
}


@dataclass(frozen=True)
class Template:
    """The phrasings of one task.

    Attributes:
        name: of the task.
        paper: the paper that the task comes from.
        inputs: the placeholders. Every phrasing holds each of them once.
        answer: whether the answer is a semantic ID (item) or text.
        templates: the phrasings. A phrasing is a text, or the list of turns of a conversation, the user's first and
            last.
    """

    name: str
    paper: str
    inputs: list[str]
    answer: Literal["item", "text"]
    templates: list[str | list[str]]

    def fill(self, phrasing: int, values: dict[str, str]) -> list[str]:
        """The turns of phrasing number `phrasing`, filled with `values`. Braces inside a value stay as they are."""
        return [turn.format_map(values) for turn in turns(self.templates[phrasing])]


def turns(phrasing: str | list[str]) -> list[str]:
    """The turns of a phrasing: one for a text, several for a conversation."""
    return [phrasing] if isinstance(phrasing, str) else phrasing


def load_template(path: Path) -> Template:
    """Read and check one YAML file.

    Raises:
        UserError: the file is missing, is not YAML, has a missing, unknown or wrong key, or a phrasing with wrong
            placeholders.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such prompt file; --tasks.prompts needs one YAML per task.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date is a ValueError
        raise UserError(f"{path}: not valid YAML: {error}") from None
    keys = {"name": str, "paper": str, "inputs": list, "answer": str, "templates": list}
    if not isinstance(raw, dict) or raw.keys() != keys.keys():
        found = sorted(map(str, raw)) if isinstance(raw, dict) else type(raw).__name__
        raise UserError(f"{path}: expected the keys {', '.join(keys)}; found {found}.")
    for key, kind in keys.items():
        if not isinstance(raw[key], kind) or not raw[key]:
            raise UserError(f"{path}: {key} must be a non-empty {kind.__name__}, found {raw[key]!r}.")
    template = Template(**raw)
    if template.answer not in ("item", "text"):
        raise UserError(f"{path}: answer must be item or text, found {template.answer!r}.")
    if template.name != path.stem:
        raise UserError(f"{path}: name must be that of the file, {path.stem}; found {template.name!r}.")
    if template.inputs != INPUTS[template.name]:
        raise UserError(f"{path}: inputs of {template.name} are {INPUTS[template.name]}, found {template.inputs}.")
    for phrasing in template.templates:
        _check_phrasing(path, template, phrasing)
    return template


def _check_phrasing(path: Path, template: Template, phrasing: Any) -> None:
    """Raise UserError unless `phrasing` is a text, or a list of an odd number of texts, with each placeholder once."""
    spoken = phrasing if isinstance(phrasing, list) else [phrasing]
    if not all(isinstance(turn, str) for turn in spoken) or len(spoken) % 2 == 0:
        raise UserError(f"{path}: template {phrasing!r}: expected text, or turns of text, the user's first and last.")
    try:
        # Keep a conversion or format, as in {text!r} or {text:>9}: it then differs from the inputs and is refused.
        holes = [
            name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            for turn in spoken
            for _, name, form, conversion in string.Formatter().parse(turn)
            if name is not None
        ]
    except ValueError as error:
        raise UserError(f"{path}: template {phrasing!r}: {error}.") from None
    if sorted(holes) != sorted(template.inputs):
        raise UserError(f"{path}: template {phrasing!r} has placeholders {holes}, expected {template.inputs}.")


def prompt_files(tasks: TasksConfig) -> list[Path]:
    """The files of `tasks.prompts`, sorted; none for the shipped prompts."""
    return sorted(Path(tasks.prompts).glob("*.yaml")) if tasks.prompts else []


def load_templates(folder: str | Path | None = None) -> dict[str, Template]:
    """Read the templates in `folder`, or the shipped ones.

    Returns:
        Task name -> template; a file may be missing except for the tasks in `ASKED`.

    Raises:
        UserError: a file is missing or wrong.
    """
    root = Path(folder) if folder is not None else resource_folder("prompts")
    paths = {name: root / f"{name}.yaml" for name in TASKS}
    return {name: load_template(path) for name, path in paths.items() if name in ASKED or path.exists()}


def save_templates(templates: dict[str, Template], folder: Path) -> None:
    """Write templates as YAML, one file per task, as `load_templates` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, template in templates.items():
        text = yaml.safe_dump(asdict(template), sort_keys=False, allow_unicode=True, width=200)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def tokenizer_texts(catalog: Catalog, templates: Mapping[str, Template]) -> list[str]:
    """The texts that train the tokenizer of a model made here: item texts, also in lower case, and prompt templates."""
    texts = catalog.texts(catalog.whole_text)
    # Prompts hold requests in lower case.
    return (
        texts
        + [text.lower() for text in texts]
        + [turn for template in templates.values() for phrasing in template.templates for turn in turns(phrasing)]
    )
