"""`python -m ltx doctor` reports what is installed, which models it finds, what is missing, and whether a job will fit.

It changes nothing and reads no weights: the pack's own readers open the files and look only at headers. Every fault
becomes a line of the report and never a traceback, so packages that may be broken are imported inside the functions.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .. import models, versions
from ..computing import CPU
from ..errors import InputError
from ..models import ENCODER, MODELS, PACK, Published, size
from ..terminal import to_path

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..weights.checkpoint import Checkpoint

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Endings of files that people have in place of safetensors files. They are not read, and the report says why."""
SPEECH = PACK / "assets" / "speech.opus"  # 5 s of sound for the rehearsal of a default job
Say = Callable[[str], object]
Line = tuple[bool | None, str]
"""A line of the report: whether it is good (True), bad (False) or only a note (None), and its text."""
OK, BAD, NOTE = "ok     ", "WRONG  ", "       "
# Bytes of the published weights in bfloat16: the transformer, one of its 48 blocks, and the text encoder.
TRANSFORMER, BLOCK, TEXT = 37_980_000_000, 770_000_000, 30_700_000_000
SHARES = (
    ("bf16", 1.0, 1.0),
    ("GGUF Q8_0", 8.5 / 16, 0.5),
    ("MXFP8", 8.25 / 16, 0.5),
    ("fp8 or int8", 0.5, 0.5),
    ("NVFP4", 0.45, 0.45),
    ("GGUF Q4_K", 4.5 / 16, 0.45),
)
"""Formats and the size of the published transformer and text encoder in them, in proportion to bfloat16. NVFP4 leaves
some blocks in 16 bits. Of the text encoder there is neither MXFP8 nor GGUF: the nearest format stands for it."""
SMALLER = (("dev", "small"), ("dev-2.5", "2.5-small"))
"""A published checkpoint, and the set for small cards in place of its own."""


@dataclass
class Found:
    """The models that were found, by their purpose. Each can be opened by its reader. transformers: those without all
    other parts of a checkpoint."""

    checkpoints: list[Checkpoint] = field(default_factory=list)
    transformers: list[Checkpoint] = field(default_factory=list)
    encoders: list[Path] = field(default_factory=list)
    upscalers: list[Path] = field(default_factory=list)
    distilled_loras: list[Path] = field(default_factory=list)
    cameras: list[Path] = field(default_factory=list)
    checkers: list[Path] = field(default_factory=list)

    @property
    def version(self) -> models.Generation:
        """That of the first checkpoint."""
        return next((each.generation for each in (*self.checkpoints, *self.transformers)), models.V23)

    @property
    def encoder(self) -> Path | None:
        """The first text encoder that the first checkpoint was trained with."""
        if not self.encoders:
            return None
        from ..prompt.gemma import check_gemma

        given = self.checkpoints[0] if self.checkpoints else None
        return _first(self.encoders, lambda path: check_gemma(path, given))

    @property
    def upscaler(self) -> Path | None:
        """The first upscaler of the first checkpoint's version."""
        return _first(self.upscalers, self.checkpoints[0].check_upscaler if self.checkpoints else lambda _: None)

    @property
    def distilled_lora(self) -> Path | None:
        """The first distilled LoRA of the first checkpoint's version."""
        if not self.checkpoints or not self.distilled_loras:
            return next(iter(self.distilled_loras), None)
        from ..weights.lora import load_lora

        first = self.checkpoints[0]
        return _first(self.distilled_loras, lambda path: load_lora(path).check_version(first.path.name, first.version))


def _first(paths: Iterable[Path], check: Callable[[Path], object]) -> Path | None:
    """The first path at which the check raises no InputError."""
    for path in paths:
        with contextlib.suppress(InputError):
            check(path)
            return path
    return None


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m ltx doctor",
        description="Reports what is installed, which models it finds, what is missing, and whether a job will fit. "
        "Exit status: 0 if a default job can run, 1 otherwise.",
    )
    p.add_argument(
        "--models",
        type=to_path,
        metavar="DIR",
        help="ComfyUI's models folder; default: the one of the ComfyUI that has this pack in custom_nodes",
    )
    return p


def main(argv: list[str], say: Say) -> int:
    """Writes the report, one line at a time, with `say`. Returns the exit status."""
    arguments = parser().parse_args(argv)
    runs = True
    for name, section in (("Python and packages", _packages), ("Device", _devices)):
        say(name)
        runs &= _write(section, say)
    folder = arguments.models or models.around(PACK.absolute())
    say("Models")
    if folder is None:
        say(f"{BAD}this pack is not inside a ComfyUI; name the models folder: python -m ltx doctor --models DIR")
        return 1
    if not folder.is_dir():
        say(f"{BAD}{folder}: is not a folder; name ComfyUI's models folder with --models")
        return 1
    try:
        places = models.folders(folder.absolute())
    except InputError as error:
        say(f"{BAD}{error}")
        return 1
    found = Found()
    readable = _write(lambda: _models(places, found), say)
    needed = list(_needed(found))
    say("Missing" if needed else "Nothing that a default job needs is missing")
    for model in needed:
        say(f"{BAD}{model.what}: {model.name}, {size(model.size)}, into {places[model.folder][0]}, from {model.url}")
        if model.terms:
            say(f"{NOTE}accept its terms on that page first, then log in with a token: hf auth login")
    if needed:
        keys = " ".join(key for key in found.version.default if MODELS[key] in needed)
        named = "" if arguments.models is None else f' --models "{arguments.models}"'
        say(f"{NOTE}python -m ltx download {keys}{named} gets {'it' if len(needed) == 1 else 'them'}")
        for key, smaller in SMALLER:
            if MODELS[key] in needed:
                small = size(models.total(models.SETS[smaller]))
                how = f"python -m ltx download {smaller}{named}"
                say(f"{NOTE}for small cards: {how} gets a set of {small} in place of these")
    say("What fits")
    runs &= _write((lambda: _fits(found)) if readable and not needed else _known_sizes, say)
    runs &= readable and not needed
    say("A default job can run." if runs else "A default job cannot run yet: see the lines above.")
    return 0 if runs else 1


def _write(section: Callable[[], Iterable[Line]], say: Say) -> bool:
    """Writes a section and returns whether it has no bad line. An error of any kind becomes the section's last line."""
    all_good = True
    try:
        for good, line in section():
            say((NOTE if good is None else OK if good else BAD) + line)
            all_good &= good is not False
    except Exception as error:  # a broken installation may raise anything, and the other sections still run
        say(f"{BAD}{_reason(error)}")
        return False
    return all_good


def _reason(error: Exception) -> str:
    message = " ".join(str(error).split())
    return message if isinstance(error, InputError) else f"{type(error).__name__}: {message}"[:300]


def _packages() -> Iterator[Line]:
    yield sys.version_info >= versions.PYTHON, f"Python {platform.python_version()} ({sys.executable})"
    missing = False
    for package in versions.installed():
        if not package.supported and package.only_for:
            yield None, f"{package} (needed: {package.wanted}): {package.only_for} does not work without it"
            continue
        missing |= not package.supported
        yield package.supported, f"{package} (needed: {package.wanted})"
    if missing:
        yield False, versions.remedy()
    torch = versions.torch()
    yield torch.supported, f"{torch} (needed: {torch.wanted})"
    if not torch.supported:
        yield False, versions.torch_remedy()
    if missing or not torch.supported:
        return
    from .. import pipeline  # noqa: F401 - this shows whether the installed packages work

    yield True, "they can be imported"


def _devices() -> Iterator[Line]:
    import torch

    from ..devices import found
    from ..memory.free import free_memory

    gpus = list(found())
    for device, name, total in gpus:
        yield True, f"{name} ({device.type}): {size(total)}, {size(free_memory(device))} free"
    if not gpus:
        yield None, "torch finds no GPU: a job runs on the CPU and takes hours with the published model"
    yield True, f"torch {torch.__version__}, host memory {size(free_memory('cpu'))} free"


def _models(places: Mapping[str, list[Path]], found: Found) -> Iterator[Line]:
    """One line for each model that the pack can use, and one for each unusable file whose name looks like one."""
    from ..media.safety import find_checker, load_checker
    from ..prompt.gemma import check_gemma
    from ..weights.checkpoint import load_upscaler
    from ..weights.lora import load_lora, match
    from ..weights.lora_file import IC_NAME

    yield from _checkpoints(places, found)

    def opened(
        paths: Iterable[Path], what: str, into: list[Path], read: Callable[[Path], object], named: str = ""
    ) -> Iterator[Line]:
        """named: a file with this word in its name gets a line if it is unusable; others may belong to other packs."""
        for path in _unique(paths):
            try:
                read(path)
            except Exception as error:  # a broken file may raise anything, and the other files are still checked
                if named in path.name.lower():
                    yield None, f"cannot be used: {_reason(error)}"
            else:
                into.append(path)
                yield True, f"{what} {path} ({_size_of(path)})"

    encoders = _unique(_encoders(places))
    expanders = [path for path in encoders if _writes_only(path)]
    encoders = [path for path in encoders if path not in expanders]
    yield from opened(encoders, "text encoder", found.encoders, check_gemma, "gemma")
    yield from ((True, f"expander of prompts for LTX-2.5 {path} ({_size_of(path)})") for path in expanders)
    upscalers = (path for base in places["latent_upscale_models"] for path in models.files(base, ".safetensors"))
    yield from opened(upscalers, "upscaler", found.upscalers, load_upscaler, "ltx-")
    # A LoRA is matched with the first checkpoint, because a LoRA that fits nothing would have no effect.
    model = found.checkpoints[0].blueprint() if found.checkpoints else None
    loras = [path for base in places["loras"] for path in models.files(base, ".safetensors")]

    def fits(path: Path) -> None:
        lora = load_lora(path, referenced=True)
        if model is not None:
            match(lora, model)

    ours = [path for path in loras if "ltx" in path.name.lower()]
    yield from opened((p for p in ours if models.is_distilled(p.name)), "distilled LoRA", found.distilled_loras, fits)
    cameras = (p for p in ours if "camera" in p.name.lower())
    yield from opened(cameras, "camera LoRA", found.cameras, fits)
    yield from opened((p for p in ours if IC_NAME.search(p.name)), "IC-LoRA", [], fits)
    checkers = [folder for base in places["safety_checker"] if (folder := find_checker(base)) is not None]
    yield from opened(checkers[:1], "safety checker", found.checkers, load_checker)
    if not checkers:
        known = MODELS["safety-checker"]
        yield None, f"no safety checker: clips are not checked; python -m ltx download safety-checker gets {known.page}"


def _checkpoints(places: Mapping[str, list[Path]], found: Found) -> Iterator[Line]:
    """The lines of the files with a transformer; below each its format."""
    import torch

    from ..memory.rehearsal import blueprint

    for path in _unique(_transformer_files(places)):
        transformer = None
        try:
            with torch.inference_mode():  # as in a job: a rehearsal takes no views of other tensors
                checkpoint = _checkpoint(path, places)
                if checkpoint.lacking(projection=False):
                    found.transformers.append(checkpoint)
                    transformer = blueprint(checkpoint.unopened().transformer)
                transformer = checkpoint.inspect(projection=False)
        except Exception as error:  # a broken file may raise anything, and the other files are still checked
            if "ltx" not in path.name.lower():
                continue
            yield None, f"cannot be used: {_reason(error)}"
        else:
            found.checkpoints.append(checkpoint)
            beside = [f"{part} from {file.path.name}" for part, file in checkpoint.files.items()]
            yield True, f"checkpoint {path} ({_size_of(path)})" + "".join(f", {part}" for part in beside)
        if transformer is not None:
            yield None, _format_of(transformer, _device())


def _device() -> torch.device:
    """Where a job computes by default."""
    import torch

    from ..devices import usual

    return torch.device(usual())


def _format_of(transformer: nn.Module, device: torch.device) -> str:
    """In which formats the weights of a transformer's blocks are, and whether a device multiplies in them."""
    from ..weights.products import obstacle
    from ..weights.quantized import formats_of

    formats = formats_of(transformer)
    first, *others = (each.name for each in formats)
    said = [f"its transformer is in {first}" + (f", in part in {' and '.join(others)}" if others else "")]
    ways: dict[str, list[str]] = {}
    for each in formats:
        if each.quantized:
            on_cpu = "a job on a CPU computes in float32"
            ways.setdefault(on_cpu if device.type == "cpu" else obstacle(each, device), []).append(each.name)
    for reason, names in ways.items():
        way = f"decoded at each call: {reason}" if reason else "multiplied as stored with --fast-products, else decoded"
        said.append(f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} {way}")
    return "; ".join(said)


def _encoders(places: Mapping[str, list[Path]]) -> Iterator[Path]:
    """Folders and files that may hold Gemma, and the diffusers folders that have a text encoder."""

    folders = [path.parent for base in places["text_encoders"] for path in models.files(base, "config.json")]
    single = [path for base in places["text_encoders"] for path in models.files(base, ".safetensors", ".gguf")]
    yield from folders
    yield from (path for path in single if path.parent not in folders)
    for base in places["diffusers"]:
        whole = (path for path in models.files(base, "config.json") if path.as_posix().endswith(f"/{ENCODER}"))
        yield from (path.parent.parent for path in whole)


def _writes_only(path: Path) -> bool:
    """Whether it is a Gemma 4 that chats: an expander, and no text encoder."""
    from ..prompt.expander import check_expander
    from ..prompt.gemma4_file import is_gemma4

    try:
        if not is_gemma4(path):
            return False
        check_expander(path)
    except Exception:  # a broken file may raise anything; checked as a text encoder, it gets its line
        return False
    return True


def _unique(paths: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(paths))


def _transformer_files(places: Mapping[str, list[Path]]) -> Iterator[Path]:
    for base in (*places["checkpoints"], *places["diffusion_models"]):
        yield from models.files(base, ".safetensors", ".sft", *PICKLES)
    for base in places["diffusion_models"]:
        yield from models.files(base, ".gguf")
    for base in places["diffusers"]:
        yield from (p.parent.parent for p in models.files(base, "config.json") if p.parent.name == "transformer")


def _checkpoint(path: Path, places: Mapping[str, list[Path]]) -> Checkpoint:
    """Opens a file with the transformer, together with files of its missing parts, as far as they are there. Raises
    InputError if it cannot be used."""
    from ..weights.checkpoint import load_checkpoint

    opened = load_checkpoint(path)
    parts: dict[str, Path] = {}
    for part, kinds in models.PART_FOLDERS.items():
        try:
            opened.check(projection=False)
            break
        except InputError:
            for file in (file for kind in kinds for base in places[kind] for file in _named_ltx(base)):
                try:
                    opened = load_checkpoint(path, **parts, **{part: file})
                except InputError:
                    continue
                parts[part] = file
                break
    if opened.awaits_projection:  # LTX-2.5's text encoder has it
        given = (opened.with_text_encoder(encoder) for encoder in _encoders(places))
        opened = next((each for each in given if not each.awaits_projection), opened)
    return opened


def _named_ltx(base: Path) -> list[Path]:
    return [path for path in models.files(base, ".safetensors") if "ltx" in path.name.lower()]


def _size_of(path: Path) -> str:
    return size(sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()))


def _needed(found: Found) -> Iterator[Published]:
    """The published models that a default job still needs, of the version of the first checkpoint. A distilled
    checkpoint needs no LoRA."""
    version = found.version
    from_names = [checkpoint.path.name for checkpoint in found.checkpoints]
    if not from_names:
        parts = _parts(found.transformers[0]) if found.transformers else []
        from_names = [checkpoint.path.name for checkpoint in found.transformers if parts]
        yield from parts or [MODELS[version.checkpoint]]
    if found.distilled_lora is None and not any(map(models.is_distilled, from_names)):
        yield MODELS[version.distilled_lora]
    if found.upscaler is None:
        yield MODELS[version.upscaler]
    if found.encoder is None:
        yield MODELS[version.encoder]


def _parts(transformer: Checkpoint) -> list[Published]:
    """The published files of all parts that a transformer lacks; empty if one of them is not published by itself."""
    version = transformer.generation
    lacking = {version.parts.get(part.argument) for part in transformer.lacking(projection=False)}
    files = [MODELS[key] for key in version.apart if MODELS[key].name in lacking]
    return files if len(files) == len(lacking) else []


def _fits(found: Found) -> Iterator[Line]:
    """Prepares and rehearses a job as the command does, with the endpoint's defaults and the first model of each
    kind."""
    import torch

    from ..devices import usual_dtype
    from ..job import Compute, Files, prepare
    from ..memory.forecast import estimate
    from ..request import parse

    request = parse({"prompt": "A person speaks.", "seed": 0})
    checkpoint = found.checkpoints[0]
    named = {part: file.path for part, file in checkpoint.files.items()}
    distilled = models.is_distilled(checkpoint.path.name)
    files = Files(
        checkpoint=checkpoint.path,
        text_encoder=found.encoder,
        audio=SPEECH,
        output=Path("out.mp4"),
        upscaler=found.upscaler,
        distill_lora=None if distilled else found.distilled_lora,
        safety_checker=next(iter(found.checkers), None),
        **named,
    )
    device = _device().type
    compute = Compute(usual_dtype(device), device)
    with torch.inference_mode():
        forecast = estimate(prepare(files, request), compute)
    head, *_ = forecast.lines()
    yield True, f"the default request with {checkpoint.path.name} on {head.removeprefix('memory on ')}"
    yield from ((phase.fits, str(phase)) for phase in forecast.phases)
    if forecast.advice:
        yield False, forecast.advice


def _known_sizes() -> Iterator[Line]:
    """Compares the published weights with the device, if files are missing and cannot be measured."""
    from ..memory.forecast import REREAD
    from ..memory.free import free_memory

    device = _device().type
    free, host = free_memory(device), free_memory("cpu")
    for name, share, text in SHARES:
        whole, blocks = max(share * TRANSFORMER, text * TEXT), 2 * share * BLOCK
        if whole < free:
            state = f"fits on {device} with {size(free)} free, without the memory that computing takes"
        elif device != CPU and whole < host and 4 * blocks < free:
            state = f"waits in host memory with {size(host)} free, and goes to {device} block by block"
        elif device == CPU:  # which reads weights from their files while it computes
            state = f"{REREAD}: {size(free)} free"
        else:
            state = f"does not fit: {size(free)} free on {device}, {size(host)} on the host"
        yield None, f"the set of published weights in {name}, at most {size(whole)} at a time, {state}"
