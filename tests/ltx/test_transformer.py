"""The transformer's passes: version 1.2's behaviour against ltx-core and diffusers fed by hand, and the goldens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from a2v.ltx import latents, lora
from a2v.ltx.checkpoint import load_checkpoint
from a2v.ltx.conditioning import Stream
from a2v.ltx.guidance import Guidance
from a2v.ltx.pipeline import denoiser
from a2v.ltx.samplers import Latents
from a2v.ltx.text import TextContext
from a2v.ltx.transformer import modulation, rotary, separate_stg, velocity
from a2v.tests.tiny import TinyFiles
from diffusers.models.transformers.transformer_ltx2 import LTX2PerturbedAttnProcessor
from safetensors import safe_open
from torch import Tensor, nn

FPS = Fraction(24)
GRID = (2, 2, 3)
SOUND = 9
# What a run can be: the sigma, the audio frozen or as noisy as the video, a first image, STG, no attention between.
CASES = {
    "equal sigmas": {"frozen": False},
    "frozen": {},
    "first image": {"image": 0.4},
    "low sigma": {"sigma": 0.03, "image": 1.0},
    "stg": {"perturbed": (1,)},
    "stg twice": {"perturbed": (0, 1), "frozen": False},
    "stg of the audio": {"perturbed": (1,), "perturbed_audio": (0,), "frozen": False},
    "isolated": {"isolated": True, "image": 0.4},
}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Case:
    """Inputs of one pass; `ours` is what the engine makes of them."""

    def __init__(
        self,
        model,
        randn,
        sigma=0.7,
        frozen=True,
        image=0.0,
        perturbed=(),
        perturbed_audio=(),
        isolated=False,
        dtype=torch.float32,
    ):
        self.model, self.isolated, self.dtype = model, isolated, dtype
        self.perturbed, self.perturbed_audio = perturbed, perturbed_audio
        count = GRID[0] * GRID[1] * GRID[2]
        self.sigma = torch.tensor([sigma])
        self.sound = torch.zeros(1) if frozen else self.sigma
        self.levels = self.sigma.repeat(1, count)
        self.levels[:, : count // GRID[0]] *= 1 - image
        self.sound_levels = self.sound.repeat(1, SOUND)
        self.x = Latents(randn(1, count, 128).to(dtype), randn(1, SOUND, 128).to(dtype))
        config = model.config
        self.text = randn(1, 16, config.cross_attention_dim).to(dtype)
        self.heard = randn(1, 16, config.audio_cross_attention_dim).to(dtype)
        self.where = latents.video_positions(GRID, FPS), latents.audio_positions(SOUND)

    def ours(self) -> Latents:
        separate_stg(self.model)
        adaln = modulation(self.model, self.levels, self.sound_levels, self.sigma, self.sound, self.dtype)
        places = rotary(self.model, *self.where, torch.device("cpu"))
        options = {"isolated": self.isolated, "perturbed": self.perturbed, "perturbed_audio": self.perturbed_audio}
        return velocity(self.model, self.x, self.text, self.heard, places, adaln, **options)


@pytest.fixture
def model(tiny_any: TinyFiles) -> nn.Module:
    return load_checkpoint(tiny_any.checkpoint).transformer(torch.float32)


def same(off: Callable, ours: Latents, video: Tensor, audio: Tensor) -> None:
    assert off(ours.video, video) < 1e-5
    assert off(ours.audio, audio) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_equals_ltx_core(
    tiny_any: TinyFiles, model: nn.Module, peer: Callable, off: Callable, randn: Callable, case: str
) -> None:
    """1.0.0's own module. Between the streams, 1.2's scale and shift take each token's own timestep: put in by hand."""
    from ltx_core.guidance import perturbations as stg
    from ltx_core.model.transformer.modality import Modality

    gate_scale = 1 if case == "low sigma" else 1000  # a file's metadata may say either
    model.register_to_config(cross_attn_timestep_scale_multiplier=gate_scale)
    run, official = Case(model, randn, **CASES[case]), peer(tiny_any, "transformer")
    plain = case in ("equal sigmas", "isolated", "stg twice")  # where both versions agree as they are
    for preprocessor in (official.video_args_preprocessor, official.audio_args_preprocessor):
        prepare, adaln = preprocessor.prepare, preprocessor.cross_scale_shift_adaln

        def of_version_2(modality, cross_modality=None, prepare=prepare, adaln=adaln):
            levels, _ = adaln(modality.timesteps.flatten() * 1000, hidden_dtype=torch.float32)
            return dataclasses.replace(prepare(modality, cross_modality), cross_scale_shift_timestep=levels[None])

        preprocessor.av_ca_timestep_scale_multiplier = gate_scale
        if not plain:
            preprocessor.prepare = of_version_2
    kinds = [
        (stg.PerturbationType.SKIP_VIDEO_SELF_ATTN, list(run.perturbed)),
        (stg.PerturbationType.SKIP_AUDIO_SELF_ATTN, list(run.perturbed_audio)),
    ]
    if run.isolated:
        kinds += [(stg.PerturbationType.SKIP_A2V_CROSS_ATTN, None), (stg.PerturbationType.SKIP_V2A_CROSS_ATTN, None)]
    skipped = stg.BatchedPerturbationConfig([stg.PerturbationConfig([stg.Perturbation(*kind) for kind in kinds])])
    video, audio = official(
        Modality(run.x.video, run.sigma, run.levels, run.where[0], run.text),
        Modality(run.x.audio, run.sound, run.sound_levels, run.where[1], run.heard),
        skipped,
    )
    same(off, run.ours(), video, audio)


def by_diffusers(run: Case, *, gates: bool = True, audio_stg: bool = False, sound: Tensor | None = None) -> tuple:
    """diffusers' own forward. gates: each gate is fed the other stream's sigma; audio_stg: as diffusers perturbs."""
    model, handles = run.model, []
    for block in model.transformer_blocks:  # as diffusers built them
        block.attn1.set_processor(LTX2PerturbedAttnProcessor())
        block.audio_attn1.set_processor(LTX2PerturbedAttnProcessor())
    sound = run.sound if sound is None else sound
    if gates:
        for module, sigma in (
            (model.av_cross_attn_video_a2v_gate, sound),
            (model.av_cross_attn_audio_v2a_gate, run.sigma),
        ):
            level = sigma * model.config.cross_attn_timestep_scale_multiplier
            handles.append(module.register_forward_pre_hook(lambda _, args, level=level: (level, *args[1:])))
    if not audio_stg:
        stripped = {"perturbation_mask": None, "all_perturbed": False}  # plain attention's arguments
        blocks = model.transformer_blocks
        for attention in [blocks[n].audio_attn1 for n in set(run.perturbed) - set(run.perturbed_audio)] + [
            blocks[n].attn1 for n in set(run.perturbed_audio) - set(run.perturbed)
        ]:
            handles.append(
                attention.register_forward_pre_hook(
                    lambda _, args, kwargs: (args, {**kwargs, **stripped}), with_kwargs=True
                )
            )
    result = model(
        hidden_states=run.x.video,
        audio_hidden_states=run.x.audio,
        encoder_hidden_states=run.text,
        audio_encoder_hidden_states=run.heard,
        timestep=run.levels * 1000,
        audio_timestep=run.sound_levels * 1000,
        sigma=run.sigma * 1000,
        audio_sigma=sound * 1000,
        video_coords=run.where[0],
        audio_coords=run.where[1],
        isolate_modalities=run.isolated,
        spatio_temporal_guidance_blocks=sorted({*run.perturbed, *run.perturbed_audio}),
        return_dict=False,
    )
    for handle in handles:
        handle.remove()
    return result


@pytest.mark.parametrize("case", CASES)
def test_equals_diffusers_fed_by_hand(tiny_default: TinyFiles, off: Callable, randn: Callable, case: str) -> None:
    run = Case(load_checkpoint(tiny_default.checkpoint).transformer(torch.float32), randn, **CASES[case])
    same(off, run.ours(), *by_diffusers(run))


def test_each_difference_shows(tiny_default: TinyFiles, off: Callable, randn: Callable) -> None:
    """Left out one at a time, each of 1.2's three rules moves the video by far more than rounding."""
    model = load_checkpoint(tiny_default.checkpoint).transformer(torch.float32)
    run = Case(model, randn, perturbed=(1,), image=0.4)
    theirs = {
        "own sigma at the gates": by_diffusers(run, gates=False),
        "audio perturbed too": by_diffusers(run, audio_stg=True),
        "frozen audio at the video's sigma": by_diffusers(run, sound=run.sigma),
    }
    ours = run.ours()
    for name, (video, _) in theirs.items():
        assert off(ours.video, video) > 1e-3, name


def test_bfloat16(tiny_default: TinyFiles, off: Callable) -> None:
    def run(dtype: torch.dtype) -> Latents:
        generator = torch.Generator().manual_seed(4)
        model = load_checkpoint(tiny_default.checkpoint).transformer(dtype)
        randn = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
        return Case(model, randn, perturbed=(1,), image=0.4, dtype=dtype).ours()

    half, full = run(torch.bfloat16), run(torch.float32)
    assert half.video.dtype == half.audio.dtype == torch.bfloat16
    assert off(half.video, full.video) < 0.02 and off(half.audio, full.audio) < 0.02


def test_stop_before_a_block(tiny_default: TinyFiles, randn: Callable) -> None:
    model, calls = load_checkpoint(tiny_default.checkpoint).transformer(torch.float32), []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    run = Case(model, randn)
    adaln = modulation(model, run.levels, run.sound_levels, run.sigma, run.sound, torch.float32)
    with pytest.raises(KeyboardInterrupt):
        places = rotary(model, *run.where, torch.device("cpu"))
        velocity(model, run.x, run.text, run.heard, places, adaln, on_block=stop)


@pytest.mark.parametrize("name", ["ltx2", "endpoint_defaults", "linear_quadratic_ge"])
@pytest.mark.parametrize("step", ["s1/step0", "s1/step2", "s2/step1"])
def test_goldens(oracle: Path, off: Callable, name: str, step: str) -> None:
    """Every pass of a step from the tokens that enter it, LoRAs merged as that pass has them."""
    tiny = oracle / "tiny"
    checkpoint = load_checkpoint(tiny / "ltx-2.3-tiny.safetensors")
    model = checkpoint.transformer(torch.float32)
    traced: dict[str, Tensor] = {}
    with safe_open(oracle / f"{name}.safetensors", "pt") as golden:
        info, get, stage = json.loads(golden.metadata()["info"]), golden.get_tensor, step[:2]
        strengths = {"distilled": info["distilled1" if stage == "s1" else "distilled"], "camera": info["lora"]}
        loras = [
            (lora.load_lora(tiny / f"ltx-2.3-tiny-{kind}-lora.safetensors"), s) for kind, s in strengths.items() if s
        ]
        lora.Merger(model, checkpoint.transformer_weight).set(tuple(loras))
        sigma = get(f"{stage}/sigmas")[int(step[-1])]
        streams = []
        for kind in ("video", "audio"):
            x = get(f"{step}/in_{kind}")
            mask = get(f"{step}/call0/{kind}_timesteps") / sigma
            streams.append(Stream(x, x, mask, get(f"{stage}/positions_{kind}")))
        texts = [TextContext(get(f"prompt/{i}/video_enc"), get(f"prompt/{i}/audio_enc"), 1) for i in (0, 1)]
        guidance = Guidance(info["cfg"], info["stg"], info["rescale"], info["modality"], tuple(info["stg_blocks"]))
        guidance = guidance if stage == "s1" else Guidance()
        run = denoiser(model, *streams, *texts, guidance, trace=traced.__setitem__)
        run(Latents(streams[0].latent, streams[1].latent), sigma, 0)
        assert len(traced) == 6 * (4 if stage == "s1" else 1)
        for key, tensor in traced.items():
            expected = get(key.replace("step0", step))
            assert torch.equal(tensor, expected) or off(tensor, expected) < 2e-5, key
