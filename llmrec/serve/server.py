"""The process that listens: uvicorn with time limits of its own, an end within seconds, and logs as JSON lines."""

import asyncio
import datetime
import json
import logging
import os
import resource
import socket
import threading
import time
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmrec.serve.limits import Limits
from llmrec.serve.workers import END

GRACE = 4
"""Seconds in which running requests may finish after SIGTERM."""
BACKLOG = 2048
"""Largest number of connections that wait in the system to be taken."""
KEEP_ALIVE = 30
"""Seconds that a connection stays open between two requests."""


class Protocol(H11Protocol):
    """HTTP/1.1 with a limit on the time in which the head of a request must arrive, and on the connections.

    Attributes:
        limits: of the service; `Server` sets them.
    """

    limits = Limits()
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock, or close a connection that is one too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
        else:
            self._timer = self.loop.call_later(self.limits.read_seconds, self._give_up)

    def data_received(self, data: bytes) -> None:
        """Stop the clock once a head is complete; start it when the next one begins."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_clock()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.limits.read_seconds, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, in the form of all errors."""
        content = {"code": "not_http", "message": "This is not HTTP/1.1.", "field": None}
        body = json.dumps({"error": content, "request_id": None}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """A server of one application, on a socket that listens already."""

    def __init__(self, app: FastAPI, limits: Limits) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = limits.connections + 256  # the other files of the process
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == -1 else min(wanted, hard), hard))
        protocol = type("Protocol", (Protocol,), {"limits": limits})
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=GRACE,
                backlog=1,  # also the number of connections that asyncio takes at a time; workers share a burst of them
            )
        )

    def listen(self, listening: socket.socket) -> None:
        """Answer requests until SIGTERM or Ctrl-C."""
        self.run(sockets=[listening])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, with a queue for connections in the system, from which this process takes one at a time."""
        await super().startup(sockets)
        for each in sockets or []:
            each.listen(BACKLOG)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End within `END` seconds."""
        threading.Thread(target=_end, args=(sig,), name="llmrec-end", daemon=True).start()
        super().handle_exit(sig, frame)


def _end(sig: int) -> None:
    """End the process some time after a signal, without waiting for anything."""
    time.sleep(END)
    os._exit(128 + sig)


class JsonLines(logging.Formatter):
    """Formats a log record as one line of JSON; `extra={"fields": {...}}` adds fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line).replace("\x7f", "\\u007f")


def log_as_json() -> None:
    """Send the log lines of llmrec and uvicorn to stderr, as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("llmrec", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
