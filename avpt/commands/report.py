"""`avpt report`: the whole story of an experiment as one self-contained page."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpt.errors import listed
from avpt.files.locks import claim
from avpt.files.outputs import write_text
from avpt.files.reuse import foreign, is_reused, is_there
from avpt.options import ReportConfig
from avpt.runs.folder import expand_folders
from avpt.text import near
from avpt.types import Report

if TYPE_CHECKING:
    from avpt.report.experiment import Experiment
    from avpt.report.page.blocks import Section, Verdict

log = logging.getLogger(__name__)

MOST_NAMED = 12  # files of a folder, in a line

LEAD = (
    "Audio-visual models are trained from encoders that were pre-trained on something else. The paper that this "
    "experiment follows (arXiv 2302.03533) says that two things then go wrong unseen. First, many BatchNorm channels "
    "of a pre-trained encoder are nearly zero and stay dead on the new modality; its remedy is ABRi.",
    "Second, when both modalities are trained together, the one that is easier to learn from takes the gradient away "
    "from the other, whose encoder gets worse; its remedy is FusT.",
    "What follows is computed from this experiment's own files. It says what this data shows, not what is true of "
    "others; a difference that chance could well have made is not called one, nor one that only one or two seeds show.",
)


def run(config: ReportConfig) -> Report:
    """Find what belongs to the runs; write the page unless it is there already."""
    from avpt.report.experiment import gather

    read_page(config.out)  # refuse another's file now, not at the end
    log.info("looking for what the runs were made from, and what was made from them")
    experiment = gather(expand_folders(config.runs), config.search)
    say_neighbours(experiment)
    title = config.title or f"Experiment {Path(experiment.base).name}".strip()
    provenance: dict[str, Any] = {
        "kind": "report",
        "config": config.record() | {"title": title},
        "inputs": experiment.contents(),
    }
    with claim(config.out):
        summary = find_summary(config, provenance)
        if summary is None:
            summary = write(config, experiment, provenance)
    return Report(summary, (config.out,))


def say_neighbours(experiment: Experiment) -> None:
    """Say what the page shows besides what was named and where that lies, and what it passes over."""
    for folder, paths in experiment.neighbours().items():
        log.info("also on the page, from %s: %s", near(folder), listed([path.name for path in paths], MOST_NAMED))
    if experiment.unused:
        log.info(
            "not on the page, as no run of it was made with it: %s; what is named with the runs is",
            listed([near(path) for path in experiment.unused], MOST_NAMED),
        )


def read_page(path: Path) -> dict[str, Any] | None:
    """The provenance that is written in an earlier page; None where there is no file.

    Raises:
        OutputError: the path holds something else.
    """
    from avpt.report.page.html import read_provenance

    if not is_there(path):
        return None
    recorded = read_provenance(path)
    if recorded is None or not isinstance(recorded.get("summary"), dict):
        raise foreign(path, "this command")
    return recorded


def find_summary(config: ReportConfig, provenance: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of an earlier page, made of the same inputs with the same options; None where it is to be made.

    Raises:
        OutputError: the path holds something else.
    """
    recorded = read_page(config.out)
    if recorded is None or not is_reused(config.out, recorded, provenance, config.defaults(), config.overwrite):
        return None
    summary: dict[str, Any] = recorded["summary"]
    return {"report": str(config.out)} | summary


def write(config: ReportConfig, experiment: Experiment, record: dict[str, Any]) -> dict[str, Any]:
    """Write the page: what was found, then section by section how."""
    log.info("loading torch and matplotlib")
    from avpt.figures.style import INK
    from avpt.report.chapters import (
        clips,
        dominance,
        initialisation,
        overview,
        provenance,
        results,
        stage1_alone,
        stage2_together,
    )
    from avpt.report.chapters.verdicts import questions
    from avpt.report.differences import RULES
    from avpt.report.page.blocks import Page
    from avpt.report.page.html import render
    from avpt.report.shell_commands import write_option

    options = [write_option(ReportConfig, name, getattr(config, name)) for name in ("title", "clips")]
    told = [word for words in options for word in words] if config.title or config.clips != ReportConfig.clips else []
    folder = config.out.absolute().parent
    log.info("answering the questions")
    starts = initialisation.find_starts(experiment)
    answers = questions.answer_questions(experiment, starts, folder)
    chapters: dict[str, Callable[[], Section]] = {
        "results": lambda: results.section(experiment),
        "the data": lambda: clips.section(experiment, config.clips),
        "initialisation": lambda: initialisation.section(experiment, starts),
        "stage 1": lambda: stage1_alone.section(experiment),
        "confidence": lambda: dominance.section(experiment, config.clips),
        "stage 2": lambda: stage2_together.section(experiment, config.clips),
        "provenance": lambda: provenance.section(experiment, config.out, told),
    }
    sections = []
    for number, (name, write_chapter) in enumerate(chapters.items(), 1):
        log.info("chapter %d of %d: %s", number, len(chapters), name)
        sections.append(write_chapter())
    summary = summarise(experiment, answers)
    first = overview.summarise(experiment, config.clips, answers, sections)
    page = Page(record["config"]["title"], (*LEAD, *RULES), answers, sections, record | {"summary": summary}, first)
    write_text(config.out, render(page, INK))
    return {"report": str(config.out)} | summary


def summarise(experiment: Experiment, answers: list[Verdict]) -> dict[str, Any]:
    """The summary of a page, for scripts."""
    return {
        "runs": sum(node.is_run for node in experiment.nodes),
        "unfinished": [experiment.name(node) for node in experiment.unfinished()],
        "missing": [f"{lost.name} of {lost.owner.name}" for lost in experiment.missing],
        "verdicts": [record_verdict(one) | {"further": list(map(record_verdict, one.further))} for one in answers],
    }


def record_verdict(verdict: Verdict) -> dict[str, Any]:
    """Record a verdict for scripts."""
    return {"claim": verdict.claim, "answer": verdict.answer, "headline": verdict.headline}
