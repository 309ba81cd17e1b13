"""Checks the types, choices and ranges of the fields of a configuration class. The error names the wrong field.

@dataclass
class DecodeConfig:
    beams: int = 20
    def __post_init__(self) -> None:
        check_fields(self, "decode", at_least={1: ("beams",)})

DecodeConfig(beams=0)    # UserError: --decode.beams 0: expected at least 1.

`checked` does the same for the arguments of a function:

@checked
def fit(self, log: Interactions) -> Self: ...

recommender.fit("events.csv")    # UserError: log: found the text 'events.csv', expected Interactions; make ...
"""

import inspect
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache, wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from llmrec.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

_HALF = re.compile("[\ud800-\udfff]")


def check_fields(
    config: Any,
    section: str,
    at_least: Mapping[int, Sequence[str]] | None = None,
    positive: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Check the fields of a dataclass. A value that `plain` can bring into the form of its annotation is replaced.

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
        object.__setattr__(config, name, plain(getattr(config, name), hint))
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
    if not choices and type(value).__module__.partition(".")[0] not in ("builtins", "pathlib"):  # no short text
        raise UserError(f"{name}: found {found(value)}, expected {_named(hint)}.")
    if not choices:
        raise UserError(f"{name} {value!r:.80}: expected {_named(hint)}.")
    near = get_close_matches(str(value), choices, n=1)
    suggestion = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"{name} {value!s:.80}: {suggestion}Expected one of {', '.join(choices)}.")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which first checks its arguments against its annotations.

    The elements of a `Sequence` or `Mapping` are not checked, and neither is an annotation in quotes.

    Raises:
        UserError: an argument has another type. The message names the parameter, and how to make such an object: the
            `MADE_BY` of its class.
    """
    parameters = inspect.signature(function).parameters
    hints = {name: each.annotation for name, each in parameters.items() if _is_hint(each)}

    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        names = [*parameters][: len(args)]
        positional = [_argument(name, value, hints) for name, value in zip(names, args, strict=False)]
        named = {name: _argument(name, value, hints) for name, value in kwargs.items()}
        return function(*positional, *args[len(names) :], **named)  # type: ignore[arg-type]  # the same, in plain form

    return inner


def check_argument(name: str, value: Any, hint: Any) -> None:
    """Check that the argument `name` has the type `hint`; errors as in `checked`."""
    if matches(value, hint):
        return
    classes = [each for each in _members(hint) if getattr(each, "__module__", "").startswith("llmrec.")]
    if not classes:
        check_value(name, value, hint)
    made_by = getattr(classes[0], "MADE_BY", f"{classes[0].__name__}(...)")
    raise UserError(f"{name}: found {found(value)}, expected {classes[0].__name__}; make it with {made_by}.")


def check_names(call: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Check the names of the arguments that `call` hands on.

    Raises:
        UserError: a name is not one of `known`; the message suggests the closest one and lists all.
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            suggestion = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{call} has no parameter {name}: {suggestion}Expected one of {', '.join(known)}.")


def listed(values: Any, name: str, expected: str) -> list[Any]:
    """The elements of a list, an array, a column or a generator.

    Raises:
        UserError: `values` is a text, a mapping or a table, whose elements are letters, keys or columns, or nothing
            that has elements. The message calls it `name`, and says that `expected` was expected.
    """
    if isinstance(values, str):
        raise UserError(f"{name} {values!r:.80}: found one text, expected {expected}.")
    if not isinstance(values, bytes | Mapping) and not hasattr(values, "columns"):
        try:
            return [*values]
        except TypeError:  # also an array without dimensions
            pass
    raise UserError(f"{name}: found {found(values)}, expected {expected}.")


def found(value: Any) -> str:
    """What a value is, in words: `None`, `the text 'a.csv'`, `a pandas DataFrame`, `a dict`."""
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str):
        return f"the text {value!r:.80}"
    library = type(value).__module__.partition(".")[0]
    name = type(value).__name__ if library in ("builtins", "llmrec") else f"{library} {type(value).__name__}"
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def plain(value: Any, hint: Any) -> Any:
    """The value in the form of `hint`, if it has another form of the same: a number or array of numpy, a tuple, a path.

    plain(np.int64(3), int) == 3; plain((8, 8), list[int]) == [8, 8]; plain(Path("a"), str) == "a"
    """
    if isinstance(value, tuple):
        other: Any = list(value) if any(get_origin(each) is list for each in _members(hint)) else value
    elif hasattr(value, "tolist") and (getattr(value, "ndim", 1) == 0 or not matches(value, hint)):
        other = value.tolist()
    elif isinstance(value, os.PathLike) and not matches(value, hint):
        other = os.fspath(value)
    else:
        return value
    return other if matches(other, hint) else value


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
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _argument(name: str, value: Any, hints: Mapping[str, Any]) -> Any:
    """The argument in plain form, checked."""
    if name not in hints:
        return value
    value = plain(value, hints[name])
    check_argument(name, value, hints[name])
    return value


def _is_hint(parameter: inspect.Parameter) -> bool:
    by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    return by_name and parameter.annotation is not parameter.empty and not isinstance(parameter.annotation, str)


def _members(hint: Any) -> list[Any]:
    """The types of a union; of another type, itself."""
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


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
    return {
        str: "text",
        Path: "a path",
        int: "a whole number (int)",
        float: "a number (float)",
        bool: "true or false (bool)",
    }.get(hint, getattr(hint, "__name__", str(hint)))
