"""Makes upright SDR pictures of decoded video frames: deinterlaced, in RGB, with square pixels, by the stream's tags.

A frame without colour tags counts as BT.601 with limited range: FFmpeg, the official pipelines and ComfyUI read and
write such files so. HDR is brought to SDR by a curve that is the same for every frame, so that nothing flickers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import av
import numpy as np
import torch

from .images import check_size

# ITU-T H.273 code points. 2 is unspecified.
MATRICES = {
    1: "bt709", 4: "fcc", 5: "bt470", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 10: "bt2020", 2: "bt601", 3: "bt601",
}  # fmt: skip
BT2020 = 9  # primaries
PQ, HLG = 16, 18  # transfers
FULL, LIMITED = 2, 1  # FFmpeg's numbers of ranges
RANGES = {FULL: "pc", LIMITED: "tv"}
DISPLAY_MATRIX, SIDE_DATA = 6, 64  # FFmpeg's number of that kind of side data, and more than it has kinds
FLAGS = "bilinear"  # as PyAV's own conversion, which the official pipelines use; `accurate_rnd` would give other pixels

# Linear RGB with the primaries of BT.2020 → with those of BT.709 (ITU-R BT.2087).
TO_BT709 = torch.tensor([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
LUMA_2020 = torch.tensor([0.2627, 0.6780, 0.0593])
WHITE, PEAK = 203.0, 1000.0  # nits: the reference white of ITU-R BT.2408, and the level that becomes SDR's white
KNEE = 0.75  # share of the reference white below which HDR keeps its brightness
SCREEN = 2.4  # gamma of an SDR screen (ITU-R BT.1886)


def of_fields(frame: Any, stream: Any) -> bool:
    """Whether a frame is one field of its picture, and has half its rows. FFmpeg joins the fields of other codecs, and
    calls a frame of HEVC interlaced only if it is one."""
    return frame.interlaced_frame and stream.codec_context.name == "hevc"


def joined(frames: Iterable[Any], stream: Any) -> Iterator[Any]:
    """The same frames. Two fields become one frame with the first one's time; one that is alone stands for both."""
    waiting, tops, weavers = None, None, {}

    def pair(first: Any, second: Any, top: bool) -> Any:
        kind = first.width, first.height, first.format.name, top
        if kind not in weavers:
            weavers[kind] = _graph(first, ("weave", f"first_field={'top' if top else 'bottom'}"))
        time, base = first.pts, first.time_base
        for field in (first, second):
            weavers[kind].push(field)
        whole = weavers[kind].pull()
        whole.pts, whole.time_base = time, base
        return whole

    for frame in frames:
        if not of_fields(frame, stream):
            yield frame
            continue
        tops = tops or _graph(frame, ("select", "eq(interlace_type\\,TOPFIRST)"))
        top = _passes(tops, frame)
        if waiting is not None and waiting[1] != top:
            yield pair(waiting[0], frame, waiting[1])
            waiting = None
        else:
            if waiting is not None:
                yield pair(waiting[0], waiting[0], waiting[1])
            waiting = frame, top
    if waiting is not None:
        yield pair(waiting[0], waiting[0], waiting[1])


def _passes(graph: Any, frame: Any) -> bool:
    """Whether a graph lets a frame through."""
    graph.push(frame)
    try:
        graph.pull()
    except av.error.BlockingIOError:
        return False
    return True


class Deinterlacer:
    """Frames of one stream in order → the same frames, of which those that are marked as interlaced are whole pictures.

    FFmpeg's bwdif makes one picture of both fields, the first field's at its own time. Frames before the first
    interlaced one pass unchanged; each later one waits for the frame after it.
    """

    def __init__(self) -> None:
        self.graph: Any = None
        self.kind: tuple[Any, ...] = ()
        self.used = False

    def __call__(self, frame: Any | None) -> Iterator[tuple[Any, Fraction]]:
        """Yields (frame, time in seconds); with None, the frames that were waiting. `frame.pts` and its time base are
        set."""
        if frame is None:
            yield from self._end()
            return
        kind = (frame.width, frame.height, frame.format.name, frame.time_base)
        if self.graph is not None and kind != self.kind:
            yield from self._end()
        if self.graph is None and not frame.interlaced_frame:
            yield frame, frame.pts * Fraction(frame.time_base)
            return
        if self.graph is None:
            self.graph, self.kind, self.used = _graph(frame, ("bwdif", "mode=send_frame:deint=interlaced")), kind, True
        self.graph.push(frame)
        yield from self._pulled()

    def _end(self) -> Iterator[tuple[Any, Fraction]]:
        if self.graph is not None:
            self.graph.push(None)
            yield from self._pulled()
        self.graph = None

    def _pulled(self) -> Iterator[tuple[Any, Fraction]]:
        while True:
            try:
                frame = self.graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            # bwdif counts in halves of the ticks that it gets.
            yield frame, frame.pts * Fraction(self.kind[-1]) / 2


class Developer:
    """Frames of one stream → uint8 RGB [H, W, 3]. name: the file, for messages; aspect: width / height of a pixel.

    All pictures have the size of the first frame that is settled or developed. notes: what was converted, for the
    report.
    """

    def __init__(self, name: str, aspect: Fraction | None) -> None:
        self.name, self.aspect = name, aspect or Fraction(1)
        self.size: tuple[int, int] | None = None  # width and height before the picture is turned upright
        self.kind: tuple[Any, ...] = ()
        self.graph: Any = None
        self.notes: list[str] = []

    def __call__(self, frame: Any) -> np.ndarray:
        """Raises InputError if the picture is too large."""
        transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
        wide = transfer in (PQ, HLG) or primaries == BT2020
        kind = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range), wide)
        if kind != self.kind:
            self.graph, self.kind = self._converter(frame, wide), kind
        self.graph.push(frame)
        pixels = self.graph.pull().to_ndarray()
        if wide:
            name = {PQ: "HDR (PQ)", HLG: "HDR (HLG)"}.get(transfer, "the wide colours of BT.2020")
            self._note(f"{name} was brought to SDR")
            pixels = to_sdr(pixels, transfer)
        elif pixels.shape[2] == 4:  # transparent parts are black, as in images.py
            pixels = (pixels[..., :3].astype(np.uint16) * pixels[..., 3:] + 127) // 255
        return np.ascontiguousarray(upright(pixels.astype(np.uint8, copy=False), frame))

    def settled(self, frame: Any) -> Any:
        """The frame, whose size all pictures have if it is the first one. Raises InputError if that is too large."""
        if self.size is None:
            width, height = frame.width, frame.height
            if self.aspect > 1:
                width = max(1, round(width * self.aspect))
            else:
                height = max(1, round(height / self.aspect))
            check_size(self.name, width, height)
            self.size = width, height
        return frame

    def _converter(self, frame: Any, wide: bool) -> Any:
        self.settled(frame)
        check_size(self.name, frame.width, frame.height)
        options = f"w={self.size[0]}:h={self.size[1]}:flags={FLAGS}"
        alpha = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
        if not frame.format.is_rgb and frame.format.name != "pal8":
            options += f":in_color_matrix={MATRICES.get(int(frame.colorspace), 'bt601')}"
            full = "pc" if frame.format.name.startswith("yuvj") else ""
            if range_ := RANGES.get(int(frame.color_range), full):
                options += f":in_range={range_}"
        return _graph(frame, ("scale", options), ("format", "rgb48le" if wide else "rgba" if alpha else "rgb24"))

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _graph(frame: Any, *filters: tuple[str, str]) -> Any:
    """A chain of filters for frames like this one."""
    graph = av.filter.Graph()
    base = Fraction(frame.time_base or Fraction(1, 1000))
    source = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={base}"
    # FFmpeg wants to know matrix and range here, if a frame names them.
    space, range_ = int(frame.colorspace), int(frame.color_range)
    source += f":colorspace={space}:range={range_}"
    chain = [graph.add("buffer", source), *(graph.add(name, options) for name, options in filters)]
    chain.append(graph.add("buffersink"))
    for one, following in pairwise(chain):
        one.link_to(following)
    graph.configure()
    return graph


def matrix_of(frame: Any) -> tuple[int, int, int, int]:
    """The signs (a, b, c, d) of a frame's display matrix, to the nearest quarter turn: a pixel at (x, y) is shown at
    (a·x + c·y, b·x + d·y). Without one, (1, 0, 0, 1)."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")  # PyAV 19 iterates over the kinds, 18 over the data
    except ValueError:  # PyAV has no name for another kind beside it, such as a photo's EXIF
        matrix = _only_turned(frame).side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
    if abs(b) > abs(a):
        return 0, 1 if b > 0 else -1, 1 if c > 0 else -1, 0
    return 1 if a >= 0 else -1, 0, 0, 1 if d >= 0 else -1


def _only_turned(frame: Any) -> Any:
    """The frame without side data of any other kind than its display matrix."""
    others = (number for number in range(SIDE_DATA) if number != DISPLAY_MATRIX)
    graph = _graph(frame, *(("sidedata", f"mode=delete:type={number}") for number in others))
    graph.push(frame)
    return graph.pull()


def upright(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """[H, W, C] as the frame's display matrix shows it: turned by quarters, mirrored."""
    a, b, c, d = matrix_of(frame)
    if b:
        pixels = pixels.transpose(1, 0, 2)
        a, d = c, b
    return pixels[:: d or 1, :: a or 1]


# HDR


def to_sdr(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """uint16 RGB [H, W, 3] with the primaries of BT.2020 → uint8 RGB for an SDR screen with those of BT.709.

    PQ and HLG (ITU-R BT.2100, for a screen of 1000 nits) keep their brightness up to three quarters of the reference
    white; above, a curve ends at white for PEAK. It scales the three channels alike, so that hues stay.
    """
    light = _light(transfer)[torch.from_numpy(pixels.astype(np.int32)).flatten(0, 1)]
    if transfer == HLG:
        luma = (light @ LUMA_2020)[:, None]
        light *= luma.clamp_(min=1e-6).pow_(0.2).mul_(PEAK / WHITE)
    light = (light @ TO_BT709.T).clamp_(min=0)
    if transfer in (PQ, HLG):
        brightest = light.amax(dim=1, keepdim=True)
        light *= _rolled_off(brightest).div_(brightest.clamp_(min=1e-6))
    return light.clamp_(max=1).pow_(1 / SCREEN).mul_(255).add_(0.5).to(torch.uint8).view(pixels.shape).numpy()


@cache
def _light(transfer: int) -> torch.Tensor:
    """16-bit values → linear light, float32 [65536]. 1 is the reference white; for HLG, the scene's peak."""
    value = np.arange(65536) / 65535
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
        power = value ** (1 / m2)
        light = 10_000 / WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    else:
        light = value**SCREEN
    return torch.from_numpy(light.astype(np.float32))


def _rolled_off(light: torch.Tensor) -> torch.Tensor:
    """Reinhard's extended curve above KNEE: slope 1 there, and 1 at PEAK."""
    above = ((light - KNEE) / (1 - KNEE)).clamp_(min=0)
    top = (PEAK / WHITE - KNEE) / (1 - KNEE)
    curve = KNEE + (1 - KNEE) * above * (1 + above / top**2) / (1 + above)
    return torch.where(light <= KNEE, light, curve.clamp_(max=1))
