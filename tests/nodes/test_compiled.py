"""Compiled blocks under ComfyUI's memory management: one piece of code for both stages, kept in the user folder."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import torch
from a2v.ltx.diffusion.compiled import PLACE
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.lora import load_lora, match
from a2v.nodes import memory
from a2v.tests.ltx.diffusion.test_compiled import LARGE, SMALL, sample
from a2v.tests.ltx.goldens import relative
from a2v.tests.tiny import write_tiny
from torch import Tensor, nn


@pytest.mark.usefixtures("inference")
@pytest.mark.timeout(600)
@pytest.mark.soak
def test_both_stages_take_one_graph(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's layers fetch weights and a LoRA's branches within the graph, which has no break, at any strength."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    monkeypatch.delenv(PLACE, raising=False)
    files = write_tiny(tmp_path, seed=3, layers=1, connector_layers=1)
    plain = memory.hold_transformer(load_checkpoint(files.checkpoint).transformer, "fp8")
    fit = match(load_lora(files.distilled_lora), plain.module, optional=True)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()

    def stage(model: memory.Model, size: tuple[int, int, int]) -> Tensor:
        (module,) = memory.use(model)
        model.compute_so()
        return sample(module, size=size)

    stages = (0.3, SMALL), (0.6, LARGE)
    compiled = [stage(replace(plain, compiled=True).with_lora(fit, strength), size) for strength, size in stages]
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert Path(os.environ[PLACE]) == base / "user" / memory.CODE
    for found, (strength, size) in zip(compiled, stages, strict=True):
        assert relative(found, stage(plain.with_lora(fit, strength), size)) < 1e-6
