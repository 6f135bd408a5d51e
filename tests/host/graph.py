"""The audio-to-video graph in ComfyUI's API form, for tests that change parts of it; `workflows/api/` has the real one.

Node ids are names here, so that a test can say which node it means.
"""

from __future__ import annotations

from typing import Any

from a2v.tests.host.comfy import Prompt
from a2v.tests.tiny import TinyFiles

Link = list[Any]


def audio_to_video(
    models: TinyFiles,
    audio: str,
    *,
    image: str | None = None,
    end_image: str | None = None,
    prompt: str = "a person speaks",
    negative: str = "static",
    size: tuple[int, int] = (128, 128),
    seed: int = 1,
    steps: int = 2,
    fps: float = 24.0,
    frames: int | None = 9,
    dtype: str = "float32",
    prefix: str = "a2v",
    **scales: Any,
) -> Prompt:
    """Two passes over the tiny model. `frames` None: as many as the audio lasts. `scales`: other inputs, by name."""
    graph: Prompt = {}

    def node(name: str, kind: str, **inputs: Any) -> Prompt:
        graph[name] = {"class_type": kind, "inputs": inputs, "_meta": {"title": name}}
        return graph

    node("model", "LTXA2VModelLoader", checkpoint=models.checkpoint.name, dtype=dtype)
    node("gemma", "LTXA2VTextEncoderLoader", folder=models.gemma.name, connectors=["model", 1], dtype=dtype)
    node("upscaler", "LTXA2VUpscalerLoader", file=models.upscaler.name, dtype=dtype)
    node(
        "distilled",
        "LTXA2VDistilledLora",
        model=["model", 0],
        lora=models.distilled_lora.name,
        first_pass_strength=scales.pop("first_pass_strength", 0.2),
        second_pass_strength=scales.pop("second_pass_strength", 0.5),
    )
    node("audio", "LTXA2VLoadAudio", audio=audio)
    node(
        "frames",
        "LTXA2VFrameCount",
        audio=["audio", 0],
        frame_rate=fps,
        match_audio_length=frames is None,
        num_frames=frames or 121,
    )
    node("size", "LTXA2VEmptyLatent", width=size[0], height=size[1], frames=["frames", 0], two_passes=True)
    node("positive", "LTXA2VTextEncode", text_encoder=["gemma", 0], text=prompt)
    node("negative", "LTXA2VTextEncode", text_encoder=["gemma", 0], text=negative)
    node("sound", "LTXA2VAudioConditioning", audio_vae=["model", 3], audio=["audio", 0], frames=["frames", 0],
         fps=["frames", 1])  # fmt: skip
    guides: dict[str, dict[str, Link]] = {"first": {}, "second": {}}
    for file, kind, strength in (
        (image, "LTXA2VImageConditioning", scales.pop("image_strength", 1.0)),
        (end_image, "LTXA2VEndImageConditioning", scales.pop("end_image_strength", 1.0)),
    ):
        if file is None:
            continue
        name = "image" if file is image else "end image"
        node(name, "LoadImage", image=file)
        for number, which in enumerate(guides):
            node(
                f"{name} {which}",
                kind,
                video_vae=["model", 2],
                image=[name, 0],
                latent=["size", number],
                strength=strength,
                **guides[which],
            )
            guides[which] = {"guides": [f"{name} {which}", 0]}
    gamma = {"gradient_estimation_gamma": scales.pop("gradient_estimation_gamma", 0.0)}
    node("sigmas", "LTXA2VScheduler", scheduler=scales.pop("scheduler", "beta"), steps=steps)
    node(
        "guidance",
        "LTXA2VGuidance",
        **{"cfg": 3.0, "stg": 1.0, "rescale": 0.85, "modality": 3.0, "stg_blocks": "auto", **scales},
    )
    common = {"positive": ["positive", 0], "audio": ["sound", 0], **gamma}
    node("noise", "RandomNoise", noise_seed=seed)
    node(
        "first",
        "LTXA2VSampler",
        model=["distilled", 0],
        noise=["noise", 0],
        sigmas=["sigmas", 0],
        latent=["size", 0],
        negative=["negative", 0],
        guidance=["guidance", 0],
        **guides["first"],
        **common,
    )
    node("upscale", "LTXA2VLatentUpscale", upscaler=["upscaler", 0], video_vae=["model", 2], samples=["first", 0])
    node(
        "second",
        "LTXA2VSampler",
        model=["distilled", 1],
        noise=["first", 1],
        sigmas=["sigmas", 1],
        latent=["upscale", 0],
        **guides["second"],
        **common,
    )
    node("decode", "LTXA2VDecode", video_vae=["model", 2], samples=["second", 0], tile_size=768, tile_overlap=64,
         tile_frames=80, tile_frame_overlap=24)  # fmt: skip
    node("save", "LTXA2VSaveVideo", images=["decode", 0], fps=["frames", 1], filename_prefix=prefix, audio=["audio", 0])
    return graph
