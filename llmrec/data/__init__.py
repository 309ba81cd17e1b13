"""Catalogue and interactions: readers of many formats, filters, splits."""

from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.filters import Summary
from llmrec.data.interactions import Interactions, Split
from llmrec.data.prepare import Prepared, load, prepare, save
from llmrec.data.readers import input_files
from llmrec.data.sequences import TEST, TRAIN, VALID, EvalExamples, Sequences

__all__ = [
    "TEST",
    "TRAIN",
    "VALID",
    "Catalog",
    "DataConfig",
    "EvalExamples",
    "Interactions",
    "Prepared",
    "Sequences",
    "Split",
    "Summary",
    "input_files",
    "load",
    "prepare",
    "save",
]
