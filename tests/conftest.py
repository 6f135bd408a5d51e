"""What every test shares: the pack under the alias `a2v`, and where the golden tensors lie.

The alias stands in for the name ComfyUI gives the pack. The repository's root never enters `sys.path`: its `nodes/`
would hide ComfyUI's own `nodes.py`.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
ORACLE = ROOT.parent / "shared" / "oracle"

# Dozens of programs are started, and each would compile torch and ComfyUI anew where nothing compiled may be kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A script's background job ignores Ctrl-C, and so would each program that the tests start and then interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("a2v", deadline=None)  # a busy machine is no fault
settings.load_profile("a2v")

alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules.setdefault("a2v", alias)

if os.name == "nt":  # Windows replaces no file that is mapped, and tests change what they have read
    import safetensors.torch

    def load_unmapped(path: str | os.PathLike[str]) -> dict[str, Any]:
        return safetensors.torch.load(Path(path).read_bytes())

    safetensors.torch.load_file = load_unmapped

from a2v.ltx import versions  # noqa: E402

LONG = ("tests/robust/", "tests/host/", "tests/mini/", "tests/ltx/test_", "tests/ltx/memory/", "tests/test_recipes.py")
"""Where files take minutes. They begin first, so that no worker is left with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))  # the order is stable otherwise


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes a file whole, and of tests/host all files of one server: each server starts once then, and not
    once a worker."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if not file.startswith("tests/host/"):
                return file
            return "the HTTP API's" if file.startswith("tests/host/test_api_") else "the graph's"

    return ByServer(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Where the packages are too old for LTX-2.5, a test that meets the sentence about it is skipped."""
    report = yield
    wrong = "" if call.excinfo is None else versions.problem_with_25()
    if wrong and report.failed and wrong in str(call.excinfo.value):
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"Skipped: {wrong}")
    return report


def pytest_collection_finish() -> None:
    """Takes what is imported out of every later garbage collection: a tenth of the processor time of the tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def oracle() -> Path:
    """Folder of the official pipeline's tensors; tests that need it are skipped by name in a checkout without it."""
    if not ORACLE.is_dir():
        pytest.skip(f"no golden tensors at {ORACLE}")
    return ORACLE
