"""What a preference alignment learns from: prompts with a preferred item, and the items that are rejected there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch

from llmrec.atomic import write_file
from llmrec.console import get_logger
from llmrec.data import Catalog
from llmrec.data.files import read_stored, read_table, require_column
from llmrec.data.ids import id_column
from llmrec.data.sequences import first_target
from llmrec.decode.filters import Filter
from llmrec.errors import UserError
from llmrec.preference.config import PreferenceConfig
from llmrec.preference.policy import Policy

log = get_logger(__name__)


@dataclass(frozen=True)
class PreferenceExamples:
    """n prompts.

    Attributes:
        histories: n int arrays, rows of the catalogue, oldest first, none empty.
        preferred: int64 [n], rows of the catalogue, none of them in its history.
        disliked: n int arrays, rows of the catalogue; empty where nothing is known.
        targets: int64 [n], numbers of the preferred items among the targets of all training sequences, as in
            `first_target`; empty if the examples do not come from these.
    """

    histories: list[np.ndarray]
    preferred: np.ndarray
    disliked: list[np.ndarray]
    targets: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.preferred)

    def sample(self, most: int, seed: int) -> "PreferenceExamples":
        """At most `most` random examples, in their order."""
        rows = np.sort(np.random.default_rng(seed).permutation(len(self))[:most])
        histories, disliked = [self.histories[row] for row in rows], [self.disliked[row] for row in rows]
        targets = self.targets[rows] if len(self.targets) else self.targets
        return PreferenceExamples(histories, self.preferred[rows], disliked, targets)


def training_examples(sequences: Sequence[np.ndarray]) -> PreferenceExamples:
    """Each training event after a history; events that repeat an item of the history are left out, as lists do not
    have such items."""
    none, starts = np.empty(0, np.int64), first_target(sequences)
    found = [
        (sequence[:at], int(sequence[at]), int(start) + at - 1)
        for sequence, start in zip(sequences, starts[:-1], strict=True)
        for at in range(1, len(sequence))
        if sequence[at] not in sequence[:at]
    ]
    preferred, targets = (np.array([each[part] for each in found], np.int64) for part in (1, 2))
    return PreferenceExamples([history for history, *_ in found], preferred, [none] * len(found), targets)


def feedback_examples(
    path: str | Path, users: Sequence[str], sequences: Sequence[np.ndarray], catalog: Catalog
) -> PreferenceExamples:
    """Each liked item that is not in the history of its user, against the items that the same user disliked.

    Args:
        path: a table (CSV, TSV, JSONL or parquet) with columns user_id, item_id and liked (0 or 1, false or true), and
            perhaps position (1 for the top of the list that the user saw): then only the disliked items above a liked
            one count, for a user reads from the top and may not have seen the others (Joachims et al. 2005, "click >
            skip above").
        users: ids of U users.
        sequences: per user, int [n], training items in time order.
        catalog: the items.

    Raises:
        UserError: the file can't be read, lacks a column or rows, has another value in `liked` or `position`, names an
            unknown item, or has no liked item of a user with a history.
    """
    table, source = read_table(path, "--preference.feedback"), f"--preference.feedback {path}"
    for name, why in (("user_id", "who"), ("item_id", "what"), ("liked", "1 if the user liked the item, else 0")):
        require_column(table, name, source, why)
    if not len(table):
        raise UserError(f"{source}: no rows below the names of the columns; expected one per item that a user judged.")
    if table["liked"].dtype == pl.String:
        words = pl.col("liked").str.to_lowercase()
        table = table.with_columns(words.replace({"true": "1", "false": "0"}))
    liked = _numbers(table, "liked", "0 or 1", source).to_list()
    if wrong := [row for row, value in enumerate(liked) if value not in (0, 1)]:
        raise UserError(f"{source}: row {wrong[0] + 1} has liked {table['liked'][wrong[0]]!r:.80}, expected 0 or 1.")
    places = _numbers(table, "position", "a number", source).to_list() if "position" in table.columns else liked
    user_ids, item_ids = (id_column(table[name], source).to_list() for name in ("user_id", "item_id"))
    judged: dict[str, tuple[list[tuple[int, float]], list[tuple[int, float]]]] = {}
    for user, item, good, place in zip(user_ids, item_ids, liked, places, strict=True):
        if item not in catalog.index:
            raise UserError(f"{source}: the catalogue has no item {item!r:.80}; leave its rows out.")
        judged.setdefault(user, ([], []))[int(good)].append((catalog.index[item], place))
    histories, preferred, disliked = [], [], []
    known = {user: sequence for user, sequence in zip(users, sequences, strict=True) if len(sequence)}
    if left := sum(user not in known for user in user_ids):
        log.warning("%s: %d of %d rows are of users without training events and are left out", source, left, len(table))
    for user in known:
        bad, good = judged.get(user, ([], []))
        ever = [item for item, _ in good]
        for item, place in good:
            if item not in known[user]:
                histories.append(known[user])
                preferred.append(item)
                disliked.append(np.setdiff1d(np.array([other for other, at in bad if at < place], np.int64), ever))
    if not preferred:
        raise UserError(
            f"{source}: no user with a history liked an item outside of it; expected the log's user ids in user_id."
        )
    return PreferenceExamples(histories, np.array(preferred, np.int64), disliked)


def _numbers(table: pl.DataFrame, name: str, expected: str, source: str) -> pl.Series:
    """A column as float64; a UserError names the first row whose value is not a finite number."""
    numbers = table[name].cast(pl.Float64, strict=False)
    if wrong := (numbers.is_null() | ~numbers.is_finite()).arg_true().to_list():
        raise UserError(f"{source}: row {wrong[0] + 1} has {name} {table[name][wrong[0]]!r:.80}, expected {expected}.")
    return numbers


@dataclass(frozen=True)
class Pairs:
    """The rejected items of n examples, and what the model said before the alignment.

    Attributes:
        hard: int64 [n, K], disliked items, then items of the model's own list; -1 for none.
        easy: int64 [n, K], random items in proportion to their training events; -1 for none.
        reference: float32 [n, 1 + 2 K], log-probabilities of the preferred, the hard and the easy items.
    """

    hard: np.ndarray
    easy: np.ndarray
    reference: np.ndarray

    def save(self, path: Path) -> None:
        """Write a parquet file atomically."""
        columns = {"hard": self.hard, "easy": self.easy, "reference": self.reference}
        write_file(path, pl.DataFrame({name: each.tolist() for name, each in columns.items()}).write_parquet)

    @classmethod
    def load(cls, path: Path) -> "Pairs":
        """Read a file that `save` wrote."""
        frame = read_stored(path)
        hard, easy = (np.array(frame[name].to_list(), np.int64) for name in ("hard", "easy"))
        return cls(hard, easy, np.array(frame["reference"].to_list(), np.float32))


def make_pairs(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    examples: PreferenceExamples,
    train_counts: np.ndarray,
    config: PreferenceConfig,
) -> Pairs:
    """Draw the rejected items of all examples from the model as it is, and score them once.

    No rejected item is in the history, and with beams none is the preferred one: a list would not show it. With samples
    the rejected items are independent draws from the model, the preferred item among them: S-DPO is then noise
    contrastive estimation, whose optimum is the distribution of the preferred items (InfoNCE, arXiv 1807.03748).

    Args:
        policy: before the alignment.
        prompts: n token ids.
        examples: n of them.
        train_counts: int [N], training events of each item.
        config: number of negatives, how they are drawn, seed.
    """
    size, sampled = config.negatives, config.draw == "samples"
    shown = [np.append(h, item) for h, item in zip(examples.histories, examples.preferred, strict=True)]
    excluded = examples.histories if sampled else shown
    filters = [
        Filter(excluded=np.concatenate([own, bad])) for own, bad in zip(excluded, examples.disliked, strict=True)
    ]
    if sampled:
        seeds = np.random.default_rng(config.seed).integers(2**32, size=(size, len(prompts)))
        drawn = np.concatenate([policy.sample(prompts, 1, own, filters).items for own in seeds], axis=1)
    else:
        drawn = policy.search(prompts, size, filters).items
    hard = np.full_like(drawn, -1)
    for row, bad in enumerate(examples.disliked):
        known = np.concatenate([np.setdiff1d(bad, shown[row]), drawn[row]])[:size]
        hard[row, : len(known)] = known
    easy = easy_negatives(shown, train_counts, size, config.seed)
    items = np.concatenate([examples.preferred[:, None], hard, easy], axis=1)
    reference = np.zeros(items.shape, np.float32)
    with torch.no_grad():
        for chosen in policy.batches(prompts):
            reference[chosen] = policy.item_scores([prompts[i] for i in chosen], items[chosen]).cpu().numpy()
    return Pairs(hard, easy, reference)


def easy_negatives(shown: Sequence[np.ndarray], train_counts: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Random items, each with a probability in proportion to its training events; all different in a row.

    Args:
        shown: n int arrays, items that must not be drawn in that row.
        train_counts: int [N].
        size: items per row, K.
        seed: of the draw.

    Returns:
        int64 [n, K]; -1 where repeated draws found no other item.
    """
    events = np.repeat(np.arange(len(train_counts)), train_counts)
    draws = events[np.random.default_rng(seed).integers(len(events), size=(len(shown), 4 * size + 8))]
    found = np.full((len(shown), size), -1, np.int64)
    for row, (own, drawn) in enumerate(zip(shown, draws, strict=True)):
        left = [item for item in dict.fromkeys(drawn.tolist()) if item not in own][:size]
        found[row, : len(left)] = left
    return found
