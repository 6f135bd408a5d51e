"""Reading sound and preparing it for the model, against FFmpeg's own program, torchaudio and the golden tensors."""

from __future__ import annotations

import io
import re
import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.media import audio
from a2v.ltx.media.container import packets_of
from a2v.ltx.media.preprocess import warnings
from a2v.tests.ltx.sounds import track, voice

FFMPEG = shutil.which("ffmpeg")
SAMPLE_TYPES = {"s16": (np.int16, 2**15), "s32": (np.int32, 2**31), "flt": (np.float32, 1), "u8": (np.uint8, 2**7)}


CUTS_PADDING = av.library_versions["libavcodec"] >= (63,)  # at the end of AAC in MP4; FFmpeg's older programs play it


def write(path: Path, signal: np.ndarray, rate: int, codec: str, layout: str, kind: str = "s16") -> Path:
    """Encodes a signal with PyAV; the packed sample type `kind` is what the encoder is given."""
    dtype, scale = SAMPLE_TYPES[kind]
    packed = np.ascontiguousarray(signal.T.reshape(1, -1))
    packed = packed.astype(dtype) if kind == "flt" else np.round(packed * (scale - 1) + (128 if kind == "u8" else 0))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        wanted = {"s32": ("s32",), "flt": ("fltp", "flt")}.get(kind, ())
        stream.format = next((f for f in stream.codec.audio_formats if f.name in wanted), stream.format)
        frame = av.AudioFrame.from_ndarray(packed.astype(dtype), format=kind, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def wav(data: bytes, code: int, channels: int, rate: int, bits: int) -> bytes:
    """A WAV file without a channel mask; code 1 for integers, 3 for floats."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", code, channels, rate, rate * block, block, bits)
    return struct.pack("<4sI4s4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16) + form + struct.pack(
        "<4sI", b"data", len(data)
    ) + data  # fmt: skip


def by_ffmpeg(path: Path, *arguments: str) -> np.ndarray:
    """The same file through Debian's ffmpeg program: float32 [channels, samples]."""
    if FFMPEG is None:
        pytest.skip("no ffmpeg program on PATH to compare with")
    command = [FFMPEG, "-v", "error", "-i", str(path), "-vn", *arguments, "-f", "f32le", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    with av.open(str(path)) as container:
        channels = 2 if "-ac" in arguments else container.streams.best("audio").layout.nb_channels
    return np.frombuffer(raw, np.float32).reshape(-1, channels).T


# name, rate, layout, channels, codec, sample type, how far from the signal that was written
LOSSLESS = [
    ("mono8k.wav", 8000, "mono", 1, "pcm_s16le", "s16", 2**-15),
    ("u8.wav", 11025, "mono", 1, "pcm_u8", "u8", 2**-6),
    ("24bit.wav", 96000, "stereo", 2, "pcm_s24le", "s32", 2**-22),
    ("24bit.flac", 44100, "stereo", 2, "flac", "s32", 2**-22),
    ("32bit.wav", 44100, "stereo", 2, "pcm_s32le", "s32", 2**-22),
    ("64bit.wav", 44100, "stereo", 2, "pcm_s64le", "s32", 2**-15),
    ("float.wav", 48000, "stereo", 2, "pcm_f32le", "flt", 1e-7),
    ("double.wav", 48000, "stereo", 2, "pcm_f64le", "flt", 1e-7),
    ("planar.aiff", 22050, "stereo", 2, "pcm_s16be", "s16", 2**-15),
    ("wavpack.wv", 48000, "stereo", 2, "wavpack", "flt", 1e-7),
    ("5.1.wav", 48000, "5.1", 6, "pcm_s16le", "s16", 2**-15),
    ("7.1.flac", 48000, "7.1", 8, "flac", "s16", 2**-15),
    ("rate.wav", 47999, "stereo", 2, "pcm_s16le", "s16", 2**-15),
    ("matroska.mka", 48000, "stereo", 2, "pcm_s16le", "s16", 2**-15),
]


@pytest.mark.parametrize(("name", "rate", "layout", "channels", "codec", "kind", "error"), LOSSLESS)
def test_lossless_files_give_the_signal_back(tmp_path, name, rate, layout, channels, codec, kind, error):
    signal = voice(0.5, rate, channels)
    read = audio.load_track(write(tmp_path / name, signal, rate, codec, layout, kind))
    assert (read.rate, tuple(read.waveform.shape)) == (rate, signal.shape)
    assert read.waveform.dtype == torch.float32
    assert np.abs(read.waveform.numpy() - signal).max() < error
    assert read.seconds == Fraction(signal.shape[1], rate)


# Compressed: what FFmpeg's own program plays, sample for sample in length (priming and padding cut where it cuts them).
LOSSY = [
    ("a.opus", 48000, "stereo", 2, "libopus", "flt", 2e-3),
    ("a.m4a", 44100, "stereo", 2, "aac", "flt", 1e-5),
    ("a.mp3", 44100, "stereo", 2, "libmp3lame", "flt", 1e-5),
    ("short.mp3", 44100, "mono", 1, "libmp3lame", "flt", 1e-5),
    ("mpeg2.mp3", 24000, "mono", 1, "libmp3lame", "flt", 5e-2),  # FFmpeg 5 and 8 differ here, 8 is nearer the signal
    ("raw.aac", 44100, "mono", 1, "aac", "flt", 1e-5),
    ("5.1.ac3", 48000, "5.1", 6, "ac3", "flt", 1e-3),
    ("a.mka", 48000, "stereo", 2, "libopus", "flt", 2e-3),
    ("7.1.m4a", 48000, "7.1", 8, "aac", "flt", 1e-5),
    ("7.1.opus", 48000, "7.1", 8, "libopus", "flt", 2e-3),
    ("ulaw.wav", 8000, "mono", 1, "pcm_mulaw", "s16", 1e-7),
]


@pytest.mark.parametrize(("name", "rate", "layout", "channels", "codec", "kind", "error"), LOSSY)
def test_compressed_files_read_as_ffmpeg_plays_them(tmp_path, name, rate, layout, channels, codec, kind, error):
    signal = voice(0.2 if name.startswith("short") else 1.3, rate, channels)
    path = write(tmp_path / name, signal, rate, codec, layout, kind)
    read, played = audio.load_track(path), by_ffmpeg(path)
    if name.endswith("m4a") and CUTS_PADDING:
        played = played[:, : signal.shape[1]]
    assert (read.rate, tuple(read.waveform.shape)) == (rate, played.shape)
    assert np.abs(read.waveform.numpy() - played).max() < error


def test_vorbis_reads_as_ffmpeg_plays_it(tmp_path):
    if FFMPEG is None:
        pytest.skip("no ffmpeg program on PATH to write Vorbis with")
    source = write(tmp_path / "a.wav", voice(1.0, 44100, 2), 44100, "pcm_s16le", "stereo")
    path = tmp_path / "a.ogg"
    subprocess.run([FFMPEG, "-v", "error", "-i", str(source), "-c:a", "libvorbis", str(path)], check=True)
    read, played = audio.load_track(path), by_ffmpeg(path)
    assert tuple(read.waveform.shape) == played.shape == (2, 44100)
    assert np.abs(read.waveform.numpy() - played).max() < 1e-5


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_the_sound_of_a_film(tmp_path, name):
    signal = voice(1.0, 48000, 2).astype(np.float32)
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        sound = container.add_stream("aac", rate=48000, layout="stereo")
        for _ in range(24):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(signal), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        for stream, last in ((video, None), (sound, frame), (sound, None)):
            container.mux(stream.encode(last))
    read, played = audio.load_track(path), by_ffmpeg(path)
    if name.endswith("mkv") and played.shape[1] == read.waveform.shape[1] + 1024:
        played = played[:, 1024:]  # FFmpeg 5 leaves AAC's priming in Matroska's sound, FFmpeg 8.1 cuts it
    if name.endswith("mp4") and CUTS_PADDING:
        played = played[:, : signal.shape[1]]
    assert tuple(read.waveform.shape) == played.shape
    assert np.abs(read.waveform.numpy() - played).max() < 1e-5
    if name == "film.mp4" or av.library_versions["libavcodec"] >= (62, 28):  # in step with what was recorded
        assert np.sqrt(np.mean((read.waveform.numpy()[:, :48000] - signal) ** 2)) < 0.02


@pytest.mark.parametrize("name", ["a.wav", "a.m4a", "a.mp3"])
def test_start_and_duration_cut_the_whole_decoding(tmp_path, name):
    codec = {"wav": "pcm_s16le", "m4a": "aac", "mp3": "libmp3lame"}[name[2:]]
    path = write(tmp_path / name, voice(2.0, 44100), 44100, codec, "mono", "flt" if codec != "pcm_s16le" else "s16")
    whole = audio.load_track(path).waveform
    part = audio.load_track(path, start=0.333, duration=0.7).waveform
    first = round(Fraction(0.333) * 44100)
    assert torch.equal(part, whole[:, first : first + 30870])
    assert audio.load_track(path, start=1.5, duration=1e9).waveform.shape[1] == whole.shape[1] - 66150


def test_nothing_is_decoded_beyond_what_a_video_can_need(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MAX_SECONDS", 1)
    path = write(tmp_path / "long.wav", voice(3.0, 8000), 8000, "pcm_s16le", "mono")
    assert audio.load_track(path).waveform.shape == (1, 8000)
    assert audio.load_track(path, start=2.5).waveform.shape == (1, 4000)


def test_damage_in_the_middle_is_passed_over(tmp_path):
    path = write(tmp_path / "a.mp3", voice(3.0, 44100), 44100, "libmp3lame", "mono", "flt")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(np.random.default_rng(1).integers(0, 255, 2000, dtype=np.uint8))
    path.write_bytes(data)
    assert 2.5 < audio.load_track(path).seconds < 3.2


def test_a_file_cut_short_plays_as_far_as_it_goes(tmp_path):
    path = write(tmp_path / "a.wav", voice(2.0, 8000), 8000, "pcm_s16le", "mono")
    path.write_bytes(path.read_bytes()[:-16000])
    assert audio.load_track(path).waveform.shape == (1, 8000)


def test_an_unusual_set_of_speakers(tmp_path):
    path = write(tmp_path / "a.wav", voice(0.3, 8000, 3), 8000, "pcm_s16le", "FL+LFE+BC")
    read = audio.load_track(path)
    assert read.speakers == ("FL", "LFE", "BC")
    mixed = audio.conditioning_track(read, 9, Fraction(30)).waveform
    assert (mixed - torch.stack([read.waveform[0] + read.waveform[2] / 2, read.waveform[2] / 2])).abs().max() < 1e-6


def test_more_than_eight_channels(tmp_path):
    samples = np.arange(900, dtype="<i2").reshape(-1, 9)
    path = tmp_path / "nine.wav"
    path.write_bytes(wav(samples.tobytes(), 1, 9, 8000, 16))
    read = audio.load_track(path)
    assert read.speakers == ()
    assert np.array_equal(read.waveform.numpy() * 32768, samples.T)
    assert torch.isfinite(audio.conditioning_track(read, 9, Fraction(60)).waveform).all()


def test_ambisonic_sound_is_heard_from_both_sides():
    """A voice on the right has a negative second channel, and one above, before or behind has others."""
    voiced = voice(0.5, 48000)
    for left in (-1.0, 0.0, 1.0):
        channels = torch.from_numpy(
            np.stack([voiced[0] * share for share in (1.0, left, 0.3, -0.7)]).astype(np.float32)
        )
        mixed = audio.to_stereo(channels, ("AMBI0", "AMBI1", "AMBI2", "AMBI3"))
        wanted = channels[0] * torch.tensor([[(1 + left) / 2], [(1 - left) / 2]])
        assert (mixed - wanted).abs().max() < 1e-6


# Errors


def wave_of(samples: np.ndarray, rate: int = 8000) -> bytes:
    """A mono float WAV file of these very samples."""
    return wav(samples.astype("<f4").tobytes(), 3, 1, rate, 32)


def png() -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\xc4\x89"
        b"\x00\x00\x00\rIDATx\x9cc\xf8\xcf\xc0\xf0\x1f\x00\x05\x00\x01\xff\x89\x99=\x1d\x00\x00\x00\x00IEND\xaeB`\x82"
    )


BROKEN: list[tuple[str, bytes, str]] = [
    ("empty.wav", b"", "the file is empty"),
    ("letter.mp3", b"Dear reader, this is a letter and no music at all.\n" * 200, r"cannot be read|no sound"),
    ("noise.wav", bytes(range(256)) * 64, r"cannot be read|no sound|no audio"),
    ("picture.wav", png(), "no audio track"),
    ("silent.wav", wave_of(np.zeros(0)), "no sound|cannot be read"),
    ("nan.wav", wave_of(np.array([0.0] * 4000 + [np.nan] + [0.0] * 99)), r"NaN.*0\.500 s"),
    ("inf.wav", wave_of(np.array([0.0, np.inf] * 400)), "infinite"),
    ("absurd.wav", wave_of(np.full(800, 3e38)), "beyond"),
    ("integers.wav", wave_of(np.array([0.0] * 4000 + [-200.0, 9.0])), r"beyond 128 times full scale.*0\.500 s"),
    ("header.wav", wave_of(np.zeros(100))[:30], r"cannot be read|no sound"),
    ("slow.wav", wave_of(np.zeros(100), rate=0), r"cannot be read|sample rate|no sound"),
    ("fast.wav", wave_of(np.zeros(100), rate=2_000_000), "2000000 Hz"),
]


@pytest.mark.parametrize(("name", "content", "reason"), BROKEN)
def test_a_bad_file_is_one_sentence_with_its_name(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        audio.load_track(tmp_path / name)
    assert name in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_loud_file_is_no_damaged_one(tmp_path):
    samples = np.array([0.0, audio.LOUDEST, -audio.LOUDEST] * 400, np.float32)
    (tmp_path / "loud.wav").write_bytes(wave_of(samples))
    assert torch.equal(audio.load_track(tmp_path / "loud.wav").waveform, torch.from_numpy(samples)[None])


def test_a_film_cut_short_is_one_sentence(tmp_path):
    path = write(tmp_path / "cut.m4a", voice(2.0, 44100), 44100, "aac", "mono", "flt")  # its index is at the end
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cut\.m4a: cannot be read"):
        audio.load_track(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match=r"gone\.wav: no such file"):
        audio.load_track(tmp_path / "gone.wav")
    with pytest.raises(InputError, match="is a folder"):
        audio.load_track(tmp_path)


@pytest.mark.parametrize("start", [-1, float("nan"), float("inf"), 60])
def test_a_start_that_is_no_place_in_the_file(tmp_path, start):
    path = write(tmp_path / "a.wav", voice(1.0, 8000), 8000, "pcm_s16le", "mono")
    with pytest.raises(InputError, match=r"^start: "):
        audio.load_track(path, start=start)


@pytest.mark.parametrize("duration", [0, -1, float("nan")])
def test_a_duration_that_is_none(tmp_path, duration):
    path = write(tmp_path / "a.wav", voice(1.0, 8000), 8000, "pcm_s16le", "mono")
    with pytest.raises(InputError, match=r"^duration: "):
        audio.load_track(path, duration=duration)


@pytest.mark.parametrize(("name", "text"), [
    ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{file}\n#EXT-X-ENDLIST\n"),
    ("list.ffconcat", "ffconcat version 1.0\nfile '{file}'\n"),
])  # fmt: skip
def test_a_playlist_opens_no_other_file(tmp_path, name, text):
    write(tmp_path / "other.aac", voice(1.0, 44100), 44100, "aac", "mono", "flt")
    (tmp_path / name).write_text(text.format(file="other.aac"))
    with pytest.raises(InputError, match=name):
        audio.load_track(tmp_path / name)


def test_a_rate_that_changes_on_the_way(tmp_path):
    parts = [write(tmp_path / f"{r}.aac", voice(0.5, r), r, "aac", "mono", "flt").read_bytes() for r in (48000, 16000)]
    (tmp_path / "both.aac").write_bytes(b"".join(parts))
    with pytest.raises(InputError, match=r"both\.aac: its sound changes from 48000 Hz mono fltp to 16000 Hz mono fltp"):
        audio.load_track(tmp_path / "both.aac")


@pytest.mark.parametrize("waveform", [torch.zeros(0, 100), torch.zeros(2, 0), torch.zeros(1, 2, 100)])
def test_a_track_has_channels_and_samples(waveform):
    with pytest.raises(InputError, match="audio: its shape"):
        audio.Track(waveform, 48000)


# Lengths


@pytest.mark.parametrize(("samples", "rate", "fps", "frames"), [
    (1, 48000, 24, 9),
    (48000, 48000, 24, 25),
    (48000 * 5, 48000, 24, 121),  # 120 frames, the next 8k+1
    (242 * 1000, 48000, 24, 121),  # 121 exactly
    (243 * 1000, 48000, 24, 121),  # 121.5: half a frame may go without a picture
    (243 * 1000 + 1, 48000, 24, 129),
    (44100, 44100, Fraction(24000, 1001), 25),
])  # fmt: skip
def test_frames_for_audio(samples, rate, fps, frames):
    assert audio.frames_for_audio(audio.Track(torch.zeros(1, samples), rate), Fraction(fps)) == frames


def test_frames_for_audio_never_cuts_more_than_half_a_frame():
    random = np.random.default_rng(3)
    for _ in range(300):
        samples, rate = int(random.integers(1, 300_000)), int(random.choice([8000, 16000, 44100, 48000]))
        fps = Fraction(int(random.integers(1, 61)), int(random.choice([1, 1001]))) * int(random.choice([1, 1000]))
        if not 1 <= fps <= 60:
            continue
        frames = audio.frames_for_audio(audio.Track(torch.zeros(1, samples), rate), fps)
        assert frames % 8 == 1
        assert frames + Fraction(1, 2) >= Fraction(samples, rate) * fps
        assert frames == 9 or frames - 8 + Fraction(1, 2) < Fraction(samples, rate) * fps


def test_the_soundtrack_is_cut_and_never_padded():
    whole = audio.Track(torch.randn(6, 50_000), 44100, ("FL", "FR", "FC", "LFE", "BL", "BR"))
    cut = audio.soundtrack(whole, 17, Fraction(24000, 1001))
    assert torch.equal(cut.waveform, whole.waveform[:, : round(Fraction(17 * 1001, 24000) * 44100)])
    assert (cut.rate, cut.speakers) == (whole.rate, whole.speakers)
    assert torch.equal(audio.soundtrack(whole, 121, Fraction(24)).waveform, whole.waveform)


def test_the_parts_of_a_track():
    whole = track(2.0, 8000)
    assert audio.seconds_beyond(whole, 24, Fraction(24)) == 1
    assert audio.seconds_beyond(whole, 48, Fraction(24)) == audio.seconds_beyond(whole, 72, Fraction(24)) == 0
    assert audio.seconds_beyond(whole, 95, Fraction(48)) == 0, "less than the margin"
    assert torch.equal(audio.part_from(whole, 12, Fraction(24)).waveform, whole.waveform[:, 4000:])
    assert audio.part_from(whole, 48, Fraction(24)).waveform.tolist() == [[0.0]]
    for frame, begin in ((12, 4000), (36, 8000)):  # the second window ends behind the sound
        part = audio.reference_part(whole, frame, 24, Fraction(24))
        assert torch.equal(part.waveform, whole.waveform[:, begin : begin + 8000])
    assert torch.equal(audio.reference_part(whole, 12, 72, Fraction(24)).waveform, whole.waveform), "shorter"


def test_a_block_without_a_time_is_not_late():
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 8), np.float32), "fltp", "mono")
    frame.sample_rate = 8000
    assert frame.pts is None and audio._lateness(frame, Fraction(0)) == 0
    frame.pts = 8000
    assert frame.time_base is None and audio._lateness(frame, Fraction(0)) == 0
    frame.time_base = Fraction(1, 8000)
    assert audio._lateness(frame, Fraction(1, 4)) == 6000 and audio._lateness(frame, None) == 0


def test_the_conditioning_is_stereo_and_padded_with_silence():
    short = track(0.2, 8000)
    padded = audio.conditioning_track(short, 25, Fraction(25))
    assert padded.waveform.shape == (2, 8000)
    assert torch.equal(padded.waveform[:, :1600], short.waveform.expand(2, -1))
    assert not padded.waveform[:, 1600:].any()
    stereo = track(2.0, 48000, 2)
    assert torch.equal(audio.conditioning_track(stereo, 9, Fraction(24)).waveform, stereo.waveform[:, :18000])


@pytest.mark.parametrize("layout", ["3.0", "quad", "5.0", "5.1", "5.1(side)", "6.1", "7.1"])
def test_the_downmix_is_ffmpegs(tmp_path, layout):
    channels = av.AudioLayout(layout).nb_channels
    path = write(tmp_path / "a.wav", voice(0.5, 48000, channels), 48000, "pcm_s16le", layout)
    read = audio.load_track(path)
    assert read.speakers == tuple(channel.name for channel in av.AudioLayout(layout).channels)
    mixed = audio.conditioning_track(read, 12, Fraction(24)).waveform.numpy()
    assert np.abs(mixed - by_ffmpeg(path, "-ac", "2")).max() < 1e-6
    unnamed = audio.Track(read.waveform, read.rate)
    if layout in ("5.1", "7.1"):  # the usual layout of that many channels
        assert np.array_equal(audio.conditioning_track(unnamed, 12, Fraction(24)).waveform.numpy(), mixed)


# Damage


def clicks(path: Path) -> list[float]:
    """The seconds at which a click begins in what is read of a file."""
    found = audio.load_track(path)
    places = np.flatnonzero(found.waveform[0].abs().numpy() > 0.4) / found.rate
    return [round(float(at), 1) for before, at in zip([-1.0, *places], places, strict=False) if at - before > 0.2]


def clicking(path: Path, codec: str, options: dict[str, str] | None = None) -> Path:
    """Six seconds of quiet noise with a click at each whole second but the first."""
    signal = np.random.default_rng(0).standard_normal(6 * 48000) * 0.02
    for second in range(1, 6):
        signal[second * 48000 :][:480] += 0.8 * np.sin(np.arange(480) / 3)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=48000, layout="mono", options={"strict": "experimental"})
        for begin in range(0, len(signal), 4800):
            block = (signal[None, begin : begin + 4800] * 32767).clip(-32768, 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, begin, Fraction(1, 48000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def spoil(path: Path, noise: bool = True) -> Path:
    """The same file with noise in its middle, or without what is there."""
    data = path.read_bytes()
    begin, length = len(data) // 2, len(data) // 12
    middle = np.random.default_rng(1).bytes(length) if noise else b""
    path.write_bytes(data[:begin] + middle + data[begin + length :])
    return path


WHOLE = [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(("name", "codec"), [
    ("a.flac", "flac"), ("a.opus", "libopus"), ("a.m4a", "aac"), ("alac.m4a", "alac"), ("a.nut", "flac"),
    ("a.mka", "flac"), ("a.webm", "libopus"), ("a.ts", "ac3"), ("a.flv", "aac"), ("a.tta", "tta"),
])  # fmt: skip
def test_silence_stands_for_what_a_file_has_lost(tmp_path, name, codec):
    """Where times show the hole, what comes after it keeps its time."""
    path = clicking(tmp_path / name, codec)
    assert clicks(path) == WHOLE and audio.load_track(path).notes == ()
    spoil(path)
    assert [at for at in WHOLE if at in clicks(path)][-1] == 5.0
    (note,) = audio.load_track(path).notes
    assert note.startswith(f"{name}: ") and note.endswith(" s on, and silence stands for them")
    assert audio.load_track(path, 0, 1).notes == (), "it is not in the part that is read"


@pytest.mark.parametrize(("name", "codec"), [("a.mka", "flac"), ("a.ts", "aac"), ("a.m4a", "aac"), ("a.flv", "aac")])
@pytest.mark.parametrize("seconds", [5, 60, 7200])
def test_a_jump_of_a_sound_s_clock_is_no_silence(tmp_path, name, codec, seconds):
    """As in recordings that were joined: two hours of silence would take the place of the song."""
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48_000, layout="mono")
        size = stream.codec_context.frame_size or 1024
        for begin in range(0, 4 * 48_000, size):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, size), np.int16), "s16", "mono")
            frame.sample_rate, frame.time_base = 48_000, Fraction(1, 48_000)
            frame.pts = begin + (seconds * 48_000 if begin >= 2 * 48_000 else 0)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    track = audio.load_track(path, most=2700)
    (note,) = track.notes
    if seconds <= audio.JUMP:
        assert track.seconds == pytest.approx(9, abs=0.1) and "silence stands for them" in note
    else:
        assert track.seconds == pytest.approx(4, abs=0.1)
        assert note.startswith(f"{name}: its times jump by {seconds}.0 s at 2.")
        assert note.endswith(" s, and what comes after that follows at once")


def course_of(*begins: int) -> tuple[audio._Course, list[SimpleNamespace]]:
    """The course of a sound of 1000 Hz, and its blocks of 100 samples, which begin there."""
    stream = SimpleNamespace(container=SimpleNamespace(format=SimpleNamespace(name="mp3", flags=0)))
    of = {"sample_rate": 1000, "samples": 100, "time_base": Fraction(1, 1000)}
    return audio._Course(stream, None, False), [SimpleNamespace(**of, pts=at, dts=at) for at in begins]


@pytest.mark.parametrize("between", [False, True])
def test_what_cannot_be_decoded_at_either_end_moves_nothing(between):
    course, blocks = course_of(0, 100)
    course.skip()
    course.first(blocks[0])
    course.hole(blocks[0], 0)
    if between:
        course.skip()
    course.hole(blocks[1], 100)
    course.skip()
    assert bool(course.notes("a.mp3", 1000, None, io.BytesIO())) is between


def test_of_several_jumps_the_first_one_is_told():
    course, blocks = course_of(0, 60_100, 60_200, 7_200_000, 7_200_100)
    course.first(blocks[0])
    assert [course.hole(block, 100 * number) for number, block in enumerate(blocks)] == [0] * 5
    (note,) = course.notes("a.mka", 1000, None, io.BytesIO())
    assert note == "a.mka: its times jump by 60.0 s at 0.1 s, and what comes after that follows at once"


def test_of_several_holes_the_first_one_s_place_is_told(tmp_path):
    whole, path = clicking(tmp_path / "whole.mka", "flac"), tmp_path / "a.mka"
    with av.open(str(whole)) as given, av.open(str(path), "w") as written:
        copy = written.add_stream_from_template(given.streams.audio[0])
        for packet in given.demux():
            time = float(packet.pts * packet.time_base) if packet.size else 0
            if packet.size and not (1.2 <= time < 1.7 or 3.2 <= time < 3.7):
                packet.stream = copy
                written.mux(packet)
    (note,) = audio.load_track(path).notes
    assert clicks(path) == WHOLE
    assert re.fullmatch(r"a\.mka: (0\.9|1\.0) s of its sound are missing from 1\.[23] s on, and silence .*", note)


def test_what_is_behind_the_damage_is_read(tmp_path):
    """FFmpeg says once that FLAC in Ogg cannot be read there."""
    path = spoil(clicking(tmp_path / "a.ogg", "flac"))
    assert audio.load_track(path).seconds == 6 and "silence stands for them" in audio.load_track(path).notes[0]


def test_every_error_of_reading_is_passed_over_that_is_not_the_last():
    """A demultiplexer is at its end after an error. A new one goes on, or says at once that there is nothing more."""
    left = [["a", "error"], ["b", "error"], ["c", "error"], ["error"]]

    def demux():
        for item in left.pop(0) if left else ["error"]:
            if item == "error":
                raise av.error.InvalidDataError(1, "invalid")
            yield SimpleNamespace(name=item)

    file = SimpleNamespace(demux=demux, format=SimpleNamespace(name="ogg"))
    assert [packet.name for packet in packets_of(file)] == ["a", "b", "c"] and not left


@pytest.mark.parametrize(("name", "codec"), [("a.mp3", "libmp3lame"), ("a.aac", "aac"), ("a.ac3", "ac3")])
def test_damage_that_no_times_show_is_told(tmp_path, name, codec):
    path = clicking(tmp_path / name, codec)
    assert audio.load_track(path).notes == ()
    whole = path.read_bytes()
    for noise in (True, False):
        path.write_bytes(whole)
        (note,) = audio.load_track(spoil(path, noise)).notes
        assert note.startswith(f"{name}: damaged parts of its sound were left out")


@pytest.mark.parametrize(("name", "codec"), [
    ("a.wav", "pcm_s16le"), ("a.w64", "pcm_s24le"), ("a.caf", "pcm_s16le"), ("a.aiff", "pcm_s16be"),
    ("a.au", "pcm_s16be"), ("rf64.wav", "pcm_s16le"), ("adpcm.wav", "adpcm_ms"), ("a.mp3", "libmp3lame"),
    ("a.flac", "flac"), ("a.mka", "flac"), ("a.tta", "tta"), ("a.wv", "wavpack"),
])  # fmt: skip
def test_a_sound_that_is_shorter_than_its_header_says_is_told(tmp_path, name, codec):
    path = clicking(tmp_path / name, codec, {"rf64": "always"} if name == "rf64.wav" else {})
    assert audio.load_track(path).notes == ()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (note,) = audio.load_track(path).notes
    assert note.startswith(f"{name}: its sound is cut short or damaged: ") and note.endswith(" s of it are missing")
    assert float(note.split()[-6]) == pytest.approx(3, abs=1)
    assert audio.load_track(path, 0, 1).notes == (), "its end is not read"


def test_the_count_of_an_mp3_is_read_behind_a_tag_and_at_every_rate(tmp_path):
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame", rate=24_000, layout="mono")  # its frames have half the samples
        frame = av.AudioFrame.from_ndarray((noise(4, 24_000) * 9000).astype(np.int16), format="s16p", layout="mono")
        frame.sample_rate = 24_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data, tag = path.read_bytes(), b"ID3\4\0\0" + bytes([0, 0, 47, 64]) + bytes(6080)
    data = data[10 + (data[8] << 7) + data[9] :] if data[:3] == b"ID3" else data
    for whole in (data, tag + data):
        path.write_bytes(whole)
        assert audio.load_track(path).notes == ()
        path.write_bytes(whole[: -len(data) // 2])
        (note,) = audio.load_track(path).notes
        assert "its sound is cut short" in note


def noise(seconds: int, rate: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, seconds * rate)).clip(-3, 3)


def test_a_chunk_of_odd_length_is_passed_over(tmp_path):
    path = clicking(tmp_path / "a.wav", "pcm_s16le")
    data = path.read_bytes()
    at = data.index(b"data")
    whole = data[:at] + b"note" + struct.pack("<I", 5) + b"odd!!\0" + data[at:]
    for content, told in ((whole, 0), (whole[: len(whole) // 2], 1)):
        path.write_bytes(content)
        assert len(audio.load_track(path).notes) == told


def test_what_follows_a_whole_mp4_is_no_end_that_is_missing(tmp_path):
    path = clicking(tmp_path / "a.m4a", "aac")
    path.write_bytes(path.read_bytes() + b"\0\0\0\3rest of a tag, or a signature")
    assert clicks(path) == WHOLE and audio.load_track(path).notes == ()


def test_a_matroska_sound_that_begins_late_is_whole(tmp_path):
    """Its length counts from time 0."""
    path = tmp_path / "a.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=8000, layout="mono")
        for begin in range(0, 16_000, 4000):
            frame = av.AudioFrame.from_ndarray(np.full((1, 4000), 99, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, begin + 80_000, Fraction(1, 8000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert audio.load_track(path).notes == () and audio.load_track(path).seconds == 2


@pytest.mark.parametrize("fault", ["cut", "noise"])
def test_fragments_that_end_early_are_told(tmp_path, fault):
    """As of a browser's or a screen's recorder. No header says how much there was to be."""
    options = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}
    path = clicking(tmp_path / "a.mp4", "aac", options)
    assert audio.load_track(path).notes == () and clicks(path) == WHOLE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2]) if fault == "cut" else spoil(path)
    (note,) = audio.load_track(path).notes
    assert note == "a.mp4: its sound is cut short or damaged: its end is not read"
    path.write_bytes(whole[: whole.rindex(b"moof", 0, len(whole) // 2) - 4])
    assert audio.load_track(path).notes == (), "it ends with a whole fragment, as a recording may"


@pytest.mark.parametrize("size", [0, 2**31 - 37, 2**31, 2**32 - 1])
def test_a_header_that_was_written_before_the_sound_says_nothing(tmp_path, size):
    """As recorders into a pipe write it."""
    data = clicking(tmp_path / "a.wav", "pcm_s16le").read_bytes()
    at = data.index(b"data") + 4
    (tmp_path / "a.wav").write_bytes(data[:at] + struct.pack("<I", size) + data[at + 4 :])
    assert audio.load_track(tmp_path / "a.wav").notes == () and clicks(tmp_path / "a.wav") == WHOLE


def tagged(mp3: bytes) -> list[bytes]:
    """Whole files: with tags, with zeros behind, begun in the middle, put behind each other, and without a count."""
    bare = mp3[mp3.index(b"\xff\xfb", mp3.index(b"\xff\xfb") + 100) :]
    tag = b"TAG" + bytes(125)
    return [mp3 + tag, mp3 + bytes(5000), bare, bare[1000:], mp3 + mp3, mp3 + tag + mp3 + tag]


@pytest.mark.parametrize("number", range(6))
def test_nothing_is_said_of_a_whole_mp3(tmp_path, number):
    path = clicking(tmp_path / "a.mp3", "libmp3lame")
    path.write_bytes(tagged(path.read_bytes())[number])
    assert audio.load_track(path).notes == () and len(clicks(path)) % 5 == 0


def test_what_is_damaged_is_told_with_the_warnings(tmp_path):
    path = spoil(clicking(tmp_path / "a.flac", "flac"))
    read = audio.load_track(path)
    part = audio.part_from(read, 24, Fraction(24))
    assert warnings(part, 97, Fraction(24))[: len(read.notes)] == list(read.notes) and read.notes
