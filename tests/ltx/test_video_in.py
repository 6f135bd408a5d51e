"""Work on a given video, by whole jobs on tiny weights: what is kept is the source's own, to the byte and the sample.

The video in the file is encoded, so the frames are compared where they enter the encoder.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from a2v.ltx import given, pipeline, sampling
from a2v.ltx.arguments import keyframe_argument, parser
from a2v.ltx.diffusion.conditioning import TextContext
from a2v.ltx.diffusion.masks import ramped
from a2v.ltx.encoding import Prompts
from a2v.ltx.errors import InputError
from a2v.ltx.job import UNREAD, Compute, Files, prepare
from a2v.ltx.media.audio import Track
from a2v.ltx.media.clip import open_clip
from a2v.ltx.media.images import contain, fit, load_image
from a2v.ltx.media.masks import fitted, open_area
from a2v.ltx.media.seek import Keys
from a2v.ltx.request import parse
from a2v.ltx.trace import Recorder
from a2v.tests.ltx.loaded import loaded_once
from a2v.tests.ltx.media.clips import write_damaged
from a2v.tests.tiny import TinyFiles
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

WIDTH, HEIGHT, FRAMES = 128, 64, 25
BASE = {
    "prompt": "a woman speaks", "seed": 5, "num_inference_steps": 2, "use_multiscale": False,
    "enable_prompt_expansion": False, "enable_safety_checker": False,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with loaded_once():
        yield


def film(
    path: Path,
    frames: int,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    fps: int = 24,
    sound: bool = True,
    group: int = 250,
) -> Path:
    """A video whose frames differ, with a tone that rises. group: frames from one keyframe to the next one."""
    noise = np.random.default_rng(frames)
    coarse = noise.integers(0, 256, (4, 8, 3), dtype=np.uint8)
    still = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12", "g": str(group)})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if sound:
            track = container.add_stream("aac", rate=48000, layout="stereo")
        for number in range(frames):
            moved = np.roll(still, 3 * number, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(moved), format="rgb24")))
        container.mux(stream.encode())
        if sound:
            times = np.arange(round(frames / fps * 48000)) / 48000
            wave = (0.3 * np.sin(2 * np.pi * (200 + 200 * times) * times)).astype(np.float32)
            block = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
            block.sample_rate, block.pts = 48000, 0
            container.mux(track.encode(block))
            container.mux(track.encode())
    return path


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory, tiny: TinyFiles) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("media")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, : WIDTH // 2] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    for number in range(4):
        Image.new("RGB", (WIDTH, HEIGHT), (60 * number, 90, 120)).save(folder / f"key{number}.png")
    save_file(load_file(tiny.camera_lora), folder / "pose.safetensors", metadata={"reference_downscale_factor": "2"})
    return {
        "video": film(folder / "source.mp4", FRAMES),
        "odd": film(folder / "odd.mp4", 22),
        "mute": film(folder / "mute.mp4", FRAMES, sound=False),
        "long": film(folder / "long.mp4", 121, (64, 64), group=24),
        "reference": film(folder / "reference.mp4", FRAMES, (96, 96)),
        "voice": film(folder / "voice.mp4", 40),
        "mask": folder / "mask.png",
        "lora": folder / "pose.safetensors",
        **{f"key{number}": folder / f"key{number}.png" for number in range(4)},
    }


@dataclass
class Result:
    """A finished job. frames: what was encoded; track: what was encoded with it; trace, report: of the run."""

    frames: Tensor
    track: Track | None
    trace: dict[str, Tensor]
    report: dict[str, Any]
    path: Path


Engine = Callable[..., Result]


def text(seed: int) -> TextContext:
    draw = torch.Generator().manual_seed(seed)
    return TextContext(torch.randn(1, 16, 64, generator=draw), torch.randn(1, 16, 32, generator=draw))


def files_of(tiny: TinyFiles, output: Path, **named: Any) -> Files:
    named = {"audio": None, "upscaler": tiny.upscaler, **named}
    return Files(checkpoint=tiny.checkpoint, text_encoder=tiny.gemma, output=output, **named)


@pytest.fixture
def engine(tiny: TinyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """(request beside BASE, files) → the job's result."""
    written: dict[str, Any] = {}
    write = pipeline.write_video

    def watched(path: Path, frames: Iterator[Tensor], fps: Any, track: Track | None, **more: Any) -> Any:
        chunks = list(frames)
        written.update(frames=torch.cat(chunks), track=track)
        return write(path, iter(chunks), fps, track, **more)

    monkeypatch.setattr(pipeline, "write_video", watched)
    prompts = Prompts("a woman speaks", text(1), text(2))

    def run(values: dict[str, Any], **named: Any) -> Result:
        recorder = Recorder()
        request = parse({**BASE, **values})
        files = files_of(tiny, tmp_path / "out.mp4", **named)
        result = pipeline.run(files, request, Compute(torch.float32), prompts=prompts, trace=recorder)
        return Result(written["frames"], written["track"], recorder.tensors, result.report, files.output)

    return run


@functools.cache
def source_frames(path: Path, frames: int = FRAMES) -> Tensor:
    return torch.stack(list(fitted(open_clip(path).pictures(open_clip(path).fps, frames), WIDTH, HEIGHT)))


@pytest.mark.parametrize("two_stages", [False, True])
def test_a_kept_picture_is_the_source_to_the_byte(engine: Engine, media: dict[str, Path], two_stages: bool) -> None:
    """Only the sound is made anew: the final latent is the source's own, and every frame too."""
    result = engine({"edit": {"renew": "sound"}, "use_multiscale": two_stages}, video=media["video"])
    last = "s2" if two_stages else "s1"
    clean = result.trace[f"{last}/clean_video"]
    assert torch.equal(result.trace["final/video_latent"].flatten(2).transpose(1, 2), clean)
    assert torch.equal(result.frames, source_frames(media["video"]))
    assert result.track.rate == 48000 and result.trace["s1/denoise_mask_audio"].min() == 1


def test_outside_the_time_frames_and_samples_are_the_sources(engine: Engine, media: dict[str, Path]) -> None:
    """9/24 to 17/24 s is latent 2, frames 9 to 16; the sound's latents reach 40 ms further."""
    result = engine({"edit": {"renew": "both", "start": 9 / 24, "end": 17 / 24}}, video=media["video"])
    source = source_frames(media["video"])
    kept = [*range(9), *range(17, FRAMES)]
    assert torch.equal(result.frames[kept], source[kept])
    changes = (result.frames.float() - source.float()).abs().mean(dim=(1, 2, 3))
    assert changes[9:17].min() > 0 and changes[9] < changes[12] and changes[16] < changes[13]
    track, heard = result.track, sound_of(media["video"])
    before, behind = round(0.33 * 48000), round(0.76 * 48000)
    assert torch.equal(track.waveform[:, :before], heard[:, :before])
    assert torch.equal(track.waveform[:, behind : heard.shape[1]], heard[:, behind : track.waveform.shape[1]])
    assert not torch.equal(track.waveform[:, before:behind], heard[:, before:behind])


def test_sound_that_was_made_fades_into_the_sources() -> None:
    """Within what was made, at both of its ends and where it is short."""
    weight = torch.zeros(40)
    weight[10:30], weight[35:] = 1, 1
    faded = ramped(weight, 4)
    rising = [0.2, 0.4, 0.6, 0.8]
    wanted = [0.0] * 10 + rising + [1.0] * 12 + rising[::-1] + [0.0] * 5 + rising + [1.0]
    assert torch.allclose(faded, torch.tensor(wanted))
    weight = torch.tensor([1.0, 1, 1, 0, 0, 1, 1, 0])
    assert torch.allclose(ramped(weight, 4), torch.tensor([0.6, 0.4, 0.2, 0, 0, 0.2, 0.2, 0]))


def sound_of(path: Path) -> Tensor:
    with av.open(str(path)) as container:
        return torch.from_numpy(np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1))


def test_outside_the_mask_pixels_are_the_sources(engine: Engine, media: dict[str, Path]) -> None:
    result = engine({}, video=media["video"], mask=media["mask"])
    source, half = source_frames(media["video"]), WIDTH // 2
    assert torch.equal(result.frames[:, :, half:], source[:, :, half:])
    assert not torch.equal(result.frames[:, :, :half], source[:, :, :half])
    mask = result.trace["s1/denoise_mask_video"].reshape(4, HEIGHT // 32, WIDTH // 32)
    assert (mask[:, :, :2] == 1).all() and (mask[:, :, 2:] == 0).all()
    assert result.trace["s1/step0/call0/audio_sigma"].item() == 0
    assert result.report["used"]["frames"] == FRAMES


def test_a_mask_that_moves_is_a_video(engine: Engine, media: dict[str, Path], tmp_path: Path) -> None:
    """Its white is a quarter of the width up to frame 8, and half of it from frame 9, latent 2, on."""
    pictures = [Image.new("L", (WIDTH, HEIGHT)) for _ in range(FRAMES)]
    for number, picture in enumerate(pictures):
        picture.paste(255, (0, 0, WIDTH // (4 if number < 9 else 2), HEIGHT))
    durations = [9000 / 24, (FRAMES - 9) * 1000 / 24]
    pictures[0].save(tmp_path / "mask.png", save_all=True, append_images=pictures[9:10], duration=durations)
    result = engine({}, video=media["video"], mask=tmp_path / "mask.png")
    source, quarter = source_frames(media["video"]), WIDTH // 4
    assert torch.equal(result.frames[:9, :, quarter:], source[:9, :, quarter:])
    assert torch.equal(result.frames[9:, :, 2 * quarter :], source[9:, :, 2 * quarter :])
    mask = result.trace["s1/denoise_mask_video"].reshape(4, HEIGHT // 32, WIDTH // 32)
    assert mask[:, 0].tolist() == [[1, 0, 0, 0]] * 2 + [[1, 1, 0, 0]] * 2


def test_both_stages_keep_what_the_mask_keeps(engine: Engine, media: dict[str, Path]) -> None:
    """By their latents: the source's pixels come back in any case."""
    result = engine({"use_multiscale": True, "edit": {"start": 9 / 24}}, video=media["video"], mask=media["mask"])
    for stage, rows, columns in (("s1", 1, 2), ("s2", 2, 4)):
        mask = result.trace[f"{stage}/denoise_mask_video"].reshape(4, rows, columns)
        assert (mask[2:, :, : columns // 2] == 1).all() and mask.sum() == 2 * rows * columns // 2, stage
        last = result.trace[max(name for name in result.trace if name.startswith(f"{stage}/step") and "/out_v" in name)]
        kept = mask.flatten() == 0
        assert torch.equal(last[:, kept], result.trace[f"{stage}/clean_video"][:, kept])
        assert not torch.isclose(last[:, ~kept], result.trace[f"{stage}/clean_video"][:, ~kept]).all(-1).any()


@pytest.mark.soak
def test_soft_edges_reach_the_model(engine: Engine, media: dict[str, Path]) -> None:
    """In time for picture and sound, in space by pixels of the source."""
    hard, soft = (
        engine({"edit": {"renew": "both", "start": 0.3, "soften": seconds}}, video=media["video"]).trace
        for seconds in (0, 0.5)
    )
    for name in ("s1/denoise_mask_video", "s1/denoise_mask_audio"):
        assert set(hard[name].unique().tolist()) == {0, 1} and torch.equal(hard[name] > 0, soft[name] > 0)
        assert ((soft[name] > 0) & (soft[name] < 1)).any() and (soft[name] <= hard[name]).all()
    mask = engine({"edit": {"soften_pixels": 40}}, video=media["video"], mask=media["mask"])
    cells = mask.trace["s1/denoise_mask_video"].reshape(4, 2, 4)
    # the second cell's left edge is 32 pixels within
    assert torch.allclose(cells, torch.tensor([1, 32 / 41, 0, 0]).expand(4, 2, 4))


@pytest.mark.parametrize(("kept_cells", "least"), [("noisy", 1), ("clean", 0)])
def test_how_kept_cells_are_shown_is_the_requests(
    engine: Engine, media: dict[str, Path], kept_cells: str, least: float
) -> None:
    """In both stages; the result stays the source's there."""
    edit = {"kept_cells": kept_cells}
    result = engine({"edit": edit, "use_multiscale": True}, video=media["video"], mask=media["mask"])
    for stage, sigma in (("s1", 1.0), ("s2", 0.909375)):
        times = result.trace[f"{stage}/step0/call0/video_timesteps"]
        assert times.min().item() == pytest.approx(least * sigma) and times.max().item() == pytest.approx(sigma)
    assert torch.equal(result.frames[:, :, WIDTH // 2 :], source_frames(media["video"])[:, :, WIDTH // 2 :])


def test_a_new_track_takes_the_place_of_the_sources(engine: Engine, media: dict[str, Path]) -> None:
    """The film keeps the length of the source; the file has the new track's own samples."""
    result = engine({}, video=media["video"], mask=media["mask"], audio=media["voice"])
    assert len(result.frames) == FRAMES
    voice = sound_of(media["voice"])
    assert torch.equal(result.track.waveform, voice[:, : result.track.waveform.shape[1]])
    assert result.trace["s1/denoise_mask_audio"].max() == 0


def test_a_track_longer_than_the_film_is_told(tiny: TinyFiles, media: dict[str, Path], tmp_path: Path) -> None:
    """One of 40 frames for a video of 25, and for one that is made as long as it."""

    def said(**values: Any) -> list[str]:
        files = files_of(tiny, tmp_path / "out.mp4", video=media["video"], mask=media["mask"], audio=media["voice"])
        return [note for note in prepare(files, parse({**BASE, **values})).notes if "of the audio's" in note]

    seconds = sound_of(media["voice"]).shape[1] / 48000  # FFmpeg before 9 counts the padding of AAC's last block
    assert said() == [
        f"only the first 1.04 s of the audio's {seconds:.2f} s are used, because the video ends there: "
        "match_audio_length makes the video as long"
    ]
    assert not said(match_audio_length=True)
    assert not said(num_frames=41)


@pytest.mark.parametrize("at", [0.0, 17 / 24])
@pytest.mark.soak
def test_a_film_goes_on_before_and_behind_the_source(engine: Engine, media: dict[str, Path], at: float) -> None:
    """Its frames stay where they fill whole latents; the sound goes on as well."""
    result = engine({"num_frames": 49, "edit": {"at": at}}, video=media["video"])
    assert len(result.frames) == 49
    first = round(at * 24)
    whole = slice(first, first + FRAMES) if not first else slice(17, 41)
    source = source_frames(media["video"])
    assert torch.equal(result.frames[whole], source[whole.start - first : whole.stop - first])
    mask = result.trace["s1/denoise_mask_video"].reshape(7, -1)[:, 0].tolist()
    assert mask == ([0, 0, 0, 0, 1, 1, 1] if not first else [1, 1, 1, 0, 0, 0, 1])
    heard = result.trace["s1/denoise_mask_audio"].flatten()
    assert set(heard.tolist()) == {0, 1} and (heard[0] == 0) == (not first) and heard[-1] == 1


STRETCHES = (("forward", 9, 13, 9, 0), ("backward", 9, 0, 8, 14), ("forward", 0, 22, 0, 0), ("backward", 25, 0, 16, 6))


@pytest.mark.parametrize(
    ("direction", "asked", "lead", "context", "tail", "sound"),
    [
        pytest.param(*stretch, sound, marks=[pytest.mark.soak] * (sound == (number == 1) or number == 0))
        for number, stretch in enumerate(STRETCHES)
        for sound in (True, False)
    ],
)
def test_a_video_that_is_made_longer_comes_back_whole(
    engine: Engine, media: dict[str, Path], direction: str, asked: int, lead: int, context: int, tail: int, sound: bool
) -> None:
    """22 frames: each of them and each sample is the source's own; the model sees the context, and no more."""
    backward, edit = direction == "backward", {"extend": direction, "context": asked}
    result = engine({"num_frames": 25, "edit": {**edit, **({} if sound else {"renew": "picture"})}}, video=media["odd"])
    source, new = source_frames(media["odd"], 22), 25 - context
    assert len(result.frames) == lead + 25 + tail == 22 + new == result.report["used"]["frames"]
    assert torch.equal(result.frames[new:] if backward else result.frames[:22], source)
    made, held = (result.frames[:new], source[0]) if backward else (result.frames[22:], source[-1])
    assert not (made == held).flatten(1).all(1).any()
    seen, mask = result.trace["source/frames_u8"], result.trace["s1/denoise_mask_video"].reshape(4, -1)[:, 0].tolist()
    first = new if backward else 0
    assert torch.equal(seen[first : first + context], source[lead : lead + context])
    latents = -(-context // 8)
    assert (mask[::-1] if backward else mask) == [0.0] * latents + [1.0] * (4 - latents)
    heard, track = sound_of(media["odd"]), result.track.waveform
    begin, samples = round((new if backward else 0) * 2000), 22 * 2000
    assert torch.equal(track[:, begin : begin + samples], heard[:, :samples])
    assert track.shape[1] == (22 + new) * 2000 if sound else not track[:, :begin].any()
    assert f"the video has 22 frames, of which the model sees {'the' if context else 'none'}" in str(result.report)


def test_a_context_that_is_not_held_wholly_passes_into_the_source(engine: Engine, media: dict[str, Path]) -> None:
    edit = {"extend": "forward", "context": 17, "strength": 0.5, "renew": "picture"}
    result = engine({"num_frames": 25, "edit": edit}, video=media["odd"])
    source = source_frames(media["odd"], 22)
    assert len(result.frames) == 30 and torch.equal(result.frames[:5], source[:5])
    changes = (result.frames[5:22].float() - source[5:].float()).abs().mean(dim=(1, 2, 3))
    assert 0 < changes[0] < changes[4:].min()
    assert result.trace["s1/denoise_mask_video"].unique().tolist() == [0.5, 1.0]


@pytest.mark.soak
def test_a_film_that_goes_on_with_its_own_track(engine: Engine, media: dict[str, Path]) -> None:
    result = engine({"match_audio_length": True}, video=media["video"], audio=media["voice"])
    assert len(result.frames) == 41 and result.trace["s1/denoise_mask_audio"].max() == 0
    assert torch.equal(result.frames[:FRAMES], source_frames(media["video"]))


def test_a_length_that_no_latent_ends_at(engine: Engine, media: dict[str, Path]) -> None:
    """22 frames are made as 25, and 22 are written."""
    result = engine({"edit": {"start": 0, "end": 0.2}}, video=media["odd"])
    assert result.trace["final/frames_u8"].shape[0] == 25 and len(result.frames) == 22
    assert torch.equal(result.frames[9:], source_frames(media["odd"], 22)[9:])
    assert result.track.waveform.shape[1] == round(22 / 24 * 48000)
    with av.open(str(result.path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 22


def test_a_source_without_sound(engine: Engine, media: dict[str, Path]) -> None:
    result = engine({"edit": {"start": 0, "end": 0.2}}, video=media["mute"])
    assert result.track is None
    result = engine({"edit": {"renew": "sound"}}, video=media["mute"])
    assert result.track is not None and result.trace["s1/denoise_mask_audio"].min() == 1


def test_strength_holds_to_the_source(engine: Engine, media: dict[str, Path]) -> None:
    source, distances = source_frames(media["video"]).float(), []
    for strength in (0.9, 0.5, 0.1):
        result = engine({"edit": {"strength": strength}}, video=media["video"])
        assert result.trace["s1/denoise_mask_video"].unique().item() == pytest.approx(1 - strength)
        distances.append((result.trace["final/video_latent"] - result.trace["source/video_latent"]).norm().item())
    assert distances[0] < distances[1] < distances[2] and source.shape[0] == FRAMES


def test_the_rate_and_the_size_are_the_sources_unless_they_are_named(engine: Engine, media: dict[str, Path]) -> None:
    named = {"fps": 12, "video_size": {"width": 64, "height": 64}}
    edit = {"edit": {"start": 0, "end": 0.2}}
    result = engine({**edit, **named}, video=media["video"])
    assert result.frames.shape == (13, 64, 64, 3) and result.report["used"]["fps"] == "12"
    result = engine(edit, video=media["video"])
    assert result.frames.shape == (FRAMES, HEIGHT, WIDTH, 3) and result.report["used"]["fps"] == "24"


@pytest.mark.soak
def test_windows_keep_what_the_mask_keeps(engine: Engine, media: dict[str, Path]) -> None:
    """In windows of 25 frames: what lies outside the time is the source's, and both sides of a join."""
    values = {"windows": {"frames": 25, "overlap": 1}, "edit": {"start": 1.0, "end": 1.3}}
    result = engine(values, video=media["voice"])
    source = source_frames(media["voice"], 40)
    changed = (result.frames.int() - source.int()).abs().amax(dim=(1, 2, 3)) > 0
    assert changed.any() and changed.nonzero().min() >= 17 and changed.nonzero().max() < 33
    assert len(result.frames) == 40


def test_every_window_keeps_what_lies_outside_the_mask(engine: Engine, media: dict[str, Path]) -> None:
    """In pixels, and in the latents of both windows; only a later window's latent 0, which is dropped, is free."""
    result = engine({"windows": {"frames": 25, "overlap": 1}}, video=media["voice"], mask=media["mask"])
    source, half = source_frames(media["voice"], 40), WIDTH // 2
    assert torch.equal(result.frames[:, :, half:], source[:, :, half:])
    final, clean = result.trace["final/video_latent"], result.trace["source/video_latent"]
    assert torch.equal(final[..., half // 32 :], clean[..., half // 32 :])
    changed = (result.frames[:, :, :half] != source[:, :, :half]).flatten(1).any(1)
    assert changed.all() and not torch.equal(final, clean)


def test_keyframes_at_any_frames(engine: Engine, media: dict[str, Path]) -> None:
    keyframes = tuple((media[f"key{n}"], frame, strength) for n, (frame, strength) in enumerate(KEYS))
    values = {"num_frames": 25, "match_audio_length": False, "video_size": {"width": WIDTH, "height": HEIGHT}}
    result = engine(values, audio=media["voice"], keyframes=keyframes)
    tokens = WIDTH * HEIGHT // 32**2
    mask = result.trace["s1/denoise_mask_video"].flatten()
    assert mask[: tokens * 4].tolist() == [0.0] * tokens + [1.0] * tokens * 3
    assert torch.allclose(mask[tokens * 4 :], torch.tensor([0.5, 0.0, 0.2]).repeat_interleave(tokens))
    starts = result.trace["s1/positions_video"][0, 0, tokens * 4 :: tokens, 0]
    assert torch.allclose(starts, torch.tensor([5.0, 12.0, 24.0]) / 24)


KEYS = ((0, 1.0), (5, 0.5), (12, 1.0), (24, 0.8))


@pytest.mark.parametrize("stages", ["first", pytest.param("both", marks=pytest.mark.soak)])
def test_a_reference_and_its_lora(engine: Engine, media: dict[str, Path], stages: str) -> None:
    """The size grows to the reference's grid; tokens and LoRA are there in the first stage, or in both."""
    values = {
        "num_frames": 17, "match_audio_length": False, "video_size": {"width": 160, "height": 96},
        "use_multiscale": True, "reference": {"attention": 0.6, "stages": stages},
    }  # fmt: skip
    result = engine(values, audio=media["voice"], reference=media["reference"], loras=((media["lora"], 0.8),))
    assert result.frames.shape == (17, 128, 256, 3)
    assert result.trace["s1/denoise_mask_video"].shape[1] == 24 + 6
    assert result.trace["s2/denoise_mask_video"].shape[1] == 96 + (24 if stages == "both" else 0)
    assert ("s2/attention_mask_video" in result.trace) == (stages == "both")
    (lora,) = result.report["used"]["loras"]
    assert (lora["first_pass"], lora["second_pass"]) == (0.8, 0.8 if stages == "both" else 0.0)


def test_a_lora_that_is_not_known_as_one_for_references_is_told(
    engine: Engine, media: dict[str, Path], tiny: TinyFiles, tmp_path: Path
) -> None:
    """It acts in both stages then, as any other. Where the reference's sound is heard, it may be for that alone."""
    plain = (Path(shutil.copy(tiny.camera_lora, tmp_path / "own.safetensors")), 1.0)
    known, heard = (media["lora"], 0.8), {"sound": True}
    for loras, use, told in (((plain,), {}, True), ((plain, known), {}, False), ((plain,), heard, False)):
        files = files_of(tiny, tmp_path / "o.mp4", audio=media["voice"], reference=media["reference"], loras=loras)
        size = {"num_frames": 25, "match_audio_length": False, "video_size": {"width": 128, "height": 128}}
        assert (UNREAD in prepare(files, parse({**BASE, **size, "reference": use})).notes) is told


def test_a_reference_in_windows_is_encoded_for_each(engine: Engine, media: dict[str, Path]) -> None:
    values = {"video_size": {"width": 64, "height": 64}, "windows": {"frames": 25, "overlap": 1}}
    result = engine(values, audio=media["voice"], reference=media["reference"])
    tokens = [result.trace[f"s1/window{n}/clean_video"][:, 16:] for n in (0, 1)]
    assert [each.shape[1] for each in tokens] == [16, 16] and not torch.equal(*tokens)


@pytest.mark.parametrize("shape", [None, "crop"])
def test_a_picture_of_who_shall_appear(
    engine: Engine, media: dict[str, Path], tmp_path: Path, shape: str | None
) -> None:
    """It stands beside the whole film, as a video of it would, and is shown whole unless the request crops it."""
    sheet = tmp_path / "sheet.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 300, 3), dtype=np.uint8)).save(sheet)
    values = {
        "num_frames": 17, "match_audio_length": False, "video_size": {"width": 128, "height": 64},
        "reference": {"fit": shape} if shape else None,
    }  # fmt: skip
    result = engine(values, audio=media["voice"], reference=sheet, loras=((media["lora"], 1.4),))
    one = (contain if shape is None else fit)(load_image(sheet), 64, 32)
    assert torch.equal(result.trace["cond/0/pixels"], one.expand(-1, -1, 17, -1, -1))
    assert result.trace["s1/denoise_mask_video"].shape[1] == 3 * 8 + 3 * 2
    times = result.trace["s1/positions_video"][0, 0, 24::2]
    assert torch.allclose(times, torch.tensor([[0, 1], [1, 9], [9, 17]]) / 24)
    assert not any("sheet.png" in note for note in result.report["notes"])


def test_a_picture_is_encoded_once_for_windows_of_a_length(engine: Engine, media: dict[str, Path]) -> None:
    values = {"video_size": {"width": 64, "height": 64}, "windows": {"frames": 25, "overlap": 1}}
    result = engine(values, audio=media["voice"], reference=media["key2"])
    tokens = [result.trace[f"s1/window{n}/clean_video"][:, 16:] for n in (0, 1)]
    assert torch.equal(*tokens) and "cond/1/latent" not in result.trace


@pytest.mark.parametrize("named", ["video", pytest.param("reference", marks=pytest.mark.soak)])
def test_a_late_second_is_sought_and_is_the_same(
    engine: Engine, media: dict[str, Path], monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """A video that goes on from its end, and the later windows of a reference, as if all before were decoded."""
    if named == "video":
        values = {"num_frames": 25, "edit": {"extend": "forward", "context": 9, "renew": "picture"}}
        given = {"video": media["long"]}
    else:
        values = {
            "num_frames": 97, "match_audio_length": False, "video_size": {"width": 64, "height": 64},
            "windows": {"frames": 49, "overlap": 1},
        }  # fmt: skip
        given = {"reference": media["long"], "audio": media["voice"]}
    places, before = [], Keys.before
    monkeypatch.setattr(Keys, "before", lambda *asked: places.append(before(*asked)) or places[-1])
    found = engine(values, **given)
    content = found.path.read_bytes()
    assert any(places)
    monkeypatch.setattr(Keys, "before", lambda *asked: None)
    wanted = engine(values, **given)
    assert torch.equal(found.frames, wanted.frames) and content == wanted.path.read_bytes()


@pytest.mark.parametrize(
    ("named", "values", "words"),
    [
        (
            "video",
            {"num_frames": 9, "edit": {"start": 0}},
            "only the first 9 of the video's 25 frames are used: ask for",
        ),
        (
            "reference",
            {"num_frames": 9},
            "reference.mp4: it has 25 frames as a reference, and only the first 9 are seen",
        ),
        (
            "reference",
            {"num_frames": 33},
            "reference.mp4: it ends after 25 of 33 frames, and its last one stands still",
        ),
    ],
)
def test_what_is_cut_is_told(
    named: str, values: dict[str, Any], words: str, tiny: TinyFiles, media: dict[str, Path], tmp_path: Path
) -> None:
    given = {named: media[named], "audio": media["voice"]}
    request = parse({**BASE, "match_audio_length": False, "video_size": {"width": 64, "height": 64}, **values})
    assert any(words in note for note in prepare(files_of(tiny, tmp_path / "out.mp4", **given), request).notes)


@pytest.mark.parametrize(
    ("named", "values"),
    [
        ("video", {"edit": {"extend": "forward"}}),
        ("video", {"edit": {"extend": "backward"}}),
        ("video", {"edit": {"at": 1}, "num_frames": 97}),
        ("video", {"num_frames": 97}),
        ("mute", {"edit": {"renew": "sound"}}),
    ],
    ids=["forward", "backward", "both ends", "beyond its end", "a silent video"],
)
def test_sound_that_is_made_is_not_called_silent(
    tiny: TinyFiles, media: dict[str, Path], tmp_path: Path, named: str, values: dict[str, Any]
) -> None:
    """Nor its guidance without effect."""
    files = files_of(tiny, tmp_path / "out.mp4", video=media[named])
    notes = " ".join(prepare(files, parse({**BASE, **values, "audio_cfg_scale": 3})).notes)
    assert "silen" not in notes and "audio_cfg_scale does nothing" not in notes


@pytest.mark.parametrize(("seconds", "told"), [(1, False), (0.75, False), (0.5, True)])
def test_a_mask_that_ends_before_the_video_is_told(
    tiny: TinyFiles, media: dict[str, Path], tmp_path: Path, seconds: float, told: bool
) -> None:
    pictures = [Image.new("L", (WIDTH, HEIGHT), 255 - number) for number in range(2)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:], duration=500 * seconds)
    files = files_of(tiny, tmp_path / "out.mp4", video=media["video"], mask=tmp_path / "a.png")
    words = "the mask ends after 12 of the video's 25 frames, and its last one stands still"
    assert (words in prepare(files, parse(BASE)).notes) == told


@pytest.mark.parametrize("named", ["video", "reference"])
def test_damage_that_is_met_is_told(engine: Engine, media: dict[str, Path], tmp_path: Path, named: str) -> None:
    path = write_damaged(tmp_path / "a.mov", (FRAMES, HEIGHT, WIDTH))
    values = {"edit": {"renew": "sound"}} if named == "video" else {"num_frames": FRAMES, "match_audio_length": False}
    values = {**values, "video_size": {"width": WIDTH, "height": HEIGHT}}
    result = engine(values, **{named: path}, **({} if named == "video" else {"audio": media["voice"]}))
    assert "a.mov: damaged parts of it were left out" in result.report["notes"]


def test_damage_of_a_mask_is_told(engine: Engine, tmp_path: Path) -> None:
    """Beside that of the video."""
    video, mask = (write_damaged(tmp_path / name, (FRAMES, HEIGHT, WIDTH)) for name in ("a.mov", "mask.mov"))
    result = engine({"video_size": {"width": WIDTH, "height": HEIGHT}}, video=video, mask=mask)
    found = [note for note in result.report["notes"] if "damaged" in note]
    assert sorted(found) == [f"{name}: damaged parts of it were left out" for name in ("a.mov", "mask.mov")]


def test_what_is_known_of_a_mask_is_told(
    tiny: TinyFiles, media: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = open_area(media["video"])
    monkeypatch.setattr(given, "open_area", lambda path: replace(mask, clip=replace(mask.clip, notes=("mask: cut",))))
    files = files_of(tiny, tmp_path / "out.mp4", video=media["video"], mask=tmp_path / "a.mov")
    assert "mask: cut" in prepare(files, parse(BASE)).notes


def test_silence_is_told_of_the_film_that_is_written(tiny: TinyFiles, media: dict[str, Path], tmp_path: Path) -> None:
    """Of 22 frames, which are made as 25, and not of the part that the model makes beside them."""

    def said(name: str, **values: Any) -> list[str]:
        files = files_of(tiny, tmp_path / "out.mp4", video=media[name])
        return [note for note in prepare(files, parse({**BASE, **values})).notes if "silen" in note]

    assert not said("odd", edit={"start": 0, "end": 0.2})
    assert not said("mute", num_frames=49, edit={"renew": "picture"})  # the film has no sound
    seconds = sound_of(media["odd"]).shape[1] / 48000
    (note,) = said("odd", num_frames=25, edit={"extend": "forward", "context": 9, "renew": "picture"})
    assert note == f"the audio ends after {seconds:.2f} s of {38 / 24:.2f} s; silence follows"


def test_windows_that_keep_all_cost_no_time(tiny: TinyFiles, media: dict[str, Path], tmp_path: Path) -> None:
    """They run no pass, so they do not count for the time that is left."""
    files = files_of(tiny, tmp_path / "out.mp4", video=media["long"])
    values = {**BASE, "video_size": {"width": 64, "height": 64}, "windows": {"frames": 33, "overlap": 1}}
    costs = {}
    for name, edit in (
        ("a second", {"start": 0.1, "end": 1.0}),
        ("all", {"strength": 0.5}),
        ("sound", {"renew": "both", "start": 0.1}),
    ):
        job = prepare(files, parse({**values, "edit": edit}))
        (costs[name],) = sampling._costs(job)
    first, *others = costs["a second"]
    assert first == costs["all"][0] and len(others) > 2 and not any(others)
    assert all(costs["all"]) and all(costs["sound"])


def test_guidance_of_a_kept_sound_is_told(tiny: TinyFiles, media: dict[str, Path], tmp_path: Path) -> None:
    files = files_of(tiny, tmp_path / "out.mp4", video=media["video"])
    notes = prepare(files, parse({**BASE, "edit": {"start": 0.5}, "audio_cfg_scale": 3})).notes
    assert "audio_cfg_scale does nothing while the audio is kept (audio_strength 1)" in notes


def test_a_reference_of_every_other_frame(engine: Engine, media: dict[str, Path]) -> None:
    values = {"num_frames": 25, "match_audio_length": False, "video_size": {"width": 64, "height": 64}}
    result = engine({**values, "reference": {"stride": 2}}, audio=media["voice"], reference=media["reference"])
    pictures = list(open_clip(media["reference"]).pictures(Fraction(24), 25))
    taken = [pictures[0], *pictures[1:16:2]]  # so much as fills whole latents
    assert torch.equal(result.trace["cond/0/pixels"], torch.cat([fit(picture, 64, 64) for picture in taken], 2))
    times = result.trace["s1/positions_video"][0, 0, 16::4]
    assert torch.allclose(times, torch.tensor([[0, 1 / 24], [1 / 24, 17 / 24]]))


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "no sound at all": ({}, (), r"--audio: missing; name an audio file, or a video with --video\."),
    "an edit without a video": ({"edit": {"start": 1}}, ("audio",), r"edit: says what .* name it with --video\."),
    "a mask without a video": ({}, ("audio", "mask"), r"--mask: says what .* name it with --video\."),
    "settings of no reference": ({"reference": {}}, ("audio",), r"reference: .* name a video, .* with --reference\."),
    "nothing to do": ({}, ("video",), r"--video: nothing of it would be made anew; .*num_frames\."),
    "nothing but a new track": ({}, ("video", "audio"), r"--video: nothing of it would be made anew; .*\."),
    "a part behind the end": (
        {"edit": {"start": 50.0}},
        ("video",),
        r"edit: start: 50 s is behind the video's end at 1\.04167 s; give an earlier time\.",
    ),
    "a source behind the end": (
        {"edit": {"at": 2.0}, "num_frames": 25},
        ("video",),
        r"edit: at: 2 s is behind the video's end at 1\.04167 s; give an earlier time\.",
    ),
    "a black mask": ({}, ("video", "black"), r"--mask: it is black everywhere, .* make white what may change\."),
    "two sounds": ({"edit": {"renew": "both"}}, ("video", "audio"), r"--audio: edit makes the sound anew.*\."),
    "an extension with a mask": (
        {"edit": {"extend": "forward"}},
        ("video", "mask"),
        r"--mask: extend in edit keeps the whole video, so a mask does nothing; leave one of them out\.",
    ),
    "an extension as long as its track": (
        {"edit": {"extend": "forward"}, "match_audio_length": True},
        ("video", "audio"),
        r"match_audio_length: extend in edit makes num_frames frames; leave one of them out\.",
    ),
    "an unknown fit": (
        {"reference": {"fit": "stretch"}},
        ("audio", "reference"),
        r"reference: fit is 'stretch'; choose one of crop, pad\.",
    ),
    "an IC-LoRA alone": ({}, ("audio", "lora"), r".*is an IC-LoRA .* needs a reference video; .*--reference.*\."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_words_before_a_model_is_loaded(case: str, tiny: TinyFiles, media: dict[str, Path], tmp_path: Path) -> None:
    values, names, sentence = REFUSED[case]
    paths = {**media, "audio": media["voice"]}
    black = tmp_path / "black.png"
    Image.new("L", (WIDTH, HEIGHT)).save(black)
    named = {name: paths[name] for name in names if name not in ("lora", "black")}
    named |= {"mask": black} if "black" in names else {}
    named |= {"loras": ((media["lora"], 1.0),)} if "lora" in names else {}
    with pytest.raises(InputError, match=f"^{sentence}$"):
        prepare(files_of(tiny, tmp_path / "out.mp4", **named), parse({**BASE, **values}))


@pytest.mark.parametrize(
    ("keyframes", "sentence"),
    [
        ([("key1", 200, 1.0)], r"--keyframe: key1.png is at frame 200; the frames of this film are 0 to 24\."),
        ([("key1", -1, 1.0)], r"--keyframe: key1.png is at frame -1; .*"),
        ([("key1", 3, 1.5)], r"--keyframe: key1.png has the strength 1.5; give a number from 0 to 1\."),
        ([("key1", 3, 1.0), ("key2", 3, 1.0)], r"--keyframe: two images stand at frame 3; leave out one of them\."),
    ],
)
def test_words_for_keyframes(
    keyframes: list[Any], sentence: str, tiny: TinyFiles, media: dict[str, Path], tmp_path: Path
) -> None:
    placed = tuple((media[name], frame, strength) for name, frame, strength in keyframes)
    values = {"num_frames": 25, "match_audio_length": False}
    files = files_of(tiny, tmp_path / "out.mp4", audio=media["voice"], keyframes=placed)
    with pytest.raises(InputError, match=f"^{sentence}$"):
        prepare(files, parse({**BASE, **values}))


def test_the_flag_for_keyframes() -> None:
    assert keyframe_argument("a@b.png@48:0.8") == (Path("a@b.png"), 48, 0.8)
    assert keyframe_argument("face.png@0") == (Path("face.png"), 0, 1.0)
    named = ["--checkpoint", "c", "--request", "r", "--output", "o"]
    found = parser().parse_args([*named, "--keyframe", "a.png@1", "--keyframe", "b.png@9:0.5"]).keyframe
    assert found == [(Path("a.png"), 1, 1.0), (Path("b.png"), 9, 0.5)]
    for wrong in ("face.png", "face.png@x", "face.png@3:x", "@3"):
        with pytest.raises(SystemExit):
            parser().parse_args([*named, "--keyframe", wrong])
