"""What a stage consists of, and what in its folder is the user's."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from llmrec import manifest
from llmrec.atomic import MANIFEST, read_manifest


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A finished stage with three files."""
    folder = tmp_path / "a"
    (folder / "deep").mkdir(parents=True)
    for name in ("one", "two", "deep/three"):
        (folder / name).write_text(name)
    content = {"stage": "a", "key": "k", "files": manifest.record(folder), "spare": ["deep/*"]}
    manifest.write_manifest(folder, content)
    return folder


def read(folder: Path) -> dict[str, Any]:
    found = read_manifest(folder)
    assert found is not None
    return found


def test_sizes_and_hashes(stage: Path) -> None:
    (stage / "link").symlink_to("one")
    assert manifest.record(stage) == {
        name: {"bytes": len(name), "sha256": hashlib.sha256(name.encode()).hexdigest()}
        for name in ("deep/three", "one", "two")
    }
    assert manifest.record(stage, ["two"]).keys() == {"two"}


def test_a_large_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "large"
    for byte in (b"a", b"b"):
        path.write_bytes(byte * manifest.LARGE)
        expected = hashlib.sha256(byte * manifest.LARGE).hexdigest()
        assert manifest.sha256(path) == manifest.sha256(path) == expected


def test_what_manifests_without_files_say(stage: Path) -> None:
    """They are of an earlier version: their stages count as whole, and as ours."""
    (stage / MANIFEST).write_text(json.dumps({"schema": 1, "stage": "a", "key": "k"}))
    (stage / "one").unlink()
    (stage / "notes").write_text("mine")
    assert manifest.fault(stage, read(stage), verify=True) is None
    assert manifest.belongings(stage, read(stage), ["one"]) is None
    manifest.note_change(stage, ["two"], by="add-items")
    assert "files" not in read(stage)
    assert manifest.belongings(stage, read(stage)) is not None


def test_a_noted_change_is_no_fault_and_the_users(stage: Path) -> None:
    (stage / "one").write_text("changed")
    (stage / "two").unlink()
    (stage / "new").write_text("new")
    manifest.note_change(stage, ["one", "two", "new", "never there"], by="add-items")
    assert read(stage)["files"] == manifest.record(stage)
    assert manifest.fault(stage, read(stage), verify=True) is None
    assert "was changed by llmrec add-items" in str(manifest.belongings(stage, read(stage)))


def test_a_folder_without_a_manifest_gets_none(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"name": "of an app"}')
    manifest.note_change(tmp_path, [], by="add-items")
    assert (tmp_path / MANIFEST).read_text() == '{"name": "of an app"}'
