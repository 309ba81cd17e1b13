"""`Recommender.prefer` on models as bundles hold them: whole or an adapter, in four bytes per weight or in two."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from llmrec import pipeline
from llmrec.collaborative.fusion import FusionWeights
from llmrec.config import Config
from llmrec.data import Catalog, Interactions
from llmrec.decode.rankings.fusion import FEATURES
from llmrec.errors import UserError
from llmrec.model.base import make_base
from llmrec.model.config import AdapterConfig, BaseConfig
from llmrec.preference.config import PreferenceConfig
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.recommender import Recommender
from llmrec.rundir import RunDirectory
from llmrec.tasks.config import TasksConfig
from llmrec.train.config import TrainConfig

IDS = [f"i{row}" for row in range(12)]
BASE = BaseConfig(hidden_size=32, layers=1, heads=2, vocabulary=300, context=96)
ALIGNED = PreferenceConfig("grpo", group=4, batch_size=8, evaluations=1, learning_rate=1e-3)


@pytest.fixture(scope="module")
def shop() -> tuple[Catalog, ItemTokenizer, Interactions]:
    catalog = Catalog.from_frame(pl.DataFrame({"item_id": IDS, "title": [f"thing {row}" for row in range(12)]}))
    vectors = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    tokenizer = ItemTokenizer(levels=2, codes=4).fit_embeddings(IDS, vectors)
    rng = np.random.default_rng(0)
    events = [(f"u{user}", f"i{row}", time) for user in range(30) for time, row in enumerate(rng.permutation(12)[:4])]
    return catalog, tokenizer, Interactions(pl.DataFrame(events, ["user_id", "item_id", "timestamp"], orient="row"))


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bundle_is_aligned_whatever_its_weights_are(shop, tmp_path: Path, merged: bool, dtype: str) -> None:
    """A merged bundle on a base in bfloat16 is in bfloat16; an adapter's rows and matrices are float32 beside it."""
    catalog, tokenizer, log = shop
    model, words = make_base(BASE, catalog.texts("{title}"))
    model.save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    own = BaseConfig(dtype=dtype)
    recommender = Recommender.from_base(tmp_path / "base", tokenizer, catalog, own, frozen=True, max_history=3)
    train = TrainConfig(method="lora", epochs=1, batch_size=8, evaluations=1, lora=AdapterConfig(rank=2))
    recommender.fit(log, tasks=TasksConfig({"sequential": 1}, max_history=3, max_text_tokens=8), train=train)
    if merged:
        recommender.merge()
    recommender.save_pretrained(tmp_path / "bundle")
    loaded = Recommender.from_pretrained(tmp_path / "bundle", base=None if merged else tmp_path / "base")
    stored = {parameter.dtype for parameter in loaded.model.parameters()}
    assert (torch.bfloat16 in stored) == (merged and dtype == "bfloat16"), "an adapter finds its base as it was saved"
    before = {name: value.detach().clone().float() for name, value in loaded.model.named_parameters()}
    loaded.prefer(log, config=ALIGNED)
    changed = {n: p for n, p in loaded.model.named_parameters() if not torch.equal(p.detach().float(), before[n])}
    assert changed
    assert {parameter.dtype for parameter in changed.values()} == {torch.float32}
    assert loaded.preference == "grpo"
    loaded.save_pretrained(tmp_path / "aligned")
    again = Recommender.from_pretrained(tmp_path / "aligned", base=None if merged else tmp_path / "base")
    assert again.recommend(IDS[:2], k=5) == loaded.recommend(IDS[:2], k=5)


def test_an_encoder_decoder_is_refused(shop, tmp_path: Path) -> None:
    """Before it is trained, too."""
    catalog, tokenizer, log = shop
    base = BaseConfig(architecture="t5", hidden_size=32, layers=1, heads=2, vocabulary=300, context=96)
    recommender = Recommender.from_base(None, tokenizer, catalog, base)
    with pytest.raises(UserError, match=r"preference.method grpo aligns decoders, and this model is an encoder-dec"):
        recommender.prefer(log, config=ALIGNED)
    tasks, train = TasksConfig(supervise="target"), TrainConfig(packing=False)
    with pytest.raises(UserError, match=r"preference.method grpo aligns decoders, and base.architecture t5"):
        Config(base=base, preference=ALIGNED, tasks=tasks, train=train)
    recommender.model.save_pretrained(tmp_path / "base")
    named = Config(base=BaseConfig(model=str(tmp_path / "base")), preference=ALIGNED, tasks=tasks, train=train)
    with pytest.raises(UserError, match=r"preference.method grpo aligns decoders, and base.model .*base is an enc"):
        pipeline.check(named, RunDirectory(tmp_path / "run"), "evaluate")


def test_weights_of_the_fusion_do_not_outlive_their_model(shop, tmp_path: Path) -> None:
    catalog, tokenizer, log = shop
    recommender = Recommender.from_base(None, tokenizer, catalog, BASE)
    recommender.fusion_weights = FusionWeights([1.0] * 4, [1.0] * 4, 0.0, {}, list(FEATURES))
    recommender.save_pretrained(tmp_path)
    assert Recommender.from_pretrained(tmp_path).fusion_weights is not None
    recommender.prefer(log, config=ALIGNED)
    recommender.save_pretrained(tmp_path)
    assert Recommender.from_pretrained(tmp_path).fusion_weights is None
    assert "fusion.json" not in (tmp_path / "llmrec.json").read_text()
