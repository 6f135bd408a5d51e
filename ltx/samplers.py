"""Samplers: walk two streams of tokens, video and audio, down a schedule with a denoiser that predicts x0.

They know neither the transformer nor guidance nor masks: the denoiser returns predictions that are guided and blended
with the clean tokens already. A frozen token (mask 0: x0 = x) has no velocity and stays as it is, to the bit. State and
arithmetic are float32 whatever comes in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError


@dataclass(frozen=True)
class Latents:
    """The two streams: patchified tokens, video [1, Nv, C] and audio [1, Na, C]."""

    video: Tensor
    audio: Tensor

    def float(self) -> Latents:
        return Latents(self.video.float(), self.audio.float())


Denoiser = Callable[[Latents, Tensor, int], Latents]
"""(x, sigma as a float32 scalar on the CPU, step from 0) -> x0, guided and blended with the clean tokens."""

Callback = Callable[[int, int, Latents], None]
"""(steps done, steps in all, the denoiser's x0) after each step; what it raises ends the sampling."""

Trace = Callable[[str, Tensor], None]
"""(name, tensor) as `step{k}/{in,x0,out}_{video,audio}`; x0 is what the step is made with."""


def euler(
    denoise: Denoiser, x: Latents, sigmas: Tensor, on_step: Callback | None = None, trace: Trace | None = None
) -> Latents:
    """First-order steps: x += (x - x0)/s * (s' - s), s from `sigmas` [steps + 1]. Unusable sigmas: InputError."""
    return _sample(denoise, x, sigmas, None, on_step, trace)


def gradient_estimation(
    denoise: Denoiser,
    x: Latents,
    sigmas: Tensor,
    gamma: float,
    on_step: Callback | None = None,
    trace: Trace | None = None,
) -> Latents:
    """Euler with each velocity extrapolated from the last: gamma * (v - v_last) + v_last; a step to 0 takes x0.

    Permenter and Yuan 2024, https://openreview.net/forum?id=o2ND9v0CeK. `gamma` 1 is Euler. Raises as `euler`.
    """
    return _sample(denoise, x, sigmas, gamma, on_step, trace)


def _sample(
    denoise: Denoiser,
    x: Latents,
    sigmas: Tensor,
    gamma: float | None,
    on_step: Callback | None,
    trace: Trace | None,
) -> Latents:
    sigmas = _check(sigmas)
    x = x.float()
    total = len(sigmas) - 1
    last: Latents | None = None  # velocities of the step before
    for step in range(total):
        if trace is not None:
            _report(trace, step, "in", x)
        predicted = denoise(x, sigmas[step], step).float()
        sigma = sigmas[step].item()
        delta = (sigmas[step + 1] - sigmas[step]).item()
        x0 = predicted
        to_zero = gamma is not None and sigmas[step + 1] == 0
        if gamma is not None and not to_zero:
            velocity = _both(lambda a, b, s=sigma: (a - b) / s, x, predicted)
            if last is not None:
                estimate = _both(lambda v, w: gamma * (v - w) + w, velocity, last)
                x0 = _both(lambda a, v, s=sigma: a - v * s, x, estimate)
            last = velocity
        out = x0 if to_zero else _both(lambda a, b, s=sigma, d=delta: a + (a - b) / s * d, x, x0)
        if trace is not None:
            _report(trace, step, "x0", x0)
            _report(trace, step, "out", out)
        x = out
        if on_step is not None:
            on_step(step + 1, total, predicted)
    return x


def _both(function: Callable[[Tensor, Tensor], Tensor], a: Latents, b: Latents) -> Latents:
    return Latents(function(a.video, b.video), function(a.audio, b.audio))


def _report(trace: Trace, step: int, name: str, latents: Latents) -> None:
    trace(f"step{step}/{name}_video", latents.video)
    trace(f"step{step}/{name}_audio", latents.audio)


def _check(sigmas: Tensor) -> Tensor:
    sigmas = torch.as_tensor(sigmas, dtype=torch.float32, device="cpu")  # scalars on the CPU cost no synchronisation
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise InputError("sigmas has no step: give a schedule of at least two values.")
    if not (sigmas.isfinite().all() and (sigmas[:-1] > 0).all() and sigmas[-1] >= 0):
        raise InputError(f"sigmas is {sigmas.tolist()}: every value but the last must be above 0.")
    return sigmas
