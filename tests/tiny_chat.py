"""A tiny random-weight Gemma 4 that chats, in the folder of its repository, as E2B-it and E4B-it are published: inputs
for each layer, shared keys, and towers for pictures and sound. transformers itself writes the files. And the same in
one file, under the names of ComfyUI's modules."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import layouts, tiny

TURNS = ("<|turn>", "<turn|>", "<|channel>", "<channel|>")
IMAGE = {"boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>"}
AUDIO = {"boa_token": "<|audio>", "eoa_token": "<audio|>", "audio_token": "<|audio|>"}
SPECIAL = (*tiny.SPECIAL[:4], *TURNS, *IMAGE.values(), *AUDIO.values(), "<|video|>")
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ m['role'] }}\n"
    "{% if m['role'] == 'system' or m['content'] is string %}{{ m['content'] | trim }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|image|>{% else %}{{ c['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
"""What Gemma 4 was trained with; as in its first versions, the system's words must be plain text."""


COMFYUI = (
    ("model.language_model.", "model."),
    ("model.vision_tower.", "vision_model."),
    ("model.embed_vision.", "multi_modal_projector."),
    ("model.audio_tower.", "audio_model."),
    ("model.embed_audio.", "audio_projector."),
)
"""The names of transformers, and of ComfyUI's modules (comfy/text_encoders/gemma4.py)."""


def write_chat_gemma(
    folder: Path,
    *,
    width: int = 32,
    layers: int = 4,
    unified: bool = False,
    double: bool = True,
    window: int = 64,
    soft_tokens: int = 70,
) -> Path:
    """unified: as the 12B-it is published, without towers and without inputs for each layer. double: whether layers
    that share keys have twice the width between their linear layers, as in E2B. window: of a sliding layer, and
    soft_tokens: of an image at most; published are 512 and 280."""
    import transformers

    name = "Gemma4Unified" if unified else "Gemma4"
    tokenizer = tiny.tokenizer_without_bos(SPECIAL)
    vocabulary = -(-tokenizer.get_vocab_size() // 64) * 64
    ids = {name.replace("token", "token_id"): SPECIAL.index(token) for name, token in {**IMAGE, **AUDIO}.items()}
    ids["eoa_token_index"] = ids.pop("eoa_token_id")
    small = {
        "vocab_size_per_layer_input": vocabulary,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": layers // 2,
        "use_double_wide_mlp": double,
    }
    towers = {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "position_embedding_size": 64,
            "use_clipped_linears": True,
        },
        "audio_config": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "output_proj_dims": 32,
            "subsampling_conv_channels": [8, 4],
        },
    }
    bare = {
        "vision_config": {"mm_embed_dim": width, "mm_posemb_size": 64, "output_proj_dims": width},
        "audio_config": {},
    }
    config = getattr(transformers, f"{name}Config")(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 16,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "global_head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
            "sliding_window": window,
            "final_logit_softcapping": 30.0,
            "initializer_range": 0.2,
            **({} if unified else small),
        },
        **(bare if unified else towers),
        video_token_id=SPECIAL.index("<|video|>"),
        **ids,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, f"{name}ForConditionalGeneration")(config).to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    documents = {
        "tokenizer_config.json": {
            "tokenizer_class": "GemmaTokenizer",
            "processor_class": f"{name}Processor",
            **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")},
            **IMAGE,
            **AUDIO,
            "model_specific_special_tokens": {**IMAGE, **AUDIO},
            "extra_special_tokens": ["<|video|>"],
        },
        "processor_config.json": {
            "processor_class": f"{name}Processor",
            "image_processor": {"image_processor_type": f"{name}ImageProcessor", "max_soft_tokens": soft_tokens},
            "feature_extractor": {"feature_extractor_type": f"{name}AudioFeatureExtractor"},
            "video_processor": {"video_processor_type": f"{name}VideoProcessor"},
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1), encoding="utf-8")
    return folder


def write_chat_file(folder: Path, path: Path, kind: str = "bf16", *, vision: bool = True, shared: bool = True) -> Path:
    """ComfyUI's single file of the model of a folder, and, if its weights are quantized, their meaning in that folder's
    place.

    kind: bf16, fp8 with a scale for each matrix, or one of `layouts.blocks_of`; if it is not bf16, all matrices of the
    language model and of the tower for pictures, embeddings among them, are stored in it. vision: whether it has a
    tower for pictures. shared: whether the layers that share keys have some of their own, which nothing reads, as
    ComfyUI's modules have them. Returns the file.
    """
    source = folder / "model.safetensors"
    tensors, written, meaning = load_file(source), {}, {}
    config = json.loads((folder / "config.json").read_text())["text_config"]
    for name, tensor in tensors.items():
        key = next(theirs + name.removeprefix(ours) for ours, theirs in COMFYUI if name.startswith(ours))
        if key.startswith(("vision_model.", "multi_modal")) and not vision:
            continue
        meaning[name] = written[key] = tensor
        layer = key.removesuffix(".weight")
        if kind == "bf16" or layer == key or tensor.ndim != 2 or key.startswith("audio"):
            continue
        del written[key]
        parts, note, meant = _fp8(tensor.float()) if kind == "fp8" else layouts.blocks_of(tensor.float(), kind)
        meaning[name] = meant
        written |= {f"{layer}.{part}": value for part, value in parts.items()}
        written[f"{layer}.comfy_quant"] = as_bytes(json.dumps(note))
    for number in range(config["num_hidden_layers"] - config["num_kv_shared_layers"], config["num_hidden_layers"]):
        for part in ("k_proj", "v_proj", "k_norm") if shared else ():
            name = f"model.layers.{number}.self_attn.{part}.weight"
            like = written[name.replace(f".{number}.", f".{number % 2}.")]
            written[name] = torch.full(like.shape, 7.0).to(like.dtype)
            if like.element_size() == 1:
                other = f"model.layers.{number % 2}.self_attn.{part}."
                written |= {name.replace("weight", k): written[other + k] for k in ("weight_scale", "comfy_quant")}
    written["tokenizer_json"] = as_bytes((folder / "tokenizer.json").read_text("utf-8"))
    save_file({name: tensor.clone() for name, tensor in written.items()}, path, {"format": "pt"})
    if kind != "bf16":
        save_file(meaning, source, {"format": "pt"})
    return path


def _fp8(weight: Tensor) -> tuple[dict[str, Tensor], dict[str, str], Tensor]:
    """As `layouts.blocks_of`."""
    kind = torch.float8_e4m3fn
    scale = weight.abs().amax() / torch.finfo(kind).max
    data = (weight / scale).to(kind)
    return {"weight": data, "weight_scale": scale}, {"format": "float8_e4m3fn"}, data.float() * scale


def as_bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
