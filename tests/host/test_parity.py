"""The graph and the command are one pipeline: the same request gives the same frames through both, bit for bit.

Here with what the endpoint adds switched off; test_endpoint_graph.py has it on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from a2v.ltx.media import audio, probe
from a2v.tests.host import graph
from a2v.tests.host.comfy import ROOT, Comfy
from a2v.tests.host.command import REQUEST, run_command
from a2v.tests.tiny import TinyFiles
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """Two images that are neither the video's size nor its shape."""
    generator = torch.Generator().manual_seed(3)
    paths = []
    for name, size in (("parity-first.png", (90, 130)), ("parity-end.png", (201, 77))):
        small = torch.randint(0, 256, (6, 8, 3), generator=generator, dtype=torch.uint8).numpy()
        path = tmp_path / name
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths[0], paths[1]


CASES = {
    "prompt and sound": {"scheduler": "beta", "steps": 2, "size": (192, 128), "seed": 5},
    "everything": {
        "scheduler": "linear_quadratic",
        "steps": 3,
        "size": (128, 192),
        "seed": 2**40 + 1,
        "fps": 29.97,
        "images": (0.7, 0.8),
        "gamma": 2.0,
        "room_noise": -40.0,
        "nag": {"scale": 6.0, "alpha": 0.5, "tau": 2.0},
        "scales": {"cfg": 2.5, "stg": 0.5, "rescale": 0.4, "modality": 1.5},
    },
    "regular": {"scheduler": "beta", "steps": 3, "size": (128, 128), "seed": 6, "acceleration": "regular"},
    "high": {"scheduler": "ltx2", "steps": 5, "size": (128, 128), "seed": 7, "acceleration": "high"},
    "full": {"scheduler": "beta", "steps": 2, "size": (128, 128), "seed": 8, "acceleration": "full"},
    "full with renewed sound": {
        "scheduler": "beta",
        "steps": 2,
        "size": (128, 128),
        "seed": 9,
        "acceleration": "full",
        "audio_strength": 0.5,
    },
}


# tests/nodes/test_steering.py holds that graph and request steer alike at every level, strength and sampler; here the
# case that wires most is left.
SOAK = ("prompt and sound", "regular", "high", "full", "full with renewed sound")


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=name, marks=[pytest.mark.soak] * (name in SOAK)) for name, c in CASES.items()]
)
def test_graph_and_command_give_the_same_frames(
    case: dict, comfy: Comfy, models: TinyFiles, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    speech = ROOT / "assets" / "speech.opus"
    scales = {"cfg": 3.0, "stg": 1.0, "rescale": 0.85, "modality": 3.0, **case.get("scales", {})}
    first, end = case.get("images", (1.0, 1.0))
    images = pictures if "images" in case else ()

    prompt = graph.audio_to_video(
        models,
        comfy.upload(speech),
        image=comfy.upload(pictures[0]) if images else None,
        end_image=comfy.upload(pictures[1]) if images else None,
        prompt=REQUEST["prompt"],
        negative=REQUEST["negative_prompt"],
        size=case["size"],
        seed=case["seed"],
        steps=case["steps"],
        fps=case.get("fps", 24.0),
        frames=17,
        scheduler=case["scheduler"],
        image_strength=first,
        end_image_strength=end,
        gradient_estimation_gamma=case.get("gamma", 0.0),
        prefix="parity",
        acceleration=case.get("acceleration"),
        audio_strength=case.get("audio_strength", 1.0),
        audio_guidance={} if "audio_strength" in case else None,
        room_noise=case.get("room_noise"),
        nag=case.get("nag"),
        **scales,
    )
    prompt["frames as png"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["decode", 0], "filename_prefix": "parity"},
    }
    done = comfy.run(prompt)
    assert done.message is None
    drawn = [np.asarray(Image.open(comfy.path(r))) for r in done.outputs["frames as png"]["images"]]

    request = {
        "seed": case["seed"],
        "video_size": dict(zip(("width", "height"), case["size"], strict=True)),
        "fps": case.get("fps", 24.0),
        "num_inference_steps": case["steps"],
        "scheduler": case["scheduler"],
        "video_cfg_scale": scales["cfg"],
        "video_stg_scale": scales["stg"],
        "video_rescaling_scale": scales["rescale"],
        "video_modality_scale": scales["modality"],
        "gradient_estimation_gamma": case.get("gamma", 0.0),
        "image_strength": first,
        "end_image_strength": end,
        "acceleration": case.get("acceleration", "none"),
        "audio_strength": case.get("audio_strength", 1.0),
        "nag": case.get("nag"),
    }
    files = {
        "checkpoint": models.checkpoint,
        "text-encoder": models.gemma,
        "upscaler": models.upscaler,
        "distill-lora": models.distilled_lora,
        "audio": speech,
    }
    flags = [f"--room-noise={case['room_noise']}"] if "room_noise" in case else []
    expected, video = run_command(tmp_path, request, files, *images, flags=flags)
    assert np.array_equal(np.stack(drawn), expected)
    # The files, too: the same picture stream and the same sound.
    saved = comfy.path(done.outputs["save"]["images"][0])
    ours, theirs = probe.probe(saved), probe.probe(video)
    assert (ours.width, ours.height, ours.frames, ours.fps) == (theirs.width, theirs.height, theirs.frames, theirs.fps)
    assert torch.equal(audio.load_track(saved).waveform, audio.load_track(video).waveform)
