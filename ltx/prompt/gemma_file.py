"""Loads Gemma 3 from a single safetensors file of ComfyUI: bf16, scaled fp8, or NVFP4 mixed with other formats.

The file has no configuration. Sizes are measured on its tensors; values that cannot be measured are those of Gemma 3
12B. Weights keep the precision in which they are stored and map the file. The tokenizer is one of the file's tensors.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..errors import InputError
from ..models import GEMMA_FILES, GEMMA_FILES_PAGE
from .encoder_file import LANGUAGE, PROJECTOR, VISION, EncoderFile
from .sentencepiece import build_tokenizer

WANTED = f"{', '.join(GEMMA_FILES[:-1])} or {GEMMA_FILES[-1]} of {GEMMA_FILES_PAGE}"
TOKENIZER = "spiece_model"
VISION_HEADS = 16
POOL = 4  # width in image patches of one image token of the language model
ROPE = {
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}


class GemmaFile(EncoderFile):
    """An opened file. Opening it reads only the header; `model` maps the tensors.

    Raises InputError if the file is not Gemma 3, is cut short, has no tokenizer, or has weights in an unsupported
    format.
    """

    kind, wanted = "Gemma 3", WANTED

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for mark in ("embed_tokens", "layers.0.self_attn.q_norm", "layers.0.post_feedforward_layernorm"):
            if f"{LANGUAGE}{mark}.weight" not in self.tensors:
                raise InputError(f"{path}: is not Gemma 3; use {WANTED}.")
        if TOKENIZER not in self.names:
            raise InputError(
                f"{path}: holds no tokenizer ({TOKENIZER}); use {WANTED}, or the folder of Gemma's own repository."
            )
        self.sees = {
            f"{VISION}embeddings.patch_embedding.weight",
            f"{PROJECTOR}mm_input_projection_weight",
        } <= self.tensors

    def check(self) -> None:
        """Reads what loading reads, except the weights' values. Raises InputError for what loading would refuse."""
        self.compare(self._empty(None))

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
        return self.filled(self._empty(tokenizer), dtype)

    def _empty(self, tokenizer: PreTrainedTokenizerBase | None) -> Gemma3ForConditionalGeneration:
        """The model on the meta device."""
        with self.measuring():
            config = self._config(tokenizer)
        with torch.device("meta"):
            model = Gemma3ForConditionalGeneration(config)
        if not self.sees:
            model.model.vision_tower = model.model.multi_modal_projector = None
        return model

    def _config(self, tokenizer: PreTrainedTokenizerBase | None) -> Gemma3Config:
        """tokenizer: None leaves out its ids, which the shapes do not depend on."""
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
        if norm != width or (tokenizer is not None and max(tokenizer.get_vocab().values()) >= words):
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
            for name in (("boi", "eoi", "image") if tokenizer is not None else ())
        }
        return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=tokens, **ids)


def is_gemma3(path: Path) -> bool:
    """Whether a single file is a Gemma 3 that can be used."""
    try:
        GemmaFile(path)
    except InputError:
        return False
    return True


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
