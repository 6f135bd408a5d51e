"""Masks: which cells and which pixels may change, and what comes back where nothing may."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.media.clip import ImageClip
from a2v.ltx.media.masks import Area, area_of, blend, fitted, open_area
from PIL import Image

from .clips import write_clip

RATE = Fraction(24)


def box(top: int, bottom: int, left: int, right: int, height: int = 96, width: int = 128) -> torch.Tensor:
    mask = torch.zeros(height, width)
    mask[top:bottom, left:right] = 1
    return mask


def clip(height: int, width: int, frames: int = 9, fps: Fraction = RATE) -> ImageClip:
    return ImageClip(torch.zeros(frames, height, width, 3), fps)


# Cells


@pytest.mark.parametrize("seed", range(8))
def test_a_cell_may_change_if_any_pixel_in_it_may(seed: int) -> None:
    """At the video's own size, against a loop over all pixels."""
    draw = torch.Generator().manual_seed(seed)
    masks = torch.where(torch.rand(17, 64, 96, generator=draw) > 0.9995, torch.rand(17, 64, 96, generator=draw), 0.0)
    area = area_of(masks).on(clip(64, 96, 17), RATE)
    wanted = torch.zeros(3, 2, 3)
    for frame, row, column in masks.nonzero().tolist():
        cell = 0 if frame == 0 else (frame - 1) // 8 + 1, row // 32, column // 32
        wanted[cell] = max(wanted[cell], masks[frame, row, column])
    assert torch.equal(area.cells(17, 64, 96)[0, 0], wanted)


def test_one_mask_holds_for_all_times() -> None:
    area = area_of(box(0, 32, 32, 33)).on(clip(96, 128), RATE)
    cells = area.cells(25, 96, 128)
    assert cells.shape == (1, 1, 4, 3, 4) and area.still
    assert cells[0, 0, :, 0, 1].tolist() == [1] * 4 and cells.sum() == 4


@pytest.mark.parametrize("size", [(96, 128), (48, 64), (192, 256), (37, 51)])
def test_a_mask_of_any_size_lies_over_the_same_picture(size: tuple[int, int]) -> None:
    """The lower right quarter, for a stage of the clip's size and for one of half of it."""
    height, width = size
    mask = torch.zeros(size)
    mask[-(height // 2) :, -(width // 2) :] = 1
    area = area_of(mask).on(clip(128, 256), RATE)
    for scale in (1, 2):
        cells = area.cells(9, 128 // scale, 256 // scale)[0, 0, 0]
        assert bool((cells[-(cells.shape[0] // 2) :, -(cells.shape[1] // 2) :] == 1).all())
        assert cells[0, 0] == 0


def test_what_the_crop_cuts_off_changes_nothing() -> None:
    """A square clip in a wide video loses its top and its bottom, as its pictures do."""
    mask = torch.zeros(256, 256)
    mask[:40], mask[200:202, 10] = 1, 1
    area = area_of(mask).on(clip(256, 256), RATE)
    assert area.cells(1, 128, 256)[0, 0].sum() == 0  # rows 64 to 192 are shown
    mask[180:182, 10] = 1
    cells = area_of(mask).on(clip(256, 256), RATE).cells(1, 128, 256)[0, 0, 0]
    assert cells[3, 0] == 1 and cells.sum() == 1


def test_a_moving_mask_follows_the_clips_time(tmp_path: Path) -> None:
    """A batch belongs to the clip's frames and a video has its own time; both are read at the video's rate."""
    masks = torch.zeros(12, 32, 32)
    masks[6:] = 1
    area = area_of(masks).on(clip(32, 32, 12, Fraction(12)), RATE)  # white from 0.5 s on
    white = np.stack([np.full((32, 32, 3), 255 * (number >= 6), np.uint8) for number in range(12)])
    film = open_area(write_clip(tmp_path / "a.mkv", white, fps=Fraction(12))).on(clip(32, 32), RATE)
    for each in (area, film):
        assert [float(weight.max()) for weight in replace(each, feather=0).weights(17, 32, 32)] == [0] * 12 + [1] * 5
        assert each.cells(17, 32, 32).flatten().tolist() == [0, 0, 1]
        late = replace(each, start=Fraction(1, 2))
        assert late.cells(9, 32, 32).flatten().tolist() == [1, 1]


# Edges


def test_softened_in_space() -> None:
    """The mask rises inwards: d pixels from the outside it is d / (radius + 1)."""
    area = replace(area_of(box(0, 96, 40, 128)), soften=31, feather=0).on(clip(96, 128), RATE)
    (weight,) = area.weights(1, 96, 128)
    distance = (torch.arange(128) - 39).clamp(0, 32) / 32
    torch.testing.assert_close(weight, distance.expand(96, 128), atol=1e-6, rtol=0)
    cells = area.cells(1, 96, 128)[0, 0, 0]
    torch.testing.assert_close(cells, torch.tensor([0, 24 / 32, 1.0, 1.0]).expand(3, 4), atol=1e-6, rtol=0)


def test_the_seam_lies_inside() -> None:
    area = replace(area_of(box(32, 64, 32, 96)), feather=8).on(clip(96, 128), RATE)
    (weight,) = area.weights(1, 96, 128)
    inside = box(32, 64, 32, 96)
    assert bool((weight[inside == 0] == 0).all()) and bool((weight[inside == 1] > 0).all())
    assert weight[48, 32:42].tolist() == pytest.approx([min(d, 9) / 9 for d in range(1, 11)])
    assert area.cells(1, 96, 128).sum() == 2  # the seam does not change the cells


def test_the_seam_is_in_pixels_of_the_source() -> None:
    area = replace(area_of(box(0, 96, 64, 128)), feather=8).on(clip(96, 128), RATE)
    (weight,) = area.weights(1, 192, 256)
    assert int(((weight[90] > 0) & (weight[90] < 1)).sum()) in range(15, 18)


def test_thin_masks_stay() -> None:
    (weight,) = area_of(box(0, 96, 50, 52)).on(clip(96, 128), RATE).weights(1, 96, 128)
    assert 0 < weight[40, 50] < 1 and weight[40, 49] == 0


@pytest.mark.parametrize("frames", [1, 2, 5, 17])
@pytest.mark.parametrize("seconds", [0, 0.05, 0.125, 1.0])
def test_softened_in_time(frames: int, seconds: float) -> None:
    """Against the formula on the whole row of frames: the mean of the lowest values around each."""
    draw = torch.Generator().manual_seed(frames)
    row = (torch.rand(frames, generator=draw) > 0.3).float()
    area = replace(area_of(row[:, None, None].expand(-1, 32, 32)), soften_time=seconds, feather=0)
    found = [float(weight[0, 0]) for weight in area.on(clip(32, 32, frames), RATE).weights(frames, 32, 32)]
    radius = round(seconds * 24)
    lowest = [
        [float(row[max(0, at - near) : at + near + 1].min()) for near in range(radius + 1)] for at in range(frames)
    ]
    assert found == pytest.approx([sum(values) / (radius + 1) for values in lowest])


def test_a_mask_larger_or_smaller_than_the_video_leaks_nowhere() -> None:
    """Where the mask's nearest pixel is 0, the weight is exactly 0."""
    for size in ((24, 32), (300, 401)):
        mask = (torch.rand(*size, generator=torch.Generator().manual_seed(1)) > 0.7).float()
        (weight,) = area_of(mask).on(clip(96, 128), RATE).weights(1, 96, 128)
        nearest = torch.nn.functional.interpolate(mask[None, None], (96, 128), mode="nearest-exact")[0, 0]
        assert bool((weight[nearest == 0] == 0).all()) and weight.max() > 0


# Blending


def test_nothing_may_change() -> None:
    """The source comes out byte for byte, whatever was decoded."""
    draw = torch.Generator().manual_seed(0)
    source, new = (torch.randint(0, 256, (9, 32, 64, 3), dtype=torch.uint8, generator=draw) for _ in range(2))
    weights = area_of(torch.zeros(32, 64)).on(clip(32, 64), RATE).weights(9, 32, 64)
    assert torch.equal(torch.cat(list(blend(new.split(4), source, weights))), source)
    weights = area_of(torch.ones(32, 64)).on(clip(32, 64), RATE).weights(9, 32, 64)
    assert torch.equal(torch.cat(list(blend(new.split(4), source, weights))), new)


def test_outside_the_mask_the_source_comes_back() -> None:
    draw = torch.Generator().manual_seed(0)
    source, new = (torch.randint(0, 256, (9, 96, 128, 3), dtype=torch.uint8, generator=draw) for _ in range(2))
    mask = box(20, 60, 30, 90)
    weights = list(area_of(mask).on(clip(96, 128), RATE).weights(9, 96, 128))
    found = torch.cat(list(blend(new.split(2), iter(source), weights)))
    assert torch.equal(found[:, mask == 0], source[:, mask == 0])
    inside = weights[0] == 1
    assert torch.equal(found[:, inside], new[:, inside]) and inside.any()
    seam = (weights[0] > 0) & (weights[0] < 1)
    mixed = source.double() + (new.double() - source.double()) * weights[0][..., None].double()
    assert (found.double() - mixed)[:, seam].abs().max() <= 0.51


def test_blending_streams() -> None:
    """No frame of the source is read before its decoded one is there."""
    read = []

    def source():
        for number in range(16):
            read.append(number)
            yield torch.zeros(32, 32, 3, dtype=torch.uint8)

    chunks = blend(torch.zeros(16, 32, 32, 3, dtype=torch.uint8).split(4), source(), [torch.ones(32, 32)] * 16)
    next(chunks)
    assert read == [0, 1, 2, 3]


def test_every_byte_survives_fitting() -> None:
    pictures = [torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1).expand(16, 16, 3)]
    assert torch.equal(next(fitted(pictures, 16, 16)), pictures[0])
    wide = pictures[0].repeat_interleave(2, 0).repeat_interleave(2, 1)[:, :30]
    (cut,) = fitted([wide], 30, 30)  # the same scale, one row cut off at each side
    assert torch.equal(cut, wide[1:31])


# What comes in


@pytest.mark.parametrize("shape", [(8, 6), (1, 8, 6), (3, 8, 6), (3, 1, 8, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.bool])
def test_every_kind_of_mask(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.ones(shape).mul(255 if dtype == torch.uint8 else 1).to(dtype)
    area = area_of(values)
    assert area.frames.dtype == torch.float32 and area.frames.shape[1:] == (8, 6) and area.frames.min() == 1


@pytest.mark.parametrize(
    "mask",
    [None, torch.zeros(0, 4, 4), torch.zeros(4), torch.zeros(1, 3, 4, 4), torch.full((4, 4), torch.nan)],
)
def test_strange_masks(mask: object) -> None:
    with pytest.raises(InputError, match="mask: "):
        area_of(mask)


def test_mask_files(tmp_path: Path) -> None:
    Image.fromarray((box(0, 48, 0, 128).numpy() * 255).astype(np.uint8)).save(tmp_path / "a.png")
    still = open_area(tmp_path / "a.png").on(clip(96, 128), RATE)
    assert still.still and still.cells(1, 96, 128)[0, 0, 0, :, 0].tolist() == [1, 1, 0]
    frames = [Image.fromarray(np.full((32, 32), value, np.uint8)) for value in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=500)
    assert open_area(tmp_path / "a.gif").on(clip(32, 32), RATE).cells(25, 32, 32).flatten().tolist() == [0, 0, 1, 1]
    (tmp_path / "text.png").write_text("nothing")
    for name in ("text.png", "none.png"):
        with pytest.raises(InputError, match=name):
            open_area(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "value"), [("soften", -1), ("feather", 1000), ("soften_time", 60), ("feather_time", -1)]
)
def test_options_out_of_range(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^{name.removesuffix('_time')}: "):
        Area(torch.ones(1, 4, 4), **{name: value})
