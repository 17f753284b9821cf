"""What this data says to the paper's claims, from numbers alone and no more than they carry."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from avpt.config import MaskConfig, OutputConfig
from avpt.errors import AvptError
from avpt.lineage import Node
from avpt.pages.blocks import Verdict
from avpt.story.difference import CHANCE, Difference, called, compare
from avpt.story.drawing import percent, points
from avpt.story.experiment import Experiment, mean_of
from avpt.story.initialisation import Start
from avpt.story.results import Answers, Probe, answers_of, probe_of
from avpt.types import MODALITIES, Modality

Answer = Literal["yes", "no", "unclear", "not measured"]

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

    @property
    def split(self) -> str:
        """What the answers are measured on."""
        return "test" if all(answers.split == "test" for answers in self.by_run.values()) else "held-out"

    def right(self, node: Node | None, side: str = "joint") -> dict[str, bool] | None:
        """By clip, whether a run's answer is right; None where it has none."""
        answers = self.by_run.get(node.path) if node is not None else None
        return answers.right(side) if answers is not None and side in answers.logits else None


def verdicts(experiment: Experiment, starts: Sequence[Start]) -> list[Verdict]:
    """The three questions."""
    results = Results(experiment)
    return [dead(experiment, starts, results), starved(experiment, results), gained(experiment, results)]


def dead(experiment: Experiment, starts: Sequence[Start], results: Results) -> Verdict:
    """Whether pre-trained channels are near zero, and whether ABRi made something of them."""
    claim = "Are there dead channels in the pre-trained encoders?"
    pretrained = [start for start in starts if start.pretrained and start.loaded is not None]
    if not pretrained:
        why = "every encoder that was found starts from random weights, so nothing pre-trained could be dead"
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
    for start in pretrained:
        for run, after in start.trained.items():
            before = start.loaded.share if start.loaded else 0.0
            how = "ABRi" if start.node.config.get("bn") == "abri" else f"BatchNorm {start.node.config.get('bn')}"
            if max(before, after.share) > 0:
                details.append(f"`{run}` ({how}): {percent(before)} before fine-tuning, {percent(after.share)} after.")
    compared = against_keep(experiment, results)
    details += compared
    if answer == "yes" and not compared:
        details.append("Whether ABRi gained accuracy takes a run from the same weights with `--bn keep` beside it.")
    return Verdict(claim, answer, headline, details)


def against_keep(experiment: Experiment, results: Results) -> list[str]:
    """Stage-1 runs from one pre-trained encoder, with ABRi and with BatchNorm kept."""
    alike: dict[str, dict[str, list[Node]]] = defaultdict(lambda: defaultdict(list))
    for run in experiment.of_kind("classifier"):
        init = experiment.origin(run, "init")
        if init is None or init.config.get("weights") == "random":
            continue
        config = {name: value for name, value in run.config.items() if name != "seed"}
        own = {name: init.config.get(name) for name in ("arch", "modality", "conv1", "weights")}
        key = json.dumps([config, own, run.inputs.get("store"), weights_of(experiment, init)], sort_keys=True)
        alike[key][init.config.get("bn", "")].append(run)
    found = []
    for kinds in alike.values():
        pairs = [(kept, abri) for kept in kinds["keep"] for abri in kinds["abri"] if seed(kept) == seed(abri)]
        if difference := compare_runs(pairs, results):
            names = f"{pairs[0][1].config['modality']} with ABRi against BatchNorm kept"
            found.append(f"Accuracy of {names}: {difference.words()}; {called(difference)}.")
    return found


def weights_of(experiment: Experiment, init: Node) -> str:
    """What an encoder started from, whatever the seed of that."""
    origin = experiment.origin(init, "weights")
    return experiment.group_of(origin) if origin is not None and origin.is_run else init.inputs.get("weights", "")


def seed(run: Node) -> Any:
    """A run's."""
    return run.config.get("seed")


def compare_runs(pairs: Sequence[tuple[Node, Node]], results: Results, side: str = "joint") -> Difference | None:
    """Pairs of runs by what they answered."""
    rights = [(results.right(before, side), results.right(after, side)) for before, after in pairs]
    whole = [(before, after) for before, after in rights if before is not None and after is not None]
    return compare([before for before, _ in whole], [after for _, after in whole]) if whole else None


def starved(experiment: Experiment, results: Results) -> Verdict:
    """Whether an encoder comes to less inside the joint model than alone."""
    claim = "Does one modality starve the other in joint training?"
    plain = [run for run in experiment.of_kind("fused") if unmasked(run)]
    runs = [run for run in plain or experiment.of_kind("fused") if run.path in results.by_run]
    if not runs:
        return Verdict(claim, "not measured", "There is no finished joint run on clips with one label among these.")
    group = experiment.groups[experiment.group_of(runs[0])]
    runs = [run for run in runs if run in group]
    falls: dict[Modality, Difference] = {}
    for modality in MODALITIES:
        pairs = []
        for run in runs:
            alone, share = results.right(experiment.origin(run, modality)), results.right(run, modality)
            if alone is not None and share is not None:
                pairs.append((alone, share))
        if difference := compare(*map(list, zip(*pairs, strict=True))) if pairs else None:
            falls[modality] = difference
    name = experiment.group_of(runs[0])
    details = [
        f"{modality.capitalize()}: {percent(fall.before)} alone, "
        f"{percent(fall.after)} by its share in the run `{name}`: {fall.words()}."
        for modality, fall in falls.items()
    ]
    details += gradient_words(experiment, runs)
    probed = probes_of(experiment, runs)
    details += [probe_words(probe) for probe in probed]
    if not falls and not probed:
        lost = "the stage-1 runs, or their predictions, were not found, so there is nothing to compare with"
        return Verdict(claim, "not measured", f"Not to be told: {lost}.", details)
    answer: Answer = "no"
    headline = f"Neither modality's share in the run `{name}` is worth measurably less than its encoder was alone."
    hit = min(falls, key=lambda modality: falls[modality].mean, default=None)
    if hit is not None and falls[hit].counts() and falls[hit].mean < 0:
        answer = "unclear"
        others = [f", that of {m} by {-100 * fall.mean:.1f}" for m, fall in falls.items() if m != hit]
        lost = f"{-100 * falls[hit].mean:.1f} points less than {hit} alone{''.join(others)}"
        headline = f"The {hit} share in the run `{name}` knows {lost}."
        details.append(
            "A share is not trained to answer by itself, so this alone does not prove that the encoder got worse; a "
            f"linear probe of it does (`avpt probe`), which was {'run, see above' if probed else 'not run here'}."
        )
    worse = [
        m for m in MODALITIES if (own := [probe for probe in probed if probe.modality == m]) and all(map(lost_by, own))
    ]
    if worse:
        answer = "yes"
        headline = f"A linear probe finds the {' and the '.join(worse)} encoder worse than before. {headline}"
    elif probed:
        answer = "no"
        headline = f"No linear probe finds an encoder measurably worse than before. {headline}"
    return Verdict(claim, answer, headline, details)


def probes_of(experiment: Experiment, runs: Sequence[Node]) -> list[Probe]:
    """Linear probes of some runs' encoders that were compared with those before joint training."""
    nodes = [node for node in experiment.of_kind("probe") if experiment.origin(node, "model") in runs]
    return [probe for probe in map(probe_of, nodes) if probe is not None and probe.difference is not None]


def lost_by(probe: Probe) -> bool:
    """Whether an encoder is worth less than before, by more than chance."""
    return probe.difference is not None and probe.difference < 0 and probe.p is not None and probe.p < CHANCE


def probe_words(probe: Probe) -> str:
    """A probe in a sentence."""
    assert probe.difference is not None
    chance = "" if probe.p is None else f" (p = {probe.p:.3f})"
    change = f"{points(probe.difference)} against before joint training{chance}"
    return f"A linear probe of the {probe.modality} encoder: {percent(probe.accuracy)}, {change}."


def gradient_words(experiment: Experiment, runs: Sequence[Node]) -> list[str]:
    """Which encoder the larger gradient reaches."""
    norms = [
        row["gradient_norm"] for run in runs for row in experiment.runs[run.path].epochs if row.get("gradient_norm")
    ]
    audio, visual = (mean_of(norms, modality) for modality in MODALITIES)
    if not audio or not visual:
        return []
    return [
        f"The gradient that reaches the audio encoder is {audio / visual:.2f} times that of the visual one (mean norm)."
    ]


def unmasked(run: Node) -> bool:
    """Whether a fused run is plain joint training."""
    return run.config.get("mask") == "none" and run.config.get("balance", "none") == "none"


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
        line = f"`{name}`: {before} unmasked, {after} masked, {difference.words()}; {called(difference, least)}."
        line += "".join(f" {m.capitalize()} share {points(share.mean)}." for m, share in shares.items())
        details.append(line)
    hits = [(name, difference) for name, difference, _ in found if difference.counts(least)]
    up, down = ([name for name, d in hits if (d.mean > 0) == better] for better in (True, False))
    changes = [f"{how} with {quoted(names)}" for how, names in (("higher", up), ("lower", down)) if names]
    if changes:
        answer: Answer = "unclear" if up and down else "yes" if up else "no"
        return Verdict(claim, answer, f"Accuracy is {' and '.join(changes)} than without masking.", details)
    clips, seeds = found[0][1].clips, max(len(difference.pairs) for _, difference, _ in found)
    error = 196 * (0.25 / clips) ** 0.5
    size = f"{f'{seeds} seeds' if seeds > 1 else 'one seed'} and {clips} {results.split} clips"
    headline = f"No difference that {size} could show."
    details.append(
        f"An accuracy on {clips} clips is itself known to no more than ± {error:.1f} points at worst (95 %)."
    )
    if seeds == 1:
        details.append("One seed says nothing of how much results vary from training to training.")
    return Verdict(claim, "unclear", headline, details)


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
        if difference is not None and not any(
            results.by_run[run.path].labels.ndim > 1 for _, run in several if run.path in results.by_run
        ):
            shares = {m: share for m in MODALITIES if (share := compare_runs(several, results, m)) is not None}
            found.append((name, difference, shares))
    return found


def key_of(run: Node) -> str:
    """All that runs to be compared have in common: options but the mask's, and inputs but the confidence."""
    masks = MaskConfig.__dataclass_fields__.keys() - OutputConfig.__dataclass_fields__.keys()
    config = {name: value for name, value in run.config.items() if name not in masks}
    inputs = {name: checksum for name, checksum in run.inputs.items() if name != "confidence"}
    return json.dumps([config, inputs], sort_keys=True)
