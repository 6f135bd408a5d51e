"""Where tiles lie, which sizes are tried, and what the report says of them, against counting pixel by pixel."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from a2v.ltx.diffusion.decode import decode_video
from a2v.ltx.diffusion.tiling import (
    USUAL,
    Tiling,
    cuts,
    held_frames,
    in_words,
    largest_tile,
    spans,
    tile_count,
    volume,
    written,
)
from a2v.ltx.errors import InputError
from a2v.ltx.grid import frames_of, video_shape
from a2v.tests.ltx.diffusion.test_decode import Cramped, Ruler

OPEN = Tiling.of(0, 0)
GRIDS = [(1, 1, 1), (2, 3, 5), (16, 18, 32), (61, 34, 60), (40, 32, 18)]


def covered(grid: tuple[int, int, int], tiling: Tiling) -> torch.Tensor:
    """How many tiles write each pixel of each frame, [frames, height in latents, width in latents]."""
    found = torch.zeros(frames_of(grid[0]), *grid[1:], dtype=torch.int64)
    times, rows, columns = spans(grid, tiling)
    for time in times:
        for row in rows:
            for column in columns:
                found[time.samples, row.latents, column.latents] += 1
    return found


@pytest.mark.parametrize("tiling", [USUAL, Tiling(16, 8, 64, 32), Tiling(40, 24, 128, 96), Tiling(48, 0, 448, 0)])
@pytest.mark.parametrize("grid", GRIDS)
def test_what_the_tiles_share_is_what_is_counted(grid: tuple[int, int, int], tiling: Tiling) -> None:
    counts = covered(grid, tiling)
    assert counts.min() == 1
    assert written(grid, tiling) == int(counts.sum()) * 32 * 32 == volume(*spans(grid, tiling))
    times, rows, columns = spans(grid, tiling)
    assert tile_count(grid, tiling) == len(times) * len(rows) * len(columns)
    largest = max(
        ((t, r, c) for t in times for r in rows for c in columns),
        key=lambda tile: [part.latents.stop - part.latents.start for part in tile],
    )
    assert largest_tile(grid, tiling) == tuple(span.own for span in largest)


@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_tried_shares_least_first(grid: tuple[int, int, int]) -> None:
    found = OPEN.choices(grid)
    assert found[0] == Tiling.whole(torch.empty(1, 1, *grid)) and tile_count(grid, found[0]) == 1
    shared = [written(grid, tiling) for tiling in found]
    assert shared == sorted(shared) and USUAL in found
    for tiling in found:
        if tile_count(grid, tiling) > 1:  # the overlap that hides a seam is kept
            assert tiling.frame_overlap == 24 or tiling.frames >= grid[0] * 8
            assert tiling.pixel_overlap == 64 or tiling.pixels >= max(grid[1:]) * 32
    # A size is given up for a clearly smaller one.
    times = sorted({tiling.frames for tiling in found} - {80}, reverse=True)
    assert all(after <= 0.75 * before for before, after in pairwise(times))


def test_pieces_are_as_even_as_can_be() -> None:
    grid = video_shape(121, 576, 1024)
    tiling = next(tiling for tiling in OPEN.choices(grid) if tiling.frames == 128 and tiling.pixels < 1024)
    assert tiling == Tiling(128, 24, 544, 64)
    assert cuts(grid, tiling)[2] == [(0, 17), (15, 32)]


def test_a_given_size_stays() -> None:
    grid = video_shape(121, 576, 1024)
    assert {tiling.pixels for tiling in Tiling(0, 24, 512, 96).choices(grid)} == {512}
    assert {tiling.pixel_overlap for tiling in Tiling(0, 24, 128, 96).choices(grid)} == {96}
    assert {tiling.frames for tiling in Tiling(40, 32, 0, 64).choices(grid)} == {40}
    assert {tiling.frame_overlap for tiling in Tiling(40, 32, 0, 64).choices(grid)} == {32}
    with pytest.raises(ValueError, match="no open size"):
        USUAL.choices(grid)


def test_open_sizes() -> None:
    assert OPEN.open and Tiling(0).open and Tiling(pixels=0).open and not USUAL.open
    assert OPEN.closed(USUAL) == USUAL and USUAL.closed(OPEN) == USUAL
    assert OPEN.closed(Tiling(16, 0, 64, 0)) == Tiling(16, 8, 64, 32)
    assert Tiling.of(0, 512) == Tiling(0, 24, 512, 64) and Tiling.of(40, 96) == Tiling(40, 16, 96, 32)
    with pytest.raises(ValueError, match="open tiling"):
        next(decode_video(Ruler((3, 4, 4)), Ruler((3, 4, 4)).latent(), OPEN))


@pytest.mark.parametrize(("sizes", "name"), [((84, 0), "84 frames"), ((-8, 0), "-8 frames"), ((0, 32), "32 pixels")])
def test_sizes_that_no_tile_can_have(sizes: tuple[int, int], name: str) -> None:
    with pytest.raises(InputError, match=rf"tile size of {name} must be a multiple .* 0 is chosen"):
        Tiling.of(*sizes)


def test_the_overlap_of_an_open_size_is_checked() -> None:
    for values in ((0, -8), (0, 12), (80, 24, 0, 48)):
        with pytest.raises(InputError, match="tile overlap"):
            Tiling(*values)


def told(vae: Ruler, tiling: Tiling | None) -> list[str]:
    sentences: list[str] = []
    list(decode_video(vae, vae.latent(), tiling, on_tiles=sentences.append))
    return sentences


def test_the_report_says_whole_or_how_many_tiles_and_what_is_decoded_twice() -> None:
    assert told(Ruler((3, 4, 4)), USUAL) == told(Ruler((12, 3, 3)), None) == ["decoded whole"]
    vae = Ruler((16, 4, 6))
    (sentence,) = told(vae, Tiling(80, 24, 128, 64))
    again = covered((16, 4, 6), Tiling(80, 24, 128, 64)).double().mean() - 1
    assert (
        sentence
        == f"decoded in {vae.tiles} tiles of at most 80 frames and 128 pixels; {again:.0%} of the clip twice".replace(
            "%", " %"
        )
    )
    # A tile that is longer or wider than the clip has the clip's size.
    assert "of at most 17 frames and 64 pixels;" in told(Ruler((3, 4, 4)), Tiling(800, 24, 64, 0))[0]
    assert told(Ruler((16, 1, 1)), Tiling(64, 0))[0].endswith("; 0 % of the clip twice")


def test_the_usual_tiles_of_the_usual_clips() -> None:
    """The figures that the documentation has."""
    for size, wanted in (((121, 576, 1024), (8, 41)), ((481, 576, 1024), (36, 65))):
        grid = video_shape(*size)
        sentence = in_words(grid, USUAL, tile_count(grid, USUAL), written(grid, USUAL))
        assert (
            tuple(map(int, re.match(r"decoded in (\d+) tiles .*; (\d+) % of the clip twice", sentence).groups()))
            == wanted
        )


class Counting(Cramped):
    """Counts the pixels that its tiles write, in frames of one latent's size."""

    written = 0

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        pixels = super().decode(z)
        frames, height, width = z.shape[2:]
        # A tile inside the clip reads a latent more, and its first frame is dropped.
        self.written += (frames_of(frames) - bool(z[0, 0, 0, 0, 0])) * height * width
        return pixels


def test_tiles_that_got_smaller_are_counted_with_those_before() -> None:
    """Also the tiles that were decoded and thrown away with the row that did not fit."""
    shape, sentences = (31, 4, 8), []
    vae = Counting(shape, 11 * 2 * 4)

    def scarce(done: int, total: int) -> None:
        if done == 14:  # in the middle of the second time tile
            vae.room = 8 * 2 * 4

    list(decode_video(vae, vae.latent(), Tiling(80, 24, 128, 32), scarce, on_tiles=sentences.append))
    assert len(vae.refused) == 1 and len(sentences) == 2
    count, again = map(
        int,
        re.fullmatch(
            r"decoded in (\d+) tiles of at most 80 frames and 128 pixels; (\d+) % of the clip twice", sentences[-1]
        ).groups(),
    )
    assert count == vae.tiles > 14
    assert again == round(100 * (vae.written / (frames_of(31) * 4 * 8) - 1))


def test_no_choice_is_needed_to_hold_fewer_frames_than_a_tile_has() -> None:
    """What waits for the encoder: all of a clip that is decoded whole, else a tile, what it shares, and a chunk."""
    grid = video_shape(481, 64, 64)
    assert held_frames(grid, Tiling.whole(torch.empty(1, 1, *grid))) == held_frames(grid, None) == 481
    for tiling in OPEN.choices(grid):
        if tiling.frames < 488:
            assert held_frames(grid, tiling) == tiling.frames + tiling.frame_overlap + 8
