"""The class of each `--tokenize.method`; a new quantizer adds one case to `quantizer_class`."""

from pathlib import Path
from typing import assert_never, get_args

from llmrec.errors import UserError
from llmrec.quantize.base import Quantizer
from llmrec.quantize.config import Method, TokenizeConfig
from llmrec.resources import resource_folder


def quantizer_class(method: Method) -> type[Quantizer]:
    """The quantizer class of `method`. Its module (and torch, if it needs torch) is imported only in this call."""
    match method:
        case "random":
            from llmrec.quantize.base import RandomCodes

            return RandomCodes
        case "kmeans" | "rq-kmeans":
            from llmrec.quantize.classical.residual import RQKMeans

            return RQKMeans
        case "pq":
            from llmrec.quantize.classical.product import ProductQuantizer

            return ProductQuantizer
        case "opq":
            from llmrec.quantize.classical.product import OptimizedProductQuantizer

            return OptimizedProductQuantizer
        case "rq-kmeans-normalized":
            from llmrec.quantize.classical.normalized import NormalizedRQKMeans

            return NormalizedRQKMeans
        case "rq-opq":
            from llmrec.quantize.classical.residual_product import ResidualProductQuantizer

            return ResidualProductQuantizer
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


def preset_files() -> dict[str, Path]:
    """Name -> YAML file of each preset in the package; a preset is a `tokenize` section of a configuration."""
    return {path.stem: path for path in sorted((resource_folder("configs") / "tokenizers").glob("*.yaml"))}


def tokenizer_names() -> list[str]:
    """Every name that `preset` and `llmrec compare-tokenizers` accept."""
    return sorted({*get_args(Method), *preset_files()})


def preset(name: str) -> TokenizeConfig:
    """The settings of the tokenizer `name`: its preset, or the defaults of the method of that name.

    Raises:
        UserError: an unknown name.
    """
    import yaml

    files = preset_files()
    if name in files:
        return TokenizeConfig.from_dict(yaml.safe_load(files[name].read_text("utf-8"))["tokenize"])
    require_known(name)
    return TokenizeConfig.from_dict({"method": name})


def require_known(name: str) -> None:
    """Raise UserError, with the closest tokenizer name, if `name` is not one of `tokenizer_names()`."""
    from difflib import get_close_matches

    known = tokenizer_names()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no tokenizer {name!r}; {hint}known are {', '.join(known)}")
