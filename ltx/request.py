"""The endpoint's parameters, with their defaults, ranges and choices, which stand only here.

Node widgets, the command and the HTTP validation read `PARAMETERS`. `parse` turns a JSON object into a `Request`.
"""

from __future__ import annotations

import difflib
import random
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from .characters import check_text
from .edits import ReferenceUse, VideoEdit
from .errors import InputError
from .media.formats import FORMATS, QUALITIES, WRITE_MODES
from .nag import Nag
from .timeline import Section, read_timeline
from .windows import LONGEST, WindowSize

NEGATIVE_PROMPT = (
    "news broadcast, 3d animation, computer graphics, pc game, console game, video game, cartoon, childish, watermark, "
    "logo, text, on screen text, subtitles, titles, signature, slowmo, static"
)
SIZES = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
AUTO = "auto"
ACCELERATIONS = ("none", "regular", "high", "full")
SIDE = 512  # pixels of the missing side if a custom size names only one
MAX_FRAMES = LONGEST
SEED_BELOW = 2**31
MOST = 2**16  # frames or pixels of a side: more than any machine can make, and safe to calculate with
SHOWN = 100  # characters of a wrong value in a message; the value may be a whole file


@dataclass(frozen=True)
class Parameter:
    """One input of the endpoint. kind: text, integer, number, switch, choice, size, seed, windows, edit,
    reference or nag.

    minimum, maximum: the endpoint's range. hard_minimum, hard_maximum: the limits of the engine itself, which apply to
    the command.
    """

    kind: str
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    hard_minimum: float | None = None
    hard_maximum: float | None = None


def _number(
    default: float | None, low: float, high: float, text: str, hard: tuple[float | None, float | None] = (0, None)
):
    return Parameter("number", default, text, low, high, hard_minimum=hard[0], hard_maximum=hard[1])


def _share(default: float, text: str) -> Parameter:
    return _number(default, 0, 1, text, (0, 1))


def _switch(default: bool, text: str) -> Parameter:
    return Parameter("switch", default, text)


def _choice(default: str, choices: tuple[str, ...], text: str) -> Parameter:
    return Parameter("choice", default, text, choices=choices)


PARAMETERS: dict[str, Parameter] = {
    "prompt": Parameter("text", None, "What the video shows. It describes the picture; the audio drives the motion."),
    "negative_prompt": Parameter("text", NEGATIVE_PROMPT, "What the video must not show. It acts if CFG is not 1."),
    "match_audio_length": _switch(True, "The video lasts as long as the audio, rounded up so that nothing is cut."),
    "num_frames": Parameter(
        "integer", 121, "Frames if the audio does not set the length; rounded up to 8k+1.", 9, MAX_FRAMES, (), 1, MOST
    ),
    "video_size": Parameter(
        "size",
        "landscape_16_9",
        "Size of the video: a name, or width and height. auto is the first image's size, else the end image's.",
        64,
        4096,
        (AUTO, *SIZES),
        1,
        MOST,
    ),
    "use_multiscale": _switch(True, "Two stages: first half the size, then the full size, refined. Off: one stage."),
    "fps": _number(24, 1, 60, "Frames per second; 23.976 and 29.97 mean the exact broadcast rates.", (0.01, 1000)),
    "num_inference_steps": Parameter("integer", 15, "Steps of the first stage.", 8, 50, (), 1, 10_000),
    "video_cfg_scale": _number(3, 1, 20, "How strongly the picture follows the prompt. 1 leaves that pass out."),
    "video_stg_scale": _number(1, 0, 20, "Spatio-temporal guidance: coherence of motion. 0 leaves that pass out."),
    "video_rescaling_scale": _share(0.85, "Pulls the contrast back to the unguided one; more tames burnt colours."),
    "video_modality_scale": _number(3, 0, 10, "How strongly the picture follows the audio. 1 leaves that pass out."),
    "audio_cfg_scale": _number(7, 1, 20, "CFG of the audio. It acts only at an audio strength below 1."),
    "audio_stg_scale": _number(None, 0, 20, "STG of the audio. It acts only at an audio strength below 1."),
    "audio_rescaling_scale": _share(0.7, "Rescaling of the audio. It acts only at an audio strength below 1."),
    "audio_modality_scale": _number(
        3, 0, 10, "How strongly the audio follows the picture. It acts only at an audio strength below 1."
    ),
    "audio_strength": _share(1, "1 returns the track unchanged. With a lower value the model may change it."),
    "gradient_estimation_gamma": _number(
        None, 0, 10, "Extrapolates a step's direction from the previous one: 2 is usual, 0 is off (Euler).", (0, None)
    ),
    "use_restart_sampling": _switch(True, "Adds a little noise after each step of the first stage."),
    "scheduler": _choice("beta", ("ltx2", "linear_quadratic", "beta"), "How the noise falls in the first stage."),
    "acceleration": _choice("none", ACCELERATIONS, "Trades exactness for speed; none is exact."),
    "camera_lora": _choice(
        "none",
        ("dolly_in", "dolly_out", "dolly_left", "dolly_right", "jib_up", "jib_down", "static", "none"),
        "A camera movement, by its LoRA.",
    ),
    "camera_lora_scale": _share(1, "Strength of the camera LoRA in both stages."),
    "distill_lora_first_pass_scale": _share(0.2, "Strength of the distilled LoRA in the first stage; 0 is off."),
    "distill_lora_second_pass_scale": _share(0.5, "Strength of the distilled LoRA in the second stage; 0 is off."),
    "image_strength": _share(1, "How strongly frame 0 keeps the first image; 0 ignores the image."),
    "end_image_strength": _share(1, "How strongly the last frame keeps the end image; 0 ignores the image."),
    "seed": Parameter("seed", None, "Drives all noise: the same seed gives the same frames. If absent, it is drawn."),
    "enable_prompt_expansion": _switch(True, "The text encoder first writes a fuller prompt."),
    "enable_safety_checker": _switch(True, "An image classifier checks the result."),
    "preprocess_audio": _switch(True, "Levels the audio that conditions the video; the returned track is unchanged."),
    "video_output_type": _choice("X264 (.mp4)", tuple(FORMATS), "Container and codec. GIF has no sound."),
    "video_quality": _choice("high", QUALITIES, "Quality of the encoded video."),
    "video_write_mode": _choice("balanced", WRITE_MODES, "fast encodes sooner, small takes longer for fewer bytes."),
    "windows": Parameter(
        "windows", None, "Overlapping windows, for a film as long as the audio. Not the endpoint's."
    ),
    "timeline": Parameter("text", "", "Sections of a film: times and prompts. Not the endpoint's."),
    "edit": Parameter("edit", None, "What of a given video is made anew. Not the endpoint's."),
    "reference": Parameter("reference", None, "How a reference video is used. Not the endpoint's."),
    "nag": Parameter("nag", None, "The negative prompt without a pass of its own (NAG). Not the endpoint's."),
}  # fmt: skip

OF_VIDEOS = ("edit", "reference")
"""Parameters about videos that are given; only the command takes such a video."""

ABSENT = ("gradient_estimation_gamma", "audio_stg_scale")
"""Numbers that may be absent or null, which means 0 (off)."""

FLAGS = {
    "audio_url": "--audio",
    "image_url": "--image",
    "end_image_url": "--end-image",
    "sync_mode": "--output",
}
"""Inputs of the endpoint that the command takes as flags: files, and how the result is delivered."""

INERT = ("audio_cfg_scale", "audio_stg_scale", "audio_rescaling_scale", "audio_modality_scale")
"""Parameters that have no effect at audio strength 1."""

UNLED = "identity of reference does nothing while the audio is kept (audio_strength 1)"  # for the report

DISTILLED_INERT = (
    "num_inference_steps", "scheduler", "negative_prompt", "video_cfg_scale", "video_stg_scale",
    "video_rescaling_scale", "video_modality_scale", *INERT, "distill_lora_first_pass_scale",
    "distill_lora_second_pass_scale",
)  # fmt: skip
"""Parameters that have no effect under acceleration `full`, because the distilled recipe sets them."""


@dataclass(frozen=True)
class Request:
    """The endpoint's parameters after the checks of `parse`, which takes absent ones from PARAMETERS.

    given: the names that were in the request; a safety checker that the request names is required, the default one is
    not. notes: sentences for the report.
    """

    prompt: str
    negative_prompt: str
    match_audio_length: bool
    num_frames: int
    video_size: str | tuple[int, int]
    use_multiscale: bool
    fps: float
    num_inference_steps: int
    video_cfg_scale: float
    video_stg_scale: float
    video_rescaling_scale: float
    video_modality_scale: float
    audio_cfg_scale: float
    audio_stg_scale: float
    audio_rescaling_scale: float
    audio_modality_scale: float
    audio_strength: float
    gradient_estimation_gamma: float
    use_restart_sampling: bool
    scheduler: str
    acceleration: str
    camera_lora: str
    camera_lora_scale: float
    distill_lora_first_pass_scale: float
    distill_lora_second_pass_scale: float
    image_strength: float
    end_image_strength: float
    seed: int
    enable_prompt_expansion: bool
    enable_safety_checker: bool
    preprocess_audio: bool
    video_output_type: str
    video_quality: str
    video_write_mode: str
    windows: WindowSize | None
    timeline: str
    edit: VideoEdit | None
    reference: ReferenceUse | None
    nag: Nag | None
    given: frozenset[str] = field(default=frozenset(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def sections(self) -> tuple[Section, ...]:
        """The sections of its timeline; empty without one."""
        return read_timeline(self.timeline, self.prompt)


def _shown(value: Any) -> str:
    """A value on one line, cut to SHOWN characters."""
    shown = repr(value)
    return shown if len(shown) <= SHOWN else shown[:SHOWN] + "…"


def _wrong(name: str, value: Any, wanted: str) -> InputError:
    return InputError(f"{name}: {_shown(value)} is not {wanted}.")


def _check_range(name: str, value: float, low: float | None, high: float | None) -> None:
    if (low is not None and value < low) or (high is not None and value > high):
        wanted = f"between {low:g} and {high:g}" if low is not None and high is not None else f"at least {low:g}"
        raise _wrong(name, value, wanted)


def _is_number(value: Any) -> bool:
    # The comparison is false for NaN, for infinities, and for a whole number that is too large for a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _size(value: Any) -> str | tuple[int, int]:
    parameter = PARAMETERS["video_size"]
    if isinstance(value, str):
        if value not in parameter.choices:
            raise _wrong(
                "video_size", value, "one of " + ", ".join(parameter.choices) + " or an object with width and height"
            )
        return value
    if not isinstance(value, Mapping) or value.keys() - {"width", "height"}:
        raise _wrong("video_size", value, 'a name or an object like {"width": 1280, "height": 720}')
    sides = []
    for side in ("width", "height"):
        length = value.get(side, SIDE)
        if not isinstance(length, int) or isinstance(length, bool):
            raise _wrong(f"video_size.{side}", length, "a whole number of pixels")
        _check_range(f"video_size.{side}", length, parameter.hard_minimum, parameter.hard_maximum)
        sides.append(length)
    return sides[0], sides[1]


def check_value(name: str, value: Any) -> Any:
    """Returns a parameter's value in the right type. Raises InputError, which says what the parameter takes, if it is
    wrong."""
    parameter = PARAMETERS[name]
    kind = parameter.kind
    if kind == "text":
        if not isinstance(value, str):
            raise _wrong(name, value, "a text")
        check_text(name, value)
    elif kind == "switch":
        if not isinstance(value, bool):
            raise _wrong(name, value, "true or false")
    elif kind == "choice":
        if value not in parameter.choices:
            raise _wrong(name, value, "one of " + ", ".join(parameter.choices))
    elif kind == "size":
        return _size(value)
    elif kind == "windows":
        return WindowSize.parse(value)
    elif kind == "edit":
        return VideoEdit.parse(value)
    elif kind == "reference":
        return ReferenceUse.parse(value)
    elif kind == "nag":
        return Nag.parse(value)
    elif kind == "number":
        if value is None and parameter.default is None:
            return 0.0
        if not _is_number(value):
            raise _wrong(name, value, "a number")
        _check_range(name, value, parameter.hard_minimum, parameter.hard_maximum)
        return float(value)
    else:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(name, value, "a whole number")
        if kind == "integer":
            _check_range(name, value, parameter.hard_minimum, parameter.hard_maximum)
    return value


def beside_kept_sound(names: Collection[str]) -> list[str]:
    """Notes on parameters among these names that do nothing if the sound is kept."""
    return [f"{name} does nothing while the audio is kept (audio_strength 1)" for name in INERT if name in names]


def parse(values: Mapping[str, Any]) -> Request:
    """A JSON object with the endpoint's names → Request. An absent seed is drawn. Raises InputError, which names the
    key, if a value is wrong."""
    if not isinstance(values, Mapping):
        raise InputError("the request is not a JSON object.")
    notes = []
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name in FLAGS:
            raise InputError(f"{name}: the command takes this as {FLAGS[name]}; remove it from the request.")
        if name not in PARAMETERS:
            near = difflib.get_close_matches(name, PARAMETERS, 1)
            shown = name if name.isidentifier() and len(name) <= SHOWN else _shown(name)
            raise InputError(f"{shown}: no such parameter" + (f"; did you mean {near[0]}?" if near else "."))
        if value is None and name in ("seed", *ABSENT):
            continue
        checked[name] = check_value(name, value)
    if "prompt" not in checked:
        raise InputError("prompt: missing; say what the video shows.")
    given = frozenset(checked)
    if read_timeline(checked.get("timeline", ""), checked["prompt"]):
        if checked.get("windows", True) is None:
            raise InputError("timeline: a film with sections needs windows; set windows to true or leave it out.")
        checked.setdefault("windows", WindowSize())
    if "seed" not in checked:
        checked["seed"] = random.SystemRandom().randrange(SEED_BELOW)
    if checked.get("audio_strength", 1.0) == 1:
        notes += beside_kept_sound(checked)
    if checked.get("acceleration") == "full":
        inert = [each for each in DISTILLED_INERT if not (each == "negative_prompt" and checked.get("nag"))]
        notes += [f"{name} does nothing under acceleration full" for name in inert if name in checked]
    defaults = {name: parameter.default for name, parameter in PARAMETERS.items()} | dict.fromkeys(ABSENT, 0)
    return Request(**{**defaults, **checked}, given=given, notes=tuple(notes))
