"""What people want, in words: intentions that an item meets, and preferences of a user."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from llmrec.data.files import read_table, require_column

FILE = "intentions.parquet"
SCHEMA = {"user_id": pl.String, "item_id": pl.String, "text": pl.String, "held_out": pl.Boolean}


@dataclass(frozen=True)
class Intentions:
    """Texts to learn from, by item and by user, and others to measure with that no training sees.

    Attributes:
        items: item id -> what somebody who needs this item might say.
        users: user id -> what the user likes, told from training interactions alone.
        held_out: item id -> intentions that are kept for measuring.
    """

    items: Mapping[str, Sequence[str]] = field(default_factory=dict)
    users: Mapping[str, Sequence[str]] = field(default_factory=dict)
    held_out: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write intentions.parquet: user_id or item_id, text, held_out."""
        rows: list[tuple[str | None, str | None, str, bool]]
        rows = [(None, item, text, False) for item, texts in self.items.items() for text in texts]
        rows += [(user, None, text, False) for user, texts in self.users.items() for text in texts]
        rows += [(None, item, text, True) for item, texts in self.held_out.items() for text in texts]
        pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: for a missing or damaged file.
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
    """Keep back one text, drawn by `seed`, of a `share` of the items that have two or more.

    Only a text that no other item has is kept: what is learned for a twin would not be new.

    Returns:
        What stays to learn from, and what is kept, both by item id.
    """
    rng = np.random.default_rng(seed)
    counts = Counter(text for found in texts.values() for text in found)
    own = {item: [text for text in found if counts[text] == 1] for item, found in texts.items() if len(found) > 1}
    several = [item for item, found in own.items() if found]
    drawn = {several[place] for place in rng.permutation(len(several))[: round(share * len(several))]}
    held = {item: own[item][rng.integers(len(own[item]))] for item in several if item in drawn}
    stays = {item: [text for text in found if text != held.get(item)] for item, found in texts.items()}
    return stays, {item: [text] for item, text in held.items()}
