"""A module that host.py puts into ComfyUI's custom nodes. It measures which share of a run is spent outside the engine.

A thread samples the stack of the thread that executes prompts, a hundred times per second. If the innermost frame of
this pack is below ltx/, the time counts for the engine, otherwise for the host. What torch's layer computes when
nodes/fetching.py calls it is the engine's, too. Unlike the difference of two long runs, this share does not depend on
the speed of the machine. After each prompt the counts are appended to outside.jsonl.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from threading import Thread
from types import FrameType

import execution
import folder_paths

NODE_CLASS_MAPPINGS: dict[str, type] = {}
PACK = "/custom_nodes/ltx-audio-to-video/"
ENGINE, NODES = f"{PACK}ltx/", f"{PACK}nodes/"
FETCHING = f"{NODES}fetching.py"
LAYERS = "/torch/nn/modules/"
SECONDS = 0.01


def of_engine(frame: FrameType | None) -> bool | None:
    """Whether the stack is inside the engine; None if it executes no prompt."""
    found, computes = None, False
    while frame:
        name = frame.f_code.co_filename.replace(os.sep, "/")
        if found is None and (ENGINE in name or NODES in name):
            found = ENGINE in name or (computes and FETCHING in name)
        computes = computes or LAYERS in name
        if frame.f_code.co_name == "execute_async" and frame.f_code.co_filename == execution.__file__:
            return bool(found)
        frame = frame.f_back
    return None


def watch(report: Path) -> None:
    counts = {True: 0, False: 0}
    while True:
        time.sleep(SECONDS)
        found = [side for frame in sys._current_frames().values() if (side := of_engine(frame)) is not None]
        if found:
            counts[found[0]] += 1
        elif any(counts.values()):
            with report.open("a") as file:
                file.write(json.dumps({"engine": counts[True], "host": counts[False]}) + "\n")
            counts = {True: 0, False: 0}


Thread(target=watch, args=(Path(folder_paths.base_path, "outside.jsonl"),), daemon=True).start()
