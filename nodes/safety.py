"""The safety checker as a node: it finds installed classifiers, checks a clip, and replaces or refuses a flagged one.

If no classifier is installed, or the checker is off, the report says so. Nothing is downloaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..ltx.diffusion.decode import to_uint8
from ..ltx.errors import FlaggedError, InputError
from ..ltx.media.images import flat
from ..ltx.media.safety import REQUIRED, SAMPLES, THRESHOLD, Checker, Watch, blank, load_checker
from . import files
from .film import forget
from .progress import Progress, reported
from .taking.picture import to_frames
from .types import CATEGORY
from .widgets import aliases

KIND = "safety_checker"
MARK = "config.json"
OFF, FIRST, ROOT = "off", "first found", "."
REPLACE, REFUSE = ACTIONS = ("replace", "refuse")
CHUNK = 16  # frames that are checked at a time
WANTED = (
    "put a whole image classifier of transformers with safetensors weights there, for instance the repository "
    "https://huggingface.co/Falconsai/nsfw_image_detection"
)

folder_paths.add_model_folder_path(KIND, os.path.join(folder_paths.models_dir, KIND))


def installed() -> dict[str, Path]:
    """Folders of classifiers by name, the least deep first. A classifier in the folder itself has the name `.`."""
    found = {}
    for base in map(Path, folder_paths.get_folder_paths(KIND)):
        if (base / MARK).is_file():
            found.setdefault(ROOT, base)
    for name in sorted(files.model_folders(KIND, MARK), key=lambda name: (name.count("/"), name)):
        found[name] = files.model_folder(KIND, name, MARK, WANTED)
    return found


def stamp() -> str:
    """A text that changes when a classifier is installed, replaced or removed, for `fingerprint_inputs`."""
    return ";".join(f"{name}:{files.stamp(path)}" for name, path in installed().items())


def checker_input(*first: str) -> io.Input:
    return io.Combo.Input(
        "checker",
        options=[*first, *installed()],
        default=FIRST,
        tooltip="A folder in models/safety_checker with an image classifier. first found takes the least deep one. If "
        f"there is none, the video is not checked, and the report says so (the environment variable {REQUIRED}=require "
        "makes that an error).",
    )


def threshold_input(name: str = "threshold") -> io.Input:
    return io.Float.Input(
        name,
        default=THRESHOLD,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="A frame with this unsafe score or a higher one flags the clip. Lower it to be stricter.",
    )


def action_input(name: str = "action") -> io.Input:
    return io.Combo.Input(
        name,
        options=list(ACTIONS),
        default=REPLACE,
        tooltip="replace: a flagged clip becomes black frames. refuse: the run ends, and nothing is saved.",
    )


def check_choice(name: str) -> None:
    """Raises InputError if the name is neither an installed checker nor off or first found."""
    if name not in (OFF, FIRST, *installed()):
        raise InputError(f"{name!r} is not a folder with a {MARK} in models/{KIND}: {WANTED}.")


@dataclass(frozen=True)
class Choice:
    """A loaded checker, or None and the reason."""

    checker: Checker | None
    reason: str = ""


def chosen(name: str) -> Path | None:
    """The folder of the checker of that name, None if there is none or it is off. Raises InputError if it is missing,
    or if there is none and the environment requires one."""
    check_choice(name)
    known = installed()
    path = next(iter(known.values()), None) if name == FIRST else known.get(name)
    if path is None and os.environ.get(REQUIRED) == "require":
        what = "it is off" if name == OFF else f"there is none in models/{KIND}: {WANTED}"
        raise InputError(f"safety checker: {REQUIRED}=require needs one, and {what}.")
    return path


def open_checker(name: str) -> Choice:
    """Loads the checker of that name. Raises InputError as `chosen`, or if it is unusable."""
    path = chosen(name)
    if path is not None:
        return Choice(load_checker(path))  # on the CPU: it checks few frames and takes no device memory
    reason = "it is off" if name == OFF else f"none is installed in models/{KIND}"
    note = f"the safety checker did not run: {reason}"
    logging.warning("LTX A2V: %s", note)
    return Choice(None, note)


def chunks(images: Tensor) -> Iterator[Tensor]:
    """Yields the frames of a native IMAGE for a file, some at a time: uint8 [n, H, W, 3] on the CPU. Transparent parts
    are black. Raises InputError if a value is NaN or infinite."""
    for start in range(0, len(images), CHUNK):
        yield to_uint8(flat(images[start : start + CHUNK])).cpu()


class Flagged(Exception):
    """A frame was flagged. The frames so far must not be used."""


def stop_at_flag(watch: Watch, frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yields the frames. Raises Flagged if one of them is flagged."""
    for chunk in watch(frames):
        if watch.flagged:
            raise Flagged
        yield chunk


def passed(watch: Watch) -> str:
    """The sentence for the report on a clip that was not flagged."""
    return f"the safety checker {watch.checker.folder.name} passed the clip ({len(watch.wanted)} frames looked at)"


def flagged(watch: Watch, action: str) -> str:
    """The sentence for the report on a flagged clip that is replaced. Raises FlaggedError if it is refused."""
    frame, score = max(watch.scores.items(), key=lambda item: item[1])
    verdict = f"the safety checker {watch.checker.folder.name} flagged the clip (frame {frame}: {score:.2f})"
    if action == REFUSE:
        raise FlaggedError(f"{verdict}, and nothing was saved: change the prompt or the images, or the threshold.")
    logging.warning("LTX A2V: %s", verdict)
    return f"{verdict}; black frames stand in for it"


class SafetyChecker(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTXA2VSafetyChecker",
            display_name="LTX A2V Safety Checker",
            category=f"{CATEGORY}/Output",
            description="Checks frames spread evenly over the clip with your own image classifier, and replaces or "
            "refuses a flagged clip: an NSFW filter. Place it between Decode and Save Video.",
            **aliases("nsfw", "content filter"),
            inputs=[
                io.Image.Input("images", tooltip="The frames, from Decode."),
                checker_input(FIRST),
                threshold_input(),
                io.Int.Input(
                    "frames_looked_at",
                    default=SAMPLES,
                    min=2,
                    max=10_000,
                    tooltip="Number of frames that are checked, with the first and the last. A higher number finds "
                    "things that appear only briefly.",
                ),
                action_input(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="From the last sampler. If the clip is flagged, what is kept of it on the disk is deleted, "
                    "too.",
                ),
            ],
            outputs=[
                io.Image.Output("checked", display_name="images", tooltip="The frames, or black frames instead."),
                io.Boolean.Output("flagged", display_name="flagged", tooltip="Whether the clip was flagged."),
                io.String.Output(
                    "report", display_name="report", tooltip="Says what was found, or why nothing was checked."
                ),
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
        cls,
        images: Tensor,
        checker: str,
        threshold: float,
        frames_looked_at: int,
        action: str,
        latent: Mapping[str, Any] | None = None,
    ) -> io.NodeOutput:
        files.choice("action", action, ACTIONS)
        opened = open_checker(checker)
        if opened.checker is None:
            return reported(cls, images, False, text=opened.reason)
        if frames_looked_at < 2:
            raise InputError(f"frames_looked_at: {frames_looked_at} is too few; give at least 2.")
        progress = Progress(cls.hidden.unique_id)
        images = to_frames(images)
        watch = Watch(opened.checker, len(images), count=frames_looked_at, threshold=threshold)
        done = 0
        for chunk in watch(chunks(images)):
            done += len(chunk)
            progress(done, len(images))
        if watch.flagged:
            forget(latent or {})  # what was flagged does not stay on the disk
            return reported(cls, blank(images), True, text=flagged(watch, action))
        return reported(cls, images, False, text=f"{passed(watch)}, highest score {watch.verdict.score:.2f}")


NODES = (SafetyChecker,)
