"""Runs a headless job from files to a finished video: the calls to the other modules, in order.

Each model is loaded for its phase and freed afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .diffusion.block import compile_blocks
from .diffusion.conditioning import AudioCondition, Conditions, Guide
from .diffusion.decode import decode_video, diffuses, to_uint8
from .diffusion.kept import KeptWindows, sweep
from .diffusion.sample_windows import Keep, WindowInputs, keep_nothing, sample_windows
from .diffusion.samplers import Hooks
from .diffusion.sound import decode_audio
from .diffusion.upscale import upscale, upscale_long
from .encoding import OnProgress, Prompts, encode_images, encode_prompts, encode_sound
from .errors import FlaggedError, InputError
from .job import Compute, Files, Job, prepare
from .latents import CHANNELS, SPACE_SCALE, Noise, pixel_frames, video_shape
from .left import TimeLeft, cost
from .media import crossfade
from .media.audio import Track, soundtrack
from .media.probe import VideoFile
from .media.safety import Watch, load_checker
from .media.video import write_video
from .memory.forecast import EXPANDER, GEMMA, TRANSFORMER, Forecast, estimate
from .memory.offload import offload_transformer
from .prompt.contexts import fingerprint
from .report import describe
from .request import Request
from .timeline import streams
from .trace import Trace, under
from .weights.checkpoint import load_upscaler
from .weights.lora import Merger
from .windows import WindowSize


@dataclass(frozen=True)
class Result:
    video: VideoFile
    report: dict[str, Any]


@torch.inference_mode()
def run(
    files: Files,
    request: Request,
    compute: Compute | None = None,
    *,
    stg_blocks: tuple[int, ...] = (),
    prompts: Prompts | None = None,
    announce: Callable[[Forecast], None] | None = None,
    trace: Trace | None = None,
    progress: OnProgress | None = None,
    resume: bool | str = False,
    left: Callable[[float], None] | None = None,
) -> Result:
    """Runs a whole job, from files to a finished file.

    prompts: prompts that are encoded already; Gemma is then not loaded. announce: is called with the memory forecast
    before anything loads. trace: receives the run's tensors. progress: is called after each step of a phase. resume:
    goes on from the windows that an ended run of this output kept; AS_FAR_AS_IT_IS makes a film of these alone. left:
    is called after each step of a window with the seconds that sampling still takes. Raises InputError for mistakes in
    the input, if possible before models load, and FlaggedError if the safety checker flags the result.
    """
    compute, say = compute or Compute(), progress or (lambda phase, done, total: None)
    kept = KeptWindows.beside(files.output, resume)
    forget = kept.remove if request.windows is not None else lambda: None
    job = prepare(files, _resumed(request, kept, resume) if resume else request, stg_blocks)
    checker = load_checker(files.safety_checker) if request.enable_safety_checker and files.safety_checker else None
    compute, offloaded = _fitting(job, compute, announce)

    prompts = prompts or encode_prompts(job, compute, trace, say, offloaded)
    sounds = encode_sound(job, compute, trace)
    guides = encode_images(job, compute, trace)
    notes = _begun(job, kept)
    latent, sounds, noise = _sample(
        job, compute, prompts, sounds, guides, kept, TRANSFORMER in offloaded, trace, say, left
    )
    if kept.only:
        job, short = _as_far_as_it_is(job, latent)
        notes += short
        forget = forget if not short else lambda: None
    if trace is not None:
        trace("final/video_latent", latent)
    track = _track(job, compute, sounds, trace)
    retried: list[str] = []  # only the last note counts

    def report() -> dict[str, Any]:
        gone_on = [f"{kept.used} windows of an earlier run were used again"] if kept.used else []
        written = [prompt for prompt, _ in prompts.sections][: len(job.plan.sections)]
        return describe(job, prompts.prompt, [*prompts.notes, *notes, *gone_on, *retried[-1:]], written)

    frames = _decoded(job, compute, latent, noise, trace, say, retried)
    try:
        video = write_video(
            files.output,
            frames if checker is None else _refuse(Watch(checker, job.plan.frames), frames),
            job.plan.fps,
            track,
            format=request.video_output_type,
            quality=request.video_quality,
            write_mode=request.video_write_mode,
            metadata=lambda: {"comment": json.dumps(report(), ensure_ascii=False)},
        )
    except FlaggedError:
        forget()  # what was flagged does not stay on the disk
        raise
    forget()
    return Result(video, report())


def _resumed(request: Request, kept: KeptWindows, resume: bool | str) -> Request:
    """The request with the seed of the run that was ended, if it names none. Raises InputError if it has no windows, or
    nothing is there for a film of what is kept."""
    if request.windows is None:
        flag = "--as-far-as-it-is" if kept.only else "--resume"
        raise InputError(f"{flag}: only a film in windows can go on; add windows to the request.")
    if kept.only and not kept.count():
        raise InputError(f"--as-far-as-it-is: no windows are kept in {kept.folder}; run the film without it first.")
    seed = kept.seed()
    return request if seed is None or "seed" in request.given else replace(request, seed=seed)


def _begun(job: Job, kept: KeptWindows) -> list[str]:
    """Prepares the keeping of windows, if the request has them. Returns notes on what was deleted."""
    if job.request.windows is None or kept.only:
        return []
    kept.begin(job.request.seed)
    return [
        f"the windows of a run that was ended long ago were deleted: {name}" for name in sweep(kept.folder.parent, kept)
    ]


def _as_far_as_it_is(job: Job, latent: Tensor) -> tuple[Job, list[str]]:
    """The job of a film that ends where `latent` does, and the note that says so, if it is not the whole."""
    clip, (height, width) = job.plan, (side * SPACE_SCALE for side in latent.shape[3:])
    frames, half = pixel_frames(latent), (width, height) != (clip.width, clip.height)
    if frames == clip.frames and not half:
        return job, []
    shorter = replace(
        clip,
        width=width,
        height=height,
        frames=frames,
        two_stages=clip.two_stages and not half,
        windows=tuple(window for window in clip.windows if window.stop <= latent.shape[2]),
        sections=tuple(each for each in clip.sections if each.first_latent(clip.fps) < latent.shape[2]),
    )
    note = f"written as far as it is: {frames} of {clip.frames} frames"
    note += ", at half the size, because no window of the second stage is finished" if half else ""
    return replace(job, plan=shorter), [note]


def _fitting(job: Job, compute: Compute, announce: Callable[[Forecast], None] | None) -> tuple[Compute, frozenset[str]]:
    """Makes the job fit into memory. Returns `compute` with tiles that fit, and the names of the models whose blocks
    wait in host memory."""
    if announce is None and torch.device(compute.device).type != "cuda":
        return compute, frozenset()
    forecast = estimate(job, compute)
    if announce is not None:
        announce(forecast)
    offloaded = frozenset(name for name in (EXPANDER, GEMMA, TRANSFORMER) if forecast.offloaded(name))
    return replace(compute, tiling=forecast.tiling), offloaded


def _sample(
    job: Job,
    compute: Compute,
    prompts: Prompts,
    sounds: tuple[AudioCondition, ...],
    guides: tuple[tuple[Guide, ...], tuple[Guide, ...]],
    kept: KeptWindows,
    offload: bool,
    trace: Trace | None,
    say: OnProgress,
    left: Callable[[float], None] | None,
) -> tuple[Tensor, tuple[AudioCondition, ...], Noise]:
    """Samples both stages, or the only one → the video latent and the resulting sound of each window. The transformer
    is freed afterwards. If nothing but what is kept is wanted, the latent ends where that ends, and it is the first
    stage's if the second has no window. Raises InputError if there is no window at all."""
    clip, time_left = job.plan, TimeLeft(_costs(job))
    transformer = None if kept.only else _Transformer(job, compute, offload)

    def stage(number: int, latent: Tensor, conditions: Conditions, noises: tuple[Noise, ...]) -> Any:
        if transformer is not None:
            transformer.begin(number)
        return sample_windows(
            None if transformer is None else transformer.model,
            latent,
            _parts(job, prompts, sounds),
            conditions,
            job.steering[number],
            noises,
            device=compute.device,
            hooks=partial(_hooks, job, number, trace, say, time_left, left),
            keep=_keep(job, compute, kept, number),
        )

    conditions = Conditions(prompts.positive, sounds[0], prompts.negative, guides[0])
    latent = torch.zeros(1, CHANNELS, *video_shape(clip.frames, *clip.first_size[::-1]))
    latent, sounds, noises = stage(0, latent, conditions, tuple(map(Noise, _seeds(job))))
    if not latent.shape[2]:
        raise InputError(
            f"--as-far-as-it-is: what is kept in {kept.folder} is of another request; use the one that made it."
        )
    if clip.two_stages and pixel_frames(latent) == clip.frames:
        first = (latent, sounds) if kept.only else None
        latent = _upscaled(job, compute, latent, trace)
        latent, sounds, noises = stage(1, latent, Conditions(prompts.positive, sounds[0], guides=guides[1]), noises)
        latent, sounds = (latent, sounds) if first is None or latent.shape[2] else first
    if transformer is not None:
        transformer.release()
    return latent, sounds, noises[0]


class _Transformer:
    """The transformer of a job with the LoRAs of the stage that began last."""

    def __init__(self, job: Job, compute: Compute, offload: bool) -> None:
        checkpoint, device = job.checkpoint, compute.device
        self.loras, self.begun = job.loras, 0
        self.model = checkpoint.transformer(compute.dtype, "cpu" if offload else device, compute.fp8, device)
        # It also merges into blocks in host memory. A LoRA may be for the text connectors alone.
        self.merger = Merger(self.model, checkpoint.transformer_weight, device, optional=True)
        self.merger.set(job.loras[0])
        self.waiting = offload_transformer(self.model, device) if offload else None
        if compute.compiled:
            compile_blocks(self.model)

    def begin(self, stage: int) -> None:
        """Merges the LoRAs of that stage, if those of another one are merged."""
        if stage == self.begun:
            return
        if self.waiting is not None:
            self.waiting.rest()
        self.merger.set(self.loras[stage])
        self.begun = stage

    def release(self) -> None:
        if self.waiting is not None:
            self.waiting.release()


def _upscaled(job: Job, compute: Compute, latent: Tensor, trace: Trace | None) -> Tensor:
    """The first stage's latent at the full size. The upscaler is freed afterwards."""
    upsampler = load_upscaler(job.files.upscaler, compute.dtype, compute.device)
    statistics, windows = job.checkpoint.video_statistics(), job.plan.windows
    if len(windows) == 1:
        return upscale(upsampler, statistics, latent, trace)
    return upscale_long(upsampler, statistics, latent, [w.new.start for w in windows if w.given == 1], trace)


def _costs(job: Job) -> list[list[float]]:
    """What each window costs in each stage, for the time that is left."""
    frozen = job.request.audio_strength == 1
    stages = zip(job.plan.sizes, job.steering, strict=False)
    return [
        [cost(window, size, steering.steps, steering.passes(frozen)) for window in job.plan.windows]
        for size, steering in stages
    ]


def _seeds(job: Job) -> tuple[int, ...]:
    """The seed of each stream of noise: those of the sections, then those of windows with a seed of their own."""
    size = job.request.windows
    return (*streams(job.plan.sections, job.request.seed)[1], *(seed for _, seed in (size.seeds if size else ())))


def _parts(job: Job, prompts: Prompts, sounds: tuple[AudioCondition, ...]) -> list[WindowInputs]:
    """The windows of a job, each with its sound, the prompt of its section, and the number of its stream of noise."""
    numbers, seeds = streams(job.plan.sections, job.request.seed)
    size, parts = job.request.windows or WindowSize(), []
    own = {number - 1: len(seeds) + place for place, (number, _) in enumerate(size.seeds)}
    for number, (window, sound) in enumerate(zip(job.plan.windows, sounds, strict=True)):
        section = job.plan.section_of(window)
        positive = prompts.sections[section][1] if prompts.sections else None
        parts.append(
            WindowInputs(window, sound, positive, numbers[section], own.get(number), section, size.anchor, size.drift)
        )
    return parts


def _hooks(
    job: Job,
    number: int,
    trace: Trace | None,
    say: OnProgress,
    time_left: TimeLeft,
    left: Callable[[float], None] | None,
    window: int,
) -> Hooks:
    """The hooks of a window in the stage of that number. A clip of one window has no word about it."""
    count = len(job.plan.windows)
    name = ("first stage", "second stage")[number] if job.plan.two_stages else "sample"
    name += f", window {window + 1} of {count}" if count > 1 else ""
    place = f"s{number + 1}" + (f"/window{window}" if count > 1 else "")
    time_left.begin(number, window)

    def on_step(done: int, total: int, x0: Any) -> None:
        say(name, done, total)
        seconds = time_left.step(done, total)
        if left is not None and seconds is not None:
            left(seconds)

    return Hooks(on_step, trace=under(place, trace))


def _keep(job: Job, compute: Compute, kept: KeptWindows, number: int) -> Keep:
    """Keeps the windows of the stage of that number if the request has windows. They are known by the files and the
    strengths of the weights and by the way to compute, in addition to what is sampled."""
    if job.request.windows is None:
        return keep_nothing
    loras = [(fingerprint(lora.path), strength) for lora, strength in job.loras[number]]
    weights = fingerprint(job.files.checkpoint, device=compute.device, dtype=compute.dtype)
    return kept.of([weights, loras, compute.fp8, compute.compiled])


def _track(job: Job, compute: Compute, sounds: tuple[AudioCondition, ...], trace: Trace | None) -> Track:
    """The sound of the file: the source's own samples, or the sound that the first stage made of them."""
    clip = job.plan
    if job.request.audio_strength == 1:
        return soundtrack(job.track, clip.frames, clip.fps)
    vae = job.checkpoint.audio_decoder(compute.dtype, compute.device)
    vocoder = job.checkpoint.vocoder(torch.float32, compute.device)  # it is small, and bfloat16 would be audible
    parts = []
    for number, sound in enumerate(sounds):
        if trace is not None:
            trace(f"final/audio_latent{number or ''}", sound.latent)
        parts.append(decode_audio(vae, vocoder, sound.latent, sound.frames, clip.fps))
    return crossfade.join(parts, [window.starts_at(clip.fps) for window in clip.windows])


def _decoded(
    job: Job,
    compute: Compute,
    latent: Tensor,
    noise: Noise,
    trace: Trace | None,
    say: OnProgress,
    retried: list[str],
) -> Iterator[Tensor]:
    """Decodes the latent → uint8 frames. retried: gets a note each time the tiles become smaller."""
    decoder = job.checkpoint.video_decoder(compute.dtype, compute.device)
    decode = partial(decode_video, decoder, latent, compute.tiling, noise=noise)
    decoded = decode(lambda done, total: say("decode", done, total), on_retry=retried.append)
    if trace is not None and diffuses(decoder):
        trace("final/frames_u8_chunked", torch.cat([to_uint8(chunk) for chunk in decode(continued=True)]))
    return _frames(decoded, trace)


def _refuse(watch: Watch, frames: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yields the frames. Raises FlaggedError if the safety checker flags one."""
    for chunk in watch(frames):
        if watch.flagged:
            raise FlaggedError(
                "the safety checker flagged the result, and nothing was written; change the prompt or the images, or "
                "set enable_safety_checker to false."
            )
        yield chunk


def _frames(chunks: Iterator[Tensor], trace: Trace | None) -> Iterator[Tensor]:
    """Decoded floats → uint8 for the file. The trace gets all of them at the end."""
    kept = []
    for chunk in chunks:
        frames = to_uint8(chunk)
        if trace is not None:
            kept.append(frames)
        yield frames
    if trace is not None:
        trace("final/frames_u8", torch.cat(kept))
