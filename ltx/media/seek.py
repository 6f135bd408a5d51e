"""Decodes a video file from a keyframe shortly before the first picture that is wanted, if that is exact.

The frames have to be those that decoding from the beginning gives. Hence the first frame of the file is decoded, too,
for what it alone may carry. Then decoding begins one keyframe earlier than needed: what an open group of pictures or a
decoder's delay spoils lies before the frames that are used. Where something is not as expected, `Doubt` is raised, and
the caller decodes from the beginning.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import dropwhile
from operator import attrgetter
from typing import Any

import av
from av.video.frame import PictureType

from .container import frames_of_packets, frames_of_stream, packets_of
from .rgb import matrix_of

APART = 1  # seconds at least between two keyframes that are remembered, so that a file of keyframes alone needs few

# Whose keyframes need nothing from before. Of the others some mark keyframes that are drawn over the picture before.
CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "ffv1", "png"}
LOOK = attrgetter("width", "height", "format.name", "colorspace", "color_range", "color_trc", "color_primaries")


class Doubt(Exception):
    """It is not certain that the frames are those that decoding from the beginning gives."""


@dataclass(frozen=True)
class Key:
    """A keyframe that no packet before it is shown after. time: when it is shown; place: where to seek to; both in the
    stream's ticks. size: of its packet, in bytes."""

    time: int
    place: int
    size: int


@dataclass(frozen=True)
class Keys:
    """Keyframes of a stream in order. zero: when the file's first frame is shown; tick: in seconds."""

    zero: int
    tick: Fraction
    keys: tuple[Key, ...]

    def before(self, seconds: Fraction) -> tuple[Key, Key] | None:
        """The last keyframe at or before a time, counted from the first frame, and the one before it, at which decoding
        begins. None if that is not behind the first one."""
        wanted = self.zero + seconds / self.tick
        number = bisect_right(self.keys, wanted, key=attrgetter("time")) - 1
        return (self.keys[number - 1], self.keys[number]) if number > 1 else None


class KeyFinder:
    """Finds the keyframes of a stream among its packets."""

    def __init__(self, stream: Any) -> None:
        codec = stream.codec_context.codec
        self.known = codec.intra_only or codec.canonical_name in CODECS
        self.apart = APART / Fraction(stream.time_base)
        self.latest: int | None = None
        self.keys: list[Key] = []

    def see(self, packet: Any) -> None:
        """Takes each packet of the stream in the file's order. A time that is missing ends the search."""
        time = packet.pts
        self.known = self.known and time is not None
        if not self.known:
            return
        if self.latest is None or time > self.latest:
            sound = packet.is_keyframe and not packet.is_discard and not packet.is_corrupt
            if sound and (not self.keys or time - self.keys[-1].time >= self.apart):
                self.keys.append(Key(time, time if packet.dts is None else min(time, packet.dts), packet.size))
            self.latest = time


def frames_behind(container: Any, stream: Any, zero: int, pair: tuple[Key, Key]) -> Iterator[Any]:
    """Yields the decoded frames from the second of two keyframes on. zero: as in `Keys`.

    Raises Doubt, also after some frames, which then are right.
    """
    first = next(iter(frames_of_stream(container, stream)), None)
    if first is None or first.pts != zero:
        raise Doubt
    begun, used = pair
    frames = frames_of_packets(_packets(container, stream, begun), _doubt)
    # These are decoded after the keyframe, but may need what is before it.
    frames = dropwhile(lambda frame: frame.pts is not None and frame.pts < begun.time, frames)
    frames, last = _plain(frames), None
    for frame in frames:
        key = begun if last is None else used if frame.pts >= used.time else None
        rises = last is None or frame.pts > last
        if not rises or (key and not _is(frame, key)) or _look(frame) != _look(first):
            raise Doubt
        last = frame.pts
        if key is used:
            yield frame
            yield from frames
            return
    raise Doubt


def _is(frame: Any, key: Key) -> bool:
    """Whether a frame is that keyframe. A picture that is refreshed little by little is marked so, but is not intra."""
    return frame.pts == key.time and frame.key_frame and frame.pict_type == PictureType.I


def _doubt() -> None:
    raise Doubt


def _plain(frames: Iterable[Any]) -> Iterator[Any]:
    """The same frames. How damage looks, and how a frame is deinterlaced, depends on the frames before."""
    for frame in frames:
        if frame.pts is None or frame.is_corrupt or frame.interlaced_frame:
            raise Doubt
        yield frame


def _packets(container: Any, stream: Any, key: Key) -> Iterator[Any]:
    """The packets from that keyframe on."""
    try:
        container.seek(key.place, stream=stream)
    except av.FFmpegError as error:
        raise Doubt from error
    packets = packets_of(container, stream)
    for packet in packets:
        if packet.is_keyframe and packet.pts == key.time and packet.size == key.size:
            yield packet
            yield from packets
            return
        late = packet.is_keyframe and packet.pts is not None and packet.pts > key.time
        if late or packet.has_sidedata("new_extradata"):
            raise Doubt
    raise Doubt


def _look(frame: Any) -> tuple[Any, ...]:
    """What a decoder or a filter may have kept from earlier frames."""
    return *LOOK(frame), matrix_of(frame)
