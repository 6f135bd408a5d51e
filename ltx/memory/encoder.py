"""Measures the text encoder and the expander for the forecast: their bytes, and a language model for a rehearsal, from
file headers."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import Gemma3TextConfig, Gemma3TextModel

from ..diffusion.conditioning import TEXT_LENGTH
from ..errors import InputError
from ..prompt.chat_file import PATCHES, ChatFile
from ..prompt.encoder_file import LANGUAGE, PROJECTOR_4, VISION, folders, rename
from ..prompt.expand import GREEDY_TOKENS, NEW_TOKENS
from ..prompt.gemma4_file import is_gemma4
from ..prompt.text import WALK, encode_texts
from .rehearsal import CPU, META

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes per value of the types that are cast to the compute dtype. Quantized types are not cast."""
NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
DECODED = (f"{LANGUAGE}embed_tokens.weight", f"{PATCHES}input_proj.weight")
"""Weights that a single file may store quantized and that are decoded when they are loaded."""
LAYER = re.compile(r"(?!.*vision).*?layers\.(\d+)\.")


def headers(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor of a safetensors file, or of all files that a folder's index names."""
    path = Path(path)
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values())) if index.is_file() else ()
        files = [path / name for name in names] or sorted(path.glob("*.safetensors"))
        return {name: entry for file in files for name, entry in headers(file).items()}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items() if name != "__metadata__"}


def text_encoder(path: Path, dtype: torch.dtype | None, fp8: bool = False) -> tuple[int, tuple[int, ...], nn.Module]:
    """Returns Gemma's bytes in memory, the bytes of each layer, and its language model for a rehearsal, in which one
    layer stands for all.

    fp8: whether the layers' matrices are rounded to one byte per value. Raises InputError if the headers cannot be
    read.
    """
    return _measured(path, dtype, fp8, _of_language)


def mapped_bytes(path: Path, dtype: torch.dtype | None, fp8: bool = False) -> int:
    """Bytes of a text encoder on a CPU that map their file, because nothing casts or rounds them: those of the compute
    dtype, and those that are quantized already."""
    cast = () if dtype is None else FLOATS.keys() - {NAMES.get(dtype)}
    return sum(
        math.prod(shape) * _item(kind)
        for name, (kind, shape) in _read(path, _of_language).items()
        if kind not in cast
        and not _is_decoded(name, kind)
        and not (fp8 and kind in FLOATS and len(shape) == 2 and LAYER.match(name))
    )


def expander(path: Path, dtype: torch.dtype | None, fp8: bool = False) -> tuple[int, tuple[int, ...], nn.Module]:
    """As `text_encoder`, for the model that writes prompts, which also looks at an image."""
    if not path.is_dir() and is_gemma4(path):
        loaded = ChatFile(path).tensors
        return _measured(path, dtype, fp8, lambda name: rename(name) in loaded)
    return _measured(path, dtype, fp8, lambda name: rename(name).startswith((LANGUAGE, VISION, PROJECTOR_4)))


def _of_language(name: str) -> bool:
    return rename(name).startswith(LANGUAGE)


def _read(path: Path, read: Callable[[str], bool]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The headers of what is loaded."""
    entries = headers(folders(path)[0] if path.is_dir() else path)
    if any(name.endswith(".layer_scalar") for name in entries):
        entries = {name: entry for name, entry in entries.items() if read(name)}
    return entries


def _measured(
    path: Path, dtype: torch.dtype | None, fp8: bool, read: Callable[[str], bool]
) -> tuple[int, tuple[int, ...], nn.Module]:
    """read: whether a tensor of Gemma 4 is loaded; of Gemma 3 all are."""
    try:
        entries = _read(path, read)
        size, blocks = _stored(entries, dtype, fp8)
        return size, blocks, _language(entries, len(blocks), dtype)
    except (OSError, KeyError, ValueError, struct.error) as error:
        raise InputError(f"{path}: its headers cannot be read ({error}); download the text encoder again.") from error


def _stored(
    entries: Mapping[str, tuple[str, tuple[int, ...]]], dtype: torch.dtype | None, fp8: bool
) -> tuple[int, tuple[int, ...]]:
    """Bytes in memory: the total, and those of each layer of the language model."""
    total, layers = 0, {}
    for name, (kind, shape) in entries.items():
        layer = LAYER.match(name)
        if kind in FLOATS:
            item = FLOATS[kind] if dtype is None else dtype.itemsize
            item = 1 if fp8 and layer and len(shape) == 2 else item
        elif _is_decoded(name, kind):
            item = (dtype or torch.bfloat16).itemsize
        else:
            item = _item(kind)
        size = item * math.prod(shape)
        total += size
        if layer:
            layers[int(layer[1])] = layers.get(int(layer[1]), 0) + size
    return total, tuple(layers[number] for number in sorted(layers))


def _is_decoded(name: str, kind: str) -> bool:
    return kind not in FLOATS and rename(name) in DECODED


def _item(kind: str) -> int:
    """Bytes per value of a type of safetensors."""
    return int(re.search(r"\d+", kind)[0]) // 8 if kind != "BOOL" else 1


def _language(entries: Mapping[str, tuple[str, tuple[int, ...]]], layers: int, dtype: torch.dtype | None) -> nn.Module:
    by_layer: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, (_, shape) in entries.items():  # in any order: a file may be sorted by dtype
        if found := LAYER.match(name):
            by_layer.setdefault(found[1], {})[name[found.end() :]] = shape
    # Layers of Gemma 4 differ: those that attend to everything have larger heads, and some share another layer's keys.
    shapes = max(
        (each for each in by_layer.values() if "self_attn.k_proj.weight" in each),
        key=lambda each: each["self_attn.q_norm.weight"],
    )
    head = shapes["self_attn.q_norm.weight"][0]
    config = Gemma3TextConfig(
        vocab_size=64,
        hidden_size=shapes["input_layernorm.weight"][0],
        intermediate_size=max(each["mlp.gate_proj.weight"][0] for each in by_layer.values()),
        num_hidden_layers=1,
        num_attention_heads=shapes["self_attn.q_proj.weight"][0] // head,
        num_key_value_heads=shapes["self_attn.k_proj.weight"][0] // head,
        head_dim=head,
        layer_types=["full_attention"],
    )
    config._attn_implementation = "sdpa"
    stored = {"F32": torch.float32, "F16": torch.float16}.get(
        next(kind for name, (kind, _) in entries.items() if name.endswith("input_layernorm.weight")), torch.bfloat16
    )
    with META:
        language = Gemma3TextModel(config).to(dtype or stored).eval()
    language.layers = nn.ModuleList([language.layers[0]] * layers)
    language.config.num_hidden_layers, language.config.layer_types = layers, config.layer_types * layers
    return language


def write_longest(language: nn.Module) -> tuple[Tensor, ...]:
    """Reads a question and an answer of the greatest length at once, which takes more than one token after the other,
    and holds the keys and values of all layers. The rehearsal runs it."""
    config, length = language.config, TEXT_LENGTH + max(NEW_TOKENS, GREEDY_TOKENS)
    shape = (2, config.num_hidden_layers, length, config.num_key_value_heads * config.head_dim)
    kept = torch.zeros(shape, dtype=language.dtype)
    return kept, language(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False).last_hidden_state


def encode_longest(language: nn.Module, connectors: nn.Module, path: Path) -> None:
    """Encodes as many prompts that fill the whole context as one walk takes. The rehearsal runs it."""

    def tokenizer(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[3] * (TEXT_LENGTH - 1))

    tokenizer.bos_token_id = 2
    model = SimpleNamespace(device=CPU, model=SimpleNamespace(language_model=language))
    gemma = SimpleNamespace(model=model, tokenizer=tokenizer, path=path)
    list(encode_texts(gemma, connectors, [""] * (WALK // TEXT_LENGTH)))
