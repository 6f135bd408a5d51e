"""Identity guidance: a pass without the reference's sound, which the guided sound is led away from.
test_reference_sound.py compares both stages with those of ID-LoRA's makers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion import denoiser
from a2v.ltx.diffusion.acceleration import LEVELS
from a2v.ltx.diffusion.guidance import NONE, Guidance
from a2v.ltx.diffusion.passes import Pass
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.errors import InputError
from a2v.ltx.nag import Nag
from a2v.tests.ltx.diffusion.test_audio_strength import EVERY, SIGMAS, hearing, model, same, sample
from a2v.tests.ltx.goldens import relative
from torch import Tensor, nn

__all__ = ["model"]  # the fixture
LED = Guidance(identity=3.0)
TOKENS, HEARD = 9, 5


def referred(strength: float = 0.0) -> Any:
    example = torch.randn(1, 8, HEARD, 16, generator=torch.Generator().manual_seed(9))
    return replace(hearing(strength), reference=example)


def test_the_pass_is_that_of_a_stage_without_the_reference(model: nn.Module) -> None:
    led, plain = sample(model, audio=referred(), audio_guidance=LED), sample(model, 0.0)
    assert led.passes == 2 and plain.passes == 1
    first = {name: (run.trace[f"step0/in_{name}"]) for name in ("video", "audio") for run in (led, plain)}
    assert torch.equal(first["audio"], led.trace["step0/in_audio"][:, :TOKENS]), "both begin with the same noise"
    alone, cond = (led.trace[f"step0/call{call}/audio_x0"] for call in (1, 0))
    assert relative(alone[:, :TOKENS], plain.trace["step0/call0/audio_x0"]) < 1e-5
    assert relative(led.trace["step0/call1/video_x0"], plain.trace["step0/call0/video_x0"]) < 1e-5
    assert torch.equal(alone[:, TOKENS:], cond[:, TOKENS:]), "the example is kept"
    assert relative(alone[:, :TOKENS], cond[:, :TOKENS]) > 1e-3


def test_no_pass_that_hears_the_example_begins_as_a_copy_of_it() -> None:
    text = torch.zeros(1, 4, 64)
    cond, alone, perturbed = (Pass(text, text, perturbed=blocks, alone=own) for blocks, own in
                              (((), False), ((), True), ((1,), False)))  # fmt: skip
    assert (perturbed.departs(cond), perturbed.departs(alone), alone.departs(perturbed)) == (1, None, None)


def test_it_acts_on_the_sound_alone(model: nn.Module) -> None:
    sigmas = torch.tensor([1.0, 0.5])
    led, plain = (sample(model, audio=referred(), audio_guidance=each, sigmas=sigmas) for each in (LED, NONE))
    assert torch.equal(led.video, plain.video) and relative(led.audio.latent, plain.audio.latent) > 1e-2


@pytest.mark.parametrize("audio", [hearing(0.0), hearing(1.0), referred(1.0)], ids=["no example", "kept", "both"])
def test_without_an_example_or_beside_a_kept_sound_it_is_none(model: nn.Module, audio: Any) -> None:
    led, plain = (sample(model, audio=audio, **{**EVERY, "audio_guidance": each}) for each in (LED, NONE))
    assert led.passes == plain.passes and same(led, plain)


@pytest.mark.parametrize("nag", [None, Nag()], ids=["", "nag"])
@pytest.mark.parametrize("texts", [0.0, None], ids=["no kept texts", "kept texts"])
def test_together_and_one_by_one(model: nn.Module, nag: Nag | None, texts: float | None) -> None:
    guided = {"guidance": EVERY["guidance"], "audio_guidance": replace(EVERY["audio_guidance"], identity=3.0)}
    runs = [sample(model, audio=referred(), nag=nag, texts=texts, room=room, **guided) for room in (0.0, 1e12)]
    for name, one in runs[0].trace.items():
        other = runs[1].trace[name]
        assert one.shape == other.shape and relative(one, other) < 1e-5 if one.any() else not other.any(), name


def test_each_block_is_fetched_once_a_step(model: nn.Module) -> None:
    """As many walks through the blocks as steps, whatever the passes: blocks that wait are fetched in each."""
    walks: list[int] = []
    guided = {**EVERY, "audio_guidance": replace(EVERY["audio_guidance"], identity=3.0)}
    sample(model, audio=referred(), on_block=lambda: walks.append(0), **guided)
    assert len(walks) == (len(SIGMAS) - 1) * len(model.transformer_blocks)


def test_room_is_asked_for_the_passes_of_the_batch(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one without the example runs beside the batch, so a forecast that counts the others agrees."""
    asked: list[int] = []
    ask = denoiser.run_as_batch
    monkeypatch.setattr(
        denoiser,
        "run_as_batch",
        lambda model, tokens, passes, room: asked.append(passes) or ask(model, tokens, passes, room),
    )
    guided = {**EVERY, "audio_guidance": replace(EVERY["audio_guidance"], identity=3.0)}
    run = sample(model, audio=referred(), sigmas=torch.tensor([1.0, 0.0]), **guided)
    assert asked == [4] and run.passes == 5


def test_levels_of_acceleration(model: nn.Module) -> None:
    """regular leaves it out of the last steps; the distilled recipe, which has no other guidance, keeps it."""
    steering = Steering(SIGMAS, NONE, LED, LEVELS["regular"])
    with pytest.raises(InputError, match=r"^acceleration: regular leaves guidance out of some steps, but there is no"):
        steering.check(audio_frozen=False)
    steering.check(audio_frozen=False, referred=True)
    sigmas = torch.linspace(1, 0, 11)
    run = sample(model, audio=referred(), sigmas=sigmas, audio_guidance=LED, acceleration=LEVELS["regular"])
    guided = [f"step{step}/call1/audio_x0" in run.trace for step in range(10)]
    assert guided == [True] * 6 + [False] * 4
    full = Steering(SIGMAS, EVERY["guidance"], Guidance(7, 1, 0.7, 3, identity=2.0), LEVELS["full"])
    assert (full.guidance, full.audio_guidance) == (NONE, Guidance(identity=2.0))
    assert full.passes(audio_frozen=False, referred=True) == 2 and full.passes(audio_frozen=False) == 1


def test_steps_that_reuse_blocks(model: nn.Module) -> None:
    """Every pass has its own change to reuse. Below a threshold that nothing reaches, all blocks run."""
    sigmas = torch.linspace(1, 0, 11)

    def run(reuse: float) -> Tensor:
        level = replace(LEVELS["high"], guided=1.0, reuse=reuse)
        return sample(model, audio=referred(), sigmas=sigmas, audio_guidance=LED, acceleration=level).audio.latent

    exact, none, all_others = (run(reuse) for reuse in (0.0, 1e-12, 100.0))
    assert torch.equal(exact, none) and all_others.isfinite().all() and relative(all_others, exact) > 1e-3
