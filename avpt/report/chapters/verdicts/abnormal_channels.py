"""Whether pre-trained encoders have abnormal channels, and whether ABRi made something of them."""

from __future__ import annotations

import json
import os
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from avpt.options import complete
from avpt.report.chapters.initialisation import Start
from avpt.report.chapters.verdicts.answers import Answer, Results, compare_runs, shared
from avpt.report.differences import CHANCE, Difference, called
from avpt.report.drawing import percent
from avpt.report.experiment import Experiment
from avpt.report.page.blocks import Verdict
from avpt.runs.groups import seed_of
from avpt.runs.lineage import Node

RANDOM = "random"
SOME = 0.01  # share of abnormal channels from which on there is something to speak of


def abnormal(experiment: Experiment, starts: Sequence[Start], results: Results, folder: Path) -> Verdict:
    """Whether pre-trained channels have parameters near zero, and whether ABRi made something of them."""
    claim = "Are there abnormal channels in the pre-trained encoders?"
    pretrained = [start for start in starts if start.pretrained and start.loaded is not None]
    if not pretrained:
        why = "every encoder that was found starts from random weights, so nothing pre-trained could be abnormal"
        return Verdict(claim, "not measured", f"Here {why}." if starts else "No encoder from `avpt init` was found.")
    worst = max(pretrained, key=lambda start: start.loaded.share if start.loaded else 0.0)
    assert worst.loaded is not None
    share, threshold = worst.loaded.share, float(worst.node.option("abnormal_threshold"))
    answer: Answer = "yes" if share >= SOME else "no"
    count = f"{sum(worst.loaded.abnormal)} of {sum(worst.loaded.channels)} BatchNorm channels"
    headline = f"{count} ({percent(share)}) of `{experiment.name(worst.node)}` were abnormal as loaded"
    headline += f" (both parameters below {threshold:g})."
    details = []
    if answer == "no":
        details.append("There was next to nothing to revive, so these runs can't show what ABRi does about it.")
    details.append(
        "The paper's claim is that such channels stay dead on a new modality. Parameters alone can't tell; which "
        f"channels are dead on this data is measured by `{inspection(experiment, pretrained, folder)}`."
    )
    for start in pretrained:
        for run, after in start.trained.items():
            before = start.loaded.share if start.loaded else 0.0
            how = "ABRi" if start.node.option("bn") == "abri" else f"BatchNorm {start.node.option('bn')}"
            if max(before, after.share) > 0:
                details.append(f"`{run}` ({how}): {percent(before)} before fine-tuning, {percent(after.share)} after.")
    compared = against_abri(experiment, results)
    details += compared
    if answer == "yes" and not compared:
        details.append("Whether ABRi gained accuracy takes a run from the same weights with `--bn keep` beside it.")
    return Verdict(claim, answer, headline, details)


def inspection(experiment: Experiment, pretrained: Sequence[Start], folder: Path) -> str:
    """The command that tells which channels are dead, of the worst encoder: as it was before ABRi or a reset mended it.

    What ABRi blends is not near zero any more, so where none was kept the weights it started from are named.
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


def against_abri(experiment: Experiment, results: Results) -> list[str]:
    """Stage-1 runs with ABRi against such from the same weights as they were, and against random ones."""
    alike: dict[str, dict[tuple[str, str], list[Node]]] = defaultdict(lambda: defaultdict(list))  # by weights and bn
    for run in experiment.of_kind("classifier"):
        init = experiment.origin(run, "init")
        if init is None:
            continue
        config = {name: value for name, value in complete(run.kind, run.config).items() if name != "seed"}
        own = {name: init.option(name) for name in ("arch", "modality")}
        key = json.dumps([config, own, run.inputs.get("store")], sort_keys=True)
        alike[key][weights_of(experiment, init), init.option("bn")].append(run)
    found: list[tuple[str, Difference]] = []
    for kinds in alike.values():
        for (weights, bn), revived in kinds.items():
            if bn != "abri" or weights == RANDOM:
                continue
            for words, others in (
                ("BatchNorm kept", kinds.get((weights, "keep"), [])),
                ("random weights", kinds.get((RANDOM, "keep"), [])),
            ):
                pairs = [(other, abri) for other in others for abri in revived if seed_of(other) == seed_of(abri)]
                if difference := compare_runs(pairs, results):
                    before, after = percent(difference.before), percent(difference.after)
                    who = f"{revived[0].config['modality']} with ABRi ({after}) against {words} ({before})"
                    found.append((who, difference))
    least = CHANCE / max(1, len(found))
    told = [f"Accuracy of {who}: {difference.words()}; {called(difference, least)}." for who, difference in found]
    return told + shared(len(found))


def weights_of(experiment: Experiment, init: Node) -> str:
    """What an encoder started from, whatever the seed of that."""
    origin = experiment.origin(init, "weights")
    if origin is not None:
        return experiment.group_of(origin) if origin.is_run else experiment.kin[origin.path]
    return init.inputs.get("weights", str(init.option("weights")))
