"""Plans a video: decides frames, pixels and rate from a request, its sound and its images, before anything is
loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from .errors import InputError
from .grid import SHORTEST_SOUND, SPACE_SCALE, TIME_SCALE
from .media.audio import LONGEST, MAX_SECONDS, Track, frames_for_audio
from .media.pauses import levels_heard
from .media.rates import frame_rate
from .request import AUTO, MAX_FRAMES, SIZES, Request
from .timeline import Section, borders
from .windows import Window, cut_windows

MAX_AREA = 1920 * 1088
LONGEST_SIDE = 16_384  # pixels; x264 encodes no longer side
MAX_SAMPLES = 2**27  # of the sound, padded to the video's end: over ten minutes at 192 kHz, 1 GiB in stereo


@dataclass(frozen=True)
class Plan:
    """The plan of a video: its pixels, its frames (8k+1), its exact rate, and notes on every changed value.

    windows: the windows in which both stages are sampled, at least one. sections: those of the timeline, if there is
    one; each begins with a window. shown: how many of the frames are written, 0 for all; a source video of another
    length than 8k+1 has no more. lead, tail: frames of the source that are written before and behind them as they are.
    """

    width: int
    height: int
    frames: int
    fps: Fraction
    two_stages: bool
    notes: tuple[str, ...]
    windows: tuple[Window, ...]
    sections: tuple[Section, ...] = ()
    shown: int = 0
    lead: int = 0
    tail: int = 0

    @property
    def used(self) -> int:
        """The frames that are written of those that the model makes."""
        return self.shown or self.frames

    @property
    def written(self) -> int:
        """The frames of the finished file."""
        return self.lead + self.used + self.tail

    @property
    def whole(self) -> Window:
        """The film as one window."""
        return Window(0, (self.frames - 1) // TIME_SCALE + 1)

    @property
    def first_size(self) -> tuple[int, int]:
        """Width and height of the first stage."""
        return (self.width // 2, self.height // 2) if self.two_stages else (self.width, self.height)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each stage."""
        return (self.first_size, (self.width, self.height)) if self.two_stages else (self.first_size,)


def round_frames(frames: int) -> int:
    """The smallest 8k+1 that is at least `frames`."""
    return -(-max(frames - 1, 0) // TIME_SCALE) * TIME_SCALE + 1


def snap_size(width: int, height: int, two_stages: bool, downscale: int = 1) -> tuple[int, int]:
    """Rounds pixels up to the grid. A size above the largest area is scaled down to it and rounded down. downscale: how
    many times smaller a reference video is, which has a grid of its own."""
    grid = SPACE_SCALE * (2 if two_stages else 1) * downscale

    def up(side: int) -> int:
        return -(-side // grid) * grid

    width, height = up(width), up(height)
    shrink = math.sqrt(MAX_AREA / (width * height))
    if shrink >= 1:
        return width, height
    # The short side of a long strip can be less than one cell of the grid; one cell is the minimum.
    return max(int(width * shrink) // grid, 1) * grid, max(int(height * shrink) // grid, 1) * grid


def choose_frames(
    track: Track, fps: Fraction, match: bool, num_frames: int, *, windowed: bool = False, silence: bool = True
) -> tuple[int, list[str]]:
    """Returns the frames of the clip, 8k+1, and notes on changes. match: whether the audio sets the length, up to 481
    frames, or up to LONGEST seconds if the clip is `windowed`. silence: whether silence follows a track that is
    shorter, and not a sound that the model makes. Raises InputError if the sound is too long or would not fit into
    memory."""
    notes = []
    if match:
        if windowed and track.seconds >= LONGEST:
            raise InputError(f"audio: it lasts {LONGEST // 60} minutes or more; cut it into shorter parts.")
        frames = frames_for_audio(track, fps)
        if frames > MAX_FRAMES and not windowed:
            kept = float(MAX_FRAMES / fps)
            notes.append(f"the audio lasts {float(track.seconds):.2f} s; the video ends after {kept:.2f} s")
            frames = MAX_FRAMES
        _check_length(frames, fps, track, LONGEST + TIME_SCALE / fps if windowed else MAX_SECONDS)  # it is rounded up
        return frames, notes
    frames = round_frames(num_frames)
    _check_length(frames, fps, track, LONGEST if windowed else MAX_SECONDS)
    if frames != num_frames:
        notes.append(f"num_frames rounded up from {num_frames} to {frames}")
    return frames, [*notes, *(silence_behind(track, frames, fps) if silence else [])]


def silence_behind(track: Track, frames: int, fps: Fraction) -> list[str]:
    """A sentence for the report if a film of so many frames goes on behind the end of its track."""
    end, seconds = float(track.seconds), float(frames / fps)
    return [f"the audio ends after {end:.2f} s of {seconds:.2f} s; silence follows"] if end < seconds else []


def _check_length(frames: int, fps: Fraction, track: Track, most: Fraction | int) -> None:
    """Raises InputError if the clip lasts more than `most` seconds or no more than SHORTEST_SOUND, or its sound would
    not fit into memory."""
    seconds = frames / fps
    if seconds <= SHORTEST_SOUND:
        raise InputError(
            f"fps: {frames} frame(s) at {float(fps):g} fps last {float(seconds):.3f} s, but the model needs more than "
            f"{float(SHORTEST_SOUND):g} s of sound; lower fps or ask for more frames."
        )
    if seconds > most:
        raise InputError(
            f"fps: {frames} frames at {float(fps):g} fps last {float(seconds):.0f} s, but {most} s is the most; "
            "raise fps or ask for fewer frames."
        )
    if seconds * track.rate > MAX_SAMPLES:
        raise InputError(
            f"audio: {track.rate} Hz is too high for a video of {float(seconds):.0f} s; convert it to 48000 Hz."
        )


def choose_size(
    size: str | tuple[int, int], two_stages: bool, images: tuple[tuple[int, int] | None, ...] = (), downscale: int = 1
) -> tuple[int, int, list[str]]:
    """Returns width, height and notes on changes. images: (width, height) of the first and the end image, None for a
    missing one. downscale: as for `snap_size`. Raises InputError if a side is too long to be encoded."""
    if size == AUTO:
        requested = next((image for image in images if image), SIZES["landscape_16_9"])
    else:
        requested = SIZES[size] if isinstance(size, str) else size
    width, height = snap_size(*requested, two_stages, downscale)
    if max(width, height) > LONGEST_SIDE:
        raise InputError(
            f"video_size: {width}×{height} cannot be encoded; give sides of at most {LONGEST_SIDE} pixels."
        )
    changed = (width, height) != tuple(requested)
    return width, height, [f"size changed from {requested[0]}×{requested[1]} to {width}×{height}"] if changed else []


def plan(
    request: Request,
    track: Track,
    images: tuple[tuple[int, int] | None, ...] = (),
    *,
    shown: int = 0,
    downscale: int = 1,
    silence: bool = True,
) -> Plan:
    """Plans a request for this track and these images, given as (width, height). shown: as in `Plan`. downscale: as for
    `snap_size`. silence: as for `choose_frames`. Raises InputError as `choose_frames` and `choose_size`."""
    fps = frame_rate(request.fps)
    windowed = request.windows is not None
    asked = request.match_audio_length, request.num_frames
    frames, frame_notes = choose_frames(track, fps, *asked, windowed=windowed, silence=silence)
    width, height, size_notes = choose_size(request.video_size, request.use_multiscale, images, downscale)
    sections = request.sections
    levels: tuple[int, ...] = ()
    if windowed and request.windows.pauses and frames > request.windows.frames:
        levels = levels_heard(track, frames, fps, request.preprocess_audio)
    windows = cut_windows(frames, request.windows, borders(sections, frames, fps), levels)
    if windowed:
        request.windows.check_seeds(len(windows))
    notes = tuple(frame_notes + size_notes)
    return Plan(width, height, frames, fps, request.use_multiscale, notes, windows, sections, shown)
