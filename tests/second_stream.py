"""A second stream for the shops of the tests: other codes of the same items, which some items lack."""

from typing import Any

import numpy as np

from llmrec.decode.behaviour import BehaviourStream
from llmrec.decode.search import BeamSearch
from llmrec.index.trie import ItemTrie
from llmrec.model.adapter import add_item_rows
from llmrec.model.tokens import ItemVocabulary
from llmrec.tasks.render import Renderer
from llmrec.tasks.streams import BEHAVIOUR

SIZES = [4, 5]


def second_renderer(shop: Any, without: np.ndarray) -> Renderer:
    """The renderer of the second codes, in no order; the model gets rows for their tokens."""
    codes = np.stack(np.unravel_index(np.random.default_rng(7).permutation(20), SIZES), axis=1)
    codes[without] = -1
    vocabulary = ItemVocabulary.add_to(shop.tokenizer, SIZES, BEHAVIOUR)
    add_item_rows(shop.model, vocabulary.all_ids, len(shop.tokenizer), seed=3)
    return Renderer(shop.tokenizer, vocabulary, codes, shop.renderer.templates, shop.renderer.max_history)


def stream_of(search: BeamSearch, second: Renderer) -> BehaviourStream:
    """The stream of a renderer whose model `search` searches with."""
    without = np.flatnonzero(second.codes[:, 0] < 0)
    trie = ItemTrie.build(np.maximum(second.codes, 0), SIZES).without_items(without)
    return BehaviourStream(search.in_other_codes(second.vocabulary, trie), second)
