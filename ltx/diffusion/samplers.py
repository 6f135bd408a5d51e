"""Samplers: they lead down a schedule with a model that predicts x0, on the tokens of picture and sound together.

They do not use the transformer, guidance or masks, because the denoiser returns predictions that are guided and blended
with the clean tokens. A frozen token (mask 0, so x0 = x) has no velocity and stays exactly the same. The state and the
arithmetic are float32, whatever the inputs are. A further sampler is in res_2s.py.
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

Blend = Callable[[Tokens], Tokens]
"""Tokens → the same tokens, mixed with the clean ones by the masks."""


@dataclass(frozen=True)
class Hooks:
    """Functions that are called while a stage is sampled. An exception from one of them ends the sampling.

    on_step: called after each step with (steps done, all steps, the denoiser's x0). on_block: called before each block
    of the transformer. trace: called with the tensors `step{k}/{in,x0,out,noise}_{video,audio}`; this x0 is the one
    that the step used. on_compile: called within a step whenever a block begins to be compiled.
    """

    on_step: Callable[[int, int, Tokens], None] | None = None
    on_block: Callable[[], None] | None = None
    trace: Trace | None = None
    on_compile: Callable[[], None] | None = None

    def stepped(
        self,
        step: int,
        total: int,
        predicted: Tokens,
        *,
        x: Tokens,
        x0: Tokens,
        out: Tokens,
        noise: Tokens | None = None,
    ) -> None:
        """Calls the hooks after a step. x: its start; x0: the prediction it used; out: its result; predicted: the
        denoiser's own x0; noise: the noise that was drawn for it, if it is traced."""
        if self.trace is not None:
            for name, tokens in (("in", x), ("x0", x0), ("out", out), ("noise", noise)):
                if tokens is not None:
                    self.trace(f"step{step}/{name}_video", tokens.video)
                    self.trace(f"step{step}/{name}_audio", tokens.audio)
        if self.on_step is not None:
            self.on_step(step + 1, total, predicted)


UNWATCHED = Hooks()


def unmasked(x: Tokens) -> Tokens:
    """The Blend of a stage that keeps no token: every mask is 1."""
    return x


@dataclass(frozen=True)
class Restart:
    """Fresh noise during sampling, so that later steps can correct mistakes of earlier ones.

    share: the part of the remaining noise that is drawn anew after each step but the last. times: the number of
    restarts (Xu et al. 2023, arXiv 2306.14878); each goes back from sigma_min to sigma_max and repeats the steps
    between. Raises InputError if a value is out of range.
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
        """Whether it adds any noise."""
        return bool(self.share or self.times)

    def walk(self, sigmas: Tensor) -> list[tuple[int, bool]]:
        """The steps in the order of sampling, each with a flag for a jump back to its sigma before it.

        Raises InputError if no step lies between sigma_min and sigma_max.
        """
        steps = [(step, False) for step in range(len(sigmas) - 1)]
        if not self.times:
            return steps
        low = int((sigmas >= self.sigma_min).sum()) - 1  # the last sigma not below sigma_min
        high = int((sigmas > self.sigma_max).sum())  # the first sigma not above sigma_max
        if high >= low:
            raise InputError(
                f"restart: no step of this schedule lies between sigma {self.sigma_min} and {self.sigma_max}; "
                "widen the range or take more steps."
            )
        again = [(step, step == high) for step in range(high, low)]
        return steps[:low] + again * self.times + steps[low:]


def euler(denoise: Denoiser, x: Tokens, sigmas: Tensor, hooks: Hooks = UNWATCHED) -> Tokens:
    """Euler's method on dx/dσ = (x - x0)/σ, down `sigmas` [steps + 1]. Raises InputError if they cannot be used."""
    sigmas, x = checked(sigmas), x.float()
    for step, (sigma, after) in enumerate(pairwise(sigmas.tolist())):
        x0 = denoise(x, sigmas[step], step).float()
        out = x + to_d(x, x0, sigma) * (after - sigma)
        hooks.stepped(step, len(sigmas) - 1, x0, x=x, x0=x0, out=out)
        x = out
    return x


def gradient_estimation(denoise: Denoiser, x: Tokens, sigmas: Tensor, gamma: float, hooks: Hooks = UNWATCHED) -> Tokens:
    """Euler's method with each velocity extrapolated from the previous one. A step to sigma 0 takes x0 itself.

    Permenter and Yuan 2024, https://openreview.net/forum?id=o2ND9v0CeK. With `gamma` 1 it is Euler's method. Raises
    InputError as `euler`.
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
    """Euler's method, or gradient estimation if there is a `gamma`, with fresh noise from `seed` between the steps.

    masks [1, N, 1]: each token gets noise by its own level, mask · sigma; without masks every mask is 1. The previous
    velocity of gradient estimation is kept after the small noise of a step and forgotten after a jump back. Raises
    InputError as `euler` and `Restart.walk`.
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
    """The x0 that belongs to the velocity gamma · (v - v_last) + v_last. An object holds the state of one stage."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.last: Tokens | None = None

    def __call__(self, x: Tokens, x0: Tokens, sigma: float) -> Tokens:
        velocity, last = to_d(x, x0, sigma), self.last
        self.last = velocity
        return x0 if last is None else x - (self.gamma * (velocity - last) + last) * sigma


def _renewed(x: Tensor, x0: Tensor, mask: Tensor, noise: Tensor, sigma: float, after: float, share: float) -> Tensor:
    """One step to sigma `after`, with `share` of its noise drawn anew. Each token keeps its own level, mask · sigma."""
    level, target = mask * sigma, mask * after
    new = share * target
    old = (target**2 - new**2).sqrt()
    scale = (1 - target) + old
    moved = x0 + (x - x0) * (old / scale / level)
    return torch.where(level > 0, scale * moved + new * noise, x0)


def _noised_back(x: Tensor, mask: Tensor, noise: Tensor, low: float, high: float) -> Tensor:
    """Adds noise so that the level of every token rises from mask · low to mask · high."""
    scale = (1 - mask * high) / (1 - mask * low)
    return scale * x + ((mask * high) ** 2 - (scale * mask * low) ** 2).sqrt() * noise
