"""Whatever is in the files, the readers raise UserError or read; nothing else."""

import gzip
import tempfile
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec.data import Catalog, DataConfig, Interactions, prepare
from llmrec.data.files import SUFFIXES, read_table
from llmrec.errors import UserError

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
NAMES = ["csv", "jsonl", "lc_rec", "amazon_2014", "amazon_2018", "amazon_2023"]
NAMES += ["movielens_csv", "movielens_1m", "movielens_100k", "recbole", "minionerec"]
TOKENS = rb"""  \0 " ' , :: | { } [ ]]] {} null NaN None True 1e999 -1 [[[1]]] (1,2) "title" \ud800"""
PIECES = [*TOKENS.split(b" "), b"\n", b"\r", b"\t", b"\x00", b"\xff\xfe", b"\xc3\xa9", b"\xef\xbb\xbf"]
PIECES += [b"[" * 2000, b"9" * 30, b"9" * 5000]


def check(config: DataConfig) -> None:
    """Prepare; a result must be whole, and the only error allowed is ours, as one line."""
    try:
        prepared = prepare(config)
    except UserError:
        return
    assert prepared.split.sequences(prepared.catalog).items.size == len(prepared.split.frame) > 0


def settings_of(config: DataConfig) -> DataConfig:
    config.user_core = config.item_core = 1
    return config


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[float, float, bytes]]:
    """Where to cut (a share of the file), how much to take out, what to put in."""
    cut = st.tuples(st.floats(0, 1), st.floats(0, 0.3), st.sampled_from(PIECES) | st.binary(max_size=8))
    return draw(st.lists(cut, min_size=1, max_size=3))


def mutate(data: bytes, cuts: list[tuple[float, float, bytes]]) -> bytes:
    for where, length, piece in cuts:
        start = int(where * len(data))
        data = data[:start] + piece + data[start + int(length * 20) :]
    return data


@pytest.mark.parametrize("name", NAMES)
@relaxed
@given(choice=st.integers(0, 2), cuts=mutations(), packed=st.booleans())
def test_mutated_files(name, writers, choice, cuts, packed):
    with tempfile.TemporaryDirectory() as folder:
        config = settings_of(writers[name](Path(folder)))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        path = files[choice % len(files)]
        if path.suffix == ".gz" and not packed:
            path.write_bytes(gzip.compress(mutate(gzip.decompress(path.read_bytes()), cuts)))
        else:
            path.write_bytes(mutate(path.read_bytes(), cuts))
        check(config)


@pytest.mark.parametrize("name", NAMES)
@relaxed
@given(data=st.binary(max_size=200), choice=st.integers(0, 2))
def test_random_bytes(name, writers, data, choice):
    with tempfile.TemporaryDirectory() as folder:
        config = settings_of(writers[name](Path(folder)))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        files[choice % len(files)].write_bytes(data)
        check(config)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".csv.gz", ".jsonl.gz"])
@relaxed
@given(data=st.binary(max_size=300))
def test_random_tables(suffix, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"table{suffix}"
        path.write_bytes(data)
        with suppress(UserError):
            frame = read_table(path)
            frame = frame.rename(dict(zip(frame.columns, ["item_id", "user_id"], strict=False)))
            for build in (Catalog.from_frame, Interactions.from_frame):
                with suppress(UserError):
                    build(frame)


@relaxed
@given(cuts=mutations())
def test_mutated_parquet(cuts):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.parquet"
        pl.DataFrame({"item_id": ["a", "b"], "title": ["x", "y"], "n": [1, 2]}).write_parquet(path)
        path.write_bytes(mutate(path.read_bytes(), cuts))
        with suppress(UserError):
            Catalog.from_parquet(path)
