"""Pictures that are read from the middle of a file are those that are read from its beginning, to the byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from a2v.ltx.media import container as container_module
from a2v.ltx.media import seek as seek_module
from a2v.ltx.media.clip import FileClip, open_clip
from PIL import Image
from torch import Tensor

from .clips import set_display_matrix, write_clip

RATE = Fraction(24)
FRAMES, GROUP, LATE = 300, 24, 251
NEAR = 4 * GROUP  # frames that may be decoded for a few pictures
STARTS = (0, 1, 47, 48, 49, 100, 167, 168, LATE, 299, 310)
BASE = np.random.default_rng(22).integers(0, 200, (48, 64, 3), dtype=np.uint8) // 4


def pictures(count: int = FRAMES, first: int = 0, size: tuple[int, int] = (48, 64)) -> Iterator[np.ndarray]:
    """No two alike: a noise that turns, and a bar for each bit of the number."""
    for number in range(first, first + count):
        picture = np.roll(np.resize(BASE, (*size, 3)), number, axis=1)
        for bit in range(9):
            picture[:16, 6 * bit : 6 * bit + 6] = 200 if number >> bit & 1 else 20
        yield picture


# Each kind of file, its options, and whether pictures are found without decoding from the beginning.
FILES: Mapping[str, tuple[str, dict[str, str], bool]] = {
    "h264.mp4": ("h264.mp4", {"bf": "3", "x264-params": "b-pyramid=normal"}, True),
    "open.mp4": ("h264.mp4", {"bf": "3", "x264-params": "open-gop=1"}, True),
    "open.ts": ("h264.ts", {"bf": "3", "x264-params": "open-gop=1"}, True),
    "refreshed.ts": ("h264.ts", {"x264-params": "intra-refresh=1"}, False),
    "h264.mkv": ("h264_10bit.mkv", {"bf": "2"}, True),
    "h264.flv": ("h264.flv", {}, True),
    "hevc.mp4": ("hevc_10bit.mp4", {"x265-params": "log-level=none:open-gop=0:pools=1"}, True),
    "rasl.mp4": ("hevc_10bit.mp4", {"x265-params": "log-level=none:open-gop=1:bframes=4:pools=1"}, True),
    "vp9.mkv": ("vp9.mkv", {"deadline": "realtime", "cpu-used": "8"}, True),
    "hidden.mkv": ("vp9.mkv", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}, True),
    "vp8.webm": ("vp8.webm", {"auto-alt-ref": "1", "lag-in-frames": "16"}, True),
    "av1.mkv": ("av1.mkv", {}, True),
    "mpeg2.ts": ("mpeg2.ts", {"bf": "2"}, True),
    "closed.ts": ("mpeg2.ts", {"bf": "2", "flags": "+cgop", "sc_threshold": "1000000000"}, True),
    "plain.avi": ("mpeg4.avi", {}, True),
    "b.avi": ("mpeg4.avi", {"bf": "2"}, True),
    "mjpeg.avi": ("mjpeg.avi", {}, True),
    "prores.mov": ("prores.mov", {}, True),
    "png.mov": ("png.mov", {}, True),
    "ffv1.mkv": ("ffv1.mkv", {}, True),
}
OFTEN = ("h264.mp4", "open.ts", "refreshed.ts", "hevc.mp4", "hidden.mkv", "mpeg2.ts", "prores.mov")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with each frame that is decoded."""
    count: list[None] = []
    decode = container_module.frames_of_packets

    def counted(*arguments: Any) -> Iterator[Any]:
        for frame in decode(*arguments):
            count.append(None)
            yield frame

    for module in (container_module, seek_module):
        monkeypatch.setattr(module, "frames_of_packets", counted)
    return count


def read(clip: FileClip, first: int, count: int = 5, fps: Fraction = RATE) -> Tensor:
    return torch.stack(list(clip.pictures(fps, count, first / fps)))


def costs(clip: FileClip, decoded: list[None], starts: tuple[int, ...] = STARTS, fps: Fraction = RATE) -> int:
    """How many frames are decoded for LATE, after the pictures from each start are those of the whole."""
    assert torch.equal(read(clip, 0, 20, fps), read(replace(clip, keys=None), 0, 20, fps))
    whole = read(replace(clip, keys=None), 0, max(starts) + 5, fps)
    assert len(whole[:FRAMES].flatten(1).unique(dim=0)) > 100
    for first in starts:
        assert torch.equal(read(clip, first, fps=fps), whole[first : first + 5]), first
    decoded.clear()
    read(clip, LATE, fps=fps)
    return len(decoded)


def write(path: Path, name: str, **more: Any) -> Path:
    kind, options, _ = FILES[name]
    return write_clip(path, pictures(), kind=kind, options={"g": str(GROUP), **options}, **more)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.soak] * (name not in OFTEN)) for name in FILES])
def test_a_kind_of_file(tmp_path: Path, decoded: list[None], name: str) -> None:
    count = costs(open_clip(write(tmp_path / name, name)), decoded)
    assert count < NEAR if FILES[name][2] else count >= LATE


@pytest.mark.parametrize(
    "name", ["h264.mp4", "open.ts", *(pytest.param(name, marks=pytest.mark.soak) for name in ("h264.mkv", "rasl.mp4"))]
)
def test_beside_sound_from_a_later_time(tmp_path: Path, decoded: list[None], name: str) -> None:
    sound = np.sin(np.arange(48000 * 12) / 20) / 2, 0.25
    times = [Fraction(1, 2) + n / RATE for n in range(FRAMES)]
    path = write(tmp_path / name, name, times=times, sound=sound)
    assert costs(open_clip(path), decoded) < NEAR


@pytest.mark.parametrize("name", ["h264.mp4", "ffv1.mkv"])
def test_a_variable_rate(tmp_path: Path, decoded: list[None], name: str) -> None:
    steps = np.random.default_rng(1).choice([20, 33, 41, 42, 83], FRAMES)
    times = [Fraction(int(time), 1000) for time in np.cumsum(steps)]
    clip = open_clip(write(tmp_path / name, name, times=times))
    assert costs(clip, decoded) < NEAR
    assert costs(clip, decoded, fps=Fraction(30000, 1001)) < NEAR


def test_a_turned_file(tmp_path: Path, decoded: list[None]) -> None:
    path = write(tmp_path / "a.mp4", "h264.mp4")
    set_display_matrix(path, 0, 1, -1, 0)
    clip = open_clip(path)
    assert (clip.width, clip.height) == (48, 64) and costs(clip, decoded) < NEAR


def test_without_an_index(tmp_path: Path, decoded: list[None]) -> None:
    """Matroska writes it at the end."""
    path = write(tmp_path / "a.mkv", "h264.mkv")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 97 // 100])
    assert costs(open_clip(path), decoded) < NEAR


# From the beginning


def joined(path: Path, *parts: Path, back: bool = False) -> Path:
    """The packets of MPEG-TS files one after the other. back: each with its own times, not after the one before."""
    with av.open(str(path), "w", format="mpegts") as output:
        stream, shift = None, 0
        for part in parts:
            with av.open(str(part)) as source:
                stream = stream or output.add_stream_from_template(source.streams.video[0])
                latest = 0
                for packet in source.demux(video=0):
                    if packet.pts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    latest = max(latest, packet.pts)
                    packet.stream = stream
                    output.mux(packet)
                shift = latest + 3750 - source.streams.video[0].start_time
    if back:
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.fixture
def part(tmp_path: Path) -> Callable[..., Path]:
    def write_part(first: int, size: tuple[int, int] = (48, 64), **more: Any) -> Path:
        options = {"g": str(GROUP), **more.pop("options", {})}
        path = tmp_path / f"{first}.ts"
        return write_clip(path, pictures(100, first, size), kind="h264.ts", options=options, **more)

    return write_part


INTERLACED = {"field_first": "tff", "options": {"flags": "+ilme+ildct"}}


@pytest.mark.parametrize(
    "which", [(1,), (0, 1, 2), *(pytest.param(which, marks=pytest.mark.soak) for which in ((0,), (2,)))]
)
def test_interlaced_parts(tmp_path: Path, decoded: list[None], part: Callable[..., Path], which: tuple[int]) -> None:
    """A deinterlaced picture depends on those before it."""
    parts = [part(100 * number, **(INTERLACED if number in which else {})) for number in range(3)]
    clip = open_clip(joined(tmp_path / "a.ts", *parts))
    costs(clip, decoded)
    whole = read(replace(clip, keys=None), 0, 300)
    decoded.clear()
    assert torch.equal(read(clip, 80, 220), whole[80:])
    assert len(decoded) >= 300


def test_the_size_changes(tmp_path: Path, decoded: list[None], part: Callable[..., Path]) -> None:
    parts = part(0), part(100, (64, 96)), part(200)
    costs(open_clip(joined(tmp_path / "a.ts", *parts)), decoded)


def test_times_go_back(tmp_path: Path, decoded: list[None], part: Callable[..., Path]) -> None:
    clip = open_clip(joined(tmp_path / "a.ts", part(0), part(100), back=True))
    whole = read(replace(clip, keys=None), 0, 120)
    for first in (0, 60, 90, 99, 105):
        assert torch.equal(read(clip, first), whole[first : first + 5])


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.avif"])
def test_animations(tmp_path: Path, decoded: list[None], name: str) -> None:
    images = [Image.fromarray(picture) for picture in pictures(60)]
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=50)
    clip = open_clip(tmp_path / name)
    whole = read(replace(clip, keys=None), 0, 60, Fraction(20))
    for first in (0, 21, 45, 59):
        decoded.clear()
        assert torch.equal(read(clip, first, 1, Fraction(20)), whole[first : first + 1])
        assert len(decoded) > first


@pytest.mark.parametrize("fault", ["time", "place", "size"])
def test_the_file_is_another_by_now(tmp_path: Path, decoded: list[None], fault: str) -> None:
    clip = open_clip(write(tmp_path / "a.mp4", "h264.mp4"))
    change = {"time": -512, "place": 10**6, "size": 1}[fault]
    changed = tuple(replace(key, **{fault: getattr(key, fault) + change}) for key in clip.keys.keys)
    assert costs(replace(clip, keys=replace(clip.keys, keys=changed)), decoded) >= LATE


class Stubborn:
    """An open file in which nothing can be sought."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def seek(self, *_: Any, **__: Any) -> None:
        raise av.FFmpegError(1, "cannot seek")


def test_seeking_fails(tmp_path: Path, decoded: list[None], monkeypatch: pytest.MonkeyPatch) -> None:
    clip, opened = open_clip(write(tmp_path / "a.mp4", "h264.mp4")), container_module.open_bytes
    monkeypatch.setattr(container_module, "open_bytes", lambda file: closing(Stubborn(opened(file))))
    assert costs(clip, decoded) >= LATE


def test_damage_is_read_from_the_beginning(tmp_path: Path, decoded: list[None]) -> None:
    """What it looks like may depend on all before it."""
    path = write(tmp_path / "a.mov", "png.mov")
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    content[places[240] + 300 : places[240] + 700] = bytes(400)
    path.write_bytes(content)
    clip = open_clip(path)
    whole = read(replace(clip, keys=None), 0, 300)
    for first, least, most, sentences in ((200, 1, NEAR, 0), (230, 240, 400, 1), (245, 245, 400, 1)):
        told: list[str] = []
        decoded.clear()
        found = torch.stack(list(clip.pictures(RATE, 20, first / RATE, told.append)))
        assert torch.equal(found, whole[first : first + 20])
        assert least <= len(decoded) <= most and len(told) == sentences


def test_a_decoders_messages_hold_up_nobody(tmp_path: Path) -> None:
    """They would wait for Python's lock, and the thread that closes the decoder has it: both would wait for ever."""
    path = write(tmp_path / "h264.mp4", "h264.mp4")
    av.logging.set_level(av.logging.ERROR)  # as another package may
    read(open_clip(path), LATE)
    assert av.logging.get_level() is None
