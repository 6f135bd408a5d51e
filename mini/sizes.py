"""The miniature's sizes, in the words of the original file's metadata; configs.py makes modules' arguments of them.

Two sizes are fixed: the pack has 128 latent channels of video throughout, and diffusers' encoder is at least as wide as
its latent. So the encoder's blocks at high resolution have no residual layers, and only LIVE of the latent channels
carry anything: the others leave the encoder as zeros, and decoder and transformer do not read them.
"""

from __future__ import annotations

import json
from typing import Any

from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from torch import nn

from ..ltx.weights import checkpoint, configs

LATENT, LIVE = 128, 64
LAYERS, HEADS, HEAD = 5, 4, 32  # the audio stream's heads are half as wide
CONNECTOR_LAYERS, REGISTERS = 1, 32
GEMMA_LAYERS, GEMMA_WIDTH = 2, 64
FRAME_RATE = 24.0
AUDIO_WIDTH = 24
AUDIO_LIVE = 4  # of the 8 channels of an audio latent
WIDTH, RATES, KERNELS = 64, (5, 4, 4, 2), (11, 8, 8, 4)  # of the vocoder: 160 samples a mel frame
BWE_WIDTH, BWE_RATES, BWE_KERNELS = 32, (6, 5, 4, 2), (12, 11, 8, 4)  # 240 samples for 80 at 16 kHz
RES_KERNELS, DILATIONS = (3, 7), (1, 3)
FFT, HOP, MELS, RATE = 256, 80, 64, 16000  # of the bandwidth extension
LORA_RANK, CAMERA_RANK = 4, 2

FILES = {
    "checkpoint": "ltx-2.3-mini.safetensors",
    "upscaler": "ltx-2.3-mini-upscaler-x2.safetensors",
    "distilled": "ltx-2.3-mini-distilled-lora.safetensors",
    "dolly_in": "ltx-2.3-mini-camera-dolly-in.safetensors",
    "static": "ltx-2.3-mini-camera-static.safetensors",
    "gemma": "gemma-mini",
}


def _row(blocks: tuple[tuple[str, int], ...], layers: tuple[int, ...]) -> list[list[Any]]:
    row: list[list[Any]] = [["res_x", {"num_layers": layers[0]}]]
    for (kind, multiplier), count in zip(blocks, layers[1:], strict=True):
        row += [[f"compress_{kind}", {"multiplier": multiplier}], ["res_x", {"num_layers": count}]]
    return row


ENCODER = _row((("space_res", 1), ("time_res", 1), ("all_res", 1), ("all_res", 1)), (0, 0, 0, 1, 0))
DECODER = _row((("space", 1), ("time", 1), ("all", 1), ("all", 2)), (1, 1, 1, 1, 1))  # as the encoder runs
DECODER_BASE = 10  # eight times that is the decoder's width at its input

VAE = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": LATENT,
    "encoder_blocks": ENCODER,
    "decoder_blocks": DECODER,
    "decoder_base_channels": DECODER_BASE,
    "scaling_factor": 1.0,
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "latent_log_var": "uniform",
    "use_quant_conv": False,
    "normalize_latent_channels": False,
    "causal_decoder": False,
    "timestep_conditioning": False,
    "spatial_padding_mode": "zeros",
}


TRANSFORMER = {
    "_class_name": "AVTransformer3DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": HEAD,
    "num_attention_heads": HEADS,
    "num_layers": LAYERS,
    "in_channels": LATENT,
    "out_channels": LATENT,
    "cross_attention_dim": HEADS * HEAD,
    "caption_channels": GEMMA_WIDTH,
    "audio_attention_head_dim": HEAD // 2,
    "audio_num_attention_heads": HEADS,
    "audio_in_channels": LATENT,
    "audio_out_channels": LATENT,
    "audio_cross_attention_dim": HEADS * HEAD // 2,
    "audio_positional_embedding_max_pos": [20],
    "positional_embedding_max_pos": [20, 2048, 2048],
    "positional_embedding_theta": 10000.0,
    "positional_embedding_type": "rope",
    "rope_type": "split",
    "frequencies_precision": "float64",
    "use_middle_indices_grid": True,
    "timestep_scale_multiplier": 1000,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
    "use_audio_video_cross_attention": True,
    "norm_eps": 1e-06,
    "norm_elementwise_affine": False,
    "standardization_norm": "rms_norm",
    "qk_norm": "rms_norm",
    "causal_temporal_positioning": True,
    "caption_proj_before_connector": True,
    "use_embeddings_connector": True,
    "connector_apply_gated_attention": True,
    "connector_attention_head_dim": HEAD,
    "connector_num_attention_heads": HEADS,
    "connector_num_layers": CONNECTOR_LAYERS,
    "audio_connector_attention_head_dim": HEAD // 2,
    "audio_connector_num_attention_heads": HEADS,
    "audio_connector_num_layers": CONNECTOR_LAYERS,
    "connector_positional_embedding_max_pos": [4096],
    "connector_num_learnable_registers": REGISTERS,
}
AUDIO_VAE = {
    "model": {
        "params": {
            "ddconfig": {
                "double_z": True,
                "mel_bins": 64,
                "z_channels": 8,
                "resolution": 256,
                "downsample_time": False,
                "in_channels": 2,
                "out_ch": 2,
                # diffusers keeps as many statistics as there are base channels, 128 in the published file. One serves
                # all 128 numbers of a latent: a narrower VAE than the published one can only have this.
                "ch": 1,
                "ch_mult": [AUDIO_WIDTH] * 3,
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "dropout": 0.0,
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
            "sampling_rate": RATE,
        }
    },
    "preprocessing": {
        "audio": {"sampling_rate": RATE, "stereo": True},
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
    },
}


def _generator(width: int, rates: tuple[int, ...], kernels: tuple[int, ...]) -> dict[str, Any]:
    return {
        "resblock": "AMP1",
        "stereo": True,
        "activation": "snakebeta",
        "upsample_initial_channel": width,
        "upsample_rates": rates,
        "upsample_kernel_sizes": kernels,
        "resblock_kernel_sizes": RES_KERNELS,
        "resblock_dilation_sizes": [DILATIONS] * len(RES_KERNELS),
        "use_tanh_at_final": False,
        "use_bias_at_final": False,
    }


VOCODER = {
    "vocoder": _generator(WIDTH, RATES, KERNELS),
    "bwe": {
        **_generator(BWE_WIDTH, BWE_RATES, BWE_KERNELS),
        "apply_final_activation": False,
        "input_sampling_rate": RATE,
        "output_sampling_rate": 3 * RATE,
        "n_fft": FFT,
        "hop_length": HOP,
        "num_mels": MELS,
    },
}
SCHEDULER = {
    "_class_name": "RectifiedFlowScheduler",
    "num_train_timesteps": 1000,
    "shifting": None,
    "target_shift_terminal": 0.1,
    "sampler": "LinearQuadratic",
}
UPSCALER = {
    "_class_name": "LatentUpsampler",
    "in_channels": LATENT,
    "mid_channels": 32,
    "num_blocks_per_stage": 1,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
    "spatial_scale": 2.0,
    "rational_resampler": False,
}


def metadata() -> dict[str, str]:
    """Of the checkpoint's file."""
    config = {
        "transformer": TRANSFORMER,
        "vae": VAE,
        "audio_vae": AUDIO_VAE,
        "vocoder": VOCODER,
        "scheduler": SCHEDULER,
    }
    return {"config": json.dumps(config), "model_version": "2.3.0-mini", "format": "pt"}


def module(part: str) -> nn.Module:
    """A part as the pack builds it from these sizes, with fresh weights."""
    layers = GEMMA_LAYERS + 1
    arguments: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
        "vae": (checkpoint.VIDEO_VAE.cls, configs.video_vae_config(VAE, "the miniature")),
        "audio_vae": (checkpoint.AUDIO_VAE.cls, configs.audio_vae_config(AUDIO_VAE)),
        "vocoder": (checkpoint.VOCODER.cls, configs.vocoder_config(VOCODER)),
        "transformer": (checkpoint.TRANSFORMER.cls, configs.transformer_config(TRANSFORMER)),
        "connectors": (checkpoint.CONNECTORS.cls, configs.connectors_config(TRANSFORMER, layers, GEMMA_WIDTH)),
        "upscaler": (LTX2LatentUpsamplerModel, configs.upscaler_config(UPSCALER)),
    }
    cls, given = arguments[part]
    return cls(**given)
