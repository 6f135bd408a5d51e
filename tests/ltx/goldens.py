"""The official pipeline's golden files, and how far a run's trace is from one: shared by the tests that compare.

test_goldens.py has the real command in float32; test_modes.py the ways to make the models fit into memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from a2v.ltx.job import Files
from safetensors import safe_open
from torch import Tensor

RUNS = ("endpoint_defaults", "linear_quadratic_ge", "ltx2")
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
