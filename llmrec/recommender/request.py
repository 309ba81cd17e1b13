"""A request to a recommender, the rows of the catalogue that its filters select, and the answer."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import polars as pl

from llmrec.checks import check_fields, check_value, found, listed, plain
from llmrec.data import Catalog
from llmrec.data.ids import id_list
from llmrec.decode.filters import Quota
from llmrec.errors import UserError, with_parameters

Unknown = Literal["skip", "fail"]
EmptyHistory = Literal["popularity", "model"]


@dataclass(frozen=True)
class Request:
    """A request: a history, a text in plain words, or both. Python, HTTP and the command line have the same fields.

    Raises:
        UserError: a field has another type; a text holds half of a surrogate pair; k, phrasings or a limit is below 1;
            or history and prompt are both missing.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}
    """For HTTP: requests with unknown fields are refused, and the fields' docstrings are in the OpenAPI description."""

    history: Sequence[str] | None = None
    """Item ids, oldest first. An empty list is a user without any events; None leaves the history out."""
    prompt: str | None = None
    """The request in plain words."""
    k: int = 10
    """Number of answers. There are fewer only if the filters leave fewer items; the answer's `reason` then says why."""
    exclude: Sequence[str] = ()
    """Item ids; these items are never answers."""
    include_seen: bool = False
    """Whether items of the history can be answers too."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Field -> value. Only items with this value can be answers: the field equals it, or one of the field's
    comma-separated parts does. Upper and lower case count as equal."""
    allow: Sequence[str] | None = None
    """Item ids; only these items can be answers."""
    offsets: Mapping[str, float] | Sequence[float] | None = None
    """Numbers to add to the items' scores: item id -> number (0 for other items), or float [N] in catalogue order."""
    max_per_field: Mapping[str, int] = field(default_factory=dict)
    """Field -> m. At most m answers have the same text in this field; items with an empty field are not limited."""
    max_per_code: int | None = None
    """Largest number of answers with the same first code."""
    phrasings: int = 1
    """Number of phrasings of the prompt; the score of an item is its mean log-probability over them."""
    exact: bool = False
    """Find the k items whose codes have exactly the highest probability; takes more forward passes than beam search.
    Only for the rankings auto and beam."""
    unknown: Unknown = "skip"
    """What happens to an item of the history that the catalogue does not have, or no longer has: it is left out, and
    the answer's `notes` say so (skip), or the request is refused (fail)."""
    empty_history: EmptyHistory = "popularity"
    """How a history without any item of the catalogue is answered if there is no prompt: by the number of training
    events of the items (popularity), or by the model after an empty history (model). The answer's `notes` say so."""

    def __post_init__(self) -> None:
        if isinstance(self.history, Set):
            raise UserError("--history: found a set, which has no order, expected a list of item ids, oldest first.")
        for name in ("history", "exclude", "allow"):
            ids = [] if getattr(self, name) is None and name == "exclude" else getattr(self, name)
            object.__setattr__(self, name, None if ids is None else id_list(ids, f"--{name}"))
        for name, flag in (("where", "--where"), ("max_per_field", "--max-per")):
            given = getattr(self, name)
            if not isinstance(given, Mapping | None):
                raise UserError(f"{flag}: found {found(given)}, expected a dict whose keys are fields of the items.")
            object.__setattr__(self, name, dict(given or {}))
        if isinstance(self.offsets, Mapping):
            ids = id_list([*self.offsets], "--boost")
            object.__setattr__(self, "offsets", dict(zip(ids, self.offsets.values(), strict=True)))
        elif hasattr(self.offsets, "keys"):  # a Series of pandas
            raise UserError(
                f"--boost: found {found(self.offsets)}, expected a dict of item id -> number, or numbers in catalogue "
                "order; convert it with to_dict() or to_numpy()."
            )
        for name, text in self.where.items():
            if not isinstance(text, str):
                raise UserError(f"--where {name}: found {text!r:.80}, expected one text.")
        check_fields(self, "", at_least={1: ("k", "max_per_code", "phrasings")})
        for name, most in self.max_per_field.items():
            self.max_per_field[name] = plain(most, int)  # type: ignore[index]  # a dict since above
            check_value(f"--max-per {name}", self.max_per_field[name], int)
            if most < 1:
                raise UserError(f"--max-per {name}={most}: expected at least 1.")
        if self.history is None and self.prompt is None:
            raise UserError("--history and --prompt are both missing; give item ids, a text, or both.")


def requests_of(
    histories: Sequence[Sequence[str]], prompt: str | Sequence[str | None] | None, k: int, **options: Any
) -> list[Request]:
    """One request for each history; `prompt` is that of all, or there is one for each.

    Raises:
        UserError: there are not as many prompts as histories; or as for `Request`.
    """
    histories = listed(histories, "--histories", "a list of histories")
    prompts = (
        [prompt] * len(histories) if isinstance(prompt, str | None) else listed(prompt, "--prompt", "a list of texts")
    )
    if len(prompts) != len(histories):
        raise UserError(f"prompt has {len(prompts)} texts for {len(histories)} histories; give one for each, or None.")
    return [Request(each, text, k, **options) for each, text in zip(histories, prompts, strict=True)]


@dataclass(frozen=True)
class Recommendation:
    """One answer.

    Attributes:
        rank: from 1.
        item_id: ID of the item in the catalogue.
        score: log-probability of the item's semantic ID given the request, plus the item's offset.
        title: title of the item.
        fields: the item's other text fields.
    """

    rank: int
    item_id: str
    score: float
    title: str
    fields: dict[str, str]

    @classmethod
    def of(cls, rank: int, row: dict[str, str], score: float) -> Self:
        """The answer with the item of this row of the catalogue's frame; ranks count from 1."""
        fields = {name: text for name, text in row.items() if name not in ("item_id", "title")}
        return cls(rank, row["item_id"], score, row["title"], fields)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that `recommend --json` prints."""
        return {
            "rank": self.rank,
            "item_id": self.item_id,
            "score": self.score,
            "title": self.title,
            "fields": self.fields,
        }


class Answer(list[Recommendation]):
    """The answers to one request, best first.

    Attributes:
        reason: why there are fewer than k answers, with the names of Python parameters; None if there are k.
        reason_with_flags: the same with the flags of the command line.
        notes: what else happened to the request, one sentence each: items of the history that were left out, for
            example.
    """

    def __init__(
        self, items: Iterable[Recommendation] = (), reason: str | None = None, notes: Sequence[str] = ()
    ) -> None:
        super().__init__(items)
        self.reason_with_flags = reason
        self.reason = None if reason is None else with_parameters(reason)
        self.notes = list(notes)

    @classmethod
    def ranked(
        cls, texts: Iterable[dict[str, str]], scores: np.ndarray, reason: str | None, notes: Sequence[str] = ()
    ) -> Self:
        """The answers with these items, n rows of the catalogue's frame, best first, and their scores, float32 [n]."""
        pairs = enumerate(zip(texts, scores.tolist(), strict=True), start=1)
        return cls((Recommendation.of(rank, row, score) for rank, (row, score) in pairs), reason, notes)


class Selection:
    """The items that can be answers; each filter removes some.

    Attributes:
        allowed: bool [N], the items that are left.
        steps: for each filter, how many items it left, in words.
    """

    def __init__(self, n_items: int) -> None:
        self.allowed = np.ones(n_items, dtype=bool)
        self.steps: list[str] = []

    @classmethod
    def of(cls, request: Request, lookup: "ItemLookup") -> "Selection":
        """Apply the filters of a request, except for its history.

        Raises:
            UserError: an item or field is unknown.
        """
        selection = cls(len(lookup.catalog))
        for name, value in request.where.items():
            selection.keep(lookup.having(name, value), f"--where {name}={value}")
        if request.allow is not None:
            selection.keep(lookup.rows(request.allow, "--allow"), "--allow")
        if request.exclude:
            selection.drop(lookup.rows(request.exclude, "--exclude"), "--exclude")
        return selection

    def without(self, history: np.ndarray) -> "Selection":
        """A selection without the items of a history, int64 [n]; itself if there are none."""
        if not len(history):
            return self
        other = Selection(0)
        other.allowed, other.steps = self.allowed.copy(), list(self.steps)
        other.drop(history, "the history")
        return other

    def keep(self, rows: np.ndarray, filter_name: str) -> None:
        """Keep only the items in `rows`, int64 [n]."""
        inside = np.zeros_like(self.allowed)
        inside[rows] = True
        self.allowed &= inside
        self._note(filter_name)

    def drop(self, rows: np.ndarray, filter_name: str) -> None:
        """Remove the items in `rows`, int64 [n]."""
        self.allowed[rows] = False
        self._note(filter_name)

    @property
    def left(self) -> int:
        """Number of items that are left."""
        return int(np.count_nonzero(self.allowed))

    def reason(self, found: int, k: int, limits: Sequence[str] = ()) -> str | None:
        """Why there are only `found` answers instead of k; None if there are k.

        `limits` are further reasons, in words.
        """
        if found >= k:
            return None
        opening = f"{found} of the {k} asked for" if found else "No item passes the filters"
        return ", ".join([f"{opening}: the catalogue has {len(self.allowed)} items", *self.steps, *limits])

    def _note(self, filter_name: str) -> None:
        self.steps.append(f"{filter_name} leaves {self.left}")


class ItemLookup:
    """Finds the items that a request names. The index of a field is built when the field is first used."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._values: dict[str, dict[str, np.ndarray]] = {}
        self._groups: dict[str, np.ndarray] = {}

    @cached_property
    def _searched(self) -> pl.DataFrame:
        """Per item, its title and all of its text, in lower case."""
        texts = self.catalog.frame.select(pl.all().str.to_lowercase())
        return texts.select("item_id", "title", text=pl.concat_str(pl.all(), separator="\n"))

    def search(self, query: str) -> np.ndarray:
        """Rows int64 [n] of the items whose id and texts contain every word of `query`; case is ignored.

        The item with this id comes first, then those with every word in the title, then the others, in catalogue order.
        """
        query = query.strip().lower()
        if not query:
            return np.arange(len(self.catalog))

        def contains(column: str) -> pl.Expr:
            return pl.all_horizontal(pl.col(column).str.contains(word, literal=True) for word in query.split())

        found = self._searched.with_row_index("row").filter(contains("text"))
        found = found.sort(pl.col("item_id") != query, ~contains("title"), maintain_order=True)
        return found["row"].to_numpy().astype(np.int64)

    def rows(self, item_ids: Sequence[str], flag: str) -> np.ndarray:
        """Rows int64 [n] of the items in the catalogue.

        Raises:
            UserError: the catalogue lacks one of the items.
        """
        index = self.catalog.index
        unknown = [item for item in item_ids if item not in index]
        if unknown:
            raise UserError(
                f"{flag} {unknown[0]}: no such item among the {len(self.catalog)} of the catalogue "
                f"(ids look like {self.catalog.ids[0]!r})."
            )
        return np.array([index[item] for item in item_ids], dtype=np.int64)

    def history(self, item_ids: Sequence[str], unknown: Unknown) -> tuple[np.ndarray, list[str]]:
        """Rows int64 [n] of the items of a history that are in the catalogue, and a note if some are not.

        Raises:
            UserError: the catalogue lacks one of the items, and `unknown` is `fail`.
        """
        known = [item for item in item_ids if item in self.catalog.index]
        missing = len(item_ids) - len(known)
        if not missing or unknown == "fail":
            return self.rows(item_ids, "--history"), []
        first = next(item for item in item_ids if item not in self.catalog.index)
        note = f"Left out {missing} of the {len(item_ids)} items of the history, not in the catalogue: {first!r:.80}"
        return self.rows(known, "--history"), [f"{note}{' and others' if missing > 1 else ''}."]

    def having(self, field: str, value: str) -> np.ndarray:
        """Rows int64 [n] whose field, or one of its comma-separated parts, equals `value`; case is ignored.

        Raises:
            UserError: no such field.
        """
        self._require_field(field, f"--where {field}={value}")
        if field not in self._values:
            self._values[field] = self._rows_by_value(field)
        return self._values[field].get(value.strip().casefold(), np.empty(0, np.int64))

    def groups(self, field: str, flag: str) -> np.ndarray:
        """Group numbers int64 [N]: items with the same text in the field share one; case is ignored; -1 if empty.

        Raises:
            UserError: no such field.
        """
        self._require_field(field, flag)
        if field not in self._groups:
            texts = pl.Series([text.strip().casefold() for text in self.catalog.frame[field]], dtype=pl.String)
            numbers = texts.rank("dense").to_numpy().astype(np.int64) - 1
            self._groups[field] = np.where((texts == "").to_numpy(), -1, numbers)
        return self._groups[field]

    def offsets(self, offsets: Mapping[str, float] | Sequence[float] | np.ndarray) -> np.ndarray:
        """Offsets as float32 [N], from a mapping item id -> offset (0 for other items) or from a sequence by row.

        Raises:
            UserError: an item is unknown, the shape is not [N], or an offset is not a finite number.
        """
        try:
            with np.errstate(over="ignore"):  # too large for float32 is infinite, which is refused
                if isinstance(offsets, Mapping):
                    values = np.zeros(len(self.catalog), np.float32)
                    values[self.rows(list(offsets), "--boost")] = list(offsets.values())
                else:
                    values = np.asarray(offsets, np.float32)
        except UserError:
            raise
        except (TypeError, ValueError):
            raise UserError(
                f"--boost: found {found(offsets)} with other values than numbers, expected one number per item."
            ) from None
        if values.shape != (len(self.catalog),):
            raise UserError(f"offsets: shape {values.shape}, expected one per item, ({len(self.catalog)},).")
        if not np.isfinite(values).all():
            row = int(np.isfinite(values).argmin())
            raise UserError(f"--boost {self.catalog.ids[row]}: offset {values[row]}, expected a finite number.")
        return values

    def _require_field(self, field: str, flag: str) -> None:
        if field not in self.catalog.fields:
            raise UserError(f"{flag}: no such field; known are {', '.join(self.catalog.fields)}.")

    def _rows_by_value(self, field: str) -> dict[str, np.ndarray]:
        texts = self.catalog.frame.select(text=field).with_row_index("row").group_by("text", maintain_order=True)
        rows: dict[str, list[np.ndarray]] = defaultdict(list)
        for text, same in texts.agg("row").iter_rows():
            whole = text.casefold()
            for value in {whole, *(part.strip() for part in whole.split(","))}:
                rows[value].append(np.array(same, np.int64))
        return {value: np.concatenate(parts) for value, parts in rows.items()}


def quotas_of(request: Request, lookup: ItemLookup, first_codes: np.ndarray) -> dict[str, Quota]:
    """The limits `max_per_field` and `max_per_code` of a request.

    Args:
        request: the request.
        lookup: finds the items with the same text in a field.
        first_codes: int [N], the first code of each item.

    Returns:
        The flag that sets a limit -> the limit.

    Raises:
        UserError: a field is unknown.
    """
    quotas = {}
    for name, most in request.max_per_field.items():
        flag = f"--max-per {name}={most}"
        quotas[flag] = Quota(lookup.groups(name, flag), most)
    if request.max_per_code is not None:
        quotas[f"--max-per-code {request.max_per_code}"] = Quota(first_codes, request.max_per_code)
    return quotas
