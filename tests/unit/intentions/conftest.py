"""A shop with reviews, and an OpenAI-compatible endpoint of our own."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from typing import Any

import polars as pl
import pytest

from llmrec.data import Catalog, Interactions

THINGS = {
    "birthday candles": "cake party, little flames, happy children",
    "steel roof rack": "old van, long boards, safe trip",
    "garden hose": "dry roses, summer evening, green lawn",
    "reading lamp": "bedside table, warm light, quiet hours",
    "wool socks": "cold feet, winter walk, thick boots",
    "bread knife": "fresh loaf, sharp blade, hard crust",
}


@pytest.fixture
def catalog() -> Catalog:
    """i0 to i11: two brands of six things."""
    rows = [
        (f"i{n}", thing.title(), f"{thing} for home use, {what}, {line}")
        for n, (line, (thing, what)) in enumerate(product(["northern brass", "island bamboo"], THINGS.items()))
    ]
    return Catalog.from_frame(pl.DataFrame(rows, schema=["item_id", "title", "description"], orient="row"))


@pytest.fixture
def log() -> Interactions:
    """Six users with five events each, every one with a review of its own."""
    rows = [
        (
            f"u{user}",
            f"i{(user * 5 + step) % 12}",
            user + 10 * step,
            f"Bought for my trip number {user}{step} now.",
        )
        for user in range(6)
        for step in range(5)
    ]
    return Interactions.from_frame(
        pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "review"], orient="row")
    )


@dataclass
class FakeEndpoint:
    """Answers POST /v1/chat/completions with what `reply(prompt, times asked before)` says, and notes what it got.

    A reply is a text (the answer), or a status with the raw body and headers.
    """

    url: str = ""
    reply: Callable[[str, int], Any] = lambda prompt, before: "something small for the kitchen"
    prompts: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    monkeypatch.setenv("NO_PROXY", "*")
    fake, lock = FakeEndpoint(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            [message] = request["messages"]
            with lock:
                before = fake.prompts.count(message["content"])
                fake.prompts.append(message["content"])
                fake.keys.append(self.headers["Authorization"])
                fake.paths.append(self.path)
            said = fake.reply(message["content"], before)
            if isinstance(said, str):
                said = 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}), {}
            status, body, headers = said
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body.encode()))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
