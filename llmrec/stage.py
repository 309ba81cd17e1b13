"""One stage of a run: its configuration, its inputs, the function that makes it, and its manifest.

The key of a stage is a digest of its configuration and inputs. A finished stage with the same key is not made again.
"""

import hashlib
import json
import resource
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmrec import manifest
from llmrec.config import Config, with_new_names, with_old_names

KEY_SCHEMA = 1
"""Version of the data that a key is the digest of. A new version changes all keys, so all stages are made again."""
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
        name: name of the stage and its folder.
        config: all settings of the stage, as values that JSON can hold; the manifest records its `seed`.
        make: writes the files of the stage into the folder that is its argument.
        reads: names of the stages that this one reads.
        files: name of another input -> its hash.
        resumable: whether `make` can continue with the files that an interrupted call left in the folder.
        together: whether all processes of a distributed launch call `make`, not only the main one.
        spare: patterns of files that are not read after the stage is finished; the user may delete them.
        precious: names of files that the user may change. If one differs from what the stage wrote, llmrec does not
            replace it.
        instead: what the user can do instead of making the stage again with other settings.
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
    instead: str = ""

    def run(self, folder: Path) -> float:
        """Make the stage in `folder`; the seconds that it took. The peak memory counts from here on."""
        reset_peak_memory()
        started = time.perf_counter()
        self.make(folder)
        return time.perf_counter() - started

    def key(self, inputs: Mapping[str, str]) -> str:
        """The digest of the stage's configuration and inputs. Renamed fields enter it with their old names.

        Args:
            inputs: name -> key of a stage, or hash of a file, that this stage reads.
        """
        sections = {name: with_old_names(name, each) for name, each in self.config.items() if isinstance(each, dict)}
        config = with_old_names(self.name, {**self.config, **sections})
        return digest({"schema": KEY_SCHEMA, "stage": self.name, "config": config, "inputs": inputs})

    def again(self, found: Mapping[str, Any] | None) -> str:
        """The end of the line `train: started`: ` again, for --train.epochs 14 (was 12); ...`.

        A setting that a manifest lacks has its default. Empty if none differs.

        Args:
            found: the manifest of the finished stage that will be replaced; None if there is none.
        """
        if found is None:
            return ""
        defaults = asdict(Config())
        own, before = (self._sections(config, defaults) for config in (self.config, found["config"]))
        changed = [
            f"--{section}.{name} {here} (was {there})"
            for section in own.keys() & before.keys()
            for name, (here, there) in differences(
                defaults[section] | own[section], defaults[section] | with_new_names(section, before[section])
            ).items()
            if name.partition(".")[0] in defaults[section]
        ]
        words = f" again, for {', '.join(sorted(changed))}"
        return words + (f"; {self.instead}" if self.instead else "") if changed else ""

    def _sections(self, config: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
        """The settings of the stage by section; `known`: names of the sections. Settings without one are of the section
        that has the name of the stage; those of a teacher are of `train`."""
        named = {name: each for name, each in config.items() if name in known and isinstance(each, dict)}
        if "distill" in config:
            named["train"] = {"distill": config["distill"]}
        return named or ({self.name: config} if self.name in known else {})

    def manifest(self, folder: Path, inputs: Mapping[str, str], seconds: float) -> dict[str, Any]:
        """The manifest for the finished stage in `folder`; `seconds` is how long `make` took."""
        return {
            "schema": manifest.SCHEMA,
            "stage": self.name,
            "key": self.key(inputs),
            "config": self.config,
            "inputs": inputs,
            "packages": {name: package_version(name) for name in PACKAGES},
            "seed": self.config.get("seed"),
            "seconds": round(seconds, 3),
            "peak_memory_gib": round(peak_memory() / 2**30, 3),
            "files": manifest.record(folder),
            "spare": list(self.spare),
        }


def differences(own: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted name of each field that differs -> (its value in `own`, in `old`); a missing field is unset."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in [*own, *(name for name in old if name not in own)]:
        here, there = own.get(name, "unset"), old.get(name, "unset")
        if isinstance(here, dict) and isinstance(there, dict):
            found |= {f"{name}.{inner}": pair for inner, pair in differences(here, there).items()}
        elif here != there:
            found[name] = (here, there)
    return found


def reset_peak_memory() -> None:
    """Let `peak_memory` count from now on, where the system can do that (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Largest resident memory of this process since `reset_peak_memory`, or since its start, in bytes."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def file_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """Path -> SHA-256 of the file's content."""
    return {str(path): manifest.sha256(path) for path in paths}


def files_state(paths: Sequence[Path]) -> str:
    """One digest of the names, sizes and modification times of many files, too many to hash their content."""
    return digest([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths])


def model_state(model: Path) -> dict[str, str]:
    """Path -> size and modification time of a model's file, or of each file in its folder: too large to hash."""
    return {
        str(path): f"{path.stat().st_size} bytes, {path.stat().st_mtime_ns}"
        for path in (sorted(model.iterdir()) if model.is_dir() else [model])
        if path.is_file()
    }


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
