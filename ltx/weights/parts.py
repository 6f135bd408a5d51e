"""The parts of the model: which class each is, and where the original files and a diffusers folder have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
from torch import nn

from . import configs


@dataclass(frozen=True)
class Part:
    """One part of the model: its name in error messages, its key prefixes in the single file, its diffusers folder."""

    name: str
    cls: type[nn.Module]
    folder: str
    prefixes: tuple[str, ...]
    rename: Callable[[str], str | None]  # original name without its prefix → diffusers' name, None if it is not used
    argument: str  # the argument of load_checkpoint that takes a file with this part
    skip: tuple[str, ...] = ()
    strip: bool = True
    on_meta: bool = True


TRANSFORMER = Part(
    "transformer", LTX2VideoTransformer3DModel, "transformer", configs.TRANSFORMER, configs.rename_transformer,
    "checkpoint", skip=configs.CONNECTORS,
)  # fmt: skip
CONNECTORS = Part(
    "text connectors", LTX2TextConnectors, "connectors", configs.CONNECTORS, configs.rename_connectors,
    "connectors", strip=False,
)  # fmt: skip
VIDEO_VAE = Part("video VAE", AutoencoderKLLTX2Video, "vae", configs.VIDEO_VAE, configs.rename_video_vae, "video_vae")
AUDIO_VAE = Part(
    "audio VAE", AutoencoderKLLTX2Audio, "audio_vae", configs.AUDIO_VAE, configs.rename_audio_vae, "audio_vae"
)
VOCODER = Part(  # built on the CPU, because the constructor computes the resampler's filters; no file stores them
    "vocoder", LTX2VocoderWithBWE, "vocoder", configs.VOCODER, configs.rename_vocoder, "audio_vae", on_meta=False
)
PARTS = (TRANSFORMER, CONNECTORS, VIDEO_VAE, AUDIO_VAE, VOCODER)
