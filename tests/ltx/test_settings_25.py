"""The request's settings act on LTX-2.5 as on LTX-2.3: levels, restart, audio strength, and kept contexts."""

from __future__ import annotations

import shutil
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx import encoding, pipeline
from a2v.ltx.diffusion.block import Block
from a2v.ltx.diffusion.steering import INERT
from a2v.ltx.encoding import Prompts
from a2v.ltx.job import Compute, Files, prepare
from a2v.ltx.models import MODELS, V25
from a2v.ltx.request import parse
from a2v.ltx.trace import Recorder
from a2v.tests.ltx.loaded import loaded_once
from a2v.tests.tiny25 import Tiny25Files, write_tiny25
from torch import Tensor

from .goldens import relative

pytest.importorskip("transformers", minversion="5.10.1")
REQUEST = {
    "prompt": "a woman speaks", "video_size": {"width": 64, "height": 64}, "num_frames": 9, "seed": 3,
    "match_audio_length": False, "num_inference_steps": 4, "use_multiscale": False, "use_restart_sampling": False,
    "enable_prompt_expansion": False, "enable_safety_checker": False,
}  # fmt: skip
COMPUTE = Compute(torch.float32)


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    with loaded_once():
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tiny25")
    with wave.open(str(folder / "sound.wav"), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(torch.randint(-9000, 9000, (16000,), dtype=torch.int16).numpy().tobytes())
    written: Tiny25Files = write_tiny25(folder, layers=4, vae_width=4)
    return Files(
        checkpoint=written.transformer,
        text_encoder=written.text_encoder,
        audio=folder / "sound.wav",
        output=folder / "out.mp4",
        video_vae=written.video_vae,
        audio_vae=written.audio_vae,
    )


@pytest.fixture(scope="module")
def prompts(files: Files) -> Prompts:
    with torch.inference_mode():
        return encoding.encode_prompts(prepare(files, parse(REQUEST)), COMPUTE, None, lambda *_: None)


class Run:
    """What a job made: its trace, its report, and how many rows its blocks ran."""

    def __init__(self, files: Files, prompts: Prompts | None, **request: Any) -> None:
        recorder, rows, enter = Recorder(), [], Block.forward

        def watched(block: Block, video: Tensor, *inputs: Any) -> Any:
            rows.append(len(video))
            return enter(block, video, *inputs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Block, "forward", watched)
            done = pipeline.run(
                files, parse({**REQUEST, **request}), COMPUTE, stg_blocks=(1,), prompts=prompts, trace=recorder
            )
        self.trace, self.report, self.rows = recorder.tensors, done.report, sum(rows)
        self.latent = recorder.tensors["final/video_latent"]


@pytest.fixture(scope="module")
def plain(files: Files, prompts: Prompts) -> Run:
    return Run(files, prompts)


def test_levels_leave_out_what_they_promise(files: Files, prompts: Prompts, plain: Run) -> None:
    """As for 2.3: fewer blocks, and a latent that stays near the exact one."""
    assert plain.rows == 4 * (4 + 4 + 3 + 4)  # STG's pass shares the first block with the positive one
    for level in ("regular", "high"):
        run = Run(files, prompts, acceleration=level)
        assert run.rows < 0.9 * plain.rows and run.report["used"]["acceleration"] == level
        assert 0 < relative(run.latent, plain.latent) < 0.6


def test_full_needs_2_5_s_distilled_model(files: Files, prompts: Prompts, tmp_path: Path, refusal: Callable) -> None:
    with refusal("acceleration: full", MODELS[V25.distilled_lora].name):
        prepare(files, parse({**REQUEST, "acceleration": "full"}))
    distilled = tmp_path / "ltx-2.5-22b-distilled-transformer.safetensors"
    shutil.copy(files.checkpoint, distilled)
    run = Run(replace(files, checkpoint=distilled), prompts, acceleration="full", use_restart_sampling=True)
    assert run.report["used"]["steps"] == 8 and run.report["used"]["model_version"].startswith("2.5")
    assert run.rows == 8 * 4 and INERT in run.report["notes"]
    assert "s1/step0/noise_video" in run.trace


def test_restart_renews_the_noise(files: Files, prompts: Prompts, plain: Run) -> None:
    run = Run(files, prompts, use_restart_sampling=True)
    assert run.latent.isfinite().all() and relative(run.latent, plain.latent) > 1e-3


def test_below_strength_1_there_is_new_sound(files: Files, prompts: Prompts, plain: Run) -> None:
    run = Run(files, prompts, audio_strength=0.5)
    given = run.trace["audio/latent"]
    made = run.trace["final/audio_latent"]
    assert made.isfinite().all() and relative(made, given[:, :, : made.shape[2]]) > 1e-2
    kept = plain.trace["final/audio_latent"]
    assert torch.equal(kept, plain.trace["audio/latent"][:, :, : kept.shape[2]])
    assert relative(run.latent, plain.latent) > 1e-3


def test_a_kept_prompt_needs_no_gemma(
    files: Files, plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = replace(files, contexts=tmp_path / "cache")
    first = Run(kept, None, num_inference_steps=1)
    monkeypatch.setattr(encoding, "load_gemma", lambda *_, **__: pytest.fail("Gemma was loaded"))
    assert torch.equal(Run(kept, None, num_inference_steps=1).latent, first.latent)


@pytest.mark.parametrize("distilled", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["dev", "distilled"])
def test_a_film_in_windows(files: Files, prompts: Prompts, tmp_path: Path, distilled: bool) -> None:
    """Each window is a clip of its own, also for the keyframe vector; an ended run goes on to the same frames."""
    output = replace(files, output=tmp_path / "film.mp4")
    if distilled:
        checkpoint = tmp_path / "ltx-2.5-22b-distilled-transformer.safetensors"
        shutil.copy(files.checkpoint, checkpoint)
        output = replace(output, checkpoint=checkpoint)
    film = {"num_frames": 57, "windows": {"frames": 25, "overlap": 1}, "acceleration": "full" if distilled else "none"}
    run = Run(output, prompts, **film)
    assert run.report["used"]["windows"] == {"count": 3, "frames": 25, "overlap": 1, "pauses": True}
    assert run.latent.isfinite().all() and run.trace["final/frames_u8"].shape[0] == 57
    for window in range(3):
        marked = run.trace[f"s1/window{window}/keyframes_mask_video"].reshape(-1, 4)
        assert marked[0].eq(1).all() and marked[1:].eq(0).all()

    def stop(phase: str, done: int, total: int) -> None:
        if phase.startswith("sample, window 3"):
            raise KeyboardInterrupt

    request = parse({**REQUEST, **film})
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(output, request, COMPUTE, stg_blocks=(1,), prompts=prompts, progress=stop)
    recorder = Recorder()
    pipeline.run(output, request, COMPUTE, stg_blocks=(1,), prompts=prompts, trace=recorder, resume=True)
    assert torch.equal(recorder.tensors["final/frames_u8"], run.trace["final/frames_u8"])
    assert "s1/window1/sigmas" not in recorder.tensors and "s1/window2/sigmas" in recorder.tensors
