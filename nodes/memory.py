"""Residency: a diffusers or transformers module under ComfyUI's memory management, whole or in part, exactly.

ComfyUI moves a model's weights between memories when this or any other pack needs room, and leaves behind what does
not fit. A module of its own can compute all the same, because its layers fetch their weights when they are called.
Here diffusers' and transformers' layers are given the classes of ComfyUI that do this; the numbers stay the same.

Nothing here holds a model by a strong reference: handles travel through the graph, and die with its cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor, nn

from ..ltx.classes import give_classes
from ..ltx.diffusion.acceleration import EXACT, Acceleration
from ..ltx.diffusion.conditioning import AudioCondition
from ..ltx.diffusion.decode import Tiling
from ..ltx.diffusion.guidance import NONE, Guidance
from ..ltx.errors import InputError
from ..ltx.latents import AUDIO_BINS, AUDIO_CHANNELS, audio_length, pixel_frames
from ..ltx.memory.rehearsal import peak, twin
from ..ltx.memory.work import decoding, image_encoding, one_step, upscaling
from ..ltx.prompt.gemma import Gemma
from ..ltx.weights.lora import LowRank, Match, factor, merged
from ..ltx.weights.nvfp4 import NVFP4Linear
from ..ltx.weights.quantized import Branch, QuantizedLinear

Usual = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


class FetchingLinear(QuantizedLinear, comfy.ops.CastWeightBiasOp):
    """A quantized layer that fetches its bytes to where its input is, as ComfyUI's layers do, and decodes them there.

    ComfyUI's patches are never put on its weight: LoRAs on it are branches.
    """

    comfy_cast_weights = True

    def forward(self, x: Tensor) -> Tensor:
        data, bias, stream = comfy.ops.cast_bias_weight(
            self, dtype=self.weight.dtype, device=x.device, bias_dtype=x.dtype, offloadable=True
        )
        y = self.compute(x, data, bias)
        comfy.ops.uncast_bias_weight(self, data, bias, stream)
        return y


class FetchingNVFP4Linear(FetchingLinear, NVFP4Linear):
    """The same of a layer in NVFP4; its scales it fetches itself."""


class FetchingBranch(Branch):
    """A LoRA pair that ComfyUI may leave behind: it is fetched when it is called.

    ComfyUI from 0.8.0 on reads `weight` and `bias` of every such layer, and a pair has neither.
    """

    comfy_cast_weights = True
    weight = bias = None


CASTABLE = {
    **{
        getattr(nn, name): getattr(comfy.ops.manual_cast, name)
        for name in ("Linear", "Conv1d", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm", "RMSNorm")
    },
    QuantizedLinear: FetchingLinear,
    NVFP4Linear: FetchingNVFP4Linear,
}
"""torch's layer → ComfyUI's, which fetches its weights to where its input is. Gemma's table of embeddings is not among
them: only where its weights are can its input, the first of all, be put."""

DTYPES = {"auto": None, "bfloat16": torch.bfloat16, "float32": torch.float32}
MODEL_DTYPES = (*DTYPES, "fp8")
"""Of the transformer and of Gemma: fp8 keeps the blocks' weights in 8 bits, and computes as auto does."""


class Holder(nn.Module):
    """What ComfyUI may write on (`device`, counters of bytes): the `device` of diffusers' modules cannot be set."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@dataclass(frozen=True, eq=False)
class Handle:
    """A model on its way through a graph. The two methods are how ComfyUI counts what its cache keeps alive."""

    patcher: Any

    @property
    def module(self) -> nn.Module:
        return self.patcher.model.module

    def get_models(self) -> list[Any]:
        return [self.patcher]

    def get_ram_usage(self) -> int:
        return self.patcher.model_size()


@dataclass(frozen=True, eq=False)
class TextEncoder(Handle):
    """Gemma with its tokenizer, and the connectors that turn its hidden states into the transformer's context."""

    gemma: Gemma
    connectors: Handle

    def get_models(self) -> list[Any]:
        return [self.patcher, self.connectors.patcher]

    def get_ram_usage(self) -> int:
        return self.patcher.model_size() + self.connectors.get_ram_usage()


@dataclass(frozen=True, eq=False)
class Model(Handle):
    """The transformer with `loras` merged where it computes; `plain` is the same one without.

    checkpoint: the name of the file it came from. acceleration: what a sampler leaves out; compiled: whether its blocks
    are compiled. branches: of each LoRA, its pairs for quantized layers, which every handle on these weights shares:
    a module whose children are Branches, under ComfyUI's memory management like any model.
    """

    plain: Any
    loras: tuple[tuple[Match, float], ...] = ()
    checkpoint: str = ""
    acceleration: Acceleration = EXACT
    compiled: bool = False
    branches: WeakKeyDictionary[Match, Handle] = field(default_factory=WeakKeyDictionary, repr=False)

    def get_models(self) -> list[Any]:
        return [self.patcher, *(self.branches[fit].patcher for fit, _ in self._branching)]

    def get_ram_usage(self) -> int:
        return sum(patcher.model_size() for patcher in self.get_models())

    @property
    def _branching(self) -> list[tuple[Match, float]]:
        return [(fit, strength) for fit, strength in self.loras if strength and fit in self.branches]

    def attach(self) -> None:
        """Gives the quantized layers, which all handles share, the branches of this one."""
        layers = {name: m for name, m in self.module.named_modules() if isinstance(m, QuantizedLinear)}
        chosen: dict[str, tuple[tuple[Branch, float], ...]] = dict.fromkeys(layers, ())
        for fit, strength in self._branching:
            pairs = self.branches[fit].module
            for name in layers.keys() & pairs.index.keys():
                pair = fit.lora.targets[f"{name}.weight"]
                chosen[name] = (*chosen[name], (pairs[pairs.index[name]], factor(pair, strength)))
        for name, layer in layers.items():
            layer.branches = chosen[name]

    def with_lora(self, fit: Match, strength: float) -> Model:
        """This model with one LoRA more: another handle on the same weights."""
        return self.with_loras((*self.loras, (fit, strength)))

    def with_loras(self, loras: tuple[tuple[Match, float], ...]) -> Model:
        """This model with these LoRAs in place of its own."""
        layers = {f"{n}.weight" for n, m in self.module.named_modules() if isinstance(m, QuantizedLinear)}
        for fit, _ in loras:
            if fit not in self.branches and not layers.isdisjoint(fit.matched):
                pairs = Pairs({name: fit.lora.targets[name] for name in fit.matched if name in layers})
                self.branches[fit] = Handle(hold(pairs, self.plain.load_device, self.plain.offload_device))
        merges = {f"module.{name}": merge for name, merge in _merges(loras).items() if name not in layers}
        patcher = self.plain.clone()
        if merges:
            patcher.add_patches(merges)
        return replace(self, patcher=patcher, loras=loras)


class Pairs(nn.ModuleList):
    """The branches of one LoRA; `index`: module name of the layer → place in the list."""

    def __init__(self, pairs: dict[str, LowRank]) -> None:
        super().__init__(FetchingBranch(pair.down, pair.up) for pair in pairs.values())
        self.index = {name.removesuffix(".weight"): i for i, name in enumerate(pairs)}


@dataclass(frozen=True)
class Kept:
    """A weight as it was, in the form that ComfyUI's patcher keeps it in."""

    weight: Tensor
    inplace_update: bool = False


class Patcher(Usual):
    """ComfyUI's patcher, with a short way for merges.

    Its own takes half a millisecond a weight beside the sum, which is seconds for the strengths of the two passes; and
    since 2026 it hands the weight over in float16 where a GPU has that, which rounds twice.
    """

    def patch_weight_to_device(
        self, key: str, device_to: torch.device | None = None, inplace_update: bool = False, **more: Any
    ) -> Any:
        patches = self.patches.get(key, ())
        merge = patches[0][1] if len(patches) == 1 else None
        if not isinstance(merge, Merge) or inplace_update or self.weight_inplace_update or any(more.values()):
            return super().patch_weight_to_device(key, device_to, inplace_update, **more)
        path, _, name = key.rpartition(".")
        layer = self.model.get_submodule(path)
        weight = getattr(layer, name)
        if key not in self.backup:
            self.backup[key] = Kept(weight.to(self.offload_device))
        whole = merge.applied_to(weight if device_to is None else weight.to(device_to))
        setattr(layer, name, nn.Parameter(whole, requires_grad=False))
        return None


Term = tuple[Tensor, Tensor, float | None, float]
"""up, down, alpha and strength of one LoRA on one weight."""


class Merge(WeightAdapterBase):
    """ComfyUI's patch of one weight: every LoRA on it in one float32 sum, rounded once, by the engine's own formula.

    Newer versions of ComfyUI move the tensors in `weights` and make another one of this class with them.
    """

    name = "ltxa2v"

    def __init__(self, loaded_keys: set[str], weights: tuple[Term, ...]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(self, weight: Tensor, *args: object, **kwargs: object) -> Tensor:
        """What ComfyUI asks for where it has left the weight behind, and fetches it for each step."""
        return self.applied_to(weight)

    def applied_to(self, weight: Tensor) -> Tensor:
        """The merged weight, in `weight`'s dtype and memory; `weight` is not written."""
        terms = ((LowRank(down, up, alpha), strength) for up, down, alpha, strength in self.weights)
        return merged(weight, terms, weight.dtype)


def _merges(loras: tuple[tuple[Match, float], ...]) -> dict[str, Merge]:
    """Patches by parameter name. A LoRA at strength 0 is as if it were not there."""
    terms: dict[str, tuple[Term, ...]] = {}
    for fit, strength in loras:
        for name in fit.matched if strength else ():
            pair = fit.lora.targets[name]
            terms[name] = (*terms.get(name, ()), (pair.up, pair.down, pair.alpha, strength))
    return {name: Merge(set(), weights) for name, weights in terms.items()}


def hold(module: nn.Module, device: torch.device, offload: torch.device) -> Any:
    """A patcher that computes on `device` and waits on `offload`. The module's layers are changed in place."""
    for layer in give_classes(module.modules(), CASTABLE, _has_weights):
        if not hasattr(layer, "bias"):
            layer.bias = None  # ComfyUI's layers ask every layer for one
    module.__class__ = _placed(type(module))
    module.compute_device = device
    named = type(type(module).__name__, (Holder,), {})  # the name that ComfyUI logs
    return Patcher(named(module), load_device=device, offload_device=offload)


def _has_weights(layer: nn.Module) -> bool:
    return any(True for _ in layer.parameters(recurse=False))


def use(*handles: Handle, memory_required: float = 0) -> list[nn.Module]:
    """Brings models to their devices, as much of them as fits beside `memory_required` bytes, and returns the modules.

    A module's `.device` then says where it computes and wants its inputs, wherever its weights lie.
    """
    patchers = list(dict.fromkeys(patcher for handle in handles for patcher in handle.get_models()))
    management.load_models_gpu(patchers, memory_required=memory_required)
    for patcher in patchers:
        settle(patcher.model, patcher.load_device)
    for handle in handles:
        if isinstance(handle, Model):
            handle.attach()
    return [handle.module for handle in handles]


def settle(module: nn.Module, device: torch.device) -> None:
    """Moves to `device` what no layer fetches: buffers, and parameters that a module uses outside a castable layer.

    ComfyUI leaves them behind when it loads a model in part: the modulation tables, the connectors' registers, the
    latents' statistics, Gemma's norms and embeddings.
    """
    for part in module.modules():
        fetches = hasattr(part, "comfy_cast_weights")
        own = [*part.buffers(recurse=False), *([] if fetches else part.parameters(recurse=False))]
        if any(tensor.device != device for tensor in own):
            part._apply(lambda tensor: tensor.to(device), recurse=False)  # `to` would take the children along


def dtype_for(name: str, device: torch.device) -> torch.dtype:
    """The loaders' dtype widget. auto: bfloat16 where the device computes in it, float32 elsewhere, as on the CPU."""
    if name not in tuple(DTYPES):  # an object, which a request can have in its place, has no hash
        raise InputError(f"dtype is {name!r}: choose one of {', '.join(DTYPES)}.")
    return DTYPES[name] or (torch.bfloat16 if management.should_use_bf16(device) else torch.float32)


def hold_transformer(load: Callable[..., nn.Module], dtype: str, checkpoint: str = "") -> Model:
    """load: (dtype, fp8=…, on=…) → the transformer, in host memory: Checkpoint.transformer."""
    device = management.get_torch_device()
    rounding = {"fp8": True, "on": device} if dtype == "fp8" else {}
    module = load(dtype_for("auto" if rounding else dtype, device), **rounding)
    patcher = hold(module, device, management.unet_offload_device())
    return Model(patcher, patcher, checkpoint=checkpoint)


def hold_vae(load: Callable[[torch.dtype], nn.Module], dtype: str) -> Handle:
    device = management.vae_device()
    return Handle(hold(load(dtype_for(dtype, device)), device, management.vae_offload_device()))


def hold_text(load: Callable[[torch.dtype], nn.Module], dtype: str) -> Handle:
    device = management.text_encoder_device()
    return Handle(hold(load(dtype_for(dtype, device)), device, management.text_encoder_offload_device()))


def hold_gemma(load: Callable[..., Gemma], dtype: str, connectors: Handle) -> TextEncoder:
    """load: (dtype, fp8=device that rounds) → Gemma; see `load_gemma`."""
    device = management.text_encoder_device()
    fp8 = {"fp8": device} if dtype == "fp8" else {}
    gemma = load(dtype_for("auto" if fp8 else dtype, device), **fp8)
    return TextEncoder(hold(gemma.model, device, management.text_encoder_offload_device()), gemma, connectors)


def to_graph(tensor: Tensor) -> Tensor:
    """Where ComfyUI wants what travels between nodes."""
    return tensor.to(management.intermediate_device())


FOUR_PASSES = Guidance(cfg=3.0, stg=1.0, modality=3.0)

# Bytes of activations beside the weights: ComfyUI keeps as much room free. On a CPU none is kept: nothing moves there.


def sampling_memory(module: nn.Module, latent: Tensor) -> int:
    """One guided step over `latent` [1, C, F, H, W], its passes one after the other."""
    frames, fps = pixel_frames(latent), Fraction(24)
    audio = AudioCondition(torch.zeros(1, AUDIO_CHANNELS, audio_length(frames, fps), AUDIO_BINS), frames, fps)
    empty = torch.empty_like(latent, device="meta")

    def step(twin: nn.Module, on: str) -> int:
        return peak(lambda: one_step(twin, empty, audio, (FOUR_PASSES, NONE), images=[True]), on)

    return _room(module, step, num_layers=2)


def decoding_memory(module: nn.Module, latent: Tensor, tiling: Tiling) -> int:
    """The video VAE's decoder over the largest tile of `latent` [1, C, F, H, W]."""
    return _room(module, lambda twin, on: decoding(twin, tuple(latent.shape[2:]), tiling, on)[0])


def encoding_memory(module: nn.Module, height: int, width: int) -> int:
    """The video VAE's encoder over one image."""
    return _room(module, lambda twin, on: image_encoding(twin, height, width, on))


def upscaling_memory(module: nn.Module, vae: nn.Module, latent: Tensor) -> int:
    """The upsampler over `latent` [1, C, F, H, W]."""
    return _room(module, lambda like, on: upscaling(like, twin(vae), tuple(latent.shape[2:]), on))


def _room(module: nn.Module, rehearse: Callable[[nn.Module, str], int], **changes: object) -> int:
    """What `rehearse` tells of a twin of the module, on the kind of device that it computes on."""
    on = module.device.type
    return 0 if on == "cpu" else rehearse(twin(module, **changes), on)


TEXT_MEMORY = 5e9
"""Gemma over 1024 tokens, all its hidden states kept, and its table of embeddings, which `settle` places."""


@cache
def _placed(theirs: type) -> type:
    """The class with a `device` that is where the module computes; theirs is where its first weight happens to lie."""
    device = property(lambda self: self.compute_device)
    return type(theirs.__name__, (theirs,), {"__module__": theirs.__module__, "device": device})
