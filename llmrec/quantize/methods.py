"""Which class stands behind each `--tokenize.method`; a new quantizer adds its line here."""

from typing import assert_never

from llmrec.quantize.base import Quantizer
from llmrec.quantize.config import Method


def quantizer_class(method: Method) -> type[Quantizer]:
    """The quantizer of that name; its module, and torch with it, is imported only now."""
    match method:
        case "rq-kmeans":
            from llmrec.quantize.rq_kmeans import RQKMeans

            return RQKMeans
        case "rq-vae":
            from llmrec.quantize.rq_vae import RQVAE

            return RQVAE
        case _:
            assert_never(method)
