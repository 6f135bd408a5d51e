"""Decode, and Decode and Save, where memory runs out: smaller tiles, the same clip, and the report says so."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import comfy.model_management as management
import folder_paths
from a2v.ltx.diffusion.decode import decode_video
from a2v.ltx.diffusion.tiling import Tiling
from a2v.ltx.errors import InputError
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.nodes import activations, memory, output, progress
from a2v.tests.ltx.measure import run
from a2v.tests.nodes.conftest import HOST
from a2v.tests.tiny import write_tiny

NOTE = "decoded in tiles of 64 px and 16 frames: 96 and 16 did not fit"


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> memory.Handle:
    files = write_tiny(tmp_path_factory.mktemp("tiny"), layers=1, vae_width=4)
    cpu = torch.device("cpu")
    return memory.Handle(memory.hold(load_checkpoint(files.checkpoint).video_vae(torch.float32), cpu, cpu))


@pytest.fixture
def latent() -> dict[str, torch.Tensor]:
    return {"samples": torch.randn(1, 128, 2, 2, 3, generator=torch.Generator().manual_seed(0))}


@pytest.fixture
def freed(handle: memory.Handle, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A VAE with room for tiles of two latents' width; grows with each time that ComfyUI is asked to free its cache."""
    decode, freed = type(handle.module).decode, []

    def cramped(self: torch.nn.Module, z: torch.Tensor, return_dict: bool = True) -> object:
        if z.shape[4] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(self, z, return_dict=return_dict)

    monkeypatch.setattr(type(handle.module), "decode", cramped)
    monkeypatch.setattr(management, "soft_empty_cache", lambda force=False: freed.append(1))
    return freed


def as_run(node: type) -> type:
    """The node as ComfyUI calls it: with a place for what is hidden."""
    hidden = SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)
    return type(node.__name__, (node,), {"hidden": hidden})


def test_decode_goes_on_in_smaller_tiles(
    handle: memory.Handle, latent: dict[str, torch.Tensor], freed: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    images = as_run(output.Decode).execute(handle, latent, 96, 32, 16, 8).args[0]
    small = torch.cat(list(decode_video(handle.module, latent["samples"], Tiling(16, 8, 64, 32))))
    assert torch.equal(images, small) and len(freed) == 1
    assert NOTE in caplog.text


def test_decode_and_save_says_so_in_the_file(
    handle: memory.Handle,
    latent: dict[str, torch.Tensor],
    freed: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    made = as_run(output.SaveLatentVideo).execute(
        handle,
        latent,
        96,
        32,
        16,
        8,
        24.0,
        "clip",
        "X264 (.mp4)",
        "high",
        "fast",
        "off",
        0.5,
        "replace",
        report="asked",
    )
    facts = made.ui["report"][0]
    assert facts["frames"] == 9 and NOTE in facts["notes"] and facts["notes"][0] == "asked" and len(freed) == 1
    (file,) = tmp_path.glob("*.mp4")
    with av.open(str(file)) as container:
        assert NOTE in json.loads(container.metadata["comment"])["notes"]


def test_a_node_says_all_at_once(
    handle: memory.Handle,
    latent: dict[str, torch.Tensor],
    freed: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It shows its last text alone. The text is among its outputs, too, which ComfyUI sends again for a cached node."""
    texts: list[str] = []
    monkeypatch.setattr(progress, "show_text", lambda _, text: texts.append(text))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    decoded = as_run(output.Decode).execute(handle, latent, 96, 32, 16, 8)
    assert decoded.ui == progress.shown(*texts) and NOTE in texts.pop() and not texts
    sound = {"waveform": torch.zeros(1, 11, 48000), "sample_rate": 48000}
    asked = ("X264 (.mp4)", "high", "fast", "off", 0.5, "replace", sound)
    written = as_run(output.SaveLatentVideo).execute(handle, latent, 96, 32, 16, 8, 24.0, "clip", *asked)
    said = texts.pop()
    assert written.ui.items() >= progress.shown(said).items()
    assert "the safety checker did not run" in said and "mixed down from 11 channels" in said and not texts


def test_where_nothing_fits_there_is_one_sentence_and_no_file(
    handle: memory.Handle,
    latent: dict[str, torch.Tensor],
    freed: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(type(handle.module), "decode", full)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    with pytest.raises(InputError, match="smallest tile"):
        as_run(output.SaveLatentVideo).execute(
            handle, latent, 96, 32, 16, 8, 24.0, "clip", "X264 (.mp4)", "high", "fast", "off", 0.5, "replace"
        )
    assert not list(tmp_path.iterdir())


def test_on_a_gpu_room_is_asked_for_what_computing_takes(
    handle: memory.Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent, tiling = torch.zeros(1, 128, 16, 18, 32), Tiling()
    assert activations.decoding_memory(handle.module, latent, tiling) == 0  # on a CPU nothing moves
    monkeypatch.setattr(handle.module, "compute_device", torch.device("cuda"))
    whole = activations.decoding_memory(handle.module, latent, tiling)
    tile = 4 * 4 * 81 * 112 * 192  # of the last layers' width 4, in float32: 81 frames of 448 × 768 in patches of 4
    assert 24 * tile < whole < 30 * tile  # 48 channels come of 4, and a copy of theirs is in the workspace
    halved = activations.decoding_memory(handle.module, latent, Tiling(80, 24, 384, 64))
    assert 0.2 < halved / whole < 0.3
    assert activations.encoding_memory(handle.module, 576, 1024) > 4 * 3 * 576 * 1024


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The sentences on the tiles that were logged, and forgets them."""
    found = [record.getMessage() for record in caplog.records if "decoded" in record.getMessage()]
    caplog.clear()
    return [message.removeprefix("LTX A2V: ") for message in found]


def test_open_sizes_are_chosen_by_the_free_memory(
    handle: memory.Handle,
    latent: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The defaults of a new node; the values that older graphs have stored decode as ever."""
    caplog.set_level("INFO")
    samples = latent["samples"]

    def frames(*values: int) -> torch.Tensor:
        return as_run(output.Decode).execute(handle, latent, *values).args[0]

    inputs = {each.id: each for each in output.Decode.define_schema().inputs}
    usual = [inputs[name].default for name in ("tile_size", "tile_overlap", "tile_frames", "tile_frame_overlap")]
    assert usual == [0, 64, 0, 24]
    whole = torch.cat(list(decode_video(handle.module, samples, None)))
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**40)
    assert torch.equal(frames(*usual), whole) and told(caplog) == ["decoded whole"]
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    tiled = torch.cat(list(decode_video(handle.module, samples, Tiling(16, 8, 64, 32))))
    assert torch.equal(frames(*usual), tiled) and not torch.equal(tiled, whole)
    assert told(caplog) == ["decoded in 2 tiles of at most 9 frames and 64 pixels; 33 % of the clip twice"]
    assert torch.equal(frames(768, 64, 80, 24), whole)  # whatever is free
    assert torch.equal(frames(64, 32, 80, 24), tiled)


def test_what_can_be_had_is_the_same_whatever_is_loaded(
    handle: memory.Handle, latent: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models that ComfyUI can unload count as free, so that the first and the second run of a graph choose alike."""
    cuda = torch.device("cuda")
    total, reserve = 24 * 2**30, 2**29
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: reserve)
    for sizes in ((), (5 * 2**30, 7 * 2**30)):
        loaded = [
            SimpleNamespace(device=cuda, model=handle.patcher, model_loaded_memory=lambda size=size: size)
            for size in sizes
        ]
        elsewhere = SimpleNamespace(device=torch.device("cpu"), model=handle.patcher, model_loaded_memory=lambda: 2**40)
        gone = SimpleNamespace(device=cuda, model=None, model_loaded_memory=None)
        monkeypatch.setattr(management, "current_loaded_models", [*loaded, elsewhere, gone])
        free = total - sum(sizes)
        monkeypatch.setattr(management, "get_free_memory", lambda device, free=free: free)
        assert memory.obtainable(cuda) == total - reserve


def test_a_gpu_gets_room_for_the_tiles_that_were_chosen(handle: memory.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    latent = torch.zeros(1, 128, 16, 18, 32)
    monkeypatch.setattr(handle.module, "compute_device", torch.device("cuda"))
    whole = activations.decoding_memory(handle.module, latent, Tiling.whole(latent))
    for room in (16 * whole, whole):
        monkeypatch.setattr(activations, "obtainable", lambda device, room=room: room)
        chosen = activations.fitting_tiles(handle, latent, Tiling.of(0, 0))
        assert activations.decoding_memory(handle.module, latent, chosen) + handle.patcher.model_size() <= room
        assert (chosen == Tiling.whole(latent)) == (room > whole)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.soak
def test_a_long_clip_takes_what_a_short_one_takes(tmp_path: Path) -> None:
    """Decode and Save streams: 481 frames in the memory of 137, in both of which there are tiles of the full length."""
    checkpoint = write_tiny(tmp_path / "tiny", layers=1, vae_width=8).checkpoint
    sizes = [(frames, 128, 192) for frames in (137, 481)]
    job = {"checkpoint": str(checkpoint), "host": str(HOST), "output": str(tmp_path), "sizes": sizes}
    short, long = run(("node", job))
    assert len(list(tmp_path.rglob("*.mp4"))) == 3  # the one that warmed up, too
    assert long < 1.1 * short, f"{short / 1e6:.0f} MB of 137 frames, {long / 1e6:.0f} MB of 481"
