"""Whether masking what is easy makes the joint model better."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from avpt.options import MaskConfig, complete
from avpt.report.chapters.verdicts.answers import Answer, Results, compare_runs, shared
from avpt.report.differences import CHANCE, Difference, called, many
from avpt.report.drawing import percent
from avpt.report.experiment import Experiment
from avpt.report.page.blocks import Verdict
from avpt.runs.lineage import Node
from avpt.types import MODALITIES, Modality


def gained(experiment: Experiment, results: Results) -> Verdict:
    """Whether masking raises the accuracy of the joint model."""
    claim = "Does masking what is easy (FusT) make the joint model better?"
    found = comparisons(experiment, results)
    if not found:
        why = (
            "It takes two finished runs on clips with one label that differ in `--mask` alone, one with `--mask none`."
        )
        return Verdict(claim, "not measured", why)
    least = CHANCE / len(found)  # Bonferroni: of many comparisons one is soon a hit by chance
    details = []
    for name, difference, shares in found:
        before, after = percent(difference.before), percent(difference.after)
        details.append(
            f"`{name}`: {before} unmasked, {after} masked, {difference.words()}; {called(difference, least)}."
        )
        details += [f"{m.capitalize()} share of `{name}`: {share.words()}." for m, share in shares.items()]
    details += shared(len(found))
    hits = [(name, difference) for name, difference, _ in found if difference.counts(least)]
    up, down = ([name for name, d in hits if (d.mean > 0) == better] for better in (True, False))
    changes = [f"{how} with {quoted(names)}" for how, names in (("higher", up), ("lower", down)) if names]
    if changes:
        answer: Answer = "unclear" if up and down else "yes" if up else "no"
        return Verdict(claim, answer, f"Accuracy is {' and '.join(changes)} than without masking.", details)
    clips, seeds = found[0][1].clips, max(len(difference.seeds.each) for _, difference, _ in found)
    error = 196 * (0.25 / clips) ** 0.5
    details.append(
        f"An accuracy on {clips} clips is itself known to no more than ± {error:.1f} points at worst (95 %)."
    )
    if any(difference.seeds.enough for _, difference, _ in found):
        return Verdict(claim, "unclear", f"No difference that {seeds} seeds and {clips} clips could show.", details)
    apart = [name for name, difference, _ in found if difference.clips_tell(least)]
    told = f"Trained models differ on these clips ({quoted(apart)})" if apart else "No trained models differ measurably"
    return Verdict(claim, "unclear", f"{told}; {many(seeds, 'seed')} can't tell what masking does.", details)


def quoted(names: Sequence[str]) -> str:
    """Names of runs in a sentence."""
    return ", ".join(f"`{name}`" for name in names)


def comparisons(experiment: Experiment, results: Results) -> list[tuple[str, Difference, dict[Modality, Difference]]]:
    """Each way of masking against none: the joint accuracy, and that of each modality's share."""
    baselines = {key_of(run): run for run in experiment.of_kind("fused") if run.option("mask") == "none"}
    pairs: dict[str, list[tuple[Node, Node]]] = defaultdict(list)
    for run in experiment.of_kind("fused"):
        baseline = baselines.get(key_of(run))
        if run.option("mask") != "none" and baseline is not None:
            pairs[experiment.group_of(run)].append((baseline, run))
    found = []
    for name, several in pairs.items():
        difference = compare_runs(several, results)
        if difference is not None:
            shares = {m: share for m in MODALITIES if (share := compare_runs(several, results, m)) is not None}
            found.append((name, difference, shares))
    return found


def key_of(run: Node) -> str:
    """All that runs to be compared have in common: options but the mask's, and inputs but the confidence."""
    masks = MaskConfig.mask_options()
    config = {name: value for name, value in complete(run.kind, run.config).items() if name not in masks}
    inputs = {name: checksum for name, checksum in run.inputs.items() if name != "confidence"}
    return json.dumps([config, inputs], sort_keys=True)
