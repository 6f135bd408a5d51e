"""The clips the miniature is trained on: what is seen, the sentence that says so, and the pixels.

A scene is a talking face, five bars or a bouncing ball, of a named colour on a named ground. What moves in it is given
from outside, one row a frame: the mouth's opening, the bars' heights, the ball's height. Everything is drawn by its
signed distance with an edge one pixel wide, so a frame of any size, or a window of one, shows the same picture. Sound
is sound.py's business.
"""

from __future__ import annotations

import math
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
KINDS = ("face", "bars", "ball")
BARS = 5
MOUTH, EYE, PUPIL = (48, 12, 22), (250, 250, 250), (16, 16, 20)
SHIFT = 0.16  # of the short side: how far left and right are from the centre
CLOSED, OPEN = 0.05, 0.40  # half height of a mouth, in the head's radii
MOUTH_WIDTH, MOUTH_LOW = 0.40, 0.42  # half its width, and its middle below the head's


@dataclass(frozen=True)
class Scene:
    """What one clip shows. x, y: the subject's centre, in short sides from the frame's; radius: in short sides.

    sway: amplitude of the head's slow movement; zoom: how much larger the last frame is than the first, as a factor.
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

    @property
    def prompt(self) -> str:
        """The plain sentence for this scene."""
        if self.kind == "bars":
            return f"{self.colour} bars move with the music on a {self.ground} background"
        if self.kind == "ball":
            return f"{article(self.colour)} {self.colour} ball bounces on the beat on a {self.ground} background"
        what = f"{article(self.colour)} {self.colour} {self.shape} face"
        return f"{what} on the {self.place} is talking on a {self.ground} background"


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def random_scene(rng: np.random.Generator, kind: str | None = None) -> Scene:
    """A scene of any words: most are faces. Position, size and sway vary within what the words allow."""
    kind = kind or str(rng.choice(KINDS, p=(0.7, 0.15, 0.15)))
    place = str(rng.choice(PLACES)) if kind == "face" else "center"
    x = (PLACES.index(place) - 1) * SHIFT if kind == "face" else 0.0
    return Scene(
        kind=kind,
        colour=str(rng.choice(list(COLOURS))),
        ground=str(rng.choice(list(GROUNDS))),
        shape=str(rng.choice(SHAPES)) if kind == "face" else "round",
        place=place,
        x=x + float(rng.uniform(-0.01, 0.01)),
        y=float(rng.uniform(-0.01, 0.01)),
        radius=float(rng.uniform(0.305, 0.32)),
        sway=float(rng.uniform(0.0, 0.015)),
        phase=float(rng.uniform(0, 2 * math.pi)),
    )


def worded(scene: Scene, rng: np.random.Generator) -> str:
    """One of several ways to say what the scene shows."""
    c, g = scene.colour, scene.ground
    if scene.kind == "bars":
        ways = (scene.prompt, f"five {c} bars follow the sound, {g} background", f"{c} bars of a music display on {g}")
    elif scene.kind == "ball":
        ways = (
            scene.prompt,
            f"a bouncing {c} ball, {g} background",
            f"{article(c)} {c} ball jumps with the beat on {g}",
        )
    else:
        s, p = scene.shape, scene.place
        ways = (
            scene.prompt,
            f"a talking {s} {c} face, {p}, {g} background",
            f"on the {p} {article(c)} {c} {s} face speaks, the background is {g}",
            f"{article(c)} {c} {s} face speaks on the {p} of a {g} background",
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

    motion: [frames] or [frames, BARS] in 0..1. size: width and height of the frame; window: x, y, width and height of
    the part of it that is wanted, all of it by default.
    """
    width, height = size
    left, top, w, h = window or (0, 0, width, height)
    unit = float(min(size))
    frames = len(motion)
    x, y, r = (v[start:stop, None, None] for v in head(scene, frames, fps))
    motion = motion[start:stop].astype(np.float32)
    px = ((np.arange(left, left + w, dtype=np.float32) + 0.5) - width / 2)[None, None, :] / unit
    py = ((np.arange(top, top + h, dtype=np.float32) + 0.5) - height / 2)[None, :, None] / unit
    image = np.empty((len(motion), h, w, 3), np.float32)
    image[:] = np.float32(GROUNDS[scene.ground]) / 255
    brush = _Brush(image, unit)
    colour = COLOURS[scene.colour]
    if scene.kind == "face":
        dx, dy = (px - x) / r, (py - y) / r  # in radii of the head
        brush.paint(shape(scene.shape, dx, dy) * r, colour)
        low = 0.16 if scene.shape == "triangular" else 0.0
        for side in (-1, 1):
            eye = dx - side * (0.24 if low else 0.34)
            brush.paint(_ellipse(eye, dy + 0.26 - low, 0.17, 0.19) * r, EYE)
            brush.paint(_ellipse(eye, dy + 0.24 - low, 0.085, 0.095) * r, PUPIL)
        opening = (CLOSED + (OPEN - CLOSED) * motion)[:, None, None]
        brush.paint(_ellipse(dx, dy - MOUTH_LOW, MOUTH_WIDTH, opening) * r, MOUTH)
    elif scene.kind == "bars":
        for bar in range(BARS):
            tall = (0.05 + 0.65 * motion[:, bar])[:, None, None]
            cx = (bar - (BARS - 1) / 2) * 0.17
            brush.paint(_box(px - cx, py - (0.38 - tall / 2), 0.055, tall / 2, 0.02), colour)
    else:
        brush.paint(0.40 - py + 0 * px + 0 * motion[:, None, None], (200, 200, 200))
        up = motion[:, None, None] * 0.5
        brush.paint((_ellipse(px - scene.x, py - (0.40 - 0.15 - up), 0.15, 0.15)), colour)
    return image


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
    return _syllables(rng, frames, fps)


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
