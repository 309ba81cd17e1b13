"""The web page at `/`: plain HTML, CSS and JavaScript from the folder `static`, which asks the same API as everybody.

It loads nothing from elsewhere, and its content security policy forbids it; texts of the catalogue are never HTML.
"""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import Response

INDEX = "index.html"
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Add `GET /`, and `GET /page/NAME` for the other files."""
    for file in (files("llmrec.serve") / "static").iterdir():
        path = "/" if file.name == INDEX else f"/page/{file.name}"
        app.add_api_route(path, _sender(file.name, file.read_bytes()), include_in_schema=False)


def _sender(name: str, content: bytes) -> Callable[[], Awaitable[Response]]:
    media_type = TYPES[name.rpartition(".")[2]]

    async def send() -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return send
