"""A program for test_decoding.py: it decodes by the kernel in Triton's interpreter, which its environment asks for.

It prints one JSON line for each case: [name, how many values differ from the eager code's, the largest relative error].
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

assert os.environ["TRITON_INTERPRET"] == "1"
ROOT = Path(__file__).resolve().parents[3]
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules["a2v"] = alias

from a2v.tests.ltx.weights.codings import cases

for name, eager, decoded in cases("cpu"):
    error = ((eager - decoded).abs() / eager.abs().clamp_min(1e-30)).nan_to_num().max()
    print(json.dumps([name, int((eager.nan_to_num(123) != decoded.nan_to_num(123)).sum()), float(error)]), flush=True)
