"""Levelling and checking the sound, against closed forms, FFmpeg's own program and made faults."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from a2v.ltx.diffusion.sound import resample
from a2v.ltx.errors import InputError
from a2v.ltx.media import preprocess as module
from a2v.ltx.media.audio import Track, conditioning_track, frames_for_audio, load_track
from a2v.ltx.media.preprocess import CEILING, MAX_GAIN, TARGET, preprocess

FFMPEG = shutil.which("ffmpeg")
SPEECH = Path(__file__).resolve().parents[3] / "assets" / "speech.opus"
RATE = 48_000
CEILING_LINEAR = 10 ** (CEILING / 20)
TIME = np.arange(6 * RATE) / RATE


def track(signal: np.ndarray, rate: int = RATE) -> Track:
    return Track(torch.from_numpy(np.atleast_2d(signal).astype(np.float32)), rate)


def sine(frequency: float = 440, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * frequency * TIME)


def at(speech: Track, decibel: float) -> Track:
    """The same sound with its RMS at a level in dBFS."""
    scale = 10 ** (decibel / 20) / speech.waveform.square().mean().sqrt()
    return Track(speech.waveform * scale, speech.rate)


def crests(speech: Track) -> Track:
    """Speech whose peaks need the limiter: a few syllables four times as loud."""
    louder = speech.waveform.clone()
    louder[:, RATE : RATE + RATE // 10] *= 4
    return Track(louder * 0.2, speech.rate)


def music() -> np.ndarray:
    """Plucked chords over kick, snare and hat."""
    random = np.random.default_rng(0)
    signal = 0.08 * np.sin(2 * np.pi * 110 * TIME)
    for beat in range(12):
        begin = beat * RATE // 2
        time = TIME[: len(TIME) - begin]
        for note in (1, 1.26, 1.5):
            signal[begin:] += 0.08 * np.sin(2 * np.pi * 220 * note * time + beat) * np.exp(-3 * time)
        signal[begin:] += 0.05 * random.standard_normal(time.size) * np.exp(-60 * time)
        if beat % 2:
            signal[begin:] += 0.2 * random.standard_normal(time.size) * np.exp(-25 * time)
        else:
            signal[begin:] += 0.4 * np.sin(2 * np.pi * (45 * time + 8 * (1 - np.exp(-40 * time)))) * np.exp(-12 * time)
    return signal


@pytest.fixture(scope="module")
def speech() -> Track:
    return load_track(SPEECH)


def measured(heard: Track) -> float:
    """Integrated loudness of the stereo mix by the ffmpeg program."""
    if FFMPEG is None:
        pytest.skip("no ffmpeg program on PATH to compare with")
    stereo = conditioning_track(heard, heard.waveform.shape[1], Fraction(heard.rate)).waveform
    data = stereo.T.contiguous().numpy().tobytes()
    command = [FFMPEG, "-hide_banner", "-nostats", "-f", "f32le", "-ar", str(heard.rate), "-ac", "2", "-i", "-"]
    command += ["-af", "ebur128", "-f", "null", "-"]
    log = subprocess.run(command, input=data, capture_output=True, check=True).stderr.decode()
    return float(re.findall(r"I:\s+(-?[\d.]+) LUFS", log)[-1])


def lag(heard: Track, source: Track) -> int:
    """Samples by which the first is late, where the correlation is highest."""
    a, b = source.waveform[0].double(), heard.waveform[0].double()
    n = 2 * len(a)
    correlation = torch.fft.irfft(torch.fft.rfft(b, n) * torch.fft.rfft(a, n).conj(), n)
    best = int(correlation.argmax())
    return best - n if best > n // 2 else best


# preprocess


@pytest.mark.parametrize("level", [-45, -35, -20, -6])
def test_speech_comes_out_at_the_target(speech, level):
    result = preprocess(at(speech, level))
    expected = TARGET if level > -39 else measured(at(speech, level)) + MAX_GAIN
    assert measured(result) == pytest.approx(expected, abs=0.15)  # the program prints one decimal
    assert result.waveform.abs().max() <= CEILING_LINEAR + 1e-6


@pytest.mark.parametrize("rate", [8000, 11_025, 47_999, 192_000])
def test_every_rate_reaches_the_target(speech, rate):
    source = Track(resample(speech.waveform[:, : 2 * RATE], RATE, rate), rate)
    result = preprocess(source)
    assert (result.rate, result.waveform.shape) == (rate, source.waveform.shape)
    assert measured(result) == pytest.approx(TARGET, abs=0.5)
    assert lag(result, source) == 0


@pytest.mark.parametrize("rate", [1000, 1500, 2000, 3000, 3999])
def test_a_rate_too_low_for_the_meter_is_levelled_by_its_power(rate):
    time = torch.arange(4 * rate) / rate
    source = Track((0.1 * torch.sin(2 * torch.pi * 100 * time))[None], rate)
    power = preprocess(source).waveform.double().square().mean() * 2  # of both channels of the mix
    assert 10 * float(power.log10()) == pytest.approx(TARGET, abs=0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
@pytest.mark.parametrize("room", [10, 200])
def test_a_full_disk_for_temporary_files_is_an_error_and_not_silence(room):
    """A file-size limit stands in for the full disk; it would bind the whole process, so a child has it."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import conftest, torch
from a2v.ltx.media.audio import Track
from a2v.ltx.media.preprocess import loudness
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
try:
    print(loudness(Track(torch.rand(1, 96000), 48000)))
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "could not be written" in done.stdout and done.stdout.count("\n") == 1, done


@pytest.mark.parametrize("times", [10, 30, 100])
def test_sound_far_above_full_scale_comes_out_at_the_target(speech, times):
    loud = Track(at(speech, -6).waveform.clamp(-1, 1) * times, speech.rate)
    assert module.loudness(loud) == pytest.approx(
        module.loudness(Track(loud.waveform / times, RATE)) + 20 * np.log10(times), abs=0.1
    )
    assert measured(preprocess(loud)) == pytest.approx(TARGET, abs=0.15)


def test_mono_and_its_stereo_copy_come_out_alike(speech):
    stereo = Track(speech.waveform.expand(2, -1), RATE)
    torch.testing.assert_close(preprocess(stereo).waveform[:1], preprocess(speech).waveform)


def test_a_sine_has_the_level_of_the_formula():
    """A 997 Hz sine of amplitude a in two channels has 20·log10(a) LUFS by BS.1770."""
    result = preprocess(track(sine(997, 0.01))).waveform[0, RATE:-RATE]  # 24 dB short of the target, 20 are given
    assert 20 * float(result.abs().max().log10()) == pytest.approx(-40 + MAX_GAIN, abs=0.02)
    result = preprocess(track(sine(997, 0.9))).waveform[0, RATE:-RATE]
    assert 20 * float(result.abs().max().log10()) == pytest.approx(TARGET, abs=0.05)


@pytest.mark.parametrize("seconds", [0.001, 0.05, 0.2, 0.45, 0.55])
def test_very_short_tracks(seconds):
    signal = sine(997, 0.05)[: round(seconds * RATE)]
    result = preprocess(track(signal))
    assert result.waveform.shape == (1, signal.size)
    if seconds > 0.1:
        assert 20 * float(result.waveform.abs().max().log10()) == pytest.approx(TARGET, abs=0.2)
    assert preprocess(track([0.3])).waveform.isfinite().all()


def test_one_gain_for_all_where_the_limiter_rests(speech):
    source = at(speech, -30)
    ratio = preprocess(source).waveform / source.waveform
    ratio = ratio[source.waveform.abs() > 0.02]
    assert float(ratio.std() / ratio.mean()) < 0.02  # what the high-pass takes
    assert float(ratio.mean()) == pytest.approx(10 ** ((TARGET - measured(source)) / 20), rel=0.02)


def test_the_limiter_holds_the_ceiling_and_moves_nothing(speech):
    source = crests(speech)
    result = preprocess(source)
    assert float(result.waveform.abs().max()) == pytest.approx(CEILING_LINEAR, abs=1e-4)
    assert lag(result, source) == 0
    assert measured(result) == pytest.approx(TARGET, abs=0.5)
    away = slice(3 * RATE, 5 * RATE)  # from the loud syllables, the gain is one number again
    a, b = source.waveform[0, away], result.waveform[0, away]
    gain = (a @ b) / (a @ a)
    assert float((b - gain * a).norm() / b.norm()) < 0.01


def test_an_impulse_stays_at_its_sample():
    signal = np.random.default_rng(0).standard_normal(2 * RATE) * 0.003
    signal[[1, 30_000, 2 * RATE - 2]] = 0.9
    result = preprocess(track(signal)).waveform[0].abs()
    assert sorted(result.topk(3).indices.tolist()) == [1, 30_000, 2 * RATE - 2]


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8, 9, 16])
@pytest.mark.parametrize("loud", [0.02, 0.9])
def test_channels_stay_what_they_are(channels, loud):
    signal = np.random.default_rng(0).standard_normal((channels, RATE)) * loud
    signal[0] *= 2
    result = preprocess(track(signal)).waveform
    assert result.shape == signal.shape
    gains = result.norm(dim=1) / torch.from_numpy(signal).norm(dim=1)
    torch.testing.assert_close(gains, gains[:1].expand(channels), rtol=0.02, atol=0)  # one gain, none mixed up
    similar = torch.nn.functional.cosine_similarity(result, torch.from_numpy(signal).float())
    assert similar.min() > 0.98


def test_speakers_are_kept(speech):
    source = Track(speech.waveform.expand(6, -1), RATE, ("FL", "FR", "FC", "LFE", "SL", "SR"))
    result = preprocess(source)
    assert result.speakers == source.speakers
    assert measured(result) == pytest.approx(TARGET, abs=0.15)


@pytest.mark.parametrize("make", [lambda s: s, crests, lambda s: track(music()), lambda s: at(s, -45)])
def test_twice_is_once(speech, make):
    once = preprocess(make(speech))
    if make(speech).waveform.square().mean() < 1e-4:  # -40 dBFS and less is out of reach at once
        once = preprocess(once)
    twice = preprocess(once)
    change = 20 * torch.log10(twice.waveform.norm() / once.waveform.norm())
    assert abs(float(change)) < 0.2


def test_quiet_sound_is_raised_by_no_more_than_the_cap(speech):
    source = at(speech, -50)
    gain = 20 * torch.log10(preprocess(source).waveform.norm() / source.waveform.norm())
    assert float(gain) == pytest.approx(MAX_GAIN, abs=0.1)


def test_silence_stays_silence(speech):
    assert not preprocess(track(np.zeros((2, RATE)))).waveform.any()
    assert not preprocess(track(np.full(RATE // 5, 0.25))).waveform.any()  # nothing but an offset
    hiss = np.random.default_rng(0).standard_normal(RATE) * 1e-5
    assert float(preprocess(track(hiss)).waveform.norm()) == pytest.approx(np.linalg.norm(hiss), rel=0.01)
    half = torch.cat([speech.waveform, torch.zeros(1, 2 * RATE)], dim=1)
    assert float(preprocess(Track(half, RATE)).waveform[:, -RATE:].abs().max()) < 1e-6


@pytest.mark.parametrize("offset", [0.001, -0.2])
def test_an_offset_is_removed_and_nothing_else(speech, offset):
    plain, shifted = preprocess(speech).waveform, preprocess(Track(speech.waveform + offset, RATE)).waveform
    assert abs(float(shifted.mean())) < 1e-5
    torch.testing.assert_close(shifted, plain, atol=1e-4, rtol=0)  # no thump at either end


def test_the_high_pass_has_its_two_responses_and_no_phase():
    """Two Butterworth passes of order 2: 1 / (1 + (f_c / f)⁴); at 100 Hz that is 1 - 1e-4."""
    for frequency in (10, 20, 100):
        wave = sine(frequency, 0.4)
        both = preprocess(track(wave + sine(5000, 0.4))).waveform[0, 2 * RATE : 4 * RATE].double()
        reference = [torch.from_numpy(sine(f, 0.4))[2 * RATE : 4 * RATE] for f in (frequency, 5000)]
        low, high = (float(both @ r / (r @ r)) for r in reference)
        assert low / high == pytest.approx(1 / (1 + (module.SUBSONIC / frequency) ** 4), abs=2e-3)


def test_samples_that_are_no_numbers_are_refused(speech):
    damaged = speech.waveform.clone()
    damaged[0, 5] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite samples"):
        preprocess(Track(damaged, RATE))
    assert len(warn(Track(damaged, RATE))) == 1


def test_the_source_is_not_written_to(speech):
    before = speech.waveform.clone()
    preprocess(speech), warn(speech)
    assert torch.equal(speech.waveform, before)


# warnings


def warn(source: Track, frames: int | None = None) -> list[str]:
    fps = Fraction(24)
    return module.warnings(source, frames or frames_for_audio(source, fps), fps)


CLEAN = {
    "sine": lambda: sine(),
    "sine at full scale": lambda: sine(440, 1),
    "low sine at full scale": lambda: sine(50, 1),
    "music": music,
    "stereo music": lambda: np.stack([music(), np.roll(music(), 400)]),
    "noise": lambda: np.random.default_rng(0).standard_normal((2, 6 * RATE)) * 0.1,
    "square wave": lambda: 0.3 * np.sign(sine(110)),
    "sudden start": lambda: np.where(TIME < 0.5, 0, sine()),
    "a pause": lambda: music() * np.clip(abs(TIME - 2.75) * 20 - 15, 0, 1),  # faded in 50 ms
    "notes with a release": lambda: sine() * np.clip((0.4 - TIME % 0.5) / 0.1, 0, 1),
}


@pytest.mark.parametrize("name", CLEAN)
def test_clean_sound_has_no_warnings(name):
    assert warn(track(CLEAN[name]())) == []


@pytest.mark.parametrize("rate", [8000, 16_000, 48_000, 192_000])
def test_speech_has_no_warnings(speech, rate):
    assert warn(Track(resample(speech.waveform, RATE, rate), rate)) == []
    assert warn(Track(resample(speech.waveform[:, RATE // 2 : 3 * RATE // 4], RATE, rate), rate)) == []


FAULTS = {
    "silent, below -60 dBFS from start to end": lambda s: np.zeros_like(s),
    "is silent from start to end": lambda s: np.random.default_rng(0).standard_normal(s.size) * 1e-4,
    "silent from 2.0 to 4.5 s:": lambda s: np.concatenate([s[: 2 * RATE], 0 * s[: 5 * RATE // 2], s[2 * RATE :]]),
    "very quiet, -50 dBFS": lambda s: at(track(s), -50.5).waveform[0].numpy(),
    "clipped": lambda s: np.clip(s / abs(s).max() * 2, -1, 1),
    "30.0% of the audio's samples are clipped": lambda s: np.clip(sine(441, 1.122), -1, 1),  # 2/π·acos(1/1.122)
    "only the left channel": lambda s: np.stack([s, s * 0.001]),
    "only the right channel": lambda s: np.stack([0 * s, s]),
    "cancel each other": lambda s: np.stack([s, -0.9 * s]),
    "offset of +5.0%": lambda s: s + 0.05,
    "offset of -3.0%": lambda s: np.stack([s, s - 0.03]),
    "abruptly at 3.00 s:": lambda s: np.where((TIME < 3) | (TIME > 4), sine(500), 0),
    "abruptly at 1.10 s:": lambda s: np.where((TIME[: s.size] < 1.1) | (TIME[: s.size] > 1.6), s, 0),
    "abruptly at 2.50 s:": lambda s: np.where(TIME < 2.5, sine(300), 0.3 * np.sin(2 * np.pi * 470 * TIME + 1)),
    "abruptly at 3.30 s:": lambda s: np.concatenate([s[: 33 * RATE // 10], s[38 * RATE // 10 :]]),
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_fault_has_its_one_sentence(speech, words):
    sentences = warn(track(FAULTS[words](speech.waveform[0].numpy())))
    words = words.replace("is silent from", "is silent, below -60 dBFS from")
    assert [words.lower() in sentence.lower() for sentence in sentences].count(True) == 1, sentences
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in sentences)
    if "2.0 to 4.5" not in words:  # that one also breaks off
        assert len(sentences) == 1


def test_silence_after_the_track_counts_and_what_is_cut_does_not(speech):
    (sentence,) = warn(speech, 24 * 9 + 1)
    end = speech.waveform.shape[1] / RATE
    found = re.search(r"silent from ([\d.]+) to 9\.0 s", sentence)
    assert found and end - 0.7 < float(found[1]) <= end + 0.1
    late = torch.cat([speech.waveform, torch.ones(1, 3 * RATE)], dim=1)
    assert warn(Track(late, RATE), 121) == []


def test_many_times_are_counted():
    gaps = np.where((TIME % 1.5 > 1.2), 0, sine(500))
    (sentence,) = warn(track(gaps))
    assert "1.20 s, 2.70 s, 4.20 s and 1 more" in sentence


def test_only_steady_sound_breaks_off() -> None:
    """A click before silence does not, nor does sound that fades out within 50 ms."""
    loud, faint = sine(500), 1e-3 * sine(500)
    for name, sound, times in (
        ("steady", np.where(TIME < 3, loud, 0), [3.0]),
        ("a click", np.where(TIME < 2.99, faint, np.where(TIME < 3, loud, 0)), []),
        ("fading", np.where(TIME < 2.97, loud, np.where(TIME < 3, loud / 4, 0)), []),
    ):
        found = module._drops(torch.from_numpy(np.stack([sound, sound])), RATE)
        assert found[:1] == pytest.approx(times), name


def test_a_drop_is_found_in_the_shortest_sound_that_has_one() -> None:
    """Five blocks of 10 ms before the block in which it drops, and five behind it."""
    sound = np.where(TIME < 0.06, sine(500), 0)
    for seconds, times in ((0.11, [0.06]), (0.10, [])):
        part = torch.from_numpy(np.stack([sound, sound])[:, : round(seconds * RATE)])
        assert module._drops(part, RATE) == pytest.approx(times), seconds


@pytest.mark.parametrize(
    ("seconds", "times", "told"),
    [
        (6, [0.06], ["0.06"]),
        (6, [1.0, 1.08, 2.0, 2.15], ["1.00", "2.00", "2.15"]),
        (0.5, [0.25], ["0.25"]),
        (0.5, [0.2, 0.4], []),
        (3, [0.5, 1.5, 2.5], ["0.50", "1.50", "2.50"]),
        (3, [0.5, 1.0, 1.5, 2.5], []),
    ],
)
def test_breaks_are_told_once_each_unless_they_are_the_sound_itself(
    monkeypatch: pytest.MonkeyPatch, seconds: float, times: list[float], told: list[str]
) -> None:
    """What lies within a tenth of a second is one break; more than one a second are crackle."""
    monkeypatch.setattr(module, "_drops", lambda stereo, rate: times[::2])
    monkeypatch.setattr(module, "_jumps", lambda stereo, rate: times[1::2])
    found = module._breaks(torch.zeros(2, round(seconds * RATE)), RATE)
    assert re.findall(r"([\d.]+) s\b", " ".join(found)) == told


def tops(count: int, length: int) -> np.ndarray:
    """Quiet sound of six seconds with so many flat tops of so many samples."""
    signal = sine(440, 0.1)
    for number in range(count):
        begin = RATE // 2 + number * RATE * 5 // count
        signal[begin : begin + length] = 1
    return signal


def test_sound_is_clipped_where_one_channel_has_a_flat_top_each_second() -> None:
    def clipped(signal: np.ndarray) -> list[str]:
        return [sentence for sentence in warn(track(signal)) if "clipped" in sentence]

    assert clipped(tops(6, 100)) and not clipped(tops(5, 100)), "a single click is none"
    (told,) = clipped(np.stack([tops(6, 90), sine(440, 0.1)]))
    assert told.startswith("0.2% of the audio's samples are clipped"), "that of the worst channel"
    assert not clipped(np.stack([tops(6, 40), sine(440, 0.1)]))


def test_the_loudness_counts_the_sound_to_its_end() -> None:
    signal = np.where(TIME < 0.9, sine(997, 0.01), sine(997, 0.5))
    before, whole = (module.loudness(track(signal[: round(seconds * RATE)])) for seconds in (0.9, 1.0))
    assert whole > before + 10
