"""The wheel carries prompts and configurations, and runs from any directory without the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import llmrec

ROOT = Path(__file__).parents[2]
FEW = ["--data.synthetic_items", "60", "--data.synthetic_users", "60", "--tokenize.codes", "8", "--embed.dim", "32"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    [path] = folder.glob("llmrec-*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_prompts_and_configs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    page = [("llmrec", suffix) for suffix in (".html", ".css", ".js", ".svg")]
    for folder, suffix in (("prompts", ".yaml"), ("configs", ".yaml"), ("llmrec", ".py"), *page):
        files = [path.relative_to(ROOT) for path in (ROOT / folder).rglob(f"*{suffix}")]
        assert files
        prefix = "" if folder == "llmrec" else "llmrec/"
        assert {f"{prefix}{path.as_posix()}" for path in files} <= names
    assert all(name.split("/")[0] in ("llmrec", f"llmrec-{llmrec.__version__}.dist-info") for name in names)


@pytest.mark.slow
def test_wheel_runs_from_another_directory(
    wheel: Path, tiny_flags: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    # PYTHONPATH comes before what is installed, so this is the wheel's copy.
    environment = {**environment, "PYTHONPATH": str(site)}
    where = [sys.executable, "-c", "import llmrec; print(llmrec.__file__)"]
    found = subprocess.run(where, cwd=elsewhere, env=environment, check=True, capture_output=True, text=True)
    assert Path(found.stdout.strip()) == site / "llmrec" / "__init__.py"
    command = [sys.executable, "-m", "llmrec", "run", "--run", "run", *tiny_flags, *FEW]
    result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (elsewhere / "run" / "evaluate" / "metrics.json").exists()
