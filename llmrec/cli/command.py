"""The `Command` class, and the parsers and flags that commands share."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llmrec.console import get_logger
from llmrec.errors import UserError
from llmrec.resources import resource_folder

if TYPE_CHECKING:
    from llmrec.recommender.recommender import Recommender

log = get_logger(__name__)


@dataclass(frozen=True)
class Command:
    """A command of the command line: the first word after `llmrec`.

    Attributes:
        summary: one line for `llmrec --help`.
        main: runs the command, given the words after its name.
        resumable: whether the same command, run again, continues where it was stopped.
    """

    summary: str
    main: Callable[[Sequence[str]], None]
    resumable: bool = False


class PlainParser(argparse.ArgumentParser):
    """An argparse parser that raises a one-line UserError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`.")


def add_model_flags(parser: argparse.ArgumentParser, or_run: bool = False) -> None:
    """Add the flags that choose the bundle and the device; `load_model` reads them.

    Args:
        parser: gets the flags.
        or_run: also add `--run`, which can stand instead of `--model`.
    """
    parser.add_argument("--model", required=not or_run, metavar="DIR_OR_HUB_ID", help="a bundle, such as RUN/model")
    if or_run:
        parser.add_argument(
            "--run",
            metavar="DIR",
            help="instead of --model: a run directory; before its model is trained, its experts answer requests with a "
            "history",
        )
    parser.add_argument(
        "--base",
        metavar="DIR_OR_HUB_ID",
        help="the base model, if the bundle contains only an adapter; needed if the base model is not on this machine, "
        "because a model name stored in a bundle is not downloaded from the Hub",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    parser.add_argument(
        "--device-map",
        choices=("auto", "balanced", "sequential"),
        help="spread the layers of a model that is too large for one GPU over all of them, instead of --device",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python code that the base model contains"
    )


def load_model(options: argparse.Namespace, **decode: Any) -> "Recommender":
    """Load the bundle that the flags of `add_model_flags` choose; `decode`: further fields of its `DecodeConfig`."""
    from llmrec.recommender.recommender import Recommender

    if options.device_map is not None and options.device != "auto":
        raise UserError(f"--device {options.device}: --device-map {options.device_map} chooses devices; leave one out.")
    recommender = Recommender.from_pretrained(
        options.model,
        trust_remote_code=options.trust_remote_code,
        encoder=getattr(options, "encoder", None),  # only of `serve`, which embeds items
        base=options.base,
        device_map=options.device_map,
    )
    recommender.decode_config = replace(recommender.decode_config, device=options.device, **decode)
    return recommender


class _HelpAll(argparse.Action):
    """Action of `--help-all`: prints every flag."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *others: Any) -> NoReturn:
        parser.print_help()
        parser.exit()


class _Help(_HelpAll):
    """Action of `--help`: prints the command's own flags and the configuration fields that people set first."""

    def __call__(self, parser: argparse.ArgumentParser, *others: Any) -> NoReturn:
        from llmrec.config import SET_FIRST, Config

        names = [action.dest for action in parser._actions]
        hidden = 0
        for action in parser._actions:
            if action.dest.partition(".")[0] in Config.__dataclass_fields__ and action.dest not in SET_FIRST:
                action.help = argparse.SUPPRESS
                hidden += not any(
                    name.startswith(f"{action.dest}.") for name in names
                )  # a field, not a group of fields
        parser.print_help()
        print(f"\n{hidden} more fields, with their meaning: {parser.prog} --help-all")
        parser.exit()


def config_parser(command: str, summary: str, own_flags: str = "", needs_run: bool = True) -> Any:
    """A jsonargparse parser for `--config`, `--run`, `--json` and every `--section.key`.

    Args:
        command: name of the command.
        summary: its description.
        own_flags: further flags of the command, for the usage line; the caller adds them.
        needs_run: whether `--run` is required.
    """
    from dataclasses import fields

    from jsonargparse import ArgumentParser, set_parsing_settings

    from llmrec.config import Config

    set_parsing_settings(docstring_parse_attribute_docstrings=True, validate_defaults=False)
    run = "--run DIR" if needs_run else "[--run DIR]"
    parser = ArgumentParser(
        prog=f"llmrec {command}",
        usage=" ".join(
            f"llmrec {command} [--config FILE] {run} {own_flags} [--json] [--section.key value ...]".split()
        ),
        description=f"{summary[0].upper()}{summary[1:]}.",
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=_Help, help="show the fields that people set first, and exit")
    parser.add_argument("--help-all", action=_HelpAll, help="show every field of the configuration and exit")
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below")
    parser.add_argument("--run", type=str, required=needs_run, metavar="DIR", help="the run directory")
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout, nothing else")
    for section in fields(Config):
        parser.add_class_arguments(section.default_factory, section.name)
    return parser


def parse(parser: Any, arguments: Sequence[str]) -> Any:
    """Parse `arguments` into dataclasses; turn jsonargparse's errors into one-line UserErrors.

    Raises:
        UserError: an unknown key (the message names the closest known one), a value of the wrong type, a missing file.
    """
    from jsonargparse import ArgumentError

    try:
        return parser.instantiate_classes(parser.parse_args(_configs_first(arguments)))
    except ArgumentError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise UserError(_readable(str(error), parser)) from None


def _configs_first(arguments: Sequence[str]) -> list[str]:
    """Move every `--config FILE` to the front, so that flags override the file in any order; return all words.

    If FILE does not exist, the shipped file of that name is used: `--config configs/quickstart.yaml` works in any
    directory.
    """
    configs, others = [], []
    words = iter(with_config_of_run(arguments))
    for word in words:
        if word != "--config" and not word.startswith("--config="):
            others.append(word)
            continue
        name = next(words, "") if word == "--config" else word.removeprefix("--config=")
        path = Path(name)
        if not os.path.exists(path):  # also False for strings that can't be a path
            path = resource_folder("configs") / name.removeprefix("configs/")
        if not os.path.isfile(path):
            raise UserError(f"--config {name}: no such file.")
        configs += ["--config", _read_yaml(path)]
    return configs + [_with_new_name(word) for word in others]


def with_config_of_run(arguments: Sequence[str]) -> list[str]:
    """`arguments`, after a `--config` that names the configuration of the run directory, if it has one and they name
    no other data: nobody who leaves `--config` out wants the run's data replaced by those of the defaults."""
    elsewhere = ("--config", "--data.format", "--data.path")
    named = any(word.partition("=")[0] in elsewhere for word in arguments)
    if named or (own := _config_of_run(arguments)) is None:
        return list(arguments)
    log.warning("No --config: going on with %s.", own)
    return ["--config", str(own), *arguments]


def _config_of_run(words: Sequence[str]) -> Path | None:
    """The configuration in the run directory that `--run` names; None if there is no flag, directory or file."""
    from llmrec.rundir import CONFIG, RUN

    flags = [word.removeprefix("--run=") for word in words if word.startswith("--run=")]
    flags += [after for word, after in pairwise(words) if word == "--run"]
    folder = Path(flags[-1]) if flags else None
    own = folder is not None and os.path.isfile(folder / RUN) and os.path.isfile(folder / CONFIG)
    return folder / CONFIG if folder is not None and own else None


def _with_new_name(word: str) -> str:
    """Replace a flag's name of version 0.1 by its new name, with a warning; other words are returned unchanged."""
    from llmrec.config import RENAMED

    flag, sign, value = word.partition("=")
    new = RENAMED.get(flag.removeprefix("--")) if flag.startswith("--") else None
    if new is None:
        return word
    log.warning("%s is called --%s now; the old name goes with version 0.3.", flag, new)
    return f"--{new}{sign}{value}"


def _read_yaml(path: Path) -> str:
    """Read the sections of a configuration file; return them as YAML, with new names for keys of version 0.1.

    Raises:
        UserError: the file is not YAML or has no sections. For malformed YAML the message names the line, which
            jsonargparse's message would not.
    """
    import yaml

    from llmrec.config import RENAMED, Config, with_new_names

    known = Config.__dataclass_fields__
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"--config {path}{line}: malformed YAML: {error.problem}.") from None
    except (
        OSError,
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, or an impossible date
        raise UserError(f"--config {path}: malformed YAML: {error}.") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"{content!r:.40}"
        raise UserError(f"--config {path}: found {found}, expected sections such as `train:`.")
    for name, fields in content.items():
        for key in (name, *(fields if isinstance(fields, dict) else ())):
            if not isinstance(key, str):
                raise UserError(f"--config {path}: found the key {key!r:.40}, expected names of sections and fields.")
        if not isinstance(fields, dict) and name not in ("run", "json"):
            expected = "fields below it" if name in known else f"one of the sections {', '.join(known)}"
            raise UserError(f"--config {path}: {name}: found {fields!r:.40}, expected {expected}.")
    keys = [f"{name}.{field}" for name, fields in content.items() if isinstance(fields, dict) for field in fields]
    if old := [f"{key} (now {RENAMED[key]})" for key in keys if key in RENAMED]:
        log.warning("%s: old names, which go with version 0.3: %s.", path, ", ".join(old))
    sections = {
        name: with_new_names(name, fields) if isinstance(fields, dict) else fields for name, fields in content.items()
    }
    return str(yaml.safe_dump(sections, sort_keys=False))


def _readable(message: str, parser: Any) -> str:
    """Shorten a message of jsonargparse to one line; for an unknown key, name the closest known key."""
    import re
    from difflib import get_close_matches

    line = " ".join(message.split())
    known = [action.dest for action in parser._actions if action.dest not in ("help", "print_config")]
    for pattern in (
        r"Group '([\w.]+)' does not accept option '([\w.]+)'",
        r"()Key '([\w.\-]+)' is not expected",
        r"()Unrecognized arguments: --([\w.\-]+)",
        r"()Option '([\w.\-]+)' is not accepted",
    ):
        if match := re.search(pattern, line, re.IGNORECASE):
            key = ".".join(filter(None, match.groups()))
            near = get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            return f"unknown configuration key {key!r}; {hint}`{parser.prog} --help-all` lists them all."
    if "arguments are required" in line:
        if "methods" in line:
            return "--methods A,B,C is missing: name the tokenizers to compare."
        return "--run DIR is missing: name the folder that the stages share."
    if match := re.search(r'"tokenize\.method".*Got value: (\S+)', line):
        from llmrec.quantize.methods import preset_files

        if match[1] in preset_files():
            return f"--tokenize.method: {match[1]} is a preset; say --config configs/tokenizers/{match[1]}.yaml"
    line = re.sub(r"<class '(\w+)'>|typing\.Literal(\[[^\]]*\])", lambda found: found[1] or f"one of {found[2]}", line)
    line = re.sub(r'Parser key "([\w.]+)": Expected an? (.*)\. Got value: (.*)', r"--\1: expected \2, got \3", line)
    if match := re.search(r"expected dict, got \{?([\w-]+)\s*[:=]\s*([\d.]+)", line):
        line += f"; write a colon and a space after each name: '{{{match[1]}: {match[2]}}}'"
    return line
