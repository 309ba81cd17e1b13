"""`llmrec serve`: serve a bundle over HTTP."""

import argparse
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmrec.cli.command import Command, PlainParser, add_model_flags, load_model
from llmrec.errors import UserError

if TYPE_CHECKING:
    from llmrec.serve.limits import Limits
    from llmrec.serve.workers import Peers

TOKEN = "LLMREC_TOKEN"
"""The environment variable with the token. A flag would show it in the list of processes."""
SETTINGS = ("batch_size", "batch_wait", "queue", "deadline", "rate")
"""The fields of `Limits` that are flags."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, listen, load the bundle in one process or several, answer requests until stopped."""
    options = _parser().parse_args(arguments)
    try:
        import fastapi_offline  # noqa: F401 - the worker needs it

        from llmrec.serve.limits import Limits
        from llmrec.serve.server import log_as_json
        from llmrec.serve.workers import Peers, supervise
    except ImportError as error:
        raise UserError(f"llmrec serve needs {error.name}: pip install 'llmrec[serve]'.") from None
    given = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    limits = Limits(**given)
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: expected at least 1.")
    token = os.environ.get(TOKEN)
    if token is not None and (not token.isascii() or not token.isprintable() or not token.strip()):
        raise UserError(f"{TOKEN}: expected printable ASCII characters; set another token, or unset it.")
    with _listen(options.host, options.port) as listening:
        if options.workers == 1:
            _serve(Peers([0]), False, options, limits, token, listening)
        else:
            log_as_json()
            supervise(_serve, options.workers, options, limits, token, listening)


def _serve(
    peers: "Peers",
    patient: bool,
    options: argparse.Namespace,
    limits: "Limits",
    token: str | None,
    listening: socket.socket,
) -> None:
    """Serve in this process; the first two arguments are those of `supervise`."""
    from llmrec.recommender.bundle import locate, read_header
    from llmrec.serve.http import make_app
    from llmrec.serve.live import LiveBundle
    from llmrec.serve.metrics import Metrics
    from llmrec.serve.server import Server, log_as_json
    from llmrec.serve.service import Service

    read_header(locate(options.model))  # a bundle that is not there is named at once
    folder = Path(options.model) if os.path.isdir(options.model) else None
    bundle = LiveBundle(lambda: load_model(options), folder, options.encoder, peers)
    service = Service(bundle, limits, Metrics(), on_failure=lambda: setattr(server, "should_exit", True))
    server = Server(make_app(service, token, patient), limits)
    log_as_json()
    server.listen(listening)
    if service.failure is not None:
        raise service.failure


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="llmrec serve",
        description="Serve a bundle over HTTP: POST /v1/recommend, items under /v1/items, GET /docs for the rest. "
        f"If the environment variable {TOKEN} is set, clients must send its value as bearer token. The log is JSON "
        "lines on stderr. SIGTERM and Ctrl-C end the server within 10 seconds.",
    )
    add_model_flags(parser)
    parser.add_argument(
        "--encoder",
        metavar="DIR_OR_HUB_ID",
        help="the sentence-transformers model that embeds added items; for safety, a model name stored in the bundle "
        "is not loaded",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default 8000)")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes that share the port and the memory of the weights; one that dies is started again (default 1)",
    )
    parser.add_argument("--batch-size", type=int, help="largest number of requests decoded together (default 32)")
    parser.add_argument(
        "--batch-wait",
        type=float,
        help="seconds that a request waits at most for others to be decoded with it (default 0.004)",
    )
    parser.add_argument(
        "--queue", type=int, help="largest number of requests that wait; further ones get status 429 (default 256)"
    )
    parser.add_argument(
        "--deadline", type=float, help="seconds after which an unanswered request gets status 504 (default 30)"
    )
    parser.add_argument(
        "--rate", type=float, help="requests per second of one client address; 0, the default: any number"
    )
    return parser


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
