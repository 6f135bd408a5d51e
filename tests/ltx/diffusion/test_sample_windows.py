"""A stage in windows: what each window is given and told, on tiny weights, for every way to sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from a2v.ltx.diffusion import sample_windows as in_windows
from a2v.ltx.diffusion import samplers
from a2v.ltx.diffusion.acceleration import LEVELS
from a2v.ltx.diffusion.conditioning import AudioCondition, Conditions, Guide, TextContext
from a2v.ltx.diffusion.guidance import Guidance
from a2v.ltx.diffusion.kept import KeptWindows
from a2v.ltx.diffusion.sample import sample
from a2v.ltx.diffusion.sample_windows import Sampled, WindowInputs, conditions_of, sample_windows, start_of
from a2v.ltx.diffusion.samplers import Hooks, Restart
from a2v.ltx.diffusion.steering import ANCESTRAL, RES_2S, Steering
from a2v.ltx.errors import InputError
from a2v.ltx.grid import CHANNELS, audio_length, frames_of
from a2v.ltx.latents import Noise, unpatchify_video, video_positions
from a2v.ltx.trace import Recorder
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.ltx.windows import Border, Window, WindowSize, cut_windows
from a2v.tests.tiny import write_tiny
from torch import Tensor, nn

FPS = Fraction(24)
HEIGHT, WIDTH = 2, 3
SIZE = WindowSize(33, 2)  # five latents, two of them shared
LATENTS = 11
WINDOWS = cut_windows(frames_of(LATENTS), SIZE)
SIGMAS = torch.tensor([1.0, 0.8, 0.45, 0.0])
WAYS: dict[str, dict[str, Any]] = {
    "euler": {},
    "guidance": {"guidance": Guidance(3, 1, 0.85, 3, (1,))},
    "restart": {"restart": Restart(0.2)},
    "restarts": {"restart": Restart(0.2, times=1, sigma_min=0.4, sigma_max=0.85)},
    "gradient estimation": {"gamma": 2.0},
    "restart and gamma": {"gamma": 2.0, "restart": Restart(0.3)},
    "res_2s": {"sampler": RES_2S},
    "euler_ancestral": {"sampler": ANCESTRAL},
    "regular": {"guidance": Guidance(3, 0, 0.85, 3), "acceleration": LEVELS["regular"]},
    "high": {"guidance": Guidance(3, 0, 0.85, 3), "acceleration": LEVELS["high"]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """Of two blocks: what windows share does not depend on how many there are."""
    files = write_tiny(tmp_path_factory.mktemp("tiny"), layers=2, vae_width=4, gemma_layers=1)
    return load_checkpoint(files.checkpoint).transformer(torch.float32, "cpu")


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(seed: int) -> TextContext:
    return TextContext(drawn(seed, 1, 16, 64), drawn(seed + 100, 1, 16, 32))


def sounds(windows: Sequence[Window] = WINDOWS, strength: float = 1.0) -> tuple[AudioCondition, ...]:
    return tuple(
        AudioCondition(drawn(number, 1, 8, audio_length(w.frames, FPS), 16), w.frames, FPS, strength)
        for number, w in enumerate(windows)
    )


def parts(heard: Sequence[AudioCondition], windows: Sequence[Window] = WINDOWS) -> tuple[WindowInputs, ...]:
    return tuple(WindowInputs(window, sound) for window, sound in zip(windows, heard, strict=True))


def zeros(latents: int = LATENTS) -> Tensor:
    return torch.zeros(1, CHANNELS, latents, HEIGHT, WIDTH)


def conditions(*guides: Guide, mask: Tensor | None = None) -> Conditions:
    return Conditions(text(1), sounds()[0], text(2), guides, mask)


class Watched:
    """A run in windows, with the trace of each of them."""

    def __init__(
        self, model: nn.Module, steering: Steering, strength: float = 1.0, start: Tensor | None = None, **more: Any
    ):
        self.traces: dict[int, Recorder] = {}
        given = {"conditions": conditions(), "noise": Noise(4), "anchor": 0.0, "drift": 0.0, **more}
        self.heard = sounds(strength=strength)
        self.video, self.audio, (self.noise,) = sample_windows(
            model,
            zeros() if start is None else start.clone(),
            with_all(self.heard, anchor=given["anchor"], drift=given["drift"]),
            given["conditions"],
            steering,
            [given["noise"]],
            hooks=lambda number: Hooks(trace=self.traces.setdefault(number, Recorder())),
        )

    def entering(self, number: int, step: int = 0) -> Tensor:
        """The video that enters a step of a window, as a latent, without keyframes."""
        tokens = self.traces[number].tensors[f"step{step}/in_video"][:, : WINDOWS[number].length * HEIGHT * WIDTH]
        return unpatchify_video(tokens, (WINDOWS[number].length, HEIGHT, WIDTH))


def test_there_are_windows_to_test() -> None:
    assert [(w.start, w.length, w.given) for w in WINDOWS] == [(0, 5, 0), (2, 5, 3), (4, 5, 3), (6, 5, 3)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_one_window_is_a_clip(model: nn.Module, way: str, strength: float) -> None:
    """The latent, the sound and the rest of the stream of noise are those of `sample`, to the bit."""
    steering = Steering(SIGMAS, **WAYS[way])
    windows = cut_windows(frames_of(5))
    (sound,) = sounds(windows, strength)
    guides = (Guide(drawn(7, 1, CHANNELS, 1, HEIGHT, WIDTH), 0, 0.9), Guide(drawn(8, 1, CHANNELS, 1, 2, 3), 32, 0.7))
    start = drawn(9, *zeros(5).shape)
    wanted, heard, after = sample(model, start, replace(conditions(*guides), audio=sound), steering, Noise(4))
    (one,) = parts([sound], windows)
    video, (audio,), (noise,) = sample_windows(model, start, [one], conditions(*guides), steering, [Noise(4)])
    assert torch.equal(video, wanted) and torch.equal(audio.latent, heard.latent) and audio.frozen
    assert torch.equal(noise.state, after.state)


@pytest.mark.parametrize("way", WAYS)
def test_what_windows_share_is_kept_in_every_step(model: nn.Module, way: str) -> None:
    run = Watched(model, Steering(SIGMAS, **WAYS[way]), strength=0.4 if way == "euler" else 1.0)
    assert run.video.isfinite().all() and run.video.shape == zeros().shape
    for number, window in enumerate(WINDOWS[1:], 1):
        shared = run.video[:, :, window.start + 1 : window.start + 3]
        trace = run.traces[number].tensors
        steps = sorted(name for name in trace if name.endswith("/in_video"))
        assert len(steps) >= 3
        for name in steps:
            latent = unpatchify_video(trace[name], (5, HEIGHT, WIDTH))
            assert torch.equal(latent[:, :, 1:3], shared), name
            assert not torch.equal(latent[:, :, :1], run.video[:, :, window.start : window.start + 1])
        for name in (name for name in trace if name.endswith("video_timesteps")):
            told = trace[name].reshape(5, -1)
            assert (told[1:3] == 0).all() and (told[[0, 3, 4]] > 0).all(), name
        last = max((name for name in trace if name.endswith("out_video") and "/call" not in name), key=step_of)
        if way != "res_2s":  # its last prediction has no step of its own
            made = unpatchify_video(trace[last], (5, HEIGHT, WIDTH))[:, :, 3:]
            assert torch.equal(made, run.video[:, :, window.new])


def step_of(name: str) -> int:
    return int(name.split("/")[0].removeprefix("step"))


def test_positions_and_sound_are_the_windows_own(model: nn.Module) -> None:
    run = Watched(model, Steering(SIGMAS))
    for number in range(len(WINDOWS)):
        trace = run.traces[number].tensors
        assert torch.equal(trace["positions_video"], video_positions((5, HEIGHT, WIDTH), FPS))
        assert torch.equal(trace["positions_audio"], run.traces[0].tensors["positions_audio"])
        heard = run.heard[number].latent
        assert torch.equal(trace["step0/in_audio"].reshape(1, -1, 8, 16), heard.permute(0, 2, 1, 3))


def test_a_window_hears_its_own_sound(model: nn.Module) -> None:
    """Another sound in the third window changes what it adds and what follows, and nothing before."""
    one = sample_windows(model, zeros(), parts(sounds()), conditions(), Steering(SIGMAS), [Noise(4)])[0]
    heard = list(sounds())
    heard[2] = replace(heard[2], latent=heard[2].latent + 1)
    other = sample_windows(model, zeros(), parts(heard), conditions(), Steering(SIGMAS), [Noise(4)])[0]
    same = [torch.equal(one[:, :, k], other[:, :, k]) for k in range(LATENTS)]
    assert same == [True] * 7 + [False] * 4


def test_one_stream_of_noise_goes_through_all_windows(model: nn.Module) -> None:
    run = Watched(model, Steering(SIGMAS))
    generator = torch.Generator().manual_seed(4)
    for number, window in enumerate(WINDOWS):
        noise = torch.randn(1, 5 * HEIGHT * WIDTH, CHANNELS, generator=generator)
        torch.randn(1, audio_length(window.frames, FPS), 128, generator=generator)
        expected = unpatchify_video(noise, (5, HEIGHT, WIDTH))
        free = [0, 3, 4] if number else range(5)
        assert torch.equal(run.entering(number)[:, :, free], expected[:, :, free])
    assert torch.equal(run.noise.state, generator.get_state())


def test_renewed_noise_is_another_one_in_each_window(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    class Fresh(samplers.FreshNoise):
        def __init__(self, seed: int) -> None:
            seeds.append(seed)
            super().__init__(seed)

    monkeypatch.setattr(samplers, "FreshNoise", Fresh)
    Watched(model, Steering(SIGMAS, restart=Restart()))
    assert seeds[0] == 10_004 and len(set(seeds)) == len(WINDOWS) == len(seeds)


def test_a_start_below_sigma_1_goes_into_each_window(model: nn.Module) -> None:
    """As in the second stage: at its own places, the whole's latent is mixed in."""
    start = drawn(3, *zeros().shape)
    run = Watched(model, Steering(torch.tensor([0.9, 0.4, 0.0])), start=start)
    none = Watched(model, Steering(torch.tensor([0.9, 0.4, 0.0])))
    for number, window in enumerate(WINDOWS):
        mixed = run.entering(number) - none.entering(number)
        torch.testing.assert_close(mixed[:, :, window.given :], 0.1 * start[:, :, window.new], rtol=1e-4, atol=1e-6)


def test_images_are_in_the_first_and_the_last_window(model: nn.Module) -> None:
    first, last = (drawn(seed, 1, CHANNELS, 1, HEIGHT, WIDTH) for seed in (5, 6))
    guides = Guide(first, 0, 1.0), Guide(last, frames_of(LATENTS) - 1, 0.8)
    run = Watched(model, Steering(SIGMAS), conditions=conditions(*guides))
    assert torch.equal(run.video[:, :, :1], first)
    tokens = [run.traces[number].tensors["step0/in_video"].shape[1] for number in range(4)]
    assert tokens == [30, 30, 30, 36], "the end image's tokens"
    positions = run.traces[3].tensors["positions_video"]
    assert torch.equal(positions[..., 30:, :], video_positions((1, HEIGHT, WIDTH), FPS, 32))
    timesteps = [run.traces[number].tensors["step0/call0/video_timesteps"].reshape(-1, 6)[:, 0] for number in range(4)]
    assert timesteps[0].tolist() == [0, 1, 1, 1, 1] and timesteps[1].tolist() == [1, 0, 0, 1, 1]
    assert timesteps[3].tolist() == pytest.approx([1, 0, 0, 1, 1, 0.2])


def test_a_mask_of_the_whole_is_cut(model: nn.Module) -> None:
    mask = torch.ones(1, 1, LATENTS, HEIGHT, WIDTH)
    mask[:, :, 5, 0], mask[:, :, 4] = 0, 0
    start = drawn(3, *zeros().shape)
    run = Watched(model, Steering(SIGMAS), start=start, conditions=conditions(mask=mask))
    assert torch.equal(run.video[:, :, 5, 0], start[:, :, 5, 0]) and torch.equal(run.video[:, :, 4], start[:, :, 4])
    assert not torch.equal(run.video[:, :, 5, 1], start[:, :, 5, 1])
    assert (mask[:, :, 5, 0] == 0).all() and mask.sum() == 6 * LATENTS - 9, "the caller's own stays as it was"
    own = conditions_of(parts(sounds())[1], conditions(mask=mask), start)
    assert own.mask.reshape(5, 6)[:, 0].tolist() == [1, 0, 0, 0, 1]


def test_renewed_sound_is_each_windows_own(model: nn.Module) -> None:
    run = Watched(model, Steering(SIGMAS), strength=0.4)
    assert [audio.frozen for audio in run.audio] == [True] * 4
    for number, audio in enumerate(run.audio):
        assert not torch.equal(audio.latent, run.heard[number].latent)
        told = run.traces[number].tensors["step0/call0/audio_timesteps"]
        torch.testing.assert_close(told, torch.full_like(told, 0.6))
    kept = Watched(model, Steering(SIGMAS))
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(kept.audio, kept.heard, strict=True))


def test_new_sound_for_a_kept_picture_is_made_alike_in_every_window(model: nn.Module) -> None:
    """The latent 0 of a later window is free and dropped, and so it does not make the picture one that is made: the
    same passes run, without a negative prompt, and the sound is told of a picture without noise."""
    start, run = drawn(3, *zeros().shape), {"guidance": Guidance(3, 1, 0.85, 3, (1,))}
    kept = replace(conditions(mask=torch.zeros(1, 1, LATENTS, HEIGHT, WIDTH)), negative=None)
    made = Watched(model, Steering(SIGMAS, **run), strength=0.0, start=start, conditions=kept)
    assert torch.equal(made.video, start)
    for number in range(len(WINDOWS)):
        told = made.traces[number].tensors
        assert "step0/call1/video_x0" not in told and told["step0/call0/video_sigma"] == 0
        assert not torch.equal(made.audio[number].latent, made.heard[number].latent)
    told = made.traces[1].tensors["step0/call0/video_timesteps"].reshape(5, -1)[:, 0]
    assert told.tolist() == [1, 0, 0, 0, 0], "latent 0 itself is still a free one"
    partly = torch.zeros(1, 1, LATENTS, HEIGHT, WIDTH)
    partly[:, :, -1] = 1
    with pytest.raises(InputError, match="negative prompt"):
        Watched(model, Steering(SIGMAS, **run), strength=0.0, start=start, conditions=replace(kept, mask=partly))


# Anchor, drift and a window's own seed


def with_all(heard: Sequence[AudioCondition], windows: Sequence[Window] = WINDOWS, **more: Any) -> list[WindowInputs]:
    return [replace(part, **more) for part in parts(heard, windows)]


def test_the_anchor_is_the_first_frame_in_every_window(model: nn.Module) -> None:
    run = Watched(model, Steering(SIGMAS), anchor=0.75)
    for number in (1, 2, 3):
        told = run.traces[number].tensors["step0/call0/video_timesteps"].reshape(5, -1)[:, 0]
        assert told.tolist() == pytest.approx([0.25, 0, 0, 1, 1])
    whole = Watched(model, Steering(SIGMAS), anchor=1.0)
    for number in (1, 2, 3):
        assert torch.equal(whole.entering(number)[:, :, :1], whole.video[:, :, :1])
    usual = Watched(model, Steering(SIGMAS))
    assert torch.equal(whole.video[:, :, :5], usual.video[:, :, :5]), "the first window is as without"
    assert not torch.equal(whole.video[:, :, 5], usual.video[:, :, 5])


@pytest.mark.parametrize("cut", [True, False])
def test_a_section_has_an_anchor_of_its_own(model: nn.Module, cut: bool) -> None:
    """Behind a hard cut, the latent 0 of its first window. A section that takes over the picture before it has none."""
    windows = cut_windows(frames_of(LATENTS), WindowSize(25, 1), [Border(6, cut)])
    sections = [int(window.new.start >= 6) for window in windows]
    begun = sections.index(1)
    film = [replace(p, anchor=1.0, section=n) for p, n in zip(parts(sounds(windows), windows), sections, strict=True)]
    traces = [Recorder() for _ in windows]
    video = sample_windows(
        model, zeros(), film, conditions(), Steering(SIGMAS), [Noise(4)], hooks=lambda n: Hooks(trace=traces[n])
    )[0]

    def first(number: int, when: str) -> Tensor:
        steps = sorted((name for name in traces[number].tensors if name.endswith(when)), key=step_of)
        return traces[number].tensors[steps[-1 if when == "out_video" else 0]][:, : HEIGHT * WIDTH]

    whole = video[:, :, :1].flatten(2).transpose(1, 2)
    assert torch.equal(first(1, "in_video"), whole)
    assert len(windows) > begun + 1
    assert not torch.equal(first(begun, "in_video"), whole), "it is free"
    for number in range(begun + 1, len(windows)):
        assert torch.equal(first(number, "in_video"), first(begun, "out_video")) == cut
        told = traces[number].tensors["step0/call0/video_timesteps"].flatten()[0]
        assert told == (0 if cut else 1)


def test_drift_pulls_what_is_as_in_the_first_window(model: nn.Module) -> None:
    """By the share where both are alike, not where something else is seen, and by less in between."""
    generator = torch.Generator().manual_seed(8)
    picture = torch.randn(1, CHANNELS, 1, HEIGHT, WIDTH, generator=generator)
    off = (picture - picture.mean((2, 3, 4), keepdim=True)).square().mean().sqrt()
    moves = torch.randn(1, CHANNELS, LATENTS, HEIGHT, WIDTH, generator=generator) * 0.01
    change = torch.zeros(HEIGHT, WIDTH)
    change[0, 0], change[0, 1], change[1, 2] = 0.2 * off, 1.2 * off, -0.75 * off
    film = with_all(sounds(), drift=0.5)

    def made(number: int) -> Sampled:
        place = WINDOWS[number]
        video = picture.expand(-1, -1, place.length - place.given, -1, -1) + moves[:, :, place.new]
        return Sampled(video + change * (number > 0), film[number].sound, Noise(1), video[:, :, :1])

    whole = sample_windows(None, zeros(), film, conditions(), Steering(SIGMAS), [Noise(1)],
                           keep=lambda make, number, *_: made(number))[0]  # fmt: skip
    left = (whole[:, :, WINDOWS[1].new] - moves[:, :, WINDOWS[1].new] - picture).mean((0, 1, 2))
    expected = change * (1 - 0.5 * torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.5]]))
    torch.testing.assert_close(left, expected, rtol=0.02, atol=0.01)
    assert torch.equal(whole[:, :, WINDOWS[0].new], made(0).video)
    spread = (whole[:, :, WINDOWS[2].new] - made(2).video).std(2)
    assert float(spread.nan_to_num().max()) < 1e-5, "what moves in a window moves as before"


def test_drift_does_not_touch_what_a_mask_keeps(model: nn.Module) -> None:
    """A latent with a noise mask and no source video, as other nodes make it."""
    start, mask = drawn(9, 1, CHANNELS, LATENTS, HEIGHT, WIDTH), torch.ones(1, 1, LATENTS, HEIGHT, WIDTH)
    mask[..., 0] = 0
    given = {"conditions": conditions(mask=mask), "start": start}
    pulled, free = (Watched(model, Steering(SIGMAS), drift=drift, **given).video for drift in (1.0, 0.0))
    assert torch.equal(pulled[..., 0], start[..., 0])
    assert torch.equal(pulled[:, :, :5], free[:, :, :5]) and not torch.equal(pulled[..., 1:], free[..., 1:])


def test_a_section_drifts_from_its_own_beginning(model: nn.Module) -> None:
    """The first window of a section is not pulled to another section's colours."""
    heard = sounds()
    film = [replace(part, drift=1.0, section=int(n >= 2)) for n, part in enumerate(parts(heard))]
    pulled = sample_windows(model, zeros(), film, conditions(), Steering(SIGMAS), [Noise(4)])[0]
    film[2] = replace(film[2], drift=0.0)
    same = sample_windows(model, zeros(), film, conditions(), Steering(SIGMAS), [Noise(4)])[0]
    assert torch.equal(pulled, same)


def frames_with(seed: int, mean: Tensor, deviation: Tensor) -> Tensor:
    """Latents of which each has these means and deviations of its channels."""
    noise = drawn(seed, 1, CHANNELS, LATENTS, HEIGHT, WIDTH)
    noise = (noise - noise.mean((3, 4), keepdim=True)) / noise.std((3, 4), keepdim=True, correction=0)
    return noise * deviation.view(1, -1, 1, 1, 1) + mean.view(1, -1, 1, 1, 1)


MEANS, DEVIATIONS = drawn(8, CHANNELS), drawn(9, CHANNELS).abs() + 0.5
ALONE = (Window(0, LATENTS),)


def added(
    change: float,
    filled: tuple[int, int],
    windows: Sequence[Window] = ALONE,
    sigmas: Tensor = SIGMAS,
    behind: int = LATENTS,
    share: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is sampled beside a given video, its channels wider, and their means off by `change` of the usual deviation
    → the film, what the windows made, and the given video. behind: the latent with which another section begins."""
    clean = frames_with(10, MEANS, DEVIATIONS)
    made = frames_with(11, MEANS + change * DEVIATIONS.square().mean().sqrt(), 1.1 * DEVIATIONS)
    new = torch.ones(1, 1, LATENTS, HEIGHT, WIDTH)
    new[:, :, slice(*filled)] = 0
    made = torch.where(new > 0, made, clean)
    film = [
        replace(part, joined=share, section=int(part.window.new.start >= behind))
        for part in parts(sounds(windows), windows)
    ]

    def kept(_: Any, number: int, *__: Any) -> Sampled:
        return Sampled(made[:, :, windows[number].new], film[number].sound, Noise(1), made[:, :, :1])

    given = replace(conditions(mask=new), clean=clean, filled=filled)
    whole = sample_windows(None, zeros(), film, given, Steering(sigmas), [Noise(1)], keep=kept)[0]
    return whole, made, clean


@pytest.mark.parametrize("windows", [ALONE, WINDOWS], ids=["clip", "windows"])
@pytest.mark.parametrize("filled", [(0, 5), (8, 11), (4, 7)])
def test_what_is_added_to_a_video_has_its_colours(filled: tuple[int, int], windows: Sequence[Window]) -> None:
    """Before it and behind it the channels have its means and deviations. Its own latents do not change."""
    whole, made, clean = added(0.3, filled, windows)
    assert torch.equal(whole[:, :, slice(*filled)], clean[:, :, slice(*filled)])
    wanted = MEANS[None, :, None].expand(1, -1, LATENTS), DEVIATIONS[None, :, None].expand(1, -1, LATENTS)
    torch.testing.assert_close((whole.mean((3, 4)), whole.std((3, 4), correction=0)), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made.mean((3, 4)), wanted[0], atol=0.1)
    half, _, _ = added(0.3, filled, windows, share=0.5)
    torch.testing.assert_close(half, (whole + made) / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "how"),
    [(1.1, {}), (0.3, {"share": 0.0}), (0.3, {"sigmas": torch.tensor([1.0, 0.8, 0.45])})],
    ids=["something else is seen", "switched off", "noise is left"],
)
def test_what_is_added_to_a_video_stays_as_it_is(change: float, how: dict[str, Any]) -> None:
    whole, made, _ = added(change, (0, 5), **how)
    assert torch.equal(whole, made)


def test_another_section_has_its_own_colours() -> None:
    whole, made, _ = added(0.3, (0, 3), WINDOWS, behind=WINDOWS[2].new.start)
    later = slice(WINDOWS[2].new.start, LATENTS)
    assert torch.equal(whole[:, :, later], made[:, :, later])
    assert not torch.allclose(whole[:, :, 3 : later.start], made[:, :, 3 : later.start], atol=0.1)


def test_a_window_with_its_own_seed_leaves_the_others_theirs(model: nn.Module) -> None:
    film = [replace(part, own=1 if number == 2 else None) for number, part in enumerate(parts(sounds()))]
    traces = [Recorder() for _ in WINDOWS]
    video, _, noises = sample_windows(
        model, zeros(), film, conditions(), Steering(SIGMAS), [Noise(4), Noise(77)],
        hooks=lambda number: Hooks(trace=traces[number]),
    )  # fmt: skip
    usual = Watched(model, Steering(SIGMAS))
    assert torch.equal(video[:, :, :7], usual.video[:, :, :7]) and not torch.equal(video[:, :, 7], usual.video[:, :, 7])
    entering = [unpatchify_video(trace.tensors["step0/in_video"], (5, HEIGHT, WIDTH)) for trace in traces]
    assert torch.equal(entering[3][:, :, 3:], usual.entering(3)[:, :, 3:])
    expected = torch.randn(1, 30, CHANNELS, generator=torch.Generator().manual_seed(77))
    assert torch.equal(entering[2][:, :, 3:], unpatchify_video(expected, (5, HEIGHT, WIDTH))[:, :, 3:])
    assert torch.equal(noises[0].state, usual.noise.state), "the second stage draws what it drew without"


def test_a_kept_window_has_the_renewed_noise_that_sampling_would_give(model: nn.Module, tmp_path: Path) -> None:
    """The third window has a seed of its own. Whether its section has one decides how many windows were drawn before
    from that stream, and so which noise restart sampling renews in it."""

    def film(streams: Sequence[int], folder: str) -> tuple[Tensor, KeptWindows]:
        own = max(streams) + 1
        asked = [replace(part, stream=stream) for part, stream in zip(parts(sounds()), streams, strict=True)]
        asked[2] = replace(asked[2], own=own)
        noises = [Noise(seed) for seed in (4, 5)[:own]] + [Noise(77)]
        steering, store = Steering(SIGMAS, restart=Restart()), KeptWindows(tmp_path / folder, resume=True)
        return sample_windows(model, zeros(), asked, conditions(), steering, noises, keep=store.of(""))[0], store

    film((0, 0, 1, 1), "kept")
    video, store = film((0, 0, 0, 0), "kept")
    assert torch.equal(video, film((0, 0, 0, 0), "new")[0]) and store.used == 2


# Sections


CUT = cut_windows(frames_of(LATENTS), SIZE, [Border(6, cut=True)])


def cut_film(model: nn.Module, sigmas: Tensor, start: Tensor, first_seed: int = 4, **changes: Any) -> Tensor:
    """A film with a hard cut at latent 6, behind which it has another prompt and another stream of noise."""
    film = [
        WindowInputs(window, sound, text(5) if window.new.start >= 6 else None, int(window.new.start >= 6))
        for window, sound in zip(CUT, sounds(CUT), strict=True)
    ]
    if changes.get("prompt"):
        film[-1] = replace(film[-1], positive=text(6))
    steering = Steering(sigmas, restart=Restart())
    guides = changes.get("guides", ())
    return sample_windows(model, start.clone(), film, conditions(*guides), steering, [Noise(first_seed), Noise(9)])[0]


@pytest.mark.parametrize("sigmas", [SIGMAS, torch.tensor([0.9, 0.4, 0.0])], ids=["first stage", "second stage"])
def test_nothing_before_a_hard_cut_acts_behind_it(model: nn.Module, sigmas: Tensor) -> None:
    assert [(w.start, w.given, w.stop) for w in CUT] == [(0, 0, 5), (2, 3, 6), (5, 1, 10), (7, 3, 11)]
    start = drawn(3, *zeros().shape) * (sigmas[0] < 1)
    usual, other = (
        cut_film(model, sigmas, start),
        cut_film(model, sigmas, start * (torch.arange(11) > 5)[:, None, None], 7),
    )
    assert torch.equal(usual[:, :, 6:], other[:, :, 6:])
    assert not torch.equal(usual[:, :, :6], other[:, :, :6])


def test_a_prompt_acts_in_its_own_window(model: nn.Module) -> None:
    usual, other = cut_film(model, SIGMAS, zeros()), cut_film(model, SIGMAS, zeros(), prompt=True)
    begin = CUT[-1].new.start
    assert torch.equal(usual[:, :, :begin], other[:, :, :begin])
    assert not any(torch.equal(usual[:, :, k], other[:, :, k]) for k in range(begin, LATENTS))


def test_an_image_behind_a_hard_cut_is_its_first(model: nn.Module) -> None:
    window = next(window for window in CUT if window.cut)
    guide = Guide(drawn(5, 1, CHANNELS, 1, HEIGHT, WIDTH), frames_of(6), 0.9)
    own = conditions_of(WindowInputs(window, sounds([window])[0]), conditions(guide), zeros())
    assert [each.frame for each in own.guides] == [0]
    soft = next(window for window in WINDOWS if window.frame_within(frames_of(6)) is not None)
    own = conditions_of(WindowInputs(soft, sounds([soft])[0]), conditions(guide), zeros())
    assert [each.frame + soft.first_frame for each in own.guides] == [41]
    usual, other = cut_film(model, SIGMAS, zeros()), cut_film(model, SIGMAS, zeros(), guides=[guide])
    assert torch.equal(usual[:, :, :6], other[:, :, :6]) and not torch.equal(usual[:, :, 6], other[:, :, 6])


def test_a_section_that_goes_on_from_the_first_frame_is_no_cut(model: nn.Module) -> None:
    """It begins at latent 1, so all that it is given is latent 0, which is the film's own there."""
    windows = cut_windows(frames_of(6), SIZE, [Border(1)])
    assert [(w.start, w.given, w.cut) for w in windows[:2]] == [(0, 0, False), (0, 1, False)]
    whole = drawn(3, *zeros(6).shape)
    own = conditions_of(WindowInputs(windows[1], sounds(windows)[1]), conditions(), whole)
    assert torch.equal(own.mask[0, 0, :, 0, 0], torch.tensor([0.0, *[1.0] * (windows[1].length - 1)]))
    assert torch.equal(start_of(windows[1], whole), whole[:, :, windows[1].whole])
    image = Guide(drawn(5, 1, CHANNELS, 1, HEIGHT, WIDTH), 1, 0.9)
    own = conditions_of(WindowInputs(windows[1], sounds(windows)[1]), conditions(image), whole)
    assert [each.frame for each in own.guides] == [1], "an image at its first frame does not take frame 0's place"

    def film(seed: int) -> Tensor:
        film = [replace(part, stream=int(n > 0)) for n, part in enumerate(parts(sounds(windows), windows))]
        return sample_windows(model, zeros(6), film, conditions(), Steering(SIGMAS), [Noise(seed), Noise(9)])[0]

    usual, other = film(4), film(7)
    assert not torch.equal(usual[:, :, 1:], other[:, :, 1:]), "what is before it acts on it"


def test_windows_of_a_source_that_are_kept_whole_run_no_pass(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are they pulled to the first window; and the others draw what they draw where every window runs."""
    source, mask = drawn(8, *zeros().shape), torch.ones(1, 1, LATENTS, HEIGHT, WIDTH)
    kept = slice(WINDOWS[1].new.start, WINDOWS[2].new.stop)
    mask[:, :, kept] = 0
    given = replace(conditions(mask=mask), clean=source)
    monkeypatch.setattr(in_windows, "DIFFERENT", 100.0)  # untrained windows show nothing alike
    short = Watched(model, Steering(SIGMAS), conditions=given, anchor=1.0, drift=0.5)
    assert {number for number, trace in short.traces.items() if trace.tensors} == {0, 3}
    assert torch.equal(short.video[:, :, kept], source[:, :, kept])
    monkeypatch.setattr(in_windows, "_kept_whole", lambda *_: False)
    run = Watched(model, Steering(SIGMAS), conditions=given, anchor=1.0, drift=0.5)
    assert all(trace.tensors for trace in run.traces.values()) and torch.equal(run.video, short.video)
    assert torch.equal(run.noise.state, short.noise.state)


def test_what_counts_as_kept_whole() -> None:
    first, later = WINDOWS[0], WINDOWS[1]
    mask, image = torch.zeros(1, 1, LATENTS, HEIGHT, WIDTH), Guide(zeros(1), 0, 1.0)
    kept = replace(conditions(mask=mask[:, :, : first.length]), clean=zeros(first.length))
    assert in_windows._kept_whole(first, kept) and in_windows._kept_whole(later, kept)
    opening, inside = replace(kept, guides=(image,)), replace(kept, guides=(replace(image, frame=8),))
    assert not in_windows._kept_whole(first, opening), "the image is another picture than the source's"
    assert in_windows._kept_whole(later, opening), "there it is the anchor, at a latent that is dropped"
    assert in_windows._kept_whole(first, inside)
    assert not in_windows._kept_whole(first, replace(opening, guides=(*inside.guides, image)))
    for other in ({"clean": None}, {"mask": None}, {"mask": kept.mask + 1}, {"audio": sounds(strength=0.5)[0]}):
        assert not in_windows._kept_whole(first, replace(kept, **other)), other


BEHIND = [Border(6, cut=True), Border(7)]
"""A hard cut, and a section that goes on so soon behind it that it could reach before it."""


# Of ways, seeds and drift, each stage has each value once in the usual suite.
PARTS = [
    pytest.param(way, seeded, drift, sigmas, marks=[pytest.mark.soak] * ((way == "restart") != bool(seeded) or usual))
    for sigmas, without in ((SIGMAS, 0.0), (torch.tensor([0.9, 0.4, 0.0]), 0.3))
    for drift in (0.0, 0.3)
    for seeded in (0, 1)
    for way in ("euler", "restart")
    for usual in ((drift == without) == bool(seeded),)
]


@pytest.mark.parametrize(("way", "seeded", "drift", "sigmas"), PARTS)
def test_a_part_of_a_film_is_what_the_whole_has_there(
    model: nn.Module, way: str, seeded: int, drift: float, sigmas: Tensor
) -> None:
    """Behind a hard cut, and before it; what is left out stays as it was, and so do its sound and its noise."""
    windows = cut_windows(frames_of(LATENTS), SIZE, BEHIND)
    sections = [(window.new.start >= 6) + (window.new.start >= 7) for window in windows]
    film = [
        WindowInputs(window, sound, text(5) if section else None, int(section > 0), None, section, 1.0, drift)
        for window, sound, section in zip(windows, sounds(windows, 0.4), sections, strict=True)
    ]
    film[-1] = replace(film[-1], own=2 if seeded else None)
    border, steering = sections.index(1), Steering(sigmas, **WAYS[way])
    noises = [Noise(4), Noise(9), Noise(77)]
    start = drawn(3, *zeros().shape) * (sigmas[0] < 1)
    here = torch.arange(LATENTS)[:, None, None] < 6

    def made(only: range | None, start: Tensor) -> tuple[Tensor, tuple[AudioCondition, ...], tuple[Any, ...]]:
        return sample_windows(model, start.clone(), film, conditions(), steering, noises, only=only)

    whole = made(None, start)
    first, second = made(range(border), start * here), made(range(border, len(film)), start * ~here)
    assert torch.equal(whole[0], torch.cat((first[0][:, :, :6], second[0][:, :, 6:]), dim=2))
    assert not first[0][:, :, 6:].any() and not second[0][:, :, :6].any()
    for number in range(len(film)):
        mine, other = (first, second) if number < border else (second, first)
        assert torch.equal(mine[1][number].latent, whole[1][number].latent)
        assert other[1][number].frozen and other[1][number].latent is film[number].sound.latent
    for stream, (mine, other) in enumerate([(first, second), (second, first)]):
        assert torch.equal(mine[2][stream].state, whole[2][stream].state) and other[2][stream].state is None


def test_the_sound_of_a_window_that_is_made_elsewhere_is_frozen_also_if_it_was_to_change_in_part() -> None:
    film = parts([replace(sound, mask=torch.ones(sound.latent.shape[2])) for sound in sounds()])
    made = sample_windows(None, zeros(), film, conditions(), Steering(SIGMAS), [Noise(4)], only=())[1]
    assert [sound.frozen for sound in made] == [True] * len(WINDOWS)
