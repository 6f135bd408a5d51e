"""Samplers against the goldens' steps, the official loops and closed solutions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion.guidance import NONE, Guidance
from a2v.ltx.diffusion.samplers import Hooks, euler, gradient_estimation
from a2v.ltx.diffusion.tokens import Tokens
from a2v.ltx.errors import InputError
from safetensors import safe_open
from torch import Tensor

SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.3, 0.0])


@pytest.fixture
def start() -> Tokens:
    generator = torch.Generator().manual_seed(5)
    return Tokens(torch.randn(1, 12, 8, generator=generator), torch.randn(1, 5, 8, generator=generator))


def bend(x: Tokens, sigma: Tensor, step: int) -> Tokens:
    """A denoiser whose velocity changes from step to step, on both streams and across them."""
    return Tokens(x.video.sin() * (1 - sigma) + x.audio.mean() * step, x.audio.cos() * sigma)


@pytest.mark.parametrize("stage", ["s1", "s2"])
@pytest.mark.parametrize("name", ["ltx2", "endpoint_defaults"])
def test_euler_replays_goldens(oracle: Path, name: str, stage: str) -> None:
    with safe_open(oracle / f"{name}.safetensors", "pt") as golden:

        def read(name: str) -> Tensor:
            return golden.get_tensor(f"{stage}/{name}")

        def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
            return Tokens(read(f"step{step}/x0_video"), read(f"step{step}/x0_audio"))

        sigmas = read("sigmas")
        trace: dict[str, Tensor] = {}
        x = Tokens(read("step0/in_video"), read("step0/in_audio"))
        result = euler(denoise, x, sigmas, Hooks(trace=trace.__setitem__))
        for name, tensor in trace.items():
            torch.testing.assert_close(tensor, read(name), rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        assert len(trace) == 6 * (len(sigmas) - 1)
        assert result.video is trace[f"step{len(sigmas) - 2}/out_video"]


@pytest.mark.parametrize("stage", ["s1", "s2"])
def test_gradient_estimation_replays_goldens(oracle: Path, stage: str) -> None:
    """From the transformer's passes alone: guidance makes x0, the velocity correction and the steps follow."""
    with safe_open(oracle / "linear_quadratic_ge.safetensors", "pt") as golden:
        info = json.loads(golden.metadata()["info"])
        guided = Guidance(info["cfg"], info["stg"], info["rescale"], info["modality"])
        guidance = guided if stage == "s1" else NONE

        def read(name: str) -> Tensor:
            return golden.get_tensor(f"{stage}/{name}")

        def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
            passes = [read(f"step{step}/call{j}/video_x0") for j in range(guidance.passes)]
            return Tokens(guidance.combine(*passes), x.audio)  # no image: every video token is free; frozen audio

        sigmas = read("sigmas")
        steps = len(sigmas) - 1
        trace: dict[str, Tensor] = {}
        gamma = float(info["sampler"].removeprefix("ge:"))
        x = Tokens(read("step0/in_video"), read("step0/in_audio"))
        result = gradient_estimation(denoise, x, sigmas, gamma, Hooks(trace=trace.__setitem__))
        known = [n for n in trace if not n.startswith(f"step{steps - 1}/") or "/in_" in n]
        assert len(known) == 6 * (steps - 1) + 2
        for name in known:
            torch.testing.assert_close(trace[name], read(name), rtol=1e-5, atol=5e-6, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(result.video, denoise(result, sigmas[0], steps - 1).video)
        last = "up/in" if stage == "s1" else "final/video_latent"
        video = golden.get_tensor(last).flatten(2).transpose(1, 2)
        torch.testing.assert_close(result.video, video, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("gamma", [None, 2.0, 0.5])
def test_official_loop(start: Tokens, gamma: float | None) -> None:
    pytest.importorskip("ltx_core")
    peer = pytest.importorskip("ltx_pipelines.utils.samplers")
    from ltx_core.components.diffusion_steps import EulerDiffusionStep
    from ltx_core.types import LatentState

    def state(latent: Tensor) -> LatentState:
        mask = torch.ones(1, latent.shape[1], 1)
        return LatentState(latent, mask, torch.zeros(1, 3, latent.shape[1], 2), torch.zeros_like(latent))

    def denoise(video: LatentState, audio: LatentState, sigmas: Tensor, step: int) -> tuple[Tensor, Tensor]:
        x0 = bend(Tokens(video.latent, audio.latent), sigmas[step], step)
        return x0.video, x0.audio

    arguments = (SIGMAS, state(start.video), state(start.audio), EulerDiffusionStep(), denoise)
    if gamma is None:
        video, audio = peer.euler_denoising_loop(*arguments)
        result = euler(bend, start, SIGMAS)
    else:
        video, audio = peer.gradient_estimating_euler_denoising_loop(*arguments, ge_gamma=gamma)
        result = gradient_estimation(bend, start, SIGMAS, gamma)
    assert torch.equal(result.video, video.latent)
    assert torch.equal(result.audio, audio.latent)


def test_constant_x0_is_reached_in_a_straight_line(start: Tokens) -> None:
    target = Tokens(torch.full_like(start.video, 2.0), torch.full_like(start.audio, -1.0))
    for run in (euler, lambda *a, **k: gradient_estimation(*a, gamma=2.0, **k)):
        trace: dict[str, Tensor] = {}
        result = run(lambda x, sigma, step: target, start, SIGMAS, hooks=Hooks(trace=trace.__setitem__))
        torch.testing.assert_close(result.video, target.video, rtol=0, atol=1e-6)
        for step in range(4):
            line = target.video + SIGMAS[step + 1] * (start.video - target.video)
            torch.testing.assert_close(trace[f"step{step}/out_video"], line, rtol=0, atol=1e-6)


def test_gradient_estimation_at_gamma_one_is_euler(start: Tokens) -> None:
    a, b = euler(bend, start, SIGMAS), gradient_estimation(bend, start, SIGMAS, 1.0)
    torch.testing.assert_close(a.video, b.video, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(a.video, gradient_estimation(bend, start, SIGMAS, 2.0).video, atol=1e-2)


@pytest.mark.parametrize("gamma", [None, 2.0])
def test_frozen_stream_stays_to_the_bit(start: Tokens, gamma: float | None) -> None:
    def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
        return replace(bend(x, sigma, step), audio=start.audio)

    result = euler(denoise, start, SIGMAS) if gamma is None else gradient_estimation(denoise, start, SIGMAS, gamma)
    assert torch.equal(result.audio, start.audio)


def test_denoiser_and_callback_see_every_step(start: Tokens) -> None:
    seen, done, predicted = [], [], []

    def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
        seen.append((sigma.item(), sigma.shape, step))
        predicted.append(bend(x, sigma, step))
        return predicted[-1]

    gradient_estimation(denoise, start, SIGMAS, 2.0, Hooks(lambda *report: done.append(report)))
    assert seen == [(s.item(), torch.Size([]), k) for k, s in enumerate(SIGMAS[:-1])]
    assert [report[:2] for report in done] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for (_, _, x0), prediction in zip(done, predicted, strict=True):
        assert torch.equal(x0.video, prediction.video)


def test_callback_may_interrupt(start: Tokens) -> None:
    calls = []

    def stop(done: int, total: int, x0: Tokens) -> None:
        calls.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        euler(bend, start, SIGMAS, Hooks(stop))
    assert calls == [1, 2]


def test_arithmetic_is_float32(start: Tokens) -> None:
    half = Tokens(start.video.bfloat16(), start.audio.bfloat16())
    seen = []

    def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
        seen.append(x.video.dtype)
        x0 = bend(x, sigma, step)
        return Tokens(x0.video.bfloat16(), x0.audio.bfloat16())

    result = euler(denoise, half, SIGMAS)
    assert {*seen, result.video.dtype, result.audio.dtype} == {torch.float32}
    assert half.video.dtype == torch.bfloat16


@pytest.mark.parametrize("sigmas", [[], [1.0], [[1.0, 0.0]]])
def test_schedule_without_a_step(start: Tokens, sigmas: list) -> None:
    with pytest.raises(InputError, match="sigmas has no step"):
        euler(bend, start, torch.tensor(sigmas))


@pytest.mark.parametrize("sigmas", [[1.0, 0.0, 0.0], [0.0, 0.0], [1.0, float("nan")], [1.0, -0.1]])
def test_schedule_with_an_unusable_value(start: Tokens, sigmas: list) -> None:
    with pytest.raises(InputError, match="must be above 0"):
        euler(bend, start, torch.tensor(sigmas))
