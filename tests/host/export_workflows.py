"""Writes workflows/api/*.json from workflows/*.json through ComfyUI's real frontend.

`python tests/host/export_workflows.py` starts a server with the pack, opens each UI workflow in chromium, saves it
again as the frontend serialises it, and its API form beside it. It changes nothing where both are up to date.
Exit status: 0, 1 where a workflow names nodes that do not exist or the pack does not load, or there is no browser.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# the pack's name outside ComfyUI, as in tests/conftest.py
alias = types.ModuleType("a2v")
alias.__path__ = [str(ROOT)]
sys.modules.setdefault("a2v", alias)

from a2v.tests.host.browser import OWN_NODE, Frontend, Workflow, browser_path
from a2v.tests.host.comfy import Comfy

WORKFLOWS = ROOT / "workflows"


def workflow_files() -> list[Path]:
    return sorted(WORKFLOWS.glob("*.json"))


def api_file(workflow: Path) -> Path:
    return workflow.parent / "api" / workflow.name


def api_text(prompt: dict[str, dict[str, Any]]) -> str:
    """API form as it is committed: nodes by id, inputs as the frontend gives them."""
    ordered = {key: prompt[key] for key in sorted(prompt, key=lambda key: [int(part) for part in key.split(":")])}
    return _text(ordered)


def ui_text(workflow: Workflow) -> str:
    """UI form as it is committed."""
    return _text(workflow)


def _text(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def export(frontend: Frontend, workflow: Path) -> tuple[str, str]:
    """UI and API form of a workflow file, both as texts. Errors: it names nodes that the server does not have."""
    missing = frontend.load(json.loads(workflow.read_text(encoding="utf-8")))
    if missing:
        raise ValueError(f"{workflow.name} uses unknown nodes: {', '.join(sorted(set(missing)))}")
    return ui_text(frontend.serialize()), api_text(frontend.prompt())


def main() -> int:
    chromium = browser_path()
    if not chromium:
        sys.stderr.write("export: no chromium here; `apt-get install chromium` brings it\n")
        return 1
    with tempfile.TemporaryDirectory() as base, Comfy(Path(base)) as server:
        if OWN_NODE not in server.object_info():
            sys.stderr.write(f"export: ComfyUI could not load the pack\n{server.log}")
            return 1
        with Frontend(server.url, chromium) as frontend:
            for workflow in workflow_files():
                try:
                    texts = export(frontend, workflow)
                except ValueError as error:
                    sys.stderr.write(f"export: {error}\n")
                    return 1
                for path, text in zip((workflow, api_file(workflow)), texts, strict=True):
                    changed = not path.exists() or path.read_text(encoding="utf-8") != text
                    if changed:
                        path.write_text(text, encoding="utf-8")
                    sys.stdout.write(f"export: {path.relative_to(ROOT)} {'written' if changed else 'is up to date'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
