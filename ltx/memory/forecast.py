"""How much memory a job takes, known before anything is loaded.

A part's bytes are those of its tensors, whose shapes and types the files' headers tell. What computing takes on top is
rehearsed: the real code runs once with tensors that have sizes and no numbers, while the bytes alive are counted. So
there are no constants to tune, and what the code does differently tomorrow is counted differently tomorrow.

Counted is what a device must hold: weights as they lie in memory (on a CPU they may map their file, whose pages count)
and tensors. Not counted are Python and the libraries, memory that an allocator keeps in reserve, and pages of the file
that were read to convert weights, which the system takes back when it needs them.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from transformers import Gemma3TextConfig, Gemma3TextModel

from ..diffusion.conditioning import AudioCondition, Guide
from ..diffusion.decode import Tiling, decode_tile, held_frames, largest_tile
from ..diffusion.encode import encode_image
from ..diffusion.guidance import NONE, Guidance
from ..diffusion.sound import decode_audio, encode_mel
from ..diffusion.upscale import upscale
from ..errors import InputError
from ..latents import (
    AUDIO_BINS,
    AUDIO_CHANNELS,
    CHANNELS,
    MEL_FRAMES_PER_LATENT,
    SPACE_SCALE,
    Noise,
    audio_length,
    video_shape,
)
from ..prompt.text import LENGTH, TextContext, encode_text
from ..weights.checkpoint import load_upscaler

if TYPE_CHECKING:
    from ..pipeline import Job

AUTO, NEVER, BLOCKS = OFFLOAD = ("auto", "none", "blocks")
GEMMA, TRANSFORMER = "Gemma", "transformer"  # the parts whose blocks can wait in host memory
TILING = Tiling()
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of the types that are converted to the one that computes; what is quantised stays as it is stored."""
SMALL = 2**18
"""Elements up to which a rehearsed tensor has numbers: a mask or the noise levels of a clip's tokens, which code asks
for, and no activations."""
CHANNEL_BLOCK = 16  # on a CPU with AVX-512; 8 with AVX2
FILLS = ("ones_like", "zeros_like", "full_like")
ASKING = (torch.ops.aten.is_nonzero.default, torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
META, CPU = torch.device("meta"), torch.device("cpu")


class Rehearsal(TorchDispatchMode):
    """Runs code without its numbers; `peak` is the most bytes of tensors made inside that were alive at once.

    Tensors of more than SMALL elements, and what is computed from them, are on the meta device whatever device was
    asked for. `on`: the kind of device that is rehearsed; how it computes a convolution differs.
    """

    def __init__(self, on: str = "cpu") -> None:
        super().__init__()
        self.on, self.alive, self.peak = on, 0, 0
        self._known: dict[int, int] = {}  # bytes by storage
        self._small: set[tuple[Any, ...]] = set()  # calls whose results are, seen on the meta device, which is slow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        twins: list[Tensor] = []  # kept until the result is counted: the storage of a freed one may become the result's
        result = self._run(func, args, kwargs, given, twins)
        outside = {tensor.untyped_storage()._cdata for tensor in (*given, *twins)} - self._known.keys()
        within = self._convolution(given, result) if func.__name__.startswith("conv") else 0
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in outside:
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
            return True  # code that asks whether all numbers are well goes on
        if any(tensor.is_meta or tensor.numel() > SMALL for tensor in given):
            result = func(*tree_map(sized, args), **tree_map(sized, kwargs))
            if func.__name__.startswith(FILLS) and result.numel() <= SMALL:  # reads sizes, no numbers
                return func(torch.empty(given[0].shape, dtype=given[0].dtype), *args[1:], **tree_map(_here, kwargs))
            return result
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            return func(*args, **kwargs)
        call = func, *map(_shape, args), *((name, _shape(value)) for name, value in kwargs.items())
        if call not in self._small:
            try:
                result = func(*tree_map(sized, args), **tree_map(sized, kwargs))
            except (NotImplementedError, RuntimeError):
                return func(*args, **kwargs)
            if any(isinstance(leaf, Tensor) and leaf.numel() > SMALL for leaf in tree_leaves(result)):
                return result
            self._small.add(call)
        return func(*tree_map(_here, args), **tree_map(_here, kwargs))

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.alive += self._known[key]
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.alive -= self._known.pop(key, 0)

    def _convolution(self, given: list[Tensor], result: Tensor) -> int:
        """What a convolution holds while it runs, beside its input and result. Kernels want the channels innermost or
        in blocks: oneDNN copies the input so, computes into another such copy, and then drops the first; cuDNN's
        workspace holds both. The weight is copied too.
        """
        read, weight = given[:2]
        if self.on != "cpu":
            return weight.nbytes + read.nbytes + result.nbytes
        inside, outside = (_blocked(tensor) for tensor in (read, result))
        return weight.nbytes + max(inside + outside, outside + result.nbytes) - result.nbytes


def _blocked(tensor: Tensor) -> int:
    """Bytes of a tensor [N, C, …] in oneDNN's layout, which fills its channels up to whole blocks."""
    return tensor.nbytes // tensor.shape[1] * -(-tensor.shape[1] // CHANNEL_BLOCK) * CHANNEL_BLOCK


def _shape(value: Any) -> Any:
    """What of an operator's argument the size of its result can depend on, hashable; 2, 2.0 and True are apart."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_shape, value))
    return type(value), value


def _here(value: Any) -> Any:
    return CPU if isinstance(value, torch.device) else value


class _Functions(TorchFunctionMode):
    """What is not taken apart: fused attention, in the memory of its result; tensors that map a file, as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, _, value = (kwargs.get(name, *args[i : i + 1]) for i, name in enumerate(("query", "key", "value")))
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        if func is torch.asarray:
            with _disable_current_modes():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def rehearsed(on: str = "cpu") -> Iterator[Rehearsal]:
    """Inside, tensors have sizes and no numbers. Modules loaded or moved there take no memory either."""
    with torch.inference_mode(), _Functions(), Rehearsal(on) as rehearsal:
        yield rehearsal


def peak(work: Callable[[], object], on: str = "cpu") -> int:
    """The most bytes of tensors that `work` would hold at once, beside what it is given."""
    with rehearsed(on) as rehearsal:
        work()
    return rehearsal.peak


def blueprint(load: Callable[[], nn.Module]) -> nn.Module:
    """The module that `load` gives, with sizes for numbers: nothing is read but headers, nothing converted."""
    with rehearsed():
        return load()


def twin(module: nn.Module, dtype: torch.dtype | None = None, **changes: object) -> nn.Module:
    """A model like this diffusers one, with sizes for numbers. changes: what is another in its configuration."""
    # A class of that name may be one that a host put over diffusers' own.
    cls = [cls for cls in type(module).__mro__ if cls.__name__ == type(module).__name__][-1]
    return _built(cls, json.dumps({**module.config, **changes}, default=str), dtype or module.dtype)


@lru_cache(maxsize=8)
def _built(cls: type, config: str, dtype: torch.dtype) -> nn.Module:
    with META:
        module = cls(**cls.extract_init_dict(json.loads(config))[0])
    return nn.Module.to(module, dtype).eval()


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of these tensors, what several share counted once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


def weights(module: nn.Module) -> int:
    return bytes_of([*module.parameters(), *module.buffers()])


def free_memory(device: torch.device | str) -> int:
    """Bytes that new tensors may take on a device now; what torch holds there in reserve counts as free.

    Of a CPU: memory that the system can give without swapping. Of a device that does not tell: no limit.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        return _host_memory()
    return 2**63


def _host_memory() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            known = {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines)}
        return known["MemAvailable"]
    except (OSError, KeyError, ValueError):  # not Linux
        try:
            return (
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
            )  # half of all: a guess on the safe side
        except (AttributeError, ValueError, OSError):
            return 2**63


@dataclass(frozen=True)
class Part:
    """A model in memory. size: bytes of its weights; blocks: of those that can be fetched one at a time."""

    name: str
    size: int
    blocks: tuple[int, ...] = ()

    @property
    def visiting(self) -> int:
        """Bytes on the device while its blocks are offloaded: one computes and the next is on its way."""
        return self.size - sum(self.blocks) + sum(sorted(self.blocks)[-2:])


@dataclass(frozen=True)
class Stage:
    """What is in memory at once. work: bytes of activations at their peak; remedy: how it is made to fit, "" as it is;
    offloaded: whether blocks wait in host memory; host: bytes of host memory beside the device."""

    name: str
    parts: tuple[Part, ...]
    work: int
    remedy: str = ""
    offloaded: bool = False
    host: int = 0
    fits: bool = True

    @property
    def weights(self) -> int:
        return sum(part.visiting if self.offloaded else part.size for part in self.parts)

    @property
    def peak(self) -> int:
        return self.weights + self.work

    def __str__(self) -> str:
        parts = " + ".join(f"{part.name} {_size(part.size)}" for part in self.parts)
        state = self.remedy or ("fits" if self.fits else "does not fit")
        if self.remedy and not self.fits:
            state += ", and may not fit even so"
        beside = f" and {_size(self.host)} of host memory" if self.host else ""
        return f"{self.name}: {parts}, computing {_size(self.work)}: {_size(self.peak)}{beside}: {state}"


@dataclass(frozen=True)
class Preflight:
    """The memory that each stage of a job takes on a device with `free` bytes. tiling: what the decoder had better be
    given, None for the clip as one tile."""

    device: str
    free: int
    stages: tuple[Stage, ...]
    tiling: Tiling | None = None

    @property
    def peak(self) -> int:
        return max(stage.peak for stage in self.stages)

    def offloaded(self, part: str) -> bool:
        """Whether the blocks of the part of that name wait in host memory, in every stage: weights stay put."""
        return any(stage.offloaded and any(part == p.name for p in stage.parts) for stage in self.stages)

    def lines(self) -> list[str]:
        """For the terminal and the report: a line a stage, in order."""
        known = f"{_size(self.free)} free" if self.free < 2**62 else "free memory unknown"
        return [f"memory on {self.device}, {known}; the most at once {_size(self.peak)}", *map(str, self.stages)]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def estimate(
    job: Job,
    sample: Callable[..., object],
    *,
    guidance: Guidance = NONE,
    audio_guidance: Guidance = NONE,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    tiling: Tiling | None = TILING,
    offload: str = AUTO,
    fp8: bool = False,
    free: int | None = None,
) -> Preflight:
    """What `pipeline.run` will hold, stage by stage, from headers alone. sample: pipeline's, for it imports this file.

    offload: auto where something does not fit, none, or blocks always. free: bytes, by default what the device tells.
    Errors: what loading the parts would raise.
    """
    if offload not in OFFLOAD:
        raise InputError(f"offload is {offload!r}: choose one of {', '.join(OFFLOAD)}.")
    device = torch.device(device)
    room = free_memory(device) if free is None else free
    clip, checkpoint = job.plan, job.checkpoint
    plan = _Planner(device.type, room, offload)

    connectors = blueprint(lambda: checkpoint.connectors(dtype))
    encoder, language = text_encoder(job.files.text_encoder, dtype)
    work = peak(lambda: _encode_text(language, connectors, job.files.text_encoder), device.type)
    plan.add("encode text", (encoder, Part("connectors", weights(connectors))), work)

    audio_vae = blueprint(lambda: checkpoint.audio_vae(dtype))
    sound = audio_length(clip.frames, clip.fps)
    work = peak(lambda: encode_mel(audio_vae, torch.zeros(1, 2, MEL_FRAMES_PER_LATENT * sound, 64)), device.type)
    plan.add("encode sound", (Part("audio VAE", weights(audio_vae)),), work)

    vae = blueprint(lambda: checkpoint.video_vae(dtype))
    video_vae = Part("video VAE", weights(vae))
    full, first = (clip.height, clip.width), clip.first_size[::-1]
    if job.images:
        size = full if clip.two_passes else first
        plan.add("encode images", (video_vae,), image_encoding(vae, *size, device.type))

    model = blueprint(lambda: checkpoint.transformer(dtype, fp8=fp8) if fp8 else checkpoint.transformer(dtype))
    transformer = part(TRANSFORMER, model, model.transformer_blocks)
    side = ()
    if device.type == "cpu" and (files := {loaded.path: loaded for loaded, _ in job.second_loras}):
        pairs = [
            tensor for loaded in files.values() for pair in loaded.targets.values() for tensor in (pair.up, pair.down)
        ]
        side = (Part("LoRAs", bytes_of(pairs)),)
    targets = {name for loaded, _ in job.second_loras for name in loaded.targets}
    # W, a change to it and their sum, in float32, of one weight at a time.
    merging = 12 * max((p.numel() for name, p in model.named_parameters() if name in targets), default=0)

    model.transformer_blocks = model.transformer_blocks[:3]  # enough to see a step at its peak

    def pass_(name: str, size: tuple[int, int], guided: bool) -> None:
        def one_step(batch: float) -> int:
            def work() -> None:
                rehearse_step(
                    sample,
                    model,
                    torch.zeros(1, CHANNELS, *video_shape(clip.frames, *size)),
                    AudioCondition(
                        torch.zeros(1, AUDIO_CHANNELS, sound, AUDIO_BINS),
                        clip.frames,
                        clip.fps,
                        job.request.audio_strength,
                    ),
                    guidance if guided else NONE,
                    audio_guidance if guided else NONE,
                    images=[(name == "first") for _, name in job.images],
                    room=batch,
                )

            return max(merging, peak(work, device.type))

        apart = one_step(0.0)
        together = one_step(math.inf) if guided and device.type != "cpu" else apart
        plan.add(name, (transformer, *side), together, smaller=apart)

    pass_("first pass" if clip.two_passes else "sample", first, True)
    if clip.two_passes:
        upsampler = blueprint(lambda: load_upscaler(job.files.upscaler, dtype))
        work = upscaling(upsampler, vae, video_shape(clip.frames, *first), device.type)
        plan.add("upscale", (transformer, Part("upscaler", weights(upsampler)), video_vae), work)
        pass_("second pass", full, False)

    if job.request.audio_strength < 1:
        vocoder = blueprint(lambda: checkpoint.vocoder(torch.float32))
        latent = torch.zeros(1, AUDIO_CHANNELS, sound, AUDIO_BINS)
        work = peak(lambda: decode_audio(audio_vae, vocoder, latent, clip.frames, clip.fps), device.type)
        parts = Part("audio VAE", weights(audio_vae)), Part("vocoder", weights(vocoder))
        plan.add("decode sound", parts, work)

    tiling = plan.decode(vae, video_vae, video_shape(clip.frames, *full), tiling)
    return Preflight(str(device), room, plan.settled(), tiling)


class _Planner:
    """Collects stages and makes them fit into `room` bytes of a device, by what each can do without."""

    def __init__(self, device: str, room: int, offload: str) -> None:
        self.device, self.room, self.offload = device, room, offload
        self.stages: list[Stage] = []

    def add(self, name: str, parts: tuple[Part, ...], work: int, smaller: int | None = None) -> None:
        """smaller: the work where it is done in smaller batches."""
        stage = Stage(name, parts, work)
        if smaller is not None and smaller < work and not self._fits(stage):
            stage = replace(stage, work=smaller, remedy="guidance passes one by one")
        can = self.device != "cpu" and self.offload != NEVER and any(part.blocks for part in parts)
        if can and (self.offload == BLOCKS or not self._fits(stage)):
            stage = replace(stage, offloaded=True, remedy="blocks wait in host memory")
            if smaller is not None and smaller < work:
                stage = replace(stage, work=work if self._fits(replace(stage, work=work)) else smaller)
        self.stages.append(replace(stage, fits=self._fits(stage)))

    def settled(self) -> tuple[Stage, ...]:
        """A part that is offloaded in one stage is so in all of them: it is placed once."""
        away = {part.name for stage in self.stages if stage.offloaded for part in stage.parts if part.blocks}
        found = []
        for stage in self.stages:
            if not stage.offloaded and any(part.name in away for part in stage.parts):
                stage = replace(stage, offloaded=True, remedy="blocks wait in host memory")
            found.append(replace(stage, fits=self._fits(stage)))
        return tuple(found)

    def decode(self, vae: nn.Module, part: Part, latent: tuple[int, int, int], tiling: Tiling | None) -> Tiling | None:
        """Adds the stage; tiles get smaller until it fits, as the decoder itself would make them."""
        clip = torch.empty(1, CHANNELS, *latent, device=META)
        asked = tiling
        while True:
            work, host = decoding(vae, latent, tiling, self.device)
            on_host = self.device == "cpu"
            stage = Stage("decode", (part,), work + host if on_host else work, host=0 if on_host else host)
            following = (tiling or Tiling.whole(clip)).smaller(clip)
            if self._fits(stage) or following is None:
                break
            tiling = following
        remedy = "" if tiling == asked else f"in tiles of {tiling}"
        self.stages.append(replace(stage, remedy=remedy, fits=self._fits(stage)))
        return tiling

    def _fits(self, stage: Stage) -> bool:
        return stage.peak <= self.room


def decoding(vae: nn.Module, latent: tuple[int, int, int], tiling: Tiling | None, on: str = "cpu") -> tuple[int, int]:
    """Bytes that the largest tile takes where the VAE computes, and those of the frames that are held on the CPU."""
    tile = torch.empty(1, CHANNELS, *largest_tile(latent, tiling), device=META)
    frame = 3 * torch.float32.itemsize * latent[1] * latent[2] * SPACE_SCALE**2
    return peak(lambda: decode_tile(vae, tile), on), held_frames(latent, tiling) * frame


def image_encoding(vae: nn.Module, height: int, width: int, on: str = "cpu") -> int:
    """Bytes that the encoder takes over one image."""
    return peak(lambda: encode_image(vae, torch.zeros(1, 3, 1, height, width)), on)


def upscaling(upsampler: nn.Module, vae: nn.Module, latent: tuple[int, int, int], on: str = "cpu") -> int:
    """Bytes that doubling a latent of that grid takes."""
    return peak(lambda: upscale(upsampler, vae, torch.zeros(1, CHANNELS, *latent)), on)


def rehearse_step(
    sample: Callable[..., object],
    model: nn.Module,
    latent: Tensor,
    audio: AudioCondition,
    guidance: Guidance = NONE,
    audio_guidance: Guidance = NONE,
    *,
    images: Iterable[bool] = (),
    room: float = 0.0,
) -> None:
    """One step of `sample` as a rehearsal runs it, on a model of at least two blocks, of which STG takes the second.

    images: for each, whether it is the first frame. room: bytes free for the passes as one batch.
    """
    widths = model.config.cross_attention_dim, model.config.audio_cross_attention_dim

    def text() -> TextContext:
        return TextContext(*(torch.zeros(1, LENGTH, width) for width in widths))

    still = torch.zeros(1, CHANNELS, 1, *latent.shape[3:])
    last = 8 * (latent.shape[2] - 1)
    sample(
        model,
        latent=latent,
        sigmas=torch.tensor([1.0, 0.0]),
        positive=text(),
        negative=text(),
        audio=audio,
        noise=Noise(0),
        guides=tuple(Guide(still, 0 if first else last, 0.9) for first in images),
        guidance=replace(guidance, stg_blocks=(1,)),
        audio_guidance=replace(audio_guidance, stg_blocks=(1,)),
        room=room,
    )


def part(name: str, module: nn.Module, blocks: Iterable[nn.Module] = ()) -> Part:
    return Part(name, weights(module), tuple(weights(block) for block in blocks))


def headers(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor of a safetensors file, or of those that a folder's index names."""
    path = Path(path)
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values())) if index.is_file() else ()
        files = [path / name for name in names] or sorted(path.glob("*.safetensors"))
        return {name: entry for file in files for name, entry in headers(file).items()}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items() if name != "__metadata__"}


def text_encoder(path: Path, dtype: torch.dtype | None) -> tuple[Part, nn.Module]:
    """Gemma's bytes, and its language model for a rehearsal, where all layers are one. Errors: unreadable headers."""
    try:
        entries = headers(path)
        size, blocks = _stored(entries, dtype)
        return Part(GEMMA, size, blocks), _language(entries, len(blocks), dtype)
    except (OSError, KeyError, ValueError, struct.error) as error:
        raise InputError(f"{path}: its headers cannot be read ({error}); download the text encoder again.") from error


LAYER = re.compile(r"(?!.*vision).*?layers\.(\d+)\.")


def _stored(
    entries: Mapping[str, tuple[str, tuple[int, ...]]], dtype: torch.dtype | None
) -> tuple[int, tuple[int, ...]]:
    """Bytes in memory: all of them, and those of each layer of the language model."""
    total, layers = 0, {}
    for name, (kind, shape) in entries.items():
        if kind in FLOATS:
            item = FLOATS[kind] if dtype is None else dtype.itemsize
        else:
            item = int(re.search(r"\d+", kind)[0]) // 8 if kind != "BOOL" else 1
        size = item * math.prod(shape)
        total += size
        if found := LAYER.match(name):
            layers[int(found[1])] = layers.get(int(found[1]), 0) + size
    return total, tuple(layers[number] for number in sorted(layers))


def _language(entries: Mapping[str, tuple[str, tuple[int, ...]]], layers: int, dtype: torch.dtype | None) -> nn.Module:
    shapes = {name[found.end() :]: shape for name, (_, shape) in entries.items() if (found := LAYER.match(name))}
    head = shapes["self_attn.q_norm.weight"][0]
    config = Gemma3TextConfig(
        vocab_size=64,
        hidden_size=shapes["input_layernorm.weight"][0],
        intermediate_size=shapes["mlp.gate_proj.weight"][0],
        num_hidden_layers=1,
        num_attention_heads=shapes["self_attn.q_proj.weight"][0] // head,
        num_key_value_heads=shapes["self_attn.k_proj.weight"][0] // head,
        head_dim=head,
        layer_types=["full_attention"],
    )
    config._attn_implementation = "sdpa"
    stored = {"F32": torch.float32, "F16": torch.float16}.get(
        next(kind for name, (kind, _) in entries.items() if name.endswith("input_layernorm.weight")), torch.bfloat16
    )
    with META:
        language = Gemma3TextModel(config).to(dtype or stored).eval()
    language.layers = nn.ModuleList([language.layers[0]] * layers)
    language.config.num_hidden_layers, language.config.layer_types = layers, config.layer_types * layers
    return language


def _encode_text(language: nn.Module, connectors: nn.Module, path: Path) -> None:
    """A prompt that fills the context."""

    def tokenizer(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[3] * (LENGTH - 1))

    tokenizer.bos_token_id = 2
    model = SimpleNamespace(device=CPU, model=SimpleNamespace(language_model=language))
    encode_text(SimpleNamespace(model=model, tokenizer=tokenizer, path=path), connectors, "")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
