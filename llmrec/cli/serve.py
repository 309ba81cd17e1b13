"""`llmrec serve`: a bundle over HTTP."""

from collections.abc import Sequence

from llmrec.cli.command import Command, PlainParser
from llmrec.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Parse, load the bundle, listen until stopped."""
    parser = PlainParser(
        prog="llmrec serve", description="Serve a bundle over HTTP: POST /recommend, GET /health, GET /docs."
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="a bundle, such as RUN/model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default 8000)")
    options = parser.parse_args(arguments)
    try:
        import uvicorn

        from llmrec.serve.http import make_app
    except ImportError as error:
        raise UserError(f"llmrec serve needs {error.name}: pip install 'llmrec[serve]'.") from None
    from llmrec.recommender.recommender import Recommender

    uvicorn.run(make_app(Recommender.from_pretrained(options.model)), host=options.host, port=options.port)


COMMAND = Command("a bundle over HTTP", main)
