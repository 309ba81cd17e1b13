"""Recommendations for a file of users: `predict` reads, decodes and writes them in chunks.

    users.parquet -> .recs.parquet.parts/000000.parquet, 000001.parquet, ... -> recs.parquet

A chunk is written atomically, so a killed job goes on after its last finished chunk, and the result is the same row for
row. Memory holds one chunk, and an input of CSV or TSV as a whole. Under `accelerate launch`, each of n processes makes
every n-th chunk, and the first one joins them.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import polars as pl

from llmrec import atomic
from llmrec.console import get_logger, progress_bar
from llmrec.data.bad_rows import TextOptions
from llmrec.data.files import read_records, read_table, require_file, row_places, table_kind
from llmrec.data.ids import is_id
from llmrec.device import process_state
from llmrec.errors import UserError, system_words
from llmrec.lock import Lock, lock_of
from llmrec.manifest import sha256
from llmrec.recommender.recommender import Recommender
from llmrec.recommender.request import Answer

if TYPE_CHECKING:
    from accelerate import PartialState

log = get_logger(__name__)

CHUNK = 1024
"""Users per chunk. The batches of the decoding depend on it, and so do the last bits of the scores."""
SCHEMA = {
    "user_id": pl.String,
    "rank": pl.Int64,
    "item_id": pl.String,
    "score": pl.Float64,
    "title": pl.String,
    "note": pl.String,
}
"""Columns of the output: one row per user and rank. A user without any answer has one row, whose rank is null. `note`
is what `Answer.notes` and `Answer.reason` say, null if they say nothing."""
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
COLUMNS = ("user_id", "history", "prompt")
"""Columns of the input; all others are left out."""
_WHOLE_NUMBERS = r"^\s*(?:[+-]?\d+(?:\.0+)?(?:\s+|$))*$"
"""A history of whole numbers. If a column holds nothing else, 101.0 is 101 there, as in the columns of other tables."""
JOB, COMPLETE = "job.json", "complete"
SECONDS = 10
"""Least time between two lines of progress."""
TICK = 0.2
"""Seconds between two looks for the parts of other processes."""


@dataclass(frozen=True)
class User:
    """A row of the input: a user, their items with the oldest first, and their request in words, if they have one."""

    user_id: str
    history: list[str]
    prompt: str | None


Chunk = list[User]
Make = Callable[[Iterator[tuple[str, Chunk]], Path, set[str]], "Predicted"]
"""Makes the parts of chunks, given by name, in a folder, except for those with the names of a set."""


@dataclass(frozen=True)
class Predicted:
    """What a job did.

    Attributes:
        users: number of users of the input.
        resumed: how many of them an earlier, interrupted call had answered.
        seconds: how long the other users took in all processes.
    """

    users: int
    resumed: int
    seconds: float


def predict(
    recommender: Callable[[], Recommender],
    bundle: Path,
    source: Path,
    output: Path,
    decode: Mapping[str, Any],
    make: Make | None = None,
    **options: Any,
) -> Predicted | None:
    """Write the recommendations for every user of `source` to `output`.

    Args:
        recommender: loads the bundle; it is not called if no chunk is left to make.
        bundle: folder of the bundle. A job goes on only with the same files there.
        source: table with the columns `user_id` and `history`, and `prompt` if users have requests in words: parquet,
            CSV, TSV or JSON lines.
        output: the file to write: parquet, CSV, TSV or JSON lines by its suffix, with the columns of `SCHEMA`.
        decode: the settings of the decoding; a job goes on only with the same ones.
        make: makes the parts, for instance on other machines, with `make_part`; default: this process makes them, or
            under `accelerate launch` all its processes together.
        options: fields of `Request`, except for history.

    Returns:
        What was done; None in all processes but the first.

    Raises:
        UserError: a file can't be read or written, `output` is there already, another process writes it, a row of
            `source` is wrong, or a request is.
    """
    _require_suffix(output)
    parts, state = chunks(source), process_state()
    folder = output.with_name(f".{output.name}.parts")
    try:
        with ExitStack() as stack:
            with state.main_process_first():
                if state.is_main_process:
                    output.parent.mkdir(parents=True, exist_ok=True)
                    busy = f"--output {output}: another llmrec is writing it; wait or stop it."
                    stack.enter_context(Lock(lock_of(output), busy))
                    if output.exists() and not (folder / COMPLETE).is_file():
                        raise UserError(f"--output {output}: is there already; name another file, or remove it.")
                    total = sum(1 for _ in users(source))  # a wrong row ends the job before it begins
                    _begin(folder, _key(bundle, source, output, {**decode, **options}))
                there = {path.name for path in folder.glob("*.parquet")}
            if make is None:
                if state.is_main_process:
                    parts = _showing(parts, total)
                done = _make_parts(recommender, parts, folder, there, state, options)
            else:
                done = make(parts, folder, there)
            if not state.is_main_process:
                return None
            (folder / COMPLETE).touch()
            atomic.write_file(output, lambda file: _join(folder, output.suffix.lower(), file))
            atomic.remove_folder(folder, (atomic.MARK,))
    except OSError as error:
        raise UserError(f"--output {output}: can't be written ({system_words(error)}).") from None
    return done


def chunks(source: Path) -> Iterator[tuple[str, Chunk]]:
    """Yield the name of each part and its users; an empty input has one empty part. Errors are those of `users`."""
    return _chunks(users(source))


def _chunks(lines: Iterator[User]) -> Iterator[tuple[str, Chunk]]:
    for number in count():
        chunk = list(islice(lines, CHUNK))
        if not chunk and number:
            return
        yield f"{number:06}.parquet", chunk


def _showing(parts: Iterator[tuple[str, Chunk]], total: int) -> Iterator[tuple[str, Chunk]]:
    """Yield the same parts, with a progress bar over the `total` users."""
    with closing(progress_bar("predict", total, unit="users")) as bar:
        for name, chunk in parts:
            yield name, chunk
            bar.advance(len(chunk))


def make_part(recommender: Recommender, chunk: Chunk, part: Path, **options: Any) -> None:
    """Write the recommendations for the users of a chunk; `options` as for `predict`.

    Raises:
        UserError: a request is wrong.
    """
    histories, wishes = [user.history for user in chunk], [user.prompt for user in chunk]
    try:
        answers = recommender.recommend(histories=histories, prompt=wishes, **options)
    except UserError as error:
        if not any(wishes):
            raise
        first = int(part.stem) * CHUNK
        raise UserError(f"--input, rows {first + 1} to {first + len(chunk)}, column prompt: {error}") from None
    rows = [row for user, answer in zip(chunk, answers, strict=True) for row in _rows(user.user_id, answer)]
    atomic.write_file(part, pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet)


def _make_parts(
    load: Callable[[], Recommender],
    parts: Iterator[tuple[str, Chunk]],
    folder: Path,
    there: set[str],
    state: "PartialState",
    options: Mapping[str, Any],
) -> Predicted:
    """Make this process's share of the missing parts; in the first process, then wait for those of the others."""
    recommender: Recommender | None = None
    started, told, seen, resumed, made = time.perf_counter(), time.perf_counter(), 0, 0, 0
    names = []
    for number, (name, chunk) in enumerate(parts):
        seen += len(chunk)
        names.append(name)
        if name in there:
            resumed += len(chunk)
        elif number % state.num_processes == state.process_index:
            if recommender is None:
                recommender = load()
                started = told = time.perf_counter()
                if resumed:
                    log.info("%d users were answered before; going on from there", resumed)
            make_part(recommender, chunk, folder / name, **options)
            made += len(chunk)
            if time.perf_counter() - told > SECONDS:
                told = time.perf_counter()
                log.info("%d users, %.1f per second in this process", seen, made / (told - started))
    while state.is_main_process and not all((folder / name).exists() for name in names):
        time.sleep(TICK)  # if another process dies, the launcher ends this one
    return Predicted(seen, resumed, time.perf_counter() - started)


def _rows(user: str, answer: Answer) -> list[tuple[Any, ...]]:
    """The rows of one user."""
    notes = [*answer.notes, *([answer.reason] if answer.reason else [])]
    note = " ".join(notes) or None
    found = [(user, item.rank, item.item_id, item.score, item.title, note) for item in answer]
    return found or [(user, None, None, None, None, note)]


def _join(folder: Path, suffix: str, file: IO[bytes]) -> None:
    """Write all parts to one open file, one after the other."""
    import pyarrow.parquet as pq

    parts = sorted(folder.glob("*.parquet"))
    if suffix == ".parquet":
        with pq.ParquetWriter(file, pq.read_schema(parts[0])) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part))
        return
    for number, part in enumerate(parts):
        frame = pl.read_parquet(part)
        if suffix == ".jsonl":
            frame.write_ndjson(file)
        else:
            frame.write_csv(file, include_header=not number, separator="\t" if suffix == ".tsv" else ",")


def _begin(folder: Path, key: str) -> None:
    """Make the folder of the parts ready; parts of another job are removed."""
    if folder.exists():
        job = folder / JOB
        if job.is_file() and job.read_text("utf-8") == key:
            return
        log.info("%s: holds parts of another job, with another input, model or setting; starting again", folder)
        atomic.remove_folder(folder, (atomic.MARK,))
    atomic.mark(folder)
    atomic.write_text(folder / JOB, key)


def _key(bundle: Path, source: Path, output: Path, settings: Mapping[str, Any]) -> str:
    """What the rows depend on, as JSON: a digest of the input, the files of the bundle, and the settings."""
    files = {
        str(path.relative_to(bundle)): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(bundle.rglob("*"))
        if path.is_file()
    }
    content = {
        "input": sha256(source),
        "bundle": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        "suffix": output.suffix.lower(),
        "chunk": CHUNK,
        "settings": settings,
    }
    return json.dumps(content, sort_keys=True) + "\n"


def _require_suffix(output: Path) -> None:
    if output.suffix.lower() not in SUFFIXES:
        raise UserError(f"--output {output}: unknown kind of file; expected {', '.join(SUFFIXES)}.")


# The input.


def users(path: Path) -> Iterator[User]:
    """Yield each row of a table, in its order. Parquet and JSON lines are not read as a whole.

    The column `history` holds a list of ids, or a text of ids with spaces between them, or a text with a JSON list of
    ids; an empty one is a user without events. The column `prompt` may be missing.

    Raises:
        UserError: the file is missing, unreadable or of an unknown kind, lacks a column, or has a row without a user.
    """
    require_file(path, "--input")
    match table_kind(path):
        case ".parquet":
            return _users(path, _parquet_records(path))
        case ".csv" | ".tsv":
            return _users(path, _separated_records(path))
        case ".jsonl" | ".ndjson":
            return _users(path, (record for _, record in read_records(path)))
        case _:
            raise UserError(f"--input {path}: unknown kind of file; expected {', '.join(SUFFIXES)} (text also .gz).")


def _users(path: Path, records: Iterator[Mapping[str, Any]]) -> Iterator[User]:
    for row, record in enumerate(records):
        try:
            user = _user(record)
        except UserError as error:
            raise UserError(f"--input {path}, {row_places(path, [row], TextOptions())[0]}: {error}") from None
        yield user


def _parquet_records(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        with pq.ParquetFile(path) as file:
            _require_columns(path, file.schema_arrow.names)
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            for batch in file.iter_batches(CHUNK, columns=columns):
                yield from batch.to_pylist()
    except (OSError, ArrowException) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--input {path}: not a readable parquet file: {reason}.") from None


def _separated_records(path: Path) -> Iterator[Mapping[str, Any]]:
    frame = read_table(path, "--input", used=COLUMNS)
    _require_columns(path, frame.columns)
    if frame["history"].fill_null("").str.contains(_WHOLE_NUMBERS).all():
        frame = frame.with_columns(pl.col("history").str.replace_all(r"\.0+(\s|$)", "$1"))
    return frame.select(name for name in COLUMNS if name in frame.columns).iter_rows(named=True)


def _require_columns(path: Path, names: Sequence[str]) -> None:
    if not {"user_id", "history"} <= set(names):
        raise UserError(
            f"--input {path}: found the columns {', '.join(map(repr, names))}; expected user_id and history."
        )


def _user(record: Mapping[str, Any]) -> User:
    user, prompt = _id(record.get("user_id"), "user_id"), record.get("prompt")
    if not isinstance(prompt, str | None):
        raise UserError(f"prompt {prompt!r:.80}: expected a text, or nothing.")
    wish = prompt if prompt is not None and prompt.strip() else None
    return User(user, history_of(record.get("history"), "history"), wish)


def history_of(value: Any, where: str) -> list[str]:
    """The ids of a history: a list, or a text of ids with spaces between them, or of a JSON list; none for None.

    Raises:
        UserError: `value` is nothing of these; `where` begins the message.
    """
    ids = value
    if isinstance(value, str):
        try:
            ids = json.loads(value) if value.lstrip().startswith("[") else value.split()
        except (ValueError, RecursionError):
            raise UserError(f"{where} {value!r:.80}: malformed JSON; expected a list of ids.") from None
    if not isinstance(ids, list | None):
        raise UserError(f"{where} {value!r:.80}: expected a list of item ids.")
    return [_id(item, where) for item in ids or ()]


def _id(value: Any, where: str) -> str:
    """An id as text; whole floats lose their ".0", as the ids of a catalogue do."""
    if not is_id(value):
        raise UserError(f"{where}: found {value!r:.80}, expected an id, text or a whole number.")
    return str(int(value) if isinstance(value, float) else value)
