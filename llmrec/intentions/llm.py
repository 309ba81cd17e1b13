"""Intentions and preferences written by a language model, as in LC-Rec (https://arxiv.org/abs/2311.09049).

A prompt contains the text of an item and its training reviews, or the titles in the training history of a user. No
prompt contains data of the validation and test parts.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from llmrec.console import get_logger
from llmrec.data import Catalog, Interactions
from llmrec.intentions.answers import FILE, Answerer, Answers
from llmrec.intentions.intentions import Intentions, IntentionsConfig, hold_out

log = get_logger(__name__)

ITEM_PROMPT = """An item in a shop:

{text}
{reviews}
Think of {count} different people who would be happy with it, each for a reason of their own. Write down what each of \
them might type before knowing the item: what it is for and what it should be like, in everyday words. Leave out its \
name and its brand. One request a line, of 3 to 20 words each; write nothing else."""
REVIEWS_PROMPT = """
What buyers say about it:

{reviews}
"""
USER_PROMPT = """A customer chose these items, one after the other:

{titles}

What does this customer like, and what might they look for next? Answer with {count} different statements in everyday \
words that name no item of the list. One statement a line, of 5 to 30 words each; write nothing else."""

TEXT, REVIEW, TITLE = 1500, 300, 150
"""Maximum number of characters of an item text, of a review and of a title in a prompt."""
REVIEWS = 3
"""Maximum number of reviews of an item in a prompt; the longest ones are used."""
HISTORY = 20
"""Maximum number of items of a training history in a prompt; the latest ones are used."""
LONGEST = 40
"""Maximum number of words in a line of an answer; a longer line is ignored."""

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_BULLET = re.compile(r"^(?:[-*•–]+|\(?\d{1,2}[.):])\s*")


def ask(config: IntentionsConfig, catalog: Catalog, train: Interactions, folder: Path) -> Intentions:
    """Ask the prompts that have no answer in `folder` yet, and turn all answers into `Intentions`.

    Raises:
        UserError: the model cannot be loaded or asked; the answers so far are kept in `folder`.
    """
    items = item_prompts(catalog, train, config.per_item) if config.per_item else {}
    users = user_prompts(catalog, train, config.per_user) if config.per_user else {}
    model = _answerer(config)
    answers = Answers(folder / FILE, model.name)
    try:
        prompts = dict.fromkeys([*items.values(), *users.values()])
        missing = [prompt for prompt in prompts if prompt not in answers]
        log.info("intentions: %d of %d prompts to ask of %s", len(missing), len(prompts), model.name)
        if missing:
            model.answer(missing, answers)
    finally:
        answers.close()
    kept, held = hold_out(_read(items, answers, config.per_item), config.held_out_share, config.seed)
    return Intentions(kept, _read(users, answers, config.per_user), held)


def _answerer(config: IntentionsConfig) -> Answerer:
    if config.local_model is not None:
        from llmrec.intentions.answers import LocalModel

        return LocalModel(config.local_model, config.concurrent)
    from llmrec.intentions.answers import Endpoint

    return Endpoint(config)


def item_prompts(catalog: Catalog, train: Interactions, count: int) -> dict[str, str]:
    """Item id -> the prompt that asks for `count` intentions; it quotes the reviews in `train`, if there are any."""
    reviews = _longest_reviews(train)
    prompts = {}
    for item, text in zip(catalog.ids, catalog.texts(catalog.whole_text), strict=True):
        said = "\n".join(f"- {review[:REVIEW]}" for review in reviews.get(item, []))
        part = REVIEWS_PROMPT.format(reviews=said) if said else ""
        prompts[item] = ITEM_PROMPT.format(text=text[:TEXT], reviews=part, count=count)
    return prompts


def user_prompts(catalog: Catalog, train: Interactions, count: int) -> dict[str, str]:
    """User id -> the prompt that asks for `count` preferences; it lists the items of the training log."""
    titles = dict(zip(catalog.ids, catalog.texts(catalog.whole_text), strict=True))
    titles |= {item: title for item, title in zip(catalog.ids, catalog.texts("{title}"), strict=True) if title}
    histories = train.frame.group_by("user_id", maintain_order=True).agg(pl.col("item_id").tail(HISTORY))
    return {
        user: USER_PROMPT.format(titles="\n".join(f"- {titles[item][:TITLE]}" for item in history), count=count)
        for user, history in histories.iter_rows()
    }


def lines(answer: str, most: int) -> list[str]:
    """The first `most` distinct lines of an answer, without bullets and quotes.

    The text between <think> and </think>, headings (lines that end in ":"), lines of one word and lines of more than
    `LONGEST` words are ignored.
    """
    found: dict[str, str] = {}
    for line in _THOUGHTS.sub("", answer).splitlines():
        text = " ".join(_BULLET.sub("", line.strip()).strip("\"'“”*_` ").split())
        if 1 < len(text.split()) <= LONGEST and not text.endswith(":"):
            found.setdefault(text.lower(), text)
    return [*found.values()][:most]


def _longest_reviews(train: Interactions) -> Mapping[str, list[str]]:
    if "review" not in train.frame.columns:
        return {}
    told = train.frame.select("item_id", pl.col("review").str.replace_all(r"\s+", " ").str.strip_chars())
    told = told.filter(pl.col("review") != "").unique(maintain_order=True)
    best = told.sort(pl.col("review").str.len_chars(), descending=True, maintain_order=True)
    groups = best.group_by("item_id", maintain_order=True).agg(pl.col("review").head(REVIEWS))
    return dict(groups.iter_rows())


def _read(prompts: Mapping[str, str], answers: Answers, most: int) -> dict[str, list[str]]:
    found = {name: lines(answers[prompt], most) for name, prompt in prompts.items()}
    if empty := [name for name, texts in found.items() if not texts]:
        log.info("intentions: %d answers hold none, such as that for %s", len(empty), empty[0])
    return {name: texts for name, texts in found.items() if texts}
