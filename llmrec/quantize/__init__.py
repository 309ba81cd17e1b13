"""Quantizers turn item vectors [N, D] into codes [N, L], the semantic IDs."""

from llmrec.quantize.base import Quantizer
from llmrec.quantize.config import LossConfig, RQVAEConfig, TokenizeConfig
from llmrec.quantize.methods import quantizer_class
from llmrec.quantize.report import Report
from llmrec.quantize.tokenizer import ItemTokenizer

__all__ = ["ItemTokenizer", "LossConfig", "Quantizer", "RQVAEConfig", "Report", "TokenizeConfig", "quantizer_class"]
