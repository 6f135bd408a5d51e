"""The videos that a job is given: the source, of which a part is made anew, and a reference that the model looks at.

They are opened and checked here, before a model is loaded; their pictures are read when they are encoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .diffusion.masks import audio_spans, outside_mask, ramped, time_mask, video_spans
from .edits import BOTH, CROP, PAD, PICTURE, SOUND, ReferenceUse, VideoEdit
from .errors import InputError
from .extension import stretch_beside
from .grid import AUDIO_RATE, SHORTEST_SOUND, SPACE_SCALE, TIME_SCALE, audio_length, frames_of
from .media.audio import Track, frames_for_audio, samples_in, seconds_beyond
from .media.clip import Clip, clip_track, is_sound, open_clip, open_reference, sampled, sampled_frames
from .media.images import contain, fit
from .media.masks import Area, open_area
from .media.rates import frame_rate
from .plan import Plan, round_frames
from .request import AUTO, Request
from .windows import LONGEST, Window

Note = Callable[[str], None]
"""A function that takes a sentence for the report."""
SEAM = 4  # frames at an edge of what was made in which it passes into the source


@dataclass(frozen=True)
class SourceVideo:
    """The source video of a job. clip: its pictures. edit: what is made anew, with `renew` decided. area: which part of
    the picture may change, None for all of it. at, until: the seconds of the film between which the source fills it,
    at a frame of it; until is infinite if the film ends with the source."""

    clip: Clip
    edit: VideoEdit
    area: Area | None = None
    at: Fraction = Fraction(0)
    until: float = math.inf

    def pictures(self, plan: Plan) -> Iterator[Tensor]:
        """A picture for each frame that the model makes, uint8 [H, W, 3]. Before and after the source they stand
        still."""
        return self.clip.pictures(plan.fps, plan.frames, -self.at)

    def all_pictures(self, plan: Plan, note: Note | None = None) -> Iterator[Tensor]:
        """The same with the frames before and behind those. note: as for `Clip.pictures`."""
        start = -self.at - plan.lead / plan.fps
        return self.clip.pictures(plan.fps, plan.lead + plan.frames + plan.tail, start, note)

    @property
    def sounds(self) -> bool:
        """Whether sound is made anew."""
        return self.edit.renew in (SOUND, BOTH)

    def mask(self, plan: Plan, size: tuple[int, int]) -> Tensor:
        """What the model makes of the picture, float32 [1, 1, F, H, W]. size: width and height of the stage."""
        width, height = size
        times, beyond = (each[None, None, :, None, None] for each in self._latents(plan))
        inside = times.expand(1, 1, -1, height // SPACE_SCALE, width // SPACE_SCALE)
        if self.area is not None:
            inside = inside * self.area.cells(plan.frames, height, width)
        return torch.maximum(inside, beyond)

    def told(self, plan: Plan) -> dict[str, Any]:
        """What a stage is told of it beside its latent and its mask, as fields of `Conditions`."""
        return {"kept_cells": self.edit.kept_cells, "filled": self.filled(plan)}

    def filled(self, plan: Plan) -> tuple[int, int] | None:
        """The first of the latent frames that the source fills and the one behind the last; None if the model makes no
        more than these, or sees none of them."""
        beyond = self._latents(plan)[1]
        found = torch.nonzero(beyond == 0).flatten().tolist()
        return (found[0], found[-1] + 1) if found and beyond.any() else None

    def weights(self, plan: Plan, note: Note | None = None) -> Iterator[Tensor]:
        """How much of each decoded frame is used, float32 [H, W] in 0..1; the rest is the source's own picture. note:
        as for `Clip.pictures`, of the mask."""
        times, beyond = (_of_frames(each > 0) for each in self._latents(plan))
        seamed = beside(torch.maximum(times, beyond), plan, SEAM)
        areas = None if self.area is None else self.area.weights(plan.frames, plan.height, plan.width, note)
        for weight, everywhere in zip(seamed, beyond, strict=True):
            area = torch.ones(plan.height, plan.width) if areas is None else next(areas)
            yield weight * (torch.ones_like(area) if everywhere else area)

    def sound_mask(self, window: Window, fps: Fraction) -> Tensor | None:
        """What the model makes of the sound of a window, float32 [T]; None if the track is kept."""
        return torch.maximum(*self._sound_masks(window, fps)) if self.sounds else None

    def _sound_masks(self, window: Window, fps: Fraction) -> tuple[Tensor, Tensor]:
        """Which latents of a window's sound are made anew of the source's, and which the source does not fill."""
        spans = audio_spans(audio_length(window.frames, fps)) + float(window.starts_at(fps))
        beyond = outside_mask(spans, (float(self.at), self.until), 0.5 / AUDIO_RATE)
        if not self.says_what or self.edit.extend is not None:
            return torch.zeros_like(beyond), beyond
        return time_mask(spans, self.edit.span, self.edit.soften) * (1 - self.edit.strength), beyond

    def sound_weights(self, plan: Plan, rate: int) -> Tensor:
        """Which samples of the sound that the model makes are used, float32 [n]: 1 for those, else 0.

        A latent of sound can reach over an end of the source; there the border lies at the sample. The last latent
        ends before the film does, and the rest belongs to it.
        """
        weights = torch.zeros(samples_in(plan.frames, plan.fps, rate))
        starts = [round(start * rate) for start, _ in audio_spans(audio_length(plan.frames, plan.fps)).tolist()]
        masks = self._sound_masks(plan.whole, plan.fps)[0].tolist()
        for start, end, value in zip(starts, [*starts[1:], len(weights)], masks, strict=True):
            if value > 0:
                weights[start:end] = 1
        first, end = self.samples(plan, rate)
        weights[:first], weights[end:] = 1, 1
        return weights

    def samples(self, plan: Plan, rate: int) -> tuple[int, int]:
        """Where the source's samples begin and end in what the model makes."""
        most = samples_in(plan.frames, plan.fps, rate)
        end = most if math.isinf(self.until) else min(most, round(self.until * rate))
        return min(most, max(0, round(self.at * rate))), end

    def falls_short(self, seconds: Fraction) -> bool:
        """Whether it does not fill a film of so many seconds; less than a millisecond does not count."""
        return self.at > 0 or self.until < seconds - Fraction(1, 1000)

    @property
    def says_what(self) -> bool:
        """Whether anything within the source is made anew."""
        edit = self.edit
        return edit.ranged or edit.strength > 0 or edit.renew == SOUND or self.area is not None

    def _latents(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """Which latent frames are made anew by the times of the edit, and which the source does not fill, float32 [F]
        each."""
        spans = video_spans((plan.frames - 1) // TIME_SCALE + 1, plan.fps)
        beyond = outside_mask(spans, (float(self.at), self.until), 0.5 / float(plan.fps))
        if not self.says_what or self.edit.renew == SOUND:
            return torch.zeros_like(beyond), beyond
        return time_mask(spans, self.edit.span, self.edit.soften) * (1 - self.edit.strength), beyond


def beside(made: Tensor, plan: Plan, length: int) -> Tensor:
    """`ramped` weights of what the model makes, float32 [n], which also rise beside the source's frames before and
    behind it."""
    before, behind = (torch.zeros(1 if frames else 0) for frames in (plan.lead, plan.tail))
    return ramped(torch.cat((before, made, behind)), length)[len(before) :][: len(made)]


def _of_frames(latents: Tensor) -> Tensor:
    """A value of each latent frame [F] → float32 for each frame."""
    return torch.cat([latents[:1], latents[1:].repeat_interleave(TIME_SCALE)]).float()


@dataclass(frozen=True)
class ReferenceVideo:
    """The reference of a job, a video or a still picture. clip: its pictures. use: how it is used."""

    clip: Clip
    use: ReferenceUse

    def made_for(self, loras: list[tuple[int, int]]) -> ReferenceVideo:
        """The same with the factors of IC-LoRAs where the request has none. Raises InputError if these differ."""
        use = self.use
        for number, name in enumerate(("downscale", "stride")):
            known = {factors[number] for factors in loras}
            if getattr(use, name) is None:
                if len(known - {1}) > 1:
                    raise InputError(
                        f"--lora: the IC-LoRAs were made for references with different values of {name} "
                        f"({min(known)} and {max(known)}); use one of them."
                    )
                use = replace(use, **{name: max(known, default=1)})
        return replace(self, use=use)

    def size(self, stage: tuple[int, int]) -> tuple[int, int]:
        """Its width and height beside a stage of that width and height."""
        return stage[0] // self.use.downscale, stage[1] // self.use.downscale

    def frames(self, window: Window) -> int:
        """How many of its pictures stand beside a window: 8k+1, cropped where only some are taken."""
        return frames_of((sampled_frames(window.frames, self.use.stride) - 1) // TIME_SCALE + 1)

    def told(self, frames: int, fps: Fraction) -> list[str]:
        """What the report says of it beside a film of so many frames, if the lengths differ: eight are a latent. A
        still picture is there for all of them."""
        count = self.clip.count(fps)
        if self.still:
            return []
        if count > frames:
            return [
                f"{self.clip.name}: it has {count} frames as a reference, and only the first {frames} are seen: "
                "ask for more frames, or give a shorter one"
            ]
        if count <= frames - TIME_SCALE:
            return [f"{self.clip.name}: it ends after {count} of {frames} frames, and its last one stands still"]
        return []

    def pictures(self, window: Window, fps: Fraction, note: Note | None = None) -> Iterator[Tensor]:
        """Its pictures beside a window, uint8 [H, W, 3]. note: as for `Clip.pictures`."""
        taken = sampled(self.clip.pictures(fps, window.frames, window.starts_at(fps), note), self.use.stride)
        return islice(taken, self.frames(window))

    @property
    def still(self) -> bool:
        """Whether it is one picture, which is there for the whole film."""
        return self.clip.count(self.clip.fps) == 1

    def fitted(self, pictures: Iterable[Tensor], width: int, height: int) -> Iterator[Tensor]:
        """Its pictures in a size, float32 [1, 3, 1, height, width] in -1..1. Of a sheet with several persons none may
        be cut off, so a still picture gets a border. One that is held is scaled once."""
        shape = contain if (self.use.fit or (PAD if self.still else CROP)) == PAD else fit
        held = made = None
        for picture in pictures:
            if picture is not held:
                held, made = picture, shape(picture, width, height)
            yield made

    def encoded(self, windows: Iterable[Window], encode: Callable[[Window], Tensor]) -> Iterator[Tensor]:
        """`encode` of each window. A still picture is the same beside windows of one length, and is encoded once for
        those that follow each other."""
        made: dict[int, Tensor] = {}
        for window in windows:
            count = self.frames(window)
            if not self.still or count not in made:
                made = {count: encode(window)}
            yield made[count]


@dataclass(frozen=True)
class Example:
    """The sound that a job's model hears as an example: of the reference, or a file of its own. use: how it is used."""

    track: Track
    use: ReferenceUse


@dataclass(frozen=True)
class Given:
    """The videos of a job, None for what is not given, and the request that they make complete. reference: what is
    seen. example: what is heard of the reference. shown, lead, tail: as in `Plan`."""

    request: Request
    source: SourceVideo | None = None
    reference: ReferenceVideo | None = None
    example: Example | None = None
    shown: int = 0
    lead: int = 0
    tail: int = 0
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the source."""
        return None if self.source is None else (self.source.clip.width, self.source.clip.height)

    @property
    def downscale(self) -> int:
        return 1 if self.reference is None else self.reference.use.downscale


def open_videos(
    request: Request, video: Path | None, mask: Path | None, reference: Path | None, track: Track | None
) -> Given:
    """Opens the videos of a request and settles what it leaves to them: rate, size and length.

    track: the film's own sound, None if it has the source's. Raises InputError if a file cannot be read, or the request
    says something about a video that is not given.
    """
    if video is None and (request.edit is not None or mask is not None):
        name = "edit" if mask is None else "--mask"
        raise InputError(f"{name}: says what is made anew of a video, but no video is given; name it with --video.")
    if reference is None and request.reference is not None:
        raise InputError(
            "reference: says how a reference is used, but none is given; name a video, a picture or a sound with "
            "--reference."
        )
    given = Given(request)
    if video is not None:
        given = _with_source(request, open_clip(video), None if mask is None else open_area(mask), track)
    if reference is not None:
        use = request.reference or ReferenceUse()
        if is_sound(reference):  # then there is nothing else that it can be for
            use, ignored = use.of_sound()
            return replace(given, example=Example(_sound(reference), use), notes=(*given.notes, *ignored))
        seen = ReferenceVideo(open_reference(reference), use)
        heard = Example(_sound(reference), use) if use.sound else None
        given = replace(given, reference=seen, example=heard, notes=(*given.notes, *seen.clip.notes))
    return given


def _sound(reference: Path) -> Track:
    track = clip_track(reference)
    if track is None:
        raise InputError(f"{reference.name}: it has no sound; leave sound out of reference, or name another video.")
    check_example(reference.name, track)
    return track


def check_example(name: str, track: Track) -> None:
    """Raises InputError, which begins with the name, if a sound is too short for the model to hear it."""
    if track.seconds <= SHORTEST_SOUND:
        raise InputError(
            f"{name}: {float(track.seconds):.3f} s of sound are too short for an example; more than "
            f"{float(SHORTEST_SOUND):g} s are needed."
        )


def _with_source(request: Request, clip: Clip, area: Area | None, track: Track | None) -> Given:
    """Takes rate, size and length from the source where the request names none."""
    edit, named = request.edit or VideoEdit(), request.given
    fps = frame_rate(request.fps if "fps" in named else float(clip.fps))
    matched = "match_audio_length" in named and request.match_audio_length and track is not None
    follows = not matched and "num_frames" not in named  # the film ends with the source
    if matched and edit.extend is not None:
        raise InputError("match_audio_length: extend in edit makes num_frames frames; leave one of them out.")
    if follows and edit.extend is None:
        frames = shown_frames(clip, edit, fps)
    else:
        follows, frames = False, frames_for_audio(track, fps) if matched else request.num_frames
    place = placed(clip, edit, area, fps, frames, follows)
    source = _decided(place.source, (place.shown or place.frames) / fps, track)
    frames, notes = place.frames, [*clip.notes, *(() if area is None else area.notes), *place.notes]
    if not matched and not follows and frames != request.num_frames:
        notes.append(f"num_frames rounded up from {request.num_frames} to {frames}")
    if track is not None:
        fits = "match_audio_length makes the video as long" if edit.extend is None else "raise num_frames for more"
        notes += unheard(track, place.written, fps, fits)
    if frames > LONGEST and request.windows is None:
        notes.append(f"the film has {frames} frames, and the model was made for {LONGEST}: add windows to the request")
    if source.sounds and request.preprocess_audio and "preprocess_audio" in named:
        notes.append("preprocess_audio does nothing where sound is made anew")
    settled = replace(
        request,
        fps=request.fps if "fps" in named else float(clip.fps),
        video_size=request.video_size if "video_size" in named else AUTO,
        match_audio_length=False,
        num_frames=frames,
        preprocess_audio=request.preprocess_audio and not source.sounds,
    )
    around = {"shown": place.shown, "lead": place.lead, "tail": place.tail}
    return Given(settled, source, **around, notes=tuple(notes))


@dataclass(frozen=True)
class Placed:
    """A source in a film of which the model makes so many frames. shown, lead, tail: as in `Plan`; notes: sentences for
    the report."""

    source: SourceVideo
    frames: int
    shown: int = 0
    lead: int = 0
    tail: int = 0
    notes: tuple[str, ...] = ()

    @property
    def written(self) -> int:
        """The frames of the finished film."""
        return self.lead + (self.shown or self.frames) + self.tail


def placed(clip: Clip, edit: VideoEdit, area: Area | None, fps: Fraction, frames: int, follows: bool) -> Placed:
    """Where the source lies. frames: of the film, or with `extend` of the new part with its context; follows: whether
    the film ends with the source. Raises InputError if `extend` comes with an area, or leaves nothing new."""
    if edit.extend is not None:
        return _extended(clip, edit, area, fps, frames)
    at, count = round(Fraction(edit.at) * fps), clip.count(fps)
    if area is not None:
        area = replace(area, soften=edit.soften_pixels).on(clip, fps, -at / fps)
    source = SourceVideo(clip, edit, area, at / fps, math.inf if follows else float((at + count) / fps))
    whole, length, notes = round_frames(frames), at + count, [] if area is None else _told_mask(area, clip, edit, fps)
    if whole < length:
        notes.append(f"only the first {whole - at} of the video's {count} frames are used: ask for more to keep all")
    return Placed(source, whole, length if follows and length < whole else 0, notes=tuple(notes))


def _told_mask(area: Area, clip: Clip, edit: VideoEdit, fps: Fraction) -> list[str]:
    """A sentence for the report if a mask does nothing, or moves and ends before its source does: eight frames are a
    latent."""
    if edit.renew == SOUND:
        return ["the mask does nothing, because only the sound is made anew"]
    rate = clip.fps if area.clip is None else fps  # masks without a rate are one for each frame of the source
    found, count = len(area.frames) if area.clip is None else area.clip.count(fps), clip.count(rate)
    if found == 1 or found > count - TIME_SCALE:
        return []
    return [f"the mask ends after {found} of the video's {count} frames, and its last one stands still"]


def shown_frames(clip: Clip, edit: VideoEdit, fps: Fraction) -> int:
    """The frames of a film that ends with its source."""
    return clip.count(fps) + round(Fraction(edit.at) * fps)


def _extended(clip: Clip, edit: VideoEdit, area: Area | None, fps: Fraction, frames: int) -> Placed:
    if area is not None:
        raise InputError("--mask: extend in edit keeps the whole video, so a mask does nothing; leave one of them out.")
    found = stretch_beside(clip.count(fps), frames, edit.context, edit.extend)
    until = math.inf if found.shown else float((found.begin + found.count) / fps)
    edit, ignored = edit.extending()
    source = SourceVideo(clip, edit, None, found.begin / fps, until)
    return Placed(source, found.frames, found.shown, found.lead, found.tail, (found.told(), *ignored))


def _decided(source: SourceVideo, seconds: Fraction, track: Track | None) -> SourceVideo:
    """The source in a film of that length, with what is made anew decided. Raises InputError if that is nothing, or two
    inputs say what the sound is."""
    edit, beyond = source.edit, source.falls_short(seconds)
    renew = edit.renew or (BOTH if beyond and track is None else PICTURE)
    source = replace(source, edit=replace(edit, renew=renew))
    if source.sounds and track is not None:
        raise InputError("--audio: edit makes the sound anew, so no other track is used; leave out one of them.")
    check_reach(source, seconds, beyond)
    if not beyond and not source.says_what:
        raise InputError(
            "--video: nothing of it would be made anew; give a time, a strength or renew in edit, a region with "
            "--mask, or a longer film with num_frames."
        )
    return source


def check_reach(
    source: SourceVideo,
    seconds: Fraction,
    beyond: bool,
    at: str = "edit: at",
    start: str = "edit: start",
    mask: str = "--mask",
) -> None:
    """Raises InputError if the source or its new part begins behind the end of a film of so many seconds, or if a mask
    that is no video lets nothing of the source change: all would be sampled for a copy.

    beyond: whether the film goes on beyond the source. at, start, mask: what the user calls these.
    """
    edit, area, end = source.edit, source.area, float(seconds)
    if edit.extend is not None:
        return
    for name, second in ((at, edit.at), (start, edit.start or 0.0)):
        if second >= end:
            raise InputError(f"{name}: {second:g} s is behind the video's end at {end:g} s; give an earlier time.")
    drawn = None if area is None else area.frames  # a mask that is a video is read when it is used
    if not beyond and drawn is not None and edit.renew != SOUND and not drawn.any():
        raise InputError(
            f"{mask}: it is black everywhere, so no picture of the clip would be made anew; make white what may change."
        )


def unheard(track: Track, frames: int, fps: Fraction, remedy: str) -> list[str]:
    """A sentence for the report if a new track is longer than the video that it is for. remedy: what makes it fit."""
    if not seconds_beyond(track, frames, fps):
        return []
    return [
        f"only the first {float(frames / fps):.2f} s of the audio's {float(track.seconds):.2f} s are used, because the "
        f"video ends there: {remedy}"
    ]


def delayed(track: Track, seconds: Fraction) -> Track:
    """The track with so much silence before it; none if the seconds are below 0."""
    silence = torch.zeros(len(track.waveform), round(max(seconds, 0) * track.rate))
    return replace(track, waveform=torch.cat((silence, track.waveform), 1)) if seconds > 0 else track
