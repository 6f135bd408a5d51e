"""Writes clips of every kind with known pixels, for the tests that read them. Only PyAV is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

Planes = Sequence[np.ndarray]

# For each kind: container, codec, pixel format, its options.
KINDS: Mapping[str, tuple[str, str, str, dict[str, str]]] = {
    "h264.mp4": ("mp4", "libx264", "yuv420p", {"crf": "4"}),
    "h264_444.mp4": ("mp4", "libx264", "yuv444p", {"crf": "4"}),
    "h264_10bit.mkv": ("matroska", "libx264", "yuv420p10le", {"crf": "4"}),
    "hevc_10bit.mp4": ("mp4", "libx265", "yuv420p10le", {"x265-params": "crf=4:log-level=none"}),
    "vp9.mkv": ("matroska", "libvpx-vp9", "yuv420p", {"crf": "4", "b": "0"}),
    "vp8.webm": ("webm", "libvpx", "yuv420p", {"b": "4M", "qmin": "0", "qmax": "4"}),
    "av1.mkv": ("matroska", "libsvtav1", "yuv420p", {"crf": "4", "preset": "12", "svtav1-params": "lp=1"}),
    "prores.mov": ("mov", "prores_ks", "yuv422p10le", {}),
    "mjpeg.avi": ("avi", "mjpeg", "yuvj420p", {"qmin": "1", "qmax": "1"}),
    "mpeg2.ts": ("mpegts", "mpeg2video", "yuv420p", {"qmin": "1", "qmax": "1"}),
    "mpeg4.avi": ("avi", "mpeg4", "yuv420p", {"qmin": "1", "qmax": "1"}),
    "ffv1.mkv": ("matroska", "ffv1", "bgr0", {}),
    "ffv1_12bit.mkv": ("matroska", "ffv1", "gbrp12le", {}),
    "grey.mkv": ("matroska", "ffv1", "gray", {}),
    "png.mov": ("mov", "png", "rgb24", {}),
    "h264.ts": ("mpegts", "libx264", "yuv420p", {"crf": "4"}),
    "h264.flv": ("flv", "libx264", "yuv420p", {"crf": "4"}),
}


def write_damaged(path: Path, shape: tuple[int, int, int]) -> Path:
    """Writes pictures of noise, [frames, H, W], as a .mov that has lost what is in its middle."""
    write_clip(path, np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8), kind="png.mov")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    path.write_bytes(content)
    return path


def write_clip(
    path: Path,
    pictures: Iterable[np.ndarray],
    *,
    kind: str = "ffv1.mkv",
    fps: Fraction = Fraction(24),
    times: Sequence[Fraction] | None = None,
    matrix: str = "",
    field_first: str = "",
    tags: Mapping[str, int] | None = None,
    aspect: Fraction | None = None,
    options: Mapping[str, str] | None = None,
    sound: tuple[np.ndarray, float] | None = None,
    sound_codec: str = "",
) -> Path:
    """Writes pictures uint8 [H, W, 3] as that kind of file.

    times: of the pictures in seconds, instead of a constant rate. matrix: of the conversion to YUV, by default FFmpeg's
    own (BT.601, limited). field_first: "tff" or "bff" for interlaced pictures. tags: attributes of the codec's context.
    sound: (samples at 48 kHz, their start in seconds); sound_codec: instead of the container's usual one.
    """
    container, codec, pixel_format, usual = KINDS[kind]
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps, options={**usual, **(options or {})})
        usual_sound = "pcm_s16le" if container == "mov" else "mp2"
        heard = None
        if sound is not None:
            heard = output.add_stream(sound_codec or usual_sound, rate=48000, options={"strict": "experimental"})
        stream.pix_fmt = pixel_format
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 90000)
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
            frame = to_frame(picture, pixel_format, matrix, field_first)
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 90000), Fraction(1, 90000)
            else:
                frame.pts, frame.time_base = number, 1 / fps
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if sound is not None:
            _add_sound(output, heard, *sound)
    return path


def earlier(path: Path, source: Path, seconds: Fraction, format: str) -> Path:
    """The packets of a file in that format, so many seconds earlier, also where they are then before time 0."""
    with (
        av.open(str(source)) as read,
        av.open(str(path), "w", format=format, options={"avoid_negative_ts": "disabled"}) as output,
    ):
        streams = {each.index: output.add_stream_from_template(each) for each in read.streams}
        for packet in read.demux():
            if packet.dts is None:
                continue
            ticks = round(seconds / packet.time_base)
            packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
            packet.stream = streams[packet.stream_index]
            output.mux(packet)
    return path


def _add_sound(output: av.container.OutputContainer, stream: av.AudioStream, samples: np.ndarray, start: float) -> None:
    block = 1152
    for at in range(0, len(samples) - block + 1, block):
        values = (samples[at : at + block] * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(values, format="s16", layout="mono")
        frame.rate, frame.time_base, frame.pts = 48000, Fraction(1, 48000), round(start * 48000) + at
        output.mux(stream.encode(frame))
    output.mux(stream.encode())


def to_frame(picture: np.ndarray, pixel_format: str, matrix: str = "", field_first: str = "") -> av.VideoFrame:
    """uint8 [H, W, 3] → a frame in that format. matrix: an option of FFmpeg's scale filter; field_first: as above."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    graph = av.filter.Graph()
    source = f"video_size={frame.width}x{frame.height}:pix_fmt=rgb24:time_base=1/25"
    options = "flags=bicubic+accurate_rnd+full_chroma_inp" + (f":{matrix}" if matrix else "")
    chain = [
        graph.add("buffer", source),
        graph.add("scale", options),
        graph.add("format", pixel_format),
        *([graph.add("setfield", field_first)] if field_first else []),
        graph.add("buffersink"),
    ]
    for one, following in pairwise(chain):
        one.link_to(following)
    graph.configure()
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    graph.push(frame)
    return graph.pull()


def write_planes(path: Path, frames: Iterable[Planes], pixel_format: str, tags: Mapping[str, int]) -> Path:
    """Writes frames whose planes are given, without any loss or conversion, as FFV1 in Matroska at 24 fps."""
    with av.open(str(path), "w", format="matroska") as output:
        stream = output.add_stream("ffv1", rate=24)
        stream.pix_fmt = pixel_format
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number, planes in enumerate(frames):
            if not number:
                stream.height, stream.width = planes[0].shape
            frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], pixel_format)
            for plane, values in zip(frame.planes, planes, strict=True):
                rows = np.zeros((plane.height, plane.line_size), np.uint8)
                raw = np.ascontiguousarray(values).view(np.uint8).reshape(plane.height, -1)
                rows[:, : raw.shape[1]] = raw
                plane.update(rows.tobytes())
            frame.pts, frame.time_base = number, Fraction(1, 24)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


COLOURS = np.array(
    [(200, 40, 40), (40, 180, 60), (50, 60, 200), (220, 210, 60), (120, 120, 120), (30, 30, 30), (235, 235, 235)],
    dtype=np.uint8,
)


def plain(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """One colour all over, another one for each number."""
    return np.broadcast_to(COLOURS[number % len(COLOURS)], (height, width, 3)).copy()


def quarters(height: int = 48, width: int = 64) -> np.ndarray:
    """Four colours: top left, top right, bottom left, bottom right are COLOURS[0 to 3]."""
    picture = np.empty((height, width, 3), np.uint8)
    for number in range(4):
        rows = slice(0, height // 2) if number < 2 else slice(height // 2, None)
        columns = slice(0, width // 2) if number % 2 == 0 else slice(width // 2, None)
        picture[rows, columns] = COLOURS[number]
    return picture


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Writes the display matrix into the track header of an mp4 or mov file with one track."""
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd")
    at = header + 4 + 40  # version and flags, times, identity, length, layer, group, volume
    one = 1 << 16
    values = [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30]
    content[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    path.write_bytes(content)
