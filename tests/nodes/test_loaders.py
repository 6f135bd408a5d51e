"""The model loader on files as people keep them: offered, found, refused with the name of what has the missing part."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import execution
from a2v.ltx.models import GENERATIONS, MODELS, Generation
from a2v.nodes import files, loaders, loras, memory, safety, text, windows
from a2v.nodes.progress import TEXT
from a2v.tests import layouts
from a2v.tests.tiny import write_tiny

LOADER = loaders.ModelLoader
SAME = loaders.SAME


@pytest.fixture(scope="module")
def kept(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Files in ComfyUI's folders: name of the part → name as it is offered."""
    folder = tmp_path_factory.mktemp("loaders")
    tiny = write_tiny(folder, layers=2).checkpoint
    split = layouts.write_split(tiny, folder / "split")
    layouts.write_gguf(tiny, folder / "split" / "LTX-2.3-Q8_0.gguf", "Q8_0")
    split["gguf"] = folder / "split" / "LTX-2.3-Q8_0.gguf"
    layouts.write_fp8(tiny, folder / "split" / "ltx-2.3-fp8.safetensors")
    split["fp8"] = folder / "split" / "ltx-2.3-fp8.safetensors"
    places = {
        "transformer": "diffusion_models",
        "with_connectors": "diffusion_models",
        "gguf": "diffusion_models/sub",
        "video_vae": "vae",
        "audio_vae": "vae",
        "projection": "text_encoders",
        "connectors": "text_encoders",
        "fp8": "checkpoints",
    }
    written, names = [], {}
    for part, place in places.items():
        target = base / "models" / place / split[part].name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(split[part], target)
        written.append(target)
        names[part] = target.relative_to(base / "models" / place.split("/")[0]).as_posix()
    yield names
    for path in written:
        path.unlink()


@pytest.fixture(autouse=True)
def run(fresh_lists: None) -> Iterator[None]:
    with torch.inference_mode():
        yield


def offered(name: str) -> list[str]:
    return next(each for each in LOADER.define_schema().inputs if each.id == name).options


def test_files_are_offered_where_they_are_kept(kept: dict[str, str]) -> None:
    assert {kept[part] for part in ("fp8", "transformer", "with_connectors", "gguf")} <= set(offered("checkpoint"))
    for part in ("video_vae", "audio_vae", "connectors"):
        options = offered(part)
        assert options[0] == SAME and {kept[part], kept["fp8"]} <= set(options)
    assert "fp8" in offered("dtype")


@pytest.mark.parametrize("version", GENERATIONS, ids=lambda each: each.name)
def test_tooltips_name_the_files_of_each_version(version: Generation) -> None:
    nodes = (LOADER, loaders.UpscalerLoader, loras.DistilledLora)
    tooltips = {each.id: each.tooltip for node in nodes for each in node.define_schema().inputs}
    assert MODELS[version.upscaler].name in tooltips["file"]
    assert MODELS[version.distilled_lora].name in tooltips["lora"]
    for part in ("video_vae", "audio_vae"):
        assert version.parts[part] in tooltips[part]


def load(checkpoint: str, dtype: str = "auto", **parts: str) -> tuple[memory.Handle, ...]:
    chosen = {"video_vae": SAME, "audio_vae": SAME, "connectors": SAME, **parts}
    assert LOADER.validate_inputs(checkpoint=checkpoint, **chosen) is True
    assert LOADER.fingerprint_inputs(checkpoint=checkpoint, dtype=dtype, **chosen)
    loaded = LOADER.execute(checkpoint, dtype, **chosen)
    assert "LTX-2.3" in loaded.ui[TEXT][0], "ComfyUI sends it again for a cached node"
    return loaded.args


@pytest.mark.soak
def test_split_files_and_gguf(kept: dict[str, str]) -> None:
    parts = {part: kept[part] for part in ("video_vae", "audio_vae", "connectors")}
    whole = load(kept["fp8"])
    for handles in (load(kept["transformer"], **parts), load(kept["gguf"], **{**parts, "video_vae": kept["fp8"]})):
        for ours, theirs in zip(handles[1:], whole[1:], strict=True):
            expected = theirs.module.state_dict()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.module.state_dict().items())
    assert handles[0].checkpoint == "LTX-2.3-Q8_0.gguf"
    load(kept["with_connectors"], **{**parts, "connectors": kept["projection"]})


@pytest.mark.parametrize("lacking", ["video_vae", "audio_vae", "connectors"])
def test_a_part_that_lacks_is_named_before_anything_runs(kept: dict[str, str], lacking: str) -> None:
    parts = {part: kept[part] for part in ("video_vae", "audio_vae", "connectors") if part != lacking}
    verdict = LOADER.validate_inputs(checkpoint=kept["gguf"], **{lacking: SAME, **parts})
    assert isinstance(verdict, str) and lacking in verdict and ".safetensors" in verdict
    wrong = kept["audio_vae" if lacking == "video_vae" else "video_vae"]
    verdict = LOADER.validate_inputs(checkpoint=kept["fp8"], **{**dict.fromkeys(parts, SAME), lacking: wrong})
    assert isinstance(verdict, str) and wrong in verdict and ("has no" in verdict or "is not in" in verdict)


def test_saved_graphs_without_the_new_widgets(kept: dict[str, str]) -> None:
    assert LOADER.validate_inputs(checkpoint=kept["fp8"]) is True
    assert len(LOADER.execute(kept["fp8"], "auto").args) == 5


def test_other_names_are_refused(kept: dict[str, str]) -> None:
    for name in ("../../etc/passwd", "missing.gguf", "../secret.gguf", "sub/../../vae/x.gguf"):
        for values in ({"checkpoint": name}, {"checkpoint": kept["fp8"], "video_vae": name}):
            verdict = LOADER.validate_inputs(**values)
            assert isinstance(verdict, str) and name in verdict and "models/" in verdict
        with pytest.raises(ValueError, match=r"models/diffusion_models: get it\.$"):
            files.gguf_file("diffusion_models", name, "get it")


def test_a_diffusers_folders_own_encoder(base: Path, tmp_path: Path) -> None:
    """It is offered, found, and watched; a folder of the same name in models/text_encoders goes before it."""
    loader = loaders.TextEncoderLoader
    whole = base / "models" / "diffusers" / "LTX-2.3-Diffusers"
    (whole / "text_encoder").mkdir(parents=True)
    (whole / "text_encoder" / "config.json").write_text("{}")
    try:
        (folder,) = (each for each in loader.define_schema().inputs if each.id == "folder")
        assert whole.name in folder.options and loader.validate_inputs(folder=whole.name) is True
        assert loaders.gemma_path(whole.name) == whole
        assert loader.fingerprint_inputs(folder=whole.name) == files.stamp(whole)
        nearer = base / "models" / "text_encoders" / whole.name
        nearer.mkdir(parents=True)
        (nearer / "config.json").write_text("{}")
        assert loaders.gemma_path(whole.name) == nearer
    finally:
        shutil.rmtree(whole)
        shutil.rmtree(base / "models" / "text_encoders" / whole.name, ignore_errors=True)


@pytest.fixture
def folders(base: Path, fresh_lists: None) -> Iterator[dict[str, Path]]:
    """Weights of models that are folders: of a checkpoint, a text encoder and an image classifier."""
    weights = {
        "checkpoint": base / "models" / "diffusers" / "ltx-whole" / "transformer" / "model.safetensors",
        "encoder": base / "models" / "text_encoders" / "gemma-whole" / "model.safetensors",
        "classifier": base / "models" / "safety_checker" / "whole" / "model.safetensors",
    }
    for path in weights.values():
        path.parent.mkdir(parents=True)
        path.write_bytes(b"some")
        (path.parent / "config.json").write_text("{}")
    yield weights
    shutil.rmtree(base / "models" / "diffusers" / "ltx-whole")
    shutil.rmtree(weights["encoder"].parent)
    shutil.rmtree(weights["classifier"].parent)


@pytest.mark.parametrize(
    ("kind", "fingerprint"),
    [
        ("checkpoint", lambda: LOADER.fingerprint_inputs(checkpoint="ltx-whole", dtype="auto")),
        ("encoder", lambda: loaders.TextEncoderLoader.fingerprint_inputs(folder="gemma-whole")),
        ("classifier", safety.SafetyChecker.fingerprint_inputs),
    ],
)
def test_a_folder_s_weights_are_watched(folders: dict[str, Path], kind: str, fingerprint: Callable[[], str]) -> None:
    """Not its configuration alone: other weights for the same model leave that as it was."""
    before = fingerprint()
    assert fingerprint() == before
    folders[kind].write_bytes(b"others")
    assert fingerprint() != before and "whole" not in fingerprint().rpartition(":")[2]


def test_a_model_that_a_link_names_is_not_loaded_anew_in_each_run() -> None:
    """ComfyUI asks for a fingerprint before it knows the value, and runs a node each time that this is an error."""
    link = ["2", 0]
    asked = {
        LOADER: {"checkpoint": link, "dtype": link, "video_vae": link},
        loaders.TextEncoderLoader: {"folder": link, "dtype": "auto"},
        loaders.UpscalerLoader: {"file": link, "dtype": "auto"},
        loras.LoraLoader: {"lora": link, "strength": 1.0},
        loras.DistilledLora: {"lora": link},
        loras.CameraLora: {"camera_lora": link, "strength": 1.0},
        text.ExpandPrompt: {"prompt": "a man", "expander": link},
        windows.SectionTimeline: {"prompt": "a man", "timeline": "", "expander": link},
    }
    for node, inputs in asked.items():
        graph = {"1": {"class_type": node.__name__, "inputs": inputs}}
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(execution.nodes.NODE_CLASS_MAPPINGS, node.__name__, node)
            cache = execution.IsChangedCache("run", execution.DynamicPrompt(graph), None)
            (found,) = asyncio.run(cache.get("1"))
        assert found.strip() == "", node
