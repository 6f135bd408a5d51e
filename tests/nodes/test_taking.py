"""What other packs' nodes hand over: what has one meaning is read with the right numbers, the rest is one sentence."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

import comfy.model_management as management
import comfy.sample
import comfy_extras.nodes_custom_sampler as native
from a2v.ltx.diffusion.conditioning import Guide
from a2v.ltx.diffusion.schedules import linear_quadratic
from a2v.ltx.edits import CLEAN
from a2v.ltx.errors import InputError
from a2v.ltx.grid import CHANNELS
from a2v.ltx.latents import Noise, patchify_video
from a2v.ltx.media.audio import LOUDEST, Track, conditioning_track, load_track, soundtrack
from a2v.ltx.media.images import from_float
from a2v.ltx.timeline import read_timeline
from a2v.nodes import audio, conditioning, latents, output, safety, sampling
from a2v.nodes.film import SOURCE, Timeline
from a2v.nodes.taking.latent import MASK, mask_of, start_of
from a2v.nodes.taking.noise import Generated, NextNoise, to_noise
from a2v.nodes.taking.picture import others, size_of, to_frames, to_picture
from a2v.nodes.taking.sigmas import to_sigmas
from a2v.nodes.taking.sound import from_track, to_track
from a2v.tests.nodes.test_steering import FPS, FRAMES, conditions, model, run
from a2v.tests.robust.odd_nodes import values

pytestmark = pytest.mark.usefixtures("inference")

__all__ = ["model"]  # the fixture
RATE = 44100
LATENT = (1, CHANNELS, 2, 2, 3)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ours() -> dict[str, Any]:
    """AUDIO of Load Audio: two channels that differ, with our own key."""
    return from_track(Track(random(1, 2, 200).clamp(-3, 3) / 4, RATE, ("FL", "FR")))


@pytest.mark.parametrize("kind", values.AUDIO)
def test_audio_from_any_node(kind: str) -> None:
    change, meant = values.AUDIO[kind]
    given = change(ours())
    if isinstance(meant, str):
        with pytest.raises(InputError, match=meant):
            to_track(given)
        return
    wave, rate = meant(ours()["waveform"][0], RATE)
    track = to_track(given)
    assert track.rate == rate and track.waveform.shape == wave.shape
    assert torch.allclose(track.waveform, wave, atol=1e-6) and track.waveform.is_contiguous()
    assert len(track.speakers) in (0, len(wave)) and not track.waveform.requires_grad


def refuse(given: Any, words: str) -> None:
    """Every node that takes AUDIO refuses that value in one line with those words."""
    takers = (
        lambda: audio.FrameCount.execute(given, 24.0, True, 121),
        lambda: audio.PreprocessAudio.execute(given, 25, 24.0, False),
        lambda: run(conditioning.AudioConditioning, audio_vae=None, audio=given, frames=25, fps=24.0),
    )
    for take in takers:
        with pytest.raises(InputError, match=words) as refused:
            take()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [kind for kind, (_, meant) in values.AUDIO.items() if isinstance(meant, str)])
def test_the_node_that_takes_it_says_so(kind: str) -> None:
    change, words = values.AUDIO[kind]
    refuse(change(ours()), words)


def test_a_lazy_sound_that_cannot_be_read_is_told_in_one_sentence() -> None:
    refuse(values.Unread(), r"^audio: Unread cannot be read \(RuntimeError\), perhaps because its file has no sound; ")


def test_an_interrupt_while_a_lazy_sound_is_read_stays_one() -> None:
    class Stopped(values.Unread):
        def __getitem__(self, key: str) -> Any:
            raise management.InterruptProcessingException

    with pytest.raises(management.InterruptProcessingException):
        to_track(Stopped())


@pytest.mark.parametrize("factor", [1, 1.01])
def test_what_load_audio_gives_every_node_takes(factor: float, tmp_path: Path) -> None:
    """A file that is too loud for the nodes is refused as it is read, by its name."""
    rate, samples = 8000, np.array([0.0, LOUDEST, -LOUDEST] * 400, "<f4") * np.float32(factor)
    head = struct.pack(
        "<4sI8sIHHIIHH4sI",
        b"RIFF",
        36 + samples.nbytes,
        b"WAVEfmt ",
        16,
        3,
        1,
        rate,
        rate * 4,
        4,
        32,
        b"data",
        samples.nbytes,
    )
    (tmp_path / "loud.wav").write_bytes(head + samples.tobytes())
    if factor > 1:
        with pytest.raises(InputError, match=r"^loud\.wav: has samples"):
            load_track(tmp_path / "loud.wav")
    else:
        assert torch.equal(
            to_track(from_track(load_track(tmp_path / "loud.wav"))).waveform[0], torch.from_numpy(samples)
        )


def test_a_mono_copy_of_a_stereo_sound_keeps_its_length() -> None:
    """It has our key for two speakers still; read by that, it would become stereo at twice the speed."""
    track = to_track({**ours(), "waveform": torch.ones(1, 1, RATE)})
    assert soundtrack(track, 25, Fraction(24)).seconds == 1
    heard = conditioning_track(track, 25, Fraction(24)).waveform
    assert heard.shape == (2, round(Fraction(25, 24) * RATE)) and heard[:, :RATE].eq(1).all()


@pytest.mark.parametrize("kind", values.IMAGE)
def test_pictures_from_any_node(kind: str) -> None:
    picture = random(2, 1, 64, 48, 3).sigmoid()
    change, meant = values.IMAGE[kind]
    if isinstance(meant, str):
        with pytest.raises(InputError, match=meant):
            to_picture(change(picture))
        return
    wanted = (meant(picture) * 255).round()
    taken = to_picture(change(picture))
    assert taken.dtype == torch.uint8 and (taken - wanted).abs().max() <= 1
    assert size_of(change(picture)) == (wanted.shape[1], wanted.shape[0])
    assert bool(others(change(picture))) == (kind in ("batch of three", "list of pictures"))


def test_the_size_of_the_video_is_the_pictures_own_in_every_form() -> None:
    for kind in ("one picture", "list", "grey"):
        picture = values.IMAGE[kind][0](torch.zeros(1, 128, 192, 3))
        assert run(latents.VideoSize, video_size="auto", width=64, height=64, frames=9, two_passes=True,
                   first_image=picture)[2].startswith("192×128")  # fmt: skip


@pytest.mark.parametrize("kind", ["half clear", "grey", "bytes", "beyond 0 and 1"])
def test_frames_for_a_file_are_read_alike(kind: str) -> None:
    picture = random(3, 1, 32, 32, 3).sigmoid()
    change, meant = values.IMAGE[kind]
    (chunk,) = safety.chunks(to_frames(change(picture)))
    assert (chunk[0].int() - (meant(picture) * 255).int()).abs().max() <= 1


@pytest.mark.parametrize("kind", ["none", "batch of none", "five channels", "channels first", "one picture", "list"])
def test_what_is_no_clip_is_refused_as_one(kind: str) -> None:
    with pytest.raises(InputError, match=r"^images: it is"):
        run(output.SaveVideo, images=values.IMAGE[kind][0](torch.zeros(1, 64, 64, 3)), fps=24.0, filename_prefix="x")


def test_a_report_may_be_anything() -> None:
    assert run(output.Report, report_1=None, report_2=3.5, report_4="two\nlines")[0] == "3.5\ntwo\nlines"
    run(output.SaveVideo, images=torch.zeros(1, 64, 64, 3), fps=24.0, filename_prefix="x", report=None)


def test_a_transparent_picture_means_the_same_everywhere() -> None:
    """The command and the API read the file, another node gives its four channels: black shows where nothing is."""
    colours, alpha = random(4, 8, 8, 3).sigmoid(), torch.linspace(0, 1, 64).reshape(8, 8, 1)
    rgba = torch.cat([colours, alpha], -1)
    assert torch.equal(to_picture(rgba[None]), from_float(colours * alpha))
    assert to_picture(rgba[None])[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", values.LATENT)
def test_latents_from_any_node(kind: str, model: Any) -> None:
    change, refused = values.LATENT[kind]
    given = change({"samples": torch.zeros(LATENT)})
    asked = conditions(model.module, 1.0)
    inputs = {"noise": native.Noise_RandomNoise(3), "sigmas": torch.tensor([1.0, 0.0]), "positive": asked.positive}
    sampled = lambda: run(sampling.Sampler, model=model, audio=asked.audio, latent=given, **inputs)  # noqa: E731
    if refused:
        with pytest.raises(InputError, match=refused):
            sampled()
        return
    made, _, _, report = sampled()
    assert made["samples"].shape == LATENT and made["samples"].isfinite().all()
    kept = kind == "mask of frames"
    assert (MASK in made) == kept == ("noise mask" in report) and (bool(made["samples"].any()) != kept)


def test_a_switch_may_give_no_guides(model: Any) -> None:
    """As another pack's switch does of which no input is connected or chosen."""
    latent, asked = {"samples": torch.zeros(LATENT)}, conditions(model.module, 1.0)
    image = {"video_vae": None, "image": torch.zeros(1, 8, 8, 3), "strength": 0.0, "guides": None}
    for node in (conditioning.ImageConditioning, conditioning.EndImageConditioning, conditioning.Keyframe):
        assert run(node, latent=latent, **image) == ((),)
    story = Timeline(read_timeline("0:00 [image face.png] a face"), (), 9, FPS)
    with pytest.raises(InputError, match=r"face\.png"):  # which is what it looks for next
        run(conditioning.SectionImages, timeline=story, video_vae=None, latent=latent, strength=1.0, guides=None)
    made = [
        run(sampling.Sampler, model=model, noise=native.Noise_RandomNoise(3), sigmas=torch.tensor([1.0, 0.0]),
            positive=asked.positive, audio=asked.audio, latent=latent, **more)[0]["samples"]
        for more in ({}, {"guides": None})
    ]  # fmt: skip
    assert torch.equal(*made)


def test_a_noise_mask_keeps_its_part_of_the_latent(model: Any) -> None:
    start, asked = random(5, *LATENT), conditions(model.module, 1.0)
    mask = torch.ones(1, 1, 2, 1, 1)
    mask[:, :, 0] = 0
    made, *_, report = run(
        sampling.Sampler, model=model, noise=native.Noise_RandomNoise(3), sigmas=torch.tensor([0.9, 0.4, 0.0]),
        positive=asked.positive, audio=asked.audio, latent={"samples": start, MASK: mask},
    )  # fmt: skip
    assert torch.equal(made["samples"][:, :, 0], start[:, :, 0])
    assert not torch.allclose(made["samples"][:, :, 1], start[:, :, 1], atol=0.1) and "noise mask keeps" in report


def test_a_mask_is_scaled_to_the_latents_cells() -> None:
    picture = torch.zeros(1, 64, 96)
    picture[:, :, 48:] = 1  # the right half of the picture may change
    cells = mask_of({"samples": torch.zeros(1, CHANNELS, 3, 2, 4), MASK: picture})
    assert cells.shape == (1, 1, 3, 2, 4)
    assert torch.allclose(cells, torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 3, 2, 4), atol=1e-6)
    assert start_of({"samples": torch.zeros(LATENT)}).shape == LATENT


@pytest.mark.parametrize("kind", values.SIGMAS)
def test_sigmas_from_any_node(kind: str) -> None:
    given, meant = values.SIGMAS[kind]
    if isinstance(meant, str):
        with pytest.raises(InputError, match=meant):
            to_sigmas(given)
    else:
        assert torch.equal(to_sigmas(given), torch.tensor(meant)) and to_sigmas(given).dtype == torch.float32


def test_bad_sigmas_are_told_by_the_sampler_and_by_acceleration(model: Any) -> None:
    asked, bad = conditions(model.module, 1.0), values.SIGMAS["rising"][0]
    inputs = {"noise": native.Noise_RandomNoise(3), "positive": asked.positive, "audio": asked.audio}
    with pytest.raises(InputError, match="the values rise"):
        run(sampling.Sampler, model=model, sigmas=bad, latent={"samples": torch.zeros(LATENT)}, **inputs)
    with pytest.raises(InputError, match="the values rise"):
        run(sampling.Accelerate, level="none", torch_compile=False, first_model=model, second_model=model, schedule=bad)


def stage(model: Any, noise: Any, sigmas: Any, latent: dict[str, Any], strength: float = 1.0) -> tuple[Any, ...]:
    asked = conditions(model.module, strength)
    return run(
        sampling.Sampler, model=model, noise=noise, sigmas=sigmas, positive=asked.positive, audio=asked.audio,
        latent=latent,
    )  # fmt: skip


def test_a_split_schedule_continues_exactly_without_noise(model: Any) -> None:
    """SplitSigmas and Disable Noise, as in graphs that sample the two parts in different ways."""
    empty, sigmas = {"samples": torch.zeros(LATENT)}, linear_quadratic(6)
    whole, *_ = stage(model, native.Noise_RandomNoise(3), sigmas, empty)
    begun, _, _, report = stage(model, native.Noise_RandomNoise(3), sigmas[:4], empty)
    assert f"noise of sigma {float(sigmas[3]):g} is left" in report
    ended, _, _, report = stage(model, native.Noise_EmptyNoise(), sigmas[3:], begun)
    assert "no noise was added, as Noise_EmptyNoise gives none" in report
    assert torch.allclose(ended["samples"], whole["samples"], atol=1e-4)


def test_a_split_schedule_keeps_what_stays(model: Any) -> None:
    """What a noise mask keeps, wholly and by half, and a first image that is not kept as a whole."""
    sigmas, asked = linear_quadratic(6), conditions(model.module, 1.0)
    mask = torch.tensor([0.0, 0.5, 1.0]).expand(1, 1, 2, 2, 3)
    start = {"samples": random(5, *LATENT), MASK: mask, SOURCE: {"kept_cells": CLEAN}}
    guides = (Guide(random(8, 1, CHANNELS, 1, 2, 3), 0, 0.7),)

    def part(noise: Any, sigmas: torch.Tensor, latent: dict[str, Any]) -> dict[str, Any]:
        inputs = {"positive": asked.positive, "audio": asked.audio, "guides": guides}
        return run(sampling.Sampler, model=model, noise=noise, sigmas=sigmas, latent=latent, **inputs)[0]

    whole = part(native.Noise_RandomNoise(3), sigmas, start)
    begun = part(native.Noise_RandomNoise(3), sigmas[:4], start)
    ended = part(native.Noise_EmptyNoise(), sigmas[3:], begun)
    assert torch.allclose(ended["samples"], whole["samples"], atol=1e-4)
    assert torch.equal(ended["samples"][:, :, 1, :, 0], start["samples"][:, :, 1, :, 0])
    other = part(native.Noise_EmptyNoise(), sigmas[3:], {name: begun[name] for name in ("samples", MASK)})
    assert torch.equal(other["samples"][:, :, 1, :, 0], start["samples"][:, :, 1, :, 0]), "another pack's node between"


def test_a_schedule_that_leaves_noise_in_the_sound_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match=r"^sigmas: they end at 0\.5 and would leave noise in the sound"):
        stage(model, native.Noise_RandomNoise(3), torch.tensor([1.0, 0.5]), {"samples": torch.zeros(LATENT)}, 0.5)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_disable_noise_is_not_the_noise_of_seed_0(model: Any, strength: float) -> None:
    start = {"samples": random(6, *LATENT)}
    silent, following, *_ = stage(model, native.Noise_EmptyNoise(), [0.5, 0.0], start, strength)
    seeded, *_ = stage(model, native.Noise_RandomNoise(0), [0.5, 0.0], start, strength)
    assert not torch.allclose(silent["samples"], seeded["samples"], atol=0.01)
    assert isinstance(following, native.Noise_EmptyNoise)


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_random_noise_is_the_engines_own_stream(seed: int) -> None:
    latent = {"samples": torch.zeros(LATENT)}
    source = to_noise(native.Noise_RandomNoise(seed), latent)
    assert source == Noise(seed)
    assert to_noise(NextNoise(source), latent) is source
    (drawn,), _ = source.draw(LATENT)
    assert torch.equal(drawn, comfy.sample.prepare_noise(latent["samples"], seed))


@pytest.mark.parametrize("kind", values.NOISE)
def test_noise_from_any_node(kind: str) -> None:
    noise, refused = values.NOISE[kind]
    latent = {"samples": torch.zeros(LATENT)}
    if refused:
        with pytest.raises(InputError, match=refused):
            to_noise(noise, latent)
        return
    source = to_noise(noise, latent)
    (picture, sound), after = source.draw((1, 2 * 2 * 3 + 6, CHANNELS), (1, 5, CHANNELS))
    grid = patchify_video(noise.generate_noise(latent)).float()
    assert torch.equal(picture[:, :12], grid) and picture.shape == (1, 18, CHANNELS) and sound.shape == (1, 5, CHANNELS)
    assert sound.std() > 0.1 and not torch.equal(sound, grid[:, :5]), "the sound does not repeat the picture's noise"
    assert isinstance(source, Generated) and after.native is noise and source.note.startswith("the noise is")


def test_an_interrupt_in_a_foreign_noise_stays_an_interrupt() -> None:
    def cancelled(noise: torch.Tensor) -> torch.Tensor:
        raise management.InterruptProcessingException

    with pytest.raises(management.InterruptProcessingException):
        to_noise(values.Coloured(5, cancelled), {"samples": torch.zeros(LATENT)})


def test_a_foreign_noise_makes_the_video(model: Any) -> None:
    empty = {"samples": torch.zeros(LATENT)}
    own, _, _, report = stage(model, values.Coloured(5), [1.0, 0.5, 0.0], empty)
    plain, *_ = stage(model, native.Noise_RandomNoise(5), [1.0, 0.5, 0.0], empty)
    assert not torch.equal(own["samples"], plain["samples"]) and "the noise is Coloured's own" in report
    assert (FRAMES, FPS) == (9, 24)
