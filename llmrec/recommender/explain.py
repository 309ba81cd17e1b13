"""The model describes in words an item, the items below a prefix, or the taste behind a history, from item tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import GenerationConfig

from llmrec.decode.generate import answer_start, plain_generation
from llmrec.errors import UserError
from llmrec.model.tokens import ItemVocabulary
from llmrec.quantize.report.report import telling_words
from llmrec.recommender.recommender import Recommender
from llmrec.tasks.config import TaskName

MAX_TOKENS = 64
"""Largest number of tokens of an answer in words."""


EXAMPLES = 5
"""Number of example items that `describe` shows for a prefix."""


NEAR = 3
"""Number of codes in use that the error names if no item has a prefix."""


@dataclass(frozen=True)
class Explanation:
    """The model's description of an item.

    Attributes:
        item_id: ID of the item in the catalogue.
        semantic_id: its item tokens.
        title: its real title.
        says: the model's description; the model sees only the item tokens.
    """

    item_id: str
    semantic_id: str
    title: str
    says: str


@dataclass(frozen=True)
class Description:
    """The items whose semantic IDs begin with the same prefix.

    Attributes:
        prefix: the first item tokens of their semantic IDs.
        items: number of these items.
        words: the words that best distinguish their titles from all titles, best first.
        titles: titles of the first `EXAMPLES` items, in catalogue order.
        says: the model's answer to the prompt `shared-codes`; None if the bundle lacks that prompt.
    """

    prefix: str
    items: int
    words: list[str]
    titles: list[str]
    says: str | None


@dataclass(frozen=True)
class Taste:
    """The model's description of a user with a history.

    Attributes:
        history: titles of the items, oldest first.
        says: the model's description; the model sees only the item tokens.
    """

    history: list[str]
    says: str


def explain(recommender: Recommender, item_id: str) -> Explanation:
    """Ask the model to describe an item from its semantic ID alone.

    Returns:
        The model's description and the real title.

    Raises:
        UserError: the catalogue has no such item, or the bundle lacks the prompt `codes-to-item`.
    """
    item = int(recommender.store.lookup.rows([item_id], "--item")[0])
    _require_taught(recommender, "codes-to-item", "--item")
    semantic_id = recommender.ranker.renderer.item_text[item]
    says = say(recommender, "codes-to-item", item=semantic_id)
    return Explanation(item_id, semantic_id, recommender.catalog.row(item_id)["title"], says)


def taste(recommender: Recommender, history: Sequence[str]) -> Taste:
    """Ask the model what a user with this history likes; `history` holds item ids, oldest first.

    Raises:
        UserError: the catalogue has no such item, or the model was not trained on the task `preference`.
    """
    rows = recommender.store.lookup.rows(history, "--history")
    _require_taught(recommender, "preference", "--history")
    says = say(recommender, "preference", history=recommender.ranker.renderer.history(rows))
    return Taste([recommender.catalog.row(item_id)["title"] for item_id in history], says)


def describe(recommender: Recommender, prefix: str) -> Description:
    """Describe what the items share whose semantic IDs start with `prefix`, such as `<a_12><b_3>`.

    Raises:
        UserError: `prefix` is not the first item tokens of a semantic ID, or no item has it.
    """
    vocabulary = recommender.ranker.renderer.vocabulary
    wanted = parse_prefix(prefix, vocabulary)
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
    """The model's answer in words (greedy decoding, without tokens of items and users), on one line."""
    ranker, tokenizer = recommender.ranker, recommender.tokenizer
    search, renderer = ranker.search, ranker.renderer
    ids = torch.tensor(renderer.encode_prompts([renderer.prompt(task, 0, **values)]), device=search.device)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=min(MAX_TOKENS, ranker.context - ids.shape[1]),
        suppress_tokens=renderer.new_ids.tolist(),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=search.pad_token_id,
    )
    with (
        torch.autocast(search.device.type, search.dtype, enabled=search.dtype != torch.float32),
        plain_generation(search.model),
    ):
        output = search.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    answer = output[0, answer_start(search.model, ids) :]
    return " ".join(tokenizer.decode(answer, skip_special_tokens=True).split())


def parse_prefix(prefix: str, vocabulary: ItemVocabulary) -> list[int]:
    """The codes of a text that consists of item tokens, first level first.

    Raises:
        UserError: the text holds something else, a token is not of its level, or there are more tokens than levels.
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
    """Which rows of `codes` [N, L] begin with `prefix`, bool [N]; at least one does.

    Raises:
        UserError: no row does. The message names the codes in use that are numerically nearest to the first wrong code.
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
