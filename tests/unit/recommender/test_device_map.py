"""Models whose layers a device map has placed. All places here are one CPU, but accelerate's hooks are real."""

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook

from llmrec.cli.main import main
from llmrec.decode.config import DecodeConfig
from llmrec.decode.generate import GenerateSearch
from llmrec.decode.tree import TreeSearch
from llmrec.errors import UserError
from llmrec.recommender.recommender import Recommender


@pytest.fixture(scope="module")
def bundle(recommender: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placed") / "model"
    recommender.save_pretrained(folder)
    return folder


def asked(recommender: Recommender) -> list[tuple[str, float]]:
    found = recommender.recommend(history=recommender.catalog.ids[:3], prompt="a soap", k=5)
    return [(item.item_id, item.score) for item in found]


PLACES = {name: "cpu" for name in ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head")}


def test_layers_that_do_not_fit_are_refused(bundle: Path) -> None:
    with pytest.raises(UserError, match=r"device_map: \d+ tensors do not fit on the GPUs"):
        Recommender.from_pretrained(bundle, device_map=PLACES | {"model.layers": "disk"})


@pytest.mark.parametrize("by_generate", [False, True], ids=["tree", "generate"])
def test_layers_with_hooks_answer_as_plain_ones(
    recommender: Recommender, bundle: Path, monkeypatch: pytest.MonkeyPatch, by_generate: bool
) -> None:
    """Layers in different places have hooks that bring the inputs to them; the search copies these modules."""
    if by_generate:
        monkeypatch.setattr("llmrec.decode.choose.unknown_window", lambda model: "window")
    plain, hooked = Recommender.from_pretrained(bundle), Recommender.from_pretrained(bundle)
    accelerate.dispatch_model(hooked.model, PLACES, force_hooks=True)
    hooked.decode_config = DecodeConfig(device="no-such-device")  # a placed model is not moved
    seen: list[object] = []
    before = AlignDevicesHook.pre_forward

    def pre_forward(self: AlignDevicesHook, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(module)
        return before(self, module, *args, **kwargs)

    monkeypatch.setattr(AlignDevicesHook, "pre_forward", pre_forward)
    assert isinstance(hooked.ranker.search, GenerateSearch if by_generate else TreeSearch)
    assert asked(hooked) == asked(plain)
    assert seen


def test_a_device_and_a_device_map_are_one_too_many(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recommend", "--model", str(bundle), "--prompt", "a soap", "--device", "cpu", "--device-map", "auto"]
    assert main(words) == 2
    assert "--device cpu: --device-map auto chooses devices; leave one out." in capsys.readouterr().err
