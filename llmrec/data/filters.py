"""Filters that drop events and items before the split, and a summary of what each step dropped."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl

from llmrec.console import get_logger
from llmrec.data import ids
from llmrec.data.catalog import Catalog
from llmrec.data.interactions import Interactions, numbered
from llmrec.errors import UserError

_logger = get_logger(__name__)


@dataclass(frozen=True)
class Step:
    """The counts after one filter step."""

    step: str
    """name of the step"""
    users: int
    items: int
    """items with events"""
    interactions: int
    dropped: int
    """events that this step dropped"""
    catalogue: int
    """items of the catalogue, with or without events"""


@dataclass
class Summary:
    """The filter steps, from the log as read to the log that the split takes."""

    steps: list[Step] = field(default_factory=list)

    def add(self, step: str, catalog: Catalog, log: Interactions) -> None:
        """Record the counts after `step`; raises UserError if no event is left."""
        before = self.steps[-1] if self.steps else None
        if before and before.interactions == len(log):
            users, items = before.users, before.items
        else:
            users, items = log.frame["user_id"].n_unique(), log.frame["item_id"].n_unique()
        dropped = before.interactions - len(log) if before else 0
        self.steps.append(Step(step, users, items, len(log), dropped, len(catalog)))
        if not len(log):
            if before is None:
                raise UserError("the log has no events; expected one per row below the column names (--data.path)")
            raise UserError(f"step {step!r} left no interactions ({self}); loosen its setting under --data")

    def __str__(self) -> str:
        first, *others = self.steps
        counts = [f"{first.step}: {first.interactions:,} events"]
        counts += [f"{step.step}: −{step.dropped:,}" for step in others if step.dropped]
        return "; ".join(counts)

    def to_dict(self) -> list[dict[str, Any]]:
        """The steps as a list of dicts that JSON can hold."""
        return [asdict(step) for step in self.steps]

    @classmethod
    def from_dict(cls, records: list[dict[str, Any]]) -> "Summary":
        """The summary of the records that `to_dict` returned."""
        return cls([Step(**record) for record in records])


def known_items(
    log: Interactions, catalog: Catalog, policy: Literal["drop", "fail"], most: float = 1.0
) -> Interactions:
    """The events whose items are in the catalogue.

    Raises:
        UserError: there are other events and the policy is `fail`, or their share of all events is above `most`.
    """
    known = log.frame["item_id"].is_in(catalog.frame["item_id"].implode())
    if known.all():
        return log
    unknown = log.frame["item_id"].filter(~known)
    if policy == "fail":
        raise UserError(
            f"the log names {unknown.n_unique():,} items that the catalogue lacks ({len(unknown):,} events), "
            f"first {unknown[0]!r}; add them to the items, or use --data.unknown_items drop"
        )
    reason = ids.difference(unknown, catalog.frame["item_id"])
    if len(unknown) > most * len(log):
        advice = f"the ids differ in {reason}, so write them alike" if reason else "correct the ids, or add the items"
        raise UserError(
            f"{len(unknown):,} of {len(log):,} events name items that the catalogue lacks, such as "
            f"{_three(unknown)}, where the catalogue has items such as {_three(catalog.frame['item_id'])}; {advice}; "
            f"to drop these events, raise --data.unknown_share (now {most:g})"
        )
    if reason:
        _logger.warning(
            "%s events name items that the catalogue lacks, such as %s; most of these ids differ from ids of the "
            "catalogue in %s.",
            f"{len(unknown):,}",
            _three(unknown),
            reason,
        )
    return Interactions(log.frame.filter(known))


def _three(values: pl.Series) -> str:
    return ", ".join(repr(value) for value in values.unique(maintain_order=True).head(3))


def warn_of_look_alikes(distinct: pl.Series, what: str) -> None:
    """Log a warning if ids that differ look the same; `what` is the kind of ids, such as "items"."""
    pairs = ids.look_alikes(distinct)
    if pairs:
        first, second = pairs[0]
        _logger.warning(
            "%s pairs of %s have ids that differ only in white space or Unicode form, such as %r and %r; they stay "
            "apart.",
            f"{len(pairs):,}",
            what,
            first,
            second,
        )


def items_with_text(catalog: Catalog, policy: Literal["drop", "fail", "keep"], template: str = "") -> Catalog:
    """The items with some text under `template`, or in any field if it is empty; policy `keep` keeps all items.

    Raises:
        UserError: with policy `fail` for an item without text; with policy `drop` if no item has text; for a template
            that is malformed or names an unknown field.
    """
    if policy == "keep":
        return catalog
    has_text = with_text(catalog, template)
    if has_text.all():
        return catalog
    if policy == "fail" or not has_text.any():
        raise UserError(
            f"{without_text(catalog, has_text, template)}; give them titles (--data.items, --data.columns.title), or "
            "use --data.empty_text drop or keep"
        )
    return catalog.filter(has_text)


def with_text(catalog: Catalog, template: str) -> pl.Series:
    """Which of the N items have some text under `template`, or in any field if it is empty: bool [N]."""
    if template:
        return pl.Series([bool(text) for text in catalog.texts(template)], dtype=pl.Boolean)
    filled = [catalog.frame[name].str.strip_chars() != "" for name in catalog.fields]
    return pl.DataFrame([each.alias(str(place)) for place, each in enumerate(filled)]).max_horizontal()


def require_text(catalog: Catalog, template: str) -> None:
    """Raise UserError if an item has no text under `template`, or in any field if it is empty."""
    has_text = with_text(catalog, template)
    if not has_text.all():
        raise UserError(
            f"{without_text(catalog, has_text, template)}, and --data.empty_text keep keeps them; --embed.without_text "
            "behaviour or random gives them vectors, --data.empty_text drop leaves them out"
        )


def without_text(catalog: Catalog, has_text: pl.Series, template: str) -> str:
    """How many items have no text, and which is the first, in words."""
    first = catalog.ids[has_text.not_().arg_true()[0]]
    count = len(catalog) - int(has_text.sum())
    under = f" under --embed.template {template!r}" if template else ""
    return f"{count:,} of {len(catalog):,} items have no text{under}, first {first!r}"


def min_rating(log: Interactions, least: float) -> Interactions:
    """The events with a rating of at least `least`; an event without a rating is dropped, and a log line counts these.

    Raises:
        UserError: for a log without ratings.
    """
    if "rating" not in log.frame.columns:
        raise UserError(
            f"--data.min_rating {least}: the log has no ratings; name their column with --data.columns.rating"
        )
    if missing := log.frame["rating"].null_count():
        _logger.info("--data.min_rating %g: %s events have no rating and are dropped.", least, f"{missing:,}")
    return Interactions(log.frame.filter(pl.col("rating") >= least))


def exact_duplicates(log: Interactions) -> Interactions:
    """Keep one event for each combination of user, item and time; a log without timestamps stays as it is."""
    if not log.has_timestamps:
        return log
    # Equal events are adjacent rows: a log with times is sorted by user, time and a hash of user and item.
    same = _as_the_row_before("user_id") & _as_the_row_before("timestamp") & _as_the_row_before("item_id")
    return Interactions(log.frame.filter(~same))


def repeats(log: Interactions, policy: Literal["drop-repeats", "drop-adjacent"]) -> Interactions:
    """Drop a user's repeated events with an item.

    `drop-repeats` keeps only the first event of each user and item. `drop-adjacent` drops an event if the user's
    previous event has the same item.
    """
    if policy == "drop-repeats":
        return Interactions(log.frame.filter(pl.struct("user_id", "item_id").is_first_distinct()))
    return Interactions(log.frame.filter(~(_as_the_row_before("user_id") & _as_the_row_before("item_id"))))


def _as_the_row_before(column: str) -> pl.Expr:
    return (pl.col(column) == pl.col(column).shift()).fill_null(False)


def k_core(log: Interactions, user_core: int, item_core: int) -> Interactions:
    """The largest part of the log in which each user has at least `user_core` events and each item `item_core`."""
    users, items = log.frame["user_id"].rle_id().to_numpy(), numbered(log.frame["item_id"])
    rows = np.arange(len(log))
    while True:
        enough = np.bincount(users)[users] >= user_core
        enough &= np.bincount(items)[items] >= item_core
        if enough.all():
            return Interactions(log.frame[rows]) if len(rows) < len(log) else log
        rows, users, items = rows[enough], users[enough], items[enough]
