"""Makes tests/mini/sample.safetensors anew for the weights in mini/weights, and says what changes the clip how far.

`.venv/bin/python tests/mini/draw_sample.py`. With `away`, it only says how far the clip is that this process makes.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# the pack's name outside ComfyUI, as in tests/conftest.py
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules.setdefault("a2v", alias)

import pytest
from a2v.mini.evaluate import Evaluation
from a2v.tests.mini import sample, test_mutants

# What of the processor may be used: other sums in another order, as on another machine.
MACHINES = {
    "two threads": {"OMP_NUM_THREADS": "2"},
    "no vector instructions": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1"},
}


def main(only_away: bool) -> None:
    if not only_away:
        sample.keep(Evaluation(sample.WEIGHTS))
    sys.stdout.write(f"{sample.away(Evaluation(sample.WEIGHTS)):.4f}\n")
    if only_away:
        return
    for name, variables in MACHINES.items():
        told = subprocess.run(
            [sys.executable, __file__, "away"], env=os.environ | variables, capture_output=True, text=True, check=True
        )
        sys.stdout.write(f"{name}: {told.stdout}")
    for mutant in (test_mutants.late_sound, *test_mutants.SMALL):
        with pytest.MonkeyPatch.context() as patch:
            mutant(patch)
            sys.stdout.write(f"{mutant.__name__}: {sample.away(Evaluation(sample.WEIGHTS)):.4f}\n")


if __name__ == "__main__":
    main(sys.argv[1:] == ["away"])
