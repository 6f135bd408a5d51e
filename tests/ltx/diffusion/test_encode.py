"""A clip that is encoded some frames at a time, against the same encoder on the whole clip and the golden latent."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion.encode import CausalEncoder, encode_image, encode_video
from a2v.ltx.latents import normalize_video
from a2v.ltx.media.clip import open_clip
from a2v.ltx.media.images import fit
from a2v.ltx.memory.rehearsal import peak
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.configs import video_vae_config
from a2v.tests.ltx.goldens import relative
from a2v.tests.tiny import TinyFiles
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from safetensors import safe_open
from torch import Tensor

EXACT = 1e-5


def noise(frames: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def whole(vae: AutoencoderKLLTX2Video, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return normalize_video(vae, vae.encode(pixels).latent_dist.mode())


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 64, 64), (9, 32, 96), (17, 64, 32)])
def test_pieces_give_the_whole(tiny_any: TinyFiles, frames: int, height: int, width: int) -> None:
    vae = load_checkpoint(tiny_any.checkpoint).video_encoder(torch.float32)
    pixels = noise(frames, height, width)
    expected = whole(vae, pixels)
    for size in (1, 5, frames):
        assert relative(encode_video(vae, pixels.split(size, dim=2)), expected) < EXACT
    assert relative(whole(vae, pixels), expected) == 0  # nothing of it stays in the modules


def test_the_encoder_of_2_5(oracle: Path) -> None:
    tiny = oracle / "2.5" / "tiny"
    files = {"video_vae": tiny / "ltx-2.5-tiny-video-vae-conv.safetensors"}
    checkpoint = load_checkpoint(tiny / "ltx-2.5-tiny-dev-transformer.safetensors", **files)
    vae = checkpoint.video_encoder(torch.float32)
    pixels = noise(25, 64, 96)
    assert relative(encode_video(vae, pixels.split(3, dim=2)), whole(vae, pixels)) < EXACT


def test_one_frame_is_an_image(tiny: TinyFiles) -> None:
    vae = load_checkpoint(tiny.checkpoint).video_encoder(torch.float32)
    pixels = noise(1, 64, 64)
    with torch.no_grad():
        assert relative(encode_video(vae, [pixels]), encode_image(vae, pixels)) < EXACT


def test_the_golden_latent(oracle: Path) -> None:
    vae = load_checkpoint(oracle / "tiny" / "ltx-2.3-tiny.safetensors").video_encoder(torch.float32)
    clip = open_clip(oracle / "video-in" / "source_24.mp4")
    latent = encode_video(vae, (fit(picture, 128, 96) for picture in clip.pictures(Fraction(24), 25)))
    with safe_open(oracle / "video-in" / "retake_both.safetensors", "pt") as golden:
        assert relative(latent, golden.get_tensor("source/video_latent")) < EXACT
    for name, number, frames in (("iclora_frozen_audio", 0, 17), ("a2v_reference", 2, 17)):
        reference = encode_video(vae, (fit(picture, 64, 32) for picture in clip.pictures(Fraction(24), frames)))
        with safe_open(oracle / "video-in" / f"{name}.safetensors", "pt") as golden:
            assert relative(reference, golden.get_tensor(f"cond/{number}/latent")) < EXACT


def test_memory_is_flat_in_length() -> None:
    """With the published sizes: what a long clip takes is what a short one takes, but for its latents."""
    with torch.device("meta"):
        vae = AutoencoderKLLTX2Video(**video_vae_config({}, "")).to(torch.bfloat16).eval()

    def taken(frames: int) -> int:
        return peak(lambda: encode_video(vae, (torch.zeros(1, 3, 1, 256, 256) for _ in range(frames))))

    latent = 128 * 8 * 8 * 4
    short, long = taken(25), taken(97)
    assert long - short <= 3 * latent * (97 - 25) // 8
    assert short < peak(lambda: vae.encode(torch.zeros(1, 3, 57, 256, 256, dtype=torch.bfloat16))) / 2


def test_frames_are_read_as_they_are_encoded_and_may_interrupt(tiny: TinyFiles) -> None:
    """Callers show the progress, and stop, where they yield the frames."""
    vae = load_checkpoint(tiny.checkpoint).video_encoder(torch.float32)
    encoded: list[None] = []
    vae.encoder.conv_in.conv.register_forward_hook(lambda *_: encoded.append(None))

    def frames(most: int) -> Iterator[Tensor]:
        for number, frame in enumerate(noise(25, 32, 32).split(1, dim=2)):
            assert len(encoded) == (number + 7) // 8
            if number == most:
                raise KeyboardInterrupt
            yield frame

    encode_video(vae, frames(25))
    assert len(encoded) == 4
    encoded.clear()
    with pytest.raises(KeyboardInterrupt):
        encode_video(vae, frames(1))
    assert len(encoded) == 1


@pytest.mark.parametrize("frames", [0, 2, 8, 10])
def test_other_lengths_are_mistakes(tiny: TinyFiles, frames: int) -> None:
    vae = load_checkpoint(tiny.checkpoint).video_encoder(torch.float32)
    with pytest.raises(ValueError, match="frame"):
        encode_video(vae, noise(10, 32, 32)[:, :, :frames].split(1, dim=2) if frames else [])


def test_chunks_of_any_size_continue(tiny: TinyFiles) -> None:
    vae = load_checkpoint(tiny.checkpoint).video_encoder(torch.float32)
    pixels, encoder = noise(33, 32, 64), CausalEncoder(vae.encoder)
    with torch.no_grad():
        parts = [encoder(part) for part in pixels.split((9, 16, 8), dim=2)]
    assert relative(normalize_video(vae, torch.cat(parts, dim=2)), whole(vae, pixels)) < EXACT
