"""`python mini train`: the miniature, made again from nothing; `export` writes its files, `evaluate` measures them.

Run it from anywhere by the folder's path: the repository's root must not be on Python's path, where its `nodes/` would
hide ComfyUI's. Exit status: 0, 2 for bad input, 130 interrupted.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

sys.path.pop(0)  # this folder: its files are imported through the alias only
ROOT = Path(__file__).resolve().parent.parent
alias = types.ModuleType("a2v")  # the pack's name outside ComfyUI, as in tests/conftest.py
alias.__path__ = [str(ROOT)]
sys.modules.setdefault("a2v", alias)

import torch
from a2v.ltx.errors import InputError
from a2v.mini import figures, train

WEIGHTS = ROOT / "mini" / "weights"


def pairs(values: list[str]) -> dict[str, float]:
    """`vae=600` → {"vae": 600.0}."""
    found = {}
    for value in values:
        name, _, number = value.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise InputError(f"{value}: write STAGE=NUMBER, for example vae=3600.") from None
        if name not in train.BUDGETS:
            raise InputError(f"{name}: no such stage; there are {', '.join(train.BUDGETS)}.")
    return found


def tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python mini", description="A miniature of LTX-2.3: training, files, evaluation.")
    p.add_argument("--threads", type=int, metavar="N", help="of torch; default: its own choice")
    sub = p.add_subparsers(dest="command", required=True)
    for name, text in (
        ("train", "run all stages, or those named, within their budgets"),
        ("export", "write the files"),
    ):
        s = sub.add_parser(name, help=text, description=text)
        s.add_argument("--folder", type=Path, default=ROOT / "build" / "mini", help="of states and encoded clips")
        s.add_argument("--from", dest="earlier", type=Path, metavar="DIR", help="an exported set to start from")
        s.add_argument("--seed", type=int, default=0)
        s.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
        if name == "export":
            s.add_argument("--to", type=Path, default=WEIGHTS)
            continue
        s.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(train.BUDGETS)}; default: all")
        s.add_argument("--scale", type=float, default=1.0, help="of all budgets; 1 is ten hours of a core")
        s.add_argument("--seconds", nargs="+", default=[], metavar="STAGE=S", help="a stage's budget over all runs")
        s.add_argument("--rate", nargs="+", default=[], metavar="STAGE=R", help="a stage's learning rate")
        s.add_argument("--clips", type=int, default=3000, help="how many clips are encoded, if the budget allows")
        s.add_argument("--keep-latents", action="store_true", help="train the VAE's decoder alone: latents stay valid")
        s.add_argument("--rows", type=int, default=24, help="clips in a step of the transformer")
    e = sub.add_parser("evaluate", help="measure an exported set and write the table")
    e.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of an exported set")
    e.add_argument("--to", type=Path, metavar="FILE.md", help="write the table there; default: only show it")
    e.add_argument("--clips", type=int, default=8)
    e.add_argument("--prompts", type=int, default=50)
    e.add_argument("--seed", type=int, default=0)
    e.add_argument("--only", nargs="+", default=[], metavar="PART", help=f"of {', '.join(figures.PARTS)}")
    e.add_argument("--all", action="store_true", help="every setting that acts on sampling, too, which takes hours")
    w = sub.add_parser("speakers", help="measure who speaks: a mouth that hears the sound, and one that does not")
    w.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of an exported set")
    w.add_argument("--clips", type=int, default=8)
    w.add_argument("--seed", type=int, default=0)
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
        given["device"] = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if arguments.command == "export":
            sys.stdout.write(f"{train.write_set(train.Settings(**given), arguments.to)}\n")
            return 0
        if unknown := set(arguments.stages) - set(train.BUDGETS):
            raise InputError(f"{', '.join(sorted(unknown))}: no such stage; there are {', '.join(train.BUDGETS)}.")
        settings = train.Settings(
            **given,
            scale=arguments.scale,
            budgets=pairs(arguments.seconds),
            rates=pairs(arguments.rate),
            clips=arguments.clips,
            rows=arguments.rows,
            keep_latents=arguments.keep_latents,
        )
        train.run(settings, tuple(arguments.stages) or tuple(train.BUDGETS))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from the last minute that was saved\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
