"""What the transformer is told of noise levels and positions: AdaLN for the few distinct levels, rotary embeddings.

Both are made apart from the blocks, the one once a step and the other once a stage. In two things diffusers' forward
differs from the official code: the gates of the audio-video attention take the *other* stream's sigma, while scale and
shift take each token's own timestep; and a frozen stream has sigma 0 everywhere.
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
    """(cos, sin) of the positions for self-attention and for the attention between the streams."""

    video: Pair
    audio: Pair
    cross_video: Pair
    cross_audio: Pair


def rotary(model: LTX2VideoTransformer3DModel, video: Tensor, audio: Tensor, device: torch.device) -> Rotary:
    """Embeddings of positions [1, axes, N, 2]. Made on the CPU: not every device has float64, and it is once a run."""
    video, audio = video.cpu(), audio.cpu()

    def make(module: nn.Module, positions: Tensor) -> Pair:
        cos, sin = module(positions)
        if module.rope_type == "split":  # [1, heads, N, half] → as queries and keys lie in memory
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
    """The distinct noise levels of a stream's tokens: values float32 [L], index [N] into them, None where L is 1."""

    values: Tensor
    index: Tensor | None = None

    @classmethod
    def of(cls, tokens: Tensor) -> Levels:
        """From each token's level [1, N]."""
        values, index = torch.unique(tokens.flatten(), return_inverse=True)
        return cls(values, index if len(values) > 1 else None)

    def __mul__(self, sigma: Tensor) -> Levels:
        return Levels(self.values * sigma, self.index)


@dataclass(frozen=True)
class Modulation:
    """What a step's noise levels make of AdaLN. [L, parameters, D] of each stream; the tables of a block are added to
    these. index [N] hands levels to tokens, as in `Levels`.

    own: for the stream itself; across: scale and shift between the streams; gate [1, 1, D]: what a stream takes in
    from the other one; prompt [1, 2, D]; out [L, D]: for the last layer.
    """

    own: Tensor
    across: Tensor
    gate: Tensor
    prompt: Tensor
    out: Tensor
    index: Tensor | None


@dataclass(frozen=True)
class Modulations:
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
    """AdaLN of one step. video, audio: the tokens' levels; *_sigma: float32 [1], each stream's, 0 if frozen."""
    scale = model.config.timestep_scale_multiplier
    gate_scale = model.config.cross_attn_timestep_scale_multiplier

    def embed(module: nn.Module, sigmas: Tensor, factor: float = scale) -> Pair:
        values, embedded = module(sigmas * factor, batch_size=1, hidden_dtype=dtype)
        return rearrange(values, "l (p d) -> l p d", d=embedded.shape[-1]), embedded

    own, out = embed(model.time_embed, video.values)
    heard, heard_out = embed(model.audio_time_embed, audio.values)
    return Modulations(
        Modulation(
            own,
            embed(model.av_cross_attn_video_scale_shift, video.values)[0],
            embed(model.av_cross_attn_video_a2v_gate, audio_sigma, gate_scale)[0],
            embed(model.prompt_adaln, video_sigma)[0],
            out,
            video.index,
        ),
        Modulation(
            heard,
            embed(model.av_cross_attn_audio_scale_shift, audio.values)[0],
            embed(model.av_cross_attn_audio_v2a_gate, video_sigma, gate_scale)[0],
            embed(model.audio_prompt_adaln, audio_sigma)[0],
            heard_out,
            audio.index,
        ),
    )


@dataclass(frozen=True, eq=False)
class Ada:
    """AdaLN parameters of a block, each [L, D]; asked for by number, as tokens need it: [N or 1, D]."""

    values: tuple[Tensor, ...]
    index: Tensor | None

    def __getitem__(self, number: int) -> Tensor:
        return self.spread(self.values[number])

    def spread(self, value: Tensor) -> Tensor:
        return value if self.index is None else value[self.index]

    def modulate(self, normed: Tensor, shift: int, scale: int) -> Tensor:
        """normed · (1 + scale) + shift, by the numbers of the two."""
        return (normed * self.spread(1 + self.values[scale])).add_(self[shift])


def ada(table: Tensor, values: Tensor, index: Tensor | None = None) -> Ada:
    return Ada((table.to(values.device) + values).unbind(1), index)
