"""The headers of exported ONNX and torch.export files; no torch needed."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avpt.errors import ArtifactError, AvptError, OutputError
from avpt.files.artifacts import Header, parse_header
from avpt.files.reuse import is_reused, is_there

KEY = "avpt"  # of ONNX's metadata_props, as in a safetensors header
PT2_MEMBER = f"{KEY}.json"  # of the extra files in a .pt2 archive
MOST = 2**27  # bytes that a header may have; safetensors' own limit is of that size


def require_onnx() -> None:
    """Check that ONNX files can be written and read.

    Raises:
        AvptError: the packages for it are not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise AvptError("ONNX needs packages that are not installed: pip install 'avpt[onnx]'") from None


def read_exported(path: Path) -> Header:
    """The header of a `.pt2` or ONNX file.

    Raises:
        ArtifactError: avpt did not write it, or it is damaged.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ArtifactError(f"{path} {what}; an exported model is a file")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                (member,) = (entry for entry in archive.infolist() if entry.filename.endswith(f"/{PT2_MEMBER}"))
                if member.file_size > MOST:
                    raise ValueError
                text = archive.read(member).decode()
        else:
            require_onnx()
            import onnx

            properties = onnx.load(path, load_external_data=False).metadata_props
            text = next(entry.value for entry in properties if entry.key == KEY)
    except AvptError:
        raise
    except Exception:  # zipfile and protobuf raise many kinds of errors
        raise ArtifactError(f"{path} was not exported by avpt, or is damaged") from None
    return parse_header(path, text)


def reuse(path: Path, header: Header, defaults: Mapping[str, Any], overwrite: bool) -> Header | None:
    """The header of an existing export that was made with the same options and inputs; None where it is to be made.

    Raises:
        OutputError: something else is there.
    """
    if not is_there(path):
        return None
    try:
        existing = read_exported(path)
    except ArtifactError as error:
        raise OutputError(f"{error}; remove it or choose another --out") from None
    return existing if is_reused(path, asdict(existing), asdict(header), defaults, overwrite) else None
