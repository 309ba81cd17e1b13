"""The Recommender: the main class of the Python API, from training to answers."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import polars as pl

from llmrec import __version__
from llmrec.atomic import usual_modes
from llmrec.collaborative.fusion import FusionWeights
from llmrec.collaborative.teacher import Teacher
from llmrec.data import Catalog, EvalExamples, Interactions
from llmrec.data.interactions import Split
from llmrec.data.sequences import TRAIN
from llmrec.decode.calibrate import calibrate
from llmrec.decode.choose import check_decoding, check_fit, make_search
from llmrec.decode.config import DecodeConfig, RankingName
from llmrec.decode.ranker import ItemRanker, make_ranking
from llmrec.decode.rankings.base import ItemFacts
from llmrec.decode.search import BeamSearch
from llmrec.errors import UserError
from llmrec.index.dense import DenseIndex
from llmrec.index.trie import ItemTrie
from llmrec.intentions.intentions import Intentions
from llmrec.model.adapter import add_item_rows, merged, row_start
from llmrec.model.architecture import context_length
from llmrec.model.base import load_base, make_base, weight_dtype
from llmrec.model.config import BaseConfig
from llmrec.model.tokens import ItemVocabulary
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender import bundle
from llmrec.recommender.answer import answers
from llmrec.recommender.request import Answer, Request
from llmrec.recommender.store import IfExists, ItemStore
from llmrec.recommender.weights import load_weights, save_weights
from llmrec.tasks.config import ASKED, TasksConfig, Template, load_templates, save_templates, tokenizer_texts
from llmrec.tasks.render import Renderer
from llmrec.train.config import TrainConfig
from llmrec.train.finetune import TrainingData, finetune

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Recommender:
    """A language model that recommends the items of one catalogue.

    Make one with `from_base` and `fit` it, or load one with `from_pretrained`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        store: ItemStore,
        base: BaseConfig,
        base_model: str,
        templates: Mapping[str, Template] | None = None,
        max_history: int = TasksConfig.max_history,
        decode_config: DecodeConfig | None = None,
    ) -> None:
        """
        Args:
            model: causal language model or encoder-decoder, or a PEFT model, with rows for the item tokens.
            tokenizer: the model's tokenizer, with the item tokens.
            store: the items.
            base: gives the prefix of the item tokens' names.
            base_model: name of the model that the training started from; the bundle records it.
            templates: task name -> prompts; default: the prompts that llmrec ships.
            max_history: largest number of history items in a prompt.
            decode_config: beams, batch size, device.

        Attributes:
            fusion_weights: weights of the fusion ranking; None before the calibration.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.base = base
        self.base_model = base_model
        self.templates = dict(templates or load_templates())
        self.max_history = max_history
        self._store = store
        self._decode_config = decode_config or DecodeConfig()
        self.fusion_weights: FusionWeights | None = None
        self._ranker: ItemRanker | None = None
        self._taught: set[str] = set()

    @classmethod
    def from_base(
        cls,
        name: str | Path | None,
        item_tokenizer: ItemTokenizer,
        catalog: Catalog | None = None,
        config: BaseConfig | None = None,
        frozen: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Make a recommender that is ready for `fit`.

        Args:
            name: path or Hub id of any causal language model or encoder-decoder; None makes a small one for the
                catalogue's text.
            item_tokenizer: a fitted item tokenizer.
            catalog: the items; default: the items that the item tokenizer was fitted on.
            config: sizes of a model made here, prefix of the item tokens' names, seed.
            frozen: whether `fit` will leave the weights of `name` as they are (`TrainConfig.method` lora). They are
                then loaded in the type that `BaseConfig.dtype` says, for auto bfloat16 where it is faster.
            kwargs: `templates`, `max_history`, `decode_config` of the constructor.

        Raises:
            UserError: the model can't be loaded, or its tokenizer already has tokens with the names of item tokens.
        """
        config, catalog = config or BaseConfig(), catalog or item_tokenizer.catalog
        if name is None:
            templates = kwargs.get("templates") or load_templates()
            model, tokenizer = make_base(config, tokenizer_texts(catalog, templates))
        else:
            dtype = weight_dtype(config, frozen)
            model, tokenizer = load_base(name, config.trust_remote_code, config.bits, config.keep_layers, dtype)
        vocabulary = ItemVocabulary.add_to(tokenizer, item_tokenizer.level_sizes, config.token_prefix)
        texts = catalog.texts(catalog.whole_text) if config.init_rows == "text" else []
        start = row_start(config.init_rows, tokenizer, vocabulary.all_ids, item_tokenizer, texts, config.seed)
        add_item_rows(model, vocabulary.all_ids, len(tokenizer), config.seed, start)
        named = f"a {config.architecture} made by llmrec" if name is None else str(name)
        return cls(model, tokenizer, ItemStore.untrained(catalog, item_tokenizer), config, named, **kwargs)

    @property
    def store(self) -> ItemStore:
        """All data about single items. Setting it discards the ranker; the next request builds a new one."""
        return self._store

    @store.setter
    def store(self, store: ItemStore) -> None:
        self._store = store
        self._ranker = None

    @property
    def catalog(self) -> Catalog:
        """The items' texts and fields."""
        return self.store.catalog

    @property
    def item_tokenizer(self) -> ItemTokenizer:
        """The items' semantic IDs, and the quantizer and encoder that make them."""
        return self.store.item_tokenizer

    @property
    def train_counts(self) -> np.ndarray:
        """int64 [N], the number of training events of each item."""
        return self.store.train_counts

    @property
    def renderer(self) -> Renderer:
        """Writes the prompts for this tokenizer and catalogue."""
        vocabulary = ItemVocabulary.of(self.tokenizer, self.item_tokenizer.level_sizes, self.base.token_prefix)
        return Renderer(self.tokenizer, vocabulary, self.item_tokenizer.codes, self.templates, self.max_history)

    @property
    def decode_config(self) -> DecodeConfig:
        """Beams, ranking, batch size, device. Setting it discards the ranker; the next request builds a new one."""
        return self._decode_config

    @decode_config.setter
    def decode_config(self, config: DecodeConfig) -> None:
        self._decode_config = config
        self._ranker = None

    @property
    def ranker(self) -> ItemRanker:
        """Ranks the catalogue; built at the first use."""
        if self._ranker is None:
            search = make_search(*self._decoded(self.decode_config), self.train_counts == 0)
            self._ranker = self._ranker_of(search, None)
        return self._ranker

    def _decoded(self, config: DecodeConfig) -> tuple[Any, ItemVocabulary, ItemTrie, DecodeConfig, int]:
        """The arguments of `check_decoding`."""
        return self.model, self.renderer.vocabulary, self.store.trie, config, self.tokenizer.pad_token_id or 0

    def ranked_by(self, name: RankingName) -> ItemRanker:
        """A ranker with the ranking method `name`, instead of that of `decode_config`.

        Raises:
            UserError: the model or its bundle lacks a part that this method needs, such as the dense head.
        """
        return self._ranker_of(self.ranker.search, name)

    def _ranker_of(self, search: BeamSearch, name: RankingName | None) -> ItemRanker:
        own, levels = self.store, self.item_tokenizer.quantizer.levels
        dense = None if own.dense is None else own.dense.to(search.device)
        facts = ItemFacts(own.train_counts == 0, levels, dense, self.fusion_weights, own.experts)
        method = make_ranking(search, facts, search.config, name)
        return ItemRanker(self.renderer, search, context_length(self.model), method)

    def fit(
        self,
        log: Interactions,
        validation: EvalExamples | None = None,
        tasks: TasksConfig | None = None,
        train: TrainConfig | None = None,
        folder: str | Path | None = None,
        intentions: Intentions | None = None,
        vectors: np.ndarray | None = None,
        decode_config: DecodeConfig | None = None,
        teacher: Teacher | None = None,
    ) -> Self:
        """Fine-tune on a log, after a trial of whether the model can be decoded.

        Args:
            log: the training events: the `train` part of a split, never its test part.
            validation: examples for the validation loss.
            tasks: the task mixture.
            train: method and schedule.
            folder: for checkpoints and the log; training resumes from a checkpoint there. Default: a temporary folder.
            intentions: what people want, in words: data for the tasks on requests and preferences.
            vectors: float32 [N, D], the items' vectors by the item tokenizer's encoder, for a dense head; default: the
                encoder makes them here if `train` has a dense head.
            decode_config: how the model will be decoded; default: as this recommender does.
            teacher: of the same log and item tokenizer; needed for `train.distill`.

        Raises:
            UserError: there is no training example, the method does not fit the model, a dense head has no encoder, a
                distillation has no teacher; or as in `check_decoding`.
        """
        check_decoding(*self._decoded(decode_config or self.decode_config))
        train, tasks = train or TrainConfig(), tasks or TasksConfig(max_history=self.max_history)
        if train.dense.weight and vectors is None:
            vectors = self.item_tokenizer.embed(self.catalog, self.item_tokenizer.embed_config.files)
        events = log.frame.with_columns(part=pl.lit(TRAIN, dtype=pl.UInt8))
        sequences = Split(events, {"kind": "train"}).sequences(self.catalog)
        events_of = sequences.train_sequences()
        data = TrainingData(self.catalog, events_of, validation, sequences.users, intentions, vectors, teacher)
        with tempfile.TemporaryDirectory() as temporary:
            self.model, head = finetune(self.model, self.renderer, data, tasks, train, Path(folder or temporary))
        dense = DenseIndex.of(head.cpu().float(), vectors) if head is not None and vectors is not None else None
        self.store = replace(self.store, train_counts=sequences.train_counts(len(self.catalog)), dense=dense)
        self.fusion_weights = None
        self._taught |= {name for name, rate in tasks.mixture.items() if rate > 0}
        return self

    def calibrate(self, cases: EvalExamples, most: int = 10_000, seed: int = 0) -> Self:
        """Learn the weights of the fusion ranking from validation examples. After that, `ranking: auto` means fusion.

        Args:
            cases: examples that the model was not trained on, with warm and cold items as targets. With too few warm
                targets the fusion stays uncalibrated; with too few cold targets cold items get the weights of warm
                items. The log says so.
            most: largest number of examples with a warm target, drawn with `seed`; all with a cold target are used.
            seed: seed of the draw.

        Raises:
            UserError: the model has no dense head, or does not accept a tree attention mask.
        """
        chosen = (self.train_counts == 0)[cases.targets]
        chosen[np.random.default_rng(seed).permutation(np.flatnonzero(~chosen))[:most]] = True
        weights = calibrate(self.ranked_by("fusion"), cases.where(chosen), self.decode_config.warm_floor)
        self.fusion_weights, self._ranker = weights, None
        return self

    def merge(self) -> Self:
        """Merge a LoRA adapter into the weights, so that the bundle needs no base model."""
        self.model, self._ranker = merged(self.model), None
        return self

    @overload
    def recommend(
        self, history: Sequence[str] | None = None, prompt: str | None = None, k: int = 10, **options: Any
    ) -> Answer: ...

    @overload
    def recommend(
        self, *, histories: Sequence[Sequence[str]], prompt: str | None = None, k: int = 10, **options: Any
    ) -> list[Answer]: ...

    def recommend(
        self,
        history: Sequence[str] | None = None,
        prompt: str | None = None,
        k: int = 10,
        histories: Sequence[Sequence[str]] | None = None,
        **options: Any,
    ) -> Answer | list[Answer]:
        """The k best items for a history (item ids, oldest first), a request in plain words, or both.

        Args:
            history: item ids, oldest first.
            prompt: the request in words.
            k: number of answers.
            histories: one history per user, instead of `history`: decoded together, with one answer for each.
            options: the other fields of `Request`, such as exclude, where and unknown.

        Raises:
            UserError: as for `Request` and `answer`, or `history` and `histories` are both given.
        """
        if histories is None:
            return self.answer(Request(history, prompt, k, **options))
        if history is not None:
            raise UserError("history and histories are both given; leave one of them out.")
        requests = [Request(each, prompt, k, **options) for each in histories]
        every = [request.history for request in requests]
        return answers(self.store, self.ranker, requests[0], every) if requests else []

    def answer(self, request: Request) -> Answer:
        """The best items for a request; errors are those of `answers`."""
        return answers(self.store, self.ranker, request, [request.history])[0]

    def add_items(self, catalog: Catalog, vectors: np.ndarray | None = None, if_exists: IfExists = "refuse") -> Self:
        """Add items without training; they can be recommended at once.

        The items that are there keep their codes and rows. After an error nothing has changed. Arguments and errors are
        those of `ItemStore.with_items`.
        """
        self.store = self.store.with_items(catalog, vectors, if_exists)
        return self

    def remove_items(self, item_ids: Sequence[str]) -> Self:
        """Remove items; the others keep their codes and order. Errors are those of `ItemStore.without_items`."""
        self.store = self.store.without_items(item_ids)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the bundle into `folder`, which is created if it does not exist; a bundle there is replaced.

        Raises:
            UserError: the folder holds no bundle, but a file with the name of a bundle file.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        bundle.require_writable(folder)
        save_weights(self.model, self.tokenizer, folder)
        self.item_tokenizer.save(folder / bundle.QUANTIZER)
        # The bundle holds the prompts of the tasks that the model was trained on, and of those that requests use.
        asked = self._taught.union(ASKED) if self._taught else self.templates
        templates = {name: template for name, template in self.templates.items() if name in asked}
        save_templates(templates, folder / bundle.PROMPTS)
        self.store.save(folder)
        if self.fusion_weights is not None:
            self.fusion_weights.save(folder / bundle.FUSION)
        adapter = getattr(self.model, "peft_config", {}).get("default")
        header = bundle.Header(
            schema=bundle.SCHEMA,
            llmrec=__version__,
            levels=len(self.item_tokenizer.level_sizes),
            level_sizes=list(self.item_tokenizer.level_sizes),
            token_prefix=self.base.token_prefix,
            scoring=self.decode_config.scoring,
            base_model=self.base_model if adapter is None else adapter.base_model_name_or_path,
            weights="model" if adapter is None else "adapter",
            max_history=self.max_history,
            keep_layers=self.base.keep_layers,
        )
        bundle.write_header(header, folder)
        usual_modes(folder)

    def push_to_hub(
        self, repo_id: str, private: bool = False, revision: str | None = None, message: str = "Upload a recommender"
    ) -> str:
        """Publish the bundle on the Hub. Arguments, errors and the returned address are those of `bundle.push`."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return bundle.push(folder, repo_id, private, revision, message)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        decode_config: DecodeConfig | None = None,
        trust_remote_code: bool = False,
        encoder: str | None = None,
        base: str | Path | None = None,
    ) -> Self:
        """Load a bundle from a folder or the Hub.

        Args:
            name: path or Hub id.
            decode_config: beams, batch size, device; default: `DecodeConfig()` with the bundle's scoring.
            trust_remote_code: run the Python code that comes with the model.
            encoder: folder or Hub id of the sentence-transformers model that embeds items added later. A name in the
                bundle is not used, because the bundle may come from an untrusted author.
            base: folder or Hub id of the base model of an adapter; default: the base model that the bundle names, if it
                is on this machine.

        Raises:
            UserError: there is no bundle, a part of it can't be read, or its parts don't belong together.
        """
        folder = bundle.locate(name)
        header = bundle.read_header(folder)
        model, tokenizer = load_weights(folder, header, trust_remote_code, base)
        vocabulary = ItemVocabulary.of(tokenizer, header.level_sizes, header.token_prefix)
        recommender = cls(
            model,
            tokenizer,
            ItemStore.load(folder, header, encoder),
            BaseConfig(token_prefix=header.token_prefix, keep_layers=header.keep_layers),
            header.base_model,
            load_templates(folder / bundle.PROMPTS),
            header.max_history,
            decode_config or DecodeConfig(scoring=header.scoring),
        )
        if (folder / bundle.FUSION).exists():
            recommender.fusion_weights = FusionWeights.load(folder / bundle.FUSION)
        check_fit(model, vocabulary, recommender.store.trie)
        recommender.renderer.check_chat_format(str(folder))
        return recommender
