"""RQ-OPQ: residual k-means, then optimized product quantization of the residual that is left (OneSearch, 2509.03236).

The first levels describe what items share, from coarse to fine. The last ones split what sets an item apart into blocks
of dimensions, which are all quantized at once instead of one after the other.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llmrec.errors import UserError
from llmrec.quantize.base import Quantizer
from llmrec.quantize.classical.product import OptimizedProductQuantizer
from llmrec.quantize.classical.residual import RQKMeans
from llmrec.quantize.config import Method, TokenizeConfig


class ResidualProductQuantizer(Quantizer):
    """The sum of `RQKMeans` of the first levels and `OptimizedProductQuantizer` of the last `product_levels`."""

    def __init__(self, config: TokenizeConfig) -> None:
        super().__init__(config)
        first = config.levels - config.product_levels
        self._residual = RQKMeans(self._part("rq-kmeans", config.level_sizes[:first]))
        self._product = OptimizedProductQuantizer(self._part("opq", config.level_sizes[first:]))

    def _part(self, method: Method, sizes: list[int]) -> TokenizeConfig:
        return replace(self._config, method=method, levels=len(sizes), codes=sizes, product_levels=2)

    @property
    def dims(self) -> int:
        return self._residual.dims

    def tensors(self) -> dict[str, np.ndarray]:
        parts = {"residual": self._residual, "product": self._product}
        return {f"{part}.{name}": array for part, half in parts.items() for name, array in half.tensors().items()}

    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        for part, half in (("residual.", self._residual), ("product.", self._product)):
            half._restore({name.removeprefix(part): array for name, array in tensors.items() if name.startswith(part)})

    def _fit(self, x: np.ndarray, collaborative: np.ndarray | None, texts: Sequence[str] | None) -> None:
        if x.shape[1] < self._product.levels:
            raise UserError(
                f"--tokenize.product_levels is {self._product.levels}, but embeddings of {x.shape[1]} dimensions have "
                "too few for one block per level; choose fewer, or method rq-kmeans"
            )
        self._residual._fit(x, None, None)
        self._product._fit(self._left(x, self._residual._encode(x)), None, None)

    def _left(self, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """`x` [B, D] minus the reconstruction by the residual levels, whose `codes` are [B, L - product_levels]."""
        return x - self._residual._decode(codes)

    def _encode(self, x: np.ndarray) -> np.ndarray:
        first = self._residual._encode(x)
        return np.hstack([first, self._product._encode(self._left(x, first))])

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        first = self._residual.levels
        return self._residual._decode(codes[:, :first]) + self._product._decode(codes[:, first:])
