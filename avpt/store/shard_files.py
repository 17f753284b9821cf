"""Values of a clip, read straight from the files of its shards.

The datasets of a shard are contiguous. HDF5 is asked once where they begin, when the index of the store is read: going
through it for every value would take longer than decoding the pictures. Reading by position needs no lock and no state,
so open files survive a fork.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from avpt.errors import StoreError
from avpt.machine.processes import open_file_limit

Values = Literal["audio/fbank", "visual/clip_offset", "visual/byte_offset", "visual/bytes", "visual/size"]

DTYPES: dict[Values, str] = {
    "audio/fbank": "float16",  # or float32, by the store's settings
    "visual/clip_offset": "int64",
    "visual/byte_offset": "int64",
    "visual/bytes": "uint8",
    "visual/size": "int32",
}


class ShardFiles:
    """The shards of a split; files are opened on first read, and the least recently read is closed if many are open."""

    def __init__(self, paths: Sequence[Path], audio_dtype: str, fbank_shape: tuple[int, int]) -> None:
        self.paths, self.fbank_shape = paths, fbank_shape  # (frames, mel) of each spectrogram
        self.dtypes = {name: np.dtype(dtype) for name, dtype in (DTYPES | {"audio/fbank": audio_dtype}).items()}
        # where a shard's values begin in its file, and how many there are: filled in by `locate`
        self.places = {name: np.zeros((len(paths), 2), np.int64) for name in DTYPES}
        self._open: dict[int, FileIO] = {}  # by shard, the most recently read last
        self._most_open = 0  # not yet known

    def __len__(self) -> int:
        return len(self.paths)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def locate(self, shard: int, datasets: Mapping[str, h5py.Dataset]) -> None:
        """Record where the values of an open shard are; `inspect_layout` must have accepted it."""
        for name in self.dtypes:
            dataset = datasets[name]
            self.places[name][shard] = (dataset.id.get_offset() or 0, dataset.size)  # an empty one has no offset

    def read(self, shard: int, name: Values, start: int, count: int) -> np.ndarray[Any, Any]:
        """Read (count,) values of one kind, flattened, from number `start` on.

        Raises:
            StoreError: they lie outside the shard, or can't be read.
        """
        place, size = self.places[name][shard].tolist()
        if not 0 <= start <= start + count <= size:
            raise StoreError(f"{self.paths[shard]} points outside its own {name}; look at it with `avpt verify`")
        values = np.empty(count, self.dtypes[name])
        rest, place = values.data.cast("B"), place + start * values.itemsize
        try:
            while rest:  # network file systems may give less than asked for
                got = os.preadv(self._file(shard), [rest], place)
                if not got:
                    raise StoreError(f"{self.paths[shard]} is truncated; remove it and run its `avpt preprocess` again")
                rest, place = rest[got:], place + got
        except OSError as error:
            raise StoreError(f"{self.paths[shard]} can't be read ({os.strerror(error.errno or 0)})") from None
        return values

    def _file(self, shard: int) -> int:
        file = self._open.pop(shard, None)
        if file is None:
            self._most_open = self._most_open or open_file_limit() // 2
            if len(self._open) >= self._most_open:
                self._open.pop(next(iter(self._open))).close()
            file = FileIO(self.paths[shard])
        self._open[shard] = file
        return file.fileno()
