"""Translates the original file of LTX-2.5's diffusion VAE into diffusers' terms: its configuration and weight names.

The file holds the convolutional VAE's encoder (configs.py), the diffusion decoder and the latents' statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .configs import STATISTICS_RENAMES, rename
from .files import WeightFile
from .quantized import Stored

MARK = "vae.decoder.conv_in_x_t.weight"
"""The name of a weight that only this decoder has."""
RENAMES = (
    (r"^decoder\.t_embedder\.mlp\.0\.", "decoder.t_embedder.timestep_embedder.linear_1."),
    (r"^decoder\.t_embedder\.mlp\.2\.", "decoder.t_embedder.timestep_embedder.linear_2."),
    (r"\.attn\.proj\.", ".attn.to_out.0."),
    (r"\.q_norm\.", ".norm_q."),
    (r"\.k_norm\.", ".norm_k."),
)
FUSED = ("to_q", "to_k", "to_v")  # the thirds of a fused `qkv`, in this order
GATES = {".attn.to_out.0.": "gate_msa", ".mlp.w_down.": "gate_mlp", ".context_proj.": "gate_ctx"}
"""Linear layer → the gate beside it in some files: diffusers has no gates, because they can be folded into these."""
UNUSED = (".gate_msa", ".gate_mlp", ".gate_ctx", ".type_emb")


@dataclass(frozen=True)
class Source:
    """Where the tensor of a parameter is: a file and the name there.

    third: which third of a fused tensor it is. gate: the name of a vector that the rows are multiplied by.
    """

    file: WeightFile
    name: str
    third: int | None = None
    gate: str | None = None

    def get(self) -> Tensor | Stored:
        """The tensor, which maps its file unless it is gated. A quantized one is decoded where only a part is used."""
        tensor = self.file.get(self.name)
        if self.third is None and self.gate is None:
            return tensor
        tensor = tensor.decode() if isinstance(tensor, Stored) else tensor
        if self.third is not None:
            tensor = tensor.chunk(3)[self.third]
        if self.gate is not None:
            gate = self.file.get(self.gate)
            gate = gate.decode() if isinstance(gate, Stored) else gate.float()
            tensor = (tensor.float() * gate.view(-1, *[1] * (tensor.ndim - 1))).to(tensor.dtype)
        return tensor


def decoder_sources(file: WeightFile, prefix: str) -> dict[str, Source]:
    """diffusers' names of the decoder → where each tensor is; `prefix` is what the file's names begin with."""
    found = {}
    for key in file.names:
        name = key.removeprefix(prefix)
        if name == key or name.startswith("encoder.") or name.endswith(UNUSED) or ".coarse_" in name:
            continue
        if not name.startswith("decoder."):
            renamed = rename(name, STATISTICS_RENAMES)
            if renamed != name:
                found[renamed] = Source(file, key)
            continue
        name = rename(name, RENAMES)
        if ".attn.qkv." in name:
            for third, half in enumerate(FUSED):
                found[name.replace(".qkv.", f".{half}.")] = Source(file, key, third)
            continue
        gates = (f"{prefix}{name.partition(layer)[0]}.{gate}" for layer, gate in GATES.items() if layer in name)
        found[name] = Source(file, key, gate=next((gate for gate in gates if gate in file.names), None))
    return found


def decoder_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`config.vae` of the file → arguments of LTX2VideoDiffusionDecoderModel.

    Where a file with a configuration lacks an entry, the official code's default counts; a file without one is the
    published model.
    """
    own, published = meta.get("decoder", meta), not meta
    kernels = own.get("stage_kernels", ((3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5)))
    upsamples = own.get("upsamples", (((1, 2, 2), 2), ((2, 1, 1), 2), ((2, 2, 2), 1), ((2, 2, 2), 2)))
    return {
        "out_channels": own.get("out_channels", 3) if "decoder" in meta else 3,
        "latent_channels": own.get("in_channels", meta.get("latent_channels", 128)),
        "patch_size": own.get("patch_size", 4),
        "decoder_head_dim": own.get("head_dim", own.get("na_head_dim", 64)),
        "decoder_stage_channels": tuple(own.get("stage_channels", (2048, 1024, 512, 512, 256))),
        "decoder_stage_depths": tuple(own.get("stage_depths", (4, 6, 4, 2, 8))),
        "decoder_stage_kernels": tuple(map(tuple, kernels[: len(upsamples)])),
        "decoder_upsample_strides": tuple(tuple(stride) for stride, _ in upsamples),
        "decoder_upsample_channel_reductions": tuple(reduction for _, reduction in upsamples),
        "decoder_stage5_kernel": tuple(own.get("stage5_kernel", (11, 11, 11) if published else (3, 7, 7))),
        "decoder_t_emb_dim": own.get("t_emb_dim", 384),
        "decoder_timestep_scale_multiplier": own.get("timestep_scale_multiplier", 1000.0 if published else 1.0),
        "decoder_model_output_type": meta.get("model_output_type", "x0" if published else "v"),
        "decoder_num_inference_steps": own.get("default_num_inference_steps", 1 if published else 2),
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    }


def encoder_meta(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """`config.vae` of the file as the convolutional VAE's file would describe the same encoder."""
    own = meta.get("encoder")
    if not isinstance(own, Mapping):
        return meta
    said = {name: own[name] for name in ("in_channels", "patch_size", "spatial_padding_mode") if name in own}
    blocks = {"encoder_blocks": own["blocks"]} if "blocks" in own else {}
    return {"latent_channels": meta.get("latent_channels", 128), **said, **blocks}
