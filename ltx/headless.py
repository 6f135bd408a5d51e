"""Runs the job of a command line, with bars on standard error."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import av
import torch
import transformers
from tqdm import tqdm

from .computing import BLOCKS, CPU, WITH_COMPILER
from .devices import has_bfloat16, is_there, usual, usual_dtype
from .diffusion.kept import AS_FAR_AS_IT_IS, KeptWindows
from .diffusion.tiling import Tiling
from .errors import INTERRUPTED, FlaggedError, InputError
from .job import Compute, Files
from .left import told
from .models import ENCODER
from .pipeline import Result, run
from .request import Request
from .terminal import on_end
from .trace import Recorder


class Bars:
    """One terminal bar for each phase, on standard error. The windows of a stage share a line: what follows a comma in
    the phase's name does not begin another one."""

    def __init__(self) -> None:
        self.phase, self.bar = "", None

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self.phase:
            if self.bar is not None:
                self.bar.leave = phase.partition(",")[0] != self.phase.partition(",")[0]
            self.close()
            # With a delay the bar is not shown while it is made: an interrupt could not end its line then.
            line = {"desc": phase, "unit": "", "file": sys.stderr, "dynamic_ncols": True, "delay": 1e-9}
            self.phase, self.bar = phase, tqdm(total=total, **line)
            self.bar.refresh()
        self.bar.update(done - self.bar.n)

    def left(self, seconds: float) -> None:
        """Shows how long the windows of all stages still take."""
        if self.bar is not None:
            self.bar.set_postfix_str(told(seconds))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None


def text_encoder_of(arguments: argparse.Namespace) -> Path:
    """The named text encoder, or the one of the checkpoint's folder. Raises InputError if there is none."""
    if arguments.text_encoder is not None:
        return arguments.text_encoder
    if (arguments.checkpoint / ENCODER).is_file():
        return arguments.checkpoint
    raise InputError("--text-encoder: missing; name the folder or file of Gemma.")


def files_of(arguments: argparse.Namespace) -> Files:
    """The files that the flags name. Raises InputError as `text_encoder_of`."""
    return Files(
        checkpoint=arguments.checkpoint,
        text_encoder=text_encoder_of(arguments),
        audio=arguments.audio,
        output=arguments.output,
        upscaler=arguments.upscaler,
        distill_lora=arguments.distill_lora,
        camera_lora=arguments.camera_lora,
        loras=tuple(arguments.lora),
        image=arguments.image,
        end_image=arguments.end_image,
        safety_checker=arguments.safety_checker,
        video_vae=arguments.video_vae,
        audio_vae=arguments.audio_vae,
        connectors=arguments.connectors,
        contexts=arguments.cache_dir,
        expander=arguments.expander,
        sections=arguments.request.parent,
        video=arguments.video,
        mask=arguments.mask,
        reference=arguments.reference,
        keyframes=tuple(arguments.keyframe),
        speakers=tuple(arguments.speaker),
        voices=tuple(arguments.voice),
        room_noise=arguments.room_noise,
    )


def compute_of(arguments: argparse.Namespace) -> Compute:
    """The device and the way to compute. Raises InputError if there is no such device, if it cannot do what is asked,
    or if a tile cannot have that size."""
    device = arguments.device or usual()
    if not is_there(device):
        raise InputError(f"--device: torch finds no {device} device here; leave it out, or use --device cpu.")
    if device == CPU and arguments.offload == BLOCKS:
        raise InputError("--offload: blocks can wait in host memory only for a GPU; leave it out on the CPU.")
    if arguments.compile and device not in WITH_COMPILER:
        raise InputError(f"--compile: blocks are compiled for {' and '.join(WITH_COMPILER)}; leave it out on {device}.")
    if arguments.dtype == "bfloat16" and not has_bfloat16(device):
        raise InputError(f"--dtype: this {device} device has no bfloat16, which needs macOS 14; use --dtype float32.")
    return Compute(
        getattr(torch, arguments.dtype) if arguments.dtype else usual_dtype(device),
        device,
        arguments.fp8,
        arguments.compile,
        arguments.offload,
        Tiling.of(arguments.tile_frames, arguments.tile_size),
        attention=arguments.attention,
        fused=arguments.fused,
        fast_products=arguments.fast_products,
    )


def run_job(arguments: argparse.Namespace, request: Request, job: Callable[..., Result] | None = None) -> int:
    """Runs a job and returns the exit status. job: the function that runs it, None for `pipeline.run`."""
    transformers.utils.logging.disable_progress_bar()  # this command shows its own bars
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # The handler raises KeyboardInterrupt, so that a terminated run cleans up as an interrupted one does.
    on_end(signal.default_int_handler)
    bars, recorder, written = Bars(), Recorder() if arguments.trace else None, False

    def ended(message: object, status: int) -> int:
        bars.close()
        print(message, file=sys.stderr)
        return status

    def interrupted() -> str:
        if written:
            return "interrupted; the video is complete, its trace is not"
        kept = KeptWindows.beside(arguments.output)
        return f"interrupted; {kept.told()}" if kept.count() else INTERRUPTED

    try:
        result = (job or run)(
            files_of(arguments),
            request,
            compute_of(arguments),
            stg_blocks=tuple(arguments.stg_blocks),
            # One write for text and line end, so that an interrupt does not split them.
            announce=lambda forecast: print(f"{forecast}\n", end="", file=sys.stderr),
            trace=recorder,
            progress=bars,
            resume=AS_FAR_AS_IT_IS if arguments.as_far_as_it_is else arguments.resume,
            left=bars.left,
        )
        bars.close()
        written = True
        if recorder is not None:
            recorder.save(arguments.trace)
    except InputError as error:
        return ended(error, 2)
    except KeyboardInterrupt:
        return ended(interrupted(), 130)
    except FlaggedError as error:
        return ended(error, 1)
    except (OSError, RuntimeError, ValueError, MemoryError, av.FFmpegError) as error:
        kept = KeptWindows.beside(arguments.output)
        return ended(f"failed: {type(error).__name__}: {error}" + (f"; {kept.told()}" if kept.count() else ""), 1)
    for note in result.report["notes"]:
        print(f"note: {note}", file=sys.stderr)
    try:
        print(json.dumps({"output": str(result.video.path), **result.report["used"]}), flush=True)
    except OSError as error:  # a full disk, or a pipe whose reader has ended
        sys.stdout = None  # Python would write the rest at its end and fail again
        return ended(f"{result.video.path}: is complete, but its facts could not be printed ({error.strerror})", 1)
    return 0
