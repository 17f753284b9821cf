"""Files that `torch.save` wrote, read without running code and without taking more memory than they have bytes."""

from __future__ import annotations

import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from avpt.errors import ArtifactError, listed
from avpt.files.newer_pickles import in_torchs_protocol
from avpt.files.pickles import ZIP, Outline, is_plain_pickle, outline

PICKLE = b"\x80"  # how one begins
KNOWN_AS = {  # how to call what numpy writes
    "numpy.core.multiarray.scalar": "numpy scalar",
    "numpy._core.multiarray.scalar": "numpy scalar",
    "numpy.core.multiarray._reconstruct": "numpy array",
    "numpy._core.multiarray._reconstruct": "numpy array",
    "numpy.core.numeric._frombuffer": "numpy array",
    "numpy._core.numeric._frombuffer": "numpy array",
}


class Foreign:
    """An object of a class that is neither torch's nor Python's own: inert, and all that is kept is the class's name.

    Nothing of that class is imported. This stands in its place while torch reads the file, takes whatever the file
    would give it, and drops it.
    """

    name: ClassVar[str]

    def __new__(cls, *args: Any) -> Foreign:
        """Drop what the object was made of."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Drop what was in the object."""


class ForeignList(list[Any]):
    """An object of such a class that is filled as a list is; torch appends to no other."""

    name: ClassVar[str]

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Drop what was in the object besides its items."""


class ForeignDict:
    """An object of such a class that is filled as a mapping is; torch sets items of few types, of which it is one."""

    name: ClassVar[str]

    def __new__(cls, *args: Any) -> Any:
        """A plain mapping."""
        return OrderedDict()


STAND_INS: dict[str, type] = {"object": Foreign, "list": ForeignList, "dict": ForeignDict}


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, in plain dicts, lists, numbers and tensors."""

    value: Any
    foreign: dict[tuple[str, ...], str] = field(default_factory=dict)  # classes that were not read, by their keys
    networks: dict[str, str] = field(default_factory=dict)  # classes of whole networks among them, by their keys


def is_saved_by_torch(path: Path) -> bool:
    """Whether a file looks like one that `torch.save` wrote, by how it begins and, of a zip file, by what is in it."""
    with path.open("rb") as file:
        beginning = file.read(len(ZIP))
    if beginning != ZIP:
        return beginning.startswith(PICKLE)
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def load_torch(path: Path) -> Any:
    """The value in a file of torch's own types.

    Raises:
        ArtifactError: it is compressed, which `torch.save` never does, and would unpack to more than its size.
        Exception: whatever torch raises for a file that it can't read.
    """
    import torch

    check_size(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old pickle protocols
        return torch.load(path, map_location="cpu", weights_only=True)


def check_size(path: Path) -> None:
    """Check that a file is not compressed.

    Raises:
        ArtifactError: it is, which `torch.save` never does, and would unpack to more than its size; or TorchScript
            wrote it.
    """
    with path.open("rb") as file:
        zipped = file.read(len(ZIP)) == ZIP
    if not zipped:
        return
    with zipfile.ZipFile(path) as archive:
        whole, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
        scripted = any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())
    if scripted:
        raise ArtifactError(f"{path} is a TorchScript archive, which holds code; save the state_dict() of its network")
    if whole > size:
        raise ArtifactError(
            f"{path} is compressed, {whole >> 20} MiB in a file of {size >> 20}, as torch.save writes none; "
            "save the state_dict() again"
        )


def load_checkpoint(path: Path) -> Checkpoint:
    """The value in anybody's checkpoint, inert objects in place of those of classes that torch does not allow.

    Raises:
        ArtifactError: it is compressed, not torch's, a whole network, names what pickles run code with, or holds
            something where torch reads nothing safely.
        Exception: whatever torch raises for a file that it can't read.
    """
    check_size(path)
    seen = outline(path)
    if seen is None and is_plain_pickle(path):
        raise ArtifactError(
            f"{path} was written by pickle, not by torch.save, and can't be read without running code; where you trust "
            f"it, in Python: torch.save(pickle.load(open({str(path)!r}, 'rb')), 'weights.pt')"
        )
    if seen is None:
        return Checkpoint(_plain(load_torch(path), {}))
    networks = seen.networks()
    if "" in networks:
        raise ArtifactError(f"{path} is a whole network ({networks['']}), which is code; save its state_dict() alone")
    if wrong := seen.running_code():
        places = [f"{name} at {key}" if key else name for name, key in wrong.items()]
        raise ArtifactError(
            f"{path} is refused: its pickle names {listed(places)}, with which code is run, and it is no weights; "
            "where you trust it, save its state_dict() alone"
        )
    kinds = seen.kinds()
    stand_ins = {name: type("Foreign", (STAND_INS[kind],), {"name": name}) for name, kind in kinds.items()}
    try:
        with in_torchs_protocol(path, seen.protocol) as file, _only(stand_ins):
            value = load_torch(file)
    except ArtifactError:
        raise
    except Exception:
        if held := _unreadable(seen):
            raise ArtifactError(
                f"{path} holds {listed(held)}, which torch can't read without running code; "
                "save a state_dict() of plain tensors"
            ) from None
        raise
    foreign: dict[tuple[str, ...], str] = {}
    return Checkpoint(_plain(value, foreign), foreign, networks)


@contextmanager
def _only(stand_ins: dict[str, type]) -> Iterator[None]:
    """Let torch's reader know these, and none of the classes that somebody in this process has called safe."""
    from torch import serialization

    others = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    serialization.add_safe_globals([(one, name) for name, one in stand_ins.items()])
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(others)


def _unreadable(seen: Outline) -> list[str]:
    """What a file holds that torch does not read by itself, by class and key."""
    names = {name for name in seen.classes if not name.startswith(("torch._utils.", "torch.nn.parameter.", "_codecs."))}
    names -= {name for name in names if name.startswith("torch.") and name.count(".") == 1}  # types, storages
    names -= {"collections.OrderedDict", "torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2"}
    places: dict[str, str] = {}
    for keys, value in seen.places():
        if value.name in names:
            places.setdefault(KNOWN_AS.get(value.name, value.name), ".".join(keys))
    return [f"{name} at {key}" if key else name for name, key in places.items()]


def _plain(root: Any, foreign: dict[tuple[str, ...], str]) -> Any:
    """A value in plain dicts and lists, its tensors without attributes; foreign objects are noted by their keys.

    A file may set any attribute of an OrderedDict or of a tensor, in place of its methods: none is asked for here.
    """
    import torch

    made: dict[int, Any] = {}  # a mapping may hold itself
    waiting: list[tuple[Any, Any, tuple[str, ...]]] = []

    def convert(value: Any, keys: tuple[str, ...]) -> Any:
        if id(value) in made:
            return made[id(value)]
        kind = value if isinstance(value, type) else type(value)
        if issubclass(kind, Foreign | ForeignList | ForeignDict):
            foreign.setdefault(keys, KNOWN_AS.get(kind.name, kind.name))
            return None
        if isinstance(value, torch.Tensor):
            return torch.Tensor.detach(value)
        if isinstance(value, dict | list | tuple):
            made[id(value)] = {} if isinstance(value, dict) else []
            waiting.append((made[id(value)], value, keys))
            return made[id(value)]
        return value

    result = convert(root, ())
    while waiting:
        into, value, keys = waiting.pop()
        if isinstance(value, dict):
            pairs = OrderedDict.items(value) if isinstance(value, OrderedDict) else dict.items(value)
            into.update((key, convert(one, (*keys, key) if isinstance(key, str) else keys)) for key, one in pairs)
        else:
            into.extend(convert(one, keys) for one in value)
    return result
