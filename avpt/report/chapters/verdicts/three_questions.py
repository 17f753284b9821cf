"""The three verdicts at the top of the page, from numbers alone and no more than they carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from avpt.report.chapters.initialisation import Start
from avpt.report.chapters.verdicts.abnormal_channels import abnormal
from avpt.report.chapters.verdicts.answers import Results
from avpt.report.chapters.verdicts.masking_gain import gained
from avpt.report.chapters.verdicts.starved_modality import starved
from avpt.report.experiment import Experiment
from avpt.report.page.blocks import Verdict


def verdicts(experiment: Experiment, starts: Sequence[Start], folder: Path) -> list[Verdict]:
    """The three questions; commands are told as from `folder`."""
    results = Results(experiment)
    said = [abnormal(experiment, starts, results, folder), starved(experiment, results), gained(experiment, results)]
    sets = {tuple(run.header.classes) for run in experiment.runs.values() if run.header is not None}
    if len(sets) < 2:
        return said
    apart = (
        f"These runs tell apart {len(sets)} different sets of classes, so not all of them can be compared; only runs "
        "with one set were."
    )
    return [replace(one, details=[*one.details, apart]) for one in said]
