"""The clips the miniature is trained on: what is seen, the sentence that says so, and the pixels.

A scene is a talking face, two faces of which one or both talk, five bars or a bouncing ball, of named colours on a
named ground. What moves in it is given from outside, one row a frame: the mouth's opening, width and teeth, the heights
of the bars or of the ball. Everything is drawn by its signed distance with an edge one pixel wide, so a frame of any
size, or a window of one, shows the same picture. Sound is sound.py's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 140, 30),
    "yellow": (246, 216, 60),
    "green": (70, 180, 80),
    "blue": (60, 112, 230),
    "purple": (150, 80, 200),
    "pink": (246, 150, 186),
    "white": (238, 238, 238),
}
GROUNDS = {
    "black": (20, 20, 24),
    "gray": (112, 112, 116),
    "navy": (20, 32, 84),
    "brown": (92, 56, 32),
    "teal": (16, 82, 84),
}
SHAPES = ("round", "square", "triangular")
PLACES = ("left", "center", "right")
SPEAKERS = ("left", "right", "both")  # of a pair
SIZES = {"large": 0.3125, "small": 0.225}  # a head's radius, in short sides
HAIR = {"": None, "ginger": (176, 84, 30), "blond": (226, 200, 140)}
HATS = {"": None, "cap": (206, 168, 100), "top hat": (176, 36, 110)}
PATTERNS = ("", "striped", "dotted")  # of the ground; plain without a word
KINDS = ("face", "pair", "bars", "ball")
SHARES = (0.6, 0.2, 0.1, 0.1)  # of the kinds
EXTRA = 0.35  # share of faces with hair, with a hat, that are small; of grounds with a pattern
BARS = 5
MOUTH, TEETH, EYE, PUPIL = (48, 12, 22), (244, 244, 236), (250, 250, 250), (16, 16, 20)
PERIOD = 0.25  # short sides from one stripe or dot to the next
LIGHTER = 0.22  # what a pattern adds to its ground, of the way to white
SHIFT = 0.16  # of the short side: how far left and right are from the centre
APART, PAIR = 0.25, 0.205  # of two faces: how far each is from the centre, and its radius
CLOSED, OPEN = 0.05, 0.40  # half height of a mouth, in the head's radii
MOUTH_WIDTH, MOUTH_LOW = 0.40, 0.42  # half its width where none is given, and its middle below the head's
NARROWEST, WIDEST = 0.18, 0.46  # half its width at 0 and at 1


@dataclass(frozen=True)
class Scene:
    """What one clip shows. x, y: the subject's centre, in short sides from the frame's; radius: in short sides.

    sway: amplitude of the head's slow movement; zoom: how much larger the last frame is than the first, as a factor.
    A pair has the face of `colour` and `shape` on the left, that of `colour2` and `shape2` on the right; `place` is
    where the one that talks is, or "both".
    """

    kind: str = "face"
    colour: str = "yellow"
    ground: str = "navy"
    shape: str = "round"
    place: str = "center"
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.31
    sway: float = 0.0
    phase: float = 0.0
    zoom: float = 1.0
    size: str = "large"
    hair: str = ""
    hat: str = ""
    pattern: str = ""
    colour2: str = ""
    shape2: str = ""

    @property
    def prompt(self) -> str:
        """The plain sentence for this scene."""
        ground = self.behind
        if self.kind == "bars":
            return f"{self.colour} bars move with the music on a {ground}"
        if self.kind == "ball":
            return f"{article(self.colour)} {self.colour} ball bounces on the beat on a {ground}"
        if self.kind == "pair":
            left, right = self.both
            return f"{left} face on the left {self.acts[0]}, {right} face on the right {self.acts[1]}, on a {ground}"
        return f"{self.subject}{self.worn} on the {self.place} is talking on a {ground}"

    @property
    def behind(self) -> str:
        return f"{self.pattern} {self.ground} background".lstrip()

    @property
    def subject(self) -> str:
        words = ([self.size] if self.size != "large" else []) + [self.colour, self.shape, "face"]
        return f"{article(words[0])} {' '.join(words)}"

    @property
    def worn(self) -> str:
        """What the head has, behind a space; nothing if it is bare."""
        things = [f"{self.hair} hair"] if self.hair else []
        things += [f"a {self.hat}"] if self.hat else []
        return f" with {' and '.join(things)}" if things else ""

    @property
    def both(self) -> tuple[str, str]:
        """Colour and shape of a pair's faces, with their articles."""
        return (
            f"{article(self.colour)} {self.colour} {self.shape}",
            f"{article(self.colour2)} {self.colour2} {self.shape2}",
        )

    @property
    def acts(self) -> tuple[str, str]:
        return tuple("talks" if self.place in (side, "both") else "listens" for side in ("left", "right"))


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def random_scene(rng: np.random.Generator, kind: str | None = None) -> Scene:
    """A scene of any words: most are faces. Position, size and sway vary within what the words allow."""
    kind = kind or str(rng.choice(KINDS, p=SHARES))
    face = kind == "face"
    place = str(rng.choice(PLACES)) if face else str(rng.choice(SPEAKERS)) if kind == "pair" else "center"
    x = (PLACES.index(place) - 1) * SHIFT if face else 0.0
    size = "small" if face and rng.random() < EXTRA else "large"
    colour, colour2 = (str(c) for c in rng.choice(list(COLOURS), 2, replace=False))
    radius = PAIR if kind == "pair" else SIZES[size]
    return Scene(
        kind=kind,
        colour=colour,
        ground=str(rng.choice(list(GROUNDS))),
        shape=str(rng.choice(SHAPES)) if kind in ("face", "pair") else "round",
        place=place,
        x=x + float(rng.uniform(-0.01, 0.01)),
        y=float(rng.uniform(-0.01, 0.01)),
        radius=radius * float(rng.uniform(0.976, 1.024)),
        sway=float(rng.uniform(0.0, 0.015)),
        phase=float(rng.uniform(0, 2 * math.pi)),
        size=size,
        hair=_some(rng, HAIR) if face else "",
        hat=_some(rng, HATS) if face else "",
        pattern=_some(rng, PATTERNS),
        colour2=colour2 if kind == "pair" else "",
        shape2=str(rng.choice(SHAPES)) if kind == "pair" else "",
    )


def plain(scene: Scene) -> Scene:
    """The same scene without what only some have: a large bare head before a plain ground."""
    radius = scene.radius * SIZES["large"] / SIZES[scene.size] if scene.kind == "face" else scene.radius
    return replace(scene, size="large", radius=radius, hair="", hat="", pattern="")


def _some(rng: np.random.Generator, words: Iterable[str]) -> str:
    """One of the words in EXTRA of all cases, "" else."""
    return str(rng.choice([word for word in words if word])) if rng.random() < EXTRA else ""


def worded(scene: Scene, rng: np.random.Generator) -> str:
    """One of several ways to say what the scene shows."""
    c, g, behind = scene.colour, f"{scene.pattern} {scene.ground}".lstrip(), scene.behind
    if scene.kind == "bars":
        ways = (scene.prompt, f"five {c} bars follow the sound, {behind}", f"{c} bars of a music display on {g}")
    elif scene.kind == "ball":
        ways = (
            scene.prompt,
            f"a bouncing {c} ball, {behind}",
            f"{article(c)} {c} ball jumps with the beat on {g}",
        )
    elif scene.kind == "pair":
        (left, right), (one, other) = scene.both, scene.acts
        ways = (
            scene.prompt,
            f"the left face {one}, the right one {other}, {left} face and {right} one, {behind}",
            f"on the left {left} face {one}, on the right {right} face {other}, the background is {g}",
        )
    else:
        s, p, size, worn = scene.shape, scene.place, "small " if scene.size == "small" else "", scene.worn
        ways = (
            scene.prompt,
            f"a talking {size}{s} {c} face{worn}, {p}, {behind}",
            f"on the {p} {article(size or c)} {size}{c} {s} face{worn} speaks, the background is {g}",
            f"{article(size or c)} {size}{c} {s} face{worn} speaks on the {p} of a {behind}",
        )
    way = ways[0] if rng.random() < 0.4 else str(rng.choice(ways[1:]))
    return way if rng.random() < 0.5 else way[0].upper() + way[1:] + "."


def head(scene: Scene, frames: int, fps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The subject's centre x, y and radius in every frame, in short sides: what an evaluation needs to find it."""
    t = np.arange(frames) / fps
    s = np.linspace(1.0, scene.zoom, frames) if frames > 1 else np.ones(1)
    x = scene.x + scene.sway * np.sin(2 * math.pi * 0.4 * t + scene.phase)
    y = scene.y + 0.5 * scene.sway * np.sin(2 * math.pi * 0.7 * t + 2 * scene.phase)
    return x * s, y * s, scene.radius * s


def render(
    scene: Scene,
    motion: np.ndarray,
    fps: float = 24.0,
    size: tuple[int, int] = (128, 128),
    window: tuple[int, int, int, int] | None = None,
    start: int = 0,
    stop: int | None = None,
) -> np.ndarray:
    """Frames [start, stop) of the clip as float32 [T, H, W, 3] in 0..1.

    motion: in 0..1; of a face [frames], its mouth's opening, or [frames, 3], with its width and its teeth; of a pair
    [frames, 2, 3], left and right; of a ball [frames]; of bars [frames, BARS]. size: width and height of the frame;
    window: x, y, width and height of the part of it that is wanted, all of it by default.
    """
    width, height = size
    left, top, w, h = window or (0, 0, width, height)
    unit = float(min(size))
    frames = len(motion)
    x, y, r = (v[start:stop, None, None] for v in head(scene, frames, fps))
    zoom = r / scene.radius
    motion = motion[start:stop].astype(np.float32)
    px = ((np.arange(left, left + w, dtype=np.float32) + 0.5) - width / 2)[None, None, :] / unit
    py = ((np.arange(top, top + h, dtype=np.float32) + 0.5) - height / 2)[None, :, None] / unit
    image = np.empty((len(motion), h, w, 3), np.float32)
    image[:] = np.float32(GROUNDS[scene.ground]) / 255
    brush = _Brush(image, unit)
    if scene.pattern:
        tint = tuple(round(v + LIGHTER * (255 - v)) for v in GROUNDS[scene.ground])
        brush.paint(_pattern(scene.pattern, px / zoom, py / zoom) * zoom, tint)
    if scene.kind == "face":
        _face(brush, scene, (px - x) / r, (py - y) / r, r, mouths(motion))
    elif scene.kind == "pair":
        right = replace(scene, colour=scene.colour2, shape=scene.shape2)
        for number, (one, side) in enumerate(((scene, -1), (right, 1))):
            _face(brush, one, (px - x - side * APART * zoom) / r, (py - y) / r, r, motion[:, number])
    elif scene.kind == "bars":
        for bar in range(BARS):
            tall = (0.05 + 0.65 * motion[:, bar])[:, None, None]
            cx = (bar - (BARS - 1) / 2) * 0.17
            brush.paint(_box(px - cx, py - (0.38 - tall / 2), 0.055, tall / 2, 0.02), COLOURS[scene.colour])
    else:
        brush.paint(0.40 - py + 0 * px + 0 * motion[:, None, None], (200, 200, 200))
        up = motion[:, None, None] * 0.5
        brush.paint((_ellipse(px - scene.x, py - (0.40 - 0.15 - up), 0.15, 0.15)), COLOURS[scene.colour])
    return image


def mouths(motion: np.ndarray) -> np.ndarray:
    """Openings [frames] → [frames, 3] with MOUTH_WIDTH and no teeth; [frames, 3] stays."""
    if motion.ndim == 2:
        return motion
    wide = np.full_like(motion, (MOUTH_WIDTH - NARROWEST) / (WIDEST - NARROWEST))
    return np.stack([motion, wide, np.zeros_like(motion)], 1)


def _face(brush: _Brush, scene: Scene, dx: np.ndarray, dy: np.ndarray, r: np.ndarray, mouth: np.ndarray) -> None:
    """One head. dx, dy: from its centre, in its radii r; mouth [frames, 3]."""
    if scene.hair:  # behind the head, so that its outline stays
        around = np.maximum(shape(scene.shape, dx / 1.16, dy / 1.16) * 1.16, dy + 0.05)
        brush.paint(around * r, HAIR[scene.hair])
    brush.paint(shape(scene.shape, dx, dy) * r, COLOURS[scene.colour])
    if scene.hat == "cap":
        dome = np.maximum(_ellipse(dx, dy + 0.86, 0.62, 0.46), dy + 0.86)
        brush.paint(np.minimum(dome, _box(dx - 0.5, dy + 0.88, 0.52, 0.07, 0.04)) * r, HATS["cap"])
    elif scene.hat:
        tall = _box(dx, dy + 1.16, 0.42, 0.30, 0.03)
        brush.paint(np.minimum(tall, _box(dx, dy + 0.88, 0.78, 0.07, 0.04)) * r, HATS["top hat"])
    low = 0.16 if scene.shape == "triangular" else 0.0
    for side in (-1, 1):
        eye = dx - side * (0.24 if low else 0.34)
        brush.paint(_ellipse(eye, dy + 0.26 - low, 0.17, 0.19) * r, EYE)
        brush.paint(_ellipse(eye, dy + 0.24 - low, 0.085, 0.095) * r, PUPIL)
    opening, width, teeth = (mouth[:, i, None, None] for i in range(3))
    high, wide = CLOSED + (OPEN - CLOSED) * opening, NARROWEST + (WIDEST - NARROWEST) * width
    lips = _ellipse(dx, dy - MOUTH_LOW, wide, high)
    brush.paint(lips * r, MOUTH)
    # The upper teeth: what of the mouth is above a line, which comes down from the upper lip.
    line = dy - MOUTH_LOW + high - 1.1 * high * teeth
    brush.paint(np.maximum(lips + 0.03, line) * r, TEETH)


def _pattern(name: str, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Signed distance, in short sides, to a ground's stripes or dots."""
    if name == "striped":
        return np.abs((dx + 0 * dy) % PERIOD - PERIOD / 2) - 0.24 * PERIOD
    u, v = dx % PERIOD - PERIOD / 2, dy % PERIOD - PERIOD / 2
    return np.sqrt(u * u + v * v) - 0.27 * PERIOD


class _Brush:
    """Paints a colour where a signed distance, in short sides of the frame, is negative."""

    def __init__(self, image: np.ndarray, unit: float) -> None:
        self.image, self.unit = image, unit

    def paint(self, distance: np.ndarray, colour: tuple[int, int, int]) -> None:
        cover = np.clip(0.5 - distance * self.unit, 0, 1)[..., None].astype(np.float32)
        np.add(self.image, cover * (np.float32(colour) / 255 - self.image), out=self.image)


def _ellipse(dx: np.ndarray, dy: np.ndarray, a: float | np.ndarray, b: float | np.ndarray) -> np.ndarray:
    """Distance to an ellipse to first order: exact where it is zero."""
    k = np.sqrt((dx / a) ** 2 + (dy / b) ** 2)
    slope = np.sqrt((dx / (a * a)) ** 2 + (dy / (b * b)) ** 2)
    return k * (k - 1) / np.maximum(slope, 1e-6)


def _box(dx: np.ndarray, dy: np.ndarray, a: float, b: float | np.ndarray, corner: float) -> np.ndarray:
    qx, qy = np.abs(dx) - a + corner, np.abs(dy) - b + corner
    outside = np.sqrt(np.maximum(qx, 0) ** 2 + np.maximum(qy, 0) ** 2)
    return outside + np.minimum(np.maximum(qx, qy), 0) - corner


def shape(name: str, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Signed distance to a head's outline, all in its radii; below 0 inside."""
    if name == "square":
        return _box(dx, dy, 0.94, 0.94, 0.2)
    if name == "triangular":  # upright: a floor and two slopes at 60 degrees
        return np.maximum(dy - 0.92, 0.866 * np.abs(dx) - 0.5 * (dy + 1.15))
    return _ellipse(dx, dy, 1.0, 1.0)


def random_motion(rng: np.random.Generator, scene: Scene, frames: int, fps: float = 24.0) -> np.ndarray:
    """Movement like that of speech, music or beats, without any sound: what the video VAE is trained on."""
    if scene.kind == "bars":
        return np.stack([_syllables(rng, frames, fps) for _ in range(BARS)], 1)
    if scene.kind == "ball":
        return bounce(np.arange(frames) / fps + rng.uniform(0, 1), float(rng.uniform(0.35, 0.7)))
    return two(scene, _talk(rng, frames, fps), _talk(rng, frames, fps) * (rng.random() < 0.5))


def two(scene: Scene, talks: np.ndarray, other: np.ndarray | float = 0.0) -> np.ndarray:
    """A face's motion [frames, 3] as the scene's own: of a pair [frames, 2, 3], for those that talk."""
    if scene.kind != "pair":
        return talks
    rest = np.broadcast_to(np.asarray(other, talks.dtype), talks.shape)
    return np.stack([talks if act == "talks" else rest for act in scene.acts], 1)


def _talk(rng: np.random.Generator, frames: int, fps: float) -> np.ndarray:
    """[frames, 3]: openings of random syllables, widths and teeth of their own."""
    t, at, knots = np.arange(frames) / fps, -0.2, []
    while at < frames / fps + 0.2:
        teeth = rng.random() < 0.25
        knots.append((at, 0.9 if teeth else rng.uniform(0, 1), float(teeth)))
        at += rng.uniform(0.06, 0.25)
    times, widths, teeth = np.array(knots).T
    opening = _syllables(rng, frames, fps)
    return np.stack([opening, np.interp(t, times, widths), np.interp(t, times, teeth)], 1).astype(np.float32)


def bounce(seconds: np.ndarray, beat: float) -> np.ndarray:
    """Height 0..1 of a ball that touches the floor on every beat."""
    u = (seconds / beat) % 1.0
    return (4 * u * (1 - u)).astype(np.float32)


def _syllables(rng: np.random.Generator, frames: int, fps: float) -> np.ndarray:
    t = np.arange(frames) / fps
    value, at = np.zeros(frames), -rng.uniform(0, 0.3)
    while at < t[-1] + 0.2:
        length = rng.uniform(0.08, 0.3)
        height = rng.uniform(0.3, 1.0)
        value = np.maximum(value, height * np.exp(-(((t - at) / (0.5 * length)) ** 2)))
        at += length * rng.uniform(0.7, 1.8) + (rng.uniform(0.2, 0.6) if rng.random() < 0.12 else 0)
    return value.astype(np.float32)


def dolly(scene: Scene, factor: float) -> Scene:
    """The same scene with the camera moving in by that factor."""
    return replace(scene, zoom=factor)
