"""Loads a Gemma 4 that chats, E2B-it or E4B-it, from a single safetensors file of ComfyUI, in bf16, fp8 or int8.

The file has no configuration and no chat template. Sizes are measured on its tensors; values that cannot be measured
are those of E2B and E4B. The tokenizer is one of the file's tensors. The tower for pictures is loaded if the file has
one, the tower for sound never is.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .. import versions
from ..errors import InputError
from ..models import MODELS
from .encoder_file import LANGUAGE, PROJECTOR_4, VISION, EncoderFile, in_one_line
from .gemma4_file import MARK, PROJECTION, ROPE, TOKENIZER
from .sentencepiece import NAMED

WANTED = f"{MODELS['expander-int8'].name} of {MODELS['expander-int8'].page}, or the folder of {MODELS['expander'].name}"
TABLE = f"{LANGUAGE}embed_tokens_per_layer"
PATCHES = f"{VISION}patch_embedder."
IMAGE = {"boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>"}
AUDIO = {"boa_token": "<|audio>", "eoa_token": "<audio|>", "audio_token": "<|audio|>"}
TURNS = ("<|turn>", "<turn|>")
SHARED = {42: 18}
"""Layers → those of them that use the keys of an earlier layer, where no shape tells it: E4B's."""
CHAT = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
"""The chat template that E2B-it and E4B-it were trained with, without tools and thoughts."""


class ChatFile(EncoderFile):
    """An opened file. Opening it reads only the header; `model` maps the tensors.

    Raises InputError if the file is not E2B or E4B, is LTX-2.5's own text encoder, is cut short or has no tokenizer.
    """

    kind, wanted, parts = "Gemma 4", WANTED, (LANGUAGE, VISION, PROJECTOR_4)
    tables = (TABLE,)  # half of E2B's weights
    plain = (f"{PATCHES}input_proj",)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if PROJECTION in self.names:
            raise InputError(
                f"{path}: is LTX-2.5's text encoder, which can encode prompts but not write them; give as the "
                f"expander {WANTED}."
            )
        if MARK not in self.tensors:
            raise InputError(f"{path}: is not Gemma 4; use {WANTED}.")
        if f"{TABLE}.weight" not in self.tensors:
            raise InputError(
                f"{path}: is a Gemma 4 of another size than E2B and E4B, which is only read from the folder of its "
                f"repository; give that folder, or {WANTED}."
            )
        if TOKENIZER not in self.names:
            raise InputError(f"{path}: holds no tokenizer ({TOKENIZER}); use {WANTED}.")
        self.sees = {f"{PATCHES}input_proj.weight", f"{PROJECTOR_4}embedding_projection.weight"} <= self.tensors
        if not self.sees:
            self.tensors = {name for name in self.tensors if name.startswith(LANGUAGE)}
        with self.measuring():
            self._text = self._measured()
        # What the layers that share keys have in the file is never used, and transformers has no place for it.
        layers = self._text["num_hidden_layers"]
        without = range(layers - self._text["num_kv_shared_layers"], layers)
        unused = tuple(f"{_layer(n)}self_attn.{part}." for n in without for part in ("k_proj", "v_proj", "k_norm"))
        self.tensors = {name for name in self.tensors if not name.startswith(unused)}

    def check(self) -> None:
        """Reads what loading reads, except the weights' values. Raises InputError for what loading would refuse."""
        self.compare(self._empty(None))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises InputError if it cannot be read, or if it is not Gemma 4's."""
        content = self._tensor(TOKENIZER).flatten().view(torch.uint8).numpy().tobytes()  # signed in some files
        try:
            tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:  # the tokenizers library raises no narrower class
            raise InputError(
                f"{self.path}: its tokenizer cannot be read ({in_one_line(error)}); use {WANTED}."
            ) from error
        for token in (*NAMED.values(), *TURNS, *IMAGE.values(), *AUDIO.values()):
            if tokenizer.token_to_id(token) is None:
                raise InputError(f"{self.path}: its tokenizer is not Gemma 4's, it has no {token}; use {WANTED}.")
        if max(tokenizer.get_vocab().values()) >= self._text["vocab_size"]:
            raise InputError(f"{self.path}: its embeddings do not fit its tokenizer; use {WANTED}.")
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            **NAMED,
            extra_special_tokens={**IMAGE, **AUDIO},
            chat_template=CHAT,
            padding_side="left",
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", "attention_mask"],
        )

    def model(self, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype | None = None) -> nn.Module:
        """Builds the model on the CPU. It computes in `dtype`; None means the dtype of the embeddings, or bfloat16. The
        model has a vision tower only if the file has one."""
        return self.filled(self._empty(tokenizer), dtype)

    def _empty(self, tokenizer: PreTrainedTokenizerBase | None) -> nn.Module:
        """The model on the meta device. tokenizer: None leaves out its ids, which the shapes do not depend on."""
        try:
            from transformers import Gemma4Config, Gemma4ForConditionalGeneration
        except ImportError as error:
            raise InputError(f"{self.path}: {versions.problem_with_25() or error}.") from error
        with self.measuring():
            vision = self._vision() if self.sees else None
        named = IMAGE | AUDIO if tokenizer is not None else {}
        ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
        try:
            config = Gemma4Config(text_config=self._text, vision_config=vision, audio_config=None, **ids)
            with torch.device("meta"):
                return Gemma4ForConditionalGeneration(config)
        except Exception as error:  # transformers' checks of a configuration raise classes of no common kind
            raise InputError(
                f"{self.path}: its tensors describe no Gemma 4 ({in_one_line(error)}); use {WANTED}."
            ) from error

    def _measured(self) -> dict[str, Any]:
        """The configuration of the language model."""
        layers = self._count(f"{LANGUAGE}layers.")
        heads = [self._shape(f"{_layer(n)}self_attn.q_norm.weight")[0] for n in range(layers)]
        wide = [self._shape(f"{_layer(n)}mlp.gate_proj.weight")[0] for n in range(layers)]
        head, whole = min(heads), max(heads)  # a layer that attends to everything has larger heads
        if head == whole:
            raise InputError(
                f"{self.path}: all its layers have heads of {head}, and Gemma 4 has layers of two kinds; use {WANTED}."
            )
        attention = f"{_layer(heads.index(head))}self_attn."
        (width,) = self._shape(f"{LANGUAGE}norm.weight")
        return {
            "vocab_size": self._shape(f"{LANGUAGE}embed_tokens.weight")[0],
            "vocab_size_per_layer_input": self._shape(f"{TABLE}.weight")[0],
            "hidden_size": width,
            "hidden_size_per_layer_input": self._shape(f"{LANGUAGE}per_layer_projection_norm.weight")[0],
            "num_hidden_layers": layers,
            "layer_types": ["full_attention" if each == whole else "sliding_attention" for each in heads],
            "num_attention_heads": self._shape(f"{attention}q_proj.weight")[0] // head,
            "num_key_value_heads": self._shape(f"{attention}k_proj.weight")[0] // head,
            "head_dim": head,
            "global_head_dim": whole,
            "intermediate_size": wide[0],
            "use_double_wide_mlp": max(wide) > wide[0],
            "num_kv_shared_layers": self._sharing(wide),
            "attention_k_eq_v": False,
            "sliding_window": 512,
            "rms_norm_eps": 1e-6,
            "hidden_activation": "gelu_pytorch_tanh",
            "final_logit_softcapping": 30.0,
            "max_position_embeddings": 131_072,
            "rope_parameters": ROPE,
        }

    def _sharing(self, wide: list[int]) -> int:
        """How many of the last layers use an earlier layer's keys: those with wider feed-forward layers (E2B), or those
        that the file holds no keys of, or as many as the published model of so many layers has. wide: the width of each
        layer's feed-forward layer."""
        wider = sum(each > wide[0] for each in wide)
        absent = sum(f"{_layer(n)}self_attn.k_proj.weight" not in self.tensors for n in range(len(wide)))
        shared = wider or absent or SHARED.get(len(wide))
        if shared is None:
            raise InputError(
                f"{self.path}: does not tell which of its {len(wide)} layers share their keys; use {WANTED}."
            )
        return shared

    def _vision(self) -> dict[str, Any]:
        """The configuration of the tower for pictures."""
        layer = f"{VISION}encoder.layers.0."
        inner, pixels = self._shape(f"{PATCHES}input_proj.weight")
        head = self._shape(f"{layer}self_attn.q_norm.weight")[0]
        return {
            "hidden_size": inner,
            "patch_size": math.isqrt(pixels // 3),
            "position_embedding_size": self._shape(f"{PATCHES}position_embedding_table")[1],
            "num_hidden_layers": self._count(f"{VISION}encoder.layers."),
            "num_attention_heads": self._shape(f"{layer}self_attn.q_proj.linear.weight")[0] // head,
            "num_key_value_heads": self._shape(f"{layer}self_attn.k_proj.linear.weight")[0] // head,
            "head_dim": head,
            "intermediate_size": self._shape(f"{layer}mlp.gate_proj.linear.weight")[0],
            "use_clipped_linears": f"{layer}self_attn.q_proj.input_max" in self.tensors,
            "rms_norm_eps": 1e-6,
            "hidden_activation": "gelu_pytorch_tanh",
        }


def image_processor(tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
    """The processor that turns text and images into model inputs, with the settings of E2B's own repository."""
    from transformers import (
        Gemma4AudioFeatureExtractor,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )

    return Gemma4Processor(Gemma4AudioFeatureExtractor(), Gemma4ImageProcessor(), tokenizer, Gemma4VideoProcessor())


def _layer(number: int) -> str:
    return f"{LANGUAGE}layers.{number}."
