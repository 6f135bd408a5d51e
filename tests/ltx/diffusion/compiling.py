"""A program for test_compiled.py: a process of its own, which compiles blocks by inductor and keeps their code.

compiling.py CHECKPOINT FOLDER prints JSON: the number of graphs, of those whose code was made, and of those whose code
was found in the folder."""

# ruff: noqa: E402
from __future__ import annotations

import json
import sys
import types
from pathlib import Path

alias = types.ModuleType("a2v")
alias.__path__ = [str(Path(__file__).resolve().parents[3])]
sys.modules["a2v"] = alias

import torch
from a2v.ltx.diffusion.compiled import compile_blocks
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx.diffusion.test_compiled import LARGE, SMALL, sample

model = load_checkpoint(Path(sys.argv[1])).transformer(torch.float32)
compile_blocks(model, folder=Path(sys.argv[2]))
for size in (SMALL, LARGE):
    sample(model, size=size)
counters = torch._dynamo.utils.counters
kept = [counters["inductor"][f"fxgraph_cache_{name}"] for name in ("miss", "hit")]
print(json.dumps([counters["stats"]["unique_graphs"], *kept]))
