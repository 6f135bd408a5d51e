"""What an installer finds: `pip install .` brings requirements and nothing else, the registry's metadata is whole."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from email.parser import HeaderParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCE = shutil.ignore_patterns(".git", ".venv", ".host", ".demo", ".*_cache", "__pycache__", "build", "*.egg-info")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements() -> list[str]:
    return [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `pip install .` filled, from a copy: pip builds where the sources lie."""
    folder = tmp_path_factory.mktemp("install")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE)
    pip = [sys.executable, "-m", "pip", "-qq", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", folder / "target", folder / "source"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "target"


def test_pip_install_brings_no_top_level_package(installed: Path, project: dict) -> None:
    name = project["project"]["name"].replace("-", "_")
    assert [path.name for path in installed.iterdir()] == [f"{name}-{project['project']['version']}.dist-info"]
    record = (installed / f"{name}-{project['project']['version']}.dist-info" / "RECORD").read_text()
    assert not re.search(r"^(?!ltx_audio_to_video-)", record.strip(), re.MULTILINE), record


def test_pip_install_asks_for_the_requirements(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info/METADATA")
    headers = HeaderParser().parsestr(metadata.read_text())
    extra = ['ray>=2.52; extra == "cluster"', 'pillow-heif>=0.18; extra == "heic"']
    assert sorted(headers.get_all("Requires-Dist")) == sorted(requirements() + extra)
    assert headers.get_payload().strip(), "the README is the description"
    assert headers["License-Expression"] == "Apache-2.0" and headers["License-File"] == "LICENSE"


def test_dependencies_are_the_lines_of_requirements_txt(project: dict) -> None:
    assert project["project"]["dependencies"] == requirements()


def test_the_users_torch_is_left_alone() -> None:
    names = {re.split(r"[<>=!~ \[]", line)[0].lower() for line in requirements()}
    assert not names & {"torch", "torchvision", "torchaudio", "numpy", "pillow", "xformers"}


def test_the_pins_lie_within_what_users_are_asked_for() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = dict(
        line.lower().split("==") for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if "==" in line
    )
    for line in requirements():
        asked = Requirement(line)
        assert asked.specifier.contains(pins[canonicalize_name(asked.name)]), line


def test_registry_metadata(project: dict) -> None:
    table, comfy = project["project"], project["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]*", table["name"]) and "comfyui" not in table["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", table["version"])
    assert table["urls"]["Repository"].startswith("https://") and table["license"] == "Apache-2.0"
    assert set(comfy) == {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"} and all(comfy.values())
    # The registry takes a square icon of up to 400 pixels a side and a banner of 21:9.
    for name, box in (("Icon", "0 0 256 256"), ("Banner", "0 0 1260 540")):
        assert comfy[name].startswith("https://")
        picture = ElementTree.parse(ROOT / "assets" / comfy[name].rsplit("/", 1)[1]).getroot()
        assert picture.get("viewBox") == box
    assert set(table["urls"]) == {"Repository", "Documentation", "Bug Tracker", "Changelog"}
    assert f"[{table['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflows_name_the_pack_and_its_version(project: dict) -> None:
    """So ComfyUI's Manager finds the pack for a missing node. A new version asks for them to be drawn anew."""
    wanted = (project["project"]["name"], project["project"]["version"])
    files = [path for folder in ("example_workflows", "subgraphs") for path in (ROOT / folder).glob("*.json")]
    assert len(files) == 35
    for file in files:
        graph = json.loads(file.read_text())
        nodes = [node for each in (graph, *graph["definitions"]["subgraphs"]) for node in each["nodes"]]
        ours = [node["properties"] for node in nodes if node["type"].startswith("LTXA2V")]
        assert ours and {(each["cnr_id"], each["ver"]) for each in ours} == {wanted}, file


def test_publishing_waits_for_its_token() -> None:
    """Without the secret of the registry's account the job ends before the action; it never runs from a fork's pull."""
    import yaml

    jobs = {
        name: yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text()) for name in ("publish", "validate")
    }
    assert set(jobs["publish"][True]) == {"workflow_dispatch", "push"} and jobs["publish"]["permissions"] == {}
    (job,) = jobs["publish"]["jobs"].values()
    last = job["steps"][-1]
    assert last["uses"].startswith("Comfy-Org/publish-node-action@") and last["if"] == "env.TOKEN != ''"
    assert job["env"]["TOKEN"] == last["with"]["personal_access_token"] == "${{ secrets.REGISTRY_ACCESS_TOKEN }}"
    (job,) = jobs["validate"]["jobs"].values()
    assert job["steps"][-1]["run"] == "comfy --skip-prompt --no-enable-telemetry node validate"


def test_what_a_reporter_finds() -> None:
    """Each template asks for what a report needs; the pages are there that they and the registry lead to."""
    import yaml

    templates = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").iterdir()}
    assert set(templates) == {"bug", "idea", "config"}
    for name in ("bug", "idea"):
        form = templates[name]
        assert form["name"] and form["description"] and any(e.get("validations") for e in form["body"])
        assert len({entry["id"] for entry in form["body"]}) == len(form["body"])
    assert "python -m ltx doctor" in (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text()
    readme = (ROOT / "README.md").read_text()
    for link in templates["config"]["contact_links"]:
        heading = link["url"].partition("#")[2].replace("-", " ")
        assert not heading or f"## {heading}" in readme.lower()
    for page in ("CONTRIBUTING.md", "SECURITY.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page}: {target}"


def test_the_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_the_registry_s_archive_leaves_out_what_no_user_needs() -> None:
    """Each line names something that exists, and no code that stays imports or opens what is left out."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    ignored = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in ignored if not (ROOT / line).exists()] == []
    folders = {line.rstrip("/") for line in ignored if "/" not in line.rstrip("/")}
    files = {line.rpartition("/")[2] for line in ignored} - {""}
    assert {"mini", "tests", "benchmarks"} <= folders
    for part in ("api", "ltx", "nodes"):
        for file in (ROOT / part).rglob("*.py"):
            wanted = re.findall(r"^\s*(?:from|import) \.{2,}(\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert not folders & set(wanted), file
            opened = {name for name in files if f'"{name}"' in file.read_text(encoding="utf-8")}
            assert not opened, f"{file} opens {opened}, which is left out"
    for needed in ("web", "subgraphs", "example_workflows", "workflows", "requirements.txt", "pyproject.toml"):
        assert (ROOT / needed).exists() and needed not in folders
