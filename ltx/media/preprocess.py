"""Prepares the sound for the model: removes rumble, brings it to one loudness, and warns of sound that spoils a video.

`preprocess` changes only the copy that conditions the video; the finished file keeps the source's samples. It applies
one gain to the whole clip and limits the peaks. It does not compress the dynamics of a voice, because they move the
lips. All filters are FFmpeg's and shift no sample in time. `warnings` only inspects the sound. This module does not
read files, mix channels or resample.
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

TARGET = -16.0  # LUFS, the usual loudness of web video and podcasts; speech reaches it with little limiting
CEILING = -1.0  # dBFS, sample peak
MAX_GAIN = 20.0  # dB; room noise of a usual recording, -60 LUFS, then stays at or below -40
GATE = -70.0  # LUFS, the absolute gate of BS.1770; quieter sound is silence and is not raised
SUBSONIC = 10  # Hz, below hearing; the model's lowest band peaks at 46 Hz
SHORTEST = Fraction(1, 2)  # s; ebur128 needs a block of 0.4 s, and it rounds block sizes at odd sample rates
SLOWEST = 4000  # Hz; ebur128's filter turns at 1.7 kHz and gives no numbers where half the rate is below that
METER_TOP = 10.0  # LUFS; ebur128 says this of all louder sound

SILENCE = -60.0  # dBFS over 0.1 s; pauses in a usual recording are louder, and quieter sound moves nothing
LONG_SILENCE = 2.0  # s; pauses in speech and music are shorter
LOW_LEVEL = TARGET - MAX_GAIN - 3  # dBFS in each of two channels; `preprocess` cannot raise quieter sound to TARGET
CLIPPED, FULL_SCALE = 1e-3, 0.9999  # share of clipped samples: loud masters have less, speech 3 dB too loud 1 to 2 %
ONE_SIDED = 30.0  # dB between the channels; the crosstalk of a real stereo recording is louder
CANCELLING = -10.0  # dB, the mono mix against the channels: 0 for equal channels, -3 for unrelated ones
OFFSET = 0.01  # of full scale, as strong as quiet speech
DROP, STEADY = 50.0, 5  # dB lost within 10 ms, with 5 steady blocks of 10 ms on each side; voices drop by up to 37 dB
FADING = 6.0  # dB lost over those 50 ms, which makes the drop the end of a short fade-out
FLOOR = -90.0  # dBFS, silence in 16 bits; a drop from hiss to digital silence does not count as a break
STEP, ISOLATED = 0.05, 8.0  # size of a jump, and its ratio to the sharpest change within 10 ms; voices reach 5
BREAKS_A_SECOND = 1.0  # more breaks than this are the sound itself, for instance crackle or a square wave
LISTED = 3  # times that one sentence lists


def preprocess(track: Track) -> Track:
    """Returns the track without DC and rumble, at TARGET LUFS (gain at most MAX_GAIN), with peaks at or below CEILING.

    The number of samples, the rate and the channels stay the same, without a delay. Loudness is measured by BS.1770 on
    the stereo mix that the model hears, so a mono file and its stereo copy give the same result. Silence stays silence.
    Cut the track before this call and pad it afterwards, because the mean is subtracted and would shift the padding.
    Raises InputError if a sample is NaN or infinite.
    """
    waveform = track.waveform.detach().to("cpu", torch.float32)
    if not waveform.isfinite().all():
        raise InputError("audio: has NaN or infinite samples; export it again as 16- or 24-bit.")
    # The mean is removed first, because the high-pass starts from rest and would turn a constant into a thump. The
    # filter runs in both directions, so that it shifts no phase.
    waveform = waveform - waveform.double().mean(dim=1, keepdim=True).float()
    high_pass = ("highpass", {"frequency": str(SUBSONIC), "precision": "f64"})
    ceiling = 10 ** (CEILING / 20)
    limiter = ("alimiter", {"limit": str(ceiling), "level": "0", "latency": "1"})  # without make-up gain and delay
    waveform = _filter(waveform, track.rate, high_pass, ("areverse", {}), high_pass, ("areverse", {}))

    level = loudness(Track(waveform, track.rate, track.speakers))
    gain = min(TARGET - level, MAX_GAIN) if level > GATE else 0.0
    for last in (False, True):  # the limiter lowers the loudness a little; the second round adds that to the gain
        result = Track(waveform * 10 ** (gain / 20), track.rate, track.speakers)
        if result.waveform.abs().max() <= ceiling:
            break
        result = Track(_filter(result.waveform, track.rate, limiter), track.rate, track.speakers)
        if level > GATE and not last:
            gain = min(gain + TARGET - loudness(result), MAX_GAIN)
    return result


def loudness(track: Track) -> float:
    """Integrated loudness of the stereo mix in LUFS: BS.1770 by FFmpeg's ebur128, or plain power below SHORTEST or
    SLOWEST."""
    stereo = conditioning_track(track, track.waveform.shape[1], Fraction(track.rate)).waveform
    if track.seconds < SHORTEST or track.rate < SLOWEST:
        return float(_decibel(stereo.double().square().mean(dim=1).sum()))
    level = _measured(stereo, track.rate)
    if level < METER_TOP:
        return level
    peak = stereo.abs().max().clamp(min=1)
    return _measured(stereo / peak, track.rate) + float(_decibel(peak.square()))


def _measured(stereo: Tensor, rate: int) -> float:
    """What ebur128 says. Raises OSError if the folder for temporary files is full."""
    # The filter writes to a file, because Frame.metadata is newer than PyAV 14.2, the oldest version that ComfyUI
    # takes.
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "loudness.txt"
        printing = {"mode": "print", "key": "lavfi.r128.I", "file": str(file), "direct": "1"}
        _filter(stereo, rate, ("ebur128", {"metadata": "1"}), ("ametadata", printing))
        try:
            with file.open("ab") as end:  # on a full disk FFmpeg leaves lines out and says nothing
                end.write(b"\n")
        except OSError as error:
            raise OSError(f"{folder}: could not be written ({error.strerror}); is the disk full?") from error
        values = [line for line in file.read_text().splitlines() if line.startswith("lavfi.r128.I=")]
    return float(values[-1].partition("=")[2])


def _filter(waveform: Tensor, rate: int, *filters: tuple[str, dict[str, str]]) -> Tensor:
    """Applies FFmpeg's filters to [C, n], one after the other. The length must stay the same."""
    channels, samples = waveform.shape
    try:
        layout = av.AudioLayout({1: "mono", 2: "stereo"}.get(channels, f"{channels}c")).name
    except ValueError:  # FFmpeg knows no layout with this number of channels; the filters need none
        layout = f"{channels} channels"
    graph = av.filter.Graph()
    chain = [graph.add_abuffer(sample_rate=rate, format="flt", layout=layout, time_base=Fraction(1, rate))]
    chain += [graph.add(name, **options) for name, options in filters]
    chain += [graph.add("aformat", sample_fmts="flt"), graph.add("abuffersink")]
    graph.link_nodes(*chain).configure()

    packed = rearrange(waveform.numpy(), "c n -> 1 (n c)")  # because PyAV reads past the end of eight or more planes
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
    """Takes the blocks that the graph has finished."""
    blocks = []
    while True:
        try:
            blocks.append(graph.pull().to_ndarray())
        except (av.BlockingIOError, av.EOFError):
            return blocks


# Warnings


def warnings(track: Track, frames: int, fps: Fraction, *, levelled: bool = False) -> list[str]:
    """Returns one sentence for each problem of the sound that makes a video of `frames` static or jumpy, after those on
    what is damaged or missing in its file.

    Silence is searched in the track that the model hears, with the padding after its end; the other problems are
    searched in the track itself. levelled: `preprocess` will run; it removes a DC offset, so that needs no warning.
    """
    found = list(track.notes)
    track = Track(track.waveform.detach().to("cpu", torch.float32), track.rate, track.speakers)
    model_track = conditioning_track(track, frames, fps)
    source = soundtrack(track, frames, fps).waveform
    if not source.isfinite().all():
        return [*found, "The audio has NaN or infinite samples: export it again as 16- or 24-bit."]
    offset = source.double().mean(dim=1, keepdim=True).float()
    stereo = model_track.waveform.clone()
    stereo[:, : source.shape[1]] -= stereo[:, : source.shape[1]].mean(dim=1, keepdim=True)

    found += _silences(stereo, model_track.rate)
    power = stereo.double().square().mean(dim=1)
    if float(_decibel(power.max())) > SILENCE:
        found += _sides(stereo, power)
        found += _breaks(stereo[:, : source.shape[1]], model_track.rate)
    clipped = _clipped(source, model_track.rate)
    if clipped > CLIPPED:
        found.append(f"{clipped:.1%} of the audio's samples are clipped: record it again at a lower level.")
    if not levelled and offset.abs().max() > OFFSET:
        strongest = float(offset.flatten()[offset.abs().argmax()])
        found.append(f"The audio has a DC offset of {strongest:+.1%} of full scale: switch preprocess_audio on.")
    return found


def _decibel(power: Tensor) -> Tensor:
    return 10 * power.clamp(min=1e-12).log10()


def _levels(stereo: Tensor, block: int) -> Tensor:
    """Power in dBFS of each whole block, as the mean of the channels. A shorter waveform is one block."""
    block = min(block, stereo.shape[1])
    whole = stereo.shape[1] // block * block
    return _decibel(reduce(stereo[:, :whole].square(), "c (n b) -> n", "mean", b=block))


def _silences(stereo: Tensor, rate: int) -> list[str]:
    """Warnings of silence and of a level that is low from start to end."""
    levels = _levels(stereo, max(1, rate // 10))
    silent = levels < SILENCE
    if silent.all():
        return [f"The audio is silent, below {SILENCE:g} dBFS from start to end: it cannot move the picture."]
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
    """Warnings of one silent channel and of two channels that cancel each other."""
    left, right = _decibel(power).tolist()
    if abs(left - right) > ONE_SIDED:
        side = "left" if left > right else "right"
        return [f"Only the {side} channel of the audio has sound: make the file mono."]
    mono = stereo.double().mean(dim=0).square().mean()
    if float(_decibel(mono) - _decibel(power.mean())) < CANCELLING:
        return ["The audio's channels cancel each other (opposite phase): invert one of them or make the file mono."]
    return []


def _clipped(source: Tensor, rate: int) -> float:
    """Share of samples at full scale in the worst channel. It is 0 unless there are flat tops that a jump leads to.

    A full-scale sine has no such jump: before two neighbours above FULL_SCALE, its sample is above 0.999.
    """
    full = source.abs() >= FULL_SCALE
    corners = full[:, 2:] & full[:, 1:-1] & (source[:, :-2].abs() < 0.999)
    share = full.double().mean(dim=1)
    share[corners.sum(dim=1) < source.shape[1] / rate] = 0  # less than one per second
    return float(share.max())


def _breaks(stereo: Tensor, rate: int) -> list[str]:
    """A warning of sound that stops abruptly and of jumps in the waveform."""
    seconds = stereo.shape[1] / rate
    times = sorted(_drops(stereo, rate) + _jumps(stereo, rate))
    times = [t for t, before in zip(times, [-1.0, *times], strict=False) if t - before > 0.1]
    if not times or len(times) > max(1, BREAKS_A_SECOND * seconds):
        return []
    return [f"The audio breaks off abruptly at {_listed([f'{t:.2f} s' for t in times])}: the picture may jump there."]


def _drops(stereo: Tensor, rate: int) -> list[float]:
    """Times in seconds at which steady sound ends within one block of 10 ms."""
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
    """Times in seconds at which the waveform jumps between two samples, much more sharply than around them."""
    mono = stereo.mean(dim=0)
    around = max(8, rate // 100)
    if len(mono) < 4 * around:
        return []
    sharp = mono.diff().diff().abs()
    # A coarse search compares the sharpest change of each 2.5 ms with the median of its neighbours. Each candidate is
    # then checked exactly.
    block = around // 4
    most, at = sharp[: len(sharp) // block * block].reshape(-1, block).max(dim=1)
    usual = torch.nn.functional.pad(most[None], (4, 4), mode="replicate")[0].unfold(0, 9, 1).median(dim=1).values
    centres = (at + torch.arange(len(at)) * block)[(most >= STEP) & (most >= ISOLATED * usual)]
    centres = centres[(centres >= around + 2) & (centres < len(sharp) - around - 2)]
    if not len(centres) or len(centres) > 8 * BREAKS_A_SECOND * len(mono) / rate + 8:
        return []
    offsets = torch.cat([torch.arange(-around, -3), torch.arange(4, around + 1)])  # a jump spreads over a few samples
    near = centres[:, None] + offsets
    before, after = mono[near].square().tensor_split([around - 3], dim=1)
    # Sound on both sides is needed: the start of a sound is not a break.
    loud = _decibel(torch.minimum(before.mean(dim=1), after.mean(dim=1))) > LOW_LEVEL
    lone = sharp[centres] >= ISOLATED * sharp[near].amax(dim=1)
    return [(int(i) + 1) / rate for i in centres[loud & lone]]
