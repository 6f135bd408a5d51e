"""Checks which of the packages in requirements.txt are installed, and in which version.

It imports only Python's own library, because it runs before everything else.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
PYTHON = (3, 10)
TORCH = ">=2.6.0"
"""With an older torch, transformers' Gemma cannot see images. requirements.txt has no line for torch, because ComfyUI
brings the build for the machine's GPU, and pip would replace it by another build."""
WEBHOOKS, DOWNLOAD = "the HTTP API's webhooks", "python -m ltx download"
NEEDED_25 = {"diffusers": ">=0.40.0", "transformers": ">=5.10.1"}
"""What LTX-2.5 needs on top of requirements.txt: the modules of its transformer and decoder, and Gemma 4."""
ONLY_FOR = {"cryptography": WEBHOOKS, "huggingface_hub": DOWNLOAD}
"""Packages that only one entry point needs; the others work without them."""
LINE = re.compile(r"([A-Za-z0-9_.-]+)((?:(?:>=|<)[\d.]+,?)*)")


@dataclass(frozen=True)
class Package:
    """A required package. wanted: its range in requirements.txt, for instance ">=1.0,<2". version: the installed one,
    None if it is not installed."""

    name: str
    wanted: str
    version: str | None

    @property
    def supported(self) -> bool:
        if self.version is None:
            return False
        have = _numbers(self.version)
        bounds = re.findall(r"(>=|<)([\d.]+)", self.wanted)
        return all(have >= _numbers(bound) if sign == ">=" else have < _numbers(bound) for sign, bound in bounds)

    @property
    def only_for(self) -> str | None:
        """The one entry point that needs it, None if all of them do."""
        return ONLY_FOR.get(self.name)

    def __str__(self) -> str:
        return f"{self.name} {self.version or 'is not installed'}"


def installed() -> Iterator[Package]:
    """Yields every package of requirements.txt, in its order."""
    for line in REQUIREMENTS.read_text("utf-8").splitlines():
        if found := LINE.fullmatch(line.strip()):
            yield _found(found[1], found[2])


def torch() -> Package:
    return _found("torch", TORCH)


def problem(door: str | None = None) -> str | None:
    """One sentence that says what is wrong and what to install, if the pack cannot run with this Python or a package,
    else None.

    door: the entry point, WEBHOOKS or DOWNLOAD, whose own packages are checked, too; by default only the common ones
    are.
    """
    if sys.version_info < PYTHON:
        return f"Python {sys.version.split()[0]} is too old; run ComfyUI with {'.'.join(map(str, PYTHON))} or newer."
    wrong = [
        f"{package} (needed: {package.wanted})"
        for package in installed()
        if not package.supported and package.only_for in (None, door)
    ]
    if wrong:
        return f"{', '.join(wrong)}; {remedy()}."
    return None if torch().supported else f"{torch()} (needed: {TORCH}); {torch_remedy()}."


def problem_with_25() -> str | None:
    """One sentence without its full stop if LTX-2.5 cannot run: which package is too old and how to update it."""
    old = [package for name, wanted in NEEDED_25.items() if not (package := _found(name, wanted)).supported]
    if not old:
        return None
    said = ", ".join(f"{package} (needed: {package.wanted})" for package in old)
    update = " ".join(f'"{package.name}{package.wanted}"' for package in old)
    return f'LTX-2.5 needs newer packages: {said}; run "{sys.executable}" -m pip install {update}'


def remedy() -> str:
    return f'run "{sys.executable}" -m pip install -r "{REQUIREMENTS}"'


def torch_remedy() -> str:
    return "update ComfyUI with its torch, or install the build for this machine that https://pytorch.org names"


def _found(name: str, wanted: str) -> Package:
    try:
        version = metadata.version(name)
    except (metadata.PackageNotFoundError, KeyError, TypeError):  # a damaged package raises the last two
        version = None
    return Package(name, wanted, version)


def _numbers(version: str) -> tuple[int, ...]:
    """The release as four numbers: 5.0.0rc1 counts as 5.0.0, and a local part is ignored."""
    release = [int(number) for number in re.match(r"\d*(?:\.\d+)*", version)[0].split(".") if number]
    return tuple([*release, 0, 0, 0, 0][:4])
