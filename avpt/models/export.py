"""Trained networks written for use elsewhere: plain torchvision weights, ONNX, torch.export."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from avpt.errors import AvptError, ConfigError, wants_memory
from avpt.files.export_headers import KEY, PT2_MEMBER, require_onnx
from avpt.models.abri import fold_state_dict, norm_eps
from avpt.models.architectures import create_network
from avpt.models.encoder import Classifier, Encoder, EncoderSpec, Features, build_encoder, classifiers
from avpt.models.fitting import misfits
from avpt.models.fusion import FusedModel
from avpt.types import CHANNELS, Modality

BATCH = 2  # clips in the example that an export traces; 1 would be taken for a constant


def plain_encoder(encoder: Encoder, spec: EncoderSpec) -> Encoder:
    """The encoder with every ABRi layer folded into a plain BatchNorm; its output in evaluation is the same."""
    with torch.random.fork_rng(devices=[]):
        plain = build_encoder(replace(spec, norm="batchnorm"))
    plain.load_state_dict(fold_state_dict(encoder.state_dict(), norm_eps(encoder)), assign=True)
    return plain.eval()


def library_state(encoder: Encoder, spec: EncoderSpec, head: nn.Linear | None) -> dict[str, Tensor]:
    """A plain encoder's state dict as its library's network with a classifier has it, the head as its classifier.

    Raises:
        ConfigError: that network is not the encoder and one linear layer.
    """
    state: dict[str, Tensor] = encoder.state_dict()
    if head is None:
        return state
    classifier, *others = classifiers(spec) or ("",)
    state |= {f"{classifier}.weight": head.weight, f"{classifier}.bias": head.bias}
    with torch.device("meta"):
        network = create_network(spec.arch, CHANNELS[spec.modality], spec.size, head.out_features)
    if others or misfits(network.state_dict(), state):
        raise ConfigError(
            f"{spec.arch} with a classifier is more than an encoder and a linear layer, so its state dict can't hold "
            "this model; --format onnx or torch-export can"
        )
    return state


def plain_network(
    network: Encoder | Classifier | FusedModel, encoders: Mapping[Modality, EncoderSpec], modality: Modality | None
) -> nn.Module:
    """The network that ONNX and torch.export receive, ABRi folded: all of it, or one encoder of a fused model."""
    if isinstance(network, Encoder):
        (spec,) = encoders.values()
        return Features(plain_encoder(network, spec)).eval()
    if isinstance(network, FusedModel):
        if modality is not None:
            return Features(plain_encoder(getattr(network, modality), encoders[modality])).eval()
        network.audio = plain_encoder(network.audio, encoders["audio"])
        network.visual = plain_encoder(network.visual, encoders["visual"])
        return network.eval()
    (spec,) = encoders.values()
    network.encoder = plain_encoder(network.encoder, spec)
    return network.eval()


def to_torch_export(model: nn.Module, inputs: Mapping[Modality, Tensor], metadata: str, name: str) -> bytes:
    """A `.pt2` file that takes any number of clips per batch; `torch.export.load` reads it.

    Raises:
        ConfigError: torch can't export a network of this kind; the message calls it by `name`.
    """
    file = io.BytesIO()
    with _refusing(name, "torch-export"), _silently():
        program = torch.export.export(model, tuple(inputs.values()), dynamic_shapes=_any_batch(inputs))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of the machine that exported
        torch.export.save(program, file, extra_files={PT2_MEMBER: metadata})
    return file.getvalue()


def to_onnx(model: nn.Module, inputs: Mapping[Modality, Tensor], output: str, metadata: str, name: str) -> bytes:
    """An ONNX file that takes any number of clips per batch.

    Raises:
        AvptError: the packages that write ONNX are not installed.
        ConfigError: torch can't export a network of this kind; the message calls it by `name`.
    """
    require_onnx()
    with _refusing(name, "onnx"), _silently():
        written = torch.onnx.export(
            model,
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=_any_batch(inputs),
            input_names=list(inputs),
            output_names=[output],
            verbose=False,
        )
    assert written is not None
    proto: Any = written.model_proto
    graph = proto.graph
    traced = [graph.node, graph.input, graph.output, graph.value_info, graph.initializer]
    for part in (item for items in [*traced, *(function.node for function in proto.functions)] for item in items):
        del part.metadata_props[:]  # the places in source files where it was traced
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, metadata
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _any_batch(inputs: Mapping[Modality, Tensor]) -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("batch", min=1)
    return tuple({0: batch} for _ in inputs)


@contextmanager
def _refusing(name: str, form: str) -> Iterator[None]:
    """Say in a line what torch's exporters say in pages, each in errors of its own kinds."""
    try:
        yield
    except AvptError:
        raise
    except Exception as error:
        if wants_memory(error) or (isinstance(error, OSError) and error.errno is not None):
            raise  # which has nothing to do with the network
        raise ConfigError(
            f"torch can't export {name} as {form} ({_reason(error)}); --format timm, or torchvision for its own "
            "networks, writes the weights of an encoder"
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of the error that lies below all others."""
    seen = [error]
    while (inner := seen[-1].__cause__ or seen[-1].__context__) is not None and inner not in seen:
        seen.append(inner)
    for one in reversed(seen):
        lines = re.sub(r"\x1b\[[0-9;]*m", "", str(one)).split("\n")  # which are coloured
        if line := next((line.strip() for line in lines if line.strip()), ""):
            return f"{type(one).__name__}: {line:.200}"
    return type(error).__name__


@contextmanager
def _silently() -> Iterator[None]:
    """Silence the exporters, which report on their own workings, on stdout too."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
