"""Catalogue and interactions: readers of many formats, filters, splits."""

from llmrec.data.catalog import Catalog
from llmrec.data.interactions import Interactions
from llmrec.data.split import TEST, TRAIN, VALID, Cases, Sequences, Split

__all__ = ["TEST", "TRAIN", "VALID", "Cases", "Catalog", "Interactions", "Sequences", "Split"]
