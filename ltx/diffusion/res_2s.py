"""res_2s: a second-order sampler that renews noise. It makes two predictions per step, as the official HQ pipeline."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from ..computing import WITH_FLOAT64
from ..errors import InputError
from .samplers import UNWATCHED, Blend, Denoiser, Hooks, unmasked
from .schedules import checked
from .tokens import FreshNoise, Tokens

SUBSTEP_SEED = 10_000  # the second generator's seed is the first one's plus this number
SHARE = 0.5  # of the noise that is renewed
LAST = 0.0011  # the sigma that replaces 0 before the last prediction
SMALL_STEP, LOW_SIGMA = 0.5, 0.03  # the anchor moves if the step h is smaller and sigma is higher than these


def res_2s(
    denoise: Denoiser,
    x: Tokens,
    sigmas: Tensor,
    seed: int,
    hooks: Hooks = UNWATCHED,
    *,
    blend: Blend = unmasked,
) -> Tokens:
    """The exponential Runge-Kutta method with c2 = 1/2 (Hochbruck and Ostermann 2005). At the middle and at the end of
    each step, half of the noise is drawn anew.

    blend: called each time noise was added, because noise is added to every token; its argument is float64, as all of
    the method's own arithmetic is. It is on the CPU where the device has no float64. Raises InputError if the sigmas
    cannot be used or do not fall.
    """
    sigmas = falling(checked(sigmas))
    at_end, at_middle = FreshNoise(seed), FreshNoise(seed + SUBSTEP_SEED)
    levels = sigmas.double().tolist()
    total = len(levels) - 1 - (levels[-1] == 0)
    x = x.float()
    device = x.video.device
    wide = device if device.type in WITH_FLOAT64 else torch.device("cpu")
    for step, (sigma, after) in enumerate(pairwise(levels[: total + 1])):
        h = math.log(sigma / after)
        a21, b1, b2 = weights(h)
        anchor = x.to(wide).double()
        first = denoise(x, sigmas[step], step).to(wide).double()
        middle_sigma = (sigma * after) ** 0.5
        middle = blend(_renewed(anchor, anchor + h * a21 * (first - anchor), sigma, middle_sigma, at_middle))
        if h < SMALL_STEP and sigma > LOW_SIGMA:
            # The anchor becomes the start that leads to the noisy middle. The official code approaches it by iteration.
            anchor = (middle - h * a21 * first) / (1 - h * a21)
        second = denoise(middle.float().to(device), torch.tensor(middle_sigma, dtype=torch.float32), step)
        end = anchor + h * b1 * (first - anchor) + h * b2 * (second.to(wide).double() - anchor)
        out = blend(_renewed(anchor, end, sigma, after, at_end)).float().to(device)
        hooks.stepped(step, total, second, x=x, x0=second, out=out)
        x = out
    return denoise(x, sigmas[total], total).float() if levels[-1] == 0 else x


def weights(h: float) -> tuple[float, float, float]:
    """The coefficients a21, b1 and b2 of the method for a step of h = ln(sigma / sigma'), by the phi functions."""
    half = h / 2
    phi1_half = -math.expm1(-half) / half
    phi1 = -math.expm1(-h) / h
    phi2 = (1 - phi1) / h
    return phi1_half / 2, phi1 - 2 * phi2, 2 * phi2


def falling(sigmas: Tensor) -> Tensor:
    """The schedule [steps + 1] with LAST before a 0 at its end, which makes it one longer, because the logarithm needs
    a last step above 0. One more prediction at LAST then ends the run. Raises InputError if the sigmas do not fall."""
    if sigmas[-1] == 0:
        sigmas = torch.cat([sigmas[:-1], torch.tensor([LAST, 0.0])])
    if not (sigmas.diff() < 0).all():
        raise InputError(
            f"sigmas is {sigmas.tolist()}: res_2s needs each value lower than the one before, and the last one above 0 "
            f"higher than {LAST}."
        )
    return sigmas


def _renewed(start: Tokens, end: Tokens, sigma: float, after: float, fresh: FreshNoise) -> Tokens:
    """Returns `end` with SHARE of its noise drawn anew. A step from sigma to `after` has led from `start` to `end`."""
    new = SHARE * after
    old = (after**2 - new**2) ** 0.5
    scale = (1 - after) + old
    noise = fresh(start, torch.float64).map(lambda own: (own - own.mean()) / own.std())
    velocity = (start - end) / (sigma - after)
    return scale * (start - sigma * velocity + old / scale * velocity) + new * noise
