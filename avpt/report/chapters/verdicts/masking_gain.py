"""Whether masking the easy modality of a clip makes the joint model better."""

from __future__ import annotations

from collections import defaultdict

from avpt.options import MaskConfig
from avpt.report.chapters.verdicts.answers import (
    Results,
    compare_runs,
    describe_gain,
    explain_precision,
    list_unsettled,
    make_pairing_key,
    weigh_gains,
)
from avpt.report.differences import Difference, explain_limit, set_limit
from avpt.report.drawing import percent
from avpt.report.experiment import Experiment
from avpt.report.page.blocks import Verdict
from avpt.runs.lineage import Node
from avpt.types import MODALITIES, Modality


def judge_masking(experiment: Experiment, results: Results) -> Verdict:
    """Judge whether masking raises the accuracy of the joint model."""
    claim, short = "Does masking what is easy (FusT) make the joint model better?", "Masking (FusT) helps"
    compared = compare_masks(experiment, results)
    if not compared:
        why = (
            "It takes two finished joint runs that differ in `--mask` alone, one of them with `--mask none`, and a "
            "store whose clips have one label each."
        )
        return Verdict(claim, "not measured", why, short=short)
    least = set_limit(len(compared))
    details = [explain_limit(len(compared))]
    for name, difference, shares in compared:
        before, after = percent(difference.before), percent(difference.after)
        details.append(f"`{name}`: {before} unmasked, {after} masked, {describe_gain(difference, least)}")
        details += [f"Beside the question, {m} share of `{name}`: {share.words()}." for m, share in shares.items()]
    names = [name for name, *_ in compared]
    plain = [run for run in experiment.of_kind("fused") if run.option("mask") == "none"]
    masked = [run for name in names for run in experiment.groups[name]]
    details += filter(None, [list_unsettled(experiment, [*plain, *masked])])
    gains = [(name, difference) for name, difference, _ in compared]
    answer, headline = weigh_gains(gains, least, "masking", "without masking")
    details += [explain_precision(compared[0][1].clips)] if answer == "unclear" else []
    return Verdict(claim, answer, headline, details, short)


def compare_masks(experiment: Experiment, results: Results) -> list[tuple[str, Difference, dict[Modality, Difference]]]:
    """Compare each kind of masking with none, by the accuracy of the joint model and of each modality's share."""
    options, inputs = MaskConfig.mask_options(), ("confidence",)
    keys = {run.path: make_pairing_key(run, options, inputs) for run in experiment.of_kind("fused")}
    baselines = {keys[run.path]: run for run in experiment.of_kind("fused") if run.option("mask") == "none"}
    pairs: dict[str, list[tuple[Node, Node]]] = defaultdict(list)
    for run in experiment.of_kind("fused"):
        baseline = baselines.get(keys[run.path])
        if run.option("mask") != "none" and baseline is not None:
            pairs[experiment.group_of(run)].append((baseline, run))
    compared = []
    for name, several in pairs.items():
        difference = compare_runs(several, results)
        if difference is not None:
            shares = {m: share for m in MODALITIES if (share := compare_runs(several, results, m)) is not None}
            compared.append((name, difference, shares))
    return compared
