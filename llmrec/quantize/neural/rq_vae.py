"""RQ-VAE: an autoencoder whose latent vector is residual-quantized (TIGER, arXiv 2305.05065).

By default, the input is standardised per dimension, and unused codes are reset. Without both, unit-norm text
embeddings tend to collapse onto a few codes.
"""

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmrec.console import get_logger, track
from llmrec.device import resolve_device, resolve_dtype
from llmrec.errors import UserError
from llmrec.quantize.base import BLOCK, LikelyWord, Quantizer
from llmrec.quantize.config import RQVAEConfig
from llmrec.quantize.neural.autoencoder import ResidualAutoencoder, fill_unused, place_codes, reset_unused
from llmrec.quantize.neural.codebooks import squared_distances
from llmrec.quantize.neural.epochs import Epochs, step_size
from llmrec.quantize.neural.estimators import SQVAE
from llmrec.quantize.neural.objectives import Loss
from llmrec.quantize.neural.words import count_words, spell, words_cost

if TYPE_CHECKING:
    from scipy.sparse import csr_array

log = get_logger(__name__)

INIT_POINTS_PER_CODE = 32
"""Items per code in the random sample on whose latents codes are initialised, and in each one for resets."""

PLACED_ON_ITEMS = ("kmeans++", "constrained-kmeans")
"""Values of `init` that need at least as many different items as codes."""

COLLAPSED = 1e-3
"""Training warns of a collapse if the variance of the latents ends below this share of its initial value."""


class Items(NamedTuple):
    """What a training reads of its N items."""

    x: Tensor
    """Standardised embeddings, float32 [N, D]."""
    collaborative: Tensor | None
    """Collaborative vectors, float32 [N, d], if the loss compares with them."""
    words: "csr_array | None"
    """Shares of the words of each text, float32 [N, V], if the loss has a text decoder."""

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The arguments of `Loss` for the items `rows`, int64 [B]."""
        words = None
        if self.words is not None:
            words = torch.from_numpy(self.words[rows.cpu().numpy()].toarray()).to(self.x.device)
        return self.x[rows], None if self.collaborative is None else self.collaborative[rows], words


class RQVAE(Quantizer):
    """Method rq-vae: the codes quantize the encoder's output, and the decoder reconstructs the item from them.

    It runs on the GPU if there is one.
    """

    model: ResidualAutoencoder
    _training: dict[str, Any] | None = None
    _word_perplexity: list[float] | None = None

    @property
    def training(self) -> dict[str, Any] | None:
        return self._training

    @property
    def word_perplexity(self) -> list[float] | None:
        return self._word_perplexity

    @property
    def dims(self) -> int:
        return len(self.model.mean)

    @property
    def least_distinct(self) -> int:
        settings = self._config.rq_vae
        return self.codes if settings.init in PLACED_ON_ITEMS or settings.reset_every else 2

    def decode_first(self, codes: np.ndarray) -> np.ndarray:
        return self._decode(codes)

    @torch.inference_mode()
    def words_of(self, codes: np.ndarray, most: int) -> list[list[LikelyWord]] | None:
        self._require_in_range(codes)
        if self.model.words is None:
            return None
        return self.model.words.telling(self.model.sum_of_codes(self._index(codes)), most)

    def last_level_costs(self, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Cost of each code of the last level for each item, measured in the latent space as in LC-Rec.

        Args:
            x: embeddings, floats [N, D].
            codes: the first L - 1 codes of each item, integers [N, L - 1].

        Returns:
            float32 [N, C]: |r - c|^2, with r the latent minus the sum of the first L - 1 codes, and c a code of the
            last level.
        """
        costs = np.empty((len(x), self.level_sizes[-1]), np.float32)
        with torch.inference_mode():
            last = self.model.codebooks[-1].effective()
            for start in range(0, len(x), BLOCK):
                block = np.ascontiguousarray(x[start : start + BLOCK], np.float32)
                residual = self._latents(block) - self.model.sum_of_codes(self._index(codes[start : start + BLOCK]))
                costs[start : start + BLOCK] = squared_distances(residual, last).cpu().numpy()
        return costs

    def tensors(self) -> dict[str, np.ndarray]:
        return {name: tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()}

    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        vocabulary = spell(tensors["words.stored"]) if self._config.needs_texts else []
        model = ResidualAutoencoder(len(tensors["mean"]), self._config, vocabulary)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
        self.model = model.to(resolve_device("auto")).eval()

    @torch.inference_mode()
    def _encode(self, x: np.ndarray) -> np.ndarray:
        return self.model.quantize(self._latents(x)).codes.cpu().numpy()

    @torch.inference_mode()
    def _decode(self, codes: np.ndarray) -> np.ndarray:
        standardised = self.model.decode(self.model.sum_of_codes(self._index(codes)))
        return (standardised * self.model.std + self.model.mean).cpu().numpy()

    def _latents(self, x: np.ndarray) -> Tensor:
        return self.model.encode(self.model.standardise(torch.tensor(x, device=self.model.mean.device)))

    def _index(self, codes: np.ndarray) -> Tensor:
        return torch.from_numpy(codes.astype(np.int64)).to(self.model.mean.device)

    def _fit(self, x: np.ndarray, collaborative: np.ndarray | None, texts: Sequence[str] | None) -> None:
        vectors, (vocabulary, words) = self._checked(collaborative), self._words(texts)
        device = resolve_device("auto")
        with torch.random.fork_rng():
            torch.manual_seed(self._config.seed)
            self.model = ResidualAutoencoder(x.shape[1], self._config, vocabulary).to(device)
            self.model.training_dtype = resolve_dtype("auto", device)
            if self._config.rq_vae.standardize:
                self._measure(x)
            data = self.model.standardise(torch.tensor(x, device=device))
            items = Items(data, vectors if vectors is None else vectors.to(device), words)
            if self.model.words is not None and words is not None:
                self.model.words.start(words.sum(0) / words.sum())
            self._train(items)
            self.model.eval()
            if self._config.rq_vae.reset_every:
                self._fill(data)
            if words is not None:
                self._word_perplexity = self._perplexity(items)

    def _checked(self, collaborative: np.ndarray | None) -> Tensor | None:
        """Return the collaborative vectors, float32 [N, latent], or None if their term has no weight."""
        settings = self._config.rq_vae
        if not settings.loss.collaborative:
            return None
        found = "none" if collaborative is None else f"{collaborative.shape[1]} dimensions"
        if collaborative is None or collaborative.shape[1] != settings.latent:
            raise UserError(
                "--tokenize.rq_vae.loss.collaborative needs collaborative vectors as wide as --tokenize.rq_vae.latent "
                f"({settings.latent}), but fit was given {found}; give it such vectors or set the weight to 0"
            )
        return torch.from_numpy(np.ascontiguousarray(collaborative, np.float32))

    def _words(self, texts: Sequence[str] | None) -> tuple[list[str], "csr_array | None"]:
        """The vocabulary and words of `count_words`; nothing if the text decoder has no weight."""
        if not self._config.needs_texts:
            return [], None
        if texts is None:
            raise UserError(
                "--tokenize.rq_vae.loss.words needs the items' texts, but fit was given none; give it texts or set the "
                "weight to 0"
            )
        return count_words(texts)

    def _measure(self, x: np.ndarray) -> None:
        """Set `mean` and `std` of the model to those of the items `x`, floats [N, D], per dimension."""
        std = x.std(0, dtype=np.float64)
        # a dimension that is constant up to rounding: the encoder gets about 0, the decoder returns the mean
        std[std < 1e-6 * std.max()] = 0
        self.model.mean.copy_(torch.from_numpy(x.mean(0, dtype=np.float64)))
        self.model.std.copy_(torch.from_numpy(std))

    def _train(self, items: Items) -> None:
        """Train for all epochs on the items."""
        settings, data = self._config.rq_vae, items.x
        rng = torch.Generator().manual_seed(self._config.seed)
        first = data[torch.randperm(len(data), generator=rng)[: self.codes * INIT_POINTS_PER_CODE].to(data.device)]
        variance = self._latent_variance(first)
        place_codes(self.model, first, self._config)
        steps = settings.epochs * ceil(len(data) / settings.batch_size)
        if isinstance(self.model.sampler, SQVAE):
            self.model.sampler.steps = steps
        loss = Loss(settings.loss, self.model, self._config.seed)
        optimizer = _optimizer(settings, self.model)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, step_size(settings, steps))
        epochs = Epochs(settings, self.model, data)
        used = [torch.zeros(codes, dtype=torch.bool, device=data.device) for codes in self.level_sizes]
        for epoch in track(range(1, settings.epochs + 1), "rq-vae", unit="epochs"):
            order = torch.randperm(len(data), generator=rng).to(data.device)
            loss.start_epoch()
            mean = self._train_epoch(items, order, loss, scheduler, used)
            if not np.isfinite(mean):
                raise UserError(
                    f"rq-vae diverged in epoch {epoch} (loss {mean}); "
                    f"lower --tokenize.rq_vae.learning_rate (now {settings.learning_rate})"
                )
            epochs.after(epoch, mean)
            # no reset in the last epochs: the moved codes would not have enough training left
            every = settings.reset_every
            if every and epoch % every == 0 and epoch + every <= settings.epochs:
                reset_unused(self.model, data[order[: self.codes * INIT_POINTS_PER_CODE]], used, rng)
        epochs.restore()
        self._training = epochs.figures()
        log.info("rq-vae: loss %.4f after %d epochs", mean, settings.epochs)
        if self._latent_variance(first) < COLLAPSED * variance:
            log.warning(
                "rq-vae: training drew all items to nearly one latent vector, so their codes say little; "
                "give --tokenize.rq_vae.loss.contrastive a weight, or lower --tokenize.rq_vae.learning_rate"
            )

    def _train_epoch(
        self,
        items: Items,
        order: Tensor,
        loss: Loss,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        used: list[Tensor],
    ) -> float:
        """Train one epoch over the N items in `order`, int64 [N].

        Sets True in `used` (L tensors bool [C]) for each code that an item takes. Returns the mean loss per item.
        """
        total = torch.zeros((), device=order.device)
        settings, optimizer = self._config.rq_vae, scheduler.optimizer
        for rows in order.split(settings.batch_size):
            value, codes = loss(*items.batch(rows))
            optimizer.zero_grad()
            value.backward()
            if settings.clip_norm:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
            optimizer.step()
            scheduler.step()
            for level, taken in enumerate(used):
                taken[codes[:, level]] = True
            total += value.detach() * len(rows)
        return total.item() / len(order)

    @torch.no_grad()
    def _fill(self, data: Tensor) -> None:
        """Move the codes that no item of `data`, float32 [N, D], takes in inference; see `fill_unused`."""
        z = torch.cat([self.model.encode(block) for block in data.split(BLOCK)])
        fill_unused(self.model, z, torch.Generator().manual_seed(self._config.seed))

    @torch.inference_mode()
    def _perplexity(self, items: Items) -> list[float]:
        """The `word_perplexity` of the items."""
        model, costs = self.model, []
        assert model.words is not None
        for rows in torch.arange(len(items.x)).split(self._config.rq_vae.batch_size):
            x, _, words = items.batch(rows)
            assert words is not None
            z = model.encode(x)
            sums = model.prefixes(z, model.quantize(z).vectors)
            told = torch.cat([model.words.frequency.log().expand(len(rows), 1, -1), model.words(sums)], dim=1)
            costs.append(words_cost(told, words)[words.any(1)])
        return torch.cat(costs).mean(0).exp().tolist()

    @torch.no_grad()
    def _latent_variance(self, data: Tensor) -> float:
        return self.model.encode(data).var(dim=0, correction=0).mean().item()


def _optimizer(settings: RQVAEConfig, model: ResidualAutoencoder) -> torch.optim.Optimizer:
    """Return the optimizer of `settings`; only encoder and decoder have weight decay."""
    networks = [*model.encoder.parameters(), *model.decoder.parameters()]
    decaying = {id(parameter) for parameter in networks}
    others = [parameter for parameter in model.parameters() if id(parameter) not in decaying]
    groups = [{"params": networks, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adagrad
    return kind(groups, lr=settings.learning_rate, fused=True)
