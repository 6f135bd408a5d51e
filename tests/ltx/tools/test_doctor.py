"""`python -m ltx doctor`: it finds what is there, names what is not, and whatever is broken is a line, no traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx import models, versions
from a2v.ltx.diffusion.tiling import USUAL
from a2v.ltx.media.safety import REQUIRED
from a2v.ltx.memory import forecast, free
from a2v.ltx.memory.rehearsal import blueprint
from a2v.ltx.models import MODELS
from a2v.ltx.prompt import gemma4_file
from a2v.ltx.tools import doctor
from a2v.ltx.weights import products
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests import layouts
from a2v.tests.ltx.media.test_safety import write as write_checker
from a2v.tests.tiny import TinyFiles
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]
AMPLE, LITTLE = 2**40, 3 * 2**30
"""Free bytes with which the tiny model decodes the default clip whole on a CPU, and with which it does not."""
PHASES = ["expand prompt", "encode text", "encode sound", "first stage", "upscale", "second stage", "decode"]
FOLDERS = {
    "checkpoint": "checkpoints",
    "upscaler": "latent_upscale_models",
    "distilled_lora": "loras",
    "camera_lora": "loras",
    "gemma": "text_encoders",
}


@pytest.fixture
def placed(tiny_default: TinyFiles, tmp_path: Path) -> TinyFiles:
    """The tiny set in ComfyUI's folders below tmp_path/models."""
    at = {}
    for name, folder in FOLDERS.items():
        source = getattr(tiny_default, name)
        at[name] = tmp_path / "models" / folder / source.name
        at[name].parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, at[name])
    return replace(tiny_default, **at)


@pytest.fixture(scope="module")
def forecasts() -> list[forecast.Forecast]:
    return []


@pytest.fixture
def measured_once(forecasts: list[forecast.Forecast], monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of the default job, which takes longer than all else here, is that of another test."""
    real = forecast.estimate

    def estimate(*given: Any) -> forecast.Forecast:
        if not forecasts:
            forecasts.append(real(*given))
        return forecasts[0]

    monkeypatch.setattr(forecast, "estimate", estimate)


def told(tmp_path: Path, free: int = AMPLE) -> tuple[int, list[str]]:
    """What doctor returns and says, on a machine whose memory has so many free bytes: what other tests take while this
    one runs must not count."""
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as machine:
        machine.setattr(forecast, "free_memory", lambda device: free)
        status = doctor.main(["--models", str(tmp_path / "models")], lines.append)
    assert not any("\n" in line for line in lines)
    return status, lines


def line_with(lines: list[str], *words: object) -> str:
    (found,) = [line for line in lines if all(str(word) in line for word in words)]
    return found


def phases_that(lines: list[str], state: str) -> list[str]:
    """The names of the phases whose line ends in that state, in order."""
    return [line[len(doctor.OK) :].split(":")[0] for line in lines if line.endswith(f": {state}")]


def test_a_complete_set_is_found_and_a_job_can_run(placed: TinyFiles, tmp_path: Path) -> None:
    status, lines = told(tmp_path)
    assert status == 0, lines
    assert not any(line.startswith(doctor.BAD) for line in lines) and lines[-1] == "A default job can run."
    for name in FOLDERS:
        assert line_with(lines, getattr(placed, name)).startswith(doctor.OK)
    for package in (*versions.installed(), versions.torch()):
        assert line_with(lines, f"{package.name} {package.version} (needed: ").startswith(doctor.OK)
    assert line_with(lines, "Python 3.") and line_with(lines, f"torch {torch.__version__}, host memory")
    assert phases_that(lines, "fits") == PHASES


@pytest.mark.usefixtures("placed")
def test_a_default_job_fits_in_tiles_where_little_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_device", lambda: torch.device("cpu"))  # with a GPU, a clip that fits is never tiled
    status, lines = told(tmp_path, LITTLE)
    assert status == 0 and lines[-1] == "A default job can run.", lines
    assert phases_that(lines, "fits") == PHASES[:-1]
    assert phases_that(lines, f"in tiles of {USUAL}") == PHASES[-1:]


@pytest.mark.usefixtures("placed")
def test_where_a_default_job_does_not_fit_it_says_what_may_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_device", lambda: torch.device("cpu"))
    status, lines = told(tmp_path, 10)
    assert status == 1 and lines[-1].startswith("A default job cannot run")
    assert line_with(lines, "the system may end what does not fit: try --dtype bfloat16, ").startswith(doctor.BAD)


@pytest.mark.parametrize(
    ("gone", "key"),
    [("checkpoint", "dev"), ("upscaler", "upscaler"), ("distilled_lora", "distilled-lora"), ("gemma", "gemma-fp4")],
)
def test_what_is_missing_is_named_with_size_folder_and_source(
    placed: TinyFiles, tmp_path: Path, gone: str, key: str
) -> None:
    path, model = getattr(placed, gone), MODELS[key]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    status, lines = told(tmp_path)
    assert status == 1 and lines[-1].startswith("A default job cannot run")
    line = line_with(lines, model.name, models.size(model.size), tmp_path / "models" / model.folder, model.url)
    assert line.startswith(doctor.BAD)
    assert f"python -m ltx download {key} --models" in line_with(lines, "python -m ltx download", key)
    assert (sum("terms" in line for line in lines) == 1) == model.terms
    small = f'python -m ltx download small --models "{tmp_path / "models"}" gets a set of 42.7 GB'
    assert any(small in line for line in lines) == (key == "dev")
    assert sum("published weights" in line for line in lines) == len(doctor.SHARES) == 6


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sizes_that_are_not_measured_have_the_words_of_the_forecast(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """A CPU reads files of weights again and again that are larger than its memory."""
    monkeypatch.setattr(doctor, "_device", lambda: torch.device(device))
    monkeypatch.setattr(free, "free_memory", lambda device: 16 * 10**9)
    (bf16, *_, smallest) = (line for _, line in doctor._known_sizes())
    assert ", fits on " in smallest
    assert (f", {forecast.REREAD}: 16.0 GB free" in bf16) == (device == "cpu") != (", does not fit: " in bf16)


def test_a_file_cut_short_does_not_count_and_says_why(placed: TinyFiles, tmp_path: Path) -> None:
    named = placed.upscaler.with_name(MODELS["upscaler"].name)
    placed.upscaler.rename(named)
    os.truncate(named, named.stat().st_size // 2)
    status, lines = told(tmp_path)
    assert status == 1
    assert "cannot be used" in line_with(lines, named, "not a complete safetensors file")
    assert line_with(lines, doctor.BAD, MODELS["upscaler"].url)


def test_a_gemma_that_lacks_a_file_says_which(placed: TinyFiles, tmp_path: Path) -> None:
    (placed.gemma / "tokenizer.json").unlink()
    status, lines = told(tmp_path)
    assert status == 1 and "not found" in line_with(lines, placed.gemma / "tokenizer.json")


def test_an_encoder_that_breaks_a_reader_hides_no_other_model(
    placed: TinyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The models after it would else be reported as missing, and fetched once more."""

    def breaks(path: Path) -> bool:
        raise RuntimeError("unable to mmap")

    monkeypatch.setattr(gemma4_file, "is_gemma4", breaks)
    _, lines = told(tmp_path)
    assert line_with(lines, "upscaler ", placed.upscaler).startswith(doctor.OK)
    assert not any("upscaler" in line and "https://" in line for line in lines)


@pytest.mark.usefixtures("measured_once", "placed")
def test_a_safety_checker_that_is_required_counts_if_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REQUIRED, "require")
    status, lines = told(tmp_path)
    assert status == 1 and line_with(lines, "enable_safety_checker: no classifier").startswith(doctor.BAD)
    write_checker(tmp_path / "models" / "safety_checker" / "classifier")
    status, lines = told(tmp_path)
    assert status == 0, lines
    assert line_with(lines, "safety checker ").startswith(doctor.OK)


@pytest.mark.usefixtures("measured_once")
@pytest.mark.soak
def test_other_packs_models_are_passed_over(placed: TinyFiles, tmp_path: Path) -> None:
    other = tmp_path / "models" / "checkpoints" / "sdxl.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4)}, other)
    (tmp_path / "models" / "checkpoints" / "rubbish.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "models" / "text_encoders" / "t5").mkdir()
    (tmp_path / "models" / "text_encoders" / "t5" / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "models" / "loras" / "style.safetensors").write_bytes(b"")
    shutil.copy(other, tmp_path / "models" / "checkpoints" / "LTX-old.safetensors")
    status, lines = told(tmp_path)
    assert status == 0, lines
    assert not any(word in line for line in lines for word in ("sdxl", "rubbish", "t5", "style"))
    assert "cannot be used" in line_with(lines, "LTX-old.safetensors")


@pytest.mark.usefixtures("measured_once")
def test_ic_loras_are_listed(placed: TinyFiles, tmp_path: Path) -> None:
    """By their names, as published; one that cannot be used here is told with its reason."""
    sheet, hdr = (
        placed.camera_lora.with_name(name)
        for name in (MODELS["ingredients"].name, "ltx-2.3-22b-ic-lora-hdr-0.9.safetensors")
    )
    for path in (sheet, hdr):
        shutil.copy(placed.camera_lora, path)
    status, lines = told(tmp_path)
    assert status == 0 and "IC-LoRA" in line_with(lines, doctor.OK, sheet)
    assert "cannot be used" in line_with(lines, hdr) and "HDR pictures cannot be decoded" in line_with(lines, hdr)


@pytest.mark.usefixtures("measured_once")
def test_a_lora_that_fits_nothing_is_told(placed: TinyFiles, tmp_path: Path) -> None:
    tensors = {f"diffusion_model.elsewhere.{n}.lora_{h}.weight": torch.zeros(2, 2) for n in range(2) for h in "AB"}
    save_file(tensors, placed.camera_lora)
    status, lines = told(tmp_path)
    assert status == 0 and "cannot be used" in line_with(lines, placed.camera_lora)


@pytest.mark.soak
def test_a_checkpoint_in_parts_is_put_together(placed: TinyFiles, tmp_path: Path) -> None:
    tensors = load_file(placed.checkpoint)
    with safe_open(placed.checkpoint, "pt") as file:
        metadata = file.metadata()
    kept = {k: v for k, v in tensors.items() if not k.startswith("vae.")}
    away = tmp_path / "models" / "vae" / "ltx-video-vae.safetensors"
    save_file(kept, placed.checkpoint, metadata=metadata)
    status, lines = told(tmp_path)
    assert status == 1 and "has no video VAE" in line_with(lines, placed.checkpoint.name)
    away.parent.mkdir()
    save_file({k: v for k, v in tensors.items() if k.startswith("vae.")}, away, metadata=metadata)
    status, lines = told(tmp_path)
    assert status == 0, lines
    assert "video_vae from ltx-video-vae.safetensors" in line_with(lines, "checkpoint " + str(placed.checkpoint))


# The formats of weights.

WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "fp8": lambda source, path: layouts.write_fp8(source, path, "plain"),
    "fp8, in part in bf16": layouts.write_fp8,
    "fp8 by rows": lambda source, path: layouts.write_fp8(source, path, "rows"),
    "int8": lambda source, path: layouts.write_blocks(source, path, "int8", spare=False),
    "int8 rotated, in part in bf16": lambda source, path: layouts.write_blocks(source, path, "convrot"),
    "MXFP8": lambda source, path: layouts.write_blocks(source, path, "mxfp8", spare=False),
    "NVFP4, in part in bf16": lambda source, path: layouts.write_blocks(source, path, "nvfp4"),
}
CARDS = {"Turing": (7, 5), "Ada": (8, 9), "Blackwell": (12, 0)}
ABLE = {"fp8": ("Ada", "Blackwell"), "int8": ("Turing", "Ada", "Blackwell")}  # the others: the newest card alone
GPU = torch.device("cuda")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """(its name, whether comfy-kitchen has kernels for it) → from now on the machine has that card."""

    def put(name: str, kitchen: bool = True) -> None:
        has = {kind: CARDS[name] >= needed for kind, needed in products.NEEDED.items()}
        monkeypatch.setattr(products, "card_has", lambda kind, device: has[kind])
        monkeypatch.setattr(products, "kitchen", lambda function: object() if kitchen else None)
        monkeypatch.setattr(products, "rows_have_scales", lambda device: True)

    return put


@pytest.mark.parametrize("told_so", WRITERS)
def test_the_format_of_a_transformer_is_told(
    tiny_default: TinyFiles, tmp_path: Path, card: Callable[..., None], told_so: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = told_so.split()[0].strip(",")
    if kind != "fp8":
        pytest.importorskip("comfy_kitchen")
        if not layouts.can_write({"int8": "convrot" if "rotated" in told_so else "int8"}.get(kind, kind.lower())):
            pytest.skip("this comfy-kitchen does not write it")
    WRITERS[told_so](tiny_default.checkpoint, tmp_path / "small.safetensors")
    transformer = load_checkpoint(tmp_path / "small.safetensors").inspect()
    head, name = f"its transformer is in {told_so}; ", told_so.partition(",")[0]
    on_cpu = doctor._format_of(transformer, torch.device("cpu"))
    assert on_cpu == f"{head}{name} is decoded at each call: a job on a CPU computes in float32"
    for each in CARDS:
        card(each)
        said = doctor._format_of(transformer, GPU)
        if each in ABLE.get(kind, ("Blackwell",)):
            assert said == f"{head}{name} is multiplied as stored with --fast-products, else decoded"
        else:
            needed = ".".join(map(str, products.NEEDED[kind.lower()]))
            assert said.startswith(f"{head}{name} is decoded at each call: ") and f"capability {needed} or more" in said
    card("Blackwell", kitchen=False)
    assert ("pip install comfy-kitchen" in doctor._format_of(transformer, GPU)) == (kind != "fp8")
    card("Blackwell")
    monkeypatch.setattr(products, "rows_have_scales", lambda device: False)
    assert ("a scale for each row" in doctor._format_of(transformer, GPU)) == ("by rows" in told_so)
    monkeypatch.setattr(products, "EXPONENTS", None)
    assert ("torch 2.7" in doctor._format_of(transformer, GPU)) == (kind == "MXFP8")


def test_weights_without_a_format_are_multiplied_as_they_are(tiny_default: TinyFiles, card: Callable) -> None:
    card("Blackwell")
    transformer = load_checkpoint(tiny_default.checkpoint).inspect()
    assert doctor._format_of(transformer, GPU) == "its transformer is in bf16"
    assert doctor._format_of(transformer.float(), GPU) == "its transformer is in fp32"


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_transformer_alone_says_its_format_too(
    placed: TinyFiles, tmp_path: Path, kind: str, card: Callable[..., None]
) -> None:
    """A GGUF file, which lacks all other parts."""
    pytest.importorskip("gguf")
    alone = tmp_path / "models" / "diffusion_models" / "ltx-alone.gguf"
    alone.parent.mkdir()
    layouts.write_gguf(placed.checkpoint, alone, kind)
    placed.checkpoint.unlink()
    _, lines = told(tmp_path)
    assert "cannot be used" in line_with(lines, alone.name)
    told_so = line_with(lines, f"its transformer is in GGUF {kind}")
    assert lines[lines.index(told_so) - 1] == line_with(lines, alone.name)
    assert f"GGUF {kind} is decoded at each call: " in told_so
    card("Blackwell")
    with torch.inference_mode():
        opened = blueprint(load_checkpoint(alone).transformer)
    assert doctor._format_of(opened, GPU).endswith(f"GGUF {kind} is decoded at each call: no card has such products")


@pytest.mark.soak
def test_the_format_stands_below_its_checkpoint(placed: TinyFiles, tmp_path: Path) -> None:
    whole = placed.checkpoint
    layouts.write_fp8(whole, whole.with_name("ltx-fp8.safetensors"))
    status, lines = told(tmp_path)
    assert status == 0, lines
    for path, name in ((whole, "bf16"), (whole.with_name("ltx-fp8.safetensors"), "fp8, in part in bf16")):
        below = lines[lines.index(line_with(lines, f"checkpoint {path}")) + 1]
        assert below.startswith(f"{doctor.NOTE}its transformer is in {name}")


def test_what_would_fit_names_every_format_that_is_read() -> None:
    names = " ".join(name for name, *_ in doctor.SHARES)
    assert all(word in names for word in ("bf16", "fp8", "int8", "MXFP8", "NVFP4", "GGUF"))
    shares = [share for _, share, _ in doctor.SHARES]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1
    for name, share, _ in doctor.SHARES:  # the blocks of the formats as they are defined, against 16 bits
        if name.startswith("GGUF"):
            gguf = pytest.importorskip("gguf")
            values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.split()[1]]]
            assert share == 8 * size / values / 16


@pytest.mark.usefixtures("measured_once")
def test_folders_of_extra_model_paths_are_looked_into(placed: TinyFiles, tmp_path: Path) -> None:
    far = tmp_path / "disk" / "models"
    far.parent.mkdir()
    (tmp_path / "models").rename(far)
    (tmp_path / "models").mkdir()
    assert told(tmp_path)[0] == 1
    kinds = "".join(f"  {kind}: {kind}\n" for kind in sorted({*FOLDERS.values()} - {"text_encoders"}))
    extra = tmp_path / "extra_model_paths.yaml"
    extra.write_text(f"comfyui:\n  base_path: {far}\n  clip: text_encoders\n{kinds}")
    status, lines = told(tmp_path)
    assert status == 0 and line_with(lines, far / "checkpoints"), lines
    for content, reason in ((": [", "line 1"), ("- a", "no lists of folders"), ("a: [1]", "no lists of folders")):
        extra.write_text(content)
        status, lines = told(tmp_path)
        assert status == 1 and line_with(lines, extra, reason).startswith(doctor.BAD)


def test_without_a_models_folder(tmp_path: Path) -> None:
    status, lines = told(tmp_path)
    assert status == 1 and "--models" in line_with(lines, tmp_path / "models")
    lines = []
    assert doctor.main([], lines.append) == 1 and "--models" in lines[-1], "this checkout lies in no ComfyUI"
    (tmp_path / "custom_nodes" / "pack").mkdir(parents=True)
    assert models.around(tmp_path / "custom_nodes" / "pack") is None
    (tmp_path / "models").mkdir()
    assert models.around(tmp_path / "custom_nodes" / "pack") == tmp_path / "models"
    assert models.around(tmp_path / "elsewhere" / "pack") is None


def broken(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise OSError('libnothing.so: no such file')")
    return folder


def too_old(folder: Path, name: str) -> Path:
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    return folder


def command(shadow: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m ltx` with what lies in `shadow` before every installed package."""
    environment = {**os.environ, "PYTHONPATH": str(shadow), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "ltx", *arguments]
    return subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "name", ["torch", *(pytest.param(name, marks=pytest.mark.soak) for name in ("diffusers", "yaml"))]
)
def test_a_broken_package_is_a_line(placed: TinyFiles, tmp_path: Path, name: str) -> None:
    (tmp_path / "extra_model_paths.yaml").write_text("{}")
    done = command(broken(tmp_path / "shadow", name), "doctor", "--models", str(tmp_path / "models"))
    assert done.returncode == 1 and done.stderr == ""
    first = next(line for line in done.stdout.splitlines() if line.startswith(doctor.BAD))
    assert "libnothing.so: no such file" in first


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("diffusers", f'-m pip install -r "{ROOT / "requirements.txt"}"'),
        pytest.param("torch", "update ComfyUI", marks=pytest.mark.soak),
    ],
)
def test_a_package_too_old_is_a_line_and_ends_a_job_in_one_sentence(tmp_path: Path, name: str, remedy: str) -> None:
    shadow = too_old(tmp_path / "shadow", name)
    done = command(shadow, "doctor")
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    if name == "torch":  # on which transformers has its own word
        assert "Traceback" not in done.stderr
    else:
        assert done.stderr == ""
    assert line_with(lines, f"{name} 0.1 (needed: >=").startswith(doctor.BAD)
    assert line_with(lines, remedy).startswith(doctor.BAD)
    done = command(shadow, "--help")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"{name} 0.1 (needed: >=" in done.stderr and remedy in done.stderr


@pytest.mark.parametrize(
    ("have", "wanted", "fits"),
    [
        ("1.10.0", ">=1.9", True),
        ("1.9", ">=1.9.0", True),
        ("1.8.9", ">=1.9", False),
        ("5.0.0rc1", ">=5.0.0", True),
        ("2.3.0+cu130", ">=2.3,<3", True),
        ("3.0", ">=2.3,<3", False),
        ("", ">=0.1", False),
        (None, "", False),
    ],
)
def test_versions_are_compared_as_numbers(have: str | None, wanted: str, fits: bool) -> None:
    assert versions.Package("p", wanted, have).supported is fits


def test_every_requirement_is_understood() -> None:
    lines = [line for line in versions.REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    assert [f"{p.name}{p.wanted}" for p in versions.installed()] == lines
    assert {versions.problem(door) for door in (None, versions.WEBHOOKS, versions.DOWNLOAD)} == {None}


@pytest.mark.usefixtures("measured_once")
def test_each_door_asks_for_what_it_uses(placed: TinyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only webhooks need cryptography: a job, the command and the nodes run without it."""
    have = [p if p.name != "cryptography" else versions.Package(p.name, p.wanted, None) for p in versions.installed()]
    monkeypatch.setattr(versions, "installed", lambda: iter(have))
    assert versions.problem() is None and versions.problem(versions.DOWNLOAD) is None
    assert "cryptography is not installed" in versions.problem(versions.WEBHOOKS)
    status, lines = told(tmp_path)
    assert status == 0 and line_with(lines, "cryptography is not installed").startswith(doctor.NOTE)


def test_the_published_files_have_one_name_everywhere() -> None:
    """The graphs' download buttons, the sources' sentences and the README say what the list says."""
    known = {model.url: (model.name, model.folder) for model in MODELS.values()}
    workflows = list((ROOT / "example_workflows").glob("*.json"))
    assert len(workflows) == 33
    for workflow in workflows:
        graph = json.loads(workflow.read_text())
        nodes = [node for each in (graph, *graph["definitions"]["subgraphs"]) for node in each["nodes"]]
        offered = [model for node in nodes for model in node.get("properties", {}).get("models", ())]
        assert len(offered) >= 3
        for model in offered:
            assert known[model["url"]] == (model["name"], model["directory"])
    readme = (ROOT / "README.md").read_text("utf-8")
    for key in {"distilled", "safety-checker"}.union(*models.SETS.values()):
        assert MODELS[key].name in readme and MODELS[key].page in readme
    for name, keys in models.SETS.items():
        assert f"{round(models.total(keys) / 1e9)} GB" in readme, name
    pages = {model.page for model in MODELS.values()}
    for folder in ("ltx", "nodes", "api"):
        for file in (ROOT / folder).rglob("*.py"):
            named = re.findall(rf"{models.HUB}/[\w.-]+/[\w.-]*[\w-]", file.read_text("utf-8"))
            assert set(named) <= pages, file
