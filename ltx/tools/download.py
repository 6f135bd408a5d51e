"""`python -m ltx download` fetches the published models from the Hugging Face hub into ComfyUI's folders.

huggingface_hub does the requests and transfers. Since version 1.18 it does not continue an interrupted download, so
this module keeps the unfinished file, under a name with its hash. The file gets its final name when it is complete and
its hash is the hub's. A file that is there already is neither fetched nor replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path, PureWindowsPath
from typing import Any

from .. import models, versions
from ..errors import InputError
from ..models import DEFAULT, MODELS, PACK, PARTS_OF_A_FOLDER, SETS, Published, size
from ..terminal import to_path

ASK = 1_000_000_000  # bytes; a larger download needs a confirmation
SPARE = 1_000_000_000  # bytes that must stay free on the disk
CHUNK = 2**22
PACKAGES = ("huggingface_hub", "safetensors")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Wanted:
    """One file to fetch. etag: the SHA-256 of a large file, git's own hash of a small one. size: bytes."""

    model: Published
    target: Path
    url: str
    etag: str
    size: int

    @property
    def part(self) -> Path:
        """The unfinished file. Its name contains the hash, so two versions of the hub's file are never mixed."""
        return self.target.with_name(f"{self.target.name}.{self.etag[:16]}.part")

    @property
    def left(self) -> int:
        """Bytes that are still to be fetched."""
        return self.size - (self.part.stat().st_size if self.part.is_file() else 0)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m ltx download",
        description="Fetches models from the Hugging Face hub into ComfyUI's folders. A second run continues an "
        "interrupted download. Exit status: 0 everything is there, 1 failed, 2 bad input, 130 interrupted.",
    )
    p.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help=f"one or more of {', '.join(MODELS)}, or a set: {'; '.join(map(_told, SETS))}. What is there already is "
        "not fetched again; without WHAT, it is the set default",
    )
    p.add_argument(
        "--models",
        type=to_path,
        metavar="DIR",
        help="ComfyUI's models folder; default: the one of the ComfyUI that has this pack in custom_nodes",
    )
    p.add_argument("--yes", action="store_true", help=f"fetch {size(ASK)} or more without a confirmation")
    return p


def _told(name: str) -> str:
    return f"{name} ({' '.join(SETS[name])}, {size(models.total(SETS[name]))})"


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
        sys.stderr.write("interrupted; the same command continues the download\n")
        return 130
    return 0


class Failed(RuntimeError):
    """The hub, the network or the disk refused something. The text is one sentence."""


def run(what: tuple[str, ...] | list[str], folder: Path | None, yes: bool, say: Say) -> None:
    """Fetches the named models and sets of models. Raises InputError for a wrong name, a wrong folder or a missing
    confirmation, and Failed if a download fails."""
    _check_packages()
    keys = [key for name in what for key in SETS.get(name, (name,))]
    for key in keys:
        if key not in MODELS:
            raise InputError(f"download: {key!r} is not known; choose from {', '.join((*SETS, *MODELS))}.")
    folder = folder or models.around(PACK.absolute())
    if folder is None or not folder.is_dir():
        wrong = "this pack is not inside a ComfyUI" if folder is None else f"{folder} is not a folder"
        raise InputError(f"--models: {wrong}; name ComfyUI's models folder.")
    places = models.folders(folder.absolute())
    wanted: list[Wanted] = []
    for key in dict.fromkeys(keys):
        with _one_sentence(MODELS[key]):
            wanted += _missing(MODELS[key], places, say)
    if not wanted:
        return
    total = sum(file.left for file in wanted)
    _check_room(wanted)
    say(f"{len(wanted)} file(s), {size(total)} to fetch")
    if total >= ASK and not yes:
        _confirm(total)
    for number, file in enumerate(wanted, 1):
        say(f"{number}/{len(wanted)} {file.target.name}, {size(file.size)}, into {file.target.parent}")
        fetch(file, say)
    say("done")


def _check_packages() -> None:
    """Raises Failed if a package that this module uses is missing, too old or broken. Other packages do not matter."""
    for package in versions.installed():
        if package.name in PACKAGES and not package.supported:
            said = package.version or "not installed"
            raise Failed(f"{package.name}: is {said}, but {package.wanted} is needed; {versions.remedy()}.")
    try:
        for name in PACKAGES:
            import_module(name)
    except Exception as error:  # a broken package may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Failed(f"{name}: cannot be imported ({reason}); {versions.remedy()}.") from error


def _missing(model: Published, places: Mapping[str, list[Path]], say: Say) -> list[Wanted]:
    """The files of a model that are not there yet. Raises Failed if one is there and cannot be used."""
    path = models.present(model, places)
    if model.file and path:
        _check_whole(path)
        say(f"{model.what}: {path} is there")
        return []
    # A whole repository is compared file by file, because its folder may be incomplete.
    path = path or places[model.folder][0] / model.name
    missing = [file for file in list(_wanted(model, path.parent)) if not _exists(file)]
    if not missing:
        say(f"{model.what}: {path} is there")
    return missing


def _check_whole(path: Path) -> None:
    """Raises Failed if a file that is there already cannot be used: it was cut short, is no safetensors file, or is a
    link to nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        safe_open(str(path), framework="np")
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Failed(
            f"{path}: is not a complete safetensors file ({reason}); delete it or move it, then run this again."
        ) from error


def _wanted(model: Published, folder: Path) -> Iterator[Wanted]:
    """The files of a model with their sizes and hashes on the hub now, all of the same revision."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    with _one_sentence(model):
        names, revision = [model.path], "main"
        if not model.file:
            info = HfApi().model_info(model.repository)
            names = [entry.rfilename for entry in info.siblings or ()]
            names = [name for name in names if any(fnmatch(name, part) for part in PARTS_OF_A_FOLDER)]
            revision = info.sha or revision
        if not names:
            raise Failed(f"{model.page}: has no files to fetch; look at the page.")
        for name in names:
            # as Windows reads it, which knows both kinds of slashes and drives
            if PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
                raise Failed(f"{model.page}: names a file {name!r} outside its folder; look at the page.")
            head = get_hf_file_metadata(hf_hub_url(model.repository, name, revision=revision))
            if not head.etag or head.size is None:
                raise Failed(f"{model.page}: gives no size or no hash for {name}; try again later.")
            target = folder / model.file if model.file else folder / model.name / name
            yield Wanted(model, target, hf_hub_url(model.repository, name, revision=revision), head.etag, head.size)


def _exists(file: Wanted) -> bool:
    """Whether the file is there. Raises Failed if a file of that name has another size."""
    if not file.target.exists():
        return False
    if (have := file.target.stat().st_size) != file.size:
        raise Failed(
            f"{file.target}: has {have} bytes, but the hub's file has {file.size}; delete it or move it, then run this "
            "again."
        )
    return True


def _check_room(wanted: list[Wanted]) -> None:
    """Raises Failed if a disk has not enough room for its files."""
    by_disk: dict[int, list[Wanted]] = {}
    for file in wanted:
        existing = next(folder for folder in file.target.parents if folder.is_dir())
        by_disk.setdefault(existing.stat().st_dev, []).append(file)
    for files in by_disk.values():
        existing = next(folder for folder in files[0].target.parents if folder.is_dir())
        needed, free = sum(file.left for file in files), shutil.disk_usage(existing).free
        if needed + SPARE > free:
            raise Failed(
                f"{existing}: has {size(free)} free, but the download takes {size(needed)} and {size(SPARE)} must stay "
                "free; make room, or name folders on another disk in ComfyUI's extra_model_paths.yaml."
            )


def _confirm(total: int) -> None:
    """Asks on the terminal. Raises InputError if the answer is not yes."""
    if not sys.stdin.isatty():
        raise InputError(f"--yes: {size(total)} are to be fetched; add --yes to confirm this.")
    sys.stdout.write(f"fetch {size(total)}? [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InputError("download: nothing was fetched; answer y, or add --yes.")


def fetch(file: Wanted, say: Say) -> None:
    """Fetches the rest of one file and gives it its final name. Raises Failed if a transfer or the hash fails; the
    fetched bytes are kept unless their hash is wrong."""
    with _one_sentence(file.model):
        file.part.parent.mkdir(parents=True, exist_ok=True)
        if file.left < 0:
            file.part.unlink()
        with file.part.open("ab") as part, _locked(part, file):
            if file.left:
                _append_rest(part, file)
                part.flush()
            if file.size >= ASK:
                say("checking its hash")
            found = _hash(file)
        if found != file.etag:
            file.part.unlink()
            raise Failed(
                f"{file.target.name}: the fetched file has the hash {found[:12]}…, but the hub's has "
                f"{file.etag[:12]}…; it was deleted: run this again."
            )
        os.replace(file.part, file.target)


def _append_rest(part: Any, file: Wanted) -> None:
    """Appends the rest of a file. It opens a new connection after each break, as long as each one brings some bytes."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    while True:
        have = part.seek(0, os.SEEK_END)
        try:
            http_get(
                file.url,
                part,
                resume_size=have,
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.target.name,
            )
            return
        except _network() as error:
            refused = isinstance(error, HfHubHTTPError) or getattr(error, "errno", None) is not None
            if refused or part.tell() <= have:
                raise


def _network() -> tuple[type[Exception], ...]:
    """The exceptions of a transfer. The last ones belong to the HTTP library, which differs between versions of
    huggingface_hub."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, ValueError, *HfHubHTTPError.__bases__


def _hash(file: Wanted) -> str:
    """The hash of the fetched bytes, of the same kind as the hub's: SHA-256, or git's SHA-1 with the length in
    front."""
    digest = hashlib.sha256() if len(file.etag) == 64 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with file.part.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _locked(part: Any, file: Wanted) -> Iterator[None]:
    """Locks the unfinished file. Raises Failed if another process writes it now."""
    try:
        lock = _lock(part, file.part)
    except (BlockingIOError, FileExistsError) as error:
        raise Failed(f"{file.target.name}: another download of it is running; wait for that one.") from error
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _lock(part: Any, path: Path) -> int | None:
    """Locks an open file. Returns what must be closed afterwards, if anything. Raises BlockingIOError or
    FileExistsError if another process has locked it."""
    try:
        import fcntl
    except ImportError:  # Windows, where a file beside it vanishes when it is closed, also by the end of its process
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_TEMPORARY
        return os.open(path.with_name(f"{path.name}.lock"), flags)
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass
    return None


@contextmanager
def _one_sentence(model: Published) -> Iterator[None]:
    """Turns an exception of huggingface_hub or of the system into Failed with one sentence."""
    from huggingface_hub import errors, get_token

    try:
        yield
    except Failed:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise Failed("HF_HUB_OFFLINE: is set and forbids downloads; unset it and run this again.") from error
    except errors.GatedRepoError as error:
        how = (
            "your token's account has not accepted them"
            if get_token()
            else "then log in with `hf auth login`, or set HF_TOKEN to a token of yours"
        )
        raise Failed(f"{model.repository}: its terms must be accepted at {model.page} first; {how}.") from error
    except errors.RepositoryNotFoundError as error:
        raise Failed(f"{model.repository}: is missing on the hub or private; look at {model.page}.") from error
    except errors.EntryNotFoundError as error:
        raise Failed(f"{model.repository}: no longer has {model.file or 'a file'}; look at {model.page}.") from error
    except _network() as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename:
            raise Failed(
                f"{error.filename}: cannot be read or written ({error.strerror}); choose another folder."
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise Failed(
            f"{model.repository}: was not fetched ({reason}); solve that, then run this again to continue."
        ) from error
