"""`make matrix`: engine, nodes and API tested with the lowest and with the newest of what the pack runs with.

A set is an environment of its own in .host/matrix: a Python, a torch and the packages of requirements.txt, the lowest
with each bound exactly, the newest with what the registry offers today. The Pythons are the ends of the supported range
where this machine has them, as pythonX.Y in PATH or pyenv's; else this one. `python tests/versions.py lowest newest`
takes some; exit status 0: all tests pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETS = ROOT / ".host" / "matrix"
PYTHONS = {"lowest": "3.10", "newest": "3.13"}
# torch and its companion belong together. torchaudio is nothing of the pack's, and the newest torch has none.
TORCH = {"lowest": ("torch==2.6.0", "torchvision==0.21.0"), "newest": ("torch", "torchvision")}
# What the tests themselves import; numpy, Pillow and the rest of it are ComfyUI's.
TOOLS = (
    "aiohttp",
    "fal-client",
    "hypothesis",
    "numpy",
    "pillow",
    "pydantic",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "requests",
    "scipy",
    "sentencepiece",
    "SQLAlchemy",
    "websocket-client",
)
TESTS = ("tests/ltx", "tests/nodes", "tests/api")
NOT_OLDER = ("test_pictures_come_back",)  # reads the file back with flags that PyAV has since 18


def wanted(which: str) -> list[str]:
    """The lines of requirements.txt, for the lowest set as exact pins."""
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].isalpha()]
    return [re.sub(r">=([\d.]+).*", r"==\1", line) for line in lines] if which == "lowest" else lines


def interpreter(version: str) -> str:
    """The path of that Python; this one's where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    for path in filter(None, found):
        # A name in PATH may be a shim for what is not installed.
        if subprocess.run([path, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0:
            return str(path)
    return sys.executable


def install(which: str) -> Path:
    """The Python of an environment with that set, made anew."""
    folder = SETS / which
    subprocess.run([interpreter(PYTHONS[which]), "-m", "venv", "--clear", folder], check=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "-qq", "--disable-pip-version-check", "install", "--no-compile"]
    subprocess.run([*pip, *TORCH[which], *wanted(which), *TOOLS], check=True)
    return python


def run(which: str) -> bool:
    """Whether the tests pass with that set."""
    python = install(which)
    names = [re.split("[=>]", line)[0] for line in (*TORCH[which], *wanted(which))]
    told = "import sys; from importlib.metadata import version as v; print('Python', sys.version.split()[0], end='')\n"
    told += f"for name in {names}: print(',', name, v(name), end='')"
    versions = subprocess.run([python, "-c", told], check=True, capture_output=True, text=True).stdout
    sys.stdout.write(f"{which}: {versions}\n")
    sys.stdout.flush()
    command = [python.with_name("pytest"), "-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile", *TESTS]
    if which == "lowest":
        command += ["-k", " and ".join(f"not {name}" for name in NOT_OLDER)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 0


if __name__ == "__main__":
    passed = [run(which) for which in sys.argv[1:] or PYTHONS]
    sys.exit(0 if all(passed) else 1)
