"""Checkpoints: every part against ltx-core's on the same file, the published configuration, dtypes, folders."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.weights import checkpoint as reader
from a2v.ltx.weights import configs
from a2v.ltx.weights.checkpoint import load_checkpoint, load_upscaler
from a2v.tests.tiny import TinyFiles, write_tiny
from safetensors.torch import save_file
from torch import nn

PARTS = {
    "transformer": "transformer",
    "connectors": "connectors",
    "vae": "video_vae",
    "audio_vae": "audio_vae",
    "vocoder": "vocoder",
}

# The published model in diffusers' words, as the design notes have it.
HEADS = {"num_attention_heads": 32, "cross_attn_mod": True, "gated_attn": True}
TRANSFORMER = {
    **HEADS, **{f"audio_{k}": v for k, v in HEADS.items()}, "in_channels": 128, "out_channels": 128, "patch_size": 1,
    "patch_size_t": 1, "attention_head_dim": 128, "cross_attention_dim": 4096, "vae_scale_factors": (8, 32, 32),
    "pos_embed_max_pos": 20, "base_height": 2048, "base_width": 2048, "audio_in_channels": 128,
    "audio_out_channels": 128, "audio_patch_size": 1, "audio_patch_size_t": 1, "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 2048, "audio_scale_factor": 4, "audio_pos_embed_max_pos": 20,
    "audio_sampling_rate": 16000, "audio_hop_length": 160, "num_layers": 48, "activation_fn": "gelu-approximate",
    "qk_norm": "rms_norm_across_heads", "norm_elementwise_affine": False, "norm_eps": 1e-6, "caption_channels": 3840,
    "attention_bias": True, "attention_out_bias": True, "rope_theta": 10000.0, "rope_double_precision": True,
    "causal_offset": 1, "timestep_scale_multiplier": 1000, "cross_attn_timestep_scale_multiplier": 1000,
    "rope_type": "split", "use_prompt_embeddings": False, "perturbed_attn": True,
}  # fmt: skip
CONNECTOR = {"num_attention_heads": 32, "num_layers": 8, "num_learnable_registers": 128}
CONNECTORS = {
    **{f"{stream}_connector_{k}": v for k, v in CONNECTOR.items() for stream in ("video", "audio")},
    "caption_channels": 3840, "text_proj_in_factor": 49, "video_connector_attention_head_dim": 128,
    "audio_connector_attention_head_dim": 64, "video_gated_attn": True, "audio_gated_attn": True,
    "connector_rope_base_seq_len": 4096, "rope_theta": 10000.0, "rope_double_precision": True,
    "causal_temporal_positioning": False, "rope_type": "split", "per_modality_projections": True,
    "video_hidden_dim": 4096, "audio_hidden_dim": 2048, "proj_bias": True,
}  # fmt: skip
VIDEO_VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 128, "block_out_channels": (256, 512, 1024, 1024),
    "down_block_types": ("LTX2VideoDownBlock3D",) * 4, "decoder_block_out_channels": (256, 512, 512, 1024),
    "layers_per_block": (4, 6, 4, 2, 2), "decoder_layers_per_block": (4, 6, 4, 2, 2),
    "spatio_temporal_scaling": (True,) * 4, "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5, "upsample_residual": (False,) * 4, "upsample_factor": (2, 2, 1, 2),
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"), "timestep_conditioning": False,
    "patch_size": 4, "patch_size_t": 1, "resnet_norm_eps": 1e-6, "encoder_causal": True, "decoder_causal": False,
    "encoder_spatial_padding_mode": "zeros", "decoder_spatial_padding_mode": "zeros",
    "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
AUDIO_VAE = {
    "base_channels": 128, "output_channels": 2, "ch_mult": (1, 2, 4), "num_res_blocks": 2, "attn_resolutions": None,
    "in_channels": 2, "resolution": 256, "latent_channels": 8, "norm_type": "pixel", "causality_axis": "height",
    "dropout": 0.0, "mid_block_add_attention": False, "sample_rate": 16000, "mel_hop_length": 160, "is_causal": True,
    "mel_bins": 64, "double_z": True,
}  # fmt: skip
GENERATOR = {
    "in_channels": 128, "out_channels": 2, "resnet_kernel_sizes": [3, 7, 11], "resnet_dilations": [[1, 3, 5]] * 3,
    "act_fn": "snakebeta", "leaky_relu_negative_slope": 0.1, "antialias": True, "antialias_ratio": 2,
    "antialias_kernel_size": 12, "final_act_fn": None, "final_bias": False,
}  # fmt: skip
VOCODER = {
    **GENERATOR, **{f"bwe_{k}": v for k, v in GENERATOR.items()}, "hidden_channels": 1536, "bwe_hidden_channels": 512,
    "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4], "upsample_factors": [5, 2, 2, 2, 2, 2],
    "bwe_upsample_kernel_sizes": [12, 11, 4, 4, 4], "bwe_upsample_factors": [6, 5, 2, 2, 2], "filter_length": 512,
    "hop_length": 80, "window_length": 512, "num_mel_channels": 64, "input_sampling_rate": 16000,
    "output_sampling_rate": 48000,
}  # fmt: skip
UPSAMPLER = {
    "in_channels": 128, "mid_channels": 1024, "num_blocks_per_stage": 4, "dims": 3, "spatial_upsample": True,
    "temporal_upsample": False, "rational_spatial_scale": 2.0, "use_rational_resampler": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# Every part, on files of three sizes, against ltx-core.


def test_video_vae(tiny_any: TinyFiles, peer: Callable, off: Callable, randn: Callable) -> None:
    vae = load_checkpoint(tiny_any.checkpoint).video_vae(torch.float32)
    pixels, latent = randn(1, 3, 9, 64, 96).clamp(-1, 1), randn(1, 128, 2, 2, 3)
    mean, std = (s.view(1, -1, 1, 1, 1) for s in (vae.latents_mean, vae.latents_std))
    encoded = (vae.encode(pixels).latent_dist.mode() - mean) / std
    assert off(encoded, peer(tiny_any, "vae_encoder")(pixels)) < 1e-5
    decoded = vae.decode(latent * std + mean, return_dict=False)[0]
    assert off(decoded, peer(tiny_any, "vae_decoder")(latent)) < 1e-5


def test_audio_vae(tiny_any: TinyFiles, peer: Callable, off: Callable, randn: Callable) -> None:
    vae = load_checkpoint(tiny_any.checkpoint).audio_vae(torch.float32)
    mel, latent = randn(1, 2, 71, 64), randn(1, 8, 18, 16)
    mean, std = (s.view(1, 8, 1, 16) for s in (vae.latents_mean, vae.latents_std))
    encoded = (vae.encode(mel).latent_dist.mode() - mean) / std
    assert off(encoded, peer(tiny_any, "audio_encoder")(mel)) < 1e-5
    decoded = vae.decode(latent * std + mean, return_dict=False)[0]
    assert off(decoded, peer(tiny_any, "audio_decoder")(latent)) < 1e-5


def test_vocoder_with_bandwidth_extension(
    tiny_default: TinyFiles, peer: Callable, off: Callable, randn: Callable
) -> None:
    mel = randn(1, 2, 5, 64)
    waveform = load_checkpoint(tiny_default.checkpoint).vocoder(torch.float32)(mel)
    assert waveform.shape == (1, 2, 5 * 160 * 3)
    assert off(waveform, peer(tiny_default, "vocoder")(mel)) < 1e-5


def test_connectors(tiny_any: TinyFiles, peer: Callable, off: Callable, randn: Callable) -> None:
    connectors = load_checkpoint(tiny_any.checkpoint).connectors(torch.float32)
    width, layers = connectors.config.caption_channels, connectors.config.text_proj_in_factor
    states, mask = randn(1, 256, width, layers), (torch.arange(256) >= 200).long()[None]
    video, audio, _ = connectors(states, mask)
    expected = peer(tiny_any, "embeddings_processor").process_hidden_states(tuple(states.unbind(-1)), mask)
    assert off(video, expected.video_encoding) < 1e-5
    assert off(audio, expected.audio_encoding) < 1e-5


def test_upscaler(tiny_any: TinyFiles, peer: Callable, off: Callable, randn: Callable) -> None:
    latent = randn(1, 128, 3, 2, 3)
    upscaled = load_upscaler(tiny_any.upscaler, torch.float32)(latent)
    assert upscaled.shape == (1, 128, 3, 4, 6)
    assert off(upscaled, peer(tiny_any, "upsampler")(latent)) < 1e-5


# Configuration.


@pytest.mark.parametrize(
    ("cls", "arguments", "table"),
    [
        (reader.LTX2VideoTransformer3DModel, lambda: configs.transformer_config({}), TRANSFORMER),
        (reader.LTX2TextConnectors, lambda: configs.connectors_config({}, 49, 3840), CONNECTORS),
        (reader.AutoencoderKLLTX2Video, lambda: configs.video_vae_config({}, ""), VIDEO_VAE),
        (reader.AutoencoderKLLTX2Audio, lambda: configs.audio_vae_config({}), AUDIO_VAE),
        (reader.LTX2VocoderWithBWE, lambda: configs.vocoder_config({}), VOCODER),
        (reader.LTX2LatentUpsamplerModel, lambda: configs.upscaler_config({}), UPSAMPLER),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_without_metadata_it_is_the_published_model(cls: type, arguments: Callable, table: dict) -> None:
    defaults = {k: p.default for k, p in inspect.signature(cls.__init__).parameters.items()}
    used = {**defaults, **arguments()}
    assert json.loads(json.dumps({name: used[name] for name in table})) == json.loads(json.dumps(table))


def test_metadata_is_read(tmp_path: Path) -> None:
    files = write_tiny(
        tmp_path, layers=3, heads=2, head_dim=32, connector_layers=1, vae_width=8, gemma_layers=2, gemma_width=64
    )
    opened = load_checkpoint(files.checkpoint)
    assert opened.version == "2.3.0"
    wanted = {
        "transformer": {
            "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 32, "audio_attention_head_dim": 16,
            "cross_attention_dim": 64, "audio_cross_attention_dim": 32, "caption_channels": 64, "perturbed_attn": True,
        },
        "connectors": {
            "video_connector_num_layers": 1, "audio_connector_num_layers": 1, "text_proj_in_factor": 3,
            "caption_channels": 64, "video_hidden_dim": 64, "audio_hidden_dim": 32,
        },
        "vae": {
            "block_out_channels": (128,) * 4, "layers_per_block": (1,) * 5, "upsample_factor": (2, 2, 1, 2),
            "decoder_block_out_channels": (16, 32, 32, 64),
        },
        "audio_vae": {"ch_mult": (1, 1, 1), "num_res_blocks": 1},
        "vocoder": {"hidden_channels": 64, "bwe_hidden_channels": 32},
    }  # fmt: skip
    for name, values in wanted.items():
        config = getattr(opened, PARTS[name])().config
        assert {key: config[key] for key in values} == values, name
    assert load_upscaler(files.upscaler).config.mid_channels == 32


def test_gate_timestep_scale_missing_from_metadata() -> None:
    """ltx-core's own default, 1, where a file has metadata without the entry."""
    assert configs.transformer_config({"num_layers": 2})["cross_attn_timestep_scale_multiplier"] == 1


def test_one_dtype(tiny_default: TinyFiles, tmp_path: Path, read: Callable) -> None:
    """As asked; without asking, the one most weights are stored in, also where some are stored in another."""
    tensors, metadata = read(tiny_default.checkpoint)
    tensors = {k: t.float() if "scale_shift_table" in k else t for k, t in tensors.items()}
    save_file(tensors, tmp_path / "mixed.safetensors", metadata)
    for path in (tiny_default.checkpoint, tmp_path / "mixed.safetensors"):
        for wanted in (None, torch.float16, torch.float32):
            dtypes = {p.dtype for p in load_checkpoint(path).transformer(wanted).parameters()}
            assert dtypes == {wanted or torch.bfloat16}


# A diffusers folder.


@pytest.mark.parametrize("shard", [pytest.param("5GB", marks=pytest.mark.soak), "200KB"])
def test_folder(tiny_default: TinyFiles, tmp_path: Path, shard: str, randn: Callable, refusal: Callable) -> None:
    file = load_checkpoint(tiny_default.checkpoint)
    for name, part in PARTS.items():
        getattr(file, part)().save_pretrained(tmp_path / name, max_shard_size=shard)
    assert (len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1) == (shard == "200KB")
    folder = load_checkpoint(tmp_path)
    for name, part in PARTS.items():
        ours, theirs = getattr(folder, part)(), getattr(file, part)()
        expected = theirs.state_dict()
        assert ours.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in ours.state_dict().items()), name
        configs = [json.loads(json.dumps(dict(m.config))) for m in (ours, theirs)]
        assert {k: v for k, v in configs[0].items() if k[0] != "_"} == {
            k: v for k, v in configs[1].items() if k[0] != "_"
        }
        assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    states, mask = randn(1, 128, 32, 4), torch.ones(1, 128, dtype=torch.long)
    results = [opened.connectors(torch.float32)(states, mask)[0] for opened in (file, folder)]
    assert torch.equal(*results)
    name = "transformer_blocks.3.ff.net.2.weight"
    assert torch.equal(folder.transformer_weight(name), file.transformer_weight(name))
    assert folder.blueprint().state_dict().keys() == file.transformer().state_dict().keys()
    next((tmp_path / "transformer").glob("*.safetensors")).unlink()
    with refusal(tmp_path / "transformer", "diffusers folder" if shard == "200KB" else "whole folder"):
        folder.transformer()


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"cross_attn_mod": false}', None])
def test_folder_of_another_kind(tmp_path: Path, config: str | None, refusal: Callable) -> None:
    (tmp_path / "transformer").mkdir()
    if config is not None:
        (tmp_path / "transformer" / "config.json").write_text(config)
    with refusal(tmp_path, "diffusers folder"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("switches", "version"),
    [
        ({}, "2.3"),
        (configs.SWITCHES, "2.3"),
        ({"use_keyframes_abs_pos_embedding": None}, "2.3"),
        *(({name: not usual}, "2.5") for name, usual in configs.SWITCHES.items()),
    ],
)
def test_the_version_of_a_folder_is_told_by_its_switches(
    tmp_path: Path, switches: dict[str, bool | None], version: str
) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"cross_attn_mod": True, **switches}))
    assert load_checkpoint(tmp_path).version == version


@pytest.mark.parametrize("name", PARTS.values())
def test_loading_draws_no_random_numbers(tiny: TinyFiles, name: str) -> None:
    """Every value comes from the file, so random ones would only take time, and move the caller's generator."""
    checkpoint = load_checkpoint(tiny.checkpoint)
    before = torch.get_rng_state()
    with patch.object(torch.Tensor, "uniform_", side_effect=AssertionError("random values")):
        getattr(checkpoint, name)(torch.float32)
    assert torch.equal(before, torch.get_rng_state())


def test_a_set_is_inspected_once_until_a_file_changes(tmp_path: Path) -> None:
    files = write_tiny(tmp_path)
    built: list[str] = []
    own = reader.build

    def noting(cls: type, arguments: Callable, path: Path, part: str, *rest: object) -> nn.Module:
        built.append(part)
        return own(cls, arguments, path, part, *rest)

    def look(projection: bool = True) -> tuple[reader.Checkpoint, int]:
        built.clear()
        checkpoint = load_checkpoint(files.checkpoint)
        checkpoint.inspect(projection)
        return checkpoint, len(built)

    with patch.object(reader, "build", noting):
        first, parts = look()
        for load in (first.transformer, first.connectors, first.audio_vae, first.vocoder):
            load(torch.float32)
        for half in (first.video_encoder, first.video_decoder):
            half(torch.float32)
        assert parts == len(built) == 6, "what was inspected is built again when it is loaded"
        assert next(first.transformer().parameters()) is not next(first.transformer().parameters())
        again, more = look()
        again.transformer(torch.float32)
        assert more == len(built) == 1
        assert look(projection=False)[1] == parts
        stat = files.checkpoint.stat()
        os.utime(files.checkpoint, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
        assert look()[1] == parts
        files.checkpoint.write_bytes(files.checkpoint.read_bytes().replace(b".patchify_proj.", b".patchify_prox."))
        with pytest.raises(InputError, match="proj_in"):
            look()
