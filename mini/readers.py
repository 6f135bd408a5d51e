"""Reading a clip back from its pixels: what is seen, how a mouth moves, who speaks, how alike and how steady it is.

Frames are float [T, H, W, 3] in 0..1. Nothing here knows what was asked for. What clips.py may have drawn is drawn
again and compared: a head is where its outline covers most, and a mouth is the drawn one that differs least.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from . import clips, sound, voices

GROUND = len(clips.COLOURS)  # the first of the palette that is a ground
TINTS = GROUND + len(clips.GROUNDS)  # the first that is what a pattern makes of a ground
WORN = TINTS + len(clips.GROUNDS)  # the first that is hair or a hat
NAMES = (*clips.COLOURS, *clips.GROUNDS, *clips.GROUNDS, *filter(None, clips.HAIR), *filter(None, clips.HATS))
PALETTE = (
    np.array(
        [
            *clips.COLOURS.values(),
            *clips.GROUNDS.values(),
            *([v + clips.LIGHTER * (255 - v) for v in ground] for ground in clips.GROUNDS.values()),
            *filter(None, (*clips.HAIR.values(), *clips.HATS.values())),
        ],
        np.float32,
    )
    / 255
)
NOTHING = {"colour": "", "ground": "", "shape": "", "place": "", "size": "", "hair": "", "hat": "", "pattern": ""}
ALIKE = 0.75  # of a head and what is seen, intersection over union, below which it has no shape
SEEN = 0.5  # the same, below which there is no head with a mouth
LEAST = 0.02  # of a picture: less of a colour is no face
GRID = 64  # pixels of the short side at which heads are sought
RADII = 0.15 * 1.04 ** np.arange(29)  # in short sides
LAGS = 4  # frames that a movement may be early or late
BLOCK, GROUP = 24, 6  # frames in which a head is found once; in which it stands still to the pixel
OPENINGS, WIDTHS, TEETH = np.linspace(0, 1, 9), np.linspace(0, 1, 5), np.array([0.0, 0.5, 1.0])
MOUTHS = np.array(list(itertools.product(OPENINGS, WIDTHS, TEETH)), np.float32)  # those that are compared
REACH = 1  # pixels by which a mouth is sought around where its head has it
TOGETHER = 0.5  # of the larger movement of two mouths, above which the smaller one is talk, too
SHUT = 0.16  # opening below which a mouth is closed
SHAPED = tuple(v for v in range(len(voices.VISEMES)) if v not in (voices.CLOSED, voices.TEETH))


@dataclass(frozen=True)
class Head:
    """A face in a picture. x, y, radius: in short sides, from the picture's centre, as a scene has them; overlap:
    intersection over union with what has its colour; `shape` is the likeliest one, however little it overlaps."""

    colour: str
    ground: str
    shape: str = "round"
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0
    overlap: float = 0.0

    @property
    def scene(self) -> clips.Scene:
        """That head, bare and before a plain ground."""
        return clips.Scene(
            colour=self.colour, ground=self.ground, shape=self.shape, x=self.x, y=self.y, radius=self.radius
        )


def nearest(frames: np.ndarray) -> np.ndarray:
    """Each pixel's entry of the palette: [T, H, W]."""
    return ((frames[..., None, :] - PALETTE) ** 2).sum(-1).argmin(-1)


def find(picture: np.ndarray) -> Head:
    """The face in a picture [H, W, 3]; without colour and radius if there is none."""
    entry = nearest(picture)
    border = max(1, len(entry) // 10)
    edge = np.concatenate([entry[:border].ravel(), entry[-border:].ravel()])
    grounds = np.bincount(edge, minlength=len(NAMES))[GROUND:WORN]
    ground = int((grounds[: TINTS - GROUND] + grounds[TINTS - GROUND :]).argmax())
    counts = np.bincount(entry.ravel(), minlength=len(NAMES))[:GROUND]
    name = NAMES[GROUND + ground]
    if counts.max() < LEAST * entry.size:
        return Head("", name)
    colour = int(counts.argmax())
    # What else may be there: a face ends where its colour is no longer the nearest of these. Other faces' colours do
    # not count, because a blurred edge passes by some of them.
    others = PALETTE[[GROUND + ground, TINTS + ground, *range(WORN, len(NAMES))]]
    away = ((picture[..., None, :] - others) ** 2).sum(-1).min(-1)
    own = ((picture - PALETTE[colour]) ** 2).sum(-1) < away
    return _placed(own.astype(np.float32), Head(NAMES[colour], name))


def _placed(own: np.ndarray, head: Head) -> Head:
    """The head with shape, place and radius where it overlaps most with `own` [H, W]."""
    step = max(1, round(min(own.shape) / GRID))
    h, w = (n // step for n in own.shape)
    small = own[: h * step, : w * step].reshape(h, step, w, step).mean((1, 3))
    heads, holes, areas = _outlines(h, w)
    seen = np.fft.rfft2(small)
    inside, unknown = (np.fft.irfft2(seen * each, (h, w)) for each in (heads, holes))
    overlaps = inside / np.maximum(small.sum() - unknown + areas[:, None, None] - inside, 1e-6)
    best, y, x = np.unravel_index(overlaps.argmax(), overlaps.shape)
    unit = min(h, w)
    kind, size = divmod(int(best), len(RADII))
    found = overlaps[kind * len(RADII) : (kind + 1) * len(RADII)]
    dx, dy = _peak(overlaps[best, y, (x + _AROUND) % w]), _peak(overlaps[best, (y + _AROUND) % h, x])
    dr = _peak(found[size - 1 : size + 2, y, x]) if 0 < size < len(RADII) - 1 else 0.0
    return replace(
        head,
        shape=clips.SHAPES[kind],
        x=float((x + dx + 0.5 - w / 2) / unit),
        y=float((y + dy + 0.5 - h / 2) / unit),
        radius=float(RADII[size] * 1.04**dr),
        overlap=float(overlaps.max()),
    )


_AROUND = np.arange(-1, 2)


def _peak(three: np.ndarray) -> float:
    """Where a parabola through three values has its extreme, from the middle one, in their distances; at most 0.5."""
    low, middle, high = (float(v) for v in three)
    bend = low - 2 * middle + high
    return float(np.clip(0.5 * (low - high) / bend, -0.5, 0.5)) if abs(bend) > 1e-12 else 0.0


@cache
def _outlines(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spectra of each shape's heads by radius around the first pixel, and of the eyes and mouths that they may have;
    and the heads' areas without those, in pixels."""
    unit, heads, holes = min(height, width), [], []
    x, y = ((np.arange(n) + n // 2) % n - n // 2 for n in (width, height))
    for shape, radius in itertools.product(clips.SHAPES, RADII):
        dx, dy = x[None] / (unit * radius), y[:, None] / (unit * radius)
        side, low = (0.24, 0.16) if shape == "triangular" else (0.34, 0.0)
        eyes = (((np.abs(dx) - side) / 0.2) ** 2 + ((dy + 0.26 - low) / 0.22) ** 2) < 1
        hole = eyes | ((dx / clips.WIDEST) ** 2 + ((dy - clips.MOUTH_LOW) / clips.OPEN) ** 2 < 1)
        heads.append(np.clip(0.5 - clips.shape(shape, dx, dy) * radius * unit, 0, 1) * ~hole)
        holes.append(hole)
    return (
        np.fft.rfft2(np.stack(heads)).conj(),
        np.fft.rfft2(np.stack(holes)).conj(),
        np.stack(heads).sum((1, 2)),
    )


def words(frames: np.ndarray, kind: str = "face") -> dict[str, str]:
    """What the middle frames show, by the names of a scene's fields; "" where there is nothing. Of a pair: ground,
    pattern, colour, shape, colour2 and shape2; of all else: all that one face has."""
    middle = frames[len(frames) // 2 :][:1] if len(frames) < 4 else frames[len(frames) // 2 - 1 : len(frames) // 2 + 2]
    picture = np.median(middle, axis=0)
    if kind == "pair":
        left, right = (find(half[0]) for half in halves(picture[None]))
        pair = clips.Scene(
            kind="pair", colour=left.colour, ground=left.ground, shape=left.shape, radius=clips.PAIR,
            colour2=right.colour, shape2=right.shape,
        )  # fmt: skip
        found = {"ground": left.ground, "pattern": "" if not (left.colour and right.colour) else
                 _likeliest(picture, [replace(pair, pattern=each) for each in clips.PATTERNS]).pattern}  # fmt: skip
        for one, number in ((left, ""), (right, "2")):
            found |= {f"colour{number}": one.colour, f"shape{number}": one.shape if one.overlap >= ALIKE else ""}
        return found
    head = find(picture)
    found = {**NOTHING, "colour": head.colour, "ground": head.ground}
    if head.overlap < ALIKE:
        return found
    scene = _likeliest(picture, [replace(head.scene, pattern=each) for each in clips.PATTERNS])
    # With other radii, so that an edge that is a pixel off is not taken for hair.
    dressed = [
        replace(scene, hair=hair, hat=hat, radius=scene.radius * factor)
        for hair, hat, factor in itertools.product(clips.HAIR, clips.HATS, (0.965, 1.0, 1.035))
    ]
    scene = _likeliest(picture, dressed)
    place = min(clips.PLACES, key=lambda name: abs(head.x - (clips.PLACES.index(name) - 1) * clips.SHIFT))
    size = min(clips.SIZES, key=lambda name: abs(np.log(head.radius / clips.SIZES[name])))
    worn = {"hair": scene.hair, "hat": scene.hat, "pattern": scene.pattern}
    return {**found, "shape": head.shape, "place": place, "size": size, **worn}


def _likeliest(picture: np.ndarray, scenes: Iterable[clips.Scene]) -> clips.Scene:
    """The scene whose drawing differs least from the picture [H, W, 3]."""
    picture = _soft(picture[None])

    def error(scene: clips.Scene) -> float:
        still = np.zeros((1, 2, 3) if scene.kind == "pair" else 1)
        return float(((_soft(clips.render(scene, still, size=picture.shape[2:0:-1])) - picture) ** 2).sum())

    return min(scenes, key=error)


def halves(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The left and the right half of the picture, which have one face of a pair each."""
    middle = frames.shape[2] // 2
    return frames[:, :, :middle], frames[:, :, -middle:]


def mouth(frames: np.ndarray) -> np.ndarray:
    """How far a mouth is open in each frame, 0 to 1: [T]. Zeros where no face is found."""
    return mouths(frames)[:, 0]


def visemes(frames: np.ndarray) -> np.ndarray:
    """The viseme that a mouth shows in each frame, as a number in voices.VISEMES: [T]."""
    return shown(mouths(frames))


def shown(read: np.ndarray) -> np.ndarray:
    """The same of what `mouths` has read: [T, 3] → [T]."""
    shaped = np.array(SHAPED)
    by_width = shaped[np.abs(read[:, 1:2] - sound.WIDTHS[shaped]).argmin(1)]
    return np.where(read[:, 0] < SHUT, voices.CLOSED, np.where(read[:, 2] > 0.5, voices.TEETH, by_width))


def mouths(frames: np.ndarray) -> np.ndarray:
    """Opening, width and teeth of a mouth in each frame, 0 to 1: [T, 3]. Zeros where no face is found."""
    result = np.zeros((len(frames), 3))
    blocks = np.array_split(np.arange(len(frames)), max(1, round(len(frames) / BLOCK)))
    heads = [(block, find(np.median(frames[block], axis=0))) for block in blocks if len(block)]
    seen = [(block, head) for block, head in heads if head.overlap >= SEEN]
    if not seen:
        return result
    middles = [block.mean() for block, _ in seen]
    drawn: _Drawn | None = None
    for block, head in seen:
        for begin in range(block[0], block[-1] + 1, GROUP):
            stop = min(begin + GROUP, block[-1] + 1)
            # A camera moves in between two blocks, too.
            x, y, radius = (
                float(np.interp((begin + stop - 1) / 2, middles, [getattr(each, name) for _, each in seen]))
                for name in ("x", "y", "radius")
            )
            now = replace(head, x=x, y=y, radius=radius)
            if drawn is None or not drawn.fits(now):
                drawn = _Drawn(now, frames.shape[2], frames.shape[1])
            result[begin:stop] = drawn.read(frames[begin:stop], now)
    return result


class _Drawn:
    """The mouths that a head may have, drawn as patches around it, to be compared with what is seen."""

    def __init__(self, head: Head, width: int, height: int) -> None:
        self.head, self.unit = head, min(width, height)
        r = head.radius * self.unit
        x, y = head.x * self.unit + width / 2, head.y * self.unit + height / 2 + clips.MOUTH_LOW * r
        left, top = max(REACH, int(x - 0.56 * r)), max(REACH, int(y - 0.5 * r))
        right, bottom = min(width - REACH, int(x + 0.56 * r) + 2), min(height - REACH, int(y + 0.5 * r) + 2)
        self.window = left, top, max(1, right - left), max(1, bottom - top)
        patches = clips.render(head.scene, MOUTHS, size=(width, height), window=self.window)
        self.patches = _soft(patches).reshape(len(MOUTHS), -1)
        self.power = (self.patches**2).sum(1)

    def fits(self, head: Head) -> bool:
        """Whether that head differs from the drawn one by its place alone."""
        same = all(getattr(head, name) == getattr(self.head, name) for name in ("colour", "ground", "shape"))
        return same and abs(head.radius / self.head.radius - 1) < 0.02

    def read(self, frames: np.ndarray, head: Head) -> np.ndarray:
        """[T, 3] of frames in which the head is at that place."""
        left, top, wide, high = self.window
        moved = (round((getattr(head, axis) - getattr(self.head, axis)) * self.unit) for axis in ("x", "y"))
        limits = (frames.shape[2] - wide, frames.shape[1] - high)
        at = [np.clip(a + b, 0, most) for a, b, most in zip((left, top), moved, limits, strict=True)]
        frames, best, least = _soft(frames), None, np.inf
        for dy, dx in itertools.product(range(-REACH, REACH + 1), repeat=2):
            x, y = (int(np.clip(a + d, 0, most)) for a, d, most in zip(at, (dx, dy), limits, strict=True))
            seen = frames[:, y : y + high, x : x + wide].reshape(len(frames), -1)
            errors = self.power - 2 * seen @ self.patches.T + (seen**2).sum(1, keepdims=True)
            if (total := errors.min(1).sum()) < least:
                best, least = errors, total
        return np.stack([_least(each) for each in best])


def _soft(pictures: np.ndarray) -> np.ndarray:
    """Blurred by a pixel, so that it hardly matters how sharp a picture is: [T, H, W, 3]."""
    wide = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge").astype(np.float32)
    wide = (wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]) / 4
    return (wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]) / 4


def _least(errors: np.ndarray) -> np.ndarray:
    """Squared errors of all MOUTHS → the mouth with the least, between the drawn ones by a parabola along each axis."""
    axes = (OPENINGS, WIDTHS, TEETH)
    cube = errors.reshape([len(axis) for axis in axes])
    best = np.unravel_index(cube.argmin(), cube.shape)
    found = []
    for number, (axis, index) in enumerate(zip(axes, best, strict=True)):
        line = cube[tuple(slice(None) if n == number else i for n, i in enumerate(best))]
        inner = 0 < index < len(axis) - 1
        found.append(axis[index] + (_peak(line[index - 1 : index + 2]) * (axis[1] - axis[0]) if inner else 0.0))
    return np.array(found)


def talker(frames: np.ndarray) -> str:
    """Which face of a pair talks, one of clips.SPEAKERS: the one whose mouth moves more, or both if both do."""
    left, right = (float(mouth(half).std()) for half in halves(frames))
    if min(left, right) >= TOGETHER * max(left, right):
        return "both"
    return "left" if left > right else "right"


def bars(frames: np.ndarray) -> np.ndarray:
    """How high each bar stands, 0 to 1: [T, BARS]."""
    h, w = frames.shape[1:3]
    unit = min(h, w)
    counts = np.bincount(nearest(frames[len(frames) // 2]).ravel(), minlength=len(NAMES))[:GROUND]
    ground = np.median(frames[:, : h // 12], axis=(0, 1, 2))
    axis = PALETTE[counts.argmax()] - ground
    cover = np.clip((frames - ground) @ axis / (axis @ axis), 0, 1)
    result = []
    for bar in range(clips.BARS):
        middle = w / 2 + (bar - (clips.BARS - 1) / 2) * 0.17 * unit
        strip = cover[:, :, round(middle - 0.03 * unit) : round(middle + 0.03 * unit)].mean(2)
        result.append((strip.sum(1) / unit - 0.05) / 0.65)
    return np.clip(np.stack(result, 1), 0, 1)


def ball(frames: np.ndarray) -> np.ndarray:
    """How high the ball is, 0 to 1: [T]. Zeros where there is none."""
    h, w = frames.shape[1:3]
    unit = min(h, w)
    # The floor is light, as a white ball is; what is above it counts. Every other pixel is enough.
    above = nearest(frames[:, : round(h / 2 + 0.39 * unit) : 2, ::2])
    counts = np.bincount(above.ravel(), minlength=len(NAMES))[:GROUND]
    own = above == counts.argmax()
    rows = (own.sum(2) * np.arange(above.shape[1])).sum(1) / np.maximum(own.sum((1, 2)), 1)
    height = (0.25 - (2 * rows + 0.5 - h / 2) / unit) / 0.5
    return np.where(own.any((1, 2)), np.clip(height, 0, 1), 0.0)


def colours(frames: np.ndarray) -> np.ndarray:
    """Mean colour of the face and of the ground in each frame, 0 to 255: [T, 2, 3]. The face is what is well inside the
    head, without eyes and mouth, and the ground what is far from it."""
    head = find(np.median(frames, axis=0))
    h, w = frames.shape[1:3]
    unit, r = min(h, w), head.radius or 0.25
    dx, dy = np.meshgrid(
        *(((np.arange(n) + 0.5 - n / 2) / unit - at) / r for n, at in ((w, head.x), (h, head.y)))
    )  # fmt: skip
    far = np.hypot(dx, dy)
    cheeks = (clips.shape(head.shape, dx, dy) < -0.15) & (np.abs(dx) > clips.WIDEST + 0.08) & (dy > 0.12)
    # A picture that a head fills has no more of its ground than corners.
    face, ground = cheeks if cheeks.any() else far < 0.5, far >= min(1.6, np.quantile(far, 0.95))
    return np.stack([255 * frames[:, mask].mean(1) for mask in (face, ground)], 1)


def drift(colours: np.ndarray) -> np.ndarray:
    """How far each frame's colours are from the first one's, in the worst channel of face or ground: [T]."""
    return np.abs(colours - colours[:1]).max((1, 2))


def sharpness(frames: np.ndarray, drawn: np.ndarray) -> float:
    """The energy of the gradients in that of the drawn clip's; 1 is as sharp."""

    def energy(video: np.ndarray) -> float:
        return float(sum((np.diff(video, axis=axis) ** 2).mean() for axis in (1, 2)))

    return energy(frames) / max(energy(drawn), 1e-12)


def flicker(frames: np.ndarray, drawn: np.ndarray) -> float:
    """Mean change from frame to frame, of 255, where the drawn clip does not change."""
    still = np.abs(np.diff(drawn, axis=0)).max(-1) < 1e-3
    return 255 * float(np.abs(np.diff(frames, axis=0)).mean(-1)[still].mean()) if still.any() else 0.0


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one does not move."""
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def lagged(motion: np.ndarray, envelope: np.ndarray) -> tuple[float, int]:
    """The highest correlation and its lag in frames: above 0, the motion comes late."""
    found = []
    for lag in range(-LAGS, LAGS + 1):
        n = len(motion) - abs(lag)
        a, b = motion[max(0, lag) :][:n], envelope[max(0, -lag) :][:n]
        found.append((correlation(a, b), lag))
    return max(found, key=lambda pair: (round(pair[0], 6), -abs(pair[1])))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """In dB, of values in 0..1."""
    return float(-10 * np.log10(max(float(((a - b) ** 2).mean()), 1e-10)))
