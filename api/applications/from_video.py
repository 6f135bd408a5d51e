"""Makes a video from a video: …/extend-video makes it longer, …/video-to-video makes another take of it, and
…/reference-video-to-video a new one that follows it by an IC-LoRA.

They have audio-to-video's inputs where these make sense, and the same variants: /lora, and distilled, of which the
hosted service has none for extend-video. The last one is there for LTX-2.5, too, under our name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...ltx.errors import InputError
from ...ltx.extension import BACKWARD, stretch_beside
from ...ltx.media.rates import frame_rate
from ...ltx.models import V23, V25
from ..graph import compose_video
from ..graph.compose import compose, tell
from ..graph.graph import Graph, Prompt
from ..graph.model_files import (
    ModelFinder,
    ModelNames,
    find_distilled,
    find_distilled_25,
    find_models,
    find_models_25,
    find_published_lora,
)
from ..settings import Settings
from .application import Application
from .audio_to_video import DISTILLED_RECIPE, FAMILY, chosen_loras, split_loras
from .given_clip import (
    PICTURE,
    SAID,
    SOUND,
    VIDEO,
    as_long,
    as_long_as_the_sound,
    check_clip,
    cut_sound,
    has_sound,
    is_picture,
    opened,
    rated,
    sized,
)
from .inputs import LORAS, CheckedRequest, input_model, lora_list
from .ltx_2_5 import OWN
from .video_inputs import (
    CANNY,
    DETAILER,
    EXTEND,
    INGREDIENTS,
    MATCHING,
    NONE,
    REFERENCE,
    UNION,
    VIDEO_TO_VIDEO,
    Task,
)

PUBLISHED = {
    V23.version: {UNION: "union-control", DETAILER: "detailer", INGREDIENTS: "ingredients"},
    V25.version: {UNION: "union-control", DETAILER: "detailer", INGREDIENTS: "ingredients-2.5"},
}
"""For each version of LTX, kinds of IC-LoRAs → keys of MODELS. Some are published for an earlier version alone."""


def settle(checked: CheckedRequest, paths: Mapping[str, Path], settings: Settings) -> CheckedRequest:
    """The `settle` of the applications that make another video: what only the given one tells. Raises InputError, about
    the input."""
    clip, picture = opened(paths), is_picture(paths)
    if picture:
        request, said = sized(as_long_as_the_sound(checked, paths), clip), ()
    else:
        request, said = as_long(checked, sized(rated(checked, clip), clip), clip)
    said += cut_sound(checked, request, paths)
    sound = has_sound(paths)
    if not sound:  # there is nothing to be held to: the sound is made from noise alone, or there is none
        request = replace(request, audio_strength=0.0 if checked.own["generate_audio"] else 1.0)
    return replace(checked, request=request, own={**checked.own, SOUND: sound, SAID: said, PICTURE: picture})


def settle_extension(checked: CheckedRequest, paths: Mapping[str, Path], settings: Settings) -> CheckedRequest:
    """The `settle` of extend-video: its rate and size. Raises InputError, about the input, if nothing is new or the
    film is too long."""
    clip, own = opened(paths), checked.own
    request = sized(rated(checked, clip), clip)
    rate = frame_rate(request.fps)
    film = stretch_beside(clip.count(rate), request.num_frames, context_of(checked), own["extend_direction"]).film
    if film / rate > 60 * settings.max_minutes:
        raise InputError(
            f"{VIDEO}: with the new part it would last {float(film / rate) / 60:.1f} minutes, and this server makes "
            f"films of up to {settings.max_minutes:g}; cut it into shorter parts."
        )
    request = replace(
        request,
        preprocess_audio=not own["generate_audio"],  # it levels sound that is kept
        image_strength=request.end_image_strength,  # backward, the end image is the first one
    )
    return replace(checked, request=request, own={**own, SOUND: has_sound(paths)})


def context_of(checked: CheckedRequest) -> int:
    """How many frames the new part is made to fit: none if they are not held at all."""
    return checked.own["num_context_frames"] if checked.own["video_strength"] else 0


def ic_kind(checked: CheckedRequest) -> str:
    """The kind of the IC-LoRA that the request asks for."""
    kind = checked.own["ic_lora_type"]
    if kind == MATCHING:
        return UNION if checked.own["preprocessor"] == CANNY else NONE
    return kind


def compose_take(checked: CheckedRequest, models: ModelNames, files: Mapping[str, str], prefix: str) -> Prompt:
    """The `compose` of video-to-video."""
    graph = _composed(checked, models, files, prefix, chosen_loras(checked, models))
    clip = compose_video.load(graph, files["video_url"], its_sound=True)
    compose_video.make_anew(graph, clip, checked.own["video_strength"])
    return _finished(graph, checked)


def compose_reference(
    checked: CheckedRequest, models: ModelNames, files: Mapping[str, str], prefix: str, *, version: str = V23.version
) -> Prompt:
    """The `compose` of reference-video-to-video. version: of the models."""
    own = checked.own
    others, reading = split_loras(checked, models)
    graph = _composed(checked, models, files, prefix, others)
    its_sound = "audio_url" not in files
    clip = compose_video.load(graph, files["video_url"], its_sound=its_sound, picture=own.get(PICTURE, False))
    if own["video_strength"] > 0:
        edges, key = own["preprocessor"] == CANNY, PUBLISHED[version].get(ic_kind(checked))
        published = find_published_lora(key, models.loras) if key else None
        compose_video.follow(graph, clip, own["video_strength"], edges=edges, published=published, loras=reading)
    return _finished(graph, checked)


def compose_extension(checked: CheckedRequest, models: ModelNames, files: Mapping[str, str], prefix: str) -> Prompt:
    """The `compose` of extend-video."""
    own = checked.own
    if own["extend_direction"] == BACKWARD and "end_image_url" in files:
        files = {**files, "image_url": files["end_image_url"]}
        del files["end_image_url"]
    graph = _composed(checked, models, files, prefix, chosen_loras(checked, models))
    clip = compose_video.load(graph, files["video_url"], its_sound=True)
    firmly = own["video_strength"] if 0 < own["video_strength"] < 1 else 0.0  # held wholly, if there is a context
    compose_video.extend(
        graph, clip, own["extend_direction"], context_of(checked), firmly, sounds=own["generate_audio"]
    )
    return _finished(graph, checked)


def _composed(
    checked: CheckedRequest,
    models: ModelNames,
    files: Mapping[str, str],
    prefix: str,
    loras: list[tuple[str, float]],
) -> Graph:
    """The graph of the request without its video, whose sound stands for a sound file until it is loaded."""
    return Graph(
        compose(
            checked.request,
            models,
            audio=files.get("audio_url", files["video_url"]),
            image=files.get("image_url"),
            end_image=files.get("end_image_url"),
            prefix=prefix,
            loras=loras,
        )
    )


def _finished(graph: Graph, checked: CheckedRequest) -> Prompt:
    """The graph, whose report has what was said of the video; its file has no sound if there was none and none is
    made."""
    for sentence in checked.own.get(SAID, ()):
        tell(graph, sentence)
    if not checked.own.get(SOUND, True) and not checked.own["generate_audio"]:
        compose_video.silence(graph)
    return graph.prompt


def _variants(
    task: Task, settle: Callable[..., CheckedRequest], compose: Callable[..., Prompt]
) -> Iterator[Application]:
    for distilled in (False, True) if task is not EXTEND else (False,):
        for loras in (False, True):
            whole = ("distilled/" if distilled else "") + task.name + ("/lora" if loras else "")
            yield Application(
                f"{FAMILY}/{whole}",
                input_model(
                    "".join(map(str.title, re.findall(r"\w+", whole))) + "Input",
                    task.description,
                    {**task.fields, **({LORAS: lora_list()} if loras else {})},
                    task.parameters(distilled=distilled),
                    task.defaults,
                ),
                task.files,
                find_distilled if distilled else find_models,
                compose,
                fixed=DISTILLED_RECIPE if distilled else {},
                translate=task.translate,
                check_file=check_clip,
                settle=settle,
            )


def _of_25(application: Application) -> Application:
    """An application of LTX-2.3 with the models of LTX-2.5, under our name."""
    finders: dict[ModelFinder, ModelFinder] = {find_models: find_models_25, find_distilled: find_distilled_25}
    return replace(
        application,
        id=application.id.replace(FAMILY, OWN),
        find_models=finders[application.find_models],
        compose=partial(compose_reference, version=V25.version),
    )


REFERENCES = tuple(_variants(REFERENCE, settle, compose_reference))
FROM_VIDEO = (
    *_variants(EXTEND, settle_extension, compose_extension),
    *_variants(VIDEO_TO_VIDEO, settle, compose_take),
    *REFERENCES,
)
REFERENCES_25 = tuple(map(_of_25, REFERENCES))
