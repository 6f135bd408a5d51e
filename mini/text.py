"""The miniature's text encoder: a Gemma 3 of two narrow layers whose weights are random and fixed by a seed.

Its tokenizer knows the words of the clips' sentences, one token each; anything else is spelled. Nothing here is
trained: embeddings keep words apart, and the checkpoint's projection and connectors learn what they mean. It cannot
write, so prompt expansion makes nonsense with it and is to be switched off.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from ..ltx.prompt.gemma import Gemma, load_gemma
from ..ltx.prompt.text import hidden_states
from ..ltx.request import NEGATIVE_PROMPT
from . import clips, sizes

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
SPECIAL += ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
WORDS = (
    "a an the of on is and in with to background talking face speaks speaking says person bars move music five follow "
    "sound display ball bounces bouncing jumps beat left center right middle side that this video picture shape head "
    "mouth camera moves closer static still"
)
# Words that came later are rows behind the others' embeddings, which stay as transformers were trained on them.
LATER = (
    "large",
    "small",
    "striped",
    "dotted",
    "ginger",
    "blond",
    "hair",
    "cap",
    "top",
    "hat",
    "talks",
    "listens",
    "one",
)
CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<start_of_image>{% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
EDGE, PATCH = 56, 14  # of the vision tower's pictures


def vocabulary(later: bool = True) -> list[str]:
    """The words that are one token each. later: with those that came later, at the end."""
    named = [*clips.COLOURS, *clips.GROUNDS, *clips.SHAPES, *clips.PLACES, *WORDS.split()]
    return list(dict.fromkeys([*named, *re.findall(r"[a-z0-9]+", NEGATIVE_PROMPT), *(LATER if later else ())]))


def tokenizer(later: bool = True) -> Tokenizer:
    """Gemma's scheme, byte-fallback BPE over ▁-joined text, with the merges that spell the words."""
    tokens = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), "▁", *map(chr, range(33, 127))]
    merges: dict[tuple[str, str], None] = {}
    for word in vocabulary(later):
        merges |= {(("▁" + word)[:i], word[i - 1]): None for i in range(1, len(word) + 1)}
    tokens += dict.fromkeys(left + right for left, right in merges)
    numbers = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    result = Tokenizer(models.BPE(numbers, list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    result.normalizer = normalizers.Replace(" ", "▁")
    result.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    result.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    result.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return result


def write_gemma(folder: Path, seed: int = 0) -> Path:
    """The text encoder's folder, as transformers and the pack read it, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    words = tokenizer()
    size, first = (-(-each.get_vocab_size() // 64) * 64 for each in (words, tokenizer(later=False)))
    width = sizes.GEMMA_WIDTH
    config = Gemma3Config(
        text_config={
            "hidden_size": width,
            "num_hidden_layers": sizes.GEMMA_LAYERS,
            "num_attention_heads": width // 16,
            "num_key_value_heads": width // 32,
            "head_dim": 16,
            "intermediate_size": 2 * width,
            "query_pre_attn_scalar": 16,
            "vocab_size": first,
            "max_position_embeddings": 131072,
            "sliding_window": 1024,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": EDGE,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        boi_token_index=6,
        eoi_token_index=7,
        image_token_index=8,
        eos_token_id=[1, 5],
        bos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:  # wide enough that layers say something of their own beside the embeddings
                p.normal_(0, p.shape[-1] ** -0.5 if "embed_tokens" not in name else 1.0 / width**0.5)
        model.resize_token_embeddings(size, mean_resizing=False)
        model.get_input_embeddings().weight[first:].normal_(0, 1.0 / width**0.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    images = {"boi_token": SPECIAL[6], "eoi_token": SPECIAL[7], "image_token": SPECIAL[8]}
    documents = {
        "tokenizer_config.json": {
            "tokenizer_class": "GemmaTokenizerFast",
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            **images,
            "extra_special_tokens": images,
            "model_max_length": 1024,
            "processor_class": "Gemma3Processor",
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Gemma3ImageProcessor",
            "processor_class": "Gemma3Processor",
            "do_resize": True,
            "size": {"height": EDGE, "width": EDGE},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "image_seq_length": 4,
        },
        "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1), encoding="utf-8")
    return folder


class Prompts:
    """Gemma's hidden states of prompts, each computed once: [tokens, width, layers] float32."""

    def __init__(self, folder: Path) -> None:
        self.gemma: Gemma = load_gemma(folder, torch.float32)
        self.known: dict[str, torch.Tensor] = {}

    def __call__(self, text: str) -> torch.Tensor:
        if text not in self.known:
            states, mask = hidden_states(self.gemma, text)
            self.known[text] = states[:, 0, mask[0].bool()].permute(1, 2, 0).contiguous()
        return self.known[text]
