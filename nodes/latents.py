"""Nodes for the size of the video, as empty latents, and for the upscale between the two stages."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..ltx.diffusion.upscale import PIECE, upscale, upscale_long
from ..ltx.grid import CHANNELS, video_shape
from ..ltx.plan import choose_size
from ..ltx.request import AUTO, PARAMETERS, SIZES, check_value
from . import activations, files, memory
from .audio import frames_input
from .film import CUTS, HERE, KEPT
from .progress import Progress, reported
from .taking.latent import MASK, samples_of
from .taking.picture import size_of
from .types import CATEGORY, ModelIO, UpscalerIO, VideoVaeIO
from .widgets import aliases, widget

LATENTS = f"{CATEGORY}/Latents"


CUSTOM = "custom"


class VideoSize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        known = PARAMETERS["video_size"]
        width, height = SIZES[known.default]
        side = {"min": int(known.minimum), "max": int(known.maximum), "step": 32}
        return io.Schema(
            node_id="LTXA2VVideoSize",
            display_name="LTX A2V Video Size",
            category=LATENTS,
            description="Sets the size and length of the video, as empty latents. With two stages the first one works "
            "at half the size. Width and height are rounded up to a multiple of 64 (of 32 with one stage); above the "
            "area of 1920×1088 both are scaled down.",
            **aliases("resolution", "aspect ratio", "duration"),
            inputs=[
                io.Combo.Input(
                    "video_size",
                    options=[CUSTOM, *known.choices],
                    default=known.default,
                    tooltip="A preset; auto for the size of the connected image; custom for width and height below.",
                ),
                io.Int.Input("width", default=width, **side, tooltip="Width in pixels. It acts at custom."),
                io.Int.Input("height", default=height, **side, tooltip="Height in pixels. It acts at custom."),
                frames_input(),
                widget(
                    "use_multiscale",
                    "two_passes",
                    display_name="two_stages",
                    tooltip="On: half the size first, then Latent Upscale and a second sampler. Off: full size at once "
                    "with one sampler, which is slower and needs more memory.",
                ),
                io.Image.Input("first_image", optional=True, tooltip="At auto, the video gets its size."),
                io.Image.Input(
                    "end_image", optional=True, tooltip="At auto without a first image, the video gets its size."
                ),
                ModelIO.Input(
                    "model",
                    optional=True,
                    tooltip="The model with an IC-LoRA: the size is rounded up until its smaller reference fits, too.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "first",
                    display_name="first stage",
                    tooltip="An empty latent at the first stage's size. For the first sampler.",
                ),
                io.Latent.Output(
                    "second",
                    display_name="full size",
                    tooltip="An empty latent at the video's size. It gives the second stage's images their size.",
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="Says which size is used, and what was rounded."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        video_size: str,
        width: int,
        height: int,
        frames: int,
        two_passes: bool,
        first_image: Tensor | None = None,
        end_image: Tensor | None = None,
        model: memory.Model | None = None,
    ) -> io.NodeOutput:
        files.choice("video_size", video_size, (CUSTOM, *PARAMETERS["video_size"].choices))
        custom = {"width": width, "height": height}
        asked = check_value("video_size", custom if video_size == CUSTOM else video_size)
        images = tuple(None if image is None else size_of(image) for image in (first_image, end_image))
        wide, high, notes = choose_size(asked, two_passes, images, downscale_of(model))
        if video_size == AUTO and not any(images):
            notes.append("no image is connected, so auto is landscape_16_9")
        divisor = 2 if two_passes else 1
        first, second = (
            {"samples": memory.to_graph(torch.zeros(1, CHANNELS, *video_shape(frames, high // d, wide // d)))}
            for d in (divisor, 1)
        )
        note = "; ".join([f"{wide}×{high}, {frames} frames", *notes])
        return reported(cls, first, second, text=note)


def downscale_of(model: memory.Model | None) -> int:
    """How many times smaller than the video the references are that a model's IC-LoRAs were made for. Where these
    differ, Reference says so."""
    return max((downscale for downscale, _ in model.references), default=1) if model is not None else 1


class LatentUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VLatentUpscale",
            display_name="LTX A2V Latent Upscale",
            category=LATENTS,
            description="Doubles width and height of the first stage's latent. The second sampler refines the result.",
            inputs=[
                UpscalerIO.Input("upscaler", tooltip="From Load Upscaler."),
                VideoVaeIO.Input("video_vae", tooltip="From Load Model: its statistics scale the latents."),
                io.Latent.Input("latent", tooltip="From the first sampler."),
            ],
            outputs=[io.Latent.Output("upscaled", display_name="latent", tooltip="Twice as wide and high.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, upscaler: memory.Upscaler, video_vae: memory.Handle, latent: dict[str, Any]) -> io.NodeOutput:
        upscaler.check(video_vae)
        samples = samples_of(latent)
        cuts, here = latent.get(CUTS), latent.get(HERE)  # of a film in windows
        if here is not None and not here:  # all of it was made before
            _, channels, frames, height, width = samples.shape
            return io.NodeOutput({"samples": memory.to_graph(torch.zeros(1, channels, frames, 2 * height, 2 * width))})
        progress = Progress(cls.hidden.unique_id)
        progress(0, samples.shape[2])
        room = activations.upscaling_memory(
            upscaler.module, video_vae.module, samples if cuts is None else samples[:, :, :PIECE]
        )
        # The VAE need not be loaded, because only two of its vectors are read, on whatever device they are.
        (upsampler,) = memory.use(upscaler, memory_required=room)
        if cuts is None:
            result = upscale(upsampler, video_vae.module, samples)
        else:
            result = upscale_long(upsampler, video_vae.module, samples, cuts, on_piece=progress, only=here)
        progress(samples.shape[2], samples.shape[2])
        kept = {key: latent[key] for key in (MASK, KEPT) if latent.get(key) is not None}  # for the second stage, too
        return io.NodeOutput({"samples": memory.to_graph(result), **kept})


NODES = (VideoSize, LatentUpscale)
