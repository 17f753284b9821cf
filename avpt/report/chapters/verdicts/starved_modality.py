"""Whether one modality starves the other in joint training."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from avpt.errors import listed
from avpt.report.chapters.results import Probe, read_probe
from avpt.report.chapters.verdicts.answers import Answer, Results
from avpt.report.differences import (
    CHANCE,
    MARGIN,
    Difference,
    Spread,
    compare,
    compare_seeds,
    explain_limit,
    format_p,
    set_limit,
)
from avpt.report.drawing import percent, points
from avpt.report.experiment import Experiment, mean_of
from avpt.report.methods import is_plain
from avpt.report.page.blocks import Verdict
from avpt.runs.groups import seed_of
from avpt.runs.lineage import Node
from avpt.text import format_count
from avpt.types import MODALITIES, Modality

MOST_COMMANDS = 4  # that are listed
SHARES = (
    "A share of the joint answer that is worse than the encoder was alone does not prove that the encoder got worse; "
    "linear probes of several seeds do (`avpt probe`)."
)


@dataclass(frozen=True)
class Evidence:
    """What is known about one encoder in one group of joint runs: by its linear probes, or else by its share."""

    group: str
    modality: Modality
    spread: Spread
    probed: bool
    share: Difference | None  # its share of the joint answers against the encoder alone
    trained: int = 0  # seeds of the group, probed or not
    probes: Mapping[int, Sequence[Probe]] = field(default_factory=dict)  # by seed

    @property
    def name(self) -> str:
        """The modality, group and seeds that this is evidence for."""
        seeds = ", ".join(map(str, self.spread.each))
        return f"{self.modality} in `{self.group}` ({'seeds' if len(self.spread.each) > 1 else 'seed'} {seeds})"


def judge_starvation(experiment: Experiment, results: Results, folder: Path) -> Verdict:
    """Judge whether an encoder is worse inside the joint model than alone, in each group of joint runs."""
    claim, short = "Does one modality starve the other in joint training?", "One modality starves the other"
    done = [run for run in experiment.of_kind("fused") if experiment.runs[run.path].summary is not None]
    runs = [run for run in done if is_plain(run)] or done
    if not runs:
        return Verdict(claim, "not measured", "There is no finished joint run among these.", short=short)
    details: list[str] = []
    if not is_plain(runs[0]):
        details.append("There is no finished run of plain joint training; these mask or balance.")
    evidence: list[Evidence] = []
    gradients: list[str] = []
    for name in dict.fromkeys(map(experiment.group_of, runs)):
        group = [run for run in runs if experiment.group_of(run) == name]
        evidence += gather_evidence(experiment, results, name, group)
        gradients += describe_gradients(experiment, name, group)
    least = set_limit(len(evidence))
    shares = [describe_share(one, least) for one in evidence if one.share is not None]
    measured = [*(describe_probes(one, least) for one in evidence if one.probed), *gradients]
    details += [SHARES, *shares, *measured] if shares else measured
    if not evidence:
        lost = "no linear probe, and no predictions of the stage-1 runs on clips with one label, were found"
        return Verdict(claim, "not measured", f"This can't be judged: {lost}.", details, short)
    details.append(explain_limit(len(evidence)))
    answer, headline = weigh(evidence, least)
    if answer != "yes":
        headline += explain_shares(evidence, least)
    details += list_unprobed(experiment, runs, folder)
    return Verdict(claim, answer, headline, details, short)


def weigh(evidence: Sequence[Evidence], least: float) -> tuple[Answer, str]:
    """Answer yes if probes of enough seeds show a loss, and no if a loss beyond the margin is ruled out."""
    margin = points(MARGIN).removeprefix("+")
    if worse := [one for one in evidence if one.probed and one.spread.falls(least)]:
        losses = [f"{one.name}: {points(one.spread.mean)}" for one in worse]
        return "yes", f"Linear probes find encoders worse than trained alone: {'; '.join(losses)}."
    whole = all({one.modality for one in evidence if one.group == e.group} == set(MODALITIES) for e in evidence)
    if whole and all(one.spread.holds() for one in evidence):
        names = "; ".join(one.name for one in evidence)
        return "no", f"A loss of {margin} or more is ruled out (95 % intervals over the seeds): {names}."
    by = "linear probe" if all(one.probed for one in evidence) else "share of the joint answer"
    mixed = len({one.probed for one in evidence}) > 1
    by = "linear probe where there is one, else by share" if mixed else by
    kinds = {True: " (probe)", False: " (share)"} if mixed else {True: "", False: ""}
    seen = [f"{one.name} {points(one.spread.mean)}{kinds[one.probed]}" for one in evidence]
    summary = f"By {by}, compared with the encoders trained alone: {'; '.join(seen)}."
    missing = [m for m in MODALITIES if not any(one.modality == m for one in evidence)]
    summary += f" Nothing is known of {listed(missing)}." if missing else ""
    fewest = min(evidence, key=lambda one: len(one.spread.each))
    few = len(fewest.spread.each)
    if not all(one.spread.enough for one in evidence):
        most = max(one.trained for one in evidence if len(one.spread.each) == few)
        probed = f"Only {few} of {most} seeds {'was' if few == 1 else 'were'} probed, and " if most > few else ""
        of = f" of `{fewest.group}`" if len(fewest.spread.each) < max(len(one.spread.each) for one in evidence) else ""
        return "unclear", f"{probed}{format_count(few, 'seed')}{of} can't tell what joint training does. {summary}"
    near = [
        f"{one.name} {format_p(one.spread.p, least)}"
        for one in evidence
        if one.probed and one.spread.p is not None and least <= one.spread.p < CHANCE
    ]
    summary += f" Of small p: {'; '.join(near)}." if near else ""
    return "unclear", f"{summary} That neither proves a loss of the encoders nor rules one of {margin} out."


def explain_shares(evidence: Sequence[Evidence], least: float) -> str:
    """Explain why shares that are clearly worse than the encoders alone leave the answer as it is.

    Of encoders that were probed a share is mentioned only where it is worse by both tests, over clips and over seeds.
    """
    worse = [one for one in evidence if one.share is not None and one.share.mean < 0 and one.share.clips_tell(least)]
    if not worse:
        return ""
    groups = {one.group for one in evidence}
    if fallen := [
        f"{one.modality}{f' in `{one.group}`' if len(groups) > 1 else ''} {points(one.share.mean)}"
        for one in worse
        if one.probed and one.share is not None and one.share.counts(least)
    ]:
        return (
            f" Shares of the joint answer are less accurate than each encoder alone ({'; '.join(fallen)}), but a share "
            "is not trained to answer alone."
        )
    if all(one.probed for one in worse):
        return ""
    return " A share is not trained to answer alone: whether an encoder got worse is for linear probes (`avpt probe`)."


def gather_evidence(experiment: Experiment, results: Results, name: str, runs: Sequence[Node]) -> list[Evidence]:
    """Gather what shares and probes show about runs that differ in the seed alone."""
    evidence, trained = [], len(set(map(seed_of, runs)))
    for modality in MODALITIES:
        pairs = []
        for run in runs:
            alone = experiment.alone(run, modality)
            before, share = results.right(alone), results.right(run, modality)
            if alone is not None and before and share and results.classes(alone) == results.classes(run):
                pairs.append((before, share, seed_of(run)))
        fall = compare(*map(list, zip(*pairs, strict=True))) if pairs else None
        probed = find_probes(experiment, runs, modality)
        if probed:
            change = compare_seeds(
                dict.fromkeys(probed, 0.0), {seed: average_difference(probes) for seed, probes in probed.items()}
            )
            evidence.append(Evidence(name, modality, change, probed=True, share=fall, trained=trained, probes=probed))
        elif fall is not None:
            evidence.append(Evidence(name, modality, fall.seeds, probed=False, share=fall))
    return evidence


def describe_share(one: Evidence, least: float) -> str:
    """Describe a modality's share of the joint answers against its encoder alone; its p are held against `least`."""
    fall = one.share
    assert fall is not None
    return (
        f"{one.modality.capitalize()}: {percent(fall.before)} alone, {percent(fall.after)} by its share in "
        f"`{one.group}`: {fall.words(least)}."
    )


def find_probes(experiment: Experiment, runs: Sequence[Node], modality: Modality) -> dict[int, list[Probe]]:
    """Find, by seed, linear probes of the runs' encoders that were compared with the same trained alone."""
    by_seed: dict[int, list[Probe]] = {}
    for node in experiment.of_kind("probe"):
        model, probe = experiment.origin(node, "model"), read_probe(node)
        if model is None or model not in runs:
            continue
        alone = experiment.alone(model, modality)
        if alone is not None and node.inputs.get("stage1") != experiment.checksums[alone.path]:
            continue  # it was compared with what `init` made
        if probe is not None and probe.modality == modality and probe.difference is not None:
            by_seed.setdefault(seed_of(model), []).append(probe)
    return dict(sorted(by_seed.items()))


def list_unprobed(experiment: Experiment, runs: Sequence[Node], folder: Path) -> list[str]:
    """List the encoders that were not probed, where others were, with the commands that probe them."""
    lines = []
    for name in dict.fromkeys(map(experiment.group_of, runs)):
        group = [run for run in runs if experiment.group_of(run) == name]
        probed = {modality: find_probes(experiment, group, modality) for modality in MODALITIES}
        commands = [
            write_probe_command(experiment, run, modality, folder)
            for run in group
            for modality in MODALITIES
            if any(probed.values()) and seed_of(run) not in probed[modality]
        ]
        if commands:
            rest = f"; and {len(commands) - MOST_COMMANDS} more" if len(commands) > MOST_COMMANDS else ""
            lines.append(f"Still to probe in `{name}`: {'; '.join(commands[:MOST_COMMANDS])}{rest}.")
    return lines


def write_probe_command(experiment: Experiment, run: Node, modality: Modality, folder: Path) -> str:
    """Write the command that probes one encoder of a joint run, in backticks; paths are relative to `folder`."""
    store, out = experiment.origin(run, "store"), f"{os.path.relpath(run.path, folder)}-probe-{modality}.safetensors"
    place = os.path.relpath(store.path, folder) if store is not None else "STORE"
    words = ["avpt", "probe", os.path.relpath(run.path, folder), place, "--modality", modality, "--out", out]
    return f"`{shlex.join(words)}`"


def average_difference(probes: Sequence[Probe]) -> float:
    """Average the differences that several probes of one seed measured."""
    differences = [probe.difference for probe in probes if probe.difference is not None]
    return sum(differences) / len(differences)


def describe_probes(one: Evidence, least: float) -> str:
    """Describe probes in a sentence: the test over the seeds, and for each seed the one over its clips.

    Over the seeds p is held against `least`; those over clips are of single models, and are not.
    """
    each = [
        f"seed {seed} {points(probe.difference or 0.0)} to {percent(probe.accuracy)} "
        f"({'untested' if probe.p is None else f'McNemar over clips {format_p(probe.p)}'})"
        for seed, probes in one.probes.items()
        for probe in probes
    ]
    mean = f"{points(one.spread.mean)} on average ({one.spread.words(least)})"
    encoder = f"the {one.modality} encoder of `{one.group}`"
    return f"Linear probe of {encoder} against the same trained alone: {mean}; {listed(each)}."


def describe_gradients(experiment: Experiment, name: str, runs: Sequence[Node]) -> list[str]:
    """Say which encoder receives the larger gradient."""
    norms = [
        row["gradient_norm"] for run in runs for row in experiment.runs[run.path].epochs if row.get("gradient_norm")
    ]
    audio, visual = (mean_of(norms, modality) for modality in MODALITIES)
    if not audio or not visual:
        return []
    ratio = f"{audio / visual:.2f} times that of the visual one (mean norm; untested)"
    return [f"The gradient that reaches the audio encoder in `{name}` is {ratio}."]
