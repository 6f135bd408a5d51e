"""The transformer's training: flow matching on both streams, under every condition that the pack can set.

A row of a batch has its own noise level, its tokens their own share of it: none for a first or an end image, a part of
a clip that is kept, a sound that is given, or a whole picture whose sound is to be made. Captions are dropped for CFG;
in some steps the streams do not hear each other, for modality guidance. A few rows have another clip's caption or
sound: a model that doubts both needs guidance, as the published one does. Contexts are 64 tokens long for most of the
time and stand for the 1024 that the pack uses; they are 1024 long at the end.

diffusers' forward is used as it is, but for the gates of the attention between streams: those see the other stream's
noise level, as in ltx/diffusion/modulation.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..ltx.diffusion.conditioning import TEXT_LENGTH
from ..ltx.grid import audio_length
from ..ltx.latents import audio_positions, patchify_audio, patchify_video, video_positions
from ..ltx.request import NEGATIVE_PROMPT
from . import dataset, sizes
from .text import Prompts
from .training import Options, Stage

SHORT = 2 * sizes.REGISTERS  # tokens of a context, for most of the training: the longest caption has thirty
FPS = Fraction(24)
FIRST, LAST, GIVEN, DROPPED, EMPTY, ISOLATED = 0.3, 0.2, 0.75, 0.12, 0.5, 0.1  # shares
SHOWN = 0.5  # share of the rows without a given sound that have the whole picture, to make its sound
KEPT = 0.15  # share of rows that keep a part of the clip: its beginning, its end, or all but a region
MISLED = 0.08  # share of rows with another clip's caption, and of rows with another clip's sound
LENGTHS = (0.2, 0.4, 0.4)  # shares of clips at twice the usual length, at that, and shorter
AUDIO_WEIGHT = 0.2
MOVING = 4.0
RAMP = 0.6  # share of the budget until registers weigh what they do in the pack


class Model(nn.Module):
    """Transformer and connectors, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer, self.connectors = sizes.module("transformer"), sizes.module("connectors")
        t, live = self.transformer, (sizes.LIVE, 16 * sizes.AUDIO_LIVE)
        with torch.no_grad():
            for inner, out, alive in zip(
                (t.proj_in, t.audio_proj_in), (t.proj_out, t.audio_proj_out), live, strict=True
            ):
                inner.weight[:, alive:] = 0
                out.weight.zero_()
                out.bias.zero_()
            for name, p in self.named_parameters():
                if "scale_shift_table" in name:
                    p.zero_()
                    if p.shape[0] in (6, 9):  # gates of attention, feed-forward and text
                        p[2::3] = 0.5
                    elif p.shape[0] == 5:
                        p[4] = 0.5
                elif name.endswith(("adaln.linear.weight", "time_embed.linear.weight", "_shift.linear.weight")):
                    p.mul_(0.1)
            self.connectors.video_connector.learnable_registers.normal_()
            self.connectors.audio_connector.learnable_registers.normal_()


@dataclass
class Batch:
    """Noisy tokens and what to predict. video [B, N, 128], audio [B, T, 128]; *_mask [B, N, 1]; *_sigma [B]."""

    video: Tensor
    audio: Tensor
    video_target: Tensor
    audio_target: Tensor
    video_mask: Tensor
    audio_mask: Tensor
    video_sigma: Tensor
    audio_sigma: Tensor
    video_positions: Tensor
    audio_positions: Tensor
    texts: tuple[str, ...]
    isolated: bool = False
    weight: Tensor | None = None  # [1, N, LIVE]: how much an error counts, 1 on average


def levels(generator: torch.Generator, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Noise levels 0..1: half of them uniform, half where structure is decided."""
    uniform = torch.rand(count, generator=generator)
    normal = torch.sigmoid(torch.randn(count, generator=generator) * 1.0 + 1.0)
    sigma = torch.where(torch.rand(count, generator=generator) < 0.5, uniform, normal)
    return low + (high - low) * sigma.clamp(0.002, 1)


def emphasis(grid: Tensor) -> Tensor:
    """What moves counts more: by place and channel, the mean square deviation from each clip's own mean over time.

    grid [B, C, F, h, w] → [1, 1 · F · h · w, C], 1 on average. A mouth is a small part of a picture, and all that sound
    decides. It is the same for all rows, so what a velocity should be on average does not change.
    """
    moving = (grid - grid.mean(2, keepdim=True)).square().mean((0, 2), keepdim=True)
    weight = 1 + MOVING * moving / moving.mean().clamp(min=1e-6)
    return patchify_video(weight.expand(1, -1, grid.shape[2], -1, -1)) / (1 + MOVING)


def _shares(count: int) -> list[float]:
    """LENGTHS for that many lengths, the longest first; what is longer than they know is not drawn."""
    own = LENGTHS[-count:]
    return [0.0] * (count - len(own)) + [share / sum(own) for share in own]


def kept(rng: np.random.Generator, shape: tuple[int, int, int]) -> Tensor:
    """Which tokens of [F, h, w] an edit keeps: those before or after a frame, or those outside a box. [F · h · w]."""
    places = torch.zeros(shape, dtype=torch.bool)
    way = rng.integers(3)
    if way < 2:
        cut = int(rng.integers(1, shape[0]))
        places[slice(0, cut) if way else slice(cut, None)] = True
    else:
        low, left = (int(rng.integers(0, n)) for n in shape[1:])
        high, right = int(rng.integers(low + 1, shape[1] + 1)), int(rng.integers(left + 1, shape[2] + 1))
        places[:] = True
        places[:, low:high, left:right] = False
    return places.flatten()


def make_batch(
    clips: list[dataset.Clip], rng: np.random.Generator, generator: torch.Generator, rows: int, size: str
) -> Batch:
    """Random clips of one size and length, noised, under random conditions."""
    having = [clip for clip in clips if size in clip.latents]
    most = max(clip.frames for clip in having)
    frames = int(rng.choice(dataset.lengths(most), p=_shares(len(dataset.lengths(most)))))
    having = [clip for clip in having if frames in dataset.lengths(clip.frames)]
    chosen = [having[i] for i in rng.integers(0, len(having), rows)]
    count = (frames - 1) // 8 + 1
    grid = torch.stack([clip.latents[size][:, :count] for clip in chosen])
    shape = tuple(grid.shape[2:])
    clean, weight = patchify_video(grid), emphasis(grid)
    places = video_positions(shape, FPS)
    mask = torch.ones(rows, clean.shape[1], 1)
    per_frame = shape[1] * shape[2]
    first = torch.rand(rows, generator=generator) < FIRST
    firm = torch.where(torch.rand(rows, generator=generator) < 0.8, 0.0, torch.rand(rows, generator=generator))
    mask[first, :per_frame] = firm[first, None, None]
    for row in np.flatnonzero(rng.random(rows) < KEPT):
        mask[row, torch.nonzero(kept(rng, shape))[:, 0]] = 0
    if rng.random() < LAST:
        ends = patchify_video(torch.stack([clip.ends[size, frames] for clip in chosen]))
        clean = torch.cat([clean, ends], 1)
        weight = torch.cat([weight, torch.ones_like(weight[:, :per_frame])], 1)
        mask = torch.cat([mask, torch.zeros(rows, per_frame, 1)], 1)
        places = torch.cat([places, video_positions((1, *shape[1:]), FPS, frames - 1)], 2)
    length = audio_length(frames, FPS)
    other = rng.permutation(rows)
    sounds = [other[i] if rng.random() < MISLED else i for i in range(rows)]
    heard = patchify_audio(torch.stack([chosen[i].audio[:, :length] for i in sounds]))
    given = torch.rand(rows, generator=generator) < GIVEN
    sigma = levels(generator, rows)
    own = torch.where(torch.rand(rows, generator=generator) < 0.5, sigma, levels(generator, rows))
    audio_sigma = torch.where(given, torch.zeros(rows), own)
    shown = ~given & (torch.rand(rows, generator=generator) < SHOWN)
    sigma, mask[shown] = torch.where(shown, torch.zeros(rows), sigma), 0
    noise = torch.randn(clean.shape, generator=generator)
    hiss = torch.randn(heard.shape, generator=generator)
    share = sigma[:, None, None] * mask
    # Noised as the sampler does it: blended towards the clean tokens by the mask.
    noisy = clean * (1 - share) + noise * share
    audio_share = audio_sigma[:, None, None].expand(-1, length, 1)
    texts = []
    for number, clip in enumerate(chosen):
        dropped = rng.random() < DROPPED
        said = chosen[other[number]] if rng.random() < MISLED else clip
        own = str(rng.choice(said.prompts))
        texts.append(("" if rng.random() < EMPTY else NEGATIVE_PROMPT) if dropped else own)
    return Batch(
        _wide(noisy),
        torch.cat([heard[..., :0], heard * (1 - audio_share) + hiss * audio_share], -1),
        noise - clean,
        hiss - heard,
        mask,
        audio_share.gt(0).float(),
        sigma,
        audio_sigma,
        places.expand(rows, -1, -1, -1),
        audio_positions(length).expand(rows, -1, -1, -1),
        tuple(texts),
        rng.random() < ISOLATED,
        weight,
    )


def _wide(tokens: Tensor) -> Tensor:
    """Living channels → the container's, with zeros: what the model would read of dead ones has no weight."""
    return torch.nn.functional.pad(tokens, (0, sizes.LATENT - tokens.shape[-1]))


def contexts(
    connectors: nn.Module, prompts: Prompts, texts: tuple[str, ...], length: int, ramp: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Video and audio contexts [B, length, D], and the bias [B, 1, length] of attention to them.

    Where that is shorter than TEXT_LENGTH, the last REGISTERS tokens stand for all that follow the others: each
    register once, at a random one of its places, with the weight of them all. ramp: share of that weight's logarithm, 0
    to 1: a thousand registers hide a dozen words from attention that has learned nothing.
    """
    device, front = connectors.device, length - sizes.REGISTERS
    states = [prompts(text)[:front] for text in texts]
    features = torch.zeros(len(texts), length, *states[0].shape[1:], device=device)
    mask = torch.zeros(len(texts), length, dtype=torch.long, device=device)
    bias = torch.zeros(len(texts), 1, length, device=device)
    for row, state in enumerate(states):
        features[row, length - len(state) :] = state
        mask[row, length - len(state) :] = 1
    places = torch.arange(length)
    if length < TEXT_LENGTH:
        turns = torch.randint(front // sizes.REGISTERS, TEXT_LENGTH // sizes.REGISTERS, (sizes.REGISTERS,))
        places[front:] = torch.arange(sizes.REGISTERS) + sizes.REGISTERS * turns
        bias[..., front:] = ramp * math.log((TEXT_LENGTH - front) / sizes.REGISTERS)

    def weigh(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, "attention_mask": bias[:, None]}

    def place(module: nn.Module, args: tuple, output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(t[..., places, :].to(device) for t in module.forward(args[0], TEXT_LENGTH, device))

    hooks = []
    for connector in (connectors.video_connector, connectors.audio_connector):
        hooks.append(connector.rope.register_forward_hook(place))
        hooks += [b.register_forward_pre_hook(weigh, with_kwargs=True) for b in connector.transformer_blocks]
    try:
        video, audio, _ = connectors(features, mask)
    finally:
        for hook in hooks:
            hook.remove()
    return video, audio, bias


@contextmanager
def crossed(transformer: nn.Module, video_sigma: Tensor, audio_sigma: Tensor) -> Iterator[None]:
    """Within, the gates between the streams see the other stream's level, [B], whatever diffusers hands them."""
    factor = transformer.config.cross_attn_timestep_scale_multiplier
    gates = (
        (transformer.av_cross_attn_video_a2v_gate, audio_sigma),
        (transformer.av_cross_attn_audio_v2a_gate, video_sigma),
    )
    hooks = [
        gate.register_forward_pre_hook(lambda module, args, kwargs, s=sigma: ((s * factor,), kwargs), with_kwargs=True)
        for gate, sigma in gates
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def predict(model: Model, batch: Batch, prompts: Prompts, length: int, ramp: float = 1.0) -> tuple[Tensor, Tensor]:
    """Velocities of the batch, video [B, N, 128] and audio [B, T, 128]."""
    t = model.transformer
    seen, heard, bias = contexts(model.connectors, prompts, batch.texts, length, ramp)
    scale = t.config.timestep_scale_multiplier
    with crossed(t, batch.video_sigma, batch.audio_sigma):
        return t(
            batch.video,
            batch.audio,
            seen,
            heard,
            timestep=(batch.video_sigma[:, None, None] * batch.video_mask)[..., 0] * scale,
            audio_timestep=(batch.audio_sigma[:, None, None] * batch.audio_mask)[..., 0] * scale,
            sigma=batch.video_sigma * scale,
            audio_sigma=batch.audio_sigma * scale,
            encoder_attention_mask=bias,
            audio_encoder_attention_mask=bias,
            video_coords=batch.video_positions,
            audio_coords=batch.audio_positions,
            isolate_modalities=batch.isolated,
            return_dict=False,
        )


def losses(batch: Batch, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error of the velocities that were asked for, over living channels."""
    off = (video[..., : sizes.LIVE] - batch.video_target).square()
    off = (off if batch.weight is None else off * batch.weight).mean(-1, keepdim=True)
    wanted = (batch.video_mask > 0.01).float()
    seen = (off * wanted).sum() / wanted.sum().clamp(min=1)
    alive = 16 * sizes.AUDIO_LIVE
    off = (audio[..., :alive] - batch.audio_target[..., :alive]).square().mean(-1, keepdim=True)
    return seen, (off * batch.audio_mask).sum() / batch.audio_mask.sum().clamp(min=1)


def on(batch: Batch, device: str) -> Batch:
    return replace(batch, **{k: v.to(device) for k, v in vars(batch).items() if isinstance(v, Tensor)})


@dataclass
class FlowOptions(Options):
    """rows: clips a step of the small size; large: share of steps at full size, with half the rows."""

    rate: float = 2e-3
    rows: int = 24
    large: float = 0.5
    full: float = 0.05  # share of the budget, at the end, with contexts of full length


PLAIN = ("proj_in", "proj_out", "table", "registers", "adaln", "time_embed", "av_cross_attn", "gate_logits")


def train(
    folder: Path, options: FlowOptions, clips: list[dataset.Clip], gemma: Path, begin: Model | None = None
) -> Stage:
    """begin: weights to start from, where there is no state yet."""
    torch.manual_seed(options.seed)
    stage = Stage("transformer", (begin or Model()).to(options.device), folder, options, plain=PLAIN)
    if begin is not None:  # it reads prompts already
        stage.extra.setdefault("ramp", torch.ones(()))
    prompts = Prompts(gemma)
    both = any("large" in clip.latents for clip in clips)
    for _ in stage.steps():
        rng, generator = stage.rng, torch.Generator().manual_seed(options.seed * 7919 + stage.step)
        long = stage.share > 1 - options.full
        size = "large" if both and rng.random() < options.large else "small"
        rows = max(2, options.rows // ((2 if size == "large" else 1) * (4 if long else 1)))
        batch = on(make_batch(clips, rng, generator, rows, size), options.device)
        # Kept, so that a larger budget does not make registers light again.
        reached = stage.extra.get("ramp", torch.zeros(()))
        ramp = max(float(reached), min(1.0, stage.share / RAMP))
        stage.extra["ramp"] = torch.tensor(ramp)
        seen, heard = losses(batch, *predict(stage.module, batch, prompts, TEXT_LENGTH if long else SHORT, ramp))
        stage.update(seen + AUDIO_WEIGHT * heard, video=float(seen.detach()), audio=float(heard.detach()))
    return stage
