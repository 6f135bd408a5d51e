"""Matches LoRA files with a model, merges them into its weights, and removes them.

Merging computes W + sum of strength * change(W) in float32 from the checkpoint's own W (adapters.py) and rounds the
result once to the parameter's dtype. It therefore does not drift and does not need peft, and removing a LoRA restores
the weights exactly. A quantized weight is not rewritten: a plain pair becomes a branch beside it, and another kind of
change is added to the decoded weight at each call (quantized.py). Merge before you install offload hooks, because these
keep copies of the weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models import GENERATIONS
from .adapters import Adapter, Decomposed, LowRank, combine, tensors
from .files import open_safetensors
from .finite import is_finite
from .lora_file import Lora, load_lora
from .names import OF_CONNECTORS, Names
from .quantized import Beside, QuantizedLinear, beside, factor, weight_shape

__all__ = ("Lora", "Match", "Merger", "applied", "load_lora", "match", "merged")
CHUNK = 1 << 20  # values that are summed at once
ABSENT = "no such layer"
ELSEWHERE = "it belongs to the text connectors, which this LoRA is not applied to here"
_SOUND: WeakSet[Adapter] = WeakSet()  # those whose values were read and are finite


@dataclass(frozen=True, eq=False)
class Match:
    """How a LoRA fits a model. changes: by the model's parameter name; layers: the file's names of these layers;
    skipped: the other names of the file, each with a reason."""

    lora: Lora
    changes: Mapping[str, Adapter] = field(repr=False)
    layers: frozenset[str] = field(repr=False)
    skipped: Mapping[str, str]

    @property
    def matched(self) -> tuple[str, ...]:
        """The parameters that it changes."""
        return tuple(self.changes)

    @property
    def kinds(self) -> dict[str, int]:
        """The number of changed parameters by the kind of change."""
        return dict(Counter(adapter.kind for adapter in self.changes.values()))

    @property
    def hears(self) -> bool:
        """Whether it changes a layer of the sound. An IC-LoRA that does not can only look at its reference."""
        return any("audio" in name for name in self.changes)

    def check(self, strength: float, before: Callable[[], None] = lambda: None) -> None:
        """Raises InputError if the strength is not a finite number, or, unless it is 0, a value that changes the model
        is NaN or infinite. All are read, once for each LoRA that is opened, just before they are summed. before: is
        called before each change is read, and may end it by an exception."""
        check_strength(self.lora, strength)
        for name, adapter in self.changes.items() if strength else ():
            if adapter in _SOUND:
                continue
            before()
            if not all(map(is_finite, tensors(adapter))):
                raise InputError(
                    f"{self.lora.path}: {_damaged(self.lora.path) or name} has a value that is NaN or infinite; "
                    "download the LoRA again, or choose another one."
                )
            _SOUND.add(adapter)

    def told(self, *others: Match) -> str:
        """What is applied and what is left out, in words without an end. others: how it fits further models."""
        fits = [self, *others]
        layers = frozenset().union(*(fit.layers for fit in fits))
        kinds = sum((Counter(fit.kinds) for fit in fits), Counter())
        which = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        which = "" if set(kinds) == {LowRank.kind} else f" ({which})"
        left = self.left_out(*others)
        if not left:
            return f"all of its {len(layers)} layers applied{which}"
        name, reason = next(iter(left.items()))
        return f"{len(layers)} layers applied{which}, {len(left)} left out, e.g. {name}: {reason}"

    def left_out(self, *others: Match) -> dict[str, str]:
        """The file's layers and keys that change none of the models, each with a reason."""
        taken = frozenset().union(*(fit.layers for fit in (self, *others)))
        reasons: dict[str, str] = {}
        for fit in (*others, self):  # the reason of this model counts, if another one has a general reason
            reasons |= {n: r for n, r in fit.skipped.items() if n not in reasons or reasons[n] in (ABSENT, ELSEWHERE)}
        return {name: reason for name, reason in {**reasons, **self.lora.unread}.items() if name not in taken}

    def warning_beside(self, *others: Match) -> str | None:
        """One sentence for the report if only a part of the LoRA fits these models, else None."""
        return f"{self.lora.path.name}: {self.told(*others)}." if self.left_out(*others) else None

    @property
    def warning(self) -> str | None:
        return self.warning_beside()


def check_strength(lora: Lora, strength: float) -> None:
    """Raises InputError if the strength of a LoRA is not a finite number."""
    if not math.isfinite(strength):
        raise InputError(f"{lora.path.name}: its strength is {strength}; give a number.")


def _damaged(path: Path) -> str | None:
    """The first tensor of a file that has such a value."""
    file = open_safetensors(path, "the LoRA file")
    return next((key for key in sorted(file.keys()) if not is_finite(file.get_tensor(key))), None)


def match(lora: Lora, module: nn.Module, others: Collection[Match] = (), optional: bool = False) -> Match:
    """Compares a LoRA's names and shapes with the model's.

    Raises InputError if a name is ambiguous, if two names mean one parameter, or if nothing fits neither this model nor
    one of the `others`, unless it is `optional` that something fits.
    """
    names = Names(module)
    found = names.resolve(dict.fromkeys(layer for layer, _ in lora.changes))
    changes: dict[str, Adapter] = {}
    sources: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for (layer, last), adapter in lora.changes.items():
        owners = found.get(layer, set())
        if len(owners) > 1:
            first, second = sorted(owners)[:2]
            raise InputError(
                f"{lora.path}: {layer} may mean {first} or {second}; use a copy of the LoRA that has dots in its names."
            )
        name = next((names.parameter(owner, last) for owner in owners), None)
        shape = None if name is None else weight_shape(module, name)
        if shape is None:
            ours = names.of_connectors == bool(OF_CONNECTORS.search(layer))
            skipped.setdefault(layer, ABSENT if ours else ELSEWHERE)
        elif not adapter.fits((*shape,)):
            skipped[layer] = _misfit(adapter, shape)
        elif name in changes:
            raise InputError(
                f"{lora.path}: {sources[name]} and {layer} are for the same layer; use another copy of the LoRA."
            )
        else:
            changes[name], sources[name] = adapter, layer
    fit = Match(lora, changes, frozenset(sources.values()), skipped)
    if not changes and not optional and not any(other.changes for other in others):
        name, reason = next(iter(skipped.items()))
        raise InputError(
            f"{lora.path}: fits nothing in this model, which has none of the {len(skipped)} layers in the same shape, "
            f"e.g. {name} ({reason}); use a LoRA made for {' or '.join(each.name for each in GENERATIONS)}."
        )
    return fit


def merged(weight: Tensor, terms: Iterable[tuple[Adapter, float]], dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns W + each change at its strength: a float32 sum on the weight's device, rounded to `dtype`.

    `weight` itself does not change. For plain pairs some rows are summed at a time: they stay in the processor's cache
    and take little memory.
    """
    terms = list(terms)
    if weight.ndim < 2 or not all(isinstance(adapter, LowRank) for adapter, _ in terms):
        return combine(weight, ((adapter.change, strength) for adapter, strength in terms)).to(dtype)
    halves = [
        (*(half.to(weight.device, torch.float32) for half in (pair.up, pair.down)), strength * pair.scale)
        for pair, strength in terms
    ]
    total = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    rows = max(CHUNK // max(weight[0].numel(), 1), 1)
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        sums = weight[part].to(torch.float32, copy=True).flatten(1)
        for up, down, scale in halves:
            sums.addmm_(up[part], down, alpha=scale)
        total[part] = sums.view_as(total[part])
    return total


def merge_place(lora: Lora, strength: float) -> tuple[str, float, str]:
    """The place of a LoRA among others in a sum, whatever order they were named or wired in: a sum in another order
    rounds to other weights. The folder counts only among files of one name."""
    return lora.path.name, strength, str(lora.path)


class Merger:
    """Keeps one module's weights at W + its current LoRAs. It can restore W even after an interruption.

    original: gives W by parameter name, as the checkpoint stores it. device: where merging is computed; None means the
    device of each parameter. optional: whether a LoRA may fit nothing, because it fits another part of the model.
    Merging changes one parameter at a time, so it needs no second copy of the model.
    """

    def __init__(
        self,
        module: nn.Module,
        original: Callable[[str], Tensor],
        device: torch.device | str | None = None,
        *,
        optional: bool = False,
    ) -> None:
        self.module = module
        self.optional = optional
        self.original = original
        self.device = device
        self._changed: set[str] = set()  # parameters that are not, or may not be, W
        self._beside: dict[int, tuple[Adapter, Beside]] = {}  # by the adapter's id, each on its layer's device
        self._current: tuple[tuple[Lora, float], ...] | None = ()  # None while the weights change

    @torch.no_grad()
    def set(
        self, loras: Sequence[tuple[Lora, float]], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[str]:
        """Sets the weights to W + these (LoRA, strength) pairs, whatever was merged before; `[]` restores W.

        progress: is called with the weights that are set and all that will be, after each. Returns one warning for each
        LoRA that fits only in part. A LoRA at strength 0 has no effect. Raises InputError if a LoRA fits nothing, or a
        strength or a value is not a finite number; no weight has changed then.
        """
        for lora, strength in loras:
            check_strength(lora, strength)
        given = sorted(loras, key=lambda each: merge_place(*each))
        active = tuple((lora, float(strength)) for lora, strength in given if strength != 0)
        matches = [match(lora, self.module, optional=self.optional) for lora, _ in active]
        warnings = [m.warning for m in matches if m.warning]
        if active == self._current:
            return warnings
        for (_, strength), fit in zip(active, matches, strict=True):
            fit.check(strength)
        terms: dict[str, list[tuple[Adapter, float]]] = {}
        for (_, strength), fit in zip(active, matches, strict=True):
            for name, adapter in fit.changes.items():
                terms.setdefault(name, []).append((adapter, strength))
        self._current = None
        self._branch(terms)
        names = terms.keys() | self._changed
        chosen = [(name, each) for name, each in self.module.named_parameters() if name in names]
        for done, (name, parameter) in enumerate(chosen, 1):
            if name in terms:
                self._changed.add(name)
                device = parameter.device if self.device is None else self.device
                _write(parameter, merged(self.original(name).to(device), terms[name], parameter.dtype))
            else:
                _write(parameter, self.original(name))
                self._changed.remove(name)
            progress(done, len(chosen))
        self._current = active
        return warnings

    def _branch(self, terms: dict[str, list[tuple[Adapter, float]]]) -> None:
        """Gives each quantized layer its changes and removes its name from `terms`. A module that is on its device
        already stays there."""
        placed, self._beside = self._beside, {}
        for name, layer in self.module.named_modules():
            if not isinstance(layer, QuantizedLinear):
                continue
            branches = []
            for adapter, strength in terms.pop(f"{name}.weight", ()):
                _, module = placed.get(id(adapter), (adapter, None))
                if module is None:
                    module = beside(adapter).to(layer.weight.device)
                self._beside[id(adapter)] = (adapter, module)
                branches.append((module, factor(adapter, strength)))
            layer.branches = tuple(branches)


@contextmanager
def applied(
    module: nn.Module,
    loras: Sequence[tuple[Lora, float]],
    original: Callable[[str], Tensor],
    device: torch.device | str | None = None,
) -> Iterator[list[str]]:
    """Merges (LoRA, strength) pairs into a module inside `with` and restores it afterwards.

    Yields the warnings of `Merger.set` and raises InputError as it does.
    """
    merger = Merger(module, original, device)
    try:
        yield merger.set(loras)
    finally:
        merger.set([])


def _write(parameter: nn.Parameter, value: Tensor) -> None:
    value = value.to(parameter.device, parameter.dtype)
    if parameter.device.type == "cpu" and not parameter.is_pinned():
        parameter.data = value  # never written in place: the memory may be the checkpoint's map, which `original` reads
    else:
        parameter.data.copy_(value)


def _misfit(adapter: Adapter, shape: torch.Size) -> str:
    """Why an adapter does not fit a parameter of this shape."""
    if isinstance(adapter, Decomposed) and adapter.inner.fits((*shape,)):
        return f"a DoRA magnitude of shape {_text(adapter.magnitude.shape)} in the file, {_text(shape)} in the model"
    return f"shape {_text(adapter.shape)} in the file, {_text(shape)} in the model"


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "[]"
