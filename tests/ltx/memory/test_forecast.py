"""What a job is said to take before anything is loaded, against what it takes: measured in a process of its own."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion.conditioning import AudioCondition
from a2v.ltx.diffusion.decode import Tiling, decode_video
from a2v.ltx.diffusion.guidance import NONE
from a2v.ltx.errors import InputError
from a2v.ltx.job import Compute, Job
from a2v.ltx.memory.encoder import text_encoder
from a2v.ltx.memory.forecast import Forecast, Phase, Resident, estimate
from a2v.ltx.memory.rehearsal import SMALL, blueprint, bytes_of, peak, weights
from a2v.ltx.memory.work import clip_encoding, one_step
from a2v.ltx.prompt.gemma import load_gemma
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx.measure import GUIDANCE, job_of, run
from a2v.tests.ltx.media.clips import plain, write_clip
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
    """Each phase some hundred MB."""
    return write_tiny(folder / "wide", layers=4, heads=8, head_dim=64, gemma_layers=6, gemma_width=1024, vae_width=24)


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


def phase_of(forecast: Forecast, name: str) -> Phase:
    return next(phase for phase in forecast.phases if phase.name == name)


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
        phase: described(folder, wide, dtype, **request)
        | {"warm": described(folder, tiny, dtype, **(request if phase == "decode" else small))}
        for phase, (dtype, request) in CLIPS.items()
    }


@pytest.fixture(scope="module")
def took(jobs: dict[str, dict[str, Any]]) -> dict[str, int]:
    return dict(zip(jobs, run(*jobs.items()), strict=True))


@LINUX
@pytest.mark.parametrize("phase", CLIPS)
def test_the_estimate_is_what_is_measured(jobs: dict[str, dict[str, Any]], took: dict[str, int], phase: str) -> None:
    dtype = getattr(torch, CLIPS[phase][0] or "", None)
    forecast = estimate(job_of(jobs[phase]), Compute(dtype))
    found = phase_of(forecast, phase)
    assert took[phase] > 100e6, "too little to tell"
    assert abs(found.peak / took[phase] - 1) <= WITHIN, f"{found}: {took[phase] / 1e6:.0f} MB measured"


@CUDA
@pytest.mark.parametrize("phase", ["sample", "decode"])
def test_the_estimate_is_what_is_allocated_on_a_gpu(folder: Path, wide: TinyFiles, phase: str) -> None:
    _, request = CLIPS[phase]
    job = job_of(described(folder, wide, "bfloat16", **request))
    forecast = estimate(job, Compute(torch.bfloat16, "cuda"))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.inference_mode():
        if phase == "decode":
            vae = job.checkpoint.video_decoder(torch.bfloat16, "cuda")
            for _ in decode_video(vae, torch.zeros(1, 128, 6, 8, 8)):
                pass
        else:
            model = job.checkpoint.transformer(torch.bfloat16, "cuda")
            latent = torch.zeros(1, 128, 9, 16, 16)
            audio = AudioCondition(torch.zeros(1, 8, 68, 16), 65, job.plan.fps)
            one_step(model, latent, audio, (GUIDANCE, NONE))
    took = torch.cuda.max_memory_allocated() - before
    assert abs(phase_of(forecast, phase).peak / took - 1) <= WITHIN


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
    module = blueprint(lambda: load_checkpoint(wide.checkpoint).transformer(torch.float32))
    real = load_checkpoint(wide.checkpoint).transformer(torch.float32)
    assert weights(module) == bytes_of(real.parameters())
    assert all(p.is_meta for p in module.parameters() if p.numel() > SMALL)


def test_fp8_halves_what_the_blocks_take(wide: TinyFiles) -> None:
    checkpoint = load_checkpoint(wide.checkpoint)
    half, quarter = (
        weights(blueprint(lambda fp8=fp8: checkpoint.transformer(torch.bfloat16, fp8=fp8)).transformer_blocks)
        for fp8 in (False, True)
    )
    assert 0.5 <= quarter / half < 0.52


def test_the_text_encoder_s_bytes_are_those_of_its_file(wide: TinyFiles) -> None:
    file = wide.gemma / "model.safetensors"
    for dtype, factor in ((None, 1), (torch.float32, 2)):
        size, blocks, language = text_encoder(wide.gemma, dtype)
        assert abs(size / (factor * file.stat().st_size) - 1) < 1e-3  # the file has a header as well
        assert len(blocks) == len(language.layers) == 6 and sum(blocks) < size
    assert language.config.hidden_size == 1024
    for dtype in (torch.bfloat16, torch.float32):
        size, blocks, _ = text_encoder(wide.gemma, dtype, fp8=True)
        model = load_gemma(wide.gemma, dtype, fp8="cpu").model
        assert abs(size / weights(model) - 1) < 1e-3
        assert abs(blocks[0] / weights(model.model.language_model.layers[0]) - 1) < 1e-3
    (wide.gemma / "broken.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(InputError, match=r"broken.*download"):
        text_encoder(wide.gemma / "broken.safetensors", None)
    (wide.gemma / "broken.safetensors").unlink()


def test_what_does_not_fit_is_made_to(folder: Path, wide: TinyFiles) -> None:
    job, alone = (
        job_of(described(folder, wide, num_frames=121, video_size=(512, 384), use_multiscale=both))
        for both in (True, False)
    )

    def on_gpu(free: float, offload: str = "auto", job: Job = job) -> Forecast:
        return estimate(job, Compute(torch.bfloat16, "cuda", offload=offload), int(free))

    ample = on_gpu(1e12)
    assert [phase.name for phase in ample.phases] == [
        "encode text", "encode sound", "first stage", "upscale", "second stage", "decode",
    ]  # fmt: skip
    assert all(phase.fits and not phase.remedy and not phase.offloaded for phase in ample.phases)
    assert ample.tiling == Tiling() and not ample.offloaded("transformer")
    assert on_gpu(1e12) == ample  # to the byte
    sampling = phase_of(on_gpu(1e12, job=alone), "sample")
    apart = phase_of(on_gpu(sampling.peak - 1, job=alone), "sample")
    assert apart.remedy == "guidance passes one by one" and apart.work < 0.8 * sampling.work

    transformer = sampling.models[0]
    tight = on_gpu(transformer.size)
    assert tight.offloaded("transformer") and phase_of(tight, "second stage").offloaded
    assert phase_of(tight, "first stage").weights == transformer.offloaded < transformer.size
    assert "blocks wait in host memory" in str(tight)
    assert not on_gpu(transformer.size, "none", alone).offloaded("transformer")

    assert on_gpu(1e12, "blocks", alone).offloaded("Gemma")
    small = on_gpu(phase_of(ample, "decode").peak * 0.7, job=alone)
    assert small.tiling.pixels * small.tiling.frames < 768 * 80 and phase_of(small, "decode").fits
    assert f"in tiles of {small.tiling}" in str(small)
    none = on_gpu(1e6, job=alone)
    assert not phase_of(none, "decode").fits and "may not fit even so" in str(none)
    with pytest.raises(InputError, match="offload"):
        on_gpu(1e12, "all")


def test_given_videos_are_counted(folder: Path, tiny: TinyFiles) -> None:
    """A source for both stages, some frames at a time; a reference in the stages that see it, without a matrix of all
    pairs of tokens."""
    clip = write_clip(folder / "clip.mkv", [plain(number) for number in range(33)])

    def told(name: str = "", **request: Any) -> list[int]:
        job = described(folder, tiny, num_frames=33, video_size=(512, 512), **request)
        job["files"] |= {name: clip} if name else {}
        forecast = estimate(job_of(job), Compute(torch.float32), 2**62)
        first = [phase.work for phase in forecast.phases if phase.name == "encode pictures"]
        return [*first, phase_of(forecast, "first stage").work, phase_of(forecast, "second stage").work]

    vae = load_checkpoint(tiny.checkpoint).video_encoder(torch.float32)
    half, full = (clip_encoding(vae, side, side) for side in (256, 512))
    usual = told()
    assert told("video", edit={"strength": 0.5}) == [full, *usual], "the clip has as many tokens as without a source"
    encoded, *first = told("reference")
    assert encoded == half < full and first[0] > 1.5 * usual[0] and first[1] == usual[1]
    encoded, *both = told("reference", reference={"stages": "both"})
    assert encoded == full and both[0] == first[0] and both[1] > 1.5 * usual[1]
    assert told("reference", reference={"attention": 0.5})[1] < 1.5 * first[0]


def test_what_an_offloaded_model_takes_is_the_rest_and_the_two_largest_blocks() -> None:
    assert Resident("x", 100, (10, 30, 20)).offloaded == 40 + 50
    assert Resident("x", 100).offloaded == 100
