"""A recommender that is trained further: the model of a bundle, for a catalogue that may have changed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from llmrec.data import Catalog
from llmrec.model.base import weight_dtype
from llmrec.model.config import BaseConfig
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.recommender import Recommender
from llmrec.recommender.store import ItemStore
from llmrec.tasks.config import TasksConfig, load_templates


def further(
    folder: Path,
    item_tokenizer: ItemTokenizer,
    catalog: Catalog,
    config: BaseConfig,
    frozen: bool,
    tasks: TasksConfig,
) -> Recommender:
    """The recommender of a bundle, ready for `fit` on a new log: with its weights, item tokens and dense head.

    Args:
        folder: the bundle.
        item_tokenizer: of the items of `catalog`, with the levels of the bundle.
        catalog: the N items. Those that the bundle knows keep their numbers of training events.
        config: settings of the base model.
        frozen: whether `fit` will leave the weights as they are (`TrainConfig.method` lora).
        tasks: what its prompts will be like.

    Raises:
        UserError: the bundle or the prompts can't be loaded.
    """
    recommender = Recommender.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    adapted = hasattr(recommender.model, "peft_config")
    if not adapted and weight_dtype(config, frozen) == torch.float32:
        recommender.model.float()
    if not config.chat_template:
        recommender.tokenizer.chat_template = None
    old = recommender.store
    counts = dict(zip(old.catalog.ids, old.train_counts.tolist(), strict=True))
    new = ItemStore.untrained(catalog, item_tokenizer)
    train_counts = np.array([counts.get(item, 0) for item in catalog.ids], np.int64)
    dense = old.dense
    if dense is not None and dense.own is not None:
        row = {item: i for i, item in enumerate(old.catalog.ids)}
        known = [(i, row[item]) for i, item in enumerate(catalog.ids) if item in row]
        own = dense.own.new_zeros(len(catalog), dense.own.shape[1])
        own[[i for i, _ in known]] = dense.own[[i for _, i in known]]
        dense = replace(dense, own=own)
    recommender.store = replace(new, train_counts=train_counts, dense=dense)
    recommender.templates = load_templates(tasks.prompts)
    recommender.max_history, recommender.title_tokens = tasks.max_history, tasks.title_tokens
    recommender.fusion_weights, recommender.preference = None, "none"
    return recommender
