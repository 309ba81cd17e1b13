"""The tasks of a mixture, over the training part of a log."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from llmrec.data import Catalog
from llmrec.errors import UserError
from llmrec.intentions.intentions import Intentions
from llmrec.tasks.config import TaskName, TasksConfig
from llmrec.tasks.items import CodesToItem, ItemToCodes, SharedCodes, item_texts
from llmrec.tasks.render import Renderer
from llmrec.tasks.requests import Chat, PersonalSearch, Requests, Search
from llmrec.tasks.task import Task
from llmrec.tasks.users import NextText, Preference, Sequential, TitlesToItem

TITLE_TOKENS = 16
"""Tokens of a title in a history told in titles, at most."""


def build_tasks(
    config: TasksConfig,
    catalog: Catalog,
    sequences: Sequence[np.ndarray],
    renderer: Renderer,
    users: Sequence[str] = (),
    intentions: Intentions | None = None,
) -> dict[TaskName, Task]:
    """The tasks of the mixture whose rate is not 0.

    Args:
        config: the rates.
        catalog: the items.
        sequences: per user, int [n], training items in time order; of the validation and test parts nothing.
        renderer: of the same catalogue.
        users: the users' ids, for what `intentions` knows of them.
        intentions: what people want, in words.

    Raises:
        UserError: a task without a prompt file; preferences that nobody told.
    """
    wanted = [name for name, rate in config.mixture.items() if rate > 0]
    for name in wanted:
        if name not in renderer.templates:
            raise UserError(f"--tasks.mixture {name}: no {name}.yaml in --tasks.prompts {config.prompts}.")
    if "preference" in wanted and (intentions is None or not intentions.users):
        raise UserError(
            "--tasks.mixture preference: no user's preferences are known; set --intentions.source, or leave it out."
        )
    most = config.max_text_tokens
    titles = catalog.texts("{title}")

    @cache
    def texts() -> list[list[str]]:
        return item_texts(catalog, renderer, most)

    @cache
    def requests() -> Requests:
        return Requests(catalog, renderer, most, None if intentions is None else intentions.items)

    makers: dict[TaskName, Callable[[], Task]] = {
        "sequential": lambda: Sequential(renderer, sequences, config.supervise == "every-item"),
        "titles-to-item": lambda: TitlesToItem(renderer, sequences, renderer.clip(titles, TITLE_TOKENS)),
        "next-text": lambda: NextText(renderer, sequences, texts()),
        "item-to-codes": lambda: ItemToCodes(renderer, texts()),
        "codes-to-item": lambda: CodesToItem(renderer, texts()),
        "shared-codes": lambda: SharedCodes(renderer, renderer.codes, titles),
        "search": lambda: Search(renderer, requests()),
        "personal-search": lambda: PersonalSearch(renderer, sequences, requests()),
        "chat": lambda: Chat(renderer, sequences, requests()),
        "preference": lambda: Preference(renderer, sequences, users, (intentions or Intentions()).users, most),
    }
    return {name: makers[name]() for name in wanted}
