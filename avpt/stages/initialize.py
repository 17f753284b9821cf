"""`avpt init`: pre-trained weights become an encoder for a modality, its BatchNorm treated as asked."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from avpt import artifacts
from avpt.artifacts import Header
from avpt.config import InitConfig
from avpt.outputs import claim
from avpt.types import Report, Table

log = logging.getLogger(__name__)


def run(config: InitConfig) -> Report:
    """Do nothing where the encoder is already there; torch is loaded only when there is work."""
    norm = f"abri-{config.abri}" if config.bn == "abri" else "batchnorm"
    header = Header(
        kind="encoder",
        spec={"encoder": {"arch": config.arch, "modality": config.modality, "norm": norm}, "input": None},
        config=config.record(),
    )
    if config.weights not in ("imagenet", "random"):  # a file is told by its hash, not by its name
        inputs = {"weights": artifacts.model_hash(Path(config.weights))}
        header = replace(header, config=header.config | {"weights": "file"}, inputs=inputs)
    with claim(config.out):
        found, tables = artifacts.reuse(config.out, header, config.overwrite), list[Table]()
        if found is None:
            found, tables = initialize(config, header)
    return report(found, config, tables)


def initialize(config: InitConfig, header: Header) -> tuple[Header, list[Table]]:
    """Load strictly, look for abnormal channels, re-initialise, write."""
    import torch

    from avpt.models import channels, weights
    from avpt.models.encoder import build_encoder, encoder_spec

    torch.manual_seed(config.seed)
    spec = encoder_spec(header.spec["encoder"])
    plain = replace(spec, norm="batchnorm")
    tables = []
    if config.weights == "random":
        state = build_encoder(plain).state_dict()
    else:
        pretrained, outside = weights.find_weights(config.weights, config.arch, config.modality)
        state, loaded = weights.fit_weights(pretrained, plain, config.conv1, config.weights)
        loaded.dropped += outside
        if loaded.folded:
            log.info("%s has ABRi layers: they are folded into plain BatchNorm first", config.weights)
        tables.append(Table(f"weights from {config.weights}", ("", "keys", "which"), loaded.rows()))

    header = replace(header, metrics=channels.abnormal_report(state, config.abnormal_threshold))
    if config.bn == "reset":
        state = channels.reset(state)
    elif config.bn == "reset-abnormal":
        state, count = channels.reset_abnormal(state, config.abnormal_threshold)
        log.info("%d BatchNorm channels with |gamma| below %g are reset", count, config.abnormal_threshold)
    encoder = build_encoder(spec, config.alpha)
    encoder.load_state_dict(encoder.state_dict() | state)  # over ABRi's new branch, which state lacks
    artifacts.save(config.out, header, encoder.state_dict())
    return header, tables


def report(header: Header, config: InitConfig, tables: list[Table]) -> Report:
    """The table of abnormal channels per BatchNorm layer, after what was loaded."""
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
