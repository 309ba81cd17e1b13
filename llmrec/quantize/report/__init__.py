"""The report on the quality of semantic IDs: figures, a table, a picture, and the words of the largest codes."""

from llmrec.quantize.report.report import Report, measure, save_picture

__all__ = ["Report", "measure", "save_picture"]
