"""Trained rows beside frozen matrices: losses and gradients are those of peft's way, without a matrix of its size."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from loading import script
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch.utils._python_dispatch import TorchDispatchMode

from llmrec.model.adapter import add_item_rows, with_adapter, with_rows
from llmrec.model.config import AdapterConfig
from llmrec.model.rows import TokenRows, use_token_rows

architectures = script("architectures")
OLD, TOKENS = 61, 73
ITEMS = np.arange(OLD, TOKENS)
IDS = torch.tensor([[5, 61, 70, 3, 61, 12, 72, 64, 66], [1, 2, 62, 2, 61, 69, 71, 5, 9]])


def base(name: str, tied: bool) -> Any:
    """A model with random item rows, in float64."""
    torch.manual_seed(0)
    model = architectures.make_model(name, vocab_size=OLD, tie_word_embeddings=tied)
    add_item_rows(model, ITEMS, TOKENS, seed=0)
    for label, parameter in model.named_parameters():
        if label.endswith("lm_head.bias"):
            torch.nn.init.normal_(parameter)
    return model.double()


def moved(adapted: Any) -> Any:
    """The adapter in float64, away from its start."""
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.double()
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return adapted


def step(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch and the gradients of what is trained."""
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def as_peft(adapted: Any) -> Any:
    """A copy whose rows are computed by peft itself."""
    plain = copy.deepcopy(adapted)
    for layer in plain.modules():
        if isinstance(layer, TokenRows):
            layer.__class__ = TrainableTokensLayer
    return plain


Add = Callable[[Any], Any]
ADD: dict[str, Add] = {
    "lora": lambda model: with_adapter(model, ITEMS, AdapterConfig(rank=2, dropout=0)),
    "rows": lambda model: with_rows(model, ITEMS),
}


@pytest.mark.parametrize("add", ADD)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "cohere"])
def test_loss_and_gradients_are_those_of_peft(name: str, tied: bool, add: str) -> None:
    """Scaled embeddings (Gemma) and scaled logits (Cohere) too."""
    adapted = moved(ADD[add](base(name, tied)))
    loss, gradients = step(adapted)
    expected, known = step(as_peft(adapted))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert gradients.keys() == known.keys()
    for label, gradient in gradients.items():
        torch.testing.assert_close(gradient, known[label], rtol=1e-9, atol=1e-12, msg=label)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ["qwen3", "phi", "gptj"])
def test_gradients_of_rows_are_those_of_the_whole_matrix(name: str, tied: bool) -> None:
    """Where all weights are trained, the item rows of the matrices have the same gradients. Heads with a bias, too."""
    model = base(name, tied)
    adapted = moved(with_rows(copy.deepcopy(model), ITEMS))
    loss, gradients = step(adapted)
    whole = copy.deepcopy(adapted).merge_and_unload().requires_grad_(True)
    expected, _ = step(whole)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    matrices = [whole.get_input_embeddings().weight]
    if whole.get_output_embeddings().weight is not matrices[0]:
        matrices.append(whole.get_output_embeddings().weight)
    found = list(gradients.values())
    assert len(found) == len(matrices)
    for rows, matrix in zip(found, matrices, strict=True):
        torch.testing.assert_close(rows, matrix.grad[ITEMS], rtol=1e-9, atol=1e-12)


class _Shapes(TorchDispatchMode):
    """Notes the shape and dtype of each tensor that an operation makes; views do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[tuple[int, ...], torch.dtype]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **kwargs or {})
        if isinstance(found, torch.Tensor) and found._base is None and not function.is_view:
            self.made.add((tuple(found.shape), found.dtype))
        return found


@contextmanager
def shapes() -> Iterator[set[tuple[tuple[int, ...], torch.dtype]]]:
    with _Shapes() as mode:
        yield mode.made


@pytest.mark.parametrize("add", ADD)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_step_makes_no_matrix_of_all_tokens(tied: bool, add: str) -> None:
    adapted = ADD[add](base("qwen3", tied))
    matrices = {(TOKENS, 32), (32, TOKENS)}

    def made(model: Any) -> set[tuple[int, ...]]:
        with shapes() as found:
            step(model)
        return {shape for shape, _ in found} & matrices

    assert not made(adapted)
    assert made(as_peft(adapted))  # so the test sees such matrices


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "plain"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_step_on_a_bfloat16_base_makes_no_float32_copy_of_its_weights(tied: bool, autocast: bool) -> None:
    """Embeddings, head and all linear layers stay as they are, whole or transposed; the adapter is float32."""
    adapted = ADD["lora"](base("qwen3", tied).bfloat16())
    frozen = [p for p in adapted.parameters() if not p.requires_grad]
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    assert {p.dtype for p in trained} == {torch.float32}
    matrices = {tuple(p.shape) for p in frozen if p.dim() == 2}
    matrices |= {shape[::-1] for shape in matrices}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), shapes() as made:
        step(adapted)
    assert not {(shape, dtype) for shape, dtype in made if shape in matrices}
    assert all(p.grad.abs().sum() > 0 for p in trained if p.grad.shape[0] == len(ITEMS))
    # A float32 base under autocast is copied, so the test sees such copies.
    with torch.autocast("cpu", torch.bfloat16), shapes() as made:
        step(ADD["lora"](base("qwen3", tied).float()))
    assert {shape for shape, _ in made} & matrices


def test_rows_are_the_same_under_gradient_checkpointing() -> None:
    adapted = moved(ADD["lora"](base("qwen3", True))).train()
    loss, gradients = step(adapted)
    adapted.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again, checkpointed = step(adapted)
    assert again == loss
    for label, gradient in gradients.items():
        torch.testing.assert_close(checkpointed[label], gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_peft_alone_loads_what_was_trained(tied: bool, tmp_path: Any) -> None:
    from peft import AutoPeftModelForCausalLM

    model = base("qwen3", tied).float()
    model.save_pretrained(tmp_path / "base")
    model.name_or_path = str(tmp_path / "base")
    adapted = ADD["lora"](model)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert any(type(layer) is TrainableTokensLayer for layer in plain.modules())
    with torch.inference_mode():
        expected = adapted.eval()(IDS).logits
        torch.testing.assert_close(plain(IDS).logits, expected)
        use_token_rows(plain)
        torch.testing.assert_close(plain(IDS).logits, expected)
