"""What the HTTP service accepts: the limits of a request, and the error that says which one it exceeds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrec.checks import check_fields
from llmrec.errors import UserError

if TYPE_CHECKING:
    from llmrec.recommender.request import Request


class ApiError(Exception):
    """An error with an HTTP status, which the client gets in the one form that all errors have.

    Attributes:
        status: of HTTP.
        code: for programs; the message is for people.
        field: the field of the request that is to blame, such as `k` or `items.2.item_id`.
        retry_after: whole seconds after which another try makes sense.
    """

    def __init__(
        self, status: int, code: str, message: str, field: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field
        self.retry_after = retry_after


@dataclass(frozen=True)
class Limits:
    """The limits of the HTTP service."""

    batch_size: int = 32
    """Largest number of requests in one batch of the decoder."""
    batch_wait: float = 0.004
    """Longest time that a request waits for others to share its batch, in seconds. Batches fill while one is decoded,
    so a longer wait seldom helps."""
    queue: int = 256
    """Largest number of requests that wait or are being answered. A further one gets status 429."""
    slow_queue: int = 32
    """The same for requests of the slow lane: those that need more than one search, many answers or a long prompt."""
    deadline: float = 30.0
    """Longest time from a request to its answer, in seconds; then it gets status 504 and its search ends."""
    body: int = 2**20
    """Largest body of a request, in bytes."""
    read_seconds: float = 10.0
    """Longest time in which the head or the body of a request must arrive, in seconds."""
    connections: int = 1000
    """Largest number of open connections; further ones are closed at once."""
    requests: int = 64
    """Largest number of requests in one list."""
    answers: int = 1000
    """Largest k, and largest k x phrasings."""
    history: int = 1000
    """Largest number of items in a history."""
    ids: int = 100_000
    """Largest number of entries of each other list or mapping of a request."""
    text: int = 8000
    """Largest number of characters of a prompt, a search or another text."""
    items: int = 1000
    """Largest number of items in one change of the catalogue."""
    rate: float = 0.0
    """Requests per second of one client, by its address, in bursts of up to two seconds' worth; 0: any number."""

    def __post_init__(self) -> None:
        whole = [name for name, kind in Limits.__annotations__.items() if kind is int]
        check_fields(self, "", at_least={1: whole}, positive=("deadline", "read_seconds"))
        for name in ("batch_wait", "rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 0, and finite.")

    def check(self, request: "Request") -> None:
        """Check the size of a request.

        Raises:
            ApiError: it exceeds a limit.
        """
        self._require("k", request.k, self.answers, "answers")
        self._require("phrasings", request.k * request.phrasings, self.answers, "answers x phrasings")
        self._require("prompt", len(request.prompt or ""), self.text, "characters")
        self._require("history", len(request.history or ()), self.history, "items")
        for name in ("exclude", "allow", "offsets", "where", "max_per_field"):
            entries = getattr(request, name) or ()
            self._require(name, len(entries), self.ids, "entries")
            texts = [*entries, *(entries.values() if isinstance(entries, Mapping) else ())]
            self._require(
                name,
                max((len(text) for text in texts if isinstance(text, str)), default=0),
                self.text,
                "characters in a text",
            )
        self._require("history", max(map(len, request.history or ()), default=0), self.text, "characters in an id")

    def is_slow(self, request: "Request") -> bool:
        """Whether a request belongs to the slow lane, where it can't keep the others waiting."""
        many = request.k > SLOW_ANSWERS or len(request.prompt or "") > SLOW_TEXT
        several = request.phrasings > 1 or request.offsets or request.max_per_field or request.max_per_code
        return request.exact or many or bool(several)

    def _require(self, name: str, found: int, most: int, unit: str) -> None:
        if found > most:
            raise ApiError(422, "too_large", f"{name}: {found:,} {unit}, expected at most {most:,}.", name)


SLOW_ANSWERS = 100
"""A request for more answers belongs to the slow lane."""
SLOW_TEXT = 1000
"""A request whose prompt has more characters belongs to the slow lane."""
