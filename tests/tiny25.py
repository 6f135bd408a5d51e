"""A tiny random-weight LTX-2.5 in the published split layout, for tests: tiny.py's 2.3 with what 2.5 changes.

Key names and shapes of what is new are written out as the published files have them, without diffusers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import tiny

Tensors = dict[str, Tensor]
PREFIX = "model.diffusion_model."
CONNECTORS = re.compile(rf"{re.escape(PREFIX)}(video|audio)_embeddings_connector\.")
GEMMA_VERSION = "gemma4-12b-ltx-v1"
LATENT = 128
NONE_OF_THEM = {
    "ff_bias": False,
    "audio_ff_bias": False,
    "connector_ff_bias": False,
    "use_prompt_adaln_single": False,
    "use_keyframes_abs_pos_embedding": False,
}


@dataclass(frozen=True)
class Decoder:
    """The diffusion decoder: channels, blocks and windows of its five stages."""

    channels: tuple[int, ...] = (64, 32, 16, 16, 16)
    depths: tuple[int, ...] = (1, 2, 1, 1, 2)
    kernels: tuple[tuple[int, int, int], ...] = ((3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (5, 5, 5))
    upsamples: tuple[tuple[tuple[int, int, int], int], ...] = (
        ((1, 2, 2), 2), ((2, 1, 1), 2), ((2, 2, 2), 1), ((2, 2, 2), 1),
    )  # fmt: skip
    head: int = 16
    steps: int = 1
    output: str = "x0"
    gated: bool = False


@dataclass(frozen=True)
class Tiny25Files:
    """Where the written files lie. video_vae has the convolutional decoder, diffusion_vae the other one."""

    transformer: Path
    text_encoder: Path
    video_vae: Path
    diffusion_vae: Path
    audio_vae: Path
    upscaler: Path
    distilled_lora: Path
    camera_lora: Path

    @property
    def parts(self) -> dict[str, Path]:
        """As load_checkpoint takes them."""
        return {"video_vae": self.video_vae, "audio_vae": self.audio_vae, "text_encoder": self.text_encoder}


def write_tiny25(
    folder: Path,
    *,
    seed: int = 0,
    switches: Mapping[str, bool] | None = None,
    decoder: Decoder | None = None,
    distilled: bool = False,
    version: str = "2.5.0",
    **sizes: int,
) -> Tiny25Files:
    """Writes the set into `folder`: bfloat16, tables in float32. sizes: the fields of tiny.Sizes but for the version.

    switches: of the configuration, by default as published: no bias in the video's feed-forward, a keyframe vector.
    distilled: whether the transformer's name says that it is.
    """
    sizes = {"gemma_layers": 3, **sizes}
    folder = Path(folder)
    switches = {"ff_bias": False, "use_keyframes_abs_pos_embedding": True} if switches is None else dict(switches)
    old = tiny.write_tiny(folder / "2.3", seed=seed, **sizes)
    tensors, metadata = load_file(old.checkpoint), tiny.metadata_of(old.checkpoint)
    config = json.loads(metadata["config"])
    generator = torch.Generator().manual_seed(1000 + seed)
    name = f"ltx-2.5-tiny-{'distilled' if distilled else 'dev'}-transformer.safetensors"
    files = Tiny25Files(
        folder / name,
        folder / "gemma4-tiny-with-proj-ltx-2.5.safetensors",
        folder / "ltx-2.5-tiny-video-vae-conv.safetensors",
        folder / "ltx-2.5-tiny-video-vae.safetensors",
        folder / "ltx-2.5-tiny-audio-vae.safetensors",
        folder / "ltx-2.5-tiny-latent-spatial-upscaler-x2.safetensors",
        folder / "ltx-2.5-tiny-distilled-lora.safetensors",
        folder / "ltx-2.5-tiny-camera-lora.safetensors",
    )
    whole = {"transformer": None, "scheduler": None, "vae": None, "audio_vae": None, "vocoder": None}

    def save(path: Path, kept: Tensors, told: Mapping[str, object], **more: str) -> None:
        said = {"config": json.dumps({**whole, **told}), "model_version": version, "format": "pt", **more}
        save_file({key: tensor.contiguous() for key, tensor in kept.items()}, path, metadata=said)

    transformer = {**config["transformer"], "text_encoder_norm_type": "PER_TOKEN_RMS", **switches}
    save(
        files.transformer,
        _switched({k: t for k, t in tensors.items() if k.startswith(PREFIX)}, switches, generator),
        {"transformer": transformer, "scheduler": config["scheduler"]},
        gemma_source_checkpoint=json.dumps({"ltx_version": version, "gemma_version": GEMMA_VERSION}),
    )
    vae = {key.removeprefix("vae."): tensor for key, tensor in tensors.items() if key.startswith("vae.")}
    save(files.video_vae, vae, {"vae": config["vae"]})
    decoder = decoder or Decoder()
    shared = {key: tensor for key, tensor in vae.items() if not key.startswith("decoder.")}
    save(
        files.diffusion_vae,
        {**shared, **_diffusion_decoder(decoder, generator)},
        {"vae": _diffusion_config(config["vae"], decoder)},
    )
    sound = {key: tensor for key, tensor in tensors.items() if key.startswith(("audio_vae.", "vocoder."))}
    save(files.audio_vae, sound, {name: config[name] for name in ("audio_vae", "vocoder")})
    save_file(load_file(old.upscaler), files.upscaler, {**tiny.metadata_of(old.upscaler), "model_version": version})
    for source, target in ((old.distilled_lora, files.distilled_lora), (old.camera_lora, files.camera_lora)):
        kept = {k: t for k, t in load_file(source).items() if "prompt_adaln" not in k or _on(switches, "prompt")}
        save_file(kept, target, {"format": "pt", "model_version": version})
    projection = {key: tensor for key, tensor in tensors.items() if key.startswith("text_embedding_projection.")}
    write_gemma4(files.text_encoder, sizes["gemma_layers"], sizes.get("gemma_width", 32), generator, projection)
    return files


def _on(switches: Mapping[str, bool], name: str) -> bool:
    usual = {"ff": "ff_bias", "audio_ff": "audio_ff_bias", "connector": "connector_ff_bias"}
    return switches.get(usual.get(name, "use_prompt_adaln_single"), True)


def _switched(tensors: Tensors, switches: Mapping[str, bool], generator: torch.Generator) -> Tensors:
    """The transformer and the connectors with what the switches leave of them; tables are float32, as published."""
    kept = {}
    for key, tensor in tensors.items():
        bias = re.search(r"\.(audio_ff|ff)\.net\.(0\.proj|2)\.bias$", key)
        if bias and not _on(switches, "connector" if CONNECTORS.match(key) else bias[1]):
            continue
        if "prompt_adaln_single" in key and not _on(switches, "prompt"):
            continue
        kept[key] = tensor.float() if "scale_shift_table" in key else tensor
    if switches.get("use_keyframes_abs_pos_embedding", False):
        width = tensors[f"{PREFIX}patchify_proj.weight"].shape[0]
        vector = torch.randn(1, width, generator=generator)
        kept[f"{PREFIX}keyframes_abs_pos_embedding"] = vector.to(torch.bfloat16)
    return kept


# The diffusion decoder.


def _diffusion_decoder(size: Decoder, generator: torch.Generator) -> Tensors:
    tensors: Tensors = {}

    def put(name: str, *shape: int, spread: float | None = None) -> None:
        x = torch.randn(shape, generator=generator)
        if spread is None:
            spread = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
        x = x * spread + (1 if "norm" in name else 0)
        tensors[f"decoder.{name}"] = x.to(torch.bfloat16)

    def linear(name: str, out: int, inp: int) -> None:
        put(f"{name}.weight", out, inp)
        put(f"{name}.bias", out)

    def block(name: str, width: int) -> None:
        linear(f"{name}.attn.qkv", 3 * width, width)
        linear(f"{name}.attn.proj", width, width)
        for norm, length in (
            ("attn.q_norm", size.head),
            ("attn.k_norm", size.head),
            ("norm1", width),
            ("norm2", width),
        ):
            put(f"{name}.{norm}.weight", length)
        for layer, out, inp in (
            ("w_gate", 4 * width, width),
            ("w_up", 4 * width, width),
            ("w_down", width, 4 * width),
        ):
            put(f"{name}.mlp.{layer}.weight", out, inp)
        for gate in ("gate_msa", "gate_mlp") if size.gated else ():
            put(f"{name}.{gate}", width, spread=1.0)

    linear("conv_in", size.channels[0], LATENT)
    for stage, (width, depth) in enumerate(zip(size.channels[:4], size.depths[:4], strict=True)):
        for number in range(depth):
            block(f"det_stages.{stage}.{number}", width)
        stride, reduction = size.upsamples[stage]
        linear(f"upsamples.{stage}.proj", width * math.prod(stride) // reduction, width)
    last, hidden = size.channels[4], 32
    linear("t_embedder.mlp.0", hidden, 256)
    linear("t_embedder.mlp.2", hidden, hidden)
    linear("shared_adaln.proj", 7 * last, hidden)
    linear("conv_in_x_t", last, 48)
    for number in range(size.depths[4]):
        block(f"diff_blocks.{number}", last)
        linear(f"diff_blocks.{number}.context_proj", last, last)
        put(f"diff_blocks.{number}.scale_shift_table", 7, last, spread=0.3)
        if size.gated:
            put(f"diff_blocks.{number}.gate_ctx", last, spread=1.0)
    put("norm_out.weight", last)
    linear("conv_out", 48, last)
    put("type_emb", LATENT)
    return tensors


def _diffusion_config(convolutional: Mapping[str, object], size: Decoder) -> dict[str, object]:
    return {
        "_class_name": "CausalDiffusionVAE",
        "dims": 3,
        "latent_channels": LATENT,
        "model_output_type": size.output,
        "encoder": {
            "_class_name": "Encoder",
            "in_channels": 3,
            "out_channels": LATENT,
            "blocks": convolutional["encoder_blocks"],
            "patch_size": 4,
            "latent_log_var": "constant",
            "norm_layer": "pixel_norm",
            "spatial_padding_mode": "zeros",
        },
        "decoder": {
            "_class_name": "NADiffusionDecoder",
            "in_channels": LATENT,
            "out_channels": 3,
            "patch_size": 4,
            "head_dim": size.head,
            "stage_channels": size.channels,
            "stage_depths": size.depths,
            "stage_kernels": size.kernels,
            "upsamples": size.upsamples,
            "stage5_kernel": size.kernels[4],
            "t_emb_dim": 32,
            "timestep_scale_multiplier": 1000.0,
            "default_num_inference_steps": size.steps,
        },
    }


# Gemma 4.


def write_gemma4(
    path: Path, layers: int, width: int, generator: torch.Generator, projection: Tensors, every: int = 3
) -> None:
    """The text encoder's file: the last of each `every` layers sees everything, and uses its keys as values."""
    tokenizer = tiny.tokenizer_without_bos()
    vocabulary = -(-tokenizer.get_vocab_size() // 64) * 64
    heads, kinds = width // 16, ["full" if n % every == every - 1 else "sliding" for n in range(layers)]
    tensors: Tensors = {}

    def put(name: str, *shape: int) -> None:
        x = torch.randn(shape, generator=generator)
        x = 1 + 0.2 * x if len(shape) == 1 else x / math.sqrt(shape[1])
        tensors[f"model.{name}"] = x.to(torch.bfloat16)

    put("embed_tokens.weight", vocabulary, width)
    put("norm.weight", width)
    for number, kind in enumerate(kinds):
        layer, head = f"layers.{number}.", 32 if kind == "full" else 16
        kv = 1 if kind == "full" else max(1, heads // 2)
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            put(f"{layer}{norm}_layernorm.weight", width)
        put(f"{layer}layer_scalar", 1)
        put(f"{layer}self_attn.q_proj.weight", heads * head, width)
        put(f"{layer}self_attn.k_proj.weight", kv * head, width)
        if kind != "full":
            put(f"{layer}self_attn.v_proj.weight", kv * head, width)
        put(f"{layer}self_attn.o_proj.weight", width, heads * head)
        put(f"{layer}self_attn.q_norm.weight", head)
        put(f"{layer}self_attn.k_norm.weight", head)
        put(f"{layer}mlp.gate_proj.weight", 2 * width, width)
        put(f"{layer}mlp.up_proj.weight", 2 * width, width)
        put(f"{layer}mlp.down_proj.weight", width, 2 * width)
    tensors["vision_model.patch_dense.weight"] = torch.zeros(width, 108, dtype=torch.bfloat16)
    tensors["audio_projector.embedding_projection.weight"] = torch.zeros(width, 640, dtype=torch.bfloat16)
    documents = {
        "tokenizer_json": tokenizer.to_str(),
        "hf_asset__tokenizer_config.json": json.dumps(
            {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
        ),
        "hf_asset__processor_config.json": "{}",
        "hf_asset__generation_config.json": "{}",
        "hf_asset__chat_template.jinja": tiny.CHAT,
    }
    for name, text in documents.items():
        tensors[name] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    config = {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "model_type": "gemma4_unified",
        "gemma_version": GEMMA_VERSION,
        "text_config": gemma4_text_config(vocabulary, width, kinds),
    }
    save_file({**tensors, **projection}, path, {"format": "pt", "gemma_config": json.dumps(config)})


def gemma4_text_config(vocabulary: int, width: int, kinds: Sequence[str]) -> dict[str, object]:
    heads = width // 16
    return {
        "model_type": "gemma4_unified_text",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": len(kinds),
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "num_global_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 32,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 0,
        "sliding_window": 1024,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-06,
        "vocab_size": vocabulary,
        "max_position_embeddings": 262144,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "layer_types": [f"{kind}_attention" for kind in kinds],
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1000000.0,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }
