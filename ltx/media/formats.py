"""The formats, qualities and write modes of a finished video, as settings for FFmpeg.

Their names are the endpoint's and stand only here. A format is data; video.py encodes by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..errors import InputError

DEFAULT_FORMAT, DEFAULT_QUALITY, DEFAULT_WRITE_MODE = "X264 (.mp4)", "high", "balanced"
QUALITIES = ("low", "medium", "high", "maximum")
WRITE_MODES = ("fast", "balanced", "small")
QP = 118  # FFmpeg's FF_QP2LAMBDA: one step of the quantiser, in units of `global_quality`


@dataclass(frozen=True)
class Format:
    """How one kind of file is encoded. The encoder gets codec_options and the options of the quality and write mode.

    For GIF, whose frames have palettes, qualities and write_modes hold the arguments of FFmpeg's filters by name.
    rates: sample rates of the audio codec in Hz; empty means any rate. audio_bits: bit/s per channel, 0 if the codec
    has no such setting. downmixed: channel layouts that the codec accepts but encodes wrongly.
    """

    suffix: str
    container: str
    video_codec: str
    pixel_format: str
    qualities: Mapping[str, Mapping[str, str]]
    write_modes: Mapping[str, Mapping[str, str]]
    audio_codec: str | None = None
    audio_bits: int = 0
    rates: tuple[int, ...] = ()
    downmixed: tuple[str, ...] = ()
    container_options: Mapping[str, str] = field(default_factory=dict)
    codec_options: Mapping[str, str] = field(default_factory=dict)


# By the endpoint's names. Each quality is constant, so the size depends on the content. "small" makes a smaller file
# than "fast" at the same quality. ProRes encodes each frame alone with a fixed quantiser, so its mode changes nothing.
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        # 4:2:0 with 8 bits plays everywhere. CRF 17 is known as visually lossless; a step of 6 doubles the bits.
        "X264 (.mp4)": Format(
            suffix=".mp4",
            container="mp4",
            video_codec="libx264",
            pixel_format="yuv420p",
            qualities={"low": {"crf": "28"}, "medium": {"crf": "23"}, "high": {"crf": "17"}, "maximum": {"crf": "11"}},
            write_modes={
                "fast": {"preset": "superfast"},
                "balanced": {"preset": "medium"},
                "small": {"preset": "slower"},
            },
            audio_codec="aac",
            audio_bits=128_000,
            rates=(7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000),
            container_options={"movflags": "+faststart"},
            # The same frames give the same file on every processor. x264's vectorised code differs between processors,
            # and for pictures 64 pixels wide even from one run to the next. This setting costs no speed.
            codec_options={"x264-params": "cpu-independent=1"},
        ),
        # CRF without a rate limit, at about the PSNR of the .mp4. 4:2:0 is profile 0; others lack hardware decoders.
        "VP9 (.webm)": Format(
            suffix=".webm",
            container="webm",
            video_codec="libvpx-vp9",
            pixel_format="yuv420p",
            qualities={"low": {"crf": "46"}, "medium": {"crf": "36"}, "high": {"crf": "26"}, "maximum": {"crf": "13"}},
            write_modes={
                "fast": {"deadline": "realtime", "cpu-used": "6", "row-mt": "1"},
                "balanced": {"deadline": "good", "cpu-used": "3", "row-mt": "1"},
                "small": {"deadline": "good", "cpu-used": "1", "row-mt": "1"},
            },
            audio_codec="libopus",
            audio_bits=96_000,
            rates=(48000,),  # lower rates exist, but every player resamples them to 48000
            downmixed=("5.0", "6.1"),  # FFmpeg gives libopus their channels in another order than its header says
            container_options={"cues_to_front": "1"},
        ),
        # Every slice has the same quantiser; 1 is the finest. 24-bit PCM keeps sources of 16 and 24 bits exactly.
        "PRORES4444 (.mov)": Format(
            suffix=".mov",
            container="mov",
            video_codec="prores_ks",
            pixel_format="yuv444p10le",
            qualities={
                "low": {"flags": "+qscale", "global_quality": str(16 * QP)},
                "medium": {"flags": "+qscale", "global_quality": str(8 * QP)},
                "high": {"flags": "+qscale", "global_quality": str(4 * QP)},
                "maximum": {"flags": "+qscale", "global_quality": str(1 * QP)},
            },
            write_modes={mode: {"profile": "4444", "vendor": "apl0"} for mode in WRITE_MODES},
            audio_codec="pcm_s24le",
            container_options={"movflags": "+faststart"},
        ),
        # Quality is the number of colours. Dither: a grid, error diffusion (looks best, slowest), none (shows bands).
        "GIF (.gif)": Format(
            suffix=".gif",
            container="gif",
            video_codec="gif",
            pixel_format="pal8",
            qualities={
                "low": {"palettegen": "max_colors=32"},
                "medium": {"palettegen": "max_colors=64"},
                "high": {"palettegen": "max_colors=128"},
                "maximum": {"palettegen": "max_colors=256"},
            },
            write_modes={
                "fast": {"paletteuse": "dither=bayer:bayer_scale=3"},
                "balanced": {"paletteuse": "dither=sierra2_4a"},
                "small": {"paletteuse": "dither=none"},
            },
            container_options={"loop": "0"},  # repeats for ever
        ),
    }
)
SUFFIXES = MappingProxyType({name: kind.suffix for name, kind in FORMATS.items()})


def suffix(format: str) -> str:
    """The file name suffix of that format. Raises InputError if there is no such format."""
    return choose("format", format, FORMATS).suffix


def choose(what: str, name: str, among: Mapping[str, Any]) -> Any:
    """The entry of that name. Raises InputError, which lists the possible names, if there is none. what: the field."""
    if not isinstance(name, str) or name not in among:
        raise InputError(f"{what} is {name!r}: choose one of {', '.join(among)}.")
    return among[name]
