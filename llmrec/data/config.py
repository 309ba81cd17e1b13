"""Where the data comes from and what is kept of it: section `data` of the configuration."""

from dataclasses import dataclass
from typing import Literal

from llmrec.errors import UserError

Regime = Literal["catalogue-known", "strict"]
Format = Literal["synthetic", "table", "lc-rec", "amazon", "movielens", "recbole", "minionerec", "datasets"]


@dataclass
class DataConfig:
    """Catalogue and interactions: source, filters, split."""

    format: Format = "synthetic"
    """Kind of data. synthetic: a made-up shop; table: events and items as CSV, TSV, JSONL or parquet;
    lc-rec: D.inter.json with D.item.json; amazon: reviews and metadata of 2014, 2018 or 2023 as published;
    movielens: the folder of a release; recbole: D.inter with D.item; minionerec: the folder with train,
    valid, test and index or info; datasets: a Hugging Face dataset."""
    path: str | None = None
    """The events: a file or folder; for datasets NAME[:CONFIG][@SPLIT], where NAME may be a local folder."""
    items: str | None = None
    """The items' file where it must be named: for table; for amazon if not beside the reviews as meta_*; for
    datasets, where it may also be a dataset. Items known by id only need --data.empty_text keep."""
    user_column: str = "user_id"
    """Column of user ids (table, recbole, datasets)."""
    item_column: str = "item_id"
    """Column of item ids, of events and items alike (table, recbole, datasets)."""
    time_column: str | None = "timestamp"
    """Column of times: numbers or ISO dates; null when each user's rows stand in time order."""
    rating_column: str | None = None
    """Column of ratings (table, recbole, datasets); null for none."""
    review_column: str | None = None
    """Column of review texts (table, recbole, datasets); null for none."""
    title_column: str = "title"
    """Column of the items' titles (table, recbole, datasets)."""
    synthetic_items: int = 3000
    """Items of the synthetic shop."""
    synthetic_users: int = 4500
    """Users of the synthetic shop."""
    min_rating: float | None = None
    """Drop events rated lower, or not rated; null keeps all."""
    user_core: int = 5
    """Keep users with at least so many events, together with item_core until nothing changes; 1 keeps all."""
    item_core: int = 5
    """Keep items with at least so many events; 1 keeps all."""
    min_length: int = 3
    """Drop users with fewer events after the core filter; leave-one-out needs 3 for a history of one."""
    duplicates: Literal["keep", "drop-repeats", "drop-adjacent"] = "keep"
    """A user's further events with the same item: keep them, drop all but the first, or drop those that
    directly follow one another. Events alike in user, item and time always count once."""
    unknown_items: Literal["drop", "fail"] = "drop"
    """Events with items that the catalogue lacks: drop and count them, or fail."""
    empty_text: Literal["drop", "fail", "keep"] = "drop"
    """Items without any text: drop and count them (and their events), fail, or keep them."""
    unused_items: Literal["keep", "drop"] = "drop"
    """Items without an event after filtering: keep them in the catalogue as cold items, or drop them."""
    split: Literal["leave-one-out", "timestamp"] = "leave-one-out"
    """leave-one-out: each user's last event tests, the one before validates; timestamp: two moments cut the
    log for all users."""
    valid_share: float = 0.1
    """Share of the events in the validation part (timestamp split)."""
    test_share: float = 0.1
    """Share of the events in the test part (timestamp split)."""
    cold_items: Literal["natural", "held-out"] = "natural"
    """Which test targets are cold, that is without training events. natural: those that the split leaves so, few under
    leave-one-out (LIGER, arXiv 2411.18814), more under timestamp; held-out: also a cold_share of the distinct test
    targets, drawn by the seed, whose events leave the train and the validation part (TIGER, arXiv 2305.05065)."""
    cold_share: float = 0.05
    """Share of the distinct test targets that cold_items held-out makes cold."""
    simulated_share: float = 0.0
    """Share of the distinct validation targets whose events leave the train and the test part but stay in the
    validation part, to choose settings on as if they were cold."""
    cold_users: float = 0.0
    """Share of the users with a test event, drawn by the seed, of whom training sees nothing: their first cold_history
    events are a history, the next one is the test target, later ones are dropped."""
    cold_history: int = 3
    """Events that the history of such a user has; at most all but one of the user's events."""
    regime: Regime = "catalogue-known"
    """What training may see of a cold item. catalogue-known: its text and codes, never its interactions; strict:
    nothing, not even when the encoder and the tokenizer are fitted; it is added to the trained bundle."""
    seed: int = 0
    """Seed of the synthetic shop, of the order of a user's events that bear the same time, and of the draws of cold
    items and users."""

    def __post_init__(self) -> None:
        if self.format == "synthetic":
            if self.path is not None or self.items is not None:
                raise UserError(
                    "--data.path and --data.items are files, which --data.format synthetic does not read; "
                    "name the format of the files"
                )
        elif self.path is None:
            raise UserError(f"--data.path is missing; --data.format {self.format} reads it")
        if self.items is not None and self.format not in ("table", "amazon", "datasets"):
            raise UserError(
                f"--data.items {self.items}: --data.format {self.format} finds the items beside --data.path; "
                "leave it out"
            )
        for name in ("synthetic_items", "synthetic_users", "user_core", "item_core", "min_length", "cold_history"):
            if getattr(self, name) < 1:
                raise UserError(f"--data.{name} {getattr(self, name)}: expected at least 1")
        if self.seed < 0:
            raise UserError(f"--data.seed {self.seed}: expected 0 or more")
        if self.split == "leave-one-out" and self.min_length < 3:
            raise UserError(
                f"--data.min_length {self.min_length}: leave-one-out needs 3 events of a user (history, "
                "validation target, test target); use 3 or more, or --data.split timestamp"
            )
        if not 0 < self.cold_share < 1:
            raise UserError(
                f"--data.cold_share {self.cold_share}: expected a share above 0 and below 1; for no held-out items use "
                "--data.cold_items natural"
            )
        for name in ("simulated_share", "cold_users"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--data.{name} {getattr(self, name)}: expected a share from 0 to below 1")

    @property
    def event_columns(self) -> dict[str, str | None]:
        """Our names of the events' columns -> the file's, None where it has none."""
        return {
            "user_id": self.user_column,
            "item_id": self.item_column,
            "timestamp": self.time_column,
            "rating": self.rating_column,
            "review": self.review_column,
        }

    @property
    def source(self) -> str:
        """`path` of a format that reads files."""
        assert self.path is not None, "checked by __post_init__"
        return self.path
