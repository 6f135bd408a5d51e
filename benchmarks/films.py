"""Films of minutes in windows, on the trained miniature: whether the mouth follows the sound to the end, whether
colours drift, whether joins are seen, and what a window costs.

Each film is made by a headless run in a process of its own and read back from its pixels by the readers of mini/.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from a2v.benchmarks.levels import FRAMES, miniature
from a2v.benchmarks.measure import MISSING, Table, resident, say, sides
from a2v.ltx.grid import frames_of
from a2v.ltx.job import Compute, Files
from a2v.ltx.media.audio import Track
from a2v.ltx.media.preprocess import preprocess
from a2v.ltx.pipeline import run
from a2v.ltx.plan import plan
from a2v.ltx.request import Request, parse
from a2v.mini import clips, dataset, evaluate, readers, sizes, sound

MINUTE = 1440  # frames
SECOND = 24
BLOCK = 240  # frames that are compared with the ones before them at a time
CORNER = 8  # pixels of the ground at the upper left
SINGLE = 121  # frames of a clip without windows
LEAST = 0.8  # of a minute's correlation
WANTED = {"correlation": f"≥ {LEAST}", "drift": "≤ 8", "join": "≤ 2", "words": "≥ 100 %"}


@dataclass(frozen=True)
class Film:
    """A film to make. minutes: its length; sung: whether there is music behind the voices; sections: each with a face
    of its own, behind hard cuts; windows: the request's."""

    minutes: float
    sung: bool = False
    sections: int = 1
    windows: Any = True
    seed: int = 0


FILMS = {
    "speech": Film(5),
    "song": Film(3, sung=True),
    "song in 3 sections": Film(3, sung=True, sections=3),
}
SMALL = Film(81 / MINUTE, windows={"frames": 33, "overlap": 2})


@dataclass
class Watch:
    """Seconds of the processor and bytes of each window, by its stage.

    Other programs change these seconds little, and those of a clock much. Bytes are the most that the process itself
    holds after a step. Pages of files (weights, libraries) are not counted, because the system drops them and reads
    them again as it needs room. What is loaded between the stages and after them belongs to no window.
    """

    windows: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    phase: str = ""
    begun: float = 0.0
    held: int = 0

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self.phase:
            now, (stage, _, number) = time.process_time(), self.phase.partition(", window ")
            if number:
                self.windows.setdefault(stage, []).append((now - self.begun, self.held))
            self.phase, self.begun, self.held = phase, now, 0
        self.held = max(self.held, resident("RssAnon"))


@dataclass(frozen=True)
class Material:
    """What a film is made of: a face for each section, the sound, and the mouth's opening at each frame."""

    asked: Film
    scenes: list[clips.Scene]
    track: Track
    motion: np.ndarray

    @classmethod
    def of(cls, asked: Film) -> Material:
        draw = np.random.default_rng((asked.seed, 99))
        frames = round(asked.minutes * MINUTE / 8) * 8 + 1
        scenes = _scenes(draw, asked.sections)
        track, sounds = (sound.song if asked.sung else sound.utterance)(draw, frames / sizes.FRAME_RATE, held_out=True)
        return cls(asked, scenes, track, sound.talk(track, sounds, frames, sizes.FRAME_RATE)[:, 0])

    def request(self) -> Request:
        values = {**evaluate.BASE, "prompt": self.scenes[0].prompt, "seed": self.asked.seed}
        values |= {"num_frames": len(self.motion), "windows": self.asked.windows}
        if self.asked.sections > 1:
            values["timeline"] = "\n".join(_lines(self.scenes, self.asked.minutes))
        return parse(values)

    def borders(self) -> list[int]:
        """The first frame of each section, and the film's end."""
        planned = plan(self.request(), self.track)
        return [*([section.first_frame(planned.fps) for section in planned.sections] or [0]), planned.frames]


def film(folder: str, name: str, small: bool = False) -> dict[str, Any]:
    """Makes a film and reads it → its figures."""
    material, watch = Material.of(SMALL if small else FILMS[name]), Watch()
    frames = _made(Path(folder), material.track, material.request(), watch)
    windows = plan(material.request(), material.track).windows
    joins = [frames_of(window.new.start) for window in windows[1:] if not window.cut]
    found = read(frames, material.motion, material.scenes, material.borders(), joins)
    sampled, given = (sum(getattr(window, each) for window in windows) for each in ("length", "given"))
    return {**found, **_costs(watch), "windows": len(windows), "overlap": given / sampled}


def singles(folder: str, name: str, minute: int) -> dict[str, float]:
    """Makes a minute of a film again, of the same face and the same levelled sound, as clips that do not continue one
    another → the correlation of their mouths with the sound."""
    material = Material.of(FILMS[name])
    levelled, rate = preprocess(material.track), material.track.rate
    number, stretch = list(stretches(material.borders()))[minute]
    mouths = []
    for begin in range(stretch.start, stretch.stop, SINGLE):
        first, last = (round(frame / sizes.FRAME_RATE * rate) for frame in (begin, begin + SINGLE))
        part = Track(levelled.waveform[:, first:last].contiguous(), rate)
        values = {**evaluate.BASE, "prompt": material.scenes[number].prompt, "seed": begin, "num_frames": SINGLE}
        frames = _made(Path(folder), part, parse({**values, "preprocess_audio": False}))
        mouths.append(readers.mouth(frames[: stretch.stop - begin].astype(np.float32) / 255))
    return {"correlation": readers.correlation(np.concatenate(mouths), material.motion[stretch])}


def _made(folder: Path, track: Track, request: Request, watch: Watch | None = None) -> np.ndarray:
    """Runs a request with that sound → its frames, uint8 [T, H, W, 3]."""
    paths, kept = miniature(folder) | {"audio": str(evaluate.save_wave(folder / "film.wav", track))}, {}
    files = Files(**{key: Path(value) for key, value in paths.items()})
    run(files, request, Compute(torch.float32), trace=lambda k, t: kept.update({k: t}) if k == FRAMES else None,
        progress=watch)  # fmt: skip
    return kept[FRAMES].numpy()


def _scenes(draw: np.random.Generator, count: int) -> list[clips.Scene]:
    """Faces of held-out words, each of another colour."""
    found: list[clips.Scene] = []
    while len(found) < count:
        scene = clips.plain(clips.random_scene(draw, "face"))
        if dataset.held_out(scene) and scene.colour not in {each.colour for each in found}:
            found.append(scene)
    return found


def _lines(scenes: list[clips.Scene], minutes: float) -> list[str]:
    times = [60 * minutes * n / len(scenes) for n in range(len(scenes))]
    return [
        f"{int(t // 60)}:{t % 60:06.3f} {'[cut] ' if t else ''}{each.prompt}"
        for t, each in zip(times, scenes, strict=True)
    ]


def read(
    video: np.ndarray, motion: np.ndarray, scenes: list[clips.Scene], borders: list[int], joins: list[int]
) -> dict[str, Any]:
    """The figures of a film of uint8 frames [T, H, W, 3]. borders: the first frames of its sections, and its end;
    joins: those of the windows that continue another one."""
    minutes, drifts, largest, inside, right = [], [], [], [], 0
    changes = np.concatenate(
        [np.abs(np.diff(video[a : a + BLOCK + 1].astype(np.float32), axis=0)).mean((1, 2, 3))
         for a in range(0, len(video) - 1, BLOCK)]
    )  # fmt: skip
    for _, stretch in stretches(borders):
        mouth = readers.mouth(video[stretch].astype(np.float32) / 255)
        minutes.append((readers.correlation(mouth, motion[stretch]), readers.lagged(mouth, motion[stretch])[1]))
    for scene, (first, last) in zip(scenes, itertools.pairwise(borders), strict=True):
        part = video[first:last]
        drifts.append(drift(part))
        own = changes[first : last - 1]  # a face of stronger colours changes more
        usual = float(np.median(own))
        largest.append(float(own.max()) / usual)
        inside += [changes[join - 1] / usual for join in joins if first < join < last]
        seen = readers.words(part[:: max(1, len(part) // 60)].astype(np.float32) / 255)
        right += all(seen[word] == getattr(scene, word) for word in ("colour", "ground", "shape", "place"))
    return {
        "minutes": [round(each, 4) for each, _ in minutes],
        "lag": max(abs(lag) for _, lag in minutes),
        "ground": max(ground for ground, _ in drifts),
        "face": max(face for _, face in drifts),
        "join": float(max(inside)),
        "joins": float(np.mean(inside)),
        "anywhere": max(largest),
        "words": right / len(scenes),
    }


def stretches(borders: list[int]) -> Iterator[tuple[int, slice]]:
    """The minutes of a film, each with the number of its section. What is left of a section counts as one if it is
    longer than half a minute, or all of it."""
    for number, (first, last) in enumerate(itertools.pairwise(borders)):
        for begin in range(first, max(last - MINUTE // 2, first + 1), MINUTE):
            yield number, slice(begin, min(begin + MINUTE, last))


def drift(video: np.ndarray) -> tuple[float, float]:
    """How far the ground and the face are from their first second in their last one, of 255, in the worst channel."""
    middles = [np.median(part, axis=0) for part in (video[:SECOND], video[-SECOND:])]
    ground = max(abs(a - b) for a, b in zip(*(m[:CORNER, :CORNER].mean((0, 1)) for m in middles), strict=True))
    entries = [readers.nearest(m[None] / 255)[0] for m in middles]
    counts = np.bincount(entries[0].ravel(), minlength=len(readers.NAMES))[: readers.GROUND]
    same = (entries[0] == counts.argmax()) & (entries[1] == counts.argmax())
    if not same.any():
        return float(ground), 255.0
    face = np.abs(middles[0][same].mean(0) - middles[1][same].mean(0)).max()
    return float(ground), float(face)


def _costs(watch: Watch) -> dict[str, float]:
    """CPU seconds per window at the beginning and at the end, and how much memory grew after the second window."""
    found: dict[str, float] = {}
    for stage, windows in watch.windows.items():
        count = max(1, min(10, len(windows) // 3))
        found[f"{stage}, first"] = statistics.median(seconds for seconds, _ in windows[1 : count + 1])
        found[f"{stage}, last"] = statistics.median(seconds for seconds, _ in windows[-count:])
        second, *later = [held for _, held in windows[1:]] or [windows[0][1]]
        found[f"{stage}, grown"] = max(later, default=second) / second - 1
    return found


def films(folder: Path, small: bool = False) -> Table:
    found = {}
    for name in ["speech"] if small else FILMS:
        say(f"  films, {name}")
        with sides("films", log=folder / "sides.log") as (side,):
            found[name] = side("film", folder=str(folder), name=name, small=small)
            low = [n for n, each in enumerate(found[name]["minutes"]) if each < LEAST and not small]
            again = [side("singles", folder=str(folder), name=name, minute=minute) for minute in low]
            found[name]["singles"] = [each["correlation"] for each in again]
    return table(found)


def table(found: dict[str, dict[str, Any]]) -> Table:
    """The figures of all films, one a column."""
    columns = ("what", *(f"{name}, {FILMS[name].minutes} min" for name in found), "wanted")
    lines = (
        ("correlation of the mouth with the sound, minute by minute",
         lambda f: " ".join(f"{each:.3f}" for each in f["minutes"]), WANTED["correlation"]),
        ("… of minutes below that, made again as single clips",
         lambda f: " ".join(f"{each:.3f}" for each in f["singles"]) or MISSING, MISSING),
        ("best lag, frames", lambda f: f"{f['lag']}", "0"),
        ("ground, last second against the first, of 255", lambda f: f"{f['ground']:.1f}", WANTED["drift"]),
        ("face, last second against the first, of 255", lambda f: f"{f['face']:.1f}", WANTED["drift"]),
        ("largest change at a join / median change", lambda f: f"{f['join']:.2f}", WANTED["join"]),
        ("… mean at joins", lambda f: f"{f['joins']:.2f}", MISSING),
        ("… largest anywhere, hard cuts included", lambda f: f"{f['anywhere']:.2f}", MISSING),
        ("sections whose colour, ground, shape and place are seen", lambda f: f"{f['words']:.0%}", WANTED["words"]),
        ("windows", lambda f: f"{f['windows']}", MISSING),
        ("latents that are sampled again as overlap", lambda f: f"{f['overlap']:.1%}", MISSING),
        *((f"{stage}: CPU seconds per window, first and last", lambda f, s=stage: pace(f, s), MISSING)
          for stage in ("first stage", "second stage")),
        ("memory after the second window, grown by", grown, "≤ 5 %"),
    )  # fmt: skip
    rows = tuple((what, *(show(figures) for figures in found.values()), wanted) for what, show, wanted in lines)
    notes = (
        "128×128 at 24 frames per second on the trained miniature, with windows of the default size. Speech is of "
        "voices that training never heard. A song has music made by code behind such voices, "
        f"{-sound.MUSIC:g} dB quieter than they are, because the miniature moves with voices only: with instruments "
        "alone, its single clips reach 0.3 to 0.5. Sections have other faces behind hard cuts; the cuts are no joins.",
        f"Correlations are those at lag 0. A minute below {LEAST} is made again in requests of {SINGLE} frames without "
        "windows, of the same face and the same sound: this tells what the miniature reaches there by itself.",
        "The ground is a corner; the face is what has its colour in both seconds. With sections the worst section "
        "counts, and a join is compared with its own section.",
        "Memory is the most that the process itself holds in a window. Pages of files do not count, because the system "
        "drops them and reads them again as it needs room.",
    )
    numbers = {
        f"{name}: {key}": value
        for name, figures in found.items()
        for key, value in {**figures, "minutes": min(figures["minutes"])}.items()
        if isinstance(value, float | int)
    }
    return Table("Films in windows", columns, rows, notes, numbers).judged(of_rows(numbers, list(found)))


def of_rows(numbers: Mapping[str, float], films: Sequence[str]) -> list[list[float]]:
    """The figures for which something is wanted, of all films, in the order of the rows."""

    def each(name: str, factor: float = 1.0) -> list[float]:
        return [factor * numbers[f"{film}: {name}"] for film in films]

    grown = [
        100 * max(numbers.get(f"{film}: {stage} stage, grown", 0.0) for stage in ("first", "second")) for film in films
    ]
    return [each("minutes"), each("lag"), each("ground"), each("face"), each("join"), each("words", 100), grown]


def pace(figures: dict[str, Any], stage: str) -> str:
    """CPU seconds per window at the beginning and at the end; nothing for a film whose windows were all kept."""
    if f"{stage}, first" not in figures:
        return MISSING
    return f"{figures[f'{stage}, first']:.2f}, {figures[f'{stage}, last']:.2f}"


def grown(figures: dict[str, Any]) -> str:
    growth = [figures[key] for key in figures if key.endswith("stage, grown")]
    return f"{max(growth):+.1%}" if growth else MISSING
