"""One stage for tests: `sample` with everything named flat, and what a test leaves out filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from a2v.ltx.diffusion import sample as engine
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions
from a2v.ltx.diffusion.samplers import Hooks
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.latents import Noise
from torch import Tensor, nn


def sample(model: nn.Module, given: Mapping[str, Any], **more: Any) -> tuple[Tensor, AudioCondition, Noise]:
    """A stage by the names of `Conditions`, `Steering`, `Hooks` and of `sample` itself; `more` goes before `given`."""
    settings = {**given, **more}

    def made(cls: type) -> Any:
        return cls(**{f.name: settings.pop(f.name) for f in fields(cls) if f.name in settings})

    conditions, steering, hooks = made(Conditions), made(Steering), made(Hooks)
    return engine.sample(model, conditions=conditions, steering=steering, hooks=hooks, **settings)
