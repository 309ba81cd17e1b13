"""Writes a made-up shop whose items are set apart by two things: one is in their texts, the other in their pictures.

    python scripts/picture_shop.py shop

writes `shop/items.csv` (item_id, title, picture), `shop/pictures/`, `shop/events.csv`, `shop/truth.csv` (item_id,
family, style) and `shop/encoder/`: an image encoder without training, for sentence-transformers. The titles tell the 8
families apart and the pictures the 8 styles; each says nothing about the other. Every user buys items of one family and
one style, so the next purchase is one of 10 items for who knows both, and one of 80 for who knows one of them.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

GROUPS = 8
"""Families, and styles."""
EACH = 10
"""Items of one family and one style."""
USERS = 400
EVENTS = 6
SIDE = 32
"""Pixels of a picture's side."""


def write_shop(folder: Path, seed: int = 0) -> None:
    """Write the shop into a new `folder`, without the encoder."""
    rng = np.random.default_rng(seed)
    cells = np.repeat(np.arange(GROUPS**2), EACH)
    family, style = np.divmod(cells, GROUPS)
    ids = [f"i{row:03}" for row in rng.permutation(len(cells))]
    (folder / "pictures").mkdir(parents=True)
    for item, which in zip(ids, style.tolist(), strict=True):
        picture(which, rng).save(folder / "pictures" / f"{item}.png")
    titles = [" ".join(f"w{which}{word}" for word in rng.permutation(12)[:6]) for which in family.tolist()]
    items = pl.DataFrame({"item_id": ids, "title": titles, "picture": [f"pictures/{item}.png" for item in ids]})
    items.write_csv(folder / "items.csv")
    pl.DataFrame({"item_id": ids, "family": family, "style": style}).write_csv(folder / "truth.csv")
    events = [
        (f"u{user:03}", ids[cell * EACH + place], time)
        for user, cell in enumerate(rng.integers(GROUPS**2, size=USERS).tolist())
        for time, place in enumerate(rng.permutation(EACH)[:EVENTS].tolist())
    ]
    schema = ["user_id", "item_id", "timestamp"]
    pl.DataFrame(events, schema=schema, orient="row").write_csv(folder / "events.csv")


def picture(style: int, rng: np.random.Generator) -> Image.Image:
    """A picture of the style: a colour, not always the same, with a grey square anywhere."""
    corner = [255 * (style >> channel & 1) for channel in range(3)]
    pixels = np.clip(corner + rng.normal(0, 20, 3) + rng.normal(0, 10, (SIDE, SIDE, 3)), 0, 255)
    top, left = rng.integers(SIDE - 6, size=2)
    pixels[top : top + 6, left : left + 6] = 128
    return Image.fromarray(pixels.astype(np.uint8))


def write_encoder(folder: Path, seed: int = 0) -> None:
    """Write a tiny CLIP model with random weights, which sentence-transformers loads as any other."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={"vocab_size": 4, "max_position_embeddings": 8, "bos_token_id": 2, "eos_token_id": 3, **size},
        vision_config={"image_size": SIDE, "patch_size": 8, **size},
        projection_dim=8,
    )
    pixels = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(image_processor=pixels, tokenizer=tokenizer).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder for the shop")
    folder = parser.parse_args().folder
    write_shop(folder)
    write_encoder(folder / "encoder")
    print(f"{GROUPS**2 * EACH} items with pictures, {USERS} users and an image encoder in {folder}")


if __name__ == "__main__":
    main()
