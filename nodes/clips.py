"""Nodes for a video that comes in: a source, of which a part is made anew, and a reference that the model looks at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..ltx.diffusion.conditioning import AudioCondition, Reference
from ..ltx.diffusion.encode import encode_video
from ..ltx.edits import (
    FITS,
    KEPT_CELLS,
    MOST_CONTEXT,
    MOST_FACTOR,
    MOST_PIXELS,
    MOST_SECONDS,
    NOISY,
    PICTURE,
    RENEWALS,
    SOUND,
    ReferenceUse,
    VideoEdit,
)
from ..ltx.errors import InputError
from ..ltx.extension import CONTEXT, DIRECTIONS, FORWARD
from ..ltx.given import ReferenceVideo, check_reach, placed, shown_frames
from ..ltx.grid import SPACE_SCALE
from ..ltx.latents import pixel_frames, pixel_size
from ..ltx.media.clip import Clip, silent_track
from ..ltx.media.images import fit
from ..ltx.media.rates import frame_rate
from ..ltx.plan import round_frames
from ..ltx.windows import LONGEST, Window
from . import activations, files, memory
from .audio import frames_input
from .film import SOURCE, FilmSound, References, Retake
from .progress import Progress, reported, shown
from .progress import report as announce
from .taking.clip import to_clip, to_image_clip
from .taking.latent import MASK, samples_of
from .taking.mask import to_area
from .taking.sound import from_track, to_track
from .types import CATEGORY, AudioIO, ClipIO, ModelIO, ReferencesIO, RetakeIO, VideoVaeIO
from .widgets import ADVANCED, aliases, widget

VIDEO_IN = f"{CATEGORY}/Video In"
NO = "no"  # the choice of extend that keeps the film as long as its frames say
AUTOMATIC = "auto"  # the choice of fit that leaves it to the reference


class OpenClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VClip",
            display_name="LTX A2V Clip",
            category=VIDEO_IN,
            description="Opens a video, so that you can retake a part of it, give it a new voice, or use it as a "
            "reference. Its pictures are read when they are needed, upright and in SDR, so that a long video takes no "
            "memory. Images work, too.",
            **aliases("video to video", "v2v", "load video", "redub", "retake", "extend"),
            inputs=[
                io.Video.Input("video", optional=True, tooltip="From Load Video, of any format, rate and size."),
                io.Image.Input("images", optional=True, tooltip="Frames in place of a video."),
                widget(
                    "fps",
                    step=0.001,
                    tooltip="Frames per second of the images. A video has its own.",
                    linked_whole=True,
                ),
            ],
            outputs=[
                ClipIO.Output("clip", display_name="clip", tooltip="For Retake or Reference."),
                io.Audio.Output(
                    "track", display_name="audio", tooltip="The clip's own sound, or silence if it has none."
                ),
                io.Image.Output("first", display_name="first image", tooltip="For Video Size at auto."),
                io.Int.Output(
                    "frames", display_name="frames", tooltip="The number of frames, rounded up as the model needs it."
                ),
                io.Float.Output("rate", display_name="fps", tooltip="The clip's frames per second."),
                io.String.Output("report", display_name="report", tooltip="Says what was found and converted."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, fps: float, video: Any = None, images: Any = None) -> io.NodeOutput:
        if video is None and images is None:
            raise InputError("video: no video and no images are connected, or their node is bypassed; connect one.")
        if video is not None and images is not None:
            raise InputError("video: the node needs either a video or images, not both; disconnect one of them.")
        clip, track = (to_image_clip(images, fps), None) if video is None else to_clip(video)
        first = next(clip.pictures(clip.fps, 1)).float().div_(255)[None]
        count = clip.count(clip.fps)
        length = f"{count} frames at {float(clip.fps):g} fps" if count > 1 else "a single picture"
        notes = [f"{clip.width}×{clip.height}, {length}", *clip.notes]
        if track is None:
            notes += ["it has no sound, and silence stands for it"] if count > 1 else []
            track = silent_track(clip)
        if round_frames(count) > LONGEST:
            notes.append(f"the model was made for up to {LONGEST} frames: connect Window, or load a shorter part")
        return reported(
            cls,
            clip,
            from_track(track),
            memory.to_graph(first),
            round_frames(count),
            float(clip.fps),
            text="; ".join(notes),
        )


class RetakeClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        seconds = {"min": 0.0, "max": MOST_SECONDS, "step": 0.01}
        return io.Schema(
            node_id="LTXA2VRetake",
            display_name="LTX A2V Retake",
            category=VIDEO_IN,
            description="Says which part of a clip is made anew; everything else stays as it is, to the pixel. Set "
            "start and end, or connect a mask of the mouth or of any region, or both. With more frames than the clip "
            "has, or begin above 0, the video goes on beyond the clip.",
            **aliases("redub", "lip sync", "inpaint", "extend", "regenerate", "new voice"),
            inputs=[
                ClipIO.Input("clip", tooltip="From Clip."),
                frames_input(),
                widget("fps", step=0.001, tooltip="From Clip.", linked_whole=True),
                io.Combo.Input(
                    "renew",
                    options=list(RENEWALS),
                    default=PICTURE,
                    tooltip="What is made anew: the picture, to the sound of Audio Conditioning; the sound, to the "
                    "clip's own picture; or both.",
                ),
                io.Float.Input("start", default=0.0, **seconds, tooltip="The second at which the new part begins."),
                io.Float.Input(
                    "end",
                    default=0.0,
                    **seconds,
                    tooltip="The second at which the new part ends; 0 is the video's end.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How firmly the new part is held to the clip. 0 makes it from noise alone.",
                ),
                io.Float.Input(
                    "soften", default=0.0, **seconds, tooltip="Seconds in which the new part begins and ends softly."
                ),
                io.Int.Input(
                    "soften_pixels",
                    default=0,
                    min=0,
                    max=MOST_PIXELS,
                    tooltip="Width of the mask's soft edge inside its border, in pixels of the clip.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "begin",
                    default=0.0,
                    **seconds,
                    tooltip="The second of the video at which the clip begins; what comes before it is made anew.",
                    **ADVANCED,
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White may change. One mask for all frames, or one for each frame of the clip.",
                ),
                io.Audio.Input(
                    "audio", optional=True, tooltip="The clip's own sound, if it is kept or partly made anew."
                ),
                io.Combo.Input(
                    "extend",
                    options=[NO, *DIRECTIONS],
                    default=NO,
                    optional=True,
                    tooltip="Keeps the whole clip and makes a new part, which is joined to its end (forward) or its "
                    "beginning (backward). frames are then those of the new part and its context.",
                ),
                io.Int.Input(
                    "context",
                    default=CONTEXT,
                    min=0,
                    max=MOST_CONTEXT,
                    optional=True,
                    tooltip="With extend: how many frames of the clip the model sees beside the new part.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "kept_cells",
                    options=list(KEPT_CELLS),
                    default=NOISY,
                    optional=True,
                    tooltip="It matters with a mask. noisy shows the model what stays in a frame as noisy as the new "
                    "part beside it, which was sharper in tests; clean shows it without noise, as the official "
                    "pipelines do.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                RetakeIO.Output(
                    "retake", display_name="retake", tooltip="For Keep Clip, Audio Conditioning and Decode and Save."
                ),
                io.Audio.Output(
                    "placed", display_name="audio", tooltip="The same sound, at the clip's place in the video."
                ),
                io.String.Output("report", display_name="report", tooltip="Says what is made anew."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        clip: Clip,
        frames: int,
        fps: float,
        renew: str,
        start: float,
        end: float,
        strength: float,
        soften: float,
        soften_pixels: int,
        begin: float,
        mask: Tensor | None = None,
        audio: dict[str, Any] | None = None,
        extend: str = NO,
        context: int = CONTEXT,
        kept_cells: str = NOISY,
    ) -> io.NodeOutput:
        files.choice("renew", renew, RENEWALS)
        files.choice("extend", extend, (NO, *DIRECTIONS))
        files.choice("kept_cells", kept_cells, KEPT_CELLS)
        rate, frames = frame_rate(fps), round_frames(frames)
        direction = None if extend == NO else extend
        edit = VideoEdit(
            renew, start or None, end or None, strength, soften, soften_pixels, begin, direction, context, kept_cells
        )
        follows = frames == round_frames(shown_frames(clip, edit, rate))  # the film ends with the clip
        place = placed(clip, edit, None if mask is None else to_area(mask), rate, frames, follows)
        made = Retake(place.source, place.frames, rate, place.shown, place.lead, place.tail)
        beyond = place.source.falls_short(place.frames / rate)
        if not beyond and not place.source.says_what:
            raise InputError(
                "retake: nothing of the clip would be made anew; give a start or an end, a strength, a mask, or more "
                "frames than the clip has."
            )
        seconds = (place.shown or place.frames) / rate
        check_reach(place.source, seconds, beyond, at="begin", start="start", mask="mask")
        track = None if audio is None else made.sound(to_track(audio))
        return reported(cls, made, track, text="; ".join([_told(made, mask is not None), *place.notes]))


def _told(retake: Retake, masked: bool) -> str:
    """What is made anew, for the report."""
    edit = retake.source.edit
    if edit.extend is not None:
        return f"{edit.renew} made {'after' if edit.extend == FORWARD else 'before'} the clip"
    notes = [f"{edit.renew} made anew from {edit.start or 0:g} s to {f'{edit.end:g} s' if edit.end else 'the end'}"]
    notes += ["where the mask is white"] if masked and edit.renew != SOUND else []
    notes += ["and beyond the clip"] if retake.source.falls_short(retake.frames / retake.fps) else []
    notes += [f"the video ends with the clip, after {retake.shown} frames"] if retake.shown else []
    return ", ".join(notes)


class KeepClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VKeepClip",
            display_name="LTX A2V Keep Clip",
            category=VIDEO_IN,
            description="Puts the clip of a retake into a stage's latent, with a noise mask of what may change. Use "
            "one node for each stage, because each stage has its own size.",
            inputs=[
                VideoVaeIO.Input("video_vae", tooltip="From Load Model."),
                RetakeIO.Input("retake", tooltip="From Retake."),
                io.Latent.Input("latent", tooltip="First stage: from Video Size. Second stage: from Latent Upscale."),
            ],
            outputs=[io.Latent.Output("kept", display_name="latent", tooltip="For the stage's sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, video_vae: memory.Handle, retake: Retake, latent: dict[str, Any]) -> io.NodeOutput:
        samples = samples_of(latent)
        retake.check("latent", pixel_frames(samples))
        height, width = pixel_size(samples)
        plan = retake.plan(height, width)
        mask = retake.source.mask(plan, (width, height))
        progress = Progress(cls.hidden.unique_id)
        pixels = (fit(picture, width, height) for picture in retake.source.pictures(plan))
        clean = _encoded(video_vae, pixels, (width, height), plan.frames, progress)
        told = {"clean": memory.to_graph(clean), **retake.source.told(plan)}
        return io.NodeOutput({**latent, MASK: mask, SOURCE: told})


class ReferenceConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        usual = ReferenceUse()
        share = {"min": 0.0, "max": 1.0, "step": 0.05}
        factor = {"default": 0, "min": 0, "max": MOST_FACTOR}
        return io.Schema(
            node_id="LTXA2VReference",
            display_name="LTX A2V Reference",
            category=VIDEO_IN,
            description="A video or a picture that the model looks at while it makes a video: poses, depth, edges, or "
            "a sheet of the persons and things that shall appear, for which an IC-LoRA was trained. It is usually for "
            "the first stage alone.",
            **aliases(
                "ic-lora", "control", "pose", "depth", "canny", "reference video", "reference sheet", "ingredients"
            ),
            inputs=[
                VideoVaeIO.Input("video_vae", tooltip="From Load Model."),
                ClipIO.Input("clip", tooltip="From Clip."),
                io.Latent.Input("latent", tooltip="The stage's latent: the reference is made for its size."),
                AudioIO.Input("audio", tooltip="From Audio Conditioning: the video's length, rate and windows."),
                io.Float.Input(
                    "strength", default=usual.strength, **share, tooltip="How clean the reference is; 0 leaves it out."
                ),
                io.Float.Input(
                    "attention",
                    default=usual.attention,
                    **share,
                    tooltip="How much the video and the reference see of each other. Lower it for more freedom.",
                ),
                io.Int.Input(
                    "downscale",
                    **factor,
                    tooltip="How many times smaller than the video the reference is; 0 takes the IC-LoRA's value.",
                    **ADVANCED,
                ),
                io.Int.Input(
                    "stride",
                    **factor,
                    tooltip="One of so many frames is taken; 0 takes the IC-LoRA's value.",
                    **ADVANCED,
                ),
                ModelIO.Input(
                    "model",
                    optional=True,
                    tooltip="The model with the IC-LoRA, which has values for downscale and stride.",
                ),
                ReferencesIO.Input("references", optional=True, tooltip="Other references of the same stage."),
                io.Combo.Input(
                    "fit",
                    options=[AUTOMATIC, *FITS],
                    default=AUTOMATIC,
                    optional=True,
                    tooltip="How it gets the video's shape: crop cuts off what is too much, pad shows all of it on "
                    "black. auto pads a single picture and crops a video.",
                    **ADVANCED,
                ),
            ],
            outputs=[ReferencesIO.Output("seen", display_name="references", tooltip="For the stage's sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        video_vae: memory.Handle,
        clip: Clip,
        latent: dict[str, Any],
        audio: AudioCondition | FilmSound,
        strength: float,
        attention: float,
        downscale: int,
        stride: int,
        model: memory.Model | None = None,
        references: References | None = None,
        fit: str = AUTOMATIC,
    ) -> io.NodeOutput:
        film = FilmSound.of(audio)
        shape = None if fit == AUTOMATIC else fit
        use = ReferenceUse(strength, attention, downscale=downscale or None, stride=stride or None, fit=shape)
        reference = ReferenceVideo(clip, use).made_for([] if model is None else model.references)
        height, width = pixel_size(samples_of(latent))
        size = reference.size((width, height))
        if size[0] % SPACE_SCALE or size[1] % SPACE_SCALE or not all(size):
            raise InputError(
                f"latent: its {width}×{height} pixels do not give a reference {reference.use.downscale} times smaller; "
                f"choose sides that are multiples of {SPACE_SCALE * reference.use.downscale}."
            )
        if references is not None:
            film.check_references(references)
        notes = dict.fromkeys(reference.told(film.frames, film.fps))
        if notes:
            announce(cls, "; ".join(notes))  # now, before the pictures are encoded
        progress, found = Progress(cls.hidden.unique_id), []

        def note(sentence: str) -> None:
            if sentence not in notes:
                notes[sentence] = None
                announce(cls, "; ".join(notes))

        def encode(window: Window) -> Tensor:
            pixels = reference.fitted(reference.pictures(window, film.fps, note), *size)
            return memory.to_graph(_encoded(video_vae, pixels, size, reference.frames(window), progress))

        here = [window for number, window in enumerate(film.cut.windows) if film.cut.is_here(number)]
        encoded = reference.encoded(here, encode)
        for number in range(len(film.cut.windows)):
            made = list(references[number]) if references else []
            if film.cut.is_here(number):  # a window that is made elsewhere needs none
                use = reference.use
                made.append(Reference(next(encoded), use.downscale, use.stride, strength, attention))
            found.append(tuple(made))
        return io.NodeOutput(tuple(found), ui=shown("; ".join(notes)) if notes else None)


def _encoded(
    video_vae: memory.Handle, pixels: Iterable[Tensor], size: tuple[int, int], frames: int, progress: Progress
) -> Tensor:
    """Encodes so many frames, [1, 3, 1, height, width] each, of that width and height, as they are read."""
    width, height = size
    (vae,) = memory.use(video_vae, memory_required=activations.clip_encoding_memory(video_vae.module, height, width))

    def told() -> Iterator[Tensor]:
        for number, picture in enumerate(islice(pixels, frames)):
            progress(number, frames)
            yield picture

    with torch.no_grad():
        latent = encode_video(vae, told())
    progress(frames, frames)
    return latent


NODES = (OpenClip, RetakeClip, KeepClip, ReferenceConditioning)
