"""A stage is steered alike by a request and by the nodes: every level, audio strength and sampler, to the bit."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion import acceleration
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, TextContext
from a2v.ltx.diffusion.guidance import NONE
from a2v.ltx.diffusion.sample import sample
from a2v.ltx.diffusion.steering import RES_2S, Steering, steer
from a2v.ltx.errors import InputError
from a2v.ltx.grid import CHANNELS, audio_length
from a2v.ltx.latents import Noise
from a2v.ltx.request import PARAMETERS, Request, parse
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.windows import WindowSize, cut_windows
from a2v.tests.tiny import write_tiny
from torch import Tensor, nn

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

from a2v.nodes import memory, sampling
from a2v.nodes.film import Cut, FilmSound

pytestmark = pytest.mark.usefixtures("inference")

FRAMES, FPS, SEED = 9, Fraction(24), 12
LEVELS = PARAMETERS["acceleration"].choices
SAMPLERS: dict[str, dict[str, Any]] = {
    "euler": {},
    "gradient estimation": {"gradient_estimation_gamma": 2.0},
    "fresh noise": {"use_restart_sampling": True},
    "both": {"gradient_estimation_gamma": 2.0, "use_restart_sampling": True},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> memory.Model:
    files = write_tiny(tmp_path_factory.mktemp("tiny"), layers=2)
    name = "ltx-distilled.safetensors"  # so that every level has what it needs
    return memory.hold_transformer(load_checkpoint(files.checkpoint).transformer, "float32", name)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditions(module: nn.Module, strength: float) -> Conditions:
    widths = module.config.cross_attention_dim, module.config.audio_cross_attention_dim
    texts = [TextContext(*(noise(seed, 1, 6, width) for width in widths)) for seed in (1, 2)]
    sound = AudioCondition(noise(3, 1, 8, audio_length(FRAMES, FPS), 16), FRAMES, FPS, strength)
    return Conditions(texts[0], sound, texts[1])


def run(node: type, **inputs: Any) -> tuple[Any, ...]:
    """The node's outputs, called as ComfyUI calls it."""
    hidden = SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)
    return type(node.__name__, (node,), {"hidden": hidden}).execute(**inputs).args


def by_nodes(model: memory.Model, request: Request, sampler: str = "euler") -> tuple[Tensor, AudioCondition, str]:
    """The first stage of a request through the graph's nodes."""
    asked = conditions(model.module, request.audio_strength)
    sigmas, _ = run(sampling.Scheduler, scheduler=request.scheduler, steps=request.num_inference_steps)
    scales = {
        stream: run(
            node,
            cfg=getattr(request, f"{stream}_cfg_scale"),
            stg=getattr(request, f"{stream}_stg_scale"),
            rescale=getattr(request, f"{stream}_rescaling_scale"),
            modality=getattr(request, f"{stream}_modality_scale"),
            stg_blocks="1",
        )[0]
        for stream, node in (("video", sampling.PictureGuidance), ("audio", sampling.AudioGuidance))
    }
    first, _, sigmas, guidance, _ = run(
        sampling.Accelerate,
        level=request.acceleration,
        torch_compile=False,
        first_model=model,
        second_model=model,
        schedule=sigmas,
        scales=scales["video"],
    )
    if request.nag is not None:
        nag = request.nag
        (first,) = run(sampling.NegativeAttention, model=first, scale=nag.scale, alpha=nag.alpha, tau=nag.tau)
    share = 0.2 if request.use_restart_sampling else 0.0
    (restart,) = run(sampling.RestartSampling, noise=share, restarts=0, sigma_min=0.3, sigma_max=0.7)
    latent, _, audio, report = run(
        sampling.Sampler,
        model=first,
        noise=SimpleNamespace(seed=SEED),
        sigmas=sigmas,
        positive=asked.positive,
        audio=asked.audio,
        latent={"samples": torch.zeros(1, CHANNELS, 2, 2, 3)},
        negative=asked.negative,
        guidance=guidance,
        audio_guidance=scales["audio"],
        restart=restart,
        sampler=sampler,
        gradient_estimation_gamma=request.gradient_estimation_gamma,
    )
    return latent["samples"], audio, report


def by_engine(model: memory.Model, strength: float, steering: Steering) -> tuple[Tensor, AudioCondition]:
    (module,) = memory.use(model)
    latent = torch.zeros(1, CHANNELS, 2, 2, 3)
    return sample(module, latent, conditions(module, strength), steering, Noise(SEED))[:2]


def request(level: str, strength: float, **values: Any) -> Request:
    return parse(
        {
            "prompt": "",
            "seed": SEED,
            "num_inference_steps": 5,
            "acceleration": level,
            "audio_strength": strength,
            "audio_stg_scale": 0.5,
            "use_restart_sampling": False,
            **values,
        }
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("level", LEVELS)
def test_nodes_and_request_give_the_same(model: memory.Model, level: str, strength: float, sampler: str) -> None:
    asked = request(level, strength, **SAMPLERS[sampler])
    latent, audio, report = by_nodes(model, asked)
    steering, _ = steer(asked, stg_blocks=(1,))
    expected = by_engine(model, strength, steering)
    assert torch.equal(latent, expected[0]) and torch.equal(audio.latent, expected[1].latent)
    assert f"{steering.passes(strength == 1)} passes each" in report


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("level", LEVELS)
def test_res_2s_through_the_node(model: memory.Model, level: str, strength: float) -> None:
    asked = request(level, strength)
    latent, audio, _ = by_nodes(model, asked, RES_2S)
    first, _ = steer(asked, stg_blocks=(1,))
    scales = first.guidance, first.audio_guidance
    expected = by_engine(model, strength, Steering(first.sigmas, *scales, first.acceleration, sampler=RES_2S))
    assert torch.equal(latent, expected[0]) and torch.equal(audio.latent, expected[1].latent)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("level", ["none", "full"])
def test_nag_through_the_node(model: memory.Model, level: str, strength: float) -> None:
    asked = request(level, strength, nag={"scale": 6, "alpha": 0.5})
    latent, audio, report = by_nodes(model, asked)
    steering, _ = steer(asked, stg_blocks=(1,))
    expected, plain = by_engine(model, strength, steering), by_engine(model, strength, replace(steering, nag=None))
    assert torch.equal(latent, expected[0]) and torch.equal(audio.latent, expected[1].latent)
    assert not torch.allclose(expected[0], plain[0], atol=1e-3)
    assert torch.allclose(expected[1].latent, plain[1].latent, atol=1e-3) == (strength == 1)
    assert "NAG leads away from the negative prompt, at scale 6" in report


def test_nag_without_a_negative_prompt_is_refused(model: memory.Model) -> None:
    asked, (led,) = conditions(model.module, 1.0), run(sampling.NegativeAttention, model=model, scale=6, alpha=1, tau=2)
    with pytest.raises(InputError, match=r"^negative prompt: missing, and NAG leads away from it; connect one to this"):
        run(
            sampling.Sampler,
            model=led,
            noise=SimpleNamespace(seed=SEED),
            sigmas=torch.tensor([1.0, 0.0]),
            positive=asked.positive,
            audio=asked.audio,
            latent={"samples": torch.zeros(1, CHANNELS, 2, 2, 3)},
        )


def test_the_rest_of_a_split_schedule_hears_the_same_reference(model: memory.Model) -> None:
    """Its stage is not over, so next audio still has it; behind the end of the stage it has not."""
    asked, steering = conditions(model.module, 1.0), steer(request("none", 1.0), stg_blocks=(1,))[0]
    sigmas, heard = steering.sigmas, replace(asked.audio, reference=noise(4, 1, 8, 7, 16))

    def sampled(sigmas: Tensor, source: Any, latent: Tensor, audio: AudioCondition) -> tuple[Any, ...]:
        same = {"positive": asked.positive, "negative": asked.negative, "guidance": steering.guidance}
        start = {"latent": {"samples": latent}, "audio": audio}
        return run(sampling.Sampler, model=model, noise=source, sigmas=sigmas, **same, **start)

    none = SimpleNamespace(seed=0, generate_noise=lambda latent: torch.zeros_like(latent["samples"]))
    empty, source = torch.zeros(1, CHANNELS, 2, 2, 3), SimpleNamespace(seed=SEED)
    whole, _, after, _ = sampled(sigmas, source, empty, heard)
    half, _, between, _ = sampled(sigmas[:3], source, empty, heard)
    rest, _, last, _ = sampled(sigmas[2:], none, half["samples"], between)
    assert torch.allclose(rest["samples"], whole["samples"], atol=1e-4)
    assert between.reference is heard.reference and after.reference is None is last.reference


def test_the_distilled_recipe_has_no_guidance_whoever_gives_some(model: memory.Model) -> None:
    """One pass a step, for renewed sound as well."""
    asked = request("full", 0.5)
    assert asked.audio_cfg_scale == 7 and asked.video_cfg_scale == 3
    first, second = steer(asked)
    assert (first.guidance, first.audio_guidance) == (NONE, NONE) == (second.guidance, second.audio_guidance)
    assert first.passes(audio_frozen=False) == 1 and first.steps == 8
    _, _, report = by_nodes(model, asked)
    assert "8 steps of euler, 1 passes each" in report and "acceleration full has no guidance" in report


def test_where_all_of_a_film_was_made_before_no_guidance_is_missed(model: memory.Model) -> None:
    """Reference Sound encodes nothing there, so identity has no example, and the level no guidance."""
    frames = 33
    windows, asked = cut_windows(frames, WindowSize(17, 1)), conditions(model.module, 0.5)
    lengths = [window.frames for window in windows]
    sounds = [AudioCondition(noise(3, 1, 8, audio_length(each, FPS), 16), each, FPS, 0.5) for each in lengths]

    def report(here: frozenset[int], level: str) -> str:
        return run(
            sampling.Sampler,
            model=replace(model, acceleration=acceleration.level(level, model.version)),
            noise=SimpleNamespace(seed=SEED),
            sigmas=torch.tensor([1.0, 0.0]),
            positive=asked.positive,
            audio=FilmSound(Cut(frames, FPS, windows, here=here), tuple(sounds)),
            latent={"samples": torch.zeros(1, CHANNELS, 5, 2, 3)},
            audio_guidance=replace(NONE, identity=3.0),
        )[-1]

    for level in ("none", "regular"):
        assert "identity did nothing" not in report(frozenset(), level)
    assert "identity did nothing, because no Reference Sound is connected" in report(frozenset({0}), "none")
    with pytest.raises(InputError, match="regular leaves guidance out of some steps, but there is no guidance"):
        report(frozenset({0}), "regular")
    told = report(frozenset({0}), "full")
    assert "identity did nothing" in told and "acceleration full has no guidance" not in told, "but that of identity"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sampler": "heun"}, "sampler is 'heun'"),
        ({"sampler": RES_2S, "gradient_estimation_gamma": 2.0}, "leave out restart"),
        ({"gradient_estimation_gamma": float("nan")}, "gamma is nan"),
        ({"negative": None}, "negative prompt: missing"),
        ({"sigmas": torch.tensor([1.0])}, "sigmas has no step"),
    ],
)
def test_what_cannot_be_sampled_is_said_before_a_model_is_loaded(
    model: memory.Model, wrong: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "use", lambda *_, **__: pytest.fail("a model was loaded"))
    asked, steering = conditions(model.module, 1.0), steer(request("none", 1.0))[0]
    inputs = {
        "model": model,
        "noise": SimpleNamespace(seed=SEED),
        "sigmas": steering.sigmas,
        "positive": asked.positive,
        "audio": asked.audio,
        "latent": {"samples": torch.zeros(1, CHANNELS, 2, 2, 3)},
        "negative": asked.negative,
        "guidance": steering.guidance,
    }
    with pytest.raises(InputError, match=sentence):
        run(sampling.Sampler, **{**inputs, **wrong})
