"""Sound in: any file's audio track → the waveform that is returned, and the latents that condition the video.

The order is the model's: cut or pad at the source's own rate, then stereo, then 16 kHz, then log-mel, then the VAE. The
track that goes into the finished file is the source's samples, untouched. Lengths are exact fractions. This file does
not write sound (video.py) and does not level or limit it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
from ..latents import AUDIO_RATE, TIME_SCALE, audio_length, patchify_audio, unpatchify_audio

MAX_SECONDS = 600  # the longest video is 481 frames at 1 fps; what lies beyond can never be needed
MIN_RATE, MAX_RATE = 1000, 768_000  # Hz: below, nothing can be heard; above, nobody records
MAX_VALUES = 2**28  # samples times channels of one file: 1 GiB, ten minutes of 48 kHz in nine channels
MAX_SAMPLE = 1e6  # full scale is 1; beyond this a float file is damaged, and squares overflow

# Tags may be in any encoding. PyAV before 19 has to be told so; since then it takes them as they are.
TAGS = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}

MEL_RATE = 16_000
FFT, HOP, BINS = 1024, 160, 64
FLOOR = 1e-5
ZERO_CROSSINGS, ROLLOFF = 6, 0.99  # of the windowed sinc: torchaudio's defaults
RESAMPLE_BLOCK = 1 << 16  # output samples filtered at a time: bounds memory for any length

HALF = math.sqrt(0.5)
# ITU-R BS.775: (left, right) share of each speaker; the subwoofer is left out. FFmpeg's float downmix is the same.
DOWNMIX = {
    "FL": (1.0, 0.0), "FR": (0.0, 1.0), "FC": (HALF, HALF), "LFE": (0.0, 0.0), "LFE2": (0.0, 0.0),
    "FLC": (1.0, 0.0), "FRC": (0.0, 1.0), "DL": (1.0, 0.0), "DR": (0.0, 1.0), "BC": (0.5, 0.5),
    "BL": (HALF, 0.0), "BR": (0.0, HALF), "SL": (HALF, 0.0), "SR": (0.0, HALF), "WL": (HALF, 0.0), "WR": (0.0, HALF),
    "TFL": (HALF, 0.0), "TFR": (0.0, HALF), "TBL": (HALF, 0.0), "TBR": (0.0, HALF),
}  # fmt: skip


@dataclass(frozen=True)
class Track:
    """Sound as it was recorded. waveform: float32 [channels, samples], full scale ±1; rate: Hz.

    speakers: FFmpeg's names of the channels ("FL", "FR", "FC", …), empty where nobody knows them: then the usual
    order for that many channels is assumed.
    """

    waveform: Tensor
    rate: int
    speakers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.waveform.ndim != 2 or not self.waveform.numel():
            raise InputError(f"audio: its shape is {tuple(self.waveform.shape)}; [channels, samples] is needed.")
        if not MIN_RATE <= self.rate <= MAX_RATE:
            raise InputError(f"audio: {self.rate} Hz is not a usable sample rate; resample it to 48000 Hz.")

    @property
    def seconds(self) -> Fraction:
        return Fraction(self.waveform.shape[1], self.rate)


# Reading


def load_track(path: str | Path, start: float = 0, duration: float | None = None) -> Track:
    """The audio of any file FFmpeg opens, at its own rate and layout. start, duration: seconds.

    Decoding starts at the beginning even where `start` is late: seeking is inexact in several formats. It ends after
    `duration`, at most MAX_SECONDS. Damaged packets are passed over. Errors: InputError, one sentence with the name.
    """
    path = Path(path)
    name = path.name or str(path)
    if not (math.isfinite(start) and start >= 0):
        raise InputError(f"start: {start} is not a time in seconds from 0 up.")
    if duration is not None and not duration > 0:
        raise InputError(f"duration: {duration} is not a length in seconds above 0.")
    if path.is_dir():
        raise InputError(f"{name}: is a folder; name one audio or video file in it.")
    if not path.is_file():
        raise InputError(f"{name}: no such file; check the name and the folder.")
    if not path.stat().st_size:
        raise InputError(f"{name}: the file is empty; copy or export it again.")
    length = Fraction(MAX_SECONDS if duration is None else min(duration, MAX_SECONDS))
    try:
        # An open file and no protocols: a playlist must not make FFmpeg read other files or the network.
        with (
            path.open("rb") as file,
            av.open(file, options={"protocol_whitelist": "none"}, **TAGS) as container,
        ):
            return _decode(container, name, Fraction(start), length)
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            f"{name}: cannot be read as audio or video ({reason}); it may be cut short or not a media file: "
            "export it again, for example as WAV."
        ) from error


def _decode(container: Any, name: str, start: Fraction, length: Fraction) -> Track:
    """Samples [start, start + length) of the container's best audio stream."""
    stream = container.streams.best("audio")
    if stream is None:
        raise InputError(f"{name}: has no audio track; choose a file with sound.")
    if stream.codec_context is None:
        raise InputError(f"{name}: its audio codec is not supported; convert the file, for example to WAV.")
    blocks: list[np.ndarray] = []
    kind, speakers, position, first, last = None, (), 0, 0, 0
    for frame in _frames(container, stream):
        now = (frame.sample_rate, frame.layout.name, frame.format.name)
        if kind is None:
            kind = now
            if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
                raise InputError(f"{name}: {frame.sample_rate} Hz is not a usable sample rate; convert it to 48000 Hz.")
            speakers = tuple(channel.name for channel in frame.layout.channels)
            first = round(start * frame.sample_rate)
            last = first + max(1, round(length * frame.sample_rate))
            # Format only, neither rate nor layout. Packed: PyAV reads past the end of eight or more planes and crashes.
            to_float = av.AudioResampler("flt", frame.layout, frame.sample_rate)
        if now != kind:
            was, becomes = ("{} Hz {} {}".format(*each) for each in (kind, now))
            raise InputError(f"{name}: changes on the way from {was} to {becomes}; convert it to one format.")
        for block in to_float.resample(frame):
            if position + block.samples > first:
                samples = rearrange(block.to_ndarray(), "1 (n c) -> c n", c=len(speakers))
                blocks.append(samples[:, max(0, first - position) : last - position])
            position += block.samples
        if (min(position, last) - first) * len(speakers) > MAX_VALUES:
            raise InputError(
                f"{name}: holds over {MAX_VALUES // 10**6} million samples; cut it, or convert it to 48000 Hz stereo."
            )
        if position >= last:
            break
    if kind is None:
        raise InputError(f"{name}: no sound could be decoded; the file is damaged or empty: export it again.")
    if not blocks:
        raise InputError(f"start: {float(start):g} s is past the end of {name}, {position / kind[0]:.3f} s.")
    waveform = np.concatenate(blocks, axis=1)
    damaged = ~(np.abs(waveform) < MAX_SAMPLE).all(axis=0)  # the comparison is False for NaN
    if damaged.any():
        at = float(start) + int(damaged.argmax()) / kind[0]
        raise InputError(
            f"{name}: holds samples that are no numbers (NaN, infinite or beyond {MAX_SAMPLE:g}), "
            f"the first at {at:.3f} s; export it again as 16- or 24-bit."
        )
    return Track(torch.from_numpy(waveform), kind[0], () if "NONE" in speakers else speakers)


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames; what cannot be decoded is passed over, a file that breaks off ends there."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = packet.decode()
        except av.FFmpegError:
            continue  # after an error in demux the iterator is at its end
        except IndexError:  # PyAV: a packet of a stream that was not there when the file was opened
            packets = container.demux(stream)
            continue
        yield from frames


# Lengths


def frames_for_audio(track: Track, fps: Fraction) -> int:
    """Smallest 8k+1 ≥ 9 that leaves no more than half a frame of the track without a picture; no upper limit here."""
    needed = math.ceil(track.seconds * Fraction(fps) - Fraction(1, 2))
    return max(math.ceil(Fraction(needed - 1, TIME_SCALE)), 1) * TIME_SCALE + 1


def _samples(frames: int, fps: Fraction, rate: int) -> int:
    return round(Fraction(frames) / Fraction(fps) * rate)


def soundtrack(track: Track, frames: int, fps: Fraction) -> Track:
    """What the finished file plays: the first round(frames / fps · rate) samples, untouched and never padded."""
    return Track(track.waveform[:, : _samples(frames, fps, track.rate)], track.rate, track.speakers)


def conditioning_track(track: Track, frames: int, fps: Fraction) -> Track:
    """What the model hears: stereo of exactly round(frames / fps · rate) samples, silence after the track's end."""
    samples = _samples(frames, fps, track.rate)
    waveform = track.waveform[:, :samples].float()
    waveform = torch.nn.functional.pad(waveform, (0, samples - waveform.shape[1]))
    return Track(_stereo(waveform, track.speakers), track.rate)


def _stereo(waveform: Tensor, speakers: tuple[str, ...] = ()) -> Tensor:
    """[C, n] → [2, n]: one channel is doubled, two are kept, more are mixed down."""
    channels = waveform.shape[0]
    if channels == 1:
        return repeat(waveform, "1 n -> c n", c=2)
    if channels == 2:
        return waveform
    try:
        speakers = speakers or tuple(channel.name for channel in av.AudioLayout(f"{channels}c").channels)
    except ValueError:  # no usual order for so many
        return repeat(waveform.mean(dim=0), "n -> c n", c=2)
    shares = waveform.new_tensor([DOWNMIX.get(speaker, (0.5, 0.5)) for speaker in speakers])
    return shares.T @ waveform


# Log-mel and latents


def log_mel(track: Track) -> Tensor:
    """16 kHz log-mel spectrogram, magnitude, 64 Slaney bands from 0 to 8 kHz: float32 [1, 2, T, 64], 100 T a second."""
    waveform = resample(_stereo(track.waveform.float(), track.speakers), track.rate, MEL_RATE)
    if waveform.shape[1] <= FFT // 2:
        raise InputError(f"audio: {float(track.seconds):.3f} s is too short; it needs {FFT // 2 / MEL_RATE:g} s.")
    window = torch.hann_window(FFT, device=waveform.device)
    spectrum = torch.stft(waveform, FFT, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
    mel = torch.einsum("cft,fm->ctm", spectrum.abs(), mel_bands().to(waveform.device))
    return mel.clamp(min=FLOOR).log()[None]


def resample(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """Sinc interpolation under a Hann window, [C, n] → [C, ceil(n · new_rate / rate)].

    The formula of torchaudio.functional.resample at its defaults, one polyphase filter per output phase (Smith, Digital
    Audio Resampling). Only the taps inside the window are built, so rates without a common factor cost no more.
    """
    if rate == new_rate:
        return waveform
    step, phases = rate // math.gcd(rate, new_rate), new_rate // math.gcd(rate, new_rate)
    cutoff = min(step, phases) * ROLLOFF
    width = math.ceil(ZERO_CROSSINGS * step / cutoff)
    length = math.ceil(Fraction(waveform.shape[1] * phases, step))

    # Output i lies at input time i·step/phases: the taps start `width` before that time's whole part.
    phase = torch.arange(min(phases, length), dtype=torch.int64)[:, None]
    tap = torch.arange(-width, width + 2, dtype=torch.int64)
    # In float32 throughout, for torchaudio is: its rounding moves the result by up to 8e-6 and is part of the input.
    time = (-phase / phases + (phase * step // phases + tap) / step) * cutoff
    time = time.clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = torch.cos(time * math.pi / ZERO_CROSSINGS / 2) ** 2
    time = time * math.pi
    kernel = torch.where(time == 0, 1.0, time.sin() / time) * (window * (cutoff / step))
    kernel = kernel.to(waveform.device)

    windows = torch.nn.functional.pad(waveform, (width, width + 2)).unfold(1, tap.numel(), 1)
    blocks = []
    for begin in range(0, length, RESAMPLE_BLOCK):
        index = torch.arange(begin, min(begin + RESAMPLE_BLOCK, length), device=waveform.device)
        taken = windows[:, index * step // phases]
        blocks.append(torch.einsum("cnk,nk->cn", taken, kernel[index % phases]))
    return torch.cat(blocks, dim=1)


def mel_bands() -> Tensor:
    """Slaney's triangular bands (Auditory Toolbox, 1998), each of unit area: float32 [FFT/2 + 1, BINS]."""
    # Linear below 1 kHz (15 mel), then 27 mel for every factor of 6.4.
    top = 15 + 27 * math.log(MEL_RATE / 2 / 1000) / math.log(6.4)
    mel = torch.linspace(0, top, BINS + 2, dtype=torch.float64)
    edges = torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))
    frequency = torch.linspace(0, MEL_RATE / 2, FFT // 2 + 1, dtype=torch.float64)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequency - low) / (centre - low), (high - frequency) / (high - centre)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)).float()


def encode_audio(vae: Any, track: Track, frames: int, fps: Fraction) -> Tensor:
    """Normalised latent of the sound beside `frames` of video: float32 [1, 8, T, 16], T = latents.audio_length."""
    latent = encode_mel(vae, log_mel(conditioning_track(track, frames, fps)))
    length = audio_length(frames, fps)
    if latent.shape[2] < length:  # the encoder rounds up, so only another encoder can do this
        raise RuntimeError(
            f"audio VAE gave {latent.shape[2]} latents for {frames} frames, not {length} ({AUDIO_RATE} Hz)."
        )
    return latent[:, :, :length]


def encode_mel(vae: Any, mel: Tensor) -> Tensor:
    """Log-mel [1, 2, T, 64] → normalised latent, float32 [1, 8, about T / 4, 16], all that the encoder gives."""
    latent = vae.encode(mel.to(vae.device, vae.dtype)).latent_dist.mode().float()
    tokens = patchify_audio(latent)  # the statistics are per channel and mel bin
    return unpatchify_audio((tokens - vae.latents_mean.to(tokens)) / vae.latents_std.to(tokens))


def decode_audio(vae: Any, vocoder: Any, latent: Tensor, frames: int, fps: Fraction) -> Track:
    """Normalised latent [1, 8, T, 16] → the sound beside `frames` of video, stereo at the vocoder's 48 kHz.

    It ends with the last mel frame that the latents hold (10 ms each, 4T - 3 of them), 10 to 50 ms before the picture.
    """
    tokens = patchify_audio(latent.to(vae.device, torch.float32))
    raw = unpatchify_audio(tokens * vae.latents_std.to(tokens) + vae.latents_mean.to(tokens))
    mel = vae.decode(raw.to(vae.dtype)).sample
    waveform = vocoder(mel.to(vocoder.device, vocoder.dtype))[0].float().cpu()
    rate = vocoder.config.output_sampling_rate
    return Track(waveform[:, : _samples(frames, fps, rate)], rate)
