"""Draws the edges of a clip's pictures, as a control video for an IC-LoRA that was trained on such drawings.

The edges are Canny's, as OpenCV defines them for bytes: Sobel's derivatives, |x| + |y| as their size, the thinnest line
along each ridge, and every weak edge that touches a strong one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from .clip import Clip

WEAK, STRONG = 100, 200  # what OpenCV's own examples and most users take
LARGEST = 2040  # size of an edge between bytes
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
STEEP = np.tan(np.pi / 8)  # a direction up to 22.5 degrees from an axis counts as that axis
EIGHT = np.ones((3, 3), dtype=bool)  # a pixel touches its eight neighbours


@dataclass(frozen=True)
class EdgeClip:
    """The edges of another clip, as `Clip`. weak, strong: sizes above which an edge may be drawn, and is drawn."""

    source: Clip
    weak: float = WEAK
    strong: float = STRONG

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def width(self) -> int:
        return self.source.width

    @property
    def height(self) -> int:
        return self.source.height

    @property
    def fps(self) -> Fraction:
        return self.source.fps

    @property
    def seconds(self) -> Fraction:
        return self.source.seconds

    @property
    def notes(self) -> tuple[str, ...]:
        return self.source.notes

    def count(self, fps: Fraction) -> int:
        return self.source.count(fps)

    def pictures(
        self, fps: Fraction, frames: int, start: Fraction = Fraction(0), note: Callable[[str], None] | None = None
    ) -> Iterator[Tensor]:
        picture, drawn = None, None
        for held in self.source.pictures(fps, frames, start, note):
            if held is not picture:  # a picture that is held is drawn once
                picture, drawn = held, edges(held, self.weak, self.strong)
            yield drawn


def edges(picture: Tensor, weak: float = WEAK, strong: float = STRONG) -> Tensor:
    """Picture, uint8 [H, W, 3] → its edges, white on black, uint8 [H, W, 3]."""
    from scipy import ndimage  # ComfyUI has it; few jobs need it

    grey = np.rint(picture.numpy() @ LUMA).astype(np.int16)
    across, down = (ndimage.sobel(grey, axis, mode="nearest") for axis in (1, 0))
    size = np.abs(across) + np.abs(down)
    drawn = ndimage.label((size > weak) & _ridge(size, across, down), EIGHT)[0]
    kept = np.unique(drawn[size > strong])
    lines = np.isin(drawn, kept[kept > 0])
    return torch.from_numpy(np.repeat((lines * np.uint8(255))[..., None], 3, axis=2))


def _ridge(size: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Where an edge is larger than beside it, across the line. Of two equal pixels the first one counts."""
    padded = np.pad(size, 1)
    height, width = size.shape

    def beside(rows: int, columns: int) -> np.ndarray:
        return padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    def top(rows: int, columns: int) -> np.ndarray:
        return (size > beside(-rows, -columns)) & (size >= beside(rows, columns))

    flat, upright = np.abs(down) < STEEP * np.abs(across), np.abs(across) < STEEP * np.abs(down)
    falling = (across > 0) == (down > 0)
    return np.select([flat, upright, falling], [top(0, 1), top(1, 0), top(1, 1)], top(1, -1))
