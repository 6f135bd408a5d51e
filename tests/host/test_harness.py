"""The harness against stock nodes alone: what it reports is what the server did."""

from __future__ import annotations

import os
from pathlib import Path

import av
import pytest
from a2v.tests.host.comfy import HOST, Comfy, ComfyError, PromptRejected


def picture(color: int = 255, width: int = 64) -> dict:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": width, "height": 32, "batch_size": 1, "color": color}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "harness"}},
    }


def test_run_reports_outputs_and_what_was_cached(comfy: Comfy) -> None:
    seen = []
    first = comfy.run(picture(), on_event=seen.append)
    assert (first.executed, first.cached, first.error, first.interrupted) == (["1", "2", "3"], [], None, False)
    assert seen == first.events and first.status["status_str"] == "success"

    (image,) = first.outputs["3"]["images"]
    with av.open(str(comfy.path(image))) as file:
        frame = next(file.decode(video=0)).to_ndarray(format="rgb24")
    assert frame.shape == (32, 64, 3) and frame[0, 0].tolist() == [255, 255, 0]  # 255 is blue; inverted, yellow

    changed = picture()
    changed["3"]["inputs"]["filename_prefix"] = "again"
    second = comfy.run(changed)
    assert second.executed == ["3"] and set(second.cached) == {"1", "2"}


def test_a_refused_prompt_names_node_and_cause(comfy: Comfy) -> None:
    with pytest.raises(PromptRejected, match="width") as refused:
        comfy.run(picture(width=-1))
    assert set(refused.value.node_errors) == {"1"}


def test_a_partly_refused_prompt_is_refused_whole(comfy: Comfy) -> None:
    bad = {str(int(k) + 10): v for k, v in picture(width=-1).items()}
    bad["12"]["inputs"]["image"] = ["11", 0]
    bad["13"]["inputs"]["images"] = ["12", 0]
    with pytest.raises(PromptRejected, match="width"):
        comfy.queue({**picture(color=7), **bad})


def test_a_failing_node_is_reported(comfy: Comfy) -> None:
    prompt = picture()
    prompt["3"] = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "../../outside"}}
    run = comfy.run(prompt)
    assert run.error is not None and run.error["node_id"] == "3" and run.message


def test_upload_lands_in_the_input_folder(comfy: Comfy, tmp_path: Path) -> None:
    file = tmp_path / "héllo.txt"
    file.write_bytes(b"some bytes")
    assert (comfy.base / "input" / comfy.upload(file)).read_bytes() == b"some bytes"


@pytest.mark.soak
def test_the_server_is_gone_after_stop(tmp_path: Path) -> None:
    with Comfy(tmp_path, pack=None) as server:
        group = server.pid
        version = server.get("/system_stats")["system"]["comfyui_version"]
        assert f'"{version}"' in (HOST / "comfyui_version.py").read_text(encoding="utf-8")
        assert version == "0.3.75" or os.environ.get("LTX_A2V_HOST")
        assert "EmptyImage" in server.object_info()
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ComfyError, match="--no-such-flag"):
        Comfy(tmp_path, pack=None, args=("--no-such-flag",))
    with pytest.raises(ComfyError, match="make setup"):
        Comfy(tmp_path, host=tmp_path)


@pytest.mark.soak
def test_a_pack_that_does_not_load_is_told_at_once(tmp_path: Path) -> None:
    pack = tmp_path / "broken"
    pack.mkdir()
    (pack / "__init__.py").write_text("raise RuntimeError('no such luck')")
    with pytest.raises(ComfyError, match="no such luck"):
        Comfy(tmp_path / "base", pack=pack)


def test_the_host_reads_no_foreign_model_paths() -> None:
    assert (HOST / "main.py").is_file() and not (HOST / "extra_model_paths.yaml").exists()
