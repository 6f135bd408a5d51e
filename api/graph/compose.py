"""Turns a request into a graph: combines the committed workflows of workflows/api/ and fills them in. It runs none.

Every node gets the request's own values; the nodes decide how these act together. A node that one workflow has and the
other lacks is copied with its links.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from ...ltx.grid import SPACE_SCALE
from ...ltx.nag import Nag
from ...ltx.plan import round_frames
from ...ltx.request import Request
from .graph import Graph, Prompt, is_link_from, read
from .model_files import ModelNames

PLAIN, ONE_IMAGE, TWO_IMAGES = "audio_to_video", "image_and_audio", "first_and_last_image"
CAMERA, REGENERATION = "camera_move", "audio_regeneration"

MODEL, UPSCALER, GEMMA, LORA = (
    "LTXA2VModelLoader",
    "LTXA2VUpscalerLoader",
    "LTXA2VTextEncoderLoader",
    "LTXA2VDistilledLora",
)
OTHER_LORA = "LTXA2VLora"
SAMPLER, SAVE, REPORT, EXPAND, ENCODE = (
    "LTXA2VSampler",
    "LTXA2VSaveLatentVideo",
    "LTXA2VReport",
    "LTXA2VExpandPrompt",
    "LTXA2VTextEncode",
)
IMAGE, END_IMAGE = "LTXA2VImageConditioning", "LTXA2VEndImageConditioning"
LOAD_IMAGE = "LTXA2VLoadImage"
ACCELERATION, NAG = "LTXA2VAcceleration", "LTXA2VNag"
FRAME_COUNT, WINDOW, TIMELINE = "LTXA2VFrameCount", "LTXA2VWindow", "LTXA2VTimeline"
AUDIO, FILM_PART, SAVE_PART = "LTXA2VAudioConditioning", "LTXA2VFilmPart", "LTXA2VSaveFilmPart"
FIRST_STAGE, SECOND_STAGE = "First stage", "Second stage"  # titles of the samplers in the workflows
NEGATIVE = "Negative prompt"
FIRST_IMAGE, LAST_IMAGE = "First image", "End image"
FINAL_PROMPT = "Final prompt"
CHECK, NO_CHECK = "first found", "off"
MOST_REPORTS = 12  # that one node joins
CUSTOM = "custom"


def compose(
    request: Request,
    models: ModelNames,
    *,
    audio: str,
    image: str | None = None,
    end_image: str | None = None,
    prefix: str,
    loras: Sequence[tuple[str, float]] = (),
) -> Prompt:
    """The graph of a request. audio, image, end_image: names in the input folder; prefix: of the output file; loras:
    name in ComfyUI's list and strength of each that the client wants."""
    graph = Graph(read(TWO_IMAGES if end_image else ONE_IMAGE if image else PLAIN))
    _load(graph, request, models, audio)
    _place_images(graph, request, image, end_image)
    if request.camera_lora != "none":
        camera = graph.graft(Graph(read(CAMERA)), "LTXA2VCameraLora")
        graph.prompt[camera]["inputs"] |= {"camera_lora": request.camera_lora, "strength": request.camera_lora_scale}
        graph.inputs(LORA)["model"] = [camera, 0]
    if request.windows is not None:
        _cut(graph, request)
    _merge(graph, loras)
    if models.lora is None:
        _use_distilled_checkpoint(graph)
    _steer(graph, request)
    if request.audio_strength < 1:
        _regenerate(graph, request)
    if not request.use_multiscale:
        _make_one_stage(graph)
    if request.nag is not None:
        _lead(graph, request.nag)
    _write(graph, request, prefix)
    for sentence in _said_of_rounding(request):
        tell(graph, sentence)
    return graph.prompt


def _load(graph: Graph, request: Request, models: ModelNames, audio: str) -> None:
    graph.inputs(MODEL)["checkpoint"] = models.checkpoint
    _load_split(graph, models)
    graph.inputs(UPSCALER)["file"] = models.upscaler
    graph.inputs(GEMMA)["folder"] = models.gemma
    graph.inputs(LORA).update(
        lora=models.lora,  # None: the node goes
        first_pass_strength=request.distill_lora_first_pass_scale,
        second_pass_strength=request.distill_lora_second_pass_scale,
    )
    graph.inputs("LTXA2VLoadAudio")["audio"] = audio
    graph.inputs(FRAME_COUNT).update(
        frame_rate=request.fps,
        match_audio_length=request.match_audio_length,
        num_frames=round_frames(request.num_frames),
    )
    graph.inputs("LTXA2VPreprocessAudio")["enabled"] = request.preprocess_audio
    graph.inputs(AUDIO)["strength"] = request.audio_strength
    size = graph.inputs("LTXA2VVideoSize")
    size["two_passes"] = request.use_multiscale
    if isinstance(request.video_size, str):
        size["video_size"] = request.video_size
    else:
        size["video_size"] = CUSTOM
        size["width"], size["height"] = _in_steps(request.video_size)
    graph.inputs(EXPAND).update(prompt=request.prompt, enabled=request.enable_prompt_expansion)
    graph.inputs(ENCODE, NEGATIVE)["text"] = request.negative_prompt
    seed = request.seed % 2**64
    graph.inputs("PrimitiveInt", "Seed")["value"] = seed
    if seed > sys.maxsize:  # that node cannot hold it: the nodes behind it get the number itself
        graph.remove(graph.find("PrimitiveInt", "Seed"))
        graph.inputs("RandomNoise")["noise_seed"] = graph.inputs(EXPAND)["seed"] = seed


def _in_steps(size: tuple[int, int]) -> tuple[int, int]:
    """A size rounded up to the steps of its widgets, as the node rounds it, too. The editor rounds to the nearest step
    when it opens a graph, and would make another video."""
    width, height = (-(-side // SPACE_SCALE) * SPACE_SCALE for side in size)
    return width, height


def _said_of_rounding(request: Request) -> list[str]:
    """What the report says of values that are rounded before the nodes see them."""
    said, frames = [], round_frames(request.num_frames)
    if not request.match_audio_length and frames != request.num_frames:
        said.append(f"num_frames rounded up from {request.num_frames} to {frames}")
    if not isinstance(request.video_size, str) and (found := _in_steps(request.video_size)) != request.video_size:
        (width, height), (wide, high) = request.video_size, found
        said.append(f"size changed from {width}×{height} to {wide}×{high}")
    return said


def _load_split(graph: Graph, models: ModelNames) -> None:
    """Names the files that LTX-2.5 has beside the checkpoint. Its diffusion decoder goes on with the last stage's
    noise, as in the command; the convolutional one takes none."""
    parts = {"video_vae": models.video_vae, "audio_vae": models.audio_vae}
    graph.inputs(MODEL).update({part: name for part, name in parts.items() if name})
    if models.expander:
        graph.inputs(EXPAND)["expander"] = models.expander
    if models.video_vae:
        graph.inputs(SAVE)["noise"] = [graph.find(SAMPLER, SECOND_STAGE), 1]


def _merge(graph: Graph, loras: Sequence[tuple[str, float]]) -> None:
    """Adds LoRAs between the model's loader and everything behind it."""
    model = [graph.find(MODEL), 0]
    behind = graph.linked_to(model)
    for number, (name, strength) in enumerate(loras, 1):
        model = [graph.add(OTHER_LORA, f"LoRA {number}", model=model, lora=name, strength=strength), 0]
    for node, name in behind:
        node["inputs"][name] = model


def _use_distilled_checkpoint(graph: Graph) -> None:
    """Removes the distilled LoRA. Both stages get the model as it was before that."""
    key, model = graph.find(LORA), graph.inputs(LORA)["model"]
    for node, name in (*graph.linked_to([key, 0]), *graph.linked_to([key, 1])):
        node["inputs"][name] = model
    graph.remove(key)


def _place_images(graph: Graph, request: Request, image: str | None, end_image: str | None) -> None:
    """Fills in files and strengths of the images, and removes the first image's nodes if the request has none.

    An image at strength 0 still sets the size, and the prompt's expansion does not see it. The conditioning nodes skip
    it by themselves.
    """
    if image:
        graph.inputs(LOAD_IMAGE, FIRST_IMAGE)["image"] = image
        for key in graph.all(IMAGE):
            graph.prompt[key]["inputs"]["strength"] = request.image_strength
        if request.image_strength == 0:
            graph.inputs(EXPAND).pop("image", None)
    elif end_image:
        for key in [graph.find(LOAD_IMAGE, FIRST_IMAGE), *graph.all(IMAGE)]:
            graph.remove(key)
    if end_image:
        graph.inputs(LOAD_IMAGE, LAST_IMAGE)["image"] = end_image
        for key in graph.all(END_IMAGE):
            graph.prompt[key]["inputs"]["strength"] = request.end_image_strength


def _cut(graph: Graph, request: Request) -> None:
    """Makes a film in windows as long as its sound. If it has a timeline, one node takes the place of those that write
    the prompt out and encode it."""
    frames, size = graph.find(FRAME_COUNT), request.windows
    graph.prompt[frames]["inputs"]["whole_track"] = True
    clip = {"frames": [frames, 0], "fps": [frames, 1]}
    timeline = {}
    if request.sections:
        expand = graph.find(EXPAND)
        encode = next(key for key in graph.all(ENCODE) if is_link_from(graph.prompt[key]["inputs"]["text"], expand))
        asked = {**graph.prompt[expand]["inputs"], "timeline": request.timeline}
        key = graph.add(TIMELINE, graph.title(expand), **asked, **clip)
        for node, name in graph.linked_to([encode, 0]):
            node["inputs"][name] = [key, 1]
        graph.remove(encode)
        graph.remove(expand)
        timeline = {"timeline": [key, 0]}
    windows = graph.add(
        WINDOW,
        "Window",
        window_frames=size.frames,
        overlap=size.overlap,
        pauses=size.pauses,
        anchor=size.anchor,
        drift=size.drift,
        window_seeds=", ".join(f"{number}: {seed % 2**64}" for number, seed in size.seeds),
        audio=[graph.find("LTXA2VPreprocessAudio"), 0],
        **clip,
        **timeline,
    )
    graph.inputs(AUDIO)["windows"] = [windows, 0]


def _steer(graph: Graph, request: Request) -> None:
    graph.inputs("LTXA2VScheduler").update(scheduler=request.scheduler, steps=request.num_inference_steps)
    graph.inputs("LTXA2VGuidance").update(
        cfg=request.video_cfg_scale,
        stg=request.video_stg_scale,
        rescale=request.video_rescaling_scale,
        modality=request.video_modality_scale,
    )
    for key in graph.all(SAMPLER):
        graph.prompt[key]["inputs"]["gradient_estimation_gamma"] = request.gradient_estimation_gamma
    if not request.use_restart_sampling:
        graph.remove(graph.find("LTXA2VRestart"))
    graph.inputs(ACCELERATION)["level"] = request.acceleration


def _make_one_stage(graph: Graph) -> None:
    """Connects the first sampler's outputs where the second one's went, and removes that, the upscaler and its
    images."""
    first, second = graph.find(SAMPLER, FIRST_STAGE), graph.find(SAMPLER, SECOND_STAGE)
    guides = graph.prompt[second]["inputs"].get("guides")
    while guides:
        key, guides = guides[0], graph.prompt[guides[0]]["inputs"].get("guides")
        graph.remove(key)
    for node in graph.prompt.values():
        for name, value in node["inputs"].items():
            if is_link_from(value, second):
                node["inputs"][name] = [first, value[1]]
    for key in (second, graph.find("LTXA2VLatentUpscale"), graph.find(UPSCALER)):
        graph.remove(key)


def _lead(graph: Graph, nag: Nag) -> None:
    """Puts NAG between each sampler and its model, and gives each the negative prompt."""
    for key in graph.all(SAMPLER):
        inputs, title = graph.prompt[key]["inputs"], f"NAG, {graph.title(key).lower()}"
        led = graph.add(NAG, title, model=inputs["model"], scale=nag.scale, alpha=nag.alpha, tau=nag.tau)
        inputs |= {"model": [led, 0], "negative": [graph.find(ENCODE, NEGATIVE), 0]}


def _regenerate(graph: Graph, request: Request) -> None:
    """Adds audio guidance to the first stage, and takes the file's sound from the last stage's latents."""
    donor = Graph(read(REGENERATION))
    guidance = graph.graft(donor, "LTXA2VAudioGuidance")
    graph.prompt[guidance]["inputs"].update(
        cfg=request.audio_cfg_scale,
        stg=request.audio_stg_scale,
        rescale=request.audio_rescaling_scale,
        modality=request.audio_modality_scale,
    )
    graph.inputs(SAMPLER, FIRST_STAGE)["audio_guidance"] = [guidance, 0]
    track = graph.graft(donor, "LTXA2VDecodeAudio")
    graph.inputs(SAVE)["audio"] = [track, 0]


# The output of each node's report, in the order of reading.
_REPORTING = (
    (FRAME_COUNT, 2),
    ("LTXA2VVideoSize", 2),
    ("LTXA2VPreprocessAudio", 1),
    (WINDOW, 1),
    (EXPAND, 1),
    (TIMELINE, 3),
    (OTHER_LORA, 1),
    ("LTXA2VCameraLora", 1),
    (LORA, 2),
    (ACCELERATION, 4),
    (SAMPLER, 3),
    ("LTXA2VDecodeAudio", 1),
)


def _write(graph: Graph, request: Request, prefix: str) -> None:
    graph.inputs(SAVE).update(
        filename_prefix=str(PurePosixPath(prefix)),
        format=request.video_output_type,
        quality=request.video_quality,
        write_mode=request.video_write_mode,
        checker=CHECK if request.enable_safety_checker else NO_CHECK,
    )
    prompt = [graph.find(TIMELINE), 2] if graph.has(TIMELINE) else [graph.find(EXPAND), 0]
    graph.add("PreviewAny", FINAL_PROMPT, source=prompt)
    said = [[key, slot] for kind, slot in _REPORTING for key in graph.all(kind)]
    graph.inputs(REPORT).clear()
    for link in said:
        tell(graph, link)


def tell(graph: Graph, said: list[Any] | str) -> None:
    """Adds a node's report, the output `said`, or a sentence to the file's. A further node joins those that the last
    one has no room for. A sentence is a node, because the editor keeps no value of an input without a widget."""
    if isinstance(said, str):
        said = [graph.add("PrimitiveString", "Remark", value=said), 0]
    saver = graph.inputs(SAVE)
    reports = graph.prompt[saver["report"][0]]["inputs"]
    if len(reports) == MOST_REPORTS:
        saver["report"] = [graph.add(REPORT, "More reports", report_1=saver["report"]), 0]
        reports = graph.prompt[saver["report"][0]]["inputs"]
    reports[f"report_{len(reports) + 1}"] = said
