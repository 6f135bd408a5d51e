"""Sounds that tests make."""

from __future__ import annotations

import numpy as np
import torch
from a2v.ltx.media.audio import Track


def voice(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """A gliding tone with a little noise, another in each channel: float64 [channels, samples]."""
    time = np.arange(round(seconds * rate)) / rate
    rows = [0.3 * np.sin(2 * np.pi * (200 + 90 * c + 150 * time) * time) for c in range(channels)]
    return np.stack(rows) + 0.01 * np.random.default_rng(0).standard_normal((channels, time.size))


def track(seconds: float, rate: int, channels: int = 1) -> Track:
    return Track(torch.from_numpy(voice(seconds, rate, channels)).float(), rate)
