"""Clips of every kind become known pictures at known times, or one sentence."""

from __future__ import annotations

import random
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.media.clip import (
    FileClip,
    ImageClip,
    clip_track,
    is_sound,
    open_clip,
    open_reference,
    sampled,
    sampled_frames,
)
from a2v.ltx.media.images import fit, load_image
from a2v.ltx.media.masks import open_area
from PIL import ExifTags, Image
from safetensors import safe_open

from .clips import (
    COLOURS,
    KINDS,
    earlier,
    plain,
    quarters,
    set_display_matrix,
    to_frame,
    write_clip,
    write_damaged,
    write_planes,
)
from .fields import FIELDS, FRAMES, MIXED, write_fields
from .test_video import tool

RATE = Fraction(24)


def read(path: Path, fps: Fraction = RATE, frames: int | None = None, start: Fraction = Fraction(0)) -> np.ndarray:
    clip = open_clip(path)
    pictures = clip.pictures(fps, clip.count(fps) if frames is None else frames, start)
    read = np.stack([picture.numpy() for picture in pictures])
    assert read.dtype == np.uint8 and read.shape[1:] == (clip.height, clip.width, 3)
    return read


def numbers(pictures: np.ndarray) -> list[int]:
    """Which of the plain colours each picture has."""
    centre = pictures[:, pictures.shape[1] // 2, pictures.shape[2] // 2].astype(int)
    return [int(np.abs(COLOURS.astype(int) - each).sum(axis=1).argmin()) for each in centre]


# Kinds of files


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_file(tmp_path: Path, kind: str) -> None:
    path = write_clip(tmp_path / kind, [plain(number) for number in range(6)], kind=kind)
    clip = open_clip(path)
    assert (clip.width, clip.height, clip.fps, clip.count(RATE)) == (64, 48, 24, 6)
    pictures = read(path)
    for number, picture in enumerate(pictures):
        wanted = COLOURS[number].astype(int)
        if kind.startswith("grey"):
            wanted = np.repeat(round(float(wanted @ [0.299, 0.587, 0.114])), 3)
        assert np.abs(picture.astype(int) - wanted).max() <= (0 if "ffv1" in kind or "png" in kind else 5), number


def test_a_plain_file_reads_as_by_pyav(tmp_path: Path) -> None:
    """The official pipelines read by `to_ndarray`."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 50, 66, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "noise.mp4", noise, kind="h264.mp4")
    with av.open(str(path)) as container:
        wanted = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.array_equal(read(path), np.stack(wanted))


def test_the_oracles_source(oracle: Path) -> None:
    def fixed(name: str, tensor: str) -> torch.Tensor:
        with safe_open(oracle / "video-in" / f"{name}.safetensors", "pt") as file:
            return file.get_tensor(tensor)

    clip = open_clip(oracle / "video-in" / "source_24.mp4")
    pictures = torch.stack(list(clip.pictures(clip.fps, clip.count(clip.fps))))
    assert torch.equal(pictures, fixed("retake_both", "source/frames_u8"))
    for name, tensor, factor in (("iclora_frozen_audio", "cond/0/pixels", 1), ("iclora_official", "cond/1/pixels", 2)):
        fitted = [fit(picture, 64, 32) for picture in sampled(clip.pictures(clip.fps, 17), factor)]
        assert len(fitted) == sampled_frames(17, factor)
        assert torch.equal(torch.cat(fitted, dim=2), fixed(name, tensor))


def test_gif_with_holes(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    pictures = [Image.fromarray(np.dstack([plain(n, 20, 31), np.full((20, 31), 255, np.uint8)])) for n in range(3)]
    pictures[0].putpixel((0, 0), (200, 40, 40, 0))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 200, 100], disposal=2)
    clip = open_clip(path)
    assert (clip.width, clip.height, clip.seconds) == (31, 20, Fraction(4, 10))
    found = read(path, Fraction(10))
    assert numbers(found) == [0, 1, 1, 2] and found[0, 0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["prompt.txt", "notes.nfo"])
def test_a_text_is_no_video(tmp_path: Path, name: str) -> None:
    """FFmpeg draws it in a terminal's letters."""
    (tmp_path / name).write_text("a woman speaks\n" * 40, "utf-8")
    for read in (open_clip, open_reference, is_sound):
        with pytest.raises(InputError, match=rf"^{name}: cannot be read as audio or video \(it is text\)"):
            read(tmp_path / name)


@pytest.mark.parametrize(("name", "content", "advice"), [
    ("a.svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "save it as PNG or JPEG."),
    ("a.jxl", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "save it as PNG or JPEG."),
    ("a.exr", b"\x76\x2f\x31\x01\x02" + bytes(99), "export it again, for example as PNG."),
    ("a.pdf", b"%PDF-1.4" + bytes(999), "export it again, for example as MP4 or PNG."),
])  # fmt: skip
def test_a_picture_that_cannot_be_read_is_to_be_a_picture(
    tmp_path: Path, name: str, content: bytes, advice: str
) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (open_reference, open_area):
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"{name}: ") and str(caught.value).endswith(advice)


@pytest.mark.parametrize("name", ["one.png", "one.jpg", "one.mp4", "one.gif"])
def test_one_frame(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "one.mp4":
        write_clip(path, [plain(2)], kind="h264.mp4")
    else:
        Image.fromarray(plain(2)).save(path)
    assert open_clip(path).count(RATE) >= 1
    assert numbers(read(path, frames=9)) == [2] * 9


def test_odd_sides(tmp_path: Path) -> None:
    for kind, limit in (("ffv1.mkv", 0), ("vp9.mkv", 8)):
        path = write_clip(tmp_path / kind, [quarters(34, 46)[:33, :45]] * 2, kind=kind)
        (picture, _) = read(path)
        assert picture.shape == (33, 45, 3)
        for number, (row, column) in enumerate(((4, 4), (4, 40), (28, 4), (28, 40))):
            assert np.abs(picture[row, column].astype(int) - COLOURS[number]).max() <= limit


# Colours


@pytest.mark.parametrize(
    ("matrix", "space"), [("bt601", 5), ("smpte170m", 6), ("bt709", 1), ("smpte240m", 7), ("bt2020", 9), ("bt601", 2)]
)
@pytest.mark.parametrize(("range_", "number"), [("tv", 1), ("pc", 2)])
@pytest.mark.parametrize("pixel_format", ["yuv444p", "yuv420p", "yuv444p10le"])
def test_matrix_and_range(tmp_path: Path, matrix: str, space: int, range_: str, number: int, pixel_format: str) -> None:
    planes = []
    for colour in range(len(COLOURS)):
        frame = to_frame(plain(colour), pixel_format, f"out_color_matrix={matrix}:out_range={range_}")
        depth = np.uint16 if "10" in pixel_format else np.uint8
        planes.append(
            [
                np.frombuffer(bytes(plane), np.uint8)
                .reshape(plane.height, plane.line_size)
                .view(depth)[:, : plane.width]
                for plane in frame.planes
            ]
        )
    path = write_planes(tmp_path / "a.mkv", planes, pixel_format, {"colorspace": space, "color_range": number})
    found = read(path)
    assert np.abs(found.astype(int) - COLOURS[:, None, None].astype(int)).max() <= 3


def pq(nits: float) -> float:
    """The inverse of the transfer of SMPTE ST 2084: nits → 0..1."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = (nits / 10_000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def hlg(nits: float) -> float:
    """The inverse of HLG's transfers for a grey on a screen of 1000 nits."""
    scene = (nits / 1000) ** (1 / 1.2)
    return (
        float(np.sqrt(3 * scene))
        if scene <= 1 / 12
        else 0.17883277 * float(np.log(12 * scene - 0.28466892)) + 0.55991073
    )


@pytest.mark.parametrize(("signal", "transfer"), [(pq, 16), (hlg, 18)])
def test_hdr(tmp_path: Path, signal, transfer: int) -> None:
    """Dark and middle greys keep their brightness relative to a white of 203 nits; brighter ones rise up to white."""
    nits = [0.0, 5.0, 20.0, 50.0, 100.0, 150.0, 203.0, 400.0, 1000.0]
    planes = [
        [
            np.full((16, 16), round(64 + 876 * signal(each)), np.uint16),
            np.full((8, 8), 512, np.uint16),
            np.full((8, 8), 512, np.uint16),
        ]
        for each in nits
    ]
    tags = {"colorspace": 9, "color_range": 1, "color_primaries": 9, "color_trc": transfer}
    path = write_planes(tmp_path / "a.mkv", planes, "yuv420p10le", tags)
    found = read(path)[:, 8, 8].astype(int)
    assert (found.max(axis=1) - found.min(axis=1)).max() <= 2
    for each, grey in zip(nits[:6], found[:6, 1], strict=True):
        assert grey == pytest.approx(255 * (each / 203) ** (1 / 2.4), abs=4)
    assert (np.diff(found[:, 1]) > 0).all() and 225 < found[6, 1] < 245 and found[-1, 1] >= 254
    assert any("HDR" in note for note in open_clip(path).notes)


def test_wide_colours_without_hdr(tmp_path: Path) -> None:
    """BT.709's red in the primaries of BT.2020, by the matrix of ITU-R BT.2087."""
    linear = np.array([0.6274, 0.0691, 0.0164]) * 0.5
    red, green, blue = linear ** (1 / 2.4)
    luma = 0.2627 * red + 0.678 * green + 0.0593 * blue
    codes = [64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746]
    planes = [[np.full((16, 16), round(code), np.uint16) for code in codes]]
    tags = {"colorspace": 9, "color_range": 1, "color_primaries": 9, "color_trc": 14}
    path = write_planes(tmp_path / "a.mkv", planes, "yuv444p10le", tags)
    (found,) = read(path)
    assert np.abs(found[8, 8].astype(int) - [round(255 * 0.5 ** (1 / 2.4)), 0, 0]).max() <= 20
    assert found[8, 8, 0] == pytest.approx(255 * 0.5 ** (1 / 2.4), abs=3)


# Geometry

TURNS = {
    "upright": ((1, 0, 0, 1), lambda p: p),
    "a quarter clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "a quarter the other way": ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
    "upside down": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "mirrored upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "mirrored at the diagonal": ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
    "mirrored at the other one": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
}


@pytest.mark.parametrize("name", TURNS)
def test_display_matrix(tmp_path: Path, name: str) -> None:
    matrix, turned = TURNS[name]
    path = write_clip(tmp_path / "a.mov", [quarters()] * 3, kind="png.mov")
    set_display_matrix(path, *matrix)
    for picture in read(path):
        assert np.array_equal(picture, turned(quarters()))


def test_a_players_view_of_a_turned_file(tmp_path: Path) -> None:
    """Pillow and PyAV agree on what a rotation by 90 degrees is: PyAV's angle is counter-clockwise."""
    path = write_clip(tmp_path / "a.mov", [quarters()], kind="png.mov")
    set_display_matrix(path, 0, 1, -1, 0)
    with av.open(str(path)) as container:
        angle = next(container.decode(video=0)).rotation
    assert np.array_equal(read(path, frames=1)[0], np.asarray(Image.fromarray(quarters()).rotate(angle, expand=True)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo(tmp_path: Path, orientation: int) -> None:
    """As Pillow shows it. FFmpeg gives its EXIF beside the picture, a kind of data that PyAV has no name for."""
    notes = Image.Exif()
    notes[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "photo.jpg"
    Image.fromarray(quarters()).save(path, exif=notes, quality=100, subsampling=0)
    (picture,) = read(path, frames=1)
    assert np.abs(picture.astype(int) - load_image(path).numpy()).max() <= 2
    assert open_clip(path).notes == (() if orientation == 1 else ("photo.jpg: it was turned upright",))


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_a_picture_with_exif(tmp_path: Path, name: str) -> None:
    notes = Image.Exif()
    notes[ExifTags.Base.Artist] = "somebody"
    Image.fromarray(quarters()).save(tmp_path / name, exif=notes, **({"lossless": True} if name == "a.webp" else {}))
    assert np.array_equal(read(tmp_path / name, frames=1)[0], quarters())


def test_transparency_that_is_not_decoded_is_told(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.webm"), "w") as output:
        stream = output.add_stream("libvpx-vp9", rate=24, options={"auto-alt-ref": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 4), 128, np.uint8), format="rgba")
        output.mux(stream.encode(frame.reformat(format="yuva420p")))
        output.mux(stream.encode())
    (note,) = open_clip(tmp_path / "a.webm").notes
    assert "its transparency is not read" in note


@pytest.mark.parametrize(
    ("aspect", "size"), [(Fraction(4, 3), (48, 85)), (Fraction(1, 2), (96, 64)), (Fraction(1), (48, 64))]
)
def test_pixels_that_are_not_square(tmp_path: Path, aspect: Fraction, size: tuple[int, int]) -> None:
    path = write_clip(tmp_path / "a.mp4", [quarters()] * 2, kind="h264.mp4", aspect=aspect)
    (picture, _) = read(path)
    assert picture.shape[:2] == size
    height, width = size
    for number, (row, column) in enumerate(((4, 4), (4, width - 5), (height - 5, 4), (height - 5, width - 5))):
        assert np.abs(picture[row, column].astype(int) - COLOURS[number]).max() <= 8


def test_a_turned_file_whose_pixels_are_not_square(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mov", [quarters()], kind="h264.mp4", aspect=Fraction(2))
    set_display_matrix(path, 0, 1, -1, 0)
    clip = open_clip(path)
    assert (clip.width, clip.height) == (48, 128)
    assert "turned" in " ".join(clip.notes) and "2:1" in " ".join(clip.notes)


def test_interlaced(tmp_path: Path) -> None:
    """A bar that moves from field to field has smooth edges afterwards, and what stands still keeps its pixels."""
    pictures = []
    for number in range(8):
        picture = np.full((64, 96, 3), 60, np.uint8)
        for field in (0, 1):
            at = 8 + 8 * number + 4 * field
            picture[field::2, at : at + 12] = 220
        picture[:, 88:] = 140
        pictures.append(picture)
    options = {"flags": "+ilme+ildct", "crf": "1"}
    path = write_clip(tmp_path / "a.mp4", pictures, kind="h264.mp4", options=options, field_first="tff")
    found = read(path).astype(int)
    assert len(found) == 8 and "deinterlaced" in " ".join(open_clip(path).notes)

    def combed(picture: np.ndarray) -> float:
        luma = picture[8:-8, :, 0]
        return float(np.abs(2 * luma[1:-1] - luma[:-2] - luma[2:]).mean())

    before = [combed(picture.astype(int)) for picture in pictures]
    assert max(combed(picture) for picture in found) < min(before) / 4
    assert np.abs(found[:, :, 92] - 140).max() <= 6
    for number, picture in enumerate(found):  # the time of the first field
        bright = np.flatnonzero(picture[32, :, 0] > 140)
        assert abs(bright[0] - (8 + 8 * number)) <= 1


def test_the_size_changes(tmp_path: Path) -> None:
    small = write_clip(tmp_path / "a.ts", [plain(0)] * 6, kind="mpeg2.ts").read_bytes()
    large = write_clip(tmp_path / "b.ts", [plain(1, 96, 128)] * 6, kind="mpeg2.ts").read_bytes()
    path = tmp_path / "c.ts"
    path.write_bytes(small + large)
    found = read(path, frames=12)
    assert found.shape == (12, 48, 64, 3) and {0, 1} == set(numbers(found))


# Times


def wanted_at(times: list[Fraction], fps: Fraction, frames: int, start: Fraction, tick: Fraction) -> list[int]:
    zero = times[0]
    asked = [start + Fraction(number) / fps for number in range(frames)]
    return [max(k for k, time in enumerate(times) if k == 0 or time - zero - tick / 2 <= at) for at in asked]


@pytest.mark.parametrize("seed", range(12))
def test_variable_rate(tmp_path: Path, seed: int) -> None:
    """Against a plain rule, for random times, rates and starts: the last picture at or before."""
    draw = random.Random(seed)
    kind, tick = draw.choice([("ffv1.mkv", Fraction(1, 1000)), ("png.mov", Fraction(1, 90000))])
    times = [Fraction(draw.choice([0, 0, 700]), 1000)]
    for _ in range(6):
        times.append(times[-1] + Fraction(draw.choice([7, 20, 33, 40, 41, 42, 83, 250]), 1000))
    path = write_clip(tmp_path / kind, [plain(n) for n in range(7)], kind=kind, times=times)
    fps = draw.choice([Fraction(24), Fraction(25), Fraction(24000, 1001), Fraction(60), Fraction(10), Fraction(1000)])
    start = draw.choice([Fraction(0), Fraction(1, 24), Fraction(1, 3), Fraction(3)])
    frames = draw.randrange(1, 60)
    assert numbers(read(path, fps, frames, start)) == wanted_at(times, fps, frames, start, tick)


@pytest.mark.parametrize("kind", ["h264.mp4", "vp9.mkv", "h264.flv", "mpeg2.ts", "mpeg4.avi", "png.mov"])
@pytest.mark.parametrize("fps", [Fraction(24), Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001)])
def test_the_own_rate_gives_every_frame_once(tmp_path: Path, kind: str, fps: Fraction) -> None:
    """Also where the container rounds times, as Matroska and FLV do to milliseconds."""
    path = write_clip(tmp_path / kind, [plain(n) for n in range(50)], kind=kind, fps=fps)
    clip = open_clip(path)
    assert clip.fps == fps and clip.count(fps) == 50
    assert numbers(read(path, fps)) == [n % len(COLOURS) for n in range(50)]


def without_rate(path: Path) -> Path:
    """A Matroska file without the usual length of its frames, as browsers record it."""
    content = bytearray(path.read_bytes())
    at = content.index(b"\x23\xe3\x83")  # DefaultDuration
    length = content[at + 3] & 0x7F
    content[at : at + 4 + length] = bytes([0xEC, 0x80 | (2 + length)]) + bytes(2 + length)  # an empty element
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("fps", [12, 15, Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 50, 60, 120], ids=str)
def test_a_matroska_file_with_moved_pictures_does_not_tell_its_rate(tmp_path: Path, fps: Fraction) -> None:
    """FFmpeg's mean is then that of the first lengths, which are rounded to milliseconds."""
    path = write_clip(tmp_path / "a.mkv", [quarters() + n for n in range(60)], kind="h264_10bit.mkv", fps=Fraction(fps))
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert times != sorted(times)
    clip = open_clip(without_rate(path))
    assert (clip.fps, clip.count(clip.fps), clip.notes) == (fps, 60, ())


@pytest.mark.parametrize("kind", ["vp8.webm", "h264_10bit.mkv"])
def test_a_browsers_recording_does_not_tell_its_rate(tmp_path: Path, kind: str) -> None:
    """FFmpeg guesses 1000 a second, which are the ticks of its clock."""
    draw = random.Random(3)
    times = [Fraction(0)]
    while len(times) < 60:
        times.append(times[-1] + Fraction(draw.choice([28, 31, 33, 34, 36, 40]), 1000))
    options = {"deadline": "realtime", "cpu-used": "8"} if kind == "vp8.webm" else {}
    pictures = [plain(n) for n in range(60)]
    clip = open_clip(without_rate(write_clip(tmp_path / kind, pictures, kind=kind, times=times, options=options)))
    assert float(clip.fps) == pytest.approx(59 / times[-1], rel=1e-5)
    assert clip.count(clip.fps) == 60 and clip.notes == ()
    assert float(clip.seconds) == pytest.approx(60 * times[-1] / 59, rel=1e-5)


RAW = {
    "h264": "libx264", "hevc": "libx265", "m2v": "mpeg2video", "m1v": "mpeg1video", "m4v": "mpeg4",
    "ivf": "libvpx-vp9", "y4m": "wrapped_avframe",
}  # fmt: skip
"""Kinds of files without a container, or with hardly one, by a codec."""


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(24000, 1001), Fraction(25), Fraction(60)], ids=str)
@pytest.mark.parametrize("kind", RAW)
def test_a_raw_stream(tmp_path: Path, kind: str, fps: Fraction) -> None:
    """Its own headers tell the rate, and all its pictures are seen."""
    path = write_raw(tmp_path / f"a.{kind}", fps, 20)
    clip = open_clip(path)
    assert clip.fps == fps and clip.count(fps) == 20
    assert numbers(read(path, fps, 20)) == [n % len(COLOURS) for n in range(20)]
    assert numbers(read(path, fps, 5, 10 / fps)) == [n % len(COLOURS) for n in range(10, 15)]


def test_a_raw_stream_with_repeated_fields(tmp_path: Path) -> None:
    """As on DVDs of films: 24 pictures a second are shown in 60 fields, three and two in turns."""
    content = bytearray(write_raw(tmp_path / "a.m2v", Fraction(30000, 1001), 20).read_bytes())
    at, pictures = content.find(EXTENSION), 0
    while at >= 0:
        if content[at + 4] >> 4 == 1:
            content[at + 5] &= ~0x08  # of the sequence: it is not progressive
        elif content[at + 4] >> 4 == 8:
            content[at + 7] |= pictures % 2 << 1  # of a picture: its first field is repeated
            content[at + 8] |= 0x80  # it is progressive
            pictures += 1
        at = content.find(EXTENSION, at + 4)
    (tmp_path / "a.m2v").write_bytes(content)
    clip = open_clip(tmp_path / "a.m2v")
    assert pictures == 20 and clip.count(clip.fps) == 25 and clip.fps == Fraction(30000, 1001)
    wanted = [n % len(COLOURS) for n in range(20)]
    assert numbers(read(tmp_path / "a.m2v", clip.fps * 4 / 5 - Fraction(1, 1000))) == wanted


@pytest.mark.parametrize("moved", [False, True], ids=["in order", "out of order"])
@pytest.mark.parametrize("stored", [FIELDS, FRAMES, MIXED])
@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001)], ids=str)
def test_a_raw_stream_of_fields(tmp_path: Path, fps: Fraction, stored: str, moved: bool) -> None:
    """A picture is shown as long whether it is stored as one frame or as two fields."""
    levels = list(range(20, 200, 9))
    order = [0, *(number for third in range(1, 19, 3) for number in (third + 2, third, third + 1)), 19]
    path = write_fields(tmp_path / "a.h264", levels, fps, stored, order if moved else None)
    clip = open_clip(path)
    assert clip.fps == fps and clip.count(fps) == len(levels)
    found = read(path, fps)[:, 9, 9, 0].astype(float) * 219 / 255 + 16
    assert np.abs(found - levels).max() < 1


@pytest.mark.parametrize("top", [True, False], ids=["top", "bottom"])
@pytest.mark.parametrize("name", ["a.hevc", "a.ts", "a.mp4", "a.mkv", "whole.mkv", "alone.mkv"])
def test_hevc_of_fields(tmp_path: Path, name: str, top: bool) -> None:
    """Each field is a picture of its own in the file, a bar moves from one to the next beside a ramp that stands still,
    and the last field may be alone."""
    path, pictures = tmp_path / name, []
    with av.open(str(path), "w") as output:
        params = f"interlace={'tff' if top else 'bff'}:crf=4:log-level=none:pools=1"
        stream = output.add_stream("libx265", rate=50, options={"x265-params": params})
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        for number in range(23 if name == "alone.mkv" else 24):
            picture = np.full((64, 96, 3), 60, np.uint8)
            picture[:, 2 + 2 * number : 14 + 2 * number] = 220
            picture[:, 72:] = 20 + 3 * np.arange(64)[:, None, None]
            frame = to_frame(picture[number % 2 if top else 1 - number % 2 :: 2], "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 50)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    if name == "whole.mkv":  # its header tells how long a whole picture is shown
        content = path.read_bytes()
        told = [b"\x23\xe3\x83\x84" + round(1e9 / rate).to_bytes(4, "big") for rate in (50, 25)]
        assert told[0] in content
        path.write_bytes(content.replace(*told))
    clip = open_clip(path)
    assert (clip.width, clip.height, clip.fps, clip.count(clip.fps)) == (96, 64, 25, 12)
    assert clip.notes == (f"{name}: it is interlaced, and was deinterlaced",)
    pictures = read(path, clip.fps).astype(int)[..., 0]
    for number, picture in enumerate(pictures):  # the time of the first field
        assert abs(int(np.flatnonzero(picture[32] > 140)[0]) - 2 - 4 * number) <= 1
        assert np.abs(2 * picture[1:-1] - picture[:-2] - picture[2:]).max() < 60, "no combs"
    ramp = np.diff(pictures[:-1, 4:-4, 76:92].mean(axis=2), axis=1)
    assert ramp.min() > 0 and ramp.max() < 6, "each row is in its place"
    assert np.array_equal(read(path, clip.fps, 3, 7 / clip.fps)[..., 0], pictures[7:10])


EXTENSION = b"\0\0\1\xb5"


def write_raw(path: Path, fps: Fraction, frames: int) -> Path:
    with av.open(str(path), "w", format={"m2v": "mpeg2video", "m1v": "mpeg1video"}.get(path.suffix[1:])) as output:
        stream = output.add_stream(RAW[path.suffix[1:]], rate=fps, options={"x265-params": "log-level=none:pools=1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            frame = to_frame(plain(number), "yuv420p")
            frame.pts, frame.time_base = number, 1 / fps
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


@pytest.mark.parametrize("fps", [24, 60])
def test_times_that_are_sums_of_rounded_lengths(tmp_path: Path, fps: int) -> None:
    """FFmpeg rounds each length in an animated PNG to its ticks, and adds them up."""
    path = tmp_path / "a.png"
    with av.open(str(path), "w", format="apng") as output:
        stream = output.add_stream("apng", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        for number in range(100):
            frame = av.VideoFrame.from_ndarray(plain(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    clip = open_clip(path)
    assert clip.fps == fps and clip.count(clip.fps) == 100
    assert numbers(read(path, clip.fps)) == [n % len(COLOURS) for n in range(100)]


@pytest.mark.parametrize("kind", ["h264.ts", "ffv1.mkv", "h264.flv"])
@pytest.mark.parametrize("fps", [Fraction(24), Fraction(24000, 1001), Fraction(30), Fraction(60000, 1001)])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_part_cut_out_of_a_longer_file(tmp_path: Path, kind: str, fps: Fraction, first: int) -> None:
    """Its first picture's time is rounded like the others, so that they may be a whole tick late after it."""
    times = [number / fps for number in range(first, first + 50)]
    path = write_clip(tmp_path / kind, [plain(n) for n in range(50)], kind=kind, fps=fps, times=times)
    clip = open_clip(path)
    assert clip.fps == fps and clip.count(fps) == 50
    assert numbers(read(path, fps)) == [n % len(COLOURS) for n in range(50)]


def test_half_and_double_rate(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [plain(n) for n in range(7)])
    assert numbers(read(path, Fraction(12))) == [0, 2, 4, 6]
    assert numbers(read(path, Fraction(48))) == [n // 2 for n in range(14)]
    assert numbers(read(path, Fraction(24), 5, Fraction(100))) == [6] * 5


def test_frames_stream(tmp_path: Path) -> None:
    """What is asked for is decoded, and no more."""
    path = write_clip(tmp_path / "a.mkv", (plain(n) for n in range(200)))
    pictures = open_clip(path).pictures(RATE, 200)
    assert numbers(np.stack([next(pictures).numpy() for _ in range(3)])) == [0, 1, 2]
    pictures.close()


# Sound


def tone(seconds: float) -> np.ndarray:
    return 0.5 * np.sin(np.arange(round(seconds * 48000)) * 2 * np.pi * 440 / 48000)


@pytest.mark.parametrize("late", [0.0, 0.5, 1.25])
@pytest.mark.parametrize("kind", ["h264.mp4", "ffv1.mkv", "mpeg2.ts", "png.mov"])
def test_sound_that_begins_late(tmp_path: Path, kind: str, late: float) -> None:
    path = write_clip(tmp_path / kind, [plain(n) for n in range(48)], kind=kind, sound=(tone(0.6), late))
    track = clip_track(path)
    first = int((track.waveform[0].abs() > 0.1).int().argmax()) / track.rate
    assert first == pytest.approx(late, abs=0.03)


def test_sound_that_begins_before_the_picture(tmp_path: Path) -> None:
    """A click at 1 s of the sound, whose picture begins at 0.5 s, is 0.5 s behind the first picture."""
    samples = np.zeros(72000)
    samples[48000:48100] = 0.9
    times = [Fraction(1, 2) + Fraction(n, 24) for n in range(24)]
    path = write_clip(
        tmp_path / "a.mov", [plain(n) for n in range(24)], kind="png.mov", times=times, sound=(samples, 0)
    )
    track = clip_track(path)
    assert int(track.waveform[0].abs().argmax()) / track.rate == pytest.approx(0.5, abs=0.003)
    assert numbers(read(path, frames=4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("seconds", [Fraction(1, 2), Fraction(51, 50)], ids=str)
@pytest.mark.parametrize(
    ("kind", "sound"),
    [("h264.mp4", "mp2"), ("ffv1.mkv", "vorbis"), ("ffv1.mkv", "pcm_s16le"), ("vp8.webm", "libopus")],
    ids=["h264 mp2", "ffv1 vorbis", "ffv1 pcm", "vp8 opus"],
)
@pytest.mark.parametrize("late", [Fraction(0), Fraction(1, 4)], ids=["together", "late sound"])
def test_times_before_zero(tmp_path: Path, kind: str, sound: str, seconds: Fraction, late: Fraction) -> None:
    """FFmpeg does not tell such times of Matroska. All pictures are seen, and a click stays with its picture."""
    samples = np.zeros(96000)
    samples[48000:48400] = 0.9
    pictures = [plain(number) for number in range(48)]
    heard = {"sound": (samples, float(late)), "sound_codec": sound}
    source = write_clip(tmp_path / f"whole.{kind[-3:]}", pictures, kind=kind, **heard)
    path = earlier(tmp_path / "a.mkv", source, seconds, "matroska")
    clip, usual = open_clip(path), open_clip(earlier(tmp_path / "b.mkv", source, Fraction(0), "matroska"))
    assert (clip.fps, clip.count(RATE), clip.notes) == (usual.fps, 48, ()) and usual.fps == 24
    assert numbers(read(path, RATE, 48)) == [number % len(COLOURS) for number in range(48)]
    assert numbers(read(path, RATE, 4, Fraction(20, 24))) == [number % len(COLOURS) for number in range(20, 24)]
    at = [int((clip_track(each).waveform[0].abs() > 0.4).int().argmax()) / 48000 for each in (source, path)]
    assert at[1] == pytest.approx(at[0], abs=0.004) and at[0] == pytest.approx(1 + late, abs=0.04)


@pytest.mark.parametrize("sound", ["aac", "libmp3lame"])
@pytest.mark.parametrize("seconds", [Fraction(0), Fraction(1, 2), Fraction(51, 50)], ids=str)
def test_times_before_zero_in_flv(tmp_path: Path, seconds: Fraction, sound: str) -> None:
    """They lose their sign, and FFmpeg takes what comes after time 0 for 25 days later."""
    samples = np.zeros(96000)
    samples[48000:48400] = 0.9
    heard = {"sound": (samples, 0.0), "sound_codec": sound}
    source = write_clip(tmp_path / "whole.mp4", [plain(n) for n in range(48)], kind="h264.mp4", **heard)
    path = earlier(tmp_path / "a.flv", source, seconds, "flv")
    with av.open(str(path)) as container:
        assert next(packet.dts for packet in container.demux(video=0)) > 2**30
    clip = open_clip(path)
    assert (clip.fps, clip.count(RATE), clip.notes) == (24, 48, ())
    assert numbers(read(path, RATE, 48)) == [number % len(COLOURS) for number in range(48)]
    at = [int((clip_track(each).waveform[0].abs() > 0.4).int().argmax()) / 48000 for each in (source, path)]
    assert at[1] == pytest.approx(at[0], abs=0.004)


def test_vorbis_before_zero(tmp_path: Path) -> None:
    """Of blocks of several lengths, FFmpeg counts the times that it does not know from 0."""
    samples = np.zeros(96000)
    samples[48000:48400] = 0.9
    whole, path = tmp_path / "whole.mp4", tmp_path / "a.mkv"
    write_clip(whole, [plain(number) for number in range(48)], kind="h264.mp4", sound=(samples, 0.0))
    codecs = ["-c:v", "copy", "-c:a", "libvorbis", "-output_ts_offset", "-1.5", "-avoid_negative_ts", "disabled"]
    subprocess.run([tool("ffmpeg"), "-v", "error", "-i", whole, *codecs, path], check=True)
    at = [int((clip_track(each).waveform[0].abs() > 0.4).int().argmax()) / 48000 for each in (whole, path)]
    assert at[1] == pytest.approx(at[0], abs=0.004)


@pytest.mark.parametrize("format", ["mp4", "mov"])
def test_what_an_edit_list_leaves_out_is_not_seen(tmp_path: Path, format: str) -> None:
    """As every player does: half a second was cut off at the beginning, with its sound."""
    samples = np.zeros(96000)
    samples[48000:48400] = 0.9
    source = write_clip(tmp_path / "whole.mp4", [plain(n) for n in range(48)], kind="h264.mp4", sound=(samples, 0.0))
    path = earlier(tmp_path / f"a.{format}", source, Fraction(1, 2), format)
    assert open_clip(path).count(RATE) == 36 and open_clip(path).notes == ()
    assert numbers(read(path)) == [number % len(COLOURS) for number in range(12, 48)]
    at = int((clip_track(path).waveform[0].abs() > 0.4).int().argmax()) / 48000
    assert at == pytest.approx(0.5, abs=0.04)


def test_without_sound(tmp_path: Path) -> None:
    assert clip_track(write_clip(tmp_path / "a.mkv", [plain(0)] * 3)) is None


def test_a_reference_may_be_a_picture(tmp_path: Path) -> None:
    """It is read as the other pictures of a job are: upright, in sRGB, and black where it is transparent."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(quarters()).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.new("RGBA", (48, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    for name in ("turned.jpg", "clear.png"):
        clip = open_reference(tmp_path / name)
        first, second = clip.pictures(RATE, 2)
        assert torch.equal(first, load_image(tmp_path / name)) and second is first, "what is held is scaled once"
        assert (clip.name, clip.count(clip.fps), clip.notes) == (name, 1, ())
    assert isinstance(open_reference(write_clip(tmp_path / "a.mp4", [plain(0)], kind="h264.mp4")), FileClip)
    with pytest.raises(InputError, match=r"^none\.png: no such file"):
        open_reference(tmp_path / "none.png")


# What cannot be used


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    return str(caught.value)


def test_no_clip(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no film" * 500)
    assert "the file is empty" in refusal(tmp_path / "empty.mp4")
    assert "cannot be read" in refusal(tmp_path / "text.mp4")
    assert "no such file" in refusal(tmp_path / "none.mp4")
    assert "is a folder" in refusal(tmp_path)


def test_an_animated_webp_is_no_damaged_one(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=100)
    if int(av.__version__.split(".")[0]) < 19:
        assert "animated WebP is not read: export it again" in refusal(tmp_path / "a.webp")
        return
    clip = open_clip(tmp_path / "a.webp")  # newer FFmpeg reads it
    red, blue = clip.pictures(Fraction(10), 2)
    assert clip.count(Fraction(10)) == 2 and red[0, 0, 0] > 200 > blue[0, 0, 0] and blue[0, 0, 2] > 200


def test_only_sound(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.wav"), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
        frame.rate = 48000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    assert "has no moving picture" in refusal(tmp_path / "a.wav")


def test_too_large(tmp_path: Path) -> None:
    Image.new("L", (17_000, 2)).save(tmp_path / "a.png")
    assert "at most 80 megapixels" in refusal(tmp_path / "a.png")
    path = write_clip(tmp_path / "b.mp4", [quarters(400, 800)], kind="h264.mp4", aspect=Fraction(30))
    assert "at most 80 megapixels" in refusal(path)


def test_a_playlist_reads_no_other_file(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.ts", [plain(0)] * 6, kind="mpeg2.ts")
    for name, text in {
        "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n",
        "a.ffconcat": "ffconcat version 1.0\nfile a.ts\n",
    }.items():
        (tmp_path / name).write_text(text)
        assert "cannot be read" in refusal(tmp_path / name) or "has no moving picture" in refusal(tmp_path / name)


@pytest.mark.parametrize("kind", ["h264.mp4", "ffv1.mkv", "mpeg2.ts", "mjpeg.avi", "vp8.webm", "prores.mov"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_file(tmp_path: Path, kind: str, share: float) -> None:
    """What is there is read, and held to the asked length; otherwise there is one sentence."""
    noise = np.random.default_rng(1).integers(0, 255, (30, 48, 64, 3), dtype=np.uint8) // 8
    path = write_clip(tmp_path / kind, [plain(n) // 2 + noise[n] for n in range(30)], kind=kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    try:
        clip = open_clip(path)
    except InputError as error:
        assert str(error).startswith(kind) and str(error).endswith(".")
        return
    assert 1 <= clip.count(RATE) <= 30
    assert sum(1 for _ in clip.pictures(RATE, 30)) == 30


def test_damaged_parts_are_told(tmp_path: Path) -> None:
    path = write_damaged(tmp_path / "a.mov", (20, 32, 32))
    told: list[str] = []
    pictures = list(open_clip(path).pictures(RATE, 20, note=told.append))
    assert len(pictures) == 20 and any("damaged" in text for text in told)


@pytest.mark.parametrize("fault", ["zeros", "noise"])
@pytest.mark.parametrize("live", ["0", "1"], ids=["whole", "live"])
def test_a_hole_in_matroska_is_told(tmp_path: Path, fault: str, live: str) -> None:
    """FFmpeg goes on behind it without a word. Nothing is said of a file that is whole, or that ends too early."""
    path = tmp_path / "a.mkv"
    options = {"cluster_time_limit": "500", "live": live}
    with av.open(str(path), "w", format="matroska", options=options) as output:
        stream = output.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for number in range(96):
            noisy = plain(number) // 2 + np.random.default_rng(number).integers(0, 99, (48, 64, 3), dtype=np.uint8)
            frame = to_frame(noisy, "bgr0")
            frame.pts, frame.time_base = number, 1 / RATE
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    content, told = path.read_bytes(), "a.mkv: damaged parts of it were left out"
    size = len(content)
    assert open_clip(path).notes == ()
    hole = bytes(size // 10) if fault == "zeros" else np.random.default_rng(1).bytes(size // 10)
    path.write_bytes(content[: size // 2] + hole + content[size // 2 + len(hole) :])
    clip, met = open_clip(path), []
    assert clip.notes == (told,)
    assert sum(1 for _ in clip.pictures(RATE, 96, note=met.append)) == 96 and not met, "it is told once"
    path.write_bytes(content[: size // 2] + bytes(size // 10))
    assert told not in open_clip(path).notes


FILMS = {
    "a.mpg": ("mpeg2video", "mp2"), "a.ts": ("libx264", "ac3"), "a.wmv": ("wmv2", "wmav2"), "a.nut": ("mpeg4", "mp2"),
    "a.flv": ("libx264", "aac"), "a.vob": ("mpeg2video", "ac3"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILMS)
def test_a_hole_is_told(tmp_path: Path, name: str) -> None:
    """FFmpeg goes on behind it. Nothing is said of a file whose picture stands still, or whose sound stops."""
    path, told = tmp_path / name, (f"{name}: damaged parts of it", f"{name}: it has neither picture nor sound from 4.")
    with av.open(str(path), "w") as output:
        picture = output.add_stream(FILMS[name][0], rate=25)
        sound = output.add_stream(FILMS[name][1], rate=48000, layout="mono")
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        picture.codec_context.bit_rate, sound.codec_context.bit_rate = 2_000_000, 64_000
        noise = np.random.default_rng(0)
        for number in range(250):
            frame = to_frame(noise.integers(0, 255, (48, 64, 3), dtype=np.uint8), "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            block = noise.standard_normal((1, 1920)).astype(np.float32) / 50
            heard = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = 48000, number * 1920, Fraction(1, 48000)
            output.mux(picture.encode(frame))
            output.mux(sound.encode(heard))
        output.mux(picture.encode())
        output.mux(sound.encode())
    assert open_clip(path).notes == () and clip_track(path).notes == ()
    content = path.read_bytes()
    length = len(content) // 10
    path.write_bytes(content[: len(content) // 2 - length] + bytes(length) + content[len(content) // 2 :])
    notes = open_clip(path).notes
    steady = FILMS[name][0] == "mpeg2video"  # each picture has its place, so those that lack are lost
    assert [note.startswith(told[0 if steady else 1]) for note in notes].count(True) == 1, notes
    if name == "a.ts":  # whole packets of its own are missing, and their numbers show it
        path.write_bytes(
            content[: len(content) // 376 * 188 - length // 188 * 188] + content[len(content) // 376 * 188 :]
        )
        assert any(note.startswith(told[0]) for note in open_clip(path).notes)


@pytest.mark.parametrize("fault", ["zeros", "noise"])
def test_a_hole_in_avi_is_told(tmp_path: Path, fault: str) -> None:
    """FFmpeg counts its pictures, so no time shows it. A file that only ends too early has none."""
    path, noise = tmp_path / "a.avi", np.random.default_rng(0)
    write_clip(path, noise.integers(0, 255, (96, 48, 64, 3), dtype=np.uint8), kind="mjpeg.avi", sound=(tone(4), 0.0))
    content, told = path.read_bytes(), "a.avi: damaged parts of it were left out"
    assert open_clip(path).notes == ()
    hole = bytes(len(content) // 10) if fault == "zeros" else noise.bytes(len(content) // 10)
    path.write_bytes(content[: len(content) // 2] + hole + content[len(content) // 2 + len(hole) :])
    assert open_clip(path).notes == (told,), "its end is there"
    path.write_bytes(content[: len(content) // 2] + hole * 3 + content[len(content) // 2 + 3 * len(hole) :])
    assert open_clip(path).notes == (told,), "and what is missing is in the middle, however much it is"
    for rest in (content[: len(content) // 2], content + bytes(5000), content[: len(content) // 2] + bytes(5000)):
        path.write_bytes(rest)
        assert told not in open_clip(path).notes


def test_a_still_picture_and_a_pause_of_the_sound_are_no_holes(tmp_path: Path) -> None:
    samples = np.concatenate([np.sin(np.arange(48000) / 20) / 2, np.zeros(48000)])
    times = [Fraction(n, 24) for n in (*range(24), *range(72, 96))]
    pictures = [plain(n) for n in range(48)]
    path = write_clip(tmp_path / "a.mp4", pictures, kind="h264.mp4", times=times, sound=(np.tile(samples, 2), 0.0))
    assert open_clip(path).notes == ()


def test_a_picture_that_is_shown_on_is_no_damage(tmp_path: Path) -> None:
    """Theora stores a picture that does not change as an empty packet."""
    path = tmp_path / "a.ogv"
    still = "color=gray:size=64x48:rate=25:duration=4,fps=25"
    subprocess.run([tool("ffmpeg"), "-v", "error", "-f", "lavfi", "-i", still, "-c:v", "libtheora", path], check=True)
    clip, met = open_clip(path), []
    with av.open(str(path)) as container:
        last = max(packet.pts for packet in container.demux(video=0) if packet.pts is not None)
    assert clip.notes == () and clip.count(clip.fps) == last + 1 > 90
    assert sum(1 for _ in clip.pictures(clip.fps, last + 1, note=met.append)) == last + 1 and not met


def test_a_short_file_is_told(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [quarters() + number for number in range(48)])
    assert open_clip(path).notes == ()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    (note,) = open_clip(path).notes
    assert note.startswith("a.mkv: it is cut short: its last 1.")


def test_fragments_that_end_early_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(str(path), "w", options=options) as output:
        stream = output.add_stream("libx264", rate=24, options={"g": "8"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(48):
            frame = to_frame(quarters() + number, "yuv420p")
            frame.pts, frame.time_base = number, 1 / RATE
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    content = path.read_bytes()
    assert content.count(b"moof") > 4 and open_clip(path).notes == ()
    path.write_bytes(content[: content.rindex(b"moof", 0, len(content) // 2) + 200])
    assert open_clip(path).notes == ("a.mp4: it is cut short or damaged: its end is not read",)
    assert open_clip(path).count(RATE) < 40


def test_a_recording_that_begins_at_a_late_time_is_no_short_file(tmp_path: Path) -> None:
    times = [100 + n / RATE for n in range(20)]
    path = write_clip(tmp_path / "a.mkv", [plain(n) for n in range(20)], times=times)
    clip = open_clip(path)
    assert clip.count(RATE) == 20 and clip.notes == ()


@pytest.mark.parametrize("kind", ["h264.ts", "mpeg2.ts"])
def test_recordings_put_behind_each_other_are_told(tmp_path: Path, kind: str) -> None:
    """Their times begin anew, so the pictures of the second one lie where the first one is."""
    path = write_clip(tmp_path / kind, [plain(n) for n in range(72)], kind=kind, options={"bf": "2"})
    assert open_clip(path).notes == ()
    path.write_bytes(2 * path.read_bytes())
    (note,) = open_clip(path).notes
    assert note.startswith(f"{kind}: its times go back, so 2.") and note.endswith("export it again as MP4")


# Images


def test_a_batch_of_images() -> None:
    images = torch.stack([torch.from_numpy(plain(n)) for n in range(5)]).float() / 255
    clip = ImageClip(images, Fraction(12))
    assert (clip.width, clip.height, clip.seconds, clip.count(RATE)) == (64, 48, Fraction(5, 12), 10)
    found = torch.stack(list(clip.pictures(RATE, 12))).numpy()
    assert numbers(found) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert np.array_equal(found[::2][:5], np.stack([plain(n) for n in range(5)]))


def test_images_equal_the_file(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "a.mkv", pictures)
    clip = ImageClip(torch.from_numpy(pictures).float() / 255, RATE)
    for fps in (RATE, Fraction(10), Fraction(30000, 1001)):
        assert np.array_equal(torch.stack(list(clip.pictures(fps, 9))).numpy(), read(path, fps, 9))


def test_strange_images() -> None:
    with pytest.raises(InputError, match=r"\[frames, height, width, 3\]"):
        ImageClip(torch.zeros(3, 4), RATE)
