"""res_2s against the official loop of ltx-pipelines 1.0.0, and what needs no peer: weights, masks, seeds, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from a2v.ltx.diffusion import res_2s as method
from a2v.ltx.diffusion import schedules
from a2v.ltx.diffusion.conditioning import AudioCondition, Guide, Stream, TextContext
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.res_2s import res_2s, weights
from a2v.ltx.diffusion.samplers import Hooks, Restart
from a2v.ltx.diffusion.steering import EULER, RES_2S
from a2v.ltx.diffusion.tokens import Tokens
from a2v.ltx.errors import InputError
from a2v.ltx.grid import CHANNELS
from a2v.ltx.latents import Noise
from a2v.ltx.trace import Recorder
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx import stage
from a2v.tests.nodes.devices import LACKS, simulated
from a2v.tests.tiny import TinyFiles
from torch import Tensor, nn

SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.3, 0.0])
SCHEDULES = {
    "ltx2": schedules.ltx2(8),
    "beta": schedules.beta(6),
    "distilled": torch.tensor(schedules.DISTILLED),
    "refine": torch.tensor(schedules.REFINE),
    "ends above 0": torch.tensor([1.0, 0.9, 0.7, 0.3]),
    "small steps": torch.linspace(1, 0, 31),
    "small steps, low": torch.tensor([0.06, 0.05, 0.04, 0.031, 0.029, 0.02, 0.0]),
    "one small step": torch.tensor([0.5, 0.4995]),
    "just below and above the limit of 0.5": torch.tensor([1.0, math.exp(-0.499), math.exp(-0.499 - 0.501)]),
    "large steps": torch.tensor([1.0, 0.5, 0.01, 0.0]),
    "one step": torch.tensor([1.0, 0.0]),
}
MASKS = {
    "free": (torch.ones(1, 12, 1), torch.ones(1, 5, 1)),
    "frozen audio": (torch.ones(1, 12, 1), torch.zeros(1, 5, 1)),
    "partial": (torch.linspace(0, 1, 12)[None, :, None], torch.full((1, 5, 1), 0.4)),
}


@pytest.fixture
def start() -> Tokens:
    draw = torch.Generator().manual_seed(5)
    return Tokens(torch.randn(1, 12, 8, generator=draw), torch.randn(1, 5, 8, generator=draw))


@pytest.fixture
def clean() -> Tokens:
    draw = torch.Generator().manual_seed(6)
    return Tokens(torch.randn(1, 12, 8, generator=draw), torch.randn(1, 5, 8, generator=draw))


def bend(x: Tokens, sigma: Tensor | float) -> Tokens:
    """A denoiser that is not linear, on both streams and across them."""
    return Tokens((2 * x.video).sin() * (1 - sigma) + x.audio.mean(), x.audio.cos() * sigma + x.video.mean())


def blend(x: Tokens, masks: Tokens, clean: Tokens) -> Tokens:
    streams = zip((x.video, x.audio), (masks.video, masks.audio), (clean.video, clean.audio), strict=True)
    return Tokens(*(a * m + c * (1 - m) for a, m, c in streams))


def official(
    start: Tokens, sigmas: Tensor, seed: int, masks: Tokens, clean: Tokens, **more: object
) -> tuple[Tokens, list[float]]:
    """The peer's loop in float32 on unblended predictions, and the sigmas that it asked at."""
    peer = pytest.importorskip("ltx_pipelines.utils.samplers")
    from ltx_core.components.diffusion_steps import Res2sDiffusionStep
    from ltx_core.types import LatentState

    asked: list[float] = []

    def denoise(video_state: LatentState, audio_state: LatentState, sigmas: Tensor, step_index: int) -> tuple:
        asked.append(float(sigmas[step_index]))
        x0 = bend(Tokens(video_state.latent, audio_state.latent), sigmas[step_index].float())
        return x0.video, x0.audio

    states = [
        LatentState(x, m, torch.zeros(1, 3, x.shape[1], 2), c)
        for x, m, c in (
            (start.video, masks.video, clean.video),
            (start.audio, masks.audio, clean.audio),
        )
    ]
    video, audio = peer.res2s_audio_video_denoising_loop(
        sigmas, *states, Res2sDiffusionStep(), denoise, noise_seed=seed, model_dtype=torch.float32, **more
    )
    return Tokens(video.latent, audio.latent), asked


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_official_loop(start: Tokens, clean: Tokens, off: Callable, schedule: str, mask: str) -> None:
    sigmas, masks = SCHEDULES[schedule], Tokens(*MASKS[mask])
    start = blend(start, masks, clean)
    asked = []

    def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
        assert x.video.dtype == x.audio.dtype == sigma.dtype == torch.float32
        asked.append(sigma.item())
        return blend(bend(x, sigma), masks, clean)

    result = res_2s(denoise, start, sigmas, 77, blend=lambda x: blend(x, masks, clean))
    expected, theirs = official(start, sigmas, 77, masks, clean)
    assert asked == pytest.approx(theirs, rel=1e-6)
    assert off(result.video, expected.video) < 1e-5
    assert off(result.audio, expected.audio) < 1e-5
    assert result.video.dtype == torch.float32


def test_the_anchor_of_small_steps_matters(start: Tokens, clean: Tokens, off: Callable) -> None:
    """The comparison above would notice its absence: without it the official loop ends elsewhere."""
    masks = Tokens(*MASKS["free"])
    with_it, _ = official(start, SCHEDULES["small steps"], 7, masks, clean)
    without, _ = official(start, SCHEDULES["small steps"], 7, masks, clean, bongmath=False)
    assert off(without.video, with_it.video) > 1e-2


@pytest.mark.parametrize("h", [0.01, 0.1, 0.499, 0.7, 2.0, 4.5, 9.0])
def test_weights_are_the_officials(h: float) -> None:
    peer = pytest.importorskip("ltx_pipelines.utils.res2s")
    assert weights(h) == pytest.approx(peer.get_res2s_coefficients(h, {}), rel=1e-9)


@pytest.mark.parametrize("h", [1e-6, 1e-3, 0.3, 1.0, 6.0])
def test_weights_fulfil_the_order_conditions(h: float) -> None:
    """phi_1 and phi_2 by quadrature: a21 = phi_1(-h/2)/2, b1 + b2 = phi_1(-h), b2/2 = phi_2(-h)."""
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    phi1_half, phi1, phi2 = (
        values.mean().item() for values in ((-(1 - t) * h / 2).exp(), (-(1 - t) * h).exp(), (-(1 - t) * h).exp() * t)
    )
    a21, b1, b2 = weights(h)
    assert (a21, b1 + b2, b2 / 2) == pytest.approx((phi1_half / 2, phi1, phi2), rel=1e-7)


def test_the_noise_keeps_its_level() -> None:
    """x = (1-s)·x0 + s·n after each step and at each middle, for a denoiser that knows x0."""
    draw = torch.Generator().manual_seed(3)
    x0 = 2 + 0.5 * torch.randn(1, 200_000, 1, generator=draw)
    states: list[tuple[float, Tensor]] = []

    def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
        states.append((sigma.item(), x.video))
        return Tokens(x0, x0)

    start = torch.randn(x0.shape, generator=draw)
    result = res_2s(denoise, Tokens(start, start), SCHEDULES["ltx2"], 1)
    assert len(states) == 17
    for sigma, x in states:
        noise = (x - (1 - sigma) * x0) / sigma
        assert abs(noise.mean()) < 5 / math.sqrt(x0.numel())
        assert abs(noise.var() - 1) < 5 * math.sqrt(2 / x0.numel()), sigma
    torch.testing.assert_close(result.video, x0, rtol=0, atol=1e-6)


def test_mask_0_stays_clean_to_the_bit(start: Tokens, clean: Tokens) -> None:
    masks = Tokens(*MASKS["partial"])
    masks.audio[:] = 0
    seen = Recorder()
    entering = blend(start, masks, clean)
    result = res_2s(
        lambda x, sigma, step: blend(bend(x, sigma), masks, clean), entering, SIGMAS, 1, Hooks(trace=seen),
        blend=lambda x: blend(x, masks, clean),
    )  # fmt: skip
    assert torch.equal(result.audio, clean.audio) and torch.equal(result.video[:, 0], clean.video[:, 0])
    for name in ("step0/out_audio", "step2/in_audio", "step3/out_audio"):
        assert torch.equal(seen.tensors[name], clean.audio)


def test_the_seed_is_taken_modulo(start: Tokens) -> None:
    def run(seed: int) -> Tensor:
        return res_2s(lambda x, sigma, step: bend(x, sigma), start, SIGMAS, seed).video

    assert torch.equal(run(-1), run(2**64 - 1))
    assert torch.equal(run(2**64 - 10_000), run(-10_000)), "the substep's seed, too"
    assert not torch.allclose(run(1), run(2), atol=1e-2)


def test_denoiser_callback_and_trace(start: Tokens) -> None:
    asked, told, trace = [], [], Recorder()

    def denoise(x: Tokens, sigma: Tensor, step: int) -> Tokens:
        asked.append((round(sigma.item(), 5), step))
        return bend(x, sigma)

    hooks = Hooks(lambda done, total, x0: told.append((done, total, x0.video.shape)), trace=trace)
    res_2s(denoise, start, SIGMAS, 1, hooks)
    middles = [math.sqrt(a * b) for a, b in ((1, 0.9), (0.9, 0.7), (0.7, 0.3), (0.3, 0.0011))]
    wanted = [pair for k, m in enumerate(middles) for pair in ((SIGMAS[k].item(), k), (m, k))] + [(0.0011, 4)]
    assert asked == [(pytest.approx(sigma, abs=1e-5), step) for sigma, step in wanted]
    assert told == [(done, 4, start.video.shape) for done in range(1, 5)]
    assert set(trace.tensors) == {
        f"step{k}/{n}_{s}" for k in range(4) for n in ("in", "x0", "out") for s in ("video", "audio")
    }


def test_callback_may_interrupt(start: Tokens) -> None:
    def stop(done: int, total: int, x0: Tokens) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        res_2s(lambda x, sigma, step: bend(x, sigma), start, SIGMAS, 1, Hooks(stop))


@pytest.mark.parametrize(
    ("sigmas", "sentence"),
    [
        ([1.0], "sigmas has no step"),
        ([1.0, float("nan"), 0.0], "must be above 0"),
        ([1.0, 0.5, 0.5, 0.0], "lower than the one before"),
        ([0.5, 0.7, 0.0], "lower than the one before"),
        ([1.0, 0.001, 0.0], "higher than 0.0011"),
    ],
)
def test_schedules_that_it_cannot_walk(start: Tokens, sigmas: list[float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        res_2s(lambda x, sigma, step: bend(x, sigma), start, torch.tensor(sigmas), 1)


# In the pipeline


@pytest.fixture(scope="module")
def model(tiny_default: TinyFiles) -> nn.Module:
    return load_checkpoint(tiny_default.checkpoint).transformer(torch.float32, "cpu")


def condition(strength: float = 1.0) -> AudioCondition:
    return AudioCondition(
        torch.randn(1, 8, 9, 16, generator=torch.Generator().manual_seed(1)), 9, Fraction(24), strength
    )


def sample(model: nn.Module, **more: object) -> tuple[Tensor, AudioCondition, Noise]:
    draw = torch.Generator().manual_seed(8)
    contexts = [
        TextContext(torch.randn(1, 16, 64, generator=draw), torch.randn(1, 16, 32, generator=draw)) for _ in range(2)
    ]
    settings = {
        "latent": torch.zeros(1, CHANNELS, 2, 2, 3),
        "sigmas": torch.tensor([1.0, 0.7, 0.0]),
        "positive": contexts[0],
        "negative": contexts[1],
        "audio": condition(),
        "noise": Noise(4),
        "sampler": RES_2S,
    }
    return stage.sample(model, settings, **more)


def test_an_image_and_the_audio_hold(model: nn.Module) -> None:
    image = torch.randn(1, CHANNELS, 1, 2, 3, generator=torch.Generator().manual_seed(6))
    seen, plain = Recorder(), Recorder()
    guide = Guide(image, 0, 1.0)
    latent, audio, noise = sample(model, guides=(guide,), guidance=Guidance(3, 1, 0.7, 3), trace=seen)
    assert torch.equal(latent[:, :, :1], image)
    assert audio is not None and torch.equal(audio.latent, condition().latent) and audio.strength == 1
    assert torch.equal(seen.tensors["step1/out_audio"], seen.tensors["step0/in_audio"])
    *_, euler_noise = sample(model, guides=(guide,), sampler=EULER, trace=plain)
    assert torch.equal(plain.tensors["step0/in_video"], seen.tensors["step0/in_video"])
    assert torch.equal(noise.state, euler_noise.state)


def test_partial_audio_is_blended_as_the_official_loop_does(model: nn.Module) -> None:
    latent, audio, _ = sample(model, audio=condition(0.6))
    assert latent.isfinite().all() and audio.strength == 1
    assert not torch.equal(audio.latent, condition().latent)


def test_the_seed_of_the_stage_drives_its_noise(model: nn.Module) -> None:
    """Seed + 10000, as restart's: not the stream that the first noise came from."""
    state = Noise(4).draw((1,))[1].state  # the same first noise for both
    runs = [sample(model, noise=Noise(seed, state))[0] for seed in (4, 4, 5)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2], atol=1e-3)


@pytest.mark.parametrize(
    "more", [{"gamma": 2.0}, {"restart": Restart()}, {"gamma": 2.0, "restart": Restart()}], ids=str
)
def test_it_goes_alone(model: nn.Module, more: dict[str, object]) -> None:
    with pytest.raises(InputError, match="res_2s renews noise by itself; leave out restart and gradient estimation"):
        sample(model, **more)


def test_unknown_sampler(model: nn.Module) -> None:
    with pytest.raises(InputError, match="'heun' is not one of euler, res_2s"):
        sample(model, sampler="heun")


def test_a_device_without_float64_gives_the_same(start: Tokens, clean: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Apple's. The device is simulated (tests/nodes/devices.py)."""
    streams = zip((clean.video, clean.audio), MASKS["partial"], strict=True)
    video, audio = (Stream(own, own, mask, torch.zeros(1, 1, own.shape[1], 2)) for own, mask in streams)

    def sampled(x: Tokens) -> Tokens:
        there = [each.to(x.video.device) for each in (video, audio)]
        return res_2s(
            lambda own, sigma, _: bend(own, float(sigma)),
            x,
            SIGMAS,
            7,
            blend=lambda own: Tokens(*map(Stream.blend, there, (own.video, own.audio))),
        )

    expected = sampled(start)
    monkeypatch.setattr(method, "WITH_FLOAT64", ("cpu", "cuda"))
    with simulated(LACKS) as device:
        made = sampled(start.to(device)).to(torch.device("cpu"))
    assert torch.equal(made.video, expected.video) and torch.equal(made.audio, expected.audio)
