"""Draws docs/gallery.md's pictures: each shipped workflow, run on the miniature, as frames under its sound.

`.venv/bin/python tests/host/draw_gallery.py [NAME…]`. The images that a workflow begins or ends with are drawn by the
miniature's own generator of clips. `distilled_fast`, `reference`, `dub`, `cast` and `voice` have none: their files have
no small counterpart.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import shutil
import sys
import tempfile
import types
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# the pack's name outside ComfyUI, as in tests/conftest.py
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules.setdefault("a2v", alias)

import numpy as np
from a2v.ltx.models import MODELS
from a2v.mini import clips, sizes
from a2v.tests.host import demo, draw_demo
from a2v.tests.host.comfy import Comfy, Prompt
from a2v.tests.host.draw_workflows import INPUTS
from a2v.tests.tiny import TinyFiles
from PIL import Image

FACE = clips.Scene(colour="orange", ground="teal", shape="square", place="left", x=-clips.SHIFT)
PROMPTS = {
    "audio_to_video": demo.PROMPT,
    "image_and_audio": FACE.prompt,
    "first_and_last_image": FACE.prompt,
    "camera_move": "a yellow round face on the center is talking on a brown background",
    "song": FACE.prompt,
    "redub": "an orange round face on the center is talking on a teal background",
    "retake": "an orange round face on the center is talking on a teal background",
    "audio_regeneration": "a pink square face on the center is talking on a gray background",
}


TIMELINE = f"0:02.8 [cut] {replace(FACE, colour='yellow', ground='brown', place='center', x=0).prompt}"


def picture(scene: clips.Scene, path: Path) -> Path:
    """The scene with its mouth a little open."""
    frame = clips.render(scene, np.full(1, 0.2, np.float32), 24.0, (demo.SIZE, demo.SIZE))[0]
    Image.fromarray((frame * 255 + 0.5).astype(np.uint8)).save(path)
    return path


def prepared(name: str, models: TinyFiles, images: dict[str, str], audio: str) -> Prompt:
    """The workflow for the miniature, with pictures in their places. A clip is the workflow's own."""
    prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    prompt = demo.fill(prompt, models, audio, PROMPTS[name], None)
    for node in prompt.values():
        if node["class_type"] == "LTXA2VLoadImage":
            node["inputs"]["image"] = images["end" if "End" in node["_meta"]["title"] else "first"]
        elif node["class_type"] == "LTXA2VCameraLora":
            node["inputs"]["camera_lora"] = "dolly_in"
        elif node["class_type"] == "LTXA2VTimeline":
            node["inputs"]["timeline"] = TIMELINE
    return prompt


def main(names: list[str]) -> None:
    base = Path(tempfile.mkdtemp(prefix="a2v-gallery-"))
    models = demo.place_models(base)
    shutil.copyfile(demo.WEIGHTS / sizes.FILES["dolly_in"], base / "models" / "loras" / MODELS["dolly-in"].name)
    with Comfy(base) as server:
        for file in INPUTS:
            server.upload(file)
        audio = demo.SPEECH.name
        ends = {"first": FACE, "end": replace(FACE, colour="pink")}
        images = {key: server.upload(picture(scene, base / f"{key}.png")) for key, scene in ends.items()}
        for name in names or PROMPTS:
            run = server.run(prepared(name, models, images, audio), timeout=900)
            if run.message:
                raise SystemExit(f"{name}: {run.message}")
            (saved,) = [item for output in run.outputs.values() for item in output.get("images", ())]
            strip = draw_demo.strip(*draw_demo.read(server.path(saved))[:2])
            (draw_demo.ASSETS / "gallery").mkdir(exist_ok=True)
            strip.save(draw_demo.ASSETS / "gallery" / f"{name}.jpg", quality=85)
            sys.stdout.write(f"{name}: assets/gallery/{name}.jpg\n")
    shutil.rmtree(base)


if __name__ == "__main__":
    main(sys.argv[1:])
