"""The verdicts at the top of the page, which say no more than the numbers support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from avpt.report.chapters.initialisation import Start
from avpt.report.chapters.verdicts.abnormal_channels import judge_abnormal_channels
from avpt.report.chapters.verdicts.answers import Results
from avpt.report.chapters.verdicts.balancing_gain import judge_balancing
from avpt.report.chapters.verdicts.masking_gain import judge_masking
from avpt.report.chapters.verdicts.starved_modality import judge_starvation
from avpt.report.chapters.verdicts.two_stages_gain import judge_two_stages
from avpt.report.experiment import Experiment
from avpt.report.methods import is_plain
from avpt.report.page.blocks import Verdict


def answer_questions(experiment: Experiment, starts: Sequence[Start], folder: Path) -> list[Verdict]:
    """Answer three questions, and what runs straight from `init` and runs that balance ask besides.

    Paths in commands are relative to `folder`.
    """
    results, joint = Results(experiment), experiment.of_kind("fused")
    answers = [
        judge_abnormal_channels(experiment, starts, results, folder),
        judge_starvation(experiment, results, folder),
        judge_masking(experiment, results),
    ]
    if any(is_plain(run) and experiment.is_straight(run) for run in joint):
        answers.append(judge_two_stages(experiment, results))
    if any(run.option("balance") != "none" for run in joint):
        answers.append(judge_balancing(experiment, results))
    sets = {tuple(run.header.classes) for run in experiment.runs.values() if run.header is not None}
    if len(sets) < 2:
        return answers
    caveat = (
        f"These runs tell apart {len(sets)} different sets of classes, so not all of them can be compared; only runs "
        "with one set were."
    )
    return [replace(one, details=[*one.details, caveat]) for one in answers]
