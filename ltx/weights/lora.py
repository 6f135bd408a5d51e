"""LoRA files for the transformer: read, matched against the model, merged into its weights and taken out again.

Merging computes W + sum of strength * (alpha / rank) * (up @ down) in float32 from the checkpoint's own W and rounds
once to the parameter's dtype, so that it neither drifts nor needs peft, and undoing it is exact to the bit. A weight
that stays quantized is not written: the pair becomes a branch beside it (quantized.py). Merge before offload hooks are
put on: they keep copies of the weights. Read are plain low-rank pairs of linear layers under
the names in use (lora_A/lora_B, lora_down/lora_up; original or diffusers' module names). Safetensors only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models import VERSION
from .configs import rename_transformer
from .files import open_safetensors
from .quantized import Branch, QuantizedLinear, weight_shape

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
HALF = re.compile(r"(?P<module>.+?)[._]lora[._](?P<half>A|B|down|up)(\.default)?(\.weight)?")
ALPHA = ".alpha"
CHUNK = 1 << 20  # values summed at once
UNREAD = re.compile(r"(?P<module>.+?)\.(dora_scale|lora_mid\.weight|lora_magnitude_vector(\.weight)?)")
"""Tensors that change what a pair means (DoRA, Tucker): the pair is not used without them."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """The change of one weight [out, in]: `down` [rank, in], `up` [out, rank], in the file's dtype."""

    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]


@dataclass(frozen=True, eq=False)
class Lora:
    """An opened file: pairs by diffusers' parameter name, and the keys that are not read."""

    path: Path
    targets: Mapping[str, LowRank] = field(repr=False)
    unmatched: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, eq=False)
class Match:
    """What of a LoRA fits a model: parameter names, and the others with the reason."""

    lora: Lora
    matched: tuple[str, ...]
    skipped: Mapping[str, str]

    @property
    def warning(self) -> str | None:
        """One sentence for the report where only a part fits."""
        left = {**self.skipped, **dict.fromkeys(self.lora.unmatched, "not a plain LoRA pair")}
        if not left:
            return None
        name, reason = next(iter(left.items()))
        return (
            f"{self.lora.path.name}: {len(self.matched)} layers applied, {len(left)} left out, e.g. {name}: {reason}."
        )


def load_lora(path: str | Path) -> Lora:
    """Opens a LoRA; the tensors map the file. Raises InputError: not there, cut short, not safetensors, no LoRA."""
    path = Path(path)
    file = open_safetensors(path, "the LoRA file")
    halves: dict[str, dict[str, str]] = {}
    unmatched: list[str] = []
    alphas: dict[str, str] = {}
    spoiled: set[str] = set()
    for key in sorted(file.keys()):
        if found := HALF.fullmatch(key):
            half = "down" if found["half"] in ("A", "down") else "up"
            pair = halves.setdefault(_parameter(found["module"]), {})
            if half in pair:
                raise InputError(
                    f"{path}: {pair[half]} and {key} are for the same layer; use another copy of the LoRA."
                )
            pair[half] = key
        elif key.endswith(ALPHA):
            alphas[_parameter(key.removesuffix(ALPHA))] = key
        else:
            unmatched.append(key)
            if found := UNREAD.fullmatch(key):
                spoiled.add(_parameter(found["module"]))
    targets: dict[str, LowRank] = {}
    for name, pair in halves.items():
        keys = [pair[half] for half in ("down", "up") if half in pair]
        tensors = [_matrix(file.get_tensor(key)) for key in keys]
        if name in spoiled or len(tensors) < 2 or any(tensor is None for tensor in tensors):
            unmatched += keys
            continue
        down, up = tensors
        if down.shape[0] != up.shape[1]:
            raise InputError(f"{path}: {keys[0]} and {keys[1]} differ in rank; the file is damaged, download it again.")
        alpha = alphas.pop(name, None)
        targets[name] = LowRank(down, up, None if alpha is None else _scalar(file.get_tensor(alpha), path, alpha))
    if not targets:
        raise InputError(
            f"{path}: holds no LoRA (no pairs named lora_A and lora_B, or lora_down and lora_up); choose another file."
        )
    return Lora(path, targets, tuple(sorted([*unmatched, *alphas.values()])))


def match(lora: Lora, module: nn.Module) -> Match:
    """Compares names and shapes. Raises InputError where nothing fits."""
    matched, skipped = [], {}
    for name, low_rank in lora.targets.items():
        shape = weight_shape(module, name)
        if shape is None:
            skipped[name] = "no such layer"
        elif (*shape[:2],) != low_rank.shape or shape.numel() != math.prod(low_rank.shape):
            skipped[name] = f"shape {_text(low_rank.shape)} in the file, {_text(shape)} in the model"
        else:
            matched.append(name)
    if not matched:
        name, reason = next(iter(skipped.items()))
        raise InputError(
            f"{lora.path}: fits nothing in this model: none of its {len(skipped)} layers is there in the same shape, "
            f"e.g. {name} ({reason}); use a LoRA made for LTX-{VERSION}."
        )
    return Match(lora, tuple(matched), skipped)


def factor(low_rank: LowRank, scale: float) -> float:
    """scale * alpha / rank, what up @ down is multiplied by; no alpha means alpha = rank. Ranks differ by layer."""
    return scale if low_rank.alpha is None else scale * (low_rank.alpha / low_rank.down.shape[0])


def merged(weight: Tensor, terms: Iterable[tuple[LowRank, float]], dtype: torch.dtype = torch.float32) -> Tensor:
    """weight [out, in, …] + each pair at its strength, in float32 on weight's device, rounded once to `dtype`.

    `weight` is not written. Some rows at a time: what is summed stays in the cache, and takes no memory to speak of.
    """
    halves = [
        (*(half.to(weight.device, torch.float32) for half in (pair.up, pair.down)), factor(pair, strength))
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


class Merger:
    """Holds one module's weights at W + its current LoRAs, and knows what to undo, also after an interruption.

    `original` gives W by parameter name, as stored in the checkpoint. `device` is where merging is computed; None
    means where each parameter lies. There is no second copy of the model: one parameter is worked on at a time.
    """

    def __init__(
        self,
        module: nn.Module,
        original: Callable[[str], Tensor],
        device: torch.device | str | None = None,
    ) -> None:
        self.module = module
        self.original = original
        self.device = device
        self._changed: set[str] = set()  # parameters that are not, or may not be, W
        self._branches: dict[int, tuple[LowRank, Branch]] = {}  # by the pair's id, where its layer is
        self._current: tuple[tuple[Lora, float], ...] | None = ()  # None: between two states

    @torch.no_grad()
    def set(self, loras: Sequence[tuple[Lora, float]]) -> list[str]:
        """Makes the weights W + these (LoRA, strength) pairs, whatever was merged before; `[]` restores W.

        Returns warnings, a sentence for each LoRA that fits in part. A strength of 0 is as if the LoRA were not there.
        Raises InputError, before anything is touched, for a LoRA that fits nothing or a strength that is no number.
        """
        for lora, strength in loras:
            if not math.isfinite(strength):
                raise InputError(f"{lora.path.name}: its strength is {strength}; give a number.")
        active = tuple((lora, float(strength)) for lora, strength in loras if strength != 0)
        matches = [match(lora, self.module) for lora, _ in active]
        warnings = [m.warning for m in matches if m.warning]
        if active == self._current:
            return warnings
        terms: dict[str, list[tuple[LowRank, float]]] = {}
        for (lora, strength), fit in zip(active, matches, strict=True):
            for name in fit.matched:
                terms.setdefault(name, []).append((lora.targets[name], strength))
        self._current = None
        self._branch(terms)
        for name, parameter in self.module.named_parameters():
            if name in terms:
                self._changed.add(name)
                device = parameter.device if self.device is None else self.device
                _write(parameter, merged(self.original(name).to(device), terms[name], parameter.dtype))
            elif name in self._changed:
                _write(parameter, self.original(name))
                self._changed.remove(name)
        self._current = active
        return warnings

    def _branch(self, terms: dict[str, list[tuple[LowRank, float]]]) -> None:
        """Gives each quantized layer its branches, and takes its name out of `terms`. What was placed stays placed."""
        placed, self._branches = self._branches, {}
        for name, layer in self.module.named_modules():
            if not isinstance(layer, QuantizedLinear):
                continue
            branches = []
            for pair, strength in terms.pop(f"{name}.weight", ()):
                _, branch = placed.get(id(pair), (pair, None))
                if branch is None:
                    branch = Branch(pair.down, pair.up).to(layer.weight.device)
                self._branches[id(pair)] = (pair, branch)
                branches.append((branch, factor(pair, strength)))
            layer.branches = tuple(branches)


@contextmanager
def applied(
    module: nn.Module,
    loras: Sequence[tuple[Lora, float]],
    original: Callable[[str], Tensor],
    device: torch.device | str | None = None,
) -> Iterator[list[str]]:
    """The module with (LoRA, strength) pairs merged, inside `with`; restored on leaving. Yields and raises as `set`."""
    merger = Merger(module, original, device)
    try:
        yield merger.set(loras)
    finally:
        merger.set([])


def _write(parameter: nn.Parameter, value: Tensor) -> None:
    value = value.to(parameter.device, parameter.dtype)
    if parameter.device.type == "cpu":
        parameter.data = value  # its memory may be the checkpoint's map, which `original` reads: never written into
    else:
        parameter.data.copy_(value)


def _parameter(module: str) -> str:
    """Module name in the file → diffusers' name of its weight."""
    while prefix := next((p for p in PREFIXES if module.startswith(p)), None):
        module = module.removeprefix(prefix)
    return rename_transformer(f"{module}.weight")


def _matrix(tensor: Tensor) -> Tensor | None:
    """A linear layer's half as it is, a 1x1 convolution's as a matrix; None for what is neither."""
    if tensor.ndim < 2 or not tensor.is_floating_point() or math.prod(tensor.shape[2:]) != 1:
        return None
    return tensor.flatten(1)


def _scalar(tensor: Tensor, path: Path, key: str) -> float:
    if tensor.numel() != 1 or not math.isfinite(tensor.item()):
        raise InputError(f"{path}: {key} is not one finite number; the file is damaged, download it again.")
    return float(tensor.item())


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
