"""The style that all figures share, and how figures are written."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

from avpt.files.outputs import atomic
from avpt.files.reuse import check_ours, must_write

ONE_COLUMN, TWO_COLUMNS = 3.35, 6.9  # inches, of a usual two-column paper

# Okabe and Ito's colours, which people with any kind of colour blindness can distinguish
AUDIO, VISUAL, JOINT = "#0072B2", "#D55E00", "#009E73"
BEFORE, AFTER = "#E69F00", "#56B4E9"
DEAD = "#D62728"  # drawn as a thick frame, so that colour alone does not carry the meaning
ABNORMAL = "#E69F00"  # dashed, beside DEAD's full line
CYCLE = (AUDIO, VISUAL, JOINT, "#CC79A7", BEFORE, AFTER, "#000000", "#8C8C8C")
DASHES = ("-", "--", ":", "-.")  # so that curves can be distinguished without colour too
MARK = b"drawn by avpt"  # in the metadata of every figure
INK = "#1b1b1d"  # of text and axes; a page replaces it by its own

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.prop_cycle": cycler(color=CYCLE),
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "legend.frameon": False,
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "avpt",  # the same figure gives the same bytes
}


@contextmanager
def apply_style() -> Iterator[None]:
    """Draw and write figures in this style; afterwards matplotlib's settings are restored."""
    defaults: Any = matplotlib.rcParamsDefault
    settings = {name: value for name, value in defaults.items() if name != "backend"}  # figures are drawn without one
    with matplotlib.rc_context(settings | STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # other scripts are shown as boxes
        yield


def line_style(number: int) -> tuple[str, str]:
    """Choose colour and dash of a line; the first 32 all differ, and the first four differ in their dash as well."""
    return CYCLE[number % len(CYCLE)], DASHES[(number + number // len(CYCLE)) % len(DASHES)]


def save(figure: Figure, folder: Path, name: str, *, overwrite: bool = False) -> list[Path]:
    """Write NAME.png and NAME.pdf, each complete or not at all; the same figure gives the same bytes.

    Raises:
        OutputError: another file of that name exists, and `overwrite` is not set.
    """
    return write(render_all({name: figure}), folder, overwrite=overwrite)


def render_all(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Render each figure as PNG and PDF; returns the contents of the files by their names."""
    return {f"{name}.{kind}": render(figure, kind) for name, figure in figures.items() for kind in ("png", "pdf")}


def check(files: Mapping[str, bytes], folder: Path, *, overwrite: bool = False) -> None:
    """Check that the files can be written.

    Raises:
        OutputError: another figure of such a name exists, and `overwrite` is not set; or a file that is not ours.
    """
    for path, content in ((folder / name, content) for name, content in files.items()):
        existing = check_ours(path, lambda there: MARK in there, option="folder")
        must_write(path, content, existing, "is another figure", option="folder", overwrite=overwrite)


def write(files: Mapping[str, bytes], folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write all files or, if `check` refuses one of them, none."""
    check(files, folder, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic(folder / name) as beside:
            beside.write_bytes(content)
    return [folder / name for name in files]


def render(figure: Figure, kind: str) -> bytes:
    """Render a figure as the bytes of a png, pdf or svg file, which do not depend on the time."""
    made_by = MARK.decode()
    undated = {
        "png": {"Software": made_by},
        "pdf": {"Creator": made_by, "CreationDate": None},
        "svg": {"Creator": made_by, "Date": None},
    }
    content = io.BytesIO()
    with apply_style():
        figure.savefig(content, format=kind, metadata=undated[kind])
    return content.getvalue()
