"""Whether masking the easy modality of a clip makes the joint model better."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from avpt.options import MaskConfig, complete
from avpt.report.chapters.verdicts.answers import (
    Answer,
    Results,
    compare_runs,
    explain_correction,
    list_unsettled,
)
from avpt.report.differences import CHANCE, Difference, describe_outcome, summarise_difference
from avpt.report.drawing import percent
from avpt.report.experiment import Experiment
from avpt.report.page.blocks import Verdict
from avpt.runs.lineage import Node
from avpt.text import format_count
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
    least = CHANCE / len(compared)  # Bonferroni's correction for several comparisons
    details = []
    for name, difference, shares in compared:
        before, after = percent(difference.before), percent(difference.after)
        words, outcome = difference.words(least), describe_outcome(difference, least)
        details.append(f"`{name}`: {before} unmasked, {after} masked, {words}; {outcome}.")
        details += [
            f"{m.capitalize()} share of `{name}`: {share.words(least)}; {describe_outcome(share, least)}."
            for m, share in shares.items()
        ]
    details += explain_correction(len(compared))
    names = [name for name, *_ in compared]
    plain = [run for run in experiment.of_kind("fused") if run.option("mask") == "none"]
    masked = [run for name in names for run in experiment.groups[name]]
    details += filter(None, [list_unsettled(experiment, [*plain, *masked])])
    hits = [(name, difference) for name, difference, _ in compared if difference.counts(least)]
    up, down = ([(name, d) for name, d in hits if (d.mean > 0) == better] for better in (True, False))
    changes = [f"{how} with {list_changes(some)}" for how, some in (("higher", up), ("lower", down)) if some]
    if changes:
        answer: Answer = "unclear" if up and down else "yes" if up else "no"
        return Verdict(claim, answer, f"Accuracy is {' and '.join(changes)} than without masking.", details, short)
    clips, seeds = compared[0][1].clips, max(len(difference.seeds.each) for _, difference, _ in compared)
    error = 196 * (0.25 / clips) ** 0.5
    details.append(
        f"An accuracy on {clips} clips is itself known to no more than ± {error:.1f} points at worst (95 %)."
    )
    if any(difference.seeds.enough for _, difference, _ in compared):
        alike = any(difference.seeds.enough and difference.seeds.p is None for _, difference, _ in compared)
        nothing = "Not to be judged" if alike else f"No difference that {seeds} seeds and {clips} clips could show"
        every = list_changes([(name, difference) for name, difference, _ in compared])
        return Verdict(claim, "unclear", f"{nothing}: {every}.", details, short)
    differing = [name for name, difference, _ in compared if difference.clips_tell(least)]
    models = "No trained models differ measurably"
    if differing:
        models = f"Trained models differ on these clips ({quote(differing)})"
    headline = f"{models}; {format_count(seeds, 'seed')} can't tell what masking does."
    return Verdict(claim, "unclear", headline, details, short)


def list_changes(differences: Sequence[tuple[str, Difference]]) -> str:
    """List runs with what masking changed."""
    return "; ".join(f"`{name}` {summarise_difference(difference)}" for name, difference in differences)


def quote(names: Sequence[str]) -> str:
    """Quote names of runs for a sentence."""
    return ", ".join(f"`{name}`" for name in names)


def compare_masks(experiment: Experiment, results: Results) -> list[tuple[str, Difference, dict[Modality, Difference]]]:
    """Compare each kind of masking with none, by the accuracy of the joint model and of each modality's share."""
    baselines = {make_pairing_key(run): run for run in experiment.of_kind("fused") if run.option("mask") == "none"}
    pairs: dict[str, list[tuple[Node, Node]]] = defaultdict(list)
    for run in experiment.of_kind("fused"):
        baseline = baselines.get(make_pairing_key(run))
        if run.option("mask") != "none" and baseline is not None:
            pairs[experiment.group_of(run)].append((baseline, run))
    compared = []
    for name, several in pairs.items():
        difference = compare_runs(several, results)
        if difference is not None:
            shares = {m: share for m in MODALITIES if (share := compare_runs(several, results, m)) is not None}
            compared.append((name, difference, shares))
    return compared


def make_pairing_key(run: Node) -> str:
    """Make a key of what compared runs must share: all options but the mask's, all inputs but the confidence."""
    masks = MaskConfig.mask_options()
    config = {name: value for name, value in complete(run.kind, run.config).items() if name not in masks}
    inputs = {name: checksum for name, checksum in run.inputs.items() if name != "confidence"}
    return json.dumps([config, inputs], sort_keys=True)
