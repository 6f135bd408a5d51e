"""Reads the pictures of a clip, a video file or a batch of images, at the times of another frame rate.

Time 0 is the clip's first picture. Frames are decoded one after the other as they are asked for, so that memory does
not grow with the clip; seek.py begins shortly before the first one that is asked for. rgb.py makes pictures of decoded
frames, and images.py fits them to a stage's size; audio.py reads the sound.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol

import av
import torch
from torch import Tensor

from ..errors import InputError
from .audio import LONGEST, Track, load_track
from .broken import is_broken
from .container import (
    COARSEST,
    MISSING,
    REORDERED,
    USUAL_RATE,
    frames_of_stream,
    is_held,
    is_matroska,
    is_raw,
    is_still,
    mean_rate,
    open_media,
    packets_of,
    picture_stream,
    sound_stream,
    told_rate,
    told_time,
    untold_start,
    unwrapped,
)
from .images import check_size, flat, load_image, moves
from .promised import ends_early
from .rgb import Deinterlacer, Developer, joined, matrix_of, of_fields
from .seek import Doubt, Key, KeyFinder, Keys, frames_behind

EXAMPLE = "MP4"  # a format to export to, for messages
EITHER = "MP4 or PNG"  # where a picture may be given, too
SUMS = "apng"  # FFmpeg's name of the format whose times are sums of lengths, each of them rounded to ticks
LAPSE = Fraction(6, 5) * MISSING  # seconds without a picture; a picture that is shown so long is none that is lost
STEADY = {"theora", "mpeg1video", "mpeg2video", "dvvideo"}
"""FFmpeg's names of the codecs whose pictures come at one rate, so that each has its place in the file."""
DAMAGED = "damaged parts of it were left out"
SILENCE = 48_000  # Hz, of a clip without sound


class Clip(Protocol):
    """A clip that pictures are read from.

    name: for messages; width, height: of the pictures; fps: the usual frame rate, exact; seconds: from the first
    picture to the end of the last one; notes: for the report.
    """

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def fps(self) -> Fraction: ...

    @property
    def seconds(self) -> Fraction: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def count(self, fps: Fraction) -> int:
        """How many frames the clip has at a frame rate, at least 1."""

    def pictures(
        self, fps: Fraction, frames: int, start: Fraction = Fraction(0), note: Callable[[str], None] | None = None
    ) -> Iterator[Tensor]:
        """Yields so many pictures, uint8 [height, width, 3], for the times start + k / fps.

        Each is the last one that begins at or before its time; after the end, the last picture is held. One that is
        held is the same tensor. note: is called with a sentence for the report when something damaged is met.
        """


@dataclass(frozen=True)
class FileClip:
    """A video file, as `Clip`. slack: the seconds by which a time may be late because the file rounds it to ticks; the
    first picture's time is rounded, too. keys: where decoding can begin; None if only at the beginning is certain.
    begin: when the first picture is shown, in seconds, if the file does not tell its time."""

    path: Path
    name: str
    width: int
    height: int
    fps: Fraction
    seconds: Fraction
    slack: Fraction
    notes: tuple[str, ...] = ()
    keys: Keys | None = field(default=None, repr=False)
    begin: Fraction | None = None

    def count(self, fps: Fraction) -> int:
        rounded = min(self.slack * 3 / 2, 1 / self.fps / 2)  # the last picture's length is rounded, too
        return max(1, math.ceil((self.seconds - rounded) * Fraction(fps)))

    def pictures(
        self, fps: Fraction, frames: int, start: Fraction = Fraction(0), note: Callable[[str], None] | None = None
    ) -> Iterator[Tensor]:
        done, pair = 0, self.keys.before(start) if self.keys else None
        if pair:
            try:
                for picture in self._read(fps, frames, start, note, pair):
                    yield picture
                    done += 1
                return
            except Doubt:  # what was yielded is right
                pass
        yield from self._read(fps, frames - done, start + done / Fraction(fps), note)

    def _read(
        self,
        fps: Fraction,
        frames: int,
        start: Fraction,
        note: Callable[[str], None] | None,
        pair: tuple[Key, Key] | None = None,
    ) -> Iterator[Tensor]:
        """Yields the pictures, decoded from the beginning or from a pair of keyframes on. Raises Doubt with these."""
        with open_media(self.path, EXAMPLE) as container:
            stream = picture_stream(container)
            if stream is None:
                raise InputError(f"{self.name}: has changed since it was opened; start again.")
            stream.thread_type = "AUTO"
            develop = Developer(self.name, _aspect(stream))
            damaged = f"{self.name}: {DAMAGED}" in self.notes

            def left_out() -> None:
                nonlocal damaged
                if note and not damaged:  # at once: whoever has enough pictures does not ask for an end
                    note(f"{self.name}: {DAMAGED}")
                damaged = True

            if pair:
                decoded, zero = frames_behind(container, stream, self.keys.zero, pair), self.keys.zero * self.keys.tick
            else:
                decoded, zero = frames_of_stream(container, stream, left_out), None
            timed = _timed(joined(decoded, stream), stream, self.fps, self.begin, zero)
            timed = ((time, develop.settled(frame)) for time, frame in timed)
            shown, picture = None, None
            for frame in _chosen(timed, fps, frames, start, self.slack):
                if frame is not shown:
                    shown, picture = frame, torch.from_numpy(develop(frame))
                yield picture
            if shown is None:
                raise InputError(f"{self.name}: no picture could be decoded; it is damaged: export it again.")


@dataclass(frozen=True, eq=False)
class ImageClip:
    """A batch of images, as `Clip`. images: ComfyUI's, float [F, H, W, 1 to 4] in 0..1 or bytes, one each 1 / fps."""

    images: Tensor
    fps: Fraction
    name: str = "images"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[3] not in (1, 2, 3, 4) or not self.images.numel():
            raise InputError(
                f"{self.name}: their shape is {list(self.images.shape)}; [frames, height, width, 3] is needed."
            )
        check_size(self.name, self.width, self.height)

    @property
    def width(self) -> int:
        return self.images.shape[2]

    @property
    def height(self) -> int:
        return self.images.shape[1]

    @property
    def seconds(self) -> Fraction:
        return len(self.images) / self.fps

    def count(self, fps: Fraction) -> int:
        return max(1, math.ceil(self.seconds * Fraction(fps)))

    def pictures(
        self, fps: Fraction, frames: int, start: Fraction = Fraction(0), note: Callable[[str], None] | None = None
    ) -> Iterator[Tensor]:
        shown, picture = None, None
        for number in range(frames):
            at = math.floor((start + number / Fraction(fps)) * self.fps)
            at = min(max(at, 0), len(self.images) - 1)
            if at != shown:
                shown, picture = at, flat(self.images[at]).mul(255).round().to("cpu", torch.uint8)
            yield picture


def open_clip(path: str | Path, example: str = EXAMPLE) -> FileClip:
    """Opens a video file of any kind and reads its facts: its first picture is decoded, and its packets are counted.

    example: the format that the message about another file proposes. Raises InputError, which names the file, if it has
    no moving picture, is too large or cannot be read.
    """
    path = Path(path)
    name = path.name or str(path)
    with open_media(path, example) as container:
        stream, still = picture_stream(container), is_still(container)
        if stream is None:
            raise InputError(f"{name}: has no moving picture; choose a video.")
        if stream.codec_context is None:
            if still:
                raise InputError(f"{name}: its picture format is not supported; save it as PNG or JPEG.")
            raise InputError(f"{name}: its video codec is not supported; convert it, for example to MP4 with H.264.")
        check_size(name, stream.codec_context.width, stream.codec_context.height)
        aspect = _aspect(stream)
        frame = next(joined(frames_of_stream(container, stream), stream), None)
        if frame is None:
            why, example = "it is damaged or empty", "PNG" if still else EXAMPLE
            if stream.codec_context.name == "webp":
                why, example = "animated WebP is not read", EXAMPLE
            raise InputError(f"{name}: no picture could be decoded; {why}: export it again, for example as {example}.")
        develop = Developer(name, aspect)
        height, width = develop(frame).shape[:2]
        notes = [*_said_of(frame, aspect), *develop.notes]
        if ("alpha_mode", "1") in ((key.lower(), value) for key, value in stream.metadata.items()):
            # VP8 and VP9 keep the opacity beside the stream that is decoded.
            notes.append("its transparency is not read, and what is under it is seen: convert it to ProRes 4444")
        tick, format_ = Fraction(stream.time_base), container.format.name
        raw, first, fields = is_raw(stream), told_time(frame, stream), of_fields(frame, stream)
    first, begin = (None, None) if raw else (first, untold_start(path, EXAMPLE) if first is None else None)
    with open_media(path, EXAMPLE) as container:
        found = _packets(container, picture_stream(container), fields)
        with path.open("rb") as file:
            broken, early = is_broken(file), ends_early(file)
    fps, missing = found.fps, found.missing
    seconds = max(found.end - (begin or (first or 0) * tick), 1 / fps)
    if missing > max(MISSING, 2 / fps) and not (broken and format_ == "avi"):  # without times, the end is early
        notes.append(f"it is cut short: its last {float(missing):.1f} s are missing")
    elif early:
        notes.append("it is cut short or damaged: its end is not read")
    if broken or found.damaged:
        notes.append(DAMAGED)
    elif found.hole:
        since, until = (each - float(begin or (first or 0) * tick) for each in found.hole)
        notes.append(f"it has neither picture nor sound from {since:.1f} s to {until:.1f} s: they may be lost")
    if (back := found.back / fps) > MISSING:
        notes.append(f"its times go back, so {float(back):.1f} s of it are not seen: export it again as {EXAMPLE}")
    if seconds > LONGEST:
        notes.append(f"it is longer than {LONGEST // 60} minutes, of which only the first are read")
        seconds = Fraction(LONGEST)
    late = tick * max(1, Fraction(found.count, 2)) if format_ == SUMS else tick
    slack = min(late, 1 / fps / 2) if tick <= COARSEST else Fraction(0)
    notes = tuple(f"{name}: {note}" for note in notes)
    known = None if first is None else Keys(first, tick, found.keys)
    return FileClip(path, name, width, height, fps, seconds, slack, notes, known, begin)


def open_reference(path: str | Path) -> Clip:
    """Opens a video file as `open_clip`, and a still picture as images.py reads it: upright, in sRGB, transparent parts
    black. Raises InputError, which names the file."""
    if moves(path):
        return open_clip(path, EITHER)
    return ImageClip(load_image(path)[None], USUAL_RATE, Path(path).name)


def clip_track(path: str | Path) -> Track | None:
    """The clip's own sound from its first picture on, unchanged: silence where it begins later. None without sound."""
    return None if is_silent(path) else load_track(path, most=LONGEST, spare=True, cut=True)


def is_sound(path: str | Path) -> bool:
    """Whether a file has sound and no moving picture; a cover is none. Raises InputError as `is_silent`."""
    if not moves(path):
        return False
    with open_media(Path(path), EITHER) as container:
        return picture_stream(container) is None and sound_stream(container) is not None


def is_silent(path: str | Path) -> bool:
    """Whether a file has no sound: no stream of it, or an empty one, as recorders write without a microphone. Raises
    InputError, which names the file, if it cannot be read."""
    with open_media(Path(path), EXAMPLE) as container:
        stream = sound_stream(container)
        return stream is None or not any(packet.size for packet in packets_of(container, stream))


def silent_track(clip: Clip) -> Track:
    """Silence of the clip's length, for one that has no sound."""
    return Track(torch.zeros(2, math.ceil(clip.seconds * SILENCE)), SILENCE)


def sampled(pictures: Iterable[Tensor], factor: int) -> Iterator[Tensor]:
    """Of pictures [H, W, 3] those with the numbers 0, 1, 1 + factor, 1 + 2·factor, …: a reference of which each latent
    but the first stands for 8·factor frames of the video, as ltx-pipelines 1.2 takes them."""
    pictures = iter(pictures)
    yield from islice(pictures, 1)
    yield from islice(pictures, 0, None, factor)


def sampled_frames(frames: int, factor: int) -> int:
    """How many of so many frames `sampled` yields."""
    return min(frames, 1) + max(0, math.ceil((frames - 1) / factor))


def _aspect(stream: Any) -> Fraction | None:
    """Width / height of a pixel; None if they are square or the file does not tell."""
    aspect = stream.sample_aspect_ratio
    return Fraction(aspect) if aspect else None


def _length(item: Any, stream: Any, rate: Fraction) -> Fraction:
    """The seconds that a picture of a raw stream, as a packet or a frame, is shown: in two fields at that rate, or in
    more of them, as films for television are. A packet may hold one field alone; a frame has both."""
    fields = round((item.duration or 0) * Fraction(stream.time_base) * rate * 2)
    alone = fields == 1 and isinstance(item, av.Packet) and stream.codec_context.name in ("h264", "hevc")
    return Fraction(1 if alone else max(2, fields), 2) / rate


def _said_of(frame: Any, aspect: Fraction | None) -> Iterator[str]:
    """What the report says about a file with such frames."""
    if frame.interlaced_frame:
        yield "it is interlaced, and was deinterlaced"
    if matrix_of(frame) != (1, 0, 0, 1):
        yield "it was turned upright"
    if aspect is not None and aspect != 1:
        yield f"its pixels are not square ({aspect.numerator}:{aspect.denominator}), and it was scaled"


@dataclass(frozen=True)
class _Packets:
    """What the packets of a file tell. fps: its usual frame rate; count: of its pictures; back: of those with times
    before those of pictures that come earlier; end: of the last one in seconds; missing: how much earlier than its
    header tells the whole file ends; keys: the keyframes; damaged: whether pictures in its middle are damaged or lost;
    hole: where it has neither pictures nor sound for a time, from and until, in seconds."""

    fps: Fraction
    count: int
    back: int
    end: Fraction
    missing: Fraction
    keys: tuple[Key, ...]
    damaged: bool
    hole: tuple[float, float] | None


def _packets(container: Any, stream: Any, fields: bool) -> _Packets:
    """Reads the packets of a file whose picture is that stream. fields: whether each packet is half a picture."""
    finder, told = KeyFinder(stream), told_rate(stream)
    told = told / 2 if told and fields else told
    ends, raw = {stream.index: Fraction(0)}, is_raw(stream)
    begun: list[Fraction] = []  # the times of the first and of the last picture
    count = back = untold = 0
    bare: Fraction | None = None  # the last picture that has no length
    near = max(Fraction(1), REORDERED / (told or USUAL_RATE))
    corrupt = False
    shown, heard = array("d"), array("d")  # the times of pictures, and the begin and end of each packet of sound
    played = [each for each in container.streams if each.type in ("video", "audio") and each.time_base]
    for packet in packets_of(container, *played):
        index, shows = packet.stream_index, packet.stream_index == stream.index
        if shows and packet.size and not raw:
            finder.see(packet)
        if not (packet.size or is_held(packet)) or packet.is_discard:
            continue
        time = told_time(packet, stream)
        count += shows
        corrupt |= shows and packet.is_corrupt
        if raw and shows:
            ends[index] += _length(packet, stream, told or USUAL_RATE)
        if time is None or raw:
            untold += shows
            continue
        time *= Fraction(packet.time_base)
        if shows:
            shown.append(time)
            begun = [min(time, begun[0]), max(time, begun[1])] if begun else [time, time]
            back += time < begun[1] - near
        # FFmpeg takes it from the rate, and that may be the rate of whole pictures.
        length = packet.duration if (told and not fields) or not shows else None
        if shows and not length:
            bare = time if bare is None else max(bare, time)
        end = time + (length or 0) * Fraction(packet.time_base)
        ends[index] = max(ends.get(index, Fraction(0)), end)
        if not shows:
            heard.extend((time, end))
    if fields:
        count, back, untold = (-(-number // 2) for number in (count, back, untold))
        if told and begun and mean_rate(count - untold, *begun) > told * 3 / 2:  # the rate was that of whole pictures
            told *= 2
    fps = told or mean_rate(count - untold, *begun)
    if not begun and not raw:  # a stream without times
        ends[stream.index] = count / fps
    if bare is not None:
        ends[stream.index] = max(ends[stream.index], bare + 1 / fps / (2 if fields else 1))
    # Matroska's length counts from time 0, and others' from the first packet.
    start = 0 if is_matroska(container) else container.start_time or 0
    if container.format.name == "flv":
        start = unwrapped(start // 1000) * 1000
    whole = Fraction((container.duration or 0) + start, av.time_base)
    # FFmpeg calls a packet of MPEG-TS corrupt also where two recordings were joined, and nothing is lost.
    told_lost = corrupt or (not untold and stream.codec_context.name in STEADY)
    found = bool(_gaps(shown, shown)) and told_lost, None if told_lost else _hole(shown, heard)
    return _Packets(fps, count, back, ends[stream.index], whole - max(ends.values()), tuple(finder.keys), *found)


def _hole(shown: array[float], heard: array[float]) -> tuple[float, float] | None:
    """The first time with neither picture nor sound, from and until. shown: the times of pictures; heard: the begin and
    end of each packet of sound."""
    lost = _gaps(shown, shown)
    quiet = _gaps(heard[::2], heard[1::2]) if lost else []
    both = ((max(a, c), min(b, d)) for a, b in lost for c, d in quiet)
    return next(((since, until) for since, until in both if until - since > MISSING), None)


def _gaps(begins: Iterable[float], ends: Iterable[float]) -> list[tuple[float, float]]:
    """The times from one packet's end to the next one's begin that are longer than MISSING and a little."""
    pairs = pairwise(sorted(zip(begins, ends, strict=True)))
    return [(end, begin) for (_, end), (begin, _) in pairs if begin - end > LAPSE]


def _timed(
    frames: Iterable[Any], stream: Any, rate: Fraction, begin: Fraction | None = None, zero: Fraction | None = None
) -> Iterator[tuple[Fraction, Any]]:
    """Yields (seconds from the first picture, frame), deinterlaced, in times that rise. begin: as in `FileClip`. zero:
    the time of the first picture, by default that of the first frame."""
    whole, tick, raw = Deinterlacer(), Fraction(stream.time_base), is_raw(stream)
    last = None

    def with_times() -> Iterator[Any]:
        """Gives each frame a time: its own, or else, and in a raw stream, the end of the one before."""
        before, end = None, begin or Fraction(0)
        for frame in frames:
            time = None if raw else told_time(frame, stream)
            if time is None:  # what is rounded here must not add up
                time = round(end / tick) if before is None else max(before + 1, round(end / tick))
            else:
                end = time * tick
            end += _length(frame, stream, rate) if raw else 1 / rate
            frame.time_base = frame.time_base or tick
            frame.pts = before = time if before is None else max(time, before)
            yield frame
        yield None

    for frame in with_times():
        for picture, time in whole(frame):
            zero = time if zero is None else zero
            last = time - zero if last is None else max(last, time - zero)
            yield last, picture


def _chosen(
    timed: Iterable[tuple[Fraction, Any]], fps: Fraction, frames: int, start: Fraction, slack: Fraction
) -> Iterator[Any]:
    """The frame at each time start + k / fps: the last one that begins at or before it, but for `slack`."""
    shown, done = None, 0
    for time, frame in timed:
        while shown is not None and done < frames and start + done / Fraction(fps) < time - slack:
            yield shown
            done += 1
        if done == frames:
            return
        shown = frame
    while shown is not None and done < frames:
        yield shown
        done += 1
