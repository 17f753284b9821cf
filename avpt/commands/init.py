"""`avpt init`: pre-trained weights become an encoder for a modality, its BatchNorm treated as asked."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from avpt.diagnosis.channel_tables import describe_blend
from avpt.errors import ArtifactError, ConfigError, listed
from avpt.files import artifacts
from avpt.files.artifacts import Header
from avpt.files.locks import claim
from avpt.files.model_headers import architectures, check_has_encoder
from avpt.files.outputs import check_not_input
from avpt.files.typed_paths import forget_paths, record_of, write_paths
from avpt.machine.light_imports import announce_torch
from avpt.options import InitConfig
from avpt.types import Modality, Report, Table

if TYPE_CHECKING:
    from avpt.models.encoder import Norm

log = logging.getLogger(__name__)

WORDS = ("imagenet", "pretrained", "random")  # what --weights takes beside paths


def run(config: InitConfig) -> Report:
    """Do nothing where the encoder is already there; torch is loaded only when there is work."""
    header, own = Header(kind="encoder", config=config.record()), None
    if config.weights not in WORDS:  # a file is recorded by its hash, not by its name
        if not Path(config.weights).exists():
            raise ArtifactError(
                f"{config.weights} does not exist; --weights takes {', '.join(WORDS)}, a file or a run folder"
            )
        own = check_has_encoder(Path(config.weights))
        inputs = {"weights": artifacts.model_hash(Path(config.weights))}
        header = replace(header, config=header.config | {"weights": "file"}, inputs=inputs)
        check_not_input(config.out, Path(config.weights))
    arch = config.arch or arch_of(own, config.modality) or "resnet18"
    header = replace(header, config=header.config | {"arch": arch})
    with claim(config.out, beside=[record_of(config.out)] if header.inputs else []):
        made = artifacts.reuse(config.out, header, config.defaults(), config.overwrite)
        if made is None:
            made = initialise(config, arch, header)
    return report(made, config)


def arch_of(own: Header | None, modality: Modality) -> str | None:
    """The architecture that weights of avpt's own say they have; None of any others."""
    known = {} if own is None else architectures(own)
    return known.get(modality) or next(iter(known.values()), None)


def initialise(config: InitConfig, arch: str, header: Header) -> Header:
    """Load strictly, look for abnormal channels, re-initialise, write."""
    announce_torch()
    import torch

    from avpt.models import abnormal_channels
    from avpt.models.encoder import build_encoder, describe_encoder, warn_of_edges
    from avpt.models.fitting import fit_weights
    from avpt.models.weights import find_weights

    torch.manual_seed(config.seed)
    norm: Norm = "batchnorm"
    if config.bn == "abri":
        norm = "abri-channel" if config.abri == "channel" else "abri-layer"
    spec = describe_encoder(arch, config.modality, norm, config.size)
    plain = replace(spec, norm="batchnorm")
    metrics = {}
    with torch.device("meta"):
        has_norm = bool(abnormal_channels.norm_layers(build_encoder(plain).state_dict()))
    if config.bn != "keep" and not has_norm:
        raise ConfigError(f"{arch} has no BatchNorm, which --bn {config.bn} is about; take it with --bn keep")
    if config.weights == "random":
        state = build_encoder(plain).state_dict()
    else:
        pretrained, layout = find_weights(config.weights, plain, config.weights_key)
        state, loaded = fit_weights(pretrained, plain, config.conv1, config.weights)
        loaded.layout = layout
        for line in layout.sentences():
            log.info("%s: %s", config.weights, line)
        if loaded.folded:
            log.info("%s has ABRi layers: they are folded into plain BatchNorm first", config.weights)
        metrics["weights"] = loaded.record()

    metrics |= abnormal_channels.abnormal_report(state, config.abnormal_threshold)
    if config.bn in ("abri", "blend") and (config.weights == "random" or abnormal_channels.is_as_new(state)):
        log.warning(
            "the BatchNorm of %s is as new, which is what ABRi's other branch is: there is %s; set --bn "
            "keep, or start from trained --weights",
            "random weights" if config.weights == "random" else config.weights,
            "nothing pre-trained to mix it with" if config.bn == "abri" else "nothing to blend",
        )
    if config.bn == "blend":
        before, state = state, abnormal_channels.blend(state, config.alpha)
        pairs = abnormal_channels.acting_pairs(before), abnormal_channels.acting_pairs(state)
        metrics["blend"] = abnormal_channels.describe_change(*pairs, config.abnormal_threshold)
    elif config.bn == "reset":
        state = abnormal_channels.reset(state)
    elif config.bn == "reset-abnormal":
        state, count = abnormal_channels.reset_abnormal(state, config.abnormal_threshold)
        log.info("%d BatchNorm channels with |gamma| below %g are reset", count, config.abnormal_threshold)
    if spec.size is not None:
        warn_of_edges(spec, spec.size, str(config.out))
    encoder = build_encoder(spec, config.alpha)
    encoder.load_state_dict(encoder.state_dict() | state)  # over ABRi's new branch, which state lacks
    header = replace(header, spec={"encoder": spec.record(), "input": None}, metrics=metrics)
    if header.inputs:  # before the encoder, which is not made again once it is there
        write_paths(config.out, header.inputs, {"weights": Path(config.weights)})
    else:
        forget_paths(config.out)
    artifacts.save(config.out, header, encoder.state_dict())
    return header


def report(header: Header, config: InitConfig) -> Report:
    """What became of each key, and the abnormal channels of each BatchNorm layer, if there are any."""
    metrics, tables = header.metrics, []
    if weights := metrics.get("weights"):
        parts = {name: list(weights[name]) for name in ("loaded", "adapted", "dropped", "new")}
        rows = [(name, str(len(keys)), listed(keys, 4)) for name, keys in parts.items()]
        rows += [(f"  {key}", "", how) for key, how in weights["adapted"].items()]
        tables.append(Table(f"weights from {config.weights}", ("", "keys", "which"), rows))
    layers = [(layer["name"], layer["channels"], layer["abnormal"]) for layer in metrics["layers"]]
    channels, abnormal = sum(layer[1] for layer in layers), sum(layer[2] for layer in layers)
    meaning = f"max(|gamma|, |beta|) < {config.abnormal_threshold:g}"
    summary = {"encoder": str(config.out), **metrics}
    if not layers:
        return Report(summary, (config.out,), tables)
    blended = describe_blend(metrics["blend"]) if "blend" in metrics else ""
    if not abnormal:
        words = f"none of {channels} BatchNorm channels is abnormal as loaded, {meaning}"
        return Report(summary, (config.out,), tables, words="\n".join(filter(None, [words, blended])))
    layers.append(("all", channels, abnormal))
    cells = [(name, str(count), str(some), f"{some / count:.1%}") for name, count, some in layers]
    tables.append(
        Table(f"abnormal BatchNorm channels, {meaning}, as loaded", ("layer", "channels", "abnormal", "share"), cells)
    )
    return Report(summary, (config.out,), tables, words=blended)
