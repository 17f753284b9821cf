"""`avpt export`: a trained model for use without avpt, ABRi folded into plain BatchNorm."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from avpt.errors import ConfigError
from avpt.files import artifacts, export_headers
from avpt.files.artifacts import Header
from avpt.files.locks import claim
from avpt.files.model_headers import WITH_ENCODER, architectures, read_input, read_model
from avpt.files.outputs import atomic, check_not_input
from avpt.files.records import ExportSpec
from avpt.files.reuse import check_existing
from avpt.options import STATES, ExportConfig
from avpt.types import CHANNELS, TORCHVISION, Modality, Report, Table

if TYPE_CHECKING:
    from avpt.loading.dataset import InputSpec
    from avpt.models.checkpoint import LoadedNetwork

log = logging.getLogger(__name__)

CONV1 = "model.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)"


def run(config: ExportConfig) -> Report:
    """Do nothing where the file is already there; torch is loaded only when there is work."""
    if config.format == "onnx":
        export_headers.require_onnx()
    check_request(config)
    inputs = {"model": artifacts.model_hash(config.model)}
    check_not_input(config.out, config.model)
    header = Header(kind="export", config=config.record(), inputs=inputs)
    reuse = artifacts.reuse if config.format in STATES else export_headers.reuse
    with claim(config.out):
        written = reuse(config.out, header, config.defaults(), config.overwrite)
        if written is None:
            written = export(config, header)
        else:
            check_existing(config.out, written.spec, ExportSpec)
    return report(config, written)


def check_request(config: ExportConfig) -> None:
    """Refuse what the model's header shows to be impossible.

    Raises:
        ArtifactError: it holds no network, or one that was not trained where its inputs are asked for.
        ConfigError: --modality or --format do not go with it.
    """
    header = read_model(config.model, *WITH_ENCODER)
    if not (archs := architectures(header)):
        return
    for modality in modalities_of(config, list(archs)):
        owner = "torchvision" if archs[modality] in TORCHVISION else "timm"
        if config.format in STATES and owner != config.format:
            raise ConfigError(f"{archs[modality]} is {owner}'s; export it with --format {owner}")
    if not is_fresh(config, header):
        read_input(config.model, header)


def is_fresh(config: ExportConfig, header: Header) -> bool:
    """Whether a state dict is asked for of an encoder straight from `init`, which has no input pipeline yet."""
    return config.format in STATES and header.kind == "encoder" and header.spec.get("input") is None


def export(config: ExportConfig, header: Header) -> Header:
    """Rebuild the model, fold ABRi, and write what was asked for."""
    log.info("loading %s", config.model)
    import torch

    from avpt.models import export
    from avpt.models.abnormal_channels import has_unmoved_statistics
    from avpt.models.checkpoint import load_network

    loaded = load_network(config.model, *WITH_ENCODER)
    modalities = modalities_of(config, list(loaded.encoders))
    if has_unmoved_statistics(loaded.network.state_dict()):
        log.warning("%s has BatchNorm statistics that no data has moved yet: its outputs mean nothing", config.model)
    pipeline = None if is_fresh(config, loaded.header) else read_input(config.model, loaded.header)
    header = replace(header, **describe(config, loaded, modalities, pipeline))
    log.info("writing it as %s%s", config.format, "" if config.format in STATES else ", which takes a while")
    if config.format == "torchvision" or config.format == "timm":
        (modality,) = modalities
        plain = export.plain_encoder(loaded.encoder(modality), loaded.encoders[modality])
        artifacts.save(config.out, header, export.library_state(plain, loaded.encoders[modality], loaded.head))
        return header
    model = export.plain_network(loaded.network, loaded.encoders, config.modality)
    inputs = {modality: torch.zeros(export.BATCH, *header.spec["inputs"][modality][1:]) for modality in modalities}
    metadata = artifacts.format_header(header)
    name = " and ".join(dict.fromkeys(loaded.encoders[modality].arch for modality in modalities))
    if config.format == "onnx":
        content = export.to_onnx(model, inputs, header.spec["output"], metadata, name)
    else:
        content = export.to_torch_export(model, inputs, metadata, name)
    with atomic(config.out) as beside:
        beside.write_bytes(content)
    return header


def modalities_of(config: ExportConfig, has: list[Modality]) -> list[Modality]:
    """The modalities that the exported model takes, of those that the trained one has.

    Raises:
        ConfigError: --modality is missing, or names one that the model does not take.
    """
    if config.modality is not None and config.modality not in has:
        raise ConfigError(f"--modality {config.modality} does not go with {config.model}, which takes {has[0]} input")
    if config.modality is None and len(has) > 1 and config.format in STATES:
        raise ConfigError(f"--format {config.format} writes one encoder; add --modality audio or --modality visual")
    return has if config.modality is None else [config.modality]


def describe(
    config: ExportConfig, loaded: LoadedNetwork, modalities: list[Modality], pipeline: InputSpec | None
) -> dict[str, Any]:
    """What the file's header says: encoders, shapes of inputs and output, input pipeline, classes."""
    whole = loaded.header.kind == "classifier" or (loaded.header.kind == "fused" and len(modalities) == 2)
    encoders = {modality: loaded.encoders[modality].record() | {"norm": "batchnorm"} for modality in modalities}
    spec: dict[str, Any] = {"encoders": encoders, "input": None, "inputs": {}}
    spec["output"] = "logits" if whole else "features"
    if pipeline is not None:
        shapes: dict[Modality, list[Any]] = {
            "audio": ["batch", 1, pipeline.spectrogram_frames, pipeline.mel_bins],
            "visual": ["batch", pipeline.num_frames, 3, pipeline.image_size, pipeline.image_size],
        }
        if config.format in STATES:  # whose networks take single frames
            del shapes["visual"][1]
        spec |= {"input": pipeline.record(), "inputs": {modality: shapes[modality] for modality in modalities}}
    if whole:
        spec |= {name: loaded.header.spec[name] for name in ("num_classes", "multi_label")}
    return {"spec": spec, "classes": loaded.header.classes if whole else []}


def report(config: ExportConfig, header: Header) -> Report:
    """What the exported model takes and gives, and the Python code that loads it."""
    spec = header.spec
    code = code_for(config, header)
    rows = [(name, " x ".join(map(str, shape)), values(name, spec)) for name, shape in spec["inputs"].items()]
    classes = "one class" if len(header.classes) == 1 else f"{len(header.classes)} classes" if header.classes else ""
    rows.append((spec["output"], "", classes))
    summary = {"export": str(config.out), "format": config.format, "classes": header.classes, "code": code}
    summary |= {name: spec[name] for name in ("encoders", "input", "inputs", "output")}
    table = Table(f"{config.model} as {config.format}", ("", "shape", "values"), rows, left=3)
    return Report(summary, (config.out,), [table], text=code)


def values(modality: Modality, spec: dict[str, Any]) -> str:
    """What the values of an input are, in words."""
    if modality == "visual":
        input = spec["input"]
        if input.get("picture_mean") is None:
            return "RGB in 0..1, minus ImageNet's mean, over its deviation"
        mean, std = (", ".join(f"{value:g}" for value in input[f"picture_{what}"]) for what in ("mean", "std"))
        return f"RGB in 0..1, minus ({mean}), over ({std})"
    mean, std = spec["input"]["mean"], spec["input"]["std"]
    return f"(log-mel {'+' if mean < 0 else '-'} {abs(mean):.6g}) / (2 * {std:.6g})"


def code_for(config: ExportConfig, header: Header) -> str:
    """Python code that loads the file, for the user to copy."""
    path, spec = str(config.out), header.spec
    names, output = ", ".join(spec["inputs"]), spec["output"]
    if config.format == "onnx":
        feed = ", ".join(f'"{name}": {name}' for name in spec["inputs"])
        lines = ["import onnxruntime", "", f"session = onnxruntime.InferenceSession({path!r})"]
        lines.append(f"({output},) = session.run(None, {{{feed}}})")
    elif config.format == "torch-export":
        lines = ["import torch", "", f"model = torch.export.load({path!r}).module()", f"{output} = model({names})"]
    else:
        ((modality, encoder),) = spec["encoders"].items()
        classes = f"num_classes={spec['num_classes']}" if output == "logits" else ""
        lines = [f"import {'torch, torchvision' if config.format == 'torchvision' else 'timm'}"]
        lines += ["from safetensors.torch import load_file", ""]
        if config.format == "timm":
            options = [f"in_chans={CHANNELS[modality]}", classes or "num_classes=0"]
            options += [f"img_size=({encoder['size'][0]}, {encoder['size'][1]})"] if encoder.get("size") else []
            lines.append(f"model = timm.create_model({encoder['arch']!r}, {', '.join(options)})")
        else:
            lines.append(f"model = torchvision.models.{encoder['arch']}({classes})")
            lines += [CONV1] if modality == "audio" else []
            lines += [] if classes else ["model.fc = torch.nn.Identity()"]
        lines.append(f"model.load_state_dict(load_file({path!r}))")
        lines.append("model.eval()" + (f"  # a clip's {output} are the mean over its frames" * (modality == "visual")))
    return "\n".join(lines) + "\n"
