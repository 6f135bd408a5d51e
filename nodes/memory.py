"""Puts diffusers' and transformers' modules under ComfyUI's memory management, without changing their numbers.

ComfyUI moves a model's weights between host memory and the device when this or another pack needs room. Weights that do
not fit stay in host memory. ComfyUI's own layers can compute nevertheless, because they fetch their weights when they
are called. `hold` gives diffusers' and transformers' layers ComfyUI's classes, which do that (fetching.py); where the
weights are resident, they compute as before. LoRAs are merged by merging.py; activations.py tells what a computation
takes beside the weights.

No global object here holds a model: handles travel through the graph, and ComfyUI's cache frees them.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import comfy.model_management as management
import folder_paths
import torch
from torch import Tensor, nn

from ..ltx.classes import give_classes
from ..ltx.computing import TORCH
from ..ltx.diffusion.acceleration import EXACT, Acceleration
from ..ltx.diffusion.attention import attend_by
from ..ltx.diffusion.compiled import compile_blocks
from ..ltx.diffusion.kernels import fuse
from ..ltx.errors import InputError
from ..ltx.memory.free import free_memory, free_swap
from ..ltx.memory.rehearsal import bytes_of, loaded
from ..ltx.memory.rehearsal import weights as weights_of
from ..ltx.models import V23, size
from ..ltx.nag import Nag
from ..ltx.prompt.contexts import fingerprint
from ..ltx.prompt.gemma import Gemma, check_gemma
from ..ltx.weights.checkpoint import Checkpoint
from ..ltx.weights.lora import Match, merge_place
from ..ltx.weights.quantized import Beside, QuantizedLinear, factor, quicken
from .fetching import CASTABLE
from .merging import Pairs, Patcher, merges

if TYPE_CHECKING:
    from typing import Self

CODE = "__ltx_a2v_compiled"  # the folder of compiled blocks in ComfyUI's user folder, which serves no such name
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

    @property
    def paged(self) -> bool:
        """Whether ComfyUI pages the weights and patches them itself, as newer ones can."""
        return getattr(self.patcher, "is_dynamic", bool)()

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

    @property
    def merged_on_host(self) -> int:
        """Bytes of the weights that merging makes anew in host memory: on a CPU, all that the LoRAs change. A GPU
        merges into the copies that it has anyway."""
        if self.plain.load_device.type != "cpu":
            return 0
        return bytes_of(self.patcher.model.get_parameter(name) for name in self.patcher.patches)

    def with_loras(self, loras: tuple[tuple[Match, float], ...]) -> Self:
        """This model with these LoRAs instead of its own. Raises InputError if a strength, or a value of one that acts,
        is NaN or infinite, or if host memory has no room for what is merged."""
        for fit, strength in loras:
            fit.check(strength, management.throw_exception_if_processing_interrupted)
        loras = tuple(sorted(loras, key=lambda each: merge_place(each[0].lora, each[1])))
        layers = {f"{n}.weight" for n, m in self.module.named_modules() if isinstance(m, QuantizedLinear)}
        for fit, _ in loras:
            if fit not in self.branches and not layers.isdisjoint(fit.changes):
                pairs = Pairs({name: adapter for name, adapter in fit.changes.items() if name in layers})
                self.branches[fit] = Handle(hold(pairs, self.plain.load_device, self.plain.offload_device))
        patches = {f"module.{name}": merge for name, merge in merges(loras).items() if name not in layers}
        patcher = self.plain.clone()
        if patches:
            patcher.add_patches(patches)
        model = replace(self, patcher=patcher, loras=loras)
        model._check_host()
        return model

    def _check_host(self) -> None:
        """Raises InputError if host memory has no room for the weights that merging makes. Those that are merged now
        go before."""
        made = self.merged_on_host
        freed = bytes_of(self.patcher.model.get_parameter(name) for name in self.plain.backup)
        if made and (room := _lacking(made, freed)) is not None:
            names = ", ".join(fit.lora.path.name for fit, strength in self.loras if strength)
            raise InputError(
                f"{names}: merged on the CPU, the changed weights take {size(made)} of host memory, and {size(room)} "
                "are free; choose a checkpoint in fp8, NVFP4 or GGUF, beside whose weights LoRAs are computed, or "
                "leave the LoRA out."
            )


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
    loaded; "" if they are not known. attention, fused, fast_products: as in `Compute`. nag: as in `Steering`."""

    checkpoint: str = ""
    version: str = V23.version
    acceleration: Acceleration = EXACT
    compiled: bool = False
    weights: str = ""
    attention: str = TORCH
    fused: bool = True
    fast_products: bool = False
    nag: Nag | None = None

    @property
    def identity(self) -> list[Any]:
        """What decides about its numbers, as values that JSON can hold: its weights, its LoRAs and the device."""
        loras = [(fingerprint(fit.lora.path), strength) for fit, strength in self.loras]
        computing = [self.compiled, self.attention, self.fused, self.fast_products]
        return [self.weights, loras, *computing, self.module.device.type]

    @property
    def references(self) -> list[tuple[int, int]]:
        """The factors of size and rate of the references that its IC-LoRAs were made for."""
        return [fit.lora.reference for fit, strength in self.loras if strength and fit.lora.reference]

    def compute_so(self) -> None:
        """Makes the module compute as this handle says. All handles on these weights share the module."""
        attend_by(self.module, self.attention)
        fuse(self.module, self.fused)
        quicken(self.module, self.fast_products)
        compile_blocks(self.module, self.compiled, Path(folder_paths.get_user_directory(), CODE))


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


def obtainable(device: torch.device) -> int:
    """Bytes that activations and one model may take on a device if all other models leave it, as they do when ComfyUI
    needs their room. So it is the same in the first and in each later run of a graph. On a CPU no model leaves."""
    if device.type == "cpu":
        return free_memory(device)
    models = [loaded for loaded in management.current_loaded_models if loaded.device == device and loaded.model]
    taken = sum(loaded.model_loaded_memory() for loaded in models)
    return int(management.get_free_memory(device) + taken - management.extra_reserved_memory())


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
    its file or folder. Raises InputError if the host has no room for what is cast or rounded."""
    device = management.get_torch_device()
    rounding = {"fp8": True, "on": device} if dtype == "fp8" else {}
    computed = dtype_for("auto" if rounding else dtype, device)
    if rounding or computed == torch.float32:
        _check_host(lambda: load(computed, **rounding), checkpoint)
    module = load(computed, **rounding)
    patcher = hold(module, device, management.unet_offload_device())
    weights = fingerprint(path, device=device, dtype=f"{computed} {bool(rounding)}") if path is not None else ""
    return Model(patcher, patcher, checkpoint=checkpoint, version=version, weights=weights)


def _check_host(load: Callable[[], nn.Module], checkpoint: str) -> None:
    """Raises InputError if loading makes more new weights than host memory and swap have room for: Linux would end
    ComfyUI in the middle of it, without a word. Other systems have more swap than is free now."""
    if sys.platform != "linux":
        return
    module, mapped = loaded(load)
    made = weights_of(module) - mapped
    if (room := _lacking(made)) is not None:
        raise InputError(
            f"{checkpoint}: in this dtype its weights take {size(made)} of host memory, and {size(room)} are free; set "
            "Load Model's dtype to bfloat16, or choose a file in fp8, NVFP4 or GGUF."
        )


def _lacking(made: int, freed: int = 0) -> int | None:
    """The bytes that host memory and swap have, if they are too few for so many new bytes of weights, else None; always
    None on systems that have more swap than is free now. freed: bytes that are given back before."""
    if sys.platform != "linux":
        return None
    if made > freed + free_memory("cpu") + free_swap():
        gc.collect()  # the model that was there before may be waiting for it
    room = freed + free_memory("cpu") + free_swap()
    return room if made > room else None


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


@cache
def _placed(theirs: type) -> type:
    """A subclass whose `device` is the device where the module computes. In the original class it is the device of the
    first weight."""
    device = property(lambda self: self.compute_device)
    return type(theirs.__name__, (theirs,), {"__module__": theirs.__module__, "device": device})
