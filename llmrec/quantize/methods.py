"""Which class stands behind each `--tokenize.method`; a new quantizer adds its line here."""

from pathlib import Path
from typing import assert_never, get_args

from llmrec.errors import UserError
from llmrec.quantize.base import Quantizer
from llmrec.quantize.config import Method, TokenizeConfig
from llmrec.resources import resource_folder


def quantizer_class(method: Method) -> type[Quantizer]:
    """The quantizer of that name; its module, and torch with it, is imported only now."""
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
    """Name -> YAML file of every shipped preset, each a `tokenize` section to lay over a configuration."""
    return {path.stem: path for path in sorted((resource_folder("configs") / "tokenizers").glob("*.yaml"))}


def tokenizer_names() -> list[str]:
    """Every name that `preset` and `llmrec compare-tokenizers` know."""
    return sorted({*get_args(Method), *preset_files()})


def preset(name: str) -> TokenizeConfig:
    """The settings of a named tokenizer; a method without a preset has its defaults.

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
    """Raise UserError, with the closest known name, unless `name` is a tokenizer's."""
    from difflib import get_close_matches

    known = tokenizer_names()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no tokenizer {name!r}; {hint}known are {', '.join(known)}")
