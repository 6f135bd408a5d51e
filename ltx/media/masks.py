"""The part of a clip's picture that may change: for the latent's cells, and for the pixels of the finished frames.

A cell of the latent may change if any pixel in it may: otherwise a pixel that was asked for would stay as it is. So the
cells reach beyond the mask, and after decoding the pixels outside it become the source's own again. The seam lies
inside the mask, so that nothing outside it changes, not even a little.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..edits import MOST_PIXELS
from ..errors import InputError
from ..grid import SPACE_SCALE, TIME_SCALE, video_shape
from .clip import EITHER, Clip, open_clip
from .images import covering, fit, load_image, moves

FEATHER = 8  # pixels of the seam: a quarter of a cell, in which the decoder's own seam has ended


@dataclass(frozen=True, eq=False)
class Area:
    """What may change in a clip's picture: frames of numbers from 0, which keeps, to 1.

    frames: float [n, H, W] in 0..1, which belong to the times k / fps; one frame holds for all times. clip: or a clip
    whose white may change. size: width and height of the picture that the mask is laid over; None is the mask's own.
    soften: pixels of that picture over which the mask rises from its border inwards, in cells and pixels alike, and
    soften_time the same in seconds. feather: pixels of the seam when decoded frames and source are blended, and
    feather_time the same in seconds. start: seconds of the clip at which the video begins; rate: the video's frames per
    second. note: as for `Clip.pictures`, wherever none is given. Raises InputError if a number cannot be used.
    """

    frames: Tensor | None = None
    fps: Fraction = Fraction(24)
    clip: Clip | None = None
    size: tuple[int, int] | None = None
    soften: float = 0
    soften_time: float = 0
    feather: float = FEATHER
    feather_time: float = 0
    start: Fraction = Fraction(0)
    rate: Fraction = Fraction(24)
    note: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        for name in ("soften", "feather"):
            value, seconds = getattr(self, name), getattr(self, f"{name}_time")
            if not 0 <= value <= MOST_PIXELS:
                raise InputError(f"{name}: {value} is not a number of pixels from 0 to {MOST_PIXELS}.")
            if not 0 <= seconds <= 10:
                raise InputError(f"{name}: its time of {seconds} seconds is not from 0 to 10.")

    def on(self, clip: Clip, rate: Fraction, start: Fraction = Fraction(0)) -> Area:
        """The same area, laid over the picture of a clip, for a video that begins at `start` of it. Frames that are not
        a clip of their own belong to the frames of that clip."""
        return replace(self, fps=clip.fps, size=(clip.width, clip.height), rate=Fraction(rate), start=Fraction(start))

    @property
    def still(self) -> bool:
        """Whether it is the same at all times."""
        return self.frames is not None and len(self.frames) == 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What the report says about its file."""
        return () if self.clip is None else self.clip.notes

    def cells(self, frames: int, height: int, width: int) -> Tensor:
        """The mask for the latent of a video of that size in pixels → float32 [1, 1, F, H / 32, W / 32], the largest
        value of the pixels and frames in each cell."""
        shape = video_shape(frames, height, width)
        found = torch.zeros(shape)
        for number, mask in enumerate(self._softened(frames)):
            part = self._visible(mask, height, width)
            pooled = F.adaptive_max_pool2d(part[None, None], (height // SPACE_SCALE, width // SPACE_SCALE))[0, 0]
            if self.still:
                found[:] = pooled
                break
            cell = -(-number // TIME_SCALE)
            found[cell] = torch.maximum(found[cell], pooled)
        return found[None, None]

    def weights(
        self, frames: int, height: int, width: int, note: Callable[[str], None] | None = None
    ) -> Iterator[Tensor]:
        """Yields for each frame of a video of that size the share of the new picture, float32 [height, width]: 0
        outside the mask, and 1 inside behind the seam. note: as for `Clip.pictures`."""
        scale = max(width / self._laid[0], height / self._laid[1])
        seam = round(self.feather * scale)

        def sized() -> Iterator[Tensor]:
            for mask in self._softened(frames, note):
                yield _ramp(self._resized(mask, height, width), seam)
                if self.still:
                    return

        if self.still:
            weight = next(sized())
            for _ in range(frames):
                yield weight
            return
        yield from _ramp_in_time(sized(), round(self.feather_time * self.rate))

    @property
    def _laid(self) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        if self.frames is not None:
            return self.frames.shape[2], self.frames.shape[1]
        return self.clip.width, self.clip.height

    def _masks(self, count: int, note: Callable[[str], None] | None) -> Iterator[Tensor]:
        """float32 [H, W] for each frame of the video, at its own size."""
        if self.frames is None:
            for picture in self.clip.pictures(self.rate, count, self.start, note or self.note):
                yield picture.float().mean(dim=2).div_(255)
            return
        for number in range(count):
            at = math.floor((self.start + number / self.rate) * self.fps)
            yield self.frames[min(max(at, 0), len(self.frames) - 1)]

    def _softened(self, count: int, note: Callable[[str], None] | None = None) -> Iterator[Tensor]:
        def softened() -> Iterator[Tensor]:
            for mask in self._masks(1 if self.still else count, note):
                yield _ramp(mask, round(self.soften * mask.shape[1] / self._laid[0]))

        return softened() if self.still else _ramp_in_time(softened(), round(self.soften_time * self.rate))

    def _visible(self, mask: Tensor, height: int, width: int) -> Tensor:
        """The part of the mask that the video shows, to whole pixels of the mask."""
        rows, columns, top, left = covering(self._laid[1], self._laid[0], height, width)
        tall, wide = mask.shape
        above, below = top * tall // rows, -(-(top + height) * tall // rows)
        before, behind = left * wide // columns, -(-(left + width) * wide // columns)
        return mask[above:below, before:behind]

    def _resized(self, mask: Tensor, height: int, width: int) -> Tensor:
        """The mask for the video's pixels, smooth, and 0 wherever the mask's nearest pixel is 0."""
        rows, columns, top, left = covering(self._laid[1], self._laid[0], height, width)
        if mask.shape != (rows, columns):
            one = mask[None, None]
            smooth = F.interpolate(one, size=(rows, columns), mode="bilinear", align_corners=False)
            mask = (smooth * (F.interpolate(one, size=(rows, columns), mode="nearest-exact") > 0))[0, 0]
        return mask[top : top + height, left : left + width]


def area_of(masks: Tensor) -> Area:
    """ComfyUI's MASK as an area: [H, W], [n, H, W] or [n, 1, H, W], floats in 0..1, bytes or booleans.

    Raises InputError if it is something else or has no finite numbers.
    """
    if not isinstance(masks, Tensor) or not masks.numel() or masks.is_complex():
        raise InputError(f"mask: it is {type(masks).__name__} without numbers; [frames, height, width] is needed.")
    values = masks.detach().cpu()
    values = values[:, 0] if values.ndim == 4 and values.shape[1] == 1 else values
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3:
        raise InputError(f"mask: its shape is {list(masks.shape)}; [frames, height, width] is needed.")
    values = values.float().div(255) if values.dtype == torch.uint8 else values.float()
    if not values.isfinite().all():
        raise InputError("mask: it has NaN or infinite values; check the node that it comes from.")
    return Area(values.clamp(0, 1))


def open_area(path: str | Path) -> Area:
    """A picture or a video whose white may change, and whose black stays. Raises InputError, which names the file."""
    if moves(path):
        return Area(clip=open_clip(path, EITHER))
    return Area(load_image(path).float().mean(dim=2).div_(255)[None])


def fitted(pictures: Iterable[Tensor], width: int, height: int) -> Iterator[Tensor]:
    """Pictures uint8 [h, w, 3] → uint8 [height, width, 3], scaled and cropped as for the model. A picture of that size
    stays as it is."""
    for picture in pictures:
        if picture.shape[:2] == (height, width):
            yield picture
        else:
            pixels = fit(picture, width, height)[0, :, 0].permute(1, 2, 0)
            yield pixels.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def blend(decoded: Iterable[Tensor], source: Iterable[Tensor], weights: Iterable[Tensor]) -> Iterator[Tensor]:
    """Decoded frames uint8 [n, H, W, 3], in chunks as they come, over the source's frames uint8 [H, W, 3].

    weights: the share of the decoded frame at each pixel, [H, W]; where it is 0, the source's bytes come out.
    """
    source, weights = iter(source), iter(weights)
    for chunk in decoded:
        yield torch.stack([_blended(frame, next(source), next(weights)) for frame in chunk])


def _blended(new: Tensor, old: Tensor, weight: Tensor) -> Tensor:
    if new.shape != old.shape:
        raise ValueError(f"the source's frame is {list(old.shape)}, and the decoded one is {list(new.shape)}")
    if not weight.any():
        return old
    new, old = new.float(), old.float()
    return torch.lerp(old, new, weight[..., None].float()).round_().to(torch.uint8)


def _ramp(mask: Tensor, radius: int) -> Tensor:
    """A mask [H, W] that rises inwards: at d pixels from the outside it is d / (radius + 1) of itself. The picture's
    border is no outside."""
    if radius <= 0 or not mask.any() or bool((mask == 1).all()):
        return mask
    # Nothing outside the rows and columns that have it changes.
    rows, columns = (mask.any(dim=axis).nonzero().flatten() for axis in (1, 0))
    box = tuple(slice(max(0, int(each[0]) - 1), int(each[-1]) + 2) for each in (rows, columns))
    eroded, total = mask[box], mask[box].clone()
    for _ in range(radius):
        eroded = _eroded(_eroded(eroded).T).T
        total += eroded
    ramp = torch.zeros_like(mask)
    ramp[box] = total / (radius + 1)
    return ramp


def _eroded(mask: Tensor) -> Tensor:
    """The least of each value and those above and below it."""
    least = mask.clone()
    torch.minimum(least[1:], mask[:-1], out=least[1:])
    torch.minimum(least[:-1], mask[1:], out=least[:-1])
    return least


def _ramp_in_time(masks: Iterable[Tensor], radius: int) -> Iterator[Tensor]:
    """The same in time, for masks in order. Holds 2·radius + 1 of them."""
    if radius <= 0:
        yield from masks
        return
    held: deque[Tensor] = deque()
    before = 0  # of the held masks, those before the next one to be yielded

    def ramped() -> Tensor:
        lowest = total = held[before]
        for distance in range(1, radius + 1):
            for at in (before - distance, before + distance):
                if 0 <= at < len(held):
                    lowest = torch.minimum(lowest, held[at])
            total = total + lowest
        return total / (radius + 1)

    for mask in masks:
        held.append(mask)
        if len(held) - before > radius:
            yield ramped()
            before += 1
            if before > radius:
                held.popleft()
                before -= 1
    while before < len(held):
        yield ramped()
        before += 1
        if before > radius:
            held.popleft()
            before -= 1
