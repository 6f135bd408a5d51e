"""Acceleration levels: what is left out, counted; what it costs, bounded; and what it is refused for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion import denoiser, schedules
from a2v.ltx.diffusion.acceleration import LEVELS, Acceleration, full_strength
from a2v.ltx.diffusion.conditioning import AudioCondition, TextContext
from a2v.ltx.diffusion.guidance import NONE, Guidance
from a2v.ltx.diffusion.passes import Reuse
from a2v.ltx.diffusion.samplers import Restart
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.errors import InputError
from a2v.ltx.grid import CHANNELS, audio_length
from a2v.ltx.latents import Noise
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx import stage
from a2v.tests.tiny import TinyFiles
from torch import Tensor, nn

GUIDANCE = Guidance(3, 1, 0.7, 3)
STEPS = 15
SIGMAS = schedules.beta(STEPS)
FORWARD = 4 + 4 + 2 + 4  # block runs of a guided step with four blocks, of which STG perturbs the third


@pytest.fixture(scope="module")
def model(tiny_default: TinyFiles) -> nn.Module:
    return load_checkpoint(tiny_default.checkpoint).transformer(torch.float32)


@pytest.fixture
def count(model: nn.Module) -> Iterator[Callable[[], int]]:
    """How many rows the blocks have run since the last call."""
    rows: list[int] = []
    hooks = [b.register_forward_pre_hook(lambda _, args: rows.append(len(args[0]))) for b in model.transformer_blocks]

    def counted() -> int:
        total = sum(rows)
        rows.clear()
        return total

    yield counted
    for hook in hooks:
        hook.remove()


def sample(model: nn.Module, acceleration: Acceleration, **more: Any) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    texts = [TextContext(*(torch.randn(1, 16, w, generator=draw) for w in (64, 32))) for _ in range(2)]
    sound = torch.randn((1, 8, audio_length(9, Fraction(24)), 16), generator=draw)
    settings: dict[str, Any] = {
        "latent": torch.zeros(1, CHANNELS, 2, 2, 3),
        "sigmas": SIGMAS,
        "positive": texts[0],
        "negative": texts[1],
        "audio": AudioCondition(sound, 9, Fraction(24)),
        "noise": Noise(4),
        "guidance": GUIDANCE,
    }
    return stage.sample(model, settings, acceleration=acceleration, **more)[0]


def test_none_runs_every_step_in_full(model: nn.Module, count: Callable[[], int]) -> None:
    sample(model, LEVELS["none"])
    assert count() == STEPS * FORWARD


@pytest.mark.parametrize(("share", "guided"), [(1.0, 15), (0.6, 9), (0.5, 8), (0.0, 0)])
def test_guidance_in_the_first_part_of_the_steps(
    model: nn.Module, count: Callable[[], int], share: float, guided: int
) -> None:
    sample(model, Acceleration(share))
    assert count() == guided * FORWARD + (STEPS - guided) * 4
    assert LEVELS["regular"] == Acceleration(0.6)


def test_an_unguided_step_is_the_plain_prediction(model: nn.Module) -> None:
    assert torch.equal(sample(model, Acceleration(0.0)), sample(model, LEVELS["none"], guidance=NONE))


def test_by_sigma_not_by_count(model: nn.Module, count: Callable[[], int]) -> None:
    """Restart proper takes steps twice: those above the limit are guided each time, those below never."""
    restart = Restart(share=0, times=1, sigma_min=0.3, sigma_max=0.7)
    sigmas = schedules.beta(STEPS)
    limit = Acceleration(0.6).guided_above(sigmas)
    walk = [float(sigmas[step]) for step, _ in restart.walk(sigmas)]
    guided = sum(sigma > limit for sigma in walk)
    sample(model, Acceleration(0.6), restart=restart)
    assert count() == guided * FORWARD + (len(walk) - guided) * 4 and len(walk) > STEPS


@pytest.mark.parametrize("guidance", [GUIDANCE, NONE], ids=["guided", "plain"])
def test_reused_blocks(
    model: nn.Module, count: Callable[[], int], off: Callable, monkeypatch: pytest.MonkeyPatch, guidance: Guidance
) -> None:
    """With a threshold above every change all but the first and last step are spared: one block each for a pass that
    runs from the start, none for the perturbed one, which begins later. The cost grows with the threshold from none."""
    caches: list[Reuse] = []
    monkeypatch.setattr(denoiser, "Reuse", lambda *given: caches.append(Reuse(*given)) or caches[-1])
    exact = sample(model, LEVELS["none"], guidance=guidance)
    whole, first = (FORWARD, 3) if guidance is GUIDANCE else (4, 1)
    count()
    errors = []
    for threshold in (1e-9, 0.05, 0.1, 1e9):
        errors.append(float(off(sample(model, Acceleration(reuse=threshold), guidance=guidance), exact)))
        spared = caches[-1].skipped
        assert count() == STEPS * whole - spared * (whole - first)
    assert [cache.skipped for cache in caches][::3] == [0, STEPS - 2]
    assert errors[0] == 0 and errors == sorted(errors) and 1e-3 < errors[-1] < 1


def test_the_cache_is_used_again_exactly_where_nothing_changed(model: nn.Module, off: Callable) -> None:
    """A schedule that stands still: the second step's prediction is the first one's, cached or not."""
    sigmas = torch.tensor([0.8, 0.8, 0.4, 0.0])
    runs = []
    for level in (Acceleration(), Acceleration(reuse=1e-6)):
        traced: dict[str, Tensor] = {}
        sample(model, level, sigmas=sigmas, trace=traced.__setitem__)
        runs.append(traced)
    assert torch.equal(runs[0]["step1/in_video"], runs[0]["step0/in_video"])
    for call in range(4):
        assert off(runs[1][f"step1/call{call}/video_x0"], runs[0][f"step1/call{call}/video_x0"]) < 1e-5
    assert off(runs[1]["step2/x0_video"], runs[0]["step2/x0_video"]) < 1e-5


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"^acceleration: regular .* neutral"):
        Steering(SIGMAS, NONE, Guidance(rescale=0.5), LEVELS["regular"]).check(audio_frozen=False)
    with pytest.raises(InputError, match=r"^acceleration: regular .* neutral"):
        Steering(SIGMAS, NONE, Guidance(modality=3), LEVELS["regular"]).check(audio_frozen=True)
    for level in ("none", "high", "full"):
        Steering(SIGMAS, acceleration=LEVELS[level]).check(audio_frozen=True)
    Steering(SIGMAS, NONE, Guidance(modality=3), LEVELS["regular"]).check(audio_frozen=False)
    with pytest.raises(InputError, match=r"^acceleration: full needs .*distilled"):
        full_strength("ltx-2.3-22b-dev.safetensors", False)
    assert full_strength("ltx-2.3-22b-dev.safetensors", True) == 1
    assert full_strength("ltx-2.3-22b-distilled-1.1.safetensors", True) == 0
    for wrong in ({"guided": 1.1}, {"guided": -0.1}, {"reuse": float("nan")}, {"reuse": -1}):
        with pytest.raises(InputError):
            Acceleration(**wrong)
