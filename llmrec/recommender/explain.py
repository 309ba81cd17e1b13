"""Item tokens in words: what an item is, what items that begin alike share, what somebody with a history likes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import GenerationConfig

from llmrec.decode.generate import plain_generation
from llmrec.errors import UserError
from llmrec.model.tokens import ItemVocabulary
from llmrec.quantize.report.report import telling_words
from llmrec.recommender.recommender import Recommender
from llmrec.tasks.config import TaskName

MAX_TOKENS = 64
"""Tokens of an answer in words, at most."""


EXAMPLES = 5
"""Items shown of a prefix."""


NEAR = 3
"""Codes named where a prefix leads to no item."""


@dataclass(frozen=True)
class Explanation:
    """An item as the model tells it.

    Attributes:
        item_id: of the catalogue.
        semantic_id: its item tokens.
        title: its real title.
        says: what the model makes of the tokens alone.
    """

    item_id: str
    semantic_id: str
    title: str
    says: str


@dataclass(frozen=True)
class Description:
    """The items whose semantic IDs begin alike.

    Attributes:
        prefix: the item tokens they begin with.
        items: how many.
        words: those that most tell their titles from the others', best first.
        titles: of the first of them, in catalogue order.
        says: what the model says they share; None if it has no prompt for that.
    """

    prefix: str
    items: int
    words: list[str]
    titles: list[str]
    says: str | None


@dataclass(frozen=True)
class Taste:
    """Somebody with a history as the model tells them.

    Attributes:
        history: titles, oldest first.
        says: what the model makes of the items' tokens alone.
    """

    history: list[str]
    says: str


def explain(recommender: Recommender, item_id: str) -> Explanation:
    """What the model says the item is, from its semantic ID alone, beside the real title.

    Raises:
        UserError: no such item, or a bundle without the prompt `codes-to-item`.
    """
    item = int(recommender.store.lookup.rows([item_id], "--item")[0])
    _require_taught(recommender, "codes-to-item", "--item")
    semantic_id = recommender.ranker.renderer.item_text[item]
    says = say(recommender, "codes-to-item", item=semantic_id)
    return Explanation(item_id, semantic_id, recommender.catalog.row(item_id)["title"], says)


def taste(recommender: Recommender, history: Sequence[str]) -> Taste:
    """What the model says somebody likes who took these items, ids, oldest first.

    Raises:
        UserError: no such item, or a model that was not taught the task `preference`.
    """
    rows = recommender.store.lookup.rows(history, "--history")
    _require_taught(recommender, "preference", "--history")
    says = say(recommender, "preference", history=recommender.ranker.renderer.history(rows))
    return Taste([recommender.catalog.row(item_id)["title"] for item_id in history], says)


def describe(recommender: Recommender, prefix: str) -> Description:
    """What the items whose semantic IDs start with `prefix`, such as `<a_12><b_3>`, have in common.

    Raises:
        UserError: what is not the first item tokens of a semantic ID, or begins none in the catalogue.
    """
    vocabulary = recommender.ranker.renderer.vocabulary
    wanted = _parse(prefix, vocabulary)
    text = vocabulary.text(np.array(wanted))
    below = _below(recommender.item_tokenizer.codes, wanted, vocabulary)
    titles = recommender.catalog.frame["title"].to_list()
    return Description(
        text,
        int(below.sum()),
        telling_words(titles, below.astype(np.int64), 2)[1],
        [titles[row] for row in np.flatnonzero(below)[:EXAMPLES]],
        say(recommender, "shared-codes", prefix=text) if "shared-codes" in recommender.templates else None,
    )


def _require_taught(recommender: Recommender, task: TaskName, flag: str) -> None:
    if task not in recommender.templates:
        raise UserError(f"{flag}: the model was not taught the task {task}; train with it in --tasks.mixture.")


@torch.inference_mode()
def say(recommender: Recommender, task: TaskName, **values: str) -> str:
    """The model's most likely answer in words, token by token, on one line."""
    ranker, tokenizer = recommender.ranker, recommender.tokenizer
    search, renderer = ranker.search, ranker.renderer
    ids = torch.tensor(renderer.encode_prompts([renderer.prompt(task, 0, **values)]), device=search.device)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=min(MAX_TOKENS, ranker.context - ids.shape[1]),
        suppress_tokens=renderer.vocabulary.all_ids.tolist(),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=search.pad_token_id,
    )
    with (
        torch.autocast(search.device.type, search.dtype, enabled=search.dtype != torch.float32),
        plain_generation(search.model),
    ):
        output = search.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return " ".join(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).split())


def _parse(prefix: str, vocabulary: ItemVocabulary) -> list[int]:
    """The codes of a text of item tokens, first level first.

    Raises:
        UserError: other text, a token of another level, or more tokens than a semantic ID has.
    """
    example = vocabulary.text(np.zeros(min(2, len(vocabulary.names)), np.int64))
    tokens = re.findall(r"<[^<>\s]*>", prefix)
    if not tokens or "".join(tokens) != "".join(prefix.split()):
        raise UserError(f"--prefix {prefix!r}: expected the first item tokens of a semantic ID, such as {example!r}.")
    if len(tokens) > len(vocabulary.names):
        raise UserError(f"--prefix {prefix!r}: {len(tokens)} tokens, but a semantic ID has {len(vocabulary.names)}.")
    codes = []
    for level, (token, names) in enumerate(zip(tokens, vocabulary.names, strict=False), start=1):
        if token not in names:
            raise UserError(
                f"--prefix {prefix!r}: {token} is no item token of level {level}; these are {names[0]} to {names[-1]}."
            )
        codes.append(names.index(token))
    return codes


def _below(codes: np.ndarray, prefix: Sequence[int], vocabulary: ItemVocabulary) -> np.ndarray:
    """Which rows of `codes` [N, L] begin with `prefix`, bool [N], at least one.

    Raises:
        UserError: none; it names the codes nearest by number of those that lead to items.
    """
    below = np.ones(len(codes), dtype=bool)
    for level, code in enumerate(prefix):
        left = below & (codes[:, level] == code)
        if not left.any():
            used = np.unique(codes[below, level])
            near = np.sort(used[np.argsort(np.abs(used - code), kind="stable")[:NEAR]])
            place = f"after {vocabulary.text(np.array(prefix[:level]))}" if level else "at the start"
            raise UserError(
                f"--prefix {vocabulary.text(np.array(prefix))}: no item begins so; codes in use {place}: {len(used)}, "
                f"nearest {', '.join(vocabulary.names[level][number] for number in near)}."
            )
        below = left
    return below
