"""The forecast of LTX-2.5 counts the texts' keys and values that a stage keeps."""

from __future__ import annotations

import wave
from dataclasses import replace

import pytest
import torch
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.passes import kept_texts
from a2v.ltx.edits import ReferenceUse
from a2v.ltx.given import Example
from a2v.ltx.job import Compute, Files, Job, prepare
from a2v.ltx.media.audio import Track
from a2v.ltx.memory import forecast
from a2v.ltx.memory.forecast import estimate
from a2v.ltx.memory.rehearsal import blueprint
from a2v.ltx.nag import Nag
from a2v.ltx.request import parse
from a2v.tests.tiny25 import NONE_OF_THEM, write_tiny25

pytest.importorskip("transformers", minversion="5.10.1")
COMPUTE = Compute(torch.float32)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Its model does not modulate texts by the noise."""
    folder = tmp_path_factory.mktemp("static")
    with wave.open(str(folder / "sound.wav"), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(b"\1\0" * 16000)
    files = write_tiny25(folder, switches=NONE_OF_THEM)
    request = {
        "prompt": "a", "video_size": {"width": 64, "height": 64}, "num_frames": 9, "match_audio_length": False,
        "enable_prompt_expansion": False, "enable_safety_checker": False,
    }  # fmt: skip
    named = {"video_vae": files.video_vae, "audio_vae": files.audio_vae, "upscaler": files.upscaler}
    paths = Files(files.transformer, files.text_encoder, folder / "sound.wav", folder / "out.mp4", **named)
    return prepare(paths, parse(request), stg_blocks=(1,))


@pytest.mark.soak
@pytest.mark.parametrize(("nag", "texts"), [(None, (2, 1)), (Nag(), (3, 2))], ids=str)
def test_each_stage_counts_its_texts(
    job: Job, nag: Nag | None, texts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two in a guided stage, one in the other; with NAG, passes with the prompt read both texts as one tensor."""
    job = replace(job, steering=tuple(replace(stage, nag=nag) for stage in job.steering))
    counted = {phase.name: phase.work for phase in estimate(job, COMPUTE).phases}
    monkeypatch.setattr(forecast, "kept_texts", lambda *_: 0)
    without = {phase.name: phase.work for phase in estimate(job, COMPUTE).phases}
    model = blueprint(lambda: job.checkpoint.transformer(torch.float32))
    first = model.transformer_blocks[0]
    width = sum(attention.to_k.out_features for attention in (first.attn2, first.audio_attn2))
    one = len(model.transformer_blocks) * 2 * 1024 * width * 4
    assert kept_texts(model, 1) == one
    assert {name: work - without[name] for name, work in counted.items() if work != without[name]} == {
        "first stage": texts[0] * one,
        "second stage": texts[1] * one,
    }


@pytest.mark.parametrize(("identity", "texts"), [(0.0, 2), (3.0, 3)])
def test_a_pass_without_the_example_keeps_its_text_by_itself(
    job: Job, identity: float, texts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the others run as one batch, and read both texts as one tensor."""
    asked: list[int] = []
    count = forecast.kept_texts
    monkeypatch.setattr(forecast, "kept_texts", lambda model, number: asked.append(number) or count(model, number))
    request = replace(job.request, audio_strength=0.0)
    first = replace(job.steering[0], audio_guidance=Guidance(7, 0, 0.7, 3, identity=identity))
    example = Example(Track(torch.zeros(2, 16000), 16000), ReferenceUse(sound=True))
    job = replace(job, request=request, steering=(first, job.steering[1]), example=example)
    estimate(job, Compute(torch.float32, "cuda"), 2**40, 2**40)
    assert asked == [texts, 1]


def test_its_gemma_writes_no_prompt(job: Job) -> None:
    """It encodes alone: each layer is called once a prompt, for which page-locking all of them does not pay."""
    asked = replace(job, request=replace(job.request, enable_prompt_expansion=True))
    first = estimate(asked, COMPUTE).phases[0]
    assert first.name == "encode text"
    assert not next(model for model in first.models if model.name == forecast.GEMMA).repeated
