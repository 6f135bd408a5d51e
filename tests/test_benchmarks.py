"""Every benchmark runs at its smallest size, its sides compute the same, its table is whole. Times are not judged."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from a2v.benchmarks import card, edits, formats, gpu, measure
from a2v.benchmarks.parts import Parts, code
from a2v.benchmarks.work import Counter
from safetensors.torch import load_file, save_file
from torch import nn

LEVELS = ("none", "regular", "high", "full")
ROOT = Path(__file__).resolve().parents[1]
SPEAKS = bool(shutil.which("espeak-ng") or shutil.which("flite"))


@pytest.fixture
def take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """name → the table of that benchmark at its smallest size, after a journey through its file."""
    monkeypatch.setenv("BENCH_THREADS", "1")

    def run(name: str, module: str | None = None) -> measure.Table:
        function = getattr(importlib.import_module(f"a2v.benchmarks.{module or name}"), name)
        table = function(tmp_path, small=True)
        path = measure.save(name, table, measure.machine(), tmp_path / "results")
        assert measure.load(path)[0] == table
        lines = table.markdown().splitlines()
        assert len(lines) >= 2 + len(table.rows)
        assert all(line.count("|") == len(table.columns) + 1 for line in lines[: 2 + len(table.rows)])
        assert all(isinstance(number, float | int) for number in table.numbers.values())
        assert f"## {table.title}" in measure.document([name], tmp_path / "results")
        return table

    return run


@pytest.fixture
def peers() -> None:
    pytest.importorskip("ltx_pipelines", reason="the peer is not installed")


@pytest.mark.soak
def test_peer(take, peers: None) -> None:
    """48 blocks, STG in block 28: 164 block runs where the official code has 192, and the same numbers."""
    numbers = take("peer").numbers
    assert numbers["official block runs"] == 192
    assert numbers["our block runs"] <= 164
    assert max(numbers[name] for name in ("step error", "compiled step error", "whole error")) < 1e-5
    assert min(numbers.values()) > 0


@pytest.mark.soak
def test_growth(take, peers: None) -> None:
    table = take("growth", "peer")
    assert [row[1] for row in table.rows] == ["32", "48"]


@pytest.mark.soak
def test_levels(take) -> None:
    table = take("levels")
    models = ("48 random blocks", "the trained miniature")
    assert [row[0] for row in table.rows] == [f"{model}: {level}" for model in models for level in LEVELS]
    for model in models:
        assert table.numbers[f"{model}, none: error"] == 0
        for level in ("regular", "full"):
            assert 0 < table.numbers[f"{model}, {level}: error"] < 2, f"{model}: {level} is exact, or far off"


@pytest.mark.skipif(not (ROOT / ".host" / "comfyui").is_dir(), reason="no ComfyUI in .host")
@pytest.mark.soak
def test_host(take) -> None:
    """It compares the frames of both files itself."""
    assert take("host").numbers["trivial seconds"] < 60


@pytest.mark.skipif(not (ROOT / ".host" / "comfyui").is_dir(), reason="no ComfyUI in .host")
@pytest.mark.soak
def test_api(take) -> None:
    """Every poller is answered while the job runs."""
    assert take("api").numbers["questions a second"] > 1


@pytest.mark.soak
def test_load(take) -> None:
    assert take("load").numbers["resident"] > 0.5


@pytest.mark.skipif(not SPEAKS, reason="nothing here can speak")
@pytest.mark.soak
def test_films(take) -> None:
    """Three seconds in four windows: the mouth follows, and the face is what was asked for."""
    numbers = take("films").numbers
    assert numbers["speech: minutes"] > 0.7 and numbers["speech: words"] == 1 and numbers["speech: windows"] == 4
    assert numbers["speech: join"] < 2.5


@pytest.mark.skipif(not shutil.which("espeak-ng") and not shutil.which("flite"), reason="nothing here can speak")
@pytest.mark.soak
def test_a_minute_is_made_again_as_single_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clips of 49 frames, of which the second one ends behind the film."""
    from a2v.benchmarks import films

    monkeypatch.setattr(films, "FILMS", {"short": films.Film(81 / films.MINUTE)})
    monkeypatch.setattr(films, "SINGLE", 49)
    assert films.singles(str(tmp_path), "short", 0)["correlation"] > 0.7


def test_minutes_end_with_their_section() -> None:
    from a2v.benchmarks import films

    found = [(n, each.start, each.stop) for n, each in films.stretches([0, 1441, 2881, 5000, 5100])]
    assert found == [(0, 0, 1440), (1, 1441, 2881), (2, 2881, 4321), (3, 5000, 5100)]


@pytest.mark.soak  # tests/mini/test_readers.py has the readers
def test_a_film_is_read_as_it_was_drawn() -> None:
    """A mouth that follows and one that does not, a jump at a join, and a colour that drifts."""
    from a2v.benchmarks import films
    from a2v.mini import clips

    draw = np.random.default_rng(4)
    scenes = films._scenes(draw, 2)
    mouths = np.concatenate([clips.random_motion(draw, scene, 120) for scene in scenes])
    video = np.concatenate([clips.render(s, mouths[k : k + 120]) for s, k in zip(scenes, (0, 120), strict=True)])
    motion = mouths[:, 0]
    video = np.clip(video * 255 + draw.normal(0, 2, video.shape), 0, 255)
    found = films.read(video.astype(np.uint8), motion, scenes, [0, 120, 240], [49, 120, 169])
    assert min(found["minutes"]) > 0.99 and found["lag"] == 0 and found["words"] == 1
    assert found["ground"] < 1.5 and found["face"] < 1.5 and found["join"] < 1.7
    other = films.read(video.astype(np.uint8), motion[::-1], scenes[::-1], [0, 120, 240], [49])
    assert min(other["minutes"]) < 0.7 and other["words"] == 0
    video[49:120] += 12
    drifted = films.read(np.clip(video, 0, 255).astype(np.uint8), motion, scenes, [0, 120, 240], [49])
    assert drifted["ground"] == pytest.approx(12, abs=1.5) and drifted["join"] > 2 * found["join"]


@pytest.mark.soak
@pytest.mark.skipif(not SPEAKS, reason="nothing here can speak")
@pytest.mark.timeout(900)
def test_edits(take) -> None:
    """One clip redubbed, retaken and extended: the mouth leaves the old track for the new one, what is kept is the
    source's own, and neither seams nor colours tell what was made."""
    numbers = take("edits").numbers
    assert numbers["redub: new"] >= 0.8 and numbers["redub: lag"] == 0
    assert numbers["redub: old"] <= 0.2 and abs(numbers["redub: tracks"]) < 0.1
    assert numbers["redub: outside"] == numbers["retake: kept"] == numbers["extension behind: kept"] == edits.EQUAL
    assert numbers["redub: maximum"] >= 40
    assert numbers["retake: correlation"] >= 0.8 and numbers["extension behind: correlation"] >= 0.7
    assert max(numbers["retake: seam"], numbers["extension behind: seam"]) <= 2
    assert max(numbers["extension behind: ground"], numbers["extension behind: face"]) <= 8


@pytest.mark.skipif(not SPEAKS, reason="nothing here can speak")
@pytest.mark.timeout(7200)
@pytest.mark.soak
def test_edits_of_all_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_THREADS", "1")
    monkeypatch.setattr(edits, "KEPT", tmp_path / "parts.json")
    missed = {row[0] for row in edits.edits(tmp_path).rows if row[-1] == "no"}
    kept = json.loads((measure.RESULTS / "edits.json").read_text(encoding="utf-8"))
    assert missed <= {row[0] for row in kept["rows"] if row[-1] == "no"}


@pytest.mark.soak
def test_the_mask_of_a_mouth_has_all_that_it_moves() -> None:
    from a2v.benchmarks import edited
    from a2v.mini import clips

    draw = np.random.default_rng(3)
    for _ in range(12):
        scene = clips.random_scene(draw, "face")
        closed, wide = (clips.render(scene, np.full(49, opening, np.float32)) for opening in (0, 1))
        moved = np.abs(wide - closed).max((0, 3)) > 0.5 / 255
        assert not (moved & ~edited.mask_of(scene, 49, 1)).any()
        assert (moved & ~edited.mask_of(scene, 49, -4)).any()


def test_a_seam_is_the_change_where_two_takes_meet() -> None:
    from a2v.benchmarks import edited
    from a2v.mini import clips

    draw = np.random.default_rng(6)
    scene = clips.random_scene(draw, "face")
    video = clips.render(scene, clips.random_motion(draw, scene, 73))
    made = (255 * video).round()
    same = edited.seams(made.astype(np.uint8), video, (17, 49))
    assert same["seam"] == pytest.approx(same["seam, drawn"], rel=0.05)
    assert same["around"] == pytest.approx(same["around, drawn"], rel=0.05)
    made[17:49] += 10
    jumped = edited.seams(made.clip(0, 255).astype(np.uint8), video, (17, 49))
    assert jumped["seam"] > 4 * same["seam"] and jumped["seam, drawn"] == same["seam, drawn"]


def test_a_row_says_whether_its_bound_is_kept() -> None:
    line = edits.Line("what", 1, " dB", least=40)
    assert line.cells([41.0, 39.5]) == ("40.2 dB", "39.5 … 41.0", "≥ 40 dB", "yes")
    assert line.cells([100.0, 100.0])[:2] == ("equal", measure.MISSING)
    late = edits.Line("lag", 0, least=0, most=0, worst=True)
    assert late.cells([0, -2]) == ("-1", "-2 … 0", "0, each", "no") and late.cells([0, 0])[3] == "yes"
    each = edits.Line("kept", 1, " dB", least=40, worst=True)
    assert each.cells([100.0, 39.0])[3] == "no" and each.cells([100.0, 41.0])[3] == "yes"


def test_joins_are_compared_with_their_own_section() -> None:
    """A section whose picture hardly moves has a join that would not be seen in the other section."""
    from a2v.benchmarks import films
    from a2v.mini import clips

    draw = np.random.default_rng(5)
    scenes = films._scenes(draw, 2)
    video = np.concatenate([clips.render(scene, np.full(60, 0.5)) for scene in scenes]) * 200
    video[:60] += 20 * (np.arange(60) % 2)[:, None, None, None]
    video[60:] += (np.arange(60) % 2)[:, None, None, None]
    video[90:] += 6
    motion = np.zeros(120)
    found = films.read(video.astype(np.uint8), motion, scenes, [0, 60, 120], [30, 60, 90])
    assert found["join"] == pytest.approx(found["anywhere"]) and found["join"] > 3


def test_the_memory_of_a_window_is_read_at_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded between the stages, and by the decoder, belongs to no window."""
    from a2v.benchmarks import films

    held = {
        "encode text": 900,
        "first stage": [100, 200, 190, 206],
        "second stage": [300, 400, 404, 396],
        "decode": 999,
    }
    present = {"bytes": 0}
    monkeypatch.setattr(films, "resident", lambda field: present[{"RssAnon": "bytes"}[field]])
    watch = films.Watch()
    for phase, values in held.items():
        for number, size in enumerate(values if isinstance(values, list) else []):
            for done, share in ((1, 0.9), (2, 1.0), (3, 0.95)):
                present["bytes"] = size * share
                watch(f"{phase}, window {number + 1} of 4", done, 3)
        if not isinstance(values, list):
            present["bytes"] = values
            watch(phase, 1, 1)
    figures = films._costs(watch)
    assert [size for _, size in watch.windows["first stage"]] == [100, 200, 190, 206]
    assert figures["first stage, grown"] == pytest.approx(0.03)
    assert figures["second stage, grown"] == pytest.approx(0.01)
    assert films.grown(figures) == "+3.0%"


@pytest.mark.soak
def test_machines(take) -> None:
    pytest.importorskip("ray")
    numbers = take("machines").numbers
    assert numbers["parts of the worker"] >= 1 and numbers["two machines / one"] > 0


@pytest.mark.soak
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg on this machine")
def test_encode(take) -> None:
    """At the same settings both files have about the same quality and size."""
    numbers = take("encode").numbers
    for mode in ("balanced", "fast"):
        assert abs(numbers[f"{mode} PSNR difference"]) < 0.5
        assert 0.7 < numbers[f"{mode} size"] < 1.4


@pytest.mark.soak
def test_gpu_at_a_toy_size_on_a_cpu(take, peers: None) -> None:
    table = take("gpu", "card")
    assert table.numbers["error"] <= table.numbers["official error"] or not torch.cuda.is_available()
    assert max(table.numbers["error"], table.numbers["official error"]) < gpu.CLOSE[gpu.dtype()]
    ours = (*LEVELS, *card.ways(), *card.DECODING)
    assert [row[0] for row in table.rows] == ["official, eager", *(f"ours, {name}" for name in ours)]
    assert {"fp8, decoded", "fp8, fast products", "fp8, LoRA of rank 384", "fp8, offload"} <= set(ours)
    assert min(table.numbers[f"{name} seconds"] for name in card.DECODING) > 0


@pytest.mark.soak
def test_formats(take) -> None:
    pytest.importorskip("comfy_kitchen")
    table = take("formats")
    assert {row[0] for row in table.rows} == set(formats.KINDS)
    assert table.numbers["int8, a scale a row: weights"] < table.numbers["NVFP4: weights"] < 0.12
    assert table.numbers["MXFP8: latent"] < table.numbers["NVFP4: latent"]


def test_a_step_in_bfloat16_is_compared_with_float32(tmp_path: Path) -> None:
    size, latents = {**gpu.LITTLE, "dtype": "bfloat16"}, []
    for exact in (False, True):
        path = tmp_path / f"{exact}.safetensors"
        gpu.ours(size, gpu.TOY.plain, "none", 1, save=str(path), exact=exact)
        latents.append(load_file(path)["latent"])
    gpu.our_model.cache_clear()
    error = float((latents[0] - latents[1]).norm() / latents[1].norm())
    assert 1e-4 < error < gpu.CLOSE[torch.bfloat16]
    gpu.check(error, 1.2 * error, torch.bfloat16)
    for ours, official in ((error, error / 2), (0.3, 0.4), (float("nan"), error)):
        with pytest.raises(AssertionError, match="against float32"):
            gpu.check(ours, official, torch.bfloat16)


def test_a_cut_run_on_a_gpu_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every call of a side counted, and the run cut at each of them."""
    calls: list[tuple[str, str]] = []
    left = [0]

    def side(function: str, save: str | None = None, level: str = "", **named: object) -> dict:
        if left[0] == 0:
            raise measure.SideError("cut")
        left[0] -= 1
        more = {name: value for name, value in named.items() if name in ("how", "offload", "tiled")}
        calls.append((function, f"{level}{more or ''}{Path(save).stem if save else ''}"))
        if save:
            save_file({"latent": torch.ones(1)}, save)
        return {"first": 1.0, "second": 2.0, "stages": 3.0 + len(calls), "allocated": 4}

    @contextmanager
    def sides(*modules: str, log: Path):
        yield [side for _ in modules]

    monkeypatch.setattr(card, "sides", sides)
    cuts, table = 0, None
    while table is None:
        left[0] = 3  # the first part needs three calls
        try:
            table = card.gpu(tmp_path, small=True)
        except measure.SideError:
            cuts += 1
    parts = 3 + 1 + len(LEVELS) + len(card.ways()) + len(card.DECODING)
    assert len(calls) == len(set(calls)) == parts and cuts == (parts - 1) // 3
    assert not list(tmp_path.glob("*.json"))
    left[0] = -1
    whole = card.gpu(tmp_path, small=True)
    assert [row[0] for row in whole.rows] == [row[0] for row in table.rows]


def test_parts_of_another_card_or_code_are_not_gone_on_with(tmp_path: Path) -> None:
    path, beside = tmp_path / "a.json", tmp_path / "out" / "a.json"
    parts = Parts(path, {"card": "H100"}, (beside,))
    assert parts.get("a", lambda: {"x": 1.5}) == {"x": 1.5}
    assert beside.read_bytes() == path.read_bytes()
    assert Parts(path, {"card": "H100"}).get("a", lambda: {"x": 2.0}) == {"x": 1.5}
    assert Parts(path, {"card": "H200"}).get("a", lambda: {"x": 2.0}) == {"x": 2.0}
    path.write_text("cut sho")
    assert "a" not in Parts(path, {"card": "H200"})
    assert code("benchmarks") == code("benchmarks") != code("mini")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.soak
def test_gpu_says_that_there_is_none(tmp_path: Path) -> None:
    before = measure.DOCUMENT.read_bytes()
    done = subprocess.run([sys.executable, ROOT / "benchmarks", "gpu"], cwd=tmp_path, capture_output=True, text=True)
    assert measure.DOCUMENT.read_bytes() == before
    assert done.returncode == 2
    assert "there is no CUDA here" in done.stdout + done.stderr


@pytest.mark.soak
def test_a_side_that_fails_is_told() -> None:
    with measure.Side("encode") as side, pytest.raises(measure.SideError, match=r"quality: .*nowhere"):
        side("quality", size=[1, 32, 32], path="/nowhere.mp4")


def test_ratio_is_over_pairs() -> None:
    ratio = measure.Ratio([1.0, 4.0, 3.0], [2.0, 4.0, 4.0])
    assert ratio.pairs == [0.5, 1.0, 0.75]
    assert str(ratio) == "0.75 (0.50–1.00)"


def test_counter_counts_rows() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ff = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.ff(x)

    blocks = nn.ModuleList(Block() for _ in range(3))
    with Counter(blocks) as counter:
        for block in blocks:
            block(x=torch.zeros(2, 5))
        blocks[0].ff(torch.zeros(4, 5))  # parts of a block that is not called itself
    blocks[0](torch.zeros(1, 5))
    assert counter.calls == {"block": 6, "feed forward": 10}
    assert counter.runs == 10


def test_the_readme_has_the_ratios_of_the_page() -> None:
    page, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/benchmarks.md", "README.md"))
    section = " ".join(readme.partition("## How fast")[2].partition("\n## ")[0].split())
    found = re.findall(r"\d\.\d+ \(\d\.\d+–\d\.\d+\)", section)
    assert len(found) >= 5 and [each for each in found if each not in page] == []


def test_the_page_is_the_results() -> None:
    """docs/benchmarks.md is written by the benchmarks, every figure with its date and machine."""
    results = sorted(measure.RESULTS.glob("*.json"))
    assert results, "no results are committed"
    page = measure.DOCUMENT.read_text(encoding="utf-8")
    order = importlib.import_module("a2v.benchmarks.names").BENCHMARKS
    assert page == measure.document(order)
    for path in results:
        assert path.stem in order
        content = json.loads(path.read_text(encoding="utf-8"))
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", content["date"])
        assert content["machine"] in page
