"""How good semantic IDs are: figures, a table, a picture and words."""

from llmrec.quantize.report.report import Report, measure, save_picture

__all__ = ["Report", "measure", "save_picture"]
