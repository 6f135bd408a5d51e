"""Loads an expander: an instruct model that writes prompts for LTX-2.5, whose own text encoder cannot.

It is a stock Gemma 4: the folder of its repository, E2B-it or larger, or ComfyUI's single file of E2B-it or E4B-it
(chat_file.py). Or it is a Gemma 3 in any form in which it serves as LTX-2.3's text encoder (gemma.py). Gemma 4's tower
for sound is not loaded.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from .. import versions
from ..errors import InputError
from ..foreign import check_kind
from ..models import MODELS
from ..weights.files import open_safetensors
from . import chat_file, gemma4_file
from .gemma import (
    Gemma,
    check_config,
    check_gemma,
    finished,
    load_gemma,
    read_json,
    read_model,
    read_tokenizer,
    weight_files,
)

GEMMA_4, GEMMA_4_FILE = MODELS["expander"].repository, MODELS["expander-int8"].name
WANTED = f"{GEMMA_4_FILE}, the folder of {GEMMA_4}, or a Gemma 3 12B-it"
CLASSES = {
    "gemma4": "Gemma4ForConditionalGeneration",
    "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
}
"""model_type → the class in transformers."""
TEMPLATES = ("chat_template.jinja", "chat_template.json")


def check_expander(path: Path) -> None:
    """Checks names and headers and reads no weights. Raises InputError if `path` holds no model that writes prompts."""
    if not path.exists():
        raise InputError(f"{path}: not found; give as the expander {WANTED}.")
    if not gemma4_file.is_gemma4(path):
        check_gemma(path)
        return
    if not path.is_dir():
        chat_file.ChatFile(path).check()
        return
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (path / name).is_file():
            raise InputError(f"{path / name}: not found; give as the expander {WANTED}.")
        check_kind(path / name, f"the whole {GEMMA_4} again", json_text=True)
    config, tokenizer = read_json(path / "config.json"), read_json(path / "tokenizer_config.json")
    if config.get("gemma_version") or not (
        tokenizer.get("chat_template") or any((path / name).is_file() for name in TEMPLATES)
    ):
        raise InputError(
            f"{path}: is a Gemma 4 without a chat template, which cannot write prompts; give as the expander {WANTED}."
        )
    _model_class(path)
    check_config(path, "Gemma 4", WANTED)
    for weights in weight_files(path, GEMMA_4):
        open_safetensors(weights, GEMMA_4)


def load_expander(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    fp8: torch.device | str | None = None,
) -> Gemma:
    """Loads the model that writes prompts; never from the network. The arguments are those of `load_gemma`.

    Raises InputError if a file is missing or damaged, or if it is a model that cannot write prompts.
    """
    path = Path(path)
    check_expander(path)
    if not gemma4_file.is_gemma4(path):
        return load_gemma(path, dtype, device, fp8=fp8)
    first = dtype if fp8 is None else None
    if not path.is_dir():
        file = chat_file.ChatFile(path)
        tokenizer = file.tokenizer()
        return finished(Gemma(file.model(tokenizer, first), tokenizer, path), dtype, device, fp8)
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    config.audio_config = None  # transformers then builds no tower for sound and reads none of its weights
    model = read_model(_model_class(path), path, "Gemma 4", GEMMA_4, first, config=config)
    return finished(Gemma(model, read_tokenizer(path), path), dtype, device, fp8)


def _model_class(path: Path) -> type[PreTrainedModel]:
    """The class in transformers. Raises InputError if this version of transformers has none."""
    import transformers

    kind = read_json(path / "config.json").get("model_type")
    found = getattr(transformers, CLASSES.get(kind, ""), None)
    if found is None:
        why = versions.problem_with_25() or f"its model_type is {kind!r:.40}"
        raise InputError(f"{path}: cannot be used ({why}); give as the expander {WANTED}.")
    return found
