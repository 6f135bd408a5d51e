"""Every parameter of the endpoint, moved alone: what it changes, to the last bit, and that all else stays as it is.

A run is seen as its things: each traced tensor, the packets and the kind of the finished file, and each entry of the
report. A row of `ROWS` names what must change; every other thing must be identical or absent in both runs. The rest of
the file says what a value must equal (strength 0 no image, gamma 1 Euler), and which combinations are impossible.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from a2v.ltx import job, pipeline
from a2v.ltx.errors import FlaggedError, InputError
from a2v.ltx.job import Compute, Files
from a2v.ltx.latents import patchify_video
from a2v.ltx.media.formats import SUFFIXES
from a2v.ltx.plan import plan
from a2v.ltx.request import PARAMETERS, SIZES, parse
from a2v.ltx.trace import Recorder
from a2v.tests.ltx.goldens import relative
from a2v.tests.ltx.loaded import loaded_once
from a2v.tests.ltx.media.clips import plain, write_clip
from a2v.tests.tiny import TinyFiles, write_tiny
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.io import wavfile
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

BASE = {
    "prompt": "a woman speaks", "seed": 5, "video_size": {"width": 128, "height": 64}, "match_audio_length": False,
    "num_frames": 9, "num_inference_steps": 3, "enable_prompt_expansion": False,
}  # fmt: skip
"""Small and fast; what is absent has the endpoint's default: two stages, restart, levelled audio."""

IMAGES = ("image", "end_image")
REFINE = 0.909375  # sigma at which the second stage starts


# What there is to change, as patterns of whole names.

FIRST = r"s1/step0/(x0|out)_video"  # the first step of the first stage, once the passes of guidance are combined
LATER = (
    r"s1/step[1-9]/((in|x0|out)_video|call\d/video_x0)",
    r"up/(in|unnorm_in|unnorm_out|out)|s2/clean_video",
    r"s2/step\d/((in|x0|out)_video|call0/video_x0)",
    r"final/(video_latent|frames_u8)",
    r"file/video",
)
"""All that follows from the video after the first step."""
SECOND = (r"s2/step0/((x0|out)_video|call0/video_x0)", r"s2/step[1-9]/((in|x0|out)_video|call0/video_x0)", *LATER[3:])
"""All that follows from the second stage's first prediction."""
HEARD = (
    r"(audio/|(source|final)/audio_)latent",
    r"s[12]/clean_audio",
    r"s[12]/step\d/((in|x0|out)_audio|call\d/audio_x0)",
)
"""Frozen audio, wherever it goes by."""
CALLS = r"s1/step0/call\d/video_x0"
HEARING = r"s1/step0/call[0-2]/video_x0"  # all but the isolated pass, in which the video does not hear the audio
SOUNDING = (  # the audio's way from the first step's guided prediction on, where it is not frozen
    r"s1/step[1-9]/((in|x0|out)_audio|call\d/audio_x0)",
    r"s2/clean_audio",
    r"s2/step\d/((in|x0|out)_audio|call0/audio_x0)",
    r"final/audio_latent",
    r"file/audio",
)
# Other frames or another size: all but texts, sigmas, pictures not yet fitted, and what is the same for every token.
LONGER = r"(?!prompt/|s\d/sigmas|s\d/step\d/call\d/(video|audio)_sigma|file/(kind|rate)|asked/|used/|cond/)"


@dataclass(frozen=True)
class Row:
    """A parameter's value, the request it is moved in (beside BASE), and the things that change."""

    value: Any
    changes: tuple[str, ...] = ()
    base: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = IMAGES
    near: tuple[str, ...] = ()  # these may differ, by less than 1e-4

    def __str__(self) -> str:
        return f"{self.value} in {self.base}" if self.base else str(self.value)


SOFT = {"audio_strength": 0.5}
UNGUIDED = {
    **{"video_cfg_scale": 1, "video_stg_scale": 0, "video_modality_scale": 1},
    **{"audio_cfg_scale": 1, "audio_modality_scale": 1},
}  # one pass a step
# What guides the audio's first step reaches the video a step later, in the passes where it hears.
HALF_AUDIO = (
    r"s1/step0/(x0|out)_audio",
    *SOUNDING,
    r"s1/step1/((x0|out)_video|call[0-2]/video_x0)",
    r"s1/step2/((in|x0|out)_video|call\d/video_x0)",
    *LATER[1:],
)

ROWS: dict[str, tuple[Row, ...]] = {
    "prompt": (
        Row(
            "a man and a woman in a room, with light on a face",
            (r"prompt/0/(hidden_states|mask|video_enc|audio_enc)", CALLS, FIRST, *LATER, "used/prompt"),
        ),
    ),
    "negative_prompt": (
        Row("light", (r"prompt/1/(hidden_states|mask|video_enc|audio_enc)", r"s1/step0/call1/video_x0", FIRST, *LATER)),
        Row(
            "light",
            (r"prompt/1/(hidden_states|mask|video_enc|audio_enc)", r"s1/step0/call0/video_x0", FIRST, *LATER),
            {**UNGUIDED, "nag": True},
        ),
        # Where CFG is 1 nobody asks for it; the audio's own CFG makes it act again, on the audio.
        Row("light", (r"prompt/1/(hidden_states|mask|video_enc|audio_enc)",), {"video_cfg_scale": 1}),
        Row(
            "light",
            (
                r"prompt/1/(hidden_states|mask|video_enc|audio_enc)",
                r"s1/step0/call1/(video|audio)_x0",
                *HALF_AUDIO,
            ),
            {**SOFT, "video_cfg_scale": 1},
        ),
    ),
    "match_audio_length": (Row(True, (rf"{LONGER}.*", "used/frames")),),
    "num_frames": (
        Row(17, (rf"{LONGER}.*", "used/frames")),
        Row(40, (), {"match_audio_length": True}),
    ),
    "video_size": (
        Row(
            {"width": 64, "height": 128},
            (
                r"s\d/(positions|clean)_video",
                r"s\d/step\d/((in|x0|out)_video|call\d/video_x0)",
                r"up/.*",
                *LATER[3:],
                r"cond/\d/(pixels|latent)",
                "used/(width|height)",
            ),
        ),
    ),
    "use_multiscale": (
        Row(
            False,
            (
                r"s1/(positions|clean|denoise_mask|keyframes_mask)_video",
                r"s1/step\d/((in|x0|out)_video|call\d/video_(x0|timesteps))",
                r"(up|s2)/.*",
                *LATER[3:],
                r"cond/\d/(pixels|latent)",
            ),
        ),
    ),
    # The noise of the first stage's video is drawn before the audio's, whose length the rate changes.
    "fps": (
        Row(
            30,
            (
                r"audio/(waveform|mel|latent)",
                r"(source|final)/audio_latent",
                r"s\d/positions_(video|audio)",
                r"s\d/(clean|denoise_mask)_audio",
                r"s\d/step\d/((in|x0|out)_audio|call\d/audio_(x0|timesteps))",
                CALLS,  # the rate moves the video's own positions, too
                FIRST,
                *LATER,
                "file/audio",
                "file/rate",
                "used/fps",
            ),
        ),
    ),
    # The first sigma is 1 whatever comes after it.
    "num_inference_steps": (
        Row(
            4,
            (
                r"s1/sigmas",
                r"s1/step0/out_video",
                *LATER,
                r"s1/step[1-9]/call\d/video_(timesteps|sigma)",
                r"s1/step3/.*",
                "used/steps",
            ),
        ),
    ),
    # They begin at 1 but for rounding.
    "scheduler": tuple(
        Row(
            name,
            (r"s1/sigmas", r"s1/step0/out_video", *LATER, r"s1/step[1-9]/call\d/video_(timesteps|sigma)"),
            near=(r"s1/step0/(x0_video|call\d/video_(x0|timesteps|sigma))",),
        )
        for name in ("ltx2", "linear_quadratic")
    ),
    **{
        name: (Row(value, (FIRST, *LATER)),)
        for name, value in (
            ("video_cfg_scale", 5),
            ("video_stg_scale", 0.5),
            ("video_rescaling_scale", 0.2),
            ("video_modality_scale", 1.7),
        )
    },
    **{
        name: (Row(value), Row(value, HALF_AUDIO, SOFT))
        for name, value in (
            ("audio_cfg_scale", 3),
            ("audio_rescaling_scale", 0.2),
            ("audio_modality_scale", 5),
        )
    },
    # Its perturbed pass perturbs the audio as well, and the video of that pass hears it.
    "audio_stg_scale": (
        Row(2),
        Row(2, (r"s1/step0/call2/(video|audio)_x0", r"s1/step0/(x0|out)_(video|audio)", *SOUNDING, *LATER), SOFT),
    ),
    "audio_strength": (
        Row(
            0.5,
            (
                r"s1/(denoise_mask_audio|step\d/((in|x0|out)_audio|call\d/audio_(x0|timesteps|sigma)))",
                HEARING,
                FIRST,
                *LATER,
                *SOUNDING[1:],
            ),
        ),
    ),
    # The first step has no direction before it; the last one goes to the prediction.
    "gradient_estimation_gamma": (
        Row(2, (r"s1/step1/(x0|out)_video", r"s1/step2/((in|x0|out)_video|call\d/video_x0)", *LATER[1:])),
    ),
    "windows": (Row(True, ("used/windows",)),),
    "timeline": (
        Row(
            "0:00 a man and a woman in a room, with light on a face",
            (
                r"prompt/0/(hidden_states|mask|video_enc|audio_enc)",
                CALLS,
                FIRST,
                *LATER,
                "used/prompt",
                "used/sections",
            ),
            {"windows": True},
        ),
    ),
    # Of a film that goes on behind its video of 9 frames: one more latent is made anew.
    "edit": (
        Row(
            {"start": 0.1, "end": 0.2},
            (
                r"s1/step0/in_video",
                r"s\d/(denoise_mask_video|step\d/call\d/video_timesteps)",
                CALLS,
                FIRST,
                LATER[0],
                r"up/(in|unnorm_in|unnorm_out|out)",  # what is clean in the second stage is the video itself
                *LATER[2:],
            ),
            {"num_frames": 17},
            files=("video",),
        ),
    ),
    "reference": (
        Row({"attention": 0.4}, (r"s1/attention_mask_video", CALLS, FIRST, *LATER), files=("reference",)),
        Row(
            {"strength": 0.4},
            (r"s1/step0/in_video", r"s1/(denoise_mask_video|step\d/call\d/video_timesteps)", CALLS, FIRST, *LATER),
            files=("reference",),
        ),
    ),
    # The uncond pass does not read the prompt, and kept audio is not led.
    "nag": (
        Row({"scale": 7}, (r"s1/step0/call[023]/video_x0", FIRST, *LATER)),
        Row({"scale": 7}, (r"s1/step0/call0/video_x0", FIRST, *LATER), UNGUIDED),
        Row({"scale": 7}, (r"s1/step0/call0/(video|audio)_x0", FIRST, *HALF_AUDIO, LATER[0]), {**UNGUIDED, **SOFT}),
    ),
    "use_restart_sampling": (Row(False, (r"s1/step0/out_video", *LATER)),),
    # Of three steps, regular leaves the last one unguided: its one pass is alone in its batch.
    "acceleration": (
        Row(
            "regular",
            (r"s1/step2/call[1-3]/.*", r"s1/step2/(x0|out)_video", *LATER[1:], "used/acceleration"),
            near=(r"s1/step2/call0/video_x0",),
        ),
        Row(
            "full",
            (
                r"s1/step0/call[1-3]/.*",
                r"s1/step[0-2]/call0/video_(timesteps|sigma)",
                r"s1/step[1-2]/call[1-3]/.*",
                r"s1/step[3-7]/.*",
                r"s1/sigmas",
                CALLS,
                FIRST,
                *LATER,
                r"used/(acceleration|steps|passes_per_step|loras)",
            ),
            files=(*IMAGES, "distill_lora"),
        ),
    ),
    # Which file it is, the command is told by --camera-lora; the graph finds it by this name.
    "camera_lora": (Row("dolly_in", files=(*IMAGES, "camera_lora")),),
    "camera_lora_scale": (
        Row(0.4, (CALLS, FIRST, *LATER, "used/loras"), files=(*IMAGES, "camera_lora")),
        Row(0.4),
    ),
    "distill_lora_first_pass_scale": (
        Row(0.6, (CALLS, FIRST, *LATER, "used/loras"), files=(*IMAGES, "distill_lora")),
        Row(0.6),
    ),
    "distill_lora_second_pass_scale": (
        Row(0.9, (*SECOND, "used/loras"), files=(*IMAGES, "distill_lora")),
        Row(0.9, ("used/loras",), {"use_multiscale": False}, files=(*IMAGES, "distill_lora")),
        Row(0.9),
    ),
    **{
        f"{name}_strength": (
            Row(
                0.4,
                (r"s1/step0/in_video", r"s\d/(denoise_mask_video|step\d/call\d/video_timesteps)", CALLS, FIRST, *LATER),
                files=(name,),
            ),
            Row(0.4, files=()),
        )
        for name in IMAGES
    },
    "seed": (Row(6, (r"s1/step0/in_video", CALLS, FIRST, *LATER, "used/seed")),),
    "enable_prompt_expansion": (
        Row(True, (r"prompt/0/(hidden_states|mask|video_enc|audio_enc)", CALLS, FIRST, *LATER, "used/prompt")),
    ),
    "enable_safety_checker": (Row(False), Row(False, files=(*IMAGES, "safety_checker"))),
    # The model hears something else; the file has the same sound.
    "preprocess_audio": (Row(False, (r"audio/(waveform|mel)", *HEARD, HEARING, FIRST, *LATER)),),
    # A GIF counts in hundredths of a second, which 24 frames a second do not meet.
    "video_output_type": (
        Row("VP9 (.webm)", (r"file/(video|audio|kind)",)),
        Row("PRORES4444 (.mov)", (r"file/(video|audio|kind)",)),
        Row("GIF (.gif)", (r"file/(video|audio|kind|rate)",)),
    ),
    "video_quality": tuple(Row(name, (r"file/video",)) for name in ("low", "medium", "maximum")),
    "video_write_mode": tuple(Row(name, (r"file/video",)) for name in ("fast", "small")),
}


# The runs.


@dataclass(frozen=True)
class Run:
    things: dict[str, Tensor | str]
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> Tensor:
        return self.things[name]

    def tensors(self, pattern: str) -> dict[str, Tensor]:
        """The traced tensors of these names; one at least."""
        found = {k: v for k, v in self.things.items() if isinstance(v, Tensor) and re.fullmatch(pattern, k)}
        assert found, pattern
        return found


def write_checker(folder: Path, bias: float) -> Path:
    """A classifier that finds every frame unsafe (bias above 0) or none."""
    labels = {"id2label": {0: "normal", 1: "nsfw"}, "label2id": {"normal": 0, "nsfw": 1}}
    widths = {"embedding_size": 2, "hidden_sizes": [2], "depths": [1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**widths, **labels))
    for parameter in model.classifier.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(model.classifier[1].bias[1:], bias)
    model.save_pretrained(folder)
    document = {"image_processor_type": "ConvNextImageProcessor", "do_resize": True, "size": {"shortest_edge": 8}}
    document |= {"crop_pct": 1.0, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """Smaller than the others' files: what a parameter changes does not depend on widths, and there are many runs."""
    return write_tiny(tmp_path_factory.mktemp("tiny"), layers=2, vae_width=4, gemma_layers=2)


@pytest.fixture(scope="module")
def media(tiny: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files a run may name beside those that it needs; the sound lasts 16.8 frames."""
    folder = tmp_path_factory.mktemp("media")
    noise = np.random.default_rng(3)
    times = np.arange(round(0.7 * 48000)) / 48000
    tone = 0.05 + 0.2 * np.sin(2 * np.pi * (150 + 300 * times) * times) + 0.01 * noise.standard_normal(times.size)
    wavfile.write(folder / "voice.wav", 48000, (tone * 32767).astype("<i2"))
    for name, size in (("image", (128, 64)), ("end_image", (90, 110))):
        coarse = noise.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return {
        "audio": folder / "voice.wav",
        "image": folder / "image.png",
        "end_image": folder / "end_image.png",
        "camera_lora": tiny.camera_lora,
        "distill_lora": tiny.distilled_lora,
        "safety_checker": write_checker(folder / "mild", -9.0),
        "video": write_clip(folder / "video.mkv", [plain(number, 64, 128) for number in range(9)]),
        "reference": write_clip(folder / "reference.mkv", [plain(number) for number in range(9)]),
    }


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with loaded_once(texts=True):
        yield


Engine = Callable[..., Run]


def things_of(tensors: dict[str, Tensor], report: dict[str, Any], path: Path) -> dict[str, Tensor | str]:
    things: dict[str, Tensor | str] = dict(tensors)
    for part in ("asked", "used"):
        things |= {f"{part}/{name}": json.dumps(value) for name, value in report[part].items()}
    with av.open(str(path)) as container:
        kinds = [container.format.name, *(stream.codec_context.name for stream in container.streams)]
        things["file/rate"] = str(container.streams.video[0].average_rate)
        packets: dict[str, list[str]] = {"video": [], "audio": []}
        for packet in container.demux():
            packets[packet.stream.type].append(f"{packet.pts} {packet.duration} {bytes(packet).hex()}")
    return {**things, "file/kind": " ".join(kinds), **{f"file/{k}": "\n".join(v) for k, v in packets.items()}}


@pytest.fixture(scope="module")
def engine(tiny: TinyFiles, media: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """(request beside BASE, names of files of `media`) → the run. The same run is made once."""
    folder = tmp_path_factory.mktemp("output")
    made: dict[str, Run] = {}

    def call(values: dict[str, Any] | None = None, files: tuple[str, ...] = IMAGES, **other: Any) -> Run:
        request = {**BASE, **(values or {})}
        key = json.dumps([request, sorted(files)], sort_keys=True)
        if other or key not in made:
            output = folder / f"{len(list(folder.iterdir()))}"
            output = output.with_suffix(SUFFIXES[request.get("video_output_type", "X264 (.mp4)")])
            named = {"audio": media["audio"], "checkpoint": tiny.checkpoint, **{name: media[name] for name in files}}
            named |= {"text_encoder": tiny.gemma, "upscaler": tiny.upscaler, **other}
            recorder = Recorder()
            files_of_run = Files(output=output, **named)
            result = pipeline.run(files_of_run, parse(request), Compute(torch.float32), trace=recorder)
            run = Run(things_of(recorder.tensors, result.report, output), tuple(result.report["notes"]))
            if other:
                return run
            made[key] = run
        return made[key]

    return call


def same(a: Tensor | str | None, b: Tensor | str | None) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


def changed(a: Run, b: Run) -> set[str]:
    """The things that differ or that one of the two lacks."""
    return {name for name in a.things.keys() | b.things.keys() if not same(a.things.get(name), b.things.get(name))}


def distance(a: Run, b: Run, pattern: str) -> dict[str, float]:
    """Relative L2 of each tensor of these names."""
    others = b.tensors(pattern)
    assert a.tensors(pattern).keys() == others.keys()
    return {k: relative(v, others[k]) for k, v in a.tensors(pattern).items()}


# The table.


def test_every_parameter_has_a_row() -> None:
    assert ROWS.keys() == PARAMETERS.keys()


@pytest.mark.parametrize(
    ("name", "row"), [pytest.param(name, row, id=f"{name} {row}") for name, rows in ROWS.items() for row in rows]
)
def test_it_changes_what_it_should_and_nothing_else(name: str, row: Row, engine: Engine) -> None:
    before, after = engine(row.base, row.files), engine({**row.base, name: row.value}, row.files)
    differ = changed(before, after)
    asked = {f"asked/{name}"}
    assert {thing for thing in differ if thing.startswith("asked/")} == asked
    differ -= asked
    names = before.things.keys() | after.things.keys()
    expected = set()
    for pattern in row.changes:
        found = {thing for thing in names if re.fullmatch(pattern, thing)}
        assert found, f"nothing is named {pattern}"
        expected |= found
    near = {thing for thing in differ if any(re.fullmatch(pattern, thing) for pattern in row.near)}
    assert all(error < 1e-4 for thing in near for error in distance(after, before, re.escape(thing)).values())
    assert sorted(expected - differ) == [], "it should have changed these"
    assert sorted(differ - expected - near) == [], "it should not have changed these"


def test_rows_move_away_from_the_default() -> None:
    for name, rows in ROWS.items():
        for row in rows:
            assert row.value != row.base.get(name, BASE.get(name, PARAMETERS[name].default)), name
            assert name not in row.base


# What a value must equal.


def assert_same_results(a: Run, b: Run) -> None:
    """All tensors and the file are the same, to the bit."""
    assert {name for name in changed(a, b) if not name.startswith(("asked/", "used/"))} == set()


@pytest.mark.parametrize(
    ("values", "same_as", "files"),
    [
        pytest.param({"gradient_estimation_gamma": 0}, {}, IMAGES, id="gamma 0 is none"),
        pytest.param({"gradient_estimation_gamma": None}, {}, IMAGES, id="gamma null is none"),
        pytest.param({"audio_stg_scale": 0, **SOFT}, {"audio_stg_scale": None, **SOFT}, IMAGES, id="STG null is 0"),
        pytest.param({"seed": 5 + 2**64}, {}, IMAGES, id="seeds are taken mod 2⁶⁴"),
        pytest.param({"seed": 5 - 2**64}, {}, IMAGES, id="below 0, too"),
        pytest.param({"video_size": "auto"}, {}, IMAGES, id="auto is the first image's size"),
        pytest.param({"num_frames": 3}, {"num_frames": 9}, IMAGES, id="frames are 8k+1"),
        pytest.param({"fps": 24.0}, {}, IMAGES, id="24 is 24.0"),
    ],
)
def test_equal_requests(
    engine: Engine, values: dict[str, Any], same_as: dict[str, Any], files: tuple[str, ...]
) -> None:
    assert_same_results(engine(values, files), engine(same_as, files))


@pytest.mark.parametrize("name", IMAGES)
def test_strength_0_is_no_image(engine: Engine, name: str) -> None:
    """To the bit, the noise included; the other image stays."""
    other = tuple(image for image in IMAGES if image != name)
    zero = engine({f"{name}_strength": 0})
    assert_same_results(zero, engine(files=other))
    assert any(re.search(r"^the (first|end) image has strength 0", note) for note in zero.notes)
    assert_same_results(engine({"image_strength": 0, "end_image_strength": 0}), engine(files=()))


def test_a_lora_at_0_is_none(engine: Engine) -> None:
    assert_same_results(engine({"camera_lora_scale": 0}, (*IMAGES, "camera_lora")), engine())
    off = {"distill_lora_first_pass_scale": 0, "distill_lora_second_pass_scale": 0}
    assert_same_results(engine(off, (*IMAGES, "distill_lora")), engine())


def test_the_distilled_lora_acts_in_its_own_stage(engine: Engine) -> None:
    """At 0 in the first stage, that stage is as without the file, and the second one starts from the same latent."""
    only_second = engine({"distill_lora_first_pass_scale": 0}, (*IMAGES, "distill_lora"))
    differ = {name for name in changed(only_second, engine()) if not name.startswith(("asked/", "used/"))}
    assert differ and all(re.fullmatch("|".join(SECOND), name) for name in differ)


def test_a_camera_lora_is_in_both_stages(engine: Engine) -> None:
    run = engine({"camera_lora": "jib_up", "camera_lora_scale": 0.3}, (*IMAGES, "camera_lora"))
    (lora,) = json.loads(run.things["used/loras"])
    assert (lora["first_pass"], lora["second_pass"]) == (0.3, 0.3)


def test_gamma_1_is_euler(engine: Engine) -> None:
    """With the restart's noise and without it; and 2 is not."""
    states = r"s\d/step\d/(in|out)_video|final/video_latent"
    for restart in ({}, {"use_restart_sampling": False}):
        euler, one = (engine({**restart, **gamma}) for gamma in ({}, {"gradient_estimation_gamma": 1}))
        assert max(distance(one, euler, states).values()) < 1e-5
    two = engine({"gradient_estimation_gamma": 2})
    assert min(distance(two, engine(), r"s1/step[12]/out_video|final/video_latent").values()) > 1e-3


def test_gamma_acts_in_the_second_stage(engine: Engine) -> None:
    """A first stage of one step is Euler under any gamma; what differs then is the second one's."""
    one_step = {"num_inference_steps": 1}
    euler, two = engine(one_step), engine({**one_step, "gradient_estimation_gamma": 2})
    assert max(distance(two, euler, r"s1/step0/out_video|s2/step0/(in|out)_video").values()) < 1e-5
    assert min(distance(two, euler, r"s2/step[12]/out_video").values()) > 1e-3


def test_restart_draws_from_a_generator_of_its_own(engine: Engine) -> None:
    """The noise of both stages is the request's seed's, in the one order, whether restart is on or not."""
    generator = torch.Generator().manual_seed(BASE["seed"])
    first, _, second = (torch.randn(1, n, 128, generator=generator) for n in (4, 9, 16))
    for restart in (True, False):
        run = engine({"use_restart_sampling": restart}, ())
        assert torch.equal(run["s1/step0/in_video"], first)
        start = patchify_video(run["up/out"])
        torch.testing.assert_close((run["s2/step0/in_video"] - (1 - REFINE) * start) / REFINE, second)


def test_restart_renews_a_fifth_of_the_noise(engine: Engine) -> None:
    """The first step of the first stage, by endpoint.md's formula, from Euler's run and a generator at seed + 10000."""
    euler, restarted = (engine({"use_restart_sampling": on}, ()) for on in (False, True))
    x, x0, target = restarted["s1/step0/in_video"], restarted["s1/step0/x0_video"], restarted["s1/sigmas"][1]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(BASE["seed"] + 10_000))
    up = 0.2 * target
    rho = (target**2 - up**2).sqrt()
    alpha = (1 - target) + rho
    # sigma is 1 at the first step: Euler's own step from it goes to s' directly, the restart's to rho / alpha.
    torch.testing.assert_close(euler["s1/step0/out_video"], x0 + (x - x0) * target, rtol=1e-5, atol=1e-5)
    wanted = alpha * (x0 + (x - x0) * rho / alpha) + up * noise
    torch.testing.assert_close(restarted["s1/step0/out_video"], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(restarted["s1/step2/out_video"], restarted["s1/step2/x0_video"])  # none after the last
    steps = [restarted[f"s2/step{i}/{name}_video"] for i, name in ((0, "in"), (0, "x0"), (0, "out"))]
    levels = restarted["s2/sigmas"]
    plain = steps[1] + (steps[0] - steps[1]) * levels[1] / levels[0]
    torch.testing.assert_close(steps[2], plain, rtol=1e-5, atol=1e-5)  # none in the second stage


def test_audio_strength_goes_to_the_frozen_case(engine: Engine) -> None:
    """At audio CFG 1 nothing jumps as the strength goes to 1: the distance falls with it."""
    quiet = {"audio_cfg_scale": 1}
    frozen = engine(quiet)
    distances = []
    for strength in (0.9, 0.999, 0.99999):
        run = engine({**quiet, "audio_strength": strength})
        distances.append(distance(run, frozen, "final/video_latent")["final/video_latent"])
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-3 < distances[0], distances


def test_one_stage_sees_the_images_at_full_size(engine: Engine) -> None:
    two, one = engine(), engine({"use_multiscale": False})
    for number in (0, 1):
        for kind in ("pixels", "latent"):
            assert torch.equal(one[f"cond/{number}/{kind}"], two[f"cond/{number + 2}/{kind}"])
    assert not [name for name in one.things if name.startswith(("s2/", "up/"))]
    assert one["final/frames_u8"].shape == two["final/frames_u8"].shape


@pytest.mark.parametrize("name", ["auto", *SIZES])
def test_sizes_by_name(name: str) -> None:
    """The page's sizes; auto is an image's, or landscape_16_9."""
    track = pipeline.Track(torch.zeros(1, 48000), 48000)
    wanted = {"auto": (1024, 576)} | SIZES
    for values in ({"video_size": name}, {"video_size": name, "use_multiscale": False}):
        planned = plan(parse({"prompt": "x", **values}), track)
        assert (planned.width, planned.height) == wanted[name]


def test_a_seed_is_drawn_and_comes_back(engine: Engine) -> None:
    """Absent or null: drawn, reported, and the report's seed makes the same run."""
    drawn = engine({"seed": None})
    seed = json.loads(drawn.things["used/seed"])
    assert 0 <= seed < 2**31
    assert changed(drawn, engine({"seed": seed})) == set()


@pytest.fixture(scope="module")
def notes(tiny: TinyFiles, media: dict[str, Path]) -> Callable[..., tuple[str, ...]]:
    """(request beside BASE, files by path) → what is said before anything is loaded."""

    def prepare(values: dict[str, Any] | None = None, **files: Path) -> tuple[str, ...]:
        named = {"checkpoint": tiny.checkpoint, "text_encoder": tiny.gemma, "upscaler": tiny.upscaler}
        named |= {"audio": media["audio"], **files}
        return job.prepare(Files(output=Path("out.mp4"), **named), parse({**BASE, **(values or {})})).notes

    return prepare


Notes = Callable[..., tuple[str, ...]]


def test_the_match_is_reported(engine: Engine, notes: Notes) -> None:
    """16.8 frames of sound take 17 of video; 9 end before the sound does, 25 after it."""
    assert json.loads(engine({"match_audio_length": True}).things["used/frames"]) == 17
    assert "num_frames rounded up from 10 to 17" in notes({"num_frames": 10})
    assert any("silence follows" in note for note in notes({"num_frames": 25}))


def test_a_constant_in_the_sound_matters_where_it_is_left_in(engine: Engine, notes: Notes) -> None:
    """Preprocessing takes it away: then the report has nothing on the sound, and what else it has is of this run."""
    assert [note.split(":")[0] for note in engine({"match_audio_length": True}).notes] == [
        "the safety checker did not run",
        "no distilled LoRA given",
        "decoded whole",
    ]
    assert any("DC offset" in note for note in notes({"preprocess_audio": False}))


def test_a_mix_of_many_channels_is_reported(notes: Notes, tmp_path: Path) -> None:
    """Nine channels have no layout in any file; where the model makes new sound, nothing is mixed."""
    signal = np.tile(np.sin(np.arange(48000) / 20).astype(np.float32)[:, None] * 0.2, 9)
    wavfile.write(tmp_path / "nine.wav", 48000, signal)
    note = "the sound was mixed down from 9 channels to stereo, because X264 (.mp4) has no such layout"
    assert note in notes(audio=tmp_path / "nine.wav")
    assert note not in notes({"audio_strength": 0.5}, audio=tmp_path / "nine.wav")
    assert not any("mixed down" in each for each in notes())


def test_inert_audio_scales_are_reported(notes: Notes) -> None:
    for name in ("audio_cfg_scale", "audio_rescaling_scale", "audio_modality_scale", "audio_stg_scale"):
        value = ROWS[name][0].value
        assert any(note.startswith(f"{name} does nothing") for note in notes({name: value}))
        assert not any("does nothing" in note for note in notes({name: value, **SOFT}))


def test_quality_and_write_mode_are_the_files_alone(engine: Engine) -> None:
    """A higher quality is a larger file, "small" a smaller one than "fast"; the table above has the rest."""

    def size(**values: str) -> int:
        return len(engine(values).things["file/video"])

    sizes = [size(video_quality=quality) for quality in PARAMETERS["video_quality"].choices]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
    assert size(video_write_mode="small") < size(video_write_mode="fast")


def test_the_returned_track_is_the_source(engine: Engine, media: dict[str, Path]) -> None:
    """In PCM, with and without preprocessing: the source's samples up to the last frame's end, offset and all."""
    for preprocess in (True, False):
        run = engine({"video_output_type": "PRORES4444 (.mov)", "preprocess_audio": preprocess})
        packets = (line.split() for line in run.things["file/audio"].splitlines())
        sound = b"".join(
            bytes.fromhex(packet[2]) for packet in packets if len(packet) == 3
        )  # one that ends it is empty
        samples = np.frombuffer(sound, np.uint8).reshape(-1, 3)
        _, source = wavfile.read(media["audio"])
        wanted = source[: 9 * 48000 // 24]
        assert (samples[:, 0] == 0).all(), "24 bits hold 16 without a rest"
        assert np.array_equal(samples[:, 1:].copy().view("<i2")[:, 0], wanted)


# Impossible combinations, and what is said of odd ones.


def test_a_flagged_clip_is_refused(engine: Engine, tmp_path: Path) -> None:
    strict = write_checker(tmp_path / "strict", 9.0)
    with pytest.raises(FlaggedError, match=r"safety checker flagged.*enable_safety_checker"):
        engine(safety_checker=strict)
    off = engine({"enable_safety_checker": False}, safety_checker=strict)
    assert_same_results(off, engine({"enable_safety_checker": False}))


def test_the_safety_checkers_absence_is_said(
    notes: Notes, media: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*arguments: Any, **files: Path) -> bool:
        return any("safety checker did not run" in note for note in notes(*arguments, **files))

    assert said() and not said({"enable_safety_checker": False}) and not said(safety_checker=media["safety_checker"])
    with pytest.raises(InputError, match=r"^enable_safety_checker: .*--safety-checker"):
        notes({"enable_safety_checker": True})
    monkeypatch.setenv("LTX_A2V_SAFETY", "require")
    with pytest.raises(InputError, match=r"^enable_safety_checker: .*--safety-checker"):
        notes()
    assert not said({"enable_safety_checker": False}) and not said(safety_checker=media["safety_checker"])


@pytest.mark.parametrize(
    ("values", "files", "sentence"),
    [
        pytest.param({"num_frames": 1}, IMAGES, r"^end image: .*one frame", id="end image and one frame"),
        pytest.param(
            {"acceleration": "full"}, IMAGES, r"^acceleration: full needs .*distilled", id="nothing distilled"
        ),
        pytest.param(
            {"acceleration": "regular", "video_cfg_scale": 1, "video_stg_scale": 0, "video_modality_scale": 1},
            IMAGES,
            r"^acceleration: regular .* neutral",
            id="nothing guided",
        ),
        pytest.param({"camera_lora": "jib_up"}, IMAGES, r"^camera_lora: jib_up.*--camera-lora", id="no camera file"),
    ],
)
def test_impossible_combinations(engine: Engine, values: dict[str, Any], files: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        engine(values, files)


def test_one_frame_is_possible_without_an_end_image(engine: Engine) -> None:
    assert engine({"num_frames": 1}, ("image",))["final/frames_u8"].shape[0] == 1
    zero = engine({"num_frames": 1, "end_image_strength": 0})
    assert zero["final/frames_u8"].shape[0] == 1, "at strength 0 there is no end image"


@pytest.mark.parametrize(
    ("values", "noted"),
    [
        ({}, True),
        ({"distill_lora_first_pass_scale": 0}, True),
        ({"distill_lora_second_pass_scale": 0}, True),
        ({"distill_lora_first_pass_scale": 0, "use_multiscale": False}, False),
        ({"distill_lora_first_pass_scale": 0, "distill_lora_second_pass_scale": 0}, False),
    ],
    ids=str,
)
def test_a_distilled_lora_on_a_distilled_checkpoint(
    tiny: TinyFiles, notes: Notes, tmp_path: Path, values: dict[str, Any], noted: bool
) -> None:
    """A note, where the LoRA acts at all; none on the checkpoint that is not distilled, and none without the LoRA."""
    distilled = tmp_path / "ltx-2.3-22b-Distilled.safetensors"
    shutil.copy(tiny.checkpoint, distilled)

    def count(**files: Path) -> int:
        return sum("distilled already" in note for note in notes(values, **files))

    assert count(checkpoint=distilled, distill_lora=tiny.distilled_lora) == noted
    assert count(distill_lora=tiny.distilled_lora) == count(checkpoint=distilled) == 0


def test_a_camera_lora_that_fits_partly(engine: Engine, tiny: TinyFiles, tmp_path: Path) -> None:
    """A note with the counts, and the part that fits acts."""
    pairs = load_file(tiny.camera_lora)
    layers = sorted({key.split(".lora_")[0] for key in pairs})
    lost = set(layers[::3])

    def widened(key: str, tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor], 1) if key.endswith("lora_A.weight") else tensor

    partly = {k: widened(k, v) if k.split(".lora_")[0] in lost else v for k, v in pairs.items()}
    save_file({k: v.contiguous() for k, v in partly.items()}, tmp_path / "partly.safetensors")
    fitting = {k: v for k, v in pairs.items() if k.split(".lora_")[0] not in lost}
    save_file(fitting, tmp_path / "fitting.safetensors")
    run = engine(camera_lora=tmp_path / "partly.safetensors")
    (note,) = (note for note in run.notes if "partly.safetensors" in note)
    assert f"{len(layers) - len(lost)} layers applied, {len(lost)} left out" in note
    assert_same_results(run, engine(camera_lora=tmp_path / "fitting.safetensors"))
    assert changed(run, engine()) >= {"final/video_latent", "file/video"}


def test_a_camera_lora_that_fits_nothing(engine: Engine, tmp_path: Path) -> None:
    """As the published 19B files would not fit a 22B model of another width: an error before anything runs."""
    path = tmp_path / "ltx-2-19b-lora-camera-control-dolly-in.safetensors"
    name = "diffusion_model.transformer_blocks.0.attn1.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 4096), f"{name}.lora_B.weight": torch.ones(4096, 2)}
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"dolly-in\.safetensors: fits nothing in this model.*LTX-2\.3"):
        engine({"camera_lora": "dolly_in"}, camera_lora=path)
