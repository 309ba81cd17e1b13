"""Where the shipped prompts and configs are: inside an installed package, or beside it in a checkout."""

from pathlib import Path


def resource_folder(name: str) -> Path:
    """The folder `prompts` or `configs` that belongs to this llmrec."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
