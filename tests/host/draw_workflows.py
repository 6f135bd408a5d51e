"""Draws the shipped workflows: `python tests/host/draw_workflows.py [NAME …]` writes all, or those named, anew.

Each is a list of groups of columns of nodes below, the endpoint's defaults but for what its purpose changes. ComfyUI's
real frontend makes the nodes, so that sizes, sockets and the order of widgets are its own; the layout follows from the
sizes, and links over more than one column run in lanes between the two rows. Written are workflows/NAME.json as the
frontend serialises it, workflows/api/NAME.json as it queues it, and workflows/NAME.jpg for the template browser; with
ltx_audio_to_video, too, the default one's pipeline as a subgraph.
Exit status: 0, 1 where the pack does not load, a node or input does not exist, or there is no browser.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import re
import sys
import tempfile
import types
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# the pack's name outside ComfyUI, as in tests/conftest.py
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules.setdefault("a2v", alias)

from a2v.ltx.request import NEGATIVE_PROMPT
from a2v.tests.host.browser import OWN_NODE, Frontend, Workflow, browser_path
from a2v.tests.host.comfy import HOST, Comfy, Prompt
from PIL import Image

WORKFLOWS = ROOT / "workflows"
ASSET = ROOT / "assets" / "workflow.png"
DEFAULT = "audio_to_video"
JPEG_QUALITY = 70
FRONTEND = "comfyui-frontend-package"
DRAWN_HERE = f"\n{FRONTEND}=={version(FRONTEND)}\n" in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
"""Whether this frontend is the one that draws the files, and gives them back to the letter."""
INPUTS = (ROOT / "assets" / "speech.opus", HOST / "input" / "example.png")  # what the workflows load

# published files (name, repository, models folder, size for the note)
DEV = ("ltx-2.3-22b-dev.safetensors", "Lightricks/LTX-2.3", "checkpoints", "46 GB")
DISTILLED = ("ltx-2.3-22b-distilled-1.1.safetensors", "Lightricks/LTX-2.3", "checkpoints", "46 GB")
LORA = ("ltx-2.3-22b-distilled-lora-384-1.1.safetensors", "Lightricks/LTX-2.3", "loras", "8 GB")
UPSCALER = ("ltx-2.3-spatial-upscaler-x2-1.1.safetensors", "Lightricks/LTX-2.3", "latent_upscale_models", "1 GB")
CAMERA = (
    "ltx-2-19b-lora-camera-control-dolly-in.safetensors",
    "Lightricks/LTX-2-19b-LoRA-Camera-Control-Dolly-In",
    "loras",
    "below 1 GB",
)
GEMMA = "gemma-3-12b-it-qat-q4_0-unquantized"
File = tuple[str, str, str, str]

BLUE, GREEN, YELLOW, VIOLET, ORANGE, GREY = "#3f789e", "#88AA88", "#b58b2a", "#a1309b", "#b06634", "#8888AA"
NOTE, POSITIVE, NEGATIVE = ("#432", "#653"), ("#232", "#353"), ("#322", "#533")

# all in the canvas's units
PAD, HEAD, FOOT = 24, 88, 24  # inside a group: left and right, above its first node's body, below its last
GUTTER, BETWEEN = 96, 44  # between columns, and more than that between groups
STACK = 64  # between the bodies of two nodes in a column: a title bar and a badge
REPORT = 52  # what a node grows by to show its report after a run
SAMPLER = 560  # with its preview and its report
LANE, MARGIN = 14, 40  # between lanes, and between these and a group
TURN, FAN = 18, 6  # from a node to the first corner beside it, and from there to the next link's


@dataclass(frozen=True)
class Node:
    """links: input → "key.output". height and width are minimums; a note's text is the value None."""

    key: str
    kind: str
    title: str | None = None
    values: dict[str | None, Any] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    width: int = 340
    height: int = 0
    models: tuple[File, ...] = ()
    color: tuple[str, str] | None = None


@dataclass(frozen=True)
class Group:
    title: str
    color: str
    row: int  # 0 above, 1 below, 2 right of both
    columns: list[list[Node]]


@dataclass(frozen=True)
class Variant:
    """What a workflow has beside the endpoint's defaults."""

    name: str
    prompt: str
    about: str  # the first note
    images: tuple[str, ...] = ()  # of "first", "end"
    distilled: bool = False
    camera: str | None = None
    audio_strength: float = 1.0


VARIANTS = (
    Variant(
        DEFAULT,
        "A woman in her thirties sits at a wooden table by a tall window and talks straight into the camera. Soft "
        "morning light falls on her face from the left, and the kitchen behind her is slightly out of focus. She "
        "speaks with warmth and moves her hands a little as she explains. Medium close-up, the camera holds still.",
        "**Upload your audio above, describe the picture in *Positive prompt*, press Run.** Any sound or video file "
        "will do; the finished video carries its sound untouched.",
    ),
    Variant(
        "image_and_audio",
        "The subject of the picture looks into the camera and sings the song with feeling, swaying gently with the "
        "beat. The background stays as it is, the camera holds still.",
        "**Upload the image that the video begins with and your audio, say what happens, press Run.** The finished "
        "video carries the sound untouched.",
        images=("first",),
    ),
    Variant(
        "first_and_last_image",
        "The subject of the picture talks to the camera, then turns slowly to the side and comes to rest, in one "
        "smooth, unbroken movement. The light stays the same, the camera holds still.",
        "**Upload the images that the video begins and ends with and your audio, say how the one becomes the other, "
        "press Run.** The finished video carries the sound untouched.",
        images=("first", "end"),
    ),
    Variant(
        "distilled_fast",
        "A young man with headphones around his neck stands in a small recording studio and speaks into a large "
        "microphone with energy, nodding at his own words. Warm light from a desk lamp, acoustic foam behind him. "
        "Close-up, the camera holds still.",
        "**Upload your audio above, describe the picture in *Positive prompt*, press Run.** The distilled model takes "
        "8 steps of one pass each, where the other workflows take 15 of four.",
        distilled=True,
    ),
    Variant(
        "camera_move",
        "A jazz singer in a dark green dress stands on the small stage of a crowded club and sings into an old "
        "microphone, eyes half closed. Warm spotlights, smoke in the air, the band is a blur behind her. The camera "
        "moves slowly towards her face.",
        "**Upload your audio above, describe the picture in *Positive prompt*, choose the camera's movement, press "
        "Run.** The finished video carries the sound untouched.",
        camera="dolly_in",
    ),
    Variant(
        "audio_regeneration",
        "An old fisherman in a yellow raincoat sits on the edge of a wooden pier and tells a story to the camera with "
        "a rough, friendly voice. Waves slap against the posts, gulls cry in the distance. Medium shot, the camera "
        "holds still.",
        "**Upload your audio above, describe picture and sound in *Positive prompt*, press Run.** The model makes the "
        "sound anew, half of the way from yours, in step with the picture.",
        audio_strength=0.5,
    ),
)


def note(key: str, text: str, width: int = 340, height: int = 0) -> Node:
    """A note; its height follows from its text where none is given."""
    lines = sum(-(-len(line) * 6 // (width - 40)) if line else 0.5 for line in text.split("\n"))
    height = height or round(52 + 15 * lines)
    return Node(f"note: {key}", "MarkdownNote", f"Note: {key}", {None: text}, {}, width, height, color=NOTE)


def url(file: File) -> str:
    return f"https://huggingface.co/{file[1]}/resolve/main/{file[0]}"


def files_note(files: tuple[File, ...]) -> str:
    parts = ["### Files this graph loads\nPut them under `ComfyUI/models/`, then press **R**."]
    parts += [f"**`{file[2]}/`** · {file[3]}\n[{file[0]}]({url(file)})" for file in files]
    gemma = f"google/{GEMMA}"
    parts += [
        f"**`text_encoders/{GEMMA}/`** · 24 GB\nall files of [{gemma}](https://huggingface.co/{gemma}) (accept "
        "Google's terms there first)"
    ]
    return "\n\n".join(parts)


def groups(v: Variant) -> list[Group]:
    """The graph of a variant. A group stands after those that its links come from."""
    checkpoint = DISTILLED if v.distilled else DEV
    files = (checkpoint, *(() if v.distilled else (LORA,)), UPSCALER, *((CAMERA,) if v.camera else ()))
    loader = Node("model", "LTXA2VModelLoader", None, {"checkpoint": checkpoint[0]}, {}, 400, 0, (checkpoint,))
    upscaler = Node("upscaler", "LTXA2VUpscalerLoader", None, {"file": UPSCALER[0]}, {}, 400, 0, (UPSCALER,))
    gemma = Node("gemma", "LTXA2VTextEncoderLoader", None, {"folder": GEMMA}, {"connectors": "model.connectors"}, 400)
    passes = ("model.model", "model.model") if v.distilled else ("lora.first stage model", "lora.second stage model")
    lora = Node(
        "lora",
        "LTXA2VDistilledLora",
        None,
        {"lora": LORA[0]},
        {"model": "camera.model" if v.camera else "model.model"},
        400,
        0,
        (LORA,),
    )
    camera = Node("camera", "LTXA2VCameraLora", None, {"camera_lora": v.camera}, {"model": "model.model"}, 400, 0,
                  (CAMERA,))  # fmt: skip
    columns = [[note("model files", files_note(files), 400, 120 + 60 * len(files))], [loader, upscaler]]
    if v.distilled:
        columns += [[gemma, note("distilled model", "This checkpoint has the speed built in: it needs **no Distilled "
                                 "LoRA and no Guidance**. For a camera or style LoRA put an **LTX A2V LoRA** behind "
                                 "Load Model, before both samplers.", 400)]]  # fmt: skip
    elif v.camera:
        columns += [[gemma, camera], [lora, note("camera", "**camera_lora** offers dolly_in, dolly_out, dolly_left, "
                    "dolly_right, jib_up, jib_down and static. Each has a file of its own in `models/loras`; a missing "
                    "one is named with its address.\n\n**strength** 1 is the whole movement: lower it where the lips "
                    "stop moving. Name the movement in the prompt too.", 400)]]  # fmt: skip
    else:
        columns += [[gemma, lora], [note("other LoRAs", "A camera or style LoRA: put **LTX A2V Camera LoRA** or **LTX "
                    "A2V LoRA** between Load Model and Distilled LoRA, and it acts in both stages.\n\nThe distilled "
                    "LoRA lets 15 steps do: without it take 30 or more.", 280)]]  # fmt: skip
    found = [Group("1 · Models", BLUE, 0, columns)]

    number = count(2)
    labels = {"first": "First image", "end": "End image"}
    if v.images:
        loaded = [
            [Node(f"{which} image", "LoadImage", labels[which], {"image": "example.png"}, {}, 300, 380)]
            for which in v.images
        ]
        found += [Group(f"{next(number)} · {'Images' if len(loaded) > 1 else 'Image'}", GREY, 1, loaded)]
    clip = {"frames": "frames.frames", "fps": "frames.fps"}
    size = {f"{which}_image": f"{which} image.IMAGE" for which in v.images}
    strength = {"strength": v.audio_strength} if v.audio_strength < 1 else {}
    hint = (
        "**strength** 1 keeps the track; 0.9 touches it up, 0.5 makes it anew along yours, 0 makes another one. "
        "**Audio Guidance** acts below 1 only."
        if strength
        else "**Preprocess** evens out the loudness for the model alone; the video keeps your sound. Its report warns "
        "of what makes videos static: silence, hard cuts, clipping."
    )
    found += [
        Group(
            f"{next(number)} · Audio, length and size",
            GREEN,
            1,
            [
                [
                    Node("audio", "LTXA2VLoadAudio", None, {"audio": "speech.opus"}, {}, 340, 190),
                    note("start here", v.about),
                ],
                [
                    Node("frames", "LTXA2VFrameCount", None, {}, {"audio": "audio.audio"}),
                    note(
                        "length",
                        "**Length** follows the audio, at most 481 frames (20 s at 24 fps); switch "
                        "*match_audio_length* off to set it. Start and duration are in Load Audio.",
                    ),
                ],
                [
                    Node("preprocess", "LTXA2VPreprocessAudio", None, {}, {"audio": "audio.audio", **clip}),
                    Node(
                        "size",
                        "LTXA2VVideoSize",
                        None,
                        {"video_size": "auto"} if v.images else {},
                        {"frames": "frames.frames", **size},
                    ),
                ],
                [
                    Node(
                        "sound",
                        "LTXA2VAudioConditioning",
                        None,
                        strength,
                        {"audio_vae": "model.audio_vae", "audio": "preprocess.audio", **clip},
                    ),
                    note(
                        "sound and size",
                        hint
                        + "\n\n**Size**: "
                        + (
                            "*auto* takes it from the image. "
                            if v.images
                            else "a preset, or *custom* for width and height. "
                        )
                        + "*square* is quick to try with.",
                    ),
                ],
            ],
        )
    ]
    kinds = {"first": "LTXA2VImageConditioning", "end": "LTXA2VEndImageConditioning"}
    guides: dict[str, str] = {}
    columns = []
    for which in v.images:
        column = []
        for order, latent in (("first", "size.first stage"), ("second", "size.full size")):
            key = f"{which} in {order}"
            links = {"video_vae": "model.video_vae", "image": f"{which} image.IMAGE", "latent": latent}
            if order in guides:
                links["guides"] = guides[order]
            column += [Node(key, kinds[which], f"{labels[which]}, {order} pass", {}, links, 300)]
            guides[order] = f"{key}.guides"
        columns += [column]
    if v.images:
        columns += [[note("image", "**strength** 1 keeps the image; lower it to let the model depart from it.\n\n"
                          "**compression** makes a clean image look like video; at 0 the motion may freeze.\n\n"
                          "Describe the image in the prompt too, or the model works against it.", 280)]]  # fmt: skip
        title = "Frames" if len(v.images) > 1 else "Frame"
        found += [Group(f"{next(number)} · {title} to keep", GREY, 1, columns)]

    expand = {"text_encoder": "gemma.text_encoder", "seed": "seed.INT"}
    if "first" in v.images:
        expand["image"] = "first image.IMAGE"
    text = {"text_encoder": "gemma.text_encoder"}
    negative = Node("negative", "LTXA2VTextEncode", "Negative prompt", {"text": NEGATIVE_PROMPT}, text, 440, 180, (),
                    NEGATIVE)  # fmt: skip
    hint = "**Positive prompt** is yours, short or long: Gemma writes it out" + (
        ", looking at the image." if "first" in v.images else "."
    )
    hint += " Say who is seen and whether the sound is speech, song or noise, for Gemma does not hear it. Switch "
    hint += "*enabled* off to use it as it is."
    found += [
        Group(
            f"{next(number)} · Prompt",
            YELLOW,
            0,
            [
                [Node("seed", "PrimitiveInt", "Seed", {"value": 42}, {}, 280), note("prompt", hint, 280)],
                [
                    Node(
                        "expand",
                        "LTXA2VExpandPrompt",
                        "Positive prompt",
                        {"prompt": v.prompt},
                        expand,
                        440,
                        430,
                        (),
                        POSITIVE,
                    )
                ],
                [
                    Node(
                        "positive",
                        "LTXA2VTextEncode",
                        "Encode prompt",
                        {},
                        {**text, "text": "expand.prompt"},
                        300,
                        120,
                        (),
                        POSITIVE,
                    ),
                    *([] if v.distilled else [negative]),
                ],
            ],
        )
    ]

    # linear_quadratic in 8 steps is the distilled recipe's schedule, to the last digit
    schedule = {"scheduler": "linear_quadratic", "steps": 8} if v.distilled else {}
    steering = [
        Node("noise", "RandomNoise", "Noise", {}, {"noise_seed": "seed.INT"}),
        Node("sigmas", "LTXA2VScheduler", None, schedule),
    ]
    steer: dict[str, str] = {}
    sigmas = "sigmas.first stage sigmas"
    if v.distilled:
        extra = [note("steps", "**linear_quadratic** in **8** steps is the schedule that this checkpoint was distilled "
                      "for: leave both as they are. A higher number does not make it better.")]  # fmt: skip
    else:
        steering += [Node("guidance", "LTXA2VGuidance")]
        links = {"first_model": passes[0], "second_model": passes[1], "schedule": "sigmas.first stage sigmas"}
        faster = Node("faster", "LTXA2VAcceleration", None, {}, {**links, "scales": "guidance.guidance"}, 340)
        extra = [faster, Node("restart", "LTXA2VRestart")]
        passes, sigmas = ("faster.first stage model", "faster.second stage model"), "faster.first stage sigmas"
        steer = {"negative": "negative.text", "guidance": "faster.guidance", "restart": "restart.restart"}
        if strength:
            extra += [Node("audio guidance", "LTXA2VAudioGuidance")]
            steer["audio_guidance"] = "audio guidance.audio guidance"
        extra += [note("steps and guidance", "**cfg** follows the prompt, **modality** the audio (raise it if the lips "
                       "lag), **stg** keeps motion coherent: each costs a pass a step; 1, 1 and 0 leave it out. "
                       "**rescale** tames burnt colours.")]  # fmt: skip
    first = {
        "model": passes[0],
        "noise": "noise.NOISE",
        "sigmas": sigmas,
        "positive": "positive.text",
        "audio": "sound.audio",
        "latent": "size.first stage",
        **steer,
        **({"guides": guides["first"]} if guides else {}),
    }
    title = "First stage: half the size" + ("" if v.distilled else ", guided")
    found += [
        Group(
            f"{next(number)} · {title}",
            VIOLET,
            0,
            [
                steering,
                extra,
                [Node("first", "LTXA2VSampler", "First pass", {}, first, 340, SAMPLER)],
            ],
        )
    ]
    second = {
        "model": passes[1],
        "noise": "first.next noise",
        "sigmas": "sigmas.second stage sigmas",
        "positive": "positive.text",
        "audio": "first.next audio",
        "latent": "upscale.latent",
        **({"guides": guides["second"]} if guides else {}),
    }
    upscale = {"upscaler": "upscaler.upscaler", "video_vae": "model.video_vae", "latent": "first.latent"}
    found += [
        Group(
            f"{next(number)} · Second stage: full size, refined",
            VIOLET,
            0,
            [
                [
                    Node("upscale", "LTXA2VLatentUpscale", None, {}, upscale, 300),
                    note(
                        "one pass only",
                        "The first stage works at half the size; this one doubles it and refines it "
                        "in three steps.\n\nFor one stage: switch *two_stages* (before ComfyUI 0.8: *two_passes*) off "
                        "in Video Size, and bypass Latent Upscale and Second pass (**Ctrl+B**).",
                        300,
                    ),
                ],
                [Node("second", "LTXA2VSampler", "Second pass", {}, second, 340, SAMPLER)],
            ],
        )
    ]

    said = ["frames", "size", "preprocess", "expand", *(["camera"] if v.camera else [])]
    said += [*([] if v.distilled else ["lora", "faster"]), "first", "second"]
    track = "audio.audio"
    columns = [[]]
    if strength:
        track = "track.audio"
        said += ["track"]
        decode = {"before": "sound.audio", "after": "second.next audio", "audio_vae": "model.audio_vae"}
        decode |= {"vocoder": "model.vocoder", "audio": "audio.audio"}
        columns = [[Node("track", "LTXA2VDecodeAudio", None, {}, decode, 300)], []]
    reports = {f"report_{place}": f"{key}.report" for place, key in enumerate(said, 1)}
    columns[-1] += [Node("report", "LTXA2VReport", None, {}, reports, 300)]
    memory = note("memory and files", "Out of memory here: smaller tiles, 512 and 48. While sampling: a smaller size "
                  "or less audio.\n\n**format**: mp4, webm, ProRes .mov or GIF. **checker** takes a classifier from "
                  "`models/safety_checker`; without one nothing is checked, and the report says so.", 300)  # fmt: skip
    save = {
        "video_vae": "model.video_vae",
        "latent": "second.latent",
        "fps": "frames.fps",
        "audio": track,
        "report": "report.report",
    }
    saver = Node("save", "LTXA2VSaveLatentVideo", None, {}, save, 560, 960)
    columns[0] += [memory]
    columns += [[saver]]
    return [*found, Group(f"{next(number)} · Output", ORANGE, 2, columns)]


CREATE = """specs => {
    app.graph.clear();
    return specs.map(({id, kind, title, values, width}) => {
        const node = LiteGraph.createNode(kind);
        if (!node) throw new Error(`no node ${kind}`);
        node.id = id;
        if (title) node.title = title;
        app.graph.add(node);
        for (const [name, value] of values) {
            const widget = name === null ? node.widgets[0] : node.widgets.find(widget => widget.name === name);
            if (!widget) throw new Error(`no widget ${name} at ${kind}`);
            widget.value = value;
        }
        const [least, height] = node.computeSize();
        const reports = kind !== 'LTXA2VReport' && node.outputs.some(output => output.name === 'report');
        return [Math.max(least, width), height + reports * REPORT];
    });
}""".replace("REPORT]", f"{REPORT}]")
CONNECT = """links => links.map(([source, output, target, input]) => {
    const [from, to] = [source, target].map(id => app.graph.getNodeById(id));
    const [out, into] = [from.findOutputSlot(output), to.findInputSlot(input)];
    if (out < 0 || into < 0) throw new Error(`no ${out < 0 ? output : input} at ${(out < 0 ? from : to).type}`);
    return from.connect(out, to, into).id;
})"""
# a note or prompt that would have to be scrolled
CUT = """() => [...document.querySelectorAll('.comfy-markdown .tiptap, .comfy-multiline-input')]
    .filter(text => text.scrollHeight > text.clientHeight + 2)
    .map(text => [text.scrollHeight - text.clientHeight, (text.value ?? text.innerText).slice(0, 60)])"""

# its name in the node library is the file's
BLUEPRINT = ROOT / "subgraphs" / "ltx_audio_to_video.json"
BLUEPRINT_ABOUT = (
    "Audio to video in one node: Load Audio goes in, LTX A2V Decode and Save takes what comes out, and the audio. Open "
    "it for all settings."
)
OUTSIDE = ("LTXA2VLoadAudio", "LTXA2VSaveLatentVideo", "MarkdownNote")
PROMOTED = (  # what the closed node shows: node's type or title, widget
    ("Positive prompt", "prompt"),
    ("Negative prompt", "text"),
    ("PrimitiveInt", "value"),
    ("LTXA2VVideoSize", "video_size"),
    ("LTXA2VFrameCount", "frame_rate"),
    ("LTXA2VFrameCount", "match_audio_length"),
    ("LTXA2VFrameCount", "num_frames"),
    ("LTXA2VScheduler", "steps"),
    ("LTXA2VModelLoader", "checkpoint"),
    ("LTXA2VTextEncoderLoader", "folder"),
    ("LTXA2VDistilledLora", "lora"),
    ("LTXA2VUpscalerLoader", "file"),
)
WRAP = """([outside, promoted, name]) => {
    const {graph} = app;
    const inside = graph.nodes.filter(node => !outside.includes(node.type));
    const {node, subgraph} = graph.convertToSubgraph(new Set([...inside, ...graph.reroutes.values(), ...graph.groups]));
    graph.nodes.filter(other => other !== node).forEach(other => graph.remove(other));
    subgraph.name = node.title = name;
    node.properties.proxyWidgets = promoted.map(([which, widget]) => {
        const found = subgraph.nodes.find(one => [one.type, one.title].includes(which));
        if (!found?.widgets.some(one => one.name === widget)) throw new Error(`no widget ${widget} at ${which}`);
        return [String(found.id), widget];
    });
    node.pos = [0, 0];
    const [, height] = node.computeSize();
    node.setSize([420, height + 160]); // room for the two prompts
}"""

Box = tuple[float, float, float, float]  # left, top of the body, width, height


@dataclass
class Layout:
    """Where everything of a graph is: boxes of nodes by key, groups, and the corners of links in lanes."""

    boxes: dict[str, Box] = field(default_factory=dict)
    groups: list[Box] = field(default_factory=list)
    reroutes: list[dict[str, Any]] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)  # the last corner of each link that has any


def lay_out(graph: list[Group], sizes: dict[str, tuple[float, float]], ids: dict[tuple[str, str], int]) -> Layout:
    """ids: of each link (target key, input)."""
    layout = Layout()
    nodes = {node.key: node for group in graph for column in group.columns for node in column}
    rights: dict[str, float] = {}
    cursor = [0.0, 0.0, 0.0]
    lefts: dict[str, float] = {}
    spans: list[tuple[float, float]] = []
    columns: dict[str, tuple[int, int]] = {}  # row and number in it
    counted = [0, 0, 0]
    for group in graph:
        offset, offsets = PAD, []
        for column in group.columns:
            offsets.append(offset)
            offset += max(sizes[node.key][0] for node in column) + GUTTER
        width = offset - GUTTER + PAD
        placed = {node.key for column in group.columns for node in column}
        needed = [
            rights[source] + GUTTER - at
            for at, column in zip(offsets, group.columns, strict=True)
            for node in column
            for source in (link.split(".")[0] for link in node.links.values())
            if source not in placed
        ]
        x = max([*(cursor if group.row == 2 else [cursor[group.row]]), *needed])
        for at, column in zip(offsets, group.columns, strict=True):
            for node in column:
                lefts[node.key] = x + at
                rights[node.key] = x + at + sizes[node.key][0]
                columns[node.key] = (group.row, counted[group.row])
            counted[group.row] += 1
        cursor[group.row] = x + width + BETWEEN
        spans.append((x, width))

    outputs: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for node in nodes.values():
        for name, link in node.links.items():
            source, output = link.split(".", 1)
            (row, at), (to_row, to) = columns[source], columns[node.key]
            if row != to_row or to != at + 1 or lefts[node.key] - rights[source] > 3 * GUTTER:
                outputs[source, output].append((node.key, name))
    lanes: list[list[list[float]]] = [[], [], []]  # of each row: the ends of what runs in each lane
    routes = []
    order = list(nodes)
    for (source, _), targets in sorted(outputs.items(), key=lambda item: (rights[item[0][0]], order.index(item[0][0]))):
        row = columns[source][0]
        end = max(lefts[key] for key, _ in targets)
        lane = next((n for n, taken in enumerate(lanes[row]) if taken[-1] < rights[source]), len(lanes[row]))
        if lane == len(lanes[row]):
            lanes[row].append([])
        lanes[row][lane].append(end)
        routes.append((source, row, lane, targets))

    heights = [
        max(
            sum(sizes[node.key][1] for node in column) + STACK * (len(column) - 1)
            for group in graph
            if group.row == row
            for column in group.columns
        )
        + HEAD
        + FOOT
        for row in (0, 1, 2)
    ]
    total = len(lanes[0]) + len(lanes[1])
    tops = [0.0, heights[0] + 2 * MARGIN + LANE * total, 0.0]
    for group, (x, width) in zip(graph, spans, strict=True):
        layout.groups.append((x, tops[group.row], width, heights[group.row]))
        for column in group.columns:
            y = tops[group.row] + HEAD
            wide = max(sizes[node.key][0] for node in column)
            for node in column:
                layout.boxes[node.key] = (lefts[node.key], y, wide, sizes[node.key][1])
                y += sizes[node.key][1] + STACK
    for source, row, lane, targets in routes:
        y = heights[0] + MARGIN + LANE * (lane if row == 0 else total - 1 - lane)
        turn = FAN * (lane % 5)
        x, _, wide, _ = layout.boxes[source]
        chain = _corner(layout, x + wide + TURN + turn, y, None)
        for left in sorted({lefts[key] for key, _ in targets}):
            at = left - TURN - turn
            if at > chain["pos"][0] + FAN:
                chain = _corner(layout, at, y, chain)
            for key, name in targets:
                if lefts[key] == left:
                    layout.ends[ids[key, name]] = chain["id"]
    by_id = {corner["id"]: corner for corner in layout.reroutes}
    for link, last in layout.ends.items():
        corner: dict[str, Any] | None = by_id[last]
        while corner:
            corner["linkIds"].append(link)
            corner = by_id.get(corner.get("parentId"))
    return layout


def _corner(layout: Layout, x: float, y: float, parent: dict[str, Any] | None) -> dict[str, Any]:
    corner: dict[str, Any] = {"id": len(layout.reroutes) + 1}
    if parent:
        corner["parentId"] = parent["id"]
    corner |= {"pos": [round(x), round(y)], "linkIds": []}
    layout.reroutes.append(corner)
    return corner


def draw(frontend: Frontend, variant: Variant) -> Workflow:
    """The workflow as the frontend serialises it once it is drawn. Errors: a node, widget or socket does not exist."""
    graph = groups(variant)
    nodes = [node for group in graph for column in group.columns for node in column]
    ids = {node.key: number for number, node in enumerate(nodes, 1)}
    made = frontend.page.evaluate(CREATE, [
        {"id": ids[node.key], "kind": node.kind, "title": node.title, "values": list(node.values.items()),
         "width": node.width} for node in nodes
    ])  # fmt: skip
    sizes = {node.key: (width, max(height, node.height)) for node, (width, height) in zip(nodes, made, strict=True)}
    ends = [(node.key, name, *link.split(".", 1)) for node in nodes for name, link in node.links.items()]
    links = frontend.page.evaluate(
        CONNECT, [[ids[source], output, ids[target], name] for target, name, source, output in ends]
    )
    layout = lay_out(graph, sizes, {(end[0], end[1]): link for end, link in zip(ends, links, strict=True)})
    workflow = frontend.serialize()
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"ltx-audio-to-video/{variant.name}"))
    by_id = {node["id"]: node for node in workflow["nodes"]}
    for node in nodes:
        drawn, box = by_id[ids[node.key]], layout.boxes[node.key]
        drawn["pos"], drawn["size"] = [round(value) for value in box[:2]], [round(value) for value in box[2:]]
        if node.models:
            drawn["properties"]["models"] = [
                {"name": file[0], "url": url(file), "directory": file[2]} for file in node.models
            ]
        if node.color:
            drawn["color"], drawn["bgcolor"] = node.color
    workflow["groups"] = [
        {"id": number, "title": group.title, "bounding": [round(value) for value in box], "color": group.color,
         "font_size": 24, "flags": {}} for number, (group, box) in enumerate(zip(graph, layout.groups, strict=True), 1)
    ]  # fmt: skip
    workflow["extra"] = {
        "ds": {"scale": 0.65, "offset": [60, 120]},
        "reroutes": layout.reroutes,
        "linkExtensions": [{"id": link, "parentId": corner} for link, corner in sorted(layout.ends.items())],
    }
    frontend.load(workflow)
    return frontend.serialize()


def workflow_files() -> list[Path]:
    return [WORKFLOWS / f"{variant.name}.json" for variant in VARIANTS]


def api_file(workflow: Path) -> Path:
    return workflow.parent / "api" / workflow.name


def api_text(prompt: dict[str, dict[str, Any]]) -> str:
    """API form as it is committed: nodes by id, inputs as the frontend gives them."""
    ordered = {key: prompt[key] for key in sorted(prompt, key=lambda key: [int(part) for part in key.split(":")])}
    return text(ordered)


def text(value: object) -> str:
    """UI form as it is committed."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def sent(prompt: Prompt) -> Prompt:
    """What every frontend sends of one graph: newer ones leave out the player of Load Audio, which has no value."""
    return {
        key: {**node, "inputs": {name: value for name, value in node["inputs"].items() if name != "audioUI"}}
        for key, node in prompt.items()
    }


def export(frontend: Frontend, workflow: Workflow) -> tuple[str, str]:
    """UI and API form of a workflow, both as texts. Errors: it names nodes that the server does not have."""
    missing = frontend.load(workflow)
    if missing:
        raise ValueError(f"unknown nodes: {', '.join(sorted(set(missing)))}")
    return text(frontend.serialize()), api_text(frontend.prompt())


def blueprint(frontend: Frontend, workflow: Workflow) -> str:
    """A workflow's pipeline as a subgraph for the node library: from the audio to what Decode and Save takes.

    All stays within but the loading and the saving; the notes, which speak of the whole graph, are left out.
    """
    frontend.load(workflow)
    frontend.page.evaluate(WRAP, [list(OUTSIDE), PROMOTED, BLUEPRINT.stem])
    made = frontend.serialize()
    made["extra"] = {"BlueprintDescription": BLUEPRINT_ABOUT}
    made["last_link_id"] = 0
    written = text(made)
    # the frontend's ids are random; a file that is drawn anew must be the same
    random_ids = dict.fromkeys(re.findall(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", written))
    for number, found in enumerate(random_ids):
        name = f"ltx-audio-to-video/{BLUEPRINT.name}/{number}"
        written = written.replace(found, str(uuid.uuid5(uuid.NAMESPACE_URL, name)))
    return written


def _write(path: Path, content: str) -> Iterator[str]:
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        yield f"draw: {path.relative_to(ROOT)} written\n"


def main(names: list[str]) -> int:
    chromium = browser_path()
    if not chromium:
        sys.stderr.write("draw: no chromium here; `apt-get install chromium` brings it\n")
        return 1
    failed = False
    with tempfile.TemporaryDirectory() as base, Comfy(Path(base)) as server:
        if OWN_NODE not in server.object_info():
            sys.stderr.write(f"draw: ComfyUI could not load the pack\n{server.log}")
            return 1
        for file in INPUTS:
            server.upload(file)
        with Frontend(server.url, chromium) as frontend:
            for variant in VARIANTS:
                if names and variant.name not in names:
                    continue
                path = WORKFLOWS / f"{variant.name}.json"
                ui, api = export(frontend, draw(frontend, variant))
                for target, content in ((path, ui), (api_file(path), api)):
                    for line in _write(target, content):
                        sys.stdout.write(line)
                picture = Path(base, f"{variant.name}.png")
                frontend.screenshot(picture)
                with Image.open(picture) as shot:
                    shot.convert("RGB").save(path.with_suffix(".jpg"), quality=JPEG_QUALITY, optimize=True)
                    if variant.name == DEFAULT:
                        shot.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(ASSET, optimize=True)
                troubles = [f"{hidden} units are cut of: {start}" for hidden, start in frontend.page.evaluate(CUT)]
                for trouble in [*troubles, *frontend.errors]:
                    sys.stderr.write(f"draw: {variant.name}: {trouble}\n")
                    failed = True
            if not names or BLUEPRINT.stem in names:
                default = json.loads((WORKFLOWS / f"{DEFAULT}.json").read_text(encoding="utf-8"))
                for line in _write(BLUEPRINT, blueprint(frontend, default)):
                    sys.stdout.write(line)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
