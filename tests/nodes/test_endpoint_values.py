"""What the endpoint's own nodes make of their values, without a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import folder_paths
from a2v.ltx.diffusion.conditioning import AudioCondition
from a2v.ltx.errors import FlaggedError, InputError
from a2v.ltx.grid import audio_length
from a2v.ltx.media.audio import Track, soundtrack
from a2v.ltx.media.preprocess import TARGET, loudness
from a2v.ltx.media.room_noise import with_room_noise
from a2v.ltx.media.safety import Watch, load_checker
from a2v.nodes import audio, film, latents, loras, output, safety
from a2v.tests.ltx.media.test_safety import write as write_classifier


def picture(width: int, height: int) -> torch.Tensor:
    return torch.zeros(1, height, width, 3)


@pytest.mark.parametrize(
    ("size", "first", "end", "taken", "said"),
    [
        ("auto", (700, 400), (512, 512), (704, 448), "size changed from 700×400 to 704×448"),
        ("auto", None, (512, 512), (512, 512), "512×512, 9 frames"),
        ("auto", None, None, (1024, 576), "no image is connected, so auto is landscape_16_9"),
        ("portrait_4_3", (700, 400), None, (768, 1024), "768×1024, 9 frames"),
        ("custom", (700, 400), None, (320, 256), "size changed from 300×200 to 320×256"),
    ],
)
def test_where_the_size_comes_from(
    size: str, first: tuple[int, int] | None, end: tuple[int, int] | None, taken: tuple[int, int], said: str
) -> None:
    images = (None if each is None else picture(*each) for each in (first, end))
    _, full, report = latents.VideoSize.execute(size, 300, 200, 9, True, *images).args
    assert (full["samples"].shape[4] * 32, full["samples"].shape[3] * 32) == taken and said in report


def test_a_size_from_another_node_is_checked_too() -> None:
    for side in (0, -64, 2**20):
        with pytest.raises(InputError, match=r"video_size\.width"):
            latents.VideoSize.execute("custom", side, 64, 9, True)


def tone(level: float, seconds: float = 2.0) -> dict[str, object]:
    wave = level * torch.sin(torch.arange(round(seconds * 24000)) / 24000 * 2 * torch.pi * 440)
    return audio.from_track(Track(wave[None], 24000))


def test_the_model_hears_a_levelled_copy_and_the_loaded_sound_stays() -> None:
    loaded = tone(0.02)
    before = loaded["waveform"].clone()
    heard, report = audio.PreprocessAudio.execute(loaded, 25, 24.0, True).args
    kept = soundtrack(audio.to_track(loaded), 25, Fraction(24))
    assert heard["waveform"].shape[2] == kept.waveform.shape[1], "cut to the video, as the command does"
    assert loudness(audio.to_track(heard)) == pytest.approx(TARGET, abs=0.2)
    assert torch.equal(loaded["waveform"], before)
    assert f"to {TARGET:.1f} LUFS" in report
    same, report = audio.PreprocessAudio.execute(loaded, 25, 24.0, False).args
    assert same is loaded and report == "the audio was not preprocessed"


def test_two_that_are_joined_say_which_sound_they_mean() -> None:
    """As a dub has them: for the new voice, and for the clip's sound. One alone needs no name."""
    titles = {"1": "Preprocess New Voice", "4:2": "Preprocess Clip's Sound", "3": "Report"}
    kinds = {"1": "LTXA2VPreprocessAudio", "4:2": "LTXA2VPreprocessAudio", "3": "LTXA2VReport"}
    prompt = {key: {"class_type": kinds[key], "inputs": {}, "_meta": {"title": titles[key]}} for key in kinds}

    def said(node_id: str, graph: dict[str, object], enabled: bool = True) -> list[str]:
        hidden = SimpleNamespace(unique_id=node_id, prompt=graph)
        node = type("PreprocessAudio", (audio.PreprocessAudio,), {"hidden": hidden})
        return node.execute(tone(0.0), 25, 24.0, enabled).args[1].splitlines()

    for node_id in ("1", "4:2"):
        for enabled in (True, False):
            plain = said(node_id, {node_id: prompt[node_id], "3": prompt["3"]}, enabled)
            assert plain[0].startswith("the audio ") and len(plain) > 1  # with a warning of silence
            assert said(node_id, prompt, enabled) == [f"{titles[node_id]}: {line}" for line in plain]
    untitled = {key: {"class_type": node["class_type"], "inputs": {}} for key, node in prompt.items()}
    assert said("4:2", untitled)[0].startswith("node 4:2: the audio ")


def test_room_noise_is_under_what_the_model_hears_and_the_loaded_sound_stays() -> None:
    loaded = tone(0.02)
    before = loaded["waveform"].clone()
    (noisy,) = audio.RoomNoise.execute(loaded, -40.0).args
    assert torch.equal(audio.to_track(noisy).waveform, with_room_noise(audio.to_track(loaded), -40.0).waveform)
    assert torch.equal(loaded["waveform"], before)


def test_what_spoils_a_video_is_in_the_report_either_way() -> None:
    for enabled in (True, False):
        _, report = audio.PreprocessAudio.execute(tone(0.0), 25, 24.0, enabled).args
        assert "silen" in report.splitlines()[1]


def test_a_kept_track_is_returned_as_it_was_loaded() -> None:
    latent = torch.zeros(1, 8, audio_length(9, Fraction(24)), 16)
    kept = AudioCondition(latent, 9, Fraction(24), 1.0)
    loaded = tone(0.5)
    track, report = audio.DecodeAudio.execute(kept, kept, None, None, loaded).args
    assert track is loaded and "unchanged" in report


def test_reports_are_joined_by_line_in_their_order() -> None:
    (joined,) = output.Report.execute(report_2="b\n\n c ", report_8="d", report_1="a", report_4="").args
    assert joined == "a\nb\nc\nd"
    assert output.Report.execute().args == ("",)


@pytest.fixture
def camera(base: Path, fresh_lists: None) -> Iterator[Path]:
    path = base / "models" / "loras" / "some" / "where" / "LTX-2-19b-LoRA-Camera-Control-Jib-Up.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    yield path
    path.unlink()


def test_a_camera_lora_is_found_by_its_official_name_wherever_it_lies(camera: Path) -> None:
    assert loras._camera_path("jib_up") == camera
    assert loras._camera_path("none") is None
    with pytest.raises(InputError) as missing:
        loras._camera_path("dolly_left")
    assert str(missing.value) == (
        "camera_lora: ltx-2-19b-lora-camera-control-dolly-left.safetensors is not in models/loras: get it from "
        "https://huggingface.co/Lightricks/LTX-2-19b-LoRA-Camera-Control-Dolly-Left."
    )
    assert loras.CameraLora.validate_inputs("dolly_left") == str(missing.value)
    model = object()
    assert loras.CameraLora.execute(model, "none", 1.0).args == (model, "")


def test_distilled_loras_are_offered_first(base: Path, fresh_lists: None) -> None:
    folder = base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("a.safetensors", "ltx-Distilled.safetensors", "z.safetensors")]
    for path in paths:
        path.touch()
    (lora,) = (each for each in loras.DistilledLora.define_schema().inputs if each.id == "lora")
    first, *others = lora.options  # other tests' files may lie there, too
    assert first == "ltx-Distilled.safetensors"
    assert others == sorted(others) and {"a.safetensors", "z.safetensors"} <= set(others)
    for path in paths:
        path.unlink()


@pytest.fixture
def checkers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(safety.REQUIRED, raising=False)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, safety.KIND, ([str(tmp_path)], set()))
    return tmp_path


def test_classifiers_are_looked_for_in_a_folder_of_their_own(base: Path) -> None:
    assert folder_paths.get_folder_paths(safety.KIND) == [str(base / "models" / "safety_checker")]


def test_the_nearest_classifier_is_the_first(checkers: Path) -> None:
    assert safety.installed() == {}
    for name in ("z", "a/deep", "b"):
        (checkers / name).mkdir(parents=True)
        (checkers / name / "config.json").touch()
    assert list(safety.installed()) == ["b", "z", "a/deep"]
    (checkers / "config.json").touch()
    assert list(safety.installed()) == [".", "b", "z", "a/deep"] and safety.installed()["."] == checkers


def test_an_absent_checker_is_never_silent(
    checkers: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, why in (("off", "it is off"), ("first found", "none is installed")):
        opened = safety.open_checker(name)
        assert opened.checker is None and why in opened.reason and opened.reason in caplog.text
    images = torch.rand(2, 8, 8, 3)
    passed, flagged, report = safety.SafetyChecker.execute(images, "first found", 0.5, 16, "replace").args
    assert passed is images and flagged is False and "did not run" in report
    monkeypatch.setenv(safety.REQUIRED, "require")
    for name in ("off", "first found"):
        with pytest.raises(InputError, match="LTX_A2V_SAFETY=require"):
            safety.open_checker(name)
    with pytest.raises(InputError, match="is not a folder with a config"):
        safety.open_checker("other")


def test_an_installed_one_is_loaded_and_a_damaged_one_named(checkers: Path) -> None:
    write_classifier(checkers / "bright")
    assert safety.open_checker("first found").checker.folder == checkers / "bright"
    stamp = safety.stamp()
    (checkers / "bright" / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    assert safety.stamp() != stamp
    with pytest.raises(InputError, match="bright"):
        safety.open_checker("bright")


@pytest.mark.parametrize("action", ["replace", "refuse"])
def test_what_is_kept_of_a_flagged_clip_is_deleted(
    checkers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """If the checker is given its latent. What is kept of a clip that passes stays."""
    write_classifier(checkers / "bright")
    monkeypatch.setattr(safety.SafetyChecker, "hidden", SimpleNamespace(unique_id="1"))
    window = tmp_path / "window.safetensors"
    window.touch()
    execute = partial(safety.SafetyChecker.execute, checker="bright", threshold=0.5, frames_looked_at=2, action=action)
    for images, latent in ((torch.zeros(2, 8, 8, 3), {film.KEPT: (window,)}), (torch.ones(2, 8, 8, 3), None)):
        with suppress(FlaggedError):
            execute(images, latent=latent)
        assert window.exists()
    with suppress(FlaggedError):
        assert execute(torch.ones(2, 8, 8, 3), latent={film.KEPT: (window,)}).args[1]
    assert not window.exists()


def test_a_clip_ends_at_its_first_flagged_frame(checkers: Path) -> None:
    checker = load_checker(write_classifier(checkers / "bright"))
    bright = [torch.full((1, 8, 8, 3), value, dtype=torch.uint8) for value in (10, 20, 250, 30)]
    watch, seen = Watch(checker, 4), []
    with pytest.raises(safety.Flagged):
        seen.extend(int(chunk.max()) for chunk in safety.stop_at_flag(watch, bright))
    assert seen == [10, 20] and "frame 2" in safety.flagged(watch, "replace")
    with pytest.raises(FlaggedError, match="nothing was saved"):
        safety.flagged(watch, "refuse")
