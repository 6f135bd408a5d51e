"""Turns a node's message into one about the request that the graph was made from."""

from __future__ import annotations

from pathlib import PurePosixPath

from .compose import (
    AUDIO,
    END_IMAGE,
    FILM_PART,
    FRAME_COUNT,
    IMAGE,
    LAST_IMAGE,
    LOAD_IMAGE,
    OTHER_LORA,
    TIMELINE,
    WINDOW,
)
from .compose_video import (
    CLIP,
    EDGES,
    IC_LORA,
    KEEP,
    LOAD_AUDIO,
    LOAD_VIDEO,
    REFERENCE,
    REFERENCE_PICTURE,
    RETAKE,
)
from .graph import Prompt


def field_of(graph: Prompt, node_id: str) -> str | None:
    """The request's field that a node's mistake is about; None if there is no single one."""
    node = graph.get(node_id, {})
    title = node.get("_meta", {}).get("title", "")
    if title == REFERENCE_PICTURE:
        return "video_url"
    if node.get("class_type") in (LOAD_IMAGE, IMAGE, END_IMAGE):
        return "end_image_url" if title.startswith(LAST_IMAGE) or _is_longer(graph) else "image_url"
    if title == IC_LORA:
        return "ic_lora_type"
    has_sound_file = any(each["class_type"] == LOAD_AUDIO for each in graph.values())
    return {
        **dict.fromkeys((LOAD_VIDEO, CLIP, RETAKE, KEEP, REFERENCE, EDGES), "video_url"),
        **dict.fromkeys(
            (LOAD_AUDIO, FRAME_COUNT, "LTXA2VPreprocessAudio", AUDIO), "audio_url" if has_sound_file else "video_url"
        ),
        WINDOW: "windows",
        FILM_PART: "windows",
        TIMELINE: "timeline",
        OTHER_LORA: "loras",
        "LTXA2VCameraLora": "camera_lora",
        "LTXA2VVideoSize": "video_size",
    }.get(node.get("class_type", ""))


def field_told(graph: Prompt, node_id: str, message: str) -> str | None:
    """The request's field that this sentence of a node is about; None if it is about none or no single one."""
    if message.startswith("made:"):  # a part of a film, which this server keeps
        return None
    has_lora = any(node["class_type"] == OTHER_LORA for node in graph.values())
    if has_lora and message.startswith("model:"):  # a sampler has found an IC-LoRA, and no video for it
        return "loras"
    return field_of(graph, node_id)


def _is_longer(graph: Prompt) -> bool:
    """Whether the graph makes a video longer. Its one image is the end image: before the video, it is the first
    frame."""
    return any("extend" in node["inputs"] for node in graph.values() if node["class_type"] == RETAKE)


def in_request_words(graph: Prompt, message: str) -> str:
    """A node's sentence in which the field's name replaces the hashed name of its media file."""
    for node_id, node in graph.items():
        for name in ("audio", "image", "file"):
            value, field = node["inputs"].get(name), field_of(graph, node_id)
            if field and isinstance(value, str):
                for kept in (value, PurePosixPath(value).name):
                    message = message.replace(kept, field)
    return message
