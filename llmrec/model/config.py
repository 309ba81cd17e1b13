"""Settings of the language model: sections `base`, `train.lora` and `train.dense` of the configuration."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from llmrec.checks import check_fields
from llmrec.errors import UserError

InitRows = Literal["gaussian", "mean", "text", "codebook"]


@dataclass
class BaseConfig:
    """The language model to start from."""

    model: str | None = None
    """Path or Hub id of any causal language model, such as Qwen/Qwen3-0.6B, or of an encoder-decoder, such as
    google-t5/t5-small, or a GGUF file (needs the gguf extra); default: make a small random model. The folder of a
    bundle: training goes on from it, with its item tokens, encoder, semantic IDs and dense head."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the checkpoint; switch on only if you trust its author."""
    bits: Literal[32, 8, 4] = 32
    """Bits per weight; 8 and 4 need bitsandbytes and a frozen base: train.method lora, train.lora.merge false (QLoRA,
    arXiv 2305.14314). The bundle's base is loaded with as many bits."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights of base.model that stay frozen (train.method lora); the adapter and the item tokens' rows are
    float32. auto: bfloat16 where the hardware multiplies it faster. Training all weights needs float32."""
    keep_layers: int = 0
    """Number of decoder layers of base.model to keep, the first ones, under its final norm; 0: all. SLMRec
    (arXiv 2405.17890) keeps 8 of 32 and loses little; time and memory fall almost as much as the layers."""
    chat_template: bool = True
    """Ask in the chat format of base.model, if it has one. false: prompts are plain text, which has fewer tokens: the
    chat format of SmolLM2 is half of a short example."""
    token_prefix: str = ""
    """Prefix in the names of item tokens, <{prefix}a_12>; set it if the tokenizer already has tokens such as <a_12>."""
    architecture: Literal["qwen3", "llama", "t5"] = "qwen3"
    """Architecture of a model made here (that is, without base.model). t5 is an encoder-decoder: the encoder reads the
    prompt, the decoder writes the answer (TIGER, arXiv 2305.05065)."""
    hidden_size: int = 256
    """Hidden size of a model made here."""
    layers: int = 4
    """Number of layers of a model made here; t5 has as many in the encoder as in the decoder."""
    heads: int = 4
    """Number of attention heads of a model made here; it has heads / 2 key-value heads, t5 as many as heads."""
    head_size: int = 0
    """Width of an attention head of a model made here; 0: hidden_size / heads."""
    feed_forward: int = 0
    """Width of the feed-forward blocks of a model made here; 0: as many weights as an ungated block of 4 * hidden_size
    has."""
    vocabulary: int = 4096
    """Size of the byte-level BPE tokenizer trained on the catalogue's text, for a model made here."""
    context: int = 512
    """Maximum length of a sequence, in tokens, of a model made here."""
    pretrain_epochs: int = 0
    """Passes over the catalogue's text before fine-tuning, for a model made here."""
    init_rows: InitRows = "gaussian"
    """Initial values of the new token rows: gaussian (drawn with the mean and deviations of the old rows), mean (the
    mean of the old rows plus a little noise), text (the mean of the words of the items with this code) or codebook (a
    random projection of the quantizer's vectors; gaussian for codes without content: a dedup level or random codes)."""
    seed: int = 0
    """Seed of the weights of a model made here, and of the new token rows of any model."""

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "layers", "heads", "vocabulary", "context")
        others = ("keep_layers", "head_size", "feed_forward", "pretrain_epochs", "seed")
        check_fields(self, "base", at_least={0: others, 1: sizes})
        if self.heads % 2 or self.head_size % 2 or (not self.head_size and self.hidden_size % (2 * self.heads)):
            raise UserError(
                f"--base.hidden_size {self.hidden_size} and --base.heads {self.heads}: the heads must be even and "
                "the width a multiple of twice their number; or set an even --base.head_size."
            )
        if self.architecture == "t5" and self.pretrain_epochs:
            raise UserError(
                f"--base.pretrain_epochs {self.pretrain_epochs} is for models that read on, not for t5; set it to 0."
            )

    def cache_key(self) -> dict[str, Any]:
        """The fields on which the result depends. A field that version 0.1 lacked counts only if it is set."""
        later = {"chat_template": True, "keep_layers": 0, "dtype": "auto", "head_size": 0, "feed_forward": 0}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


@dataclass
class AdapterConfig:
    """The LoRA adapter (arXiv 2106.09685) that --train.method lora trains."""

    rank: int = 16
    """Rank of the adapter's matrices."""
    alpha: int = 32
    """Scale of the adapter: its output is multiplied by alpha / rank."""
    dropout: float = 0.05
    """Dropout rate of the adapter's inputs during training."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Layers that get an adapter: names such as [q_proj, v_proj], or all linear layers except the output head."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead of alpha / rank (rsLoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Train the magnitude and the direction of the weights separately (DoRA, arXiv 2402.09353)."""
    merge: bool = True
    """true: the bundle contains one merged model; false: it contains the adapter only, and loading needs the base."""

    def __post_init__(self) -> None:
        check_fields(self, "train.lora", at_least={1: ("rank",)}, shares=("dropout",))


@dataclass
class DenseConfig:
    """The dense head: it maps the hidden state of the model and the text vectors of the items into one space."""

    weight: float = 0.0
    """Weight of the cosine loss of the head; it is added to the loss of the codes (LIGER, arXiv 2411.18814, uses 1).
    The head also ranks cold items (without training events). 0: no head."""
    dim: int = 128
    """Dimensions of the vectors that the head compares."""
    item_vectors: bool = False
    """Learn a vector of its own for each warm item, which is added to what the head makes of the item's text. A cold
    item has the text alone."""
    vector_dropout: float = 0.2
    """With `item_vectors`, the share of the items that compete by their texts alone in a step, so that the head still
    learns from texts what ranks cold items (DropoutNet, Volkovs et al., NeurIPS 2017)."""
    competing: int = 32_768
    """Items that compete with the targets of a step. If more have training events, a random sample competes, and the
    other targets of the step. On a CPU the head takes most of a step of a small model; fewer items take less."""

    def __post_init__(self) -> None:
        at_least = {0: ("weight",), 1: ("dim", "competing")}
        check_fields(self, "train.dense", at_least=at_least, shares=("vector_dropout",))
