"""Vectors kept on disk by content hash, so that a text is embedded once per model."""

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from llmrec.errors import UserError


class VectorCache:
    """The vectors of one encoder: shards with `keys` (uint8 [n, 16]) and `vectors` (float32 [n, D])."""

    def __init__(self, root: str | None, identity: str) -> None:
        """`root` as in `EmbedConfig.cache`; `identity` names all that determines a text's vector."""
        default = os.environ.get("LLMREC_CACHE") or Path.home() / ".cache" / "llmrec" / "embeddings"
        self.folder = Path(root or default).expanduser() / identity
        self._vectors: dict[bytes, np.ndarray] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            try:
                tensors = load_file(shard)
            except SafetensorError as error:
                raise UserError(f"{shard}: not a readable cache file ({error}); delete it") from error
            keys = (row.tobytes() for row in tensors["keys"])
            self._vectors.update(zip(keys, tensors["vectors"], strict=True))

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The distinct `texts` that have no vector yet, in their order."""
        return [text for text in dict.fromkeys(texts) if _key(text) not in self._vectors]

    def get(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (float32 [n, D]) of `texts`, all of which must be present."""
        return np.stack([self._vectors[_key(text)] for text in texts])

    def add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Keep `vectors` [n, D] of `texts` as one more shard; a reader never sees half of it."""
        keys = [_key(text) for text in texts]
        self._vectors.update(zip(keys, vectors, strict=True))
        self.folder.mkdir(parents=True, exist_ok=True)
        shard = self.folder / f"{blake2b(b''.join(keys), digest_size=16).hexdigest()}.safetensors"
        partial = shard.with_suffix(f".{os.getpid()}.partial")
        rows = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1)
        save_file({"keys": rows, "vectors": np.ascontiguousarray(vectors, np.float32)}, partial)
        os.replace(partial, shard)


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
