import json
from dataclasses import replace

import pytest

from llmrec.data import TEST, DataConfig, load, prepare, save
from llmrec.errors import UserError


@pytest.fixture
def config(tmp_path) -> DataConfig:
    """Six users of four items each, one item without text, one unused, one event twice, one unknown item."""
    rows = [f"u{user},i{(user + place) % 4},{place}" for user in range(6) for place in range(4)]
    rows += ["u0,i0,0", "u1,missing,9", "u2,blank,9", "solo,i0,1"]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    items = [f"i{number},Item {number}" for number in range(4)] + ["blank,", "unused,Never sold"]
    (tmp_path / "items.csv").write_text("item_id,title\n" + "\n".join(items) + "\n")
    path, items_path = str(tmp_path / "log.csv"), str(tmp_path / "items.csv")
    return DataConfig(format="table", path=path, items=items_path, user_core=4, item_core=4)


def test_every_step_is_accounted_for(config):
    prepared = prepare(config)
    assert [(step.step, step.interactions, step.dropped) for step in prepared.summary.steps] == [
        ("read", 28, 0),
        ("items of the catalogue", 27, 1),
        ("items with text", 26, 1),
        ("exact duplicates dropped", 25, 1),
        ("4-core of users, 4-core of items", 24, 1),
        ("unused items dropped", 24, 0),
    ]
    assert prepared.summary.steps[0].catalogue == 6
    assert prepared.catalog.ids == ["i0", "i1", "i2", "i3"]
    assert prepared.split.protocol == {
        "kind": "leave-one-out",
        "events": {"train": 12, "valid": 6, "test": 6},
        "regime": "catalogue-known",
        "cold": {"kind": "natural", "share": 0.0, "items": 0},
        "simulated_items": 0,
        "cold_users": 0,
        "seed": 0,
    }
    assert len(prepared.split.sequences(prepared.catalog).cases(TEST)) == 6


def test_kept_unused_items_are_cold(config):
    prepared = prepare(replace(config, unused_items="keep"))
    counts = prepared.split.sequences(prepared.catalog).train_counts(len(prepared.catalog))
    assert counts[prepared.catalog.index["unused"]] == 0


def test_short_users_go_after_the_core(config):
    prepared = prepare(replace(config, user_core=1, item_core=1))
    assert prepared.summary.steps[-2].step == "users with 3 events or more"
    assert prepared.summary.steps[-2].dropped == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unknown_items": "fail"}, "1 items that the catalogue lacks"),
        ({"unknown_share": 0.0}, r"1 of 28 events name items that the catalogue lacks, such as 'missing'"),
        ({"empty_text": "fail"}, "1 of 6 items have no text, first 'blank'"),
        ({"user_core": 50}, "step '50-core of users, 4-core of items' left no interactions"),
        ({"min_rating": 3.0}, "the log has no ratings"),
        ({"items": None}, "items have no text"),
        ({"path": "nowhere.csv"}, r"data\.path: nowhere\.csv: expected a file, found nothing there"),
        ({"items": "nowhere.csv"}, r"data\.items: nowhere\.csv"),
    ],
)
def test_mistakes_are_one_line(config, change, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(replace(config, **change))
    assert "\n" not in str(error.value)


def test_items_without_text_under_the_template_follow_the_policy(config):
    """The item `blank` has no title."""
    assert len(prepare(config, "{title}").catalog) == 4
    with pytest.raises(UserError, match=r"no field 'name' in the catalogue"):
        prepare(config, "{name}")


def test_save_and_load(config, tmp_path):
    prepared = prepare(config)
    save(prepared, tmp_path)
    loaded = load(tmp_path)
    assert loaded.catalog.frame.equals(prepared.catalog.frame)
    assert loaded.split.frame.equals(prepared.split.frame)
    assert loaded.split.protocol == prepared.split.protocol
    assert loaded.summary == prepared.summary


def test_load_names_what_is_damaged(config, tmp_path):
    save(prepare(config), tmp_path)
    (tmp_path / "split.json").write_text(json.dumps({"protocol": {}}))
    with pytest.raises(UserError, match=r"split\.json: not as prepare writes it"):
        load(tmp_path)
    (tmp_path / "interactions.parquet").unlink()
    with pytest.raises(UserError, match=r"interactions\.parquet: expected a file"):
        load(tmp_path)


def test_synthetic_is_the_default():
    prepared = prepare(DataConfig(synthetic_items=300, synthetic_users=400))
    assert len(prepared.catalog) > 100
    assert prepared.summary.steps[0].step == "read"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "table"}, r"data\.path is missing"),
        ({"path": "x"}, r"data\.format synthetic does not read"),
        ({"format": "lc-rec", "path": "x", "items": "y"}, r"data\.items y: .*leave it out"),
        ({"user_core": 0}, r"data\.user_core 0: expected at least 1"),
        ({"seed": -1}, r"data\.seed -1"),
        ({"unknown_share": 1.5}, r"data\.unknown_share 1\.5: expected a share from 0 to 1"),
        ({"min_length": 2}, r"data\.min_length 2: leave-one-out needs 3"),
        ({"encoding": "latin-7"}, r"data\.encoding latin-7: no such encoding; expected auto or a name"),
        ({"encoding": "base64"}, r"data\.encoding base64: no such encoding"),
        ({"quoting": "some"}, r"data\.quoting some: .*one of auto, none, standard"),
    ],
)
def test_config_checks(fields, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**fields)
