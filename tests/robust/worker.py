"""A process that takes case files one after the other through the command's own way in or the API's, and says what came
of each.

python worker.py MODELS: a line "ready", then lines of JSON in, {"way", "field", "path"}, and out, {"outcome", "text",
"seconds" of its CPU time, "resident" bytes}. "read" is a valid result, "refused" the one sentence, "broken" anything
else; a crash is the caller's to see. Not a test: test_corpus.py starts it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

if "a2v" not in sys.modules:
    alias = types.ModuleType("a2v")
    alias.__path__ = [str(Path(__file__).resolve().parents[2])]
    sys.modules["a2v"] = alias

import torch
from a2v.ltx.arguments import read_request
from a2v.ltx.diffusion.sound import log_mel
from a2v.ltx.errors import InputError
from a2v.ltx.job import Files, prepare
from a2v.ltx.media import images, preprocess
from a2v.ltx.media.audio import conditioning_track, load_track, soundtrack
from a2v.ltx.prompt.gemma import load_gemma
from a2v.ltx.request import parse
from a2v.ltx.weights import lora
from a2v.tests.api.edges import arrive, make_settings, opened

REQUEST = {
    "prompt": "a person speaks", "seed": 1, "use_multiscale": False, "video_size": {"width": 64, "height": 64},
    "enable_prompt_expansion": False,
}  # fmt: skip


def resident() -> int:
    """Bytes of this process in memory; 0 where /proc does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGESIZE")


def command(models: dict[str, str], field: str, path: Path) -> str:
    """As `python -m ltx` goes, up to the models; sound and pictures up to what the VAEs are given."""
    request = parse(read_request(path)) if field == "request" else parse(REQUEST)
    named: dict[str, Any] = {name: Path(value) for name, value in models.items()}
    named["output"] = path.with_name("out.mp4")
    if field == "lora":
        named["loras"] = ((path, 1.0),)
    elif field != "request":
        named[field] = path
    if field == "upscaler":
        request = parse({**REQUEST, "use_multiscale": True})
    if request.camera_lora != "none":
        named["camera_lora"] = named["unused_camera"]
    named.pop("unused_camera")
    job = prepare(Files(**named), request)
    clip = job.plan
    if field == "audio":
        heard = preprocess.preprocess(soundtrack(job.track, clip.frames, clip.fps))
        mel = log_mel(conditioning_track(heard, clip.frames, clip.fps))
        assert mel.isfinite().all() and mel.shape[2] >= 1, f"mel of {tuple(mel.shape)}, finite: {mel.isfinite().all()}"
        assert 9 <= clip.frames <= 481 and clip.frames % 8 == 1, clip
    if field == "image":
        for picture in (image.pixels for image in job.images):
            assert images.fit(picture, clip.width, clip.height).isfinite().all()
    if field == "request":
        assert clip.frames % 8 == 1 and clip.width % 32 == clip.height % 32 == 0, clip
        assert clip.frames / clip.fps <= 600, clip
    if field == "text_encoder":
        load_gemma(path)
    if field in ("checkpoint", "video_vae", "connectors"):
        job.checkpoint.transformer(), job.checkpoint.video_vae(), job.checkpoint.connectors()
    if field == "lora":
        model = job.checkpoint.transformer(torch.float32)
        lora.Merger(model, job.checkpoint.transformer_weight).set(job.loras[0])
    return f"{clip.width}x{clip.height}, {clip.frames} frames"


def api(folder: Path, field: str, path: Path) -> str:
    """As a file of a request to the HTTP API, which the graph's loader reads; nothing else is left."""
    settings = make_settings(folder)
    try:
        with opened(settings) as store:
            name = arrive(path.read_bytes(), field, settings, store)
        kept = settings.input / name
        shape = load_track(kept).waveform.shape if field == "audio" else images.load_image(kept).shape
        kept.unlink()
    except InputError as error:
        if not str(error).startswith(f"{field}_url: "):  # the loader's own
            kept.unlink()
        raise
    finally:
        left = sorted(file.name for file in settings.input_folder.glob("*"))
        assert not left, f"left behind: {left}"
    return f"{name}, {tuple(shape)}"


def main() -> None:
    models = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print do not break the lines
    gc.freeze()  # what was imported is not looked through after each case
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        field, path = asked["field"], Path(asked["path"])
        began = time.process_time()
        try:
            text = api(path.parent, field, path) if asked["way"] == "api" else command(models, field, path)
            outcome = "read"
        except InputError as error:
            outcome, text = "refused", str(error)
        except BaseException as error:
            outcome, text = "broken", f"{type(error).__name__}: {error}"
        seconds = time.process_time() - began
        gc.collect()
        out.write(json.dumps({"outcome": outcome, "text": text, "seconds": seconds, "resident": resident()}) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
