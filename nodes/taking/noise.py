"""NOISE: the engine's stream of noise from a seed, or the noise that another node generates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ...ltx.diffusion.sample_windows import noise_seeds
from ...ltx.errors import InputError
from ...ltx.grid import CHANNELS
from ...ltx.latents import Noise, NoiseSource, patchify_video
from ..film import Cut
from ..progress import INTERRUPTS

PROBE = (1, CHANNELS, 2, 3, 5)  # a small latent that tells whether a NOISE is Gaussian noise from its seed


@dataclass(frozen=True, eq=False)
class NextNoise:
    """A native NOISE that continues the noise stream of a stage, so that one seed drives both stages in sequence.

    streams: all of them, if sections of a film have streams of their own; the first one is `noise`.
    """

    noise: Noise
    streams: tuple[Noise, ...] = ()

    @property
    def seed(self) -> int:
        return self.noise.seed

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Noise of the latent's shape, float32 on the CPU. ComfyUI's own samplers call this."""
        (drawn,), _ = self.noise.draw(tuple(input_latent["samples"].shape))
        return drawn


@dataclass(frozen=True, eq=False)
class Generated:
    """Another node's NOISE for one stage. native: that NOISE; grid: what it generated for the stage's latent, as tokens
    [1, N, 128]."""

    native: Any
    grid: Tensor

    @property
    def seed(self) -> int:
        return _seed(self.native)

    @property
    def note(self) -> str:
        """The sentence for the report."""
        name = type(self.native).__name__
        return f"the noise is {name}'s own" if self.grid.any() else f"no noise was added, as {name} gives none"

    def draw(self, *shapes: tuple[int, ...]) -> tuple[list[Tensor], Generated]:
        """Tokens [1, N, 128] for each shape; the first shape begins with the tokens of the latent's grid.

        The tokens beside the grid (keyframes, sound) come from the end of a longer row, because a NOISE with a seed
        begins anew with each call and would repeat the grid's numbers there.
        """
        counts, drawn = [shape[1] for shape in shapes], self.grid
        if sum(counts) > drawn.shape[1]:
            row = _generate(self.native, {"samples": torch.zeros(1, CHANNELS, 1, 1, sum(counts))})
            drawn = torch.cat([drawn, patchify_video(row)[:, drawn.shape[1] :]], dim=1)
        return list(drawn.split(counts, dim=1)), self


@dataclass(frozen=True, eq=False)
class GeneratedFilm(Generated):
    """The same for a film in windows: each window gets what was generated for its place in the whole latent. places:
    of the windows, in tokens of the grid; number: of the next window."""

    places: tuple[slice, ...] = ()
    number: int = 0

    def draw(self, *shapes: tuple[int, ...]) -> tuple[list[Tensor], GeneratedFilm]:
        """As `Generated`. The tokens beside the grid come from another part of the longer row for each window."""
        counts, drawn = [shape[1] for shape in shapes], self.grid[:, self.places[self.number]]
        beside = sum(counts) - drawn.shape[1]
        if beside > 0:
            length = self.grid.shape[1] + (self.number + 1) * beside
            row = _generate(self.native, {"samples": torch.zeros(1, CHANNELS, 1, 1, length)})
            drawn = torch.cat([drawn, patchify_video(row)[:, -beside:]], dim=1)
        return list(drawn.split(counts, dim=1)), replace(self, number=self.number + 1)


def to_streams(noise: Any, latent: dict[str, Any], film: Cut) -> tuple[NoiseSource, ...]:
    """A native NOISE as the streams that the sections of a film draw from; a film without sections, and a clip, have
    one. Raises InputError as `to_noise`, and if the NOISE continues another film."""
    seeds = noise_seeds(film.sections, 0, film.size)
    if isinstance(noise, NextNoise):
        given = noise.streams or (noise.noise,)
        if len(given) != len(seeds):
            raise InputError(
                f"noise: it continues {len(given)} streams of noise, but this film's sections have {len(seeds)}; "
                "connect the next noise of this film's first sampler."
            )
        return given
    source = to_noise(noise, latent)
    if isinstance(source, Generated):
        if len(film.windows) == 1:
            return (source,)
        cells = source.grid.shape[1] // film.windows[-1].stop
        places = tuple(slice(each.start * cells, each.stop * cells) for each in film.windows)
        return (GeneratedFilm(source.native, source.grid, places),)
    return tuple(map(Noise, noise_seeds(film.sections, source.seed, film.size)))


def to_noise(noise: Any, latent: dict[str, Any]) -> NoiseSource:
    """A native NOISE as the engine draws from it, for a stage that starts from that native LATENT.

    A NOISE that gives ComfyUI's Gaussian noise for its seed, as RandomNoise, is the engine's own stream of that seed,
    which also draws for the sound and for the second stage. Any other NOISE gives what it generates. Raises InputError
    if that cannot be used.
    """
    if isinstance(noise, NextNoise):
        return noise.noise
    if not callable(getattr(noise, "generate_noise", None)):
        if isinstance(getattr(noise, "seed", None), int):
            return Noise(noise.seed)
        raise InputError(f"noise: it is {type(noise).__name__}; connect RandomNoise or another node that gives NOISE.")
    seed, probe = _seed(noise), torch.zeros(PROBE)
    if torch.equal(_generate(noise, {"samples": probe}), comfy.sample.prepare_noise(probe, seed % 2**64)):
        return Noise(seed)
    return Generated(noise, patchify_video(_generate(noise, latent)))


def _generate(noise: Any, latent: dict[str, Any]) -> Tensor:
    """What a NOISE generates for a native LATENT, float32 on the CPU. Raises InputError if it cannot be used."""
    wanted = latent["samples"]
    given = {**latent, "samples": wanted.float().cpu()}
    try:
        made = noise.generate_noise(given)
    except INTERRUPTS:  # ComfyUI's interrupt is a plain Exception
        raise
    except Exception as error:  # another pack's code may raise anything
        raise InputError(
            f"noise: {type(noise).__name__} failed for a latent {list(wanted.shape)} ({type(error).__name__}); connect "
            "RandomNoise instead."
        ) from error
    if not isinstance(made, Tensor) or made.shape != wanted.shape:
        shape = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise InputError(f"noise: it is {shape} for a latent {list(wanted.shape)}; connect RandomNoise instead.")
    made = made.detach().to("cpu", torch.float32)
    if not made.isfinite().all():
        raise InputError("noise: it has NaN or infinite values; check the node that it comes from.")
    return made


def _seed(noise: Any) -> int:
    """The seed of a NOISE for the noise that samplers renew, 0 if it has none."""
    seed = getattr(noise, "seed", 0)
    return int(seed) if isinstance(seed, (int, float)) and math.isfinite(seed) else 0
