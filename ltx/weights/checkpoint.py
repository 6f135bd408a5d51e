"""Loads the parts of LTX-2.3 from the original single file, from separate files of its parts, or from a diffusers
folder. The weights may be bf16, fp8 or GGUF.

Each module is built on the meta device and then receives tensors that map the file, so loading makes no second copy.
The configuration comes from the file's metadata; the published values replace missing entries. Linear layers that are
stored in fp8 or GGUF blocks stay quantized (quantized.py); other quantized tensors are decoded here. Pickle files are
not read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
from torch import Tensor, nn

from ..errors import InputError
from ..foreign import foreign
from ..models import MODELS, PART_FILES, VERSION, WANTED
from . import configs
from .files import WeightFile, open_safetensors
from .quantized import PLAIN, QuantizedLinear, Stored, quantize, replace

WANTED_FOLDER = f"a complete LTX-{VERSION} diffusers folder"
WANTED_UPSCALER = MODELS["upscaler"].name
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Part:
    """One part of the model: its name in error messages, its key prefixes in the single file, its diffusers folder."""

    name: str
    cls: type[nn.Module]
    folder: str
    prefixes: tuple[str, ...]
    rename: Callable[[str], str | None]  # original name without its prefix → diffusers' name, None if it is not used
    file: str  # a published file that holds this part and few others
    argument: str  # the argument of load_checkpoint that takes such a file
    skip: tuple[str, ...] = ()
    strip: bool = True
    on_meta: bool = True


TRANSFORMER = Part(
    "transformer", LTX2VideoTransformer3DModel, "transformer", configs.TRANSFORMER, configs.rename_transformer,
    WANTED, "checkpoint", skip=configs.CONNECTORS,
)  # fmt: skip
CONNECTORS = Part(
    "text connectors", LTX2TextConnectors, "connectors", configs.CONNECTORS, configs.rename_connectors,
    PART_FILES["connectors"], "connectors", strip=False,
)  # fmt: skip
VIDEO_VAE = Part(
    "video VAE", AutoencoderKLLTX2Video, "vae", configs.VIDEO_VAE, configs.rename_video_vae,
    PART_FILES["video_vae"], "video_vae",
)  # fmt: skip
AUDIO_VAE = Part(
    "audio VAE", AutoencoderKLLTX2Audio, "audio_vae", configs.AUDIO_VAE, configs.rename_audio_vae,
    PART_FILES["audio_vae"], "audio_vae",
)  # fmt: skip
VOCODER = Part(  # built on the CPU, because the constructor computes the resampler's filters; no file stores them
    "vocoder", LTX2VocoderWithBWE, "vocoder", configs.VOCODER, configs.rename_vocoder,
    PART_FILES["audio_vae"], "audio_vae", on_meta=False,
)  # fmt: skip
PARTS = (TRANSFORMER, CONNECTORS, VIDEO_VAE, AUDIO_VAE, VOCODER)


def build(
    cls: type, arguments: Callable[[], Mapping[str, Any]], path: Path, part: str, wanted: str, on_meta: bool = True
) -> nn.Module:
    """Builds a module without its weights. Raises InputError if the configuration describes no such module."""
    try:
        with torch.device("meta" if on_meta else "cpu"):
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
    own = module.state_dict()
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
            quantized = QuantizedLinear(value, layer.bias)
            replace(module, owner, quantized)
            tensors[key] = quantized.weight
        else:
            tensors[key] = value.decode()
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval().requires_grad_(False)


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


@dataclass(frozen=True)
class Checkpoint:
    """An opened LTX-2.3 checkpoint. Opening it reads only headers; each part is built when it is asked for.

    path: the file or folder with the transformer. files: by the part's argument, a file that is searched before `path`.
    """

    path: Path
    version: str
    file: WeightFile | None = field(default=None, repr=False)  # None for a diffusers folder
    files: Mapping[str, WeightFile] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> bool:
        return self.file is None

    def _sources(self, part: Part) -> dict[str, tuple[WeightFile, str]]:
        """Maps diffusers' names to the file that holds each tensor and its name there."""
        found: dict[str, tuple[WeightFile, str]] = {}
        for file in (self.files.get(part.argument), self.file):
            for key in file.names if file else ():
                prefix = next((p for p in part.prefixes if key.startswith(p)), None)
                if prefix is None or key.startswith(part.skip):
                    continue
                name = part.rename(key[len(prefix) :] if part.strip else key)
                if name is not None:
                    found.setdefault(name, (file, key))
        return found

    def _arguments(self, part: Part, sources: Mapping[str, tuple[WeightFile, str]]) -> dict[str, Any]:
        """Returns the arguments of diffusers' class. The configuration comes from a file that holds the part, else from
        any file that has one."""
        entry = {CONNECTORS: "transformer", VIDEO_VAE: "vae"}.get(part, part.folder)
        opened = [file for file in (*self.files.values(), self.file) if file]
        files = dict.fromkeys([*(file for file, _ in sources.values()), *opened])
        meta = next((file.config[entry] for file in files if entry in file.config), {})
        if part is TRANSFORMER:
            return configs.transformer_config(meta)
        if part is VIDEO_VAE:
            return configs.video_vae_config(meta, str(self.path))
        if part is AUDIO_VAE:
            return configs.audio_vae_config(meta)
        if part is VOCODER:
            return configs.vocoder_config(meta)
        width = meta.get("caption_channels", 3840)
        file, key = sources["video_text_proj_in.weight"]
        return configs.connectors_config(meta, file.shape(key)[1] // width, width)

    def _missing(self, part: Part) -> InputError:
        where = f"{part.file} or the whole file {WANTED}"
        return InputError(f"{self.path}: has no {part.name}; name a file that has it as {part.argument}: {where}.")

    def check(self) -> None:
        """Loads nothing. Raises InputError for the first part that none of the files has."""
        for part in PARTS:
            if not self._in_folder(part) and not self._complete(self._sources(part), part):
                raise self._missing(part)

    def _in_folder(self, part: Part) -> bool:
        return self.folder and part.argument not in self.files

    @staticmethod
    def _complete(sources: Mapping[str, object], part: Part) -> bool:
        """Whether the files hold the part. The connectors are complete only with both halves, which may come in two
        files."""
        wanted = ("video_text_proj_in.weight", "video_connector.learnable_registers") if part is CONNECTORS else ()
        return bool(sources) and all(name in sources for name in wanted)

    def inspect(self) -> nn.Module:
        """Opens every part as loading does, but neither casts nor moves it, so that only headers are read.

        Returns the transformer. Raises InputError for whatever loading would refuse.
        """
        self.check()
        transformer, *_ = [self._open(part) for part in PARTS]
        return transformer

    def _load(self, part: Part, dtype: torch.dtype | None, device: torch.device | str) -> nn.Module:
        return place(self._open(part), dtype, device)

    def _open(self, part: Part) -> nn.Module:
        """Builds a part from tensors that map their files."""
        if self._in_folder(part):
            module, path, wanted = self._from_folder(part), self.path / part.folder, WANTED_FOLDER
            return fill(module, dict(read_folder(path, part.name)), path, part.name, wanted)
        sources = self._sources(part)
        if not self._complete(sources, part):
            raise self._missing(part)
        path = next(iter(sources.values()))[0].path
        module = build(part.cls, lambda: self._arguments(part, sources), path, part.name, WANTED, part.on_meta)
        state = {name: file.get(key) for name, (file, key) in sources.items()}
        return fill(module, state, path, part.name, WANTED)

    def _from_folder(self, part: Part) -> nn.Module:
        folder = self.path / part.folder
        config = read_config(folder, part.name)
        if part is TRANSFORMER:
            config["perturbed_attn"] = True  # STG needs the processors that can skip attention; weights stay the same
        cls = part.cls
        return build(cls, lambda: cls.extract_init_dict(config)[0], folder, part.name, WANTED_FOLDER, part.on_meta)

    def transformer(
        self,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        fp8: bool = False,
        on: torch.device | str | None = None,
    ) -> LTX2VideoTransformer3DModel:
        """Loads the transformer. With `fp8` the blocks' linear layers are rounded to float8_e4m3fn one after the other,
        on the device `on` (by default `device`); they still compute in `dtype`."""
        if not fp8:
            return self._load(TRANSFORMER, dtype, device)
        module = self._load(TRANSFORMER, None, "cpu")
        quantize(module, on=on or device, to=device)
        return place(module, dtype, device)

    def blueprint(self) -> LTX2VideoTransformer3DModel:
        """Builds the transformer without its weights, so that a LoRA can be matched before anything is loaded."""
        if self._in_folder(TRANSFORMER):
            return self._from_folder(TRANSFORMER)
        sources = self._sources(TRANSFORMER)
        path = self.path
        return build(TRANSFORMER.cls, lambda: self._arguments(TRANSFORMER, sources), path, "transformer", WANTED)

    def transformer_weight(self, name: str) -> Tensor:
        """Reads a parameter of the transformer from the file, by diffusers' name; removing a LoRA restores this value.

        A quantized parameter is decoded to float32.
        """
        return self._weight(TRANSFORMER, self._transformer_sources, name)

    def connectors_weight(self, name: str) -> Tensor:
        """Reads a parameter of the text connectors, as `transformer_weight` does."""
        return self._weight(CONNECTORS, self._connectors_sources, name)

    def _weight(self, part: Part, sources: Mapping[str, tuple[WeightFile, str]], name: str) -> Tensor:
        if self._in_folder(part):
            return folder_tensor(self.path / part.folder, name, part.name)
        file, key = sources[name]
        tensor = file.get(key)
        return tensor.decode() if isinstance(tensor, Stored) else tensor

    @cached_property
    def _transformer_sources(self) -> dict[str, tuple[WeightFile, str]]:
        return self._sources(TRANSFORMER)

    @cached_property
    def _connectors_sources(self) -> dict[str, tuple[WeightFile, str]]:
        return self._sources(CONNECTORS)

    def connectors(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> LTX2TextConnectors:
        return self._load(CONNECTORS, dtype, device)

    def video_vae(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> AutoencoderKLLTX2Video:
        return self._load(VIDEO_VAE, dtype, device)

    def audio_vae(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> AutoencoderKLLTX2Audio:
        return self._load(AUDIO_VAE, dtype, device)

    def vocoder(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> LTX2VocoderWithBWE:
        return self._load(VOCODER, dtype, device)


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """Reads config.json of one part of a diffusers folder. Raises InputError if it is missing or not a JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if found := foreign(path, json_text=True):
            raise InputError(f"{path}: {found[0]}; get {WANTED_FOLDER} ({found[1]}).") from error
        raise InputError(
            f"{folder}: has no readable config.json of the {part} ({error}); use {WANTED_FOLDER}."
        ) from error
    if not isinstance(config, dict):
        raise InputError(f"{folder}: its config.json is not an object; use {WANTED_FOLDER}.")
    return config


def shards(folder: Path, part: str) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: has no .safetensors file of the {part}; download the whole folder.")
    return files


def read_folder(folder: Path, part: str) -> Iterator[tuple[str, Tensor]]:
    """Yields name and tensor of every weight of a diffusers part, over all shards; the tensors map the files."""
    for shard in shards(folder, part):
        file = open_safetensors(shard, "the whole folder")
        for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            yield key, file.get_tensor(key)


def folder_tensor(folder: Path, name: str, part: str) -> Tensor:
    for shard in shards(folder, part):
        file = open_safetensors(shard, "the whole folder")
        if name in file.keys():  # noqa: SIM118
            return file.get_tensor(name)
    raise KeyError(name)


def load_checkpoint(
    path: str | Path,
    *,
    video_vae: str | Path | None = None,
    audio_vae: str | Path | None = None,
    connectors: str | Path | None = None,
) -> Checkpoint:
    """Opens a file with the transformer (safetensors or GGUF, alone or with other parts) or a diffusers folder.

    video_vae, audio_vae, connectors: files that replace this part of `path`. The audio_vae file may also hold the
    vocoder; the connectors file may hold the text projection alone. Raises InputError if the model is not LTX-2.3. A
    missing part is found by `Checkpoint.check`.
    """
    path = Path(path)
    named = {"video_vae": video_vae, "audio_vae": audio_vae, "connectors": connectors}
    files = {}
    for argument, other in named.items():
        if other:
            part = next(part for part in PARTS if part.argument == argument)
            file = files[argument] = WeightFile(Path(other), part.file)
            file.check_format(part.file)
            if not any(name.startswith(part.prefixes) for name in file.names):
                raise InputError(f"{other}: has no {part.name}; use {part.file} or {WANTED}.")
    if path.is_dir():
        if not (path / "transformer" / "config.json").is_file():
            raise InputError(f"{path}: a folder without transformer/config.json; name {WANTED} or a diffusers folder.")
        if not read_config(path / "transformer", "transformer").get("cross_attn_mod"):
            raise InputError(f"{path}: is not version {VERSION}; it may be LTX 2.0: use {WANTED_FOLDER}.")
        return Checkpoint(path, VERSION, None, files)
    file = WeightFile(path, WANTED)
    file.check_format(WANTED)
    file.config  # noqa: B018 - this raises now if the metadata cannot be read
    version = file.metadata.get("model_version", "")
    if version and not re.match(rf"{re.escape(VERSION)}(\D|$)", version):
        raise InputError(f"{path}: is LTX version {version}, and this pack needs version {VERSION}: use {WANTED}.")
    transformer = [name for name in file.names if name.startswith(TRANSFORMER.prefixes)]
    if all(name.startswith(TRANSFORMER.skip) or ".lora" in name for name in transformer):
        raise InputError(f"{path}: holds no LTX transformer; use {WANTED}.")
    if not version and configs.TRANSFORMER[0] + "prompt_adaln_single.linear.weight" not in file.names:
        raise InputError(
            f"{path}: names no model_version and lacks a layer of version {VERSION}; it may be LTX 2.0: use {WANTED}."
        )
    return Checkpoint(path, version or VERSION, file, files)


def load_upscaler(
    path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> LTX2LatentUpsamplerModel:
    """Loads the latent upscaler ×2 from its own file, whose keys have no prefix.

    Raises InputError if the file is another model or has another factor.
    """
    path = Path(path)
    file = WeightFile(path, WANTED_UPSCALER)
    if "initial_conv.weight" not in file.names:
        raise InputError(f"{path}: is not a latent upscaler; use {WANTED_UPSCALER}.")
    arguments = configs.upscaler_config(file.config)
    if arguments["temporal_upsample"] or not arguments["spatial_upsample"] or arguments["rational_spatial_scale"] != 2:
        raise InputError(f"{path}: does not double width and height; use {WANTED_UPSCALER}.")
    module = build(LTX2LatentUpsamplerModel, lambda: arguments, path, "upscaler", WANTED_UPSCALER)
    state = {key: file.get(key) for key in file.names}
    return place(fill(module, state, path, "upscaler", WANTED_UPSCALER), dtype, device)
