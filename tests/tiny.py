"""A tiny random-weight LTX-2.3 in the original single-file layout, for tests and for a first try without a download.

Every key name and shape below is written out as the published files have them, on purpose without diffusers: what reads
these files is then tested against the layout and not against its own renames. `python tests/tiny.py FOLDER` writes the
set. Nothing here trains or downloads; the pictures are noise.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

Shapes = Iterator[tuple[str, tuple[int, ...]]]
Tensors = dict[str, torch.Tensor]

LATENT = 128  # latent channels of video; and, of audio, 8 channels of 16 mel bins
RATES, BWE_RATES = (5, 2, 2, 2, 2, 2), (6, 5, 2, 2, 2)
KERNELS, BWE_KERNELS = (11, 4, 4, 4, 4, 4), (12, 11, 4, 4, 4)
RES_KERNELS, DILATIONS = (3, 7, 11), (1, 3, 5)
FFT, HOP, MELS, RATE = 512, 80, 64, 16000  # the bandwidth extension's own spectrogram

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
SPECIAL += ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
WORDS = "a an and camera face in is light man of on person room scene speaks talking the to video voice with woman"
CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@dataclass(frozen=True)
class Sizes:
    """What may differ from one checkpoint to the next. The audio stream has the same heads at half the head width."""

    layers: int = 4
    heads: int = 4
    head_dim: int = 16
    connector_layers: int = 2
    vae_width: int = 16  # the decoder's base channels
    gemma_layers: int = 3
    gemma_width: int = 32  # a multiple of 32
    version: str = "2.3.0"

    @property
    def video(self) -> int:
        return self.heads * self.head_dim

    @property
    def audio(self) -> int:
        return self.heads * (self.head_dim // 2)


@dataclass(frozen=True)
class TinyFiles:
    """Where the written files lie; `gemma` is a folder."""

    checkpoint: Path
    upscaler: Path
    distilled_lora: Path
    camera_lora: Path
    gemma: Path


def write_tiny(folder: Path, *, seed: int = 0, **sizes: int | str) -> TinyFiles:
    """Write the set into `folder` (made if absent): bfloat16, 33 MB at the default `sizes`, the fields of Sizes."""
    size = Sizes(**sizes)
    folder = Path(folder)
    files = TinyFiles(
        folder / "ltx-2.3-tiny.safetensors",
        folder / "ltx-2.3-tiny-upscaler-x2.safetensors",
        folder / "ltx-2.3-tiny-distilled-lora.safetensors",
        folder / "ltx-2.3-tiny-camera-lora.safetensors",
        folder / "gemma",
    )
    files.gemma.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    save_file(_random(_checkpoint(size), generator), files.checkpoint, metadata=_metadata(size))
    upscaler = {"config": json.dumps(UPSCALER), "format": "pt"}
    save_file(_random(_upscaler(), generator), files.upscaler, metadata=upscaler)
    save_file(_random(_lora(size, 4, camera=False), generator), files.distilled_lora, metadata={"format": "pt"})
    save_file(_random(_lora(size, 2, camera=True), generator), files.camera_lora, metadata={"format": "pt"})
    _write_gemma(files.gemma, size, generator)
    return files


def write_dummy_checkpoint(path: Path, gigabytes: float = 2.0) -> Path:
    """Write a checkpoint of at least `gigabytes` (10⁹ bytes): blocks of the real width, as many as it takes, all zero.

    The zeros are a hole in a sparse file, so it costs neither disk nor memory to write."""
    layers = 1
    while (total := sum(2 * math.prod(s) for _, s in _checkpoint(_wide(layers)))) < gigabytes * 1e9:
        layers += 1
    header, end = {"__metadata__": _metadata(_wide(layers))}, 0
    for name, shape in _checkpoint(_wide(layers)):
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + total)
    return Path(path)


def _wide(layers: int) -> Sizes:
    return Sizes(layers=layers, heads=32, head_dim=128, connector_layers=1)


# Layers: each yields the (name, shape) of its tensors.


def _linear(name: str, out: int, inp: int) -> Shapes:
    yield f"{name}.weight", (out, inp)
    yield f"{name}.bias", (out,)


def _conv(name: str, out: int, inp: int, *kernel: int) -> Shapes:
    yield f"{name}.weight", (out, inp, *kernel)
    yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _attention(name: str, query: int, context: int, inner: int, heads: int) -> Shapes:
    yield from _linear(f"{name}.to_q", inner, query)
    yield from _linear(f"{name}.to_k", inner, context)
    yield from _linear(f"{name}.to_v", inner, context)
    yield from _linear(f"{name}.to_out.0", query, inner)
    yield from _linear(f"{name}.to_gate_logits", heads, query)
    yield f"{name}.q_norm.weight", (inner,)
    yield f"{name}.k_norm.weight", (inner,)


def _feed_forward(name: str, width: int) -> Shapes:
    yield from _linear(f"{name}.net.0.proj", 4 * width, width)
    yield from _linear(f"{name}.net.2", width, 4 * width)


def _adaln(name: str, width: int, parameters: int) -> Shapes:
    yield from _linear(f"{name}.emb.timestep_embedder.linear_1", width, 256)
    yield from _linear(f"{name}.emb.timestep_embedder.linear_2", width, width)
    yield from _linear(f"{name}.linear", parameters * width, width)


# The checkpoint, part by part.


def _transformer(size: Sizes) -> Shapes:
    video, audio, heads = size.video, size.audio, size.heads
    for prefix, width in (("", video), ("audio_", audio)):
        yield from _linear(f"{prefix}patchify_proj", width, LATENT)
        yield from _linear(f"{prefix}proj_out", LATENT, width)
        yield from _adaln(f"{prefix}adaln_single", width, 9)
        yield from _adaln(f"{prefix}prompt_adaln_single", width, 2)
        yield f"{prefix}scale_shift_table", (2, width)
    yield from _adaln("av_ca_video_scale_shift_adaln_single", video, 4)
    yield from _adaln("av_ca_audio_scale_shift_adaln_single", audio, 4)
    yield from _adaln("av_ca_a2v_gate_adaln_single", video, 1)
    yield from _adaln("av_ca_v2a_gate_adaln_single", audio, 1)
    for i in range(size.layers):
        block = f"transformer_blocks.{i}."
        for prefix, width in (("", video), ("audio_", audio)):
            yield from _attention(f"{block}{prefix}attn1", width, width, width, heads)
            yield from _attention(f"{block}{prefix}attn2", width, width, width, heads)
            yield from _feed_forward(f"{block}{prefix}ff", width)
            yield f"{block}{prefix}scale_shift_table", (9, width)
            yield f"{block}{prefix}prompt_scale_shift_table", (2, width)
        yield from _attention(f"{block}audio_to_video_attn", video, audio, audio, heads)
        yield from _attention(f"{block}video_to_audio_attn", audio, video, audio, heads)
        yield f"{block}scale_shift_table_a2v_ca_video", (5, video)
        yield f"{block}scale_shift_table_a2v_ca_audio", (5, audio)


def _connectors(size: Sizes) -> Shapes:
    for stream, width in (("video", size.video), ("audio", size.audio)):
        states = size.gemma_width * (size.gemma_layers + 1)
        yield from _linear(f"text_embedding_projection.{stream}_aggregate_embed", width, states)
        connector = f"model.diffusion_model.{stream}_embeddings_connector."
        yield f"{connector}learnable_registers", (128, width)
        for i in range(size.connector_layers):
            yield from _attention(f"{connector}transformer_1d_blocks.{i}.attn1", width, width, width, size.heads)
            yield from _feed_forward(f"{connector}transformer_1d_blocks.{i}.ff", width)


def _video_vae(size: Sizes) -> Shapes:
    def res(name: str, width: int) -> Shapes:
        for conv in ("conv1", "conv2"):
            yield from _conv(f"{name}.res_blocks.0.{conv}.conv", width, width, 3, 3, 3)

    yield from _conv("encoder.conv_in.conv", LATENT, 48, 3, 3, 3)  # 3 colours of a patch of 4 by 4
    for i, stride in enumerate((4, 2, 8, 8)):  # space, time, both, both
        yield from res(f"encoder.down_blocks.{2 * i}", LATENT)
        yield from _conv(f"encoder.down_blocks.{2 * i + 1}.conv.conv", LATENT // stride, LATENT, 3, 3, 3)
    yield from res("encoder.down_blocks.8", LATENT)
    yield from _conv("encoder.conv_out.conv", LATENT + 1, LATENT, 3, 3, 3)  # one log-variance for all channels
    width = 8 * size.vae_width
    yield from _conv("decoder.conv_in.conv", width, LATENT, 3, 3, 3)
    for i, (stride, reduction) in enumerate(((8, 2), (8, 1), (2, 2), (4, 2))):
        yield from res(f"decoder.up_blocks.{2 * i}", width)
        yield from _conv(f"decoder.up_blocks.{2 * i + 1}.conv.conv", width * stride // reduction, width, 3, 3, 3)
        width //= reduction
    yield from res("decoder.up_blocks.8", width)
    yield from _conv("decoder.conv_out.conv", 48, width, 3, 3, 3)
    yield from _statistics()


def _audio_vae() -> Shapes:
    def res(name: str) -> Shapes:
        for conv in ("conv1", "conv2"):
            yield from _conv(f"{name}.{conv}.conv", 128, 128, 3, 3)

    for part, inp, out in (("encoder", 2, 16), ("decoder", 8, 2)):
        yield from _conv(f"{part}.conv_in.conv", 128, inp, 3, 3)
        yield from _conv(f"{part}.conv_out.conv", out, 128, 3, 3)
        yield from res(f"{part}.mid.block_1")
        yield from res(f"{part}.mid.block_2")
    for level in range(3):
        yield from res(f"encoder.down.{level}.block.0")
        yield from res(f"decoder.up.{level}.block.0")
        yield from res(f"decoder.up.{level}.block.1")
        if level < 2:
            yield from _conv(f"encoder.down.{level}.downsample.conv", 128, 128, 3, 3)
        if level > 0:
            yield from _conv(f"decoder.up.{level}.upsample.conv.conv", 128, 128, 3, 3)
    yield from _statistics()


def _statistics() -> Shapes:
    yield "per_channel_statistics.mean-of-means", (LATENT,)
    yield "per_channel_statistics.std-of-means", (LATENT,)


def _generator(width: int, kernels: tuple[int, ...]) -> Shapes:
    """A BigVGAN generator of `width` channels, halved at each upsampling."""

    def snake(name: str, width: int) -> Shapes:
        yield f"{name}.act.alpha", (width,)
        yield f"{name}.act.beta", (width,)
        yield f"{name}.upsample.filter", (1, 1, 12)
        yield f"{name}.downsample.lowpass.filter", (1, 1, 12)

    yield from _conv("conv_pre", width, LATENT, 7)
    for i, kernel in enumerate(kernels):
        yield f"ups.{i}.weight", (width, width // 2, kernel)  # transposed: input channels first
        width //= 2
        yield f"ups.{i}.bias", (width,)
        for j, res_kernel in enumerate(RES_KERNELS):
            for n in range(len(DILATIONS)):
                for half in "12":
                    res = f"resblocks.{len(RES_KERNELS) * i + j}"
                    yield from _conv(f"{res}.convs{half}.{n}", width, width, res_kernel)
                    yield from snake(f"{res}.acts{half}.{n}", width)
    yield from snake("act_post", width)
    yield "conv_post.weight", (2, width, 7)


def _vocoder() -> Shapes:
    yield from _prefixed("vocoder.", _generator(64, KERNELS))
    yield from _prefixed("bwe_generator.", _generator(32, BWE_KERNELS))
    yield "mel_stft.mel_basis", (MELS, FFT // 2 + 1)
    yield "mel_stft.stft_fn.forward_basis", (FFT + 2, 1, FFT)
    yield "mel_stft.stft_fn.inverse_basis", (FFT + 2, 1, FFT)


def _checkpoint(size: Sizes) -> Shapes:
    yield from _prefixed("model.diffusion_model.", _transformer(size))
    yield from _connectors(size)
    yield from _prefixed("vae.", _video_vae(size))
    yield from _prefixed("audio_vae.", _audio_vae())
    yield from _prefixed("vocoder.", _vocoder())


def _upscaler(width: int = 32) -> Shapes:
    def res(name: str) -> Shapes:
        for i in "12":
            yield from _conv(f"{name}.conv{i}", width, width, 3, 3, 3)
            yield from _norm(f"{name}.norm{i}", width)

    yield from _conv("initial_conv", width, LATENT, 3, 3, 3)
    yield from _norm("initial_norm", width)
    yield from res("res_blocks.0")
    yield from _conv("upsampler.0", 4 * width, width, 3, 3)
    yield from res("post_upsample_res_blocks.0")
    yield from _conv("final_conv", LATENT, width, 3, 3, 3)


def _lora(size: Sizes, rank: int, *, camera: bool) -> Shapes:
    """Every linear layer of the transformer, or (camera) those of its blocks less the audio-video attention."""
    for name, shape in _transformer(size):
        linear = name.endswith(".weight") and len(shape) == 2
        if linear and not (camera and ("_to_" in name or not name.startswith("transformer_blocks."))):
            module = "diffusion_model." + name.removesuffix(".weight")
            yield f"{module}.lora_A.weight", (rank, shape[1])
            yield f"{module}.lora_B.weight", (shape[0], rank)


def _prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return ((prefix + name, shape) for name, shape in shapes)


# Values.


def _random(shapes: Shapes, generator: torch.Generator) -> Tensors:
    """bfloat16 weights that keep activations near unit size; filters and spectrogram bases are the true ones."""
    return {name: _value(name, shape, generator).to(torch.bfloat16).contiguous() for name, shape in shapes}


def _value(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if name.endswith("mel_basis"):
        return _mel_basis()
    if name.endswith("_basis"):
        return _stft_basis()
    if name.endswith(".filter"):
        return _low_pass()
    x = torch.randn(shape, generator=generator)
    if name.endswith("std-of-means"):
        return (1 + 0.12 * x).clamp_min(0.5)
    if name.endswith("mean-of-means"):
        return 0.2 * x
    if name.endswith("learnable_registers"):
        return x
    if "scale_shift_table" in name:
        return 0.3 * x
    if name.endswith((".bias", ".alpha", ".beta")):
        return 0.1 * x
    if len(shape) == 1:  # a norm's weight; Gemma's are an offset from 1
        return 0.2 * x if name.startswith("language_model.") or name.endswith("soft_emb_norm.weight") else 1 + 0.1 * x
    if name.endswith("lora_B.weight"):
        return 0.15 * x
    gain = 0.7 if name.startswith("vocoder.") else 1.0  # three residual branches of three layers each add up
    return gain * x / math.sqrt(math.prod(shape[1:]))


def _low_pass() -> torch.Tensor:
    """Kaiser-windowed sinc of 12 taps at half the band, transition 0.3 (Kaiser's formula for beta)."""
    attenuation = 2.285 * 5 * math.pi * 1.2 + 7.95
    window = torch.kaiser_window(12, periodic=False, beta=0.1102 * (attenuation - 8.7))
    taps = window * torch.sinc((torch.arange(12) - 5.5) / 2)
    return (taps / taps.sum()).view(1, 1, 12)


def _stft_basis() -> torch.Tensor:
    """Hann-windowed DFT: cosines, then negative sines, of bins 0 … FFT/2."""
    angle = 2 * math.pi / FFT * torch.outer(torch.arange(FFT // 2 + 1.0), torch.arange(float(FFT))).double()
    return (torch.cat([angle.cos(), -angle.sin()]) * torch.hann_window(FFT, dtype=torch.double)).unsqueeze(1)


def _mel_basis() -> torch.Tensor:
    """Slaney's mel filters, area-normalised: linear below 1 kHz, logarithmic above (27 steps per factor 6.4)."""

    def hertz(mel: torch.Tensor) -> torch.Tensor:
        return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))

    top = 15 + 27 * math.log(RATE / 2 / 1000) / math.log(6.4)
    edges = hertz(torch.linspace(0, top, MELS + 2, dtype=torch.double))
    low, centre, high = (edges[i : i + MELS, None] for i in range(3))
    bins = torch.linspace(0, RATE / 2, FFT // 2 + 1, dtype=torch.double)
    triangles = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp_min(0)
    return triangles * 2 / (high - low)


# Metadata.


def _metadata(size: Sizes) -> dict[str, str]:
    config = {
        "transformer": {
            "_class_name": "AVTransformer3DModel",
            "activation_fn": "gelu-approximate",
            "attention_bias": True,
            "attention_type": "default",
            "attention_head_dim": size.head_dim,
            "num_attention_heads": size.heads,
            "num_layers": size.layers,
            "in_channels": LATENT,
            "out_channels": LATENT,
            "cross_attention_dim": size.video,
            "caption_channels": size.gemma_width,
            "audio_attention_head_dim": size.head_dim // 2,
            "audio_num_attention_heads": size.heads,
            "audio_in_channels": LATENT,
            "audio_out_channels": LATENT,
            "audio_cross_attention_dim": size.audio,
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
            "av_cross_ada_norm": True,
            "use_audio_video_cross_attention": True,
            "share_ff": False,
            "dropout": 0.0,
            "norm_eps": 1e-06,
            "norm_elementwise_affine": False,
            "standardization_norm": "rms_norm",
            "qk_norm": "rms_norm",
            "cross_attention_norm": True,
            "double_self_attention": False,
            "only_cross_attention": False,
            "upcast_attention": False,
            "use_linear_projection": False,
            "num_embeds_ada_norm": 1000,
            "num_vector_embeds": None,
            "causal_temporal_positioning": True,
            "caption_proj_before_connector": True,
            "caption_projection_first_linear": False,
            "caption_projection_second_linear": False,
            "caption_proj_input_norm": False,
            "use_embeddings_connector": True,
            "connector_apply_gated_attention": True,
            "connector_attention_head_dim": size.head_dim,
            "connector_num_attention_heads": size.heads,
            "connector_num_layers": size.connector_layers,
            "audio_connector_attention_head_dim": size.head_dim // 2,
            "audio_connector_num_attention_heads": size.heads,
            "audio_connector_num_layers": size.connector_layers,
            "connector_positional_embedding_max_pos": [4096],
            "connector_num_learnable_registers": 128,
        },
        "vae": {
            "_class_name": "CausalVideoAutoencoder",
            "dims": 3,
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": LATENT,
            "encoder_blocks": _blocks(("space_res", 1), ("time_res", 1), ("all_res", 1), ("all_res", 1)),
            "decoder_blocks": _blocks(("space", 2), ("time", 2), ("all", 1), ("all", 2)),  # as the encoder runs
            "decoder_base_channels": size.vae_width,
            "scaling_factor": 1.0,
            "norm_layer": "pixel_norm",
            "patch_size": 4,
            "latent_log_var": "uniform",
            "use_quant_conv": False,
            "normalize_latent_channels": False,
            "causal_decoder": False,
            "timestep_conditioning": False,
            "spatial_padding_mode": "zeros",
        },
        "audio_vae": AUDIO_VAE,
        "vocoder": {
            "vocoder": _generator_config(64, RATES, KERNELS),
            "bwe": {
                **_generator_config(32, BWE_RATES, BWE_KERNELS),
                "apply_final_activation": False,
                "input_sampling_rate": RATE,
                "output_sampling_rate": 3 * RATE,
                "n_fft": FFT,
                "hop_length": HOP,
                "num_mels": MELS,
            },
        },
        "scheduler": {
            "_class_name": "RectifiedFlowScheduler",
            "num_train_timesteps": 1000,
            "shifting": None,
            "target_shift_terminal": 0.1,
            "sampler": "LinearQuadratic",
        },
    }
    return {"config": json.dumps(config), "model_version": size.version, "format": "pt"}


def _blocks(*compress: tuple[str, int]) -> list[list[object]]:
    res = ["res_x", {"num_layers": 1}]
    return [res, *(block for kind, n in compress for block in ([f"compress_{kind}", {"multiplier": n}], res))]


def _generator_config(width: int, rates: tuple[int, ...], kernels: tuple[int, ...]) -> dict[str, object]:
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
                "ch": 128,
                "ch_mult": [1, 1, 1],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "dropout": 0.0,
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
            "sampling_rate": 16000,
        }
    },
    "preprocessing": {
        "audio": {"sampling_rate": 16000, "stereo": True},
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
    },
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


# Gemma.


def _gemma(size: Sizes, vocabulary: int) -> Shapes:
    width, heads = size.gemma_width, size.gemma_width // 16
    yield "language_model.model.embed_tokens.weight", (vocabulary, width)
    yield "language_model.model.norm.weight", (width,)
    for i in range(size.gemma_layers):
        layer = f"language_model.model.layers.{i}."
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{layer}{norm}_layernorm.weight", (width,)
        yield f"{layer}self_attn.q_proj.weight", (16 * heads, width)
        yield f"{layer}self_attn.k_proj.weight", (8 * heads, width)
        yield f"{layer}self_attn.v_proj.weight", (8 * heads, width)
        yield f"{layer}self_attn.o_proj.weight", (width, 16 * heads)
        yield f"{layer}self_attn.q_norm.weight", (16,)
        yield f"{layer}self_attn.k_norm.weight", (16,)
        yield f"{layer}mlp.gate_proj.weight", (2 * width, width)
        yield f"{layer}mlp.up_proj.weight", (2 * width, width)
        yield f"{layer}mlp.down_proj.weight", (width, 2 * width)
    yield "multi_modal_projector.mm_input_projection_weight", (16, width)
    yield "multi_modal_projector.mm_soft_emb_norm.weight", (16,)
    vision = "vision_tower.vision_model."
    yield from _conv(f"{vision}embeddings.patch_embedding", 16, 3, 14, 14)
    yield f"{vision}embeddings.position_embedding.weight", (16, 16)
    for name in ("q", "k", "v", "out"):
        yield from _linear(f"{vision}encoder.layers.0.self_attn.{name}_proj", 16, 16)
    yield from _linear(f"{vision}encoder.layers.0.mlp.fc1", 32, 16)
    yield from _linear(f"{vision}encoder.layers.0.mlp.fc2", 16, 32)
    for norm in ("encoder.layers.0.layer_norm1", "encoder.layers.0.layer_norm2", "post_layernorm"):
        yield from _norm(f"{vision}{norm}", 16)


def _write_gemma(folder: Path, size: Sizes, generator: torch.Generator) -> None:
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = -(-tokenizer.get_vocab_size() // 64) * 64
    save_file(_random(_gemma(size, vocabulary), generator), folder / "model.safetensors", metadata={"format": "pt"})
    image_tokens = {"boi_token": SPECIAL[6], "eoi_token": SPECIAL[7], "image_token": SPECIAL[8]}
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "torch_dtype": "bfloat16",
        "boi_token_index": 6,
        "eoi_token_index": 7,
        "image_token_index": 8,
        "eos_token_id": [1, 5],
        "initializer_range": 0.02,
        "mm_tokens_per_image": 4,
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": size.gemma_width,
            "num_hidden_layers": size.gemma_layers,
            "num_attention_heads": size.gemma_width // 16,
            "num_key_value_heads": size.gemma_width // 32,
            "head_dim": 16,
            "intermediate_size": 2 * size.gemma_width,
            "query_pre_attn_scalar": 16,
            "vocab_size": vocabulary,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000,
            "rope_local_base_freq": 10000,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
            "sliding_window_pattern": 6,
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "use_cache": True,
            "initializer_range": 0.02,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_channels": 3,
            "image_size": 56,
            "patch_size": 14,
            "layer_norm_eps": 1e-06,
            "attention_dropout": 0.0,
            "hidden_act": "gelu_pytorch_tanh",
            "vision_use_head": False,
        },
    }
    tokenizer_config = {
        "tokenizer_class": "GemmaTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        **image_tokens,
        "extra_special_tokens": image_tokens,
        "model_max_length": 1024,
        "processor_class": "Gemma3Processor",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT,
    }
    image_processor = {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "do_resize": True,
        "size": {"height": 56, "width": 56},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_seq_length": 4,
        "do_convert_rgb": None,
        "do_pan_and_scan": None,
    }
    documents: Mapping[str, object] = {
        "config.json": config,
        "tokenizer_config.json": tokenizer_config,
        "preprocessor_config.json": image_processor,
        "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1), encoding="utf-8")


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def tokenizer_without_bos(special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """The same tokenizer as Gemma 4 has it: nothing adds <bos>."""
    tokenizer = _tokenizer(special)
    tokenizer.post_processor = None
    return tokenizer


def _tokenizer(special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """Gemma's scheme (byte-fallback BPE over ▁-joined text) with the merges that spell a few common words."""
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), "▁", *map(chr, range(33, 127))]
    merges = {}
    for word in WORDS.split():
        word = "▁" + word
        merges.update({(word[:i], word[i]): None for i in range(1, len(word))})
    tokens += dict.fromkeys(left + right for left, right in merges)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    bpe = models.BPE(vocabulary, list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


# Gemma in one file, as ComfyUI has it.

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
MIXED = {"mlp": "nvfp4", "self_attn": "float8_e4m3fn"}


def write_gemma_file(folder: Path, path: Path, precision: str = "bf16", *, vision: bool = True) -> Tensors:
    """Write the Gemma of `folder` as ComfyUI's text encoders are; returns its weights as the file gives them, by the
    folder's names. precision: bf16, fp8 (scaled), fp8_old (with the marks of 2025), fp8_plain (cast), fp4_mixed.
    """
    weights = load_file(folder / "model.safetensors")
    tensors: Tensors = {"spiece_model": torch.frombuffer(bytearray(sentencepiece_model()), dtype=torch.uint8)}
    given: Tensors = {}
    layers: dict[str, dict[str, str]] = {}
    for name, weight in weights.items():
        if not vision and not name.startswith("language_model."):
            continue
        given[name] = weight
        key = name.removeprefix("language_model.")
        key = key.replace("vision_tower.vision_model.", "vision_model.")
        layer = key.removesuffix(".weight")
        linear = weight.ndim == 2 and "proj" in layer.rpartition(".")[2] and not key.startswith("multi_modal")
        kind = _stored_as(layer, precision) if linear and not key.startswith("vision") else None
        if kind is None:
            tensors[key] = weight
            if precision == "fp8_plain" and weight.ndim > 1:
                tensors[key] = weight.to(torch.float8_e4m3fn)
                given[name] = tensors[key].float()
            continue
        if kind == "nvfp4":
            tensors[key], tensors[f"{layer}.weight_scale"], scale, given[name] = _nvfp4(weight.float())
            tensors[f"{layer}.weight_scale_2"] = scale
        elif precision == "fp8_plain":
            tensors[key] = weight.to(torch.float8_e4m3fn)
            given[name] = tensors[key].float()
        else:
            scale = weight.float().abs().max() / 448
            tensors[key] = (weight.float() / scale).to(torch.float8_e4m3fn)
            tensors[f"{layer}.{'scale_weight' if precision == 'fp8_old' else 'weight_scale'}"] = scale
            given[name] = tensors[key].float() * scale
        if precision == "fp8_old":
            tensors[f"{layer}.scale_input"] = torch.tensor(1.0)
        elif precision != "fp8_plain":
            layers[layer] = {"format": kind}
            mark = json.dumps({"format": kind, "full_precision_matrix_mult": True}).encode()
            tensors[f"{layer}.comfy_quant"] = torch.frombuffer(bytearray(mark), dtype=torch.uint8)
    if precision == "fp8_old":
        tensors["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    metadata = {"format": "pt"}
    if layers:
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata)
    return given


def _stored_as(layer: str, precision: str) -> str | None:
    """What a linear layer of the language model is stored as; None: as it is."""
    if precision == "fp4_mixed":
        return None if ".layers.0." in layer else next(kind for part, kind in MIXED.items() if f".{part}." in layer)
    return "float8_e4m3fn" if precision.startswith("fp8") else None


def _nvfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(packed, block scales in tiles, scale of all, the weight that these give); both sides divide by 16."""
    rows, columns = weight.shape
    scale = weight.abs().max() / (6 * 448)
    blocks = weight.view(rows, columns // 16, 16)
    scales = (blocks.abs().amax(-1) / 6 / scale).to(torch.float8_e4m3fn)
    factors = (scales.float() * scale).unsqueeze(-1)
    codes = ((blocks / factors).abs().unsqueeze(-1) - E2M1).abs().argmin(-1)
    given = (E2M1[codes] * blocks.sign() * factors).view(rows, columns)
    codes = (codes + 8 * (blocks < 0)).view(rows, columns).to(torch.uint8)
    tiled = torch.zeros(-(-rows // 128) * 128 * -(-columns // 64) * 4, dtype=torch.uint8)
    flat = scales.view(torch.uint8)
    for row in range(rows):  # the offset is the one in cuBLAS's documentation of block scales
        for column in range(columns // 16):
            tile = row // 128 * -(-columns // 64) + column // 4
            tiled[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4] = flat[row, column]
    packed = codes[:, 0::2] * 16 + codes[:, 1::2]
    tiled = tiled.view(torch.float8_e4m3fn).view(-(-rows // 128) * 128, -(-columns // 64) * 4)
    return packed, tiled, scale, given


def sentencepiece_model() -> bytes:
    """The vocabulary of `_tokenizer` as a SentencePiece model, a protocol buffer: pieces, then how it was trained."""
    vocabulary = json.loads(_tokenizer().to_str())["model"]["vocab"]
    pieces = b""
    for i, text in enumerate(sorted(vocabulary, key=vocabulary.__getitem__)):
        kind = 6 if text.startswith("<0x") else 1
        if text in SPECIAL:
            kind = {"<unk>": 2, "<pad>": 3, "<eos>": 3, "<bos>": 3}.get(text, 4)
        score = float(-i) if kind == 1 else 0.0
        body = _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
        pieces += _field(1, body)
    trainer = (
        b"\x18\x02"
        + _varint(35 << 3)
        + b"\x01"
        + b"".join(  # BPE, with bytes for what is in no piece
            _varint(field << 3) + bytes([i]) for field, i in ((40, 3), (41, 2), (42, 1), (43, 0))
        )
    )
    normalizer = _field(1, b"identity") + b"\x18\x00" + b"\x20\x00" + b"\x28\x01"  # spaces to ▁ and nothing else
    return pieces + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/tiny.py FOLDER")
    write_tiny(Path(sys.argv[1]))
