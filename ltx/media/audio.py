"""Reads the audio track of any file, and cuts the waveform for the finished file and the one that the model hears.

Both are cut at the source's own rate, by exact fractions. The track in the finished file consists of the source's
samples, unchanged. video.py writes sound, preprocess.py levels it, and sound.py encodes it to latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from ..errors import InputError
from ..grid import TIME_SCALE
from .container import film_start, frames_of_stream, is_matroska, open_media, told_time

MAX_SECONDS = 600  # the longest video, 481 frames at 1 fps, needs less
MARGIN = Fraction(1, 10)  # seconds by which a track of the same length may be longer: its codec adds some
GAP = Fraction(1, 10)  # seconds; where so much of a film's sound is missing, silence stands for it
EARLIEST = 33  # seconds of sound before time 0 in a Matroska file: a block is at most 2**15 ms before its cluster
BREAK = Fraction(1, 200)  # seconds between two blocks of sound; less is the rounding of their times
LONGEST = 2700  # seconds of a film that is made in windows: MAX_VALUES holds so much stereo at 48 kHz
MIN_RATE, MAX_RATE = 1000, 768_000  # Hz; a lower rate carries no usable sound, and nobody records at a higher one
MAX_VALUES = 2**28  # samples times channels of one file: 1 GiB, ten minutes at 48 kHz in nine channels
MAX_CHANNELS = 64  # FFmpeg's own limit
LOUDEST = 128.0  # full scale is 1; sound that is 42 dB louder is damaged, or consists of integers stored as floats

HALF = math.sqrt(0.5)
# ITU-R BS.775: the share of each speaker in (left, right); the subwoofer has none. FFmpeg's float downmix is the same.
DOWNMIX = {
    "FL": (1.0, 0.0), "FR": (0.0, 1.0), "FC": (HALF, HALF), "LFE": (0.0, 0.0), "LFE2": (0.0, 0.0),
    "FLC": (1.0, 0.0), "FRC": (0.0, 1.0), "DL": (1.0, 0.0), "DR": (0.0, 1.0), "BC": (0.5, 0.5),
    "BL": (HALF, 0.0), "BR": (0.0, HALF), "SL": (HALF, 0.0), "SR": (0.0, HALF), "WL": (HALF, 0.0), "WR": (0.0, HALF),
    "TFL": (HALF, 0.0), "TFR": (0.0, HALF), "TBL": (HALF, 0.0), "TBR": (0.0, HALF),
}  # fmt: skip


@dataclass(frozen=True)
class Track:
    """Sound as it was recorded. waveform: float32 [channels, samples], full scale ±1; rate: Hz.

    speakers: FFmpeg's names of the channels ("FL", "FR", "FC", …). If it is empty, the usual order for that number of
    channels is assumed. Raises InputError if the shape or the rate cannot be used, or there is not one speaker for each
    channel.
    """

    waveform: Tensor
    rate: int
    speakers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.waveform.ndim != 2 or not self.waveform.numel():
            raise InputError(f"audio: its shape is {tuple(self.waveform.shape)}; [channels, samples] is needed.")
        if not MIN_RATE <= self.rate <= MAX_RATE:
            raise InputError(f"audio: {self.rate} Hz is not a usable sample rate; resample it to 48000 Hz.")
        if self.speakers and len(self.speakers) != len(self.waveform):
            raise InputError(
                f"audio: {len(self.waveform)} channels have {len(self.speakers)} speakers; name one for each or none."
            )

    @property
    def seconds(self) -> Fraction:
        return Fraction(self.waveform.shape[1], self.rate)


# Reading


def load_track(
    path: str | Path,
    start: float = 0,
    duration: float | None = None,
    most: int | None = None,
    *,
    spare: bool = False,
    cut: bool = False,
) -> Track:
    """Reads the audio of any file that FFmpeg opens, at the file's own rate and layout. start, duration: seconds.

    In a film the times count from the film's start: where its sound begins later, there is silence before it, and where
    more than GAP of it is missing, silence stands for that. Decoding always starts at the beginning of the file,
    because seeking is inexact in several formats. It ends after `duration`, at most `most`, by default MAX_SECONDS.
    spare: whether it ends after MAX_SECONDS already if more would not fit into memory. cut: whether sound before the
    film's first picture is left out, because it must fit the pictures, and one sample of silence stands for a sound
    that has nothing else; otherwise it is read from its own start. Damaged packets are skipped. Raises InputError,
    which names the file, if it has no usable sound.
    """
    path = Path(path)
    name = path.name or str(path)
    if not (math.isfinite(start) and start >= 0):
        raise InputError(f"start: {start} is not a time of at least 0 seconds.")
    if duration is not None and not duration > 0:
        raise InputError(f"duration: {duration} is not a length above 0 seconds.")
    most = MAX_SECONDS if most is None else most
    length = Fraction(most if duration is None else min(duration, most))
    film = film_start(path, "WAV")
    with open_media(path, "WAV") as container:
        return _decode(container, name, film, Fraction(start), length, spare, cut)


def _decode(
    container: Any, name: str, film: Fraction | None, start: Fraction, length: Fraction, spare: bool, cut: bool
) -> Track:
    """Decodes the samples [start, start + length), in seconds, of the container's best audio stream. film: when the
    film's first picture is shown, None if there is no film."""
    blocks: list[np.ndarray] = []
    kind, speakers, position, first, last = None, (), 0, 0, 0
    begun = ended = 0  # where the film's start lies among the samples; where the block before ends in the film
    stream = _stream(container, name)
    decoded = frames_of_stream(container, stream)
    for frame in decoded if film is None else _placed(decoded, stream, film):
        frame_kind = (frame.sample_rate, frame.layout.name, frame.format.name)
        if kind is None:
            kind = frame_kind
            if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
                raise InputError(f"{name}: {frame.sample_rate} Hz is not a usable sample rate; convert it to 48000 Hz.")
            speakers = tuple(channel.name for channel in frame.layout.channels)
            first = round(start * frame.sample_rate)
            if spare and length * frame.sample_rate * len(speakers) > MAX_VALUES:
                length = min(length, Fraction(MAX_SECONDS))
            last = first + max(1, round(length * frame.sample_rate))
            ended = _lateness(frame, film)
            position = ended if cut else max(0, ended)
            begun = position - ended
            if position >= last:
                at = position / frame.sample_rate
                raise InputError(f"{name}: its sound begins only at {at:.3f} s; choose a later start or a longer part.")
            blocks.append(_silence(name, len(speakers), first, position))
            # It changes the sample format only. The format is packed, because PyAV reads past the end of eight or more
            # planes and crashes.
            to_float = av.AudioResampler("flt", frame.layout, frame.sample_rate)
        if frame_kind != kind:
            old, new = ("{} Hz {} {}".format(*each) for each in (kind, frame_kind))
            raise InputError(f"{name}: its sound changes from {old} to {new}; convert it to one format.")
        place = _lateness(frame, film)
        missing = begun + place - position
        if place - ended > BREAK * kind[0] and missing > GAP * kind[0]:
            blocks.append(_silence(name, len(speakers), max(position, first), min(position + missing, last)))
            position += missing
            if position >= last:
                break
        ended = place + frame.samples
        for block in to_float.resample(frame):
            if position + block.samples > first:
                samples = rearrange(block.to_ndarray(), "1 (n c) -> c n", c=len(speakers))
                blocks.append(samples[:, max(0, first - position) : last - position])
            position += block.samples
        _check_room(name, min(position, last) - first, len(speakers))
        if position >= last:
            break
    if kind is None:
        raise InputError(f"{name}: no sound could be decoded; the file is damaged or empty: export it again.")
    waveform = np.concatenate(blocks, axis=1)
    if cut and not waveform.size:  # all of it is before the film's first picture
        waveform = _silence(name, len(speakers), 0, 1)
    if not waveform.size:
        raise InputError(f"start: {float(start):g} s is after the end of {name} at {position / kind[0]:.3f} s.")
    _check_samples(name, waveform, kind[0], start)
    return Track(torch.from_numpy(waveform), kind[0], () if "NONE" in speakers else speakers)


def _stream(container: Any, name: str) -> Any:
    """The best stream of sound. Raises InputError if there is none that can be decoded."""
    stream = container.streams.best("audio")
    if stream is None:
        raise InputError(f"{name}: has no audio track; choose a file with sound.")
    if stream.codec_context is None:
        raise InputError(f"{name}: its audio codec is not supported; convert the file, for example to WAV.")
    return stream


def _placed(frames: Iterable[Any], stream: Any, film: Fraction) -> Iterator[Any]:
    """The same blocks of a film's sound. The first ones, if the file does not tell their times, end where the next one
    begins. Instead of the times that Matroska does not tell, FFmpeg counts those of Vorbis from 0 on, and then they go
    back."""
    counted = film < 0 and is_matroska(stream.container)
    begun, early, samples, last = [], 0, 0, None
    frames = iter(frames)
    for frame in frames:
        time = told_time(frame, stream)
        if time is None or (last is not None and time < last):
            early = len(begun) + (time is None)
        begun.append(frame)
        samples, last = samples + frame.samples, time
        if samples > EARLIEST * frame.sample_rate or (time is not None and not counted):
            break
    if 0 < early < len(begun):
        end = told_time(begun[early], stream) * Fraction(begun[early].time_base)
        for block in reversed(begun[:early]):
            end -= Fraction(block.samples, block.sample_rate)
            block.pts = round(end / Fraction(block.time_base))
    yield from begun
    yield from frames


def _lateness(frame: Any, film: Fraction | None) -> int:
    """The samples between the film's start and a block of its sound; below 0 if the sound begins before the picture,
    and 0 if there is no film."""
    if film is None or frame.pts is None or frame.time_base is None:
        return 0
    return round((frame.pts * Fraction(frame.time_base) - film) * frame.sample_rate)


def _silence(name: str, channels: int, since: int, until: int) -> np.ndarray:
    """Silence between two samples; none if the first is not before the second."""
    _check_room(name, until - since, channels)
    return np.zeros((channels, max(0, until - since)), np.float32)


def _check_room(name: str, samples: int, channels: int) -> None:
    """Raises InputError if so many samples are too many to hold."""
    if samples * channels > MAX_VALUES:
        raise InputError(
            f"{name}: has over {MAX_VALUES // 10**6} million samples; cut it, or convert it to 48000 Hz stereo."
        )


def _check_samples(name: str, waveform: np.ndarray, rate: int, start: Fraction) -> None:
    """Raises InputError with the time of the first sample that is no usable number."""
    damaged = ~(np.abs(waveform) <= LOUDEST).all(axis=0)  # the comparison is False for NaN
    if damaged.any():
        at = float(start) + int(damaged.argmax()) / rate
        raise InputError(
            f"{name}: has samples that are not usable numbers (NaN, infinite or beyond {LOUDEST:g} times full scale), "
            f"the first at {at:.3f} s; export it again as 16- or 24-bit."
        )


# Lengths


def frames_for_audio(track: Track, fps: Fraction) -> int:
    """The smallest number 8k+1 ≥ 9 of frames that covers the track but for half a frame. It has no upper limit."""
    needed = math.ceil(track.seconds * Fraction(fps) - Fraction(1, 2))
    return max(math.ceil(Fraction(needed - 1, TIME_SCALE)), 1) * TIME_SCALE + 1


def samples_in(frames: int, fps: Fraction, rate: int) -> int:
    """Samples at `rate` Hz that last as long as `frames` of video."""
    return round(Fraction(frames) / Fraction(fps) * rate)


def soundtrack(track: Track, frames: int, fps: Fraction) -> Track:
    """The track of the finished file: the first round(frames / fps · rate) samples, unchanged and without padding."""
    return Track(track.waveform[:, : samples_in(frames, fps, track.rate)], track.rate, track.speakers)


def conditioning_track(track: Track, frames: int, fps: Fraction) -> Track:
    """The track that the model hears: round(frames / fps · rate) samples in stereo, with silence after the track."""
    samples = samples_in(frames, fps, track.rate)
    waveform = track.waveform[:, :samples].float()
    waveform = torch.nn.functional.pad(waveform, (0, samples - waveform.shape[1]))
    return Track(to_stereo(waveform, track.speakers), track.rate)


def seconds_beyond(track: Track, frames: int, fps: Fraction) -> Fraction:
    """How many seconds of a track are not used, because the video ends before; 0 if it is less than MARGIN."""
    beyond = track.seconds - frames / fps
    return beyond if beyond >= MARGIN else Fraction(0)


def part_from(track: Track, frame: int, fps: Fraction) -> Track:
    """The track from a frame of the video on; one sample of silence if it ended before."""
    rest = track.waveform[:, samples_in(frame, fps, track.rate) :]
    return Track(rest if rest.shape[1] else torch.zeros_like(track.waveform[:, :1]), track.rate, track.speakers)


def reference_part(track: Track, frame: int, frames: int, fps: Fraction) -> Track:
    """The part of a reference's sound beside a window of so many frames that begins at `frame`. It is as long as the
    window, or the whole of a shorter sound: where the sound ends before the window does, it is its last part."""
    length = samples_in(frames, fps, track.rate)
    begin = min(samples_in(frame, fps, track.rate), max(0, track.waveform.shape[1] - length))
    return Track(track.waveform[:, begin : begin + length], track.rate, track.speakers)


def to_stereo(waveform: Tensor, speakers: tuple[str, ...] = ()) -> Tensor:
    """[C, n] → [2, n]. One channel is copied, two stay as they are, and more are mixed down."""
    channels = waveform.shape[0]
    if channels == 1:
        return repeat(waveform, "1 n -> c n", c=2)
    if channels == 2:
        return waveform
    try:
        speakers = speakers or tuple(channel.name for channel in av.AudioLayout(f"{channels}c").channels)
    except ValueError:  # FFmpeg knows no layout with this number of channels
        return repeat(waveform.mean(dim=0), "n -> c n", c=2)
    shares = waveform.new_tensor([DOWNMIX.get(speaker, (0.5, 0.5)) for speaker in speakers])
    return shares.T @ waveform
