"""What the frontend is told about every node, by the real ComfyUI classes."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("comfy.model_patcher", reason="no ComfyUI: run `make setup`, or name one in LTX_A2V_HOST")

from a2v import nodes
from a2v.ltx.diffusion.samplers import Restart
from a2v.ltx.request import PARAMETERS
from a2v.nodes.widgets import aliases
from a2v.tests.beyond import BEYOND
from comfy_api.latest import io

from .test_docs import NODES as IN_SOURCES

ROOT = Path(__file__).resolve().parents[2]
NODES = {node.define_schema().node_id: node for node in nodes.NODES}


def inputs(node_id: str) -> dict[str, io.Input]:
    """By name; of one that takes several types, its widget."""
    return {each.id: getattr(each, "input_override", None) or each for each in NODES[node_id].GET_SCHEMA().inputs}


def test_the_door_opens_on_the_nodes() -> None:
    spec = importlib.util.spec_from_file_location("as_comfyui_names_it", ROOT / "__init__.py")
    door = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = door
    spec.loader.exec_module(door)
    extension = asyncio.run(door.comfy_entrypoint())
    found = asyncio.run(extension.get_node_list())
    assert [node.GET_SCHEMA().node_id for node in found] == list(NODES)
    assert (ROOT / door.WEB_DIRECTORY).is_dir()


@pytest.mark.parametrize("node_id", NODES)
def test_every_node_tells_what_a_person_needs(node_id: str) -> None:
    node = NODES[node_id]
    schema = node.GET_SCHEMA()  # runs ComfyUI's own checks, of ids that an input and an output share for one
    assert node_id.startswith("LTXA2V") and schema.category.startswith("LTX Audio-to-Video/")
    assert schema.display_name.startswith("LTX A2V ") and schema.description.endswith(".")
    for each in schema.inputs:
        assert each.tooltip and each.tooltip.endswith("."), each.id
    for each in schema.outputs:
        assert each.id and each.display_name and each.tooltip and each.tooltip.endswith("."), each.id
    ids = [each.id for each in (*schema.inputs, *schema.outputs)]
    assert len(set(ids)) == len(ids)
    json.dumps(node.GET_NODE_INFO_V1())  # as /object_info sends it


# what people type who look for the node of that job, as they know it from other packs
SEARCHED = {
    "LTXA2VModelLoader": ("checkpoint", "gguf", "ltx 2.3", "ltx 2.5"),
    "LTXA2VTextEncoderLoader": ("gemma", "load clip"),
    "LTXA2VTextEncode": ("positive prompt", "negative prompt"),
    "LTXA2VFrameCount": ("fps", "length"),
    "LTXA2VImageConditioning": ("image to video", "first frame"),
    "LTXA2VGuidance": ("cfg", "stg"),
    "LTXA2VAcceleration": ("speed", "teacache", "torch compile"),
    "LTXA2VKernels": ("sage attention",),
    "LTXA2VSampler": ("audio to video", "lip sync", "talking head", "avatar"),
    "LTXA2VDecode": ("vae decode",),
    "LTXA2VSafetyChecker": ("nsfw",),
    "LTXA2VSaveVideo": ("save mp4", "webm", "gif"),
}


@pytest.mark.skipif(not aliases("a"), reason="this host's search knows titles alone")
@pytest.mark.parametrize("node_id", SEARCHED)
def test_the_search_finds_a_node_by_usual_words(node_id: str) -> None:
    schema = NODES[node_id].GET_SCHEMA()
    known = [word.lower() for word in (schema.display_name, *schema.search_aliases)]
    assert [word for word in SEARCHED[node_id] if not any(word in each for each in known)] == []


def test_frames_per_second_may_be_linked_as_a_whole_number() -> None:
    """Most other nodes' rates are an INT, which ComfyUI refuses for a widget of any number alone."""
    rates = [each for node in NODES.values() for each in node.GET_SCHEMA().inputs if each.id in ("fps", "frame_rate")]
    assert len(rates) > 7 and {each.get_io_type() for each in rates} == {"FLOAT,INT"}


def test_nodes_have_names_of_their_own() -> None:
    schemas = [node.GET_SCHEMA() for node in NODES.values()]
    assert len(NODES) == len({schema.display_name for schema in schemas}) == len(nodes.NODES)
    assert NODES.keys() == IN_SOURCES.keys(), "a node that no list of its file names"


@pytest.mark.parametrize(
    ("node_id", "name", "parameter"),
    [
        ("LTXA2VFrameCount", "frame_rate", "fps"),
        ("LTXA2VFrameCount", "match_audio_length", "match_audio_length"),
        ("LTXA2VFrameCount", "num_frames", "num_frames"),
        ("LTXA2VVideoSize", "video_size", "video_size"),
        ("LTXA2VVideoSize", "frames", "num_frames"),
        ("LTXA2VVideoSize", "two_passes", "use_multiscale"),
        ("LTXA2VAudioConditioning", "fps", "fps"),
        ("LTXA2VAudioConditioning", "strength", "audio_strength"),
        ("LTXA2VImageConditioning", "strength", "image_strength"),
        ("LTXA2VEndImageConditioning", "strength", "end_image_strength"),
        ("LTXA2VKeyframe", "strength", "image_strength"),
        ("LTXA2VScheduler", "scheduler", "scheduler"),
        ("LTXA2VScheduler", "steps", "num_inference_steps"),
        ("LTXA2VGuidance", "cfg", "video_cfg_scale"),
        ("LTXA2VGuidance", "stg", "video_stg_scale"),
        ("LTXA2VGuidance", "rescale", "video_rescaling_scale"),
        ("LTXA2VGuidance", "modality", "video_modality_scale"),
        ("LTXA2VDistilledLora", "first_pass_strength", "distill_lora_first_pass_scale"),
        ("LTXA2VDistilledLora", "second_pass_strength", "distill_lora_second_pass_scale"),
        ("LTXA2VAudioGuidance", "cfg", "audio_cfg_scale"),
        ("LTXA2VAudioGuidance", "rescale", "audio_rescaling_scale"),
        ("LTXA2VAudioGuidance", "modality", "audio_modality_scale"),
        ("LTXA2VCameraLora", "camera_lora", "camera_lora"),
        ("LTXA2VCameraLora", "strength", "camera_lora_scale"),
        ("LTXA2VPreprocessAudio", "frames", "num_frames"),
        ("LTXA2VPreprocessAudio", "fps", "fps"),
        ("LTXA2VPreprocessAudio", "enabled", "preprocess_audio"),
        ("LTXA2VExpandPrompt", "enabled", "enable_prompt_expansion"),
        *(
            (node_id, name, parameter)
            for node_id in ("LTXA2VSaveVideo", "LTXA2VSaveLatentVideo")
            for name, parameter in (
                ("fps", "fps"),
                ("format", "video_output_type"),
                ("quality", "video_quality"),
                ("write_mode", "video_write_mode"),
            )
        ),
    ],
)
def test_defaults_are_the_endpoints(node_id: str, name: str, parameter: str) -> None:
    assert inputs(node_id)[name].default == PARAMETERS[parameter].default


def test_what_the_endpoint_leaves_out_is_off_by_default() -> None:
    assert inputs("LTXA2VSampler")["gradient_estimation_gamma"].default == 0
    assert inputs("LTXA2VAudioGuidance")["stg"].default == 0


@pytest.mark.parametrize(
    ("node_id", "name", "choices"),
    [
        ("LTXA2VVideoSize", "video_size", ("custom", *PARAMETERS["video_size"].choices)),
        ("LTXA2VCameraLora", "camera_lora", PARAMETERS["camera_lora"].choices),
        ("LTXA2VScheduler", "scheduler", PARAMETERS["scheduler"].choices),
        ("LTXA2VSampler", "sampler", ("euler",)),
        ("LTXA2VSaveVideo", "format", ("X264 (.mp4)", "VP9 (.webm)", "PRORES4444 (.mov)", "GIF (.gif)")),
        ("LTXA2VSaveVideo", "quality", ("low", "medium", "high", "maximum")),
        ("LTXA2VSaveVideo", "write_mode", ("fast", "balanced", "small")),
        ("LTXA2VSafetyChecker", "action", ("replace", "refuse")),
    ],
)
def test_choices_are_the_endpoints(node_id: str, name: str, choices: tuple[str, ...]) -> None:
    assert tuple(option for option in inputs(node_id)[name].options if option not in BEYOND) == choices


def test_the_restart_node_is_the_endpoints_restart_sampling() -> None:
    widgets = {name: each.default for name, each in inputs("LTXA2VRestart").items()}
    assert nodes.sampling.RestartSampling.execute(**widgets).args == (Restart(),)
    assert widgets["noise"] == 0.2 and widgets["restarts"] == 0


def test_saving_from_frames_and_from_latents_take_the_same() -> None:
    saving, streaming = inputs("LTXA2VSaveVideo"), inputs("LTXA2VSaveLatentVideo")
    assert set(saving) - set(streaming) == {"images"}
    assert {"latent", "video_vae", "checker", "threshold", "action"} <= set(streaming)
    for name in set(saving) - {"images"}:
        assert saving[name].as_dict() == streaming[name].as_dict()


def test_the_default_size_is_the_endpoints() -> None:
    size = inputs("LTXA2VVideoSize")
    assert (size["width"].default, size["height"].default) == (1024, 576)  # landscape_16_9


def test_the_audio_upload_is_what_the_frontend_looks_for() -> None:
    given = NODES["LTXA2VLoadAudio"].GET_NODE_INFO_V1()["input"]
    kind, options = given["required"]["audio"]
    assert kind == "COMBO" and options["audio_upload"] is True
    assert list(given["optional"])[-1] == "audioUI" and given["optional"]["audioUI"][0] == "AUDIO_UI"


def test_edges_have_comfyuis_own_types() -> None:
    types = {
        node_id: ([each.get_io_type() for each in schema.inputs], [each.get_io_type() for each in schema.outputs])
        for node_id, schema in ((node_id, node.GET_SCHEMA()) for node_id, node in NODES.items())
    }
    assert {"NOISE", "SIGMAS", "LATENT"} <= set(types["LTXA2VSampler"][0])
    assert types["LTXA2VSampler"][1] == ["LATENT", "NOISE", "LTXA2V_AUDIO", "STRING"]
    assert types["LTXA2VScheduler"][1] == ["SIGMAS", "SIGMAS"]
    assert types["LTXA2VLoadAudio"][1] == ["AUDIO"] and types["LTXA2VDecode"][1] == ["IMAGE"]
    assert types["LTXA2VSaveVideo"][1] == ["VIDEO"] and types["LTXA2VVideoSize"][1][:2] == ["LATENT", "LATENT"]
    assert types["LTXA2VPreprocessAudio"][1] == types["LTXA2VDecodeAudio"][1] == ["AUDIO", "STRING"]
    assert types["LTXA2VExpandPrompt"][1] == ["STRING", "STRING"] and types["LTXA2VReport"][1] == ["STRING"]
    assert types["LTXA2VSafetyChecker"][1] == ["IMAGE", "BOOLEAN", "STRING"]
