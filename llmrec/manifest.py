"""The `manifest.json` of a finished stage, with the size and the SHA-256 of each of its files.

    {"schema": 2, "stage": "embed", "key": ..., "files": {"embeddings.safetensors": {"bytes": 4096, "sha256": ...}}}

Files that match a pattern in `spare` may be missing. Manifests of schema 1 have neither `files` nor `spare`; their
stages count as complete.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llmrec.atomic import KEY, MANIFEST, read_manifest, write_text

SCHEMA = 2
CHANGED = "changed_by"
"""Key of the manifest: the command by which the user changed the finished stage. Such a stage is never replaced."""

LARGE = 2**24
"""Size in bytes from which `sha256` caches the hash of a file. A smaller file can change twice within one tick of the
clock, so that its modification time stays the same."""

_known: dict[tuple[int, int, int, int], str] = {}
"""(device, inode, size, modification time) -> SHA-256 of a large file that this process has read."""


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content. A large file is read only once, also if it has several names."""
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if key in _known:
            return _known[key]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if state.st_size >= LARGE:
        _known[key] = digest
    return digest


def record(folder: Path, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """Name -> size and SHA-256 of the files below `folder`, or only of those in `names`. Links are left out."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in (names if names is not None else sorted(_files(folder)))
        if not (folder / name).is_symlink()
    }


def fault(folder: Path, manifest: Mapping[str, Any], verify: bool = False) -> str | None:
    """Describe the first file of a stage that is missing or differs from the manifest; None if there is none.

    Args:
        folder: folder of the stage.
        manifest: manifest of the stage.
        verify: whether to compare the content of files too, not only their sizes.
    """
    for name, expected in manifest.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            if any(fnmatch(name, pattern) for pattern in manifest.get("spare", ())):
                continue
            return f"{path} is missing"
        if (size := path.stat().st_size) != expected["bytes"]:
            return f"{path} has {size:,} bytes, expected {expected['bytes']:,}"
        if verify and sha256(path) != expected["sha256"]:
            return f"{path} has other content than the stage wrote"
    return None


def belongings(folder: Path, manifest: Mapping[str, Any], precious: Sequence[str] = ()) -> str | None:
    """Describe what the user would lose if the stage in `folder` were replaced; None if nothing.

    Args:
        folder: folder of the stage.
        manifest: manifest of the stage.
        precious: names of files that belong to the user if they differ from what the stage wrote.
    """
    if by := manifest.get(CHANGED):
        return f"{folder} was changed by llmrec {by}, and the stage would be made again without these changes"
    if (files := manifest.get("files")) is None:
        return None
    for name in sorted(_files(folder) - files.keys()):
        return f"{folder / name} is not a file of the stage, which is to be made again"
    for name in precious:
        path, expected = folder / name, files.get(name)
        if expected and path.is_file() and sha256(path) != expected["sha256"]:
            return f"{path} was changed since the stage wrote it, and the stage is to be made again"
    return None


def note_change(folder: Path, names: Iterable[str], by: str) -> None:
    """Record in the manifest of the stage in `folder`, if it has one, that a command of the user changed these files.

    Args:
        folder: folder of the stage.
        names: names of the files that were written, removed or added.
        by: the command; the manifest records it as `changed_by`.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    if (files := manifest.get("files")) is not None:
        names = list(names)
        manifest["files"] = {name: entry for name, entry in files.items() if name not in names}
        manifest["files"] |= record(folder, [name for name in names if (folder / name).is_file()])
    write_manifest(folder, {**manifest, CHANGED: by})


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest.json` atomically."""
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))


def _files(folder: Path) -> set[str]:
    """Names of all files and links below a folder, except for the manifest and the key of the stage."""
    return set(_walk(folder)) - {MANIFEST, KEY}


def _walk(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in [*files, *links]:
            yield (Path(root) / name).relative_to(folder).as_posix()
