"""Experts of a shop whose users take the next trained item in a circle."""

import numpy as np

from llmrec.collaborative.config import ExpertsConfig
from llmrec.collaborative.experts import Experts
from llmrec.collaborative.fused import FusedExperts
from llmrec.collaborative.fusion import FusionWeights
from llmrec.data import EvalExamples
from llmrec.decode.rankings.base import ItemFacts


def experts_of(facts: ItemFacts) -> FusedExperts:
    """Fitted on walks of five trained items, with weights by hand."""
    config = ExpertsConfig(models=["smoothed-markov", "text", "popularity"])
    warm, texts = np.flatnonzero(~facts.is_cold), facts.dense.texts.numpy()
    walks = [np.roll(warm, -start)[:5] for start in range(len(warm))]
    validation = EvalExamples(np.arange(len(walks)), [walk[:-1] for walk in walks], np.array([w[-1] for w in walks]))
    fused = FusedExperts(config, Experts(config, texts, validation).fit(walks, len(texts)))
    fused.weights = FusionWeights([1.0, 0.5, 0.1], [0.5, 2.0, 0.0], 0.5, {}, fused.names)
    fused.ranker = None
    return fused
