"""Quiet noise under the sound that the model hears, as a room and a microphone leave it in a recording.

People report that LTX-2 makes a still picture of speech without any background, such as a voice generator's, and that
quiet noise under it makes the lips move. The noise is pink, as the noise of rooms is about, and it is FFmpeg's. Only
the copy that conditions the video gets it; the finished file keeps the source's samples.
"""

from __future__ import annotations

import av
import numpy as np
import torch

from ..errors import InputError
from .audio import Track, to_stereo

QUIETEST, LOUDEST = -90.0, -20.0  # dBFS; 16 bits end at -96, and louder noise covers speech of the usual loudness
USUAL = -50.0  # dBFS, as in a quiet room: about 30 dB below speech that `preprocess` has brought to its level
SEED = 0  # the same noise each time, so that a job with the same settings gives the same video
BLOCK = 4096  # samples


def check_level(name: str, level: float) -> None:
    """Raises InputError, which begins with the name, if noise cannot have this level in dBFS."""
    if not QUIETEST <= level <= LOUDEST:  # NaN is outside, too
        raise InputError(f"{name}: {level:g} dBFS; give a number from {QUIETEST:g} to {LOUDEST:g}.")


def check_kept(name: str, kept: bool) -> None:
    """Raises InputError, which begins with the name, unless the sound is kept as it is."""
    if not kept:
        raise InputError(
            f"{name}: the model would put the noise into the sound that it makes; leave the noise out, or keep the "
            "audio as it is, at strength 1."
        )


def with_room_noise(track: Track, level: float) -> Track:
    """The track with pink noise, which is the same in all channels. Its power is that of `level` in dBFS in the stereo
    mix that the model hears. Raises InputError if noise cannot have this level."""
    check_level("level", level)
    noise = _pink(track.waveform.shape[1], track.rate)
    mixed = float(to_stereo(torch.ones(len(track.waveform), 1), track.speakers).max())  # 2.4 for 5.1, where it adds up
    noise *= 10 ** (level / 20) / (noise.square().mean().sqrt() * (mixed or 1))
    return Track(track.waveform.to("cpu", torch.float32) + noise, track.rate, track.speakers)


def _pink(samples: int, rate: int) -> torch.Tensor:
    """[n] of FFmpeg's pink noise, of any power."""
    graph = av.filter.Graph()
    settings = {"color": "pink", "seed": SEED, "sample_rate": rate, "nb_samples": BLOCK}
    source = graph.add("anoisesrc", **{name: str(value) for name, value in settings.items()})
    graph.link_nodes(source, graph.add("aformat", sample_fmts="flt"), graph.add("abuffersink")).configure()
    made = np.empty(samples, dtype=np.float32)
    for begin in range(0, samples, BLOCK):
        made[begin : begin + BLOCK] = graph.pull().to_ndarray()[0, : samples - begin]
    return torch.from_numpy(made)
