"""An untrained recommender for the tiny catalogue: its answers are arbitrary, but how it handles requests is not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec.data import Catalog
from llmrec.embed.encoder import EmbedConfig
from llmrec.model.config import BaseConfig
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.recommender import Recommender


@pytest.fixture(scope="session")
def recommender(tiny_catalog: Catalog) -> Recommender:
    """A recommender for 20 items with 2 levels of 4 codes and a dedup level."""
    tokenizer = ItemTokenizer(levels=2, codes=4, embed=EmbedConfig(encoder="tfidf-svd", dim=8)).fit(tiny_catalog)
    config = BaseConfig(hidden_size=32, layers=1, heads=4, vocabulary=320, context=160)
    return Recommender.from_base(None, tokenizer, config=config)


@pytest.fixture(scope="session")
def unsized() -> Callable[[Path], Path]:
    """A function that removes the file sizes from a bundle's header, as in 0.1, so that other checks find damage."""

    def change(folder: Path) -> Path:
        header = json.loads((folder / "llmrec.json").read_text())
        (folder / "llmrec.json").write_text(json.dumps(header | {"files": {}}))
        return folder

    return change
