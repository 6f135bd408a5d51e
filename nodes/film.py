"""What travels through a graph for a film in windows, and where finished windows are kept.

A clip is a film of one window, so the samplers have one path for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths

from ..ltx.diffusion.conditioning import AudioCondition, Reference, TextContext
from ..ltx.diffusion.kept import KeptWindows, check_room, disk_needed, limit
from ..ltx.diffusion.sample_windows import Keep, WindowInputs, keep_nothing, window_inputs
from ..ltx.errors import InputError
from ..ltx.given import SourceVideo, delayed
from ..ltx.media.audio import Track, part_from
from ..ltx.plan import Plan
from ..ltx.timeline import Section
from ..ltx.windows import Window, WindowSize, cut_windows, hard_cuts
from .taking.sound import from_track, to_track

CUTS, KEPT, HERE, MADE = "ltx_a2v_cuts", "ltx_a2v_kept", "ltx_a2v_here", "ltx_a2v_made"
"""The keys of a LATENT of several windows: its latents behind a hard cut, at which the upscaler begins anew; the files
of its windows, of this stage and those before; and, if only a part of the film is made here, the stretches between hard
cuts that are, by their first latents, and the files of parts that were made before."""
SOURCE = "ltx_a2v_source"
"""The key of a LATENT for what a stage is told of a source video: fields of `Conditions`, with the video encoded at the
latent's size, which is what the noise mask keeps."""
FOLDER = "ltx_a2v_windows"  # in ComfyUI's output folder: its temp folder is emptied at each start

IN_FILM = "ltx_a2v_in_film"
"""The key of an AUDIO that lies at its place in a film: an `InFilm`. Other nodes ignore or drop it."""

References = tuple[tuple[Reference, ...], ...]
"""What the model looks at beside each window of a film; a clip has one window."""


@dataclass(frozen=True)
class InFilm:
    """Where a sound lies in a film. lead: the film's frames before those that the model makes, from which on it hears
    the sound; fps: the film's; partly_kept: whether some of the sound stays and the rest is made anew; begin: the
    film's frame with which the sound begins, 0 or the lead."""

    lead: int
    fps: Fraction
    partly_kept: bool
    begin: int = 0


@dataclass(frozen=True)
class Timeline:
    """The sections of a film with the encoded prompt of each, for a film of so many frames."""

    sections: tuple[Section, ...]
    contexts: tuple[TextContext, ...]
    frames: int
    fps: Fraction


@dataclass(frozen=True)
class Made:
    """A part of a film in a file of ComfyUI's output folder. numbers: of its windows."""

    path: Path
    numbers: range


@dataclass(frozen=True)
class Cut:
    """How a film is cut into windows, with its timeline if it has one. here: the numbers of the windows that are
    sampled on this machine, None for all; made: parts that were made before."""

    frames: int
    fps: Fraction
    windows: tuple[Window, ...]
    timeline: Timeline | None = None
    size: WindowSize = field(default_factory=WindowSize)
    here: frozenset[int] | None = None
    made: tuple[Made, ...] = ()

    @property
    def sections(self) -> tuple[Section, ...]:
        return self.timeline.sections if self.timeline else ()

    @property
    def hard(self) -> tuple[int, ...]:
        """The latents behind its hard cuts."""
        return hard_cuts(self.windows)

    @property
    def longest(self) -> Window:
        return max(self.windows, key=lambda window: window.length)

    @property
    def is_elsewhere(self) -> bool:
        """Whether no window is sampled on this machine, because all were made before."""
        return self.here is not None and not self.here

    def is_here(self, number: int) -> bool:
        """Whether the window of that number is sampled on this machine."""
        return self.here is None or number in self.here

    @property
    def stretches(self) -> frozenset[int] | None:
        """The first latents of the stretches between hard cuts that are made on this machine; None for all."""
        if self.here is None:
            return None
        begins = [(number, each.new.start) for number, each in enumerate(self.windows) if each.cut or not number]
        ends = [*(number for number, _ in begins[1:]), len(self.windows)]
        return frozenset(
            latent for (first, latent), last in zip(begins, ends, strict=True) if self.here & {*range(first, last)}
        )


@dataclass(frozen=True)
class FilmSound:
    """The sound of a film, encoded for each of its windows. frames, fps, strength and frozen are those of
    `AudioCondition`. kept: files of windows that were kept while they were sampled."""

    cut: Cut
    sounds: tuple[AudioCondition, ...]
    kept: tuple[Path, ...] = ()

    @classmethod
    def of(cls, audio: AudioCondition | FilmSound) -> FilmSound:
        """The same sound as a film: a clip has one window."""
        if isinstance(audio, FilmSound):
            return audio
        return cls(Cut(audio.frames, audio.fps, cut_windows(audio.frames)), (audio,))

    @property
    def frames(self) -> int:
        return self.cut.frames

    @property
    def fps(self) -> Fraction:
        return self.cut.fps

    @property
    def strength(self) -> float:
        return self.sounds[0].strength

    @property
    def frozen(self) -> bool:
        return all(sound.frozen for sound in self.sounds)

    @property
    def referred(self) -> bool:
        """Whether the model hears the sound of a reference."""
        return any(sound.reference is not None for sound in self.sounds)

    def notes(self) -> list[str]:
        """Sentences for a sampler's report. A clip has none."""
        count, sections = len(self.cut.windows), len(self.cut.sections)
        taken = sum(len(part.numbers) for part in self.cut.made)
        if count == 1:
            return []
        return [
            f"{count} windows of up to {self.cut.longest.frames} frames",
            *([f"{sections} sections"] if sections else []),
            *([f"{taken} of them were made in parts"] if taken else []),
        ]

    @property
    def made_elsewhere(self) -> tuple[AudioCondition, ...]:
        """Its sounds after a stage that samples nothing."""
        return tuple(sound.made(sound.latent) for sound in self.sounds)

    def check_references(self, references: References) -> None:
        """Raises InputError if they were made for other windows."""
        if len(references) != len(self.cut.windows):
            raise InputError(
                f"references: they were made for {len(references)} windows, and the film has {len(self.cut.windows)}; "
                "connect the same audio to each Reference and to the sampler."
            )

    def parts(self, one_stream: bool, references: Sequence[tuple[Reference, ...]] = ()) -> list[WindowInputs]:
        """Its windows with all that they are conditioned on. one_stream: whether all of them draw from one noise.
        references: those of each window."""
        contexts = self.cut.timeline.contexts if self.cut.timeline else ()
        parts = window_inputs(self.cut.windows, self.sounds, self.cut.sections, contexts, self.cut.size, references)
        return [replace(part, stream=0, own=None) for part in parts] if one_stream else parts


@dataclass(frozen=True, eq=False)
class Retake:
    """A source video in a film of so many frames, with what is made anew of it. shown, lead, tail: as in `Plan`."""

    source: SourceVideo
    frames: int
    fps: Fraction
    shown: int = 0
    lead: int = 0
    tail: int = 0

    def plan(self, height: int, width: int) -> Plan:
        """The film at that size in pixels."""
        around = {"shown": self.shown, "lead": self.lead, "tail": self.tail}
        return Plan(width, height, self.frames, self.fps, False, (), cut_windows(self.frames), **around)

    def sound(self, track: Track) -> dict[str, Any]:
        """The source's own track as AUDIO, at its place in the film. Nodes of this pack know what the model hears of
        it."""
        placed = from_track(delayed(track, self.source.at))
        return {**placed, IN_FILM: InFilm(self.lead, self.fps, self.source.sounds)}

    def check(self, field: str, frames: int, fps: Fraction | None = None) -> None:
        """Raises InputError if something is of another film. field: the input that it came in by."""
        if frames != self.frames or fps not in (None, self.fps):
            here = f"{frames} frames" + (f" at {float(fps):g} fps" if fps else "")
            raise InputError(
                f"{field}: it has {here}, but the retake was made for {self.frames} frames at {float(self.fps):g} fps; "
                "connect the frames and fps of one Clip everywhere."
            )


def check_clip(field: str, cut: Cut | Timeline, frames: int, fps: Fraction) -> None:
    """Raises InputError if something was made for another clip. field: the input that it came in by."""
    if (cut.frames, cut.fps) != (frames, fps):
        raise InputError(
            f"{field}: it was made for {cut.frames} frames at {float(cut.fps):g} fps, but here are {frames} at "
            f"{float(fps):g}; connect the frames and fps of one Frame Count everywhere."
        )


def heard(audio: Any) -> Track:
    """AUDIO as the track that the model hears, from the first frame on that it makes. Raises InputError as
    `to_track`."""
    track, placed = to_track(audio), placed_in_film(audio)
    return part_from(track, placed.lead - placed.begin, placed.fps) if placed else track


def from_beginning(audio: Any) -> Track:
    """AUDIO as a track that begins with the film. Raises InputError as `to_track`."""
    track, placed = to_track(audio), placed_in_film(audio)
    return delayed(track, placed.begin / placed.fps) if placed else track


def placed_in_film(audio: Any) -> InFilm | None:
    """Where AUDIO lies in a film; None if it does not say."""
    placed = audio.get(IN_FILM)
    return placed if isinstance(placed, InFilm) else None


def check_heard(audio: Any, retake: Retake) -> None:
    """Raises InputError if the model would hear the beginning of a clip of which it sees the end."""
    if retake.lead and placed_in_film(audio) is None:
        raise InputError(
            "audio: it begins with the clip, but the model sees only the clip's end; connect the audio of Retake."
        )


def prepared(track: Track, audio: Any) -> dict[str, Any]:
    """What was made of the sound that the model hears of AUDIO, as AUDIO."""
    placed = placed_in_film(audio)
    return {**from_track(track), **({IN_FILM: replace(placed, begin=placed.lead)} if placed else {})}


def is_partly_kept(audio: Any) -> bool:
    """Whether a part of AUDIO stays in the film, so that what is made beside it has to be as loud."""
    placed = placed_in_film(audio)
    return placed is not None and placed.partly_kept


class FilmWindows:
    """The finished windows of all films of this ComfyUI, in one folder of its output folder.

    They stay after a film is written, so that a film with another end takes its beginning from here. What is oldest
    goes first.
    """

    def __init__(self) -> None:
        self._windows = KeptWindows(Path(folder_paths.get_output_directory(), FOLDER), resume=True)

    def notes(self) -> list[str]:
        """As `KeptWindows.notes`."""
        return self._windows.notes()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of the windows of this run."""
        return tuple(self._windows.own)

    def of(self, identity: list[Any], cut: Cut, size: tuple[int, int]) -> Keep:
        """The `Keep` of a stage of that size in pixels. Raises InputError if the disk has no room for it."""
        folder = self._windows.folder
        if len(cut.windows) == 1 or not limit():
            return keep_nothing
        self._windows.expire()
        check_room(folder.parent, disk_needed(cut.windows, size), self._windows.spared())
        return self._windows.of(identity)


def forget(latent: Mapping[str, Any]) -> None:
    """Deletes what is on the disk of the film of a LATENT: its finished windows, of all stages, and the files of parts
    that were made before."""
    for path in (*latent.get(KEPT, ()), *latent.get(MADE, ())):
        with suppress(OSError):
            path.unlink()
