"""fal-ai/ltx-2.3-22b/audio-to-video: makes a video from sound and a prompt, with an optional first and last image."""

from __future__ import annotations

from collections.abc import Mapping

from ...ltx.request import Request
from ..graph.compose import compose
from ..graph.graph import Prompt
from ..graph.model_files import ModelNames, find_models
from .application import Application
from .inputs import input_model, optional_file, required_file

Input = input_model(
    "Input",
    "Generate a video from audio and a prompt, with images if any.",
    {
        "audio_url": required_file("The sound: a URL, a data URI or an uploaded file's URL."),
        "image_url": optional_file("The first frame."),
        "end_image_url": optional_file("The last frame."),
    },
)


def _compose(request: Request, models: ModelNames, files: Mapping[str, str], prefix: str) -> Prompt:
    return compose(
        request,
        models,
        audio=files["audio_url"],
        image=files.get("image_url"),
        end_image=files.get("end_image_url"),
        prefix=prefix,
    )


AUDIO_TO_VIDEO = Application(
    id="fal-ai/ltx-2.3-22b/audio-to-video",
    inputs=Input,
    files={"audio_url": "audio", "image_url": "image", "end_image_url": "image"},
    find_models=find_models,
    compose=_compose,
)
