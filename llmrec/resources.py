"""Where files come from: the shipped prompts and configs, and the Hub."""

from pathlib import Path
from typing import Any

HUB_SECONDS = 10
"""How long the Hub may take to answer."""


def resource_folder(name: str) -> Path:
    """The folder `prompts` or `configs` that belongs to this llmrec."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def hub_options(name: str | Path) -> dict[str, Any]:
    """What `from_pretrained(name)` is given, so that it does not wait for a Hub that can't be reached.

    Returns:
        Nothing where the Hub answers; `local_files_only` where `name` is a path, or the Hub does not answer within ten
        seconds. Left alone, the Hub's client would try each file six times, which takes half a minute.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if Path(name).exists():
        return {"local_files_only": True}
    try:
        HfApi().model_info(str(name), timeout=HUB_SECONDS)
    except HfHubHTTPError:  # an answer: no such repository, or no access; loading says it
        return {}
    except (HTTPError, OSError, ValueError):  # ValueError: a name that no repository can have
        return {"local_files_only": True}
    return {}
