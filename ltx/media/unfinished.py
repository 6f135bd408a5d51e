"""A file that takes its name when it is complete, and what the disk may refuse meanwhile."""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError

ABANDONED = 24 * 3600  # seconds without a change, after which an unfinished file is a killed process's
UNFINISHED = re.compile(r"\..*\.[0-9a-f]{8}\.partial\.[a-z0-9]+")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; on success it becomes `path`, on any failure it is gone.

    Only a killed process leaves such a file; those that lie there for a day are deleted.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; create it or choose another.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file in it.")
    _sweep(path.parent)
    # The same folder, so that the rename is one step; random, so that two writers of one name do not meet.
    partial = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        yield partial
        with disk_errors(path):
            os.replace(partial, path)
    finally:
        if partial.exists():  # on a read-only disk deleting what is not there fails, too
            partial.unlink()


def _sweep(folder: Path) -> None:
    """Deletes what killed processes left there; what cannot be deleted stays, and ends nothing."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                if UNFINISHED.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > ABANDONED:
                    os.unlink(entry)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the operating system refuses, in one sentence about the file asked for."""
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{path}: no permission to write in {path.parent}; choose another folder.") from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise InputError(f"{path}: the disk of {path.parent} is read-only; choose another folder.") from error
        failure = OSError(f"{path}: could not be written ({error.strerror}); is the disk full?")
        failure.errno = error.errno
        raise failure from error
