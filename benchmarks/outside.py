"""A module that host.py puts among ComfyUI's custom nodes: which share of a run is spent outside the engine.

A thread looks at the stack of the one that executes prompts, a hundred times a second. The innermost frame of this pack
tells whose time it is: below ltx/ the engine's, otherwise the host's. That share is not blurred by how fast the machine
happens to be, as a difference of two long runs is. After each prompt its counts are appended to outside.jsonl.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from threading import Thread
from types import FrameType

import execution
import folder_paths

NODE_CLASS_MAPPINGS: dict[str, type] = {}
PACK = "/ltx-audio-to-video/"
SECONDS = 0.01


def of_engine(frame: FrameType | None) -> bool | None:
    """None: this stack executes no prompt."""
    found = None
    while frame:
        name = frame.f_code.co_filename
        if found is None and PACK in name:
            found = f"{PACK}ltx/" in name
        if frame.f_code.co_name == "execute_async" and name == execution.__file__:
            return bool(found)
        frame = frame.f_back
    return None


def watch(report: Path) -> None:
    counts = {True: 0, False: 0}
    while True:
        time.sleep(SECONDS)
        seen = [side for frame in sys._current_frames().values() if (side := of_engine(frame)) is not None]
        if seen:
            counts[seen[0]] += 1
        elif any(counts.values()):
            with report.open("a") as file:
                file.write(json.dumps({"engine": counts[True], "host": counts[False]}) + "\n")
            counts = {True: 0, False: 0}


Thread(target=watch, args=(Path(folder_paths.base_path, "outside.jsonl"),), daemon=True).start()
