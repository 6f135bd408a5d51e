"""From modules in training to the original files: the pack's renames, backwards, in bfloat16.

Renames cannot be turned around by rule, so every name is checked: a key of the original layout is written only if the
pack's own rename makes the module's name of it. What is written is thereby what the pack reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..ltx.weights.parts import AUDIO_VAE, CONNECTORS, TRANSFORMER, VIDEO_VAE, VOCODER, Part
from . import sizes
from .training import write

# diffusers' name → the original's, tried in order; each must lead back through the pack's renames.
BACKWARDS: dict[str, tuple[tuple[str, str], ...]] = {
    TRANSFORMER.name: (
        (r"^time_embed\.", "adaln_single."),
        (r"^audio_time_embed\.", "audio_adaln_single."),
        (r"^proj_in\b", "patchify_proj"),
        (r"^audio_proj_in\b", "audio_patchify_proj"),
        (r"av_cross_attn_video_scale_shift", "av_ca_video_scale_shift_adaln_single"),
        (r"av_cross_attn_video_a2v_gate", "av_ca_a2v_gate_adaln_single"),
        (r"av_cross_attn_audio_scale_shift", "av_ca_audio_scale_shift_adaln_single"),
        (r"av_cross_attn_audio_v2a_gate", "av_ca_v2a_gate_adaln_single"),
        (r"video_a2v_cross_attn_scale_shift_table", "scale_shift_table_a2v_ca_video"),
        (r"audio_a2v_cross_attn_scale_shift_table", "scale_shift_table_a2v_ca_audio"),
        (r"^(audio_)?prompt_adaln\.", r"\1prompt_adaln_single."),
        (r"norm_q", "q_norm"),
        (r"norm_k", "k_norm"),
    ),
    CONNECTORS.name: (
        (r"^(video|audio)_connector\.", r"model.diffusion_model.\1_embeddings_connector."),
        (r"^(video|audio)_text_proj_in\.", r"text_embedding_projection.\1_aggregate_embed."),
        (r"\btransformer_blocks\.", "transformer_1d_blocks."),
        (r"norm_q", "q_norm"),
        (r"norm_k", "k_norm"),
    ),
    AUDIO_VAE.name: (
        (r"^latents_mean$", "per_channel_statistics.mean-of-means"),
        (r"^latents_std$", "per_channel_statistics.std-of-means"),
    ),
    VIDEO_VAE.name: (
        (r"^latents_mean$", "per_channel_statistics.mean-of-means"),
        (r"^latents_std$", "per_channel_statistics.std-of-means"),
        (r"^encoder\.mid_block\.", "encoder.down_blocks.8."),
        (r"^decoder\.mid_block\.", "decoder.up_blocks.0."),
        (r"resnets", "res_blocks"),
    ),
    VOCODER.name: (
        (r"resnets", "resblocks"),
        (r"conv_in", "conv_pre"),
        (r"conv_out", "conv_post"),
        (r"act_out", "act_post"),
        (r"downsample(?=\.filter)", "downsample.lowpass"),
        (r"\bupsamplers\.", "ups."),
    ),
}


def _row(match: re.Match[str]) -> str:
    """The original numbers blocks and their resamplers in one row."""
    coder, block, resampler, rest = match["coder"], int(match["block"]), match["resampler"], match["rest"]
    if coder == "encoder":
        return f"encoder.down_blocks.{2 * block + (1 if resampler else 0)}.{rest}"
    return f"decoder.up_blocks.{2 * block + (1 if resampler else 2)}.{rest}"


def original_name(part: Part, name: str) -> str:
    """A module's parameter → its key in the original single file, prefix included. Errors: no such key."""
    key = name
    if part is VIDEO_VAE:
        pattern = r"^(?P<coder>encoder|decoder)\.(?:down|up)_blocks\.(?P<block>\d+)\."
        pattern += r"(?P<resampler>(?:down|up)samplers\.0\.)?(?P<rest>.*)$"
        key = re.sub(pattern, _row, key)
    for before, after in BACKWARDS[part.name]:
        key = re.sub(before, after, key)
    if part.rename(key) != name:
        raise KeyError(f"{part.name}: no original name gives {name} ({key} gives {part.rename(key)})")
    return part.prefixes[0] + key if part.strip else key


def original_state(part: Part, state: Mapping[str, Tensor], dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """A module's state under its original keys."""
    return {original_name(part, name): tensor.to(dtype) for name, tensor in state.items()}


def export_checkpoint(path: Path, modules: Mapping[str, nn.Module]) -> Path:
    """The five parts, by the names of `sizes.module`, as one original file."""
    parts = {"transformer": TRANSFORMER, "connectors": CONNECTORS, "vae": VIDEO_VAE}
    parts |= {"audio_vae": AUDIO_VAE, "vocoder": VOCODER}
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        tensors |= original_state(part, modules[name].state_dict())
    write(path, tensors, sizes.metadata())
    return path


def export_upscaler(path: Path, module: nn.Module) -> Path:
    """Its file has diffusers' own names."""
    tensors = {k: v.to(torch.bfloat16) for k, v in module.state_dict().items()}
    write(path, tensors, {"config": json.dumps(sizes.UPSCALER), "format": "pt"})
    return path


def export_lora(path: Path, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Path:
    """LoRA of the transformer: module's name at diffusers → (A [rank, in], B [out, rank])."""
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in factors.items():
        key = original_name(TRANSFORMER, f"{name}.weight").removesuffix(".weight").removeprefix("model.")
        tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = a.to(torch.bfloat16), b.to(torch.bfloat16)
    write(path, tensors, {"format": "pt"})
    return path
