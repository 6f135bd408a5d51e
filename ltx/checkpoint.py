"""Reading weights: the original LTX-2.3 single file (or a diffusers folder) into diffusers' modules, and the upscaler.

Modules are built without memory and given tensors that map the file, so that loading makes no second copy. What a
file holds is read from its own metadata; the published values below serve where that is silent. Safetensors only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import InputError

VERSION = "2.3"
WANTED = "ltx-2.3-22b-dev.safetensors"
WANTED_FOLDER = "a complete LTX-2.3 diffusers folder"
WANTED_UPSCALER = "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BLOCK_TYPES = {"space": "spatial", "time": "temporal", "all": "spatiotemporal"}

# Prefixes of the parts in the original single file.
TRANSFORMER = ("model.diffusion_model.",)
CONNECTORS = (
    "model.diffusion_model.video_embeddings_connector.",
    "model.diffusion_model.audio_embeddings_connector.",
    "text_embedding_projection.",
)
VIDEO_VAE, AUDIO_VAE, VOCODER = ("vae.",), ("audio_vae.",), ("vocoder.",)

# original → diffusers, in order: a later pattern sees what the earlier ones made of the key.
TRANSFORMER_RENAMES = (
    (r"^patchify_proj", "proj_in"),
    (r"^audio_patchify_proj", "audio_proj_in"),
    (r"av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
    (r"av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
    (r"av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
    (r"av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
    (r"scale_shift_table_a2v_ca_video", "video_a2v_cross_attn_scale_shift_table"),
    (r"scale_shift_table_a2v_ca_audio", "audio_a2v_cross_attn_scale_shift_table"),
    (r"audio_prompt_adaln_single", "audio_prompt_adaln"),
    (r"^prompt_adaln_single", "prompt_adaln"),
    (r"^adaln_single\.", "time_embed."),
    (r"^audio_adaln_single\.", "audio_time_embed."),
    (r"q_norm", "norm_q"),
    (r"k_norm", "norm_k"),
)
CONNECTOR_RENAMES = (
    (r"^model\.diffusion_model\.(video|audio)_embeddings_connector", r"\1_connector"),
    (r"^text_embedding_projection\.(video|audio)_aggregate_embed", r"\1_text_proj_in"),
    (r"transformer_1d_blocks", "transformer_blocks"),
    (r"q_norm", "norm_q"),
    (r"k_norm", "norm_k"),
)
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


def rename_transformer(key: str) -> str:
    """Original key of the transformer, without its prefix → diffusers' name of the parameter or module."""
    return rename(key, TRANSFORMER_RENAMES)


def rename_connectors(key: str) -> str:
    return rename(key, CONNECTOR_RENAMES)


def rename_vocoder(key: str) -> str:
    return rename(key, VOCODER_RENAMES)


def rename_audio_vae(key: str) -> str:
    return rename(key, STATISTICS_RENAMES)


def rename_video_vae(key: str) -> str | None:
    """Original key → diffusers' name; None for statistics the model does not use.

    The original numbers blocks and resamplers in one row; diffusers hangs each resampler on a block.
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


def transformer_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`config.transformer` of the file → arguments of LTX2VideoTransformer3DModel."""
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
        # A file that has metadata but not this entry means 1 by it; one without any is the published model.
        "cross_attn_timestep_scale_multiplier": meta.get("av_ca_timestep_scale_multiplier", 1 if meta else 1000),
        "use_prompt_embeddings": not meta.get("caption_proj_before_connector", True),
        "perturbed_attn": True,
    }


def connectors_config(meta: Mapping[str, Any], layers: int, caption_channels: int) -> dict[str, Any]:
    """`config.transformer` of the file → arguments of LTX2TextConnectors. layers: hidden states of Gemma, with the
    embeddings; caption_channels: their width. Both are measured on the file's projection."""
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


def _block_row(blocks: list, suffix: str, file: str) -> tuple[list[int], list[str], list[int], list[bool]]:
    """A row `res_x, compress, res_x, …` → layers of each res_x; type, multiplier and residual of each compress."""
    layers = [options["num_layers"] for name, options in blocks[0::2] if name == "res_x"]
    resamplers = [
        (re.fullmatch(rf"compress_(space|time|all){suffix}", name), options) for name, options in blocks[1::2]
    ]
    if len(layers) != len(blocks[0::2]) or len(layers) != len(resamplers) + 1 or not all(m for m, _ in resamplers):
        raise InputError(f"{file}: its video VAE has blocks that LTX-{VERSION} does not have; use {WANTED}.")
    return (
        layers,
        [BLOCK_TYPES[match[1]] for match, _ in resamplers],
        [options.get("multiplier", 2 if suffix else 1) for _, options in resamplers],
        [options.get("residual", False) for _, options in resamplers],
    )


# The published VAE's rows, in the file's own words, for a file that has no metadata.
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


def video_vae_config(meta: Mapping[str, Any], file: str) -> dict[str, Any]:
    """`config.vae` of the file → arguments of AutoencoderKLLTX2Video."""
    latent = meta.get("latent_channels", 128)
    down_layers, down_types, down_factors, _ = _block_row(meta.get("encoder_blocks", ENCODER_BLOCKS), "_res", file)
    channels = [latent]
    for factor in down_factors:
        channels.append(channels[-1] * factor)
    # The file lists the decoder from its output to its input.
    row = meta.get("decoder_blocks", DECODER_BLOCKS)[::-1]
    up_layers, up_types, up_factors, up_residual = _block_row(row, "", file)
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
        # diffusers wants widths, layers and factors from the output inwards, but the types from the input outwards.
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


def open_safetensors(path: Path, wanted: str) -> safe_open:
    """A mapped safetensors file. Errors: not there, empty, truncated, another format, each in one sentence."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; get {wanted} and name it here.")
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a complete safetensors file ({error}); it may be cut short: download {wanted} again."
        ) from error


def read_metadata(file: safe_open, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The file's `config` entry, parsed, and its whole metadata."""
    metadata = file.metadata() or {}
    try:
        config = json.loads(metadata.get("config", "{}"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: its `config` metadata is not JSON ({error}); download the file again.") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: its `config` metadata is not an object; download the file again.")
    return config, metadata


def build(
    cls: type, arguments: Callable[[], Mapping[str, Any]], path: Path, part: str, wanted: str, on_meta: bool = True
) -> nn.Module:
    """A module yet without weights. Errors: a configuration that describes none, whatever is wrong with it."""
    try:
        with torch.device("meta" if on_meta else "cpu"):
            return cls(**arguments())
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0].strip()
        raise InputError(
            f"{path}: its configuration describes no {part} that can be built ({reason}); use {wanted}."
        ) from error


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path, part: str, wanted: str) -> nn.Module:
    """Gives a module its tensors, strictly: one more, one less or another shape is an error that names the first."""
    # Before the names: a file in another precision has scales beside its weights.
    for key, tensor in state.items():
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            raise InputError(f"{path}: {key} is stored as {tensor.dtype}, which is not read; use {wanted}.")
    own = module.state_dict()
    for problem, keys in (
        ("lacks", own.keys() - state.keys()),
        ("has unknown", state.keys() - own.keys()),
        ("has another shape of", {k for k in own.keys() & state.keys() if own[k].shape != state[k].shape}),
    ):
        if keys:
            raise InputError(
                f"{path}: its {part} {problem} {len(keys)} tensor(s), for example {min(keys)}; use {wanted}."
            )
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def place(module: nn.Module, dtype: torch.dtype | None, device: torch.device | str) -> nn.Module:
    """The module in `dtype` (None: what most of it is stored in) on `device`; what does not change maps its file."""
    stored = Counter()
    for parameter in module.parameters():
        stored[parameter.dtype] += parameter.numel()
    if dtype is None and len(stored) > 1:
        dtype = stored.most_common(1)[0][0]
    # torch's own `to`: diffusers' warns of float32 layers, and these models name none.
    return nn.Module.to(module, device=device, dtype=dtype)


@dataclass(frozen=True)
class Checkpoint:
    """An opened LTX-2.3 file or diffusers folder. Opening reads only the header; each part is built when asked for."""

    path: Path
    version: str
    config: Mapping[str, Any] = field(repr=False)
    folder: bool = False

    @cached_property
    def _file(self) -> safe_open:
        return open_safetensors(self.path, WANTED)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._file.keys())

    def _state(
        self,
        prefixes: tuple[str, ...],
        name: Callable[[str], str | None],
        strip: bool = True,
        skip: tuple[str, ...] = (),
    ) -> Iterator[tuple[str, str]]:
        """Pairs (diffusers' name, key in the file) of one part."""
        for key in self.keys:
            prefix = next((p for p in prefixes if key.startswith(p)), None)
            if prefix is None or key.startswith(skip):
                continue
            renamed = name(key[len(prefix) :] if strip else key)
            if renamed is not None:
                yield renamed, key

    def _part(
        self,
        cls: type,
        config: Callable[[], Mapping[str, Any]],
        names: Mapping[str, str],
        part: str,
        dtype: torch.dtype | None,
        device: torch.device | str,
        on_meta: bool = True,
    ) -> nn.Module:
        if not names:
            raise InputError(f"{self.path}: has no {part}; use the whole file {WANTED}.")
        module = build(cls, config, self.path, part, WANTED, on_meta)
        state = {name: self._file.get_tensor(key) for name, key in names.items()}
        return place(fill(module, state, self.path, part, WANTED), dtype, device)

    def _from_folder(
        self,
        cls: type,
        name: str,
        part: str,
        dtype: torch.dtype | None,
        device: torch.device | str,
        on_meta: bool = True,
    ) -> nn.Module:
        folder = self.path / name
        config = read_config(folder, part)
        if cls is LTX2VideoTransformer3DModel:
            config["perturbed_attn"] = True  # STG needs the processors that can skip attention; weights are the same
        module = build(cls, lambda: cls.extract_init_dict(config)[0], folder, part, WANTED_FOLDER, on_meta)
        state = dict(read_folder(folder, part))
        return place(fill(module, state, folder, part, WANTED_FOLDER), dtype, device)

    @cached_property
    def _transformer_keys(self) -> dict[str, str]:
        return dict(self._state(TRANSFORMER, rename_transformer, skip=CONNECTORS))

    def transformer(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> LTX2VideoTransformer3DModel:
        if self.folder:
            return self._from_folder(LTX2VideoTransformer3DModel, "transformer", "transformer", dtype, device)
        return self._part(
            LTX2VideoTransformer3DModel,
            self._transformer_config,
            self._transformer_keys,
            "transformer",
            dtype,
            device,
        )

    def _transformer_config(self) -> dict[str, Any]:
        return transformer_config(self.config.get("transformer", {}))

    def blueprint(self) -> LTX2VideoTransformer3DModel:
        """The transformer without its weights: what a LoRA is matched against before anything is loaded."""
        cls, folder = LTX2VideoTransformer3DModel, self.path / "transformer"
        if self.folder:
            config = read_config(folder, "transformer")
            return build(cls, lambda: cls.extract_init_dict(config)[0], folder, "transformer", WANTED_FOLDER)
        return build(cls, self._transformer_config, self.path, "transformer", WANTED)

    def transformer_weight(self, name: str) -> Tensor:
        """A parameter of the transformer as the file has it, by diffusers' name: what undoing a LoRA goes back to."""
        if self.folder:
            return folder_tensor(self.path / "transformer", name)
        return self._file.get_tensor(self._transformer_keys[name])

    def connectors(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> LTX2TextConnectors:
        if self.folder:
            return self._from_folder(LTX2TextConnectors, "connectors", "text connectors", dtype, device)
        names = dict(self._state(CONNECTORS, rename_connectors, strip=False))
        projection = names.get("video_text_proj_in.weight")
        if projection is None:
            raise InputError(f"{self.path}: has no text connectors; use the whole file {WANTED}.")

        def config() -> dict[str, Any]:
            meta = self.config.get("transformer", {})
            width = meta.get("caption_channels", 3840)
            return connectors_config(meta, self._file.get_slice(projection).get_shape()[1] // width, width)

        return self._part(LTX2TextConnectors, config, names, "text connectors", dtype, device)

    def video_vae(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> AutoencoderKLLTX2Video:
        if self.folder:
            return self._from_folder(AutoencoderKLLTX2Video, "vae", "video VAE", dtype, device)
        names = dict(self._state(VIDEO_VAE, rename_video_vae))
        return self._part(
            AutoencoderKLLTX2Video,
            lambda: video_vae_config(self.config.get("vae", {}), str(self.path)),
            names,
            "video VAE",
            dtype,
            device,
        )

    def audio_vae(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> AutoencoderKLLTX2Audio:
        if self.folder:
            return self._from_folder(AutoencoderKLLTX2Audio, "audio_vae", "audio VAE", dtype, device)
        names = dict(self._state(AUDIO_VAE, rename_audio_vae))
        return self._part(
            AutoencoderKLLTX2Audio,
            lambda: audio_vae_config(self.config.get("audio_vae", {})),
            names,
            "audio VAE",
            dtype,
            device,
        )

    def vocoder(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> LTX2VocoderWithBWE:
        # Built on the CPU: its resampler's filters are computed, not stored.
        if self.folder:
            return self._from_folder(LTX2VocoderWithBWE, "vocoder", "vocoder", dtype, device, on_meta=False)
        names = dict(self._state(VOCODER, rename_vocoder))
        return self._part(
            LTX2VocoderWithBWE,
            lambda: vocoder_config(self.config.get("vocoder", {})),
            names,
            "vocoder",
            dtype,
            device,
            on_meta=False,
        )


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """config.json of one part of a diffusers folder."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder}: no readable config.json of the {part} ({error}); use {WANTED_FOLDER}.") from error
    if not isinstance(config, dict):
        raise InputError(f"{folder}: its config.json is not an object; use {WANTED_FOLDER}.")
    return config


def shards(folder: Path, part: str) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no .safetensors file of the {part}; download the whole folder.")
    return files


def read_folder(folder: Path, part: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a diffusers part, over its shards, mapped."""
    for shard in shards(folder, part):
        file = open_safetensors(shard, "the whole folder")
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            yield key, file.get_tensor(key)


def folder_tensor(folder: Path, name: str) -> Tensor:
    for shard in shards(folder, "transformer"):
        file = open_safetensors(shard, "the whole folder")
        if name in file.keys():  # noqa: SIM118
            return file.get_tensor(name)
    raise KeyError(name)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Opens an original single file or a diffusers folder. Errors: what is not LTX-2.3, by the version found."""
    path = Path(path)
    if path.is_dir():
        if not (path / "transformer" / "config.json").is_file():
            raise InputError(f"{path}: a folder without transformer/config.json; name {WANTED} or a diffusers folder.")
        if not read_config(path / "transformer", "transformer").get("cross_attn_mod"):
            raise InputError(f"{path}: lacks what version {VERSION} has; it may be LTX 2.0: use {WANTED_FOLDER}.")
        return Checkpoint(path, VERSION, {}, folder=True)
    file = open_safetensors(path, WANTED)
    config, metadata = read_metadata(file, path)
    version = metadata.get("model_version", "")
    keys = set(file.keys())
    if version and not re.match(rf"{re.escape(VERSION)}(\D|$)", version):
        raise InputError(f"{path}: is LTX version {version}, and this pack needs version {VERSION}: use {WANTED}.")
    if not any(key.startswith(TRANSFORMER[0]) for key in keys):
        raise InputError(f"{path}: holds no LTX transformer; use {WANTED}.")
    if not version and TRANSFORMER[0] + "prompt_adaln_single.linear.weight" not in keys:
        raise InputError(
            f"{path}: names no model_version and lacks what version {VERSION} has; it may be LTX 2.0: use {WANTED}."
        )
    return Checkpoint(path, version or VERSION, config)


def load_upscaler(
    path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> LTX2LatentUpsamplerModel:
    """The latent upscaler ×2 from its own file (bare keys). Errors: another kind of file, or another factor."""
    path = Path(path)
    file = open_safetensors(path, WANTED_UPSCALER)
    config, _ = read_metadata(file, path)
    if "initial_conv.weight" not in set(file.keys()):
        raise InputError(f"{path}: is no latent upscaler; use {WANTED_UPSCALER}.")
    arguments = upscaler_config(config)
    if arguments["temporal_upsample"] or not arguments["spatial_upsample"] or arguments["rational_spatial_scale"] != 2:
        raise InputError(f"{path}: does not double width and height; use {WANTED_UPSCALER}.")
    module = build(LTX2LatentUpsamplerModel, lambda: arguments, path, "upscaler", WANTED_UPSCALER)
    state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return place(fill(module, state, path, "upscaler", WANTED_UPSCALER), dtype, device)
