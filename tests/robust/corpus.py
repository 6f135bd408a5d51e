"""Files that strangers bring, built by code: media, images, weights and requests, whole and damaged in every way.

`cases()` lists them; a case builds its file on demand, the same bytes each time. `expect` says what is certain from how
the file was made: "read", "refused", or "either" where only the two outcomes are.
"""

# ruff: noqa: E501 - a case a line

from __future__ import annotations

import functools
import io
import json
import math
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

READ, REFUSED, EITHER = "read", "refused", "either"
RATE, SECONDS = 48000, 0.4


@dataclass(frozen=True)
class Case:
    """field: the argument that the file is given as. make: its bytes, or a writer where it is not plain bytes."""

    field: str  # audio, image, lora, upscaler, checkpoint, text_encoder, request
    kind: str
    name: str
    expect: str
    make: Callable[[], bytes] | Callable[[Path], None]
    writes: bool = False

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        if self.writes:
            self.make(path)
        else:
            path.write_bytes(self.make())
        return path


# Sound: (suffix, FFmpeg's container, codec, rate, layout)

MEDIA = (
    *(("wav", "wav", codec, 48000, "stereo") for codec in (
        "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_alaw", "pcm_mulaw",
        "adpcm_ms", "adpcm_ima_wav", "adpcm_yamaha",
    )),
    ("wav", "wav", "pcm_s16le", 192000, "stereo"), ("wav", "wav", "pcm_s16le", 8000, "mono"),
    ("wav", "wav", "pcm_s16le", 48000, "7.1"), ("wav", "wav", "pcm_s16le", 44100, "5.1"),
    ("w64", "w64", "pcm_s16le", 48000, "stereo"), ("aiff", "aiff", "pcm_s16be", 44100, "stereo"),
    ("caf", "caf", "pcm_s16le", 44100, "stereo"), ("caf", "caf", "alac", 44100, "stereo"),
    ("au", "au", "pcm_s16be", 44100, "stereo"), ("voc", "voc", "pcm_u8", 22050, "mono"),
    ("sox", "sox", "pcm_s32le", 44100, "stereo"), ("sf", "ircam", "pcm_s16le", 44100, "stereo"),
    ("rso", "rso", "pcm_u8", 8000, "mono"), ("ast", "ast", "pcm_s16be_planar", 44100, "stereo"),
    ("mmf", "mmf", "adpcm_yamaha", 44100, "mono"), ("adx", "adx", "adpcm_adx", 44100, "stereo"),
    ("flac", "flac", "flac", 48000, "stereo"), ("flac", "flac", "flac", 48000, "7.1"),
    ("flac", "flac", "flac", 192000, "stereo"), ("ogg", "ogg", "flac", 48000, "stereo"),
    ("ogg", "ogg", "vorbis", 44100, "stereo"),
    ("opus", "opus", "libopus", 48000, "stereo"), ("opus", "opus", "libopus", 48000, "7.1"),
    ("amr", "amr", "libopencore_amrnb", 8000, "mono"), ("mp3", "mp3", "libmp3lame", 44100, "stereo"),
    ("mp2", "mp2", "mp2", 44100, "stereo"), ("aac", "adts", "aac", 44100, "stereo"),
    ("aac", "adts", "aac", 48000, "7.1"), ("m4a", "ipod", "aac", 44100, "stereo"),
    ("m4a", "ipod", "alac", 44100, "stereo"), ("mp4", "mp4", "aac", 48000, "5.1"), ("mp4", "mp4", "ac3", 48000, "5.1"),
    ("mp4", "mp4", "libmp3lame", 44100, "stereo"), ("mp4", "mp4", "flac", 48000, "stereo"),
    ("mp4", "mp4", "libopus", 48000, "stereo"), ("mov", "mov", "pcm_s24le", 48000, "stereo"),
    ("mov", "mov", "pcm_s16be", 48000, "7.1"), ("3gp", "3gp", "aac", 22050, "mono"), ("f4v", "f4v", "aac", 44100, "mono"),
    ("ismv", "ismv", "aac", 44100, "stereo"),
    *(("mkv", "matroska", codec, 48000, "stereo") for codec in (
        "aac", "flac", "libopus", "vorbis", "pcm_s16le", "ac3", "eac3", "tta", "wavpack", "libmp3lame", "mp2",
    )),
    ("mkv", "matroska", "flac", 48000, "7.1"), ("webm", "webm", "libopus", 48000, "stereo"),
    ("avi", "avi", "libmp3lame", 44100, "stereo"), ("avi", "avi", "pcm_s16le", 44100, "stereo"),
    ("flv", "flv", "aac", 44100, "stereo"), ("flv", "flv", "libmp3lame", 44100, "stereo"),
    ("flv", "flv", "nellymoser", 44100, "mono"), ("flv", "flv", "adpcm_swf", 44100, "stereo"),
    ("ts", "mpegts", "aac", 44100, "stereo"), ("ts", "mpegts", "mp2", 48000, "stereo"),
    ("ts", "mpegts", "ac3", 48000, "5.1"),
    ("mpg", "mpeg", "mp2", 48000, "stereo"), ("vob", "dvd", "ac3", 48000, "stereo"),
    ("wma", "asf", "wmav1", 44100, "stereo"), ("wma", "asf", "wmav2", 44100, "stereo"), ("rm", "rm", "ac3", 44100, "stereo"),
    ("wtv", "wtv", "mp2", 48000, "stereo"), ("swf", "swf", "libmp3lame", 44100, "stereo"),
    ("nut", "nut", "pcm_s16le", 44100, "stereo"), ("tta", "tta", "tta", 44100, "stereo"),
    ("wv", "wv", "wavpack", 44100, "stereo"), ("ac3", "ac3", "ac3", 48000, "5.1"), ("eac3", "eac3", "eac3", 48000, "5.1"),
    ("rm", "rm", "real_144", 8000, "mono"), ("aptxhd", "aptx_hd", "aptx_hd", 44100, "stereo"), ("g722", "g722", "g722", 16000, "mono"),
    ("spdif", "spdif", "ac3", 48000, "stereo"), ("latm", "latm", "aac", 44100, "stereo"),
    ("sbc", "sbc", "sbc", 44100, "stereo"), ("aptx", "aptx", "aptx", 44100, "stereo"),
    ("dfpwm", "dfpwm", "dfpwm", 44100, "mono"), ("tun", "alp", "adpcm_ima_alp", 22050, "stereo"),
)  # fmt: skip
EXPERIMENTAL = {"vorbis"}
UNPROBED = {"rso", "g722", "spdif", "latm", "sbc", "aptx", "aptx_hd", "dfpwm", "alp"}
"""Containers without a mark of their own: FFmpeg goes by the name, may take them for something else, and either outcome is right."""


@functools.cache
def tone(layout: str, rate: int, seconds: float) -> np.ndarray:
    """Packed float32 [1, n·c]: a tone of its own in each channel."""
    channels = len(av.AudioLayout(layout).channels)
    time = np.arange(max(round(seconds * rate), 1)) / rate
    return (
        np.stack([0.3 * np.sin(2 * np.pi * (220 + 55 * c) * time) for c in range(channels)], 1)
        .astype(np.float32)
        .reshape(1, -1)
    )


def _frame(layout: str, rate: int, seconds: float, pts: int = 0) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(tone(layout, rate, seconds), format="flt", layout=layout)
    frame.rate, frame.pts, frame.time_base = rate, pts, Fraction(1, rate)
    return frame


@functools.cache
def media(container: str, codec: str, rate: int, layout: str, seconds: float = SECONDS) -> bytes:
    """One track of a tone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        options = {"strict": "-2"} if codec in EXPERIMENTAL else {}
        stream = file.add_stream(codec, rate=rate, layout=layout, options=options)
        if codec.startswith("wma"):
            stream.bit_rate = 128_000
        file.mux(stream.encode(_frame(layout, rate, seconds)))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def _damaged(data: bytes, how: str, seed: int) -> bytes:
    """`data` with one kind of damage, the same for the same seed."""
    dice, copy = random.Random(seed), bytearray(data)
    if how == "cut":
        return data[: len(data) * dice.randrange(30, 95) // 100]
    if how == "stub":
        return data[: dice.randrange(1, 64)]
    if how == "head":  # three bits of what says what the rest means
        for _ in range(3):
            copy[dice.randrange(min(len(copy), 200))] ^= 1 << dice.randrange(8)
    elif how == "flips":
        for _ in range(max(8, len(copy) // 500)):
            copy[dice.randrange(len(copy))] ^= 1 << dice.randrange(8)
    elif how == "hole":
        start = dice.randrange(len(copy) // 2)
        copy[start : start + len(copy) // 3] = bytes(len(copy) // 3)
    elif how == "ones":  # lengths and counts become absurd
        start = dice.randrange(min(len(copy), 120))
        copy[start : start + 4] = b"\xff" * 4
    return bytes(copy)


DAMAGE = ("cut", "stub", "head", "flips", "hole", "ones")


def _media_cases() -> Iterator[Case]:
    for number, (suffix, container, codec, rate, layout) in enumerate(MEDIA):
        whole = functools.partial(media, container, codec, rate, layout)
        name = f"{number:03}-{container}-{codec}-{rate}-{layout}"
        expect = EITHER if container in UNPROBED else READ
        yield Case("audio", "whole", f"{name}.{suffix}", expect, whole)
        if codec != "tta":  # whose encoder aborts the process on so little
            yield Case("audio", "one sample", f"{name}-1.{suffix}", EITHER, functools.partial(whole, 1 / rate))
        for how in DAMAGE:
            damaged = functools.partial(lambda whole, how, number: _damaged(whole(), how, number), whole, how, number)
            yield Case("audio", how, f"{name}-{how}.{suffix}", EITHER, damaged)
    for number in range(0, len(MEDIA), 4):
        suffix, container, codec, rate, layout = MEDIA[number]
        whole = functools.partial(media, container, codec, rate, layout)
        expect = EITHER if container in UNPROBED | {"adts", "mp3", "ac3", "eac3", "mpeg", "dvd", "amr"} else READ
        for other in ("mp3", "txt"):
            yield Case("audio", "renamed", f"{number:03}-{container}.{other}", expect, whole)
    for number, (_, container, codec, rate, layout) in enumerate(MEDIA):  # FFmpeg goes by names, too: none, and damage
        whole = functools.partial(media, container, codec, rate, layout)
        damaged = functools.partial(lambda whole, number: _damaged(whole(), "flips", number), whole, number)
        yield Case("audio", "renamed", f"{number:03}-flips", EITHER, damaged)


# Headers that lie


def wav(
    data: bytes = bytes(64000),
    *,
    kind: int = 1,
    channels: int = 1,
    rate: int = 16000,
    bits: int = 16,
    claimed: int | None = None,
    align: int | None = None,
    fmt_size: int = 16,
    riff: bytes = b"RIFF",
) -> bytes:
    align = channels * bits // 8 if align is None else align
    fmt = struct.pack("<HHIIHH", kind, channels % 65536, rate, rate * align % 2**32, align % 65536, bits)
    claimed = len(data) if claimed is None else claimed
    body = b"WAVEfmt " + struct.pack("<I", fmt_size) + fmt + b"data" + struct.pack("<I", claimed % 2**32) + data
    return riff + struct.pack("<I", min(len(body) + claimed, 2**32 - 1)) + body


def _sparse_wav(path: Path, seconds: int, rate: int, channels: int) -> None:
    """That many seconds of silence, as a hole in the file."""
    size = min(seconds * rate * channels * 2, 2**32 - 100)
    with path.open("wb") as file:
        file.write(wav(b"", channels=channels, rate=rate, claimed=size))
        file.truncate(44 + size)


def _flac_claims(samples: int, rate: int) -> bytes:
    """STREAMINFO's rate and number of samples, replaced."""
    data = bytearray(media("flac", "flac", 48000, "stereo"))
    packed = int.from_bytes(data[18:26], "big")
    packed = (packed & ~((0xFFFFF << 44) | (2**36 - 1))) | (rate << 44) | samples
    data[18:26] = packed.to_bytes(8, "big")
    return bytes(data)


def _patched(data: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    at = data.index(mark) + offset
    return data[:at] + value + data[at + len(value) :]


def _ogg_granules(position: int) -> bytes:
    """Every page's end position, with the page's checksum made right again."""
    data = bytearray(media("ogg", "flac", 48000, "stereo"))
    at = data.find(b"OggS")
    while at >= 0:
        after = data.find(b"OggS", at + 4)
        end = after if after >= 0 else len(data)
        data[at + 6 : at + 14] = struct.pack("<q", position)
        data[at + 22 : at + 26] = bytes(4)
        crc = 0
        for byte in data[at:end]:
            crc ^= byte << 24
            for _ in range(8):
                crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
        data[at + 22 : at + 26] = struct.pack("<I", crc)
        at = after
    return bytes(data)


def _timed(container: str, codec: str, stamps: tuple[int, ...]) -> bytes:
    """Packets of 0.1 s at these times in milliseconds, whatever the encoder gave them."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=RATE, layout="stereo")
        stream.time_base = Fraction(1, 1000)
        packets = []
        for number in range(len(stamps)):
            packets += stream.encode(_frame("stereo", RATE, 0.1, number * RATE // 10))
        packets += stream.encode(None)
        for number, packet in enumerate(p for p in packets if p.size):
            packet.time_base = Fraction(1, 1000)
            packet.pts = packet.dts = stamps[min(number * len(stamps) // len(packets), len(stamps) - 1)] + number
            file.mux(packet)
    return buffer.getvalue()


def _tracks(container: str, *streams: tuple[str, str, int, float], picture: str = "", cover: bool = False) -> bytes:
    """Several sounds (codec, layout, rate, seconds), with a moving picture or a cover beside them."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        video = None
        if picture or cover:
            video = file.add_stream(picture or "mjpeg", rate=24)
            video.width, video.height, video.pix_fmt = 64, 64, "yuvj420p" if picture in ("", "mjpeg") else "yuv420p"
            if cover:
                video.disposition = av.stream.Disposition.attached_pic
        sounds = [(file.add_stream(codec, rate=rate, layout=layout), layout, rate, seconds)
                  for codec, layout, rate, seconds in streams]  # fmt: skip
        if video is not None:
            for number in range(1 if cover else 6):
                image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 40 * number, np.uint8), format="rgb24")
                image = image.reformat(format=video.pix_fmt)
                image.pts = number
                file.mux(video.encode(image))
            file.mux(video.encode(None))
        for stream, layout, rate, seconds in sounds:
            if seconds:
                file.mux(stream.encode(_frame(layout, rate, seconds)))
            file.mux(stream.encode(None))
    return buffer.getvalue()


def _id3(data: bytes, size: int) -> bytes:
    return b"ID3\x04\0\0" + bytes((size >> shift) & 127 for shift in (21, 14, 7, 0)) + data


def _silent_flac(seconds: float, rate: int, layout: str) -> bytes:
    """Hours of silence pack into kilobytes."""
    buffer = io.BytesIO()
    channels = len(av.AudioLayout(layout).channels)
    with av.open(buffer, "w", format="flac") as file:
        stream = file.add_stream("flac", rate=rate, layout=layout, options={"compression_level": "0"})
        stream.format = "s16"
        for second in range(int(seconds)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, rate * channels), np.int16), format="s16", layout=layout)
            frame.rate, frame.pts, frame.time_base = rate, second * rate, Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def _header_cases() -> Iterator[Case]:
    def case(name: str, expect: str, make: Callable[..., Any], *arguments: Any, kind: str = "header") -> Case:
        writes = make is _sparse_wav
        if writes:
            return Case("audio", kind, name, expect, lambda path: _sparse_wav(path, *arguments), True)
        return Case("audio", kind, name, expect, lambda: make(*arguments))

    for label, expect, changed in (
        ("ten-hours", READ, {"claimed": 36000 * 32000}), ("claims-all", READ, {"claimed": 2**32 - 1}),
        ("claims-nothing", EITHER, {"claimed": 0}), ("rate-0", REFUSED, {"rate": 0}),
        ("rate-1", EITHER, {"rate": 1}), ("rate-max", REFUSED, {"rate": 2**32 - 1}),
        ("rate-2-31", REFUSED, {"rate": 2**31 - 1}), ("rate-768000", READ, {"rate": 768_000}),
        ("rate-768001", REFUSED, {"rate": 768_001}), ("rate-192000", READ, {"rate": 192_000}),
        ("channels-0", EITHER, {"channels": 0}), ("channels-64", READ, {"channels": 64}),
        ("channels-9", READ, {"channels": 9}), ("channels-255", EITHER, {"channels": 255}),
        ("channels-65535", EITHER, {"channels": 65535}), ("bits-0", EITHER, {"bits": 0}),
        ("bits-1", EITHER, {"bits": 1}), ("bits-33", EITHER, {"bits": 33}), ("bits-65535", EITHER, {"bits": 65535}),
        ("align-0", EITHER, {"align": 0}), ("align-max", EITHER, {"align": 65535}),
        ("kind-0", EITHER, {"kind": 0}), ("kind-ffff", EITHER, {"kind": 0xFFFF}), ("kind-fffe", EITHER, {"kind": 0xFFFE}),
        ("fmt-0", EITHER, {"fmt_size": 0}), ("fmt-max", EITHER, {"fmt_size": 2**32 - 1}), ("rf64", EITHER, {"riff": b"RF64"}),
        ("rifx", EITHER, {"riff": b"RIFX"}), ("no-data", REFUSED, {"data": b""}), ("half-sample", EITHER, {"data": b"\0"}),
        ("one-sample", READ, {"data": b"\1\2"}),
    ):  # fmt: skip
        yield case(f"wav-{label}.wav", expect, lambda changed=changed: wav(**changed))
    for label, expect, values in (
        ("nan", REFUSED, [0.1, math.nan]), ("infinite", REFUSED, [0.1, math.inf]), ("huge", REFUSED, [1e30, 0.0]),
        ("loud", READ, [128.0, -128.0]), ("integers", REFUSED, [30_000.0, -30_000.0]),
        ("denormal", READ, [1e-40, -1e-40]), ("full", READ, [1.0, -1.0]), ("constant", READ, [0.5, 0.5]),
    ):  # fmt: skip
        data = np.tile(np.array(values, "<f4"), 9000).tobytes()
        yield case(f"float-{label}.wav", expect, lambda data=data: wav(data, kind=3, bits=32))
    yield case("sparse-10-hours-8k.wav", READ, _sparse_wav, 36000, 8000, 1, kind="long")
    yield case("sparse-1-hour-48k.wav", READ, _sparse_wav, 3600, 48000, 2, kind="long")
    yield case("sparse-192k-16.wav", REFUSED, _sparse_wav, 700, 192000, 16, kind="long")
    yield case("sparse-768k-64.wav", REFUSED, _sparse_wav, 700, 768000, 64, kind="long")
    yield case("silence-192k-7.1.flac", REFUSED, _silent_flac, 220, 192000, "7.1", kind="long")
    for samples in (0, 1, 36000 * 48000, 2**36 - 1):
        for rate in (0, 1, 48000, 655350, 2**20 - 1):
            yield case(f"flac-{samples}-{rate}.flac", EITHER, _flac_claims, samples, rate)
    for position in (-1, -(2**63), 2**63 - 1, 2**40, 0):
        yield case(f"granule{position}.ogg", EITHER, _ogg_granules, position)
    mp4 = functools.partial(media, "mp4", "aac", 48000, "5.1")
    mov = functools.partial(media, "mov", "pcm_s24le", 48000, "stereo")
    for box, offsets in ((b"mvhd", (16, 20)), (b"mdhd", (16, 20)), (b"stts", (8, 12)), (b"stsz", (8, 12)), (b"stsc", (8,)),
                         (b"stco", (8, 12)), (b"elst", (8, 12)), (b"tkhd", (24,)), (b"mp4a", (20, 28)), (b"esds", (4, 12)),
                         (b"moov", (-4,)), (b"mdat", (-4,)), (b"trak", (-4,))):  # fmt: skip
        for offset in offsets:
            for value in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"):
                name = f"mp4-{box.decode()}-{offset}-{value.hex()}.mp4"
                make = mp4 if box in (b"mp4a", b"esds") else (mov if offset == 12 else mp4)
                yield case(name, EITHER, lambda make=make, box=box, o=offset, v=value: _patched(make(), box, o, v))
    mkv = functools.partial(media, "matroska", "aac", 48000, "stereo")
    for duration in (math.nan, math.inf, -1.0, 1e300, 36_000_000.0):
        yield case(f"mkv-duration-{duration}.mkv", EITHER,
                   lambda d=duration: _patched(mkv(), b"\x44\x89\x88", 3, struct.pack(">d", d)))  # fmt: skip
    for rate in (math.nan, math.inf, 0.0, -48000.0, 1e12, 48000.5):
        yield case(f"mkv-rate-{rate}.mkv", EITHER, lambda r=rate: _patched(mkv(), b"\xb5\x88", 2, struct.pack(">d", r)))
    mp3 = functools.partial(media, "mp3", "libmp3lame", 44100, "stereo")
    for size in (0, 10, 2**20, 2**28 - 1):
        yield case(f"id3-{size}.mp3", EITHER, lambda s=size: _id3(mp3(), s))
    yield case(
        "xing.mp3", EITHER, lambda: _patched(mp3(), b"Xing" if b"Xing" in mp3() else b"Info", 8, b"\x7f\xff\xff\xff")
    )
    au = functools.partial(media, "au", "pcm_s16be", 44100, "stereo")
    for rate, channels in ((0, 1), (2**32 - 1, 1), (8000, 0), (8000, 2**32 - 1), (8000, 8), (8000, 9)):
        yield case(f"au-{rate}-{channels}.au", EITHER,
                   lambda r=rate, c=channels: au()[:16] + struct.pack(">II", r, c) + au()[24:])  # fmt: skip


def _stream_cases() -> Iterator[Case]:
    def case(kind: str, name: str, expect: str, make: Callable[[], bytes]) -> Case:
        return Case("audio", kind, name, expect, make)

    hour = 3_600_000
    for label, stamps in (
        ("negative", (-5000, -4900, -4800)), ("huge", (2**40, 2**40 + 100, 2**40 + 200)), ("gap", (0, 100, hour)),
        ("backwards", (300, 200, 100)), ("same", (0, 0, 0)), ("late", (10 * hour, 10 * hour + 100, 10 * hour + 200)),
        ("jitter", (0, 13, 500, 501, 2000)),
    ):  # fmt: skip
        for container, codec in (("matroska", "flac"), ("nut", "pcm_s16le"), ("mpegts", "mp2"), ("mp4", "aac")):

            def make(c: str = container, k: str = codec, s: tuple[int, ...] = stamps) -> bytes:
                try:
                    return _timed(c, k, s)
                except (
                    av.FFmpegError,
                    ValueError,
                    OverflowError,
                ):  # this container cannot say it: as much as was written
                    return _timed(c, k, (0, 100, 200))

            yield case("timestamps", f"{label}-{container}.{container[:3]}", EITHER, make)
    aac, opus = ("aac", "stereo", 48000, SECONDS), ("libopus", "stereo", 48000, SECONDS)
    flac = ("flac", "5.1", 48000, SECONDS)
    yield case("tracks", "two.mp4", READ, lambda: _tracks("mp4", aac, ("aac", "mono", 44100, SECONDS)))
    yield case("tracks", "three.mkv", READ, lambda: _tracks("matroska", aac, opus, flac))
    yield case("tracks", "first-empty.mkv", EITHER, lambda: _tracks("matroska", ("flac", "stereo", 48000, 0), opus))
    yield case("tracks", "film.mp4", READ, lambda: _tracks("mp4", aac, picture="libx264"))
    yield case("tracks", "film.webm", READ, lambda: _tracks("webm", opus, picture="libvpx-vp9"))
    yield case(
        "tracks", "film.avi", READ, lambda: _tracks("avi", ("libmp3lame", "stereo", 44100, 0.4), picture="mpeg4")
    )
    for channels in (9, 12, 18, 24, 32, 60):  # most have no layout with a name
        packed = np.tile(np.sin(np.arange(16000) / 9).astype("<f4")[:, None] / 4, channels).tobytes()
        yield case(
            "channels",
            f"{channels}-channels.wav",
            READ,
            lambda c=channels, p=packed: wav(p, kind=3, channels=c, rate=48000, bits=32),
        )
    yield case("no audio", "silent.mp4", REFUSED, lambda: _tracks("mp4", picture="libx264"))
    yield case("no audio", "silent.mkv", REFUSED, lambda: _tracks("matroska", picture="mpeg4"))
    yield case("no audio", "silent.gif", REFUSED, lambda: _tracks_gif())
    yield case("no audio", "header-only.mp4", REFUSED, lambda: _tracks("mp4", ("aac", "stereo", 48000, 0)))
    for container, sound in (
        ("mp3", ("libmp3lame", "stereo", 44100, 0.4)),
        ("mp4", aac),
        ("flac", ("flac", "stereo", 48000, 0.4)),
    ):
        yield case("cover", f"cover.{container}", READ, lambda c=container, s=sound: _tracks(c, s, cover=True))
    yield case(
        "changes",
        "rate.mp3",
        EITHER,
        lambda: media("mp3", "libmp3lame", 44100, "stereo") + media("mp3", "libmp3lame", 22050, "mono"),
    )
    yield case(
        "changes",
        "rate.aac",
        EITHER,
        lambda: media("adts", "aac", 44100, "stereo") + media("adts", "aac", 48000, "5.1"),
    )
    yield case(
        "changes",
        "chained.ogg",
        EITHER,
        lambda: media("ogg", "flac", 48000, "stereo") + media("ogg", "flac", 44100, "mono"),
    )
    yield case(
        "changes",
        "chained.opus",
        EITHER,
        lambda: media("opus", "libopus", 48000, "stereo") + media("opus", "libopus", 48000, "mono"),
    )
    dice = random.Random(7)
    for name, data in (
        ("empty.wav", b""), ("empty.mp4", b""), ("byte.mp3", b"\xff"), ("text.txt", b"This is no music.\n" * 99),
        ("page.html", b"<html><body>404 not found</body></html>"), ("object.json", b"{\"a\": [1, 2]}"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", b"ffconcat version 1.0\nfile /etc/hostname\n"), ("list.sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"),
        ("list.pls", b"[playlist]\nFile1=/etc/passwd\n"), ("list.xspf", b"<?xml version='1.0'?><playlist/>"),
        ("words.srt", b"1\n00:00:00,000 --> 99:59:59,999\nHello\n"), ("archive.zip", b"PK\3\4" + bytes(200)),
        ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(100)), ("manifest.mpd", b"<?xml version='1.0'?><MPD><Period/></MPD>"),
    ):  # fmt: skip
        yield case("no media", name, REFUSED, lambda data=data: data)
    for number in range(12):
        noise = dice.randbytes(200_000)
        yield case("noise", f"noise-{number}.bin", EITHER, lambda noise=noise: noise)
    yield case("noise", "zeros.bin", EITHER, lambda: bytes(1_000_000))
    yield case("noise", "ones.bin", EITHER, lambda: b"\xff" * 1_000_000)
    for mark in (b"RIFF\xff\xff\xff\xffWAVE", b"fLaC", b"OggS", b"\x1aE\xdf\xa3", b"\0\0\0\x20ftypisom", b"FORM\xff\xff\xff\xffAIFF",
                 b".snd", b"caff", b"FLV\1\5", b"\x30\x26\xb2\x75", b"#!AMR\n", b"wvpk", b"TTA1", b"MThd", b"\x47", b"MAC ", b"RF64"):  # fmt: skip
        noise = dice.randbytes(4000)
        name = f"mark-{mark[:4].hex()}.bin"
        yield case("noise", name, EITHER, lambda mark=mark, noise=noise: mark + noise)


def _tracks_gif() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("P", (16, 16), n) for n in range(3)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


# Images

IMAGES = (
    ("png", "PNG", "RGB", {}), ("png", "PNG", "RGBA", {}), ("png", "PNG", "L", {}), ("png", "PNG", "LA", {}),
    ("png", "PNG", "P", {}), ("png", "PNG", "1", {}), ("png", "PNG", "I;16", {}), ("jpg", "JPEG", "RGB", {}),
    ("jpg", "JPEG", "L", {}), ("jpg", "JPEG", "CMYK", {}), ("jpg", "JPEG", "RGB", {"progressive": True}),
    ("webp", "WEBP", "RGB", {}), ("webp", "WEBP", "RGBA", {"lossless": True}), ("avif", "AVIF", "RGB", {}),
    ("jp2", "JPEG2000", "RGB", {}), ("jp2", "JPEG2000", "L", {}), ("gif", "GIF", "P", {}), ("bmp", "BMP", "RGB", {}),
    ("bmp", "BMP", "1", {}), ("dib", "DIB", "RGB", {}), ("tif", "TIFF", "RGB", {}), ("tif", "TIFF", "CMYK", {}),
    ("tif", "TIFF", "I;16", {}), ("tif", "TIFF", "F", {}), ("tif", "TIFF", "LAB", {}),
    ("tif", "TIFF", "RGB", {"compression": "tiff_lzw"}), ("tif", "TIFF", "RGB", {"compression": "tiff_deflate"}),
    ("tif", "TIFF", "RGB", {"compression": "jpeg"}), ("tga", "TGA", "RGB", {}), ("tga", "TGA", "RGBA", {}),
    ("ppm", "PPM", "RGB", {}), ("pgm", "PPM", "L", {}), ("ico", "ICO", "RGBA", {}),
)  # fmt: skip
FOREIGN = (("eps", "EPS"), ("pcx", "PCX"), ("im", "IM"), ("sgi", "SGI"), ("pdf", "PDF"), ("msp", "MSP"), ("dds", "DDS"))
"""Formats that Pillow writes and the pack does not read."""


@functools.cache
def image(format: str, mode: str, size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    ramp = Image.linear_gradient("L").resize(size)
    if mode in ("I;16", "F"):
        picture = Image.fromarray(np.asarray(ramp).astype("<u2" if mode == "I;16" else "f4") * 257)
    elif mode == "LAB":
        picture = Image.merge("LAB", [ramp] * 3)
    else:
        picture = Image.merge("RGB", [ramp, ramp.rotate(180), ramp]).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def _png(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes | None = None) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", data or zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def _text_bomb() -> bytes:
    """A PNG whose text unpacks to 100 MB."""
    good = image("PNG", "RGB")
    body = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return good[:33] + chunk + good[33:]


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image("JPEG", "RGB", exif=exif.tobytes())


def _animated(format: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (32, 24), (60 * n, 0, 0)) for n in range(4)]
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _image_cases() -> Iterator[Case]:
    def case(kind: str, name: str, expect: str, make: Callable[[], bytes]) -> Case:
        return Case("image", kind, name, expect, make)

    for number, (suffix, format_, mode, options) in enumerate(IMAGES):
        whole = functools.partial(image, format_, mode, **options)
        name = f"{number:02}-{format_}-{mode.replace(';', '')}"
        yield case("whole", f"{name}.{suffix}", REFUSED if mode == "F" else READ, whole)
        for how in DAMAGE:
            damaged = functools.partial(lambda whole, how, number: _damaged(whole(), how, number), whole, how, number)
            yield case(how, f"{name}-{how}.{suffix}", EITHER, damaged)
        if number % 3 == 0 and mode != "F":
            yield case("renamed", f"{name}.txt", READ, whole)
    for suffix, format_ in FOREIGN:
        mode = "1" if format_ == "MSP" else "RGB"
        yield case("foreign", f"foreign.{suffix}", REFUSED, functools.partial(image, format_, mode))
    for orientation in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535):
        yield case("exif", f"exif-{orientation}.jpg", READ, functools.partial(_exif, orientation))
    for format_ in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        yield case("animated", f"animated.{format_.lower()}", READ, functools.partial(_animated, format_))
    for width, height, depth, colour, expect in (
        (2**31 - 1, 2**31 - 1, 8, 2, REFUSED), (2**32 - 1, 1, 8, 2, REFUSED), (65535, 65535, 8, 2, REFUSED),
        (20000, 20000, 8, 2, REFUSED), (0, 0, 8, 2, REFUSED), (0, 7, 8, 2, REFUSED), (16385, 1, 8, 2, REFUSED),
        (8000, 8000, 16, 6, EITHER), (9000, 8000, 1, 0, EITHER), (64, 64, 3, 2, REFUSED), (64, 64, 8, 9, REFUSED),
        (64, 64, 16, 2, EITHER),
    ):  # fmt: skip
        name = f"claims-{width}x{height}-{depth}-{colour}.png"
        yield case("bomb", name, expect, functools.partial(_png, width, height, depth, colour))
    packed = zlib.compress(bytes(8000 * (1 + 3 * 8000)), 9)
    yield case("bomb", "64-megapixels.png", READ, lambda: _png(8000, 8000, data=packed))
    yield case("bomb", "text.png", EITHER, _text_bomb)
    yield case("size", "1x1.png", READ, lambda: image("PNG", "RGB", (1, 1)))
    yield case("size", "thread.png", EITHER, lambda: image("PNG", "RGB", (16384, 1)))
    yield case("size", "pillar.png", EITHER, lambda: image("PNG", "RGB", (1, 16384)))
    yield case("profile", "broken-icc.jpg", READ, lambda: image("JPEG", "RGB", icc_profile=b"nothing" * 40))
    yield case("profile", "broken-exif.jpg", READ, lambda: image("JPEG", "RGB", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    for name, data in (
        ("empty.png", b""),
        ("text.jpg", b"not an image" * 9),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ):
        yield case("no image", name, REFUSED, lambda data=data: data)
    yield case("no image", "sound.png", REFUSED, lambda: wav())
    yield case("no image", "phone.heic", REFUSED, lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    dice = random.Random(11)
    for number, mark in enumerate((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"RIFF____WEBPVP8 ", b"P6\n", b"8BPS\0\1", b"\0\0\1\0\1\0",
                                   b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x20ftypavif")):  # fmt: skip
        noise = dice.randbytes(3000)
        yield case("noise", f"mark-{number}.bin", EITHER, lambda mark=mark, noise=noise: mark + noise)


# Weights


def tensors_file(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


LORA = "diffusion_model.transformer_blocks.0.attn1.to_q.lora_{}.weight"


def _lora(
    rank: int = 2, width: int = 64, value: float = 0.01, dtype: torch.dtype = torch.float32, **more: torch.Tensor
) -> bytes:
    pair = {LORA.format("A"): torch.full((rank, width), value), LORA.format("B"): torch.full((width, rank), value)}
    return save({name: tensor.to(dtype) for name, tensor in pair.items()} | more, metadata={"format": "pt"})


def _entry(dtype: str = "F32", shape: tuple[Any, ...] = (2, 2), offsets: tuple[Any, ...] = (0, 16)) -> dict[str, Any]:
    return {LORA.format("A"): {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def _weight_cases() -> Iterator[Case]:
    headers: tuple[tuple[str, Callable[[], bytes]], ...] = (
        ("empty", lambda: b""), ("seven-bytes", lambda: b"\1\2\3\4\5\6\7"), ("length-0", lambda: tensors_file(b"")),
        ("length-max", lambda: tensors_file(b"{}", length=2**64 - 1)), ("length-2-63", lambda: tensors_file(b"{}", length=2**63)),
        ("length-100-MB", lambda: tensors_file(b"{}", length=100_000_000)), ("length-200-MB", lambda: tensors_file(b"{}", length=200_000_000)),
        ("length-short", lambda: tensors_file(_entry(), bytes(16), length=9)), ("no-json", lambda: tensors_file(b"{'a': 1}")),
        ("array", lambda: tensors_file(b"[1, 2]")), ("number", lambda: tensors_file(b"7")), ("null", lambda: tensors_file(b"null")),
        ("no-utf8", lambda: tensors_file(b'{"\xff\xfe": 1}')), ("nested", lambda: tensors_file(b'{"a":' * 50_000 + b"1" + b"}" * 50_000)),
        ("no-tensors", lambda: tensors_file({})), ("only-metadata", lambda: tensors_file({"__metadata__": {"format": "pt"}})),
        ("metadata-number", lambda: tensors_file({"__metadata__": {"format": 7}, **_entry()}, bytes(16))),
        ("metadata-list", lambda: tensors_file({"__metadata__": [1], **_entry()}, bytes(16))),
        ("metadata-large", lambda: tensors_file({"__metadata__": {"x": "y" * 5_000_000}, **_entry()}, bytes(16))),
        ("dtype-unknown", lambda: tensors_file(_entry("Q17"), bytes(16))), ("dtype-number", lambda: tensors_file(_entry(7), bytes(16))),  # type: ignore[arg-type]
        ("offsets-beyond", lambda: tensors_file(_entry(offsets=(0, 16)), bytes(8))), ("offsets-backwards", lambda: tensors_file(_entry(offsets=(16, 0)), bytes(16))),
        ("offsets-negative", lambda: tensors_file(_entry(offsets=(-16, 0)), bytes(16))), ("offsets-huge", lambda: tensors_file(_entry(offsets=(0, 2**64 - 1)), bytes(16))),
        ("offsets-text", lambda: tensors_file(_entry(offsets=("0", "16")), bytes(16))), ("offsets-three", lambda: tensors_file(_entry(offsets=(0, 8, 16)), bytes(16))),
        ("shape-lies", lambda: tensors_file(_entry(shape=(4, 4)), bytes(16))), ("shape-overflow", lambda: tensors_file(_entry(shape=(2**40, 2**40)), bytes(16))),
        ("shape-negative", lambda: tensors_file(_entry(shape=(-2, -2)), bytes(16))), ("shape-empty", lambda: tensors_file(_entry(shape=(), offsets=(0, 4)), bytes(4))),
        ("shape-zero", lambda: tensors_file(_entry(shape=(0, 64), offsets=(0, 0)))), ("tail", lambda: tensors_file(_entry(), bytes(64))),
        ("overlap", lambda: tensors_file({**_entry(), "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]}}, bytes(24))),
        ("gap", lambda: tensors_file({**_entry(), "b": {"dtype": "F32", "shape": [1], "data_offsets": [60, 64]}}, bytes(64))),
        ("twice", lambda: tensors_file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))),
        ("cut", lambda: _lora()[:-9]), ("pickle", lambda: b"\x80\x02}q\0."), ("zip", lambda: b"PK\3\4" + bytes(99)), ("html", lambda: b"<html>404</html>" * 9),
        ("lfs", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"), ("zeros", lambda: bytes(5000)), ("message", lambda: b'{"error": "not found"}'),
    )  # fmt: skip
    for field in ("lora", "upscaler", "checkpoint", "text_encoder", "video_vae", "connectors"):
        for name, make in headers:
            yield Case(field, "lying header", f"{field}-{name}.safetensors", REFUSED, make)
    for name, make in headers:
        yield Case("checkpoint", "lying header", f"{name}.gguf", REFUSED, make)
    yield Case(
        "checkpoint",
        "lying header",
        "counts.gguf",
        REFUSED,
        lambda: b"GGUF" + struct.pack("<IQQ", 3, 2**40, 9) + bytes(24),
    )
    yield Case("checkpoint", "lying header", "misaligned.gguf", REFUSED, functools.partial(_gguf, 1))
    yield Case("checkpoint", "lying header", "other-shape.gguf", REFUSED, functools.partial(_gguf, original=(7, 7)))
    for how in DAMAGE:
        for seed in range(4):
            yield Case("lora", how, f"lora-{how}-{seed}.safetensors", EITHER,
                       functools.partial(lambda how, seed: _damaged(_lora(), how, seed), how, seed))  # fmt: skip
            yield Case("checkpoint", how, f"gguf-{how}-{seed}.gguf", EITHER,
                       functools.partial(lambda how, seed: _damaged(_gguf(), how, seed), how, seed))  # fmt: skip
    yield Case("lora", "whole", "lora.safetensors", READ, _lora)
    for dtype in (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.int64,
        torch.bool,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.uint8,
    ):
        yield Case("lora", "dtype", f"lora-{str(dtype)[6:]}.safetensors", EITHER, functools.partial(_lora, dtype=dtype))
    for name, arguments, expect in (
        ("nan", {"value": math.nan}, READ), ("infinite", {"value": math.inf}, READ), ("wide", {"width": 4096}, REFUSED),
        ("rank-1", {"rank": 1}, READ), ("rank-1000", {"rank": 1000}, READ), ("extra", {"extra": torch.zeros(3)}, READ),
        ("alpha-nan", {LORA.replace(".lora_{}.weight", ".alpha"): torch.tensor(math.nan)}, REFUSED),
        ("alpha-0", {LORA.replace(".lora_{}.weight", ".alpha"): torch.tensor(0.0)}, READ),
        ("alpha-shape", {LORA.replace(".lora_{}.weight", ".alpha"): torch.zeros(4)}, REFUSED),
        ("half", {LORA.replace("to_q", "to_k").format("A"): torch.zeros(2, 64)}, READ),
        ("three-axes", {LORA.format("A"): torch.zeros(2, 64, 3)}, REFUSED), ("rank-differs", {LORA.format("A"): torch.zeros(3, 64)}, REFUSED),
    ):  # fmt: skip
        yield Case("lora", "content", f"lora-{name}.safetensors", expect, functools.partial(_lora, **arguments))


def _lora_kinds() -> Iterator[Case]:
    """Kinds of change, under names and in forms that trainers write."""
    layer = LORA.removesuffix(".lora_{}.weight")
    ones = functools.partial(torch.full, fill_value=0.01)
    pair = {f"{layer}.lora_A.weight": ones((2, 64)), f"{layer}.lora_B.weight": ones((64, 2))}
    hada = {f"{layer}.hada_w{n}_{half}": ones(size) for n in (1, 2) for half, size in (("a", (64, 2)), ("b", (2, 64)))}
    lokr = {f"{layer}.lokr_w1": ones((4, 4)), f"{layer}.lokr_w2": ones((16, 16))}
    fp8 = {key: value.to(torch.float8_e4m3fn) for key, value in pair.items()}
    scales = {f"{key}_scale": torch.tensor(0.5) for key in pair}
    kinds: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "dora-rows": ({**pair, f"{layer}.dora_scale": ones((64, 1))}, READ),
        "dora-columns": ({**pair, f"{layer}.dora_scale": ones((1, 64))}, READ),
        "dora-peft": ({**pair, f"{layer}.lora_magnitude_vector": ones((64,))}, READ),
        "dora-wrong": ({**pair, f"{layer}.dora_scale": ones((5, 1))}, REFUSED),
        "dora-alone": ({f"{layer}.dora_scale": ones((64, 1))}, REFUSED),
        "loha": (hada, READ),
        "loha-half": (dict(list(hada.items())[:2]), REFUSED),
        "lokr": (lokr, READ),
        "lokr-wrong": ({**lokr, f"{layer}.lokr_w2": ones((16, 17))}, REFUSED),
        "diff": ({f"{layer}.diff": ones((64, 64)), f"{layer}.diff_b": ones((64,))}, READ),
        "diff-wrong": ({f"{layer}.diff": ones((64, 63))}, REFUSED),
        "set": ({f"{layer}.set_weight": ones((64, 64))}, READ),
        "fp8-scaled": ({**fp8, **scales}, READ),
        "fp8-blocks": ({**fp8, **{key: ones((3, 7)) for key in scales}}, REFUSED),
        "rank-0": ({f"{layer}.lora_A.weight": ones((0, 64)), f"{layer}.lora_B.weight": ones((64, 0))}, REFUSED),
        "oft": ({f"{layer}.oft_blocks": ones((4, 16, 16))}, REFUSED),
        "glora": ({f"{layer}.{name}.weight": ones((4, 4)) for name in ("a1", "a2", "b1", "b2")}, REFUSED),
        "tucker": ({**pair, f"{layer}.lora_mid.weight": ones((2, 2))}, REFUSED),
    }
    for name, (tensors, expect) in kinds.items():
        yield Case("lora", "of a kind", f"lora-{name}.safetensors", expect, lambda tensors=tensors: save(tensors))
    flat = layer.removeprefix("diffusion_model.").replace(".", "_")
    for prefix in (
        "lora_unet_",
        "lora_unet_model_",
        "lycoris_",
        "pipe.dit.",
        "unet.",
        "model.transformer.",
        "module.",
        "x.y.",
    ):
        bare = flat if prefix.endswith("_") else layer.removeprefix("diffusion_model.")
        named = {key.replace(layer, prefix + bare): value for key, value in pair.items()}
        yield Case("lora", "under a name", f"lora-under-{prefix}.safetensors", READ, lambda named=named: save(named))
    for name, metadata, expect in (
        ("ic", {"reference_downscale_factor": "2"}, REFUSED),
        ("alpha", {"lora_adapter_metadata": '{"transformer.lora_alpha": 8}'}, READ),
        ("no-json", {"lora_adapter_metadata": "{"}, REFUSED),
        ("nested", {"lora_adapter_metadata": "[" * 50_000}, REFUSED),
        ("alpha-text", {"lora_adapter_metadata": '{"lora_alpha": "8"}'}, REFUSED),
        ("alpha-huge", {"lora_adapter_metadata": '{"lora_alpha": 1e999}'}, REFUSED),
        ("pattern", {"lora_adapter_metadata": '{"lora_alpha": 1, "alpha_pattern": {"(a+)+$": 2}}'}, REFUSED),
    ):
        make = functools.partial(save, pair, metadata=metadata)
        yield Case("lora", "metadata", f"lora-metadata-{name}.safetensors", expect, make)


@functools.cache
def _gguf(offset: int = 0, original: tuple[int, ...] = ()) -> bytes:
    """A small file of the format, with one tensor in it; original: the shape that City96's converter would note."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    fields = [text(b"general.architecture") + struct.pack("<I", 8) + text(b"ltxv")]
    fields.append(text(b"general.alignment") + struct.pack("<II", 4, 1 if offset else 32))
    if original:
        shape = struct.pack(f"<IQ{len(original)}i", 5, len(original), *original)
        fields.append(text(b"comfy.gguf.orig_shape.patchify_proj.weight") + struct.pack("<I", 9) + shape)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(fields)) + b"".join(fields)
    tensor = text(b"patchify_proj.weight") + struct.pack("<IQQIQ", 2, 32, 4, 0, offset)
    body = head + tensor
    return body + bytes(-len(body) % (1 if offset else 32)) + bytes(516)


# Requests

WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**30, -(10**30), 2**63, 1e308, -1e308, 1e-308, math.nan, math.inf, -math.inf, 0.5, "", "x", "\0", "ä" * 99, [], {}, [1], {"a": 1},
    {"width": 64}, {"width": -1, "height": 0}, {"width": 1e9, "height": 10**9}, {"width": "64"}, {"width": 65536, "height": 1},
)  # fmt: skip


def _request_cases(names: tuple[str, ...]) -> Iterator[Case]:
    for name in names:
        for number, value in enumerate(WRONG):
            text = json.dumps({"prompt": "x", name: value})
            yield Case("request", "out of range", f"{name}-{number}.json", EITHER, lambda text=text: text.encode())
    for name, data in (
        ("empty", b""), ("null", b"null"), ("array", b"[]"), ("text", b"prompt: x"), ("nested", b"[" * 100_000), ("no-utf8", b"\xff\xfe\0"),
        ("utf16", '{"prompt": "x"}'.encode("utf-16")), ("no-prompt", b"{}"), ("unknown", b'{"prompt": "x", "promt": 1}'), ("line-in-name", b'{"prompt": "x", "a\\nb": 1}'), ("long-name", b'{"prompt": "x", "' + b"n" * 10_000 + b'": 1}'), ("digits", b'{"prompt": "x", "seed": ' + b"9" * 10_000 + b"}"),
        ("inline-audio", b'{"prompt": "x", "audio_url": "y"}'), ("surrogate", b'{"prompt": "\\ud800"}'),
    ):  # fmt: skip
        yield Case(
            "request",
            "no request",
            f"{name}.json",
            {"digits": EITHER, "utf16": READ}.get(name, REFUSED),
            lambda data=data: data,
        )


def cases(parameters: tuple[str, ...]) -> list[Case]:
    """All of them; parameters: the names of a request's."""
    return [
        *_media_cases(),
        *_header_cases(),
        *_stream_cases(),
        *_image_cases(),
        *_weight_cases(),
        *_lora_kinds(),
        *_request_cases(parameters),
    ]
