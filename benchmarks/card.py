"""The parts of the benchmark on a GPU, and their table. gpu.py computes each part, those of one model in one process.

Each finished part is kept in benchmarks/results/gpu.parts.json until the table is whole, so that a run that was cut
goes on. Where $OUT is set, as on the device machine, the file is there as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from a2v.benchmarks.cost import LORA_SHARE
from a2v.benchmarks.gpu import CLIP, LARGE, LITTLE, STEPS, TOY, check, device, dtype
from a2v.benchmarks.layers import RANK
from a2v.benchmarks.measure import MISSING, RESULTS, Ratio, Table, middle, sides, version
from a2v.benchmarks.parts import Parts, Result, code
from a2v.ltx.computing import MATH, TORCH
from a2v.ltx.diffusion.attention import BACKENDS, check_attention
from a2v.ltx.errors import InputError
from safetensors.torch import load_file

LEVELS = ("none", "regular", "high", "full")
FAST = "fp8, fast products"
TILED, WHOLE = DECODING = ("decoding, in tiles", "decoding, as one tile")
FIGURES = ("first", "second", "stages")
WANTED: dict[str, tuple[float, ...]] = {"none": (0.55, 0.85, 0.60), "regular": (0.65,), "high": (0.45,), FAST: (0.45,)}
"""The largest ratios to the official code: of the first stage, of the second one, and of both."""
COLUMNS = (
    "transformer",
    "first stage, per step",
    "ratio",
    "second stage, per step",
    "ratio",
    "2 stages, or decoding",
    "ratio",
    "ratios wanted",
    "kept",
    "until the first step",
    "peak",
)


def ways() -> dict[str, dict[str, Any]]:
    """Name → how our side computes there, at level none: see `gpu.ours`. What this machine cannot do is left out."""
    found: dict[str, dict[str, Any]] = {}
    for name in BACKENDS.keys() - {TORCH, MATH}:
        try:
            check_attention(name, device(), dtype())
        except InputError:
            continue
        found[f"attention {name}"] = {"attention": name}
    if torch.cuda.is_available():
        found |= {"without Triton kernels": {"fused": False}, "torch.compile": {"compiled": True}}
    return {name: {"how": how} for name, how in sorted(found.items())} | in_fp8()


def in_fp8() -> dict[str, dict[str, Any]]:
    """The ways whose model is rounded for good. The blocks wait in host memory last, because that moves all of them."""
    lora = {"fp8": True, "rank": RANK}
    return {
        "fp8, decoded": {"how": {"fp8": True}},
        f"fp8, LoRA of rank {RANK}": {"how": lora},
        FAST: {"how": {"fp8": True, "fast": True}},
        f"{FAST}, LoRA of rank {RANK}": {"how": {**lora, "fast": True}},
        "fp8, offload": {"how": {"fp8": True}, "offload": True},
    }


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
    """The errors of a guided step of both sides against float32 on the same weights. One model at a time is there; ours
    is widened to float32 in its place."""
    files = {name: str(folder / f"{name}.safetensors") for name in ("exact", "ours", "official")}
    with sides("gpu", log=log) as (side,):
        for name in ("ours", "exact"):
            side("ours", **job, level="none", save=files[name], exact=name == "exact")
    with sides("gpu", log=log) as (side,):
        side("official", **job, save=files["official"])
    truth, *others = (load_file(file)["latent"] for file in files.values())
    return {
        name: float((latent - truth).norm() / truth.norm())
        for name, latent in zip(("ours", "official"), others, strict=True)
    }


def _measured(parts: Parts, job: dict[str, Any], rounds: int, log: Path) -> dict[str, list[Result]]:
    """The runs of each row by its name: the official side and our levels in turns, our other ways once each. A process
    builds one model; what leaves it as it is follows the levels there."""
    found: dict[str, list[Result]] = {name: [] for name in ("official", *LEVELS)}

    def all_of(number: int, calls: dict[str, tuple[str, dict[str, Any]]]) -> None:
        """The parts of one process, which is not started if all of them are there."""
        missing = [name for name in calls if f"{name}, round {number + 1}" not in parts]
        with sides(*(["gpu"] if missing else []), log=log) as started:
            for name, (function, arguments) in calls.items():
                run: Callable[[], Result] = lambda f=function, a=arguments: started[0](f, **job, **a)  # noqa: E731
                found.setdefault(name, []).append(parts.get(f"{name}, round {number + 1}", run))

    every = {name: ("ours", {"level": "none", **how}) for name, how in ways().items()}
    rounded = {name: every.pop(name) for name in in_fp8()}
    for number in range(rounds):
        all_of(number, {"official": ("official", {})})
        calls = {level: ("ours", {"level": level}) for level in LEVELS}
        all_of(number, calls | (every if number == 0 else {}))
    all_of(0, rounded)
    all_of(0, {name: ("decode", {"tiled": name == TILED}) for name in DECODING})
    return found


def _table(found: dict[str, list[Result]], errors: Result, size: dict[str, Any], clip: Any, steps: int) -> Table:
    base, rows = found["official"], []
    numbers: dict[str, float] = {"error": errors["ours"], "official error": errors["official"]}
    for name, runs in found.items():
        peak = f"{max(r['allocated'] for r in runs) / 1e9:.1f} GB" if runs[0]["allocated"] else MISSING
        if name in DECODING:
            seconds = f"{middle([r['stages'] for r in runs])} s"
            rows.append((f"ours, {name}", *(MISSING,) * 4, seconds, *(MISSING,) * 4, peak))
            numbers[f"{name} seconds"] = runs[0]["stages"]
            continue
        # The time of a step is the mean of all steps, because a level leaves work out in some of them.
        ratios = [Ratio([r[key] for r in runs], [r[key] for r in base[: len(runs)]]) for key in FIGURES]
        ours, wanted = name != "official", WANTED.get(name, ())
        kept = ["yes" if ratio.median <= most else "no" for ratio, most in zip(ratios, wanted, strict=False)]
        spent = [f"{middle([r[key] for r in runs], digits)} s" for key, digits in zip(FIGURES, (3, 3, 1), strict=True)]
        shown = [text for time, ratio in zip(spent, ratios, strict=True) for text in (time, str(ratio))]
        start = max(r.get("start", 0) for r in runs)
        rows.append(
            (
                f"ours, {name}" if ours else "official, eager",
                *(shown if ours else (text for time in spent for text in (time, MISSING))),
                ", ".join(f"≤ {most:.2f}" for most in wanted) or MISSING,
                ", ".join(kept) or MISSING,
                f"{start:.0f} s" if start >= 1 else MISSING,
                peak,
            )
        )
        numbers |= {f"{name} {key}": ratio.median for key, ratio in zip(FIGURES, ratios, strict=True)}
    lora = found[f"fp8, LoRA of rank {RANK}"][0], found["fp8, decoded"][0]
    numbers["LoRA on fp8, share"] = max(lora[0][key] / lora[1][key] - 1 for key in ("first", "second"))
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    notes = (
        f"{name}; {clip.width}×{clip.height}×{clip.frames}, {steps} + 3 steps, {size['layers']} blocks, random "
        f"weights in {str(dtype()).removeprefix('torch.')}, frozen audio; `full` takes the 8 distilled steps, and the "
        "rows below it are at level none, run once and compared with the first official run. Measured; the ratios "
        "wanted are those of the first stage, of the "
        "second one and of both. A step of each stage runs before; what it takes longer, for compiling and for the "
        "start of the libraries, stands by itself. The peak "
        "is allocated memory with the weights, without upscaler, text encoder and decoder, and that of decoding is "
        "without the decoder's weights. A LoRA on decoded fp8 weights adds at most "
        f"{numbers['LoRA on fp8, share']:.0%} to a step; wanted is at most {LORA_SHARE:.0%}. The guided x0 of a step "
        f"differs by {errors['ours']:.1e} from the same in float32, that of the official code with the rules of its "
        f"version 1.2 by {errors['official']:.1e}.",
    )
    return Table("The published size on a GPU", COLUMNS, tuple(rows), notes, numbers)
