"""Loads Gemma, the text encoder, from the folder of its repository, from a diffusers folder that holds it, or from a
single file.

LTX-2.3 has Gemma 3, the whole conditional-generation model, because it both encodes prompts (text.py) and writes them
(expand.py). LTX-2.5 has a Gemma 4 that encodes them (gemma4_file.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, Gemma3ForConditionalGeneration, PreTrainedModel
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..errors import InputError
from ..foreign import check_kind
from ..models import MODELS, V23, V25
from ..weights.checkpoint import Checkpoint
from ..weights.files import open_safetensors
from ..weights.quantized import quantize
from . import chat_file, gemma4_file, gemma_file
from .encoder_file import folders, in_one_line
from .sentencepiece import CHAT

WANTED = MODELS["gemma"].repository
INDEX = "model.safetensors.index.json"
LAYERS = "model.language_model.layers."
TURN_ENDS = ("<end_of_turn>", "<turn|>")  # of Gemma 3 and of Gemma 4
PREPROCESSORS = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Gemma:
    """The text encoder: its model, its tokenizer, and the folder or file that they were loaded from.

    writes: whether it is a chat model, which can expand a prompt.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: Path
    writes: bool = True

    @property
    def sees(self) -> bool:
        """Whether the model can look at an image; a single file may lack the vision tower."""
        return any(getattr(self.model.model, part, None) is not None for part in ("vision_tower", "embed_vision"))

    @property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        tokenizer = self.tokenizer
        turns = (tokenizer.convert_tokens_to_ids(token) for token in TURN_ENDS)
        return [tokenizer.eos_token_id, *(token for token in turns if token not in (None, tokenizer.unk_token_id))]

    @cached_property
    def processor(self) -> ProcessorMixin:
        """The processor that turns text and images into model inputs; only prompt expansion needs it.

        Raises InputError if its configuration is missing.
        """
        if not self.path.is_dir() and self.model.config.model_type.startswith("gemma4"):
            return chat_file.image_processor(self.tokenizer)
        if not self.path.is_dir() or folders(self.path)[1] != self.path:
            return gemma_file.image_processor(self.model, self.tokenizer)
        if not any((self.path / name).is_file() for name in PREPROCESSORS):
            raise InputError(
                f"{self.path}: has neither {' nor '.join(PREPROCESSORS)}, and a prompt from an image needs one; "
                f"download its whole repository."
            )
        return AutoProcessor.from_pretrained(self.path, local_files_only=True)


def check_gemma(path: Path, checkpoint: Checkpoint | None = None) -> None:
    """Checks names and headers and reads no weights.

    checkpoint: what the text encoder is to be used with. Raises InputError if no text encoder can be loaded from
    `path`, or if the checkpoint was trained with another one.
    """
    if not path.exists():
        raise InputError(
            f"{path}: not found; give the folder that holds the whole {WANTED}, or {gemma_file.WANTED}, for LTX-2.3; "
            f"{gemma4_file.WANTED} for LTX-2.5."
        )
    new = checkpoint is not None and checkpoint.generation is not V23
    if not path.is_dir() and path.suffix.lower() == ".gguf":
        wanted = f"{gemma_file.WANTED}, for LTX-2.3; {gemma4_file.WANTED} for LTX-2.5"
        wanted = wanted if checkpoint is None else (gemma4_file if new else gemma_file).WANTED
        raise InputError(f"{path}: a GGUF text encoder is not supported; use {wanted}.")
    if gemma4_file.is_gemma4(path):
        _check_gemma4(path, checkpoint)
        return
    if path.is_dir():
        _check_folder(path)
    elif new and not gemma_file.is_gemma3(path):
        gemma4_file.Gemma4File(path)  # says what is wrong with it
    else:
        gemma_file.GemmaFile(path).check()
    if new:
        raise _mismatch(path, "Gemma 3", checkpoint)


def _check_gemma4(path: Path, checkpoint: Checkpoint | None) -> None:
    opened = gemma4_file.Gemma4File(path)
    opened.check()
    if checkpoint is None:
        return
    if checkpoint.generation is not V25:
        raise _mismatch(path, "Gemma 4", checkpoint)
    theirs = checkpoint.gemma_version
    if theirs and opened.version and theirs != opened.version:
        raise InputError(
            f"{path}: is {opened.version}, and {checkpoint.path} was trained with {theirs}; use {gemma4_file.WANTED}."
        )
    if path.is_dir() and not opened.version and checkpoint.path not in (path, path.parent):
        raise InputError(
            f"{path}: does not say that it was trained with LTX-2.5, which a stock Gemma 4 was not; use "
            f"{gemma4_file.WANTED}, or the text encoder of the checkpoint's own diffusers folder."
        )


def _mismatch(path: Path, kind: str, checkpoint: Checkpoint) -> InputError:
    ours, wanted = checkpoint.generation, WANTED if checkpoint.generation is V23 else gemma4_file.WANTED
    theirs = V25 if ours is V23 else V23
    return InputError(
        f"{path}: is {kind}, which {theirs.name} was trained with, and {checkpoint.path} is {ours.name}; use {wanted}."
    )


def _check_folder(path: Path) -> None:
    path, tokenizer = folders(path)
    for file in (path / "config.json", tokenizer / "tokenizer.json", tokenizer / "tokenizer_config.json"):
        if not file.is_file():
            raise InputError(f"{file}: not found; download the whole {WANTED} into that folder.")
        check_kind(file, f"the whole {WANTED} again", json_text=True)
    config = read_json(path / "config.json")
    model_type = config.get("model_type")
    if model_type != "gemma3":
        raise InputError(f"{path / 'config.json'}: its model_type is {model_type!r}, not 'gemma3'; use {WANTED}.")
    if quantized := config.get("quantization_config"):
        kind = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise InputError(
            f"{path / 'config.json'}: its weights are quantized by {kind!r:.40}, which is not supported; use {WANTED} "
            f"or {gemma_file.WANTED}."
        )
    check_config(path, "Gemma 3", WANTED)
    for weights in weight_files(path, WANTED):
        open_safetensors(weights, WANTED)


def check_config(folder: Path, kind: str, wanted: str) -> None:
    """Raises InputError if transformers cannot use the folder's configuration. kind, wanted: as for `read_model`."""
    try:
        AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # its checks raise classes of no common kind
        raise InputError(
            f"{folder / 'config.json'}: describes no {kind} ({in_one_line(error)}); use {wanted}."
        ) from error


def load_gemma(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    fp8: torch.device | str | None = None,
) -> Gemma:
    """Loads Gemma from a transformers folder or from a single file that holds the tokenizer; never from the network.

    dtype: the compute dtype; with None the stored dtype is kept, and on a CPU the weights map the file. fp8: a device
    that rounds the language model's linear layers to float8, except those that are quantized already. They take half
    the memory and compute in `dtype`. Raises InputError if a file is missing or damaged, or if it is another model.
    """
    path = Path(path)
    check_gemma(path)
    first = dtype if fp8 is None else None  # weights that are rounded to float8 need no earlier copy in `dtype`
    if gemma4_file.is_gemma4(path):
        file = gemma4_file.Gemma4File(path)
        gemma = Gemma(file.model(first), file.tokenizer(), path, writes=False)
    elif path.is_dir():
        gemma = _from_folder(path, first)
    else:
        opened = gemma_file.GemmaFile(path)
        tokenizer = opened.tokenizer()
        gemma = Gemma(opened.model(tokenizer, first), tokenizer, path)
    return finished(gemma, dtype, device, fp8)


def finished(
    gemma: Gemma, dtype: torch.dtype | None, device: torch.device | str, fp8: torch.device | str | None
) -> Gemma:
    """A model that was just loaded, rounded to float8 if `fp8` names a device for that, on `device`."""
    if fp8 is not None:
        quantize(gemma.model, on=fp8, prefix=LAYERS)
        _cast(gemma.model, dtype)
    gemma.model.eval().requires_grad_(False).to(device)
    return gemma


def _cast(model: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Casts floating-point parameters to `dtype`. The rotary frequencies are not parameters and stay in float32."""
    for parameter in model.parameters():
        if dtype is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    language = model.model.language_model
    # transformers may have rounded the scale to the dtype of the file.
    language.embed_tokens.embed_scale = torch.tensor(language.config.hidden_size**0.5)
    model.lm_head.weight = language.embed_tokens.weight


def _from_folder(folder: Path, dtype: torch.dtype | None) -> Gemma:
    weights, beside = folders(folder)
    tokenizer = read_tokenizer(beside)
    if tokenizer.chat_template is None:  # some copies of the folder lack it; there is one format that Gemma 3 knows
        tokenizer.chat_template = CHAT
    return Gemma(read_model(Gemma3ForConditionalGeneration, weights, "Gemma 3", WANTED, dtype), tokenizer, folder)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises InputError if the folder's tokenizer cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises no narrower class
        raise InputError(f"{folder / 'tokenizer.json'}: cannot be read ({_line(error)}); download it again.") from error


def read_model(
    model: type[PreTrainedModel], folder: Path, kind: str, wanted: str, dtype: torch.dtype | None, **options: Any
) -> PreTrainedModel:
    """Loads a model of transformers from its folder, onto the CPU. kind, wanted: the names of the model and of its
    repository in error messages. Raises InputError if a tensor is missing or the folder holds another model."""
    try:
        loaded, report = model.from_pretrained(
            folder,
            dtype=dtype or "auto",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, ImportError, LookupError, TypeError, ArithmeticError) as error:
        raise InputError(f"{folder}: cannot be loaded as {kind} ({_line(error)}); use {wanted}.") from error
    missing = set(report["missing_keys"]) - {"lm_head.weight"}  # tied to the embeddings
    if missing:
        raise InputError(
            f"{folder}: its weights lack {len(missing)} tensor(s), for example {min(missing)}; "
            f"download the whole {wanted}."
        )
    return loaded


def weight_files(folder: Path, wanted: str) -> list[Path]:
    """The weight files that transformers will open: one file, or the shards of an index."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder}: has neither model.safetensors nor {INDEX}; download the whole {wanted}.")
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{folder / INDEX}: names no weights; download it again from {wanted}.")
    return [folder / name for name in sorted(set(shards.values()))]


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({_line(error)}); download it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object; download it again.")
    return content


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
