"""Which packets of a picture stream need decoding if only the frames at a few instants are wanted.

A packet's stamp tells when its frame is shown, and the stamps around it until when, so which frames will be on screen
is known before they are decoded. Three kinds of packets need no decoding: those before the last key frame that
precedes the first instant; those whose frame is not shown and that no other frame refers to; and those after the last
frame that is shown up to the next key frame.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from av import VideoFrame

from avpt.media.demuxing import ShortCutError
from avpt.media.lengths import CONTAINER_TICK
from avpt.media.streams import Track, decode

LOOKAHEAD = 64  # packets; more than any codec may put between decoding a frame and showing it
SKIPPING = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8"})  # decoders that can skip frames
UNSTAMPED = frozenset({"avi"})  # containers that say when a frame is decoded, but not when it is shown
STAMPED = SKIPPING | {"h263", "libdav1d", "libvpx-vp9", "mjpeg", "vp9"}  # codecs of which each packet shows one frame


def shown_frames(track: Track, instants: Sequence[Fraction], keyframes: bool) -> Iterator[VideoFrame]:
    """The frames on screen at some instants, in seconds and in order, and the first frame after all of them.

    With `keyframes` only key frames count. Raises ShortCutError if stamps are missing, a packet is damaged, or the
    frames are not those that their packets announced.
    """
    codec = track.stream.codec_context
    if codec.name not in STAMPED:
        raise ShortCutError
    plan = _Plan(track, [track.stamp(instant + CONTAINER_TICK) for instant in instants], keyframes)
    latest: int | None = None
    for frame in decode(track, plan.packets()):
        if plan.begun and frame.pts is not None and frame.pts >= plan.begun[0]:
            if not frame.key_frame:
                raise ShortCutError  # only the container calls it a key frame
            plan.begun = [stamp for stamp in plan.begun if stamp > frame.pts]
        if keyframes and not frame.key_frame:
            raise ShortCutError
        if frame.pts not in plan.expected:
            continue
        late = latest is not None and frame.pts <= latest
        if track.damaged or late or frame.pts != min(plan.expected):  # a smaller one is lost
            raise ShortCutError
        if not frame.duration and frame.pts == plan.stamps[-1]:
            raise ShortCutError  # how long the last frame stays follows from the distances between all frames
        plan.expected.remove(frame.pts)
        latest = frame.pts
        yield frame
    if plan.expected or latest is None or track.damaged:
        raise ShortCutError


class _Plan:
    """A window that moves over the packets and decides whether the first one in it is needed."""

    def __init__(self, track: Track, limits: list[int], keyframes: bool) -> None:
        self.track = track
        self.limits = limits  # the last stamp that is on screen at each instant
        self.keyframes = keyframes
        self.expected: set[int] = set()  # stamps of frames that must come out of the decoder
        self.stamps: list[int] = []  # of all packets seen, in order
        self.begun: list[int] = []  # stamps of packets at which the decoder starts and whose frames have not come out
        self.believed = False  # whether the stamps have been checked
        self.window: deque[Any] = deque()  # packets that wait until the stamps around their own are known

    def packets(self) -> Iterator[Any]:
        """The packets to decode, with None where packets were left out and the decoder must restart."""
        codec = self.track.stream.codec_context
        left_out, first = False, True
        tail: bool | None = None  # whether nothing is shown up to the next key frame; None if that must be checked
        for packet in self._from_key_frame():
            needed = not packet.is_discard and self._is_shown(packet.pts)
            if needed or packet.is_keyframe:
                tail = None
            elif tail is None:
                tail = self._tail_is_unseen()
            if not needed and (self.keyframes or tail):
                left_out = True
                continue
            if left_out:
                yield None
            if (left_out or first) and not packet.is_discard:
                self.begun.append(packet.pts)
            left_out = first = False
            if needed:
                self.expected.add(packet.pts)
            skip = "DEFAULT" if needed or codec.name not in SKIPPING else "NONREF"
            if codec.skip_frame != skip:
                codec.skip_frame = skip
            yield packet
            left_out = self.keyframes  # each alone: in open groups, HEVC would show the second before the first

    def _from_key_frame(self) -> Iterator[Any]:
        """The packets from the last key frame before the first instant up to the one after the last instant."""
        limits, stamps, window = self.limits, self.stamps, self.window
        for packet in self.track.packets():
            if packet.pts is None:
                raise ShortCutError
            if self.track.sought and not stamps and not (packet.is_keyframe and packet.pts <= limits[0]):
                raise ShortCutError  # the seek landed too late
            if packet.is_keyframe and packet.pts <= limits[0]:
                window.clear()
                stamps.clear()
            elif self.keyframes and not packet.is_keyframe:
                continue
            window.append(packet)
            if not packet.is_discard:
                insort(stamps, packet.pts)
            if self.keyframes and len(stamps) > 1 and stamps[-1] > limits[-1]:
                break  # key frames are decoded in the order in which they are shown
            if not self.believed and len(window) > LOOKAHEAD:
                self._believe()
            if len(window) > LOOKAHEAD and packet.pts > limits[0]:
                beyond = packet.pts > limits[-1] < min(held.pts for held in window)
                if beyond and not any(map(self._is_shown_packet, window)):
                    return
                yield window.popleft()
        if not self.believed:
            self._believe()
        while window:
            yield window.popleft()

    def _believe(self) -> None:
        """Raise ShortCutError if the stamps say when a frame is decoded, not when it is shown, as in and from AVI."""
        if self.track.stream.codec_context.has_b_frames:
            lags = {held.pts - held.dts for held in self.window if held.dts is not None}
            if len(lags) <= 1 or self.track.stream.container.format.name in UNSTAMPED:
                raise ShortCutError  # reordered frames lag by different times
        self.believed = True

    def _is_shown_packet(self, packet: Any) -> bool:
        return not packet.is_discard and self._is_shown(packet.pts)

    def _is_shown(self, stamp: int) -> bool:
        """Whether a frame is on screen at some instant or follows the last; yes if too few stamps are known to tell."""
        stamps, limits = self.stamps, self.limits
        after = bisect_right(stamps, stamp)
        following = stamps[after] if after < len(stamps) else math.inf
        due = bisect_left(limits, stamp)
        if due == len(limits):
            return after <= 2 or stamps[after - 2] <= limits[-1]
        return limits[due] < following or (after == 1 and limits[0] < stamp)  # the first frame stands in before it

    def _tail_is_unseen(self) -> bool:
        """Whether no frame is shown up to the next key frame, nor one that is decoded after it but shown before it."""
        key: int | None = None
        for packet in self.window:
            if key is not None and packet.pts > key:
                continue
            if key is None and packet.is_keyframe:
                key = packet.pts
            elif self._is_shown_packet(packet):
                return False
        return key is not None
