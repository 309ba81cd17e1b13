"""How many bytes of a bundle are what."""

import json
from collections.abc import Iterator
from pathlib import Path

from llmrec.errors import UserError
from llmrec.recommender import bundle, hub
from llmrec.recommender.safety import ADAPTER

PARTS = ("weights", "adapter", "tokenizer", "trie", "dense", "quantizer", "index", "other")


TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template")
"""How the names of a tokenizer's files begin."""


NAMED = {ADAPTER: "adapter", bundle.TRIE: "trie", bundle.DENSE: "dense", bundle.INDEX: "index"}


ADAPTER_ROWS = "trainable_tokens"
"""In the names of an adapter's tensors that are token rows."""


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each part of the bundle in `folder`, of the files that a push takes.

    Returns:
        One number per name of PARTS; their `total`; and `item_token_rows`, what the weights or the adapter hold of it
        for the item tokens.

    Raises:
        UserError: no bundle there.
    """
    header = bundle.read_header(folder)
    parts = dict.fromkeys(PARTS, 0)
    for name in hub.published_files(folder):
        parts[_part(name)] += (folder / name).stat().st_size
    return {**parts, "total": sum(parts.values()), "item_token_rows": _row_bytes(folder, sum(header.level_sizes))}


def readable(count: int) -> str:
    """`count` bytes in words: 1,023 B, 1.5 KiB, 600 MiB."""
    power = max(0, min(4, (count.bit_length() - 1) // 10))
    return f"{count / 1024**power:,.3g} {'KMGT'[power - 1]}iB" if power else f"{count} B"


def _part(name: str) -> str:
    place, _, file = name.rpartition("/")
    if place == bundle.QUANTIZER:
        return "quantizer"
    if name in NAMED:
        return NAMED[name]
    if name.endswith(".safetensors"):
        return "weights"
    return "tokenizer" if not place and file.startswith(TOKENIZER) else "other"


def _row_bytes(folder: Path, tokens: int) -> int:
    """Bytes of the item tokens' rows: an adapter has them as tensors; in a model, a part of each matrix of all rows."""
    from tokenizers import Tokenizer

    tensors = [tensor for path in sorted(folder.glob("*.safetensors")) for tensor in _tensors(path)]
    if any(ADAPTER_ROWS in name for name, _, _ in tensors) or not tensors:
        return sum(size for name, _, size in tensors if ADAPTER_ROWS in name)
    rows = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    return sum(tokens * size // rows for _, shape, size in tensors if len(shape) == 2 and shape[0] == rows)


def _tensors(path: Path) -> Iterator[tuple[str, list[int], int]]:
    """Name, shape and bytes of every tensor of a file of weights, from its head."""
    if _part(path.name) not in ("weights", "adapter"):
        return
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head = file.read(min(length, path.stat().st_size))
    try:
        for name, tensor in json.loads(head).items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                yield name, tensor["shape"], end - begin
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a safetensors file: {error}.") from None
