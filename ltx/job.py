"""A headless job: its files, its way to compute, and everything that is decided before a model is loaded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from . import models
from .computing import AUTO, BY_MEMORY, OFFLOAD, TORCH
from .diffusion.acceleration import LEVELS, full_strength
from .diffusion.attention import check_attention
from .diffusion.conditioning import REFERENCE_HEARD
from .diffusion.kept import KeptWindows, check_room, disk_needed
from .diffusion.speakers import check_region, check_voices, heard_by
from .diffusion.steering import ANCESTRAL, INERT, Steering, steer
from .diffusion.tiling import Tiling
from .errors import InputError
from .given import Example, Given, ReferenceVideo, SourceVideo, delayed, open_videos
from .media import preprocess
from .media.audio import LONGEST, MARGIN, Track, load_track, part_from
from .media.clip import clip_track, silent_track
from .media.images import compress, load_image
from .media.masks import Area, open_area
from .media.rates import frame_rate
from .media.room_noise import check_kept, check_level
from .media.safety import REQUIRED, UNCHECKED
from .media.video import mixing
from .plan import Plan, plan, silence_behind
from .prompt.expander import check_expander
from .prompt.gemma import check_gemma
from .request import UNLED, Request, beside_kept_sound
from .weights.checkpoint import Checkpoint, load_checkpoint, load_upscaler
from .weights.lora import Lora, Match, load_lora, match
from .weights.lora_file import OF_VOICE
from .weights.names import OF_CONNECTORS

TILING = Tiling.of(frames=BY_MEMORY, pixels=BY_MEMORY)  # both sizes are chosen by the free memory
UNREAD = (
    "no LoRA is known as an IC-LoRA, so each acts in both stages: put ic-lora into the name of the one that reads the "
    "reference"
)
Strengths = tuple[tuple[Lora, float], ...]
"""LoRAs and the strength of each."""


@dataclass(frozen=True)
class Files:
    """Paths of a headless job. audio: None if a source video has the sound. loras: pairs of a path and its strength in
    both stages; an IC-LoRA has it where the reference is, and ID-LoRA where its example is heard. keyframes: an image,
    its frame and its strength each. speakers: masks of who hears the sound; voices: the sound of each of them alone, or
    none. room_noise: the level in dBFS of noise under the sounds for the model, None for no noise."""

    checkpoint: Path
    text_encoder: Path
    audio: Path | None
    output: Path
    upscaler: Path | None = None
    distill_lora: Path | None = None
    camera_lora: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    image: Path | None = None
    end_image: Path | None = None
    safety_checker: Path | None = None
    video_vae: Path | None = None  # this and the next two are for parts that the checkpoint does not have
    audio_vae: Path | None = None
    connectors: Path | None = None
    contexts: Path | None = None  # a folder that keeps encoded prompts and compiled blocks
    expander: Path | None = None  # the model that writes prompts, instead of the text encoder
    sections: Path | None = None  # the folder of the images that a timeline names
    video: Path | None = None  # the source, of which a part is made anew
    mask: Path | None = None  # an image or a video: the part of the picture that may change
    reference: Path | None = None  # a video that the model looks at
    keyframes: tuple[tuple[Path, int, float], ...] = ()
    speakers: tuple[Path, ...] = ()
    voices: tuple[Path, ...] = ()
    room_noise: float | None = None


@dataclass(frozen=True)
class Compute:
    """Where and how a job is computed.

    dtype: the compute dtype; None means the dtype of the files. fp8: whether the transformer and Gemma are stored in
    float8; they compute in `dtype`. compiled: whether torch.compile compiles the transformer's block. offload: one of
    OFFLOAD, for a GPU. tiling: the decoder's tiles, None for the clip as one tile; open sizes are chosen by the free
    memory. attention: one of BACKENDS.
    fused: whether Triton kernels take over normalisation, modulation, rotation and gates where they can run.
    fast_products: whether quantized weights are multiplied in their own formats where the device can. Raises InputError
    if offload is another value or the attention cannot be computed so.
    """

    dtype: torch.dtype | None = None
    device: torch.device | str = "cpu"
    fp8: bool = False
    compiled: bool = False
    offload: str = AUTO
    tiling: Tiling | None = TILING
    attention: str = TORCH
    fused: bool = True
    fast_products: bool = False

    def __post_init__(self) -> None:
        check_attention(self.attention, self.device, self.dtype)
        if self.offload not in OFFLOAD:
            raise InputError(f"offload is {self.offload!r}: choose one of {', '.join(OFFLOAD)}.")


@dataclass(frozen=True)
class Picture:
    """An image of a job. pixels: compressed as the model's training images were; frame: where it stands in the film;
    strength: 0..1."""

    pixels: Tensor
    frame: int
    strength: float


@dataclass(frozen=True)
class Job:
    """Everything that is known before a model is loaded.

    images: the first and the end image, those of the sections, then the keyframes. steering, loras: for the first and
    for the second stage; both stages have the same LoRAs in the same order. fits: how each of them fits the
    transformer, and then the text connectors if it may change them. notes: sentences for the report. silent: whether
    the file gets no sound. speakers: the regions that hear the sound, each with its own voice or None.
    """

    files: Files
    request: Request
    track: Track
    images: tuple[Picture, ...]
    plan: Plan
    checkpoint: Checkpoint
    steering: tuple[Steering, Steering]
    loras: tuple[Strengths, Strengths]
    fits: tuple[tuple[Match, ...], ...] = field(default=())
    notes: tuple[str, ...] = field(default=())
    source: SourceVideo | None = None
    reference: ReferenceVideo | None = None
    example: Example | None = None
    silent: bool = False
    speakers: tuple[tuple[Area, Track | None], ...] = ()

    @property
    def heard(self) -> Track:
        """The track from the first frame on that the model makes."""
        return part_from(self.track, self.plan.lead, self.plan.fps)

    @property
    def renews_sound(self) -> bool:
        """Whether sound of the source is made anew, or beside it."""
        return self.source is not None and self.source.sounds

    @property
    def keeps_sound(self) -> bool:
        """Whether the track is kept as it is."""
        return self.request.audio_strength == 1 and not self.renews_sound

    @property
    def referred(self) -> bool:
        """Whether the first stage hears the sound of a reference."""
        return self.example is not None

    @cached_property
    def keeps_picture(self) -> bool:
        """Whether the picture is kept as it is: only the sound is made anew."""
        return self.source is not None and not self.source.mask(self.plan, self.plan.first_size).any()

    @property
    def connector_loras(self) -> Strengths:
        """The LoRAs that change the text connectors. They act on the prompts' contexts, which both stages share."""
        return tuple(
            lora for lora, (_, *others) in zip(self.loras[0], self.fits, strict=True) if any(o.changes for o in others)
        )


def prepare(files: Files, request: Request, stg_blocks: tuple[int, ...] = (), kept: KeptWindows | None = None) -> Job:
    """Opens every file and decides every number. It raises InputError for mistakes in the input before models load.
    kept: the windows of an ended run, by default those that nobody goes on from."""
    steer(request, stg_blocks)  # this raises for settings that do not fit together
    notes = [*request.notes, *_unchecked(files, request)]
    given, track, silent = _given(files, request)
    request = given.request
    pictures, picture_notes = _pictures(files, request)
    sizes = tuple(None if p is None else (p.shape[1], p.shape[0]) for p in pictures)
    heard = part_from(track, given.lead, frame_rate(request.fps))
    made = given.source is not None and given.source.sounds
    grid = {"shown": given.shown, "downscale": given.downscale}
    planned = plan(request, heard, (given.size, *sizes), **grid, silence=given.source is None)
    planned = replace(planned, lead=given.lead, tail=given.tail)
    falls_short = given.source is not None and planned.written / planned.fps - track.seconds >= MARGIN
    behind = silence_behind(track, planned.written, planned.fps) if falls_short and not (made or silent) else []
    placed, speakers = _placed(files, request, planned, pictures), _speakers(files, request, given.source)
    _check_stages(files, request, planned, kept or KeptWindows.beside(files.output))
    checkpoint = load_checkpoint(
        files.checkpoint, video_vae=files.video_vae, audio_vae=files.audio_vae, connectors=files.connectors
    )
    check_gemma(files.text_encoder, checkpoint)
    checkpoint = checkpoint.with_text_encoder(files.text_encoder)
    if files.expander is not None:
        check_expander(files.expander)
    if planned.two_stages:
        checkpoint.check_upscaler(files.upscaler)
    blueprint = checkpoint.inspect()
    steering = steer(request, stg_blocks, checkpoint.version)
    renewed = request.use_restart_sampling or request.gradient_estimation_gamma
    notes += [INERT] if steering[0].sampler == ANCESTRAL and renewed else []
    loras, lora_notes = _loras(files, request, given.example, checkpoint.path.name, planned.two_stages)
    lora_notes += filter(None, [lora.check_version(checkpoint.path.name, checkpoint.version) for lora, _ in loras[1]])
    fits = [_fit(lora, checkpoint, blueprint, n < len(files.loras)) for n, (lora, _) in enumerate(loras[1])]
    if given.reference is None:
        _check_hearing(loras[0], fits)
    lora_notes += [warning for fit, *others in fits if (warning := fit.warning_beside(*others))]
    images = tuple(Picture(compress(p, checkpoint.crf), *place) for p, *place in placed)
    beside = [] if given.reference is None else given.reference.told(planned.frames, planned.fps)
    notes = [note for note in notes if not made or note not in beside_kept_sound(request.given)]
    notes += [*given.notes, *beside, *picture_notes, *lora_notes, *planned.notes, *behind, *heard_by(len(speakers))]
    notes += _damage(speakers, given.example)
    job = Job(files, request, track, images, planned, checkpoint, steering, loras, tuple(fits))
    videos = {name: getattr(given, name) for name in ("source", "reference", "example")}
    job = replace(job, **videos, silent=silent, speakers=speakers)
    if job.referred:
        notes.append(REFERENCE_HEARD)
        if job.keeps_sound and job.example.use.identity:
            notes.append(UNLED)
    steering[0].check(job.keeps_sound, True, len(blueprint.transformer_blocks), job.keeps_picture, job.referred)
    if files.room_noise is not None:
        check_level("--room-noise", files.room_noise)
        check_kept("--room-noise", job.keeps_sound)
        notes.append(f"the model hears noise of {files.room_noise:g} dBFS under the audio")
    if not silent:
        if job.keeps_sound:  # otherwise the model makes new sound, in stereo
            notes += filter(None, [mixing(track, request.video_output_type)])
        notes += track.notes if made else _warnings(heard, planned, request)
    return replace(job, notes=tuple(notes))


def _warnings(heard: Track, planned: Plan, request: Request) -> list[str]:
    """What of the sound makes the picture static or jumpy, which a sound of which a part is made anew does not."""
    return preprocess.warnings(heard, planned.frames, planned.fps, levelled=request.preprocess_audio)


def _given(files: Files, request: Request) -> tuple[Given, Track, bool]:
    """The videos of a job, its track, and whether that is only the silence of a source without sound. Raises InputError
    if there is no sound at all."""
    if files.audio is None and files.video is None:
        raise InputError("--audio: missing; name an audio file, or a video with --video.")
    own = None if files.audio is None else load_track(files.audio, most=LONGEST if request.windows else None)
    factors = [] if files.reference is None else [load_lora(path, True).reference for path, _ in files.loras]
    given = open_videos(request, files.video, files.mask, files.reference, own)
    if given.reference is not None:
        given = replace(given, reference=given.reference.made_for(list(filter(None, factors))))
    if own is not None:
        return given, own, False
    track, silent = clip_track(files.video), False
    if track is None:
        track, silent = silent_track(given.source.clip), not given.source.sounds
    return given, delayed(track, given.source.at), silent


def _check_stages(files: Files, request: Request, planned: Plan, kept: KeptWindows) -> None:
    """Raises InputError if a file is missing that the stages need, or the windows that they keep do not fit on the
    disk."""
    if request.windows is not None and not kept.only:
        needed = disk_needed(planned.windows, *planned.sizes)
        check_room(files.output.absolute().parent, needed, kept.spared())
    if planned.two_stages and files.upscaler is None:
        raise InputError("--upscaler: two stages need it; name the upscaler's file or set use_multiscale to false.")
    if planned.two_stages:
        load_upscaler(files.upscaler)  # this only maps the file, and raises now rather than after the first stage
    if request.camera_lora != "none" and files.camera_lora is None:
        raise InputError(f"camera_lora: {request.camera_lora} needs its file; name it with --camera-lora.")


def _unchecked(files: Files, request: Request) -> list[str]:
    """The note for the report if no safety checker was named. Raises InputError if the request or the environment
    requires one."""
    if not request.enable_safety_checker or files.safety_checker is not None:
        return []
    if "enable_safety_checker" in request.given or os.environ.get(REQUIRED) == "require":
        raise InputError(
            "enable_safety_checker: no classifier was named; give --safety-checker a folder with an image "
            "classifier of transformers, or set it to false."
        )
    return [f"{UNCHECKED}: no classifier was named with --safety-checker"]


def _pictures(files: Files, request: Request) -> tuple[list[Tensor | None], list[str]]:
    """Loads the first and the end image, None for a missing one. Returns them with the notes for the report."""
    pictures, notes = [], []
    for path, strength, name in (
        (files.image, request.image_strength, "first"),
        (files.end_image, request.end_image_strength, "end"),
    ):
        if path is not None and strength == 0:
            notes.append(f"the {name} image has strength 0 and counts as absent")
        pictures.append(load_image(path) if path is not None and strength else None)
    return pictures, notes


def _placed(
    files: Files, request: Request, planned: Plan, pictures: list[Tensor | None]
) -> list[tuple[Tensor, int, float]]:
    """All images with their frames and strengths. pictures: the first and the end image. Raises InputError if one
    stands outside the film."""
    first, end = pictures
    last = planned.used - 1
    if end is not None and last == 0:
        raise InputError("end image: a video of one frame has no other frame for it; ask for 9 frames or more.")
    found = [(first, 0, request.image_strength), (end, last, request.end_image_strength)]
    found += [(pixels, frame, request.image_strength) for pixels, frame in _section_images(files, planned)]
    for path, frame, strength in files.keyframes:
        if not 0 <= frame <= last:
            raise InputError(f"--keyframe: {path.name} is at frame {frame}; the frames of this film are 0 to {last}.")
        if not 0 <= strength <= 1:
            raise InputError(f"--keyframe: {path.name} has the strength {strength:g}; give a number from 0 to 1.")
        found.append((load_image(path) if strength else None, frame, strength))
    placed = [(pixels, frame, strength) for pixels, frame, strength in found if pixels is not None]
    counts = Counter(frame for _, frame, _ in placed)
    if twice := [frame for _, frame, _ in files.keyframes if counts[frame] > 1]:
        raise InputError(f"--keyframe: two images stand at frame {twice[0]}; leave out one of them.")
    return placed


def _speakers(files: Files, request: Request, source: SourceVideo | None) -> tuple[tuple[Area, Track | None], ...]:
    """Opens the masks of the speakers and their voices. Raises InputError if there is not one voice for each, or the
    model may change the sound beside them."""
    if files.voices and len(files.voices) != len(files.speakers):
        raise InputError(
            f"--voice: there are {len(files.voices)} voices for {len(files.speakers)} speakers; give one voice after "
            "each --speaker, or none."
        )
    if files.voices:
        check_voices(request.audio_strength == 1 and not (source is not None and source.sounds))
    areas = [open_area(path) for path in files.speakers]
    for path, area in zip(files.speakers, areas, strict=True):
        check_region(f"--speaker: {path.name}", area)
    voices = [load_track(path, most=LONGEST if request.windows else None) for path in files.voices]
    return tuple(zip(areas, voices or [None] * len(areas), strict=True))


def _damage(speakers: tuple[tuple[Area, Track | None], ...], example: Example | None) -> list[str]:
    """What is damaged or missing in masks, voices and the sound of a reference."""
    parts = [part for each in speakers for part in each if part is not None]
    return [note for part in (*parts, *([] if example is None else [example.track])) for note in part.notes]


def _section_images(files: Files, planned: Plan) -> list[tuple[Tensor, int]]:
    """Loads the images of a timeline, each with the first frame of its section. Raises InputError if one is missing, or
    the film has another first image."""
    found = []
    for section in planned.sections:
        if not section.image:
            continue
        if files.sections is None:
            raise InputError(f"timeline: section {section} has an image, but its folder is unknown; leave it out.")
        frame = section.first_frame(planned.fps)
        if not frame and files.image is not None:
            raise InputError(f"timeline: section {section} has an image, and so has the film; leave out one of them.")
        found.append((load_image(files.sections / section.image), frame))
    return found


def _fit(lora: Lora, checkpoint: Checkpoint, blueprint: nn.Module, whole: bool) -> tuple[Match, ...]:
    """How a LoRA fits the transformer and, if the `whole` model is its target, the text connectors.

    The distilled and the camera LoRA change the transformer alone, as in the official pipeline, because their strength
    may differ by stage and both stages share the prompts. Raises InputError as `match`.
    """
    others = ()
    if whole and any(OF_CONNECTORS.search(layer) for layer, _ in lora.changes):
        others = (match(lora, checkpoint.connectors(), optional=True),)
    return match(lora, blueprint, others), *others


def _check_hearing(loras: Strengths, fits: Iterable[tuple[Match, ...]]) -> None:
    """Raises InputError if an IC-LoRA that was trained without sound has a sound alone as its reference."""
    for (lora, strength), (fit, *_) in zip(loras, fits, strict=True):
        if lora.reference is not None and strength and not fit.hears:
            raise InputError(
                f"{lora.path}: is an IC-LoRA, which needs a reference video, but --reference names a sound; name a "
                "video, or choose another LoRA."
            )


def _loras(
    files: Files, request: Request, example: Example | None, checkpoint: str, two_stages: bool
) -> tuple[tuple[Strengths, Strengths], list[str]]:
    """Loads every LoRA. Returns them with their strengths in the first and in the second stage, and notes for the
    report."""
    whole = request.reference is not None and request.reference.acts(first=False)

    def refers(lora: Lora) -> bool:
        return lora.reference is not None or (example is not None and OF_VOICE.search(lora.path.name) is not None)

    referenced = files.reference is not None
    both = [(load_lora(path, referenced), scale) for path, scale in files.loras]
    later = [(lora, scale if whole or not refers(lora) else 0.0) for lora, scale in both]
    unread = referenced and example is None and both and not any(refers(lora) for lora, _ in both)
    notes = [UNREAD] if unread else []
    if files.camera_lora is not None:
        camera = load_lora(files.camera_lora), request.camera_lora_scale
        both.append(camera)
        later.append(camera)
    scales = request.distill_lora_first_pass_scale, request.distill_lora_second_pass_scale
    if LEVELS[request.acceleration].distilled:
        scales = (full_strength(checkpoint, files.distill_lora is not None),) * 2
    if files.distill_lora is None:
        missing = "no distilled LoRA given: its scales count as 0 in both stages"
        return (tuple(both), tuple(later)), notes + ([] if models.is_distilled(checkpoint) else [missing])
    loaded = load_lora(files.distill_lora)
    first, second = ((*loras, (loaded, scale)) for loras, scale in zip((both, later), scales, strict=True))
    warning = models.overdone(checkpoint, scales if two_stages else scales[:1])
    return (first, second), notes + ([warning] if warning else [])
