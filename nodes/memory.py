"""Puts diffusers' and transformers' modules under ComfyUI's memory management, without changing their numbers.

ComfyUI moves a model's weights between host memory and the device when this or another pack needs room. Weights that do
not fit stay in host memory. ComfyUI's own layers can compute nevertheless, because they fetch their weights when they
are called. This module gives diffusers' and transformers' layers ComfyUI's classes, which do that.

No global object here holds a model: handles travel through the graph, and ComfyUI's cache frees them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor, nn

from ..ltx.classes import give_classes
from ..ltx.diffusion.acceleration import EXACT, Acceleration
from ..ltx.diffusion.attention import TORCH, attend_by
from ..ltx.diffusion.block import compile_blocks
from ..ltx.diffusion.conditioning import AudioCondition, Reference
from ..ltx.diffusion.decode import Tiling
from ..ltx.diffusion.guidance import NONE, Guidance
from ..ltx.diffusion.kernels import fuse
from ..ltx.diffusion.passes import batch_memory
from ..ltx.errors import InputError
from ..ltx.latents import AUDIO_BINS, AUDIO_CHANNELS, audio_length, pixel_frames
from ..ltx.memory.rehearsal import peak, twin
from ..ltx.memory.work import clip_encoding, decoding, image_encoding, one_step, upscaling
from ..ltx.models import V23
from ..ltx.prompt.contexts import fingerprint
from ..ltx.prompt.gemma import Gemma, check_gemma
from ..ltx.weights.adapters import Adapter, Leaf, filled, tensors
from ..ltx.weights.checkpoint import Checkpoint
from ..ltx.weights.lora import Match, merged
from ..ltx.weights.quantized import Beside, QuantizedLinear, ScaledLinear, beside, factor, quicken
from .fetching import largest

if TYPE_CHECKING:
    from typing import Self

Usual = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


class FetchingLinear(QuantizedLinear, comfy.ops.CastWeightBiasOp):
    """A quantized layer that fetches its bytes to the input's device, as ComfyUI's layers do, and decodes them there.

    Its weight has no patches of ComfyUI, because LoRAs on it are branches.
    """

    comfy_cast_weights = True

    def forward(self, x: Tensor) -> Tensor:
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
        value, _, stream = comfy.ops.cast_bias_weight(
            self, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
        )
        result = use(value)
        comfy.ops.uncast_bias_weight(self, value, None, stream)
        return result


CASTABLE = {
    **{
        getattr(nn, name): getattr(comfy.ops.manual_cast, name)
        for name in ("Linear", "Conv1d", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm", "RMSNorm")
    },
    QuantizedLinear: FetchingLinear,
    ScaledLinear: FetchingScaledLinear,
    Leaf: FetchingLeaf,
}
"""torch's layer → ComfyUI's layer, which fetches its weights to the input's device. Embedding is not among them: the
token ids are Gemma's first input and are put on the device of the embeddings."""

DTYPES = {"auto": None, "bfloat16": torch.bfloat16, "float32": torch.float32}
MODEL_DTYPES = (*DTYPES, "fp8")
"""The dtypes of the transformer and of Gemma. fp8 keeps the blocks' weights in 8 bits and computes as auto does."""


class Holder(nn.Module):
    """A module on which ComfyUI can set attributes (`device`, byte counters); a diffusers module has a fixed
    `device`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@dataclass(frozen=True, eq=False)
class Handle:
    """A model that travels through a graph. ComfyUI calls the two methods to count the memory that its cache holds."""

    patcher: Any

    @property
    def module(self) -> nn.Module:
        return self.patcher.model.module

    @property
    def decoder(self) -> Handle:
        """What decodes, for a VAE: the same module, unless `VideoVae` has another one."""
        return self

    def get_models(self) -> list[Any]:
        return [self.patcher]

    def get_ram_usage(self) -> int:
        return self.patcher.model_size()


@dataclass(frozen=True, eq=False)
class VideoVae(Handle):
    """The video VAE. Its module has the encoder and the latents' statistics, and the decoder as well unless `apart` is
    another module for it. crf: the compression of the images that its model was trained with. checkpoint: what it was
    loaded with."""

    crf: int = V23.crf
    apart: Handle | None = None
    checkpoint: Checkpoint | None = None

    @property
    def decoder(self) -> Handle:
        return self.apart or self

    def get_ram_usage(self) -> int:
        return self.patcher.model_size() + (self.apart.get_ram_usage() if self.apart else 0)


@dataclass(frozen=True, eq=False)
class Upscaler(Handle):
    """The latent upscaler, and its file."""

    path: Path

    def check(self, video_vae: Handle) -> None:
        """Raises InputError if it is of another version than the model of the latents that it enlarges."""
        if isinstance(video_vae, VideoVae) and video_vae.checkpoint is not None:
            video_vae.checkpoint.check_upscaler(self.path)


@dataclass(frozen=True, eq=False)
class Writer(Handle):
    """An expander with its tokenizer."""

    gemma: Gemma


@dataclass(frozen=True, eq=False)
class Adapted(Handle):
    """A module with `loras`, which are merged on the device where it computes. plain: the patcher without LoRAs.

    branches: for each LoRA its changes of quantized layers, as a module under ComfyUI's memory management; all handles
    on these weights share them.
    """

    plain: Any
    loras: tuple[tuple[Match, float], ...] = ()
    branches: WeakKeyDictionary[Match, Handle] = field(default_factory=WeakKeyDictionary, repr=False)

    def get_models(self) -> list[Any]:
        return [self.patcher, *(self.branches[fit].patcher for fit, _ in self._branching)]

    def get_ram_usage(self) -> int:
        return sum(patcher.model_size() for patcher in self.get_models())

    @property
    def _branching(self) -> list[tuple[Match, float]]:
        return [(fit, strength) for fit, strength in self.loras if strength and fit in self.branches]

    def attach(self) -> None:
        """Gives the quantized layers the branches of this handle. All handles share these layers."""
        layers = {name: m for name, m in self.module.named_modules() if isinstance(m, QuantizedLinear)}
        chosen: dict[str, tuple[tuple[Beside, float], ...]] = dict.fromkeys(layers, ())
        for fit, strength in self._branching:
            pairs = self.branches[fit].module
            for name in layers.keys() & pairs.index.keys():
                adapter = fit.changes[f"{name}.weight"]
                chosen[name] = (*chosen[name], (pairs[pairs.index[name]], factor(adapter, strength)))
        for name, layer in layers.items():
            layer.branches = chosen[name]

    def with_lora(self, fit: Match, strength: float) -> Self:
        """This model with one more LoRA, as another handle on the same weights."""
        return self.with_loras((*self.loras, (fit, strength)))

    def with_loras(self, loras: tuple[tuple[Match, float], ...]) -> Self:
        """This model with these LoRAs instead of its own."""
        layers = {f"{n}.weight" for n, m in self.module.named_modules() if isinstance(m, QuantizedLinear)}
        for fit, _ in loras:
            if fit not in self.branches and not layers.isdisjoint(fit.changes):
                pairs = Pairs({name: adapter for name, adapter in fit.changes.items() if name in layers})
                self.branches[fit] = Handle(hold(pairs, self.plain.load_device, self.plain.offload_device))
        merges = {f"module.{name}": merge for name, merge in _merges(loras).items() if name not in layers}
        patcher = self.plain.clone()
        if merges:
            patcher.add_patches(merges)
        return replace(self, patcher=patcher, loras=loras)


@dataclass(frozen=True, eq=False)
class Connectors(Adapted):
    """The text connectors of a checkpoint."""

    checkpoint: Checkpoint | None = None

    def completed(self, path: Path) -> Adapted:
        """These connectors for the text encoder `path`. Raises InputError if the checkpoint was trained with another
        one."""
        check_gemma(path, self.checkpoint)
        return self


@dataclass(frozen=True)
class Awaited:
    """The text connectors of a checkpoint whose text projection is in the text encoder's file."""

    checkpoint: Checkpoint
    dtype: str

    def completed(self, path: Path) -> Adapted:
        """The connectors with the projection of the text encoder `path`. Raises InputError if it has none, or if the
        checkpoint was trained with another one."""
        check_gemma(path, self.checkpoint)
        return hold_connectors(self.checkpoint.with_text_encoder(path).connectors, self.dtype)


@dataclass(frozen=True, eq=False)
class TextEncoder(Handle):
    """Gemma with its tokenizer, and the connectors, which turn its hidden states into the transformer's context."""

    gemma: Gemma
    connectors: Adapted

    def get_models(self) -> list[Any]:
        return [self.patcher, *self.connectors.get_models()]

    def get_ram_usage(self) -> int:
        return self.patcher.model_size() + self.connectors.get_ram_usage()

    def attach(self) -> None:
        """Gives the connectors' quantized layers the branches of this handle."""
        self.connectors.attach()

    def with_lora(self, fit: Match, strength: float) -> TextEncoder:
        """This encoder with one more LoRA in its connectors."""
        return replace(self, connectors=self.connectors.with_lora(fit, strength)) if fit.changes else self


@dataclass(frozen=True, eq=False)
class Model(Adapted):
    """The transformer. checkpoint: the name of its file. version: as the file tells it. acceleration: the settings of
    an acceleration level. compiled: whether its blocks are compiled. weights: a hash of its file and of how it was
    loaded; "" if they are not known. attention, fused, fast_products: as in `Compute`."""

    checkpoint: str = ""
    version: str = V23.version
    acceleration: Acceleration = EXACT
    compiled: bool = False
    weights: str = ""
    attention: str = TORCH
    fused: bool = False
    fast_products: bool = False

    @property
    def identity(self) -> list[Any]:
        """What decides about its numbers, as values that JSON can hold: its weights, its LoRAs and the device."""
        loras = [(fingerprint(fit.lora.path), strength) for fit, strength in self.loras]
        computing = [self.compiled, self.attention, self.fused, self.fast_products]
        return [self.weights, loras, *computing, self.module.device.type]

    def compute_so(self) -> None:
        """Makes the module compute as this handle says. All handles on these weights share the module."""
        attend_by(self.module, self.attention)
        fuse(self.module, self.fused)
        quicken(self.module, self.fast_products)
        compile_blocks(self.module, self.compiled)


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

    def load(self, device_to: torch.device | None = None, *args: Any, **kwargs: Any) -> Any:
        result = super().load(device_to, *args, **kwargs)
        for key in self.patches.keys() - self.backup.keys():
            if not hasattr(self.model.get_submodule(key.rpartition(".")[0]), "comfy_cast_weights"):
                self.patch_weight_to_device(key, device_to)
        return result

    def patch_weight_to_device(
        self, key: str, device_to: torch.device | None = None, inplace_update: bool = False, **more: Any
    ) -> Any:
        patches = self.patches.get(key, ())
        merge = patches[0][1] if len(patches) == 1 else None
        if not isinstance(merge, Merge) or inplace_update or self.weight_inplace_update or any(more.values()):
            return super().patch_weight_to_device(key, device_to, inplace_update, **more)
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


def _merges(loras: tuple[tuple[Match, float], ...]) -> dict[str, Merge]:
    """Patches by parameter name. A LoRA at strength 0 has no effect."""
    terms: dict[str, tuple[Term, ...]] = {}
    for fit, strength in loras:
        for name, adapter in fit.changes.items() if strength else ():
            terms[name] = (*terms.get(name, ()), (adapter, tuple(tensors(adapter)), strength))
    return {name: Merge(set(), weights) for name, weights in terms.items()}


def hold(module: nn.Module, device: torch.device, offload: torch.device) -> Any:
    """A patcher whose module computes on `device` and waits on `offload`. The module's layers get other classes."""
    for layer in give_classes(module.modules(), CASTABLE, _has_weights):
        if not hasattr(layer, "bias"):
            layer.bias = None  # ComfyUI reads the bias of every layer
    module.__class__ = _placed(type(module))
    module.compute_device = device
    named = type(type(module).__name__, (Holder,), {})  # ComfyUI logs the name of this class
    return Patcher(named(module), load_device=device, offload_device=offload)


def _has_weights(layer: nn.Module) -> bool:
    return any(True for _ in layer.parameters(recurse=False))


def use(*handles: Handle, memory_required: float = 0) -> list[nn.Module]:
    """Loads models onto their devices, as far as they fit beside `memory_required` bytes, and returns the modules.

    A module's `.device` is then the device where it computes and needs its inputs, wherever its weights are.
    """
    patchers = list(dict.fromkeys(patcher for handle in handles for patcher in handle.get_models()))
    management.load_models_gpu(patchers, memory_required=memory_required)
    for patcher in patchers:
        settle(patcher.model, patcher.load_device)
    for handle in handles:
        if isinstance(handle, (Adapted, TextEncoder)):
            handle.attach()
    return [handle.module for handle in handles]


def settle(module: nn.Module, device: torch.device) -> None:
    """Moves tensors that no layer fetches to `device`: buffers, and parameters that belong to no castable layer.

    When ComfyUI loads a model in part, it leaves them in host memory: the modulation tables, the connectors' registers,
    the latents' statistics, Gemma's norms and embeddings.
    """
    for part in module.modules():
        fetches = hasattr(part, "comfy_cast_weights")
        own = [*part.buffers(recurse=False), *([] if fetches else part.parameters(recurse=False))]
        if any(tensor.device != device for tensor in own):
            part._apply(lambda tensor: tensor.to(device), recurse=False)  # `to` would also move the children


def dtype_for(name: str, device: torch.device) -> torch.dtype:
    """The dtype for a value of the loaders' widget. auto: bfloat16 if the device computes in it, else float32, as on
    the CPU. Raises InputError for any other value."""
    if name not in tuple(DTYPES):  # a tuple, because a request can hold a value without a hash
        raise InputError(f"dtype is {name!r}: choose one of {', '.join(DTYPES)}.")
    return DTYPES[name] or (torch.bfloat16 if management.should_use_bf16(device) else torch.float32)


def hold_transformer(
    load: Callable[..., nn.Module],
    dtype: str,
    checkpoint: str = "",
    version: str = V23.version,
    path: Path | None = None,
) -> Model:
    """Loads the transformer into host memory. load: Checkpoint.transformer, called as load(dtype, fp8=…, on=…). path:
    its file or folder."""
    device = management.get_torch_device()
    rounding = {"fp8": True, "on": device} if dtype == "fp8" else {}
    computed = dtype_for("auto" if rounding else dtype, device)
    module = load(computed, **rounding)
    patcher = hold(module, device, management.unet_offload_device())
    weights = fingerprint(path, device=device, dtype=f"{computed} {bool(rounding)}") if path is not None else ""
    return Model(patcher, patcher, checkpoint=checkpoint, version=version, weights=weights)


def hold_vae(load: Callable[[torch.dtype], nn.Module], dtype: str) -> Handle:
    device = management.vae_device()
    return Handle(hold(load(dtype_for(dtype, device)), device, management.vae_offload_device()))


def hold_video_vae(opened: Checkpoint, dtype: str) -> VideoVae:
    """Loads the video VAE of a checkpoint into host memory; a diffusion decoder is a module of its own."""
    whole = hold_vae(opened.video_vae, dtype)
    apart = hold_vae(opened.video_decoder, dtype) if opened.decoder_apart else None
    return VideoVae(whole.patcher, opened.crf, apart, opened)


def hold_upscaler(load: Callable[[torch.dtype], nn.Module], dtype: str, path: Path) -> Upscaler:
    return Upscaler(hold_vae(load, dtype).patcher, path)


def hold_connectors(
    load: Callable[[torch.dtype], nn.Module], dtype: str, checkpoint: Checkpoint | None = None
) -> Connectors:
    """Loads the text connectors into host memory. checkpoint: what they belong to, if it is known."""
    device = management.text_encoder_device()
    patcher = hold(load(dtype_for(dtype, device)), device, management.text_encoder_offload_device())
    return Connectors(patcher, patcher, checkpoint=checkpoint)


def checkpoint_connectors(opened: Checkpoint, dtype: str) -> Connectors | Awaited:
    """The text connectors of a checkpoint, or what they become when the text encoder is known."""
    return Awaited(opened, dtype) if opened.awaits_projection else hold_connectors(opened.connectors, dtype, opened)


def hold_gemma(load: Callable[..., Gemma], dtype: str, connectors: Adapted) -> TextEncoder:
    """Loads Gemma. load: a function like `load_gemma`, called as load(dtype, fp8=the device that rounds)."""
    writer = hold_writer(load, dtype)
    return TextEncoder(writer.patcher, writer.gemma, connectors)


def hold_writer(load: Callable[..., Gemma], dtype: str) -> Writer:
    """Loads an expander, as `hold_gemma` loads Gemma."""
    device = management.text_encoder_device()
    fp8 = {"fp8": device} if dtype == "fp8" else {}
    gemma = load(dtype_for("auto" if fp8 else dtype, device), **fp8)
    return Writer(hold(gemma.model, device, management.text_encoder_offload_device()), gemma)


def to_graph(tensor: Tensor) -> Tensor:
    """Moves a tensor to the device that ComfyUI wants for data between nodes."""
    return tensor.to(management.intermediate_device())


KEYFRAMES = 2  # images at later frames for which a batch has room
FOUR_PASSES = Guidance(cfg=3.0, stg=1.0, modality=3.0)

# The functions below give bytes of activations, for which ComfyUI keeps room beside the weights. On a CPU they give 0,
# because no weights move there.


@dataclass(frozen=True)
class Sampling:
    """How a stage is placed. room: bytes of activations to keep free beside the weights. stay: whether a block's
    waiting weights stay on the device while its passes run (fetching.py)."""

    room: int
    stay: bool = False


def sampling_memory(model: Model, latent: Tensor, passes: int, reference: Reference | None = None) -> Sampling:
    """How a stage over `latent` [1, C, F, H, W] is placed, with so many passes in a step. reference: the largest one
    beside it.

    If all weights fit beside a step whose passes run one after the other, nothing waits in host memory. Otherwise each
    waiting weight shall come to the device once a step and not once a pass: there is room for the passes as one batch,
    or, where that would take half of the device, for one block that stays while its passes run.
    """
    module, device = model.module, model.patcher.load_device
    single = _step_memory(module, latent, reference)
    if passes == 1 or device.type == "cpu":
        return Sampling(single)
    total = management.get_total_memory(device) - management.extra_reserved_memory()
    if model.get_ram_usage() + single <= total:
        return Sampling(single)
    grid = latent.shape[2:]
    sound = audio_length(pixel_frames(latent), Fraction(24))
    seen = 0 if reference is None else math.prod(reference.latent.shape[2:])
    tokens = math.prod(grid) + KEYFRAMES * math.prod(grid[1:]) + seen + sound
    batch = max(single, batch_memory(module, tokens, passes))
    if batch <= total / 2:
        return Sampling(batch)
    # A compiled block takes its weights as they were when it was compiled, and newer ComfyUIs can page them themselves.
    paged = getattr(model.patcher, "is_dynamic", bool)()
    if model.compiled or paged:
        return Sampling(single)
    return Sampling(single + largest(module.transformer_blocks), stay=True)


def _step_memory(module: nn.Module, latent: Tensor, reference: Reference | None = None) -> int:
    """Bytes for a guided step over `latent`, if its passes run one after the other."""
    frames, fps = pixel_frames(latent), Fraction(24)
    audio = AudioCondition(torch.zeros(1, AUDIO_CHANNELS, audio_length(frames, fps), AUDIO_BINS), frames, fps)
    empty = torch.empty_like(latent, device="meta")
    seen: dict[str, Any] = {}
    if reference is not None:
        seen = {"reference": torch.empty_like(reference.latent, device="meta"), "attention": reference.attention}

    def step(twin: nn.Module, on: str) -> int:
        return peak(lambda: one_step(twin, empty, audio, (FOUR_PASSES, NONE), images=[True], **seen), on)

    return _room(module, step, num_layers=2)


def decoding_memory(module: nn.Module, latent: Tensor, tiling: Tiling) -> int:
    """Bytes for decoding the largest tile of `latent` [1, C, F, H, W] with the video VAE."""
    return _room(module, lambda twin, on: decoding(twin, tuple(latent.shape[2:]), tiling, on)[0])


def encoding_memory(module: nn.Module, height: int, width: int) -> int:
    """Bytes for encoding one image with the video VAE. height, width: pixels."""
    return _room(module, lambda twin, on: image_encoding(twin, height, width, on))


def clip_encoding_memory(module: nn.Module, height: int, width: int) -> int:
    """Bytes for encoding a clip of any length with the video VAE. height, width: pixels."""
    return _room(module, lambda twin, on: clip_encoding(twin, height, width, on))


def upscaling_memory(module: nn.Module, vae: nn.Module, latent: Tensor) -> int:
    """Bytes for upscaling `latent` [1, C, F, H, W]."""
    return _room(module, lambda like, on: upscaling(like, twin(vae), tuple(latent.shape[2:]), on))


def _room(module: nn.Module, rehearse: Callable[[nn.Module, str], int], **changes: object) -> int:
    """The result of `rehearse` for a twin of the module and the kind of its device. changes: see `twin`."""
    on = module.device.type
    return 0 if on == "cpu" else rehearse(twin(module, **changes), on)


TEXT_MEMORY = 5e9
"""Bytes for Gemma over 1024 tokens with all hidden states, and for its embeddings, which `settle` moves."""


@cache
def _placed(theirs: type) -> type:
    """A subclass whose `device` is the device where the module computes. In the original class it is the device of the
    first weight."""
    device = property(lambda self: self.compute_device)
    return type(theirs.__name__, (theirs,), {"__module__": theirs.__module__, "device": device})
