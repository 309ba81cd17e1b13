"""`llmrec push`: a bundle to the Hugging Face Hub."""

from collections.abc import Sequence

from llmrec.cli.command import Command, PlainParser
from llmrec.console import log_to_stderr, say


def main(arguments: Sequence[str]) -> None:
    """Parse, check the bundle, upload it, print its address."""
    parser = PlainParser(
        prog="llmrec push",
        description="Publish a bundle on the Hugging Face Hub: its plain files, in one commit. Files of an earlier "
        "bundle that this one lacks are removed there.",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a bundle, such as RUN/model")
    parser.add_argument("--repo-id", required=True, metavar="ORG/NAME", help="the repository; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made if it is not there (default main)")
    parser.add_argument("--message", default="Upload a recommender", help="of the commit")
    options = parser.parse_args(arguments)
    log_to_stderr()
    from llmrec.recommender.bundle import push

    say(push(options.model, options.repo_id, options.private, options.revision, options.message))


COMMAND = Command("a bundle to the Hugging Face Hub", main)
