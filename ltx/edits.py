"""What a request says about videos that are given: what of the source is made anew, and how a reference is used.

diffusion/masks.py turns an edit into the masks of tokens. This module only reads and checks the values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .errors import InputError
from .extension import CONTEXT, DIRECTIONS
from .objects import check_number, members, shown

PICTURE, SOUND, BOTH = RENEWALS = ("picture", "sound", "both")
FIRST, ALL = STAGES = ("first", "both")
CROP, PAD = FITS = ("crop", "pad")
NOISY, CLEAN = KEPT_CELLS = ("noisy", "clean")
MOST_SECONDS, MOST_PIXELS, MOST_FACTOR = 2700.0, 256, 8  # of a film, of a seam, and of a reference's size and rate
MOST_IDENTITY = 20.0  # as CFG; ID-LoRA's makers use 3
WITHIN = ("start", "end", "soften", "soften_pixels")  # fields that say which part of the source is made anew
OF_PICTURES = ("strength", "attention", "downscale", "stride", "fit")  # fields that say how a reference is seen
MOST_CONTEXT = 473  # frames: what the model was made for, without a latent of new ones


@dataclass(frozen=True)
class VideoEdit:
    """What is made anew of the source video; the rest is kept.

    renew: one of RENEWALS, None for the picture, and for the sound too where a film goes on beyond the source without a
    track of its own. start, end: seconds of the film between which it is renewed, None for its ends. strength: 0..1,
    how firmly what is renewed is held to the source; at 0 it is made from noise alone. soften: seconds inside the
    edges of the time in which it is held less and less; soften_pixels: the same at the edge of a mask, in pixels of the
    source. at: the second of the film at which the source begins.

    extend: one of DIRECTIONS, if the whole source is kept and a new part is joined to one of its ends; context: how
    many of the source's frames at that end the model then sees. They are held wholly, unless there is a strength.
    kept_cells: one of KEPT_CELLS, how the model is shown what stays in a latent frame of which a part changes. Raises
    InputError if a value is out of range, or `extend` comes with `at`.
    """

    renew: str | None = None
    start: float | None = None
    end: float | None = None
    strength: float = 0.0
    soften: float = 0.0
    soften_pixels: float = 0.0
    at: float = 0.0
    extend: str | None = None
    context: int = CONTEXT
    kept_cells: str = NOISY

    def __post_init__(self) -> None:
        if self.renew is not None and self.renew not in RENEWALS:
            raise InputError(f"edit: renew is {shown(self.renew)}; choose one of {', '.join(RENEWALS)}.")
        if self.kept_cells not in KEPT_CELLS:
            raise InputError(f"edit: kept_cells is {shown(self.kept_cells)}; choose one of {', '.join(KEPT_CELLS)}.")
        most = {"strength": 1.0, "soften": MOST_SECONDS, "soften_pixels": MOST_PIXELS, "at": MOST_SECONDS}
        for name, limit in most.items():
            check_number("edit", name, getattr(self, name), 0.0, limit)
        for name in ("start", "end"):
            if getattr(self, name) is not None:
                check_number("edit", name, getattr(self, name), 0.0, MOST_SECONDS)
        self._check_extension()
        if self.extend is None and self.ranged and not self.span[0] < self.span[1]:
            raise InputError(
                f"edit: the renewed time ends at {self.end} s, but begins at {self.start or 0} s; give a later end."
            )

    def _check_extension(self) -> None:
        if self.extend is not None and self.extend not in DIRECTIONS:
            raise InputError(f"edit: extend is {shown(self.extend)}; choose one of {', '.join(DIRECTIONS)}.")
        if not _whole(self.context) or not 0 <= self.context <= MOST_CONTEXT:
            raise InputError(
                f"edit: context is {shown(self.context)}; give a whole number of frames from 0 to {MOST_CONTEXT}."
            )
        if self.extend is not None and self.at:
            raise InputError("edit: extend says where the video lies, so at does nothing; leave one of them out.")

    def extending(self) -> tuple[VideoEdit, list[str]]:
        """The edit without what `extend` makes meaningless, and a sentence for the report if there was any: a graph for
        a retake has a time, and gets `extend` beside it."""
        names = [name for name in WITHIN if getattr(self, name)]
        said = f"extend keeps the whole video, so {_listed(names)} {'does' if len(names) == 1 else 'do'} nothing"
        return replace(self, **dict.fromkeys(WITHIN[:2]), **dict.fromkeys(WITHIN[2:], 0.0)), [said] if names else []

    @property
    def ranged(self) -> bool:
        """Whether only a time of the film is renewed."""
        return self.start is not None or self.end is not None

    @property
    def span(self) -> tuple[float, float]:
        """The seconds between which it is renewed."""
        return self.start or 0.0, math.inf if self.end is None else self.end

    @classmethod
    def parse(cls, value: Any) -> VideoEdit | None:
        """The value of a request: null for none, or an object with some of the fields. Raises InputError for any other
        value."""
        return _read(cls, "edit", value, '{"start": 1.5, "end": 3}')


@dataclass(frozen=True)
class ReferenceUse:
    """How the reference is used, a video, a picture or a sound. strength: 0..1, how clean its tokens are; attention:
    0..1, how much it and the clip see of each other; stages: one of STAGES; downscale: how many times smaller than the
    clip it is encoded; stride: which of its frames are taken. Without these two the IC-LoRA says them. sound: whether
    the model also hears its sound; identity: the scale of the guidance to that sound, as in `Guidance`; fit: one of
    FITS, how it gets the clip's shape, None for PAD if it is a still picture and else CROP. Raises InputError if a
    value is out of range, or there is an identity without a sound."""

    strength: float = 1.0
    attention: float = 1.0
    stages: str = FIRST
    downscale: int | None = None
    stride: int | None = None
    sound: bool = False
    identity: float = 0.0
    fit: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sound, bool):
            raise InputError(f"reference: sound is {shown(self.sound)}; give true or false.")
        if self.fit is not None and self.fit not in FITS:
            raise InputError(f"reference: fit is {shown(self.fit)}; choose one of {', '.join(FITS)}.")
        check_number("reference", "identity", self.identity, 0.0, MOST_IDENTITY)
        if self.identity and not self.sound:
            raise InputError("reference: identity leads to the voice of the reference; set sound to true, too.")
        if self.stages not in STAGES:
            raise InputError(f"reference: stages is {shown(self.stages)}; choose one of {', '.join(STAGES)}.")
        for name in ("strength", "attention"):
            check_number("reference", name, getattr(self, name), 0.0, 1.0)
        for name in ("downscale", "stride"):
            factor = getattr(self, name)
            if factor is not None and (not _whole(factor) or not 1 <= factor <= MOST_FACTOR):
                raise InputError(f"reference: {name} is {shown(factor)}; give a whole number from 1 to {MOST_FACTOR}.")

    def of_sound(self) -> tuple[ReferenceUse, list[str]]:
        """The use of a sound alone, and a sentence for the report if something says how it is seen."""
        usual = ReferenceUse()
        names = [name for name in OF_PICTURES if getattr(self, name) != getattr(usual, name)]
        said = f"{_listed(names)} of reference {'does' if len(names) == 1 else 'do'} nothing, because it is only heard"
        return replace(self, sound=True), [said] if names else []

    def acts(self, first: bool) -> bool:
        """Whether the reference and its LoRA act in a stage. first: whether it is the first one."""
        return first or self.stages == ALL

    def hears(self, first: bool) -> bool:
        """Whether a stage hears a sound as its example: the reference's, or in the second stage its own."""
        return self.sound and self.acts(first)

    @classmethod
    def parse(cls, value: Any) -> ReferenceUse | None:
        """As `VideoEdit.parse`."""
        return _read(cls, "reference", value, '{"strength": 1, "attention": 0.6}')


def _read(cls: type, name: str, value: Any, example: str) -> Any:
    return None if value is None else cls(**members(cls, name, value, f"null or an object like {example}"))


def _listed(names: Sequence[str]) -> str:
    *first, last = names or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
