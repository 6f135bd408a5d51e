"""LTX-2.5 through the same nodes on a real server: the frames are the command's, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from a2v.tests.host import graph
from a2v.tests.host.comfy import ROOT, Comfy
from a2v.tests.host.command import REQUEST, run_command
from a2v.tests.host.test_parity import pictures
from a2v.tests.tiny import TinyFiles
from a2v.tests.tiny25 import Tiny25Files, write_tiny25
from PIL import Image

__all__ = ("pictures",)
FOLDERS = {
    "transformer": "diffusion_models",
    "text_encoder": "text_encoders",
    "video_vae": "vae",
    "diffusion_vae": "vae",
    "audio_vae": "vae",
    "upscaler": "latent_upscale_models",
    "distilled_lora": "loras",
    "camera_lora": "loras",
}
CASES: dict[str, dict[str, Any]] = {
    "dev": {"seed": 5, "images": (1.0, 0.8), "vae": "video_vae"},
    "distilled and the diffusion decoder": {"seed": 6, "images": (), "vae": "diffusion_vae", "acceleration": "full"},
}


@pytest.fixture(scope="module")
def files(comfy_base: Path, comfy: Comfy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny LTX-2.5 in the server's model folders, as they are published."""
    written: Tiny25Files = write_tiny25(tmp_path_factory.mktemp("tiny25"), vae_width=4)
    placed = {}
    for name, folder in FOLDERS.items():
        source = getattr(written, name)
        placed[name] = comfy_base / "models" / folder / source.name
        placed[name].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, placed[name])
    placed["distilled"] = placed["transformer"].with_name("ltx-2.5-tiny-distilled-transformer.safetensors")
    shutil.copyfile(written.transformer, placed["distilled"])
    return placed


@pytest.mark.parametrize("name", ["dev", "distilled and the diffusion decoder"])
@pytest.mark.soak
def test_graph_and_command_give_the_same_frames(
    name: str, comfy: Comfy, files: dict[str, Path], pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    case = CASES[name]
    speech, checkpoint = (
        ROOT / "assets" / "speech.opus",
        files["distilled" if "acceleration" in case else "transformer"],
    )
    images = pictures if case["images"] else ()
    first, end = case["images"] or (1.0, 1.0)
    models = TinyFiles(
        checkpoint, files["upscaler"], files["distilled_lora"], files["camera_lora"], files["text_encoder"]
    )
    prompt = graph.audio_to_video(
        models,
        comfy.upload(speech),
        image=comfy.upload(pictures[0]) if images else None,
        end_image=comfy.upload(pictures[1]) if images else None,
        prompt=REQUEST["prompt"],
        size=(128, 128),
        seed=case["seed"],
        frames=17,
        image_strength=first,
        end_image_strength=end,
        acceleration=case.get("acceleration"),
        prefix="parity25",
    )
    prompt["model"]["inputs"] |= {"video_vae": files[case["vae"]].name, "audio_vae": files["audio_vae"].name}
    prompt["decode"]["inputs"]["noise"] = ["second", 1]
    prompt["frames as png"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["decode", 0], "filename_prefix": "parity25"},
    }
    done = comfy.run(prompt)
    assert done.message is None
    drawn = [np.asarray(Image.open(comfy.path(r))) for r in done.outputs["frames as png"]["images"]]

    request = {
        "seed": case["seed"],
        "video_size": {"width": 128, "height": 128},
        "num_inference_steps": 2,
        "image_strength": first,
        "end_image_strength": end,
        "acceleration": case.get("acceleration", "none"),
    }
    given = {
        "checkpoint": checkpoint,
        "text-encoder": files["text_encoder"],
        "video-vae": files[case["vae"]],
        "audio-vae": files["audio_vae"],
        "upscaler": files["upscaler"],
        "distill-lora": None if "acceleration" in case else files["distilled_lora"],
        "audio": speech,
    }
    expected, _ = run_command(tmp_path, request, given, *images)
    assert np.array_equal(np.stack(drawn), expected)


def test_files_that_do_not_belong_together_are_told(comfy: Comfy, files: dict[str, Path], models: TinyFiles) -> None:
    """Before anything is sampled: the text encoder, a LoRA, and the upscaler of the other version."""
    mine = TinyFiles(
        files["transformer"], files["upscaler"], files["distilled_lora"], files["camera_lora"], files["text_encoder"]
    )
    speech = comfy.upload(ROOT / "assets" / "speech.opus")
    for name, value, words in (
        # First: a Load Model that ComfyUI has cached does not look at the graph again, and Latent Upscale refuses then.
        ("upscaler", {"file": models.upscaler.name}, ("is the upscaler of LTX-2.3", "is LTX-2.5")),
        ("gemma", {"folder": models.gemma.name}, ("Gemma 3", files["transformer"].name)),
        ("distilled", {"lora": models.distilled_lora.name}, ("made for LTX-2.3", "is LTX-2.5")),
    ):
        prompt = graph.audio_to_video(mine, speech)
        prompt["model"]["inputs"] |= {"video_vae": files["video_vae"].name, "audio_vae": files["audio_vae"].name}
        prompt[name]["inputs"] |= value
        done = comfy.run(prompt)
        assert done.message is not None
        assert all(word in str(done.message) for word in words), done.message
        assert done.error["node_type"] != "LTXA2VLatentUpscale" and "first" not in done.error["executed"], done.error
