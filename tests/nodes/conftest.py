"""ComfyUI's own modules, imported into the test's process from the unpacked server, for tests of the nodes.

The server's folder goes to the end of `sys.path`, so that it hides nothing. Tests are skipped by name where there is no
server; tests/host/comfy.py says which one it is.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from a2v.tests.host.comfy import HOST

BASE = tempfile.TemporaryDirectory(prefix="comfy-")

if (HOST / "comfy").is_dir():
    sys.path.append(str(HOST))
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = BASE.name
    import folder_paths


@pytest.fixture(scope="session")
def base() -> Path:
    """The folder with models/, input/ and output/ that ComfyUI's modules work on."""
    return Path(BASE.name)


@pytest.fixture
def inference() -> Iterator[None]:
    """As ComfyUI runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture
def fresh_lists(base: Path) -> Iterator[None]:
    """ComfyUI remembers what its folders hold for as long as a folder's time stamp stands."""
    folder_paths.filename_list_cache.clear()
    yield
    folder_paths.filename_list_cache.clear()
