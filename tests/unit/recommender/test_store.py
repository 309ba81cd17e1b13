"""Items come, change and go: nobody else's codes change, nothing is half done, and who is new comes out."""

import copy
import ctypes
import errno
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tolerances import SUMS

from llmrec.data import Catalog, EvalExamples, Interactions
from llmrec.decode.config import DecodeConfig, Scoring
from llmrec.embed.encoder import EmbedConfig
from llmrec.errors import UserError
from llmrec.index.dense import DenseIndex
from llmrec.index.trie import ItemTrie
from llmrec.model.adapter import DenseHead
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender import bundle
from llmrec.recommender.recommender import Recommender
from llmrec.recommender.store import FILES, ItemStore, change_items

DIM = 8


def of(**columns: list) -> Catalog:
    return Catalog.from_frame(pl.DataFrame(columns))


NEW = of(
    item_id=["n0", "n1", "n2"],
    title=["Alba soap new", "Borea hand balm new", "Dune sun cream"],
    brand=["Alba", "Borea", "Dune"],
    description=["A gentle soap for every day", "A gentle hand balm", "A face cream for the sun"],
)


def with_dense_index(recommender: Recommender) -> Recommender:
    torch.manual_seed(0)
    changed, store = copy.copy(recommender), recommender.store
    changed.store = replace(store, dense=DenseIndex.of(DenseHead(32, DIM), store.item_tokenizer.embed(store.catalog)))
    return changed


def without_encoder(shop: Recommender) -> None:
    tokenizer = copy.copy(shop.item_tokenizer)
    tokenizer.encoder = None
    shop.store = replace(shop.store, item_tokenizer=tokenizer)


@pytest.fixture
def shop(recommender: Recommender) -> Recommender:
    """One to change: 20 items, a dense index beside them."""
    changed = with_dense_index(recommender)
    changed.decode = DecodeConfig(device="cpu", dtype="float32")
    return changed


def assert_as_before(shop: Recommender, before: ItemStore) -> None:
    assert shop.catalog.ids[: len(before.catalog)] == before.catalog.ids
    np.testing.assert_array_equal(shop.item_tokenizer.codes[: len(before.catalog)], before.item_tokenizer.codes)


def assert_untouched(shop: Recommender, before: ItemStore) -> None:
    assert shop.store is before


def assert_sound(shop: Recommender) -> None:
    """All parts tell of the same items."""
    assert shop.item_tokenizer.item_ids == shop.catalog.ids
    assert shop.store.trie.matches_codes(shop.item_tokenizer.codes)
    assert len(np.unique(shop.item_tokenizer.codes, axis=0)) == len(shop.catalog)
    expected = DenseIndex.of(shop.store.dense.head, shop.item_tokenizer.embed(shop.catalog))
    torch.testing.assert_close(shop.store.dense.vectors, expected.vectors)


def test_new_items_are_searchable_and_recommendable(shop: Recommender) -> None:
    before = shop.store
    shop.recommend(prompt="soap", where={"brand": "alba"})  # fills what is kept between requests
    assert shop.add_items(NEW) is shop
    assert shop.catalog.ids == [*before.catalog.ids, "n0", "n1", "n2"]
    assert_as_before(shop, before)
    assert_sound(shop)
    [dune] = shop.recommend(prompt="cream", where={"brand": "dune"})
    assert (dune.item_id, dune.title, dune.fields) == (
        "n2",
        "Dune sun cream",
        {"brand": "Dune", "description": "A face cream for the sun"},
    )
    assert {item.item_id for item in shop.recommend(["i1"], allow=["n0", "n2", "i3"])} == {"n0", "n2", "i3"}
    assert len(shop.recommend(["n1", "i1"], k=30)) == 21
    content = shop.item_tokenizer.encode(shop.item_tokenizer.embed(NEW))
    np.testing.assert_array_equal(shop.item_tokenizer.codes[20:, :2], content)


@pytest.mark.parametrize("scoring", ["vocab", "level"])
def test_answers_among_the_old_items_stay(shop: Recommender, scoring: Scoring) -> None:
    """With scoring catalogue the new items share in the probability, so this holds for the other scorings alone."""
    shop.decode_config = DecodeConfig(scoring=scoring, device="cpu", dtype="float32")
    ids = shop.catalog.ids
    requests = [{"history": ["i1", "i7"]}, {"prompt": "soap"}, {"history": ["i3"], "prompt": "hand balm"}]

    def answers() -> list[list]:
        return [shop.recommend(**request, k=20, allow=ids) for request in requests]

    before = answers()
    shop.add_items(NEW)
    after = answers()
    assert [[item.item_id for item in one] for one in after] == [[item.item_id for item in one] for one in before]
    scores = [[item.score for one in found for item in one] for found in (before, after)]
    np.testing.assert_allclose(*scores, atol=SUMS)


def test_one_call_or_several(shop: Recommender) -> None:
    other = copy.copy(shop)
    shop.add_items(NEW)
    for row in range(3):
        other.add_items(NEW.take_rows([row]))
    assert other.catalog.frame.equals(shop.catalog.frame)
    np.testing.assert_array_equal(other.item_tokenizer.codes, shop.item_tokenizer.codes)
    torch.testing.assert_close(other.store.dense.vectors, shop.store.dense.vectors)
    assert_sound(other)


def test_added_items_cost_no_lists_of_the_whole_catalogue(shop: Recommender) -> None:
    """Ids as strings of Python and a dictionary of them took seconds and gigabytes at ten million items."""
    tokenizer = shop.item_tokenizer.take_rows(np.arange(20))
    store = replace(shop.store, catalog=Catalog(shop.catalog.frame), item_tokenizer=tokenizer)
    grown = store.with_items(NEW)
    grown.semantic_ids([20], [[f"<{level}_{code}>" for code in range(99)] for level in range(3)])
    for each in (store, grown):
        assert not {"ids", "index"} & vars(each.catalog).keys()
        assert "item_ids" not in vars(each.item_tokenizer)


def test_vectors_of_ones_own(shop: Recommender) -> None:
    vectors = shop.item_tokenizer.embed(NEW)
    by_text = copy.copy(shop).add_items(NEW)
    without_encoder(shop)
    shop.add_items(NEW, vectors.astype(np.float64))
    np.testing.assert_array_equal(shop.item_tokenizer.codes, by_text.item_tokenizer.codes)
    torch.testing.assert_close(shop.store.dense.vectors, by_text.store.dense.vectors)


def test_missing_fields_are_empty_and_unknown_ones_left_out(
    shop: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    fields = shop.catalog.fields
    with caplog.at_level(logging.INFO, "llmrec"):
        shop.add_items(of(item_id=[7], size=["XL"], title=["Alba soap"]))
    assert shop.catalog.fields == fields
    assert shop.catalog.row("7") == {"item_id": "7", "title": "Alba soap", "brand": "", "description": ""}
    assert "left out fields that the catalogue lacks: size" in caplog.text
    assert "hold no word" not in caplog.text


def test_a_text_of_unknown_words_is_said_aloud(shop: Recommender, caplog: pytest.LogCaptureFixture) -> None:
    shop.add_items(of(item_id=["q"], title=["Xyzzy"]))
    assert "1 items hold no word that the encoder knows, such as 'q'" in caplog.text


def test_an_update_changes_text_and_vector_and_keeps_the_codes(shop: Recommender) -> None:
    before, vectors = shop.store, shop.store.dense.vectors.clone()
    both = of(item_id=["i3", "n0", "i0"], title=["Sun cream", "Alba soap new", "Plum soap"])
    shop.add_items(both, if_exists="update")
    assert shop.catalog.ids == [*before.catalog.ids, "n0"]
    assert_as_before(shop, before)
    assert_sound(shop)
    assert [shop.catalog.row(item)["title"] for item in ("i0", "i3")] == ["Plum soap", "Sun cream"]
    assert shop.catalog.row("i3")["brand"] == before.catalog.row("i3")["brand"] == "Alba"
    changed = (shop.store.dense.vectors[:20] != vectors).any(dim=1)
    assert torch.nonzero(changed).flatten().tolist() == [0, 3]


def test_an_update_without_a_dense_index_needs_no_vectors(shop: Recommender) -> None:
    shop.store = replace(shop.store, dense=None)
    without_encoder(shop)
    shop.add_items(of(item_id=["i0"], title=["Plum soap"]), if_exists="update")
    assert shop.catalog.row("i0")["title"] == "Plum soap"


@pytest.mark.parametrize(
    ("use", "place", "argument"),
    [
        (lambda rec, split, cases: rec.calibrate(cases), "recommender.calibrate", 1),
        (lambda rec, split, cases: rec.fit(split.train, cases), "recommender.finetune", 2),
        (lambda rec, split, cases: rec.prefer(split.train, cases), "prefer.align", 1),
    ],
)
def test_cases_made_before_a_removal_keep_their_items(
    shop: Recommender, monkeypatch: pytest.MonkeyPatch, use: Callable, place: str, argument: int
) -> None:
    """i0 goes, and every other item moves up by a row."""
    split = Interactions.from_frame({"user_id": ["u"] * 4, "item_id": ["i5", "i6", "i7", "i8"]}).leave_one_out()
    cases = split.calibration_examples(shop.catalog)
    shop.remove_items(["i0"])

    class Reached(Exception):
        pass

    def caught(*given: object) -> None:
        raise Reached(given[argument])

    monkeypatch.setattr(f"llmrec.recommender.{place}", caught)
    with pytest.raises(Reached) as reached:
        use(shop, split, cases)
    got = reached.value.args[0]
    got = got if isinstance(got, EvalExamples) else getattr(got, "validation", None) or got.cases
    ids = shop.catalog.ids
    assert [ids[row] for row in [*got.histories[0], *got.targets]] == ["i5", "i6", "i7"]


def test_removed_items_are_gone_and_can_come_back(shop: Recommender) -> None:
    before = shop.store
    shop.remove_items(["i4", "i0", "i4"])
    assert len(shop.catalog) == 18
    stays = [row for row in range(20) if row not in (0, 4)]
    np.testing.assert_array_equal(shop.item_tokenizer.codes, before.item_tokenizer.codes[stays])
    assert_sound(shop)
    assert len(shop.recommend(["i1"], k=20, include_seen=True)) == 18
    shop.add_items(before.catalog.take_rows([4]))
    assert shop.catalog.ids[-1] == "i4"
    assert_sound(shop)
    np.testing.assert_array_equal(shop.item_tokenizer.codes[-1], before.item_tokenizer.codes[4])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"catalog": of(item_id=["n", "i3"], title=["a", "b"])}, "item 'i3' is in the catalogue already (1 such"),
        ({"catalog": of(item_id=["n", "m"], title=["soap", " "])}, "item 'm' has no text"),
        ({"catalog": NEW, "vectors": np.zeros((3, 5))}, "vectors of shape (3, 5) for 3 items; expected (3, 8)"),
        ({"catalog": NEW, "vectors": np.zeros((2, DIM))}, "vectors of shape (2, 8) for 3 items"),
        ({"catalog": NEW, "vectors": np.full((3, DIM), np.inf)}, "the embedding of item 'n0' holds NaN or infinity"),
    ],
)
def test_mistakes_are_named_and_change_nothing(shop: Recommender, arguments: dict, words: str) -> None:
    before = shop.store
    with pytest.raises(UserError) as error:
        shop.add_items(**arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert_untouched(shop, before)


@pytest.mark.parametrize("dense", [True, False])
def test_an_update_to_no_text_is_refused(shop: Recommender, dense: bool) -> None:
    shop.store = shop.store if dense else replace(shop.store, dense=None)
    with pytest.raises(UserError, match="item 'i1' has no text"):
        shop.add_items(
            of(item_id=["i0", "i1"], title=["soap", ""], brand=["", ""], description=["", ""]), if_exists="update"
        )


def test_no_encoder_and_no_vectors(shop: Recommender) -> None:
    without_encoder(shop)
    with pytest.raises(UserError, match="fitted on vectors, without an encoder; give the items' vectors"):
        shop.add_items(NEW)


def test_a_full_codebook_adds_nothing(tiny_catalog: Catalog) -> None:
    tokenizer = ItemTokenizer(
        levels=2, codes=[4, 6], collisions="nearest-free", embed=EmbedConfig("tfidf-svd", dim=DIM)
    ).fit(tiny_catalog)
    trie = ItemTrie.build(tokenizer.codes, tokenizer.level_sizes)
    store = ItemStore(tiny_catalog, tokenizer, trie, np.ones(len(tiny_catalog), np.int64))
    assert len(store.with_items(NEW).catalog) == 23
    five = of(item_id=list("abcde"), title=["soap"] * 5)
    with pytest.raises(UserError, match="full codebook: all 24 semantic IDs are taken, by 24 items"):
        store.with_items(five)


@pytest.mark.parametrize(
    ("ids", "words"), [(["i1", "zz"], "remove zz: no such item"), ([f"i{row}" for row in range(20)], "nothing would")]
)
def test_removals_that_cannot_be(shop: Recommender, ids: list[str], words: str) -> None:
    before = shop.store
    with pytest.raises(UserError, match=words):
        shop.remove_items(ids)
    assert_untouched(shop, before)


@pytest.fixture(scope="module")
def saved(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a shop with a dense index, and a manifest as a run directory has it."""
    whole = with_dense_index(recommender)
    folder = tmp_path_factory.mktemp("bundle") / "model"
    whole.save_pretrained(folder)
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
def linked(saved: Path, tmp_path: Path, unsized: Callable[[Path], Path]) -> Path:
    """A bundle whose files another folder has too, as in a run directory."""
    unsized(Path(shutil.copytree(saved, tmp_path / "train")))
    return Path(shutil.copytree(tmp_path / "train", tmp_path / "model", copy_function=os.link))


def add(store: ItemStore) -> ItemStore:
    return store.with_items(NEW)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(folder: Path) -> ItemStore:
    return ItemStore.load(folder, bundle.read_header(folder))


def assert_holds(folder: Path, store: ItemStore) -> None:
    """The bundle's items are those of `store`."""
    found = read(folder)
    assert found.catalog.frame.equals(store.catalog.frame)
    np.testing.assert_array_equal(found.item_tokenizer.codes, store.item_tokenizer.codes)
    assert found.trie.matches_codes(store.item_tokenizer.codes)
    torch.testing.assert_close(found.dense.vectors, store.dense.vectors)


def test_in_place_all_else_stays_and_no_other_folder_changes(linked: Path) -> None:
    before, other = contents(linked), contents(linked.parent / "train")
    old, new = change_items(linked, None, add)
    assert (len(old.catalog), len(new.catalog)) == (20, 23)
    assert_holds(linked, new)
    after = contents(linked)
    written = {name for name in FILES if (linked / name).exists()}
    assert {name for name in before if before[name] != after[name]} == {*written, bundle.HEADER}
    assert before.keys() == after.keys()
    assert contents(linked.parent / "train") == other
    assert (linked / "model.safetensors").samefile(linked.parent / "train" / "model.safetensors")
    assert sorted(path.name for path in linked.parent.iterdir()) == ["model", "train"]
    assert len(Recommender.from_pretrained(linked).recommend(["i1"], k=30)) == 22


def test_into_a_new_folder(linked: Path, tmp_path: Path) -> None:
    before = contents(linked)
    _, new = change_items(linked, tmp_path / "far" / "away", add)
    assert contents(linked) == before
    assert_holds(tmp_path / "far" / "away", new)
    assert not (linked / "model.safetensors").samefile(tmp_path / "far" / "away" / "model.safetensors")
    with pytest.raises(UserError, match="is there already; name a new folder"):
        change_items(linked, tmp_path / "far" / "away", add)


def test_a_place_that_cannot_be_written(linked: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't be written: .*file"):
        change_items(linked, tmp_path / "file" / "out", add)


def test_a_link_to_the_bundle_stays_one(linked: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("model")
    _, new = change_items(tmp_path / "current", None, add)
    assert (tmp_path / "current").is_symlink()
    assert_holds(linked, new)


def test_a_bundle_without_trie_and_dense_index(linked: Path) -> None:
    for name in (bundle.TRIE, bundle.DENSE):
        (linked / name).unlink()
    change_items(linked, None, lambda store: store.without_items(["i0"]))
    assert len(read(linked).catalog) == 19
    assert not (linked / bundle.DENSE).exists()


def test_a_dense_index_of_other_items_is_refused(linked: Path) -> None:
    index = DenseIndex.load(linked / bundle.DENSE).rows(np.arange(3))
    (linked / bundle.DENSE).unlink()
    index.save(linked / bundle.DENSE)
    with pytest.raises(UserError, match=r"3 items in dense\.safetensors, 20 in item_index\.parquet"):
        read(linked)


def test_one_at_a_time(linked: Path) -> None:
    def meanwhile(store: ItemStore) -> ItemStore:
        with pytest.raises(UserError, match="another llmrec is changing this bundle; wait or stop it"):
            change_items(linked, None, add)
        return add(store)

    _, new = change_items(linked, None, meanwhile)
    assert_holds(linked, new)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.EACCES])
def test_a_file_system_that_cannot(linked: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(one: bytes, other: bytes) -> int:
        ctypes.set_errno(number)
        return -1

    before = contents(linked)
    monkeypatch.setattr("llmrec.atomic._swap_of_the_system", lambda: refuse)
    with pytest.raises(UserError, match=re.escape(os.strerror(number))):
        change_items(linked, None, add)
    monkeypatch.setattr("llmrec.atomic._swap_of_the_system", lambda: None)
    with pytest.raises(UserError, match="can't exchange two folders in one step; name a new one with out"):
        change_items(linked, None, add)
    assert contents(linked) == before
    assert not (linked.parent / ".model.new").exists()


class Killed(BaseException):
    """What ends everything, the tidying up included."""


class Killer:
    """Ends the process, as far as it can be told from the disk, before its n-th access to `folder`."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.left = 0
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.folder is None:
            return
        mine = str(self.folder)
        names = [os.fsdecode(word) for word in arguments if isinstance(word, str | bytes | os.PathLike)]
        if any(name.startswith(mine) for name in names) or (event == "ctypes.dlsym" and "renameat2" in names):
            self.left -= 1
            if self.left < 0:
                raise Killed(event)


@pytest.fixture(scope="session")
def killer() -> Killer:
    return Killer()


@pytest.mark.skipif(sys.platform != "linux", reason="knows the names of Linux's calls")
@pytest.mark.parametrize(("in_place", "stride"), [(True, 1), (False, 3)])
def test_killed_at_any_moment_it_is_the_old_one_or_the_new_one(
    saved: Path, tmp_path: Path, killer: Killer, in_place: bool, stride: int
) -> None:
    out = None if in_place else tmp_path / "out"
    model = shutil.copytree(saved, tmp_path / "model")
    old, new = read(model), add(read(model))
    outcomes = []
    for step in range(0, 1000, stride):
        killer.folder, killer.left = tmp_path, step
        try:
            change_items(model, out, add)
        except Killed:
            killer.folder = None
        else:
            break
        finally:
            killer.folder = None
        target = out or model
        done = target.exists() and len(read(target).catalog) == 23
        outcomes.append(done)
        if target.exists():
            assert_holds(target, new if done else old)
        if done:  # start again
            shutil.rmtree(target)
            if in_place:
                shutil.copytree(saved, model)
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}
    assert len(outcomes) > 100 / stride
    assert_holds(out or model, new)
    assert {path.name for path in tmp_path.iterdir() if path.name.endswith(".new")} == set()
