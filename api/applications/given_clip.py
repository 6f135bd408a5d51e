"""What a request with a video takes from the video itself: frame rate, length, size, and whether there is sound. A
picture in its place gives the size alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ...ltx.errors import InputError
from ...ltx.given import unheard
from ...ltx.media.audio import LONGEST, frames_for_audio, load_track
from ...ltx.media.clip import Clip, is_silent, open_reference
from ...ltx.media.images import moves
from ...ltx.media.rates import frame_rate
from ...ltx.plan import round_frames, snap_size
from ...ltx.request import AUTO, MAX_FRAMES, PARAMETERS, Request
from .audio_to_video import about
from .inputs import CheckedRequest

VIDEO, SOUND_FILE = "video_url", "audio_url"
SOUND, SAID, PICTURE = "has_sound", "said", "is_picture"
"""What `settle` adds to a request's own inputs: whether there is a sound to keep or to begin with, sentences for the
report, and whether the video is a still picture."""


def opened(paths: Mapping[str, Path]) -> Clip:
    """The given video. Errors: InputError, about the input."""
    try:
        return open_reference(paths[VIDEO])
    except InputError as error:
        raise about(VIDEO, paths[VIDEO], error) from error


def check_clip(field: str, path: Path) -> None:
    """The `check_file` of an application that takes a video: it can be decoded. Errors: InputError."""
    if field == VIDEO:
        opened({VIDEO: path})


def is_picture(paths: Mapping[str, Path]) -> bool:
    """Whether a still picture was given in place of a video."""
    return not moves(paths[VIDEO])


def has_sound(paths: Mapping[str, Path]) -> bool:
    """Whether there is sound: a file of its own, or the video's."""
    return SOUND_FILE in paths or not (is_picture(paths) or is_silent(paths[VIDEO]))


def rated(checked: CheckedRequest, clip: Clip) -> Request:
    """The request with the video's frame rate, within the range of `fps`, if it asks for that."""
    if not checked.own["match_input_fps"]:
        return checked.request
    limits = PARAMETERS["fps"]
    return replace(checked.request, fps=min(max(float(clip.fps), limits.minimum), limits.maximum))


def sized(request: Request, clip: Clip) -> Request:
    """The request with the video's size in place of `auto`, within the range of `video_size`."""
    if request.video_size != AUTO:
        return request
    limits, size = PARAMETERS["video_size"], (clip.width, clip.height)
    if max(size) > limits.maximum:
        size = snap_size(*size, request.use_multiscale)
    width, height = (int(min(max(side, limits.minimum), limits.maximum)) for side in size)
    return replace(request, video_size=(width, height))


def as_long(checked: CheckedRequest, request: Request, clip: Clip) -> tuple[Request, tuple[str, ...]]:
    """The request with as many frames as the video has at its rate, if it asks for that: 8k+1, at most MAX_FRAMES. Also
    a sentence if the video is cut."""
    count, asks = clip.count(frame_rate(request.fps)), checked.own["match_video_length"]
    frames = round_frames(max(count, PARAMETERS["num_frames"].minimum) if asks else request.num_frames)
    frames = min(frames, MAX_FRAMES)
    said = ()
    if count > frames:
        longer = "raise num_frames" if frames < MAX_FRAMES else "send the rest as further requests"
        if frames == MAX_FRAMES and request.fps > PARAMETERS["fps"].minimum:
            longer = "set match_input_fps to false and fps to a lower value, or " + longer
        said = (f"video_url: only the first {frames} of its {count} frames are used; to use more, {longer}.",)
    return replace(request, num_frames=frames) if asks else request, said


def as_long_as_the_sound(checked: CheckedRequest, paths: Mapping[str, Path]) -> Request:
    """The request beside a picture, with as many frames as its sound needs if it asks for the given length: 8k+1, at
    most MAX_FRAMES. Raises InputError, about the input, if the sound cannot be read."""
    request = checked.request
    if SOUND_FILE not in paths or not checked.own["match_video_length"]:
        return request
    try:
        track = load_track(paths[SOUND_FILE], most=LONGEST)
    except InputError as error:
        raise about(SOUND_FILE, paths[SOUND_FILE], error) from error
    return replace(request, num_frames=min(frames_for_audio(track, frame_rate(request.fps)), MAX_FRAMES))


def cut_sound(checked: CheckedRequest, request: Request, paths: Mapping[str, Path]) -> tuple[str, ...]:
    """A sentence if a sound of its own lasts longer than the video that is made. One that cannot be read is told by the
    node that loads it."""
    if SOUND_FILE not in paths:
        return ()
    try:
        track = load_track(paths[SOUND_FILE], most=LONGEST)
    except InputError:
        return ()
    frames, fps = round_frames(request.num_frames), frame_rate(request.fps)
    remedy = "raise num_frames" if frames < MAX_FRAMES else "send the rest as further requests"
    if checked.own["match_video_length"] and frames < MAX_FRAMES:
        remedy = "set match_video_length to false and raise num_frames"
    return tuple(f"{SOUND_FILE}: {said}." for said in unheard(track, frames, fps, f"to use more, {remedy}"))
