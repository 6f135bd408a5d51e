"""Nodes that load models and LoRAs from ComfyUI's models folders. Nothing is downloaded; errors name what is missing.

A loader runs again when ComfyUI's cache has dropped its output, and when the file has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from comfy_api.latest import io

from ..ltx.errors import InputError
from ..ltx.models import (
    GEMMA_FILES,
    GEMMA_FILES_PAGE,
    MODELS,
    PART_FOLDERS,
    V23,
    VERSIONS,
    is_distilled,
    overdone,
)
from ..ltx.prompt.encoder_file import ENCODER
from ..ltx.prompt.gemma import check_gemma, load_gemma
from ..ltx.request import PARAMETERS
from ..ltx.weights.checkpoint import Checkpoint, load_checkpoint, load_upscaler
from ..ltx.weights.lora import ELSEWHERE, Match, load_lora, match
from . import files, memory
from .progress import report, reported, shown
from .types import CATEGORY, AudioVaeIO, ConnectorsIO, ModelIO, TextEncoderIO, UpscalerIO, VideoVaeIO, VocoderIO
from .widgets import widget

LOADERS = f"{CATEGORY}/Loaders"
WANTED_CHECKPOINT, WANTED_UPSCALER, WANTED_DISTILLED = (
    f"get {MODELS[key].name} from {MODELS[key].page}" for key in ("dev", "upscaler", "distilled-lora")
)
WANTED_GEMMA = f"put the whole repository {MODELS['gemma'].page} there, or {GEMMA_FILES[-1]} of {GEMMA_FILES_PAGE}"
WANTED_LORA = "choose one that is there"
DIFFUSERS_MARK = "transformer/config.json"
GEMMA_MARK = "config.json"
NO_CAMERA = "none"
SAME = "from the checkpoint"


def _checkpoint_names() -> list[str]:
    """Files and folders that may hold the transformer. Names with LTX come first, whole checkpoints before others."""
    names = [
        *files.model_files("checkpoints"),
        *files.model_folders("diffusers", DIFFUSERS_MARK),
        *files.model_files("diffusion_models"),
        *files.gguf_files("diffusion_models"),
    ]
    return sorted(dict.fromkeys(names), key=lambda name: "ltx" not in name.lower())


def _checkpoint_path(name: str) -> Path:
    name = files.find(name, _checkpoint_names()) or name
    if name in files.model_folders("diffusers", DIFFUSERS_MARK):
        return files.model_folder("diffusers", name, DIFFUSERS_MARK, WANTED_CHECKPOINT)
    if name in files.gguf_files("diffusion_models"):
        return files.gguf_file("diffusion_models", name, WANTED_CHECKPOINT)
    kind = "checkpoints" if name in files.model_files("checkpoints") else "diffusion_models"
    if name not in files.model_files(kind):
        kind = "checkpoints"
    return files.model_file(kind, name, WANTED_CHECKPOINT)


def _part_names(part: str) -> list[str]:
    names = (name for kind in PART_FOLDERS[part] for name in files.model_files(kind))
    return [SAME, *dict.fromkeys(names)]


def _part_paths(**names: str | None) -> dict[str, Path]:
    """part=value of its widget → the paths of the named files."""
    paths = {}
    for part, name in names.items():
        if name is None or name == SAME:
            continue
        kinds = PART_FOLDERS[part]
        kind = next((kind for kind in kinds if files.find(name, files.model_files(kind))), kinds[0])
        paths[part] = files.model_file(kind, name, f"choose {SAME!r} or a file that has it")
    return paths


def _checkpoint(name: str, **parts: str | None) -> Checkpoint:
    return load_checkpoint(_checkpoint_path(name), **_part_paths(**parts))


def gemma_names() -> list[str]:
    """Model folders in models/text_encoders, the files outside of them, and diffusers folders with an encoder. Names
    with Gemma come first."""
    folders = files.model_folders("text_encoders", GEMMA_MARK)
    single = [
        name
        for name in files.model_files("text_encoders")
        if not any(PureWindowsPath(name).as_posix().startswith(f"{folder}/") for folder in folders)
    ]
    whole = files.model_folders("diffusers", ENCODER)
    return sorted(dict.fromkeys([*folders, *single, *whole]), key=lambda name: "gemma" not in name.lower())


def gemma_path(name: str) -> Path:
    if files.find(name, files.model_files("text_encoders")):
        return files.model_file("text_encoders", name, WANTED_GEMMA)
    if name in files.model_folders("diffusers", ENCODER) and name not in files.model_folders(
        "text_encoders", GEMMA_MARK
    ):
        return files.model_folder("diffusers", name, ENCODER, WANTED_GEMMA)
    return files.model_folder("text_encoders", name, GEMMA_MARK, WANTED_GEMMA)


def _check_gemma(name: str) -> None:
    """Raises InputError if the file is not Gemma. A folder is checked when it is loaded."""
    path = gemma_path(name)
    if path.is_file():
        check_gemma(path)


def _upscaler_path(name: str) -> Path:
    return files.model_file("latent_upscale_models", name, WANTED_UPSCALER)


def _upscalers(hidden: Any) -> list[Path]:
    """The files of the upscalers that enlarge the latents of a Load Model's model, as far as the queued graph tells.
    hidden: that node's hidden inputs, None outside of a graph."""
    prompt, loader = getattr(hidden, "prompt", None), getattr(hidden, "unique_id", None)
    nodes = prompt if isinstance(prompt, Mapping) else {}

    def source(node: Any, name: str) -> str | None:
        link = node.get("inputs", {}).get(name)
        return str(link[0]) if isinstance(link, list) and link else None

    found = []
    for node in nodes.values():
        if node.get("class_type") != "LTXA2VLatentUpscale" or source(node, "video_vae") != str(loader):
            continue
        upscaler = nodes.get(source(node, "upscaler"), {})
        name = upscaler.get("inputs", {}).get("file")
        if upscaler.get("class_type") == "LTXA2VUpscalerLoader" and isinstance(name, str):
            found.append(_upscaler_path(name))
    return found


def _distilled_path(name: str) -> Path:
    return files.model_file("loras", name, WANTED_DISTILLED)


def _camera_path(movement: str) -> Path | None:
    """The camera LoRA of that movement, in any folder below models/loras; None for the movement none."""
    if files.choice("camera_lora", movement, PARAMETERS["camera_lora"].choices) == NO_CAMERA:
        return None
    wanted = MODELS[movement.replace("_", "-")]
    for name in files.model_files("loras"):
        if PureWindowsPath(name).name.lower() == wanted.name:  # this class splits at both kinds of slashes
            return files.model_file("loras", name, WANTED_LORA)
    raise InputError(f"camera_lora: {wanted.name} is not in models/loras: get it from {wanted.page}.")


def _lora_path(name: str) -> Path:
    return files.model_file("loras", name, WANTED_LORA)


def _check_lora(path: Path | None) -> None:
    """Raises InputError if the file holds no LoRA that can be used. Only its header is read."""
    if path is not None:
        load_lora(path)


class ModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VModelLoader",
            display_name="LTX A2V Load Model",
            category=LOADERS,
            description=f"Opens an LTX checkpoint, version {VERSIONS}: transformer, text connectors, both VAEs and "
            "the vocoder. Weights are read when a node first computes with them.",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=_checkpoint_names(),
                    tooltip="An LTX file in models/checkpoints (bf16 or fp8), for instance "
                    f"{MODELS['dev'].name}; a diffusers folder in models/diffusers; or the transformer alone, "
                    "safetensors or GGUF, in models/diffusion_models.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(memory.MODEL_DTYPES),
                    default="auto",
                    tooltip="Precision of weights and computation. auto: bfloat16 if the device supports it, "
                    "float32 on the CPU. fp8: as auto, with the weights of the transformer's blocks rounded to 8 bits. "
                    "Weights that are fp8 or GGUF in their file stay so.",
                ),
                io.Combo.Input(
                    "video_vae",
                    options=_part_names("video_vae"),
                    default=SAME,
                    optional=True,
                    tooltip="The file with the video VAE, if the checkpoint has none: a file in models/vae, for "
                    f"instance {V23.parts['video_vae']}, or a whole checkpoint.",
                ),
                io.Combo.Input(
                    "audio_vae",
                    options=_part_names("audio_vae"),
                    default=SAME,
                    optional=True,
                    tooltip="The file with the audio VAE and the vocoder, if the checkpoint has none: a file in "
                    f"models/vae, for instance {V23.parts['audio_vae']}, or a whole checkpoint.",
                ),
                io.Combo.Input(
                    "connectors",
                    options=_part_names("connectors"),
                    default=SAME,
                    optional=True,
                    tooltip="The file with the text connectors or their projection, if the checkpoint has none: a file "
                    f"in models/text_encoders, for instance {V23.parts['connectors']}, a file in "
                    "models/diffusion_models, or a whole checkpoint.",
                ),
            ],
            outputs=[
                ModelIO.Output("transformer", display_name="model", tooltip="The transformer, for the samplers."),
                ConnectorsIO.Output("text_connectors", display_name="connectors", tooltip="For Load Text Encoder."),
                VideoVaeIO.Output("video_autoencoder", display_name="video_vae", tooltip="Pixels to latents and back."),
                AudioVaeIO.Output("audio_autoencoder", display_name="audio_vae", tooltip="For Audio Conditioning."),
                VocoderIO.Output("sound_decoder", display_name="vocoder", tooltip="For Decode Audio."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(
        cls,
        checkpoint: str | None = None,
        video_vae: str | None = None,
        audio_vae: str | None = None,
        connectors: str | None = None,
    ) -> bool | str:
        parts = {"video_vae": video_vae, "audio_vae": audio_vae, "connectors": connectors}

        def check(name: str) -> None:
            opened = _checkpoint(name, **parts)
            if None not in parts.values():  # a linked value is not known yet
                opened.check(projection=False)

        return files.verdict(check, checkpoint)

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, dtype: str, **parts: str) -> str:
        paths = [_checkpoint_path(checkpoint), *_part_paths(**parts).values()]
        return " ".join(map(files.stamp, paths))

    @classmethod
    def execute(
        cls, checkpoint: str, dtype: str, video_vae: str = SAME, audio_vae: str = SAME, connectors: str = SAME
    ) -> io.NodeOutput:
        opened = _checkpoint(checkpoint, video_vae=video_vae, audio_vae=audio_vae, connectors=connectors)
        opened.check(projection=False)
        for upscaler in _upscalers(cls.hidden):
            opened.check_upscaler(upscaler)  # now, rather than in Latent Upscale, which runs after the first stage
        other = "auto" if dtype == "fp8" else dtype
        report(cls, opened.told)
        return io.NodeOutput(
            memory.hold_transformer(opened.transformer, dtype, opened.path.name, opened.version),
            memory.checkpoint_connectors(opened, other),
            memory.hold_video_vae(opened, other),
            memory.hold_vae(opened.audio_vae, other),
            memory.hold_vae(opened.vocoder, "float32"),  # it is small, and bfloat16 would be audible
        )


class TextEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VTextEncoderLoader",
            display_name="LTX A2V Load Text Encoder",
            category=LOADERS,
            description="Opens Gemma, which reads the prompt, and joins it with the checkpoint's connectors.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=gemma_names(),
                    tooltip="For LTX-2.3 Gemma 3 12B in models/text_encoders: a folder with its config.json, tokenizer "
                    f"and safetensors files, for instance {MODELS['gemma'].name}, or one of ComfyUI's files, for "
                    f"instance {GEMMA_FILES[-1]}; or a diffusers folder in models/diffusers that holds it. For LTX-2.5 "
                    f"its own Gemma 4, {MODELS['text-encoder-2.5'].name}.",
                ),
                ConnectorsIO.Input("connectors", tooltip="From Load Model."),
                io.Combo.Input(
                    "dtype",
                    options=list(memory.MODEL_DTYPES),
                    default="auto",
                    tooltip="Precision of weights and computation. auto: bfloat16 if the device supports it, "
                    "float32 on the CPU. fp8: 16-bit weights are rounded to 8 bits, which halves the memory. Weights "
                    "that have 8 or 4 bits in their file always stay so.",
                ),
            ],
            outputs=[TextEncoderIO.Output("encoder", display_name="text_encoder", tooltip="For Text Encode.")],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        return files.verdict(_check_gemma, folder)

    @classmethod
    def fingerprint_inputs(cls, folder: str, **_: object) -> str:
        path = gemma_path(folder)
        marks = (path, path / GEMMA_MARK, path / ENCODER)
        return files.stamp(next(mark for mark in marks if mark.is_file()))

    @classmethod
    def execute(cls, folder: str, connectors: memory.Connectors | memory.Awaited, dtype: str) -> io.NodeOutput:
        path = gemma_path(folder)
        whole = connectors.completed(path)
        return io.NodeOutput(memory.hold_gemma(lambda chosen, **fp8: load_gemma(path, chosen, **fp8), dtype, whole))


class UpscalerLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VUpscalerLoader",
            display_name="LTX A2V Load Upscaler",
            category=LOADERS,
            description="Opens the latent upscaler that doubles width and height between the two stages.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files.model_files("latent_upscale_models"),
                    tooltip=f"A file in models/latent_upscale_models: {MODELS['upscaler'].name}.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(memory.DTYPES),
                    default="auto",
                    tooltip="Precision of weights and computation. auto: bfloat16 if the device supports it, "
                    "float32 on the CPU.",
                ),
            ],
            outputs=[UpscalerIO.Output("upsampler", display_name="upscaler", tooltip="For Latent Upscale.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return files.verdict(_upscaler_path, file)

    @classmethod
    def fingerprint_inputs(cls, file: str, dtype: str) -> str:
        return files.stamp(_upscaler_path(file))

    @classmethod
    def execute(cls, file: str, dtype: str) -> io.NodeOutput:
        path = _upscaler_path(file)
        return io.NodeOutput(memory.hold_upscaler(lambda chosen: load_upscaler(path, chosen), dtype, path))


def _report_output() -> io.Output:
    return io.String.Output(
        "report", display_name="report", tooltip="Says how many of the model's layers the LoRA changes, and how."
    )


def _lora_schema(
    *inputs: io.Input, node_id: str, display_name: str, description: str, more: tuple[io.Output, ...] = ()
) -> io.Schema:
    """The schema of a node that merges one LoRA at one strength. more: outputs after the usual ones."""
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category=LOADERS,
        description=description,
        inputs=[ModelIO.Input("model", tooltip="From Load Model or another LoRA."), *inputs],
        outputs=[
            ModelIO.Output("merged", display_name="model", tooltip="The model with this LoRA."),
            _report_output(),
            *more,
        ],
        hidden=[io.Hidden.unique_id],
    )


def _merged(node: type[io.ComfyNode], model: memory.Model, path: Path, strength: float) -> io.NodeOutput:
    (fit,), told = _fitting(path, model)
    return reported(node, model.with_lora(fit, strength), text=f"{told}; strength {strength:g}")


def _fitting(
    path: Path, model: memory.Model, encoder: memory.TextEncoder | None = None
) -> tuple[tuple[Match, ...], str]:
    """How the LoRA in that file fits the model and the encoder's connectors, if there is one, and a sentence on it.

    Raises InputError if it fits nothing.
    """
    loaded = load_lora(path)
    loaded.check_version(model.checkpoint or "the model", model.version)
    others = () if encoder is None else (match(loaded, encoder.connectors.module, optional=True),)
    fit = match(loaded, model.module, others)
    if warning := fit.warning_beside(*others):
        logging.warning(warning)
    return (fit, *others), f"{path.name}: {fit.told(*others)}"


class LoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _lora_schema(
            io.Combo.Input("lora", options=files.model_files("loras"), tooltip="A file in models/loras."),
            io.Float.Input(
                "strength", default=1.0, min=-4.0, max=4.0, step=0.05, tooltip="It was trained at strength 1."
            ),
            TextEncoderIO.Input(
                "text_encoder",
                optional=True,
                tooltip="From Load Text Encoder. It is needed only for a LoRA that also changes the text connectors; "
                "the report names such layers.",
            ),
            node_id="LTXA2VLora",
            display_name="LTX A2V LoRA",
            description="Merges a LoRA into the model, for instance a style or a person. Before Distilled LoRA it acts "
            "in both stages. A file that fits none of the model's weights is an error.",
            more=(
                TextEncoderIO.Output(
                    "merged_encoder",
                    display_name="text_encoder",
                    tooltip="For Text Encode: the linked text encoder with this LoRA in its connectors.",
                ),
            ),
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None) -> bool | str:
        return files.verdict(lambda name: _check_lora(_lora_path(name)), lora)

    @classmethod
    def fingerprint_inputs(cls, lora: str, **_: object) -> str:
        return files.stamp(_lora_path(lora))

    @classmethod
    def execute(
        cls, model: memory.Model, lora: str, strength: float, text_encoder: memory.TextEncoder | None = None
    ) -> io.NodeOutput:
        (fit, *others), told = _fitting(_lora_path(lora), model, text_encoder)
        if text_encoder is not None:
            text_encoder = text_encoder.with_lora(*others, strength)
        elif ELSEWHERE in fit.skipped.values():
            told += "; link text_encoder to apply it to the text connectors, too"
        line = report(cls, f"{told}; strength {strength:g}")
        return io.NodeOutput(model.with_lora(fit, strength), line, text_encoder, ui=shown(line))


class CameraLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _lora_schema(
            widget(
                "camera_lora",
                tooltip="dolly moves the camera in, out or sideways, jib moves it up or down, static holds it still; "
                "none does not change the model.",
            ),
            widget(
                "camera_lora_scale",
                "strength",
                tooltip="1 is the whole movement. Lower it if the picture loses detail or the lips stop moving.",
            ),
            node_id="LTXA2VCameraLora",
            display_name="LTX A2V Camera LoRA",
            description="Moves the camera with the LoRA for that movement. The node finds the file by its official "
            "name, in models/loras or any folder in it. Before Distilled LoRA it acts in both stages.",
        )

    @classmethod
    def validate_inputs(cls, camera_lora: str | None = None) -> bool | str:
        return files.verdict(lambda name: _check_lora(_camera_path(name)), camera_lora)

    @classmethod
    def fingerprint_inputs(cls, camera_lora: str, **_: object) -> str:
        path = _camera_path(camera_lora)
        return files.stamp(path) if path else NO_CAMERA

    @classmethod
    def execute(cls, model: memory.Model, camera_lora: str, strength: float) -> io.NodeOutput:
        path = _camera_path(camera_lora)
        return io.NodeOutput(model, "") if path is None else _merged(cls, model, path, strength)


class DistilledLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VDistilledLora",
            display_name="LTX A2V Distilled LoRA",
            category=LOADERS,
            description="Merges the distilled LoRA into the model at two strengths, one for each stage. The input "
            "model does not change. It is for an undistilled (dev) checkpoint.",
            inputs=[
                ModelIO.Input(
                    "model", tooltip="From Load Model, or from another LoRA, which then acts in both stages."
                ),
                io.Combo.Input(
                    "lora",
                    options=sorted(files.model_files("loras"), key=lambda name: not is_distilled(name)),
                    tooltip=f"A file in models/loras: {MODELS['distilled-lora'].name}.",
                ),
                widget("distill_lora_first_pass_scale", "first_pass_strength", display_name="first_stage_strength"),
                widget("distill_lora_second_pass_scale", "second_pass_strength", display_name="second_stage_strength"),
            ],
            outputs=[
                ModelIO.Output("first_pass", display_name="first stage model", tooltip="For the first sampler."),
                ModelIO.Output("second_pass", display_name="second stage model", tooltip="For the second sampler."),
                _report_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, lora: str | None = None) -> bool | str:
        return files.verdict(lambda name: _check_lora(_distilled_path(name)), lora)

    @classmethod
    def fingerprint_inputs(cls, lora: str, **_: object) -> str:
        return files.stamp(_distilled_path(lora))

    @classmethod
    def execute(
        cls, model: memory.Model, lora: str, first_pass_strength: float, second_pass_strength: float
    ) -> io.NodeOutput:
        (fit,), told = _fitting(_distilled_path(lora), model)
        strengths = first_pass_strength, second_pass_strength
        warning = overdone(model.checkpoint, strengths)
        if warning:
            logging.warning(warning)
        note = "strength {:g} in the first stage, {:g} in the second".format(*strengths)
        return reported(
            cls,
            *(model.with_lora(fit, strength) for strength in strengths),
            text="\n".join([f"{told}; {note}", *([warning] if warning else [])]),
        )


NODES = (ModelLoader, TextEncoderLoader, UpscalerLoader, DistilledLora, LoraLoader, CameraLora)
