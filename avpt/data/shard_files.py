"""Values of a clip, read straight from the files of its shards.

The datasets of a shard are contiguous. Where they begin is asked of HDF5 once, with the index of the store: to go
through it for every value takes longer than to decode the pictures. Reading by position needs no lock and no state, so
open files survive a fork.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from avpt.errors import StoreError

Values = Literal["audio/fbank", "visual/clip_offset", "visual/byte_offset", "visual/bytes", "visual/size"]

DTYPES: dict[Values, str] = {
    "audio/fbank": "float16",  # or as the store says
    "visual/clip_offset": "int64",
    "visual/byte_offset": "int64",
    "visual/bytes": "uint8",
    "visual/size": "int32",
}
OPEN_FILES = 64  # a data set has thousands of shards, a process may open about one thousand files


class ShardFiles:
    """The shards of a split; each file is opened on first read, and of many the one read longest ago is closed."""

    def __init__(self, paths: Sequence[Path], audio_dtype: str) -> None:
        self.paths = paths
        self.dtypes = {name: np.dtype(dtype) for name, dtype in (DTYPES | {"audio/fbank": audio_dtype}).items()}
        # where a shard's values begin in its file, and how many there are: filled in by `locate`
        self.places = {name: np.zeros((len(paths), 2), np.int64) for name in DTYPES}
        self._open: dict[int, int] = {}  # shard -> file descriptor, the one read last at the end

    def __len__(self) -> int:
        return len(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def __del__(self) -> None:
        for file in self._open.values():
            os.close(file)

    def locate(self, shard: int, file: h5py.File) -> None:
        """Note where the values of an open shard are.

        Raises:
            StoreError: they are missing, of another type, or not contiguous; avpt writes no such shard.
        """
        for name, dtype in self.dtypes.items():
            dataset = file.get(name)
            sound = isinstance(dataset, h5py.Dataset) and dataset.dtype == dtype
            place = dataset.id.get_offset() if sound else None
            if not sound or (place is None and dataset.size):
                where = f"{self.paths[shard]} has no {name} as avpt writes it"
                raise StoreError(f"{where}; remove it and run its `avpt preprocess` again")
            self.places[name][shard] = (place or 0, dataset.size)  # an empty one is nowhere

    def read(self, shard: int, name: Values, start: int, count: int) -> np.ndarray[Any, Any]:
        """(count,) values of one kind, taken as flat, from number `start` on.

        Raises:
            StoreError: they are not there, or can't be read.
        """
        place, size = self.places[name][shard].tolist()
        if not 0 <= start <= start + count <= size:
            raise StoreError(f"{self.paths[shard]} points outside its own {name}; look at it with `avpt verify`")
        values = np.empty(count, self.dtypes[name])
        try:
            got = os.preadv(self._file(shard), [values.data], place + start * values.itemsize)
        except OSError as error:
            raise StoreError(f"{self.paths[shard]} can't be read ({os.strerror(error.errno or 0)})") from None
        if got != values.nbytes:
            raise StoreError(f"{self.paths[shard]} is truncated; remove it and run its `avpt preprocess` again")
        return values

    def _file(self, shard: int) -> int:
        file = self._open.pop(shard, None)
        if file is None:
            if len(self._open) >= OPEN_FILES:
                os.close(self._open.pop(next(iter(self._open))))
            file = os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        self._open[shard] = file
        return file
