"""The inputs of the applications that take a video, and what these stand for in the engine's parameters.

They are those that the hosted service publishes for …/extend-video, …/video-to-video and …/reference-video-to-video.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from ...ltx.errors import InputError
from ...ltx.extension import BACKWARD, CONTEXT, FORWARD
from ...ltx.request import AUTO
from ..files.looks import Kind
from .audio_to_video import OF_DISTILLED
from .inputs import OFFERED, optional_file, required_file

Values = Mapping[str, Any]
KINDS: Mapping[str, Kind] = {
    "video_url": "video",
    "audio_url": "audio",
    "image_url": "image",
    "end_image_url": "image",
}
NONE, CANNY, UNION, DETAILER, MATCHING = "none", "canny", "union", "detailer", "match_preprocessor"
INGREDIENTS = "ingredients"
NOT_HERE = ("match_audio_length", "preprocess_audio", "image_strength", "windows", "timeline")
FAINT = 0.01  # the hosted strengths of video-to-video: only the rough layout of the source stays
MOST_CONTEXT = 121  # frames


def _share(default: float, description: str) -> Any:
    return float, Field(default, ge=0, le=1, allow_inf_nan=False, description=description)


def _switch(default: bool, description: str) -> Any:
    return bool, Field(default, description=description)


LENGTH = {"match_video_length": _switch(True, "The video lasts as long as the given one. Off: num_frames.")}
RATE_AND_SOUND = {
    "match_input_fps": _switch(True, "The frame rate is the given video's. Off: fps."),
    "generate_audio": _switch(True, "The model makes sound as far as audio_strength lets it. Off: the sound is kept."),
}
EXTEND_FIELDS = {
    "video_url": required_file("The video that goes on: a URL, a data URI or an uploaded file's URL."),
    "end_image_url": optional_file(
        "The last frame of the new part; the first frame if the new part comes before the video."
    ),
    "extend_direction": (
        Literal[FORWARD, BACKWARD],
        Field(FORWARD, description="Whether the new part comes after the video or before it."),
    ),
    "num_context_frames": (
        int,
        Field(
            CONTEXT,
            ge=0,
            le=MOST_CONTEXT,
            description="Frames of the video that the model sees beside the new part. They count into num_frames.",
        ),
    ),
    "video_strength": _share(1, "How firmly these frames are held while the new ones are made."),
    **RATE_AND_SOUND,
}
VIDEO_FIELDS = {
    "video_url": required_file("The video that is made anew: a URL, a data URI or an uploaded file's URL."),
    "video_strength": _share(FAINT, "How much of the given picture stays: 1 keeps it, 0 ignores it."),
    **LENGTH,
    **RATE_AND_SOUND,
}
REFERENCE_FIELDS = {
    "video_url": required_file(
        "The video that the new one follows, or a picture of who and what shall appear in it: a URL, a data URI or an "
        "uploaded file's URL."
    ),
    "audio_url": optional_file("The sound. Without it, the video's own sound is taken."),
    "image_url": optional_file("The first frame."),
    "end_image_url": optional_file("The last frame."),
    "video_strength": _share(1, "How closely the new video follows the given one; 0 ignores it."),
    "preprocessor": (
        Literal["depth", CANNY, "pose", NONE],
        Field(
            NONE,
            description="What is made of the given video before the model sees it: canny draws its edges. This server "
            "has no models for depth and pose: give such a video as video_url, with preprocessor none.",
        ),
    ),
    "ic_lora_type": (
        Literal[MATCHING, UNION, DETAILER, INGREDIENTS, NONE],
        Field(
            UNION,
            description="The IC-LoRA that reads the given video: union reads depth, edges and poses; ingredients reads "
            "a picture of persons, things and places. match_preprocessor takes the preprocessor's, and none without "
            "one.",
        ),
    ),
    "match_video_length": _switch(
        True, "The video lasts as long as the given one; beside a picture, as long as the sound. Off: num_frames."
    ),
    **RATE_AND_SOUND,
}


@dataclass(frozen=True)
class Task:
    """What one of the three applications takes. fields: its own inputs. without: the engine's parameters that it does
    not have. defaults: of parameters, where they are not the engine's. pictures: whether a still picture may take the
    video's place."""

    name: str
    description: str
    fields: Mapping[str, Any]
    without: tuple[str, ...] = (*NOT_HERE, "end_image_strength")
    defaults: Values = field(default_factory=lambda: {"video_size": AUTO})
    pictures: bool = False
    why_not: str = "generate_audio is off"

    def sound(self, makes: bool) -> float | None:
        """The engine's audio strength if that is not the request's. makes: whether the model makes sound."""
        return None if makes else 1.0

    def parameters(self, *, distilled: bool) -> tuple[str, ...]:
        """The engine's parameters that it has."""
        there = OF_DISTILLED if distilled else OFFERED
        return tuple(name for name in there if name not in self.without)

    @property
    def files(self) -> Mapping[str, Kind]:
        """The inputs that are files, and the kind of each."""
        kinds = {name: kind for name, kind in KINDS.items() if name in self.fields}
        return {**kinds, "video_url": "reference"} if self.pictures else kinds

    def translate(self, values: Values, files: Collection[str]) -> tuple[Values, Sequence[str]]:
        """The `Translate` of the application. Raises InputError for a preprocessor that is not here."""
        own = {name: value for name, value in values.items() if name in self.fields}
        given = {name: value for name, value in values.items() if name not in own}
        parameters = {"match_audio_length": False, **self.defaults, **given}
        notes, strength = [], self.sound(own.get("generate_audio", True))
        if strength is not None:
            if values.get("audio_strength", 1) < 1:
                notes.append(f"audio_strength does nothing here: {self.why_not}")
            parameters["audio_strength"] = strength
        if (kind := own.get("preprocessor", NONE)) not in (NONE, CANNY):
            raise InputError(
                f"preprocessor: {kind} needs a model that this server does not have; make the {kind} video with "
                f"another tool, give it as video_url, and set preprocessor to {NONE}."
            )
        return parameters, notes


@dataclass(frozen=True)
class Lengthening(Task):
    """The task whose video keeps its sound whatever the new part gets."""

    why_not: str = "the video keeps its sound, and the new part has none to keep"

    def sound(self, makes: bool) -> float | None:
        return 0.0 if makes else 1.0


EXTEND = Lengthening(
    "extend-video", "Makes a video longer, after its end or before its beginning.", EXTEND_FIELDS, without=NOT_HERE
)
VIDEO_TO_VIDEO = Task(
    "video-to-video",
    "Makes another take of a video.",
    VIDEO_FIELDS,
    defaults={"video_size": AUTO, "audio_strength": FAINT},
)
REFERENCE = Task(
    "reference-video-to-video",
    "Generates a video that follows another one, or shows who and what a picture shows, by an IC-LoRA.",
    REFERENCE_FIELDS,
    pictures=True,
)
