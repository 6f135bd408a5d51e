"""Builds a module on the meta device, gives it tensors that map their file, and puts it where it computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from .quantized import PLAIN, Stored, layer_of, put

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class _Unfilled(TorchFunctionMode):
    """Leaves out what torch.nn.init does: a file has every value, and a third of the time to build a transformer of 48
    blocks goes into random ones."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build(
    cls: type, arguments: Callable[[], Mapping[str, Any]], path: Path, part: str, wanted: str, on_meta: bool = True
) -> nn.Module:
    """Builds a module without its weights. Raises InputError if the configuration describes no such module."""
    try:
        with torch.device("meta" if on_meta else "cpu"), _Unfilled():
            return cls(**arguments())
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0].strip()
        raise InputError(
            f"{path}: its configuration describes no {part} that can be built ({reason}); use {wanted}."
        ) from error


def fill(module: nn.Module, state: Mapping[str, Tensor | Stored], path: Path, part: str, wanted: str) -> nn.Module:
    """Gives a module its tensors. A linear layer with a quantized weight becomes a QuantizedLinear; other quantized
    tensors are decoded.

    Raises InputError if a tensor is missing, unknown, of another shape or of a dtype that is not supported; the message
    names the first one.
    """
    # This check comes before the names, because an unsupported format stores further tensors beside its weights.
    for key, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.dtype not in DTYPES:
            raise InputError(f"{path}: {key} is stored as {tensor.dtype}, which is not supported; use {wanted}.")
    own = {name: slots[key] for name, (slots, key) in _places(module).items()}
    for problem, keys in (
        ("lacks", own.keys() - state.keys()),
        ("has unknown", state.keys() - own.keys()),
        ("has the wrong shape for", {k for k in own.keys() & state.keys() if own[k].shape != state[k].shape}),
    ):
        if keys:
            raise InputError(
                f"{path}: its {part} {problem} {len(keys)} tensor(s), for example {min(keys)}; use {wanted}."
            )
    tensors = {}
    for key, value in state.items():
        owner, _, last = key.rpartition(".")
        if not isinstance(value, Stored):
            tensors[key] = value
        elif last == "weight" and owner not in PLAIN and type(layer := module.get_submodule(owner)) is nn.Linear:
            put(module, owner, layer_of(value, layer.bias))
        else:
            tensors[key] = value.decode()
    places = _places(module)
    for name, tensor in tensors.items():
        slots, key = places[name]
        slots[key] = nn.Parameter(tensor, requires_grad=False) if isinstance(slots[key], nn.Parameter) else tensor
    return module.eval().requires_grad_(False)


def _places(module: nn.Module) -> dict[str, tuple[dict[str, Tensor | None], str]]:
    """By the name in a state dict: where a module keeps that tensor. `state_dict` and `load_state_dict` look for hooks,
    which these modules do not have, and take half a second for thousands of layers."""
    found: dict[str, tuple[dict[str, Tensor | None], str]] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for slots in (part._parameters, part._buffers):
            for key, tensor in slots.items():
                if tensor is not None and key not in part._non_persistent_buffers_set:
                    found[f"{prefix}.{key}" if prefix else key] = slots, key
    return found


def place(module: nn.Module, dtype: torch.dtype | None, device: torch.device | str) -> nn.Module:
    """Moves a module to `device` and casts its floating-point tensors to `dtype`; None means the dtype of most weights.

    A tensor that needs no change still maps its file. Quantized weights are not cast.
    """
    stored = Counter()
    for parameter in module.parameters():
        if parameter.is_floating_point():
            stored[parameter.dtype] += parameter.numel()
    if dtype is None and len(stored) > 1:
        dtype = stored.most_common(1)[0][0]
    # This calls torch's own `to`: diffusers' version warns about float32 layers, and these models name none.
    return nn.Module.to(module, device=device, dtype=dtype)
