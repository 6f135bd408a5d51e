"""A film with hard cuts on two machines against one: a head and a worker of a real Ray cluster, and a server alone.

All three are ComfyUIs on this machine, with one thread each, so it needs two idle cores.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import fal_client
from a2v.benchmarks.measure import Ratio, Table, middle, say
from a2v.benchmarks.peer import Differs
from a2v.ltx.request import PARAMETERS
from a2v.tests.host.api import APP, SMALL, SPEECH, client_of, environment, write_published
from a2v.tests.host.cluster import TOKEN, ray_start
from a2v.tests.host.comfy import Comfy

WIDE = {"layers": 8, "heads": 8, "head_dim": 64}
"""With these sizes the transformer takes most of the time, as the published model does."""
SECTIONS, WANTED, READY_SECONDS = 4, 0.65, 120
FEWEST = int(PARAMETERS["num_inference_steps"].minimum or 1)
FILM: dict[str, Any] = {**SMALL, "windows": {"frames": 33, "overlap": 2}}


@contextmanager
def servers(folder: Path, **sizes: int) -> Iterator[tuple[Comfy, Comfy]]:
    """A server alone, and a head with a worker."""
    bases = [folder / name for name in ("alone", "head", "worker")]
    for base in bases:
        base.mkdir()
        write_published(base, **sizes)
    with ExitStack() as stack, environment(OMP_NUM_THREADS="1"):
        alone = stack.enter_context(Comfy(bases[0]))
        with environment(LTX_A2V_WORKER="1"):
            worker = stack.enter_context(Comfy(bases[2]))
        node = stack.enter_context(ray_start({**TOKEN, "LTX_A2V_COMFYUI": str(worker.port)}))
        with environment(**TOKEN, LTX_A2V_RAY_ADDRESS=node.address):
            head = stack.enter_context(Comfy(bases[1]))
        until = time.monotonic() + READY_SECONDS
        while "is ready" not in head.log:
            if time.monotonic() > until:
                raise Differs("the worker did not become ready")
            time.sleep(0.2)
        yield alone, head


def seconds(server: Comfy, seed: int, frames: int, steps: int) -> tuple[float, int]:
    """How long a film takes from its submission to its result, and how many parts the worker made."""
    part = frames / SECTIONS / 24
    timeline = "\n".join(f"0:{part * n:06.3f} {'[cut] ' if n else ''}scene {n}" for n in range(SECTIONS))
    asked = {**FILM, "num_frames": frames, "timeline": timeline, "seed": seed, "num_inference_steps": steps}
    with client_of(server) as fal:
        client = fal.SyncClient(key="any")
        start = time.perf_counter()
        handle = client.submit(APP, {**asked, "audio_url": fal_client.encode_file(SPEECH)})
        handle.get()
        took = time.perf_counter() - start
        lines = [line["message"] for line in handle.status(with_logs=True).logs or ()]
    return took, sum("sent to" in line for line in lines)


def machines(folder: Path, small: bool = False, rounds: int = 3) -> Table | None:
    if importlib.util.find_spec("ray") is None:
        return None
    size = {"frames": 65, "steps": FEWEST} if small else {"frames": 129, "steps": 30}
    one: list[float] = []
    two: list[float] = []
    parts = []
    with servers(folder, **({} if small else WIDE)) as (alone, head):
        for server in (alone, head):  # the models are loaded, on the worker, too
            seconds(server, 0, 65, FEWEST)
        for number in range(1, 2 if small else rounds + 1):
            say(f"  machines, round {number}")
            one.append(seconds(alone, number, **size)[0])
            took, sent = seconds(head, number, **size)
            two.append(took)
            parts.append(sent)
    if not any(parts):
        raise Differs("the worker made no part of the film")
    ratio = Ratio(two, one)
    rows = (
        ("one machine, seconds", middle(one), ""),
        ("a head and a worker, seconds", middle(two), ""),
        ("two machines / one", f"{ratio}", f"< {WANTED}"),
        ("parts that the worker made, of 4", " ".join(map(str, parts)), ""),
    )
    notes = (
        f"A film of {size['frames']} frames in {SECTIONS} sections of equal length behind hard cuts, over HTTP from "
        "its submission to its result. Each ComfyUI has one thread of this machine's cores. What is not shared is the "
        "rest: prompts are encoded on both, and the head joins and decodes.",
    )
    numbers = {"two machines / one": ratio.median, "parts of the worker": float(sum(parts))}
    table = Table("A film on two machines", ("what", "found", "wanted"), rows, notes, numbers)
    return table.judged([(ratio.median,)])
