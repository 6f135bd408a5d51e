"""Parts of a film that several machines make together. A part ends at hard cuts, so it depends on nothing outside it.

Each machine samples its part and saves the latents, the sound and the noise of the last stage in a file. One machine
takes these files up in place of sampling, and decodes the whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from ..ltx.characters import check_name
from ..ltx.diffusion.conditioning import AudioCondition
from ..ltx.errors import InputError
from ..ltx.latents import Noise, NoiseSource, pixel_frames, pixel_size
from ..ltx.media.unfinished import disk_errors, replacing
from ..ltx.timeline import MOST
from ..ltx.windows import shares
from . import files
from .destination import check_prefix, destination
from .film import MADE, Cut, FilmSound, Made, check_clip
from .progress import reported, shown
from .taking.latent import samples_of
from .taking.noise import NextNoise
from .types import AudioIO, WindowsIO
from .widgets import aliases
from .windows import FILMS

ENDING, FORMAT = ".safetensors", "ltx-a2v film part 1"
WHOLE = 0  # the number of no part


class FilmPart(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VFilmPart",
            display_name="LTX A2V Film Part",
            category=FILMS,
            description="Lets several machines make one film. A part ends at hard cuts of the timeline, so it depends "
            "on nothing outside it. Put this node between Window and Audio Conditioning: each machine samples one "
            "part and saves it with Save Film Part, and one of them takes all files up and decodes the film. Servers "
            "of a cluster do this by themselves.",
            **aliases("cluster", "distributed", "several GPUs"),
            inputs=[
                WindowsIO.Input("film", tooltip="From Window, with a timeline that has hard cuts."),
                io.Int.Input(
                    "part",
                    default=WHOLE,
                    min=WHOLE,
                    max=MOST,
                    tooltip="The number of the part that is sampled here, from 1. 0 samples the whole film, except the "
                    "parts in the files below.",
                ),
                io.Int.Input(
                    "parts",
                    default=2,
                    min=1,
                    max=MOST,
                    tooltip="How many parts there are. They are about equally long. Give all machines the same number.",
                ),
                io.String.Input(
                    "made",
                    multiline=True,
                    default="",
                    tooltip="The files of finished parts in ComfyUI's output folder, one on each line. Missing parts "
                    "are sampled here.",
                ),
            ],
            outputs=[
                WindowsIO.Output("windows", display_name="windows", tooltip="For Audio Conditioning."),
                io.String.Output("report", display_name="report", tooltip="Says which windows are sampled here."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, made: str | None = None) -> bool | str:
        return files.verdict(_paths, made)

    @classmethod
    def fingerprint_inputs(cls, made: str | None = None, **_: object) -> str:
        return " ".join(files.stamp(path) for path in _paths(made or "") if path.is_file())

    @classmethod
    def execute(cls, film: Cut, part: int, parts: int, made: str) -> io.NodeOutput:
        places = shares(film.windows, parts)
        if part > len(places):
            cuts = len(film.hard)
            raise InputError(f"part: there is no part {part}; a film with {cuts} hard cuts has {len(places)} of them.")
        taken = tuple(_look(path, film) for path in _paths(made) if path.is_file())
        here = places[part - 1] if part else range(len(film.windows))
        there = {number for each in taken for number in each.numbers}
        result = replace(film, made=taken, here=frozenset(here) - there)
        if not result.here:
            told = f"all {len(film.windows)} windows were made before"
        else:
            told = f"{len(result.here)} of {len(film.windows)} windows are made here"
        return reported(cls, result, text=told)


class SaveFilmPart(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VSaveFilmPart",
            display_name="LTX A2V Save Film Part",
            category=FILMS,
            description="Saves the part of a film that this machine has sampled, for Film Part on the machine that "
            "decodes the film. The file goes to ComfyUI's output folder.",
            **aliases("cluster", "distributed", "several GPUs"),
            inputs=[
                io.Latent.Input("latent", tooltip="From the last sampler."),
                io.Noise.Input("noise", tooltip="Next noise of the last sampler."),
                AudioIO.Input("audio", tooltip="Next audio of the last sampler."),
                io.String.Input(
                    "filename_prefix",
                    default="parts/ltx-a2v",
                    tooltip="Name of the file, with folders; a number is added.",
                ),
            ],
            outputs=[io.String.Output("file", display_name="file", tooltip="The name of the file, for Film Part.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return files.verdict(check_prefix, filename_prefix)

    @classmethod
    def execute(
        cls, latent: dict[str, Any], noise: Any, audio: AudioCondition | FilmSound, filename_prefix: str
    ) -> io.NodeOutput:
        if not isinstance(audio, FilmSound):
            raise InputError("audio: it has no windows, and only a film in windows has parts; connect Window.")
        samples, cut = samples_of(latent), audio.cut
        numbers = sorted(range(len(cut.windows)) if cut.here is None else cut.here)
        if not numbers:
            raise InputError("audio: no window was sampled here; choose a part in Film Part.")
        check_clip("latent", cut, pixel_frames(samples), cut.fps)
        folder, name, subfolder = destination(filename_prefix, 0, 0, ENDING, hidden=cls.hidden)
        with replacing(folder / name) as partial, disk_errors(folder / name):
            save_file(_content(samples, noise, audio, numbers), partial, {"format": FORMAT, **_facts(cut, numbers)})
        for path in audio.kept:  # the file has them now
            with suppress(OSError):
                path.unlink()
        where = f"{subfolder}/{name}" if subfolder else name
        told = {"filename": name, "subfolder": subfolder, "notes": []}
        return io.NodeOutput(where, ui={**shown(where), "report": [told]})


def join(
    cut: Cut, whole: Tensor, sounds: tuple[AudioCondition, ...], streams: tuple[NoiseSource, ...]
) -> tuple[Tensor, tuple[AudioCondition, ...], tuple[NoiseSource, ...]]:
    """A stage's results with those of the parts that were made before, if it is their stage: they have its size.
    `whole` is overwritten. Raises InputError if a file cannot be read, or its part has the size of no stage."""
    heard, drawn = list(sounds), list(streams)
    for part in cut.made:
        tensors = _read(part.path)
        size, here = pixel_size(tensors["video"]), pixel_size(whole)
        if size == tuple(2 * side for side in here):  # this is the stage before the upscaler
            continue
        _check_size(part.path, size, here)
        numbers = part.numbers
        whole[:, :, cut.windows[numbers[0]].new.start : cut.windows[numbers[-1]].stop] = tensors["video"]
        for number in numbers:
            heard[number] = heard[number].made(tensors[f"sound {number}"])
        for number, source in enumerate(drawn):
            if (state := tensors.get(f"noise {number}")) is not None and isinstance(source, Noise):
                drawn[number] = Noise(source.seed, state)
    return whole, tuple(heard), tuple(drawn)


def check_taken(latent: dict[str, Any]) -> None:
    """Raises InputError if parts that were made before are of another size than the film of a LATENT, so that its last
    stage did not take them up. A file that was deleted since is not looked at."""
    for path in filter(Path.is_file, latent.get(MADE, ())):
        with safe_open(path, "pt") as file:  # its head alone
            shape = file.get_slice("video").get_shape()
        _check_size(path, pixel_size(torch.empty(shape, device="meta")), pixel_size(samples_of(latent)))


def _check_size(path: Path, size: tuple[int, int], here: tuple[int, int]) -> None:
    """Raises InputError if a part is of another height and width than the film."""
    if size != here:
        (high, wide), (height, width) = size, here
        raise InputError(
            f"made: {path.name} is a part of {wide}×{high} pixels, but this film has {width}×{height}; make that part "
            "again, or give this film its size."
        )


def _content(samples: Tensor, noise: Any, audio: FilmSound, numbers: list[int]) -> dict[str, Tensor]:
    windows = audio.cut.windows
    if numbers != list(range(numbers[0], numbers[-1] + 1)):
        raise InputError("audio: the windows that were sampled here do not follow one another; choose a part.")
    found = {"video": samples[:, :, windows[numbers[0]].new.start : windows[numbers[-1]].stop]}
    found |= {f"sound {number}": audio.sounds[number].latent for number in numbers}
    if isinstance(noise, NextNoise):
        streams = noise.streams or (noise.noise,)
        found |= {f"noise {n}": each.state for n, each in enumerate(streams) if each.state is not None}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def _facts(cut: Cut, numbers: list[int]) -> dict[str, str]:
    """What a file says about itself: its windows, a hash of the whole film's, which all parts share, and a hash of what
    its own sections and windows show."""
    places = [[each.start, each.length, each.given, each.cut] for each in cut.windows]
    held = [float(cut.size.anchor), float(cut.size.drift)]
    film = [cut.frames, str(cut.fps), places, [str(each) for each in cut.sections], held]
    first, last = numbers[0], numbers[-1]
    return {"film": _hash(film), "windows": f"{first} {last}", "shown": _hash(_shown(cut, range(first, last + 1)))}


def _shown(cut: Cut, numbers: range) -> list[Any]:
    """What these windows of a film show, as far as the graph says it: the words, seeds and images of their sections,
    and seeds of their own. Other parts may change without them."""
    own = cut.windows[numbers.start : numbers.stop]
    latents = range(own[0].new.start, own[-1].stop) if own else range(0)
    sections = [each for each in cut.sections if each.first_latent(cut.fps) in latents]
    seeds = [[number, seed] for number, seed in cut.size.seeds if number - 1 in numbers]
    return [[[each.prompt, each.seed, each.image] for each in sections], seeds]


def _hash(told: list[Any]) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _look(path: Path, film: Cut) -> Made:
    """The windows that a file has. Raises InputError if it is no part of this film."""
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"made: {path.name} is damaged; make that part again.") from error
    place = re.fullmatch(r"(\d{1,6}) (\d{1,6})", facts.get("windows", ""))
    if facts.get("format") != FORMAT or place is None:
        raise InputError(f"made: {path.name} is no part of a film; name files of Save Film Part.")
    first, last = map(int, place.groups())
    numbers = range(first, last + 1)
    if facts != {"format": FORMAT, **_facts(film, [first, last])}:
        raise InputError(f"made: {path.name} is a part of another film, or of other windows; make it again.")
    return Made(path, numbers)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())  # tensors that map a file keep Windows from deleting it
    except (OSError, SafetensorError) as error:
        raise InputError(f"made: {path.name} cannot be read any more; make that part again.") from error


def _paths(text: str) -> list[Path]:
    """The files that a text names, one a line, whether they are there or not. Raises InputError if one is outside
    ComfyUI's output folder."""
    base, found = Path(folder_paths.get_output_directory()).resolve(), []
    for name in filter(None, map(str.strip, text.splitlines())):
        check_name("made", name)
        path = (base / name.replace("\\", "/")).resolve()
        if not path.is_relative_to(base) or path.suffix != ENDING:
            raise InputError(f"made: {name!r} is no {ENDING} file in ComfyUI's output folder; copy it there.")
        found.append(path)
    return found


NODES = (FilmPart, SaveFilmPart)
