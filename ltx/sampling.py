"""Samples the stages of a job: the transformer with the LoRAs of each stage, the upscaler between them, and the windows
of a film with their noise, their prompts and what is kept of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from .diffusion.attention import attend_by
from .diffusion.compiled import compile_blocks
from .diffusion.conditioning import AudioCondition, Conditions, TextContext
from .diffusion.kept import KeptWindows, limit
from .diffusion.kernels import fuse
from .diffusion.sample_windows import Keep, keep_nothing, noise_seeds, sample_windows, window_inputs
from .diffusion.samplers import Hooks
from .diffusion.upscale import upscale, upscale_long
from .encoding import OnProgress, Prompts
from .errors import InputError
from .grid import CHANNELS, video_shape
from .job import Compute, Job
from .latents import Noise, pixel_frames
from .left import COMPILING, TimeLeft, cost
from .memory.forecast import TRANSFORMER, Forecast
from .memory.offload import Placement, free_pinned, offload_transformer
from .prompt.contexts import fingerprint
from .seen import Seen
from .trace import Trace, under
from .weights.checkpoint import load_upscaler
from .weights.lora import Merger
from .weights.quantized import quicken
from .windows import hard_cuts

T = TypeVar("T")
LOADING, MERGING = "load transformer", "merging LoRAs"
CODE = "compiled"  # the folder of compiled blocks in that of encoded prompts


def sample_stages(
    job: Job,
    compute: Compute,
    prompts: Prompts,
    sounds: tuple[AudioCondition, ...],
    seen: tuple[Seen, ...],
    kept: KeptWindows,
    forecast: Forecast | None,
    observer: Observer,
) -> tuple[Tensor, tuple[AudioCondition, ...], Noise]:
    """Samples both stages, or the only one → the video latent and the resulting sound of each window. The transformer
    is freed afterwards. If nothing but what is kept is wanted, the latent ends where that ends, and it is the first
    stage's if the second has no window. forecast: says where the transformer's blocks wait, and how a step's passes
    run; None to have it whole on the device. Raises InputError if there is no window at all."""
    clip, trace, contexts = job.plan, observer.trace, [context for _, context in prompts.sections]
    placement = None if forecast is None else forecast.offloaded(TRANSFORMER)

    def stage(number: int, latent: Tensor, noises: tuple[Noise, ...], negative: TextContext | None = None) -> Any:
        if transformer is not None:
            observer.begin(number)
            transformer.begin(number, observer.merging(number))
        own = seen[number]
        told = {} if job.source is None else job.source.told(clip)
        heard = sounds
        if number and job.example is not None and job.example.use.hears(first=False):
            heard = tuple(sound.beside_itself for sound in sounds)
        conditions = Conditions(prompts.positive, heard[0], negative, own.guides, own.mask, own.clean, **told)
        return sample_windows(
            None if transformer is None else transformer.model,
            latent,
            window_inputs(clip.windows, heard, clip.sections, contexts, job.request.windows, own.references),
            conditions,
            job.steering[number],
            noises,
            device=compute.device,
            hooks=partial(observer.hooks, number),
            keep=_keep(job, compute, kept, number),
            room=None if forecast is None else forecast.room(number),
        )

    seeds = noise_seeds(clip.sections, job.request.seed, job.request.windows)
    latent = torch.zeros(1, CHANNELS, *video_shape(clip.frames, *clip.first_size[::-1]))
    load = partial(_Transformer, job, compute, placement, observer.merging())
    with nullcontext() if kept.only else observer.loading(load) as transformer:
        latent, sounds, noises = stage(0, latent, tuple(map(Noise, seeds)), prompts.negative)
        if not latent.shape[2]:
            raise InputError(
                f"--as-far-as-it-is: what is kept in {kept.folder} is of another request; use the one that made it."
            )
        if clip.two_stages and pixel_frames(latent) == clip.frames:
            first = (latent, sounds) if kept.only else None
            latent = _upscaled(job, compute, latent, trace)
            latent, sounds, noises = stage(1, latent, noises, prompts.negative if job.steering[1].nag else None)
            latent, sounds = (latent, sounds) if first is None or latent.shape[2] else first
    if trace is not None:
        trace("final/video_latent", latent)
    return latent, sounds, noises[0]


class Observer:
    """Tells of the steps of a job's stages: to `trace` their tensors, to `say` the steps that are done, and, if there
    are several windows, to `left` the seconds that sampling still takes. now: the clock."""

    def __init__(
        self,
        job: Job,
        trace: Trace | None,
        say: OnProgress,
        left: Callable[[float], None] | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self.trace, self._say, self._windows, self._two = trace, say, len(job.plan.windows), job.plan.two_stages
        self._left = left if self._windows > 1 else None
        self._time_left = TimeLeft(_costs(job))
        self._steps = [steering.steps for steering in job.steering]

    def loading(self, load: Callable[..., T], *given: Any) -> T:
        """Loads the transformer by `load`, which takes minutes if it is read from a slow disk."""
        self._say(LOADING, 0, 1)
        loaded = load(*given)
        self._say(LOADING, 1, 1)
        return loaded

    def merging(self, stage: int | None = None) -> Callable[[int, int], None]:
        """What tells once a second of the weights that the LoRAs of a stage are merged into, by default while the
        transformer is loaded."""
        name, last = f"{LOADING if stage is None else self._name(stage)}, {MERGING}", self._now()

        def told(done: int, total: int) -> None:
            nonlocal last
            if (now := self._now()) - last >= 1:
                self._say(name, done, total)
                last = now

        return told

    def begin(self, stage: int) -> None:
        """Tells of a stage before its first step, which may take minutes, as the LoRAs that are merged before it. It
        names no window, because those that are kept are not sampled."""
        self._say(self._name(stage), 0, self._steps[stage])

    def _name(self, stage: int) -> str:
        """A stage in words."""
        return ("first stage", "second stage")[stage] if self._two else "sample"

    def hooks(self, stage: int, window: int) -> Hooks:
        """The hooks of a window in the stage of that number. A clip of one window has no word about it."""
        name, place = self._name(stage), f"s{stage + 1}"
        if self._windows > 1:
            name += f", window {window + 1} of {self._windows}"
            place += f"/window{window}"
        self._time_left.begin(stage, window)
        before, compiling = 0, False  # the steps done; whether this one compiles

        def on_step(done: int, total: int, x0: Any) -> None:
            nonlocal before, compiling
            self._say(name, done, total)
            seconds = self._time_left.step(done, total, usual=not compiling)
            before, compiling = done, False
            if self._left is not None and seconds is not None:
                self._left(seconds)

        def on_compile() -> None:
            nonlocal compiling
            if not compiling:  # a step compiles several forms of the block
                self._say(f"{name}, {COMPILING}", before, self._steps[stage])
            compiling = True

        return Hooks(on_step, trace=under(place, self.trace), on_compile=on_compile)


class _Transformer:
    """The transformer of a job with the LoRAs of the stage that began last. Leaving the context frees the model. told:
    is called with the weights that are merged and all of them, after each."""

    def __init__(
        self, job: Job, compute: Compute, placement: Placement | None, told: Callable[[int, int], None]
    ) -> None:
        checkpoint, device = job.checkpoint, compute.device
        self.loras, self.begun = job.loras, 0
        self.model = checkpoint.transformer(compute.dtype, device if placement is None else "cpu", compute.fp8, device)
        # It also merges into blocks in host memory. A LoRA may be for the text connectors alone.
        self.merger = Merger(self.model, checkpoint.transformer_weight, device, optional=True)
        self.merger.set(job.loras[0], told)
        self.waiting = None if placement is None else offload_transformer(self.model, device, placement)
        attend_by(self.model, compute.attention)
        quicken(self.model, compute.fast_products)
        fuse(self.model, compute.fused)
        if compute.compiled:
            compile_blocks(self.model, folder=job.files.contexts and job.files.contexts / CODE)

    def begin(self, stage: int, told: Callable[[int, int], None]) -> None:
        """Merges the LoRAs of that stage, if those of another one are merged."""
        if stage == self.begun:
            return
        if self.waiting is not None:
            self.waiting.rest()
        self.merger.set(self.loras[stage], told)
        self.begun = stage

    def __enter__(self) -> _Transformer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.waiting is not None:
            self.waiting.release()
        self.model = self.merger = self.waiting = None
        free_pinned()


def _upscaled(job: Job, compute: Compute, latent: Tensor, trace: Trace | None) -> Tensor:
    """The first stage's latent at the full size. The upscaler is freed afterwards."""
    upsampler = load_upscaler(job.files.upscaler, compute.dtype, compute.device)
    statistics, windows = job.checkpoint.video_statistics(), job.plan.windows
    if len(windows) == 1:
        return upscale(upsampler, statistics, latent, trace)
    return upscale_long(upsampler, statistics, latent, hard_cuts(windows), trace)


def _costs(job: Job) -> list[list[float]]:
    """What each window costs in each stage, for the time that is left: nothing if all that it adds is kept."""
    stage, changed = (job.keeps_sound, job.keeps_picture, job.referred), torch.ones(job.plan.windows[-1].stop)
    if job.source is not None and job.keeps_sound:
        changed = job.source.mask(job.plan, job.plan.first_size)[0, 0].flatten(1).amax(1)
    if any(not image.frame for image in job.images):
        changed[0] = 1
    windows = [window for window in job.plan.windows if changed[window.new].any()]
    return [
        [cost(each, size, steering.steps, steering.passes(*stage)) * (each in windows) for each in job.plan.windows]
        for size, steering in zip(job.plan.sizes, job.steering, strict=False)
    ]


def _keep(job: Job, compute: Compute, kept: KeptWindows, number: int) -> Keep:
    """Keeps the windows of the stage of that number if the request has windows and the setting gives them room, or only
    those are wanted that are kept. They are known by the files and the strengths of the weights and by the way to
    compute, in addition to what is sampled."""
    if job.request.windows is None or not (limit() or kept.only):
        return keep_nothing
    loras = [(fingerprint(lora.path), strength) for lora, strength in job.loras[number]]
    weights = fingerprint(job.files.checkpoint, device=compute.device, dtype=compute.dtype)
    return kept.of(
        [weights, loras, compute.fp8, compute.compiled, compute.attention, compute.fused, compute.fast_products]
    )
