"""What a job is said to take before anything is loaded, against what it takes: measured in a process of its own."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx import pipeline
from a2v.ltx.diffusion.conditioning import AudioCondition
from a2v.ltx.diffusion.decode import Tiling
from a2v.ltx.errors import InputError
from a2v.ltx.memory import forecast as memory
from a2v.ltx.memory.forecast import Part, Stage, bytes_of, estimate, peak
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx.measure import GUIDANCE, job_of, run
from a2v.tests.tiny import TinyFiles, write_tiny
from torch import nn

LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
WITHIN = 0.10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    with wave.open(str(folder / "sound.wav"), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(b"\1\0" * 16000 * 6)
    return folder


@pytest.fixture(scope="module")
def tiny(folder: Path) -> TinyFiles:
    return write_tiny(folder / "tiny", layers=3)


@pytest.fixture(scope="module")
def wide(folder: Path) -> TinyFiles:
    """Each stage some hundred MB."""
    return write_tiny(folder / "wide", layers=4, heads=8, head_dim=64, gemma_layers=14, gemma_width=1024, vae_width=24)


def described(folder: Path, files: TinyFiles, dtype: str | None = None, **request: Any) -> dict[str, Any]:
    """A job as measure.py takes it."""
    paths = {
        "checkpoint": files.checkpoint,
        "text_encoder": files.gemma,
        "audio": folder / "sound.wav",
        "output": folder / "out.mp4",
        "upscaler": files.upscaler,
        "distill_lora": files.distilled_lora,
    }
    asked = {
        "prompt": "a person speaks",
        "match_audio_length": False,
        "num_frames": 9,
        "video_size": (64, 64),
        **request,
    }
    return {"files": {name: str(path) for name, path in paths.items()}, "request": asked, "dtype": dtype}


def stage_of(preflight: memory.Preflight, name: str) -> Stage:
    return next(stage for stage in preflight.stages if stage.name == name)


CLIPS = {
    "encode text": (None, {}),
    "sample": ("float32", {"num_frames": 65, "video_size": (512, 512), "use_multiscale": False}),
    "decode": ("float32", {"num_frames": 41, "video_size": (256, 256), "use_multiscale": False}),
}


@pytest.fixture(scope="module")
def jobs(folder: Path, tiny: TinyFiles, wide: TinyFiles) -> dict[str, dict[str, Any]]:
    # A convolution keeps code for every shape it met, so the decoder's warm clip is as large.
    small = {"num_frames": 9, "video_size": (64, 64), "use_multiscale": False}
    return {
        stage: described(folder, wide, dtype, **request)
        | {"warm": described(folder, tiny, dtype, **(request if stage == "decode" else small))}
        for stage, (dtype, request) in CLIPS.items()
    }


@pytest.fixture(scope="module")
def took(jobs: dict[str, dict[str, Any]]) -> dict[str, int]:
    return dict(zip(jobs, run(*jobs.items()), strict=True))


@LINUX
@pytest.mark.parametrize("stage", CLIPS)
def test_the_estimate_is_what_is_measured(jobs: dict[str, dict[str, Any]], took: dict[str, int], stage: str) -> None:
    dtype = getattr(torch, CLIPS[stage][0] or "", None)
    preflight = estimate(job_of(jobs[stage]), pipeline.sample, guidance=GUIDANCE, dtype=dtype)
    found = stage_of(preflight, stage)
    assert took[stage] > 100e6, "too little to tell"
    assert abs(found.peak / took[stage] - 1) <= WITHIN, f"{found}: {took[stage] / 1e6:.0f} MB measured"


@CUDA
@pytest.mark.parametrize("stage", ["sample", "decode"])
def test_the_estimate_is_what_is_allocated_on_a_gpu(folder: Path, wide: TinyFiles, stage: str) -> None:
    _, request = CLIPS[stage]
    job = job_of(described(folder, wide, "bfloat16", **request))
    preflight = estimate(job, pipeline.sample, guidance=GUIDANCE, dtype=torch.bfloat16, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.inference_mode():
        if stage == "decode":
            vae = job.checkpoint.video_vae(torch.bfloat16, "cuda")
            for _ in pipeline.decode_video(vae, torch.zeros(1, 128, 6, 8, 8)):
                pass
        else:
            model = job.checkpoint.transformer(torch.bfloat16, "cuda")
            latent = torch.zeros(1, 128, 9, 16, 16)
            audio = AudioCondition(torch.zeros(1, 8, 68, 16), 65, job.plan.fps)
            memory.rehearse_step(pipeline.sample, model, latent, audio, GUIDANCE, room=0.0)
    took = torch.cuda.max_memory_allocated() - before
    assert abs(stage_of(preflight, stage).peak / took - 1) <= WITHIN


def test_a_rehearsal_counts_what_is_alive_at_once() -> None:
    """Against sums made by hand."""
    unit = 4 * 2**20

    def work() -> torch.Tensor:
        a = torch.empty(2**20)  # 1
        b = a * 2  # 2
        c = (a + b).view(1024, 1024)  # 3, and a view is none
        del a, b  # 1
        d = c.add_(1)  # in place: 1
        return torch.cat((c, d))  # 3

    assert peak(work) == 3 * unit
    assert peak(lambda: [torch.empty(2**20) for _ in range(5)]) == 5 * unit
    assert peak(lambda: [torch.empty(2**20).sum() for _ in range(5)]) < 1.1 * unit
    layer = nn.Linear(1024, 4096)
    assert peak(lambda: layer(torch.empty(1024, 1024))) == 5 * unit  # the weights are given
    small, sized = torch.zeros(1000), torch.empty(2**20, device="meta")
    for given in (small, sized):
        assert peak(lambda given=given: given.view(8, -1).mT) == 0  # and so are views of them
    # No sum is lost for coming to lie where the stand-in of a given tensor was.
    assert peak(lambda: [small + 1 for _ in range(100)]) == 100 * small.nbytes
    q = torch.empty(1, 8, 4096, 32)
    assert peak(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == q.nbytes  # no 4096 × 4096 scores


def test_a_rehearsal_knows_masks_and_small_numbers() -> None:
    def work() -> list[float]:
        latent = torch.empty(1, 128, 16, 18, 32)
        mask = torch.ones_like(latent[:, :1])
        mask[:, :, :1] = 0.25
        levels, index = torch.unique(mask.flatten(), return_inverse=True)
        assert latent.isfinite().all()
        assert latent.is_meta and not mask.is_meta and len(index) == mask.numel()
        found.extend(levels.tolist())

    found: list[float] = []
    peak(work)
    assert found == [0.25, 1.0]


def test_nothing_is_read_but_headers(wide: TinyFiles) -> None:
    module = memory.blueprint(lambda: load_checkpoint(wide.checkpoint).transformer(torch.float32))
    real = load_checkpoint(wide.checkpoint).transformer(torch.float32)
    assert memory.weights(module) == bytes_of(real.parameters())
    assert all(p.is_meta for p in module.parameters() if p.numel() > memory.SMALL)


def test_fp8_halves_what_the_blocks_take(wide: TinyFiles) -> None:
    checkpoint = load_checkpoint(wide.checkpoint)
    half, quarter = (
        memory.weights(
            memory.blueprint(lambda fp8=fp8: checkpoint.transformer(torch.bfloat16, fp8=fp8)).transformer_blocks
        )
        for fp8 in (False, True)
    )
    assert 0.5 <= quarter / half < 0.52


def test_the_text_encoder_s_bytes_are_those_of_its_file(wide: TinyFiles) -> None:
    file = wide.gemma / "model.safetensors"
    for dtype, factor in ((None, 1), (torch.float32, 2)):
        part, language = memory.text_encoder(wide.gemma, dtype)
        assert abs(part.size / (factor * file.stat().st_size) - 1) < 1e-3  # the file has a header as well
        assert len(part.blocks) == len(language.layers) == 14 and sum(part.blocks) < part.size
    assert language.config.hidden_size == 1024
    (wide.gemma / "broken.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(InputError, match=r"broken.*download"):
        memory.text_encoder(wide.gemma / "broken.safetensors", None)
    (wide.gemma / "broken.safetensors").unlink()


def test_what_does_not_fit_is_made_to(folder: Path, wide: TinyFiles) -> None:
    job, alone = (
        job_of(described(folder, wide, num_frames=121, video_size=(512, 384), use_multiscale=both))
        for both in (True, False)
    )

    def on_gpu(free: float, offload: str = "auto", job: pipeline.Job = job) -> memory.Preflight:
        return estimate(
            job,
            pipeline.sample,
            guidance=GUIDANCE,
            dtype=torch.bfloat16,
            device="cuda",
            free=int(free),
            offload=offload,
        )

    ample = on_gpu(1e12)
    assert [stage.name for stage in ample.stages] == [
        "encode text", "encode sound", "first pass", "upscale", "second pass", "decode",
    ]  # fmt: skip
    assert all(stage.fits and not stage.remedy and not stage.offloaded for stage in ample.stages)
    assert ample.tiling == Tiling() and not ample.offloaded("transformer")
    assert on_gpu(1e12) == ample  # to the byte
    sampling = stage_of(on_gpu(1e12, job=alone), "sample")
    apart = stage_of(on_gpu(sampling.peak - 1, job=alone), "sample")
    assert apart.remedy == "guidance passes one by one" and apart.work < 0.8 * sampling.work

    transformer = sampling.parts[0]
    tight = on_gpu(transformer.size)
    assert tight.offloaded("transformer") and stage_of(tight, "second pass").offloaded
    assert stage_of(tight, "first pass").weights == transformer.visiting < transformer.size
    assert "blocks wait in host memory" in str(tight)
    assert not on_gpu(transformer.size, "none", alone).offloaded("transformer")

    assert on_gpu(1e12, "blocks", alone).offloaded("Gemma")
    small = on_gpu(stage_of(ample, "decode").peak * 0.7, job=alone)
    assert small.tiling.pixels * small.tiling.frames < 768 * 80 and stage_of(small, "decode").fits
    assert f"in tiles of {small.tiling}" in str(small)
    none = on_gpu(1e6, job=alone)
    assert not stage_of(none, "decode").fits and "may not fit even so" in str(none)
    with pytest.raises(InputError, match="offload"):
        on_gpu(1e12, "all")


def test_visiting_is_the_rest_and_the_two_largest_blocks() -> None:
    assert Part("x", 100, (10, 30, 20)).visiting == 40 + 50
    assert Part("x", 100).visiting == 100


def test_free_memory_is_told() -> None:
    assert 0 < memory.free_memory("cpu") < 2**62
    assert memory.free_memory("meta") == 2**63
