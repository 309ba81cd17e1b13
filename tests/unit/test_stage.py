"""The peak memory that a stage reports is its own."""

import sys
from pathlib import Path

import numpy as np
import pytest

from llmrec.stage import Stage, peak_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can count anew")
def test_the_peak_memory_of_a_stage_is_its_own(tmp_path: Path) -> None:
    size = 300 * 2**20
    peaks = []

    def large(folder: Path) -> None:
        np.ones(size, np.uint8)

    for make in (large, lambda folder: None):
        assert Stage("one", {}, make).run(tmp_path) >= 0
        peaks.append(peak_memory())
    assert peaks[0] >= peaks[1] + 0.8 * size
