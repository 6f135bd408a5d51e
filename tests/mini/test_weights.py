"""The committed miniature on a small fixed sample: what docs/mini.md says of it, within what a sample may vary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from a2v.ltx.latents import denormalize_video
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.mini import clips, dataset, readers, sizes

WEIGHTS = Path(__file__).resolve().parents[2] / "mini" / "weights"
PSNR = 24.5  # dB of the VAE on clips it never saw; see docs/mini.md for the figure over more of them

pytestmark = pytest.mark.skipif(
    not (WEIGHTS / sizes.FILES["checkpoint"]).is_file(), reason="no weights in mini/weights"
)


def test_the_set_is_whole_and_small() -> None:
    files = {path.name: path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()}
    assert set(sizes.FILES.values()) - {sizes.FILES["gemma"]} <= set(files)
    assert sum(files.values()) <= 18e6 and max(files.values()) <= 15 * 2**20
    steps = json.loads((WEIGHTS / "progress.json").read_text())
    assert {"vae", "audio_vae", "transformer"} <= set(steps)


def test_the_vae_gives_unseen_clips_back() -> None:
    vae = load_checkpoint(WEIGHTS / sizes.FILES["checkpoint"]).video_vae(torch.float32)
    rng, found = np.random.default_rng(123), []
    while len(found) < 4:
        scene = clips.random_scene(rng, "face")
        if not dataset.held_out(scene):
            continue
        video = clips.render(scene, clips.random_motion(rng, scene, 17), 24.0, (128, 128))
        with torch.no_grad():
            latent = vae.encode(dataset.to_pixels(video)).latent_dist.mode()
            assert not latent[:, sizes.LIVE :].any()
            again = dataset.encode(vae, video)  # as the transformer's data is made: normalised, living channels
            raw = denormalize_video(vae, torch.nn.functional.pad(again[None], (0,) * 7 + (sizes.LATENT - sizes.LIVE,)))
            assert (raw - latent).abs().mean() < 0.02  # computed in bfloat16
            pixels = vae.decode(latent).sample[0].permute(1, 2, 3, 0).add(1).div(2).clamp(0, 1).numpy()
        seen = readers.words(pixels)
        assert all(seen[name] == getattr(scene, name) for name in ("colour", "ground", "place")), (scene, seen)
        found.append(readers.psnr(pixels, video))
    assert np.mean(found) > PSNR, found
