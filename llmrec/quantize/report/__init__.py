"""How good semantic IDs are: figures, table, picture and words."""

from llmrec.quantize.report.picture import save_picture
from llmrec.quantize.report.report import Report, measure

__all__ = ["Report", "measure", "save_picture"]
