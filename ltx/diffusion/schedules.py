"""Noise schedules: the sigmas of a stage, from 1 down to 0.

Each schedule is a pure function of the number of steps and returns float32 on the CPU, at most `steps + 1` values that
fall to 0. The arithmetic has the precision of the official schedulers (float32 for `ltx2` and `beta`, float64 for
`linear_quadratic`), so that the values agree exactly. samplers.py uses them.

Sources: the LTX-2 schedulers; for `beta`, Lee et al. 2024, https://arxiv.org/abs/2407.12173. `beta` needs scipy, which
ComfyUI and diffusers require.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError

LTX2_SHIFT = 2.05  # the value for 4096 tokens, which audio-to-video uses at every size
LTX2_LAST = 0.1  # the last sigma above 0
BETA_SHIFT = 2.37
BETA_PARAMETER = 0.6  # alpha and beta have this value
BETA_TIMESTEPS = 10_000
TOLERANCE = 1e-4  # by which rounding may lift a first sigma above 1
SHOWN = 8  # values of a schedule that a message lists
LINEAR_NOISE = 0.025  # the noise that the linear half of `linear_quadratic` removes

REFINE = (0.909375, 0.725, 0.421875, 0.0)
"""The sigmas of the second stage, whatever the first stage's schedule is."""

DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, *REFINE)
"""The sigmas of the first stage in the distilled recipe: eight steps."""


def ltx2(steps: int) -> Tensor:
    """Sigmas uniform in time, then shifted, then stretched until the last one above 0 is 0.1: [steps + 1]."""
    if _check(steps) == 1:
        return torch.tensor([1.0, 0.0])
    sigmas = _shifted(torch.linspace(1, 0, steps + 1)[:-1], LTX2_SHIFT)
    removed = 1 - sigmas
    stretched = 1 - removed / (removed[-1] / (1 - LTX2_LAST))
    return torch.cat([stretched, torch.zeros(1)])


def linear_quadratic(steps: int) -> Tensor:
    """Half of the steps fall linearly to 0.975, the others quadratically to 0: [steps + 1]."""
    if _check(steps) == 1:
        return torch.tensor([1.0, 0.0])
    linear = steps // 2
    quadratic = steps - linear
    rest = linear - LINEAR_NOISE * steps
    a = rest / (linear * quadratic**2)
    b = LINEAR_NOISE / linear - 2 * rest / quadratic**2
    c = a * linear**2
    removed = [i * LINEAR_NOISE / linear for i in range(linear)]
    removed += [a * i**2 + b * i + c for i in range(linear, steps)]
    return torch.tensor([1 - y for y in removed] + [0.0])


def beta(steps: int) -> Tensor:
    """Timesteps at the quantiles of Beta(0.6, 0.6): [steps + 1], or fewer if two of them round to the same timestep."""
    from scipy.special import betaincinv  # imported here, because importing scipy is slow

    _check(steps)
    quantiles = betaincinv(BETA_PARAMETER, BETA_PARAMETER, [1 - i / steps for i in range(steps)])
    indices = dict.fromkeys(round(float(q) * (BETA_TIMESTEPS - 1)) for q in quantiles)
    times = (torch.tensor(list(indices)) + 1) / BETA_TIMESTEPS
    return torch.cat([_shifted(times, BETA_SHIFT), torch.zeros(1)])


SCHEDULES: dict[str, Callable[[int], Tensor]] = {"ltx2": ltx2, "linear_quadratic": linear_quadratic, "beta": beta}
"""The endpoint's schedulers, in its order."""


def _shifted(times: Tensor, shift: float) -> Tensor:
    """Flux time shift: times in (0, 1] to sigmas."""
    return math.exp(shift) / (math.exp(shift) + (1 / times - 1))


def _check(steps: int) -> int:
    if steps < 1:
        raise InputError(f"num_inference_steps is {steps}: give at least 1.")
    return steps


def checked(sigmas: Tensor) -> Tensor:
    """The schedule [steps + 1] as float32 on the CPU. Raises InputError if it has no step, an impossible value, a value
    above 1 or one that rises."""
    sigmas = torch.as_tensor(sigmas, dtype=torch.float32, device="cpu")  # CPU scalars need no synchronisation
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise InputError("sigmas has no step: give a schedule of at least two values.")
    shown = f"[{', '.join(f'{sigma:.4g}' for sigma in sigmas[:SHOWN].tolist())}{', …' if len(sigmas) > SHOWN else ''}]"
    if not (sigmas.isfinite().all() and (sigmas[:-1] > 0).all() and sigmas[-1] >= 0):
        raise InputError(f"sigmas is {shown}: every value but the last must be above 0.")
    if sigmas.max() > 1 + TOLERANCE:
        raise InputError(f"sigmas is {shown}: this model's noise is at most 1; use a schedule made for LTX.")
    if (sigmas.diff() > 0).any():
        raise InputError(f"sigmas is {shown}: the values rise; each must be lower than the one before.")
    return sigmas.clamp(max=1)
