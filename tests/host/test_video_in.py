"""A video that comes in: the graph and the command make the same file of the same source, mask and reference."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from a2v.ltx.media import audio
from a2v.ltx.media.clip import open_clip
from a2v.ltx.media.masks import fitted
from a2v.tests.host import graph
from a2v.tests.host.comfy import ROOT, Comfy, Prompt
from a2v.tests.host.command import REQUEST, run_request
from a2v.tests.ltx.media.clips import write_clip
from a2v.tests.tiny import TinyFiles
from PIL import Image

SIZE = (128, 64)
FRAMES = 22  # the model makes 25 of them, and the file has these
SPEECH = ROOT / "assets" / "speech.opus"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A moving picture that is larger than the video and has another shape, with a tone."""
    time, row, column = np.mgrid[:FRAMES, :90, :170]
    pictures = np.stack([128 + 90 * np.sin((column + 5 * time) / 19), 120 + row, 255 - column], axis=-1)
    tone = 0.3 * np.sin(np.arange(48_000) / 17)
    return write_clip(tmp_path / "video-in-source.mp4", pictures.astype(np.uint8), kind="h264.mp4", sound=(tone, 0.0))


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    picture = np.zeros((90, 170), np.uint8)
    picture[30:, 40:120] = 255
    path = tmp_path / "video-in-mask.png"
    Image.fromarray(picture).save(path)
    return path


def with_clip(comfy: Comfy, models: TinyFiles, source: Path, retake: dict[str, Any], **more: Any) -> Prompt:
    """The usual graph with a source clip in both stages; `retake` are the inputs of Retake."""
    prompt = graph.audio_to_video(
        models,
        comfy.upload(SPEECH),
        prompt=REQUEST["prompt"],
        negative=REQUEST["negative_prompt"],
        size=SIZE,
        seed=4,
        frames=25,
        prefix="video-in",
        stream=True,
        safety={"checker": "off"},
        **more,
    )

    def node(name: str, kind: str, **inputs: Any) -> None:
        prompt[name] = {"class_type": kind, "inputs": inputs, "_meta": {"title": name}}

    node("load", "LoadVideo", file=comfy.upload(source))
    node("clip", "LTXA2VClip", video=["load", 0], fps=24.0)
    given = {"clip": ["clip", 0], "frames": ["clip", 3], "fps": ["clip", 4], "audio": ["clip", 1]}
    node("retake", "LTXA2VRetake", **{**given, **graph.RETAKE, **retake})
    node("keep first", "LTXA2VKeepClip", video_vae=["model", 2], retake=["retake", 0], latent=["size", 0])
    node("keep second", "LTXA2VKeepClip", video_vae=["model", 2], retake=["retake", 0], latent=["upscale", 0])
    prompt["first"]["inputs"]["latent"] = ["keep first", 0]
    prompt["second"]["inputs"]["latent"] = ["keep second", 0]
    prompt["save"]["inputs"]["retake"] = ["retake", 0]
    return prompt


def renewed(prompt: Prompt) -> Prompt:
    """The graph with the clip's own sound, of which the retake renews a part."""
    prompt["sound"]["inputs"] |= {"audio": ["retake", 1], "retake": ["retake", 0]}
    prompt["track"]["inputs"] |= {"audio": ["retake", 1], "retake": ["retake", 0]}
    return prompt


def request(edit: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """What the graph asks for. The length is left to the clip."""
    usual = {name: value for name, value in REQUEST.items() if name not in ("num_frames", "match_audio_length")}
    return {
        **usual,
        "seed": 4,
        "video_size": dict(zip(("width", "height"), SIZE, strict=True)),
        "num_inference_steps": 2,
        "scheduler": "beta",
        "video_cfg_scale": 3.0,
        "video_stg_scale": 1.0,
        "video_rescaling_scale": 0.85,
        "video_modality_scale": 3.0,
        **({"edit": edit} if edit else {}),
        **more,
    }


def files(models: TinyFiles, **more: Path | None) -> dict[str, Path | None]:
    return {
        "checkpoint": models.checkpoint,
        "text-encoder": models.gemma,
        "upscaler": models.upscaler,
        "distill-lora": models.distilled_lora,
        **more,
    }


def commanded(folder: Path, asked: dict[str, Any], given: dict[str, Path | None]) -> Path:
    """The file that the command makes."""
    output = folder / "out.mp4"
    run_request(folder, asked, {**given, "output": output})
    return output


def same(ours: Path, theirs: Path) -> np.ndarray:
    """The frames of two files, which must be the same, and their sound too."""
    clips = [open_clip(path) for path in (ours, theirs)]
    counts = {clip.count(Fraction(24)) for clip in clips}
    assert len(counts) == 1, counts
    (count,) = counts
    found, wanted = (torch.stack(list(clip.pictures(Fraction(24), count))) for clip in clips)
    assert torch.equal(found, wanted)
    assert torch.equal(audio.load_track(ours).waveform, audio.load_track(theirs).waveform)
    return found.numpy()


def made(comfy: Comfy, prompt: Prompt) -> Path:
    done = comfy.run(prompt)
    assert done.message is None, done.message
    return comfy.path(done.outputs["save"]["images"][0])


@pytest.mark.soak
def test_redub_in_a_mask(comfy: Comfy, models: TinyFiles, source: Path, mask: Path, tmp_path: Path) -> None:
    """A new track; the picture changes where the mask is white, and nowhere else."""
    prompt = with_clip(comfy, models, source, {"mask": ["mask", 0], "soften_pixels": 6})
    prompt["mask"] = {"class_type": "LoadImageMask", "inputs": {"image": comfy.upload(mask), "channel": "red"}}
    saved = made(comfy, prompt)
    given = files(models, video=source, mask=mask, audio=SPEECH)
    video = commanded(tmp_path, request({"soften_pixels": 6}), given)
    frames = same(saved, video)
    assert len(frames) == FRAMES
    for path in (saved, video):
        with av.open(str(path)) as container:
            notes = json.loads(container.metadata["comment"])["notes"]
        assert "only the first 0.92 s of the audio's " in "\n".join(notes), path
    pictures = fitted(open_clip(source).pictures(Fraction(24), FRAMES), *SIZE)
    before = np.stack([picture.numpy() for picture in pictures]).astype(int)
    outside, inside = np.abs(frames - before)[:, :, :24], np.abs(frames - before)[:, 40:, 40:80]
    assert outside.mean() < 3 < 10 < inside.mean()


@pytest.mark.soak  # its numbers: tests/ltx/test_goldens_video_in.py
def test_a_time_and_its_sound_anew(comfy: Comfy, models: TinyFiles, source: Path, tmp_path: Path) -> None:
    edit = {"renew": "both", "start": 0.3, "end": 0.6, "soften": 0.1}
    prompt = renewed(with_clip(comfy, models, source, edit, audio_strength=0.9999, audio_guidance={}))
    prompt["sound"]["inputs"]["strength"] = 1.0
    saved = made(comfy, prompt)
    video = commanded(tmp_path, request(edit), files(models, video=source))
    same(saved, video)


# backward, tests/host/test_api_from_video.py has it bit for bit
@pytest.mark.parametrize(
    ("direction", "written"), [("forward", 22 + 16), pytest.param("backward", 22 + 17, marks=pytest.mark.soak)]
)
def test_a_new_part_is_joined_to_the_clip(
    comfy: Comfy, models: TinyFiles, source: Path, tmp_path: Path, direction: str, written: int
) -> None:
    """Picture and sound; of the clip the model sees the context alone."""
    edit = {"extend": direction, "context": 9, "renew": "both"}
    prompt = renewed(with_clip(comfy, models, source, edit, audio_strength=0.9999, audio_guidance={}))
    prompt["sound"]["inputs"]["strength"] = 1.0
    saved = made(comfy, prompt)
    video = commanded(tmp_path, request(edit, num_frames=25), files(models, video=source))
    assert len(same(saved, video)) == written


@pytest.mark.soak
@pytest.mark.parametrize(("frames", "length", "written"), [(41, {}, 34), (49, {"num_frames": 49}, 49)])
def test_more_around_the_clip(
    comfy: Comfy, models: TinyFiles, source: Path, tmp_path: Path, frames: int, length: dict[str, int], written: int
) -> None:
    """The video begins earlier than the clip, and ends with it or later."""
    prompt = with_clip(comfy, models, source, {"begin": 0.5, "frames": ["frames", 0]})
    prompt["frames"]["inputs"]["num_frames"] = frames
    saved = made(comfy, prompt)
    given = files(models, video=source, audio=SPEECH)
    video = commanded(tmp_path, request({"at": 0.5, "renew": "picture"}, **length), given)
    assert len(same(saved, video)) == written


def with_reference(comfy: Comfy, models: TinyFiles, source: Path, use: dict[str, Any], **more: Any) -> Prompt:
    """The usual graph with the clip as the first stage's reference. use: inputs of Reference. more: as for `graph`."""
    prompt = with_clip(comfy, models, source, {"end": 0.5}, **more)
    for name in ("retake", "keep first", "keep second"):
        del prompt[name]
    prompt["first"]["inputs"]["latent"], prompt["second"]["inputs"]["latent"] = ["size", 0], ["upscale", 0]
    del prompt["save"]["inputs"]["retake"]
    prompt["reference"] = {
        "class_type": "LTXA2VReference",
        "inputs": {"video_vae": ["model", 2], "clip": ["clip", 0], "latent": ["size", 0], "audio": ["sound", 0], **use},
    }
    prompt["first"]["inputs"]["references"] = ["reference", 0]
    prompt["size"]["inputs"] |= {"width": 256, "height": 128}
    return prompt


def referred(use: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The request of that graph."""
    size = {"width": 256, "height": 128}
    return request(reference=use, video_size=size, num_frames=25, match_audio_length=False, **more)


@pytest.mark.soak  # over HTTP: test_api_from_video.py
def test_a_reference(comfy: Comfy, models: TinyFiles, source: Path, tmp_path: Path) -> None:
    use = {"strength": 0.9, "attention": 0.6, "downscale": 2, "stride": 1}
    saved = made(comfy, with_reference(comfy, models, source, use))
    video = commanded(tmp_path, referred(use), files(models, reference=source, audio=SPEECH))
    same(saved, video)


def test_a_reference_with_its_sound_in_both_stages(
    comfy: Comfy, models: TinyFiles, source: Path, tmp_path: Path
) -> None:
    use = {"strength": 1.0, "attention": 1.0, "downscale": 1, "stride": 1}
    prompt = with_reference(comfy, models, source, use)
    again = {**prompt["reference"]["inputs"], "latent": ["upscale", 0]}
    prompt["reference again"] = {"class_type": "LTXA2VReference", "inputs": again}
    prompt["second"]["inputs"]["references"] = ["reference again", 0]
    for stage, inputs in (
        ("first", {"audio": ["sound", 0], "sound": ["clip", 1], "audio_vae": ["model", 3]}),
        ("second", {"audio": ["first", 2]}),
    ):
        prompt[f"hear {stage}"] = {"class_type": "LTXA2VReferenceSound", "inputs": inputs}
        prompt[stage]["inputs"]["audio"] = [f"hear {stage}", 0]
    saved = made(comfy, prompt)
    asked = referred({**use, "stages": "both", "sound": True})
    video = commanded(tmp_path, asked, files(models, reference=source, audio=SPEECH))
    same(saved, video)


@pytest.mark.soak  # the numbers: tests/ltx/test_reference_sound.py
def test_a_voice_that_is_led_to_its_example(comfy: Comfy, models: TinyFiles, source: Path, tmp_path: Path) -> None:
    use = {"strength": 1.0, "attention": 1.0, "downscale": 1, "stride": 1}
    scales = {"cfg": 7.0, "stg": 0.0, "rescale": 0.7, "modality": 3.0, "stg_blocks": "auto", "identity": 3.0}
    prompt = with_reference(comfy, models, source, use, audio_strength=0.5, audio_guidance=scales)
    heard = {"audio": ["sound", 0], "sound": ["clip", 1], "audio_vae": ["model", 3]}
    prompt["hear"] = {"class_type": "LTXA2VReferenceSound", "inputs": heard}
    prompt["first"]["inputs"]["audio"] = ["hear", 0]
    saved = made(comfy, prompt)
    asked = referred({**use, "sound": True, "identity": 3.0}, audio_strength=0.5)
    video = commanded(tmp_path, asked, files(models, reference=source, audio=SPEECH))
    same(saved, video)
