"""The video VAE's training: crops and small frames of clips drawn on the spot, an error that minds what moves.

The posterior is not sampled until late: with noise from the start the encoder of so small a model collapses. A weak
pull keeps the latents near unit size. Latent channels past LIVE stay zero: nothing ever flows through them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import clips, linear_start
from .sizes import LIVE, module
from .training import Options, Stage, fast

#     frames, window, size of the whole frame (width, height); the share of steps
MENU = (
    (9, 64, (128, 128), 0.40),
    (9, 64, (64, 64), 0.25),
    (17, 64, (64, 64), 0.10),
    (17, 64, (128, 128), 0.15),
    (9, 128, (128, 128), 0.10),
)
JOINT = 0.6  # share of the budget in which the encoder learns, too; what comes after leaves all latents as they are
BATCH = 4 * 9 * 64 * 64  # pixels of a step


AREA = 2.0  # weight of the error of 8x8 areas: an eye sees a whole face in a wrong green sooner than a soft edge
START = 400  # crops that the linear start is computed from


def crop(rng: np.random.Generator, frames: int, side: int, size: tuple[int, int]) -> np.ndarray:
    """A random scene's last frames, [T, side, side, 3] in 0..1, cut on the grid of the latents."""
    scene = clips.random_scene(rng)
    if rng.random() < 0.2:
        scene = clips.dolly(scene, float(rng.uniform(1.0, 1.5)))
    whole = frames + int(rng.integers(0, 24))
    left, top = (32 * int(rng.integers(0, (n - side) // 32 + 1)) for n in size)
    motion = clips.random_motion(rng, scene, whole)
    return clips.render(scene, motion, 24.0, size, (left, top, side, side), whole - frames)


def pixels(crops: list[np.ndarray]) -> Tensor:
    """[B, 3, T, H, W] in -1..1."""
    return torch.from_numpy(np.stack(crops)).permute(0, 4, 1, 2, 3) * 2 - 1


def fresh(seed: int = 0, crops: int = START) -> nn.Module:
    """The VAE as it starts: the best linear code, its dead channels cut off."""
    torch.manual_seed(seed)
    vae = module("vae")
    rng = np.random.default_rng((seed, 1))
    sizes = ((64, 64), (128, 128))
    linear_start.start(vae, pixels([crop(rng, 17, 64, sizes[i % 2]) for i in range(crops)]), seed)
    return vae


def batch(rng: np.random.Generator) -> Tensor:
    """Pixels [B, 3, T, H, W] in -1..1."""
    frames, side, size, _ = MENU[rng.choice(len(MENU), p=[m[3] for m in MENU])]
    return pixels([crop(rng, frames, side, size) for _ in range(max(1, BATCH // (frames * side * side)))])


def weights(x: Tensor) -> Tensor:
    """[B, 1, T, H, W]: 1 on flat ground, more on edges and on what moves."""
    grey = x.mean(1, keepdim=True)
    edge = F.pad((grey[..., 1:] - grey[..., :-1]).abs(), (0, 1)) + F.pad(
        (grey[..., 1:, :] - grey[..., :-1, :]).abs(), (0, 0, 0, 1)
    )
    moving = F.pad((grey[:, :, 1:] - grey[:, :, :-1]).abs(), (0, 0, 0, 0, 1, 0))
    w = F.max_pool3d(edge.clamp(max=1) + 2 * moving.clamp(max=1), (1, 3, 3), 1, (0, 1, 1))
    return 1 + 3 * w


@torch.no_grad()
def cut(vae: nn.Module) -> None:
    """Cuts the dead latent channels off on both sides: noise is what the sampler leaves in them."""
    vae.encoder.conv_out.conv.weight[LIVE:-1] = 0
    vae.encoder.conv_out.conv.bias[LIVE:-1] = 0
    vae.decoder.conv_in.conv.weight[:, LIVE:] = 0


@torch.no_grad()
def settle(stage: Stage) -> None:
    """Sets the encoder to its running average, from where on it stays."""
    for name, p in stage.trained:
        if name.startswith("encoder."):
            p.copy_(stage.mean[name])


def train(folder: Path, options: Options, begin: nn.Module | None = None, keep: bool = False) -> Stage:
    """begin: weights to start from, where there is no state yet; keep: the encoder stays as it is from the start."""
    begun = (folder / "vae.state.safetensors").is_file()
    vae = module("vae") if begun else begin or fresh(options.seed)
    stage = Stage("vae", vae.to(options.device), folder, options, plain=("encoder.conv_in", "decoder.conv_out"))
    quick = fast(options.device)
    if keep:
        stage.extra.setdefault("settled", torch.ones(()))
    frozen = "settled" in stage.extra  # kept, so that a larger budget does not move the latents again
    for _ in stage.steps():
        x = batch(stage.rng).to(options.device)
        if stage.share > JOINT and not frozen:
            settle(stage)
            frozen = True
            stage.extra["settled"] = torch.ones(())
        with quick, torch.set_grad_enabled(not frozen):
            moments = vae.encode(x).latent_dist.parameters
            mean = moments[:, : moments.shape[1] // 2].float()
        with quick:
            z = mean
            if stage.share > 0.7:  # what a sampled latent will be off by
                z = z + 0.05 * torch.randn_like(z[:, :LIVE].sum(1, keepdim=True).expand_as(z)) * (z != 0)
            y = vae.decode(z.to(x.dtype)).sample
        y = y.float()
        off = y - x
        w = weights(x)
        loss = (w * off.abs()).mean() + 2 * (w * off.square()).mean()
        for axis in (3, 4):
            loss = loss + 0.5 * off.diff(dim=axis).abs().mean()
        loss = loss + 0.5 * off.diff(dim=2).abs().mean() + AREA * F.avg_pool3d(off, (1, 8, 8)).abs().mean()
        pull = mean[:, :LIVE].square().mean()
        psnr = -10 * torch.log10((off.detach().clamp(-2, 2) / 2).square().mean((1, 2, 3, 4))).mean()
        stage.update(loss + 1e-3 * pull, psnr=float(psnr), size=float(pull.detach().sqrt()))
        cut(vae)
    return stage
