"""What `llmrec run` never touches: the user's files in the run directory, and items added to its bundle."""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from llmrec.cli.main import main

Program = Callable[..., subprocess.CompletedProcess[str]]
Log = pytest.LogCaptureFixture


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user with a shop's tables in `tables/`; the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llmrec.cli.stages.log_to_stderr", lambda: None)  # the tests after this one log too
    events = [f"u{user},i{(user + step) % 6},{step}" for user in range(6) for step in range(4)]
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "events.csv").write_text("\n".join(["user_id,item_id,timestamp", *events]) + "\n")
    items = "".join(f"i{n},title {n}\n" for n in range(6))
    (tmp_path / "tables" / "items.csv").write_text(f"item_id,title\n{items}")
    return tmp_path


def flags(folder: str = "tables") -> list[str]:
    """Of the shop in `folder`."""
    values = {"format": "table", "path": f"{folder}/events.csv", "items": f"{folder}/items.csv"}
    return [f"--data.{name}={value}" for name, value in {**values, "user_core": 1, "item_core": 1}.items()]


def snapshot(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What a command that ends with 2 says, in its one line."""
    assert main(list(map(str, words))) == 2
    out, error = capsys.readouterr()
    assert out == ""
    [line] = error.splitlines()
    return line


def test_the_users_data_is_not_replaced_by_ours(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "tables").rename(project / "data")
    before = snapshot(project)
    line = refused(capsys, "prepare", "--run", ".", *flags("data"))
    assert line.startswith("llmrec: --data.path data/events.csv: lies in data, which belongs to the run directory")
    (project / "tables").mkdir()
    for name in ("events.csv", "items.csv"):
        shutil.copy(project / "data" / name, project / "tables" / name)
    before |= {f"tables/{name}": before[f"data/{name}"] for name in ("events.csv", "items.csv")}
    line = refused(capsys, "prepare", "--run", ".", *flags())
    assert line.startswith("llmrec: --run .: data holds no manifest.json of this stage, so llmrec does not replace it")
    assert snapshot(project) == before


@pytest.mark.parametrize("name", ["train", "model", "evaluate", "compare", "config.yaml", ".model.partial"])
def test_folders_of_later_stages_are_looked_at_before_the_first(
    project: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if name.endswith(".yaml"):
        (project / name).write_text("data: {}  # my own\n")
    else:
        (project / name).mkdir()
        (project / name / "notes").write_text("mine")
    before = snapshot(project)
    assert f"--run .: {name} is there already" in refused(capsys, "prepare", "--run", ".", *flags())
    assert snapshot(project) == before


def test_stages_beside_files_of_the_user(project: Path) -> None:
    before = snapshot(project)
    for _ in range(2):
        assert main(["prepare", "--run", ".", *flags()]) == 0
        after = snapshot(project)
        assert {name: after[name] for name in before} == before
        ours = {".llmrec-run.json", "config.yaml", "data"}
        assert {path.name for path in project.iterdir()} == {"tables", *ours}


@pytest.mark.skipif(sys.platform != "linux", reason="knows the files of Linux")
@pytest.mark.parametrize("name", ["", "/etc/passwd", "/proc/x", "/dev/null", "tables/items.csv", "a" * 300, "a\0b"])
@pytest.mark.parametrize("command", ["run", "prepare"])
def test_no_run_directory(project: Path, name: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(project)
    assert "--run " in refused(capsys, command, "--run", name, *flags())
    assert snapshot(project) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the unit tests simulate the refusal")
def test_a_run_directory_without_permission(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "locked").mkdir(mode=0o500)
    assert "Permission denied" in refused(capsys, "prepare", "--run", "locked", *flags())
    assert "Permission denied" in refused(capsys, "prepare", "--run", "locked/run", *flags())


def test_a_damaged_file_is_named_and_its_stage_made_again(
    run_copy: Path, tiny_run: Path, tiny_flags: list[str], monkeypatch: pytest.MonkeyPatch, caplog: Log
) -> None:
    """By its size at every run, by its content with --verify; what the other stages read is then as it was."""
    monkeypatch.setattr("llmrec.cli.stages.log_to_stderr", lambda: None)
    caplog.set_level("INFO", "llmrec")
    words = ["tokenize", "--run", str(run_copy), *tiny_flags]
    path = run_copy / "data" / "items.parquet"

    def said(*more: str) -> list[str]:
        caplog.clear()
        assert main([*words, *more]) == 0
        lines = [record.getMessage() for record in caplog.records if record.name.startswith("llmrec.rundir")]
        return [line.split(": done")[0] for line in lines]

    path.write_bytes(b"")
    size = (tiny_run / "data" / "items.parquet").stat().st_size
    unchanged = ["embed: unchanged", "tokenize: unchanged"]
    again = "the stage is made again"
    first = f"data: {path} has 0 bytes, expected {size:,}; {again}"
    assert said() == [first, "data: started", "data", *unchanged]
    assert path.stat().st_size == size
    content = bytearray(path.read_bytes())
    content[size // 2] ^= 1
    path.write_bytes(content)
    assert said() == ["data: unchanged", *unchanged]
    first = f"data: {path} has other content than the stage wrote; {again}"
    assert said("--verify") == [first, "data: started", "data", *unchanged]
    assert said("--verify") == ["data: unchanged", *unchanged]
    path.unlink()
    assert said()[0] == f"data: {path} is missing; {again}"
    assert pl.read_parquet(path).equals(pl.read_parquet(tiny_run / "data" / "items.parquet"))


def test_added_items_are_not_lost(
    run_copy: Path,
    tiny_flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: Log,
) -> None:
    """An unchanged run leaves the bundle alone; one that would make it anew stops before its first stage."""
    for command in ("stages", "add_items"):
        monkeypatch.setattr(f"llmrec.cli.{command}.log_to_stderr", lambda: None)
    caplog.set_level("INFO", "llmrec")
    model = run_copy / "model"
    (tmp_path / "new.csv").write_text("item_id,title\nNEW1,A kettle of copper\n")
    assert main(["add-items", "--model", str(model), "--items", str(tmp_path / "new.csv")]) == 0
    assert {path.name for path in run_copy.iterdir() if path.name.startswith(".")} == {".llmrec-run.json"}

    def items(folder: Path) -> set[str]:
        return set(pl.read_parquet(folder / "item_index.parquet")["item_id"])

    assert "NEW1" in items(model)
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run_copy), *tiny_flags, "--verify"]) == 0
    assert [record.getMessage() for record in caplog.records if "unchanged" not in record.getMessage()] == []
    assert "NEW1" in items(model)
    manifest = json.loads((model / "manifest.json").read_text())
    assert manifest["changed_by"] == "add-items"
    before = snapshot(run_copy)
    capsys.readouterr()
    caplog.clear()
    line = refused(capsys, "run", "--run", run_copy, *tiny_flags, "--train.learning_rate", "1e-3")
    assert f"{model} was changed by llmrec add-items" in line
    assert f"move {model} elsewhere to keep all of it, or delete it" in line
    assert caplog.records == []
    assert snapshot(run_copy) == before
    model.rename(tmp_path / "kept")
    assert main(["train", "--run", str(run_copy), *tiny_flags]) == 0
    assert "NEW1" not in items(model)
    assert "NEW1" in items(tmp_path / "kept")


@contextmanager
def full_disk(bytes_of_a_file: int) -> Iterator[None]:
    """No file may grow larger: the system then refuses to write, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full(
    tiny_run: Path,
    run_copy: Path,
    tiny_flags: list[str],
    llmrec: Program,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wherever it happens, one line says so, and with room again the run ends as one that never met it."""
    monkeypatch.setattr("llmrec.cli.stages.log_to_stderr", lambda: None)

    def check(line: str) -> None:
        assert line.startswith(f"llmrec: --run {run_copy}: ")
        assert "the same command goes on from there" in line

    for stage in ("base", "train", "model", "evaluate"):
        shutil.rmtree(run_copy / stage)
    words = ["--run", run_copy, *tiny_flags]
    table, weights = run_copy / "data" / "interactions.parquet", tiny_run / "base" / "model.safetensors"
    before = snapshot(run_copy)
    with full_disk(table.stat().st_size // 2):  # written by polars
        check(refused(capsys, "prepare", *words, "--data.cold.users", "0.01"))
    after = snapshot(run_copy)
    assert {name: after[name] for name in before} == before | {"config.yaml": after["config.yaml"]}
    with full_disk(weights.stat().st_size - 1):  # written by safetensors
        check(refused(capsys, "train", *words))
    assert not (run_copy / "base").exists()
    with full_disk(weights.stat().st_size + 100_000):  # an optimizer's state, written by torch
        result = llmrec("train", *words)
    assert result.returncode == 2
    check(result.stderr.splitlines()[-1])
    assert "Traceback" not in result.stderr
    assert (run_copy / "base").exists()
    assert not (run_copy / "train").exists()
    result = llmrec("train", *words)
    assert result.returncode == 0, result.stderr
    one, other = ((folder / "model" / "model.safetensors").read_bytes() for folder in (run_copy, tiny_run))
    assert one == other


def test_without_a_configuration_the_one_of_the_run_counts(project: Path, caplog: Log) -> None:
    assert main(["prepare", "--run", "run", *flags()]) == 0
    before = snapshot(project / "run" / "data")
    with caplog.at_level("WARNING", logger="llmrec"):
        assert main(["embed", "--run=run", "--embed.encoder", "tfidf-svd", "--embed.dim", "4"]) == 0
    assert "No --config: going on with run/config.yaml." in caplog.text
    assert snapshot(project / "run" / "data") == before, "the shop's data, not the made-up one of the defaults"
    assert main(["embed", "--run", "run"]) == 0
    assert "dim: 4" in (project / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("flag", [["--data.user_core", "2"], ["--data.user_core=2"]])
def test_a_setting_of_the_data_does_not_exchange_the_data(project: Path, flag: list[str]) -> None:
    assert main(["prepare", "--run", "run", *flags()]) == 0
    known = set(pl.read_parquet(project / "run" / "data" / "items.parquet")["item_id"])
    assert main(["prepare", "--run", "run", *flag]) == 0
    assert "user_core: 2" in (project / "run" / "config.yaml").read_text()
    assert set(pl.read_parquet(project / "run" / "data" / "items.parquet")["item_id"]) <= known


def test_a_configuration_that_is_named_counts_instead_of_that_of_the_run(project: Path) -> None:
    assert main(["prepare", "--run", "run", *flags(), "--data.min_rating", "null"]) == 0
    (project / "own.yaml").write_text("data:\n  synthetic_users: 300\n  synthetic_items: 200\n")
    assert main(["prepare", "--run", "run", "--config", "own.yaml"]) == 0
    assert "format: synthetic" in (project / "run" / "config.yaml").read_text()


def test_a_strangers_config_in_the_folder_is_not_read(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "run").mkdir()
    (project / "run" / "config.yaml").write_text("nonsense: 1\n")
    assert "run/config.yaml is there already" in refused(capsys, "prepare", "--run", "run", *flags())
