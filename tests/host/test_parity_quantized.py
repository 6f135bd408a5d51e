"""Quantized weights with a LoRA at one strength for each stage: the graph's frames are the command's, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from a2v.tests import layouts
from a2v.tests.host import graph
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.command import REQUEST, command_files, run_command
from a2v.tests.tiny import TinyFiles, write_gemma_file, write_tiny
from PIL import Image

PARTS = ("video_vae", "audio_vae", "connectors")  # what a file of the transformer leaves out
SIZE, FRAMES, STEPS, SEED = (128, 128), 9, 2, 5


@dataclass(frozen=True)
class Case:
    """checkpoint: its file, beside the plain one. fp8: whether the loaders round. gemma: its file, else the folder."""

    checkpoint: str = "wide.safetensors"
    fp8: bool = False
    gemma: str = ""


CASES = {
    "fp8, and Gemma in NVFP4": Case("wide-rows.safetensors", gemma="gemma-fp4.safetensors"),
    "GGUF Q8_0": Case("wide-Q8_0.gguf"),
    "fp8 with one scale": Case("wide-official.safetensors"),
    "fp8 made by the loaders": Case(fp8=True),
    "GGUF Q4_K": Case("wide-Q4_K.gguf"),
}


@pytest.fixture(scope="module")
def wide(comfy_base: Path, models: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyFiles]:
    """The session's files, with a transformer of 256 values a row, of which a block of GGUF's Q4_K takes all, and its
    LoRA. Beside it are the quantized files of CASES, in the server's folders while these tests run."""
    written = write_tiny(tmp_path_factory.mktemp("wide"), heads=8, head_dim=32, vae_width=4)
    folder = comfy_base / "models"
    plain, alone = folder / "checkpoints" / "wide.safetensors", folder / "diffusion_models"
    alone.mkdir(exist_ok=True)
    lora, gemma = folder / "loras" / "wide-distilled.safetensors", folder / "text_encoders" / "gemma-fp4.safetensors"
    written.checkpoint.rename(plain)
    written.distilled_lora.rename(lora)
    write_gemma_file(models.gemma, gemma, "fp4_mixed")
    for style in ("official", "rows"):
        layouts.write_fp8(plain, plain.with_name(f"wide-{style}.safetensors"), style)
    for kind in ("Q8_0", "Q4_K"):
        layouts.write_gguf(plain, alone / f"wide-{kind}.gguf", kind)
    yield replace(models, checkpoint=plain, distilled_lora=lora)
    for path in (*plain.parent.glob("wide*"), *alone.glob("wide*"), lora, gemma):
        path.unlink()


@pytest.mark.soak  # tests/nodes/test_memory.py and test_parity.py have the halves of it
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_graph_and_command_give_the_same_frames(case: Case, comfy: Comfy, wide: TinyFiles, tmp_path: Path) -> None:
    plain, gguf = wide.checkpoint, case.checkpoint.endswith(".gguf")
    folder = comfy.base / "models" / "diffusion_models" if gguf else plain.parent
    files = replace(wide, checkpoint=folder / case.checkpoint)
    if case.gemma:
        files = replace(files, gemma=files.gemma.with_name(case.gemma))
    taken = command_files(files)
    prompt = graph.audio_to_video(
        files, comfy.upload(taken["audio"]), prompt=REQUEST["prompt"], negative=REQUEST["negative_prompt"], size=SIZE,
        seed=SEED, steps=STEPS, frames=FRAMES, dtype="fp8" if case.fp8 else "float32", cfg=3.0, stg=1.0, rescale=0.85,
        modality=3.0, scheduler="beta", gradient_estimation_gamma=0.0,
    )  # fmt: skip
    prompt["upscaler"]["inputs"]["dtype"] = "float32"
    if gguf:
        prompt["model"]["inputs"] |= dict.fromkeys(PARTS, plain.name)
        taken |= {part.replace("_", "-"): plain for part in PARTS}
    images = {"images": ["decode", 0], "filename_prefix": "quantized"}
    prompt["frames as png"] = {"class_type": "SaveImage", "inputs": images}
    done = comfy.run(prompt)
    assert done.error is None, done.message
    drawn = [np.asarray(Image.open(comfy.path(r))) for r in done.outputs["frames as png"]["images"]]

    request = {
        "seed": SEED, "video_size": dict(zip(("width", "height"), SIZE, strict=True)), "num_frames": FRAMES,
        "num_inference_steps": STEPS, "fps": 24.0, "scheduler": "beta", "video_cfg_scale": 3.0, "video_stg_scale": 1.0,
        "video_rescaling_scale": 0.85, "video_modality_scale": 3.0, "gradient_estimation_gamma": 0.0,
    }  # fmt: skip
    expected, _ = run_command(tmp_path, request, taken, flags=["--fp8"] * case.fp8)
    assert np.array_equal(np.stack(drawn), expected)
