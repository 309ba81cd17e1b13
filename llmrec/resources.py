"""Finds the prompts and configs that llmrec ships, and checks whether the Hub can be reached."""

from pathlib import Path
from typing import Any

HUB_SECONDS = 10
"""Longest wait for an answer of the Hub, in seconds."""


def resource_folder(name: str) -> Path:
    """The folder `prompts` or `configs` of this installation of llmrec."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def hub_options(name: str | Path) -> dict[str, Any]:
    """Keyword arguments for `from_pretrained(name)`, so that it does not wait for a Hub that can't be reached.

    Returns:
        An empty dictionary if the Hub answers; `local_files_only` if `name` is a path, or if the Hub does not answer
        within ten seconds. Without it, the Hub's client would try each file six times, which takes half a minute.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if Path(name).exists():
        return {"local_files_only": True}
    try:
        HfApi().model_info(str(name), timeout=HUB_SECONDS)
    except HfHubHTTPError:  # the Hub answers: no such repository, or no access; loading reports it
        return {}
    except (HTTPError, OSError, ValueError):  # ValueError: a name that no repository can have
        return {"local_files_only": True}
    return {}


def is_repo_id(name: str) -> bool:
    """Whether `name` is a valid name of a Hub repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def loading_trouble(name: str | Path, error: Exception) -> str:
    """Why the model `name` can't be loaded, in one line; a folder that is missing is named as such.

    Args:
        name: path or Hub id.
        error: what the loading raised.
    """
    if Path(name).exists():
        return first_line(error)
    if not is_repo_id(str(name)):
        return "there is no such folder here, and it is not a Hub id (org/name)"
    return f"there is no such folder here, and the Hub gave no such model: {first_line(error)}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the error's type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
