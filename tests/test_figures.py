"""The look of figures, and pictures made of characters."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpt.errors import OutputError
from avpt.figures import style
from avpt.figures.confusion import draw_confusion
from avpt.figures.curves import draw_curves
from avpt.text import EIGHTHS, LEVELS, bar, shortened, sparkline


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
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["two", "one"]


@pytest.mark.filterwarnings("error::UserWarning")
def test_axes_keep_their_size_however_many_curves_there_are() -> None:
    sizes = {}
    for number in (1, 2, 5, 10, 32):
        names = [f"{i:02}: runs/a/rather/long/path/to/a/folder/seed-{i:02}" for i in range(number)]
        figure: Any = draw_curves({name: [[1.0, float(i)]] for i, name in enumerate(names)}, label="loss", width=6.9)
        figure.draw_without_rendering()
        (axes,), (width, height) = figure.axes, figure.get_size_inches()
        sizes[number] = axes.get_position().width * width, axes.get_position().height * height
        if number > 1:
            (legend,) = figure.legends
            extent = legend.get_window_extent()
            assert extent.y1 < axes.get_tightbbox().y0  # below, and whole
            assert (extent.x0 >= 0) & (extent.y0 >= 0) & (extent.x1 <= figure.bbox.x1)
            texts = [text.get_text() for text in legend.get_texts()]
            assert len(set(texts)) == number
            assert all(len(name) == 40 and "…" in name for name in texts)
    assert all(size == pytest.approx(sizes[1], abs=0.15) for size in sizes.values())
    looks = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
    assert len(set(looks)) == 32
    assert len({dash for _, dash in looks[:4]}) == 4  # told apart without colour


@pytest.mark.filterwarnings("error::UserWarning")
def test_names_that_are_no_words() -> None:
    """Mathematics, a start that matplotlib hides, a script that its font lacks, the widest letters."""
    names = ["_a $x_{", r"\$b\$", "音楽", "W" * 60]
    figure: Any = draw_curves({name: [[1.0, 2.0]] for name in names}, label="loss")
    style.render(figure, "png")
    texts = [text.get_text().replace(r"\$", "$") for text in figure.legends[0].get_texts()]
    assert texts == ["_a $x_{", "$b$", "音楽", "WWWWWWWWWW…WWWWWWWWW"]
    with style.apply_style():
        assert figure.legends[0].get_window_extent().width <= figure.bbox.width


@given(st.text(), st.integers(3, 50))
def test_shortened_names_keep_both_ends(text: str, most: int) -> None:
    short = shortened(text, most)
    if len(text) <= most:
        assert short == text
    else:
        start, end = short[: most // 2], short[most // 2 + 1 :]
        assert len(short) == most
        assert text.startswith(start)
        assert text.endswith(end)
        assert short[most // 2] == "…"


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    "classes", [["a", "b"], ["W" * 50, "x" * 50, "c"], [f"playing_instrument_{i:02}" for i in range(50)]]
)
def test_names_of_a_confusion_matrix_can_be_read(classes: list[str]) -> None:
    figure: Any = draw_confusion(np.eye(len(classes), dtype=int).tolist(), classes)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    inside = figure.bbox.padded(1)
    parts = [axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
    for text in parts:
        extent = text.get_window_extent()
        assert inside.contains(extent.x0, extent.y0), text
        assert inside.contains(extent.x1, extent.y1), text
        assert text.get_fontsize() >= 6
        assert len(text.get_text()) <= 20
    row = axes.get_position().height * figure.get_figheight() / len(classes)
    assert row * 72 > axes.get_yticklabels()[0].get_fontsize()  # rows do not run into each other


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


def test_of_several_files_all_are_written_or_none(tmp_path: Path) -> None:
    first, second = style.MARK + b" 1", style.MARK + b" 2"
    (tmp_path / "b.png").write_bytes(style.MARK + b" before")
    with pytest.raises(OutputError, match=r"b\.png is another figure"):
        style.write({"a.png": first, "b.png": second}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]
    paths = style.write({"a.png": first, "b.png": second}, tmp_path, overwrite=True)
    assert [path.read_bytes() for path in paths] == [first, second]


def test_pictures_of_others_are_never_replaced(tmp_path: Path) -> None:
    figure = draw_curves({"x": [[1.0]]}, label="loss")
    assert figure.axes[0].get_xticks().tolist() == [1]  # one epoch is one tick
    (tmp_path / "loss.pdf").write_bytes(b"a drawing of mine")
    with pytest.raises(OutputError, match=r"loss\.pdf was not written by avpt"):
        style.save(figure, tmp_path, "loss", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["loss.pdf"]


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
