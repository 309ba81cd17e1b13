"""Checks the types, choices and ranges of the fields of a configuration class. The error names the wrong field.

@dataclass
class DecodeConfig:
    beams: int = 20
    def __post_init__(self) -> None:
        check_fields(self, "decode", at_least={1: ("beams",)})

DecodeConfig(beams=0)    # UserError: --decode.beams 0: expected at least 1.
"""

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llmrec.errors import UserError

_HALF = re.compile("[\ud800-\udfff]")


def check_fields(
    config: Any,
    section: str,
    at_least: Mapping[int, Sequence[str]] | None = None,
    positive: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Check the fields of a dataclass.

    Args:
        config: instance of the dataclass; every field must have the type of its annotation.
        section: its section in the configuration, such as `train` or `embed.align`; empty for a request.
        at_least: least value -> names of fields. None is valid; in a list, each number is checked.
        positive: names of fields that must be above 0 and finite.
        shares: names of fields that must be in [0, 1).

    Raises:
        UserError: a value has another type, is not one of the choices, is out of its range, or holds a text with half
            of a surrogate pair.
    """
    for name, hint in _hints(config.__class__).items():
        check_value(_flag(section, name), getattr(config, name), hint)
        check_texts(_flag(section, name), getattr(config, name))
    for least, names in (at_least or {}).items():
        for name in names:
            _check_range(config, section, name, lambda value, least=least: value >= least, f"at least {least}")
    for name in positive:
        _check_range(config, section, name, lambda value: 0 < value < float("inf"), "more than 0")
    for name in shares:
        _check_range(config, section, name, lambda value: 0 <= value < 1, "at least 0 and below 1")
    for name in _hints(config.__class__):
        if isinstance(getattr(config, name), float):
            _check_range(config, section, name, lambda value: value == value, "a number")


def check_value(name: str, value: Any, hint: Any) -> None:
    """Check that `value` has the type `hint`; the error message calls the value `name`.

    Raises:
        UserError: the value has another type. For a `Literal`, the message suggests the closest choice and lists all.
    """
    if matches(value, hint):
        return
    choices = [str(choice) for choice in _choices(hint)]
    if not choices:
        raise UserError(f"{name} {value!r:.80}: expected {_named(hint)}.")
    near = get_close_matches(str(value), choices, n=1)
    suggestion = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"{name} {value!s:.80}: {suggestion}Expected one of {', '.join(choices)}.")


def check_texts(name: str, value: Any) -> None:
    """Check that no text in `value` holds half of a surrogate pair, which is no character and can't be written.

    Args:
        name: what the error message calls the value.
        value: a text, or a list or mapping of texts; other values pass.

    Raises:
        UserError: a text holds one.
    """
    if isinstance(value, str):
        if half := _HALF.search(value):
            raise UserError(
                f"{name}: holds {ascii(half[0])[1:-1]}, half of a surrogate pair, which is no character; give whole "
                "characters, as UTF-8."
            )
    elif isinstance(value, Mapping):
        for key, each in value.items():
            check_texts(name, key)
            check_texts(name, each)
    elif isinstance(value, list | tuple):
        for each in value:
            check_texts(name, each)


def matches(value: Any, hint: Any) -> bool:
    """Whether `value` has the type `hint`: a class, a `Literal`, a union, a list or a dict."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(matches(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list | tuple) and all(matches(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            matches(key, arguments[0]) and matches(item, arguments[1]) for key, item in value.items()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def _check_range(config: Any, section: str, name: str, fits: Any, expected: str) -> None:
    value = getattr(config, name)
    for number in value if isinstance(value, list) else [value]:
        if number is not None and not fits(number):
            raise UserError(f"{_flag(section, name)} {number}: expected {expected}.")


def _flag(section: str, name: str) -> str:
    return f"--{section}.{name}" if section else f"--{name.replace('_', '-')}"


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _choices(hint: Any) -> list[Any]:
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for argument in get_args(hint) for choice in _choices(argument)]


def _named(hint: Any) -> str:
    """A type in words: `int`, `text or null`, `list of int`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_named(argument) for argument in arguments)
    if origin in (list, dict):
        return f"{origin.__name__} of {' -> '.join(_named(argument) for argument in arguments)}"
    if hint is type(None):
        return "null"
    if is_dataclass(hint):
        return "a section of fields"
    return {str: "text", int: "a whole number (int)", float: "a number (float)", bool: "true or false (bool)"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )
