"""The whole way once: every stage makes a step, goes on after a stop, and the set that comes out makes a video."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from a2v.mini import audio_vae, evaluate, export, flow, sizes, train, video_vae, voices


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that was hardly trained: what training goes on from."""
    torch.manual_seed(0)
    model = flow.Model()
    modules = {"transformer": model.transformer, "connectors": model.connectors, "vae": video_vae.fresh(0, crops=8)}
    modules |= {"audio_vae": audio_vae.fresh(), "vocoder": audio_vae.fresh_vocoder()}
    folder = tmp_path_factory.mktemp("begun")
    export.export_checkpoint(folder / sizes.FILES["checkpoint"], modules)
    export.export_upscaler(folder / sizes.FILES["upscaler"], sizes.module("upscaler"))
    return folder


@pytest.mark.soak
@pytest.mark.skipif(not voices.synthesizers(), reason="no espeak-ng or flite here")
def test_every_stage_trains_and_the_set_makes_a_video(begun: Path, tmp_path: Path) -> None:
    settings = train.Settings(tmp_path / "run", begun, scale=1e-9, clips=16, rows=2)
    train.run(settings)
    steps = {name: line["step"] for name, line in train.progress(settings).items()}
    assert steps == dict.fromkeys(set(train.BUDGETS) - {"clips"}, 1)
    train.run(settings)  # nothing is left to do
    assert {name: line["step"] for name, line in train.progress(settings).items()} == steps

    to = train.write_set(settings, tmp_path / "set")
    sizes_written = {path.name: path.stat().st_size for path in to.rglob("*") if path.is_file()}
    assert sum(sizes_written.values()) <= 18e6 and max(sizes_written.values()) <= 15 * 2**20
    assert set(json.loads((to / "progress.json").read_text())) == set(steps)
    case = evaluate.cases(1, 0, frames=9)[0]
    for camera in (None, "dolly_in"):
        video = evaluate.Evaluation(to).video(
            case.scene.prompt, case.track, case.video[0], case.video[-1], camera, num_frames=9, num_inference_steps=8
        )
        assert video.shape == (9, 128, 128, 3) and video.std() > 0


@pytest.mark.soak
def test_the_linear_start_is_a_code_already(begun: Path) -> None:
    """From few crops; the real start takes 400 and reaches 20 dB."""

    vae = video_vae.fresh(0, crops=64).eval()
    rng = np.random.default_rng(9)
    pixels = video_vae.pixels([video_vae.crop(rng, 9, 64, (64, 64)) for _ in range(4)])
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        off = vae.decode(latents).sample - pixels
    error = (off / 2).square().mean()
    ground = ((pixels - pixels.mean()) / 2).square().mean()
    assert error < 0.5 * ground  # against a grey picture
    assert not latents[:, sizes.LIVE :].any() and latents[:, : sizes.LIVE].std() > 0.3


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """mini/__main__.py, which trains and writes nothing here."""
    path = Path(train.__file__).with_name("__main__.py")
    monkeypatch.syspath_prepend(path.parent)  # it takes its folder off the path
    spec = importlib.util.spec_from_file_location("mini_main", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("run", "write_set"):
        monkeypatch.setattr(train, name, lambda *given: seen.append(given))
    module.seen = seen = []
    return module


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train --seconds vae=0", "vae=0: write STAGE=NUMBER with a number above 0"),
        ("train --seconds vae=nan", "vae=nan: write"),
        ("train --rate vae=-1", "vae=-1: write"),
        ("train --rate clips=1", "clips: is none of vae, audio_vae"),
        ("train --scale 0", "argument --scale: '0' is not a number above 0"),
        ("train --scale x", "argument --scale: 'x' is not a number above 0"),
        ("train --clips 0", "argument --clips: '0' is not a whole number from 1 on"),
        ("train --rows 0", "argument --rows: '0'"),
        ("train --seed -1", "argument --seed: '-1' is not a whole number from 0 on"),
        ("--threads 0 train", "argument --threads: '0'"),
        ("train --from nowhere", "--from: nowhere holds no exported set"),
        ("export --folder nowhere", "--folder: nowhere holds no state of a stage"),
        ("evaluate --clips 0", "argument --clips: '0'"),
        ("evaluate --to .", "--to: . is a folder"),
    ],
)
def test_wrong_arguments_are_told(
    command: ModuleType, capsys: pytest.CaptureFixture[str], line: str, told: str
) -> None:
    """Status 2 before anything runs: a wrong `--from` trained from nothing, and a wrong `--folder` exported untrained
    files over the trained ones."""
    try:
        status = command.main(line.split())
    except SystemExit as end:
        status = end.code
    assert (status, command.seen) == (2, []) and told in capsys.readouterr().err.splitlines()[-1]


def test_budgets_leave_the_stages_behind_them(command: ModuleType) -> None:
    budgets = ["--seconds", "vae=5", "--seconds", "vocoder=6"]
    assert command.main(["train", "--rate", "vae=1e-4", *budgets, "vae", "vocoder"]) == 0
    ((settings, stages),) = command.seen
    assert (settings.budgets, settings.rates, stages) == ({"vae": 5, "vocoder": 6}, {"vae": 1e-4}, ("vae", "vocoder"))


def test_a_folder_that_cannot_be_made_is_a_line(
    command: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise NotADirectoryError(20, "Not a directory", "file/x")

    monkeypatch.setattr(train, "run", refused)
    assert command.main(["train"]) == 1 and capsys.readouterr().err == "failed: [Errno 20] Not a directory: 'file/x'\n"


def test_settings_are_checked_before_anything_runs() -> None:
    settings = train.Settings(Path("nowhere"), scale=0.5, budgets={"vae": 10}, rates={"vae": 1e-5})
    assert settings.options("vae").seconds == 10 and settings.options("vae").rate == 1e-5
    assert settings.options("transformer").seconds == train.BUDGETS["transformer"] / 2
    assert isinstance(settings.options("distilled"), flow.FlowOptions)


@pytest.mark.soak
def test_latents_stay_where_they_are_to_be_kept(begun: Path, tmp_path: Path) -> None:
    settings = train.Settings(tmp_path / "run", begun, budgets={"vae": 1e-9}, keep_latents=True)
    before = {name: p.clone() for name, p in train.trained(settings, "vae").named_parameters()}
    train.stage(settings, "vae")
    after = dict(train.trained(settings, "vae").named_parameters())
    moved = {name.split(".")[0] for name, p in after.items() if not torch.equal(p, before[name])}
    assert moved == {"decoder"}
