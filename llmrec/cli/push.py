"""`llmrec push`: upload a bundle to the Hugging Face Hub."""

from collections.abc import Sequence

from llmrec.cli.command import Command, PlainParser
from llmrec.console import log_to_stderr, say


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, check the bundle, upload it, print its address."""
    parser = PlainParser(
        prog="llmrec push",
        description="Upload the files of a bundle to the Hugging Face Hub in one commit. Files in the repository that "
        "belong to an earlier bundle and not to this one are deleted.",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a bundle, such as RUN/model")
    parser.add_argument(
        "--repo-id", required=True, metavar="ORG/NAME", help="the repository; created if it does not exist"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch; created if it does not exist (default main)")
    parser.add_argument("--license", metavar="ID", help="licence in the model card, as the Hub names it: apache-2.0")
    parser.add_argument(
        "--dataset", nargs="+", default=[], metavar="ORG/NAME", help="data sets of the Hub in the model card"
    )
    parser.add_argument("--message", default="Upload a recommender", help="message of the commit")
    options = parser.parse_args(arguments)
    log_to_stderr()
    from llmrec.recommender.bundle import push

    target = (options.repo_id, options.private, options.revision, options.message)
    say(push(options.model, *target, license=options.license, datasets=options.dataset))


COMMAND = Command("upload a bundle to the Hugging Face Hub", main)
