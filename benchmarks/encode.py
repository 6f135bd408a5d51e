"""Compares encoding with Debian's ffmpeg: the same frames from memory, with the same codec, preset, CRF and threads.

ffmpeg gets raw RGB through a pipe and converts it to BT.709 as the pack does. Both files are decoded and compared with
the frames, to show that speed does not cost quality.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import torch
from a2v.benchmarks.measure import Ratio, Table, middle, say, sides, threads
from a2v.ltx.media.formats import FORMATS
from a2v.ltx.media.video import write_video
from torch import Tensor

KIND = "X264 (.mp4)"
CHUNK = 16  # frames that the writer gets at a time, about as many as from a decoded tile
MODES = ("balanced", "fast")


@cache
def picture(frames: int, height: int, width: int) -> Tensor:
    """uint8 [frames, H, W, 3]: soft shapes that move, with grain as from a camera."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 10, width), indexing="ij")
    clip = torch.empty(frames, height, width, 3, dtype=torch.uint8)
    for number in range(frames):
        t = number / 12
        waves = torch.stack(
            [torch.sin(x + t) + torch.cos(y * 1.7 - t), torch.sin(x * y / 4 + t), torch.cos(x - y * 2 + 2 * t)], dim=-1
        )
        grain = torch.randn(height, width, 1, generator=generator)
        clip[number] = (128 + 45 * waves + 3 * grain).clamp(0, 255).to(torch.uint8)
    return clip


def options(mode: str) -> dict[str, str]:
    kind = FORMATS[KIND]
    return {**kind.qualities["high"], **kind.write_modes[mode]}


def ours(size: list[int], mode: str, output: str, threads: int) -> dict[str, Any]:
    """Encodes the frames with write_video, without sound."""
    frames = picture(*size)
    torch.set_num_threads(threads)
    start = time.perf_counter()
    write_video(output, frames.split(CHUNK), Fraction(24), None, write_mode=mode)
    return {"encode": time.perf_counter() - start, "bytes": Path(output).stat().st_size}


def ffmpeg(size: list[int], mode: str, output: str) -> dict[str, Any]:
    """Encodes the frames with ffmpeg, which reads them from standard input. The time is from its start to its end."""
    frames = picture(*size)
    chosen = options(mode)
    height, width = size[1:]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "24", "-i", "pipe:0"]
    colours = ["-vf", "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+full_chroma_inp+accurate_rnd"]
    encoder = ["-c:v", "libx264", "-preset", chosen["preset"], "-crf", chosen["crf"], "-pix_fmt", "yuv420p"]
    tags = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-y", *raw, *colours, *encoder, *tags]
    start = time.perf_counter()
    with subprocess.Popen([*command, "-movflags", "+faststart", output], stdin=subprocess.PIPE) as process:
        for chunk in frames.split(CHUNK):
            process.stdin.write(memoryview(chunk.numpy()))
        process.stdin.close()
        if process.wait():
            raise OSError("ffmpeg failed")
    return {"encode": time.perf_counter() - start, "bytes": Path(output).stat().st_size}


def quality(size: list[int], path: str) -> dict[str, Any]:
    """Mean PSNR in dB of a file's frames against the original frames."""
    frames, errors = picture(*size), []
    with av.open(path) as container:
        for number, frame in enumerate(container.decode(video=0)):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24", src_colorspace="ITU709"))
            errors.append((pixels.float() - frames[number].float()).square().mean())
    if len(errors) != len(frames):
        raise AssertionError(f"{path} has {len(errors)} frames of {len(frames)}")
    return {"psnr": float(10 * torch.log10(255**2 / torch.stack(errors).mean()))}


def encode(folder: Path, small: bool = False, rounds: int = 3) -> Table | None:
    """Returns None if there is no ffmpeg."""
    if not shutil.which("ffmpeg"):
        return None
    size = [9, 64, 96] if small else [121, 576, 1024]
    rows, numbers = [], {}
    with sides("encode", "encode", log=folder / "sides.log") as (us, them):
        for mode in MODES:
            say(f"  {mode}")
            paths = [str(folder / f"{name}-{mode}.mp4") for name in ("ours", "ffmpeg")]
            times, sizes = ([], []), [0, 0]
            for number in range(-1, 1 if small else rounds):
                answers = (
                    us("ours", size=size, mode=mode, output=paths[0], threads=threads()),
                    them("ffmpeg", size=size, mode=mode, output=paths[1]),
                )
                for which, answer in enumerate(answers):
                    sizes[which] = answer["bytes"]
                    if number >= 0:
                        times[which].append(answer["encode"])
            levels = [us("quality", size=size, path=path)["psnr"] for path in paths]
            speed = Ratio(times[1], times[0])
            preset = options(mode)
            rows.append(
                (
                    f"{preset['preset']}, CRF {preset['crf']}",
                    *(f"{middle([size[0] / t for t in spent], 1)}" for spent in times),
                    str(speed),
                    "≥ 0.90",
                    " / ".join(f"{level:.2f} dB" for level in levels),
                    " / ".join(f"{b / 1e6:.2f} MB" for b in sizes),
                )
            )
            numbers |= {f"{mode} speed": speed.median, f"{mode} PSNR difference": levels[0] - levels[1],
                        f"{mode} size": sizes[0] / sizes[1]}  # fmt: skip
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    columns = ("libx264", "this pack, frames/s", "ffmpeg, frames/s", "speed: ours/ffmpeg", "wanted", "PSNR", "file")
    notes = (
        f"There are {size[0]} frames of {size[2]}×{size[1]} in memory, and the time includes the conversion from RGB "
        f"to BT.709. ffmpeg {version} reads the frames from a pipe and chooses the number of its threads, as the "
        "pack's encoder does. PSNR and file size: ours / ffmpeg's.",
    )
    wanted = [(numbers[f"{mode} speed"],) for mode in MODES]
    return Table("Encoding against ffmpeg", columns, tuple(rows), notes, numbers).judged(wanted)
