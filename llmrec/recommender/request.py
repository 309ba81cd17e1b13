"""A request to a recommender, what its words mean in rows of the catalogue, and the answer."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import polars as pl

from llmrec.checks import check_fields
from llmrec.data import Catalog
from llmrec.decode.filters import Quota
from llmrec.errors import UserError, with_parameters


@dataclass(frozen=True)
class Request:
    """What is asked, in Python, over HTTP and on the command line alike: a history, a wish in plain words, or both.

    Raises:
        UserError: a field of another type, k, phrasings or a limit below 1, or neither history nor prompt.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # over HTTP an unknown field is a mistake

    history: Sequence[str] = ()
    """Item ids, oldest first."""
    prompt: str | None = None
    """What is asked for, in plain words."""
    k: int = 10
    """Answers. Fewer come only if fewer items are allowed; the answer's `reason` then says why."""
    exclude: Sequence[str] = ()
    """Item ids that must not come out."""
    include_seen: bool = False
    """Let the items of the history come out too."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Field -> value. Only items whose field is that value, or has it among its comma-separated parts, in upper or
    lower case."""
    allow: Sequence[str] | None = None
    """Item ids; only these may come out."""
    offsets: Mapping[str, float] | Sequence[float] | None = None
    """Numbers to add to the log-probabilities: by item id (0 for other items), or float [N] by row of the catalogue."""
    max_per_field: Mapping[str, int] = field(default_factory=dict)
    """Field -> m. At most m answers with the same text in that field; items without text there are not counted."""
    max_per_code: int | None = None
    """Answers with the same first code at most."""
    phrasings: int = 1
    """Ask in so many phrasings, and rank by the mean log-probability over them."""
    exact: bool = False
    """The provably best k by the probability of their codes, for more forward passes; other rankings are left out."""

    def __post_init__(self) -> None:
        for name in ("history", "exclude", "allow"):
            ids = getattr(self, name)
            if isinstance(ids, str):
                raise UserError(f"--{name} {ids!r:.80}: found one text, expected a list of item ids.")
            object.__setattr__(self, name, None if ids is None and name == "allow" else list(ids or ()))
        for name in ("where", "max_per_field"):
            object.__setattr__(self, name, dict(getattr(self, name) or {}))
        check_fields(self, "", at_least={1: ("k", "max_per_code", "phrasings")})
        for name, most in self.max_per_field.items():
            if not isinstance(most, int) or most < 1:
                raise UserError(f"--max-per {name}={most}: expected at least 1.")
        if not self.history and self.prompt is None:
            raise UserError("--history and --prompt are both missing; give item ids, a text, or both.")


@dataclass(frozen=True)
class Recommendation:
    """One answer.

    Attributes:
        rank: from 1.
        item_id: of the catalogue.
        score: log-probability of the item's semantic ID given the request, plus the item's offset.
        title: of the item.
        fields: the item's other text fields.
    """

    rank: int
    item_id: str
    score: float
    title: str
    fields: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As `recommend --json` prints it."""
        return {
            "rank": self.rank,
            "item_id": self.item_id,
            "score": self.score,
            "title": self.title,
            **self.fields,
        }


class Answer(list[Recommendation]):
    """The answers to one request, best first.

    Attributes:
        reason: why they are fewer than were asked for, in the parameters' names; None if they are not.
        reason_with_flags: the same as the command line prints it.
    """

    def __init__(self, items: Iterable[Recommendation] = (), reason: str | None = None) -> None:
        super().__init__(items)
        self.reason_with_flags = reason
        self.reason = None if reason is None else with_parameters(reason)


class Selection:
    """The items that may come out, narrowed filter by filter.

    Attributes:
        allowed: bool [N].
        steps: what each filter left, in words.
    """

    def __init__(self, n_items: int) -> None:
        self.allowed = np.ones(n_items, dtype=bool)
        self.steps: list[str] = []

    @classmethod
    def of(cls, request: Request, lookup: "ItemLookup") -> "Selection":
        """The items that the filters of a request leave.

        Raises:
            UserError: an unknown item or field.
        """
        selection = cls(len(lookup.catalog))
        for name, value in request.where.items():
            selection.keep(lookup.having(name, value), f"--where {name}={value}")
        if request.allow is not None:
            selection.keep(lookup.rows(request.allow, "--allow"), "--allow")
        if request.exclude:
            selection.drop(lookup.rows(request.exclude, "--exclude"), "--exclude")
        if request.history and not request.include_seen:
            selection.drop(lookup.rows(request.history, "--history"), "the history")
        return selection

    def keep(self, rows: np.ndarray, filter_name: str) -> None:
        """Allow none but `rows`, int64 [n]."""
        inside = np.zeros_like(self.allowed)
        inside[rows] = True
        self.allowed &= inside
        self._note(filter_name)

    def drop(self, rows: np.ndarray, filter_name: str) -> None:
        """Allow none of `rows`, int64 [n]."""
        self.allowed[rows] = False
        self._note(filter_name)

    @property
    def left(self) -> int:
        """How many items may come out."""
        return int(np.count_nonzero(self.allowed))

    def reason(self, found: int, k: int, limits: Sequence[str] = ()) -> str | None:
        """Why only `found` answers of k came out, given what else there was to limit them; None if all did."""
        if found >= k:
            return None
        opening = f"{found} of the {k} asked for" if found else "No item passes the filters"
        return ", ".join([f"{opening}: the catalogue has {len(self.allowed)} items", *self.steps, *limits])

    def _note(self, filter_name: str) -> None:
        self.steps.append(f"{filter_name} leaves {self.left}")


class ItemLookup:
    """Finds the items that a request names; what a field holds is gathered when it is first asked for."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._values: dict[str, dict[str, np.ndarray]] = {}
        self._groups: dict[str, np.ndarray] = {}

    def rows(self, item_ids: Sequence[str], flag: str) -> np.ndarray:
        """Rows int64 [n] of items.

        Raises:
            UserError: an item that the catalogue lacks.
        """
        index = self.catalog.index
        unknown = [item for item in item_ids if item not in index]
        if unknown:
            raise UserError(
                f"{flag} {unknown[0]}: no such item among the {len(self.catalog)} of the catalogue "
                f"(ids look like {self.catalog.ids[0]!r})."
            )
        return np.array([index[item] for item in item_ids], dtype=np.int64)

    def having(self, field: str, value: str) -> np.ndarray:
        """Rows int64 [n] whose field is `value`, or has it among its comma-separated parts, in whatever case.

        Raises:
            UserError: no such field.
        """
        self._require_field(field, f"--where {field}={value}")
        if field not in self._values:
            self._values[field] = self._rows_by_value(field)
        return self._values[field].get(value.strip().casefold(), np.empty(0, np.int64))

    def groups(self, field: str, flag: str) -> np.ndarray:
        """int64 [N]: items whose field has the same text, in whatever case, share a number; -1 for an empty field.

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
        """float32 [N] of offsets by item id (0 for the others) or by row.

        Raises:
            UserError: an unknown item, an array of another shape, or an offset that is not a finite number.
        """
        if isinstance(offsets, Mapping):
            values = np.zeros(len(self.catalog), np.float32)
            values[self.rows(list(offsets), "--boost")] = list(offsets.values())
        else:
            values = np.asarray(offsets, np.float32)
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
    """The limits of a request, each under the flag that sets it; `first_codes`, int [N], of the items.

    Raises:
        UserError: an unknown field.
    """
    quotas = {}
    for name, most in request.max_per_field.items():
        flag = f"--max-per {name}={most}"
        quotas[flag] = Quota(lookup.groups(name, flag), most)
    if request.max_per_code is not None:
        quotas[f"--max-per-code {request.max_per_code}"] = Quota(first_codes, request.max_per_code)
    return quotas
