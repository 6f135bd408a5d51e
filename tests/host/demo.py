"""`make demo`: an audio file becomes a video, by the shipped workflow in a real ComfyUI server.

The model is the miniature of mini/weights, which knows flat-coloured talking faces, bars and balls; the way there is
the real one: the pack installed as a user installs it, the file uploaded, the graph queued and followed over HTTP. The
environment gives AUDIO (any file with a sound track), PROMPT and IMAGE (first frame); each may be absent. An argument
names the folder to work in, .demo otherwise.
Exit status: 0, 2 for bad input, 1 for a failure, 130 interrupted.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# the pack's name outside ComfyUI, as in tests/conftest.py
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules.setdefault("a2v", alias)

import av
from a2v.api.graph.begun import Begun
from a2v.ltx.errors import InputError
from a2v.ltx.media.audio import load_track
from a2v.ltx.media.images import load_image
from a2v.mini import sizes
from a2v.tests.host.comfy import Comfy, ComfyError, Event, Prompt, PromptRejected, Run
from a2v.tests.tiny import TinyFiles

DEMO = ROOT / ".demo"
WORKFLOW = ROOT / "workflows" / "api" / "audio_to_video.json"
SPEECH = ROOT / "assets" / "speech.opus"
WEIGHTS = ROOT / "mini" / "weights"
SIZE = 128  # pixels a side: what the miniature was trained on
POSITIVE = "Positive prompt"  # title of the node that takes it
PROMPT = "a pink square face on the center is talking on a navy background"
FOLDERS = {
    "checkpoint": "checkpoints",
    "upscaler": "latent_upscale_models",
    "distilled": "loras",
    "dolly_in": "loras",
    "gemma": "text_encoders",
}
RUN_SECONDS = 1800


def nodes(prompt: Prompt, class_type: str) -> list[dict[str, Any]]:
    """The inputs of every node of a class."""
    return [node["inputs"] for node in prompt.values() if node["class_type"] == class_type]


def place_models(base: Path) -> TinyFiles:
    """The miniature's files in the model folders of `base`, each where its loader looks."""
    placed = {}
    for name, folder in FOLDERS.items():
        source, target = WEIGHTS / sizes.FILES[name], base / "models" / folder / sizes.FILES[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        placed[name] = Path((shutil.copytree if source.is_dir() else shutil.copyfile)(source, target))
    return TinyFiles(*(placed[name] for name in ("checkpoint", "upscaler", "distilled", "dolly_in", "gemma")))


def fill(prompt: Prompt, models: TinyFiles, audio: str, text: str | None, image: str | None) -> Prompt:
    """The workflow with this run's files and size in the places of its own; text and first image where given."""
    values = {
        "LTXA2VModelLoader": {"checkpoint": models.checkpoint.name},
        "LTXA2VTextEncoderLoader": {"folder": models.gemma.name},
        "LTXA2VUpscalerLoader": {"file": models.upscaler.name},
        "LTXA2VDistilledLora": {"lora": models.distilled_lora.name},
        "LTXA2VLoadAudio": {"audio": audio},
        "LTXA2VVideoSize": {"video_size": "custom", "width": SIZE, "height": SIZE},
        "LTXA2VExpandPrompt": {"enabled": False},  # the miniature's text encoder cannot write
        "LTXA2VTimeline": {"enabled": False},
    }
    for class_type, inputs in values.items():
        for node in nodes(prompt, class_type):
            node.update(inputs)
    if text:
        (asked,) = (node["inputs"] for node in prompt.values() if node["_meta"]["title"] == POSITIVE)
        asked["prompt" if "prompt" in asked else "text"] = text
    if image:
        add_image(prompt, image)
    return prompt


def add_image(prompt: Prompt, image: str) -> None:
    """Gives both stages a first frame, which the workflow leaves out."""
    (loader,) = (key for key, node in prompt.items() if node["class_type"] == "LTXA2VModelLoader")
    prompt["image"] = {"class_type": "LoadImage", "inputs": {"image": image}}
    for number, sampler in enumerate(nodes(prompt, "LTXA2VSampler")):
        inputs = {"video_vae": [loader, 2], "image": ["image", 0], "latent": sampler["latent"], "strength": 1.0}
        prompt[f"first frame {number}"] = {"class_type": "LTXA2VImageConditioning", "inputs": inputs}
        sampler["guides"] = [f"first frame {number}", 0]


class Progress:
    """One line a node, its bar redrawn in place on a terminal."""

    def __init__(self, prompt: Prompt) -> None:
        self.begun = Begun(prompt)
        self.titles = {key: node.get("_meta", {}).get("title") or node["class_type"] for key, node in prompt.items()}
        self.line = ""
        self.done = 0

    def __call__(self, event: Event) -> None:
        if event.type == "execution_cached":
            self.done += len(event.data["nodes"])
        for node in self.begun.hear(event.type, event.data):
            self.end()
            self.done += 1
            self.draw(node)
        if event.type == "progress":
            self.draw(event.data["node"], event.data["value"], event.data["max"])
        elif event.type == "executing" and event.data["node"] is None:
            self.end()

    def draw(self, node: str, value: int = 0, steps: int = 0) -> None:
        title = self.titles.get(node, node)
        self.line = f"  {self.done:2}/{len(self.titles)}  {title:32.32}"
        if steps:
            filled = round(20 * value / steps)
            self.line += f"  {'█' * filled}{'░' * (20 - filled)}  {value:g}/{steps:g}"
        if sys.stdout.isatty():
            sys.stdout.write("\r\033[K" + self.line)
            sys.stdout.flush()

    def end(self) -> None:
        if self.line:
            sys.stdout.write("\n" if sys.stdout.isatty() else self.line.rstrip() + "\n")
            sys.stdout.flush()
            self.line = ""


def video_of(server: Comfy, run: Run) -> Path:
    """The .mp4 among the outputs of a run."""
    results = (item for output in run.outputs.values() for value in output.values() for item in value)
    files = (item for item in results if isinstance(item, dict) and "filename" in item)
    return next(server.path(item) for item in files if item["filename"].endswith(".mp4"))


def streams(video: Path) -> list[str]:
    """A line for each stream of the file."""
    lines = []
    with av.open(str(video)) as file:
        for stream in file.streams:
            codec, seconds = stream.codec_context, float(stream.duration * stream.time_base)
            if stream.type == "video":
                what = f"{codec.width}×{codec.height}, {float(stream.average_rate):g} fps, {stream.frames} frames"
            else:
                what = f"{codec.sample_rate} Hz, {codec.layout.name}"
            lines.append(f"{stream.type}: {codec.name}, {what}, {seconds:.2f} s")
    return lines


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(audio: Path, text: str = PROMPT, image: Path | None = None, base: Path = DEMO) -> int:
    """Runs it all under `base`; the exit status."""
    try:
        seconds = float(load_track(audio).seconds)  # a bad file is told before anything is started
        if image:
            load_image(image)
    except InputError as error:
        sys.stderr.write(f"demo: {error}\n")
        return 2
    say(f"demo: a miniature of the model, which knows simple talking faces, in {base / 'models'}")
    shutil.rmtree(base / "models", ignore_errors=True)
    models = place_models(base)
    say("demo: starting ComfyUI")
    started = time.monotonic()
    try:
        with Comfy(base) as server:
            say(f"demo: {server.url} ready in {time.monotonic() - started:.1f} s")
            say(f"demo: sending {audio.name}, {seconds:.2f} s of sound")
            workflow = json.loads(WORKFLOW.read_text())
            prompt = fill(workflow, models, server.upload(audio), text, server.upload(image) if image else None)
            started, progress = time.monotonic(), Progress(prompt)
            run = server.run(prompt, on_event=progress, timeout=RUN_SECONDS)
            if run.error:
                progress.end()
                sys.stderr.write(f"demo: {run.error['node_type']}: {run.message}\n")
                return 1
            video = video_of(server, run)
    except PromptRejected as error:
        sys.stderr.write(f"demo: {error}\n")
        return 2
    except ComfyError as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    say(f"demo: done in {time.monotonic() - started:.1f} s: {video}")
    for line in streams(video):
        say(f"        {line}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    first = os.environ.get("IMAGE")
    try:
        sys.exit(
            main(
                Path(os.environ.get("AUDIO") or SPEECH).expanduser(),
                os.environ.get("PROMPT") or PROMPT,
                Path(first).expanduser() if first else None,
                Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO,
            )
        )
    except KeyboardInterrupt:
        sys.stderr.write("\ndemo: stopped\n")
        sys.exit(130)
