"""The formats, qualities and write modes of a finished video, as FFmpeg's settings.

This is the one home of their names, which are the endpoint's. A format is data; video.py encodes by it.
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
QP = 118  # FFmpeg's FF_QP2LAMBDA: one step of a quantiser in `global_quality`


@dataclass(frozen=True)
class Format:
    """How one kind of file is encoded: codec_options, the quality's and the write mode's are together the encoder's.

    Where pictures have palettes they are the arguments of FFmpeg's filters, by their names. rates: what the audio codec
    takes, none: any. audio_bits: bit/s for each channel, 0 where the codec has no choice. downmixed: layouts that the
    codec takes and gets wrong.
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


# By the endpoint's names. Every quality is constant, so that size follows the content. "small" makes a smaller file
# than "fast" at the same quality; in ProRes, whose frames stand alone at a fixed quantiser, the mode changes nothing.
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        # 4:2:0 of 8 bits plays everywhere. 17 is taken for visually lossless; a step of 6 doubles the bits.
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
            # The same frames, the same file, on every processor: x264's vectorised code differs between
            # them, and for pictures 64 pixels wide even from one run to the next. It is as fast without.
            codec_options={"x264-params": "cpu-independent=1"},
        ),
        # CRF without a rate limit, at about the .mp4's PSNR. Profile 0, 4:2:0: other profiles lack hardware decoders.
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
            rates=(48000,),  # it has lower ones, which resample to the same in every player
            downmixed=("5.0", "6.1"),  # FFmpeg hands libopus their channels in an order that its header does not name
            container_options={"cues_to_front": "1"},
        ),
        # One quantiser for every slice; 1 is the finest. 24-bit PCM gives sources of 16 and of 24 bits back exactly.
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
        # Colours of a palette; dither: a grid, spread error (looks best, slowest), none (flat areas band).
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
            container_options={"loop": "0"},  # for ever
        ),
    }
)
SUFFIXES = MappingProxyType({name: kind.suffix for name, kind in FORMATS.items()})


def suffix(format: str) -> str:
    """What the names of that format's files end in."""
    return choose("format", format, FORMATS).suffix


def choose(what: str, name: str, among: Mapping[str, Any]) -> Any:
    """The entry of that name. Errors: InputError with the names there are."""
    if not isinstance(name, str) or name not in among:
        raise InputError(f"{what} is {name!r}: choose one of {', '.join(among)}.")
    return among[name]
