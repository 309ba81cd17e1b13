"""Names of devices: those that compute, and one line for the others."""

import pytest
import torch

from llmrec.device import resolve_device
from llmrec.errors import UserError


def test_names_of_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["meta", "abacus", "", "cpu:x", "cuda:99", "\ud800", "x" * 500])
def test_other_names_are_one_line(name: str) -> None:
    with pytest.raises(UserError, match="can't be used here; say auto, cpu, or the name of a GPU") as caught:
        resolve_device(name)
    assert len(str(caught.value)) < 200
