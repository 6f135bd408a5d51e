"""Reads the audio track of any file, and cuts the waveform for the finished file and the one that the model hears.

Both are cut at the source's own rate, by exact fractions. The track in the finished file consists of the source's
samples, unchanged. video.py writes sound, preprocess.py levels it, and sound.py encodes it to latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from ..errors import InputError
from ..grid import TIME_SCALE
from .container import (
    MISSING,
    film_start,
    frames_of_packets,
    is_matroska,
    is_raw,
    open_media,
    packets_of,
    promised_length,
    sound_stream,
    told_time,
)
from .promised import ends_early, missing_sound

MAX_SECONDS = 600  # the longest video, 481 frames at 1 fps, needs less
MARGIN = Fraction(1, 10)  # seconds by which a track of the same length may be longer: its codec adds some
GAP = Fraction(1, 10)  # seconds; where so much of a sound is missing, silence stands for it
EARLIEST = 33  # seconds of sound before time 0 in a Matroska file: a block is at most 2**15 ms before its cluster
JUMP = 10  # seconds; more is no part that a sound has lost but a jump of its clock, as FFmpeg's own limit has it
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
    # Of ambisonic sound, from two microphones that look to the left and to the right: all around, and left less right.
    "AMBI0": (0.5, 0.5), "AMBI1": (0.5, -0.5),
}  # fmt: skip


@dataclass(frozen=True)
class Track:
    """Sound as it was recorded. waveform: float32 [channels, samples], full scale ±1; rate: Hz.

    speakers: FFmpeg's names of the channels ("FL", "FR", "FC", …). If it is empty, the usual order for that number of
    channels is assumed. notes: for the report, on what is damaged or missing in its file. Raises InputError if the
    shape or the rate cannot be used, or there is not one speaker for each channel.
    """

    waveform: Tensor
    rate: int
    speakers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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

    In a film the times count from the film's start: where its sound begins later, there is silence before it. Where
    more than GAP of a sound is missing by its times, silence stands for that; a sound beside no picture goes on at once
    if it is more than JUMP. Decoding always starts at the beginning, because seeking is inexact in several formats. It
    ends after `duration`, at most `most`, by default MAX_SECONDS. spare: whether it ends after MAX_SECONDS already if
    more would not fit into memory. cut: whether sound before the film's first picture is left out, because it must fit
    the pictures, and one sample of silence stands for a sound that has nothing else; otherwise it is read from its own
    start. Damaged packets are skipped. The track's notes tell what is damaged or missing. Raises InputError, which
    names the file, if it has no usable sound.
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
    with open_media(path, "WAV") as container, path.open("rb") as file:
        return _decode(container, file, name, film, Fraction(start), length, spare, cut)


class _Course:
    """Finds where the blocks of a sound lie, and what is damaged or missing between them. film: when the film's first
    picture is shown, None if there is no film; cut: as in `load_track`."""

    def __init__(self, stream: Any, film: Fraction | None, cut: bool) -> None:
        self.stream, self.film, self.cut, self.alone = stream, film, cut, film is None
        self.begun = self.ended = 0  # the film's start among the samples; where the block before ends in the film
        self.damaged = self.doubtful = self.decoded = False
        self.silent = self.since = 0  # samples for which silence stands, and where the first of them are
        self.jump: tuple[float, float] | None = None  # by how many seconds the clock jumps, and where first

    def skip(self) -> None:
        """A packet cannot be decoded. Before the first and behind the last one that can, that moves nothing: a
        recording may begin anywhere, and tags may stand at its end."""
        self.doubtful = True

    def first(self, frame: Any) -> int:
        """The place of the first block, in samples. It is below 0 if its begin is cut off."""
        self.ended = _lateness(frame, self.film)
        position = self.ended if self.cut else max(0, self.ended)
        self.begun = position - self.ended
        return position

    def hole(self, frame: Any, position: int) -> int:
        """The samples that are missing between what was read up to that place and a block; 0 if it is near."""
        rate = frame.sample_rate
        self.damaged |= self.doubtful and self.decoded
        self.decoded, self.doubtful = True, False
        time = told_time(frame, self.stream)
        if self.film is None and time is not None and not is_raw(self.stream):
            self.film = time * Fraction(frame.time_base) - Fraction(position, rate)  # where a sound alone begins
        place, before = _lateness(frame, self.film), self.ended
        self.ended = place + frame.samples
        missing = self.begun + place - position
        # A fragmented MP4 has its encoder's delay before the picture, and a short gap behind that.
        delay = self.cut and before <= 0
        if place - before <= BREAK * rate or missing <= (BREAK if delay else GAP) * rate:
            return 0
        if self.alone and missing > JUMP * rate:  # recordings that were joined; what comes after it follows at once
            self.jump = self.jump or (missing / rate, position / rate)
            self.film, self.ended = self.film + Fraction(missing, rate), self.ended - missing
            return 0
        if not delay:
            self.since = self.since if self.silent else position
            self.silent += missing
        return missing

    def notes(self, name: str, rate: int, samples: int | None, file: BinaryIO) -> tuple[str, ...]:
        """What the report says. samples: how many there were up to the file's end; None if that was not read."""
        missing, early = Fraction(0), False
        if samples is not None and self.alone:
            missing = max(missing_sound(file), promised_length(self.stream, rate, file) - Fraction(samples, rate))
            early = ends_early(file)
        if self.silent:
            silent, since = self.silent / rate, self.since / rate
            note = f"{silent:.1f} s of its sound are missing from {since:.1f} s on, and silence stands for them"
        elif self.jump:
            note = "its times jump by {:.1f} s at {:.1f} s, and what comes after that follows at once".format(
                *self.jump
            )
        elif self.damaged:
            note = "damaged parts of its sound were left out, and what comes after them is early: export it again"
        elif missing > MISSING:
            note = f"its sound is cut short or damaged: {float(missing):.1f} s of it are missing"
        elif early:
            note = "its sound is cut short or damaged: its end is not read"
        else:
            return ()
        return (f"{name}: {note}",)


def _decode(
    container: Any,
    file: BinaryIO,
    name: str,
    film: Fraction | None,
    start: Fraction,
    length: Fraction,
    spare: bool,
    cut: bool,
) -> Track:
    """Decodes the samples [start, start + length), in seconds, of the container's best audio stream. file: the same;
    film: when the film's first picture is shown, None if there is no film."""
    blocks: list[np.ndarray] = []
    kind, speakers, position, first, last, to_float = None, (), 0, 0, 0, None
    stream, whole = _stream(container, name), False
    course = _Course(stream, film, cut)
    decoded = frames_of_packets(_untagged(packets_of(container, stream)), course.skip)
    for frame in decoded if film is None else _placed(decoded, stream, film):
        kind = _same_kind(name, frame, kind)
        if to_float is None:
            speakers = tuple(channel.name for channel in frame.layout.channels)
            first = round(start * frame.sample_rate)
            if spare and length * frame.sample_rate * len(speakers) > MAX_VALUES:
                length = min(length, Fraction(MAX_SECONDS))
            last = first + max(1, round(length * frame.sample_rate))
            position = course.first(frame)
            if position >= last:
                at = position / frame.sample_rate
                raise InputError(f"{name}: its sound begins only at {at:.3f} s; choose a later start or a longer part.")
            blocks.append(_silence(name, len(speakers), first, position))
            # It changes the sample format only. The format is packed, because PyAV reads past the end of eight or more
            # planes and crashes.
            to_float = av.AudioResampler("flt", frame.layout, frame.sample_rate)
        if missing := course.hole(frame, position):
            blocks.append(_silence(name, len(speakers), max(position, first), min(position + missing, last)))
            position += missing
            if position >= last:
                break
        for block in to_float.resample(frame):
            if position + block.samples > first:
                samples = rearrange(block.to_ndarray(), "1 (n c) -> c n", c=len(speakers))
                blocks.append(samples[:, max(0, first - position) : last - position])
            position += block.samples
        _check_room(name, min(position, last) - first, len(speakers))
        if position >= last:
            break
    else:
        whole = True
    if kind is None:
        raise InputError(f"{name}: no sound could be decoded; the file is damaged or empty: export it again.")
    waveform = np.concatenate(blocks, axis=1)
    if cut and not waveform.size:  # all of it is before the film's first picture
        waveform = _silence(name, len(speakers), 0, 1)
    if not waveform.size:
        raise InputError(f"start: {float(start):g} s is after the end of {name} at {position / kind[0]:.3f} s.")
    _check_samples(name, waveform, kind[0], start)
    notes = course.notes(name, kind[0], position if whole else None, file)
    return Track(torch.from_numpy(waveform), kind[0], () if "NONE" in speakers else speakers, notes)


def _same_kind(name: str, frame: Any, before: tuple[int, str, str] | None) -> tuple[int, str, str]:
    """Rate, layout and format of a block. Raises InputError if they are not those before, or the rate is not usable."""
    kind = (frame.sample_rate, frame.layout.name, frame.format.name)
    if before is None and not MIN_RATE <= frame.sample_rate <= MAX_RATE:
        raise InputError(f"{name}: {frame.sample_rate} Hz is not a usable sample rate; convert it to 48000 Hz.")
    if before not in (None, kind):
        old, new = ("{} Hz {} {}".format(*each) for each in (before, kind))
        raise InputError(f"{name}: its sound changes from {old} to {new}; convert it to one format.")
    return kind


def _untagged(packets: Iterable[Any]) -> Iterator[Any]:
    """The same packets, without the tags between MP3s that were put behind each other."""
    for packet in packets:
        if not packet.size or packet.stream.codec.canonical_name != "mp3" or bytes(memoryview(packet)[:3]) != b"ID3":
            yield packet


def _stream(container: Any, name: str) -> Any:
    """The best stream of sound. Raises InputError if there is none that can be decoded."""
    stream = sound_stream(container)
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
    return replace(track, waveform=rest if rest.shape[1] else torch.zeros_like(track.waveform[:, :1]))


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
    shares = waveform.new_tensor([_share(speaker) for speaker in speakers])
    return shares.T @ waveform


def _share(speaker: str) -> tuple[float, float]:
    """What of a speaker's sound is heard from the left and from the right. The further channels of ambisonic sound are
    differences, such as above less below."""
    return DOWNMIX.get(speaker, (0.0, 0.0) if speaker.startswith("AMBI") else (0.5, 0.5))
