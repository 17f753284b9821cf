"""Whether training in two stages makes the joint model better than joint training straight from the same start."""

from __future__ import annotations

from collections import defaultdict

from avpt.report.chapters.verdicts.answers import (
    Results,
    compare_runs,
    describe_gain,
    explain_precision,
    list_unsettled,
    weigh_gains,
)
from avpt.report.differences import explain_limit, set_limit
from avpt.report.drawing import percent
from avpt.report.experiment import Experiment
from avpt.report.methods import is_plain
from avpt.report.page.blocks import Verdict
from avpt.runs.groups import seed_of
from avpt.runs.lineage import Node
from avpt.types import MODALITIES

Start = tuple[str, ...]  # the seed, and the checksums of the store and of both encoders as `init` made them


def judge_two_stages(experiment: Experiment, results: Results) -> Verdict:
    """Judge whether joint models of both stages are more accurate than plain joint training from `init` encoders."""
    claim, short = "Do two stages (FusT) beat joint training straight from the start?", "Two stages help"
    pairs = pair_with_straight(experiment)
    compared = {name: difference for name, some in pairs.items() if (difference := compare_runs(some, results))}
    if not compared:
        why = (
            "It takes two finished joint runs of one seed, on clips with one label each: one with `--mask none` from "
            "encoders of `avpt init`, one from those encoders after `avpt finetune-unimodal`."
        )
        return Verdict(claim, "not measured", why, short=short)
    least = set_limit(len(compared))
    details = [explain_limit(len(compared))]
    for name, difference in compared.items():
        before, after = percent(difference.before), percent(difference.after)
        straight, staged = pairs[name][0]
        taken = f"epochs: {count_epochs(experiment, straight)} against {count_epochs(experiment, staged)}"
        gain = describe_gain(difference, least)
        details.append(f"`{name}`: {before} straight from the start, {after} in two stages ({taken}), {gain}")
    all_runs = [run for some in pairs.values() for both in some for run in both]
    details += filter(None, [list_unsettled(experiment, all_runs)])
    answer, headline = weigh_gains(list(compared.items()), least, "training in two stages", "straight from the start")
    details += [explain_precision(next(iter(compared.values())).clips)] if answer == "unclear" else []
    return Verdict(claim, answer, headline, details, short)


def pair_with_straight(experiment: Experiment) -> dict[str, list[tuple[Node, Node]]]:
    """Pair each joint run of two stages with plain joint training from the same start, by the group of the former."""
    runs = [run for run in experiment.of_kind("fused") if experiment.runs[run.path].summary is not None]
    straight = {
        find_start(experiment, run, "encoder"): run for run in runs if is_plain(run) and experiment.is_straight(run)
    }
    pairs: dict[str, list[tuple[Node, Node]]] = defaultdict(list)
    for run in runs:
        if (start := find_start(experiment, run, "classifier")) in straight:
            pairs[experiment.group_of(run)].append((straight[start], run))
    return pairs


def find_start(experiment: Experiment, run: Node, kind: str) -> Start:
    """What both encoders of a joint run were when `init` had made them, if what went in is of this kind, else ()."""
    start = [str(seed_of(run)), run.inputs["store"]]
    for modality in MODALITIES:
        origin = experiment.origin(run, modality)
        if origin is None or origin.kind != kind:
            return ()
        start.append(run.inputs[modality] if kind == "encoder" else origin.inputs["init"])
    return tuple(start)


def count_epochs(experiment: Experiment, run: Node) -> str:
    """The epochs that a joint run took, those of its encoders' stage 1 included."""
    before = []
    for modality in MODALITIES:
        origin = experiment.origin(run, modality)
        before.append(origin.option("epochs") if origin is not None and origin.kind == "classifier" else 0)
    alone = f"{'/'.join(map(str, dict.fromkeys(before)))} + " if any(before) else ""
    return f"{alone}{run.option('epochs')}"
