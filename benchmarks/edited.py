"""Jobs on given videos by the trained miniature, and the figures of what they made.

The sources are held-out clips that mini/ draws and that are written to .mp4. The films are read back from the files
that the jobs wrote. Every task is a function of a clip's number that returns its figures; edits.py makes the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from a2v.benchmarks.films import drift
from a2v.benchmarks.levels import miniature
from a2v.ltx import pipeline
from a2v.ltx.given import SEAM
from a2v.ltx.grid import TIME_SCALE, frames_of
from a2v.ltx.job import Compute, Files
from a2v.ltx.media.audio import Track
from a2v.ltx.media.clip import open_clip
from a2v.ltx.media.video import write_video
from a2v.ltx.request import parse
from a2v.mini import clips, evaluate, readers, sizes
from PIL import Image
from torch import Tensor

COUNT, SEED = 8, 0
SIDE, RATE = evaluate.SIDE, Fraction(sizes.FRAME_RATE)
SHORT, LONG, FILM = 49, 73, 97  # frames of a source that is extended, of the others, and of an extension
GROWN = 12.0  # pixels by which a mask is wider than the open mouth
RETAKEN, RENEWED = (1.0, 2.0), slice(17, 49)  # seconds, and the frames of the latents that reach into them
KEYFRAMES = 0, 24, 48
BASE = {"enable_prompt_expansion": False, "enable_safety_checker": False, "seed": SEED}
Figures = dict[str, float]


@dataclass(frozen=True)
class Made:
    """What a job made, uint8 [T, H, W, 3] each. frames: as they went to the encoder; written: as its file has them."""

    frames: np.ndarray
    written: np.ndarray

    @property
    def mouth(self) -> np.ndarray:
        """How far it is open in each frame."""
        return readers.mouth(self.written.astype(np.float32) / 255)


@cache
def cases(frames: int) -> list[evaluate.Case]:
    return evaluate.cases(COUNT, SEED, frames)


def make(folder: Path, prompt: str, request: dict[str, Any], **given: Any) -> Made:
    """Runs a job. given: its files beside the miniature's."""
    paths = {key: Path(path) for key, path in miniature(folder).items()} | {"audio": None} | given
    handed: list[Tensor] = []

    def watched(path: Path, frames: Iterator[Tensor], *rest: Any, **named: Any) -> Any:
        handed.extend(frames)
        return write_video(path, iter(handed), *rest, **named)

    with patch.object(pipeline, "write_video", watched):
        pipeline.run(Files(**paths), parse({**BASE, "prompt": prompt, **request}), Compute(torch.float32))
    return Made(torch.cat(handed).numpy(), read(paths["output"]))


def read(path: Path) -> np.ndarray:
    """The frames of a file, uint8 [T, H, W, 3]."""
    clip = open_clip(path)
    return torch.stack(list(clip.pictures(clip.fps, clip.count(clip.fps)))).numpy()


def write(path: Path, video: np.ndarray, track: Track | None, quality: str = "maximum") -> Path:
    """Writes frames, floats in 0..1 or uint8, as the pack writes them."""
    frames = video if video.dtype == np.uint8 else (video * 255 + 0.5).astype(np.uint8)
    write_video(path, [torch.from_numpy(frames)], RATE, track, quality=quality)
    return path


def cut(track: Track, frames: slice) -> Track:
    """The sound of these frames."""
    start, stop = (round(frame / RATE * track.rate) for frame in (frames.start, frames.stop))
    return Track(track.waveform[:, start:stop].contiguous(), track.rate)


def mask_of(scene: clips.Scene, frames: int, grown: float) -> np.ndarray:
    """Where an open mouth is seen at any time, grown by so many pixels: bool [H, W]."""
    at, found = np.arange(SIDE) + 0.5 - SIDE / 2, np.zeros((SIDE, SIDE), bool)
    places = (each * SIDE for each in clips.head(scene, frames, sizes.FRAME_RATE))
    for x, y, radius in zip(*places, strict=True):
        wide, high = clips.WIDEST * radius + grown, clips.OPEN * radius + grown
        found |= ((at[None] - x) / wide) ** 2 + ((at[:, None] - y - clips.MOUTH_LOW * radius) / high) ** 2 <= 1
    return found


def redub(folder: str, number: int, grown: float = GROWN, **request: Any) -> Figures:
    """A clip with another clip's sound, the one that is least like its own, and a mask of its mouth."""
    place, case = Path(folder), cases(LONG)[number]
    others = [each for each in cases(LONG) if each is not case]
    other = min(others, key=lambda each: abs(readers.correlation(case.motion, each.motion)))
    source, mask = write(place / "source.mp4", case.video, case.track), mask_of(case.scene, LONG, grown)
    Image.fromarray(mask.astype(np.uint8) * 255).save(place / "mask.png")
    voice = evaluate.save_wave(place / "voice.wav", other.track)
    made = make(place, case.scene.prompt, request, video=source, mask=place / "mask.png", audio=voice)
    given, mouth = read(source), made.mouth
    wanted = clips.render(case.scene, other.mouth, sizes.FRAME_RATE, (SIDE, SIDE))

    def outside(video: np.ndarray) -> float:
        return readers.psnr(video[:, ~mask] / 255, given[:, ~mask] / 255)

    return {
        "new": readers.correlation(mouth, other.motion),
        "lag": readers.lagged(mouth, other.motion)[1],
        "old": readers.correlation(mouth, case.motion),
        "tracks": readers.correlation(case.motion, other.motion),
        "inside": readers.psnr(made.written[:, mask] / 255, wanted[:, mask]),
        "outside": outside(made.frames),
        "high": outside(made.written),
        "maximum": outside(read(write(place / "best.mp4", made.frames, None))),
        "codec": outside(read(write(place / "again.mp4", given, None, "high"))),
    }


def retake(folder: str, number: int, **edit: Any) -> Figures:
    """A second of a clip anew, with the clip's own sound."""
    place, case = Path(folder), cases(LONG)[number]
    source = write(place / "source.mp4", case.video, case.track)
    made = make(place, case.scene.prompt, {"edit": {"start": RETAKEN[0], "end": RETAKEN[1], **edit}}, video=source)
    given, old = read(source), np.delete(np.arange(LONG), RENEWED)
    return {
        "correlation": readers.correlation(made.mouth[RENEWED], case.motion[RENEWED]),
        "picture": readers.psnr(made.written[RENEWED] / 255, case.video[RENEWED]),
        "kept": readers.psnr(made.frames[old] / 255, given[old] / 255),
        **seams(made.written, case.video, (RENEWED.start, RENEWED.stop)),
    }


def extend(folder: str, number: int, before: bool = False) -> Figures:
    """Two seconds more before or behind a clip, with sound that goes on."""
    place, case, more = Path(folder), cases(FILM)[number], FILM - SHORT
    kept = slice(more, FILM) if before else slice(0, SHORT)
    source = write(place / "source.mp4", case.video[kept], cut(case.track, kept))
    sound = evaluate.save_wave(place / "sound.wav", case.track)
    request = {"num_frames": FILM, **({"edit": {"at": more / float(RATE)}} if before else {})}
    made = make(place, case.scene.prompt, request, video=source, audio=sound)
    edge = frames_of(latents_to(more)) if before else SHORT
    new, old = (slice(0, edge), slice(edge, FILM)) if before else (slice(edge, FILM), slice(0, edge))
    ground, face = drift(made.written)
    given = read(source)
    return {
        "correlation": readers.correlation(made.mouth[new], case.motion[new]),
        "picture": readers.psnr(made.written[new] / 255, case.video[new]),
        "ground": ground,
        "face": face,
        "kept": readers.psnr(made.frames[old] / 255, given[-(FILM - edge) :] / 255 if before else given / 255),
        **seams(made.written, case.video, (edge,)),
    }


def keyframes(folder: str, number: int) -> Figures:
    """A new clip with its own pictures at three frames."""
    place, case, named = Path(folder), cases(SHORT)[number], []
    for frame in KEYFRAMES:
        named.append((place / f"{frame}.png", frame, 1.0))
        Image.fromarray((case.video[frame] * 255 + 0.5).astype(np.uint8)).save(named[-1][0])
    voice = evaluate.save_wave(place / "voice.wav", case.track)
    made = make(place, case.scene.prompt, evaluate.BASE, audio=voice, keyframes=tuple(named))
    found = {f"frame {frame}": readers.psnr(made.written[frame] / 255, case.video[frame]) for frame in KEYFRAMES}
    return {**found, "correlation": readers.correlation(made.mouth, case.motion)}


def latents_to(frame: int) -> int:
    """How many latents there are up to the one with that frame, and with it."""
    return -(-frame // TIME_SCALE) + 1


def seams(made: np.ndarray, drawn: np.ndarray, edges: tuple[int, ...]) -> Figures:
    """The change at the edges of what was made, against the film's median change, and the largest change of the frames
    that are blended there; the same of the clip as it was drawn."""
    found = {}
    for name, video in (("", made), (", drawn", drawn * 255)):
        changes = np.abs(np.diff(video.astype(np.float32), axis=0)).mean((1, 2, 3))
        usual = np.median(changes)
        found[f"seam{name}"] = float(max(changes[edge - 1] for edge in edges) / usual)
        found[f"around{name}"] = float(max(changes[edge - 1 - SEAM : edge + SEAM].max() for edge in edges) / usual)
    return found
