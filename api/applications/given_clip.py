"""What a request with a video takes from the video itself: frame rate, length, size, and whether there is sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ...ltx.errors import InputError
from ...ltx.latents import TIME_SCALE
from ...ltx.media.clip import Clip, is_silent, open_clip
from ...ltx.media.rates import frame_rate
from ...ltx.plan import round_frames
from ...ltx.request import AUTO, MAX_FRAMES, PARAMETERS, Request
from ..graph.compose_video import Place
from .audio_to_video import about
from .inputs import CheckedRequest
from .video_inputs import BACKWARD

VIDEO = "video_url"
SOUND, PLACE = "has_sound", "place"
"""What `settle` adds to a request's own inputs: whether there is a sound to keep or to begin with, and the `Place` of a
video that is made longer."""


def opened(paths: Mapping[str, Path]) -> Clip:
    """The given video. Errors: InputError, about the input."""
    try:
        return open_clip(paths[VIDEO])
    except InputError as error:
        raise about(VIDEO, paths[VIDEO], error) from error


def check_clip(field: str, path: Path) -> None:
    """The `check_file` of an application that takes a video: it can be decoded. Errors: InputError."""
    if field == VIDEO:
        opened({VIDEO: path})


def has_sound(paths: Mapping[str, Path]) -> bool:
    """Whether there is sound: a file of its own, or the video's."""
    return "audio_url" in paths or not is_silent(paths[VIDEO])


def rated(checked: CheckedRequest, clip: Clip) -> Request:
    """The request with the video's frame rate, within the range of `fps`, if it asks for that."""
    if not checked.own["match_input_fps"]:
        return checked.request
    limits = PARAMETERS["fps"]
    return replace(checked.request, fps=min(max(float(clip.fps), limits.minimum), limits.maximum))


def sized(request: Request, clip: Clip) -> Request:
    """The request with the video's size in place of `auto`."""
    return replace(request, video_size=(clip.width, clip.height)) if request.video_size == AUTO else request


def as_long(checked: CheckedRequest, request: Request, clip: Clip) -> Request:
    """The request with as many frames as the video has at its rate, if it asks for that: 8k+1, at most MAX_FRAMES."""
    if not checked.own["match_video_length"]:
        return request
    frames = round_frames(max(clip.count(frame_rate(request.fps)), PARAMETERS["num_frames"].minimum))
    return replace(request, num_frames=min(frames, MAX_FRAMES))


def place_of(count: int, num_frames: int, context: int, direction: str) -> Place:
    """Where a video of so many frames lies in the longer film. num_frames: of the new part with its context; context:
    frames of the video that it is made to fit. Raises InputError if no new frames are left.

    The context is rounded down to 8k+1, and the film up to it, so that the new part may have some frames more.
    """
    fitted = min(context, count)
    fitted = (fitted - 1) // TIME_SCALE * TIME_SCALE + 1 if fitted else 0
    if num_frames <= fitted:
        raise InputError(
            f"num_frames: {num_frames} frames leave no new ones beside their context of {fitted}; "
            "raise num_frames or lower num_context_frames."
        )
    # a film of no more latents than the video would be the video alone
    frames = max(round_frames(count + num_frames - fitted), round_frames(count) + TIME_SCALE)
    begin = frames - count if direction == BACKWARD else 0
    edge = begin if direction == BACKWARD else count - fitted
    return Place(frames, begin, edge, fitted)
