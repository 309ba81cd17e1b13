"""The weights of the fusion: what the model's several opinions of an item count, as learnt on validation cases."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from llmrec.errors import UserError

FEATURES = ("first_code", "later_codes", "dense", "text")
"""Log-probability of the first code and of those after it, of the item by the dense head, and the cosine of the item's
text with the history's."""


@dataclass(frozen=True)
class FusionWeights:
    """An item's score is the weighted sum of its features, plus a bonus if it is new.

    Attributes:
        trained: one weight per feature, for items with training events.
        new: the same for new items, whose later codes tell a model little.
        bonus: added to the score of new items.
        measured: what the calibration saw, for the record.
    """

    trained: list[float]
    new: list[float]
    bonus: float
    measured: dict[str, float]

    def scores(self, features: np.ndarray, new: np.ndarray) -> np.ndarray:
        """Float [...] of features [..., 4] of items of which `new`, bool [...], tells the new ones."""
        return np.where(new, features @ np.array(self.new) + self.bonus, features @ np.array(self.trained))

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps({"features": FEATURES, **asdict(self)}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: the file is damaged, or of other features.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if tuple(raw.pop("features")) != FEATURES:
                raise ValueError(f"other features than {', '.join(FEATURES)}")
            weights = cls(**raw)
            numbers = [*weights.trained, *weights.new, weights.bonus]
            if len(numbers) != 2 * len(FEATURES) + 1 or not np.isfinite(np.array(numbers, float)).all():
                raise ValueError("expected one finite number per feature")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: not fusion weights that llmrec saved: {error}.") from None
        return weights
