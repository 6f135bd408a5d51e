"""Samples one stage of a clip of any length, window after window.

Each window is a clip of its own for the model: its positions begin at 0 and its sound was cut and encoded for it alone.
The latents that it shares with the windows before are kept as they are (mask 0), so nothing is encoded a second time. A
clip of one window is sampled by one call of `sample`, with nothing added.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..latents import NoiseSource
from ..timeline import Section, section_at, streams
from ..windows import Window, WindowSize
from .conditioning import AudioCondition, Conditions, Guide, Reference, TextContext
from .sample import sample
from .samplers import UNWATCHED, Hooks
from .steering import Steering

AXES = (2, 3, 4)  # time, height and width
LEAST = 1e-3  # deviation of a picture that holds something
STRETCH = 1.25  # at most so much wider or narrower is the range of a latent's channel made
DIFFERENT = 1.0  # deviations of a picture from its mean by which a place differs if something else is seen there


@dataclass(frozen=True)
class Sampled:
    """What a window adds. video: float32 [1, 128, its new latents, H, W]; audio: the window's sound for the next stage;
    noise: the source for the next window; first: its latent 0, the one that stands for a single frame."""

    video: Tensor
    audio: AudioCondition
    noise: NoiseSource
    first: Tensor


@dataclass(frozen=True)
class WindowInputs:
    """A window and what it alone is conditioned on. sound: cut and encoded for it; positive: the context of its own
    prompt, if it has one; stream: the number of the stream of noise that it draws from; own: that of a stream for this
    window alone, if it has another seed; section: the number of its section.

    anchor: how strongly a window is held to the first frame of its section, if that begins the film or is behind a hard
    cut; drift: the share by which places of the picture that are as in the section's first window are pulled to it;
    joined: the share by which what the film adds to a given video is matched to it. references: those beside this
    window.
    """

    window: Window
    sound: AudioCondition
    positive: TextContext | None = None
    stream: int = 0
    own: int | None = None
    section: int = 0
    anchor: float = 0.0
    drift: float = 0.0
    joined: float = 0.0
    references: tuple[Reference, ...] = ()


def window_inputs(
    windows: Sequence[Window],
    sounds: Sequence[AudioCondition],
    sections: Sequence[Section] = (),
    contexts: Sequence[TextContext] = (),
    size: WindowSize | None = None,
    references: Sequence[tuple[Reference, ...]] = (),
) -> list[WindowInputs]:
    """The windows of a film, each with its sound, the context of its section and the number of its stream of noise.

    contexts: of each section; empty without a timeline. size: what the windows were asked for with, by default the
    defaults. references: of each window; empty without any. The streams are those of `noise_seeds`.
    """
    numbers, seeds = streams(sections, 0)  # the seed does not decide about the numbers
    size, parts = size or WindowSize(), []
    own = {number - 1: len(seeds) + place for place, (number, _) in enumerate(size.seeds)}
    for number, (window, sound) in enumerate(zip(windows, sounds, strict=True)):
        section = section_at(sections, window.new.start, sound.fps)
        positive = contexts[section] if contexts else None
        stream = numbers[section]
        seen = references[number] if references else ()
        shares = size.anchor, size.drift, size.joined
        parts.append(WindowInputs(window, sound, positive, stream, own.get(number), section, *shares, seen))
    return parts


def noise_seeds(sections: Sequence[Section], seed: int, size: WindowSize | None = None) -> tuple[int, ...]:
    """The seed of each stream of noise: those of the sections, then those of windows with a seed of their own."""
    return (*streams(sections, seed)[1], *(own for _, own in (size or WindowSize()).seeds))


class NotKept(Exception):
    """Raised by a `Keep` that makes nothing, for a window that it does not have."""


class Keep(Protocol):
    """Keeps the pieces of finished windows, so that a run that was ended can go on from them."""

    def __call__(
        self,
        make: Callable[[], Sampled],
        window: int,
        latent: Tensor,
        conditions: Conditions,
        steering: Steering,
        noise: NoiseSource,
    ) -> Sampled:
        """Returns the kept piece for these inputs of `sample`, or else the result of `make`."""


def keep_nothing(make: Callable[[], Sampled], *_: Any) -> Sampled:
    """The `Keep` of a run that keeps nothing."""
    return make()


# long: what a stage needs, by name
def sample_windows(
    model: nn.Module | None,
    latent: Tensor,
    parts: Sequence[WindowInputs],
    conditions: Conditions,
    steering: Steering,
    noises: Sequence[NoiseSource],
    *,
    device: torch.device | str | None = None,
    hooks: Callable[[int], Hooks] = lambda number: UNWATCHED,
    keep: Keep = keep_nothing,
    only: Container[int] | None = None,
    room: float | None = None,
) -> tuple[Tensor, tuple[AudioCondition, ...], tuple[NoiseSource, ...]]:
    """Samples a stage of a whole clip → its video latent, float32 [1, 128, F, H, W], the sound of each window for the
    next stage (frozen), and the streams of noise for the next stage.

    model: None if `keep` makes nothing. latent: of the whole, as `sample` takes it; if there are several windows, it
    is overwritten and returned. conditions: with the guides and the mask of the whole; its sound is not used, and its
    positive context by windows that have none of their own. noises: the streams of noise that the parts draw from, each
    in the order of its windows. hooks: those of each window, by its number. If `keep` raises NotKept, the stage ends,
    and what is before that window is returned. only: the numbers of the windows to be sampled, by default all; the
    latents of others and their sound stay as they are. A part of a film begins behind a hard cut. room: as for
    `sample`. Raises InputError as `sample`.
    """
    whole, sounds, sources = latent, [], list(noises)
    counts = [0] * len(sources)  # windows that were sampled from each stream
    anchors: dict[int, Tensor] = {}  # of each section
    behind = 0  # the latent behind the last hard cut
    for number, part in enumerate(parts):
        if only is not None and number not in only:
            sounds.append(part.sound.made(part.sound.latent))
            continue
        drawn_from = part.stream if part.own is None else part.own
        behind = part.window.new.start if part.window.cut else behind
        start, noise, before = start_of(part.window, whole, behind), sources[drawn_from], counts[part.stream]
        own = conditions_of(part, conditions, whole, anchors.get(part.section))
        make = partial(
            _sampled, part.window, model, start, own, steering, noise,
            device=device, hooks=hooks(number), window=before, room=room,
        )  # fmt: skip
        if len(parts) > 1 and _kept_whole(part.window, own):
            make = partial(_unchanged, part.window, start, own, noise)
        try:
            result = keep(make, before, start, own, steering, noise)
        except NotKept:
            whole = whole[:, :, : part.window.new.start]
            break
        if part.window.cut or not part.window.given:  # a section that goes on has no first frame of its own
            anchors[part.section] = result.first
        sounds.append(result.audio)
        if part.own is not None:  # the other windows draw what they drew without it
            sources[part.stream] = _advanced(sources[part.stream], start, own)
        sources[drawn_from] = result.noise
        counts[part.stream] += 1
        video = _coloured(result.video, parts, number, whole, conditions, steering)
        if len(parts) == 1:
            whole = video
        else:
            whole[:, :, part.window.new] = video
    return whole, tuple(sounds), tuple(sources)


def _advanced(noise: NoiseSource, start: Tensor, conditions: Conditions) -> NoiseSource:
    """The source after the noise of a window."""
    return noise.draw(*(tuple(stream.latent.shape) for stream in conditions.streams(start)))[1]


def _kept_whole(place: Window, conditions: Conditions) -> bool:
    """Whether a window adds nothing but what is kept of a source video, and its sound is kept as well."""
    mask, opened = conditions.mask, not place.given and any(not guide.frame for guide in conditions.guides)
    if conditions.clean is None or mask is None or opened or not conditions.audio.frozen:
        return False
    return not mask[:, :, place.given :].any()


def _unchanged(place: Window, start: Tensor, conditions: Conditions, noise: NoiseSource) -> Sampled:
    """What `sample` would make of such a window, without a pass. The other windows draw what they would draw."""
    clean = conditions.clean.float()
    return Sampled(
        clean[:, :, place.given :], conditions.audio.alone, _advanced(noise, start, conditions), clean[:, :, :1]
    )


def _coloured(
    video: Tensor,
    parts: Sequence[WindowInputs],
    number: int,
    whole: Tensor,
    conditions: Conditions,
    steering: Steering,
) -> Tensor:
    """The new latents of a window with the colours of the film's beginning, or of a given video. Those in which noise
    is left stay as they are."""
    video = video if len(parts) == 1 else video.to(whole.device)
    if steering.sigmas[-1] > 0:
        return video
    if conditions.clean is None:
        return _held(video, parts, number, whole, conditions.mask)
    return _joined(video, parts, number, conditions)


def _held(
    video: Tensor, parts: Sequence[WindowInputs], number: int, whole: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The new latents of a window, pulled to the first window of its section by the window's share. Cells that a mask
    of the whole keeps stay as they are."""
    part = parts[number]
    first = next(n for n, other in enumerate(parts) if other.section == part.section)
    if not part.drift or first == number:
        return video
    pulled = _pulled(video, whole[:, :, parts[first].window.new], part.drift)
    return pulled if mask is None else torch.where(mask[:, :, part.window.new].to(video) > 0, pulled, video)


def _joined(video: Tensor, parts: Sequence[WindowInputs], number: int, conditions: Conditions) -> Tensor:
    """The new latents of a window, of which those beyond a given video are matched and then pulled to that video's
    nearest ones by the window's shares, at most to as many of them as a window has. Those of another section stay.

    The model and the VAE have their own idea of a colour, from the first new frame on; the given video has its own.
    """
    part = parts[number]
    if conditions.filled is None or not part.joined:
        return video
    place, most, (first, stop) = part.window.new, part.window.length, conditions.filled
    video = video.clone()
    for begin, end, border, near in (
        (place.start, min(place.stop, first), first, slice(first, min(stop, first + most))),
        (max(place.start, stop), place.stop, stop - 1, slice(max(first, stop - most), stop)),
    ):
        beside = next(each for each in parts if each.window.new.start <= border < each.window.new.stop)
        if begin < end and beside.section == part.section:
            new, own = slice(begin - place.start, end - place.start), conditions.clean[:, :, near]
            video[:, :, new] = _pulled(_matched(video[:, :, new], own, part.joined), own, part.drift)
    return video


def _matched(video: Tensor, reference: Tensor, share: float) -> Tensor:
    """Latents whose channels get the mean and the deviation that they have in others, by a share.

    Both are taken over time and picture, so that no place keeps a trace of what was seen there before. As in `_pulled`,
    the share acts fully where the means differ by less than half of DIFFERENT, and not at all by more than all of it:
    then something else is seen. A deviation changes by at most STRETCH.
    """
    reference = reference.to(video)
    mean, wanted = (each.mean(AXES, keepdim=True) for each in (video, reference))
    spread, deviation = (
        (each - at).square().mean(AXES, keepdim=True).sqrt() for each, at in ((video, mean), (reference, wanted))
    )
    off = deviation.square().mean().sqrt().clamp(min=LEAST)
    alike = (2 - 2 * (wanted - mean).square().mean().sqrt() / (DIFFERENT * off)).clamp(0, 1)
    scale = (deviation / spread.clamp(min=LEAST)).clamp(1 / STRETCH, STRETCH)
    return video.lerp((video - mean) * scale + wanted, share * alike)


def _pulled(video: Tensor, reference: Tensor, share: float) -> Tensor:
    """Latents, pulled to others by a share.

    At each place of the picture the mean over time is compared. Where both differ by less than half of DIFFERENT, it is
    drift, and the share acts fully; where they differ by more than all of it, nothing changes.
    """
    reference = reference.to(video)
    off = (reference - reference.mean(AXES, keepdim=True)).square().mean().sqrt().clamp(min=LEAST)
    change = reference.mean(2, keepdim=True) - video.mean(2, keepdim=True)
    alike = 2 - 2 * change.square().mean(1, keepdim=True).sqrt() / (DIFFERENT * off)
    return video + share * alike.clamp(0, 1) * change


def _sampled(place: Window, *inputs: Any, **named: Any) -> Sampled:
    """Samples the window at that place with these inputs of `sample`."""
    latent, audio, noise = sample(*inputs, **named)
    return Sampled(latent[:, :, place.given :], audio, noise, latent[:, :, :1].clone())


def start_of(window: Window, whole: Tensor, behind: int = 0) -> Tensor:
    """The start latent of one window [1, 128, f, H, W], of that of the whole [1, 128, F, H, W]. behind: the latent
    behind the last hard cut. The window's latent 0 is the whole's at that place, but a copy of the next one if that
    place is before the cut, so that nothing there acts on it."""
    start = whole[:, :, window.whole]
    if window.start < behind:
        start = torch.cat((start[:, :, 1:2], start[:, :, 1:]), dim=2)
    return start


def conditions_of(
    part: WindowInputs, conditions: Conditions, whole: Tensor, anchor: Tensor | None = None
) -> Conditions:
    """The conditions of one window: its sound, its prompt and its references, the guides at frames that it adds, and a
    mask that keeps its overlap. Of a source video, what is clean in the overlap is what the windows before made of it.

    Its latent 0 is free: it stands for one frame, while the whole's latent at that place stands for eight. Only at the
    film's beginning both are the same, and latent 0 is kept unless there is a cut. An image at the first frame behind a
    hard cut is that latent 0, as the first image of a clip is. In a window that goes on with the one before it is the
    anchor [1, 128, 1, H, W], if there is one yet and no source video.
    """
    window, guides = part.window, []
    for guide in conditions.guides:
        frame = window.frame_within(guide.frame)
        if frame is not None:
            guides.append(replace(guide, frame=0 if window.cut and frame == 1 else frame))
    if part.anchor and window.given and not window.cut and anchor is not None and conditions.clean is None:
        guides.append(Guide(anchor, 0, part.anchor))
    mask, clean = (None if each is None else each[:, :, window.whole] for each in (conditions.mask, conditions.clean))
    if clean is not None and window.given:
        clean = clean.clone()
        clean[:, :, : window.given] = whole[:, :, window.whole][:, :, : window.given]
    if window.given:
        mask = torch.ones_like(whole[:, :1, window.whole]) if mask is None else mask.clone()
        mask[:, :, :1] = float(window.cut or window.start > 0)
        mask[:, :, 1 : window.given] = 0
    positive = part.positive or conditions.positive
    return replace(
        conditions,
        positive=positive,
        audio=part.sound,
        guides=tuple(guides),
        mask=mask,
        clean=clean,
        references=part.references or conditions.references,
        dropped=window.given > 0,
    )
