"""Intentions and preferences that somebody has written down: a table, or LC-Rec's D.user.json.

LC-Rec (https://arxiv.org/abs/2311.09049) asks its model about the last item but two of each user's sequence (`train`)
and about the last (`test`); preferences come from the items before. Under another split, or after other filters, such a
text may tell of validation or test events: it is learned from only if all events behind it are training events.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from llmrec.console import get_logger
from llmrec.data import Catalog, Interactions
from llmrec.data.files import id_column, read_json, read_table, require_column, require_file
from llmrec.errors import UserError
from llmrec.intentions.intentions import Intentions, IntentionsConfig

log = get_logger(__name__)

FLAG = "--intentions.path"
KEPT = ("valid", "val", "test")
"""Parts of LC-Rec's intentions that only measure."""

Texts = dict[str, list[str]]


@dataclass
class Found:
    """Texts by item and by user, before those of strangers are dropped."""

    items: Texts = field(default_factory=lambda: defaultdict(list))
    users: Texts = field(default_factory=lambda: defaultdict(list))
    held_out: Texts = field(default_factory=lambda: defaultdict(list))


def read_file(config: IntentionsConfig, catalog: Catalog, train: Interactions) -> Intentions:
    """The texts of items in the catalogue and of users in the training log.

    Raises:
        UserError: for a missing or malformed file, with the field or row.
    """
    path = require_file(config.path or "", FLAG)
    found = _lc_rec(path, train) if path.name.endswith((".json", ".json.gz")) else _table(path)
    users = set(train.frame["user_id"].unique().to_list())
    return Intentions(
        items=_known(found.items, catalog.index, config.per_item, path, "items"),
        users=_known(found.users, users, config.per_user, path, "users"),
        held_out=_known(found.held_out, catalog.index, None, path, "items"),
    )


def _known(texts: Texts, known: Any, most: int | None, path: Path, what: str) -> Texts:
    """Texts of known ids, the first `most` different ones of each."""
    if strange := [name for name in texts if name not in known]:
        log.info("%s: %d of %d %s are not in the data, such as %s", path, len(strange), len(texts), what, strange[0])
    cut = {name: [*dict.fromkeys(found)][:most] for name, found in texts.items() if name in known}
    return {name: found for name, found in cut.items() if found}


def _table(path: Path) -> Found:
    """Rows with `text` and either `item_id` or `user_id`; `held_out` marks what only measures."""
    frame = read_table(path, FLAG)
    require_column(frame, "text", path, f"of {FLAG}")
    ids = [name for name in ("item_id", "user_id") if name in frame.columns]
    if not ids:
        require_column(frame, "item_id", path, f"of {FLAG}; or user_id")
    columns = {name: _ids(frame[name], path) if name in ids else [None] * len(frame) for name in ("item_id", "user_id")}
    held = _flags(frame["held_out"], path) if "held_out" in frame.columns else [False] * len(frame)
    found = Found()
    rows = zip(columns["item_id"], columns["user_id"], frame["text"].cast(pl.String), held, strict=True)
    for row, (item, user, text, kept) in enumerate(rows, 1):
        if not text or not text.strip():
            raise UserError(f"{path}: row {row} has no text; write one or drop the row")
        if item is not None and user is None:
            (found.held_out if kept else found.items)[item].append(text.strip())
        elif user is not None and item is None and not kept:
            found.users[user].append(text.strip())
        else:
            raise UserError(
                f"{path}: row {row}: expected item_id, or user_id without held_out; found item {item}, user {user}, "
                f"held_out {kept}"
            )
    return found


def _ids(values: pl.Series, path: Path) -> list[str | None]:
    """Ids as the readers of data write them; None where the row has none."""
    given = values.cast(pl.String).fill_null("") != ""
    texts = iter(id_column(values.filter(given), str(path)))
    return [next(texts) if here else None for here in given]


def _flags(values: pl.Series, path: Path) -> list[bool]:
    meanings = {"true": True, "1": True, "false": False, "0": False, "": False}
    texts = values.cast(pl.String).fill_null("").str.to_lowercase().to_list()
    for row, text in enumerate(texts, 1):
        if text not in meanings:
            raise UserError(f"{path}: row {row} has held_out {text!r}; expected true or false")
    return [meanings[text] for text in texts]


def _lc_rec(path: Path, train: Interactions) -> Found:
    """`user_explicit_preference` {user: texts}, `user_vague_intention` {part: {user: {item, inters, querys}}}."""
    document = _object(path, "the file", read_json(path))
    preferences = _object(path, "user_explicit_preference", document.get("user_explicit_preference"))
    parts = _object(path, "user_vague_intention", document.get("user_vague_intention"))
    taken = dict(train.frame.group_by("user_id").agg(pl.col("item_id").unique()).iter_rows())
    found, proven, dropped = Found(), set(), 0
    for part in ("train", *KEPT):
        where = f"user_vague_intention.{part}"
        for user, entry in _object(path, where, parts.get(part, {})).items():
            item, history, texts = _entry(path, f"{where}.{user}", entry)
            if part != "train":
                found.held_out[item] += texts
            elif {item, *history} <= set(taken.get(user, ())):
                proven.add(user)
                found.items[item] += texts
            else:
                dropped += 1
    for user, told in preferences.items():
        texts = _texts(path, f"user_explicit_preference.{user}", [told] if isinstance(told, str) else told)
        if user in proven:  # its train entry has the same history
            found.users[user] += texts
    if dropped:
        log.info("%s: %d users' train texts tell of events that are not in the training part; left out", path, dropped)
    return found


def _entry(path: Path, where: str, entry: Any) -> tuple[str, list[str], list[str]]:
    record = _object(path, where, entry)
    item, history = record.get("item"), record.get("inters")
    if type(item) not in (int, str):
        raise UserError(f"{path}: {where}.item: expected an item id, found {str(item)[:60]}")
    if not isinstance(history, list) or not all(type(taken) in (int, str) for taken in history):
        raise UserError(f"{path}: {where}.inters: expected a list of item ids, found {str(history)[:60]}")
    return str(item), [str(taken) for taken in history], _texts(path, f"{where}.querys", record.get("querys"))


def _texts(path: Path, where: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{path}: {where}: expected a list of texts, found {str(value)[:60]}")
    return [text.strip() for text in value if text.strip()]


def _object(path: Path, where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {where}: expected an object {{...}}, found {str(value)[:60]}")
    return value
