"""Cold-start protocols: which items and users a split leaves without training events, beyond those that it does anyway.

Held-out items as TIGER measures them (arXiv 2305.05065): a seeded share of the test targets leaves the train and the
validation part. Simulated ones are the same for the validation part, to choose settings on. Cold users are unknown to
training altogether.

Draws are made over sorted ids by numpy, so that they are the same on every machine.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.interactions import Split
from llmrec.data.sequences import TEST, TRAIN, VALID
from llmrec.errors import UserError


def hold_out(split: Split, config: DataConfig) -> Split:
    """The split with the cold users, held-out items and simulated cold items of `config`, and these in its protocol.

    Held-out items have test events alone, simulated ones validation events alone; no cold user has a training event.

    Raises:
        UserError: a share that draws none, or draws that leave no training event.
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
    """Draw from the targets of `part`, take their events out of every part but that, and count the drawn."""
    catalog = Catalog(split.frame.select(pl.col("item_id").unique().sort()))
    targets = np.unique(split.sequences(catalog).cases(part).targets)
    drawn = _draw([catalog.ids[row] for row in targets], part, field, config)
    chosen = pl.col("item_id").is_in(drawn)
    return split.with_frame(split.frame.filter(~chosen | (pl.col("part") == part))), len(drawn)


def _cold_users(split: Split, config: DataConfig) -> tuple[Split, int]:
    """Draw from the users with a test event: a short history (in the validation part), one test event, no more."""
    frame = split.frame
    candidates = frame.filter(pl.col("part") == TEST)["user_id"].unique().sort().to_list()
    drawn = _draw(candidates, TRAIN, "users", config)
    place = pl.int_range(pl.len()).over("user_id")
    history = pl.min_horizontal(pl.lit(config.cold.history), pl.len().over("user_id").cast(pl.Int64) - 1)
    part = pl.when(place < history).then(VALID).when(place == history).then(TEST).cast(pl.UInt8)
    cold = pl.col("user_id").is_in(drawn)
    # A user's place without a part is after the test event: dropped.
    frame = frame.with_columns(part=pl.when(cold).then(part).otherwise(pl.col("part"))).drop_nulls("part")
    return split.with_frame(frame), len(drawn)


def _draw(ids: Sequence[str], stream: int, field: str, config: DataConfig) -> list[str]:
    """The share of the sorted `ids` that `config.cold.field` asks for; each `stream` has random numbers of its own."""
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
