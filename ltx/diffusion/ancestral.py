"""Ancestral Euler: each step goes further down than the schedule says, and fresh noise brings it back up. LTX-2.5's
distilled model is sampled so in the first stage."""

from __future__ import annotations

from torch import Tensor

from .samplers import UNWATCHED, Blend, Denoiser, Hooks, unmasked
from .schedules import checked
from .tokens import FreshNoise, Tokens


def euler_ancestral(
    denoise: Denoiser,
    x: Tokens,
    sigmas: Tensor,
    seed: int,
    hooks: Hooks = UNWATCHED,
    *,
    blend: Blend = unmasked,
) -> Tokens:
    """Ancestral Euler (eta 1) for a rectified flow, whose signal has the weight 1 - σ, down `sigmas` [steps + 1].

    blend: called on the result of each step, because noise is added to every token. Noise is drawn from `seed` for both
    streams before each step but one to 0. Raises InputError for unusable sigmas.
    """
    sigmas, x, fresh = checked(sigmas), x.float(), FreshNoise(seed)
    for step in range(len(sigmas) - 1):
        predicted = denoise(x, sigmas[step], step).float()
        if sigmas[step + 1] == 0:
            out, noise = predicted, None
        else:
            noise = fresh(x)
            keep, signal, renewed = (float(c) for c in coefficients(sigmas[step], sigmas[step + 1]))
            out = signal * (keep * x + (1 - keep) * predicted) + renewed * noise
        out = blend(out)
        hooks.stepped(step, len(sigmas) - 1, predicted, x=x, x0=predicted, out=out, noise=noise)
        x = out
    return x


def coefficients(sigma: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For a step from `sigma` to `after`: the share of x beside x0, the factor of the two, and the factor of the noise,
    float32 scalars as the two are.

    They are computed in float32: near σ = 1 the differences cancel, and the official code's rounding is part of its
    result.
    """
    down = after * (after / sigma)
    signal = (1 - after) / (1 - down)
    return down / sigma, signal, (after**2 - down**2 * (1 - after) ** 2 / (1 - down) ** 2).clamp(min=0).sqrt()
