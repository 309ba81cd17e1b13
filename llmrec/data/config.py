"""Where the data comes from and what is kept of it: section `data` of the configuration."""

from dataclasses import dataclass, field
from typing import Literal

from llmrec.checks import check_fields
from llmrec.errors import UserError

Regime = Literal["catalogue-known", "strict"]
Format = Literal["synthetic", "table", "lc-rec", "amazon", "movielens", "recbole", "minionerec", "datasets"]


@dataclass
class ColumnsConfig:
    """Names of the columns of the user's tables (formats table, recbole and datasets)."""

    user: str = "user_id"
    """Column of user ids."""
    item: str = "item_id"
    """Column of item ids, in the events and in the items alike."""
    time: str | None = "timestamp"
    """Column of times: numbers or ISO dates; null if the rows of each user stand in time order."""
    rating: str | None = None
    """Column of ratings; null for none."""
    review: str | None = None
    """Column of review texts; null for none."""
    title: str = "title"
    """Column of the items' titles."""

    def __post_init__(self) -> None:
        check_fields(self, "data.columns")


@dataclass
class ColdConfig:
    """Items and users that have no training events, beyond those that the split leaves so."""

    items: Literal["natural", "held-out"] = "natural"
    """Which test targets are cold, that is, have no training events. natural: those that the split leaves without (few
    under leave-one-out, see LIGER, arXiv 2411.18814; more under timestamp). held-out: also a share of the distinct test
    targets, drawn by the seed; their events leave the train and the validation part (TIGER, arXiv 2305.05065)."""
    share: float = 0.05
    """Share of the distinct test targets that held-out makes cold."""
    simulated_share: float = 0.0
    """Share of the distinct validation targets whose events leave the train and the test part and stay in the
    validation part, so that settings can be chosen on them as on cold items."""
    users: float = 0.0
    """Share of the users with a test event, drawn by the seed, that training does not see. Their first `history` events
    are the history, the next event is the test target, later events are dropped."""
    history: int = 3
    """Events in the history of such a user; at most all but one of the user's events."""

    def __post_init__(self) -> None:
        check_fields(self, "data.cold", at_least={1: ("history",)}, shares=("share", "simulated_share", "users"))
        if not self.share:
            raise UserError(
                f"--data.cold.share {self.share}: expected more than 0; for no held-out items use --data.cold.items "
                "natural."
            )


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
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Names of the columns of tables (formats table, recbole and datasets)."""
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
    cold: ColdConfig = field(default_factory=ColdConfig)
    """Which items and users training does not see."""
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
        sizes = ("synthetic_items", "synthetic_users", "user_core", "item_core", "min_length")
        check_fields(self, "data", at_least={0: ("seed",), 1: sizes}, shares=("valid_share", "test_share"))
        if self.split == "leave-one-out" and self.min_length < 3:
            raise UserError(
                f"--data.min_length {self.min_length}: leave-one-out needs 3 events of a user (history, "
                "validation target, test target); use 3 or more, or --data.split timestamp"
            )

    @property
    def event_columns(self) -> dict[str, str | None]:
        """Our names of the events' columns -> the file's, None where it has none."""
        return {
            "user_id": self.columns.user,
            "item_id": self.columns.item,
            "timestamp": self.columns.time,
            "rating": self.columns.rating,
            "review": self.columns.review,
        }

    @property
    def source(self) -> str:
        """`path` of a format that reads files."""
        assert self.path is not None, "checked by __post_init__"
        return self.path
