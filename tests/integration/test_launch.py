"""Two processes under `accelerate launch`: they learn and align as one with twice the batch, predict as one, resume."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import psutil
import pytest
from safetensors.numpy import load_file

from llmrec.tasks.config import TASKS

ROOT = Path(__file__).parents[2]
# Without MPI, accelerate's only launcher of several processes is torchrun's, whose flag is --multi_gpu on CPUs too.
LAUNCH = [
    "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--num_cpu_threads_per_process", "1",
    "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no",
]  # fmt: skip


LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH]
TWO = [*LAUNCHER, str(ROOT / "scripts" / "finetune.py")]


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    """(step, loss) of every logged loss of a kind."""
    lines = [json.loads(line) for line in (run / "train" / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(
    tiny_flags: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    flags = [*tiny_flags, "--train.dropout", "0", "--train.dtype", "float32"]
    commands = {
        "one": [sys.executable, str(ROOT / "scripts" / "finetune.py"), "--train.batch_size", "64"],
        "two": [*TWO, "--train.batch_size", "32"],
    }
    for name, command in commands.items():
        # No GPU, where the sums would have another order.
        result = subprocess.run(
            [*command, "--run", str(tmp_path / name), *flags],
            env={**environment, "CUDA_VISIBLE_DEVICES": ""},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert (tmp_path / name / "model" / "llmrec.json").exists()
    # The validation loss is a mean over batches, which are cut otherwise; what is learnt is the same.
    for name, tolerance in (("loss", 1e-3), ("eval_loss", 1e-2)):
        one, two = curve(tmp_path / "one", name), curve(tmp_path / "two", name)
        assert len(one) >= 2
        assert [step for step, _ in one] == [step for step, _ in two]
        assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_killed_and_resumed_end_as_undisturbed(
    method: str, tiny_flags: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """The full mixture, packed; killed between two checkpoints, the launcher and both processes at once."""
    mixture = json.dumps(dict.fromkeys(TASKS, 0.5))
    flags = [*tiny_flags, "--tasks.mixture", mixture, "--intentions.source", "extract", "--train.method", method]
    flags += ["--train.dtype", "float32", "--base.dtype", "float32"]
    flags += ["--train.epochs", "2", "--train.evaluations", "6", "--train.rows_first", "0.3"]
    flags += ["--data.synthetic_items", "100", "--data.synthetic_users", "100", "--embed.dim", "32"]
    environment = {**environment, "CUDA_VISIBLE_DEVICES": ""}

    def launch(run: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*TWO, "--run", str(tmp_path / run), *flags],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def finish(run: str) -> None:
        process = launch(run)
        _, log = process.communicate()
        assert process.returncode == 0, log.decode()

    finish("undisturbed")
    for checkpoint in ("rows/checkpoint-*", "checkpoint-*"):  # in the rows' own phase, and after it
        process = launch("killed")
        while not list((tmp_path / "killed" / ".train.partial").glob(f"{checkpoint}/whole")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        launcher = psutil.Process(process.pid)
        for one in [launcher, *launcher.children(recursive=True)]:  # the workers have sessions of their own
            one.kill()
        process.communicate()
    finish("killed")
    one, two = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("undisturbed", "killed"))
    assert one.keys() == two.keys()
    assert not [name for name in one if one[name].tobytes() != two[name].tobytes()]


ALIGN = {
    "s-dpo": ["--preference.method", "s-dpo", "--preference.negatives", "3"],
    "grpo": ["--preference.method", "grpo", "--preference.group", "16", "--preference.draw", "samples"],
}
ALIGN["grpo"] += ["--preference.updates", "2", "--preference.clip", "0.2"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ALIGN)
def test_two_processes_align_as_one_also_after_a_kill(
    method: str, tiny_run: Path, tiny_flags: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """Killed after the second evaluation: the launcher and both processes at once."""
    flags = [*tiny_flags, *ALIGN[method], "--preference.examples", "96", "--preference.evaluations", "4"]
    flags += ["--decode.dtype", "float32"]
    flags += ["--preference.learning_rate", "1e-3", "--preference.patience", "0", "--preference.validation_users", "40"]
    environment = {**environment, "CUDA_VISIBLE_DEVICES": ""}

    def launch(run: str) -> subprocess.Popen[bytes]:
        if not (tmp_path / run).exists():
            shutil.copytree(tiny_run, tmp_path / run)
        one = [sys.executable, str(ROOT / "scripts" / "finetune.py")]
        command = [*(one if run == "one" else TWO), "--preference.batch_size", "16" if run == "one" else "8"]
        words = [*command, "--run", str(tmp_path / run), *flags]
        return subprocess.Popen(words, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(run: str) -> list[dict[str, float]]:
        process = launch(run)
        _, log = process.communicate()
        assert process.returncode == 0, log.decode()
        lines = (tmp_path / run / "preference" / "log.jsonl").read_text().splitlines()
        return [{**json.loads(line), "seconds": 0.0} for line in lines]

    one, two = finish("one"), finish("two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    assert one[-1]["kl"] > 0.01
    for name in ("loss", "kl", "ndcg@10", *(["reward", "constant_groups"] if method == "grpo" else [])):
        first, second = ([line[name] for line in lines if name in line] for lines in (one, two))
        assert len(first) >= 3
        assert second == pytest.approx(first, abs=1e-3)

    process, log = launch("killed"), tmp_path / "killed" / ".preference.partial" / "log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    launcher = psutil.Process(process.pid)
    for each in [launcher, *launcher.children(recursive=True)]:
        each.kill()
    process.communicate()
    assert finish("killed") == two
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("two", "killed")]
    assert weights[0] == weights[1]


def users_of(run: Path, folder: Path) -> Path:
    """A file with 2,500 users, three chunks, made of the items of a run."""
    ids = pl.read_parquet(run / "model" / "item_index.parquet")["item_id"].to_list()
    histories = [[ids[(user * step) % len(ids)] for step in range(1, 1 + user % 5)] for user in range(2500)]
    users = pl.DataFrame({"user_id": [f"u{user}" for user in range(2500)], "history": histories})
    users.write_parquet(folder / "users.parquet")
    return folder / "users.parquet"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["accelerate", "ray"])
def test_two_processes_predict_what_one_does_also_after_a_kill(
    how: str, tiny_run: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    flags = ["--model", str(tiny_run / "model"), "--input", str(users_of(tiny_run, tmp_path)), "--k", "3"]
    one = [sys.executable, "-m", "llmrec", "predict"]
    if how == "ray":
        pytest.importorskip("ray", reason="the ray extra is not installed")
        two = [sys.executable, str(ROOT / "scripts" / "predict_ray.py"), "--workers", "2"]
    else:
        two = [*LAUNCHER, "-m", "llmrec", "predict"]
    environment = {**environment, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}

    def finish(command: list[str], output: str) -> bytes:
        words = [*command, *flags, "--output", str(tmp_path / output)]
        result = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return (tmp_path / output).read_bytes()

    expected = finish(one, "one.csv")
    assert finish(two, "two.csv") == expected
    process = subprocess.Popen(
        [*two, *flags, "--output", str(tmp_path / "killed.csv")], env=environment, stderr=subprocess.DEVNULL
    )
    while not list((tmp_path / ".killed.csv.parts").glob("*.parquet")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    launcher = psutil.Process(process.pid)
    for each in [launcher, *launcher.children(recursive=True)]:
        each.kill()
    process.wait()
    assert finish(two, "killed.csv") == expected
