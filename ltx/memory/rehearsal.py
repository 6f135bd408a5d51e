"""Runs code with tensors that have sizes but no numbers, and counts the bytes that it would hold.

The real code runs once with such tensors. So there are no constants to tune, and the count follows every change of the
code. Python, the libraries and the reserve of an allocator are not counted.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

SMALL = 2**18
"""A rehearsed tensor with at most this many elements has numbers. Masks and the noise levels of a clip's tokens are
that small, and the code reads their values; activations are larger."""
SPARE = 0.1
"""Share of the memory that stays free where something is chosen by a rehearsal: what is measured is within 10 % of it,
and the gaps of an allocator and the workspace of cuBLAS are not in it."""
CHANNEL_BLOCK = 16  # on a CPU with AVX-512; it is 8 with AVX2
FILLS = ("ones_like", "zeros_like", "full_like")
ASKING = (torch.ops.aten.is_nonzero.default, torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
META, CPU = torch.device("meta"), torch.device("cpu")
KNOWN = 2**14
"""Calls whose results are remembered. Finding out a result on the meta device takes a millisecond, and the blocks of a
model repeat each other's calls."""
_results: dict[tuple[Any, ...], tuple[Any, ...] | None] = {}
"""By call: shape, strides and dtype of its result, or None if it is no new tensor."""


class Rehearsal(TorchDispatchMode):
    """Runs code without numbers. `peak` is the most bytes of tensors, made inside, that were alive at once.

    Tensors with more than SMALL elements, and all results from them, are on the meta device, whatever device the code
    names. on: the kind of device that is rehearsed; devices differ in the memory that a convolution needs.
    """

    def __init__(self, on: str = "cpu") -> None:
        super().__init__()
        self.on, self.alive, self.peak = on, 0, 0
        self._known: dict[int, int] = {}  # bytes by storage
        self._small: set[tuple[Any, ...]] = set()  # calls with small results; finding out on the meta device is slow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        # The twins are kept until the result is counted, because the result could get the storage of a freed one.
        twins: list[Tensor] = []
        result = self._run(func, args, kwargs, given, twins)
        outside = {key for tensor in (*given, *twins) if (key := tensor.untyped_storage()._cdata) not in self._known}
        within = self._convolution(given, result) if func.__name__.startswith("conv") else 0
        for leaf in _tensors(result):
            if leaf.untyped_storage()._cdata not in outside:
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.alive + within)
        return result

    def _run(self, func: Any, args: Any, kwargs: Any, given: list[Tensor], twins: list[Tensor]) -> Any:
        def sized(value: Any) -> Any:
            if isinstance(value, torch.device):
                return META
            if isinstance(value, torch.Generator):
                return None
            if not isinstance(value, Tensor) or value.is_meta:
                return value
            twins.append(torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META))
            return twins[-1]

        if func in ASKING and given[0].is_meta and given[0].dtype == torch.bool:
            return True  # code that checks its numbers, for instance for NaN, continues
        call = func, *map(_shape, args), *((name, _shape(value)) for name, value in kwargs.items())
        if any(tensor.is_meta or tensor.numel() > SMALL for tensor in given):
            found = _results.get(call)
            if found is None:
                result = func(*mapped(sized, args), **mapped(sized, kwargs))
                _remember(call, result, (*given, *twins))
            else:
                result = torch.empty_strided(*found[:2], dtype=found[2], device=META)
            if func.__name__.startswith(FILLS) and result.numel() <= SMALL:  # such functions read only the size
                return func(torch.empty(given[0].shape, dtype=given[0].dtype), *args[1:], **mapped(_here, kwargs))
            return result
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            return func(*args, **kwargs)
        if call not in self._small:
            try:
                result = func(*mapped(sized, args), **mapped(sized, kwargs))
            except (NotImplementedError, RuntimeError):
                return func(*args, **kwargs)
            if any(leaf.numel() > SMALL for leaf in _tensors(result)):
                return result
            self._small.add(call)
        return func(*mapped(_here, args), **mapped(_here, kwargs))

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.alive += self._known[key]
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.alive -= self._known.pop(key, 0)

    def _convolution(self, given: list[Tensor], result: Tensor) -> int:
        """Bytes that a convolution holds while it runs, in addition to its input and result. Kernels need the channels
        innermost or in blocks. oneDNN copies the input into such a layout, computes into another copy, and then frees
        the first; cuDNN's workspace holds both. The weight is copied, too.
        """
        x, weight = given[:2]
        if self.on != "cpu":
            return weight.nbytes + x.nbytes + result.nbytes
        inside, outside = (_blocked(tensor) for tensor in (x, result))
        return weight.nbytes + max(inside + outside, outside + result.nbytes) - result.nbytes


def _blocked(tensor: Tensor) -> int:
    """Bytes of a tensor [N, C, …] in oneDNN's layout, which pads the channels to whole blocks."""
    return tensor.nbytes // tensor.shape[1] * -(-tensor.shape[1] // CHANNEL_BLOCK) * CHANNEL_BLOCK


def _shape(value: Any) -> Any:
    """A hashable key of everything in an operator's argument that the result's size can depend on. 2, 2.0 and True have
    different keys."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_shape, value))
    return type(value), value


def _remember(call: tuple[Any, ...], result: Any, given: Iterable[Tensor]) -> None:
    """Keeps the size of a result that is one new tensor, as large as its memory. Another one is, or shares memory with,
    one of `given`."""
    if call in _results:
        return
    if len(_results) == KNOWN:
        _results.clear()
    _results[call] = None
    if not isinstance(result, Tensor) or not result.is_meta or call[0]._schema.is_mutable:
        return
    storage, size = result.untyped_storage(), (result.shape, result.stride())
    if storage._cdata in {tensor.untyped_storage()._cdata for tensor in given}:
        return
    if storage.nbytes() == torch.empty_strided(*size, dtype=result.dtype, device=META).untyped_storage().nbytes():
        _results[call] = *size, result.dtype


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """`value` with `function` of each leaf. An operator's arguments nest lists and no other containers."""
    if isinstance(value, (tuple, list)):
        return type(value)([mapped(function, each) for each in value])
    if isinstance(value, dict):
        return {key: mapped(function, each) for key, each in value.items()}
    return function(value)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors among the leaves of `value`."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for each in value for tensor in _tensors(each)]


def _here(value: Any) -> Any:
    return CPU if isinstance(value, torch.device) else value


class _Functions(TorchFunctionMode):
    """Functions that the rehearsal treats as a whole: fused attention holds only its result."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, _, value = (kwargs.get(name, *args[i : i + 1]) for i, name in enumerate(("query", "key", "value")))
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **kwargs)


@contextmanager
def rehearsed(on: str = "cpu") -> Iterator[Rehearsal]:
    """Inside `with`, tensors have sizes but no numbers. Modules that are loaded or moved there take no memory, too."""
    with torch.inference_mode(), _Functions(), Rehearsal(on) as rehearsal:
        yield rehearsal


def peak(work: Callable[[], object], on: str = "cpu") -> int:
    """The most bytes of tensors that `work` would hold at once, without its inputs."""
    with rehearsed(on) as rehearsal:
        work()
    return rehearsal.peak


def blueprint(load: Callable[[], nn.Module]) -> nn.Module:
    """The module that `load` returns, with sizes but no numbers. Only headers are read, and nothing is converted."""
    return loaded(load)[0]


def loaded(load: Callable[[], nn.Module]) -> tuple[nn.Module, int]:
    """As `blueprint`, with the bytes of those of its tensors that map their file, because nothing converts them."""
    with rehearsed() as rehearsal:
        module = load()
        made = rehearsal.alive
    return module, max(weights(module) - made, 0)


def twin(module: nn.Module, dtype: torch.dtype | None = None, **changes: object) -> nn.Module:
    """A copy of a diffusers model with sizes but no numbers. changes: values that replace those of its
    configuration."""
    # ComfyUI's memory management may have put a class of the same name over diffusers' own.
    cls = [cls for cls in type(module).__mro__ if cls.__name__ == type(module).__name__][-1]
    return _built(cls, json.dumps({**module.config, **changes}, default=str), dtype or module.dtype)


@lru_cache(maxsize=8)
def _built(cls: type, config: str, dtype: torch.dtype) -> nn.Module:
    with META:
        module = cls(**cls.extract_init_dict(json.loads(config))[0])
    return nn.Module.to(module, dtype).eval()


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of these tensors; a tensor that appears several times counts once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


def weights(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return bytes_of([*module.parameters(), *module.buffers()])
