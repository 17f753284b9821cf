"""`avpt inspect`: which BatchNorm channels of an encoder are abnormal or dead, before and after training."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpt.diagnosis.channel_tables import channel_tables, foretold
from avpt.errors import ArtifactError, OutputError, StoreError, listed
from avpt.machine.progress import track
from avpt.machine.workers import loading_workers
from avpt.options import InspectConfig, TrainConfig
from avpt.types import Report

if TYPE_CHECKING:
    from torch import Tensor

    from avpt.diagnosis.dead_channels import Activity
    from avpt.loading.dataset import InputSpec
    from avpt.models.abnormal_channels import NormPair
    from avpt.models.any_encoder import AnyEncoder
    from avpt.store.store import SplitIndex, Store
    from avpt.types import Batch, Modality

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """An encoder, before or after training, and all that is known of its BatchNorm layers, by their names."""

    path: Path
    found: AnyEncoder
    own: dict[str, NormPair]  # weight and bias; of ABRi the pre-trained branch's
    acting: dict[str, NormPair]  # what the layer acts with; of ABRi both branches blended
    alpha: dict[str, Tensor]  # of ABRi, (channels,) or (1,)

    @property
    def modality(self) -> Modality:
        """What it is fed."""
        return self.found.spec.modality


@dataclass(frozen=True)
class Measured:
    """What the clips of a store showed of one encoder or of two."""

    sides: list[Activity]
    dead: list[dict[str, Tensor]]  # of each side, by layer (channels,) bool; not of shortcuts
    clips: int
    example: str  # the clip of the feature maps
    picture: Tensor  # what the first input of that clip was, (1, frame, mel) or (3, height, width)


def run(config: InspectConfig) -> Report:
    """Look at the parameters, feed clips where a store is given, draw what there is to draw."""
    if config.plot is not None and config.plot.exists() and not config.plot.is_dir():
        raise OutputError(f"{config.plot} is a file; --plot takes a folder")
    from avpt.figures import style

    before = read(config.encoder, config, config.modality)
    after = None if config.after is None else read(config.after, config, before.modality)
    if after is not None and after.found.spec.arch != before.found.spec.arch:
        raise ArtifactError(
            f"{after.path} is a {after.found.spec.arch} and {before.path} a {before.found.spec.arch}; "
            "--after takes the same encoder later on"
        )
    files = {} if config.plot is None else draw_parameters(config, before, after)
    if config.plot is not None and config.store is not None:
        style.check(files, config.plot, overwrite=config.overwrite)  # before clips are fed, which takes a while
    measured, problems = None, []
    if config.store is not None:
        try:
            measured = measure(config, config.store, before, after)
        except StoreError as error:  # the parameters can be shown in any case
            problems.append(f"neither dead channels nor feature maps can be shown: {error}")
    record, outputs = describe(config, before, after, measured), []
    if config.plot is not None:
        files |= draw_first_layer(config, before, after, measured)
        try:
            outputs = style.write(files, config.plot, overwrite=config.overwrite)
        except OutputError as error:  # nor are the tables lost for it
            problems.append(f"no figure is written: {error}")
    return Report(record, tuple(outputs), channel_tables(record), "; ".join(problems) or None, foretold(record))


def read(path: Path, config: InspectConfig, modality: Modality | None) -> Side:
    """An encoder and its BatchNorm parameters."""
    from avpt.models import abnormal_channels, any_encoder

    found = any_encoder.load_any_encoder(path, modality, config.arch)
    if found.made_for != found.spec.modality:
        log.warning(
            "%s is made for %s input: its first convolution is carried across to %s input, as `avpt init` does",
            *(path, found.made_for, found.spec.modality),
        )
    state = found.encoder.state_dict()
    layers = abnormal_channels.norm_layers(state)
    own = {layer: abnormal_channels.own_pair(state, layer) for layer in layers}
    alpha = {layer: state[f"{layer}.alpha"] for layer in layers if f"{layer}.alpha" in state}
    return Side(path, found, own, own | {layer: abnormal_channels.blended_pair(state, layer) for layer in alpha}, alpha)


# --- activations -------------------------------------------------------------------------------------------------


def measure(config: InspectConfig, path: Path, before: Side, after: Side | None) -> Measured:
    """Feed the same clips to both encoders, in one pass.

    Raises:
        StoreError: the store is missing or damaged, or can't feed these encoders.
    """
    from avpt.diagnosis import dead_channels
    from avpt.loading.evaluation import EvaluationDataset
    from avpt.loading.loader import Loader, deaths_told
    from avpt.store.store import Store
    from avpt.training import runtime

    store = Store(path)
    index = clips_of(config, store, before.modality)
    spec = input_of(config, store, index, [side for side in (after, before) if side is not None])
    device = runtime.start(config.seed, config.device)
    encoders = [side.found.encoder.to(device) for side in (before, after) if side is not None]
    dataset = EvaluationDataset(index, [before.modality], spec, store.settings["frame_codec"], seed=config.seed)
    workers = loading_workers(config.workers)
    # shuffled: batches of the same make, and none of one clip
    loader = Loader(dataset, config.batch_size, device=device, workers=workers, shuffle_seed=config.seed)
    first: list[Batch] = []

    def batches() -> Iterator[Batch]:
        with track(len(index), "inspect") as show:
            done = 0
            for batch in loader.epoch(0):
                if not first:
                    first.append(batch.part(slice(0, 1)))
                yield batch
                done += len(batch.labels)
                show(done, 0)

    with deaths_told():
        sides = dead_channels.measure(encoders, batches(), config.zero)
    return Measured(
        sides,
        [side.dead(config.dead_share) for side in sides],
        len(index),
        index.ids[int(first[0].positions)],
        first[0].inputs[0].flatten(0, -4)[0].cpu(),
    )


def clips_of(config: InspectConfig, store: Store, modality: Modality) -> SplitIndex:
    """The clips to look at, drawn by the seed where there are more.

    Raises:
        StoreError: the store has no such split, too few clips, or lacks the modality.
    """
    import numpy as np

    from avpt.store.splits import require_modality

    index = store.indices.get(config.split)
    if index is None or len(index) < 2:
        there = [split for split, clips in store.indices.items() if len(clips) > 1]
        raise StoreError(
            f"{store.path} has {0 if index is None else len(index)} {config.split} clips, and two or more are needed; "
            f"--split can be {listed(there) or 'nothing'}"
        )
    require_modality(store, config.split, index, modality)
    if len(index) <= config.clips:
        return index
    return index.take(np.sort(np.random.default_rng(config.seed).permutation(len(index))[: config.clips]))


def input_of(config: InspectConfig, store: Store, index: SplitIndex, sides: list[Side]) -> InputSpec:
    """How clips become inputs: as the first of the sides was trained, or as a training on this store would do it.

    Raises:
        StoreError: the store can't give these inputs.
    """
    from dataclasses import replace

    from avpt.loading.dataset import InputSpec
    from avpt.loading.evaluation import check_sound, other_pictures
    from avpt.models.checkpoint import read_input

    sizes = ("image_size", "num_frames")
    asked = {name: value for name in sizes if (value := getattr(config, name)) is not None}
    modality = sides[0].modality
    for side in sides:
        header = side.found.header
        if side.found.made_for == modality and header is not None and header.spec.get("input"):
            spec = replace(read_input(side.path, header), **asked)
            if modality == "audio":
                check_sound(store, spec, [index])
            elif differ := other_pictures(store.settings, spec):
                log.warning("%s holds other frames than %s was trained on (%s)", store.path, side.path, listed(differ))
            return spec
    stored = {name: store.settings[name] for name in InputSpec.__dataclass_fields__ if name in store.settings}
    usual = {name: TrainConfig.defaults()[name] for name in sizes}
    return InputSpec(**stored, mean=store.mean, std=store.std, **usual | asked)


# --- the record --------------------------------------------------------------------------------------------------


def describe(config: InspectConfig, before: Side, after: Side | None, measured: Measured | None) -> dict[str, Any]:
    """The record that scripts read."""
    spec, threshold = before.found.spec, config.abnormal_threshold
    record = {
        "encoder": str(before.path),
        "arch": spec.arch,
        "modality": spec.modality,
        "norm": spec.norm,
        "thresholds": config.thresholds,
        "abnormal_threshold": threshold,
        "clips": None if measured is None else measured.clips,
        "dead_at": config.dead_share,
        "zero": config.zero,
        **describe_side(config, before, None if measured is None else measured.dead[0]),
        "after": None,
    }
    if after is not None:
        record["after"] = {
            "encoder": str(after.path),
            "norm": after.found.spec.norm,
            **describe_side(config, after, None if measured is None else measured.dead[1]),
        }
    changes: dict[str, dict[str, int]] = {layer: {} for layer in before.own}
    for layer, pair in before.own.items():
        if after is not None or layer in before.alpha:
            now = (after or before).acting[layer].below(threshold)
            changes[layer]["revived"] = int((pair.below(threshold) & ~now).sum())
        if after is not None and measured is not None and layer in measured.dead[0]:
            was, still = (dead[layer] for dead in measured.dead)
            changes[layer] |= {"awoken": int((was & ~still).sum()), "died": int((~was & still).sum())}
    for layer in record["layers"]:
        layer |= changes[layer["name"]]
    for change in ("revived", "awoken", "died"):
        counts = [counted[change] for counted in changes.values() if change in counted]
        record[change] = sum(counts) if counts else None
    return record


def describe_side(config: InspectConfig, side: Side, dead: dict[str, Tensor] | None) -> dict[str, Any]:
    """Counts per layer, and shares of all channels."""
    from avpt.diagnosis.dead_channels import prediction

    layers: list[dict[str, Any]] = []
    for name, pair in side.own.items():
        layer = {"name": name, "channels": len(pair.gamma), **_counts(config, pair)}
        if name in side.alpha:
            alpha = side.alpha[name]
            layer |= {f"blended_{what}": count for what, count in _counts(config, side.acting[name]).items()}
            layer["alpha"] = {what: float(getattr(alpha, what)()) for what in ("mean", "min", "max")}
        if dead is not None:
            layer["dead"] = int(dead[name].sum()) if name in dead else None
        layers.append(layer)
    found: dict[str, Any] = {"layers": layers}
    for what in ("abnormal", "blended_abnormal", "dead"):
        known = [layer for layer in layers if layer.get(what) is not None]
        share = sum(layer[what] for layer in known) / sum(layer["channels"] for layer in known) if known else None
        found["blended_share" if what == "blended_abnormal" else f"{what}_share"] = share
    abnormal = {name: pair.below(config.abnormal_threshold) for name, pair in side.acting.items()}
    precision, recall = (None, None) if dead is None else prediction(abnormal, dead)
    return found | {"precision": precision, "recall": recall}


def _counts(config: InspectConfig, pair: NormPair) -> dict[str, Any]:
    below = [int(pair.below(threshold).sum()) for threshold in config.thresholds]
    return {"abnormal": int(pair.below(config.abnormal_threshold).sum()), "below": below}


# --- figures -----------------------------------------------------------------------------------------------------


def draw_parameters(config: InspectConfig, before: Side, after: Side | None) -> dict[str, bytes]:
    """The files of the figures that no clip is needed for."""
    from avpt.figures import channels, style

    layers = list(before.own)
    pairs = {"before" if after else "": before.own}
    if after is not None:
        pairs["after, ABRi blended" if after.alpha else "after"] = after.acting
    elif before.alpha:
        pairs = {"pre-trained branch": before.own, "ABRi blended": before.acting}

    def shares(limits: list[float]) -> dict[str, list[list[float]]]:
        return {
            name: [[float(pair.below(limit).float().mean()) for pair in own.values()] for limit in limits]
            for name, own in pairs.items()
        }

    one, all_of = [config.abnormal_threshold], config.thresholds
    gammas = {name: [float(v) for pair in own.values() for v in pair.gamma.abs()] for name, own in pairs.items()}
    figures = {
        "abnormal": channels.draw_abnormal(layers, all_of, shares(all_of)),
        f"abnormal-{one[0]:g}": channels.draw_abnormal(layers, one, shares(one), row_height=1.7),
        "gamma": channels.draw_gamma(gammas),
    }
    for name, side in _named(before, after).items():
        if side.alpha:
            alphas = [alpha.numpy() for alpha in side.alpha.values()]
            figures[f"alpha-{name}" if name else "alpha"] = channels.draw_alpha(layers, alphas)
    return style.rendered(figures)


def draw_first_layer(
    config: InspectConfig, before: Side, after: Side | None, measured: Measured | None
) -> dict[str, bytes]:
    """The files of the first layer's filters and, where clips were fed, of what it makes of one."""
    from avpt.figures import channels, style

    sides, stem, limit = _named(before, after), next(iter(before.own)), config.abnormal_threshold
    words = {"dead": f"dead: {f'at most {config.zero:g}' if config.zero else 'zero'} nearly everywhere"}
    words["abnormal"] = f"abnormal: max(|γ|, |β|) < {limit:g}"
    if measured is not None:
        words["abnormal"] += ", but not dead" if config.zero else ", but not exactly zero"
    abnormal = {name: side.acting[stem].below(limit).numpy() for name, side in sides.items()}
    dead: dict[str, Any] = dict.fromkeys(sides)
    figures = {}
    if measured is not None:
        dead = {name: found[stem].numpy() for name, found in zip(sides, measured.dead, strict=True)}
        maps = {}
        for name, activity in zip(sides, measured.sides, strict=True):
            assert activity.maps is not None
            maps[name] = (activity.maps.numpy(), dead[name], abnormal[name])
        figures["feature-maps"] = channels.draw_feature_maps(measured.picture.numpy(), maps, measured.example, words)
    elif config.store is None:
        log.warning("feature maps are left out: they are measured on clips, which --store names")
    weights = {name: side.found.encoder.conv1.weight.detach().cpu().numpy() for name, side in sides.items()}
    filters = {name: (weights[name], dead[name], abnormal[name]) for name in sides}
    figures["filters"] = channels.draw_filters(filters, words)
    return style.rendered(figures)


def _named(before: Side, after: Side | None) -> dict[str, Side]:
    return {"": before} if after is None else {"before": before, "after": after}
