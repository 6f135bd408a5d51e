"""Host overhead: the time of a graph in a real ComfyUI server minus the time of the engine for the same request.

Both sides have their models and conditions from an earlier run. Timed are a second queue with a new seed, from
ComfyUI's execution_start to its execution_success, and the same calls of the engine in a process without ComfyUI. The
share outside the engine is also sampled in the server (outside.py), because the varying speed of the machine hides a
small difference between runs of minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

import av
import numpy as np
from a2v.benchmarks import files as made
from a2v.benchmarks.measure import Table, middle, say, sides, threads
from a2v.benchmarks.peer import SMALL, Differs
from a2v.benchmarks.work import Clip, stg_block
from a2v.tests.host import graph
from a2v.tests.host.comfy import Comfy, Run, write_models
from a2v.tests.tiny import Sizes

LONG = Clip(49, 512, 512)
STEPS = 40  # of the long run, which takes about a minute
STRAY = 0.05  # of 255 on average; several threads split a sum differently in each process
PROMPTS = ("a woman speaks to the camera", "static")


def execution(run: Run) -> float:
    """Seconds from execution_start to execution_success, by the server's own clock."""
    if run.message is not None:
        raise Differs(f"the graph failed: {run.message}")
    at = {name: data["timestamp"] for name, data in run.status["messages"]}
    return (at["execution_success"] - at["execution_start"]) / 1000


def pixels(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@dataclass(frozen=True)
class Case:
    """One row of the table. sizes: of the checkpoint; steps: of the first stage; times: how often each side runs it."""

    name: str
    sizes: dict[str, int]
    clip: Clip
    steps: int
    times: int
    wanted: str

    @property
    def layers(self) -> int:
        return self.sizes.get("layers", Sizes.layers)


def outside(report: Path) -> float:
    """Share of the last prompt that was spent outside the engine."""
    for _ in range(100):  # outside.py writes soon after the prompt's end
        time.sleep(0.05)
        lines = report.read_text().splitlines() if report.exists() else ()
        if lines:
            report.unlink()
            counts = json.loads(lines[-1])
            return counts["host"] / sum(counts.values())
    raise Differs("the run was not sampled")


def spent(case: Case, folder: Path) -> tuple[list[float], list[float], list[float]]:
    """Seconds of the graph and of the engine, in turns, with the same checkpoint, and the share outside the engine."""
    models = write_models(folder / "comfy", **case.sizes)
    nodes = folder / "comfy" / "custom_nodes"
    nodes.mkdir()
    shutil.copy(Path(__file__).with_name("outside.py"), nodes)
    clip = case.clip
    sound = made.sound_file(folder / "sound.wav", clip.frames / clip.fps + 1)
    engine_models = {
        "checkpoint": str(models.checkpoint),
        "gemma": str(models.gemma),
        "upscaler": str(models.upscaler),
        "distilled": str(models.distilled_lora),
    }
    share = {"OMP_NUM_THREADS": str(threads()), "MKL_NUM_THREADS": str(threads())}
    with (
        patch.dict(os.environ, share),
        Comfy(folder / "comfy") as server,
        sides("engine", log=folder / "log") as (side,),
    ):
        audio = server.upload(sound)

        def both(steps: int, seed: int) -> tuple[float, float, float]:
            prompt = graph.audio_to_video(
                models, audio, prompt=PROMPTS[0], negative=PROMPTS[1], size=(clip.width, clip.height),
                frames=clip.frames, fps=float(clip.fps), steps=steps, seed=seed, stream=True,
                safety={"checker": "off"}, stg_blocks=str(stg_block(case.layers)), prefix=f"bench-{seed}",
            )  # fmt: skip
            done = server.run(prompt, timeout=1800)
            share = outside(folder / "comfy" / "outside.jsonl")
            output = folder / "engine.mp4"
            answer = side(
                "again", models=engine_models, prompts=list(PROMPTS), audio=str(sound), clip=clip.plain, steps=steps,
                seed=seed, output=str(output),
            )  # fmt: skip
            (saved,) = [item for node in done.outputs.values() for item in node.get("images", ())]
            difference = np.abs(pixels(server.path(saved)).astype(int) - pixels(output)).mean()
            if difference > (0 if threads() == 1 else STRAY):
                raise Differs(f"the graph and the engine make different videos: by {difference:.3f} of 255 on average")
            return execution(done), answer["engine"], share

        both(1, 0)  # makes the conditions of this size
        rounds = [both(case.steps, seed) for seed in range(1, case.times + 1)]
    graphs, engines, shares = zip(*rounds, strict=True)
    return list(graphs), list(engines), list(shares)


def host(folder: Path, small: bool = False, rounds: int = 2) -> Table:
    wide = made.SMALL if small else made.NARROW
    cases = [
        Case("trivial", {}, SMALL, 1, 1 if small else 5, "< 0.3 s"),
        Case("trivial, 48 blocks", wide, SMALL, 1, 1 if small else 5, ""),
    ]
    if not small:
        cases.append(Case("long, 48 blocks", wide, LONG, STEPS, rounds, "< 2 %"))
    rows, numbers = [], {}
    for case in cases:
        say(f"  {case.name}")
        clip, name = case.clip, case.name
        graph_seconds, engine_seconds, shares = spent(case, folder / name.replace(" ", "-"))
        pairs = list(zip(graph_seconds, engine_seconds, strict=True))
        over = [a - b for a, b in pairs]
        rows.append(
            (
                f"{name}: {clip.width}×{clip.height}×{clip.frames}, {case.steps} + 3 steps",
                f"{middle(graph_seconds)} s",
                f"{middle(engine_seconds)} s",
                f"{middle(over)} s",
                f"{middle(shares, 1, 100)} %",
                case.wanted,
            )
        )
        numbers |= {f"{name} seconds": median(over), f"{name} share": median(shares)}
    notes = (
        "Graph: the time of a second queue with a new seed, from execution_start to execution_success by ComfyUI's own "
        "clock. Engine: the time of the same calls, from noise to file, with models and conditions ready. The frames "
        "of both are compared.",
        "Outside the engine: the share of samples of the server's stack, taken a hundred times per second. Unlike the "
        "difference of long runs, this share does not depend on the changing speed of the machine.",
        "With 48 blocks most of the overhead is ComfyUI's own patching, weight by weight, for the two LoRA strengths "
        "of a run; it does not grow with the clip.",
    )
    columns = ("run", "graph", "engine", "graph − engine", "outside the engine", "wanted")
    wanted = [(numbers["trivial seconds"],), *([] if small else [(100 * numbers["long, 48 blocks share"],)])]
    return Table("Host overhead", columns, tuple(rows), notes, numbers).judged(wanted)
