"""Reads the timeline of a film: a text with one section a line, each with its time, its prompt and what is special.

    0:00 a woman sings in a studio
    0:18.5 chorus: she dances in the rain,
        in slow motion
    0:41 [cut, seed 7] verse 2: a close view of her face
    1:02 chorus:

A line that begins with a digit begins a section: minutes:seconds or hours:minutes:seconds. Square brackets after the
time hold options: `cut` (nothing of the section before is continued), `seed` with a number, `image` with a name. A name
is one word, with a number if needed, before a colon; it is no part of the prompt, and a later section that has only
this name has the same prompt. Other lines continue the prompt above; empty lines and lines that begin with # are
comments. This module only reads text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from .errors import InputError
from .grid import SHORTEST_SOUND, TIME_SCALE, frames_of
from .windows import Border

SECTION_SEED = 7_368_787  # between the seeds of two sections that name none
MOST = 200  # sections; each has a prompt to encode and to hold
LONGEST = 20_000  # characters of a timeline
SHOWN = 60  # characters of a wrong line in a message
LINE = re.compile(r"(?P<time>[\d:.]+)(?:\s+|$)(?:\[(?P<options>[^\]]*)\]\s*)?(?P<text>.*)", re.DOTALL)
TIME = re.compile(r"(?:(\d{1,2}):(?=\d\d:))?(\d{1,3}):(\d\d(?:\.\d{1,6})?)")
NAME = re.compile(r"(?P<name>[^\W\d_][\w'-]{0,30}(?: \d{1,3})?):(?:\s+|$)(?P<prompt>.*)", re.DOTALL)


@dataclass(frozen=True)
class Section:
    """A part of a film. start: seconds from its beginning; name: "" without one; cut: whether nothing of the section
    before is continued; seed: of its own noise, or None; image: the name of the image that it begins with, or ""."""

    start: Fraction
    prompt: str
    name: str = ""
    cut: bool = False
    seed: int | None = None
    image: str = ""

    def first_latent(self, fps: Fraction) -> int:
        """The latent whose first frame is nearest to the start. Latent 0 is frame 0, and the later ones have eight."""
        frame = round(self.start * Fraction(fps))
        return 0 if frame == 0 else max(1, round(Fraction(frame - 1, TIME_SCALE)) + 1)

    def first_frame(self, fps: Fraction) -> int:
        """The first frame of that latent."""
        return frames_of(self.first_latent(fps))

    def __str__(self) -> str:
        minutes, seconds = divmod(self.start, 60)
        return f"{minutes}:{float(seconds):0>4.1f}" + (f" {self.name}" if self.name else "")


def read_timeline(text: str, prompt: str = "") -> tuple[Section, ...]:
    """The sections of a timeline, of which the first begins at 0: if the text's first one begins later, `prompt` is
    before it. Empty for a text without sections. Raises InputError, which names the line, if a line cannot be read or
    the times do not rise."""
    if len(text) > LONGEST:
        raise InputError(f"timeline: it has {len(text)} characters; give at most {LONGEST}.")
    sections: list[Section] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if not line[0].isdigit():
            if not sections:
                raise _wrong(number, line, "begins before any section; begin it with a time like 0:00")
            joined = f"{sections[-1].prompt} {line}".strip()
            sections[-1] = replace(sections[-1], prompt=joined)
            continue
        sections.append(_section(number, line))
        if len(sections) > MOST:
            raise InputError(f"timeline: it has more than {MOST} sections; leave some out.")
        if sections[1:] and sections[-1].start <= sections[-2].start:
            raise _wrong(number, line, "does not begin after the section before it; put the times in order")
    if sections and sections[0].start > 0:
        sections.insert(0, Section(Fraction(0), prompt.strip()))
    return _prompted(sections)


def prompts_of(sections: Sequence[Section], prompt: str) -> dict[str, str]:
    """The prompts of a film, each once, with what a report calls them: after the first section that has it. `prompt` is
    that of a film without sections."""
    named: dict[str, str] = {}
    for section in sections:
        named.setdefault(section.prompt, f"prompt of section {section}")
    return named or {prompt: "prompt"}


def told_of(prompts: Iterable[str], sentences: Sequence[str | None]) -> list[str]:
    """Sentences for the report, each after what its prompt is called; what all have in common is told once."""
    if len(set(sentences)) == 1:
        return [sentence for sentence in sentences[:1] if sentence]
    return [f"{prompt}: {sentence}" for prompt, sentence in zip(prompts, sentences, strict=True) if sentence]


def check_end(sections: Sequence[Section], seconds: Fraction) -> None:
    """Raises InputError if a section begins where the film, which lasts so long, has ended."""
    for section in sections:
        if section.start >= seconds:
            raise InputError(
                f"timeline: section {section} begins after the end of the film at {float(seconds):.1f} s; leave it out "
                "or give a longer sound."
            )


def borders(sections: Sequence[Section], frames: int, fps: Fraction) -> tuple[Border, ...]:
    """Where the windows of a film of `frames` begin for its sections after the first one. Raises InputError if one
    begins after the film's end, two of them within the same eight frames, or the first one is too short for its sound
    to be heard."""
    check_end(sections, frames / Fraction(fps))
    found: list[Border] = []
    for before, section in pairwise(sections):
        latent = section.first_latent(fps)
        short = not found and frames_of(latent) / Fraction(fps) <= SHORTEST_SOUND  # the first latent is one frame
        if short or latent <= (found[-1].latent if found else 0) or frames_of(latent) >= frames:
            raise InputError(
                f"timeline: section {section} is less than eight frames away from {before} or from the end; leave one "
                "of them out."
            )
        found.append(Border(latent, section.cut))
    return tuple(found)


def section_at(sections: Sequence[Section], latent: int, fps: Fraction) -> int:
    """The number of the section that a latent of the film belongs to; 0 without sections."""
    begun = [number for number, section in enumerate(sections) if section.first_latent(fps) <= latent]
    return begun[-1] if begun else 0


def streams(sections: Sequence[Section], seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The number of the stream of noise of each section, and the seed of each stream.

    A section behind a hard cut has a stream of its own, so that it depends on nothing before it, and so has one that
    names a seed; others go on with the stream before. seed: the request's. A film without sections has one stream.
    """
    numbers, seeds = [], []
    for place, section in enumerate(sections):
        if not place or section.cut or section.seed is not None:
            seeds.append(seed + SECTION_SEED * place if section.seed is None else section.seed)
        numbers.append(len(seeds) - 1)
    return tuple(numbers) or (0,), tuple(seeds) or (seed,)


def _section(number: int, line: str) -> Section:
    parts = LINE.fullmatch(line)
    start = None if parts is None else _seconds(parts["time"])
    if parts is None or start is None:
        raise _wrong(number, line, "does not begin with a time like 0:18.5 or 1:02:03")
    named = NAME.fullmatch(parts["text"])
    name, prompt = (named["name"], named["prompt"]) if named else ("", parts["text"])
    section = Section(start, prompt.strip(), name)
    for option in (each.strip() for each in (parts["options"] or "").split(",")):
        word, _, value = option.partition(" ")
        value = value.strip()
        if word == "cut" and not value:
            section = replace(section, cut=True)
        elif word == "seed" and value.isdecimal() and len(value) <= 20:
            section = replace(section, seed=int(value))
        elif word == "image" and value:
            section = replace(section, image=value)
        elif option or parts["options"] is not None:
            raise _wrong(number, line, "has an unknown option; use cut, seed and a number, or image and a name")
    return section


def _seconds(text: str) -> Fraction | None:
    """ "1:02:03.5" or "0:18.5" in seconds; None if it is no time."""
    time = TIME.fullmatch(text)
    if time is None:
        return None
    hours, minutes, seconds = (Fraction(part or 0) for part in time.groups())
    return None if seconds >= 60 or (time[1] and minutes >= 60) else 3600 * hours + 60 * minutes + seconds


def _prompted(sections: Sequence[Section]) -> tuple[Section, ...]:
    """The sections with a prompt each: one that has only a name has the prompt of the last section of that name."""
    found: dict[str, str] = {}
    result = []
    for section in sections:
        prompt = section.prompt or found.get(section.name.casefold(), "") if section.name else section.prompt
        if not prompt:
            raise InputError(
                f"timeline: section {section} has no prompt; write one after its time, or the name of a section before."
            )
        if section.name:
            found[section.name.casefold()] = prompt
        result.append(replace(section, prompt=prompt))
    return tuple(result)


def _wrong(number: int, line: str, why: str) -> InputError:
    shown = line if len(line) <= SHOWN else line[:SHOWN] + "…"
    return InputError(f"timeline: line {number}, {shown!r}, {why}.")
