"""The report on the quality of semantic IDs: figures, a table, pictures, and the words of the largest codes."""

from llmrec.quantize.report.picture import MAP_ITEMS, map_picture, save_picture
from llmrec.quantize.report.report import Report, measure

__all__ = ["MAP_ITEMS", "Report", "map_picture", "measure", "save_picture"]
