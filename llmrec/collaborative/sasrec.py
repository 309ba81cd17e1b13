"""SASRec (Kang & McAuley, ICDM 2018, arXiv 1808.09781): a small causal Transformer over item embeddings.

The loss is a softmax over all warm items instead of the paper's one sampled negative; that makes it a strong baseline
(Klenitskiy & Vasilev, arXiv 2309.07602).
"""

import copy
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from llmrec.atomic import write_file
from llmrec.collaborative.base import BaselineSystem, ndcg
from llmrec.collaborative.cage import CageTable, cage_table
from llmrec.collaborative.code_table import CodeTable, quantile_codes, with_rare_items
from llmrec.collaborative.config import SASRecConfig
from llmrec.console import get_logger, progress_bar
from llmrec.data.sequences import EvalExamples
from llmrec.device import resolve_device, resolve_dtype
from llmrec.errors import UserError

log = get_logger(__name__)


POOL = 20
"""Number of batches whose sequences are sorted by length together, so that a batch has little padding."""


PATIENCE = 1500
"""Least number of steps without a gain after which a training stops, though never more than three times its patience:
an epoch of a small log has few steps."""


START = 0.02
"""Standard deviation of the embeddings before training."""


STOP_BY = 5000
"""Maximum number of validation cases that are ranked after each epoch."""


SAVE_SECONDS = 30.0
"""Least time between two checkpoints of a training."""


class TrainedBaseline(BaselineSystem):
    """A system that is trained and knows the warm items alone. Cold items score -inf and are left out of histories.

    Args:
        validation: validation cases to select the weights by; only those with a warm target are used.
        seed: seed of the training, and of the sample of `validation`.
        named_by: the flag that names the system, for messages.

    Attributes:
        checkpoint: file that a training writes, and that a stopped one goes on from, with the same result; None: none.
    """

    checkpoint: Path | None = None

    def __init__(self, validation: EvalExamples, seed: int = 0, named_by: str = "evaluate.baselines") -> None:
        self.validation = validation
        self.seed = seed
        self.named_by = named_by
        self.device = resolve_device("auto")

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        scores = np.full((len(histories), len(self.popularity)), -np.inf, np.float32)
        known = self._known(histories)
        asked = np.array([row for row, places in enumerate(known) if len(places)], dtype=np.int64)
        # A history without warm items gets the popularity of the items.
        scores[:, self.items] = self.popularity[self.items]
        if len(asked):
            scores[asked[:, None], self.items] = self._predict([known[row] for row in asked])
        return scores

    def _known(self, histories: list[np.ndarray]) -> list[np.ndarray]:
        """The warm items of B histories of rows, by their numbers 0..M-1."""
        return [places[places >= 0] for places in (self.places[history] for history in histories)]

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        self.items, self.places = _known_items(np.flatnonzero(self.popularity), n_items)
        sequences = [self.places[sequence] for sequence in train_sequences if len(sequence) > 1]
        stop_by = self.validation.where(self.popularity[self.validation.targets] > 0)
        if not sequences or not len(stop_by):
            missing = "validation case with a target that it was trained on" if sequences else "two events of one user"
            raise UserError(f"--{self.named_by} {self.name}: the log has no {missing}; leave it out.")
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self._train(sequences, stop_by.sample(STOP_BY, self.seed))

    @abstractmethod
    def _train(self, sequences: list[np.ndarray], stop_by: EvalExamples) -> None:
        """Learn from sequences of at least two items each.

        Args:
            sequences: of the M warm items, numbered 0..M-1.
            stop_by: cases to select the weights by, with rows of the catalogue.
        """

    @abstractmethod
    def _predict(self, histories: list[np.ndarray]) -> np.ndarray:
        """Scores of the M warm items, float32 [B, M], after each of B histories; items are numbered 0..M-1 here."""


class SASRec(TrainedBaseline):
    """SASRec over the warm items.

    Args:
        config: sizes and schedule.
        validation: validation cases for early stopping; only those with a warm target are used.
        seed: seed of the weights, of the order of training, and of the sample of `validation`.
        vectors: of the N items' texts, float [N, D], if `config.start` is text; a restored model needs none.
    """

    name = "sasrec"

    def __init__(
        self, config: SASRecConfig, validation: EvalExamples, seed: int = 0, vectors: np.ndarray | None = None
    ) -> None:
        super().__init__(validation, seed, config.named_by)
        self.config = config
        self.vectors = vectors
        self.dtype = resolve_dtype("auto", self.device)

    def _start_from_texts(self) -> None:
        """Set the embeddings of the items to the principal components of their text vectors, with the same spread."""
        if self.vectors is None:
            raise UserError(f"--{self.config.section}.start text: needs the vectors of the items' texts.")
        known = np.asarray(self.vectors[self.items], np.float32)
        width = min(self.config.hidden_size, *known.shape)
        found = PCA(width, random_state=self.seed).fit_transform(known)
        with torch.no_grad():
            self.network.items.weight[: len(known), :width] = torch.from_numpy(START * found / (found.std() + 1e-9))

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: tensor.cpu().numpy() for name, tensor in self.network.state_dict().items()}

    def restore(self, arrays: Mapping[str, np.ndarray], counts: np.ndarray, unit: np.ndarray | None) -> None:
        super().restore(arrays, counts, unit)
        self.items, self.places = _known_items(np.flatnonzero(counts), len(counts))
        network = self._make_network(len(self.items))
        if self.config.table.join == "cage":
            network.items = self._cage_table(network.items)
        elif self.config.table.join != "none":
            network.items = self._code_table(network.items, np.zeros((len(self.items), self.config.table.levels), int))
        self.network = network.to(self.device).eval()
        self.network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})

    def with_cold_items(self, n_items: int, unit: np.ndarray | None) -> Self:
        grown = super().with_cold_items(n_items, unit)
        grown.items, grown.places = _known_items(self.items, n_items)
        return grown

    def _train(self, sequences: list[np.ndarray], stop_by: EvalExamples) -> None:
        """Train until the validation NDCG@10 has not risen for `patience` epochs, and up to three times as many
        if these are fewer than `PATIENCE` steps.

        The best epoch's weights are kept.

        The weights that are ranked with and kept are a moving average over about one epoch (Polyak & Juditsky 1992):
        it varies less from epoch to epoch than the weights themselves.
        """
        config, rng = self.config, np.random.default_rng(self.seed)
        self.network = self._make_network(len(self.items))
        if config.start == "text":
            self._start_from_texts()
        if config.table.join == "cage":
            self.network.items = self._cage_table(self.network.items)
        elif config.table.join != "none":
            full = self.network.items
            self.network.items = table = self._code_table(full, self._codes(sequences))
            log.info(
                "%s: %s bytes of item vectors instead of %s", self.name, f"{table.bytes:,}", f"{full.weight.nbytes:,}"
            )
        optimizer, trained = self._optimizer(), self.network.to(self.device)
        steps = sum(1 for _ in self._batches(sequences, copy.deepcopy(rng)))
        averaged = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / steps))
        parts = {"network": trained, "averaged": averaged, "optimizer": optimizer}
        done = self._resume(parts, rng)
        patience = max(config.patience, min(PATIENCE / steps, 3 * config.patience))
        bar, saved = progress_bar(f"training {self.name}", config.epochs, done["epoch"], "epochs"), time.monotonic()
        while done["epoch"] < min(config.epochs, done["best_epoch"] + patience):
            trained.train()
            for batch in self._batches(sequences, rng):
                optimizer.zero_grad()
                self._loss(batch).backward()
                optimizer.step()
                averaged.update_parameters(trained)
            bar.advance()
            self.network = averaged.module
            figure = float(ndcg(self.ranks(stop_by, filter_seen=True)).mean())
            done["epoch"] += 1
            log.debug("%s, epoch %d: validation ndcg@10 %.4f", self.name, done["epoch"], figure)
            if figure > done["best"]:
                done |= {"best": figure, "best_epoch": done["epoch"]}
                done["weights"] = copy.deepcopy(self.network.state_dict())
            self.network = trained
            if time.monotonic() - saved >= SAVE_SECONDS:
                self._save(parts, rng, done)
                saved = time.monotonic()
        bar.close()
        self._save(parts, rng, done)
        self.network.load_state_dict(done["weights"])
        said = done["epoch"], done["best"], done["best_epoch"]
        log.info("%s: %d epochs, validation ndcg@10 %.4f after epoch %d", self.name, *said)

    def _save(self, parts: Mapping[str, Any], rng: np.random.Generator, done: dict[str, Any]) -> None:
        """Write the checkpoint: the state of `parts`, of both random generators, and what is `done`."""
        if self.checkpoint is None:
            return
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"done": done, "order": rng.bit_generator.state, "dropout": [torch.get_rng_state()]}
        if self.device.type == "cuda":
            state["dropout"] += torch.cuda.get_rng_state_all()
        write_file(self.checkpoint, lambda file: torch.save(state, file))

    def _resume(self, parts: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Go on from the checkpoint, if there is one; return what is done: `epoch`, and of the best epoch `best`,
        `best_epoch` and `weights`."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return {"epoch": 0, "best": -1.0, "best_epoch": 0, "weights": {}}
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        rng.bit_generator.state = state["order"]
        torch.set_rng_state(state["dropout"][0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["dropout"][1:])
        log.info("%s: going on after epoch %d", self.name, state["done"]["epoch"])
        return dict(state["done"])

    def _make_network(self, n_items: int) -> Any:
        return _Network(n_items, self.config)

    def _codes(self, sequences: list[np.ndarray]) -> np.ndarray:
        """Codes of the M warm items from the training sequences, int64 [M, L]."""
        table, most = self.config.table, min(len(self.items), len(sequences)) - 1
        if table.levels > most:
            raise UserError(
                f"--{self.config.section}.table.levels {table.levels}: the log gives codes of at most {most} levels."
            )
        codes = quantile_codes(sequences, len(self.items), table.levels, table.codes, self.seed)
        return with_rare_items(codes, self.popularity[self.items], table.codes, table.rare_codes)

    def _code_table(self, full: nn.Embedding, codes: np.ndarray) -> CodeTable:
        """The table of codewords in place of `full`, whose row for padding, if any, gets the codes 0."""
        table, rows = self.config.table, np.zeros((full.num_embeddings, codes.shape[1]), np.int64)
        rows[: len(codes)] = codes
        assert table.join == "concat" or table.join == "sum"
        std = float(full.weight.detach().std())
        return CodeTable(rows, table.codes, full.embedding_dim, table.join, std)

    def _cage_table(self, items: nn.Embedding) -> CageTable:
        return cage_table(items, len(self.items), self.config.table.levels, self.config.section)

    def _table_loss(self, states: torch.Tensor, following: torch.Tensor) -> torch.Tensor | float:
        """What the item table adds to the loss, from states float [E, D] and the next items int64 [E]."""
        table = self.network.items
        return table.loss(states, following) if isinstance(table, CageTable) else 0.0

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=self.config.learning_rate, fused=True)

    def _batches(self, sequences: list[np.ndarray], rng: np.random.Generator) -> Iterator[list[np.ndarray]]:
        """Batches of training sequences in random order; the sequences of a batch have similar lengths.

        Each sequence is cut to its last `max_history` + 1 items: the network reads `max_history`, and the last item is
        only a target.
        """
        config, order = self.config, rng.permutation(len(sequences))
        for start in range(0, len(order), POOL * config.batch_size):
            pool = sorted(order[start : start + POOL * config.batch_size], key=lambda row: len(sequences[row]))
            batches = [pool[at : at + config.batch_size] for at in range(0, len(pool), config.batch_size)]
            for number in rng.permutation(len(batches)):
                yield [sequences[row][-config.max_history - 1 :] for row in batches[number]]

    def _loss(self, batch: list[np.ndarray]) -> torch.Tensor:
        """Mean cross-entropy of each next item among all warm items."""
        following = torch.from_numpy(np.concatenate([sequence[1:] for sequence in batch])).to(self.device)
        with self._autocast():
            states = self.network([sequence[:-1] for sequence in batch])
            own = F.cross_entropy(self.network.logits(states).float(), following)
            return own + self._table_loss(states, following)

    @torch.inference_mode()
    def _predict(self, histories: list[np.ndarray]) -> np.ndarray:
        self.network.eval()
        ends = np.cumsum([min(len(history), self.config.max_history) for history in histories]) - 1
        with self._autocast():
            states = self.network([history[-self.config.max_history :] for history in histories])
            return self.network.logits(states[torch.from_numpy(ends)]).float().cpu().numpy()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def _known_items(items: np.ndarray, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """The known items, int [M], and the place of each of N items among them, -1 for the others, int64 [N]."""
    places = np.full(n_items, -1, np.int64)
    places[items] = np.arange(len(items))
    return items, places


class _Network(nn.Module):
    """Post-norm Transformer over normalised embeddings, as in BERT; the item embeddings are also the output layer.

    Args:
        n_items: number M of warm items; the embedding has one more row, for padding.
        config: sizes of the network.
    """

    def __init__(self, n_items: int, config: SASRecConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.items = nn.Embedding(n_items + 1, size, padding_idx=n_items)
        self.positions = nn.Embedding(config.max_history, size)
        for embedding in (self.items, self.positions):
            nn.init.normal_(embedding.weight, std=START)
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(size, config.heads, 4 * size, config.dropout, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)

    def forward(self, sequences: list[np.ndarray]) -> torch.Tensor:
        """State after each of the E items of B sequences, float [E, D], one sequence after the other."""
        device, pad = self.items.weight.device, self.items.num_embeddings - 1
        tokens = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(sequence) for sequence in sequences], batch_first=True, padding_value=pad
        ).to(device)
        length = tokens.shape[1]
        states = self.dropout(self.norm(self.items(tokens) + self.positions.weight[:length]))
        # Padding is on the right: with the causal mask, no item sees it.
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=device)
        return self.layers(states, mask=mask, is_causal=True)[tokens != pad]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Scores of the M items, float [E, M]."""
        return states @ self.items.weight[:-1].T
