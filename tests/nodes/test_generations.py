"""LTX-2.3 and LTX-2.5 in one graph: an upscaler of the other version is refused, before anything is sampled."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")
pytest.importorskip("transformers", minversion="5.10.1")

import folder_paths
import torch
from a2v.ltx.errors import InputError
from a2v.nodes import latents, loaders
from a2v.tests.tiny25 import Tiny25Files, write_tiny25

OLD, NEW = "ltx-2.3-spatial-upscaler-x2-1.1.safetensors", "new.safetensors"
PLACES = {"transformer": "diffusion_models", "video_vae": "vae", "audio_vae": "vae"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Tiny25Files:
    return write_tiny25(tmp_path_factory.mktemp("tiny25"), layers=1)


@pytest.fixture
def models(files: Tiny25Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The widgets' values of Load Model, with the files in folders of their kind."""
    for kind in ("latent_upscale_models", *PLACES.values()):
        (tmp_path / kind).mkdir(exist_ok=True)
        known = folder_paths.folder_names_and_paths[kind]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], known[1]))
    folder_paths.filename_list_cache.clear()
    for part, kind in PLACES.items():
        shutil.copyfile(getattr(files, part), tmp_path / kind / getattr(files, part).name)
    shutil.copyfile(files.upscaler, tmp_path / "latent_upscale_models" / NEW)
    (old,) = files.upscaler.parent.glob("2.3/*upscaler*")
    shutil.copyfile(old, tmp_path / "latent_upscale_models" / OLD)
    return {
        "checkpoint": files.transformer.name,
        "video_vae": files.video_vae.name,
        "audio_vae": files.audio_vae.name,
    }


def graph(upscaler: str) -> dict[str, Any]:
    return {
        "4": {"class_type": "LTXA2VUpscalerLoader", "inputs": {"file": upscaler, "dtype": "auto"}},
        "3:1": {"class_type": "LTXA2VModelLoader", "inputs": {}},
        "9": {
            "class_type": "LTXA2VLatentUpscale",
            "inputs": {"upscaler": ["4", 0], "video_vae": ["3:1", 2], "latent": ["8", 0]},
        },
    }


def load(models: dict[str, str], prompt: Any, node: str = "3:1") -> tuple:
    """Load Model as ComfyUI calls it."""
    called = SimpleNamespace(hidden=SimpleNamespace(unique_id=node, prompt=prompt))
    return loaders.ModelLoader.execute.__func__(called, dtype="float32", **models).args


def test_load_model_refuses_the_other_version_s_upscaler(models: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"is the upscaler of LTX-2\.3, and .* is LTX-2\.5; use ltx-2\.5-latent"):
        load(models, graph(OLD))
    load(models, graph(NEW))
    load(models, graph(OLD), node="77")  # the upscaler of another Load Model
    for strange in (None, {}, {"9": {"class_type": "LTXA2VLatentUpscale"}}, {"9": {}}):
        load(models, strange)
    linked = graph(OLD)
    linked["4"]["inputs"]["file"] = ["2", 0]
    load(models, linked)


def test_latent_upscale_refuses_it_too(models: dict[str, str]) -> None:
    """Where the graph does not tell, for instance if another node chooses the file."""
    vae = load(models, None)[2]
    latent = {"samples": torch.zeros(1, 128, 1, 2, 2)}
    called = SimpleNamespace(hidden=SimpleNamespace(unique_id="9"))
    enlarge = latents.LatentUpscale.execute.__func__
    (old,), (new,) = (loaders.UpscalerLoader.execute(name, "float32").args for name in (OLD, NEW))
    with pytest.raises(InputError, match=r"is the upscaler of LTX-2\.3"):
        enlarge(called, old, vae, latent)
    (result,) = enlarge(called, new, vae, latent).args
    assert result["samples"].shape == (1, 128, 1, 4, 4)
