"""The training tasks. Each task turns a row (a user, an item or a prefix of codes) into one training example."""

from collections.abc import Mapping, Sequence

import numpy as np

from llmrec.data import Catalog
from llmrec.data.sequences import first_target
from llmrec.quantize.report.report import telling_words
from llmrec.tasks.config import TaskName
from llmrec.tasks.render import Example, Prompted, Renderer


class Sequential(Prompted):
    """A user's history -> the next item.

    Each item of a sequence but the first is a target in exactly one row. With `every_item`, a row is a window of at
    most max_history + 1 items, and all of them but the first are targets. The windows of a user end at the newest item
    and at every max_history items before it, so only the oldest window can be shorter. Example with 9 items and
    max_history 3; the targets are in brackets:

        0 [1 2]   2 [3 4 5]   5 [6 7 8]

    Where prompts begin with the user's tokens, these must not tell of a target. So an example of a window draws the
    first of its targets, the tokens are made of all events before it, and the items before it are no targets.

    Args:
        renderer: renders the prompts.
        sequences: per user, int [n], training items in time order; users with fewer than 2 have no row.
        every_item: if true, one row per window. If false, one row per target, with the max_history items before it.
    """

    name: TaskName = "sequential"

    def __init__(self, renderer: Renderer, sequences: Sequence[np.ndarray], every_item: bool) -> None:
        super().__init__(renderer)
        self.sequences = [sequence for sequence in sequences if len(sequence) > 1]
        self.first_target = first_target(self.sequences)  # users without a target change no number
        self.every_item = every_item
        lengths = np.array([len(sequence) for sequence in self.sequences], dtype=np.int64)
        targets = renderer.max_history if every_item else 1  # of a row
        counts = -(-(lengths - 1) // targets)
        self.rows = np.repeat(np.arange(len(lengths)), counts)
        later = np.cumsum(counts)[self.rows] - 1 - np.arange(len(self.rows))  # rows of the same user after this one
        self.ends = lengths[self.rows] - later * targets

    def __len__(self) -> int:
        return len(self.rows)

    def _shown(self, row: int) -> int:
        """The number of items in the example, including the last target."""
        return int(min(self.ends[row] - 1, self.renderer.max_history)) + 1

    def length(self, row: int) -> int:
        return self.overhead + self._shown(row) * self.per_item

    def example(self, row: int, rng: np.random.Generator) -> Example:
        end, sequence = int(self.ends[row]), self.sequences[self.rows[row]]
        begin = end - self._shown(row)
        first = begin + 1 if self.every_item else end - 1  # of the targets
        if self.every_item and self.renderer.users is not None:
            first = int(rng.integers(first, end))
        prompt = self.prompt(rng, history=self.renderer.history(sequence[: end - 1], sequence[:first]))
        learnt, answer = tuple(sequence[first:end].tolist()), self.renderer.item_text[sequence[end - 1]]
        last = int(self.first_target[self.rows[row]]) + end - 1
        events = tuple(range(last - len(learnt), last))
        return Example(prompt, answer, False, self.every_item, learnt, events, first - begin if self.every_item else 1)


class _EachUser(Prompted):
    """Rows are users with at least two training items; the target is a random item after the first."""

    def __init__(self, renderer: Renderer, sequences: Sequence[np.ndarray]) -> None:
        super().__init__(renderer)
        self.sequences = [sequence for sequence in sequences if len(sequence) > 1]

    def __len__(self) -> int:
        return len(self.sequences)

    def length(self, row: int) -> int:
        return self.overhead + min(len(self.sequences[row]), self.renderer.max_history) * self.per_item


class TitlesToItem(_EachUser):
    """A history as a list of titles -> the semantic ID of the next item.

    The prompt shows the most recent titles that together have at most max_history * L tokens, the length of the longest
    history of codes.

    Args:
        renderer: renders the prompts.
        sequences: per user, int [n], training items in time order.
        titles: of the N items, clipped. The history skips items without a title.
    """

    name: TaskName = "titles-to-item"

    def __init__(self, renderer: Renderer, sequences: Sequence[np.ndarray], titles: Sequence[str]) -> None:
        super().__init__(renderer, sequences)
        encoded = renderer.tokenizer(list(titles), add_special_tokens=False)["input_ids"] if titles else []
        self.titles = titles
        self.cost = np.array([len(tokens) + 1 for tokens in encoded])  # with the separator
        self.room = renderer.max_history * self.levels
        self.sequences = [s for s in self.sequences if any(titles[item] for item in s[:-1])]

    def length(self, row: int) -> int:
        return self.overhead + min(int(self.cost[self.sequences[row]].sum()), self.room)

    def told(self, history: np.ndarray) -> str:
        """The most recent titles of `history` that fit, oldest first; the last title is always shown."""
        named = [item for item in history.tolist() if self.titles[item]]
        fits = np.cumsum(self.cost[named[::-1]]) <= self.room
        return "; ".join(self.titles[item] for item in named[len(named) - max(1, int(fits.sum())) :])

    def example(self, row: int, rng: np.random.Generator) -> Example:
        sequence = self.sequences[row]
        first = next(at for at, item in enumerate(sequence) if self.titles[item])
        target = int(rng.integers(first + 1, len(sequence)))
        prompt = self.prompt(rng, titles=self.told(sequence[:target]))
        return self.asking_for(prompt, int(sequence[target]))


class NextText(_EachUser):
    """A history in codes -> a text of the next item.

    Args:
        renderer: renders the prompts.
        sequences: per user, int [n], training items in time order.
        texts: per item, its texts as `item_texts` returns them; the answer is one of them.
    """

    name: TaskName = "next-text"

    def __init__(self, renderer: Renderer, sequences: Sequence[np.ndarray], texts: Sequence[list[str]]) -> None:
        super().__init__(renderer, sequences)
        self.texts = texts
        kept = [(s, [at for at in range(1, len(s)) if texts[s[at]]]) for s in self.sequences]
        self.sequences = [sequence for sequence, targets in kept if targets]
        self.targets = [targets for _, targets in kept if targets]

    def example(self, row: int, rng: np.random.Generator) -> Example:
        sequence, targets = self.sequences[row], self.targets[row]
        target = targets[int(rng.integers(len(targets)))]
        ways = self.texts[sequence[target]]
        prompt = self.prompt(rng, history=self.renderer.history(sequence[:target]))
        return Example(prompt, ways[int(rng.integers(len(ways)))], ends=True)


class Preference(Prompted):
    """A user's training history -> a text that says what the user likes. Rows are the users with such texts.

    Args:
        renderer: renders the prompts.
        sequences: per user, int [n], training items in time order.
        users: the users' ids, in the same order.
        preferences: user id -> texts.
        max_tokens: a text is cut to this many tokens.
    """

    name: TaskName = "preference"

    def __init__(
        self,
        renderer: Renderer,
        sequences: Sequence[np.ndarray],
        users: Sequence[str],
        preferences: Mapping[str, Sequence[str]],
        max_tokens: int,
    ) -> None:
        super().__init__(renderer)
        told = [renderer.clip(preferences.get(user, ()), max_tokens) for user in users]
        kept = [(s, [text for text in texts if text]) for s, texts in zip(sequences, told, strict=True) if len(s)]
        self.rows = [(sequence, texts) for sequence, texts in kept if texts]

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, row: int) -> int:
        sequence, texts = self.rows[row]
        shown = min(len(sequence), self.renderer.max_history)
        return self.overhead + shown * self.per_item + max(map(len, texts)) // 4

    def example(self, row: int, rng: np.random.Generator) -> Example:
        sequence, texts = self.rows[row]
        prompt = self.prompt(rng, history=self.renderer.history(sequence))
        return Example(prompt, texts[int(rng.integers(len(texts)))], ends=True)


class Requests:
    """Requests in words that a customer may make for an item.

    A request for an item is one of:

    - an intention that the item meets;
    - one of its short fields (title, brand, category, colour; a number such as a price is none), or all of them
      together;
    - some words of its whole text, in their order, like a query of a person who remembers a few facts.

    `Renderer.request` cleans each of them.

    Args:
        catalog: the items.
        renderer: cleans and cuts texts.
        max_tokens: a field or an intention is cut to this many tokens.
        intentions: item id -> texts; items may be missing.
    """

    SHORT = 12  # a field of at most this many words can be a request as a whole; a description is longer
    SOME = (2, 8)  # fewest and most words drawn from the whole text

    def __init__(
        self,
        catalog: Catalog,
        renderer: Renderer,
        max_tokens: int,
        intentions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        fields = [renderer.clip(catalog.texts("{" + field + "}"), max_tokens) for field in catalog.fields]
        told = [[renderer.request(text) for text in texts if text] for texts in zip(*fields, strict=True)]
        self.ways = [
            [text for text in texts if len(text.split()) <= self.SHORT and any(map(str.isalpha, text))]
            for texts in told
        ]
        for texts in self.ways:
            if len(texts) > 1:
                texts.append(" ".join(texts))
        self.words = [" ".join(texts).split() for texts in told]
        wanted = [(intentions or {}).get(item, ()) for item in catalog.ids]
        clipped = iter(renderer.clip([text for texts in wanted for text in texts], max_tokens))
        self.intentions = [[renderer.request(next(clipped)) for _ in texts] for texts in wanted]

    def draw(self, item: int, rng: np.random.Generator) -> str:
        """A random request for `item`, which has text: with probability 0.5 an intention, if it has any."""
        ways, words, intentions = self.ways[item], self.words[item], self.intentions[item]
        if intentions and rng.random() < 0.5:
            return intentions[int(rng.integers(len(intentions)))]
        if ways and rng.random() < 0.5:
            return ways[int(rng.integers(len(ways)))]
        count = min(len(words), int(rng.integers(self.SOME[0], self.SOME[1] + 1)))
        return " ".join(words[i] for i in sorted(rng.choice(len(words), count, replace=False)))


class Search(Prompted):
    """A request in plain words -> an item that fits it. Rows are the items with text."""

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
        return self.asking_for(self.prompt(rng, query=query), item)


class PersonalSearch(Prompted):
    """A history and a request for the next item -> that item. Rows are users; the target is a random item with text."""

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
        return 2 * self.overhead + shown * self.per_item

    def example(self, row: int, rng: np.random.Generator) -> Example:
        sequence, targets = self.sequences[row]
        position = targets[int(rng.integers(len(targets)))]
        query = self.requests.draw(int(sequence[position]), rng)
        prompt = self.prompt(rng, history=self.renderer.history(sequence[:position]), query=query)
        return self.asking_for(prompt, int(sequence[position]))


class Chat(PersonalSearch):
    """A conversation: a history, an offered item and a new request -> an item that fits the new request.

    The offered item is the item just before the target in the user's training items.
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
        return self.asking_for(prompt, int(sequence[position]))


def item_texts(catalog: Catalog, renderer: Renderer, max_tokens: int) -> list[list[str]]:
    """Per item, its different texts: the title, the description, and all fields together; empty ones are left out."""
    templates = ["{title}", *(["{description}"] if "description" in catalog.fields else []), catalog.whole_text]
    told = [renderer.clip(catalog.texts(template), max_tokens) for template in templates]
    return [list(dict.fromkeys(text for text in ways if text)) for ways in zip(*told, strict=True)]


class _ItemText(Prompted):
    """Rows are the items with text; `texts[i]` lists the texts of item i."""

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
        return self.asking_for(self.prompt(rng, text=self.say(item, rng)), item)


class CodesToItem(_ItemText):
    """An item's semantic ID -> its text."""

    name: TaskName = "codes-to-item"

    def example(self, row: int, rng: np.random.Generator) -> Example:
        item = int(self.items[row])
        return Example(self.prompt(rng, item=self.renderer.item_text[item]), self.say(item, rng), ends=True)


class SharedCodes(Prompted):
    """A prefix of codes -> the words that are typical of its items' titles. Rows are prefixes shared by several items.

    Args:
        renderer: renders the prompts.
        codes: int [N, L], semantic IDs.
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
