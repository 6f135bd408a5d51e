"""Makes a video from a video: …/extend-video makes it longer, …/video-to-video makes another take of it, and
…/reference-video-to-video a new one that follows it by an IC-LoRA.

They have audio-to-video's inputs where these make sense, and the same variants: /lora, and distilled, of which the
hosted service has none for extend-video.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ...ltx.errors import InputError
from ...ltx.media.rates import frame_rate
from ...ltx.plan import choose_size
from ...ltx.request import MAX_FRAMES
from ...ltx.windows import WindowSize
from ..graph import compose_video
from ..graph.compose import compose
from ..graph.graph import Graph, Prompt
from ..graph.model_files import ModelNames, find_distilled, find_models, find_published_lora
from ..settings import Settings
from .application import Application
from .audio_to_video import DISTILLED_RECIPE, FAMILY, chosen_loras, split_loras
from .given_clip import PLACE, SOUND, VIDEO, as_long, check_clip, has_sound, opened, place_of, rated, sized
from .inputs import LORAS, CheckedRequest, input_model, lora_list
from .video_inputs import (
    BACKWARD,
    CANNY,
    DETAILER,
    EXTEND,
    KINDS,
    MATCHING,
    NONE,
    REFERENCE,
    UNION,
    VIDEO_TO_VIDEO,
    Task,
)

PUBLISHED = {UNION: "union-control", DETAILER: "detailer"}
"""Kinds of IC-LoRAs → keys of MODELS."""
HALF_SIZE = re.compile(r"ref0\.5")
"""In the names of published IC-LoRAs whose reference has half the size of the video."""


def settle(checked: CheckedRequest, paths: Mapping[str, Path], settings: Settings) -> CheckedRequest:
    """The `settle` of video-to-video: what only the video tells. Raises InputError, about the input."""
    clip = opened(paths)
    request = as_long(checked, sized(rated(checked, clip), clip), clip)
    sound = has_sound(paths)
    if not sound:  # there is nothing to be held to: the sound is made from noise alone, or there is none
        request = replace(request, audio_strength=0.0 if checked.own["generate_audio"] else 1.0)
    return replace(checked, request=request, own={**checked.own, SOUND: sound})


def settle_reference(checked: CheckedRequest, paths: Mapping[str, Path], settings: Settings) -> CheckedRequest:
    """The `settle` of reference-video-to-video: the sides fit the smaller size of the reference, too."""
    settled = settle(checked, paths, settings)
    names = [key for key in (PUBLISHED.get(ic_kind(checked)),) if key]
    names += [path for path, _ in checked.loras]
    request = settled.request
    if "union-control" in names or any(map(HALF_SIZE.search, names)):
        width, height, _ = choose_size(request.video_size, request.use_multiscale, (), 2)
        request = replace(request, video_size=(width, height))
    return replace(settled, request=request)


def settle_extension(checked: CheckedRequest, paths: Mapping[str, Path], settings: Settings) -> CheckedRequest:
    """The `settle` of extend-video: how long the film is, and where the video lies in it. Raises InputError, about
    the input, if nothing is new or the film is too long."""
    clip, own = opened(paths), checked.own
    request = sized(rated(checked, clip), clip)
    rate = frame_rate(request.fps)
    place = place_of(clip.count(rate), request.num_frames, own["num_context_frames"], own["extend_direction"])
    if place.frames / rate > 60 * settings.max_minutes:
        raise InputError(
            f"{VIDEO}: with the new part it would last {float(place.frames / rate) / 60:.1f} minutes, and this server "
            f"makes films of up to {settings.max_minutes:g}; cut it into shorter parts."
        )
    request = replace(
        request,
        num_frames=place.frames,
        windows=WindowSize() if place.frames > MAX_FRAMES else None,
        preprocess_audio=not own["generate_audio"],  # it levels sound that is kept
        image_strength=request.end_image_strength,  # backward, the end image is the first one
    )
    return replace(checked, request=request, own={**own, PLACE: place, SOUND: has_sound(paths)})


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


def compose_reference(checked: CheckedRequest, models: ModelNames, files: Mapping[str, str], prefix: str) -> Prompt:
    """The `compose` of reference-video-to-video."""
    own, key = checked.own, PUBLISHED.get(ic_kind(checked))
    others, reading = split_loras(checked, models)
    if key is not None:
        reading = [(find_published_lora(key, models.loras), 1.0), *reading]
    graph = _composed(checked, models, files, prefix, others)
    clip = compose_video.load(graph, files["video_url"], its_sound="audio_url" not in files)
    if own["video_strength"] > 0:
        edges = own["preprocessor"] == CANNY
        compose_video.follow(graph, clip, own["video_strength"], edges=edges, loras=reading)
    return _finished(graph, checked)


def compose_extension(checked: CheckedRequest, models: ModelNames, files: Mapping[str, str], prefix: str) -> Prompt:
    """The `compose` of extend-video."""
    own = checked.own
    place = own.get(PLACE) or place_of(MAX_FRAMES, MAX_FRAMES, 1, own["extend_direction"])  # not settled: any will do
    if own["extend_direction"] == BACKWARD and "end_image_url" in files:
        files = {**files, "image_url": files["end_image_url"]}
        del files["end_image_url"]
    graph = _composed(checked, models, files, prefix, chosen_loras(checked, models))
    clip = compose_video.load(graph, files["video_url"], its_sound=True)
    compose_video.extend(
        graph, clip, place, own["video_strength"], frame_rate(checked.request.fps), sounds=own["generate_audio"]
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
    """The graph; its file has no sound if there was none and none is made."""
    if not checked.own.get(SOUND, True) and not checked.own["generate_audio"]:
        compose_video.silence(graph)
    return graph.prompt


def _variants(
    task: Task, settle: Callable[..., CheckedRequest], compose: Callable[..., Prompt]
) -> Iterator[Application]:
    files = {name: kind for name, kind in KINDS.items() if name in task.fields}
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
                files,
                find_distilled if distilled else find_models,
                compose,
                fixed=DISTILLED_RECIPE if distilled else {},
                translate=task.translate,
                check_file=check_clip,
                settle=settle,
            )


FROM_VIDEO = (
    *_variants(EXTEND, settle_extension, compose_extension),
    *_variants(VIDEO_TO_VIDEO, settle, compose_take),
    *_variants(REFERENCE, settle_reference, compose_reference),
)
