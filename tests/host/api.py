"""What tests of the API share: a ComfyUI server with the published names, the Python client on it, others' servers."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from a2v.api.applications.audio_to_video import AUDIO_TO_VIDEO
from a2v.ltx.models import MODELS
from a2v.tests.host.comfy import Comfy, write_models
from a2v.tests.tiny import TinyFiles
from a2v.tests.tiny25 import write_tiny25

ROOT = Path(__file__).resolve().parents[2]
SPEECH = ROOT / "assets" / "speech.opus"
APP = AUDIO_TO_VIDEO.id
CAMERA_FILE = MODELS["dolly-in"].name
SMALL: dict[str, Any] = {
    "prompt": "a person speaks",
    "video_size": {"width": 64, "height": 64},
    "num_inference_steps": 8,
    "match_audio_length": False,
    "num_frames": 9,
    "enable_prompt_expansion": False,
    "seed": 7,
}
"""A request that takes a second on the tiny models."""
LONG = {**SMALL, "video_size": {"width": 256, "height": 256}, "num_inference_steps": 50, "num_frames": 241}
"""One that others can wait behind; to be cancelled."""

__all__ = [
    "APP",
    "LONG",
    "SMALL",
    "SPEECH",
    "Outside",
    "client_of",
    "environment",
    "outside",
    "write_ic_lora",
    "write_published",
    "write_published_25",
]
PLACED_25 = {
    "dev-2.5": "transformer",
    "distilled-2.5": "transformer",
    "text-encoder-2.5": "text_encoder",
    "video-vae-2.5": "video_vae",
    "diffusion-vae-2.5": "diffusion_vae",
    "audio-vae-2.5": "audio_vae",
    "upscaler-2.5": "upscaler",
    "distilled-lora-2.5": "distilled_lora",
}
"""Keys of published models → fields of the tiny set."""


def write_ic_lora(source: Path, target: Path, downscale: int = 2) -> None:
    """The tensors of a LoRA as an IC-LoRA, whose metadata says how many times smaller what it reads is."""
    from safetensors.torch import load_file, save_file

    save_file(load_file(source), target, metadata={"reference_downscale_factor": str(downscale)})


def write_published(base: Path, **sizes: int | str) -> TinyFiles:
    """The tiny set in the server's model folders, under the names that the workflows ask for; their paths there."""
    files = write_models(base, **sizes)
    names = {
        "checkpoint": MODELS["dev"].name,
        "upscaler": MODELS["upscaler"].name,
        "distilled_lora": MODELS["distilled-lora"].name,
        "camera_lora": CAMERA_FILE,
        "gemma": MODELS["gemma"].name,
    }
    placed = {
        field: getattr(files, field).rename(getattr(files, field).with_name(name)) for field, name in names.items()
    }
    return replace(files, **placed)


def write_published_25(base: Path, scratch: Path) -> dict[str, Path]:
    """The tiny LTX-2.5 in the server's model folders, under the published names: paths by the models' keys. scratch: an
    empty folder."""
    written = write_tiny25(scratch, vae_width=4)
    placed = {}
    for key, field in PLACED_25.items():
        placed[key] = base / "models" / MODELS[key].folder / MODELS[key].name
        placed[key].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(getattr(written, field), placed[key])
    return placed


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """The server takes its settings from here, at its start."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def client_of(comfy: Comfy) -> Iterator[Any]:
    """The module fal_client.client as its user sets it up: the lines that the README gives, and nothing else."""
    from fal_client import client

    lines = {
        "RUN_URL_FORMAT": f"{comfy.url}/fal/run/",
        "QUEUE_URL_FORMAT": f"{comfy.url}/fal/queue/",
        "REST_URL": f"{comfy.url}/fal/rest",
        "CDN_URL": f"{comfy.url}/fal/cdn",
    }
    before = {name: getattr(client, name) for name in lines}
    for name, value in lines.items():
        setattr(client, name, value)
    try:
        yield client
    finally:
        for name, value in before.items():
            setattr(client, name, value)


class Outside:
    """A web server of somebody's on this machine: it takes webhooks, and says so once it `answers`; and it gives files
    once it is `open`."""

    def __init__(self) -> None:
        self.posts: list[tuple[Message, bytes]] = []
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.answers = threading.Event()
        self.answers.set()
        here = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                here.posts.append((self.headers, self.rfile.read(int(self.headers["Content-Length"]))))
                here.answers.wait(60)
                self.send_response(200)
                self.end_headers()

            def do_GET(self) -> None:
                here.asked.append(self.path)
                here.open.wait(60)
                found = here.files.get(self.path)
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Length", str(len(found or b"")))
                self.end_headers()
                self.wfile.write(found or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What the webhooks said."""
        return [json.loads(body) for _, body in self.posts]

    def close(self) -> None:
        self.open.set()
        self.answers.set()
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def outside() -> Iterator[Outside]:
    """Servers that start meanwhile may call it, and nothing else on this machine."""
    found = Outside()
    try:
        with environment(LTX_A2V_ALLOW_HOSTS="localhost"):
            yield found
    finally:
        found.close()
