"""The `embed` section of the configuration."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llmrec.checks import check_fields
from llmrec.errors import UserError

TEXT = "text"
"""The source in `EmbedConfig.vectors` that stands for the encoder."""
IMAGE = "image"
"""The source in `EmbedConfig.vectors` that stands for the image encoder."""
EncoderName = Literal["sentence-transformers", "minilm-offline", "tfidf-svd"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass
class AlignConfig:
    """Alignment of the item vectors with the item pairs of the training log, before the vectors are quantized."""

    epochs: int = 0
    """Passes over the item pairs; 0: no alignment."""
    min_count: int = 2
    """Two items are a pair if they occur close together in the training histories at least this many times."""
    neighbours: int = 10
    """Maximum number of pairs that an item keeps: its strongest ones."""
    batch_size: int = 512
    """Pairs per training step; the items of the other pairs in the step are the negatives."""
    temperature: float = 0.1
    """Temperature of the contrastive loss; a smaller value gives more weight to the hardest negatives."""
    learning_rate: float = 3e-3
    """Learning rate of the optimizer (Adam)."""
    seed: int = 0
    """Seed of the order of the pairs."""

    def __post_init__(self) -> None:
        at_least = {0: ("epochs", "seed"), 1: ("min_count", "neighbours"), 2: ("batch_size",)}
        check_fields(self, "embed.align", at_least=at_least, positive=("temperature", "learning_rate"))


@dataclass
class EmbedConfig:
    """How items become vectors."""

    encoder: EncoderName = "sentence-transformers"
    """A sentence-transformers model, the MiniLM of the `offline` extra, or TF-IDF + SVD (no pretrained weights)."""
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Folder or Hub id of the model (encoder sentence-transformers only)."""
    template: str = ""
    """Text of an item, e.g. "{title}. {brand}"; empty: the title, then all other fields in their order."""
    dim: int = 128
    """Dimensions of the vectors (encoder tfidf-svd only)."""
    batch_size: int = 128
    """Texts per forward pass."""
    max_tokens: int | None = None
    """Maximum number of tokens of a text, the rest is cut off; unset: the model's own limit."""
    dtype: Precision = "auto"
    """Data type in which the model computes; auto: bfloat16 where the hardware multiplies it faster, else float32."""
    normalize: bool = True
    """Scale every vector to length 1."""
    cache: str | None = None
    """Folder that caches the vectors by content hash; unset: $LLMREC_CACHE or ~/.cache/llmrec/embeddings."""
    without_text: Literal["fail", "behaviour", "random"] = "fail"
    """Vectors of the items without text, which --data.empty_text keep keeps. fail: stop, in `prepare`; behaviour: from
    the items that occur with them in the training events, or random for an item without such; random: drawn by the
    item's id."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """Alignment of the vectors with the users' behaviour."""
    graph_trips: int = 0
    """Smooth the item vectors over the training events: each becomes the mean of itself and of so many round trips from
    items to their users and back (LightGCN, arXiv 2002.02126, as the input of MMGRec, 2404.16555). Items without
    training events, items added later and queries keep their own. 0: no smoothing."""
    vectors: list[str] | str | None = None
    """File with vectors of the items, instead of those of the encoder: .parquet with a column `item_id` and a column of
    lists, or .npy or .safetensors with the ids in NAME.ids.txt beside it, one per line. A single file is taken as it
    is. Several in a list are fused; `text` in the list stands for the vectors of the encoder, and `image` for those of
    the image encoder."""
    vector_weights: list[float] = field(default_factory=list)
    """Weight of each source in `vectors`: its share of the squared distances is the square of it; empty: 1 for each."""
    image_encoder: str | None = None
    """Folder or Hub id of a sentence-transformers model that takes images, such as
    sentence-transformers/clip-ViT-B-32, for the source `image` of `vectors`; --data.columns.image names the images."""
    without_image: Literal["fail", "mean"] = "fail"
    """Items without an image that can be read. fail: stop; mean: count them, and give them the mean vector of the
    other images, which is zero after whitening, so that the other sources alone decide."""

    def __post_init__(self) -> None:
        at_least = {0: ("graph_trips",), 1: ("dim", "batch_size", "max_tokens")}
        check_fields(self, "embed", at_least=at_least, positive=("vector_weights",))
        if self.sources and self.without_text != "fail":
            raise UserError(
                f"--embed.without_text {self.without_text}: adds to the vectors of the encoder only; leave it out, or "
                "leave out --embed.vectors."
            )
        if self.vectors is not None and set(self.sources) <= {TEXT}:
            raise UserError(f"--embed.vectors {self.vectors}: names no file; give one, or leave it out.")
        for name in (TEXT, IMAGE):
            if self.sources.count(name) > 1:
                raise UserError(f"--embed.vectors {self.vectors}: names {name} twice; name it once.")
        self._check_images()
        if self.vector_weights and len(self.vector_weights) != len(self.sources):
            raise UserError(
                f"--embed.vector_weights has {len(self.vector_weights)} weights for {len(self.sources)} sources in "
                "--embed.vectors; give one for each."
            )

    def _check_images(self) -> None:
        """Raise UserError if the settings of images do not fit `vectors`."""
        if self.reads_images and self.image_encoder is None:
            raise UserError(
                f"--embed.vectors {self.vectors}: {IMAGE} needs a model; name one in --embed.image_encoder."
            )
        if not self.reads_images and self.image_encoder is not None:
            raise UserError(
                f"--embed.image_encoder {self.image_encoder}: --embed.vectors {self.vectors} does not name {IMAGE}; "
                f'set it to "[{TEXT}, {IMAGE}]", or leave the encoder out.'
            )
        if self.without_image == "mean" and (not self.reads_images or len(self.sources) < 2):
            raise UserError(
                f"--embed.without_image mean: needs {IMAGE} and another source in --embed.vectors, which describes the "
                "items without an image; name one, or set it to fail."
            )

    @property
    def sources(self) -> list[str]:
        """The sources of the vectors: files, `text` and `image`; empty if the encoder makes them."""
        return [self.vectors] if isinstance(self.vectors, str) else list(self.vectors or ())

    @property
    def files(self) -> list[str]:
        """The sources that are files."""
        return [source for source in self.sources if source not in (TEXT, IMAGE)]

    @property
    def reads_texts(self) -> bool:
        """Whether an encoder makes the vectors, at least in part."""
        return not self.sources or TEXT in self.sources

    @property
    def reads_images(self) -> bool:
        """Whether an encoder makes vectors of the items' images."""
        return IMAGE in self.sources

    @property
    def needs_log(self) -> bool:
        """Whether the vectors depend on the training log."""
        return self.without_text == "behaviour" or self.align.epochs > 0 or self.graph_trips > 0

    @property
    def names_a_model(self) -> bool:
        """Whether `model` is loaded to embed further items; `image_encoder` is if `reads_images`."""
        return self.encoder == "sentence-transformers" and self.reads_texts

    @property
    def weights(self) -> list[float]:
        """One weight per source."""
        return self.vector_weights or [1.0] * len(self.sources)

    def cache_key(self) -> dict[str, Any]:
        """The fields on which the vectors depend. A field that earlier versions lacked counts only if it is set."""
        later = ("vectors", "vector_weights", "graph_trips", "image_encoder")
        values = {name: value for name, value in asdict(self).items() if name not in later or value}
        if not self.reads_images:
            del values["without_image"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EmbedConfig":
        """The config from a dictionary, the inverse of `dataclasses.asdict`.

        Args:
            values: field name -> value; fields that are missing keep their defaults.

        Raises:
            UserError: a value is out of range.
        """
        values = dict(values)
        align = AlignConfig(**values.pop("align", {}))
        return cls(**values, align=align)
