"""Nodes for what a stage keeps: the sound, and images at the first, the last and any other frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..ltx.diffusion.conditioning import AudioCondition, Guide, check_strength
from ..ltx.diffusion.encode import encode_image
from ..ltx.diffusion.sound import encode_audio
from ..ltx.errors import InputError
from ..ltx.grid import AUDIO_BINS, AUDIO_CHANNELS, audio_length
from ..ltx.latents import pixel_frames, pixel_size
from ..ltx.media.audio import Track, part_from
from ..ltx.media.images import compress, fit, load_image
from ..ltx.media.rates import frame_rate
from ..ltx.models import V23, V25
from ..ltx.windows import cut_windows
from . import activations, files, memory
from .audio import MOST_FRAMES, frames_input
from .film import Cut, FilmSound, Retake, Timeline, check_clip, check_heard, heard, placed_in_film
from .progress import Progress, report
from .taking.latent import samples_of
from .taking.picture import others, to_picture
from .types import CATEGORY, AudioIO, AudioVaeIO, GuidesIO, RetakeIO, TimelineIO, VideoVaeIO, WindowsIO
from .widgets import aliases, widget

CONDITIONING = f"{CATEGORY}/Conditioning"


class AudioConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VAudioConditioning",
            display_name="LTX A2V Audio Conditioning",
            category=CONDITIONING,
            description="Encodes the sound that drives the video, cut to the video's length or followed by silence. At "
            "strength 1 it stays unchanged; at a lower strength the first stage may change it, and Decode Audio gives "
            "the result.",
            inputs=[
                AudioVaeIO.Input("audio_vae", tooltip="From Load Model."),
                io.Audio.Input("audio", tooltip="From Preprocess Audio or Load Audio: any rate, mono to surround."),
                frames_input(),
                widget("fps", step=0.001, tooltip="From Frame Count.", linked_whole=True),
                widget(
                    "audio_strength",
                    "strength",
                    tooltip="1 keeps the track, and the picture follows it. With a lower value the model changes the "
                    "sound: 0.9 touches it up, 0 makes a new one.",
                ),
                WindowsIO.Input(
                    "windows", optional=True, tooltip="From Window, for a film: the sound is encoded for each window."
                ),
                RetakeIO.Input(
                    "retake",
                    optional=True,
                    tooltip="From Retake, if sound is made anew: the rest of the audio is kept.",
                ),
            ],
            outputs=[
                AudioIO.Output("condition", display_name="audio", tooltip="For the first sampler and Decode Audio.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        audio_vae: memory.Handle,
        audio: dict[str, Any],
        frames: int,
        fps: float,
        strength: float = 1.0,
        windows: Cut | None = None,
        retake: Retake | None = None,
    ) -> io.NodeOutput:
        progress = Progress(cls.hidden.unique_id)
        check_strength("audio_strength", strength)
        if frames < 1:  # from another node
            raise InputError(f"frames: {frames} is too few for a video; connect Frame Count.")
        track, rate, placed = heard(audio), frame_rate(fps), placed_in_film(audio)
        lead = placed.lead if placed else 0
        if retake is not None:
            retake.check("frames", frames, rate)
            check_heard(audio, retake)
        places = cut_windows(frames)
        if windows is not None:
            check_clip("windows", windows, frames, rate)
            places = windows.windows
        cut = Cut(frames, rate, places) if windows is None else windows
        sounds = []
        for latent, place in zip(encode_windows(audio_vae, track, cut, progress), places, strict=True):
            mask = None if retake is None else retake.source.sound_mask(place, rate)
            sounds.append(AudioCondition(latent, place.frames, rate, strength, mask, lead=lead))
        return io.NodeOutput(sounds[0] if windows is None else FilmSound(windows, tuple(sounds)))


def encode_windows(audio_vae: memory.Handle, track: Track, cut: Cut, progress: Progress) -> Iterator[Tensor]:
    """The sound beside each window of a film, encoded for it: [1, 8, T, 16]. One of a window that is made elsewhere is
    not encoded."""
    progress(0, len(cut.windows))
    (vae,) = memory.use(audio_vae)
    for number, place in enumerate(cut.windows):
        if cut.is_here(number):
            part = part_from(track, place.first_frame, cut.fps)
            yield memory.to_graph(encode_audio(vae, part, place.frames, cut.fps))
        else:
            yield torch.zeros(1, AUDIO_CHANNELS, audio_length(place.frames, cut.fps), AUDIO_BINS)
        progress(number + 1, len(cut.windows))


LAST = -1
TRAINED = -1  # the compression that the images of the VAE's model had in training
MOST_CRF = 51


def _image_schema(
    *,
    node_id: str,
    display_name: str,
    description: str,
    words: Sequence[str],
    strength: str,
    where: str,
    more: Sequence[io.Input] = (),
) -> io.Schema:
    """The schema of a node for one image. words: a search finds it by them; strength: the endpoint's parameter for its
    strength; where: its frame; more: further inputs."""
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category=CONDITIONING,
        description=f"{description} Use one node for each stage, because each stage has its own size. At strength 0 "
        "the image is left out.",
        **aliases(*words),
        inputs=[
            VideoVaeIO.Input("video_vae", tooltip="From Load Model."),
            io.Image.Input("image", tooltip=f"{where} A batch gives its first image."),
            io.Latent.Input("latent", tooltip="The stage's latent: the image is scaled to its size and cropped."),
            widget(strength, "strength"),
            GuidesIO.Input("guides", optional=True, tooltip="Other images of the same stage."),
            io.Int.Input(
                "compression",
                default=TRAINED,
                min=TRAINED,
                max=MOST_CRF,
                optional=True,
                tooltip="CRF of an H.264 compression before encoding. The model knows compressed video, and a cleaner "
                f"image freezes the motion. {TRAINED}: as the model was trained, {V23.crf} for {V23.name} and "
                f"{V25.crf} for {V25.name}. 0 skips it.",
            ),
            *more,
        ],
        outputs=[GuidesIO.Output("images", display_name="guides", tooltip="For the stage's sampler.")],
        hidden=[io.Hidden.unique_id],
    )


class ImageConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _image_schema(
            node_id="LTXA2VImageConditioning",
            display_name="LTX A2V First Image",
            description="The video begins with this image.",
            words=("image to video", "i2v", "first frame", "start frame", "portrait"),
            strength="image_strength",
            where="The first frame.",
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(_told(cls, _with_guide(0, **inputs), inputs))


class EndImageConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _image_schema(
            node_id="LTXA2VEndImageConditioning",
            display_name="LTX A2V End Image",
            description="The video ends with this image.",
            words=("last frame", "keyframe"),
            strength="end_image_strength",
            where="The last frame.",
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], **inputs: Any) -> io.NodeOutput:
        last = pixel_frames(samples_of(latent)) - 1
        if last == 0:
            raise InputError("end image: a video of one frame has no other frame for it; ask for 9 frames or more.")
        return io.NodeOutput(_told(cls, _with_guide(last, latent=latent, **inputs), inputs))


class Keyframe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _image_schema(
            node_id="LTXA2VKeyframe",
            display_name="LTX A2V Image at Frame",
            description="The video passes through this image at a frame of your choice. For several images, connect "
            "several of these nodes in a row.",
            words=("keyframe", "middle frame"),
            strength="image_strength",
            where="The picture at that frame.",
            more=[
                io.Int.Input(
                    "frame",
                    default=LAST,
                    min=-MOST_FRAMES,
                    max=MOST_FRAMES - 1,
                    tooltip="The frame, counted from 0, the first one. Negative numbers count from the end: -1 is the "
                    "last one. Seconds times the frame rate give the frame.",
                )
            ],
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], frame: int = LAST, **inputs: Any) -> io.NodeOutput:
        frames = pixel_frames(samples_of(latent))
        if not -frames <= frame < frames:
            raise InputError(f"frame: {frame} is outside the video; give {-frames} to {frames - 1}.")
        return io.NodeOutput(_told(cls, _with_guide(frame % frames, latent=latent, **inputs), inputs))


def _told(node: type[io.ComfyNode], guides: tuple[Guide, ...], inputs: dict[str, Any]) -> tuple[Guide, ...]:
    """Returns the guides; writes on the node that an image of several was used, or that it was compressed as another
    version's images are."""
    if not inputs["strength"]:
        return guides
    wanted, asked = getattr(inputs["video_vae"], "crf", V23.crf), inputs.get("compression", TRAINED)
    foreign = asked != wanted and asked in (V23.crf, V25.crf)
    compressed = f"compression is {asked}, and this model was trained with {wanted}: set it to {TRAINED}"
    notes = [note for note in (others(inputs["image"]), compressed if foreign else None) if note]
    if notes:
        report(node, "; ".join(notes))
    return guides


def _with_guide(
    frame: int,
    video_vae: memory.Handle,
    image: Tensor,
    latent: dict[str, Any],
    strength: float,
    guides: tuple[Guide, ...] | None = (),
    compression: int = TRAINED,
) -> tuple[Guide, ...]:
    """The guides and this image at that frame, encoded at the latent's size. At strength 0 the image is left out.
    guides: None comes from another pack's switch that has nothing to give."""
    others = tuple(guides or ())
    if strength == 0:
        return others
    return (*others, _guide(frame, video_vae, to_picture(image), latent, strength, compression))


def _guide(
    frame: int, video_vae: memory.Handle, picture: Tensor, latent: dict[str, Any], strength: float, compression: int
) -> Guide:
    """A picture, uint8 [H, W, 3], encoded at the latent's size."""
    if not TRAINED <= compression <= MOST_CRF:  # from another node
        raise InputError(f"compression: {compression} is outside {TRAINED} to {MOST_CRF}; set it to {TRAINED}.")
    height, width = pixel_size(samples_of(latent))
    crf = getattr(video_vae, "crf", V23.crf) if compression == TRAINED else compression
    pixels = fit(compress(picture, crf), width, height)
    (vae,) = memory.use(video_vae, memory_required=activations.encoding_memory(video_vae.module, height, width))
    return Guide(memory.to_graph(encode_image(vae, pixels)), frame, strength)


class SectionImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        like = ImageConditioning.define_schema().inputs
        return io.Schema(
            node_id="LTXA2VSectionImages",
            display_name="LTX A2V Section Images",
            category=CONDITIONING,
            description="The sections of a timeline begin with the images that it names: [image face.png] after the "
            "time means the file face.png of ComfyUI's input folder. The film may begin with an image that is "
            "connected. Use one node for each stage, because each stage has its own size. At strength 0 the images "
            "are left out.",
            inputs=[
                TimelineIO.Input("timeline", tooltip="From Timeline."),
                *(each for each in like if each.id != "image"),
                io.Image.Input("first_image", optional=True, tooltip="The film begins with it, if one is connected."),
            ],
            outputs=[GuidesIO.Output("images", display_name="guides", tooltip="For the stage's sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        timeline: Timeline,
        video_vae: memory.Handle,
        latent: dict[str, Any],
        strength: float,
        guides: tuple[Guide, ...] | None = (),
        compression: int = TRAINED,
        first_image: Tensor | None = None,
    ) -> io.NodeOutput:
        named = [section for section in timeline.sections if section.image and strength]
        progress, guides = Progress(cls.hidden.unique_id), tuple(guides or ())
        if first_image is not None:
            guides = _with_guide(0, video_vae, first_image, latent, strength, guides, compression)
        found = list(guides)
        for number, section in enumerate(named):
            progress(number, len(named))
            frame = section.first_frame(timeline.fps)
            if any(guide.frame == frame for guide in guides):
                raise InputError(
                    f"timeline: section {section} has an image, and so has the film at its frame {frame}; leave out "
                    "one of them."
                )
            picture = load_image(files.upload(section.image))
            found.append(_guide(frame, video_vae, picture, latent, strength, compression))
        return io.NodeOutput(tuple(found))


NODES = (AudioConditioning, ImageConditioning, EndImageConditioning, Keyframe, SectionImages)
