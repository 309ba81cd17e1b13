"""Tasks that answer plain words: a request alone, after a history, or as the next turn of a conversation."""

from collections.abc import Mapping, Sequence

import numpy as np

from llmrec.data import Catalog
from llmrec.tasks.config import TaskName
from llmrec.tasks.render import Example, Renderer
from llmrec.tasks.task import Prompted


class Requests:
    """What a customer might say to get an item.

    An intention that the item meets; a short field (its title, brand, category, colour), all of these together, or some
    words of its whole text in their order, as people write who recall a few things; always in the form that
    `Renderer.request` gives.

    Args:
        catalog: the items.
        renderer: cleans and cuts text.
        max_tokens: of a request at most.
        intentions: item id -> texts, for some items.
    """

    SHORT = 12  # words of a field that may be asked for as it is: not a description
    SOME = (2, 8)  # words drawn from the whole text, at least and at most

    def __init__(
        self,
        catalog: Catalog,
        renderer: Renderer,
        max_tokens: int,
        intentions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        fields = [renderer.clip(catalog.texts("{" + field + "}"), max_tokens) for field in catalog.fields]
        told = [[renderer.request(text) for text in texts if text] for texts in zip(*fields, strict=True)]
        self.ways = [[text for text in texts if len(text.split()) <= self.SHORT] for texts in told]
        for texts in self.ways:
            if len(texts) > 1:
                texts.append(" ".join(texts))
        self.words = [" ".join(texts).split() for texts in told]
        wanted = [(intentions or {}).get(item, ()) for item in catalog.ids]
        clipped = iter(renderer.clip([text for texts in wanted for text in texts], max_tokens))
        self.intentions = [[renderer.request(next(clipped)) for _ in texts] for texts in wanted]

    def draw(self, item: int, rng: np.random.Generator) -> str:
        """One request for `item`, which has text; every second one an intention if there are any."""
        ways, words, intentions = self.ways[item], self.words[item], self.intentions[item]
        if intentions and rng.random() < 0.5:
            return intentions[int(rng.integers(len(intentions)))]
        if ways and rng.random() < 0.5:
            return ways[int(rng.integers(len(ways)))]
        count = min(len(words), int(rng.integers(self.SOME[0], self.SOME[1] + 1)))
        return " ".join(words[i] for i in sorted(rng.choice(len(words), count, replace=False)))


class Search(Prompted):
    """A request in plain words -> an item that fits it; rows are items that have text."""

    name: TaskName = "search"

    def __init__(self, renderer: Renderer, requests: Requests) -> None:
        super().__init__(renderer)
        self.requests = requests
        self.items = np.array([item for item, words in enumerate(requests.words) if words], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.items)

    def length(self, row: int) -> int:
        return 2 * self.overhead + self.levels

    def example(self, row: int, rng: np.random.Generator) -> Example:
        item = int(self.items[row])
        query = self.requests.draw(item, rng)
        return Example(self.prompt(rng, query=query), self.renderer.item_text[item], ends=False)


class PersonalSearch(Prompted):
    """A history and a request that its next item fits -> that item; rows are users, the target is random."""

    name: TaskName = "personal-search"

    def __init__(self, renderer: Renderer, sequences: Sequence[np.ndarray], requests: Requests) -> None:
        super().__init__(renderer)
        self.requests = requests
        kept = [(s, [i for i in range(1, len(s)) if requests.words[s[i]]]) for s in sequences if len(s) > 1]
        self.sequences = [(sequence, targets) for sequence, targets in kept if targets]

    def __len__(self) -> int:
        return len(self.sequences)

    def length(self, row: int) -> int:
        shown = min(len(self.sequences[row][0]), self.renderer.max_history)
        return 2 * self.overhead + shown * self.levels

    def example(self, row: int, rng: np.random.Generator) -> Example:
        sequence, targets = self.sequences[row]
        position = targets[int(rng.integers(len(targets)))]
        query = self.requests.draw(int(sequence[position]), rng)
        prompt = self.prompt(rng, history=self.renderer.history(sequence[:position]), query=query)
        return Example(prompt, self.renderer.item_text[sequence[position]], ends=False)


class Chat(PersonalSearch):
    """A conversation: a history, an item that was offered, another wish -> an item for that wish.

    The item offered is the one that the user took before the target.
    """

    name: TaskName = "chat"

    def __init__(self, renderer: Renderer, sequences: Sequence[np.ndarray], requests: Requests) -> None:
        super().__init__(renderer, sequences, requests)
        later = [(sequence, [at for at in targets if at > 1]) for sequence, targets in self.sequences]
        self.sequences = [(sequence, targets) for sequence, targets in later if targets]

    def example(self, row: int, rng: np.random.Generator) -> Example:
        sequence, targets = self.sequences[row]
        position = targets[int(rng.integers(len(targets)))]
        prompt = self.prompt(
            rng,
            history=self.renderer.history(sequence[: position - 1]),
            item=self.renderer.item_text[sequence[position - 1]],
            query=self.requests.draw(int(sequence[position]), rng),
        )
        return Example(prompt, self.renderer.item_text[sequence[position]], ends=False)
