"""`llmrec serve`: serve a bundle over HTTP."""

import socket
from collections.abc import Sequence

from llmrec.cli.command import Command, PlainParser, add_model_flags, load_model
from llmrec.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, load the bundle, answer requests until stopped."""
    parser = PlainParser(
        prog="llmrec serve", description="Serve a bundle over HTTP: POST /recommend, GET /health, GET /docs."
    )
    add_model_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default 8000)")
    options = parser.parse_args(arguments)
    try:
        import uvicorn

        from llmrec.serve.http import make_app
    except ImportError as error:
        raise UserError(f"llmrec serve needs {error.name}: pip install 'llmrec[serve]'.") from None
    listening = _listen(options.host, options.port)
    with listening:
        app = make_app(load_model(options))
        uvicorn.Server(uvicorn.Config(app)).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Open a socket on an address. `main` does this before it loads the model, so that an error appears at once.

    Raises:
        UserError: the address or port does not exist, or another program uses it.
    """
    if not 0 <= port < 65536:
        raise UserError(f"--port {port}: expected 0 to 65535; 0 takes a free one.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port}: can't listen there: {reason}.") from None
    return listening


COMMAND = Command("serve a bundle over HTTP", main)
