"""Images become vectors by a real CLIP model, tiny and untrained; those of a planted shop and those of files agree."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from loading import script
from PIL import Image
from safetensors.numpy import load_file

from llmrec import pipeline
from llmrec.config import Config
from llmrec.data import Catalog, DataConfig
from llmrec.data.config import ColumnsConfig
from llmrec.embed import AlignConfig, EmbedConfig, Embeddings, embed
from llmrec.embed import image as images
from llmrec.errors import UserError
from llmrec.quantize.config import TokenizeConfig
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.store import ItemStore
from llmrec.rundir import RunDirectory

picture_shop = script("picture_shop")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "shop"
    picture_shop.write_shop(folder)
    picture_shop.write_encoder(folder / "encoder")
    return folder


@pytest.fixture
def settings(shop: Path, tmp_path: Path) -> Callable[..., EmbedConfig]:
    """EmbedConfig of text and image by the shop's encoder, with other fields as asked."""

    def make(**fields: object) -> EmbedConfig:
        own = {"vectors": ["text", "image"], "image_encoder": str(shop / "encoder"), "cache": str(tmp_path / "cache")}
        return EmbedConfig(**{"encoder": "tfidf-svd", "dim": 12, "dtype": "float32", **own, **fields})

    return make


def catalog_of(shop: Path) -> Catalog:
    return Catalog.from_file(shop / "items.csv", image_column="picture")


def purity(codes: np.ndarray, truth: pl.Series) -> float:
    """Share of items whose group of `truth` is the most frequent one of their code."""
    groups = truth.to_numpy()
    return sum(np.bincount(groups[codes == code]).max() for code in np.unique(codes)) / len(codes)


def test_fused_codes_find_both_halves_of_a_planted_shop(shop: Path, settings: Callable[..., EmbedConfig]) -> None:
    """128 codes of 5 items on average and 8 groups: codes without knowledge have a purity of about .36."""
    catalog, truth = catalog_of(shop), pl.read_csv(shop / "truth.csv")
    sources = {
        "text": (None, None),
        "image": ("image", str(shop / "encoder")),
        "both": (["text", "image"], str(shop / "encoder")),
    }
    found = {}
    for name, (vectors, encoder) in sources.items():
        config = settings(vectors=vectors, image_encoder=encoder)
        codes = ItemTokenizer(levels=1, codes=128, embed=config).fit(catalog).codes[:, 0]
        found[name] = purity(codes, truth["family"]), purity(codes, truth["style"])
    assert found["text"][0] > 0.95 > 0.45 > found["text"][1]
    assert found["image"][1] > 0.95 > 0.45 > found["image"][0]
    assert min(found["both"]) > 0.85


def test_vectors_of_a_file_are_those_of_the_images(
    shop: Path, settings: Callable[..., EmbedConfig], tmp_path: Path
) -> None:
    catalog = catalog_of(shop)
    own = embed(catalog, settings(vectors="image"))
    own.save(tmp_path / "own")
    file = str(tmp_path / "own" / "embeddings.safetensors")
    by_file = settings(vectors=["text", file], image_encoder=None)
    np.testing.assert_array_equal(embed(catalog, settings()).vectors, embed(catalog, by_file).vectors)


def stored(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def test_images_are_opened_as_they_are_meant_to_be_seen() -> None:
    clear = images.open_image(stored(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), format="PNG"))
    assert (clear.mode, clear.getpixel((0, 0))) == ("RGB", (255, 255, 255)), "transparent on white"
    wide = Image.new("RGB", (4, 2), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    assert images.open_image(stored(wide, format="JPEG", exif=exif)).size == (2, 4)
    grey = images.open_image(stored(Image.new("L", (1, 1), 7), format="PNG"))
    assert grey.getpixel((0, 0)) == (7, 7, 7)


@pytest.fixture
def faulty(tmp_path: Path) -> Catalog:
    """Eight items: six pictures, of which two are the same, a broken one, and none; texts tell them all apart."""
    rng = np.random.default_rng(0)
    for item in "abcde":
        picture_shop.picture(rng.integers(8), rng).save(tmp_path / f"{item}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    names = [f"{item}.png" for item in "abcde"] + ["a.png", "broken.png", None]
    titles = ["red mug", "red pot", "blue mug", "blue pot", "tea pot", "tea mug", "green cup", "green pan"]
    frame = pl.DataFrame({"item_id": [f"i{row}" for row in range(8)], "title": titles, "photo": names})
    return Catalog.from_table(frame, str(tmp_path / "items.csv"), "item_id", "title", "photo")


def test_missing_and_broken_images_stop_or_are_counted(
    faulty: Catalog, settings: Callable[..., EmbedConfig], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError) as error:
        embed(faulty, settings(dim=3))
    assert "1 of 8 items name no image; the images of 1 of 8 items can't be read, such as that of item 'i6'" in str(
        error.value
    )
    assert "broken.png: " in str(error.value)
    assert "or use embed.without_image mean" in str(error.value)
    found = embed(faulty, settings(dim=3, without_image="mean"))
    warned = [record.message for record in caplog.records if "can't be read" in record.message]
    assert len(warned) == 1
    assert "they get the mean of the others" in warned[0]
    x = found.vectors[:, 3:]
    np.testing.assert_array_equal(x[6:], 0)
    np.testing.assert_array_equal(x[0], x[5])
    assert np.abs(x[:6]).max(axis=1).min() > 0
    np.testing.assert_allclose(x[:6].mean(axis=0), 0, atol=1e-5)


def test_only_new_images_are_embedded(
    faulty: Catalog, settings: Callable[..., EmbedConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache goes by content: item i5 has the picture of i0, and a changed file is embedded anew."""
    seen: list[int] = []
    forward = images.ImageEncoder._forward
    monkeypatch.setattr(images, "PASS", 2)
    monkeypatch.setattr(
        images.ImageEncoder, "_forward", lambda self, part: seen.append(len(part)) or forward(self, part)
    )
    config = settings(dim=3, without_image="mean")
    embed(faulty, config)
    assert seen == [2, 2, 1]
    Image.new("RGB", (9, 9), "white").save(faulty.images["i1"])
    embed(faulty, config)
    assert seen[3:] == [1]


def test_a_model_without_images_is_refused(
    faulty: Catalog, settings: Callable[..., EmbedConfig], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import BoW

    SentenceTransformer(modules=[BoW(["mug", "pot"])]).save(str(tmp_path / "words"))
    with pytest.raises(
        UserError, match=r"embed\.image_encoder .*words: takes text, expected a model that takes images"
    ):
        embed(faulty, settings(dim=3, image_encoder=str(tmp_path / "words")))
    with pytest.raises(UserError, match=r"embed\.image_encoder nowhere: cannot be loaded as a sentence-transformers"):
        embed(faulty, settings(dim=3, image_encoder="nowhere"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image_encoder": None}, "image needs a model; name one in embed.image_encoder"),
        ({"vectors": None}, "embed.vectors None does not name image"),
        ({"vectors": ["image", "image"]}, "names image twice"),
        ({"vectors": "image", "without_image": "mean"}, "needs image and another source"),
        ({"vectors": ["text", "v.npy"], "image_encoder": None, "without_image": "mean"}, "needs image and another"),
    ],
)
def test_settings_that_do_not_go_together(fields: dict, said: str, settings: Callable[..., EmbedConfig]) -> None:
    with pytest.raises(UserError) as error:
        settings(**fields)
    assert said in str(error.value)


def test_a_run_needs_the_column_of_images(settings: Callable[..., EmbedConfig]) -> None:
    with pytest.raises(
        UserError, match=r"image needs the images of the items; name their column in data\.columns\.image"
    ):
        Config(embed=settings())


def test_new_items_with_images_and_a_bundle_of_somebody_else(
    shop: Path, settings: Callable[..., EmbedConfig], tmp_path: Path
) -> None:
    """New items come in the space of the fit; a model that a bundle names is loaded only if the caller names it too."""
    catalog = catalog_of(shop)
    known, new = catalog.take_rows(range(600)), catalog.take_rows(range(600, 640))
    whole = embed(catalog, settings(without_image="mean"), fit_on=known)
    tokenizer = ItemTokenizer(levels=2, codes=8).fit_embeddings(known.ids, whole.vectors[:600], whole.encoder)
    tokenizer.save(tmp_path / "tokenize")
    own = ItemTokenizer.load(tmp_path / "tokenize")
    np.testing.assert_allclose(own.embed(new), whole.vectors[600:], atol=1e-5)
    without = own.embed(Catalog(new.frame))
    np.testing.assert_array_equal(without[:, 12:], 0)
    store = ItemStore.untrained(Catalog(known.frame), own).with_items(new)
    codes = own.encode(whole.vectors[600:])
    np.testing.assert_array_equal(store.item_tokenizer.codes[600:, :2], codes)
    others = ItemTokenizer.load(tmp_path / "tokenize", own=False)
    with pytest.raises(UserError, match=r"image_encoder is missing: the bundle's items were embedded by '.*encoder'"):
        others.embed(new)
    confirmed = ItemTokenizer.load(tmp_path / "tokenize", own=False, image_encoder=str(shop / "encoder"))
    np.testing.assert_array_equal(confirmed.embed(new), own.embed(new))
    with pytest.raises(UserError, match="this bundle embeds without sentence-transformers"):
        ItemTokenizer.load(tmp_path / "tokenize", encoder="x")


def test_a_run_with_images_is_redone_when_one_changes(
    shop: Path, settings: Callable[..., EmbedConfig], tmp_path: Path
) -> None:
    data = DataConfig(
        "table",
        str(shop / "events.csv"),
        str(shop / "items.csv"),
        ColumnsConfig(image="picture"),
        item_core=1,
        unused_items="keep",
    )
    align = AlignConfig(epochs=1, min_count=1)
    config = Config(data, settings(align=align), TokenizeConfig(levels=2, codes=8))

    def vectors() -> np.ndarray:
        with RunDirectory(tmp_path / "run") as run:
            pipeline.run(config, run, until="tokenize")
        return Embeddings.load(tmp_path / "run" / "embed").vectors

    before = vectors()
    made = (tmp_path / "run" / "embed" / "manifest.json").stat().st_mtime_ns
    np.testing.assert_array_equal(vectors(), before)
    assert (tmp_path / "run" / "embed" / "manifest.json").stat().st_mtime_ns == made
    first = next(iter(catalog_of(shop).images.values()))
    content = Path(first).read_bytes()
    Image.new("RGB", (9, 9), "white").save(first)
    try:
        assert np.abs(vectors() - before).max() > 1e-3
    finally:
        Path(first).write_bytes(content)
    assert "head" in load_file(tmp_path / "run" / "embed" / "fusion.safetensors")
