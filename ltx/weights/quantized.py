"""Linear layers whose weight stays as its file stores it, as fp8, int8, 4 bits or GGUF blocks, and is decoded at each
call.

The bytes are a parameter of dtype uint8, so casting the module casts biases and norms and leaves the bytes unchanged.
Decoding computes in float32 and rounds once to the input's dtype. A LoRA pair on such a layer is a branch: where the
input has many tokens, s·B·A is added to the decoded weight, as merging into a 16-bit file does; where it has few, it is
a product beside the weight, y += s·(x·Aᵀ)·Bᵀ. Other kinds of change (adapters.py) are added to the decoded weight in
float32, because they have no cheap form beside the layer. Merging into the stored weight would round to the quantized
grid, and each change of strength would rewrite the weight.

With `fast`, a card that has such arithmetic multiplies in the weight's own format instead (products.py), which also
rounds the input. It is off unless somebody asks for it, because it changes the numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..computing import WITH_ASYNC_COPIES, WITH_FLOAT8
from .adapters import Adapter, Edit, Leaf, LowRank, combine
from .decoding import decode, float8_values
from .products import Kept, WeightFormat, float8_product, multiplies_float8
from .rounding import Input, Rounded

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
PLAIN_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
BLOCKS = "transformer_blocks."
PLAIN = ("proj_in", "audio_proj_in")
"""Layers that are decoded when they are loaded, because the sampler reads the compute dtype from proj_in's weight."""


class Coding(Protocol):
    """How the bytes of a weight are decoded.

    scales: the bytes of the numbers that belong to its rows or blocks, None if the weight's bytes hold them. They are a
    parameter of the layer, so that they move with it.
    """

    scales: Tensor | None
    format: WeightFormat

    def decode(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 [out, bytes of a row] → weight [out, in] in `dtype`, on the device of `data`."""

    def product(self, x: Input, data: Tensor, bias: Tensor | None) -> Tensor | None:
        """x [M, in] times the weight, plus the bias, in the weight's own format [M, out]; None where that cannot be
        computed. Only `Float8` gets an input that was rounded before."""


@dataclass(frozen=True, eq=False)
class Float8:
    """One byte per value; value = byte as `dtype` · scale. scale: float32 [], one for all values, or None; scales: the
    bytes of one float32 per row, or None. factor: the number in `scale`."""

    dtype: torch.dtype
    scale: Tensor | None = field(default=None, repr=False)
    scales: Tensor | None = field(default=None, repr=False)
    factor: float = field(default=1.0, repr=False)
    _kept: Kept = field(default_factory=dict, repr=False)

    @property
    def format(self) -> WeightFormat:
        if self.dtype != FLOAT8[0]:
            return WeightFormat("fp8 (e5m2)")
        return WeightFormat("fp8", "fp8") if self.scales is None else WeightFormat("fp8 by rows", "fp8", by_rows=True)

    def decode(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        scales = self.factor if self.scales is None else floats(self.scales, data.device)
        if (weight := decode(data, self.dtype, scales, dtype)) is not None:
            return weight
        values = float8_values(data, self.dtype, dtype)
        if self.scales is not None:
            return torch.mul(values, scales.view(-1, 1), out=torch.empty_like(values))
        # a CPU scalar: any device multiplies it in float32 and rounds once
        return values if self.scale is None else values.mul_(self.scale)

    def rows(self, numbers: Tensor) -> Float8:
        return replace(self, scales=scales_of(self.scales, numbers))

    def product(self, x: Input, data: Tensor, bias: Tensor | None) -> Tensor | None:
        weight = data.view(self.dtype)
        if self.scales is not None:
            return float8_product(x, weight, floats(self.scales, data.device), bias)
        if torch.compiler.is_compiling():
            return float8_product(x, weight, self.factor if self.scale is None else self.scale, bias)  # as for branches
        return float8_product(x, weight, self.factor, bias, self._kept)


def floats(scales: Tensor, device: torch.device) -> Tensor:
    """The float32 numbers [n] that these bytes hold."""
    return _on(device, scales).view(torch.float32)


def _on(device: torch.device, scales: Tensor) -> Tensor:
    return scales.to(device, non_blocking=device.type in WITH_ASYNC_COPIES)


def scales_of(scales: Tensor | None, rows: Tensor) -> Tensor | None:
    """The bytes of the scales of some rows [n] of a weight. One scale for all rows stays as it is."""
    single = scales is None or scales.numel() == torch.float32.itemsize
    return scales if single else scales.view(-1, torch.float32.itemsize)[rows].flatten()


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
    data = weight.view(torch.uint8)
    if scale is None or scale.numel() == 1:
        given = None if scale is None else scale.detach().float().reshape(())
        return Stored(data, weight.shape, Float8(weight.dtype, given, factor=number_of(given)))
    if weight.ndim != 2 or not one_per_row(scale, weight.shape[0]):
        raise ValueError(f"a scale of shape {tuple(scale.shape)} for a weight of shape {tuple(weight.shape)}")
    return Stored(data, weight.shape, Float8(weight.dtype, scales=as_bytes(scale)))


def one_per_row(scale: Tensor, rows: int) -> bool:
    """Whether a scale has one number for each row. One of [1, in] is for columns, also where there are as many rows."""
    return scale.ndim > 0 and scale.numel() == scale.shape[0] == rows


def number_of(scale: Tensor | None) -> float:
    """The number in a scale of one element, 1 for None. A rehearsal (memory/rehearsal.py) has no numbers: also 1."""
    return 1.0 if scale is None or scale.is_meta else float(scale)


def as_bytes(scales: Tensor) -> Tensor:
    """The bytes of float32 numbers, which a cast of a module leaves as they are."""
    return scales.detach().float().flatten().contiguous().view(torch.uint8)


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

    def forward(self, x: Tensor, y: Tensor, scale: float | Tensor) -> Tensor:
        """Adds it, times `scale`, to the layer's output `y` [..., out], in place and as part of the product: in all the
        output is read and written once. A scale that is a tensor [] multiplies what lies between the two products."""
        inner = self.down(lambda down: F.linear(x, down), x.device, x.dtype).flatten(0, -2)
        if isinstance(scale, Tensor):
            inner, scale = inner * scale, 1.0
        self.up(lambda up: y.view(-1, y.shape[-1]).addmm_(inner, up.t(), alpha=scale), x.device, x.dtype)
        return y


Pairs = Sequence[tuple[Branch, float | Tensor]]


def join(weight: Tensor, pairs: Pairs) -> Tensor:
    """Adds the sum of s·B·A of all pairs to a decoded weight [out, in], in place, in one product: the sum is computed
    in float32 and rounded once."""
    # Products and clones are copies, because ComfyUI may fetch a later tensor into an earlier one's memory.
    downs = [branch.down(lambda down, s=scale: down * s, weight.device, weight.dtype) for branch, scale in pairs]
    if len(pairs) == 1:
        return pairs[0][0].up(lambda up: weight.addmm_(up, downs[0]), weight.device, weight.dtype)
    ups = [branch.up(torch.clone, weight.device, weight.dtype) for branch, _ in pairs]
    return weight.addmm_(torch.cat(ups, 1), torch.cat(downs))


def joining_is_cheaper(tokens: int, inputs: int, outputs: int) -> bool:
    """Whether a pair costs fewer FLOPs in the weight [outputs, inputs] than beside it. Its rank does not matter.

    Compiled code always joins: a bound on the tokens would compile a block anew for each side of it.
    """
    return torch.compiler.is_compiling() or tokens * (inputs + outputs) > inputs * outputs


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
    device than the input, it is copied at each call. Compiled code reads the factors as tensors: a number would be a
    constant of it, and every strength would be compiled anew.
    """

    def __init__(self, stored: Stored, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = stored.shape
        self.coding = stored.coding
        self.weight = nn.Parameter(stored.data, requires_grad=False)
        self.bias = bias
        self.branches = ()
        self.fast = False  # whether the product may be computed in the weight's own format

    @property
    def branches(self) -> tuple[tuple[Beside, float], ...]:
        return self._branches

    @branches.setter
    def branches(self, branches: tuple[tuple[Beside, float], ...]) -> None:
        self._branches = branches
        # on the CPU, whose numbers any device reads without a copy
        self._factors = tuple(torch.as_tensor(scale, device="cpu") for _, scale in branches)

    def _beside(self) -> list[tuple[Beside, float | Tensor]]:
        """The branches with their factors as the caller reads them, as numbers or as tensors []."""
        if not torch.compiler.is_compiling():
            return list(self._branches)
        return [(branch, scale) for (branch, _), scale in zip(self._branches, self._factors, strict=True)]

    def decoded(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Decodes the weight [out, in], without its branches."""
        return self.coding.decode(self.weight, dtype)

    def coding_on(self, device: torch.device) -> Coding:
        """The coding with its tensors on `device`, where the input is."""
        return self.coding

    def forward(self, x: Input) -> Tensor:
        return self.compute(x, self.weight, self.bias)

    def compute(self, x: Input, data: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., in], rounded before only if `takes_rounded` → [..., out]. The bytes and the bias must be on its
        device."""
        coding, bias = self.coding_on(x.device), None if bias is None else bias.to(x.dtype)
        branches = self._beside()
        edits = [(edit, scale) for edit, scale in branches if isinstance(edit, Edit)]
        pairs = [(branch, scale) for branch, scale in branches if isinstance(branch, Branch)]
        rows, plain = (x.rows(), x.plain) if isinstance(x, Rounded) else (x.flatten(0, -2), x)
        y = coding.product(rows, data, bias) if self.fast and not edits else None
        if y is not None:
            y = y.view(*x.shape[:-1], self.out_features)
        else:
            weight = coding.decode(data, torch.float32 if edits else x.dtype)
            weight = combine(weight, edits).to(x.dtype) if edits else weight
            if pairs and joining_is_cheaper(plain.numel() // self.in_features, self.in_features, self.out_features):
                weight, pairs = join(weight, pairs), []
            y = F.linear(plain, weight, bias)
        for branch, scale in pairs:
            y = branch(plain, y, scale)
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, coding={self.coding}"


class ScaledLinear(QuantizedLinear):
    """A QuantizedLinear whose coding has scales: they are a parameter and move with the layer."""

    def __init__(self, stored: Stored, bias: nn.Parameter | None) -> None:
        super().__init__(stored, bias)
        self.weight_scale = nn.Parameter(stored.coding.scales, requires_grad=False)

    def coding_on(self, device: torch.device) -> Coding:
        return replace(self.coding, scales=_on(device, self.weight_scale))


class QuantizedEmbedding(nn.Module):
    """A table of embeddings whose bytes stay as the file stores them: only the rows that are asked for are decoded.

    scale: what each row is multiplied by, as Gemma does. dtype: of the result. It is that of a parameter without
    elements, because a cast of the model must change it and must leave the bytes as they are.
    """

    def __init__(self, stored: Stored, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.coding, self.scale = stored.coding, scale
        self.weight = nn.Parameter(stored.data, requires_grad=False)
        scales = stored.coding.scales
        self.weight_scale = None if scales is None else nn.Parameter(scales, requires_grad=False)
        self.like = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)

    @staticmethod
    def fits(stored: Stored) -> bool:
        """Whether the rows of a weight can be decoded one by one: neither their scales nor their bytes are mixed."""
        return hasattr(stored.coding, "rows")

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] → [..., width]."""
        rows, dtype = ids.flatten(), self.like.dtype
        coding = self.coding if self.weight_scale is None else replace(self.coding, scales=self.weight_scale)
        found = coding.rows(rows).decode(self.weight[rows], dtype)
        return found.unflatten(0, ids.shape) * torch.tensor(self.scale, dtype=dtype, device=found.device)


def takes_rounded(layer: nn.Module, x: Input) -> bool:
    """Whether a layer multiplies inputs like x in fp8 with a scale for each of their rows, so that it can read them as
    `Rounded`."""
    return (
        isinstance(layer, QuantizedLinear)
        and layer.fast
        and isinstance(layer.coding, Float8)
        and not any(isinstance(change, Edit) for change, _ in layer.branches)
        and multiplies_float8(x, layer.coding.dtype, (layer.out_features, layer.in_features), by_rows=True)
    )


def reading(layers: Iterable[nn.Module], x: Input) -> tuple[bool, bool]:
    """Whether any of the layers takes inputs like x rounded, and whether any reads them as they are, as a LoRA does."""
    takes = [(takes_rounded(layer, x), layer) for layer in layers]
    return any(rounded for rounded, _ in takes), not all(rounded and not layer.branches for rounded, layer in takes)


def read_by(layer: nn.Module, x: Input) -> Input:
    """What a layer reads of an input of several layers."""
    return x.plain if isinstance(x, Rounded) and not takes_rounded(layer, x) else x


def layer_of(stored: Stored, bias: nn.Parameter | None) -> QuantizedLinear:
    """The linear layer over a stored weight [out, in]."""
    return (QuantizedLinear if stored.coding.scales is None else ScaledLinear)(stored, bias)


def parts_of(module: nn.Module) -> list[nn.Module]:
    """The modules of a model or a block, and the changes of LoRAs beside its quantized layers."""
    modules = list(module.modules())
    layers = (part for part in modules if isinstance(part, QuantizedLinear))
    return [*modules, *(part for layer in layers for branch, _ in layer.branches for part in branch.modules())]


def quicken(module: nn.Module, on: bool = True) -> None:
    """Lets the quantized layers of a module multiply in their weights' own formats, where the card can. `on` False
    undoes it."""
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            layer.fast = on


def formats_of(module: nn.Module, prefix: str = BLOCKS) -> list[WeightFormat]:
    """The formats of the linear layers below `prefix`, the one of most values first."""
    values: Counter[WeightFormat] = Counter()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and name.startswith(prefix):
            kind = layer.weight.dtype
            plain = WeightFormat(PLAIN_NAMES.get(kind, str(kind)), quantized=False)
            stored = layer.coding.format if isinstance(layer, QuantizedLinear) else plain
            values[stored] += layer.out_features * layer.in_features
    return [stored for stored, _ in values.most_common()]


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


def put(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Replaces the submodule of that name by `layer`."""
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, layer)


def quantize(
    module: nn.Module,
    on: torch.device | str = "cpu",
    to: torch.device | str = "cpu",
    prefix: str = BLOCKS,
) -> None:
    """Rounds the weight of every linear layer below `prefix` to fp8, one layer after the other; biases do not change.

    on: the device that computes the rounding, the CPU in place of one without float8; to: the device that keeps the
    bytes.
    """
    on = on if torch.device(on).type in WITH_FLOAT8 else "cpu"
    for name, layer in list(module.named_modules()):
        if type(layer) is nn.Linear and name.startswith(prefix):
            stored = to_float8(layer.weight.to(on))
            stored = Stored(stored.data.to(to), stored.shape, stored.coding)
            put(module, name, layer_of(stored, layer.bias))
