"""Clips made by the pack's own headless run, and their figures, read back from their pixels.

Scenes are combinations of words that training never saw, voices are ones it never heard, and there is the pack's sample
of speech. figures.py makes the table.
"""

from __future__ import annotations

import json
import math
import tempfile
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..ltx.diffusion import steering
from ..ltx.job import Compute, Files
from ..ltx.media.audio import Track, load_track
from ..ltx.pipeline import run
from ..ltx.request import PARAMETERS, parse
from . import clips, dataset, readers, sizes, sound, voices

SIDE, FRAMES = 128, 49
SPEECH = Path(__file__).resolve().parent.parent / "assets" / "speech.opus"
BASE = {
    "match_audio_length": False,
    "num_frames": FRAMES,
    "video_size": {"width": SIDE, "height": SIDE},
    "enable_prompt_expansion": False,  # the small text encoder cannot write
    "enable_safety_checker": False,
}
SAMPLE = 4  # every so many faces speak the pack's sample
CLEAR, OPEN = 0.6, 0.25  # share of a viseme, and opening, from which on a frame shows what it is
STILL = 0.01  # deviation of an opening below which a mouth does not move
Figures = dict[str, float]
"""Of one clip, by name; NaN where it has none."""


@dataclass(frozen=True, eq=False)
class Case:
    """One held-out clip: what is to be seen and heard, and what the generator itself would show.

    motion: of a face or a pair the opening of the mouth that talks, [frames]; of bars [frames, BARS]; of a ball
    [frames]. mouth: [frames, 3], and shares: of each viseme [frames, 5], of those that speak; number: its place among
    its like, which its noise is drawn by.
    """

    scene: clips.Scene
    track: Track
    motion: np.ndarray
    video: np.ndarray
    mouth: np.ndarray | None = None
    shares: np.ndarray | None = None
    number: int = 0


@dataclass
class Evaluation:
    """Runs requests on one exported set, each at most once, and keeps the figures of each."""

    weights: Path
    seed: int = 0
    say: Callable[[str], None] = lambda text: None
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="mini-evaluate-")))
    made: int = 0
    known: dict[tuple[int, str, str], Figures] = field(default_factory=dict)
    judged: list[Case] = field(default_factory=list)  # whose figures are known

    def video(
        self,
        prompt: str,
        track: Track,
        first: np.ndarray | None = None,
        last: np.ndarray | None = None,
        camera: str | None = None,
        speakers: Sequence[np.ndarray] = (),
        voices: Sequence[Track] = (),
        **request: Any,
    ) -> np.ndarray:
        """The clip that the pack makes: float [T, H, W, 3] in 0..1. speakers: masks [H, W] of who hears the sound, and
        the voice of each."""
        name = self._name()
        images = []
        for what, picture in (("first", first), ("last", last)):
            path = name.with_name(f"{name.name}-{what}.png")
            if picture is not None:
                Image.fromarray((picture * 255 + 0.5).astype(np.uint8)).save(path)
            images.append(path if picture is not None else None)
        masks = [name.with_name(f"{name.name}-speaker{number}.png") for number in range(len(speakers))]
        for path, mask in zip(masks, speakers, strict=True):
            Image.fromarray((mask * 255.0).astype(np.uint8)).save(path)
        heard = [save_wave(path.with_suffix(".wav"), voice) for path, voice in zip(masks, voices, strict=False)]
        lora = {None: None, "dolly_in": sizes.FILES["dolly_in"], "static": sizes.FILES["static"]}[camera]
        return self._run(
            name,
            {**BASE, "prompt": prompt, "camera_lora": camera or "none", **request},
            camera_lora=self.weights / lora if lora else None,
            audio=save_wave(name.with_suffix(".wav"), track),
            image=images[0],
            end_image=images[1],
            speakers=tuple(masks),
            voices=tuple(heard),
        )[0]

    def sound(self, prompt: str, track: Track | None, source: Path | None = None, **request: Any) -> Track:
        """The sound that the pack makes beside a clip, or beside a given video, whose picture stays as it is."""
        name = self._name()
        audio = None if track is None else save_wave(name.with_suffix(".wav"), track)
        base = {**BASE} if source is None else {k: v for k, v in BASE.items() if k.startswith("enable_")}
        return self._run(name, {**base, "prompt": prompt, **request}, audio=audio, video=source)[1]

    def _name(self) -> Path:
        self.made += 1
        return self.folder / f"{self.made:04d}"

    def _run(self, name: Path, request: dict[str, Any], **given: Any) -> tuple[np.ndarray, Track]:
        """Picture and sound of a request, whose files are deleted. restart: of the request, the share and the times of
        restart sampling, which a node offers and a request does not."""
        kept: dict[str, Tensor] = {}
        files = Files(
            checkpoint=self.weights / sizes.FILES["checkpoint"],
            text_encoder=self.weights / sizes.FILES["gemma"],
            upscaler=self.weights / sizes.FILES["upscaler"],
            distill_lora=self.weights / sizes.FILES["distilled"],
            output=name.with_suffix(".mp4"),
            **given,
        )
        restart = partial(steering.Restart, *request.pop("restart", ()))
        asked = parse({"seed": self.seed, **request})
        with patch.object(steering, "Restart", restart):
            run(files, asked, Compute(torch.float32), trace=lambda key, tensor: kept.__setitem__(key, tensor))
        track = load_track(files.output)
        for leftover in self.folder.glob(f"{name.name}*"):
            leftover.unlink()
        frames = next(v for k, v in kept.items() if k.startswith("final/") and v.ndim == 4 and v.shape[-1] == 3)
        return frames.numpy().astype(np.float32) / 255, track

    def figures(self, case: Case, read: Callable[[np.ndarray], Figures], images: str = "", **request: Any) -> Figures:
        """What `read` finds in the clip of that case; a request that was made before is not made again. images: whether
        the clip gets its drawn "first" picture, or "both"."""
        asked = {k: v for k, v in request.items() if k not in PARAMETERS or PARAMETERS[k].default != v}
        key = (id(case), getattr(read, "func", read).__name__, json.dumps([images, asked], sort_keys=True))
        if key not in self.known:
            first, last = case.video[0] if images else None, case.video[-1] if images == "both" else None
            seed = 1000 * self.seed + case.number
            video = self.video(case.scene.prompt, case.track, first, last, **{"seed": seed, **asked})
            self.known[key] = read(video)
            self.judged.append(case)  # so that its id is not another one's later
            told = ", ".join(f"{name} {value:.3f}" for name, value in self.known[key].items())
            self.say(f"{case.number} {images} {asked or 'defaults'}: {told}")
        return self.known[key]


def save_wave(path: Path, track: Track) -> Path:
    """16-bit PCM."""
    samples = (track.waveform.clamp(-1, 1) * 32767).round().to(torch.int16).T.contiguous().numpy()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(track.rate)
        file.writeframes(samples.tobytes())
    return path


def cases(count: int, seed: int, frames: int = FRAMES, kind: str = "face", extras: bool = False) -> list[Case]:
    """Held-out scenes with held-out sounds; every fourth face speaks the pack's sample instead. extras: with hair,
    hats, small heads and patterns."""
    rng, found = np.random.default_rng((seed, 99)), []
    while len(found) < count:
        scene = clips.random_scene(rng, kind)
        if dataset.held_out(scene):
            scene = scene if extras else clips.plain(scene)
            found.append(_case(rng, scene, frames, len(found)))
    return found


def spoken() -> tuple[Track, sound.Sounds]:
    """The pack's own speech and its sounds, as flite told them when it was made."""
    told = json.loads(SPEECH.with_suffix(".json").read_text(encoding="utf-8"))
    return load_track(SPEECH), voices.of_ends(told["phonemes"])


def _case(rng: np.random.Generator, scene: clips.Scene, frames: int, number: int) -> Case:
    fps = sizes.FRAME_RATE
    if scene.kind in ("bars", "ball"):
        track, motion = sound.accompany(rng, scene, frames, fps, held_out=True)
        return Case(scene, track, motion, clips.render(scene, motion, fps, (SIDE, SIDE)), number=number)
    if scene.kind == "face" and number % SAMPLE == SAMPLE - 1:
        whole, known = spoken()
        start = int(rng.integers(0, max(1, whole.waveform.shape[1] - int(frames / fps * whole.rate))))
        track = Track(whole.waveform[:, start:].contiguous(), whole.rate)
        sounds = tuple((max(0.0, begins - start / whole.rate), viseme) for begins, viseme in known)
    else:
        track, sounds = sound.utterance(rng, frames / fps, held_out=True)
    mouth, shares = sound.talk(track, sounds, frames, fps), sound.visemes(sounds, frames, fps)
    video = clips.render(scene, clips.two(scene, mouth), fps, (SIDE, SIDE))
    return Case(scene, track, mouth[:, 0], video, mouth, shares, number)


def accuracy(shapes: np.ndarray, case: Case) -> float:
    """Share of the frames with a clear viseme in which mouths [T, 3] show that one; NaN if no frame has one."""
    if case.shares is None:
        return math.nan
    shares, motion = case.shares[: len(shapes)], case.motion[: len(shapes)]
    true = shares.argmax(1)
    clear = (shares.max(1) >= CLEAR) & ((true == voices.CLOSED) | (motion >= OPEN))
    return float((readers.shown(shapes)[clear] == true[clear]).mean()) if clear.any() else math.nan


def seen(case: Case, other: Case, video: np.ndarray) -> Figures:
    """The figures of a face that is to speak the case's sound. other: another clip, for the sound that it does not."""
    shapes, drawn = readers.mouths(video), case.video[: len(video)]
    opening, frames = shapes[:, 0], len(video)
    return {
        "correlation": readers.correlation(opening, case.motion[:frames]),
        "lag": float(readers.lagged(opening, case.motion[:frames])[1]),
        "other": readers.correlation(opening, other.motion[:frames]),
        "visemes": accuracy(shapes, case),
        "shuffled": accuracy(shapes, other),
        "sharpness": readers.sharpness(video, drawn),
        "flicker": readers.flicker(video, drawn),
        "drift": float(readers.drift(readers.colours(video)).max()),
        "psnr": readers.psnr(video, drawn),
    }


def kept(case: Case, video: np.ndarray) -> Figures:
    """How well a clip keeps the images that it was given: PSNR of its first and its last frame, in dB, and how far its
    colours ever are from those of the first image, of 255."""
    given = readers.colours(case.video)[:1]
    away = readers.drift(np.concatenate([given, readers.colours(video)]))
    return {
        "first": readers.psnr(video[0], case.video[0]),
        "last": readers.psnr(video[-1], case.video[len(video) - 1]),
        "colours": float(away.max()),
    }


def named(scene: clips.Scene, video: np.ndarray) -> Figures:
    """For each word of the scene, whether it is seen: 1 or 0; and the share of them."""
    words = readers.words(video, scene.kind)
    found = {name: float(word == getattr(scene, name)) for name, word in words.items()}
    return {**found, "all words": float(np.mean(list(found.values())))}


def talking(case: Case, video: np.ndarray) -> Figures:
    """Of a pair: whether the right face talks, how well it follows the sound, and how much the other one moves, in its
    movement (NaN if both talk, or none)."""
    mouths = [readers.mouth(half) for half in readers.halves(video)]
    talks = [mouth for mouth, act in zip(mouths, case.scene.acts, strict=True) if act == "talks"]
    rests = [mouth for mouth, act in zip(mouths, case.scene.acts, strict=True) if act != "talks"]
    moves = float(talks[0].std())
    return {
        "right one": float(readers.talker(video) == case.scene.place),
        "correlation": float(np.mean([readers.correlation(mouth, case.motion[: len(mouth)]) for mouth in talks])),
        "the other's movement": float(rests[0].std()) / moves if rests and moves > STILL else math.nan,
    }
