"""Refine the item tokenizer of a trained recommender, which stays as it is; `quantize/refine.py` has the losses."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from llmrec.console import get_logger
from llmrec.data import Interactions
from llmrec.errors import UserError
from llmrec.preference.examples import PreferenceExamples, training_examples
from llmrec.quantize.config import RefineConfig
from llmrec.quantize.refine import refined
from llmrec.quantize.tokenizer import ItemTokenizer

if TYPE_CHECKING:
    from llmrec.recommender.recommender import Recommender

log = get_logger(__name__)


def refine_tokenizer(
    recommender: "Recommender",
    tokenizer: ItemTokenizer,
    events: Interactions,
    vectors: np.ndarray,
    settings: RefineConfig,
    seed: int = 0,
) -> ItemTokenizer:
    """The tokenizer whose codes suit the recommender better, with new semantic IDs for its items.

    Args:
        recommender: trained on the semantic IDs of `tokenizer`.
        tokenizer: of the N items of the recommender, in the same order.
        events: that the recommender was trained on.
        vectors: of the items, floats [N, D], from which the tokenizer was fitted.
        settings: weights and schedule.
        seed: of every draw.

    Raises:
        UserError: no user has two training events, the loss diverges, or no semantic ID is free.
    """
    sequences = events.sequences(recommender.catalog).train_sequences()
    examples = training_examples(sequences).sample(settings.examples, seed)
    if not len(examples):
        raise UserError(
            f"--refine.rounds {settings.rounds}: no user has two different items in the training log; set it to 0."
        )
    x = np.asarray(tokenizer.inputs(tokenizer.item_ids, vectors), np.float32)
    states = hidden_states(recommender, examples)
    quantizer = refined(tokenizer.quantizer, x, states, examples.preferred, settings, seed)
    new = tokenizer.requantized(quantizer, vectors, events, recommender.catalog.frame["title"].to_list())
    changed = new.codes != tokenizer.codes
    log.info(
        "refine: %.1f%% of the items have another semantic ID, %.1f%% another first code",
        100 * changed.any(axis=1).mean(),
        100 * changed[:, 0].mean(),
    )
    return new


@torch.inference_mode()
def hidden_states(recommender: "Recommender", examples: PreferenceExamples) -> np.ndarray:
    """The hidden state after each history, from which the model predicts the first code: float32 [n, H]."""
    ranker = recommender.ranker
    prompts = [ranker.prompt_ids(history) for history in examples.histories]
    states = np.empty((len(prompts), recommender.model.get_output_embeddings().weight.shape[1]), np.float32)
    for rows in ranker.search.batches(prompts):
        states[rows] = ranker.search.prefill([prompts[row] for row in rows]).hidden.float().cpu().numpy()
    return states
