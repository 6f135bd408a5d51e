"""The transformer's block: diffusers' weights and layers under a forward of our own, on rows of a batch.

STG perturbs each stream's self-attention by itself here, where diffusers' forward perturbs both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_ltx2 import (
    LTX2VideoTransformer3DModel,
    LTX2VideoTransformerBlock,
    apply_interleaved_rotary_emb,
)
from torch import Tensor, nn

from ..classes import give_classes
from .modulation import Modulations, Pair, Rotary, ada

COMPILED_FORMS = 64  # of one block: passes with and without sound, perturbed ones, the last block, sizes


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
        own = ada(self.scale_shift_table, see.own, see.index)
        asking = own.modulate(_norm(self.norm1, video), 0, 1)
        video = _add(video, _attention(self.attn1, asking, positions=positions.video, skipped=rows.skipped), own[2])
        text = ada(self.prompt_scale_shift_table, see.prompt).modulate(video_text, 0, 1)
        asking = own.modulate(_norm(self.norm2, video), 6, 7)
        video = _add(video, _attention(self.attn2, asking, text, second=rows.second_text), own[8])
        if audio is not None:
            heard = ada(self.audio_scale_shift_table, hear.own, hear.index)
            asking = heard.modulate(_norm(self.audio_norm1, audio), 0, 1)
            change = _attention(self.audio_attn1, asking, positions=positions.audio, skipped=rows.skipped_audio)
            audio = _add(audio, change, heard[2])
            text = ada(self.audio_prompt_scale_shift_table, hear.prompt).modulate(audio_text, 0, 1)
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
        across, heard = ada(table[:4], see.across, see.index), ada(heard_table[:4], hear.across, hear.index)
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
        video = _add(video, change, ada(table[4:], see.gate)[0])
        if audio_read:
            change = _attention(
                self.video_to_audio_attn,
                heard.modulate(heard_state, 3, 2),
                across.modulate(seen_state, 3, 2),
                positions=positions.cross_audio,
                key_positions=positions.cross_video,
            )
            audio = _add(audio, change, ada(heard_table[4:], hear.gate)[0])
        return video, audio


def adopt(model: LTX2VideoTransformer3DModel) -> None:
    """Gives the model's blocks the forward of `Block`. Doing it again changes nothing."""
    give_classes(model.transformer_blocks, {LTX2VideoTransformerBlock: Block})


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


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)


def _add(x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """x + change · gate, in the memory of `change`; x may have more rows, which stay as they are."""
    changed = change.mul_(gate).add_(x[: len(change)])
    return changed if len(change) == len(x) else torch.cat((changed, x[len(change) :]))


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
