"""Published splits (--data.split given): find the files of the train, validation and test part, and join their rows.

The file of the train part has the word `train` in its name. The other files lie beside it and have `valid` (or `val`,
`validation`, `dev`) and `test` in its place: shop.train.inter, shop.valid.inter, shop.test.inter.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from llmrec.data.files import require_file
from llmrec.data.sequences import PARTS
from llmrec.errors import UserError

WORDS = {"train": ("train",), "valid": ("valid", "val", "validation", "dev"), "test": ("test",)}
"""Names of each part; the first is ours."""


def part_files(source: str, suffixes: Sequence[str]) -> list[Path]:
    """The files of the train, validation and test part.

    Args:
        source: the folder, or the file of the train part.
        suffixes: endings of the files to look for in a folder.

    Raises:
        UserError: there is no such file for a part, or more than one.
    """
    path = Path(source)
    folder = path if os.path.isdir(path) else require_file(path).parent
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    if path == folder:
        found = [name for name in names if _word("train").search(name) and name.lower().endswith(tuple(suffixes))]
        if len(found) != 1:
            listed = ", ".join(found) or ", ".join(names[:8]) or "nothing"
            raise UserError(
                f"--data.path: {folder}: expected one file with train in its name (such as train{suffixes[0]}), found "
                f"{listed}; name the file of the train part"
            )
        train = found[0]
    else:
        train = path.name
        if not _word("train").search(train):
            raise UserError(
                f"--data.path: {path}: --data.split given needs the word train in the name of the file, such as "
                f"x.train{path.suffix}; rename the files, or name their folder"
            )
    return [folder / train, *(_sibling(folder, names, train, part) for part in PARTS[1:])]


def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z]){word}(?![a-z])", re.IGNORECASE)


def _sibling(folder: Path, names: list[str], train: str, part: str) -> Path:
    wanted = [_word("train").sub(word, train, count=1).lower() for word in WORDS[part]]
    found = [name for name in names if name.lower() in wanted]
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        raise UserError(
            f"--data.split given: {folder}: expected one file of the {part} part, {' or '.join(wanted)}, beside "
            f"{train}; found {listed}"
        )
    return folder / found[0]


def join_parts(frames: Sequence[pl.DataFrame], source: str) -> pl.DataFrame:
    """The rows of the train, validation and test part, with a column `part`.

    Raises:
        UserError: the frames have columns of different names, or of types that do not go together.
    """
    numbered = [frame.with_columns(part=pl.lit(part, pl.UInt8)) for part, frame in enumerate(frames)]
    try:
        return pl.concat(numbered, how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"{source}: the columns of the parts have types that do not go together: {reason}") from None


def source_of(paths: Sequence[Path]) -> str:
    """The files as messages name them; with several files, rows are counted from the first one on."""
    return " + ".join([str(paths[0]), *(path.name for path in paths[1:])])


def places_of(
    paths: Sequence[Path], frames: Sequence[pl.DataFrame], places: Callable[[Path, list[int]], list[str]]
) -> Callable[[list[int]], list[str]]:
    """Where rows of the joined frames stand: `places` for one file; for several "line 7 of x.valid.inter".

    Args:
        paths: the files.
        frames: their tables.
        places: a file and numbers of rows of its table, from 0 -> their places, such as "line 7".
    """
    if len(paths) == 1:
        return lambda rows: places(paths[0], rows)
    starts = np.cumsum([0, *map(len, frames)])

    def find(rows: list[int]) -> list[str]:
        files = [int(np.searchsorted(starts, row, side="right")) - 1 for row in rows]
        found = {
            file: iter(
                places(
                    paths[file], [row - int(starts[file]) for row, at in zip(rows, files, strict=True) if at == file]
                )
            )
            for file in set(files)
        }
        return [f"{next(found[file])} of {paths[file].name}" for file in files]

    return find
