"""The pack never breaks ComfyUI's start: what is missing, too old or broken switches it off in one line of the log."""

from __future__ import annotations

from pathlib import Path

import pytest
from a2v.tests.api.edges import APP, data_uri, wav
from a2v.tests.host.comfy import HOST, Comfy

PIP = (" -m pip install -r ", "requirements.txt")
SUBMIT, ASKED = f"/fal/queue/{APP}", {"prompt": "a", "audio_url": data_uri(wav(), "audio/wav")}
BROKEN = "raise ImportError('libnothing.so.1: cannot open\\nshared file')"


def shadowed(folder: Path, **packages: str | None) -> Path:
    """A ComfyUI to start, before whose packages stand these: name → the version it claims, or None for one whose
    import fails."""
    shadow = folder / "shadow"
    for name, version in packages.items():
        if version is None:
            (shadow / name).mkdir(parents=True)
            (shadow / name / "__init__.py").write_text(BROKEN)
        else:
            info = shadow / f"{name}-{version}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "main.py").write_text(
        "import runpy, sys\n"
        f"sys.path[:1] = [{str(HOST)!r}, {str(shadow)!r}]\n"
        f"runpy.run_path({str(HOST / 'main.py')!r}, run_name='__main__')\n"
    )
    return folder


@pytest.mark.parametrize(
    ("packages", "told"),
    [
        ({"diffusers": "0.30.1", "gguf": "0.1"}, ["diffusers 0.30.1 (needed: >=", "gguf 0.1 (needed: >=", *PIP]),
        pytest.param(
            {"diffusers": None},
            ["ImportError: libnothing.so.1: cannot open shared file", *PIP],
            id="broken",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            {"torch": "2.5.1"},
            ["torch 2.5.1 (needed: >=", "update ComfyUI with its torch"],
            id="an old torch",
            marks=pytest.mark.soak,
        ),
    ],
    ids=["too old", None, None],
)
def test_comfyui_starts_and_one_line_says_what_to_install(tmp_path: Path, packages: dict, told: list[str]) -> None:
    host = tmp_path / "host"
    host.mkdir()
    with Comfy(tmp_path / "base", host=shadowed(host, **packages)) as server:
        nodes = server.object_info()
        assert "EmptyImage" in nodes and not [name for name in nodes if name.startswith("LTXA2V")]
        assert server.post(SUBMIT, {}).status_code in (404, 405)
        log = server.log
    assert_one_line(log, "the pack is off: ", told)


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("3.0", ["cryptography 3.0 (needed: >=", *PIP]),
        pytest.param(None, ["cryptography cannot be imported", *PIP], id="broken", marks=pytest.mark.soak),
    ],
    ids=["too old", None],
)
@pytest.mark.soak  # doctor has it, and the test above what is off
def test_what_webhooks_alone_need_switches_off_webhooks_alone(
    tmp_path: Path, version: str | None, told: list[str]
) -> None:
    host = tmp_path / "host"
    host.mkdir()
    with Comfy(tmp_path / "base", host=shadowed(host, cryptography=version)) as server:
        assert [name for name in server.object_info() if name.startswith("LTXA2V")]
        assert server.post(SUBMIT, ASKED).status_code == 424, "of the models, which are not there"
        refused = server.post(f"{SUBMIT}?fal_webhook=https://example.com/hook", ASKED)
        log = server.log
    assert refused.status_code == 503
    assert told[0] in refused.json()["detail"]
    assert_one_line(log, "no webhooks are sent: ", told)


@pytest.mark.soak  # tests/api/test_database.py has the damage, and the tests above what is off alone
def test_a_damaged_database_switches_off_the_api_alone(tmp_path: Path) -> None:
    database = tmp_path / "user" / "__ltx_a2v" / "requests.sqlite"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"something else" * 1000)
    with Comfy(tmp_path) as server:
        assert [name for name in server.object_info() if name.startswith("LTXA2V")]
        assert server.post(SUBMIT, ASKED).status_code in (404, 405)
        log = server.log
    assert_one_line(log, "the HTTP API is off: ", ["requests.sqlite: is damaged", "Nothing was deleted"])
    assert database.read_bytes() == b"something else" * 1000


def assert_one_line(log: str, what: str, told: list[str]) -> None:
    (line,) = [line for line in log.splitlines() if "LTX A2V" in line]
    assert all(part in line for part in (*told, what))
    assert line.endswith(".") and "Traceback" not in log and "IMPORT FAILED" not in log
