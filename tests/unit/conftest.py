"""An unfitted recommender over the tiny shop: its answers are arbitrary, its behaviour is not."""

import pytest

from llmrec.data import Catalog
from llmrec.embed.config import EmbedConfig
from llmrec.model.config import BaseConfig
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.recommender import Recommender


@pytest.fixture(scope="session")
def recommender(tiny_catalog: Catalog) -> Recommender:
    """20 items, 2 levels of 4 codes and a dedup level."""
    tokenizer = ItemTokenizer(levels=2, codes=4, embed=EmbedConfig(encoder="tfidf-svd", dim=8)).fit(tiny_catalog)
    config = BaseConfig(hidden_size=32, layers=1, heads=4, vocabulary=320, context=160)
    return Recommender.from_base(None, tokenizer, config=config)
