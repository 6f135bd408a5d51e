"""Against ltx-pipelines 1.0.0: a guided step and the whole job, time and memory, block runs counted, numbers compared.

`peer` is one size; `growth` is how a step's cost follows tokens and frames.
"""

from __future__ import annotations

from pathlib import Path

from a2v.benchmarks import files as made
from a2v.benchmarks.measure import MISSING, Ratio, Side, Table, middle, say, sides
from a2v.benchmarks.work import Clip, request
from safetensors.torch import load_file

STEP = Clip(121, 256, 256)  # 1024 video tokens
WHOLE = Clip(49, 448, 448)  # 343 tokens, then 1372
STEPS = 8
SIZES = (Clip(9, 256, 256), Clip(49, 256, 256), Clip(121, 256, 256), Clip(241, 256, 256), Clip(121, 384, 384))
SMALL = Clip(9, 128, 128)
EXACT = 1e-5  # relative L2 in float32: algorithms that are equal
MB = 1e-6


class Differs(AssertionError):
    """The sides compute different things, so that their times say nothing."""


def off(one: Path, other: Path, names: tuple[str, str]) -> float:
    """Relative L2 distance of a tensor of one file from another's. Raises Differs: not finite, or other shapes."""
    x, expected = load_file(one)[names[0]].double(), load_file(other)[names[1]].double()
    if x.shape != expected.shape or not (x.isfinite().all() and expected.isfinite().all()):
        raise Differs(f"{names[0]}: {list(x.shape)} here, {list(expected.shape)} there, or not all finite")
    return float((x - expected).norm() / expected.norm())


def peer(folder: Path, small: bool = False, rounds: int = 3, again: int = 2) -> Table:
    """rounds: fresh pairs of processes; again: pairs of steps in each, after the first, which memory is read off."""
    rounds, again = (1, 1) if small else (rounds, again)
    files, layers = made.models(folder, small), made.LAYERS
    clip, whole, steps = (SMALL, SMALL, 2) if small else (STEP, WHOLE, STEPS)
    log, checkpoint = folder / "sides.log", str(files.checkpoint)
    audio = made.sound_file(folder / "sound.wav", whole.frames / whole.fps + 1)
    jobs = [made.job(files, audio, folder / f"{name}.mp4") for name in ("ours", "official")]
    step = {"checkpoint": checkpoint, "clip": clip.plain, "steps": 1}
    texts = str(folder / "ours whole.safetensors")
    common = {"files": jobs[1], "clip": whole.plain, "texts": texts, "layers": layers}

    def compare(us: Side, them: Side) -> tuple[list[float], float, float]:
        """Block runs of a guided step on each side; relative errors of a step and of the whole job."""
        say("  the same numbers?")
        for side, more in ((us, {}), (them, {"later": True})):
            side("step", **step, save=str(folder / f"{side.module} step.safetensors"), **more)
        values = request(whole, 2, distill_lora_second_pass_scale=0.0)
        kept = [f"prompt/{i}/{stream}_enc" for i in (0, 1) for stream in ("video", "audio")]
        us("whole", files=jobs[0], values=values, layers=layers, save=texts, names=[*kept, "final/video_latent"])
        there = folder / "official whole.safetensors"
        them("whole", **common, steps=2, lora=0.0, later=True, save=str(there))
        runs = [side("step", **step, count=True)["runs"] for side in (us, them)]
        one = off(folder / "ours step.safetensors", folder / "official step.safetensors", ("latent", "latent"))
        return runs, one, off(Path(texts), there, ("final/video_latent", "latent"))

    step_time, step_cpu, step_memory = ([], []), ([], []), ([], [])
    for number in range(rounds):
        say(f"  steps, processes {number + 1} of {rounds}")
        with sides("ours", "official", log=log) as pair:
            for side, memory in zip(pair, step_memory, strict=True):
                memory.append(side("step", **step)["peak"])
            for _ in range(again):
                for side, times, cpu in zip(pair, step_time, step_cpu, strict=True):
                    answer = side("step", **step)
                    times.append(answer["step"])
                    cpu.append(answer["cpu"])
            if number == rounds - 1:
                counted, step_off, whole_off = compare(*pair)
    for what, error in (("step", step_off), ("whole", whole_off)):
        if not error < EXACT:
            raise Differs(f"the {what}'s latent is {error:.1e} off the official one's, more than {EXACT:.0e}")

    whole_time, whole_memory = ([], []), ([], [])
    # What is imported at the first use comes with a job of seconds, before the one that is measured.
    first = {"ours": {"values": request(SMALL, 1)}, "official": {"clip": SMALL.plain, "steps": 1}}
    for number in range(rounds):
        say(f"  whole jobs, processes {number + 1} of {rounds}")
        for which, (module, call) in enumerate(
            (
                ("ours", {"files": jobs[0], "values": request(whole, steps), "layers": layers}),
                ("official", {**common, "steps": steps}),
            )
        ):
            with Side(module, log=log) as side:
                side("whole", **{**call, **first[module]})
                answer = side("whole", **call)
            whole_time[which].append(answer["run"])
            whole_memory[which].append(answer["peak"])
            if (answer["frames"], answer["width"], answer["height"]) != (whole.frames, whole.width, whole.height):
                raise Differs(f"{module}: the file is not {whole}")

    def row(what: str, values: tuple[list[float], list[float]], unit: str, factor: float, wanted: str) -> tuple:
        digits = 2 if unit == "s" else 0
        shown = [f"{middle(side, digits, factor)} {unit}" for side in values]
        return (what, *shown, str(Ratio(*values)), wanted)

    tokens, full = f"{clip.tokens} tokens", f"{whole.width}×{whole.height}×{whole.frames}, {steps} + 3 steps"
    rows = (
        row(f"a guided step of 4 passes, {tokens}: time", step_time, "s", 1, "≤ 0.80"),
        row("… processor time", step_cpu, "s", 1, MISSING),
        row("… peak memory", step_memory, "MB", MB, "≤ 0.90"),
        row(f"the whole job, {full}: time", whole_time, "s", 1, "≤ 0.80"),
        row("… peak memory", whole_memory, "MB", MB, "≤ 0.90"),
        ("block runs a guided step", *(f"{n:g}" for n in counted), f"{counted[0] / counted[1]:.3f}", "≤ 0.854"),
        ("latent after a guided step: relative error", f"{step_off:.1e}", MISSING, MISSING, f"≤ {EXACT:.0e}"),
        ("final latent of the whole job: relative error", f"{whole_off:.1e}", MISSING, MISSING, f"≤ {EXACT:.0e}"),
    )
    notes = (
        f"One checkpoint of {layers} narrow blocks with random weights, float32; {rounds} fresh processes a side, "
        f"{rounds * again} pairs of steps. A step's time is without loading, its memory with it; the whole job goes "
        "from files to an .mp4 (LTX2 schedule, guidance in every step, distilled LoRA in the second pass). The "
        "official side is handed the prompts' contexts for nothing, ours reads and runs the text encoder. A block run "
        "is one call of a transformer block on one batch row. Errors are against the official code with the rules of "
        "its version 1.2, without a LoRA: its own merging rounds to bfloat16.",
        "Blocks this narrow leave room in the processor's caches, so that ours runs the passes of a step as one batch: "
        "a tenth faster, and up to 32 MB more, which is much only beside weights of 45 MB.",
    )
    numbers = {
        "step time": Ratio(*step_time).median,
        "step processor time": Ratio(*step_cpu).median,
        "step memory": Ratio(*step_memory).median,
        "whole time": Ratio(*whole_time).median,
        "whole memory": Ratio(*whole_memory).median,
        "our block runs": counted[0],
        "official block runs": counted[1],
        "step error": step_off,
        "whole error": whole_off,
    }
    columns = ("what", "this pack", "ltx-pipelines 1.0.0", "ratio", "wanted")
    return Table("Against ltx-pipelines 1.0.0, on a CPU", columns, rows, notes, numbers)


def growth(folder: Path, small: bool = False, rounds: int = 2) -> Table:
    clips = (SMALL, Clip(17, 128, 128)) if small else SIZES
    checkpoint = str(made.models(folder, small).checkpoint)
    times = {clip: ([], []) for clip in clips}
    memory = {clip: ([], []) for clip in clips}
    with sides("ours", "official", log=folder / "sides.log") as pair:
        loaded = [side("load", checkpoint=checkpoint)["grown"] for side in pair]
        for number in range(1 if small else rounds):
            say(f"  sizes, round {number + 1}")
            for clip in clips:
                for side, spent, taken in zip(pair, times[clip], memory[clip], strict=True):
                    answer = side("step", checkpoint=checkpoint, clip=clip.plain, steps=1)
                    spent.append(answer["step"])
                    taken.append(answer["peak"])
    rows, numbers = [], {}
    for clip in clips:
        fastest = [min(spent) for spent in times[clip]]
        above = [max(taken[0] - base, 0) for taken, base in zip(memory[clip], loaded, strict=True)]
        rows.append(
            (
                f"{clip.width}×{clip.height}×{clip.frames}",
                str(clip.tokens),
                *(f"{1e3 * t:.0f}" for t in fastest),
                *(f"{1e3 * t / clip.tokens:.2f}" for t in fastest),
                str(Ratio(*times[clip])),
                *(f"{MB * a:.0f}" for a in above),
            )
        )
        numbers[f"{clip.tokens} tokens"] = Ratio(*times[clip]).median
    columns = ("first pass", "tokens", "ms a step: ours", "official", "ms a token: ours", "official", "ratio",
               "MB above the weights: ours", "official")  # fmt: skip
    notes = (
        "A guided step of 4 passes at each size, the fastest run; the first size pays for the start of both sides.",
    )
    return Table("How a guided step grows with frames and size", columns, tuple(rows), notes, numbers)
