"""What a recommender answers: items with their scores, and why they are few."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


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
        reason: why they are fewer than were asked for; None if they are not.
    """

    def __init__(self, items: Iterable[Recommendation] = (), reason: str | None = None) -> None:
        super().__init__(items)
        self.reason = reason
