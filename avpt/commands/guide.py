"""`avpt guide`: the pages of the manual, which come with the program."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files

from avpt.errors import ConfigError
from avpt.options import GuideConfig
from avpt.types import Report, Table


def run(config: GuideConfig) -> Report:
    """Show one page, or which pages there are."""
    pages = read_pages()
    if config.topic is None:
        rows = [(topic, title_of(page)) for topic, page in pages.items()]
        return Report({"topics": dict(rows)}, tables=[Table("avpt guide TOPIC", ("topic", "about"), rows, left=2)])
    if config.topic not in pages:
        near = get_close_matches(config.topic, pages, n=1)
        step = f"did you mean {near[0]}?" if near else "`avpt guide` lists the topics"
        raise ConfigError(f"the manual has no page on {config.topic}; {step}")
    page = pages[config.topic]
    return Report({"topic": config.topic, "title": title_of(page), "text": page}, page=page)


def read_pages() -> dict[str, str]:
    """The Markdown of every page by its topic, in alphabetical order."""
    entries = [entry for entry in files("avpt").joinpath("guide").iterdir() if entry.name.endswith(".md")]
    pages = {entry.name.removesuffix(".md"): entry.read_text(encoding="utf-8") for entry in entries}
    return dict(sorted(pages.items()))


def title_of(page: str) -> str:
    """The heading that a page begins with."""
    return page.partition("\n")[0].removeprefix("# ")
