"""Text to context: Gemma 3's hidden states, then the checkpoint's connectors. One prompt at a time, in both widths.

Writing a better prompt is not done here; the whole conditional-generation model is kept so that it can be.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, Gemma3ForConditionalGeneration
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .errors import InputError

LENGTH = 1024  # tokens of the context, <bos> and padding included
WANTED = "google/gemma-3-12b-it-qat-q4_0-unquantized"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Gemma:
    """The text encoder: model, tokenizer and the folder they came from."""

    model: Gemma3ForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    @cached_property
    def processor(self) -> ProcessorMixin:
        """Text and images to model inputs. Only prompt expansion needs it. InputError where its config is missing."""
        if not any((self.folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
            raise InputError(
                f"{self.folder}: has neither processor_config.json nor preprocessor_config.json, which a prompt from "
                f"an image needs; download the whole {WANTED}."
            )
        return AutoProcessor.from_pretrained(self.folder, local_files_only=True)


@dataclass(frozen=True)
class TextContext:
    """What the transformer attends to for one prompt; it takes no mask, since registers fill what the text leaves.

    video: [1, 1024, Dv]; audio: [1, 1024, Da]; tokens: those of the whole prompt, <bos> included, before any cut.
    """

    video: Tensor
    audio: Tensor
    tokens: int = 0

    @property
    def truncated(self) -> bool:
        """Whether the end of the prompt was left out."""
        return self.tokens > LENGTH


def load_gemma(folder: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Gemma:
    """Gemma 3 from a local transformers folder. dtype None: the folder's, whose weights then stay mapped on a CPU.

    Safetensors only, never the network. InputError: a file missing or damaged, another model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; give the folder that holds the whole {WANTED}.")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: not found; download the whole {WANTED} into that folder.")
    model_type = _read_json(folder / "config.json").get("model_type")
    if model_type != "gemma3":
        raise InputError(f"{folder / 'config.json'}: its model_type is {model_type!r}, not 'gemma3'; use {WANTED}.")
    for path in _weight_files(folder):
        _check_weights(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises no narrower class
        raise InputError(f"{folder / 'tokenizer.json'}: cannot be read ({_line(error)}); download it again.") from error
    try:
        model, report = Gemma3ForConditionalGeneration.from_pretrained(
            folder, dtype=dtype or "auto", local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"{folder}: cannot be loaded as Gemma 3 ({_line(error)}); use {WANTED}.") from error
    missing = set(report["missing_keys"]) - {"lm_head.weight"}  # tied to the embeddings
    if missing:
        raise InputError(
            f"{folder}: its weights lack {len(missing)} tensor(s), for example {min(missing)}; "
            f"download the whole {WANTED}."
        )
    return Gemma(model.eval().requires_grad_(False).to(device), tokenizer, folder)


def tokenize(gemma: Gemma, text: str) -> list[int]:
    """Token ids of the stripped text after one <bos>, without <eos> and uncut."""
    ids = gemma.tokenizer(text.strip(), add_special_tokens=False, verbose=False).input_ids
    return [gemma.tokenizer.bos_token_id, *ids]


@torch.no_grad()
def hidden_states(gemma: Gemma, text: str) -> tuple[Tensor, Tensor]:
    """Every hidden state of the text, embeddings first, the last one after Gemma's norm, left padded.

    Returns states [layers + 1, 1, 1024, D] in the model's dtype, zero at the padding, and mask [1, 1024], 1 at tokens.
    """
    language = gemma.model.model.language_model  # neither the vision tower nor the head's 262k logits
    device = gemma.model.device
    ids = torch.tensor([tokenize(gemma, text)[:LENGTH]], device=device)
    # The padding is masked and later zeroed: running the tokens alone, at their padded positions, gives the same.
    start = LENGTH - ids.shape[1]
    positions = torch.arange(start, LENGTH, device=device).unsqueeze(0)
    output = language(input_ids=ids, position_ids=positions, use_cache=False, output_hidden_states=True)
    first = output.hidden_states[0]
    states = first.new_zeros(len(output.hidden_states), 1, LENGTH, first.shape[-1])
    for layer, state in zip(states, output.hidden_states, strict=True):
        layer[:, start:] = state
    mask = (torch.arange(LENGTH, device=device) >= start).long().unsqueeze(0)
    return states, mask


@torch.no_grad()
def encode_text(
    gemma: Gemma,
    connectors: LTX2TextConnectors,
    text: str,
    trace: Callable[[str, Tensor], None] | None = None,
) -> TextContext:
    """Prompt → context, on the connectors' device and in their dtype. `trace` is shown each named intermediate.

    InputError where Gemma is not the size that the checkpoint's projection was trained on.
    """
    states, mask = hidden_states(gemma, text)
    layers, _, _, width = states.shape
    wanted = connectors.config.text_proj_in_factor, connectors.config.caption_channels
    if (layers, width) != wanted:
        raise InputError(
            f"{gemma.folder}: gives {layers} hidden states of width {width}, but the checkpoint takes "
            f"{wanted[0]} of width {wanted[1]}; use the Gemma it was trained with, {WANTED}."
        )
    features = rearrange(states, "layer batch token width -> batch token width layer")
    features = features.to(connectors.device, connectors.dtype)
    video, audio, _ = connectors(features, mask.to(connectors.device))
    if trace is not None:
        for name, tensor in (("hidden_states", states), ("mask", mask), ("video_enc", video), ("audio_enc", audio)):
            trace(name, tensor)
    return TextContext(video, audio, len(tokenize(gemma, text)))


def _weight_files(folder: Path) -> list[Path]:
    """The files transformers will open: one, or the shards of an index."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder}: has neither model.safetensors nor {INDEX}; download the whole {WANTED}.")
    shards = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{folder / INDEX}: names no weights; download it again from {WANTED}.")
    return [folder / name for name in sorted(set(shards.values()))]


def _check_weights(path: Path) -> None:
    """InputError where the file is missing, or its size is not the one its header gives."""
    if not path.is_file():
        raise InputError(f"{path}: not found; download it from {WANTED}.")
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: truncated or damaged ({_line(error)}); download it again.") from error


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({_line(error)}); download it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object; download it again.")
    return content


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
