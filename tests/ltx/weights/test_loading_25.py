"""Each stage of LTX-2.5 reads its own tensors, once: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from a2v.ltx.weights import checkpoint as reader
from a2v.tests.tiny25 import Decoder, Tiny25Files, write_tiny25

pytest.importorskip("transformers", minversion="5.10.1")
STAGES = ("text", "transformer", "video_encoder", "video_decoder", "audio_encoder")
LOAD = """
import json, sys, types
from pathlib import Path
alias = types.ModuleType("a2v")
alias.__path__ = [sys.argv[1]]
sys.modules["a2v"] = alias
import torch
from a2v.ltx.prompt.gemma import load_gemma
from a2v.ltx.weights.checkpoint import load_checkpoint

torch.set_num_threads(1)
transformer, encoder, video_vae, audio_vae = map(Path, sys.argv[2:6])

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

def opened():
    return load_checkpoint(transformer, video_vae=video_vae, audio_vae=audio_vae, text_encoder=encoder)

def text():
    return [load_gemma(encoder).model, opened().connectors()]

stages = {name: (lambda name=name: [getattr(opened(), name)()]) for name in sys.argv[6:]}
text(), [load() for load in stages.values()]  # what the libraries take for themselves
for load in (text, *stages.values()):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    parts = load()
    idle = status("VmHWM") - before
    tensors = {p.data_ptr(): p for part in parts for p in (*part.parameters(), *part.buffers())}.values()
    total = sum(float(p.view(torch.uint8).reshape(-1)[::512].sum()) for p in tensors if p.dim())
    print(json.dumps([idle, status("VmHWM") - before, sum(p.nbytes for p in tensors), len(tensors)]))
    del parts, tensors
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Tiny25Files:
    """Each stage some ten MB at least."""
    decoder = Decoder(channels=(512, 256, 128, 128, 128), depths=(4, 2, 1, 1, 2))
    sizes = {"layers": 3, "heads": 8, "head_dim": 64, "gemma_width": 512, "vae_width": 48}
    return write_tiny25(tmp_path_factory.mktemp("large"), decoder=decoder, **sizes)


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_a_stage_reads_its_own_tensors_once(large: Tiny25Files) -> None:
    files = (large.transformer, large.text_encoder, large.diffusion_vae, large.audio_vae)
    root = Path(reader.__file__).resolve().parents[2]
    command = [sys.executable, "-c", LOAD, str(root), *map(str, files), *STAGES[1:]]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured = dict(zip(STAGES, map(json.loads, output.splitlines()), strict=True))
    slack = 4e6  # of modules
    for stage, (idle, peak, own, tensors) in measured.items():
        around = 2**16 * tensors  # the system maps 64 KiB where one byte of a small tensor is read
        assert idle < around + slack, f"{stage}: {idle} of {own} bytes before any weight is read"
        assert 0.5 * own < peak < 1.15 * own + slack, f"{stage}: {peak} of {own} bytes"
    # The two halves of the VAE's file, and the projection of the text encoder's, are each read where they are needed.
    whole = large.diffusion_vae.stat().st_size
    parts = [measured[stage][2] for stage in ("video_encoder", "video_decoder")]
    assert 0.95 * whole < sum(parts) < 1.05 * whole and max(parts) < 0.8 * whole
