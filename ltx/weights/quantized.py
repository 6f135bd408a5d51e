"""Linear layers whose weight stays as its file stores it, as fp8 or GGUF blocks, and is decoded at each call.

The bytes are a parameter of dtype uint8, so casting the module casts biases and norms and leaves the bytes unchanged.
Decoding computes in float32 and rounds once to the input's dtype. A LoRA pair on such a layer is a branch beside the
weight, y += s·(x·Aᵀ)·Bᵀ. Other kinds of change (adapters.py) are added to the decoded weight at each call, in float32,
because they have no cheap form beside the layer. Merging into the stored weight would round to the quantized grid, and
each change of strength would rewrite the weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import Adapter, Edit, Leaf, LowRank, combine

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
PLAIN = ("proj_in", "audio_proj_in")
"""Layers that are decoded when they are loaded, because the sampler reads the compute dtype from proj_in's weight."""


class Coding(Protocol):
    """How the bytes of a weight are decoded."""

    def decode(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 [out, bytes of a row] → weight [out, in] in `dtype`, on the device of `data`."""


@dataclass(frozen=True, eq=False)
class Float8:
    """One byte per value; value = byte as `dtype` · scale. scale: float32, one number [] or one per row [out, 1]."""

    dtype: torch.dtype
    scale: Tensor | None = field(default=None, repr=False)

    def decode(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        values = data.view(self.dtype).to(dtype)  # exact, because both formats fit into bfloat16, float16 and float32
        if self.scale is None:
            return values
        if self.scale.ndim == 0:
            return values.mul_(self.scale)  # a CPU scalar: any device multiplies it in float32 and rounds once
        return (values.float() * self.scale.to(data.device)).to(dtype)


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor as its file stores it."""

    data: Tensor = field(repr=False)
    shape: torch.Size
    coding: Coding

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.coding.decode(self.data, dtype).reshape(self.shape)


def float8(weight: Tensor, scale: Tensor | None = None) -> Stored:
    """Joins a file's float8 tensor with the scale beside it, which has one element, or one per row.

    Raises ValueError if the scale has another shape.
    """
    if scale is not None:
        scale = scale.detach().float()
        if scale.numel() == 1:
            scale = scale.reshape(())
        elif weight.ndim == 2 and scale.numel() == weight.shape[0]:
            scale = scale.reshape(-1, 1)
        else:
            raise ValueError(f"a scale of shape {tuple(scale.shape)} for a weight of shape {tuple(weight.shape)}")
    return Stored(weight.view(torch.uint8), weight.shape, Float8(weight.dtype, scale))


def to_float8(weight: Tensor) -> Stored:
    """Rounds a weight to float8_e4m3fn, scaled so that its largest value becomes the largest of the format.

    All values share one scale. The format is a floating-point one, so a scale per row gains nothing. Without a scale,
    small weights become subnormal numbers: the relative error of normal weights with deviation 0.02 is 0.033 without a
    scale and 0.0265 with one.
    """
    weight = weight.float()
    top = torch.finfo(torch.float8_e4m3fn).max
    scale = (weight.abs().amax() / top).clamp_min(torch.finfo(torch.float32).tiny)
    return float8((weight / scale).clamp_(-top, top).to(torch.float8_e4m3fn), scale.cpu())


class Branch(nn.Module):
    """One LoRA pair beside a layer, x [..., in] → x·Aᵀ·Bᵀ [..., out]. down: A [rank, in]; up: B [out, rank]."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down = Leaf(down)
        self.up = Leaf(up)

    def forward(self, x: Tensor, y: Tensor, scale: float) -> Tensor:
        """Adds it, times `scale`, to the layer's output `y` [..., out], in place and as part of the product: in all the
        output is read and written once."""
        inner = self.down(lambda down: F.linear(x, down), x.device, x.dtype).flatten(0, -2)
        self.up(lambda up: y.view(-1, y.shape[-1]).addmm_(inner, up.t(), alpha=scale), x.device, x.dtype)
        return y


Beside = Branch | Edit
"""A change beside a quantized weight: of the layer's output, or of its decoded weight."""


def beside(adapter: Adapter) -> Beside:
    return Branch(adapter.down, adapter.up) if isinstance(adapter, LowRank) else Edit(adapter)


def factor(adapter: Adapter, strength: float) -> float:
    """The factor of beside(adapter) at a strength. A branch computes up @ down without the pair's scale."""
    return strength * adapter.scale if isinstance(adapter, LowRank) else strength


class QuantizedLinear(nn.Linear):
    """An nn.Linear over a stored weight. branches: changes with their factors.

    The branches are not submodules: the code that sets them also moves them to a device. If a branch is on another
    device than the input, it is copied at each call.
    """

    def __init__(self, stored: Stored, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = stored.shape
        self.coding = stored.coding
        self.weight = nn.Parameter(stored.data, requires_grad=False)
        self.bias = bias
        self.branches: tuple[tuple[Beside, float], ...] = ()

    def decoded(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Decodes the weight [out, in], without its branches."""
        return self.coding.decode(self.weight, dtype)

    def coding_on(self, device: torch.device) -> Coding:
        """The coding with its tensors on `device`, where the input is."""
        return self.coding

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.weight, self.bias)

    def compute(self, x: Tensor, data: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., in] → [..., out]. The bytes and the bias must be on the device of x."""
        y = F.linear(x, self._weight(data, x), None if bias is None else bias.to(x.dtype))
        for branch, scale in self.branches:
            if isinstance(branch, Branch):
                y = branch(x, y, scale)
        return y

    def _weight(self, data: Tensor, x: Tensor) -> Tensor:
        """The decoded weight with its edits, in the dtype and on the device of `x`."""
        coding = self.coding_on(x.device)
        edits = [(edit, scale) for edit, scale in self.branches if isinstance(edit, Edit)]
        if not edits:
            return coding.decode(data, x.dtype)
        return combine(coding.decode(data, torch.float32), edits).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, coding={self.coding}"


def weight_shape(module: nn.Module, name: str) -> torch.Size | None:
    """Returns the shape of a parameter by its name, or None if there is no such parameter. For a quantized weight it is
    the shape of the decoded values."""
    owner, _, last = name.rpartition(".")
    try:
        layer = module.get_submodule(owner)
    except AttributeError:
        return None
    if isinstance(layer, QuantizedLinear) and last == "weight":
        return torch.Size((layer.out_features, layer.in_features))
    parameter = layer._parameters.get(last)
    return None if parameter is None else parameter.shape


def replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Replaces the submodule of that name by `layer`."""
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, layer)


def quantize(
    module: nn.Module,
    on: torch.device | str = "cpu",
    to: torch.device | str = "cpu",
    prefix: str = "transformer_blocks.",
) -> None:
    """Rounds the weight of every linear layer below `prefix` to fp8, one layer after the other; biases do not change.

    on: the device that computes the rounding; to: the device that keeps the bytes.
    """
    for name, layer in list(module.named_modules()):
        if type(layer) is nn.Linear and name.startswith(prefix):
            stored = to_float8(layer.weight.to(on))
            stored = Stored(stored.data.to(to), stored.shape, stored.coding)
            replace(module, name, QuantizedLinear(stored, layer.bias))
