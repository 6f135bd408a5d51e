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
RUNS = 8  # stretches of tokens of one level; beyond, parameters are spread over all tokens


@dataclass(frozen=True)
class Rotary:
    """(cos, sin) of the positions, for self-attention and for the attention between the streams.

    Split embeddings are [G, 1, heads, half], for G groups of equally many neighbours that share a position. The
    attention between the streams knows only times, so there the tokens of a latent frame are one group.

    hearing: [1, N, S], the share that each video token takes of each of S sounds; None if there is one, of which all
    take all.
    """

    video: Pair
    audio: Pair
    cross_video: Pair
    cross_audio: Pair
    hearing: Tensor | None = None


def rotary(model: LTX2VideoTransformer3DModel, video: Tensor, audio: Tensor, device: torch.device) -> Rotary:
    """Embeds positions [1, axes, N, 2], once per stage. The angles are those of diffusers' module on a CPU, on every
    device: float64 is not needed there, and one bit of a frequency would turn a late position by a thousandth."""

    def make(module: nn.Module, positions: Tensor) -> Pair:
        positions = positions.cpu()
        if module.rope_type == "split":
            return _split(module, _distinct(positions), device)
        cos, sin = module(positions)
        return cos.to(device), sin.to(device)

    return Rotary(
        make(model.rope, video),
        make(model.audio_rope, audio),
        make(model.cross_attn_rope, video[:, :1]),
        make(model.cross_attn_audio_rope, audio[:, :1]),
    )


def _split(module: nn.Module, positions: Tensor, device: torch.device) -> Pair:
    """The split embeddings of positions [1, axes, N, 2] on a CPU → [N, 1, heads, half], in the memory layout of queries
    and keys. Only what is large is computed on `device`: at 1024×576×121 a CPU takes a third of a second for it, and
    150 MB would be copied. The formula is that of LTX2AudioVideoRotaryPosEmbed in diffusers."""
    axes, sides = positions.shape[1], (module.base_num_frames, module.base_height, module.base_width)
    middles = (positions[0, ..., 0] + positions[0, ..., 1]) / 2.0
    grid = torch.stack([middle / side for middle, side in zip(middles, sides, strict=False)], 1) * 2 - 1  # [N, axes]
    kind = torch.float64 if module.double_precision else torch.float32
    powers = torch.linspace(0.0, 1.0, module.dim // (2 * axes), dtype=kind)
    frequencies = (torch.pow(module.theta, powers) * torch.pi / 2.0).float()
    angles = (grid.to(device)[:, None] * frequencies.to(device)[:, None]).flatten(1)
    angles = nn.functional.pad(angles, (module.dim // 2 - angles.shape[1], 0))  # cos 1 and sin 0: not turned
    cos, sin = (angles.unflatten(1, (1, module.num_attention_heads, -1)) for angles in (angles.cos(), angles.sin()))
    return cos, sin


def _distinct(positions: Tensor) -> Tensor:
    """[1, axes, N, 2] → [1, axes, G, 2], one position of each group of equal neighbours if the groups have one size."""
    counts = torch.unique_consecutive(positions, return_counts=True, dim=2)[1]
    return positions[:, :, :: int(counts[0])] if (counts == counts[0]).all() else positions


@dataclass(frozen=True)
class Places:
    """Which tokens of a stream have which of its noise levels. index: [N], the level's number of each token. runs: the
    same as stretches of neighbours, (start, stop, number); None if there are more than RUNS of them."""

    index: Tensor
    runs: tuple[tuple[int, int, int], ...] | None

    @classmethod
    def of(cls, index: Tensor) -> Places:
        numbers, counts = torch.unique_consecutive(index.cpu(), return_counts=True)
        if len(numbers) > RUNS:
            return cls(index, None)
        stops = counts.cumsum(0)
        return cls(index, tuple(zip((stops - counts).tolist(), stops.tolist(), numbers.tolist(), strict=True)))


@dataclass(frozen=True)
class Levels:
    """The distinct noise levels of a stream's tokens. values: float32 [L]; places: None if L is 1."""

    values: Tensor
    places: Places | None = None

    @classmethod
    def of(cls, tokens: Tensor) -> Levels:
        """Makes Levels from each token's level [1, N]. The host waits for the device here, and not in a step."""
        values, index = torch.unique(tokens.flatten(), return_inverse=True)
        return cls(values, Places.of(index) if len(values) > 1 else None)

    def __mul__(self, sigma: Tensor) -> Levels:
        return Levels(self.values * sigma, self.places)


@dataclass(frozen=True)
class Modulation:
    """One stream's AdaLN values for the noise levels of a step. Each block adds its own table to them.

    own: [L, parameters, D] for the stream itself; across: [L, parameters, D], scale and shift for the attention between
    the streams; gate: [1, 1, D], for what the stream takes from the other one; prompt: [1, 2, D], zeros if the noise
    does not modulate the texts; out: [L, D] for the last layer; places: as in `Levels`.
    """

    own: Tensor
    across: Tensor
    gate: Tensor
    prompt: Tensor
    out: Tensor
    places: Places | None


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
            video.places,
        ),
        Modulation(
            audio_own,
            embed(model.av_cross_attn_audio_scale_shift, audio.values)[0],
            embed(model.av_cross_attn_audio_v2a_gate, video_sigma, gate_scale)[0],
            prompt(getattr(model, "audio_prompt_adaln", None), audio_sigma, audio_own),
            audio_out,
            audio.places,
        ),
    )


@dataclass(frozen=True, eq=False)
class Ada:
    """AdaLN parameters of a block, each [L, D], for tokens whose levels stand at `places`.

    Its two operations read each tensor once: a multiplication and an addition are one `addcmul`, which rounds once.
    Where the levels are few stretches of tokens, as with a first image, each stretch is one call, and no parameter is
    spread to [N, D].
    """

    values: tuple[Tensor, ...]
    places: Places | None

    def modulate(self, normed: Tensor, shift: int, scale: int) -> Tensor:
        """Returns normed · (1 + scale) + shift. shift, scale: the numbers of the two parameters."""
        shift, scale = self.values[shift], 1 + self.values[scale]
        if self._whole:
            return torch.addcmul(self._spread(shift), normed, self._spread(scale))
        result = torch.empty_like(normed)
        for start, stop, level in self.places.runs:
            part = slice(start, stop)
            torch.addcmul(shift[level], normed[:, part], scale[level], out=result[:, part])
        return result

    def gated(self, x: Tensor, change: Tensor, gate: int) -> Tensor:
        """Returns x + change · gate in the memory of `change`. gate: the number of the parameter."""
        gate = self.values[gate]
        if torch.compiler.is_compiling():
            return torch.addcmul(x, change, self._spread(gate))
        if self._whole:
            return torch.addcmul(x, change, self._spread(gate), out=change)
        for start, stop, level in self.places.runs:
            part = slice(start, stop)
            torch.addcmul(x[:, part], change[:, part], gate[level], out=change[:, part])
        return change

    @property
    def _whole(self) -> bool:
        """Whether all tokens are computed in one call. A compiled block spreads the parameters where it reads them, and
        must not depend on the numbers of a run."""
        return self.places is None or torch.compiler.is_compiling() or self.places.runs is None

    def _spread(self, value: Tensor) -> Tensor:
        return value if self.places is None else value[self.places.index]


def ada(table: Tensor, values: Tensor, places: Places | None = None) -> Ada:
    """The parameters of a table [P, D] and of values [L, P, D], a row for each level. places: as in `Levels`."""
    return Ada((table.to(values.device) + values).unbind(1), places)
