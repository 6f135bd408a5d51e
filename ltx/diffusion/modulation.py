"""The transformer's inputs for noise levels and positions: AdaLN for the few distinct levels, and rotary embeddings.

AdaLN is computed once per step and the embeddings once per stage, outside the blocks. In two points this follows the
official code and not diffusers' forward. First, the gates of the audio-video attention take the *other* stream's sigma,
while scale and shift take each token's own timestep. Second, a frozen stream has sigma 0 everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from einops import rearrange
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rotary:
    """(cos, sin) of the positions, for self-attention and for the attention between the streams."""

    video: Pair
    audio: Pair
    cross_video: Pair
    cross_audio: Pair


def rotary(model: LTX2VideoTransformer3DModel, video: Tensor, audio: Tensor, device: torch.device) -> Rotary:
    """Embeds positions [1, axes, N, 2]. It computes on the CPU once per stage, because some devices lack float64."""
    video, audio = video.cpu(), audio.cpu()

    def make(module: nn.Module, positions: Tensor) -> Pair:
        cos, sin = module(positions)
        if module.rope_type == "split":  # [1, heads, N, half] → the memory layout of queries and keys
            cos, sin = (rearrange(t, "1 heads n half -> n heads half").contiguous() for t in (cos, sin))
        return cos.to(device), sin.to(device)

    return Rotary(
        make(model.rope, video),
        make(model.audio_rope, audio),
        make(model.cross_attn_rope, video[:, :1]),
        make(model.cross_attn_audio_rope, audio[:, :1]),
    )


@dataclass(frozen=True)
class Levels:
    """The distinct noise levels of a stream's tokens. values: float32 [L]; index: [N] into values, None if L is 1."""

    values: Tensor
    index: Tensor | None = None

    @classmethod
    def of(cls, tokens: Tensor) -> Levels:
        """Makes Levels from each token's level [1, N]."""
        values, index = torch.unique(tokens.flatten(), return_inverse=True)
        return cls(values, index if len(values) > 1 else None)

    def __mul__(self, sigma: Tensor) -> Levels:
        return Levels(self.values * sigma, self.index)


@dataclass(frozen=True)
class Modulation:
    """One stream's AdaLN values for the noise levels of a step. Each block adds its own table to them.

    own: [L, parameters, D] for the stream itself; across: [L, parameters, D], scale and shift for the attention between
    the streams; gate: [1, 1, D], for what the stream takes from the other one; prompt: [1, 2, D], zeros if the noise
    does not modulate the texts; out: [L, D] for the last layer; index: [N], the level of each token, as in `Levels`.
    """

    own: Tensor
    across: Tensor
    gate: Tensor
    prompt: Tensor
    out: Tensor
    index: Tensor | None


@dataclass(frozen=True)
class Modulations:
    """AdaLN values of both streams."""

    video: Modulation
    audio: Modulation


def modulation(
    model: LTX2VideoTransformer3DModel,
    video: Levels,
    audio: Levels,
    video_sigma: Tensor,
    audio_sigma: Tensor,
    dtype: torch.dtype,
) -> Modulations:
    """Computes AdaLN for one step. video, audio: the tokens' levels; video_sigma, audio_sigma: float32 [1], 0 for a
    frozen stream."""
    scale = model.config.timestep_scale_multiplier
    gate_scale = model.config.cross_attn_timestep_scale_multiplier

    def embed(module: nn.Module, sigmas: Tensor, factor: float = scale) -> Pair:
        values, embedded = module(sigmas * factor, batch_size=1, hidden_dtype=dtype)
        return rearrange(values, "l (p d) -> l p d", d=embedded.shape[-1]), embedded

    def prompt(module: nn.Module | None, sigma: Tensor, own: Tensor) -> Tensor:
        return own.new_zeros(1, 2, own.shape[-1]) if module is None else embed(module, sigma)[0]

    video_own, video_out = embed(model.time_embed, video.values)
    audio_own, audio_out = embed(model.audio_time_embed, audio.values)
    return Modulations(
        Modulation(
            video_own,
            embed(model.av_cross_attn_video_scale_shift, video.values)[0],
            embed(model.av_cross_attn_video_a2v_gate, audio_sigma, gate_scale)[0],
            prompt(getattr(model, "prompt_adaln", None), video_sigma, video_own),
            video_out,
            video.index,
        ),
        Modulation(
            audio_own,
            embed(model.av_cross_attn_audio_scale_shift, audio.values)[0],
            embed(model.av_cross_attn_audio_v2a_gate, video_sigma, gate_scale)[0],
            prompt(getattr(model, "audio_prompt_adaln", None), audio_sigma, audio_own),
            audio_out,
            audio.index,
        ),
    )


@dataclass(frozen=True, eq=False)
class Ada:
    """AdaLN parameters of a block, each [L, D]. Indexing by a parameter's number gives it for the tokens: [N or 1,
    D]."""

    values: tuple[Tensor, ...]
    index: Tensor | None

    def __getitem__(self, number: int) -> Tensor:
        return self.spread(self.values[number])

    def spread(self, value: Tensor) -> Tensor:
        return value if self.index is None else value[self.index]

    def modulate(self, normed: Tensor, shift: int, scale: int) -> Tensor:
        """Returns normed · (1 + scale) + shift. shift, scale: the numbers of the two parameters."""
        return (normed * self.spread(1 + self.values[scale])).add_(self[shift])


def ada(table: Tensor, values: Tensor, index: Tensor | None = None) -> Ada:
    return Ada((table.to(values.device) + values).unbind(1), index)
