"""One server for the whole session, with the pack and a tiny model set, and the browser where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from a2v.tests.host.api import SPEECH, environment, write_published
from a2v.tests.host.comfy import ROOT, Comfy, write_models
from a2v.tests.ltx.loaded import loaded_once
from a2v.tests.tiny import TinyFiles


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    """For the command, which runs in this process beside the server (command.py)."""
    with loaded_once():
        yield


@pytest.fixture(scope="session")
def comfy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comfy")


@pytest.fixture(scope="session")
def models(comfy_base: Path) -> TinyFiles:
    """The tiny set in the server's model folders; a loader's widget takes a file's `.name`."""
    return write_models(comfy_base)


@pytest.fixture(scope="session")
def comfy(comfy_base: Path, models: TinyFiles) -> Iterator[Comfy]:
    """The running server, with a pack of other people's nodes beside this one (tests/robust/odd_nodes). A test that
    needs its own state (other flags, a broken model) starts a Comfy of its own."""
    link = comfy_base / "custom_nodes" / "odd-nodes"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(ROOT / "tests" / "robust" / "odd_nodes", target_is_directory=True)
    with Comfy(comfy_base) as server:
        yield server


@pytest.fixture(scope="session")
def api_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="session")
def files(api_base: Path) -> TinyFiles:
    """The tiny set under the published names, in the folders of `server`."""
    return write_published(api_base)


@pytest.fixture(scope="session")
def server(api_base: Path, files: TinyFiles) -> Iterator[Comfy]:
    """The server that tests of the HTTP API share; it may call localhost, where their own servers are."""
    with environment(LTX_A2V_ALLOW_HOSTS="localhost"):
        comfy = Comfy(api_base)
    with comfy:
        yield comfy


@pytest.fixture(scope="session")
def sound() -> str:
    """Some speech as a data URI."""
    import fal_client

    return fal_client.encode_file(SPEECH)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a browser for playwright's `executable_path`; tests that need it are skipped by name without one."""
    found = shutil.which("chromium")
    if not found:
        pytest.skip("no chromium on this machine")
    return found
