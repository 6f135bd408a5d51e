"""LoRA files for the transformer: reads them, matches them with the model, merges them into its weights, removes them.

Merging computes W + sum of strength * (alpha / rank) * (up @ down) in float32 from the checkpoint's own W and rounds
the result once to the parameter's dtype. It therefore does not drift and does not need peft, and removing a LoRA
restores the weights exactly. A quantized weight is not rewritten: the pair becomes a branch beside it (quantized.py).
Merge before you install offload hooks, because these keep copies of the weights. Supported are safetensors files with
plain low-rank pairs of linear layers, named lora_A/lora_B or lora_down/lora_up under the original or diffusers' module
names.
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
from ..models import GENERATIONS
from .configs import rename_transformer
from .files import open_safetensors
from .quantized import Branch, QuantizedLinear, weight_shape

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
HALF = re.compile(r"(?P<module>.+?)[._]lora[._](?P<half>A|B|down|up)(\.default)?(\.weight)?")
ALPHA = ".alpha"
CHUNK = 1 << 20  # values that are summed at once
UNREAD = re.compile(r"(?P<module>.+?)\.(dora_scale|lora_mid\.weight|lora_magnitude_vector(\.weight)?)")
"""Tensors that change the meaning of a pair (DoRA, Tucker). They are not supported, so such a pair is not used."""


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
    """An opened LoRA file. targets: its pairs by diffusers' parameter name; unmatched: the keys that are not used."""

    path: Path
    targets: Mapping[str, LowRank] = field(repr=False)
    unmatched: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, eq=False)
class Match:
    """How a LoRA fits a model. matched: the parameters that it changes; skipped: the other ones, each with a reason."""

    lora: Lora
    matched: tuple[str, ...]
    skipped: Mapping[str, str]

    @property
    def warning(self) -> str | None:
        """One sentence for the report if only a part of the LoRA fits, else None."""
        left = {**self.skipped, **dict.fromkeys(self.lora.unmatched, "not a plain LoRA pair")}
        if not left:
            return None
        name, reason = next(iter(left.items()))
        return (
            f"{self.lora.path.name}: {len(self.matched)} layers applied, {len(left)} left out, e.g. {name}: {reason}."
        )


def load_lora(path: str | Path) -> Lora:
    """Opens a LoRA; its tensors map the file.

    Raises InputError if the file is missing, cut short or not safetensors, or if it holds no usable LoRA.
    """
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
    """Compares a LoRA's names and shapes with the model's. Raises InputError if nothing fits."""
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
            f"{lora.path}: fits nothing in this model, which has none of the {len(skipped)} layers in the same shape, "
            f"e.g. {name} ({reason}); use a LoRA made for {' or '.join(each.name for each in GENERATIONS)}."
        )
    return Match(lora, tuple(matched), skipped)


def factor(low_rank: LowRank, scale: float) -> float:
    """Returns scale * alpha / rank, the factor of up @ down. Without alpha, alpha = rank. Ranks differ by layer."""
    return scale if low_rank.alpha is None else scale * (low_rank.alpha / low_rank.down.shape[0])


def merged(weight: Tensor, terms: Iterable[tuple[LowRank, float]], dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns weight [out, in, …] + each pair at its strength: a float32 sum on the weight's device, rounded to
    `dtype`.

    `weight` itself does not change. Some rows are summed at a time: they stay in the processor's cache and take little
    memory.
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
    """Keeps one module's weights at W + its current LoRAs. It can restore W even after an interruption.

    original: gives W by parameter name, as the checkpoint stores it. device: where merging is computed; None means the
    device of each parameter. Merging changes one parameter at a time, so it needs no second copy of the model.
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
        self._branches: dict[int, tuple[LowRank, Branch]] = {}  # by the pair's id, each on its layer's device
        self._current: tuple[tuple[Lora, float], ...] | None = ()  # None while the weights change

    @torch.no_grad()
    def set(self, loras: Sequence[tuple[Lora, float]]) -> list[str]:
        """Sets the weights to W + these (LoRA, strength) pairs, whatever was merged before; `[]` restores W.

        Returns one warning for each LoRA that fits only in part. A LoRA at strength 0 has no effect. Raises InputError
        if a LoRA fits nothing or a strength is not a finite number; no weight has changed then.
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
        """Gives each quantized layer its branches and removes its name from `terms`. A branch that is on its device
        already stays there."""
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
    if parameter.device.type == "cpu":
        parameter.data = value  # never written in place: the memory may be the checkpoint's map, which `original` reads
    else:
        parameter.data.copy_(value)


def _parameter(module: str) -> str:
    """Module name in the LoRA file → diffusers' name of the weight."""
    while prefix := next((p for p in PREFIXES if module.startswith(p)), None):
        module = module.removeprefix(prefix)
    return rename_transformer(f"{module}.weight")


def _matrix(tensor: Tensor) -> Tensor | None:
    """One half of a pair as a matrix: a linear layer's unchanged, a 1x1 convolution's flattened, else None."""
    if tensor.ndim < 2 or not tensor.is_floating_point() or math.prod(tensor.shape[2:]) != 1:
        return None
    return tensor.flatten(1)


def _scalar(tensor: Tensor, path: Path, key: str) -> float:
    if tensor.numel() != 1 or not math.isfinite(tensor.item()):
        raise InputError(f"{path}: {key} is not one finite number; the file is damaged, download it again.")
    return float(tensor.item())


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
