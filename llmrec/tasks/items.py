"""Tasks about single items: what their codes mean in words, and the other way round."""

from collections.abc import Sequence

import numpy as np

from llmrec.data import Catalog
from llmrec.quantize.report.report import telling_words
from llmrec.tasks.config import TaskName
from llmrec.tasks.render import Example, Prompted, Renderer


def item_texts(catalog: Catalog, renderer: Renderer, max_tokens: int) -> list[list[str]]:
    """Per item, the ways its text is told: the title, the description alone, and all its fields together."""
    templates = ["{title}", *(["{description}"] if "description" in catalog.fields else []), catalog.whole_text]
    told = [renderer.clip(catalog.texts(template), max_tokens) for template in templates]
    return [list(dict.fromkeys(text for text in ways if text)) for ways in zip(*told, strict=True)]


class _ItemText(Prompted):
    """Rows are items that have text; `texts[i]` is a list of ways to say item i."""

    def __init__(self, renderer: Renderer, texts: Sequence[list[str]]) -> None:
        super().__init__(renderer)
        self.texts = texts
        self.items = np.array([item for item, ways in enumerate(texts) if ways], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.items)

    def length(self, row: int) -> int:
        ways = self.texts[self.items[row]]
        return self.overhead + self.levels + max(map(len, ways)) // 4

    def say(self, item: int, rng: np.random.Generator) -> str:
        ways = self.texts[item]
        return ways[int(rng.integers(len(ways)))]


class ItemToCodes(_ItemText):
    """An item's text -> its semantic ID."""

    name: TaskName = "item-to-codes"

    def example(self, row: int, rng: np.random.Generator) -> Example:
        item = int(self.items[row])
        return Example(self.prompt(rng, text=self.say(item, rng)), self.renderer.item_text[item], ends=False)


class CodesToItem(_ItemText):
    """An item's semantic ID -> its text."""

    name: TaskName = "codes-to-item"

    def example(self, row: int, rng: np.random.Generator) -> Example:
        item = int(self.items[row])
        return Example(self.prompt(rng, item=self.renderer.item_text[item]), self.say(item, rng), ends=True)


class SharedCodes(Prompted):
    """The first codes of several items -> the words that set their titles apart; rows are such prefixes.

    Args:
        codes: int [N, L].
        titles: of the N items.
    """

    name: TaskName = "shared-codes"

    def __init__(self, renderer: Renderer, codes: np.ndarray, titles: Sequence[str]) -> None:
        super().__init__(renderer)
        self.rows: list[tuple[str, str]] = []
        for length in range(1, codes.shape[1]):
            prefixes, group, sizes = np.unique(codes[:, :length], axis=0, return_inverse=True, return_counts=True)
            words = telling_words(titles, group.reshape(-1), len(prefixes))
            self.rows += [
                (renderer.vocabulary.text(prefix), renderer.clean(", ".join(telling)))
                for prefix, telling, size in zip(prefixes, words, sizes, strict=True)
                if size > 1 and telling
            ]

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, row: int) -> int:
        return self.overhead + self.levels + len(self.rows[row][1]) // 4

    def example(self, row: int, rng: np.random.Generator) -> Example:
        prefix, words = self.rows[row]
        return Example(self.prompt(rng, prefix=prefix), words, ends=True)
