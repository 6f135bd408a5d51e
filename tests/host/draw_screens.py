"""Photographs the shipped workflows as they open, at 1600x1000: `python tests/host/draw_screens.py [NAME ...]`.

Both renderings of the frontend that runs here, of the host in LTX_A2V_HOST or of the pinned one; the canvas alone where
Nodes 2.0 is an experiment yet. Written are
assets/screens/FRONTEND/RENDERING/NAME.jpg, with the workflows' names in workflows/api. Exit status: 0; 1 if there is no
browser.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import sys
import tempfile
import types
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# the pack's name outside ComfyUI, as in tests/conftest.py
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules.setdefault("a2v", alias)

from a2v.tests.host.browser import Frontend, browser_path
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.draw_workflows import FRONTEND, INPUTS, JPEG_QUALITY, opening_file
from a2v.tests.host.drawing.measure import DRAWN, FINISHED, RENDER
from a2v.tests.host.drawing.variants import VARIANTS, Variant
from packaging.version import Version
from PIL import Image

SCREENS = ROOT / "assets" / "screens"
RENDERINGS = {"canvas": False, "nodes-2": True}
SETTLING = 1500  # milliseconds until pictures and notes have their sizes


def photograph(frontend: Frontend, variant: Variant, path: Path) -> None:
    """Writes a picture of the opening face of that workflow. The frontend shows it whole, as it does for a person."""
    frontend.load(json.loads(opening_file(variant).read_text(encoding="utf-8")))
    frontend.page.wait_for_timeout(SETTLING)
    frontend.page.wait_for_function(DRAWN)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        frontend.page.screenshot(path=shot)
        with Image.open(shot) as picture:
            picture.convert("RGB").save(path, quality=JPEG_QUALITY, optimize=True)


def main(names: list[str]) -> int:
    chromium = browser_path()
    if not chromium:
        sys.stderr.write("draw: no chromium here; `apt-get install chromium` brings it\n")
        return 1
    with tempfile.TemporaryDirectory() as base, Comfy(Path(base)) as server:
        for file in INPUTS:
            server.upload(file)
        with Frontend(server.url, chromium, width=1600, height=1000) as frontend:
            for rendering, nodes2 in RENDERINGS.items():
                if nodes2 and Version(version(FRONTEND)) < FINISHED:
                    continue
                frontend.page.evaluate(RENDER, nodes2)
                for variant in VARIANTS:
                    if not names or variant.name in names:
                        path = SCREENS / version(FRONTEND) / rendering / f"{variant.name}.jpg"
                        photograph(frontend, variant, path)
                        sys.stdout.write(f"draw: {path.relative_to(ROOT)} written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
