"""What a pass is told to keep: the sound, and images at the first and the last frame."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ltx.diffusion.conditioning import AudioCondition, Guide, check_strength
from ..ltx.diffusion.encode import encode_image
from ..ltx.diffusion.sound import encode_audio
from ..ltx.errors import InputError
from ..ltx.latents import SPACE_SCALE, pixel_frames
from ..ltx.media.images import CRF, compress, fit, from_float
from ..ltx.media.rates import frame_rate
from . import memory
from .audio import frames_input, to_track
from .latents import samples_of
from .progress import Progress
from .types import CATEGORY, AudioIO, AudioVaeIO, GuidesIO, VideoVaeIO
from .widgets import widget

CONDITIONING = f"{CATEGORY}/Conditioning"


class AudioConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VAudioConditioning",
            display_name="LTX A2V Audio Conditioning",
            category=CONDITIONING,
            description="Encodes the sound that drives the video, cut to the video's length or followed by silence. At "
            "strength 1 it stays as it is; below, the first pass may change it, and Decode Audio gives the result.",
            inputs=[
                AudioVaeIO.Input("audio_vae", tooltip="From Load Model."),
                io.Audio.Input("audio", tooltip="From Preprocess Audio or Load Audio: any rate, mono to surround."),
                frames_input(),
                widget("fps", step=0.001, tooltip="From Frame Count."),
                widget(
                    "audio_strength",
                    "strength",
                    tooltip="1 keeps the track, and the picture follows it. Lower it to have the model change or renew "
                    "the sound: 0.9 touches it up, 0 makes another one.",
                ),
            ],
            outputs=[
                AudioIO.Output("condition", display_name="audio", tooltip="For the first sampler and Decode Audio.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, audio_vae: memory.Handle, audio: dict[str, Any], frames: int, fps: float, strength: float = 1.0
    ) -> io.NodeOutput:
        progress = Progress(cls.hidden.unique_id)
        progress(0, 1)
        check_strength("audio_strength", strength)
        track, rate = to_track(audio), frame_rate(fps)
        (vae,) = memory.use(audio_vae)
        latent = memory.to_graph(encode_audio(vae, track, frames, rate))
        progress(1, 1)
        return io.NodeOutput(AudioCondition(latent, frames, rate, strength))


def _image_inputs(strength: str, where: str) -> list[io.Input]:
    return [
        VideoVaeIO.Input("video_vae", tooltip="From Load Model."),
        io.Image.Input("image", tooltip=f"{where} Of a batch the first image is taken."),
        io.Latent.Input("latent", tooltip="The latent of the pass: the image is scaled to its size and cut to fit."),
        widget(strength, "strength"),
        GuidesIO.Input("guides", optional=True, tooltip="Other images of the same pass."),
        io.Int.Input(
            "compression",
            default=CRF,
            min=0,
            max=51,
            optional=True,
            tooltip="H.264 CRF of a round trip before encoding. The model knows compressed video: a cleaner image "
            "freezes the motion. 0 skips it.",
        ),
    ]


class ImageConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VImageConditioning",
            display_name="LTX A2V First Image",
            category=CONDITIONING,
            description="The video begins with this image: image to video (i2v), a start frame, a portrait. One node "
            "for each pass, since each has its own size. At strength 0 the image is left out.",
            inputs=_image_inputs("image_strength", "The first frame."),
            outputs=[GuidesIO.Output("images", display_name="guides", tooltip="For the pass's sampler.")],
        )

    @classmethod
    def execute(
        cls,
        video_vae: memory.Handle,
        image: Tensor,
        latent: dict[str, Any],
        strength: float,
        guides: tuple[Guide, ...] = (),
        compression: int = CRF,
    ) -> io.NodeOutput:
        return io.NodeOutput((*guides, *_guide(video_vae, image, samples_of(latent), 0, strength, compression)))


class EndImageConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VEndImageConditioning",
            display_name="LTX A2V End Image",
            category=CONDITIONING,
            description="The video ends with this image, its last frame: a keyframe. One node for each pass, since "
            "each has its own size. At strength 0 the image is left out.",
            inputs=_image_inputs("end_image_strength", "The last frame."),
            outputs=[GuidesIO.Output("images", display_name="guides", tooltip="For the pass's sampler.")],
        )

    @classmethod
    def execute(
        cls,
        video_vae: memory.Handle,
        image: Tensor,
        latent: dict[str, Any],
        strength: float,
        guides: tuple[Guide, ...] = (),
        compression: int = CRF,
    ) -> io.NodeOutput:
        samples = samples_of(latent)
        last = pixel_frames(samples) - 1
        if last == 0:
            raise InputError("end image: a video of one frame has no other frame for it; ask for 9 frames or more.")
        return io.NodeOutput((*guides, *_guide(video_vae, image, samples, last, strength, compression)))


def _guide(
    video_vae: memory.Handle, image: Tensor, latent: Tensor, frame: int, strength: float, crf: int
) -> tuple[Guide, ...]:
    """The image, encoded at the latent's size; nothing at strength 0."""
    if strength == 0:
        return ()
    height, width = (side * SPACE_SCALE for side in latent.shape[3:])
    pixels = fit(compress(from_float(image[0].cpu()), crf), width, height)
    (vae,) = memory.use(video_vae, memory_required=memory.encoding_memory(video_vae.module, height, width))
    return (Guide(memory.to_graph(encode_image(vae, pixels)), frame, strength),)


NODES = (AudioConditioning, ImageConditioning, EndImageConditioning)
