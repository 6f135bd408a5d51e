"""The transformer's block: diffusers' weights and layers with our own forward, which works on rows of a batch.

STG can perturb the self-attention of the video or of the audio alone; diffusers' forward perturbs both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_ltx2 import (
    LTX2VideoTransformer3DModel,
    LTX2VideoTransformerBlock,
    apply_interleaved_rotary_emb,
)
from torch import Tensor, nn

from ..classes import give_classes
from ..weights.quantized import read_by
from ..weights.rounding import Input, sharing
from .attention import taking_weights
from .kernels import add_gated, fuses, gate_heads, gelu, modulator, norm_rotate
from .leading import Leading
from .modulation import Ada, Modulations, Pair, Rotary, ada
from .sight import View, attend_in_groups

Texts = tuple[Pair, Pair | None]
"""What the streams attend to in a text: keys [1 or 2, M, heads, d] and values [1 or 2, M, D] of the video and of the
audio. Two texts stand in one tensor."""


class Rows(NamedTuple):
    """Flags for each row of a batch. They are flags because torch.compile treats numbers as sizes that may vary.

    second_text, second_audio_text: the row reads the second context; such rows come after those of the first one.
    isolated: there is no attention between its streams; such rows come last. skipped, skipped_audio: its video or audio
    self-attention is replaced by the value projection. Those of the audio have one flag for each row of the audio. led,
    led_audio: a flag for each context, whether NAG leads the rows that read it away from the other context.
    """

    second_text: tuple[bool, ...]
    isolated: tuple[bool, ...]
    skipped: tuple[bool, ...]
    second_audio_text: tuple[bool, ...]
    skipped_audio: tuple[bool, ...]
    led: tuple[bool, ...]
    led_audio: tuple[bool, ...]


class Reading(NamedTuple):
    """How rows read a text. pair: keys and values of its one or two contexts. second, led: as in `Rows`. nag: for
    the rows that are led."""

    pair: Pair
    second: tuple[bool, ...]
    led: tuple[bool, ...]
    nag: Leading | None


class Block(LTX2VideoTransformerBlock):
    """diffusers' block with our own forward, on rows of a batch, which are the passes of a step.

    Its layers are called as modules, so that hooks, casting and offloading work.
    """

    # long: what a block reads, by name
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
        texts: Texts | None = None,
        keep: bool = False,
        views: tuple[View, ...] = (),
        nag: Leading | None = None,
    ) -> tuple[Tensor, Tensor | None, Texts | None]:
        """Runs one block: video [R, N, D] and audio [R', T, D'] → both streams after it. The inputs do not change.

        The first rows have audio, each as many rows of it as there are sounds, of which the picture hears shares, and
        one without them: R' in all. video_text, audio_text: one or two contexts, [1 or 2, M, D]. audio_read: whether a
        later block reads the audio. texts: the keys and values of these contexts, if they were kept; keep: whether to
        return them. views: what groups of video tokens see of each other; empty if all tokens see all. nag: for the
        rows that are led.
        """
        of_video, of_audio = levels.video, levels.audio
        video_ada = ada(self.scale_shift_table, of_video.own, of_video.places)
        x = _modulated(self.norm1, video, video_ada, 0, 1, _readers(self.attn1, rows.skipped))
        change = _attention(self.attn1, x, positions=positions.video, skipped=rows.skipped, views=views)
        video = self._added(video_ada, video, change, 2)
        if texts is None:
            video_read = _pair(
                self.attn2, ada(self.prompt_scale_shift_table, of_video.prompt).modulate(video_text, 0, 1)
            )
        else:
            video_read = texts[0]
        x = _modulated(self.norm2, video, video_ada, 6, 7, _askers(self.attn2))
        change = _attention(self.attn2, x, reading=Reading(video_read, rows.second_text, rows.led, nag))
        video = self._added(video_ada, video, change, 8)
        heard = None
        if audio is not None:
            audio_ada = ada(self.audio_scale_shift_table, of_audio.own, of_audio.places)
            x = _modulated(self.audio_norm1, audio, audio_ada, 0, 1, _readers(self.audio_attn1, rows.skipped_audio))
            change = _attention(self.audio_attn1, x, positions=positions.audio, skipped=rows.skipped_audio)
            audio = self._added(audio_ada, audio, change, 2)
            if texts is None:
                text = ada(self.audio_prompt_scale_shift_table, of_audio.prompt).modulate(audio_text, 0, 1)
                heard = _pair(self.audio_attn2, text)
            else:
                heard = texts[1]
            x = _modulated(self.audio_norm2, audio, audio_ada, 6, 7, _askers(self.audio_attn2))
            reading = Reading(heard, rows.second_audio_text, rows.led_audio, nag)
            change = _attention(self.audio_attn2, x, reading=reading)
            audio = self._added(audio_ada, audio, change, 8)
        if not all(rows.isolated):
            joined = len([row for row in rows.isolated if not row])  # torch 2.6 cannot compile count()
            self._exchange(video, audio, levels, positions, joined, audio_read)
        video = self._added(video_ada, video, self._fed(self.ff, self.norm3, video, video_ada), 5)
        if audio is not None and audio_read:
            change = self._fed(self.audio_ff, self.audio_norm3, audio, audio_ada)
            audio = self._added(audio_ada, audio, change, 5)
        return video, audio, (video_read, heard) if keep else None

    def _exchange(
        self, video: Tensor, audio: Tensor, levels: Modulations, positions: Rotary, joined: int, audio_read: bool
    ) -> None:
        """The attention between the streams, in the first `joined` rows, which it overwrites. Both directions read the
        state before it."""
        of_video, of_audio = levels.video, levels.audio
        video_table = self.video_a2v_cross_attn_scale_shift_table
        audio_table = self.audio_a2v_cross_attn_scale_shift_table
        video_ada = ada(video_table[:4], of_video.across, of_video.places)
        audio_ada = ada(audio_table[:4], of_audio.across, of_audio.places)
        sounds = 1 if positions.hearing is None else positions.hearing.shape[2]
        of_picture = modulator(self.audio_to_video_norm, video[:joined])
        of_sound = modulator(self.video_to_audio_norm, audio[: joined * sounds])
        # A table holds scale and shift for the direction to the video, scale and shift for the direction to the audio,
        # and the gate.
        alone = sounds == 1  # otherwise rows are chosen of what is heard, and those of what is seen are repeated
        to_video, to_audio = self.audio_to_video_attn, self.video_to_audio_attn
        looking = of_picture(video_ada, 1, 0, _askers(to_video))
        heard = of_sound(audio_ada, 1, 0, _answerers(to_video) if alone else ())
        if audio_read:
            listening = of_sound(audio_ada, 3, 2, _askers(to_audio))
            seen = of_picture(video_ada, 3, 2, _answerers(to_audio) if alone else ())
        del of_picture, of_sound
        change, *others = (
            _attention(
                to_video,
                looking,
                heard if alone else heard[number::sounds],
                positions=positions.cross_video,
                key_positions=positions.cross_audio,
            )
            for number in range(sounds)
        )
        if positions.hearing is not None:
            share, *shares = positions.hearing.split(1, 2)
            change = change * share
            for other, share in zip(others, shares, strict=True):
                change = change.addcmul(other, share)
        self._add(ada(video_table[4:], of_video.gate), video[:joined], change)
        if audio_read:
            change = _attention(
                to_audio,
                listening,
                seen if alone else seen.repeat_interleave(sounds, 0),  # beside each row of the audio
                positions=positions.cross_audio,
                key_positions=positions.cross_video,
            )
            self._add(ada(audio_table[4:], of_audio.gate), audio[: joined * sounds], change)

    def _added(self, ada: Ada, x: Tensor, change: Tensor, gate: int) -> Tensor:
        """Returns x + change · gate in the memory of `change`. gate: the parameter's number in `ada`."""
        if fuses(self, x) and change.is_contiguous():
            return add_gated(x, change, ada, gate, change)
        return ada.gated(x, change, gate)

    def _fed(self, feed: FeedForward, norm: nn.Module, x: Tensor, ada: Ada) -> Tensor:
        """What a feed-forward network gives for x, normalised and modulated."""
        first, last = feed.net[0], feed.net[-1]  # between them is the dropout of training
        if not (fuses(self, x) and isinstance(first, GELU) and first.approximate == "tanh"):
            return feed(_modulated(norm, x, ada, 3, 4, ()))
        x = _modulated(norm, x, ada, 3, 4, (first.proj,))
        return last(gelu(first.proj(x), (last,)))

    def _add(self, gate: Ada, x: Tensor, change: Tensor) -> None:
        """Adds change · gate to x in place. gate: of one parameter, which is the same for all tokens."""
        if fuses(self, x) and x.is_contiguous():
            add_gated(x, change, gate, 0, x)
        else:
            x.addcmul_(change, *gate.values)


def adopt(model: LTX2VideoTransformer3DModel) -> None:
    """Gives the model's blocks the forward of `Block`. A second call changes nothing."""
    give_classes(model.transformer_blocks, {LTX2VideoTransformerBlock: Block})


def _askers(attention: Any) -> list[nn.Module]:
    """The layers that read the input of attention to a context."""
    return [layer for layer in (attention.to_gate_logits, attention.to_q) if layer is not None]


def _answerers(attention: Any) -> list[nn.Module]:
    """The layers that read the context."""
    return [attention.to_k, attention.to_v]


def _readers(attention: Any, skipped: tuple[bool, ...]) -> list[nn.Module]:
    """The layers that read the input of self-attention; none if rows of it are skipped, for which it is cut."""
    return [] if any(skipped) else _askers(attention) + _answerers(attention)


def _modulated(norm: nn.Module, x: Tensor, ada: Ada, shift: int, scale: int, readers: Iterable[nn.Module]) -> Input:
    """Normalised x, modulated by two parameters of `ada`, for the layers that read it."""
    return modulator(norm, x)(ada, shift, scale, readers)


def _attention(
    attention: Any,
    x: Input,
    context: Input | None = None,
    *,
    reading: Reading | None = None,
    positions: Pair | None = None,
    key_positions: Pair | None = None,
    skipped: tuple[bool, ...] = (),
    views: tuple[View, ...] = (),
) -> Tensor:
    """Gated attention of x [R, N, D] to itself, to a context [R, M, D'], or to a text by `reading` → [R, N, D].

    skipped: flags of the rows that take the value projection instead of attention. views: as for `Block`.
    """
    with sharing():
        gates, source = attention.to_gate_logits, x if context is None else context
        logits = None if gates is None else gates(read_by(gates, x))
        if reading is None:
            value = attention.to_v(read_by(attention.to_v, source)).unflatten(2, (attention.heads, -1))
            if skipped and all(skipped):
                return attention.to_out[0](_gated(attention, [value], logits))
        kept = _without_skipped(x, skipped)
        query = _rotate(attention, attention.norm_q, attention.to_q(read_by(attention.to_q, kept)), positions)
        if reading is None:
            key = attention.to_k(read_by(attention.to_k, kept if context is None else context))
            key = _rotate(attention, attention.norm_k, key, key_positions or positions)
    if reading is not None:
        return attention.to_out[0](_gated(attention, _read(attention, query, reading), logits))
    attended = [_attend(attention.processor, query, key, _without_skipped(value, skipped), views)]
    if any(skipped):
        rows = iter(attended[0].split(1))
        attended = [row if skip else next(rows) for row, skip in zip(value.split(1), skipped, strict=True)]
    return attention.to_out[0](_gated(attention, attended, logits))


def _read(attention: Any, query: Tensor, reading: Reading) -> list[Tensor]:
    """What the rows [R, N, heads, d] read in their contexts, a tensor for each context. The rows of one context are one
    long row, so that its keys and values are not repeated."""
    (keys, values), second, led, nag = reading
    values = values.unflatten(2, (attention.heads, -1))
    others = len([row for row in second if row])  # as for `joined`
    parts = query.split([len(second) - others, others]) if others else (query,)
    read = []
    for number, part in enumerate(parts):
        rows = part.flatten(0, 1)[None]

        def in_context(number: int, rows: Tensor = rows) -> Tensor:
            context = slice(number, number + 1)
            return _attend(attention.processor, rows, keys[context], values[context], ())

        row = in_context(number)
        if led[number]:
            row = nag(row, in_context(1 - number))
        read.append(row.reshape(part.shape))
    return read


def _gated(attention: Any, parts: list[Tensor], logits: Tensor | None) -> Input:
    """Rows [r, N, heads, d] of attention, one part after the other, times their gates, if there are any → [R, N, D] for
    `to_out`, in the memory of a single part. logits: [R, N, heads], of which twice the sigmoid is the gate."""
    if logits is not None and fuses(attention, logits):
        return gate_heads(parts, logits, attention.to_out[0])
    gates = None if logits is None else 2.0 * torch.sigmoid(logits).unsqueeze(-1)
    if gates is None or torch.compiler.is_compiling():
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return (whole if gates is None else whole * gates).flatten(2)
    sizes = [len(part) for part in parts]
    whole = parts[0] if len(parts) == 1 else parts[0].new_empty(sum(sizes), *parts[0].shape[1:])
    for part, own, gate in zip(parts, whole.split(sizes), gates.split(sizes), strict=True):
        torch.mul(part, gate, out=own)
    return whole.flatten(2)


def _attend(processor: Any, query: Tensor, key: Tensor, value: Tensor, views: tuple[View, ...]) -> Tensor:
    """Attention [R, N, heads, d] by the processor's backend."""

    def dispatch(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        backend = processor._attention_backend
        attended = dispatch_attention_fn(
            query,
            key,
            value,
            bias,
            backend=backend if bias is None else taking_weights(backend),
            parallel_config=processor._parallel_config,
        )
        return attended.to(query.dtype)

    return attend_in_groups(views, query, key, value, dispatch) if views else dispatch(query, key, value)


def _pair(attention: Any, context: Tensor) -> Pair:
    """Keys [n, M, heads, d] and values [n, M, D] of contexts [n, M, D'] that have no positions."""
    with sharing():
        return _rotate(attention, attention.norm_k, attention.to_k(context), None), attention.to_v(context)


def _without_skipped(x: Input, skipped: tuple[bool, ...]) -> Input:
    """The rows that are not skipped."""
    if not any(skipped):
        return x
    return torch.cat([row for row, skip in zip(x.split(1), skipped, strict=True) if not skip])


def _rotate(attention: Any, norm: nn.Module, x: Tensor, positions: Pair | None) -> Tensor:
    """Normalises queries or keys and rotates them by their positions, in float32: [R, N, heads · d] → [R, N, heads,
    d]."""
    split = attention.rope_type == "split"
    if positions is not None and split and fuses(norm, x):
        return norm_rotate(norm, x, attention.heads, positions)
    x = norm(x)
    if positions is None:
        return x.unflatten(2, (attention.heads, -1))
    cos, sin = positions
    if not split:
        return apply_interleaved_rotary_emb(x, positions).unflatten(2, (attention.heads, -1))
    halves = x.unflatten(2, (attention.heads, 2, -1)).unflatten(1, (len(cos), -1))
    turned = halves * cos.unsqueeze(3)  # float32, also where x is shorter
    if torch.compiler.is_compiling():
        first, second = halves.unbind(4)
        pair = (turned[..., 0, :].addcmul(sin, second, value=-1), turned[..., 1, :].addcmul(sin, first))
        result = torch.stack(pair, 4).to(x.dtype)
    else:
        result = turned if turned.dtype == x.dtype else torch.empty_like(halves)
        for half, sign in ((0, -1), (1, 1)):
            torch.addcmul(turned[..., half, :], sin, halves[..., 1 - half, :], value=sign, out=result[..., half, :])
    return result.flatten(4).flatten(1, 2)
