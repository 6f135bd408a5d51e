"""`make matrix`: engine, nodes and API tested with the lowest and with the newest of what the pack runs with; the page
tested with the newest frontend.

A set is an environment of its own in .host/matrix: a Python, a torch and the packages of requirements.txt, the lowest
with each bound exactly, the newest with what the registry offers today; and what the ComfyUI in .host asks for. The
Pythons are the ends of the supported range where this machine has them, as pythonX.Y in PATH or pyenv's; else this one.

The set `frontend` is a layer over .venv: the newest frontend and templates of the registry on the ComfyUI in the folder
that LTX_A2V_HOST names, `make matrix COMFYUI=path`, with what its requirements.txt asks for. No registry has a whole
ComfyUI that the newest frontend can talk to, so without a path this set is left out.

`python tests/versions.py lowest newest` takes some sets; exit status 0: all tests pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOST = os.environ.get("LTX_A2V_HOST", "")
SETS = ROOT / ".host" / "matrix"
PYTHONS = {"lowest": "3.10", "newest": "3.13"}
# torch and its companion belong together. torchaudio is nothing of the pack's, and the newest torch has none.
TORCH = {"lowest": ("torch==2.6.0", "torchvision==0.21.0"), "newest": ("torch", "torchvision")}
KITCHEN = {"lowest": (), "newest": ("comfy-kitchen",)}  # it cannot be imported with torch 2.6
COMPANIONS = ("torch", "torchaudio", "torchvision")
# What the tests themselves import; the rest of it is ComfyUI's.
TOOLS = (
    "fal-client",
    "hypothesis",
    "jsonschema",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "requests",
    "websocket-client",
)
TESTS = ("tests/ltx", "tests/nodes", "tests/api")
FRONTEND = "frontend"
PAGE = ("comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs")
# the tests with a browser
ON_THE_PAGE = tuple(
    f"tests/host/test_{name}.py"
    for name in ("blueprint", "drop", "faces", "locales", "microphone", "newcomer", "newcomer_25", "workflows")
)
NOT_OLDER = ("test_pictures_come_back",)  # reads the file back with flags that PyAV has since 18


def wanted(which: str) -> list[str]:
    """The lines of requirements.txt, for the lowest set as exact pins."""
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].isalpha()]
    return [re.sub(r">=([\d.]+).*", r"==\1", line) for line in lines] if which == "lowest" else lines


def of_comfyui() -> list[str]:
    """The lines of ComfyUI's requirements.txt, without its page and without torch and its companions."""
    lines = (ROOT / ".host" / "comfyui" / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line[:1].isalpha() and line not in COMPANIONS and not line.startswith("comfyui-")]


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
    subprocess.run([*pip, *TORCH[which], *wanted(which), *of_comfyui(), *KITCHEN[which], *TOOLS], check=True)
    return python


def layer(host: Path) -> Path:
    """The Python of an environment over this one, with what a ComfyUI asks for and the newest of its page."""
    folder = SETS / FRONTEND
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "venv.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "--python", str(python), "install"]
    subprocess.run([*pip, "--no-compile", "--requirement", host / "requirements.txt"], check=True)
    subprocess.run([*pip, "--no-compile", "--upgrade", *PAGE], check=True)
    return python


def told(python: Path, which: str, names: Iterable[str]) -> None:
    """Prints which versions of these packages a set has."""
    code = "import sys; from importlib.metadata import version as v; print('Python', sys.version.split()[0], end='')\n"
    code += f"for name in {list(names)}: print(',', name, v(name), end='')"
    versions = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    sys.stdout.write(f"{which}: {versions}\n")
    sys.stdout.flush()


def tested(python: Path, host: str, *arguments: str) -> bool:
    """Whether the tests pass in that environment. host: the folder of a ComfyUI, "" for the one in .host."""
    command = [python, Path(sys.executable).with_name("pytest")] if host else [python.with_name("pytest")]
    command += ["-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LTX_A2V_HOST": host}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


def run(which: str) -> bool:
    """Whether the tests pass with that set."""
    if which == FRONTEND:
        python = layer(Path(HOST))
        told(python, which, PAGE)
        return tested(python, HOST, *ON_THE_PAGE)
    python = install(which)
    told(python, which, (re.split("[=>]", line)[0] for line in (*TORCH[which], *wanted(which))))
    less = ["-k", " and ".join(f"not {name}" for name in NOT_OLDER)] if which == "lowest" else []
    return tested(python, "", *TESTS, *less)


def main(sets: list[str]) -> int:
    if not HOST and FRONTEND in sets:
        sys.stderr.write("The set `frontend` needs a newer ComfyUI: name its folder, `make matrix COMFYUI=path`.\n")
        return 1
    passed = [run(which) for which in sets or [*PYTHONS, *([FRONTEND] if HOST else [])]]
    if not HOST:
        sys.stdout.write("The newest frontend was not tested: it needs a newer ComfyUI, `make matrix COMFYUI=path`.\n")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
