"""Who speaks, in figures: whether a mouth follows the sound if its region hears it, and stands still if it does not.

First with one face, whose mouth is in the lower half of the picture: with two voices, in turn or at once, the lower
half has the first one, and the upper half, in which there is no mouth, the second one. Then with two faces, left and
right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..ltx.media.audio import Track
from . import clips, dataset, evaluate, readers, sizes, sound

LOWER = np.arange(evaluate.SIDE)[:, None].repeat(evaluate.SIDE, 1) >= evaluate.SIDE // 2
MASKS = {"the whole picture": (), "the lower half, with the mouth": (LOWER,), "the upper half": (~LOWER,)}
TURN = 25  # the first frame of the second voice, where a latent begins
ALL, TURNS, ONCE = "the whole picture", "each half in its own turn", "each half its own voice, both at once"
LEFT = np.arange(evaluate.SIDE)[None].repeat(evaluate.SIDE, 0) < evaluate.SIDE // 2
SIDES = (slice(0, evaluate.SIDE // 2), slice(evaluate.SIDE // 2, None))  # columns of the left and of the right face
ONE, OTHER = "its own", "the other one's"


@dataclass(frozen=True)
class Seen:
    """What a clip shows. correlation: of the mouth and the sound, at lag 0; movement: of the mouth, in that of the
    drawn clip, as standard deviations; same: whether ground, colour and shape are those of the prompt."""

    correlation: float
    movement: float
    same: bool


def seen(video: np.ndarray, case: evaluate.Case, motion: np.ndarray, frames: slice = slice(None)) -> Seen:
    """What some frames show. motion: what the mouth would do by the sound."""
    mouth, words = readers.mouth(video), readers.words(video)
    drawn = float(readers.mouth(case.video).std())
    same = all(words[name] == getattr(case.scene, name) for name in ("colour", "ground", "shape"))
    found = readers.correlation(mouth[frames], motion[frames])
    return Seen(found, float(mouth[frames].std()) / drawn, same)


def in_turn(first: Track, second: Track) -> tuple[Track, Track]:
    """Two voices of one length: the first one until the turn, and the second one from there on. Both are mono."""
    length = round(evaluate.FRAMES / sizes.FRAME_RATE * sizes.RATE)
    waves = torch.stack([sound.heard(each, evaluate.FRAMES, sizes.FRAME_RATE)[:length] for each in (first, second)])
    early = torch.arange(waves.shape[1]) < TURN / sizes.FRAME_RATE * sizes.RATE
    return Track(waves[:1] * early, sizes.RATE), Track(waves[1:] * ~early, sizes.RATE)


@dataclass(frozen=True)
class Duet:
    """Two faces with a voice each, and what each of their mouths would do by it: [frames]."""

    scene: clips.Scene
    tracks: tuple[Track, Track]
    motions: tuple[np.ndarray, np.ndarray]

    @property
    def mix(self) -> Track:
        return Track(sum(track.waveform for track in self.tracks) / 2, sizes.RATE)


def duets(count: int, seed: int) -> list[Duet]:
    """Held-out pairs with held-out voices."""
    rng, made = np.random.default_rng((seed, 97)), []
    while len(made) < count:
        scene = replace(clips.random_scene(rng, "pair"), pattern="")
        if not dataset.held_out(scene):
            continue
        tracks, motions = [], []
        for _ in SIDES:
            track, sounds = sound.utterance(rng, evaluate.FRAMES / sizes.FRAME_RATE, held_out=True)
            tracks.append(Track(sound.heard(track, evaluate.FRAMES, sizes.FRAME_RATE)[None], sizes.RATE))
            motions.append(sound.talk(track, sounds, evaluate.FRAMES, sizes.FRAME_RATE)[:, 0])
        made.append(Duet(scene, tuple(tracks), tuple(motions)))
    return made


Follows = tuple[float, float]
"""The correlation of a mouth with a sound, and its movement: the standard deviation of its opening."""


def at_once(evaluation: evaluate.Evaluation, made: Sequence[Duet], masked: bool = True) -> dict[str, list[Follows]]:
    """What each mouth follows of ONE and of OTHER while both voices speak. masked: each face hears its own alone."""
    found: dict[str, list[Follows]] = {ONE: [], OTHER: []}
    for duet in made:
        more = {"speakers": (LEFT, ~LEFT), "voices": duet.tracks} if masked else {}
        mouths = _mouths(evaluation.video(replace(duet.scene, place="both").prompt, duet.mix, **more))
        for side, mouth in enumerate(mouths):
            found[ONE].append(_follows(mouth, duet.motions[side]))
            found[OTHER].append(_follows(mouth, duet.motions[1 - side]))
    return found


def _follows(mouth: np.ndarray, motion: np.ndarray) -> Follows:
    return readers.correlation(mouth, motion), float(mouth.std())


def pairs(evaluation: evaluate.Evaluation, made: Sequence[Duet]) -> dict[str, list[Follows]]:
    """By row, of each clip."""
    found: dict[str, list[Follows]] = {}

    def note(row: str, mouth: np.ndarray, motion: np.ndarray) -> None:
        found.setdefault(row, []).append(_follows(mouth, motion))

    for duet in made:
        left, right = (replace(duet.scene, place=place).prompt for place in ("left", "right"))
        both = replace(duet.scene, place="both").prompt
        track, motion = duet.tracks[0], duet.motions[0]
        for side, prompt in enumerate((left, right)):
            mouths = _mouths(evaluation.video(prompt, track))
            note("one voice, the prompt says who talks: the one that talks", mouths[side], motion)
            note("one voice, the prompt says who talks: the one that listens", mouths[1 - side], motion)
        for side, mask in enumerate((LEFT, ~LEFT)):
            mouths = _mouths(evaluation.video(both, track, speakers=(mask,)))
            note("one voice, the mask says who hears it: the one inside", mouths[side], motion)
            note("one voice, the mask says who hears it: the one outside", mouths[1 - side], motion)
    for how, masked in (("no mask", False), ("two masks", True)):
        for which, figures in at_once(evaluation, made, masked).items():
            found[f"two voices at once, {how}: a mouth and {which}"] = figures
    return found


def _mouths(video: np.ndarray) -> list[np.ndarray]:
    return [readers.mouth(video[:, :, columns]) for columns in SIDES]


def two_faces(weights: Path, count: int, seed: int, say: Callable[[str], None]) -> str:
    """Measures that many held-out pairs and returns the table as Markdown. say: is told each figure."""
    evaluation = evaluate.Evaluation(weights, seed, say=lambda text: None)
    found = pairs(evaluation, duets(count, seed))
    most = np.mean([movement for _, movement in next(iter(found.values()))])
    lines = ["| what a mouth follows | correlation | movement |", "|---|---|---|"]
    for row, figures in found.items():
        values = np.array(figures)
        spread = f"{values[:, 0].min():.2f} … {values[:, 0].max():.2f}"
        lines.append(f"| {row} | {values[:, 0].mean():.3f} ({spread}) | {values[:, 1].mean() / most:.0%} |")
        say(lines[-1])
    return "\n".join(lines) + "\n"


def table(weights: Path, count: int, seed: int, say: Callable[[str], None]) -> str:
    """Measures that many held-out clips and returns the tables as Markdown. say: is told each figure."""
    evaluation = evaluate.Evaluation(weights, seed, say=lambda text: None)
    found: dict[str, list[Seen]] = {}

    def note(row: str, *figures: Seen) -> None:
        found.setdefault(row, []).extend(figures)
        say(f"{row}: {', '.join(f'{each.correlation:.3f} {each.movement:.2f} {each.same}' for each in figures)}")

    cases = evaluate.cases(count, seed)
    for number, case in enumerate(cases):
        for row, masks in MASKS.items():
            video = evaluation.video(case.scene.prompt, case.track, speakers=masks)
            note(row, seen(video, case, case.motion))
        voices = in_turn(case.track, cases[number - 1].track)
        mix = Track(voices[0].waveform + voices[1].waveform, sizes.RATE)
        motion = np.concatenate([case.motion[:TURN], cases[number - 1].motion[TURN:]])
        for row, more in ((ALL, {}), (TURNS, {"speakers": (LOWER, ~LOWER), "voices": voices})):
            video = evaluation.video(case.scene.prompt, mix, **more)
            for turn, frames in (("first", slice(0, TURN)), ("second", slice(TURN, None))):
                note(f"{row}, {turn} voice", seen(video, case, motion, frames))
        own, other = (
            Track(sound.heard(each.track, evaluate.FRAMES, sizes.FRAME_RATE)[None], sizes.RATE)
            for each in (case, cases[number - 1])
        )
        mix = Track((own.waveform + other.waveform) / 2, sizes.RATE)
        for row, more in ((ALL, {}), (ONCE, {"speakers": (LOWER, ~LOWER), "voices": (own, other)})):
            video = evaluation.video(case.scene.prompt, mix, **more)
            note(f"{row}: the lower half's voice", seen(video, case, case.motion))
            note(f"{row}: the other voice", seen(video, case, cases[number - 1].motion))
    lines = ["| what hears | correlation of mouth and sound | movement | as in the prompt |", "|---|---|---|---|"]
    return "\n".join([*lines, *(_line(row, figures) for row, figures in found.items())]) + "\n"


def _line(row: str, figures: Sequence[Seen]) -> str:
    values = np.array([[each.correlation, each.movement, each.same] for each in figures]).mean(0)
    spread = f"{min(each.correlation for each in figures):.2f} … {max(each.correlation for each in figures):.2f}"
    return f"| {row} | {values[0]:.3f} ({spread}) | {values[1]:.0%} | {values[2]:.0%} |"
