"""Texts that say what people want: intentions that an item meets, and preferences of a user; and their files."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import numpy as np
import polars as pl

from llmrec.checks import check_fields
from llmrec.console import get_logger
from llmrec.data import Catalog, Interactions
from llmrec.data.files import read_json, read_table, require_column, require_file
from llmrec.data.ids import id_column
from llmrec.errors import UserError

log = get_logger(__name__)

FILE = "intentions.parquet"


SCHEMA = {"user_id": pl.String, "item_id": pl.String, "text": pl.String, "held_out": pl.Boolean}


@dataclass(frozen=True)
class Intentions:
    """Texts for training, by item and by user, and other texts that only the evaluation uses.

    Attributes:
        items: item id -> intentions: texts that a person who needs this item might say.
        users: user id -> preferences: texts about what the user likes, from training interactions only.
        held_out: item id -> intentions for the evaluation, which training never sees.
    """

    items: Mapping[str, Sequence[str]] = field(default_factory=dict)
    users: Mapping[str, Sequence[str]] = field(default_factory=dict)
    held_out: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write intentions.parquet with the columns user_id, item_id, text, held_out; one of the two ids is null."""
        rows: list[tuple[str | None, str | None, str, bool]]
        rows = [(None, item, text, False) for item, texts in self.items.items() for text in texts]
        rows += [(user, None, text, False) for user, texts in self.users.items() for text in texts]
        rows += [(None, item, text, True) for item, texts in self.held_out.items() for text in texts]
        pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        frame = read_table(folder / FILE, "the run's intentions")
        for name in SCHEMA:
            require_column(frame, name, folder / FILE, "as the intentions stage writes it")
        mine = frame.filter(pl.col("item_id").is_not_null())
        return cls(
            _grouped(mine.filter(~pl.col("held_out")), "item_id"),
            _grouped(frame.filter(pl.col("user_id").is_not_null()), "user_id"),
            _grouped(mine.filter(pl.col("held_out")), "item_id"),
        )


def _grouped(frame: pl.DataFrame, column: str) -> dict[str, list[str]]:
    groups = frame.group_by(column, maintain_order=True).agg("text")
    return dict(zip(groups[column].to_list(), groups["text"].to_list(), strict=True))


def hold_out(
    texts: Mapping[str, Sequence[str]], share: float, seed: int
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Hold out one text of some items, drawn at random.

    An item can be drawn if it has two or more texts and one of them belongs to no other item. Only such a text is held
    out, because training sees a text that another item also has.

    Args:
        texts: item id -> texts.
        share: share of the items that can be drawn, 0 to 1.
        seed: of the draw.

    Returns:
        The texts that stay for training, and the held-out texts, both by item id.
    """
    rng = np.random.default_rng(seed)
    counts = Counter(text for found in texts.values() for text in found)
    own = {item: [text for text in found if counts[text] == 1] for item, found in texts.items() if len(found) > 1}
    several = [item for item, found in own.items() if found]
    drawn = {several[place] for place in rng.permutation(len(several))[: round(share * len(several))]}
    held = {item: own[item][rng.integers(len(own[item]))] for item in several if item in drawn}
    stays = {item: [text for text in found if text != held.get(item)] for item, found in texts.items()}
    return stays, {item: [text] for item, text in held.items()}


Source = Literal["none", "extract", "reviews", "llm", "file"]


_PACE = ("url", "key_variable", "requests_per_minute", "concurrent")


@dataclass
class IntentionsConfig:
    """Intentions and preferences: texts for the tasks that answer requests and describe what a user likes."""

    source: Source = "none"
    """none: no texts; extract: salient phrases of the item texts, offline; reviews: informative sentences of training
    reviews; llm: written by a language model (OpenAI-compatible endpoint or local); file: read from
    --intentions.path."""
    path: str | None = None
    """LC-Rec's D.user.json, or a table (CSV, TSV, JSONL, parquet) with the columns text, item_id (for an intention) or
    user_id (for a preference), and optionally held_out (true, false)."""
    url: str | None = None
    """Base address of the endpoint, such as https://api.openai.com/v1 or http://localhost:8000/v1."""
    model: str | None = None
    """Name of the model at the endpoint."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the API key, if the endpoint needs one; the key is never saved."""
    local_model: str | None = None
    """Folder or Hub id of a causal language model that runs on this machine, instead of an endpoint."""
    requests_per_minute: float | None = None
    """Maximum number of requests per minute to the endpoint, evenly spaced; null: no limit."""
    concurrent: int = 4
    """Number of requests at the same time; for a local model, the batch size."""
    per_item: int = 3
    """Maximum number of intentions per item; 0: none."""
    per_user: int = 1
    """Maximum number of preferences per user; 0: none."""
    held_out_share: float = 0.1
    """Share of the items with two or more intentions that hold out one of them for the evaluation (extract, llm). With
    source reviews, sentences of validation and test reviews are held out instead."""
    seed: int = 0
    """Seed of the draw of the held-out intentions."""

    def __post_init__(self) -> None:
        self._check_source()
        at_least = {0: ("per_item", "per_user", "seed"), 1: ("concurrent",)}
        positive, shares = ("requests_per_minute",), ("held_out_share",)
        check_fields(self, "intentions", at_least=at_least, positive=positive, shares=shares)
        if not self.per_item and not self.per_user:
            raise UserError("--intentions.per_item 0 and --intentions.per_user 0 leave nothing; raise one of them")

    def _check_source(self) -> None:
        if (self.source == "file") != (self.path is not None):
            raise UserError("--intentions.source file and --intentions.path FILE go together; give both or neither")
        endpoint = self.url is not None and self.model is not None
        if self.source == "llm" and endpoint == (self.local_model is not None):
            raise UserError(
                "--intentions.source llm asks an endpoint (--intentions.url with --intentions.model) or a model here "
                "(--intentions.local_model); name one of the two"
            )
        if self.url is not None:
            address = urlsplit(self.url)
            if address.scheme not in ("http", "https") or not address.hostname:
                raise UserError(f"--intentions.url {self.url}: expected an address such as http://localhost:8000/v1")
            if address.username or address.query:
                raise UserError(
                    "--intentions.url: expected a plain address without name, key or query; put the key into the "
                    f"environment variable {self.key_variable}"
                )

    def cache_key(self) -> dict[str, Any]:
        """The fields on which the result depends: all except address, key variable and request rate of the endpoint."""
        return {name: value for name, value in asdict(self).items() if name not in _PACE}


FLAG = "--intentions.path"
KEPT = ("valid", "val", "test")
"""Parts of LC-Rec's intentions that only the evaluation uses."""

Texts = dict[str, list[str]]


@dataclass
class Found:
    """Texts by item and by user as read from a file, before texts of unknown items and users are dropped."""

    items: Texts = field(default_factory=lambda: defaultdict(list))
    users: Texts = field(default_factory=lambda: defaultdict(list))
    held_out: Texts = field(default_factory=lambda: defaultdict(list))


def read_file(config: IntentionsConfig, catalog: Catalog, train: Interactions) -> Intentions:
    """Read `config.path`, and keep the texts of items in the catalogue and of users in the training log.

    Raises:
        UserError: the file is missing or malformed; the message names the field or row.
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
    """The texts of the ids in `known`: at most `most` distinct texts per id, the first ones; None: all of them."""
    if strange := [name for name in texts if name not in known]:
        log.info("%s: %d of %d %s are not in the data, such as %s", path, len(strange), len(texts), what, strange[0])
    cut = {name: [*dict.fromkeys(found)][:most] for name, found in texts.items() if name in known}
    return {name: found for name, found in cut.items() if found}


def _table(path: Path) -> Found:
    """Read a table with `text` and either `item_id` or `user_id` per row; `held_out` marks texts for the evaluation."""
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
    """The ids of a column as strings, in the form that the data readers use; None for a row without an id."""
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
    """Read LC-Rec's D.user.json.

    The file has `user_explicit_preference` {user: texts} and `user_vague_intention` {part: {user: {item, inters,
    querys}}}. A train entry counts only if the training part contains its item and its history (inters) for this user.
    """
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
        if user in proven:  # the preferences come from the history of the train entry
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
