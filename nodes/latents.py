"""The size of the video, as empty latents; and the step between the two passes."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..ltx.errors import InputError
from ..ltx.latents import CHANNELS, video_shape
from ..ltx.request import PARAMETERS, SIZES, snap_size
from ..ltx.upscale import upscale
from . import memory
from .progress import Progress
from .types import CATEGORY, UpscalerIO, VideoVaeIO
from .widgets import widget

LATENTS = f"{CATEGORY}/Latents"


def samples_of(latent: dict[str, Any]) -> Tensor:
    """The tensor of a native LATENT [1, 128, F, H, W]. Errors: another kind of latent, or a batch."""
    samples = latent["samples"]
    if getattr(samples, "is_nested", False) or samples.ndim != 5 or samples.shape[:2] != (1, CHANNELS):
        shape = "nested" if getattr(samples, "is_nested", False) else list(samples.shape)
        raise InputError(
            f"latent: it is {shape}; one LTX video latent [1, {CHANNELS}, frames, height, width] is needed."
        )
    return samples


class EmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        width, height = SIZES[PARAMETERS["video_size"].default]
        side = {"min": 64, "max": 4096, "step": 32}
        return io.Schema(
            node_id="LTXA2VEmptyLatent",
            display_name="LTX A2V Video Size",
            category=LATENTS,
            description="Size and length of the video, as empty latents. With two passes the first one works at half "
            "the size. Width and height are rounded up to a multiple of 64 (of 32 with one pass); past the area of "
            "1920×1088 both are scaled down.",
            inputs=[
                io.Int.Input("width", default=width, **side, tooltip="Pixels across."),
                io.Int.Input("height", default=height, **side, tooltip="Pixels down."),
                io.Int.Input(
                    "frames",
                    default=PARAMETERS["num_frames"].default,
                    min=1,
                    max=100_000,
                    step=8,
                    tooltip="From Frame Count. One more than a multiple of 8.",
                ),
                widget("use_multiscale", "two_passes"),
            ],
            outputs=[
                io.Latent.Output(
                    "first",
                    display_name="first pass",
                    tooltip="Empty, at the first pass's size. For the first sampler.",
                ),
                io.Latent.Output(
                    "second",
                    display_name="full size",
                    tooltip="Empty, at the video's size: tells the second pass's images how large to be.",
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="The size used, and from what it was rounded."
                ),
            ],
        )

    @classmethod
    def execute(cls, width: int, height: int, frames: int, two_passes: bool) -> io.NodeOutput:
        wide, high = snap_size(width, height, two_passes)
        divisor = 2 if two_passes else 1
        first, second = (
            {"samples": memory.to_graph(torch.zeros(1, CHANNELS, *video_shape(frames, high // d, wide // d)))}
            for d in (divisor, 1)
        )
        report = f"{wide}×{high}, {frames} frames"
        if (wide, high) != (width, height):
            report += f"; size taken from {width}×{height}"
        return io.NodeOutput(first, second, report, ui={"text": [report]})


class LatentUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VLatentUpscale",
            display_name="LTX A2V Latent Upscale",
            category=LATENTS,
            description="Doubles width and height of the first pass's latents. The second sampler refines the result.",
            inputs=[
                UpscalerIO.Input("upscaler", tooltip="From Load Upscaler."),
                VideoVaeIO.Input("video_vae", tooltip="From Load Model: its statistics scale the latents."),
                io.Latent.Input("samples", tooltip="From the first sampler."),
            ],
            outputs=[io.Latent.Output("upscaled", display_name="latent", tooltip="Twice as wide and high.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, upscaler: memory.Handle, video_vae: memory.Handle, samples: dict[str, Any]) -> io.NodeOutput:
        progress = Progress(cls.hidden.unique_id)
        progress(0, 1)
        latent = samples_of(samples)
        room = memory.upscaling_memory(upscaler.module, latent)
        # Of the VAE only two vectors are read, wherever they are: it need not be loaded.
        (upsampler,) = memory.use(upscaler, memory_required=room)
        result = upscale(upsampler, video_vae.module, latent)
        progress(1, 1)
        return io.NodeOutput({"samples": memory.to_graph(result)})


NODES = (EmptyLatent, LatentUpscale)
