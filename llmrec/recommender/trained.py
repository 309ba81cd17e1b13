"""The parts of a recommender that saving and alignment use; it keeps their files from importing the Recommender."""

from typing import TYPE_CHECKING, Any, Protocol

from llmrec.collaborative.fusion import FusionWeights
from llmrec.data import Catalog
from llmrec.decode.config import DecodeConfig
from llmrec.model.config import BaseConfig
from llmrec.preference.config import PreferenceMethod
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.store import ItemStore
from llmrec.tasks.config import Template
from llmrec.tasks.render import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Trained(Protocol):
    """A `Recommender`, which has these attributes."""

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    store: ItemStore
    base: BaseConfig
    base_model: str
    templates: dict[str, Template]
    max_history: int
    user_tokens: bool
    title_tokens: int
    decode_config: DecodeConfig
    fusion_weights: FusionWeights | None
    preference: PreferenceMethod
    taught: set[str]

    @property
    def catalog(self) -> Catalog: ...

    @property
    def item_tokenizer(self) -> ItemTokenizer: ...

    @property
    def renderer(self) -> Renderer: ...
