"""`python mini train`: the miniature, made again from nothing; `export` writes its files, `evaluate` measures them.

Run it from anywhere by the folder's path: the repository's root must not be on Python's path, where its `nodes/` would
hide ComfyUI's. Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import math
import sys
import types
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this folder: its files are imported through the alias only
ROOT = Path(__file__).resolve().parent.parent
alias = types.ModuleType("a2v")  # the pack's name outside ComfyUI, as in tests/conftest.py
alias.__path__ = [str(ROOT)]
sys.modules.setdefault("a2v", alias)

import torch
from a2v.ltx.errors import InputError
from a2v.mini import figures, sizes, train

WEIGHTS = ROOT / "mini" / "weights"


def pairs(values: list[str], stages: Collection[str]) -> dict[str, float]:
    """`vae=600` → {"vae": 600.0}. Raises InputError if a name is none of `stages`, or the number is not above 0."""
    found = {}
    for value in values:
        name, _, number = value.partition("=")
        try:
            found[name] = above_zero(number)
        except argparse.ArgumentTypeError:
            raise InputError(f"{value}: write STAGE=NUMBER with a number above 0, for example vae=3600.") from None
        if name not in stages:
            raise InputError(f"{name}: is none of {', '.join(stages)}.")
    return found


def above_zero(text: str) -> float:
    with suppress(ValueError):
        if math.isfinite(number := float(text)) and number > 0:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def count(text: str, least: int = 1) -> int:
    with suppress(ValueError):
        if (number := int(text)) >= least:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")


def seed(text: str) -> int:
    return count(text, 0)


def check_start(folder: Path, earlier: Path | None, export: bool) -> None:
    """Raises InputError if `--from` holds no set, since training would start from nothing, or there is nothing to
    export, since untrained files would replace the trained ones."""
    parts = (sizes.FILES["checkpoint"], sizes.FILES["upscaler"])
    if earlier is not None and not any((earlier / name).is_file() for name in parts):
        raise InputError(f"--from: {earlier} holds no exported set ({parts[0]}); name the folder of one.")
    if export and earlier is None and not any(folder.glob("*.state.safetensors")):
        raise InputError(f"--folder: {folder} holds no state of a stage; train first, or name a set with --from.")


def tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python mini", description="A miniature of LTX-2.3: training, files, evaluation.")
    p.add_argument("--threads", type=count, metavar="N", help="of torch; default: its own choice")
    sub = p.add_subparsers(dest="command", required=True)
    for name, text in (
        ("train", "run all stages, or those named, within their budgets"),
        ("export", "write the files"),
    ):
        s = sub.add_parser(name, help=text, description=text)
        s.add_argument("--folder", type=Path, default=ROOT / "build" / "mini", help="of states and encoded clips")
        s.add_argument("--from", dest="earlier", type=Path, metavar="DIR", help="an exported set to start from")
        s.add_argument("--seed", type=seed, default=0)
        s.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
        if name == "export":
            s.add_argument("--to", type=Path, default=WEIGHTS)
            continue
        # One value each: a list would take the stages behind it for its own.
        each: dict[str, Any] = {"action": "append", "default": []}
        s.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(train.BUDGETS)}; default: all")
        s.add_argument("--scale", type=above_zero, default=1.0, help="of all budgets; 1 is ten hours of a core")
        s.add_argument("--seconds", **each, metavar="STAGE=S", help="a stage's budget over all runs; may be repeated")
        s.add_argument("--rate", **each, metavar="STAGE=R", help="a stage's learning rate; may be repeated")
        s.add_argument("--clips", type=count, default=3000, help="how many clips are encoded, if the budget allows")
        s.add_argument("--keep-latents", action="store_true", help="train the VAE's decoder alone: latents stay valid")
        s.add_argument("--rows", type=count, default=24, help="clips in a step of the transformer")
    e = sub.add_parser("evaluate", help="measure an exported set and write the table")
    e.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of an exported set")
    e.add_argument("--to", type=Path, metavar="FILE.md", help="write the table there; default: only show it")
    e.add_argument("--clips", type=count, default=8)
    e.add_argument("--prompts", type=count, default=50)
    e.add_argument("--seed", type=seed, default=0)
    e.add_argument("--only", nargs="+", default=[], metavar="PART", help=f"of {', '.join(figures.PARTS)}")
    e.add_argument("--all", action="store_true", help="every setting that acts on sampling, too, which takes hours")
    w = sub.add_parser("speakers", help="measure who speaks: a mouth that hears the sound, and one that does not")
    w.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of an exported set")
    w.add_argument("--clips", type=count, default=8)
    w.add_argument("--seed", type=seed, default=0)
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        if arguments.command == "evaluate":
            if unknown := set(arguments.only) - set(figures.PARTS):
                raise InputError(f"{', '.join(sorted(unknown))}: no such part; there are {', '.join(figures.PARTS)}.")
            if arguments.to and not arguments.to.parent.is_dir():
                raise InputError(f"{arguments.to}: there is no folder {arguments.to.parent}; create it.")
            if arguments.to and arguments.to.is_dir():
                raise InputError(f"--to: {arguments.to} is a folder; name a file in it.")
            usual = [part for part in figures.PARTS if arguments.all or part != figures.LONGEST]
            table = figures.table(
                arguments.weights, arguments.clips, arguments.prompts, arguments.seed, arguments.only or usual, tell
            )
            sys.stdout.write(table)
            if arguments.to:
                arguments.to.write_text(table, encoding="utf-8")
            return 0
        if arguments.command == "speakers":
            from a2v.mini import speakers

            for table in (speakers.table, speakers.two_faces):
                said = table(arguments.weights, arguments.clips, arguments.seed, tell)
                sys.stdout.write(f"{said}\n")
            return 0
        given = {"folder": arguments.folder, "earlier": arguments.earlier, "seed": arguments.seed}
        if arguments.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device: cuda is not available here; use --device cpu.")
        check_start(arguments.folder, arguments.earlier, arguments.command == "export")
        given["device"] = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if arguments.command == "export":
            sys.stdout.write(f"{train.write_set(train.Settings(**given), arguments.to)}\n")
            return 0
        if unknown := set(arguments.stages) - set(train.BUDGETS):
            raise InputError(f"{', '.join(sorted(unknown))}: no such stage; there are {', '.join(train.BUDGETS)}.")
        settings = train.Settings(
            **given,
            scale=arguments.scale,
            budgets=pairs(arguments.seconds, train.BUDGETS),
            rates=pairs(arguments.rate, train.RATES),
            clips=arguments.clips,
            rows=arguments.rows,
            keep_latents=arguments.keep_latents,
        )
        train.run(settings, tuple(arguments.stages) or tuple(train.BUDGETS))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        goes_on = "the same command goes on from the last minute that was saved"
        sys.stderr.write(f"interrupted; {goes_on if arguments.command == 'train' else 'nothing was finished'}\n")
        return 130
    except OSError as error:
        sys.stderr.write(f"failed: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
