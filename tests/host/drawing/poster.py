"""The picture that a workflow of LTX-2.5 has in the template browser: drawn in the banner's style, for no small LTX-2.5
could have made a frame."""

from __future__ import annotations

import io
import math

from a2v.tests.host.browser import Frontend
from PIL import Image

from .variants import Variant

NIGHT, PANEL, CREAM, GREY, GREEN, AMBER = "#16213a", "#1e2d50", "#f4f1e8", "#b9c4dd", "#6ee7c8", "#ffb454"
SIDE = 512
FONT = "Inter, 'Helvetica Neue', Arial, sans-serif"
MOUTHS = (5, 14, 8)  # half heights in the three frames
WAVE = 24  # bars


def _text(y: int, size: int, weight: int, color: str, words: str) -> str:
    return (f'<text x="40" y="{y}" font-family="{FONT}" font-size="{size}" font-weight="{weight}" fill="{color}">'
            f"{words}</text>")  # fmt: skip


def _frame(x: int, mouth: int, edge: str) -> str:
    eyes = "".join(f'<circle cx="{x + at}" cy="250" r="5" fill="{NIGHT}"/>' for at in (49, 79))
    return (f'<rect x="{x}" y="188" width="128" height="160" rx="14" fill="{PANEL}" stroke="{edge}" stroke-width="8"/>'
            f'<circle cx="{x + 64}" cy="260" r="42" fill="{AMBER}"/>{eyes}'
            f'<ellipse cx="{x + 64}" cy="277" rx="14" ry="{mouth}" fill="{NIGHT}"/>')  # fmt: skip


def _wave() -> str:
    heights = (8 + 40 * abs(math.sin(0.55 * bar) * math.cos(0.21 * bar)) for bar in range(WAVE))
    step = (SIDE - 80) / (WAVE - 1)
    path = "".join(f"M{40 + step * bar:.0f} {424 - height:.0f}v{2 * height:.0f}" for bar, height in enumerate(heights))
    return f'<path d="{path}" stroke="{GREEN}" stroke-width="10" stroke-linecap="round"/>'


def svg(variant: Variant) -> str:
    """With an image, the first frame has the wave's colour: it is the user's own, as the sound is."""
    about = variant.title.partition(f"LTX-{variant.version} ")[2]
    edges = (GREEN if variant.images else CREAM, CREAM, CREAM)
    frames = "".join(_frame(40 + 152 * n, *each) for n, each in enumerate(zip(MOUTHS, edges, strict=True)))
    title = _text(112, 60, 700, CREAM, f"LTX-{variant.version}")
    below = _text(154, 29, 400, GREY, about[:1].upper() + about[1:])
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIDE}" height="{SIDE}">'
            f'<rect width="{SIDE}" height="{SIDE}" fill="{NIGHT}"/>{title}{below}{frames}{_wave()}</svg>')  # fmt: skip


def picture(frontend: Frontend, variant: Variant, side: int) -> Image.Image:
    page = frontend.page.context.browser.new_page(viewport={"width": SIDE, "height": SIDE})
    try:
        page.set_content(f"<style>body {{margin: 0}}</style>{svg(variant)}")
        shot = Image.open(io.BytesIO(page.screenshot()))
    finally:
        page.close()
    return shot.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
