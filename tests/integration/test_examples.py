"""The shipped examples run and print what they promise.

A program must end well and print something. The code cells of a notebook run in order in one namespace, and must print
what the notebook stores. Cells with the tag `machine` print figures, times or rankings that differ between machines;
they must run and print something. To store new outputs, run all cells in Jupyter and save.
"""

import ast
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = "machine"
"""The tag of a cell whose output may differ from the stored one."""

Cell = dict[str, Any]


def code_cells(notebook: Path) -> list[Cell]:
    """The code cells, in order."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def source(cell: Cell) -> str:
    """The code of a cell; the format allows a text or a list of lines."""
    return "".join(cell["source"])


def stored(cell: Cell) -> str:
    """The output in the notebook: what the cell printed, then the value of its last line."""
    texts = [output["text"] if "text" in output else output["data"]["text/plain"] for output in cell["outputs"]]
    return "".join("".join(text) for text in texts).rstrip("\n")


def outputs(cells: list[Cell]) -> Iterator[str]:
    """Run the cells in one namespace; what each shows, with the value of a last line that is an expression."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells, start=1):
        name = f"cell {number}"
        statements = ast.parse(source(cell), name).body
        last = statements.pop() if statements and isinstance(statements[-1], ast.Expr) else None
        out = io.StringIO()
        with redirect_stdout(out):
            # A notebook is code: these cells are files of this repository, run as a reader runs them.
            exec(compile(ast.Module(statements, []), name, "exec"), namespace)
            if last is not None:  # "single" prints the value, unless it is None
                exec(compile(ast.Interactive([last]), name, "single"), namespace)
        yield out.getvalue().rstrip("\n")


def check(cells: list[Cell]) -> None:
    """Fails if a cell shows nothing, or, without the tag `machine`, anything else than is stored."""
    for cell, shown in zip(cells, outputs(cells), strict=True):
        assert shown.strip(), f"nothing printed by\n{source(cell)}"
        if MACHINE not in cell["metadata"].get("tags", []):
            assert shown == stored(cell), source(cell)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, environment: dict[str, str], tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "displayhook", sys.__displayhook__)
    monkeypatch.setattr("builtins._", None, raising=False)  # where the hook leaves the last value
    check(code_cells(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebook(path: Path) -> None:
    """Each code cell has an output, most are compared, and nothing tells of the machine that ran the notebook."""
    cells = code_cells(path)
    assert all(stored(cell).strip() for cell in cells)
    assert sum(MACHINE not in cell["metadata"].get("tags", []) for cell in cells) > len(cells) / 2
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "not run in order"
    kinds = {output.get("name", output["output_type"]) for cell in cells for output in cell["outputs"]}
    assert kinds <= {"stdout", "execute_result"}, "delete warnings and errors from the outputs"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    assert {key for cell in notebook["cells"] for key in cell["metadata"]} <= {"tags"}


def cell(code: str, *outputs: dict[str, Any], tags: tuple[str, ...] = ()) -> Cell:
    """A code cell with these stored outputs."""
    return {"source": code.splitlines(keepends=True), "outputs": list(outputs), "metadata": {"tags": list(tags)}}


def test_check() -> None:
    one = cell("a = 1\nprint('one')\na", {"text": ["one\n"]}, {"data": {"text/plain": ["1"]}})
    check([one, cell("print(a + 1)", {"text": ["2\n"]}), cell("print('slow')", {"text": ["fast"]}, tags=(MACHINE,))])
    with pytest.raises(AssertionError, match="print"):
        check([one, cell("print(a + 1)", {"text": ["3\n"]})])
    with pytest.raises(AssertionError, match="nothing printed"):
        check([cell("a = 1", tags=(MACHINE,))])
    with pytest.raises(NameError):
        check([cell("print(b)", tags=(MACHINE,))])


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"end_to_end", "own_quantizer"}
    assert {path.stem for path in NOTEBOOKS} >= {"first_look", "inside_a_bundle", "own_csv"}
