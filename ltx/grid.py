"""The latent grid: how many latents a clip has.

A video latent has a frame for the first frame of a clip and one for each 8 frames after it, and a place for 32 × 32
pixels. An audio latent lasts a 25th of a second. Nothing here needs torch, so a request is checked without it.
"""

from __future__ import annotations

from fractions import Fraction

from .errors import InputError

TIME_SCALE = 8
SPACE_SCALE = 32
CHANNELS = 128
AUDIO_RATE = 25
AUDIO_CHANNELS = 8
AUDIO_BINS = 16
# One audio latent covers four mel frames of 10 ms; the first latent covers only one, because the encoder is causal.
MEL_FRAMES_PER_LATENT = 4
MEL_FFT, MEL_HOP, MEL_RATE = 1024, 160, 16000
SHORTEST_SOUND = Fraction(MEL_FFT // 2, MEL_RATE)  # seconds; of no shorter sound there is a spectrogram


def video_shape(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Frames and pixels → latent grid (F, H, W). Raises InputError if the frames are not 8k+1 or a side is not a
    multiple of 32."""
    if frames < 1 or (frames - 1) % TIME_SCALE:
        raise InputError(f"num_frames: {frames} is not one more than a multiple of {TIME_SCALE}.")
    for name, side in (("height", height), ("width", width)):
        if side < SPACE_SCALE or side % SPACE_SCALE:
            raise InputError(f"{name}: {side} is not a multiple of {SPACE_SCALE}.")
    return (frames - 1) // TIME_SCALE + 1, height // SPACE_SCALE, width // SPACE_SCALE


def frames_of(latents: int, rate: int = TIME_SCALE) -> int:
    """Number of frames of the first `latents` latent frames of a clip: one for the first and `rate` for each other."""
    return max(0, (latents - 1) * rate + 1)


def audio_length(frames: int, fps: Fraction) -> int:
    """Number of audio latents beside `frames` of video."""
    return round(float(frames / fps) * AUDIO_RATE)
