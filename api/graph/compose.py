"""A request as a graph: the committed workflows of workflows/api/, put together and filled in. Nothing here runs one.

Nodes are found by their class and title, never by number, so that a workflow can be drawn anew without this file. What
one workflow lacks is taken over from the one that has it, with its links. All values are of ComfyUI's API form.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ...ltx.errors import InputError
from ...ltx.request import Request

Prompt = dict[str, dict[str, Any]]
Link = list[Any]

FOLDER = Path(__file__).resolve().parents[2] / "workflows" / "api"
PLAIN, ONE_IMAGE, TWO_IMAGES = "audio_to_video", "image_and_audio", "first_and_last_image"
CAMERA, REGENERATION = "camera_move", "audio_regeneration"

MODEL, UPSCALER, GEMMA, LORA = (
    "LTXA2VModelLoader",
    "LTXA2VUpscalerLoader",
    "LTXA2VTextEncoderLoader",
    "LTXA2VDistilledLora",
)
SAMPLER, SAVE, REPORT, EXPAND, ENCODE = (
    "LTXA2VSampler",
    "LTXA2VSaveLatentVideo",
    "LTXA2VReport",
    "LTXA2VExpandPrompt",
    "LTXA2VTextEncode",
)
IMAGE, END_IMAGE = "LTXA2VImageConditioning", "LTXA2VEndImageConditioning"
ACCELERATION = "LTXA2VAcceleration"
FIRST, SECOND = "First pass", "Second pass"
NEGATIVE = "Negative prompt"
FIRST_IMAGE, LAST_IMAGE = "First image", "End image"
FINAL_PROMPT = "Final prompt"
CHECK, NO_CHECK = "first found", "off"
CUSTOM = "custom"


class ModelMissing(InputError):
    """A published file that is not in ComfyUI's folders: the administrator's to put there, not the caller's."""


@dataclass(frozen=True)
class Wanted:
    """A published model: its official names, the newest first, the models folder and the address."""

    names: tuple[str, ...]
    folder: str
    url: str

    def find(self, listing: Iterable[str]) -> str:
        """Its name as ComfyUI lists it, in whatever folder below. Errors: ModelMissing."""
        by_name = {PureWindowsPath(name).name.lower(): name for name in listing}  # knows both kinds of slashes
        for name in self.names:
            if name in by_name:
                return by_name[name]
        raise ModelMissing(f"{self.names[0]} is not in ComfyUI's models/{self.folder}: get it from {self.url}.")


_LTX = "https://huggingface.co/Lightricks/LTX-2.3"
CHECKPOINT_FILE = Wanted(("ltx-2.3-22b-dev.safetensors",), "checkpoints", _LTX)
UPSCALER_FILE = Wanted(
    ("ltx-2.3-spatial-upscaler-x2-1.1.safetensors", "ltx-2.3-spatial-upscaler-x2-1.0.safetensors"),
    "latent_upscale_models",
    _LTX,
)
LORA_FILE = Wanted(
    ("ltx-2.3-22b-distilled-lora-384-1.1.safetensors", "ltx-2.3-22b-distilled-lora-384.safetensors"), "loras", _LTX
)
GEMMA_FOLDER = Wanted(
    ("gemma-3-12b-it-qat-q4_0-unquantized",),
    "text_encoders",
    "https://huggingface.co/google/gemma-3-12b-it-qat-q4_0-unquantized",
)


@dataclass(frozen=True)
class Models:
    """The model files by the names that the loaders take."""

    checkpoint: str
    upscaler: str
    lora: str
    gemma: str


def find_models(files: Callable[[str], Iterable[str]], folders: Callable[[str], Iterable[str]]) -> Models:
    """files, folders: a models folder's name → what ComfyUI lists there. Errors: ModelMissing, for the first one."""
    return Models(
        checkpoint=CHECKPOINT_FILE.find(files(CHECKPOINT_FILE.folder)),
        upscaler=UPSCALER_FILE.find(files(UPSCALER_FILE.folder)),
        lora=LORA_FILE.find(files(LORA_FILE.folder)),
        gemma=GEMMA_FOLDER.find(folders(GEMMA_FOLDER.folder)),
    )


@lru_cache
def read(name: str) -> Prompt:
    """A committed workflow; not to be changed."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


class Graph:
    """A prompt that is being put together."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = copy.deepcopy(prompt)

    def all(self, kind: str) -> list[str]:
        return [key for key, node in self.prompt.items() if node["class_type"] == kind]

    def find(self, kind: str, title: str | None = None) -> str:
        """The id of the only such node. Errors: LookupError, the committed workflow is not what this file expects."""
        found = [key for key in self.all(kind) if title in (None, self.title(key))]
        if len(found) != 1:
            raise LookupError(f"{len(found)} nodes are {kind}{f' ({title})' if title else ''}, and one is expected")
        return found[0]

    def has(self, kind: str) -> bool:
        return bool(self.all(kind))

    def title(self, key: str) -> str:
        return self.prompt[key].get("_meta", {}).get("title", "")

    def inputs(self, kind: str, title: str | None = None) -> dict[str, Any]:
        return self.prompt[self.find(kind, title)]["inputs"]

    def add(self, kind: str, title: str, **inputs: Any) -> str:
        key = str(max(int(part) for key in self.prompt for part in key.split(":")) + 1)
        self.prompt[key] = {"inputs": inputs, "class_type": kind, "_meta": {"title": title}}
        return key

    def remove(self, key: str) -> None:
        """Takes a node out, and every link from it."""
        del self.prompt[key]
        for node in self.prompt.values():
            node["inputs"] = {name: value for name, value in node["inputs"].items() if not _from(value, key)}

    def graft(self, donor: Graph, kind: str, title: str | None = None) -> str:
        """Takes over a node of another graph, linked to this one's nodes of the same class and title."""
        node = donor.prompt[donor.find(kind, title)]
        inputs = {
            name: [self.find(donor.prompt[value[0]]["class_type"], donor.title(value[0])), value[1]]
            if isinstance(value, list)
            else value
            for name, value in node["inputs"].items()
        }
        return self.add(kind, node["_meta"]["title"], **inputs)


def _from(value: Any, key: str) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] == key


def compose(
    request: Request,
    models: Models,
    *,
    audio: str,
    image: str | None = None,
    end_image: str | None = None,
    prefix: str,
    folder: str = "output",
) -> Prompt:
    """The graph of a request. audio, image, end_image: names in the input folder; prefix: of the file it writes.

    folder: ComfyUI's, for that file: output, or temp where it is not to stay.
    """
    graph = Graph(read(TWO_IMAGES if end_image else ONE_IMAGE if image else PLAIN))
    _load(graph, request, models, audio)
    _place_images(graph, request, image, end_image)
    if request.camera_lora != "none":
        camera = graph.graft(Graph(read(CAMERA)), "LTXA2VCameraLora")
        graph.prompt[camera]["inputs"] |= {"camera_lora": request.camera_lora, "strength": request.camera_lora_scale}
        graph.inputs(LORA)["model"] = [camera, 0]
    _steer(graph, request)
    if request.audio_strength < 1:
        _regenerate(graph, request)
    if not request.use_multiscale:
        _make_one_pass(graph)
    _write(graph, request, prefix, folder)
    return graph.prompt


def _load(graph: Graph, request: Request, models: Models, audio: str) -> None:
    graph.inputs(MODEL)["checkpoint"] = models.checkpoint
    graph.inputs(UPSCALER)["file"] = models.upscaler
    graph.inputs(GEMMA)["folder"] = models.gemma
    graph.inputs(LORA).update(
        lora=models.lora,
        first_pass_strength=request.distill_lora_first_pass_scale,
        second_pass_strength=request.distill_lora_second_pass_scale,
    )
    graph.inputs("LTXA2VLoadAudio")["audio"] = audio
    graph.inputs("LTXA2VFrameCount").update(
        frame_rate=request.fps, match_audio_length=request.match_audio_length, num_frames=request.num_frames
    )
    graph.inputs("LTXA2VPreprocessAudio")["enabled"] = request.preprocess_audio
    graph.inputs("LTXA2VAudioConditioning")["strength"] = request.audio_strength
    size = graph.inputs("LTXA2VVideoSize")
    size["two_passes"] = request.use_multiscale
    if isinstance(request.video_size, str):
        size["video_size"] = request.video_size
    else:
        size["video_size"] = CUSTOM
        size["width"], size["height"] = request.video_size
    graph.inputs(EXPAND).update(prompt=request.prompt, enabled=request.enable_prompt_expansion)
    graph.inputs(ENCODE, NEGATIVE)["text"] = request.negative_prompt
    seed = request.seed % 2**64
    graph.inputs("PrimitiveInt", "Seed")["value"] = seed
    if seed > sys.maxsize:  # more than that node holds: the number goes to those that the node would hand it to
        graph.remove(graph.find("PrimitiveInt", "Seed"))
        graph.inputs("RandomNoise")["noise_seed"] = graph.inputs(EXPAND)["seed"] = seed


def _place_images(graph: Graph, request: Request, image: str | None, end_image: str | None) -> None:
    """Files and strengths of the images; a first image that the workflow has and the request has not is taken out.

    An image at strength 0 still gives its size, and is seen by nothing else; the nodes see to the conditioning.
    """
    if image:
        graph.inputs("LoadImage", FIRST_IMAGE)["image"] = image
        for key in graph.all(IMAGE):
            graph.prompt[key]["inputs"]["strength"] = request.image_strength
        if request.image_strength == 0:
            graph.inputs(EXPAND).pop("image", None)
    elif end_image:
        for key in [graph.find("LoadImage", FIRST_IMAGE), *graph.all(IMAGE)]:
            graph.remove(key)
    if end_image:
        graph.inputs("LoadImage", LAST_IMAGE)["image"] = end_image
        for key in graph.all(END_IMAGE):
            graph.prompt[key]["inputs"]["strength"] = request.end_image_strength


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


def _make_one_pass(graph: Graph) -> None:
    """The first sampler's outputs go where the second one's went; it, the upscaler and its images are left out."""
    first, second = graph.find(SAMPLER, FIRST), graph.find(SAMPLER, SECOND)
    guides = graph.prompt[second]["inputs"].get("guides")
    while guides:
        key, guides = guides[0], graph.prompt[guides[0]]["inputs"].get("guides")
        graph.remove(key)
    for node in graph.prompt.values():
        for name, value in node["inputs"].items():
            if _from(value, second):
                node["inputs"][name] = [first, value[1]]
    for key in (second, graph.find("LTXA2VLatentUpscale"), graph.find(UPSCALER)):
        graph.remove(key)


def _regenerate(graph: Graph, request: Request) -> None:
    """Audio guidance for the first pass, and the file's sound from the last pass's latents."""
    donor = Graph(read(REGENERATION))
    guidance = graph.graft(donor, "LTXA2VAudioGuidance")
    graph.prompt[guidance]["inputs"].update(
        cfg=request.audio_cfg_scale,
        stg=request.audio_stg_scale,
        rescale=request.audio_rescaling_scale,
        modality=request.audio_modality_scale,
    )
    graph.inputs(SAMPLER, FIRST)["audio_guidance"] = [guidance, 0]
    track = graph.graft(donor, "LTXA2VDecodeAudio")
    graph.inputs(SAVE)["audio"] = [track, 0]


# Output of each node's report, in the order in which they are read.
_REPORTING = (
    ("LTXA2VFrameCount", 2),
    ("LTXA2VVideoSize", 2),
    ("LTXA2VPreprocessAudio", 1),
    (EXPAND, 1),
    ("LTXA2VCameraLora", 1),
    (LORA, 2),
    (ACCELERATION, 4),
    (SAMPLER, 3),
    ("LTXA2VDecodeAudio", 1),
)


def _write(graph: Graph, request: Request, prefix: str, folder: str) -> None:
    graph.inputs(SAVE).update(
        filename_prefix=str(PurePosixPath(prefix)),
        format=request.video_output_type,
        quality=request.video_quality,
        write_mode=request.video_write_mode,
        checker=CHECK if request.enable_safety_checker else NO_CHECK,
        folder=folder,
    )
    graph.add("PreviewAny", FINAL_PROMPT, source=[graph.find(EXPAND), 0])
    said = [[key, slot] for kind, slot in _REPORTING for key in graph.all(kind)]
    graph.inputs(REPORT).clear()
    graph.inputs(REPORT).update({f"report_{number}": link for number, link in enumerate(said, 1)})


def field_of(graph: Prompt, node_id: str) -> str | None:
    """The request's field behind a node's mistake; None where it is no single one."""
    node = graph.get(node_id, {})
    title = node.get("_meta", {}).get("title", "")
    if node.get("class_type") in ("LoadImage", IMAGE, END_IMAGE):
        return "end_image_url" if title.startswith(LAST_IMAGE) else "image_url"
    return {
        "LTXA2VLoadAudio": "audio_url",
        "LTXA2VFrameCount": "audio_url",
        "LTXA2VPreprocessAudio": "audio_url",
        "LTXA2VAudioConditioning": "audio_url",
        "LTXA2VCameraLora": "camera_lora",
        "LTXA2VVideoSize": "video_size",
        ACCELERATION: "acceleration",
    }.get(node.get("class_type", ""))


def in_request_words(graph: Prompt, message: str) -> str:
    """A node's sentence with the field's name for the media file that the server keeps under a hash."""
    for node_id, node in graph.items():
        for name in ("audio", "image"):
            value, field = node["inputs"].get(name), field_of(graph, node_id)
            if field and isinstance(value, str):
                for kept in (value, PurePosixPath(value).name):
                    message = message.replace(kept, field)
    return message
