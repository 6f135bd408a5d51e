"""AUDIO: the engine's track from the dict that any node gives, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ...ltx.errors import InputError
from ...ltx.media.audio import LOUDEST, MAX_CHANNELS, Track
from ..progress import INTERRUPTS

UNCONNECTED: Any = object()
"""The default of an optional AUDIO: None comes in where one is connected and the file that it is from has no sound."""

# The middle and the range of each type of integer samples. int64 is left out, because its range would be a guess.
INTEGERS = {torch.uint8: (128, 2**7), torch.int8: (0, 2**7), torch.int16: (0, 2**15), torch.int32: (0, 2**31)}


def to_track(audio: Any) -> Track:
    """ComfyUI's AUDIO → the engine's track, float32 on the CPU.

    The waveform can be a tensor or an array [1, channels, samples], [channels, samples] or [samples], of floats with
    full scale 1 or of integers; the rate can be any number or its text. Our own key `speakers` counts only if it fits
    the waveform, because other nodes copy the dict and change the waveform; `notes` are those of the file. Raises
    InputError for everything else.
    """
    if audio is None:
        raise InputError(
            "audio: there is none, so the video that it was to come from has no sound; choose a file with sound."
        )
    if not isinstance(audio, Mapping):
        raise InputError(f"audio: it is {_kind(audio)} instead of ComfyUI's AUDIO; connect a node that gives AUDIO.")
    given = {key: read(audio, key) for key in ("waveform", "sample_rate")}
    missing = [key for key, value in given.items() if value is None]
    if missing:
        raise InputError(f"audio: it has no {' and no '.join(missing)}; connect another node that gives AUDIO.")
    waveform = _samples(given["waveform"])
    speakers = _speakers(read(audio, "speakers"), len(waveform))
    return Track(waveform, _rate(given["sample_rate"]), speakers, _texts(read(audio, "notes")))


def read(audio: Mapping[str, Any], key: str) -> Any:
    """The value under a key of AUDIO; None without it. Another pack's AUDIO can decode its file only now. Raises
    InputError if that fails."""
    try:
        return audio.get(key)
    except INTERRUPTS:  # ComfyUI's interrupt is a plain Exception
        raise
    except Exception as error:  # another pack's code may raise anything
        raise InputError(
            f"audio: {type(audio).__name__} cannot be read ({type(error).__name__}), perhaps because its file has no "
            "sound; choose a file with sound, or connect LTX A2V Load Audio instead."
        ) from error


def from_track(track: Track) -> dict[str, Any]:
    """The engine's track → ComfyUI's AUDIO. Other nodes ignore or drop its additional keys, `speakers` and
    `notes`."""
    waveform = rearrange(track.waveform, "c n -> 1 c n")
    return {"waveform": waveform, "sample_rate": track.rate, "speakers": track.speakers, "notes": track.notes}


def _samples(waveform: Any) -> Tensor:
    """The waveform as float32 [channels, samples]. Raises InputError if it has no one meaning."""
    samples = _tensor(waveform)
    shape = tuple(samples.shape)
    while samples.ndim > 3 and len(samples) == 1:
        samples = samples[0]
    if samples.ndim == 3 and len(samples) > 1:
        raise InputError(
            f"audio: it is a batch of {len(samples)} sounds; one, [1, channels, samples], is needed: choose one."
        )
    if samples.ndim == 3 and len(samples) == 1:
        samples = samples[0]
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2 or not samples.numel():
        raise InputError(f"audio: its shape is {shape}; one track with samples, [1, channels, samples], is needed.")
    if len(samples) > MAX_CHANNELS >= samples.shape[1]:  # samples first, as sound files have them
        samples = samples.T
    if len(samples) > MAX_CHANNELS:
        raise InputError(f"audio: it has {len(samples)} channels; at most {MAX_CHANNELS} are read: mix it down.")
    samples = _full_scale(samples).contiguous()
    low, high = (float(each) for each in samples.aminmax())  # NaN if one sample is NaN
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("audio: it has NaN or infinite samples; check the node that it comes from.")
    if max(-low, high) > LOUDEST:
        raise InputError(
            f"audio: its samples reach {max(-low, high):.0f}, but full scale is 1; divide 16-bit numbers by 32768."
        )
    return samples


def _tensor(waveform: Any) -> Tensor:
    """A tensor or an array as a tensor on the CPU. Raises InputError if it is neither."""
    if isinstance(waveform, np.ndarray):
        if waveform.dtype.kind == "f":
            waveform = waveform.astype(np.float32)
        with suppress(TypeError):  # numbers that torch does not know
            # A copy in this machine's byte order; an array can be read-only or run backwards, and a tensor cannot.
            waveform = torch.from_numpy(np.array(waveform, dtype=waveform.dtype.newbyteorder("="), order="C"))
    if not isinstance(waveform, Tensor) or waveform.is_meta or waveform.layout is not torch.strided:
        raise InputError(f"audio: its waveform is {_kind(waveform)}; a tensor [1, channels, samples] is needed.")
    return waveform.detach().cpu()


def _full_scale(samples: Tensor) -> Tensor:
    """Floats as float32, integers scaled to ±1. Raises InputError for other numbers."""
    if samples.is_floating_point():
        return samples.float()
    if samples.dtype not in INTEGERS:
        raise InputError(f"audio: its samples are {samples.dtype}; floats with full scale 1 are needed.")
    middle, scale = INTEGERS[samples.dtype]
    return (samples.double().sub_(middle).div_(scale)).float()


def _rate(value: Any) -> int:
    """The sample rate in Hz from a number, an array or tensor of one number, or a text. Raises InputError."""
    try:
        if isinstance(value, (np.ndarray, Tensor)):
            value = value.item()
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = float("nan")
    if not math.isfinite(number):
        raise InputError(f"audio: its sample rate is {str(value)[:40]!r}; a number of Hz is needed, for example 48000.")
    return round(number)


def _speakers(names: Any, channels: int) -> tuple[str, ...]:
    if isinstance(names, (tuple, list)) and len(names) == channels and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()


def _texts(notes: Any) -> tuple[str, ...]:
    return tuple(note for note in notes if isinstance(note, str)) if isinstance(notes, (tuple, list)) else ()


def _kind(value: Any) -> str:
    """The type of a value for a message: "a list", "an array"."""
    name = "dict" if isinstance(value, Mapping) else type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
