"""The sounds of overlapping windows become one, without a click, a hole or a bump."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.media import crossfade
from a2v.ltx.media.audio import Track
from a2v.ltx.media.crossfade import FADE, join
from torch import Tensor

RATE = 48_000
STARTS = [Fraction(0), Fraction(4, 3), Fraction(8, 3)]
LENGTH = Fraction(49, 24)  # of each part: an overlap of 17 frames at 24 a second


def cut(waves: list[Tensor]) -> list[Track]:
    """The stretch of each wave that its window has."""
    spans = [(round(start * RATE), round(start * RATE) + round(LENGTH * RATE)) for start in STARTS]
    return [Track(wave[:, a:b], RATE) for wave, (a, b) in zip(waves, spans, strict=True)]


def time(seconds: float = 5.0) -> Tensor:
    return torch.arange(round(seconds * RATE)) / RATE


def tone(frequency: float, phase: float = 0.0, level: float = 0.5) -> Tensor:
    return (level * torch.sin(2 * torch.pi * (frequency * time() + phase))).expand(2, -1)


def hiss(seed: int) -> Tensor:
    return 0.1 * torch.randn(2, len(time()), generator=torch.Generator().manual_seed(seed))


def power(wave: Tensor, block: int = 480) -> np.ndarray:
    """Mean power of blocks of 10 ms."""
    whole = wave.shape[1] // block * block
    return wave[:, :whole].double().square().reshape(len(wave), -1, block).mean(dim=(0, 2)).numpy()


def test_parts_of_one_sound_give_that_sound() -> None:
    whole = tone(220) + hiss(1)
    joined = join(cut([whole] * 3), STARTS)
    assert joined.rate == RATE and joined.waveform.shape[1] == round(STARTS[2] * RATE) + round(LENGTH * RATE)
    torch.testing.assert_close(joined.waveform, whole[:, : joined.waveform.shape[1]], rtol=0, atol=1e-6)


def test_one_part_is_not_touched() -> None:
    track = Track(hiss(1), RATE)
    assert join([track], [Fraction(0)]) is track


@pytest.mark.parametrize("phase", [0.0, 0.13, 0.25, 0.5])
def test_no_click_where_the_waves_differ(phase: float) -> None:
    """A tone made anew has another phase; its steepest step is where a click would be."""
    joined = join(cut([tone(220, number * phase) for number in range(3)]), STARTS).waveform
    steepest = tone(220).diff().abs().max()
    assert joined.diff().abs().max() < 1.1 * steepest


def test_a_plain_cut_would_click() -> None:
    parts = cut([tone(220, number * 0.5) for number in range(3)])
    at = round(STARTS[1] * RATE) + 1000
    jump = parts[1].waveform[:, 1000] - parts[0].waveform[:, at - 1]
    assert jump.abs().max() > 10 * tone(220).diff().abs().max()


def test_unrelated_sounds_keep_their_power() -> None:
    """Noise of one level: no hole of 3 dB at a join, as a linear fade makes."""
    ratios = []
    for seed in range(20):
        joined = join(cut([hiss(3 * seed + number) for number in range(3)]), STARTS).waveform
        blocks = power(joined)
        usual = np.median(blocks)
        ratios.append(blocks / usual)
    mean = np.mean(ratios, axis=0)
    assert abs(10 * np.log10(mean)).max() < 0.6, "over all joins and blocks"


@pytest.mark.parametrize(("phase", "correlation"), [(0, 1), (1 / 6, 0.5), (1 / 4, 0), (1 / 2, 0)])
@pytest.mark.parametrize("level", [0.001, 0.9])
def test_how_alike_two_waves_are(phase: float, correlation: float, level: float) -> None:
    """Of tones it is the cosine of their distance; what cancels counts as unrelated, and silence is like everything."""
    alike = crossfade._correlation(tone(100, level=level), tone(100, phase, level))
    assert alike == pytest.approx(correlation, abs=1e-3)
    assert crossfade._correlation(tone(100), tone(100, level=0)) == 1


def test_it_is_short_and_within_the_overlap() -> None:
    """All that is not in the fade is one part's or the other's, to the bit."""
    waves = [hiss(1), hiss(2), hiss(3)]
    joined = join(cut(waves), STARTS).waveform
    same = torch.stack([(joined == wave[:, : joined.shape[1]]).all(dim=0) for wave in waves])
    mixed = (~same.any(dim=0)).nonzero().flatten() / RATE
    assert 0 < len(mixed) <= 2 * round(FADE * RATE)
    overlaps = [(float(start), float(before + LENGTH)) for before, start in pairwise(STARTS)]
    assert all(any(a <= each <= b for a, b in overlaps) for each in mixed.tolist())
    order = same.float().argmax(dim=0)[same.any(dim=0)]
    assert (order.diff() >= 0).all(), "the parts follow each other"


def test_it_is_where_they_differ_least() -> None:
    """Two loud unrelated sounds with a shared pause of 60 ms in their overlap are joined in the pause."""
    waves = [hiss(1), hiss(2), hiss(3)]
    pause = slice(round(1.7 * RATE), round(1.76 * RATE))
    for wave in waves:
        wave[:, pause] = 0
    joined = join(cut(waves), STARTS).waveform
    assert torch.equal(joined[:, : pause.start], waves[0][:, : pause.start])
    after = slice(pause.stop, round(2.5 * RATE))
    assert torch.equal(joined[:, after], waves[1][:, after])


def test_silence_is_joined() -> None:
    joined = join(cut([torch.zeros(1, len(time()))] * 3), STARTS).waveform
    assert (joined == 0).all()


def test_behind_a_hard_cut_there_may_be_a_gap() -> None:
    """Silence fills it, and both sides fade: no step is steeper than the sound's own."""
    wave = tone(220)
    joined = join([Track(wave[:, :48000], RATE), Track(wave[:, 48960:96000], RATE)], [Fraction(0), Fraction(102, 100)])
    assert joined.waveform.shape[1] == 96000 and (joined.waveform[:, 48000:48960] == 0).all()
    assert joined.waveform.diff().abs().max() < 1.2 * wave.diff().abs().max()
    assert torch.equal(joined.waveform[:, 50000:], wave[:, 50000:96000])


@pytest.mark.parametrize("second", [Fraction(1, 24), Fraction(1, 2), Fraction(1)])
def test_a_short_window_begins_before_the_fade_above_ends(second: Fraction) -> None:
    """As behind a section that is as long as the overlap: the first two sounds differ least near the end of theirs."""
    waves, pause = [hiss(1), hiss(2), hiss(3)], slice(round(1.9 * RATE), round(1.98 * RATE))
    for wave in waves[:2]:
        wave[:, pause] = 0
    starts = [Fraction(0), second, second + Fraction(1, 3)]
    ends = [2, Fraction(5, 2), 3]
    spans = [slice(round(start * RATE), round(end * RATE)) for start, end in zip(starts, ends, strict=True)]
    joined = join([Track(w[:, s], RATE) for w, s in zip(waves, spans, strict=True)], starts).waveform
    assert joined.shape[1] == 3 * RATE
    assert torch.equal(joined[:, : pause.start], waves[0][:, : pause.start])
    assert torch.equal(joined[:, spans[1].stop :], waves[2][:, spans[1].stop : 3 * RATE])
    same = torch.stack([(joined == wave[:, : joined.shape[1]]).all(dim=0) for wave in waves])
    assert (~same.any(dim=0)).sum() <= 2 * round(FADE * RATE), "all else is one part's or another's, to the bit"


def test_refused() -> None:
    one = Track(torch.zeros(1, 100), 1000)
    with pytest.raises(InputError, match="differ in rate"):
        join([one, Track(torch.zeros(1, 100), 2000)], [Fraction(0), Fraction(1, 20)])
