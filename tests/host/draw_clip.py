"""Draws the clip that workflows take, and the mask of its mouth: `.venv/bin/python tests/host/draw_clip.py`.

Written are assets/clip.mp4, in which a face of the generator of clips that the miniature is trained on says a sentence,
and assets/mouth.png, its first picture with mouth and chin transparent, as ComfyUI saves a mask that is painted. The
voice is CMU Flite's `rms`.
Exit status: 0; 1 if flite is not installed.
"""

# ruff: noqa: E402
from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import types
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# the pack's name outside ComfyUI, as in tests/conftest.py
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules.setdefault("a2v", alias)

import av
import numpy as np
from a2v.ltx.media.audio import load_track
from a2v.mini import clips, sound
from PIL import Image, ImageDraw

CLIP, MOUTH = ROOT / "assets" / "clip.mp4", ROOT / "assets" / "mouth.png"
SENTENCE = "This is a clip that you have. One part of it is made anew."
SCENE = clips.Scene(colour="orange", ground="teal", sway=0.01)
SIZE = (768, 512)
"""Width and height: multiples of 128, as an IC-LoRA needs them whose reference has half the size."""
FRAMES, FPS = 97, 24


def pictures(motion: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] of a mouth that opens so far, 0..1 [T]."""
    return (clips.render(SCENE, motion, float(FPS), SIZE) * 255 + 0.5).astype(np.uint8)


def mouth(picture: np.ndarray) -> Image.Image:
    """The picture, transparent where the mouth and the chin are."""
    (x,), (y,), (radius,) = clips.head(SCENE, 1, float(FPS))
    unit, (width, height) = min(SIZE), SIZE
    centre = width / 2 + x * unit, height / 2 + (y + clips.MOUTH_LOW * radius) * unit
    across, down = 0.62 * radius * unit, 0.58 * radius * unit
    alpha = Image.new("L", SIZE, 255)
    box = (centre[0] - across, centre[1] - down, centre[0] + across, centre[1] + down)
    ImageDraw.Draw(alpha).ellipse(box, fill=0)
    found = Image.fromarray(picture)
    found.putalpha(alpha)
    return found


def write(frames: np.ndarray, wave: np.ndarray, rate: int) -> None:
    """The file. wave: float32 [samples]."""
    with av.open(str(CLIP), "w", options={"movflags": "+faststart"}) as output:
        video = output.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "veryslow", "tune": "animation"})
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        heard = output.add_stream("aac", rate=rate, layout="mono")
        heard.bit_rate = 64_000
        for frame in frames:
            output.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(video.encode())
        block = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = rate, 0, Fraction(1, rate)
        output.mux(heard.encode(block))
        output.mux(heard.encode())


def main() -> int:
    if not shutil.which("flite"):
        sys.stderr.write("draw: flite is not installed; `apt-get install flite` brings it\n")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        spoken = Path(folder, "spoken.wav")
        subprocess.run(["flite", "-voice", "rms", "-t", SENTENCE, "-o", str(spoken)], check=True)
        track = load_track(spoken)
    length = round(FRAMES / FPS * track.rate)
    wave = np.zeros(length, np.float32)
    found = track.waveform.mean(0).numpy()[:length]
    wave[: len(found)] = found
    frames = pictures(sound.envelope(sound.heard(track, FRAMES, FPS), FRAMES, FPS))
    write(frames, wave, track.rate)
    mouth(frames[0]).save(MOUTH, optimize=True)
    for path in (CLIP, MOUTH):
        sys.stdout.write(f"draw: {path.relative_to(ROOT)} written, {path.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
