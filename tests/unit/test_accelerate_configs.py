"""The files in configs/accelerate: accelerate reads them, and knows every word in them."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from llmrec.resources import resource_folder

FOLDER = resource_folder("configs") / "accelerate"
KINDS = {
    "single_gpu": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


def test_all_kinds_are_there() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == KINDS[name]
    assert config.num_processes == (1 if name == "single_gpu" else 4)
    assert not config.use_cpu
    # The launcher sets its options from these sections and ignores what it does not know.
    options = {action.dest for action in launch_command_parser()._actions}
    assert {*config.fsdp_config, *config.deepspeed_config} <= options
    assert config.fsdp_config.get("fsdp_version", 2) == 2
    assert config.deepspeed_config.get("zero_stage") == {"zero2": 2, "zero3": 3}.get(name)


@pytest.mark.parametrize("name", KINDS)
def test_the_header_says_what_it_needs_and_how_it_is_run(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    for word in ("# Needs: ", "# Checked: ", "by us"):
        assert word in header
    assert f"accelerate launch --config_file configs/accelerate/{name}.yaml scripts/finetune.py" in header
    assert Path(path).is_file()
    assert yaml.safe_load(path.read_text(encoding="utf-8"))
