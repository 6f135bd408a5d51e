"""A sound that the model hears as an example: both stages against ltx-pipelines 1.0.0, changed so that it dubs as
`DubItPipeline` of version 1.2 does, and what a job makes of the reference's sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx import given
from a2v.ltx.diffusion.schedules import REFINE
from a2v.ltx.errors import InputError
from a2v.ltx.job import prepare
from a2v.ltx.latents import patchify_audio
from a2v.ltx.media.audio import Track, reference_part
from a2v.ltx.media.clip import clip_track
from a2v.ltx.request import parse
from a2v.tests.ltx.goldens import relative
from a2v.tests.ltx.loaded import loaded_once
from a2v.tests.ltx.test_pipeline import CPU, TIGHT, Noiser, Peer, peer, with_loras
from a2v.tests.ltx.test_video_in import BASE, FRAMES, HEIGHT, WIDTH, Engine, engine, files_of, media, text
from a2v.tests.tiny import TinyFiles
from safetensors.torch import load_file, save_file
from scipy.io import wavfile
from torch import Tensor

__all__ = ["engine", "media", "peer"]  # the fixtures
FPS, LORA = 24, 0.7
SCALES = {"video": 3.0, "audio": 7.0, "identity": 3.0}  # as ID-LoRA's makers have them
UNGUIDED = {
    f"{stream}_{name}_scale": value
    for name, value in (("cfg", 1.0), ("stg", 0.0), ("modality", 1.0))
    for stream in ("video", "audio")
}
REQUEST = {
    "video_size": {"width": 2 * WIDTH, "height": 2 * HEIGHT}, "num_frames": FRAMES, "fps": FPS,
    "match_audio_length": False, "use_multiscale": True, "preprocess_audio": False, "scheduler": "ltx2",
    "num_inference_steps": 3, "use_restart_sampling": False, "distill_lora_first_pass_scale": 0,
    "distill_lora_second_pass_scale": 0, **UNGUIDED,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    with loaded_once():
        yield


class Heard:
    """An item of conditioning that version 1.0.0 lacks: the tokens of a sound, which are kept, behind those of the
    track. The sound ends a latent's length before the track begins."""

    def __init__(self, latent: Tensor) -> None:
        self.latent = latent

    def apply_to(self, latent_state: Any, latent_tools: Any) -> Any:
        tokens = latent_tools.patchifier.patchify(self.latent)
        shape = latent_tools.target_shape._replace(frames=tokens.shape[1])
        places = latent_tools.patchifier.get_patch_grid_bounds(output_shape=shape, device=CPU).float()
        places = places - places[:, :, -1, 1].max().item() - 0.04
        state = latent_state
        return replace(
            state,
            latent=torch.cat((state.latent, torch.zeros_like(tokens)), 1),
            clean_latent=torch.cat((state.clean_latent, tokens), 1),
            denoise_mask=torch.cat((state.denoise_mask, torch.zeros_like(tokens[..., :1])), 1),
            positions=torch.cat((state.positions, places), 2),
        )


def identity_guided(peer: Peer, transformer: Any, heard: int) -> Any:
    """The first stage of ID-LoRA's pipeline: CFG of both streams, and the sound led away from the one that is made
    without the last `heard` tokens, which are the example's. Its makers put these first and not last."""
    positive, negative = text(1), text(2)

    def step(video: Any, audio: Any, sigmas: Tensor, index: int) -> tuple[Tensor, Tensor]:
        def predicted(audio: Any, context: Any) -> tuple[Tensor, Tensor]:
            seen = peer.helpers.modality_from_latent_state(video, context.video, sigmas[index])
            sound = peer.helpers.modality_from_latent_state(audio, context.audio, sigmas[index])
            return transformer(video=seen, audio=sound, perturbations=None)

        own = slice(None, audio.latent.shape[1] - heard)
        alone = replace(
            audio,
            latent=audio.latent[:, own],
            clean_latent=audio.clean_latent[:, own],
            denoise_mask=audio.denoise_mask[:, own],
            positions=audio.positions[:, :, own],
        )
        cond, uncond, unheard = predicted(audio, positive), predicted(audio, negative), predicted(alone, positive)
        picture, sound = (
            a + (SCALES[s] - 1) * (a - b) for s, a, b in zip(("video", "audio"), cond, uncond, strict=True)
        )
        sound[:, own] += SCALES["identity"] * (cond[1][:, own] - unheard[1])
        return picture, sound

    return step


@torch.inference_mode()
def official(
    peer: Peer, files: TinyFiles, lora: Path, ours: dict[str, Tensor], seed: int, kept: bool, led: bool = False
) -> Any:
    """Both stages of the dubbing pipeline → video and audio latent. ours: a trace with the encoded inputs. kept:
    whether the track is kept in the first stage, too. led: whether that stage is guided as ID-LoRA's."""
    ledger = peer.ledger.ModelLedger(torch.float32, CPU, str(files.checkpoint), None, str(files.upscaler))
    noiser, stepper, context = Noiser(seed), peer.steps.EulerDiffusionStep(), text(1)
    transformer = with_loras(ledger, [(lora, LORA)])
    plain = peer.helpers.simple_denoising_func(
        video_context=context.video, audio_context=context.audio, transformer=transformer
    )
    heard = ours["reference/audio_latent"].shape[2]
    functions = plain, identity_guided(peer, transformer, heard) if led else plain

    def stage(half: bool, sigmas: Tensor, picture: Tensor, heard: Tensor, kept: Tensor | None, **start: Any) -> Any:
        width, height = (WIDTH, HEIGHT) if half else (2 * WIDTH, 2 * HEIGHT)
        shape = peer.shapes.VideoPixelShape(batch=1, frames=FRAMES, width=width, height=height, fps=FPS)
        same = {
            "output_shape": shape, "noiser": noiser, "dtype": torch.float32, "device": CPU,
            "components": peer.components.PipelineComponents(torch.float32, CPU),
        }  # fmt: skip
        seen = peer.conditioning.VideoConditionByReferenceLatent(picture, downscale_factor=2)
        video, video_tools = peer.helpers.noise_video_state(conditionings=[seen], **same, **start)
        frozen = {} if kept is None else {"noise_scale": 0.0, "initial_latent": kept}
        audio, audio_tools = peer.helpers.noise_audio_state(conditionings=[Heard(heard)], **same, **frozen)
        if kept is not None:
            audio = replace(audio, denoise_mask=torch.zeros_like(audio.denoise_mask))
        made = peer.samplers.euler_denoising_loop(sigmas, video, audio, stepper, functions[half])
        return [
            tools.unpatchify(tools.clear_conditioning(state)).latent
            for tools, state in zip((video_tools, audio_tools), made, strict=True)
        ]

    example = ours["reference/audio_latent"]
    track = ours["audio/latent"][:, :, : peer_length(ours)] if kept else None
    video, audio = stage(True, ours["s1/sigmas"], ours["cond/0/latent"], example, track)
    upscaled = peer.upsampler.upsample_video(video, ledger.video_encoder(), ledger.spatial_upsampler())
    start = {"noise_scale": REFINE[0], "initial_latent": upscaled}
    audio = track if kept else audio
    return stage(False, torch.tensor(REFINE), ours["cond/1/latent"], audio, audio, **start)[0], audio


def peer_length(ours: dict[str, Tensor]) -> int:
    return ours["final/audio_latent"].shape[2]


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_both_stages_are_the_official_ones(
    engine: Engine, media: dict[str, Path], peer: Peer, tiny: TinyFiles, strength: float
) -> None:
    """With a sound that is made, as the official pipeline makes it, and with a given one."""
    values = {**REQUEST, "audio_strength": strength, "reference": {"stages": "both", "sound": True}}
    given = {"audio": media["voice"], "reference": media["reference"], "loras": ((media["lora"], LORA),)}
    result = engine(values, **given)
    assert "the model also hears the sound of a reference" in result.report["notes"]
    video, audio = official(peer, tiny, media["lora"], result.trace, BASE["seed"], strength == 1)
    assert relative(result.trace["final/video_latent"], video) < TIGHT
    assert relative(result.trace["final/audio_latent"], audio) < TIGHT
    without = engine({**values, "reference": {"stages": "both"}}, **given)
    assert relative(without.trace["final/video_latent"], video) > 100 * TIGHT, "the example is heard"


def test_identity_is_that_of_the_makers_of_id_lora(
    engine: Engine, media: dict[str, Path], peer: Peer, tiny: TinyFiles
) -> None:
    scales = {f"{stream}_cfg_scale": SCALES[stream] for stream in ("video", "audio")}
    values = {**REQUEST, **scales, "video_rescaling_scale": 0, "audio_rescaling_scale": 0, "audio_strength": 0}
    given = {"audio": media["voice"], "reference": media["reference"], "loras": ((media["lora"], LORA),)}
    use = {"stages": "both", "sound": True, "identity": SCALES["identity"]}
    result = engine({**values, "reference": use}, **given)
    assert result.report["used"]["passes_per_step"] == 3
    video, audio = official(peer, tiny, media["lora"], result.trace, BASE["seed"], kept=False, led=True)
    assert relative(result.trace["final/video_latent"], video) < TIGHT
    assert relative(result.trace["final/audio_latent"], audio) < TIGHT
    without = engine({**values, "reference": {**use, "identity": 0}}, **given)
    assert relative(without.trace["final/audio_latent"], audio) > 100 * TIGHT


def voice_of(film: Path, path: Path) -> Path:
    """Writes the sound of a film, to the bit."""
    track = clip_track(film)
    wavfile.write(path, int(track.rate), track.waveform.T.float().numpy())
    return path


def test_a_sound_alone_is_the_example_of_a_voice(engine: Engine, media: dict[str, Path], tmp_path: Path) -> None:
    """It is heard as the sound of a video is, and nothing is seen."""
    values = {**REQUEST, "num_inference_steps": 1, "audio_strength": 0}
    sound = voice_of(media["reference"], tmp_path / "voice.wav")
    seen, heard = (
        engine({**values, "reference": {"sound": True, "identity": 3}}, audio=media["voice"], reference=each)
        for each in (media["reference"], sound)
    )
    assert torch.equal(seen.trace["reference/audio_latent"], heard.trace["reference/audio_latent"])
    grid = heard.trace["final/video_latent"].flatten(2).shape[2]
    assert heard.trace["s2/clean_video"].shape[1] == grid and seen.trace["s1/clean_video"].shape[1] > grid // 4
    assert heard.trace["s1/clean_video"].shape[1] == grid // 4
    assert heard.report["used"]["passes_per_step"] == 2
    plain = engine(values, audio=media["voice"], reference=sound)
    assert "the model also hears the sound of a reference" in plain.report["notes"], "there is nothing else it is for"


def test_what_says_how_a_sound_is_seen_is_told(tiny: TinyFiles, media: dict[str, Path], tmp_path: Path) -> None:
    files = files_of(
        tiny, tmp_path / "out.mp4", audio=media["voice"], reference=voice_of(media["voice"], tmp_path / "voice.wav")
    )
    for use, said in (
        ({"strength": 0.5}, "strength of reference does nothing, because it is only heard"),
        ({"fit": "pad", "stride": 2}, "stride and fit of reference do nothing, because it is only heard"),
        ({"sound": True, "stages": "both"}, ""),
    ):
        notes = prepare(files, parse({**BASE, **REQUEST, "reference": use})).notes
        assert [note for note in notes if "only heard" in note] == [said] * bool(said)


def test_an_ic_lora_needs_something_to_see(tiny: TinyFiles, media: dict[str, Path], tmp_path: Path) -> None:
    """One that changes layers of the sound may have a sound alone."""
    request = parse({**BASE, **REQUEST})
    named = {"audio": media["voice"], "reference": voice_of(media["voice"], tmp_path / "voice.wav")}
    files = files_of(tiny, tmp_path / "out.mp4", **named, loras=((media["lora"], LORA),))
    prepare(files, request)
    pairs = {key: value for key, value in load_file(media["lora"]).items() if "audio" not in key}
    blind = tmp_path / "poses-ic-lora.safetensors"
    save_file(pairs, blind, {"reference_downscale_factor": "2"})
    sentence = (
        r"poses-ic-lora\.safetensors: is an IC-LoRA, which needs a reference video, but --reference names a sound"
    )
    with pytest.raises(InputError, match=sentence):
        prepare(replace(files, loras=((blind, LORA),)), request)
    prepare(replace(files, loras=((blind, 0.0),)), request)


def test_id_lora_acts_where_its_example_is_heard(tiny: TinyFiles, media: dict[str, Path], tmp_path: Path) -> None:
    """Its makers' second stage has the distilled LoRA alone. Other LoRAs, and one without an example, act in both."""
    sound = voice_of(media["voice"], tmp_path / "voice.wav")
    names = "ltx-2.3-id-lora-talkvid-3k", "grid-lora"
    loras = tuple((tmp_path / f"{name}.safetensors", 0.8) for name in names)
    for path, _ in loras:
        save_file(load_file(media["lora"]), path)

    def strengths(use: dict[str, Any] | None, reference: Path | None) -> list[list[float]]:
        request = parse({**BASE, **REQUEST, "reference": use})
        files = files_of(tiny, tmp_path / "out.mp4", audio=media["voice"], reference=reference, loras=loras)
        return [[strength for _, strength in stage] for stage in prepare(files, request).loras]

    first, both = [[0.8, 0.8], [0.0, 0.8]], [[0.8, 0.8]] * 2
    assert strengths(None, sound) == first == strengths({"sound": True}, media["reference"])
    assert strengths({"stages": "both"}, sound) == both
    assert strengths(None, None) == both == strengths(None, media["reference"])


def test_identity_beside_a_kept_sound_says_that_it_does_nothing(engine: Engine, media: dict[str, Path]) -> None:
    values = {**REQUEST, "num_inference_steps": 1, "reference": {"sound": True}}
    led = {**values, "reference": {"sound": True, "identity": 3}}
    given = {"audio": media["voice"], "reference": media["reference"]}
    plain, result = (engine(each, **given) for each in (values, led))
    assert torch.equal(plain.trace["final/video_latent"], result.trace["final/video_latent"])
    sentence = "identity of reference does nothing while the audio is kept (audio_strength 1)"
    assert sentence in result.report["notes"] and sentence not in plain.report["notes"]
    assert result.report["used"]["passes_per_step"] == 1


def test_the_second_stage_hears_none_unless_it_sees_the_reference(engine: Engine, media: dict[str, Path]) -> None:
    values = {**REQUEST, "num_inference_steps": 1, "reference": {"sound": True}}
    trace = engine(values, audio=media["voice"], reference=media["reference"]).trace
    tokens, heard = peer_length(trace), patchify_audio(trace["reference/audio_latent"])
    assert torch.equal(trace["s1/clean_audio"][:, tokens:], heard)
    assert trace["s1/positions_audio"][0, 0, tokens:].max() == pytest.approx(-0.04)
    assert trace["s2/clean_audio"].shape[1] == tokens


@pytest.mark.parametrize(
    ("first", "begin", "length"),
    [(0, 0, 2000), (6, 250, 2000), (24, 500, 2000), (60, 500, 2000), (90, 500, 2000)],
    ids=["the beginning", "further on", "across its end", "at its end", "behind its end"],
)
def test_the_part_beside_a_window(first: int, begin: int, length: int) -> None:
    """Of 2.5 s at 1 kHz beside windows of 2 s: always as long as the window, without silence."""
    track = Track(torch.arange(2500.0)[None], 1000)
    part = reference_part(track, first, 48, Fraction(24))
    assert torch.equal(part.waveform, track.waveform[:, begin : begin + length])


def test_windows_hear_their_own_part(engine: Engine, media: dict[str, Path]) -> None:
    values = {"video_size": {"width": 64, "height": 64}, "windows": {"frames": 25, "overlap": 1}}
    values |= {"num_frames": 41, "match_audio_length": False, "reference": {"sound": True}}
    names = "reference/audio_latent", "reference/window1/audio_latent"
    first, second = (engine(values, audio=media["voice"], reference=media["long"]).trace[name] for name in names)
    assert first.shape == second.shape and not torch.equal(first, second)
    first, second = (engine(values, audio=media["voice"], reference=media["reference"]).trace[name] for name in names)
    assert first.shape == second.shape and clip_track(media["reference"]).seconds < Fraction(41, 24)


def test_how_it_is_used_needs_a_reference(tiny: TinyFiles, media: dict[str, Path], tmp_path: Path) -> None:
    files = files_of(tiny, tmp_path / "out.mp4", audio=media["voice"])
    with pytest.raises(InputError, match=r"^reference: says how .* none is given; .* a sound with --reference\.$"):
        prepare(files, parse({**BASE, **REQUEST, "reference": {"strength": 0.5}}))


def test_words_for_the_sound_of_a_reference(tiny: TinyFiles, media: dict[str, Path], tmp_path: Path) -> None:
    for value, reference, sentence in (
        (
            {"sound": True},
            "mute",
            r"^mute\.mp4: it has no sound; leave sound out of reference, or name another video\.",
        ),
        ({"sound": 1}, "reference", r"^reference: sound is 1; give true or false\."),
        ({"identity": 3}, "reference", r"^reference: identity leads to the voice of the reference; set sound to true"),
        ({"sound": True, "identity": -1}, "reference", r"^reference: identity is -1; give a number from 0 to 20\."),
    ):
        files = files_of(tiny, tmp_path / "out.mp4", audio=media["voice"], reference=media[reference])
        with pytest.raises(InputError, match=sentence):
            prepare(files, parse({**BASE, **REQUEST, "reference": value}))


def test_a_sound_of_which_there_is_no_spectrogram_is_told_before_a_model_is_loaded(
    tiny: TinyFiles, media: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given, "clip_track", lambda path: Track(torch.zeros(1, 512), 16_000))
    files = files_of(tiny, tmp_path / "out.mp4", audio=media["voice"], reference=media["reference"])
    with pytest.raises(InputError, match=r"^reference\.mp4: 0\.032 s of sound are too short for an example"):
        prepare(files, parse({**BASE, **REQUEST, "reference": {"sound": True}}))
