"""The parts of the benchmark on a GPU, and their table. gpu.py computes each part, in a process of its own.

Each finished part is kept in benchmarks/results/gpu.parts.json until the table is whole, so that a run that was cut
goes on. Where $OUT is set, as on the device machine, the file is there as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from a2v.benchmarks.gpu import CLIP, LARGE, LITTLE, STEPS, TOY, check, device, dtype
from a2v.benchmarks.measure import MISSING, RESULTS, Ratio, Table, middle, sides, version
from a2v.benchmarks.parts import Parts, Result, code
from a2v.ltx.diffusion.attention import BACKENDS, MATH, TORCH, check_attention
from a2v.ltx.errors import InputError
from safetensors.torch import load_file

LEVELS = ("none", "regular", "high", "full")
WANTED = {"none": "≤ 0.85", "regular": "≤ 0.65", "high": "≤ 0.45"}
COLUMNS = (
    "transformer",
    "first stage, per step",
    "ratio",
    "wanted",
    "second stage, per step",
    "2 stages",
    "ratio",
    "peak",
)


def ways() -> dict[str, dict[str, Any]]:
    """Name → how our side computes there, at level none: see `gpu.prepare`. What this machine cannot do is left out."""
    found: dict[str, dict[str, Any]] = {
        "fp8, decoded": {"fp8": True},
        "fp8, fast products": {"fp8": True, "fast": True},
    }
    for name in BACKENDS.keys() - {TORCH, MATH}:
        try:
            check_attention(name, device(), dtype())
        except InputError:
            continue
        found[f"attention {name}"] = {"attention": name}
    if torch.cuda.is_available():
        found |= {"fused kernels": {"fused": True}, "torch.compile": {"compiled": True}}
    return dict(sorted(found.items()))


def identity(job: dict[str, Any], rounds: int) -> dict[str, Any]:
    """What the kept parts belong to."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    packages = {package: version(package) for package in ("torch", "diffusers", "ltx-core", "ltx-pipelines")}
    return {"card": name, "packages": packages, "job": job, "rounds": rounds, "code": code("ltx", "benchmarks")}


def gpu(folder: Path, small: bool = False, rounds: int = 2) -> Table | None:
    """Returns None without CUDA, unless it runs at the toy size."""
    if not small and not torch.cuda.is_available():
        return None
    size, clip, steps = (LITTLE, TOY, 2) if small else (LARGE, CLIP, STEPS)
    job, rounds = {"size": size, "clip": clip.plain, "steps": steps}, 1 if small else rounds
    outside = os.environ.get("OUT")
    also = (Path(outside) / "gpu.parts.json",) if outside and not small else ()
    parts = Parts((folder if small else RESULTS) / "gpu.parts.json", identity(job, rounds), also)
    log = folder / "sides.log"
    errors = parts.get("the same numbers?", lambda: _errors(job, folder, log))
    check(errors["ours"], errors["official"])
    found = _measured(parts, job, rounds, log)
    table = _table(found, errors, size, clip, steps)
    parts.done()
    return table


def _errors(job: dict[str, Any], folder: Path, log: Path) -> Result:
    """The errors of a guided step of both sides against float32 on the same weights. One model at a time is there."""
    files = {name: str(folder / f"{name}.safetensors") for name in ("exact", "ours", "official")}
    for name, file in files.items():
        with sides("gpu", log=log) as (side,):
            if name == "official":
                side("official", **job, save=file)
            else:
                side("ours", **job, level="none", save=file, exact=name == "exact")
    truth, *others = (load_file(file)["latent"] for file in files.values())
    return {
        name: float((latent - truth).norm() / truth.norm())
        for name, latent in zip(("ours", "official"), others, strict=True)
    }


def _measured(parts: Parts, job: dict[str, Any], rounds: int, log: Path) -> dict[str, list[Result]]:
    """The runs of each row by its name: the official side and our levels in turns, then our other ways, once each."""
    found: dict[str, list[Result]] = {name: [] for name in ("official", *LEVELS)}

    def all_of(number: int, calls: dict[str, tuple[str, dict[str, Any]]]) -> None:
        """The parts of one process, which is not started if all of them are there."""
        missing = [name for name in calls if f"{name}, round {number + 1}" not in parts]
        with sides(*(["gpu"] if missing else []), log=log) as started:
            for name, (function, arguments) in calls.items():
                run: Callable[[], Result] = lambda f=function, a=arguments: started[0](f, **job, **a)  # noqa: E731
                found.setdefault(name, []).append(parts.get(f"{name}, round {number + 1}", run))

    for number in range(rounds):
        all_of(number, {"official": ("official", {})})
        all_of(number, {level: ("ours", {"level": level}) for level in LEVELS})
    for name, how in ways().items():
        all_of(0, {name: ("ours", {"level": "none", "how": how})})
    return found


def _table(found: dict[str, list[Result]], errors: Result, size: dict[str, Any], clip: Any, steps: int) -> Table:
    base, rows = found["official"], []
    numbers: dict[str, float] = {"error": errors["ours"], "official error": errors["official"]}
    for name, runs in found.items():
        # The time of a step is the mean of all steps, because a level leaves work out in some of them.
        first, stages = (
            Ratio([r[key] for r in runs], [r[key] for r in base[: len(runs)]]) for key in ("first", "stages")
        )
        ours = name != "official"
        rows.append(
            (
                f"ours, {name}" if ours else "official, eager",
                f"{middle([r['first'] for r in runs], 3)} s",
                str(first) if ours else MISSING,
                WANTED.get(name, MISSING),
                f"{middle([r['second'] for r in runs], 3)} s",
                f"{middle([r['stages'] for r in runs], 1)} s",
                str(stages) if ours else MISSING,
                f"{max(r['allocated'] for r in runs) / 1e9:.1f} GB" if runs[0]["allocated"] else MISSING,
            )
        )
        numbers |= {f"{name} first": first.median, f"{name} stages": stages.median}
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    notes = (
        f"{name}; {clip.width}×{clip.height}×{clip.frames}, {steps} + 3 steps, {size['layers']} blocks, random "
        f"weights in {str(dtype()).removeprefix('torch.')}, frozen audio; `full` takes the 8 distilled steps, and the "
        "rows below it are at level none, run once; the first steps of torch.compile include compiling. The peak is "
        "allocated memory with the weights, without upscaler, text encoder and decoder. The guided x0 of a step "
        f"differs by {errors['ours']:.1e} from the same in float32, that of the official code with the rules of its "
        f"version 1.2 by {errors['official']:.1e}.",
    )
    return Table("The published size on a GPU", COLUMNS, tuple(rows), notes, numbers)
