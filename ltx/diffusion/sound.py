"""Encodes sound to latents (waveform → log-mel → latents) and decodes latents to sound.

The order is the model's: first stereo, then 16 kHz, then log-mel, then the VAE. audio.py cuts the sound to length, and
preprocess.py levels it.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..grid import AUDIO_RATE, MEL_FFT, MEL_HOP, MEL_RATE, audio_length
from ..latents import patchify_audio, unpatchify_audio
from ..media.audio import Track, conditioning_track, samples_in, to_stereo
from ..weights.finite import check_decoded

BINS = 64
FLOOR = 1e-5
OFFICIAL_BITS = -12192374901
"""Sum of the float32 bits of the transform of a probe, on the kind of machine that made the golden tensors."""
ZERO_CROSSINGS, ROLLOFF = 6, 0.99  # torchaudio's defaults for the windowed sinc
KERNEL = 1 << 22  # values of a filter for all output phases, up to which torchaudio's own convolution is used
RESAMPLE_BLOCK = 1 << 16  # output samples that are filtered at a time, which bounds the memory


def log_mel(track: Track) -> Tensor:
    """Log-mel spectrogram of magnitudes at 16 kHz, in 64 Slaney bands from 0 to 8 kHz: float32 [1, 2, T, 64], with 100
    frames per second. Raises InputError if the track is too short."""
    waveform = resample(to_stereo(track.waveform.float(), track.speakers), track.rate, MEL_RATE)
    if waveform.shape[1] <= MEL_FFT // 2:
        raise InputError(f"audio: {float(track.seconds):.3f} s is too short; it needs {MEL_FFT // 2 / MEL_RATE:g} s.")
    # The logarithm of a quiet band magnifies rounding. The official code's transform is float32; where that rounds
    # otherwise than on the model makers' machines, float64 is nearer to their numbers.
    dtype = torch.float32 if rounds_as_official() else torch.float64
    bands = mel_bands().to(waveform.device, dtype)
    mel = torch.einsum("cft,fm->ctm", _spectrum(waveform.to(dtype)).abs(), bands)
    return mel.clamp(min=FLOOR).log().float()[None]


def _spectrum(waveform: Tensor) -> Tensor:
    """[C, n] → complex [C, MEL_FFT/2 + 1, T]. The window is rounded to float32, as the model has seen it."""
    window = torch.hann_window(MEL_FFT).to(waveform)
    return torch.stft(waveform, MEL_FFT, MEL_HOP, window=window, center=True, pad_mode="reflect", return_complex=True)


@cache
def rounds_as_official() -> bool:
    """Whether float32 transforms on this machine round to the bit as those of the golden tensors: MKL's on an Intel
    processor with AVX-512."""
    place = torch.arange(4096)
    probe = ((place * place * 7919 + place * 31) % 2048 - 1024).float() / 1024
    bits = torch.view_as_real(_spectrum(probe[None])).contiguous().view(torch.int32)
    return bits.long().sum().item() == OFFICIAL_BITS


def resample(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """Sinc interpolation under a Hann window, [C, n] → [C, ceil(n · new_rate / rate)].

    The formula is that of torchaudio.functional.resample with its defaults, with one polyphase filter per output phase
    (Smith, Digital Audio Resampling). Rates with a common factor are computed in its order, because the result depends
    on the rounding. For others only the taps inside the window are computed, so that they cost no more.
    """
    if rate == new_rate:
        return waveform
    step, phases = rate // math.gcd(rate, new_rate), new_rate // math.gcd(rate, new_rate)
    cutoff = min(step, phases) * ROLLOFF
    width = math.ceil(ZERO_CROSSINGS * step / cutoff)
    length = math.ceil(Fraction(waveform.shape[1] * phases, step))

    def filters(phase: Tensor, tap: Tensor) -> Tensor:
        # All of this is float32, as in torchaudio. Its rounding changes the result by up to 8e-6, and the model has
        # seen it.
        time = ((-phase / phases + tap / step) * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
        window = torch.cos(time * math.pi / ZERO_CROSSINGS / 2) ** 2
        time = time * math.pi
        return torch.where(time == 0, 1.0, time.sin() / time) * (window * (cutoff / step))

    if phases * (2 * width + step) <= KERNEL:
        kernel = filters(torch.arange(phases)[:, None], torch.arange(-width, width + step)).to(waveform.device)
        padded = torch.nn.functional.pad(waveform, (width, width + step))
        outputs = torch.nn.functional.conv1d(padded[:, None], kernel[:, None], stride=step)
        return outputs.transpose(1, 2).flatten(1)[:, :length]
    # Output i lies at input time i·step/phases: the taps start `width` before that time's whole part.
    phase = torch.arange(min(phases, length), dtype=torch.int64)[:, None]
    tap = torch.arange(-width, width + 2, dtype=torch.int64)
    kernel = filters(phase, phase * step // phases + tap).to(waveform.device)
    windows = torch.nn.functional.pad(waveform, (width, width + 2)).unfold(1, tap.numel(), 1)
    blocks = []
    for begin in range(0, length, RESAMPLE_BLOCK):
        index = torch.arange(begin, min(begin + RESAMPLE_BLOCK, length), device=waveform.device)
        taken = windows[:, index * step // phases]
        blocks.append(torch.einsum("cnk,nk->cn", taken, kernel[index % phases]))
    return torch.cat(blocks, dim=1)


def mel_bands() -> Tensor:
    """Slaney's triangular bands (Auditory Toolbox, 1998), each with unit area: float32 [MEL_FFT/2 + 1, BINS]."""
    # The scale is linear below 1 kHz (15 mel); above, each factor of 6.4 adds 27 mel.
    top = 15 + 27 * math.log(MEL_RATE / 2 / 1000) / math.log(6.4)
    mel = torch.linspace(0, top, BINS + 2, dtype=torch.float64)
    edges = torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))
    frequency = torch.linspace(0, MEL_RATE / 2, MEL_FFT // 2 + 1, dtype=torch.float64)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequency - low) / (centre - low), (high - frequency) / (high - centre)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)).float()


def encode_audio(vae: Any, track: Track, frames: int, fps: Fraction) -> Tensor:
    """Encodes the sound beside `frames` of video → normalised latent, float32 [1, 8, T, 16], T =
    grid.audio_length."""
    return beside(encode_mel(vae, log_mel(conditioning_track(track, frames, fps))), frames, fps)


def encode_reference(vae: Any, track: Track) -> Tensor:
    """Encodes a sound of any length that the model hears as an example → normalised latent, float32 [1, 8, T, 16].
    Raises InputError if it is too short."""
    return encode_mel(vae, log_mel(track))


def beside(latent: Tensor, frames: int, fps: Fraction) -> Tensor:
    """Cuts the encoder's whole output [1, 8, about T, 16] to what lies beside `frames` of video, [1, 8, T, 16]."""
    length = audio_length(frames, fps)
    if latent.shape[2] < length:  # this encoder rounds up, so only another encoder can give too few
        raise RuntimeError(
            f"audio VAE gave {latent.shape[2]} latents for {frames} frames, not {length} ({AUDIO_RATE} Hz)."
        )
    return latent[:, :, :length]


def encode_mel(vae: Any, mel: Tensor) -> Tensor:
    """Log-mel [1, 2, T, 64] → normalised latent, float32 [1, 8, about T / 4, 16], the encoder's whole output."""
    latent = vae.encode(mel.to(vae.device, vae.dtype)).latent_dist.mode().float()
    tokens = patchify_audio(latent)  # the statistics are per channel and mel bin
    return unpatchify_audio((tokens - vae.latents_mean.to(tokens)) / vae.latents_std.to(tokens))


def decode_audio(vae: Any, vocoder: Any, latent: Tensor, frames: int, fps: Fraction) -> Track:
    """Normalised latent [1, 8, T, 16] → the sound beside `frames` of video, in stereo at the vocoder's 48 kHz.

    The latents hold 4T - 3 mel frames of 10 ms, so the sound ends 10 to 50 ms before the picture. Raises InputError if
    a sample is NaN or infinite.
    """
    tokens = patchify_audio(latent.to(vae.device, torch.float32))
    raw = unpatchify_audio(tokens * vae.latents_std.to(tokens) + vae.latents_mean.to(tokens))
    mel = vae.decode(raw.to(vae.dtype)).sample
    waveform = vocoder(mel.to(vocoder.device, vocoder.dtype))[0].float().cpu()
    check_decoded(waveform, "the audio VAE or the vocoder")
    rate = vocoder.config.output_sampling_rate
    return Track(waveform[:, : samples_in(frames, fps, rate)], rate)
