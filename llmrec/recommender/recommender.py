"""The Recommender: the main class of the Python API, from training to answers."""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast, overload

import numpy as np
from numpy.typing import ArrayLike

from llmrec.atomic import make_folder
from llmrec.checks import check_argument, check_names, checked, listed
from llmrec.collaborative.fusion import FusionWeights
from llmrec.collaborative.teacher import Teacher
from llmrec.data import Catalog, EvalExamples, Interactions
from llmrec.decode.behaviour import BehaviourStream
from llmrec.decode.calibrate import calibrate
from llmrec.decode.choose import check_decoding, check_fit, check_rows, make_search
from llmrec.decode.config import DecodeConfig, RankingName
from llmrec.decode.queries import Queries
from llmrec.decode.ranker import ItemRanker, make_prompt_ranking, make_ranking
from llmrec.decode.rankings.base import ItemFacts
from llmrec.decode.search import BeamSearch
from llmrec.embed import as_vectors
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.intentions.intentions import Intentions
from llmrec.model.adapter import add_item_rows, copied, merged, row_start
from llmrec.model.architecture import context_length
from llmrec.model.base import configured_base, make_base
from llmrec.model.config import BaseConfig
from llmrec.model.tokens import ItemVocabulary
from llmrec.preference.config import PreferenceMethod
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender import bundle, hub
from llmrec.recommender.answer import answers
from llmrec.recommender.prefer import prefer
from llmrec.recommender.request import Answer, Request, requests_of
from llmrec.recommender.save import save_bundle
from llmrec.recommender.store import IfExists, ItemStore
from llmrec.recommender.weights import load_weights
from llmrec.tasks.config import TasksConfig, Template, load_templates, tokenizer_texts
from llmrec.tasks.render import Renderer
from llmrec.tasks.streams import BEHAVIOUR
from llmrec.tasks.users import UserTokens
from llmrec.train.config import TrainConfig
from llmrec.train.finetune import TrainingData, finetune

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Recommender:
    """A language model that recommends the items of one catalogue: from `from_base` and `fit`, or `from_pretrained`."""

    MADE_BY: ClassVar[str] = "Recommender.from_base or Recommender.from_pretrained"

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
        user_tokens: bool = False,
        title_tokens: int = 0,
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
            user_tokens: whether each history in a prompt begins with tokens of its user (`TasksConfig.user_tokens`).
            title_tokens: most tokens of each item's title in a history (`TasksConfig.title_tokens`).

        Attributes:
            fusion_weights: weights of the fusion ranking; None before the calibration.
            preference: how the model was aligned with preferences.
            taught: names of the tasks that the model was trained on here.

        Raises:
            UserError: `max_history`, `decode_config`, `user_tokens` or `title_tokens` has another type, `max_history`
                is below 1, or `title_tokens` below 0.
        """
        check_argument("decode_config", decode_config, DecodeConfig | None)
        TasksConfig(max_history=max_history, user_tokens=user_tokens, title_tokens=title_tokens)  # checks them
        self.model = model
        self.tokenizer = tokenizer
        self.base = base
        self.base_model = base_model
        self.templates = dict(templates or load_templates())
        self.max_history = max_history
        self.user_tokens = user_tokens
        self.title_tokens = title_tokens
        self._store = store
        self._decode_config = decode_config or DecodeConfig()
        self.fusion_weights: FusionWeights | None = None
        self._ranker: ItemRanker | None = None
        self.preference: PreferenceMethod = "none"
        self.taught: set[str] = set()

    @classmethod
    @checked
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
            name: path or Hub id of any language model; None makes a small one for the catalogue's text.
            item_tokenizer: a fitted item tokenizer.
            catalog: the items; default: the items that the item tokenizer was fitted on.
            config: sizes of a model made here, prefix of the item tokens' names, seed.
            frozen: whether `fit` will leave the weights of `name` as they are (`TrainConfig.method` lora).
            kwargs: `templates`, `max_history`, `decode_config`, `user_tokens`, `title_tokens` of the constructor.

        Raises:
            UserError: the model can't be loaded, its tokenizer already has tokens with the names of item tokens, or
                `catalog` has other items than the item tokenizer.
        """
        own = ("templates", "max_history", "decode_config", "user_tokens", "title_tokens")
        check_names("from_base", kwargs, own)
        check_argument("templates", kwargs.get("templates"), dict | None)
        config, catalog = config or BaseConfig(), catalog or item_tokenizer.catalog
        store = ItemStore.untrained(catalog, item_tokenizer)
        if name is None:
            templates = kwargs.get("templates") or load_templates()
            model, tokenizer = make_base(config, tokenizer_texts(catalog, templates))
        else:
            model, tokenizer = configured_base(name, config, frozen)
        vocabulary = ItemVocabulary.add_to(tokenizer, item_tokenizer.level_sizes, config.token_prefix)
        texts = catalog.texts(catalog.whole_text) if config.init_rows == "text" else []
        start = row_start(config.init_rows, tokenizer, vocabulary.all_ids, item_tokenizer, texts, config.seed)
        add_item_rows(model, vocabulary.all_ids, len(tokenizer), config.seed, start)
        if (behaviour := item_tokenizer.behaviour) is not None:
            second = ItemVocabulary.add_to(tokenizer, behaviour.level_sizes, BEHAVIOUR + config.token_prefix)
            add_item_rows(model, second.all_ids, len(tokenizer), config.seed)
        if kwargs.get("user_tokens"):
            users = UserTokens.add_to(tokenizer, item_tokenizer, config.token_prefix).vocabulary
            same_codes = np.concatenate(vocabulary.ids[: len(users.ids)])
            add_item_rows(model, users.all_ids, len(tokenizer), config.seed, copied(same_codes))
        named = f"a {config.architecture} made by llmrec" if name is None else str(name)
        return cls(model, tokenizer, store, config, named, **kwargs)

    @property
    def store(self) -> ItemStore:
        """All data about single items. Setting it discards the ranker; the next request builds a new one."""
        return self._store

    @store.setter
    @checked
    def store(self, store: ItemStore) -> None:
        self._store, self._ranker = store, None

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
        items, prefix = self.item_tokenizer, self.base.token_prefix
        vocabulary = ItemVocabulary.of(self.tokenizer, items.level_sizes, prefix)
        users, second = UserTokens.of(self.tokenizer, items, prefix) if self.user_tokens else None, None
        render = partial(
            Renderer,
            self.tokenizer,
            templates=self.templates,
            max_history=self.max_history,
            titles=self.catalog.frame["title"],
            title_tokens=self.title_tokens,
        )
        if items.behaviour is not None:
            named = ItemVocabulary.of(self.tokenizer, items.behaviour.level_sizes, BEHAVIOUR + prefix)
            second = render(named, items.behaviour.codes)
        return render(vocabulary, items.codes, users=users, behaviour=second)

    @property
    def decode_config(self) -> DecodeConfig:
        """Beams, ranking, batch size, device. Setting it discards the ranker; the next request builds a new one."""
        return self._decode_config

    @decode_config.setter
    @checked
    def decode_config(self, config: DecodeConfig) -> None:
        self._decode_config, self._ranker = config, None

    @property
    def ranker(self) -> ItemRanker:
        """Ranks the catalogue; built at the first use."""
        if self._ranker is None:
            search = make_search(*self._decoded(self.decode_config), self.train_counts == 0)
            self._ranker = self._ranker_of(search, None)
        return self._ranker

    def with_store(self, store: ItemStore) -> Self:
        """A recommender of other items that shares the model, which is not tried again; this one stays as it is."""
        other = copy.copy(self)
        other._store = store
        other._ranker = other._ranker_of(self.ranker.search.with_items(store.trie, store.train_counts == 0), None)
        return other

    def _decoded(self, config: DecodeConfig) -> tuple[Any, ItemVocabulary, ItemTrie, DecodeConfig, int]:
        """The arguments of `check_decoding`."""
        return self.model, self.renderer.vocabulary, self.store.trie, config, self.tokenizer.pad_token_id or 0

    @checked
    def ranked_by(self, name: RankingName) -> ItemRanker:
        """A ranker with the ranking method `name`, instead of that of `decode_config`.

        Raises:
            UserError: the model or its bundle lacks a part that this method needs, such as the dense head.
        """
        return self._ranker_of(self.ranker.search, name)

    def _ranker_of(self, search: BeamSearch, name: RankingName | None) -> ItemRanker:
        own, levels = self.store, self.item_tokenizer.quantizer.levels
        dense = None if own.dense is None else own.dense.to(search.device)
        renderer, stream = self.renderer, None
        if renderer.behaviour is not None and own.behaviour_trie is not None:
            other = search.in_other_codes(renderer.behaviour.vocabulary, own.behaviour_trie)
            stream = BehaviourStream(other, renderer.behaviour)
        facts = ItemFacts(
            own.train_counts == 0, levels, dense, self.fusion_weights, own.experts, own.text_index, stream
        )
        method = make_ranking(search, facts, search.config, name)
        auto = name is None and search.config.ranking == "auto"
        in_words = make_prompt_ranking(search, facts, method, auto)
        return ItemRanker(renderer, search, context_length(self.model), method, in_words)

    @checked
    def fit(
        self,
        log: Interactions,
        validation: EvalExamples | None = None,
        tasks: TasksConfig | None = None,
        train: TrainConfig | None = None,
        folder: str | Path | None = None,
        intentions: Intentions | None = None,
        vectors: ArrayLike | None = None,
        decode_config: DecodeConfig | None = None,
        teacher: Teacher | None = None,
    ) -> Self:
        """Fine-tune on a log, after a trial of whether the model can be decoded. A trained model is trained further.

        Args:
            log: the training events: the `train` part of a split, never its test part.
            validation: examples for the validation loss.
            tasks: the task mixture.
            train: method and schedule.
            folder: for checkpoints and the log; training resumes from a checkpoint there. Default: a temporary folder.
            intentions: what people want, in words: data for the tasks on requests and preferences.
            vectors: floats [N, D], the items' vectors for a dense head; default: the item tokenizer makes them.
            decode_config: how the model will be decoded; default: as this recommender does.
            teacher: of the same log and item tokenizer; needed for `train.distill`.

        Raises:
            UserError: there is no training example, the method does not fit the model, a dense head has no encoder, a
                distillation has no teacher; or as in `check_decoding`.
        """
        check_decoding(*self._decoded(decode_config or self.decode_config))
        tasks = tasks or TasksConfig(
            max_history=self.max_history, user_tokens=self.user_tokens, title_tokens=self.title_tokens
        )
        train = train or TrainConfig()
        made = None if vectors is None else as_vectors(vectors, "vectors", self.catalog.ids)
        if train.dense.weight and made is None:
            made = self.item_tokenizer.embed(self.catalog, self.item_tokenizer.embed_config.files)
        sequences = log.sequences(self.catalog)
        own = sequences.train_sequences()
        before = self.store.dense
        validation = None if validation is None else validation.in_catalog(self.catalog.frame["item_id"])
        data = TrainingData(self.catalog, own, validation, sequences.users, intentions, made, teacher, before)
        with tempfile.TemporaryDirectory() as temporary:
            place = make_folder(folder or temporary)
            self.model, dense = finetune(self.model, self.renderer, data, tasks, train, place)
        counts = np.maximum(self.train_counts, sequences.train_counts(len(self.catalog)))  # logs may overlap
        self.store = replace(self.store, train_counts=counts, dense=dense)
        self.fusion_weights = None
        self.taught |= {name for name, rate in tasks.mixture.items() if rate > 0}
        return self

    @checked
    def prefer(self, log: Interactions, validation: EvalExamples | None = None, **options: Any) -> Self:
        """Align the trained model with preferences, in place; `rec.prefer(log, config=PreferenceConfig("s-dpo"))`.

        Args:
            log: the events that the model was trained on.
            validation: examples for the guards; None: no guards, and the last model is kept.
            options: config, folder, reward and teacher of `llmrec.recommender.prefer.prefer`, which lists the errors.
        """
        check_names("prefer", options, ("config", "folder", "reward", "teacher"))
        prefer(self, log, validation, **options)
        return self

    @checked
    def calibrate(
        self, cases: EvalExamples, most: int = 25_000, seed: int = 0, intentions: Intentions | None = None
    ) -> Self:
        """Learn the weights of the fusion ranking from validation examples. After that, `ranking: auto` means fusion.

        Args:
            cases: examples that the model was not trained on. With too few warm targets the fusion stays uncalibrated;
                with too few cold targets cold items get the weights of warm items. The log says so.
            most: largest number of examples with a warm target, drawn with `seed`; all with a cold target are used.
            seed: seed of the draw.
            intentions: if some are held out, requests in words are ranked by BM25 and the encoder, too, with weights
                learnt on these; the log says if they are too few.

        Raises:
            UserError: the model has no dense head, or does not accept a tree attention mask.
        """
        chosen = cases.in_catalog(self.catalog.frame["item_id"]).sample_warm(self.train_counts == 0, most, seed)
        ranker = self.ranked_by("fusion")
        held_out = {} if intentions is None else intentions.held_out
        asked = Queries.of(held_out, self.catalog, ranker) if held_out else None
        self.fusion_weights = calibrate(ranker, chosen, self.decode_config.warm_floor, asked)
        self._ranker = None
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
        self,
        *,
        histories: Sequence[Sequence[str]],
        prompt: str | Sequence[str | None] | None = None,
        k: int = 10,
        **options: Any,
    ) -> list[Answer]: ...

    def recommend(
        self,
        history: Sequence[str] | None = None,
        prompt: str | Sequence[str | None] | None = None,
        k: int = 10,
        histories: Sequence[Sequence[str]] | None = None,
        **options: Any,
    ) -> Answer | list[Answer]:
        """The k best items for a history (item ids, oldest first), a request in plain words, or both.

        Args:
            history: item ids, oldest first.
            prompt: the request in words; with `histories` also one per user, None for a user without.
            k: number of answers.
            histories: one history per user, instead of `history`: decoded together, with one answer for each.
            options: the other fields of `Request`, such as exclude, where and unknown.

        Raises:
            UserError: as for `Request` and `answer`, or `history` and `histories` are both given.
        """
        check_names("recommend", options, ["histories", *(field.name for field in fields(Request))])
        if histories is None:
            if isinstance(prompt, list | tuple):
                raise UserError("prompt is a list, which needs histories: one for each text.")
            return self.answer(Request(history, cast(str | None, prompt), k, **options))
        if history is not None:
            raise UserError("history and histories are both given; leave one of them out.")
        requests = requests_of(histories, prompt, k, **options)
        return answers(self.store, self.ranker, requests) if requests else []

    @checked
    def answer(self, request: Request) -> Answer:
        """The best items for a request; errors are those of `answers`."""
        return answers(self.store, self.ranker, [request])[0]

    def add_items(self, catalog: Catalog, vectors: ArrayLike | None = None, if_exists: IfExists = "refuse") -> Self:
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

    @checked
    def save_pretrained(self, folder: str | Path) -> None:
        """Write the bundle into `folder`, which is created if it does not exist; a bundle there is replaced.

        Raises:
            UserError: the folder holds no bundle, but a file with the name of a bundle file.
        """
        save_bundle(self, Path(folder))

    @checked
    def push_to_hub(
        self,
        repo_id: str,
        private: bool = False,
        revision: str | None = None,
        message: str = hub.MESSAGE,
        license: str | None = None,
        datasets: Sequence[str] = (),
    ) -> str:
        """Publish the bundle on the Hub. Arguments, errors and the returned address are those of `bundle.push`."""
        datasets = listed(datasets, "datasets", "a list of Hub ids")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return bundle.push(folder, repo_id, private, revision, message, license, datasets)

    @classmethod
    @checked
    def from_pretrained(
        cls,
        name: str | Path,
        decode_config: DecodeConfig | None = None,
        trust_remote_code: bool = False,
        encoder: str | None = None,
        base: str | Path | None = None,
        device_map: str | dict[str, Any] | None = None,
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
            device_map: as in `from_pretrained` of transformers, such as auto: spread the layers over several GPUs, in
                place of `decode_config.device`.

        Raises:
            UserError: there is no bundle, a part of it can't be read, or its parts don't belong together.
        """
        folder = bundle.locate(name)
        header = bundle.read_header(folder)
        model, tokenizer = load_weights(folder, header, trust_remote_code, base, device_map)
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
            header.user_tokens,
            header.title_tokens,
        )
        recommender.preference = header.preference
        if (folder / bundle.FUSION).exists():
            recommender.fusion_weights = FusionWeights.load(folder / bundle.FUSION)
        check_fit(model, vocabulary, recommender.store.trie)
        check_rows(model, recommender.renderer.new_ids)
        recommender.renderer.check_chat_format(str(folder))
        return recommender
