"""Makes a video from sound and a prompt, with an optional first and last image: fal-ai/ltx-2.3-22b/audio-to-video.

Its variants merge LoRAs of the client's choice (…/lora), take the distilled model (distilled/…), or both. The distilled
model has its own schedule and no guidance, so these variants have fewer inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

from ...ltx.errors import InputError
from ...ltx.media.audio import LONGEST, load_track
from ...ltx.weights.lora_file import IC_NAME
from ..files.looks import Kind
from ..graph.compose import compose
from ..graph.graph import Prompt
from ..graph.model_files import ModelFinder, ModelNames, find_distilled, find_lora, find_models
from ..settings import Settings
from .application import Application
from .inputs import LORAS, CheckedRequest, input_model, lora_list, optional_file, required_file

FAMILY = "fal-ai/ltx-2.3-22b"
FILES: Mapping[str, Kind] = {"audio_url": "audio", "image_url": "image", "end_image_url": "image"}
FIELDS = {
    "audio_url": required_file("The sound: a URL, a data URI or an uploaded file's URL."),
    "image_url": optional_file("The first frame."),
    "end_image_url": optional_file("The last frame."),
}
DISTILLED_RECIPE = {"acceleration": "full", "use_restart_sampling": False}
"""The parameters that sample as the distilled model was trained: eight steps, one pass a step."""
OF_DISTILLED = (
    *("prompt", "negative_prompt", "match_audio_length", "num_frames", "video_size", "use_multiscale", "fps", "seed"),
    *("acceleration", "camera_lora", "camera_lora_scale", "image_strength", "end_image_strength", "audio_strength"),
    *("preprocess_audio", "enable_prompt_expansion", "enable_safety_checker", "windows", "timeline", "nag"),
    *("video_output_type", "video_quality", "video_write_mode"),
)
"""The inputs that the endpoint has with the distilled model. `acceleration` does nothing there, and `negative_prompt`
acts with `nag` alone."""


def compose_request(checked: CheckedRequest, models: ModelNames, files: Mapping[str, str], prefix: str) -> Prompt:
    """The `compose` of these applications. Raises InputError also for a timeline with images: they would be files of
    this server."""
    for section in checked.request.sections:
        if section.image:
            raise InputError(
                f"timeline: section {section} has an image; over HTTP only image_url and end_image_url do."
            )
    return compose(
        checked.request,
        models,
        audio=files["audio_url"],
        image=files.get("image_url"),
        end_image=files.get("end_image_url"),
        prefix=prefix,
        loras=chosen_loras(checked, models),
    )


def chosen_loras(checked: CheckedRequest, models: ModelNames) -> list[tuple[str, float]]:
    """Name in ComfyUI's list and strength of each LoRA that the client wants. Raises ModelMissing, and InputError for
    an IC-LoRA, by the names that these have."""
    loras, reading = split_loras(checked, models)
    if reading:
        raise InputError(
            f"{LORAS}: {PureWindowsPath(reading[0][0]).name} is an IC-LoRA, which needs a video to follow; use "
            "reference-video-to-video/lora, or choose another LoRA."
        )
    return loras


def split_loras(checked: CheckedRequest, models: ModelNames) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The same in two lists: those that act in both stages, and the IC-LoRAs. Raises ModelMissing."""
    found = [(find_lora(path, models.loras), strength) for path, strength in checked.loras]
    reading = [lora for lora in found if IC_NAME.search(PureWindowsPath(lora[0]).name)]
    return [lora for lora in found if lora not in reading], reading


def check_minutes(checked: CheckedRequest, paths: Mapping[str, Path], settings: Settings) -> CheckedRequest:
    """The `settle` of these applications: a film must not be longer than the administrator allows. Raises InputError
    for a longer sound, and for one that cannot be read."""
    request, path, most = checked.request, paths["audio_url"], settings.max_minutes
    if request.windows is None or not request.match_audio_length:
        return checked
    try:
        seconds = load_track(path, most=LONGEST).seconds
    except InputError as error:
        raise about("audio_url", path, error) from error
    if seconds > 60 * most:
        raise InputError(
            f"audio_url: the sound lasts {float(seconds) / 60:.1f} minutes, and this server makes films of up to "
            f"{most:g}; cut it into shorter parts."
        )
    return checked


def about(field: str, path: Path, error: InputError) -> InputError:
    """The engine's sentence about a file, about the input that it came by."""
    return InputError(str(error).replace(path.name, field))


Input = input_model("Input", "Generate a video from audio and a prompt, with images if any.", FIELDS)
LoraInput = input_model("LoraInput", "The same with LoRAs of your choice.", {**FIELDS, LORAS: lora_list()})
DistilledInput = input_model(
    "DistilledInput", "The same with the distilled model, which is faster.", FIELDS, OF_DISTILLED
)
DistilledLoraInput = input_model(
    "DistilledLoraInput",
    "The distilled model with LoRAs of your choice.",
    {**FIELDS, LORAS: lora_list()},
    OF_DISTILLED,
)


def variants(family: str, undistilled: ModelFinder, distilled: ModelFinder) -> tuple[Application, ...]:
    """The application and its three variants with the models of a version of LTX. family: the beginning of their
    ids."""
    return tuple(
        Application(f"{family}/{name}", inputs, FILES, models, compose_request, fixed=fixed, settle=check_minutes)
        for name, inputs, models, fixed in (
            ("audio-to-video", Input, undistilled, {}),
            ("audio-to-video/lora", LoraInput, undistilled, {}),
            ("distilled/audio-to-video", DistilledInput, distilled, DISTILLED_RECIPE),
            ("distilled/audio-to-video/lora", DistilledLoraInput, distilled, DISTILLED_RECIPE),
        )
    )


AUDIO_TO_VIDEO, WITH_LORAS, DISTILLED, DISTILLED_WITH_LORAS = variants(FAMILY, find_models, find_distilled)
