"""`avpt inspect`: which BatchNorm channels of an encoder are abnormal or dead, before and after training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpt.commands._inspect_activations import Measurements, measure
from avpt.commands._inspect_figures import draw_first_layer, draw_parameters
from avpt.commands._inspect_parameters import Side, read
from avpt.diagnosis.channel_tables import channel_tables, describe_blends, describe_prediction
from avpt.errors import ArtifactError, OutputError, StoreError, listed
from avpt.files.model_headers import architectures, check_has_encoder
from avpt.options import InspectConfig
from avpt.types import Report

if TYPE_CHECKING:
    from torch import Tensor

    from avpt.models.abnormal_channels import NormPair

log = logging.getLogger(__name__)


def run(config: InspectConfig) -> Report:
    """Read the parameters, feed clips where a store is given, and draw the figures asked for."""
    if config.plot is not None and config.plot.exists() and not config.plot.is_dir():
        raise OutputError(f"{config.plot} is a file; --plot takes a folder")
    check_request(config)
    if config.encoder.is_file() or config.encoder.is_dir():
        log.info("reading the parameters of %s", config.encoder)
    before = read(config.encoder, config, config.modality)
    after = None if config.after is None else read(config.after, config, before.modality)
    if after is not None and after.loaded.spec.arch != before.loaded.spec.arch:
        raise other_architecture((before.path, before.loaded.spec.arch), (after.path, after.loaded.spec.arch))
    if after is not None and (differ := set(before.own) ^ set(after.own)):  # of unknown architectures, or passed over
        raise ArtifactError(
            f"{after.path} and {before.path} do not have the same BatchNorm layers ({listed(sorted(differ))}); "
            "--after takes the same encoder later on"
        )
    files: dict[str, bytes] = {}
    if config.plot is not None:
        log.info("drawing the parameters")
        from avpt.figures import style

        files = draw_parameters(config, before, after)
        if config.store is not None:
            style.check(files, config.plot, overwrite=config.overwrite)  # before clips are fed, which takes a while
    measured, problems = None, []
    if config.store is not None:
        log.info("feeding it clips of %s", config.store)
        try:
            measured = measure(config, config.store, before, after)
        except StoreError as error:  # the parameters can be shown in any case
            problems.append(f"neither dead channels nor feature maps can be shown: {error}")
    record, outputs = describe(config, before, after, measured), []
    if config.plot is not None:
        log.info("drawing the first layer")
        files |= draw_first_layer(config, before, after, measured)
        try:
            outputs = style.write(files, config.plot, overwrite=config.overwrite)
        except OutputError as error:  # the tables are shown all the same
            problems.append(f"no figure is written: {error}")
    words = "\n".join(filter(None, [describe_prediction(record), describe_blends(record)]))
    return Report(record, tuple(outputs), channel_tables(record), "; ".join(problems) or None, words=words)


def check_request(config: InspectConfig) -> None:
    """Refuse what the headers of avpt's own artifacts show to be impossible.

    Raises:
        ArtifactError: one holds no encoder, or --after an encoder of another architecture.
    """
    archs = []
    for path in (path for path in (config.encoder, config.after) if path is not None):
        header = check_has_encoder(path)
        known = {} if header is None else architectures(header)
        few = set(known.values()) if config.modality not in known else {known[config.modality]}
        archs.append(few.pop() if len(few) == 1 else None)
    if config.after is not None and None not in archs and archs[0] != archs[1]:
        raise other_architecture((config.encoder, archs[0]), (config.after, archs[1]))


def other_architecture(before: tuple[Path, object], after: tuple[Path, object]) -> ArtifactError:
    """The error for --after that is another encoder than the first; each by its path and architecture."""
    return ArtifactError(
        f"{after[0]} is a {after[1]} and {before[0]} a {before[1]}; --after takes the same encoder later on"
    )


def describe(config: InspectConfig, before: Side, after: Side | None, measured: Measurements | None) -> dict[str, Any]:
    """The record that scripts read."""
    from avpt.models.abnormal_channels import describe_change

    spec, threshold = before.loaded.spec, config.abnormal_threshold
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
        "training": None,
    }
    if after is not None:
        record["after"] = {
            "encoder": str(after.path),
            "norm": after.loaded.spec.norm,
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
    if after is not None and record["blend"] is not None:
        record["training"] = describe_change(before.acting, after.acting, threshold)
    return record


def describe_side(config: InspectConfig, side: Side, dead: dict[str, Tensor] | None) -> dict[str, Any]:
    """Counts per layer, and shares of all channels."""
    from avpt.diagnosis.dead_channels import score_prediction
    from avpt.models.abnormal_channels import describe_change

    layers: list[dict[str, Any]] = []
    for name, pair in side.own.items():
        layer = {"name": name, "channels": len(pair.gamma), **_counts(config, pair)}
        if name in side.alpha:
            alpha = side.alpha[name]
            layer |= {f"blended_{what}": count for what, count in _counts(config, side.acting[name]).items()}
            layer["alpha"] = {what: float(getattr(alpha, what)()) for what in ("mean", "min", "max")}
            change = describe_change({name: pair}, side.acting, config.abnormal_threshold)
            layer |= {moved: change[moved] for moved in ("gamma_moved", "beta_moved")}
        if dead is not None:
            layer["dead"] = int(dead[name].sum()) if name in dead else None
        layers.append(layer)
    described: dict[str, Any] = {"layers": layers}
    for what in ("abnormal", "blended_abnormal", "dead"):
        known = [layer for layer in layers if layer.get(what) is not None]
        share = sum(layer[what] for layer in known) / sum(layer["channels"] for layer in known) if known else None
        described["blended_share" if what == "blended_abnormal" else f"{what}_share"] = share
    abnormal = {name: pair.below(config.abnormal_threshold) for name, pair in side.acting.items()}
    precision, recall = (None, None) if dead is None else score_prediction(abnormal, dead)
    return described | {"precision": precision, "recall": recall, "blend": _blend(config, side)}


def _blend(config: InspectConfig, side: Side) -> dict[str, Any] | None:
    """What blending with a new BatchNorm does in ABRi, or did in `init --bn blend`; None where nothing is blended."""
    from avpt.models.abnormal_channels import describe_change

    if side.alpha:
        own = {layer: side.own[layer] for layer in side.alpha}
        return describe_change(own, side.acting, config.abnormal_threshold)
    header = side.loaded.header
    return None if header is None or header.kind != "encoder" else header.metrics.get("blend")


def _counts(config: InspectConfig, pair: NormPair) -> dict[str, Any]:
    below = [int(pair.below(threshold).sum()) for threshold in config.thresholds]
    return {"abnormal": int(pair.below(config.abnormal_threshold).sum()), "below": below}
