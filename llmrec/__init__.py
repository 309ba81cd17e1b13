"""llmrec: recommend with a language model.

A catalogue and its interactions go in; a Hugging Face checkpoint that recommends only real items comes out.
The public names are imported when they are first used, so that `import llmrec` stays cheap.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

# faiss, torch and scikit-learn each bring an OpenMP; threads that spin while they wait starve one another and all other
# work. A short wait is enough for the next small operation, which would have to wake them otherwise (docs/decoding.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
if not sys.stderr or not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers heeds it too

if TYPE_CHECKING:
    from llmrec.data import Catalog, Interactions, Split
    from llmrec.embed.config import EmbedConfig
    from llmrec.errors import UserError
    from llmrec.evaluation.systems import evaluate
    from llmrec.model.config import BaseConfig
    from llmrec.quantize.tokenizer import ItemTokenizer
    from llmrec.recommender.recommender import Recommender
    from llmrec.recommender.request import Recommendation
    from llmrec.tasks.config import TasksConfig
    from llmrec.train.config import TrainConfig

__version__ = "0.1.0"

_PUBLIC = {
    "BaseConfig": "llmrec.model.config",
    "Catalog": "llmrec.data",
    "EmbedConfig": "llmrec.embed.config",
    "Interactions": "llmrec.data",
    "ItemTokenizer": "llmrec.quantize.tokenizer",
    "Recommendation": "llmrec.recommender.request",
    "Recommender": "llmrec.recommender.recommender",
    "Split": "llmrec.data",
    "TasksConfig": "llmrec.tasks.config",
    "TrainConfig": "llmrec.train.config",
    "UserError": "llmrec.errors",
    "evaluate": "llmrec.evaluation.systems",
}

__all__ = [
    "BaseConfig",
    "Catalog",
    "EmbedConfig",
    "Interactions",
    "ItemTokenizer",
    "Recommendation",
    "Recommender",
    "Split",
    "TasksConfig",
    "TrainConfig",
    "UserError",
    "evaluate",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'llmrec' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
