"""One self-contained HTML page: it loads nothing, runs no script, and every word from outside is escaped."""

from __future__ import annotations

import html
import math
import re
from functools import cache
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from avpt.files.checking import RecordError, check, parse
from avpt.files.records import NamedProvenance
from avpt.report.page.blocks import Page
from avpt.report.page.routes import BOX, route
from avpt.text import as_json, printable

GENERATOR = "avpt report"
START = 1 << 20  # bytes of a page within which its provenance lies
FONT = re.compile(r"font(?:-size)?: ([\d.]+)px")  # as matplotlib writes it
PROVENANCE = re.compile(r'<meta name="generator" content="avpt report">\s*<meta name="avpt" content="([^"]*)">')
READABLE = 10  # the least size of text in a drawing as displayed, pixels; a smaller screen scrolls it
PHONE = 358  # pixels between the margins of a phone
BROAD = 5  # columns from which a table is wider than a phone


def render(page: Page, ink: str) -> str:
    """Render the page as HTML; `ink` is the colour in drawings that the page replaces by its own."""
    numbers = count(1)
    text = _template().render(
        page=page,
        record=as_json(page.provenance),
        drawing=lambda svg, alt: inline(svg, alt, f"f{next(numbers)}", ink),
        generator=GENERATOR,
        route=route,
        box=BOX,
        broad=BROAD,
        is_wide=lambda svg: measure(svg.decode())[1] > PHONE,
        phone=PHONE,
        readable=READABLE,
        place=lambda share: f"{100 * min(1.0, max(0.0, share)):.2f}%",
    )
    return printable(text, keep="\n")


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("avpt.report.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["prose"] = prose
    return environment.get_template("report.html.jinja")


def prose(text: str) -> Markup:
    """Escape text, and turn what stands in backticks into code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def inline(svg: bytes, alt: str, prefix: str, ink: str) -> Markup:
    """Make a drawing by matplotlib part of a page: with unique ids, the page's ink, and a description in words."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = text.replace('xlink:href="#', f'xlink:href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    text = re.sub(f"{ink}|#000000", "currentColor", text)
    for name, colour in own_colours().items():
        text = text.replace(colour, f"var(--{name})")
    width, least = measure(text)
    opening = re.match(r"<svg[^>]*>", text)
    assert opening is not None
    box = re.search(r'viewBox="([^"]*)"', opening[0])
    assert box is not None
    start = (
        f'<svg class="drawing" style="--points: {width:.0f}; --least: {least}px" '
        f'viewBox="{box[1]}" role="img" '
        f'aria-label="{html.escape(alt)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return Markup(start + text[opening.end() :].strip())


def measure(text: str) -> tuple[float, int]:
    """The width of a drawing in points, and the least one in pixels with which its text can be read."""
    width = float(re.search(r'width="([\d.]+)pt"', text)[1])  # type: ignore[index]
    smallest = min(map(float, FONT.findall(text)), default=READABLE)  # in the same unit as the width
    return width, math.ceil(width * READABLE / smallest)


@cache
def own_colours() -> dict[str, str]:
    """The colours of the modalities as drawings have them, which are the page's in the light."""
    css = resources.files("avpt.report.page").joinpath("report.css").read_text(encoding="utf-8")
    return dict(reversed(re.findall(r"--(audio|visual|joint): (#[0-9a-f]{6})", css)))


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Read what a page says it was made from; None where a file is no such page."""
    with path.open("rb") as file:
        start = file.read(START).decode(errors="replace")
    match = PROVENANCE.search(start)
    try:
        return cast(dict[str, Any], check(parse(html.unescape(match[1])), NamedProvenance)) if match else None
    except RecordError:
        return None
