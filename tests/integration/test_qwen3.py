"""The real Qwen3 tokenizer and a small base with its 151,936 token rows: LoRA, saved, read by a fresh process."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llmrec import Catalog, Interactions, ItemTokenizer, Recommender, TrainConfig
from llmrec.embed.encoder import EmbedConfig
from llmrec.model.config import AdapterConfig
from llmrec.tasks.config import TasksConfig

QWEN3 = Path(__file__).parents[3] / "shared" / "data" / "tokenizers" / "qwen3"
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["full_attention"] * 2}
PROMPT = [9707, 11, 1879, *range(151_669, 151_680), 0]  # words and item tokens, which follow the tokenizer's 151,669
FRESH = """
import sys
import numpy as np
import torch
from llmrec import Recommender
folder, prompt, target = sys.argv[1:]
model = Recommender.from_pretrained(folder).model.eval()
with torch.inference_mode():
    np.save(target, model(torch.tensor([[int(token) for token in prompt.split()]])).logits.numpy())
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not QWEN3.is_dir(), reason="no Qwen3 tokenizer here")]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the fresh process: sums have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(QWEN3, **SMALL, tie_word_embeddings=request.param)
    assert config.vocab_size == 151_936
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(QWEN3).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("merged", [False, True], ids=["adapter", "merged"])
def test_a_fresh_process_computes_the_same_bits(
    merged: bool, base: Path, tiny_catalog: Catalog, tmp_path: Path, environment: dict[str, str]
) -> None:
    items = ItemTokenizer(levels=2, codes=4, embed=EmbedConfig(encoder="tfidf-svd", dim=8)).fit(tiny_catalog)
    events = [(f"u{user}", f"i{(user * 7 + time * 3) % 20}", time) for user in range(10) for time in range(5)]
    log = Interactions.from_frame(pl.DataFrame(events, ["user_id", "item_id", "timestamp"], orient="row"))
    tasks = TasksConfig(mixture={"sequential": 1.0, "item-to-codes": 0.5}, max_history=4)
    train = TrainConfig(
        method="lora", lora=AdapterConfig(rank=4), epochs=1, batch_size=4, evaluations=1, learning_rate=1e-2
    )
    recommender = Recommender.from_base(base, items, max_history=4).fit(log, tasks=tasks, train=train)
    tokens = recommender.renderer.vocabulary.all_ids
    assert tokens[0] == 151_669
    learnt = {name: p for name, p in recommender.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or p.shape == (len(tokens), 64) for name, p in learnt.items())
    if merged:
        recommender.merge()
        before = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
        after = recommender.model.get_input_embeddings().weight
        assert torch.equal(after[: tokens[0]], before[: tokens[0]])
    recommender.save_pretrained(tmp_path / "model")
    if not merged:
        size = (tmp_path / "model" / "adapter_model.safetensors").stat().st_size
        assert size < 1.2 * sum(p.numel() * p.element_size() for p in learnt.values())
    with torch.inference_mode():
        ours = recommender.model.eval()(torch.tensor([PROMPT])).logits.numpy()
    words = [str(tmp_path / "model"), " ".join(map(str, PROMPT)), str(tmp_path / "logits.npy")]
    subprocess.run([sys.executable, "-c", FRESH, *words], check=True, env=environment)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), ours)
