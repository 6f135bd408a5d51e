"""Steering: all settings that say how a stage is sampled. They are made and checked here, before a model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..models import V23
from ..nag import Nag
from ..request import Request
from . import schedules
from .acceleration import EXACT, Acceleration, level
from .guidance import NONE, Guidance, needed
from .res_2s import falling
from .samplers import Restart

EULER, RES_2S, ANCESTRAL = SAMPLERS = ("euler", "res_2s", "euler_ancestral")
RENEWING = (RES_2S, ANCESTRAL)  # these renew noise by themselves
INERT = (
    "the distilled recipe of LTX-2.5 renews noise in each step; restart sampling and gradient estimation do nothing in "
    "its first stage"
)


@dataclass(frozen=True, eq=False)
class Steering:
    """How a stage is sampled.

    sigmas: float32 [steps + 1] on the CPU. guidance: for the picture; audio_guidance: for the sound. restart: fresh
    noise during sampling. gamma: the factor of gradient estimation, 0 for off. sampler: one of SAMPLERS. nag: leads the
    passes with the prompt away from the negative prompt, in the streams that are not frozen. An
    acceleration level changes settings here: the distilled recipe has no guidance but that of identity, and LTX-2.5's
    samples with euler_ancestral, without restart and gamma. Raises InputError if a value is out of range or the
    settings do not fit together.
    """

    sigmas: Tensor
    guidance: Guidance = NONE
    audio_guidance: Guidance = NONE
    acceleration: Acceleration = EXACT
    restart: Restart | None = None
    gamma: float = 0.0
    sampler: str = EULER
    nag: Nag | None = None

    def __post_init__(self) -> None:
        final = {"sigmas": schedules.checked(self.sigmas), "restart": self.restart or None}
        if self.nag is not None and not self.nag.acts:
            final["nag"] = None
        if self.acceleration.distilled:
            final |= {name: Guidance(identity=getattr(self, name).identity) for name in ("guidance", "audio_guidance")}
        if self.acceleration.ancestral and self.sampler == EULER:
            final |= {"sampler": ANCESTRAL, "restart": None, "gamma": 0.0}
        for name, value in final.items():
            object.__setattr__(self, name, value)
        if self.sampler not in SAMPLERS:
            raise InputError(f"sampler: {self.sampler!r} is not one of {', '.join(SAMPLERS)}.")
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise InputError(f"gamma is {self.gamma}: give a number of at least 0.")
        if self.sampler in RENEWING and (self.gamma or self.restart):
            raise InputError(
                f"sampler: {self.sampler} renews noise by itself; leave out restart and gradient estimation."
            )
        if self.sampler == RES_2S:
            falling(self.sigmas)  # for its errors

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def acting(
        self, audio_frozen: bool, video_frozen: bool = False, referred: bool = False
    ) -> tuple[Guidance, Guidance]:
        """The guidance of the picture and the guidance of the sound that take effect: a frozen stream is not guided,
        and identity is only where the stage hears a reference (`referred`)."""
        both = NONE if video_frozen else self.guidance, NONE if audio_frozen else self.audio_guidance
        return both if referred else tuple(replace(each, identity=0.0) for each in both)

    def passes(self, audio_frozen: bool, video_frozen: bool = False, referred: bool = False) -> int:
        """Number of transformer passes in a guided step."""
        return 1 + sum(needed(*self.acting(audio_frozen, video_frozen, referred)))

    def check(
        self,
        audio_frozen: bool,
        negative: bool = True,
        layers: int | None = None,
        video_frozen: bool = False,
        referred: bool = False,
    ) -> None:
        """Raises InputError if a stage cannot be sampled with these settings.

        negative: whether there is a negative prompt. layers: number of the transformer's blocks, None if unknown.
        referred: whether the stage hears a reference.
        """
        acting = self.acting(audio_frozen, video_frozen, referred)
        if self.acceleration.guided < 1 and not self.acceleration.reuse and not any(needed(*acting)):
            raise InputError(
                "acceleration: regular leaves guidance out of some steps, but there is no guidance (every scale is "
                "neutral); choose none or high."
            )
        if any(guidance.runs_uncond for guidance in acting) and not negative:
            raise InputError(
                "negative prompt: missing, and a CFG scale other than 1 needs it; connect one or set CFG to 1."
            )
        if self.nag is not None and not negative:
            raise InputError(
                "negative prompt: missing, and NAG leads away from it; connect one to this sampler, or leave out NAG."
            )
        if layers is not None:
            for guidance in acting:
                guidance.blocks(layers)
        if self.restart is not None:
            self.restart.walk(self.sigmas)


def steer(request: Request, stg_blocks: tuple[int, ...] = (), version: str = V23.version) -> tuple[Steering, Steering]:
    """The steering of a request's first and second stage. stg_blocks: the blocks that STG perturbs, by default those of
    the model. version: the transformer's. Raises InputError as `Steering`."""
    acceleration = level(request.acceleration, version)
    sigmas = schedules.SCHEDULES[request.scheduler](request.num_inference_steps)
    gamma = request.gradient_estimation_gamma
    first = Steering(
        schedule_under(acceleration, sigmas),
        _guidance(request, "video", stg_blocks),
        _guidance(request, "audio", stg_blocks),
        acceleration,
        Restart() if request.use_restart_sampling else None,
        gamma,
        nag=request.nag,
    )
    return first, Steering(torch.tensor(schedules.REFINE), gamma=gamma, nag=request.nag)


def schedule_under(acceleration: Acceleration, sigmas: Tensor) -> Tensor:
    """The sigmas of the first stage under an acceleration level. The distilled recipe replaces the given ones."""
    return torch.tensor(schedules.DISTILLED) if acceleration.distilled else sigmas


def _guidance(request: Request, stream: str, stg_blocks: tuple[int, ...]) -> Guidance:
    scales = ("cfg", "stg", "rescaling", "modality")
    identity = request.reference.identity if stream == "audio" and request.reference is not None else 0.0
    return Guidance(*(getattr(request, f"{stream}_{scale}_scale") for scale in scales), stg_blocks, identity)
