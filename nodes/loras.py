"""Nodes that merge LoRAs into the model: any LoRA, a camera movement's, and the distilled one."""

from __future__ import annotations

import logging
from pathlib import Path, PureWindowsPath

from comfy_api.latest import io

from ..ltx.errors import InputError
from ..ltx.models import MODELS, V23, V25, is_distilled, overdone, size
from ..ltx.request import PARAMETERS
from ..ltx.weights.lora import ELSEWHERE, Match, load_lora, match
from . import files, memory
from .loaders import LOADERS
from .progress import report, reported, shown
from .types import ModelIO, TextEncoderIO
from .widgets import widget

WANTED_DISTILLED = files.published(MODELS["distilled-lora"])
WANTED_LORA = "choose one that is there"
NO_CAMERA = "none"
NOTABLE = 10**9  # bytes of host memory that merging takes; less matters to nobody who computes with such a model


def _distilled_path(name: str) -> Path:
    return files.model_file("loras", name, files.wanted(name, WANTED_DISTILLED))


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


def _check_lora(path: Path | None, referenced: bool = False) -> None:
    """Raises InputError if the file holds no LoRA that can be used. Only its header is read. referenced: whether it may
    be an IC-LoRA; the sampler then asks for its reference."""
    if path is not None:
        load_lora(path, referenced)


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
    merged = model.with_lora(fit, strength)
    return reported(node, merged, text=f"{told}; strength {strength:g}{_on_host(merged)}")


def _on_host(*handles: memory.Adapted) -> str:
    """What the report says of the host memory that merging takes for all these models, after its other words."""
    made = sum(handle.merged_on_host for handle in handles)
    return f"; merged on the CPU, the changed weights take {size(made)} of host memory" if made >= NOTABLE else ""


def _fitting(
    path: Path, model: memory.Model, encoder: memory.TextEncoder | None = None, referenced: bool = False
) -> tuple[tuple[Match, ...], str]:
    """How the LoRA in that file fits the model and the encoder's connectors, if there is one, and a sentence on it.
    referenced: as for `_check_lora`.

    Raises InputError if it fits nothing.
    """
    loaded = load_lora(path, referenced)
    foreign = loaded.check_version(model.checkpoint or "the model", model.version)
    others = () if encoder is None else (match(loaded, encoder.connectors.module, optional=True),)
    fit = match(loaded, model.module, others)
    if warning := fit.warning_beside(*others):
        logging.warning(warning)
    return (fit, *others), "; ".join(filter(None, [f"{path.name}: {fit.told(*others)}", foreign]))


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
        return files.verdict(lambda name: _check_lora(_lora_path(name), True), lora)

    @classmethod
    def fingerprint_inputs(cls, lora: str | None, **_: object) -> str:
        return files.stamped(_lora_path, lora)

    @classmethod
    def execute(
        cls, model: memory.Model, lora: str, strength: float, text_encoder: memory.TextEncoder | None = None
    ) -> io.NodeOutput:
        (fit, *others), told = _fitting(_lora_path(lora), model, text_encoder, referenced=True)
        if text_encoder is not None:
            text_encoder = text_encoder.with_lora(*others, strength)
        elif ELSEWHERE in fit.skipped.values():
            told += "; link text_encoder to apply it to the text connectors, too"
        merged = model.with_lora(fit, strength)
        beside = [] if text_encoder is None else [text_encoder.connectors]
        line = report(cls, f"{told}; strength {strength:g}{_on_host(merged, *beside)}")
        return io.NodeOutput(merged, line, text_encoder, ui=shown(line))


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
    def fingerprint_inputs(cls, camera_lora: str | None, **_: object) -> str:
        return files.stamped(_camera_path, camera_lora)

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
                    tooltip=f"A file in models/loras: {MODELS[V23.distilled_lora].name}, or for {V25.name} "
                    f"{MODELS[V25.distilled_lora].name}.",
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
    def fingerprint_inputs(cls, lora: str | None, **_: object) -> str:
        return files.stamped(_distilled_path, lora)

    @classmethod
    def execute(
        cls, model: memory.Model, lora: str, first_pass_strength: float, second_pass_strength: float
    ) -> io.NodeOutput:
        (fit,), told = _fitting(_distilled_path(lora), model)
        strengths = first_pass_strength, second_pass_strength
        warning = overdone(model.checkpoint, strengths)
        if warning:
            logging.warning(warning)
        stages = [model.with_lora(fit, strength) for strength in strengths]
        note = "strength {:g} in the first stage, {:g} in the second".format(*strengths)
        note += _on_host(max(stages, key=lambda stage: stage.merged_on_host))  # one stage is merged at a time
        return reported(
            cls,
            *stages,
            text="\n".join([f"{told}; {note}", *([warning] if warning else [])]),
        )


NODES = (DistilledLora, LoraLoader, CameraLora)
