"""Properties that hold for every input, looked for by hypothesis: the plan, the schedules, the request, the latents.

The usual suite tries some dozens of examples of each; `make soak` some thousands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from a2v.api.applications.audio_to_video import AUDIO_TO_VIDEO
from a2v.api.applications.inputs import STRANGERS
from a2v.ltx.diffusion.schedules import SCHEDULES
from a2v.ltx.errors import InputError
from a2v.ltx.grid import SHORTEST_SOUND, audio_length, video_shape
from a2v.ltx.latents import Noise, patchify_video, unpatchify_video, video_positions
from a2v.ltx.media.audio import MAX_RATE, MIN_RATE, Track, conditioning_track, frames_for_audio, soundtrack
from a2v.ltx.media.rates import NTSC_TOLERANCE, frame_rate
from a2v.ltx.plan import MAX_AREA, choose_frames, plan, round_frames, snap_size
from a2v.ltx.request import MAX_FRAMES, PARAMETERS, Request, parse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}
FPS = st.floats(0.01, 1000) | st.sampled_from([23.976, 24.0, 25.0, 29.97, 30.0, 59.94, 1.0, 60.0, 1000.0])
SIDE = st.integers(1, 2**16)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
VALUE = JSON | st.integers(-10, 10_000) | st.sampled_from([c for p in PARAMETERS.values() for c in p.choices])
SIZE = st.fixed_dictionaries({}, optional={"width": SIDE | JSON, "height": SIDE | JSON})


def track(samples: int, rate: int) -> Track:
    """Of any length, in the memory of one sample."""
    return Track(torch.zeros(1, 1).expand(1, samples), rate)


def one_sentence(error: InputError) -> None:
    text = str(error)
    assert text and "\n" not in text and text.rstrip().endswith((".", "?")), text
    assert len(text) < 2000, text


# Each property by itself; the two tests below try it.

PROPERTIES: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {}


def prop(**strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def keep(function: Callable[..., None]) -> Callable[..., None]:
        PROPERTIES[function.__name__] = function, strategies
        return function

    return keep


@prop(frames=st.integers(-(10**9), 10**9))
def frames_round_up_to_the_next_8k_plus_1(frames: int) -> None:
    rounded = round_frames(frames)
    assert rounded % 8 == 1 and rounded >= max(frames, 1) and rounded - max(frames, 1) < 8
    assert round_frames(rounded) == rounded


@prop(fps=FPS)
def a_rate_is_near_what_was_asked_and_written_exactly(fps: float) -> None:
    rate = frame_rate(fps)
    assert rate > 0 and rate.denominator <= 1001
    assert abs(float(rate) - fps) <= max(NTSC_TOLERANCE * fps, 1 / 1001)


@prop(samples=st.integers(1, 2**40), rate=st.integers(MIN_RATE, MAX_RATE), fps=FPS)
def no_more_than_half_a_frame_of_the_sound_is_cut(samples: int, rate: int, fps: float) -> None:
    exact = frame_rate(fps)
    frames = frames_for_audio(track(samples, rate), exact)
    heard = Fraction(samples, rate) * exact
    assert frames % 8 == 1 and frames >= 9
    assert frames + Fraction(1, 2) >= heard
    assert frames == 9 or frames - 8 + Fraction(1, 2) < heard  # eight fewer would cut more


@prop(samples=st.integers(1, 2**40), rate=st.integers(MIN_RATE, MAX_RATE), fps=FPS, match=st.booleans(),
      asked=st.integers(1, 2**16))  # fmt: skip
def the_clip_fits_or_one_sentence_says_why(samples: int, rate: int, fps: float, match: bool, asked: int) -> None:
    exact = frame_rate(fps)
    try:
        frames, notes = choose_frames(track(samples, rate), exact, match, asked)
    except InputError as error:
        one_sentence(error)
        longest = MAX_FRAMES if match else asked + 8
        heard = (frames_for_audio(track(samples, rate), exact) if match else round_frames(asked)) / exact
        assert longest / exact > 600 or longest / exact * rate > 2**27 or heard <= SHORTEST_SOUND
        return
    assert frames % 8 == 1 and SHORTEST_SOUND < frames / exact <= 600
    assert frames <= MAX_FRAMES if match else frames == round_frames(asked)
    said = " ".join(notes)
    kept = Fraction(frames) / exact
    if match:
        assert ("ends after" in said) == (frames_for_audio(track(samples, rate), exact) > MAX_FRAMES)
    else:
        assert ("silence follows" in said) == (float(Fraction(samples, rate)) < float(kept))


@prop(width=SIDE, height=SIDE, two=st.booleans())
def a_size_lies_on_the_grid_and_within_the_area(width: int, height: int, two: bool) -> None:
    grid = 64 if two else 32
    w, h = snap_size(width, height, two)
    assert w % grid == h % grid == 0 and min(w, h) >= grid
    up = -(-width // grid) * grid, -(-height // grid) * grid
    if math.prod(up) <= MAX_AREA:
        assert (w, h) == up
    else:
        assert w * h <= MAX_AREA or min(w, h) == grid
        assert w <= up[0] and h <= up[1]


@prop(k=st.integers(0, 60), rows=st.integers(1, 8), columns=st.integers(1, 8), fps=FPS)
def tokens_cover_the_clip_without_a_gap(k: int, rows: int, columns: int, fps: float) -> None:
    exact = frame_rate(fps)
    shape = video_shape(8 * k + 1, 32 * rows, 32 * columns)
    assert shape == (k + 1, rows, columns)
    spans = video_positions(shape, exact)[0].reshape(3, *shape, 2)
    time = spans[0, :, 0, 0]
    assert time[0, 0] == 0 and torch.equal(time[1:, 0], time[:-1, 1])
    assert float(time[-1, 1]) == pytest.approx(float((8 * k + 1) / exact), rel=1e-6)
    assert float(spans[1].max()) == 32 * rows and float(spans[2].max()) == 32 * columns
    latent = torch.arange(float((k + 1) * rows * columns)).reshape(1, 1, *shape)
    assert torch.equal(unpatchify_video(patchify_video(latent), shape), latent)
    assert abs(audio_length(8 * k + 1, exact) - float((8 * k + 1) / exact) * 25) <= 0.5 + 1e-9


@prop(channels=st.integers(1, 10), samples=st.integers(1, 3000), rate=st.integers(MIN_RATE, 4000),
      frames=st.integers(1, 60), fps=st.floats(1, 60))  # fmt: skip
def the_two_copies_of_the_sound_have_their_lengths(
    channels: int, samples: int, rate: int, frames: int, fps: float
) -> None:
    exact = frame_rate(fps)
    whole = Track(torch.randn(channels, samples), rate)
    wanted = round(Fraction(frames) / exact * rate)
    if wanted == 0:
        return
    kept, heard = soundtrack(whole, frames, exact), conditioning_track(whole, frames, exact)
    assert torch.equal(kept.waveform, whole.waveform[:, :wanted])
    assert heard.waveform.shape == (2, wanted) and heard.waveform.isfinite().all()
    assert not heard.waveform[:, samples:].any()


@prop(name=st.sampled_from(sorted(SCHEDULES)), steps=st.integers(1, 10_000))
def a_schedule_falls_from_1_to_0(name: str, steps: int) -> None:
    sigmas = SCHEDULES[name](steps)
    assert sigmas.dtype == torch.float32 and sigmas.ndim == 1 and 2 <= len(sigmas) <= steps + 1
    assert len(sigmas) == steps + 1 or name == "beta"
    assert float(sigmas[0]) == pytest.approx(1, abs=1e-6) and float(sigmas[-1]) == 0
    assert (sigmas.diff() < 0).all() if steps <= 1000 else (sigmas.diff() <= 0).all()  # float32 has no more room
    assert (sigmas[:-1] > 0).all()


@prop(name=st.sampled_from(sorted(SCHEDULES)), steps=st.integers(-100, 0))
def no_steps_are_refused(name: str, steps: int) -> None:
    with pytest.raises(InputError, match="num_inference_steps") as error:
        SCHEDULES[name](steps)
    one_sentence(error.value)


@prop(seed=st.integers(), counts=st.lists(st.integers(1, 20), min_size=2, max_size=4))
def noise_goes_on_where_it_stopped(seed: int, counts: list[int]) -> None:
    shapes = [(count, 3) for count in counts]
    together, _ = Noise(seed).draw(*shapes)
    apart, stream = [], Noise(seed)
    for shape in shapes:
        (drawn,), stream = stream.draw(shape)
        apart.append(drawn)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    assert torch.equal(Noise(seed % 2**64).draw((5,))[0][0], Noise(seed).draw((5,))[0][0])


def checked(values: Any) -> Request | None:
    try:
        request = parse(values)
    except InputError as error:
        one_sentence(error)
        return None
    for name, parameter in PARAMETERS.items():
        value = getattr(request, name)
        if parameter.kind in ("number", "integer"):
            assert math.isfinite(value) and not isinstance(value, bool), (name, value)
            for limit, sign in ((parameter.hard_minimum, 1), (parameter.hard_maximum, -1)):
                assert limit is None or sign * value >= sign * limit, (name, value)
        if parameter.kind == "choice":
            assert value in parameter.choices
        if parameter.kind == "switch":
            assert isinstance(value, bool)
    json.dumps(request.seed)
    return request


@prop(values=JSON)
def any_json_is_a_request_or_one_sentence(values: Any) -> None:
    checked(values)


@prop(
    values=st.fixed_dictionaries(
        {"prompt": st.text(max_size=20)}, optional={name: VALUE for name in PARAMETERS if name != "prompt"}
    )
)
def any_values_are_a_request_or_one_sentence(values: dict[str, Any]) -> None:
    checked(values)


@prop(
    values=st.fixed_dictionaries(
        {"prompt": st.just("x"), "match_audio_length": st.booleans(), "use_multiscale": st.booleans()},
        optional={"fps": FPS, "num_frames": st.integers(1, 2**16), "video_size": SIZE | st.just("auto")},
    ),
    samples=st.integers(1, 2**32),
    rate=st.integers(MIN_RATE, MAX_RATE),
    image=st.none() | st.tuples(st.integers(1, 16384), st.integers(1, 16384)),
)  # fmt: skip
def a_plan_can_be_carried_out(values: dict[str, Any], samples: int, rate: int, image: tuple[int, int] | None) -> None:
    request = checked(values)
    if request is None:
        return
    try:
        planned = plan(request, track(samples, rate), (image, None))
    except InputError as error:
        one_sentence(error)
        return
    grid = 64 if request.use_multiscale else 32
    assert planned.width % grid == planned.height % grid == 0
    assert video_shape(planned.frames, *planned.first_size[::-1])
    assert planned.fps == frame_rate(request.fps)


@pytest.mark.parametrize("name", ("\n", "", "a b", "x" * 10**6, "\ud800"), ids=range(5))
def test_any_name_is_told_on_one_line(name: str) -> None:
    with pytest.raises(InputError, match="no such parameter") as error:
        parse({"prompt": "x", name: 1})
    one_sentence(error.value)


def test_of_names_without_number_some_are_told() -> None:
    strangers = {f"video_size{number}": number for number in range(1000)}
    notes = AUDIO_TO_VIDEO.check({"prompt": "x", "audio_url": "https://example.com/a.wav", **strangers}).notes
    assert len(notes) == STRANGERS + 1 and "did you mean video_size?" in notes[0]
    assert notes[-1] == f"{1000 - STRANGERS} more names are no inputs and were passed over"


def run(name: str, examples: int) -> None:
    check, strategies = PROPERTIES[name]
    settings(max_examples=examples, **QUIET)(given(**strategies)(check))()


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name: str) -> None:
    run(name, 60)


@pytest.mark.soak
@pytest.mark.parametrize("name", PROPERTIES)
def test_property_at_length(name: str) -> None:
    run(name, 5000)
