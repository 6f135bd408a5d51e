"""Ancestral Euler: its formula in double precision, its noise, what is frozen, and when a stage is sampled so."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from a2v.ltx.diffusion.acceleration import EXACT, level
from a2v.ltx.diffusion.ancestral import coefficients, euler_ancestral
from a2v.ltx.diffusion.samplers import Hooks
from a2v.ltx.diffusion.schedules import DISTILLED
from a2v.ltx.diffusion.steering import ANCESTRAL, EULER, RES_2S, Steering, steer
from a2v.ltx.diffusion.tokens import Tokens
from a2v.ltx.errors import InputError
from a2v.ltx.request import parse
from torch import Tensor

SEED = 10_007


def test_a_step_is_the_formula(randn: Callable) -> None:
    """x' = (d/s)x + (1-d/s)x0 with d = t²/s; x⁺ = (1-t)/(1-d)·x' + ε·√(t² - d²(1-t)²/(1-d)²), in float64."""
    x, x0, sigmas = Tokens(randn(1, 6, 4), randn(1, 3, 4)), Tokens(randn(1, 6, 4), randn(1, 3, 4)), (0.8, 0.5, 0.2)
    traced: dict[str, Tensor] = {}
    euler_ancestral(lambda *_: x0, x, torch.tensor(sigmas), SEED, Hooks(trace=traced.__setitem__))
    generator = torch.Generator().manual_seed(SEED)
    for step, (s, t) in enumerate(pairwise(sigmas)):
        for name, clean in (("video", x0.video), ("audio", x0.audio)):
            noise = torch.randn(clean.shape, generator=generator)
            assert torch.equal(noise, traced[f"step{step}/noise_{name}"])
            now, d = traced[f"step{step}/in_{name}"].double(), t**2 / s
            mixed = d / s * now + (1 - d / s) * clean.double()
            expected = (1 - t) / (1 - d) * mixed
            expected = expected + noise.double() * (t**2 - (d * (1 - t) / (1 - d)) ** 2) ** 0.5
            torch.testing.assert_close(traced[f"step{step}/out_{name}"].double(), expected, rtol=1e-5, atol=1e-6)


def test_it_keeps_the_level_of_noise() -> None:
    """Signal and noise after a step are those of the sigma that it goes to: 1 - t and t."""
    for sigma, after in ((0.9, 0.5), (0.5, 0.49), (0.99, 0.02)):
        keep, signal, renewed = (float(c) for c in coefficients(torch.tensor(sigma), torch.tensor(after)))
        share = signal * (keep * (1 - sigma) + (1 - keep))  # of the clean tokens
        noise = ((signal * keep * sigma) ** 2 + renewed**2) ** 0.5
        assert share == pytest.approx(1 - after, abs=1e-5)
        assert noise == pytest.approx(after, abs=1e-5)


def test_frozen_tokens_stay_though_noise_is_added_to_all(randn: Callable) -> None:
    x = Tokens(randn(1, 6, 4), randn(1, 3, 4))
    masks = Tokens(torch.tensor([0.0, 1, 1, 1, 1, 0.25]).view(1, 6, 1), torch.zeros(1, 3, 1))
    clean = Tokens(randn(1, 6, 4), x.audio)
    seen: list[Tokens] = []

    def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
        seen.append(x)
        return x.map(lambda own: own * 0.5)

    def blend(x: Tokens) -> Tokens:
        return x * masks + clean * (1 - masks)

    end = euler_ancestral(denoise, x, torch.tensor([1.0, 0.6, 0.0]), SEED, blend=blend)
    for state in (*seen[1:], end):
        assert torch.equal(state.audio, clean.audio)
        assert torch.equal(state.video[:, 0], clean.video[:, 0])
    assert torch.equal(end.video[:, 1:5], seen[1].video[:, 1:5] * 0.5)  # the step to 0 is the prediction
    assert torch.equal(end.video[:, 5], seen[1].video[:, 5] * 0.5 * 0.25 + clean.video[:, 5] * 0.75)


def test_the_last_step_draws_nothing(randn: Callable) -> None:
    names: list[str] = []
    x = Tokens(randn(1, 2, 4), randn(1, 2, 4))
    hooks = Hooks(trace=lambda name, _: names.append(name))
    euler_ancestral(lambda x, *_: x, x, torch.tensor([1.0, 0.5, 0.25, 0.0]), SEED, hooks)
    assert [name for name in names if "noise_video" in name] == ["step0/noise_video", "step1/noise_video"]


def request(**more: object):
    return parse({"prompt": "a voice", "enable_safety_checker": False, "acceleration": "full", **more})


@pytest.mark.parametrize(("version", "sampler"), [("2.3.0", EULER), ("2.5.0", ANCESTRAL), ("2.5", ANCESTRAL)])
def test_the_distilled_recipe_by_version(version: str, sampler: str) -> None:
    """Only the first stage of LTX-2.5's; restart and gradient estimation do nothing there, and are no mistake."""
    first, second = steer(request(gradient_estimation_gamma=2.0), version=version)
    assert (first.sampler, second.sampler) == (sampler, EULER)
    assert torch.equal(first.sigmas, torch.tensor(DISTILLED))
    assert (first.restart is None and first.gamma == 0) is (sampler == ANCESTRAL)
    assert second.gamma == 2.0


def test_other_levels_do_not_renew() -> None:
    for name in ("none", "regular", "high"):
        assert not level(name, "2.5.0").ancestral
    assert level("none", "2.3.0") == EXACT


def test_another_sampler_stays() -> None:
    """res_2s, chosen in the graph, renews noise by itself."""
    chosen = Steering(torch.tensor(DISTILLED), acceleration=level("full", "2.5.0"), sampler=RES_2S)
    assert chosen.sampler == RES_2S


def test_it_can_be_chosen_in_the_graph() -> None:
    assert Steering(torch.tensor([1.0, 0.5, 0.0]), sampler=ANCESTRAL).sampler == ANCESTRAL
    with pytest.raises(InputError, match="euler_ancestral renews noise"):
        Steering(torch.tensor([1.0, 0.5, 0.0]), sampler=ANCESTRAL, gamma=2.0)
