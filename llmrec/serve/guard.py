"""What stands before the application: request ids, a token, a rate limit, the body within limits of size and time.

Also: a client that hangs up cancels its request, every request is counted and logged as one record, and an exception
that nothing else caught becomes a plain 500.
"""

import asyncio
import hmac
import re
import time
import uuid
from collections import OrderedDict
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmrec.console import get_logger, printable
from llmrec.serve.limits import ApiError, Limits
from llmrec.serve.metrics import Metrics

log = get_logger(__name__)
access = get_logger("llmrec.serve.access")

OPEN = ("/livez", "/readyz")
"""Paths that need no token: a supervisor asks them."""
GUARDED = ("/v1/", "/metrics", "/recommend")
"""Beginnings of the paths that need the token and count for the rate limit."""
CLIENTS = 10_000
"""Largest number of clients whose rate is remembered."""
BURST = 2.0
"""Seconds' worth of requests that a client may send at once."""
_ID = re.compile(r"[\w.\-]{1,64}", re.ASCII)


def error_response(error: ApiError, request_id: str) -> JSONResponse:
    """The answer that tells of an error. All errors have this form."""
    content = {"code": error.code, "message": printable(str(error)), "field": error.field and printable(error.field)}
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": content, "request_id": request_id}, status_code=error.status, headers=headers)


class RateLimit:
    """A token bucket per client.

    Args:
        rate: requests per second; 0: any number.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.most = max(1.0, rate * BURST)
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, as of when

    def take(self, client: str, now: float) -> float:
        """Count a request; returns 0, or the seconds until the client may send its next one."""
        if not self.rate:
            return 0.0
        left, then = self._clients.pop(client, (self.most, now))
        left = min(self.most, left + (now - then) * self.rate)
        self._clients[client] = (left - 1 if left >= 1 else left, now)
        if len(self._clients) > CLIENTS:
            self._clients.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / self.rate


class Guard:
    """An ASGI middleware.

    Args:
        app: what it guards.
        limits: of the body and the rate.
        metrics: counts requests.
        token: what clients must send as `Authorization: Bearer TOKEN`; None: nothing.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, token: str | None) -> None:
        self.app, self.limits, self.metrics, self.token = app, limits, metrics, token
        self.rate = RateLimit(limits.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 499  # nginx's number for a client that has hung up

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            try:
                self._admit(scope, headers)
                body = await self._body(headers, receive)
                if body is not None:
                    await self._run(scope, body, receive, answer)
            except ApiError as error:
                self.metrics.refused.labels(error.code).inc()
                await error_response(error, request_id)(scope, receive, answer)
            except Exception:
                log.exception("request %s failed", request_id)
                if status != 499:
                    raise
                defect = ApiError(500, "defect", "The server failed; its log says why, under this request's id.")
                await error_response(defect, request_id)(scope, receive, answer)
        finally:
            self._record(scope, request_id, status, time.perf_counter() - started)

    def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Check the token and the rate.

        Raises:
            ApiError: the token is missing or wrong, or the client sends too many requests.
        """
        path = scope["path"]
        if not path.startswith(GUARDED):
            return
        if self.token is not None:
            expected = f"Bearer {self.token}".encode()
            if not hmac.compare_digest(headers.get(b"authorization", b""), expected):
                raise ApiError(401, "unauthorized", "Send the token of this server: Authorization: Bearer TOKEN.")
        client = scope["client"][0] if scope.get("client") else ""
        if wait := self.rate.take(client, time.monotonic()):
            message = f"More than {self.limits.rate:g} requests per second; wait before the next one."
            raise ApiError(429, "rate_limited", message, retry_after=max(1, round(wait + 0.5)))

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The body of a request; None if the client has hung up. What exceeds the limit is read and thrown away.

        Raises:
            ApiError: it is too large, or does not arrive in time.
        """
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.read_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    size += len(message.get("body", b""))
                    if size <= self.limits.body:
                        parts.append(message.get("body", b""))
                    else:
                        parts.clear()
                    more = message.get("more_body", False)
        except TimeoutError:
            words = f"The body did not arrive within {self.limits.read_seconds:g} s."
            raise ApiError(408, "too_slow", words) from None
        if size > self.limits.body:
            words = f"The body has {size:,} bytes, expected at most {self.limits.body:,}."
            raise ApiError(413, "body_too_large", words)
        return b"".join(parts)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the application; end it if the client hangs up."""
        unread = True

        async def replay() -> Message:
            nonlocal unread
            if unread:
                unread = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await asyncio.Future()  # the guard itself waits for the client to hang up

        async def hung_up() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        app, client = asyncio.ensure_future(self.app(scope, replay, send)), asyncio.ensure_future(hung_up())
        try:
            await asyncio.wait((app, client), return_when=asyncio.FIRST_COMPLETED)
            if app.done():
                await app
        finally:
            for task in (app, client):
                task.cancel()
            await asyncio.gather(app, client, return_exceptions=True)

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route: Any = scope.get("route")
        labels = scope["method"] if route is not None else "other", getattr(route, "path", "other")
        self.metrics.requests.labels(*labels, status).inc()
        self.metrics.seconds.labels(*labels).observe(seconds)
        if scope["path"] not in OPEN:
            fields = {"method": scope["method"], "path": scope["path"], "status": status, "request_id": request_id}
            client = scope["client"][0] if scope.get("client") else None
            access.info("request", extra={"fields": fields | {"ms": round(1000 * seconds, 1), "client": client}})
