"""Loads Gemma 4 as LTX-2.5 has it: one file with the tokenizer and the text projection, or a folder of transformers.

Only the language model is built and read: the towers for pictures and sound and the head with its 262k logits are not
needed to encode a prompt. The encoder was trained with LTX-2.5 and is not a chat model: it cannot expand prompts. The
projection is read with the checkpoint's connectors (weights/checkpoint.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .. import versions
from ..errors import InputError
from ..models import MODELS, V25
from ..weights.configs import TEXT_PROJECTION
from ..weights.files import open_safetensors
from .encoder_file import LANGUAGE, EncoderFile, folders, in_one_line, rename

WANTED = MODELS[V25.encoder].name
MARK = f"{LANGUAGE}layers.0.layer_scalar"
"""The name of a tensor that Gemma 4 has and Gemma 3 has not."""
PROJECTION = f"{TEXT_PROJECTION}video_aggregate_embed.weight"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer_json", "hf_asset__tokenizer_config.json"
MODEL_TYPE = "gemma4_unified"
BOS = 2  # the token that a prompt begins with; Gemma 4's tokenizer does not add it by itself
ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}


class Gemma4File(EncoderFile):
    """An opened text encoder of LTX-2.5. Opening it reads only headers; `model` maps the tensors.

    version: what it calls itself; a folder may not say. Raises InputError if it is not Gemma 4, if it is a Gemma 4 that
    was not made for LTX, or if it is cut short or has no tokenizer.
    """

    kind, wanted, parts = "Gemma 4", WANTED, (LANGUAGE,)

    def __init__(self, path: Path) -> None:
        folder = path.is_dir()
        weights, self.beside = folders(path) if folder else (path, path)
        super().__init__(path, sorted(weights.glob("*.safetensors")) if folder else ())
        if MARK not in self.tensors:
            raise InputError(f"{path}: is not Gemma 4; use {WANTED}.")
        settings = weights / "config.json"
        self.config = _json(settings, settings.read_bytes()) if folder else self._metadata()
        self.version: str | None = self.config.get("gemma_version")
        if folder and self.config.get("model_type") != MODEL_TYPE:
            raise InputError(
                f"{path}: is a stock Gemma 4 (model_type {self.config.get('model_type')!r:.40}), and LTX-2.5 needs the "
                f"one that was trained with it: use {WANTED}. This one may be the expander of prompts."
            )
        if not folder and PROJECTION not in self.names:
            raise InputError(
                f"{path}: is a stock Gemma 4 ({MARK.removeprefix(LANGUAGE)} without a text projection), and LTX-2.5 "
                f"needs the one that was trained with it: use {WANTED}. This one may be the expander of prompts."
            )
        if not folder and TOKENIZER not in self.names:
            raise InputError(f"{path}: holds no tokenizer ({TOKENIZER}); use {WANTED}.")
        if folder and not (self.beside / "tokenizer.json").is_file():
            raise InputError(
                f"{self.beside / 'tokenizer.json'}: not found; get the whole folder again, or use {WANTED}."
            )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises InputError if it cannot be read."""
        if self.path.is_dir():
            files = [self.beside / name for name in ("tokenizer.json", "tokenizer_config.json")]
            content, settings = (file.read_bytes() if file.is_file() else None for file in files)
        else:
            content, settings = self._bytes(TOKENIZER), self._bytes(TOKENIZER_CONFIG)
        said = _json(self.path, settings or b"{}")
        special = {
            name: said[name] for name in ("eos_token", "pad_token", "unk_token") if isinstance(said.get(name), str)
        }
        try:
            tokenizer = Tokenizer.from_buffer(content or b"")
        except Exception as error:  # the tokenizers library raises no narrower class
            raise InputError(f"{self.path}: its tokenizer cannot be read ({error}); use {WANTED}.") from error
        bos = tokenizer.id_to_token(self.bos)
        if bos is None:
            raise InputError(
                f"{self.path}: its tokenizer has no token {self.bos} to begin a prompt with; use {WANTED}."
            )
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, **special)

    @property
    def bos(self) -> int:
        return self._text_config().get("bos_token_id") or BOS

    def check(self) -> None:
        """Reads what loading reads, except the weights' values. Raises InputError for what loading would refuse."""
        self.compare(build(self._text_config(), self.path))

    def model(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Builds the model on the CPU, with its language model alone. It computes in `dtype`; None means the dtype of
        the embeddings, or bfloat16."""
        return self.filled(build(self._text_config(), self.path), dtype)

    def blueprint(self) -> nn.Module:
        """The language model without its weights."""
        return build(self._text_config(), self.path).model.language_model

    def _metadata(self) -> dict[str, Any]:
        return _json(self.path, self.metadata.get("gemma_config", "{}").encode())

    def _text_config(self) -> dict[str, Any]:
        """Of the configuration; what it does not say is measured on the tensors or as in Gemma 4 12B."""
        said = self.config.get("text_config") or {}
        if not isinstance(said, dict):
            raise InputError(f"{self.path}: text_config in its configuration is not an object; use {WANTED}.")
        with self.measuring():
            return {**self._measured(), **said}

    def _measured(self) -> dict[str, Any]:
        words, width = self._shape(f"{LANGUAGE}embed_tokens.weight")
        layers = self._count(f"{LANGUAGE}layers.")
        # A layer that attends to everything has no values of its own: its keys serve as both.
        everything = [f"{LANGUAGE}layers.{n}.self_attn.v_proj.weight" not in self.names for n in range(layers)]
        if len(set(everything)) < 2:
            raise InputError(
                f"{self.path}: {'no' if everything[0] else 'every'} layer has values beside its keys (v_proj), and "
                f"LTX-2.5's Gemma 4 has layers of both kinds; use {WANTED}."
            )
        local, wide = (f"{LANGUAGE}layers.{everything.index(kind)}." for kind in (False, True))
        head, wide_head = (self._shape(f"{layer}self_attn.q_norm.weight")[0] for layer in (local, wide))
        return {
            "vocab_size": words,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "layer_types": ["full_attention" if wide else "sliding_attention" for wide in everything],
            "num_attention_heads": self._shape(f"{local}self_attn.q_proj.weight")[0] // head,
            "num_key_value_heads": self._shape(f"{local}self_attn.k_proj.weight")[0] // head,
            "num_global_key_value_heads": self._shape(f"{wide}self_attn.k_proj.weight")[0] // wide_head,
            "head_dim": head,
            "global_head_dim": wide_head,
            "intermediate_size": self._shape(f"{local}mlp.gate_proj.weight")[0],
            "attention_k_eq_v": True,
            "num_kv_shared_layers": 0,
            "sliding_window": 1024,
            "rms_norm_eps": 1e-6,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 262_144,
            "rope_parameters": ROPE,
        }

    def _bytes(self, name: str) -> bytes | None:
        """A file that is stored as a tensor of bytes, some of which are signed; None if it is not there."""
        return self._tensor(name).flatten().view(torch.uint8).numpy().tobytes() if name in self.names else None


def is_gemma4(path: Path) -> bool:
    """Whether a text encoder is a Gemma 4, by its configuration or the names of its tensors; False if neither can be
    read."""
    try:
        if path.is_dir():
            settings = folders(path)[0] / "config.json"
            return str(_json(settings, settings.read_bytes()).get("model_type")).startswith("gemma4")
        file = open_safetensors(path, WANTED)
        return any(rename(key) == MARK for key in file.keys())  # noqa: SIM118 - safe_open is no mapping
    except (InputError, OSError):
        return False


def build(text_config: dict[str, Any], path: Path) -> nn.Module:
    """Gemma 4 on the meta device, with its language model alone. Raises InputError if the configuration describes none,
    or if transformers does not know it."""
    try:
        from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration
    except ImportError as error:
        raise InputError(f"{path}: {versions.problem_with_25() or error}.") from error
    try:
        config = Gemma4UnifiedConfig(text_config=text_config, vision_config=None, audio_config=None)
        with torch.device("meta"):
            model = Gemma4UnifiedForConditionalGeneration(config)
    except Exception as error:  # transformers' checks of a configuration raise classes of no common kind
        raise InputError(
            f"{path}: its configuration describes no Gemma 4 ({in_one_line(error)}); use {WANTED}."
        ) from error
    for tower in ("embed_vision", "embed_audio"):
        if getattr(model.model, tower, None) is not None:
            setattr(model.model, tower, None)
    return model


def _json(path: Path, content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its configuration is not JSON ({error}); use {WANTED}.") from error
    if not isinstance(parsed, dict):
        raise InputError(f"{path}: its configuration is not a JSON object; use {WANTED}.")
    return parsed
