"""The teacher of a distillation: for each training prefix, a distribution over the next item, kept in a file.

The prefixes are those of all training items but each user's first. A row of the file holds the probabilities of the
`top` best items, and for each first code the sum of its other items: 6 * top + 2 * C bytes, for C first codes. So the
distribution of the first code is exact, and the items of a code that are not among the best share its rest evenly.

teacher = Teacher.make(fused_experts, sequences, codes[:, 0], DistillConfig(weight=0.5), Path("teacher"))
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Self

import numpy as np
from scipy import sparse
from scipy.special import softmax

from llmrec.atomic import write_text
from llmrec.collaborative.config import NETWORKS, DistillConfig, ExpertName
from llmrec.collaborative.folds import Folds, fold_file
from llmrec.collaborative.fused import FusedExperts
from llmrec.collaborative.held_out import HeldOutExperts
from llmrec.console import get_logger, track
from llmrec.data.sequences import EvalExamples, first_target
from llmrec.errors import UserError

log = get_logger(__name__)

BATCH = 256
ROWS, ABOUT, DONE = "teacher.npy", "teacher.json", "done.txt"
FLUSHED = 20
"""Batches after which the finished rows are written to the disk, so that a killed process continues there."""
LEAST = 1e-6
"""Least probability of which a teacher has something to say: float16 knows nothing below."""

Scores = Callable[[np.ndarray, list[np.ndarray]], np.ndarray]


class Teacher:
    """The distributions over the next item at the T targets of U training sequences.

    Attributes:
        rows: structured array [T], memory-mapped: `items` int32 [top], `shares` float16 [top], their probabilities, and
            `rest` float16 [C], the sums over the other items of each first code. All are 0 where there is no teacher,
            at a target that was in the history before.
        digest: of the sequences and the first codes.
    """

    def __init__(self, rows: np.ndarray, digest: str) -> None:
        self.rows = rows
        self.digest = digest

    def __len__(self) -> int:
        """T."""
        return len(self.rows)

    @classmethod
    def make(
        cls,
        fused: FusedExperts,
        sequences: Sequence[np.ndarray],
        first_codes: np.ndarray,
        config: DistillConfig,
        folder: Path,
        validation: EvalExamples | None = None,
    ) -> Self:
        """Write the file, or what an interrupted call left to do, and open it.

        Args:
            fused: the experts that teach.
            sequences: U int arrays, the training items that they were fitted on, oldest first, as rows of `fused`.
            first_codes: int [N], the first code of each item's semantic ID.
            config: `top`, `temperature`, `held_out` and `folds`.
            folder: for `teacher.npy` and `teacher.json`; created if it does not exist. An interrupted call that is
                continued there must have had the same other arguments.
            validation: examples that the folds of Transformers stop by, as rows of `fused`; needed if one teaches held
                out.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if not config.held_out:
            scores: Scores = lambda users, histories: fused.fused(fused.values(histories))  # noqa: E731
        else:
            scores = HeldOutExperts(fused, sequences, _networks(fused, sequences, validation, config, folder)).scores
        made = cls.of_scores(scores, sequences, first_codes, config, folder)
        for name, fold in product(fused.experts.names, range(config.folds)):
            (folder / fold_file(name, fold)).unlink(missing_ok=True)
        return made

    @classmethod
    def of_scores(
        cls,
        scores: Scores,
        sequences: Sequence[np.ndarray],
        first_codes: np.ndarray,
        config: DistillConfig,
        folder: Path,
    ) -> Self:
        """As `make`, for any teacher: `scores(users int [B], histories)` gives float [B, N], log-probabilities up to a
        constant."""
        folder.mkdir(parents=True, exist_ok=True)
        starts, top = first_target(sequences), min(config.top, len(first_codes))
        layout = np.dtype([("items", "<i4", top), ("shares", "<f2", top), ("rest", "<f2", int(first_codes.max()) + 1)])
        path, done = folder / ROWS, folder / DONE
        begun = int(done.read_text()) if done.exists() else 0
        shape = (int(starts[-1]),)
        rows = np.lib.format.open_memmap(path, "r+" if begun else "w+", None if begun else layout, shape)
        codes = sparse.csr_matrix((np.ones(len(first_codes), np.float32), (np.arange(len(first_codes)), first_codes)))
        for at in track(range(begun, len(rows), BATCH), "teaching", unit="prefixes"):
            targets = np.arange(at, min(at + BATCH, len(rows)))
            users = np.searchsorted(starts, targets, side="right") - 1
            places = targets - starts[users] + 1
            histories = [sequences[user][:place] for user, place in zip(users, places, strict=True)]
            answers = np.array([sequences[user][place] for user, place in zip(users, places, strict=True)])
            rows[at : at + BATCH] = _rows(
                scores(users, histories), histories, answers, codes, config.temperature, layout
            )
            if (at // BATCH + 1) % FLUSHED == 0:
                rows.flush()
                write_text(done, str(at + len(targets)))
        rows.flush()
        digest = _digest(sequences, first_codes)
        about = {"digest": digest, "targets": len(rows), "bytes_per_target": layout.itemsize}
        write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")
        done.unlink(missing_ok=True)
        log.info("teacher: %d targets, %d bytes each", len(rows), layout.itemsize)
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open what `make` wrote.

        Raises:
            UserError: a file is missing or damaged.
        """
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            rows = np.load(folder / ROWS, mmap_mode="r")
            if rows.dtype.names != ("items", "shares", "rest") or rows.shape != (about["targets"],):
                raise ValueError("another layout")
            return cls(rows, about["digest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: {ROWS} and {ABOUT} hold no teacher that llmrec saved: {error}.") from None

    def check(self, sequences: Sequence[np.ndarray], first_codes: np.ndarray) -> None:
        """Check that this is the teacher of these sequences and codes.

        Raises:
            UserError: it is another one's.
        """
        if self.digest != _digest(sequences, first_codes):
            raise UserError(
                "teacher: made for another log, catalogue or item tokenizer than those of this training; make it anew."
            )


def _networks(
    fused: FusedExperts,
    sequences: Sequence[np.ndarray],
    validation: EvalExamples | None,
    config: DistillConfig,
    folder: Path,
) -> dict[ExpertName, Folds]:
    """The Transformers among the experts, fitted in folds."""
    names = [name for name in fused.experts.names if name in NETWORKS]
    if not names:
        return {}
    assert validation is not None, "Transformers stop by validation examples"
    rows = fused.experts.rows
    moved = EvalExamples(validation.users, [rows[each] for each in validation.histories], rows[validation.targets])
    known = [rows[sequence] for sequence in sequences]
    return {name: Folds.fit(name, fused, known, moved, config.folds, folder) for name in names}


def _rows(
    scores: np.ndarray,
    histories: list[np.ndarray],
    answers: np.ndarray,
    codes: sparse.csr_matrix,
    temperature: float,
    layout: np.dtype,
) -> np.ndarray:
    """The rows of B targets, from scores float [B, N]; items of the history get no probability."""
    top = layout["items"].shape[0]
    every, scores = np.arange(len(scores))[:, None], scores / temperature
    scores[np.repeat(every, [len(history) for history in histories]), np.concatenate(histories)] = -np.inf
    shares = softmax(scores, axis=1)
    best = np.sort(np.argpartition(-shares, top - 1, axis=1)[:, :top], axis=1)
    rows = np.zeros(len(scores), layout)
    rows["items"], rows["shares"] = best, shares[every, best]
    shares[every, best] = 0
    rows["rest"] = shares @ codes
    repeated = [answer in history for history, answer in zip(histories, answers, strict=True)]
    rows[np.array(repeated)] = np.zeros((), layout)
    return rows


def _digest(sequences: Sequence[np.ndarray], first_codes: np.ndarray) -> str:
    """Of what the rows depend on; users without training events have none."""
    sequences = [sequence for sequence in sequences if len(sequence)]
    lengths = np.array([len(sequence) for sequence in sequences])
    parts = [lengths, np.concatenate([np.empty(0, np.int64), *sequences]), first_codes]
    return hashlib.sha256(b"".join(np.asarray(part, np.int64).tobytes() for part in parts)).hexdigest()
