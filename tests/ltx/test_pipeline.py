"""The whole pipeline on weights that the tests make, against ltx-pipelines 1.0.0 run as its version 1.2 behaves.

`reference` shares no code with `ltx`: text, sound, pictures, noise, schedules, guidance, transformer, upscaler and
decoder are the peer's. Where 1.0.0 differs from 1.2 (model.md §4) it is changed on the spot, each change a small class
or function below. The second half says what needs no peer: seeds, neutral settings, interruption.
"""

from __future__ import annotations

import json
import wave
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from a2v.ltx import pipeline, sampling
from a2v.ltx.diffusion.conditioning import AudioCondition, Guide, TextContext, audio_stream
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.encoding import Prompts
from a2v.ltx.errors import InputError
from a2v.ltx.grid import CHANNELS, audio_length
from a2v.ltx.job import Compute, Files
from a2v.ltx.latents import Noise, patchify_video
from a2v.ltx.request import parse
from a2v.ltx.trace import Recorder
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.weights.lora import Merger, load_lora
from a2v.tests.ltx import stage
from a2v.tests.ltx.goldens import relative
from a2v.tests.ltx.loaded import loaded_once
from a2v.tests.tiny import TinyFiles, write_tiny
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration

LIMIT = 1e-4
TIGHT = 3e-5  # what holds with a margin
CPU = torch.device("cpu")
OTHER = {
    "seed": 5, "layers": 6, "heads": 2, "head_dim": 48, "connector_layers": 1, "vae_width": 8, "gemma_layers": 2,
    "gemma_width": 64,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    with loaded_once():
        yield


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """Other widths and depths in every part."""
    return write_tiny(tmp_path_factory.mktemp("other"), **OTHER)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stereo.wav (2 s), mono.wav (0.4 s, 22.05 kHz), first.png (wide) and last.png (tall, odd sides)."""
    folder = tmp_path_factory.mktemp("media")
    noise = np.random.default_rng(3)
    for name, seconds, rate, channels in (("stereo", 2, 48000, 2), ("mono", 0.4, 22050, 1)):
        time = np.arange(round(seconds * rate)) / rate
        rows = [np.sin(2 * np.pi * (150 + 70 * c + 60 * time) * time) for c in range(channels)]
        samples = 0.4 * np.stack(rows, axis=1) + 0.02 * noise.standard_normal((time.size, channels))
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes((samples * 32767).astype("<i2").tobytes())
    for name, (width, height) in (("first", (210, 120)), ("last", (121, 187))):
        coarse = noise.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


def job(files: TinyFiles, media: Path, output: Path, request: dict[str, Any], **more: Any) -> Files:
    """The files of a run; an image goes in where the request names its strength."""
    return Files(
        checkpoint=files.checkpoint,
        text_encoder=files.gemma,
        audio=media / more.pop("audio", "stereo.wav"),
        output=output,
        upscaler=files.upscaler,
        distill_lora=files.distilled_lora,
        camera_lora=files.camera_lora if "camera_lora_scale" in request else None,
        image=media / "first.png" if "image_strength" in request else None,
        end_image=media / "last.png" if "end_image_strength" in request else None,
        **more,
    )


def run(
    files: TinyFiles,
    media: Path,
    output: Path,
    request: dict[str, Any],
    stg_blocks: tuple[int, ...] = (),
    quick: bool = False,
    **more: Any,
) -> dict[str, Tensor]:
    """The pipeline under test, in float32: its trace. quick: without Gemma, the prompts' contexts are random ones."""
    recorder = Recorder()
    values = {"prompt": "a woman speaks", "match_audio_length": False, **request}
    named, prompts = job(files, media, output, request, **more), Prompts("", text(1), text(2)) if quick else None
    pipeline.run(named, parse(values), Compute(torch.float32), stg_blocks=stg_blocks, prompts=prompts, trace=recorder)
    return recorder.tensors


# The peer, changed to version 1.2 where 1.0.0 differs.


@dataclass(frozen=True)
class Peer:
    """What is used of ltx-core and ltx-pipelines."""

    ledger: Any
    helpers: Any
    media: Any
    samplers: Any
    components: Any
    arguments: Any
    conditioning: Any
    guiders: Any
    schedulers: Any
    steps: Any
    shapes: Any
    extractor: Any
    upsampler: Any
    video_vae: Any
    audio_vae: Any


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    pytest.importorskip("torchaudio", reason="the peer's audio front end needs it")
    names = {
        "ledger": "ltx_pipelines.utils.model_ledger",
        "helpers": "ltx_pipelines.utils.helpers",
        "media": "ltx_pipelines.utils.media_io",
        "samplers": "ltx_pipelines.utils.samplers",
        "components": "ltx_pipelines.utils.types",
        "arguments": "ltx_core.model.transformer.transformer_args",
        "conditioning": "ltx_core.conditioning",
        "guiders": "ltx_core.components.guiders",
        "schedulers": "ltx_core.components.schedulers",
        "steps": "ltx_core.components.diffusion_steps",
        "shapes": "ltx_core.types",
        "extractor": "ltx_core.text_encoders.gemma.feature_extractor",
        "upsampler": "ltx_core.model.upsampler",
        "video_vae": "ltx_core.model.video_vae",
        "audio_vae": "ltx_core.model.audio_vae",
    }
    peer = Peer(**{field: pytest.importorskip(name) for field, name in names.items()})
    preprocessor = peer.arguments.MultiModalTransformerArgsPreprocessor
    as_published = preprocessor.prepare, peer.helpers.modality_from_latent_state

    def prepare(self: Any, modality: Any, cross_modality: Any = None) -> Any:
        """1.2: the AV scale and shift take each token's own timestep; the gate keeps the other stream's sigma."""
        arguments = as_published[0](self, modality, cross_modality)
        own, _ = self._prepare_cross_attention_timestep(
            timestep=modality.timesteps,
            timestep_scale_multiplier=self.simple_preprocessor.timestep_scale_multiplier,
            batch_size=1,
            hidden_dtype=modality.latent.dtype,
        )
        return replace(arguments, cross_scale_shift_timestep=own)

    def modality(state: Any, context: Tensor, sigma: Tensor, enabled: bool = True) -> Any:
        """1.2: a frozen stream has sigma 0."""
        made = as_published[1](state, context, sigma, enabled)
        return made if state.denoise_mask.any() else replace(made, sigma=torch.zeros_like(sigma))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocessor, "prepare", prepare)
        patch.setattr(peer.helpers, "modality_from_latent_state", modality)
        yield peer


class Noiser:
    """1.2: noise over the latent first, then the clean tokens by the mask. Keeps what it returns."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.states: list[Tensor] = []

    def __call__(self, state: Any, noise_scale: Tensor | float = 1.0) -> Any:
        noise = torch.randn(state.latent.shape, generator=self.generator)
        noised = torch.lerp(state.latent, noise, float(noise_scale))
        noised = torch.lerp(state.clean_latent, noised, state.denoise_mask.expand_as(noised))
        self.states.append(noised)
        return replace(state, latent=noised)


def image_items(peer: Peer, images: list[tuple[Path, int, float]], size: tuple[int, int], encoder: Any) -> list[Any]:
    """1.2: an image changes the clean tokens and the mask alone, and a keyframe lasts one frame."""

    class First(peer.conditioning.VideoConditionByLatentIndex):
        def apply_to(self, latent_state: Any, latent_tools: Any) -> Any:
            return replace(super().apply_to(latent_state, latent_tools), latent=latent_state.latent)

    class Keyframe(peer.conditioning.VideoConditionByKeyframeIndex):
        def apply_to(self, latent_state: Any, latent_tools: Any) -> Any:
            before = latent_state.latent.shape[1]
            state = super().apply_to(latent_state, latent_tools)
            state.latent[:, before:] = 0
            state.positions[:, 0, before:, 1] = (self.frame_idx + 1) / latent_tools.fps
            return state

    items = []
    for path, frame, strength in images:
        pixels = peer.media.load_image_conditioning(str(path), *size, dtype=torch.float32, device=CPU, crf=33)
        latent = encoder(pixels)
        items.append(Keyframe(latent, frame, strength) if frame else First(latent, strength, 0))
    return items


def sizes_of(files: TinyFiles) -> tuple[int, int, int, int]:
    """Gemma's width and its number of hidden states; width of the video and the audio stream."""
    weights = load_file(files.checkpoint)
    text = json.loads((files.gemma / "config.json").read_text(encoding="utf-8"))["text_config"]
    video, audio = (weights[f"text_embedding_projection.{s}_aggregate_embed.bias"].numel() for s in ("video", "audio"))
    return text["hidden_size"], text["num_hidden_layers"] + 1, video, audio


def contexts(peer: Peer, ledger: Any, files: TinyFiles, prompts: tuple[str, ...]) -> list[Any]:
    """transformers' own Gemma on 1024 padded tokens, then the peer's projections and connectors."""
    tokenizer = AutoTokenizer.from_pretrained(files.gemma)
    gemma = Gemma3ForConditionalGeneration.from_pretrained(files.gemma, dtype=torch.float32).eval()
    builder = ledger.embeddings_processor_builder
    processor = builder.meta_model(builder.model_config(), ())
    width, states, video, audio = sizes_of(files)
    # The peer makes these for the published Gemma's size whatever the file says.
    processor.feature_extractor = peer.extractor.FeatureExtractorV2(
        nn.Linear(width * states, video), embedding_dim=width, audio_aggregate_embed=nn.Linear(width * states, audio)
    )
    weights = builder.load_sd([builder.model_path], registry=builder.registry, device=CPU, sd_ops=builder.model_sd_ops)
    processor.load_state_dict({k: v.float() for k, v in weights.sd.items()}, strict=True, assign=True)
    results = []
    for prompt in prompts:
        inputs = tokenizer(
            prompt.strip(), padding="max_length", max_length=1024, truncation=True, padding_side="left",
            return_tensors="pt",
        )  # fmt: skip
        output = gemma.model(**inputs, output_hidden_states=True)
        results.append(processor.process_hidden_states(output.hidden_states, inputs.attention_mask))
    return results


def with_loras(ledger: Any, loras: list[tuple[Path, float]]) -> Any:
    """The peer's x0 model with W + sum of scale·(B·A), all in float32: its own merging rounds the change."""
    model = ledger.transformer()
    parameters = dict(model.velocity_model.named_parameters())
    for path, scale in loras:
        pairs = load_file(path)
        downs = [key for key in pairs if key.endswith(".lora_A.weight")]
        assert len(downs) * 2 == len(pairs)
        for key in downs:
            name = key.removeprefix("diffusion_model.").replace(".lora_A", "")
            up = pairs[key.replace("lora_A", "lora_B")].float()
            parameters[name].data += scale * (up @ pairs[key].float())
    return model


@torch.inference_mode()
def reference(
    peer: Peer, files: TinyFiles, media: Path, request: dict[str, Any], stg_blocks: tuple[int, ...], audio: str
) -> dict[str, Tensor]:
    """The official two stages (or one) with the request's parameters, under the trace's names."""
    r = request
    frames, fps, seed = r["num_frames"], r["exact_fps"], r["seed"]
    width, height = r["video_size"]["width"], r["video_size"]["height"]
    two_stages = r.get("use_multiscale", True)
    ledger = peer.ledger.ModelLedger(torch.float32, CPU, str(files.checkpoint), None, str(files.upscaler))
    prompts = (r["prompt"], r["negative_prompt"])
    positive, negative = contexts(peer, ledger, files, prompts)

    sound = peer.media.decode_audio_from_file(str(media / audio), CPU, 0.0, frames / fps)
    samples = round(Fraction(frames) / Fraction(fps).limit_denominator(1001) * sound.sampling_rate)
    waveform = nn.functional.pad(sound.waveform, (0, samples - sound.waveform.shape[2]))
    waveform = waveform.expand(1, 2, samples)  # mono is doubled, where the peer fails
    heard = peer.audio_vae.encode_audio(replace(sound, waveform=waveform), ledger.audio_encoder())
    length = peer.shapes.AudioLatentShape.from_duration(batch=1, duration=frames / fps, channels=8, mel_bins=16).frames
    whole, heard = heard, heard[:, :, :length]

    images = []
    for key, name, frame in (("image_strength", "first.png", 0), ("end_image_strength", "last.png", frames - 1)):
        if key in r:
            images.append((media / name, frame, r[key]))
    noiser, stepper, encoder = Noiser(seed), peer.steps.EulerDiffusionStep(), ledger.video_encoder()
    loop = peer.samplers.euler_denoising_loop
    if gamma := r.get("gradient_estimation_gamma"):
        loop = partial(peer.samplers.gradient_estimating_euler_denoising_loop, ge_gamma=gamma)
    schedulers = {"ltx2": "LTX2", "beta": "Beta", "linear_quadratic": "LinearQuadratic"}
    scheduler = getattr(peer.schedulers, schedulers[r["scheduler"]] + "Scheduler")()
    camera = [(files.camera_lora, r["camera_lora_scale"])] if "camera_lora_scale" in r else []

    def one_stage(size: tuple[int, int], sigmas: Tensor, function: Any, **start: Any) -> Tensor:
        return peer.helpers.denoise_video_only(
            output_shape=peer.shapes.VideoPixelShape(batch=1, frames=frames, width=size[1], height=size[0], fps=fps),
            conditionings=image_items(peer, images, size, encoder),
            noiser=noiser,
            sigmas=sigmas,
            stepper=stepper,
            denoising_loop_fn=lambda sigmas, video, audio, stepper: loop(sigmas, video, audio, stepper, function),
            components=peer.components.PipelineComponents(torch.float32, CPU),
            dtype=torch.float32,
            device=CPU,
            initial_audio_latent=heard,
            **start,
        ).latent

    guided = peer.helpers.multi_modal_guider_denoising_func(
        video_guider=peer.guiders.MultiModalGuider(
            params=peer.guiders.MultiModalGuiderParams(
                cfg_scale=r["video_cfg_scale"],
                stg_scale=r["video_stg_scale"],
                stg_blocks=list(stg_blocks),
                rescale_scale=r["video_rescaling_scale"],
                modality_scale=r["video_modality_scale"],
            ),
            negative_context=negative.video_encoding,
        ),
        audio_guider=peer.guiders.MultiModalGuider(params=peer.guiders.MultiModalGuiderParams()),
        v_context=positive.video_encoding,
        a_context=positive.audio_encoding,
        transformer=with_loras(ledger, [*camera, (files.distilled_lora, r["distill_lora_first_pass_scale"])]),
    )
    size = (height // 2, width // 2) if two_stages else (height, width)
    sigmas = scheduler.execute(steps=r["num_inference_steps"])
    result = {"audio/latent": whole, "s1/sigmas": sigmas}
    latent = one_stage(size, sigmas, guided)
    if two_stages:
        result["up/in"] = latent
        latent = peer.upsampler.upsample_video(latent, encoder, ledger.spatial_upsampler())
        result["up/out"] = latent
        plain = peer.helpers.simple_denoising_func(
            video_context=positive.video_encoding,
            audio_context=positive.audio_encoding,
            transformer=with_loras(ledger, [*camera, (files.distilled_lora, r["distill_lora_second_pass_scale"])]),
        )
        refine = torch.tensor([0.909375, 0.725, 0.421875, 0.0])
        latent = one_stage((height, width), refine, plain, noise_scale=refine[0], initial_video_latent=latent)
    for number, state in enumerate(noiser.states):
        result[f"s{number // 2 + 1}/step0/in_{('video', 'audio')[number % 2]}"] = state
    result["final/video_latent"] = latent
    result["final/frames_u8"] = torch.cat(list(peer.video_vae.decode_video(latent, ledger.video_decoder())))
    return result


def case(width: int, height: int, frames: int, fps: float, steps: int, **more: Any) -> dict[str, Any]:
    return {
        "prompt": "A man talks to the camera in a room",
        "negative_prompt": "text, static",
        "seed": 1,
        "video_size": {"width": width, "height": height},
        "num_frames": frames,
        "fps": fps,
        "num_inference_steps": steps,
        "video_cfg_scale": 3.0,
        "video_stg_scale": 1.0,
        "video_rescaling_scale": 0.7,
        "video_modality_scale": 3.0,
        "scheduler": "ltx2",
        "distill_lora_first_pass_scale": 0.0,
        "distill_lora_second_pass_scale": 1.0,
        # Not in the official pipeline:
        **dict.fromkeys(("use_restart_sampling", "enable_prompt_expansion", "preprocess_audio"), False),
        **more,
    }


# The request, whether on the other checkpoint, the perturbed blocks, the sound.
CASES = {
    "portrait": (
        case(64, 128, 17, 23.976, 3, seed=123456789, image_strength=0.8, end_image_strength=0.3, scheduler="beta",
             distill_lora_first_pass_scale=0.2, distill_lora_second_pass_scale=0.5),
        False, (2,), "stereo.wav",
    ),
    "landscape": (
        case(192, 64, 9, 30, 4, seed=0, image_strength=0.3, video_cfg_scale=5.5, video_stg_scale=0.4,
             video_modality_scale=1.7, video_rescaling_scale=1.0, camera_lora_scale=0.6, scheduler="linear_quadratic"),
        False, (0, 3), "stereo.wav",
    ),
    "other widths": (
        case(128, 128, 25, 25, 2, seed=2**31 - 1, end_image_strength=0.8, image_strength=1, scheduler="beta",
             video_rescaling_scale=0.0, distill_lora_first_pass_scale=0.35),
        True, (4,), "stereo.wav",
    ),
    "no guidance, gradient estimation": (
        case(128, 64, 17, 29.97, 4, seed=7, video_cfg_scale=1.0, video_stg_scale=0.0, video_modality_scale=1.0,
             gradient_estimation_gamma=2.0, end_image_strength=1),
        True, (1,), "stereo.wav",
    ),
    "one stage, short mono sound": (
        case(96, 160, 25, 24, 3, seed=99, use_multiscale=False, video_stg_scale=0.0, gradient_estimation_gamma=1.4,
             image_strength=0.8, end_image_strength=0.8, scheduler="linear_quadratic"),
        False, (2,), "mono.wav",
    ),
    "one frame, one step": (
        case(128, 64, 1, 10, 1, seed=3, video_cfg_scale=1.0, image_strength=0.5, scheduler="linear_quadratic"),
        True, (5,), "stereo.wav",
    ),
}  # fmt: skip
OFTEN = ("landscape", "no guidance, gradient estimation", "one stage, short mono sound", "one frame, one step")
RATES = {23.976: 24000 / 1001, 29.97: 30000 / 1001}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.soak] * (name not in OFTEN)) for name in CASES])
def test_equals_the_official_pipeline(
    name: str, peer: Peer, tiny: TinyFiles, other: TinyFiles, media: Path, tmp_path: Path
) -> None:
    request, on_other, stg_blocks, audio = CASES[name]
    files = other if on_other else tiny
    trace = run(files, media, tmp_path / "out.mp4", request, stg_blocks, audio=audio)
    exact = {**request, "exact_fps": RATES.get(request["fps"], float(request["fps"]))}
    expected = reference(peer, files, media, exact, stg_blocks, audio)
    assert trace["s1/sigmas"].shape == expected["s1/sigmas"].shape
    errors = {key: relative(trace[key], tensor) for key, tensor in expected.items() if key != "final/frames_u8"}
    print(name, {key: f"{error:.1e}" for key, error in errors.items()})
    assert max(errors.values()) < LIMIT, errors
    assert max(errors.values()) < TIGHT, errors
    frames, wanted = trace["final/frames_u8"], expected["final/frames_u8"]
    assert frames.shape == wanted.shape == (request["num_frames"], *frames.shape[1:])
    apart = (frames.int() - wanted.int()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 0.001


# What needs no peer. Contexts are short random ones: nothing here depends on the text.


@pytest.fixture(scope="module")
def model(tiny: TinyFiles) -> nn.Module:
    return load_checkpoint(tiny.checkpoint).transformer(torch.float32, "cpu")


def text(seed: int) -> TextContext:
    draw = torch.Generator().manual_seed(seed)
    return TextContext(torch.randn(1, 16, 64, generator=draw), torch.randn(1, 16, 32, generator=draw))


def hearing(frames: int = 9) -> AudioCondition:
    shape = (1, 8, audio_length(frames, Fraction(24)), 16)
    return AudioCondition(torch.randn(shape, generator=torch.Generator().manual_seed(8)), frames, Fraction(24))


def sample(model: nn.Module, **more: Any) -> tuple[Tensor, AudioCondition, Noise]:
    settings: dict[str, Any] = {
        "latent": torch.zeros(1, CHANNELS, 2, 2, 3),
        "sigmas": torch.tensor([1.0, 0.6, 0.0]),
        "positive": text(1),
        "negative": text(2),
        "audio": hearing(),
        "noise": Noise(4),
    }
    return stage.sample(model, settings, **more)


@pytest.mark.parametrize(
    ("guidance", "passes"),
    [
        (Guidance(), 1),
        (Guidance(rescale=0.7), 1),
        (Guidance(cfg=3), 2),
        (Guidance(stg=1), 2),
        (Guidance(modality=3), 2),
        (Guidance(cfg=3, modality=3), 3),
        (Guidance(cfg=0, stg=1, modality=0), 4),
    ],
)
def test_neutral_scales_run_no_pass(model: nn.Module, guidance: Guidance, passes: int) -> None:
    calls = []
    hook = model.transformer_blocks[-1].register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        sample(model, guidance=guidance)
    finally:
        hook.remove()
    assert sum(calls) == 2 * passes == 2 * guidance.passes


def test_neutral_guidance_is_the_plain_prediction(model: nn.Module) -> None:
    plain, *_ = sample(model, negative=None)
    assert torch.equal(plain, sample(model, guidance=Guidance(1, 0, 0.5, 1), negative=None)[0])
    assert relative(sample(model, guidance=Guidance(cfg=2))[0], plain) > 1e-3


def test_noise_is_drawn_in_the_official_order(model: nn.Module) -> None:
    """Video tokens (grid, then keyframes), audio tokens, and the same again in the second stage, from one generator."""
    seen = Recorder()
    keyframe = Guide(torch.randn(1, CHANNELS, 1, 2, 3), frame=8, strength=0.25)
    latent, _, noise = sample(model, guides=(keyframe,), trace=seen)
    first_video = seen.tensors["step0/in_video"]
    start = torch.randn(1, CHANNELS, 2, 4, 6)
    sample(model, latent=start, noise=noise, sigmas=torch.tensor([0.9, 0.0]), trace=seen)
    generator = torch.Generator().manual_seed(4)
    drawn = [torch.randn(shape, generator=generator) for shape in ((1, 18, 128), (1, 9, 128), (1, 48, 128))]
    assert torch.equal(first_video[:, :12], drawn[0][:, :12])
    clean = patchify_video(keyframe.latent)
    assert relative(first_video[:, 12:], 0.75 * drawn[0][:, 12:] + 0.25 * clean) < 1e-6
    mixed = 0.9 * drawn[2] + 0.1 * patchify_video(start)
    assert relative(seen.tensors["step0/in_video"], mixed) < 1e-6
    assert latent.shape == (1, CHANNELS, 2, 2, 3), "the keyframe's tokens are dropped"


def test_frozen_audio_stays_to_the_bit(model: nn.Module) -> None:
    seen = Recorder()
    sample(model, guidance=Guidance(3, 1, 0.7, 3), trace=seen)
    tokens = audio_stream(hearing()).latent
    for name in ("step0/in_audio", "step0/out_audio", "step1/x0_audio", "step1/out_audio"):
        assert torch.equal(seen.tensors[name], tokens)
    assert seen.tensors["step0/call3/audio_sigma"] == 0 and not seen.tensors["step1/call0/audio_timesteps"].any()


@pytest.mark.parametrize("strength", (0.25, 1.0))
def test_an_image_holds_its_frame(model: nn.Module, strength: float) -> None:
    image = torch.randn(1, CHANNELS, 1, 2, 3, generator=torch.Generator().manual_seed(6))
    apart = [
        (sample(model, guides=(Guide(image, 0, s),) if s else ())[0][:, :, :1] - image).norm() for s in (0, strength)
    ]
    assert (apart[1] == 0) if strength == 1 else (apart[1] < apart[0] * 0.8)


@pytest.mark.parametrize("blocks", (1, 3, 6, 7))
def test_interrupted_within_one_block(model: nn.Module, blocks: int) -> None:
    """What on_block raises comes through before another block runs."""
    begun, ran = 0, []

    def on_block() -> None:
        nonlocal begun
        begun += 1
        if begun > blocks:
            raise KeyboardInterrupt

    hooks = [block.register_forward_hook(lambda *_: ran.append(1)) for block in model.transformer_blocks]
    try:
        with pytest.raises(KeyboardInterrupt):
            sample(model, guidance=Guidance(3, 1, 0.7, 3), on_block=on_block)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(ran) == blocks


def test_steps_are_told(model: nn.Module) -> None:
    told = []
    latent, *_ = sample(model, on_step=lambda done, total, x0: told.append((done, total, x0.video.shape[1])))
    assert told == [(1, 2, 12), (2, 2, 12)]
    assert latent.dtype == torch.float32


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"negative": None, "guidance": Guidance(cfg=3)}, "negative prompt"),
        ({"guidance": Guidance(stg=1, stg_blocks=(4,))}, "blocks 0 to 3"),
        ({"latent": torch.zeros(1, 16, 2, 2, 3)}, "128"),
        ({"latent": torch.zeros(1, CHANNELS, 2, 3)}, "128"),
        ({"guides": (Guide(torch.zeros(1, CHANNELS, 1, 4, 6), 0, 1),)}, "192×128"),
        ({"guides": (Guide(torch.zeros(1, CHANNELS, 1, 2, 3), 9, 1),)}, "frame 9"),
        ({"sigmas": torch.tensor([1.0])}, "sigmas"),
    ],
)
def test_what_does_not_fit_is_said(model: nn.Module, more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        sample(model, **more)


quickly = partial(run, quick=True)
SMALL = {
    "seed": 21, "use_multiscale": False, "video_size": {"width": 64, "height": 96}, "num_frames": 9,
    "num_inference_steps": 2,
}  # fmt: skip


def test_one_seed_drives_everything(tiny: TinyFiles, media: Path, tmp_path: Path) -> None:
    """Two stages: the same seed gives the same tensors and the same file, bit for bit; another one does not."""
    request = {**SMALL, "use_multiscale": True, "video_size": {"width": 128, "height": 64}, "end_image_strength": 0.5}
    first, again = (quickly(tiny, media, tmp_path / f"{name}.mp4", request) for name in ("a", "b"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    different = quickly(tiny, media, tmp_path / "c.mp4", {**request, "seed": 22})
    assert (different["final/frames_u8"] != first["final/frames_u8"]).float().mean() > 0.5


def test_strength_zero_is_no_image(tiny: TinyFiles, media: Path, tmp_path: Path) -> None:
    without = quickly(tiny, media, tmp_path / "a.mp4", SMALL)
    zero = quickly(tiny, media, tmp_path / "b.mp4", {**SMALL, "image_strength": 0, "end_image_strength": 0})
    assert without.keys() == zero.keys()
    assert all(torch.equal(without[name], zero[name]) for name in without)
    there = quickly(tiny, media, tmp_path / "c.mp4", {**SMALL, "image_strength": 0.5})
    assert (there["final/frames_u8"] != without["final/frames_u8"]).float().mean() > 0.1


def test_loras_add_up(tiny: TinyFiles, media: Path, tmp_path: Path) -> None:
    """--lora twice and --camera-lora are one sum, in both stages."""
    request = {**SMALL, "use_multiscale": True, "video_size": {"width": 64, "height": 64}}
    camera = tiny.camera_lora
    once = quickly(tiny, media, tmp_path / "a.mp4", {**request, "camera_lora_scale": 0.9})
    split = quickly(
        tiny, media, tmp_path / "b.mp4", {**request, "camera_lora_scale": 0.2}, loras=((camera, 1.5), (camera, -0.8))
    )
    none = quickly(tiny, media, tmp_path / "c.mp4", request)
    for name in ("s1/step1/out_video", "s2/step2/out_video", "final/video_latent"):
        assert relative(split[name], once[name]) < 1e-5
        assert relative(none[name], once[name]) > 1e-3


def test_loras_are_undone_between_the_stages(tiny: TinyFiles) -> None:
    checkpoint = load_checkpoint(tiny.checkpoint)
    model = checkpoint.transformer(torch.float32, "cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merger = Merger(model, checkpoint.transformer_weight)
    merger.set([(load_lora(tiny.distilled_lora), 0.2), (load_lora(tiny.camera_lora), 1.0)])
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    merger.set([])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_stage_that_ends_early_frees_the_model(
    tiny: TinyFiles, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page-locked memory would otherwise stay with a process that goes on."""
    built: list[sampling._Transformer] = []
    begin = sampling._Transformer.begin
    monkeypatch.setattr(sampling._Transformer, "begin", lambda self, *given: built.append(self) or begin(self, *given))
    monkeypatch.setattr(sampling, "free_pinned", lambda: freed.append(True))
    freed: list[bool] = []

    def stop(phase: str, done: int, total: int) -> None:
        if phase.startswith("first stage") and done == 1:
            assert built[0].model is not None
            raise KeyboardInterrupt

    files = job(tiny, media, tmp_path / "out.mp4", {})
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(files, parse({"prompt": "", "match_audio_length": False}), Compute(torch.float32), progress=stop)
    assert built[0].model is None and freed == [True]


@pytest.mark.parametrize(("frames", "wanted"), ((1, 1), (9, 9), (10, 17)))
def test_frame_counts(tiny: TinyFiles, media: Path, tmp_path: Path, frames: int, wanted: int) -> None:
    trace = quickly(tiny, media, tmp_path / "a.mp4", {**SMALL, "num_frames": frames, "image_strength": 1.0})
    assert trace["final/frames_u8"].shape == (wanted, 96, 64, 3)
    assert trace["final/video_latent"].shape == (1, CHANNELS, (wanted - 1) // 8 + 1, 3, 2)
    assert not [name for name in trace if name.startswith(("s2/", "up/"))], "one stage"
    assert relative(trace["final/video_latent"][:, :, :1], trace["cond/0/latent"]) < 1e-6


def test_what_a_run_raises_leaves_nothing(tiny: TinyFiles, media: Path, tmp_path: Path) -> None:
    """An interruption anywhere: no file, no temporary file."""
    told: list[str] = []

    def stop_at(number: int, phase: str, done: int, total: int) -> None:
        told.append(f"{phase} {done}/{total}")
        if len(told) > number:
            raise KeyboardInterrupt

    files = job(tiny, media, tmp_path / "out.mp4", {})
    request = parse({"prompt": "", "match_audio_length": False, **SMALL})
    for number in range(0, 40, 2):
        told.clear()
        try:
            pipeline.run(files, request, Compute(torch.float32), progress=partial(stop_at, number))
        except KeyboardInterrupt:
            assert list(tmp_path.iterdir()) == []
        else:
            break
    assert number >= 4 and {each.split()[0] for each in told} >= {"encode", "sample", "decode"}
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
