"""Download a bundle from the Hugging Face Hub, or upload its files in one commit."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, cast

from llmrec.console import get_logger
from llmrec.errors import UserError
from llmrec.resources import HUB_SECONDS, is_repo_id
from llmrec.tasks.config import TASKS

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

log = get_logger(__name__)

SUFFIXES = (".safetensors", ".json", ".yaml", ".parquet", ".txt", ".jinja")


MANIFEST = "manifest.json"
"""The file beside the bundle in a run directory that describes the run; it is not published."""
CARD = "README.md"
MESSAGE = "Upload a recommender"
PUBLISHED = (
    CARD,
    # files of llmrec
    *("llmrec.json", "item_index.parquet", "trie.safetensors", "dense.safetensors", "fusion.json"),
    *("experts.json", "experts.safetensors", "experts.ranker.json"),
    *(f"prompts/{task}.yaml" for task in TASKS),
    *(f"quantizer/{name}.json" for name in ("quantizer", "report", "encoder")),
    *(f"quantizer/{name}.safetensors" for name in ("quantizer", "encoder", "alignment")),
    "quantizer/item_codes.parquet",
    # files of transformers and peft
    *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
    "model-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].safetensors",
    *("adapter_config.json", "adapter_model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
)
"""Patterns of the names of a bundle's files."""


def is_published(name: str) -> bool:
    """Whether a push publishes the file with this path inside the bundle: llmrec, transformers or peft writes it."""
    return any(fnmatchcase(name, pattern) for pattern in PUBLISHED)


def published_files(folder: Path) -> list[str]:
    """The paths of the files inside `folder` that a push publishes, relative and sorted."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return list(filter(is_published, names))


def download(name: str) -> Path:
    """Download the repository `org/name`, or `org/name@revision`, into the local cache of the Hub.

    Returns:
        The folder of the snapshot in the cache.

    Raises:
        UserError: there is no such repository or revision, access is denied, or the Hub can't be reached and the cache
            lacks the repository.
    """
    from huggingface_hub import snapshot_download

    repo_id, _, revision = name.partition("@")
    with _one_line(f"--model {name}: no such folder, and the Hub gave"):
        patterns = [f"*{suffix}" for suffix in SUFFIXES]
        return Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=patterns))


def commit_of(repo_id: str) -> str:
    """The name of the last commit of the repository `org/name`.

    Raises:
        UserError: there is no such repository, access is denied, or the Hub can't be reached.
    """
    from huggingface_hub import HfApi

    with _one_line(f"--model {repo_id}: name the revision yourself (org/name@REVISION), for the Hub gave"):
        return str(HfApi().model_info(repo_id, timeout=HUB_SECONDS).sha)


def upload(
    folder: Path,
    repo_id: str,
    private: bool,
    revision: str | None,
    message: str,
    license: str | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """Upload `published_files(folder)` to a repository in one commit, so that nobody downloads a part of them.

    The same commit removes the files of an earlier bundle that this one lacks, except for the model card.

    Args:
        folder: the bundle.
        repo_id: org/name; the repository is created if it does not exist.
        private: create a repository that only its owners can see; an existing one keeps its visibility.
        revision: branch, created if it does not exist; default: main.
        message: message of the commit.
        license: identifier of the licence in the published model card, as the Hub lists them: apache-2.0; None: that of
            the bundle's card.
        datasets: ids of data sets on the Hub in the published model card; none: those of the bundle's card.

    Returns:
        The URL of the commit.

    Raises:
        UserError: `repo_id` is not of the form org/name, the bundle's card can't be read or is missing though it shall
            name something, there is no token, permission is denied, or the Hub can't be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if not is_repo_id(repo_id) or repo_id.count("/") != 1:
        raise UserError(f"--repo-id {repo_id}: expected org/name, as the Hub shows it.")
    if get_token() is None:
        raise UserError("--repo-id needs a Hugging Face token with write access: `hf auth login`, or set HF_TOKEN.")
    files = published_files(folder)
    contents: dict[str, Path | bytes] = {name: folder / name for name in files}
    if CARD in files:
        card = _published_card((folder / CARD).read_text("utf-8"), repo_id, license, datasets)
        contents[CARD] = card.encode("utf-8")
    elif license is not None or datasets:
        raise UserError(f"--license, --dataset: {folder} has no {CARD}, in which they would stand; save it again.")
    api = HfApi()
    with _one_line(f"--repo-id {repo_id}: the Hub gave"):
        # `private=False` would make the repository public even if the organisation's default is private.
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        stale = set(filter(is_published, api.list_repo_files(repo_id, revision=revision))) - {*files, CARD}
        operations: list[CommitOperationAdd | CommitOperationDelete]
        operations = [CommitOperationDelete(name) for name in sorted(stale)]
        operations += [CommitOperationAdd(name, content) for name, content in contents.items()]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*commit a data file")  # a bundle has parquet files
            commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    others = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {*files, MANIFEST}
    if left := sorted(name for name in others if not name.startswith(".")):
        log.info("not part of the bundle, so not published: %s", ", ".join(left))
    return str(commit.commit_url)


def _published_card(text: str, repo_id: str, license: str | None = None, datasets: Sequence[str] = ()) -> str:
    """A card with the name of its repository, and with the licence and the data sets that its publisher names.

    Args:
        text: of README.md; other fields and the rest stay as they are.
        repo_id: org/name.
        license: identifier of a licence, as the Hub lists them: apache-2.0. None keeps what the card says.
        datasets: ids of data sets on the Hub; none keeps what the card says.

    Raises:
        UserError: the fields of the card are not what the Hub can read, or an id is not one.
    """
    from huggingface_hub import ModelCard

    for name in datasets:
        if not is_repo_id(name):
            raise UserError(f"--dataset {name}: expected the id of a data set on the Hub, such as org/name.")
    try:
        card = ModelCard(text)
        fields = cast("ModelCardData", card.data)
        if fields.eval_results:
            fields.model_name = repo_id.rpartition("/")[2]
        if license is not None:
            fields.license = license
        if datasets:
            fields.datasets = list(datasets)
        return str(card)
    except Exception as error:  # yaml and the Hub's client raise many types
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"README.md of the bundle: its fields can't be read ({reason}); mend or remove it.") from None


@contextmanager
def _one_line(start: str) -> Iterator[None]:
    """Turn an exception of the Hub's client into a UserError of one line that begins with `start`."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        reason = " ".join(next(iter(str(error).strip().splitlines()), type(error).__name__).split())
        said = error.server_message if isinstance(error, HfHubHTTPError) else None
        raise UserError(f"{start}: {reason}{f' ({said})' if said else ''}") from None
