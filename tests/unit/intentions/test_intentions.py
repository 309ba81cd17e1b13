"""Saving, loading, and keeping texts back."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.errors import UserError
from llmrec.intentions import Intentions
from llmrec.intentions.intentions import FILE, hold_out

TEXTS = st.dictionaries(
    st.text(min_size=1, max_size=4), st.lists(st.text(max_size=8), min_size=1, max_size=4), max_size=6
)


@given(items=TEXTS, users=TEXTS, held_out=TEXTS)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, items: dict, users: dict, held_out: dict) -> None:
    folder = tmp_path_factory.mktemp("intentions")
    Intentions(items, users, held_out).save(folder)
    loaded = Intentions.load(folder)
    assert (loaded.items, loaded.users, loaded.held_out) == (items, users, held_out)


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing there"):
        Intentions.load(tmp_path)
    (tmp_path / FILE).write_text("no parquet")
    with pytest.raises(UserError, match=r"intentions\.parquet"):
        Intentions.load(tmp_path)
    pl.DataFrame({"item_id": ["a"], "text": ["b"]}).write_parquet(tmp_path / FILE)
    with pytest.raises(UserError, match="user_id"):
        Intentions.load(tmp_path)


@given(
    texts=st.dictionaries(
        st.integers().map(str), st.lists(st.text(), min_size=1, max_size=4, unique=True), max_size=30
    ),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 9),
)
def test_hold_out(texts: dict[str, list[str]], share: float, seed: int) -> None:
    stays, held = hold_out(texts, share, seed)
    everything = [text for found in texts.values() for text in found]
    alone = {text for text in everything if everything.count(text) == 1}
    several = [item for item, found in texts.items() if len(found) > 1 and alone.intersection(found)]
    assert len(held) == round(share * len(several))
    assert set(held) <= set(several)
    for item, found in texts.items():
        assert sorted([*stays[item], *held.get(item, [])]) == sorted(found)
        assert len(held.get(item, [])) in (0, 1)
    learned = {text for found in stays.values() for text in found}
    assert learned.isdisjoint(text for found in held.values() for text in found)
    assert (stays, held) == hold_out(texts, share, seed)


def test_hold_out_depends_on_the_seed() -> None:
    texts = {str(item): [f"{letter} {item}" for letter in "abc"] for item in range(40)}
    assert len({str(hold_out(texts, 0.5, seed)[1]) for seed in range(4)}) == 4
