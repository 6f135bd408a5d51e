"""Translates the configuration and the weight names of the original LTX-2.3 files into diffusers' terms.

Each `*_config` function turns an entry of the file's `config` metadata into the arguments of diffusers' class. Where an
entry is missing, the value of the published model is used. Nothing here opens a file or builds a module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..models import VERSIONS, WANTED

BLOCK_TYPES = {"space": "spatial", "time": "temporal", "all": "spatiotemporal"}

# The key prefixes of the parts in the original single file.
TRANSFORMER = ("model.diffusion_model.",)
TEXT_PROJECTION = "text_embedding_projection."
CONNECTORS = (
    "model.diffusion_model.video_embeddings_connector.",
    "model.diffusion_model.audio_embeddings_connector.",
    TEXT_PROJECTION,
)
VIDEO_VAE, AUDIO_VAE, VOCODER = ("vae.",), ("audio_vae.",), ("vocoder.",)

# Steps of a dotted name: original → diffusers. A name is translated step by step, so both directions are exact.
TRANSFORMER_STEPS = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "prompt_adaln_single": "prompt_adaln",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
CONNECTOR_STEPS = {
    "video_embeddings_connector": "video_connector",
    "audio_embeddings_connector": "audio_connector",
    "video_aggregate_embed": "video_text_proj_in",
    "audio_aggregate_embed": "audio_text_proj_in",
    "transformer_1d_blocks": "transformer_blocks",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}

# original name → diffusers' name. The patterns apply in this order, each to the result of the earlier ones.
STATISTICS_RENAMES = (
    (r"^per_channel_statistics\.mean-of-means$", "latents_mean"),
    (r"^per_channel_statistics\.std-of-means$", "latents_std"),
)
VOCODER_RENAMES = (
    (r"resblocks", "resnets"),
    (r"conv_pre", "conv_in"),
    (r"conv_post", "conv_out"),
    (r"act_post", "act_out"),
    (r"downsample\.lowpass", "downsample"),
    (r"\.ups\.|^ups\.", ".upsamplers."),
)


def rename(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def translate(name: str, steps: Mapping[str, str]) -> str:
    return ".".join(steps.get(step, step) for step in name.split("."))


def rename_transformer(key: str) -> str:
    """Original key of the transformer without its prefix → diffusers' name of the parameter or module."""
    return translate(key, TRANSFORMER_STEPS)


def rename_connectors(key: str) -> str:
    for prefix in (*TRANSFORMER, TEXT_PROJECTION):
        key = key.removeprefix(prefix)
    return translate(key, CONNECTOR_STEPS)


def rename_vocoder(key: str) -> str:
    return rename(key, VOCODER_RENAMES)


def rename_audio_vae(key: str) -> str:
    return rename(key, STATISTICS_RENAMES)


def rename_video_vae(key: str) -> str | None:
    """Original key → diffusers' name, or None for statistics that the model does not use.

    The original file numbers blocks and resamplers in one sequence; diffusers attaches each resampler to a block.
    """
    if key.startswith("per_channel_statistics."):
        name = rename(key, STATISTICS_RENAMES)
        return None if name == key else name
    match = re.match(r"(encoder\.down_blocks|decoder\.up_blocks)\.(\d+)\.(.*)", key)
    if not match:
        return key
    row, number, rest = match[1], int(match[2]), match[3].replace("res_blocks", "resnets")
    half, odd = divmod(number, 2)
    if row == "encoder.down_blocks":
        block = f"{row}.{half}.downsamplers.0" if odd else f"{row}.{half}"
        block = "encoder.mid_block" if number == 8 else block
    elif number == 0:
        block = "decoder.mid_block"
    else:
        block = f"{row}.{half}.upsamplers.0" if odd else f"{row}.{half - 1}"
    return f"{block}.{rest}"


SWITCHES = {
    "ff_bias": True,
    "audio_ff_bias": True,
    "use_prompt_adaln_single": True,
    "use_keyframes_abs_pos_embedding": False,
}
"""What LTX-2.5 switches, and what a file means that does not say; diffusers calls them the same."""


def switched(config: Mapping[str, Any]) -> dict[str, Any]:
    """The SWITCHES that a configuration sets to another value than LTX-2.3's; null is false. {} for LTX-2.3."""
    return {name: config[name] for name, usual in SWITCHES.items() if bool(config.get(name, usual)) != usual}


def transformer_config(meta: Mapping[str, Any], measured: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`config.transformer` of the file → arguments of LTX2VideoTransformer3DModel.

    measured: what the tensors say, for what the configuration does not (measure.py).
    """
    said, meta = bool(meta), {**(measured or {}), **meta}
    max_pos = meta.get("positional_embedding_max_pos", [20, 2048, 2048])
    gated, modulated = meta.get("apply_gated_attention", True), meta.get("cross_attention_adaln", True)
    video_heads, video_dim = meta.get("num_attention_heads", 32), meta.get("attention_head_dim", 128)
    audio_heads, audio_dim = meta.get("audio_num_attention_heads", 32), meta.get("audio_attention_head_dim", 64)
    return {
        "in_channels": meta.get("in_channels", 128),
        "out_channels": meta.get("out_channels", 128),
        "num_attention_heads": video_heads,
        "attention_head_dim": video_dim,
        "cross_attention_dim": meta.get("cross_attention_dim", video_heads * video_dim),
        "vae_scale_factors": (8, 32, 32),
        "pos_embed_max_pos": max_pos[0],
        "base_height": max_pos[1],
        "base_width": max_pos[2],
        "gated_attn": gated,
        "cross_attn_mod": modulated,
        "audio_in_channels": meta.get("audio_in_channels", 128),
        "audio_out_channels": meta.get("audio_out_channels", 128),
        "audio_num_attention_heads": audio_heads,
        "audio_attention_head_dim": audio_dim,
        "audio_cross_attention_dim": meta.get("audio_cross_attention_dim", audio_heads * audio_dim),
        "audio_scale_factor": 4,
        "audio_pos_embed_max_pos": meta.get("audio_positional_embedding_max_pos", [20])[0],
        "audio_gated_attn": gated,
        "audio_cross_attn_mod": modulated,
        "num_layers": meta.get("num_layers", 48),
        "norm_eps": meta.get("norm_eps", 1e-6),
        "norm_elementwise_affine": meta.get("norm_elementwise_affine", False),
        "activation_fn": meta.get("activation_fn", "gelu-approximate"),
        "caption_channels": meta.get("caption_channels", 3840),
        "rope_theta": meta.get("positional_embedding_theta", 10000.0),
        "rope_double_precision": meta.get("frequencies_precision", "float64") == "float64",
        "rope_type": meta.get("rope_type", "split"),
        "timestep_scale_multiplier": meta.get("timestep_scale_multiplier", 1000),
        # Metadata without this entry means 1. A file without any metadata is the published model, which has 1000.
        "cross_attn_timestep_scale_multiplier": meta.get("av_ca_timestep_scale_multiplier", 1 if said else 1000),
        "use_prompt_embeddings": not meta.get("caption_proj_before_connector", True),
        "perturbed_attn": True,
        # Older versions of diffusers do not know the switches, and build what they mean by default.
        **switched(meta),
    }


def connectors_config(meta: Mapping[str, Any], layers: int, caption_channels: int) -> dict[str, Any]:
    """`config.transformer` of the file → arguments of LTX2TextConnectors.

    layers: the number of Gemma's hidden states, with the embeddings. caption_channels: their width. Both numbers are
    measured on the file's projection.
    """
    registers = meta.get("connector_num_learnable_registers", 128)
    gated = meta.get("connector_apply_gated_attention", True)
    video_heads, video_dim = (
        meta.get("connector_num_attention_heads", 32),
        meta.get("connector_attention_head_dim", 128),
    )
    audio_heads = meta.get("audio_connector_num_attention_heads", 32)
    audio_dim = meta.get("audio_connector_attention_head_dim", 64)
    return {
        "caption_channels": caption_channels,
        "text_proj_in_factor": layers,
        "video_connector_num_attention_heads": video_heads,
        "video_connector_attention_head_dim": video_dim,
        "video_connector_num_layers": meta.get("connector_num_layers", 8),
        "video_connector_num_learnable_registers": registers,
        "video_gated_attn": gated,
        "audio_connector_num_attention_heads": audio_heads,
        "audio_connector_attention_head_dim": audio_dim,
        "audio_connector_num_layers": meta.get("audio_connector_num_layers", 8),
        "audio_connector_num_learnable_registers": registers,
        "audio_gated_attn": gated,
        "connector_rope_base_seq_len": meta.get("connector_positional_embedding_max_pos", [4096])[0],
        "rope_theta": meta.get("positional_embedding_theta", 10000.0),
        "rope_double_precision": meta.get("frequencies_precision", "float64") == "float64",
        "causal_temporal_positioning": False,
        "rope_type": meta.get("rope_type", "split"),
        "per_modality_projections": True,
        "video_hidden_dim": video_heads * video_dim,
        "audio_hidden_dim": audio_heads * audio_dim,
        "proj_bias": True,
    }


def _block_row(blocks: list, suffix: str, file: str, wanted: str) -> tuple[list[int], list[str], list[int], list[bool]]:
    """A row `res_x, compress, res_x, …` → layers of each res_x; type, multiplier and residual of each compress.

    Raises InputError if the row has other blocks.
    """
    layers = [options["num_layers"] for name, options in blocks[0::2] if name == "res_x"]
    resamplers = [
        (re.fullmatch(rf"compress_(space|time|all){suffix}", name), options) for name, options in blocks[1::2]
    ]
    if len(layers) != len(blocks[0::2]) or len(layers) != len(resamplers) + 1 or not all(m for m, _ in resamplers):
        raise InputError(f"{file}: its video VAE has blocks that LTX {VERSIONS} do not have; use {wanted}.")
    return (
        layers,
        [BLOCK_TYPES[match[1]] for match, _ in resamplers],
        [options.get("multiplier", 2 if suffix else 1) for _, options in resamplers],
        [options.get("residual", False) for _, options in resamplers],
    )


# The rows of the published VAE, as its metadata names them. They serve for a file without metadata.
ENCODER_BLOCKS = [
    ["res_x", {"num_layers": 4}], ["compress_space_res", {"multiplier": 2}],
    ["res_x", {"num_layers": 6}], ["compress_time_res", {"multiplier": 2}],
    ["res_x", {"num_layers": 4}], ["compress_all_res", {"multiplier": 2}],
    ["res_x", {"num_layers": 2}], ["compress_all_res", {"multiplier": 1}],
    ["res_x", {"num_layers": 2}],
]  # fmt: skip
DECODER_BLOCKS = [
    ["res_x", {"num_layers": 4}], ["compress_space", {"multiplier": 2}],
    ["res_x", {"num_layers": 6}], ["compress_time", {"multiplier": 2}],
    ["res_x", {"num_layers": 4}], ["compress_all", {"multiplier": 1}],
    ["res_x", {"num_layers": 2}], ["compress_all", {"multiplier": 2}],
    ["res_x", {"num_layers": 2}],
]  # fmt: skip


def video_vae_config(meta: Mapping[str, Any], file: str, wanted: str = WANTED) -> dict[str, Any]:
    """`config.vae` of the file → arguments of AutoencoderKLLTX2Video. Raises InputError, which names `file` and what is
    `wanted` in its place, if it has other blocks."""
    latent = meta.get("latent_channels", 128)
    down_layers, down_types, down_factors, _ = _block_row(
        meta.get("encoder_blocks", ENCODER_BLOCKS), "_res", file, wanted
    )
    channels = [latent]
    for factor in down_factors:
        channels.append(channels[-1] * factor)
    # The file lists the decoder from its output to its input.
    row = meta.get("decoder_blocks", DECODER_BLOCKS)[::-1]
    up_layers, up_types, up_factors, up_residual = _block_row(row, "", file, wanted)
    widths = [meta.get("decoder_base_channels", 128) * 8]
    for factor in up_factors[:-1]:
        widths.append(widths[-1] // factor)
    blocks = len(down_types)
    padding = meta.get("spatial_padding_mode", "zeros")
    return {
        "in_channels": meta.get("in_channels", 3),
        "out_channels": meta.get("out_channels", 3),
        "latent_channels": latent,
        "block_out_channels": tuple(channels[1:]),
        "down_block_types": ("LTX2VideoDownBlock3D",) * blocks,
        "layers_per_block": tuple(down_layers),
        "spatio_temporal_scaling": (True,) * blocks,
        "downsample_type": tuple(down_types),
        # diffusers expects widths, layers and factors from the output to the input, but types from input to output.
        "decoder_block_out_channels": tuple(widths[::-1]),
        "decoder_layers_per_block": tuple(up_layers[::-1]),
        "decoder_spatio_temporal_scaling": (True,) * len(up_types),
        "decoder_inject_noise": (False,) * (len(up_types) + 1),
        "upsample_type": tuple(up_types),
        "upsample_residual": tuple(up_residual[::-1]),
        "upsample_factor": tuple(up_factors[::-1]),
        "timestep_conditioning": meta.get("timestep_conditioning", False),
        "patch_size": meta.get("patch_size", 4),
        "patch_size_t": 1,
        "encoder_causal": True,
        "decoder_causal": meta.get("causal_decoder", False),
        "encoder_spatial_padding_mode": padding,
        "decoder_spatial_padding_mode": padding,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    }


def audio_vae_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`config.audio_vae` of the file → arguments of AutoencoderKLLTX2Audio."""
    params = meta.get("model", {}).get("params", {})
    dd = params.get("ddconfig", {})
    stft, mel = (meta.get("preprocessing", {}).get(name, {}) for name in ("stft", "mel"))
    return {
        "base_channels": dd.get("ch", 128),
        "output_channels": dd.get("out_ch", 2),
        "ch_mult": tuple(dd.get("ch_mult", (1, 2, 4))),
        "num_res_blocks": dd.get("num_res_blocks", 2),
        "attn_resolutions": tuple(dd.get("attn_resolutions") or ()) or None,
        "in_channels": dd.get("in_channels", 2),
        "resolution": dd.get("resolution", 256),
        "latent_channels": dd.get("z_channels", 8),
        "norm_type": dd.get("norm_type", "pixel"),
        "causality_axis": dd.get("causality_axis", "height"),
        "dropout": dd.get("dropout", 0.0),
        "mid_block_add_attention": dd.get("mid_block_add_attention", False),
        "sample_rate": params.get("sampling_rate", 16000),
        "mel_hop_length": stft.get("hop_length", 160),
        "is_causal": stft.get("causal", True),
        "mel_bins": mel.get("n_mel_channels", dd.get("mel_bins", 64)),
        "double_z": dd.get("double_z", True),
    }


def _generator_config(meta: Mapping[str, Any], width: int, kernels: list[int], factors: list[int]) -> dict[str, Any]:
    return {
        "hidden_channels": meta.get("upsample_initial_channel", width),
        "upsample_kernel_sizes": meta.get("upsample_kernel_sizes", kernels),
        "upsample_factors": meta.get("upsample_rates", factors),
        "resnet_kernel_sizes": meta.get("resblock_kernel_sizes", [3, 7, 11]),
        "resnet_dilations": meta.get("resblock_dilation_sizes", [[1, 3, 5]] * 3),
        "act_fn": meta.get("activation", "snakebeta"),
        "final_act_fn": "tanh" if meta.get("use_tanh_at_final", False) else None,
        "final_bias": meta.get("use_bias_at_final", False),
    }


def vocoder_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`config.vocoder` of the file → arguments of LTX2VocoderWithBWE."""
    bwe = meta.get("bwe", {})
    first = _generator_config(meta.get("vocoder", {}), 1536, [11, 4, 4, 4, 4, 4], [5, 2, 2, 2, 2, 2])
    second = _generator_config(bwe, 512, [12, 11, 4, 4, 4], [6, 5, 2, 2, 2])
    return {
        **first,
        **{f"bwe_{name}": value for name, value in second.items()},
        "filter_length": bwe.get("n_fft", 512),
        "hop_length": bwe.get("hop_length", 80),
        "window_length": bwe.get("n_fft", 512),
        "num_mel_channels": bwe.get("num_mels", 64),
        "input_sampling_rate": bwe.get("input_sampling_rate", 16000),
        "output_sampling_rate": bwe.get("output_sampling_rate", 48000),
    }


def upscaler_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`config` of the upscaler's file → arguments of LTX2LatentUpsamplerModel."""
    return {
        "in_channels": meta.get("in_channels", 128),
        "mid_channels": meta.get("mid_channels", 1024),
        "num_blocks_per_stage": meta.get("num_blocks_per_stage", 4),
        "dims": meta.get("dims", 3),
        "spatial_upsample": meta.get("spatial_upsample", True),
        "temporal_upsample": meta.get("temporal_upsample", False),
        "rational_spatial_scale": meta.get("spatial_scale", 2.0),
        "use_rational_resampler": meta.get("rational_resampler", False),
    }
