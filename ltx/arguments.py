"""The command line of `python -m ltx`, and what can be checked of it before torch is imported, which takes seconds."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import characters
from .characters import check_name, fault_on_windows, path_length
from .computing import ATTENTION, AUTO, BY_MEMORY, CPU, DTYPES, GPUS, OFFLOAD, TORCH
from .errors import InputError, no_such_file
from .media.formats import SUFFIXES
from .media.unfinished import check_path, unfinished
from .request import Request, parse
from .terminal import to_path

MEDIA = {
    "audio": "audio, or a video with sound; default: that of --video",
    "image": "first frame",
    "end_image": "last frame",
    "keyframe": "an image at a frame; its strength is 1 unless it is named; may be repeated",
    "video": "source video; edit in the request says what is made anew",
    "mask": "image or video, white where the source may change",
    "reference": "video or picture for an IC-LoRA, or the sound of a voice for ID-LoRA",
    "speaker": "experimental: mask of who hears the audio, image or video, white is the speaker; may be repeated",
    "voice": "the speaker's own voice, which that mask hears in place of the audio; one for each --speaker",
}
"""The flags that name what a video is made of, with their help."""
REPEATED = ("keyframe", "speaker", "voice")
WRITTEN = ("output", "trace", "cache_dir")
LONGEST_NAME = 246  # disks take 255 bytes, and what is beside a file while it is made has up to 9 more in its name
KEPT = Path("0" * 64 + ".safetensors")  # as long as the name of a film's window that is kept (diffusion/kept.py)


def lora_argument(text: str) -> tuple[Path, float]:
    """Splits FILE:SCALE; FILE alone has scale 1. The last colon separates them, so C:\\x.safetensors is a file."""
    file, _, scale = text.rpartition(":")
    try:
        found = (to_path(file), float(scale)) if file else (to_path(text), 1.0)
    except ValueError:
        return to_path(text), 1.0
    if not math.isfinite(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} has no number as its scale, as in style.safetensors:0.8")
    return found


def keyframe_argument(text: str) -> tuple[Path, int, float]:
    """Splits FILE@FRAME:STRENGTH; without a strength it is 1. The last @ separates the file."""
    file, _, place = text.rpartition("@")
    frame, _, strength = place.partition(":")
    try:
        if file:
            return to_path(file), int(frame), float(strength or 1)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not FILE@FRAME:STRENGTH, as in face.png@48:0.8")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m ltx",
        description="Makes a video that moves with an audio file, with LTX-2.3 or LTX-2.5, without ComfyUI.",
        epilog="python -m ltx doctor reports what is installed and missing; python -m ltx download gets models.",
    )
    p.add_argument("--checkpoint", type=to_path, required=True, metavar="F", help="LTX file, or a diffusers folder")
    p.add_argument(
        "--text-encoder",
        type=to_path,
        metavar="PATH",
        help="Gemma: folder, or single file; default: the checkpoint's own, if that is a diffusers folder",
    )
    p.add_argument(
        "--expander",
        type=to_path,
        metavar="PATH",
        help="instruct model that expands prompts: ComfyUI's file of Gemma 4 E2B-it or E4B-it, the folder of one of "
        "these or of a larger one, or a Gemma 3; LTX-2.5 needs it",
    )
    p.add_argument("--upscaler", type=to_path, metavar="F", help="latent upscaler x2; needed for two stages")
    p.add_argument("--distill-lora", type=to_path, metavar="F", help="distilled LoRA, at the request's two strengths")
    p.add_argument("--camera-lora", type=to_path, metavar="F", help="camera LoRA, at camera_lora_scale in both stages")
    p.add_argument(
        "--lora", type=lora_argument, action="append", default=[], metavar="F:SCALE", help="another LoRA, both stages"
    )
    p.add_argument("--video-vae", type=to_path, metavar="F", help="video VAE, if the checkpoint has none")
    p.add_argument("--audio-vae", type=to_path, metavar="F", help="audio VAE and vocoder, if the checkpoint has none")
    p.add_argument("--connectors", type=to_path, metavar="F", help="text connectors, if the checkpoint has none")
    _add_media(p)
    p.add_argument(
        "--room-noise",
        type=float,
        metavar="DBFS",
        help="quiet noise under the sound that the model hears, as -50, for voices that leave the picture still",
    )
    p.add_argument(
        "--safety-checker", type=to_path, metavar="DIR", help="folder of an image classifier of transformers"
    )
    p.add_argument("--request", type=to_path, required=True, metavar="FILE.json", help="the endpoint's parameters")
    p.add_argument(
        "--resume", action="store_true", help="go on from the windows that an ended run of the same output kept"
    )
    p.add_argument(
        "--as-far-as-it-is", action="store_true", help="write what an ended run of the same output kept, as it is"
    )
    p.add_argument("--stg-blocks", type=int, nargs="+", default=[], metavar="N", help="blocks that STG perturbs")
    _add_computing(p)
    p.add_argument("--cache-dir", type=to_path, metavar="DIR", help="keep encoded prompts and compiled blocks here")
    p.add_argument("--trace", type=to_path, metavar="FILE.safetensors", help="write the run's tensors")
    p.add_argument(
        "--output",
        type=to_path,
        required=True,
        metavar="FILE",
        help="the finished video, .mp4 unless the request names another format",
    )
    return p


def _add_computing(p: argparse.ArgumentParser) -> None:
    """The flags about the way to compute."""
    p.add_argument(
        "--device",
        choices=(CPU, *GPUS),
        help="default: the GPU if there is one: cuda by NVIDIA or AMD, xpu by Intel, mps by Apple",
    )
    p.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU that has it, else float32")
    p.add_argument("--fp8", action="store_true", help="store transformer and text encoder in float8: half the memory")
    p.add_argument(
        "--fast-products",
        action="store_true",
        help="multiply fp8, int8, NVFP4 and MXFP8 weights in their own format where the card can; not exact",
    )
    p.add_argument("--compile", action="store_true", help="torch.compile the blocks, in place of --fused")
    p.add_argument(
        "--fused",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether a GPU computes norms, rotations and gates in Triton kernels, if Triton is there; default: yes",
    )
    p.add_argument("--attention", choices=ATTENTION, default=TORCH, help="what computes attention; sage is not exact")
    p.add_argument(
        "--offload", choices=OFFLOAD, default=AUTO, help="blocks: all wait in host memory; auto: those that do not fit"
    )
    p.add_argument(
        "--tile-size",
        type=int,
        default=BY_MEMORY,
        metavar="PIXELS",
        help="long side of the tiles that are decoded; default 0: by the free memory",
    )
    p.add_argument(
        "--tile-frames",
        type=int,
        default=BY_MEMORY,
        metavar="N",
        help="frames of the tiles that are decoded; default 0: by the free memory",
    )


def _add_media(p: argparse.ArgumentParser) -> None:
    for name, told in MEDIA.items():
        kind: dict[str, Any] = {"type": to_path, "metavar": "F"}
        if name == "keyframe":
            kind = {"type": keyframe_argument, "metavar": "F@FRAME:STRENGTH"}
        if name in REPEATED:
            kind |= {"action": "append", "default": []}
        p.add_argument(f"--{name.replace('_', '-')}", help=told, **kind)


def _paths(arguments: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Each path of a command line, with the name of its argument."""
    for name, value in vars(arguments).items():
        for given in value if isinstance(value, list) else [value]:
            path = given[0] if isinstance(given, tuple) else given
            if isinstance(path, Path):
                yield name, path


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_inputs(arguments: argparse.Namespace) -> None:
    """Raises InputError if the name of a file cannot be written as text, as the report of the video needs it, or if
    there is no such sound or picture. Missing models are told by those that read them, with what to get."""
    for name, path in _paths(arguments):
        check_name(_flag(name), path)
        if name in MEDIA and not os.path.exists(path):  # pathlib raises OSError for some names
            raise no_such_file(path.name or path)


def read_request(path: Path) -> dict[str, Any]:
    """The request in a JSON file. Raises InputError if it cannot be read."""
    try:
        return json.loads(path.read_bytes())  # in UTF-8, UTF-16 or UTF-32, with or without a byte order mark
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a JSON file with --request.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: is not JSON ({error}); write an object with the endpoint's parameter names."
        ) from error


def check_outputs(arguments: argparse.Namespace, request: Request) -> None:
    """Checks before sampling that the results can be written afterwards. Raises InputError if not."""
    suffix = SUFFIXES[request.video_output_type]
    if arguments.output.suffix.lower() != suffix:
        raise InputError(
            f"--output: {arguments.output} does not end in {suffix}, which {request.video_output_type} needs."
        )
    whole = arguments.output.absolute()
    kept = () if request.windows is None else (whole.with_name(f"{whole.name}.windows") / KEPT,)
    _check_written("--output", whole, *kept)
    if arguments.trace is not None:
        _check_written("--trace", arguments.trace.absolute())
    _check_replaced(arguments)
    if (cache := arguments.cache_dir) is not None and os.path.exists(cache) and not os.path.isdir(cache):
        raise InputError(f"--cache-dir: {cache} is a file; name a folder, which need not exist yet.")


def _check_written(flag: str, path: Path, *beside: Path) -> None:
    """Raises InputError if a file cannot be written there. beside: other files that the run writes near it."""
    if os.path.isdir(path):
        raise InputError(f"{flag}: {path} is a folder; name a file in it.")
    if characters.WINDOWS and (fault := fault_on_windows(path.name)):
        raise InputError(f"{flag}: {path.name!r} {fault}.")
    if (length := path_length(path.name)) > LONGEST_NAME:
        raise InputError(f"{flag}: the file name has {length} bytes; give at most {LONGEST_NAME}.")
    check_path(flag, path, *beside)
    if not os.path.isdir(path.parent):
        raise InputError(f"{flag}: the folder {path.parent} does not exist; create it first.")
    trial = unfinished(path)
    try:  # to ask for the permission is not enough: Windows, macOS and read-only disks have further rules
        trial.touch(exist_ok=False)
    except OSError as error:
        raise InputError(
            f"{flag}: the folder {path.parent} cannot be written to ({error.strerror}); choose another."
        ) from error
    with suppress(OSError):  # a virus scanner may have it open; it is swept later, as other unfinished files
        trial.unlink()


def _check_replaced(arguments: argparse.Namespace) -> None:
    """Raises InputError if the video or the trace would replace a file that the run reads, or one the other."""
    read = [(name, path) for name, path in _paths(arguments) if name not in WRITTEN]
    for written in ("output", "trace"):
        path = getattr(arguments, written)
        for name, other in read if path is not None else ():
            if _same_file(path, other):
                raise InputError(
                    f"{_flag(written)}: {path} is the file of {_flag(name)} and would replace it; name another file."
                )
        read.append((written, path))


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there yet
        return os.path.abspath(one) == os.path.abspath(other)


def checked(arguments: argparse.Namespace) -> Request:
    """The request that the arguments name. Raises InputError if it cannot be read or a value is wrong, if a sound or a
    picture is not there, or if the results could not be written."""
    check_inputs(arguments)
    request = parse(read_request(arguments.request))
    check_outputs(arguments, request)
    return request
