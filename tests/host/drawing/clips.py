"""Workflows that take a clip: what is loaded, what of the clip is made anew, and what is kept of it."""

from __future__ import annotations

from .parts import GREEN, Node, Stage, Widget, joined, note
from .variants import RETAKE, Variant

START, END = 1.0, 2.5
"""Seconds of the shipped clip that a retake makes anew."""
ABOUT = {RETAKE: ("Retake of a clip", "Makes a part of a clip anew and keeps the rest.")}
"""The one node's title and description."""
LABELS = ("made anew", "start", "end", "held to the clip")
"""What the one node says beside the settings of Retake."""
LENGTH = {"frames": "clip.frames", "fps": "clip.fps"}


def video() -> Node:
    """As high as the frontend makes it once its first picture is there."""
    return Node("video", "LoadVideo", "Load Video", {"file": "clip.mp4"}, {}, 300, 320)


def clip() -> Node:
    return Node("clip", "LTXA2VClip", "Clip", {}, {"video": "video.video"}, 300)


def keep(stage: str, latent: str) -> Node:
    """Puts the clip into a stage. latent: what the stage's sampler would begin with."""
    links = {"video_vae": "model.video_vae", "retake": "retake.retake", "latent": latent}
    return Node(f"keep {stage}", "LTXA2VKeepClip", f"Keep Clip, {stage} stage", {}, links, 260)


def retake(v: Variant) -> Node:
    links = {"clip": "clip.clip", **LENGTH, "audio": "clip.audio"}
    return Node("retake", "LTXA2VRetake", "Retake", {"start": START, "end": END}, links, 320)


def conditions(v: Variant) -> Stage:
    """What is kept of the clip, the size and the sound."""
    size = Node("size", "LTXA2VVideoSize", "Video Size", {"video_size": "auto"},
                {"frames": LENGTH["frames"], "first_image": "clip.first image"}, 320)  # fmt: skip
    preprocess = Node("preprocess", "LTXA2VPreprocessAudio", "Preprocess Audio", {},
                      {"audio": "retake.audio", **LENGTH}, 320)  # fmt: skip
    sound = Node("sound", "LTXA2VAudioConditioning", "Audio Conditioning", {},
                 {"audio_vae": "model.audio_vae", "audio": "preprocess.audio", **LENGTH, "retake": "retake.retake"},
                 320)  # fmt: skip
    hint = note("retake", "*renew* chooses what is made anew: the picture, the sound, or both. For the sound, switch "
                "*enabled* of Preprocess Audio off: then the new part is as loud as the rest.\n\n*strength* above 0 "
                "holds the new part to the clip.", 320)  # fmt: skip
    why = note("size and length", "The video has the clip's length and rate. *auto* takes its size, too.", 320)
    report = joined("sound report", "lora.report", "clip.report", "size.report", "preprocess.report", "retake.report")
    widgets = [Widget.of("made anew", "retake.renew"), Widget.of("start", "retake.start"),
               Widget.of("end", "retake.end"), Widget.of("held to the clip", "retake.strength"),
               Widget.of("size", "size.video_size"), Widget.of("width", "size.width"),
               Widget.of("height", "size.height")]  # fmt: skip
    columns = ((retake(v), hint), (preprocess, size, why), (sound, keep("first", "size.first stage"), report))
    about = "Says what of the clip is made anew, sets the size, and encodes the clip and its sound."
    return Stage("conditions", "Clip, size and sound", columns, tuple(widgets), {"report": "sound report.report"},
                 GREEN, 290, 0, about, 130)  # fmt: skip
