"""Two processes under `accelerate launch` learn as one process with twice the batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Without MPI, accelerate's only launcher of several processes is torchrun's, whose flag is --multi_gpu on CPUs too.
LAUNCH = [
    "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--num_cpu_threads_per_process", "1",
    "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no",
]  # fmt: skip


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
        "two": [
            sys.executable, "-m", "accelerate.commands.launch", *LAUNCH,
            str(ROOT / "scripts" / "finetune.py"), "--train.batch_size", "32",
        ],
    }  # fmt: skip
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
