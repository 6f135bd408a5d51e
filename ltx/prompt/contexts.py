"""Caches for Gemma's results, so that the same files encode or expand a prompt only once and need not be loaded again.

`ContextCache` keeps results on disk between runs, `Recent` keeps them in memory within a graph. Neither knows how a
result is computed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..diffusion.conditioning import TEXT_LENGTH, TextContext
from . import expand
from .encoder_file import folders
from .expand import Expansion

FORMAT = 1  # raise it when the same files and the same text give other numbers than before
DRAWN = (expand.NEW_TOKENS, expand.TEMPERATURE, expand.TOP_K, expand.TOP_P)
GREEDY = (expand.GREEDY_TOKENS, expand.NO_REPEAT)
WRITER = (expand.SYSTEM, expand.SYSTEM_IMAGE, *DRAWN, *GREEDY)
"""Settings that an expansion depends on, in addition to the files, the prompt, the seed and the image."""
LIMIT = 1 << 30  # bytes on disk, enough for about 80 contexts of the published checkpoint in bfloat16
KEPT = 16  # results in memory; a context takes 13 MB in bfloat16
PARTS = (".safetensors", ".gguf", ".json", ".model", ".jinja")
"""Suffixes of the files that make a model: weights, configurations, tokenizers and chat templates."""


def fingerprint(*paths: Path, device: torch.device | str = "cpu", dtype: object = None) -> str:
    """A hash of everything that a context depends on except its text: the files (names, sizes, times) and how it is
    computed.

    For a folder, the files of PARTS in it are hashed, at any depth, also in folders that are linked into it. A text
    encoder's folder may have its tokenizer in a folder beside it, which is hashed as well.
    """
    described: list[object] = [FORMAT, torch.device(device).type, str(dtype)]
    for path in paths:
        for file in _parts(path):
            status = file.stat()
            described.append((file.relative_to(path.parent).as_posix(), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _parts(path: Path) -> list[Path]:
    """The file, or the files of PARTS in the folder and in that of its tokenizer."""
    if not path.is_dir():
        return [path]
    beside = folders(path)[1]
    places = [path] if beside.is_relative_to(path) else [path, beside]
    return [file for place in places for file in sorted(_files(place)) if file.suffix.lower() in PARTS]


def _files(folder: Path) -> Iterator[Path]:
    """All files in a folder, and in those that are linked into it. A link to what was seen already is not followed."""
    seen: set[str] = set()
    for place, below, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            below.clear()
            continue
        seen.add(os.path.realpath(place))
        below.sort()  # of two links to one folder it is always the same that is followed
        yield from (Path(place, name) for name in names)


class ContextCache:
    """Contexts and expansions in a folder, one file each. When the folder is full, the least recently used are deleted.

    A file that cannot be read or written is ignored, so the cache never stops a run. Several runs may share a folder.
    `identity` is always a `fingerprint` of the files that compute the result.
    """

    def __init__(self, folder: str | Path, limit: int = LIMIT) -> None:
        self.folder, self.limit = Path(folder), limit

    def context(self, text: str, identity: str) -> TextContext | None:
        """The context of a text as it is kept, on the CPU; None if it is not there, so that Gemma has to be loaded."""
        data = self._read(self._path("safetensors", identity, text.strip()))
        return None if data is None else _parse_context(data)

    def keep(self, text: str, identity: str, context: TextContext) -> None:
        """Keeps the context of a text."""
        tensors = {"video": context.video, "audio": context.audio, "tokens": torch.tensor(context.tokens)}
        stored = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        self._write(self._path("safetensors", identity, text.strip()), stored)

    def expansion(
        self, prompt: str, seed: int, image: Tensor | None, identity: str, write: Callable[[], Expansion]
    ) -> Expansion:
        """Returns the cached expansion of a prompt, or else the result of `write`. A failed expansion is not kept."""
        path = self._path("json", identity, prompt, seed % 2**64, image_digest(image), WRITER)
        data = self._read(path)
        expansion = None if data is None else _parse_expansion(data)
        if expansion is None:
            expansion = write()
            if expansion.expanded:
                self._write(path, json.dumps({"prompt": expansion.prompt, "reason": expansion.reason}).encode())
        return expansion

    def _path(self, kind: str, *key: object) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.{kind}"

    def _read(self, path: Path) -> bytes | None:
        try:
            data = path.read_bytes()
        except OSError:
            return None
        _try(lambda: os.utime(path))  # the time says when the file was last used
        return data

    def _write(self, path: Path, data: bytes) -> None:
        if len(data) > self.limit:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(data))
            handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                os.replace(temporary, path)
            except BaseException:
                _try(lambda: os.unlink(temporary))
                raise
        except OSError as error:
            logging.warning("%s: the encoded prompt cannot be kept (%s).", self.folder, error)

    def _make_room(self, size: int) -> None:
        found = []
        for path in (*self.folder.glob("*.safetensors"), *self.folder.glob("*.json")):
            status = _try(path.stat)  # another run may have deleted it
            if status is not None:
                found.append((status.st_mtime_ns, status.st_size, path))
        total = size + sum(each for _, each, _ in found)
        for _, each, path in sorted(found):
            if total <= self.limit:
                break
            _try(path.unlink)
            total -= each


class Recent:
    """The last few results of each owner, by their key. The owner is held weakly; its results are freed with it."""

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self._owners: WeakKeyDictionary[object, OrderedDict[Hashable, Any]] = WeakKeyDictionary()

    def get(self, owner: object, key: Hashable) -> Any | None:
        results = self._owners.get(owner)
        if results is None or key not in results:
            return None
        results.move_to_end(key)
        return results[key]

    def put(self, owner: object, key: Hashable, result: Any) -> None:
        results = self._owners.setdefault(owner, OrderedDict())
        results[key] = result
        results.move_to_end(key)
        while len(results) > self.kept:
            results.popitem(last=False)


def image_digest(image: Tensor | None) -> str | None:
    """A hash of an image's size and pixels, None without an image."""
    if image is None:
        return None
    return hashlib.sha256(str(tuple(image.shape)).encode() + image.cpu().contiguous().numpy().tobytes()).hexdigest()


def _parse_context(data: bytes) -> TextContext | None:
    """The context in a file's bytes, None if they are damaged."""
    try:
        tensors = load(data)
        context = TextContext(tensors["video"], tensors["audio"], int(tensors["tokens"]))
    except (SafetensorError, KeyError, ValueError, RuntimeError):
        return None
    both = (context.video, context.audio)
    return context if all(t.shape[:2] == (1, TEXT_LENGTH) and t.is_floating_point() for t in both) else None


def _parse_expansion(data: bytes) -> Expansion | None:
    """The expansion in a file's bytes, None if they are damaged."""
    try:
        found = json.loads(data)
        prompt, reason = found["prompt"], found["reason"]
    except (ValueError, KeyError, TypeError):
        return None
    return Expansion(prompt, expanded=True, reason=reason) if isinstance(prompt, str) and prompt else None


def _try(action: Callable[[], object]) -> object | None:
    """The action's result, None if the operating system refuses it."""
    try:
        return action()
    except OSError:
        return None
