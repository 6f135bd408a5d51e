"""LoRAs under ComfyUI's memory management: merged into weights as its patches, or computed beside quantized weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor, nn

from ..ltx.weights.adapters import Adapter, filled, tensors
from ..ltx.weights.lora import Match, merged
from ..ltx.weights.quantized import beside
from .progress import Merging

Usual = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


class Pairs(nn.ModuleList):
    """The changes of one LoRA to quantized layers. index: module name of the layer → position in the list."""

    def __init__(self, adapters: dict[str, Adapter]) -> None:
        super().__init__(map(beside, adapters.values()))
        self.index = {name.removesuffix(".weight"): i for i, name in enumerate(adapters)}


@dataclass(frozen=True)
class Kept:
    """An unmerged weight, in the form in which ComfyUI's patcher keeps it."""

    weight: Tensor
    inplace_update: bool = False


class Patcher(Usual):
    """ComfyUI's patcher with a faster path for merges.

    ComfyUI's own path takes half a millisecond per weight in addition to the sum, which is seconds for the strengths of
    the two stages. Since 2026 it also converts the weight to float16 if the GPU supports that, which would round twice.
    ComfyUI passes over tensors that belong to no leaf of the module, for instance the modulation tables; they are
    merged here.
    """

    _merging: Merging | None = None

    def load(self, device_to: torch.device | None = None, *args: Any, **kwargs: Any) -> Any:
        self._merging = Merging(len(self.patches.keys() - self.backup.keys()))
        try:
            result = super().load(device_to, *args, **kwargs)
            for key in self.patches.keys() - self.backup.keys():
                if not hasattr(self.model.get_submodule(key.rpartition(".")[0]), "comfy_cast_weights"):
                    self.patch_weight_to_device(key, device_to)
        except BaseException:
            # A part is merged, and the next load would take it for its own. ComfyUI undoes it for an Exception alone,
            # and the interrupt of newer versions is none.
            self.detach()
            raise
        self._merging.end()
        return result

    def patch_weight_to_device(
        self, key: str, device_to: torch.device | None = None, inplace_update: bool = False, **more: Any
    ) -> Any:
        patches = self.patches.get(key, ())
        merge = patches[0][1] if len(patches) == 1 else None
        if not isinstance(merge, Merge) or inplace_update or self.weight_inplace_update or any(more.values()):
            return super().patch_weight_to_device(key, device_to, inplace_update, **more)
        if self._merging is not None:
            self._merging()
        path, _, name = key.rpartition(".")
        layer = self.model.get_submodule(path)
        if key not in self.backup:
            self.backup[key] = Kept(getattr(layer, name).to(self.offload_device))
        weight = self.backup[key].weight
        whole = merge.applied_to(weight if device_to is None else weight.to(device_to))
        setattr(layer, name, nn.Parameter(whole, requires_grad=False))
        return None


Term = tuple[Adapter, tuple[Tensor, ...], float]
"""A change, its tensors and its strength, of one LoRA on one weight."""


class Merge(WeightAdapterBase):
    """ComfyUI's patch of one weight: a float32 sum with all its LoRAs, rounded once, by the engine's own formula.

    Newer versions of ComfyUI move the tensors in `weights` and make a new object of this class with them.
    """

    name = "ltxa2v"

    def __init__(self, loaded_keys: set[str], weights: tuple[Term, ...]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(self, weight: Tensor, *args: object, **kwargs: object) -> Tensor:
        """ComfyUI calls this if the weight stayed in host memory and is fetched for each step."""
        return self.applied_to(weight)

    def applied_to(self, weight: Tensor) -> Tensor:
        """The merged weight in the dtype and on the device of `weight`, which does not change."""
        terms = ((filled(adapter, values), strength) for adapter, values, strength in self.weights)
        return merged(weight, terms, weight.dtype)


def merges(loras: tuple[tuple[Match, float], ...]) -> dict[str, Merge]:
    """Patches by parameter name. A LoRA at strength 0 has no effect."""
    terms: dict[str, tuple[Term, ...]] = {}
    for fit, strength in loras:
        for name, adapter in fit.changes.items() if strength else ():
            terms[name] = (*terms.get(name, ()), (adapter, tuple(tensors(adapter)), strength))
    return {name: Merge(set(), weights) for name, weights in terms.items()}
