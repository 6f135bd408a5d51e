"""Draws what the README shows of a video: frames under the waveform (assets/demo.png), and all of it (assets/demo.gif).

`.venv/bin/python tests/host/draw_demo.py VIDEO.mp4`, with the file that `make demo` names at its end.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

ASSETS = Path(__file__).resolve().parents[2] / "assets"
SHOWN, WAVE = 10, 64  # frames side by side; height of the waveform
INK, PAPER = (240, 140, 30), (24, 24, 28)


def read(video: Path) -> tuple[list[np.ndarray], np.ndarray, float]:
    """RGB frames, the sound in one channel, frames a second."""
    with av.open(str(video)) as file:
        rate = float(file.streams.video[0].average_rate)
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    with av.open(str(video)) as file:
        sound = np.concatenate([frame.to_ndarray().mean(0) for frame in file.decode(audio=0)])
    return frames, sound, rate


def strip(frames: list[np.ndarray], sound: np.ndarray) -> Image.Image:
    """SHOWN of the frames side by side under the waveform."""
    side = frames[0].shape[1]
    chosen = [frames[round(at)] for at in np.linspace(0, len(frames) - 1, SHOWN)]
    picture = Image.new("RGB", (SHOWN * side, WAVE + side), PAPER)
    pen = ImageDraw.Draw(picture)
    for x, part in enumerate(np.array_split(sound, picture.width)):
        half = WAVE / 2 * float(np.abs(part).max(initial=0)) / float(np.abs(sound).max())
        pen.line((x, WAVE / 2 - half, x, WAVE / 2 + half), fill=INK)
    for number, frame in enumerate(chosen):
        picture.paste(Image.fromarray(frame), (number * side, WAVE))
    return picture


def main(video: Path) -> None:
    frames, sound, rate = read(video)
    strip(frames, sound).save(ASSETS / "demo.png", optimize=True)
    moving = [Image.fromarray(frame).quantize(64) for frame in frames[::2]]
    moving[0].save(
        ASSETS / "demo.gif", save_all=True, append_images=moving[1:], duration=round(2000 / rate), loop=0, optimize=True
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
