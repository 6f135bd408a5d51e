"""Frames and sound to a finished file.

Frames are encoded and muxed as they come, while the caller makes the next ones, and the sound beside them up to the
same moment: memory does not grow with the clip. The file takes its name when it is complete; until then, and after any
failure, an older file of that name is as it was. It decodes no latents (decode.py) and cuts no sound to length
(audio.soundtrack).
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import torch
from av.video.reformatter import ColorRange, Colorspace
from einops import rearrange
from torch import Tensor

from ..errors import InputError
from .audio import Track, conditioning_track
from .formats import DEFAULT_FORMAT, DEFAULT_QUALITY, DEFAULT_WRITE_MODE, FORMATS, Format, choose
from .probe import BT709, VideoFile, probe
from .unfinished import disk_errors, replacing

PALETTE_FRAMES = 8  # frames of a GIF that share a palette; so many wait in memory
PALETTE_BITS = 0xFC  # of each colour a GIF's frame keeps 6: FFmpeg finds the nearest in a list of all that occurred
GIF_RATE = 50  # frames/s; browsers show a delay under 2/100 s as 10/100 s

# AAC and Opus have no side pair in up to six channels: the same samples in the same order go as the back pair.
BACK_NAMES = MappingProxyType({"5.0(side)": "5.0", "5.1(side)": "5.1", "quad(side)": "quad"})
# Keys with an atom of their own in an mp4; any other needs `use_metadata_tags`, which fewer players read.
MP4_KEYS = frozenset({"title", "artist", "album", "comment", "date", "description", "copyright"})
NOTES_ROOM = 512  # bytes behind a JSON tag, for notes that come while the file is written
SOUND_BLOCK = 4096  # samples encoded at a time


def write_video(
    path: str | Path,
    chunks: Iterable[Tensor],
    fps: Fraction,
    track: Track | None,
    *,
    format: str = DEFAULT_FORMAT,
    quality: str = DEFAULT_QUALITY,
    write_mode: str = DEFAULT_WRITE_MODE,
    metadata: Mapping[str, str] | Callable[[], Mapping[str, str]] = MappingProxyType({}),
    on_frames: Callable[[int], None] | None = None,
) -> VideoFile:
    """Encode uint8 frames [n, H, W, 3] as they come, with the track from frame 0 on; the file appears when complete.

    The picture is converted to BT.709, limited range, and tagged so; a GIF stays sRGB, silent, and loops, and above
    50 frames/s drops some. The sound keeps its rate and channels where the codec has them; else it is resampled to the
    next higher rate it has, or downmixed to stereo. It is neither cut nor padded. A chunk is encoded in a thread while
    `chunks` makes the next: at most two are in memory. `on_frames(n)`: n frames encoded so far, in the caller's thread.
    metadata: the file's tags, or what gives them: asked once the first chunk is there, and again at the end, for a note
    in a JSON text may come while the file is written.
    Whatever `chunks` or `on_frames` raise goes through. Errors: InputError (unknown format, quality or mode, a suffix
    not the format's, no frames, odd or changing size, no such folder), OSError (disk full).
    """
    path, fps = Path(path).absolute(), Fraction(fps)
    kind = choose("format", format, FORMATS)
    options = {
        **kind.codec_options,
        **choose("quality", quality, kind.qualities),
        **choose("write mode", write_mode, kind.write_modes),
    }
    with replacing(path) as partial:
        if path.suffix.lower() != kind.suffix:
            raise InputError(f"{path}: the name of a file in the format {format} must end in {kind.suffix}.")
        tags = _encode(partial, path, chunks, fps, track, metadata, on_frames, kind, options)
        later = metadata() if callable(metadata) else tags
        if kind.container == "gif":
            _append_comment(partial, path, later)
        else:
            _exchange(partial, path, tags, later)
    written = probe(path)
    # A GIF's header has no rate, only delays in whole hundredths of a second.
    return replace(written, fps=min(fps, Fraction(GIF_RATE))) if kind.container == "gif" else written


def _encode(
    partial: Path,
    path: Path,
    chunks: Iterable[Tensor],
    fps: Fraction,
    track: Track | None,
    metadata: Mapping[str, str] | Callable[[], Mapping[str, str]],
    on_frames: Callable[[int], None] | None,
    kind: Format,
    options: Mapping[str, str],
) -> Mapping[str, str]:
    """The file's whole content, at `partial`; `path` is what errors name. Returns the tags as they were written."""
    chunks = iter(chunks)
    first = next(chunks, None)
    if first is None:
        raise InputError(f"{path}: there are no frames to write.")
    height, width = _size(path, first)
    if callable(metadata):
        room = " " * NOTES_ROOM  # blanks behind JSON mean nothing
        metadata = {key: text + room if text.startswith("{") else text for key, text in metadata().items()}
    track = track if kind.audio_codec else None
    container_options = dict(kind.container_options)
    if kind.container in ("mp4", "mov"):
        # The edit list ends on the last sample, not on a millisecond.
        container_options["movie_timescale"] = str(_rate(track, kind) if track else fps.numerator)
        if not MP4_KEYS.issuperset(metadata):
            container_options["movflags"] += "+use_metadata_tags"
    with _output(partial, path, kind.container, container_options) as container, ThreadPoolExecutor(1) as encoder:
        # An interrupt while a thread starts makes the executor forget it, and it would write on: it starts idle.
        encoder.submit(int).result()
        container.metadata.update(metadata)
        streams = _Streams(container, path, width, height, fps, track, kind, options)
        tell, running = on_frames or (lambda done: None), None
        for chunk in chain([first], chunks):
            if _size(path, chunk) != (height, width):
                raise InputError(f"{path}: the frames change size, from {width}x{height} on.")
            if running is not None:
                tell(running.result())
            running = encoder.submit(streams.add, chunk.cpu())
        tell(running.result())
        streams.finish()
    return metadata


class _Streams:
    """Picture and sound of an open container, side by side."""

    def __init__(
        self,
        container: Any,
        path: Path,
        width: int,
        height: int,
        fps: Fraction,
        track: Track | None,
        kind: Format,
        options: Mapping[str, str],
    ) -> None:
        self.container, self.path, self.fps = container, path, fps
        paletted = kind.pixel_format == "pal8"
        self.shape = _Palettes(fps, options) if paletted else _Yuv(fps, kind.pixel_format)
        self.picture = _add_picture(container, width, height, fps, kind, {} if paletted else options)
        self.sound, self.blocks = None, iter(())
        self.frames, self.heard = 0, Fraction(0)
        if track is not None:
            # The encoder resamples what it is given to its own rate, in step with the time stamps.
            track, layout = _fit(track, kind)
            rate = _rate(track, kind)
            self.blocks = _blocks(track, layout)
            self.sound = container.add_stream(kind.audio_codec, rate=rate, layout=layout)
            if kind.audio_bits:
                self.sound.bit_rate = track.waveform.shape[0] * min(kind.audio_bits, 3 * rate)

    def add(self, images: Tensor) -> int:
        """Encode and mux these, and the sound that belongs to them → frames so far."""
        for image in images:
            for frame in self.shape(image):
                self._mux(self.picture.encode(frame))
            self.frames += 1
            while self.heard < self.frames / self.fps and (block := next(self.blocks, None)) is not None:
                self.heard += Fraction(block.samples, block.sample_rate)
                self._mux(self.sound.encode(block))
        return self.frames

    def finish(self) -> None:
        for frame in self.shape(None):
            self._mux(self.picture.encode(frame))
        self._mux(self.picture.encode(None))
        for block in self.blocks:
            self._mux(self.sound.encode(block))
        if self.sound is not None:
            self._mux(self.sound.encode(None))

    def _mux(self, packets: Iterable[Any]) -> None:
        with disk_errors(self.path):
            for packet in packets:
                self.container.mux(packet)


def _size(path: Path, chunk: Tensor) -> tuple[int, int]:
    if chunk.ndim != 4 or chunk.shape[-1] != 3 or chunk.dtype != torch.uint8:
        raise TypeError(f"frames are uint8 [n, height, width, 3], not {chunk.dtype} {list(chunk.shape)}")
    height, width = chunk.shape[1:3]
    if height % 2 or width % 2 or not height or not width:
        raise InputError(f"{path}: a video of {width}x{height} cannot be written; both sides must be even.")
    return height, width


class _Yuv:
    """uint8 [H, W, 3] sRGB → BT.709, limited range: converted, not only tagged. Chroma from every pixel, rounded."""

    def __init__(self, fps: Fraction, pixel_format: str) -> None:
        self.fps, self.pixel_format, self.count = fps, pixel_format, 0
        self.graph: Any = None

    def __call__(self, image: Tensor | None) -> Iterator[av.VideoFrame]:
        if image is None:
            return
        frame = av.VideoFrame.from_ndarray(image.contiguous().numpy(), format="rgb24")
        frame.pts, frame.time_base = self.count, 1 / self.fps
        self.count += 1
        if self.graph is None:
            self.graph = self._converter(frame)
        self.graph.push(frame)
        yield self.graph.pull()

    def _converter(self, frame: av.VideoFrame) -> Any:
        # The filter: PyAV's own reformatter has had these flags only since version 18.
        graph = av.filter.Graph()
        filters = [
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
            graph.add("scale", "flags=bicubic+accurate_rnd+full_chroma_inp:out_color_matrix=bt709:out_range=tv"),
            graph.add("format", self.pixel_format),
            graph.add("setparams", "colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"),
            graph.add("buffersink"),
        ]
        for one, next_ in pairwise(filters):
            one.link_to(next_)
        graph.configure()
        return graph


class _Palettes:
    """uint8 [H, W, 3] sRGB → frames with palettes, each made for PALETTE_FRAMES of them; at most GIF_RATE a second."""

    def __init__(self, fps: Fraction, options: Mapping[str, str]) -> None:
        self.fps, self.options = fps, options
        self.rate = min(fps, Fraction(GIF_RATE))
        self.waiting: list[av.VideoFrame] = []
        self.count, self.slot = 0, -1

    def __call__(self, image: Tensor | None) -> Iterator[av.VideoFrame]:
        if image is not None:
            slot = math.floor(self.count / self.fps * self.rate)
            self.count += 1
            if slot > self.slot:
                self.slot = slot
                few = (image & PALETTE_BITS) + (255 - PALETTE_BITS) // 2
                frame = av.VideoFrame.from_ndarray(few.contiguous().numpy(), format="rgb24")
                frame.pts, frame.time_base = slot, 1 / self.rate
                self.waiting.append(frame)
        if self.waiting and (image is None or len(self.waiting) == PALETTE_FRAMES):
            yield from self._mapped(self.waiting)
            self.waiting = []

    def _mapped(self, frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frames[0].width, height=frames[0].height, format=frames[0].format, time_base=frames[0].time_base
        )
        split, sink = graph.add("split"), graph.add("buffersink")
        make, use = (graph.add(name, self.options[name]) for name in ("palettegen", "paletteuse"))
        source.link_to(split)
        split.link_to(make)
        split.link_to(use, 1)
        make.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        for frame in [*frames, None]:
            source.push(frame)
        for _ in frames:
            yield sink.pull()


def _add_picture(
    container: Any, width: int, height: int, fps: Fraction, kind: Format, options: Mapping[str, str]
) -> Any:
    paletted = kind.pixel_format == "pal8"
    rate = min(fps, Fraction(GIF_RATE)) if paletted else fps
    stream = container.add_stream(kind.video_codec, rate=rate, options=dict(options))
    stream.width, stream.height, stream.pix_fmt = width, height, kind.pixel_format
    codec = stream.codec_context
    # PyAV's default, threads within a frame, makes x264 cut each frame into slices: larger, and slower with many cores.
    codec.thread_type = "AUTO"
    codec.bit_rate = 0  # the quality is constant
    if not paletted:
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries = codec.color_trc = BT709
    return stream


def _rate(track: Track, kind: Format) -> int:
    """The sound's rate in the file: its own, else the next higher one that the codec has, else its highest."""
    return min((rate for rate in kind.rates if rate >= track.rate), default=max(kind.rates, default=track.rate))


def _fit(track: Track, kind: Format) -> tuple[Track, str]:
    """The track with channels that the codec can hold, and FFmpeg's name of their layout."""
    channels = track.waveform.shape[0]
    # Where nobody knows the channels: FFmpeg's usual layout, but for three, whose third would be taken for a subwoofer.
    name = av.AudioLayout("+".join(track.speakers) or f"{channels}c").name
    if name == "2.1" and not track.speakers:
        name = "3.0"
    name = BACK_NAMES.get(name, name)
    if name in kind.downmixed or not _holds(kind.audio_codec, name):
        return conditioning_track(track, track.waveform.shape[1], Fraction(track.rate)), "stereo"  # nothing cut
    return track, name


def _holds(codec: str, layout: str) -> bool:
    """Whether the encoder takes that layout, which only opening it tells."""
    context = av.CodecContext.create(codec, "w")
    format_, rates = context.codec.audio_formats[0], context.codec.audio_rates or [48000]
    context.layout, context.format, context.sample_rate = layout, format_, rates[0]
    context.time_base = Fraction(1, context.sample_rate)
    try:
        context.open()
    except av.error.FFmpegError:
        return False
    return True


def _blocks(track: Track, layout: str) -> Iterator[av.AudioFrame]:
    """The waveform in frames, the first at time 0: the encoder's priming lies before it and the file says so."""
    for start in range(0, track.waveform.shape[1], SOUND_BLOCK):
        samples = track.waveform[:, start : start + SOUND_BLOCK].float().cpu()
        packed = rearrange(samples, "c n -> 1 (n c)").numpy()
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.rate, frame.pts, frame.time_base = track.rate, start, Fraction(1, track.rate)
        yield frame


def _exchange(partial: Path, path: Path, written: Mapping[str, str], later: Mapping[str, str]) -> None:
    """Puts tags that have changed in the place of those that were written; one that grew past its room stays as it was.

    FFmpeg writes tags with a file's header, and as plain UTF-8, so that they lie in one piece.
    """
    for key, text in written.items():
        old, new = text.encode(), later.get(key, text).encode()
        if old.rstrip() == new or len(new) > len(old):
            continue
        with disk_errors(path), partial.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            while (place := content.find(old)) >= 0:  # a .mov has the comment twice
                content[place : place + len(old)] = new.ljust(len(old))


def _append_comment(partial: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """The metadata as JSON in a GIF's comment extension, before the trailer: FFmpeg writes none."""
    if not metadata:
        return
    text = json.dumps(dict(metadata)).encode("ascii")
    parts = (text[at : at + 255] for at in range(0, len(text), 255))
    with disk_errors(path), partial.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\0;")


@contextmanager
def _output(partial: Path, path: Path, container_format: str, options: dict[str, str]) -> Iterator[Any]:
    """An open container; the error that ends it is the first one, not the one that closing then gives."""
    with disk_errors(path):
        container = av.open(str(partial), "w", format=container_format, container_options=options)
    try:
        yield container
    except BaseException:
        with suppress(av.error.FFmpegError):
            container.close()
        raise
    with disk_errors(path):  # writes the index, and may be what finds the disk full
        container.close()
