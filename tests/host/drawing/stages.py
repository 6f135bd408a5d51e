"""The stages of a workflow: their nodes, how these are linked, and the settings that each stage shows when closed.

Keys of nodes are unique in a workflow. A report passes through the stages: each adds its own lines to what came in.
"""

from __future__ import annotations

from typing import Any

from a2v.api.applications.ltx_2_5 import GUIDANCE, GUIDANCE_WITH_IMAGE, QUALITY_RECIPE
from a2v.ltx.diffusion.steering import ANCESTRAL
from a2v.ltx.models import MODELS
from a2v.ltx.request import NEGATIVE_PROMPT

from . import clips
from .parts import (
    BLUE,
    CAMERA,
    FILES,
    GREEN,
    NEGATIVE,
    POSITIVE,
    VIOLET,
    YELLOW,
    Node,
    Stage,
    Widget,
    joined,
    note,
)
from .variants import DUB, Variant

OTHER_LORAS = (
    "For a camera or style LoRA, put *LTX A2V Camera LoRA* or *LTX A2V LoRA* between Load Model and Distilled LoRA. It "
    "then acts in both stages.\n\nWith the distilled LoRA 15 steps are enough. Without it, use 30 or more."
)
OTHER_LORAS_25 = (  # those for camera movements were made for an older version
    "To add a LoRA made for LTX-2.5, put *LTX A2V LoRA* between Load Model and Distilled LoRA. It then acts in both "
    "stages.\n\n"
    "The distilled LoRA acts in the second stage only: the first one takes 30 steps."
)
VOICES = (
    "*ID-LoRA* acts in the first stage, which makes the sound. Its makers use 30 steps there without the distilled "
    "LoRA, and 0.8 of that in the second stage."
)
LABELS = {"first": "First image", "end": "End image"}
Values = dict[str | None, Any]  # of widgets, by name
CLIP = {"frames": "frames.frames", "fps": "frames.fps"}


def audio() -> Node:
    return Node("audio", "LTXA2VLoadAudio", "Load Audio", {"audio": "speech.opus"}, {}, 300, 200)


def record() -> Node:
    """ComfyUI's own node, which every ComfyUI has that the pack runs in. It stands where Load Audio does."""
    return Node("audio", "RecordAudio", "Record Audio", {}, {}, 300, 140)


def images(v: Variant) -> list[Node]:
    """As high as the frontend makes them once their pictures are there: files are the same before and after. They stand
    below those that share their column."""
    return [
        Node(f"{which} image", "LTXA2VLoadImage", LABELS[which], {"image": "example.png"}, {}, 300, 300,
             says={"image": LABELS[which].lower()}, place=1) for which in v.images
    ]  # fmt: skip


def seed(v: Variant) -> Node:
    """A film keeps its seed, because a run that was stopped goes on only with the seed that it had; elsewhere each run
    has another seed, as in ComfyUI's own workflows."""
    values = {"value": 42, **({"control_after_generate": "fixed"} if v.timeline else {})}
    return Node("seed", "PrimitiveInt", "Seed", values, {}, 300, says={"INT": "seed"})


def models(v: Variant) -> Stage:
    own = FILES[v.version]
    checkpoint = own.distilled if v.distilled else own.dev
    named = {"checkpoint": checkpoint.name, **{part: file.name for part, file in own.apart.items()}}
    loader = Node("model", "LTXA2VModelLoader", "Load Model", named, {}, 400, 0,
                  (checkpoint, *own.apart.values()))  # fmt: skip
    gemma = Node("gemma", "LTXA2VTextEncoderLoader", "Load Text Encoder", {"folder": own.encoder.name},
                 {"connectors": "model.connectors"}, 400, 0, (own.encoder,))  # fmt: skip
    widgets = [Widget.of("checkpoint", "model.checkpoint"), Widget.of("text encoder", "gemma.folder")]
    widgets += [Widget.of(part.removesuffix("vae").replace("_", " ") + "VAE", f"model.{part}") for part in own.apart]
    if v.distilled:
        use = "To add a LoRA made for LTX-2.5" if v.is_25 else "For a camera or style LoRA"
        columns = [[loader], [gemma, note("distilled model", "This checkpoint has the speed built in: it needs no "
                   f"Distilled LoRA and no Guidance.\n\n{use}, put *LTX A2V LoRA* after Load Model, "
                   "before both samplers.", 400)]]  # fmt: skip
        if v.ic_lora:
            columns[1].insert(0, clips.ic_lora(v))
            widgets += [Widget.of("IC-LoRA", "ic.lora"), Widget.of("IC-LoRA strength", "ic.strength")]
    else:
        strengths = {f"{stage}_strength": QUALITY_RECIPE[f"distill_lora_{stage}_scale"] for stage in
                     ("first_pass", "second_pass")} if v.is_25 else {}  # fmt: skip
        if v.voice:
            strengths = {"first_pass_strength": 0.0, "second_pass_strength": 0.8}
        lora = Node("lora", "LTXA2VDistilledLora", "Distilled LoRA", {"lora": own.lora.name, **strengths},
                    {"model": "camera.model" if v.camera else "model.model"}, 400, 0, (own.lora,))  # fmt: skip
        widgets += [Widget.of("distilled LoRA", "lora.lora")]
        if v.camera:
            camera = Node("camera", "LTXA2VCameraLora", "Camera LoRA", {"camera_lora": v.camera},
                          {"model": "model.model"}, 400, 0, (CAMERA,))  # fmt: skip
            widgets += [Widget.of("camera", "camera.camera_lora"), Widget.of("camera strength", "camera.strength")]
            hint = note("camera", "Each movement has a file of its own in models/loras. If it is missing, the error "
                        "names its address.\n\n*strength* 1 gives the whole movement. Lower it if the lips stop "
                        "moving, and name the movement in the prompt, too.", 400)  # fmt: skip
            report = joined("models report", "camera.report", "lora.report")
            columns = [[loader], [camera, gemma], [lora, hint], [report]]
        else:
            hint = note("other LoRAs", OTHER_LORAS_25 if v.is_25 else OTHER_LORAS, 400)
            columns = [[loader], [lora, gemma, hint]]
            if v.voice:
                columns = [[loader], [lora, gemma], [clips.ic_lora(v), note("voice", VOICES, 400)]]
    added = "LoRAs" if v.camera else "IC-LoRA" if v.ic_lora else "" if v.distilled else "distilled LoRA"
    opened = f"the checkpoint, the text encoder and the {added}" if added else "the checkpoint and the text encoder"
    return Stage("models", "Models", tuple(map(tuple, columns)), tuple(widgets), {}, BLUE, 340,
                 about=f"Opens {opened}.")  # fmt: skip


def frame_count(v: Variant) -> Node:
    values = {"whole_track": True} if v.timeline else {"match_audio_length": False} if v.voice else {}
    return Node("frames", "LTXA2VFrameCount", "Frame Count", values, {"audio": "audio.audio"}, 320)


def conditions(v: Variant) -> Stage:
    """Length, size, sound and images, or a given clip."""
    if v.clip:
        return clips.conditions(v)
    strength = {"strength": v.audio_strength} if v.audio_strength < 1 else {}
    size_links = {"frames": "frames.frames", **{f"{which}_image": f"{which} image.image" for which in v.images}}
    size_values = {"video_size": "auto"} if v.images else clips.SHEET_SIZE if v.sheet else {}
    if v.sheet:
        size_links["model"] = "ic.model"
    hint = (
        "*strength* 1 keeps your track, 0.9 touches it up, 0.5 makes it anew along yours, and 0 makes another one."
        if strength
        else "*Preprocess Audio* evens out the loudness for the model only: the video keeps your sound. Its report "
        "warns of what makes videos static: silence, hard cuts and clipping."
    )
    size_hint = "*auto* takes the size from the image" if v.images else "*custom* uses your width and height"
    length = note("length and size", "The length follows the audio, up to 481 frames (20 s at 24 fps). To set it "
                  "yourself, switch *match_audio_length* off. Load Audio sets the start and the duration.\n\n"
                  f"{size_hint}. *square* is quick to try with.", 320)  # fmt: skip
    frames = frame_count(v)
    size = Node("size", "LTXA2VVideoSize", "Video Size", size_values, size_links, 320)
    preprocess = Node("preprocess", "LTXA2VPreprocessAudio", "Preprocess Audio", {}, {"audio": "audio.audio", **CLIP},
                      320)  # fmt: skip
    sound = Node("sound", "LTXA2VAudioConditioning", "Audio Conditioning", strength,
                 {"audio_vae": "model.audio_vae", "audio": "preprocess.audio", **CLIP,
                  **({"windows": "windows.windows"} if v.timeline else {})}, 320)  # fmt: skip
    before = ["ic.report"] if v.sheet or v.voice else []
    before += ["clip.report"] if v.sheet else []
    before += [] if v.distilled else ["models report.report" if v.camera else "lora.report"]
    cut = ["windows.report"] if v.timeline else []
    report = joined("sound report", *before, "frames.report", "size.report", "preprocess.report", *cut)
    widgets = [
        Widget.of("size", "size.video_size"),
        Widget.of("width", "size.width"),
        Widget.of("height", "size.height"),
        Widget.of("length from the audio", "frames.match_audio_length"),
        Widget.of("frames", "frames.num_frames"),
        Widget.of("frames per second", "frames.frame_rate"),
        *([Widget.of("audio strength", "sound.strength")] if strength and not v.voice else []),
    ]
    columns = [[frames, length], [preprocess, size, note("sound", hint, 320)], [sound, report]]
    if v.timeline:
        links = {**CLIP, "timeline": "timeline.timeline", "audio": "preprocess.audio"}
        windows = Node("windows", "LTXA2VWindow", "Window", {}, links, 320)
        why = note("windows", "The film is made in windows that overlap, so memory does not grow with its length. "
                   "Longer windows keep motion coherent for longer.\n\n*auto* takes the size from the picture. "
                   "*square* is quick to try with.", 320)  # fmt: skip
        columns[:2] = [[preprocess, size, why], [windows]]
        widgets = [*widgets[:3], Widget.of("frames of a window", "windows.window_frames"),
                   Widget.of("overlap", "windows.overlap")]  # fmt: skip
    if v.sheet:
        columns[1] = [preprocess, size, clips.sheet_clip()]
        columns.append([clips.refer("reference", "Reference", "clip.clip", "size.first stage")])
        columns[0] += [note("sheet", clips.HINTS[v.name], 320)]
        widgets += [Widget.of(*label) for label in clips.SETTINGS[v.name].items()]
    if v.voice:
        links = {"audio": "sound.audio", "sound": "preprocess.audio", "audio_vae": "model.audio_vae"}
        columns.append([clips.hear("first", links)])
    kinds = {"first": "LTXA2VImageConditioning", "end": "LTXA2VEndImageConditioning"}
    guides: dict[str, str] = {}
    for place, which in enumerate(v.images):
        nodes = []
        for order, latent in (("first", "size.first stage"), ("second", "size.full size")):
            links = {"video_vae": "model.video_vae", "latent": latent}
            if v.timeline:
                links |= {"timeline": "timeline.timeline", "first_image": f"{which} image.image"}
            else:
                links["image"] = f"{which} image.image"
            if order in guides:
                links["guides"] = guides[order]
            key = f"{which} in {order}"
            kind = "LTXA2VSectionImages" if v.timeline else kinds[which]
            title = "Images" if v.timeline else LABELS[which]
            nodes += [Node(key, kind, f"{title}, {order} stage", {}, links, 320,
                           says={"guides": f"guides, {order} stage"})]  # fmt: skip
            guides[order] = f"{key}.guides"
        if place == 0:
            columns[2] += nodes
        else:
            columns += [nodes]
        if place == 0:  # ComfyUI 0.3.75 passes only one widget of a name through two walls
            widgets += [Widget.of(f"{LABELS[which].lower()} strength", *(f"{node.key}.strength" for node in nodes))]
    if v.images:
        hint = "*strength* 1 keeps the image. A lower value lets the model depart from it.\n\n*compression* makes a "
        hint += "clean image look like video. At 0 the motion may freeze."
        columns[0] += [note("image", hint, 320)]
    shown = "images" if len(v.images) > 1 else "image" if v.images else "sheet" if v.sheet else ""
    title = f"Sound, {shown} and size" if shown else "Sound and size"
    first = "Cuts the film into windows" if v.timeline else "Counts the frames"
    # the timeline of a film may name more images
    seen = " and the images" if v.timeline else f" and the {shown}" if shown else ""
    about = f"{first}, sets the size, and encodes the sound{seen}."
    outputs = {"report": "sound report.report"}
    return Stage("conditions", title, tuple(map(tuple, columns)), tuple(widgets), outputs, GREEN, 290, 0, about,
                 130 if shown else 110)  # fmt: skip


def prompts(v: Variant) -> Stage:
    links = {"text_encoder": "gemma.text_encoder", "seed": "seed.INT"}
    if "first" in v.images:
        links["image"] = "first image.image"
    if v.clip:
        links["image"] = "clip.first image"
    text = {"text_encoder": "gemma.text_encoder"}
    written = {"prompt": v.prompt, **({"enabled": False} if v.word_for_word else {})}
    expand = Node("expand", "LTXA2VExpandPrompt", "Positive prompt", written, links, 440, 400, (),
                  POSITIVE)  # fmt: skip
    if v.timeline:
        return _timeline(v, links, text)
    links = {**text, "text": "expand.prompt"}
    positive = Node("positive", "LTXA2VTextEncode", "Encode prompt", {}, links, 340, 100, (),
                    POSITIVE, {"text": "positive"})  # fmt: skip
    negative = Node("negative", "LTXA2VTextEncode", "Negative prompt", {"text": NEGATIVE_PROMPT}, text, 440, 220, (),
                    NEGATIVE, {"text": "negative"})  # fmt: skip
    widgets = [Widget.of("prompt", "expand.prompt"), Widget.of("let Gemma write it out", "expand.enabled")]
    if v.is_25:
        expander = MODELS["expander-int8"]
        hint = "LTX-2.5 uses your prompt as it is: say who is seen, where, in which light, and whether the sound is "
        hint += "speech, song or noise.\n\nIts text encoder cannot write. To have a short prompt written out, put the "
        hint += f"file [{expander.name}]({expander.url}) into text_encoders, choose it as *expander*, and switch "
        hint += "*enabled* on."
        widgets += [Widget.of("prompt expander", "expand.expander")]
    elif v.clip == DUB:
        hint = "Your prompt is used as it is: *enabled* would let Gemma write it out and change the words.\n\nName the "
        hint += "language and how the voice sounds, then quote the words. DubIt's makers tried English, French, "
        hint += "Spanish, German and Russian."
    elif v.voice:
        hint = "*[VISUAL]* says what is seen, *[SPEECH]* has the words, and *[SOUNDS]* says how the voice and the "
        hint += "place sound.\n\nYour prompt is used as it is: *enabled* would let Gemma change the words."
    elif v.sheet:
        hint = "*Reference sheet:* says what each panel shows, *Generated video:* what happens. Quote the words that "
        hint += "are spoken.\n\nYour prompt is used as it is: *enabled* would let Gemma change this form."
    else:
        hint = "Your prompt may be short: Gemma writes it out" + (
            " and looks at the clip's first picture."
            if v.clip
            else " and looks at the image."
            if "first" in v.images
            else "."
        )
        hint += "\n\nGemma does not hear the sound: say who is seen, and whether it is speech, song or noise."
    columns = [[expand], [positive, note("prompt", hint, 340)]]
    if not v.distilled:
        widgets += [Widget.of("negative prompt", "negative.text")]
        columns[0] += [negative]
    height = 260 if v.sheet or v.clip == DUB else 460  # their words are few, and they have no negative prompt
    return Stage("prompts", "Prompt", tuple(map(tuple, columns)), tuple(widgets), {}, YELLOW, 290, height,
                 about="Encodes the prompt as it is." if v.word_for_word else "Writes the prompt out and encodes it.",
                 )  # fmt: skip


def _timeline(v: Variant, links: dict[str, str], text: dict[str, str]) -> Stage:
    """The prompts of a film with sections."""
    written = {"prompt": v.prompt, "timeline": v.timeline}
    timeline = Node("timeline", "LTXA2VTimeline", "Positive prompt", written, {**links, **CLIP}, 440, 560, (),
                    POSITIVE, {"text": "positive"})  # fmt: skip
    negative = Node("negative", "LTXA2VTextEncode", "Negative prompt", {"text": NEGATIVE_PROMPT}, text, 440, 220, (),
                    NEGATIVE, {"text": "negative"})  # fmt: skip
    length = note("length", "The length follows the audio, which must be shorter than 45 minutes. To set it yourself, "
                  "switch *match_audio_length* off.", 320)  # fmt: skip
    hint = note("timeline", "Write one section a line: *0:18.5 she dances in the rain*.\n\n*[cut]* after the time "
                "starts a new shot, *[seed 7]* makes this section anew, and *[image face.png]* begins it with a "
                "picture of the input folder. Put a comma between two of them.\n\nA name and a colon before the "
                "text, as *chorus:*, let a later line repeat it.\n\nGemma writes each section out. It does not hear "
                "the sound: say whether it is speech or song.", 340)  # fmt: skip
    widgets = (Widget.of("prompt", "timeline.prompt"), Widget.of("timeline", "timeline.timeline"),
               Widget.of("let Gemma write it out", "timeline.enabled"),
               Widget.of("negative prompt", "negative.text"),
               Widget.of("length from the audio", "frames.match_audio_length"),
               Widget.of("frames", "frames.num_frames"),
               Widget.of("frames per second", "frames.frame_rate"))  # fmt: skip
    columns = ((frame_count(v), length), (timeline, negative), (hint,))
    return Stage("prompts", "Length, prompt and timeline", columns, widgets, {}, YELLOW, 290, 620,
                 about="Counts the frames, writes the prompts of the sections out and encodes them.")  # fmt: skip


def recipe(v: Variant) -> tuple[Values, Values, Values]:
    """What the first stage's schedule, guidance and sampler have beside the endpoint's defaults."""
    if v.distilled:
        # linear_quadratic in 8 steps is the distilled recipe's schedule, to the last digit
        return {"scheduler": "linear_quadratic", "steps": 8}, {}, {"sampler": ANCESTRAL} if v.is_25 else {}
    if v.voice:  # its makers' schedule and steps; their guidance has no rescaling
        return {"scheduler": "ltx2", "steps": 30}, {"rescale": 0.0}, {}
    if not v.is_25:
        return {}, {}, {}
    scales = {"cfg": GUIDANCE_WITH_IMAGE if v.images else GUIDANCE, "rescale": QUALITY_RECIPE["video_rescaling_scale"]}
    return {"scheduler": QUALITY_RECIPE["scheduler"], "steps": QUALITY_RECIPE["num_inference_steps"]}, scales, {}


def positive(v: Variant) -> str:
    """The output with the encoded positive prompt."""
    return f"{'timeline' if v.timeline else 'positive'}.text"


def first_stage(v: Variant) -> Stage:
    """Half the size, guided; the distilled checkpoint needs no guidance."""
    schedule, scales, renewing = recipe(v)
    noise = Node("noise", "RandomNoise", "Noise", {}, {"noise_seed": "seed.INT"}, 300)
    sigmas = Node("sigmas", "LTXA2VScheduler", "Scheduler", schedule, {}, 300)
    steer: dict[str, str] = {}
    widgets = [Widget.of("steps", "sigmas.steps")]
    reports = ["sound report.report", f"{'timeline' if v.timeline else 'expand'}.report"]
    if v.distilled:
        also = " with the sampler *euler_ancestral*: leave all three" if v.is_25 else ": leave both"
        hint = note("steps", f"This checkpoint was distilled for *linear_quadratic* in 8 steps{also} as they are. A "
                    "higher number does not make the video better.", 300)  # fmt: skip
        model, schedule_of = clips.model(v, first=True), "sigmas.first stage sigmas"
        columns = [[sigmas, noise, hint]]
    else:
        guidance = Node("guidance", "LTXA2VGuidance", "Guidance", scales, {}, 300)
        own = "ic.model" if v.voice else "lora.first stage model"
        links = {"first_model": own, "second_model": "lora.second stage model",
                 "schedule": "sigmas.first stage sigmas", "scales": "guidance.guidance"}  # fmt: skip
        faster = Node("faster", "LTXA2VAcceleration", "Acceleration", {}, links, 320)
        columns = [[sigmas, guidance, note("steps and guidance", "*cfg* follows the prompt, *modality* follows the "
                    "audio (raise it if the lips lag), and *stg* keeps the motion coherent. Each costs a pass a step: "
                    "1, 1 and 0 switch them off.\n\n*rescale* tames burnt colours.", 300)],
                   [faster, noise]]  # fmt: skip
        model, schedule_of = "faster.first stage model", "faster.first stage sigmas"
        steer = {"negative": "negative.text", "guidance": "faster.guidance"}
        if not (v.is_25 or v.voice):  # the official pipeline does not restart, nor do ID-LoRA's makers
            columns[1].insert(1, Node("restart", "LTXA2VRestart", "Restart Sampling", {}, {}, 320))
            steer["restart"] = "restart.restart"
        widgets += [Widget.of("speed-up", "faster.level"), Widget.of("follow the prompt", "guidance.cfg"),
                    Widget.of("follow the audio", "guidance.modality")]  # fmt: skip
        reports += ["faster.report"]
        if v.may_renew_sound:
            own = {"stg": 1.0, "rescale": 0.0, "identity": clips.IDENTITY} if v.voice else {}
            columns[0].insert(2, Node("audio guidance", "LTXA2VAudioGuidance", "Audio Guidance", own, {}, 300))
            widgets += [Widget.of("keep to the voice", "audio guidance.identity")] if v.voice else []
            columns[0].pop()
            steer["audio_guidance"] = "audio guidance.audio guidance"
    links = {"model": model, "noise": "noise.NOISE", "sigmas": schedule_of, "positive": positive(v),
             "audio": "hear first.audio" if v.voice or v.clip == DUB else "sound.audio",
             "latent": "keep first.latent" if v.retakes else "size.first stage", **steer}  # fmt: skip
    if v.images:
        links["guides"] = f"{v.images[-1]} in first.guides"
    if v.ic_lora:
        links["references"] = "reference.references"
    sampler = Node("first", "LTXA2VSampler", "First stage", renewing, links, 340, 600)
    report = joined("first report", *reports, "first.report")
    title = "First stage: half the size"
    steered = "without guidance, which the distilled checkpoint does not need" if v.distilled else "with guidance"
    return Stage("first stage", title, (*map(tuple, columns), (sampler,), (report,)), tuple(widgets), {}, VIOLET, 270,
                 about=f"Samples the video at half its size, {steered}.")  # fmt: skip


def second_stage(v: Variant) -> Stage:
    """Full size, refined; with renewed sound it is decoded here."""
    file = FILES[v.version].upscaler
    upscaler = Node("upscaler", "LTXA2VUpscalerLoader", "Load Upscaler", {"file": file.name}, {}, 360, 0, (file,))
    links = {"upscaler": "upscaler.upscaler", "video_vae": "model.video_vae", "latent": "first.latent"}
    upscale = Node("upscale", "LTXA2VLatentUpscale", "Latent Upscale", {}, links, 300)
    links = {"model": clips.model(v, first=False) if v.distilled else "faster.second stage model",
             "noise": "first.next noise", "sigmas": "sigmas.second stage sigmas", "positive": positive(v),
             "audio": "hear second.audio" if v.clip == DUB else "first.next audio",
             "latent": "keep second.latent" if v.retakes else "upscale.latent"}  # fmt: skip
    if v.images:
        links["guides"] = f"{v.images[-1]} in second.guides"
    if v.clip == DUB:
        links["references"] = "reference second.references"
    second = Node("second", "LTXA2VSampler", "Second stage", {}, links, 340, 600)
    hint = note("one stage only", "This stage doubles the size and refines the picture in three steps.\n\nTo leave "
                "it out, switch *two_stages* (before ComfyUI 0.8: *two_passes*) off in Video Size, and bypass Latent "
                "Upscale and Second stage (*Ctrl+B*).", 360)  # fmt: skip
    last: list[Node] = []
    reports = ["first report.report", "second.report"]
    if v.may_renew_sound:
        decode = {"before": "sound.audio", "after": "second.next audio", "audio_vae": "model.audio_vae",
                  "vocoder": "model.vocoder", "audio": "audio.audio"}  # fmt: skip
        if v.retakes:
            decode |= {"audio": "retake.audio", "retake": "retake.retake"}
        last = [Node("track", "LTXA2VDecodeAudio", "Decode Audio", {}, decode, 300)]
        reports += ["track.report"]
    # a node whose report is joined stands in the column before
    report = joined("report", *reports)
    ends = ((*last,), (report,)) if last else ((report,),)
    kept = ((clips.keep("second", "upscale.latent"),),) if v.retakes else ()
    heard = (clips.hear("second", {"audio": "first.next audio"}),) if v.clip == DUB else ()
    columns = ((upscaler, hint), (upscale, *heard), *kept, (second,), *ends)
    return Stage("second stage", "Second stage: full size", columns,
                 (Widget.of("upscaler", "upscaler.file"),), {}, VIOLET, 280,
                 about="Doubles the size and refines the picture in three steps.",
                 gutter=76 if kept and last else 110)  # fmt: skip


def save(v: Variant, values: dict[str | None, object], title: str, height: int = 0, width: int = 340) -> Node:
    links = {"video_vae": "model.video_vae", "latent": "second.latent",
             "fps": "clip.fps" if v.clip else "frames.fps",
             "audio": "track.audio" if v.may_renew_sound else "audio.audio", "report": "report.report"}  # fmt: skip
    if v.is_25:
        links["noise"] = "second.next noise"  # for the diffusion decoder; the other one takes none
    if v.retakes:
        links["retake"] = "retake.retake"
    return Node("save", "LTXA2VSaveLatentVideo", title, values, links, width, height, says={"report": "report"})
