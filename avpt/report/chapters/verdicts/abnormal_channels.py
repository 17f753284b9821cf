"""Whether pre-trained encoders have abnormal channels, and whether ABRi gained accuracy from them."""

from __future__ import annotations

import json
import os
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avpt.options import complete
from avpt.report.chapters.initialisation import NONE_LEFT, TREATED, Start
from avpt.report.chapters.verdicts.answers import (
    Answer,
    Results,
    compare_runs,
    describe_gain,
    list_unsettled,
)
from avpt.report.differences import Difference, describe_outcome, explain_limit, set_limit, summarise_difference
from avpt.report.drawing import percent
from avpt.report.experiment import Experiment
from avpt.report.page.blocks import Verdict
from avpt.runs.groups import seed_of
from avpt.runs.lineage import Node

RANDOM = "random"
KEPT = TREATED["keep"]
SOME = 0.01  # the least share of abnormal channels for a "yes"


def judge_abnormal_channels(experiment: Experiment, starts: Sequence[Start], results: Results, folder: Path) -> Verdict:
    """Judge whether pre-trained channels have parameters near zero, and whether ABRi gained accuracy from them."""
    claim, short = "Are there abnormal channels in the pre-trained encoders?", "Abnormal channels"
    pretrained = [start for start in starts if start.pretrained and start.loaded is not None]
    if not pretrained:
        why = "every encoder that was found starts from random weights, so nothing pre-trained could be abnormal"
        headline = f"Here {why}." if starts else "No encoder from `avpt init` was found."
        return Verdict(claim, "not measured", headline, short=short)
    worst = max(pretrained, key=lambda start: start.loaded.share if start.loaded else 0.0)
    assert worst.loaded is not None
    share, threshold = worst.loaded.share, float(worst.node.option("abnormal_threshold"))
    answer: Answer = "yes" if share >= SOME else "no"
    count = f"{sum(worst.loaded.abnormal)} of {sum(worst.loaded.channels)} BatchNorm channels"
    headline = (
        f"{count} ({percent(share)}) of the weights that `{experiment.name(worst.node)}` started from were abnormal"
    )
    source = experiment.origin(worst.node, "weights")
    headline += f" (both parameters below {threshold:g})"
    headline += f"; they were trained here, as `{experiment.group_of(source)}`." if source and source.is_run else "."
    details = describe_sources(experiment, pretrained)
    if answer == "no":
        details.append("There was next to nothing to revive, so these runs can't show what ABRi does about it.")
    details.append(
        "The paper's claim is that such channels stay dead on a new modality. Parameters alone can't tell; which "
        f"channels are dead on this data is measured by `{write_inspect_command(experiment, pretrained, folder)}`."
    )
    details += describe_training(experiment, pretrained)
    compared, beside = compare_starts(experiment, results)
    least = set_limit(len(compared))
    details += [explain_limit(len(compared))] if compared else []
    details += [f"Accuracy of {one.who}: {describe_gain(one.difference, least)}" for one in compared]
    details += [f"Beside the question: {one.who}: {one.difference.words()}." for one in beside]
    if answer == "yes" and not compared:
        details.append("Whether ABRi gained accuracy takes a run from the same weights with `--bn keep` beside it.")
    further = [judge_abri(experiment, compared, beside, revived=answer == "yes")] if compared else []
    return Verdict(claim, answer, headline, details, short, further)


def judge_abri(
    experiment: Experiment, compared: Sequence[Comparison], beside: Sequence[Comparison], *, revived: bool
) -> Verdict:
    """Judge whether ABRi gained accuracy over BatchNorm kept or, where no run kept it, over random weights.

    Without abnormal channels that it could have `revived`, a difference is not put down to them.
    """
    least = set_limit(len(compared))
    asked = [one for one in compared if one.others == KEPT] or compared
    better = {one.difference.mean > 0 for one in asked if one.difference.counts(least)}
    answer: Answer = "unclear" if len(better) != 1 else "yes" if True in better else "no"
    gains = [
        f"against {one.others} {summarise_difference(one.difference)}, {describe_outcome(one.difference, least)}"
        for one in compared
    ]
    sentences = [f"Accuracy with ABRi {'; '.join(gains)}."]
    if not revived and better:
        sentences.append("There were next to no abnormal channels to revive, so the difference has another reason.")
    sentences += [
        f"Beside the question, BatchNorm kept against random weights: {summarise_difference(one.difference)}."
        for one in beside
        if one.bn == "keep"
    ]
    sentences.append(list_unsettled(experiment, [run for one in compared for run in one.runs]))
    return Verdict("Does ABRi help?", answer, " ".join(filter(None, sentences)), short="ABRi helps")


def describe_sources(experiment: Experiment, pretrained: Sequence[Start]) -> list[str]:
    """Say whether the runs that the weights come from had weight decay on BatchNorm, where these runs are known."""
    decayed: dict[str, str] = {}
    for start in pretrained:
        run = experiment.origin(start.node, "weights")
        if run is not None and run.is_run:
            norms = "BatchNorm included (`--decay-norm`)" if run.option("decay_norm") else "BatchNorm left out"
            decayed[experiment.group_of(run)] = f"{run.option('weight_decay'):g}, {norms}"
    return [
        f"The pre-trained weights come from `{group}`, trained with weight decay {how}."
        for group, how in decayed.items()
    ]


def describe_training(experiment: Experiment, pretrained: Sequence[Start]) -> list[str]:
    """Say for each group of stage-1 runs what training made of the abnormal channels, seeds together."""
    names = {experiment.name(run): experiment.group_of(run) for run in experiment.of_kind("classifier")}
    shares: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for start in pretrained:
        how = TREATED[start.node.option("bn")]
        for run, after in start.trained.items():
            before = start.loaded.share if start.loaded else 0.0
            if max(before, after.share) > 0:
                shares[names[run], how].append((before, after.share))
    return [
        f"`{group}` ({how}): {' in the source weights, '.join(map(format_shares, zip(*several, strict=True)))} after "
        f"training{'' if how == KEPT else f' ({NONE_LEFT})'}."
        for (group, how), several in shares.items()
    ]


def format_shares(shares: Sequence[float]) -> str:
    """Format the shares of several seeds: 0.55, 0.57 -> 55.0 % to 57.0 %."""
    ends = dict.fromkeys(map(percent, (min(shares), max(shares))))
    return " to ".join(ends)


@dataclass(frozen=True)
class Comparison:
    """Stage-1 runs from pre-trained weights against others."""

    bn: str  # what was done to their BatchNorm: abri, keep, ...
    who: str  # both, with their accuracies
    others: str
    difference: Difference
    runs: list[Node]  # of both


def write_inspect_command(experiment: Experiment, pretrained: Sequence[Start], folder: Path) -> str:
    """Write the command that measures dead channels in the worst encoder, as it was before ABRi or a reset changed it.

    Channels that ABRi blends are no longer near zero, so if no encoder was kept, the command names the weights that it
    started from.
    """
    kept = [start for start in pretrained if start.node.option("bn") == "keep"]
    worst = max(kept or pretrained, key=lambda start: start.loaded.share if start.loaded else 0.0)
    runs = [run for run in experiment.of_kind("classifier") if experiment.origin(run, "init") is worst.node]
    stores = [store for run in runs if (store := experiment.origin(run, "store")) is not None]
    place = os.path.relpath(stores[0].path, folder) if stores else "STORE"
    before = None if kept else experiment.origin(worst.node, "weights")
    path = os.path.relpath((before or worst.node).path, folder)
    fed = ["--modality", str(worst.node.config.get("modality"))] if before else []
    return shlex.join(["avpt", "inspect", path, *fed, "--store", place])


def compare_starts(experiment: Experiment, results: Results) -> tuple[list[Comparison], list[Comparison]]:
    """Compare stage-1 runs from pre-trained weights with runs from the same weights unchanged, and from random ones.

    Returns:
        the comparisons of runs with ABRi, and those of all others.
    """
    alike: dict[str, dict[tuple[str, str], list[Node]]] = defaultdict(lambda: defaultdict(list))  # by weights and bn
    for run in experiment.of_kind("classifier"):
        init = experiment.origin(run, "init")
        if init is None:
            continue
        config = {name: value for name, value in complete(run.kind, run.config).items() if name != "seed"}
        own = {name: init.option(name) for name in ("arch", "modality")}
        key = json.dumps([config, own, run.inputs.get("store")], sort_keys=True)
        alike[key][name_weights(experiment, init), init.option("bn")].append(run)
    compared, beside = list[Comparison](), list[Comparison]()
    for kinds in alike.values():
        for (weights, bn), runs in kinds.items():
            if weights == RANDOM:
                continue
            for words, others in (
                (KEPT, kinds.get((weights, "keep"), []) if bn != "keep" else []),
                (TREATED["blend"], kinds.get((weights, "blend"), []) if bn == "abri" else []),
                ("random weights", kinds.get((RANDOM, "keep"), []) if bn in ("abri", "keep") else []),
            ):
                pairs = [(other, run) for other in others for run in runs if seed_of(other) == seed_of(run)]
                if difference := compare_runs(pairs, results):
                    before, after = percent(difference.before), percent(difference.after)
                    who = f"{runs[0].config['modality']} with {TREATED[bn]} ({after}) against {words} ({before})"
                    both = [run for pair in pairs for run in pair]
                    (compared if bn == "abri" else beside).append(Comparison(bn, who, words, difference, both))
    return compared, beside


def name_weights(experiment: Experiment, init: Node) -> str:
    """Name the weights that an encoder started from, regardless of their seed."""
    origin = experiment.origin(init, "weights")
    if origin is not None:
        return experiment.group_of(origin) if origin.is_run else experiment.kin[origin.path]
    return init.inputs.get("weights", str(init.option("weights")))
