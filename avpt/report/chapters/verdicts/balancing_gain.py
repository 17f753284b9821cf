"""Whether balancing the modalities makes the joint model better, and whether the weaker modality gains by it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avpt.options import FuseConfig
from avpt.report.chapters.results import read_probe
from avpt.report.chapters.verdicts.answers import (
    Results,
    compare_runs,
    describe_gain,
    explain_precision,
    list_changes,
    list_unsettled,
    make_pairing_key,
    weigh_gains,
)
from avpt.report.differences import (
    Difference,
    Spread,
    average_by_seed,
    compare_seeds,
    explain_limit,
    set_limit,
    summarise_difference,
)
from avpt.report.drawing import percent, points
from avpt.report.experiment import Experiment
from avpt.report.page.blocks import Verdict
from avpt.runs.groups import seed_of
from avpt.runs.lineage import Node
from avpt.types import MODALITIES, Modality

REFERENCES = {"none": "without balancing", "uniform": "with `uniform`"}  # what methods are compared with, by --balance


@dataclass(frozen=True)
class Comparison:
    """Runs with a balancing method against others that differ in the method alone, paired by seed."""

    group: str
    reference: str  # what the others have as --balance
    difference: Difference
    weaker: Modality | None  # the one whose share of the others' answers is the less accurate
    share: Difference | None  # of the weaker modality
    probed: Spread | None  # accuracies of linear probes of its encoder
    runs: list[Node]  # of both


def judge_balancing(experiment: Experiment, results: Results) -> Verdict:
    """Judge whether balancing methods raise the accuracy of the joint model."""
    claim, short = "Does balancing the modalities make the joint model better?", "Balancing helps"
    compared = compare_methods(experiment, results)
    if not compared:
        why = (
            "It takes two finished joint runs of one seed that differ in `--balance` alone, one of them with "
            "`--balance none` or `uniform`, and a store whose clips have one label each."
        )
        return Verdict(claim, "not measured", why, short=short)
    least = set_limit(len(compared))
    details = [explain_limit(len(compared))]
    for one in compared:
        before, after = percent(one.difference.before), percent(one.difference.after)
        against = f"`{one.group}`: {before} {REFERENCES[one.reference]}, {after} with it"
        details += [f"{against}, {describe_gain(one.difference, least)}", *describe_weaker(one)]
    details += filter(None, [list_unsettled(experiment, [run for one in compared for run in one.runs])])
    by_reference = {
        reference: [(one.group, one.difference) for one in compared if one.reference == reference]
        for reference in REFERENCES
    }
    asked = "none" if by_reference["none"] else "uniform"
    answer, headline = weigh_gains(by_reference[asked], least, "balancing", REFERENCES[asked])
    if asked == "none" and by_reference["uniform"]:
        headline += f" Against `uniform`: {list_changes(by_reference['uniform'], least)}."
    headline += summarise_weaker([one for one in compared if one.reference == asked])
    details += [explain_precision(compared[0].difference.clips)] if answer == "unclear" else []
    return Verdict(claim, answer, headline, details, short)


def describe_weaker(one: Comparison) -> list[str]:
    """Describe what became of the weaker modality, by its share and, where both were probed, by linear probes."""
    lines = []
    if one.share is not None:
        before, after = percent(one.share.before), percent(one.share.after)
        lines.append(
            f"Beside the question, the share of the weaker modality ({one.weaker}) in `{one.group}`: {before} "
            f"{REFERENCES[one.reference]}, {after} with it, {one.share.words()}."
        )
    if one.probed is not None:
        lines.append(
            f"Beside the question, linear probes of the {one.weaker} encoder of `{one.group}` against those of runs "
            f"{REFERENCES[one.reference]}: {points(one.probed.mean)} ({one.probed.words()})."
        )
    return lines


def summarise_weaker(compared: Sequence[Comparison]) -> str:
    """Summarise in a sentence how the weaker modality stands by its share; empty where no share is known."""
    words = [
        f"{one.weaker} in `{one.group}` {summarise_difference(one.share)}" for one in compared if one.share is not None
    ]
    return f" The weaker modality, by its share of the answer: {'; '.join(words)}." if words else ""


def compare_methods(experiment: Experiment, results: Results) -> list[Comparison]:
    """Compare each balancing method with no balancing and with `uniform`, where there are such runs of its seeds."""
    runs = experiment.of_kind("fused")
    keys = {run.path: make_pairing_key(run, FuseConfig.balance_options(), FuseConfig.balance_options()) for run in runs}
    compared = []
    for reference in REFERENCES:
        others = {keys[run.path]: run for run in runs if run.option("balance") == reference}
        pairs: dict[str, list[tuple[Node, Node]]] = defaultdict(list)
        for run in runs:
            other = others.get(keys[run.path])
            if run.option("balance") not in ("none", reference) and other is not None:
                pairs[experiment.group_of(run)].append((other, run))
        for name, several in pairs.items():
            difference = compare_runs(several, results)
            if difference is None:
                continue
            shares = {m: share for m in MODALITIES if (share := compare_runs(several, results, m)) is not None}
            by_share = sorted(shares, key=lambda modality: shares[modality].before)
            weaker = by_share[0] if len(shares) == len(MODALITIES) else None
            probed = None
            if weaker is not None:
                sides = [list(side) for side in zip(*several, strict=True)]
                before, after = (probe_by_seed(experiment, side, weaker) for side in sides)
                probed = compare_seeds(before, after) if before.keys() & after.keys() else None
            both = [run for pair in several for run in pair]
            share = None if weaker is None else shares[weaker]
            compared.append(Comparison(name, reference, difference, weaker, share, probed, both))
    return compared


def probe_by_seed(experiment: Experiment, runs: Sequence[Node], modality: Modality) -> Mapping[int, float]:
    """The accuracy of linear probes of some runs' encoders of one modality, by seed."""
    seeds, values = list[int](), list[float]()
    for node in experiment.of_kind("probe"):
        model, probe = experiment.origin(node, "model"), read_probe(node)
        if model is None or model not in runs or probe is None or probe.accuracy is None or probe.modality != modality:
            continue
        seeds.append(seed_of(model))
        values.append(probe.accuracy)
    return average_by_seed(seeds, values)
