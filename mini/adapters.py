"""LoRAs of the trained transformer, on top of its frozen weights: the distilled one and the cameras'; and the upscaler.

The distilled LoRA learns to give in one pass what the teacher gives with all its guidance. A camera's LoRA learns plain
flow matching on clips with that movement.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import dataset, flow, sizes
from .flow import FlowOptions
from .text import Prompts
from .training import Options, Stage

CFG, MODALITY, RESCALE = 3.0, 3.0, 0.85  # of the teacher: the endpoint's defaults
ALIVE = {"proj_in": sizes.LIVE, "audio_proj_in": 16 * sizes.AUDIO_LIVE}  # inputs that carry something


class Lora(nn.Module):
    """Low-rank changes of the transformer's linear layers, added while the hooks stand. `down` [rank, in]."""

    def __init__(self, transformer: nn.Module, rank: int, blocks_only: bool) -> None:
        super().__init__()
        self.names = [
            name
            for name, module in transformer.named_modules()
            if type(module) is nn.Linear and (name.startswith("transformer_blocks.") or not blocks_only)
        ]
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for name in self.names:
            layer = transformer.get_submodule(name)
            self.down.append(nn.Parameter(torch.randn(rank, layer.in_features) / math.sqrt(layer.in_features)))
            self.up.append(nn.Parameter(torch.zeros(layer.out_features, rank)))
        self.on = True
        for number, name in enumerate(self.names):
            transformer.get_submodule(name).register_forward_hook(self._hook(number, ALIVE.get(name)))

    def _hook(self, number: int, alive: int | None):
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not self.on:
                return output
            return output + F.linear(F.linear(inputs[0][..., :alive], self.down[number][:, :alive]), self.up[number])

        return add

    def factors(self, state: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """By the layer's name, (A, B) out of a state of this module. Dead channels stay dead."""
        found = {}
        for number, name in enumerate(self.names):
            down, up = state[f"down.{number}"].clone(), state[f"up.{number}"].clone()
            if name in ALIVE:
                down[:, ALIVE[name] :] = 0
            found[name] = down, up
        return found


def _frozen(model: flow.Model) -> flow.Model:
    return copy.deepcopy(model).eval().requires_grad_(False)


def train_camera(
    name: str, folder: Path, options: FlowOptions, model: flow.Model, clips: list[dataset.Clip], gemma: Path
) -> Stage:
    """On clips of one camera movement. `model`: trained, and left as it is."""
    torch.manual_seed(options.seed)
    base = _frozen(model).to(options.device)
    stage = Stage(name, Lora(base.transformer, sizes.CAMERA_RANK, True).to(options.device), folder, options)
    prompts = Prompts(gemma)
    for _ in stage.steps():
        rng, generator = stage.rng, torch.Generator().manual_seed(options.seed * 7919 + stage.step)
        batch = flow.on(flow.make_batch(clips, rng, generator, options.rows, "small"), options.device)
        seen, heard = flow.losses(batch, *flow.predict(base, batch, prompts, flow.SHORT))
        stage.update(seen + flow.AUDIO_WEIGHT * heard, video=float(seen.detach()))
    return stage


def guided(model: flow.Model, batch: flow.Batch, prompts: Prompts, length: int, lora: Lora) -> Tensor:
    """The teacher's guided velocity, video only: CFG and modality, rescaled, combined as in guidance.py."""
    lora.on = False
    with torch.no_grad():
        cond = flow.predict(model, batch, prompts, length)[0]
        blank = flow.replace(batch, texts=(flow.NEGATIVE_PROMPT,) * len(batch.texts))
        uncond = flow.predict(model, blank, prompts, length)[0]
        alone = flow.predict(model, flow.replace(batch, isolated=True), prompts, length)[0]
    lora.on = True
    share = batch.video_sigma[:, None, None] * batch.video_mask
    c, u, m = (batch.video - v * share for v in (cond, uncond, alone))
    p = c + (CFG - 1) * (c - u) + (MODALITY - 1) * (c - m)
    factor = c.std((1, 2), keepdim=True) / p.std((1, 2), keepdim=True)
    p = p * (RESCALE * factor + 1 - RESCALE)
    return torch.where(share > 0.002, (batch.video - p) / share.clamp(min=0.002), cond)


def train_distilled(
    folder: Path, options: FlowOptions, model: flow.Model, clips: list[dataset.Clip], gemma: Path
) -> Stage:
    """One pass that does what guidance does in three. `model`: trained, and left as it is."""
    torch.manual_seed(options.seed)
    base = _frozen(model).to(options.device)
    lora = Lora(base.transformer, sizes.LORA_RANK, False).to(options.device)
    stage = Stage("distilled", lora, folder, options)
    prompts = Prompts(gemma)
    both = any("large" in clip.latents for clip in clips)
    for _ in stage.steps():
        rng, generator = stage.rng, torch.Generator().manual_seed(options.seed * 7919 + stage.step)
        size = "large" if both and rng.random() < options.large else "small"
        batch = flow.make_batch(clips, rng, generator, max(2, options.rows // 2), size)
        batch = flow.on(flow.replace(batch, isolated=False), options.device)
        target = guided(base, batch, prompts, flow.SHORT, lora)[..., : sizes.LIVE]
        made = flow.predict(base, batch, prompts, flow.SHORT)[0][..., : sizes.LIVE]
        wanted = (batch.video_mask > 0.01).float()
        off = ((made - target).square().mean(-1, keepdim=True) * wanted).sum() / wanted.sum().clamp(min=1)
        stage.update(off)
    return stage


@torch.no_grad()
def cut(upscaler: nn.Module) -> None:
    """Cuts the dead latent channels off on both sides."""
    upscaler.initial_conv.weight[:, sizes.LIVE :] = 0
    upscaler.final_conv.weight[sizes.LIVE :] = 0
    upscaler.final_conv.bias[sizes.LIVE :] = 0


def train_upscaler(
    folder: Path, options: Options, clips: list[dataset.Clip], vae: nn.Module, begin: nn.Module | None = None
) -> Stage:
    """From the latents of small frames to those of large ones, in the VAE's own space."""
    torch.manual_seed(options.seed)
    module = begin or sizes.module("upscaler")
    cut(module)
    stage = Stage("upscaler", module.to(options.device), folder, options, plain=("final_conv", "norm"))
    having = [clip for clip in clips if "large" in clip.latents]
    mean, std = (
        s[None, : sizes.LIVE, None, None, None].to(options.device) for s in (vae.latents_mean, vae.latents_std)
    )
    for _ in stage.steps():
        chosen = [having[i] for i in stage.rng.integers(0, len(having), 8)]
        count = min(clip.latents["small"].shape[1] for clip in chosen)
        small, large = (
            torch.stack([clip.latents[size][:, :count] for clip in chosen]).to(options.device)
            for size in ("small", "large")
        )
        raw = F.pad(small * std + mean, (0, 0, 0, 0, 0, 0, 0, sizes.LATENT - sizes.LIVE))
        made = (stage.module(raw)[:, : sizes.LIVE] - mean) / std
        stage.update((made - large).square().mean())
        cut(stage.module)
    return stage
