"""One stage of a run: what it is made from, who makes it, and what its manifest says.

The key of a stage is a digest of its configuration and of all that it reads. A stage with the same key stands.
"""

import hashlib
import json
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmrec import manifest
from llmrec.config import with_old_names

KEY_SCHEMA = 1
"""Of what a stage's key is the digest of; a new one would make every stage of every run directory anew."""
PACKAGES = (
    "llmrec",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "faiss-cpu",
    "polars",
    "numpy",
    "tokenizers",
)


@dataclass(frozen=True)
class Stage:
    """One stage, as `RunDirectory.build` makes it.

    Attributes:
        name: of the folder.
        config: everything that steers the stage, JSON-able; `seed` in it goes to the manifest.
        make: writes the stage's files into the folder that it is given.
        reads: names of the stages that this one reads.
        files: hashes of what else it reads, by name.
        resumable: `make` can go on with what an interrupted call left in the folder.
        together: all processes of a distributed launch call `make`, not just the main one.
        spare: patterns of files that nobody reads once the stage is made; they may be deleted.
        precious: names of files that are the user's once they differ from what the stage wrote.
    """

    name: str
    config: Mapping[str, Any]
    make: Callable[[Path], None]
    reads: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    resumable: bool = False
    together: bool = False
    spare: Sequence[str] = ()
    precious: Sequence[str] = ()

    def key(self, inputs: Mapping[str, str]) -> str:
        """What the stage is made from, as one digest; fields count under the names that they had first.

        Args:
            inputs: key of each stage, hash of each file that it reads, by name.
        """
        sections = {name: with_old_names(name, each) for name, each in self.config.items() if isinstance(each, dict)}
        config = with_old_names(self.name, {**self.config, **sections})
        return digest({"schema": KEY_SCHEMA, "stage": self.name, "config": config, "inputs": inputs})

    def manifest(self, folder: Path, inputs: Mapping[str, str], seconds: float) -> dict[str, Any]:
        """What is written beside the files of the finished stage in `folder`; `seconds`: how long `make` took."""
        return {
            "schema": manifest.SCHEMA,
            "stage": self.name,
            "key": self.key(inputs),
            "config": self.config,
            "inputs": inputs,
            "packages": {name: package_version(name) for name in PACKAGES},
            "seed": self.config.get("seed"),
            "seconds": round(seconds, 3),
            "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
            "files": manifest.record(folder),
            "spare": list(self.spare),
        }


def file_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file's content, by its path."""
    return {str(path): manifest.sha256(path) for path in paths}


def folder_state(folder: Path) -> dict[str, str]:
    """Size and modification time of each file of a folder too large to hash, such as a base model."""
    return {
        str(path): f"{path.stat().st_size} bytes, {path.stat().st_mtime_ns}"
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
