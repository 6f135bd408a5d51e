"""The golden files in every way that makes the models fit into memory, each with the error that it earns.

Where it is a matter of where things lie (split files, offloaded blocks), the numbers are the resident run's to the bit.
What rounds has a bound half as large again as what was measured on the three files, and must be off by a tenth of that
at least: a mode that does nothing would pass otherwise. torch.compile is another test's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx import pipeline
from a2v.ltx.diffusion import sample as engine
from a2v.ltx.diffusion.block import Block
from a2v.ltx.job import Compute, Files
from a2v.ltx.memory import offload
from a2v.ltx.request import parse
from a2v.ltx.trace import Recorder
from a2v.tests import layouts
from a2v.tests.ltx.loaded import loaded_once
from a2v.tests.nodes.devices import DEVICE, Elsewhere, simulated
from torch import Tensor, nn

from .goldens import LIMIT, RUNS, TIGHT, Golden, relative, worst

VIDEO = r"s[12]/step\d+/((in|x0|out)_video|call\d/.*)|up/.*|final/video_latent"
TEXT = r"prompt/[01]/(video|audio)_enc"
MEDIA = r"audio/latent|cond/\d/latent"
EXACT = Compute(torch.float32)


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    with loaded_once():
        yield


def as_it_is(files: Files, folder: Path) -> Files:
    return files


def in_parts(files: Files, folder: Path) -> Files:
    parts = layouts.write_split(files.checkpoint, folder)
    named = {part: parts[part] for part in ("video_vae", "audio_vae", "connectors")}
    return replace(files, checkpoint=parts["transformer"], **named)


def fp8_file(files: Files, folder: Path) -> Files:
    path = folder / "ltx-2.3-22b-dev-fp8.safetensors"
    layouts.write_fp8(files.checkpoint, path, "official")
    return replace(files, checkpoint=path)


def gguf_file(files: Files, folder: Path) -> Files:
    path = folder / "LTX-2.3-dev-Q8_0.gguf"
    layouts.write_gguf(files.checkpoint, path, "Q8_0")
    return replace(in_parts(files, folder), checkpoint=path)


@dataclass(frozen=True)
class Mode:
    """Bounds on the relative error of every step's video and the latents, of the prompts' contexts, and of what is
    encoded from media; `frames`: RMS error of the frames, in levels of 255, whose fractions are cut off."""

    video: float
    frames: float
    text: float = TIGHT
    media: float = LIMIT
    write: Callable[[Files, Path], Files] = as_it_is
    compute: Compute = EXACT


BF16 = Compute(torch.bfloat16)
FP8 = Compute(torch.float32, fp8=True)
MODES = {
    # Each layer rounds to 8 bits, and guidance multiplies what its passes differ by. Measured: 0.044, 0.0049, 0.0071.
    "bfloat16": Mode(0.066, 1.5, text=7.5e-3, media=1.1e-2, compute=BF16),
    # 4 bits of the weights of the blocks and of Gemma, one scale a layer: 2.7 % of each. Measured: 0.062, 0.0082.
    "fp8": Mode(0.093, 3.2, text=1.25e-2, compute=FP8),
    # Both errors, which add up as squares. Measured: 0.071, 0.0095, 0.0071.
    "fp8 in bfloat16": Mode(0.106, 3.5, text=1.45e-2, media=1.1e-2, compute=Compute(torch.bfloat16, fp8=True)),
    # As fp8, but Gemma and the first block are as they were. Measured: 0.056.
    "official fp8 file": Mode(0.085, 2.8, write=fp8_file),
    # 8 bits and a scale for 32 weights: 0.5 % of each. Measured: 0.025.
    "Q8_0 file": Mode(0.037, 1.5, write=gguf_file),
}


def run(golden: Golden, folder: Path, files: Files | None = None, compute: Compute = EXACT, **more: Any) -> list[Block]:
    """The headless job in float32 on the CPU, or as told; its trace into `golden`. Returns the blocks in which the
    passes of a step ran as one batch."""
    recorder, batched = Recorder(), []
    enter = Block.forward

    def watched(block: Block, video: Tensor, *inputs: Any) -> Any:
        if len(video) > 1:
            batched.append(block)
        return enter(block, video, *inputs)

    files, stg_blocks = files or golden.files(folder / "out.mp4"), tuple(golden.info["stg_blocks"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "forward", watched)
        pipeline.run(files, parse(golden.request), compute, stg_blocks=stg_blocks, trace=recorder, **more)
    golden.trace = recorder.tensors
    return batched


def rms(golden: Golden) -> float:
    return (golden.trace["final/frames_u8"].float() - golden.frames.float()).square().mean().sqrt().item()


@pytest.fixture(scope="module")
def resident(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Mapping[str, Tensor]]:
    """The trace of each golden file's job in float32 with everything in memory, which test_goldens.py compares."""
    traces: dict[str, Mapping[str, Tensor]] = {}

    def trace(name: str) -> Mapping[str, Tensor]:
        if name not in traces:
            golden = Golden(oracle, name)
            assert run(golden, tmp_path_factory.mktemp(name))  # the passes as a batch
            traces[name] = golden.trace
        return traces[name]

    return trace


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(  # each mode rounds alike in all
    "name", [pytest.param(name, marks=[pytest.mark.soak] * (name != RUNS[0])) for name in RUNS]
)
@pytest.mark.parametrize(  # without bfloat16 in the processor, half a minute each
    "mode", [pytest.param(mode, marks=[pytest.mark.soak] * ("bfloat16" in mode)) for mode in MODES]
)
def test_what_rounds_stays_within_its_bound(oracle: Path, tmp_path: Path, name: str, mode: str) -> None:
    golden, bound = Golden(oracle, name), MODES[mode]
    files = bound.write(golden.files(tmp_path / "out.mp4"), tmp_path)
    run(golden, tmp_path, files, bound.compute)
    differences = golden.differences(VIDEO)
    assert bound.video / 10 < worst(differences) < bound.video, differences
    assert worst(golden.differences(TEXT)) < bound.text
    assert worst(golden.differences(MEDIA)) < bound.media
    assert rms(golden) < bound.frames


@pytest.mark.soak
def test_split_files_give_the_same(oracle: Path, tmp_path: Path, resident: Callable) -> None:
    golden = Golden(oracle, RUNS[0])
    run(golden, tmp_path, in_parts(golden.files(tmp_path / "out.mp4"), tmp_path))
    assert_same(golden.trace, resident(RUNS[0]))


def test_offloaded_blocks_give_the_same(oracle: Path, tmp_path: Path, resident: Callable) -> None:
    """On a simulated device, where two LoRA strengths, two stages, images and the text encoder take their turns."""
    golden, seen, begin = Golden(oracle, RUNS[0]), [], offload.Offload._enter

    def watched(offloaded: offload.Offload, number: int, block: nn.Module, inputs: Any) -> None:
        begin(offloaded, number, block, inputs)
        seen.append((block, isinstance(next(block.parameters()), Elsewhere)))

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(offload.Offload, "_enter", watched)
        # The estimate rehearses on torch's own meta device: the simulated one takes its place after it.
        here = Compute(torch.float32, DEVICE, offload="blocks")
        run(golden, tmp_path, None, here, announce=lambda forecast: stack.enter_context(simulated()))
    blocks = {block for block, _ in seen}
    assert {type(block).__name__ for block in blocks} == {"Block", "Gemma3DecoderLayer"}
    assert all(there for _, there in seen)
    assert not any(isinstance(parameter, Elsewhere) for block in blocks for parameter in block.parameters())
    assert_same(golden.trace, resident(RUNS[0]))


@pytest.mark.parametrize("name", [RUNS[0], *(pytest.param(name, marks=pytest.mark.soak) for name in RUNS[1:])])
def test_passes_one_by_one(
    oracle: Path, tmp_path: Path, name: str, resident: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in another order than in a batch, which is what the resident run does: the exact mode's bounds hold."""
    golden, together = Golden(oracle, name), resident(name)
    monkeypatch.setattr(engine, "batch_room", lambda device: 0.0)
    assert run(golden, tmp_path) == []
    assert worst(golden.differences(r"s[12]/step\d+/(in|x0|out)_video|up/.*|final/video_latent")) < TIGHT
    assert worst(golden.differences(VIDEO)) < LIMIT
    assert rms(golden) < 0.032  # a value in a thousand, by one level
    assert relative(golden.trace["final/video_latent"], together["final/video_latent"]) < 1e-6
