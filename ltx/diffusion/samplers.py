"""Samplers: walk two streams of tokens, video and audio, down a schedule with a denoiser that predicts x0.

They know neither the transformer nor guidance nor masks: the denoiser returns predictions that are guided and blended
with the clean tokens already. A frozen token (mask 0: x0 = x) has no velocity and stays as it is, to the bit. State and
arithmetic are float32 whatever comes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

RESTART_SHARE = 0.2
SUBSTEP_SEED = 10_000  # what the second generator's seed adds to the first one's
RES_SHARE = 0.5
RES_LAST = 0.0011  # the sigma that stands in for 0 before the last prediction


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


@dataclass(frozen=True)
class Restart:
    """Fresh noise on the way down, which lets later steps correct what earlier ones settled wrongly.

    share: of the noise that is left after each step, this part is drawn anew (none after the last step). times:
    restart proper (Xu et al. 2023, arXiv 2306.14878), back from sigma_min to sigma_max and down again, so often. Noise
    comes from a generator of its own, video tokens then audio tokens at each place.
    """

    share: float = RESTART_SHARE
    times: int = 0
    sigma_min: float = 0.3
    sigma_max: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"restart noise is {self.share}: give a number from 0 to 1.")
        if not isinstance(self.times, int) or self.times < 0:
            raise InputError(f"restarts is {self.times}: give a whole number of at least 0.")
        if self.times and not 0 < self.sigma_min < self.sigma_max <= 1:
            raise InputError(
                f"restart goes from sigma {self.sigma_min} back to {self.sigma_max}: "
                "give two numbers between 0 and 1, the first one lower."
            )

    def walk(self, sigmas: Tensor) -> list[tuple[int, bool]]:
        """The steps in the order taken, each with whether a jump back to its sigma comes before it."""
        steps = [(step, False) for step in range(len(sigmas) - 1)]
        if not self.times:
            return steps
        low = int((sigmas >= self.sigma_min).sum()) - 1  # the last sigma not below sigma_min
        high = int((sigmas > self.sigma_max).sum())  # the first one not above sigma_max
        if high >= low:
            raise InputError(
                f"restart: no step of this schedule lies between sigma {self.sigma_min} and {self.sigma_max}; "
                "widen the range or take more steps."
            )
        again = [(step, step == high) for step in range(high, low)]
        return steps[:low] + again * self.times + steps[low:]


def euler(
    denoise: Denoiser,
    x: Latents,
    sigmas: Tensor,
    on_step: Callback | None = None,
    trace: Trace | None = None,
    *,
    restart: Restart | None = None,
    seed: int = 0,
    masks: Latents | None = None,
) -> Latents:
    """First-order steps: x += (x - x0)/s * (s' - s), s from `sigmas` [steps + 1]. Unusable sigmas: InputError.

    restart: fresh noise, from `seed`, to each token by its mask [1, N, 1] in `masks`; without masks each is free.
    """
    return _sample(denoise, x, sigmas, None, on_step, trace, restart, seed, masks)


def gradient_estimation(
    denoise: Denoiser,
    x: Latents,
    sigmas: Tensor,
    gamma: float,
    on_step: Callback | None = None,
    trace: Trace | None = None,
    *,
    restart: Restart | None = None,
    seed: int = 0,
    masks: Latents | None = None,
) -> Latents:
    """Euler with each velocity extrapolated from the last: gamma * (v - v_last) + v_last; a step to 0 takes x0.

    Permenter and Yuan 2024, https://openreview.net/forum?id=o2ND9v0CeK. `gamma` 1 is Euler. The last velocity outlives
    the small noise of a restart, but not its jump. Arguments and errors as in `euler`.
    """
    return _sample(denoise, x, sigmas, gamma, on_step, trace, restart, seed, masks)


def _sample(
    denoise: Denoiser,
    x: Latents,
    sigmas: Tensor,
    gamma: float | None,
    on_step: Callback | None,
    trace: Trace | None,
    restart: Restart | None,
    seed: int,
    masks: Latents | None,
) -> Latents:
    sigmas = checked(sigmas)
    x = x.float()
    steps = restart.walk(sigmas) if restart else [(step, False) for step in range(len(sigmas) - 1)]
    fresh = _Fresh(seed)
    masks = masks or _zip(lambda a, _: torch.ones_like(a[..., :1]), x, x)
    last: Latents | None = None  # velocities of the step before
    for done, (step, jump) in enumerate(steps, 1):
        sigma, after = sigmas[step].item(), sigmas[step + 1].item()
        if jump:
            x, last = _jump(x, masks, sigmas[steps[done - 2][0] + 1].item(), sigma, fresh), None
        if trace is not None:
            _report(trace, done - 1, "in", x)
        predicted = denoise(x, sigmas[step], done - 1).float()
        delta = (sigmas[step + 1] - sigmas[step]).item()
        x0 = predicted
        to_zero = gamma is not None and after == 0
        if gamma is not None and not to_zero:
            velocity = _zip(lambda a, b, s=sigma: (a - b) / s, x, predicted)
            if last is not None:
                estimate = _zip(lambda v, w: gamma * (v - w) + w, velocity, last)
                x0 = _zip(lambda a, v, s=sigma: a - v * s, x, estimate)
            last = velocity
        if to_zero:
            out = x0
        elif restart and restart.share and done < len(steps):
            out = _renew(x, x0, masks, sigma, after, restart.share, fresh)
        else:
            out = _zip(lambda a, b, s=sigma, d=delta: a + (a - b) / s * d, x, x0)
        if trace is not None:
            _report(trace, done - 1, "x0", x0)
            _report(trace, done - 1, "out", out)
        x = out
        if on_step is not None:
            on_step(done, len(steps), predicted)
    return x


class _Fresh:
    """A stream of noise of its own: video tokens, then audio tokens, at each call."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator("cpu").manual_seed(seed % 2**64)

    def __call__(self, like: Latents, dtype: torch.dtype = torch.float32) -> Latents:
        def draw(tensor: Tensor) -> Tensor:
            return torch.randn(tensor.shape, generator=self.generator, dtype=dtype).to(tensor.device)

        return Latents(draw(like.video), draw(like.audio))


def _renew(x: Latents, x0: Latents, masks: Latents, sigma: float, after: float, share: float, fresh: _Fresh) -> Latents:
    """One step to `after`, `share` of whose noise is new. Each token keeps its own level, mask * sigma."""

    def step(x: Tensor, x0: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        level, target = mask * sigma, mask * after
        new = share * target
        old = (target**2 - new**2).sqrt()
        scale = (1 - target) + old
        moved = x0 + (x - x0) * (old / scale / level)
        return torch.where(level > 0, scale * moved + new * noise, x0)

    return _zip(step, x, x0, masks, fresh(x))


def _jump(x: Latents, masks: Latents, low: float, high: float, fresh: _Fresh) -> Latents:
    """Noise added until every token's level has gone from mask * low back to mask * high."""

    def back(x: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        scale = (1 - mask * high) / (1 - mask * low)
        return scale * x + ((mask * high) ** 2 - (scale * mask * low) ** 2).sqrt() * noise

    return _zip(back, x, masks, fresh(x))


def res_2s(
    denoise: Denoiser,
    x: Latents,
    sigmas: Tensor,
    seed: int,
    on_step: Callback | None = None,
    trace: Trace | None = None,
    *,
    clean: Latents | None = None,
    masks: Latents | None = None,
) -> Latents:
    """Second order, two predictions a step: the exponential Runge-Kutta method with c2 = 1/2 (Hochbruck and Ostermann
    2005), half of the noise renewed at the middle and the end of each step, as in the official two-stage HQ pipeline.

    clean, masks: what to blend back after noise was added. The state is float64 inside. Errors as in `euler`, and
    sigmas that do not fall.
    """
    sigmas = checked(sigmas)
    total = len(sigmas) - 1
    if sigmas[-1] == 0:  # logarithms need a last step above 0; one prediction more ends it
        sigmas = torch.cat([sigmas[:-1], torch.tensor([RES_LAST, 0.0])])
    if not (sigmas.diff() < 0).all():
        raise InputError(
            f"sigmas is {sigmas.tolist()}: res_2s needs each value lower than the one before, and the last one above 0 "
            f"higher than {RES_LAST}."
        )
    at_end, at_middle = _Fresh(seed), _Fresh(seed + SUBSTEP_SEED)
    x = x.float()

    def noised(start: Latents, end: Latents, sigma: float, after: float, fresh: _Fresh) -> Latents:
        new = RES_SHARE * after
        old = (after**2 - new**2) ** 0.5
        scale = (1 - after) + old

        def mix(start: Tensor, end: Tensor, noise: Tensor) -> Tensor:
            velocity = (start - end) / (sigma - after)
            noise = (noise - noise.mean()) / noise.std()
            return scale * (start - sigma * velocity + old / scale * velocity) + new * noise

        result = _zip(mix, start, end, fresh(start, torch.float64))
        if clean is None or masks is None:
            return result
        return _zip(lambda a, m, c: a * m + c * (1 - m), result, masks, clean)

    for step in range(total):
        if trace is not None:
            _report(trace, step, "in", x)
        sigma, after = float(sigmas[step].double()), float(sigmas[step + 1].double())
        h = math.log(sigma / after)
        a21, b1, b2 = res_2s_weights(h)
        anchor = _zip(lambda a, _: a.double(), x, x)
        first = denoise(x, sigmas[step], step)
        middle_sigma = (sigma * after) ** 0.5
        middle = _zip(lambda a, p, w=h * a21: a + w * (p.double() - a), anchor, first)
        middle = noised(anchor, middle, sigma, middle_sigma, at_middle)
        if h < 0.5 and sigma > 0.03:
            # The start from which the noisy middle would have been reached: what the official code iterates towards.
            anchor = _zip(lambda m, p, w=h * a21: (m - w * p.double()) / (1 - w), middle, first)
        second = denoise(middle.float(), torch.tensor(middle_sigma, dtype=torch.float32), step)
        end = _zip(
            lambda a, p, q, v=h * b1, w=h * b2: a + v * (p.double() - a) + w * (q.double() - a), anchor, first, second
        )
        x = noised(anchor, end, sigma, after, at_end).float()
        if trace is not None:
            _report(trace, step, "x0", second)
            _report(trace, step, "out", x)
        if on_step is not None:
            on_step(step + 1, total, second)
    return denoise(x, sigmas[total], total).float() if sigmas[-1] == 0 else x


def res_2s_weights(h: float) -> tuple[float, float, float]:
    """a21, b1, b2 of the method for a step of h = ln(sigma / sigma'), by the phi functions."""
    half = h / 2
    phi1_half = -math.expm1(-half) / half
    phi1 = -math.expm1(-h) / h
    phi2 = (1 - phi1) / h
    return phi1_half / 2, phi1 - 2 * phi2, 2 * phi2


def _zip(function: Callable[..., Tensor], *latents: Latents) -> Latents:
    return Latents(function(*(x.video for x in latents)), function(*(x.audio for x in latents)))


def _report(trace: Trace, step: int, name: str, latents: Latents) -> None:
    trace(f"step{step}/{name}_video", latents.video)
    trace(f"step{step}/{name}_audio", latents.audio)


def checked(sigmas: Tensor) -> Tensor:
    """The schedule [steps + 1] as float32 on the CPU. Errors: InputError for no step or a value out of place."""
    sigmas = torch.as_tensor(sigmas, dtype=torch.float32, device="cpu")  # scalars on the CPU cost no synchronisation
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise InputError("sigmas has no step: give a schedule of at least two values.")
    if not (sigmas.isfinite().all() and (sigmas[:-1] > 0).all() and sigmas[-1] >= 0):
        raise InputError(f"sigmas is {sigmas.tolist()}: every value but the last must be above 0.")
    return sigmas
