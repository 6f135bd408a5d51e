"""Reads the parts of a diffusers folder: a folder a part, with its configuration and one or more weight files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..foreign import check_kind
from ..models import VERSIONS
from .files import open_safetensors

WHOLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{WHOLE}.index.json"
SHARD = re.compile(r"diffusion_pytorch_model-\d+-of-\d+\.safetensors")
WANTED_FOLDER = f"a complete diffusers folder of LTX {VERSIONS}"


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """Reads config.json of one part of a diffusers folder. Raises InputError if it is missing or not a JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        check_kind(path, WANTED_FOLDER, json_text=True)
        raise InputError(
            f"{folder}: has no readable config.json of the {part} ({error}); use {WANTED_FOLDER}."
        ) from error
    if not isinstance(config, dict):
        raise InputError(f"{folder}: its config.json is not an object; use {WANTED_FOLDER}.")
    return config


def shards(folder: Path, part: str) -> list[Path]:
    """The weight files of a part. Of several copies, for instance in other precisions, it is the one that diffusers
    takes: the numbered files if there is an index, else the whole file. Raises InputError if there is none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: has no .safetensors file of the {part}; download the whole folder.")
    indexed = (folder / INDEX).is_file()
    usual = [file for file in files if (SHARD.fullmatch(file.name) if indexed else file.name == WHOLE)]
    return usual or files


def read_folder(folder: Path, part: str) -> Iterator[tuple[str, Tensor]]:
    """Yields name and tensor of every weight of a diffusers part, over all shards; the tensors map the files. Of a name
    that two files have, it is the first, as in `folder_tensor`."""
    seen: set[str] = set()
    for shard in shards(folder, part):
        file = open_safetensors(shard, "the whole folder")
        for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            if key not in seen:
                seen.add(key)
                yield key, file.get_tensor(key)


def folder_tensor(folder: Path, name: str, part: str) -> Tensor:
    for shard in shards(folder, part):
        file = open_safetensors(shard, "the whole folder")
        if name in file.keys():  # noqa: SIM118
            return file.get_tensor(name)
    raise KeyError(name)
