"""The transformer's passes: version 1.2's behaviour against ltx-core and diffusers fed by hand, and the goldens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion.block import adopt
from a2v.ltx.diffusion.conditioning import Conditions, Stream, TextContext
from a2v.ltx.diffusion.denoiser import GuidedDenoiser
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.modulation import Levels, modulation
from a2v.ltx.diffusion.passes import Pass
from a2v.ltx.diffusion.samplers import Hooks
from a2v.ltx.diffusion.steering import Steering
from a2v.ltx.diffusion.tokens import Tokens
from a2v.ltx.weights import lora
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.tiny import TinyFiles, write_tiny
from safetensors import safe_open
from torch import Tensor, nn

from .one_pass import CASES, GRID, Case, by_diffusers, guided_step


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def model(tiny_any: TinyFiles) -> nn.Module:
    return load_checkpoint(tiny_any.checkpoint).transformer(torch.float32)


def same(off: Callable, ours: Tokens, video: Tensor, audio: Tensor) -> None:
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
    def run(dtype: torch.dtype) -> Tokens:
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
    with pytest.raises(KeyboardInterrupt):
        run.run([Pass(run.text, run.heard)], on_block=stop)


@pytest.mark.parametrize("name", ["ltx2", "endpoint_defaults", "linear_quadratic_ge"])
@pytest.mark.parametrize("step", ["s1/step0", "s1/step2", "s2/step1"])
def test_goldens(oracle: Path, off: Callable, name: str, step: str) -> None:
    """Every pass of a step from the tokens that enter it, LoRAs merged as that stage has them."""
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
        conditions, steering = Conditions(texts[0], None, texts[1]), Steering(get(f"{stage}/sigmas"), guidance)
        run = GuidedDenoiser(model, *streams, conditions, steering, Hooks(trace=traced.__setitem__))
        run(Tokens(streams[0].latent, streams[1].latent), sigma, 0)
        assert len(traced) == 6 * (4 if stage == "s1" else 1)
        for key, tensor in traced.items():
            expected = get(key.replace("step0", step))
            assert torch.equal(tensor, expected) or off(tensor, expected) < 2e-5, key


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """As many blocks as the real model has, narrow ones."""
    sizes = {"layers": 48, "heads": 2, "head_dim": 16, "connector_layers": 1, "vae_width": 4}
    return write_tiny(tmp_path_factory.mktemp("deep"), seed=5, **sizes)


@pytest.mark.parametrize("frozen", [True, False])
def test_passes_together_are_the_passes_alone(
    tiny_default: TinyFiles, off: Callable, randn: Callable, frozen: bool
) -> None:
    """In lockstep one by one: to the bit. As one batch: up to how matrix products round. Audio unread: not computed."""
    run = Case(load_checkpoint(tiny_default.checkpoint).transformer(torch.float32), randn, image=0.4, frozen=frozen)
    passes = guided_step(run) if frozen else [*guided_step(run), Pass(run.text, run.heard, (2,), (1,))]
    alone = [run.run([one])[0] for one in passes]
    for batched in (False, True):
        for ours, expected in zip(run.run(passes, batched=batched), alone, strict=True):
            if batched:
                assert off(ours.video, expected.video) < 1e-6 and off(ours.audio, expected.audio) < 1e-6
            else:
                assert torch.equal(ours.video, expected.video) and torch.equal(ours.audio, expected.audio)
        for ours, expected in zip(run.run(passes, batched=batched, audio_read=False), alone, strict=True):
            assert ours.audio is None
            assert off(ours.video, expected.video) < 1e-6


@pytest.mark.parametrize("batched", [pytest.param(False, marks=pytest.mark.soak), True])
def test_a_guided_step_runs_164_blocks_of_192(deep: TinyFiles, off: Callable, randn: Callable, batched: bool) -> None:
    """One call of a block on one row counts one; the same step by diffusers' own forward has the same numbers."""
    run = Case(load_checkpoint(deep.checkpoint).transformer(torch.float32), randn)
    calls: list[tuple[int, int]] = []  # rows with video, rows with audio
    adopt(run.model)
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args: calls.append((len(args[0]), 0 if args[1] is None else len(args[1])))
        )
        for block in run.model.transformer_blocks
    ]
    ours = run.run(guided_step(run), batched=batched, audio_read=False)
    for hook in hooks:
        hook.remove()
    assert sum(rows for rows, _ in calls) == 3 * 48 + 20 == 164
    assert sum(rows for _, rows in calls) == 2 * 48 + 20  # the isolated pass has no sound to run
    for result, one in zip(ours, guided_step(run), strict=True):
        alone = Case.__new__(Case)
        alone.__dict__ |= run.__dict__ | {
            "text": one.video_context,
            "perturbed": one.perturbed,
            "perturbed_audio": (),
            "isolated": one.isolated,
        }
        assert off(result.video, by_diffusers(alone)[0]) < 1e-5


def test_no_tensor_of_tokens_times_parameters(tiny_default: TinyFiles, randn: Callable) -> None:
    """AdaLN is kept for the distinct levels: two for a clip with a first image, one for the frozen sound."""
    model = load_checkpoint(tiny_default.checkpoint).transformer(torch.float32)
    run = Case(model, randn, image=0.4)
    adaln = modulation(model, Levels.of(run.levels), Levels.of(run.sound_levels), run.sigma, run.sound, torch.float32)
    width = model.config.num_attention_heads * model.config.attention_head_dim
    assert adaln.video.own.shape == (2, 9, width) and adaln.video.places.index.shape == (GRID[0] * GRID[1] * GRID[2],)
    assert adaln.audio.own.shape[:2] == (1, 9) and adaln.audio.places is None
