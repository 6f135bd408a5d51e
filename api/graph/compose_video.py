"""Adds a given video to a graph that compose.py made: as the clip that is made anew, or as the one that it follows."""

from __future__ import annotations

from typing import Any

from ...ltx.media.edges import STRONG, WEAK
from .compose import ACCELERATION, FIRST_STAGE, FRAME_COUNT, LOAD_IMAGE, MODEL, OTHER_LORA, SAMPLER, SAVE, tell
from .graph import Graph

LOAD_VIDEO, CLIP, RETAKE, KEEP, REFERENCE, EDGES = (
    *("LoadVideo", "LTXA2VClip", "LTXA2VRetake", "LTXA2VKeepClip", "LTXA2VReference", "LTXA2VEdges"),
)
VIDEO_SIZE = "LTXA2VVideoSize"
LOAD_AUDIO, CONDITION, DECODE_AUDIO = "LTXA2VLoadAudio", "LTXA2VAudioConditioning", "LTXA2VDecodeAudio"
IC_LORA, OWN_IC_LORA = "IC-LoRA", "IC-LoRA of the request"
"""The titles of LoRAs that read the given video: of the published one, and of those that the client names. They act in
the first stage alone, as in the official pipeline."""
REFERENCE_PICTURE = "Reference picture"
"""The title of the node that loads a picture in place of the given video."""

Link = list[Any]


def load(graph: Graph, video: str, *, its_sound: bool, picture: bool = False) -> Link:
    """Adds the clip → its output. video: its name in the input folder; its_sound: whether its sound takes the place of
    the sound file that the graph loads; picture: whether it is a still picture, whose sound is silence."""
    if picture:
        given = {"images": [graph.add(LOAD_IMAGE, REFERENCE_PICTURE, image=video), 0]}
    else:
        given = {"video": [graph.add(LOAD_VIDEO, "Load Video", file=video), 0]}
    clip = graph.add(CLIP, "Clip", fps=graph.inputs(FRAME_COUNT)["frame_rate"], **given)
    if its_sound:
        sound = graph.find(LOAD_AUDIO)
        for node, name in graph.linked_to([sound, 0]):
            node["inputs"][name] = [clip, 1]
        graph.remove(sound)
    tell(graph, [clip, 5])
    return [clip, 0]


def make_anew(graph: Graph, clip: Link, strength: float) -> None:
    """Makes the whole picture of the clip anew, held to it by that strength; at 0 it is no more than a length."""
    if strength > 0:
        keep(graph, retake(graph, clip, "picture", strength=strength))


def extend(graph: Graph, clip: Link, direction: str, context: int, strength: float, *, sounds: bool) -> None:
    """Joins a new part to an end of the clip. context: how many of its frames the model sees; strength: how firmly they
    are held, 0 for wholly; sounds: whether the new part gets sound."""
    beside = {"extend": direction, "context": context, "strength": strength if context else 0.0}
    made = retake(graph, clip, "both" if sounds else "picture", **beside)
    graph.prompt[made[0]]["inputs"]["audio"] = [clip[0], 1]
    for node, name in graph.linked_to([clip[0], 1]):
        if node["class_type"] not in (FRAME_COUNT, RETAKE):  # the frames are counted before the sound is placed
            node["inputs"][name] = [made[0], 1]
    graph.inputs(CONDITION)["retake"] = made
    if sounds:
        graph.inputs(DECODE_AUDIO)["retake"] = made
    keep(graph, made)


def retake(graph: Graph, clip: Link, renew: str, **values: float | str) -> Link:
    """Adds the node that says what is made anew of the clip → its output. values: of its inputs that are not 0."""
    frames = graph.find(FRAME_COUNT)
    zero = dict.fromkeys(("start", "end", "strength", "soften", "begin"), 0.0)
    options = {**zero, "soften_pixels": 0, **values}
    key = graph.add(RETAKE, "Retake", clip=clip, frames=[frames, 0], fps=[frames, 1], renew=renew, **options)
    tell(graph, [key, 2])
    return [key, 0]


def keep(graph: Graph, made: Link) -> None:
    """Puts the clip of a retake into both stages, and its own pixels into the file."""
    vae = [graph.find(MODEL), 2]
    for key in graph.all(SAMPLER):
        inputs, title = graph.prompt[key]["inputs"], graph.title(key)
        kept = graph.add(KEEP, f"Keep Clip, {title.lower()}", video_vae=vae, retake=made, latent=inputs["latent"])
        inputs["latent"] = [kept, 0]
    graph.inputs(SAVE)["retake"] = made


def follow(
    graph: Graph, clip: Link, strength: float, *, edges: bool, published: str | None, loras: list[tuple[str, float]]
) -> None:
    """Makes the first stage look at the clip. edges: only at its edges. published: the published IC-LoRA, by its name
    in ComfyUI's list. loras: the client's, by theirs, and the strength of each."""
    if edges:
        clip = [graph.add(EDGES, "Edges", clip=clip, weak=WEAK, strong=STRONG), 0]
    steered = graph.inputs(ACCELERATION)
    reading = [(IC_LORA, published, 1.0)] if published else []
    for title, name, share in (*reading, *((OWN_IC_LORA, *lora) for lora in loras)):
        key = graph.add(OTHER_LORA, title, model=steered["first_model"], lora=name, strength=share)
        steered["first_model"] = [key, 0]
        tell(graph, [key, 1])
    graph.inputs(VIDEO_SIZE)["model"] = steered["first_model"]  # the size fits the smaller reference, too
    first = graph.inputs(SAMPLER, FIRST_STAGE)
    reference = graph.add(
        REFERENCE,
        "Reference",
        video_vae=[graph.find(MODEL), 2],
        clip=clip,
        latent=first["latent"],
        audio=[graph.find(CONDITION), 0],
        strength=strength,
        attention=1.0,
        downscale=0,
        stride=0,
        model=steered["first_model"],
    )
    first["references"] = [reference, 0]


def silence(graph: Graph) -> None:
    """Leaves the sound out of the file."""
    graph.inputs(SAVE).pop("audio", None)
