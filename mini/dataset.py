"""Clips as the transformer sees them: latents of picture and sound, computed once and kept on disk.

A shard is one safetensors file of a few clips of one kind of camera; its metadata holds their scenes and prompts. Only
living latent channels are stored, normalised, in half precision. Shards that are there already are not made again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..ltx.diffusion.sound import encode_audio
from ..ltx.latents import normalize_video
from ..ltx.media.audio import Track
from . import clips, sizes, sound
from .training import fast, write

SHARD = 16
SMALL, LARGE = (64, 64), (128, 128)
HELD_OUT = 7  # every so many combinations of words is never trained on


@dataclass(frozen=True)
class Plan:
    """clips: how many; frames: of each; long: every so many shards has clips of about twice that length, 0 for none;
    large: the share that is also encoded at full size; zoom, still: the camera."""

    name: str = "clips"
    clips: int = 3000
    frames: int = 49
    long: int = 5
    large: float = 0.6
    zoom: tuple[float, float] = (1.0, 1.0)
    still: bool = False
    seed: int = 0


def held_out(scene: clips.Scene) -> bool:
    """Whether this combination of words belongs to the evaluation."""
    words = (*clips.KINDS, *clips.COLOURS, *clips.GROUNDS, *clips.SHAPES, *clips.PLACES, "both")
    numbers = [words.index(w) for w in (scene.kind, scene.colour, scene.ground, scene.shape, scene.place)]
    return sum(n * (i + 1) for i, n in enumerate(numbers)) % HELD_OUT == 0


def draw(rng: np.random.Generator, plan: Plan) -> clips.Scene:
    while held_out(scene := clips.random_scene(rng)):
        pass
    if plan.still:
        return replace(scene, sway=0.0)
    return clips.dolly(scene, float(rng.uniform(*plan.zoom))) if plan.zoom[1] > 1 else scene


def to_pixels(video: np.ndarray) -> Tensor:
    """[T, H, W, 3] in 0..1 → [1, 3, T, H, W] in -1..1."""
    return torch.from_numpy(video).permute(3, 0, 1, 2)[None] * 2 - 1


@torch.no_grad()
def encode(vae: nn.Module, video: np.ndarray) -> Tensor:
    """[T, H, W, 3] in 0..1 → normalised living latents [LIVE, F, h, w]."""
    with fast(vae.device.type):
        raw = vae.encode(to_pixels(video).to(vae.device)).latent_dist.mode()
    return normalize_video(vae, raw)[0, : sizes.LIVE].cpu()


@torch.no_grad()
def set_statistics(vae: nn.Module, count: int = 64, seed: int = 0) -> None:
    """Mean and deviation of the living latents over random clips of both sizes; dead ones get 0 and 1."""
    rng = np.random.default_rng((seed, 3))
    vae.latents_mean.zero_()
    vae.latents_std.fill_(1)
    rows = []
    for number in range(count):
        scene = clips.random_scene(rng)
        motion = clips.random_motion(rng, scene, 25)
        rows.append(encode(vae, clips.render(scene, motion, 24.0, (SMALL, LARGE)[number % 4 == 0])).flatten(1))
    values = torch.cat(rows, 1)
    vae.latents_mean[: sizes.LIVE] = values.mean(1)
    vae.latents_std[: sizes.LIVE] = values.std(1).clamp(min=1e-3)


def sound_latent(audio_vae: nn.Module, track: Track, frames: int, fps: float) -> Tensor:
    """The pack's own encoding of the levelled track → [8, T, 16]."""
    rate = Fraction(fps).limit_denominator(1001)
    with torch.no_grad():
        return encode_audio(audio_vae, sound.preprocess(track), frames, rate)[0].cpu()


def build(
    folder: Path, plan: Plan, vae: nn.Module, audio_vae: nn.Module, until: Callable[[], bool] = lambda: False
) -> int:
    """Makes what is lacking of the shards; `until` says when to stop, after one. Returns how many clips there are."""
    place = folder / plan.name
    place.mkdir(parents=True, exist_ok=True)
    fps = sizes.FRAME_RATE
    for shard in range(-(-plan.clips // SHARD)):
        path = place / f"{shard:05d}.safetensors"
        if path.is_file():
            continue
        if shard and until():
            break
        rng = np.random.default_rng((plan.seed, shard, 11))
        frames = 2 * plan.frames - 1 if plan.long and shard % plan.long == plan.long - 1 else plan.frames
        tensors: dict[str, Tensor] = {}
        notes = []
        for number in range(SHARD):
            scene = draw(rng, plan)
            track, motion = sound.accompany(rng, scene, frames, fps)
            large = rng.random() < plan.large
            for name, size in (("small", SMALL), *((("large", LARGE),) if large else ())):
                video = clips.render(scene, motion, fps, size)
                tensors[f"{number}.{name}"] = encode(vae, video).half()
                # What an end image is: the last frame of a clip, encoded by itself; of a part of the clip, too.
                for end in lengths(frames):
                    tensors[f"{number}.{name}.end{end}"] = encode(vae, video[end - 1 : end]).half()
            tensors[f"{number}.audio"] = sound_latent(audio_vae, track, frames, fps).half()
            notes.append({"scene": asdict(scene), "prompts": [clips.worded(scene, rng) for _ in range(4)]})
        write(path, tensors, {"clips": json.dumps(notes)})
        sys.stdout.write(f"{plan.name} {shard + 1}/{-(-plan.clips // SHARD)}\n")
        sys.stdout.flush()
    return SHARD * len(list(place.glob("*.safetensors")))


SHORTEST = 25  # frames


def lengths(frames: int) -> tuple[int, ...]:
    """What a clip is trained at: its own length, about half of it, again 8k+1, and so on; none below SHORTEST."""
    found = [frames]
    while (half := (found[-1] - 1) // 16 * 8 + 1) >= SHORTEST:
        found.append(half)
    return tuple(found)


@dataclass(frozen=True)
class Clip:
    """latents: by size, [LIVE, F, h, w]; ends: by size and frame; audio [8, T, 16]; all float32."""

    prompts: tuple[str, ...]
    latents: dict[str, Tensor]
    ends: dict[tuple[str, int], Tensor]
    audio: Tensor

    @property
    def frames(self) -> int:
        return max(frame for _, frame in self.ends)


def load(folder: Path, name: str = "clips") -> list[Clip]:
    """Every clip of the shards that are there."""
    found = []
    for path in sorted((folder / name).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
            for number, note in enumerate(json.loads(file.metadata()["clips"])):
                own = {k.split(".", 1)[1]: file.get_tensor(k).float() for k in keys if k.startswith(f"{number}.")}
                latents = {k: v for k, v in own.items() if k in ("small", "large")}
                ends = {(k.split(".end")[0], int(k.split(".end")[1])): v for k, v in own.items() if ".end" in k}
                found.append(Clip(tuple(note["prompts"]), latents, ends, own["audio"]))
    return found
