"""Audio strength: what the model is told of audio that it may change, and when the audio's own guidance acts.

Below strength 1, steps and guidance are held against ltx-pipelines 1.0.0, changed to version 1.2 by hand (model.md §4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from a2v.ltx.diffusion import denoiser
from a2v.ltx.diffusion.conditioning import AudioCondition, Guide, TextContext, audio_stream
from a2v.ltx.diffusion.guidance import NONE, Guidance
from a2v.ltx.diffusion.passes import Pass
from a2v.ltx.diffusion.samplers import Restart
from a2v.ltx.diffusion.steering import EULER, RES_2S, SAMPLERS
from a2v.ltx.errors import InputError
from a2v.ltx.grid import CHANNELS
from a2v.ltx.latents import Noise, audio_positions, patchify_audio, patchify_video, video_positions
from a2v.ltx.trace import Recorder
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx import stage
from a2v.tests.ltx.goldens import relative
from a2v.tests.tiny import TinyFiles
from torch import Tensor, nn

FPS = Fraction(24)
SIGMAS = torch.tensor([1.0, 0.8, 0.45, 0.0])
GRID = (2, 2, 3)
VIDEO, AUDIO = Guidance(3, 1, 0.85, 3), Guidance(7, 0.5, 0.7, 3)
EVERY = {"guidance": VIDEO, "audio_guidance": AUDIO}


@pytest.fixture(scope="module")
def model(tiny_default: TinyFiles) -> nn.Module:
    return load_checkpoint(tiny_default.checkpoint).transformer(torch.float32, "cpu")


def text(seed: int) -> TextContext:
    draw = torch.Generator().manual_seed(seed)
    return TextContext(torch.randn(1, 16, 64, generator=draw), torch.randn(1, 16, 32, generator=draw))


def hearing(*strength: float) -> AudioCondition:
    latent = torch.randn(1, 8, 9, 16, generator=torch.Generator().manual_seed(8))
    return AudioCondition(latent, 9, FPS, *strength)


@dataclass
class Run:
    video: Tensor
    audio: AudioCondition
    noise: Noise
    trace: dict[str, Tensor]

    @property
    def passes(self) -> int:
        return sum(name.startswith("step0/call") and name.endswith("video_x0") for name in self.trace)


def sample(model: nn.Module, strength: float | None = None, **more: object) -> Run:
    trace = Recorder()
    settings = {
        "latent": torch.zeros(1, CHANNELS, *GRID),
        "sigmas": SIGMAS,
        "positive": text(1),
        "negative": text(2),
        "audio": hearing() if strength is None else hearing(strength),
        "noise": Noise(4),
        "trace": trace,
        **more,
    }
    return Run(*stage.sample(model, settings), trace.tensors)


def same(a: Run, b: Run) -> bool:
    """Every tensor of the trace, to the bit, and what is returned."""
    assert a.trace.keys() == b.trace.keys()
    results = torch.equal(a.video, b.video) and torch.equal(a.audio.latent, b.audio.latent)
    return results and all(torch.equal(a.trace[name], b.trace[name]) for name in a.trace)


# What the model is told


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.75, 0.999, 1.0])
def test_levels(model: nn.Module, strength: float) -> None:
    """Mask 1 - strength on every token; timesteps mask·sigma, and the scalar sigma by the largest mask."""
    run = sample(model, strength, **EVERY)
    mask = torch.full((1, 9, 1), 1 - strength)
    torch.testing.assert_close(audio_stream(hearing(strength)).mask, mask, rtol=0, atol=1e-7)
    assert run.passes == 4
    for k, sigma in enumerate(SIGMAS[:-1]):
        for call in range(4):
            told = {name: run.trace[f"step{k}/call{call}/{name}"] for name in ("audio_timesteps", "audio_sigma")}
            torch.testing.assert_close(told["audio_timesteps"], mask * sigma, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(told["audio_sigma"], (1 - strength) * sigma[None], rtol=1e-6, atol=1e-7)
            assert run.trace[f"step{k}/call{call}/video_sigma"] == sigma
    draw = torch.Generator().manual_seed(4)
    noise = [torch.randn(shape, generator=draw) for shape in ((1, 12, 128), (1, 9, 128))][1]
    entering = torch.lerp(patchify_audio(hearing().latent), noise, 1 - strength)
    torch.testing.assert_close(run.trace["step0/in_audio"], entering, rtol=1e-5, atol=1e-6)


def test_the_scalar_sigma_goes_to_the_gates_and_the_prompts_adaln(model: nn.Module) -> None:
    """The modules that take a stream's sigma, spied on: the audio's is sigma·max(mask) in all of them."""
    taken: dict[str, list[float]] = {}
    hooks = []
    for name in ("audio_prompt_adaln", "prompt_adaln", "av_cross_attn_video_a2v_gate", "av_cross_attn_audio_v2a_gate"):

        def spy(module: nn.Module, arguments: tuple, *_: object, name: str = name) -> None:
            taken.setdefault(name, []).extend(arguments[0].flatten().tolist())

        hooks.append(getattr(model, name).register_forward_pre_hook(spy))
    try:
        sample(model, 0.6)
    finally:
        for hook in hooks:
            hook.remove()
    gate = model.config.cross_attn_timestep_scale_multiplier
    video, audio = SIGMAS[:-1].tolist(), (SIGMAS[:-1] * 0.4).tolist()
    assert taken["audio_prompt_adaln"] == pytest.approx([1000 * s for s in audio])
    assert taken["prompt_adaln"] == pytest.approx([1000 * s for s in video])
    assert taken["av_cross_attn_video_a2v_gate"] == pytest.approx([gate * s for s in audio])
    assert taken["av_cross_attn_audio_v2a_gate"] == pytest.approx([gate * s for s in video])


# Strength 1


def test_strength_1_is_the_default_and_frozen(model: nn.Module) -> None:
    assert hearing().strength == 1
    default, one = sample(model, guidance=VIDEO), sample(model, 1.0, guidance=VIDEO)
    assert same(default, one)
    tokens = patchify_audio(hearing().latent)
    for k in range(3):
        assert torch.equal(one.trace[f"step{k}/out_audio"], tokens)
        assert not one.trace[f"step{k}/call0/audio_timesteps"].any() and not one.trace[f"step{k}/call0/audio_sigma"]
    assert torch.equal(one.audio.latent, hearing().latent) and one.audio.strength == 1


@pytest.mark.parametrize("guidance", [NONE, Guidance(cfg=3), VIDEO], ids=str)
@pytest.mark.parametrize(
    "audio", [Guidance(cfg=7), Guidance(stg=2), Guidance(modality=4), Guidance(cfg=3, rescale=0.5), AUDIO], ids=str
)
def test_the_audio_scales_change_nothing_at_strength_1(model: nn.Module, guidance: Guidance, audio: Guidance) -> None:
    """To the bit and to the pass; without a negative prompt where the video needs none."""
    negative = text(2) if guidance.runs_uncond else None
    settings = {"guidance": guidance, "negative": negative, "sigmas": torch.tensor([1.0, 0.6, 0.0])}
    plain, scaled = (sample(model, 1.0, audio_guidance=g, **settings) for g in (NONE, audio))
    assert plain.passes == scaled.passes == guidance.passes
    assert same(plain, scaled)


def apart(a: Run, b: Run) -> tuple[float, float]:
    """Relative L2 distance of the video and of the audio."""
    pairs = ((a.video, b.video), (a.audio.latent, b.audio.latent))
    return tuple(relative(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance": VIDEO, "audio_guidance": Guidance(1, 0, 0.7, 3)},
        {"restart": Restart(0.2, 1, 0.45, 0.8), "guidance": Guidance(cfg=3)},
        {"gamma": 2.0},
        {"sampler": RES_2S},
    ],
    ids=["plain", "guided", "restart", "gradient estimation", "res_2s"],
)
def test_it_comes_to_strength_1_without_a_jump(model: nn.Module, settings: dict[str, object]) -> None:
    """At audio_cfg_scale 1: 1 - strength left, the video comes nearer in proportion, the audio in its square."""
    frozen = sample(model, 1.0, **settings)
    lefts = (1e-3, 1e-4, 1e-5)
    video, audio = zip(*(apart(sample(model, 1 - left, **settings), frozen) for left in lefts), strict=True)
    assert video[0] < 0.15  # 0.999: sigma is a thousandth, and the model's timestep 1 in 1000 already
    assert all(5 < far / near < 20 for far, near in pairwise(video)), video
    assert all(distance < left**2 + 1e-7 for distance, left in zip(audio, lefts, strict=True)), audio


@pytest.mark.parametrize(
    ("video", "audio"),
    [(Guidance(cfg=3), Guidance(cfg=7)), (Guidance(stg=1), Guidance(stg=0.5))],
    ids=["negative context", "stg"],
)
def test_what_makes_a_jump(model: nn.Module, video: Guidance, audio: Guidance) -> None:
    """However near to 1, a pass that the video's guidance takes away is another one where the audio's shapes it too:
    the uncond pass hears the negative prompt, and the STG pass perturbs the audio's blocks."""
    frozen = sample(model, 1.0, guidance=video, audio_guidance=audio)
    jumps = [apart(sample(model, 1 - 1e-6, guidance=video, audio_guidance=g), frozen) for g in (audio, NONE)]
    assert jumps[0][0] > 20 * jumps[1][0] and jumps[0][0] > 1e-3
    assert jumps[0][1] < 1e-6
    alone = [sample(model, s, guidance=replace(video, cfg=1, stg=0), audio_guidance=audio) for s in (1 - 1e-6, 1.0)]
    assert apart(*alone)[0] < 1e-3


# Which passes, with what


class Spy:
    """Stands in for `velocities`: the passes of each step, and the real result."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Pass] = []
        real = denoiser.velocities

        def velocities(model: nn.Module, x: object, passes: list[Pass], *rest: object, **options: object):
            self.calls += passes
            return real(model, x, passes, *rest, **options)

        monkeypatch.setattr(denoiser, "velocities", velocities)

    def one_step(self, model: nn.Module, strength: float, **settings: object) -> list[str]:
        """The step's passes in words: their contexts (+ or - for video and audio) and what is taken out."""
        self.calls.clear()
        sample(model, strength, sigmas=torch.tensor([1.0, 0.0]), **settings)
        words = []
        for call in self.calls:
            signs = ""
            for given, name in ((call.video_context, "video"), (call.audio_context, "audio")):
                which = [s for s, t in (("+", text(1)), ("-", text(2))) if torch.equal(given, getattr(t, name))]
                signs += which[0]
            video, audio = call.perturbed, call.perturbed_audio
            words.append(
                signs
                + (f" stg {list(video)}{list(audio)}" if video or audio else "")
                + (" isolated" if call.isolated else "")
            )
        return words


PASSES = [
    (1.0, NONE, NONE, ["++"]),
    (0.5, NONE, NONE, ["++"]),
    # cfg: the union of both; the audio's negative context only by the audio's own scale
    (0.5, Guidance(cfg=3), NONE, ["++", "-+"]),
    (0.5, Guidance(cfg=3), Guidance(cfg=7), ["++", "--"]),
    (0.5, NONE, Guidance(cfg=7), ["++", "--"]),
    (1.0, Guidance(cfg=3), Guidance(cfg=7), ["++", "-+"]),
    (1.0, NONE, Guidance(cfg=7), ["++"]),
    # STG: each stream's own scale perturbs its own blocks
    (0.5, Guidance(stg=1), NONE, ["++", "++ stg [2][]"]),
    (0.5, NONE, Guidance(stg=1), ["++", "++ stg [][2]"]),
    (0.5, Guidance(stg=1, stg_blocks=(0, 3)), Guidance(stg=2, stg_blocks=(1,)), ["++", "++ stg [0, 3][1]"]),
    (0.5, Guidance(stg=1), Guidance(stg_blocks=(1,)), ["++", "++ stg [2][]"]),
    (1.0, Guidance(stg=1), Guidance(stg=1), ["++", "++ stg [2][]"]),
    # modality
    (0.5, Guidance(modality=3), NONE, ["++", "++ isolated"]),
    (0.5, NONE, Guidance(modality=3), ["++", "++ isolated"]),
    (1.0, NONE, Guidance(modality=3), ["++"]),
    # each from another stream, in the order of passes
    (0.0, Guidance(stg=1), Guidance(cfg=7, modality=2), ["++", "--", "++ stg [2][]", "++ isolated"]),
    (0.9, Guidance(cfg=2, modality=2), Guidance(stg=0.5, rescale=0.7), ["++", "-+", "++ stg [][2]", "++ isolated"]),
    (0.9, Guidance(rescale=1), Guidance(rescale=1), ["++"]),
]


@pytest.mark.parametrize(("strength", "guidance", "audio_guidance", "passes"), PASSES)
def test_passes(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, strength: float, guidance: Guidance, audio_guidance: Guidance,
    passes: list[str],
) -> None:  # fmt: skip
    spy = Spy(monkeypatch)
    assert spy.one_step(model, strength, guidance=guidance, audio_guidance=audio_guidance) == passes


def test_a_stream_ignores_the_others_scales(model: nn.Module) -> None:
    """In one step: the audio's scales move the audio alone, the video's the video alone.

    But for the uncond pass, whose video is another where it hears the negative context.
    """
    one = {"sigmas": torch.tensor([1.0, 0.4]), "room": 0.0}  # passes one by one: no pass is rounded by another's rows
    plain = sample(model, 0.5, **one)
    for name, other in (("audio_guidance", "video"), ("guidance", "audio")):
        for guidance in (Guidance(cfg=7), Guidance(stg=1), Guidance(modality=3)):
            run = sample(model, 0.5, **{name: guidance}, **one)
            own = "audio" if other == "video" else "video"
            assert torch.equal(run.trace[f"step0/x0_{other}"], plain.trace[f"step0/x0_{other}"])
            assert (run.trace[f"step0/x0_{own}"] - plain.trace[f"step0/x0_{own}"]).norm() > 1e-3
    for guidance, moved in ((Guidance(cfg=7), True), (Guidance(stg=1), False)):
        video = Guidance(cfg=3)
        without, with_it = (sample(model, 0.5, guidance=video, audio_guidance=g, **one) for g in (NONE, guidance))
        assert torch.equal(without.trace["step0/x0_video"], with_it.trace["step0/x0_video"]) != moved


def test_refusals(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"^negative prompt: missing"):
        sample(model, 0.5, negative=None, audio_guidance=Guidance(cfg=7))
    with pytest.raises(InputError, match="block 4, and this model has blocks 0 to 3"):
        sample(model, 0.5, audio_guidance=Guidance(stg=1, stg_blocks=(4,)))
    for strength in (-0.1, 1.01, float("nan")):
        with pytest.raises(InputError, match=r"^audio_strength: .* is not between 0 and 1"):
            hearing(strength)


# What goes on


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_the_result_is_frozen_for_the_second_pass(model: nn.Module, strength: float, sampler: str) -> None:
    first = sample(model, strength, sampler=sampler)
    assert first.audio.strength == 1 and (first.audio.frames, first.audio.fps) == (9, FPS)
    assert first.audio.latent.shape == (1, 8, 9, 16) and first.audio.latent.dtype == torch.float32
    if sampler == EULER:
        assert torch.equal(patchify_audio(first.audio.latent), first.trace["step2/out_audio"])
    given = hearing().latent
    # res_2s, as published, blends the track back in twice a step: of 0.5 there remains far less than in Euler.
    least = 0.005 if sampler == RES_2S else 0.05
    assert (first.audio.latent - given).norm() > least * given.norm()
    assert torch.equal(hearing(strength).latent, given), "the condition itself is left as it was"
    second = sample(
        model, audio=first.audio, latent=torch.zeros(1, CHANNELS, 2, 4, 6), sigmas=torch.tensor([0.9, 0.4, 0.0]),
        noise=first.noise, audio_guidance=AUDIO, sampler=sampler,
    )  # fmt: skip
    tokens = patchify_audio(first.audio.latent)
    assert torch.equal(second.audio.latent, first.audio.latent) and second.audio.strength == 1
    for k in range(2):
        assert torch.equal(second.trace[f"step{k}/in_audio"], tokens)
        assert not second.trace[f"step{k}/call0/audio_sigma"].any()
    assert second.passes == 1


def test_strength_holds_the_track(model: nn.Module) -> None:
    """The result lies the nearer to the track, the higher the strength; at 0 the track is not heard at all."""
    given = hearing().latent
    off = [relative(sample(model, s).audio.latent, given) for s in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert off == sorted(off, reverse=True) and off[-1] == 0 and off[0] > 0.5
    other = AudioCondition(given.flip(2), 9, FPS, 0.0)
    a, b = sample(model, 0.0, **EVERY), sample(model, audio=other, **EVERY)
    assert torch.equal(a.video, b.video) and torch.equal(a.audio.latent, b.audio.latent)


def test_the_noise_does_not_depend_on_strength(model: nn.Module) -> None:
    runs = [sample(model, strength) for strength in (1.0, 0.5, 0.0)]
    for run in runs[1:]:
        assert torch.equal(run.trace["step0/in_video"], runs[0].trace["step0/in_video"])
        assert torch.equal(run.noise.state, runs[0].noise.state)


# Against the official code


@pytest.fixture
def official(tiny_default: TinyFiles, peer: Callable) -> Iterator[Callable[..., tuple[Tensor, Tensor]]]:
    """(strength, guidance, audio guidance, first image, gamma) → tokens after the peer's loop, in version 1.2's way."""
    helpers = pytest.importorskip("ltx_pipelines.utils.helpers")
    samplers = pytest.importorskip("ltx_pipelines.utils.samplers")
    guiders = pytest.importorskip("ltx_core.components.guiders")
    from ltx_core.components.diffusion_steps import EulerDiffusionStep
    from ltx_core.model.transformer.model import X0Model
    from ltx_core.types import LatentState

    transformer = peer(tiny_default, "transformer")
    gate = load_checkpoint(tiny_default.checkpoint).blueprint().config.cross_attn_timestep_scale_multiplier
    for preprocessor in (transformer.video_args_preprocessor, transformer.audio_args_preprocessor):
        preprocessor.av_ca_timestep_scale_multiplier = gate
        as_built = {"prepare": preprocessor.prepare, "adaln": preprocessor.cross_scale_shift_adaln}

        def of_version_2(
            modality: object, cross: object = None, *, prepare: Callable = as_built["prepare"],
            adaln: Callable = as_built["adaln"],
        ) -> object:  # fmt: skip
            """1.2: the AV scale and shift take each token's own timestep."""
            levels, _ = adaln(modality.timesteps.flatten() * 1000, hidden_dtype=torch.float32)
            return replace(prepare(modality, cross), cross_scale_shift_timestep=levels[None])

        preprocessor.prepare = of_version_2
    as_published = helpers.modality_from_latent_state

    def modality(state: LatentState, context: Tensor, sigma: Tensor, enabled: bool = True) -> object:
        """Decided: a stream's own sigma is that of its freest token; a frozen one's is then 0, as in 1.2."""
        return replace(as_published(state, context, sigma, enabled), sigma=(sigma * state.denoise_mask.max())[None])

    def guider(guidance: Guidance, negative: Tensor) -> object:
        params = guiders.MultiModalGuiderParams(
            cfg_scale=guidance.cfg, stg_scale=guidance.stg, stg_blocks=list(guidance.blocks(4)),
            rescale_scale=guidance.rescale, modality_scale=guidance.modality,
        )  # fmt: skip
        return guiders.MultiModalGuider(params, negative)

    def run(strength: float, guidance: Guidance, audio: Guidance, image: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(4)
        clean = torch.zeros(1, 12, 128)
        clean[:, :6] = patchify_video(image)
        masks = torch.tensor([0.3] * 6 + [1.0] * 6)[None, :, None], torch.full((1, 9, 1), 1 - strength)
        states = [
            LatentState(torch.lerp(c, torch.randn(c.shape, generator=draw), m), m, positions, c)
            for c, m, positions in (
                (clean, masks[0], video_positions(GRID, FPS)),
                (patchify_audio(hearing().latent), masks[1], audio_positions(9)),
            )
        ]
        denoise = helpers.multi_modal_guider_denoising_func(
            guider(guidance, text(2).video), guider(audio, text(2).audio if audio.runs_uncond else None),
            text(1).video, text(1).audio, X0Model(transformer),
        )  # fmt: skip
        arguments = (SIGMAS, *states, EulerDiffusionStep(), denoise)
        if gamma:
            video, sound = samplers.gradient_estimating_euler_denoising_loop(*arguments, ge_gamma=gamma)
        else:
            video, sound = samplers.euler_denoising_loop(*arguments)
        return video.latent, sound.latent

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helpers, "modality_from_latent_state", modality)
        yield run


@pytest.mark.parametrize(
    ("strength", "guidance", "audio", "gamma"),
    [
        (0.5, NONE, NONE, 0.0),
        (0.25, VIDEO, AUDIO, 0.0),
        (0.9, Guidance(2, 0.7, 0.3, 1, (0, 2)), Guidance(3, 1.5, 1, 2, (1,)), 0.0),
        (0.0, Guidance(stg=1), Guidance(cfg=7, modality=3), 0.0),
        (0.6, Guidance(modality=3), Guidance(stg=1.5, rescale=0.7), 2.0),
        (0.7, Guidance(cfg=3), Guidance(modality=2), 0.0),
        (1.0, VIDEO, NONE, 0.0),
    ],
)
def test_equals_the_official_guidance(
    model: nn.Module,
    official: Callable,
    off: Callable,
    strength: float,
    guidance: Guidance,
    audio: Guidance,
    gamma: float,
) -> None:
    image = torch.randn(1, CHANNELS, 1, *GRID[1:], generator=torch.Generator().manual_seed(6))
    run = sample(model, strength, guidance=guidance, audio_guidance=audio, guides=(Guide(image, 0, 0.7),), gamma=gamma)
    with torch.inference_mode():
        video, sound = official(strength, guidance, audio, image, gamma)
    assert off(patchify_video(run.video), video) < 3e-5
    assert off(patchify_audio(run.audio.latent), sound) < 3e-5
