"""A Hugging Face Space that serves a recommender and its page, as a container: README.md, Dockerfile and a wheel.

export_space("org/name@REVISION", Path("dist/llmrec-0.1.0-py3-none-any.whl"), Path("out"))
"""

import json
import shutil
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from llmrec.atomic import put_in_place, replacing, usual_modes, write_text
from llmrec.errors import UserError
from llmrec.recommender import bundle, hub
from llmrec.resources import is_repo_id
from llmrec.serve.export import require_new

PORT = 7860
"""The port that a Space shows."""
MODEL = "model"
"""The folder of a bundle that the Space contains."""

DOCKERFILE = """\
# A Space builds this image and shows port {port}.
FROM python:3.11-slim
RUN useradd --create-home --uid 1000 user
ENV PATH=/home/user/.local/bin:$PATH HF_HOME=/home/user/.cache/huggingface
WORKDIR /home/user/app
USER user
# On hardware without a GPU, first install the build of torch for CPUs, as pytorch.org says: the image is much smaller.
COPY {wheel} ./
RUN pip install --no-cache-dir --user "./{wheel}[serve]"
{copy}EXPOSE {port}
CMD {command}
"""

README = """---
{fields}
---

# {title}

The page and the API of a recommender made with llmrec: {what}.

- The page is at `/`, the API's documentation at `/docs`.
- Set the secret `LLMREC_TOKEN` in the settings of the Space, and clients must send it; the page asks for it.
- Set the secret `HF_TOKEN` if the model is private.
- Visitors can't change the items: {fixed}.
"""


def export_space(model: str, wheel: Path, folder: Path) -> dict[str, str]:
    """Write the files of the Space.

    Args:
        model: a folder with a bundle, which becomes a part of the Space; or a bundle on the Hub, `org/name@REVISION`,
            which the Space downloads when it starts. Without a revision, it is the commit that the Hub has now.
        wheel: of llmrec, as `pip wheel . --no-deps` makes it; the Space installs it.
        folder: a new or an empty one. It is complete or unchanged at any moment.

    Returns:
        What the Space serves, and how it is started.

    Raises:
        UserError: the folder is not empty, the wheel is not one of llmrec, there is no such bundle, or only this
            machine has the base model of its adapter.
    """
    require_new(folder)
    _check_wheel(wheel)
    local = Path(model).is_dir()
    served = MODEL if local else _pinned(model)
    command = ["llmrec", "serve", "--model", served, "--host", "0.0.0.0", "--port", str(PORT)]
    files = {
        "Dockerfile": DOCKERFILE.format(
            port=PORT,
            wheel=wheel.name,
            copy=f"COPY {MODEL} {MODEL}\n" if local else "",  # belongs to root, so that nobody can change it
            command=json.dumps(command),
        ),
        "README.md": _readme(None if local else served),
    }
    if local:
        bundle.check_publishable(Path(model))
    with replacing(folder) as new:
        for name, text in files.items():
            write_text(new / name, text)
        shutil.copy(wheel, new / wheel.name)
        for name in hub.published_files(Path(model)) if local else ():
            (new / MODEL / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(model) / name, new / MODEL / name)
        usual_modes(new)
        put_in_place(new, folder)
    return {"target": "space", "model": served, "command": " ".join(command)}


def _readme(model: str | None) -> str:
    """The text of README.md; `model` is None if the Space contains the bundle."""
    from huggingface_hub import SpaceCardData

    title = "llmrec" if model is None else model.partition("@")[0].rpartition("/")[2]
    fields = SpaceCardData(
        title=title,
        emoji="\U0001f6d2",
        colorFrom="green",
        colorTo="gray",
        sdk="docker",
        app_port=PORT,
        pinned=False,
        models=None if model is None else [model.partition("@")[0]],
    )
    return README.format(
        fields=fields.to_yaml(),
        title=title,
        what=f"the bundle in `{MODEL}`" if model is None else f"`{model}`",
        fixed="they are files of the image" if model is None else "a bundle from the Hub is not written",
    )


def _pinned(model: str) -> str:
    """The name of a bundle on the Hub with a revision."""
    name, at, revision = model.partition("@")
    if not is_repo_id(name) or name.count("/") != 1:
        raise UserError(f"--model {model}: no such folder, and not a Hub id (org/name).")
    if at and not _is_revision(revision):
        raise UserError(f"--model {model}: {revision!r} is not the name of a revision.")
    return model if at else f"{name}@{hub.commit_of(name)}"


def _is_revision(name: str) -> bool:
    """Whether this can be a branch, a tag or a commit, without anything that a Dockerfile or Markdown reads."""
    return bool(name) and all(letter.isascii() and (letter.isalnum() or letter in "._-/") for letter in name)


def _check_wheel(wheel: Path) -> None:
    """Raise UserError if the file is not a wheel of llmrec."""
    try:
        with ZipFile(wheel) as file:
            names = file.namelist()
    except (OSError, BadZipFile) as error:
        raise UserError(
            f"--wheel {wheel}: can't be read as a wheel ({error}); make one: pip wheel . --no-deps."
        ) from None
    named = wheel.name.startswith("llmrec-") and wheel.suffix == ".whl"
    if not named or "llmrec/cli/main.py" not in names or not _is_revision(wheel.name):
        raise UserError(f"--wheel {wheel}: not a wheel of llmrec; make one in a checkout: pip wheel . --no-deps.")
