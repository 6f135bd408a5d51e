"""Writes a clip to the next file under a prefix, with the graph and the facts of the file in its metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from comfy.cli_args import args
from comfy_api.latest import InputImpl, io, ui
from torch import Tensor

from ..ltx.media.audio import soundtrack
from ..ltx.media.formats import suffix
from ..ltx.media.probe import VideoFile
from ..ltx.media.rates import frame_rate
from ..ltx.media.video import mixing, write_video
from .destination import destination
from .progress import report as announce
from .progress import shown
from .taking.sound import to_track


@dataclass(frozen=True)
class Target:
    """A file to be written: its name, its content and its format."""

    prefix: str
    frames: int
    height: int
    width: int
    fps: float
    audio: dict[str, Any] | None
    format: str
    quality: str
    write_mode: str
    kind: io.FolderType = io.FolderType.output

    def write(
        self,
        node: type[io.ComfyNode],
        chunks: Iterable[Tensor],
        notes: Callable[[], str],
        on_frames: Callable[[int], None],
        said: str = "",
    ) -> io.NodeOutput:
        """Writes frames uint8 [n, H, W, 3] and the sound into the next file of that name. Returns the node's output.

        notes: returns the lines of the report; it is called for the file's metadata and at the end for ComfyUI's
        history. said: what the node says while it writes, beside what this says.
        """
        rate = frame_rate(self.fps)
        folder, name, subfolder = destination(
            self.prefix, self.width, self.height, suffix(self.format), self.kind, node.hidden
        )
        track = None if self.audio is None else soundtrack(to_track(self.audio), self.frames, rate)
        mixed = mixing(track, self.format)
        told = "; ".join(filter(None, [said, mixed]))
        if told:
            announce(node, told)

        def lines() -> list[str]:
            return [line for line in (*notes().splitlines(), mixed) if line.strip()]

        used = {
            "width": self.width,
            "height": self.height,
            "frames": self.frames,
            "fps": str(rate),
            "duration": float(self.frames / rate),
            "format": self.format,
            "quality": self.quality,
            "write_mode": self.write_mode,
        }
        written = write_video(
            folder / name,
            chunks,
            rate,
            track,
            format=self.format,
            quality=self.quality,
            write_mode=self.write_mode,
            metadata=lambda: _metadata(node.hidden.prompt, node.hidden.extra_pnginfo, {"used": used, "notes": lines()}),
            on_frames=on_frames,
        )
        preview = ui.PreviewVideo([ui.SavedResult(name, subfolder, self.kind)]).as_dict()
        facts = {**used, **_facts(written, name, subfolder), "notes": lines()}
        text = shown(told) if told else {}
        return io.NodeOutput(InputImpl.VideoFromFile(str(written.path)), ui={**preview, "report": [facts], **text})


def _metadata(prompt: Any, extra: dict[str, Any] | None, made: dict[str, Any] | None = None) -> dict[str, str]:
    """The tags of a file: the graph, as ComfyUI's own Save Video embeds it, so that the file can be dropped on the
    canvas. ComfyUI's option --disable-metadata leaves all tags out.

    made: the facts and the report of the file, which become its comment, as in a file of the command.
    """
    if args.disable_metadata:
        return {}
    found = {**(extra or {}), **({"prompt": prompt} if prompt is not None else {})}
    if made:
        found["comment"] = made
    return {key: _json(value) for key, value in found.items()}


def _json(value: Any) -> str:
    """JSON with escaped braces in its strings, because the frontend's reader of .webm files counts all braces."""
    escaped = {"{": "\\u007b", "}": "\\u007d"}
    return re.sub(
        r'"(?:[^"\\]|\\.)*"', lambda text: re.sub("[{}]", lambda brace: escaped[brace[0]], text[0]), json.dumps(value)
    )


def _facts(video: VideoFile, name: str, subfolder: str) -> dict[str, Any]:
    """The facts of the file for ComfyUI's history, as values that JSON can hold."""
    facts = {key: value for key, value in vars(video).items() if key not in ("path", "metadata")}
    return {"filename": name, "subfolder": subfolder, **facts, "fps": str(video.fps), "duration": float(video.duration)}
