"""What a pickle would build, told from its opcodes alone: nothing that it names is imported, looked up or called."""

from __future__ import annotations

import pickle
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

ZIP = b"PK\x03\x04"
LEGACY_HEAD = 3  # pickles before the one that matters in torch's older format: a magic number, a version, the system
MAGIC = 0x1950A86A20F9469CFC6C  # that number
PROTOCOL = 2  # what torch.save writes where nobody asks for another, and all that torch reads without running code

# Where pickles that run code find it. Nothing of them would run here; but who names them means no weights.
RUNS_CODE = (
    *("os", "posix", "nt", "sys", "subprocess", "runpy", "importlib", "imp", "zipimport", "pkgutil", "socket", "ssl"),
    *("pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "shutil", "pty", "ctypes", "commands"),
    *("code", "codeop", "types", "inspect", "linecache", "site", "sysconfig", "pip", "venv", "ensurepip", "io", "_io"),
    *("asyncio", "multiprocessing", "threading", "_thread", "signal", "atexit", "faulthandler", "tempfile", "builtins"),
    *("urllib", "http", "httplib", "ftplib", "requests", "aiohttp", "smtplib", "telnetlib", "webbrowser", "pydoc"),
    *("pdb", "bdb", "cProfile", "profile", "timeit", "trace", "doctest"),
)
RUNS_CODE_NAMES = (
    *("operator.attrgetter", "operator.itemgetter", "operator.methodcaller", "torch.load", "torch.serialization.load"),
    *("torch.hub.", "torch.jit.", "torch.utils.cpp_extension.", "torch._inductor.", "torch._dynamo.", "torch.package."),
    *("torch.ops.", "torch.classes.", "numpy.testing.", "numpy.f2py.", "pathlib.Path.", "pathlib.PosixPath."),
    *("pathlib._local.Path.", "pathlib._local.PosixPath."),
)
HARMLESS = frozenset(  # of builtins and of io
    "builtins." + name
    for name in (
        *("bool", "bytearray", "bytes", "complex", "dict", "Ellipsis", "float", "frozenset", "int", "list", "NoneType"),
        *("NotImplemented", "object", "range", "set", "slice", "str", "tuple"),
    )
) | {"io.BytesIO", "io.StringIO", "_io.BytesIO", "_io.StringIO", "types.SimpleNamespace"}


class Named:
    """Stands for whatever a pickle makes of something that it names, and keeps what the pickle does to it."""

    name: ClassVar[str]
    args: tuple[Any, ...]
    items: list[Any]  # appended, as to a list
    pairs: list[tuple[Any, Any]]  # set, as in a mapping
    state: Any

    def __new__(cls, *args: Any, **options: Any) -> Named:
        """Take anything."""
        new = super().__new__(cls)
        new.args, new.items, new.pairs, new.state = (*args, *options.values()), [], [], None
        return new

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any) -> Named:
        """Stand for what it would give: a pickle may call what it has made."""
        return type(self)(self, *args)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs.append((key, value))

    def append(self, item: Any) -> None:
        """Keep what a list would take."""
        self.items.append(item)

    add = append  # what a set would take

    def extend(self, items: list[Any]) -> None:
        """Keep what a list would take."""
        self.items += items

    def is_network(self) -> bool:
        """Whether this was an `nn.Module`: its state has the dictionaries of one."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()


@dataclass(frozen=True)
class Outline:
    """What a pickle holds, with `Named` for everything that it names."""

    root: Any
    classes: dict[str, type[Named]] = field(default_factory=dict)  # by the full name
    protocol: int = PROTOCOL

    def places(self) -> Iterator[tuple[tuple[str, ...], Named | type[Named]]]:
        """Every `Named`, or its class where the pickle holds that itself, with the keys that lead to it."""
        seen: set[int] = set()
        waiting: list[tuple[tuple[str, ...], Any]] = [((), self.root)]
        while waiting:
            keys, value = waiting.pop()
            if id(value) in seen:  # a list may hold itself, or another a million times
                continue
            seen.add(id(value))
            inner: list[tuple[Any, Any]] = []
            if isinstance(value, dict):
                inner = list(value.items())
            elif isinstance(value, list | tuple | set | frozenset):
                inner = [("", item) for item in value]
            elif isinstance(value, Named):
                yield keys, value
                inner = [*value.pairs, *(("", item) for item in (*value.items, *value.args, type(value), value.state))]
            elif isinstance(value, type):
                yield keys, value
            waiting += [((*keys, key) if isinstance(key, str) and key else keys, one) for key, one in reversed(inner)]

    def kinds(self) -> dict[str, str]:
        """How the objects of each name are filled: as a `dict`, as a `list`, or not at all (`object`)."""
        kinds = dict.fromkeys(self.classes, "object")
        for _, value in self.places():
            if isinstance(value, Named) and (value.pairs or value.items):
                kinds[value.name] = "dict" if value.pairs else "list"
        return kinds

    def running_code(self) -> dict[str, str]:
        """The names with which pickles run code, each with the key below which it stands (empty: it can't be told)."""
        wrong = {name: "" for name in self.classes if runs_code(name)}
        for keys, value in self.places():
            if wrong.get(value.name) == "":
                wrong[value.name] = ".".join(keys)
        return wrong

    def networks(self) -> dict[str, str]:
        """The classes of whole networks, by the key of the outermost (empty: the file itself is one)."""
        inside: dict[str, str] = {}
        for keys, value in self.places():
            outer = (".".join(keys[:length]) for length in range(len(keys) + 1))
            if isinstance(value, Named) and value.is_network() and not any(one in inside for one in outer):
                inside[".".join(keys)] = value.name
        return inside


def runs_code(name: str) -> bool:
    """Whether something of this full name is what pickles run code with."""
    if name in HARMLESS:
        return False
    return name.partition(".")[0] in RUNS_CODE or name.startswith(RUNS_CODE_NAMES)


class _Reader:
    """A file from which no more is asked for than is left: a pickle may claim to hold a string of exabytes."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        if count > self.size:
            raise EOFError
        return self.file.read(count)

    def readline(self) -> bytes:
        return self.file.readline(self.size)


class Unpickler(pickle._Unpickler):
    """Python's own, to which every name is an inert class: there is nothing else that it could call.

    The one in C would set aside as many places in memory as the file asks for.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(_Reader(file, size))
        self.classes: dict[str, type[Named]] = {}
        self.proto = 0  # until the pickle says

    def find_class(self, module: str, name: str, /) -> type[Named]:
        """An inert class in place of the one that is named; the names of Python 2 become those of Python 3."""
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        full = f"{IMPORT_MAPPING.get(module, module)}.{name}"
        return self.classes.setdefault(full, type("Named", (Named,), {"name": full}))

    def get_extension(self, code: int) -> Any:
        """Refuse names by number: they are looked up in a table of the process."""
        raise pickle.UnpicklingError(f"extension {code}")

    def persistent_load(self, pid: Any, /) -> Any:
        """What torch keeps outside the pickle: storages, and in its older format the classes of networks."""
        is_class = isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module"
        return pid[1] if is_class else None


def outline(path: Path) -> Outline | None:
    """The outline of a file that `torch.save` wrote, in either format; None where it is not readable as one."""
    try:
        with path.open("rb") as file:
            zipped = file.read(len(ZIP)) == ZIP
        if zipped:
            with zipfile.ZipFile(path) as archive:
                (entry,) = (one for one in archive.infolist() if one.filename.endswith("/data.pkl"))
                with archive.open(entry) as inside:
                    return _read(inside, entry.file_size, skip=0)
        with path.open("rb") as file:
            return _read(file, path.stat().st_size, skip=LEGACY_HEAD)
    except Exception:  # whatever a damaged pickle raises; torch, which reads it next, says what is wrong
        return None


def _read(file: IO[bytes], size: int, skip: int) -> Outline:
    for _ in range(skip):
        Unpickler(file, size).load()
    unpickler = Unpickler(file, size)
    return Outline(unpickler.load(), unpickler.classes, unpickler.proto)


def is_plain_pickle(path: Path) -> bool:
    """Whether a file is a pickle that `torch.save` did not write, which begins with a number of its own."""
    with path.open("rb") as file:
        try:
            return bool(Unpickler(file, path.stat().st_size).load() != MAGIC)
        except Exception:  # whatever a damaged pickle raises, and any other file
            return False
