"""Driving the transformer: diffusers' blocks, with version 1.2's conditioning of the official code around them.

Three things differ from diffusers' own forward: the gates of the audio-video attention take the *other* stream's
sigma while scale and shift take each token's own timestep, STG perturbs the video's self-attention alone, and a frozen
stream has sigma 0 everywhere. Rotary embeddings are made once a run, modulation once a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2PerturbedAttnProcessor, LTX2VideoTransformer3DModel
from torch import Tensor, nn

from .samplers import Latents

Pair = tuple[Tensor, Tensor]


class _SelfAttention(LTX2PerturbedAttnProcessor):
    """Self-attention that STG reduces to its value projection where `all_perturbed` names this stream.

    diffusers' block hands the same arguments to both streams' attention; the names keep them apart.
    """

    def __init__(self, stream: str) -> None:
        super().__init__()
        self.stream = stream

    def __call__(self, *args: object, perturbation_mask: object = None, all_perturbed: object = (), **kwargs: object):
        return super().__call__(*args, all_perturbed=self.stream in (all_perturbed or ()), **kwargs)


def separate_stg(model: LTX2VideoTransformer3DModel) -> None:
    """Lets STG perturb the video's and the audio's self-attention each by itself. Doing it again changes nothing."""
    for block in model.transformer_blocks:
        for stream, attention in (("video", block.attn1), ("audio", block.audio_attn1)):
            if not isinstance(attention.processor, _SelfAttention):
                attention.set_processor(_SelfAttention(stream))


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
        return cos.to(device), sin.to(device)

    return Rotary(
        make(model.rope, video),
        make(model.audio_rope, audio),
        make(model.cross_attn_rope, video[:, :1]),
        make(model.cross_attn_audio_rope, audio[:, :1]),
    )


@dataclass(frozen=True)
class Modulation:
    """What a step's noise levels make of AdaLN, by the names that diffusers' blocks take."""

    blocks: dict[str, Tensor]
    video_out: Tensor
    audio_out: Tensor


def modulation(
    model: LTX2VideoTransformer3DModel,
    video_sigmas: Tensor,
    audio_sigmas: Tensor,
    video_sigma: Tensor,
    audio_sigma: Tensor,
    dtype: torch.dtype,
) -> Modulation:
    """AdaLN of one step. *_sigmas: float32 [1, N], each token's; *_sigma: float32 [1], each stream's, 0 if frozen."""
    scale = model.config.timestep_scale_multiplier
    gate_scale = model.config.cross_attn_timestep_scale_multiplier

    def embed(module: nn.Module, sigmas: Tensor, factor: float) -> Pair:
        # Tokens share few noise levels: each level is embedded once and handed out.
        levels, index = torch.unique(sigmas, return_inverse=True)
        values, embedded = module(levels * factor, batch_size=1, hidden_dtype=dtype)
        return values[index], embedded[index]

    video, video_out = embed(model.time_embed, video_sigmas, scale)
    audio, audio_out = embed(model.audio_time_embed, audio_sigmas, scale)
    return Modulation(
        {
            "temb": video,
            "temb_audio": audio,
            "temb_prompt": embed(model.prompt_adaln, video_sigma[None], scale)[0],
            "temb_prompt_audio": embed(model.audio_prompt_adaln, audio_sigma[None], scale)[0],
            "temb_ca_scale_shift": embed(model.av_cross_attn_video_scale_shift, video_sigmas, scale)[0],
            "temb_ca_audio_scale_shift": embed(model.av_cross_attn_audio_scale_shift, audio_sigmas, scale)[0],
            "temb_ca_gate": embed(model.av_cross_attn_video_a2v_gate, audio_sigma[None], gate_scale)[0],
            "temb_ca_audio_gate": embed(model.av_cross_attn_audio_v2a_gate, video_sigma[None], gate_scale)[0],
        },
        video_out,
        audio_out,
    )


def velocity(
    model: LTX2VideoTransformer3DModel,
    x: Latents,
    video_context: Tensor,
    audio_context: Tensor,
    positions: Rotary,
    levels: Modulation,
    *,
    perturbed: tuple[int, ...] = (),
    perturbed_audio: tuple[int, ...] = (),
    isolated: bool = False,
    on_block: Callable[[], None] | None = None,
) -> Latents:
    """One pass: tokens → velocities, in the model's dtype.

    perturbed, perturbed_audio: blocks whose video or audio self-attention is only its value projection (STG); isolated:
    no attention between the streams (modality guidance). on_block is called before each block and may raise to stop.
    """
    video, audio = model.proj_in(x.video), model.audio_proj_in(x.audio)
    for number, block in enumerate(model.transformer_blocks):
        if on_block is not None:
            on_block()
        video, audio = block(
            hidden_states=video,
            audio_hidden_states=audio,
            encoder_hidden_states=video_context,
            audio_encoder_hidden_states=audio_context,
            **levels.blocks,
            video_rotary_emb=positions.video,
            audio_rotary_emb=positions.audio,
            ca_video_rotary_emb=positions.cross_video,
            ca_audio_rotary_emb=positions.cross_audio,
            use_a2v_cross_attention=not isolated,
            use_v2a_cross_attention=not isolated,
            all_perturbed=[s for s, chosen in (("video", perturbed), ("audio", perturbed_audio)) if number in chosen],
        )
    return Latents(
        _project(video, levels.video_out, model.norm_out, model.scale_shift_table, model.proj_out),
        _project(audio, levels.audio_out, model.audio_norm_out, model.audio_scale_shift_table, model.audio_proj_out),
    )


def _project(x: Tensor, embedded: Tensor, norm: nn.Module, table: Tensor, projection: nn.Module) -> Tensor:
    shift, scale = (table[None, None].to(embedded) + embedded[:, :, None]).unbind(dim=2)
    return projection(norm(x) * (1 + scale) + shift)
