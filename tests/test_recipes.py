"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the checkout: the tests that they name pass."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .test_packaging import NOT_SOURCE

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", GUIDE, re.DOTALL | re.MULTILINE))
STEP = re.compile(
    r"^In (?:(?P<new>a new file)|(?:`(?P<file>[^`]+)`)) ?(?P<words>.*?):\n\n```\w+\n(?P<block>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
PLACE = re.compile(r"\b(?P<how>after|before|in place of)\s`(?P<anchor>(?:[^`]|``)+)`$", re.IGNORECASE)


def follow(text: str, folder: Path) -> int:
    """Does each step of a recipe below that folder, and returns their number."""
    steps = list(STEP.finditer(text))
    assert len(steps) == text.count("\nIn ") + text.startswith("In "), "a step that is not in the form of the others"
    for step in steps:
        if step["new"]:
            path = folder / re.match(r"`([^`]+)`", step["words"])[1]
            assert not path.exists(), path
            path.write_text(step["block"], encoding="utf-8")
            continue
        path, place = folder / step["file"], PLACE.search(step["words"])
        assert place, step["words"]
        anchor = place["anchor"].replace("``", "`")
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        at = next((n for n, line in enumerate(lines) if line.startswith(anchor)), None)
        assert at is not None, f"no line of {step['file']} begins with {anchor!r}"
        how = place["how"].lower()
        lines[at + (how == "after") : at + (how != "before")] = [step["block"]]
        path.write_text("".join(lines), encoding="utf-8")
    return len(steps)


@pytest.mark.soak
def test_the_recipes_lead_to_tests_that_pass(tmp_path: Path) -> None:
    if not (ROOT / ".host" / "comfyui").is_dir():
        pytest.skip("no ComfyUI: run `make setup`")
    assert list(RECIPES) == ["A parameter", "A node", "A file format", "A sampler"]
    folder = tmp_path / "pack"
    shutil.copytree(ROOT, folder, ignore=NOT_SOURCE)
    for name in (".venv", ".host"):
        (folder / name).symlink_to(ROOT / name)
    if (ROOT.parent / "shared").exists():
        (tmp_path / "shared").symlink_to(ROOT.parent / "shared")
    named: dict[str, None] = {}
    for text in RECIPES.values():
        assert follow(text, folder)
        (command,) = re.findall(r"^Run `(.*?)`\.$", text, re.DOTALL | re.MULTILINE)
        named |= dict.fromkeys(shlex.split(command))
    ruff = [Path(sys.executable).with_name("ruff"), "check", "--no-cache", "."]
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *named]
    for command in (ruff, tests):  # one run for all four, since most of its time are imports
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
