"""Host overhead: a graph in a real ComfyUI server less the engine on the same request.

Both sides have their models and conditions from an earlier run; what is timed is a second queue with a new seed, from
ComfyUI's execution_start to its execution_success, and the same calls of the engine in a process without ComfyUI.
"""

from __future__ import annotations

import os
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

LONG = Clip(49, 512, 512)
STEPS = 40  # of the long run, which then takes about a minute
STRAY = 0.05  # of 255, on average: how several threads share a sum differs from one process to the next
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


def host(folder: Path, small: bool = False, rounds: int = 2) -> Table:
    base, layers = folder / "comfy", made.LAYERS
    models = write_models(base, **(made.SMALL if small else made.NARROW))
    longest = SMALL if small else LONG
    sound = made.sound_file(folder / "sound.wav", longest.frames / longest.fps + 1)
    engine_models = {
        "checkpoint": str(models.checkpoint),
        "gemma": str(models.gemma),
        "upscaler": str(models.upscaler),
        "distilled": str(models.distilled_lora),
    }
    runs = {"trivial": (SMALL, 1, 1 if small else 5)} | ({} if small else {"long": (LONG, STEPS, rounds)})
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runs}
    share = {"OMP_NUM_THREADS": str(threads()), "MKL_NUM_THREADS": str(threads())}
    with patch.dict(os.environ, share), Comfy(base) as server, sides("engine", log=folder / "sides.log") as (side,):
        audio = server.upload(sound)

        def both(clip: Clip, steps: int, seed: int) -> tuple[float, float]:
            prompt = graph.audio_to_video(
                models, audio, prompt=PROMPTS[0], negative=PROMPTS[1], size=(clip.width, clip.height),
                frames=clip.frames, fps=float(clip.fps), steps=steps, seed=seed, stream=True,
                safety={"checker": "off"}, stg_blocks=str(stg_block(layers)), prefix=f"bench-{seed}",
            )  # fmt: skip
            done = server.run(prompt, timeout=1800)
            output = folder / "engine.mp4"
            answer = side(
                "again", models=engine_models, prompts=list(PROMPTS), audio=str(sound), clip=clip.plain, steps=steps,
                seed=seed, output=str(output),
            )  # fmt: skip
            (saved,) = [item for node in done.outputs.values() for item in node.get("images", ())]
            apart = np.abs(pixels(server.path(saved)).astype(int) - pixels(output)).mean()
            if apart > (0 if threads() == 1 else STRAY):
                raise Differs(f"the graph and the engine make different videos: {apart:.3f} of 255 apart on average")
            return execution(done), answer["engine"]

        for name, (clip, steps, times) in runs.items():
            say(f"  {name} runs")
            both(clip, 1, 0)  # makes the conditions of this size
            for seed in range(1, times + 1):
                for spent, value in zip(seconds[name], both(clip, steps, seed), strict=True):
                    spent.append(value)
    rows, numbers = [], {}
    for name, (clip, steps, _) in runs.items():
        over = [a - b for a, b in zip(*seconds[name], strict=True)]
        share = [a / b - 1 for a, b in zip(*seconds[name], strict=True)]
        rows.append(
            (
                f"{name}: {clip.width}×{clip.height}×{clip.frames}, {steps} + 3 steps",
                *(f"{middle(spent)} s" for spent in seconds[name]),
                f"{middle(over)} s",
                f"{middle(share, 1, 100)} %",
                "< 0.3 s" if name == "trivial" else "< 2 %",
            )
        )
        numbers |= {f"{name} seconds": median(over), f"{name} share": median(share)}
    notes = (
        "Graph: a second queue with a new seed, from execution_start to execution_success by ComfyUI's own clock. "
        "Engine: the same calls, from noise to file, with models and conditions ready. The frames are compared.",
    )
    columns = ("run", "graph", "engine", "graph − engine", "share", "wanted")
    return Table("Host overhead", columns, tuple(rows), notes, numbers)
