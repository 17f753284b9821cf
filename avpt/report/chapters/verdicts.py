"""What this data says to the paper's claims, from numbers alone and no more than they carry."""

from __future__ import annotations

import json
import os
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from avpt.errors import AvptError, listed
from avpt.options import MaskConfig, OutputConfig, complete, recorded_option
from avpt.report.chapters.initialisation import Start
from avpt.report.chapters.results import Answers, Probe, answers_of, probe_of
from avpt.report.differences import (
    CHANCE,
    MARGIN,
    Difference,
    Spread,
    called,
    chance_words,
    compare,
    many,
    spread,
)
from avpt.report.drawing import percent, points
from avpt.report.experiment import Experiment, mean_of
from avpt.report.page.blocks import Verdict
from avpt.runs.groups import seed_of
from avpt.runs.lineage import Node
from avpt.types import MODALITIES, Modality

Answer = Literal["yes", "no", "unclear", "not measured"]

RANDOM = "random"
SOME = 0.01  # share of abnormal channels from which on there is something to speak of


@dataclass
class Results:
    """Answers of all finished runs on clips with one label."""

    experiment: Experiment
    by_run: dict[Any, Answers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path, run in self.experiment.runs.items():
            if run.summary is not None:
                try:
                    answers = answers_of(path)
                except (AvptError, OSError, KeyError, ValueError):
                    continue
                if answers.labels.ndim == 1:  # with several labels there is no answer that is right or wrong
                    self.by_run[path] = answers

    def classes(self, node: Node) -> list[str] | None:
        """What a run tells apart; None where its answers are not known."""
        return self.by_run[node.path].classes if node.path in self.by_run else None

    def right(self, node: Node | None, side: str = "joint") -> dict[str, bool] | None:
        """By clip, whether a run's answer is right; None where it has none."""
        answers = self.by_run.get(node.path) if node is not None else None
        return answers.right(side) if answers is not None and side in answers.logits else None


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


def abnormal(experiment: Experiment, starts: Sequence[Start], results: Results, folder: Path) -> Verdict:
    """Whether pre-trained channels have parameters near zero, and whether ABRi made something of them."""
    claim = "Are there abnormal channels in the pre-trained encoders?"
    pretrained = [start for start in starts if start.pretrained and start.loaded is not None]
    if not pretrained:
        why = "every encoder that was found starts from random weights, so nothing pre-trained could be abnormal"
        return Verdict(claim, "not measured", f"Here {why}." if starts else "No encoder from `avpt init` was found.")
    worst = max(pretrained, key=lambda start: start.loaded.share if start.loaded else 0.0)
    assert worst.loaded is not None
    share, threshold = worst.loaded.share, float(worst.node.config.get("abnormal_threshold", 1e-6))
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
            how = "ABRi" if start.node.config.get("bn") == "abri" else f"BatchNorm {start.node.config.get('bn')}"
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
    kept = [start for start in pretrained if start.node.config.get("bn") == "keep"]
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
        own = {name: recorded_option(init.kind, init.config, name) for name in ("arch", "modality")}
        key = json.dumps([config, own, run.inputs.get("store")], sort_keys=True)
        alike[key][weights_of(experiment, init), init.config.get("bn", "")].append(run)
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


def shared(count: int) -> list[str]:
    """Bonferroni's rule in words."""
    told = f"Of {count} comparisons one is soon a hit by chance: each p has to be below {CHANCE / max(1, count):.2g}."
    return [told] if count > 1 else []


def weights_of(experiment: Experiment, init: Node) -> str:
    """What an encoder started from, whatever the seed of that."""
    origin = experiment.origin(init, "weights")
    if origin is not None:
        return experiment.group_of(origin) if origin.is_run else experiment.kin[origin.path]
    return init.inputs.get("weights", str(init.config.get("weights")))


def compare_runs(pairs: Sequence[tuple[Node, Node]], results: Results, side: str = "joint") -> Difference | None:
    """Pairs of runs by what they answered; None where no pair can be compared."""
    found = []
    for before, after in pairs:
        one, other = results.right(before, side), results.right(after, side)
        if one is not None and other is not None and results.classes(before) == results.classes(after):
            found.append((one, other, seed_of(after)))
    return compare(*map(list, zip(*found, strict=True))) if found else None


@dataclass(frozen=True)
class Evidence:
    """What is known of one encoder in one group of joint runs: by its linear probes, or else by its share."""

    group: str
    modality: Modality
    spread: Spread
    probed: bool

    @property
    def name(self) -> str:
        """Whose it is."""
        seeds = ", ".join(map(str, self.spread.each))
        return f"{self.modality} in `{self.group}` ({'seeds' if len(self.spread.each) > 1 else 'seed'} {seeds})"


def starved(experiment: Experiment, results: Results) -> Verdict:
    """Whether an encoder comes to less inside the joint model than alone, in each group of joint runs."""
    claim = "Does one modality starve the other in joint training?"
    done = [run for run in experiment.of_kind("fused") if experiment.runs[run.path].summary is not None]
    runs = [run for run in done if unmasked(run)] or done
    if not runs:
        return Verdict(claim, "not measured", "There is no finished joint run among these.")
    details: list[str] = []
    if not unmasked(runs[0]):
        details.append("There is no finished run of plain joint training; these mask or balance.")
    evidence: list[Evidence] = []
    for name in dict.fromkeys(map(experiment.group_of, runs)):
        group = [run for run in runs if experiment.group_of(run) == name]
        found, words = of_group(experiment, results, name, group)
        evidence += found
        details += [*words, *gradient_words(experiment, name, group)]
    if not evidence:
        lost = "no linear probe, and no predictions of the stage-1 runs on clips with one label, were found"
        return Verdict(claim, "not measured", f"Not to be told: {lost}.", details)
    least = CHANCE / len(evidence)
    details += shared(len(evidence))
    if not all(one.probed for one in evidence):
        details.append(
            "A share is not trained to answer by itself, so that it knows less does not prove that the encoder got "
            "worse; linear probes of several seeds do (`avpt probe`)."
        )
    answer, headline = judged(evidence, least)
    return Verdict(claim, answer, headline, details)


def judged(evidence: Sequence[Evidence], least: float) -> tuple[Answer, str]:
    """The answer: a loss that probes of enough seeds show; none where a loss beyond the margin is ruled out."""
    margin = points(MARGIN).removeprefix("+")
    if worse := [one for one in evidence if one.probed and one.spread.falls(least)]:
        losses = [f"{one.name}: {points(one.spread.mean)}" for one in worse]
        return "yes", f"Linear probes find encoders worse than before joint training: {'; '.join(losses)}."
    whole = all({one.modality for one in evidence if one.group == e.group} == set(MODALITIES) for e in evidence)
    if whole and all(one.spread.holds() for one in evidence):
        names = "; ".join(one.name for one in evidence)
        return "no", f"A loss of {margin} or more is ruled out (95 % intervals over the seeds): {names}."
    by = "linear probe" if all(one.probed for one in evidence) else "share of the joint answer"
    by = by if len({one.probed for one in evidence}) == 1 else "linear probe or share"
    seen = [f"{one.name} {points(one.spread.mean)}" for one in evidence]
    told = f"By {by}, against before joint training: {'; '.join(seen)}."
    missing = [m for m in MODALITIES if not any(one.modality == m for one in evidence)]
    told += f" Nothing is known of {listed(missing)}." if missing else ""
    few = min(len(one.spread.each) for one in evidence)
    if not all(one.spread.enough for one in evidence):
        return "unclear", f"{told} {many(few, 'seed').capitalize()} can't tell what joint training does."
    return "unclear", f"{told} That neither proves a loss of the encoders nor rules one of {margin} out."


def of_group(
    experiment: Experiment, results: Results, name: str, runs: Sequence[Node]
) -> tuple[list[Evidence], list[str]]:
    """What shares and probes tell of some runs that differ in seeds alone, and that in words."""
    evidence, words = [], []
    for modality in MODALITIES:
        pairs = []
        for run in runs:
            origin = experiment.origin(run, modality)
            alone, share = results.right(origin), results.right(run, modality)
            if origin is not None and alone and share and results.classes(origin) == results.classes(run):
                pairs.append((alone, share, seed_of(run)))
        fall = compare(*map(list, zip(*pairs, strict=True))) if pairs else None
        if fall is not None:
            words.append(
                f"{modality.capitalize()}: {percent(fall.before)} alone, {percent(fall.after)} by its share in "
                f"`{name}`: {fall.words()}."
            )
        probed = probes_of(experiment, runs, modality)
        if probed:
            change = spread(dict.fromkeys(probed, 0.0), {seed: probe_change(found) for seed, found in probed.items()})
            evidence.append(Evidence(name, modality, change, probed=True))
            words.append(probe_words(name, modality, probed, change))
        elif fall is not None:
            evidence.append(Evidence(name, modality, fall.seeds, probed=False))
    return evidence, words


def probes_of(experiment: Experiment, runs: Sequence[Node], modality: Modality) -> dict[int, list[Probe]]:
    """By seed, linear probes of some runs' encoders that were compared with those before joint training."""
    found: dict[int, list[Probe]] = {}
    for node in experiment.of_kind("probe"):
        model, probe = experiment.origin(node, "model"), probe_of(node)
        if model is None or model not in runs:
            continue
        if probe is not None and probe.modality == modality and probe.difference is not None:
            found.setdefault(seed_of(model), []).append(probe)
    return dict(sorted(found.items()))


def probe_change(probes: Sequence[Probe]) -> float:
    """The difference that several probes of one seed find, on average."""
    found = [probe.difference for probe in probes if probe.difference is not None]
    return sum(found) / len(found)


def probe_words(name: str, modality: Modality, probed: dict[int, list[Probe]], change: Spread) -> str:
    """Probes in a sentence: over the seeds, and of each seed what its clips tell."""
    each = [
        f"seed {seed} {points(probe.difference or 0.0)} to {percent(probe.accuracy)} "
        f"({'untested' if probe.p is None else f'McNemar over clips {chance_words(probe.p)}'})"
        for seed, probes in probed.items()
        for probe in probes
    ]
    mean = f"{points(change.mean)} on average ({change.words()})"
    return f"Linear probe of the {modality} encoder of `{name}` against before joint training: {mean}; {listed(each)}."


def gradient_words(experiment: Experiment, name: str, runs: Sequence[Node]) -> list[str]:
    """Which encoder the larger gradient reaches."""
    norms = [
        row["gradient_norm"] for run in runs for row in experiment.runs[run.path].epochs if row.get("gradient_norm")
    ]
    audio, visual = (mean_of(norms, modality) for modality in MODALITIES)
    if not audio or not visual:
        return []
    ratio = f"{audio / visual:.2f} times that of the visual one (mean norm; untested)"
    return [f"The gradient that reaches the audio encoder in `{name}` is {ratio}."]


def unmasked(run: Node) -> bool:
    """Whether a fused run is plain joint training."""
    return all(recorded_option(run.kind, run.config, name) == "none" for name in ("mask", "balance"))


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
    baselines = {key_of(run): run for run in experiment.of_kind("fused") if run.config.get("mask") == "none"}
    pairs: dict[str, list[tuple[Node, Node]]] = defaultdict(list)
    for run in experiment.of_kind("fused"):
        baseline = baselines.get(key_of(run))
        if run.config.get("mask") != "none" and baseline is not None:
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
    masks = MaskConfig.__dataclass_fields__.keys() - OutputConfig.__dataclass_fields__.keys()
    config = {name: value for name, value in complete(run.kind, run.config).items() if name not in masks}
    inputs = {name: checksum for name, checksum in run.inputs.items() if name != "confidence"}
    return json.dumps([config, inputs], sort_keys=True)
