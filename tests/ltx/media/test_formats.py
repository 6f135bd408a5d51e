"""The four kinds of file, read by Debian's ffprobe and ffmpeg, which are not the libraries that wrote them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.media import video
from a2v.ltx.media.audio import Track
from a2v.ltx.media.formats import FORMATS, QUALITIES, WRITE_MODES, suffix
from a2v.ltx.media.probe import probe
from a2v.ltx.media.rates import frame_rate
from a2v.ltx.media.video import write_video
from a2v.ltx.request import PARAMETERS
from torch import Tensor

from .test_video import clip, ffmpeg_sound, lag, likeness, sound, tool

MP4, WEBM, MOV, GIF = FORMATS
HEIGHT, WIDTH, FRAMES = 64, 96, 41
CODECS = {
    MP4: ("h264", "yuv420p", "aac"),
    WEBM: ("vp9", "yuv420p", "opus"),
    MOV: ("prores", "yuv444p12le", "pcm_s24le"),
}


def facts(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
    """ffprobe's picture stream, sound stream and container."""
    command = [tool("ffprobe"), "-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json", path]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    streams = {stream["codec_type"]: stream for stream in found["streams"]}
    assert len(streams) == len(found["streams"])
    return streams["video"], streams.get("audio"), found["format"]


def times(path: Path, stream: str) -> list[float]:
    command = [
        tool("ffprobe"),
        "-v",
        "error",
        "-select_streams",
        stream,
        "-show_entries",
        "frame=pts_time",
        "-of",
        "csv=p=0",
    ]
    lines = subprocess.run([*command, path], capture_output=True, check=True, text=True).stdout.split()
    return [float(line.strip(",")) for line in lines]


def pictures(path: Path) -> np.ndarray:
    command = [tool("ffmpeg"), "-v", "error", "-i", path, "-sws_flags", "bicubic+accurate_rnd+full_chroma_int"]
    command += ["-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)


def psnr(path: Path, frames: torch.Tensor) -> float:
    return float(10 * np.log10(255**2 / ((pictures(path).astype(float) - frames.numpy()) ** 2).mean()))


def delays(data: bytes) -> list[int]:
    """Hundredths of a second, from the GIF's graphic control extensions themselves."""
    return [int.from_bytes(found[1], "little") for found in re.finditer(rb"!\xf9\x04.(..).\x00", data, re.DOTALL)]


def resampled(wave: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Fourier interpolation, exact for what is band-limited."""
    samples = len(wave) * to // rate
    return np.fft.irfft(np.fft.rfft(wave), samples) * samples / len(wave)


# What the table promises


def test_the_table_has_the_endpoints_names() -> None:
    for name, choices in (
        ("video_output_type", FORMATS),
        ("video_quality", QUALITIES),
        ("video_write_mode", WRITE_MODES),
    ):
        assert list(PARAMETERS[name].choices) == list(choices)
    for name, kind in FORMATS.items():
        assert tuple(kind.qualities) == QUALITIES and tuple(kind.write_modes) == WRITE_MODES
        assert name.endswith(f"({kind.suffix})") and suffix(name) == kind.suffix
        if kind.rates:
            assert set(kind.rates) <= set(av.Codec(kind.audio_codec, "w").audio_rates)


def test_mistakes_are_named(tmp_path: Path) -> None:
    def write(name: str, **choices: str) -> None:
        write_video(tmp_path / name, [clip(1)], Fraction(24), None, **choices)

    with pytest.raises(InputError, match=r"must end in \.webm"):
        write("v.mp4", format=WEBM)
    with pytest.raises(InputError, match=r"must end in \.mp4"):
        write("v")
    with pytest.raises(InputError, match=r"format is 'mp4': choose one of X264"):
        write("v.mp4", format="mp4")
    with pytest.raises(InputError, match="quality is 'best': choose one of low, medium, high, maximum"):
        write("v.mp4", quality="best")
    with pytest.raises(InputError, match="write mode is 'slow': choose one of fast, balanced, small"):
        write("v.mp4", write_mode="slow")
    assert os.listdir(tmp_path) == []


# Every file, at odd rates, with sound of every kind

SOUNDS = {
    "as long": (2, 44100, 1.0),
    "shorter": (2, 48000, 0.4),
    "longer": (2, 32000, 1.7),
    "telephone": (1, 8000, 1.0),
    "surround": (6, 48000, 1.0),
    "none": None,
}


HEARD = ((23.976, "as long"), (29.97, "shorter"), (7.5, "longer"), (60, "surround"), (59.94, "telephone"), (24, "none"))


@pytest.mark.parametrize(  # each format with half of them, and each of them with a format or two
    ("fps", "heard", "name"),
    [
        pytest.param(*heard, name, marks=[pytest.mark.soak] * ((row + column) % 2))
        for row, heard in enumerate(HEARD)
        for column, name in enumerate((MP4, WEBM, MOV))
    ],
)
def test_picture_and_sound(tmp_path: Path, name: str, fps: float, heard: str) -> None:
    rate = frame_rate(fps)
    seconds = FRAMES / rate
    track = None
    if SOUNDS[heard] is not None:
        channels, samples, share = SOUNDS[heard]
        track = sound(
            channels, samples, round(seconds * samples * share) // 100 * 100
        )  # whole at 48 kHz, too, at 8 kHz
    made = write_video(
        tmp_path / f"v{suffix(name)}", clip(FRAMES).split(8), rate, track, format=name, write_mode="fast"
    )
    picture, audio, container = facts(made.path)
    codec, pixels, audio_codec = CODECS[name]
    assert (picture["codec_name"], picture["pix_fmt"], int(picture["nb_read_frames"])) == (codec, pixels, FRAMES)
    assert made.fps == rate
    for seen in (Fraction(picture["avg_frame_rate"]), Fraction(picture["r_frame_rate"])):
        # A .webm has a frame's duration in nanoseconds, from which FFmpeg takes a fraction of small numbers.
        assert abs(seen - rate) <= (Fraction(1, 10**4) if name == WEBM else 0)
    colours = [picture[f"color_{key}"] for key in ("space", "primaries", "transfer", "range")]
    assert colours == ["bt709", "bt709", "bt709", "tv"]
    assert made.frames == FRAMES and made.duration == seconds
    shown = times(made.path, "v")
    assert max(abs(time - k / float(rate)) for k, time in enumerate(shown)) < 1e-3  # a .webm counts milliseconds
    longest = float(max(seconds, track.seconds if track else 0))
    # A .webm's duration goes to the end of its last block, and Opus has 6.5 ms before its first sample.
    assert abs(float(container["duration"]) - longest) < (0.009 if name == WEBM else 0.001)
    if track is None:
        assert audio is None and made.audio_codec is None
        return

    assert (audio["codec_name"], int(audio["channels"])) == (audio_codec, len(track.waveform))
    written = int(audio["sample_rate"])
    assert written == (48000 if name == WEBM else track.rate)
    back = ffmpeg_sound(made.path, len(track.waveform))
    expected = track.waveform.shape[1] * written / track.rate
    # AAC's last block goes to its end here: the edit list, which test_video reads, is what cuts it.
    assert expected - 1 <= back.shape[1] <= expected + (1 if name != MP4 else 1024 + 64)
    start = min(times(made.path, "a"))  # of the first block that is heard
    skipped = int(audio.get("initial_padding", 0)) / written if start < 0 else 0
    for channel, wave in enumerate(track.waveform.double().numpy()):
        if channel == 3:  # the subwoofer keeps only the lowest octaves
            continue
        reference = wave if written == track.rate else resampled(wave, track.rate, written)
        late = lag(reference, back[channel]) / written + start + skipped
        assert abs(late) < 1e-3, (channel, late)
        assert likeness(reference, back[channel]) > 0.97


@pytest.mark.parametrize("name", FORMATS)
def test_quality_rises_and_small_is_smaller_than_fast(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"v{suffix(name)}"
    # A texture that moves, and faint grain: every quality has something to lose, and every mode something to find.
    random = torch.Generator().manual_seed(0)
    texture = torch.nn.functional.interpolate(torch.rand(1, 3, 40, 60, generator=random) * 230, size=(128, 192))[0]
    texture = torch.nn.functional.avg_pool2d(texture, 3, 1, 1).permute(1, 2, 0)
    moved = torch.stack([texture[t : t + HEIGHT, 2 * t : 2 * t + WIDTH] for t in range(16)])
    frames = (moved + 2 * torch.randn(16, HEIGHT, WIDTH, 1, generator=random)).clamp(0, 255).to(torch.uint8)
    likenesses, sizes = [], []
    for quality in QUALITIES:
        made = {
            mode: write_video(path, frames.split(8), Fraction(24), None, format=name, quality=quality, write_mode=mode)
            and path.stat().st_size
            for mode in ("fast", "small", "balanced")
        }
        likenesses.append(psnr(path, frames))
        sizes.append(made["balanced"])
        if name == MOV:
            assert made["small"] == made["fast"] == made["balanced"]
        else:
            assert made["small"] < made["fast"], quality
    assert (np.diff(likenesses) > 0.5).all(), likenesses
    assert (np.diff(sizes) > 0).all(), sizes


def test_prores_is_true_to_ten_bits(tmp_path: Path) -> None:
    """Each colour against the formula; Debian's decoder gives 12 bits."""
    for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 30, 90)]:
        frames = torch.tensor(colour, dtype=torch.uint8).expand(1, HEIGHT, WIDTH, 3)
        made = write_video(tmp_path / "c.mov", [frames], Fraction(24), None, format=MOV, quality="maximum")
        red, green, blue = (c / 255 for c in colour)
        luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        formula = 64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8556, 512 + 896 * (red - luma) / 1.5748
        raw = subprocess.run(
            [tool("ffmpeg"), "-v", "error", "-i", made.path, "-f", "rawvideo", "-"], capture_output=True, check=True
        ).stdout
        planes = np.frombuffer(raw, "<u2").reshape(3, -1) / 4
        assert abs(planes - np.array(formula)[:, None]).max() <= 1.5, (colour, formula)


@pytest.mark.parametrize(
    ("bits", "rate", "channels"), [(16, 44100, 2), (24, 96000, 6), (16, 11025, 1), (24, 48000, 16)]
)
def test_pcm_gives_the_source_back_bit_for_bit(tmp_path: Path, bits: int, rate: int, channels: int) -> None:
    full = 1 << (bits - 1)
    source = torch.randint(-full, full, (channels, rate), generator=torch.Generator().manual_seed(bits))
    source[:, :2] = torch.tensor([-full, full - 1])
    track = Track((source.double() / full).float(), rate)
    made = write_video(tmp_path / "v.mov", [clip(24)], Fraction(24), track, format=MOV)
    assert (made.audio_codec, made.audio_rate, made.audio_channels) == ("pcm_s24le", rate, channels)
    command = [tool("ffmpeg"), "-v", "error", "-i", made.path, "-map", "0:a", "-f", "s32le", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    back = np.frombuffer(raw, "<i4").reshape(-1, channels).T
    assert np.array_equal(back, source.numpy() << (32 - bits))


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        pytest.param(layout, name, marks=[pytest.mark.soak] * ((row + column) % 2))
        for row, layout in enumerate(("3.0", "quad", "4.0", "5.0(side)", "6.1", "7.1", "octagonal"))
        for column, name in enumerate((MP4, WEBM, MOV))
    ],
)
def test_layouts(tmp_path: Path, name: str, layout: str) -> None:
    """Channels come back in their places, or, where the codec lacks the layout, as the stereo downmix."""
    names = tuple(channel.name for channel in av.AudioLayout(layout).channels)
    track = sound(len(names), 48000, 24000, names)
    made = write_video(tmp_path / f"v{suffix(name)}", [clip(12)], Fraction(24), track, format=name, write_mode="fast")
    back = ffmpeg_sound(made.path, made.audio_channels)
    if made.audio_layout == "stereo":
        assert name == WEBM and layout in ("4.0", "5.0(side)", "6.1", "octagonal")
        return
    assert made.audio_channels == len(names)
    with av.open(str(made.path)) as container:
        kept = [channel.name for channel in container.streams.audio[0].layout.channels]
    if "SL" not in kept:  # FFmpeg 9 stores 6.1 in AAC by its number, whose two at the sides are named for the back
        kept = [{"BL": "SL", "BR": "SR"}.get(speaker, speaker) if "SL" in names else speaker for speaker in kept]
    for channel, speaker in enumerate(names):
        if speaker != "LFE":
            place = channel if set(kept) == {"NONE"} else kept.index(speaker)  # AAC may say no names at all
            assert likeness(track.waveform[channel].numpy(), back[place]) > 0.97, speaker


# GIF


@pytest.mark.parametrize(
    "fps", [23.976, 50, 60, *(pytest.param(fps, marks=pytest.mark.soak) for fps in (24, 29.97, 7.5, 1))]
)
def test_gif(tmp_path: Path, fps: float) -> None:
    rate, track = frame_rate(fps), sound(2, 48000, 48000)
    made = write_video(tmp_path / "v.gif", clip(FRAMES).split(16), rate, track, format=GIF)
    picture, audio, _ = facts(made.path)
    kept = FRAMES if fps <= 50 else 34  # of 41 at 60 frames/s, those that 50 frames/s have room for
    assert picture["codec_name"] == "gif" and audio is None and made.audio_codec is None
    assert int(picture["nb_read_frames"]) == made.frames == kept and made.fps == min(rate, 50)
    data = made.path.read_bytes()
    assert b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00" in data  # loops for ever
    shown = delays(data)
    assert len(shown) == kept and min(shown) >= 2  # what browsers honour
    starts = np.cumsum([0, *shown])
    if fps <= 50:  # no drift: every frame within half a hundredth of its time, the end within one
        assert abs(starts[:-1] - np.arange(kept) * 100 / float(rate)).max() <= 0.5 + 1e-9
        assert abs(starts[-1] - FRAMES * 100 / float(rate)) <= 1
    else:
        assert abs(starts[-1] - FRAMES * 100 / float(rate)) <= 2
    order = [k for k in range(FRAMES) if fps <= 50 or k == 0 or k * 50 // 60 > (k - 1) * 50 // 60]
    distance = np.abs(pictures(made.path)[:, None].astype(int) - clip(FRAMES).numpy()[None].astype(int)).mean((2, 3, 4))
    assert distance.argmin(1).tolist() == order


def test_gif_keeps_frames_that_do_not_change(tmp_path: Path) -> None:
    frames = clip(1).expand(20, -1, -1, -1)
    made = write_video(tmp_path / "v.gif", [frames], Fraction(10), None, format=GIF)
    assert sum(delays(made.path.read_bytes())) == 200 and made.frames == 20


# Metadata


@pytest.mark.parametrize("name", FORMATS)
def test_metadata(tmp_path: Path, name: str) -> None:
    text = {
        "prompt": json.dumps({"3": {"inputs": {"text": 'a "кот" {x}'}}}),
        "workflow": json.dumps({"n": list(range(900))}),
    }
    made = write_video(tmp_path / f"v{suffix(name)}", [clip(9)], Fraction(24), None, format=name, metadata=text)
    assert {key: made.metadata[key] for key in text} == text
    tags = facts(made.path)[2]["tags"]
    if name == GIF:
        assert json.loads(tags["comment"]) == text
    else:
        assert {key.lower(): value for key, value in tags.items() if key.lower() in text} == text
    if name != GIF:  # ComfyUI's frontend reads the first 2 MiB of a .webm, and `udta` of the others
        head = made.path.read_bytes()[: 64 << 10]
        assert b'{"n": [0, 1' in head
    without = write_video(made.path, [clip(9)], Fraction(24), None, format=name).metadata
    assert not set(text) & set(without)


@pytest.mark.parametrize("name", [MP4, MOV])
def test_the_frontend_finds_the_workflow(tmp_path: Path, name: str) -> None:
    """Box by box the way of ComfyUI's frontend: udta in moov, meta with a version, keys and values by number."""
    made = write_video(
        tmp_path / f"v{suffix(name)}", [clip(9)], Fraction(24), None, format=name, metadata={"workflow": '{"a": 1}'}
    )

    def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
        while len(data) >= 8:
            size = int.from_bytes(data[:4], "big")
            yield data[4:8], data[8:size]
            data = data[size:]

    meta = dict(boxes(dict(boxes(dict(boxes(made.path.read_bytes()))[b"moov"]))[b"udta"]))[b"meta"]
    inside = dict(boxes(meta[4:]))
    keys = [key for _, key in boxes(inside[b"keys"][8:])]
    values = {
        int.from_bytes(number, "big"): dict(boxes(value))[b"data"][8:] for number, value in boxes(inside[b"ilst"])
    }
    assert values[keys.index(b"workflow") + 1] == b'{"a": 1}'


@pytest.mark.parametrize("name", FORMATS)
def test_a_note_that_comes_while_the_file_is_written(tmp_path: Path, name: str) -> None:
    """It stands in the file's tags, and the frames and the sound are as without it."""
    notes: list[str] = []
    bare = json.dumps({"prompt": 'ein "Gesicht" 🙂', "notes": []}, ensure_ascii=False)

    def told(chunks: list[Tensor], *, note: str = "") -> Path:
        def frames() -> Iterator[Tensor]:
            yield chunks[0]
            notes[:] = [note] if note else []
            yield from chunks[1:]

        def tags() -> dict[str, str]:
            return {"comment": bare.replace("[]", json.dumps(notes, ensure_ascii=False)), "title": "t"}

        notes.clear()
        path = tmp_path / f"{len(note)}{suffix(name)}"
        track = Track(torch.linspace(-0.5, 0.5, 8000)[None], 8000)
        return write_video(path, frames(), Fraction(24), track, format=name, metadata=tags).path

    plain, noted, long = (told([clip(3), clip(3)], note=note) for note in ("", "smaller tiles, ächz", "x" * 5000))
    comments = [json.loads(probe(path).metadata["comment"])["notes"] for path in (plain, noted, long)]
    assert comments == [[], ["smaller tiles, ächz"], ["x" * 5000] if name == GIF else []]
    assert all(probe(path).metadata.get("title") == "t" for path in (plain, noted, long))
    assert packets(plain) == packets(noted) == packets(long)


def packets(path: Path) -> list[tuple[object, ...]]:
    """Pictures and sound; in a GIF its comment comes as a packet, too."""
    with av.open(str(path)) as container:
        return [
            (p.stream.index, p.pts, bytes(p)) for p in container.demux() if p.size and not bytes(p).startswith(b"!\xfe")
        ]


# Memory, threads, failures


@pytest.mark.skipif(sys.platform == "win32", reason="no ru_maxrss")
@pytest.mark.soak
def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    """Peak memory of a process after 96 frames, and after 288: 85 MB of pictures more."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import conftest, torch
from fractions import Fraction
from a2v.ltx.media.formats import FORMATS
from a2v.ltx.media.video import write_video
torch.set_num_threads(1)
one = torch.arange(384 * 384 * 3).view(1, 384, 384, 3) // 1152
def chunks(frames):
    for start in range(0, frames, 8):
        yield ((one + torch.arange(start, start + 8).view(-1, 1, 1, 1)) % 256).to(torch.uint8)
for frames in (96, 288):
    for name, kind in FORMATS.items():
        write_video({str(tmp_path)!r} + "/v" + kind.suffix, chunks(frames), Fraction(24), None, format=name,
                    quality="low", write_mode="fast")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    short, long = map(int, done.stdout.split())
    assert long - short < 30_000, (short, long)  # KiB


@pytest.mark.parametrize("name", [MP4, WEBM, MOV])
def test_encoders_use_every_core_and_no_slices(tmp_path: Path, name: str) -> None:
    kind = FORMATS[name]
    with av.open(str(tmp_path / f"v{kind.suffix}"), "w", format=kind.container) as container:
        stream = video._add_picture(container, WIDTH, HEIGHT, Fraction(24), kind, kind.write_modes["fast"])
        assert stream.codec_context.thread_count == 0  # as many as there are
        assert "FRAME" in str(stream.codec_context.thread_type) or stream.codec_context.thread_type.value == 3
        container.mux(stream.encode(av.VideoFrame(WIDTH, HEIGHT, kind.pixel_format)))
        container.mux(stream.encode(None))


def test_x264_frames_are_whole(tmp_path: Path) -> None:
    """One slice in each frame: PyAV's own default cuts it into one for each core."""
    frames = torch.randint(0, 255, (8, 256, 256, 3), dtype=torch.uint8)
    made = write_video(tmp_path / "v.mp4", [frames], Fraction(24), None)
    with av.open(str(made.path)) as container:
        for packet in container.demux(video=0):
            data, slices = bytes(packet), 0
            while data:
                size = int.from_bytes(data[:4], "big")
                slices += data[4] & 31 in (1, 5)
                data = data[4 + size :]
            assert slices == (packet.size > 0)


@pytest.mark.parametrize("name", FORMATS)
def test_a_failure_leaves_nothing(tmp_path: Path, name: str) -> None:
    def chunks() -> Iterator[torch.Tensor]:
        yield clip(20)
        yield clip(4)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_video(tmp_path / f"v{suffix(name)}", chunks(), Fraction(24), sound(2, 48000, 48000), format=name)
    assert os.listdir(tmp_path) == []
