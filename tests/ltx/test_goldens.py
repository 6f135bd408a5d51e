"""The real command against the official pipeline: every golden file from its own parameters, in float32 on the CPU.

Skipped by name where the golden files are not; test_pipeline.py covers the same code on weights that it makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import torch
from a2v.tests.ltx.loaded import loaded_once
from einops import reduce

from .goldens import LIMIT, RUNS, TIGHT, Golden, apart, relative, worst


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    with loaded_once():
        yield


class Run(Golden):
    """A golden file, and what the command made of its parameters."""

    def __init__(self, oracle: Path, name: str, folder: Path) -> None:
        super().__init__(oracle, name)
        self.report, self.output = self.run(folder)


@pytest.fixture(scope="module", params=RUNS)
def golden(request: pytest.FixtureRequest, oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(oracle, request.param, tmp_path_factory.mktemp(request.param))


def test_every_golden_file_has_a_test(oracle: Path) -> None:
    assert sorted(path.stem for path in oracle.glob("*.safetensors")) == sorted(RUNS)


def test_schedules_and_positions(golden: Run) -> None:
    assert worst(golden.differences(r"s[12]/sigmas")) < 1e-7
    assert worst(golden.differences(r"s[12]/positions_(video|audio)")) < 1e-7


def test_sound(golden: Run) -> None:
    assert worst(golden.differences("audio/waveform")) < 1e-6
    assert worst(golden.differences("audio/mel")) < LIMIT
    assert worst(golden.differences("audio/latent")) < LIMIT  # before the trim to the video's length, as there
    assert golden.trace["s1/positions_audio"].shape == golden.file.get_tensor("s1/positions_audio").shape


def test_prompts(golden: Run) -> None:
    assert worst(golden.differences(r"prompt/[01]/(video|audio)_enc")) < TIGHT
    assert worst(golden.differences(r"prompt/[01]/mask")) == 0


def test_images(golden: Run) -> None:
    if golden.info["first"] < 0 and golden.info["last"] < 0:
        assert not [name for name in golden.trace if name.startswith("cond/")]
        return
    # The pixels went through the H.264 encoder of this machine's PyAV: first see that it is the same.
    assert worst(golden.differences(r"cond/\d/pixels")) < 1e-6, "another H.264 library than the golden files'"
    assert worst(golden.differences(r"cond/\d/latent")) < TIGHT
    images = [name for name in golden.trace if name.startswith("cond/")]
    assert sorted(images) == [name for name in golden.names if name.startswith("cond/")]


@pytest.mark.parametrize("stage", ("s1", "s2"))
@pytest.mark.parametrize("kind", ("in_video", "x0_video", "out_video"))
def test_steps(golden: Golden, stage: str, kind: str) -> None:
    differences = golden.differences(rf"{stage}/step\d+/{kind}")
    assert worst(differences) < LIMIT
    assert worst(differences) < TIGHT, differences


def test_frozen_audio(golden: Run) -> None:
    assert worst(golden.differences(r"s[12]/step\d+/(in|x0|out)_audio")) < LIMIT


def test_each_guidance_pass(golden: Run) -> None:
    """The order of passes, their timesteps and predictions; one golden file has them."""
    if not any("/call" in name for name in golden.names):
        assert golden.info["scheduler"] != "beta"
        return
    differences = golden.differences(r"s[12]/step\d+/call\d/.*")
    assert worst(differences) < LIMIT
    calls = [name for name in golden.trace if "/call" in name]
    assert sorted(calls) == [name for name in golden.names if "/call" in name]


def test_upscaled_and_final_latent(golden: Run) -> None:
    differences = golden.differences(r"up/.*|final/video_latent")
    assert len(differences) == 5
    assert worst(differences) < LIMIT
    assert worst(differences) < TIGHT, differences


def test_frames(golden: Run) -> None:
    assert golden.frames.dtype == torch.uint8
    assert apart(golden.trace["final/frames_u8"], golden.frames) <= 0.001


def test_nothing_is_left_out_of_the_trace(golden: Run) -> None:
    """Every name of the golden file is in ours."""
    assert [name for name in golden.names if name not in golden.trace] == []


def test_the_file(golden: Run) -> None:
    """The finished file has the frames of the trace, seen by FFmpeg's decoder, at the golden's size and rate."""
    with av.open(str(golden.output)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert float(video.average_rate) == golden.info["fps"]
        assert audio.rate == golden.info["audio_sr"]
        shown = torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video)])
    frames = golden.trace["final/frames_u8"]
    assert shown.shape == frames.shape
    # The frames are noise and lose their colours to 4:2:0; the means of blocks still tell a frame from its neighbours.
    shown, frames = (reduce(x.float(), "f (h a) (w b) c -> f h w c", "mean", a=8, b=8) for x in (shown, frames))
    distance = relative(shown, frames)
    assert distance < 0.05
    assert 2 * distance < min(relative(shown[1:], frames[:-1]), relative(shown[:-1], frames[1:]))
    assert golden.report["seed"] == golden.info["seed"] and golden.report["frames"] == golden.info["frames"]
