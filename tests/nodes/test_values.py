"""What nodes make of the values they are given, without a model."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import comfy.model_management as management
import execution
from a2v.ltx.errors import InputError
from a2v.ltx.latents import Noise
from a2v.ltx.media.audio import Track
from a2v.ltx.media.probe import VideoFile
from a2v.nodes import audio, conditioning, latents, progress, safety, sampling, writing
from a2v.nodes.destination import destination
from a2v.nodes.progress import TEXT
from scipy.io import wavfile

import nodes as comfy_nodes


def track(seconds: float, rate: int = 48000) -> Track:
    return Track(torch.zeros(2, round(seconds * rate)), rate)


@pytest.mark.parametrize(
    ("seconds", "fps", "match", "asked", "frames", "said"),
    [
        (1.0, 24.0, True, 121, 25, "25 frames, 1.04 s"),
        (1.0, 24.0, False, 121, 121, "silence follows"),
        (10.0, 24.0, False, 100, 105, "num_frames rounded up from 100 to 105"),
        (60.0, 24.0, True, 121, 481, "the audio lasts 60.00 s; the video ends after 20.04 s"),
        (60.0, 24.0, False, 481, 481, "481 frames, 20.04 s"),
        (0.01, 24.0, True, 121, 9, "9 frames"),
        (1.001, 23.976, True, 121, 25, "25 frames, 1.04 s"),
    ],
)
def test_frames_and_what_is_said_of_them(
    seconds: float, fps: float, match: bool, asked: int, frames: int, said: str
) -> None:
    counted, report = audio.count(track(seconds), fps, match, asked)
    assert counted == frames and said in report


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("24", None),
        (24, None),
        ("abc", None),  # the node itself says what is wrong
        ({}, None),
        ("0", "value_smaller_than_min"),
        (0, "value_smaller_than_min"),
        ("1e9", "value_bigger_than_max"),
        (1001, "value_bigger_than_max"),
    ],
)
def test_frames_per_second_that_a_workflow_has_as_a_text(
    monkeypatch: pytest.MonkeyPatch, given: object, fault: str | None
) -> None:
    """ComfyUI makes a number of a text in an input that takes FLOAT, but not in one that takes INT, too."""
    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "LTXA2VFrameCount", audio.FrameCount)
    inputs = {"frame_rate": given, "match_audio_length": True, "num_frames": 9}
    graph = {"1": {"class_type": "LTXA2VFrameCount", "inputs": inputs}}
    _, errors, _ = asyncio.run(execution.validate_inputs("run", graph, "1", {}))
    told = [error["type"] for error in errors if error["extra_info"]["input_name"] == "frame_rate"]
    assert told == ([] if fault is None else [fault])


def test_what_is_no_number_of_frames_per_second_is_told_and_a_text_becomes_one() -> None:
    node = type("Node", (audio.FrameCount,), {"hidden": SimpleNamespace(unique_id="1")})
    sound = audio.from_track(track(1.0))
    frames, fps, _ = node.execute(sound, "23.976", True, 9).args
    assert (frames, fps) == (25, 23.976)
    with pytest.raises(InputError, match=r"^fps: 'abc' is not a frame rate; give a number"):
        node.execute(sound, "abc", True, 9)


def test_the_help_tells_the_length_that_is_refused() -> None:
    (whole,) = (each for each in audio.FrameCount.GET_SCHEMA().inputs if each.id == "whole_track")
    assert "shorter than 45 minutes" in whole.tooltip
    silence = torch.zeros(1, 1)
    with pytest.raises(InputError, match="it lasts 45 minutes or more"):
        audio.count(Track(silence.expand(1, 45 * 60 * 1000), 1000), 24.0, True, 121, True)
    assert audio.count(Track(silence.expand(1, 45 * 60 * 1000 - 1), 1000), 24.0, True, 121, True)[0] == 64801


def test_audio_goes_through_the_graph_whole() -> None:
    whole = Track(torch.randn(6, 100), 44100, ("FL", "FR", "FC", "LFE", "SL", "SR"), ("song.wav: cut short",))
    native = audio.from_track(whole)
    assert native["waveform"].shape == (1, 6, 100) and native["sample_rate"] == 44100
    back = audio.to_track(native)
    assert torch.equal(back.waveform, whole.waveform) and (back.rate, back.speakers) == (44100, whole.speakers)
    assert back.notes == whole.notes
    for other in ({"notes": "text"}, {"notes": [1, None]}, {"notes": None}):
        assert audio.to_track({**native, **other}).notes == ()
    for key in ("speakers", "notes"):  # as after another pack's node
        del native[key]
    assert audio.to_track(native).speakers == audio.to_track(native).notes == ()


def test_damage_of_a_sound_is_told_by_the_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the one that reads it, and in the report that the HTTP API reads."""
    path = tmp_path / "cut.wav"
    wavfile.write(path, 16_000, (torch.randn(48_000) * 3000).short().numpy())
    whole = path.read_bytes()
    monkeypatch.setattr(audio.files, "upload", lambda _: path)
    loaded = audio.LoadAudio.execute("cut.wav")
    assert loaded.ui is None
    path.write_bytes(whole[:40_000])
    loaded = audio.LoadAudio.execute("cut.wav")
    (told,) = loaded.ui[TEXT]
    assert told.startswith("cut.wav: its sound is cut short or damaged")
    report = audio.PreprocessAudio.execute(loaded.args[0], 25, 24.0, True).args[-1]
    assert told in report


@pytest.mark.parametrize("shape", [(2, 1, 100), (2, 1, 1, 100), (1, 2, 0)])
def test_a_batch_of_audio_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="channels, samples"):
        audio.to_track({"waveform": torch.zeros(shape), "sample_rate": 16000})


def test_the_second_stage_draws_what_comes_after_the_first() -> None:
    shapes = [(1, 5, 8), (1, 3, 8), (1, 20, 8)]
    generator = torch.Generator().manual_seed(9)
    expected = [torch.randn(shape, generator=generator) for shape in shapes]
    drawn, after = Noise(9).draw(*shapes[:2])
    following = sampling.NextNoise(after)
    assert following.seed == 9
    for wanted, got in zip(expected, drawn, strict=False):
        assert torch.equal(wanted, got)
    for _ in range(2):  # a NOISE gives the same each time it is asked
        assert torch.equal(following.generate_noise({"samples": torch.zeros(shapes[2])}), expected[2])


def test_stg_blocks_are_read_from_a_text() -> None:
    assert sampling._blocks("auto") == sampling._blocks("") == ()
    assert sampling._blocks("28") == (28,) and sampling._blocks(" 27, 28 29") == (27, 28, 29)
    for text in ("all", "28;29", "-1", "2.5", "auto, 3", "9" * 5000):
        with pytest.raises(InputError, match="stg_blocks"):
            sampling._blocks(text)


@pytest.mark.parametrize(
    ("size", "two_passes", "first", "second"),
    [
        ((1024, 576), True, (16, 9, 16), (16, 18, 32)),
        ((1000, 500), True, (16, 8, 16), (16, 16, 32)),
        ((1000, 500), False, (16, 16, 32), (16, 16, 32)),
        ((4096, 4096), True, (16, 22, 22), (16, 44, 44)),
    ],
)
def test_sizes_of_both_stages(
    size: tuple[int, int], two_passes: bool, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    made = latents.VideoSize.execute("custom", *size, 121, two_passes).args
    assert [tuple(latent["samples"].shape) for latent in made[:2]] == [(1, 128, *first), (1, 128, *second)]
    changed = second[1] * 32 != size[1] or second[2] * 32 != size[0]
    assert ("size changed from" in made[2]) == changed


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (2, 128, 2, 4, 4), (1, 16, 2, 4, 4)])
def test_another_models_latent_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="LTX video latent"):
        latents.samples_of({"samples": torch.zeros(shape)})


@pytest.mark.parametrize(
    "node", [conditioning.ImageConditioning, conditioning.EndImageConditioning, conditioning.Keyframe]
)
def test_an_image_at_strength_0_is_left_out_and_not_even_encoded(node: type) -> None:
    latent = {"samples": torch.zeros(1, 128, 2, 2, 2)}
    others = (object(),)
    image = torch.zeros(1, 8, 8, 3)
    made = node.execute(video_vae=None, image=image, latent=latent, strength=0.0, guides=others)
    assert made.args == (others,)


def test_an_end_image_needs_another_frame() -> None:
    latent = {"samples": torch.zeros(1, 128, 1, 2, 2)}
    with pytest.raises(InputError, match="one frame"):
        conditioning.EndImageConditioning.execute(
            video_vae=None, image=torch.zeros(1, 8, 8, 3), latent=latent, strength=1.0
        )


@pytest.mark.parametrize(("frame", "placed"), [(0, 0), (5, 5), (16, 16), (-1, 16), (-17, 0)])
def test_an_image_is_placed_at_any_frame(monkeypatch: pytest.MonkeyPatch, frame: int, placed: int) -> None:
    monkeypatch.setattr(conditioning.memory, "use", lambda *_, **__: (None,))
    monkeypatch.setattr(conditioning.activations, "encoding_memory", lambda *_: 0)
    monkeypatch.setattr(conditioning, "encode_image", lambda _, pixels: torch.zeros(1, 128, 1, 2, 2))
    latent = {"samples": torch.zeros(1, 128, 3, 2, 2)}
    vae = SimpleNamespace(module=None)
    image, others = torch.zeros(1, 64, 64, 3), (object(),)
    made = conditioning.Keyframe.execute(
        video_vae=vae, image=image, latent=latent, strength=0.5, frame=frame, guides=others, compression=0
    )
    (guides,) = made.args
    assert guides[0] is others[0] and (guides[1].frame, guides[1].strength) == (placed, 0.5)


@pytest.mark.parametrize("crf", [-2, 52])
def test_a_compression_that_no_encoder_has_is_refused(crf: int) -> None:
    inputs = {"image": torch.zeros(1, 8, 8, 3), "latent": {"samples": torch.zeros(1, 128, 3, 2, 2)}, "strength": 1.0}
    with pytest.raises(InputError, match=rf"^compression: {crf} is outside -1 to 51"):
        conditioning.ImageConditioning.execute(video_vae=None, compression=crf, **inputs)


@pytest.mark.parametrize("frames", [0, -7])
def test_sound_beside_no_frames_is_refused(frames: int) -> None:
    node = type("Node", (conditioning.AudioConditioning,), {"hidden": SimpleNamespace(unique_id="1")})
    sound = {"waveform": torch.zeros(1, 1, 48000), "sample_rate": 48000}
    with pytest.raises(InputError, match=rf"^frames: {frames} is too few"):
        node.execute(audio_vae=None, audio=sound, frames=frames, fps=24.0)


@pytest.mark.parametrize("frame", [17, -18])
def test_a_frame_outside_the_video_is_refused(frame: int) -> None:
    latent = {"samples": torch.zeros(1, 128, 3, 2, 2)}
    with pytest.raises(InputError, match="give -17 to 16"):
        conditioning.Keyframe.execute(
            video_vae=None, image=torch.zeros(1, 8, 8, 3), latent=latent, strength=1.0, frame=frame
        )


def test_the_graph_is_embedded_as_comfyui_embeds_it_unless_it_is_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = writing._metadata({"1": {"class_type": "é"}}, {"workflow": {"nodes": []}})
    assert embedded == {"workflow": '{"nodes": []}', "prompt": '{"1": {"class_type": "\\u00e9"}}'}
    assert writing._metadata(None, None) == {}
    monkeypatch.setattr(writing.args, "disable_metadata", True)
    assert writing._metadata({"1": {}}, {"workflow": {}}) == {}


def test_files_are_numbered_and_stay_in_the_output_folder(base: Path) -> None:
    folder, name, subfolder = destination("clips/%width%x%height%", 64, 32)
    assert (folder, name, subfolder) == (base / "output" / "clips", "64x32_00001_.mp4", "clips")
    (folder / name).touch()
    assert destination("clips/%width%x%height%", 64, 32)[1] == "64x32_00002_.mp4"
    for prefix in ("../x", "/tmp/x", "a/../../x"):
        with pytest.raises(InputError, match="leads out"):
            destination(prefix, 64, 32)
    for prefix in ("", ".", "a/.."):
        with pytest.raises(InputError, match="names no file"):
            destination(prefix, 64, 32)


@pytest.mark.parametrize("prefix", ["%year%/x", "%year%/below/x", "link/x", "%width%/x", "ok/../link/x"])
def test_no_link_leads_out_of_the_output_folder(base: Path, tmp_path: Path, prefix: str) -> None:
    """Whatever a prefix comes to; and nothing is made where it leads."""
    elsewhere, output = tmp_path / "elsewhere", base / "output"
    elsewhere.mkdir()
    output.mkdir(exist_ok=True)
    links = [output / name for name in (time.strftime("%Y"), "link", "64")]
    try:
        for link in links:
            link.symlink_to(elsewhere)
        with pytest.raises(InputError, match="leads out of the output folder"):
            destination(prefix, 64, 32)
        assert list(elsewhere.iterdir()) == []
    finally:
        for link in links:
            link.unlink()


def test_the_report_is_json_without_paths_or_the_graph() -> None:
    facts = dict.fromkeys(VideoFile.__dataclass_fields__, "x")
    video = VideoFile(**{**facts, "frames": 48, "fps": Fraction(24000, 1001), "path": Path("/secret/x.mp4")})
    report = writing._facts(video, "x.mp4", "clips")
    assert (report["filename"], report["subfolder"], report["fps"]) == ("x.mp4", "clips", "24000/1001")
    assert report["duration"] == pytest.approx(2.002) and "metadata" not in report
    assert all(isinstance(value, (str, int, float)) for value in report.values()) and "/secret" not in str(report)


def test_frames_of_8_bits_are_written_as_they_were() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    (chunk,) = safety.chunks(levels.float() / 255)
    assert torch.equal(chunk, levels)


def test_a_preview_has_the_videos_shape() -> None:
    picture = progress.preview(torch.randn(1, 128, 3, 9, 16))
    assert picture.size == (512, 288) and picture.mode == "RGB"


def test_a_preview_has_the_colours_of_ltx_2_where_the_host_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer hosts have the format LTXAV; 0.8 has it without factors."""
    latent = torch.randn(1, 128, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    formats = {}
    for name, red in (("LTXAV", None), ("LTXV", 0.25)):
        factors = None if red is None else [[red, 0.0, 0.0]] * 128
        formats[name] = SimpleNamespace(latent_rgb_factors=factors, latent_rgb_factors_bias=None)
        monkeypatch.setattr(progress.comfy.latent_formats, name, lambda found=formats[name]: found, raising=False)
    old = progress.preview(latent)
    formats["LTXAV"].latent_rgb_factors = [[0.0, 0.25, 0.0]] * 128
    new = progress.preview(latent)
    assert [len(picture.getcolors(1 << 20)) > 1 for picture in (*old.split(), *new.split())] == [1, 0, 0, 0, 1, 0]


def test_progress_is_where_an_interrupt_takes_hold() -> None:
    bar = progress.Progress("1")
    bar(1, 2)
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        bar(2, 2)
    bar.check()  # it is raised once
