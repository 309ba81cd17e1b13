"""Which class stands behind each `--tokenize.method`; a new quantizer adds its line here."""

from typing import assert_never

from llmrec.quantize.base import Quantizer
from llmrec.quantize.config import Method


def quantizer_class(method: Method) -> type[Quantizer]:
    """The quantizer of that name; its module, and torch with it, is imported only now."""
    match method:
        case "random":
            from llmrec.quantize.classical.random_codes import RandomCodes

            return RandomCodes
        case "kmeans" | "rq-kmeans":
            from llmrec.quantize.classical.rq_kmeans import RQKMeans

            return RQKMeans
        case "pq":
            from llmrec.quantize.classical.product import ProductQuantizer

            return ProductQuantizer
        case "opq":
            from llmrec.quantize.classical.product import OptimizedProductQuantizer

            return OptimizedProductQuantizer
        case "aq":
            from llmrec.quantize.classical.additive import AdditiveQuantizer

            return AdditiveQuantizer
        case "hierarchical-kmeans":
            from llmrec.quantize.classical.hierarchical import HierarchicalKMeans

            return HierarchicalKMeans
        case "rq-vae":
            from llmrec.quantize.neural.rq_vae import RQVAE

            return RQVAE
        case _:
            assert_never(method)
