"""What a drawn workflow consists of: nodes, and stages that hold nodes and become subgraphs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from a2v.ltx.models import MODELS, V23, V25

BLUE, GREEN, YELLOW, VIOLET, ORANGE = (
    ("#1f3a4d", "#2b5068"),
    ("#2c3f2c", "#3b553b"),
    ("#453a1c", "#5c4e26"),
    ("#3b1f3f", "#512c57"),
    ("#45301f", "#5e422b"),
)
NOTE = ("#4a3d22", "#352d1f")
"""Darker than ComfyUI's own notes: the grey of its newest frontend (Nodes 2.0) can be read on it."""
HEADINGS = {2: 13, 3: 11.7}
"""Height of letters in notes by the level of a heading, in the canvas's units."""
ADDRESS = re.compile(r"(?<=\])\(.*?\)")
"""What a link in a note does not show."""
POSITIVE, NEGATIVE = ("#232", "#353"), ("#322", "#533")


@dataclass(frozen=True)
class File:
    """A published file that a node loads. size: for the note, in words."""

    name: str
    url: str
    folder: str
    size: str


def published(key: str, size: str) -> File:
    model = MODELS[key]
    return File(model.name, model.url, model.folder, size)


@dataclass(frozen=True)
class Files:
    """What the workflows of a version of LTX load. apart: by the widget of Load Model that names it."""

    dev: File
    distilled: File
    lora: File
    upscaler: File
    encoder: File
    apart: Mapping[str, File] = field(default_factory=dict)


CAMERA, UNION = published("dolly-in", "below 1 GB"), published("union-control", "0.7 GB")
DUBIT, INGREDIENTS = published("dubit", "2.5 GB"), published("ingredients", "1.3 GB")
ID_LORA = published("id-lora", "1.2 GB")
FILES = {
    V23.version: Files(
        dev=published("dev", "46 GB"),
        distilled=published("distilled", "46 GB"),
        lora=published("distilled-lora", "7.6 GB"),
        upscaler=published("upscaler", "1 GB"),
        encoder=published("gemma-fp4", "9.4 GB"),
    ),
    V25.version: Files(
        dev=published("dev-2.5", "42 GB"),
        distilled=published("distilled-2.5", "42 GB"),
        lora=published("distilled-lora-2.5", "8.9 GB"),
        upscaler=published("upscaler-2.5", "1 GB"),
        encoder=published("text-encoder-2.5", "26 GB"),
        apart={
            "video_vae": published("video-vae-2.5", "1.5 GB"),
            "audio_vae": published("audio-vae-2.5", "0.4 GB"),
        },
    ),
}
"""By version."""
SMALL = {
    MODELS["dev-fp8"].name: published("dev-fp8", "29 GB"),
    "distilled LoRA, rank 111": published("distilled-lora-111", "2.7 GB"),
}
"""LTX-2.3's files for small cards, by what a note calls them."""
FINER = published("diffusion-vae-2.5", "1.5 GB")
"""The video VAE that LTX-2.5 has beside the one that the workflows name."""


@dataclass(frozen=True)
class Node:
    """links: input → "key.output". height and width are minimums; a note's text is the value None.

    says: what a subgraph calls an output of this node where it comes in from outside. place: a node with a smaller one
    is drawn higher in its column; its id follows from the order that it is written in.
    """

    key: str
    kind: str
    title: str | None = None
    values: dict[str | None, Any] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    width: int = 340
    height: int = 0
    models: tuple[File, ...] = ()
    color: tuple[str, str] | None = None
    says: dict[str, str] = field(default_factory=dict)
    place: int = 0


@dataclass(frozen=True)
class Widget:
    """A setting that a closed stage shows. targets: (key of a node, its widget); all of them get the same value."""

    label: str
    targets: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, label: str, *targets: str) -> Widget:
        """targets: "key.widget"."""
        return cls(label, tuple((key, name) for key, name in (target.split(".") for target in targets)))


@dataclass(frozen=True)
class Stage:
    """Nodes and further stages in columns from left to right; closed, it is one node that shows its widgets.

    outputs: (what is seen outside, "key.output") of those that nothing outside takes, or that have another name there.
    """

    key: str
    title: str
    columns: tuple[tuple[Node | Stage, ...], ...]
    widgets: tuple[Widget, ...] = ()
    outputs: dict[str, str] = field(default_factory=dict)
    color: tuple[str, str] | None = None
    width: int = 340
    height: int = 0
    about: str = ""
    gutter: int = 110  # between its columns

    @property
    def items(self) -> list[Node | Stage]:
        return [item for column in self.columns for item in column]

    def nodes(self) -> Iterator[Node]:
        """All nodes in it, at any depth."""
        for item in self.items:
            if isinstance(item, Stage):
                yield from item.nodes()
            else:
                yield item

    def stages(self) -> Iterator[Stage]:
        """All stages in it, at any depth, inner ones first."""
        for item in self.items:
            if isinstance(item, Stage):
                yield from item.stages()
                yield item

    def ways(self, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        """The titles on the way to each stage in it, at any depth."""
        for item in self.items:
            if isinstance(item, Stage):
                yield (*above, item.title)
                yield from item.ways((*above, item.title))


def joined(key: str, *reports: str) -> Node:
    """A node that joins reports of a stage with those that came in."""
    links = {f"report_{place}": report for place, report in zip(count(1), reports, strict=False)}
    return Node(key, "LTXA2VReport", "Report so far", {}, links, 220, says={"report": "report"})


def note(key: str, text: str, width: int = 340, title: str | None = None, level: int = 2) -> Node:
    """A note, as high as its text needs. ComfyUI draws the plain text of notes in 10 units, which is too small at the
    zoom that a graph opens with; so each paragraph is a heading of that level."""
    paragraphs = text.split("\n\n")
    size = HEADINGS[level]
    letters = int((width - 24) / (0.6 * size))  # in a line
    lines = sum(len(textwrap.wrap(ADDRESS.sub("", paragraph), letters)) for paragraph in paragraphs)
    return Node(
        f"note: {key}",
        "MarkdownNote",
        title or f"Note: {key}",
        {None: "\n\n".join(f"{'#' * level} {paragraph}" for paragraph in paragraphs)},
        width=width,
        height=round(44 + 1.3 * size * lines + 0.75 * size * len(paragraphs)),
        color=NOTE,
    )
