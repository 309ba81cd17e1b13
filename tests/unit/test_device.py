"""Names of devices: those that compute, and one line for the others."""

import pytest
import torch

from llmrec import device
from llmrec.device import bfloat16_is_faster, resolve_device, resolve_dtype
from llmrec.errors import UserError


def test_names_of_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["meta", "abacus", "", "cpu:x", "cuda:99", "\ud800", "x" * 500])
def test_other_names_are_one_line(name: str) -> None:
    with pytest.raises(UserError, match="can't be used here; say auto, cpu, or the name of a GPU") as caught:
        resolve_device(name)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("amx", "avx512", "seconds", "fast"),
    [(True, False, None, True), (False, True, 0.4, True), (False, True, 0.9, False), (False, False, None, False)],
    ids=["AMX", "AVX-512 bf16", "slow units", "none"],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it_faster(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, seconds: float | None, fast: bool
) -> None:
    """Seconds of a product in bfloat16, where float32 takes one; None: nothing is tried."""

    def tried(dtype: torch.dtype) -> float:
        assert seconds is not None
        return seconds if dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(device, "_seconds", tried)
    monkeypatch.setattr(device, "bfloat16_is_faster", bfloat16_is_faster.__wrapped__)
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) == (torch.bfloat16 if fast else torch.float32)
    assert resolve_dtype("float32", cpu) == torch.float32
    assert resolve_dtype("bfloat16", cpu) == torch.bfloat16


def test_the_trial_measures_both() -> None:
    assert device._seconds(torch.float32) > 0
    assert device._seconds(torch.bfloat16) > 0
