"""Nodes that load models from ComfyUI's models folders. Nothing is downloaded; errors name what is missing.

A loader runs again when ComfyUI's cache has dropped its output, and when the file has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from comfy_api.latest import io

from ..ltx.errors import InputError
from ..ltx.models import ENCODER, GEMMA_FILES, GEMMA_FILES_PAGE, MODELS, PART_FOLDERS, V23, V25, VERSIONS, named_file
from ..ltx.prompt.gemma import check_gemma, load_gemma
from ..ltx.weights.checkpoint import Checkpoint, load_checkpoint, load_upscaler
from . import files, memory, queued
from .progress import report, shown
from .types import CATEGORY, AudioVaeIO, ConnectorsIO, ModelIO, TextEncoderIO, UpscalerIO, VideoVaeIO, VocoderIO
from .widgets import aliases

LOADERS = f"{CATEGORY}/Loaders"
WANTED_GEMMA = f"put the whole repository {MODELS['gemma'].page} there, or {GEMMA_FILES[-1]} of {GEMMA_FILES_PAGE}"
WANTED_CHECKPOINT, WANTED_UPSCALER = (files.published(MODELS[key]) for key in ("dev", "upscaler"))
DIFFUSERS_MARK = "transformer/config.json"
GEMMA_MARK = "config.json"
SAME = "from the checkpoint"
SPLIT = tuple(model for model in MODELS.values() if model.folder == "diffusion_models")
"""Published transformers that are files of their own."""
ENCODERS_25 = (MODELS[V25.encoder], MODELS["text-encoder-int8-2.5"])


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
    wanted = files.wanted(name, WANTED_CHECKPOINT)
    if name in files.model_folders("diffusers", DIFFUSERS_MARK):
        return files.model_folder("diffusers", name, DIFFUSERS_MARK, wanted)
    if name in files.gguf_files("diffusion_models"):
        return files.gguf_file("diffusion_models", name, wanted)
    kinds = ("checkpoints", "diffusion_models")
    usual = MODELS[V25.checkpoint].folder if named_file(name) in SPLIT else kinds[0]
    return files.model_file(next((k for k in kinds if name in files.model_files(k)), usual), name, wanted)


def _part_names(part: str) -> list[str]:
    names = (name for kind in PART_FOLDERS[part] for name in files.model_files(kind))
    return files.Checked([SAME, *dict.fromkeys(names)])


def _part_paths(**names: str | None) -> dict[str, Path]:
    """part=value of its widget → the paths of the named files."""
    paths = {}
    for part, name in names.items():
        if name is None or name == SAME:
            continue
        kinds = PART_FOLDERS[part]
        kind = next((kind for kind in kinds if files.find(name, files.model_files(kind))), kinds[0])
        wanted = files.wanted(name, f"choose {SAME!r} or a file that has it")
        paths[part] = files.model_file(kind, name, wanted)
    return paths


def _checkpoint(name: str, **parts: str | None) -> Checkpoint:
    """Raises InputError, which tells of all missing files at once."""
    paths, missing = {}, []
    for part, file in {"path": name, **parts}.items():
        try:
            paths |= {part: _checkpoint_path(file)} if part == "path" else _part_paths(**{part: file})
        except InputError as error:
            missing.append(str(error))
    if missing:
        raise InputError(" ".join(missing))
    return load_checkpoint(**paths)


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
    if named_file(name) in ENCODERS_25:
        return files.model_file("text_encoders", name, files.wanted(name, WANTED_GEMMA))
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
    return files.model_file("latent_upscale_models", name, files.wanted(name, WANTED_UPSCALER))


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


class ModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VModelLoader",
            display_name="LTX A2V Load Model",
            category=LOADERS,
            description=f"Opens an LTX checkpoint, version {VERSIONS}: transformer, text connectors, both VAEs and "
            "the vocoder. Weights are read when a node first computes with them.",
            **aliases("checkpoint", "diffusion model", "gguf", *(f"LTX {each.version}" for each in (V23, V25))),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=_checkpoint_names(),
                    tooltip="An LTX file in models/checkpoints (bf16, fp8 or NVFP4), for instance "
                    f"{MODELS['dev'].name}; a diffusers folder in models/diffusers; or the transformer alone, "
                    "safetensors (also int8, NVFP4 and MXFP8) or GGUF, in models/diffusion_models.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(memory.MODEL_DTYPES),
                    default="auto",
                    tooltip="Precision of weights and computation. auto: bfloat16 if the device supports it, "
                    "float32 on the CPU. fp8: as auto, with the weights of the transformer's blocks rounded to 8 bits. "
                    "Weights that have 8 or 4 bits in their file stay so.",
                ),
                io.Combo.Input(
                    "video_vae",
                    options=_part_names("video_vae"),
                    default=SAME,
                    optional=True,
                    tooltip="The file with the video VAE, if the checkpoint has none: a file in models/vae, for "
                    f"instance {V23.parts['video_vae']}, or for {V25.name} {V25.parts['video_vae']}; or a whole "
                    "checkpoint.",
                ),
                io.Combo.Input(
                    "audio_vae",
                    options=_part_names("audio_vae"),
                    default=SAME,
                    optional=True,
                    tooltip="The file with the audio VAE and the vocoder, if the checkpoint has none: a file in "
                    f"models/vae, for instance {V23.parts['audio_vae']}, or for {V25.name} {V25.parts['audio_vae']}; "
                    "or a whole checkpoint.",
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
        *,
        video_vae: str | None = None,
        audio_vae: str | None = None,
        connectors: str | None = None,
    ) -> bool | str:
        """ComfyUI passes the checkpoint alone, because it would repeat an error for each argument that it passes; the
        parts are read from the graph that is being queued."""
        parts = {"video_vae": video_vae, "audio_vae": audio_vae, "connectors": connectors}
        if cls.hidden is not None:
            parts |= {name: value for name, value in queued.values(cls.hidden.unique_id).items() if name in parts}

        def check(name: str) -> None:
            opened = _checkpoint(name, **parts)
            if None not in parts.values():  # a linked value is not known yet
                opened.check(projection=False)

        return files.verdict(check, checkpoint)

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None, dtype: str | None, **parts: str | None) -> str:
        stamps = map(files.stamp, _part_paths(**parts).values())
        return " ".join([files.stamped(_checkpoint_path, checkpoint), *stamps])

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
            memory.hold_transformer(opened.transformer, dtype, opened.path.name, opened.version, opened.path),
            memory.checkpoint_connectors(opened, other),
            memory.hold_video_vae(opened, other),
            memory.hold_vae(opened.audio_vae, other),
            memory.hold_vae(opened.vocoder, "float32"),  # it is small, and bfloat16 would be audible
            ui=shown(opened.told),
        )


class TextEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VTextEncoderLoader",
            display_name="LTX A2V Load Text Encoder",
            category=LOADERS,
            description="Opens Gemma, which reads the prompt, and joins it with the checkpoint's connectors.",
            **aliases("gemma", "load clip"),
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
    def fingerprint_inputs(cls, folder: str | None, **_: object) -> str:
        return files.stamped(gemma_path, folder)

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
                    tooltip=f"A file in models/latent_upscale_models: {MODELS[V23.upscaler].name}, or for "
                    f"{V25.name} {MODELS[V25.upscaler].name}.",
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
    def fingerprint_inputs(cls, file: str | None, dtype: str | None) -> str:
        return files.stamped(_upscaler_path, file)

    @classmethod
    def execute(cls, file: str, dtype: str) -> io.NodeOutput:
        path = _upscaler_path(file)
        return io.NodeOutput(memory.hold_upscaler(lambda chosen: load_upscaler(path, chosen), dtype, path))


NODES = (ModelLoader, TextEncoderLoader, UpscalerLoader)
