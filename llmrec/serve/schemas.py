"""The bodies of HTTP requests and answers, for validation and for OpenAPI. A recommendation's is `Request` itself."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from llmrec.recommender.request import Request
from llmrec.recommender.store import IfExists
from llmrec.serve.why import PartKind

FIELDS = {field.name for field in fields(Request)}


def _require_known(value: Any) -> Any:
    """Refuse many unknown fields at once: pydantic would make an error of each."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict) and len(each) > len(FIELDS):
            name = next(name for name in each if name not in FIELDS)
            raise ValueError(f"unknown field {name!r:.80}; known are {', '.join(sorted(FIELDS))}")
    return value


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "one"


Asked = Annotated[
    Annotated[Request, Tag("one")] | Annotated[list[Request], Tag("list"), Field(min_length=1)],
    Discriminator(_kind),
    BeforeValidator(_require_known),
]
"""One request or a list."""

EXAMPLES: dict[str, Any] = {
    "history": {"summary": "After a history", "value": {"history": ["P00001", "P00002"], "k": 5}},
    "words": {
        "summary": "For a request in words, with a filter",
        "value": {"prompt": "something to grind coffee", "where": {"categories": "Coffee Grinders"}, "k": 5},
    },
    "list": {"summary": "Several at once", "value": [{"history": ["P00001"]}, {"history": ["P00007"], "k": 3}]},
}
"""Of `Asked`."""


class Body(BaseModel):
    """Refuses unknown fields and takes no text for a number."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Recommended(BaseModel):
    """One recommended item."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    rank: int
    """From 1."""
    item_id: str
    score: float
    """Log-probability, or what else the ranking of this server sorts by."""
    title: str
    fields: dict[str, str]
    """The item's other texts."""
    semantic_id: str
    """The item tokens that the model knows it by."""
    training_events: int
    """0 for a cold item, which the model knows by its text only."""


class Answered(BaseModel):
    """The answer to one request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    items: list[Recommended]
    """Best first."""
    reason: str | None
    """Why there are fewer items than asked for; null if there are as many."""
    notes: list[str]
    """What else happened to the request, such as items of the history that the catalogue does not have."""
    seconds: float
    """Time from the request to its answer."""


class Explain(Body):
    """A request, and the item of its answer to explain."""

    item_id: str
    request: Annotated[Request, BeforeValidator(_require_known)]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"item_id": "P00003", "request": {"history": ["P00001"], "prompt": "to grind coffee"}}]
        }
    )


class Part(BaseModel):
    """A part of a request, and the item's score and rank without it."""

    kind: PartKind
    place: int
    """Place in the history or among the words of the prompt, from 0; 0 for the whole prompt."""
    text: str
    """The item's id, the word, or the prompt."""
    score: float
    """Score of the explained item if this part is left out."""
    rank: int | None
    """Its rank then; null if it is not among the answers."""
    change: float
    """What the part brings: how much further the item's score is above those of other items, a sample of the catalogue,
    with it than without it."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Explained(BaseModel):
    """What each part of a request does to the score of an item."""

    item_id: str
    ranking: str
    """Whose scores these are."""
    score: float
    """With all parts."""
    rank: int | None
    """With all parts; null if the item is not among the answers."""
    parts: list[Part]
    """The whole prompt, the items of the history, newest first, then the words of the prompt."""
    notes: list[str]

    model_config = ConfigDict(use_attribute_docstrings=True)


class NewItem(Body):
    """An item to add."""

    item_id: str
    title: str = ""
    fields: dict[str, str] = {}
    """Texts of the fields of the catalogue; others are left out."""


class NewItems(Body):
    """Items to add, or to give another text."""

    items: Annotated[list[NewItem], Field(min_length=1)]
    vectors: list[list[float]] | None = None
    """A vector per item, made as those of the catalogue were; null: this server's encoder makes them of the texts."""
    if_exists: IfExists = "refuse"
    """For an item that the catalogue has already: refuse the whole change, or update its text and keep its codes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"items": [{"item_id": "new-1", "title": "Burr mill", "fields": {"brand": "Olmetta"}}]}]
        }
    )


class ItemsAdded(BaseModel):
    """What was added. It is on the disk, and later requests see it."""

    added: int
    updated: int
    items: int
    """Number of items of the catalogue."""
    semantic_ids: dict[str, str]
    """Item id -> the item tokens that the model knows it by, for the added items."""
    notes: list[str]
    """What was left out."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ItemRemoved(BaseModel):
    """What was removed."""

    removed: int
    items: int
    """Number of items of the catalogue."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Item(BaseModel):
    """An item of the catalogue."""

    item_id: str
    title: str
    fields: dict[str, str]
    semantic_id: str
    """The item tokens that the model knows it by."""
    training_events: int
    """0 for a cold item, which the model knows by its text only."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Items(BaseModel):
    """A page of items."""

    items: list[Item]
    total: int
    """Number of items that match."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ModelInfo(BaseModel):
    """What this server serves."""

    llmrec: str
    """Version of llmrec."""
    base_model: str
    items: int
    cold_items: int
    fields: list[str]
    """Fields of the catalogue beside the title."""
    level_sizes: list[int]
    """Number of codes of each level of a semantic ID."""
    max_history: int
    """Largest number of items of a history that the model sees; the newest ones count."""
    ranking: str
    """How this server ranks."""
    rankings: list[str]
    """What a request can choose as `ranking`."""
    scoring: str
    beams: int
    can_change_items: bool
    limits: Mapping[str, float]
    """Largest sizes of requests."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Status(BaseModel):
    """Whether the server lives, or is ready."""

    status: Literal["ok"]
    items: int | None = None


class ErrorContent(BaseModel):
    """What is wrong."""

    code: str
    """For programs."""
    message: str
    """For people."""
    field: str | None
    """The field of the request that is to blame."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ErrorBody(BaseModel):
    """The form of all errors."""

    error: ErrorContent
    request_id: str | None
    """As in the header X-Request-ID and in the server's log."""

    model_config = ConfigDict(use_attribute_docstrings=True)
