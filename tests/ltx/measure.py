"""Runs one stage of a job in a process of its own and prints the most memory it took beside what was there before.

python measure.py STAGE JOB: JOB is JSON with the paths of Files, the fields of Request, dtype. A tiny job of the same
kind runs first, so that what libraries set up once is not counted. Not a test: test_memory.py and test_long_clips.py
start it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
import types
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

if "a2v" not in sys.modules:
    alias = types.ModuleType("a2v")
    alias.__path__ = [str(Path(__file__).resolve().parents[2])]
    sys.modules["a2v"] = alias

import torch
from a2v.ltx import lora, pipeline
from a2v.ltx.checkpoint import load_checkpoint
from a2v.ltx.conditioning import AudioCondition
from a2v.ltx.decode import decode_video, to_uint8
from a2v.ltx.guidance import Guidance
from a2v.ltx.latents import CHANNELS, Noise, audio_length, video_shape
from a2v.ltx.request import Request
from a2v.ltx.safety import Watch, load_checker
from a2v.ltx.text import LENGTH, TextContext
from a2v.ltx.video import write_video

GUIDANCE = Guidance(cfg=3.0, stg=1.0, rescale=0.85, modality=3.0, stg_blocks=(1,))


def job_of(described: dict[str, Any]) -> pipeline.Job:
    files = {name: None if path is None else Path(path) for name, path in described["files"].items()}
    request = {"enable_safety_checker": False, "enable_prompt_expansion": False, **described["request"]}
    return pipeline.prepare(pipeline.Files(**files), Request(**request))


def text(job: pipeline.Job, dtype: torch.dtype | None) -> None:
    pipeline.encode_prompts(job, dtype, "cpu", lambda *_: None, lambda *_: None)


def first_pass(job: pipeline.Job, dtype: torch.dtype | None) -> None:
    """One guided step."""
    clip, model = job.plan, job.checkpoint.transformer(dtype)
    merger = lora.Merger(model, job.checkpoint.transformer_weight)
    merger.set(job.first_loras)
    widths = model.config.cross_attention_dim, model.config.audio_cross_attention_dim
    positive, negative = (TextContext(*(torch.zeros(1, LENGTH, width) for width in widths)) for _ in range(2))
    sound = audio_length(clip.frames, clip.fps)
    pipeline.sample(
        model,
        latent=torch.zeros(1, CHANNELS, *video_shape(clip.frames, *clip.first_size[::-1])),
        sigmas=torch.tensor([1.0, 0.0]),
        positive=positive,
        negative=negative,
        audio=AudioCondition(torch.zeros(1, 8, sound, 16), clip.frames, clip.fps),
        guidance=GUIDANCE,
        noise=Noise(0),
        room=0.0,
    )


def decode(job: pipeline.Job, dtype: torch.dtype | None) -> None:
    clip = job.plan
    latent = torch.zeros(1, CHANNELS, *video_shape(clip.frames, clip.height, clip.width))
    with torch.inference_mode():
        for _ in decode_video(job.checkpoint.video_vae(dtype), latent):
            pass


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

    work(9, 64, 64)
    print(measured(lambda: work(*described["size"])))


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

    work(9, 64, 64)
    print(measured(lambda: work(*described["size"])))


def measured(work: Callable[[], object]) -> int:
    """The most bytes of memory that is no file's, while it ran, above those before it."""
    settle()
    before, most, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return most - before


def mapped(work: Callable[[], object]) -> int:
    """The same with the pages of files that it touched."""
    settle()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def settle() -> None:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def anonymous() -> int:
    return status("RssAnon")


def status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main(stage: str, described: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if stage in ("stream", "node"):
        {"stream": stream, "node": node}[stage](described)
        return
    work = {"encode text": text, "sample": first_pass, "decode": decode}[stage]
    dtype = getattr(torch, described["dtype"]) if described["dtype"] else None
    work(job_of(described["warm"]), dtype)
    job = job_of(described)
    print((measured if dtype else mapped)(lambda: work(job, dtype)))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
