"""Restart sampling: that noise keeps its level on distributions known in closed form, and the rule step by step.

Small noise at each step and restart proper (Xu et al. 2023, arXiv 2306.14878). `by_hand` is a second implementation,
from endpoint.md's text, in float64 and one token at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion import schedules
from a2v.ltx.diffusion.conditioning import AudioCondition, Guide, TextContext
from a2v.ltx.diffusion.samplers import Hooks, Restart, euler, gradient_estimation, restarting
from a2v.ltx.diffusion.tokens import Tokens
from a2v.ltx.errors import InputError
from a2v.ltx.grid import CHANNELS
from a2v.ltx.latents import Noise
from a2v.ltx.trace import Recorder
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx import stage
from a2v.tests.tiny import TinyFiles
from torch import Tensor, nn

SCHEDULES = {
    "ltx2": schedules.ltx2(15),
    "beta": schedules.beta(8),
    "linear_quadratic": schedules.linear_quadratic(10),
    "distilled": torch.tensor(schedules.DISTILLED),
    "refine": torch.tensor(schedules.REFINE),
}
SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0])
MASKS = (0.0, 0.1, 0.35, 0.7, 1.0)
EACH = 100_000  # samples of each mask; 5 standard errors of a variance are 2.2 %
MEAN, SPREAD = 2.0, 0.5  # of the data


def near(values: Tensor, mean: float, deviation: float) -> None:
    """Mean and variance of independent samples, within five standard errors and float32."""
    values = values.double()
    assert abs(values.mean().item() - mean) < 5 * deviation / math.sqrt(values.numel()) + 1e-6
    assert abs(values.var().item() / deviation**2 - 1) < 5 * math.sqrt(2 / values.numel())


def down(
    denoise: Callable[..., Tokens],
    start: Tokens,
    sigmas: Tensor,
    restart: Restart | None = None,
    gamma: float | None = None,
    *,
    seed: int = 0,
    masks: Tokens | None = None,
    **hooks: Any,
) -> Tokens:
    """The sampler that a stage takes for these."""
    if restart is not None:
        return restarting(denoise, start, sigmas, restart, seed, Hooks(**hooks), masks=masks, gamma=gamma or 0.0)
    if gamma is not None:
        return gradient_estimation(denoise, start, sigmas, gamma, Hooks(**hooks))
    return euler(denoise, start, sigmas, Hooks(**hooks))


class Crowd:
    """EACH samples for each mask, as tokens of one channel; the audio stream has the masks in the other order."""

    def __init__(self, sigmas: Tensor, masks: tuple[float, ...] = MASKS) -> None:
        draw = torch.Generator().manual_seed(11)
        column = torch.tensor(masks).repeat_interleave(EACH)[None, :, None]
        self.sigmas, self.levels = sigmas, masks
        self.masks = Tokens(column, column.flip(1))
        self.data = Tokens(*(MEAN + SPREAD * torch.randn(column.shape, generator=draw) for _ in range(2)))
        noise = Tokens(*(torch.randn(column.shape, generator=draw) for _ in range(2)))
        self.start = self.each(lambda x0, n, m: torch.lerp(x0, n, m * sigmas[0]), self.data, noise, self.masks)

    @staticmethod
    def each(function: Callable[..., Tensor], *latents: Tokens) -> Tokens:
        return Tokens(function(*(x.video for x in latents)), function(*(x.audio for x in latents)))

    def split(self, x: Tokens) -> list[tuple[float, Tensor]]:
        """(mask, its samples of both streams), from the crowd's two orders."""
        parts = zip(self.levels, x.video.split(EACH, 1), reversed(x.audio.split(EACH, 1)), strict=True)
        return [(mask, torch.cat([video, audio], 1)) for mask, video, audio in parts]

    def run(self, denoise: Callable[..., Tokens], restart: Restart | None, gamma: float | None = None) -> list[Tokens]:
        """The state after each step."""
        trace = Recorder()
        down(denoise, self.start, self.sigmas, restart, gamma, trace=trace, seed=3, masks=self.masks)
        t = trace.tensors
        return [Tokens(t[f"step{k}/out_video"], t[f"step{k}/out_audio"]) for k in range(len(t) // 6)]


# Small noise: the level


@pytest.mark.parametrize(("schedule", "share"), [*((name, 0.2) for name in SCHEDULES), ("ltx2", 0.8), ("ltx2", 1.0)])
def test_every_token_keeps_its_level(schedule: str, share: float) -> None:
    """x = (1-l)·x0 + l·n at l = mask·sigma, n standard normal and independent of x0, after each step and at each mask.

    The denoiser knows x0, so that a step has no error of its own to hide behind; x0 is the clean token, too.
    """
    crowd = Crowd(SCHEDULES[schedule])
    states = crowd.run(lambda x, sigma, step: crowd.data, Restart(share))
    assert len(states) == len(crowd.sigmas) - 1
    for sigma, state in zip(crowd.sigmas[1:].tolist(), states, strict=True):
        for (mask, x), (_, x0) in zip(crowd.split(state), crowd.split(crowd.data), strict=True):
            level = mask * sigma
            if mask == 0:
                assert torch.equal(x, x0)
                continue
            near(x, (1 - level) * MEAN, math.hypot((1 - level) * SPREAD, level))
            if level:
                noise = (x - (1 - level) * x0) / level
                near(noise, 0, 1)
                assert abs(torch.corrcoef(torch.stack([noise.flatten(), x0.flatten()]))[0, 1]) < 5 / math.sqrt(2 * EACH)


def test_noise_is_new_by_its_share() -> None:
    """Of the noise after a step, a share r is new: its correlation with the noise before is sqrt(1 - r²)."""
    for share in (0.2, 0.6, 1.0):
        crowd = Crowd(SIGMAS, (0.5, 1.0))
        before = crowd.start
        for k, state in enumerate(crowd.run(lambda x, sigma, step, c=crowd: c.data, Restart(share))[:-1]):
            noises = []
            for x, sigma in ((before, SIGMAS[k].item()), (state, SIGMAS[k + 1].item())):
                pairs = zip(crowd.split(x), crowd.split(crowd.data), strict=True)
                noises.append(torch.cat([(x - (1 - m * sigma) * x0) / (m * sigma) for (m, x), (_, x0) in pairs], 1))
            correlation = torch.corrcoef(torch.cat(noises)[..., 0])[0, 1].item()
            assert correlation == pytest.approx(math.sqrt(1 - share**2), abs=5 / math.sqrt(4 * EACH) + 1e-4)
            before = state


def posterior(x: Tensor, level: Tensor | float) -> Tensor:
    """E[x0 | x] for data N(MEAN, SPREAD²) under x = (1-l)·x0 + l·n."""
    gain = SPREAD**2 * (1 - level) / ((1 - level) ** 2 * SPREAD**2 + level**2)
    return MEAN + gain * (x - (1 - level) * MEAN)


def moments(sigmas: list[float], mask: float, clean: float, share: float) -> list[tuple[float, float]]:
    """Mean and variance after each step with the posterior mean as denoiser, blended with a fixed clean token.

    Everything is linear in x, so both follow in closed form: endpoint.md's step in scalars.
    """
    mean, variance = (1 - mask * sigmas[0]) * clean, (mask * sigmas[0]) ** 2
    result = []
    for sigma, after in pairwise(sigmas):
        s, target = mask * sigma, mask * after

        def x0(x: float, s: float = s) -> float:
            return mask * posterior(x, s) + (1 - mask) * clean

        if after:
            up = share * target
            rho = math.sqrt(target**2 - up**2)
            alpha = (1 - target) + rho

            def step(x: float, s: float = s, down: float = rho / alpha, alpha: float = alpha) -> float:
                return alpha * (x0(x, s) + (x - x0(x, s)) * down / s)

        else:
            up, step = 0.0, x0
        slope = step(1.0) - step(0.0)
        mean, variance = step(mean), slope**2 * variance + up**2
        result.append((mean, variance))
    return result


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gaussian_data_under_its_exact_denoiser(schedule: str) -> None:
    """Each step's mean and variance are those that the rule has in closed form, masks between 0 and 1 too."""
    masks, clean = (0.1, 0.5, 1.0), MEAN + 1.5
    crowd = Crowd(SCHEDULES[schedule], masks)
    draw = torch.Generator().manual_seed(2)
    start = Crowd.each(
        lambda m: (1 - m * crowd.sigmas[0]) * clean + m * crowd.sigmas[0] * torch.randn(m.shape, generator=draw),
        crowd.masks,
    )
    crowd.start = start

    def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
        return Crowd.each(lambda x, m: m * posterior(x, m * sigma) + (1 - m) * clean, x, crowd.masks)

    states = crowd.run(denoise, Restart(0.2))
    expected = {mask: moments(crowd.sigmas.double().tolist(), mask, clean, 0.2) for mask in masks}
    for k, state in enumerate(states):
        for mask, x in crowd.split(state):
            mean, variance = expected[mask][k]
            near(x, mean, math.sqrt(variance))


@pytest.mark.parametrize(("share", "within"), [(0.0, 0.002), (0.1, 0.005), (0.2, 0.015)])
def test_gaussian_data_has_the_schedules_marginal(share: float, within: float) -> None:
    """N((1-s)·m, (1-s)²·d² + s²) at every sigma of a fine schedule, for Euler and, as near, with fresh noise.

    By the recursion that the samples were held against above, and by samples at the end. Fresh noise lengthens Euler's
    step, to s_d instead of s', and with it Euler's error: 0.2 costs a hundredth of the variance however fine the steps.
    """
    sigmas = torch.linspace(1, 0, 2001).double().tolist()
    for (mean, variance), sigma in zip(moments(sigmas, 1.0, 0.0, share), sigmas[1:], strict=True):
        assert mean == pytest.approx((1 - sigma) * MEAN, abs=1e-3)
        assert variance == pytest.approx((1 - sigma) ** 2 * SPREAD**2 + sigma**2, rel=within)
    x = torch.randn(1, 20_000, 1, generator=torch.Generator().manual_seed(5))

    def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
        return Crowd.each(lambda x: posterior(x, sigma), x)

    last = down(denoise, Tokens(x, x[:, :9]), torch.linspace(1, 0, 401), Restart(share), seed=1).video
    assert last.mean().item() == pytest.approx(MEAN, abs=5 * SPREAD / math.sqrt(20_000))
    assert last.std().item() == pytest.approx(SPREAD, rel=0.03)


def test_level_holds_where_the_model_disagrees_with_the_clean_token() -> None:
    """Masks between 0 and 1 and a model sure of another x0: x = (1-m)·clean + m·((1-s)·x0 + s·n) on Euler's line.

    Restart keeps the noise's variance (m·s)² exactly. The mean moves by a fiftieth of (1-m)·m·s·(x0 - clean) a step
    at most: the rule takes all of (x - x0)/s for noise, and a part of it is the disagreement.
    """
    crowd = Crowd(SIGMAS, (0.2, 0.5, 0.8))
    clean, target = 1.0, -1.0
    draw = torch.Generator().manual_seed(2)
    crowd.start = Crowd.each(lambda m: (1 - m) * clean + m * torch.randn(m.shape, generator=draw), crowd.masks)
    x0 = Crowd.each(lambda m: m * target + (1 - m) * clean, crowd.masks)
    plain = crowd.run(lambda *_: x0, None)
    for k, state in enumerate(crowd.run(lambda *_: x0, Restart(0.2))[:-1]):
        sigma = SIGMAS[k + 1].item()
        for (mask, x), (_, line) in zip(crowd.split(state), crowd.split(plain[k]), strict=True):
            near(line, (1 - mask) * clean + mask * (1 - sigma) * target, mask * sigma)
            apart = x.mean().item() - line.mean().item()
            sampling = 10 * mask * sigma / math.sqrt(2 * EACH)
            assert abs(apart) < (k + 1) * (1 - math.sqrt(0.96)) * sigma * mask * (1 - mask) * 2 + sampling
            near(x, x.mean().item(), mask * sigma)


# The rule, step by step


def bend(x: Tokens, sigma: Tensor, step: int) -> Tokens:
    """A denoiser whose velocity changes from step to step, on both streams and across them."""
    return Tokens(x.video.sin() * (1 - sigma) + x.audio.mean() * step / 9, x.audio.cos() * sigma)


@pytest.fixture
def start() -> Tokens:
    draw = torch.Generator().manual_seed(5)
    return Tokens(torch.randn(1, 6, 4, generator=draw), torch.randn(1, 5, 4, generator=draw))


MIXED = Tokens(torch.tensor([0, 0.2, 0.5, 0.9, 1, 1])[None, :, None], torch.tensor([1, 0.6, 0.3, 0, 1])[None, :, None])


def keep(start: Tokens, masks: Tokens) -> Callable[..., Tokens]:
    """`bend`, blended with `start` as the clean tokens."""

    def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
        return Crowd.each(lambda p, c, m: p * m + c * (1 - m), bend(x, sigma, step), start, masks)

    return denoise


def by_hand(
    denoise: Callable[..., Tokens],
    start: Tokens,
    sigmas: list[float],
    walk: list[int],
    masks: Tokens,
    share: float,
    seed: int,
    gamma: float = 1.0,
) -> Tokens:
    """endpoint.md's row: s = mask·sigma, s' = mask·sigma', one generator, video tokens then audio tokens. A step in
    `walk` that does not follow on the one before is a jump back to its sigma."""
    generator = torch.Generator().manual_seed(seed % 2**64)
    tokens, shapes = [], []
    for x, m in ((start.video, masks.video), (start.audio, masks.audio)):
        tokens += torch.stack([x, m.expand_as(x)], -1).double().flatten(0, 2).tolist()
        shapes.append(x.shape)

    def noise() -> list[float]:
        return [n for shape in shapes for n in torch.randn(shape, generator=generator).flatten().tolist()]

    def latents(values: list[float]) -> Tokens:
        split = shapes[0].numel()
        return Tokens(torch.tensor(values[:split]).reshape(shapes[0]), torch.tensor(values[split:]).reshape(shapes[1]))

    last: list[float] | None = None
    for number, k in enumerate(walk):
        if number and k != walk[number - 1] + 1:
            low, high = sigmas[walk[number - 1] + 1], sigmas[k]
            for token, n in zip(tokens, noise(), strict=True):
                x, m = token
                ratio = (1 - m * high) / (1 - m * low)
                token[0] = ratio * x + math.sqrt((m * high) ** 2 - (ratio * m * low) ** 2) * n
            last = None
        x0 = denoise(latents([x for x, _ in tokens]), torch.tensor(sigmas[k]), number)
        predicted = [v for part in (x0.video, x0.audio) for v in part.flatten().tolist()]
        velocity = [(x - p) / sigmas[k] for (x, _), p in zip(tokens, predicted, strict=True)]
        guess = velocity if last is None else [gamma * (v - w) + w for v, w in zip(velocity, last, strict=True)]
        last = velocity
        fresh = noise() if share and number < len(walk) - 1 else [0.0] * len(tokens)
        for token, v, p, n in zip(tokens, guess, predicted, fresh, strict=True):
            x, m = token
            s, target = m * sigmas[k], m * sigmas[k + 1]
            if sigmas[k + 1] == 0:
                token[0] = p
            elif s:
                x0 = x - sigmas[k] * v
                up = share * target if number < len(walk) - 1 else 0.0
                rho = math.sqrt(target**2 - up**2)
                alpha = (1 - target) + rho
                token[0] = alpha * (x0 + (x - x0) * (rho / alpha) / s) + up * n
    return latents([x for x, _ in tokens])


CASES = {
    "small noise": (Restart(0.2), [0, 1, 2, 3, 4, 5]),
    "all of the noise": (Restart(1.0), [0, 1, 2, 3, 4, 5]),
    "restart proper": (Restart(0.0, 2, 0.3, 0.7), [0, 1, 2, 3, 2, 3, 2, 3, 4, 5]),
    "both": (Restart(0.3, 1, 0.25, 0.95), [0, 1, 2, 3, 1, 2, 3, 4, 5]),
    "from the very start": (Restart(0.0, 1, 0.1, 1.0), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]),
}


@pytest.mark.parametrize("gamma", [None, 2.0])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_rule_in_scalars(start: Tokens, name: str, gamma: float | None) -> None:
    """The velocity of gradient estimation lives on over small noise, and a jump forgets it."""
    restart, walk = CASES[name]
    denoise, sigmas = keep(start, MIXED), SIGMAS.double().tolist()
    for seed in (0, 2**64 - 1, 2**64 + 7, -3):
        expected = by_hand(denoise, start, sigmas, walk, MIXED, restart.share, seed, gamma or 1.0)
        result = down(denoise, start, SIGMAS, restart, gamma, seed=seed, masks=MIXED)
        torch.testing.assert_close(result.video, expected.video, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result.audio, expected.audio, rtol=1e-5, atol=1e-5)


def test_gradient_estimation_uses_the_last_velocity_and_forgets_at_the_jump(start: Tokens) -> None:
    """What would be another result: gamma matters with both, and right after a jump it does not."""
    for restart, free in ((Restart(0.2), {0}), (Restart(0.0, 1, 0.3, 0.7), {0, 4})):
        runs = []
        for gamma in (1.0, 3.0):
            trace = Recorder()
            down(bend, start, SIGMAS, restart, gamma, trace=trace)
            runs.append(trace.tensors)
        steps = len(runs[0]) // 6
        for k in range(steps - 1):
            x = Tokens(runs[1][f"step{k}/in_video"], runs[1][f"step{k}/in_audio"])
            prediction = bend(x, SIGMAS[restart.walk(SIGMAS)[k][0]], k)
            unchanged = torch.allclose(runs[1][f"step{k}/x0_video"], prediction.video, atol=1e-5)
            assert unchanged == (k in free), (restart, k)


@pytest.mark.parametrize("masks", [None, MIXED])
@pytest.mark.parametrize("restart", [Restart(0.0), Restart(0.0, 0, 0.9, 0.1)])
def test_no_share_is_euler_to_the_bit(start: Tokens, restart: Restart, masks: Tokens | None) -> None:
    plain = euler(bend, start, SIGMAS)
    result = down(bend, start, SIGMAS, restart, seed=4, masks=masks)
    assert torch.equal(plain.video, result.video) and torch.equal(plain.audio, result.audio)
    plain = gradient_estimation(bend, start, SIGMAS, 1.7)
    result = down(bend, start, SIGMAS, restart, 1.7, seed=4, masks=masks)
    assert torch.equal(plain.video, result.video) and torch.equal(plain.audio, result.audio)


def test_masks_left_out_are_ones(start: Tokens) -> None:
    ones = Crowd.each(lambda x: torch.ones_like(x[..., :1]), start)
    for restart in (Restart(0.4), Restart(0.0, 1)):
        a, b = (down(bend, start, SIGMAS, restart, seed=4, masks=masks) for masks in (None, ones))
        assert torch.equal(a.video, b.video) and torch.equal(a.audio, b.audio)


@pytest.mark.parametrize("gamma", [None, 2.0])
def test_mask_0_stays_clean_to_the_bit(start: Tokens, gamma: float | None) -> None:
    for restart in (Restart(0.2), Restart(1.0, 2, 0.3, 0.7)):
        trace = Recorder()
        down(keep(start, MIXED), start, SIGMAS, restart, gamma, trace=trace, masks=MIXED)
        for name, tensor in trace.tensors.items():
            if "/x0_" not in name:
                token = (0, start.video) if name.endswith("video") else (3, start.audio)
                assert torch.equal(tensor[:, token[0]], token[1][:, token[0]]), name


@pytest.mark.parametrize("sigmas", [SIGMAS, SIGMAS[:4]])
def test_none_on_the_last_step(start: Tokens, sigmas: Tensor) -> None:
    """Not on a schedule that ends above 0 either: the last step is Euler's."""
    trace = Recorder()
    result = down(bend, start, sigmas, Restart(0.5), trace=trace)
    last = len(sigmas) - 2
    x, x0 = (trace.tensors[f"step{last}/{name}_video"] for name in ("in", "x0"))
    line = x0 + (x - x0) * (sigmas[-1] / sigmas[-2])
    torch.testing.assert_close(result.video, line, rtol=1e-5, atol=1e-6)
    assert torch.equal(result.video, trace.tensors[f"step{last}/out_video"])
    one = down(bend, start, torch.tensor([1.0, 0.0]), Restart(0.5))
    assert torch.equal(one.video, euler(bend, start, torch.tensor([1.0, 0.0])).video)


def test_noise_is_drawn_from_its_own_generator(start: Tokens) -> None:
    """What is new in each step is that generator's, video tokens then audio tokens; the default one is left alone."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    trace = Recorder()
    down(bend, start, SIGMAS, Restart(0.3), seed=42, trace=trace)
    assert torch.equal(torch.get_rng_state(), state)
    generator = torch.Generator().manual_seed(42)
    for k, (sigma, after) in enumerate(zip(SIGMAS[:-2].tolist(), SIGMAS[1:].tolist(), strict=False)):
        for stream in ("video", "audio"):
            x, x0, out = (trace.tensors[f"step{k}/{name}_{stream}"] for name in ("in", "x0", "out"))
            kept = (1 - after) * x0 + math.sqrt(1 - 0.3**2) * after * (x0 + (x - x0) / sigma)
            drawn = torch.randn(x.shape, generator=generator)
            torch.testing.assert_close((out - kept) / (0.3 * after), drawn, rtol=0, atol=2e-4)


# Restart proper


def steps(sigmas: Tensor, **more: float) -> list[int | str]:
    """The walk as numbers; "<" marks a jump."""
    return [mark for step, jump in Restart(0, **more).walk(sigmas) for mark in (["<", step] if jump else [step])]


def test_the_walk() -> None:
    #                      0    1    2    3    4    5    6
    # SIGMAS             1.0  0.9  0.7  0.5  0.3  0.1  0.0
    assert steps(SIGMAS, times=0) == [0, 1, 2, 3, 4, 5]
    # At 0.3 after step 3, back to 0.7, where step 2 begins.
    assert steps(SIGMAS, times=1, sigma_min=0.3, sigma_max=0.7) == [0, 1, 2, 3, "<", 2, 3, 4, 5]
    assert steps(SIGMAS, times=3, sigma_min=0.3, sigma_max=0.7) == [0, 1, 2, 3, *["<", 2, 3] * 3, 4, 5]
    # Between two sigmas the next one inside the range counts.
    assert steps(SIGMAS, times=1, sigma_min=0.2, sigma_max=0.85) == [0, 1, 2, 3, "<", 2, 3, 4, 5]
    assert steps(SIGMAS, times=1, sigma_min=0.05, sigma_max=1.0) == [0, 1, 2, 3, 4, "<", 0, 1, 2, 3, 4, 5]
    assert steps(SIGMAS, times=1, sigma_min=0.5, sigma_max=0.7) == [0, 1, 2, "<", 2, 3, 4, 5]
    assert steps(SIGMAS[:5], times=1, sigma_min=0.3, sigma_max=0.7) == [0, 1, 2, 3, "<", 2, 3]


def test_the_denoiser_and_the_progress_follow_the_walk(start: Tokens) -> None:
    seen, told = [], []

    def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
        seen.append((round(sigma.item(), 4), step))
        return bend(x, sigma, step)

    down(denoise, start, SIGMAS, Restart(0.2, 2, 0.3, 0.7), on_step=lambda done, total, x0: told.append((done, total)))
    wanted = [1.0, 0.9, 0.7, 0.5, 0.7, 0.5, 0.7, 0.5, 0.3, 0.1]
    assert seen == [(sigma, step) for step, sigma in enumerate(wanted)]
    assert told == [(done, 10) for done in range(1, 11)]


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_jump_keeps_every_level(share: float) -> None:
    """The state at each step's start and end has the noise of its sigma, at masks between 0 and 1 too."""
    crowd, restart = Crowd(SIGMAS), Restart(share, 2, 0.3, 0.9)
    entered: list[tuple[float, Tokens]] = []

    def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
        entered.append((sigma.item(), x))
        return crowd.data

    crowd.run(denoise, restart)
    assert [round(sigma, 4) for sigma, _ in entered] == [1, 0.9, 0.7, 0.5, 0.9, 0.7, 0.5, 0.9, 0.7, 0.5, 0.3, 0.1]
    for sigma, state in entered:
        for (mask, x), (_, x0) in zip(crowd.split(state), crowd.split(crowd.data), strict=True):
            level = mask * sigma
            if level == 0:
                assert torch.equal(x, x0)
            else:
                near((x - (1 - level) * x0) / level, 0, 1)


def test_a_jump_to_sigma_1_is_all_new_noise(start: Tokens) -> None:
    trace = Recorder()
    down(bend, start, SIGMAS, Restart(0, 1, 0.1, 1), seed=8, trace=trace)
    draw = torch.Generator().manual_seed(8)
    for stream, shape in (("video", start.video.shape), ("audio", start.audio.shape)):
        assert torch.equal(trace.tensors[f"step5/in_{stream}"], torch.randn(shape, generator=draw))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"share": -0.1}, "restart noise is -0.1"),
        ({"share": 1.1}, "restart noise is 1.1"),
        ({"share": float("nan")}, "restart noise is nan"),
        ({"times": -1}, "restarts is -1"),
        ({"times": 1.5}, "restarts is 1.5"),
        ({"times": 1, "sigma_min": 0.7, "sigma_max": 0.7}, "the first one lower"),
        ({"times": 1, "sigma_min": 0.8, "sigma_max": 0.7}, "from sigma 0.8 back to 0.7"),
        ({"times": 1, "sigma_min": 0.0}, "between 0 and 1"),
        ({"times": 1, "sigma_min": -0.2}, "between 0 and 1"),
        ({"times": 1, "sigma_max": 1.2}, "between 0 and 1"),
        ({"times": 1, "sigma_max": float("nan")}, "between 0 and 1"),
    ],
)
def test_values_out_of_range(values: dict[str, float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Restart(**values)


@pytest.mark.parametrize("between", [(0.55, 0.65), (0.3, 0.45), (0.01, 0.05), (0.4, 0.6)])
def test_a_range_without_a_step(start: Tokens, between: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=f"no step .* {between[0]} and {between[1]}; widen the range"):
        down(bend, start, SIGMAS, Restart(0.2, 1, *between))


# In the pipeline


@pytest.fixture(scope="module")
def model(tiny_default: TinyFiles) -> nn.Module:
    return load_checkpoint(tiny_default.checkpoint).transformer(torch.float32, "cpu")


def sample(model: nn.Module, **more: object) -> tuple[Tensor, AudioCondition, Noise, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(8)
    trace = Recorder()
    settings = {
        "latent": torch.zeros(1, CHANNELS, 2, 2, 3),
        "sigmas": torch.tensor([1.0, 0.7, 0.4, 0.0]),
        "positive": TextContext(torch.randn(1, 16, 64, generator=draw), torch.randn(1, 16, 32, generator=draw)),
        "audio": AudioCondition(torch.randn(1, 8, 9, 16, generator=draw), 9, Fraction(24)),
        "noise": Noise(4),
        "trace": trace,
    }
    return *stage.sample(model, settings, **more), trace.tensors


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("seed", [4, 2**64 - 5])
def test_the_noise_that_a_stage_draws(model: nn.Module, seed: int, strength: float) -> None:
    """Seed + 10000 modulo 2^64, each token by its own mask; keyframes are drawn with the video's tokens."""
    draw = torch.Generator().manual_seed(9)
    image = Guide(torch.randn(1, CHANNELS, 1, 2, 3, generator=draw), 8, 0.25)
    first = Guide(torch.randn(1, CHANNELS, 1, 2, 3, generator=draw), 0, 1.0)
    audio = AudioCondition(torch.randn(1, 8, 9, 16, generator=draw), 9, Fraction(24), strength)
    *_, trace = sample(model, noise=Noise(seed), restart=Restart(0.5), guides=(first, image), audio=audio)
    generator = torch.Generator().manual_seed((seed + 10000) % 2**64)
    masks = {"video": torch.tensor([0.0] * 6 + [1.0] * 6 + [0.75] * 6), "audio": torch.full((9,), 1 - strength)}
    for k, (sigma, after) in enumerate(((1.0, 0.7), (0.7, 0.4))):
        for stream, mask in masks.items():
            x, x0, out = (trace[f"step{k}/{name}_{stream}"] for name in ("in", "x0", "out"))
            drawn = torch.randn(x.shape, generator=generator)
            s, target = (mask * value for value in (sigma, after))
            old = math.sqrt(0.75) * target / s
            expected = (1 - target)[:, None] * x0 + old[:, None] * (x - (1 - s)[:, None] * x0)
            expected = torch.where(mask[:, None] > 0, expected + 0.5 * target[:, None] * drawn, x0)
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
            assert torch.equal(out[:, mask == 0], x[:, mask == 0])


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_first_noise_and_what_the_second_stage_draws_stay(model: nn.Module, gamma: float) -> None:
    plain, drawn = sample(model, gamma=gamma), sample(model, gamma=gamma, restart=Restart(0.5, 1, 0.4, 0.7))
    for stream in ("video", "audio"):
        assert torch.equal(plain[3][f"step0/in_{stream}"], drawn[3][f"step0/in_{stream}"])
    assert (plain[0] - drawn[0]).norm() > 0.05 * plain[0].norm()
    assert plain[2].seed == drawn[2].seed == 4 and torch.equal(plain[2].state, drawn[2].state)
    second = [
        sample(model, noise=noise, latent=plain[0], sigmas=torch.tensor([0.9, 0.5, 0.0]))[3]
        for _, _, noise, _ in (plain, drawn)
    ]
    assert second[0].keys() == second[1].keys()
    assert all(torch.equal(second[0][name], second[1][name]) for name in second[0])


def test_restart_without_a_share_is_its_absence(model: nn.Module) -> None:
    plain, none = sample(model), sample(model, restart=Restart(0.0))
    assert plain[3].keys() == none[3].keys()
    assert all(torch.equal(plain[3][name], none[3][name]) for name in plain[3])
    assert torch.equal(plain[0], none[0])


def test_a_rerun_is_the_same_and_another_seed_is_not(model: nn.Module) -> None:
    restart = Restart(0.2, 1, 0.4, 0.7)
    a, b = sample(model, restart=restart), sample(model, restart=restart)
    assert torch.equal(a[0], b[0])
    other = sample(model, restart=replace(restart, share=0.25))
    assert not torch.equal(a[0], other[0])
