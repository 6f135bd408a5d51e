"""Keeps finished windows in a folder until the film is written, so that a run that was ended goes on from them.

A file's name is the hash of everything that went into its window, so a file can only be used where sampling would give
the same again. It has the window's new latents, its latent 0, the sound that it made, if any, and the state of the
noise after it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import InputError
from ..grid import CHANNELS, SPACE_SCALE
from ..latents import Noise
from ..media.unfinished import disk_errors, replacing
from ..models import size as readable
from ..windows import Window
from .conditioning import Conditions
from .sample_windows import NotKept, Sampled
from .steering import Steering

FORMAT = 2  # raise it when the same inputs give other latents than before
ENDING, SUFFIX, SEED = ".windows", ".safetensors", "seed.json"  # of the folder, of a window, of the seed
WINDOW = re.compile(r"[0-9a-f]{64}\.safetensors")
FLOAT = torch.float32.itemsize
AS_FAR_AS_IT_IS = "as far as it is"
ROOM, DAYS = "LTX_A2V_WINDOWS_GB", "LTX_A2V_WINDOWS_DAYS"
"""Environment variables: how much disk the kept windows of one film may take, and how many days they stay after a run
that was ended. 0 GB keeps none, and 0 days keeps them for ever."""
DEFAULTS = {ROOM: 20.0, DAYS: 30.0}


class KeptWindows:
    """The kept windows of a film, in a folder beside it. used: the number of windows that were not sampled again.

    resume: whether what is there is read. With AS_FAR_AS_IT_IS nothing else is made: a window that is not there ends
    the stage. A damaged file counts as missing.
    """

    def __init__(self, folder: Path, resume: bool | str = False) -> None:
        self.folder, self.resume, self.used = folder, bool(resume), 0
        self.only = resume == AS_FAR_AS_IT_IS
        self._begun = False
        self._seed: int | None = None  # to be noted with the first window
        self._noted = False
        self._own: set[Path] = set()  # files of this run

    @classmethod
    def beside(cls, film: Path, resume: bool | str = False) -> KeptWindows:
        return cls(film.with_name(film.name + ENDING), resume)

    def of(self, identity: object) -> Callable[..., Sampled]:
        """The `Keep` of a stage. identity: the weights and the way to compute, as a value that JSON can hold."""

        def keep(
            make: Callable[[], Sampled],
            window: int,
            latent: Tensor,
            conditions: Conditions,
            steering: Steering,
            noise: Noise,
        ) -> Sampled:
            told = described([FORMAT, identity, window, latent, conditions, steering, noise])
            path = self.folder / (hashlib.sha256(json.dumps(told).encode()).hexdigest() + SUFFIX)
            piece = self._read(path, conditions, noise) if self.resume else None
            self._own.add(path)
            if piece is not None:
                self.used += 1
                return piece
            if self.only:
                raise NotKept(path)
            piece = make()
            self._write(path, piece, conditions)
            return piece

        return keep

    @property
    def own(self) -> list[Path]:
        """The files of this run's windows."""
        return sorted(self._own)

    def count(self) -> int:
        """The number of kept windows, of all stages."""
        return len(self._files())

    def _files(self) -> list[Path]:
        """The files of the windows. Other files in the folder are somebody else's."""
        return [path for path in self.folder.glob(f"*{SUFFIX}") if WINDOW.fullmatch(path.name)]

    def _found(self) -> dict[Path, os.stat_result]:
        """The same with their sizes and times, but for those that another run deletes now."""
        found = {}
        for path in self._files():
            with suppress(OSError):
                found[path] = path.stat()
        return found

    def spared(self) -> int:
        """Bytes of the windows that need no more room on the disk: they are used again, or are deleted for others."""
        return sum(each.st_size for each in self._found().values()) if self.resume else 0

    def told(self) -> str:
        """Words for the user about what is kept."""
        ways = "--resume goes on from them, and --as-far-as-it-is writes them as a film"
        return f"{self.count()} windows are kept in {self.folder}; {ways}"

    def seed(self) -> int | None:
        """The seed of the run that was ended, None if there is none."""
        try:
            seed = json.loads((self.folder / SEED).read_bytes())["seed"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return seed if isinstance(seed, int) else None

    def begin(self, seed: int) -> None:
        """Says which seed is to be noted. The folder is made with the first window, so an earlier end leaves none."""
        self._begun, self._seed = True, seed

    def finish(self) -> None:
        """Deletes what is kept, if this run has begun to keep or to read it."""
        if self._begun:
            self.remove()

    def notes(self) -> list[str]:
        """A note for the report if windows were used again."""
        return [f"{self.used} windows of an earlier run were used again"] if self.used else []

    def _open(self) -> None:
        """Makes the folder and notes the seed, and again if they were deleted since: by a user, or by another run that
        has finished."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / SEED
        if self._seed is None or (self._noted and note.is_file()):
            return
        with replacing(note) as file, disk_errors(file):
            file.write_text(json.dumps({"seed": self._seed}))
        self._noted = True

    def _make_room(self, needed: int) -> None:
        """Deletes the oldest windows of earlier runs until so many bytes more are within the setting, and the disk has
        room for them."""
        sizes = self._found()
        total = sum(each.st_size for each in sizes.values())
        for path in sorted(sizes.keys() - self._own, key=lambda each: sizes[each].st_mtime):
            if total + needed <= limit() and needed <= shutil.disk_usage(self.folder).free:
                break
            with suppress(OSError):
                path.unlink()
                total -= sizes[path].st_size

    def remove(self) -> None:
        """Deletes the kept windows. Files of another kind stay, and their folder with them."""
        for file in (*self._files(), self.folder / SEED):
            with suppress(OSError):
                file.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def expire(self) -> None:
        """Deletes the windows that are older than the setting allows."""
        before = _oldest()
        for file in self._files():
            with suppress(OSError):
                if file.stat().st_mtime < before:
                    file.unlink()

    def _read(self, path: Path, conditions: Conditions, noise: Noise) -> Sampled | None:
        try:
            tensors = load(path.read_bytes())
            audio = conditions.audio
            audio = audio.alone if audio.frozen else audio.made(tensors["audio"])
            return Sampled(tensors["video"], audio, Noise(noise.seed, tensors["noise"]), tensors["first"])
        except (OSError, SafetensorError, KeyError, InputError):
            return None

    def _write(self, path: Path, piece: Sampled, conditions: Conditions) -> None:
        tensors = {"video": piece.video, "noise": piece.noise.state, "first": piece.first}
        if not conditions.audio.frozen:
            tensors["audio"] = piece.audio.latent
        self._open()
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        self._make_room(len(data))
        with replacing(path) as partial, disk_errors(path), partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def described(value: Any) -> Any:
    """A value as JSON can hold it, which differs if the value does. Dataclasses become their fields, tensors a hash."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return [str(value.dtype), list(value.shape), hashlib.sha256(data).hexdigest()]
    if is_dataclass(value):
        return [type(value).__name__, *([field.name, described(getattr(value, field.name))] for field in fields(value))]
    if isinstance(value, (list, tuple)):
        return [described(each) for each in value]
    return value if value is None or isinstance(value, (str, bool, int, float)) else repr(value)


def disk_needed(windows: Sequence[Window], *sizes: tuple[int, int]) -> int:
    """Bytes that the kept windows take at most. sizes: width and height of each stage in pixels."""
    latents = sum(window.length - window.given + 1 for window in windows)  # latent 0 is kept in addition
    cells = sum(width * height // SPACE_SCALE**2 for width, height in sizes)
    return latents * cells * CHANNELS * FLOAT


def setting(name: str) -> float:
    """A number of at least 0 from the environment. Raises InputError for anything else."""
    text = os.environ.get(name, "").strip()
    if not text:
        return DEFAULTS[name]
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < math.inf:
        raise InputError(f"{name} is {text!r}: give a number, for instance {DEFAULTS[name]:g}.")
    return value


def limit() -> float:
    """Bytes that the kept windows of one film may take. Raises InputError if the setting is no number."""
    return setting(ROOM) * 1e9


def _oldest() -> float:
    """The time before which what is kept is too old. Raises InputError if the setting is no number."""
    days = setting(DAYS)
    return time.time() - days * 24 * 3600 if days else -math.inf


def check_room(folder: Path, needed: int, spared: int = 0) -> None:
    """Raises InputError if so many bytes are more than the setting allows, or, but for those that are `spared` because
    they are there already, than the disk of a folder has free."""
    if not limit():
        return
    if needed > limit():
        raise InputError(
            f"windows: those of this film would take {readable(needed)} on the disk until it is written, and {ROOM} "
            f"allows {readable(limit())}; raise it, or ask for a shorter or smaller film."
        )
    if folder.is_dir() and (free := shutil.disk_usage(folder).free) < (more := needed - spared):
        raise InputError(
            f"{folder}: the windows of this film take {readable(more)} there until it is written, but "
            f"{readable(free)} are free; delete files or choose another folder."
        )


def sweep(folder: Path, but: KeptWindows) -> list[str]:
    """Deletes what runs left in a folder that were ended as many days ago as the setting says. Returns the names of the
    folders. but: the windows of this run, which stay. Folders with a file that is not ours stay."""
    before, found = _oldest(), []
    with suppress(OSError):
        for place in sorted(folder.glob(f"*{ENDING}")):
            if place != but.folder and _left(place, before):
                KeptWindows(place).remove()
                found.append(place.name)
    return found


def _left(place: Path, before: float) -> bool:
    """Whether a folder has kept windows, nothing else, and nothing that was changed after that time."""
    if place.is_symlink() or not (place / SEED).is_file():
        return False
    inside = list(place.iterdir())
    ours = all(file.name == SEED or WINDOW.fullmatch(file.name) for file in inside)
    return ours and all(file.lstat().st_mtime < before and not file.is_symlink() for file in inside)
