"""`avpt report`: the whole story of an experiment as one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpt.files.outputs import claim, foreign, is_reused, is_there, write_text
from avpt.options import ReportConfig
from avpt.types import Report

if TYPE_CHECKING:
    from avpt.report.experiment import Experiment
    from avpt.report.page.blocks import Verdict

LEAD = (
    "Audio-visual models are trained from encoders that were pre-trained on something else. The paper that this "
    "experiment follows (arXiv 2302.03533) says that two things then go wrong unseen. First, many BatchNorm channels "
    "of a pre-trained encoder are nearly zero and stay dead on the new modality; its remedy, ABRi, blends each "
    "BatchNorm with a fresh one, by a learnt share.",
    "Second, when both modalities are trained together, the one that is easier to learn from takes the gradient away "
    "from the other, whose encoder gets worse; its remedy, FusT, first trains each encoder alone, notes how sure it is "
    "of each clip, and then trains both while masking, clip by clip, part of the modality that is easy.",
    "What follows is computed from this experiment's own files. It says what this data shows, not what is true of "
    "others; a difference that chance could well have made is not called one, nor one that only one or two seeds show.",
)


def run(config: ReportConfig) -> Report:
    """Find what belongs to the runs; write the page unless it is there already."""
    from avpt.report.experiment import gather

    read_page(config.out)  # not to find at the end that the file is somebody else's
    experiment = gather(config.runs, config.search)
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


def read_page(path: Path) -> dict[str, Any] | None:
    """What the page that is there says of itself; None where there is nothing.

    Raises:
        OutputError: something else is there.
    """
    from avpt.report.page.html import read_provenance

    if not is_there(path):
        return None
    found = read_provenance(path)
    if found is None or not isinstance(found.get("summary"), dict):
        raise foreign(path, "this command")
    return found


def find_summary(config: ReportConfig, provenance: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a page that is already there and was made in just this way, or None to make it.

    Raises:
        OutputError: something else is there.
    """
    found = read_page(config.out)
    if found is None or not is_reused(config.out, found, provenance, config.defaults(), config.overwrite):
        return None
    summary: dict[str, Any] = found["summary"]
    return {"report": str(config.out)} | summary


def write(config: ReportConfig, experiment: Experiment, record: dict[str, Any]) -> dict[str, Any]:
    """Tell the story section by section."""
    from avpt.figures.style import INK
    from avpt.report.chapters import clips, dominance, initialisation, learning, provenance, results
    from avpt.report.chapters.verdicts import three_questions
    from avpt.report.differences import CAVEAT
    from avpt.report.page.blocks import Page
    from avpt.report.page.html import render

    starts = initialisation.find_starts(experiment)
    folder = config.out.absolute().parent
    said = three_questions.answer_questions(experiment, starts, folder)
    sections = [
        clips.section(experiment, config.clips),
        initialisation.section(experiment, starts),
        learning.stage1(experiment),
        dominance.section(experiment, config.clips),
        learning.stage2(experiment, config.clips),
        results.section(experiment),
        provenance.section(experiment, folder),
    ]
    summary = summarize(experiment, said)
    page = Page(record["config"]["title"], (*LEAD, CAVEAT), said, sections, record | {"summary": summary})
    write_text(config.out, render(page, INK))
    return {"report": str(config.out)} | summary


def summarize(experiment: Experiment, said: list[Verdict]) -> dict[str, Any]:
    """What scripts want to know of a page."""
    return {
        "runs": sum(node.is_run for node in experiment.nodes),
        "unfinished": [experiment.name(node) for node in experiment.unfinished()],
        "missing": [f"{lost.name} of {lost.owner.name}" for lost in experiment.missing],
        "verdicts": [{"claim": one.claim, "answer": one.answer, "headline": one.headline} for one in said],
    }
