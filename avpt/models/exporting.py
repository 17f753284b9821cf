"""Trained networks for use elsewhere: plain torchvision weights, ONNX, torch.export."""

from __future__ import annotations

import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from avpt.errors import ArtifactError, AvptError
from avpt.models.abri import fold_state_dict
from avpt.models.encoder import Classifier, EncoderSpec, build_encoder, encode
from avpt.models.fusion import FusedModel
from avpt.types import Modality

BATCH = 2  # clips in the example that an export traces; 1 would be taken for a constant
KEY = "avpt"  # of the metadata
PT2_MEMBER = f"{KEY}.json"


class Features(nn.Module):
    """An encoder alone: features (batch, width), averaged over a clip's frames."""

    def __init__(self, encoder: ResNet) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Tensor) -> Tensor:
        """Features of spectrograms (batch, 1, frame, mel) or frames (batch, frames, 3, height, width)."""
        return encode(self.encoder, inputs)


def plain_encoder(encoder: ResNet, spec: EncoderSpec) -> ResNet:
    """The encoder with every ABRi layer folded into a plain BatchNorm; its output in evaluation is the same."""
    with torch.device("meta"):
        plain = build_encoder(replace(spec, norm="batchnorm"))
    plain.load_state_dict(fold_state_dict(encoder.state_dict()), assign=True)
    return plain.eval()


def torchvision_state(encoder: ResNet, head: nn.Linear | None) -> dict[str, Tensor]:
    """A plain encoder's state dict with torchvision's names, and the head as its `fc`."""
    state: dict[str, Tensor] = encoder.state_dict()
    return state | ({} if head is None else {"fc.weight": head.weight, "fc.bias": head.bias})


def torchvision_code(path: Path, spec: EncoderSpec, num_classes: int | None) -> str:
    """Python that loads the exported weights into torchvision's own ResNet."""
    classes = "" if num_classes is None else f"num_classes={num_classes}"
    lines = [
        "import torch, torchvision",
        "from safetensors.torch import load_file",
        "",
        f"model = torchvision.models.{spec.arch}({classes})",
    ]
    if spec.modality == "audio":
        lines.append("model.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)")
    if num_classes is None:
        lines.append("model.fc = torch.nn.Identity()")
    lines.append(f"model.load_state_dict(load_file({str(path)!r}))")
    lines.append("model.eval()")
    return "\n".join(lines) + "\n"


def plain_network(
    network: ResNet | Classifier | FusedModel, encoders: Mapping[Modality, EncoderSpec], only: Modality | None
) -> nn.Module:
    """What ONNX and torch.export get: the whole model, or one encoder of a fused one; ABRi folded."""
    if isinstance(network, FusedModel):
        if only is not None:
            return Features(plain_encoder(getattr(network, only), encoders[only])).eval()
        network.audio = plain_encoder(network.audio, encoders["audio"])
        network.visual = plain_encoder(network.visual, encoders["visual"])
        return network.eval()
    (spec,) = encoders.values()
    if isinstance(network, Classifier):
        network.encoder = plain_encoder(network.encoder, spec)
        return network.eval()
    return Features(plain_encoder(network, spec)).eval()


def to_torch_export(model: nn.Module, inputs: Mapping[Modality, Tensor], metadata: str) -> bytes:
    """A `.pt2` file with any number of clips a batch; `torch.export.load` reads it."""
    file = io.BytesIO()
    with _silently():
        program = _traced(model, inputs)
        torch.export.save(program, file, extra_files={PT2_MEMBER: metadata})
    return file.getvalue()


def to_onnx(model: nn.Module, inputs: Mapping[Modality, Tensor], output: str, metadata: str) -> bytes:
    """An ONNX file with any number of clips a batch.

    Raises:
        AvptError: the packages that write ONNX are not installed.
    """
    require_onnx()
    with _silently():
        written = torch.onnx.export(
            _traced(model, inputs), dynamo=True, input_names=list(inputs), output_names=[output], verbose=False
        )
    assert written is not None
    graph = written.model
    graph.metadata_props[KEY] = metadata
    for node in graph.graph.all_nodes():  # where in which source file it was traced
        node.metadata_props.clear()
    for function in graph.functions.values():
        for node in function.all_nodes():
            node.metadata_props.clear()
    content: bytes = written.model_proto.SerializeToString(deterministic=True)
    return content


def _traced(model: nn.Module, inputs: Mapping[Modality, Tensor]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, tuple(inputs.values()), dynamic_shapes=tuple({0: batch} for _ in inputs))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that exported
    return program


@contextmanager
def _silently() -> Iterator[None]:
    """The exporters tell of their own workings, on stdout too."""
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


def require_onnx() -> None:
    """See that ONNX files can be written and read.

    Raises:
        AvptError: they can't.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise AvptError("ONNX needs packages that are not installed: pip install 'avpt[onnx]'") from None
    assert onnx


def read_metadata(path: Path) -> dict[str, Any]:
    """What an exported `.onnx` or `.pt2` file says of itself.

    Raises:
        ArtifactError: it is not one that avpt wrote, or damaged.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                (member,) = (name for name in archive.namelist() if name.endswith(f"/{PT2_MEMBER}"))
                found = json.loads(archive.read(member))
        else:
            require_onnx()
            import onnx

            properties = onnx.load(path, load_external_data=False).metadata_props
            found = json.loads(next(entry.value for entry in properties if entry.key == KEY))
        if not isinstance(found, dict):
            raise TypeError
    except AvptError:
        raise
    except Exception:  # protobuf and zipfile raise whatever they like
        raise ArtifactError(f"{path} was not exported by avpt, or is damaged") from None
    return found
