"""`avpt init`: pre-trained weights become an encoder for a modality, its BatchNorm treated as asked."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from avpt import artifacts
from avpt.artifacts import Header
from avpt.config import InitConfig
from avpt.models import channels, weights
from avpt.models.encoder import EncoderSpec, Norm, build_encoder
from avpt.outputs import claim, sha256
from avpt.types import Report, Table

log = logging.getLogger(__name__)


def run(config: InitConfig) -> Report:
    """Load strictly, look for abnormal channels, re-initialise, write."""
    norm: Norm = "batchnorm"
    if config.bn == "abri":
        norm = "abri-channel" if config.abri == "channel" else "abri-layer"
    spec = EncoderSpec(config.arch, config.modality, norm)
    header = Header(kind="encoder", spec={"encoder": vars(spec), "input": None}, config=_record(config))
    source = _source(config.weights)
    if source is not None:
        header = replace(header, inputs={"weights": sha256(source)})

    with claim(config.out):
        found = artifacts.reuse(config.out, header, config.overwrite)
        if found is not None:
            return _report(found, config, [])
        torch.manual_seed(config.seed)
        state, loaded = _load(config, source, replace(spec, norm="batchnorm"))
        metrics = channels.abnormal_report(state, config.abnormal_threshold)
        if config.bn == "reset":
            state = channels.reset(state)
        elif config.bn == "reset-abnormal":
            state, count = channels.reset_abnormal(state, config.abnormal_threshold)
            log.info("reset %d BatchNorm channels with |gamma| below %g", count, config.abnormal_threshold)
        encoder = build_encoder(spec, config.alpha)
        encoder.load_state_dict(encoder.state_dict() | state)  # over ABRi's new branch, which state lacks
        header = replace(header, metrics=metrics)
        artifacts.save(config.out, header, encoder.state_dict())
    return _report(header, config, [loaded] if loaded else [])


def _source(name: str) -> Path | None:
    """The file that --weights names, a run folder's best model included."""
    return None if name in ("imagenet", "random") else artifacts.model_file(Path(name))


def _record(config: InitConfig) -> dict[str, object]:
    """Options as recorded: a file of weights is told by its hash, under inputs."""
    record = config.record()
    return record if config.weights in ("imagenet", "random") else record | {"weights": "file"}


def _load(config: InitConfig, source: Path | None, plain: EncoderSpec) -> tuple[dict[str, torch.Tensor], Table | None]:
    """A full plain-BatchNorm state dict, and the report of what became of each key."""
    if config.weights == "random":
        return build_encoder(plain).state_dict(), None
    if source is None:
        state, dropped = weights.imagenet_weights(config.arch), list[str]()
    else:
        state, dropped = weights.read_weights(source, config.modality)
    fitted, report = weights.fit_weights(state, plain, config.conv1, config.weights)
    if report.folded:
        log.info("%s has ABRi layers: folded into plain BatchNorm first", config.weights)
    report.dropped += dropped
    return fitted, Table(f"weights from {config.weights}", ("", "keys", "which"), report.rows())


def _report(header: Header, config: InitConfig, tables: list[Table]) -> Report:
    layers = header.metrics["layers"]
    rows = [
        (
            layer["name"],
            str(layer["channels"]),
            str(layer["abnormal"]),
            f"{layer['abnormal'] / layer['channels']:.1%}",
        )
        for layer in layers
    ]
    total, abnormal = sum(layer["channels"] for layer in layers), sum(layer["abnormal"] for layer in layers)
    rows.append(("all", str(total), str(abnormal), f"{header.metrics['abnormal_share']:.1%}"))
    title = f"abnormal BatchNorm channels, max(|gamma|, |beta|) < {config.abnormal_threshold:g}, as loaded"
    tables = [*tables, Table(title, ("layer", "channels", "abnormal", "share"), rows)]
    return Report({"encoder": str(config.out), **header.metrics}, (config.out,), tables)
