"""A tiny random-weight Gemma 4 that chats, in the folder of its repository, as E2B-it and E4B-it are published: inputs
for each layer, shared keys, and towers for pictures and sound. transformers itself writes the files."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from . import tiny

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


def write_chat_gemma(folder: Path, *, width: int = 32, layers: int = 4, unified: bool = False) -> Path:
    """unified: as the 12B-it is published, without towers and without inputs for each layer."""
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
        "use_double_wide_mlp": True,
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
            "sliding_window": 64,
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
            "image_processor": {"image_processor_type": f"{name}ImageProcessor", "max_soft_tokens": 70},
            "feature_extractor": {"feature_extractor_type": f"{name}AudioFeatureExtractor"},
            "video_processor": {"video_processor_type": f"{name}VideoProcessor"},
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1), encoding="utf-8")
    return folder
