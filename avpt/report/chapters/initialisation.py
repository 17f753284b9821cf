"""What the encoders started from: abnormal channels before and after training, and the shares that ABRi learnt."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from avpt.diagnosis.channel_tables import describe_blend, describe_training
from avpt.errors import AvptError, listed
from avpt.figures.bars import draw_bars, draw_ranges
from avpt.figures.style import AFTER, BEFORE
from avpt.files import artifacts
from avpt.models.abnormal_channels import abnormal_report, acting_pairs, describe_change, norm_layers, own_pair
from avpt.models.abri import fold_state_dict, norm_eps
from avpt.models.checkpoint import load_network
from avpt.models.encoder import Encoder
from avpt.report.drawing import make_figure, percent
from avpt.report.experiment import Experiment, list_missing
from avpt.report.page.blocks import Block, Grid, Heading, Section, Text
from avpt.runs.lineage import Node
from avpt.types import Table

log = logging.getLogger(__name__)

SOURCE, RANDOM, AFTERWARDS = "in the source weights", "in the random weights", "after training"  # counted when
MOVED = 0.01  # a layer of which no alpha moved by as much is not shown
ALONE = (
    "Alone that says nothing: in training the layer is one BatchNorm, whose gamma and beta are the blends of both "
    "branches'. How far training moved these, and what became of abnormal channels, is said above the figures."
)
NONE_LEFT = "a reset, a blend and ABRi leave none to start with"
AT_THE_SOURCE = (
    f"What is counted at the source are the weights before BatchNorm was changed; {NONE_LEFT}, so that 0 % after "
    "training is by construction."
)
ZERO_BY_DESIGN = (
    "In random weights such channels are no damage: timm starts the scale of the last BatchNorm of each residual block "
    "at zero, so that the block begins by passing on its input, and training moves it."
)
BN = {
    "keep": "kept as it was",
    "reset": "reset everywhere",
    "reset-abnormal": "reset where |gamma| was below the threshold",
    "blend": "blended with a new one, once",
    "abri": "blended with a new one (ABRi)",
}
TREATED = {  # the same in a word or two
    "keep": "BatchNorm kept",
    "reset": "BatchNorm reset",
    "reset-abnormal": "abnormal channels reset",
    "blend": "BatchNorm blended once",
    "abri": "ABRi",
}


@dataclass(frozen=True)
class Channels:
    """Abnormal channels of one encoder at one moment."""

    names: list[str]  # of its BatchNorm layers
    channels: list[int]
    abnormal: list[int]

    @property
    def share(self) -> float:
        """The share of all channels that are abnormal."""
        return sum(self.abnormal) / max(1, sum(self.channels))

    @property
    def shares(self) -> list[float]:
        """The same for each layer."""
        return [abnormal / count for abnormal, count in zip(self.abnormal, self.channels, strict=True)]


@dataclass(frozen=True)
class Start:
    """An encoder artifact, and what training made of it."""

    node: Node
    loaded: Channels | None  # channels of its weights as loaded; None where it has no BatchNorm
    trained: dict[str, Channels]  # channels after fine-tuning, by the name of the stage-1 run
    alphas: dict[str, dict[str, list[float]]]  # ABRi's, by run and layer
    blend: dict[str, Any] | None = None  # what blending did, of ABRi and of `init --bn blend`
    moved: dict[str, dict[str, Any]] = field(default_factory=dict)  # what training did to the blended ones, by run

    @property
    def pretrained(self) -> bool:
        """Whether it started from pre-trained weights."""
        return bool(self.node.option("weights") != "random")


def find_starts(experiment: Experiment) -> list[Start]:
    """Find every encoder, and the stage-1 runs that started from it."""
    starts = []
    for node in experiment.of_kind("encoder"):
        header, _ = artifacts.read_header(node.path)
        threshold = float(node.option("abnormal_threshold"))
        trained: dict[str, Channels] = {}
        alphas: dict[str, dict[str, list[float]]] = {}
        blend, moved = header.metrics.get("blend"), dict[str, dict[str, Any]]()
        fresh = artifacts.load(node.path, "encoder").tensors if node.option("bn") in ("abri", "blend") else {}
        blended = acting_pairs(fresh)
        if blended and node.option("bn") == "abri":
            blend = describe_change({layer: own_pair(fresh, layer) for layer in blended}, blended, threshold)
        for run in experiment.of_kind("classifier"):
            whole = experiment.runs[run.path].summary is not None
            if experiment.origin(run, "init") is node and whole:
                try:
                    encoder = encoder_of(run)
                except AvptError as error:
                    log.warning("%s; its channels are not shown", error)
                    continue
                state = encoder.state_dict()
                alpha = {
                    name[: -len(".alpha")]: value.tolist() for name, value in state.items() if name.endswith(".alpha")
                }
                if alpha:
                    alphas[experiment.name(run)] = alpha
                if blended:
                    moved[experiment.name(run)] = describe_change(blended, acting_pairs(state), threshold)
                if after := count_abnormal(fold_state_dict(state, norm_eps(encoder)), threshold):
                    trained[experiment.name(run)] = after
        starts.append(Start(node, from_report(header.metrics), trained, alphas, blend, moved))
    return starts


def encoder_of(run: Node) -> Encoder:
    """Read the encoder of a stage-1 run's best model."""
    loaded = load_network(run.path, "classifier")
    (modality,) = loaded.encoders
    return loaded.encoder(modality)


def count_abnormal(state: dict[str, Tensor], threshold: float) -> Channels | None:
    """Count the abnormal channels of a state dict; None without BatchNorm."""
    return from_report(abnormal_report(state, threshold)) if norm_layers(state) else None


def from_report(report: dict[str, Any]) -> Channels | None:
    """Convert the report of abnormal channels that `avpt init` records; None without BatchNorm."""
    layers = report.get("layers") or []
    if not layers:
        return None
    return Channels(*([layer[part] for layer in layers] for part in ("name", "channels", "abnormal")))


def section(experiment: Experiment, starts: Sequence[Start]) -> Section:
    """Write the section: how each encoder was made, its abnormal channels before and after, and what ABRi learnt."""
    blocks: list[Block] = [
        Text(
            "Channels are counted as abnormal by their parameters. Whether they are dead on this data is another "
            "question, which `avpt inspect --store` answers."
        )
    ]
    rows = []
    for start in starts:
        trained: list[tuple[str, Channels | None]] = list(start.trained.items())
        for name, after in trained or [("–", None)]:
            rows.append(
                (
                    experiment.name(start.node).removesuffix(".safetensors"),
                    start.node.config.get("modality", ""),
                    name_origin(experiment, start),
                    BN.get(start.node.option("bn"), ""),
                    "no BatchNorm" if start.loaded is None else percent(start.loaded.share),
                    name,
                    percent(after.share if after else None),
                )
            )
    if rows:
        columns = ("encoder", "fed with", "weights", "BatchNorm was", "at the source", "trained in", AFTERWARDS)
        blocks.append(Grid(Table("encoders, with their share of abnormal channels", columns, rows, left=4)))
    if any(start.pretrained and start.node.option("bn") != "keep" for start in starts):
        blocks.append(Text(AT_THE_SOURCE))
    if any(not start.pretrained and start.loaded is not None and any(start.loaded.abnormal) for start in starts):
        blocks.append(Text(ZERO_BY_DESIGN))
    for start in merge_seeds(experiment, starts):
        if start.blend is not None:
            blocks.append(Text(tell_blend(experiment, start, start.blend)))
        blocks += show_start(experiment, start)
    lost = list_missing(experiment, "init", "weights")
    blocks += lost
    if not starts and not lost:
        blocks.append(Text("No encoder from `avpt init` is among what these runs were made from.", missing=True))
    return Section("initialisation", "Initialisation", blocks)


def merge_seeds(experiment: Experiment, starts: Sequence[Start]) -> list[Start]:
    """Merge encoders that differ in the seed alone: the first one, with the runs of all."""
    merged: dict[str, Start] = {}
    for start in starts:
        first = merged.setdefault(experiment.kin[start.node.path], start)
        merged[experiment.kin[start.node.path]] = replace(
            first,
            trained=first.trained | start.trained,
            alphas=first.alphas | start.alphas,
            moved=first.moved | start.moved,
        )
    return list(merged.values())


def name_origin(experiment: Experiment, start: Start) -> str:
    """Name where the weights come from."""
    if "weights" not in start.node.inputs:
        return str(start.node.option("weights"))
    weights = experiment.origin(start.node, "weights")
    if weights is None:
        file = experiment.files.get(start.node.path, {}).get("weights")
        return "a file that was not found" if file is None else file.name
    return f"{experiment.name(weights)}{' (trained here)' if weights.is_run else ''}"


def describe(channels: Channels, when: str) -> str:
    """Say how many channels are abnormal, and in which layer most are."""
    if not any(channels.abnormal):
        return f"none of {sum(channels.channels)} channels {when}"
    worst = max(range(len(channels.names)), key=lambda i: channels.shares[i])
    most = f"most in {channels.names[worst]} ({percent(channels.shares[worst])})"
    return f"{percent(channels.share)} of all channels {when}, {most}"


def tell_blend(experiment: Experiment, start: Start, blend: dict[str, Any]) -> str:
    """Say what blending BatchNorm with a new one did to an encoder, and what training did afterwards."""
    sentences = [f"In `{experiment.name(start.node)}` {describe_blend(blend)}."]
    for run, change in start.moved.items():
        below = sum(start.trained[run].abnormal) if run in start.trained else 0
        sentences.append(f"In `{run}` {describe_training(change, below)}.")
    return " ".join(sentences)


def show_start(experiment: Experiment, start: Start) -> list[Block]:
    """Draw abnormal channels if there are any, and alphas if there is ABRi."""
    name, blocks = experiment.name(start.node), list[Block]()
    loaded, after = start.loaded, next(iter(start.trained.values()), None)
    if loaded is not None and (any(loaded.abnormal) or (after is not None and any(after.abnormal))):
        before = SOURCE if start.pretrained else RANDOM
        counted = {before: loaded, **({AFTERWARDS: after} if after else {})}
        values = {when: channels.shares for when, channels in counted.items() if any(channels.abnormal)}
        colours = [{before: BEFORE, AFTERWARDS: AFTER}[when] for when in values]
        figure = draw_bars(loaded.names, values, label="abnormal share", colours=colours)
        alt = describe(loaded, before)
        alt += f"; {describe(after, AFTERWARDS)}" if after else ""
        changed = start.node.option("bn") != "keep"
        drawn = f" Bars: {next(iter(values))}." if len(counted) > len(values) else ""  # of nothing there is no bar
        caption = f"Layer by layer: {alt}{f' ({NONE_LEFT})' if changed else ''}.{drawn}"
        blocks += [Heading(f"Abnormal channels of {name}"), make_figure(figure, alt, caption)]
    initial = float(start.node.option("alpha")) if start.alphas else 0.0
    layers = [
        layer
        for layer in next(iter(start.alphas.values()), {})
        if any(abs(value - initial) >= MOVED for alpha in start.alphas.values() for value in alpha[layer])
    ]
    if layers:  # of alphas that stayed where they were there is nothing to say
        learnt = {run: [alpha[layer] for layer in layers] for run, alpha in start.alphas.items()}
        every = [value for several in learnt.values() for layer in several for value in layer]
        mean = sum(every) / len(every)
        moved = max(every, key=lambda value: abs(value - initial))
        total = len(next(iter(start.alphas.values())))
        which = "" if len(layers) == total else f", in the {len(layers)} of {total} layers where one moved by {MOVED:g}"
        alt = f"mean {mean:.3f}, from {min(every):.3f} to {max(every):.3f}; they started at {initial:g}"
        caption = (
            f"Alpha in {listed(list(start.alphas))}, by which ABRi weighs the pre-trained branch against the new one, "
            f"by channel{which} ({alt}; the one that moved most is at {moved:.3f}). Points are means of a layer, lines "
            f"run from its lowest to its highest. {ALONE}"
        )
        figure = draw_ranges(layers, learnt, label="alpha", start=initial)
        blocks += [Heading(f"ABRi's shares in {listed(list(start.alphas))}"), make_figure(figure, alt, caption)]
    return blocks
