"""The encoder of the items' images: any model that sentence-transformers loads and that takes images.

CLIP (Radford et al., arXiv 2103.00020) is such a model: `--embed.image_encoder sentence-transformers/clip-ViT-B-32`.
Vectors are cached by the content of the image and the weights of the model.
"""

import io
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from llmrec.console import get_logger, progress_bar
from llmrec.data.catalog import Catalog
from llmrec.data.images import image_bytes
from llmrec.embed.config import EmbedConfig
from llmrec.embed.encoder import SHARD, SentenceEncoder, load_sentence_model
from llmrec.errors import UserError
from llmrec.resources import first_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from sentence_transformers import SentenceTransformer

log = get_logger(__name__)

PASS = 32
"""Images per forward pass, which are in memory together."""


class ImageEncoder(SentenceEncoder):
    """The vectors of the images that a catalogue names, by the model `image_encoder` of the configuration."""

    def __init__(self, config: EmbedConfig) -> None:
        super().__init__(replace(config, max_tokens=None))  # which is for texts

    def of_items(self, catalog: Catalog, report: bool) -> np.ndarray:
        """The vectors of the images of n items: float32 [n, D]; NaN for an item without an image that can be read.

        Args:
            catalog: n items with `images`.
            report: log in one line how many images are missing or can't be read.

        Raises:
            UserError: the model can't be loaded or takes no images, or an item has no image that can be read and
                `config.without_image` is `fail`.
        """
        keys: dict[str, str] = {}
        unread: dict[str, str] = {}
        for item in catalog.ids:
            if source := catalog.images.get(item):
                try:
                    keys[item] = blake2b(image_bytes(source), digest_size=16).hexdigest()
                except (OSError, ValueError) as error:
                    unread[item] = _reason(error)
        damaged = self._embed({key: catalog.images[item] for item, key in keys.items()})
        unread |= {item: damaged[key] for item, key in keys.items() if key in damaged}
        rows = [row for row, item in enumerate(catalog.ids) if item in keys and item not in unread]
        if len(rows) < len(catalog):
            self._complain(catalog, len(rows), unread, report)
        vectors = np.full((len(catalog), self._model.get_embedding_dimension()), np.nan, np.float32)
        if rows:
            vectors[rows] = self._cache.get([keys[catalog.ids[row]] for row in rows])
        return vectors

    def _embed(self, sources: Mapping[str, str]) -> dict[str, str]:
        """Put the vectors of images into the cache, where they are missing.

        Args:
            sources: hash of the image's file -> its path or data URI.

        Returns:
            Hash -> why the image can't be read, for those that can't.
        """
        cache, damaged = self._cache, dict[str, str]()
        missing = cache.missing(list(sources))
        with closing(progress_bar("embed", len(missing), unit="images")) as bar:
            for start in range(0, len(missing), SHARD):
                shard = missing[start : start + SHARD]
                done: list[str] = []
                vectors = []
                for at in range(0, len(shard), PASS):
                    opened: dict[str, Image] = {}
                    for key in shard[at : at + PASS]:
                        try:
                            opened[key] = open_image(image_bytes(sources[key]))
                        except Exception as error:  # Pillow's readers raise many types for a damaged file
                            damaged[key] = _reason(error)
                    if opened:
                        vectors.append(self._forward(list(opened.values())))
                        done += opened
                    bar.advance(len(shard[at : at + PASS]))
                if done:
                    cache.add(done, np.concatenate(vectors))
        return damaged

    def _complain(self, catalog: Catalog, readable: int, unread: Mapping[str, str], report: bool) -> None:
        """Raise or log that some of the n items of `catalog` have no vector; `unread` is item -> why."""
        without = len(catalog) - readable - len(unread)
        parts = [f"{without:,} of {len(catalog):,} items name no image"] if without else []
        if unread:
            item, reason = next(iter(unread.items()))
            source = catalog.images[item]
            parts.append(
                f"the images of {len(unread):,} of {len(catalog):,} items can't be read, such as that of item "
                f"{item!r:.80}, {source[:40] + '...' if len(source) > 120 else source}: {reason}"
            )
        trouble = "; ".join(parts)
        if self.config.without_image == "fail":
            raise UserError(
                f"--embed.without_image fail: {trouble}; add them (--data.columns.image, or --image-column of "
                "add-items, names their column), or use --embed.without_image mean."
            )
        if report:
            log.warning("%s; they get the mean of the others (--embed.without_image mean).", trouble)

    @property
    def _name(self) -> str:
        assert self.config.image_encoder is not None, "checked by EmbedConfig"
        return self.config.image_encoder

    def _load_model(self) -> "SentenceTransformer":
        model = load_sentence_model(self._name, "--embed.image_encoder", "give the folder of a model")
        if "image" not in model.modalities:
            raise UserError(
                f"--embed.image_encoder {self._name}: takes {', '.join(map(str, model.modalities))}, expected a model "
                "that takes images, such as sentence-transformers/clip-ViT-B-32."
            )
        return model


def open_image(content: bytes) -> "Image":
    """The image in `content`, as RGB, the way up that its camera noted, and on white where it is transparent.

    Raises:
        Exception: of many types, if Pillow can't read it as an image.
    """
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")


def _reason(error: Exception) -> str:
    """Why an image can't be read: an error of the system by its words, without the path."""
    return error.strerror or first_line(error) if isinstance(error, OSError) else first_line(error)
