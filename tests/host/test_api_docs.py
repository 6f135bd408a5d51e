"""docs/api.md: every block of code in it runs as it stands against a real server, and its table of settings is true.

What a test puts in: the server's address, and a small size where the prompt is given. The server asks for a key, the
one that the page's lines send.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
import requests
from a2v.api.settings import MIB, Settings, read_settings
from a2v.ltx.diffusion.kept import DEFAULTS
from a2v.ltx.models import MODELS
from a2v.tests.api.edges import wav
from a2v.tests.host.api import APP, environment, write_published
from a2v.tests.host.comfy import Comfy
from a2v.tests.host.test_api_js import install_client

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
ADDRESS, KEY, UPLOAD = "127.0.0.1:8188", "local", "http://127.0.0.1:8188/fal/cdn/files/…"
PROMPT = '"prompt": "A woman speaks to the camera"'
QUICK = f'{PROMPT}, "video_size": {{"width": 64, "height": 64}}, "num_inference_steps": 8'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    base = tmp_path_factory.mktemp("api")
    write_published(base)
    with environment(LTX_A2V_API_KEY=KEY), Comfy(base) as comfy:
        yield comfy


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a reader stands: with a file of sound, and the workflows as in the pack's folder, but quick ones."""
    (tmp_path / "speech.wav").write_bytes(wav(0.3))
    graphs = tmp_path / "workflows" / "api"
    graphs.mkdir(parents=True)
    for path in (ROOT / "workflows" / "api").glob("*.json"):
        graph = json.loads(path.read_text(encoding="utf-8"))
        for node in graph.values():
            if node["class_type"] == "LTXA2VVideoSize":
                node["inputs"] |= {"video_size": "custom", "width": 64, "height": 64}
            elif node["class_type"] == "LTXA2VScheduler":
                node["inputs"]["steps"] = 8
            elif node["class_type"] == "LTXA2VTextEncoderLoader":
                node["inputs"]["folder"] = MODELS["gemma"].name  # the tiny one is a folder
        (graphs / path.name).write_text(json.dumps(graph))
    return tmp_path


def blocks(language: str, part: str) -> str:
    """The block in that language that has that text, and no other has."""
    (found,) = (code for name, code in BLOCKS if name == language and part in code)
    return found


def run(command: list[str], code: str, server: Comfy, place: Path) -> str:
    """Runs it, and gives back what it prints."""
    address = server.url.removeprefix("http://")
    code = code.replace(ADDRESS, address).replace(PROMPT, QUICK)
    done = subprocess.run(command, input=code, cwd=place, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_video(url: str, server: Comfy) -> None:
    assert re.fullmatch(re.escape(server.url) + r"/fal/cdn/results/[0-9a-f]{32}_\d+_\.mp4", url)
    assert requests.get(url, timeout=20).content[4:8] == b"ftyp"


def test_all_blocks_are_here() -> None:
    assert [name for name, _ in BLOCKS] == ["js", "js", "python", "sh", "sh"]
    assert all(ADDRESS in code for _, code in BLOCKS)


def test_python(server: Comfy, place: Path) -> None:
    said = run([sys.executable, "-"], blocks("python", "fal_client"), server, place).splitlines()
    assert any(line.startswith("Completed(") for line in said)
    urls = [line for line in said if line.startswith(server.url)]
    assert len(set(urls)) == 2
    for url in urls:
        check_video(url, server)


@pytest.mark.parametrize("part", ["fal.subscribe(", "fal.queue.submit("])
@pytest.mark.soak
def test_js(server: Comfy, place: Path, part: str) -> None:
    node, folder = install_client()
    headers = {"Authorization": f"Key {KEY}"}
    announced = {"file_name": "speech.wav", "content_type": "audio/wav"}
    where = requests.post(
        f"{server.url}/fal/rest/storage/upload/initiate", json=announced, headers=headers, timeout=20
    ).json()
    requests.put(where["upload_url"], data=wav(0.3), timeout=20).raise_for_status()
    (place / "node_modules").symlink_to(folder / "node_modules")
    code = blocks("js", part).replace(UPLOAD, where["file_url"])
    said = run([node, "--input-type=module", "-"], code, server, place).splitlines()
    check_video(said[-1], server)


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl on this machine")
def test_curl(server: Comfy, place: Path) -> None:
    said = run(["bash", "-e"], blocks("sh", "/queue/"), server, place)
    assert '"status": "COMPLETED"' in said and json.loads(said.splitlines()[-1])["video"]["num_frames"] == 9
    with av.open(str(place / "video.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9
    graph = json.loads((place / "graph.json").read_text())
    assert any(node["class_type"] == "LTXA2VSaveLatentVideo" for node in graph.values())


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl on this machine")
def test_plain_api_mode_with_the_committed_workflow(server: Comfy, place: Path) -> None:
    said = run(["bash", "-e"], blocks("sh", "/upload/image"), server, place)
    prompt_id = json.loads(said[said.index('{"prompt_id"') :])["prompt_id"]
    deadline = time.monotonic() + 120
    while prompt_id not in (history := server.get(f"/history/{prompt_id}")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert history[prompt_id]["status"]["status_str"] == "success"
    assert any("report" in output for output in history[prompt_id]["outputs"].values())


def test_the_key_guards_fal_alone(server: Comfy) -> None:
    assert requests.post(f"{server.url}/fal/queue/{APP}", json={}, timeout=20).status_code == 401
    wrong = {"Authorization": "Key other"}
    assert requests.post(f"{server.url}/fal/queue/{APP}", json={}, headers=wrong, timeout=20).status_code == 401
    for path in ("/queue", "/history", "/object_info/LTXA2VLoadAudio", "/fal/openapi.json"):
        assert requests.get(server.url + path, timeout=20).status_code == 200


# the table of settings


def settings_from(**values: str) -> Settings:
    folders = SimpleNamespace(
        get_user_directory=lambda: "u",
        get_input_directory=lambda: "i",
        get_output_directory=lambda: "o",
        get_temp_directory=lambda: "t",
    )
    return read_settings(folders, values)


def shown(value: Any, name: str) -> str:
    """A default as the table has it."""
    if value in (None, (), ""):
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value / MIB if name.endswith('_MB') else value:g}"


def test_the_table_of_settings_is_the_code() -> None:
    source = (ROOT / "api" / "settings.py").read_text(encoding="utf-8")
    known = set(re.findall(r'"(LTX_A2V_[A-Z_]+)"', source))
    table = dict(re.findall(r"^\| `(LTX_A2V_\w+)` \| ([^|]*) \|", PAGE, re.MULTILINE))
    assert table.keys() == known | DEFAULTS.keys()
    plain = settings_from()
    assert {name: table.pop(name) for name in DEFAULTS} == {name: f"{value:g}" for name, value in DEFAULTS.items()}
    for name, default in table.items():
        sample = {"LTX_A2V_SAFETY": "require", "LTX_A2V_WORKER": "1"}.get(name, "77")
        other = settings_from(**{name: sample})
        fields = [
            field.name
            for field in dataclasses.fields(Settings)
            if getattr(other, field.name) != getattr(plain, field.name)
        ]
        assert fields, f"{name} changes nothing"
        assert default == shown(getattr(plain, fields[0]), name), name
