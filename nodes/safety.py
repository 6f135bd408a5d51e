"""The safety checker: which classifiers are installed, what they say, and what becomes of a flagged clip.

It is never silently absent: where none is installed, or it is off, the report says so. Nothing is downloaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..ltx.diffusion.decode import to_uint8
from ..ltx.errors import FlaggedError, InputError
from ..ltx.media.safety import REQUIRED, SAMPLES, THRESHOLD, Checker, Watch, blank, load_checker
from . import files
from .progress import Progress, report
from .types import CATEGORY

KIND = "safety_checker"
MARK = "config.json"
OFF, FIRST, ROOT = "off", "first found", "."
REPLACE, REFUSE = ACTIONS = ("replace", "refuse")
CHUNK = 16  # frames handed on at a time
WANTED = (
    "put a whole image classifier of transformers with safetensors weights there, for instance the repository "
    "https://huggingface.co/Falconsai/nsfw_image_detection"
)

folder_paths.add_model_folder_path(KIND, os.path.join(folder_paths.models_dir, KIND))


def installed() -> dict[str, Path]:
    """Folders of classifiers by name, the nearest first; a classifier that lies in the folder itself is `.`."""
    found = {}
    for base in map(Path, folder_paths.get_folder_paths(KIND)):
        if (base / MARK).is_file():
            found.setdefault(ROOT, base)
    for name in sorted(files.model_folders(KIND, MARK), key=lambda name: (name.count("/"), name)):
        found[name] = files.model_folder(KIND, name, MARK, WANTED)
    return found


def stamp() -> str:
    """What changes when a classifier is installed, replaced or removed, for `fingerprint_inputs`."""
    return ";".join(f"{name}:{files.stamp(path / MARK)}" for name, path in installed().items())


def checker_input(*first: str) -> io.Input:
    return io.Combo.Input(
        "checker",
        options=[*first, *installed()],
        default=FIRST,
        tooltip="A folder of models/safety_checker with an image classifier. first found takes the nearest one; "
        f"without any the video is not checked, and the report says so (the environment's {REQUIRED}=require makes it "
        "an error).",
    )


def threshold_input(name: str = "threshold") -> io.Input:
    return io.Float.Input(
        name,
        default=THRESHOLD,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="A frame whose unsafe labels score so much flags the clip. Lower it to be stricter.",
    )


def action_input(name: str = "action") -> io.Input:
    return io.Combo.Input(
        name,
        options=list(ACTIONS),
        default=REPLACE,
        tooltip="replace: black frames stand in for a flagged clip. refuse: the run ends, and nothing is saved.",
    )


def check_choice(name: str) -> None:
    """Whether there is a checker of that name, or one that need not be there. Errors: neither."""
    if name not in (OFF, FIRST, *installed()):
        raise InputError(f"{name!r} is no folder with a {MARK} in models/{KIND}: {WANTED}.")


@dataclass(frozen=True)
class Choice:
    """A loaded checker, or none and the reason."""

    checker: Checker | None
    reason: str = ""


def open_checker(name: str) -> Choice:
    """The checker of that name. Errors: not there or not usable; none, where the environment requires one."""
    check_choice(name)
    known = installed()
    path = next(iter(known.values()), None) if name == FIRST else known.get(name)
    if path is not None:
        return Choice(load_checker(path))  # on the CPU: a few frames, and no room taken from the model
    if os.environ.get(REQUIRED) == "require":
        what = "it is off" if name == OFF else f"there is none in models/{KIND}: {WANTED}"
        raise InputError(f"safety checker: {REQUIRED}=require asks for one, and {what}.")
    reason = "it is off" if name == OFF else f"none is installed in models/{KIND}"
    said = f"the safety checker did not run: {reason}"
    logging.warning("LTX A2V: %s", said)
    return Choice(None, said)


def chunks(images: Tensor) -> Iterator[Tensor]:
    """Frames of a native IMAGE as a file takes them, some at a time: uint8 [n, H, W, 3] on the CPU."""
    for start in range(0, len(images), CHUNK):
        yield to_uint8(images[start : start + CHUNK, ..., :3].float().clamp(0, 1)).cpu()


class Flagged(Exception):
    """A frame was flagged; what has passed so far is not to be used."""


def stop_at_flag(watch: Watch, frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """The frames as they come, until one is flagged. Errors: Flagged."""
    for chunk in watch(frames):
        if watch.flagged:
            raise Flagged
        yield chunk


def passed(watch: Watch) -> str:
    return f"the safety checker {watch.checker.folder.name} passed the clip ({len(watch.wanted)} frames looked at)"


def flagged(watch: Watch, action: str) -> str:
    """What is said of a flagged clip that is replaced. Errors: FlaggedError where it is refused."""
    frame, score = max(watch.scores.items(), key=lambda item: item[1])
    said = f"the safety checker {watch.checker.folder.name} flagged the clip (frame {frame}: {score:.2f})"
    if action == REFUSE:
        raise FlaggedError(f"{said}, and nothing was saved: change the prompt or the images, or the threshold.")
    logging.warning("LTX A2V: %s", said)
    return f"{said}; black frames stand in for it"


class SafetyChecker(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VSafetyChecker",
            display_name="LTX A2V Safety Checker",
            category=f"{CATEGORY}/Output",
            description="Looks at frames spread evenly over the clip with an image classifier of your own, and "
            "replaces or refuses a clip that it flags: an NSFW filter. Place it between Decode and Save Video.",
            inputs=[
                io.Image.Input("images", tooltip="The frames, from Decode."),
                checker_input(FIRST),
                threshold_input(),
                io.Int.Input(
                    "frames_looked_at",
                    default=SAMPLES,
                    min=2,
                    max=10_000,
                    tooltip="The first and the last are among them. More find what shows only briefly.",
                ),
                action_input(),
            ],
            outputs=[
                io.Image.Output("checked", display_name="images", tooltip="The frames, or black ones in their place."),
                io.Boolean.Output("flagged", display_name="flagged", tooltip="Whether the clip was flagged."),
                io.String.Output("report", display_name="report", tooltip="What it saw, or why it did not look."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, checker: str | None = None) -> bool | str:
        return files.verdict(check_choice, checker)

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> str:
        return stamp()

    @classmethod
    def execute(
        cls, images: Tensor, checker: str, threshold: float, frames_looked_at: int, action: str
    ) -> io.NodeOutput:
        files.choice("action", action, ACTIONS)
        opened = open_checker(checker)
        if opened.checker is None:
            return io.NodeOutput(images, False, report(cls, opened.reason))
        if frames_looked_at < 2:
            raise InputError(f"frames_looked_at: {frames_looked_at} is too few; give at least 2.")
        progress = Progress(cls.hidden.unique_id)
        watch = Watch(opened.checker, len(images), count=frames_looked_at, threshold=threshold)
        done = 0
        for chunk in watch(chunks(images)):
            done += len(chunk)
            progress(done, len(images))
        if watch.flagged:
            said = report(cls, flagged(watch, action))
            return io.NodeOutput(blank(images), True, said)
        return io.NodeOutput(images, False, report(cls, f"{passed(watch)}, highest score {watch.verdict.score:.2f}"))


NODES = (SafetyChecker,)
