"""The house's order of rooms, and what a bare import or `--help` may load."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import llmrec

PACKAGE = Path(llmrec.__file__).parent
ROOMS = [
    "data",
    "collaborative",
    "embed",
    "quantize",
    "intentions",
    "model",
    "index",
    "tasks",
    "train",
    "decode",
    "preference",
    "recommender",
    "evaluation",
    "serve",
    "cli",
]
# Modules at the top that every room may use; they use no room themselves.
FOUNDATION = {"llmrec", "atomic", "lock", "checks", "manifest", "errors", "console", "device", "resources"}
# Modules at the top that bring the rooms together; only the command line stands above them.
WHOLE = {
    "config",
    "stage",
    "rundir",
    "continued",
    "expert_stages",
    "refine_stages",
    "pipeline",
    "children",
    "comparison",
    "benchmark",
    "estimate",
    "run_report",
}


def imported(path: Path) -> Iterator[str]:
    """Each part of llmrec that a file imports anywhere, type-checking blocks and function bodies included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            root, *parts = name.split(".")
            if root == "llmrec":
                known = parts and ((PACKAGE / parts[0]).is_dir() or (PACKAGE / f"{parts[0]}.py").is_file())
                yield parts[0] if known else "llmrec"


def test_imports_walk_sees_known_edges() -> None:
    """Guards the guard: an import in the head, one in a function, one of the package's own names."""
    files = ("pipeline.py", "recommender/recommender.py", "recommender/save.py")
    found = {name for file in files for name in imported(PACKAGE / file)}
    assert {"config", "rundir", "evaluation", "llmrec", "decode"} <= found


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_earlier_rooms(room: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(room) + 1], *FOUNDATION, *(WHOLE if room == "cli" else ())}
    if room == "decode":
        allowed.remove("train")
    wrong = [
        f"{path.relative_to(PACKAGE)} imports llmrec.{name}"
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for name in imported(path)
        if name not in allowed
    ]
    assert not wrong


def test_every_room_has_its_place() -> None:
    found = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert found == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", *FOUNDATION - {"llmrec"}, *WHOLE}


def imported_modules(path: Path) -> Iterator[Path]:
    """The files of llmrec that a file imports anywhere; a name of a package's `__init__` counts as that file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("llmrec"):
            continue
        folder = PACKAGE.joinpath(*(node.module or "").split(".")[1:])
        for alias in node.names:
            for found in (folder / f"{alias.name}.py", folder.with_suffix(".py"), folder / "__init__.py"):
                if found.is_file():
                    yield found
                    break


def test_no_circles() -> None:
    """No file imports itself through others, imports for type checking and in functions included."""
    graph = {
        path: {found for found in imported_modules(path) if found != path and found.name != "__init__.py"}
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"  # it names what lies in its folder
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(str(path.relative_to(PACKAGE)) for path in error.args[1]))


def test_foundation_uses_no_room() -> None:
    wrong = [
        f"{name}.py imports llmrec.{other}"
        for name in sorted(FOUNDATION - {"llmrec"})
        for other in imported(PACKAGE / f"{name}.py")
        if other not in FOUNDATION
    ]
    assert not wrong


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout


def test_import_is_cheap() -> None:
    code = (
        "import sys, time; started = time.process_time(); import llmrec; "
        "print(time.process_time() - started, 'torch' in sys.modules, 'polars' in sys.modules)"
    )
    runs = [run_python(code).split() for _ in range(3)]
    assert all(loaded == ["False", "False"] for _, *loaded in runs)
    # The processor's time, not the clock's, and the middle one of three: what else runs here matters little.
    assert sorted(float(seconds) for seconds, *_ in runs)[1] < 0.5


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["recommend", "--help"]])
def test_help_loads_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom llmrec.cli.main import main\n"
        f"try: main({arguments})\nexcept SystemExit as end: assert not end.code\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert run_python(code).endswith("False False\n")


@pytest.mark.parametrize("name", llmrec.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(llmrec, name) is not None
