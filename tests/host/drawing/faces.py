"""The faces of a workflow: the short one that opens, all its stages, the flat graph of the API form, the blueprint."""

from __future__ import annotations

import textwrap
from dataclasses import replace

from a2v.ltx.models import MODELS

from . import clips
from .parts import (
    CAMERA,
    FILES,
    FINER,
    ORANGE,
    SMALL,
    File,
    Node,
    Stage,
    Widget,
    joined,
    note,
    published,
)
from .stages import (
    audio,
    conditions,
    first_stage,
    images,
    models,
    prompts,
    record,
    save,
    second_stage,
    seed,
)
from .variants import DUB, REDUB, Variant

ALL, MICROPHONE = " (all nodes)", " (microphone)"
"""What the title of a workflow with open stages ends in, and of one that records its sound."""

SPOKEN = (
    "1. Press the button in *Record Audio*, speak, and press again.\n\n2. Describe the speaker in *prompt*.\n\n"
    "3. Press *Run*. The video keeps your voice unchanged.\n\nThe browser lets this page record only at *localhost*, "
    "at *127.0.0.1*, or over https."
)


def files(v: Variant) -> list[File]:
    own = FILES[v.version]
    return [own.distilled if v.distilled else own.dev, *([] if v.distilled else [own.lora]), own.upscaler, own.encoder,
            *own.apart.values(), *([CAMERA] if v.camera else []),
            *([clips.IC_LORAS[v.name]] if v.ic_lora or v.voice else [])]  # fmt: skip


def start(v: Variant) -> Node:
    return note("start here", v.about, 300, "Start here")


def files_note(v: Variant) -> Node:
    parts = ["Put these files into their folders under ComfyUI/models, then press *R*."]
    parts += [f"{file.folder} · {file.size} [{file.name}]({file.url})" for file in files(v)]
    if v.is_25:
        parts.insert(0, f"First accept LTX-2.5's terms on [its page]({MODELS['dev-2.5'].page}).")
        parts += [f"[{FINER.name}]({FINER.url}) ({FINER.size}) as *video VAE* gives finer pictures and needs more time "
                  "and memory.", "On a small card, set *dtype* to fp8 in both loaders."]  # fmt: skip
    elif v.clip == DUB:
        parts.insert(0, f"First accept the terms of the IC-LoRA DubIt on [its page]({MODELS['dubit'].page}).")
    elif v.sheet:
        page = MODELS["ingredients"].page
        parts.insert(0, f"First accept the terms of the IC-LoRA Ingredients on [its page]({page}).")
    if v.distilled and not v.is_25:
        small = published("distilled-fp8", "30 GB")
        parts += [f"Small cards can use [{small.name}]({small.url}) ({small.size}) instead."]
    elif not v.distilled and not v.is_25:
        small = " and ".join(f"[{name}]({file.url}) ({file.size})" for name, file in SMALL.items())
        parts += [f"Small cards can use {small} instead."]
    return note("model files", "\n\n".join(parts), 300, "Model files", 3)


def _lifted(stage: Stage, labels: tuple[str, ...]) -> list[Widget]:
    by_label = {widget.label: widget for widget in stage.widgets}
    return [by_label[label] for label in labels if label in by_label]


def whole(v: Variant) -> Stage:
    """The whole pipeline as one node, from the sound to the video."""
    parts = {"models": models(v), "conditions": conditions(v), "prompts": prompts(v), "first": first_stage(v),
             "second": second_stage(v)}  # fmt: skip
    writing = save(v, {"folder": "temp", "filename_prefix": "ltx-a2v"}, "Decode", width=290 if v.timeline else 340)
    widgets = [
        *_lifted(parts["prompts"], ("prompt", "timeline", "let Gemma write it out", "prompt expander",
                                    "negative prompt")),
        *_lifted(parts["models"], ("camera", "camera strength")),
        *_lifted(parts["conditions"], clips.LABELS),
        *_lifted(parts["models"], clips.LABELS),
        *_lifted(parts["conditions"], ("size", "width", "height")),
        *_lifted(parts["prompts" if v.timeline else "conditions"], ("length from the audio", "frames")),
        *_lifted(parts["conditions"], ("frames of a window", "overlap", "first image strength", "end image strength",
                                       "audio strength")),
        Widget.of("seed", "seed.value"),
        *_lifted(parts["first"], ("keep to the voice", "steps", "speed-up")),
        *_lifted(parts["models"], ("checkpoint", "distilled LoRA", "IC-LoRA", "text encoder", "video VAE",
                                   "audio VAE")),
        *parts["second"].widgets,
    ]  # fmt: skip
    title = "Image and audio to video" if v.images else "Audio to video"
    title = "Song or talk to film" if v.timeline else title
    about = "Makes a video that moves with the sound: lip sync, talking heads, singing, music videos."
    if v.name in clips.ABOUT:
        title, about = clips.ABOUT[v.name]
    settings = ((parts["conditions"], parts["prompts"]),)
    if v.timeline:  # the sound is encoded in the windows that the timeline makes
        settings = (parts["prompts"],), (parts["conditions"],)
        parts["models"] = replace(parts["models"], width=290)  # so that one column more fits the window
    loaders = (parts["models"], seed(v), *([clips.clip()] if v.clip else []))
    columns = (loaders, *settings, (parts["first"],), (parts["second"],), (writing,))
    # all texts of a node get the same height; one alone would get the room of two
    height = 232 + 24 * len(widgets) if v.distilled else 760
    return Stage("whole", f"{title} (LTX-{v.version})", columns, tuple(widgets),
                 {"video": "save.video", "report": "report.report"}, ORANGE, 470, height,
                 f"{about} Open it for all settings.", 92 if v.timeline else 110)  # fmt: skip


def given(v: Variant) -> tuple[Node, ...]:
    """The nodes that load the user's own files."""
    loaded = [clips.video()] if v.clip else []
    loaded += [audio()] if v.takes_sound else []
    loaded += [clips.mask()] if v.clip == REDUB else []
    loaded += [clips.sheet()] if v.sheet else []
    return (*loaded, *images(v))


def opening(v: Variant, *, spoken: bool = False) -> Stage:
    """The face that opens: files in, one node with the settings, the video and its report out. spoken: the sound is
    recorded on the page in place of a file."""
    # the lower one, because it grows once it shows a video; the sockets of the one node follow this order
    saved = Node(
        "saved", "SaveVideo", "Save Video", {"filename_prefix": "video/ltx-a2v"}, {"video": "save.video"}, width=420
    )
    report = Node("shown", "PreviewAny", "Report", {}, {"source": "report.report"}, width=420, height=180)
    beginning = note("start here", SPOKEN, 300, "Start here") if spoken else start(v)
    columns = ((beginning, files_note(v)), (record(),) if spoken else given(v), (whole(v),), (report, saved))
    return Stage("root", v.title + MICROPHONE * spoken, columns, gutter=60)


def all_nodes(v: Variant) -> Stage:
    """The same with the stages on the canvas."""
    files_in, loaders = given(v), (models(v), seed(v), *([clips.clip()] if v.clip else []))
    if v.clip == REDUB:  # the mask below the loaders: from before them, its link would pass behind them
        *files_in, mask = files_in
        loaders = (*loaders, mask)
    # both images and the loaders are too high for one column; a clip is opened behind its file
    two = len(v.images) > 1 or bool(v.clip)
    written = prompts(v)
    # Nodes 2.0 shows nine lines of a prompt, and gives all texts of a node the same height; a film has three of them
    lines = sum(len(textwrap.wrap(part, 34)) for part in v.prompt.splitlines())
    further = 80 if v.timeline else 40 * max(0, lines - 9)
    written = replace(written, height=written.height + further)
    settings = ((conditions(v), written),)
    if v.timeline:
        settings = (written,), (conditions(v),)
    columns = (*((files_in, loaders) if two else ((*files_in, *loaders),)), *settings,
               (first_stage(v), start(v)), (second_stage(v), files_note(v)),
               (save(v, {}, "Decode and Save", 760, 310),))  # fmt: skip
    gutter = 98 if v.clip == DUB else 80 if two else 90  # a dub has more links, which bend farther
    return Stage("root", v.title + ALL, columns, gutter=gutter)


def flat(v: Variant) -> Stage:
    """Every node on one canvas, and one node that joins all reports: the graph of the API form."""
    nodes = [node for node in all_nodes(v).nodes() if node.kind not in ("MarkdownNote", "LTXA2VReport")]
    prompt = ["timeline", "windows"] if v.timeline else ["expand"]
    counted = ["clip"] if v.clip else ["frames", *(["clip"] if v.sheet else [])]
    said = [*counted, "size", "preprocess", *(["own"] if v.clip == DUB else []), *prompt,
            *(["retake"] if v.retakes else []),
            *(["camera"] if v.camera else []), *(["ic"] if v.ic_lora or v.voice else []),
            *([] if v.distilled else ["lora", "faster"]), "first", "second",
            *(["track"] if v.may_renew_sound else [])]  # fmt: skip
    report = replace(joined("report", *(f"{key}.report" for key in said)), title=None)
    return Stage("root", v.title, ((*nodes, report),))
