"""What a job is said to take before anything is loaded, against what it takes: measured in a process of its own."""

from __future__ import annotations

import math
import re
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion import sample as engine
from a2v.ltx.diffusion.conditioning import TEXT_LENGTH, AudioCondition, Conditions, Reference, TextContext
from a2v.ltx.diffusion.decode import decode_video
from a2v.ltx.diffusion.denoiser import GuidedDenoiser
from a2v.ltx.diffusion.guidance import NONE
from a2v.ltx.diffusion.passes import CPU_CACHE, Reuse, batch_room, working_set
from a2v.ltx.diffusion.sample import sample
from a2v.ltx.diffusion.speakers import Speaker
from a2v.ltx.diffusion.steering import EULER, RES_2S
from a2v.ltx.diffusion.tiling import Tiling
from a2v.ltx.edits import ReferenceUse
from a2v.ltx.errors import InputError
from a2v.ltx.given import Example, ReferenceVideo
from a2v.ltx.grid import audio_length, video_shape
from a2v.ltx.job import Compute, Job, prepare
from a2v.ltx.latents import Noise
from a2v.ltx.media.audio import Track
from a2v.ltx.media.clip import open_clip
from a2v.ltx.media.masks import Area
from a2v.ltx.memory import rehearsal
from a2v.ltx.memory.encoder import mapped_bytes, text_encoder
from a2v.ltx.memory.forecast import Forecast, Phase, Resident, Step, _advice, _Measured, _Planner, estimate
from a2v.ltx.memory.offload import Placement
from a2v.ltx.memory.rehearsal import SMALL, blueprint, bytes_of, loaded, peak, weights
from a2v.ltx.memory.work import clip_encoding, one_step
from a2v.ltx.prompt.gemma import load_gemma
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.quantized import QuantizedLinear
from a2v.tests.ltx.measure import GUIDANCE, job_of, run
from a2v.tests.ltx.media.clips import plain, write_clip
from a2v.tests.tiny import TinyFiles, write_tiny
from safetensors.torch import save_file
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


@LINUX
@pytest.mark.parametrize(
    "phase", [pytest.param(phase, marks=[pytest.mark.soak] * (phase != "sample")) for phase in CLIPS]
)
def test_the_estimate_is_what_is_measured(jobs: dict[str, dict[str, Any]], phase: str) -> None:
    dtype = getattr(torch, CLIPS[phase][0] or "", None)
    (took,) = run((phase, jobs[phase]))
    forecast = estimate(job_of(jobs[phase]), Compute(dtype))
    found = phase_of(forecast, phase)
    assert took > 100e6, "too little to tell"
    assert abs(found.peak / took - 1) <= WITHIN, f"{found}: {took / 1e6:.0f} MB measured"


@LINUX
@pytest.mark.soak  # that it is counted at all: tests/nodes/test_fetches.py
def test_what_res_2s_keeps_in_float64_is_counted(folder: Path, tiny: TinyFiles) -> None:
    """A graph chooses it, so the room of a graph has it."""
    mid = write_tiny(folder / "mid", layers=2, heads=4, head_dim=64)
    asked = described(folder, mid, "float32", num_frames=65, video_size=(512, 512), use_multiscale=False)
    asked["files"]["distill_lora"] = None
    asked["warm"] = described(folder, tiny, "float32", video_size=(64, 64), use_multiscale=False)
    job = job_of(asked)
    model = blueprint(lambda: job.checkpoint.transformer(torch.float32))
    latent, sound = torch.zeros(1, 128, *video_shape(65, 512, 512)), audio_length(65, job.plan.fps)
    audio = AudioCondition(torch.zeros(1, 8, sound, 16), 65, job.plan.fps)
    for sampler, took in zip((EULER, RES_2S), run(("sample", asked), ("sample with res_2s", asked)), strict=True):
        room = peak(lambda sampler=sampler: one_step(model, latent, audio, (GUIDANCE, NONE), sampler=sampler), "cpu")
        assert took > 50e6, "too little to tell"
        assert abs((weights(model) + room) / took - 1) <= WITHIN, f"{sampler}: {took / 1e6:.0f} MB measured"


@CUDA
@pytest.mark.usefixtures("products_on_cuda")
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
            one_step(model, latent, audio, (GUIDANCE, NONE), room=batch_room(torch.device("cuda")))
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


@pytest.mark.soak
def test_what_a_rehearsal_remembers_changes_no_count(
    folder: Path, tiny: TinyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every part of a job with two stages, on both kinds of device."""
    job, forecast = job_of(described(folder, tiny, num_frames=41, video_size=(256, 256))), []
    for device in ("cpu", "cuda"):
        compute = Compute(torch.float32, device)
        monkeypatch.setattr(rehearsal, "_results", {})
        for remembers in (False, True):
            with monkeypatch.context() as here:
                if not remembers:
                    here.setattr(rehearsal, "_remember", lambda *_: None)
                forecast.append(estimate(job, compute, 64 << 30, 64 << 30))
            assert bool(rehearsal._results) == remembers
        assert forecast[-2] == forecast[-1]
    assert forecast[0] != forecast[-1]


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
    assert ample.tiling == Tiling(128, 24, 512, 64) and not ample.offloaded("transformer")  # whole
    assert on_gpu(1e12) == ample  # to the byte
    sampling = phase_of(on_gpu(1e12, job=alone), "sample")
    assert sampling.batched and "4 passes in one batch: " in str(sampling)
    apart = phase_of(on_gpu(sampling.peak - 1, job=alone), "sample")
    assert apart.fits and not apart.offloaded and not apart.batched and apart.work < 0.8 * sampling.work
    assert "4 passes one by one: " in str(apart)

    transformer = sampling.models[0]
    tight = on_gpu(transformer.size)
    assert tight.offloaded("transformer") and phase_of(tight, "second stage").offloaded
    stay = tight.offloaded("transformer").resident
    assert phase_of(tight, "first stage").weights == transformer.offloaded(stay) < transformer.size
    assert "blocks wait in host memory" in str(tight)
    assert not on_gpu(transformer.size, "none", alone).offloaded("transformer")

    assert on_gpu(1e12, "blocks", alone).offloaded("Gemma") == Placement(), "who asks for it wants the device free"
    small = on_gpu(phase_of(ample, "decode").peak * 0.7, job=alone)
    assert small.tiling.pixels * small.tiling.frames < 768 * 80 and phase_of(small, "decode").fits
    assert f"in tiles of {small.tiling}" in str(small)
    given = estimate(alone, Compute(torch.bfloat16, "cuda", tiling=Tiling()), int(1e12))
    assert given.tiling == Tiling() and not phase_of(given, "decode").remedy
    assert phase_of(given, "decode").work < phase_of(ample, "decode").work
    none = on_gpu(1e6, job=alone)
    assert not phase_of(none, "decode").fits and "may not fit even so" in str(none)
    with pytest.raises(InputError, match="offload"):
        on_gpu(1e12, "all")


@pytest.mark.soak
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


@pytest.mark.parametrize(("passes", "nag"), [(1, False), (3, False), (4, False), (1, True)])
def test_what_the_first_block_cache_and_nag_keep_is_counted(
    folder: Path, wide: TinyFiles, passes: int, nag: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states of a step that are remembered for the next one, which may have to run all blocks beside them."""
    guided = {"cfg": 3 if passes > 1 else 1, "stg": float(passes == 4), "modality": 3 if passes > 1 else 1}
    scales = {f"video_{name}_scale": value for name, value in guided.items()}
    asked = {"num_frames": 49, "video_size": (384, 256), "use_multiscale": False, "acceleration": "high", **scales}
    asked |= {"nag": True} if nag else {}
    described_job = described(folder, wide, **asked)
    described_job["files"]["distill_lora"] = None
    job = job_of(described_job)
    model, frames = blueprint(lambda: job.checkpoint.transformer(torch.float32)), job.plan.frames
    widths = model.config.cross_attention_dim, model.config.audio_cross_attention_dim
    steering = job.steering[0]
    assert steering.passes(True) == passes and steering.acceleration.reuse

    def steps(room: float) -> None:
        texts = [TextContext(*(torch.zeros(1, TEXT_LENGTH, width) for width in widths)) for _ in range(2)]
        sound = torch.zeros(1, 8, audio_length(frames, job.plan.fps), 16)
        given = Conditions(texts[0], AudioCondition(sound, frames, job.plan.fps), texts[1])
        latent = torch.zeros(1, 128, *video_shape(frames, job.plan.height, job.plan.width))
        sample(model, latent, given, replace(steering, sigmas=torch.linspace(1, 0, 9)), Noise(0), room=room)

    seen = []
    for free in (2**40, 2**20):
        phase = phase_of(estimate(job, Compute(torch.float32, "cuda"), free, 2**40), "sample")
        with monkeypatch.context() as patch:
            patch.setattr(Reuse, "spares", never_spared)
            most = peak(lambda room=math.inf if phase.batched else 0.0: steps(room), "cuda")
        assert phase.work == pytest.approx(most, rel=0.05)
        seen.append(phase.batched)
    assert passes == 1 or seen == [True, False], "both ways are met"


def test_where_a_job_does_not_fit_it_says_what_may_help(deep: Job) -> None:
    def last(compute: Compute, free: int) -> str:
        return estimate(deep, compute, free, 2**40).lines()[-1]

    ends, smaller = "the system may end what does not fit: try", "a checkpoint and a text encoder in fewer bits"
    rest = f"{smaller}, a smaller size or fewer frames"
    assert last(Compute(torch.float32), 10) == f"{ends} --dtype bfloat16, --fp8, {rest}"
    assert last(Compute(torch.bfloat16), 10) == f"{ends} --fp8, {rest}"
    assert last(Compute(torch.bfloat16, "cuda", fp8=True), 10) == f"{ends} {rest}"
    assert ends not in last(Compute(torch.float32), 2**40)


def sampled(job: Job, compute: Compute) -> Phase:
    """The first phase that computes with the transformer, in enough memory."""
    planner = _Planner(compute.device, 2**62, "none", 2**62)
    _Measured(job, compute, planner).sampling()
    return planner.phases[0]


def test_weights_that_map_their_file_may_be_larger_than_the_memory(deep: Job) -> None:
    """The system reads them again. What is cast, rounded, or on a GPU does not map its file any more."""
    load = deep.checkpoint.unopened().transformer
    phase, size = sampled(deep, Compute(torch.bfloat16)), weights(blueprint(lambda: load(torch.bfloat16)))
    assert phase.fits and not phase.rereads
    assert phase.models[0].mapped == size and phase.kept == phase.work
    for room, rereads in ((phase.peak - 1, True), (phase.work, True), (phase.work - 1, False)):
        planner = _Planner("cpu", room, "none", 2**62)
        planner.add("sample", phase.models, phase.work)
        (found,) = planner.settled()
        assert not found.fits and found.rereads == rereads
        assert ("fits only in part" in str(found)) == rereads != ("does not fit" in str(found))
        assert _advice(torch.device("cpu"), Compute(torch.bfloat16), (found,)).startswith("what fits only") == rereads
    assert loaded(lambda: load(torch.float32))[1] == 0
    assert 0 < loaded(lambda: load(torch.bfloat16, fp8=True))[1] < size / 4
    assert sampled(deep, Compute(torch.bfloat16, "cuda")).models[0].mapped == 0


def test_merged_weights_do_not_map_their_file(folder: Path, tiny: TinyFiles) -> None:
    """A LoRA beside quantized weights does, and one that is off changes and takes nothing."""
    on = job_of(described(folder, tiny, "bfloat16"))
    off = replace(on, loras=tuple(tuple((lora, 0.0) for lora, _ in stage) for stage in on.loras))
    plain, merged = (sampled(job, Compute(torch.bfloat16)) for job in (off, on))
    changed = {name for fit, *_ in on.fits for name in fit.changes}
    model = blueprint(lambda: on.checkpoint.unopened().transformer(torch.bfloat16))
    taken = bytes_of(model.get_parameter(name) for name in changed)
    transformer, loras = merged.models
    assert plain.models == (replace(transformer, mapped=transformer.size),)
    assert transformer.mapped == transformer.size - taken and loras.mapped == loras.size > 0
    rounded = blueprint(lambda: on.checkpoint.unopened().transformer(torch.bfloat16, fp8=True))
    for job in (on, off):
        measured = _Measured(job, Compute(torch.bfloat16, "cuda", fp8=True), _Planner("cuda", 2**62, "none", 2**62))
        assert bool(measured._branches(rounded)) == (job is on)


@pytest.mark.parametrize("acting", [(0, 1), (0,), (1,), ()], ids=["both", "first", "second", "none"])
def test_weights_are_merged_in_the_stages_where_a_lora_acts(
    folder: Path, tiny: TinyFiles, acting: tuple[int, ...]
) -> None:
    """In another stage they map their file."""
    whole = job_of(described(folder, tiny, "bfloat16"))
    assert whole.plan.two_stages
    strengths = (0.5 * (stage in acting) for stage in range(2))
    job = replace(whole, loras=tuple(((whole.loras[0][0][0], strength),) for strength in strengths))
    planner = _Planner("cpu", 2**62, "none", 2**62)
    _Measured(job, Compute(torch.bfloat16), planner).sampling()
    first, upscale, second = (phase.models[0] for phase in planner.phases)
    model = blueprint(lambda: whole.checkpoint.unopened().transformer(torch.bfloat16))
    taken = bytes_of(model.get_parameter(name) for name in whole.fits[0][0].changes)
    assert [first.size - first.mapped, second.size - second.mapped] == [taken * (stage in acting) for stage in (0, 1)]
    assert upscale == first


def test_connectors_that_a_lora_changes_do_not_map_their_file(folder: Path, tiny: TinyFiles, tmp_path: Path) -> None:
    key = "text_embedding_projection.video_aggregate_embed"
    rows, columns = load_checkpoint(tiny.checkpoint).connectors().get_parameter("video_text_proj_in.weight").shape
    pair = {f"{key}.lora_A.weight": torch.ones(2, columns), f"{key}.lora_B.weight": torch.ones(rows, 2)}
    save_file(pair, tmp_path / "lora.safetensors")
    asked = described(folder, tiny, "bfloat16")
    job = job_of(asked)
    job = prepare(replace(job.files, loras=((tmp_path / "lora.safetensors", 0.5),)), job.request, stg_blocks=(1,))

    def connectors(strength: float) -> Resident:
        loras = tuple((*((each, strength) for each, _ in stage[:1]), *stage[1:]) for stage in job.loras)
        planner = _Planner("cpu", 2**62, "none", 2**62)
        _Measured(replace(job, loras=loras), Compute(torch.bfloat16), planner).encoding()
        return next(each for phase in planner.phases for each in phase.models if each.name == "connectors")

    off, on = connectors(0.0), connectors(0.5)
    assert off.size == on.size and off.mapped - on.mapped == 2 * rows * columns > 0


@pytest.mark.parametrize("dtype", (None, torch.bfloat16, torch.float32))
@pytest.mark.parametrize("fp8", (False, True))
def test_a_text_encoder_s_bytes_map_its_file_unless_they_change(
    wide: TinyFiles, dtype: torch.dtype | None, fp8: bool
) -> None:
    size, blocks, _ = text_encoder(wide.gemma, dtype, fp8)
    mapped = mapped_bytes(wide.gemma, dtype, fp8)
    if dtype is torch.float32:
        assert mapped == 0
    elif fp8:
        assert 0 < mapped < size - 0.9 * sum(blocks)
    else:
        assert mapped == size


def never_spared(cache: Reuse, change: torch.Tensor, passes: int) -> bool:
    """A step whose first block changes the picture in another way than the step before."""
    cache._change = change
    return False


@pytest.mark.parametrize(
    "kind", ["new sound", "new picture and sound", "voices", "a reference's sound", "a voice that is led"]
)
def test_what_a_step_hears_is_counted(folder: Path, wide: TinyFiles, kind: str) -> None:
    """The guided passes of a sound that is made anew, beside a picture that is kept or not, the voices of speakers, the
    sound of a reference, and the pass without it: as much as a step with the job's own masks takes, one pass at a time
    and all together."""
    edit = {"new sound": {"renew": "sound"}, "new picture and sound": {"renew": "both", "end": 1.0}}.get(kind)
    clip = write_clip(folder / "long.mkv", [plain(number) for number in range(49)])
    asked = described(folder, wide, num_frames=49, video_size=(768, 512), **({} if edit is None else {"edit": edit}))
    asked["files"]["distill_lora"] = None
    if kind == "a voice that is led":
        asked["request"] |= {"audio_strength": 0, "reference": {"sound": True, "identity": 3}}
        asked["files"]["reference"] = folder / "sound.wav"
    asked["files"] |= {} if edit is None else {"video": clip, "audio": None}
    job = job_of(asked)
    if kind == "voices":
        area, voice = Area(torch.ones(1, 8, 8)), Track(torch.zeros(2, 48000), 48000)
        job = replace(job, speakers=((area, None), *[(area, voice)] * 3))
    if kind == "a reference's sound":
        use = ReferenceUse(downscale=1, stride=1, sound=True)
        example = Example(Track(torch.zeros(2, 48000 * 3), 48000), use)
        job = replace(job, reference=ReferenceVideo(open_clip(clip), use), example=example)
    frames, (width, height), fps = job.plan.frames, job.plan.first_size, job.plan.fps
    model = blueprint(lambda: job.checkpoint.transformer(torch.float32))
    latent, sound = torch.zeros(1, 128, *video_shape(frames, height, width)), audio_length(frames, fps)
    widths = model.config.cross_attention_dim, model.config.audio_cross_attention_dim

    def step(room: float) -> None:
        mask = None if job.source is None else job.source.sound_mask(job.plan.windows[0], fps)
        silence = torch.zeros(1, 8, sound, 16)
        heard = tuple(Speaker.of(each, 0, fps, None if own is None else silence) for each, own in job.speakers)
        texts = [TextContext(*(torch.zeros(1, TEXT_LENGTH, width) for width in widths)) for _ in range(2)]
        example, seen = None if job.example is None else silence, () if job.reference is None else (Reference(latent),)
        strength = job.request.audio_strength
        audio = AudioCondition(silence, frames, fps, strength, mask, heard, reference=example)
        given = Conditions(texts[0], audio, texts[1], references=seen)
        if job.source is not None:
            told = job.source.told(job.plan)
            given = replace(given, mask=job.source.mask(job.plan, (width, height)), clean=latent, **told)
        sample(model, latent, given, replace(job.steering[0], sigmas=torch.tensor([1.0, 0.0])), Noise(0), room=room)

    forecast = estimate(job, Compute(torch.float32, "cuda"), 2**40, 2**40)
    phase = phase_of(forecast, "first stage")
    assert phase.batched and phase.work == pytest.approx(peak(lambda: step(math.inf), "cuda"), rel=0.03)
    assert phase.passes == (3 if kind == "new sound" else 4), "the one without the example is none of the batch"
    one = phase_of(estimate(job, Compute(torch.float32, "cuda"), phase.work, 2**40), "first stage")
    assert not one.batched and one.work == pytest.approx(peak(lambda: step(0.0), "cuda"), rel=0.03)


def test_what_an_offloaded_model_takes_is_the_rest_and_the_two_largest_blocks() -> None:
    assert Resident("x", 100, (10, 30, 20)).offloaded() == 40 + 50
    assert Resident("x", 100).offloaded() == 100
    model = Resident("x", 100, (10, 30, 20, 5, 5))  # of which the second, the fourth and the fifth wait
    assert model.offloaded(2) == 30 + (10 + 20) + (30 + 5) and model.waiting(2) == 30 + 5 + 5


@pytest.fixture(scope="module")
def deep(folder: Path) -> Job:
    """A job in one stage, without LoRAs, of eight blocks that are large beside a step."""
    files = write_tiny(folder / "deep", layers=8, heads=8, head_dim=64)
    job = described(folder, files, "bfloat16", num_frames=17, video_size=(256, 256), use_multiscale=False)
    job["files"]["distill_lora"] = None
    return job_of(job)


@pytest.fixture(scope="module")
def stage(deep: Job) -> tuple[tuple[Resident, ...], Step]:
    """The models of its stage and what a step takes, which are the same whatever is free."""
    planner = _Planner("cuda", 2**62, "auto", 2**62)
    _Measured(deep, Compute(torch.bfloat16, "cuda"), planner).sampling()
    return planner.phases[0].models, planner.steps["sample"]


def planned(stage: tuple[tuple[Resident, ...], Step], free: float, offload: str = "auto") -> Phase:
    planner = _Planner("cuda", int(free), offload, 2**62)
    planner.add("sample", *stage)
    return planner.settled()[0]


class Asked:
    """A step of a job's stage, with sizes but no numbers, on a GPU that is not there."""

    def __init__(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[GuidedDenoiser] = []
        self.model = blueprint(lambda: job.checkpoint.transformer(torch.bfloat16))
        self.plan, self.guidance = job.plan, job.steering[0].acting(job.keeps_sound, job.keeps_picture)

        def watched(*given: Any) -> GuidedDenoiser:
            self.seen.append(GuidedDenoiser(*given))
            return self.seen[-1]

        monkeypatch.setattr(engine, "GuidedDenoiser", watched)

    def __call__(self, room: float) -> tuple[bool, int]:
        """Whether the denoiser runs its passes as a batch with that room, and the peak bytes of the step."""

        def work() -> None:
            frames, grid = self.plan.frames, video_shape(self.plan.frames, self.plan.height, self.plan.width)
            sound = torch.zeros(1, 8, audio_length(frames, self.plan.fps), 16)
            audio = AudioCondition(sound, frames, self.plan.fps)
            one_step(self.model, torch.zeros(1, 128, *grid), audio, self.guidance, room=room)

        taken = peak(work, "cuda")
        return self.seen[-1].batched, taken


def tokens_of(job: Job) -> int:
    shape = video_shape(job.plan.frames, job.plan.height, job.plan.width)
    return math.prod(shape) + audio_length(job.plan.frames, job.plan.fps)


@pytest.mark.soak
def test_the_forecast_batches_where_the_denoiser_does(
    deep: Job, stage: tuple[tuple[Resident, ...], Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over free memory from less than a block to plenty, and the bytes are those of the step that runs."""
    asked = Asked(deep, monkeypatch)
    single, batch = asked(0.0), asked(1e15)
    assert not single[0] and batch[0] and single[1] < 0.7 * batch[1]
    rows, whole = 4 * working_set(asked.model, tokens_of(deep)), weights(asked.model)
    masks = asked.seen[-1].masks
    assert tokens_of(deep) == masks.video.shape[1] + masks.audio.shape[1]
    found = set()
    for free in (
        *(share * whole for share in (0.1, 0.5, 0.9)),
        *(whole + share * rows for share in (1, 1.99, 2.01, 4)),
    ):
        phase = planned(stage, free)
        beside = int(free) - phase.weights
        assert phase.passes == 4 and phase.room <= batch_room(torch.device("cuda"), max(0, beside))
        assert phase.batched == (rows < beside / 2 and batch[1] <= beside) == asked(phase.room)[0], free
        assert phase.work == (batch if phase.batched else single)[1], free
        found.add((phase.batched, phase.offloaded is not None))
    assert len(found) == 4, "each way is met, with blocks in host memory and without"
    forecast = estimate(deep, Compute(torch.bfloat16, "cuda"), int(0.5 * whole), 2**62)
    assert phase_of(forecast, "sample") == planned(stage, 0.5 * whole) and forecast.room(0) is not None
    here = phase_of(estimate(deep, Compute(torch.bfloat16)), "sample")
    assert here.room == CPU_CACHE and here.batched == (rows < CPU_CACHE)


def test_as_many_blocks_stay_as_fit_beside_the_step(deep: Job, stage: tuple[tuple[Resident, ...], Step]) -> None:
    """A tenth of the free memory is left for what a forecast does not count, and half of the rest for a batch."""
    ample = planned(stage, 1e12)
    model = ample.models[0]
    block, rest = model.blocks[0], model.size - sum(model.blocks)
    rows = 4 * working_set(stage[1].model, tokens_of(deep))
    assert set(model.blocks) == {block} and len(model.blocks) == 8 and ample.offloaded is None
    counts = []
    for free in range(int(rest + 2 * block), int(model.size + ample.work), int(block / 7)):
        phase = planned(stage, free)
        if phase.offloaded is None:
            assert phase.peak + 0.1 * phase.work <= free
            continue
        stay = phase.offloaded.resident
        needed = max(phase.work, 2 * rows + 1) if phase.batched else phase.work
        room = (0.9 * free - rest - needed) / block
        # Two of those that wait are on the device; if only two wait, all are.
        assert stay == (8 if room >= 8 else max(0, min(5, math.floor(room) - 2))), free
        assert phase.weights == rest + min(8, stay + 2) * block
        assert phase.fits == (phase.peak <= free)
        counts.append(stay)
    assert counts[0] == 0 and set(counts) == {0, 1, 2, 3, 4}, counts
    assert planned(stage, 1e12, "blocks").offloaded == Placement(0, True)


def test_what_is_said_of_blocks_that_wait(stage: tuple[tuple[Resident, ...], Step]) -> None:
    """Page-locked where the host has room. Gemma is read once a prompt, which locking its pages would not repay, and
    once a token where it writes the prompt."""
    model = stage[0][0]

    def told(host: float, resident: Resident = model, offload: str = "blocks") -> Phase:
        planner = _Planner("cuda", int(0.95 * model.size), offload, int(host))
        planner.add("sample", (resident,), stage[1])
        return planner.settled()[0]

    waiting = model.waiting()
    assert waiting == sum(model.blocks)
    plenty, short = told(waiting / 0.75 + 1), told(waiting / 0.75 - 1)
    assert "8 of 8 blocks wait in host memory, pinned once; 0 stay on the device" in str(plenty)
    assert "8 of 8 blocks wait in host memory, pinned at each fetch; 0 stay on the device" in str(short)
    some = told(2**40, offload="auto")
    stay = some.offloaded.resident
    assert 0 < stay < 8 and f"{8 - stay} of 8 blocks wait in host memory, pinned once; {stay} stay" in str(some)
    assert not told(2**40, replace(model, repeated=False)).offloaded.pinned


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_on_other_gpus_nothing_is_page_locked(stage: tuple[tuple[Resident, ...], Step], kind: str) -> None:
    """Blocks that do not fit wait there as well, and what is said of them is what `Offload` does."""
    planner = _Planner(kind, int(0.95 * stage[0][0].size), "auto", 2**40)
    planner.add("sample", *stage)
    (phase,) = planner.settled()
    assert not phase.offloaded.pinned and 0 < phase.offloaded.resident < 8
    assert re.search(r"of 8 blocks wait in host memory; \d stay on the device", str(phase))


def test_gemma_s_layers_are_page_locked_if_it_writes_the_prompt(folder: Path, tiny: TinyFiles) -> None:
    """It then calls each of them once a token, and otherwise once a prompt."""

    def told(expands: bool) -> Forecast:
        job = job_of(described(folder, tiny, enable_prompt_expansion=expands, use_multiscale=False))
        return estimate(job, Compute(torch.bfloat16, "cuda", offload="blocks"), 2**40, 2**40)

    reads, writes = told(False), told(True)
    assert not reads.offloaded("Gemma").pinned and reads.offloaded("transformer").pinned
    assert writes.offloaded("Gemma").pinned
    assert [phase.name for phase in writes.phases] == ["expand prompt", *(phase.name for phase in reads.phases)]


@pytest.mark.soak
def test_loras_beside_quantized_blocks_are_counted_with_them(folder: Path, tiny: TinyFiles) -> None:
    """On a GPU; on a CPU they map their file."""
    job = job_of(described(folder, tiny, "bfloat16"))

    def of(fp8: bool, device: str = "cuda") -> Resident:
        planner = _Planner(device, 2**62, "auto", 2**62)
        _Measured(job, Compute(torch.bfloat16, device, fp8=fp8), planner).sampling()
        return planner.phases[0].models[0]

    model = blueprint(lambda: job.checkpoint.transformer(torch.bfloat16, fp8=True))
    beside = [0] * len(model.transformer_blocks)
    for name, adapter in job.fits[0][0].changes.items():
        owner = name.removesuffix(".weight")
        if isinstance(model.get_submodule(owner), QuantizedLinear):
            beside[int(owner.split(".")[1])] += adapter.down.nbytes + adapter.up.nbytes
    plain, found = [weights(block) for block in model.transformer_blocks], of(True)
    assert min(beside) > 0
    assert found.blocks == tuple(map(sum, zip(plain, beside, strict=True)))
    assert found.size == weights(model) + sum(beside)
    assert of(True, "cpu").blocks == tuple(plain)
    whole = blueprint(lambda: job.checkpoint.transformer(torch.bfloat16))
    assert of(False).size == weights(whole)
