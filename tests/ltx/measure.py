"""Runs phases of jobs in a process of their own and prints the most memory each took beside what was there before.

python measure.py [[PHASE, JOB], …]: JOB has the paths of Files, the fields of Request, dtype, and as `warm` another job
that runs first, so that what libraries set up once is not counted. `run` is how tests start it; it is no test.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

if "a2v" not in sys.modules:
    alias = types.ModuleType("a2v")
    alias.__path__ = [str(Path(__file__).resolve().parents[2])]
    sys.modules["a2v"] = alias

import torch
from a2v.ltx.diffusion.conditioning import TEXT_LENGTH, AudioCondition, TextContext
from a2v.ltx.diffusion.decode import decode_video, to_uint8
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.steering import EULER, RES_2S
from a2v.ltx.encoding import encode_prompts
from a2v.ltx.grid import CHANNELS, audio_length, video_shape
from a2v.ltx.job import Compute, Files, Job, prepare
from a2v.ltx.latents import Noise
from a2v.ltx.media.safety import Watch, load_checker
from a2v.ltx.media.video import write_video
from a2v.ltx.request import parse
from a2v.ltx.weights import lora
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx.stage import sample

GUIDANCE = Guidance(cfg=3.0, stg=1.0, rescale=0.85, modality=3.0, stg_blocks=(1,))


def run(*asked: tuple[str, dict[str, Any]]) -> list[int]:
    """Bytes by phase, from a fresh process."""
    # Freed memory goes back at once, so that what is resident is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def job_of(described: dict[str, Any]) -> Job:
    files = {name: None if path is None else Path(path) for name, path in described["files"].items()}
    request = {"enable_safety_checker": False, "enable_prompt_expansion": False, **described["request"]}
    width, height = request.pop("video_size")
    request["video_size"] = {"width": width, "height": height}
    return prepare(Files(**files), parse(request), stg_blocks=(1,))


Loaded = Callable[[], object]
"""What is measured, with what it needs in memory already."""


def text(job: Job, dtype: torch.dtype | None) -> Loaded:
    """Loaded as it goes, and its weights map the files: their pages count."""
    return lambda: encode_prompts(job, Compute(dtype), None, lambda *_: None)


def first_stage(job: Job, dtype: torch.dtype | None, sampler: str = EULER) -> Loaded:
    """One guided step."""
    clip, model = job.plan, job.checkpoint.transformer(dtype)
    merger = lora.Merger(model, job.checkpoint.transformer_weight)
    merger.set(job.loras[0])
    widths = model.config.cross_attention_dim, model.config.audio_cross_attention_dim
    positive, negative = (TextContext(*(torch.zeros(1, TEXT_LENGTH, width) for width in widths)) for _ in range(2))
    sound = audio_length(clip.frames, clip.fps)
    given = {
        "latent": torch.zeros(1, CHANNELS, *video_shape(clip.frames, *clip.first_size[::-1])),
        "sigmas": torch.tensor([1.0, 0.0]),
        "positive": positive,
        "negative": negative,
        "audio": AudioCondition(torch.zeros(1, 8, sound, 16), clip.frames, clip.fps),
        "guidance": GUIDANCE,
        "noise": Noise(0),
        "room": 0.0,
        "sampler": sampler,
    }
    return lambda: sample(model, given)


def decode(job: Job, dtype: torch.dtype | None) -> Loaded:
    clip, vae = job.plan, job.checkpoint.video_decoder(dtype)

    def work() -> None:
        latent = torch.zeros(1, CHANNELS, *video_shape(clip.frames, clip.height, clip.width))
        with torch.inference_mode():
            for _ in decode_video(vae, latent):
                pass

    return work


def stream(described: dict[str, Any]) -> None:
    """Decode, the safety checker and the file, as `pipeline.run` and Decode and Save do it."""
    vae = load_checkpoint(Path(described["checkpoint"])).video_vae(torch.float32)
    checker = load_checker(described["checker"])

    def work(frames: int, height: int, width: int) -> None:
        latent = torch.randn(
            1, CHANNELS, *video_shape(frames, height, width), generator=torch.Generator().manual_seed(0)
        )
        with torch.inference_mode():
            chunks = Watch(checker, frames)(to_uint8(chunk) for chunk in decode_video(vae, latent))
            write_video(described["output"], chunks, Fraction(24), None, write_mode="fast")

    each(work, described["sizes"])


def node(described: dict[str, Any]) -> None:
    """The same through Decode and Save, in ComfyUI's own memory management."""
    sys.path.append(described["host"])
    from comfy.cli_args import args

    args.cpu, args.base_directory = True, described["output"]
    from a2v.nodes import memory, output

    vae, cpu = load_checkpoint(Path(described["checkpoint"])).video_vae(torch.float32), torch.device("cpu")
    handle = memory.Handle(memory.hold(vae, cpu, cpu))
    hidden = types.SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)
    save = type("Save", (output.SaveLatentVideo,), {"hidden": hidden})

    def work(frames: int, height: int, width: int) -> None:
        latent = {"samples": torch.zeros(1, CHANNELS, *video_shape(frames, height, width))}
        rest = 768, 64, 80, 24, 24.0, "clip", "X264 (.mp4)", "high", "fast", "off", 0.5, "replace"
        with torch.inference_mode():
            save.execute(handle, latent, *rest)

    each(work, described["sizes"])


def each(work: Callable[..., None], sizes: list[list[int]]) -> None:
    """Prints the peak of each, after the first has run once."""
    work(*sizes[0])
    for size in sizes:
        print(peak(lambda size=size: work(*size)))


def measured(load: Callable[[], Loaded]) -> int:
    """What loading leaves, pages of files apart, and on top of it the most that the work takes at once.

    The system counts the peak itself: nothing that lasts a moment is missed, however busy the machine is.
    """
    settle()
    before = status("RssAnon")
    work = load()
    settle()
    return status("RssAnon") - before + peak(work)


def peak(work: Callable[[], object]) -> int:
    settle()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def settle() -> None:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main(asked: list[tuple[str, dict[str, Any]]]) -> None:
    torch.set_num_threads(1)
    for phase, described in asked:
        if phase in ("stream", "node"):
            {"stream": stream, "node": node}[phase](described)
            continue
        work = {
            "encode text": text,
            "sample": first_stage,
            "sample with res_2s": partial(first_stage, sampler=RES_2S),
            "decode": decode,
        }[phase]
        dtype = getattr(torch, described["dtype"]) if described["dtype"] else None
        work(job_of(described["warm"]), dtype)()
        job = job_of(described)
        print(measured(lambda work=work, job=job, dtype=dtype: work(job, dtype)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
