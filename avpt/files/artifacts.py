"""One header format for every safetensors file: read with checks, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avpt import __version__
from avpt.errors import ArtifactError, OutputError
from avpt.files.checking import RecordError, check, convert, parse
from avpt.files.content_kinds import SAFETENSORS, but_what, what_it_is
from avpt.files.outputs import atomic, sha256
from avpt.files.records import METRICS, Metrics, Provenance
from avpt.files.reuse import check_existing, foreign, is_reused, is_there
from avpt.files.tensors import find_wrong_shape, find_wrong_value
from avpt.files.tensors import pack_ids as pack_ids
from avpt.files.tensors import unpack_ids as unpack_ids
from avpt.files.torch_files import is_saved_by_torch
from avpt.types import PLAIN_SUFFIXES

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1

Kind = Literal["encoder", "classifier", "fused", "dynamics", "confidence", "mask", "predictions", "probe", "export"]

OTHER_SUFFIXES = PLAIN_SUFFIXES | {".pt", ".pth", ".ckpt", ".bin", ".onnx", ".pt2", ".h5", ".npz"}


A_RUN = "that is what a training command made at its --out"


class ForeignWeightsError(ArtifactError):
    """Weights that avpt did not write lie where an artifact is needed; `what` names the file and its kind."""

    def __init__(self, what: str, step: str) -> None:
        super().__init__(f"{what}; {step}")
        self.what = what


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file is and how it came about; stored as sorted JSON under the one metadata key `avpt`."""

    kind: Kind
    spec: dict[str, Any] = field(default_factory=dict)  # rebuilds the module and its input pipeline
    config: dict[str, Any] = field(default_factory=dict)  # options that can change the result
    inputs: dict[str, str] = field(default_factory=dict)  # name -> sha256 or store fingerprint
    classes: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)  # thread count, device, torch: what bytes depend on
    schema: int = SCHEMA
    avpt: str = __version__


@dataclass(frozen=True)
class Artifact:
    """A safetensors file that avpt wrote, read whole."""

    header: Header
    tensors: dict[str, Tensor]


def save(path: Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Write an artifact; the same header and tensors give the same bytes.

    safetensors keeps metadata in a hash map: with more than one key the order, and so the bytes, would vary.
    """
    from safetensors import torch as safetensors

    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as beside:
        # not its `save_file`, which writes to a file of a random name first: a kill would leave that behind
        beside.write_bytes(safetensors.save(on_cpu, {"avpt": format_header(header)}))


def format_header(header: Header) -> str:
    """The header as the sorted JSON that a file carries."""
    return json.dumps(asdict(header), sort_keys=True, ensure_ascii=False)


def read_header(path: Path) -> tuple[Header, dict[str, tuple[str, list[int]]]]:
    """Read the header, and each tensor's type and shape, without the tensors.

    Raises:
        ArtifactError: missing, cut short, or not written by avpt (ForeignWeightsError).
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        if not path.is_dir():
            raise ArtifactError(f"{path} does not exist; make it with the step before")
        raise ArtifactError(f"{path} is {what_it_is(path) or 'a folder'}; an artifact is a file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensors = {name: (part.get_dtype(), list(part.get_shape())) for name, part in slices.items()}
    except SafetensorError as error:
        if is_saved_by_torch(path):
            step = f"`avpt info {path}` names the command that makes an encoder of it"
            raise ForeignWeightsError(f"{path} is a PyTorch checkpoint", step) from None
        raise _unread(path, error, "an artifact is a safetensors file that a command of avpt's wrote") from None
    except OSError as error:  # safetensors reports every file that it can't open as missing
        raise ArtifactError(f"{path} can't be read; look at its permissions ({error})") from None
    if "avpt" not in metadata:
        raise ForeignWeightsError(
            f"{path} is a safetensors file that avpt did not write",
            "make an encoder of it with `avpt init --weights` first",
        )
    return parse_header(path, metadata["avpt"]), tensors


def own_header(path: Path) -> Header | None:
    """The header of an artifact of avpt's own; None of any other file: whoever reads its weights says what is wrong."""
    try:
        return read_header(path)[0]
    except ArtifactError:
        return None


def parse_header(path: Path, text: str) -> Header:
    """The header that a file carries as JSON.

    Raises:
        ArtifactError: it is damaged, or was written by a newer avpt.
    """
    try:
        values = parse(text)
        schema = values.get("schema") if isinstance(values, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise ArtifactError(f"{path} was written by a newer avpt ({values.get('avpt')!s:.20}); update avpt")
        header = convert(values, Header)
        check({"config": header.config, "inputs": header.inputs}, Provenance)
        check(header.metrics, Metrics)
    except RecordError as error:
        raise ArtifactError(f"{path} has a damaged avpt header ({error}); make it again") from None
    return header


def load(path: Path, *kinds: Kind) -> Artifact:
    """Read an artifact of one of these kinds onto the CPU.

    Raises:
        ArtifactError: missing, cut short, not written by avpt, or of another kind.
    """
    header, shapes = read_header(path)
    if header.kind not in kinds:
        raise ArtifactError(f"{path} is of kind {header.kind}; {' or '.join(kinds)} is needed here")
    if wrong := find_wrong_shape(header.kind, shapes):  # before any tensor is read
        raise ArtifactError(f"{path} is damaged: {wrong}; make it again")
    tensors = read_tensors(path)
    if wrong := find_wrong_value(header.kind, tensors):
        raise ArtifactError(f"{path} is damaged: {wrong}; make it again")
    return Artifact(header, tensors)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of any safetensors file.

    Raises:
        ArtifactError: it is not one, or has types that torch does not know.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():  # a pipe would never end
        what = "is not a file" if path.exists() else "does not exist"
        raise ArtifactError(f"{path} {what}; name a file with weights")
    try:
        return load_file(path)
    except SafetensorError as error:
        wanted = "weights are a safetensors file, or what torch.save writes, named .pt, .pth, .ckpt or .bin"
        raise _unread(path, error, wanted) from None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{path} holds tensors that can't be read ({error!s:.100}); write it again") from None


def _unread(path: Path, error: Exception, wanted: str) -> ArtifactError:
    """The error for a file that safetensors can't read: what it is if that can be told, else that it is damaged."""
    if (what := what_it_is(path)) in ("", SAFETENSORS):
        return ArtifactError(f"{path} is cut short, damaged, or not a safetensors file ({error})")
    return ArtifactError(f"{path} is {what}; {wanted}")


def model_file(path: Path) -> Path:
    """The artifact that stands for `path`: the file itself, or a finished run folder's best model."""
    return run_file(path, "model.safetensors") if path.is_dir() else path


def model_hash(path: Path) -> str:
    """The checksum of the artifact that stands for `path`, as provenance records it.

    Raises:
        ArtifactError: there is no such file.
    """
    file = model_file(path)
    if not file.is_file():
        raise ArtifactError(f"{path} does not exist; make it with the step before")
    return sha256(file)


def run_file(folder: Path, name: str) -> Path:
    """A file of a finished run folder.

    Raises:
        ArtifactError: not a run folder, or one whose training has not finished.
    """
    if not folder.exists():
        raise ArtifactError(f"{folder} does not exist; it should be a run folder written by avpt")
    finished = (folder / "summary.json").exists() and (folder / name).exists()
    if not finished and not (folder / "checkpoint").is_dir():
        raise ArtifactError(f"{folder} is not a run folder written by avpt{but_what(folder)}; {A_RUN}")
    if not finished:
        raise ArtifactError(f"{folder} is unfinished; run the command that makes it again, it goes on where it stopped")
    return folder / name


def reuse(path: Path, header: Header, defaults: Mapping[str, Any], overwrite: bool) -> Header | None:
    """The header of an existing artifact that was made with the same options and inputs; None where it is to be made.

    Raises:
        OutputError: something else is there.
    """
    if path.suffix.lower() in OTHER_SUFFIXES:
        raise OutputError(f"{path} would not be what its name says; this is written as .safetensors")
    if not is_there(path):
        return None
    try:
        existing, _ = read_header(path)
    except ArtifactError:
        raise foreign(path) from None
    if not is_reused(path, asdict(existing), asdict(header), defaults, overwrite):
        return None
    check_existing(path, existing.metrics, METRICS.get(existing.kind, Metrics))
    return existing
