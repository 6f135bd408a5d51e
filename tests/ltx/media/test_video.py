"""The written file, read back by PyAV and by Debian's ffmpeg: picture, colours, rate, sound in step."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.media import video
from a2v.ltx.media.audio import Track
from a2v.ltx.media.probe import probe
from a2v.ltx.media.rates import frame_rate
from a2v.ltx.media.unfinished import ABANDONED, replacing
from a2v.ltx.media.video import write_video
from av.video.reformatter import Interpolation

HEIGHT, WIDTH = 64, 96


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name}, the independent decoder, is not on PATH")
    return found


def clip(frames: int, first: int = 0) -> torch.Tensor:
    """Smooth, coloured, every frame unlike its neighbours → uint8 [frames, 64, 96, 3]."""
    t = torch.arange(first, first + frames).view(-1, 1, 1).expand(-1, HEIGHT, WIDTH)
    y = torch.linspace(0, 1, HEIGHT).view(1, -1, 1)
    x = torch.linspace(0, 1, WIDTH).view(1, 1, -1)
    waves = [torch.sin(6 * x + t * 0.7), torch.sin(5 * y - t * 0.9), torch.cos(4 * y + 3 * x + t * 1.1)]
    return ((torch.stack(waves, -1) + 1) * 127.5).to(torch.uint8)


def sound(channels: int, rate: int, samples: int, speakers: tuple[str, ...] = ()) -> Track:
    """Noise below 5 kHz and an eighth of the rate, different in each channel: its correlation has one sharp peak."""
    spectrum = torch.fft.rfft(torch.randn(channels, samples, generator=torch.Generator().manual_seed(channels)))
    spectrum[:, min(samples // 8, 5000 * samples // rate) :] = 0
    wave = torch.fft.irfft(spectrum, samples)
    return Track(0.5 * wave / wave.abs().amax(), rate, speakers)


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        chroma = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        frames = (frame.reformat(format="rgb24", interpolation=chroma) for frame in container.decode(video=0))
        return np.stack([frame.to_ndarray() for frame in frames])


def ffmpeg_sound(path: Path, channels: int) -> np.ndarray:
    command = [tool("ffmpeg"), "-v", "error", "-i", str(path), "-map", "0:a", "-f", "f32le", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.float32).reshape(-1, channels).T


def lag(reference: np.ndarray, heard: np.ndarray) -> int:
    """Samples by which `heard` comes late, from the peak of the cross-correlation."""
    size = 2 * max(len(reference), len(heard))
    peak = int(np.argmax(np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(reference, size)), size)))
    return peak if peak < size // 2 else peak - size


def likeness(reference: np.ndarray, heard: np.ndarray) -> float:
    n = min(len(reference), len(heard))
    return float(np.corrcoef(reference[:n], heard[:n])[0, 1])


def boxes(path: Path) -> list[str]:
    data, names, at = path.read_bytes(), [], 0
    while at < len(data):
        names.append(data[at + 4 : at + 8].decode())
        at += int.from_bytes(data[at : at + 4], "big")
    return names


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        (24, Fraction(24)),
        (25.0, Fraction(25)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (24000 / 1001, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (47.952, Fraction(48000, 1001)),
        (47.95, Fraction(48000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (119.88, Fraction(120000, 1001)),
        (12.5, Fraction(25, 2)),
        (16.6666667, Fraction(50, 3)),
        (23.99, Fraction(2399, 100)),
        (1, Fraction(1)),
        ("24", Fraction(24)),
        (" 23.976", Fraction(24000, 1001)),
        (24 + 1 / 1002, 24 + Fraction(1, 1001)),
        (1e-9, Fraction(1, 1001)),
    ],
)
def test_frame_rates(given: float | str, exact: Fraction) -> None:
    assert frame_rate(given) == exact


@pytest.mark.parametrize("given", [0, -24, float("nan"), float("inf"), "abc", "nan", None, [24], 10**400])
def test_what_is_no_frame_rate(given: object) -> None:
    with pytest.raises(InputError, match="fps"):
        frame_rate(given)


@pytest.mark.parametrize("fps", [24, 23.976, 29.97, 12.5])
def test_the_file(tmp_path: Path, fps: float) -> None:
    rate, frames = frame_rate(fps), 41
    track = sound(2, 44100, round(frames / rate * 44100))
    counted: list[int] = []
    made = write_video(tmp_path / "a b.mp4", clip(frames).split(8), rate, track, on_frames=counted.append)

    assert (made.video_codec, made.pixel_format, made.width, made.height) == ("h264", "yuv420p", WIDTH, HEIGHT)
    assert (made.frames, made.fps, made.duration) == (frames, rate, frames / rate)
    assert {made.color_space, made.color_primaries, made.color_transfer} == {"bt709"} and made.color_range == "tv"
    assert (made.audio_codec, made.audio_rate, made.audio_channels, made.audio_layout) == ("aac", 44100, 2, "stereo")
    assert made.path == tmp_path / "a b.mp4" and made.size == made.path.stat().st_size
    assert abs(made.seconds - frames / rate) < 1e-3
    assert counted == [8, 16, 24, 32, 40, 41]
    assert os.listdir(tmp_path) == ["a b.mp4"]
    names = boxes(made.path)
    assert names.index("moov") < names.index("mdat")

    facts = [tool("ffprobe"), "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(made.path)]
    picture, audio = json.loads(subprocess.run(facts, capture_output=True, check=True).stdout)["streams"]
    assert (picture["codec_name"], picture["pix_fmt"], int(picture["nb_read_frames"])) == ("h264", "yuv420p", frames)
    assert Fraction(picture["avg_frame_rate"]) == Fraction(picture["r_frame_rate"]) == rate
    assert Fraction(picture["duration_ts"]) * Fraction(picture["time_base"]) == frames / rate
    colours = [picture[f"color_{key}"] for key in ("space", "primaries", "transfer", "range")]
    assert colours == ["bt709", "bt709", "bt709", "tv"]
    assert float(picture["start_time"]) == float(audio["start_time"]) == 0
    assert int(audio["duration_ts"]) == track.waveform.shape[1]  # at time_base 1/44100: not a sample cut or added


def test_pictures_come_back(tmp_path: Path) -> None:
    frames = clip(24)
    made = write_video(tmp_path / "p.mp4", frames.split(8), Fraction(24), None)
    assert made.audio_codec is None and made.audio_channels == 0
    error = pictures(made.path).astype(float) - frames.numpy()
    psnr = 10 * np.log10(255**2 / (error**2).mean((1, 2, 3)))
    assert psnr.min() > 36
    # Each frame is most like itself: none is late, doubled or dropped.
    distance = np.abs(pictures(made.path)[:, None].astype(int) - frames.numpy()[None].astype(int)).mean((2, 3, 4))
    assert (distance.argmin(1) == np.arange(24)).all()


@pytest.mark.soak
def test_equal_frames_make_equal_files(tmp_path: Path) -> None:
    """Frames of which x264, left to itself, makes one of three or four files, as memory happens to be filled."""
    noise = 128 + 50 * torch.randn(8, 9, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    files: list[set[bytes]] = [set() for _ in noise]
    for _ in range(12):
        for frames, made in zip(noise.clamp(0, 255).byte(), files, strict=True):
            write_video(tmp_path / "out.mp4", [frames], Fraction(24), None)
            made.add((tmp_path / "out.mp4").read_bytes())
    assert [len(made) for made in files] == [1] * 8


def test_colours_are_bt709_in_the_samples_themselves(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 30, 90), (40, 180, 220)]
    for colour in colours:
        frames = torch.tensor(colour, dtype=torch.uint8).expand(3, HEIGHT, WIDTH, 3)
        made = write_video(tmp_path / "c.mp4", [frames], Fraction(24), None)
        red, green, blue = (c / 255 for c in colour)
        luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        formula = 16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748
        command = [tool("ffmpeg"), "-v", "error", "-i", str(made.path), "-f", "rawvideo", "-"]
        raw = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)[
            : 96 * 64 * 3 // 2
        ]
        planes = raw[: 96 * 64], raw[96 * 64 : 96 * 64 * 5 // 4], raw[96 * 64 * 5 // 4 :]
        for plane, value in zip(planes, formula, strict=True):
            assert abs(plane.astype(float) - value).max() <= 1.5, (colour, formula)


@pytest.mark.parametrize(
    ("channels", "rate", "layout", "written"),
    [
        (1, 8000, "mono", 8000),
        (1, 44100, "mono", 44100),
        (2, 48000, "stereo", 48000),
        (2, 96000, "stereo", 96000),
        (2, 37800, "stereo", 44100),
        (2, 192000, "stereo", 96000),
        (6, 48000, "5.1", 48000),
        (8, 48000, "7.1", 48000),
        (3, 48000, "3.0", 48000),
        (16, 48000, "stereo", 48000),
    ],
)
def test_sound_is_in_step(tmp_path: Path, channels: int, rate: int, layout: str, written: int) -> None:
    track = sound(channels, rate, 2 * rate)
    made = write_video(tmp_path / "s.mp4", clip(48).split(8), Fraction(24), track)
    assert (made.audio_rate, made.audio_layout) == (written, layout)
    heard = ffmpeg_sound(made.path, made.audio_channels)
    if channels > 8:
        return
    for channel, name in enumerate(made_speakers(layout)):
        reference = track.waveform[channel].double().numpy()
        if written != rate:  # Fourier interpolation: exact for what is band-limited
            bins = np.fft.rfft(reference)[: written + 1]
            reference = np.fft.irfft(bins, 2 * written) * written / rate
        if name == "LFE":  # AAC keeps only the lowest octaves of it
            continue
        assert abs(lag(reference, heard[channel])) * 1000 <= written  # a millisecond
        assert lag(reference, heard[channel]) == 0  # in fact, none at all
        assert likeness(reference, heard[channel]) > 0.98


def made_speakers(layout: str) -> list[str]:
    return [channel.name for channel in av.AudioLayout(layout).channels]


def test_side_speakers_keep_their_order(tmp_path: Path) -> None:
    track = sound(6, 48000, 48000, ("FL", "FR", "FC", "LFE", "SL", "SR"))
    made = write_video(tmp_path / "s.mp4", [clip(24)], Fraction(24), track)
    assert made.audio_layout == "5.1"
    heard = ffmpeg_sound(made.path, 6)
    for channel in (0, 1, 2, 4, 5):
        assert likeness(track.waveform[channel].numpy(), heard[channel]) > 0.98


@pytest.mark.parametrize("rate", [1000, 8000, 96_001, 192_000])
@pytest.mark.parametrize("name", ["X264 (.mp4)", "VP9 (.webm)"])
def test_a_sound_of_one_sample_is_in_the_file(tmp_path: Path, name: str, rate: int) -> None:
    """Also at a rate that the codec does not have: FFmpeg's resampler gives nothing of so few samples."""
    path = tmp_path / f"out{name.rpartition('(')[2].rstrip(')')}"
    write_video(path, [clip(2)], Fraction(24), Track(torch.full((1, 1), 0.5), rate), format=name)
    with av.open(str(path)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) > 0


def test_short_sound_is_not_padded(tmp_path: Path) -> None:
    track = sound(1, 48000, 9600)  # 0.2 s beside 2 s
    made = write_video(tmp_path / "s.mp4", clip(48).split(8), Fraction(24), track)
    with av.open(str(made.path)) as container:
        stream = container.streams.audio[0]
        assert stream.duration * stream.time_base == Fraction(1, 5)
    assert made.frames == 48


def test_a_chunk_is_encoded_while_the_next_is_made(tmp_path: Path) -> None:
    """One chunk, never more, waits for the encoder; chunks and progress run in the caller's thread."""
    encoded, threads = [], set()

    def tell(frames: int) -> None:
        threads.add(threading.current_thread())
        encoded.append(frames)

    def chunks() -> Iterator[torch.Tensor]:
        for i in range(6):
            assert encoded == [8 * j for j in range(1, i)]  # all but the latest
            threads.add(threading.current_thread())
            yield clip(8, 8 * i)

    write_video(tmp_path / "s.mp4", chunks(), Fraction(24), None, on_frames=tell)
    assert encoded == [8, 16, 24, 32, 40, 48] and threads == {threading.current_thread()}


def test_the_encoder_works_beside_the_producer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second chunk is asked for before the first is encoded: each waits for the other here."""
    asked = threading.Event()
    add = video._Streams.add

    def waiting(self: video._Streams, images: torch.Tensor) -> int:
        assert asked.wait(30)
        return add(self, images)

    def chunks() -> Iterator[torch.Tensor]:
        yield clip(8)
        asked.set()
        yield clip(8, 8)

    monkeypatch.setattr(video._Streams, "add", waiting)
    assert write_video(tmp_path / "s.mp4", chunks(), Fraction(24), None).frames == 16


def test_sound_and_picture_lie_side_by_side(tmp_path: Path) -> None:
    """Neither waits for the other's end: anywhere in the file both are at about the same time."""
    seconds = 20  # the muxer itself keeps at most 10 in order
    chunks = (clip(24, 24 * i) for i in range(seconds))
    made = write_video(tmp_path / "s.mp4", chunks, Fraction(24), sound(1, 8000, 8000 * seconds))
    with av.open(str(made.path)) as container:
        packets = sorted((p.pos, p.stream.type, float(p.dts * p.time_base)) for p in container.demux() if p.size)
    reached = {"audio": 0.0, "video": 0.0}
    for _, kind, moment in packets:
        reached[kind] = moment
        assert abs(reached["audio"] - reached["video"]) < 2


def test_metadata(tmp_path: Path) -> None:
    text = {"comment": 'a "quoted" prompt; = # \n второй ряд 🙂'}
    assert (
        write_video(tmp_path / "m.mp4", [clip(9)], Fraction(24), None, metadata=text).metadata["comment"]
        == (text["comment"])
    )
    text["workflow"] = json.dumps({"nodes": list(range(500))})
    made = write_video(tmp_path / "m.mp4", [clip(9)], Fraction(24), None, metadata=text)
    assert {key: made.metadata[key] for key in text} == text
    facts = [tool("ffprobe"), "-v", "error", "-show_format", "-of", "json", str(made.path)]
    tags = json.loads(subprocess.run(facts, capture_output=True, check=True).stdout)["format"]["tags"]
    assert {key: tags[key] for key in text} == text


@pytest.mark.timeout(60)
def test_a_tag_that_ends_with_a_blank_stays_as_it_is(tmp_path: Path) -> None:
    """It is replaced by nothing: it has no room for notes."""
    made = write_video(tmp_path / "m.mp4", [clip(1)], Fraction(24), None, metadata={"title": "a song ", "comment": ""})
    assert made.metadata["title"] == "a song "


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, GeneratorExit])
def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "v.mp4"
    target.write_bytes(b"older")
    seen = []

    def chunks() -> Iterator[torch.Tensor]:
        yield clip(8)
        yield clip(8, 8)
        seen.extend(os.listdir(tmp_path))  # the first is encoded
        raise failure("stop")

    with pytest.raises(failure, match="stop"):
        write_video(target, chunks(), Fraction(24), sound(2, 48000, 48000))
    assert len(seen) == 2  # it was being written beside it
    assert os.listdir(tmp_path) == ["v.mp4"] and target.read_bytes() == b"older"
    assert write_video(target, [clip(8)], Fraction(24), None).frames == 8  # and a success replaces it
    assert os.listdir(tmp_path) == ["v.mp4"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        write_video(tmp_path / "nowhere" / "v.mp4", [clip(1)], Fraction(24), None)
    with pytest.raises(InputError, match="is a folder"):
        write_video(tmp_path, [clip(1)], Fraction(24), None)
    with pytest.raises(InputError, match="no frames"):
        write_video(tmp_path / "v.mp4", [], Fraction(24), None)
    with pytest.raises(InputError, match="95x64"):
        write_video(tmp_path / "v.mp4", [clip(1)[:, :, 1:]], Fraction(24), None)
    with pytest.raises(InputError, match="change size"):
        write_video(tmp_path / "v.mp4", [clip(1), clip(1)[:, 2:]], Fraction(24), None)
    with pytest.raises(TypeError, match="uint8"):
        write_video(tmp_path / "v.mp4", [clip(1).float()], Fraction(24), None)
    with pytest.raises(InputError, match="no such file"):
        probe(tmp_path / "v.mp4")
    (tmp_path / "v.mp4").write_text("not a video")
    with pytest.raises(InputError, match="not a video file"):
        probe(tmp_path / "v.mp4")
    assert os.listdir(tmp_path) == ["v.mp4"]


def test_what_a_killed_process_left_is_swept_after_a_day(tmp_path: Path) -> None:
    old, young = (tmp_path / f".v.{digits}.partial.mp4" for digits in ("0123abcd", "89abcdef"))
    others = [tmp_path / name for name in (".v.partial.mp4", "v.0123abcd.partial.mp4", ".v.0123abcd.mp4")]
    for path in (old, young, *others):
        path.write_bytes(b"unfinished")
        if path != young:
            os.utime(path, (time.time() - ABANDONED - 60,) * 2)
    stuck = [tmp_path / f".w.{number:08x}.partial.mp4" for number in range(9)]  # folders cannot be deleted as files
    for path in stuck:
        path.mkdir()
        os.utime(path, (time.time() - ABANDONED - 60,) * 2)
    write_video(tmp_path / "v.mp4", [clip(1)], Fraction(24), None)
    left = {"v.mp4", young.name, *(path.name for path in (*others, *stuck))}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_a_video_is_not_lost_where_a_file_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows a file that another program has open cannot be replaced."""
    path, replace = tmp_path / "v.mp4", os.replace
    path.write_text("open in a player")

    def refuse(source: Path, target: Path) -> None:
        if target == path:
            raise PermissionError(13, "The process cannot access the file")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match=r"v\.mp4: cannot be replaced.*; the new file is .*v-[0-9a-f]{8}\.mp4\.$"):
        write_video(path, [clip(1)], Fraction(24), None)
    (other,) = set(tmp_path.iterdir()) - {path}
    assert probe(other).frames == 1 and path.read_text() == "open in a player"


def test_a_file_that_cannot_be_deleted_does_not_hide_why_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows a file cannot be deleted while a container that could not be closed has it open."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "The process cannot access the file")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="the disk is full"), replacing(tmp_path / "v.mp4") as partial:
        partial.touch()
        raise OSError("the disk is full")


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="permission"):
            write_video(tmp_path / "v.mp4", [clip(1)], Fraction(24), None)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """A file-size limit stands in for the full disk; it would bind the whole process, so a child has it."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import conftest, torch
from fractions import Fraction
from a2v.ltx.media.video import write_video
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
chunks = (torch.randint(0, 255, (8, 128, 128, 3), dtype=torch.uint8) for _ in range(4))
try:
    write_video({str(tmp_path / "v.mp4")!r}, chunks, Fraction(24), None)
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith(f"{tmp_path / 'v.mp4'}: could not be written (") and done.stdout.count("\n") == 1, (
        done
    )
    assert os.listdir(tmp_path) == []


def test_probe_counts_where_no_header_does(tmp_path: Path) -> None:
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in clip(7):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.numpy(), format="rgb24")))
        container.mux(stream.encode(None))
    found = probe(path)
    assert (found.frames, found.fps, found.video_codec, found.color_space) == (7, 10, "mpeg4", "")
