"""Section `data` of the configuration: the source of the data, the filters and the split."""

from dataclasses import dataclass, field
from typing import Literal

from llmrec.checks import check_fields
from llmrec.data.bad_rows import BadRowsPolicy, Quoting, TextOptions
from llmrec.errors import UserError

Regime = Literal["catalogue-known", "strict"]
Format = Literal["synthetic", "table", "lc-rec", "amazon", "movielens", "recbole", "minionerec", "datasets"]


@dataclass
class ColumnsConfig:
    """Names of the columns of the user's tables (formats table, recbole and datasets)."""

    user: str = "user_id"
    """Column of user ids."""
    item: str = "item_id"
    """Column of item ids."""
    item_in_items: str | None = None
    """Column of item ids in the table of items, if its name differs there; null: as in the events."""
    time: str | None = "timestamp"
    """Column of times: numbers (seconds, milli-, micro- or nanoseconds, told apart by their size), dates such as
    20240531, or ISO dates, all in one form. null: there is none, and the rows of each user are in time order. A table
    without a column timestamp counts as such too, unless one of its columns looks like times."""
    rating: str | None = None
    """Column of ratings; null if there is none."""
    review: str | None = None
    """Column of review texts; null if there is none."""
    title: str = "title"
    """Column of the items' titles."""
    image: str | None = None
    """Column of the items' images, for --embed.vectors "[text, image]": paths relative to the folder of the file, data
    URIs, or images as bytes. It is no text of the items. null if there is none."""

    def __post_init__(self) -> None:
        check_fields(self, "data.columns")


@dataclass
class ColdConfig:
    """Items and users that lose their training events, in addition to those that have none after the split."""

    items: Literal["natural", "held-out"] = "natural"
    """Which test targets are cold, that is, have no training events. natural: only those that have none after the split
    (few with leave-one-out, see LIGER, arXiv 2411.18814; more with timestamp). held-out: in addition, a random share of
    the distinct test targets; their events are removed from the train and the validation part (TIGER, arXiv
    2305.05065)."""
    share: float = 0.05
    """Share of the distinct test targets that `held-out` makes cold."""
    simulated_share: float = 0.0
    """Share of the distinct validation targets that become cold items for validation: their events are removed from
    the train and the test part and stay in the validation part. Settings can then be chosen for cold items too."""
    users: float = 0.0
    """Share of the users with a test event that become cold users: training has none of their events. The seed draws
    them. Their first `history` events are the history, the next event is the test target, later events are dropped."""
    history: int = 3
    """Events in the history of a cold user; a user with too few events uses all but the last one."""

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
    """Format of the data. synthetic: a generated shop; table: events and items as CSV, TSV, JSONL or parquet;
    lc-rec: D.inter.json and D.item.json; amazon: reviews and metadata of 2014, 2018 or 2023 as published;
    movielens: the folder of a release; recbole: D.inter and D.item; minionerec: a folder with the subfolders
    train, valid, test and index or info; datasets: a Hugging Face dataset."""
    path: str | None = None
    """The events: a file or a folder. For format datasets: NAME[:CONFIG][@SPLIT]; NAME may be a local folder."""
    items: str | None = None
    """The items. table: a file. datasets: a file or a dataset. amazon: a file, needed only if the folder of the reviews
    has no matching meta_* file. The other formats find the items themselves. Without it (table, datasets) the items
    have no text; then set --data.empty_text keep and --embed.without_text."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Names of the columns of tables (formats table, recbole and datasets)."""
    encoding: str = "auto"
    """Encoding of the text files, such as utf-8, latin-1, cp1251 or gbk. auto: by the byte order mark; without one,
    UTF-8, or Windows-1252 (which includes Latin-1) if the text is not UTF-8."""
    quoting: Quoting = "auto"
    """Quotation marks in CSV and TSV files. standard: around a field, and doubled inside it (RFC 4180); none: ordinary
    characters. auto: standard, or the dialect that all rows fit if the file breaks the standard: marks inside a field
    without marks around it are ordinary characters, a backslash escapes them, or none."""
    bad_rows: BadRowsPolicy = "fail"
    """Rows that cannot be read: too many fields, malformed JSON, a byte of another encoding, no id, or a time or rating
    that is none. fail: stop at the first one and name its line; drop: leave them out, count them and show three."""
    synthetic_items: int = 3000
    """Number of items of the synthetic shop."""
    synthetic_users: int = 4500
    """Number of users of the synthetic shop."""
    min_rating: float | None = None
    """Drop events with a lower rating, and events without a rating (empty or NaN); null keeps all events."""
    user_core: int = 5
    """Keep users with at least this many events; 1 keeps all. This filter and item_core repeat until both hold."""
    item_core: int = 5
    """Keep items with at least this many events; 1 keeps all."""
    min_length: int = 3
    """Drop users with fewer events than this after the core filter. leave-one-out needs at least 3: a history of one
    event, a validation target and a test target."""
    duplicates: Literal["keep", "drop-repeats", "drop-adjacent"] = "keep"
    """What to do if a user has several events with the same item. keep: keep all; drop-repeats: keep only the first;
    drop-adjacent: drop an event whose previous event of that user has the same item. Events with equal user, item
    and time always count once."""
    unknown_items: Literal["drop", "fail"] = "drop"
    """Events with items that are not in the catalogue. drop: drop and count them; fail: stop with an error."""
    unknown_share: float = 0.1
    """Largest share of the events that `unknown_items drop` may drop. If more events name unknown items, the ids often
    differ in form, and an error shows examples; 1 accepts any share."""
    empty_text: Literal["drop", "fail", "keep"] = "drop"
    """Items without any text under --embed.template. drop: drop and count them and their events; fail: stop with an
    error; keep: keep them, and --embed.without_text says which vectors they get."""
    unused_items: Literal["keep", "drop"] = "drop"
    """Items without an event after the filters. keep: they stay in the catalogue as cold items; drop: drop them."""
    split: Literal["leave-one-out", "timestamp", "given"] = "leave-one-out"
    """leave-one-out: each user's last event is the test target, the one before it the validation target. timestamp: two
    points in time, the same for all users, divide the log into train, validation and test part. given: the data is
    published in three parts. `path` is the folder of the files train.*, valid.* and test.*, or the file of the train
    part, such as x.train.inter (formats table and recbole), the folder (minionerec), or a dataset with these splits
    (datasets). All events stay as published: user_core, item_core and min_length do not apply, and equal events are
    kept."""
    valid_share: float = 0.1
    """Share of the events in the validation part (timestamp split)."""
    test_share: float = 0.1
    """Share of the events in the test part (timestamp split)."""
    cold: ColdConfig = field(default_factory=ColdConfig)
    """Which items and users have no training events."""
    regime: Regime = "catalogue-known"
    """What training may use of a cold item. catalogue-known: its text and codes, but no interactions. strict: nothing;
    the encoder and the tokenizer are fitted without it too, and it is added to the bundle after training."""
    seed: int = 0
    """Seed of the synthetic shop, of the order of a user's events with equal times, and of the random choice of cold
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
        with_columns = self.format == "recbole" or (self.format in ("table", "datasets") and self.items is not None)
        if self.columns.image is not None and not with_columns:
            raise UserError(
                f"--data.columns.image {self.columns.image}: a column of the items of the formats table and datasets "
                "(with --data.items) or recbole; leave it out, or convert the data to a table."
            )
        sizes = ("synthetic_items", "synthetic_users", "user_core", "item_core", "min_length")
        check_fields(self, "data", at_least={0: ("seed",), 1: sizes}, shares=("valid_share", "test_share"))
        self._check_encoding()
        if not 0 <= self.unknown_share <= 1:
            raise UserError(f"--data.unknown_share {self.unknown_share}: expected a share from 0 to 1")
        if self.split == "given":
            self._check_given()
        if self.split == "leave-one-out" and self.min_length < 3:
            raise UserError(
                f"--data.min_length {self.min_length}: leave-one-out needs 3 events of a user (history, "
                "validation target, test target); use 3 or more, or --data.split timestamp"
            )

    def _check_encoding(self) -> None:
        """Raise UserError if `encoding` is not the name of a text encoding."""
        try:
            if self.encoding != "auto":
                "".encode(self.encoding)
        except LookupError:
            raise UserError(
                f"--data.encoding {self.encoding}: no such encoding; expected auto or a name such as utf-8, latin-1, "
                "cp1252, cp1251, gbk or utf-16"
            ) from None

    @property
    def text_options(self) -> TextOptions:
        """How text files are read."""
        return TextOptions(self.encoding, self.quoting, self.bad_rows, settable=True)

    def _check_given(self) -> None:
        if self.format not in ("table", "recbole", "minionerec", "datasets"):
            raise UserError(
                f"--data.split given: --data.format {self.format} has no published parts; use leave-one-out or "
                "timestamp, or one of the formats table, recbole, minionerec and datasets"
            )
        changed = {"min_rating": self.min_rating is not None, "duplicates": self.duplicates != "keep"}
        for name in (name for name, is_set in changed.items() if is_set):
            raise UserError(
                f"--data.{name} {getattr(self, name)}: --data.split given keeps all published events; leave it out"
            )

    @property
    def event_columns(self) -> dict[str, str | None]:
        """Column names of the events: name in llmrec -> name in the file, None if the file has no such column."""
        return {
            "user_id": self.columns.user,
            "item_id": self.columns.item,
            "timestamp": self.columns.time,
            "rating": self.columns.rating,
            "review": self.columns.review,
        }

    @property
    def item_columns(self) -> tuple[str, str, str | None]:
        """Columns of the items' ids, titles and images, None without images."""
        return self.columns.item_in_items or self.columns.item, self.columns.title, self.columns.image

    @property
    def source(self) -> str:
        """The `path`, for formats that read files (all but synthetic)."""
        assert self.path is not None, "checked by __post_init__"
        return self.path
