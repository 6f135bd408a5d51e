"""Tokens of the two streams that are sampled together, with arithmetic, and fresh noise for both."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Patchified tokens of both streams: video [1, Nv, C] and audio [1, Na, C].

    Arithmetic works on each stream; a number, or a tensor without dimensions, applies to both.
    """

    video: Tensor
    audio: Tensor

    def map(self, function: Callable[..., Tensor], *others: Tokens | Tensor | float) -> Tokens:
        """Calls function(own tensor, the others' tensors of that stream) for each stream and joins the results."""
        pairs = [(o.video, o.audio) if isinstance(o, Tokens) else (o, o) for o in others]
        return Tokens(function(self.video, *(v for v, _ in pairs)), function(self.audio, *(a for _, a in pairs)))

    def to(self, device: torch.device) -> Tokens:
        return self.map(lambda own: own.to(device))

    def float(self) -> Tokens:
        return self.map(Tensor.float)

    def double(self) -> Tokens:
        return self.map(Tensor.double)

    def __add__(self, other: Tokens | Tensor | float) -> Tokens:
        return self.map(operator.add, other)

    def __sub__(self, other: Tokens | Tensor | float) -> Tokens:
        return self.map(operator.sub, other)

    def __rsub__(self, other: Tensor | float) -> Tokens:
        return self.map(lambda own: other - own)

    def __mul__(self, other: Tokens | Tensor | float) -> Tokens:
        return self.map(operator.mul, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Tokens | Tensor | float) -> Tokens:
        return self.map(operator.truediv, other)


class FreshNoise:
    """Its own stream of Gaussian noise for a seed. Each call draws for the video tokens and then for the audio
    tokens."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator("cpu").manual_seed(seed % 2**64)

    def __call__(self, like: Tokens, dtype: torch.dtype = torch.float32) -> Tokens:
        """Noise with the shape and device of `like`. It is drawn on the CPU, so a seed gives the same on any device."""
        return like.map(lambda own: sent(torch.randn(own.shape, generator=self.generator, dtype=dtype), own.device))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. A GPU copies it from pinned memory, so that the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Tensors one after the other along `dim`. One alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim)
