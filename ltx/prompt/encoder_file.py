"""What the text encoders' files share: a language model under the names of transformers, in one or more safetensors
files, whose weights may be stored in bf16 or in any of ComfyUI's formats (weights/formats.py).

Weights keep the precision in which they are stored and map their file. Which model it is, its configuration and its
tokenizer are the subclasses' business: gemma_file.py and gemma4_file.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models import ENCODER
from ..weights import formats
from ..weights.files import open_safetensors
from ..weights.mapping import MappedFile
from ..weights.modules import DTYPES
from ..weights.quantized import QuantizedEmbedding, Stored, layer_of, put

LANGUAGE, VISION, PROJECTOR = "model.language_model.", "model.vision_tower.", "model.multi_modal_projector."
PROJECTOR_4 = "model.embed_vision."  # Gemma 4's
# Maps ComfyUI's names and the names of both generations of transformers to one form, which the model's names match.
RENAMES = (
    (r"^(model\.)?language_model\.(model\.)?", LANGUAGE),
    (r"^model\.(?=embed_tokens(_per_layer)?\.|per_layer_|layers\.|norm\.)", LANGUAGE),
    (r"^((model\.)?vision_tower\.)(vision_model\.)?|^vision_model\.", VISION),
    (r"^(model\.)?multi_modal_projector\.(?=embedding_projection\.)", PROJECTOR_4),
    (r"^(model\.)?multi_modal_projector\.", PROJECTOR),
)
SAID = 200  # characters of another library's message that a sentence repeats
FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class EncoderFile:
    """An opened text encoder. Opening it reads only headers.

    kind: the model's name in error messages. wanted: the files that they name. parts: the prefixes of what is read.
    tables: embeddings that stay as the file stores them. plain: linear layers that do not, because the model's code
    reads its dtype from their weights.
    """

    kind: ClassVar[str]
    wanted: ClassVar[str]
    parts: ClassVar[tuple[str, ...]] = (LANGUAGE, VISION, PROJECTOR)
    tables: ClassVar[tuple[str, ...]] = ()
    plain: ClassVar[tuple[str, ...]] = ()

    def __init__(self, path: Path, files: Sequence[Path] = ()) -> None:
        """files: the files to open if `path` is a folder. Raises InputError if one is missing or cut short."""
        self.path = path
        opened = [open_safetensors(file, self.wanted) for file in files or (path,)]
        self.metadata: dict[str, str] = opened[0].metadata() or {}
        self.names: dict[str, tuple[MappedFile, str]] = {
            rename(key): (file, key)
            for file in opened
            for key in file.keys()  # noqa: SIM118 - MappedFile is no mapping
        }
        self.tensors = {name for name in self.names if name.startswith(self.parts)}

    def stored_dtype(self) -> torch.dtype:
        """The dtype of the embeddings, or bfloat16 if they are quantized."""
        file, key = self.names[f"{LANGUAGE}embed_tokens.weight"]
        return FLOATS.get(file.get_slice(key).get_dtype(), torch.bfloat16)

    def compare(self, model: nn.Module) -> None:
        """Reads what `fill` reads, except the weights' values. Raises InputError for what it would refuse."""
        notes, read = self._notes(), set()
        for _, last, source, module in _wanted(model):
            self._stored(source, last, getattr(module, last).shape, notes)
            read.add(f"{source}.{last}")
        self._check_known(read)

    def filled(self, model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
        """The same model, from the meta device, with its buffers and tensors; the embeddings are its head, too. It
        computes in `dtype`; None means the dtype of the embeddings, or bfloat16. Raises InputError as `fill`."""
        make_buffers(model)
        self.fill(model, dtype or self.stored_dtype())
        model.lm_head.weight = model.get_input_embeddings().weight
        return model

    def fill(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Gives the model its tensors. Raises InputError if the language model's tensors are not exactly those of the
        model; further tensors of the file are ignored."""
        notes, read = self._notes(), set()
        for owner, last, source, module in _wanted(model):
            stored = self._stored(source, last, getattr(module, last).shape, notes)
            read.add(f"{source}.{last}")
            if layer := self._kept(owner, last, module, stored, dtype):
                put(model, owner, layer)
                continue
            tensor = stored.decode(dtype) if isinstance(stored, Stored) else stored.to(dtype)
            if last in module._buffers:
                module._buffers[last] = tensor
            else:
                setattr(module, last, nn.Parameter(tensor, requires_grad=False))
        self._check_known(read)

    def _kept(
        self, owner: str, last: str, module: nn.Module, stored: Tensor | Stored, dtype: torch.dtype
    ) -> nn.Module | None:
        """The layer over a weight that stays as the file stores it; None if it is not quantized or is decoded."""
        if not isinstance(stored, Stored) or last != "weight":
            return None
        if type(module) is nn.Linear and owner not in self.plain:
            return layer_of(stored, module.bias)
        if owner in self.tables and QuantizedEmbedding.fits(stored):
            return QuantizedEmbedding(stored, float(module.embed_scale), dtype)
        return None

    def _check_known(self, read: set[str]) -> None:
        known = formats.BESIDE
        unknown = {n for n in self.tensors - read if n.startswith(LANGUAGE) and n.rpartition(".")[2] not in known}
        unknown.discard(f"{LANGUAGE}lm_head.weight")  # tied to the embeddings
        if unknown:
            raise InputError(
                f"{self.path}: has {len(unknown)} tensor(s) that {self.kind} does not have, for example "
                f"{min(unknown)}; use {self.wanted}."
            )

    def _stored(self, layer: str, last: str, shape: torch.Size, notes: Mapping[str, formats.Note]) -> Tensor | Stored:
        """Reads a parameter as the file stores it: a plain tensor, or a quantized one with its coding."""
        name = f"{layer}.{last}"
        if name not in self.tensors:
            raise InputError(f"{self.path}: lacks {name}; download {self.wanted} again.")

        def beside(other: str) -> Tensor | None:
            key = f"{layer}.{other}"
            return self._tensor(key) if key in self.tensors and last == "weight" else None

        try:
            note = notes.get(layer, {}) if last == "weight" else {}
            stored = formats.stored(self._tensor(name), tuple(shape), beside, note)
            if stored.shape != shape:
                raise ValueError(f"its shape is {tuple(stored.shape)}, not {tuple(shape)}")
            if isinstance(stored, Tensor) and stored.dtype not in DTYPES:
                raise ValueError(f"it is stored as {stored.dtype}")
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{self.path}: {name} cannot be read ({error}); use {self.wanted}.") from error
        return stored

    def _notes(self) -> dict[str, dict[str, Any]]:
        """What the file says about each quantized layer, in the header and beside its weight."""
        try:
            found = formats.notes(self.metadata, self.tensors, self._tensor)
        except (ValueError, AttributeError) as error:
            raise InputError(
                f"{self.path}: its notes on the weights' formats are not JSON; use {self.wanted}."
            ) from error
        found = {rename(f"{layer}.").removesuffix("."): note for layer, note in found.items()}
        for name in self.tensors:
            if name.endswith(".pre_quant_scale"):
                found[name.rpartition(".")[0]] = {"format": "pre_quant_scale"}
        for layer, note in found.items():
            if note.get("format") not in formats.READ:
                raise InputError(
                    f"{self.path}: {layer} is stored as {note.get('format')}, which is not supported; use "
                    f"{self.wanted}."
                )
        return found

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Where sizes are read from the tensors' shapes. Raises InputError if these are not a Gemma's."""
        try:
            yield
        except InputError:
            raise
        except (ValueError, LookupError, ArithmeticError) as error:
            raise InputError(
                f"{self.path}: its tensors do not have {self.kind}'s shapes; use {self.wanted}."
            ) from error

    def _count(self, prefix: str) -> int:
        numbers = {name[len(prefix) :].partition(".")[0] for name in self.tensors if name.startswith(prefix)}
        return len(numbers)

    def _shape(self, name: str) -> list[int]:
        """A tensor's stored shape. A packed weight has the right number of rows, padded to a multiple of 16, but fewer
        columns."""
        if name not in self.names:
            raise InputError(f"{self.path}: lacks {name}; download {self.wanted} again.")
        file, key = self.names[name]
        return file.get_slice(key).get_shape()

    def _tensor(self, name: str) -> Tensor:
        file, key = self.names[name]
        return file.get_tensor(key)


def _wanted(model: nn.Module) -> Iterator[tuple[str, str, str, nn.Module]]:
    """Every tensor that the file must hold: its layer's name, its own name, the layer's name in the file, and the
    layer."""
    for name in [name for name in model.state_dict() if not name.startswith("lm_head.")]:
        owner, _, last = name.rpartition(".")
        source = owner.replace(f"{VISION}vision_model.", VISION)  # the name in transformers before version 5
        yield owner, last, source, model.get_submodule(owner)


def folders(path: Path) -> tuple[Path, Path]:
    """The folder of the weights and the folder of the tokenizer: one folder, or two of a diffusers folder, which may be
    named itself or by its text_encoder."""
    if (path / ENCODER).is_file():
        return path / "text_encoder", path / "tokenizer"
    beside = path.parent / "tokenizer"
    alone = not (path / "tokenizer.json").is_file() and (beside / "tokenizer.json").is_file()
    return path, beside if alone else path


def make_buffers(model: nn.Module) -> None:
    """Makes the buffers that no file holds, on the CPU, because the model was built on the meta device."""
    language = model.model.language_model
    for name, module in list(model.named_modules()):
        if "RotaryEmbedding" in type(module).__name__:
            put(model, name, type(module)(module.config))
    language.embed_tokens.embed_scale = torch.tensor(language.config.hidden_size**0.5)
    per_layer = getattr(language, "embed_tokens_per_layer", None)
    if per_layer is not None:
        per_layer.embed_scale = torch.tensor(language.config.hidden_size_per_layer_input**0.5)
    tower = getattr(model.model, "vision_tower", None)
    embeddings = getattr(getattr(tower, "vision_model", tower), "embeddings", None)
    if embeddings is not None:
        embeddings.position_ids = torch.arange(embeddings.num_positions).expand((1, -1))
    left = {name for name, buffer in model.named_buffers() if buffer.is_meta} - model.state_dict().keys()
    if left:
        raise RuntimeError(f"this version of transformers has buffers of Gemma that are not made: {', '.join(left)}")


def in_one_line(error: Exception) -> str:
    """What transformers says about a configuration, for a sentence: it may have several lines and list every choice."""
    return " ".join(str(error).split())[:SAID] or type(error).__name__


def rename(key: str) -> str:
    for pattern, replacement in RENAMES:
        name, count = re.subn(pattern, replacement, key)
        if count:
            return name
    return key
