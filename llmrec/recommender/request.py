"""One request to a recommender, and what comes back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from llmrec.checks import check_fields
from llmrec.errors import UserError, with_parameters


@dataclass(frozen=True)
class Request:
    """What is asked, in Python, over HTTP and on the command line alike: a history, a wish in plain words, or both.

    Raises:
        UserError: a field of another type, k, phrasings or a limit below 1, or neither history nor prompt.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # over HTTP an unknown field is a mistake

    history: Sequence[str] = ()
    """Item ids, oldest first."""
    prompt: str | None = None
    """What is asked for, in plain words."""
    k: int = 10
    """Answers. Fewer come only if fewer items are allowed; the answer's `reason` then says why."""
    exclude: Sequence[str] = ()
    """Item ids that must not come out."""
    include_seen: bool = False
    """Let the items of the history come out too."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Field -> value. Only items whose field is that value, or has it among its comma-separated parts, in upper or
    lower case."""
    allow: Sequence[str] | None = None
    """Item ids; only these may come out."""
    offsets: Mapping[str, float] | Sequence[float] | None = None
    """Numbers to add to the log-probabilities: by item id (0 for other items), or float [N] by row of the catalogue."""
    max_per_field: Mapping[str, int] = field(default_factory=dict)
    """Field -> m. At most m answers with the same text in that field; items without text there are not counted."""
    max_per_code: int | None = None
    """Answers with the same first code at most."""
    phrasings: int = 1
    """Ask in so many phrasings, and rank by the mean log-probability over them."""
    exact: bool = False
    """The provably best k by the probability of their codes, for more forward passes; other rankings are left out."""

    def __post_init__(self) -> None:
        for name in ("history", "exclude", "allow"):
            ids = getattr(self, name)
            if isinstance(ids, str):
                raise UserError(f"--{name} {ids!r:.80}: found one text, expected a list of item ids.")
            object.__setattr__(self, name, None if ids is None and name == "allow" else list(ids or ()))
        for name in ("where", "max_per_field"):
            object.__setattr__(self, name, dict(getattr(self, name) or {}))
        check_fields(self, "", at_least={1: ("k", "max_per_code", "phrasings")})
        for name, most in self.max_per_field.items():
            if not isinstance(most, int) or most < 1:
                raise UserError(f"--max-per {name}={most}: expected at least 1.")
        if not self.history and self.prompt is None:
            raise UserError("--history and --prompt are both missing; give item ids, a text, or both.")


@dataclass(frozen=True)
class Recommendation:
    """One answer.

    Attributes:
        rank: from 1.
        item_id: of the catalogue.
        score: log-probability of the item's semantic ID given the request, plus the item's offset.
        title: of the item.
        fields: the item's other text fields.
    """

    rank: int
    item_id: str
    score: float
    title: str
    fields: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As `recommend --json` prints it."""
        return {
            "rank": self.rank,
            "item_id": self.item_id,
            "score": self.score,
            "title": self.title,
            **self.fields,
        }


class Answer(list[Recommendation]):
    """The answers to one request, best first.

    Attributes:
        reason: why they are fewer than were asked for, in the parameters' names; None if they are not.
        reason_with_flags: the same as the command line prints it.
    """

    def __init__(self, items: Iterable[Recommendation] = (), reason: str | None = None) -> None:
        super().__init__(items)
        self.reason_with_flags = reason
        self.reason = None if reason is None else with_parameters(reason)
