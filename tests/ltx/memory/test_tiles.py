"""Which tiles are chosen for which free memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion.decode import decode_video
from a2v.ltx.diffusion.tiling import USUAL, Tiling, held_frames, largest_tile, tile_count, written
from a2v.ltx.errors import InputError
from a2v.ltx.grid import video_shape
from a2v.ltx.memory import tiles
from a2v.ltx.memory.free import UNKNOWN
from a2v.ltx.memory.rehearsal import weights
from a2v.ltx.memory.tiles import AMPLE, HELD, SHARE, choose, coarse
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.configs import video_vae_config
from a2v.tests.tiny import write_tiny
from diffusers import AutoencoderKLLTX2Video
from torch import nn

OPEN, GIB = Tiling.of(0, 0), 2**30
CLIP, LONG, LARGE = video_shape(121, 576, 1024), video_shape(481, 576, 1024), video_shape(121, 1088, 1920)
BYTES, WEIGHTS = 680_000, 1 << 30  # of a latent in a tile; of the decoder's weights


def whole(grid: tuple[int, int, int]) -> Tiling:
    return Tiling.whole(torch.empty(1, 1, *grid, device="meta"))


def size(grid: tuple[int, int, int], tiling: Tiling) -> int:
    return math.prod(part.stop - part.start for part in largest_tile(grid, tiling))


def frames(grid: tuple[int, int, int], tiling: Tiling) -> int:
    """Bytes of the frames that wait for the encoder."""
    return held_frames(grid, tiling) * 12 * 32 * 32 * grid[1] * grid[2]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Tiling]:
    """A decoder that takes BYTES for each latent of its largest tile; the tilings that were rehearsed."""
    rehearsed: list[Tiling] = []

    def decoding(like: nn.Module, latent: tuple[int, int, int], tiling: Tiling, on: str) -> tuple[int, int]:
        rehearsed.append(tiling)
        return BYTES * size(latent, tiling), frames(latent, tiling)

    monkeypatch.setattr(tiles, "decoding", decoding)
    monkeypatch.setattr(tiles, "twin", lambda vae: vae)
    return rehearsed


@pytest.fixture
def vae() -> nn.Module:
    return nn.Linear(WEIGHTS // 4 // 1024, 1024, bias=False, device="meta")


def test_steps_are_coarse_and_never_above() -> None:
    assert [coarse(n) for n in (0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12)] == [1, 1, 2, 3, 4, 4, 6, 6, 8, 8, 12]
    assert coarse(int(23.4 * GIB)) == coarse(16 * GIB) == 16 * GIB and coarse(139 * GIB) == 128 * GIB
    for room in range(1, 5000, 7):
        assert 2 / 3 * room < coarse(room) <= room


@pytest.mark.parametrize("grid", [CLIP, LONG, LARGE])
@pytest.mark.parametrize("room", [139, 47, 23.4, 11.6, 7.6, 5.6, 3.6])
def test_the_choice_fits_and_no_other_one_that_fits_shares_less(
    asked: list[Tiling], vae: nn.Module, grid: tuple[int, int, int], room: float
) -> None:
    room = int(room * GIB)
    chosen = choose(vae, grid, OPEN, "cuda", room)

    def fits(tiling: Tiling) -> bool:
        """What is rehearsed may be a tenth of what it takes too low, and the decoder's own bytes are known."""
        return BYTES * size(grid, tiling) / 0.9 <= coarse(room) - WEIGHTS and frames(grid, tiling) <= HELD

    assert fits(chosen)
    rest = [tiling for tiling in OPEN.choices(grid) if fits(tiling)]
    assert written(grid, chosen) == min(written(grid, tiling) for tiling in rest)
    assert (chosen == whole(grid)) == fits(whole(grid))
    assert not fits(USUAL) or written(grid, chosen) <= written(grid, USUAL)


def test_few_are_rehearsed(asked: list[Tiling], vae: nn.Module) -> None:
    choose(vae, LONG, OPEN, "cuda", 60 * GIB)
    assert asked == [whole(LONG)]
    for room in (20, 7, 4):
        asked.clear()
        choose(vae, LONG, OPEN, "cuda", room * GIB)
        assert len(asked) <= 3
    asked.clear()
    choose(vae, LONG, OPEN, "cuda", 60 * GIB)
    assert not asked  # what was measured once is known


def test_a_small_change_of_the_free_memory_changes_nothing(asked: list[Tiling], vae: nn.Module) -> None:
    for card in (8, 12, 16, 24, 32, 48, 80, 96, 141):  # some of it is always taken
        found = {choose(vae, LONG, OPEN, "cuda", int(card * GIB * part)) for part in (0.86, 0.9, 0.95, 0.99)}
        assert len(found) == 1, card


@pytest.mark.parametrize("grid", [CLIP, LONG, LARGE])
def test_on_a_cpu_whole_within_a_share_else_as_usual(
    asked: list[Tiling], vae: nn.Module, grid: tuple[int, int, int]
) -> None:
    need = WEIGHTS + BYTES * size(grid, whole(grid)) + frames(grid, whole(grid))
    enough = 1 << (SHARE * need - 1).bit_length()
    assert choose(vae, grid, OPEN, "cpu", enough) == whole(grid)
    assert choose(vae, grid, OPEN, "cpu", SHARE * need // 2) == USUAL
    tight = WEIGHTS + BYTES * size(grid, USUAL) + frames(grid, USUAL)
    narrow = choose(vae, grid, OPEN, "cpu", tight - 1)
    assert narrow.pixels * narrow.frames < USUAL.pixels * USUAL.frames


def test_a_clip_of_one_usual_tile_is_not_rehearsed_on_a_large_machine(asked: list[Tiling], vae: nn.Module) -> None:
    for grid in (video_shape(49, 448, 448), video_shape(73, 768, 768)):
        assert choose(vae, grid, OPEN, "cpu", AMPLE) == whole(grid) and not asked
    for more in ((video_shape(81, 768, 768), AMPLE), (video_shape(49, 448, 448), AMPLE - 1)):
        choose(vae, more[0], OPEN, "cpu", more[1])
        assert asked
        asked.clear()


def test_whatever_fits_nowhere_gets_the_smallest_tiles(asked: list[Tiling], vae: nn.Module) -> None:
    for on in ("cpu", "cuda"):
        assert choose(vae, CLIP, OPEN, on, 1000) == Tiling(16, 8, 64, 32)


@pytest.mark.parametrize("on", ["cpu", "cuda", "mps"])
def test_where_nobody_knows_what_is_free_tiles_are_as_usual(asked: list[Tiling], vae: nn.Module, on: str) -> None:
    assert choose(vae, CLIP, OPEN, on, UNKNOWN) == USUAL and not asked


def test_what_is_given_stays(asked: list[Tiling], vae: nn.Module) -> None:
    for tiling in (USUAL, Tiling(8192, 24, 8192, 64), Tiling(16, 0, 64, 0)):
        assert choose(vae, CLIP, tiling, "cuda", 1000) is tiling and not asked
    assert choose(vae, CLIP, Tiling(0, 24, 512, 64), "cuda", 139 * GIB) == Tiling(128, 24, 512, 64)
    assert choose(vae, CLIP, Tiling(40, 16, 0, 64), "cuda", 139 * GIB) == Tiling(40, 16, 1024, 64)
    assert choose(vae, CLIP, Tiling(40, 16, 0, 64), "cpu", 8 * GIB) == Tiling(40, 16, 768, 64)


@pytest.mark.parametrize(("on", "room"), [("cuda", 139), ("cuda", 2**20), ("cpu", 2**20)])
def test_the_frames_that_wait_do_not_grow_with_the_film(
    asked: list[Tiling], vae: nn.Module, on: str, room: int
) -> None:
    """Ten times as long and then a hundred times: what waits is bounded, and the tiles of the longest are no larger."""
    held = []
    for count in (481, 4809, 64801):
        grid = video_shape(count, 576, 1024)
        chosen = choose(vae, grid, OPEN, on, room * GIB)
        held.append(frames(grid, chosen))
        assert (tile_count(grid, chosen) == 1) == (count == 481)
    assert max(held) <= HELD
    # Where the usual tiles of a large picture hold more than that, they are no larger than usual.
    huge = video_shape(481, 4352, 7680)
    assert frames(huge, USUAL) > HELD
    assert held_frames(huge, choose(vae, huge, OPEN, on, room * GIB)) <= held_frames(huge, USUAL)


@pytest.mark.parametrize(
    ("grid", "room", "wanted"),
    [
        (CLIP, 139, Tiling(128, 24, 1024, 64)),
        (CLIP, 8, Tiling(128, 24, 1024, 64)),
        (CLIP, 7.6, Tiling(128, 24, 544, 64)),
        (LONG, 139, Tiling(488, 24, 1024, 64)),
        (LONG, 23.5, Tiling(256, 24, 1024, 64)),
        (LARGE, 47, Tiling(128, 24, 1920, 64)),
        (LARGE, 31.5, Tiling(128, 24, 992, 64)),  # as a whole it would take 22.2 of 24 GiB, too near to the limit
    ],
)
def test_the_published_decoder(grid: tuple[int, int, int], room: float, wanted: Tiling) -> None:
    """As wide as the published one, in bfloat16 on a GPU: the choices that the documentation has."""
    with torch.device("meta"):
        vae = AutoencoderKLLTX2Video(**video_vae_config({}, "")).eval()
    vae = nn.Module.to(vae, torch.bfloat16)
    assert choose(vae, grid, OPEN, "cuda", int(room * GIB)) == wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("products_on_cuda")
def test_the_choice_fits_on_a_gpu(tmp_path: Path) -> None:
    """A clip is decoded in the tiles that were chosen for a part of the card, within that part."""
    vae = load_checkpoint(write_tiny(tmp_path, layers=1, vae_width=64).checkpoint).video_decoder(torch.bfloat16, "cuda")
    grid = video_shape(121, 576, 1024)
    latent = torch.zeros(1, 128, *grid, device="cuda")
    beside = torch.cuda.memory_allocated() - weights(vae)  # the latent, cuBLAS's workspace, and what other tests keep
    for room in (8 * GIB, GIB):
        chosen = choose(vae, grid, OPEN, "cuda", room)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        told: list[str] = []
        assert sum(map(len, decode_video(vae, latent, chosen, on_tiles=told.append))) == 121
        assert len(told) == 1 and torch.cuda.max_memory_allocated() - beside <= room


def test_a_tile_that_cannot_be_is_refused_before_anything_is_rehearsed(asked: list[Tiling]) -> None:
    with pytest.raises(InputError, match="tile size"):
        Tiling.of(12, 0)
    assert not asked
