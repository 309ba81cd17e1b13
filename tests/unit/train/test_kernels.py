"""Attention kernels, compiled layers and optimizers of 8 bits, as far as a CPU goes.

The flash attention packages need a GPU. Here the function that they provide, attention within the segments that
`cu_seqlens` names, is written in plain torch; transformers' own code finds the segments from the positions.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, modeling_flash_attention_utils

from llmrec.errors import UserError
from llmrec.model.config import AdapterConfig
from llmrec.tasks.config import TasksConfig
from llmrec.tasks.mixture import Collator, Mixture, build_tasks
from llmrec.train import finetune as finetuning
from llmrec.train import kernels
from llmrec.train.config import TrainConfig
from llmrec.train.finetune import TrainingData, check_packing, finetune
from llmrec.train.kernels import attention_kernel, check_kernels
from llmrec.train.objective import answer_loss

TASKS = TasksConfig(mixture={"sequential": 1.0, "item-to-codes": 0.5}, max_history=4, max_text_tokens=12)
FULL = TrainConfig(epochs=1, batch_size=8, evaluations=1, dtype="float32", dropout=0.0)
LORA = replace(FULL, method="lora", lora=AdapterConfig(rank=4, dropout=0.0))


def segments(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """flash_attn_varlen_func in plain torch: q [T, heads, D], k and v [T, groups, D] -> [T, heads, D]."""
    assert causal
    parts = []
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        own = [each[start:end].transpose(0, 1)[None] for each in (q, k, v)]
        at = torch.arange(end - start)
        sees = at[:, None] >= at
        if window_size[0] >= 0:
            sees &= at[:, None] - at <= window_size[0]
        parts.append(F.scaled_dot_product_attention(*own, attn_mask=sees, scale=softmax_scale, enable_gqa=True))
    return torch.cat(parts, dim=2)[0].transpose(0, 1)


def whole(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    """flash_attn_func: [B, T, heads, D]."""
    ends = torch.tensor([0, q.shape[1]])
    rows = [segments(*row, ends, ends, q.shape[1], q.shape[1], **options) for row in zip(q, k, v, strict=True)]
    return torch.stack(rows)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes `segments` and `whole` for the functions of flash-attn, and the CPU for a GPU."""
    own = modeling_flash_attention_utils
    monkeypatch.setattr(own, "_loaded_implementation", "flash_attention_2")
    for name, function in (("_flash_fn", whole), ("_flash_varlen_fn", segments)):
        monkeypatch.setattr(own, name, function)
    monkeypatch.setattr(own, "_process_flash_kwargs_fn", own._lazy_define_process_function(segments))
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *args, **kwargs: True)


def batch_of(shop, one_row: bool) -> dict[str, torch.Tensor]:
    mixture = Mixture(build_tasks(TASKS, shop.catalog, shop.sequences, shop.renderer), TASKS, 1, 8, seed=0)
    return Collator(shop.renderer, 160, packed=True, one_row=one_row)([mixture[i] for i in range(16)])


def loss_and_gradients(shop, attention: str, one_row: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = batch_of(shop, one_row)
    labels = batch.pop("labels")
    with attention_kernel(shop.model, attention):
        loss = answer_loss(shop.model(**batch, use_cache=False), labels)
        loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in shop.model.named_parameters()}


@pytest.mark.parametrize("kernel", ["sdpa", "flash_attention_2"])
def test_one_row_is_learnt_as_rows_under_a_block_mask_are(make_shop, flash, kernel) -> None:
    """The examples of 16, in rows under transformers' block mask, and in one row without padding."""
    rows, flat = (batch_of(make_shop(), one_row) for one_row in (False, True))
    assert len(rows["input_ids"]) > 1
    assert len(flat["input_ids"]) == 1
    assert (flat["position_ids"] == 0).sum() == 16
    assert flat["input_ids"].numel() < rows["input_ids"].numel()
    (expected, gradients), (found, own) = (
        loss_and_gradients(make_shop(), attention, one_row) for attention, one_row in (("eager", False), (kernel, True))
    )
    torch.testing.assert_close(found, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-6)


def test_flash_attention_would_mix_examples_in_several_rows(make_shop, flash) -> None:
    """Why all examples stand in one row: transformers looks for their starts in a batch of one row only."""
    (expected, _), (found, _) = (
        loss_and_gradients(make_shop(), kernel, False) for kernel in ("sdpa", "flash_attention_2")
    )
    assert abs(found - expected) > 1e-3


@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])
def test_flash_attention_trains_as_eager_attention_does(make_shop, flash, monkeypatch, tmp_path, config) -> None:
    monkeypatch.setattr(finetuning, "check_kernels", lambda config: None)
    losses = {}
    for name in ("eager", "flash_attention_2"):
        shop = make_shop()
        data = TrainingData(shop.catalog, shop.sequences)
        finetune(shop.model, shop.renderer, data, TASKS, replace(config, attention=name), tmp_path / name)
        assert shop.model.config._attn_implementation == "sdpa"  # as before
        losses[name] = logged(tmp_path / name)
    np.testing.assert_allclose(losses["flash_attention_2"], losses["eager"], rtol=1e-4)


def logged(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_packing_is_tried_with_the_kernel(make_shop, flash) -> None:
    shop = make_shop()
    with attention_kernel(shop.model, "flash_attention_2"):
        check_packing(shop.model)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention": "flash_attention_2"}, "train.attention flash_attention_2: no CUDA GPU here; set it to auto"),
        ({"optimizer": "adamw-8bit"}, "train.optimizer adamw-8bit: bitsandbytes is not installed"),
        ({"optimizer": "paged-adamw-8bit"}, "train.optimizer paged-adamw-8bit: bitsandbytes is not installed"),
        ({"compile": True}, "train.compile true needs g++, which is not installed"),
    ],
)
def test_what_the_machine_lacks_is_one_line(make_shop, tmp_path, monkeypatch, changes, said) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    shop = make_shop()
    data = TrainingData(shop.catalog, shop.sequences)
    with pytest.raises(UserError) as error:
        finetune(shop.model, shop.renderer, data, TASKS, replace(FULL, **changes), tmp_path)
    assert str(error.value).startswith(said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention": "flash_attention_3"}, "the package flash-attn-3 is not installed"),
        ({"compile": True}, "needs triton"),
    ],
)
def test_a_gpu_does_not_make_up_for_packages(monkeypatch, changes, said) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=said):
        check_kernels(TrainConfig(**changes))
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    check_kernels(TrainConfig(**changes, dtype="bfloat16"))


def test_flash_attention_does_not_compute_in_float32(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="computes in bfloat16"):
        check_kernels(TrainConfig(attention="flash_attention_2", dtype="float32"))


def test_a_kernel_that_the_model_does_not_support_is_named(make_shop) -> None:
    """Without a GPU, transformers itself refuses the kernel."""
    said = r"train\.attention flash_attention_2: Qwen3ForCausalLM does not support it \("
    with pytest.raises(UserError, match=said), attention_kernel(make_shop().model, "flash_attention_2"):
        pass


def test_compiled_layers_learn_the_same(make_shop, monkeypatch, tmp_path) -> None:
    """Traced by dynamo, computed by torch itself; that the layers are compiled is seen from the number of graphs."""
    graphs = []

    def note(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kwargs: real(self, **kwargs, backend=note))
    for compile_ in (False, True):
        shop = make_shop()
        data = TrainingData(shop.catalog, shop.sequences)
        config = replace(LORA, compile=compile_)
        trained, _ = finetune(shop.model, shop.renderer, data, TASKS, config, tmp_path / f"{compile_}")
        assert bool(graphs) is compile_
        assert all(module._compiled_call_impl is None for module in trained.modules())
    np.testing.assert_allclose(logged(tmp_path / "True"), logged(tmp_path / "False"), rtol=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_optimizer_of_8_bits_learns(make_shop, tmp_path, method) -> None:
    pytest.importorskip("bitsandbytes")
    losses = {}
    for optimizer in ("adamw", "adamw-8bit"):
        shop = make_shop()
        data = TrainingData(shop.catalog, shop.sequences)
        config = replace(FULL if method == "full" else LORA, epochs=8, optimizer=optimizer)
        finetune(shop.model, shop.renderer, data, TASKS, config, tmp_path / optimizer)
        losses[optimizer] = logged(tmp_path / optimizer)
    assert losses["adamw-8bit"] != losses["adamw"]
    np.testing.assert_allclose(losses["adamw-8bit"], losses["adamw"], rtol=0.05)
