"""What pulls lips off the sound, each left out on purpose: the size of the error that docs/lip-sync.md tells.

The first step of a golden file of LTX-2.5 is sampled by the engine from the tiny files themselves. As it is, the
engine makes the golden prediction; with one rule left out, it makes the error in the page's table. A page with another
number fails, and so does an engine in which leaving a rule out changes nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion import denoiser, passes
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, Guide, Stream
from a2v.ltx.diffusion.encode import encode_image
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.modulation import Modulations, modulation
from a2v.ltx.diffusion.sample import sample
from a2v.ltx.diffusion.samplers import Hooks
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.grid import audio_length
from a2v.ltx.latents import Noise
from a2v.ltx.media.images import compress, fit, load_image
from a2v.ltx.prompt import text
from a2v.ltx.prompt.gemma import load_gemma
from a2v.ltx.prompt.text import encode_text
from a2v.ltx.weights import lora
from a2v.ltx.weights.checkpoint import load_checkpoint

from .goldens import Golden25, relative

PAGE = Path(__file__).resolve().parents[2] / "docs" / "lip-sync.md"
NAME = "dev_endpoint_defaults"


class FirstStep:
    """The first step of a golden file, from its parameters and the tiny files, in float32.

    The golden's own mel spectrogram goes in, because a float32 spectrogram differs by the processor.
    """

    def __init__(self, oracle: Path, folder: Path) -> None:
        self.golden = Golden25(oracle, NAME, folder)
        self.info, files = self.golden.info, self.golden.files(folder / "out.mp4")
        self.files = files
        self.checkpoint = load_checkpoint(
            files.checkpoint, video_vae=files.video_vae, audio_vae=files.audio_vae, text_encoder=files.text_encoder
        )
        self.model = self.checkpoint.transformer(torch.float32)
        strengths = ((lora.load_lora(files.distill_lora), self.info["distilled1"]),)
        lora.Merger(self.model, self.checkpoint.transformer_weight).set(strengths)
        self.gemma = load_gemma(files.text_encoder, torch.float32)
        self.connectors = self.checkpoint.connectors(torch.float32)
        self.vae = self.checkpoint.video_encoder(torch.float32)

    def x0(self, crf: int | None = None, **guidance: float) -> torch.Tensor:
        info, get = self.info, self.golden.file.get_tensor
        width, height, fps = info["width"] // 2, info["height"] // 2, Fraction(24)
        guides = []
        for path, frame, strength in (
            (self.files.image, 0, info["first"]),
            (self.files.end_image, info["frames"] - 1, info["last"]),
        ):
            pixels = fit(compress(load_image(path), self.checkpoint.crf if crf is None else crf), width, height)
            guides.append(Guide(encode_image(self.vae, pixels), frame, strength))
        texts = [encode_text(self.gemma, self.connectors, info[key]) for key in ("prompt", "negative_prompt")]
        sound = get("audio/latent")[:, :, : audio_length(info["frames"], fps)]
        scales = {name: info[name] for name in ("cfg", "stg", "rescale", "modality")} | guidance
        traced: dict[str, torch.Tensor] = {}
        sample(
            self.model,
            torch.zeros_like(get("up/in")),
            Conditions(texts[0], AudioCondition(sound, info["frames"], fps), texts[1], tuple(guides)),
            Steering(get("s1/sigmas")[:2], Guidance(**scales, stg_blocks=tuple(info["stg_blocks"]))),
            Noise(info["seed"]),
            hooks=Hooks(trace=traced.__setitem__),
        )
        return traced["step0/x0_video"]


@pytest.fixture(scope="module")
def step(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> FirstStep:
    return FirstStep(oracle, tmp_path_factory.mktemp("step"))


@pytest.fixture(scope="module")
def exact(step: FirstStep) -> torch.Tensor:
    return step.x0()


def test_with_every_rule_it_is_the_golden_prediction(step: FirstStep, exact: torch.Tensor) -> None:
    assert relative(exact, step.golden.file.get_tensor("s1/step0/x0_video")) < 5e-6


# Each of these leaves one rule out.


def noisy_sound(step: FirstStep, patch: pytest.MonkeyPatch) -> torch.Tensor:
    class Heard(denoiser.GuidedDenoiser):
        def __init__(self, model: Any, video: Stream, audio: Stream, *rest: Any) -> None:
            super().__init__(model, video, replace(audio, mask=torch.ones_like(audio.mask)), *rest)

    patch.setattr("a2v.ltx.diffusion.sample.GuidedDenoiser", Heard)
    return step.x0()


def own_gates(step: FirstStep, patch: pytest.MonkeyPatch) -> torch.Tensor:
    def swapped(model: Any, video: Any, audio: Any, sigma: Any, heard: Any, dtype: Any) -> Modulations:
        right = modulation(model, video, audio, sigma, heard, dtype)
        wrong = modulation(model, video, audio, heard, sigma, dtype)
        return Modulations(replace(right.video, gate=wrong.video.gate), replace(right.audio, gate=wrong.audio.gate))

    patch.setattr(denoiser, "modulation", swapped)
    return step.x0()


def no_vector(step: FirstStep, patch: pytest.MonkeyPatch) -> torch.Tensor:
    patch.setitem(step.model._parameters, "keyframes_abs_pos_embedding", None)
    return step.x0()


def no_beginning(step: FirstStep, patch: pytest.MonkeyPatch) -> torch.Tensor:
    patch.setattr(text, "tokenize", lambda gemma, words: gemma.tokenizer(words.strip()).input_ids)
    return step.x0()


def old_compression(step: FirstStep, patch: pytest.MonkeyPatch) -> torch.Tensor:
    return step.x0(crf=33)


def no_modality(step: FirstStep, patch: pytest.MonkeyPatch) -> torch.Tensor:
    return step.x0(modality=1.0)


def perturbed_sound(step: FirstStep, patch: pytest.MonkeyPatch) -> torch.Tensor:
    class Perturbed(passes.Pass):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            object.__setattr__(self, "perturbed_audio", self.perturbed)

    patch.setattr(denoiser, "Pass", Perturbed)
    return step.x0()


RULES: dict[str, Callable[[FirstStep, pytest.MonkeyPatch], torch.Tensor]] = {
    "The sound is at a noise level of its own": noisy_sound,
    "The gates between the streams": own_gates,
    "Modality guidance": no_modality,
    "The keyframe vector": no_vector,
    "The beginning token": no_beginning,
    "The compression of images": old_compression,
    "STG leaves the sound alone": perturbed_sound,
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_left_out(step: FirstStep, exact: torch.Tensor, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    error = relative(RULES[rule](step, monkeypatch), exact)
    told = re.search(rf"^\| {re.escape(rule)} \|.*\| ([\d.]+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert told, f"{PAGE.name} has no row {rule!r}; measured: {error:.2g}"
    assert math.isclose(float(told[1]), error, rel_tol=0.1), f"measured: {error:.2g}"
    assert error > 1e-3


def test_the_page_names_every_rule() -> None:
    rows = re.findall(r"^\| ([^|]+) \|[^|]*\| [\d.]+ \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert [row.strip() for row in rows] == list(RULES)
