"""A newcomer's way with LTX-2.5 in a real browser: template, missing files, Run, the command's frames bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from a2v.api.applications.ltx_2_5 import GUIDANCE, GUIDANCE_WITH_IMAGE, QUALITY_RECIPE
from a2v.ltx.models import MODELS
from a2v.ltx.request import NEGATIVE_PROMPT
from a2v.tests.host.api import PLACED_25, write_published_25
from a2v.tests.host.browser import Frontend
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.command import run_command
from a2v.tests.host.draw_workflows import INPUTS
from a2v.tests.host.drawing import faces
from a2v.tests.host.drawing.variants import VARIANTS
from a2v.tests.host.test_newcomer import CHANGE, RUN, missing, open_template, ran, refused
from a2v.tests.host.test_workflows import decoded

CHANGES = {"size": "custom", "width": 128, "height": 128, "length from the audio": False, "frames": 17}
STEPS = 3
SPEECH, IMAGE, *_ = INPUTS


@dataclass(frozen=True)
class Way:
    """request: what the command is told for the same video. vae: the video VAE, by its key."""

    request: Mapping[str, Any]
    checkpoint: str = "dev-2.5"
    vae: str = "video-vae-2.5"


WAYS = {
    "audio_to_video_25": Way({**QUALITY_RECIPE, "num_inference_steps": STEPS, "video_cfg_scale": GUIDANCE}),
    "image_and_audio_25": Way({**QUALITY_RECIPE, "num_inference_steps": STEPS, "video_cfg_scale": GUIDANCE_WITH_IMAGE}),
    "distilled_fast_25": Way({"acceleration": "full"}, "distilled-2.5", "diffusion-vae-2.5"),
}


@pytest.fixture
def bare(comfy: Comfy) -> Iterator[Comfy]:
    """The session's server, without LTX-2.5's published files and without a history, as it is again afterwards."""
    published = [comfy.base / "models" / MODELS[key].folder / MODELS[key].name for key in PLACED_25]
    assert [path for path in published if path.exists()] == []
    comfy.post("/history", {"clear": True}).raise_for_status()
    yield comfy
    for path in published:
        path.unlink(missing_ok=True)


@pytest.mark.soak  # each half is elsewhere: the page's words in test_newcomer.py, the frames in test_parity_25.py
@pytest.mark.parametrize("name", WAYS)
def test_from_the_template_to_the_commands_frames(name: str, bare: Comfy, chromium: str, tmp_path: Path) -> None:
    way = WAYS[name]
    (variant,) = (each for each in VARIANTS if each.name == name)
    with Frontend(bare.url, chromium, width=1600, height=1000) as frontend:
        page = frontend.page
        open_template(page, variant.title)
        said = missing(page)
        for file in faces.files(variant):
            assert f"{file.folder} / {file.name}" in said

        page.locator(RUN).first.click()
        said = refused(page)
        for file in faces.files(variant):
            assert (
                f"'{file.name}' is not in models/{file.folder}: get {file.name} from {MODELS['dev-2.5'].page}" in said
            )
        assert "2.3" not in said

        placed = write_published_25(bare.base, tmp_path / "tiny25")
        for file in INPUTS:
            bare.upload(file)
        page.evaluate("() => app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
        steps = {} if variant.distilled else {"steps": STEPS}
        page.evaluate(CHANGE, {**CHANGES, **steps, "video VAE": MODELS[way.vae].name})
        page.locator(RUN).first.click()
        entry = ran(bare)
        assert entry["status"]["status_str"] == "success", entry["status"]
    (video,) = [item for output in entry["outputs"].values() for item in output.get("images", ())
                if item["type"] == "output"]  # fmt: skip

    request = {
        "prompt": variant.prompt,
        "negative_prompt": NEGATIVE_PROMPT,
        "video_size": {"width": 128, "height": 128},
        "num_frames": 17,
        "seed": 42,
        "preprocess_audio": True,
        **way.request,
    }
    given = {
        "checkpoint": placed[way.checkpoint],
        "text-encoder": placed["text-encoder-2.5"],
        "video-vae": placed[way.vae],
        "audio-vae": placed["audio-vae-2.5"],
        "upscaler": placed["upscaler-2.5"],
        "distill-lora": None if variant.distilled else placed["distilled-lora-2.5"],
        "audio": SPEECH,
    }
    frames, expected = run_command(tmp_path, request, given, *[IMAGE] * len(variant.images))
    assert len(frames) == 17 and frames.std() > 1
    assert decoded(bare.path(video)) == decoded(expected)
