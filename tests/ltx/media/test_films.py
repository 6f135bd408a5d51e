"""Sound that begins later than its film, and sound with more channels than any layout, against FFmpeg's program."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.media import suffixes
from a2v.ltx.media.audio import JUMP, MAX_VALUES, Track, _check_room, load_track, soundtrack, to_stereo
from a2v.ltx.media.clip import clip_track, open_clip
from a2v.ltx.media.formats import FORMATS
from a2v.ltx.media.preprocess import loudness, preprocess, warnings
from a2v.ltx.media.video import mixing, write_video
from a2v.tests.ltx.media.test_audio import wav
from a2v.tests.ltx.sounds import voice

FFMPEG = shutil.which("ffmpeg")
LATE = 2  # s
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="no ffmpeg program on PATH")


def ffmpeg(*arguments: object) -> bytes:
    command = [FFMPEG, "-hide_banner", "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def film(path: Path, late: float, *codecs: str, sound_first: bool = False) -> Path:
    """A film of 5 s whose sound, a sine of 2 s, begins `late` seconds after the first picture."""
    picture = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=24:duration=5")
    sound = ("-f", "lavfi", "-i", "sine=frequency=440:duration=2:sample_rate=48000")
    moved = ("-itsoffset", abs(late))
    inputs = (*moved, *picture, *sound) if sound_first else (*picture, *moved, *sound)
    ffmpeg(*inputs, *codecs, path)
    return path


def played(path: Path, start: float, duration: float) -> np.ndarray:
    """What FFmpeg plays of that part of the film, with silence where there is no sound."""
    cut = f"aresample=async=1:first_pts=0,apad=pad_dur=9,atrim=start={start}:duration={duration}"
    return np.frombuffer(ffmpeg("-i", path, "-vn", "-af", cut, "-f", "f32le", "-"), np.float32)


FILMS = {
    "late.mov": ("-c:v", "libx264", "-c:a", "pcm_s16le"),
    "late.mp4": ("-c:v", "libx264", "-c:a", "aac"),
    "late.mkv": ("-c:v", "libx264", "-c:a", "flac"),
    "late.webm": ("-c:v", "libvpx", "-c:a", "libopus"),
}


@needs_ffmpeg
@pytest.mark.parametrize("name", FILMS)
def test_times_count_from_the_films_start(tmp_path: Path, name: str) -> None:
    path = film(tmp_path / name, LATE, *FILMS[name])
    whole = load_track(path).waveform[0].numpy()
    first = int(np.argmax(np.abs(whole) > 0.02)) / 48000
    assert first == pytest.approx(LATE, abs=0.01) and len(whole) / 48000 == pytest.approx(LATE + 2, abs=0.05)
    for start, duration in ((0, 3), (1, 2), (2.5, 1), (3, 0.5)):
        read = load_track(path, start, duration).waveform[0].numpy()
        wanted = played(path, start, duration)
        assert len(read) == len(wanted) and np.abs(read - wanted).max() < 1e-4, (start, duration)


@needs_ffmpeg
def test_a_transport_stream_keeps_its_time(tmp_path: Path) -> None:
    """Its clock begins anywhere, here at 1.4 s; only the distance between picture and sound counts."""
    path = film(tmp_path / "late.ts", LATE, "-c:v", "libx264", "-c:a", "aac")
    whole = load_track(path).waveform[0].numpy()
    assert int(np.argmax(np.abs(whole) > 0.02)) / 48000 == pytest.approx(LATE, abs=0.03)


@needs_ffmpeg
def test_sound_that_begins_before_the_picture_begins_the_film(tmp_path: Path) -> None:
    path = film(tmp_path / "early.mkv", 1, "-c:v", "libx264", "-c:a", "flac", sound_first=True)
    whole = load_track(path)
    assert whole.seconds == 2 and float(whole.waveform[0, :4800].abs().max()) > 0.1


def marked(path: Path, *codecs: str) -> Path:
    """A film of 8 s whose picture flashes, and whose sound clicks, at each whole second."""
    picture = ("-f", "lavfi", "-i", "color=black:size=64x64:rate=24:duration=8")
    sound = ("-f", "lavfi", "-i", "aevalsrc=0.8*sin(2*PI*1000*t)*lt(mod(t\\,1)\\,0.03):s=48000:d=8")
    flash = ("-vf", "geq=lum='if(lt(mod(T,1),0.04),235,16)':cb=128:cr=128", "-x264-params", "keyint=48:scenecut=0")
    ffmpeg(*picture, *sound, *flash, *codecs, path)
    return path


def begins(loud: np.ndarray, rate: Fraction) -> list[float]:
    """The seconds at which something begins after a fifth of a second without it."""
    places = np.flatnonzero(loud) / float(rate)
    return [float(at) for before, at in zip([-1.0, *places], places, strict=False) if at - before > 0.2]


def close(found: list[float], wanted: list[float]) -> bool:
    return len(found) == len(wanted) and np.abs(np.subtract(found, wanted)).max() < 0.03


@needs_ffmpeg
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_recording_that_begins_between_two_keyframes(tmp_path: Path, share: float) -> None:
    """Its first packets become no picture, so the sound beside them is not heard."""
    whole = marked(tmp_path / "whole.ts", "-c:v", "libx264", "-c:a", "aac").read_bytes()
    path = tmp_path / "part.ts"
    path.write_bytes(whole[int(len(whole) * share) // 188 * 188 :])
    clip, track = open_clip(path), clip_track(path)
    pictures = np.stack([each.float().mean() for each in clip.pictures(Fraction(24), clip.count(Fraction(24)))])
    flashes = begins(pictures > 120, Fraction(24))
    assert len(flashes) > 1 and close(begins(track.waveform[0].abs().numpy() > 0.3, Fraction(track.rate)), flashes)


@needs_ffmpeg
@pytest.mark.parametrize("flags", ["frag_keyframe", "frag_keyframe+empty_moov"])
def test_a_fragmented_film(tmp_path: Path, flags: str) -> None:
    """Its first block of sound is the encoder's delay, and behind that is a gap, before the picture."""
    path = marked(tmp_path / "a.mp4", "-c:v", "libx264", "-bf", "3", "-c:a", "aac", "-movflags", flags)
    track = clip_track(path)
    assert close(begins(track.waveform[0].abs().numpy() > 0.3, Fraction(track.rate)), list(range(8)))
    assert track.notes == ()


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "codecs"),
    [
        ("a.mp4", ("libx264", "aac")),
        ("a.mkv", ("libx264", "flac")),
        ("a.webm", ("libvpx", "libopus")),
        ("a.ts", ("libx264", "ac3")),
    ],
)
def test_sound_that_stops_for_a_time(tmp_path: Path, name: str, codecs: tuple[str, str]) -> None:
    """Silence stands for what is missing, as in a player, so that what comes after it keeps its time."""
    video, audio = codecs
    whole = marked(tmp_path / f"whole-{name}", "-c:v", video, "-bf", "0", "-c:a", audio)
    path = tmp_path / name
    with av.open(str(whole)) as given, av.open(str(path), "w") as written:
        streams = {stream.index: written.add_stream_from_template(stream) for stream in given.streams}
        begun = given.start_time / av.time_base
        for packet in given.demux():
            if not packet.size:
                continue
            time = packet.pts * packet.time_base - begun
            if packet.stream.type == "video" or not 2.5 <= time < 4.5:
                packet.stream = streams[packet.stream.index]
                written.mux(packet)
    wanted = begins(np.abs(played(path, 0, 9)) > 0.3, Fraction(48000))
    track = clip_track(path)
    assert close(wanted, [0, 1, 2, 5, 6, 7])
    (note,) = track.notes
    assert re.fullmatch(rf"{name}: (1\.9|2\.0) s of its sound are missing from 2\.[56] s on, and silence .*", note)
    assert close(begins(track.waveform[0].abs().numpy() > 0.3, Fraction(48000)), wanted)
    assert float(load_track(path, 3, 1).waveform.abs().max()) == 0 and load_track(path, 2, 1.5).seconds == 1.5
    late = load_track(path, 4, 1.5).waveform[0].abs().numpy()
    assert close(begins(late > 0.3, Fraction(48000)), [1.0])


@needs_ffmpeg
def stopping(path: Path, halves: int, silent: range) -> Path:
    """A film of so many half seconds, and its sound but for some of them."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=2)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        sound = container.add_stream("flac", rate=8000, layout="mono")
        for number in range(halves):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
            if number not in silent:
                frame = av.AudioFrame.from_ndarray(np.full((1, 4000), 9000, np.int16), "s16", "mono")
                frame.sample_rate, frame.pts, frame.time_base = 8000, number * 4000, Fraction(1, 8000)
                container.mux(sound.encode(frame))
        for stream in (picture, sound):
            container.mux(stream.encode())
    return path


def test_a_film_s_sound_may_stop_for_longer_than_a_clock_jumps(tmp_path: Path) -> None:
    """Its pictures tell the time, so silence stands for all of it."""
    silent = range(6, 6 + 2 * (JUMP + 3))
    track = clip_track(stopping(tmp_path / "a.mkv", silent.stop + 4, silent))
    (note,) = track.notes
    assert note.endswith(f"{JUMP + 3}.0 s of its sound are missing from 3.0 s on, and silence stands for them")
    loud = np.abs(track.waveform[0].numpy()) > 0.1
    assert close(begins(loud, Fraction(8000)), [0, silent.stop / 2])


def test_a_film_s_sound_may_end_before_its_picture(tmp_path: Path) -> None:
    """Nothing of it is missing."""
    assert clip_track(stopping(tmp_path / "a.mkv", 12, range(4, 12))).notes == ()


def test_a_stream_of_sound_without_any_is_none(tmp_path: Path) -> None:
    """A screen recorder without a microphone writes such films."""
    whole, path = marked(tmp_path / "whole.mkv", "-c:v", "libx264", "-bf", "0", "-c:a", "flac"), tmp_path / "a.mkv"
    with av.open(str(whole)) as given, av.open(str(path), "w") as written:
        streams = {stream.index: written.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = streams[packet.stream.index]
                written.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.audio
    assert clip_track(path) is None and clip_track(whole) is not None


@needs_ffmpeg
def test_sound_that_ends_before_the_first_picture(tmp_path: Path) -> None:
    path = film(tmp_path / "early.mkv", 3, "-c:v", "libx264", "-c:a", "flac", sound_first=True)
    assert torch.equal(clip_track(path).waveform, torch.zeros(1, 1)) and load_track(path).seconds == 2


@needs_ffmpeg
@pytest.mark.parametrize("unknown", [0, 1])
def test_sound_beside_a_track_that_nothing_decodes(tmp_path: Path, unknown: int) -> None:
    """A phone records spatial sound beside stereo. Which of them is the default depends on the phone."""
    path = tmp_path / "a.mov"
    tones = (part for each in (440, 880) for part in ("-f", "lavfi", "-i", f"sine=frequency={each}:duration=2"))
    ffmpeg(*tones, "-map", 0, "-map", 1, "-c:a", "aac", f"-disposition:a:{unknown}", "default", path)
    content = bytearray(path.read_bytes())
    at = [found.start() for found in re.finditer(b"stsd.{12}mp4a", content, re.DOTALL)][unknown]
    content[at + 16 : at + 20] = b"apac"
    at = content.index(b"esds", at)
    content[at : at + 4] = b"dapa"
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert [stream.codec_context is None for stream in container.streams.audio] == [unknown == 0, unknown == 1]
    track = load_track(path)
    cycles = int((np.diff(np.sign(track.waveform[0].numpy())) > 0).sum())
    assert cycles / float(track.seconds) == pytest.approx(440 if unknown else 880, rel=0.02)


@needs_ffmpeg
def test_a_cover_is_no_film(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "plain.m4a")
    ffmpeg("-f", "lavfi", "-i", "color=size=32x32:duration=0.04", "-frames:v", 1, tmp_path / "cover.png")
    ffmpeg("-i", tmp_path / "plain.m4a", "-i", tmp_path / "cover.png", "-map", 0, "-map", 1, "-c", "copy",
           "-disposition:v", "attached_pic", tmp_path / "covered.m4a")  # fmt: skip
    plain, covered = (load_track(tmp_path / name) for name in ("plain.m4a", "covered.m4a"))
    assert torch.equal(plain.waveform, covered.waveform)


@needs_ffmpeg
def test_a_part_before_the_sound_says_when_it_begins(tmp_path: Path) -> None:
    path = film(tmp_path / "late.mov", LATE, *FILMS["late.mov"])
    with pytest.raises(InputError, match=r"late\.mov: its sound begins only at 2\.000 s; choose a later start"):
        load_track(path, 0, 1.5)
    with pytest.raises(InputError, match=r"start: 4\.5 s is after the end of late\.mov at 4\.000 s"):
        load_track(path, 4.5)


def test_silence_before_a_sound_takes_no_more_room_than_sound() -> None:
    _check_room("x", MAX_VALUES // 60, 60)
    with pytest.raises(InputError, match="x: has over 268 million samples"):
        _check_room("x", MAX_VALUES // 60 + 1, 60)


# Many channels


def many(path: Path, channels: int) -> tuple[Path, np.ndarray]:
    """A float WAV with another level in each channel, and its samples [channels, n]."""
    signal = voice(0.5, 44100, 1) * np.linspace(0.2, 1, channels, dtype=np.float32)[:, None]
    path.write_bytes(wav(signal.T.astype("<f4").tobytes(), 3, channels, 44100, 32))
    return path, signal


@needs_ffmpeg
@pytest.mark.parametrize("channels", [9, 18, 32, 60])
def test_more_channels_than_a_layout_has_are_mixed_down(tmp_path: Path, channels: int) -> None:
    path, signal = many(tmp_path / "many.wav", channels)
    track = load_track(path)
    assert track.waveform.shape == signal.shape and np.abs(track.waveform.numpy() - signal).max() < 1e-6
    mean = "+".join(f"{1 / channels:.9f}*c{channel}" for channel in range(channels))
    raw = ffmpeg("-i", path, "-af", f"pan=stereo|c0={mean}|c1={mean}", "-f", "f32le", "-")
    wanted = np.frombuffer(raw, np.float32).reshape(-1, 2).T
    assert np.abs(to_stereo(track.waveform).numpy() - wanted).max() < 1e-5
    levelled = preprocess(soundtrack(track, 13, Fraction(24)))
    assert loudness(levelled) == pytest.approx(-16, abs=1) and warnings(track, 13, Fraction(24)) is not None

    for name, kind in FORMATS.items():
        made = write_video(
            tmp_path / f"made{kind.suffix}", iter([torch.zeros(13, 64, 64, 3, dtype=torch.uint8)]), Fraction(24), track,
            format=name,
        )  # fmt: skip
        if not kind.audio_codec:
            assert mixing(track, name) == ""
            continue
        note = f"the sound was mixed down from {channels} channels to stereo, because {name} has no such layout"
        assert mixing(track, name) == note and made.audio_channels == 2
        heard = load_track(made.path)
        assert float(heard.seconds) == pytest.approx(0.5, abs=0.03)
        difference = 20 * np.log10(np.sqrt(np.square(heard.waveform.numpy()).mean() / np.square(wanted).mean()))
        assert abs(difference) < 0.5, f"{name}: {difference:.2f} dB"


@pytest.mark.parametrize(
    ("track", "format", "mixed"),
    [
        (Track(torch.zeros(1, 9), 48000), "X264 (.mp4)", False),
        (Track(torch.zeros(6, 9), 48000), "X264 (.mp4)", False),
        (Track(torch.zeros(8, 9), 48000), "VP9 (.webm)", False),
        (Track(torch.zeros(7, 9), 48000), "VP9 (.webm)", True),  # 6.1, which FFmpeg gives Opus in the wrong order
        (Track(torch.zeros(4, 9), 48000, ("AMBI0", "AMBI1", "AMBI2", "AMBI3")), "X264 (.mp4)", True),
        (Track(torch.zeros(16, 9), 48000), "X264 (.mp4)", True),
        (None, "X264 (.mp4)", False),
    ],
)
def test_the_note_is_there_when_and_only_when_it_is_mixed(track: Track | None, format: str, mixed: bool) -> None:
    assert bool(mixing(track, format)) == mixed


def test_a_track_has_a_speaker_for_each_channel_or_none() -> None:
    with pytest.raises(InputError, match="1 channels have 2 speakers"):
        Track(torch.zeros(1, 9), 48000, ("FL", "FR"))


# What a list of files offers


# Playlists, which name other files; bits without a header; subtitles; pictures.
NOT_OFFERED = {".m3u8", ".mpd", ".bit", ".pcm", ".mks", ".mjpg", ".avif", ".heic", ".heif"}


def test_what_ffmpeg_writes_sound_into_is_listed() -> None:
    """Every suffix of a container that FFmpeg puts sound into; it reads what it writes."""
    written: set[str] = set()
    for name in av.formats_available:
        with suppress(ValueError, av.FFmpegError):  # a format that is only read, or a device
            container = av.open(io.BytesIO(), "w", format=name)
            if container.default_audio_codec != "none":
                written |= {f".{suffix}" for suffix in container.format.extensions}
    assert len(written) > 80
    assert written - suffixes.SOUND - suffixes.FILM <= NOT_OFFERED
    assert {".mka", ".m4b", ".caf", ".w64", ".wv", ".ape", ".tta", ".dsf", ".weba"} <= suffixes.SOUND
    assert {".ts", ".m2ts", ".mts", ".vob", ".mxf", ".mkv", ".rmvb"} <= suffixes.FILM
