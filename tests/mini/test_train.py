"""The whole way once: every stage makes a step, goes on after a stop, and the set that comes out makes a video."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from a2v.mini import audio_vae, evaluate, export, flow, sizes, train, video_vae, voices


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that was hardly trained: what training goes on from."""
    torch.manual_seed(0)
    model = flow.Model()
    modules = {"transformer": model.transformer, "connectors": model.connectors, "vae": video_vae.fresh(0, crops=8)}
    modules |= {"audio_vae": audio_vae.fresh(), "vocoder": audio_vae.fresh_vocoder()}
    folder = tmp_path_factory.mktemp("begun")
    export.export_checkpoint(folder / sizes.FILES["checkpoint"], modules)
    export.export_upscaler(folder / sizes.FILES["upscaler"], sizes.module("upscaler"))
    return folder


@pytest.mark.soak
@pytest.mark.skipif(not voices.synthesizers(), reason="no espeak-ng or flite here")
def test_every_stage_trains_and_the_set_makes_a_video(begun: Path, tmp_path: Path) -> None:
    settings = train.Settings(tmp_path / "run", begun, scale=1e-9, clips=16, rows=2)
    train.run(settings)
    steps = {name: line["step"] for name, line in train.progress(settings).items()}
    assert steps == dict.fromkeys(set(train.BUDGETS) - {"clips"}, 1)
    train.run(settings)  # nothing is left to do
    assert {name: line["step"] for name, line in train.progress(settings).items()} == steps

    to = train.write_set(settings, tmp_path / "set")
    sizes_written = {path.name: path.stat().st_size for path in to.rglob("*") if path.is_file()}
    assert sum(sizes_written.values()) <= 18e6 and max(sizes_written.values()) <= 15 * 2**20
    assert set(json.loads((to / "progress.json").read_text())) == set(steps)
    case = evaluate.cases(1, 0, frames=9)[0]
    for camera in (None, "dolly_in"):
        video = evaluate.Evaluation(to).video(
            case.scene.prompt, case.track, case.video[0], case.video[-1], camera, num_frames=9, num_inference_steps=8
        )
        assert video.shape == (9, 128, 128, 3) and video.std() > 0


@pytest.mark.soak
def test_the_linear_start_is_a_code_already(begun: Path) -> None:
    """From few crops; the real start takes 400 and reaches 20 dB."""

    vae = video_vae.fresh(0, crops=64).eval()
    rng = np.random.default_rng(9)
    pixels = video_vae.pixels([video_vae.crop(rng, 9, 64, (64, 64)) for _ in range(4)])
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        off = vae.decode(latents).sample - pixels
    error = (off / 2).square().mean()
    ground = ((pixels - pixels.mean()) / 2).square().mean()
    assert error < 0.5 * ground  # against a grey picture
    assert not latents[:, sizes.LIVE :].any() and latents[:, : sizes.LIVE].std() > 0.3


def test_settings_are_checked_before_anything_runs() -> None:
    settings = train.Settings(Path("nowhere"), scale=0.5, budgets={"vae": 10}, rates={"vae": 1e-5})
    assert settings.options("vae").seconds == 10 and settings.options("vae").rate == 1e-5
    assert settings.options("transformer").seconds == train.BUDGETS["transformer"] / 2
    assert isinstance(settings.options("distilled"), flow.FlowOptions)


@pytest.mark.soak
def test_latents_stay_where_they_are_to_be_kept(begun: Path, tmp_path: Path) -> None:
    settings = train.Settings(tmp_path / "run", begun, budgets={"vae": 1e-9}, keep_latents=True)
    before = {name: p.clone() for name, p in train.trained(settings, "vae").named_parameters()}
    train.stage(settings, "vae")
    after = dict(train.trained(settings, "vae").named_parameters())
    moved = {name.split(".")[0] for name, p in after.items() if not torch.equal(p, before[name])}
    assert moved == {"decoder"}
