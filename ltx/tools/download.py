"""`python -m ltx download`: the published models from the Hugging Face hub into ComfyUI's folders.

huggingface_hub asks and transfers. It has not continued an interrupted download since 1.18, so the file on the way is
kept here, under a name of its own that holds its hash; it gets its final name when it is whole and its hash is the
hub's. Nothing is fetched that is there, nothing is replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from .. import models
from ..errors import InputError
from ..models import DEFAULT, MODELS, PACK, PARTS_OF_A_FOLDER, Published, size

ASK = 1_000_000_000  # bytes from which it is asked first
SPARE = 1_000_000_000  # bytes of the disk that stay free
CHUNK = 2**22
Say = Callable[[str], object]


@dataclass(frozen=True)
class Wanted:
    """One file to fetch. etag: SHA-256 of a large file, git's own hash of a small one."""

    model: Published
    target: Path
    url: str
    etag: str
    size: int

    @property
    def part(self) -> Path:
        """Where it grows. A new version of the file on the hub has another name here: they are never mixed."""
        return self.target.with_name(f"{self.target.name}.{self.etag[:16]}.part")

    @property
    def left(self) -> int:
        return self.size - (self.part.stat().st_size if self.part.is_file() else 0)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m ltx download",
        description="Fetches models from the Hugging Face hub into ComfyUI's folders. Interrupted, it goes on where it "
        "was. Exit status: 0 everything is there, 1 failed, 2 bad input, 130 interrupted.",
    )
    p.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help=f"of {', '.join(MODELS)}; default: {' '.join(DEFAULT)}, as far as they are missing",
    )
    p.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="ComfyUI's models folder; default: of the ComfyUI whose custom_nodes this pack lies in",
    )
    p.add_argument("--yes", action="store_true", help=f"do not ask, which is done from {size(ASK)} on")
    return p


def main(argv: list[str], say: Say) -> int:
    arguments = parser().parse_args(argv)
    try:
        run(arguments.what or DEFAULT, arguments.models, arguments.yes, say)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except Failed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where it was\n")
        return 130
    return 0


class Failed(RuntimeError):
    """What the hub, the network or the disk refused: one sentence."""


def run(what: tuple[str, ...] | list[str], folder: Path | None, yes: bool, say: Say) -> None:
    """Fetches the named models. Errors: InputError, Failed."""
    for key in what:
        if key not in MODELS:
            raise InputError(f"download: {key!r} is not known; choose of {', '.join(MODELS)}.")
    folder = folder or models.around(PACK.absolute())
    if folder is None or not folder.is_dir():
        raise InputError(f"--models: {folder or 'no ComfyUI around this pack'}: name ComfyUI's models folder.")
    places = models.folders(folder.absolute())
    wanted: list[Wanted] = []
    for key in dict.fromkeys(what):
        model = MODELS[key]
        # A whole repository is compared file by file: a folder may be there in part.
        if model.file and (path := models.present(model, places)):
            say(f"{model.what}: {path} is there")
            continue
        known = list(_wanted(model, places[model.folder][0]))
        missing = [file for file in known if not _there(file)]
        if not missing:
            say(f"{model.what}: {places[model.folder][0] / model.name} is there")
        wanted += missing
    if not wanted:
        return
    total = sum(file.left for file in wanted)
    _room(wanted)
    say(f"{len(wanted)} file(s), {size(total)} to fetch")
    if total >= ASK and not yes:
        _ask(total)
    for number, file in enumerate(wanted, 1):
        say(f"{number}/{len(wanted)} {file.target.name}, {size(file.size)}, into {file.target.parent}")
        fetch(file, say)
    say("done")


def _wanted(model: Published, folder: Path) -> Iterator[Wanted]:
    """The files of a model with their sizes and hashes, as the hub has them now, all of one revision."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    with _said(model):
        names, revision = [model.file], "main"
        if not model.file:
            info = HfApi().model_info(model.repository)
            names = [entry.rfilename for entry in info.siblings or ()]
            names = [name for name in names if any(fnmatch(name, part) for part in PARTS_OF_A_FOLDER)]
            revision = info.sha or revision
        if not names:
            raise Failed(f"{model.page}: has no files to fetch; look at the page.")
        for name in names:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise Failed(f"{model.page}: names a file {name!r} outside of itself; look at the page.")
            head = get_hf_file_metadata(hf_hub_url(model.repository, name, revision=revision))
            if not head.etag or head.size is None:
                raise Failed(f"{model.page}: tells neither size nor hash of {name}; try again later.")
            target = folder / name if model.file else folder / model.name / name
            yield Wanted(model, target, hf_hub_url(model.repository, name, revision=revision), head.etag, head.size)


def _there(file: Wanted) -> bool:
    """Whether the file is there. Errors: one of that name that is another, by its size."""
    if not file.target.exists():
        return False
    if (have := file.target.stat().st_size) != file.size:
        raise Failed(
            f"{file.target}: has {have} bytes where the hub's has {file.size}; delete it or move it away, then run "
            "this again."
        )
    return True


def _room(wanted: list[Wanted]) -> None:
    """Errors: a disk with less room than what it is to take."""
    by_disk: dict[int, list[Wanted]] = {}
    for file in wanted:
        existing = next(folder for folder in file.target.parents if folder.is_dir())
        by_disk.setdefault(existing.stat().st_dev, []).append(file)
    for files in by_disk.values():
        existing = next(folder for folder in files[0].target.parents if folder.is_dir())
        needed, free = sum(file.left for file in files), shutil.disk_usage(existing).free
        if needed + SPARE > free:
            raise Failed(
                f"{existing}: has {size(free)} free, and {size(needed)} are to be fetched with {size(SPARE)} to spare; "
                "make room, or name folders on another disk in ComfyUI's extra_model_paths.yaml."
            )


def _ask(total: int) -> None:
    if not sys.stdin.isatty():
        raise InputError(f"--yes: {size(total)} are to be fetched; add --yes to say that this is meant.")
    sys.stdout.write(f"fetch {size(total)}? [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InputError("download: nothing was fetched; say y, or add --yes.")


def fetch(file: Wanted, say: Say) -> None:
    """The rest of one file, then its final name. Errors: Failed; what was fetched is kept unless its hash is wrong."""
    with _said(file.model):
        file.part.parent.mkdir(parents=True, exist_ok=True)
        if file.left < 0:
            file.part.unlink()
        if file.left:
            with file.part.open("ab") as grown, _alone(grown, file):
                _grow(grown, file)
    if file.size >= ASK:
        say("checking its hash")
    if (found := _hash(file)) != file.etag:
        file.part.unlink()
        raise Failed(
            f"{file.target.name}: what arrived has the hash {found[:12]}… where the hub's has {file.etag[:12]}…; it "
            "was thrown away: run this again."
        )
    os.replace(file.part, file.target)


def _grow(grown: Any, file: Wanted) -> None:
    """Appends what is left of a file, over as many connections as it takes while each brings something."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    while True:
        have = grown.seek(0, os.SEEK_END)
        try:
            http_get(
                file.url,
                grown,
                resume_size=have,
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.target.name,
            )
            return
        except _network() as error:
            refused = isinstance(error, HfHubHTTPError) or getattr(error, "errno", None) is not None
            if refused or grown.tell() <= have:
                raise


def _network() -> tuple[type[Exception], ...]:
    """What a transfer raises. The last is of the HTTP library, which is another in each of huggingface_hub's ages."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, ValueError, *HfHubHTTPError.__bases__


def _hash(file: Wanted) -> str:
    """Of the fetched bytes, in the kind of the hub's: SHA-256, or git's SHA-1, which begins with the length."""
    digest = hashlib.sha256() if len(file.etag) == 64 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with file.part.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _alone(grown: Any, file: Wanted) -> Iterator[None]:
    """Errors: another process writes the same file now."""
    try:
        import fcntl
    except ImportError:  # Windows opens a file for one writer, and the hash finds what is mixed
        yield
        return
    try:
        fcntl.flock(grown, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Failed(f"{file.target.name}: another download of it is running; wait for that one.") from error
    except OSError:  # a file system without locks
        pass
    yield


@contextmanager
def _said(model: Published) -> Iterator[None]:
    """What huggingface_hub and the system raise, as one sentence each."""
    from huggingface_hub import errors, get_token

    try:
        yield
    except Failed:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise Failed("HF_HUB_OFFLINE: is set, which forbids downloads; unset it and run this again.") from error
    except errors.GatedRepoError as error:
        how = (
            "your token's account has not accepted them"
            if get_token()
            else "then log in with `hf auth login`, or set HF_TOKEN to a token of yours"
        )
        raise Failed(f"{model.repository}: its terms must be accepted at {model.page} first; {how}.") from error
    except errors.RepositoryNotFoundError as error:
        raise Failed(f"{model.repository}: is not on the hub, or only for others; look at {model.page}.") from error
    except errors.EntryNotFoundError as error:
        raise Failed(f"{model.repository}: has no {model.file or 'such file'} now; look at {model.page}.") from error
    except _network() as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename:
            raise Failed(f"{error.filename}: cannot be written ({error.strerror}); choose another folder.") from error
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise Failed(
            f"{model.repository}: was not fetched ({said}); mend that and run this again, and it goes on."
        ) from error
