"""What is learned from never saw the validation and test parts: no word of theirs, and no change if they change."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec.data import TRAIN, Catalog, Interactions, Prepared, Split, Summary
from llmrec.intentions import IntentionsConfig, gather
from llmrec.intentions.llm import item_prompts, user_prompts

SHOP = Catalog.from_frame(
    pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(8)],
            "title": [
                f"{colour} {thing}" for colour in ("red", "blue") for thing in ("socks", "lamp", "hose", "knife")
            ],
            "description": [
                f"rainy {place} days, {use} work" for place in ("kitchen", "garden") for use in ("night", "day") * 2
            ],
        }
    )
)
EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=12, max_size=40)
SPLITS = st.sampled_from(["leave-one-out", "timestamp"])


def word(number: int) -> str:
    """A word of letters that stands for this number and no other."""
    return "zq" + "".join("abcdefghij"[int(digit)] for digit in f"{number:03d}") + "qz"


def marked(events: list[tuple[int, int]], kind: str) -> Split:
    """The log of (user, item) in time order; each review has a word of its own, in a sentence worth picking."""
    rows = [(f"u{user}", f"i{item}", n, f"Bought for my {word(n)} party.") for n, (user, item) in enumerate(events)]
    log = Interactions.from_frame(
        pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "review"], orient="row")
    )
    return log.leave_one_out() if kind == "leave-one-out" else log.timestamp_split(0.2, 0.2)


def changed(split: Split) -> Split:
    """The same training part; other items and other reviews in the parts after it."""
    later = pl.col("part") != TRAIN
    other = pl.col("item_id").replace_strict({f"i{n}": f"i{(n + 3) % 8}" for n in range(8)})
    return Split(
        split.frame.with_columns(
            item_id=pl.when(later).then(other).otherwise("item_id"),
            review=pl.when(later).then(pl.lit("Wanted for the secret cellar.")).otherwise("review"),
        ),
        split.protocol,
    )


def prepared(split: Split) -> Prepared:
    return Prepared(SHOP, split, Summary())


def markers(split: Split, later: bool) -> set[str]:
    reviews = split.frame.filter((pl.col("part") != TRAIN) == later)["review"]
    return {review.split()[3] for review in reviews}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(events=EVENTS, kind=SPLITS)
@pytest.mark.parametrize("source", ["reviews", "extract"])
def test_offline_sources(tmp_path: Path, source: str, events: list[tuple[int, int]], kind: str) -> None:
    split = marked(events, kind)
    config = IntentionsConfig(source, per_item=40, per_user=40)
    found = gather(config, prepared(split), tmp_path)
    learned = json.dumps([found.items, found.users])
    assert not [marker for marker in markers(split, later=True) if marker in learned]
    if source == "reviews":
        assert all(marker in learned for marker in markers(split, later=False)), "a test that could not fail"
        assert all(marker in json.dumps(found.held_out) for marker in markers(split, later=True))
    again = gather(config, prepared(changed(split)), tmp_path)
    assert (again.items, again.users) == (found.items, found.users)


@settings(deadline=None)
@given(events=EVENTS, kind=SPLITS)
def test_prompts(events: list[tuple[int, int]], kind: str) -> None:
    split, other = marked(events, kind), changed(marked(events, kind))
    prompts = [item_prompts(SHOP, split.train, 3), user_prompts(SHOP, split.train, 3)]
    sent = json.dumps(prompts)
    assert not [marker for marker in markers(split, later=True) if marker in sent]
    assert prompts == [item_prompts(SHOP, other.train, 3), user_prompts(SHOP, other.train, 3)]


@pytest.mark.parametrize("kind", ["leave-one-out", "timestamp"])
def test_endpoint_hears_and_tells_nothing_of_later_parts(endpoint: Any, tmp_path: Path, kind: str) -> None:
    """The endpoint repeats what it is told, so that whatever it is told would be learned."""
    endpoint.reply = lambda prompt, before: prompt
    split = marked([(n % 4, n * 3 % 8) for n in range(32)], kind)
    tempting = pl.when(pl.col("part") != TRAIN).then(pl.col("review") + " The longest are sent.").otherwise("review")
    split = Split(split.frame.with_columns(review=tempting), split.protocol)
    config = IntentionsConfig("llm", url=endpoint.url, model="m", per_item=99, per_user=99)
    found = gather(config, prepared(split), tmp_path)
    sent, learned = "\n".join(endpoint.prompts), json.dumps([found.items, found.users, found.held_out])
    for told in (sent, learned):
        assert not [marker for marker in markers(split, later=True) if marker in told]
        assert [marker for marker in markers(split, later=False) if marker in told], "a test that could not fail"


@pytest.mark.parametrize("kind", ["leave-one-out", "timestamp"])
def test_lc_rec_file(tmp_path: Path, kind: str) -> None:
    """A file written for leave-one-out: of its train texts, those of events that this split keeps for later go."""
    split = marked([(n // 8, n % 8) for n in range(32)], kind)  # user after user: the last comes too late for training
    texts = {
        (user, item): review for user, item, review in split.frame.select("user_id", "item_id", "review").iter_rows()
    }

    def entries(place: int) -> dict:
        history = [f"i{n}" for n in range(8)]
        item = history[place]
        return {
            user: {"item": item, "inters": history[:place], "querys": [texts[user, item]]}
            for user in ("u0", "u1", "u2", "u3")
        }

    document = {
        "user_explicit_preference": {f"u{n}": [f"likes {texts[f'u{n}', 'i4']}"] for n in range(4)},
        "user_vague_intention": {"train": entries(-3), "test": entries(-1)},
    }
    (tmp_path / "D.user.json").write_text(json.dumps(document))
    found = gather(IntentionsConfig("file", path=str(tmp_path / "D.user.json"), per_item=9), prepared(split), tmp_path)
    learned = json.dumps([found.items, found.users])
    assert not [marker for marker in markers(split, later=True) if marker in learned]
    assert set(found.users) == ({"u0", "u1", "u2", "u3"} if kind == "leave-one-out" else {"u0", "u1"})
    assert [marker for marker in markers(split, later=True) if marker in json.dumps(found.held_out)]
