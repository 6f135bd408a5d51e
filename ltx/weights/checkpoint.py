"""Loads the parts of LTX-2.3 and LTX-2.5 from the original files or from a diffusers folder: bf16, fp8 or GGUF.

LTX-2.3 is one file that people also have in parts; LTX-2.5 is published in parts, its text projection in the text
encoder's file. Each module is built on the meta device and then receives tensors that map the file, so loading makes no
second copy. The configuration comes from the file's metadata; tensors or the published values replace what it does not
say. Linear layers that are stored in fp8 or GGUF blocks stay quantized (quantized.py); other quantized tensors are
decoded here. Pickle files are not read.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
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

from .. import versions
from ..errors import InputError
from ..models import (
    GENERATIONS,
    MODELS,
    V23,
    V25,
    VERSIONS,
    WANTED,
    Generation,
    generation,
    is_distilled,
    named_version,
)
from . import configs, diffusion_vae, measure
from .diffusion_vae import Source
from .files import WeightFile
from .folders import WANTED_FOLDER, folder_tensor, read_config, read_folder
from .lora_file import is_of_lora
from .modules import build, fill, place
from .parts import AUDIO_VAE, CONNECTORS, PARTS, TRANSFORMER, VIDEO_VAE, VOCODER, Part
from .quantized import Stored, quantize

WHOLE = MODELS[V23.checkpoint].name  # the only published file with all parts is of LTX-2.3
WANTED_UPSCALER = " or ".join(MODELS[each.upscaler].name for each in GENERATIONS)
ENCODER, DECODER, STATISTICS = "encoder", "decoder", "statistics"
WITHOUT = {"": (), ENCODER: (DECODER,), DECODER: (ENCODER,), STATISTICS: (ENCODER, DECODER)}
"""What is left out of a VAE of which only so much is wanted. The statistics of its latents always stay."""
REMEMBERED = 4
"""Sets of files that were inspected and are remembered, because it takes seconds to build all parts of a model, and a
program that runs the pipeline makes many jobs of one set."""
_INSPECTED: dict[tuple[object, ...], None] = {}  # the last one that was asked for stands at the end
_INSPECTION = threading.Lock()


@dataclass(frozen=True)
class Checkpoint:
    """An opened LTX checkpoint. Opening it reads only headers; each part is built when it is asked for.

    path: the file or folder with the transformer. files: by the part's argument, a file that is searched before `path`.
    encoder: the text encoder's file, if it holds the text projection. What `inspect` has opened waits here for the
    loading that comes after it, once.
    """

    path: Path
    version: str
    file: WeightFile | None = field(default=None, repr=False)  # None for a diffusers folder
    files: Mapping[str, WeightFile] = field(default_factory=dict, repr=False)
    encoder: WeightFile | None = field(default=None, repr=False)
    _opened: dict[tuple[Part, str, bool], nn.Module] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _found: dict[tuple[Part, str], dict[str, Source]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def folder(self) -> bool:
        return self.file is None

    @property
    def generation(self) -> Generation:
        return generation(self.version) or V23

    @property
    def crf(self) -> int:
        """The compression that images are given before they are encoded: by the version of the video VAE's file, and
        2.3's if that file does not say."""
        if self._in_folder(VIDEO_VAE):
            return self.generation.crf
        file = next(
            file for file in self._files(VIDEO_VAE) if any(n.startswith(VIDEO_VAE.prefixes) for n in file.names)
        )
        return (generation(file.metadata.get("model_version", "")) or V23).crf

    @property
    def gemma_version(self) -> str | None:
        """The text encoder that the transformer was trained with, if its file names one."""
        return None if self.file is None else self.file.json("gemma_source_checkpoint").get("gemma_version")

    @property
    def awaits_projection(self) -> bool:
        """Whether the text connectors are there and lack only the projection, which is in the text encoder's file."""
        if self._in_folder(CONNECTORS) or self.generation is V23:
            return False
        sources = self._sources(CONNECTORS)
        return bool(sources) and "video_text_proj_in.weight" not in sources

    @property
    def decoder_apart(self) -> bool:
        """Whether the video VAE's decoder is a model of its own, the diffusion decoder."""
        return self._diffusion_file() is not None

    @property
    def told(self) -> str:
        """What was found, in words without an end."""
        kind = ", distilled" if is_distilled(self.path.name) else ""
        decoder = "diffusion" if self.decoder_apart else "convolutional"
        waiting = "; the text projection comes with the text encoder" if self.awaits_projection else ""
        return f"LTX-{self.version}{kind}; {decoder} video decoder; images at CRF {self.crf}{waiting}"

    def check_upscaler(self, path: Path) -> None:
        """Raises InputError if the latent upscaler is of the other version, by its metadata or its name: it would
        enlarge latents that mean something else."""
        told = WeightFile(path, WANTED_UPSCALER).metadata.get("model_version") or named_version(path.name)
        theirs = generation(told)
        if theirs and theirs is not self.generation:
            raise InputError(
                f"{path}: is the upscaler of {theirs.name}, and {self.path} is {self.generation.name}; use "
                f"{MODELS[self.generation.upscaler].name}."
            )

    def with_text_encoder(self, path: Path) -> Checkpoint:
        """The same checkpoint, whose text projection may come from the text encoder's file `path`."""
        return replace(self, encoder=_projection(path))

    def unopened(self) -> Checkpoint:
        """The same files with nothing built, for a rehearsal, which makes what it builds useless for a job."""
        return replace(self)

    def _files(self, part: Part) -> list[WeightFile]:
        """The files that may hold a part, in the order in which they are searched."""
        files = [self.files.get(part.argument), self.file, self.encoder if part is CONNECTORS else None]
        return [file for file in files if file is not None]

    def _diffusion_file(self) -> WeightFile | None:
        """The file with the diffusion decoder; None if the first video VAE found has a convolutional one."""
        files = (f for f in self._files(VIDEO_VAE) if any(name.startswith("vae.decoder.") for name in f.names))
        file = next(files, None)
        return file if file is not None and diffusion_vae.MARK in file.names else None

    def _sources(self, part: Part, half: str = "") -> dict[str, Source]:
        """Maps diffusers' names to where each tensor is. half: what is wanted of a VAE, a key of WITHOUT."""
        if (part, half) not in self._found:
            self._found[part, half] = self._find(part, half)
        return self._found[part, half]

    def _find(self, part: Part, half: str) -> dict[str, Source]:
        if half == DECODER and (file := self._diffusion_file()) is not None:
            return diffusion_vae.decoder_sources(file, VIDEO_VAE.prefixes[0])
        found: dict[str, Source] = {}
        for file in self._files(part):
            for key in file.names:
                prefix = next((p for p in part.prefixes if key.startswith(p)), None)
                if prefix is None or key.startswith(part.skip):
                    continue
                name = part.rename(key[len(prefix) :] if part.strip else key)
                if name is not None and name.split(".")[0] not in WITHOUT[half]:
                    found.setdefault(name, Source(file, key))
        return found

    def _meta(self, entry: str, sources: Mapping[str, Source]) -> Mapping[str, Any]:
        """An entry of the `config` metadata: from a file with the part if it has one, else from any file, else {}."""
        own = dict.fromkeys(source.file for source in sources.values())
        said = (file.config[entry] for file in own if entry in file.config)
        opened = (file for file in (*self.files.values(), self.file) if file)
        others = (file.config[entry] for file in opened if file.config.get(entry) is not None)
        return next(chain(said, others), {})

    def _arguments(self, part: Part, sources: Mapping[str, Source]) -> dict[str, Any]:
        """Returns the arguments of diffusers' class."""
        meta = self._meta({CONNECTORS: "transformer", VIDEO_VAE: "vae"}.get(part, part.folder), sources)
        if part is TRANSFORMER:
            file = next(iter(sources.values())).file
            if meta == {}:  # a file without a configuration
                return configs.transformer_config({}, measure.transformer(file.names, file.shape))
            return configs.transformer_config(meta, measure.switches(file.names))
        if part is VIDEO_VAE:
            path = next(iter(sources.values())).file.path
            return configs.video_vae_config(diffusion_vae.encoder_meta(meta), str(path), self._wanted(part))
        if part is AUDIO_VAE:
            return configs.audio_vae_config(meta)
        if part is VOCODER:
            return configs.vocoder_config(meta)
        file = sources["video_connector.learnable_registers"].file
        measured = measure.connectors(file.names, file.shape) if meta == {} else {}
        width = meta.get("caption_channels") or self._encoder_width() or 3840
        projection = sources["video_text_proj_in.weight"]
        layers = projection.file.shape(projection.name)[1] // width
        return configs.connectors_config({**measured, **meta}, layers, width)

    def _encoder_width(self) -> int | None:
        """The width of the text encoder's hidden states, if its file is known."""
        names = () if self.encoder is None else self.encoder.names
        key = next((name for name in names if name.endswith("embed_tokens.weight")), None)
        return None if key is None else self.encoder.shape(key)[1]

    def _missing(self, part: Part) -> InputError:
        if part is CONNECTORS and self.awaits_projection:
            encoder = MODELS[self.generation.encoder].name
            return InputError(f"{self.path}: has no text projection; name the text encoder that has it, {encoder}.")
        wanted = self._wanted(part)
        return InputError(f"{self.path}: has no {part.name}; name a file that has it as {part.argument}: {wanted}.")

    def _wanted(self, part: Part) -> str:
        """The published files of this version that have a part."""
        whole = MODELS[self.generation.checkpoint].name
        file = self.generation.parts.get(part.argument, whole)
        return f"{file} or the whole file {whole}" if self.generation is V23 and file != whole else file

    def check(self, projection: bool = True) -> None:
        """Loads nothing. Raises InputError for the first part that none of the files has.

        projection: False if the text encoder's file is not named yet, so that the text projection may be missing.
        """
        for part in self.lacking(projection):
            raise self._missing(part)

    def lacking(self, projection: bool = True) -> list[Part]:
        """The parts that none of the files has. projection: as for `check`."""
        return [
            part
            for part in PARTS
            if (part is not CONNECTORS or projection or not self.awaits_projection)
            and not self._in_folder(part)
            and not self._complete(self._sources(part), part)
        ]

    def _in_folder(self, part: Part) -> bool:
        return self.folder and part.argument not in self.files

    @staticmethod
    def _complete(sources: Mapping[str, object], part: Part) -> bool:
        """Whether the files hold the part. The connectors are complete only with both halves, which may come in two
        files."""
        wanted = ("video_text_proj_in.weight", "video_connector.learnable_registers") if part is CONNECTORS else ()
        return bool(sources) and all(name in sources for name in wanted)

    def inspect(self, projection: bool = True) -> nn.Module:
        """Opens every part as loading does, but neither casts nor moves it, so that only headers are read.

        projection: as for `check`. Returns the transformer, whose tensors map the file. What was opened here is not
        built again when it is loaded. Of files that were inspected and have not changed since, only the transformer is
        opened. Raises InputError for whatever loading would refuse.
        """
        self.check(projection)
        key = self._identity(projection)
        with _INSPECTION:
            if key is None or key not in _INSPECTED:
                awaited = CONNECTORS if not projection and self.awaits_projection else None
                whole = [(part, "") for part in PARTS if part not in (VIDEO_VAE, awaited)]
                for part, half in (*whole, (VIDEO_VAE, ENCODER), (VIDEO_VAE, DECODER)):
                    self._opened[_place(part, half)] = self._open(part, half)
            transformer = self._opened[_place(TRANSFORMER)] = self._open(TRANSFORMER)
            if key is not None:
                _INSPECTED.pop(key, None)
                _INSPECTED[key] = None
                while len(_INSPECTED) > REMEMBERED:
                    del _INSPECTED[next(iter(_INSPECTED))]
        return transformer

    def _identity(self, projection: bool) -> tuple[object, ...] | None:
        """What tells the files of one inspection: path, size, date and inode of each. None for a folder, whose own date
        does not tell what has changed in it, and if a file is gone."""
        files = [file.path for file in (self.file, *self.files.values(), self.encoder) if file is not None]
        try:
            found = [
                (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino) for path in files if (stat := path.stat())
            ]
        except OSError:
            return None
        return None if self.folder else (projection, *self.files, *found)

    def _load(self, part: Part, dtype: torch.dtype | None, device: torch.device | str, half: str = "") -> nn.Module:
        return place(self._open(part, half), dtype, device)

    def _open(self, part: Part, half: str = "") -> nn.Module:
        """Builds a part from tensors that map their files, or gives the one that was inspected. half: what is wanted
        of a VAE, a key of WITHOUT."""
        if (opened := self._opened.pop(_place(part, half), None)) is not None:
            return opened
        if part is VIDEO_VAE and half == DECODER and self.decoder_apart:
            return self._open_diffusion_decoder()
        if self._in_folder(part):
            module, path, wanted = self._from_folder(part), self.path / part.folder, WANTED_FOLDER
            _keep(module, half)
            state = {k: t for k, t in read_folder(path, part.name) if k.split(".")[0] not in WITHOUT[half]}
            return fill(module, state, path, part.name, wanted)
        sources = self._sources(part, half)
        if not self._complete(sources, part):
            raise self._missing(part)
        path, wanted = next(iter(sources.values())).file.path, self._wanted(part)
        module = build(part.cls, lambda: self._arguments(part, sources), path, part.name, wanted, part.on_meta)
        _keep(module, half)
        if part is CONNECTORS:
            _drop_biases(module, sources, self._meta("transformer", sources).get("connector_ff_bias"))
        state = {name: _shaped(source.get(), name) for name, source in sources.items()}
        return fill(module, state, path, part.name, wanted)

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
        path, wanted = self.path, self._wanted(TRANSFORMER)
        return build(TRANSFORMER.cls, lambda: self._arguments(TRANSFORMER, sources), path, "transformer", wanted)

    def transformer_weight(self, name: str) -> Tensor:
        """Reads a parameter of the transformer from the file, by diffusers' name; removing a LoRA restores this value.

        A quantized parameter is decoded to float32.
        """
        return self._weight(TRANSFORMER, name)

    def connectors_weight(self, name: str) -> Tensor:
        """Reads a parameter of the text connectors, as `transformer_weight` does."""
        return self._weight(CONNECTORS, name)

    def _weight(self, part: Part, name: str) -> Tensor:
        if self._in_folder(part):
            return folder_tensor(self.path / part.folder, name, part.name)
        tensor = self._sources(part)[name].get()
        return tensor.decode() if isinstance(tensor, Stored) else tensor

    def connectors(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> LTX2TextConnectors:
        return self._load(CONNECTORS, dtype, device)

    def video_vae(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> AutoencoderKLLTX2Video:
        """The video VAE with both halves; with its encoder alone if a diffusion decoder goes with it."""
        return (
            self._load(VIDEO_VAE, dtype, device)
            if self._diffusion_file() is None
            else self.video_encoder(dtype, device)
        )

    def video_encoder(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> AutoencoderKLLTX2Video:
        """The half of the video VAE that encodes; it has the statistics of the latents, too."""
        return self._load(VIDEO_VAE, dtype, device, ENCODER)

    def video_decoder(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> nn.Module:
        """The half of the video VAE that decodes: AutoencoderKLLTX2Video or LTX2VideoDiffusionDecoderModel. It has the
        statistics of the latents, too."""
        return self._load(VIDEO_VAE, dtype, device, DECODER)

    def video_statistics(self) -> AutoencoderKLLTX2Video:
        """The video VAE with nothing but the statistics of its latents, on the CPU."""
        return self._load(VIDEO_VAE, None, "cpu", STATISTICS)

    def _open_diffusion_decoder(self) -> nn.Module:
        from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoDiffusionDecoderModel as Decoder

        sources, name = self._sources(VIDEO_VAE, DECODER), "diffusion decoder"
        path, wanted = self._diffusion_file().path, MODELS["diffusion-vae-2.5"].name
        module = build(Decoder, lambda: diffusion_vae.decoder_config(self._meta("vae", sources)), path, name, wanted)
        return fill(module, {name: source.get() for name, source in sources.items()}, path, name, wanted)

    def audio_vae(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> AutoencoderKLLTX2Audio:
        return self._load(AUDIO_VAE, dtype, device)

    def audio_encoder(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> AutoencoderKLLTX2Audio:
        """The half of the audio VAE that encodes; it has the statistics of the latents, too."""
        return self._load(AUDIO_VAE, dtype, device, ENCODER)

    def audio_decoder(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> AutoencoderKLLTX2Audio:
        """The half of the audio VAE that decodes; it has the statistics of the latents, too."""
        return self._load(AUDIO_VAE, dtype, device, DECODER)

    def vocoder(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> LTX2VocoderWithBWE:
        return self._load(VOCODER, dtype, device)


def _place(part: Part, half: str = "") -> tuple[Part, str, bool]:
    """Where an opened part is kept. One that was built outside of inference mode cannot be cast inside of it."""
    return part, half, torch.is_inference_mode_enabled()


def _keep(module: nn.Module, half: str) -> None:
    """Leaves only so much in a VAE."""
    for name in WITHOUT[half]:
        setattr(module, name, None)


def _drop_biases(connectors: nn.Module, sources: Mapping[str, Source], said: bool | None) -> None:
    """Takes the biases out of the connectors' feed-forward layers if the file has none; diffusers always builds them.

    said: `connector_ff_bias` of the configuration.
    """
    for name, layer in connectors.named_modules():
        own = f"{name}.bias" in sources if said is None else said
        if ".ff.net." in name and isinstance(layer, nn.Linear) and not own:
            layer.bias = None


def _shaped(tensor: Tensor | Stored, name: str) -> Tensor | Stored:
    """The keyframe vector as [1, D]; GGUF files have it as [D]."""
    if name == "keyframes_abs_pos_embedding" and isinstance(tensor, Tensor) and tensor.ndim == 1:
        return tensor[None]
    return tensor


def _projection(path: str | Path | None) -> WeightFile | None:
    """The text encoder's file, opened, if it holds the text projection. A folder or a GGUF file holds none."""
    if path is None or not Path(path).is_file() or Path(path).suffix.lower() == ".gguf":
        return None
    file = WeightFile(Path(path), MODELS[V25.encoder].name)
    return file if any(name.startswith(configs.TEXT_PROJECTION) for name in file.names) else None


def load_checkpoint(
    path: str | Path,
    *,
    video_vae: str | Path | None = None,
    audio_vae: str | Path | None = None,
    connectors: str | Path | None = None,
    text_encoder: str | Path | None = None,
) -> Checkpoint:
    """Opens a file with the transformer (safetensors or GGUF, alone or with other parts) or a diffusers folder.

    video_vae, audio_vae, connectors: files that replace this part of `path`. The audio_vae file may also hold the
    vocoder; the connectors file may hold the text projection alone. text_encoder: LTX-2.5's has the projection. Raises
    InputError if the model is not one that is supported, or if files of two versions are mixed. A missing part is found
    by `Checkpoint.check`.
    """
    path = Path(path)
    named = {"video_vae": video_vae, "audio_vae": audio_vae, "connectors": connectors}
    files = {}
    for argument, other in named.items():
        if other:
            part = next(part for part in PARTS if part.argument == argument)
            wanted = " or ".join(each.parts[argument] for each in GENERATIONS)
            file = files[argument] = WeightFile(Path(other), wanted)
            file.check_format(wanted)
            if not any(name.startswith(part.prefixes) for name in file.names):
                raise InputError(f"{other}: has no {part.name}; use {wanted} or the whole file {WHOLE}.")
    file, version = (None, _folder_version(path)) if path.is_dir() else _transformer_file(path)
    opened = Checkpoint(path, version, file, files, _projection(text_encoder))
    if opened.generation is V25 and (problem := versions.problem_with_25()):
        raise InputError(f"{path}: {problem}.")
    for argument, other in files.items():
        named = named_version(other.path.name)
        theirs = other.metadata.get("model_version") or (named if generation(named) else "")
        if theirs and generation(theirs) is not opened.generation:
            raise InputError(
                f"{other.path}: is of LTX version {theirs}, and {path} is of version {version}; use files of one "
                f"version, for instance {opened.generation.parts[argument]}."
            )
    return opened


def _folder_version(path: Path) -> str:
    """The version of LTX in a diffusers folder, by what its transformer has."""
    if not (path / "transformer" / "config.json").is_file():
        raise InputError(f"{path}: a folder without transformer/config.json; name {WANTED} or a diffusers folder.")
    config = read_config(path / "transformer", "transformer")
    if not config.get("cross_attn_mod"):
        raise InputError(f"{path}: is not version {VERSIONS}; it may be LTX 2.0: use {WANTED_FOLDER}.")
    return (V25 if configs.switched(config) else V23).version


def _transformer_file(path: Path) -> tuple[WeightFile, str]:
    """The opened file with the transformer, and its version: the file's own word, else by its tensors."""
    file = WeightFile(path, WANTED)
    file.check_format(WANTED)
    file.config  # noqa: B018 - this raises now if the metadata cannot be read
    version = file.metadata.get("model_version", "")
    if version and generation(version) is None:
        raise InputError(f"{path}: is LTX version {version}, and this pack reads {VERSIONS}: use {WANTED}.")
    transformer = [name for name in file.names if name.startswith(TRANSFORMER.prefixes)]
    if all(name.startswith(TRANSFORMER.skip) or ".lora" in name or is_of_lora(name) for name in transformer):
        raise InputError(f"{path}: holds no LTX transformer; use {WANTED}.")
    if version:
        return file, version
    on, meta = measure.switches(file.names), file.config.get("transformer")
    meta = meta if isinstance(meta, Mapping) else {}  # building the transformer refuses what is no object
    prompted = meta.get("use_prompt_adaln_single", bool(meta) or on["use_prompt_adaln_single"])
    static = not prompted and measure.STATIC in file.names
    if not on["use_prompt_adaln_single"] and not static:
        raise InputError(
            f"{path}: names no model_version and lacks a layer of version {VERSIONS}; it may be LTX 2.0: use {WANTED}."
        )
    new = on["use_keyframes_abs_pos_embedding"] or static or not (on["ff_bias"] and on["audio_ff_bias"])
    return file, (V25 if new else V23).version


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
