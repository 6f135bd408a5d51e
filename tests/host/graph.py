"""The audio-to-video graph in ComfyUI's API form, for tests that change parts of it; `workflows/api/` has the real one.

Node ids are names here, so that a test can say which node it means.
"""

from __future__ import annotations

from typing import Any

from a2v.tests.host.comfy import Prompt
from a2v.tests.tiny import TinyFiles

Link = list[Any]
RETAKE = {
    "renew": "picture",
    "start": 0.0,
    "end": 0.0,
    "strength": 0.0,
    "soften": 0.0,
    "soften_pixels": 0,
    "begin": 0.0,
}
"""The widgets of Retake with nothing chosen."""


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
    video_size: str = "custom",
    two_passes: bool = True,
    camera: tuple[str, float] | None = None,
    audio_strength: float = 1.0,
    audio_guidance: dict[str, float] | None = None,
    preprocess: bool = False,
    room_noise: float | None = None,
    restart: dict[str, float] | None = None,
    sampler: str = "euler",
    expand: bool = False,
    safety: dict[str, Any] | None = None,
    output: dict[str, str] | None = None,
    stream: bool = False,
    acceleration: str | None = None,
    nag: dict[str, float] | None = None,
    windows: dict[str, int] | None = None,
    timeline: str | None = None,
    **scales: Any,
) -> Prompt:
    """Two passes over the tiny model. `frames` None: as many as the audio lasts. `scales`: other inputs, by name.

    The parts of the endpoint that are off here: camera (movement, strength), preprocess, expand; room_noise (dBFS);
    audio_guidance, restart and safety (inputs of their nodes, {} for the defaults). An audio strength below 1 brings
    the decoded track. two_passes False leaves the second sampler out. stream: one node decodes, checks and saves.
    output: format, quality, write_mode. acceleration: its node with that level. nag: inputs of NAG, before both
    samplers. windows: inputs of Window, for a film; timeline: its sections, with the images that they name. `save` is
    the node that writes, `joined` all reports in one.
    """
    graph: Prompt = {}
    reports: list[Link] = []
    seed_of: Any = seed
    if expand:
        graph["seed"] = {"class_type": "PrimitiveInt", "inputs": {"value": seed}, "_meta": {"title": "seed"}}
        seed_of = ["seed", 0]

    def node(name: str, kind: str, **inputs: Any) -> Prompt:
        graph[name] = {"class_type": kind, "inputs": inputs, "_meta": {"title": name}}
        return graph

    node("model", "LTXA2VModelLoader", checkpoint=models.checkpoint.name, dtype=dtype)
    node("gemma", "LTXA2VTextEncoderLoader", folder=models.gemma.name, connectors=["model", 1], dtype=dtype)
    node("upscaler", "LTXA2VUpscalerLoader", file=models.upscaler.name, dtype=dtype)
    node(
        "distilled",
        "LTXA2VDistilledLora",
        model=["camera" if camera else "model", 0],
        lora=models.distilled_lora.name,
        first_pass_strength=scales.pop("first_pass_strength", 0.2),
        second_pass_strength=scales.pop("second_pass_strength", 0.5),
    )
    if camera:
        node("camera", "LTXA2VCameraLora", model=["model", 0], camera_lora=camera[0], strength=camera[1])
        reports.append(["camera", 1])
    node("audio", "LTXA2VLoadAudio", audio=audio)
    node(
        "frames",
        "LTXA2VFrameCount",
        audio=["audio", 0],
        frame_rate=fps,
        match_audio_length=frames is None,
        num_frames=frames or 121,
        **({"whole_track": True} if windows is not None else {}),
    )
    node("size", "LTXA2VVideoSize", video_size=video_size, width=size[0], height=size[1], frames=["frames", 0],
         two_passes=two_passes)  # fmt: skip
    reports += [["frames", 2], ["size", 2]]
    text: Any = prompt
    if expand:
        node("expand", "LTXA2VExpandPrompt", text_encoder=["gemma", 0], prompt=prompt, seed=seed_of, enabled=True)
        text = ["expand", 0]
        reports.append(["expand", 1])
    clip = {"frames": ["frames", 0], "fps": ["frames", 1]}
    positive: Link = ["positive", 0]
    if timeline is None:
        node("positive", "LTXA2VTextEncode", text_encoder=["gemma", 0], text=text)
    else:
        node("timeline", "LTXA2VTimeline", text_encoder=["gemma", 0], prompt=prompt, timeline=timeline, seed=0,
             enabled=False, **clip)  # fmt: skip
        positive = ["timeline", 1]
        reports.append(["timeline", 3])
    node("negative", "LTXA2VTextEncode", text_encoder=["gemma", 0], text=negative)
    cut: dict[str, Link] = {}
    if windows is not None:
        sections = {} if timeline is None else {"timeline": ["timeline", 0]}
        heard = ["preprocess" if preprocess else "audio", 0]
        node("windows", "LTXA2VWindow", **{"window_frames": 33, "overlap": 2, **windows}, audio=heard, **clip,
             **sections)  # fmt: skip
        cut = {"windows": ["windows", 0]}
        reports.append(["windows", 1])
    if preprocess:
        node("preprocess", "LTXA2VPreprocessAudio", audio=["audio", 0], enabled=True, **clip)
        reports.append(["preprocess", 1])
    heard = "preprocess" if preprocess else "audio"
    if room_noise is not None:
        node("room noise", "LTXA2VRoomNoise", audio=[heard, 0], noise_level=room_noise)
        heard = "room noise"
    node("sound", "LTXA2VAudioConditioning", audio_vae=["model", 3], audio=[heard, 0], strength=audio_strength, **clip,
         **cut)  # fmt: skip
    guides: dict[str, dict[str, Link]] = {"first": {}, "second": {}}
    first_strength = scales.pop("image_strength", 1.0)
    for file, kind, strength in (
        (image, "LTXA2VImageConditioning", first_strength),
        (end_image, "LTXA2VEndImageConditioning", scales.pop("end_image_strength", 1.0)),
    ):
        if file is None:
            continue
        name = "image" if file is image else "end image"
        node(name, "LoadImage", image=file)
        if video_size == "auto":
            graph["size"]["inputs"]["first_image" if file is image else "end_image"] = [name, 0]
        if expand and file is image:
            graph["expand"]["inputs"]["image"] = [name, 0]
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
    if timeline is not None and "[" in timeline:
        for number, which in enumerate(guides):
            links = {"video_vae": ["model", 2], "timeline": ["timeline", 0], "latent": ["size", number]}
            node(f"sections {which}", "LTXA2VSectionImages", strength=first_strength, **links, **guides[which])
            guides[which] = {"guides": [f"sections {which}", 0]}
    gamma = {"gradient_estimation_gamma": scales.pop("gradient_estimation_gamma", 0.0)}
    node("sigmas", "LTXA2VScheduler", scheduler=scales.pop("scheduler", "beta"), steps=steps)
    node(
        "guidance",
        "LTXA2VGuidance",
        **{"cfg": 3.0, "stg": 1.0, "rescale": 0.85, "modality": 3.0, "stg_blocks": "auto", **scales},
    )
    first = {**guides["first"]}
    if audio_guidance is not None:
        scale = {"cfg": 7.0, "stg": 0.0, "rescale": 0.7, "modality": 3.0, "stg_blocks": "auto", **audio_guidance}
        node("audio guidance", "LTXA2VAudioGuidance", **scale)
        first["audio_guidance"] = ["audio guidance", 0]
    if restart is not None:
        node("restart", "LTXA2VRestart", **{"noise": 0.2, "restarts": 0, "sigma_min": 0.3, "sigma_max": 0.7, **restart})
        first["restart"] = ["restart", 0]
    models_of, steer = (["distilled", 0], ["distilled", 1]), {"sigmas": ["sigmas", 0], "guidance": ["guidance", 0]}
    if acceleration:
        node("faster", "LTXA2VAcceleration", level=acceleration, torch_compile=False, first_model=models_of[0],
             second_model=models_of[1], schedule=["sigmas", 0], scales=["guidance", 0])  # fmt: skip
        models_of, steer = (["faster", 0], ["faster", 1]), {"sigmas": ["faster", 2], "guidance": ["faster", 3]}
        reports.append(["faster", 4])
    if nag:
        for stage in (0, 1):
            node(f"nag {stage}", "LTXA2VNag", model=models_of[stage], **nag)
        models_of, guides["second"]["negative"] = (["nag 0", 0], ["nag 1", 0]), ["negative", 0]
    common = {"positive": positive, **gamma}
    node("noise", "RandomNoise", noise_seed=seed_of)
    node(
        "first",
        "LTXA2VSampler",
        model=models_of[0],
        noise=["noise", 0],
        audio=["sound", 0],
        latent=["size", 0],
        negative=["negative", 0],
        sampler=sampler,
        **steer,
        **first,
        **common,
    )
    reports.append(["first", 3])
    last = "first"
    if two_passes:
        node("upscale", "LTXA2VLatentUpscale", upscaler=["upscaler", 0], video_vae=["model", 2], latent=["first", 0])
        node(
            "second",
            "LTXA2VSampler",
            model=models_of[1],
            noise=["first", 1],
            sigmas=["sigmas", 1],
            audio=["first", 2],
            latent=["upscale", 0],
            sampler="euler",
            **guides["second"],
            **common,
        )
        last = "second"
    track: Link = ["audio", 0]
    if audio_strength < 1:
        node("track", "LTXA2VDecodeAudio", before=["sound", 0], after=[last, 2], audio_vae=["model", 3],
             vocoder=["model", 4], audio=["audio", 0])  # fmt: skip
        track = ["track", 0]
        reports.append(["track", 1])
    tiles = {"tile_size": 0, "tile_overlap": 64, "tile_frames": 0, "tile_frame_overlap": 24}
    source = {"video_vae": ["model", 2], "latent": [last, 0], **tiles}
    check = {"checker": "first found", "threshold": 0.5, "action": "replace", **(safety or {})}
    target = {"fps": ["frames", 1], "filename_prefix": prefix, "audio": track, "format": "X264 (.mp4)"}
    target |= {"quality": "high", "write_mode": "balanced", "report": ["joined", 0], **(output or {})}
    if stream:
        node("save", "LTXA2VSaveLatentVideo", **source, **check, **target)
    else:
        node("decode", "LTXA2VDecode", **source)
        images: Link = ["decode", 0]
        if safety is not None:
            node("safety", "LTXA2VSafetyChecker", images=images, **{"frames_looked_at": 16, **check})
            images = ["safety", 0]
            reports.append(["safety", 2])
        node("save", "LTXA2VSaveVideo", images=images, **target)
    reports.append(["distilled", 2])
    node("joined", "LTXA2VReport", **{f"report_{number}": said for number, said in enumerate(reports, 1)})
    return graph
