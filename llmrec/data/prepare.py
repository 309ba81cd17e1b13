"""Prepare the user's files as a checked catalogue and a split log; save and load the `data` folder of a run.

After the split, a cold-start protocol can make further items or users cold: it removes their training events.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from llmrec.console import get_logger
from llmrec.data import filters
from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import read_json, read_table, require_column, require_file
from llmrec.data.filters import Summary
from llmrec.data.images import INLINE
from llmrec.data.interactions import Interactions, Split, given_split, leave_one_out, timestamp_split
from llmrec.data.readers import read
from llmrec.data.sequences import TEST, TRAIN, VALID
from llmrec.errors import UserError

log = get_logger(__name__)

IMAGES = "images.parquet"


def hold_out(split: Split, config: DataConfig) -> Split:
    """Apply the cold-start settings of `config.cold` to a split, and record them in its protocol.

    Cold users have no training events. Held-out items have only test events, and simulated cold items only validation
    events.

    Raises:
        UserError: a share is so small that nothing is drawn, or no training event is left.
    """
    users = held = simulated = 0
    if config.cold.users:
        split, users = _cold_users(split, config)
    if config.cold.items == "held-out":
        split, held = _keep_in(split, TEST, "share", config)
    if config.cold.simulated_share:
        split, simulated = _keep_in(split, VALID, "simulated_share", config)
    result = split.with_frame(
        split.frame,
        regime=config.regime,
        cold={"kind": config.cold.items, "share": config.cold.share if held else 0.0, "items": held},
        simulated_items=simulated,
        cold_users=users,
    )
    if not result.protocol["events"]["train"]:
        raise UserError(
            "no training event is left after --data.cold.items, --data.cold.simulated_share and --data.cold.users; "
            "lower their shares, or use more data"
        )
    return result


def _keep_in(split: Split, part: int, field: str, config: DataConfig) -> tuple[Split, int]:
    """Draw items among the targets of `part` and remove their events from the other parts.

    Returns:
        The new split, and the number of items drawn.
    """
    catalog = Catalog(split.frame.select(pl.col("item_id").unique().sort()))
    targets = np.unique(split.sequences(catalog).cases(part).targets)
    drawn = _draw([catalog.ids[row] for row in targets], part, field, config)
    chosen = pl.col("item_id").is_in(drawn)
    return split.with_frame(split.frame.filter(~chosen | (pl.col("part") == part))), len(drawn)


def _cold_users(split: Split, config: DataConfig) -> tuple[Split, int]:
    """Draw cold users among the users with a test event.

    The first events of a cold user become the history (in the validation part), the next event is the test target, and
    later events are dropped.

    Returns:
        The new split, and the number of users drawn.
    """
    frame = split.frame
    candidates = frame.filter(pl.col("part") == TEST)["user_id"].unique().sort().to_list()
    drawn = _draw(candidates, TRAIN, "users", config)
    place = pl.int_range(pl.len()).over("user_id")
    history = pl.min_horizontal(pl.lit(config.cold.history), pl.len().over("user_id").cast(pl.Int64) - 1)
    part = pl.when(place < history).then(VALID).when(place == history).then(TEST).cast(pl.UInt8)
    cold = pl.col("user_id").is_in(drawn)
    # The events of a cold user after the test event have no part (null) and are dropped.
    frame = frame.with_columns(part=pl.when(cold).then(part).otherwise(pl.col("part"))).drop_nulls("part")
    return split.with_frame(frame), len(drawn)


def _draw(ids: Sequence[str], stream: int, field: str, config: DataConfig) -> list[str]:
    """Draw a share of the sorted `ids`; the result is sorted too.

    Args:
        ids: the candidates.
        stream: number of the random stream; together with `config.seed` it seeds the draw.
        field: the field of `config.cold` that has the share.
        config: the data section.

    Raises:
        UserError: the share is so small that nothing is drawn.
    """
    share = getattr(config.cold, field)
    count = round(share * len(ids))
    if not count:
        what = {"share": "items are test targets", "simulated_share": "items are validation targets"}
        drawn_from = f"{len(ids)} {what.get(field, 'users have a test event')}"
        raise UserError(
            f"--data.cold.{field} {share}: {drawn_from}, of which that share is none; raise it, or use more data"
        )
    places = np.random.default_rng((config.seed, stream)).permutation(len(ids))[:count]
    return [ids[place] for place in np.sort(places)]


@dataclass(frozen=True)
class Prepared:
    """A catalogue, its split log, and the summary of what the filters dropped."""

    catalog: Catalog
    split: Split
    summary: Summary

    @property
    def for_training(self) -> "Prepared":
        """The data that the stages before the bundle may use.

        In the strict regime: the items with training events, in catalogue order, and the events of these items.
        Otherwise: everything.
        """
        if not self._strict:
            return self
        trained = self._trained
        events = self.split.frame.filter(pl.col("item_id").is_in(trained.implode()))
        catalog = self.catalog.filter(pl.col("item_id").is_in(trained.implode()))
        return Prepared(catalog, self.split.with_frame(events), self.summary)

    @property
    def cold_items(self) -> Catalog | None:
        """In the strict regime, the items without training events, which are added after training; otherwise None.

        None also if all items have training events.
        """
        if not self._strict:
            return None
        cold = self.catalog.filter(~pl.col("item_id").is_in(self._trained.implode()))
        return cold if len(cold) else None

    @property
    def _strict(self) -> bool:
        return self.split.protocol.get("regime") == "strict"

    @property
    def _trained(self) -> pl.Series:
        return self.split.train.frame["item_id"].unique()


def prepare(config: DataConfig, template: str = "") -> Prepared:
    """Read, check, filter and split the data.

    Args:
        config: the data section.
        template: the template of the text that is embedded. `empty_text` applies to items for which it gives no text;
            empty: to items without text in any field.

    Raises:
        UserError: for missing or malformed files, items that a policy does not allow (`unknown_items` or `empty_text`
            is `fail`), filters that leave no event, or shares so small that no cold item or user is drawn.
    """
    catalog, events = read(config)
    summary = Summary()
    summary.add("read", catalog, events)
    filters.warn_of_look_alikes(catalog.frame["item_id"], "items")
    filters.warn_of_look_alikes(events.frame["user_id"].rle().struct.field("value").unique(), "users")
    catalog, events = _filtered(catalog, events, config, template, summary)
    if config.split == "timestamp":
        split = timestamp_split(events, config.valid_share, config.test_share)
    elif config.split == "given":
        split = given_split(events)
    else:
        split = leave_one_out(events)
    split = hold_out(split, config)
    if len(split.frame) < len(events):
        summary.add("cold items and users set apart", catalog, Interactions(split.frame.drop("part")))
    split.protocol["seed"] = config.seed
    log.info("%s", summary)
    return Prepared(catalog, split, summary)


def _filtered(
    catalog: Catalog, events: Interactions, config: DataConfig, template: str, summary: Summary
) -> tuple[Catalog, Interactions]:
    events = filters.known_items(events, catalog, config.unknown_items, config.unknown_share)
    summary.add("items of the catalogue", catalog, events)
    catalog = filters.items_with_text(catalog, config.empty_text, template)
    events = filters.known_items(events, catalog, "drop")
    summary.add("items with text", catalog, events)
    if config.split != "given":
        events = _chosen(catalog, events, config, summary)
    elif summary.steps[0].interactions > len(events):
        log.warning(
            "--data.split given: %s published events are left out, since the catalogue lacks their items or texts; the "
            "validation and test cases are not all of the published ones.",
            f"{summary.steps[0].interactions - len(events):,}",
        )
    if config.unused_items == "drop":
        used = catalog.frame["item_id"].is_in(events.frame["item_id"].unique().implode())
        catalog = catalog.filter(used)
        summary.add("unused items dropped", catalog, events)
    return catalog, events


def _chosen(catalog: Catalog, events: Interactions, config: DataConfig, summary: Summary) -> Interactions:
    """The events that pass the filters by rating, repeats and counts. A published split keeps all its events."""
    if config.min_rating is not None:
        events = filters.min_rating(events, config.min_rating)
        summary.add(f"rated {config.min_rating:g} or more", catalog, events)
    events = filters.exact_duplicates(events)
    summary.add("exact duplicates dropped", catalog, events)
    if config.duplicates != "keep":
        events = filters.repeats(events, config.duplicates)
        summary.add(config.duplicates, catalog, events)
    events = filters.k_core(events, config.user_core, config.item_core)
    summary.add(f"{config.user_core}-core of users, {config.item_core}-core of items", catalog, events)
    if config.min_length > config.user_core:
        events = filters.k_core(events, config.min_length, config.item_core)
        summary.add(f"users with {config.min_length} events or more", catalog, events)
    return events


def save(prepared: Prepared, folder: str | Path) -> None:
    """Write items.parquet, interactions.parquet (with `part`) and split.json into an existing folder.

    Also images.parquet, with the paths or data URIs of the items' images, if there are any.
    """
    folder = Path(folder)
    catalog = prepared.catalog
    catalog.to_parquet(folder / "items.parquet")
    if images := {item: catalog.images[item] for item in catalog.ids if item in catalog.images}:
        table = {"item_id": list(images), "image": list(images.values())}
        pl.DataFrame(table).write_parquet(folder / IMAGES)
    prepared.split.frame.write_parquet(folder / "interactions.parquet")
    document = {"protocol": prepared.split.protocol, "steps": prepared.summary.to_dict()}
    (folder / "split.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def image_files(folder: Path) -> list[Path]:
    """The files of the items' images that are there, for the folder that `save` wrote; none if it is missing."""
    if not (folder / IMAGES).is_file():
        return []
    places = read_table(folder / IMAGES, "the run's data")["image"]
    return [Path(place) for place in places if not place.startswith(INLINE) and os.path.isfile(place)]


def load(folder: str | Path) -> Prepared:
    """Read the folder that `save` wrote.

    Raises:
        UserError: for a missing or damaged file.
    """
    folder = Path(folder)
    frame = read_table(folder / "interactions.parquet", "the run's data")
    for name in ("user_id", "item_id", "timestamp", "part"):
        require_column(frame, name, folder / "interactions.parquet", "as prepare writes it")
    document = read_json(require_file(folder / "split.json", "the run's data"))
    try:
        split = Split(frame, document["protocol"])
        summary = Summary.from_dict(document["steps"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'split.json'}: not as prepare writes it ({error}); prepare again") from None
    catalog = Catalog.from_parquet(folder / "items.parquet")
    if (folder / IMAGES).is_file():
        images = read_table(folder / IMAGES, "the run's data")
        catalog.images = dict(zip(images["item_id"], images["image"], strict=True))
    return Prepared(catalog, split, summary)
