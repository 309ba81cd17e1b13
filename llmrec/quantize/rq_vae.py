"""RQ-VAE: an autoencoder whose latent vector is residual-quantized (TIGER, arXiv 2305.05065).

Input is standardised per dimension and unused codes are reset: without both, unit-norm text
embeddings collapse onto a single code.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec.console import get_logger, track
from llmrec.device import resolve_device
from llmrec.errors import UserError
from llmrec.quantize.base import Quantizer
from llmrec.quantize.config import TokenizeConfig
from llmrec.quantize.kmeans import kmeans

log = get_logger(__name__)

INIT_POINTS_PER_CODE = 32
"""Items per code in the first batch, on which k-means places the codebooks."""


class ResidualAutoencoder(nn.Module):
    """MLP encoder, L codebooks [L, C, d] over its output, MLP decoder; input and output are standardised."""

    mean: Tensor
    std: Tensor

    def __init__(self, dims: int, config: TokenizeConfig) -> None:
        super().__init__()
        widths = [dims, *config.rq_vae.hidden, config.rq_vae.latent]
        self.encoder = _mlp(widths)
        self.decoder = _mlp(widths[::-1])
        self.codebooks = nn.Parameter(torch.zeros(config.levels, config.codes, config.rq_vae.latent))
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("std", torch.ones(dims))
        self.beta = config.rq_vae.beta

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (int64 [B, L]), their sum (float [B, d]) and the quantization loss (scalar) of `z` [B, d].

        The loss is the mean over elements of |sg r - c|^2 + beta |r - sg c|^2, summed over levels.
        The residual r subtracts the raw code: a straight-through copy would cut the later levels'
        commitment gradient to `z`. Detached, since each codebook answers for its own level alone.
        """
        residual, total = z, torch.zeros_like(z)
        loss = z.new_zeros(())
        codes = []
        for codebook in self.codebooks:
            index = nearest_code(residual, codebook)
            code = codebook[index]
            loss = loss + F.mse_loss(code, residual.detach()) + self.beta * F.mse_loss(residual, code.detach())
            residual, total = residual - code.detach(), total + code
            codes.append(index)
        return torch.stack(codes, dim=1), total, loss

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Training loss (scalar) and codes (int64 [B, L]) of the standardised batch `x` [B, D]."""
        z = self.encoder(x)
        codes, total, loss = self.quantize(z)
        return F.mse_loss(self.decoder(straight_through(z, total)), x) + loss, codes

    @torch.no_grad()
    def residuals(self, z: Tensor, level: int) -> Tensor:
        """What the first `level` codes leave of `z` [B, d]."""
        for codebook in self.codebooks[:level]:
            z = z - codebook[nearest_code(z, codebook)]
        return z


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized` with the gradient of `z`; nothing flows to the codebooks."""
    return z + (quantized - z).detach()


def nearest_code(residual: Tensor, codebook: Tensor) -> Tensor:
    """Row of the code [C, d] nearest to each residual [B, d], int64 [B]."""
    with torch.no_grad():
        return (codebook.square().sum(1) - 2 * residual @ codebook.T).argmin(1)


class RQVAE(Quantizer):
    """Codes of the encoder's output; reconstruction by the decoder. Trains on the GPU if there is one."""

    model: ResidualAutoencoder

    @property
    def dims(self) -> int:
        return len(self.model.mean)

    def tensors(self) -> dict[str, np.ndarray]:
        return {name: tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()}

    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        model = ResidualAutoencoder(len(tensors["mean"]), self._config)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
        self.model = model.to(resolve_device("auto")).eval()

    @torch.inference_mode()
    def _encode(self, x: np.ndarray) -> np.ndarray:
        z = self.model.encoder(self._standardise(x))
        return self.model.quantize(z)[0].cpu().numpy()

    @torch.inference_mode()
    def _decode(self, codes: np.ndarray) -> np.ndarray:
        index = torch.from_numpy(codes.astype(np.int64)).to(self.model.mean.device)
        total = sum(codebook[index[:, level]] for level, codebook in enumerate(self.model.codebooks))
        return (self.model.decoder(total) * self.model.std + self.model.mean).cpu().numpy()

    def _standardise(self, x: np.ndarray) -> Tensor:
        centred = torch.from_numpy(x).to(self.model.mean.device) - self.model.mean
        return centred / self.model.std.where(self.model.std > 0, 1.0)

    def _fit(self, x: np.ndarray) -> None:
        settings = self._config.rq_vae
        with torch.random.fork_rng():
            torch.manual_seed(self._config.seed)
            self.model = ResidualAutoencoder(x.shape[1], self._config).to(resolve_device("auto"))
        std = x.std(0, dtype=np.float64)
        # a dimension constant up to rounding: 0 to the encoder, its mean from the decoder
        std[std < 1e-6 * std.max()] = 0
        self.model.mean.copy_(torch.from_numpy(x.mean(0, dtype=np.float64)))
        self.model.std.copy_(torch.from_numpy(std))
        data = self._standardise(x)
        rng = torch.Generator().manual_seed(self._config.seed)
        self._place_codebooks(data[torch.randperm(len(data), generator=rng)])
        networks = [*self.model.encoder.parameters(), *self.model.decoder.parameters()]
        optimizer = torch.optim.AdamW(
            [
                {"params": networks, "weight_decay": settings.weight_decay},
                {"params": [self.model.codebooks], "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
        )
        used = torch.zeros(self.model.codebooks.shape[:2], dtype=torch.bool, device=data.device)
        for epoch in track(range(1, settings.epochs + 1), "rq-vae"):
            order = torch.randperm(len(data), generator=rng).to(data.device)
            loss = self._train_epoch(data, order, optimizer, used)
            if not np.isfinite(loss):
                raise UserError(
                    f"rq-vae diverged in epoch {epoch} (loss {loss}); "
                    f"lower --tokenize.rq_vae.learning_rate (now {settings.learning_rate})"
                )
            # a code reset in the last epochs would not have time to find its place
            if epoch % settings.reset_every == 0 and epoch + settings.reset_every <= settings.epochs:
                self._reset_unused(data[order[: len(used[0]) * INIT_POINTS_PER_CODE]], used, rng)
                used.zero_()
        log.info("rq-vae: loss %.4f after %d epochs", loss, settings.epochs)
        self.model.eval()

    def _train_epoch(self, data: Tensor, order: Tensor, optimizer: torch.optim.Optimizer, used: Tensor) -> float:
        """One pass over `data` in `order`; marks the codes it used. Mean loss per item."""
        total = 0.0
        for batch in order.split(self._config.rq_vae.batch_size):
            loss, codes = self.model(data[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            used.scatter_(1, codes.T, True)
            total += loss.item() * len(batch)
        return total / len(data)

    @torch.no_grad()
    def _place_codebooks(self, data: Tensor) -> None:
        """k-means on the first batch's latents, level by level."""
        config = self._config
        z = self.model.encoder(data[: config.codes * INIT_POINTS_PER_CODE])
        for level, codebook in enumerate(self.model.codebooks):
            residual = self.model.residuals(z, level).cpu().numpy()
            centroids = kmeans(residual, config.codes, config.iterations, config.seed + level)
            codebook.copy_(torch.from_numpy(centroids))

    @torch.no_grad()
    def _reset_unused(self, data: Tensor, used: Tensor, rng: torch.Generator) -> None:
        """Move every unused code onto a random residual of its level."""
        z = self.model.encoder(data)
        for level, codebook in enumerate(self.model.codebooks):
            dead = (~used[level]).nonzero().squeeze(1)
            rows = torch.randperm(len(z), generator=rng)[: len(dead)].to(z.device)
            codebook[dead] = self.model.residuals(z, level)[rows]


def _mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
