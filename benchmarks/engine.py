"""The engine's side of host.py: the work of a graph whose seed has changed, without ComfyUI.

The calls are those of `pipeline.run` from the noise to the file. The models and conditions are ready before, as in a
server that has run the graph once.
"""

from __future__ import annotations

import time
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from a2v.benchmarks.work import Clip, stg_block
from a2v.ltx.diffusion import schedules
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions
from a2v.ltx.diffusion.decode import decode_video, to_uint8
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.sample import sample
from a2v.ltx.diffusion.sound import encode_audio
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.diffusion.tiling import Tiling
from a2v.ltx.diffusion.upscale import upscale
from a2v.ltx.grid import CHANNELS, video_shape
from a2v.ltx.latents import Noise
from a2v.ltx.media.audio import load_track, soundtrack
from a2v.ltx.media.video import write_video
from a2v.ltx.prompt.gemma import load_gemma
from a2v.ltx.prompt.text import encode_text
from a2v.ltx.weights import lora
from a2v.ltx.weights.checkpoint import load_checkpoint, load_upscaler


@cache
def ready(checkpoint: str, gemma: str, upscaler: str, distilled: str, prompts: tuple[str, str]) -> dict[str, Any]:
    """Loads the models and encodes both prompts."""
    file, dtype = load_checkpoint(checkpoint), torch.float32
    encoder, connectors = load_gemma(gemma, dtype), file.connectors(dtype)
    model = file.transformer(dtype)
    return {
        "contexts": [encode_text(encoder, connectors, text) for text in prompts],
        "model": model,
        "merger": lora.Merger(model, file.transformer_weight),
        "lora": lora.load_lora(distilled),
        "vae": file.video_vae(dtype),
        "audio vae": file.audio_vae(dtype),
        "upscaler": load_upscaler(upscaler, dtype),
    }


@torch.inference_mode()
def again(
    models: dict[str, str], prompts: list[str], audio: str, clip: list[int], steps: int, seed: int, output: str
) -> dict[str, Any]:
    """Computes from the seed to the file. "engine": the seconds for that, without loading and encoding."""
    parts = ready(**models, prompts=tuple(prompts))
    size, fps, track = Clip(*clip), Fraction(clip[3]), load_track(audio)
    sound = AudioCondition(encode_audio(parts["audio vae"], track, size.frames, fps), size.frames, fps)
    (positive, negative), model, merger = parts["contexts"], parts["model"], parts["merger"]
    start = time.perf_counter()
    merger.set([(parts["lora"], 0.2)])
    stg_blocks = (stg_block(len(model.transformer_blocks)),)
    guidance = Guidance(cfg=3.0, stg=1.0, rescale=0.85, modality=3.0, stg_blocks=stg_blocks)
    latent, sound, noise = sample(
        model,
        torch.zeros(1, CHANNELS, *video_shape(size.frames, size.height // 2, size.width // 2)),
        Conditions(positive, sound, negative),
        Steering(schedules.SCHEDULES["beta"](steps), guidance),
        Noise(seed),
    )
    latent = upscale(parts["upscaler"], parts["vae"], latent)
    merger.set([(parts["lora"], 0.5)])
    refine = Steering(torch.tensor(schedules.REFINE))
    latent, _, _ = sample(model, latent, Conditions(positive, sound), refine, noise)
    frames = map(to_uint8, decode_video(parts["vae"], latent, Tiling()))
    write_video(output, frames, fps, soundtrack(track, size.frames, fps), metadata={"comment": "{}"})
    return {"engine": time.perf_counter() - start}
