"""Loads Gemma 3 from a single safetensors file of ComfyUI: bf16, scaled fp8, or NVFP4 mixed with other formats.

The file has no configuration. Sizes are measured on its tensors; values that cannot be measured are those of Gemma 3
12B. Weights keep the precision in which they are stored and map the file. The tokenizer is one of the file's tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..errors import InputError
from ..models import GEMMA_FILES, GEMMA_FILES_PAGE
from ..weights.files import NOTES, SCALES, open_safetensors
from ..weights.modules import DTYPES
from ..weights.nvfp4 import NVFP4Linear, nvfp4
from ..weights.quantized import FLOAT8, QuantizedLinear, Stored, float8, replace
from .sentencepiece import build_tokenizer

WANTED = f"{', '.join(GEMMA_FILES[:-1])} or {GEMMA_FILES[-1]} of {GEMMA_FILES_PAGE}"
TOKENIZER = "spiece_model"
LANGUAGE, VISION, PROJECTOR = "model.language_model.", "model.vision_tower.", "model.multi_modal_projector."
# Maps ComfyUI's names and the names of both generations of transformers to one form, which the model's names match.
RENAMES = (
    (r"^(model\.)?language_model\.(model\.)?", LANGUAGE),
    (r"^model\.(?=embed_tokens\.|layers\.|norm\.)", LANGUAGE),
    (r"^((model\.)?vision_tower\.)(vision_model\.)?|^vision_model\.", VISION),
    (r"^(model\.)?multi_modal_projector\.", PROJECTOR),
)
FORMATS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2, "nvfp4": torch.uint8}
VISION_HEADS = 16
POOL = 4  # width in image patches of one image token of the language model
ROPE = {
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}


class GemmaFile:
    """An opened file. Opening it reads only the header; `model` maps the tensors.

    Raises InputError if the file is not Gemma 3, is cut short, has no tokenizer, or has weights in an unsupported
    format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: safe_open = open_safetensors(path, WANTED)
        stored = set(self._file.keys())
        self.names = {_rename(key): key for key in stored}
        self.tensors = {name for name in self.names if name.startswith((LANGUAGE, VISION, PROJECTOR))}
        for mark in ("embed_tokens", "layers.0.self_attn.q_norm", "layers.0.post_feedforward_layernorm"):
            if f"{LANGUAGE}{mark}.weight" not in self.tensors:
                raise InputError(f"{path}: is not Gemma 3; use {WANTED}.")
        if TOKENIZER not in stored:
            raise InputError(
                f"{path}: holds no tokenizer ({TOKENIZER}); use {WANTED}, or the folder of Gemma's own repository."
            )
        self.sees = {
            f"{VISION}embeddings.patch_embedding.weight",
            f"{PROJECTOR}mm_input_projection_weight",
        } <= self.tensors

    def tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            return build_tokenizer(self._tensor(TOKENIZER).numpy().tobytes())
        except ValueError as error:
            raise InputError(f"{self.path}: its tokenizer is not Gemma 3's ({error}); use {WANTED}.") from error

    def model(
        self, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype | None = None
    ) -> Gemma3ForConditionalGeneration:
        """Builds the model on the CPU. It computes in `dtype`; None means the dtype of the embeddings, or bfloat16. The
        model has a vision tower only if the file has one."""
        with torch.device("meta"):
            model = Gemma3ForConditionalGeneration(self._config(tokenizer))
        if not self.sees:
            model.model.vision_tower = model.model.multi_modal_projector = None
        _make_buffers(model)
        if dtype is None:
            stored = self._file.get_slice(self.names[f"{LANGUAGE}embed_tokens.weight"]).get_dtype()
            dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}.get(stored, torch.bfloat16)
        self._fill(model, dtype)
        model.lm_head.weight = model.get_input_embeddings().weight
        return model

    def _fill(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Gives the model its tensors. Raises InputError if the language model's tensors are not exactly those of Gemma
        3; further tensors of the file are ignored."""
        formats, read = self._formats(), set()
        for name in [name for name in model.state_dict() if not name.startswith("lm_head.")]:
            owner, _, last = name.rpartition(".")
            source = owner.replace(f"{VISION}vision_model.", VISION)  # the name in transformers before version 5
            module = model.get_submodule(owner)
            stored = self._stored(source, last, module.get_parameter(last).shape, formats)
            read.add(f"{source}.{last}")
            if isinstance(stored, Stored) and last == "weight" and type(module) is nn.Linear:
                layer = NVFP4Linear if formats.get(source) == "nvfp4" else QuantizedLinear
                replace(model, owner, layer(stored, module.bias))
            else:
                tensor = stored.decode(dtype) if isinstance(stored, Stored) else stored.to(dtype)
                setattr(module, last, nn.Parameter(tensor, requires_grad=False))
        beside = (*NOTES, "weight_scale_2")
        unknown = {n for n in self.tensors - read if n.startswith(LANGUAGE) and n.rpartition(".")[2] not in beside}
        unknown.discard(f"{LANGUAGE}lm_head.weight")  # tied to the embeddings
        if unknown:
            raise InputError(
                f"{self.path}: has {len(unknown)} tensor(s) that Gemma 3 does not have, for example {min(unknown)}; "
                f"use {WANTED}."
            )

    def _stored(self, layer: str, last: str, shape: torch.Size, formats: Mapping[str, str]) -> Tensor | Stored:
        """Reads a parameter as the file stores it: a plain tensor, or a quantized one with its coding."""
        name = f"{layer}.{last}"
        if name not in self.tensors:
            raise InputError(f"{self.path}: lacks {name}; download {WANTED} again.")
        tensor = self._tensor(name)
        kind = formats.get(layer) if last == "weight" else None
        scales = [n for n in (f"{layer}.{suffix}" for suffix in SCALES) if n in self.tensors and last == "weight"]
        scale = self._tensor(scales[0]) if scales else None
        try:
            if kind == "nvfp4":
                return nvfp4(tensor, scale, self._tensor(f"{layer}.weight_scale_2"), tuple(shape))
            if kind is not None and tensor.dtype == torch.uint8:
                tensor = tensor.view(FORMATS[kind])
            if tensor.shape != shape:
                raise ValueError(f"its shape is {tuple(tensor.shape)}, not {tuple(shape)}")
            if tensor.dtype in FLOAT8:
                return float8(tensor, scale)
            if tensor.dtype not in DTYPES:
                raise ValueError(f"it is stored as {tensor.dtype}")
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{self.path}: {name} cannot be read ({error}); use {WANTED}.") from error
        return tensor

    def _formats(self) -> dict[str, str]:
        """Maps each quantized layer to its format, from the header and from the marker tensor beside each weight."""
        formats: dict[str, Any] = {}
        try:
            header = json.loads((self._file.metadata() or {}).get("_quantization_metadata", "{}"))
            for layer, given in header.get("layers", {}).items():
                formats[_rename(f"{layer}.").removesuffix(".")] = (
                    given.get("format") if isinstance(given, dict) else given
                )
            for name in self.tensors:
                layer, _, last = name.rpartition(".")
                if last == "comfy_quant":
                    formats[layer] = json.loads(self._tensor(name).numpy().tobytes()).get("format")
                elif last == "pre_quant_scale":
                    formats[layer] = last
        except (ValueError, AttributeError) as error:
            raise InputError(f"{self.path}: its notes on the weights' formats are not JSON; use {WANTED}.") from error
        for layer, given in formats.items():
            if given not in FORMATS:
                raise InputError(f"{self.path}: {layer} is stored as {given}, which is not supported; use {WANTED}.")
        return formats

    def _config(self, tokenizer: PreTrainedTokenizerBase) -> Gemma3Config:
        words, width = self._shape(f"{LANGUAGE}embed_tokens.weight")
        head = self._shape(f"{LANGUAGE}layers.0.self_attn.q_norm.weight")[0]
        (norm,) = self._shape(f"{LANGUAGE}norm.weight")
        attention = f"{LANGUAGE}layers.0.self_attn."
        text = {
            "vocab_size": words,
            "hidden_size": width,
            "num_hidden_layers": self._count(f"{LANGUAGE}layers."),
            "num_attention_heads": self._shape(f"{attention}q_proj.weight")[0] // head,
            "num_key_value_heads": self._shape(f"{attention}k_proj.weight")[0] // head,
            "head_dim": head,
            "query_pre_attn_scalar": head,
            "intermediate_size": self._shape(f"{LANGUAGE}layers.0.mlp.gate_proj.weight")[0],
            "max_position_embeddings": 131_072,
            "sliding_window": 1024,
            "sliding_window_pattern": 6,
            "rms_norm_eps": 1e-6,
            "hidden_activation": "gelu_pytorch_tanh",
            **ROPE,
        }
        if norm != width or max(tokenizer.get_vocab().values()) >= words:
            raise InputError(f"{self.path}: its embeddings do not fit its other tensors; download {WANTED} again.")
        vision, tokens = (
            {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1},
            1,
        )
        if self.sees:
            patches = self._shape(f"{VISION}embeddings.position_embedding.weight")[0]
            inner, channels, _, patch = self._shape(f"{VISION}embeddings.patch_embedding.weight")
            side = math.isqrt(patches)
            tokens = (side // POOL) ** 2
            vision = {
                "hidden_size": inner,
                "num_channels": channels,
                "patch_size": patch,
                "image_size": side * patch,
                "num_hidden_layers": self._count(f"{VISION}encoder.layers."),
                "num_attention_heads": VISION_HEADS,
                "intermediate_size": self._shape(f"{VISION}encoder.layers.0.mlp.fc1.weight")[0],
            }
        vision |= {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "vision_use_head": False}
        ids = {
            f"{name}_token_index": tokenizer.convert_tokens_to_ids(getattr(tokenizer, f"{name}_token"))
            for name in ("boi", "eoi", "image")
        }
        return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=tokens, **ids)

    def _count(self, prefix: str) -> int:
        numbers = {name[len(prefix) :].partition(".")[0] for name in self.tensors if name.startswith(prefix)}
        return len(numbers)

    def _shape(self, name: str) -> list[int]:
        """A tensor's stored shape. A packed weight has the right number of rows, padded to a multiple of 16, but fewer
        columns."""
        if name not in self.names:
            raise InputError(f"{self.path}: lacks {name}; download {WANTED} again.")
        return self._file.get_slice(self.names[name]).get_shape()

    def _tensor(self, name: str) -> Tensor:
        return self._file.get_tensor(self.names[name])


def image_processor(model: Gemma3ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> Gemma3Processor:
    """The processor that turns text and images into model inputs, with the settings of Gemma 3's own repository."""
    side = model.config.vision_config.image_size
    images = Gemma3ImageProcessor(
        do_resize=True,
        size={"height": side, "width": side},
        resample=2,  # bilinear
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return Gemma3Processor(images, tokenizer, image_seq_length=model.config.mm_tokens_per_image)


def _make_buffers(model: Gemma3ForConditionalGeneration) -> None:
    """Makes the buffers that no file holds, on the CPU, because the model was built on the meta device."""
    language = model.model.language_model
    for name, module in list(model.named_modules()):
        if "RotaryEmbedding" in type(module).__name__:
            replace(model, name, type(module)(module.config))
    language.embed_tokens.embed_scale = torch.tensor(language.config.hidden_size**0.5)
    if model.model.vision_tower is not None:
        embeddings = getattr(model.model.vision_tower, "vision_model", model.model.vision_tower).embeddings
        embeddings.position_ids = torch.arange(embeddings.num_positions).expand((1, -1))
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if left:
        raise RuntimeError(f"this version of transformers has buffers of Gemma 3 that are not made: {', '.join(left)}")


def _rename(key: str) -> str:
    for pattern, replacement in RENAMES:
        name, count = re.subn(pattern, replacement, key)
        if count:
            return name
    return key
