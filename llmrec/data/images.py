"""The column of a catalogue with the items' images: where each image is.

An image is named by a path, relative to the folder of the catalogue's file, or by a data URI (RFC 2397) that holds it:
`pictures/B01.jpg`, `data:image/png;base64,iVBORw0...`. A parquet file or a dataset may hold the images themselves.
"""

import base64
import binascii
from pathlib import Path
from urllib.parse import unquote_to_bytes

import polars as pl

from llmrec.errors import UserError

INLINE = "data:"
"""Start of a data URI."""


def image_sources(values: pl.Series, folder: Path, source: str) -> list[str]:
    """Where the image of each of N rows is: an absolute path, a data URI, a web address, or "" without an image.

    Args:
        values: N paths or data URIs, N images as bytes, or N structs with `bytes` and `path`, as `datasets` has them.
        folder: the folder that relative paths start from.
        source: name of the table, for messages.

    Raises:
        UserError: the column has another type.
    """
    if isinstance(values.dtype, pl.Struct) and {"bytes", "path"} <= {field.name for field in values.dtype.fields}:
        inside = image_sources(values.struct.field("bytes"), folder, source)
        named = image_sources(values.struct.field("path"), folder, source)
        return [own or other for own, other in zip(inside, named, strict=True)]
    if values.dtype == pl.Binary:
        return [f"{INLINE};base64,{base64.b64encode(image).decode()}" if image else "" for image in values]
    if values.dtype == pl.Null:
        return [""] * len(values)
    if values.dtype != pl.String:
        raise UserError(
            f"{source}: column {values.name!r} (--data.columns.image) holds {values.dtype}; expected paths, data URIs "
            "or images as bytes."
        )
    names = (name.strip() for name in values.fill_null(""))
    return [name if not name or name.startswith(INLINE) or "://" in name else str(folder / name) for name in names]


def image_bytes(source: str) -> bytes:
    """The file that `image_sources` names, or what its data URI holds.

    Raises:
        OSError: the file can't be read.
        ValueError: the data URI is malformed, or `source` is an address on the web.
    """
    if not source.startswith(INLINE):
        if "://" in source:
            raise ValueError("an address, and llmrec downloads no images")
        return Path(source).read_bytes()
    header, comma, content = source.partition(",")
    if not comma:
        raise ValueError("a data URI without a comma")
    if not header.endswith(";base64"):
        return unquote_to_bytes(content)
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a data URI that is not base64: {error}") from None
