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

from .computing import GPUS
from .diffusion.conditioning import AudioCondition
from .diffusion.decode import decode_video, diffuses, to_uint8
from .diffusion.kept import KeptWindows, sweep
from .diffusion.sound import decode_audio
from .encoding import OnProgress, Prompts, encode_prompts, encode_sound
from .errors import FlaggedError, InputError
from .given import Note
from .job import Compute, Files, Job, prepare
from .latents import Noise, pixel_frames, pixel_size
from .media import crossfade
from .media.audio import Track, soundtrack
from .media.probe import VideoFile
from .media.safety import Watch, load_checker
from .media.video import write_video
from .memory.forecast import Forecast, estimate
from .memory.free import free_memory
from .memory.tiles import choose
from .report import describe
from .request import Request
from .restoring import resounded, restored
from .sampling import Observer, sample_stages
from .seen import encode_pictures
from .trace import Trace


@dataclass(frozen=True)
class Result:
    """The facts of the file that was written, and what the run reports as JSON."""

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
    is called after each step, of several windows, with the seconds that are left. Raises InputError for mistakes in
    the input, if possible before models load, and FlaggedError if the safety checker flags the result.
    """
    compute, say = compute or Compute(), progress or (lambda phase, done, total: None)
    kept = KeptWindows.beside(files.output, resume)
    job = prepare(files, _resumed(request, kept) if resume else request, stg_blocks, kept)
    checker = load_checker(files.safety_checker) if request.enable_safety_checker and files.safety_checker else None
    compute, forecast = _fitting(job, compute, announce)

    prompts = prompts or encode_prompts(job, compute, trace, say, forecast)
    told: dict[str, str] = {}
    sounds = encode_sound(job, compute, trace, _noted(told))
    seen = encode_pictures(job, compute, trace, say, _noted(told))
    notes = _begun(job, kept)
    observer = Observer(job, trace, say, left)
    latent, sounds, noise = sample_stages(job, compute, prompts, sounds, seen, kept, forecast, observer)
    job, short = _as_far_as_it_is(job, latent)
    track = _track(job, compute, sounds, trace)
    notes = [*prompts.notes, *notes, *short, *kept.notes()]

    def report() -> dict[str, Any]:
        written = [prompt for prompt, _ in prompts.sections][: len(job.plan.sections)]
        return describe(job, prompts.prompt, [*notes, *told.values()], written)

    frames = _decoded(job, compute, latent, noise, trace, say, told)
    try:
        video = write_video(
            files.output,
            frames if checker is None else _refuse(Watch(checker, job.plan.written), frames),
            job.plan.fps,
            track,
            format=request.video_output_type,
            quality=request.video_quality,
            write_mode=request.video_write_mode,
            metadata=lambda: {"comment": json.dumps(report(), ensure_ascii=False)},
        )
    except FlaggedError:
        kept.finish()  # what was flagged does not stay on the disk
        raise
    if not short:
        kept.finish()
    return Result(video, report())


def _noted(told: dict[str, str]) -> Note:
    """A function that puts each sentence into `told` once."""
    return lambda sentence: told.update({sentence: sentence})


def _resumed(request: Request, kept: KeptWindows) -> Request:
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
    if job.request.windows is None:
        return []
    kept.begin(job.request.seed)
    if kept.only:
        return []
    return [
        f"the windows of a run that was ended long ago were deleted: {name}" for name in sweep(kept.folder.parent, kept)
    ]


def _as_far_as_it_is(job: Job, latent: Tensor) -> tuple[Job, list[str]]:
    """The job of a film that ends where `latent` does, and the note that says so, if it is not the whole."""
    clip, (height, width) = job.plan, pixel_size(latent)
    frames, half = pixel_frames(latent), (width, height) != (clip.width, clip.height)
    if frames == clip.frames and not half:
        return job, []
    shorter = replace(
        clip,
        width=width,
        height=height,
        frames=frames,
        shown=min(clip.shown, frames),
        tail=clip.tail if frames == clip.frames else 0,
        two_stages=clip.two_stages and not half,
        windows=tuple(window for window in clip.windows if window.stop <= latent.shape[2]),
        sections=tuple(each for each in clip.sections if each.first_latent(clip.fps) < latent.shape[2]),
    )
    note = f"written as far as it is: {frames} of {clip.frames} frames"
    note += ", at half the size, because no window of the second stage is finished" if half else ""
    return replace(job, plan=shorter), [note]


def _fitting(
    job: Job, compute: Compute, announce: Callable[[Forecast], None] | None
) -> tuple[Compute, Forecast | None]:
    """Makes the job fit into memory. Returns `compute` with tiles that fit, and the forecast, which says where blocks
    wait; None where nobody asks and there is no GPU."""
    if announce is None and torch.device(compute.device).type not in GPUS:
        return compute, None
    forecast = estimate(job, compute)
    if announce is not None:
        announce(forecast)
    return replace(compute, tiling=forecast.tiling), forecast


def _track(job: Job, compute: Compute, sounds: tuple[AudioCondition, ...], trace: Trace | None) -> Track | None:
    """The sound of the file: the source's own samples, or the sound that the first stage made of them. None for a
    source without sound."""
    clip = job.plan
    if trace is not None:
        for number, sound in enumerate(sounds):
            trace(f"final/audio_latent{number or ''}", sound.latent)
    if job.silent:
        return None
    if job.keeps_sound:
        return soundtrack(job.track, clip.written, clip.fps)
    vae = job.checkpoint.audio_decoder(compute.dtype, compute.device)
    vocoder = job.checkpoint.vocoder(torch.float32, compute.device)  # it is small, and bfloat16 would be audible
    parts = []
    for sound in sounds:
        parts.append(decode_audio(vae, vocoder, sound.latent, sound.frames, clip.fps))
    made = crossfade.join(parts, [window.starts_at(clip.fps) for window in clip.windows])
    if job.renews_sound:
        made = resounded(made, job.track, job.source, clip)
    return soundtrack(made, clip.written, clip.fps)


def _decoded(
    job: Job,
    compute: Compute,
    latent: Tensor,
    noise: Noise,
    trace: Trace | None,
    say: OnProgress,
    told: dict[str, str],
) -> Iterator[Tensor]:
    """Decodes the latent → uint8 frames. told: gets the notes for the report, of which the last of each kind counts:
    the tiles, that memory ran out, and that the source or its mask is damaged."""
    grid, device = tuple(latent.shape[2:]), torch.device(compute.device)
    room = free_memory(device) if compute.tiling is not None and compute.tiling.open else 0
    decoder = job.checkpoint.video_decoder(compute.dtype, compute.device)
    tiling = compute.tiling and choose(decoder, grid, compute.tiling, device.type, room)
    decode = partial(decode_video, decoder, latent, tiling, noise=noise)
    decoded = decode(
        lambda done, total: say("decode", done, total),
        on_tiles=lambda sentence: told.update(tiles=sentence),
        on_retry=lambda note: told.update(retried=note),
    )
    if trace is not None and diffuses(decoder):
        trace("final/frames_u8_chunked", torch.cat([to_uint8(chunk) for chunk in decode(continued=True)]))
    frames = _frames(decoded, trace)
    if job.source is None:
        return frames
    return restored(frames, job.source, job.plan, _noted(told))


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
