"""The packets of some streams of a file that is read once, and the error that ends a quick read."""

from __future__ import annotations

import errno
from collections import deque
from typing import Any, cast

from av.container import InputContainer
from av.error import EOFError as EndOfFile
from av.error import FFmpegError
from av.stream import Stream

from avpt.errors import MediaError
from avpt.media.opening import reason

MAX_WAITING = 100_000_000  # bytes of one stream's packets that are kept while the other is read
UNREADABLE = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO})  # the disk's fault, not the file's


class ShortCutError(Exception):
    """A quick read may not be right here; the caller falls back to the plain read."""


class Demuxer:
    """Reads a file once and deals out the packets of some of its streams; those not yet asked for wait in a queue."""

    def __init__(self, container: InputContainer, streams: list[Stream]) -> None:
        self.source = container.demux(*cast(Any, streams))
        self.waiting: dict[int, deque[Any]] = {stream.index: deque() for stream in streams}
        self.held = 0  # bytes in the queues
        self.exhausted = False
        self.broken = ""  # why the file could not be read to its end

    def next(self, index: int) -> Any:
        """The next packet of a stream; None at its end."""
        mine = self.waiting[index]
        while not mine and not self.exhausted:
            self._pull()
        if not mine:
            return None
        packet = mine.popleft()
        self.held -= packet.size
        return packet

    def drop(self, index: int) -> None:
        """Discard a stream's packets from now on."""
        self.held -= sum(packet.size for packet in self.waiting.pop(index, ()))

    def _pull(self) -> None:
        try:
            packet = next(self.source)
        except MemoryError:
            raise
        except (StopIteration, FFmpegError) as error:
            if getattr(error, "errno", None) in UNREADABLE:
                raise MediaError("open", f"the file can't be read to its end: {reason(error)}") from error
            if isinstance(error, FFmpegError) and not isinstance(error, EndOfFile):
                self.broken = reason(error)
            self.exhausted = True
            return
        queue = self.waiting.get(packet.stream_index)
        if packet.size and queue is not None:  # FFmpeg takes an empty packet for an error or, worse, for the end
            queue.append(packet)
            self.held += packet.size
            if self.held > MAX_WAITING:
                raise ShortCutError
