"""`python -m ltx`: the pipeline without ComfyUI, for scripts and tests.

Exit status: 0 done, 1 failed, 2 bad input (one sentence on standard error), 130 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

INTERRUPTED = "interrupted; nothing was written"


def _end(*_: object) -> None:
    print(INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__":
    # The imports below take seconds. Nothing is open yet, so a signal ends the program at once until `main` starts.
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)

from . import versions  # noqa: E402 - it imports only Python's own library
from .tools import doctor, download  # noqa: E402

COMMANDS = {"doctor": doctor.main, "download": download.main}


def command(name: str, argv: Sequence[str]) -> int:
    """Runs one of COMMANDS and returns its exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    try:
        return COMMANDS[name](list(argv), functools.partial(print, flush=True))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `… | head`: there is no output to write to any more
        os._exit(1)


if __name__ == "__main__" and sys.argv[1:2] and sys.argv[1] in COMMANDS:  # they work even if the imports below fail
    sys.exit(command(sys.argv[1], sys.argv[2:]))

if __name__ == "__main__" and (wrong := versions.problem()):
    print(wrong, file=sys.stderr)
    sys.exit(1)

# This comes before the import of torch and transformers, whose warnings are for programmers and not for users.
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from tqdm import tqdm  # noqa: E402

from .characters import check_name  # noqa: E402
from .diffusion.attention import BACKENDS, TORCH  # noqa: E402
from .diffusion.kept import AS_FAR_AS_IT_IS, KeptWindows  # noqa: E402
from .diffusion.tiling import Tiling  # noqa: E402
from .errors import FlaggedError, InputError  # noqa: E402
from .job import AUTO, BLOCKS, OFFLOAD, TILING, Compute, Files  # noqa: E402
from .left import told  # noqa: E402
from .media.formats import SUFFIXES  # noqa: E402
from .pipeline import Result, run  # noqa: E402
from .prompt.encoder_file import ENCODER  # noqa: E402
from .request import Request, parse  # noqa: E402
from .trace import Recorder  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LONGEST_NAME = 255  # bytes of a file name, on all usual disks


def lora_argument(text: str) -> tuple[Path, float]:
    """Splits FILE:SCALE; FILE alone has scale 1. The last colon separates them, so C:\\x.safetensors is a file."""
    path, _, scale = text.rpartition(":")
    try:
        return (Path(path), float(scale)) if path else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def keyframe_argument(text: str) -> tuple[Path, int, float]:
    """Splits FILE@FRAME:STRENGTH; without a strength it is 1. The last @ separates the file."""
    path, _, place = text.rpartition("@")
    frame, _, strength = place.partition(":")
    try:
        if path:
            return Path(path), int(frame), float(strength or 1)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not FILE@FRAME:STRENGTH, as in face.png@48:0.8")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m ltx",
        description="Makes a video that moves with an audio file, with LTX-2.3 or LTX-2.5, without ComfyUI.",
        epilog="python -m ltx doctor reports what is installed and missing; python -m ltx download gets models.",
    )
    p.add_argument("--checkpoint", type=Path, required=True, metavar="F", help="LTX file, or a diffusers folder")
    p.add_argument(
        "--text-encoder",
        type=Path,
        metavar="PATH",
        help="Gemma: folder, or single file; default: the checkpoint's own, if that is a diffusers folder",
    )
    p.add_argument(
        "--expander",
        type=Path,
        metavar="PATH",
        help="instruct model that expands prompts: folder of Gemma 4 E2B-it or larger, or a Gemma 3; LTX-2.5 needs it",
    )
    p.add_argument("--upscaler", type=Path, metavar="F", help="latent upscaler x2; needed for two stages")
    p.add_argument("--distill-lora", type=Path, metavar="F", help="distilled LoRA, at the request's two strengths")
    p.add_argument("--camera-lora", type=Path, metavar="F", help="camera LoRA, at camera_lora_scale in both stages")
    p.add_argument(
        "--lora", type=lora_argument, action="append", default=[], metavar="F:SCALE", help="another LoRA, both stages"
    )
    p.add_argument("--video-vae", type=Path, metavar="F", help="video VAE, if the checkpoint has none")
    p.add_argument("--audio-vae", type=Path, metavar="F", help="audio VAE and vocoder, if the checkpoint has none")
    p.add_argument("--connectors", type=Path, metavar="F", help="text connectors, if the checkpoint has none")
    _add_media(p)
    p.add_argument("--safety-checker", type=Path, metavar="DIR", help="folder of an image classifier of transformers")
    p.add_argument("--request", type=Path, required=True, metavar="FILE.json", help="the endpoint's parameters")
    p.add_argument(
        "--resume", action="store_true", help="go on from the windows that an ended run of the same output kept"
    )
    p.add_argument(
        "--as-far-as-it-is", action="store_true", help="write what an ended run of the same output kept, as it is"
    )
    p.add_argument("--stg-blocks", type=int, nargs="+", default=[], metavar="N", help="blocks that STG perturbs")
    _add_computing(p)
    p.add_argument("--cache-dir", type=Path, metavar="DIR", help="keep encoded prompts and compiled blocks here")
    p.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    p.add_argument("--trace", type=Path, metavar="FILE.safetensors", help="write the run's tensors")
    p.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the finished video, .mp4 unless the request names another format",
    )
    return p


def _add_computing(p: argparse.ArgumentParser) -> None:
    """The flags about the way to compute."""
    p.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on the CPU")
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
    p.add_argument("--attention", choices=BACKENDS, default=TORCH, help="what computes attention; sage is not exact")
    p.add_argument(
        "--offload", choices=OFFLOAD, default=AUTO, help="blocks: all wait in host memory; auto: those that do not fit"
    )
    p.add_argument(
        "--tile-size",
        type=int,
        default=TILING.pixels,
        metavar="PIXELS",
        help="long side of the tiles that are decoded; default 0: by the free memory",
    )
    p.add_argument(
        "--tile-frames",
        type=int,
        default=TILING.frames,
        metavar="N",
        help="frames of the tiles that are decoded; default 0: by the free memory",
    )


def _add_media(p: argparse.ArgumentParser) -> None:
    """Adds the flags that name what a video is made of."""
    p.add_argument("--audio", type=Path, metavar="F", help="audio, or a video with sound; default: that of --video")
    p.add_argument("--image", type=Path, metavar="F", help="first frame")
    p.add_argument("--end-image", type=Path, metavar="F", help="last frame")
    p.add_argument(
        "--keyframe",
        type=keyframe_argument,
        action="append",
        default=[],
        metavar="F@FRAME:STRENGTH",
        help="an image at a frame; its strength is 1 unless it is named; may be repeated",
    )
    p.add_argument("--video", type=Path, metavar="F", help="source video; edit in the request says what is made anew")
    p.add_argument("--mask", type=Path, metavar="F", help="image or video, white where the source may change")
    p.add_argument("--reference", type=Path, metavar="F", help="reference video, for an IC-LoRA")
    p.add_argument(
        "--speaker",
        type=Path,
        action="append",
        default=[],
        metavar="F",
        help="experimental: mask of who hears the audio, image or video, white is the speaker; may be repeated",
    )
    p.add_argument(
        "--voice",
        type=Path,
        action="append",
        default=[],
        metavar="F",
        help="the speaker's own voice, which that mask hears in place of the audio; one for each --speaker",
    )


def check_names(arguments: argparse.Namespace) -> None:
    """Raises InputError if the name of a file cannot be written as text, as the report of the video needs it."""
    for name, value in vars(arguments).items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, (Path, tuple)):
                check_name(f"--{name.replace('_', '-')}", path[0] if isinstance(path, tuple) else path)


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
    for name, path in (("--output", arguments.output), ("--trace", arguments.trace)):
        if path is not None and len(os.fsencode(path.name)) > LONGEST_NAME:
            raise InputError(f"{name}: the name has {len(path.name)} characters; give at most 100.")
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(f"{name}: the folder {path.absolute().parent} does not exist; create it first.")
        if path is not None and path.is_dir():
            raise InputError(f"{name}: {path} is a folder; name a file in it.")
        if path is not None and not os.access(path.absolute().parent, os.W_OK):
            raise InputError(f"{name}: the folder {path.absolute().parent} cannot be written to; choose another.")
    if (cache := arguments.cache_dir) is not None and cache.exists() and not cache.is_dir():
        raise InputError(f"--cache-dir: {cache} is a file; name a folder, which need not exist yet.")


class Bars:
    """One terminal bar for each phase, on standard error. The windows of a stage share a line: what follows a comma in
    the phase's name does not begin another one."""

    def __init__(self) -> None:
        self.phase, self.bar = "", None

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self.phase:
            if self.bar is not None:
                self.bar.leave = phase.partition(",")[0] != self.phase.partition(",")[0]
            self.close()
            # With a delay the bar is not shown while it is made: an interrupt could not end its line then.
            line = {"desc": phase, "unit": "", "file": sys.stderr, "dynamic_ncols": True, "delay": 1e-9}
            self.phase, self.bar = phase, tqdm(total=total, **line)
            self.bar.refresh()
        self.bar.update(done - self.bar.n)

    def left(self, seconds: float) -> None:
        """Shows how long the windows of all stages still take."""
        if self.bar is not None:
            self.bar.set_postfix_str(told(seconds))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None


def text_encoder_of(arguments: argparse.Namespace) -> Path:
    """The named text encoder, or the one of the checkpoint's folder. Raises InputError if there is none."""
    if arguments.text_encoder is not None:
        return arguments.text_encoder
    if (arguments.checkpoint / ENCODER).is_file():
        return arguments.checkpoint
    raise InputError("--text-encoder: missing; name the folder or file of Gemma.")


def files_of(arguments: argparse.Namespace) -> Files:
    return Files(
        checkpoint=arguments.checkpoint,
        text_encoder=text_encoder_of(arguments),
        audio=arguments.audio,
        output=arguments.output,
        upscaler=arguments.upscaler,
        distill_lora=arguments.distill_lora,
        camera_lora=arguments.camera_lora,
        loras=tuple(arguments.lora),
        image=arguments.image,
        end_image=arguments.end_image,
        safety_checker=arguments.safety_checker,
        video_vae=arguments.video_vae,
        audio_vae=arguments.audio_vae,
        connectors=arguments.connectors,
        contexts=arguments.cache_dir,
        expander=arguments.expander,
        sections=arguments.request.parent,
        video=arguments.video,
        mask=arguments.mask,
        reference=arguments.reference,
        keyframes=tuple(arguments.keyframe),
        speakers=tuple(arguments.speaker),
        voices=tuple(arguments.voice),
    )


def compute_of(arguments: argparse.Namespace) -> Compute:
    """The device and the way to compute. Raises InputError if there is no GPU for --device cuda or --offload blocks, or
    a tile cannot have that size."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: cuda is not available here; use --device cpu.")
    if device == "cpu" and arguments.offload == BLOCKS:
        raise InputError("--offload: blocks can wait in host memory only for a GPU; leave it out on the CPU.")
    dtype = DTYPES[arguments.dtype or ("float32" if device == "cpu" else "bfloat16")]
    return Compute(
        dtype,
        device,
        arguments.fp8,
        arguments.compile,
        arguments.offload,
        Tiling.of(arguments.tile_frames, arguments.tile_size),
        attention=arguments.attention,
        fused=arguments.fused,
        fast_products=arguments.fast_products,
    )


def main(argv: Sequence[str] | None = None, job: Callable[..., Result] = run) -> int:
    """Runs a job and returns the exit status. job: the function that runs it, `pipeline.run`."""
    arguments = parser().parse_args(argv)
    transformers.utils.logging.disable_progress_bar()  # this command shows its own bars
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # The handler raises KeyboardInterrupt, so that a terminated run cleans up as an interrupted one does.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    bars, recorder, written = Bars(), Recorder() if arguments.trace else None, False

    def ended(message: object, status: int) -> int:
        bars.close()
        print(message, file=sys.stderr)
        return status

    def interrupted() -> str:
        if written:
            return "interrupted; the video is complete, its trace is not"
        kept = KeptWindows.beside(arguments.output)
        return f"interrupted; {kept.told()}" if kept.count() else INTERRUPTED

    try:
        check_names(arguments)
        request = parse(read_request(arguments.request))
        check_outputs(arguments, request)
        result = job(
            files_of(arguments),
            request,
            compute_of(arguments),
            stg_blocks=tuple(arguments.stg_blocks),
            # One write for text and line end, so that an interrupt does not split them.
            announce=lambda forecast: print(f"{forecast}\n", end="", file=sys.stderr),
            trace=recorder,
            progress=bars,
            resume=AS_FAR_AS_IT_IS if arguments.as_far_as_it_is else arguments.resume,
            left=bars.left,
        )
        bars.close()
        written = True
        if recorder is not None:
            recorder.save(arguments.trace)
    except InputError as error:
        return ended(error, 2)
    except KeyboardInterrupt:
        return ended(interrupted(), 130)
    except FlaggedError as error:
        return ended(error, 1)
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        kept = KeptWindows.beside(arguments.output)
        return ended(f"failed: {type(error).__name__}: {error}" + (f"; {kept.told()}" if kept.count() else ""), 1)
    for note in result.report["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps({"output": str(result.video.path), **result.report["used"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
