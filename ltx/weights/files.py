"""Opens weight files, safetensors or GGUF, and gives their tensors the names of the original single file.

People keep the parts of LTX-2.3 in one file or in several, with or without the key prefixes of the single file. Here
every file uses the names of the single one. Tensors map their file; quantized ones stay as they are stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ..errors import InputError
from ..foreign import check_kind, quantization
from ..models import named_file
from . import formats
from .configs import AUDIO_VAE, TEXT_PROJECTION, TRANSFORMER, VIDEO_VAE, VOCODER
from .gguf import GgufFile
from .mapping import MappedFile
from .quantized import FLOAT8, Stored, float8

PREFIX = re.compile(r"^(model\.)?diffusion_model\.")
BARE = (  # (key prefixes that only this part has, the part's prefix in the single file)
    (("transformer_blocks.", "patchify_proj."), TRANSFORMER[0]),
    (("video_embeddings_connector.", "audio_embeddings_connector."), TRANSFORMER[0]),
    (("decoder.up_blocks.", "encoder.down_blocks."), VIDEO_VAE[0]),
    (("decoder.up.", "encoder.down."), AUDIO_VAE[0]),
    (("bwe_generator.",), VOCODER[0]),
)

SAVED, TRAINED = "text_encoders.", "model."


class SafetensorsFile:
    """An opened safetensors file. Opening it reads only the header."""

    def __init__(self, path: Path, wanted: str) -> None:
        self.path, self._wanted = path, wanted
        self._file = open_safetensors(path, wanted)
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self._all = frozenset(self._file.keys())

    def keys(self) -> list[str]:
        return [key for key in self._file.keys() if key.rpartition(".")[2] not in formats.BESIDE]  # noqa: SIM118

    def shape(self, key: str) -> tuple[int, ...]:
        """Of the layer, without the packing and the padding of a quantized weight."""
        size = tuple(self._file.get_slice(key).get_shape())
        layer, _, last = key.rpartition(".")
        kind = self._kind(layer) if last == "weight" and len(size) == 2 else None
        if kind in formats.PADDED and (bias := f"{layer}.bias") in self._all:
            size = (self._file.get_slice(bias).get_shape()[0], size[1])
        return (size[0], 2 * size[1]) if kind == formats.PACKED else size

    def quantization(self) -> str | None:
        """The name of a quantized format that is not read, None if there is none."""
        dtypes = {key: str(self._file.get_slice(key).get_dtype()) for key in self._all}
        return quantization(sorted(self._all), dtypes, self._notes, formats.READ)

    def get(self, key: str) -> Tensor | Stored:
        tensor = self._file.get_tensor(key)
        layer, _, last = key.rpartition(".")
        if last != "weight":
            return float8(tensor) if tensor.dtype in FLOAT8 else tensor
        try:
            return formats.stored(tensor, self.shape(key), self._beside(layer), self._note(layer))
        except ValueError as error:
            raise InputError(f"{self.path}: {key} has {error}, which is not supported; get {self._wanted}.") from error

    def _kind(self, layer: str) -> str | None:
        """The format of a layer's weight as the header tells it: by its note, or, of formats with blocks, by what lies
        beside it."""
        if said := self._note(layer).get("format"):
            return said
        if f"{layer}.{formats.SECOND_SCALE}" in self._all:
            return formats.PACKED
        scale = f"{layer}.{formats.SCALES[0]}"
        exponents = scale in self._all and self._file.get_slice(scale).get_dtype() in ("U8", "F8_E8M0")
        return formats.EXPONENTS if exponents else None

    def _beside(self, layer: str) -> Callable[[str], Tensor | None]:
        def tensor(name: str) -> Tensor | None:
            key = f"{layer}.{name}"
            return self._file.get_tensor(key) if key in self._all else None

        return tensor

    def _note(self, layer: str) -> formats.Note:
        return self._notes.get(PREFIX.sub("", layer), {})

    @cached_property
    def _notes(self) -> dict[str, dict[str, Any]]:
        """What the file says about its layers, by their names without a prefix, which the header may leave out. Raises
        InputError if it is not JSON."""
        try:
            found = formats.notes(self.metadata, self._all, self._file.get_tensor)
            return {PREFIX.sub("", layer): note for layer, note in found.items()}
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{self.path}: its notes on the weights' formats are not JSON ({error}); download the file again."
            ) from error


class WeightFile:
    """A weight file that is read by the original names; `names` maps these to the file's own keys."""

    def __init__(self, path: Path, wanted: str) -> None:
        """Raises InputError if the file is missing, cut short or of another format."""
        self.path = path
        self._file = GgufFile(path) if path.suffix.lower() == ".gguf" else SafetensorsFile(path, wanted)
        self.metadata = self._file.metadata
        self.names = original_names(self._file.keys())

    @cached_property
    def config(self) -> dict[str, Any]:
        """The parsed `config` entry, {} if there is none. Raises InputError if it is not a JSON object."""
        return self.json("config")

    def json(self, entry: str) -> dict[str, Any]:
        """A parsed entry of the metadata, {} if it is not there. Raises InputError if it is not a JSON object."""
        try:
            content = json.loads(self.metadata.get(entry, "{}"))
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(
                f"{self.path}: its `{entry}` metadata is not JSON ({error}); download the file again."
            ) from error
        if not isinstance(content, dict):
            raise InputError(f"{self.path}: its `{entry}` metadata is not an object; download the file again.")
        return content

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.shape(self.names[name]))

    def check_format(self, wanted: str) -> None:
        """Looks only at the header. Raises InputError if the weights are in a quantized format that is not read."""
        if kind := self._file.quantization():
            raise InputError(
                f"{self.path}: its weights are stored in {kind}, which is not supported; use {wanted}, or a copy in "
                f"bf16, fp8, int8, NVFP4, MXFP8 or GGUF."
            )

    def get(self, name: str) -> Tensor | Stored:
        return self._file.get(self.names[name])


def original_names(keys: Iterable[str]) -> dict[str, str]:
    """Maps the single file's names to these keys. A part without its prefix is recognised by a key that only it has.
    ComfyUI's Save Checkpoint has the text projection below the text encoder's prefix, and what musubi-tuner trains or
    merges whole has the transformer below another one."""
    keys = list(keys)
    below = [key for key in keys if key.startswith(SAVED + TEXT_PROJECTION)]
    if below:
        left = original_names(key for key in keys if not key.startswith(SAVED))
        return {key.removeprefix(SAVED): key for key in below} | left
    if any(key.startswith("diffusion_model.") for key in keys):
        return {f"model.{key}" if key.startswith("diffusion_model.") else key: key for key in keys}
    if any(key.startswith(f"{TRAINED}transformer_blocks.") for key in keys):
        return {TRANSFORMER[0] + key.removeprefix(TRAINED): key for key in keys}
    prefixed = (*TRANSFORMER, *VIDEO_VAE, *AUDIO_VAE, "vocoder.vocoder.")
    if any(key.startswith(prefixed) for key in keys):
        return {key: key for key in keys}
    prefix = next((prefix for marks, prefix in BARE if any(key.startswith(marks) for key in keys)), "")
    return {key if key.startswith(TEXT_PROJECTION) else prefix + key: key for key in keys}


def open_safetensors(path: Path, wanted: str) -> MappedFile:
    """Maps a safetensors file. Raises InputError if it is missing, empty, truncated or of another format, or if the
    system does not map it."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in it, {wanted}.")
    if not path.is_file():
        raise InputError(f"{path}: no such file; get {wanted} and name it here.")
    try:
        return MappedFile(path)
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        check_kind(path, wanted)
        wanted = wanted if (known := named_file(path.name)) is None else known.name
        raise InputError(
            f"{path}: not a complete safetensors file ({error}); it may be cut short: download {wanted} again."
        ) from error
