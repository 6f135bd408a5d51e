"""Writes frames and sound to a finished file.

Frames are encoded and muxed as they arrive, while the caller makes the next ones; the sound is written up to the same
moment. So memory does not grow with the clip. The file gets its name when it is complete; until then, and after any
failure, an older file of that name stays unchanged. decode.py decodes latents, and audio.soundtrack cuts the sound.
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

PALETTE_FRAMES = 8  # frames of a GIF that share a palette; this many wait in memory
PALETTE_BITS = 0xFC  # a GIF keeps 6 bits per channel, because FFmpeg's search slows down with the number of colours
GIF_RATE = 50  # frames/s; browsers show a delay below 2/100 s as 10/100 s

# With up to six channels, AAC and Opus have no side pair. The same samples in the same order become the back pair.
BACK_NAMES = MappingProxyType({"5.0(side)": "5.0", "5.1(side)": "5.1", "quad(side)": "quad"})
# Keys that have their own atom in an mp4. Other keys need `use_metadata_tags`, which fewer players read.
MP4_KEYS = frozenset({"title", "artist", "album", "comment", "date", "description", "copyright"})
NOTES_ROOM = 512  # spare bytes after a JSON tag, for notes that arrive while the file is written
SOUND_BLOCK = 4096  # samples that are encoded at a time
RESAMPLED = 128  # samples of which FFmpeg's resampler always gives some; at some rates it gives none of 64


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
    """Encodes uint8 frames [n, H, W, 3] as they arrive, with the track from frame 0 on. The file appears when complete.

    The picture is converted to BT.709 with limited range and tagged so. A GIF stays in sRGB, has no sound, loops, and
    drops frames above 50 frames/s. The sound keeps its rate and channels if the codec supports them; otherwise it is
    resampled to the next higher rate of the codec, or downmixed to stereo. It is neither cut nor padded. A chunk is
    encoded in a thread while `chunks` makes the next one, so at most two are in memory. `on_frames(n)` is called in the
    caller's thread after n frames.

    metadata: the file's tags, or a function that returns them. The function is called when the first chunk is there and
    again at the end, because notes in a JSON tag may arrive while the file is written.

    Exceptions of `chunks` and `on_frames` are raised again. Raises InputError if the format, quality or mode is
    unknown, the suffix does not fit the format, there are no frames, their size is odd or changes, or the folder is
    missing. Raises OSError if the disk is full.
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
            raise InputError(f"{path}: a file in the format {format} must end in {kind.suffix}.")
        tags = _encode(partial, path, chunks, fps, track, metadata, on_frames, kind, options)
        later = metadata() if callable(metadata) else tags
        if kind.container == "gif":
            _append_comment(partial, path, later)
        else:
            _exchange(partial, path, tags, later)
    written = probe(path)
    # A GIF has no rate in its header, only delays in whole hundredths of a second.
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
    """Writes the whole content to `partial`; error messages name `path`. Returns the tags that were written."""
    chunks = iter(chunks)
    first = next(chunks, None)
    if first is None:
        raise InputError(f"{path}: there are no frames to write.")
    height, width = _size(path, first)
    if callable(metadata):
        room = " " * NOTES_ROOM  # JSON readers ignore blanks at the end
        metadata = {key: text + room if text.startswith("{") else text for key, text in metadata().items()}
    track = track if kind.audio_codec else None
    container_options = dict(kind.container_options)
    if kind.container in ("mp4", "mov"):
        # With this time scale the edit list ends exactly at the last sample; the default rounds to a millisecond.
        container_options["movie_timescale"] = str(_rate(track, kind) if track else fps.numerator)
        if not MP4_KEYS.issuperset(metadata):
            container_options["movflags"] += "+use_metadata_tags"
    with _output(partial, path, kind.container, container_options) as container, ThreadPoolExecutor(1) as encoder:
        # An interrupt during a thread's start makes the executor lose the thread, which would go on writing. So the
        # thread starts here, with an empty task.
        encoder.submit(int).result()
        container.metadata.update(metadata)
        streams = _Streams(container, path, width, height, fps, track, kind, options)
        report, running = on_frames or (lambda done: None), None
        for chunk in chain([first], chunks):
            if _size(path, chunk) != (height, width):
                raise InputError(f"{path}: the frames change size, from {width}x{height} on.")
            if running is not None:
                report(running.result())
            running = encoder.submit(streams.add, chunk.cpu())
        report(running.result())
        streams.finish()
    return metadata


class _Streams:
    """The picture stream and the sound stream of an open container."""

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
        self.frames, self.sound_seconds = 0, Fraction(0)
        if track is not None:
            # The encoder resamples its input to its own rate and follows the time stamps.
            track, layout = _fit(track, kind)
            rate = _rate(track, kind)
            if rate != track.rate:
                track = _long_enough(track)
            self.blocks = _blocks(track, layout)
            self.sound = container.add_stream(kind.audio_codec, rate=rate, layout=layout)
            if kind.audio_bits:
                self.sound.bit_rate = track.waveform.shape[0] * min(kind.audio_bits, 3 * rate)

    def add(self, images: Tensor) -> int:
        """Encodes and muxes these images and the sound beside them. Returns the number of frames so far."""
        for image in images:
            for frame in self.shape(image):
                self._mux(self.picture.encode(frame))
            self.frames += 1
            while self.sound_seconds < self.frames / self.fps and (block := next(self.blocks, None)) is not None:
                self.sound_seconds += Fraction(block.samples, block.sample_rate)
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
    """uint8 [H, W, 3] sRGB → BT.709 with limited range. The pixels are converted, not only tagged; chroma is averaged
    over all pixels and rounded."""

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
        # A filter converts, because PyAV's own reformatter has these flags only since version 18.
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
    """uint8 [H, W, 3] sRGB → frames with palettes, at most GIF_RATE per second. PALETTE_FRAMES frames share a
    palette."""

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
    # PyAV's default, threads within a frame, makes x264 cut each frame into slices. Such files are larger, and encoding
    # is slower on many cores.
    codec.thread_type = "AUTO"
    codec.bit_rate = 0  # the options set a constant quality instead
    if not paletted:
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries = codec.color_trc = BT709
    return stream


def _rate(track: Track, kind: Format) -> int:
    """The sound's rate in the file, in Hz: its own, else the codec's next higher rate, else the codec's highest."""
    return min((rate for rate in kind.rates if rate >= track.rate), default=max(kind.rates, default=track.rate))


def mixing(track: Track | None, format: str) -> str:
    """The sentence for the report if a file of that format cannot have the track's channels, else ""."""
    kind = choose("format", format, FORMATS)
    if track is None or not kind.audio_codec or _layout(track, kind):
        return ""
    channels = track.waveform.shape[0]
    return f"the sound was mixed down from {channels} channels to stereo, because {format} has no such layout"


def _fit(track: Track, kind: Format) -> tuple[Track, str]:
    """Returns the track with channels that the codec supports, and FFmpeg's name of their layout."""
    name = _layout(track, kind)
    if not name:
        return conditioning_track(track, track.waveform.shape[1], Fraction(track.rate)), "stereo"  # at its full length
    return track, name


def _long_enough(track: Track) -> Track:
    """The track with silence behind it if it has fewer samples than FFmpeg's resampler needs: it would give none, and
    the file would have no sound."""
    missing = max(0, RESAMPLED - track.waveform.shape[1])
    return replace(track, waveform=torch.nn.functional.pad(track.waveform, (0, missing)))


def _layout(track: Track, kind: Format) -> str:
    """FFmpeg's name of the track's layout, or "" if FFmpeg has none or the codec does not support it."""
    channels = track.waveform.shape[0]
    # Unknown channels get FFmpeg's usual layout, except three channels: their third would become a subwoofer.
    try:
        name = av.AudioLayout("+".join(track.speakers) or f"{channels}c").name
    except ValueError:  # FFmpeg knows no layout with this number of channels or with these speakers
        return ""
    if name == "2.1" and not track.speakers:
        name = "3.0"
    if " " in name:  # "2 channels (AMBI0+AMBI1)": speakers, but no layout
        return ""
    name = BACK_NAMES.get(name, name)
    return name if name not in kind.downmixed and _holds(kind.audio_codec, name) else ""


def _holds(codec: str, layout: str) -> bool:
    """Whether the encoder supports that layout. Only opening it gives the answer."""
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
    """Yields the waveform in frames, the first at time 0. The encoder puts its priming before it and records that."""
    for start in range(0, track.waveform.shape[1], SOUND_BLOCK):
        samples = track.waveform[:, start : start + SOUND_BLOCK].float().cpu()
        packed = rearrange(samples, "c n -> 1 (n c)").numpy()
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.rate, frame.pts, frame.time_base = track.rate, start, Fraction(1, track.rate)
        yield frame


def _exchange(partial: Path, path: Path, written: Mapping[str, str], later: Mapping[str, str]) -> None:
    """Replaces tags that changed after they were written. A tag that is longer than its room stays unchanged.

    FFmpeg writes tags with the file's header as plain UTF-8, so each tag is one run of bytes.
    """
    for key, text in written.items():
        old, new = text.encode(), later.get(key, text).encode()
        if len(new) > len(old) or new.ljust(len(old)) == old:
            continue
        with disk_errors(path), partial.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            while (place := content.find(old)) >= 0:  # a .mov file has the comment twice
                content[place : place + len(old)] = new.ljust(len(old))


def _append_comment(partial: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes the metadata as JSON into a GIF's comment extension, before the trailer, because FFmpeg writes none."""
    if not metadata:
        return
    text = json.dumps(dict(metadata)).encode("ascii")
    parts = (text[at : at + 255] for at in range(0, len(text), 255))
    with disk_errors(path), partial.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\0;")


@contextmanager
def _output(partial: Path, path: Path, container_format: str, options: dict[str, str]) -> Iterator[Any]:
    """Yields an open container. After an error, the first error is raised, not one from closing the container."""
    with disk_errors(path):
        container = av.open(str(partial), "w", format=container_format, container_options=options)
    try:
        yield container
    except BaseException:
        with suppress(av.error.FFmpegError):
            container.close()
        raise
    with disk_errors(path):  # closing writes the index, which may fail on a full disk
        container.close()
