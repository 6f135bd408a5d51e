"""Samplers: ways down a schedule for a model that predicts x0, on the tokens of picture and sound together.

They know neither the transformer nor guidance nor masks: the denoiser returns predictions that are guided and blended
with the clean tokens already. A frozen token (mask 0: x0 = x) has no velocity and stays as it is, to the bit. State and
arithmetic are float32 whatever comes in. res_2s.py has one more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import InputError
from ..trace import Trace
from .schedules import checked
from .tokens import FreshNoise, Tokens

RESTART_SHARE = 0.2

Denoiser = Callable[[Tokens, Tensor, int], Tokens]
"""(x, sigma as a float32 scalar on the CPU, step from 0) → x0, guided and blended with the clean tokens."""


@dataclass(frozen=True)
class Hooks:
    """Who watches a stage; what any of them raises ends the sampling.

    on_step: (steps done, steps in all, the denoiser's x0) after each step. on_block: before each block of the
    transformer. trace: `step{k}/{in,x0,out}_{video,audio}`, where x0 is what the step was made with.
    """

    on_step: Callable[[int, int, Tokens], None] | None = None
    on_block: Callable[[], None] | None = None
    trace: Trace | None = None

    def stepped(self, step: int, total: int, predicted: Tokens, *, x: Tokens, x0: Tokens, out: Tokens) -> None:
        """Tells of a step that was made: what entered, what it was made with, what came out."""
        if self.trace is not None:
            for name, tokens in (("in", x), ("x0", x0), ("out", out)):
                self.trace(f"step{step}/{name}_video", tokens.video)
                self.trace(f"step{step}/{name}_audio", tokens.audio)
        if self.on_step is not None:
            self.on_step(step + 1, total, predicted)


UNWATCHED = Hooks()


@dataclass(frozen=True)
class Restart:
    """Fresh noise on the way down, which lets later steps correct what earlier ones settled wrongly.

    share: of the noise that is left after each step, this part is drawn anew (none after the last step). times:
    restart proper (Xu et al. 2023, arXiv 2306.14878), back from sigma_min to sigma_max and down again, so often.
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

    def __bool__(self) -> bool:
        """Whether it draws any noise."""
        return bool(self.share or self.times)

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


def euler(denoise: Denoiser, x: Tokens, sigmas: Tensor, hooks: Hooks = UNWATCHED) -> Tokens:
    """Euler's method on dx/dσ = (x - x0)/σ, down `sigmas` [steps + 1]. Errors: InputError for unusable sigmas."""
    sigmas, x = checked(sigmas), x.float()
    for step, (sigma, after) in enumerate(pairwise(sigmas.tolist())):
        x0 = denoise(x, sigmas[step], step).float()
        out = x + to_d(x, x0, sigma) * (after - sigma)
        hooks.stepped(step, len(sigmas) - 1, x0, x=x, x0=x0, out=out)
        x = out
    return x


def gradient_estimation(denoise: Denoiser, x: Tokens, sigmas: Tensor, gamma: float, hooks: Hooks = UNWATCHED) -> Tokens:
    """Euler's method with each velocity extrapolated from the last one; a step to 0 takes x0 itself.

    Permenter and Yuan 2024, https://openreview.net/forum?id=o2ND9v0CeK. `gamma` 1 is Euler. Errors as in `euler`.
    """
    sigmas, x, extrapolate = checked(sigmas), x.float(), Extrapolation(gamma)
    for step, (sigma, after) in enumerate(pairwise(sigmas.tolist())):
        x0 = predicted = denoise(x, sigmas[step], step).float()
        if after == 0:
            out = x0
        else:
            x0 = extrapolate(x, predicted, sigma)
            out = x + to_d(x, x0, sigma) * (after - sigma)
        hooks.stepped(step, len(sigmas) - 1, predicted, x=x, x0=x0, out=out)
        x = out
    return x


def restarting(
    denoise: Denoiser,
    x: Tokens,
    sigmas: Tensor,
    restart: Restart,
    seed: int,
    hooks: Hooks = UNWATCHED,
    *,
    masks: Tokens | None = None,
    gamma: float = 0.0,
) -> Tokens:
    """Euler's method, or with `gamma` gradient estimation, with fresh noise from `seed` on the way.

    masks [1, N, 1]: each token gets noise by its own level, mask · sigma; without masks each is free. The last velocity
    of gradient estimation outlives the small noise of a step, but not a jump back. Errors as in `euler`.
    """
    sigmas, x = checked(sigmas), x.float()
    masks = masks or x.map(lambda own: torch.ones_like(own[..., :1]))
    fresh, extrapolate = FreshNoise(seed), Extrapolation(gamma) if gamma else None
    levels, walk = sigmas.tolist(), restart.walk(sigmas)
    reached = levels[0]
    for done, (step, jump) in enumerate(walk):
        sigma, after = levels[step], levels[step + 1]
        if jump:
            x = x.map(_noised_back, masks, fresh(x), reached, sigma)
            extrapolate = Extrapolation(gamma) if gamma else None
        x0 = predicted = denoise(x, sigmas[step], done).float()
        if extrapolate and after == 0:
            out = x0
        else:
            x0 = extrapolate(x, predicted, sigma) if extrapolate else predicted
            if restart.share and done < len(walk) - 1:
                out = x.map(_renewed, x0, masks, fresh(x), sigma, after, restart.share)
            else:
                out = x + to_d(x, x0, sigma) * (after - sigma)
        hooks.stepped(done, len(walk), predicted, x=x, x0=x0, out=out)
        x, reached = out, after
    return x


def to_d(x: Tokens, x0: Tokens, sigma: float) -> Tokens:
    """The velocity dx/dσ of the probability flow (Karras et al. 2022, arXiv 2206.00364)."""
    return (x - x0) / sigma


class Extrapolation:
    """The x0 that the velocity gamma · (v - v_last) + v_last points to. It is the state of one run."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.last: Tokens | None = None

    def __call__(self, x: Tokens, x0: Tokens, sigma: float) -> Tokens:
        velocity, last = to_d(x, x0, sigma), self.last
        self.last = velocity
        return x0 if last is None else x - (self.gamma * (velocity - last) + last) * sigma


def _renewed(x: Tensor, x0: Tensor, mask: Tensor, noise: Tensor, sigma: float, after: float, share: float) -> Tensor:
    """One step to `after`, `share` of whose noise is new. Each token keeps its own level, mask · sigma."""
    level, target = mask * sigma, mask * after
    new = share * target
    old = (target**2 - new**2).sqrt()
    scale = (1 - target) + old
    moved = x0 + (x - x0) * (old / scale / level)
    return torch.where(level > 0, scale * moved + new * noise, x0)


def _noised_back(x: Tensor, mask: Tensor, noise: Tensor, low: float, high: float) -> Tensor:
    """Noise added until every token's level has gone from mask · low back to mask · high."""
    scale = (1 - mask * high) / (1 - mask * low)
    return scale * x + ((mask * high) ** 2 - (scale * mask * low) ** 2).sqrt() * noise
