"""Workflows that take a clip or a sheet: what is loaded, what of a clip is made anew, and what is kept of it."""

from __future__ import annotations

from .parts import DUBIT, GREEN, ID_LORA, INGREDIENTS, UNION, Node, Stage, Widget, joined, note
from .variants import CAST, DUB, REDUB, REFERENCE, RETAKE, VOICE, Variant

START, END = 1.0, 2.5
"""Seconds of the shipped clip that a retake makes anew."""
SOFT = 16
"""Pixels over which a redub's mask rises, because it is painted by hand."""
SHEET_STRENGTH = 1.4
"""Of the IC-LoRA for sheets, by its makers' page; their workflows have 1."""
SHEET_SIZE = {"video_size": "custom", "width": 1536, "height": 896}
"""Twice the size of its training, because the first stage has half of it."""
IDENTITY = 3.0
"""How far a voice is led to its example, by the LoRA's makers, whose other settings a workflow for voices has, too."""
IC_LORAS = {REFERENCE: UNION, DUB: DUBIT, CAST: INGREDIENTS, VOICE: ID_LORA}
"""By the variant's name."""
ABOUT = {
    RETAKE: ("Retake of a clip", "Makes a part of a clip anew and keeps the rest."),
    REDUB: ("New voice for a clip", "Moves the mouth of a clip to a new voice and keeps the rest."),
    REFERENCE: ("Video that follows a clip", "Makes a video that has the outlines and movements of a clip."),
    DUB: ("Dub a clip", "Gives a clip other words: the mouth follows a new voice, and the rest follows the clip."),
    CAST: ("Your people in a new scene", "Makes a video with the persons, things and places of a picture."),
    VOICE: (
        "Your words in a voice",
        "Makes a video in which a person says the prompt's words in a voice of yours.",
    ),
}
"""The one node's title and description."""
SETTINGS = {
    RETAKE: {"made anew": "retake.renew", "start": "retake.start", "end": "retake.end",
             "held to the clip": "retake.strength"},
    REDUB: {"soft edge": "retake.soften_pixels", "held to the clip": "retake.strength"},
    REFERENCE: {"follow the clip": "reference.strength", "IC-LoRA strength": "ic.strength"},
    DUB: {"IC-LoRA strength": "ic.strength"},
    CAST: {"follow the sheet": "reference.strength"},
}  # fmt: skip
"""What the one node shows of the nodes for clips and sheets: label → "key.widget"."""
LABELS = tuple(dict.fromkeys(label for labels in SETTINGS.values() for label in labels))
HINTS = {
    RETAKE: "*renew* chooses what is made anew: the picture, the sound, or both.\n\n*strength* above 0 holds the new "
    "part to the clip.",
    REDUB: "The picture is made anew where the mask is white, and nowhere else. Any node's MASK can be connected: one "
    "for all frames, or one for each.\n\n*soften_pixels* makes its edge soft. *strength* above 0 holds the new part to "
    "the clip.",
    REFERENCE: "*Edges* draws the clip's outlines. If your clip shows poses, depth or edges already, bypass *Edges* "
    "(*Ctrl+B*).\n\n*strength* says how clean the model sees the clip.",
    DUB: "Both stages see the clip (*Reference*). The first one hears its sound as an example (*Reference Sound*), and "
    "the second one hears the new sound.\n\nWith *strength* 1 of *Audio Conditioning* your voice stays, which is an "
    "experiment. With 0 the model speaks the prompt's words.",
    CAST: "Give each person a panel with the face and one with the whole body, and each thing and place one of its "
    "own, on black, without text. What has a large panel comes out like it.\n\nThe IC-LoRA was trained with 768×448 in "
    "the first stage, at 121 frames and 24 a second.",
}
LENGTH = {"frames": "clip.frames", "fps": "clip.fps"}


def video() -> Node:
    """As high as the frontend makes it once its first picture is there."""
    return Node("video", "LoadVideo", "Load Video", {"file": "clip.mp4"}, {}, 300, 320)


def clip() -> Node:
    return Node("clip", "LTXA2VClip", "Clip", {}, {"video": "video.video"}, 300)


def sheet() -> Node:
    return Node("sheet", "LTXA2VLoadImage", "Reference sheet", {"image": "example.png"}, {}, 300, 300,
                says={"image": "reference sheet"}, place=1)  # fmt: skip


def sheet_clip() -> Node:
    """What makes a reference of a picture."""
    return Node("clip", "LTXA2VClip", "Clip", {}, {"images": "sheet.image"}, 320)


def keep(stage: str, latent: str) -> Node:
    """Puts the clip into a stage. latent: what the stage's sampler would begin with."""
    links = {"video_vae": "model.video_vae", "retake": "retake.retake", "latent": latent}
    return Node(f"keep {stage}", "LTXA2VKeepClip", f"Keep Clip, {stage} stage", {}, links, 260)


def mask() -> Node:
    """ComfyUI's own node, whose mask editor paints on the picture; as high as the frontend makes it."""
    return Node("mask", "LoadImage", "Mask", {"image": "mouth.png"}, {}, 300, 314)


def retake(v: Variant) -> Node:
    links = {"clip": "clip.clip", **LENGTH}
    links |= {"mask": "mask.mask"} if v.clip == REDUB else {"audio": "clip.audio"}
    values = {"soften_pixels": SOFT} if v.clip == REDUB else {"start": START, "end": END}
    return Node("retake", "LTXA2VRetake", "Retake", values, links, 320)


def ic_lora(v: Variant) -> Node:
    file, strength = IC_LORAS[v.name], {"strength": SHEET_STRENGTH} if v.sheet else {}
    values, before = {"lora": file.name, **strength}, "lora.first stage model" if v.voice else "model.model"
    title = "ID-LoRA" if v.voice else "IC-LoRA"
    return Node("ic", "LTXA2VLora", title, values, {"model": before}, 400, 0, (file,))


def model(v: Variant, *, first: bool) -> str:
    """The distilled model of a stage. An IC-LoRA acts where it was trained to: DubIt in both stages, others in the
    first."""
    return "ic.model" if v.ic_lora and (first or v.clip == DUB) else "model.model"


def refer(key: str, title: str, seen: str, latent: str, says: str = "references") -> Node:
    """What a stage looks at. seen: the output with the clip. says: what a subgraph calls it."""
    links = {"video_vae": "model.video_vae", "clip": seen, "latent": latent, "audio": "sound.audio",
             "model": "ic.model"}  # fmt: skip
    return Node(key, "LTXA2VReference", title, {}, links, 320, says={"references": says})


def hear(stage: str, links: dict[str, str]) -> Node:
    """Lets a stage hear an example."""
    title = f"Reference Sound, {stage} stage"
    says = {"audio": f"audio, {stage} stage"}
    return Node(f"hear {stage}", "LTXA2VReferenceSound", title, {}, links, 320, says=says)


def conditions(v: Variant) -> Stage:
    """What is kept of the clip or seen of it, the size and the sound."""
    size = Node("size", "LTXA2VVideoSize", "Video Size", {"video_size": "auto"},
                {"frames": LENGTH["frames"], "first_image": "clip.first image",
                 **({"model": "ic.model"} if v.ic_lora else {})}, 320)  # fmt: skip
    track = "audio.audio" if v.takes_sound else "retake.audio"
    levelling = "Preprocess New Voice" if v.clip == DUB else "Preprocess Audio"  # of two, their reports name each
    preprocess = Node("preprocess", "LTXA2VPreprocessAudio", levelling, {}, {"audio": track, **LENGTH}, 320)
    links = {"audio_vae": "model.audio_vae", "audio": "preprocess.audio", **LENGTH}
    if v.clip == RETAKE:
        links["retake"] = "retake.retake"
    sound = Node("sound", "LTXA2VAudioConditioning", "Audio Conditioning", {}, links, 320)
    hint = note(v.clip, HINTS[v.clip], 320)
    why = "The video has the clip's length and rate. *auto* takes its size, too."
    if v.clip == REFERENCE:
        why += "\n\nThe IC-LoRA sees the clip at half the size, so width and height are rounded up to multiples of 128."
    if v.clip == DUB:
        why += "\n\nIf the voice is longer than the clip, its rest is left out. If it is shorter, silence follows it."
    length = note("size and length", why, 320)
    reports = ["ic.report" if v.ic_lora else "lora.report", "clip.report", "size.report", "preprocess.report"]
    reports += ["retake.report"] if v.retakes else ["own.report"] if v.clip == DUB else []
    report = joined("sound report", *reports)
    shown = {label: target for label, target in SETTINGS[v.clip].items() if not target.startswith("ic.")}
    shown |= {"size": "size.video_size", "width": "size.width", "height": "size.height"}
    if v.retakes:
        columns = ((retake(v), hint), (preprocess, size, length), (sound, keep("first", "size.first stage"), report))
        about = "Says what of the clip is made anew, sets the size, and encodes the clip and the sound."
    elif v.clip == REFERENCE:
        edges = Node("edges", "LTXA2VEdges", "Edges", {}, {"clip": "clip.clip"}, 320)
        seen = refer("reference", "Reference", "edges.clip", "size.first stage")
        columns = ((preprocess, size, length), (sound, edges, hint), (seen, report))
        about = "Draws the clip's outlines, sets the size, and encodes the clip and the sound."
    else:
        links = {"audio": "clip.audio", **LENGTH}
        own = Node("own", "LTXA2VPreprocessAudio", "Preprocess Clip's Sound", {}, links, 320)
        heard = hear("first", {"audio": "sound.audio", "sound": "own.audio", "audio_vae": "model.audio_vae"})
        seen, again = (
            refer(key, f"Reference, {stage} stage", "clip.clip", f"size.{latent}", f"references, {stage} stage")
            for key, stage, latent in (
                ("reference", "first", "first stage"),
                ("reference second", "second", "full size"),
            )
        )
        columns = ((preprocess, own, size), (sound, hint, length), (heard, seen, again, report))
        shown |= {"audio strength": "sound.strength"}  # and no other strength: ComfyUI 0.3.75 shows one of a name
        about = "Sets the size, and encodes the clip, its sound and the new voice."
    return Stage("conditions", "Clip, size and sound", columns,
                 tuple(Widget.of(label, target) for label, target in shown.items()), {"report": "sound report.report"},
                 GREEN, 290, 0, about, 130)  # fmt: skip
