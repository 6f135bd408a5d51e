"""`make matrix`: a part of the tests with the lowest and with the newest packages that requirements.txt allows.

A set of packages is a folder of its own in .host/matrix, which stands before .venv's on Python's path: torch, the
host's packages and the test tools are .venv's. The lowest set has each bound of requirements.txt exactly, the newest
what the registry offers today. `python tests/versions.py lowest newest` takes some; exit status 0: all tests pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETS = ROOT / ".host" / "matrix"
TESTS = (
    "tests/ltx/test_checkpoint.py",
    "tests/ltx/test_gemma_file.py",
    "tests/ltx/test_expand.py",
    "tests/ltx/test_safety.py",
    "tests/ltx/test_memory.py",
    "tests/ltx/test_offload.py",
    "tests/ltx/test_formats.py",
    "tests/ltx/test_video.py",
    "tests/ltx/test_pipeline.py",
    "tests/ltx/test_download.py",
    "tests/ltx/test_doctor.py",
)
NOT_OLDER = ("test_pictures_come_back",)  # reads the file back with flags that PyAV has since 18


def wanted(which: str) -> list[str]:
    """The lines of requirements.txt, for the lowest set as exact pins."""
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].isalpha()]
    return [re.sub(r">=([\d.]+).*", r"==\1", line) for line in lines] if which == "lowest" else lines


def install(which: str) -> Path:
    """The folder with that set, made anew."""
    folder = SETS / which
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "install", "--no-compile"]
    subprocess.run([*pip, "--no-warn-conflicts", "--target", folder, *wanted(which)], check=True)
    shutil.rmtree(folder / "bin", ignore_errors=True)
    return folder


def run(which: str) -> bool:
    """Whether the tests pass with that set."""
    folder = install(which)
    found = {dist.name: dist.version for dist in metadata.distributions(path=[str(folder)])}
    names = [re.split("[=>]", line)[0].replace("_", "-") for line in wanted(which)]
    known = {name.replace("_", "-"): version for name, version in found.items()}
    sys.stdout.write(f"{which}: {', '.join(f'{name} {known[name]}' for name in names)}\n")
    sys.stdout.flush()
    command = [Path(sys.executable).with_name("pytest"), "-q", "-p", "no:cacheprovider", *TESTS]
    if which == "lowest":
        command += ["-k", " and ".join(f"not {name}" for name in NOT_OLDER)]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


if __name__ == "__main__":
    passed = [run(which) for which in sys.argv[1:] or ("lowest", "newest")]
    sys.exit(0 if all(passed) else 1)
