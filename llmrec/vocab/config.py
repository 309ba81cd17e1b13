"""How the rows of the item tokens start; apart from the code that does it, which needs torch."""

from typing import Literal

InitRows = Literal["gaussian", "mean", "text", "codebook"]
