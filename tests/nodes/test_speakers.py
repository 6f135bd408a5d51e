"""The nodes Speaker and Reference Sound: what they add to the sound of a clip and of a film."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

from a2v.ltx.diffusion.conditioning import AudioCondition
from a2v.ltx.diffusion.sound import encode_reference
from a2v.ltx.diffusion.speakers import hearing
from a2v.ltx.errors import InputError
from a2v.ltx.grid import CHANNELS, audio_length
from a2v.ltx.media.audio import Track
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.lora import Match
from a2v.ltx.windows import WindowSize, cut_windows
from a2v.nodes import memory
from a2v.nodes.conditioning import AudioConditioning
from a2v.nodes.film import IN_FILM, Cut, FilmSound, InFilm, prepared
from a2v.nodes.film import heard as audible
from a2v.nodes.reference_sound import ReferenceSound
from a2v.nodes.sampling import _check_references, _heaviest
from a2v.nodes.speakers import WhoSpeaks
from a2v.tests.nodes.test_steering import run
from a2v.tests.tiny import write_tiny
from torch import Tensor

FPS, FRAMES = Fraction(24), 65
LEFT = torch.cat((torch.ones(1, 8, 6), torch.zeros(1, 8, 6)), 2)


def sound(frames: int) -> AudioCondition:
    return AudioCondition(torch.zeros(1, 8, audio_length(frames, FPS), 16), frames, FPS)


def voice(seconds: float = 3.0) -> dict[str, object]:
    samples = torch.randn(1, 2, round(seconds * 16000), generator=torch.Generator().manual_seed(1)) * 0.1
    return {"waveform": samples, "sample_rate": 16000}


def heard(condition: AudioCondition) -> Tensor:
    """By latent, the shares of both halves: [F, 2, sounds]."""
    return hearing(condition.speakers, torch.zeros(1, CHANNELS, (condition.frames - 1) // 8 + 1, 1, 2))[:, 0]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> memory.Handle:
    files = write_tiny(tmp_path_factory.mktemp("speakers"))
    return memory.hold_vae(load_checkpoint(files.checkpoint).audio_vae, "float32")


def test_two_nodes_in_a_row_are_two_speakers(vae: memory.Handle) -> None:
    """Each half hears its own voice, encoded as Audio Conditioning encodes a sound, or the whole sound."""
    spoken = voice()
    (one,) = run(WhoSpeaks, audio=sound(FRAMES), mask=LEFT, voice=spoken, audio_vae=vae)
    assert isinstance(one, AudioCondition) and torch.equal(heard(one)[-1], torch.tensor([[0.0, 1], [0, 0]]))
    (encoded,) = run(AudioConditioning, audio_vae=vae, audio=spoken, frames=FRAMES, fps=24.0)
    assert torch.equal(one.voices[0], encoded.latent) and encoded.latent.any()
    (both,) = run(WhoSpeaks, audio=one, mask=1 - LEFT)
    assert len(both.speakers) == 2 and torch.equal(both.latent, one.latent)
    assert torch.equal(heard(both)[-1], torch.tensor([[0.0, 1], [1, 0]]))


def test_a_voice_that_cannot_be_heard_is_refused_in_words(vae: memory.Handle) -> None:
    with pytest.raises(InputError, match=r"^audio_vae: it is not connected, and a voice needs it"):
        run(WhoSpeaks, audio=sound(FRAMES), mask=LEFT, voice=voice())
    with pytest.raises(InputError, match=r"^speakers: a voice of their own needs an audio that is kept"):
        run(WhoSpeaks, audio=replace(sound(FRAMES), strength=0.5), mask=LEFT, voice=voice(), audio_vae=vae)


def test_each_window_of_a_film_has_its_part(vae: memory.Handle) -> None:
    windows = cut_windows(FRAMES, WindowSize(33, 2))
    assert len(windows) == 3
    film = FilmSound(Cut(FRAMES, FPS, windows), tuple(sound(window.frames) for window in windows))
    moving = torch.zeros(FRAMES, 8, 12)
    moving[-8:] = 1  # the last latent
    (made,) = run(WhoSpeaks, audio=film, mask=moving)
    spoken = voice()
    (talking,) = run(WhoSpeaks, audio=film, mask=LEFT, voice=spoken, audio_vae=vae)
    (encoded,) = run(AudioConditioning, audio_vae=vae, audio=spoken, frames=FRAMES, fps=24.0, windows=film.cut)
    for own, wanted in zip(talking.sounds, encoded.sounds, strict=True):
        assert torch.equal(own.voices[0], wanted.latent)
    assert isinstance(made, FilmSound) and made.cut is film.cut
    assert [bool(heard(each).any()) for each in made.sounds] == [False, False, True]
    assert not heard(made.sounds[-1])[:-1].any() and (heard(made.sounds[-1])[-1] == 1).all()


def test_a_voice_and_a_mask_begin_with_the_video(vae: memory.Handle) -> None:
    """Of a clip that is made longer, what the model sees begins later: voice and mask are counted from the video's
    first frame, also a voice that comes from Retake, and one that was levelled and begins where the model hears it."""
    lead, count = 40, FRAMES + 40
    spoken = voice(count / 24)
    moving = torch.zeros(count, 8, 12)
    moving[-8:] = 1
    late = replace(sound(FRAMES), lead=lead)
    rest = {**spoken, "waveform": spoken["waveform"][..., round(lead / 24 * 16000) :]}
    (wanted,) = run(AudioConditioning, audio_vae=vae, audio=rest, frames=FRAMES, fps=24.0)
    placed = {**spoken, IN_FILM: InFilm(lead, FPS, False)}
    levelled = prepared(audible(placed), placed)
    for given in (spoken, placed, levelled):
        (found,) = run(WhoSpeaks, audio=late, mask=LEFT, voice=given, audio_vae=vae)
        assert torch.equal(found.voices[0], wanted.latent)
    (seen,) = run(WhoSpeaks, audio=late, mask=moving)
    assert not heard(seen)[:-1].any() and (heard(seen)[-1] == 1).all()


def test_a_mask_of_a_picture_without_transparency_is_refused() -> None:
    with pytest.raises(InputError, match=r"^mask: it is black everywhere"):
        run(WhoSpeaks, audio=sound(FRAMES), mask=torch.zeros(1, 64, 64))


def test_a_reference_sound_of_a_clip(vae: memory.Handle) -> None:
    """All of a short one, without silence behind it; without a sound the audio is its own example."""
    spoken = voice(0.5)
    (made,) = run(ReferenceSound, audio=sound(FRAMES), sound=spoken, audio_vae=vae)
    wanted = encode_reference(vae.module, Track(spoken["waveform"][0], 16000))
    assert torch.equal(made.reference, wanted) and made.reference.shape[2] == 13
    own = replace(sound(FRAMES), latent=torch.randn_like(sound(FRAMES).latent))
    (itself,) = run(ReferenceSound, audio=own)
    assert torch.equal(itself.reference, own.latent)
    with pytest.raises(InputError, match=r"^audio_vae: it is not connected, and a sound needs it"):
        run(ReferenceSound, audio=sound(FRAMES), sound=spoken)
    with pytest.raises(InputError, match=r"^sound: 0\.032 s of sound are too short for an example"):
        run(ReferenceSound, audio=sound(FRAMES), sound=voice(0.032), audio_vae=vae)


def test_each_window_has_its_part_of_a_reference_sound(vae: memory.Handle) -> None:
    """But for one that is made elsewhere, which needs none; all of a sound that is shorter than the window."""
    windows = cut_windows(FRAMES, WindowSize(33, 2))
    film = FilmSound(Cut(FRAMES, FPS, windows, here=frozenset({0, 2})), tuple(sound(each.frames) for each in windows))
    spoken = voice(1.0)
    (made,) = run(ReferenceSound, audio=film, sound=spoken, audio_vae=vae)
    first, elsewhere, last = (each.reference for each in made.sounds)
    whole = encode_reference(vae.module, Track(spoken["waveform"][0], 16000))
    assert torch.equal(first, whole) and elsewhere is None and torch.equal(last, whole)
    assert windows[2].first_frame / 24 > 1.0 and made.cut is film.cut


def test_an_ic_lora_that_hears_may_have_a_sound_alone(tmp_path: Path) -> None:
    lora = SimpleNamespace(path=tmp_path / "voices.safetensors", reference=(1, 1))
    seeing, hearing = ("transformer_blocks.0.attn1.to_q.weight",), ("transformer_blocks.0.audio_attn1.to_q.weight",)
    by_eye, by_ear = (
        SimpleNamespace(loras=[(Match(lora, dict.fromkeys(names), frozenset(), {}), 1.0)])
        for names in (seeing, seeing + hearing)
    )
    silent, heard_alone = FilmSound.of(sound(FRAMES)), FilmSound.of(sound(FRAMES).beside_itself)
    _check_references(by_ear, None, heard_alone)
    for model, film in ((by_ear, silent), (by_eye, silent), (by_eye, heard_alone)):
        with pytest.raises(
            InputError, match=r"^model: voices\.safetensors is an IC-LoRA, which needs a reference video"
        ):
            _check_references(model, None, film)
    windows = cut_windows(FRAMES, WindowSize(33, 2))
    made_elsewhere = Cut(FRAMES, FPS, windows, here=frozenset())
    _check_references(by_eye, None, FilmSound(made_elsewhere, tuple(sound(each.frames) for each in windows)))


def test_memory_is_kept_for_the_window_that_takes_most(vae: memory.Handle) -> None:
    """The first window may be short or made elsewhere, and only a later one may make sound anew."""
    windows = cut_windows(FRAMES, WindowSize(33, 2))
    film = FilmSound(Cut(FRAMES, FPS, windows, here=frozenset({1, 2})), tuple(sound(each.frames) for each in windows))
    assert _heaviest(film) is film.sounds[0]
    (made,) = run(ReferenceSound, audio=film, sound=voice(FRAMES / 24 - 0.2), audio_vae=vae)
    assert made.sounds[0].reference is None and _heaviest(made) is made.sounds[1]
    first, second, last = film.sounds
    renewed = replace(second, mask=torch.ones(second.latent.shape[2]))
    assert _heaviest(replace(film, sounds=(first, renewed, last))) is renewed


@pytest.mark.parametrize(("node", "field"), [(WhoSpeaks, "voice"), (ReferenceSound, "sound")])
def test_a_clip_without_sound_is_not_taken_for_nothing(vae: memory.Handle, node: type, field: str) -> None:
    """ComfyUI gives None for the sound of such a video, and nothing for an input that is not connected."""
    more = {"mask": LEFT} if node is WhoSpeaks else {}
    with pytest.raises(InputError, match=r"^audio: there is none, so the video that it was to come from has no sound"):
        run(node, audio=sound(FRAMES), audio_vae=vae, **{field: None}, **more)
