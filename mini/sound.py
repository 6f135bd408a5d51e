"""The clips' sound: speech from synthesizers, music and beats by code; and what a scene's movement takes from it.

Speech comes from voices.py. Movement is measured on the sound as
the pack hands it to the model, levelled: what a picture does can be told from what the model hears.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..ltx.diffusion.sound import resample
from ..ltx.media.audio import Track, conditioning_track
from ..ltx.media.preprocess import preprocess
from . import clips, voices
from .clips import BARS, Scene, bounce

Sounds = tuple[tuple[float, int], ...]

RATE = 16_000
FULL = 0.3  # effective value, of a levelled track, at which a mouth is wide open
QUIET, LOUD = -44.0, -20.0  # dBFS in a band: where a bar begins to rise, where it stands full
WINDOW = 0.16  # seconds, under a Hann window
SPAN = 0.12  # seconds, the same for the shapes of a mouth
WIDTHS = np.array([0.55, 0.45, 0.95, 0.0, 0.9], np.float32)  # of a mouth by viseme, 0 to 1
MUSIC = -15.0  # dB, of a song's music against its voice
BANDS = (60.0, 250.0, 600.0, 1400.0, 3200.0, 7600.0)  # Hz: the bars' edges
ESPEAK = ("en-us", "en", "en-gb-scotland", "de", "es", "it", "fr", "pt", "nl")
ESPEAK_KINDS = ("", "+m2", "+m5", "+m7", "+f2", "+f3", "+f5")
FLITE = ("kal16", "awb", "rms", "slt")
HELD_OUT = ("awb", "+f5", "+m7")  # heard only in evaluation
VOCABULARY = (
    "the a of to and in on with from over under about before after light river window garden table paper winter summer "
    "morning evening bread water music story people children teacher doctor captain market village mountain ocean "
    "little great early silver golden quiet sudden open walk speak listen carry follow remember wonder answer begin "
    "never always maybe today tomorrow yesterday seven eleven twenty hundred yes no hello thank you why where when "
    "banana potato tomato animal camera umbrella photograph university experiment"
)


def sentence(rng: np.random.Generator) -> str:
    """Words that mean nothing, with the pauses of speech."""
    words: list[str] = []
    vocabulary = VOCABULARY.split()
    for _ in range(int(rng.integers(2, 5))):
        words += [str(w) for w in rng.choice(vocabulary, int(rng.integers(2, 7)))]
        words[-1] += str(rng.choice([",", ".", "?", ";"]))
    return " ".join(words)


def utterance(rng: np.random.Generator, seconds: float, held_out: bool = False) -> tuple[Track, Sounds]:
    """Synthetic speech of that length and its sounds: the beginning of each in seconds, and its viseme. held_out: by a
    voice that training never hears. Errors: no synthesizer."""
    found = voices.required()
    blocks, sounds, at, length = [], [], 0, round(seconds * RATE)
    while at < length:
        wave, own = _spoken(rng, str(rng.choice(found)), held_out)
        pause = np.zeros(round(float(rng.uniform(0, 0.3)) * RATE), np.float32)
        sounds += [(at / RATE + begins, viseme) for begins, viseme in own]
        sounds.append(((at + len(wave)) / RATE, voices.CLOSED))
        blocks += [wave, pause]
        at += len(wave) + len(pause)
    return Track(torch.from_numpy(np.concatenate(blocks)[:length])[None].contiguous(), RATE), tuple(sounds)


def _spoken(rng: np.random.Generator, program: str, held_out: bool) -> tuple[np.ndarray, Sounds]:
    """A sentence without the silence around it, mono at RATE, and its sounds."""
    if program == "flite":
        said = voices.flite(sentence(rng), str(rng.choice([v for v in FLITE if (v in HELD_OUT) == held_out])))
    else:
        kinds = [k for k in ESPEAK_KINDS if (k in HELD_OUT) == held_out]
        voice = str(rng.choice(ESPEAK)) + str(rng.choice(kinds))
        said = voices.espeak(sentence(rng), voice, int(rng.integers(120, 200)), int(rng.integers(20, 80)))
    wave = resample(torch.from_numpy(said.wave)[None], said.rate, RATE)[0].numpy()
    heard = np.flatnonzero(np.abs(wave) > 1e-3)
    first, last = (int(heard[0]), int(heard[-1]) + 1) if len(heard) else (0, len(wave))
    return wave[first:last], tuple((max(0.0, begins - first / RATE), viseme) for begins, viseme in said.sounds)


def visemes(sounds: Sounds, frames: int, fps: float) -> np.ndarray:
    """[frames, 5]: the share of each viseme around the middle of each frame, under a Hann window of SPAN seconds."""
    fine = 1000  # steps a second
    steps = np.zeros((round(frames / fps * fine) + 1, len(voices.VISEMES)), np.float32)
    begins = [0, *(min(len(steps), round(at * fine)) for at, _ in sounds), len(steps)]
    for (start, stop), viseme in zip(pairwise(begins), (voices.CLOSED, *(v for _, v in sounds)), strict=True):
        steps[start:stop] = 0
        steps[start:stop, viseme] = 1
    window = np.hanning(round(SPAN * fine) + 2)[1:-1]
    half = len(window) // 2
    padded = np.pad(steps, ((half, half), (0, 0)), mode="edge")
    middles = ((np.arange(frames) + 0.5) / fps * fine).astype(int)
    return np.stack([window @ padded[m : m + len(window)] for m in middles]) / window.sum()


def mouth(opening: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Loudness [frames] and visemes [frames, 5] → [frames, 3]: a mouth's opening, width and teeth. Lips close for a
    sound that is made with closed lips, and at no sound."""
    width, teeth = shares @ WIDTHS, shares[:, voices.TEETH]
    return np.stack([opening * (1 - shares[:, voices.CLOSED]), width, teeth], 1).astype(np.float32)


def music(rng: np.random.Generator, seconds: float) -> Track:
    """A bass, chords, a melody and cymbals, each coming and going: every band moves by itself."""
    n = round(seconds * RATE)
    t = np.arange(n) / RATE
    out = np.zeros(n)
    root = 55.0 * 2 ** (rng.integers(0, 12) / 12)
    for low, high, loudness in ((1, 3, 0.5), (4, 8, 0.35), (9, 18, 0.3), (20, 44, 0.3), (0, 0, 0.12)):
        at = 0.0
        while at < seconds:
            length = float(rng.uniform(0.12, 0.6))
            span = slice(round(at * RATE), min(n, round((at + length) * RATE)))
            note = t[span] - at
            shape = np.minimum(1, note / 0.02) * np.exp(-note / float(rng.uniform(0.1, 0.5)))
            if high:
                pitch = root * float(rng.integers(low, high + 1))
                tone = np.sin(2 * np.pi * pitch * note)
            else:
                tone = np.diff(rng.standard_normal(len(note) + 1))
            if rng.random() < 0.75:
                out[span] += loudness * shape * tone * float(rng.uniform(0.3, 1.0))
            at += length
    return Track(torch.from_numpy(out.astype(np.float32))[None] * 0.4, RATE)


def song(rng: np.random.Generator, seconds: float, held_out: bool = False) -> tuple[Track, Sounds]:
    """Spoken verses over `music`, which is MUSIC quieter: what moves a mouth, as the training had it, in a song."""
    spoken, sounds = utterance(rng, seconds, held_out)
    voice = spoken.waveform
    band = music(rng, seconds).waveform
    power = voice.square().mean() / band.square().mean()
    return Track(voice + band * power.sqrt() * 10 ** (MUSIC / 20), RATE), sounds


def beats(rng: np.random.Generator, seconds: float) -> tuple[Track, float, float]:
    """Drum strokes → the track, seconds from stroke to stroke, and the time of the first one."""
    beat, first = float(rng.uniform(0.35, 0.7)), float(rng.uniform(0, 0.3))
    n = round(seconds * RATE)
    t = np.arange(n) / RATE
    out = 0.003 * rng.standard_normal(n)
    at = first
    while at < seconds:
        note = np.maximum(t - at, 0)
        stroke = np.exp(-note / 0.05) * np.sin(2 * np.pi * (60 * note + 4 * (1 - np.exp(-note / 0.02))))
        stroke += 0.3 * np.exp(-note / 0.015) * rng.standard_normal(n)
        out += np.where(t >= at, stroke, 0) * 0.6
        at += beat
    return Track(torch.from_numpy(out.astype(np.float32))[None], RATE), beat, first


def heard(track: Track, frames: int, fps: float) -> Tensor:
    """What the model hears beside that many frames: levelled, cut or padded, mono [samples] at 16 kHz."""
    rate = Fraction(fps).limit_denominator(1001)
    cut = conditioning_track(preprocess(track), frames, rate)
    return resample(cut.waveform.mean(0, keepdim=True), track.rate, RATE)[0]


def _windows(wave: Tensor, frames: int, fps: float) -> Tensor:
    """[frames, samples] around the middle of each frame."""
    size = round(WINDOW * RATE)
    padded = torch.nn.functional.pad(wave, (size, size))
    starts = ((torch.arange(frames) + 0.5) / fps * RATE).long() - size // 2 + size
    return padded[(starts[:, None] + torch.arange(size)).clamp(max=len(padded) - 1)]


def envelope(wave: Tensor, frames: int, fps: float) -> np.ndarray:
    """Loudness 0..1 at each frame: what a mouth does."""
    window = torch.hann_window(round(WINDOW * RATE))
    power = (_windows(wave, frames, fps).square() * window).sum(1) / window.sum()
    return (power.sqrt() / FULL).pow(0.8).clamp(0, 1).numpy()


def bands(wave: Tensor, frames: int, fps: float) -> np.ndarray:
    """[frames, BARS] in 0..1: the loudness of each band."""
    blocks = _windows(wave, frames, fps)
    spectrum = torch.fft.rfft(blocks * torch.hann_window(blocks.shape[1])).abs().square()
    hertz = torch.linspace(0, RATE / 2, spectrum.shape[1])
    result = []
    for bar in range(BARS):
        inside = (hertz >= BANDS[bar]) & (hertz < BANDS[bar + 1])
        power = spectrum[:, inside].sum(1) * 2 / blocks.shape[1] ** 2
        result.append(((10 * torch.log10(power + 1e-9) - QUIET) / (LOUD - QUIET)).clamp(0, 1).numpy())
    return np.stack(result, 1)


def accompany(
    rng: np.random.Generator, scene: Scene, frames: int, fps: float, held_out: bool = False
) -> tuple[Track, np.ndarray]:
    """A sound for this scene, and the movement that belongs to it."""
    seconds = frames / fps
    if scene.kind == "ball":
        track, beat, first = beats(rng, seconds)
        return track, bounce((np.arange(frames) + 0.5) / fps - first, beat)
    if scene.kind == "bars":
        track = music(rng, seconds)
        return track, bands(heard(track, frames, fps), frames, fps)
    track, sounds = utterance(rng, seconds, held_out)
    return track, clips.two(scene, talk(track, sounds, frames, fps))


def talk(track: Track, sounds: Sounds, frames: int, fps: float) -> np.ndarray:
    """What a mouth does beside that track: [frames, 3]."""
    return mouth(envelope(heard(track, frames, fps), frames, fps), visemes(sounds, frames, fps))
