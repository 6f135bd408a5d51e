"""The process of a side: it reads a line with [function, arguments], calls that function of the module that the command
line names, and answers with one line of JSON.

`measure.Side` starts it. The output of a function goes to standard error.
"""

# ruff: noqa: E402
from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
import types
from pathlib import Path

sys.path.pop(0)  # this folder, because its files are imported only through the alias
# the pack's name outside ComfyUI, as in tests/conftest.py
alias = types.ModuleType("a2v")
alias.__path__ = [str(Path(__file__).resolve().parent.parent)]
sys.modules.setdefault("a2v", alias)

import torch
from a2v.benchmarks.measure import resident


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    module = importlib.import_module(f"a2v.benchmarks.{sys.argv[1]}")
    imported = resident("VmRSS")
    for line in sys.stdin:
        function, arguments = json.loads(line)
        try:
            forget_peak()
            start, cpu = time.perf_counter(), time.process_time()
            result = getattr(module, function)(**arguments) or {}
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            after = {"peak": resident("VmHWM") - imported, "grown": resident("VmRSS") - imported}
            answer = {"seconds": seconds, "cpu": cpu, **after, **result}
        except Exception as error:  # the other process reports it, whatever it is
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
