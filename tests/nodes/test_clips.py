"""The nodes of a video that comes in, and the native types that they take."""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import folder_paths
from a2v.ltx.edits import VideoEdit
from a2v.ltx.errors import InputError
from a2v.ltx.grid import CHANNELS
from a2v.ltx.latents import pixel_size
from a2v.ltx.media.clip import FileClip, ImageClip
from a2v.ltx.media.images import contain
from a2v.ltx.media.masks import area_of
from a2v.ltx.media.room_noise import with_room_noise
from a2v.ltx.windows import Window
from a2v.nodes import audio, clips, conditioning, latents, output
from a2v.nodes.film import Cut, FilmSound, Retake, heard
from a2v.nodes.taking.clip import to_clip, to_image_clip
from a2v.nodes.taking.mask import to_area
from a2v.tests.host.graph import RETAKE
from a2v.tests.ltx.media.clips import plain, write_clip, write_damaged
from a2v.tests.nodes.test_steering import run
from a2v.tests.robust.odd_nodes import values
from comfy_api.latest import InputImpl, Types

pytestmark = pytest.mark.usefixtures("inference")


def frames(count: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.stack([plain(number) for number in range(count)])).float() / 255


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tone = 0.5 * np.sin(np.arange(24_000) / 10)
    return write_clip(tmp_path / "film.mp4", [plain(n) for n in range(20)], kind="h264.mp4", sound=(tone, 0.25))


def opened(**inputs: Any) -> tuple[Any, ...]:
    return run(clips.OpenClip, **{"fps": 24.0, **inputs})


def retake(clip: Any, **inputs: Any) -> tuple[Any, ...]:
    return run(clips.RetakeClip, **{"clip": clip, "frames": 25, "fps": 24.0, **RETAKE, **inputs})


# What comes in


def test_the_white_of_newer_hosts_is_white() -> None:
    """ComfyUI 0.33 reads a grey picture through a video decoder, and its white as 254 of 255."""
    mask = torch.tensor([[0.0, 128.0, 253.0, 254.0, 255.0]]) / 255
    assert torch.equal(to_area(mask).frames, torch.tensor([[[0, 128 / 255, 253 / 255, 1, 1]]]))


def test_a_mask_has_the_greys_of_a_picture() -> None:
    """The model computes parameters for each of its levels, and a blurred mask would have thousands."""
    mask = torch.linspace(0, 1, 5001)[None].square()
    greys = to_area(mask).frames
    assert len(greys.unique()) <= 256 and (greys - mask).abs().max() < 2 / 255
    assert torch.equal(greys[0] > 0, mask > 0), "what may change a little is not kept"


def test_a_video_file(file: Path) -> None:
    clip, sound, first, count, fps, report = opened(video=InputImpl.VideoFromFile(str(file)))
    assert isinstance(clip, FileClip) and (count, fps) == (25, 24.0) and "20 frames at 24 fps" in report
    assert first.shape == (1, 48, 64, 3) and sound["sample_rate"] == 48000
    heard = sound["waveform"][0, 0].abs() > 0.1
    assert int(heard.int().argmax()) / 48000 == pytest.approx(0.25, abs=0.03)


def test_a_video_in_memory(file: Path) -> None:
    clip, track = to_clip(InputImpl.VideoFromFile(BytesIO(file.read_bytes())))
    again, _ = to_clip(InputImpl.VideoFromFile(BytesIO(file.read_bytes())))
    assert clip.path == again.path and Path(folder_paths.get_temp_directory()) in clip.path.parents
    assert clip.count(Fraction(24)) == 20 and track is not None
    clip.path.unlink()


def test_a_video_of_frames() -> None:
    audio = {"waveform": torch.zeros(1, 1, 4800), "sample_rate": 48000}
    parts = Types.VideoComponents(images=frames(), audio=audio, frame_rate=Fraction(30000, 1001))
    clip, track = to_clip(InputImpl.VideoFromComponents(parts))
    assert isinstance(clip, ImageClip) and clip.fps == Fraction(30000, 1001) and track.waveform.shape == (1, 4800)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_VideoFromFile__start_time", 0.5),
        ("_VideoFromFile__duration", 0.25),
        ("_VideoFromFile__crop", (8, 8, 32, 16)),  # Crop Video of ComfyUI 0.35
        ("has_pending_frame_edits", lambda: True),  # and of those that also scale
    ],
    ids=["start", "duration", "crop", "edits"],
)
def test_a_part_of_a_file_is_taken_as_its_frames(
    file: Path, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer ComfyUIs cut, crop and scale a VIDEO without writing a file; its frames are then what counts."""
    video = InputImpl.VideoFromFile(str(file))
    monkeypatch.setattr(video, name, value, raising=False)
    parts = Types.VideoComponents(images=frames(3), audio=None, frame_rate=Fraction(24))
    monkeypatch.setattr(video, "get_components", lambda: parts)
    clip, track = to_clip(video)
    assert isinstance(clip, ImageClip) and len(clip.images) == 3 and track is None


def test_a_file_without_edits_is_read_by_the_engine(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = InputImpl.VideoFromFile(str(file))
    monkeypatch.setattr(video, "_VideoFromFile__crop", None, raising=False)
    monkeypatch.setattr(video, "has_pending_frame_edits", lambda: False, raising=False)
    assert isinstance(to_clip(video)[0], FileClip)


@pytest.mark.parametrize("kind", values.VIDEO)
def test_videos_of_any_node(kind: str) -> None:
    change, meant = values.VIDEO[kind]
    if isinstance(meant, str):
        with pytest.raises(InputError, match=meant):
            to_clip(change(frames()))
        return
    clip, track = to_clip(change(frames()))
    assert float(clip.fps) == pytest.approx(meant) and track is None
    assert torch.equal(next(clip.pictures(clip.fps, 1)), (frames()[0] * 255).round().byte())


@pytest.mark.parametrize("kind", values.MASK)
def test_masks_of_any_node(kind: str) -> None:
    mask = torch.rand(3, 8, 6, generator=torch.Generator().manual_seed(1))
    change, meant = values.MASK[kind]
    if isinstance(meant, str):
        with pytest.raises(InputError, match=meant):
            retake(to_image_clip(frames(25), 24.0), mask=change(mask))
        return
    torch.testing.assert_close(area_of(change(mask)).frames, meant(mask))


def test_one_of_both(file: Path) -> None:
    for inputs, sentence in (
        ({}, "^video: no video and no images are connected, or their node is bypassed; connect one"),
        (
            {"video": InputImpl.VideoFromFile(str(file)), "images": frames()},
            "^video: the node needs either .*, not both",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            opened(**inputs)


def test_images_without_sound_get_silence() -> None:
    clip, sound, _, count, fps, report = opened(images=frames(10), fps=12.0)
    assert (count, fps) == (17, 12.0) and clip.fps == 12 and "has no sound" in report
    assert sound["waveform"].shape == (1, 2, 40_000) and not sound["waveform"].any()


# Retake


def test_what_is_made_anew() -> None:
    clip = to_image_clip(frames(25), 24.0)
    made, sound, report = retake(clip, start=0.3, end=0.6, strength=0.25, soften=0.1)
    assert made.source.edit == VideoEdit("picture", 0.3, 0.6, 0.25, 0.1) and sound is None
    assert (made.frames, made.fps, made.shown) == (25, 24, 0) and report == "picture made anew from 0.3 s to 0.6 s"
    (made, _, report) = retake(to_image_clip(frames(22), 24.0), end=0.5)
    assert (made.frames, made.shown) == (25, 22) and report.endswith("the video ends with the clip, after 22 frames")


def test_nothing_to_do_is_told() -> None:
    with pytest.raises(InputError, match="nothing of the clip would be made anew"):
        retake(to_image_clip(frames(25), 24.0))
    retake(to_image_clip(frames(25), 24.0), frames=41)  # it goes on
    retake(to_image_clip(frames(25), 24.0), mask=torch.ones(48, 64))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"start": 1.05}, r"^start: 1\.05 s is behind the video's end at 1\.04167 s"),
        ({"start": 9.0, "renew": "sound"}, "^start: 9 s is behind"),
        ({"begin": 2.0}, "^begin: 2 s is behind the video's end"),
        ({"mask": torch.zeros(1, 64, 64)}, "^mask: it is black everywhere"),
        ({"mask": torch.zeros(1, 64, 64), "renew": "both"}, "^mask: it is black everywhere"),
    ],
)
def test_what_would_only_copy_the_clip_is_refused(asked: dict[str, Any], told: str) -> None:
    """Load Image gives a black mask of 64 pixels for a picture without transparency."""
    with pytest.raises(InputError, match=told):
        retake(to_image_clip(frames(25), 24.0), **asked)


def test_a_mask_that_keeps_all_of_a_clip_is_of_use_where_more_is_made() -> None:
    black = torch.zeros(1, 64, 64)
    retake(to_image_clip(frames(25), 24.0), mask=black, frames=41)
    retake(to_image_clip(frames(25), 24.0), mask=black, renew="sound")
    retake(to_image_clip(frames(25), 24.0), begin=1.0)
    with pytest.raises(InputError, match=r"^start: 0\.95 s"):  # the last of 25 frames, of which 22 are shown
        retake(to_image_clip(frames(22), 24.0), start=0.95)
    retake(to_image_clip(frames(22), 24.0), start=0.9)
    retake(to_image_clip(frames(25), 24.0), frames=41, extend="forward", start=9.0)


def test_the_sound_is_put_where_the_clip_begins() -> None:
    sound = {"waveform": torch.ones(1, 1, 4800), "sample_rate": 48000}
    _, placed, _ = retake(to_image_clip(frames(25), 24.0), begin=0.5, audio=sound)
    assert placed["waveform"].shape == (1, 1, 28_800) and placed["waveform"][0, 0, :24_000].sum() == 0


@pytest.mark.parametrize(
    ("name", "value"), [("start", -1), ("strength", 2), ("renew", "all"), ("begin", 1e9), ("kept_cells", "gray")]
)
def test_values_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name if name != "begin" else "at"):
        retake(to_image_clip(frames(25), 24.0), **{"end": 0.5, name: value})


def test_things_of_another_film_are_refused() -> None:
    (made, *_) = retake(to_image_clip(frames(25), 24.0), end=0.5)
    latent = {"samples": torch.zeros(1, CHANNELS, 2, 2, 2)}
    with pytest.raises(InputError, match="latent: it has 9 frames, but the retake was made for 25 frames"):
        run(clips.KeepClip, video_vae=None, retake=made, latent=latent)
    with pytest.raises(InputError, match="frames: it has 25 frames at 30 fps"):
        sound = {"waveform": torch.zeros(1, 2, 48_000), "sample_rate": 48_000}
        run(
            conditioning.AudioConditioning,
            audio_vae=None,
            audio=sound,
            frames=25,
            fps=30.0,
            retake=made,
        )
    with pytest.raises(InputError, match="latent: it has 9 frames"):
        output._decoder(None, latent, 768, 64, 80, 24, retake=made)


def test_a_plan_of_a_retake() -> None:
    (made, *_) = retake(to_image_clip(frames(22), 24.0), end=0.5)
    assert isinstance(made, Retake)
    plan = made.plan(64, 96)
    assert (plan.width, plan.height, plan.frames, plan.written, len(plan.windows)) == (96, 64, 25, 22, 1)


# A longer clip


def extended(**inputs: Any) -> tuple[Any, ...]:
    """A clip of 22 frames, and each sample of its sound is its number."""
    sound = {"waveform": torch.arange(22 * 2000).float()[None, None].div(1e6), "sample_rate": 48_000}
    return retake(to_image_clip(frames(22), 24.0), audio=sound, **{"context": 9, **inputs})


@pytest.mark.parametrize(
    ("direction", "lead", "tail", "at", "written"), [("forward", 13, 0, -13, 38), ("backward", 0, 14, 17, 39)]
)
def test_a_clip_that_is_made_longer(direction: str, lead: int, tail: int, at: int, written: int) -> None:
    made, placed, report = extended(extend=direction)
    assert (made.frames, made.lead, made.tail, made.source.at) == (25, lead, tail, Fraction(at, 24))
    assert made.plan(64, 96).written == written and "the video has 22 frames, of which the model sees the" in report
    silence, own = max(at, 0) * 2000, placed["waveform"][0, 0]
    assert own.shape == (silence + 44_000,) and not own[:silence].any()
    model_hears = heard(placed).waveform[0]
    assert torch.equal(model_hears, own[lead * 2000 :]), "from the first frame on that the model makes"


@pytest.mark.parametrize("renew", ["picture", "both"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_time_beside_extend_changes_nothing(direction: str, renew: str) -> None:
    """The workflow of a retake has one; who sets extend in it gets the longer clip, and reads that it did nothing."""
    asked = {"extend": direction, "renew": renew, "strength": 0.5}
    plain, _, told = extended(**asked)
    timed, _, said = extended(start=0.2, end=0.4, soften=0.1, **asked)
    assert said == f"{told}; extend keeps the whole video, so start, end and soften do nothing"
    plan = plain.plan(64, 96)
    assert timed.plan(64, 96) == plan
    assert torch.equal(timed.source.mask(plan, (96, 64)), plain.source.mask(plan, (96, 64)))
    assert torch.equal(timed.source.sound_weights(plan, 48_000), plain.source.sound_weights(plan, 48_000))


def test_an_extension_shorter_than_a_latent_is_not_lost() -> None:
    """25 frames are also what a clip of 22 is rounded up to: without extend the film ends with the clip."""
    clip = to_image_clip(frames(22), 24.0)
    made, *_ = retake(clip, extend="forward", context=17)
    assert made.plan(64, 96).written == 30 and not made.shown
    with pytest.raises(InputError, match=r"nothing of the clip would be made anew"):
        retake(clip)


def test_the_new_part_is_as_loud_as_what_is_kept() -> None:
    """Preprocess Audio leaves the level alone where the clip's sound is partly kept, and levels what the model hears of
    it otherwise."""
    asked = {"frames": 25, "fps": 24.0, "enabled": True}
    _, placed, _ = extended(extend="forward", renew="both")
    same, report = run(audio.PreprocessAudio, audio=placed, **asked)
    assert same is placed and "not preprocessed: a part of it is kept" in report
    _, placed, _ = extended(extend="forward", renew="picture")
    levelled, report = run(audio.PreprocessAudio, audio=placed, **asked)
    assert levelled["waveform"].shape[2] == 9 * 2000 and "was brought from" in report
    assert torch.equal(heard(levelled).waveform, levelled["waveform"][0])


def test_noise_is_under_what_the_model_hears_of_a_clip_alone() -> None:
    """Room Noise begins where the model hears, and refuses sound of which a part is made anew: the noise would stay."""
    _, placed, _ = extended(extend="forward", renew="picture")
    (noisy,) = audio.RoomNoise.execute(placed, -40.0).args
    assert torch.equal(heard(noisy).waveform, with_room_noise(heard(placed), -40.0).waveform)
    with pytest.raises(InputError, match=r"^noise_level: 5 dBFS; give a number from -90 to -20"):
        audio.RoomNoise.execute(placed, 5.0)
    _, placed, _ = extended(extend="forward", renew="both")
    with pytest.raises(InputError, match=r"^audio: the model would put the noise into the sound that it makes"):
        audio.RoomNoise.execute(placed, -40.0)


def test_a_new_track_longer_than_the_video_is_told() -> None:
    """By Decode and Save; the clip's own sound lies at its place, and is as long as the clip."""
    made, placed, _ = retake(
        to_image_clip(frames(25), 24.0), end=0.5, audio={"waveform": torch.ones(1, 1, 96_000), "sample_rate": 48_000}
    )

    def told(sound: dict[str, Any] | None, given: Retake | None = made) -> list[str]:
        return output._unheard(sound, given, 25, 24.0)

    voice = {"waveform": torch.ones(1, 1, 96_000), "sample_rate": 48_000}
    assert told(voice) == [
        "only the first 1.04 s of the audio's 2.00 s are used, because the video ends there: for more, give Retake "
        "more frames"
    ]
    assert not told(placed) and not told(None) and not told(voice, None)
    assert not told({**voice, "waveform": voice["waveform"][..., :52_000]})


def test_the_sound_of_another_part_is_refused() -> None:
    made, *_ = extended(extend="forward")
    sound = {"waveform": torch.zeros(1, 2, 48_000), "sample_rate": 48_000}
    with pytest.raises(InputError, match=r"audio: it begins with the clip, but the model sees only the clip's end"):
        run(conditioning.AudioConditioning, audio_vae=None, audio=sound, frames=25, fps=24.0, retake=made)


@pytest.mark.parametrize(("count", "told"), [(1, False), (40, False), (33, False), (32, True), (41, False)])
def test_masks_of_another_number_than_the_frames_are_told(count: int, told: bool) -> None:
    """As a node gives them that reads fewer frames of a file with a variable rate."""
    _, _, report = retake(to_image_clip(frames(40), 24.0), frames=41, mask=torch.ones(count, 48, 64))
    assert (f"the mask ends after {count} of the video's 40 frames, and its last one stands still" in report) == told


def test_a_mask_beside_new_sound_is_told() -> None:
    """It says where the picture may change, and that stays."""
    _, _, report = retake(to_image_clip(frames(25), 24.0), renew="sound", mask=torch.ones(1, 48, 64))
    assert report == "sound made anew from 0 s to the end; the mask does nothing, because only the sound is made anew"


@pytest.fixture
def damaged(tmp_path: Path) -> Any:
    path = write_damaged(tmp_path / "a.mov", (25, 64, 64))
    return to_clip(InputImpl.VideoFromFile(str(path)))[0]


def test_damage_of_a_clip_is_told(damaged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the node that puts the clip's own pixels back, whose report is in the file."""
    made, *_ = retake(damaged, renew="sound")
    monkeypatch.setattr(output._Decoder, "chunks", lambda self, progress: iter([torch.zeros(25, 64, 64, 3)]))
    decoder = output._Decoder(None, torch.zeros(1), output.TILING, 25, 64, 64, None, made)
    assert sum(map(len, decoder.pictures(None))) == 25
    assert decoder.notes == ["a.mov: damaged parts of it were left out"]


def test_damage_of_a_reference_is_told(damaged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, also by several windows."""
    told: list[str] = []
    monkeypatch.setattr(clips, "announce", lambda node, text: told.append(text))
    monkeypatch.setattr(clips, "_encoded", lambda vae, pictures, *_: torch.zeros(1, len(list(pictures)), 1, 2, 2))
    monkeypatch.setattr(FilmSound, "of", lambda audio: audio)
    windows = [Window(0, 4), Window(0, 4)]
    film = SimpleNamespace(frames=25, fps=Fraction(24), cut=Cut(25, Fraction(24), tuple(windows)))
    latent = {"samples": torch.zeros(1, CHANNELS, 4, 2, 2)}
    usual = {"strength": 1.0, "attention": 1.0, "downscale": 1, "stride": 1}
    (found,) = run(clips.ReferenceConditioning, video_vae=None, clip=damaged, latent=latent, audio=film, **usual)
    assert len(found) == 2 and told == ["a.mov: damaged parts of it were left out"]


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Any:
    """(clip, inputs) → the pixels beside each window of a film of two, as they go to the encoder."""
    seen: list[torch.Tensor] = []

    def encoded(vae: Any, pixels: Any, *_: Any) -> torch.Tensor:
        seen.append(torch.cat(list(pixels), 2))
        return torch.zeros(1, CHANNELS, 4, 2, 4)

    monkeypatch.setattr(clips, "_encoded", encoded)
    monkeypatch.setattr(FilmSound, "of", lambda audio: audio)
    windows = Window(0, 4), Window(3, 4)
    latent = {"samples": torch.zeros(1, CHANNELS, 4, 2, 4)}
    usual = {"strength": 1.0, "attention": 1.0, "downscale": 0, "stride": 0}

    def run_with(clip: Any, here: frozenset[int] | None = None, **inputs: Any) -> list[torch.Tensor]:
        seen.clear()
        film = SimpleNamespace(frames=49, fps=Fraction(24), cut=Cut(49, Fraction(24), windows, here=here))
        (found,) = run(
            clips.ReferenceConditioning, video_vae=None, clip=clip, latent=latent, audio=film, **usual, **inputs
        )
        assert [len(each) for each in found] == [here is None or number in here for number in (0, 1)]
        return seen

    return run_with


def test_a_picture_as_a_reference(beside: Any) -> None:
    """It is there for the whole film, whole, and encoded once."""
    picture = torch.rand(1, 90, 70, 3).mul(255).round().div(255)
    clip, *_, report = opened(images=picture)
    assert report == "70×90, a single picture"
    (pixels,) = beside(clip)
    assert torch.equal(pixels, contain(picture[0].mul(255).round().byte(), 128, 64).expand(-1, -1, 25, -1, -1))


def test_how_a_reference_gets_the_video_s_shape(beside: Any) -> None:
    film, picture = (opened(images=frames(count)[:, :40])[0] for count in (30, 1))
    border = lambda found: bool((found[0][..., :8] == -1).all())  # noqa: E731
    assert border(beside(picture)) and border(beside(picture, fit="pad")) and border(beside(film, fit="pad"))
    assert not border(beside(picture, fit="crop")) and not border(beside(film)) and len(beside(film)) == 2
    with pytest.raises(InputError, match=r"^reference: fit is 'stretch'; choose one of crop, pad\.$"):
        beside(film, fit="stretch")


def test_a_reference_is_encoded_where_its_windows_are_sampled(beside: Any) -> None:
    """Of a film that several machines make."""
    clip, whole = opened(images=frames(49))[0], beside(opened(images=frames(49))[0])[1]
    (part,) = beside(clip, here=frozenset({1}))
    assert torch.equal(part, whole) and not beside(clip, here=frozenset())


# Sizes


@pytest.mark.parametrize(("factors", "size"), [([], (1920, 1088)), ([(2, 1)], (1792, 1024)), ([(1, 2)], (1920, 1088))])
def test_auto_fits_the_reference(factors: list[tuple[int, int]], size: tuple[int, int]) -> None:
    """A reference of half the size has a grid of its own: the video's sides are multiples of 128."""
    model = SimpleNamespace(references=factors)
    asked = {"video_size": "auto", "width": 64, "height": 64, "frames": 9, "two_passes": True, "model": model}
    first, second, report = run(latents.VideoSize, first_image=torch.zeros(1, 1080, 1920, 3), **asked)
    assert pixel_size(second["samples"]) == size[::-1] and f"{size[0]}×{size[1]}, 9 frames" in report
    assert all(
        side % (32 * max((down for down, _ in factors), default=1)) == 0 for side in pixel_size(first["samples"])
    )
