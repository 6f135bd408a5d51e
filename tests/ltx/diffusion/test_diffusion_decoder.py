"""The diffusion decoder against diffusers' own, and its tiles against the clip as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion.decode import decode_video
from a2v.ltx.diffusion.tiling import Tiling
from a2v.ltx.latents import Noise, denormalize_video
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.tiny25 import Decoder, write_tiny25
from torch import Tensor, nn

from .test_neighbourhood import windows

pytest.importorskip("diffusers.models.autoencoders.ltx2_diffusion_decoder")

FLAT = ((1, 1, 3), (1, 2, 1), (3, 1, 1), (3, 3, 3), (5, 3, 5))
SIZES: dict[str, tuple[Decoder, tuple[int, int, int]]] = {  # all pairs of positions are scored here
    "narrow": (Decoder(kernels=FLAT), (2, 2, 3)),
    "other windows": (
        Decoder(kernels=((3, 1, 1), (3, 2, 3), (1, 2, 3), (3, 3, 3), (3, 7, 5)), depths=(2, 1, 1, 2, 1)),
        (3, 1, 2),
    ),
    "two steps": (Decoder(kernels=FLAT, steps=2, output="v", head=8), (2, 2, 3)),
    "three steps to x0": (Decoder(kernels=FLAT, steps=3), (2, 1, 3)),
}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def load(folder: Path, size: Decoder) -> nn.Module:
    files = write_tiny25(folder, decoder=size, layers=1, gemma_layers=3, vae_width=4)
    opened = load_checkpoint(files.transformer, **{**files.parts, "video_vae": files.diffusion_vae})
    return opened.video_decoder(torch.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return load(tmp_path_factory.mktemp("decoder"), Decoder())


def whole(model: nn.Module, latent: Tensor, **more: Any) -> Tensor:
    """All frames [F, H, W, 3]."""
    tiling = more.pop("tiling", None)
    return torch.cat(list(decode_video(model, latent, tiling, **more)))


class Dense:
    """Attention of all pairs under a mask that is made by the definition. diffusers compiles its own, which takes long;
    test_neighbourhood.py compares with it."""

    def __call__(self, layer: nn.Module, x: Tensor, block_mask: None) -> Tensor:
        rows = [
            torch.stack([torch.tensor([key in sees for key in range(length)]) for sees in windows(length, kernel)])
            for length, kernel in zip(x.shape[1:4], layer.kernel_size, strict=True)
        ]
        mask = torch.einsum("ta,hb,wc->thwabc", *(row.int() for row in rows)).flatten(3).flatten(0, 2).bool()
        query, key, value = (t.flatten(1, 3).transpose(1, 2) for t in layer.project_qkv(x))
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
        return layer.to_out[0](attended.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("size", SIZES)
def test_equals_diffusers(size: str, tmp_path: Path, randn: Callable, off: Callable) -> None:
    settings, shape = SIZES[size]
    model, latent = load(tmp_path, settings), randn(1, 128, *shape)
    model.set_attn_processor(Dense())
    theirs = model.decode(denormalize_video(model, latent), generator=torch.Generator().manual_seed(5)).sample
    expected = theirs[0].permute(1, 2, 3, 0).add(1).div(2).clamp(0, 1)
    assert off(whole(model, latent, noise=Noise(5)), expected) < 1e-5


def test_the_noise_is_the_stream_that_it_is_given(model: nn.Module, randn: Callable) -> None:
    """The pipeline's own, after what the stages drew; without one, that of seed 0."""
    latent = randn(1, 128, 3, 3, 3)
    _, after = Noise(5).draw((1, 24, 128))
    frames = whole(model, latent, noise=after)
    assert torch.equal(frames, whole(model, latent, noise=Noise(5).draw((1, 24, 128))[1]))
    assert not torch.equal(frames, whole(model, latent, noise=Noise(5)))
    assert torch.equal(whole(model, latent), whole(model, latent, noise=Noise(0)))


TILES = [Tiling(16, 8, 64, 32), Tiling(24, 8, 96, 64), Tiling(16, 0, 128, 32)]


class Silent(Noise):
    """Draws zeros, so that tiles do not differ by their noise."""

    def draw(self, *shapes: tuple[int, ...]) -> tuple[tuple[Tensor, ...], Noise]:
        return tuple(torch.zeros(shape) for shape in shapes), self


def without_stage_5(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last two stages, whose windows end with the tile, see one position; so do tiles see what the whole sees."""
    for blocks in (model.decoder.det_stages[3], model.decoder.diff_blocks):
        for block in blocks:
            monkeypatch.setattr(block.attn, "kernel_size", (1, 1, 1))


@pytest.mark.parametrize("tiling", TILES, ids=str)
def test_tiles_are_the_clip_as_a_whole(
    model: nn.Module, randn: Callable, off: Callable, monkeypatch: pytest.MonkeyPatch, tiling: Tiling
) -> None:
    """What stages 1 to 3 make does not depend on the cut, no frame is late, and none is missing."""
    without_stage_5(model, monkeypatch)
    latent = randn(1, 128, 7, 4, 5)
    expected = whole(model, latent, noise=Silent(0))
    frames = whole(model, latent, noise=Silent(0), tiling=tiling)
    assert frames.shape == expected.shape == (49, 128, 160, 3)
    assert off(frames, expected) < 1e-5


@pytest.mark.soak
def test_a_long_clip_runs_its_first_stages_in_parts(
    model: nn.Module, randn: Callable, off: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the latents of a tile and all that reach them: the result is that of the whole, and memory does not grow."""
    without_stage_5(model, monkeypatch)
    latent, lengths = randn(1, 128, 30, 2, 2), []
    expected = whole(model, latent, noise=Silent(0))
    model.decoder.conv_in.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    frames = whole(model, latent, noise=Silent(0), tiling=Tiling(16, 8, 64, 32))
    assert off(frames, expected) < 1e-5
    assert max(lengths) < 20


@pytest.mark.soak
def test_only_what_a_tile_needs_is_moved(model: nn.Module, randn: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A film's latent stays where it is. What is taken of it is, to the bit, a part of all of it."""
    from a2v.ltx.diffusion.diffusion_decoder import DiffusionTiles  # older versions of diffusers do not have it

    latent, moved = randn(1, 128, 60, 1, 2), []

    class Watched(Tensor):
        def to(self, *place: Any) -> Tensor:
            moved.append(self.shape[2])
            return self.as_subclass(Tensor).to(*place)

    usual = whole(model, latent, tiling=Tiling(16, 0, 64, 0))
    assert torch.equal(whole(model, latent.as_subclass(Watched), tiling=Tiling(16, 0, 64, 0)), usual)
    assert len(moved) > 2 and 0 < max(moved) < 40
    tiles = DiffusionTiles(model, latent, Noise(0))
    raw = denormalize_video(model, latent)
    for axis, side in enumerate((tiles.time, tiles.height, tiles.width), start=2):
        raw = raw.index_select(axis, torch.arange(-side.before, side.length + side.after).clamp(0, side.length - 1))
    assert torch.equal(tiles._raw(7, 19), raw[:, :, 7:19]) and torch.equal(tiles._raw(0, tiles.time.total), raw)


def test_real_windows_differ_near_cuts_only(model: nn.Module, randn: Callable, off: Callable) -> None:
    """With windows that end at a tile's edge, the blended frames are near the whole's, and each is at its time."""
    latent = randn(1, 128, 7, 3, 3)
    expected = whole(model, latent, noise=Silent(0))
    frames = whole(model, latent, noise=Silent(0), tiling=Tiling(24, 16, 96, 32))
    shifted = torch.cat([expected[:1], expected[:-1]])
    assert off(frames, expected) < 0.1 * off(frames, shifted)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 5), (2, 1, 3), (3, 1, 1)])
def test_a_clip_smaller_than_a_window(model: nn.Module, randn: Callable, shape: tuple[int, int, int]) -> None:
    """It is the clip with its edges continued by copies, the result cut out; diffusers refuses it."""
    latent = randn(1, 128, *shape)
    frames = whole(model, latent, noise=Silent(0))
    assert frames.shape == (8 * shape[0] - 7, 32 * shape[1], 32 * shape[2], 3)
    missing = [max(0, 3 - side) for side in shape[1:]]  # the window of the first stage
    before = [each // 2 for each in missing]
    after = [each - early for each, early in zip(missing, before, strict=True)]
    padded = torch.nn.functional.pad(
        latent, (before[1], after[1], before[0], after[0], 0, max(0, 3 - shape[0])), mode="replicate"
    )
    top, left = (32 * early for early in before)
    larger = whole(model, padded, noise=Silent(0))
    expected = larger[: len(frames), top : top + frames.shape[1], left : left + frames.shape[2]]
    torch.testing.assert_close(frames, expected, rtol=0, atol=1e-5)


def test_a_smaller_tile_if_memory_runs_out(
    model: nn.Module, randn: Callable, off: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_stage_5(model, monkeypatch)
    latent, notes = randn(1, 128, 3, 4, 4), []
    expected = whole(model, latent, noise=Silent(0))
    real = model.decoder.denoise

    def scarce(context: Tensor, *rest: Any) -> Tensor:
        if context.shape[2] > 24:
            raise torch.OutOfMemoryError("out of memory")
        return real(context, *rest)

    monkeypatch.setattr(model.decoder, "denoise", scarce)
    frames = whole(model, latent, noise=Silent(0), tiling=Tiling(), on_retry=notes.append)
    assert notes and "did not fit" in notes[-1]
    assert off(frames, expected) < 1e-5
