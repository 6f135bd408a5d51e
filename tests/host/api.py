"""A ComfyUI server whose tiny models have the published names, as a user's have them; and the Python client on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from a2v.api.settings import APP
from a2v.api.workflow import CHECKPOINT_FILE, GEMMA_FOLDER, LORA_FILE, UPSCALER_FILE
from a2v.tests.host.comfy import Comfy, write_models
from a2v.tests.tiny import TinyFiles

ROOT = Path(__file__).resolve().parents[2]
SPEECH = ROOT / "assets" / "speech.opus"
CAMERA_FILE = "ltx-2-19b-lora-camera-control-dolly-in.safetensors"
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

__all__ = ["APP", "LONG", "SMALL", "SPEECH", "client_of", "environment", "write_published"]


def write_published(base: Path) -> TinyFiles:
    """The tiny set in the server's model folders, under the names that the workflows ask for; their paths there."""
    files = write_models(base)
    names = {
        "checkpoint": CHECKPOINT_FILE.names[0],
        "upscaler": UPSCALER_FILE.names[0],
        "distilled_lora": LORA_FILE.names[0],
        "camera_lora": CAMERA_FILE,
        "gemma": GEMMA_FOLDER.names[0],
    }
    placed = {
        field: getattr(files, field).rename(getattr(files, field).with_name(name)) for field, name in names.items()
    }
    return replace(files, **placed)


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
