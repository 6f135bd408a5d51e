"""The official pipeline's golden files, and how far a run's trace is from one: shared by the tests that compare.

test_goldens.py and test_goldens_25.py have the real command in float32; test_modes.py the ways to make the models fit
into memory.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from a2v.ltx import __main__ as program
from a2v.ltx import pipeline
from a2v.ltx.job import Files
from a2v.ltx.terminal import ENDING
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

RUNS = ("endpoint_defaults", "linear_quadratic_ge", "ltx2")
RUNS_25 = ("dev_diffusion_decoder", "dev_endpoint_defaults", "dev_linear_quadratic_ge", "distilled_recipe")
LIMIT = 1e-4
TIGHT = 3e-5
"""What holds in float32 with a margin: 1e-5 and less was measured, by the thread count and the processor."""


def relative(x: Tensor, reference: Tensor) -> float:
    """Relative L2 distance, in float64; the plain one from zeros. Another shape is a failure."""
    assert x.shape == reference.shape, (x.shape, reference.shape)
    difference, size = (x.double() - reference.double()).norm(), reference.double().norm()
    return (difference / size if size else difference).item()


def worst(differences: Mapping[str, float]) -> float:
    return max(differences.values())


def apart(frames: Tensor, expected: Tensor, levels: int = 0) -> float:
    """The share of a video's values that are more than so many levels of 255 from what they should be."""
    assert frames.shape == expected.shape and frames.dtype == expected.dtype
    return ((frames.int() - expected.int()).abs() > levels).float().mean().item()


def unforeseen(*given: Any, announce: object, **more: Any) -> pipeline.Result:
    """The command's job without the forecast of memory, which takes as long as all else; test_forecast.py has it."""
    return pipeline.run(*given, **more)


class Golden:
    """One golden file: its tensors, the parameters it was made of, and the files that went in.

    trace: what a run made of them, to be compared; set by who runs.
    """

    def __init__(self, oracle: Path, name: str) -> None:
        self.tiny = oracle / "tiny"
        self.file = safe_open(oracle / f"{name}.safetensors", "pt")
        self.info: dict[str, Any] = json.loads(self.file.metadata()["info"])
        self.names = sorted(self.file.keys())
        self.frames = self.file.get_tensor("final/frames_u8")
        self.trace: Mapping[str, Tensor] = {}

    @property
    def request(self) -> dict[str, Any]:
        """The parameters under the endpoint's names."""
        info = self.info
        sampler = re.fullmatch(r"euler|ge:(.+)", info["sampler"])
        return {
            "prompt": info["prompt"],
            "negative_prompt": info["negative_prompt"],
            "seed": info["seed"],
            "video_size": {"width": info["width"], "height": info["height"]},
            "num_frames": info["frames"],
            "match_audio_length": False,
            "fps": info["fps"],
            "num_inference_steps": info["steps"],
            "video_cfg_scale": info["cfg"],
            "video_stg_scale": info["stg"],
            "video_rescaling_scale": info["rescale"],
            "video_modality_scale": info["modality"],
            "gradient_estimation_gamma": float(sampler[1]) if sampler[1] else None,
            "scheduler": info["scheduler"],
            "use_multiscale": True,
            "camera_lora_scale": info["lora"],
            "distill_lora_first_pass_scale": info["distilled1"],
            "distill_lora_second_pass_scale": info["distilled"],
            "image_strength": max(info["first"], 0),
            "end_image_strength": max(info["last"], 0),
            **dict.fromkeys(
                ("use_restart_sampling", "enable_prompt_expansion", "enable_safety_checker", "preprocess_audio"), False
            ),
        }

    def files(self, output: Path) -> Files:
        tiny, info = self.tiny, self.info
        return Files(
            checkpoint=tiny / "ltx-2.3-tiny.safetensors",
            text_encoder=tiny / "gemma",
            audio=tiny / info["audio"],
            output=output,
            upscaler=tiny / "ltx-2.3-tiny-upscaler-x2.safetensors",
            distill_lora=tiny / "ltx-2.3-tiny-distilled-lora.safetensors",
            camera_lora=tiny / "ltx-2.3-tiny-camera-lora.safetensors" if info["lora"] else None,
            image=tiny / "first.png" if info["first"] >= 0 else None,
            end_image=tiny / "last.png" if info["last"] >= 0 else None,
        )

    def differences(self, pattern: str) -> dict[str, float]:
        """Relative L2 of every tensor whose name matches, shapes equal; fails where none does or ours lacks one."""
        names = [name for name in self.names if re.fullmatch(pattern, name)]
        assert names, f"no tensor {pattern} in the golden file"
        result = {}
        for name in names:
            expected = self.file.get_tensor(name)
            assert name in self.trace, f"{name} is missing in the trace"
            assert self.trace[name].shape == expected.shape, name
            assert self.trace[name].dtype == expected.dtype, name
            result[name] = relative(self.trace[name], expected)
        return result

    def run(self, folder: Path) -> tuple[dict[str, Any], Path]:
        """Runs the command in float32 on the CPU with this file's parameters; sets `trace`. Returns what the command
        reports, and the finished video."""
        (folder / "request.json").write_text(json.dumps(self.request), encoding="utf-8")
        output, trace = folder / "out.mp4", folder / "trace.safetensors"
        files = self.files(output)
        command = ["--request", folder / "request.json", "--trace", trace]
        for field in fields(files):
            if isinstance(path := getattr(files, field.name), Path):
                command += [f"--{field.name.replace('_', '-')}", path]
        for path, scale in files.loras:
            command += ["--lora", f"{path}:{scale}"]
        command += ["--stg-blocks", *map(str, self.info["stg_blocks"]), "--dtype", "float32", "--device", "cpu"]
        out, error = io.StringIO(), io.StringIO()
        handlers = {number: signal.getsignal(number) for number in ENDING}
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            status = program.main([str(word) for word in command], unforeseen)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        assert status == 0, error.getvalue()
        self.trace = load_file(trace)
        return json.loads(out.getvalue()), output


class Golden25(Golden):
    """A golden file of LTX-2.5. `folder` gets the files that the oracle does not store whole: the diffusion VAE, and
    the transformer under the name of a distilled one."""

    def __init__(self, oracle: Path, name: str, folder: Path) -> None:
        super().__init__(oracle / "2.5", name)
        self.folder = folder

    @property
    def request(self) -> dict[str, Any]:
        """The distilled recipe is a level here: it sets sigmas, guidance and sampler itself."""
        if not self.info["distilled_model"]:
            return super().request
        info, self.info = self.info, {**self.info, "sampler": "euler", "scheduler": "ltx2"}
        try:
            return {**super().request, "acceleration": "full"}
        finally:
            self.info = info

    def files(self, output: Path) -> Files:
        tiny, info = self.tiny, self.info
        transformer, video_vae = (
            tiny / "ltx-2.5-tiny-dev-transformer.safetensors",
            self.folder / "video-vae.safetensors",
        )
        if info["distilled_model"]:
            distilled = self.folder / "ltx-2.5-tiny-distilled-transformer.safetensors"
            shutil.copy(transformer, distilled)
            transformer = distilled
        if info["video_vae"] == "diffusion":
            compose_diffusion_vae(tiny, video_vae)
        else:
            video_vae = tiny / "ltx-2.5-tiny-video-vae-conv.safetensors"
        return Files(
            checkpoint=transformer,
            text_encoder=tiny / "gemma4-tiny-with-proj-ltx-2.5.safetensors",
            audio=tiny / info["audio"],
            output=output,
            upscaler=tiny / "ltx-2.5-tiny-latent-spatial-upscaler-x2.safetensors",
            distill_lora=None if info["distilled_model"] else tiny / "ltx-2.5-tiny-distilled-lora.safetensors",
            loras=((tiny / "ltx-2.5-tiny-camera-lora.safetensors", info["lora"]),) if info["lora"] else (),
            image=tiny / "first.png" if info["first"] >= 0 else None,
            end_image=tiny / "last.png" if info["last"] >= 0 else None,
            video_vae=video_vae,
            audio_vae=tiny / "ltx-2.5-tiny-audio-vae.safetensors",
        )


def compose_diffusion_vae(tiny: Path, path: Path) -> None:
    """The diffusion VAE as it is published: the convolutional file's encoder and statistics, and the decoder."""
    convolutional, part = tiny / "ltx-2.5-tiny-video-vae-conv.safetensors", tiny / "diffusion-decoder-part.safetensors"
    shared = {key: tensor for key, tensor in load_file(convolutional).items() if not key.startswith("decoder.")}
    with safe_open(part, "pt") as file:
        save_file({**shared, **load_file(part)}, path, metadata=file.metadata())
