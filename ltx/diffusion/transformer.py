"""Driving the transformer: diffusers' weights and layers, with an own forward around them, as version 1.2 conditions.

Three things differ from diffusers' forward: the gates of the audio-video attention take the *other* stream's sigma
while scale and shift take each token's own timestep, STG perturbs each stream's self-attention by itself, and a frozen
stream has sigma 0 everywhere.

The passes of a step walk the blocks together, and nothing is computed twice or in vain: a perturbed pass begins as a
copy of the pass that it follows, at the first block where they differ; modulation is made for the few distinct noise
levels and handed to tokens one parameter at a time; a stream whose result nobody reads is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_ltx2 import (
    LTX2VideoTransformer3DModel,
    LTX2VideoTransformerBlock,
    apply_interleaved_rotary_emb,
)
from einops import rearrange
from torch import Tensor, nn

from .samplers import Latents

Pair = tuple[Tensor, Tensor]
GPU_SHARE = 0.5  # of the free memory: the rest is for what fragments and for the other tensors of the step
CPU_CACHE = 32e6


COMPILED_FORMS = 64  # of one block: passes with and without sound, perturbed ones, the last block, sizes


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
class Pass:
    """One prediction that a step asks for: its text contexts [1, tokens, D] and what it leaves out.

    perturbed, perturbed_audio: blocks whose video or audio self-attention is only its value projection (STG); isolated:
    no attention between the streams (modality guidance).
    """

    video_context: Tensor
    audio_context: Tensor
    perturbed: tuple[int, ...] = ()
    perturbed_audio: tuple[int, ...] = ()
    isolated: bool = False

    def departs(self, leader: Pass) -> int | None:
        """The first block where this pass is not `leader` any more; None where that is the very first thing."""
        same_text = self.video_context is leader.video_context and self.audio_context is leader.audio_context
        if not same_text or self.isolated != leader.isolated:
            return None
        own = {*self.perturbed} ^ {*leader.perturbed}, {*self.perturbed_audio} ^ {*leader.perturbed_audio}
        return min(own[0] | own[1], default=None)


@dataclass(eq=False)
class Reuse:
    """First-block cache: where a step's first block changes the video nearly as it did when all blocks last ran, the
    change that the rest made then is used again.

    threshold: mean |change of that change| / mean |change| below which that is so; last: the sigma of the last step,
    which always runs whole. It is the state of one run; `skipped` counts the steps that it spared.
    """

    threshold: float
    last: float = 0.0
    skipped: int = 0
    _head: Tensor | None = None
    _tails: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def close(self, head: Tensor, passes: int) -> bool:
        """Whether `head`, the first block's change in the first pass, is near the remembered one for `passes`."""
        if self._head is None or any(number not in self._tails for number in range(passes)):
            return False
        near = (head - self._head).abs().mean() / self._head.abs().mean()
        return bool(near < self.threshold)


class Rows(NamedTuple):
    """What each row of a batch is told. Flags, not numbers: torch.compile takes numbers for sizes that may vary.

    second_text: reads the second of the contexts; isolated: attends only to itself, and such rows are the last ones;
    skipped, skipped_audio: its self-attention is only its value projection. The audio's has as many as rows have audio.
    """

    second_text: tuple[bool, ...]
    isolated: tuple[bool, ...]
    skipped: tuple[bool, ...]
    skipped_audio: tuple[bool, ...]


class Block(LTX2VideoTransformerBlock):
    """diffusers' block with a forward of our own, on rows of a batch: the passes of a step.

    Its layers are called as modules, so that hooks, casting and offloading see them.
    """

    def forward(
        self,
        video: Tensor,
        audio: Tensor | None,
        video_text: Tensor,
        audio_text: Tensor | None,
        rows: Rows,
        levels: Modulations,
        positions: Rotary,
        audio_read: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """One block: video [R, N, D] and audio [R', T, D'] → both, changed; the inputs stay as they are.

        Audio rows are the first R' of the passes. video_text, audio_text: one or two contexts, [1 or 2, M, D].
        audio_read: whether any later block reads the audio.
        """
        see, hear = levels.video, levels.audio
        own = _ada(self.scale_shift_table, see.own, see.index)
        asking = own.modulate(_norm(self.norm1, video), 0, 1)
        video = _add(video, _attention(self.attn1, asking, positions=positions.video, skipped=rows.skipped), own[2])
        text = _ada(self.prompt_scale_shift_table, see.prompt).modulate(video_text, 0, 1)
        asking = own.modulate(_norm(self.norm2, video), 6, 7)
        video = _add(video, _attention(self.attn2, asking, text, second=rows.second_text), own[8])
        if audio is not None:
            heard = _ada(self.audio_scale_shift_table, hear.own, hear.index)
            asking = heard.modulate(_norm(self.audio_norm1, audio), 0, 1)
            change = _attention(self.audio_attn1, asking, positions=positions.audio, skipped=rows.skipped_audio)
            audio = _add(audio, change, heard[2])
            text = _ada(self.audio_prompt_scale_shift_table, hear.prompt).modulate(audio_text, 0, 1)
            asking = heard.modulate(_norm(self.audio_norm2, audio), 6, 7)
            change = _attention(self.audio_attn2, asking, text, second=rows.second_text[: len(rows.skipped_audio)])
            audio = _add(audio, change, heard[8])
        if not all(rows.isolated):
            joined = len([row for row in rows.isolated if not row])  # torch 2.6 cannot compile count()
            video, audio = self._exchange(video, audio, levels, positions, joined, audio_read)
        video = _add(video, self.ff(own.modulate(_norm(self.norm3, video), 3, 4)), own[5])
        if audio is not None and audio_read:
            audio = _add(audio, self.audio_ff(heard.modulate(_norm(self.audio_norm3, audio), 3, 4)), heard[5])
        return video, audio

    def _exchange(
        self, video: Tensor, audio: Tensor, levels: Modulations, positions: Rotary, joined: int, audio_read: bool
    ) -> tuple[Tensor, Tensor]:
        """The attention between the streams, in the first `joined` rows; both directions read the state before it."""
        see, hear = levels.video, levels.audio
        table, heard_table = self.video_a2v_cross_attn_scale_shift_table, self.audio_a2v_cross_attn_scale_shift_table
        across, heard = _ada(table[:4], see.across, see.index), _ada(heard_table[:4], hear.across, hear.index)
        seen_state = _norm(self.audio_to_video_norm, video[:joined])
        heard_state = _norm(self.video_to_audio_norm, audio[:joined])
        # The tables hold scale and shift for the direction to the video, then for the one to the audio, then the gate.
        change = _attention(
            self.audio_to_video_attn,
            across.modulate(seen_state, 1, 0),
            heard.modulate(heard_state, 1, 0),
            positions=positions.cross_video,
            key_positions=positions.cross_audio,
        )
        video = _add(video, change, _ada(table[4:], see.gate)[0])
        if audio_read:
            change = _attention(
                self.video_to_audio_attn,
                heard.modulate(heard_state, 3, 2),
                across.modulate(seen_state, 3, 2),
                positions=positions.cross_audio,
                key_positions=positions.cross_video,
            )
            audio = _add(audio, change, _ada(heard_table[4:], hear.gate)[0])
        return video, audio


def adopt(model: LTX2VideoTransformer3DModel) -> None:
    """Gives the model's blocks the forward of `Block`. Doing it again changes nothing."""
    for block in model.transformer_blocks:
        if type(block) is LTX2VideoTransformerBlock:
            block.__class__ = Block


def compile_blocks(model: LTX2VideoTransformer3DModel, on: bool = True) -> None:
    """torch.compile of the repeated block: compiled once for all of them, when first run. Off: as they were."""
    adopt(model)
    if on:
        config = torch._dynamo.config
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # its name in torch 2.6
        setattr(config, limit, max(getattr(config, limit), COMPILED_FORMS))
    for block in model.transformer_blocks:
        if not on:
            block._compiled_call_impl = None
        elif block._compiled_call_impl is None:
            block.compile()


def working_set(model: LTX2VideoTransformer3DModel, tokens: int) -> float:
    """Bytes of activations that a row of `tokens` needs in a block beside its state, at its widest: the feed-forward's
    hidden layer before and after its activation, twice four tensors of the model's width, and those around it.
    """
    width = model.config.num_attention_heads * model.config.attention_head_dim
    return 12.0 * tokens * width * model.proj_in.weight.element_size()


def batch_room(device: torch.device) -> float:
    """Bytes that the passes of a step may take as one batch: free memory on a GPU; on a CPU what its caches hold.

    Measured on a CPU: a batch of four is twice as fast where it stays in the cache and 7 % slower where it does not.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + cached)
    return CPU_CACHE


def velocities(
    model: LTX2VideoTransformer3DModel,
    x: Latents,
    passes: Sequence[Pass],
    positions: Rotary,
    levels: Modulations,
    *,
    audio_read: bool = True,
    batched: bool = True,
    reuse: Reuse | None = None,
    on_block: Callable[[], None] | None = None,
) -> list[tuple[Tensor, Tensor | None]]:
    """Tokens → the velocities of each pass, video [1, N, C] and audio [1, T, C], in the model's dtype.

    audio_read: whether audio velocities are wanted; without, they are None and what only serves them is not run.
    batched: the passes as one batch, or one after the other through each block. on_block is called before each block
    and may raise to stop.
    """
    blocks = model.transformer_blocks
    # Rows with sound come first, joined ones before isolated ones; only joined ones are heard where no audio is read.
    order = sorted(range(len(passes)), key=lambda number: passes[number].isolated)
    start: dict[int, tuple[int, int]] = {}  # pass → (the pass that it follows, the block where it departs)
    for place, number in enumerate(order):
        for leader in order[:place]:
            if leader not in start and (block := passes[number].departs(passes[leader])) is not None:
                start[number] = leader, block
                break
    seen, heard = model.proj_in(x.video), model.audio_proj_in(x.audio)
    state: dict[int, tuple[Tensor, Tensor | None]] = {
        number: (seen, heard if audio_read or not passes[number].isolated else None)
        for number in order
        if number not in start
    }
    head: dict[int, tuple[Tensor, Tensor | None]] = {}
    for number, block in enumerate(blocks):
        if on_block is not None:
            on_block()
        state |= {follower: state[leader] for follower, (leader, first) in start.items() if first == number}
        rows = [row for row in order if row in state]
        last = number == len(blocks) - 1
        for group in [rows] if batched else [[row] for row in rows]:
            state |= _run(block, number, group, passes, state, positions, levels, audio_read or not last)
        if number == 0 and reuse is not None:
            head = {row: state[start[row][0] if row in start and start[row][1] else row] for row in order}
            change = head[order[0]][0] - seen
            if reuse.close(change, len(passes)):
                state = {row: _plus(head[row], reuse._tails[row]) for row in order}
                reuse.skipped += 1
                break
            reuse._head = change
    else:
        if reuse is not None:
            reuse._tails = {row: _minus(state[row], head[row]) for row in order}
    results = []
    for row in range(len(passes)):
        video, audio = state[row]
        video = _project(video, levels.video, model.norm_out, model.scale_shift_table, model.proj_out)
        if audio_read:
            audio = _project(
                audio, levels.audio, model.audio_norm_out, model.audio_scale_shift_table, model.audio_proj_out
            )
        results.append((video, audio if audio_read else None))
    return results


def _run(
    block: nn.Module,
    number: int,
    rows: Sequence[int],
    passes: Sequence[Pass],
    state: dict[int, tuple[Tensor, Tensor | None]],
    positions: Rotary,
    levels: Modulations,
    audio_read: bool,
) -> dict[int, tuple[Tensor, Tensor | None]]:
    """One block on these passes as one batch → their new states."""
    loud = [row for row in rows if state[row][1] is not None]
    first = passes[rows[0]]
    second = [not _same_text(passes[row], first) for row in rows]
    texts = [first, passes[rows[second.index(True)]]] if any(second) else [first]
    video, audio = block(
        _stack([state[row][0] for row in rows]),
        _stack([state[row][1] for row in loud]) if loud else None,
        _stack([text.video_context for text in texts]),
        _stack([text.audio_context for text in texts]) if loud else None,
        Rows(
            tuple(second),
            tuple(passes[row].isolated for row in rows),
            tuple(number in passes[row].perturbed for row in rows),
            tuple(number in passes[row].perturbed_audio for row in loud),
        ),
        levels,
        positions,
        audio_read,
    )
    seen = dict(zip(rows, video.split(1), strict=True))
    heard = dict(zip(loud, audio.split(1), strict=True)) if loud else {}
    return {row: (seen[row], heard.get(row)) for row in rows}


def _same_text(a: Pass, b: Pass) -> bool:
    return a.video_context is b.video_context and a.audio_context is b.audio_context


def _stack(rows: Sequence[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))


def _plus(a: tuple[Tensor, Tensor | None], b: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    return a[0] + b[0], None if a[1] is None else a[1] + b[1]


def _minus(a: tuple[Tensor, Tensor | None], b: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    return a[0] - b[0], None if a[1] is None else a[1] - b[1]


@dataclass(frozen=True, eq=False)
class _Ada:
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


def _ada(table: Tensor, values: Tensor, index: Tensor | None = None) -> _Ada:
    return _Ada((table.to(values.device) + values).unbind(1), index)


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)


def _add(x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """x + change · gate, in the memory of `change`; x may have more rows, which stay as they are."""
    changed = change.mul_(gate).add_(x[: len(change)])
    return changed if len(change) == len(x) else torch.cat((changed, x[len(change) :]))


def _project(x: Tensor, levels: Modulation, norm: nn.Module, table: Tensor, projection: nn.Module) -> Tensor:
    return projection(_ada(table.to(levels.out), levels.out[:, None], levels.index).modulate(norm(x), 0, 1))


def _attention(
    attention: Any,
    x: Tensor,
    context: Tensor | None = None,
    *,
    positions: Pair | None = None,
    key_positions: Pair | None = None,
    second: tuple[bool, ...] = (),
    skipped: tuple[bool, ...] = (),
) -> Tensor:
    """Gated attention of x [R, N, D] to itself or to a context [R, M, D'] → [R, N, D].

    second: the context is [1 or 2, M, D'], and this says which rows read its second one. Rows in `skipped` take the
    value projection in place of attention.
    """
    source = x if context is None else context
    value = attention.to_v(source)
    if skipped and all(skipped):
        attended = value
    else:
        asking = _chosen(x, skipped)
        query = _rotate(attention, attention.norm_q(attention.to_q(asking)), positions)
        key = asking if context is None else context
        key = _rotate(attention, attention.norm_k(attention.to_k(key)), key_positions or positions)
        read = _chosen(value, skipped).unflatten(2, (attention.heads, -1))
        if len(second) > 1:
            key, read = (torch.cat([t[-1:] if other else t[:1] for other in second]) for t in (key, read))
        processor = attention.processor
        attended = dispatch_attention_fn(
            query, key, read, backend=processor._attention_backend, parallel_config=processor._parallel_config
        )
        attended = attended.flatten(2, 3).to(query.dtype)
        if any(skipped):
            attending = iter(attended.split(1))
            attended = torch.cat(
                [row if out else next(attending) for row, out in zip(value.split(1), skipped, strict=True)]
            )
    if attention.to_gate_logits is not None:
        gates = 2.0 * torch.sigmoid(attention.to_gate_logits(x))
        attended = (attended.unflatten(2, (attention.heads, -1)) * gates.unsqueeze(-1)).flatten(2, 3)
    return attention.to_out[0](attended)


def _chosen(x: Tensor, skipped: tuple[bool, ...]) -> Tensor:
    """The rows that are not skipped."""
    if not any(skipped):
        return x
    return torch.cat([row for row, out in zip(x.split(1), skipped, strict=True) if not out])


def _rotate(attention: Any, x: Tensor, positions: Pair | None) -> Tensor:
    """Queries or keys [R, N, heads · d] turned by their positions in float32 → [R, N, heads, d]."""
    if positions is None:
        return x.unflatten(2, (attention.heads, -1))
    cos, sin = positions
    if attention.rope_type != "split":
        return apply_interleaved_rotary_emb(x, positions).unflatten(2, (attention.heads, -1))
    first, second = x.unflatten(2, (attention.heads, 2, -1)).float().unbind(3)
    turned = x.new_empty(*x.shape[:2], attention.heads, 2, cos.shape[-1])
    turned[:, :, :, 0] = (first * cos).addcmul_(sin, second, value=-1)
    turned[:, :, :, 1] = (second * cos).addcmul_(sin, first)
    return turned.flatten(3)
