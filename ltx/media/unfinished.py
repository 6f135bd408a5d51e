"""Writes a file under a temporary name until it is complete, and turns errors of the disk into sentences."""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from .. import characters
from ..errors import InputError

ABANDONED = 24 * 3600  # seconds; an unfinished file that did not change for so long belongs to a killed process
UNFINISHED = re.compile(r"\..*\.[0-9a-f]{8}\.partial\.[a-z0-9]+")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`. On success that file is renamed to `path`; after a failure it is deleted.

    Only a killed process leaves such a file, and Windows one that is still open; it is deleted after a day. Raises
    InputError if `path` cannot be written. If only a file of that name cannot be replaced, the error says under which
    other name the new one is.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; create it or choose another.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file in it.")
    _sweep(path.parent)
    # It is in the same folder, so that the rename is atomic, and its name is random, so that two writers do not
    # collide.
    partial = unfinished(path)
    try:
        yield partial
        with disk_errors(path):
            _rename(partial, path)
    finally:
        # Not on a read-only disk, and on Windows not while a container that could not be closed has it open.
        with suppress(OSError):
            partial.unlink()


def unfinished(path: Path) -> Path:
    """A name for the file until it is complete. It is up to 18 characters longer."""
    return path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.partial{path.suffix}")


def check_path(name: str, path: Path, *beside: Path) -> None:
    """Raises InputError, which begins with `name`, if the whole path, that of the unfinished file, or one of those
    beside it is longer than the system allows."""
    length, most = max(map(characters.path_length, (path, unfinished(path), *beside))), characters.LONGEST_PATH
    if length > most:
        raise InputError(
            f"{name}: the whole path has {length} characters while the file is written, and {most} is the most; "
            "shorten it."
        )


def _rename(partial: Path, path: Path) -> None:
    """Raises InputError if there is a file that cannot be replaced, as on Windows one that another program has open:
    the new one may be the work of hours, so it gets a name of its own."""
    try:
        os.replace(partial, path)
    except PermissionError:
        if not path.exists():
            raise
        other = path.with_name(f"{path.stem[:40]}-{secrets.token_hex(4)}{path.suffix}")
        os.replace(partial, other)
        raise InputError(
            f"{path}: cannot be replaced, perhaps because another program has it open; the new file is {other}."
        ) from None


def _sweep(folder: Path) -> None:
    """Deletes unfinished files of killed processes. A file that cannot be deleted stays and does not stop the
    others."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                if UNFINISHED.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > ABANDONED:
                    os.unlink(entry)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an error of the operating system into one sentence about `path`: InputError or OSError."""
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{path}: no permission to write in {path.parent}; choose another folder.") from error
    except SafetensorError as error:  # which hides the system's own
        raise OSError(f"{path}: could not be written ({error}); is the disk full?") from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise InputError(f"{path}: the disk of {path.parent} is read-only; choose another folder.") from error
        failure = OSError(f"{path}: could not be written ({error.strerror}); is the disk full?")
        failure.errno = error.errno
        raise failure from error
