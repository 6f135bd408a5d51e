"""Work on given videos, on the trained miniature: whether a redubbed mouth follows the new track and no longer the old
one, whether what is kept is the source's own, and whether a retake and an extension are seen.

edited.py makes the films, in a process of its own. A finished one is kept, so that a run that was cut goes on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from a2v.benchmarks.measure import MISSING, ROOT, Table, sides
from a2v.benchmarks.parts import Parts, code

COUNT = 8  # clips of each task
TASKS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "redub": ("redub", {}),
    "retake": ("retake", {}),
    "extension behind": ("extend", {}),
    "extension before": ("extend", {"before": True}),
    "keyframes": ("keyframes", {}),
}
SMALL = ("redub", "retake", "extension behind")
KEPT = ROOT / "build" / "bench" / "edits.parts.json"
EQUAL = 100.0  # dB, of frames that are the same
COLUMNS = ("what", "clips", "mean", "spread", "wanted", "kept")
Figures = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Line:
    """A row of the table. text: of the figure; digits: behind the point; unit: behind the number; least, most: its
    bounds; worst: whether they are for the worst clip in place of the mean."""

    text: str
    digits: int = 2
    unit: str = ""
    least: float = -math.inf
    most: float = math.inf
    worst: bool = False

    def value(self, found: Sequence[float]) -> float:
        """What the bounds are for."""
        if not self.worst:
            return statistics.mean(found)
        return min(found) if self.most == math.inf else max(found, key=abs)

    def cells(self, found: Sequence[float]) -> tuple[str, str, str, str]:
        """The mean, the spread, what is wanted, and whether that is kept."""
        value, wanted, kept = self.value(found), MISSING, MISSING
        if self.least > -math.inf or self.most < math.inf:
            sign, bound = ("≥ ", self.least) if self.least > -math.inf else ("≤ ", self.most)
            sign = "" if self.least == self.most else sign
            wanted = f"{sign}{bound:g}{self.unit}{', each' if self.worst else ''}"
            kept = "yes" if self.least <= value <= self.most else "no"
        spread = f"{self.shown(min(found))} … {self.shown(max(found))}" if max(found) > min(found) else MISSING
        return self.shown(statistics.mean(found), self.unit), spread, wanted, kept

    def shown(self, value: float, unit: str = "") -> str:
        return "equal" if self.unit == " dB" and value >= EQUAL else f"{value:.{self.digits}f}{unit}"


SEAMS = {
    "seam": Line("change at a seam / median change"),
    "seam, drawn": Line("… in the drawn clip"),
    "around": Line("largest change of the frames that are blended / median change"),
    "around, drawn": Line("… in the drawn clip"),
}
OF_EXTENSIONS = {
    "correlation": Line("new part: correlation of the mouth with its sound", 3, least=0.8),
    "picture": Line("new part, against the drawn clip", 1, " dB"),
    "ground": Line("ground, last second against the first, of 255", 1, most=8, worst=True),
    "face": Line("face, last second against the first, of 255", 1, most=8, worst=True),
    "kept": Line("kept frames, before encoding", 1, " dB", least=40, worst=True),
    **SEAMS,
}
LINES: Mapping[str, Mapping[str, Line]] = {
    "redub": {
        "new": Line("correlation of the mouth with the new track", 3, least=0.8),
        "lag": Line("best lag, frames", 0, least=0, most=0, worst=True),
        "old": Line("correlation of the mouth with the old track", 3, most=0.2),
        "tracks": Line("… of the two tracks", 3),
        "inside": Line("inside the mask, against a drawn clip with the new track", 1, " dB"),
        "outside": Line("outside the mask, before encoding", 1, " dB", least=40, worst=True),
        "high": Line("… in the file, `high`", 1, " dB", least=40),
        "maximum": Line("… in the file, `maximum`", 1, " dB", least=40),
        "codec": Line("… the source, encoded again with `high`", 1, " dB"),
    },
    "retake": {
        "correlation": Line("new part: correlation of the mouth with its sound", 3, least=0.8),
        "picture": Line("new part, against the drawn clip", 1, " dB"),
        "kept": Line("kept frames, before encoding", 1, " dB", least=40, worst=True),
        **SEAMS,
        "seam": replace(SEAMS["seam"], most=2.0, worst=True),
    },
    "extension behind": OF_EXTENSIONS,
    "extension before": OF_EXTENSIONS,
    "keyframes": {
        "frame 0": Line("PSNR of frame 0", 1, " dB", least=28),
        "frame 24": Line("PSNR of frame 24", 1, " dB", least=24),
        "frame 48": Line("PSNR of frame 48", 1, " dB", least=24),
        "correlation": Line("correlation of the mouth with its sound", 3, least=0.8),
    },
}

NOTES = (
    "128×128 at 24 frames per second on the trained miniature, by headless jobs with the default settings. The "
    "sources are clips that mini/ draws, of faces in words and with voices that training never had, written to .mp4. "
    "A redub has 73 frames, the sound of the other clip whose sound is least like its own, and a mask that is 12 "
    "pixels wider than the open mouth. A retake makes the seconds 1 to 2 of 73 frames anew. An extension adds two "
    "seconds to two, with sound that goes on. Keyframes are a drawn clip's pictures at three frames of a new clip.",
    "Correlations are those at lag 0. Kept pictures are compared where they go to the encoder; `equal` is every "
    "byte. In the file they have what H.264 costs: the source, encoded again, has as much. The median change is the "
    "film's own, of all its frames; a drawn clip, which has no seams, shows how large a change can be. The miniature "
    "has no IC-LoRA, so a reference is not among the tasks.",
    "Where a retake's seam is above its bound, the drawn clip changes as much at that place: the mouth moves there. "
    "Inside a mask the miniature is less sharp than elsewhere. The kept cells of such a frame are shown to the model "
    "as noisy as the new ones, because no frame of its training was clean in a part: with the earlier weights, clean "
    "ones gave 17.0 dB in place of 21.2 and a correlation of 0.78 in place of 0.84 (four clips, without guidance). One "
    "stage and a mask 24 pixels wider are no better, and strength 0.3 keeps the old words.",
    "The new part of an extension is matched to the colours of the clip. Without that, with the earlier weights, one "
    "face, a green one, was off by 10.4 and 11.9 of 255. A round trip of the drawn clip through the VAE was off by 5.3 "
    "and 7.0; the rest was the miniature's: it made that green darker in every clip, from the first new frame on, also "
    "in a single one that begins with the clip's own picture, with and without guidance, rescale and restart.",
)


def edits(folder: Path, small: bool = False) -> Table:
    identity = {"code": code("ltx", "mini", "benchmarks/edited.py")}
    parts = Parts(folder / "edits.parts.json" if small else KEPT, identity)
    with sides("edited", log=folder / "sides.log") as (side,):

        def figures(task: str, number: int) -> Mapping[str, float]:
            function, asked = TASKS[task]
            make = partial(side, function, folder=str(folder), number=number, **asked)
            return parts.get(f"{task}, clip {number + 1}", make)

        names, numbers = (SMALL, range(1)) if small else (TASKS, range(COUNT))
        found = {task: [figures(task, number) for number in numbers] for task in names}
    made = table(found)
    parts.done()
    return made


def table(found: Mapping[str, Figures]) -> Table:
    """The figures of all tasks, one a row."""
    rows, numbers = [], {}
    for task, figures in found.items():
        for name, line in LINES[task].items():
            values = [each[name] for each in figures]
            rows.append((f"{task}: {line.text}", f"{len(values)}", *line.cells(values)))
            numbers[f"{task}: {name}"] = line.value(values)
    return Table("Work on a video", COLUMNS, tuple(rows), NOTES, numbers)
