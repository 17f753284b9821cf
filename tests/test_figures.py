"""The look of figures, and pictures made of characters."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpt.errors import OutputError
from avpt.figures import style
from avpt.figures.curves import draw_curves
from avpt.text import EIGHTHS, LEVELS, bar, sparkline


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_curves_show_mean_and_range_of_runs_of_different_length() -> None:
    figure = draw_curves({"two": [[0.0, 1.0, 5.0], [2.0, 5.0]], "one": [[3.0]]}, label="accuracy")
    axes: Any = figure.axes[0]
    two, one = axes.lines
    assert two.get_xydata().tolist() == [[1, 1.0], [2, 3.0], [3, 5.0]]
    assert one.get_xydata().tolist() == [[1, 3.0]]
    assert one.get_marker() == "o"  # a line through one point has no length
    (band,) = axes.collections
    low, high = band.get_paths()[0].vertices.min(axis=0), band.get_paths()[0].vertices.max(axis=0)
    assert (low[1], high[1]) == (0.0, 5.0)
    assert axes.get_ylabel() == "accuracy"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["two", "one"]


def test_files_are_complete_and_the_same_each_time_with_text_as_text(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    figure = draw_curves({"Ä & <b>": [[0.1, 0.2]], "other": [[0.2]]}, label="loss")
    first = {path.name: path.read_bytes() for path in style.save(figure, tmp_path / "figures", "loss")}
    assert set(first) == {"loss.png", "loss.pdf"}
    again = draw_curves({"Ä & <b>": [[0.1, 0.2]], "other": [[0.2]]}, label="loss")
    assert {path.name: path.read_bytes() for path in style.save(again, tmp_path / "figures", "loss")} == first
    assert b"/FontFile2" in first["loss.pdf"]  # TrueType: text can be selected and edited
    assert "Ä &amp; &lt;b&gt;".encode() in style.render(figure, "svg")
    assert dict(matplotlib.rcParams) == before

    other = draw_curves({"x": [[1.0]]}, label="loss")
    with pytest.raises(OutputError, match=r"loss\.png is another figure.*--overwrite"):
        style.save(other, tmp_path / "figures", "loss")
    style.save(other, tmp_path / "figures", "loss", overwrite=True)
    assert (tmp_path / "figures" / "loss.png").read_bytes() != first["loss.png"]


def test_colours_stand_out_from_paper() -> None:
    for colour in (style.AUDIO, style.VISUAL, style.JOINT, style.DEAD):
        assert 1.05 / (luminance(colour) + 0.05) >= 3, colour  # WCAG 2.1's least contrast for graphics


@given(st.floats(0, 1), st.integers(1, 30))
def test_a_bar_is_as_long_as_its_share(share: float, width: int) -> None:
    text = bar(share, width)
    assert len(text) == width
    filled = sum(EIGHTHS.index(character) for character in text)
    assert abs(filled - share * width * 8) <= 0.5 or (filled == 1 and share > 0)
    assert (filled > 0) == (share > 0)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=100), st.integers(2, 40))
def test_a_sparkline_is_one_line_of_blocks(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    assert all(character in LEVELS + "?" for character in line)
    assert all(unicodedata.east_asian_width(character) != "W" for character in line)
    if len(values) <= width:
        assert [character == "?" for character in line] == [not math.isfinite(value) for value in values]
        finite = [value for value in values if math.isfinite(value)]
        if finite and min(finite) < max(finite):
            assert line[values.index(min(finite))] == LEVELS[0]
            assert line[values.index(max(finite))] == LEVELS[-1]


def test_a_sparkline_keeps_the_first_and_the_last_of_many() -> None:
    assert sparkline([float(i) for i in range(100)], 8) == LEVELS
