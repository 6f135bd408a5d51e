"""The sound on its way to the model: made clean and equally loud, and looked over for what spoils a video.

`preprocess` works on the conditioning copy alone; the track in the finished file stays the source's samples. One gain
for the whole clip and a peak limit: nothing here follows the voice, for its dynamics move the lips. Every filter is
FFmpeg's and leaves each sample in its place. `warnings` changes nothing. No reading, no mixing, no resampling.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor

from ..errors import InputError
from .audio import Track, conditioning_track, soundtrack

TARGET = -16.0  # LUFS: where web video and podcasts lie; speech gets there almost without the limiter
CEILING = -1.0  # dBFS, sample peak
MAX_GAIN = 20.0  # dB: room noise of a usual take, -60 LUFS, stays below -40
GATE = -70.0  # LUFS: BS.1770's own absolute gate; below it there is nothing to raise
SUBSONIC = 10  # Hz: below hearing; the model's lowest band peaks at 46 Hz
SHORTEST = Fraction(1, 2)  # s: ebur128 needs one block of 0.4 s, in steps it rounds at odd rates

SILENCE = -60.0  # dBFS over 0.1 s: the pauses of a usual take lie above it, and the model hears nothing to move to
LONG_SILENCE = 2.0  # s: pauses of speech and music are shorter
LOW_LEVEL = TARGET - MAX_GAIN - 3  # dBFS in each of two channels: more than `preprocess` makes up for
CLIPPED, FULL_SCALE = 1e-3, 0.9999  # share of samples there: loud masters stay below, speech 3 dB over has 1 to 2 %
ONE_SIDED = 30.0  # dB between the channels: crosstalk of a real stereo recording is louder
CANCELLING = -10.0  # dB, mono mix against the channels: 0 for equal ones, -3 for unrelated ones
OFFSET = 0.01  # of full scale: as strong as quiet speech
DROP, STEADY = 50.0, 5  # dB lost in 10 ms, after and before 50 ms so: voices stop by up to 37 dB, starts are natural
FADING = 6.0  # dB lost over those 50 ms: a fade-out, however short
FLOOR = -90.0  # dBFS, silence of 16 bits: a drop from hiss to nothing is no break
STEP, ISOLATED = 0.05, 8.0  # a jump of that much, and so many times as sharp as all within 10 ms; voices reach 5
BREAKS_A_SECOND = 1.0  # more of them are the sound itself: crackle, a square wave
LISTED = 3  # times named in one sentence


def preprocess(track: Track) -> Track:
    """The track without DC and rumble, at TARGET LUFS (gain at most MAX_GAIN), peaks at or below CEILING.

    Same samples, rate and channels, no delay. Loudness is BS.1770's, of the stereo mix that the model hears, so a mono
    file and its stereo copy come out alike. Silence stays silence. Cut before and pad after: padding would be shifted
    by the mean. Errors: InputError for samples that are no numbers.
    """
    waveform = track.waveform.detach().to("cpu", torch.float32)
    if not waveform.isfinite().all():
        raise InputError("audio: holds samples that are no numbers; export it again as 16- or 24-bit.")
    # The mean first: the high-pass starts from rest, and a constant would be a thump. Both directions: no phase shift.
    waveform = waveform - waveform.double().mean(dim=1, keepdim=True).float()
    once = ("highpass", {"frequency": str(SUBSONIC), "precision": "f64"})
    ceiling = 10 ** (CEILING / 20)
    limiter = ("alimiter", {"limit": str(ceiling), "level": "0", "latency": "1"})  # no make-up gain, no delay
    waveform = _filter(waveform, track.rate, once, ("areverse", {}), once, ("areverse", {}))

    level = loudness(Track(waveform, track.rate, track.speakers))
    gain = min(TARGET - level, MAX_GAIN) if level > GATE else 0.0
    for last in (False, True):  # the limiter takes a little loudness away: once more, with that added
        result = Track(waveform * 10 ** (gain / 20), track.rate, track.speakers)
        if result.waveform.abs().max() <= ceiling:
            break
        result = Track(_filter(result.waveform, track.rate, limiter), track.rate, track.speakers)
        if level > GATE and not last:
            gain = min(gain + TARGET - loudness(result), MAX_GAIN)
    return result


def loudness(track: Track) -> float:
    """Integrated loudness of the stereo mix in LUFS (BS.1770 by FFmpeg's ebur128); plain power below half a second."""
    stereo = conditioning_track(track, track.waveform.shape[1], Fraction(track.rate)).waveform
    if track.seconds < SHORTEST:
        return float(_decibel(stereo.double().square().mean(dim=1).sum()))
    # Frame.metadata came after PyAV 14.2, the oldest that ComfyUI asks for: the filter writes it to a file.
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "loudness.txt"
        written = {"mode": "print", "key": "lavfi.r128.I", "file": str(file), "direct": "1"}
        _filter(stereo, track.rate, ("ebur128", {"metadata": "1"}), ("ametadata", written))
        values = [line for line in file.read_text().splitlines() if line.startswith("lavfi.r128.I=")]
    return float(values[-1].partition("=")[2])


def _filter(waveform: Tensor, rate: int, *filters: tuple[str, dict[str, str]]) -> Tensor:
    """[C, n] through FFmpeg's filters one after another; the length must come out unchanged."""
    channels, samples = waveform.shape
    try:
        layout = av.AudioLayout({1: "mono", 2: "stereo"}.get(channels, f"{channels}c")).name
    except ValueError:  # no usual order for so many, and none is needed
        layout = f"{channels} channels"
    graph = av.filter.Graph()
    chain = [graph.add_abuffer(sample_rate=rate, format="flt", layout=layout, time_base=Fraction(1, rate))]
    chain += [graph.add(name, **options) for name, options in filters]
    chain += [graph.add("aformat", sample_fmts="flt"), graph.add("abuffersink")]
    graph.link_nodes(*chain).configure()

    packed = rearrange(waveform.numpy(), "c n -> 1 (n c)")  # PyAV reads past the end of eight or more planes
    blocks: list[np.ndarray] = []
    for begin in range(0, samples, rate):
        block = np.ascontiguousarray(packed[:, begin * channels : (begin + rate) * channels])
        frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
        graph.push(frame)
        blocks += _filtered(graph)
    graph.push(None)
    blocks += _filtered(graph)
    result = rearrange(np.concatenate(blocks, axis=1), "1 (n c) -> c n", c=channels)
    if result.shape[1] != samples:
        raise RuntimeError(f"FFmpeg's {filters[0][0]} made {result.shape[1]} samples of {samples}.")
    return torch.from_numpy(np.ascontiguousarray(result))


def _filtered(graph: av.filter.Graph) -> list[np.ndarray]:
    """What the graph has ready."""
    blocks = []
    while True:
        try:
            blocks.append(graph.pull().to_ndarray())
        except (av.BlockingIOError, av.EOFError):
            return blocks


# What spoils a video


def warnings(track: Track, frames: int, fps: Fraction, *, levelled: bool = False) -> list[str]:
    """One sentence for each thing in the sound beside `frames` of video that makes videos static or jumpy.

    Silence is looked for in what the model hears, the padding after the track's end included; all else in the track.
    levelled: `preprocess` is going to run, and what it takes away, a DC offset, needs no sentence.
    """
    track = Track(track.waveform.detach().to("cpu", torch.float32), track.rate, track.speakers)
    heard = conditioning_track(track, frames, fps)
    source = soundtrack(track, frames, fps).waveform
    if not source.isfinite().all():
        return ["The audio holds samples that are no numbers: export it again as 16- or 24-bit."]
    offset = source.double().mean(dim=1, keepdim=True).float()
    stereo = heard.waveform.clone()
    stereo[:, : source.shape[1]] -= stereo[:, : source.shape[1]].mean(dim=1, keepdim=True)

    found = _silences(stereo, heard.rate)
    power = stereo.double().square().mean(dim=1)
    if float(_decibel(power.max())) > SILENCE:
        found += _sides(stereo, power)
        found += _breaks(stereo[:, : source.shape[1]], heard.rate)
    clipped = _clipped(source, heard.rate)
    if clipped > CLIPPED:
        found.append(f"{clipped:.1%} of the audio's samples are clipped: record it again at a lower level.")
    if not levelled and offset.abs().max() > OFFSET:
        strongest = float(offset.flatten()[offset.abs().argmax()])
        found.append(f"The audio has a DC offset of {strongest:+.1%} of full scale: switch preprocess_audio on.")
    return found


def _decibel(power: Tensor) -> Tensor:
    return 10 * power.clamp(min=1e-12).log10()


def _levels(stereo: Tensor, block: int) -> Tensor:
    """Power in dBFS of each whole block, the mean of the channels; of everything where it is shorter."""
    block = min(block, stereo.shape[1])
    whole = stereo.shape[1] // block * block
    return _decibel(reduce(stereo[:, :whole].square(), "c (n b) -> n", "mean", b=block))


def _silences(stereo: Tensor, rate: int) -> list[str]:
    """Sentences about silence and a level that is low throughout."""
    levels = _levels(stereo, max(1, rate // 10))
    silent = levels < SILENCE
    if silent.all():
        return [f"The audio is silent, below {SILENCE:g} dBFS from start to end: nothing in it can move the picture."]
    found = []
    block = Fraction(max(1, rate // 10), rate)
    edges = torch.nn.functional.pad(silent.int(), (1, 1)).diff()
    runs = zip(edges.eq(1).nonzero().flatten().tolist(), edges.eq(-1).nonzero().flatten().tolist(), strict=True)
    long = [(float(a * block), float(b * block)) for a, b in runs if float((b - a) * block) >= LONG_SILENCE]
    if long:
        spans = _listed([f"{a:.1f} to {b:.1f} s" for a, b in long])
        found.append(f"The audio is silent from {spans}: the picture may stand still there.")
    loud = levels[~silent]
    level = float(_decibel((10 ** (loud / 10)).mean()))
    if level < LOW_LEVEL:
        found.append(
            f"The audio is very quiet, {level:.0f} dBFS where it is not silent: raise it by {-20 - level:.0f} dB."
        )
    return found


def _listed(items: list[str]) -> str:
    rest = len(items) - LISTED
    return ", ".join(items[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _sides(stereo: Tensor, power: Tensor) -> list[str]:
    """Sentences about one channel that is missing and two that cancel each other."""
    left, right = _decibel(power).tolist()
    if abs(left - right) > ONE_SIDED:
        side = "left" if left > right else "right"
        return [f"Only the {side} channel of the audio has sound: make the file mono."]
    mono = stereo.double().mean(dim=0).square().mean()
    if float(_decibel(mono) - _decibel(power.mean())) < CANCELLING:
        return ["The audio's channels cancel each other (opposite phase): invert one of them or make the file mono."]
    return []


def _clipped(source: Tensor, rate: int) -> float:
    """Share of samples at full scale in the worst channel; 0 without flat tops that are reached by a jump.

    A full-scale sine has neither: with two neighbours above FULL_SCALE the one before is above 0.999.
    """
    full = source.abs() >= FULL_SCALE
    corners = full[:, 2:] & full[:, 1:-1] & (source[:, :-2].abs() < 0.999)
    share = full.double().mean(dim=1)
    share[corners.sum(dim=1) < source.shape[1] / rate] = 0  # less than one a second
    return float(share.max())


def _breaks(stereo: Tensor, rate: int) -> list[str]:
    """A sentence about sound that stops dead, and about jumps within it."""
    seconds = stereo.shape[1] / rate
    times = sorted(_drops(stereo, rate) + _jumps(stereo, rate))
    times = [t for t, before in zip(times, [-1.0, *times], strict=False) if t - before > 0.1]
    if not times or len(times) > max(1, BREAKS_A_SECOND * seconds):
        return []
    return [f"The audio breaks off abruptly at {_listed([f'{t:.2f} s' for t in times])}: the picture may jump there."]


def _drops(stereo: Tensor, rate: int) -> list[float]:
    """Seconds at which steady sound is gone within one block of 10 ms."""
    block = max(1, rate // 100)
    levels = _levels(stereo, block).clamp(min=FLOOR)
    if len(levels) < 2 * STEADY + 1:
        return []
    windows = levels.unfold(0, STEADY, 1)
    before, after = windows[: -STEADY - 1], windows[STEADY + 1 :]
    lost = before.amin(dim=1) - after.amax(dim=1)
    fading = before[:, -1] < before.amax(dim=1) - FADING
    lost = lost.masked_fill(fading, 0)
    return [(int(i) + STEADY + 1) * block / rate for i in (lost >= DROP).nonzero()]


def _jumps(stereo: Tensor, rate: int) -> list[float]:
    """Seconds at which the waveform jumps from one sample to the next, as nothing around it does."""
    mono = stereo.mean(dim=0)
    around = max(8, rate // 100)
    if len(mono) < 4 * around:
        return []
    sharp = mono.diff().diff().abs()
    # Coarse: the sharpest of each 2.5 ms against the median of its neighbours. Then each one left, exactly.
    block = around // 4
    most, at = sharp[: len(sharp) // block * block].reshape(-1, block).max(dim=1)
    usual = torch.nn.functional.pad(most[None], (4, 4), mode="replicate")[0].unfold(0, 9, 1).median(dim=1).values
    centres = (at + torch.arange(len(at)) * block)[(most >= STEP) & (most >= ISOLATED * usual)]
    centres = centres[(centres >= around + 2) & (centres < len(sharp) - around - 2)]
    if not len(centres) or len(centres) > 8 * BREAKS_A_SECOND * len(mono) / rate + 8:
        return []
    offsets = torch.cat([torch.arange(-around, -3), torch.arange(4, around + 1)])  # the jump spreads over a few
    near = centres[:, None] + offsets
    before, after = mono[near].square().tensor_split([around - 3], dim=1)
    loud = _decibel(torch.minimum(before.mean(dim=1), after.mean(dim=1))) > LOW_LEVEL  # a start is no break
    lone = sharp[centres] >= ISOLATED * sharp[near].amax(dim=1)
    return [(int(i) + 1) / rate for i in centres[loud & lone]]
