"""LTX-2.5: the two hosted applications, lightricks/ltx-2.5/audio-to-video/fast and …/pro, and LTX-2.3's under our name.

The hosted ones have five inputs, and this file decides the rest; docs/api.md gives each choice with its reason. Ours,
local/ltx-2.5-22b/…, have every parameter of LTX-2.3's applications, and no hosted service has them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from ...ltx.errors import InputError
from ...ltx.media.audio import load_track
from ...ltx.media.images import load_image
from ...ltx.request import AUTO
from ..files.looks import Kind
from ..graph.model_files import find_distilled_25, find_finest_25, find_models_25
from ..settings import Settings
from .application import Application
from .audio_to_video import DISTILLED_RECIPE, about, compose_request, variants
from .inputs import CheckedRequest, optional_file, own_model, required_file
from .outputs import VideoOutput

HOSTED, OWN = "lightricks/ltx-2.5", "local/ltx-2.5-22b"
FILES: Mapping[str, Kind] = {"audio_url": "audio", "image_url": "image"}
SHORTEST, LONGEST, LONGEST_PRO = 2, 20, 10  # seconds of sound
SLACK = 0.05  # seconds by which encoders lengthen or shorten a sound
LONGEST_PROMPT = 5000  # characters
GUIDANCE, GUIDANCE_WITH_IMAGE = 5.0, 9.0
LONG_BY_SHORT = 16 / 9
LANDSCAPE, PORTRAIT = "16:9", "9:16"

QUALITY_RECIPE = {
    "num_inference_steps": 30,
    "scheduler": "ltx2",
    "video_rescaling_scale": 0.7,
    "use_restart_sampling": False,
    "distill_lora_first_pass_scale": 0.0,
    "distill_lora_second_pass_scale": 1.0,
}
"""The official pipeline's values for the undistilled LTX-2.5, where they are not the defaults."""


NO_GUIDANCE = "guidance_scale does nothing here, because the distilled model has no guidance"

Values = Mapping[str, Any]


def _fields(longest: int) -> dict[str, Any]:
    """The hosted inputs. longest: seconds of sound."""
    usual = f"{GUIDANCE:g}, with an image {GUIDANCE_WITH_IMAGE:g}"
    guidance = f"How strongly the video follows the prompt. Default: {usual}."
    return {
        "audio_url": required_file(f"The sound, {SHORTEST} to {longest} seconds long."),
        "image_url": optional_file("The first frame. Without it a prompt is required."),
        "prompt": (str | None, Field(None, max_length=LONGEST_PROMPT, description="What the video shows.")),
        "guidance_scale": (float | None, Field(None, ge=1, le=50, allow_inf_nan=False, description=guidance)),
        "aspect_ratio": (
            Literal[AUTO, LANDSCAPE, PORTRAIT],
            Field(AUTO, description=f"The shape of the video. {AUTO}: as the image, else {LANDSCAPE}."),
        ),
        # not a hosted input: a request that runs again after a crash keeps its seed, and whoever knows one can give it
        "seed": (SkipJsonSchema[int | None], None),
    }


def _prompt(values: Values, files: Collection[str]) -> str:
    """The prompt, which may be empty if there is an image. Errors: InputError."""
    prompt = values.get("prompt") or ""
    if "image_url" not in files and not prompt.strip():
        raise InputError("prompt: missing; say what the video shows, or give the first frame as image_url.")
    return prompt


def _to_fast(values: Values, files: Collection[str]) -> tuple[Values, Sequence[str]]:
    notes = [NO_GUIDANCE] if values.get("guidance_scale") is not None else []
    return {"prompt": _prompt(values, files), "seed": values.get("seed")}, notes


def _to_pro(values: Values, files: Collection[str]) -> tuple[Values, Sequence[str]]:
    asked = values.get("guidance_scale")
    usual = GUIDANCE_WITH_IMAGE if "image_url" in files else GUIDANCE
    scale = usual if asked is None else asked
    return {"prompt": _prompt(values, files), "seed": values.get("seed"), "video_cfg_scale": scale}, ()


def _check_length(field: str, path: Path, longest: int) -> None:
    """Checks how long a sound is. Errors: InputError."""
    if FILES[field] != "audio":
        return
    try:
        seconds = load_track(path, duration=longest + 1).seconds
    except InputError as error:
        raise about(field, path, error) from error
    if seconds < SHORTEST - SLACK:
        raise InputError(f"{field}: the sound lasts {float(seconds):.2f} s; give one of {SHORTEST} to {longest} s.")
    if seconds > longest + SLACK:
        raise InputError(f"{field}: the sound is longer than {longest} s; give one of {SHORTEST} to {longest} s.")


def _settle(checked: CheckedRequest, paths: Mapping[str, Path], settings: Settings) -> CheckedRequest:
    """Chooses the size: the administrator's short side, in the asked shape or the one that is nearer to the image's."""
    shape = checked.own["aspect_ratio"]
    if shape == AUTO:
        shape = PORTRAIT if "image_url" in paths and _is_upright(paths["image_url"]) else LANDSCAPE
    short, long = settings.short_side, round(settings.short_side * LONG_BY_SHORT)
    size = (long, short) if shape == LANDSCAPE else (short, long)
    return replace(checked, request=replace(checked.request, video_size=size))


def _is_upright(path: Path) -> bool:
    """Whether an image is higher than wide. Errors: InputError."""
    try:
        height, width, _ = load_image(path).shape
    except InputError as error:
        raise about("image_url", path, error) from error
    return height > width


def _hosted(name: str, description: str, longest: int, **options: Any) -> Application:
    return Application(
        f"{HOSTED}/audio-to-video/{name}",
        own_model(f"Ltx25{name.title()}Input", description, _fields(longest)),
        FILES,
        compose=compose_request,
        check_file=partial(_check_length, longest=longest),
        settle=_settle,
        output=VideoOutput,
        **options,
    )


FAST = _hosted(
    "fast",
    "A video from sound, by the distilled LTX-2.5.",
    LONGEST,
    find_models=find_distilled_25,
    fixed=DISTILLED_RECIPE,
    translate=_to_fast,
)
PRO = _hosted(
    "pro",
    "A video from sound, by the undistilled LTX-2.5 with guidance.",
    LONGEST_PRO,
    find_models=find_finest_25,
    fixed=QUALITY_RECIPE,
    translate=_to_pro,
)
OURS = variants(OWN, find_models_25, find_distilled_25)
