"""Tiled decoding against a closed form, the same decoder untiled, ltx-core's own tiles, and the goldens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion import decode
from a2v.ltx.diffusion.decode import decode_video, to_uint8
from a2v.ltx.diffusion.tiling import Tiling, spans
from a2v.ltx.errors import InputError
from a2v.ltx.memory.rehearsal import peak
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.configs import video_vae_config
from a2v.tests.tiny import write_tiny
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from einops import rearrange
from safetensors import safe_open


class Ruler:
    """A decoder whose right answer is a formula: a latent that carries its own position decodes to the positions of
    its pixels. Where a tile begins inside the clip the first frame is NaN: it stands for a whole latent squeezed into
    one frame, and must never be seen."""

    latents_mean, latents_std = torch.zeros(3), torch.ones(3)
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape, self.tiles = shape, 0

    def latent(self) -> torch.Tensor:
        axes = [torch.arange(n, dtype=torch.float32) for n in self.shape]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]

    def pixels(self, t: int, y: int, x: int, f: int, h: int, w: int) -> torch.Tensor:
        """f, h, w latents from t, y, x on, in -1..1, each channel one axis."""
        spans = [
            torch.arange(0 if t == 0 else t * 8, (t + f) * 8 - 7),
            torch.arange(y * 32, (y + h) * 32),
            torch.arange(x * 32, (x + w) * 32),
        ]
        if t:
            spans[0] = spans[0].float()
            spans[0][0] = torch.nan
        whole = [n * s for n, s in zip(self.shape, (8, 32, 32), strict=True)]
        scaled = [span.float() / n * 2 - 1 for span, n in zip(spans, whole, strict=True)]
        return torch.stack(torch.meshgrid(*scaled, indexing="ij"))

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        assert not torch.is_grad_enabled()
        self.tiles += 1
        return (self.pixels(*(int(i) for i in z[0, :, 0, 0, 0]), *z.shape[2:])[None],)


@pytest.mark.parametrize(
    ("shape", "tiling"),
    [
        ((1, 1, 1), Tiling()),
        ((10, 24, 1), Tiling()),  # fits exactly
        ((11, 3, 5), Tiling()),  # one latent too many
        ((31, 2, 2), Tiling()),
        ((7, 2, 3), Tiling(16, 0, 64, 0)),
        ((9, 3, 2), Tiling(16, 8, 64, 32)),
        ((7, 4, 6), Tiling(40, 16, 128, 32)),
        ((7, 5, 4), Tiling(40, 32, 128, 96)),  # three tiles and more meet
        ((1, 5, 40), Tiling(80, 24, 256, 64)),  # a short side of one or two tiles' overlap
        ((5, 4, 6), None),
    ],
)
def test_every_pixel_is_where_it_belongs(shape: tuple[int, int, int], tiling: Tiling | None) -> None:
    vae, progress = Ruler(shape), []
    chunks = list(decode_video(vae, vae.latent(), tiling, lambda *state: progress.append(state)))
    frames = torch.cat(chunks)
    expected = rearrange((vae.pixels(0, 0, 0, *shape) + 1) / 2, "c f h w -> f h w c")
    assert frames.shape == expected.shape and frames.dtype == torch.float32
    torch.testing.assert_close(frames, expected, atol=1e-6, rtol=0)
    assert progress == [(i + 1, vae.tiles) for i in range(vae.tiles)]


def test_frames_leave_while_later_tiles_wait() -> None:
    vae = Ruler((60, 1, 1))
    seen = []
    for chunk in decode_video(vae, vae.latent(), Tiling()):
        assert len(chunk) <= decode.CHUNK
        assert chunk.untyped_storage().nbytes() == chunk.nbytes  # it keeps nothing else alive
        seen.append((vae.tiles, len(chunk)))
    assert vae.tiles == 9
    for tile in range(1, 9):
        # Seven latents of the ten are final when the tile is: the other three wait for the next.
        assert sum(n for t, n in seen if t <= tile) == tile * 56 - 7


def test_a_callback_ends_it() -> None:
    vae = Ruler((60, 1, 1))

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(decode_video(vae, vae.latent(), Tiling(), stop))
    assert vae.tiles == 2


@pytest.mark.parametrize(
    "values", [(84, 24), (8, 0), (80, 80), (80, 12), (80, -8), (80, 24, 700), (80, 24, 32), (80, 24, 768, 48)]
)
def test_impossible_tiles_are_refused(values: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="tile"):
        Tiling(*values)


def test_a_batch_is_refused() -> None:
    with pytest.raises(InputError, match=r"\[2, 128, 3, 2, 2\]"):
        next(decode_video(None, torch.zeros(2, 128, 3, 2, 2)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_decoder_that_gives_no_numbers_is_told_and_makes_no_black_film(value: float) -> None:
    class Broken(Ruler):
        def pixels(self, *tile: int) -> torch.Tensor:
            return super().pixels(*tile).index_fill_(3, torch.tensor([5]), value)

    broken = Broken((2, 2, 2))
    with pytest.raises(InputError, match=r"decode: the video VAE gave NaN or infinite values.*float32"):
        list(decode_video(broken, broken.latent()))


def test_uint8_is_truncated() -> None:
    assert to_uint8(torch.tensor([0.0, 0.9999, 1.0, 0.5, 1 / 255 - 1e-6])).tolist() == [0, 254, 255, 127, 0]


# Where memory runs out


class Cramped(Ruler):
    """A Ruler with room for tiles of so many latents and no more; `refuse(call, shape)` overrides."""

    def __init__(self, shape: tuple[int, int, int], room: int, error: Exception | None = None) -> None:
        super().__init__(shape)
        self.room, self.error, self.refused = room, error or torch.OutOfMemoryError("CUDA out of memory."), []
        self.decoded: list[int] = []  # frames from the clip's start, of each tile that fitted

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        if z[0, 0].numel() > self.room:
            self.refused.append(tuple(z.shape[2:]))
            raise self.error
        self.decoded.append(int(z[0, 0, 0, 0, 0]))
        return super().decode(z)


ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "Python": MemoryError(),
    "torch on the CPU": RuntimeError(
        "DefaultCPUAllocator: not enough memory: you tried to allocate 17179869184 bytes."
    ),
    "torch on Linux": RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"
    ),
    "Apple": RuntimeError("Invalid buffer size: 19.38 GiB"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize(
    ("shape", "tiling", "room"),
    [
        ((16, 4, 6), Tiling(80, 24, 192, 64), 100),
        ((16, 4, 6), Tiling(80, 24, 192, 64), 60),
        ((12, 3, 4), Tiling(80, 24, 128, 64), 12),  # the smallest
        ((9, 2, 2), Tiling(80, 24, 64, 0), 21),  # frames alone can shrink
        ((2, 6, 4), Tiling(80, 24, 192, 64), 20),  # pixels alone
        ((12, 3, 5), None, 50),
    ],
)
def test_where_a_tile_does_not_fit_smaller_ones_give_every_pixel(
    shape: tuple[int, int, int], tiling: Tiling | None, room: int, error: Exception
) -> None:
    vae, notes, freed, progress = Cramped(shape, room, error), [], [], []
    chunks = decode_video(
        vae,
        vae.latent(),
        tiling,
        lambda *state: progress.append(state),
        on_retry=notes.append,
        free=lambda: freed.append(len(vae.refused)),
    )
    frames = torch.cat(list(chunks))
    expected = rearrange((vae.pixels(0, 0, 0, *shape) + 1) / 2, "c f h w -> f h w c")
    torch.testing.assert_close(frames, expected, atol=1e-6, rtol=0)
    assert vae.refused and len(notes) == len(vae.refused) and freed == [n + 1 for n in range(len(notes))]
    assert [done for done, _ in progress] == list(range(1, vae.tiles + 1)) and progress[-1][1] == vae.tiles


def test_tiles_halve_in_pixels_and_in_frames_by_turns() -> None:
    latent, tiling, seen = torch.zeros(1, 3, 61, 18, 32), Tiling(), []
    while tiling is not None:
        seen.append((tiling.pixels, tiling.pixel_overlap, tiling.frames, tiling.frame_overlap))
        tiling = tiling.smaller(latent)
    assert seen == [
        (768, 64, 80, 24), (384, 64, 80, 24), (384, 64, 40, 16), (192, 64, 40, 16),
        (192, 64, 16, 8), (96, 32, 16, 8), (64, 32, 16, 8),
    ]  # fmt: skip
    # What is larger than the clip counts as the clip.
    assert Tiling(800, 24, 2048, 64).smaller(torch.zeros(1, 3, 2, 4, 6)) == Tiling(16, 8, 96, 32)


def test_the_note_says_what_was_asked_and_what_was_done() -> None:
    vae, notes = Cramped((31, 4, 24), 12 * 4 * 6), []
    for _ in decode_video(vae, vae.latent(), Tiling(), on_retry=notes.append):
        pass
    assert notes == [
        "decoded in tiles of 384 px and 80 frames: 768 and 80 did not fit",
        "decoded in tiles of 384 px and 40 frames: 768 and 80 did not fit",
    ]


# The decoder itself, on weights made here


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_tiny(tmp_path_factory.mktemp("tiny"), layers=1, vae_width=16).checkpoint)


@pytest.fixture(scope="module")
def vae(checkpoint: Path) -> torch.nn.Module:
    return load_checkpoint(checkpoint).video_vae(dtype=torch.float32)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 128, *shape, generator=torch.Generator().manual_seed(seed))


def decoded(vae: torch.nn.Module, latent: torch.Tensor, tiling: Tiling | None) -> torch.Tensor:
    return torch.cat(list(decode_video(vae, latent, tiling)))


@torch.no_grad()
def reach(vae: torch.nn.Module, axis: int) -> int:
    """Receptive field along an axis of the latent, in latents: how far from a changed latent the output changes."""
    shape = [1, 1, 1]
    shape[axis] = 31
    latent = noise(*shape)
    other = latent.clone().select(axis + 2, 15).add_(1)
    changed = latent.clone()
    changed.select(axis + 2, 15).copy_(other)
    difference = (decoded(vae, latent, None) - decoded(vae, changed, None)).abs()
    touched = difference.movedim(axis, 0).flatten(1).amax(1).nonzero().flatten()
    first, last = int(touched[0]), int(touched[-1])
    if axis == 0:  # frame 8k is the last of latent k
        return max(15 - -(-first // 8), -(-last // 8) - 15)
    return max(15 - first // 32, last // 32 - 15)


def test_far_from_a_cut_nothing_changes_in_time(vae: torch.nn.Module) -> None:
    far = reach(vae, 0)
    assert far == 7  # and so it is by counting 3x3x3 kernels: 4 at latent rate, 3 at twice, 3 at four, 6 at eight times
    latent = noise(60, 1, 1, seed=1)
    whole, tiled = decoded(vae, latent, None), decoded(vae, latent, Tiling(320, 24))
    assert tiled.shape == whole.shape == (473, 32, 32, 3)
    error = (tiled - whole).abs().flatten(1).amax(1)
    # Tiles read [0, 40) and [36, 60).
    before, after = (36 - far) * 8, (40 + far) * 8
    assert error[:before].max() <= 1e-5 and error[after:].max() <= 1e-5
    assert error[before:after].max() > 1e-3  # or the test would prove nothing
    for shift in (-1, 1):  # and a frame late, or early, would be seen
        assert (tiled[after:-1] - whole[after + shift : len(whole) - 1 + shift]).abs().max() > 1e-2


def test_far_from_a_cut_nothing_changes_in_space(vae: torch.nn.Module) -> None:
    far = reach(vae, 2)
    assert far == reach(vae, 1) and 6 <= far <= 10
    latent = noise(1, 1, 46, seed=2)
    for turned in (False, True):
        z = latent.transpose(3, 4) if turned else latent
        error = (decoded(vae, z, Tiling()) - decoded(vae, z, None)).abs().amax((0, 3)).amax(1 if turned else 0)
        assert error[: (22 - far) * 32].max() <= 1e-5 and error[(24 + far) * 32 :].max() <= 1e-5
        assert error.max() > 1e-3


def test_what_fits_one_tile_is_untiled_bit_for_bit(vae: torch.nn.Module) -> None:
    latent = noise(3, 2, 3, seed=3)
    with torch.no_grad():
        mean, std = (v.view(1, -1, 1, 1, 1) for v in (vae.latents_mean, vae.latents_std))
        plain = vae.decode(latent * std + mean).sample
    plain = rearrange(((plain + 1) / 2).clamp(0, 1), "1 c f h w -> f h w c")
    assert torch.equal(decoded(vae, latent, Tiling()), plain)
    assert torch.equal(decoded(vae, latent, None), plain)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.soak)], ids=str)
def test_the_decoder_is_diffusers_own_to_the_bit_in_less_memory(checkpoint: Path, dtype: torch.dtype) -> None:
    original, ours = (load_checkpoint(checkpoint).video_vae(dtype=dtype) for _ in range(2))
    decode.slim(ours)
    blocks = {type(block) for block in ours.modules() if isinstance(block, decode.LTX2VideoResnetBlock3d)}
    assert blocks == {decode.ResnetBlock}
    latent, image = noise(3, 2, 3, seed=3).to(dtype), torch.rand(1, 3, 9, 64, 64).to(dtype)
    assert torch.equal(ours.decode(latent).sample, original.decode(latent).sample)
    assert torch.equal(ours.encode(image).latent_dist.mode(), original.encode(image).latent_dist.mode())
    with torch.device("meta"):  # as wide as the published one
        real = [AutoencoderKLLTX2Video(**video_vae_config({}, "")).eval() for _ in range(2)]
    decode.slim(real[1])
    tile = torch.empty(1, 128, 11, 14, 24, device="meta")
    before, after = (peak(lambda vae=vae: vae.decode(tile)) for vae in real)
    assert after < 0.85 * before


def test_the_model_s_dtype_is_used_and_floats_come_back(checkpoint: Path, vae: torch.nn.Module) -> None:
    latent = noise(3, 2, 2, seed=4)
    with torch.inference_mode():  # ComfyUI runs nodes in it
        half = decoded(load_checkpoint(checkpoint).video_vae(dtype=torch.bfloat16), latent, Tiling(16, 8, 64, 32))
    assert half.dtype == torch.float32
    assert 0 < (half - decoded(vae, latent, Tiling(16, 8, 64, 32))).abs().mean() < 2e-2


class Failing:
    """A decoder whose memory runs out once, at its `at`-th tile."""

    def __init__(self, vae: torch.nn.Module, at: int) -> None:
        self.vae, self.at, self.calls = vae, at, []
        self.device, self.dtype = vae.device, vae.dtype
        self.latents_mean, self.latents_std = vae.latents_mean, vae.latents_std

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        self.calls.append(z)
        if len(self.calls) == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.vae.decode(z, return_dict=return_dict)


@pytest.fixture(scope="module")
def retiled(vae: torch.nn.Module) -> tuple[torch.Tensor, Tiling, torch.Tensor, torch.Tensor]:
    """A latent of 3 time tiles of 2 latents, each 4 tiles; the tiling; its frames; those of the next smaller one."""
    latent, first = noise(4, 3, 7, seed=6), Tiling(16, 8, 160, 32)
    second = first.smaller(latent)
    assert second == Tiling(16, 8, 64, 32)  # on the same grid in time
    return latent, first, decoded(vae, latent, first), decoded(vae, latent, second)


@pytest.mark.parametrize("at", [1, 5, pytest.param(12, marks=pytest.mark.soak)])
def test_what_has_left_is_neither_changed_nor_decoded_again(
    vae: torch.nn.Module, retiled: tuple[torch.Tensor, Tiling, torch.Tensor, torch.Tensor], at: int
) -> None:
    """Memory runs out at the `at`-th tile: what is before its time tile is the first tiling's, what is behind the
    overlap the second's, bit for bit, and each is decoded once."""
    latent, first, before, after = retiled
    failing = Failing(vae, at)
    frames = torch.cat(list(decode_video(failing, latent, first)))
    whole = (at - 1) // 4  # time tiles that were finished
    start, stop = (0, 0) if not whole else (8 * whole - 7, 8 * whole + 1)
    assert torch.equal(frames[:start], before[:start]) and torch.equal(frames[stop:], after[stop:])
    assert not torch.equal(before[stop:], after[stop:])
    times, rows, columns = spans((4, 3, 7), first.smaller(latent))
    assert len(failing.calls) == at + (len(times) - whole) * len(rows) * len(columns)


def test_two_tilings_meet_in_a_ramp() -> None:
    """Large tiles are dark and small ones light: the step between them is the ramp of any two tiles."""

    class Shade(Failing):
        def decode(self, z: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
            if len(self.calls) >= self.at and z.shape[2] > 6:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            self.calls.append(z)
            f, h, w = z.shape[2:]
            return (torch.full((1, 3, 8 * f - 7, 32 * h, 32 * w), -1.0 if z.shape[2] > 6 else 1.0),)

    vae = Shade(Ruler((31, 1, 1)), 2)
    frames = torch.cat(list(decode_video(vae, noise(31, 1, 1)[:, :3], Tiling(80, 24))))
    # Two time tiles, [0, 10) and [7, 17): the third begins at latent 14, whose first frame is 8 * 13 + 1.
    expected = torch.cat((torch.zeros(105), torch.arange(1, 25) / 25, torch.ones(112)))
    torch.testing.assert_close(frames.mean((1, 2, 3)), expected, atol=1e-6, rtol=0)


def test_a_tile_smaller_than_what_two_tilings_share() -> None:
    """Frames already decoded in part, and weighted, may last longer than a new tile."""
    vae = Cramped((31, 1, 1), 100)
    chunks = decode_video(vae, vae.latent(), Tiling(160, 144))
    seen = [next(chunks)]
    vae.room = 4
    frames = torch.cat([*seen, *chunks])
    expected = rearrange((vae.pixels(0, 0, 0, 31, 1, 1) + 1) / 2, "c f h w -> f h w c")
    torch.testing.assert_close(frames, expected, atol=1e-6, rtol=0)


def test_where_the_smallest_tile_does_not_fit_one_sentence_says_so() -> None:
    vae = Cramped((3, 4, 4), 1)
    with pytest.raises(
        InputError, match=r"^decode: there is not enough memory .* 64 px and 16 frames; .*smaller video\.$"
    ):
        next(decode_video(vae, vae.latent()))


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    vae = Cramped((3, 4, 4), 1, RuntimeError("Given groups=1, weight of size [1]"))
    with pytest.raises(RuntimeError, match="groups"):
        next(decode_video(vae, vae.latent()))
    assert len(vae.refused) == 1


# ltx-core 1.0.0 on the same weights


@pytest.fixture(scope="module")
def peer(checkpoint: Path) -> torch.nn.Module:
    pytest.importorskip("ltx_core", reason="ltx-core, the peer, is not installed")
    from ltx_core.loader.single_gpu_model_builder import SingleGPUModelBuilder
    from ltx_core.model.video_vae import VAE_DECODER_COMFY_KEYS_FILTER, VideoDecoderConfigurator

    builder = SingleGPUModelBuilder(
        model_path=str(checkpoint),
        model_class_configurator=VideoDecoderConfigurator,
        model_sd_ops=VAE_DECODER_COMFY_KEYS_FILTER,
    )
    return builder.build(device=torch.device("cpu"), dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("shape", "tiling"),
    [
        ((12, 1, 1), Tiling()),
        ((9, 1, 1), Tiling(32, 8)),
        ((8, 1, 1), Tiling(40, 24)),  # three tiles meet
        ((1, 4, 7), Tiling(80, 24, 128, 32)),
        ((1, 5, 4), Tiling(80, 24, 96, 64)),
        ((4, 2, 3), Tiling(24, 8, 64, 32)),
    ],
)
@torch.no_grad()
def test_no_worse_than_ltx_core_with_the_same_tiles(
    vae: torch.nn.Module, peer: torch.nn.Module, shape: tuple[int, int, int], tiling: Tiling
) -> None:
    from ltx_core.model.video_vae.tiling import SpatialTilingConfig, TemporalTilingConfig, TilingConfig

    latent = noise(*shape, seed=5)
    same_tiles = TilingConfig(
        SpatialTilingConfig(tiling.pixels, tiling.pixel_overlap),
        TemporalTilingConfig(tiling.frames, tiling.frame_overlap),
    )

    def finished(pixels: torch.Tensor) -> torch.Tensor:
        return rearrange(((pixels + 1) / 2).clamp(0, 1), "1 c f h w -> f h w c")

    untiled = finished(peer(latent))
    theirs = (finished(torch.cat(list(peer.tiled_decode(latent, same_tiles)), 2)) - untiled).abs()
    ours = (decoded(vae, latent, tiling) - untiled).abs()
    assert ours.shape == theirs.shape
    assert theirs.max() > 1e-3  # the tiles do cut something
    rms = [error.square().mean((1, 2, 3)).sqrt() for error in (ours, theirs)]
    assert (rms[0] <= rms[1] + 1e-5).all()
    assert (ours <= theirs + 1e-4).all()


# The goldens


@pytest.mark.parametrize("name", ["ltx2", "endpoint_defaults", "linear_quadratic_ge"])
def test_goldens(oracle: Path, name: str) -> None:
    vae = load_checkpoint(oracle / "tiny" / "ltx-2.3-tiny.safetensors").video_vae(dtype=torch.float32)
    with safe_open(oracle / f"{name}.safetensors", "pt") as golden:
        latent, expected = golden.get_tensor("final/video_latent"), golden.get_tensor("final/frames_u8")
    frames = to_uint8(decoded(vae, latent, Tiling()))
    assert frames.shape == expected.shape
    difference = (frames.int() - expected.int()).abs()
    assert (difference > 1).float().mean() <= 1e-3
