"""What trained collaborative models share: early stopping, averaged weights, checkpoints, and the items they know."""

import copy
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy.special import log_softmax
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from llmrec.atomic import write_file
from llmrec.collaborative.base import BaselineSystem, ndcg
from llmrec.collaborative.config import NetworkConfig
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


STOP_BY = 5000
"""Maximum number of validation cases that are ranked after each epoch."""


SAVE_SECONDS = 30.0
"""Least time between two checkpoints of a training."""


class TrainedBaseline(BaselineSystem):
    """A system that is trained on the warm items. Items that it does not know, which usually are the cold ones, score
    -inf and are left out of histories.

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
        # A history without known items gets the popularity of the items.
        scores[:, self.items] = self.popularity[self.items]
        if len(asked):
            scores[asked[:, None], self.items] = self._predict([known[row] for row in asked])
        return scores

    def _known(self, histories: list[np.ndarray]) -> list[np.ndarray]:
        """The known items of B histories of rows, by their numbers 0..M-1."""
        return [places[places >= 0] for places in (self.places[history] for history in histories)]

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        self.items, self.places = known_items(np.flatnonzero(self.popularity), n_items)
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
        """Scores of the M known items, float32 [B, M], after each of B histories; items are numbered 0..M-1 here."""


class TrainedNetwork(TrainedBaseline):
    """A network over the items of histories, which a loss on each next item teaches.

    Args:
        config: sizes and schedule.
        validation: validation cases for early stopping; only those with a warm target are used.
        seed: seed of the weights, of the order of training, and of the sample of `validation`.
        vectors: of the N items' texts, float [N, D], for a network that reads them; a restored one needs none.
    """

    network: Any

    def __init__(
        self, config: NetworkConfig, validation: EvalExamples, seed: int = 0, vectors: np.ndarray | None = None
    ) -> None:
        super().__init__(validation, seed, config.named_by)
        self.config = config
        self.vectors = vectors
        self.dtype = resolve_dtype("auto", self.device)

    def untrained(self, validation: EvalExamples, vectors: np.ndarray | None) -> Self:
        """A network with the same settings, to be fitted on other users; arguments as for the class."""
        return type(self)(self.config, validation, self.seed, vectors)

    def values(self, histories: list[np.ndarray]) -> np.ndarray:
        """What it says as an expert of all items after each of B histories, float32 [B, N]: the log-softmax of the
        scores."""
        return np.asarray(log_softmax(self.scores(histories), axis=1), np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: tensor.cpu().numpy() for name, tensor in self.network.state_dict().items()}

    def restore(self, arrays: Mapping[str, np.ndarray], counts: np.ndarray, unit: np.ndarray | None) -> None:
        super().restore(arrays, counts, unit)
        self.items, self.places = known_items(np.flatnonzero(counts), len(counts))
        self.network = self._network_for(arrays).to(self.device).eval()
        self.network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})

    def with_cold_items(self, n_items: int, unit: np.ndarray | None) -> Self:
        grown = super().with_cold_items(n_items, unit)
        grown.items, grown.places = known_items(self.items, n_items)
        return grown

    @abstractmethod
    def _first_network(self, sequences: list[np.ndarray]) -> nn.Module:
        """The network before training on `sequences`, arrays of 0..M-1."""

    @abstractmethod
    def _network_for(self, arrays: Mapping[str, np.ndarray]) -> nn.Module:
        """A network whose state has the names and shapes of `arrays`."""

    @abstractmethod
    def _loss(self, batch: list[np.ndarray]) -> torch.Tensor:
        """The mean loss (scalar) of a batch of `_batches`."""

    def _last_states(self, histories: list[np.ndarray]) -> torch.Tensor:
        """States after B histories of known items, float [B, D]; the network reads their last `max_history` items."""
        self.network.eval()
        read = [history[-self.config.max_history :] for history in histories]
        ends = np.cumsum([len(history) for history in read]) - 1
        return self.network(read)[torch.from_numpy(ends)]

    def _train(self, sequences: list[np.ndarray], stop_by: EvalExamples) -> None:
        """Train until the validation NDCG@10 has not risen for `patience` epochs, and up to three times as many
        if these are fewer than `PATIENCE` steps.

        The best epoch's weights are kept.

        The weights that are ranked with and kept are a moving average over about one epoch (Polyak & Juditsky 1992):
        it varies less from epoch to epoch than the weights themselves.
        """
        config, rng = self.config, np.random.default_rng(self.seed)
        self.network = self._first_network(sequences)
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

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def known_items(items: np.ndarray, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """The known items, int [M], and the place of each of N items among them, -1 for the others, int64 [N]."""
    places = np.full(n_items, -1, np.int64)
    places[items] = np.arange(len(items))
    return items, places
