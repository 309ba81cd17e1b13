"""The picture shows the figures of the log, the step that is kept and the bar of recall@50."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from llmrec.preference.picture import PANELS, save_picture


def test_the_curves_are_those_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = [name for panel in PANELS.values() for name in panel]
    lines = [{"step": step, **{name: at + step / 100 for at, name in enumerate(names)}} for step in (0, 5, 9)]
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *given, **more: drawn.append(figure) or save(figure, *given, **more)
    )
    save_picture(lines, 5, 0.7, tmp_path / "guards.png")
    assert (tmp_path / "guards.png").read_bytes().startswith(b"\x89PNG")
    curves = {line.get_label(): line for axes in drawn[0].axes for line in axes.lines}
    for name in names:
        assert list(curves[name].get_xdata()) == [0, 5, 9]
        assert list(curves[name].get_ydata()) == [line[name] for line in lines]
    assert set(curves["kept: step 5"].get_xdata()) == {5}
    assert set(curves["least recall@50"].get_ydata()) == {0.7}
