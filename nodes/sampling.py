"""Sampling: the schedule, the guidance, and one pass of the transformer. The sampler is used twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..ltx.conditioning import AudioCondition, Guide
from ..ltx.errors import InputError
from ..ltx.guidance import NONE
from ..ltx.guidance import Guidance as Scales
from ..ltx.latents import Noise, pixel_frames
from ..ltx.pipeline import grid, sample
from ..ltx.samplers import Latents
from ..ltx.schedules import REFINE, SCHEDULES
from ..ltx.text import TextContext
from . import files, memory
from .latents import samples_of
from .progress import Progress, preview
from .types import CATEGORY, AudioIO, GuidanceIO, GuidesIO, ModelIO, TextIO
from .widgets import widget

SAMPLING = f"{CATEGORY}/Sampling"
AUTO = "auto"


@dataclass(frozen=True, eq=False)
class NextNoise:
    """A native NOISE that goes on where a pass stopped drawing: one seed drives both passes, in sequence."""

    noise: Noise

    @property
    def seed(self) -> int:
        return self.noise.seed

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """For stock samplers: noise of the latent's shape, float32 on the CPU."""
        (drawn,), _ = self.noise.draw(tuple(input_latent["samples"].shape))
        return drawn


class Scheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VScheduler",
            display_name="LTX A2V Scheduler",
            category=SAMPLING,
            description="How the noise falls. The second pass has its own three steps, whatever the first one's are.",
            inputs=[widget("scheduler"), widget("num_inference_steps", "steps", step=1)],
            outputs=[
                io.Sigmas.Output(
                    "first_pass", display_name="first pass sigmas", tooltip="From 1 to 0, in these steps."
                ),
                io.Sigmas.Output(
                    "second_pass", display_name="second pass sigmas", tooltip="0.909 to 0 in three steps."
                ),
            ],
        )

    @classmethod
    def execute(cls, scheduler: str, steps: int) -> io.NodeOutput:
        schedule = SCHEDULES[files.choice("scheduler", scheduler, tuple(SCHEDULES))]
        return io.NodeOutput(schedule(steps), torch.tensor(REFINE))


class Guidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VGuidance",
            display_name="LTX A2V Guidance",
            category=SAMPLING,
            description="How the first pass is guided. Each scale that is not neutral costs one more pass of the "
            "transformer in every step; a sampler without guidance takes one.",
            inputs=[
                widget("video_cfg_scale", "cfg", step=0.1),
                widget("video_stg_scale", "stg", step=0.1),
                widget("video_rescaling_scale", "rescale"),
                widget("video_modality_scale", "modality", step=0.1),
                io.String.Input(
                    "stg_blocks",
                    default=AUTO,
                    tooltip="Transformer blocks that STG perturbs, for instance 28 or 27, 28. auto: block 28 of 48, in "
                    "proportion for another depth.",
                ),
            ],
            outputs=[GuidanceIO.Output("scales", display_name="guidance", tooltip="For the first sampler.")],
        )

    @classmethod
    def execute(cls, cfg: float, stg: float, rescale: float, modality: float, stg_blocks: str) -> io.NodeOutput:
        return io.NodeOutput(Scales(cfg, stg, rescale, modality, _blocks(stg_blocks)))


def _blocks(text: str) -> tuple[int, ...]:
    """ "28, 29" → (28, 29); "auto" or nothing → (): the model's default."""
    parts = text.replace(",", " ").split()
    if parts in ([], [AUTO]):
        return ()
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"stg_blocks: {text!r} is not {AUTO} or block numbers like 28, 29.")
    return tuple(int(part) for part in parts)


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VSampler",
            display_name="LTX A2V Sampler",
            category=SAMPLING,
            description="One pass: from noise to a video latent that moves with the audio. Used twice: at half the "
            "size with guidance, then, from the upscaled latent and the first sampler's noise, at full size without.",
            inputs=[
                ModelIO.Input("model", tooltip="From Load Model or a LoRA."),
                io.Noise.Input("noise", tooltip="First pass: RandomNoise. Second pass: the first sampler's noise."),
                io.Sigmas.Input("sigmas", tooltip="From Scheduler, or any schedule that falls from 1."),
                TextIO.Input("positive", tooltip="What is to be seen."),
                AudioIO.Input("audio", tooltip="From Audio Conditioning."),
                io.Latent.Input("latent", tooltip="First pass: the empty latent. Second pass: the upscaled one."),
                TextIO.Input("negative", optional=True, tooltip="What is not to be seen; needed where cfg is not 1."),
                GuidanceIO.Input("guidance", optional=True, tooltip="From Guidance; without it one pass a step."),
                GuidesIO.Input("guides", optional=True, tooltip="Images, encoded at this pass's size."),
                widget("gradient_estimation_gamma", step=0.1),
            ],
            outputs=[
                io.Latent.Output("denoised", display_name="latent", tooltip="For Latent Upscale or Decode."),
                io.Noise.Output("next_noise", display_name="next noise", tooltip="For the second sampler."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: memory.Model,
        noise: Any,
        sigmas: Tensor,
        positive: TextContext,
        audio: AudioCondition,
        latent: dict[str, Any],
        negative: TextContext | None = None,
        guidance: Scales | None = None,
        guides: tuple[Guide, ...] = (),
        gradient_estimation_gamma: float = 0.0,
    ) -> io.NodeOutput:
        progress = Progress(cls.hidden.unique_id)
        samples = samples_of(latent)
        if pixel_frames(samples) != audio.frames:
            raise InputError(
                f"latent: it is {pixel_frames(samples)} frames long and the audio was encoded for {audio.frames}; "
                "give both the same number of frames."
            )
        progress(0, len(sigmas) - 1)
        (module,) = memory.use(model, memory_required=memory.sampling_memory(model.module, samples))

        def on_step(done: int, total: int, x0: Latents) -> None:
            progress(done, total, preview(grid(x0.video, samples)))

        denoised, _, after = sample(
            module,
            latent=samples,
            sigmas=sigmas,
            positive=positive,
            negative=negative,
            audio=audio,
            guides=guides,
            guidance=guidance or NONE,
            gamma=gradient_estimation_gamma,
            noise=noise.noise if isinstance(noise, NextNoise) else Noise(noise.seed),
            device=module.device,
            on_step=on_step,
            on_block=progress.check,
        )
        return io.NodeOutput({"samples": memory.to_graph(denoised)}, NextNoise(after))


NODES = (Scheduler, Guidance, Sampler)
