"""Weights that wait in host memory: layers that fetch them when they are called, and blocks that keep them for a while.

ComfyUI's layers fetch a weight at each call. CASTABLE gives the engine's layers ComfyUI's classes, which do that. A
layer whose weights are resident calls torch at once.

The passes of a step that run one after the other would fetch each weight as often. With `blocks_stay` the first pass
brings a block's waiting weights to the device, and they are dropped when another block begins. On a CUDA device the
next block's weights come while this one computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as management
import comfy.ops
import torch
from torch import Tensor, nn

from ..ltx.memory.rehearsal import bytes_of
from ..ltx.weights.adapters import Leaf
from ..ltx.weights.quantized import QuantizedLinear, ScaledLinear, parts_of
from ..ltx.weights.rounding import Input


def resident(layer: nn.Module, device: torch.device, dtype: torch.dtype, bias_dtype: torch.dtype) -> bool:
    """Whether ComfyUI's casting would give a layer its own weight and bias unchanged: they are on `device` in these
    dtypes, no LoRA of a waiting layer is added on the way, and ComfyUI does not page them (`_v`).

    It is asked at each call, because ComfyUI may move weights at any time, for instance between two decoded tiles.
    """
    own = layer._parameters  # an attribute of a module is looked for in three places, which takes longer
    weight, bias = own.get("weight"), own.get("bias")
    return (
        weight is not None
        and weight.device == device
        and weight.dtype == dtype
        and (bias is None or (bias.device == device and bias.dtype == bias_dtype))
        and not layer.weight_function
        and not layer.bias_function
        and "_v" not in layer.__dict__
    )


def _castable(plain: type[nn.Module]) -> type[nn.Module]:
    """ComfyUI's class of torch's layer `plain`, which computes as torch's own where the weights are resident."""
    theirs = getattr(comfy.ops.manual_cast, plain.__name__)

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not resident(self, x.device, x.dtype, x.dtype):
            return theirs.forward(self, x, *args, **kwargs)
        comfy.ops.run_every_op()  # it stops a run that was cancelled, as in ComfyUI's own forward
        return plain.forward(self, x, *args, **kwargs)

    return type(plain.__name__, (theirs,), {"__module__": __name__, "forward": forward})


class FetchingLinear(QuantizedLinear, comfy.ops.CastWeightBiasOp):
    """A quantized layer that fetches its bytes to the input's device, as ComfyUI's layers do, and decodes them there.

    Its weight has no patches of ComfyUI, because LoRAs on it are branches.
    """

    comfy_cast_weights = True

    def forward(self, x: Input) -> Tensor:
        if resident(self, x.device, self.weight.dtype, x.dtype):
            return self.compute(x, self.weight, self.bias)
        data, bias, stream = comfy.ops.cast_bias_weight(
            self, dtype=self.weight.dtype, device=x.device, bias_dtype=x.dtype, offloadable=True
        )
        if self.branches and bias is not None:
            bias = bias.clone()  # a branch's tensors may be fetched into its memory before it is added
        y = self.compute(x, data, bias)
        comfy.ops.uncast_bias_weight(self, data, bias, stream)
        return y


class FetchingScaledLinear(FetchingLinear, ScaledLinear):
    """The same for a layer with scales, which it fetches, too."""


class FetchingLeaf(Leaf, comfy.ops.CastWeightBiasOp):
    """A tensor of a LoRA beside a quantized layer. It is fetched when it is called, so ComfyUI may leave it in host
    memory, or page it."""

    comfy_cast_weights = True
    bias = None

    def forward(self, use: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
        if resident(self, device, dtype, dtype):
            return use(self.weight)
        value, _, stream = comfy.ops.cast_bias_weight(
            self, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
        )
        result = use(value)
        comfy.ops.uncast_bias_weight(self, value, None, stream)
        return result


CASTABLE = {
    **{
        plain: _castable(plain)
        for plain in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    },
    QuantizedLinear: FetchingLinear,
    ScaledLinear: FetchingScaledLinear,
    Leaf: FetchingLeaf,
}
"""torch's layer → ComfyUI's layer, which fetches its weights to the input's device if they are not there. Embedding is
not among them: the token ids are Gemma's first input and are put on the device of the embeddings."""


def stay_memory(blocks: Iterable[nn.Module], device: torch.device) -> int:
    """Bytes that `blocks_stay` takes on a device at most: the largest block with what is beside its layers, and twice
    that where the next block comes while one computes."""
    sizes = (bytes_of(p for part in parts_of(block) for p in part.parameters(recurse=False)) for block in blocks)
    return max(sizes) * (2 if overlaps(device) else 1)


def overlaps(device: torch.device) -> bool:
    """Whether weights are copied to a device while it computes: on CUDA, unless ComfyUI copies on no stream of its own
    either, as with --disable-async-offload."""
    return device.type == "cuda" and getattr(management, "NUM_STREAMS", 1) > 0


class SideStream:
    """A stream for copies beside the one on which a CUDA device computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def mark(self) -> Any:
        """An event: what the device was asked to compute so far is done."""
        return torch.cuda.current_stream(self.device).record_event()

    def copy(self, copies: Callable[[], None], after: Any) -> None:
        """Copies when the event `after` has come."""
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(after)
            copies()

    def join(self) -> None:
        """What the device is asked to compute from now on waits for all copies."""
        torch.cuda.current_stream(self.device).wait_stream(self.stream)


@dataclass(eq=False)
class _Fetch:
    """One copy of a block's waiting weights. weights: for each its layer, its name there, the parameter in host memory,
    and its place on the device. free: the event after which nothing reads the memory of the places any more. begun:
    whether the device was asked to copy them."""

    number: int
    free: Any = None
    begun: bool = False
    weights: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = field(default_factory=list)

    def copy(self) -> None:
        for _, _, parameter, place in self.weights:
            _copy(parameter, place)

    def put(self) -> None:
        for part, name, _, place in self.weights:
            part._parameters[name] = place

    def put_back(self) -> None:
        for part, name, parameter, _ in self.weights:
            part._parameters[name] = parameter


def _copy(parameter: Tensor, place: Tensor) -> None:
    place.copy_(parameter, non_blocking=management.device_supports_non_blocking(place.device))


def _place(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """Memory for a parameter. It is an inference tensor if the parameter is one: torch.compile tells them apart, and
    would compile a block again for each mixture of both."""
    with torch.inference_mode(parameter.is_inference()):
        return nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=False)


class _Stay:
    """The block whose weights are on the device now, and the one after it, whose weights are coming.

    Their memory is what `stay_memory` says, for which ComfyUI keeps room when it loads the model. After a step's last
    block nothing comes ahead: nobody knows here whether another step follows, and each layer is fetched once a step.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.blocks, self.device = blocks, device
        self.stream = SideStream(device) if overlaps(device) else None
        self.now: _Fetch | None = None
        self.coming: _Fetch | None = None

    def begin(self, number: int) -> None:
        """Before each call of a block."""
        if self.now is not None and self.now.number == number:
            return
        fetch = self._take(number)
        self._drop()
        if fetch is None:
            fetch = self._reserve(number)
            fetch.copy()
        fetch.put()
        self.now = fetch
        if self.stream is not None and number + 1 < len(self.blocks):
            self.coming = self._reserve(number + 1)
            self.coming.free = self.stream.mark()

    def end(self) -> None:
        """After each call of a block. Only now, when the device has something to compute, the next block's weights are
        copied: a copy from memory that is not page-locked keeps the caller until it is done."""
        coming = self.coming
        if coming is not None and not coming.begun:
            coming.begun = True
            self.stream.copy(coming.copy, coming.free)

    def close(self) -> None:
        self._take(None)
        self._drop()

    def _reserve(self, number: int) -> _Fetch:
        fetch = _Fetch(number)
        for part in parts_of(self.blocks[number]):
            for name, parameter in part._parameters.items() if hasattr(part, "comfy_cast_weights") else ():
                if parameter is not None and parameter.device != self.device:
                    fetch.weights.append((part, name, parameter, _place(parameter, self.device)))
        return fetch

    def _take(self, number: int | None) -> _Fetch | None:
        """What was coming, if it is that block. Otherwise it is dropped, and nothing gets its memory while the
        stream writes there."""
        fetch, self.coming = self.coming, None
        if fetch is None or not fetch.begun:
            return None
        self.stream.join()
        return fetch if fetch.number == number else None

    def _drop(self) -> None:
        if self.now is not None:
            self.now.put_back()
        self.now = None


@contextmanager
def blocks_stay(blocks: Iterable[nn.Module], device: torch.device, on: bool = True) -> Iterator[None]:
    """Inside `with`, a block's waiting weights are fetched when it is called and stay until another one is called.
    `on` False changes nothing."""
    if not on:
        yield
        return
    blocks = list(blocks)
    stay = _Stay(blocks, device)
    with ExitStack() as stack:
        stack.callback(stay.close)
        for number, block in enumerate(blocks):
            stack.enter_context(_watched(block, number, stay))
        yield


@contextmanager
def _watched(block: nn.Module, number: int, stay: _Stay) -> Iterator[None]:
    """Tells `stay` of each call of a block. The hooks of a compiled block would be compiled with it, so its compiled
    code gets a frame around it instead."""
    compiled = block._compiled_call_impl
    if compiled is None:
        before = block.register_forward_pre_hook(lambda *_: stay.begin(number))
        after = block.register_forward_hook(lambda *_: stay.end())
        try:
            yield
        finally:
            before.remove()
            after.remove()
        return

    def framed(*args: Any, **kwargs: Any) -> Any:
        stay.begin(number)
        result = compiled(*args, **kwargs)
        stay.end()
        return result

    block._compiled_call_impl = framed
    try:
        yield
    finally:
        block._compiled_call_impl = compiled
