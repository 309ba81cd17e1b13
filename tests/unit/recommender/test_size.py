"""The size report against a count over the loaded weights."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec.errors import UserError
from llmrec.model.config import AdapterConfig
from llmrec.recommender import bundle, hub
from llmrec.recommender.recommender import Recommender
from llmrec.train.finetune import with_adapter


@pytest.mark.parametrize("adapted", [False, True])
def test_every_file_is_counted_once(adapted: bool, recommender: Recommender, tmp_path: Path) -> None:
    tokens = recommender.renderer.vocabulary.all_ids
    model = recommender.model
    if adapted:
        recommender.model = with_adapter(model, tokens, AdapterConfig(rank=2))
    try:
        recommender.save_pretrained(tmp_path)
    finally:
        if adapted:
            recommender.model = recommender.model.unload()
    (tmp_path / "manifest.json").write_text("not counted")
    found = bundle.sizes(tmp_path)
    taken = {name: (tmp_path / name).stat().st_size for name in hub.published_files(tmp_path)}
    assert found["total"] == sum(taken.values())
    assert found["total"] == sum(found[part] for part in bundle.PARTS)
    assert found["trie"] == taken[bundle.TRIE]
    assert found["index"] == taken[bundle.INDEX]
    assert found["quantizer"] == sum(count for name, count in taken.items() if name.startswith("quantizer/"))
    assert found["tokenizer"] == taken["tokenizer.json"] + taken["tokenizer_config.json"]
    assert found["item_token_rows"] == len(tokens) * 32 * 4
    weights = "adapter" if adapted else "weights"
    assert found[weights] == taken[f"{'adapter_' if adapted else ''}model.safetensors"]
    assert found["weights" if adapted else "adapter"] == 0


def test_a_file_of_weights_that_is_none(
    recommender: Recommender, tmp_path: Path, unsized: Callable[[Path], Path]
) -> None:
    recommender.save_pretrained(tmp_path)
    unsized(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(UserError, match=r"model\.safetensors: not a safetensors file"):
        bundle.sizes(tmp_path)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (600 * 2**20, "600 MiB"),
        (13 * 2**30, "13 GiB"),
    ],
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert bundle.readable(count) == words
